//! Snapshots: one moment, whatever happens meanwhile, and the same in another place.

mod common;

use atlas_kvs::{
    AtomicBatch, AtomicScan, BatchOp, Cell, Durability, KeyValueService, KvsError, OpenSnapshot, Result, ResultStream,
    RowRange, StreamSnapshot, TableKind, TableRef, Timestamp, Value, VersionScan, is_part_name,
};
use atlas_kvs_postgres::{PostgresConfig, PostgresStore};
use bytes::Bytes;
use common::server::OwnServer;
use common::{Namespace, client};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

fn streams(store: &PostgresStore) -> &dyn StreamSnapshot {
    store.stream_snapshot().expect("a server has it")
}

/// Parts with their content, read at once.
type Copy = Vec<(String, Vec<Bytes>)>;

async fn read(snapshot: &dyn OpenSnapshot) -> Result<Copy> {
    let parts = snapshot.parts().iter().enumerate().map(|(place, part)| {
        let content = snapshot.read(place);
        async move { Ok((part.name.clone(), content.try_collect().await?)) }
    });
    try_join_all(parts).await
}

async fn copy_of(store: &PostgresStore) -> Copy {
    let snapshot = streams(store).begin().await.expect("a snapshot can be begun");
    let copy = read(&*snapshot).await.expect("it can be read");
    snapshot.finish().await.expect("it was one moment");
    copy
}

fn content(chunks: &[Bytes]) -> ResultStream<Bytes> {
    stream::iter(chunks.iter().cloned().map(Ok).collect::<Vec<_>>()).boxed()
}

/// Loads the first part alone and the others at once, cut at places that the copy was not cut at.
async fn load(store: &PostgresStore, copy: &Copy) -> Result<()> {
    let snapshot = streams(store);
    let (first, others) = copy.split_first().expect("a snapshot has a part");
    let again =
        |chunks: &[Bytes]| -> Vec<Bytes> { chunks.concat().chunks(70_001).map(Bytes::copy_from_slice).collect() };
    snapshot.load(&first.0, content(&again(&first.1))).await?;
    try_join_all(others.iter().map(|(name, chunks)| snapshot.load(name, content(&again(chunks))))).await?;
    snapshot.finish_load().await
}

/// Everything in a store, values included, as text.
async fn everything(store: &PostgresStore) -> Vec<String> {
    let mut all = Vec::new();
    for description in store.tables().await.expect("tables can be listed") {
        let (name, table) = (description.table.name().to_owned(), &description.table);
        all.push(format!("{name} {:?} {:?}", description.kind, description.metadata));
        if description.kind == TableKind::Atomic {
            let items = store.scan_atomic(table, AtomicScan::new(RowRange::all()));
            let items: Vec<_> = items.try_collect().await.expect("can be scanned");
            all.extend(items.into_iter().map(|(cell, value)| format!("{name} {cell} {value:?}")));
            continue;
        }
        let items = store.scan_versions(table, VersionScan::new(RowRange::all(), Timestamp::MAX));
        let items: Vec<_> = items.try_collect().await.expect("can be scanned");
        for item in items {
            for version in item.versions {
                let bound = atlas_kvs::CellBound::new(item.cell.clone(), version.ts.next());
                let value = store.get(table, &[bound]).await.expect("can be read").remove(0).expect("it was listed");
                assert_eq!(value.ts, version.ts);
                let hash = value
                    .bytes
                    .iter()
                    .fold(value.bytes.len() as u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(*byte)));
                all.push(format!("{name} {} {} {hash}", item.cell, version.ts));
            }
        }
    }
    all
}

async fn fill(store: &PostgresStore) {
    for (name, kind, metadata) in [
        ("accounts", TableKind::Versioned, "m"),
        ("Accounts.by-name", TableKind::Versioned, "\0"),
        ("empty", TableKind::Versioned, ""),
        ("locks", TableKind::Atomic, "m2"),
    ] {
        store.create_table(&table(name), kind, Bytes::from(metadata)).await.expect("can be created");
    }
    let version = |row: &[u8], ts: u64, value: Vec<u8>| {
        (Cell::copy_from(row, b"\0c"), Value { ts: Timestamp::saturating(ts), bytes: Bytes::from(value) })
    };
    let versions = vec![
        version(b"", 1, vec![]),
        version(b"\0\xff", 2, b"v\0".to_vec()),
        version(b"a", 3, vec![7; 1 << 20]),
        version(b"a", 4, b"PGCOPY".to_vec()),
        version(b"a", Timestamp::MAX.previous().get(), b"last".to_vec()),
    ];
    store.put_versions(&table("accounts"), versions).await.expect("can be put");
    store.add_sentinels(&table("accounts"), &[Cell::copy_from("a", "s")]).await.expect("can be added");
    store.put_versions(&table("Accounts.by-name"), vec![version(b"r", 1, b"v".to_vec())]).await.expect("can be put");
    let set = |row: &str, value: &'static [u8]| BatchOp::Set {
        table: table("locks"),
        cell: Cell::copy_from(row, ""),
        value: Bytes::from_static(value),
    };
    let batch = AtomicBatch::new(vec![set("1", b""), set("2", b"x\0")]);
    store.apply(batch, Durability::Synced).await.expect("can be applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_is_the_same_in_another_namespace_and_on_another_server() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    fill(&store).await;
    let expected = everything(&store).await;
    assert!(streams(&store).estimated_bytes().await.expect("can be told") > 1 << 20);
    let copy = copy_of(&store).await;
    assert_eq!(copy[0].0, "tables");
    assert!(
        copy.iter().all(|(name, _)| is_part_name(name)),
        "{:?}",
        copy.iter().map(|part| &part.0).collect::<Vec<_>>()
    );

    let (elsewhere, server) = (Namespace::new(), OwnServer::new(&[]));
    for other in [elsewhere.open().await, server.namespace("some other name").open().await] {
        load(&other, &copy).await.expect("the store is empty");
        assert_eq!(everything(&other).await, expected);
        streams(&other).finish_load().await.expect("it may be repeated");
        // It is a store like any other.
        let put = vec![(Cell::copy_from("new", ""), Bytes::from_static(b"v"))];
        other.put(vec![(table("accounts"), put)], Timestamp::saturating(9)).await.expect("can be put");
        let conflict = vec![(Cell::copy_from("a", b"\0c"), Bytes::from_static(b"other"))];
        let refused = other.put(vec![(table("accounts"), conflict)], Timestamp::saturating(4)).await;
        assert!(matches!(refused, Err(KvsError::ConflictingValue { .. })), "{refused:?}");
        let again = load(&other, &copy).await.expect_err("it is not empty any more");
        assert!(matches!(&again, KvsError::Backend { reason, .. } if reason.contains("not empty")), "{again:?}");
    }
    assert_eq!(everything(&store).await, expected, "the original is as it was");
}

/// Transfers go on while parts are read one after the other: no copy shows half of one.
#[tokio::test(flavor = "multi_thread")]
async fn all_parts_show_one_moment() {
    let namespace = Namespace::new();
    let store = Arc::new(namespace.open().await);
    for name in ["t", "u"] {
        store.create_table(&table(name), TableKind::Versioned, Bytes::new()).await.expect("can be created");
    }
    let number = Arc::new(AtomicU64::new(0));
    let (writer, written) = (Arc::clone(&store), Arc::clone(&number));
    let writing = tokio::spawn(async move {
        for ts in 1.. {
            let cells = || vec![(Cell::copy_from(format!("{ts:06}"), ""), Bytes::from(vec![1; 100]))];
            let puts = vec![(table("t"), cells()), (table("u"), cells())];
            writer.put(puts, Timestamp::saturating(ts)).await.expect("writers go on");
            written.store(ts, Ordering::SeqCst);
        }
    });
    let mut last = 0;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let before = number.load(Ordering::SeqCst);
        let snapshot = streams(&store).begin().await.expect("a snapshot can be begun");
        let after = number.load(Ordering::SeqCst) + 1;
        let mut copy = Copy::new();
        for (place, part) in snapshot.parts().iter().enumerate() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            copy.push((part.name.clone(), snapshot.read(place).try_collect().await.expect("can be read")));
        }
        snapshot.finish().await.expect("it was one moment");
        let other = Namespace::new();
        let loaded = other.open().await;
        load(&loaded, &copy).await.expect("the store is empty");
        let mut seen = Vec::new();
        for name in ["t", "u"] {
            let scan = VersionScan::new(RowRange::all(), Timestamp::MAX);
            let items: Vec<_> = loaded.scan_versions(&table(name), scan).try_collect().await.expect("can be scanned");
            seen.push(items.len() as u64);
        }
        assert_eq!(seen[0], seen[1], "a put is whole or not there");
        assert!((before..=after).contains(&seen[0]), "{} is not between {before} and {after}", seen[0]);
        assert!(seen[0] >= last);
        last = seen[0];
    }
    writing.abort();
    assert!(last > 0, "something was written");
}

/// A table of so many bytes that it comes in several parts, which are read and loaded at once.
#[tokio::test(flavor = "multi_thread")]
async fn large_table_comes_in_parts_that_are_complete() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let t = table("t");
    store.create_table(&t, TableKind::Versioned, Bytes::new()).await.expect("can be created");
    for batch in 0..20_u64 {
        // Small ones, which lie in the table itself, and large ones, which lie beside it.
        let small = (0..500).map(|n| (Cell::copy_from(format!("{batch:02}{n:03}"), ""), Bytes::from(vec![1; 1_500])));
        let large = (0..14).map(|n| (Cell::copy_from(format!("{batch:02}x{n}"), ""), Bytes::from(vec![2; 1 << 19])));
        let cells = small.chain(large).collect();
        store.put(vec![(t.clone(), cells)], Timestamp::FIRST).await.expect("can be put");
    }
    let snapshot = streams(&store).begin().await.expect("a snapshot can be begun");
    // Added behind the last block, and removed from the first.
    let late = vec![(Cell::copy_from("late", ""), Bytes::from(vec![3; 5_000]))];
    store.put(vec![(t.clone(), late)], Timestamp::FIRST).await.expect("can be put");
    store.delete_rows(&t, &RowRange::new("00000", "00400")).await.expect("can be deleted");
    let version =
        client(&namespace.config).await.query_one("SHOW server_version_num", &[]).await.expect("can be asked");
    let ranges = version.get::<_, &str>(0).parse::<u32>().expect("it is a number") >= 14_00_00;
    assert_eq!(snapshot.parts().len() > 2, ranges, "{:?}", snapshot.parts());
    let copy = read(&*snapshot).await.expect("it can be read");
    snapshot.finish().await.expect("it was one moment");
    let other = Namespace::new();
    let loaded = other.open().await;
    load(&loaded, &copy).await.expect("the store is empty");
    let scan = VersionScan::new(RowRange::all(), Timestamp::MAX);
    let items: Vec<_> = loaded.scan_versions(&t, scan).try_collect().await.expect("can be scanned");
    assert_eq!(items.len(), 20 * 514);
    assert!(items.iter().all(|item| item.cell.row != "late" && item.versions[0].len >= 1_500));
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_snapshot_gives_no_more_and_damaged_parts_are_refused() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    fill(&store).await;
    let copy = copy_of(&store).await;

    let snapshot = streams(&store).begin().await.expect("a snapshot can be begun");
    let (catalog, rows, none) = (snapshot.read(0), snapshot.read(1), snapshot.read(99));
    none.try_collect::<Vec<_>>().await.expect_err("there is no such part");
    snapshot.finish().await.expect("it was one moment");
    for content in [catalog, rows] {
        content.try_collect::<Vec<_>>().await.expect_err("the snapshot has ended");
    }

    let other = Namespace::new();
    let loaded = other.open().await;
    let streams = streams(&loaded);
    streams.load("v_accounts", content(&copy[1].1)).await.expect_err("the descriptions come first");
    streams.load("tables", content(&copy[1].1)).await.expect_err("this is no description");
    streams.load(&copy[0].0, content(&copy[0].1)).await.expect("this is");
    let (name, chunks) = copy.iter().find(|(name, _)| name == "v_accounts").expect("there is one");
    let whole = chunks.concat();
    // Behind the header, the server would take what is there for the whole.
    for len in [0, 5, 19, 30, whole.len() / 2, whole.len() - 9, whole.len() - 8, whole.len() - 1] {
        let error = streams.load(name, content(&[Bytes::copy_from_slice(&whole[..len])])).await;
        assert!(matches!(error, Err(KvsError::Corrupt { .. })), "{len}: {error:?}");
    }
    let (rows, len) = whole.split_at(whole.len() - 8);
    let len = u64::from_be_bytes(len.try_into().expect("there are eight"));
    let damaged = |bytes: Vec<u8>| [&bytes[..], &(bytes.len() as u64).to_be_bytes()].concat();
    assert_eq!(damaged(rows.to_vec()), whole, "{len}");
    let null = {
        // The length of the first row's first field says that there is none.
        let mut rows = rows.to_vec();
        rows.splice(21..25, [0xff; 4]);
        rows
    };
    for bytes in
        [[&whole[..], b"more"].concat(), damaged([rows, b"more"].concat()), damaged(null), damaged(vec![9; 99])]
    {
        let error = streams.load(name, content(&[Bytes::from(bytes)])).await;
        assert!(matches!(error, Err(KvsError::Corrupt { .. })), "{error:?}");
    }
    let broken = stream::iter([Ok(chunks[0].slice(..50)), Err(KvsError::corrupt("a file", "checksum"))]).boxed();
    let error = streams.load(name, broken).await;
    assert!(matches!(&error, Err(KvsError::Corrupt { place, .. }) if place == "a file"), "{error:?}");
    streams.load(name, content(chunks)).await.expect("none of it was left behind");
}

/// TRUNCATE would empty a table for a snapshot from before it: it has to wait.
#[tokio::test(flavor = "multi_thread")]
async fn tables_stay_until_the_snapshot_ends() {
    let namespace = Namespace::new();
    let store = Arc::new(namespace.open().await);
    fill(&store).await;
    let snapshot = streams(&store).begin().await.expect("a snapshot can be begun");
    let truncating = Arc::clone(&store);
    let truncate = tokio::spawn(async move { truncating.truncate_table(&table("locks")).await });
    let admin = client(&namespace.config).await;
    let sql = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass::oid";
    let name = format!("\"{}\".a_locks", store.schema());
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while admin.query(sql, &[&name]).await.expect("can be asked").is_empty() {
        assert!(std::time::Instant::now() < deadline, "it does not wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(snapshot);
    truncate.await.expect("no panic").expect("the snapshot is gone");
    assert_eq!(store.get_atomic(&table("locks"), &[Cell::copy_from("1", "")]).await.expect("can be read"), [None]);
}

/// A snapshot and its readers do not take connections from those who work.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_needs_no_connection_of_the_pool() {
    let namespace = Namespace::new();
    let config = PostgresConfig { pool_size: 1, pool_timeout: Duration::from_secs(5), ..namespace.config.clone() };
    let store = PostgresStore::connect(config).await.expect("the server can be reached");
    fill(&store).await;
    let snapshot = streams(&store).begin().await.expect("a snapshot can be begun");
    let mut open: Vec<_> = (0..snapshot.parts().len()).map(|part| snapshot.read(part)).collect();
    for content in &mut open {
        content.next().await.expect("there is something").expect("it can be read");
    }
    store.tables().await.expect("the one connection is free");
}
