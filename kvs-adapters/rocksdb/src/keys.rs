//! How cells and versions become keys of RocksDB.
//!
//! ```text
//!   versioned   escape(row) 00 00 escape(column) 00 00 │ !ts, 8 bytes, big-endian
//!   atomic      escape(row) 00 00 escape(column) 00 00 │
//!               └──────────── the cell ──────────────┘ = the prefix that bloom filters know
//! ```
//!
//! The complement of the timestamp puts the newest version first: one seek to `cell ‖ !(read_before - 1)` finds the
//! newest version below `read_before`. No cell is a prefix of another (see [`atlas_kvs::key`]), so all keys that start
//! with a cell are its versions. Three kinds of bounds are made of a cell or row, none of which is ever stored in a
//! versioned table:
//!
//! ```text
//!   … 00 00             just before the first key of the cell (or row)
//!   … 00 00 │ !ts       just at a version
//!   … 00 01             just behind the last key of the cell (or row)
//! ```

use atlas_kvs::key::{MalformedKey, push_part};
use atlas_kvs::{Cell, Timestamp};

/// Length of the timestamp at the end of a versioned key.
const TIMESTAMP_LEN: usize = 8;

/// The key of a cell, without a timestamp.
pub(crate) fn of_cell(cell: &Cell) -> Vec<u8> {
    of_names(&cell.row, &cell.column)
}

/// The key of the cell of this row and column.
pub(crate) fn of_names(row: &[u8], column: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(row.len() + column.len() + 4 + TIMESTAMP_LEN);
    push_part(&mut key, row);
    push_part(&mut key, column);
    key
}

/// Appends the key of a cell, without a timestamp.
pub(crate) fn push_cell(key: &mut Vec<u8>, cell: &Cell) {
    push_part(key, &cell.row);
    push_part(key, &cell.column);
}

/// The key of a version.
pub(crate) fn of_version(cell: &Cell, ts: Timestamp) -> Vec<u8> {
    let mut key = of_cell(cell);
    push_timestamp(&mut key, ts);
    key
}

/// Appends a timestamp to the key of a cell.
pub(crate) fn push_timestamp(key: &mut Vec<u8>, ts: Timestamp) {
    key.extend_from_slice(&(!ts.get()).to_be_bytes());
}

/// The bound before the first key of a row.
pub(crate) fn of_row(row: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(row.len() + 2);
    push_part(&mut key, row);
    key
}

/// The bound behind the last key of a cell or row, given the bound before its first.
pub(crate) fn behind(mut before: Vec<u8>) -> Vec<u8> {
    debug_assert!(before.ends_with(&[0, 0]), "only whole parts have an end mark to lift");
    if let Some(last) = before.last_mut() {
        *last = 1;
    }
    before
}

/// A key taken apart, its parts still escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SplitKey<'k> {
    /// The row with its end mark.
    pub(crate) row: &'k [u8],
    /// The column with its end mark.
    pub(crate) column: &'k [u8],
    /// Row and column: the cell.
    pub(crate) cell: &'k [u8],
    /// What follows the cell.
    rest: &'k [u8],
    /// A part holds an escape.
    escaped: bool,
}

impl<'k> SplitKey<'k> {
    /// Finds the parts of a key. What follows the column is not looked at.
    pub(crate) fn new(key: &'k [u8]) -> Result<SplitKey<'k>, MalformedKey> {
        let row_end = part_end(key, 0)?;
        let column_end = part_end(key, row_end.at)?;
        let escaped = row_end.escaped || column_end.escaped;
        let (row_end, column_end) = (row_end.at, column_end.at);
        Ok(SplitKey {
            row: &key[..row_end],
            column: &key[row_end..column_end],
            cell: &key[..column_end],
            rest: &key[column_end..],
            escaped,
        })
    }

    /// Row and column, where neither holds an escape: they lie in the key as they are.
    pub(crate) fn plain_names(&self) -> Option<(&'k [u8], &'k [u8])> {
        let plain = |part: &'k [u8]| part.strip_suffix(&[0, 0]);
        if self.escaped { None } else { Some((plain(self.row)?, plain(self.column)?)) }
    }

    /// The timestamp of a versioned key.
    pub(crate) fn timestamp(&self) -> Result<Timestamp, MalformedKey> {
        timestamp(self.rest)
    }

    /// Checks that nothing follows the cell, as it must be in an atomic table.
    pub(crate) fn expect_bare(&self) -> Result<(), MalformedKey> {
        if self.rest.is_empty() { Ok(()) } else { Err(MalformedKey) }
    }
}

fn timestamp(bytes: &[u8]) -> Result<Timestamp, MalformedKey> {
    let complement: [u8; TIMESTAMP_LEN] = bytes.try_into().map_err(|_| MalformedKey)?;
    Timestamp::new(!u64::from_be_bytes(complement)).ok_or(MalformedKey)
}

/// The timestamp of `key` if it is a version of `cell`.
pub(crate) fn timestamp_within(key: &[u8], cell: &[u8]) -> Option<Result<Timestamp, MalformedKey>> {
    let rest = key.strip_prefix(cell)?;
    Some(timestamp(rest))
}

/// Writes one part without its escapes.
pub(crate) fn unescape(part: &[u8], plain: &mut Vec<u8>) -> Result<(), MalformedKey> {
    plain.clear();
    let mut rest = part.strip_suffix(&[0, 0]).ok_or(MalformedKey)?;
    while let Some(zero) = rest.iter().position(|&byte| byte == 0) {
        let after = rest[zero + 1..].strip_prefix(&[0xff]).ok_or(MalformedKey)?;
        plain.extend_from_slice(&rest[..=zero]);
        rest = after;
    }
    plain.extend_from_slice(rest);
    Ok(())
}

/// Where a part ends, its end mark included.
struct PartEnd {
    at: usize,
    escaped: bool,
}

/// Where the part that begins at `from` ends.
fn part_end(key: &[u8], from: usize) -> Result<PartEnd, MalformedKey> {
    let (mut at, mut escaped) = (from, false);
    loop {
        at += first_zero(&key[at..]).ok_or(MalformedKey)? + 2;
        match key.get(at - 1) {
            Some(0) => return Ok(PartEnd { at, escaped }),
            Some(0xff) => escaped = true,
            _ => return Err(MalformedKey),
        }
    }
}

/// Where the first zero is. Eight bytes at a time: every key that is read is taken apart, and names are so short that a call
/// for each of them costs more than it saves.
fn first_zero(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    let (words, rest) = bytes.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The lowest bit of these is that of the first zero; above it a borrow may set others.
        let zeros = word.wrapping_sub(ONES) & !word & HIGHS;
        if zeros != 0 {
            return Some(number * 8 + zeros.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|&byte| byte == 0).map(|at| words.len() * 8 + at)
}

/// The prefix of a key for RocksDB: its cell. Of bytes that are no key it is all of them.
///
/// The cell is found by its end marks and not by cutting off eight bytes, because RocksDB asks that the prefix of a
/// prefix be itself. It also makes one function right for both kinds of tables.
pub(crate) fn prefix(key: &[u8]) -> &[u8] {
    SplitKey::new(key).map_or(key, |split| split.cell)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unescaped(part: &[u8]) -> Result<Vec<u8>, MalformedKey> {
        let mut plain = b"what stood there before".to_vec();
        unescape(part, &mut plain).map(|()| plain)
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), Just(b'a'), any::<u8>()], 0..6)
    }

    proptest! {
        #[test]
        fn versions_sort_by_cell_and_then_newest_first(a in (name(), name(), 0u64..9), b in (name(), name(), 0u64..9)) {
            let key = |(row, column, ts): &(Vec<u8>, Vec<u8>, u64)| {
                of_version(&Cell::copy_from(row, column), Timestamp::saturating(*ts))
            };
            let order = (&a.0, &a.1).cmp(&(&b.0, &b.1)).then(b.2.cmp(&a.2));
            prop_assert_eq!(order, key(&a).cmp(&key(&b)));
        }

        #[test]
        fn a_key_gives_back_what_it_was_made_of(row in name(), column in name(), ts in 0u64..=i64::MAX as u64) {
            let cell = Cell::copy_from(&row, &column);
            let key = of_version(&cell, Timestamp::saturating(ts));
            let split = SplitKey::new(&key).expect("the key was made here");
            prop_assert_eq!(split.timestamp(), Ok(Timestamp::saturating(ts)));
            let plain = !row.contains(&0) && !column.contains(&0);
            prop_assert_eq!(split.plain_names(), plain.then_some((&row[..], &column[..])));
            prop_assert_eq!(unescaped(split.row).expect("a row was pushed"), row);
            prop_assert_eq!(unescaped(split.column).expect("a column was pushed"), column);
            prop_assert_eq!(prefix(&key), &of_cell(&cell)[..]);
            prop_assert_eq!(prefix(prefix(&key)), prefix(&key));
        }

        #[test]
        fn the_first_zero_is_found_wherever_it_is(bytes in prop::collection::vec(prop_oneof![
            1 => Just(0u8), 6 => Just(1), 6 => Just(0x80), 6 => any::<u8>()], 0..40)) {
            prop_assert_eq!(first_zero(&bytes), bytes.iter().position(|&byte| byte == 0));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(key in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => Just(0xff), 2 => any::<u8>()], 0..40)) {
            prop_assert!(key.starts_with(prefix(&key)));
            prop_assert_eq!(prefix(prefix(&key)), prefix(&key));
            if let Ok(split) = SplitKey::new(&key) {
                unescaped(split.row).expect("a split part has its end mark");
                unescaped(split.column).expect("a split part has its end mark");
                let _ = split.timestamp();
                let _ = split.expect_bare();
            }
            let _ = unescaped(&key);
            let _ = timestamp_within(&key, b"a\0\0");
        }
    }

    #[test]
    fn bounds_enclose_the_keys_of_a_cell_and_of_no_other() {
        let cell = Cell::copy_from("a", "b");
        let (before, after) = (of_cell(&cell), behind(of_cell(&cell)));
        for ts in [Timestamp::SENTINEL, Timestamp::FIRST, Timestamp::MAX] {
            let key = of_version(&cell, ts);
            assert!(before < key && key < after);
        }
        for neighbour in [Cell::copy_from("a", "b\0"), Cell::copy_from("a", b"a\xff"), Cell::copy_from("a\0", "b")] {
            let key = of_version(&neighbour, Timestamp::FIRST);
            assert!(key < before || key > after, "{neighbour}");
        }
    }
}
