//! Lost answers, refused calls and calls that hang, at every step where they matter.
//!
//! What was reported as failed is never seen, what was reported as committed is always seen, and what was reported as
//! unknown is one of the two from the first moment somebody reads it, and for ever.

#![allow(dead_code, reason = "not every store has the pipeline")]

use crate::common::faulty::{Fault, Faulty, Gate, Op, PATIENCE, When};
use crate::common::*;
use atlas::kvs_api::{Durability, KeyValueService, Ownership, RowRange, Scan, TableKind};
use atlas::lock::{LockDescriptor, LockRequest};
use atlas::ops::{BeginOptions, Operations};
use atlas::schema::{ConflictHandler, meta_table};
use atlas::transaction::entry::{Entry, transactions_table};
use atlas::transaction::sweep_queue::{self, sweep_queue_table};
use atlas::transaction::{RunOptions, Transaction};
use atlas::{Atlas, Cell, Error, Result, TableRef, Timestamp};
use futures::TryStreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

macro_rules! fault_lane {
    ($name:ident, $lane:ident, [$($case:ident,)*]) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    crate::faults::$case(crate::common::$lane).await;
                }
            )*
        }
    };
}

/// A module of tests, one for each case of commits step by step.
macro_rules! steps_lane {
    ($name:ident, $lane:ident) => {
        fault_lane!(
            $name,
            $lane,
            [
                a_lost_answer_at_the_commit_point_is_settled_by_writing,
                a_late_commit_entry_changes_nothing,
                a_refused_commit_entry_is_a_plain_failure,
                an_unknown_outcome_is_decided_once_and_for_ever,
                a_settling_writer_without_its_locks_rolls_itself_back,
                the_conflict_check_spares_a_rival_that_is_alive,
                a_reader_waits_for_a_writer_that_may_have_committed_before_it,
                a_reader_does_not_wait_for_ever,
                settling_waits_for_commit_timestamps_that_were_drawn,
                a_transaction_that_loses_its_caller_is_settled_too,
                a_data_put_without_an_answer_is_never_followed_by_the_entry,
                data_that_arrives_late_is_never_seen,
                the_entry_waits_for_the_last_put,
            ]
        );
    };
}

/// One for each case of the pipeline.
#[allow(unused_macros, reason = "not every store has the pipeline")]
macro_rules! pipeline_lane {
    ($name:ident, $lane:ident) => {
        fault_lane!(
            $name,
            $lane,
            [
                a_group_is_seen_when_it_is_durable_and_not_before,
                of_two_rivals_in_one_group_one_commits,
                a_marker_waits_for_the_group_before_it,
                a_member_whose_caller_went_away_commits_all_the_same,
                a_group_without_an_answer_is_settled_after_opening_again,
                a_refused_group_leaves_nothing_and_the_next_one_commits,
                groups_that_overlap_are_seen_in_their_order,
                a_group_behind_a_lost_one_is_settled_with_it,
                a_marker_waits_for_every_group_on_its_way,
                closing_a_store_that_can_not_be_opened_again_ends,
                a_member_without_a_commit_timestamp_fails_and_may_come_again,
            ]
        );
    };
}

/// One for each case of data that goes with its entry: nothing is put ahead.
#[allow(unused_macros, reason = "not every store has the pipeline")]
macro_rules! together_lane {
    ($name:ident, $lane:ident) => {
        fault_lane!(
            $name,
            $lane,
            [
                a_table_dropped_during_a_commit_fails_its_own_writers_only,
                a_refused_group_does_not_hold_up_the_one_behind_it,
                a_write_that_never_came_is_not_tolerated,
            ]
        );
    };
}

/// One for each case in which callers wait until the layer gives up: these take their time.
#[allow(unused_macros, reason = "not every store has the pipeline")]
macro_rules! patience_lane {
    ($name:ident, $lane:ident) => {
        fault_lane!(
            $name,
            $lane,
            [
                an_applied_group_that_nobody_heard_of_is_unknown_and_then_committed,
                a_group_that_never_arrived_is_unknown_and_then_rolled_back,
            ]
        );
    };
}

/// One for each case of data that is put ahead of the pipeline.
#[allow(unused_macros, reason = "not every store has the pipeline")]
macro_rules! ahead_lane {
    ($name:ident, $lane:ident) => {
        fault_lane!(
            $name,
            $lane,
            [
                a_data_put_without_an_answer_is_never_followed_by_the_entry,
                data_that_arrives_late_is_never_seen,
                the_entry_waits_for_the_last_put,
            ]
        );
    };
}

/// A transaction store over a store that fails as told, with one table.
pub(crate) struct Fixture {
    pub(crate) atlas: Atlas,
    pub(crate) faulty: Faulty,
    pub(crate) t: TableRef,
    _place: Place,
}

impl Fixture {
    pub(crate) async fn open(lane: Lane) -> Fixture {
        Fixture::open_with(lane, |_| ()).await
    }

    pub(crate) async fn open_with(lane: Lane, change: impl FnOnce(&mut atlas::config::TransactionConfig)) -> Fixture {
        // Groups one after the other, unless the case is about those that overlap: what is held up stands in front of all.
        Fixture::over(lane, 1, |config| change(&mut config.transactions)).await
    }

    /// Over a store that takes two groups at the same time.
    pub(crate) async fn overlapping(lane: Lane) -> Fixture {
        Fixture::over(lane, 2, |_| ()).await
    }

    async fn over(lane: Lane, batches_at_once: usize, change: impl FnOnce(&mut atlas::config::AtlasConfig)) -> Fixture {
        let place = Place::new(lane.store);
        let faulty = Faulty::new(place.open().await).taking_at_once(batches_at_once);
        let mut config = place.config(lane);
        // It asks until when all is decided, and nobody takes off while that waits.
        config.sweep.enabled = false;
        change(&mut config);
        let atlas = Atlas::with_store(config, Arc::new(faulty.clone())).await.expect("the store opens");
        let t = table(&atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await;
        Fixture { atlas, faulty, t, _place: place }
    }

    pub(crate) async fn begin(&self) -> Transaction {
        self.atlas.begin().await.expect("a transaction begins")
    }

    /// A transaction that has written `value` to a row.
    pub(crate) async fn writer(&self, row: &str, value: &str) -> Transaction {
        let tx = self.begin().await;
        put(&tx, &self.t, row, value).await;
        tx
    }

    pub(crate) async fn read(&self, row: &str) -> Option<String> {
        read(&self.atlas, &self.t, row).await
    }

    pub(crate) async fn write(&self, row: &str, value: &str) -> Timestamp {
        write(&self.atlas, &self.t, &[(row, value)]).await
    }

    async fn entry(&self, start_ts: Timestamp) -> Option<Entry> {
        let kvs = self.atlas.transactions().kvs();
        let found = kvs.get_atomic(&transactions_table(), &[Entry::cell(start_ts)]).await.expect("entries can be read");
        found[0].as_ref().map(|bytes| Entry::decode(start_ts, bytes).expect("the entry was written"))
    }

    /// The call by which the pipeline finds out what became of a group: a store of our own is opened again, a shared one
    /// is told to refuse what is still on its way.
    pub(crate) fn on_settling(&self) -> When<'_> {
        match self.faulty.ownership() {
            Ownership::Exclusive(_) => self.faulty.on(Op::Reopen),
            Ownership::Shared => {
                let fence = Cell::copy_from("fence", "record");
                self.faulty.on(Op::CheckAndSet).on_table(&meta_table()).on_cell(&fence)
            }
        }
    }

    /// Lets everybody else run for a while, to see whether somebody does what he must not do yet.
    pub(crate) async fn a_while(&self) {
        let round_trips = matches!(self.faulty.ownership(), Ownership::Shared);
        for _ in 0..if round_trips { 100 } else { 20 } {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The next group commit stops at the gate.
    pub(crate) fn hold_group(&self) -> Gate {
        let gate = Gate::new();
        self.faulty.on(Op::Apply).on_table(&transactions_table()).then(Fault::Hold(gate.clone()));
        gate
    }
}

pub(crate) fn committing(tx: Transaction) -> JoinHandle<Result<Option<Timestamp>>> {
    tokio::spawn(async move { tx.commit().await })
}

pub(crate) async fn joined<T>(task: JoinHandle<T>) -> T {
    tokio::time::timeout(PATIENCE, task).await.expect("the task does not end").expect("the task ends")
}

// ---- step by step: the commit point

pub(crate) async fn a_lost_answer_at_the_commit_point_is_settled_by_writing(lane: Lane) {
    for fault in [Fault::LostApplied, Fault::LostNotApplied] {
        let store = Fixture::open(lane).await;
        store.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).then(fault.clone());
        let tx = store.writer("x", "1").await;
        let start_ts = tx.start_ts();
        let commit_ts = commit(tx).await;
        assert_eq!(store.entry(start_ts).await, Some(Entry::Committed(commit_ts)), "{fault:?}");
        assert_eq!(store.read("x").await.as_deref(), Some("1"), "{fault:?}");
        store.write("x", "2").await;
    }
}

pub(crate) async fn a_late_commit_entry_changes_nothing(lane: Lane) {
    let store = Fixture::open(lane).await;
    let gate = Gate::new();
    store.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).then(Fault::LostAppliedLater(gate.clone()));
    commit(store.writer("x", "1").await).await;
    gate.arrived().await;
    gate.open();
    gate.arrived().await;
    assert_eq!(store.read("x").await.as_deref(), Some("1"));
}

pub(crate) async fn a_refused_commit_entry_is_a_plain_failure(lane: Lane) {
    let store = Fixture::open(lane).await;
    store.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).then(Fault::Refuse);
    let tx = store.writer("x", "1").await;
    let error = tx.commit().await.expect_err("the entry was refused");
    assert!(error.is_retriable() && !matches!(error, Error::UnknownOutcome { .. }), "{error}");
    assert_eq!(store.read("x").await, None);
    assert_eq!(store.entry(tx.start_ts()).await, Some(Entry::RolledBack), "the reader has decided it");
    store.write("x", "2").await;
}

/// No answer ever comes. The requests are still on their way, and the reader must decide in a way they can't undo.
pub(crate) async fn an_unknown_outcome_is_decided_once_and_for_ever(lane: Lane) {
    for late_first in [false, true] {
        let store = Fixture::open(lane).await;
        let gate = Gate::new();
        let lost = Fault::LostAppliedLater(gate.clone());
        store.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).always().then(lost);
        let tx = store.writer("x", "1").await;
        let error = tx.commit().await.expect_err("no answer came");
        assert!(matches!(error, Error::UnknownOutcome { start_ts, .. } if start_ts == tx.start_ts()), "{error}");
        assert!(!error.is_retriable());
        store.faulty.heal();
        for _ in 0..store.faulty.calls(Op::PutUnlessExists, &transactions_table()) {
            gate.arrived().await;
        }
        if late_first {
            gate.open();
            gate.arrived().await; // One of the requests was carried out.
        }
        let seen = store.read("x").await;
        assert_eq!(seen.as_deref(), late_first.then_some("1"));
        for _ in 0..10 {
            gate.open();
        }
        store.a_while().await;
        assert_eq!(store.read("x").await, seen, "late first: {late_first}");
        store.write("x", "2").await;
    }
}

pub(crate) async fn a_settling_writer_without_its_locks_rolls_itself_back(lane: Lane) {
    let store = Fixture::open(lane).await;
    let locks = store.atlas.transactions().locks().clone();
    let gate = Gate::new();
    store.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).then(Fault::Hold(gate.clone()));
    let tx = store.writer("x", "1").await;
    let task = committing(tx.clone());
    gate.arrived().await;
    // The locks are lost, another one writes the cell: the first must not commit any more, though it believes it can.
    let tokens: Vec<_> = locks.holders().into_iter().map(|holder| holder.token).collect();
    assert!(!locks.unlock(&tokens).is_empty());
    store.write("x", "2").await;
    gate.open();
    let error = joined(task).await.expect_err("it was rolled back");
    assert!(matches!(error, Error::RolledBack { .. }), "{error}");
    assert!(error.is_retriable());
    assert_eq!(store.read("x").await.as_deref(), Some("2"));
}

/// Step 3 meets an undecided version whose writer still holds the lock on its start timestamp: then it is we who have
/// lost our locks, and the healthy one must live.
pub(crate) async fn the_conflict_check_spares_a_rival_that_is_alive(lane: Lane) {
    let store = Fixture::open(lane).await;
    let locks = store.atlas.transactions().locks().clone();
    let gate = Gate::new();
    store.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).then(Fault::Hold(gate.clone()));
    let healthy = store.writer("x", "healthy").await;
    let late = store.writer("x", "late").await;
    let task = committing(healthy.clone());
    gate.arrived().await;
    // The cell is free, as if the locks of the late one had been taken from it; the start timestamp is not.
    let tokens: Vec<_> = locks.holders().into_iter().map(|holder| holder.token).collect();
    assert!(!locks.unlock(&tokens).is_empty());
    let own = LockRequest::new(vec![LockDescriptor::transaction(healthy.start_ts())], Duration::ZERO);
    let held = locks.lock(own).await.expect("nobody else wants it");
    let error = late.commit().await.expect_err("a rival is alive");
    assert!(matches!(error, Error::LocksLost { start_ts } if start_ts == late.start_ts()), "{error}");
    assert_eq!(store.entry(healthy.start_ts()).await, None, "the rival was not touched");
    gate.open();
    joined(task).await.expect("the healthy one commits");
    locks.unlock(&[held]);
    assert_eq!(store.read("x").await.as_deref(), Some("healthy"));
}

// ---- step by step: readers

pub(crate) async fn a_reader_waits_for_a_writer_that_may_have_committed_before_it(lane: Lane) {
    let store = Fixture::open(lane).await;
    store.write("x", "old").await;
    let gate = Gate::new();
    store.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).then(Fault::Hold(gate.clone()));
    let writer = committing(store.writer("x", "new").await);
    gate.arrived().await;
    // The commit timestamp is drawn, the entry is on its way: this one began after it.
    let reader = store.begin().await;
    let reading = tokio::spawn({
        let (reader, t) = (reader.clone(), store.t.clone());
        async move { get(&reader, &t, "x").await }
    });
    store.a_while().await;
    assert!(!reading.is_finished(), "nobody knows yet what it should see");
    gate.open();
    joined(writer).await.expect("the reader did not roll it back");
    assert_eq!(joined(reading).await.as_deref(), Some("new"));
    assert_eq!(get(&reader, &store.t, "x").await.as_deref(), Some("new"));
}

pub(crate) async fn a_reader_does_not_wait_for_ever(lane: Lane) {
    let store = Fixture::open_with(lane, |config| config.lock_timeout = Duration::from_millis(50)).await;
    let gate = Gate::new();
    store.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).then(Fault::Hold(gate.clone()));
    let writer = committing(store.writer("x", "new").await);
    gate.arrived().await;
    let reader = store.begin().await;
    let error = reader.get(&store.t, &cell("x")).await.expect_err("the writer does not come back");
    assert!(matches!(error, Error::LockTimeout { .. }), "{error}");
    gate.open();
    joined(writer).await.expect("it was not rolled back");
}

// ---- step by step: settling for a backup

pub(crate) async fn settling_waits_for_commit_timestamps_that_were_drawn(lane: Lane) {
    let store = Fixture::open(lane).await;
    let gate = Gate::new();
    store.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).then(Fault::Hold(gate.clone()));
    let writer = committing(store.writer("x", "1").await);
    gate.arrived().await;
    let backup_ts = store.atlas.fresh_timestamp().await.expect("a timestamp is issued");
    let settling = tokio::spawn({
        let manager = store.atlas.transactions().clone();
        async move { manager.settle(backup_ts).await }
    });
    store.a_while().await;
    assert!(!settling.is_finished(), "a commit below the backup timestamp is still on its way");
    gate.open();
    let commit_ts = joined(writer).await.expect("it commits").expect("it wrote");
    assert!(commit_ts < backup_ts);
    joined(settling).await.expect("everything below is decided");
    let options = BeginOptions { at: Some(backup_ts), ..BeginOptions::default() };
    let at = store.atlas.transactions().begin(options).await.expect("the past can be read");
    assert_eq!(get(&at, &store.t, "x").await.as_deref(), Some("1"));
}

pub(crate) async fn a_transaction_that_loses_its_caller_is_settled_too(lane: Lane) {
    let store = Fixture::open(lane).await;
    let gate = Gate::new();
    store.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).then(Fault::Hold(gate.clone()));
    let writer = committing(store.writer("x", "1").await);
    gate.arrived().await;
    writer.abort();
    joined_cancelled(writer).await;
    let backup_ts = store.atlas.fresh_timestamp().await.expect("a timestamp is issued");
    gate.open();
    store.atlas.transactions().settle(backup_ts).await.expect("everything below is decided");
    assert_eq!(store.read("x").await.as_deref(), Some("1"), "the commit went on without its caller");
}

async fn joined_cancelled<T>(task: JoinHandle<T>) {
    assert!(task.await.is_err_and(|error| error.is_cancelled()));
}

// ---- data before the entry

impl Fixture {
    /// Queue entry and data before the commit entry: step by step, where there is a fence, in a batch behind it.
    fn on_put_of(&self, table: &TableRef) -> When<'_> {
        let manager = self.atlas.transactions();
        let shared = matches!(manager.kvs().ownership(), Ownership::Shared);
        let fenced = shared && manager.kvs().capabilities().atomic_batch && manager.commit_mode() == "step_by_step";
        self.faulty.on(if fenced { Op::Apply } else { Op::Put }).on_table(table)
    }
}

pub(crate) async fn a_data_put_without_an_answer_is_never_followed_by_the_entry(lane: Lane) {
    for fault in [Fault::LostApplied, Fault::LostNotApplied, Fault::Refuse] {
        let store = Fixture::open(lane).await;
        for table in [sweep_queue_table(), store.t.clone()] {
            store.on_put_of(&table).then(fault.clone());
            let tx = store.writer("x", "1").await;
            let error = tx.commit().await.expect_err("the data was not put for certain");
            let said = format!("{lane:?} {fault:?}: {error}");
            assert!(error.is_retriable(), "nothing of it will ever be seen, so it is no unknown outcome: {said}");
            assert_eq!(store.read("x").await, None, "{said}");
            assert_eq!(store.entry(tx.start_ts()).await, Some(Entry::RolledBack), "{said}");
            assert_eq!(store.read("x").await, None, "{said}");
        }
        store.write("x", "2").await;
        assert_eq!(store.read("x").await.as_deref(), Some("2"));
    }
}

pub(crate) async fn data_that_arrives_late_is_never_seen(lane: Lane) {
    let store = Fixture::open(lane).await;
    let gate = Gate::new();
    store.on_put_of(&store.t).then(Fault::LostAppliedLater(gate.clone()));
    store.writer("x", "1").await.commit().await.expect_err("the data was not put for certain");
    gate.arrived().await;
    store.write("y", "1").await;
    gate.open();
    gate.arrived().await;
    assert_eq!(store.read("x").await, None, "{lane:?}");
    store.write("x", "2").await;
    assert_eq!(store.read("x").await.as_deref(), Some("2"), "{lane:?}");
}

/// The data of a large transaction is all there before its entry is: no reader meets a commit without its data.
pub(crate) async fn the_entry_waits_for_the_last_put(lane: Lane) {
    let store = Fixture::open(lane).await;
    let gate = Gate::new();
    store.on_put_of(&store.t).then(Fault::Hold(gate.clone()));
    let tx = store.writer("x", "1").await;
    let start_ts = tx.start_ts();
    let task = committing(tx);
    gate.arrived().await;
    store.a_while().await;
    assert_eq!(store.entry(start_ts).await, None, "{lane:?}");
    gate.open();
    joined(task).await.expect("it commits");
    assert_eq!(store.read("x").await.as_deref(), Some("1"), "{lane:?}");
}

// ---- the pipeline: what readers see while a group is on its way

pub(crate) async fn a_group_is_seen_when_it_is_durable_and_not_before(lane: Lane) {
    for fault in [Fault::Hold, Fault::HoldAnswer] {
        let store = Fixture::open(lane).await;
        store.write("x", "old").await;
        let gate = Gate::new();
        store.faulty.on(Op::Apply).on_table(&transactions_table()).then(fault(gate.clone()));
        let task = committing(store.writer("x", "new").await);
        gate.arrived().await;
        let reader = store.begin().await;
        assert_eq!(get(&reader, &store.t, "x").await.as_deref(), Some("old"), "a crash could take it back");
        assert_eq!(everything(&reader, &store.t).await, ["x/v=old"]);
        assert!(!task.is_finished(), "nobody was told");
        gate.open();
        joined(task).await.expect("it commits");
        assert_eq!(get(&reader, &store.t, "x").await.as_deref(), Some("old"), "a snapshot stays as it is");
        assert_eq!(everything(&reader, &store.t).await, ["x/v=old"]);
        assert_eq!(store.read("x").await.as_deref(), Some("new"));
    }
}

pub(crate) async fn of_two_rivals_in_one_group_one_commits(lane: Lane) {
    let store = Fixture::open(lane).await;
    let gate = store.hold_group();
    let first = committing(store.writer("a", "1").await);
    gate.arrived().await;
    // These queue up behind the group that is on its way, and share the next one.
    let rivals = [store.writer("x", "alice").await, store.writer("x", "bob").await].map(committing);
    store.a_while().await;
    gate.open();
    joined(first).await.expect("it commits");
    let mut outcomes = Vec::new();
    for rival in rivals {
        outcomes.push(joined(rival).await);
    }
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{lane:?}: {outcomes:?}");
    assert!(outcomes.iter().any(|outcome| matches!(outcome, Err(Error::Conflict { .. }))));
}

pub(crate) async fn a_marker_waits_for_the_group_before_it(lane: Lane) {
    let store = Fixture::open(lane).await;
    let gate = store.hold_group();
    let task = committing(store.writer("x", "1").await);
    gate.arrived().await;
    let backup_ts = store.atlas.fresh_timestamp().await.expect("a timestamp is issued");
    let settling = tokio::spawn({
        let manager = store.atlas.transactions().clone();
        async move { manager.settle(backup_ts).await }
    });
    store.a_while().await;
    assert!(!settling.is_finished(), "a commit below the backup timestamp is still on its way");
    gate.open();
    joined(settling).await.expect("everything below is decided");
    let commit_ts = joined(task).await.expect("it commits").expect("it wrote");
    assert!(commit_ts < backup_ts);
    let options = BeginOptions { at: Some(backup_ts), ..BeginOptions::default() };
    let at = store.atlas.transactions().begin(options).await.expect("the past can be read");
    assert_eq!(get(&at, &store.t, "x").await.as_deref(), Some("1"));
}

pub(crate) async fn a_member_whose_caller_went_away_commits_all_the_same(lane: Lane) {
    let store = Fixture::open(lane).await;
    let gate = store.hold_group();
    let task = committing(store.writer("x", "1").await);
    gate.arrived().await;
    task.abort();
    joined_cancelled(task).await;
    gate.open();
    store.write("y", "1").await; // Behind it in the queue.
    assert_eq!(store.read("x").await.as_deref(), Some("1"));
}

pub(crate) async fn a_table_dropped_during_a_commit_fails_its_own_writers_only(lane: Lane) {
    let store = Fixture::open(lane).await;
    let gone = table(&store.atlas, "gone", ConflictHandler::RetryOnWriteWriteCell).await;
    let gate = store.hold_group();
    let first = committing(store.writer("a", "1").await);
    gate.arrived().await;
    let (both, kept) = (store.writer("both", "1").await, store.writer("kept", "1").await);
    put(&both, &gone, "both", "1").await;
    let only_gone = store.begin().await;
    put(&only_gone, &gone, "only", "1").await;
    let (both_ts, kept_ts) = (both.start_ts(), kept.start_ts());
    let kept = committing(kept);
    store.a_while().await;
    // Behind it: what they leave for sweep together is the last one's.
    let tasks = [committing(both), committing(only_gone)];
    store.a_while().await;
    store.atlas.drop_table(&gone).await.expect("the table can be dropped");
    gate.open();
    joined(first).await.expect("it commits");
    for task in tasks {
        let error = joined(task).await.expect_err("its table is gone");
        assert_eq!(error.code(), "NOT_FOUND", "{error}");
    }
    joined(kept).await.expect("the dropped table is none of its business");
    assert_eq!(everything(&store.begin().await, &store.t).await, ["a/v=1", "kept/v=1"]);
    let scan = Scan::new(RowRange::all(), Timestamp::MAX);
    let entries: Vec<_> = store.faulty.scan(&sweep_queue_table(), scan).try_collect().await.expect("it can be read");
    let entries =
        entries.into_iter().map(|(place, value)| sweep_queue::decode(&place, &value.bytes).expect("it was written"));
    let entries: Vec<_> = entries.filter(|(writer, _)| *writer >= both_ts).collect();
    let [(writer, writes)] = &entries[..] else { panic!("one is left: {entries:?}") };
    assert_eq!((*writer, writes.len(), &writes[0].cell), (kept_ts, 1, &cell("kept")));
}

// ---- the pipeline: groups that overlap

/// Two transactions in two groups, of which the first stands at the gate and the second is written already.
async fn two_groups(store: &Fixture, fault: Fault, gate: &Gate) -> [JoinHandle<Result<Option<Timestamp>>>; 2] {
    let before = store.faulty.calls(Op::Apply, &transactions_table());
    store.faulty.on(Op::Apply).on_table(&transactions_table()).then(fault);
    let first = committing(store.writer("first", "1").await);
    gate.arrived().await;
    let second = committing(store.writer("second", "1").await);
    let written = async {
        while store.faulty.calls(Op::Apply, &transactions_table()) < before + 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.expect("the second group does not wait for the first");
    store.a_while().await;
    [first, second]
}

pub(crate) async fn groups_that_overlap_are_seen_in_their_order(lane: Lane) {
    for fault in [Fault::Hold, Fault::HoldAnswer] {
        let store = Fixture::overlapping(lane).await;
        let gate = Gate::new();
        let [first, second] = two_groups(&store, fault(gate.clone()), &gate).await;
        assert!(!second.is_finished(), "whoever begins after its answer would see the first one appear below it");
        assert_eq!(everything(&store.begin().await, &store.t).await, [""; 0], "neither is published");
        let rival = store.writer("second", "2").await;
        gate.open();
        let first = joined(first).await.expect("it commits").expect("it wrote");
        let second = joined(second).await.expect("it commits").expect("it wrote");
        assert!(first < second);
        assert_eq!(everything(&store.begin().await, &store.t).await, ["first/v=1", "second/v=1"]);
        let error = rival.commit().await.expect_err("it has not seen the second group");
        assert!(matches!(error, Error::Conflict { .. }), "{error}");
    }
}

pub(crate) async fn a_group_behind_a_lost_one_is_settled_with_it(lane: Lane) {
    let store = Fixture::overlapping(lane).await;
    let gate = Gate::new();
    let [first, second] = two_groups(&store, Fault::HoldAndLose(gate.clone()), &gate).await;
    let settling = Gate::new();
    store.on_settling().then(Fault::Hold(settling.clone()));
    gate.open();
    settling.arrived().await;
    store.a_while().await;
    assert!(!second.is_finished(), "nobody knows yet what lies below it");
    assert_eq!(everything(&store.begin().await, &store.t).await, [""; 0]);
    settling.open();
    let error = joined(first).await.expect_err("it was never applied");
    assert!(error.is_retriable(), "{error}");
    joined(second).await.expect("it was applied");
    assert_eq!(everything(&store.begin().await, &store.t).await, ["second/v=1"]);
    store.write("first", "again").await;
}

pub(crate) async fn a_refused_group_does_not_hold_up_the_one_behind_it(lane: Lane) {
    let store = Fixture::overlapping(lane).await;
    let gate = store.hold_group();
    let gone = table(&store.atlas, "gone", ConflictHandler::RetryOnWriteWriteCell).await;
    let writer = store.begin().await;
    put(&writer, &gone, "x", "1").await;
    let first = committing(writer);
    gate.arrived().await;
    let second = committing(store.writer("second", "1").await);
    store.a_while().await;
    store.atlas.drop_table(&gone).await.expect("the table can be dropped");
    gate.open();
    let error = joined(first).await.expect_err("its table is gone");
    assert_eq!(error.code(), "NOT_FOUND", "{error}");
    joined(second).await.expect("it commits");
    assert_eq!(store.read("second").await.as_deref(), Some("1"));
}

/// A touch leaves what it has read, which is no conflict with a write of the same value, but is with one that never came.
pub(crate) async fn a_write_that_never_came_is_not_tolerated(lane: Lane) {
    let store = Fixture::overlapping(lane).await;
    let t = table(&store.atlas, "values", ConflictHandler::RetryOnValueChanged).await;
    let gone = table(&store.atlas, "gone", ConflictHandler::RetryOnWriteWriteCell).await;
    write(&store.atlas, &t, &[("c", "v")]).await;
    let (changes, touches) = (store.begin().await, store.begin().await);
    put(&changes, &t, "c", "w").await;
    changes.commit().await.expect("it commits");
    let back = store.begin().await;
    put(&back, &t, "c", "v").await;
    put(&back, &gone, "x", "1").await;
    let gate = store.hold_group();
    let back = committing(back);
    gate.arrived().await;
    assert_eq!(get(&touches, &t, "c").await.as_deref(), Some("v"));
    put(&touches, &t, "c", "v").await;
    let touches = committing(touches);
    store.a_while().await;
    store.atlas.drop_table(&gone).await.expect("the table can be dropped");
    gate.open();
    joined(back).await.expect_err("its table is gone");
    let error = joined(touches).await.expect_err("it has not seen what stands now");
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    assert_eq!(read(&store.atlas, &t, "c").await.as_deref(), Some("w"));
}

pub(crate) async fn a_marker_waits_for_every_group_on_its_way(lane: Lane) {
    for behind in [false, true] {
        let store = Fixture::overlapping(lane).await;
        let gate = Gate::new();
        let tasks = if behind {
            Vec::from(two_groups(&store, Fault::Hold(gate.clone()), &gate).await)
        } else {
            // Another group could take off beside it; the marker must not.
            store.faulty.on(Op::Apply).on_table(&transactions_table()).then(Fault::Hold(gate.clone()));
            let first = committing(store.writer("first", "1").await);
            gate.arrived().await;
            vec![first]
        };
        let backup_ts = store.atlas.fresh_timestamp().await.expect("a timestamp is issued");
        let settling = tokio::spawn({
            let manager = store.atlas.transactions().clone();
            async move { manager.settle(backup_ts).await }
        });
        store.a_while().await;
        assert!(!settling.is_finished(), "commits below the backup timestamp are still on their way");
        gate.open();
        joined(settling).await.expect("everything below is decided");
        for task in tasks {
            assert!(joined(task).await.expect("it commits").expect("it wrote") < backup_ts);
        }
        let options = BeginOptions { at: Some(backup_ts), ..BeginOptions::default() };
        let at = store.atlas.transactions().begin(options).await.expect("the past can be read");
        let expected = if behind { vec!["first/v=1", "second/v=1"] } else { vec!["first/v=1"] };
        assert_eq!(everything(&at, &store.t).await, expected);
    }
}

// ---- the pipeline: a group without an answer

pub(crate) async fn a_group_without_an_answer_is_settled_after_opening_again(lane: Lane) {
    for fault in [Fault::LostApplied, Fault::LostNotApplied] {
        let store = Fixture::open(lane).await;
        let gate = store.hold_group();
        let first = committing(store.writer("first", "1").await);
        gate.arrived().await;
        store.faulty.on(Op::Apply).on_table(&transactions_table()).then(fault.clone());
        let members: Vec<_> = {
            let mut members = Vec::new();
            for number in 0..5 {
                members.push(committing(store.writer(&number.to_string(), "1").await));
            }
            members
        };
        store.a_while().await;
        gate.open();
        joined(first).await.expect("it was in the group before");
        for (number, member) in members.into_iter().enumerate() {
            let outcome = joined(member).await;
            let said = format!("{lane:?} {fault:?} {number}: {outcome:?}");
            let seen = store.read(&number.to_string()).await;
            match outcome {
                Ok(_) => assert!(seen.is_some(), "{said}"),
                Err(error) => {
                    assert!(error.is_retriable(), "it was settled: {said}");
                    assert_eq!(seen, None, "{said}");
                    assert!(matches!(fault, Fault::LostNotApplied), "it was applied: {said}");
                }
            }
        }
        let outcome = store.atlas.run_with(RunOptions::default(), async |tx| tx.put(&store.t, cell("next"), "1").await);
        outcome.await.expect("the pipeline goes on");
    }
}

pub(crate) async fn a_refused_group_leaves_nothing_and_the_next_one_commits(lane: Lane) {
    let store = Fixture::open(lane).await;
    store.faulty.on(Op::Apply).on_table(&transactions_table()).then(Fault::Refuse);
    let error = store.writer("x", "1").await.commit().await.expect_err("the group was refused");
    assert!(error.is_retriable(), "{error}");
    assert_eq!(store.read("x").await, None);
    store.write("x", "2").await;
}

/// The store does not open again for longer than members are made to wait.
async fn unknown_for_long(lane: Lane, fault: Fault) {
    let store = Fixture::open(lane).await;
    let applied = matches!(fault, Fault::LostApplied);
    let gate = store.hold_group();
    let first = committing(store.writer("first", "1").await);
    gate.arrived().await;
    store.faulty.on(Op::Apply).on_table(&transactions_table()).then(fault);
    store.on_settling().always().then(Fault::Refuse);
    let tx = store.writer("x", "1").await;
    let by_hand = committing(tx.clone());
    let run = |row: &'static str, idempotent: bool| {
        let (atlas, t) = (store.atlas.clone(), store.t.clone());
        spawn(move || async move {
            let attempts = AtomicU32::new(0);
            let options = RunOptions { idempotent, attempts_max: Some(1000), ..RunOptions::default() };
            let outcome = atlas
                .run_with(options, async |tx| {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    tx.put(&t, cell(row), "1").await
                })
                .await;
            (outcome, attempts.load(Ordering::Relaxed))
        })
    };
    let (once, again) = (run("once", false), run("again", true));
    for _ in 0..10_000 {
        if store.atlas.transactions().open_transactions() >= 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // All have begun. What is put ahead must be there before they can queue up behind the group that is on its way.
    let ahead = matches!(lane.pipeline_size_max, SizeLimit::Bytes(0));
    for _ in 0..10_000 {
        if !ahead || store.faulty.calls(Op::Put, &store.t) >= 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    store.a_while().await;
    gate.open();
    joined(first).await.expect("it was in the group before");
    let error = joined(by_hand).await.expect_err("nobody knows");
    assert!(matches!(error, Error::UnknownOutcome { .. }), "{error}");
    let (outcome, attempts) = joined(once).await;
    let error = outcome.expect_err("nobody knows");
    assert!(matches!(error, Error::UnknownOutcome { .. }), "{error}");
    assert_eq!(attempts, 1, "what may have been done is not done again");
    // Who comes now is sent away, and may come again.
    let error = store.writer("late", "1").await.commit().await.expect_err("the store is closed");
    assert!(error.is_retriable(), "{error}");
    store.faulty.heal();
    let (outcome, attempts) = joined(again).await;
    outcome.expect("it may be done twice, and the store is open again");
    assert!(attempts > 1);
    let seen = store.read("x").await;
    assert_eq!(seen.as_deref(), applied.then_some("1"), "settled by what is in the store");
    assert_eq!(store.read("once").await.is_some(), applied);
    let entry = store.entry(tx.start_ts()).await.expect("it is settled");
    assert_eq!(entry == Entry::RolledBack, !applied);
    store.write("late", "2").await;
    assert_eq!(store.read("x").await, seen, "and so for ever");
}

pub(crate) async fn an_applied_group_that_nobody_heard_of_is_unknown_and_then_committed(lane: Lane) {
    unknown_for_long(lane, Fault::LostApplied).await;
}

pub(crate) async fn a_group_that_never_arrived_is_unknown_and_then_rolled_back(lane: Lane) {
    unknown_for_long(lane, Fault::LostNotApplied).await;
}

pub(crate) async fn closing_a_store_that_can_not_be_opened_again_ends(lane: Lane) {
    let store = Fixture::open(lane).await;
    store.faulty.on(Op::Apply).on_table(&transactions_table()).then(Fault::LostNotApplied);
    store.on_settling().then(Fault::Refuse);
    let gate = Gate::new();
    store.on_settling().then(Fault::Hold(gate.clone()));
    let task = committing(store.writer("x", "1").await);
    gate.arrived().await;
    store.faulty.close().await.expect("the store below closes");
    gate.open();
    let error = joined(task).await.expect_err("nobody will ever know");
    assert!(matches!(error, Error::UnknownOutcome { .. }), "{error}");
    let _ = store.atlas.close().await;
}

// ---- the pipeline: time

pub(crate) async fn a_member_without_a_commit_timestamp_fails_and_may_come_again(lane: Lane) {
    for fault in [Fault::LostApplied, Fault::LostNotApplied, Fault::Refuse] {
        let store = Fixture::open(lane).await;
        let tx = store.writer("x", "1").await;
        // Use up the block, so that the next number needs a write.
        let oracle = store.atlas.transactions().oracle().clone();
        store.faulty.on(Op::CheckAndSet).always().then(fault.clone());
        for _ in 0..1000 {
            let left = oracle.bound().get() - oracle.last_issued().get() - 1;
            if left == 0 {
                break;
            }
            // The store draws numbers of its own now and then, and then these are too many.
            let _ = oracle.fresh_range(left).await;
        }
        let error = tx.commit().await.expect_err("there was no number");
        assert!(error.is_retriable(), "{fault:?}: {error}");
        store.faulty.heal();
        assert_eq!(store.read("x").await, None);
        store.write("x", "2").await;
    }
}

/// What the settling of a group relies on: a store that was opened again has told all it knows.
pub(crate) async fn opening_again_keeps_what_was_acknowledged(lane: Lane) {
    let store = Fixture::open(lane).await;
    store.write("x", "1").await;
    let kvs = store.atlas.transactions().kvs().clone();
    kvs.reopen().await.expect("the store opens again");
    assert_eq!(store.read("x").await.as_deref(), Some("1"));
    store.write("x", "2").await;
    kvs.reopen().await.expect("the store opens again");
    assert_eq!(store.read("x").await.as_deref(), Some("2"));
    kvs.apply(Default::default(), Durability::Synced).await.expect("an empty batch is fine");
    let description = kvs.table(&store.t).await.expect("tables can be asked for").expect("the table is there");
    assert_eq!(description.kind, TableKind::Versioned);
}
