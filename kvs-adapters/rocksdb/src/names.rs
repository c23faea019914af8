//! Row and column of keys that are met one after the other.
//!
//! Keys that follow each other mostly begin alike, so only what comes behind their common beginning is taken apart:
//!
//! ```text
//!   before   61 62 │ 00 ff │ 00 ff │ 12 34 00 00 │ 62 00 00       row 61 62 00 00 12 34
//!   now      61 62 │ 00 ff │ 00 ff │ 12 35 00 00 │ 62 00 00       row 61 62 00 00 12 ‥
//!                                       ▲ from here
//! ```
//!
//! Where the common beginning ends within an escape, the escape is taken apart again.

use crate::keys;
use atlas_kvs::key::MalformedKey;

/// The names of a cell, without their escapes, and its key.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) row: Vec<u8>,
    pub(crate) column: Vec<u8>,
    /// Empty before the first key.
    cell: Vec<u8>,
    // Invariant: where the row ends in `cell`, with its end mark.
    row_end: usize,
}

impl Names {
    #[cfg(test)]
    pub(crate) fn of(row: &[u8], column: &[u8]) -> Names {
        let mut names = Names::default();
        names.read(&keys::of_names(row, column)).expect("the key was made here");
        names
    }

    /// The key of the cell, without a timestamp.
    pub(crate) fn cell(&self) -> &[u8] {
        &self.cell
    }

    pub(crate) fn into_cell(self) -> Vec<u8> {
        self.cell
    }

    /// Takes the names out of the key of a cell. True if it is the cell that was read before. After an error the names are
    /// of no cell.
    pub(crate) fn read(&mut self, cell: &[u8]) -> Result<bool, MalformedKey> {
        let common = common_len(&self.cell, cell);
        if common == cell.len() && common == self.cell.len() && common > 0 {
            return Ok(true);
        }
        let row_end = self.read_row(cell, common)?;
        self.column.clear();
        if keys::take_part(cell, row_end, &mut self.column)? != cell.len() {
            return Err(MalformedKey);
        }
        self.cell.truncate(common);
        self.cell.extend_from_slice(&cell[common..]);
        self.row_end = row_end;
        Ok(false)
    }

    /// Answers where the row ends.
    fn read_row(&mut self, cell: &[u8], common: usize) -> Result<usize, MalformedKey> {
        if self.row_end > 0 && common >= self.row_end {
            return Ok(self.row_end);
        }
        // A zero begins an escape or the end mark, whose second byte may be another one now.
        let kept = if common > 0 && cell[common - 1] == 0 { common - 1 } else { common };
        self.row.truncate(kept - count_zeros(&cell[..kept]));
        keys::take_part(cell, kept, &mut self.row)
    }
}

fn common_len(a: &[u8], b: &[u8]) -> usize {
    let mut at = 0;
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        let differing = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if differing != 0 {
            return at + differing.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    at + a[at..].iter().zip(&b[at..]).take_while(|(a, b)| a == b).count()
}

fn count_zeros(bytes: &[u8]) -> usize {
    const LOW_BITS: u64 = u64::from_ne_bytes([0x7f; 8]);
    let (words, rest) = bytes.as_chunks::<8>();
    let of_word = |word: &[u8; 8]| {
        let word = u64::from_ne_bytes(*word);
        // The high bit of each byte is set where the byte is not zero.
        let filled = ((word & LOW_BITS) + LOW_BITS) | word | LOW_BITS;
        filled.count_zeros() as usize
    };
    words.iter().map(of_word).sum::<usize>() + rest.iter().filter(|byte| **byte == 0).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => Just(1), 2 => Just(0xff), 2 => Just(b'a')], 0..12)
    }

    proptest! {
        #[test]
        fn names_are_those_of_the_last_key(cells in prop::collection::vec((name(), name()), 1..40), sort in any::<bool>()) {
            let mut cells = cells;
            if sort {
                cells.sort();
            }
            let mut names = Names::default();
            let mut before = None;
            for (row, column) in cells {
                let key = keys::of_names(&row, &column);
                let same = names.read(&key).expect("the key was made here");
                prop_assert_eq!(same, before.as_ref() == Some(&key));
                prop_assert_eq!(names.cell(), &key[..]);
                prop_assert_eq!((&names.row, &names.column), (&row, &column));
                before = Some(key);
            }
        }

        #[test]
        fn what_is_no_key_is_refused_whatever_came_before(
            row in name(), column in name(),
            bad in prop::collection::vec(prop_oneof![4 => Just(0u8), 2 => Just(0xff), 1 => Just(b'a')], 0..12),
        ) {
            let mut names = Names::of(&row, &column);
            let split = keys::SplitKey::new(&bad).is_ok_and(|split| split.cell == bad);
            prop_assert_eq!(names.read(&bad).is_ok(), split);
        }

        #[test]
        fn zeros_are_counted(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0x80), any::<u8>()], 0..40)) {
            prop_assert_eq!(count_zeros(&bytes), bytes.iter().filter(|byte| **byte == 0).count());
        }

        #[test]
        fn a_common_beginning_is_measured(beginning in name(), a in name(), b in name()) {
            let (a, b) = ([&beginning[..], &a].concat(), [&beginning[..], &b].concat());
            prop_assert_eq!(common_len(&a, &b), a.iter().zip(&b).take_while(|(a, b)| a == b).count());
        }
    }

    #[test]
    fn a_key_that_goes_on_behind_its_cell_is_refused() {
        let mut names = Names::of(b"row", b"column");
        let mut longer = keys::of_names(b"row", b"column");
        longer.push(b'x');
        assert_eq!(names.read(&longer), Err(MalformedKey));
    }
}
