//! What the server does for each statement: a walk down the primary key, never a look at everything.

mod common;

use atlas_kvs::{
    AtomicBatch, AtomicScan, BatchGuard, BatchOp, Cell, CellBound, CellTimestamps, CellVersionRange, ColumnSelection,
    Durability, KeyValueService, RowRange, Scan, TableKind, TableRef, Timestamp, Value, VersionScan,
};
use atlas_kvs_postgres::PostgresStore;
use bytes::Bytes;
use common::server::OwnServer;
use futures::TryStreamExt;
use std::pin::Pin;

const ROWS: u64 = 60;
const COLUMNS: u64 = 30;
const VERSIONS: u64 = 10;
/// All versions of three rows.
const THREE_ROWS: u64 = 3 * COLUMNS * VERSIONS;

fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

fn cell(row: u64, column: u64) -> Cell {
    Cell::copy_from(format!("{row:05}"), format!("{column:05}"))
}

fn value() -> Bytes {
    Bytes::from_static(b"v")
}

async fn fill(store: &PostgresStore) {
    store.create_table(&table("t"), TableKind::Versioned, Bytes::new()).await.expect("can be created");
    store.create_table(&table("a"), TableKind::Atomic, Bytes::new()).await.expect("can be created");
    let cells = || (0..ROWS).flat_map(|row| (0..COLUMNS).map(move |column| cell(row, column)));
    let versions = |cell: Cell| {
        (1..=VERSIONS).map(move |ts| (cell.clone(), Value { ts: Timestamp::saturating(ts), bytes: value() }))
    };
    store.put_versions(&table("t"), cells().flat_map(versions).collect()).await.expect("can be put");
    let sets = cells().map(|cell| BatchOp::Set { table: table("a"), cell, value: value() });
    store.apply(AtomicBatch::new(sets.collect()), Durability::Synced).await.expect("can be applied");
}

type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Every kind of operation on a few cells in the middle of each table, with how many entries of a key it may look at
/// in one of its walks, taken over all times that it walks.
fn operations(store: &PostgresStore) -> Vec<(&'static str, u64, Work<'_>)> {
    let (t, a) = (table("t"), table("a"));
    let cells: Vec<_> = (30..33).map(|row| cell(row, 15)).collect();
    let bounds: Vec<_> = cells.iter().map(|cell| CellBound::new(cell.clone(), Timestamp::saturating(5))).collect();
    let rows = || RowRange::new("00030", "00033");
    let mut operations: Vec<(&'static str, u64, Work<'_>)> = Vec::new();
    let (table, asked) = (t.clone(), bounds.clone());
    operations.push(("get", 3, Box::pin(async move { drop(store.get(&table, &asked).await.expect("get")) })));
    let (table, asked) = (t.clone(), bounds);
    let listing = async move { drop(store.versions(&table, &asked).await.expect("versions")) };
    operations.push(("versions", 3 * 4, Box::pin(listing)));
    let (table, asked) = (a.clone(), cells.clone());
    let reading = async move { drop(store.get_atomic(&table, &asked).await.expect("get_atomic")) };
    operations.push(("get_atomic", 3, Box::pin(reading)));

    let name = Bytes::from_static(b"00015");
    let one = ColumnSelection::Range { start: name.clone(), end: Some("00016".into()) };
    let columns = [
        // Entries, and where most are old versions the newest of each cell. The pages are small, so that it is not cheaper
        // to read the table.
        ("scan", THREE_ROWS, 3 * COLUMNS, ColumnSelection::All),
        // A row, the column in it, the next row.
        ("scan of exact columns", 4, 3, ColumnSelection::Exactly([name].into())),
        // A row, the place in it, the next row.
        ("scan of a range of columns", 9, 3, one),
    ];
    for (what, entries, found, columns) in columns {
        let scan = Scan::new(rows(), Timestamp::saturating(5)).columns(columns);
        for scan in [scan.clone(), scan.reversed()] {
            let table = t.clone();
            let work = async move {
                let items: Vec<_> = store.scan(&table, scan).try_collect().await.expect("scan");
                assert_eq!(items.len() as u64, found, "{what}");
            };
            operations.push((what, entries, Box::pin(work)));
        }
    }
    let (table, request) = (t.clone(), VersionScan::new(rows(), Timestamp::MAX));
    let work = async move { drop(store.scan_versions(&table, request).try_collect::<Vec<_>>().await.expect("scan")) };
    operations.push(("scan_versions", THREE_ROWS, Box::pin(work)));
    let (table, request) = (a.clone(), AtomicScan::new(rows()));
    let work = async move { drop(store.scan_atomic(&table, request).try_collect::<Vec<_>>().await.expect("scan")) };
    operations.push(("scan_atomic", 3 * COLUMNS, Box::pin(work)));

    // Several statements, one of new rows, one that finds rows in its way and is several again, one that looks.
    let batches =
        [("apply", 30), ("apply again", 31), ("apply as one", 32), ("apply once more", 32), ("apply, looking", 33)];
    for (what, ts) in batches {
        let (table, ts) = (t.clone(), Timestamp::saturating(ts));
        let put = |row| BatchOp::Put { table: table.clone(), cell: cell(row, 15), ts, value: value() };
        let guard = BatchGuard { table: a.clone(), cell: cell(7, 7), expected: value() };
        let batch = AtomicBatch::new(vec![put(30), put(31)]).guarded(Some(guard));
        let work = async move { store.apply(batch, Durability::Synced).await.expect("apply") };
        operations.push((what, 1, Box::pin(work)));
    }
    let (table, conflict) = (t.clone(), vec![(cell(30, 15), Value { ts: Timestamp::FIRST, bytes: Bytes::new() })]);
    let work = async move { drop(store.put_versions(&table, conflict).await.expect_err("another value stands there")) };
    operations.push(("conflicting put", 1, Box::pin(work)));
    for (old, new) in [(Some(value()), None), (None, Some(value())), (Some(value()), Some(Bytes::new()))] {
        let table = a.clone();
        let work = async move { drop(store.check_and_set(&table, &cell(30, 15), old, new).await.expect("cas")) };
        operations.push(("check_and_set", 1, Box::pin(work)));
    }
    let table = t.clone();
    let work = async move { store.add_sentinels(&table, &cells).await.expect("add_sentinels") };
    operations.push(("add_sentinels", 0, Box::pin(work)));
    let doomed = [CellTimestamps { cell: cell(30, 15), timestamps: vec![Timestamp::FIRST] }];
    let table = t.clone();
    let work = async move { store.delete_versions(&table, &doomed).await.expect("delete_versions") };
    operations.push(("delete_versions", 1, Box::pin(work)));
    let range = [CellVersionRange { cell: cell(31, 15), before: Timestamp::saturating(5), include_sentinel: true }];
    let table = t.clone();
    let work = async move { store.delete_version_ranges(&table, &range).await.expect("delete_version_ranges") };
    operations.push(("delete_version_ranges", 5, Box::pin(work)));
    let work = async move { store.delete_rows(&t, &rows()).await.expect("delete_rows") };
    operations.push(("delete_rows", THREE_ROWS + 5, Box::pin(work)));
    operations
}

/// The nodes of plans that look at one of our tables, each with the lines that describe it.
fn looks(log: &str, name: &str) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    let is_node = |line: &str| line.contains("(actual ") || line.contains("(never executed)");
    let mut looks = Vec::new();
    for (place, line) in lines.iter().enumerate() {
        if is_node(line) && line.contains(name) {
            let more = lines[place + 1..].iter().take_while(|line| line.starts_with(['\t', ' ']) && !is_node(line));
            looks.push(std::iter::once(line).chain(more).map(|line| line.trim()).collect::<Vec<_>>().join("\n"));
        }
    }
    looks
}

/// Entries that a node gave in all its loops, and those that it looked at in vain.
fn entries(look: &str) -> f64 {
    let number = |text: &str, behind: &str| -> Option<f64> {
        let rest = text.split_once(behind)?.1;
        rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.parse().ok()
    };
    let actual = look.split_once("(actual ").map_or("", |(_, rest)| rest);
    let given = number(actual, "rows=").unwrap_or(0.0) + number(look, "Rows Removed by Filter: ").unwrap_or(0.0);
    given * number(actual, "loops=").unwrap_or(1.0)
}

/// A server that tells how it runs each statement.
fn explaining() -> OwnServer {
    OwnServer::new(&[
        "session_preload_libraries = auto_explain",
        "auto_explain.log_min_duration = 0",
        "auto_explain.log_analyze = on",
        "auto_explain.log_timing = off",
        "auto_explain.log_level = log",
    ])
}

/// No sort, and of a large table no more than a page; where cells have many long versions, not all of them are sent.
#[tokio::test(flavor = "multi_thread")]
async fn pages_at_once_are_walks_that_end() {
    let server = explaining();
    let store = PostgresStore::connect(server.config("n")).await.expect("the server is there");
    let many = table("many");
    for table in [&many, &table("long")] {
        store.create_table(table, TableKind::Versioned, Bytes::new()).await.expect("can be created");
    }
    let cells = (0..500).map(|row| (cell(row, 0), Value { ts: Timestamp::FIRST, bytes: value() }));
    store.put_versions(&many, cells.collect()).await.expect("can be put");
    let long = Bytes::from(vec![b'v'; 100 << 10]);
    for row in 0..10 {
        let of_one = |ts| (cell(row, 0), Value { ts: Timestamp::saturating(ts), bytes: long.clone() });
        store.put_versions(&table("long"), (1..=30).map(of_one).collect()).await.expect("can be put");
    }
    let mut before = server.log().len();
    let mut told = || {
        let log = server.log().split_off(before);
        before += log.len();
        log
    };
    let request = Scan { page_size: 16, ..Scan::new(RowRange::all(), Timestamp::MAX) };
    for request in [request.clone(), request.clone().reversed()] {
        let mut pages = store.scan_pages(&many, request);
        assert_eq!(pages.try_next().await.expect("a page").map(|page| page.len()), Some(16));
        let log = told();
        let looks = looks(&log, "v_many");
        assert_eq!(looks.len(), 1, "one walk: {log}");
        assert!(looks[0].contains("using kv_many") && entries(&looks[0]) <= 17.0, "no more than the page: {log}");
        assert!(log.contains("WindowAgg") && !log.contains("Sort"), "in the order of the key: {log}");
    }
    let request = Scan::new(RowRange::all(), Timestamp::MAX);
    let items: Vec<_> = store.scan(&table("long"), request).try_collect().await.expect("scan");
    assert_eq!(items.len(), 10);
    let at_once = told().matches("Query Text: SELECT r, c, CASE").count();
    assert!(at_once <= 2, "{at_once} pages of versions of which hardly one is shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_walk_the_primary_key_and_look_at_nothing_else() {
    let server = explaining();
    let store = PostgresStore::connect(server.config("n")).await.expect("the server is there");
    fill(&store).await;
    let mut before = server.log().len();
    for (what, entries_max, work) in operations(&store) {
        work.await;
        // Sessions say what they did before they answer.
        let log = server.log().split_off(before);
        before += log.len();
        let mut walks = 0;
        for look in looks(&log, "v_t").into_iter().chain(looks(&log, "a_a")) {
            let write = ["Insert on", "Update on", "Delete on"].iter().any(|write| look.contains(write));
            // Rows to delete were found by a walk before, and are then named by their places.
            if write || look.contains("Tid Scan") {
                continue;
            }
            assert!(look.contains("using kv_t") || look.contains("using ka_a"), "{what}: not along the key: {look}");
            assert!(look.contains("Index Cond: "), "{what}: the whole key: {look}");
            let entries = entries(&look);
            assert!(entries <= entries_max as f64, "{what}: {entries} entries, more than was asked for: {look}");
            walks += 1;
        }
        assert!(walks > 0 || entries_max == 0, "{what}: no walk in:\n{log}");
    }
}
