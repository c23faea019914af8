//! Short words for what the cases say over and over.
//!
//! Results are compared as text, `row/column@timestamp=value`, so that a case reads as a story and a failure as a
//! comparison of two of them.

use atlas_kvs::{
    AtomicBatch, AtomicScan, BatchOp, Cell, CellBound, CellTimestamps, CellVersionRange, CellVersions, CheckAndSet,
    Durability, KeyValueService, KvsError, PutUnlessExists, Result, ResultStream, RowRange, Scan, TableKind, TableRef,
    Timestamp, Value, VersionScan,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// Whatever leads to a store: the store under test, and what tasks share of it.
pub(crate) trait Store: Deref<Target = dyn KeyValueService> + Sync {}

impl<T: Deref<Target = dyn KeyValueService> + Sync> Store for T {}

pub(crate) fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

pub(crate) fn ts(number: u64) -> Timestamp {
    Timestamp::new(number).expect("the number is a timestamp")
}

pub(crate) fn cell(row: impl AsRef<[u8]>, column: impl AsRef<[u8]>) -> Cell {
    Cell::copy_from(row, column)
}

pub(crate) fn bytes(content: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(content.as_ref())
}

pub(crate) fn value(number: u64, content: impl AsRef<[u8]>) -> Value {
    Value { ts: ts(number), bytes: bytes(content) }
}

pub(crate) async fn versioned(store: &impl Store, name: &str) -> TableRef {
    create(store, name, TableKind::Versioned).await
}

pub(crate) async fn atomic(store: &impl Store, name: &str) -> TableRef {
    create(store, name, TableKind::Atomic).await
}

async fn create(store: &impl Store, name: &str, kind: TableKind) -> TableRef {
    let table = table(name);
    store.create_table(&table, kind, Bytes::new()).await.expect("a table can be created");
    table
}

/// Writes versions, each given as row, column, timestamp, value.
pub(crate) async fn put(store: &impl Store, table: &TableRef, versions: &[(&str, &str, u64, &str)]) {
    let versions = versions.iter().map(|&(row, column, number, content)| (cell(row, column), value(number, content)));
    store.put_versions(table, versions.collect()).await.expect("versions can be put");
}

/// Reads cells, each given as row, column, bound.
pub(crate) async fn get(store: &impl Store, table: &TableRef, cells: &[(&str, &str, u64)]) -> Vec<String> {
    let values = store.get(table, &bounds(cells)).await.expect("cells can be read");
    values.iter().map(|value| value.as_ref().map_or_else(|| "none".to_owned(), show_value)).collect()
}

pub(crate) fn bounds(cells: &[(&str, &str, u64)]) -> Vec<CellBound> {
    cells.iter().map(|&(row, column, before)| CellBound::new(cell(row, column), ts(before))).collect()
}

/// A scan of a whole table that sees everything.
pub(crate) fn everything() -> Scan {
    Scan::new(RowRange::all(), Timestamp::MAX)
}

pub(crate) async fn scan(store: &impl Store, table: &TableRef, request: Scan) -> Vec<String> {
    let items = items(store.scan(table, request)).await;
    items.iter().map(|(cell, value)| format!("{cell}@{}", show_value(value))).collect()
}

pub(crate) async fn scan_atomic(store: &impl Store, table: &TableRef, request: AtomicScan) -> Vec<String> {
    let items = items(store.scan_atomic(table, request)).await;
    items.iter().map(|(cell, value)| format!("{cell}={}", value.escape_ascii())).collect()
}

/// Cells of a version scan, each with all its versions.
pub(crate) async fn scan_versions(store: &impl Store, table: &TableRef, request: VersionScan) -> Vec<String> {
    let items = items(store.scan_versions(table, request)).await;
    let show = |item: &CellVersions| {
        let versions: Vec<_> =
            item.versions.iter().map(|version| format!("{}={}", version.ts, version.prefix.escape_ascii())).collect();
        format!("{}@{}", item.cell, versions.join(","))
    };
    items.iter().map(show).collect()
}

/// All that a versioned table holds, sentinels included.
pub(crate) async fn stored(store: &impl Store, table: &TableRef) -> Vec<String> {
    scan_versions(store, table, VersionScan::new(RowRange::all(), Timestamp::MAX)).await
}

/// All that an atomic table holds.
pub(crate) async fn stored_atomic(store: &impl Store, table: &TableRef) -> Vec<String> {
    scan_atomic(store, table, AtomicScan::new(RowRange::all())).await
}

pub(crate) fn show_value(value: &Value) -> String {
    format!("{}={}", value.ts, value.bytes.escape_ascii())
}

/// All items of a scan.
pub(crate) async fn items<T>(stream: ResultStream<T>) -> Vec<T> {
    try_items(stream).await.expect("a table can be scanned")
}

/// All items of a scan that may fail.
///
/// # Panics
/// If there are more than any case writes: a scan that resumes at the wrong place may have no end.
pub(crate) async fn try_items<T>(stream: ResultStream<T>) -> Result<Vec<T>> {
    const ITEMS_MAX: usize = 20_000;
    let items: Vec<T> = stream.take(ITEMS_MAX).try_collect().await?;
    assert!(items.len() < ITEMS_MAX, "the scan has no end");
    Ok(items)
}

/// What became of a stream that is only read for its outcome.
pub(crate) async fn outcome<T>(stream: ResultStream<T>) -> Result<()> {
    stream.try_for_each(|_| std::future::ready(Ok(()))).await
}

/// Asserts that a call failed, and in this way.
macro_rules! assert_fails {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err($pattern) $(if $guard)? => {}
            other => panic!("expected {}, got {other:?}", stringify!($pattern $(if $guard)?)),
        }
    };
}
pub(crate) use assert_fails;

/// Compare-and-set, repeated for as long as the store says that nothing was applied and trying again may help.
pub(crate) async fn check_and_set(
    store: &impl Store,
    table: &TableRef,
    cell: &Cell,
    expected: Option<Bytes>,
    new: Option<Bytes>,
) -> CheckAndSet {
    loop {
        match store.check_and_set(table, cell, expected.clone(), new.clone()).await {
            Err(error) if error.is_retriable() => tokio::task::yield_now().await,
            answer => return answer.expect("a cell can be compared and set"),
        }
    }
}

/// The same for a put that loses against any value.
pub(crate) async fn put_unless_exists(
    store: &impl Store,
    table: &TableRef,
    cell: &Cell,
    value: Bytes,
) -> PutUnlessExists {
    loop {
        match store.put_unless_exists(table, cell, value.clone()).await {
            Err(error) if error.is_retriable() => tokio::task::yield_now().await,
            answer => return answer.expect("a value can be put unless one exists"),
        }
    }
}

/// Runs tasks that begin at the same moment, and returns what they returned.
pub(crate) async fn together<T, F>(tasks: usize, task: impl Fn(usize) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let start = Arc::new(Barrier::new(tasks));
    let mut running = JoinSet::new();
    for number in 0..tasks {
        let (start, task) = (Arc::clone(&start), task(number));
        running.spawn(async move {
            start.wait().await;
            task.await
        });
    }
    running.join_all().await
}

/// How many times more often than in a store with disks and networks callers must try to meet in this one: what takes
/// no time is seldom caught in the middle.
pub(crate) fn haste(store: &impl Store) -> usize {
    if store.capabilities().persistent { 1 } else { 10 }
}

/// Repeats `step` while readers look on, until it was done `steps_min` times and every reader has looked often enough
/// to have met it in the middle, whichever of them is the slower one.
///
/// A look gets the number of the last finished step. It must not wait for anything: a broken store would make it wait
/// for ever.
pub(crate) async fn watched<F>(
    store: &impl Store,
    steps_min: u64,
    mut step: impl AsyncFnMut(u64),
    readers: Vec<impl Fn(u64, Seen) -> F + Send + 'static>,
) where
    F: Future<Output = Seen> + Send,
{
    let looks_min = 1_000 * haste(store);
    let finished = Arc::new(AtomicU64::new(0));
    let mut running = JoinSet::new();
    for look in readers {
        let finished = Arc::clone(&finished);
        running.spawn(async move {
            let (mut looks, mut seen) = (0, Seen(0));
            while looks < looks_min || finished.load(Ordering::SeqCst) < steps_min {
                seen = look(finished.load(Ordering::SeqCst), seen).await;
                looks += 1;
                tokio::task::yield_now().await;
            }
        });
    }
    let mut number = 0;
    while number < steps_min || !running.is_empty() {
        number += 1;
        step(number).await;
        finished.store(number, Ordering::SeqCst);
        while let Some(outcome) = running.try_join_next() {
            outcome.expect("no reader meets a contradiction");
        }
    }
}

/// The newest step that a reader has seen so far.
#[derive(Clone, Copy)]
pub(crate) struct Seen(pub(crate) u64);

impl Seen {
    /// Takes note of another look at the same thing, which must show this step or a newer one.
    pub(crate) fn then(self, step: u64) -> Seen {
        assert!(step >= self.0, "step {} was seen, and after it only {step}", self.0);
        Seen(step)
    }
}

/// Every operation on versioned tables, with input that is not empty.
pub(crate) async fn versioned_operations(store: &impl Store, table: &TableRef) -> Vec<(&'static str, Result<()>)> {
    let cell = cell("r", "c");
    let bound = [CellBound::new(cell.clone(), Timestamp::MAX)];
    let timestamps = [CellTimestamps { cell: cell.clone(), timestamps: vec![ts(1)] }];
    let range = CellVersionRange { cell: cell.clone(), before: Timestamp::MAX, include_sentinel: true };
    let all = RowRange::all();
    let mut outcomes = vec![
        ("get", store.get(table, &bound).await.map(drop)),
        ("scan", outcome(store.scan(table, everything())).await),
        ("versions", store.versions(table, &bound).await.map(drop)),
        ("scan_versions", outcome(store.scan_versions(table, VersionScan::new(all.clone(), Timestamp::MAX))).await),
        ("put", store.put(vec![(table.clone(), vec![(cell.clone(), bytes("v"))])], ts(1)).await),
        ("put_versions", store.put_versions(table, vec![(cell.clone(), value(1, "v"))]).await),
        ("add_sentinels", store.add_sentinels(table, std::slice::from_ref(&cell)).await),
        ("delete_versions", store.delete_versions(table, &timestamps).await),
        ("delete_version_ranges", store.delete_version_ranges(table, &[range]).await),
        ("delete_rows", store.delete_rows(table, &all).await),
    ];
    if store.capabilities().atomic_batch {
        let put = BatchOp::Put { table: table.clone(), cell, ts: ts(1), value: bytes("v") };
        outcomes.push(("apply", apply(store, vec![put]).await));
    }
    outcomes
}

/// Every operation on atomic tables, with input that is not empty.
pub(crate) async fn atomic_operations(store: &impl Store, table: &TableRef) -> Vec<(&'static str, Result<()>)> {
    let cell = cell("r", "c");
    let mut outcomes = vec![
        ("get_atomic", store.get_atomic(table, std::slice::from_ref(&cell)).await.map(drop)),
        ("scan_atomic", outcome(store.scan_atomic(table, AtomicScan::new(RowRange::all()))).await),
        ("put_unless_exists", store.put_unless_exists(table, &cell, bytes("v")).await.map(drop)),
        ("check_and_set", store.check_and_set(table, &cell, None, Some(bytes("v"))).await.map(drop)),
        ("removal", store.check_and_set(table, &cell, Some(bytes("v")), None).await.map(drop)),
    ];
    if store.capabilities().atomic_batch {
        let set = BatchOp::Set { table: table.clone(), cell: cell.clone(), value: bytes("v") };
        outcomes.push(("apply", apply(store, vec![set]).await));
        let remove = BatchOp::Remove { table: table.clone(), cell };
        outcomes.push(("apply of a removal", apply(store, vec![remove]).await));
    }
    outcomes
}

/// Every operation on the description of a table that must be there.
pub(crate) async fn table_operations(store: &impl Store, table: &TableRef) -> Vec<(&'static str, Result<()>)> {
    vec![
        ("truncate_table", store.truncate_table(table).await),
        ("put_table_metadata", store.put_table_metadata(table, bytes("m")).await),
        ("table_size", store.table_size(table).await.map(drop)),
    ]
}

pub(crate) async fn apply(store: &impl Store, ops: Vec<BatchOp>) -> Result<()> {
    store.apply(AtomicBatch::new(ops), Durability::Synced).await
}

pub(crate) fn is_no_such_table(error: &KvsError, table: &TableRef) -> bool {
    matches!(error, KvsError::NoSuchTable(named) if named == table)
}
