//! Figures, printed on request: `cargo test --release -p atlas-kvs-postgres --test measure -- --ignored --nocapture`.

mod common;

use atlas_kvs::{
    AtomicBatch, BatchOp, Cell, CellBound, CheckAndSet, Durability, KeyValueService, RowRange, Scan, TableKind,
    TableRef, Timestamp, Value, VersionScan,
};
use bytes::Bytes;
use common::Namespace;
use futures::TryStreamExt;
use std::sync::Arc;
use std::time::Instant;
use tokio::task::JoinSet;

const CELLS: usize = 100_000;

fn cell(number: usize) -> Cell {
    Cell::copy_from(format!("row{:06}", number / 4), format!("column{}", number % 4))
}

fn report(what: &str, count: usize, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    println!("{what:<50} {:>12.0} a second ({count} in {seconds:.2} s)", count as f64 / seconds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures and asserts nothing"]
async fn figures() {
    let namespace = Namespace::new();
    let store = Arc::new(namespace.open().await);
    let table = |name| TableRef::new(name).expect("the name is a table name");
    let (t, a) = (table("t"), table("a"));
    store.create_table(&t, TableKind::Versioned, Bytes::new()).await.expect("can be created");
    store.create_table(&a, TableKind::Atomic, Bytes::new()).await.expect("can be created");
    let value = Bytes::from(vec![7; 100]);

    let begun = Instant::now();
    for ts in 1..=2 {
        let cells = (0..CELLS).map(|number| (cell(number), value.clone())).collect();
        store.put(vec![(t.clone(), cells)], Timestamp::saturating(ts)).await.expect("can be put");
    }
    report("cells put, 100,000 a call", 2 * CELLS, begun);

    let begun = Instant::now();
    for start in (0..CELLS).step_by(100) {
        let asked: Vec<_> =
            (start..start + 100).map(|number| CellBound::new(cell(number * 7 % CELLS), Timestamp::MAX)).collect();
        assert!(store.get(&t, &asked).await.expect("can be read").iter().all(Option::is_some));
    }
    report("cells read, 100 a call, one caller", CELLS, begun);

    for (what, request) in [
        ("cells scanned, two versions each", Scan::new(RowRange::all(), Timestamp::MAX)),
        ("cells scanned backward", Scan::new(RowRange::all(), Timestamp::MAX).reversed()),
    ] {
        let begun = Instant::now();
        let count = store.scan(&t, request).try_fold(0, |count, _| async move { Ok(count + 1) }).await.expect("scan");
        report(what, count, begun);
    }
    let begun = Instant::now();
    let request = VersionScan::new(RowRange::all(), Timestamp::MAX);
    let count =
        store.scan_versions(&t, request).try_fold(0, |count, _| async move { Ok(count + 1) }).await.expect("scan");
    report("cells scanned with all versions", count, begun);

    let hot = |number: usize| Cell::copy_from(format!("zhot{number}"), "c");
    for number in 0..20 {
        let versions =
            (1..=20_000).map(|ts| (hot(number), Value { ts: Timestamp::saturating(ts), bytes: Bytes::new() }));
        store.put_versions(&t, versions.collect()).await.expect("can be put");
    }
    let begun = Instant::now();
    let request = Scan::new(RowRange::prefix("zhot"), Timestamp::MAX);
    let count = store.scan(&t, request).try_fold(0, |count, _| async move { Ok(count + 1) }).await.expect("scan");
    report("cells scanned, 20,000 versions each", count, begun);

    for callers in [1, 16, 64] {
        let begun = Instant::now();
        let mut running = JoinSet::new();
        for caller in 0..callers {
            let (store, t, a, value) = (Arc::clone(&store), t.clone(), a.clone(), value.clone());
            running.spawn(async move {
                for round in 0..2_000 / callers {
                    let cell =
                        |number: usize| Cell::copy_from(format!("b{callers}/{caller}/{round}"), number.to_string());
                    let put = |number| BatchOp::Put {
                        table: t.clone(),
                        cell: cell(number),
                        ts: Timestamp::FIRST,
                        value: value.clone(),
                    };
                    let set = BatchOp::Set { table: a.clone(), cell: cell(0), value: value.clone() };
                    let batch = AtomicBatch { ops: (0..4).map(put).chain([set]).collect() };
                    store.apply(batch, Durability::Synced).await.expect("can be applied");
                }
            });
        }
        running.join_all().await;
        report(&format!("batches of five writes, {callers} callers"), 2_000 / callers * callers, begun);
    }
    let begun = Instant::now();
    for number in 0..2_000 {
        let set = store.check_and_set(&a, &Cell::copy_from("cas", number.to_string()), None, Some(value.clone())).await;
        assert_eq!(set.expect("can be set"), CheckAndSet::Applied);
    }
    report("compare-and-set, one caller", 2_000, begun);

    let begun = Instant::now();
    store.delete_rows(&t, &RowRange::all()).await.expect("can be deleted");
    report("versions deleted by a range of rows", 2 * CELLS + 400_000, begun);
}
