//! One owner at a time, and everyone else learns who.

mod common;

use atlas_kvs::{Cell, KeyValueService, KvsError};
use atlas_kvs_rocksdb::{OwnerLock, RocksStore, owner_pid};
use bytes::Bytes;
use common::{config, open, ts, versioned};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Runs one of the ignored tests of this file as a process of its own, and waits until it has said `ready`.
fn start(part: &str, dir: &std::path::Path) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().expect("the test knows itself"))
        .args(["--exact", part, "--nocapture"])
        .env("ATLAS_TEST_DIR", dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process can be started");
    let mut lines = BufReader::new(child.stdout.take().expect("its output is piped"));
    let mut line = String::new();
    while !line.ends_with("ready\n") {
        line.clear();
        assert_ne!(lines.read_line(&mut line).expect("its output can be read"), 0, "{part} ended early");
    }
    (child, lines)
}

/// Where the part of a test plays that runs in a process of its own; `None` among the other tests.
fn dir_of_part() -> Option<std::path::PathBuf> {
    std::env::var_os("ATLAS_TEST_DIR").map(std::path::PathBuf::from)
}

#[tokio::test]
async fn part_holder() {
    let Some(dir) = dir_of_part() else { return };
    let _store = open(&dir).await;
    println!("ready");
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn other_process_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(owner_pid(dir.path()), None);
    let (mut holder, _lines) = start("part_holder", dir.path());
    assert_eq!(owner_pid(dir.path()), Some(holder.id()));
    match RocksStore::open(config(dir.path())).await {
        Err(KvsError::InUse { pid, place }) => {
            assert_eq!(pid, Some(holder.id()));
            assert_eq!(place, dir.path().display().to_string());
        }
        other => panic!("{other:?}"),
    }
    // The system gives the lock back however the holder ends.
    holder.kill().expect("a child can be killed");
    holder.wait().expect("a child can be waited for");
    assert_eq!(owner_pid(dir.path()), None);
    open(dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opener_waits_for_the_owner_to_let_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = open(dir.path()).await;
    assert_eq!(owner_pid(dir.path()), Some(std::process::id()));
    let mut patient = config(dir.path());
    patient.wait_for_owner = Duration::from_secs(20);
    let second = tokio::spawn(RocksStore::open(patient));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!second.is_finished());
    first.close().await.expect("the store closes");
    second.await.expect("no panic").expect("the store opens");
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_is_free_after_close_and_after_drop() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    store.close().await.expect("the store closes");
    assert_eq!(owner_pid(dir.path()), None, "the store is closed, though still there");
    drop(open(dir.path()).await);
    assert_eq!(owner_pid(dir.path()), None);
    drop(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_alone_keeps_others_out_and_can_be_handed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let data_dir = dir.path().join("new");
    let lock = OwnerLock::acquire(&data_dir, Duration::ZERO).await.expect("the lock is free");
    assert!(!data_dir.join("db").exists(), "the lock opens nothing");
    assert!(matches!(RocksStore::open(config(&data_dir)).await, Err(KvsError::InUse { .. })));
    let store = RocksStore::open_with_lock(config(&data_dir), lock).await.expect("the store opens");
    assert_eq!(store.data_dir(), data_dir);
    let mode = |name: &str| std::fs::metadata(data_dir.join(name)).expect("it exists").permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("db"), mode("staging"), mode("owner")), (0o700, 0o700, 0o700, 0o600));

    let elsewhere = OwnerLock::acquire(dir.path().join("other"), Duration::ZERO).await.expect("the lock is free");
    assert!(matches!(RocksStore::open_with_lock(config(&data_dir), elsewhere).await, Err(KvsError::Backend { .. })));
}

#[tokio::test]
async fn unusable_place_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory").expect("a file can be written");
    match RocksStore::open(config(&file.join("data"))).await {
        Err(KvsError::Backend { reason, .. }) => assert!(reason.contains("file/data"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn part_writer() {
    let Some(dir) = dir_of_part() else { return };
    let store = open(&dir).await;
    let data = versioned(&store, "data").await;
    println!("ready");
    for n in 1u64.. {
        // Every kind of change, so that the kill hits each now and then.
        let other = versioned(&store, &format!("other-{}", n % 5)).await;
        let cells =
            |content: &str| vec![(Cell::copy_from("row", "column"), Bytes::copy_from_slice(content.as_bytes()))];
        let puts = vec![(data.clone(), cells(&n.to_string())), (other.clone(), cells(&n.to_string()))];
        store.put(puts, ts(n)).await.expect("a put succeeds");
        println!("{n}");
        match n % 3 {
            0 => store.truncate_table(&other).await.expect("a table can be truncated"),
            1 => store.drop_table(&other).await.expect("a table can be dropped"),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_process_loses_nothing_it_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    for round in 0..8 {
        let (mut writer, lines) = start("part_writer", dir.path());
        std::thread::sleep(Duration::from_millis(60 + 37 * round));
        writer.kill().expect("a child can be killed");
        writer.wait().expect("a child can be waited for");
        let acknowledged = lines.lines().map_while(Result::ok).filter_map(|line| line.parse::<u64>().ok()).max();

        let store = open(dir.path()).await;
        let data = common::table("data");
        let there: Option<u64> =
            common::get(&store, &data, "row", "column").await.map(|text| text.parse().expect("a number was written"));
        assert!(there >= acknowledged, "round {round}: {there:?} of {acknowledged:?}");
        let described = store.tables().await.expect("tables can be listed");
        for table in &described {
            common::scan(&store, &table.table).await;
        }
        store.truncate_table(&data).await.expect("a table can be truncated");
        store.close().await.expect("the store closes");
        // One family for each table and RocksDB's own: what was left behind is gone.
        let families = rocksdb::DB::list_cf(&rocksdb::Options::default(), dir.path().join("db")).expect("a list");
        assert_eq!(families.len(), described.len() + 1, "{families:?}");
    }
}
