//! One open database: its catalog of tables, and everything that is written into it.
//!
//! Every method here may block; callers are on a blocking thread.
//!
//! The catalog lies in RocksDB's default column family. A table exists exactly when it has a record there, and the
//! record names the column family that holds its data by a number that is never used twice:
//!
//! ```text
//!   create     make "t.users~7" ──── record users -> 7          crash between: a family without a record
//!   truncate   make "t.users~8" ──── record users -> 8 ──── drop "t.users~7"
//!   drop       ───────────────────── delete record ───────── drop "t.users~8"
//! ```
//!
//! So each change takes effect with one synced record, and a crash leaves at worst a family that no record names. It
//! was never reachable or is no longer, so the next opener drops it. Adopting it instead would bring dropped data back.

use crate::config::{RocksConfig, RocksOptions};
use crate::errors::{io_failed, open_failed, unavailable};
use crate::keys;
use crate::misses::Misses;
use crate::owner::{OwnerLock, make_private_dir};
use atlas_kvs::{
    AtomicBatch, BatchGuard, BatchOp, Cell, CellTimestamps, CellVersionRange, CheckAndSet, KvsError, PutUnlessExists,
    Result, RowRange, TableDescription, TableKind, TableRef, TableSize, Timestamp, Value,
};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard, RwLock};
use rocksdb::{
    BoundColumnFamily, ColumnFamilyDescriptor, DBRawIteratorWithThreadMode, DBWithThreadMode, ErrorKind,
    IngestExternalFileOptions, MultiThreaded, ReadOptions, WriteBatch, WriteOptions,
};
use std::collections::BTreeMap;
use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

pub(crate) type Rocks = DBWithThreadMode<MultiThreaded>;
pub(crate) type RawIterator<'a> = DBRawIteratorWithThreadMode<'a, Rocks>;
pub(crate) type Family<'a> = Arc<BoundColumnFamily<'a>>;

/// Deletions in one batch: enough that a sync is shared by many, few enough that others get their turn.
const DELETES_PER_BATCH: usize = 10_000;
/// RocksDB counts the bytes of a batch in 32 bits; ours stay far below.
const BATCH_BYTES_MAX: usize = 1 << 30;
const STRIPES: usize = 256;

/// An open database.
pub(crate) struct Db {
    pub(crate) rocks: Rocks,
    pub(crate) dir: PathBuf,
    /// Which opening of the store this is: scans of an earlier one are over.
    pub(crate) epoch: u64,
    pub(crate) reads: ReadCounters,
    pub(crate) misses: Misses,
    sync: bool,
    table_options: rocksdb::Options,
    /// Read-locked from the look-up of a table to the end of a write into it, because RocksDB stops for good when a
    /// batch names a column family that was dropped meanwhile.
    pub(crate) tables: RwLock<Catalog>,
    /// Why no more is written: set by the first write that failed.
    broken: OnceLock<String>,
    /// A compare-and-set holds the lock of its cell's hash from the read to the synced write.
    stripes: Vec<Mutex<()>>,
    /// Last, so that RocksDB is closed before anyone else may open it.
    pub(crate) owner: Arc<OwnerLock>,
}

/// Point reads by where they were answered.
#[derive(Debug, Default)]
pub(crate) struct ReadCounters {
    pub(crate) without_io: AtomicU64,
    pub(crate) with_io: AtomicU64,
}

/// The tables as the records in the default column family tell them.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) tables: BTreeMap<TableRef, TableRecord>,
    /// Above every number of a column family that was ever seen.
    next_family: u64,
}

/// What the catalog knows about a table.
#[derive(Clone, Debug)]
pub(crate) struct TableRecord {
    pub(crate) kind: TableKind,
    pub(crate) metadata: Bytes,
    pub(crate) family: u64,
}

impl Db {
    /// Opens or creates the database under `data_dir/db`.
    pub(crate) fn open(config: &RocksConfig, owner: Arc<OwnerLock>, epoch: u64) -> Result<Db> {
        let dir = config.data_dir.join("db");
        make_private_dir(&dir)?;
        let options = RocksOptions::new(config);
        let families = existing_families(&options, &dir)?;
        let descriptors = families.iter().map(|name| {
            let options = if name == CATALOG { &options.catalog } else { &options.table };
            ColumnFamilyDescriptor::new(name, options.clone())
        });
        let rocks = Rocks::open_cf_descriptors(&options.database, &dir, descriptors)
            .map_err(|error| open_failed(&dir, error))?;
        let catalog = Catalog::read(&rocks, &dir, &families)?;
        Ok(Db {
            rocks,
            dir,
            epoch,
            reads: ReadCounters::default(),
            misses: Misses::default(),
            sync: config.sync,
            table_options: options.table,
            tables: RwLock::new(catalog),
            broken: OnceLock::new(),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            owner,
        })
    }

    // ---- tables

    /// The column family of a table of this kind.
    pub(crate) fn family(&self, catalog: &Catalog, table: &TableRef, kind: TableKind) -> Result<Family<'_>> {
        let record = catalog.get(table)?;
        if record.kind != kind {
            return Err(wrong_kind(table, record.kind));
        }
        self.family_of(table, record)
    }

    fn family_of(&self, table: &TableRef, record: &TableRecord) -> Result<Family<'_>> {
        let name = family_name(table, record.family);
        self.rocks.cf_handle(&name).ok_or_else(|| lost_family(&self.dir, &name))
    }

    pub(crate) fn create_table(&self, table: &TableRef, kind: TableKind, metadata: Bytes) -> Result<()> {
        let mut catalog = self.tables.write();
        if let Some(record) = catalog.tables.get(table) {
            return if record.kind == kind { Ok(()) } else { Err(wrong_kind(table, record.kind)) };
        }
        let family = self.create_family(&mut catalog, table)?;
        let record = TableRecord { kind, metadata, family };
        self.write_record(table, Some(&record))?;
        catalog.tables.insert(table.clone(), record);
        Ok(())
    }

    pub(crate) fn drop_table(&self, table: &TableRef) -> Result<()> {
        let mut catalog = self.tables.write();
        let Some(record) = catalog.tables.get(table) else {
            return Ok(());
        };
        let family = record.family;
        self.write_record(table, None)?;
        catalog.tables.remove(table);
        self.drop_family(table, family);
        Ok(())
    }

    pub(crate) fn truncate_table(&self, table: &TableRef) -> Result<()> {
        let mut catalog = self.tables.write();
        let old = catalog.get(table)?.clone();
        let family = self.create_family(&mut catalog, table)?;
        let record = TableRecord { family, ..old.clone() };
        self.write_record(table, Some(&record))?;
        catalog.tables.insert(table.clone(), record);
        self.drop_family(table, old.family);
        Ok(())
    }

    pub(crate) fn put_table_metadata(&self, table: &TableRef, metadata: Bytes) -> Result<()> {
        let mut catalog = self.tables.write();
        let record = TableRecord { metadata, ..catalog.get(table)?.clone() };
        self.write_record(table, Some(&record))?;
        catalog.tables.insert(table.clone(), record);
        Ok(())
    }

    pub(crate) fn table_size(&self, table: &TableRef) -> Result<TableSize> {
        self.size_of(&self.tables.read(), table)
    }

    fn size_of(&self, catalog: &Catalog, table: &TableRef) -> Result<TableSize> {
        let family = self.family_of(table, catalog.get(table)?)?;
        let property = |name: &str| {
            let value = self.rocks.property_int_value_cf(&family, name);
            value.map(Option::unwrap_or_default).map_err(|error| crate::errors::read_failed(table, error))
        };
        Ok(TableSize {
            versions: property("rocksdb.estimate-num-keys")?,
            bytes: property("rocksdb.live-sst-files-size")? + property("rocksdb.cur-size-all-mem-tables")?,
        })
    }

    /// Bytes of table files and of the log that is not yet in them, estimated.
    pub(crate) fn estimated_bytes(&self) -> Result<u64> {
        let catalog = self.tables.read();
        let mut bytes = 0;
        for table in catalog.tables.keys() {
            bytes += self.size_of(&catalog, table)?.bytes;
        }
        Ok(bytes)
    }

    /// Makes a family that no record names yet. Failure leaves the table as it was.
    fn create_family(&self, catalog: &mut Catalog, table: &TableRef) -> Result<u64> {
        self.check_writable()?;
        let family = catalog.next_family;
        catalog.next_family += 1;
        self.rocks.create_cf(family_name(table, family), &self.table_options).map_err(|error| {
            let reason = format!("a column family for table '{table}' could not be made: {error}");
            self.broken.get_or_init(|| reason.clone());
            unavailable(reason, error)
        })?;
        Ok(family)
    }

    /// Drops a family that no record names any more. If it fails, the next opener does it.
    fn drop_family(&self, table: &TableRef, family: u64) {
        if let Err(error) = self.rocks.drop_cf(&family_name(table, family)) {
            tracing::warn!(%table, %error, "the files of a dropped table stay until the store is opened again");
        }
    }

    fn write_record(&self, table: &TableRef, record: Option<&TableRecord>) -> Result<()> {
        let mut batch = WriteBatch::default();
        match record {
            Some(record) => batch.put(record_key(table), record.encode()),
            None => batch.delete(record_key(table)),
        }
        self.write(batch, true)
    }

    // ---- writing

    /// The one place where anything is written. From the first failure on, nothing is: the log may or may not hold
    /// that batch, and a later one must not be acknowledged on top of it.
    fn write(&self, batch: WriteBatch, sync: bool) -> Result<()> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.write_opt(batch, &options).map(drop)
    }

    /// As [`write`](Self::write), without the disk. False if RocksDB would make the writer wait: nothing was written then.
    fn write_at_once(&self, batch: WriteBatch) -> Result<bool> {
        let mut options = WriteOptions::default();
        options.set_no_slowdown(true);
        self.write_opt(batch, &options)
    }

    fn write_opt(&self, batch: WriteBatch, options: &WriteOptions) -> Result<bool> {
        self.check_writable()?;
        if batch.is_empty() {
            return Ok(true);
        }
        if batch.size_in_bytes() > BATCH_BYTES_MAX {
            return Err(KvsError::Backend {
                reason: format!("a batch has {} bytes; the limit is {BATCH_BYTES_MAX}", batch.size_in_bytes()),
                source: None,
            });
        }
        match self.rocks.write_opt(batch, options) {
            Ok(()) => Ok(true),
            // Said before anything was written, and only to who asked not to be slowed down.
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(false),
            Err(error) => {
                self.broken.get_or_init(|| error.to_string());
                Err(KvsError::Indeterminate { reason: error.to_string(), source: Some(Box::new(error)) })
            }
        }
    }

    fn check_writable(&self) -> Result<()> {
        match self.broken.get() {
            None => Ok(()),
            Some(reason) => Err(KvsError::Unavailable {
                reason: format!("a write failed, and no other is accepted until the store is opened again: {reason}"),
                source: None,
            }),
        }
    }

    /// What keeps the database from accepting writes, if anything does.
    pub(crate) fn fault(&self) -> Option<String> {
        if let Some(reason) = self.broken.get() {
            return Some(reason.clone());
        }
        // RocksDB counts failures of flushes and compactions and does not tell which it got over. Where there were
        // any, an empty batch asks whether it accepts writes.
        let failures = self.rocks.property_int_value("rocksdb.background-errors").ok().flatten().unwrap_or(0);
        if failures == 0 {
            return None;
        }
        self.rocks.write(WriteBatch::default()).err().map(|error| error.to_string())
    }

    /// Makes everything durable that was written without waiting for the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.check_writable()?;
        self.rocks.flush_wal(true).map_err(|error| {
            self.broken.get_or_init(|| error.to_string());
            unavailable(format!("the log could not be synced: {error}"), error)
        })
    }

    /// Fails if there is no such table.
    pub(crate) fn check_versioned(&self, table: &TableRef) -> Result<()> {
        self.check_writable()?;
        self.family(&self.tables.read(), table, TableKind::Versioned).map(drop)
    }

    /// How files of tables are written.
    pub(crate) fn table_options(&self) -> rocksdb::Options {
        self.table_options.clone()
    }

    /// Takes a finished file of versions into a table; moves it. What was written before is durable then, too: no crash takes
    /// that back and leaves this.
    pub(crate) fn take_in(&self, table: &TableRef, file: &Path) -> Result<()> {
        let catalog = self.tables.read();
        let family = self.family(&catalog, table, TableKind::Versioned)?;
        self.sync()?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.rocks.ingest_external_file_cf_opts(&family, &options, vec![file]).map_err(|error| {
            self.broken.get_or_init(|| error.to_string());
            KvsError::Indeterminate { reason: error.to_string(), source: Some(Box::new(error)) }
        })
    }

    pub(crate) fn put(&self, puts: &[(TableRef, Vec<(Cell, Bytes)>)], ts: Timestamp) -> Result<()> {
        let catalog = self.tables.read();
        let mut batch = WriteBatch::default();
        let mut key = Vec::new();
        for (table, cells) in puts {
            let family = self.family(&catalog, table, TableKind::Versioned)?;
            for (cell, value) in cells {
                key.clear();
                keys::push_cell(&mut key, cell);
                keys::push_timestamp(&mut key, ts);
                batch.put_cf(&family, &key, value);
            }
        }
        self.write(batch, self.sync)
    }

    pub(crate) fn put_versions(&self, table: &TableRef, versions: &[(Cell, Value)]) -> Result<()> {
        let catalog = self.tables.read();
        let family = self.family(&catalog, table, TableKind::Versioned)?;
        let mut batch = WriteBatch::default();
        for (cell, value) in versions {
            batch.put_cf(&family, keys::of_version(cell, value.ts), &value.bytes);
        }
        self.write(batch, self.sync)
    }

    pub(crate) fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> Result<()> {
        let catalog = self.tables.read();
        let family = self.family(&catalog, table, TableKind::Versioned)?;
        let mut batch = WriteBatch::default();
        for cell in cells {
            batch.put_cf(&family, keys::of_version(cell, Timestamp::SENTINEL), []);
        }
        self.write(batch, self.sync)
    }

    pub(crate) fn delete_versions(&self, table: &TableRef, cells: Vec<CellTimestamps>) -> Result<()> {
        let catalog = self.tables.read();
        let family = self.family(&catalog, table, TableKind::Versioned)?;
        let mut deletes = Deletes::new(self, &family);
        for CellTimestamps { cell, mut timestamps } in cells {
            timestamps.sort_unstable();
            for ts in timestamps {
                deletes.push(&keys::of_version(&cell, ts))?;
            }
        }
        deletes.finish()
    }

    pub(crate) fn delete_version_ranges(&self, table: &TableRef, ranges: &[CellVersionRange]) -> Result<()> {
        let catalog = self.tables.read();
        let family = self.family(&catalog, table, TableKind::Versioned)?;
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        let mut iterator = self.rocks.raw_iterator_cf_opt(&family, options);
        let mut deletes = Deletes::new(self, &family);
        for range in ranges {
            let cell = keys::of_cell(&range.cell);
            // Backwards, from the oldest version to the newest of the range.
            iterator.seek_for_prev(keys::behind(cell.clone()));
            while let Some(key) = iterator.key() {
                let Some(ts) = keys::timestamp_within(key, &cell) else { break };
                let ts = ts.map_err(|_| crate::errors::corrupt_key(table, key))?;
                if ts >= range.before {
                    break;
                }
                if ts != Timestamp::SENTINEL || range.include_sentinel {
                    deletes.push(key)?;
                }
                iterator.prev();
            }
            iterator.status().map_err(|error| crate::errors::read_failed(table, error))?;
        }
        deletes.finish()
    }

    /// One range deletion, whatever the number of versions: it costs as much as one write.
    pub(crate) fn delete_rows(&self, table: &TableRef, rows: &RowRange) -> Result<()> {
        let catalog = self.tables.read();
        let family = self.family(&catalog, table, TableKind::Versioned)?;
        let end = match &rows.end {
            Some(end) => keys::of_row(end),
            // A range deletion needs an end, and no key is the greatest: so, just behind the last one there is.
            None => match self.last_key(table, &family)? {
                Some(mut last) => {
                    last.push(0);
                    last
                }
                None => return Ok(()),
            },
        };
        let start = keys::of_row(&rows.start);
        if start >= end {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(&family, start, end);
        self.write(batch, self.sync)
    }

    fn last_key(&self, table: &TableRef, family: &Family<'_>) -> Result<Option<Vec<u8>>> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        let mut iterator = self.rocks.raw_iterator_cf_opt(family, options);
        iterator.seek_to_last();
        iterator.status().map_err(|error| crate::errors::read_failed(table, error))?;
        Ok(iterator.key().map(<[u8]>::to_vec))
    }

    pub(crate) fn put_unless_exists(&self, table: &TableRef, cell: &Cell, value: &Bytes) -> Result<PutUnlessExists> {
        Ok(match self.check_and_set(table, cell, None, Some(value))? {
            CheckAndSet::Applied => PutUnlessExists::Written,
            CheckAndSet::Mismatch(Some(standing)) => PutUnlessExists::Exists(standing),
            CheckAndSet::Mismatch(None) => unreachable!("nothing was expected, so nothing is no mismatch"),
        })
    }

    pub(crate) fn check_and_set(
        &self,
        table: &TableRef,
        cell: &Cell,
        expected: Option<&Bytes>,
        new: Option<&Bytes>,
    ) -> Result<CheckAndSet> {
        let catalog = self.tables.read();
        let family = self.family(&catalog, table, TableKind::Atomic)?;
        let key = keys::of_cell(cell);
        let _held = self.lock_stripe(table, &key);
        let actual = self.value_of(table, &family, &key)?;
        if actual.as_deref() != expected.map(|expected| &expected[..]) {
            return Ok(CheckAndSet::Mismatch(actual.as_deref().map(Bytes::copy_from_slice)));
        }
        let mut batch = WriteBatch::default();
        match new {
            Some(new) => batch.put_cf(&family, &key, new),
            None => batch.delete_cf(&family, &key),
        }
        self.write(batch, true)?;
        Ok(CheckAndSet::Applied)
    }

    fn value_of(
        &self,
        table: &TableRef,
        family: &Family<'_>,
        key: &[u8],
    ) -> Result<Option<rocksdb::DBPinnableSlice<'_>>> {
        self.rocks.get_pinned_cf(family, key).map_err(|error| crate::errors::read_failed(table, error))
    }

    fn lock_stripe(&self, table: &TableRef, key: &[u8]) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        (table, key).hash(&mut hasher);
        self.stripes[hasher.finish() as usize % STRIPES].lock()
    }

    pub(crate) fn apply(&self, batch: &AtomicBatch, sync: bool) -> Result<()> {
        let catalog = self.tables.read();
        // Held until the batch is written: a change of the cell comes before the look at it or after the write.
        let mut _held = None;
        if let Some(BatchGuard { table, cell, expected }) = &batch.guard {
            let family = self.family(&catalog, table, TableKind::Atomic)?;
            let key = keys::of_cell(cell);
            _held = Some(self.lock_stripe(table, &key));
            if self.value_of(table, &family, &key)?.as_deref() != Some(&expected[..]) {
                return Err(KvsError::GuardFailed { table: table.clone(), cell: cell.clone() });
            }
        }
        if batch.ops.is_empty() {
            return Ok(());
        }
        self.write(self.write_batch(&catalog, batch)?, sync)
    }

    /// Applies a small batch that need not be durable on the thread that asks: to memory and to the system's. False if it
    /// would have to wait: nothing was written then.
    pub(crate) fn apply_at_once(&self, batch: &AtomicBatch) -> Result<bool> {
        let Some(catalog) = self.tables.try_read_recursive() else { return Ok(false) };
        let write = self.write_batch(&catalog, batch)?;
        self.write_at_once(write)
    }

    fn write_batch(&self, catalog: &Catalog, batch: &AtomicBatch) -> Result<WriteBatch> {
        let mut families = FamiliesOfBatch { db: self, catalog, found: Vec::new() };
        let mut write = WriteBatch::with_capacity_bytes(batch.ops.iter().map(len_of).sum());
        // One buffer for all keys: a batch may have very many.
        let mut key = Vec::new();
        for op in batch.ops.iter() {
            key.clear();
            match op {
                BatchOp::Put { table, cell, ts, value } => {
                    keys::push_cell(&mut key, cell);
                    keys::push_timestamp(&mut key, *ts);
                    write.put_cf(families.of(table, TableKind::Versioned)?, &key, value);
                }
                BatchOp::Set { table, cell, value } => {
                    keys::push_cell(&mut key, cell);
                    write.put_cf(families.of(table, TableKind::Atomic)?, &key, value);
                }
                BatchOp::Remove { table, cell } => {
                    keys::push_cell(&mut key, cell);
                    write.delete_cf(families.of(table, TableKind::Atomic)?, &key);
                }
            }
        }
        Ok(write)
    }
}

/// The column families of the tables of a batch, of which there are few.
struct FamiliesOfBatch<'a> {
    db: &'a Db,
    catalog: &'a Catalog,
    /// The one that was asked for last is the last one.
    found: Vec<(&'a TableRef, TableKind, Family<'a>)>,
}

impl<'a> FamiliesOfBatch<'a> {
    fn of(&mut self, table: &'a TableRef, kind: TableKind) -> Result<&Family<'a>> {
        let is_wanted = |(known, known_kind, _): &(&TableRef, TableKind, Family<'_>)| {
            // Neighbours mostly have the very same reference.
            *known_kind == kind && (std::ptr::eq(known.name(), table.name()) || *known == table)
        };
        match self.found.iter().rposition(is_wanted) {
            Some(at) => {
                let last = self.found.len() - 1;
                self.found.swap(at, last);
            }
            None => self.found.push((table, kind, self.db.family(self.catalog, table, kind)?)),
        }
        Ok(&self.found.last().expect("it was just put there").2)
    }
}

/// What a write takes in RocksDB's batch, about.
fn len_of(op: &BatchOp) -> usize {
    const MARKS: usize = 32;
    match op {
        BatchOp::Put { cell, value, .. } | BatchOp::Set { cell, value, .. } => {
            MARKS + cell.row.len() + cell.column.len() + value.len()
        }
        BatchOp::Remove { cell, .. } => MARKS + cell.row.len() + cell.column.len(),
    }
}

/// Deletions in the order they are pushed, a batch at a time.
struct Deletes<'a> {
    db: &'a Db,
    family: &'a Family<'a>,
    batch: WriteBatch,
}

impl<'a> Deletes<'a> {
    fn new(db: &'a Db, family: &'a Family<'a>) -> Deletes<'a> {
        Deletes { db, family, batch: WriteBatch::default() }
    }

    fn push(&mut self, key: &[u8]) -> Result<()> {
        if self.batch.len() >= DELETES_PER_BATCH {
            // Not synced: the log is one sequence, and the sync of the last batch covers the earlier ones.
            self.db.write(std::mem::take(&mut self.batch), false)?;
        }
        self.batch.delete_cf(self.family, key);
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if self.batch.is_empty() { Ok(()) } else { self.db.write(self.batch, self.db.sync) }
    }
}

// ---- the catalog

const CATALOG: &str = "default";
const FORMAT_KEY: &[u8] = b"format";
const FORMAT: &[u8] = b"1";
const RECORD_PREFIX: &[u8] = b"table/";

impl Catalog {
    pub(crate) fn get(&self, table: &TableRef) -> Result<&TableRecord> {
        self.tables.get(table).ok_or_else(|| KvsError::NoSuchTable(table.clone()))
    }

    /// Reads the records and drops the families that none of them names.
    fn read(rocks: &Rocks, dir: &Path, families: &[String]) -> Result<Catalog> {
        check_format(rocks, dir)?;
        let tables = read_records(rocks, dir)?;
        let named: HashSet<String> = tables.iter().map(|(table, record)| family_name(table, record.family)).collect();
        if let Some(lost) = named.iter().find(|name| !families.contains(name)) {
            return Err(lost_family(dir, lost));
        }
        let mut next_family = 1;
        for name in families.iter().filter(|name| *name != CATALOG) {
            let number = family_number(name).ok_or_else(|| {
                KvsError::corrupt(dir.display().to_string(), format!("column family '{name}' is none of ours"))
            })?;
            next_family = next_family.max(number + 1);
            if !named.contains(name) {
                tracing::warn!(family = name, "dropping what an interrupted change of a table left behind");
                rocks.drop_cf(name).map_err(|error| open_failed(dir, error))?;
            }
        }
        Ok(Catalog { tables, next_family })
    }
}

/// Refuses a layout that was written by a later version of this crate.
fn check_format(rocks: &Rocks, dir: &Path) -> Result<()> {
    let format = rocks.get(FORMAT_KEY).map_err(|error| open_failed(dir, error))?;
    match format.as_deref() {
        Some(FORMAT) => Ok(()),
        Some(other) => Err(KvsError::Backend {
            reason: format!("{} has format {}, and this program knows 1", dir.display(), other.escape_ascii()),
            source: None,
        }),
        None => {
            let mut options = WriteOptions::default();
            options.set_sync(true);
            rocks.put_opt(FORMAT_KEY, FORMAT, &options).map_err(|error| open_failed(dir, error))
        }
    }
}

fn read_records(rocks: &Rocks, dir: &Path) -> Result<BTreeMap<TableRef, TableRecord>> {
    let mut tables = BTreeMap::new();
    let mut iterator = rocks.raw_iterator();
    iterator.seek(RECORD_PREFIX);
    while let Some((key, value)) = iterator.item() {
        let Some(name) = key.strip_prefix(RECORD_PREFIX) else { break };
        let damaged = || KvsError::corrupt(dir.display().to_string(), format!("record '{}'", key.escape_ascii()));
        let name = std::str::from_utf8(name).map_err(|_| damaged())?;
        let table = TableRef::new(name).map_err(|_| damaged())?;
        tables.insert(table, TableRecord::decode(value).ok_or_else(damaged)?);
        iterator.next();
    }
    iterator.status().map_err(|error| open_failed(dir, error))?;
    Ok(tables)
}

fn record_key(table: &TableRef) -> Vec<u8> {
    [RECORD_PREFIX, table.name().as_bytes()].concat()
}

impl TableRecord {
    pub(crate) fn describe(&self, table: &TableRef) -> TableDescription {
        TableDescription { table: table.clone(), kind: self.kind, metadata: self.metadata.clone() }
    }

    /// Kind (one letter), family (8 bytes, big-endian), metadata.
    fn encode(&self) -> Vec<u8> {
        let kind = match self.kind {
            TableKind::Versioned => b"v",
            TableKind::Atomic => b"a",
        };
        [&kind[..], &self.family.to_be_bytes(), &self.metadata].concat()
    }

    fn decode(record: &[u8]) -> Option<TableRecord> {
        let (kind, rest) = record.split_first()?;
        let (family, metadata) = rest.split_first_chunk()?;
        let kind = match kind {
            b'v' => TableKind::Versioned,
            b'a' => TableKind::Atomic,
            _ => return None,
        };
        Some(TableRecord { kind, metadata: Bytes::copy_from_slice(metadata), family: u64::from_be_bytes(*family) })
    }
}

/// `t.` keeps tables apart from RocksDB's own "default", and `~`, which no table name has, ends the name.
pub(crate) fn family_name(table: &TableRef, family: u64) -> String {
    format!("t.{table}~{family}")
}

fn family_number(name: &str) -> Option<u64> {
    name.strip_prefix("t.")?.rsplit_once('~')?.1.parse().ok()
}

/// The column families on disk. Of a directory without a database that is the default one.
fn existing_families(options: &RocksOptions, dir: &Path) -> Result<Vec<String>> {
    let current = dir.join("CURRENT");
    if current.try_exists().map_err(|error| io_failed("look for", &current, error))? {
        return Rocks::list_cf(&options.database, dir).map_err(|error| open_failed(dir, error));
    }
    // RocksDB would make a new database here, and then remove the files of the old one as garbage.
    let entries = std::fs::read_dir(dir).map_err(|error| io_failed("list", dir, error))?;
    for entry in entries {
        let path = entry.map_err(|error| io_failed("list", dir, error))?.path();
        if path.extension().is_some_and(|extension| extension == "sst" || extension == "log") {
            let reason = format!("there is {} but no file CURRENT", path.display());
            return Err(KvsError::corrupt(dir.display().to_string(), reason));
        }
    }
    Ok(vec![CATALOG.to_owned()])
}

fn lost_family(dir: &Path, name: &str) -> KvsError {
    KvsError::corrupt(dir.display().to_string(), format!("column family '{name}' is recorded but not there"))
}

fn wrong_kind(table: &TableRef, kind: TableKind) -> KvsError {
    let actual = match kind {
        TableKind::Versioned => "versioned",
        TableKind::Atomic => "atomic",
    };
    KvsError::WrongTableKind { table: table.clone(), actual }
}
