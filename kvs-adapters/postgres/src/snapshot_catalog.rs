//! The first part of a snapshot: which tables there are.
//!
//! ```text
//!   "atlas postgres tables 1\n"
//!   number of tables (4 bytes)
//!   for each: kind (1) │ length of name (1) │ name │ length of metadata (4) │ metadata       numbers big-endian
//! ```

use atlas_kvs::{KvsError, Result, TableDescription, TableKind, TableRef};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const HEADER: &[u8] = b"atlas postgres tables 1\n";
const PLACE: &str = "the tables of a snapshot";

pub(crate) fn encode(tables: &[TableDescription]) -> Bytes {
    let mut out = BytesMut::from(HEADER);
    out.put_u32(u32::try_from(tables.len()).expect("a schema has fewer tables than that"));
    for description in tables {
        let name = description.table.name();
        out.put_u8(match description.kind {
            TableKind::Versioned => 0,
            TableKind::Atomic => 1,
        });
        out.put_u8(u8::try_from(name.len()).expect("a name has at most 200 bytes"));
        out.put_slice(name.as_bytes());
        out.put_u32(u32::try_from(description.metadata.len()).expect("a column holds less than a gibibyte"));
        out.put_slice(&description.metadata);
    }
    out.freeze()
}

/// # Errors
/// `Corrupt` for anything that was not made by [`encode`].
pub(crate) fn decode(bytes: &Bytes) -> Result<Vec<TableDescription>> {
    let wrong = |reason: &str| KvsError::corrupt(PLACE, reason);
    let cut = |_| wrong("they are cut off");
    let mut rest = bytes.clone();
    if !rest.starts_with(HEADER) {
        return Err(wrong("they were not written by this program, or by a newer version of it"));
    }
    rest.advance(HEADER.len());
    let count = rest.try_get_u32().map_err(cut)?;
    let mut tables = Vec::new();
    for _ in 0..count {
        let kind = match rest.try_get_u8().map_err(cut)? {
            0 => TableKind::Versioned,
            1 => TableKind::Atomic,
            _ => return Err(wrong("one is of no known kind")),
        };
        let len = rest.try_get_u8().map_err(cut)?;
        let name = take(&mut rest, usize::from(len)).ok_or_else(|| wrong("they are cut off"))?;
        let name = std::str::from_utf8(&name).map_err(|_| wrong("a name is no text"))?;
        let table = TableRef::new(name).map_err(|error| wrong(&error.to_string()))?;
        let len = rest.try_get_u32().map_err(cut)?;
        let metadata = take(&mut rest, len as usize).ok_or_else(|| wrong("they are cut off"))?;
        tables.push(TableDescription { table, kind, metadata });
    }
    if rest.is_empty() { Ok(tables) } else { Err(wrong("there is something behind the last one")) }
}

fn take(rest: &mut Bytes, len: usize) -> Option<Bytes> {
    (len <= rest.len()).then(|| rest.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_come_back_and_nothing_else_does() {
        let description = |name: &str, kind, metadata: &'static [u8]| TableDescription {
            table: TableRef::new(name).expect("the name is a table name"),
            kind,
            metadata: Bytes::from_static(metadata),
        };
        let tables = [description("a", TableKind::Versioned, b""), description("B-1", TableKind::Atomic, b"m\0")];
        for count in 0..=2 {
            let bytes = encode(&tables[..count]);
            assert_eq!(decode(&bytes).expect("it was encoded"), &tables[..count]);
            for len in 0..bytes.len() {
                decode(&bytes.slice(..len)).expect_err("it is cut off");
            }
            decode(&Bytes::from([&bytes[..], b"x"].concat())).expect_err("there is more");
        }
        decode(&Bytes::from_static(b"PGCOPY\n\xff\r\n\0")).expect_err("it is something else");
    }
}
