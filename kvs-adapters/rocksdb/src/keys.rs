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

/// A key taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SplitKey<'k> {
    /// Row and column, still escaped: the cell.
    pub(crate) cell: &'k [u8],
    /// What follows the cell.
    rest: &'k [u8],
}

impl<'k> SplitKey<'k> {
    /// Finds the parts of a key. What follows the column is not looked at.
    pub(crate) fn new(key: &'k [u8]) -> Result<SplitKey<'k>, MalformedKey> {
        let (cell, rest) = key.split_at(part_end(key, part_end(key, 0)?)?);
        Ok(SplitKey { cell, rest })
    }
}

/// The part of a key that is the row, still escaped, with its end mark.
pub(crate) fn row_of(key: &[u8]) -> Result<&[u8], MalformedKey> {
    Ok(&key[..part_end(key, 0)?])
}

/// The key of the cell and the timestamp, of the key of a version. Whether it is the key of a cell is not looked at.
pub(crate) fn split_timestamp(key: &[u8]) -> Result<(&[u8], Timestamp), MalformedKey> {
    let (cell, bytes) = key.split_at_checked(key.len().wrapping_sub(TIMESTAMP_LEN)).ok_or(MalformedKey)?;
    Ok((cell, timestamp(bytes)?))
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

/// Appends the part that begins at `from` to `plain`, without its escapes. Answers where it ends, its end mark included.
pub(crate) fn take_part(key: &[u8], from: usize, plain: &mut Vec<u8>) -> Result<usize, MalformedKey> {
    let mut at = from;
    loop {
        let zero = at + first_zero(&key[at..]).ok_or(MalformedKey)?;
        plain.extend_from_slice(&key[at..zero]);
        at = zero + 2;
        match key.get(zero + 1) {
            Some(0) => return Ok(at),
            Some(0xff) => plain.push(0),
            _ => return Err(MalformedKey),
        }
    }
}

/// Where the part that begins at `from` ends, its end mark included.
fn part_end(key: &[u8], from: usize) -> Result<usize, MalformedKey> {
    let mut at = from;
    loop {
        at += first_zero(&key[at..]).ok_or(MalformedKey)? + 2;
        match key.get(at - 1) {
            Some(0) => return Ok(at),
            Some(0xff) => {}
            _ => return Err(MalformedKey),
        }
    }
}

/// Where the first zero is. Eight bytes at a time: every key that is read or written is taken apart, and names are so short
/// that a call for each of them costs more than it saves.
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

    /// Both parts of the key of a cell.
    fn parts(cell: &[u8]) -> Result<(Vec<u8>, Vec<u8>), MalformedKey> {
        let (mut row, mut column) = (Vec::new(), Vec::new());
        let row_end = take_part(cell, 0, &mut row)?;
        let end = take_part(cell, row_end, &mut column)?;
        if end == cell.len() { Ok((row, column)) } else { Err(MalformedKey) }
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
            let (split, split_ts) = split_timestamp(&key).expect("the key was made here");
            prop_assert_eq!(split_ts, Timestamp::saturating(ts));
            prop_assert_eq!(parts(split), Ok((row, column)));
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
                prop_assert!(parts(split.cell).is_ok());
            }
            let _ = split_timestamp(&key);
            let _ = parts(&key);
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
