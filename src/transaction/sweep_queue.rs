//! What a commit leaves for sweep: the cells it wrote, so that sweep costs as much as was written.
//!
//! Entries lie in one versioned table, at the writer's start timestamp:
//!
//! ```text
//!   row     shard (2 bytes) │ partition of start_ts (8 bytes)      all numbers big-endian
//!   column  start_ts (8 bytes) │ chunk (4 bytes)
//!   value   version (1) │ postcard list of (table, row, column, tombstone)
//! ```
//!
//! A partition covers [`PARTITION`] start timestamps; a row holds one partition of one shard, so that sweep drops a
//! finished one as a whole instead of leaving a tombstone for each entry. Finished means that every writer in it has an
//! entry in `_transactions` or lies below the mark of `predecessors`: where commits go step by step, the queue is how a
//! later owner finds those that may still commit.
//!
//! The writes of one transaction share a shard. Small transactions that commit in one batch share an entry, which is that of
//! the one that commits last (`merged`). Deleting below a committed version is right whatever other entries of the same cell
//! say, so no order between shards is needed. A chunk holds at most [`CHUNK_CELLS`] cells, which bounds the memory that sweep
//! needs for the entry of a huge transaction; how many entries it reads at a time it bounds itself.

use super::buffer::LocalWriteBuffer;
use crate::rule::Rule;
use crate::schema::{SWEEP_QUEUE_TABLE, internal};
use crate::{Error, Result};
use atlas_kvs::{Cell, RowRange, TableRef, Timestamp};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// How many start timestamps share a partition.
pub const PARTITION: u64 = 1 << 16;
/// How many shards there are.
pub const SHARDS: u16 = 8;
/// How many cells an entry holds at most.
pub const CHUNK_CELLS: usize = 1000;
/// How many bytes of names an entry holds at most, one cell excepted.
const CHUNK_BYTES: usize = 64 << 10;
/// A transaction of at most so many cells shares an entry with others; the names of larger ones are not copied once more.
const SHARED_CELLS: usize = 64;
const VERSION: u8 = 1;

/// One written cell, as sweep needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepWrite {
    /// The table, by name.
    pub table: String,
    /// The cell.
    pub cell: Cell,
    /// The write deletes.
    pub tombstone: bool,
}

/// The table of entries.
pub fn sweep_queue_table() -> TableRef {
    internal(SWEEP_QUEUE_TABLE)
}

/// The shard of a transaction. Neighbours in time go to different shards, so that shards share the load.
pub fn shard_of(start_ts: Timestamp) -> u16 {
    (start_ts.get() % u64::from(SHARDS)) as u16
}

/// The rows of one partition of one shard.
pub fn partition_rows(shard: u16, partition: u64) -> RowRange {
    RowRange::single(row(shard, partition))
}

/// The rows of one shard that hold writers from `from` (inclusive) to `until` (exclusive), and some around them.
pub(crate) fn rows_between(shard: u16, from: Timestamp, until: Timestamp) -> RowRange {
    RowRange::new(row(shard, from.get() / PARTITION), row(shard, until.get() / PARTITION + 1))
}

/// The rows of partitions of one shard, from `first` (inclusive) to `end` (exclusive).
pub(crate) fn partitions(shard: u16, first: u64, end: u64) -> RowRange {
    RowRange::new(row(shard, first), row(shard, end))
}

/// The partition that holds a writer.
pub(crate) fn partition_of(start_ts: Timestamp) -> u64 {
    start_ts.get() / PARTITION
}

/// The place in a shard right before a chunk of a writer, where a scan goes on.
pub(crate) fn before(shard: u16, start_ts: Timestamp, chunk: u32) -> Cell {
    let (ts, chunk) = match chunk {
        0 => (start_ts.previous(), u32::MAX),
        chunk => (start_ts, chunk - 1),
    };
    let mut column = BytesMut::with_capacity(12);
    column.put_u64(ts.get());
    column.put_u32(chunk);
    // In the row of the writer, also where the number before it belongs to the one before.
    Cell { row: row(shard, start_ts.get() / PARTITION), column: column.freeze() }
}

/// Which chunk of its writer an entry is.
///
/// # Errors
/// [`Error::Corrupt`] for a cell that can't be one of an entry.
pub(crate) fn chunk_of(entry: &Cell) -> Result<u32> {
    writer_of(entry)?;
    let digits = entry.column.get(8..12).and_then(|bytes| bytes.try_into().ok());
    digits.map(u32::from_be_bytes).ok_or_else(|| damaged(entry, "the column has no chunk"))
}

fn row(shard: u16, partition: u64) -> Bytes {
    let mut row = BytesMut::with_capacity(10);
    row.put_u16(shard);
    row.put_u64(partition);
    row.freeze()
}

fn cell(start_ts: Timestamp, chunk: u32) -> Cell {
    let mut column = BytesMut::with_capacity(12);
    column.put_u64(start_ts.get());
    column.put_u32(chunk);
    Cell { row: row(shard_of(start_ts), start_ts.get() / PARTITION), column: column.freeze() }
}

/// Cells that one transaction wrote, as many as go into an entry.
#[derive(Debug)]
pub(crate) struct Chunk {
    cells: usize,
    /// An entry with nothing else in it.
    entry: Bytes,
    /// Where the first cell begins in it.
    body: usize,
}

impl Chunk {
    fn of(cells: &[Written<'_>], bytes_of_names: usize) -> Chunk {
        let (entry, body) = encode(cells, bytes_of_names);
        Chunk { cells: cells.len(), entry, body }
    }

    fn body(&self) -> &[u8] {
        &self.entry[self.body..]
    }
}

/// What a transaction wrote.
pub(crate) fn chunks(buffer: &LocalWriteBuffer) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut chunk: Vec<Written<'_>> = Vec::new();
    let mut bytes = 0;
    for (table, writes) in buffer.tables() {
        for (cell, value) in writes.iter() {
            let len = cell.row.len() + cell.column.len() + table.name().len();
            if chunk.len() == CHUNK_CELLS || bytes + len > CHUNK_BYTES && !chunk.is_empty() {
                chunks.push(Chunk::of(&chunk, bytes));
                chunk.clear();
                bytes = 0;
            }
            bytes += len;
            chunk.push(Written { table: table.name(), cell, tombstone: value.is_none() });
        }
    }
    if !chunk.is_empty() {
        chunks.push(Chunk::of(&chunk, bytes));
    }
    chunks
}

/// The entries of a transaction that shares none.
pub(crate) fn entries(start_ts: Timestamp, buffer: &LocalWriteBuffer) -> Vec<(Cell, Bytes)> {
    let chunks = chunks(buffer).into_iter().zip(0..);
    chunks.map(|(chunk, number)| (cell(start_ts, number), chunk.entry)).collect()
}

/// The entries of transactions that commit in one batch, in the order of their commits: of each its start timestamp and what it
/// wrote. Answers at which timestamp each entry is to be put.
///
/// Small ones share the entry of the last of them. Sweep passes an entry when its writer committed below the sweep timestamp, or
/// when a restore that lies below it has undone the writer, and then all who share the entry have committed below: the entry
/// of an earlier one would be passed while what a later one hides may still be read, and nobody would come for that again.
///
/// That the entry lies at the start timestamp of one and not of the others is of no concern: below the sweep timestamp nobody
/// is still running, so when sweep reaches the entry all of the batch is there.
pub(crate) fn merged<'a>(members: impl IntoIterator<Item = (Timestamp, &'a [Chunk])>) -> Vec<(Timestamp, Cell, Bytes)> {
    let mut entries = Vec::new();
    let mut shared = SharedEntry::default();
    for (start_ts, chunks) in members {
        match chunks {
            [chunk] if chunk.cells <= SHARED_CELLS => {
                if !shared.has_room_for(chunk) {
                    entries.extend(std::mem::take(&mut shared).finish());
                }
                shared.add(start_ts, chunk);
            }
            chunks => {
                let own = chunks.iter().zip(0..);
                entries.extend(own.map(|(chunk, number)| (start_ts, cell(start_ts, number), chunk.entry.clone())));
            }
        }
    }
    entries.extend(shared.finish());
    entries
}

/// An entry that is being put together.
#[derive(Default)]
struct SharedEntry<'a> {
    chunks: Vec<&'a Chunk>,
    last: Option<Timestamp>,
    cells: usize,
    bytes: usize,
}

impl<'a> SharedEntry<'a> {
    fn has_room_for(&self, chunk: &Chunk) -> bool {
        self.cells + chunk.cells <= CHUNK_CELLS && self.bytes + chunk.entry.len() <= CHUNK_BYTES
    }

    fn add(&mut self, start_ts: Timestamp, chunk: &'a Chunk) {
        self.cells += chunk.cells;
        self.bytes += chunk.entry.len();
        self.chunks.push(chunk);
        if self.last.is_none() || Rule::ShareTheLastEntry.is_kept() {
            self.last = Some(start_ts);
        }
    }

    fn finish(self) -> Option<(Timestamp, Cell, Bytes)> {
        let last = self.last?;
        let entry = match &self.chunks[..] {
            [alone] => alone.entry.clone(),
            chunks => {
                let mut entry = Vec::with_capacity(8 + self.bytes);
                entry.push(VERSION);
                push_len(&mut entry, self.cells);
                for chunk in chunks {
                    entry.extend_from_slice(chunk.body());
                }
                entry.into()
            }
        };
        Some((last, cell(last, 0), entry))
    }
}

/// As [`SweepWrite`], borrowed.
struct Written<'a> {
    table: &'a str,
    cell: &'a Cell,
    tombstone: bool,
}

/// The entry of these writes, whose names have so many bytes together. What postcard makes of a list of [`SweepWrite`],
/// without its way through a serializer: every written cell comes by here. Answers also where the first cell begins.
fn encode(chunk: &[Written<'_>], bytes_of_names: usize) -> (Bytes, usize) {
    // Lengths are seldom above a byte.
    let mut entry = Vec::with_capacity(8 + bytes_of_names + chunk.len() * 4);
    entry.push(VERSION);
    push_len(&mut entry, chunk.len());
    let body = entry.len();
    for Written { table, cell, tombstone } in chunk {
        for name in [table.as_bytes(), &cell.row, &cell.column] {
            push_len(&mut entry, name.len());
            entry.extend_from_slice(name);
        }
        entry.push(u8::from(*tombstone));
    }
    (entry.into(), body)
}

/// Seven bits in a byte, the lowest first; all bytes but the last have the highest bit set.
fn push_len(entry: &mut Vec<u8>, mut len: usize) {
    while len >= 0x80 {
        entry.push(len as u8 | 0x80);
        len >>= 7;
    }
    entry.push(len as u8);
}

/// The start timestamp of the writer an entry belongs to.
///
/// # Errors
/// [`Error::Corrupt`] for a cell that can't be one of an entry.
pub fn writer_of(entry: &Cell) -> Result<Timestamp> {
    entry
        .column
        .get(..8)
        .and_then(|bytes| bytes.try_into().ok())
        .and_then(|bytes| Timestamp::new(u64::from_be_bytes(bytes)))
        .filter(|_| entry.column.len() == 12)
        .ok_or_else(|| damaged(entry, "the column is no start timestamp and chunk"))
}

/// Reads an entry: the writer's start timestamp and what it wrote.
///
/// # Errors
/// [`Error::Corrupt`] for bytes that can't be an entry.
pub fn decode(entry: &Cell, value: &[u8]) -> Result<(Timestamp, Vec<SweepWrite>)> {
    let start_ts = writer_of(entry)?;
    match value.split_first() {
        Some((&VERSION, body)) => {
            let writes = postcard::from_bytes(body).map_err(|error| damaged(entry, &error.to_string()))?;
            Ok((start_ts, writes))
        }
        _ => Err(damaged(entry, "the entry has an unknown version")),
    }
}

fn damaged(entry: &Cell, reason: &str) -> Error {
    Error::corrupt(format!("table {SWEEP_QUEUE_TABLE}, cell {entry}"), reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_huge_transaction_is_cut_into_chunks_and_nothing_is_lost() {
        let table = TableRef::new("t").expect("a name");
        let mut buffer = LocalWriteBuffer::default();
        for number in 0..2500u32 {
            let value = (number % 2 == 0).then(|| Bytes::from_static(b"x"));
            buffer.put(&table, Cell::copy_from(number.to_be_bytes(), "c"), value);
        }
        let start_ts = Timestamp::saturating(PARTITION + 3);
        let entries = entries(start_ts, &buffer);
        assert_eq!(entries.len(), 3);
        let mut seen = Vec::new();
        for (cell, value) in &entries {
            let (ts, writes) = decode(cell, value).expect("it was written");
            assert_eq!(ts, start_ts);
            assert!(partition_rows(3, 1).contains(&cell.row));
            seen.extend(writes);
        }
        assert_eq!(seen.len(), 2500);
        assert!(seen.iter().enumerate().all(|(number, write)| write.tombstone == (number % 2 == 1)));
    }

    /// What a transaction that started at `start_ts` wrote: so many cells, named after it.
    fn written(start_ts: u64, cells: u32) -> (Timestamp, Vec<Chunk>) {
        let table = TableRef::new("t").expect("a name");
        let mut buffer = LocalWriteBuffer::default();
        for number in 0..cells {
            buffer.put(&table, Cell::copy_from(format!("{start_ts}"), number.to_be_bytes()), None);
        }
        (Timestamp::saturating(start_ts), chunks(&buffer))
    }

    /// Who has an entry, and how many cells of whom are in it.
    fn shares(members: &[(Timestamp, Vec<Chunk>)]) -> Vec<(u64, Vec<(String, usize)>)> {
        let entries = merged(members.iter().map(|(start_ts, chunks)| (*start_ts, &chunks[..])));
        let of_entry = |(ts, place, value): (Timestamp, Cell, Bytes)| {
            let (writer, writes) = decode(&place, &value).expect("it was written");
            assert_eq!(writer, ts, "put at the timestamp of its writer");
            let mut shares: Vec<(String, usize)> = Vec::new();
            for write in writes {
                let name = String::from_utf8(write.cell.row.to_vec()).expect("a number");
                match shares.last_mut().filter(|(of, _)| *of == name) {
                    Some((_, count)) => *count += 1,
                    None => shares.push((name, 1)),
                }
            }
            (ts.get(), shares)
        };
        entries.into_iter().map(of_entry).collect()
    }

    fn share(of: u64, cells: usize) -> (String, usize) {
        (of.to_string(), cells)
    }

    #[test]
    fn small_transactions_share_the_entry_of_the_last_to_commit() {
        let members = [written(20, 2), written(9, 1), written(15, 3)];
        assert_eq!(shares(&members), [(15, vec![share(20, 2), share(9, 1), share(15, 3)])]);
        assert_eq!(shares(&members[..1]), [(20, vec![share(20, 2)])]);
        assert_eq!(shares(&[]), []);
        assert_eq!(shares(&[(Timestamp::saturating(7), Vec::new())]), [], "it wrote nothing");
    }

    #[test]
    fn large_transactions_keep_entries_of_their_own() {
        let members = [written(20, 2), written(9, 2500), written(15, 65), written(16, 64)];
        let expected = [
            (9, vec![share(9, 1000)]),
            (9, vec![share(9, 1000)]),
            (9, vec![share(9, 500)]),
            (15, vec![share(15, 65)]),
            (16, vec![share(20, 2), share(16, 64)]),
        ];
        assert_eq!(shares(&members), expected);
    }

    #[test]
    fn a_shared_entry_is_full_some_time() {
        let members: Vec<_> = (1..=40).map(|start_ts| written(start_ts, 60)).collect();
        let shares = shares(&members);
        assert_eq!(shares.iter().map(|(last, _)| *last).collect::<Vec<_>>(), [16, 32, 40]);
        assert_eq!(shares.iter().flat_map(|(_, shares)| shares).count(), 40);
    }

    proptest! {
        #[test]
        fn an_entry_is_what_postcard_makes_of_it(
            names in proptest::collection::vec((0usize..300, 0usize..3, any::<u8>(), any::<bool>()), 0..200),
        ) {
            let writes: Vec<SweepWrite> = names
                .iter()
                .map(|&(row, column, byte, tombstone)| SweepWrite {
                    table: "t".repeat(row % 200 + 1),
                    cell: Cell::copy_from(vec![byte; row], vec![byte; column]),
                    tombstone,
                })
                .collect();
            let chunk: Vec<_> = writes
                .iter()
                .map(|SweepWrite { table, cell, tombstone }| Written { table, cell, tombstone: *tombstone })
                .collect();
            let expected = postcard::to_extend(&writes, vec![VERSION]).expect("plain data");
            prop_assert_eq!(&encode(&chunk, 0).0[..], &expected[..]);
        }

        #[test]
        fn any_bytes_are_an_entry_or_damage(column in proptest::collection::vec(any::<u8>(), 0..14),
                                            value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode(&Cell::copy_from("r", column), &value);
        }
    }
}
