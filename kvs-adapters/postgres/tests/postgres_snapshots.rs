//! Snapshots as streams: everything comes back, all parts show one moment, and nothing else is taken for a part.

mod common;

use atlas_kvs::{
    AtomicScan, Cell, CellBound, KeyValueService, KvsError, ResultStream, RowRange, TableKind, TableRef, Timestamp,
    Value, VersionScan,
};
use atlas_kvs_postgres::{PostgresConfig, PostgresStore};
use bytes::Bytes;
use common::{Namespace, client};
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

fn ts(number: u64) -> Timestamp {
    Timestamp::new(number).expect("a small number")
}

fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("a name")
}

/// Everything there is: of each table its kind and metadata, and every version or value.
type Dump = BTreeMap<String, (TableKind, Bytes, Vec<(Cell, u64, Bytes)>)>;

async fn dump(store: &PostgresStore) -> Dump {
    let mut dump = Dump::new();
    for found in store.tables().await.expect("they are listed") {
        let mut content = Vec::new();
        match found.kind {
            TableKind::Versioned => {
                let mut cells = store.scan_versions(&found.table, VersionScan::new(RowRange::all(), Timestamp::MAX));
                while let Some(cell) = cells.try_next().await.expect("it is read") {
                    for version in cell.versions {
                        let bound = CellBound::new(cell.cell.clone(), version.ts.next());
                        let value = store.get(&found.table, &[bound]).await.expect("it is read").remove(0);
                        content.push((cell.cell.clone(), version.ts.get(), value.expect("it is there").bytes));
                    }
                }
            }
            TableKind::Atomic => {
                let mut cells = store.scan_atomic(&found.table, AtomicScan::new(RowRange::all()));
                while let Some((cell, value)) = cells.try_next().await.expect("it is read") {
                    content.push((cell, 0, value));
                }
            }
        }
        dump.insert(found.table.name().to_owned(), (found.kind, found.metadata, content));
    }
    dump
}

async fn fill(store: &PostgresStore) {
    for (name, kind, metadata) in [
        ("accounts", TableKind::Versioned, &b"{\"a\": 1}"[..]),
        ("Accounts.by-name", TableKind::Versioned, b"\x00\xff"),
        ("empty", TableKind::Versioned, b""),
        ("_transactions", TableKind::Atomic, b"x"),
        ("large", TableKind::Versioned, b""),
    ] {
        store.create_table(&table(name), kind, Bytes::copy_from_slice(metadata)).await.expect("it is made");
    }
    for name in ["accounts", "Accounts.by-name"] {
        let versions = (0..500u64).flat_map(|row| {
            let cell = Cell::copy_from([0, row as u8, 0xff, (row >> 8) as u8], if row % 3 == 0 { "" } else { "c" });
            (1..4).map(move |version| {
                let bytes = Bytes::from(vec![row as u8; (row * version % 50) as usize]);
                (cell.clone(), Value { ts: ts(version * 10), bytes })
            })
        });
        store.put_versions(&table(name), versions.collect()).await.expect("they are written");
        store.add_sentinels(&table(name), &[Cell::copy_from("s", "t")]).await.expect("they are written");
    }
    for row in 0..50u8 {
        let (table, cell) = (table("_transactions"), Cell::copy_from([row], ""));
        store.put_unless_exists(&table, &cell, Bytes::from(vec![row])).await.expect("it is written");
    }
    for row in 0..20u8 {
        let value = Bytes::from(vec![row; 200_000]);
        store.put(vec![(table("large"), vec![(Cell::copy_from([row], "c"), value)])], ts(5)).await.expect("written");
    }
}

async fn take(store: &PostgresStore) -> Vec<(String, Bytes)> {
    let snapshot = store.stream_snapshot().expect("it has some").begin().await.expect("it begins");
    let mut taken = Vec::new();
    for (place, part) in snapshot.parts().iter().enumerate() {
        assert!(atlas_kvs::is_part_name(&part.name), "{}", part.name);
        let content: Vec<Bytes> = snapshot.read(place).try_collect().await.expect("it is read");
        taken.push((part.name.clone(), content.concat().into()));
    }
    snapshot.finish().await.expect("it lasted");
    taken
}

fn streamed(content: &Bytes, chunk: usize) -> ResultStream<Bytes> {
    let chunks: Vec<_> = content.chunks(chunk).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    futures::stream::iter(chunks).boxed()
}

async fn load(store: &PostgresStore, parts: &[(String, Bytes)], chunk: usize) {
    let snapshots = store.stream_snapshot().expect("it has some");
    let (first, others) = parts.split_first().expect("there is the catalog");
    snapshots.load(&first.0, streamed(&first.1, chunk)).await.expect("it is loaded");
    let others = others.iter().map(|(name, content)| snapshots.load(name, streamed(content, chunk)));
    futures::future::try_join_all(others).await.expect("they are loaded");
    snapshots.finish_load().await.expect("it is finished");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_however_it_is_cut() {
    // Parts of a size, and sizes of chunks.
    for (part_bytes, chunk) in [(256 << 20, 70_000), (100_000, 1_000_000), (1, 999)] {
        let (from, into) = (Namespace::new(), Namespace::new());
        let config = PostgresConfig { snapshot_part_bytes: part_bytes, ..from.config.clone() };
        let store = PostgresStore::connect(config).await.expect("it connects");
        fill(&store).await;
        let parts = take(&store).await;
        assert_eq!(parts.len() == 6, part_bytes == 256 << 20, "{} parts", parts.len());
        let target = into.open().await;
        load(&target, &parts, chunk).await;
        assert_eq!(dump(&target).await, dump(&store).await);
        // It is a store like any other.
        target
            .put(vec![(table("empty"), vec![(Cell::copy_from("r", "c"), "v".into())])], ts(9))
            .await
            .expect("written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_there_stay_and_get_the_metadata_of_the_snapshot() {
    let (from, into) = (Namespace::new(), Namespace::new());
    let store = from.open().await;
    fill(&store).await;
    let target = into.open().await;
    let kept = Cell::copy_from("kept", "c");
    target.create_table(&table("_transactions"), TableKind::Atomic, Bytes::from_static(b"other")).await.expect("made");
    target.put_unless_exists(&table("_transactions"), &kept, "mine".into()).await.expect("it is written");
    load(&target, &take(&store).await, 10_000).await;
    let mut expected = dump(&store).await;
    expected.get_mut("_transactions").expect("it is there").2.push((kept, 0, "mine".into()));
    assert_eq!(dump(&target).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_parts_show_one_moment_while_writers_go_on() {
    let from = Namespace::new();
    let config = PostgresConfig { snapshot_part_bytes: 20_000, ..from.config.clone() };
    let store = Arc::new(PostgresStore::connect(config).await.expect("it connects"));
    let tables = ["a", "b", "c"].map(table);
    for table in &tables {
        store.create_table(table, TableKind::Versioned, Bytes::new()).await.expect("it is made");
    }
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = tokio::spawn({
        let (store, stop, written, tables) =
            (Arc::clone(&store), Arc::clone(&stop), Arc::clone(&written), tables.clone());
        async move {
            let mut number = 0u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                // One put is one transaction: in all tables or in none.
                let cell = Cell::copy_from(number.to_be_bytes(), "c");
                let puts = tables.iter().map(|table| (table.clone(), vec![(cell.clone(), vec![7; 200].into())]));
                store.put(puts.collect(), ts(number)).await.expect("it is written");
                written.store(number, Ordering::SeqCst);
            }
        }
    });
    while written.load(Ordering::SeqCst) < 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = written.load(Ordering::SeqCst);
    let snapshot = store.stream_snapshot().expect("it has some").begin().await.expect("it begins");
    let begun = written.load(Ordering::SeqCst);
    // The rest is read long after.
    while written.load(Ordering::SeqCst) < begun + 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let reads = (0..snapshot.parts().len()).map(|place| snapshot.read(place).try_collect::<Vec<Bytes>>());
    let read = futures::future::try_join_all(reads).await.expect("they are read, several at once");
    stop.store(true, Ordering::Relaxed);
    let names: Vec<_> = snapshot.parts().iter().map(|part| part.name.clone()).collect();
    assert!(names.len() > 4, "the tables are cut: {names:?}");
    snapshot.finish().await.expect("it lasted");
    writer.await.expect("it writes");

    let into = Namespace::new();
    let target = into.open().await;
    let parts: Vec<_> = names.into_iter().zip(read.into_iter().map(|chunks| Bytes::from(chunks.concat()))).collect();
    load(&target, &parts, 50_000).await;
    let dump = dump(&target).await;
    let rows: Vec<usize> = dump.values().map(|(_, _, content)| content.len()).collect();
    assert!(rows.iter().all(|count| *count == rows[0]), "{rows:?}");
    // What had returned is in it, of what was under way any; nothing of what began later.
    assert!(rows[0] as u64 >= before && rows[0] as u64 <= begun + 1, "{} not within {before} and {begun}", rows[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_are_damage_and_load_nothing_that_looks_whole() {
    let (from, into) = (Namespace::new(), Namespace::new());
    let store = from.open().await;
    fill(&store).await;
    let parts = take(&store).await;
    let target = into.open().await;
    let snapshots = target.stream_snapshot().expect("it has some");
    snapshots.load(&parts[0].0, streamed(&parts[0].1, 1000)).await.expect("it is loaded");
    let data = parts.iter().find(|(_, content)| content.len() > 20_000 && content.len() < 200_000);
    let data = &data.expect("there are rows").1;
    let changed = |at: usize, byte: u8| {
        let mut bytes = data.to_vec();
        bytes[at] ^= byte;
        Bytes::from(bytes)
    };
    for (what, content) in [
        ("nothing", Bytes::new()),
        ("no part", Bytes::from_static(b"ATLASPGX and more")),
        ("a preamble only", data.slice(..8)),
        ("half a name", data.slice(..15)),
        ("a kind", changed(8, 1)),
        ("a long name", changed(9, 1)),
        ("no rows", data.slice(..30)),
        ("cut off", data.slice(..data.len() - 8)),
        ("cut off elsewhere", data.slice(..data.len() / 2)),
        ("something behind it", [&data[..], b"x"].concat().into()),
        ("the signature of the rows", changed(30, 1)),
        ("the number of columns", changed(49, 0xff)),
    ] {
        let error = snapshots.load("00001", streamed(&content, 5000)).await.expect_err(what);
        let told =
            matches!(error, KvsError::Corrupt { .. } | KvsError::NoSuchTable(_) | KvsError::InvalidTableName { .. });
        assert!(told, "{what}: {error:?}");
    }
    let broken = streamed(&data.slice(..10_000), 1000).chain(futures::stream::once(async {
        Err(KvsError::Unavailable { reason: "as wished".into(), source: None })
    }));
    let error = snapshots.load("00001", broken.boxed()).await.expect_err("it broke off");
    assert!(matches!(error, KvsError::Unavailable { .. }), "{error:?}");
    // Each is one transaction: nothing of them is there, and the right one still fits.
    assert!(dump(&target).await.values().all(|(_, _, content)| content.is_empty()));
    snapshots.load("00001", streamed(data, 5000)).await.expect("it is loaded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_dropped_leaves_no_transaction_behind() {
    let from = Namespace::new();
    let config = PostgresConfig { application_name: "dropped snapshots".to_owned(), ..from.config.clone() };
    let store = PostgresStore::connect(config).await.expect("it connects");
    fill(&store).await;
    let snapshot = store.stream_snapshot().expect("it has some").begin().await.expect("it begins");
    let large = snapshot.parts().len() - 1;
    let mut under_way = snapshot.read(large);
    under_way.try_next().await.expect("it is read").expect("there are rows");
    let late = snapshot.read(1);
    let watcher = client(&from.config).await;
    let count = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dropped snapshots' \
                   AND xact_start IS NOT NULL";
        watcher.query_one(sql, &[]).await.expect("it can be asked").get::<_, i64>(0)
    };
    assert_eq!(count().await, 2);
    drop(snapshot);
    drop(under_way);
    for _ in 0..600 {
        if count().await == 0 {
            let error = late.try_collect::<Vec<_>>().await.expect_err("the snapshot is gone");
            assert!(!matches!(error, KvsError::Corrupt { .. }), "{error}");
            store.truncate_table(&table("large")).await.expect("nothing is locked");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} transactions are left", count().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_pool_is_enough_and_one_connection_is_told_to_be_too_few() {
    let (from, into) = (Namespace::new(), Namespace::new());
    let small = |size| PostgresConfig { pool_size: size, pool_timeout: Duration::from_secs(5), ..from.config.clone() };
    let store = PostgresStore::connect(small(2)).await.expect("it connects");
    fill(&store).await;
    let snapshot = store.stream_snapshot().expect("it has some").begin().await.expect("it begins");
    let reads = (0..snapshot.parts().len()).map(|place| snapshot.read(place).try_collect::<Vec<Bytes>>());
    let read = futures::future::try_join_all(reads).await.expect("they wait for each other");
    let names: Vec<_> = snapshot.parts().iter().map(|part| part.name.clone()).collect();
    snapshot.finish().await.expect("it lasted");
    let parts: Vec<_> = names.into_iter().zip(read.into_iter().map(|chunks| Bytes::from(chunks.concat()))).collect();
    let target = PostgresConfig { pool_size: 1, ..into.config.clone() };
    let target = PostgresStore::connect(target).await.expect("it connects");
    load(&target, &parts, 10_000).await;
    assert_eq!(dump(&target).await, dump(&store).await);

    let one = PostgresStore::connect(small(1)).await.expect("it connects");
    let error = one.stream_snapshot().expect("it has some").begin().await.err().expect("it can't");
    assert!(error.to_string().contains("two connections"), "{error}");
}
