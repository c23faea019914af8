//! Keys to rows and back, values to bytes and back.

use super::def::{TableDef, TableKey, TableValue};
use crate::{Error, Result};
use atlas_kvs::{Cell, RowRange, TableRef};
use bytes::Bytes;
use foundationdb_tuple::TuplePack;
use std::ops::{Bound, RangeBounds};

/// The one column of an entity.
const COLUMN: Bytes = Bytes::from_static(b"v");
/// How much of the hash stands in front of a key.
const HASH_LEN: usize = 8;
/// Above the code of every element: behind a packed tuple, it ends what begins with that tuple.
const BEHIND_ALL_ELEMENTS: u8 = 0xff;

/// The cell of an entity.
pub(super) fn cell<K: TuplePack, V>(def: &TableDef<K, V>, key: &K) -> Cell {
    let packed = key.pack_to_vec();
    let row = if def.is_hashed() { [&hash(&packed)[..], &packed].concat() } else { packed };
    Cell { row: row.into(), column: COLUMN }
}

fn hash(packed: &[u8]) -> [u8; HASH_LEN] {
    let hash = blake3::hash(packed);
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// The rows of all keys that begin with the elements of `prefix`.
pub(super) fn prefix_rows<P: TuplePack>(prefix: &P) -> RowRange {
    range_rows::<P>(&(Bound::Included(prefix), Bound::Included(prefix)))
}

/// The rows of all keys within bounds. A bound that is shorter than a key stands for all keys that begin with it.
pub(super) fn range_rows<P: TuplePack>(bounds: &impl RangeBounds<P>) -> RowRange {
    let behind = |bound: &P| {
        let mut row = bound.pack_to_vec();
        // The prefix of all rows is no prefix of an element that continues: "a" must not find "a\0b", which goes on
        // with this byte.
        row.push(BEHIND_ALL_ELEMENTS);
        Bytes::from(row)
    };
    let start = match bounds.start_bound() {
        Bound::Included(bound) => bound.pack_to_vec().into(),
        Bound::Excluded(bound) => behind(bound),
        Bound::Unbounded => Bytes::new(),
    };
    let end = match bounds.end_bound() {
        Bound::Included(bound) => Some(behind(bound)),
        Bound::Excluded(bound) => Some(bound.pack_to_vec().into()),
        Bound::Unbounded => None,
    };
    RowRange { start, end }
}

/// The key of a cell.
///
/// # Errors
/// [`Error::Corrupt`] for a cell that no typed table of this definition can have written.
pub(super) fn key<K: TableKey, V>(def: &TableDef<K, V>, cell: &Cell) -> Result<K> {
    let damaged = |reason: String| damaged(&def.table(), cell, reason);
    if cell.column != COLUMN {
        return Err(damaged(format!("a typed table has no column '{}'", cell.column.escape_ascii())));
    }
    let packed = if def.is_hashed() {
        let (found, packed) =
            cell.row.split_at_checked(HASH_LEN).ok_or_else(|| damaged("the row is too short".to_owned()))?;
        if found != hash(packed) {
            return Err(damaged("the row does not begin with the hash of its key".to_owned()));
        }
        packed
    } else {
        &cell.row[..]
    };
    K::unpack_root(packed).map_err(|error| damaged(format!("the key can't be read: {error}")))
}

/// A value as it is stored.
pub(super) fn encode<V: TableValue>(table: &TableRef, value: &V) -> Result<Bytes> {
    let bytes = postcard::to_stdvec(value);
    Ok(bytes.map_err(|error| Error::Usage(format!("a value for table '{table}' can't be written: {error}")))?.into())
}

/// A value as it was before it was stored.
///
/// # Errors
/// [`Error::Corrupt`] that names the table and the key.
pub(super) fn decode<V: TableValue>(table: &TableRef, cell: &Cell, bytes: &[u8]) -> Result<V> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(damaged(table, cell, format!("{} bytes follow the value", rest.len()))),
        Err(error) => Err(damaged(table, cell, format!("the value can't be read: {error}"))),
    }
}

fn damaged(table: &TableRef, cell: &Cell, reason: String) -> Error {
    Error::corrupt(format!("table '{table}', key '{}'", cell.row.escape_ascii()), reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Key = (String, i64, Option<bool>, Vec<u8>, u32);
    const PLAIN: TableDef<Key, (u8, String)> = TableDef::new("plain");
    const HASHED: TableDef<Key, (u8, String)> = TableDef::new("hashed").hashed();

    /// Keys that share beginnings, hold zeros, and change sign and length.
    fn keys() -> impl Strategy<Value = Key> {
        let text = proptest::collection::vec(prop_oneof![Just('\0'), Just('a'), Just('ÿ'), any::<char>()], 0..4);
        let number = prop_oneof![-3i64..3, any::<i64>(), Just(i64::MIN), Just(i64::MAX), Just(255), Just(256)];
        let bytes = proptest::collection::vec(prop_oneof![Just(0u8), Just(255), any::<u8>()], 0..4);
        (text.prop_map(String::from_iter), number, any::<Option<bool>>(), bytes, any::<u32>())
    }

    proptest! {
        #[test]
        fn rows_are_in_the_order_of_their_keys(a in keys(), b in keys()) {
            prop_assert_eq!(cell(&PLAIN, &a).row.cmp(&cell(&PLAIN, &b).row), a.cmp(&b));
        }

        #[test]
        fn numbers_of_every_width_are_in_order(a in any::<i128>(), b in any::<i128>(), shift in 0u32..127) {
            let (a, b) = (a >> shift, b >> shift);
            prop_assert_eq!(a.pack_to_vec().cmp(&b.pack_to_vec()), a.cmp(&b));
            let (a, b) = (a.unsigned_abs(), b.unsigned_abs());
            prop_assert_eq!(a.pack_to_vec().cmp(&b.pack_to_vec()), a.cmp(&b));
        }

        #[test]
        fn keys_and_values_come_back(written in keys(), number in any::<u8>(), text in ".{0,8}") {
            for def in [PLAIN, HASHED] {
                let cell = cell(&def, &written);
                prop_assert_eq!(&key(&def, &cell).expect("it was written"), &written);
                let value = (number, text.clone());
                let bytes = encode(&def.table(), &value).expect("plain data");
                prop_assert_eq!(decode::<(u8, String)>(&def.table(), &cell, &bytes).expect("it was written"), value);
            }
        }

        #[test]
        fn a_prefix_finds_the_keys_that_begin_with_its_elements_and_no_others(a in keys(), b in keys()) {
            let rows = prefix_rows(&(&a.0, a.1));
            prop_assert!(rows.contains(&cell(&PLAIN, &a).row));
            prop_assert_eq!(rows.contains(&cell(&PLAIN, &b).row), (&a.0, a.1) == (&b.0, b.1));
        }

        #[test]
        fn a_range_holds_what_its_bounds_hold(a in keys(), b in keys(), c in keys()) {
            let row = cell(&PLAIN, &c).row;
            let ranges = [
                (range_rows::<Key>(&(&a..&b)), (&a..&b).contains(&&c)),
                (range_rows::<Key>(&(&a..=&b)), (&a..=&b).contains(&&c)),
                (range_rows::<Key>(&(Bound::Excluded(&a), Bound::Unbounded)), c > a),
            ];
            for (rows, expected) in ranges {
                prop_assert_eq!(rows.contains(&row), expected);
            }
        }

        #[test]
        fn any_bytes_are_a_key_and_a_value_or_damage(row in proptest::collection::vec(any::<u8>(), 0..24),
                                                     value in proptest::collection::vec(any::<u8>(), 0..24)) {
            let table = PLAIN.table();
            let cell = Cell { row: row.into(), column: COLUMN };
            let _ = key(&PLAIN, &cell);
            let _ = key(&HASHED, &cell);
            let _ = key(&TableDef::<(i8Wide, f64), u8>::new("wide"), &cell);
            let _ = decode::<(u8, String)>(&table, &cell, &value);
        }

        #[test]
        fn damaged_keys_are_read_or_refused(written in keys(), place in any::<prop::sample::Index>(), byte in any::<u8>()) {
            for def in [PLAIN, HASHED] {
                let mut row = cell(&def, &written).row.to_vec();
                let place = place.index(row.len());
                row[place] = byte;
                let _ = key(&def, &Cell { row: row.into(), column: COLUMN });
            }
        }
    }

    /// The widest and the narrowest numbers there are.
    #[allow(non_camel_case_types)]
    type i8Wide = (i16, u16, i32, u128, i128);

    #[test]
    fn damage_names_the_table_and_the_key() {
        let cell = Cell { row: Bytes::from_static(b"\x02key\x00"), column: COLUMN };
        let error = decode::<String>(&PLAIN.table(), &cell, b"\x05a").expect_err("the text is cut off").to_string();
        assert!(error.contains("table 'plain'") && error.contains(r"key '\x02key\x00'"), "{error}");
        let error = decode::<u8>(&PLAIN.table(), &cell, b"12").expect_err("a byte too many").to_string();
        assert!(error.contains("1 bytes follow the value"), "{error}");
    }
}
