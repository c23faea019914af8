//! Attempts that build on commits which are on their way: what they see, and what becomes of them.

use crate::common::clock::TestClock;
use crate::common::faulty::{Fault, Gate, Op};
use crate::common::*;
use crate::faults::{Fixture, committing, joined};
use atlas::config::ByteSize;
use atlas::lock::{HeldLocks, LockClient, LockDescriptor, LockOptions, LockRequest, LockService};
use atlas::ops::{BeginOptions, Operations, ScanOptions};
use atlas::schema::ConflictHandler;
use atlas::transaction::entry::transactions_table;
use atlas::transaction::{RunOptions, Transaction};
use atlas::{Error, Result, TableRef, Timestamp};
use bytes::Bytes;
use futures::TryStreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

type Committing = JoinHandle<Result<Option<Timestamp>>>;

/// What a commit lost to. It is told while that is on its way: nothing is waited for.
async fn lost_to(loser: Committing) -> Timestamp {
    let lost = tokio::time::timeout(Duration::from_secs(10), loser).await.expect("a loser is told at once");
    match lost.expect("the task ends") {
        Err(Error::Conflict { committed_at: Some(committed_at), .. }) => committed_at,
        other => panic!("it has not seen what is on its way: {other:?}"),
    }
}

impl Fixture {
    /// A transaction that writes `value` to "x", whose group stands at the gate, and what somebody lost to it.
    async fn on_its_way(&self, fault: Fault, gate: &Gate) -> (Committing, Timestamp) {
        let rival = self.writer("x", "rival").await;
        self.faulty.on(Op::Apply).on_table(&transactions_table()).then(fault);
        let first = committing(self.writer("x", "1").await);
        gate.arrived().await;
        (first, lost_to(committing(rival)).await)
    }

    /// What a writer of "x" lost to that was admitted after `earlier`, as soon as there is something: which of two tasks
    /// that commit comes first is chance. Another "x" must be on its way already.
    async fn lost_behind(&self, earlier: Timestamp) -> Timestamp {
        self.rival_lost_behind(&self.t, &["x"], earlier).await
    }

    /// As [`lost_behind`](Self::lost_behind), of a writer of these rows, who loses to the first of them that is on its
    /// way. One must be, or he is admitted himself.
    async fn rival_lost_behind(&self, table: &TableRef, rows: &[&str], earlier: Timestamp) -> Timestamp {
        let admitted = async {
            loop {
                let rival = self.begin().await;
                for row in rows {
                    put(&rival, table, row, "rival").await;
                }
                let lost = lost_to(committing(rival)).await;
                if lost > earlier {
                    break lost;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let admitted = tokio::time::timeout(Duration::from_secs(10), admitted).await;
        admitted.unwrap_or_else(|_| panic!("nothing was admitted after {earlier}"))
    }

    async fn begin_after(&self, lost_to: Timestamp) -> Transaction {
        let options = BeginOptions { lost_to: Some(lost_to), ..BeginOptions::default() };
        self.atlas.transactions().begin(options).await.expect("a transaction begins")
    }

    /// How many groups were written.
    fn groups(&self) -> usize {
        self.faulty.calls(Op::Apply, &transactions_table())
    }
}

pub(crate) async fn a_loser_sees_what_is_on_its_way_and_commits_behind_it(lane: Lane) {
    let store = Fixture::open(lane).await;
    store.write("x", "old").await;
    store.write("z", "old").await;
    let (gate, before) = (Gate::new(), store.groups());
    let (first, lost) = store.on_its_way(Fault::Hold(gate.clone()), &gate).await;
    let second = store.begin_after(lost).await;
    assert!(lost < second.read_ts() && second.read_ts() <= second.start_ts());
    assert_eq!(get(&second, &store.t, "x").await.as_deref(), Some("1"));
    assert_eq!(
        second.get_many(&store.t, &[cell("z"), cell("x")]).await.expect("it is open")[1].as_deref(),
        Some(&b"1"[..])
    );
    put(&second, &store.t, "a", "own").await;
    assert_eq!(everything(&second, &store.t).await, ["a/v=own", "x/v=1", "z/v=old"]);
    put(&second, &store.t, "x", "2").await;
    let second = committing(second);
    let second_at = store.lost_behind(lost).await;
    let third = store.begin_after(second_at).await;
    assert_eq!(everything(&third, &store.t).await, ["a/v=own", "x/v=2", "z/v=old"]);
    assert_eq!(get(&third, &store.t, "x").await.as_deref(), Some("2"), "the last of those that wrote it");
    third.delete(&store.t, cell("x")).await.expect("it is open");
    put(&third, &store.t, "z", "3").await;
    let third = committing(third);
    store.lost_behind(second_at).await;
    store.a_while().await;
    assert!(!first.is_finished() && !second.is_finished() && !third.is_finished(), "nothing of it is durable");
    assert_eq!(store.read("x").await.as_deref(), Some("old"), "whoever has lost nothing sees what is durable");
    gate.open();
    let mut commits = Vec::new();
    for task in [first, second, third] {
        commits.push(joined(task).await.expect("it commits").expect("it wrote"));
    }
    assert!(commits.is_sorted(), "{commits:?}");
    assert_eq!(everything(&store.begin().await, &store.t).await, ["a/v=own", "z/v=3"]);
    assert_eq!(store.groups() - before, 2, "the second and the third share a group");
}

pub(crate) async fn a_loser_conflicts_with_what_it_has_not_seen(lane: Lane) {
    let store = Fixture::open(lane).await;
    let gate = Gate::new();
    let (first, lost) = store.on_its_way(Fault::Hold(gate.clone()), &gate).await;
    let [second, third] = [store.begin_after(lost).await, store.begin_after(lost).await];
    put(&second, &store.t, "x", "2").await;
    put(&third, &store.t, "x", "3").await;
    let second = committing(second);
    store.lost_behind(lost).await;
    assert!(lost_to(committing(third)).await > lost, "it lost to the second");
    gate.open();
    joined(first).await.expect("it commits");
    joined(second).await.expect("it commits");
    assert_eq!(store.read("x").await.as_deref(), Some("2"));
}

/// Everything on its way is lost with the group that stands at the gate.
pub(crate) async fn who_has_read_what_is_lost_does_not_commit(lane: Lane) {
    let store = Fixture::open(lane).await;
    store.write("x", "old").await;
    let gate = Gate::new();
    let (first, lost) = store.on_its_way(Fault::HoldAndLose(gate.clone()), &gate).await;
    let late = store.begin_after(lost).await;
    assert_eq!(get(&late, &store.t, "x").await.as_deref(), Some("1"));
    let copies = store.begin_after(lost).await;
    let seen = get(&copies, &store.t, "x").await.expect("it is there");
    put(&copies, &store.t, "copy", &seen).await;
    let (copies, other) = (committing(copies), committing(store.writer("other", "1").await));
    store.a_while().await;
    gate.open();
    joined(first).await.expect_err("it was never applied");
    let error = joined(copies).await.expect_err("what it has read never was");
    assert!(matches!(error, Error::DependencyLost { .. }) && error.is_retriable(), "{error}");
    joined(other).await.expect("it has read nothing of it");
    put(&late, &store.t, "late", "1").await;
    let error = late.commit().await.expect_err("what it has read never was");
    assert!(matches!(error, Error::DependencyLost { .. }), "{error}");
    assert_eq!(everything(&store.begin().await, &store.t).await, ["other/v=1", "x/v=old"]);
    store.write("x", "new").await;
}

/// What stands in the store already but is not known to, nobody can see: what lies behind it must not be seen alone.
pub(crate) async fn nobody_builds_behind_what_is_being_settled(lane: Lane) {
    let store = Fixture::open(lane).await;
    store.write("x", "old").await;
    let (gate, settling) = (Gate::new(), Gate::new());
    let (first, lost) = store.on_its_way(Fault::HoldLostAnswer(gate.clone()), &gate).await;
    let other = committing(store.writer("other", "1").await);
    store.a_while().await;
    store.on_settling().then(Fault::Hold(settling.clone()));
    gate.open();
    settling.arrived().await;
    let late = store.begin_after(lost).await;
    let seen = get(&late, &store.t, "x").await.expect("it is there");
    put(&late, &store.t, "x", &format!("{seen} and more")).await;
    settling.open();
    joined(first).await.expect("it stands");
    joined(other).await.expect("it commits");
    let outcome = late.commit().await;
    assert!(matches!(outcome, Err(Error::Conflict { .. })), "it has not seen the first: {outcome:?}");
    assert_eq!(store.read("x").await.as_deref(), Some("1"));
}

/// A table that is gone takes its own writers along, and whoever has read what they wrote; in one group or in two.
pub(crate) async fn a_lost_member_takes_along_who_has_read_of_it(lane: Lane) {
    for in_one_group in [false, true] {
        let store = Fixture::open(lane).await;
        store.write("x", "old").await;
        let gone = table(&store.atlas, "gone", ConflictHandler::RetryOnWriteWriteCell).await;
        let gate = store.hold_group();
        // Always on its way is the one in front, if there is one, and else the writer.
        let rows = ["x", "zz"];
        let (mut in_front, mut in_front_at) = (None, Timestamp::FIRST);
        if in_one_group {
            in_front = Some(committing(store.writer("zz", "1").await));
            gate.arrived().await;
            in_front_at = store.rival_lost_behind(&store.t, &rows, in_front_at).await;
        }
        let writer = store.writer("x", "1").await;
        put(&writer, &gone, "y", "1").await;
        let writer = committing(writer);
        if !in_one_group {
            gate.arrived().await;
        }
        let reader = store.begin_after(store.rival_lost_behind(&store.t, &rows, in_front_at).await).await;
        let seen = get(&reader, &store.t, "x").await.expect("it is there");
        assert_eq!(seen, "1");
        put(&reader, &store.t, "copy", &seen).await;
        let (reader, other) = (committing(reader), committing(store.writer("other", "1").await));
        store.a_while().await;
        let behind = (!in_one_group).then(|| store.hold_group());
        store.atlas.drop_table(&gone).await.expect("the table can be dropped");
        gate.open();
        if let Some(in_front) = in_front.take() {
            joined(in_front).await.expect("it commits");
        }
        let error = joined(writer).await.expect_err("its table is gone");
        assert_eq!(error.code(), "NOT_FOUND", "{error}");
        let error = joined(reader).await.expect_err("what it has read never was");
        assert!(matches!(error, Error::DependencyLost { .. }), "{error}");
        if let Some(behind) = behind {
            behind.arrived().await;
            let late = store.begin_after(Timestamp::FIRST).await;
            let seen = everything(&late, &store.t).await;
            assert_eq!(seen, ["other/v=1", "x/v=old"], "what is on its way, and nothing of those who were lost");
            behind.open();
        }
        joined(other).await.expect("the dropped table is none of its business");
        assert_eq!(store.read("x").await.as_deref(), Some("old"));
        assert_eq!(store.read("copy").await, None);
        assert_eq!(store.read("other").await.as_deref(), Some("1"));
    }
}

pub(crate) async fn who_writes_nothing_waits_for_what_it_has_read(lane: Lane) {
    for lose in [false, true] {
        let store = Fixture::open(lane).await;
        let gate = Gate::new();
        let fault = if lose { Fault::HoldAndLose(gate.clone()) } else { Fault::Hold(gate.clone()) };
        let (first, lost) = store.on_its_way(fault, &gate).await;
        let reader = store.begin_after(lost).await;
        assert_eq!(get(&reader, &store.t, "x").await.as_deref(), Some("1"));
        let reader = committing(reader);
        store.a_while().await;
        assert!(!reader.is_finished(), "a crash could take back what it has read");
        gate.open();
        assert_eq!(joined(first).await.is_err(), lose);
        match joined(reader).await {
            Ok(None) => assert!(!lose, "what it has read never was"),
            Err(Error::DependencyLost { .. }) => assert!(lose, "what it has read is there"),
            other => panic!("{other:?}"),
        }
    }
}

/// Work that ends with an error of its own says why, and the reason may be something that is lost.
pub(crate) async fn a_refusal_of_the_work_waits_for_what_it_has_read(lane: Lane) {
    for lose in [false, true] {
        let store = Fixture::open(lane).await;
        store.write("x", "old").await;
        let gate = Gate::new();
        let fault = if lose { Fault::HoldAndLose(gate.clone()) } else { Fault::Hold(gate.clone()) };
        store.faulty.on(Op::Apply).on_table(&transactions_table()).then(fault);
        let first = committing(store.writer("x", "1").await);
        gate.arrived().await;
        let attempts = Arc::new(AtomicU32::new(0));
        let work = tokio::spawn(refuse_unless_old(store.atlas.clone(), store.t.clone(), attempts.clone()));
        let twice = async {
            while attempts.load(Ordering::SeqCst) < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), twice).await.expect("the second attempt need not wait");
        store.a_while().await;
        assert!(!work.is_finished(), "a crash could take back why it refuses");
        gate.open();
        assert_eq!(joined(first).await.is_err(), lose);
        let outcome = joined(work).await;
        if lose {
            outcome.expect("it is the old value after all");
            assert_eq!(store.read("x").await.as_deref(), Some("mine"));
        } else {
            assert!(matches!(outcome, Err(Error::Usage(_))), "{outcome:?}");
        }
    }
}

/// Writes "mine" to "x", and refuses to if it holds anything but "old".
async fn refuse_unless_old(atlas: atlas::Atlas, t: TableRef, attempts: Arc<AtomicU32>) -> Result<()> {
    let work = async |tx: Transaction| {
        let seen = tx.get(&t, &cell("x")).await?;
        attempts.fetch_add(1, Ordering::SeqCst);
        if seen.as_deref() != Some(b"old") {
            return Err(Error::Usage("somebody was here".to_owned()));
        }
        tx.put(&t, cell("x"), "mine").await
    };
    atlas.run_with(RunOptions::default(), work).await.map(drop)
}

pub(crate) async fn what_was_put_ahead_is_not_built_on(lane: Lane) {
    let store = Fixture::open_with(lane, |config| config.pipeline_size_max = ByteSize(100)).await;
    store.write("x", "old").await;
    let gate = store.hold_group();
    let rival = store.writer("x", "rival").await;
    let first = committing(store.writer("x", &"long".repeat(100)).await);
    gate.arrived().await;
    let second = store.begin_after(lost_to(committing(rival)).await).await;
    assert_eq!(get(&second, &store.t, "x").await.as_deref(), Some("old"), "its data are not known here");
    gate.open();
    joined(first).await.expect("it commits");
    put(&second, &store.t, "x", "2").await;
    let error = second.commit().await.expect_err("it has not seen the first");
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
}

/// Which of overlapping writers is seen their order does not tell.
pub(crate) async fn overlapping_writers_are_not_built_on(lane: Lane) {
    for handler in
        [ConflictHandler::IgnoreAll, ConflictHandler::RetryOnValueChanged, ConflictHandler::SerializableIndex]
    {
        let store = Fixture::open(lane).await;
        let free = table(&store.atlas, "free", handler).await;
        let rival = store.writer("x", "rival").await;
        let gate = store.hold_group();
        let first = store.writer("x", "1").await;
        put(&first, &free, "f", "1").await;
        let first = committing(first);
        gate.arrived().await;
        let second = store.begin_after(lost_to(committing(rival)).await).await;
        assert_eq!(get(&second, &store.t, "x").await, None, "{handler:?}");
        gate.open();
        joined(first).await.expect("it commits");
        assert_eq!(get(&second, &free, "f").await, None, "a snapshot stays as it is");
    }
}

/// What was seen is checked as all that is read, and scans go both ways and stop where they are told to.
pub(crate) async fn serializable_reads_of_what_is_on_its_way_are_checked(lane: Lane) {
    let store = Fixture::open(lane).await;
    let checked = table(&store.atlas, "checked", ConflictHandler::Serializable).await;
    write(&store.atlas, &checked, &[("a", "old"), ("b", "old")]).await;
    let rival = store.begin().await;
    put(&rival, &checked, "c", "rival").await;
    let gate = store.hold_group();
    let first = store.begin().await;
    put(&first, &checked, "c", "1").await;
    first.delete(&checked, cell("a")).await.expect("it is open");
    let first = committing(first);
    gate.arrived().await;
    let lost = lost_to(committing(rival)).await;
    let [reads, writes] = [store.begin_after(lost).await, store.begin_after(lost).await];
    let last = ScanOptions { reverse: true, limit: Some(1), ..ScanOptions::default() };
    let last: Vec<_> = reads.scan(&checked, last).await.expect("it is open").try_collect().await.expect("it is read");
    assert_eq!(last, [(cell("c"), Bytes::from("1"))]);
    assert_eq!(everything(&reads, &checked).await, ["b/v=old", "c/v=1"]);
    put(&reads, &store.t, "copy", "1").await;
    put(&writes, &checked, "bb", "2").await;
    let writes = committing(writes);
    // Behind it: else nobody has written into what is read.
    store.rival_lost_behind(&checked, &["bb", "c"], lost).await;
    let reads = committing(reads);
    store.a_while().await;
    gate.open();
    joined(first).await.expect("it commits");
    joined(writes).await.expect("it commits");
    let error = joined(reads).await.expect_err("somebody has written into what it read");
    assert!(matches!(error, Error::ReadConflict { .. }), "{error}");
}

/// Who waits behind a group may lose its locks meanwhile.
pub(crate) async fn locks_that_are_lost_before_the_group_leaves_count(lane: Lane) {
    let store = Fixture::open(lane).await;
    let gate = Gate::new();
    let (first, lost) = store.on_its_way(Fault::Hold(gate.clone()), &gate).await;
    let locked = store.begin_after(lost).await;
    let clock = TestClock::new();
    let service: Arc<dyn LockClient> = Arc::new(LockService::with_clock(1, LockOptions::default(), clock.clone()));
    let request = LockRequest::new(vec![LockDescriptor::advisory("the one")], Duration::from_secs(5));
    let held = HeldLocks::acquire(service.clone(), locked.start_ts(), request).await.expect("nobody holds it");
    locked.require_locks(Arc::new(held)).expect("it is open");
    put(&locked, &store.t, "x", "2").await;
    let locked = committing(locked);
    let behind = store.begin_after(store.lost_behind(lost).await).await;
    assert_eq!(get(&behind, &store.t, "x").await.as_deref(), Some("2"));
    put(&behind, &store.t, "copy", "2").await;
    let behind = committing(behind);
    store.a_while().await;
    clock.jump(service.lease());
    gate.open();
    joined(first).await.expect("it commits");
    let error = joined(locked).await.expect_err("somebody else may have its lock");
    assert!(matches!(error, Error::LocksLost { .. }), "{error}");
    let error = joined(behind).await.expect_err("what it has read never was");
    assert!(matches!(error, Error::DependencyLost { .. }), "{error}");
    assert_eq!(everything(&store.begin().await, &store.t).await, ["x/v=1"]);
}

/// The later of two groups may land without the earlier one.
pub(crate) async fn where_groups_overlap_nobody_builds_on_them(lane: Lane) {
    let store = Fixture::overlapping(lane).await;
    let gate = Gate::new();
    let (first, lost) = store.on_its_way(Fault::Hold(gate.clone()), &gate).await;
    let second = store.begin_after(lost).await;
    assert_eq!(get(&second, &store.t, "x").await, None);
    gate.open();
    joined(first).await.expect("it commits");
}

/// A module of tests, one for each case.
#[allow(unused_macros, reason = "some programs run single cases")]
macro_rules! dependency_lane {
    ($name:ident, $lane:ident) => {
        mod $name {
            dependency_lane!(
                $lane,
                a_loser_sees_what_is_on_its_way_and_commits_behind_it,
                a_loser_conflicts_with_what_it_has_not_seen,
                who_has_read_what_is_lost_does_not_commit,
                nobody_builds_behind_what_is_being_settled,
                serializable_reads_of_what_is_on_its_way_are_checked,
                locks_that_are_lost_before_the_group_leaves_count,
                a_lost_member_takes_along_who_has_read_of_it,
                who_writes_nothing_waits_for_what_it_has_read,
                a_refusal_of_the_work_waits_for_what_it_has_read,
                what_was_put_ahead_is_not_built_on,
                overlapping_writers_are_not_built_on,
                where_groups_overlap_nobody_builds_on_them,
            );
        }
    };
    ($lane:ident, $($case:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                crate::dependencies::$case(crate::common::$lane).await;
            }
        )*
    };
}
