//! A disk that fills up in the middle of group commits, and has room again later.
//!
//! What was acknowledged is there, what was reported as failed is not, and what was reported as unknown is decided
//! once and for ever. The store gets over it by itself: nobody starts anything again.

mod common;

use atlas::config::{AtlasConfig, ByteSize, CommitModeChoice};
use atlas::{Atlas, Error};
use common::bank::Bank;
use common::*;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// A file system of its own, as small as it is told to be, unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// Nothing where nothing may be mounted, unless this lane is required.
    fn mount() -> Option<SmallDisk> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(dir.path()).output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(SmallDisk(dir));
        }
        let required = std::env::var("ATLAS_REQUIRE_LANES").unwrap_or_default();
        assert!(!required.split(',').any(|lane| lane.trim() == "rocksdb"), "the disk can't be mounted: {mounted:?}");
        eprintln!("SKIP: no file system can be mounted here, so no disk was filled: {mounted:?}");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Writes until nothing goes in any more, and again while somebody makes room for a moment.
    fn fill(&self) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.ballast()).expect("a file can be opened");
        for block in [1 << 20, 64 << 10, 4 << 10] {
            while file.write_all(&vec![1; block]).is_ok() {}
        }
    }

    fn clear(&self) {
        std::fs::remove_file(self.ballast()).expect("the ballast can be removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// What callers were told.
#[derive(Clone, Default)]
struct Told {
    acknowledged: BTreeSet<String>,
    failed: BTreeSet<String>,
    unknown: BTreeSet<String>,
    /// Failed or unknown, and not for a conflict.
    refused: usize,
}

fn config(disk: &SmallDisk, mode: CommitModeChoice) -> AtlasConfig {
    let mut config = AtlasConfig { key_value_service: rocksdb_in(&disk.path().join("data")), ..AtlasConfig::default() };
    config.transactions.commit_mode = mode;
    config.transactions.pipeline_size_max = ByteSize(1024);
    config
}

/// Waits for something that must come, in steps, for two minutes at most.
async fn until(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !there() {
        assert!(Instant::now() < deadline, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn check(bank: &Bank, told: &Told, when: &str) -> BTreeSet<String> {
    let records: BTreeSet<String> = bank.check().await.into_keys().collect();
    let lost: Vec<_> = told.acknowledged.difference(&records).collect();
    assert!(lost.is_empty(), "{when}: acknowledged and lost: {lost:?}");
    let undead: Vec<_> = told.failed.intersection(&records).collect();
    assert!(undead.is_empty(), "{when}: reported as failed and there: {undead:?}");
    told.unknown.intersection(&records).cloned().collect()
}

/// Many at a time; large ones put their data ahead.
fn transfers(
    bank: &Bank,
    name: &'static str,
    large: bool,
    told: &Arc<Mutex<Told>>,
    stop: &Arc<AtomicBool>,
) -> Vec<JoinHandle<()>> {
    let task = |task: usize| {
        let (bank, told, stop) = (bank.clone(), told.clone(), stop.clone());
        tokio::spawn(async move {
            for transfer in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let id = format!("{name}-{task}-{transfer:06}");
                let outcome = bank.transfer(&id, large && transfer % 2 == 1).await;
                let refused = matches!(&outcome, Err(error) if !matches!(error, Error::Conflict { .. }));
                {
                    let mut told = told.lock();
                    match outcome {
                        Ok(_) => told.acknowledged.insert(id),
                        Err(Error::UnknownOutcome { .. }) => told.unknown.insert(id),
                        Err(_) => told.failed.insert(id),
                    };
                    told.refused += usize::from(refused);
                }
                if refused {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        })
    };
    (0..8).map(task).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_in_the_middle_of_group_commits_is_survived() {
    survive(CommitModeChoice::Pipeline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_in_the_middle_of_commits_step_by_step_is_survived() {
    survive(CommitModeChoice::StepByStep).await;
}

async fn survive(mode: CommitModeChoice) {
    let Some(disk) = SmallDisk::mount() else { return };
    let config = config(&disk, mode);
    let atlas = Atlas::open_unserved(config.clone(), Duration::ZERO).await.expect("the store opens");
    let bank = Bank::open(&atlas).await;
    let told = Arc::new(Mutex::new(Told::default()));

    // Small ones only: the write that fails is that of a group, and its members can't be told what became of them
    // while the disk is full, because the store does not open.
    // Then large ones too: the write that fails may be data put ahead, which the leader knows nothing of.
    for (name, large) in [("small", false), ("mixed", true)] {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = transfers(&bank, name, large, &told, &stop);
        let before = told.lock().acknowledged.len();
        until("an acknowledged transfer", || told.lock().acknowledged.len() > before + 50).await;
        let refused = told.lock().refused;
        until("a refused transfer, or an unknown one", || {
            disk.fill();
            let told = told.lock();
            let unknown_must_come = mode == CommitModeChoice::Pipeline && !large;
            told.refused > refused && !(unknown_must_come && told.unknown.is_empty())
        })
        .await;
        // Nobody restarts anything.
        disk.clear();
        let before = told.lock().acknowledged.len();
        until("a transfer after the disk has room", || told.lock().acknowledged.len() > before + 50).await;
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.expect("the task ends");
        }
        let so_far = told.lock().clone();
        check(&bank, &so_far, "after the disk had room").await;
    }
    let told = std::mem::take(&mut *told.lock());
    let survived = check(&bank, &told, "after both").await;
    assert_eq!(check(&bank, &told, "a second look").await, survived);
    eprintln!(
        "{} acknowledged, {} failed, {} unknown, of which {} committed",
        told.acknowledged.len(),
        told.failed.len(),
        told.unknown.len(),
        survived.len()
    );
    atlas.close().await.expect("the store closes");

    let atlas = Atlas::open_unserved(config, Duration::from_secs(10)).await.expect("the store opens again");
    let bank = Bank::open(&atlas).await;
    assert_eq!(
        check(&bank, &told, "after closing and opening").await,
        survived,
        "an unknown outcome was decided twice"
    );
    bank.transfer("after", true).await.expect("the store goes on");
    atlas.close().await.expect("the store closes");
}
