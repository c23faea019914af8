//! Snapshots of stores that live on servers: a store hands over what it holds as streams, and takes it back.
//!
//! The data come as the store keeps them: every version of every cell, the values of atomic tables, the tables with
//! their metadata. They are cut into *parts*, which are the store's own business: nobody else looks into one, and only
//! a store of the same adapter takes it back.
//!
//! ```text
//!   begin ── parts: catalog, t1, t2, t3 … ──┬── read t1 ──┐
//!     one moment, and all parts show it     ├── read t2 ──┼── finish
//!                                           └── read … ───┘
//!   empty store ── load catalog ── load t1, t2, t3 … in any order, several at once ── finish_load
//! ```

use crate::{Result, ResultStream, TableRef};
use async_trait::async_trait;
use bytes::Bytes;

/// A store that gives and takes snapshots as streams.
#[async_trait]
pub trait StreamSnapshot: Send + Sync {
    /// Bytes that a snapshot taken now would hold, estimated without reading them.
    async fn estimated_bytes(&self) -> Result<u64>;

    /// Begins a snapshot: every part of it shows the store as it is at one moment, which lies after the call. It holds
    /// every write that returned before the call; of writes during the call it may hold any. Writers go on.
    ///
    /// Dropping what is returned ends the snapshot.
    async fn begin(&self) -> Result<Box<dyn OpenSnapshot>>;

    /// Takes a part back: adds what it holds to this store, durably. The first part of a snapshot is loaded first and
    /// alone; the others follow in any order, several at once. Tables that are there stay, with what is in them; of
    /// those that are created again, the part's metadata are kept.
    ///
    /// `content` yields exactly the bytes that [`OpenSnapshot::read`] gave, cut at other places perhaps.
    ///
    /// # Errors
    /// `Corrupt` for bytes that no snapshot of this adapter holds, and the error of `content`, should it end with one.
    /// After an error, or if the future is dropped, any of the part may be there: the store must be emptied before it
    /// is loaded again.
    async fn load(&self, part: &str, content: ResultStream<Bytes>) -> Result<()>;

    /// Called once when every part was loaded: what a store does best when it has everything. May be repeated.
    async fn finish_load(&self) -> Result<()>;
}

/// A store whose data lie on several nodes, each of which is copied by itself, with the cluster's own tools.
#[async_trait]
pub trait NodeStore: Send + Sync {
    /// The addresses of all nodes, those included that are down.
    async fn nodes(&self) -> Result<Vec<String>>;

    /// What the cluster's own tools call the parts that a table consists of, in an order that is the same for all
    /// tables of a kind. Another table of the same name has parts of other names.
    ///
    /// # Errors
    /// `NoSuchTable`.
    async fn parts_of(&self, table: &TableRef) -> Result<Vec<String>>;
}

/// A snapshot that can be read.
#[async_trait]
pub trait OpenSnapshot: Send + Sync {
    /// What it consists of, at least one part. The first is loaded before the others.
    fn parts(&self) -> &[SnapshotPart];

    /// The content of the part at this place of [`parts`](Self::parts). Several may be read at once; the memory taken by
    /// each is bounded, whatever the part holds. The stream borrows nothing, and ends with an error if the snapshot is
    /// finished or dropped meanwhile.
    fn read(&self, part: usize) -> ResultStream<Bytes>;

    /// Ends the snapshot and gives back what it held in the store.
    ///
    /// # Errors
    /// Any error means that what was read may not belong to one moment: it must not be used.
    async fn finish(self: Box<Self>) -> Result<()>;
}

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPart {
    /// Its name, fit for a file: see [`is_part_name`]. No two parts of a snapshot have the same.
    pub name: String,
    /// Bytes that reading it will yield, estimated.
    pub estimated_bytes: u64,
}

/// Longest name of a part, in bytes.
pub const PART_NAME_LEN_MAX: usize = 150;

/// Whether a part may have this name: small letters, digits, `-`, `_` and `.`, not beginning with a `.`. There are no
/// capitals, because some file systems take them for small letters.
pub fn is_part_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= PART_NAME_LEN_MAX && !name.starts_with('.') && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_are_plain_file_names_everywhere() {
        let long = "x".repeat(PART_NAME_LEN_MAX + 1);
        for bad in ["", ".", "..", ".x", "a/b", "a\\b", "A", "ä", "a b", "a\0", &long] {
            assert!(!is_part_name(bad), "{bad:?}");
        }
        for good in ["catalog", "000017-t_3.copy", "_transactions", "-", &long[..PART_NAME_LEN_MAX]] {
            assert!(is_part_name(good), "{good:?}");
        }
    }
}
