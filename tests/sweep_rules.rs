//! Each rule of sweep is left out once, and something goes wrong: its tests are about the rule, and not about luck.
//!
//! The rules are left out by fail points, which are those of the whole program: one test, one rule after the other.

mod common;
#[allow(dead_code, unused_macros, reason = "only its store is used here")]
#[path = "cases/sweep.rs"]
mod sweep;

use atlas::kvs_api::AtomicScan;
use atlas::ops::{BeginOptions, Operations, SweepRequest, no_progress};
use atlas::schema::SweepStrategy;
use atlas::transaction::entry::{CleanedWindow, CleanedWindows, Entry, TransactionsFloor, transactions_table};
use atlas::transaction::{CommitStep, watch_steps};
use atlas::{Error, RowRange, TableRef, Timestamp};
use common::faulty::{Fault, Faulty, Op};
use common::*;
use futures::TryStreamExt;
use futures::future::{BoxFuture, FutureExt};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use sweep::Swept;
use tokio::sync::Semaphore;

type Story = fn() -> BoxFuture<'static, Result<(), String>>;

/// Each rule, and a story that ends well if it is kept.
const RULES: [(&str, Story); 18] = [
    ("rule::sweep_below_readers", || an_open_reader_reads_on().boxed()),
    ("rule::sentinels_first", || who_comes_too_late_is_told(SweepStrategy::Conservative).boxed()),
    ("rule::sentinel_before_delete", || a_lost_deletion_is_behind_a_sentinel().boxed()),
    ("rule::sweep_under_permit", || the_backup_lock_keeps_everything().boxed()),
    ("rule::pin_by_timestamp", || what_is_pinned_can_be_read().boxed()),
    ("rule::check_swept", || who_comes_too_late_is_told(SweepStrategy::Thorough).boxed()),
    ("rule::decide_before_sweep", || who_died_is_decided().boxed()),
    ("rule::keep_young_entries", || a_young_commit_is_come_back_to().boxed()),
    ("rule::share_the_last_entry", || who_shares_an_entry_is_come_back_to().boxed()),
    ("rule::keep_shares_of_the_undone", || who_shares_the_entry_of_one_who_is_undone_is_come_back_to().boxed()),
    ("rule::refuse_below_floor", || nobody_commits_below_the_floor().boxed()),
    ("rule::refuse_rolled_back", || who_was_rolled_back_does_not_commit().boxed()),
    // Between steps 9 and 10.
    ("rule::keep_while_committing", || a_commit_under_way_is_waited_for(MEMORY_STEPS, CommitStep::CheckLocks).boxed()),
    ("rule::keep_while_committing", || {
        a_commit_under_way_is_waited_for(MEMORY_PIPELINE_0, CommitStep::PutData).boxed()
    }),
    ("rule::keep_while_committing", || a_commit_under_way_finds_its_rivals().boxed()),
    ("rule::look_twice_below_floor", || what_came_between_the_look_and_the_floor_counts().boxed()),
    ("rule::keep_entries_of_bare_versions", || what_has_no_commit_timestamp_keeps_its_entry().boxed()),
    ("rule::restore_holds_floor", || the_floor_waits_for_a_walk_after_a_restore().boxed()),
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
    let pinned = swept.atlas.pin_fresh_timestamp(Duration::from_secs(600)).await.expect("it is pinned");
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

/// Two transactions of one group write over "a", and then over "b". Answers a number drawn before the first commit, and one drawn
/// between the two.
async fn two_of_a_group(atlas: &atlas::Atlas, table: &TableRef) -> Result<[Timestamp; 2], String> {
    write(atlas, table, &[("a", "old"), ("b", "old")]).await;
    let [first, second] = [atlas.begin().await, atlas.begin().await].map(|tx| tx.expect("it begins"));
    put(&first, table, "a", "new").await;
    put(&second, table, "b", "new").await;
    let (first_ts, second_ts) = (first.start_ts(), second.start_ts());
    let (gate, drawn) = (Gate::new(), Arc::new(Mutex::new(Vec::new())));
    let (stands, numbers, oracle) = (gate.clone(), drawn.clone(), atlas.transactions().oracle().clone());
    watch_steps(Arc::new(move |step, of| {
        let (stands, numbers, oracle) = (stands.clone(), numbers.clone(), oracle.clone());
        let admitted = step == CommitStep::CheckWriteConflicts && [first_ts, second_ts].contains(&of);
        let draw = async move {
            let number = oracle.fresh().await.expect("a number");
            numbers.lock().expect("nobody panics with it").push(number);
            if of == first_ts {
                stands.stand().await;
            }
        };
        admitted.then(|| draw.boxed())
    }));
    let first = tokio::spawn(async move { first.commit().await });
    let arrived = tokio::time::timeout(Duration::from_secs(5), gate.arrived()).await;
    let mut second = async move { second.commit().await }.boxed();
    // One look is enough for it to stand in the queue, behind the first.
    let ends_at_once = (&mut second).now_or_never().is_some();
    gate.open();
    let committed = (first.await.expect("it does not panic"), second.await);
    watch_steps(Arc::new(|_, _| None));
    arrived.expect("it comes to the step");
    assert!(!ends_at_once, "the leader stands");
    committed.0.and(committed.1).map_err(|error| error.to_string())?;
    let drawn = drawn.lock().expect("nobody panics with it").clone();
    drawn.try_into().map_err(|drawn| format!("each is admitted once: {drawn:?}"))
}

/// A round while a reader of the past holds sweep back, and one after.
async fn sweep_behind_a_reader(atlas: &atlas::Atlas, at: Timestamp) {
    let reader = BeginOptions { at: Some(at), ..BeginOptions::default() };
    let reader = atlas.transactions().begin(reader).await.expect("it begins");
    atlas.sweeper().round().await.expect("a round of sweep");
    drop(reader);
    atlas.sweeper().round().await.expect("a round of sweep");
}

/// A reader of the past keeps what the later of two in a batch hides, and not what the earlier one does.
async fn who_shares_an_entry_is_come_back_to() -> Result<(), String> {
    let swept = Swept::open(MEMORY_PIPELINE).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let [_, between] = two_of_a_group(&swept.atlas, &table).await?;
    sweep_behind_a_reader(&swept.atlas, between).await;
    expect(swept.counts(&table).await, (2, 2))
}

/// Closes the store and opens it anew, as if what committed from `from` to `until` had been undone by a restore.
async fn restored(
    atlas: atlas::Atlas,
    config: atlas::config::AtlasConfig,
    kvs: &Arc<dyn atlas::kvs_api::KeyValueService>,
    from: Timestamp,
    until: Timestamp,
) -> atlas::Atlas {
    atlas.transactions().close().await.expect("it closes");
    let windows = CleanedWindows { windows: vec![CleanedWindow { from, until: Some(until) }] };
    CleanedWindows::in_store(kvs.clone()).replace(None, Some(&windows)).await.expect("it can be written");
    atlas::Atlas::with_store(config, kvs.clone()).await.expect("it opens")
}

/// As if a backup had been restored whose timestamp lies between two commits of a batch: the entry of both is that of the one who
/// is undone.
async fn who_shares_the_entry_of_one_who_is_undone_is_come_back_to() -> Result<(), String> {
    let place = Place::new(StoreKind::Memory);
    let kvs: Arc<dyn atlas::kvs_api::KeyValueService> = place.open().await;
    let config = sweep::by_hand(&place, MEMORY_PIPELINE);
    let atlas = atlas::Atlas::with_store(config.clone(), kvs.clone()).await.expect("it opens");
    let t = table(&atlas, "t", Default::default()).await;
    let [before, between] = two_of_a_group(&atlas, &t).await?;
    let until = atlas.fresh_timestamp().await.expect("a number is issued");
    let atlas = restored(atlas, config, &kvs, between, until).await;
    sweep_behind_a_reader(&atlas, before).await;
    // What the first has written over is gone, and what the second has written.
    expect(sweep::counts(&atlas, &t).await, (2, 1))
}

/// As if the floor had been raised above a transaction that is still to commit.
async fn nobody_commits_below_the_floor() -> Result<(), String> {
    let swept = Swept::open(MEMORY_PIPELINE).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let tx = swept.atlas.begin().await.expect("it begins");
    put(&tx, &table, "a", "below").await;
    swept.atlas.fresh_timestamps(4_000).await.expect("numbers are issued");
    write(&swept.atlas, &table, &[("b", "above")]).await;
    fail::cfg("rule::sweep_below_readers", "return").expect("fail points are built in");
    swept.sweep().await;
    fail::remove("rule::sweep_below_readers");
    match tx.commit().await {
        Err(Error::RolledBack { .. }) => Ok(()),
        other => Err(format!("the commit says {other:?}")),
    }
}

/// Stands still in the midst of its commit, behind the last look at its time, until it has been open for longer than it
/// may. What is done then must not concern it.
async fn a_commit_stands(swept: &Swept, at: CommitStep, table: &TableRef, meanwhile: BoxFuture<'_, ()>) -> Outcome {
    let options = BeginOptions { timeout: Some(Duration::from_millis(100)), ..BeginOptions::default() };
    let tx = swept.atlas.transactions().begin(options).await.expect("it begins");
    let start_ts = tx.start_ts();
    put(&tx, table, "a", "slow").await;
    let gate = Gate::new();
    let stands = gate.clone();
    watch_steps(Arc::new(move |step, of| {
        let stands = stands.clone();
        (step == at && of == start_ts).then(|| async move { stands.stand().await }.boxed())
    }));
    let commit = tokio::spawn(async move { tx.commit().await });
    let arrived = tokio::time::timeout(Duration::from_secs(5), gate.arrived()).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    meanwhile.await;
    gate.open();
    let outcome = commit.await.expect("it does not panic");
    watch_steps(Arc::new(|_, _| None));
    arrived.expect("it comes to the step");
    outcome
}

type Outcome = atlas::Result<Option<Timestamp>>;

async fn a_commit_under_way_is_waited_for(lane: Lane, at: CommitStep) -> Result<(), String> {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let mut decided = Vec::new();
    let meanwhile = async {
        sweep::overwrite(&swept.atlas, &table, "b", 3).await;
        swept.sweep().await;
        let entries = swept.kvs().scan_atomic(&transactions_table(), AtomicScan::new(RowRange::all()));
        decided = entries.try_collect().await.expect("they can be read");
    };
    let outcome = a_commit_stands(&swept, at, &table, meanwhile.boxed()).await;
    outcome.map_err(|error| error.to_string())?;
    // The leader of a pipeline would write over it, but somebody may have believed it by then.
    let rolled_back = decided.iter().filter(|(_, entry)| *entry == Entry::RolledBack.encode()).count();
    expect(rolled_back, 0)?;
    expect(read(&swept.atlas, &table, "a").await.as_deref(), Some("slow"))
}

/// As if sweep had been granted more than it may: it rolls back a writer that is still to come.
async fn who_was_rolled_back_does_not_commit() -> Result<(), String> {
    let swept = Swept::open(MEMORY_PIPELINE_0).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let meanwhile = async {
        sweep::overwrite(&swept.atlas, &table, "b", 3).await;
        fail::cfg("rule::sweep_below_readers", "return").expect("fail points are built in");
        swept.sweep().await;
        fail::remove("rule::sweep_below_readers");
    };
    match a_commit_stands(&swept, CommitStep::PutData, &table, meanwhile.boxed()).await {
        Err(Error::RolledBack { .. }) => expect(read(&swept.atlas, &table, "a").await, None),
        other => Err(format!("the commit says {other:?}")),
    }
}

/// Its rival was the deletion of the cell, of which sweep would leave no trace.
async fn a_commit_under_way_finds_its_rivals() -> Result<(), String> {
    let swept = Swept::open(MEMORY_PIPELINE).await;
    let table = swept.table("t", SweepStrategy::Thorough).await;
    write(&swept.atlas, &table, &[("a", "old")]).await;
    fail::cfg("conflict_window::cells_max", "return(4)").expect("fail points are built in");
    let meanwhile = async {
        let rival = swept.atlas.begin().await.expect("it begins");
        delete(&rival, &table, "a").await;
        commit(rival).await;
        // Until the leader has forgotten it, and the store has to tell.
        for number in 0..20 {
            write(&swept.atlas, &table, &[(&format!("b{number}"), "other")]).await;
        }
        swept.sweep().await;
    };
    let outcome = a_commit_stands(&swept, CommitStep::PreCommitConditions, &table, meanwhile.boxed()).await;
    fail::remove("conflict_window::cells_max");
    match outcome {
        // Its time was over before it was in the leader's hands.
        Err(Error::TimedOut { .. }) => Ok(()),
        other => Err(format!("the commit says {other:?}")),
    }
}

/// A reader looks for the entry of a writer that has none yet. Before it gets its answer the entry is written, and the
/// floor passes it: not by what the reader has seen, but by what it has been told of since.
async fn what_came_between_the_look_and_the_floor_counts() -> Result<(), String> {
    let place = Place::new(StoreKind::Memory);
    let faulty = Faulty::new(place.open().await);
    let config = sweep::by_hand(&place, MEMORY_PIPELINE_0);
    let atlas = atlas::Atlas::with_store(config, Arc::new(faulty.clone())).await.expect("it opens");
    let table = table(&atlas, "t", Default::default()).await;
    write(&atlas, &table, &[("a", "old")]).await;
    let writer = atlas.begin().await.expect("it begins");
    put(&writer, &table, "a", "new").await;
    write(&atlas, &table, &[("b", "between")]).await;
    // It has put its data ahead, and stands before its entry.
    let (entry, answer) = (common::faulty::Gate::new(), common::faulty::Gate::new());
    faulty.on(Op::Apply).on_table(&transactions_table()).then(Fault::Hold(entry.clone()));
    let commit = tokio::spawn(async move { writer.commit().await });
    entry.arrived().await;
    // For its time only, or it would hold the floor back.
    let options = BeginOptions { timeout: Some(Duration::from_millis(100)), ..BeginOptions::default() };
    let reader = atlas.transactions().begin(options).await.expect("it begins");
    faulty.on(Op::GetAtomic).on_table(&transactions_table()).then(Fault::HoldAnswer(answer.clone()));
    let reading = {
        let table = table.clone();
        tokio::spawn(async move { drop(reader.get(&table, &cell("a")).await) })
    };
    answer.arrived().await;
    entry.open();
    commit.await.expect("it does not panic").expect("it commits");
    tokio::time::sleep(Duration::from_millis(150)).await;
    atlas.fresh_timestamps(4_000).await.expect("numbers are issued");
    write(&atlas, &table, &[("b", "later")]).await;
    atlas.sweeper().round().await.expect("a round of sweep");
    answer.open();
    reading.await.expect("it does not panic");
    expect(read(&atlas, &table, "a").await.as_deref(), Some("new"))
}

async fn what_has_no_commit_timestamp_keeps_its_entry() -> Result<(), String> {
    let place = Place::new(StoreKind::Memory);
    let kvs: Arc<dyn atlas::kvs_api::KeyValueService> = place.open().await;
    let config = sweep::by_hand(&place, MEMORY_PIPELINE_0);
    let atlas = atlas::Atlas::with_store(config.clone(), kvs.clone()).await.expect("it opens");
    let table = table(&atlas, "t", Default::default()).await;
    write(&atlas, &table, &[("a", "large")]).await;
    atlas.fresh_timestamps(4_000).await.expect("numbers are issued");
    write(&atlas, &table, &[("b", "later")]).await;
    atlas.sweeper().round().await.expect("a round of sweep");
    atlas.transactions().close().await.expect("it closes");
    // By somebody who has not seen it commit.
    let atlas = atlas::Atlas::with_store(config, kvs).await.expect("it opens");
    expect(read(&atlas, &table, "a").await.as_deref(), Some("large"))
}

/// A restore leaves a cleaned window, and whatever a copy that was not made at one moment holds.
async fn the_floor_waits_for_a_walk_after_a_restore() -> Result<(), String> {
    let place = Place::new(StoreKind::Memory);
    let kvs: Arc<dyn atlas::kvs_api::KeyValueService> = place.open().await;
    let config = sweep::by_hand(&place, MEMORY_PIPELINE);
    let atlas = atlas::Atlas::with_store(config.clone(), kvs.clone()).await.expect("it opens");
    let t = table(&atlas, "t", Default::default()).await;
    write(&atlas, &t, &[("a", "kept")]).await;
    let from = atlas.fresh_timestamp().await.expect("a number is issued");
    write(&atlas, &t, &[("a", "undone")]).await;
    let until = atlas.fresh_timestamp().await.expect("a number is issued");
    let atlas = restored(atlas, config, &kvs, from, until).await;
    let u = table(&atlas, "u", Default::default()).await;
    let floor_after_a_round = async || {
        atlas.fresh_timestamps(4_000).await.expect("numbers are issued");
        write(&atlas, &u, &[("a", "later")]).await;
        atlas.sweeper().round().await.expect("a round of sweep");
        TransactionsFloor::load(kvs.clone()).await.expect("a floor").below
    };
    let walk = async |table: Option<&TableRef>, from_row: Option<&'static [u8]>, dry_run: bool| {
        let from_row = from_row.map(bytes::Bytes::from_static);
        let request = SweepRequest { table: table.cloned(), from_row, dry_run, ..SweepRequest::default() };
        atlas.sweep(request, no_progress()).await.expect("it can be walked")
    };
    let held = |floor: Timestamp, after: &str| {
        if floor <= from {
            Ok(())
        } else {
            Err(format!("the floor is at {floor} after {after}, and {from} was restored"))
        }
    };
    held(floor_after_a_round().await, "the restore")?;
    // What is no walk over everything says nothing of everything.
    walk(Some(&t), None, false).await;
    held(floor_after_a_round().await, "a walk over a table")?;
    walk(Some(&t), Some(b"b"), false).await;
    walk(None, Some(b"b"), false).await;
    held(floor_after_a_round().await, "a walk from a row on")?;
    walk(None, None, true).await;
    held(floor_after_a_round().await, "a walk that removes nothing")?;
    walk(None, None, false).await;
    let floor = floor_after_a_round().await;
    if floor <= from {
        return Err(format!("the floor is at {floor} after a walk over everything"));
    }
    expect(read(&atlas, &t, "a").await.as_deref(), Some("kept"))
}

/// Where a commit stands, until it is let go.
#[derive(Clone)]
struct Gate(Arc<(Semaphore, Semaphore)>);

impl Gate {
    fn new() -> Gate {
        Gate(Arc::new((Semaphore::new(0), Semaphore::new(0))))
    }

    async fn stand(&self) {
        self.0.0.add_permits(1);
        drop(self.0.1.acquire().await.expect("it is never closed"));
    }

    async fn arrived(&self) {
        drop(self.0.0.acquire().await.expect("it is never closed"));
    }

    fn open(&self) {
        self.0.1.add_permits(1);
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
