//! Snapshots: live, whole, and a store of their own.

mod common;

use atlas_kvs::{Cell, KeyValueService, KvsError, NativeSnapshot};
use bytes::Bytes;
use common::{get, open, scan, ts, value, versioned};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_is_a_store_with_what_was_written_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut relaxed = common::config(dir.path());
    relaxed.sync = false;
    let store = atlas_kvs_rocksdb::RocksStore::open(relaxed).await.expect("the store opens");
    let data = versioned(&store, "data").await;
    store.put_versions(&data, vec![(Cell::copy_from("r", "c"), value(1, "before"))]).await.expect("a put");
    let snapshots = store.native_snapshot().expect("the store has snapshots");
    assert!(snapshots.estimated_bytes().await.expect("an estimate") > 0);
    let copy = snapshots.staging_root().join("one");
    let summary = snapshots.snapshot_into(&copy).await.expect("a snapshot");
    store.put_versions(&data, vec![(Cell::copy_from("r", "c"), value(2, "after"))]).await.expect("a put");

    let files: Vec<_> = std::fs::read_dir(copy.join("db")).expect("a listing").map(|f| f.expect("an entry")).collect();
    assert_eq!(summary.files, files.len() as u64);
    assert_eq!(summary.bytes, files.iter().map(|f| f.metadata().expect("metadata").len()).sum::<u64>());
    let second = open(&copy).await;
    assert_eq!(get(&second, &data, "r", "c").await.as_deref(), Some("before"));
    assert_eq!(get(&store, &data, "r", "c").await.as_deref(), Some("after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_under_load_is_a_prefix_of_the_writes() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(open(dir.path()).await);
    let (first, second) = (versioned(&store, "first").await, versioned(&store, "second").await);
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = tokio::spawn({
        let (store, first, second) = (store.clone(), first.clone(), second.clone());
        let (stop, written) = (stop.clone(), written.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let n = written.load(Ordering::Relaxed) + 1;
                let cells = vec![(Cell::copy_from(n.to_be_bytes(), ""), Bytes::from(vec![0; 1000]))];
                let puts = vec![(first.clone(), cells.clone()), (second.clone(), cells)];
                store.put(puts, ts(n)).await.expect("a put");
                written.store(n, Ordering::Relaxed);
                // Tables come and go meanwhile.
                if n.is_multiple_of(8) {
                    let passing = versioned(&store, "passing").await;
                    store
                        .put_versions(&passing, vec![(Cell::copy_from("r", "c"), value(n, "x"))])
                        .await
                        .expect("a put");
                    store.drop_table(&passing).await.expect("a drop");
                }
            }
        }
    });
    for round in 0..5 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let before = written.load(Ordering::Relaxed);
        let copy = store.staging_root().join(round.to_string());
        store.snapshot_into(&copy).await.expect("a snapshot");
        let copied = open(&copy).await;
        let rows = scan(&copied, &first).await;
        assert_eq!(rows, scan(&copied, &second).await, "a put into both is in both");
        assert!(rows.len() as u64 >= before);
        let expected: Vec<_> = (1..=rows.len() as u64).map(|n| Cell::copy_from(n.to_be_bytes(), "")).collect();
        assert_eq!(rows.into_iter().map(|(cell, _)| cell).collect::<Vec<_>>(), expected, "no gap");
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_made_in_the_staging_directory_only_and_never_over_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    for bad in [dir.path().join("elsewhere"), store.staging_root().to_owned(), store.staging_root().join("../db")] {
        assert!(matches!(store.snapshot_into(&bad).await, Err(KvsError::Backend { .. })), "{}", bad.display());
    }
    let copy = store.staging_root().join("one");
    store.snapshot_into(&copy).await.expect("a snapshot");
    assert!(matches!(store.snapshot_into(&copy).await, Err(KvsError::Backend { .. })));
    assert!(copy.join("db/CURRENT").exists(), "the refused call left the first snapshot alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_clears_what_was_left_in_staging() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let root = store.staging_root().to_owned();
    store.snapshot_into(&root.join("one")).await.expect("a snapshot");
    std::fs::write(root.join("stray"), "").expect("a file can be written");
    store.close().await.expect("the store closes");
    open(dir.path()).await;
    assert_eq!(std::fs::read_dir(root).expect("a listing").count(), 0);
}
