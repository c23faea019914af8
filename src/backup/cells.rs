//! How cells lie in the files of a portable backup.
//!
//! ```text
//!   file    "ATLASPB1" │ frame │ frame │ …
//!   frame   length of the body (4) │ CRC-32C of the body (4) │ body
//!   body    cell │ cell │ …                                                    at least one
//!   cell    length of row (2) │ of column (2) │ of value (4) │ row │ column │ value
//! ```
//!
//! Numbers are big-endian. Cells ascend within a file, rows first, and no cell is there twice. A reader holds one frame
//! in memory; a frame is about [`FRAME_SIZE`] bytes, or one cell.

use super::chunks::HashedFile;
use crate::{Error, Result};
use atlas_kvs::Cell;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What a file begins with.
pub(super) const PREAMBLE: &[u8; 8] = b"ATLASPB1";

/// A frame ends with the cell that makes it as large as this, in bytes.
pub(super) const FRAME_SIZE: usize = 256 << 10;

/// Longest frame read, in bytes: room for the greatest value of any store.
const FRAME_LEN_MAX: usize = 1 << 30;

const FRAME_HEADER: usize = 8;
const CELL_HEADER: usize = 8;

/// Cells of one frame.
pub(super) type Cells = Vec<(Cell, Bytes)>;

/// Makes frames of cells.
#[derive(Debug, Default)]
pub(super) struct FrameWriter {
    /// Empty, or the place for a header and the cells behind it.
    frame: BytesMut,
    cells: u64,
}

impl FrameWriter {
    /// Adds a cell. Answers a frame if it is full with it.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for lengths that no frame can tell.
    pub(super) fn push(&mut self, cell: &Cell, value: &[u8]) -> Result<Option<Bytes>> {
        let len = |what: &str, len: usize, limit: usize| {
            if len <= limit {
                Ok(len)
            } else {
                Err(Error::TooLarge { what: format!("the {what} of {cell}"), len, limit })
            }
        };
        let row = len("row", cell.row.len(), usize::from(u16::MAX))?;
        let column = len("column", cell.column.len(), usize::from(u16::MAX))?;
        let value_len = len("value", value.len(), FRAME_LEN_MAX - FRAME_SIZE - (1 << 20))?;
        if self.frame.is_empty() {
            self.frame.reserve(FRAME_HEADER + FRAME_SIZE + CELL_HEADER + row + column + value_len);
            self.frame.put_bytes(0, FRAME_HEADER);
        }
        self.frame.put_u16(row as u16);
        self.frame.put_u16(column as u16);
        self.frame.put_u32(value_len as u32);
        self.frame.put_slice(&cell.row);
        self.frame.put_slice(&cell.column);
        self.frame.put_slice(value);
        self.cells += 1;
        Ok(if self.frame.len() >= FRAME_HEADER + FRAME_SIZE { self.take() } else { None })
    }

    /// The last frame, if anything is left for one.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        let body = self.frame.get(FRAME_HEADER..).filter(|body| !body.is_empty())?;
        let (len, checksum) = (body.len() as u32, crc32c::crc32c(body));
        let mut header = &mut self.frame[..FRAME_HEADER];
        header.put_u32(len);
        header.put_u32(checksum);
        Some(std::mem::take(&mut self.frame).freeze())
    }

    /// Cells added so far.
    pub(super) fn cells(&self) -> u64 {
        self.cells
    }
}

/// Reads a file and sends its frames, each as the cells in it.
///
/// # Errors
/// [`Error::Corrupt`] naming `place` for anything that was not written so; what `send` says.
pub(super) fn read_frames(source: &mut HashedFile, place: &str, send: &dyn Fn(Cells) -> Result<()>) -> Result<()> {
    let mut fill = |into: &mut [u8]| {
        let mut filled = 0;
        while filled < into.len() {
            match source.read_some(&mut into[filled..])? {
                0 => break,
                len => filled += len,
            }
        }
        Ok(filled)
    };
    decode(place, &mut fill, send)
}

/// As [`read_frames`], of whatever `fill` fills in: it fills a buffer, and only at the end of the file not all of it.
fn decode(
    place: &str,
    fill: &mut dyn FnMut(&mut [u8]) -> Result<usize>,
    send: &dyn Fn(Cells) -> Result<()>,
) -> Result<()> {
    let damaged = |reason: &str| Error::corrupt(place, reason);
    let mut preamble = [0; PREAMBLE.len()];
    fill(&mut preamble)?;
    if &preamble != PREAMBLE {
        return Err(damaged("it does not begin as a file of cells does"));
    }
    let mut last: Option<Cell> = None;
    loop {
        let mut header = [0; FRAME_HEADER];
        match fill(&mut header)? {
            0 => return Ok(()),
            FRAME_HEADER => (),
            _ => return Err(damaged("a frame is cut off")),
        }
        let (mut len, mut checksum) = ([0; 4], [0; 4]);
        len.copy_from_slice(&header[..4]);
        checksum.copy_from_slice(&header[4..]);
        let len = u32::from_be_bytes(len) as usize;
        if len == 0 || len > FRAME_LEN_MAX {
            return Err(damaged("a frame has a length that no frame has"));
        }
        let body = read_body(len, fill)?.ok_or_else(|| damaged("a frame is cut off"))?;
        if crc32c::crc32c(&body) != u32::from_be_bytes(checksum) {
            return Err(damaged("a frame does not match its checksum"));
        }
        let cells = cells_of(body).ok_or_else(|| damaged("a frame does not consist of cells"))?;
        for (cell, _) in &cells {
            if last.as_ref().is_some_and(|last| last >= cell) {
                return Err(damaged("its cells are not in order"));
            }
            last = Some(cell.clone());
        }
        send(cells)?;
    }
}

/// A body, or nothing if there is less. Memory is taken as bytes come in: the length is not believed.
fn read_body(len: usize, fill: &mut dyn FnMut(&mut [u8]) -> Result<usize>) -> Result<Option<Bytes>> {
    let mut body = Vec::new();
    while body.len() < len {
        let begin = body.len();
        let end = len.min(begin + (1 << 20));
        body.resize(end, 0);
        if fill(&mut body[begin..])? < end - begin {
            return Ok(None);
        }
    }
    Ok(Some(body.into()))
}

fn cells_of(mut body: Bytes) -> Option<Cells> {
    let mut cells = Vec::new();
    while !body.is_empty() {
        if body.len() < CELL_HEADER {
            return None;
        }
        let (row, column) = (usize::from(body.get_u16()), usize::from(body.get_u16()));
        let value = body.get_u32() as usize;
        if body.len() < row + column || body.len() - row - column < value {
            return None;
        }
        let cell = Cell::new(body.split_to(row), body.split_to(column));
        cells.push((cell, body.split_to(value)));
    }
    Some(cells)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    fn encoded<'a>(cells: impl IntoIterator<Item = (&'a Cell, &'a Vec<u8>)>) -> Vec<u8> {
        let mut writer = FrameWriter::default();
        let mut file = PREAMBLE.to_vec();
        for (cell, value) in cells {
            file.extend(writer.push(cell, value).expect("it is small").unwrap_or_default());
        }
        file.extend(writer.take().unwrap_or_default());
        file
    }

    fn decoded(mut file: &[u8]) -> Result<Cells> {
        let found = RefCell::new(Vec::new());
        let mut fill = |into: &mut [u8]| {
            let len = into.len().min(file.len());
            into[..len].copy_from_slice(&file[..len]);
            file = &file[len..];
            Ok(len)
        };
        decode("a file", &mut fill, &|cells| {
            found.borrow_mut().extend(cells);
            Ok(())
        })?;
        Ok(found.into_inner())
    }

    fn any_cells() -> impl Strategy<Value = BTreeMap<Cell, Vec<u8>>> {
        let name = || proptest::collection::vec(any::<u8>(), 0..6);
        let value = prop_oneof![9 => proptest::collection::vec(any::<u8>(), 0..40), 1 => Just(vec![7; FRAME_SIZE])];
        let cell = (name(), name()).prop_map(|(row, column)| Cell::new(row, column));
        proptest::collection::btree_map(cell, value, 0..20)
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(cells in any_cells()) {
            let read = decoded(&encoded(&cells)).expect("it was written");
            let read: Vec<(Cell, Vec<u8>)> = read.into_iter().map(|(cell, value)| (cell, value.to_vec())).collect();
            prop_assert_eq!(read, cells.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn changed_bytes_are_damage(cells in any_cells(), at in any::<proptest::sample::Index>(), bit in 0..8) {
            let mut file = encoded(&cells);
            let at = at.index(file.len());
            file[at] ^= 1_u8 << bit;
            let refused = matches!(decoded(&file), Err(Error::Corrupt { .. }));
            prop_assert!(refused);
        }

        #[test]
        fn a_file_cut_off_is_damage_or_ends_with_a_frame(cells in any_cells(), at in any::<proptest::sample::Index>()) {
            let file = encoded(&cells);
            let cut = at.index(file.len());
            if let Ok(read) = decoded(&file[..cut]) {
                prop_assert!(read.len() <= cells.len());
            }
        }

        #[test]
        fn any_bytes_are_cells_or_damage(mut body in proptest::collection::vec(any::<u8>(), 0..60), sealed: bool) {
            if sealed {
                let mut frame = (body.len() as u32).to_be_bytes().to_vec();
                frame.extend(crc32c::crc32c(&body).to_be_bytes());
                frame.append(&mut body);
                body = frame;
            }
            let mut file = PREAMBLE.to_vec();
            file.extend(body);
            let _ = decoded(&file);
        }
    }

    #[test]
    fn an_absurd_length_takes_no_memory() {
        let mut file = PREAMBLE.to_vec();
        file.extend((FRAME_LEN_MAX as u32).to_be_bytes());
        file.extend([0; 100]);
        assert!(matches!(decoded(&file), Err(Error::Corrupt { .. })));
        for len in [0, FRAME_LEN_MAX as u32 + 1, u32::MAX] {
            let mut file = PREAMBLE.to_vec();
            file.extend(len.to_be_bytes());
            file.extend([0; 4]);
            assert!(matches!(decoded(&file), Err(Error::Corrupt { .. })), "{len}");
        }
    }

    #[test]
    fn cells_out_of_order_are_damage() {
        let cells = [(Cell::copy_from("b", "c"), vec![1]), (Cell::copy_from("a", "c"), vec![2])];
        let file = encoded(cells.iter().map(|(cell, value)| (cell, value)));
        assert!(matches!(decoded(&file), Err(Error::Corrupt { .. })));
        let twice = [cells[0].clone(), cells[0].clone()];
        let file = encoded(twice.iter().map(|(cell, value)| (cell, value)));
        assert!(matches!(decoded(&file), Err(Error::Corrupt { .. })));
    }
}
