//! The versions of a transaction before its commit timestamp is known.
//!
//! They lie one after the other in one buffer. Memory that one thread takes and another gives back is dear, and a large
//! transaction would give the leader one piece for each cell:
//!
//! ```text
//!   header of a │ a │ header of b │ b │ …        the headers have room for the timestamp
//!   └─ stamped and split off by the leader ─┘
//! ```

use super::buffer::LocalWriteBuffer;
use super::value;
use atlas_kvs::{BatchOp, Cell, TableRef, Timestamp};
use bytes::BytesMut;

/// Versions of cells, ready but for the commit timestamp.
#[derive(Debug)]
pub(crate) struct Unstamped {
    /// In the order of the versions, with the length of each.
    cells: Vec<(TableRef, Cell, usize)>,
    versions: BytesMut,
}

impl Unstamped {
    /// The writes of a transaction.
    pub(crate) fn of(buffer: &LocalWriteBuffer) -> Unstamped {
        let all = || buffer.tables().iter().flat_map(|(table, writes)| writes.iter().map(move |write| (table, write)));
        let (mut count, mut len) = (0, 0);
        for (_, (_, value)) in all() {
            count += 1;
            len += value::version_len(value.as_ref().map_or(0, |value| value.len()));
        }
        let (mut cells, mut versions) = (Vec::with_capacity(count), BytesMut::with_capacity(len));
        for (table, (cell, value)) in all() {
            let before = versions.len();
            value::push_unstamped(&mut versions, value.as_deref());
            cells.push((table.clone(), cell.clone(), versions.len() - before));
        }
        Unstamped { cells, versions }
    }

    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    /// Takes the versions out, stamped, as writes at `start_ts`.
    pub(crate) fn stamp(&mut self, start_ts: Timestamp, commit_ts: Timestamp) -> impl Iterator<Item = BatchOp> {
        let versions = &mut self.versions;
        self.cells.drain(..).map(move |(table, cell, len)| {
            let value = value::stamp(versions.split_to(len), commit_ts);
            BatchOp::Put { table, cell, ts: start_ts, value }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn versions_are_those_of_the_writes_with_their_commit_timestamp() {
        let table = |name: &str| TableRef::new(name).expect("a name");
        let (start_ts, commit_ts) = (Timestamp::saturating(7), Timestamp::saturating(9));
        let writes = [
            (table("t"), Cell::copy_from("a", "c"), Some(Bytes::from_static(b"one"))),
            (table("t"), Cell::copy_from("b", "c"), None),
            (table("t"), Cell::copy_from("c", "c"), Some(Bytes::new())),
            (table("u"), Cell::copy_from("a", "c"), Some(Bytes::from_static(b"two"))),
        ];
        let mut buffer = LocalWriteBuffer::default();
        for (table, cell, value) in writes.clone() {
            buffer.put(&table, cell, value);
        }
        let mut unstamped = Unstamped::of(&buffer);
        assert_eq!(unstamped.len(), writes.len());
        let expected = writes.map(|(table, cell, value)| {
            let value = value::encode(value.as_deref(), Some(commit_ts));
            BatchOp::Put { table, cell, ts: start_ts, value }
        });
        assert_eq!(unstamped.stamp(start_ts, commit_ts).collect::<Vec<_>>(), expected);
    }
}
