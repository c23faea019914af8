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

const ROWS: u64 = 300;
const VERSIONS: u64 = 20;

fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

fn cell(row: u64) -> Cell {
    Cell::copy_from(format!("{row:05}"), "c")
}

fn value() -> Bytes {
    Bytes::from_static(b"v")
}

async fn fill(store: &PostgresStore) {
    store.create_table(&table("t"), TableKind::Versioned, Bytes::new()).await.expect("can be created");
    store.create_table(&table("a"), TableKind::Atomic, Bytes::new()).await.expect("can be created");
    let version = |row, ts| (cell(row), Value { ts: Timestamp::saturating(ts), bytes: value() });
    let versions = (0..ROWS).flat_map(|row| (1..=VERSIONS).map(move |ts| version(row, ts))).collect();
    store.put_versions(&table("t"), versions).await.expect("can be put");
    let sets = (0..ROWS).map(|row| BatchOp::Set { table: table("a"), cell: cell(row), value: value() });
    store.apply(AtomicBatch::new(sets.collect()), Durability::Synced).await.expect("can be applied");
}

/// Every kind of operation, on a few cells in the middle of each table.
async fn work(store: &PostgresStore) {
    let (t, a) = (table("t"), table("a"));
    let bounds: Vec<_> = (100..103).map(|row| CellBound::new(cell(row), Timestamp::saturating(10))).collect();
    let cells: Vec<_> = (100..103).map(cell).collect();
    let rows = || RowRange::new("00100", "00103");
    store.get(&t, &bounds).await.expect("get");
    store.versions(&t, &bounds).await.expect("versions");
    store.get_atomic(&a, &cells).await.expect("get_atomic");
    let columns = [
        ColumnSelection::All,
        ColumnSelection::Exactly([Bytes::from_static(b"c")].into()),
        ColumnSelection::Range { start: Bytes::from_static(b"b"), end: None },
    ];
    for columns in columns {
        // Entries that give so few cells that the next page steps.
        let scan = Scan { page_size: 20, ..Scan::new(rows(), Timestamp::saturating(10)) }.columns(columns);
        for scan in [scan.clone(), scan.reversed()] {
            assert_eq!(store.scan(&t, scan).try_collect::<Vec<_>>().await.expect("scan").len(), 3);
        }
    }
    let request = VersionScan { page_size: 20, ..VersionScan::new(rows(), Timestamp::MAX) };
    assert_eq!(store.scan_versions(&t, request).try_collect::<Vec<_>>().await.expect("scan_versions").len(), 3);
    let request = AtomicScan::new(rows());
    assert_eq!(store.scan_atomic(&a, request).try_collect::<Vec<_>>().await.expect("scan_atomic").len(), 3);

    let put =
        |row, ts| BatchOp::Put { table: t.clone(), cell: cell(row), ts: Timestamp::saturating(ts), value: value() };
    let guard = BatchGuard { table: a.clone(), cell: cell(7), expected: value() };
    let batch = AtomicBatch::new(vec![put(100, 30), put(101, 30)]).guarded(Some(guard));
    store.apply(batch, Durability::Synced).await.expect("apply");
    let conflict = vec![(cell(100), Value { ts: Timestamp::FIRST, bytes: Bytes::new() })];
    store.put_versions(&t, conflict).await.expect_err("another value stands there");
    for (old, new) in [(Some(value()), None), (None, Some(value())), (Some(value()), Some(Bytes::new()))] {
        store.check_and_set(&a, &cell(100), old, new).await.expect("check_and_set");
    }
    store.add_sentinels(&t, &cells).await.expect("add_sentinels");
    let timestamps = vec![Timestamp::FIRST];
    let doomed = [CellTimestamps { cell: cell(100), timestamps }];
    store.delete_versions(&t, &doomed).await.expect("delete_versions");
    let range = CellVersionRange { cell: cell(101), before: Timestamp::saturating(5), include_sentinel: true };
    store.delete_version_ranges(&t, &[range]).await.expect("delete_version_ranges");
    store.delete_rows(&t, &rows()).await.expect("delete_rows");
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

/// Rows that a node gave in all its loops, and those that it looked at in vain.
fn rows(look: &str) -> f64 {
    let number = |text: &str, behind: &str| -> Option<f64> {
        let rest = text.split_once(behind)?.1;
        rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.parse().ok()
    };
    let actual = look.split_once("(actual ").map_or("", |(_, rest)| rest);
    let given = number(actual, "rows=").unwrap_or(0.0) + number(look, "Rows Removed by Filter: ").unwrap_or(0.0);
    given * number(actual, "loops=").unwrap_or(1.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_walk_the_primary_key_and_look_at_nothing_else() {
    let explain = [
        "session_preload_libraries = auto_explain",
        "auto_explain.log_min_duration = 0",
        "auto_explain.log_analyze = on",
        "auto_explain.log_timing = off",
        "auto_explain.log_level = log",
    ];
    let server = OwnServer::new(&explain);
    let store = PostgresStore::connect(server.config("n")).await.expect("the server is there");
    fill(&store).await;
    let before = server.log().len();
    work(&store).await;
    // Sessions say what they did before they answer.
    let log = server.log().split_off(before);
    let mut walks = 0;
    for name in ["v_t", "a_a"] {
        for look in looks(&log, name) {
            if look.contains("Insert on") || look.contains("Update on") || look.contains("Delete on") {
                continue;
            }
            // Rows to delete were found by a walk before, and are then named by their places.
            if look.contains("Tid Scan") {
                continue;
            }
            assert!(look.contains(&format!("using k{name}")), "not along the key: {look}");
            assert!(look.contains("Index Cond: "), "the whole key: {look}");
            // Sixty rows of the table are in the ranges; a page of steps looks at two places for each.
            assert!(rows(&look) <= 3.0 * VERSIONS as f64 + 12.0, "more than was asked for: {look}");
            walks += 1;
        }
    }
    assert!(walks >= 30, "only {walks} walks in:\n{log}");
}
