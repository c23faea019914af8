//! The definition of a typed table.

use atlas_kvs::TableRef;
use foundationdb_tuple::{TuplePack, TupleUnpack};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;

/// What can be a key: tuples of up to twelve numbers, strings, byte vectors, booleans, options and tuples, and each of
/// these by itself.
///
/// Byte strings are `Vec<u8>`. Floating-point numbers sort by their total order, and `None` before every `Some`.
pub trait TableKey: TuplePack + for<'de> TupleUnpack<'de> + Send + Sync + 'static {}

impl<K: TuplePack + for<'de> TupleUnpack<'de> + Send + Sync + 'static> TableKey for K {}

/// What can be a value: everything serde can write and read without being told the type.
pub trait TableValue: Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<V: Serialize + DeserializeOwned + Send + Sync + 'static> TableValue for V {}

/// Name and types of a table; usually a constant.
///
/// ```
/// use atlas::typed::TableDef;
///
/// const BALANCES: TableDef<(String, u64), i64> = TableDef::new("balances");
/// const EVENTS: TableDef<u64, String> = TableDef::new("events").hashed();
/// ```
pub struct TableDef<K, V> {
    // Invariant: a name that `TableRef::new` accepts, and none of the layer's own.
    name: &'static str,
    hashed: bool,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> TableDef<K, V> {
    /// A table whose rows are in the order of its keys.
    ///
    /// # Panics
    /// If `name` can't name a table of an application: 1 to 200 ASCII letters, digits, `_`, `.` and `-`, the first
    /// one no `_`. For a constant that is an error of compilation:
    ///
    /// ```compile_fail
    /// const WRONG: atlas::typed::TableDef<u64, u64> = atlas::typed::TableDef::new("no spaces");
    /// ```
    pub const fn new(name: &'static str) -> TableDef<K, V> {
        assert!(may_name_a_table(name), "a table name has 1 to 200 of A-Z a-z 0-9 _ . - and does not begin with _");
        TableDef { name, hashed: false, types: PhantomData }
    }

    /// The same table with the first 8 bytes of the blake3 hash of the key in front of each row, which spreads
    /// neighbours over the whole table. It can't be scanned by prefix or range any more; a scan of everything is
    /// allowed and comes in the order of the hashes.
    ///
    /// Whether a table is hashed is part of its format: it can't be changed while there is data in it.
    pub const fn hashed(self) -> TableDef<K, V> {
        TableDef { name: self.name, hashed: true, types: PhantomData }
    }

    /// True if rows begin with a hash.
    pub const fn is_hashed(&self) -> bool {
        self.hashed
    }

    /// The table, as it is created and named elsewhere.
    pub fn table(&self) -> TableRef {
        TableRef::new(self.name).expect("the name was checked when the definition was made")
    }
}

impl<K, V> Clone for TableDef<K, V> {
    fn clone(&self) -> TableDef<K, V> {
        *self
    }
}

impl<K, V> Copy for TableDef<K, V> {}

impl<K, V> fmt::Debug for TableDef<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableDef").field("name", &self.name).field("hashed", &self.hashed).finish()
    }
}

/// As `TableRef::new` decides it, for constants.
const fn may_name_a_table(name: &str) -> bool {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > TableRef::MAX_LEN || bytes[0] == b'_' || matches!(bytes, b"." | b"..") {
        return false;
    }
    let mut index = 0;
    while index < bytes.len() {
        if !(bytes[index].is_ascii_alphanumeric() || matches!(bytes[index], b'_' | b'.' | b'-')) {
            return false;
        }
        index += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_name_is_accepted_exactly_if_it_names_a_table_of_an_application(name in "[a-z_.\\- /é]{0,4}|[a-z]{195,205}") {
            let accepted = TableRef::new(&name).is_ok_and(|table| !table.is_internal());
            prop_assert_eq!(may_name_a_table(&name), accepted);
        }
    }
}
