//! Tests that each miss one rule of the protocol when it is left out; see `tests/rules.rs`.

use crate::backup_support::{Source, create, rocks};
use crate::common::faulty::{Fault, Faulty, Gate, Op};
use crate::common::processes::*;
use crate::common::{MEMORY_STEPS, Place, StoreKind, cell, get, put, table};
use atlas::schema::{ConflictHandler, MetaRecord};
use atlas::transaction::entry::Entry;
use atlas::transaction::sweep_queue::sweep_queue_table;
use atlas::{Atlas, Error, TableRef};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Of real time, for what is meant not to happen.
const A_MOMENT: Duration = Duration::from_millis(50);
/// Of real time, for what is meant to happen at once.
const SOON: Duration = Duration::from_secs(10);

// ---- step by step

fn take_locks_away(owner: &Process) {
    let locks = owner.manager.locks();
    let tokens: Vec<_> = locks.holders().into_iter().map(|holder| holder.token).collect();
    assert!(!locks.unlock(&tokens).is_empty());
}

/// The leases of the locks run out while the store takes its time with the data.
pub(crate) async fn locks_that_are_lost_after_the_data_count() {
    let world = World::steps(Kind::Exclusive).await;
    let owner = world.open(WHOLE).await;
    let hold = |gate| owner.faulty.on(Op::Put).on_table(&owner.t).then(Fault::HoldAnswer(gate));
    let Asleep { gate, task, .. } = owner.falls_asleep("x", "late", hold).await;
    world.clock.jump(Duration::from_secs(3600));
    gate.open();
    let outcome = joined(task).await;
    assert!(matches!(outcome, Err(Error::LocksLost { .. })), "{outcome:?}");
}

/// Where data and sweep entry go by themselves, a crash between the two must leave the entry.
pub(crate) async fn data_are_never_there_without_their_sweep_entry(pipeline: bool) {
    let mut world = if pipeline { World::pipeline().await } else { World::steps(Kind::Exclusive).await };
    world.kind = Kind::Exclusive;
    let owner = world.open(AHEAD).await;
    let hold = |gate| owner.faulty.on(Op::Put).on_table(&sweep_queue_table()).then(Fault::Hold(gate));
    let Asleep { gate, task, .. } = owner.falls_asleep("x", "1", hold).await;
    assert_eq!(owner.faulty.calls(Op::Put, &owner.t), 0, "the data are there before anything speaks of them");
    gate.open();
    joined(task).await.expect("it commits");
}

/// A store in memory on which commits go step by step, with a serializable table.
struct Serial {
    atlas: Atlas,
    faulty: Faulty,
    t: TableRef,
    _place: Place,
}

impl Serial {
    async fn open() -> Serial {
        let place = Place::new(StoreKind::Memory);
        let faulty = Faulty::new(place.open().await);
        let config = place.config(MEMORY_STEPS);
        let atlas = Atlas::with_store(config, Arc::new(faulty.clone())).await.expect("the store opens");
        let t = table(&atlas, "t", ConflictHandler::SerializableCell).await;
        Serial { atlas, faulty, t, _place: place }
    }

    /// A transaction that has read one row and written another.
    async fn reads_and_writes(&self, read: &str, written: &str) -> atlas::transaction::Transaction {
        let tx = self.atlas.begin().await.expect("a transaction begins");
        get(&tx, &self.t, read).await;
        put(&tx, &self.t, written, "1").await;
        tx
    }
}

/// Whoever commits after the last look at what was read, and before the number is drawn, would come first in the order
/// of commits, and the reader would not have seen it.
pub(crate) async fn a_commit_between_the_last_look_and_the_number_is_a_conflict() {
    let store = Serial::open().await;
    let reader = store.reads_and_writes("y", "x").await;
    let gate = Gate::new();
    // The first look is the conflict check's, the second is at what was read.
    store.faulty.on(Op::Get).on_table(&store.t).after(1).then(Fault::HoldAnswer(gate.clone()));
    let task = committing(reader);
    gate.arrived().await;
    let other = store.atlas.begin().await.expect("a transaction begins");
    put(&other, &store.t, "y", "1").await;
    let overtaken_by = other.commit().await.expect("nothing is in its way").expect("it wrote");
    gate.open();
    if let Ok(Some(commit_ts)) = joined(task).await {
        assert!(
            commit_ts < overtaken_by,
            "it committed at {commit_ts} and did not see what committed at {overtaken_by}"
        );
    }
}

/// Both have their data in the store, and each meets the other's.
pub(crate) async fn two_who_read_what_the_other_writes_do_not_wait_for_each_other() {
    let store = Serial::open().await;
    let pair = [store.reads_and_writes("y", "x").await, store.reads_and_writes("x", "y").await];
    let gate = Gate::new();
    store.faulty.on(Op::Put).on_table(&store.t).times(2).then(Fault::HoldAnswer(gate.clone()));
    let tasks = pair.map(committing);
    for _ in &tasks {
        gate.arrived().await;
    }
    for _ in &tasks {
        gate.open();
    }
    let mut committed = 0;
    for task in tasks {
        let outcome = tokio::time::timeout(SOON, task).await.expect("they wait for each other").expect("it ends");
        committed += usize::from(outcome.is_ok());
    }
    assert!(committed < 2, "write skew");
}

// ---- the pipeline

pub(crate) async fn groups_are_synced() {
    let world = World::pipeline().await;
    for ahead_over in [WHOLE, AHEAD] {
        let owner = world.open(ahead_over).await;
        owner.write("x", "1").await.expect("it commits");
        assert_eq!(owner.faulty.relaxed_batches(), 0, "a power cut could take back what was seen");
        owner.manager.close().await.expect("it closes");
    }
}

// ---- backup

/// Between the last check and the entry, and its locks are gone: it may commit all the same.
pub(crate) async fn who_lost_its_locks_is_settled_too() {
    let world = World::steps(Kind::Exclusive).await;
    let owner = world.open(WHOLE).await;
    let Asleep { start_ts, gate, task } =
        owner.falls_asleep("x", "slow", |gate| owner.next_entry(Fault::Hold(gate))).await;
    take_locks_away(&owner);
    let up_to = owner.manager.oracle().fresh().await.expect("a number is issued");
    owner.manager.settle_within(up_to, A_MOMENT).await.expect("everything is settled");
    gate.open();
    let outcome = joined(task).await;
    assert!(matches!(outcome, Err(Error::RolledBack { .. })), "it committed below what was settled: {outcome:?}");
    assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack));
}

pub(crate) async fn the_backup_lock_waits_for_a_deletion() {
    let world = World::pipeline().await;
    MetaRecord::<u64>::create_table(&*world.inner).await.expect("the table of records is there");
    let lock = atlas::backup::BackupLock::new(world.inner.clone());
    let permit = lock.gate().permit().await.expect("nobody holds the lock");
    let acquiring = tokio::spawn(async move { lock.acquire_for_nobody("test").await });
    tokio::time::sleep(A_MOMENT).await;
    assert!(!acquiring.is_finished(), "a deletion is under way");
    drop(permit);
    joined(acquiring).await.expect("the lock is free");
}

/// What commits between a backup's timestamp and its snapshot lies in the copy, and its numbers must not come again.
pub(crate) async fn time_goes_on_above_all_that_was_copied() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let mut source = Source::new(rocks(&data).await, Some(data)).await;
    source.transact_many(3).await;
    let itself: Arc<OnceLock<Arc<Source>>> = Arc::default();
    let late = Arc::clone(&itself);
    source.in_settle = Some(Box::new(move |_| {
        let late = Arc::clone(&late);
        Box::pin(async move {
            late.get().expect("it was set").transact(0).await;
        })
    }));
    let source = itself.get_or_init(|| Arc::new(source));
    let info = create(source, &dir.path().join("repo"), Some("one")).await.expect("it can be taken");
    let (last, ..) = source.log.lock().await.last().cloned().expect("it committed");
    assert!(info.backup_ts < Some(last), "it committed after the timestamp");
    assert!(info.fast_forward_ts > Some(last), "{last} lies in the copy, and time goes on at {info:?}");
}

// ---- a second owner

/// Asleep before its sweep entry: it wakes up when its successor has settled all that it could find.
pub(crate) async fn who_sleeps_before_its_sweep_entry_does_not_commit() {
    let world = World::steps(Kind::Unfenced).await;
    let first = world.open(WHOLE).await;
    let hold = |gate| first.faulty.on(Op::Put).on_table(&sweep_queue_table()).then(Fault::Hold(gate));
    let Asleep { start_ts, gate, task } = first.falls_asleep("x", "stale", hold).await;
    first.fall_silent();
    let second = world.open(WHOLE).await;
    let up_to = second.manager.oracle().fresh().await.expect("a number is issued");
    second.manager.settle(up_to).await.expect("everything is settled");
    gate.open();
    world.within(LEASE * 2, task).await.expect_err("its lease is over");
    assert!(!matches!(world.entry(start_ts).await, Some(Entry::Committed(_))));
}

/// Asleep between the last check and the entry, and nobody has met its data.
pub(crate) async fn a_sleeper_of_a_former_owner_does_not_commit_once_all_is_settled() {
    let world = World::steps(Kind::Unfenced).await;
    let first = world.open(WHOLE).await;
    let Asleep { start_ts, gate, task } =
        first.falls_asleep("x", "stale", |gate| first.next_entry(Fault::Hold(gate))).await;
    first.fall_silent();
    let second = world.open(WHOLE).await;
    let up_to = second.manager.oracle().fresh().await.expect("a number is issued");
    second.manager.settle(up_to).await.expect("everything is settled");
    assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack));
    gate.open();
    joined(task).await.expect_err("it was rolled back");
}

/// The owner sleeps with a batch in its hands. When it wakes up, its successor has read and written the same cell.
pub(crate) async fn a_batch_of_a_former_owner_is_refused() {
    for ahead_over in [WHOLE, AHEAD] {
        let world = World::pipeline().await;
        let first = world.open(ahead_over).await;
        let hold = |gate| first.next_batch(Fault::Hold(gate));
        let Asleep { start_ts, gate, task } = first.falls_asleep("x", "stale", hold).await;
        first.fall_silent();
        let second = world.open(WHOLE).await;
        assert_eq!(second.read("x").await, None);
        second.write("x", "new").await.expect("it commits");
        gate.open();
        assert_lost(joined(task).await);
        assert_eq!(world.entry(start_ts).await, None, "nothing was applied");
    }
}

/// Its clock stood still, so it believes in its lease; the store needs no clock.
pub(crate) async fn data_of_a_former_owner_are_refused_whatever_its_clock_says() {
    let world = World::steps(Kind::Fenced).await;
    let first = world.open_frozen().await;
    let hold = |gate: Gate| {
        // A batch behind the fence, or puts without it.
        for op in [Op::Apply, Op::Put] {
            first.faulty.on(op).on_table(&sweep_queue_table()).then(Fault::Hold(gate.clone()));
        }
    };
    let Asleep { start_ts, gate, task } = first.falls_asleep("x", "stale", hold).await;
    let second = world.open(WHOLE).await;
    let reader = second.begin().await;
    assert_eq!(reader.get(&second.t, &cell("x")).await.expect("it can be read"), None);
    gate.open();
    assert_lost(joined(task).await);
    assert!(!matches!(world.entry(start_ts).await, Some(Entry::Committed(_))));
    assert_eq!(reader.get(&second.t, &cell("x")).await.expect("it can be read"), None, "a snapshot stays as it is");
}

pub(crate) async fn a_successor_repeats_no_number() {
    for kind in [Kind::Fenced, Kind::Unfenced, Kind::Exclusive] {
        let world = World::steps(kind).await;
        let first = world.open(WHOLE).await;
        let last = first.manager.oracle().fresh_range(100).await.expect("numbers are issued").first.get() + 99;
        first.fall_silent();
        let second = world.open(WHOLE).await;
        let next = second.manager.oracle().fresh().await.expect("a number is issued");
        assert!(next.get() > last, "{kind:?}: {next} after {last}");
    }
}
