//! A disk that fills up in the middle of group commits, and has room again later.
//!
//! What was acknowledged is there, what was reported as failed is not, and what was reported as unknown is decided
//! once and for ever. The store gets over it by itself: nobody starts anything again.

mod common;

use atlas::Atlas;
use atlas::config::{AtlasConfig, ByteSize, CommitModeChoice};
use common::bank::Bank;
use common::clerks::{Clerks, Told, until};
use common::small_disk::SmallDisk;
use common::*;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

fn config(disk: &SmallDisk, mode: CommitModeChoice) -> AtlasConfig {
    let mut config = AtlasConfig { key_value_service: rocksdb_in(&disk.path().join("data")), ..AtlasConfig::default() };
    config.transactions.commit_mode = mode;
    config.transactions.pipeline_size_max = ByteSize(1024);
    // The write that fails is to be one of a commit.
    config.sweep.enabled = false;
    config
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
    let Some(disk) = SmallDisk::mount("rocksdb") else { return };
    let config = config(&disk, mode);
    let atlas = Atlas::open_unserved(config.clone(), Duration::ZERO).await.expect("the store opens");
    let bank = Bank::open(&atlas).await;
    let told = Arc::new(Mutex::new(Told::default()));

    // Small ones only: the write that fails is that of a group, and its members can't be told what became of them
    // while the disk is full, because the store does not open.
    // Then large ones too: the write that fails may be data put ahead, which the leader knows nothing of.
    for (name, large) in [("small", false), ("mixed", true)] {
        let clerks = Clerks::start(&bank, name, 8, large, &told);
        clerks.acknowledge(50).await;
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
        clerks.acknowledge(50).await;
        clerks.stop().await;
        let so_far = told.lock().clone();
        so_far.check(&bank, "after the disk had room").await;
    }
    let told = std::mem::take(&mut *told.lock());
    let survived = told.check(&bank, "after both").await;
    assert_eq!(told.check(&bank, "a second look").await, survived);
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
    assert_eq!(told.check(&bank, "after closing and opening").await, survived, "an unknown outcome was decided twice");
    bank.transfer("after", true).await.expect("the store goes on");
    atlas.close().await.expect("the store closes");
}
