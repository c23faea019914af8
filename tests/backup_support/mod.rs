//! What the backup tests share: stores with a few transactions in them, and a source of backups over any store.

// Each test file uses a part of it.
#![allow(dead_code)]

pub(crate) mod accounts;

use async_trait::async_trait;
use atlas::backup::{BackupLock, BackupSource, DirectoryTarget, NodeCommands, Repository, StoreOpener, StoreTarget};
use atlas::ops::{BackupInfo, BackupRequest, ScanOptions, TransactionOps, no_progress};
use atlas::schema::{FORMAT_VERSION, MetaRecord, StoreRecord};
use atlas::timestamp::TimestampOracle;
use atlas::transaction::entry::{CleanedWindows, Entry, Fate, transactions_table};
use atlas::{Cell, Error, Result, RowRange, TableRef, Timestamp};
use atlas_kvs::{
    AtomicBatch, AtomicScan, Availability, BatchOp, Capabilities, CellBound, CellTimestamps, CellVersionRange,
    CellVersions, CheckAndSet, Durability, KeyValueService, KvsError, NativeSnapshot, OpenSnapshot, Ownership,
    PutUnlessExists, ResultStream, Scan, SnapshotPart, SnapshotSummary, StreamSnapshot, TableDescription, TableKind,
    TableSize, Value, Version, VersionScan,
};
use atlas_kvs_memory::MemoryStore;
use atlas_kvs_rocksdb::{RocksConfig, RocksStore};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

pub(crate) fn ts(number: u64) -> Timestamp {
    Timestamp::new(number).expect("a small number")
}

pub(crate) fn data_table() -> TableRef {
    TableRef::new("accounts").expect("a name")
}

/// A store as the layer leaves it: its tables and the record of what it is.
pub(crate) async fn make_store(kvs: &Arc<dyn KeyValueService>) {
    MetaRecord::<StoreRecord>::create_table(kvs.as_ref()).await.expect("it can be made");
    kvs.create_table(&transactions_table(), TableKind::Atomic, Bytes::new()).await.expect("it can be made");
    kvs.create_table(&data_table(), TableKind::Versioned, Bytes::from_static(b"{}")).await.expect("it can be made");
    let record = StoreRecord {
        format_version: FORMAT_VERSION,
        store_id: Uuid::from_u128(1),
        namespace: "default".to_owned(),
        commit_mode: "pipeline".to_owned(),
        created: "2026-01-01T00:00:00Z".to_owned(),
        restored_from: None,
    };
    store_record(kvs).replace(None, Some(&record)).await.expect("it can be written");
}

pub(crate) fn store_record(kvs: &Arc<dyn KeyValueService>) -> MetaRecord<StoreRecord> {
    MetaRecord::new(Arc::clone(kvs), "store")
}

/// A transaction, whole, in one batch: data at `start_ts` and its entry.
pub(crate) async fn write_transaction(kvs: &dyn KeyValueService, start: u64, entry: Entry, row: &str, value: &str) {
    let put = BatchOp::Put {
        table: data_table(),
        cell: Cell::copy_from(row, "balance"),
        ts: ts(start),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    let set = BatchOp::Set { table: transactions_table(), cell: Entry::cell(ts(start)), value: entry.encode() };
    kvs.apply(AtomicBatch::new(vec![put, set]), Durability::Synced).await.expect("it is applied");
}

pub(crate) async fn entry_of(kvs: &dyn KeyValueService, start: u64) -> Option<Entry> {
    let found = kvs.get_atomic(&transactions_table(), &[Entry::cell(ts(start))]).await.expect("it can be read");
    found.into_iter().flatten().next().map(|bytes| Entry::decode(ts(start), &bytes).expect("it is an entry"))
}

/// What a reader of the latest state sees: of each cell the newest version whose writer's commit counts.
pub(crate) async fn visible(kvs: &Arc<dyn KeyValueService>) -> BTreeMap<String, String> {
    visible_below(kvs, Timestamp::MAX).await
}

/// The same for a reader of the past.
async fn visible_below(kvs: &Arc<dyn KeyValueService>, at: Timestamp) -> BTreeMap<String, String> {
    let windows = CleanedWindows::load(Arc::clone(kvs)).await.expect("they can be read");
    let mut seen = BTreeMap::new();
    for row in 0..ROWS {
        let row = row_name(row);
        let mut bound = CellBound::new(Cell::copy_from(&row, "balance"), Timestamp::MAX);
        loop {
            let found = kvs.get(&data_table(), std::slice::from_ref(&bound)).await.expect("it can be read");
            let Some(value) = found.into_iter().flatten().next() else { break };
            let entry = entry_of(kvs.as_ref(), value.ts.get()).await;
            if matches!(windows.fate(entry), Fate::Committed(commit_ts) if commit_ts < at) {
                // These sources write plain text; what a portable restore wrote has a header of 9 bytes before it.
                let text = if value.bytes.first() == Some(&2) { value.bytes.slice(9..) } else { value.bytes };
                seen.insert(row, String::from_utf8(text.to_vec()).expect("it was text"));
                break;
            }
            bound.read_before = value.ts;
        }
    }
    seen
}

pub(crate) const ROWS: u64 = 20;

pub(crate) fn row_name(row: u64) -> String {
    format!("row{row:03}")
}

/// Commits of a store in the order of their timestamps, as their writers were told.
pub(crate) type Log = Vec<(Timestamp, String, String)>;

/// The state at `at` as the log tells it.
pub(crate) fn state_at(log: &Log, at: Timestamp) -> BTreeMap<String, String> {
    log.iter().filter(|(commit_ts, ..)| *commit_ts < at).map(|(_, row, value)| (row.clone(), value.clone())).collect()
}

type Hook = Box<dyn Fn(Arc<dyn KeyValueService>) -> futures::future::BoxFuture<'static, ()> + Send + Sync>;

/// A store whose commits go through one gate, so that settling is waiting for the gate.
pub(crate) struct Source {
    pub(crate) kvs: Arc<dyn KeyValueService>,
    pub(crate) oracle: TimestampOracle,
    pub(crate) lock: BackupLock,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) log: tokio::sync::Mutex<Log>,
    pub(crate) in_settle: Option<Hook>,
    pub(crate) nodes: Option<NodeCommands>,
}

impl Source {
    pub(crate) async fn new(kvs: Arc<dyn KeyValueService>, data_dir: Option<PathBuf>) -> Source {
        if store_record(&kvs).load().await.is_err() {
            make_store(&kvs).await;
        }
        Source {
            oracle: TimestampOracle::open(Arc::clone(&kvs)).await.expect("it opens"),
            lock: BackupLock::new(Arc::clone(&kvs)),
            kvs,
            data_dir,
            log: tokio::sync::Mutex::default(),
            in_settle: None,
            nodes: None,
        }
    }

    /// A transaction over one row. Both numbers are drawn and everything is written behind the gate.
    pub(crate) async fn transact(&self, row: u64) -> Timestamp {
        let mut log = self.log.lock().await;
        let start_ts = self.oracle.fresh().await.expect("a timestamp");
        let commit_ts = self.oracle.fresh().await.expect("a timestamp");
        let (row, value) = (row_name(row), format!("value of {start_ts}"));
        write_transaction(self.kvs.as_ref(), start_ts.get(), Entry::Committed(commit_ts), &row, &value).await;
        log.push((commit_ts, row, value));
        commit_ts
    }

    pub(crate) async fn transact_many(&self, count: u64) {
        for number in 0..count {
            self.transact(number * 7 % ROWS).await;
        }
    }
}

#[async_trait]
impl BackupSource for Source {
    fn kvs(&self) -> Arc<dyn KeyValueService> {
        Arc::clone(&self.kvs)
    }

    fn namespace(&self) -> String {
        "default".to_owned()
    }

    fn store_id(&self) -> Uuid {
        Uuid::from_u128(1)
    }

    fn data_dir(&self) -> Option<PathBuf> {
        self.data_dir.clone()
    }

    async fn fresh_timestamp(&self) -> Result<Timestamp> {
        self.oracle.fresh().await
    }

    async fn settle(&self, _up_to: Timestamp) -> Result<()> {
        drop(self.log.lock().await);
        if let Some(hook) = &self.in_settle {
            hook(Arc::clone(&self.kvs)).await;
        }
        Ok(())
    }

    fn backup_lock(&self) -> BackupLock {
        self.lock.clone()
    }

    fn lock_lease(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn read_at(&self, at: Timestamp) -> Result<Box<dyn TransactionOps>> {
        Ok(Box::new(Reader { kvs: Arc::clone(&self.kvs), at }))
    }

    fn node_commands(&self) -> Option<NodeCommands> {
        self.nodes.clone()
    }

    fn file_size(&self) -> u64 {
        1000
    }
}

pub(crate) fn request(repository: &Path, name: Option<&str>) -> BackupRequest {
    BackupRequest {
        repository: repository.to_owned(),
        name: name.map(str::to_owned),
        reason: None,
        portable: false,
        rate_limit: None,
    }
}

pub(crate) async fn create(source: &Arc<Source>, repository: &Path, name: Option<&str>) -> Result<BackupInfo> {
    let source: Arc<dyn BackupSource> = Arc::clone(source) as _;
    atlas::backup::create::create(source, request(repository, name), no_progress()).await
}

pub(crate) fn open_repository(path: &Path) -> Repository {
    Repository::open(path).expect("it exists")
}

pub(crate) async fn rocks(directory: &Path) -> Arc<dyn KeyValueService> {
    Arc::new(RocksStore::open(RocksConfig::new(directory)).await.expect("it opens"))
}

pub(crate) fn rocks_opener() -> StoreOpener {
    Arc::new(|directory| {
        Box::pin(async move {
            let store = RocksStore::open(RocksConfig::new(directory)).await.map_err(Error::from)?;
            Ok(Arc::new(store) as Arc<dyn KeyValueService>)
        })
    })
}

pub(crate) fn rocks_target(directory: &Path) -> DirectoryTarget {
    DirectoryTarget::new(directory, "rocksdb", vec!["owner".to_owned()], rocks_opener()).in_namespace("default")
}

/// A RocksDB store with some transactions, in `directory`.
pub(crate) async fn rocks_source(directory: &Path) -> Arc<Source> {
    let source = Source::new(rocks(directory).await, Some(directory.to_owned())).await;
    source.transact_many(30).await;
    Arc::new(source)
}

/// A store in memory that pretends to live in files: its snapshots are a few files of no meaning.
#[derive(Debug)]
pub(crate) struct Pretender {
    inner: MemoryStore,
    staging_root: PathBuf,
    pub(crate) estimate: u64,
    pub(crate) size: u32,
    pub(crate) snapshot_fails: bool,
    pub(crate) snapshots: Snapshots,
    /// After so many more changes of entries, what happens to the next.
    pub(crate) trouble: parking_lot::Mutex<Option<(u64, Trouble)>>,
    /// Says that others can write into it, as a server does.
    pub(crate) shared: bool,
    /// Versions that were written, and entries that were written first, by their tables and in their order.
    pub(crate) writes: parking_lot::Mutex<Vec<(TableRef, Durability)>>,
}

/// What snapshots a pretender has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Snapshots {
    Files,
    Streams,
    None,
}

/// What can happen to a compare-and-set of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The store does not answer, from now on.
    Unavailable,
    /// It is applied, and the answer is lost.
    LostAnswer,
    /// Somebody else was faster.
    Changed,
}

impl Pretender {
    pub(crate) fn new(directory: &Path) -> Pretender {
        let staging_root = directory.join("staging");
        Pretender {
            inner: MemoryStore::new(),
            staging_root,
            estimate: 1 << 20,
            size: 3_000_000,
            snapshot_fails: false,
            snapshots: Snapshots::Files,
            trouble: parking_lot::Mutex::default(),
            shared: false,
            writes: parking_lot::Mutex::default(),
        }
    }
}

impl Pretender {
    fn next_trouble(&self) -> Option<Trouble> {
        let mut trouble = self.trouble.lock();
        let (left, kind) = trouble.as_mut()?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        Some(*kind)
    }
}

/// A source over a pretender in `directory/data`, with `directory/repo` for its repository.
pub(crate) async fn pretended(directory: &Path) -> Source {
    pretended_with(directory, Snapshots::Files).await
}

/// The same, with these snapshots.
pub(crate) async fn pretended_with(directory: &Path, snapshots: Snapshots) -> Source {
    let data = directory.join("data");
    std::fs::create_dir_all(&data).expect("it can be made");
    let store = Pretender { snapshots, ..Pretender::new(&data) };
    let source = Source::new(Arc::new(store), Some(data)).await;
    source.transact_many(10).await;
    source
}

#[async_trait]
impl NativeSnapshot for Pretender {
    fn staging_root(&self) -> &Path {
        &self.staging_root
    }

    async fn estimated_bytes(&self) -> atlas_kvs::Result<u64> {
        Ok(self.estimate)
    }

    async fn snapshot_into(&self, directory: &Path) -> atlas_kvs::Result<SnapshotSummary> {
        std::fs::create_dir_all(directory.join("db/deep")).expect("it can be made");
        let big: Vec<u8> = (0..self.size).map(|n| (n * 7 % 251) as u8).collect();
        for (name, content) in [("CURRENT", &b"MANIFEST-1\n"[..]), ("000001.sst", &big), ("deep/empty", b"")] {
            std::fs::write(directory.join("db").join(name), content).expect("it can be written");
        }
        if self.snapshot_fails {
            return Err(KvsError::Unavailable { reason: "as the test wished".to_owned(), source: None });
        }
        Ok(SnapshotSummary { files: 3, bytes: big.len() as u64 + 11 })
    }
}

#[async_trait]
impl KeyValueService for Pretender {
    fn capabilities(&self) -> Capabilities {
        let store = if self.snapshots == Snapshots::Files { "rocksdb" } else { "pretender" };
        Capabilities { store, ..self.inner.capabilities() }
    }
    fn batches_at_once(&self) -> usize {
        self.inner.batches_at_once()
    }

    fn writes_keep_waiting(&self) -> bool {
        self.inner.writes_keep_waiting()
    }

    fn ownership(&self) -> Ownership {
        if self.shared { Ownership::Shared } else { self.inner.ownership() }
    }
    async fn create_table(&self, table: &TableRef, kind: TableKind, metadata: Bytes) -> atlas_kvs::Result<()> {
        self.inner.create_table(table, kind, metadata).await
    }
    async fn drop_table(&self, table: &TableRef) -> atlas_kvs::Result<()> {
        self.inner.drop_table(table).await
    }
    async fn truncate_table(&self, table: &TableRef) -> atlas_kvs::Result<()> {
        self.inner.truncate_table(table).await
    }
    async fn tables(&self) -> atlas_kvs::Result<Vec<TableDescription>> {
        self.inner.tables().await
    }
    async fn table(&self, table: &TableRef) -> atlas_kvs::Result<Option<TableDescription>> {
        self.inner.table(table).await
    }
    async fn put_table_metadata(&self, table: &TableRef, metadata: Bytes) -> atlas_kvs::Result<()> {
        self.inner.put_table_metadata(table, metadata).await
    }
    async fn table_size(&self, table: &TableRef) -> atlas_kvs::Result<TableSize> {
        self.inner.table_size(table).await
    }
    async fn cut_rows(&self, table: &TableRef, parts: usize) -> atlas_kvs::Result<Vec<Bytes>> {
        self.inner.cut_rows(table, parts).await
    }
    async fn get(&self, table: &TableRef, cells: &[CellBound]) -> atlas_kvs::Result<Vec<Option<Value>>> {
        self.inner.get(table, cells).await
    }
    fn scan(&self, table: &TableRef, request: Scan) -> ResultStream<(Cell, Value)> {
        self.inner.scan(table, request)
    }
    async fn versions(&self, table: &TableRef, cells: &[CellBound]) -> atlas_kvs::Result<Vec<Vec<Version>>> {
        self.inner.versions(table, cells).await
    }
    fn scan_versions(&self, table: &TableRef, request: VersionScan) -> ResultStream<CellVersions> {
        self.inner.scan_versions(table, request)
    }
    async fn put(&self, puts: Vec<(TableRef, Vec<(Cell, Bytes)>)>, ts: Timestamp) -> atlas_kvs::Result<()> {
        self.inner.put(puts, ts).await
    }
    async fn put_versions(&self, table: &TableRef, versions: Vec<(Cell, Value)>) -> atlas_kvs::Result<()> {
        self.writes.lock().push((table.clone(), Durability::Synced));
        self.inner.put_versions(table, versions).await
    }
    async fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> atlas_kvs::Result<()> {
        self.inner.add_sentinels(table, cells).await
    }
    async fn delete_versions(&self, table: &TableRef, versions: &[CellTimestamps]) -> atlas_kvs::Result<()> {
        self.inner.delete_versions(table, versions).await
    }
    async fn delete_version_ranges(&self, table: &TableRef, ranges: &[CellVersionRange]) -> atlas_kvs::Result<()> {
        self.inner.delete_version_ranges(table, ranges).await
    }
    async fn delete_rows(&self, table: &TableRef, rows: &RowRange) -> atlas_kvs::Result<()> {
        self.inner.delete_rows(table, rows).await
    }
    async fn get_atomic(&self, table: &TableRef, cells: &[Cell]) -> atlas_kvs::Result<Vec<Option<Bytes>>> {
        self.inner.get_atomic(table, cells).await
    }
    fn scan_atomic(&self, table: &TableRef, request: AtomicScan) -> ResultStream<(Cell, Bytes)> {
        self.inner.scan_atomic(table, request)
    }
    async fn put_unless_exists(
        &self,
        table: &TableRef,
        cell: &Cell,
        value: Bytes,
    ) -> atlas_kvs::Result<PutUnlessExists> {
        self.writes.lock().push((table.clone(), Durability::Synced));
        self.inner.put_unless_exists(table, cell, value).await
    }
    async fn check_and_set(
        &self,
        table: &TableRef,
        cell: &Cell,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> atlas_kvs::Result<CheckAndSet> {
        let trouble = if *table == transactions_table() { self.next_trouble() } else { None };
        match trouble {
            None => self.inner.check_and_set(table, cell, expected, new).await,
            Some(Trouble::Unavailable) => {
                Err(KvsError::Unavailable { reason: "as the test wished".to_owned(), source: None })
            }
            Some(Trouble::LostAnswer) => {
                self.inner.check_and_set(table, cell, expected, new).await?;
                Err(KvsError::Indeterminate { reason: "as the test wished".to_owned(), source: None })
            }
            Some(Trouble::Changed) => {
                let other = Entry::Committed(ts(1 << 40)).encode();
                self.inner.check_and_set(table, cell, expected.clone(), Some(other)).await?;
                self.inner.check_and_set(table, cell, expected, new).await
            }
        }
    }
    async fn apply(&self, batch: AtomicBatch, durability: Durability) -> atlas_kvs::Result<()> {
        self.writes.lock().extend(batch.ops.iter().map(|op| (op.table().clone(), durability)));
        self.inner.apply(batch, durability).await
    }
    async fn availability(&self) -> Availability {
        self.inner.availability().await
    }
    fn sorted_load(&self) -> Option<&dyn atlas_kvs::SortedLoad> {
        self.inner.sorted_load()
    }

    fn native_snapshot(&self) -> Option<&dyn NativeSnapshot> {
        (self.snapshots == Snapshots::Files).then_some(self as _)
    }
    fn stream_snapshot(&self) -> Option<&dyn StreamSnapshot> {
        (self.snapshots == Snapshots::Streams).then_some(self as _)
    }
    async fn reopen(&self) -> atlas_kvs::Result<()> {
        self.inner.reopen().await
    }
    async fn close(&self) -> atlas_kvs::Result<()> {
        self.inner.close().await
    }
}

/// A pretender that hands over streams has them ready in memory: first a catalog, then a part for each table.
struct ReadyParts {
    parts: Vec<SnapshotPart>,
    content: Vec<Bytes>,
    fails: bool,
}

#[derive(Serialize, Deserialize)]
struct PretendedTable {
    table: TableRef,
    kind: TableKind,
    metadata: Vec<u8>,
}

/// A version, or with timestamp 0 the value of an atomic cell.
type PretendedCell = (Vec<u8>, Vec<u8>, u64, Vec<u8>);

/// Everything in a store: a catalog, and a part for each table. Not of one moment, which a real snapshot must be: what was
/// settled before makes any order right.
pub(crate) async fn parts_of(kvs: &dyn KeyValueService) -> atlas_kvs::Result<Vec<(String, Bytes)>> {
    let (mut tables, mut parts) = (Vec::new(), Vec::new());
    for (number, table) in kvs.tables().await?.into_iter().enumerate() {
        let mut cells: Vec<PretendedCell> = Vec::new();
        match table.kind {
            TableKind::Versioned => {
                let mut found = kvs.scan_versions(&table.table, VersionScan::new(RowRange::all(), Timestamp::MAX));
                while let Some(cell) = found.try_next().await? {
                    for version in cell.versions {
                        let bound = CellBound::new(cell.cell.clone(), version.ts.next());
                        let value = kvs.get(&table.table, &[bound]).await?.remove(0).expect("it is there");
                        let Cell { row, column } = cell.cell.clone();
                        cells.push((row.to_vec(), column.to_vec(), version.ts.get(), value.bytes.to_vec()));
                    }
                }
            }
            TableKind::Atomic => {
                let mut found = kvs.scan_atomic(&table.table, AtomicScan::new(RowRange::all()));
                while let Some((cell, value)) = found.try_next().await? {
                    cells.push((cell.row.to_vec(), cell.column.to_vec(), 0, value.to_vec()));
                }
            }
        }
        parts.push((format!("table-{number}"), serde_json::to_vec(&cells).expect("plain data").into()));
        tables.push(PretendedTable { table: table.table, kind: table.kind, metadata: table.metadata.to_vec() });
    }
    parts.insert(0, ("catalog".to_owned(), serde_json::to_vec(&tables).expect("plain data").into()));
    Ok(parts)
}

/// Adds what a part holds. Answers how many atomic cells were there already, and stayed.
async fn load_part(kvs: &dyn KeyValueService, part: &str, content: &[u8]) -> atlas_kvs::Result<u64> {
    let damaged = |error: serde_json::Error| KvsError::corrupt("a part", error.to_string());
    let Some(number) = part.strip_prefix("table-") else {
        for table in serde_json::from_slice::<Vec<PretendedTable>>(content).map_err(damaged)? {
            kvs.create_table(&table.table, table.kind, table.metadata.into()).await?;
        }
        return Ok(0);
    };
    let table = kvs.tables().await?.remove(number.parse::<usize>().expect("a number"));
    load_cells(kvs, &table.table, table.kind, content).await
}

/// Adds cells to a table. Answers how many atomic ones were there already, and stayed.
async fn load_cells(
    kvs: &dyn KeyValueService,
    table: &TableRef,
    kind: TableKind,
    content: &[u8],
) -> atlas_kvs::Result<u64> {
    let damaged = |error: serde_json::Error| KvsError::corrupt("a part", error.to_string());
    let mut stayed = 0;
    for (row, column, ts, value) in serde_json::from_slice::<Vec<PretendedCell>>(content).map_err(damaged)? {
        let (cell, value) = (Cell::new(row, column), Bytes::from(value));
        match (kind, Timestamp::new(ts).filter(|ts| ts.is_data())) {
            (TableKind::Versioned, Some(ts)) => {
                kvs.put_versions(table, vec![(cell, Value { ts, bytes: value })]).await?;
            }
            (TableKind::Versioned, None) => kvs.add_sentinels(table, &[cell]).await?,
            (TableKind::Atomic, _) => {
                let put = kvs.put_unless_exists(table, &cell, value).await?;
                stayed += u64::from(put != PutUnlessExists::Written);
            }
        }
    }
    Ok(stayed)
}

/// Loads what several nodes hold into the tables that `renames` tells, as a quorum of them would tell: of two values of
/// an atomic cell that of the first directory.
pub(crate) async fn merge_into(kvs: &dyn KeyValueService, directories: &[PathBuf], renames: &Path) {
    let renames = std::fs::read_to_string(renames).expect("it is there");
    let renames: BTreeMap<&str, &str> = renames.lines().map(|line| line.split_once(' ').expect("two names")).collect();
    for directory in directories {
        let read = |name: &str| std::fs::read(directory.join("tables").join(name)).expect("it can be read");
        let tables: Vec<PretendedTable> = serde_json::from_slice(&read("catalog")).expect("a catalog");
        for (number, table) in tables.into_iter().enumerate() {
            let place = TableRef::new(renames[table.table.name()]).expect("a name");
            let content = read(&format!("table-{number}"));
            load_cells(kvs, &place, table.kind, &content).await.expect("it can be loaded");
        }
    }
}

#[async_trait]
impl StreamSnapshot for Pretender {
    async fn estimated_bytes(&self) -> atlas_kvs::Result<u64> {
        Ok(self.estimate)
    }

    async fn begin(&self) -> atlas_kvs::Result<Box<dyn OpenSnapshot>> {
        let (names, content): (Vec<String>, Vec<Bytes>) = parts_of(self).await?.into_iter().unzip();
        let parts = names.into_iter().map(|name| SnapshotPart { name, estimated_bytes: 7 }).collect();
        Ok(Box::new(ReadyParts { parts, content, fails: self.snapshot_fails }))
    }

    async fn load(&self, part: &str, content: ResultStream<Bytes>) -> atlas_kvs::Result<()> {
        let content = content.try_collect::<Vec<Bytes>>().await?.concat();
        assert_eq!(load_part(self, part, &content).await?, 0, "the store was empty");
        Ok(())
    }

    async fn finish_load(&self) -> atlas_kvs::Result<()> {
        Ok(())
    }
}

#[async_trait]
impl OpenSnapshot for ReadyParts {
    fn parts(&self) -> &[SnapshotPart] {
        &self.parts
    }

    fn read(&self, part: usize) -> ResultStream<Bytes> {
        let chunks: Vec<_> = self.content[part].chunks(700).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        futures::stream::iter(chunks).boxed()
    }

    async fn finish(self: Box<Self>) -> atlas_kvs::Result<()> {
        if self.fails {
            return Err(KvsError::Unavailable { reason: "as the test wished".to_owned(), source: None });
        }
        Ok(())
    }
}

/// A store on a server, empty, and targets that lead there.
pub(crate) fn empty_server(directory: &Path, snapshots: Snapshots) -> Arc<dyn KeyValueService> {
    Arc::new(Pretender { snapshots, ..Pretender::new(directory) })
}

/// A target of its own for each caller, as if each were another process.
pub(crate) fn server_target(kvs: &Arc<dyn KeyValueService>) -> StoreTarget {
    let (kvs, store) = (Arc::clone(kvs), kvs.capabilities().store);
    let opener: atlas::backup::ConnectionOpener = Arc::new(move || {
        let kvs = Arc::clone(&kvs);
        Box::pin(async move { Ok(kvs) })
    });
    StoreTarget::new("a server", store, "default", opener).with_lease(Duration::from_millis(500))
}

/// A transaction of a [`Source`] that reads the past.
struct Reader {
    kvs: Arc<dyn KeyValueService>,
    at: Timestamp,
}

#[async_trait]
impl TransactionOps for Reader {
    fn start_ts(&self) -> Timestamp {
        self.at
    }

    fn read_ts(&self) -> Timestamp {
        self.at
    }

    async fn get(&self, _table: &TableRef, _cells: &[Cell]) -> Result<Vec<Option<Bytes>>> {
        unreachable!("a backup scans")
    }

    async fn scan(&self, table: &TableRef, _scan: ScanOptions) -> Result<BoxStream<'static, Result<(Cell, Bytes)>>> {
        assert_eq!(*table, data_table());
        let seen = visible_below(&self.kvs, self.at).await;
        let cells = seen.into_iter().map(|(row, value)| Ok((Cell::copy_from(row, "balance"), Bytes::from(value))));
        Ok(futures::stream::iter(cells.collect::<Vec<_>>()).boxed())
    }

    async fn write(&self, _table: &TableRef, _writes: Vec<(Cell, Option<Bytes>)>) -> Result<()> {
        unreachable!("a backup writes nothing")
    }

    async fn commit(self: Box<Self>) -> Result<Option<Timestamp>> {
        Ok(None)
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
