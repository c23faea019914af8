//! How the layer writes the content of a version.
//!
//! ```text
//!   flags (1 byte) │ commit_ts (8 bytes, big-endian; only if inlined) │ content
//!     bit 0: tombstone, the content is empty
//!     bit 1: the commit timestamp is inlined
//! ```
//!
//! The pipeline knows a commit timestamp when it writes the data, so it puts it beside the value and saves readers
//! the look-up. It is a copy of the entry in `_transactions`, never more: whether a commit counts is decided in
//! [`super::entry`], for looked-up and inlined timestamps alike.

use crate::{Error, Result};
use atlas_kvs::{Cell, TableRef, Timestamp, Version};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const TOMBSTONE: u8 = 1;
const INLINED: u8 = 2;

/// What a version says, without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The cell was deleted.
    pub(crate) tombstone: bool,
    /// The writer's commit timestamp, where it was known when the version was written.
    pub(crate) commit_ts: Option<Timestamp>,
    /// Where the content begins.
    len: usize,
}

impl Header {
    /// Bytes in front of the content.
    pub(crate) fn len(self) -> usize {
        self.len
    }
}

/// Longest header in bytes.
pub(crate) const HEADER_LEN_MAX: usize = 9;

/// Writes a version: `None` is a tombstone.
pub(crate) fn encode(content: Option<&[u8]>, commit_ts: Option<Timestamp>) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_LEN_MAX + content.map_or(0, <[u8]>::len));
    let tombstone = if content.is_none() { TOMBSTONE } else { 0 };
    let inlined = if commit_ts.is_some() { INLINED } else { 0 };
    bytes.put_u8(tombstone | inlined);
    if let Some(commit_ts) = commit_ts {
        bytes.put_u64(commit_ts.get());
    }
    bytes.put_slice(content.unwrap_or_default());
    bytes.freeze()
}

/// Writes a value whose commit timestamp is known, as the pipeline leaves it: for restores.
pub(crate) fn committed_version(content: &[u8], commit_ts: Timestamp) -> Bytes {
    encode(Some(content), Some(commit_ts))
}

/// Bytes of a version with a content of `len` bytes, at most.
pub(crate) fn version_len(len: usize) -> usize {
    HEADER_LEN_MAX + len
}

/// Appends a version with room for a commit timestamp that is not known yet; see [`stamp`].
pub(crate) fn push_unstamped(bytes: &mut BytesMut, content: Option<&[u8]>) {
    bytes.put_u8(INLINED | if content.is_none() { TOMBSTONE } else { 0 });
    bytes.put_u64(0);
    bytes.put_slice(content.unwrap_or_default());
}

/// Puts the commit timestamp into a version that [`push_unstamped`] made.
pub(crate) fn stamp(mut unstamped: BytesMut, commit_ts: Timestamp) -> Bytes {
    unstamped[1..HEADER_LEN_MAX].copy_from_slice(&commit_ts.get().to_be_bytes());
    unstamped.freeze()
}

/// Reads the header of a version; a prefix of [`HEADER_LEN_MAX`] bytes is enough.
pub(crate) fn header(bytes: &[u8]) -> Option<Header> {
    let flags = *bytes.first()?;
    if flags & !(TOMBSTONE | INLINED) != 0 {
        return None;
    }
    let (commit_ts, len) = if flags & INLINED != 0 {
        let number = u64::from_be_bytes(bytes.get(1..9)?.try_into().ok()?);
        // Zero stands where a commit timestamp was to be filled in.
        (Some(Timestamp::new(number).filter(|commit_ts| commit_ts.is_data())?), 9)
    } else {
        (None, 1)
    };
    Some(Header { tombstone: flags & TOMBSTONE != 0, commit_ts, len })
}

/// Reads a version: its header and its content.
pub(crate) fn decode(table: &TableRef, cell: &Cell, bytes: &Bytes) -> Result<(Header, Bytes)> {
    let header = header(bytes).ok_or_else(|| damaged(table, cell))?;
    Ok((header, bytes.slice(header.len..)))
}

/// The content of a version with this header.
pub(crate) fn content(header: Header, mut version: Bytes) -> Bytes {
    version.advance(header.len);
    version
}

/// As [`content`], borrowed.
pub(crate) fn content_within(header: Header, version: &[u8]) -> &[u8] {
    &version[header.len..]
}

/// Checks that a version can be read.
///
/// # Errors
/// [`Error::Corrupt`] that names the cell.
pub(crate) fn check_version(table: &TableRef, cell: &Cell, version: &Version) -> Result<()> {
    let readable = version.ts == Timestamp::SENTINEL || header(&version.prefix).is_some();
    if readable { Ok(()) } else { Err(damaged(table, cell)) }
}

/// The error for a version that the layer can't have written.
pub(crate) fn damaged(table: &TableRef, cell: &Cell) -> Error {
    Error::corrupt(format!("table '{table}', cell {cell}"), "the version does not begin with a header of atlas")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(content in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
                                       commit in proptest::option::of(1u64..1 << 60)) {
            let commit_ts = commit.map(Timestamp::saturating);
            let bytes = encode(content.as_deref(), commit_ts);
            let (table, cell) = (TableRef::new("t").expect("a name"), Cell::copy_from("r", "c"));
            let (header, rest) = decode(&table, &cell, &bytes).expect("it was encoded");
            prop_assert_eq!(header.tombstone, content.is_none());
            prop_assert_eq!(header.commit_ts, commit_ts);
            prop_assert_eq!(&rest[..], &content.clone().unwrap_or_default()[..]);
            if let Some(commit_ts) = commit_ts {
                let mut unstamped = BytesMut::new();
                push_unstamped(&mut unstamped, content.as_deref());
                prop_assert_eq!(stamp(unstamped, commit_ts), bytes);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let (table, cell) = (TableRef::new("t").expect("a name"), Cell::copy_from("r", "c"));
            let _ = decode(&table, &cell, &Bytes::from(bytes));
        }
    }
}
