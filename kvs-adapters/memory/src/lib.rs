//! A store in the memory of the process: for tests, for trials, and as the plainest reading of the contract.
//!
//! All tables lie in one map behind one lock. A write takes the lock, checks everything it is about to do, and only
//! then does it, so that every operation and every batch is atomic by construction. A scan takes the lock for a page
//! at a time and remembers the last cell it has looked at; between two pages the store belongs to others.

mod page;
mod tables;

use async_trait::async_trait;
use atlas_kvs::{
    AtomicBatch, AtomicScan, Availability, BatchOp, Capabilities, Cell, CellBound, CellTimestamps, CellVersionRange,
    CellVersions, CheckAndSet, Durability, KeyValueService, KvsError, Limits, NativeSnapshot, Ownership,
    PutUnlessExists, Result, ResultStream, RowRange, Scan, TableDescription, TableKind, TableRef, TableSize, Timestamp,
    Value, Version, VersionScan,
};
use bytes::Bytes;
use parking_lot::RwLock;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tables::{Tables, Versions};

const CAPABILITIES: Capabilities = Capabilities {
    store: "memory",
    atomic_batch: true,
    detects_conflicting_values: true,
    persistent: false,
    limits: Limits {
        row_len_max: 64 * 1024,
        column_len_max: 64 * 1024,
        cell_len_max: 128 * 1024,
        value_len_max: 256 * 1024 * 1024,
        empty_names: true,
    },
};

/// A store that is gone with the process.
pub struct MemoryStore {
    // `None` once the store is closed.
    tables: Arc<RwLock<Option<Tables>>>,
    epoch: Arc<AtomicU64>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore { tables: Arc::new(RwLock::new(Some(Tables::default()))), epoch: Arc::default() }
    }

    fn read<T>(&self, read: impl FnOnce(&Tables) -> Result<T>) -> Result<T> {
        read(self.tables.read().as_ref().ok_or(KvsError::Closed)?)
    }

    fn write<T>(&self, write: impl FnOnce(&mut Tables) -> Result<T>) -> Result<T> {
        write(self.tables.write().as_mut().ok_or(KvsError::Closed)?)
    }
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the data: it may be large, and it is not ours to print.
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

#[async_trait]
impl KeyValueService for MemoryStore {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn ownership(&self) -> Ownership {
        Ownership::Exclusive(Arc::clone(&self.epoch))
    }

    async fn create_table(&self, table: &TableRef, kind: TableKind, metadata: Bytes) -> Result<()> {
        self.write(|tables| tables.create(table, kind, metadata))
    }

    async fn drop_table(&self, table: &TableRef) -> Result<()> {
        self.write(|tables| {
            tables.remove(table);
            Ok(())
        })
    }

    async fn truncate_table(&self, table: &TableRef) -> Result<()> {
        self.write(|tables| {
            tables.find_mut(table)?.clear();
            Ok(())
        })
    }

    async fn tables(&self) -> Result<Vec<TableDescription>> {
        self.read(|tables| Ok(tables.descriptions()))
    }

    async fn table(&self, table: &TableRef) -> Result<Option<TableDescription>> {
        self.read(|tables| Ok(tables.description(table)))
    }

    async fn put_table_metadata(&self, table: &TableRef, metadata: Bytes) -> Result<()> {
        self.write(|tables| {
            tables.find_mut(table)?.metadata = metadata;
            Ok(())
        })
    }

    async fn table_size(&self, table: &TableRef) -> Result<TableSize> {
        self.read(|tables| Ok(tables.find(table)?.size()))
    }

    async fn cut_rows(&self, table: &TableRef, parts: usize) -> Result<Vec<Bytes>> {
        self.read(|tables| Ok(tables::cut_rows(tables.versioned(table)?, parts)))
    }

    async fn get(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Option<Value>>> {
        if cells.is_empty() {
            return Ok(Vec::new());
        }
        self.read(|tables| {
            let stored = tables.versioned(table)?;
            Ok(cells.iter().map(|bound| newest(stored.get(&bound.cell)?, bound.read_before)).collect())
        })
    }

    fn scan(&self, table: &TableRef, request: Scan) -> ResultStream<(Cell, Value)> {
        let (table, Scan { rows, columns, read_before, reverse, after, page_size, .. }) = (table.clone(), request);
        page::stream(Arc::clone(&self.tables), after, move |tables, after| {
            Ok(page::read(tables.versioned(&table)?, &rows, after, reverse, page_size, |cell, versions| {
                let value = columns.contains(&cell.column).then(|| newest(versions, read_before)).flatten()?;
                Some((cell.clone(), value))
            }))
        })
    }

    async fn versions(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Vec<Version>>> {
        if cells.is_empty() {
            return Ok(Vec::new());
        }
        self.read(|tables| {
            let stored = tables.versioned(table)?;
            let below = |bound: &CellBound| stored.get(&bound.cell).map(|versions| all(versions, bound.read_before));
            Ok(cells.iter().map(|bound| below(bound).unwrap_or_default()).collect())
        })
    }

    fn scan_versions(&self, table: &TableRef, request: VersionScan) -> ResultStream<CellVersions> {
        let (table, VersionScan { rows, after, read_before, page_size }) = (table.clone(), request);
        page::stream(Arc::clone(&self.tables), after, move |tables, after| {
            Ok(page::read(tables.versioned(&table)?, &rows, after, false, page_size, |cell, versions| {
                let versions = all(versions, read_before);
                (!versions.is_empty()).then(|| CellVersions { cell: cell.clone(), versions })
            }))
        })
    }

    async fn put(&self, puts: Vec<(TableRef, Vec<(Cell, Bytes)>)>, ts: Timestamp) -> Result<()> {
        let put = |table: &TableRef, (cell, value)| BatchOp::Put { table: table.clone(), cell, ts, value };
        let ops = puts.into_iter().flat_map(|(table, cells)| cells.into_iter().map(move |cell| put(&table, cell)));
        self.apply(AtomicBatch::new(ops.collect()), Durability::Synced).await
    }

    async fn put_versions(&self, table: &TableRef, versions: Vec<(Cell, Value)>) -> Result<()> {
        let put = |(cell, Value { ts, bytes })| BatchOp::Put { table: table.clone(), cell, ts, value: bytes };
        self.apply(AtomicBatch::new(versions.into_iter().map(put).collect()), Durability::Synced).await
    }

    async fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> Result<()> {
        cells.iter().try_for_each(|cell| check_lengths(cell, &[]))?;
        if cells.is_empty() {
            return Ok(());
        }
        self.write(|tables| {
            let stored = tables.versioned_mut(table)?;
            for cell in cells {
                stored.entry(cell.clone()).or_default().insert(Timestamp::SENTINEL, Bytes::new());
            }
            Ok(())
        })
    }

    async fn delete_versions(&self, table: &TableRef, versions: &[CellTimestamps]) -> Result<()> {
        if versions.is_empty() {
            return Ok(());
        }
        self.write(|tables| {
            for CellTimestamps { cell, timestamps } in versions {
                tables.retain(table, cell, |ts| !timestamps.contains(&ts))?;
            }
            Ok(())
        })
    }

    async fn delete_version_ranges(&self, table: &TableRef, ranges: &[CellVersionRange]) -> Result<()> {
        if ranges.is_empty() {
            return Ok(());
        }
        self.write(|tables| {
            for CellVersionRange { cell, before, include_sentinel } in ranges {
                let oldest = if *include_sentinel { Timestamp::SENTINEL } else { Timestamp::FIRST };
                tables.retain(table, cell, |ts| ts < oldest || ts >= *before)?;
            }
            Ok(())
        })
    }

    async fn delete_rows(&self, table: &TableRef, rows: &RowRange) -> Result<()> {
        self.write(|tables| {
            tables.versioned_mut(table)?.retain(|cell, _| !rows.contains(&cell.row));
            Ok(())
        })
    }

    async fn get_atomic(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>> {
        if cells.is_empty() {
            return Ok(Vec::new());
        }
        self.read(|tables| {
            let stored = tables.atomic(table)?;
            Ok(cells.iter().map(|cell| stored.get(cell).cloned()).collect())
        })
    }

    fn scan_atomic(&self, table: &TableRef, request: AtomicScan) -> ResultStream<(Cell, Bytes)> {
        let (table, AtomicScan { rows, reverse, after, page_size }) = (table.clone(), request);
        page::stream(Arc::clone(&self.tables), after, move |tables, after| {
            let item = |cell: &Cell, value: &Bytes| Some((cell.clone(), value.clone()));
            Ok(page::read(tables.atomic(&table)?, &rows, after, reverse, page_size, item))
        })
    }

    async fn put_unless_exists(&self, table: &TableRef, cell: &Cell, value: Bytes) -> Result<PutUnlessExists> {
        Ok(match self.check_and_set(table, cell, None, Some(value)).await? {
            CheckAndSet::Applied => PutUnlessExists::Written,
            CheckAndSet::Mismatch(standing) => {
                PutUnlessExists::Exists(standing.expect("only a value can differ from the expected absence"))
            }
        })
    }

    async fn check_and_set(
        &self,
        table: &TableRef,
        cell: &Cell,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> Result<CheckAndSet> {
        new.iter().try_for_each(|value| check_lengths(cell, value))?;
        self.write(|tables| {
            let stored = tables.atomic_mut(table)?;
            let standing = stored.get(cell);
            if standing != expected.as_ref() {
                return Ok(CheckAndSet::Mismatch(standing.cloned()));
            }
            match new {
                Some(value) => stored.insert(cell.clone(), value),
                None => stored.remove(cell),
            };
            Ok(CheckAndSet::Applied)
        })
    }

    /// Both durabilities are the same here: nothing survives the process.
    async fn apply(&self, batch: AtomicBatch, _durability: Durability) -> Result<()> {
        if batch.ops.is_empty() && batch.guard.is_none() {
            return Ok(());
        }
        for op in batch.ops.iter() {
            match op {
                BatchOp::Put { cell, value, .. } | BatchOp::Set { cell, value, .. } => check_lengths(cell, value)?,
                BatchOp::Remove { cell, .. } => check_lengths(cell, &Bytes::new())?,
            }
        }
        self.write(|tables| {
            tables.check(&batch)?;
            batch.ops.iter().try_for_each(|op| tables.write(op))
        })
    }

    async fn availability(&self) -> Availability {
        match *self.tables.read() {
            Some(_) => Availability::All,
            None => Availability::NoQuorum(KvsError::Closed.to_string()),
        }
    }

    fn native_snapshot(&self) -> Option<&dyn NativeSnapshot> {
        None
    }

    /// Does nothing: there is no log that could hold more than the store.
    async fn reopen(&self) -> Result<()> {
        self.read(|_| Ok(()))
    }

    async fn close(&self) -> Result<()> {
        self.tables.write().take().map(drop).ok_or(KvsError::Closed)
    }
}

fn newest(versions: &Versions, read_before: Timestamp) -> Option<Value> {
    let (&ts, bytes) = versions.range(..read_before).next_back()?;
    Some(Value { ts, bytes: bytes.clone() })
}

fn all(versions: &Versions, read_before: Timestamp) -> Vec<Version> {
    let version = |(&ts, bytes): (&Timestamp, &Bytes)| Version {
        ts,
        len: bytes.len() as u64,
        prefix: bytes.slice(..bytes.len().min(Version::PREFIX_LEN)),
    };
    versions.range(..read_before).map(version).collect()
}

fn check_lengths(cell: &Cell, value: &[u8]) -> Result<()> {
    let limits = CAPABILITIES.limits;
    let lengths = [
        ("row", cell.row.len(), limits.row_len_max),
        ("column", cell.column.len(), limits.column_len_max),
        ("value", value.len(), limits.value_len_max),
    ];
    match lengths.into_iter().find(|(_, len, limit)| len > limit) {
        Some((what, len, limit)) => Err(KvsError::TooLarge { what, cell: cell.clone(), len, limit }),
        None => Ok(()),
    }
}
