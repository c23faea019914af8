//! Names of SQL objects: what belongs to whom can be told from the name alone, without asking the server.
//!
//! ```text
//!   namespace "bank"          schema "atlas_bank"
//!   table "accounts"          versioned "v_accounts", its key "kv_accounts"; atomic "a_accounts", its key "ka_accounts"
//!   table "Accounts.by-name"  "v_accounts_by_name-" and 32 hexadecimal digits of a hash of the whole name
//! ```
//!
//! A name of small letters, digits and `_` that is short enough stands for itself. Any other gets a readable beginning
//! and a hash, and a `-` between them, which no plain name has: so no two names meet, and PostgreSQL's 63 bytes are
//! enough for all. The kind is in the name so that a statement for the wrong kind finds no table.

use atlas_kvs::{TableKind, TableRef};

/// PostgreSQL cuts longer names off without an error.
const NAME_LEN_MAX: usize = 63;
/// Room for the `k` in front of a table's name that makes the name of its key.
const TABLE_LEN_MAX: usize = NAME_LEN_MAX - 1;
const HASH_LEN: usize = 32;

/// The names of one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    schema: String,
}

impl Names {
    pub(crate) fn new(namespace: &str) -> Names {
        Names { schema: name("atlas_", namespace, NAME_LEN_MAX) }
    }

    /// The schema, not quoted.
    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    /// Something in the schema, quoted for SQL.
    pub(crate) fn quoted(&self, name: &str) -> String {
        // No name made here has a quote in it.
        format!("\"{}\".\"{name}\"", self.schema)
    }

    /// The SQL table of a table, quoted for SQL.
    pub(crate) fn table(&self, table: &TableRef, kind: TableKind) -> String {
        self.quoted(&sql_name(table, kind))
    }

    /// What processes lock before they change the schema: the same number for all who mean the same one.
    pub(crate) fn lock(&self) -> i64 {
        let hash = blake3::hash(format!("atlas schema {}", self.schema).as_bytes());
        let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has more than eight bytes");
        i64::from_be_bytes(*first)
    }
}

/// The name of the SQL table of a table, not quoted.
pub(crate) fn sql_name(table: &TableRef, kind: TableKind) -> String {
    let prefix = match kind {
        TableKind::Versioned => "v_",
        TableKind::Atomic => "a_",
    };
    name(prefix, table.name(), TABLE_LEN_MAX)
}

fn name(prefix: &str, name: &str, len_max: usize) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if prefix.len() + name.len() <= len_max && name.chars().all(plain) {
        return format!("{prefix}{name}");
    }
    let readable = name.chars().map(|c| c.to_ascii_lowercase()).map(|c| if plain(c) { c } else { '_' });
    let readable: String = readable.take(len_max - prefix.len() - 1 - HASH_LEN).collect();
    let hash = hex::encode(&blake3::hash(name.as_bytes()).as_bytes()[..HASH_LEN / 2]);
    format!("{prefix}{readable}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_short_quotable_and_different() {
        let long = "x".repeat(TableRef::MAX_LEN - 1);
        let mut names: Vec<String> = ["a", "A", "a.b", "a_b", "a-b", "pkey", "", "\"; drop schema x", "größe", "a\0b"]
            .map(str::to_owned)
            .to_vec();
        names.extend(["a", "b", "A", ""].map(|last| format!("{long}{last}")));
        names.extend((50..63).map(|len| "y".repeat(len)));
        let made: HashSet<String> = names.iter().map(|name| super::name("v_", name, TABLE_LEN_MAX)).collect();
        assert_eq!(made.len(), names.len());
        for name in &made {
            assert!(name.len() <= TABLE_LEN_MAX, "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'), "{name}");
        }
        // What looks like a made name is no plain one, so it becomes another.
        for name in &made {
            let again = super::name("v_", name.trim_start_matches("v_"), TABLE_LEN_MAX);
            assert!(!name.contains('-') || again != *name, "{name}");
        }
    }

    #[test]
    fn plain_names_stay_readable() {
        assert_eq!(Names::new("bank").schema(), "atlas_bank");
        let table = TableRef::new("accounts").expect("the name is fine");
        assert_eq!(Names::new("bank").table(&table, TableKind::Atomic), "\"atlas_bank\".\"a_accounts\"");
    }
}
