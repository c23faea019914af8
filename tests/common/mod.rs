//! Stores to test on, and short words for what the tests of transactions say over and over.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test file is a crate of its own and uses some of them"
)]

pub mod bank;
pub mod bounded;
pub mod cassandra;
pub mod chaos;
pub mod checkout;
pub mod clerks;
pub mod clock;
pub mod cql_wire;
pub mod cutter;
pub mod faulty;
pub mod leaving;
mod place;
pub mod postgres;
pub mod processes;
pub mod small_disk;
pub mod trouble;

pub use place::{Place, Site};

use atlas::config::{AtlasConfig, ByteSize, CommitModeChoice, KvsConfig, TransactionConfig};
use atlas::ops::{BeginOptions, Operations, ScanOptions};
use atlas::schema::{ConflictHandler, TableSpec};
use atlas::transaction::{CellRef, Transaction};
use atlas::{Atlas, Cell, ColumnSelection, Error, Result, RowRange, TableRef, Timestamp};
use bytes::Bytes;
use futures::TryStreamExt;
use rand::Rng;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

/// Which store a test runs on, and how transactions commit there.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    pub store: StoreKind,
    pub mode: CommitModeChoice,
    pub pipeline_size_max: SizeLimit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    Memory,
    Rocksdb,
    Postgres,
    Cassandra,
}

/// What is put ahead of the pipeline: everything, nearly everything, who knows, or what is large.
#[derive(Clone, Copy, Debug)]
pub enum SizeLimit {
    Bytes(u64),
    Random,
    Default,
}

pub const MEMORY_STEPS: Lane = lane(StoreKind::Memory, CommitModeChoice::StepByStep, SizeLimit::Default);
pub const MEMORY_PIPELINE: Lane = lane(StoreKind::Memory, CommitModeChoice::Pipeline, SizeLimit::Default);
pub const MEMORY_PIPELINE_0: Lane = lane(StoreKind::Memory, CommitModeChoice::Pipeline, SizeLimit::Bytes(0));
pub const MEMORY_PIPELINE_1K: Lane = lane(StoreKind::Memory, CommitModeChoice::Pipeline, SizeLimit::Bytes(1024));
pub const MEMORY_PIPELINE_RANDOM: Lane = lane(StoreKind::Memory, CommitModeChoice::Pipeline, SizeLimit::Random);
pub const ROCKSDB_STEPS: Lane = lane(StoreKind::Rocksdb, CommitModeChoice::StepByStep, SizeLimit::Default);
pub const ROCKSDB_PIPELINE: Lane = lane(StoreKind::Rocksdb, CommitModeChoice::Pipeline, SizeLimit::Default);
pub const ROCKSDB_PIPELINE_0: Lane = lane(StoreKind::Rocksdb, CommitModeChoice::Pipeline, SizeLimit::Bytes(0));
pub const ROCKSDB_PIPELINE_1K: Lane = lane(StoreKind::Rocksdb, CommitModeChoice::Pipeline, SizeLimit::Bytes(1024));
pub const ROCKSDB_PIPELINE_RANDOM: Lane = lane(StoreKind::Rocksdb, CommitModeChoice::Pipeline, SizeLimit::Random);
pub const POSTGRES_STEPS: Lane = lane(StoreKind::Postgres, CommitModeChoice::StepByStep, SizeLimit::Default);
pub const POSTGRES_PIPELINE: Lane = lane(StoreKind::Postgres, CommitModeChoice::Pipeline, SizeLimit::Default);
pub const POSTGRES_PIPELINE_0: Lane = lane(StoreKind::Postgres, CommitModeChoice::Pipeline, SizeLimit::Bytes(0));
pub const POSTGRES_PIPELINE_1K: Lane = lane(StoreKind::Postgres, CommitModeChoice::Pipeline, SizeLimit::Bytes(1024));
pub const POSTGRES_PIPELINE_RANDOM: Lane = lane(StoreKind::Postgres, CommitModeChoice::Pipeline, SizeLimit::Random);
pub const CASSANDRA_STEPS: Lane = lane(StoreKind::Cassandra, CommitModeChoice::StepByStep, SizeLimit::Default);

const fn lane(store: StoreKind, mode: CommitModeChoice, pipeline_size_max: SizeLimit) -> Lane {
    Lane { store, mode, pipeline_size_max }
}

impl Lane {
    pub fn is_pipeline(self) -> bool {
        self.mode == CommitModeChoice::Pipeline
    }

    /// Limits and time-outs as usual, with what the lane says.
    pub fn transactions(self) -> TransactionConfig {
        let usual = TransactionConfig::default();
        let pipeline_size_max = match self.pipeline_size_max {
            SizeLimit::Bytes(bytes) => ByteSize(bytes),
            SizeLimit::Random => ByteSize(rand::rng().random_range(0..4096)),
            SizeLimit::Default => usual.pipeline_size_max,
        };
        if matches!(self.pipeline_size_max, SizeLimit::Random) {
            // Shown when the test fails.
            eprintln!("transactions.pipelineSizeMax: {pipeline_size_max}");
        }
        // None, one that holds a few cells, or as usual. Shown when the test fails.
        let cell_cache = [ByteSize(0), ByteSize(2048), usual.cell_cache][rand::rng().random_range(0..3)];
        eprintln!("transactions.cellCache: {cell_cache}");
        TransactionConfig { commit_mode: self.mode, pipeline_size_max, cell_cache, ..usual }
    }
}

/// A small RocksDB in a directory.
pub fn rocksdb_in(dir: &Path) -> KvsConfig {
    KvsConfig::Rocksdb { data_dir: dir.to_owned(), block_cache: ByteSize(4 << 20), sync: true }
}

/// An open store in a place of its own.
pub struct TestStore {
    pub atlas: Atlas,
    pub lane: Lane,
    // Goes last: the store lies in it.
    place: Place,
}

impl TestStore {
    pub async fn open(lane: Lane) -> TestStore {
        TestStore::open_with(lane, |_| ()).await
    }

    pub async fn open_with(lane: Lane, change: impl FnOnce(&mut TransactionConfig)) -> TestStore {
        TestStore::open_as(lane, |config| change(&mut config.transactions)).await
    }

    /// A store that is not swept: for who looks at the versions that lie there.
    pub async fn open_unswept(lane: Lane) -> TestStore {
        TestStore::open_as(lane, |config| config.sweep.enabled = false).await
    }

    async fn open_as(lane: Lane, change: impl FnOnce(&mut AtlasConfig)) -> TestStore {
        let place = Place::new(lane.store);
        let mut config = place.config(lane);
        change(&mut config);
        let atlas = place.open_atlas(config).await;
        TestStore { atlas, lane, place }
    }

    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// A table of this handler, named after it.
    pub async fn table(&self, handler: ConflictHandler) -> TableRef {
        table(&self.atlas, &handler.to_string(), handler).await
    }

    pub async fn begin(&self) -> Transaction {
        self.atlas.begin().await.expect("a transaction begins")
    }

    /// A read-only transaction on the state as of `at`.
    pub async fn begin_at(&self, at: Timestamp) -> Result<Transaction> {
        let options = BeginOptions { at: Some(at), ..BeginOptions::default() };
        self.atlas.transactions().begin(options).await
    }
}

pub async fn table(atlas: &Atlas, name: &str, handler: ConflictHandler) -> TableRef {
    let table = TableRef::new(name).expect("the name is a table name");
    atlas.create_table(&table, &TableSpec::with_handler(handler)).await.expect("the table can be made");
    table
}

/// The cell of a row in the column that most tests use.
pub fn cell(row: &str) -> Cell {
    Cell::copy_from(row, "v")
}

pub fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub async fn get(tx: &Transaction, table: &TableRef, row: &str) -> Option<String> {
    tx.get(table, &cell(row)).await.expect("a cell can be read").as_ref().map(text)
}

pub async fn put(tx: &Transaction, table: &TableRef, row: &str, value: &str) {
    tx.put(table, cell(row), value.to_owned()).await.expect("a write is buffered");
}

pub async fn delete(tx: &Transaction, table: &TableRef, row: &str) {
    tx.delete(table, cell(row)).await.expect("a deletion is buffered");
}

pub async fn commit(tx: Transaction) -> Timestamp {
    tx.commit().await.expect("the transaction commits").expect("it wrote something")
}

/// Commits rows as one transaction, whatever stands in the way for a moment.
pub async fn write(atlas: &Atlas, table: &TableRef, rows: &[(&str, &str)]) -> Timestamp {
    let outcome = atlas
        .run_with(Default::default(), async |tx| {
            for (row, value) in rows {
                tx.put(table, cell(row), (*value).to_owned()).await?;
            }
            Ok::<_, Error>(())
        })
        .await;
    outcome.expect("the rows can be written").commit_ts.expect("there were rows")
}

/// What a new transaction sees of a row.
pub async fn read(atlas: &Atlas, table: &TableRef, row: &str) -> Option<String> {
    let tx = atlas.begin().await.expect("a transaction begins");
    get(&tx, table, row).await
}

/// Everything a transaction sees of a table, as `row/column=value`.
pub async fn everything(tx: &Transaction, table: &TableRef) -> Vec<String> {
    scan(tx, table, ScanOptions::default()).await
}

pub async fn scan(tx: &Transaction, table: &TableRef, options: ScanOptions) -> Vec<String> {
    let cells: Vec<(Cell, Bytes)> = scan_cells(tx, table, options).await;
    cells.iter().map(|(cell, value)| format!("{cell}={}", text(value))).collect()
}

pub async fn scan_cells(tx: &Transaction, table: &TableRef, options: ScanOptions) -> Vec<(Cell, Bytes)> {
    let stream = tx.scan(table, options).await.expect("a scan begins");
    stream.try_collect().await.expect("a scan ends")
}

/// What a scan gives, which must be what it lends. The transaction has read it twice then.
pub async fn scan_both_ways(tx: &Transaction, table: &TableRef, options: ScanOptions) -> Vec<(Cell, Bytes)> {
    let given = scan_cells(tx, table, options.clone()).await;
    let lent = lent_cells(tx, table, options.clone(), usize::MAX).await.expect("a scan ends");
    assert!(lent == given, "{options:?}: given {given:?}, lent {lent:?}");
    given
}

/// The first cells of what a scan lends, up to so many: one at least.
pub async fn lent_cells(
    tx: &Transaction,
    table: &TableRef,
    options: ScanOptions,
    count: usize,
) -> Result<Vec<(Cell, Bytes)>> {
    let mut lent = Vec::new();
    let visit = |cell: CellRef<'_>| {
        lent.push((Cell::copy_from(cell.row, cell.column), Bytes::copy_from_slice(cell.value)));
        if lent.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    tx.for_each(table, options, visit).await?;
    Ok(lent)
}

pub fn rows(start: &str, end: &str) -> ScanOptions {
    ScanOptions { rows: RowRange::new(start.to_owned(), end.to_owned()), ..ScanOptions::default() }
}

pub fn columns(start: &str, end: &str) -> ColumnSelection {
    ColumnSelection::Range { start: start.to_owned().into(), end: Some(end.to_owned().into()) }
}

#[track_caller]
pub fn assert_conflict<T: std::fmt::Debug>(outcome: Result<T>) {
    assert!(matches!(outcome, Err(Error::Conflict { .. })), "expected a conflict, got {outcome:?}");
}

#[track_caller]
pub fn assert_closed<T>(outcome: Result<T>) {
    let error = outcome.err().map(|error| error.code().to_owned());
    assert_eq!(error.as_deref(), Some("TRANSACTION_CLOSED"));
}

pub fn number(bytes: &Bytes) -> i64 {
    text(bytes).parse().expect("a number was written")
}

/// Runs a task on a thread of its own. Work given to `run` need not be `Send`, so neither is what calls it.
pub fn spawn<F: Future>(task: impl FnOnce() -> F + Send + 'static) -> tokio::task::JoinHandle<F::Output>
where
    F::Output: Send + 'static,
{
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(task()))
}

/// Ends the program because there is no server for its tests: none of them could say anything. That is a failure if the
/// lane is required.
pub fn without_server(lane: &str, why: &str) -> ! {
    let lanes = std::env::var("ATLAS_REQUIRE_LANES").unwrap_or_default();
    let required = lanes.split([',', ' ']).any(|required| required == lane);
    // Past the capturing of the test harness, which would swallow it.
    let mut out = std::io::stdout().lock();
    let _ = match required {
        true => writeln!(out, "FAIL {lane} ({why}, and the lane is required)"),
        false => writeln!(out, "SKIP {lane} ({why})"),
    };
    let _ = out.flush();
    // With the lock held: one test says so for all.
    std::process::exit(i32::from(required));
}
