//! Full disks and damaged files.

mod common;

use atlas_kvs::{
    AtomicBatch, Availability, BatchOp, Cell, Durability, KeyValueService, KvsError, RowRange, Scan, Timestamp,
};
use atlas_kvs_rocksdb::{RocksConfig, RocksStore};
use bytes::Bytes;
use common::{config, family_of, get, open, raw, ts, value, versioned};
use futures::TryStreamExt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A file system of its own, as small as it is told to be, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<SmallDisk> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(at).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(SmallDisk(at.to_owned()));
        }
        eprintln!("SKIPPED: no file system can be mounted here, so no disk was filled");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_survived_by_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(_disk) = SmallDisk::mount(dir.path()) else { return };
    let data_dir = dir.path().join("data");
    let store = RocksStore::open(config(&data_dir)).await.expect("the store opens");
    let data = versioned(&store, "data").await;
    let ballast = dir.path().join("ballast");
    std::fs::write(&ballast, vec![1; 30 << 20]).expect("there is room for the ballast");

    // Fill the disk. The write that fails may be in the log; those behind it are refused and are not.
    let batch = |n: u64| {
        AtomicBatch::new(vec![BatchOp::Put {
            table: data.clone(),
            cell: Cell::copy_from(n.to_be_bytes(), ""),
            ts: ts(n),
            value: Bytes::from(vec![n as u8; 1 << 20]),
        }])
    };
    let mut acknowledged = 0;
    let failed = loop {
        match store.apply(batch(acknowledged + 1), Durability::Synced).await {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 64, "the disk is smaller than that");
    };
    assert!(failed.is_indeterminate(), "{failed:?}");
    assert!(matches!(store.availability().await, Availability::NoQuorum(_)));
    let refused = store.apply(batch(99), Durability::Synced).await.expect_err("no write follows a failed one");
    assert!(refused.is_retriable(), "{refused:?}");
    let mut running = store.scan(&data, Scan { page_size: 1, ..Scan::new(RowRange::all(), Timestamp::MAX) });
    assert!(running.try_next().await.expect("reads go on").is_some());

    // Closing gives some room back. Someone who takes every page of it at once leaves RocksDB none to open with.
    let full = Arc::new(AtomicBool::new(true));
    let filler = std::thread::spawn({
        let (full, path) = (full.clone(), dir.path().join("last"));
        move || {
            let mut file = std::fs::File::create(path).expect("a name needs no room");
            while full.load(Ordering::Relaxed) {
                while file.write_all(&[0; 65536]).is_ok() {}
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let reopened = store.reopen().await;
    full.store(false, Ordering::Relaxed);
    filler.join().expect("no panic");
    println!("reopened on a full disk: {reopened:?}");
    if let Err(error) = reopened {
        assert!(error.is_retriable(), "{error:?}");
        assert!(matches!(store.tables().await, Err(KvsError::Unavailable { .. })));
        assert!(matches!(store.availability().await, Availability::NoQuorum(_)));
    }
    std::fs::remove_file(dir.path().join("last")).expect("it can be removed");
    std::fs::remove_file(ballast).expect("the ballast can be removed");
    store.reopen().await.expect("the store opens again");

    assert!(matches!(running.try_next().await, Err(KvsError::Closed)));
    assert_eq!(store.availability().await, Availability::All);
    let rows = common::scan(&store, &data).await;
    let numbers: Vec<_> = rows.iter().map(|(_, value)| value.ts.get()).collect();
    let (all, and_the_failed): (Vec<_>, Vec<_>) = ((1..=acknowledged).collect(), (1..=acknowledged + 1).collect());
    assert!(numbers == all || numbers == and_the_failed, "{acknowledged} acknowledged, found {numbers:?}");
    store.apply(batch(100), Durability::Synced).await.expect("writes go on");
    store.close().await.expect("the store closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn store_that_does_not_open_again_stays_ours_until_it_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let data = versioned(&store, "data").await;
    store.put_versions(&data, vec![(Cell::copy_from("a", "c"), value(1, "x"))]).await.expect("a put");
    let (current, aside) = (dir.path().join("db/CURRENT"), dir.path().join("aside"));
    std::fs::rename(&current, &aside).expect("a file can be moved");
    for _ in 0..2 {
        assert!(matches!(store.reopen().await, Err(KvsError::Corrupt { .. })));
        assert!(matches!(store.tables().await, Err(KvsError::Unavailable { .. })));
        assert!(matches!(store.availability().await, Availability::NoQuorum(_)));
        assert_eq!(atlas_kvs_rocksdb::owner_pid(dir.path()), Some(std::process::id()), "nobody else takes it");
    }
    std::fs::rename(&aside, &current).expect("a file can be moved");
    store.reopen().await.expect("the store opens again");
    assert_eq!(get(&store, &data, "a", "c").await.as_deref(), Some("x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_told_with_their_place() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 5] = [
        ("CURRENT is garbage", |db| std::fs::write(db.join("CURRENT"), "garbage").expect("a write")),
        ("CURRENT is missing", |db| std::fs::remove_file(db.join("CURRENT")).expect("a removal")),
        ("MANIFEST is missing", |db| std::fs::remove_file(one(db, "MANIFEST-")).expect("a removal")),
        ("a table file is short", |db| {
            let file = std::fs::OpenOptions::new().write(true).open(one(db, ".sst")).expect("it opens");
            file.set_len(100).expect("it can be cut");
        }),
        ("a table file is missing", |db| std::fs::remove_file(one(db, ".sst")).expect("a removal")),
    ];
    for (what, damage) in damages {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path()).await;
        let data = versioned(&store, "data").await;
        store.put_versions(&data, vec![(Cell::copy_from("a", "c"), value(1, "x"))]).await.expect("a put");
        store.close().await.expect("the store closes");
        {
            let rocks = raw(dir.path());
            let name = family_of(dir.path(), &data);
            rocks.flush_cf(&rocks.cf_handle(&name).expect("the family exists")).expect("a flush");
        }
        damage(&dir.path().join("db"));
        match RocksStore::open(config(dir.path())).await {
            Err(KvsError::Corrupt { place, reason }) => {
                println!("{what}: damaged data in {place}: {reason}");
                assert!(place.contains(&dir.path().display().to_string()), "{what}: {place}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

/// The file whose name contains this.
fn one(dir: &Path, part: &str) -> PathBuf {
    let entries = std::fs::read_dir(dir).expect("a listing").map(|entry| entry.expect("an entry").path());
    let mut found = entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(part)));
    found.next().unwrap_or_else(|| panic!("there is a file {part}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_changes_of_tables_are_undone() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let data = versioned(&store, "data").await;
    store.put_versions(&data, vec![(Cell::copy_from("a", "c"), value(1, "x"))]).await.expect("a put");
    store.close().await.expect("the store closes");
    // What a crash between the two steps of a creation leaves.
    raw(dir.path()).create_cf("t.half~77", &rocksdb::Options::default()).expect("a family");
    let store = open(dir.path()).await;
    assert_eq!(store.tables().await.expect("a list").len(), 1);
    assert_eq!(get(&store, &data, "a", "c").await.as_deref(), Some("x"));
    versioned(&store, "half").await;
    store.close().await.expect("the store closes");
    assert_ne!(family_of(dir.path(), &common::table("half")), "t.half~77", "a number is used once");

    // A record without its data is damage, not an empty table.
    let name = family_of(dir.path(), &data);
    raw(dir.path()).drop_cf(&name).expect("a family can be dropped");
    match RocksStore::open(RocksConfig::new(dir.path())).await {
        Err(KvsError::Corrupt { reason, .. }) => assert!(reason.contains(&name), "{reason}"),
        other => panic!("{other:?}"),
    }
}
