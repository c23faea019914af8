//! *Settled up to T*, step by step: when it returns, no transaction with a commit timestamp below T can commit any more
//! that has not, whoever it belongs to and wherever it sleeps. And the end of an owner: it leaves nothing in between.
//!
//! Several "processes" share one store in memory, each through a wrapper of its own; time is moved by the test.

mod common;

use atlas::ops::BeginOptions;
use atlas::transaction::DecidedMark;
use atlas::transaction::entry::{Entry, transactions_table};
use atlas::transaction::sweep_queue::sweep_queue_table;
use atlas::{Cell, Error, Timestamp};
use common::cell;
use common::clock::settle;
use common::faulty::{Fault, Gate, Op};
use common::processes::*;
use std::time::Duration;

const KINDS: [Kind; 3] = [Kind::Fenced, Kind::Unfenced, Kind::Exclusive];
const AN_HOUR: Duration = Duration::from_secs(3600);
/// Of real time, for waits that are meant to be too short.
const A_MOMENT: Duration = Duration::from_millis(20);

impl Process {
    /// From now on nothing it writes into `_transactions` arrives.
    fn writes_no_entries(&self) {
        self.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).always().then(Fault::Refuse);
    }

    /// A transaction that left its data and no entry.
    async fn leaves_undecided(&self, row: &str) -> Timestamp {
        let tx = self.writer(row, "left over").await;
        let start_ts = tx.start_ts();
        tx.commit().await.expect_err("its entry can't be written");
        start_ts
    }

    /// A timestamp above all that were drawn so far, and everything below it settled.
    async fn settle(&self) -> Timestamp {
        let up_to = self.manager.oracle().fresh().await.expect("a number is issued");
        self.manager.settle(up_to).await.expect("everything is settled");
        up_to
    }

    /// How often it has looked at the sweep queue.
    fn walks(&self) -> usize {
        self.faulty.calls(Op::Scan, &sweep_queue_table())
    }
}

impl World {
    async fn mark(&self) -> Option<Timestamp> {
        let loaded = DecidedMark::in_store(self.inner.clone()).load().await.expect("the mark can be read");
        loaded.map(|(mark, _)| mark.below)
    }
}

#[track_caller]
fn assert_rolled_back<T: std::fmt::Debug>(outcome: atlas::Result<T>) {
    assert!(matches!(outcome, Err(Error::RolledBack { .. })), "expected rolled back, got {outcome:?}");
}

// ---- those of former owners

/// Asleep between the last check and the commit point, and nobody has met its data.
#[tokio::test]
async fn a_sleeper_of_a_former_owner_does_not_commit_once_all_is_settled() {
    for kind in KINDS {
        let world = World::steps(kind).await;
        let first = world.open(WHOLE).await;
        let Asleep { start_ts, gate, task } =
            first.falls_asleep("x", "stale", |gate| first.next_entry(Fault::Hold(gate))).await;
        first.fall_silent();
        let second = world.open(WHOLE).await;
        assert_eq!(world.entry(start_ts).await, None, "{kind:?}: a takeover alone decides nothing");
        second.settle().await;
        assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack), "{kind:?}");
        gate.open();
        assert_rolled_back(joined(task).await);
        assert_eq!(second.read("x").await, None, "{kind:?}");
    }
}

/// Asleep before its queue entry, or before its data: it wakes up when the queue was read.
#[tokio::test]
async fn who_sleeps_before_its_data_gets_no_commit_timestamp_any_more() {
    for (kind, table_is_queue) in KINDS.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let world = World::steps(kind).await;
        let first = world.open(WHOLE).await;
        let Asleep { start_ts, gate, task } =
            first.falls_asleep("x", "stale", |gate| hold_put(&first, table_is_queue, &gate)).await;
        first.fall_silent();
        let second = world.open(WHOLE).await;
        let up_to = second.settle().await;
        gate.open();
        world.within(LEASE * 2, task).await.expect_err("its lease is over");
        assert!(!matches!(world.entry(start_ts).await, Some(Entry::Committed(_))), "{kind:?}");
        let tx = second.manager.begin(BeginOptions { at: Some(up_to), ..BeginOptions::default() }).await;
        let seen = tx.expect("it is settled").get(&second.t, &cell("x")).await.expect("it can be read");
        assert_eq!(seen, None, "{kind:?}");
    }
}

fn hold_put(process: &Process, table_is_queue: bool, gate: &Gate) {
    let table = if table_is_queue { sweep_queue_table() } else { process.t.clone() };
    for op in [Op::Put, Op::Apply] {
        process.faulty.on(op).on_table(&table).then(Fault::Hold(gate.clone()));
    }
}

/// The same with a clock that stood still, as of a virtual machine that was paused. Where batches carry a fence, the
/// store needs no clock to refuse it.
#[tokio::test]
async fn with_a_fence_no_clock_need_be_right() {
    for table_is_queue in [true, false] {
        let world = World::steps(Kind::Fenced).await;
        let first = world.open_frozen().await;
        let Asleep { gate, task, .. } =
            first.falls_asleep("x", "stale", |gate| hold_put(&first, table_is_queue, &gate)).await;
        let second = world.open(WHOLE).await;
        second.settle().await;
        let reader = second.begin().await;
        assert_eq!(reader.get(&second.t, &cell("x")).await.expect("it can be read"), None);
        first.manager.oracle().check_held().expect("it believes in its lease");
        gate.open();
        assert_lost(joined(task).await);
        assert!(first.manager.oracle().lost().is_cancelled(), "the process learns it at once");
        assert_eq!(reader.get(&second.t, &cell("x")).await.expect("it can be read"), None);
    }
}

/// Allowed, as `docs/guarantees.md` says: without a fence a clock that stood still lets a former owner commit below
/// what its successor has settled.
#[tokio::test]
async fn without_a_fence_a_clock_that_stood_still_is_believed() {
    let world = World::steps(Kind::Unfenced).await;
    let first = world.open_frozen().await;
    let Asleep { gate, task, .. } = first.falls_asleep("x", "stale", |gate| hold_put(&first, true, &gate)).await;
    let second = world.open(WHOLE).await;
    let up_to = second.settle().await;
    gate.open();
    let commit_ts = joined(task).await.expect("nothing is in its way").expect("it wrote");
    assert!(commit_ts < up_to);
}

#[tokio::test]
async fn what_a_crash_left_is_decided_once() {
    for kind in KINDS {
        let world = World::steps(kind).await;
        let first = world.open(WHOLE).await;
        let committed = first.writer("x", "1").await;
        let (old, _) = (committed.start_ts(), committed.commit().await.expect("it commits"));
        first.writes_no_entries();
        let left = first.leaves_undecided("x").await;
        first.fall_silent();
        drop(first);

        let second = world.open(WHOLE).await;
        assert_eq!(second.walks(), 0, "{kind:?}: opening does not wait for it");
        second.settle().await;
        assert_eq!(world.entry(left).await, Some(Entry::RolledBack), "{kind:?}");
        assert!(matches!(world.entry(old).await, Some(Entry::Committed(_))), "{kind:?}");
        let walks = second.walks();
        assert!(walks > 0);
        second.settle().await;
        assert_eq!(second.walks(), walks, "{kind:?}: what was decided stays decided");
        second.fall_silent();

        // The third was told by the mark.
        let third = world.open(WHOLE).await;
        third.settle().await;
        // Of each shard the page that could hold what the second has begun.
        assert!(third.walks() <= walks, "{kind:?}");
        assert!(world.mark().await > Some(left), "{kind:?}");
        assert_eq!(third.read("x").await.as_deref(), Some("1"), "{kind:?}");
    }
}

#[tokio::test]
async fn after_an_orderly_end_there_is_nothing_to_look_at() {
    for kind in KINDS {
        let world = World::steps(kind).await;
        let first = world.open(WHOLE).await;
        first.settle().await;
        first.write("x", "1").await.expect("it commits");
        first.manager.close().await.expect("it closes");
        let second = world.open(WHOLE).await;
        second.settle().await;
        assert_eq!(second.walks(), 0, "{kind:?}");
        assert_eq!(second.read("x").await.as_deref(), Some("1"));
    }
}

/// Nobody settles anything and it is over before it would have looked around: closing in order is enough.
#[tokio::test]
async fn an_owner_that_lived_for_a_moment_leaves_nothing_to_look_at() {
    for kind in KINDS {
        let world = World::steps(kind).await;
        let first = world.open(WHOLE).await;
        let Asleep { start_ts, gate, task } =
            first.falls_asleep("x", "stale", |gate| first.next_entry(Fault::Hold(gate))).await;
        first.fall_silent();
        let second = world.open(WHOLE).await;
        let written = second.write("y", "1").await.expect("it commits");
        second.manager.close().await.expect("it closes");
        assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack), "{kind:?}");
        assert!(world.mark().await > Some(written), "{kind:?}");
        let third = world.open(WHOLE).await;
        third.settle().await;
        assert_eq!(third.walks(), 0, "{kind:?}");
        gate.open();
        assert_rolled_back(joined(task).await);
        assert_eq!(third.read("x").await, None, "{kind:?}");
    }
}

/// The mark speaks of former owners, too: who could not look at what they left does not move it.
#[tokio::test]
async fn an_owner_that_decided_nothing_moves_no_mark() {
    for kind in KINDS {
        let world = World::steps(kind).await;
        let first = world.open(WHOLE).await;
        let Asleep { start_ts, gate, task } =
            first.falls_asleep("x", "stale", |gate| first.next_entry(Fault::Hold(gate))).await;
        first.fall_silent();
        let second = world.open(WHOLE).await;
        second.write("y", "1").await.expect("it commits");
        second.writes_no_entries();
        second.manager.close().await.expect("it closes");
        assert_eq!(world.mark().await, None, "{kind:?}");
        let third = world.open(WHOLE).await;
        third.settle().await;
        assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack), "{kind:?}");
        gate.open();
        assert_rolled_back(joined(task).await);
    }
}

/// More writers than are decided together, and a store that refuses near the end of it: what was looked at before is not
/// looked at again.
#[tokio::test]
async fn a_walk_that_was_interrupted_goes_on_where_it_was() {
    let without_interruption = pages_of_a_walk(None).await;
    assert!(without_interruption > 16, "they are not enough: {without_interruption}");
    let interrupted = pages_of_a_walk(Some(4000)).await;
    // The page in the middle of which it was interrupted.
    assert!(interrupted <= without_interruption + 2, "{interrupted} pages instead of {without_interruption}");
}

/// How often the queue is looked at until the transactions that a former owner left are decided. After so many of them
/// the store refuses once.
async fn pages_of_a_walk(refusing_after: Option<usize>) -> usize {
    let world = World::steps(Kind::Unfenced).await;
    let first = world.open(WHOLE).await;
    first.writes_no_entries();
    let mut left = Vec::new();
    for number in 0..4500 {
        left.push(first.leaves_undecided(&format!("{number}")).await);
    }
    first.fall_silent();
    let second = world.open(WHOLE).await;
    let up_to = second.manager.oracle().fresh().await.expect("a number is issued");
    if let Some(refusing_after) = refusing_after {
        second.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).after(refusing_after).then(Fault::Refuse);
        second.manager.settle(up_to).await.expect_err("the store refuses");
        assert_eq!(world.mark().await, None, "not all is decided");
    }
    second.manager.settle(up_to).await.expect("everything is settled");
    for start_ts in &left {
        assert_eq!(world.entry(*start_ts).await, Some(Entry::RolledBack));
    }
    assert!(world.mark().await > left.last().copied());
    second.walks()
}

/// Step 3 of a former owner meets a version of its successor's.
#[tokio::test]
async fn a_former_owner_does_not_decide_transactions_of_its_successor() {
    for kind in [Kind::Fenced, Kind::Unfenced] {
        let world = World::steps(kind).await;
        let first = world.open(WHOLE).await;
        let late = first.writer("x", "late").await;
        first.fall_silent();
        let second = world.open(WHOLE).await;
        let gate = Gate::new();
        second.next_entry(Fault::Hold(gate.clone()));
        let healthy = committing(second.writer("x", "healthy").await);
        gate.arrived().await;
        joined(committing(late)).await.expect_err("its lease is over");
        gate.open();
        joined(healthy).await.expect("nobody disturbed it");
        assert_eq!(second.read("x").await.as_deref(), Some("healthy"), "{kind:?}");
    }
}

// ---- the mark

/// It stays below whoever may still commit: a transaction under way, and one that does not know.
#[tokio::test]
async fn the_mark_does_not_pass_a_transaction_that_may_commit() {
    for (kind, unknown) in KINDS.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let world = World::steps(kind).await;
        let first = world.open(WHOLE).await;
        first.write("a", "1").await.expect("it commits");
        let gate = Gate::new();
        let asleep = first.writer("x", "stale").await;
        let start_ts = asleep.start_ts();
        let task = if unknown {
            // Sent, not answered, and not applied for a long time.
            first.next_entry(Fault::LostAppliedLater(gate.clone()));
            first.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).always().then(Fault::LostNotApplied);
            let outcome = joined(committing(asleep)).await;
            assert!(matches!(outcome, Err(Error::UnknownOutcome { .. })), "{outcome:?}");
            None
        } else {
            first.next_entry(Fault::Hold(gate.clone()));
            let task = committing(asleep);
            gate.arrived().await;
            Some(task)
        };
        first.write("b", "1").await.map(drop).unwrap_or_default();
        // It can't be decided either, and holds nothing back but the mark.
        let tidied = first.manager.tidy().await;
        assert_eq!(tidied.is_err(), unknown, "{kind:?}: {tidied:?}");
        assert_eq!(world.entry(start_ts).await, None, "{kind:?}: whoever runs is left alone");
        let mark = world.mark().await.expect("it was moved");
        assert!(mark <= start_ts, "{kind:?}: {mark} passes {start_ts}");
        first.fall_silent();
        let second = world.open(WHOLE).await;
        second.settle().await;
        assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack), "{kind:?}");
        if unknown {
            gate.arrived().await; // It was there from the beginning.
        }
        gate.open();
        match task {
            Some(task) => assert_rolled_back(joined(task).await),
            None => gate.arrived().await,
        }
        assert_eq!(second.read("x").await, None, "{kind:?}");
    }
}

/// Nobody is left who could conclude it: the owner does, now and then, and the mark goes on.
#[tokio::test]
async fn the_mark_passes_what_ended_without_an_answer_once_it_is_decided() {
    for kind in KINDS {
        let world = World::steps(kind).await;
        let owner = world.open(WHOLE).await;
        let gate = Gate::new();
        owner.next_entry(Fault::LostAppliedLater(gate.clone()));
        owner.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).times(4).then(Fault::LostNotApplied);
        let tx = owner.writer("x", "?").await;
        let start_ts = tx.start_ts();
        let outcome = joined(committing(tx)).await;
        assert!(matches!(outcome, Err(Error::UnknownOutcome { .. })), "{outcome:?}");
        assert_eq!(world.entry(start_ts).await, None, "{kind:?}");
        owner.manager.tidy().await.expect("the store answers");
        assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack), "{kind:?}");
        assert!(world.mark().await > Some(start_ts), "{kind:?}");
        gate.arrived().await;
        gate.open();
        gate.arrived().await; // It has arrived, and found that.
        assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack), "{kind:?}");
        assert_eq!(owner.read("x").await, None, "{kind:?}");
    }
}

/// Nor does it pass one that has no commit timestamp yet: it may draw one as long as its owner lives.
#[tokio::test]
async fn the_mark_does_not_pass_an_open_transaction() {
    for kind in KINDS {
        let world = World::steps(kind).await;
        let first = world.open(WHOLE).await;
        first.settle().await;
        let tx = first.writer("x", "stale").await;
        let start_ts = tx.start_ts();
        first.write("a", "1").await.expect("it commits");
        first.manager.tidy().await.expect("the store answers");
        let mark = world.mark().await.expect("it was moved");
        assert!(mark <= start_ts, "{kind:?}: {mark} passes {start_ts}");
        let gate = Gate::new();
        first.next_entry(Fault::Hold(gate.clone()));
        let task = committing(tx);
        gate.arrived().await;
        first.fall_silent();
        let second = world.open(WHOLE).await;
        second.settle().await;
        assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack), "{kind:?}");
        gate.open();
        assert_rolled_back(joined(task).await);
    }
}

// ---- those of this owner

#[tokio::test]
async fn settling_waits_for_a_commit_under_way() {
    let world = World::steps(Kind::Unfenced).await;
    let owner = world.open(WHOLE).await;
    let Asleep { gate, task, .. } = owner.falls_asleep("x", "slow", |gate| owner.next_entry(Fault::Hold(gate))).await;
    let up_to = owner.manager.oracle().fresh().await.expect("a number is issued");
    let manager = owner.manager.clone();
    let settling = tokio::spawn(async move { manager.settle_within(up_to, AN_HOUR).await });
    settle().await;
    assert!(!settling.is_finished(), "it may still commit");
    // Whoever began later is none of its business.
    owner.write("y", "1").await.expect("it commits");
    settle().await;
    assert!(!settling.is_finished(), "it may still commit");
    gate.open();
    let commit_ts = joined(task).await.expect("nobody disturbed it").expect("it wrote");
    joined(settling).await.expect("it is settled");
    assert!(commit_ts < up_to);
}

#[tokio::test]
async fn settling_rolls_back_a_commit_that_takes_too_long() {
    let world = World::steps(Kind::Unfenced).await;
    let owner = world.open(WHOLE).await;
    let Asleep { start_ts, gate, task } =
        owner.falls_asleep("x", "slow", |gate| owner.next_entry(Fault::Hold(gate))).await;
    let up_to = owner.manager.oracle().fresh().await.expect("a number is issued");
    // A settling that can't write promises nothing, and the next one finds it all as it was.
    owner.next_entry(Fault::Refuse);
    owner.manager.settle_within(up_to, A_MOMENT).await.expect_err("the store refuses");
    assert_eq!(world.entry(start_ts).await, None);
    owner.manager.settle_within(up_to, A_MOMENT).await.expect("it is settled");
    assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack));
    gate.open();
    assert_rolled_back(joined(task).await);
    assert_eq!(owner.read("x").await, None);
}

/// Nobody is left who could conclude it, so nobody is waited for.
#[tokio::test]
async fn settling_decides_a_commit_that_ended_without_an_answer_at_once() {
    let world = World::steps(Kind::Unfenced).await;
    let owner = world.open(WHOLE).await;
    let gate = Gate::new();
    owner.next_entry(Fault::LostAppliedLater(gate.clone()));
    owner.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).times(4).then(Fault::LostNotApplied);
    let tx = owner.writer("x", "?").await;
    let start_ts = tx.start_ts();
    let outcome = joined(committing(tx)).await;
    assert!(matches!(outcome, Err(Error::UnknownOutcome { .. })), "{outcome:?}");
    let up_to = owner.manager.oracle().fresh().await.expect("a number is issued");
    let manager = owner.manager.clone();
    let settling = tokio::spawn(async move { manager.settle_within(up_to, AN_HOUR).await });
    joined(settling).await.expect("it is settled");
    assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack));
    gate.arrived().await;
    gate.open();
    gate.arrived().await; // It has arrived, and found that.
    assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack));
}

// ---- the end of an owner

#[tokio::test]
async fn closing_waits_for_commits_under_way() {
    for kind in KINDS {
        let world = World::steps(kind).await;
        let owner = world.open(WHOLE).await;
        let gate = Gate::new();
        owner.next_entry(Fault::Hold(gate.clone()));
        let late = owner.writer("y", "late").await;
        let task = committing(owner.writer("x", "1").await);
        gate.arrived().await;
        let manager = owner.manager.clone();
        let closing = tokio::spawn(async move { manager.close().await });
        settle().await;
        assert!(!closing.is_finished(), "{kind:?}: it is between steps 9 and 10");
        owner.manager.oracle().check_held().expect("nobody else may begin");
        let refused = late.commit().await.expect_err("it came too late");
        assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
        gate.open();
        joined(task).await.expect("it was waited for");
        joined(closing).await.expect("it closes");
        let next = world.open(WHOLE).await;
        assert_eq!(next.read("x").await.as_deref(), Some("1"));
        assert_eq!(next.read("y").await, None);
    }
}

#[tokio::test]
async fn closing_gives_up_commits_that_take_too_long() {
    let mut world = World::steps(Kind::Unfenced).await;
    world.transactions.timeout = Duration::from_millis(500);
    let owner = world.open(WHOLE).await;
    owner.settle().await;
    let (at_its_data, at_its_entry, at_the_mark) = (Gate::new(), Gate::new(), Gate::new());
    hold_put(&owner, false, &at_its_data);
    owner.next_entry(Fault::Hold(at_its_entry.clone()));
    // One has all the time of the world, whatever the others have.
    let patient = BeginOptions { timeout: Some(AN_HOUR), ..BeginOptions::default() };
    let early = owner.manager.begin(patient).await.expect("a transaction begins");
    early.put(&owner.t, cell("x"), "early").await.expect("a write is buffered");
    let late = owner.writer("y", "late").await;
    let starts = [early.start_ts(), late.start_ts()];
    let early = committing(early);
    at_its_data.arrived().await;
    let late = committing(late);
    at_its_entry.arrived().await;
    owner
        .faulty
        .on(Op::CheckAndSet)
        .on_cell(&Cell::copy_from("decided", "record"))
        .then(Fault::Hold(at_the_mark.clone()));
    let manager = owner.manager.clone();
    let closing = tokio::spawn(async move { manager.close().await });
    at_the_mark.arrived().await;
    assert_eq!(world.entry(starts[1]).await, Some(Entry::RolledBack), "nobody else begins before that");
    // A number that it drew now would be nobody's to wait for.
    at_its_data.open();
    joined(early).await.expect_err("it was given up");
    at_its_entry.open();
    assert_rolled_back(joined(late).await);
    at_the_mark.open();
    joined(closing).await.expect("it closes");
    let next = world.open(WHOLE).await;
    next.settle().await;
    for start_ts in starts {
        assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack));
    }
}
