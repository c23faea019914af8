//! The store as a whole: closing, opening again, and what is still there.

use crate::TestStore;
use crate::support::*;
use atlas_kvs::{
    AtomicBatch, Availability, BatchOp, CellTimestamps, CheckAndSet, Durability, KvsError, Ownership, RowRange, Scan,
    TableDescription, TableKind, Timestamp,
};
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A healthy store says that everything answers.
pub async fn healthy_store_is_fully_available(store: &mut TestStore) {
    assert_eq!(store.availability().await, Availability::All);
}

/// Capabilities are constant, and the limits allow something.
pub async fn capabilities_are_constant(store: &mut TestStore) {
    let capabilities = store.capabilities();
    assert!(!capabilities.store.is_empty());
    let limits = capabilities.limits;
    assert!(limits.row_len_max > 0 && limits.column_len_max > 0 && limits.value_len_max > 0);
    versioned(store, "t").await;
    assert_eq!(store.capabilities(), capabilities);
    store.close_and_open().await;
    assert_eq!(store.capabilities(), capabilities);
}

/// Of a store with one owner everybody in the process shares one epoch.
pub async fn epoch_is_shared(store: &mut TestStore) {
    match (store.ownership(), store.share().ownership()) {
        (Ownership::Exclusive(one), Ownership::Exclusive(other)) => {
            assert!(Arc::ptr_eq(&one, &other));
            one.store(7, Ordering::SeqCst);
            assert_eq!(other.load(Ordering::SeqCst), 7);
        }
        (Ownership::Shared, Ownership::Shared) => {}
        (one, other) => panic!("ownership changed from {one:?} to {other:?}"),
    }
}

/// After `close` every call fails with `Closed`, and the store is not available.
pub async fn closed_store_refuses_everything(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    put(store, &t, &[("r", "c", 1, "v")]).await;
    store.close().await.expect("an open store can be closed");
    let mut outcomes = versioned_operations(store, &t).await;
    outcomes.extend(atomic_operations(store, &a).await);
    outcomes.extend(table_operations(store, &t).await);
    outcomes.extend([
        ("create_table", store.create_table(&table("new"), TableKind::Atomic, Bytes::new()).await),
        ("drop_table", store.drop_table(&t).await),
        ("tables", store.tables().await.map(drop)),
        ("table", store.table(&t).await.map(drop)),
        ("reopen", store.reopen().await),
        ("close", store.close().await),
    ]);
    for (operation, outcome) in outcomes {
        assert!(matches!(outcome, Err(KvsError::Closed)), "{operation}: {outcome:?}");
    }
    assert!(matches!(store.availability().await, Availability::NoQuorum(_)));
}

/// A scan that runs while the store is closed shows all cells or ends in `Closed`: it never looks complete when it is
/// not.
pub async fn running_scan_fails_when_the_store_closes(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put_rows(store, &t).await;
    let mut stream = store.scan(&t, Scan { page_size: 1, ..everything() });
    stream.next().await.expect("there are cells").expect("a table can be scanned");
    store.close().await.expect("an open store can be closed");
    assert_complete_or_closed(stream).await;
}

/// The same holds when the store is reopened, which leaves the data as they were.
pub async fn running_scan_survives_or_fails_when_the_store_reopens(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put_rows(store, &t).await;
    let mut stream = store.scan(&t, Scan { page_size: 1, ..everything() });
    stream.next().await.expect("there are cells").expect("a table can be scanned");
    store.reopen().await.expect("an open store can be reopened");
    assert_complete_or_closed(stream).await;
    assert_eq!(scan(store, &t, everything()).await.len(), 100);
}

/// A reopened store holds what it held, and goes on working.
pub async fn reopened_store_goes_on(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    put(store, &t, &[("r", "c", 1, "one")]).await;
    put_unless_exists(store, &a, &cell("r", "c"), bytes("v")).await;
    for round in 2..4 {
        store.reopen().await.expect("an open store can be reopened");
        put(store, &t, &[("r", "c", round, "more")]).await;
        assert_eq!(store.availability().await, Availability::All);
    }
    assert_eq!(stored(store, &t).await, ["r/c@1=one,2=more,3=more"]);
    assert_eq!(stored_atomic(store, &a).await, ["r/c=v"]);
    let answer = store.check_and_set(&a, &cell("r", "c"), Some(bytes("v")), None).await.expect("can be removed");
    assert_eq!(answer, CheckAndSet::Applied);
}

/// Closed and opened again, a persistent store holds exactly what it held: tables, data, sentinels, atomic values. A
/// store that is not persistent is empty.
pub async fn data_outlive_the_store_as_promised(store: &mut TestStore) {
    let t = table("t");
    store.create_table(&t, TableKind::Versioned, bytes("of t")).await.expect("a table can be created");
    let (a, gone) = (atomic(store, "a").await, versioned(store, "gone").await);
    put(store, &t, &[("r", "c", 1, "one"), ("r", "c", 2, "two"), ("s", "c", 1, ""), ("x", "c", 1, "deleted")]).await;
    store.add_sentinels(&t, &[cell("s", "c")]).await.expect("sentinels can be added");
    let last_ts = Timestamp::MAX.previous();
    store
        .put_versions(&t, vec![(cell(b"\0\xff", b"\xff\0"), atlas_kvs::Value { ts: last_ts, bytes: bytes(b"\0") })])
        .await
        .expect("can be put");
    store.delete_rows(&t, &RowRange::single("x")).await.expect("rows can be deleted");
    for (row, new) in [("kept", Some("new")), ("removed", None)] {
        for (expected, new) in [(None, Some("old")), (Some("old"), new)] {
            let answer = check_and_set(store, &a, &cell(row, "c"), expected.map(bytes), new.map(bytes)).await;
            assert_eq!(answer, CheckAndSet::Applied);
        }
    }
    put(store, &gone, &[("r", "c", 1, "v")]).await;
    store.drop_table(&gone).await.expect("a table can be dropped");

    let tables = store.tables().await.expect("tables can be listed");
    let cells = (stored(store, &t).await, stored_atomic(store, &a).await);
    for _ in 0..2 {
        store.close_and_open().await;
        if store.capabilities().persistent {
            assert_eq!(store.tables().await.expect("tables can be listed"), tables);
            assert_eq!((stored(store, &t).await, stored_atomic(store, &a).await), cells);
        } else {
            assert_eq!(store.tables().await.expect("tables can be listed"), []);
        }
    }
}

/// What is deleted, dropped and truncated stays so when the store is opened again, and the names can be used again.
pub async fn deletions_outlive_the_store_as_promised(store: &mut TestStore) {
    let (t, u, v) = (versioned(store, "t").await, versioned(store, "u").await, versioned(store, "v").await);
    let a = atomic(store, "a").await;
    for table in [&t, &u, &v] {
        put(store, table, &[("r", "c", 1, "one"), ("r", "c", 2, "two"), ("s", "c", 1, "v")]).await;
    }
    put_unless_exists(store, &a, &cell("r", "c"), bytes("v")).await;
    let version = CellTimestamps { cell: cell("r", "c"), timestamps: vec![ts(1)] };
    store.delete_versions(&t, &[version]).await.expect("versions can be deleted");
    store.truncate_table(&u).await.expect("a table can be truncated");
    store.truncate_table(&a).await.expect("a table can be truncated");
    store.drop_table(&v).await.expect("a table can be dropped");
    store.close_and_open().await;
    if store.capabilities().persistent {
        assert_eq!(stored(store, &t).await, ["r/c@2=two", "s/c@1=v"]);
        assert_eq!(stored(store, &u).await, [""; 0]);
        assert_eq!(stored_atomic(store, &a).await, [""; 0]);
    }
    store.create_table(&v, TableKind::Atomic, bytes("again")).await.expect("the name is free");
    store.close_and_open().await;
    if store.capabilities().persistent {
        let expected = TableDescription { table: v.clone(), kind: TableKind::Atomic, metadata: bytes("again") };
        assert_eq!(store.table(&v).await.expect("a table can be described"), Some(expected));
        assert_eq!(stored_atomic(store, &v).await, [""; 0]);
    }
}

/// A relaxed batch is kept at the latest with the synced write after it.
pub async fn relaxed_batch_is_kept_with_the_synced_one_behind_it(store: &mut TestStore) {
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    let batch = |row: &str| {
        AtomicBatch::new(vec![
            BatchOp::Put { table: t.clone(), cell: cell(row, "c"), ts: ts(1), value: bytes("v") },
            BatchOp::Set { table: a.clone(), cell: cell(row, "c"), value: bytes("v") },
        ])
    };
    let relaxed = store.apply(batch("1"), Durability::Relaxed).await;
    let synced = store.apply(batch("2"), Durability::Synced).await;
    if !store.capabilities().atomic_batch {
        assert_fails!(relaxed, KvsError::Unsupported { .. });
        assert_fails!(synced, KvsError::Unsupported { .. });
        return;
    }
    relaxed.expect("a batch can be applied");
    synced.expect("a batch can be applied");
    store.close_and_open().await;
    if store.capabilities().persistent {
        assert_eq!(stored(store, &t).await, ["1/c@1=v", "2/c@1=v"]);
        assert_eq!(stored_atomic(store, &a).await, ["1/c=v", "2/c=v"]);
    }
}

/// Values of many bytes come back whole from a persistent store that was opened again.
pub async fn large_data_outlive_the_store_as_promised(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let len = store.capabilities().limits.value_len_max.min(1 << 20);
    let content = |number: u64| Bytes::from(vec![number as u8; len]);
    for number in 1..=8 {
        store.put(vec![(t.clone(), vec![(cell("r", "c"), content(number))])], ts(number)).await.expect("can be put");
    }
    store.close_and_open().await;
    if store.capabilities().persistent {
        for number in 1..=8 {
            let seen = store.get(&t, &bounds(&[("r", "c", number + 1)])).await.expect("cells can be read");
            assert!(seen[0].as_ref().is_some_and(|value| value.bytes == content(number)), "version {number}");
        }
    }
}

async fn put_rows(store: &TestStore, table: &atlas_kvs::TableRef) {
    let versions = (0..100).map(|number| (cell(format!("{number:02}"), "c"), value(1, "v")));
    store.put_versions(table, versions.collect()).await.expect("versions can be put");
}

async fn assert_complete_or_closed<T>(mut stream: atlas_kvs::ResultStream<T>) {
    let mut cells = 1;
    while let Some(item) = stream.next().await {
        match item {
            Ok(_) => {
                cells += 1;
                assert!(cells <= 100, "the scan goes on");
            }
            Err(KvsError::Closed) => {
                assert!(stream.next().await.is_none(), "nothing comes after the error");
                return;
            }
            Err(error) => panic!("a scan failed: {error}"),
        }
    }
    assert_eq!(cells, 100, "a scan that ends without an error is complete");
}
