//! The steps of a commit, in one place: logs, metrics, fail points and crash tests use these names.

use atlas_kvs::Timestamp;
use futures::future::BoxFuture;
use parking_lot::RwLock;
use std::fmt;
use std::sync::Arc;

/// The steps of a commit, in the order in which they are taken. The order is the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CommitStep {
    /// 1. Constraints of tables and limits: before anything is written.
    CheckConstraints,
    /// 2. Lock the written cells or rows and the own start timestamp. The pipeline needs no locks: its leader decides
    ///    alone.
    Lock,
    /// 3. Has somebody committed a cell we write since we read? After the locks: nobody may write in between.
    CheckWriteConflicts,
    /// 4. Tell sweep what will be overwritten. Before the data: a crash must leave a trace of it.
    EnqueueForSweep,
    /// 5. Put the data at `start_ts`. Before the commit timestamp: whoever starts after it must find the data.
    PutData,
    /// 6. Take the commit timestamp.
    TakeCommitTs,
    /// 7. Serializable tables: would every read give the same as of the commit timestamp?
    RecheckReads,
    /// 8. Conditions of the application.
    PreCommitConditions,
    /// 9. Are all locks still held? Last check: only the commit entry follows.
    CheckLocks,
    /// 10. Write `start_ts -> commit_ts`: the transaction is committed here and nowhere else.
    RecordCommit,
    /// The entry is durable; nobody was told yet.
    Recorded,
    /// Later transactions see it; the caller was not told yet.
    Published,
}

impl CommitStep {
    /// Every step, in order.
    pub const ALL: [CommitStep; 12] = [
        CommitStep::CheckConstraints,
        CommitStep::Lock,
        CommitStep::CheckWriteConflicts,
        CommitStep::EnqueueForSweep,
        CommitStep::PutData,
        CommitStep::TakeCommitTs,
        CommitStep::RecheckReads,
        CommitStep::PreCommitConditions,
        CommitStep::CheckLocks,
        CommitStep::RecordCommit,
        CommitStep::Recorded,
        CommitStep::Published,
    ];

    /// Name of the step's fail point.
    pub fn fail_point(self) -> &'static str {
        match self {
            CommitStep::CheckConstraints => "commit::check_constraints",
            CommitStep::Lock => "commit::lock",
            CommitStep::CheckWriteConflicts => "commit::check_write_conflicts",
            CommitStep::EnqueueForSweep => "commit::enqueue_for_sweep",
            CommitStep::PutData => "commit::put_data",
            CommitStep::TakeCommitTs => "commit::take_commit_ts",
            CommitStep::RecheckReads => "commit::recheck_reads",
            CommitStep::PreCommitConditions => "commit::pre_commit_conditions",
            CommitStep::CheckLocks => "commit::check_locks",
            CommitStep::RecordCommit => "commit::record_commit",
            CommitStep::Recorded => "commit::recorded",
            CommitStep::Published => "commit::published",
        }
    }
}

impl fmt::Display for CommitStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.fail_point())
    }
}

/// What a test does when the commit of the transaction with this start timestamp has reached a step. The commit goes on
/// when the future that is answered has ended.
pub type StepWatcher = Arc<dyn Fn(CommitStep, Timestamp) -> Option<BoxFuture<'static, ()>> + Send + Sync>;

static WATCHER: RwLock<Option<StepWatcher>> = RwLock::new(None);

/// From now on `watcher` is asked at every step of every commit in this process, which may stand still there without
/// holding up a thread. For tests: in builds without fail points nobody is asked.
pub fn watch_steps(watcher: StepWatcher) {
    *WATCHER.write() = Some(watcher);
}

/// The commit stands before this step; in the pipeline it may be the first of a group that stands there. A build with
/// fail points may end the process or wait here.
pub(crate) async fn reach(step: CommitStep, start_ts: Timestamp) {
    // Named before the macro, which is empty in other builds.
    let _name = step.fail_point();
    fail::fail_point!(_name);
    if fail::has_failpoints() {
        let watcher = WATCHER.read().clone();
        if let Some(stands) = watcher.and_then(|watcher| watcher(step, start_ts)) {
            stands.await;
        }
    }
}
