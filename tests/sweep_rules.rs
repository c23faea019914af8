//! Each rule of sweep is left out once, and something goes wrong: its tests are about the rule, and not about luck.
//!
//! The rules are left out by fail points, which are those of the whole program: one test, one rule after the other.

mod common;
#[allow(dead_code, unused_macros, reason = "only its store is used here")]
#[path = "cases/sweep.rs"]
mod sweep;

use atlas::ops::{BeginOptions, Operations, SweepRequest, no_progress};
use atlas::schema::SweepStrategy;
use atlas::transaction::entry::TransactionsFloor;
use atlas::{Error, Timestamp};
use common::faulty::{Fault, Faulty, Op};
use common::*;
use futures::future::{BoxFuture, FutureExt};
use std::sync::Arc;
use sweep::Swept;

type Story = fn() -> BoxFuture<'static, Result<(), String>>;

/// Each rule, and a story that ends well if it is kept.
const RULES: [(&str, Story); 9] = [
    ("rule::sweep_below_readers", || an_open_reader_reads_on().boxed()),
    ("rule::sentinels_first", || who_comes_too_late_is_told(SweepStrategy::Conservative).boxed()),
    ("rule::sentinel_before_delete", || a_lost_deletion_is_behind_a_sentinel().boxed()),
    ("rule::sweep_under_permit", || the_backup_lock_keeps_everything().boxed()),
    ("rule::pin_by_timestamp", || what_is_pinned_can_be_read().boxed()),
    ("rule::check_swept", || who_comes_too_late_is_told(SweepStrategy::Thorough).boxed()),
    ("rule::decide_before_sweep", || who_died_is_decided().boxed()),
    ("rule::keep_young_entries", || a_young_commit_is_come_back_to().boxed()),
    ("rule::refuse_below_floor", || nobody_commits_below_the_floor().boxed()),
];

fn expect<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}")) }
}

async fn an_open_reader_reads_on() -> Result<(), String> {
    let swept = Swept::open(MEMORY_PIPELINE).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    write(&swept.atlas, &table, &[("a", "before")]).await;
    let reader = swept.atlas.begin().await.expect("it begins");
    sweep::overwrite(&swept.atlas, &table, "a", 3).await;
    swept.sweep().await;
    let seen = reader.get(&table, &cell("a")).await.map_err(|error| error.to_string())?;
    expect(seen.as_ref().map(text).as_deref(), Some("before"))
}

async fn who_comes_too_late_is_told(strategy: SweepStrategy) -> Result<(), String> {
    let swept = Swept::open(MEMORY_PIPELINE).await;
    let table = swept.table("t", strategy).await;
    let first = write(&swept.atlas, &table, &[("a", "first")]).await;
    write(&swept.atlas, &table, &[("a", "second")]).await;
    let tx = swept.atlas.begin().await.expect("it begins");
    if strategy == SweepStrategy::Thorough {
        delete(&tx, &table, "a").await;
        commit(tx).await;
    }
    swept.sweep().await;
    match swept.read_at(&table, "a", first.next()).await {
        Err(Error::TooOld { .. }) => Ok(()),
        other => Err(format!("it reads {other:?}")),
    }
}

async fn a_lost_deletion_is_behind_a_sentinel() -> Result<(), String> {
    let place = Place::new(StoreKind::Memory);
    let faulty = Faulty::new(place.open().await);
    let config = sweep::by_hand(&place, MEMORY_PIPELINE);
    let atlas = atlas::Atlas::with_store(config, Arc::new(faulty.clone())).await.expect("it opens");
    let table = table(&atlas, "t", Default::default()).await;
    let first = write(&atlas, &table, &[("a", "first")]).await;
    write(&atlas, &table, &[("a", "second")]).await;
    faulty.on(Op::DeleteVersions).on_table(&table).then(Fault::LostApplied);
    atlas.sweeper().round().await.expect_err("its answer is lost");
    let options = BeginOptions { at: Some(first.next()), ..BeginOptions::default() };
    let late = atlas.transactions().begin(options).await.expect("it begins");
    match late.get(&table, &cell("a")).await {
        Err(Error::TooOld { .. }) => Ok(()),
        other => Err(format!("who comes too late reads {other:?}")),
    }
}

async fn the_backup_lock_keeps_everything() -> Result<(), String> {
    let swept = Swept::open(MEMORY_PIPELINE).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    sweep::overwrite(&swept.atlas, &table, "a", 3).await;
    swept.atlas.backup_lock_acquire("a test").await.expect("it is free");
    let _ = swept.atlas.sweeper().round().await;
    expect(swept.counts(&table).await, (3, 0))
}

async fn what_is_pinned_can_be_read() -> Result<(), String> {
    let swept = Swept::open(MEMORY_PIPELINE).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    write(&swept.atlas, &table, &[("a", "pinned")]).await;
    let pinned = swept.atlas.pin_fresh_timestamp(std::time::Duration::from_secs(600)).await.expect("it is pinned");
    sweep::overwrite(&swept.atlas, &table, "a", 3).await;
    swept.sweep().await;
    let seen = swept.read_at(&table, "a", pinned).await.map_err(|error| error.to_string())?;
    expect(seen.as_deref(), Some("pinned"))
}

async fn who_died_is_decided() -> Result<(), String> {
    let swept = Swept::open(MEMORY_STEPS).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    write(&swept.atlas, &table, &[("a", "good")]).await;
    let dead = swept.atlas.begin().await.expect("it begins").start_ts();
    let orphan = vec![(table.clone(), vec![(cell("a"), bytes::Bytes::from_static(b"\0bad"))])];
    swept.atlas.transactions().kvs().put(orphan, dead).await.expect("it can be put");
    swept.atlas.sweep(SweepRequest::default(), no_progress()).await.map_err(|error| error.to_string())?;
    expect(swept.counts(&table).await, (1, 0))
}

async fn a_young_commit_is_come_back_to() -> Result<(), String> {
    let swept = Swept::open(MEMORY_PIPELINE).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    write(&swept.atlas, &table, &[("a", "old")]).await;
    let late = swept.atlas.begin().await.expect("it begins");
    put(&late, &table, "a", "new").await;
    write(&swept.atlas, &table, &[("b", "between")]).await;
    let reader = swept.atlas.transactions().begin(BeginOptions::default()).await.expect("it begins");
    commit(late).await;
    swept.sweep().await;
    drop(reader);
    swept.sweep().await;
    expect(swept.counts(&table).await, (2, 1))
}

async fn nobody_commits_below_the_floor() -> Result<(), String> {
    let place = Place::new(StoreKind::Memory);
    let kvs: Arc<dyn atlas::kvs_api::KeyValueService> = place.open().await;
    let config = sweep::by_hand(&place, MEMORY_PIPELINE);
    let atlas = atlas::Atlas::with_store(config.clone(), kvs.clone()).await.expect("it opens");
    atlas.transactions().close().await.expect("it closes");
    // As if somebody had raised it above a transaction that is still to commit.
    let record = TransactionsFloor::in_store(kvs.clone());
    let floor = TransactionsFloor { below: Timestamp::MAX.previous(), ..TransactionsFloor::default() };
    record.replace(None, Some(&floor)).await.expect("it can be written");
    let atlas = atlas::Atlas::with_store(config, kvs).await.expect("it opens");
    let table = table(&atlas, "t", Default::default()).await;
    let tx = atlas.begin().await.expect("it begins");
    put(&tx, &table, "a", "below").await;
    match tx.commit().await {
        Err(Error::RolledBack { .. }) => Ok(()),
        other => Err(format!("the commit says {other:?}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_that_is_left_out_is_missed() {
    let mut unnoticed = Vec::new();
    for (rule, story) in RULES {
        story().await.unwrap_or_else(|error| panic!("{rule} is kept, and {error}"));
        fail::cfg(rule, "return").expect("fail points are built in");
        let ended = story().await;
        fail::remove(rule);
        match ended {
            Err(how) => eprintln!("{rule}: {how}"),
            Ok(()) => unnoticed.push(rule),
        }
    }
    assert!(unnoticed.is_empty(), "not missed: {unnoticed:?}");
}
