//! Sorted loads: all of a load or nothing, durable, and beside what is there.

mod common;

use atlas_kvs::{Cell, KeyValueService, KvsError, Result, SortedLoad, SortedSink, TableRef};
use atlas_kvs_rocksdb::RocksStore;
use common::{get, open, scan, ts, value, versioned};

fn load(store: &RocksStore, table: &TableRef, cells: &[(&str, u64, &str)]) -> Result<()> {
    store.load_sorted(table, &mut |sink: &mut SortedSink<'_>| {
        cells.iter().try_for_each(|(row, at, text)| {
            let version = value(*at, text);
            sink(&Cell::copy_from(*row, "c"), version.ts, &version.bytes)
        })
    })
}

fn staged(store: &RocksStore) -> usize {
    let root = store.native_snapshot().expect("the store has snapshots").staging_root().to_owned();
    std::fs::read_dir(root).expect("a listing").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_there_beside_what_was_put_and_after_opening_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let table = versioned(&store, "t").await;
    store.put_versions(&table, vec![(Cell::copy_from("b", "c"), value(9, "newer"))]).await.expect("a put");
    load(&store, &table, &[("a", 3, "one"), ("a\0", 3, "two"), ("b", 3, "older")]).expect("a load");
    load(&store, &table, &[("c", 3, "three")]).expect("another load");
    load(&store, &table, &[]).expect("nothing is fine");
    check(&store, &table).await;
    store.close().await.expect("it closes");
    drop(store);
    check(&open(dir.path()).await, &table).await;
}

async fn check(store: &RocksStore, table: &TableRef) {
    assert_eq!(get(store, table, "a", "c").await.as_deref(), Some("one"));
    assert_eq!(get(store, table, "a\0", "c").await.as_deref(), Some("two"));
    assert_eq!(get(store, table, "b", "c").await.as_deref(), Some("newer"));
    assert_eq!(scan(store, table).await.len(), 4);
    assert_eq!(staged(store), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let table = versioned(&store, "t").await;
    let error = load(&store, &table, &[("b", 3, "1"), ("a", 3, "2")]).expect_err("not in order");
    assert!(matches!(error, KvsError::Backend { .. }), "{error}");
    let given_up = store.load_sorted(&table, &mut |sink| {
        sink(&Cell::copy_from("a", "c"), ts(3), b"1")?;
        Err(KvsError::Closed)
    });
    assert!(matches!(given_up, Err(KvsError::Closed)));
    let error = load(&store, &table, &[("a", 0, "1")]).expect_err("no version lies there");
    assert!(matches!(error, KvsError::InvalidTimestamp(_)), "{error}");
    let nowhere = TableRef::new("nowhere").expect("a name");
    let error = load(&store, &nowhere, &[("a", 3, "1")]).expect_err("there is no such table");
    assert!(matches!(error, KvsError::NoSuchTable(_)), "{error}");
    assert_eq!(get(&store, &table, "a", "c").await, None);
    assert_eq!(staged(&store), 0);
    store.put_versions(&table, vec![(Cell::copy_from("a", "c"), value(9, "fine"))]).await.expect("it goes on");
}
