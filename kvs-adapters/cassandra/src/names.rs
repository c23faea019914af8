//! Names of CQL objects.
//!
//! ```text
//!   namespace "bank"     keyspace "atlas_bank"
//!   table "accounts"     "v_accounts_" and the 32 hexadecimal digits of its id; its index begins with "x_"
//! ```
//!
//! A namespace of small letters, digits and `_` that is short enough stands for itself. Any other gets a readable
//! beginning and a hash behind `__`, which no plain name has. A table has an id that is drawn when it is created, and
//! drawn anew when it is created again: nothing that is left of an old one, in a commit log or in the memory of another
//! process, has to do with the new one. The name gives it a readable beginning only.

use atlas_kvs::{TableKind, TableRef};
use uuid::Uuid;

/// Cassandra takes no longer names of keyspaces and tables.
const NAME_LEN_MAX: usize = 48;
const HASH_LEN: usize = 24;
/// What is left of 48 bytes behind `v_`, `_` and the id.
const READABLE_LEN_MAX: usize = NAME_LEN_MAX - 3 - 32;

/// The keyspace of a namespace.
pub(crate) fn keyspace(namespace: &str) -> String {
    const PREFIX: &str = "atlas_";
    if PREFIX.len() + namespace.len() <= NAME_LEN_MAX && namespace.chars().all(plain) && !namespace.contains("__") {
        return format!("{PREFIX}{namespace}");
    }
    let readable = readable(namespace, NAME_LEN_MAX - PREFIX.len() - 2 - HASH_LEN).replace("__", "_");
    let hash = hex::encode(&blake3::hash(namespace.as_bytes()).as_bytes()[..HASH_LEN / 2]);
    format!("{PREFIX}{readable}__{hash}")
}

/// The CQL table that holds the cells of a table.
pub(crate) fn cells(table: &TableRef, kind: TableKind, id: Uuid) -> String {
    let prefix = match kind {
        TableKind::Versioned => 'v',
        TableKind::Atomic => 'a',
    };
    object(prefix, table, id)
}

/// The CQL table that holds the index of a table.
pub(crate) fn index(table: &TableRef, id: Uuid) -> String {
    object('x', table, id)
}

fn object(prefix: char, table: &TableRef, id: Uuid) -> String {
    format!("{prefix}_{}_{}", readable(table.name(), READABLE_LEN_MAX), id.simple())
}

/// The id of a CQL table that belongs to `id`. Whoever makes the table makes it with this id, so that it is one table
/// however many make it at once.
pub(crate) fn derived_id(id: Uuid, what: &str) -> Uuid {
    let hash = blake3::hash(format!("{what} of {id}").as_bytes());
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has more than 16 bytes");
    uuid::Builder::from_random_bytes(*first).into_uuid()
}

fn plain(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

fn readable(name: &str, len_max: usize) -> String {
    name.chars().map(|c| c.to_ascii_lowercase()).map(|c| if plain(c) { c } else { '_' }).take(len_max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keyspaces_are_short_plain_and_different() {
        let long = "x".repeat(100);
        let mut names: Vec<String> =
            ["a", "A", "a.b", "a_b", "a-b", "", "\"; drop keyspace x", "größe", "a\0b"].map(str::to_owned).to_vec();
        names.extend(["a", "b", "A", ""].map(|last| format!("{long}{last}")));
        names.extend((38..50).map(|len| "y".repeat(len)));
        let made: HashSet<String> = names.iter().map(|name| keyspace(name)).collect();
        assert_eq!(made.len(), names.len());
        for name in &made {
            assert!(name.len() <= NAME_LEN_MAX && name.chars().all(plain), "{name}");
            // What looks like a made name is no plain one, so it becomes another.
            let again = keyspace(name.trim_start_matches("atlas_"));
            assert!(!name.contains("__") || again != *name, "{name}");
        }
        assert_eq!(keyspace("bank"), "atlas_bank");
    }

    #[test]
    fn tables_have_names_that_cassandra_takes() {
        let id = Uuid::from_u128(7);
        let table = TableRef::new(format!("Accounts.{}", "x".repeat(100))).expect("the name is fine");
        let names = [cells(&table, TableKind::Versioned, id), cells(&table, TableKind::Atomic, id), index(&table, id)];
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), 3);
        for name in names {
            assert!(name.len() <= NAME_LEN_MAX && name.chars().all(plain), "{name}");
        }
        assert_ne!(derived_id(id, "cells"), derived_id(id, "index"));
    }
}
