//! The rules of the protocol, each of which a test can leave out.
//!
//! A rule that nobody misses is either not needed or not tested. `tests/simulation_rules.rs` and `tests/rules.rs` leave
//! out one after the other and see to it that something goes wrong; `tests/model/README.md` says which rule of the model
//! each of them is. In builds without fail points every rule is kept.

/// A rule of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Step 2: written cells or rows are locked.
    LockWrites,
    /// Step 3 comes after step 2: nobody may write between the check and the data.
    LockBeforeCheck,
    /// Step 3: committed writes at or above the snapshot are a conflict.
    CheckWrites,
    /// Step 3 never ignores a writer that is undecided.
    DecideRivals,
    /// Step 3 rolls back no writer that holds its lock: then it is we who have lost ours.
    SpareTheLiving,
    /// Conflicts count from the snapshot, not from the start timestamp.
    CountFromSnapshot,
    /// Step 4 comes before step 5: a crash must leave a trace of the data.
    EnqueueBeforeData,
    /// Step 4 comes before step 6: a successor must find whoever may still commit.
    EnqueueBeforeCommitTs,
    /// Step 6 comes after step 5.
    DataBeforeCommitTs,
    /// The entry comes after the data, and a large transaction enters the pipeline after its last put.
    DataBeforeEntry,
    /// Step 7: what was read must stand.
    RecheckReads,
    /// Step 7 comes after step 5: of two who read what the other writes one must see the other.
    RecheckAfterData,
    /// Step 7 comes after step 6: what is read again is what stands at the commit.
    RecheckAfterCommitTs,
    /// What was not there when it was read is checked again, too.
    RecheckAbsences,
    /// Ranges are checked again as ranges.
    RecheckRanges,
    /// Step 7 never ignores a writer that started earlier and is undecided.
    RecheckDecides,
    /// Step 7 waits for nobody who started later, or two would wait for each other.
    WaitForEarlierOnly,
    /// Step 9: locks are still held.
    CheckLocks,
    /// Step 9 comes after the data: locks that are lost in between count.
    CheckLocksLast,
    /// Locks are given up after step 10.
    UnlockAfterEntry,
    /// The caller is told what step 10 has come to.
    AnswerByTheEntry,
    /// Step 10 is a compare-and-set, and what stands decides.
    BelieveTheEntry,
    /// A lost answer is settled by writing, never by taking it for a failure.
    SettleByWriting,
    /// A reader waits for a writer that may hold a commit timestamp below its snapshot.
    WaitForWriters,
    /// The pipeline's snapshots are what is applied, not what is numbered.
    SnapshotAtWatermark,
    /// A snapshot is chosen before its transaction is numbered.
    SnapshotBeforeNumber,
    /// The pipeline's leader checks a member against those ahead of it that are not applied yet.
    SeeMembersAhead,
    /// The pipeline lets others see a group only after it was applied.
    ApplyBeforePublish,
    /// And only after it is durable.
    SyncBeforePublish,
    /// The memory of cells learns of a group before others can see it.
    NoteBeforePublish,
    /// A reader brings nothing into that memory that was overwritten since.
    BringInUnlessOvertaken,
    /// A group whose outcome was unknown leaves nothing in it.
    ForgetTheUnknown,
    /// Nor does a table that was dropped or truncated.
    ForgetWhatWasRemoved,
    /// It lets others see a group before it tells its members.
    PublishBeforeAnswer,
    /// The lease is looked at after a number was chosen.
    LookAtTheLease,
    /// Who has read what was on its way and was lost does not commit.
    RefuseDependents,
    /// Nobody builds on what lies behind a commit of which nobody knows whether it stands.
    BuildOnWhatIsKnown,
    /// Who has read what is on its way tells nobody before it has landed.
    TellWhatHasLanded,
    /// A successor issues nothing below the bound it has found.
    NumbersAboveTheBound,
    /// The pipeline's batches carry the fence, where there is one.
    GuardBatches,
    /// Data that are put step by step carry it, too.
    GuardData,
    /// A backup copies nothing before every commit below its timestamp is decided.
    SettleBeforeCopy,
    /// Whoever has drawn a commit timestamp is waited for, whether it has its locks or not.
    SettleByRegister,
    /// Settling decides those of former owners, too.
    DecidePredecessors,
    /// A backup draws the timestamp that time goes on from when its snapshot is made: above all that lies in it.
    FastForwardAfterSnapshot,
    /// The backup lock is acquired when no deletion is under way.
    DrainDeletions,
    /// Sweep is granted nothing that an open snapshot needs.
    SweepBelowReaders,
    /// Sweep leaves a sentinel before it removes a version of a conservative table.
    SentinelsFirst,
    /// And before, not after: a deletion whose answer is lost may have been made.
    SentinelBeforeDelete,
    /// Sweep removes nothing without a permit of the backup lock's gate.
    SweepUnderPermit,
    /// A timestamp that was fetched into a file pins sweep.
    PinByTimestamp,
    /// A reader asks after each read whether what it did not find may have been swept.
    CheckSwept,
    /// Sweep decides writers without an entry before it removes what they wrote, or keeps.
    DecideBeforeSweep,
    /// Sweep keeps the queue entry of a writer whose commit is too young.
    KeepYoungEntries,
    /// Transactions of one batch share the queue entry of the one that commits last.
    ShareTheLastEntry,
    /// Sweep below what was restored keeps the queue entries of writers that the restore has undone.
    KeepSharesOfTheUndone,
    /// Nobody commits below the floor of `_transactions`.
    RefuseBelowFloor,
    /// The leader admits nobody whose entry says, or is about to say, *rolled back*.
    RefuseRolledBack,
    /// A commit that is under way holds sweep back, however long its transaction has been open.
    KeepWhileCommitting,
    /// Below the floor an absence is looked at twice before it means *rolled back*.
    LookTwiceBelowFloor,
    /// Entries whose versions do not carry the commit timestamp do not go.
    KeepEntriesOfBareVersions,
    /// After a restore the floor stays below what was restored until every table was walked.
    RestoreHoldsFloor,
}

impl Rule {
    /// Name of its fail point; `return` leaves the rule out.
    pub(crate) fn fail_point(self) -> &'static str {
        match self {
            Rule::LockWrites => "rule::lock_writes",
            Rule::LockBeforeCheck => "rule::lock_before_check",
            Rule::CheckWrites => "rule::check_writes",
            Rule::DecideRivals => "rule::decide_rivals",
            Rule::SpareTheLiving => "rule::spare_the_living",
            Rule::CountFromSnapshot => "rule::count_from_snapshot",
            Rule::EnqueueBeforeData => "rule::enqueue_before_data",
            Rule::EnqueueBeforeCommitTs => "rule::enqueue_before_commit_ts",
            Rule::DataBeforeCommitTs => "rule::data_before_commit_ts",
            Rule::DataBeforeEntry => "rule::data_before_entry",
            Rule::RecheckReads => "rule::recheck_reads",
            Rule::RecheckAfterData => "rule::recheck_after_data",
            Rule::RecheckAfterCommitTs => "rule::recheck_after_commit_ts",
            Rule::RecheckAbsences => "rule::recheck_absences",
            Rule::RecheckRanges => "rule::recheck_ranges",
            Rule::RecheckDecides => "rule::recheck_decides",
            Rule::WaitForEarlierOnly => "rule::wait_for_earlier_only",
            Rule::CheckLocks => "rule::check_locks",
            Rule::CheckLocksLast => "rule::check_locks_last",
            Rule::UnlockAfterEntry => "rule::unlock_after_entry",
            Rule::AnswerByTheEntry => "rule::answer_by_the_entry",
            Rule::BelieveTheEntry => "rule::believe_the_entry",
            Rule::SettleByWriting => "rule::settle_by_writing",
            Rule::WaitForWriters => "rule::wait_for_writers",
            Rule::SnapshotAtWatermark => "rule::snapshot_at_watermark",
            Rule::SnapshotBeforeNumber => "rule::snapshot_before_number",
            Rule::SeeMembersAhead => "rule::see_members_ahead",
            Rule::ApplyBeforePublish => "rule::apply_before_publish",
            Rule::SyncBeforePublish => "rule::sync_before_publish",
            Rule::NoteBeforePublish => "rule::note_before_publish",
            Rule::BringInUnlessOvertaken => "rule::bring_in_unless_overtaken",
            Rule::ForgetTheUnknown => "rule::forget_the_unknown",
            Rule::ForgetWhatWasRemoved => "rule::forget_what_was_removed",
            Rule::PublishBeforeAnswer => "rule::publish_before_answer",
            Rule::LookAtTheLease => "rule::look_at_the_lease",
            Rule::RefuseDependents => "rule::refuse_dependents",
            Rule::BuildOnWhatIsKnown => "rule::build_on_what_is_known",
            Rule::TellWhatHasLanded => "rule::tell_what_has_landed",
            Rule::NumbersAboveTheBound => "rule::numbers_above_the_bound",
            Rule::GuardBatches => "rule::guard_batches",
            Rule::GuardData => "rule::guard_data",
            Rule::SettleBeforeCopy => "rule::settle_before_copy",
            Rule::SettleByRegister => "rule::settle_by_register",
            Rule::DecidePredecessors => "rule::decide_predecessors",
            Rule::FastForwardAfterSnapshot => "rule::fast_forward_after_snapshot",
            Rule::DrainDeletions => "rule::drain_deletions",
            Rule::SweepBelowReaders => "rule::sweep_below_readers",
            Rule::SentinelsFirst => "rule::sentinels_first",
            Rule::SentinelBeforeDelete => "rule::sentinel_before_delete",
            Rule::SweepUnderPermit => "rule::sweep_under_permit",
            Rule::PinByTimestamp => "rule::pin_by_timestamp",
            Rule::CheckSwept => "rule::check_swept",
            Rule::DecideBeforeSweep => "rule::decide_before_sweep",
            Rule::KeepYoungEntries => "rule::keep_young_entries",
            Rule::ShareTheLastEntry => "rule::share_the_last_entry",
            Rule::KeepSharesOfTheUndone => "rule::keep_shares_of_the_undone",
            Rule::RefuseBelowFloor => "rule::refuse_below_floor",
            Rule::RefuseRolledBack => "rule::refuse_rolled_back",
            Rule::KeepWhileCommitting => "rule::keep_while_committing",
            Rule::LookTwiceBelowFloor => "rule::look_twice_below_floor",
            Rule::KeepEntriesOfBareVersions => "rule::keep_entries_of_bare_versions",
            Rule::RestoreHoldsFloor => "rule::restore_holds_floor",
        }
    }

    /// True unless a test has left the rule out.
    pub(crate) fn is_kept(self) -> bool {
        let _name = self.fail_point();
        fail::fail_point!(_name, |_| false);
        true
    }
}
