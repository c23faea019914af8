//! What a call costs on this machine: `cargo test --test measure -- --ignored --nocapture`.

mod common;

use atlas_kvs::{
    AtomicBatch, BatchOp, Cell, CellBound, Durability, KeyValueService, RowRange, Scan, TableRef, Timestamp,
};
use bytes::Bytes;
use common::{open, ts, versioned};
use futures::StreamExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

const WRITES: u64 = 400;

fn report(what: &str, calls: u64, took: Duration) {
    println!("{what:<58} {:>9.1} us", took.as_secs_f64() * 1e6 / calls as f64);
}

fn batch(table: &TableRef, n: u64) -> AtomicBatch {
    let put = |i: u64| BatchOp::Put {
        table: table.clone(),
        cell: Cell::copy_from((n * 10 + i).to_be_bytes(), "column"),
        ts: ts(n + 1),
        value: Bytes::from_static(&[7; 100]),
    };
    AtomicBatch { ops: (0..10).map(put).collect() }
}

/// One caller at a time, synced: on the thread itself, through the pool of blocking threads, through a thread of its
/// own. The difference is what the way there and back costs.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn ways_to_a_synced_write() {
    for sync in [true, false] {
        let dir = tempfile::tempdir().expect("a directory");
        let rocks = Arc::new(rocksdb::DB::open_default(dir.path()).expect("RocksDB opens"));
        let write = move |rocks: &rocksdb::DB, n: u64| {
            let mut options = rocksdb::WriteOptions::default();
            options.set_sync(sync);
            rocks.put_opt(n.to_be_bytes(), [7; 1000], &options).expect("a write");
        };
        for round in 0..2 {
            let start = Instant::now();
            (0..WRITES).for_each(|n| write(&rocks, n));
            report(&format!("round {round}, sync {sync}: same thread"), WRITES, start.elapsed());

            let start = Instant::now();
            for n in 0..WRITES {
                let rocks = rocks.clone();
                tokio::task::spawn_blocking(move || write(&rocks, n)).await.expect("no panic");
            }
            report(&format!("round {round}, sync {sync}: spawn_blocking"), WRITES, start.elapsed());

            let (send, receive) = std::sync::mpsc::channel::<(u64, tokio::sync::oneshot::Sender<()>)>();
            let writer = std::thread::spawn({
                let rocks = rocks.clone();
                move || {
                    for (n, done) in receive {
                        write(&rocks, n);
                        done.send(()).expect("the caller waits");
                    }
                }
            });
            let start = Instant::now();
            for n in 0..WRITES {
                let (done, wait) = tokio::sync::oneshot::channel();
                send.send((n, done)).expect("the writer runs");
                wait.await.expect("the writer answers");
            }
            report(&format!("round {round}, sync {sync}: a thread of its own"), WRITES, start.elapsed());
            drop(send);
            writer.join().expect("no panic");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn calls_of_the_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(open(dir.path()).await);
    let data = versioned(&store, "data").await;
    let start = Instant::now();
    for n in 0..WRITES {
        store.apply(batch(&data, n), Durability::Synced).await.expect("a batch");
    }
    report("apply, 10 cells, synced, one caller", WRITES, start.elapsed());
    let start = Instant::now();
    for n in WRITES..WRITES * 10 {
        store.apply(batch(&data, n), Durability::Relaxed).await.expect("a batch");
    }
    report("apply, 10 cells, relaxed, one caller", WRITES * 9, start.elapsed());
    let start = Instant::now();
    let callers = (0..16).map(|caller| {
        let (store, data) = (store.clone(), data.clone());
        tokio::spawn(async move {
            for n in 0..WRITES / 4 {
                store.apply(batch(&data, 100_000 + caller * 1000 + n), Durability::Synced).await.expect("a batch");
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("no panic");
    }
    report("apply, 10 cells, synced, 16 callers, per batch", WRITES * 4, start.elapsed());

    let bound = |n: u64| CellBound::new(Cell::copy_from(n.to_be_bytes(), "column"), Timestamp::MAX);
    for cells in [1, 10, 100] {
        let start = Instant::now();
        for n in 0..2000 {
            let bounds: Vec<_> = (0..cells).map(|i| bound((n * 37 + i * 7) % (WRITES * 100))).collect();
            store.get(&data, &bounds).await.expect("a read");
        }
        report(&format!("get of {cells} from memtables"), 2000, start.elapsed());
    }
    println!("{:?}", store.read_statistics());
    for (rows, name) in [(RowRange::single(37u64.to_be_bytes().to_vec()), "one row"), (RowRange::all(), "all rows")] {
        for reverse in [false, true] {
            let (mut items, start) = (0, Instant::now());
            for _ in 0..20 {
                let scan = Scan { reverse, ..Scan::new(rows.clone(), Timestamp::MAX) };
                items += store.scan(&data, scan).count().await as u64;
            }
            report(&format!("scan of {name}, reverse {reverse}, per call of {}", items / 20), 20, start.elapsed());
        }
    }
    for name in ["empty-1", "empty-2"] {
        let empty = versioned(&store, name).await;
        println!("size of an empty table: {:?}", store.table_size(&empty).await.expect("a size"));
    }
}
