//! The steps of a commit, in one place: logs, metrics, fail points and crash tests use these names.

use std::fmt;

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

/// A rule of the protocol that a test can leave out, to see that some other test notices. In builds without fail points
/// every rule is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Step 2: written cells or rows are locked.
    LockWrites,
    /// Step 3: committed writes at or above the snapshot are a conflict.
    CheckWrites,
    /// Step 6 comes after step 5.
    DataBeforeCommitTs,
    /// The pipeline lets others see a group only after it was applied.
    ApplyBeforePublish,
    /// Step 7: what was read must stand.
    RecheckReads,
    /// Step 9: locks are still held.
    CheckLocks,
    /// A reader waits for a writer that may hold a commit timestamp below its snapshot.
    WaitForWriters,
    /// Step 10 is a compare-and-set, and what stands decides.
    BelieveTheEntry,
    /// A lost answer is settled by writing, never by taking it for a failure.
    SettleByWriting,
    /// Sweep is granted nothing that an open snapshot needs.
    SweepBelowReaders,
    /// Sweep leaves a sentinel before it removes a version of a conservative table.
    SentinelsFirst,
    /// A reader asks after each read whether what it did not find may have been swept.
    CheckSwept,
    /// Sweep decides writers without an entry before it removes what they wrote, or keeps.
    DecideBeforeSweep,
    /// Sweep keeps the queue entry of a writer whose commit is too young.
    KeepYoungEntries,
    /// Nobody commits below the floor of `_transactions`.
    RefuseBelowFloor,
}

impl Rule {
    /// Name of its fail point; `return` leaves the rule out.
    pub(crate) fn fail_point(self) -> &'static str {
        match self {
            Rule::LockWrites => "rule::lock_writes",
            Rule::CheckWrites => "rule::check_writes",
            Rule::DataBeforeCommitTs => "rule::data_before_commit_ts",
            Rule::ApplyBeforePublish => "rule::apply_before_publish",
            Rule::RecheckReads => "rule::recheck_reads",
            Rule::CheckLocks => "rule::check_locks",
            Rule::WaitForWriters => "rule::wait_for_writers",
            Rule::BelieveTheEntry => "rule::believe_the_entry",
            Rule::SettleByWriting => "rule::settle_by_writing",
            Rule::SweepBelowReaders => "rule::sweep_below_readers",
            Rule::SentinelsFirst => "rule::sentinels_first",
            Rule::CheckSwept => "rule::check_swept",
            Rule::DecideBeforeSweep => "rule::decide_before_sweep",
            Rule::KeepYoungEntries => "rule::keep_young_entries",
            Rule::RefuseBelowFloor => "rule::refuse_below_floor",
        }
    }

    /// True unless a test has left the rule out.
    pub(crate) fn is_kept(self) -> bool {
        let _name = self.fail_point();
        fail::fail_point!(_name, |_| false);
        true
    }
}

/// The commit stands before this step. A build with fail points may end the process or wait here.
pub(crate) fn reach(step: CommitStep) {
    // Named before the macro, which is empty in other builds.
    let _name = step.fail_point();
    fail::fail_point!(_name);
}
