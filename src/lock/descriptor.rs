//! Names of locks.

use atlas_kvs::key::{push_part, split_part};
use atlas_kvs::{Cell, TableRef, Timestamp};
use bytes::Bytes;
use std::fmt;

/// The name of a lock: opaque bytes with an order, the same for the same thing and different for any other.
///
/// ```text
///   kind | part | part ...        each part escaped and closed, so that no bytes of a row can look like its end
/// ```
///
/// Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockDescriptor(Bytes);

const ROW: u8 = 1;
const CELL: u8 = 2;
const TRANSACTION: u8 = 3;
const ADVISORY: u8 = 4;

impl LockDescriptor {
    /// The lock on a row. It does not exclude the locks on the row's cells: a table uses one kind or the other.
    pub fn row(table: &TableRef, row: &[u8]) -> LockDescriptor {
        LockDescriptor::of_parts(ROW, &[table.name().as_bytes(), row])
    }

    /// The lock on a cell.
    pub fn cell(table: &TableRef, cell: &Cell) -> LockDescriptor {
        LockDescriptor::of_parts(CELL, &[table.name().as_bytes(), &cell.row, &cell.column])
    }

    /// The lock that a transaction holds on its own start timestamp while it is alive.
    pub fn transaction(start_ts: Timestamp) -> LockDescriptor {
        LockDescriptor::of_parts(TRANSACTION, &[&start_ts.get().to_be_bytes()])
    }

    /// A lock on whatever the application means by `name`.
    pub fn advisory(name: &str) -> LockDescriptor {
        LockDescriptor::of_parts(ADVISORY, &[name.as_bytes()])
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn of_parts(kind: u8, parts: &[&[u8]]) -> LockDescriptor {
        let mut bytes = Vec::with_capacity(1 + parts.iter().map(|part| part.len() + 2).sum::<usize>());
        bytes.push(kind);
        parts.iter().for_each(|part| push_part(&mut bytes, part));
        LockDescriptor(bytes.into())
    }

    fn parts(&self) -> Vec<Vec<u8>> {
        let mut parts = Vec::new();
        let mut rest = &self.0[1..];
        while !rest.is_empty() {
            let (part, behind) = split_part(rest).expect("descriptors are made of pushed parts only");
            parts.push(part);
            rest = behind;
        }
        parts
    }
}

impl fmt::Display for LockDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0[0], self.parts().as_slice()) {
            (ROW, [table, row]) => write!(f, "row {}:{}", table.escape_ascii(), row.escape_ascii()),
            (CELL, [table, row, column]) => {
                write!(f, "cell {}:{}/{}", table.escape_ascii(), row.escape_ascii(), column.escape_ascii())
            }
            (TRANSACTION, [start_ts]) => {
                let number = start_ts.iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
                write!(f, "transaction {number}")
            }
            (_, parts) => {
                f.write_str("'")?;
                parts.iter().try_for_each(|part| f.write_str(&String::from_utf8_lossy(part)))?;
                f.write_str("'")
            }
        }
    }
}

impl fmt::Debug for LockDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Named {
        Row(&'static str, Vec<u8>),
        Cell(&'static str, Vec<u8>, Vec<u8>),
        Transaction(u64),
        Advisory(String),
    }

    impl Named {
        fn descriptor(&self) -> LockDescriptor {
            let table = |name: &str| TableRef::new(name).expect("the name is well formed");
            match self {
                Named::Row(name, row) => LockDescriptor::row(&table(name), row),
                Named::Cell(name, row, column) => LockDescriptor::cell(&table(name), &Cell::copy_from(row, column)),
                Named::Transaction(ts) => LockDescriptor::transaction(Timestamp::saturating(*ts)),
                Named::Advisory(name) => LockDescriptor::advisory(name),
            }
        }
    }

    /// Short strings of few different bytes, so that two of them often differ only in where one part ends.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0, 1, b't', 0xff]), 0..5)
    }

    fn named() -> impl Strategy<Value = Named> {
        let table = prop::sample::select(vec!["t", "tt"]);
        prop_oneof![
            (table.clone(), bytes()).prop_map(|(table, row)| Named::Row(table, row)),
            (table, bytes(), bytes()).prop_map(|(table, row, column)| Named::Cell(table, row, column)),
            (0..3u64).prop_map(Named::Transaction),
            "[\\x00t]{0,4}".prop_map(Named::Advisory),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn different_things_have_different_descriptors(a in named(), b in named()) {
            prop_assert_eq!(a == b, a.descriptor() == b.descriptor());
        }

        #[test]
        fn moving_a_byte_from_row_to_column_gives_another_descriptor(
            bytes in bytes(), cut in 0..5usize, other in 0..5usize
        ) {
            let cell = |cut: usize| {
                let (row, column) = bytes.split_at(cut.min(bytes.len()));
                Named::Cell("t", row.to_vec(), column.to_vec())
            };
            prop_assert_eq!(cell(cut) == cell(other), cell(cut).descriptor() == cell(other).descriptor());
        }
    }

    #[test]
    fn a_descriptor_is_shown_as_what_it_names() {
        let shown = [
            (Named::Row("t", b"a\0".to_vec()), "row t:a\\x00"),
            (Named::Cell("t", b"a".to_vec(), b"b".to_vec()), "cell t:a/b"),
            (Named::Transaction(258), "transaction 258"),
            (Named::Advisory("nightly job".to_owned()), "'nightly job'"),
        ];
        for (named, text) in shown {
            assert_eq!(named.descriptor().to_string(), text);
        }
    }
}
