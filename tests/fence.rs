//! Commits on a store that several processes reach: what a former owner had on its way is never applied, and what
//! became of a batch without an answer is found out without opening the store again.
//!
//! Several "processes" share one store in memory, each through a wrapper of its own; time is moved by the test.

mod common;

use atlas::config::CommitModeChoice;
use atlas::ops::BeginOptions;
use atlas::schema::{MetaRecord, meta_table};
use atlas::timestamp::{FenceRecord, read_stored, take_over_for_command};
use atlas::transaction::entry::{CleanedWindow, CleanedWindows, Entry, transactions_table};
use atlas::{Cell, Error, Timestamp};
use common::clock::settle;
use common::faulty::{Fault, Gate, Op};
use common::processes::*;
use std::sync::Arc;

fn fence_cell() -> Cell {
    Cell::copy_from("fence", "record")
}

// ---- a former owner

/// The owner sleeps with a batch in its hands. When it wakes up, its successor has written the same cells.
#[tokio::test]
async fn a_batch_of_a_former_owner_is_refused_and_its_process_told() {
    for ahead_over in [WHOLE, AHEAD] {
        let world = World::pipeline().await;
        let first = world.open(ahead_over).await;
        first.write("x", "old").await.expect("it commits");
        let Asleep { start_ts, gate, task } =
            first.falls_asleep("x", "stale", |gate| first.next_batch(Fault::Hold(gate))).await;
        first.fall_silent();
        let second = world.open(WHOLE).await;
        assert_eq!(second.read("x").await.as_deref(), Some("old"));
        second.write("x", "new").await.expect("it commits");
        gate.open();
        assert_lost(joined(task).await);
        assert!(first.manager.oracle().lost().is_cancelled(), "the process learns it at once");
        assert_eq!(world.entry(start_ts).await, None, "nothing was applied");
        assert_eq!(second.read("x").await.as_deref(), Some("new"));
        let later = first.manager.begin(BeginOptions::default()).await.map(|tx| tx.start_ts());
        assert_lost(later);
        assert_lost(first.manager.settle(start_ts).await);
        // Its writes still fail, but it has nothing to give up.
        first.manager.close().await.expect("it closes");
        second.write("x", "newer").await.expect("it was not disturbed");
    }
}

/// Transactions that had begun before the takeover, and come to the leader when it has ended.
#[tokio::test]
async fn whoever_comes_later_is_told_the_same() {
    let world = World::pipeline().await;
    let first = world.open(WHOLE).await;
    let (early, beside) = (first.writer("a", "1").await, first.writer("b", "1").await);
    let (queued, late) = (first.writer("c", "1").await, first.writer("d", "1").await);
    let gate = Gate::new();
    let mut on_their_way = Vec::new();
    for writer in [early, beside] {
        first.next_batch(Fault::Hold(gate.clone()));
        on_their_way.push(committing(writer));
        gate.arrived().await;
    }
    let queued = committing(queued); // Behind the groups that are on their way.
    settle().await;
    first.fall_silent();
    let second = world.open(WHOLE).await;
    gate.open();
    gate.open();
    for task in on_their_way {
        assert_lost(joined(task).await);
    }
    assert_lost(joined(queued).await);
    assert_lost(late.commit().await);
    for row in ["a", "b", "c", "d"] {
        assert_eq!(second.read(row).await, None);
    }
}

/// Of two groups on their way the later one may come before the takeover, and the earlier one not.
#[tokio::test]
async fn a_group_that_came_before_the_takeover_stays_committed() {
    let world = World::pipeline().await;
    let first = world.open(WHOLE).await;
    let (early, beside) = (first.writer("a", "1").await, first.writer("b", "1").await);
    let gate = Gate::new();
    first.next_batch(Fault::Hold(gate.clone()));
    let early = committing(early);
    gate.arrived().await;
    let beside = committing(beside);
    settle().await;
    first.fall_silent();
    let second = world.open(WHOLE).await;
    assert_eq!(second.read("b").await.as_deref(), Some("1"), "whoever takes over finds it");
    gate.open();
    assert_lost(joined(early).await);
    joined(beside).await.expect("it is committed, and is told so");
    assert_eq!(second.read("a").await, None);
}

/// The fence is raised before the successor issues or reads anything: it does not come into being while the fence
/// stands as it was.
#[tokio::test]
async fn a_successor_begins_when_the_fence_is_raised_and_not_before() {
    let world = World::pipeline().await;
    let first = world.open(WHOLE).await;
    first.fall_silent();
    let before = world.fence().await;
    let (faulty, gate) = (world.faulty(), Gate::new());
    faulty.on(Op::CheckAndSet).on_cell(&fence_cell()).then(Fault::Hold(gate.clone()));
    let opening = world.opening(&faulty, WHOLE);
    for _ in 0..200 {
        world.clock.jump(LEASE / 100);
        settle().await;
    }
    gate.arrived().await;
    assert_eq!(world.fence().await, before);
    assert!(!opening.is_finished(), "batches of the former owner can still be applied");
    gate.open();
    let manager = world.within(LEASE, opening).await.expect("the owner is silent");
    assert_eq!(world.fence().await, FenceRecord { epoch: manager.oracle().epoch(), generation: 0 });
    assert!(manager.oracle().epoch() > before.epoch);
}

#[tokio::test]
async fn two_processes_do_not_open_one_store() {
    for mode in [CommitModeChoice::Pipeline, CommitModeChoice::StepByStep] {
        let world = World::new(mode).await;
        let first = world.open(WHOLE).await;
        let refused = world.within(LEASE, world.opening(&world.faulty(), WHOLE)).await.expect_err("it is in use");
        assert_eq!(refused.exit_code(), atlas::exit::REFUSED);
        first.write("x", "1").await.expect("it was not disturbed");
        first.manager.close().await.expect("it closes");
        let second = world.open(WHOLE).await;
        assert_eq!(second.read("x").await.as_deref(), Some("1"));
    }
}

/// Who forgets to close makes nobody wait, and what he had on its way comes to its end first.
#[tokio::test]
async fn a_store_that_is_dropped_is_given_up_when_its_commits_have_ended() {
    for mode in [CommitModeChoice::Pipeline, CommitModeChoice::StepByStep] {
        let world = World::new(mode).await;
        let first = world.open(WHOLE).await;
        let gate = Gate::new();
        let (op, fault) = (
            if mode == CommitModeChoice::Pipeline { Op::Apply } else { Op::PutUnlessExists },
            Fault::Hold(gate.clone()),
        );
        first.faulty.on(op).on_table(&transactions_table()).then(fault);
        let task = committing(first.writer("x", "1").await);
        gate.arrived().await;
        drop(first);
        settle().await;
        let record = read_stored(world.inner.clone()).await.expect("it can be read").expect("it is there");
        assert!(record.holder.is_some(), "{mode:?}: a commit is under way");
        gate.open();
        joined(task).await.expect("it commits");
        settle().await;
        let second = joined(world.opening(&world.faulty(), WHOLE)).await.expect("the clock has not moved");
        let next = Process { faulty: world.faulty(), manager: second, t: world.t.clone() };
        assert_eq!(next.read("x").await.as_deref(), Some("1"), "{mode:?}");
    }
}

/// What a command did while it owned the store is seen by whoever waited for it to end.
#[tokio::test]
async fn a_restore_that_begins_while_one_waits_to_open_is_not_overlooked() {
    let world = World::pipeline().await;
    let command = tokio::spawn(take_over_for_command(Arc::new(world.faulty()), world.lease()));
    let command = world.within(LEASE, command).await.expect("nobody owns the store");
    let (faulty, gate) = (world.faulty(), Gate::new());
    let record = Cell::copy_from("oracle", "record");
    // It has looked at the windows already when it looks at the owner for the second time.
    faulty.on(Op::GetAtomic).on_cell(&record).after(1).then(Fault::Hold(gate.clone()));
    let opening = world.opening(&faulty, WHOLE);
    settle().await;
    gate.arrived().await;
    let windows = CleanedWindows { windows: vec![CleanedWindow { from: Timestamp::FIRST, until: None }] };
    let stored: MetaRecord<CleanedWindows> = CleanedWindows::in_store(world.inner.clone());
    stored.replace(None, Some(&windows)).await.expect("the window can be opened");
    command.release().await.expect("the timestamps are given up");
    gate.open();
    let refused = world.within(LEASE, opening).await.expect_err("a restore is under way");
    assert!(refused.to_string().contains("restore"), "{refused}");
    let record = read_stored(world.inner.clone()).await.expect("it can be read").expect("it is there");
    assert_eq!(record.holder, None, "the next command need not wait");
}

// ---- batches without an answer

#[tokio::test]
async fn an_unanswered_group_is_settled_by_raising_the_fence() {
    for (fault, ahead_over) in [Fault::LostApplied, Fault::LostNotApplied]
        .into_iter()
        .flat_map(|fault| [(fault.clone(), WHOLE), (fault, AHEAD)])
    {
        let world = World::pipeline().await;
        let owner = world.open(ahead_over).await;
        let before = world.fence().await;
        let applied = matches!(fault, Fault::LostApplied);
        owner.next_batch(fault);
        // The answer to raising the fence may be lost as well.
        owner.faulty.on(Op::CheckAndSet).on_cell(&fence_cell()).then(Fault::LostApplied);
        let tx = owner.writer("x", "1").await;
        let start_ts = tx.start_ts();
        let outcome = joined(committing(tx)).await;
        assert_eq!(outcome.is_ok(), applied, "{outcome:?}");
        let entry = world.entry(start_ts).await.expect("it is settled");
        match outcome {
            Ok(commit_ts) => assert_eq!(Some(entry), commit_ts.map(Entry::Committed)),
            Err(error) => {
                assert!(error.is_retriable(), "{error}");
                assert_eq!(entry, Entry::RolledBack);
            }
        }
        let after = world.fence().await;
        assert!(after.epoch == before.epoch && after.generation > before.generation);
        assert_eq!(owner.read("x").await.is_some(), applied);
        owner.write("x", "2").await.expect("the pipeline goes on");
        assert_eq!(owner.faulty.calls(Op::Reopen, &meta_table()), 0);
    }
}

/// The batch was in a queue inside the server all the while. It must not come to life after its members were told that
/// they failed.
#[tokio::test]
async fn a_batch_that_arrives_late_is_not_applied() {
    for ahead_over in [WHOLE, AHEAD] {
        let world = World::pipeline().await;
        let owner = world.open(ahead_over).await;
        let gate = Gate::new();
        owner.next_batch(Fault::LostAppliedLater(gate.clone()));
        let tx = owner.writer("x", "late").await;
        let start_ts = tx.start_ts();
        let error = joined(committing(tx)).await.expect_err("it was rolled back");
        assert!(error.is_retriable() && !matches!(error, Error::UnknownOutcome { .. }), "{error}");
        owner.write("x", "2").await.expect("the pipeline goes on");
        gate.arrived().await;
        gate.open();
        gate.arrived().await; // It has arrived, and was refused.
        assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack));
        assert_eq!(owner.read("x").await.as_deref(), Some("2"));
    }
}

/// Nobody answers, and meanwhile somebody takes over: what stands in the store then is final.
#[tokio::test]
async fn an_unanswered_group_is_settled_by_what_a_successor_leaves() {
    for fault in [Fault::LostApplied, Fault::LostNotApplied, Fault::LostAppliedLater(Gate::new())] {
        let world = World::pipeline().await;
        let first = world.open(WHOLE).await;
        first.next_batch(fault.clone());
        first.fall_silent();
        let tx = first.writer("x", "1").await;
        let start_ts = tx.start_ts();
        let task = committing(tx);
        let second = world.open(WHOLE).await;
        let applied = matches!(fault, Fault::LostApplied);
        assert_eq!(second.read("x").await.is_some(), applied);
        if let Fault::LostAppliedLater(gate) = &fault {
            gate.arrived().await;
            gate.open();
            gate.arrived().await;
        }
        assert!(!task.is_finished(), "nobody knows yet");
        first.faulty.heal();
        let outcome = joined(task).await;
        if applied {
            let commit_ts = outcome.expect("it stands").expect("it wrote");
            assert_eq!(world.entry(start_ts).await, Some(Entry::Committed(commit_ts)));
        } else {
            assert_lost(outcome);
            assert_eq!(world.entry(start_ts).await, None, "entries are the successor's to write");
        }
        assert_eq!(second.read("x").await.is_some(), applied);
        second.write("x", "2").await.expect("it was not disturbed");
    }
}

/// Roll-backs are batches like any other: a former owner decides nothing any more.
#[tokio::test]
async fn roll_backs_of_a_former_owner_are_refused() {
    // Of a large transaction whose data could not be put.
    let world = World::pipeline().await;
    let first = world.open(AHEAD).await;
    first.faulty.on(Op::Put).on_table(&world.t).then(Fault::Refuse);
    let Asleep { start_ts, gate, task } =
        first.falls_asleep("x", "1", |gate| first.next_batch(Fault::Hold(gate))).await;
    first.fall_silent();
    let second = world.open(WHOLE).await;
    gate.open();
    joined(task).await.expect_err("its data could not be put");
    assert_eq!(world.entry(start_ts).await, None);
    drop(second);

    // Of a group that was not answered.
    let world = World::pipeline().await;
    let first = world.open(WHOLE).await;
    let gate = Gate::new();
    first.next_batch(Fault::LostNotApplied);
    first.next_batch(Fault::Hold(gate.clone()));
    let tx = first.writer("x", "1").await;
    let start_ts = tx.start_ts();
    let task = committing(tx);
    gate.arrived().await; // The fence was raised, no entry was found, the roll-back is on its way.
    first.fall_silent();
    let _second = world.open(WHOLE).await;
    first.faulty.heal();
    gate.open();
    assert_lost(joined(task).await);
    assert_eq!(world.entry(start_ts).await, None);
}

#[tokio::test]
async fn a_lease_that_ran_out_fails_commits_that_may_be_tried_again() {
    let world = World::pipeline().await;
    let owner = world.open(WHOLE).await;
    let tx = owner.writer("x", "1").await;
    owner.fall_silent();
    world.clock.advance(LEASE).await;
    let error = world.within(LEASE, committing(tx)).await.expect_err("somebody else may have begun");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    owner.faulty.heal();
    world.clock.advance(LEASE / 6).await;
    owner.write("x", "2").await.expect("nobody took over");
}

// ---- step by step

#[tokio::test]
async fn a_lease_lost_before_the_commit_point_fails_the_transaction() {
    let world = World::new(CommitModeChoice::StepByStep).await;
    let owner = world.open(WHOLE).await;
    let tx = owner.writer("x", "1").await;
    let clock = world.clock.clone();
    // Between the commit timestamp and the commit point.
    let sleeps = move |_| {
        clock.jump(LEASE);
        Ok(())
    };
    tx.add_pre_commit_condition(sleeps).expect("the transaction is open");
    let start_ts = tx.start_ts();
    let error = joined(committing(tx)).await.expect_err("somebody else may have begun");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert_eq!(world.entry(start_ts).await, Some(Entry::RolledBack));
}

/// Asleep between the last check and the commit point: whoever meets its data decides, and it sees who did.
#[tokio::test]
async fn a_writer_that_slept_at_the_commit_point_is_rolled_back_by_who_meets_it() {
    let world = World::new(CommitModeChoice::StepByStep).await;
    let first = world.open(WHOLE).await;
    let Asleep { gate, task, .. } = first.falls_asleep("x", "stale", |gate| first.next_entry(Fault::Hold(gate))).await;
    first.fall_silent();
    let second = world.open(WHOLE).await;
    assert_eq!(second.read("x").await, None);
    second.write("x", "new").await.expect("it commits");
    gate.open();
    let error = joined(task).await.expect_err("it was rolled back");
    assert!(matches!(error, Error::RolledBack { .. }), "{error}");
    assert_eq!(second.read("x").await.as_deref(), Some("new"));
}
