//! One rule left out or turned round at a time. Each must break the property that is named.

use crate::properties::*;
use crate::rules::Path::{Batch, PutAhead, StepByStep};
use crate::rules::{CopyOrder, Path, Program, Publish, Rules, Scenario, Settle, Step, Turn};
use crate::scenarios::*;

pub(crate) struct Mutation {
    pub(crate) scenario: Scenario,
    /// The property that does not hold any more.
    pub(crate) breaks: &'static str,
}

/// A list of mutations, and a test for each.
macro_rules! mutations {
    ($($name:ident breaks $property:ident: $scenario:expr,)*) => {
        pub(crate) fn all() -> Vec<Mutation> {
            vec![$(Mutation {
                scenario: Scenario { name: stringify!($name).to_owned(), ..$scenario },
                breaks: $property,
            }),*]
        }

        #[cfg(test)]
        mod tests {
            $(
                #[test]
                fn $name() {
                    super::assert_refuted(stringify!($name));
                }
            )*
        }
    };
}

#[cfg(test)]
fn assert_refuted(name: &str) {
    let mutation = all().into_iter().find(|mutation| mutation.scenario.name == name).expect("it is in the list");
    assert!(crate::check::is_broken(&mutation.scenario, mutation.breaks), "'{}' holds", mutation.breaks);
}

fn a(programs: Vec<Program>, change: impl FnOnce(&mut Rules)) -> Scenario {
    Scenario::new(Rules::step_by_step(), programs).change(change)
}

fn b(programs: Vec<Program>, change: impl FnOnce(&mut Rules)) -> Scenario {
    Scenario::new(Rules::pipeline(), programs).change(change)
}

fn two_counters(path: Path) -> Vec<Program> {
    let counter = Program::of(path, &[0], &[0]);
    vec![counter.clone(), counter]
}

fn written_and_read(path: Path) -> Vec<Program> {
    vec![Program::of(path, &[], &[0]), Program::of(path, &[0], &[])]
}

/// Two who read each other's cell, and a reader of both.
fn observed_pair() -> Vec<Program> {
    vec![steps(&[0], &[1]), steps(&[], &[0]), steps(&[0, 1], &[])]
}

fn pair(path: Path) -> Vec<Program> {
    vec![Program::of(path, &[0], &[1]), Program::of(path, &[1], &[0])]
}

fn two_writers(path: Path) -> Vec<Program> {
    vec![Program::of(path, &[], &[0]), Program::of(path, &[], &[0])]
}

const TAKE_COMMIT_TS: Turn = Turn::Step(Step::TakeCommitTs);

mutations! {
    // ---- step by step: conflicts
    cells_are_not_locked breaks FIRST_COMMITTER_WINS:
        a(two_counters(StepByStep), |rules| rules.locks_cells = false),
    write_conflicts_are_not_checked breaks FIRST_COMMITTER_WINS:
        a(two_counters(StepByStep), |rules| rules.without(Step::CheckWriteConflicts)),
    write_conflicts_are_checked_before_locking breaks FIRST_COMMITTER_WINS:
        a(two_counters(StepByStep), |rules| rules.move_before(Turn::Step(Step::CheckWriteConflicts), Step::Lock(0))),
    conflict_check_ignores_undecided_writers breaks FIRST_COMMITTER_WINS:
        a(two_counters(StepByStep), |rules| rules.check_decides_rivals = false),
    conflict_check_rolls_back_the_living breaks LIVING_LEFT_ALONE:
        a(two_counters(StepByStep), |rules| rules.check_spares_the_living = false),
    locks_are_not_checked breaks FIRST_COMMITTER_WINS:
        a(two_counters(StepByStep), |rules| rules.without(Step::CheckLocks)),
    locks_are_checked_before_the_data breaks FIRST_COMMITTER_WINS:
        a(two_counters(StepByStep), |rules| rules.move_before(Turn::Step(Step::CheckLocks), Step::PutData(0))),
    unlocked_before_the_entry breaks LIVING_LEFT_ALONE:
        a(two_counters(StepByStep), |rules| rules.move_before(Turn::Unlock, Step::RecordCommit)),

    // ---- step by step: the entry
    commit_ts_before_data breaks SNAPSHOT_READS:
        a(written_and_read(StepByStep), |rules| rules.move_before(TAKE_COMMIT_TS, Step::PutData(0))),
    data_after_the_entry breaks COMMITS_ARE_WHOLE:
        a(written_and_read(StepByStep), |rules| {
            rules.move_before(Turn::Step(Step::RecordCommit), Step::PutData(0));
            rules.move_before(TAKE_COMMIT_TS, Step::RecordCommit);
        }),
    data_before_the_sweep_entry breaks DATA_ARE_ENQUEUED:
        a(written_and_read(StepByStep), |rules| rules.move_before(Turn::Step(Step::PutData(0)), Step::EnqueueForSweep)),
    the_entry_overwrites_what_stands breaks FATES_ARE_FINAL:
        a(written_and_read(StepByStep), |rules| rules.entry_is_believed = false),
    acknowledged_before_the_entry breaks NO_ACKED_COMMIT_LOST:
        a(two_counters(StepByStep), |rules| rules.move_before(Turn::Acknowledge, Step::RecordCommit)),
    readers_skip_undecided_writers breaks SNAPSHOT_READS:
        a(written_and_read(StepByStep), |rules| rules.readers_settle_writers = false),

    // ---- step by step: serializable
    reads_are_not_checked_again breaks SERIALIZABLE:
        a(pair(StepByStep), |rules| {
            rules.without(Step::RecheckReads(0));
            rules.without(Step::RecheckReads(1));
        }).serializable(),
    reads_are_checked_before_commit_ts breaks SERIALIZABLE:
        a(observed_pair(), |rules| {
            rules.move_before(Turn::Step(Step::RecheckReads(0)), Step::TakeCommitTs);
            rules.move_before(Turn::Step(Step::RecheckReads(1)), Step::TakeCommitTs);
        }).serializable(),
    reads_are_checked_before_the_data breaks SERIALIZABLE:
        a(pair(StepByStep), |rules| rules.move_before(Turn::Step(Step::RecheckReads(0)), Step::PutData(0))).serializable(),
    recheck_ignores_undecided_writers breaks SERIALIZABLE:
        a(pair(StepByStep), |rules| rules.recheck_settles_writers = false).serializable(),
    recheck_waits_for_later_writers breaks NO_DEADLOCK:
        a(pair(StepByStep), |rules| rules.recheck_waits_for_earlier_only = false).serializable(),
    a_absences_are_not_checked_again breaks SERIALIZABLE:
        a(absences(StepByStep), |rules| rules.recheck_absences = false).serializable(),
    a_ranges_are_not_checked_again breaks SERIALIZABLE:
        a(phantoms(StepByStep), |rules| rules.recheck_ranges = false).serializable(),

    // ---- the pipeline
    published_before_applied breaks SNAPSHOT_READS:
        b(written_and_read(Batch), |rules| rules.publish = Publish::BeforeApply),
    published_before_synced breaks NO_DIRTY_READ:
        b(written_and_read(Batch), |rules| rules.publish = Publish::BeforeSync).with_restart(),
    acknowledged_before_published breaks REAL_TIME_ORDER:
        b(written_and_read(Batch), |rules| rules.publish_before_acknowledge = false),
    snapshot_at_start_ts breaks SNAPSHOT_READS:
        b(written_and_read(Batch), |rules| rules.snapshot_at_watermark = false),
    start_ts_before_snapshot breaks SNAPSHOT_READS:
        b(counters([Batch; 3]), |rules| rules.snapshot_before_start_ts = false),
    conflicts_counted_from_start_ts breaks FIRST_COMMITTER_WINS:
        b(two_counters(Batch), |rules| rules.conflicts_from_read_ts = false),
    leader_blind_to_writes_ahead breaks FIRST_COMMITTER_WINS:
        b(two_counters(Batch), |rules| rules.leader_sees_ahead = false),
    leader_blind_to_writes_of_what_was_read breaks SERIALIZABLE:
        b(pair(Batch), |rules| rules.leader_sees_ahead = false).serializable(),
    b_absences_are_not_checked_again breaks SERIALIZABLE:
        b(absences(Batch), |rules| rules.recheck_absences = false).serializable(),
    b_ranges_are_not_checked_again breaks SERIALIZABLE:
        b(phantoms(Batch), |rules| rules.recheck_ranges = false).serializable(),
    ahead_entered_before_the_data breaks COMMITS_ARE_WHOLE:
        b(vec![ahead(&[], &[0]), batch(&[0], &[])], |rules| rules.move_before(Turn::Enter, Step::PutData(0))),
    leader_admits_who_was_rolled_back breaks FATES_ARE_FINAL:
        b(vec![ahead(&[0], &[0]), batch(&[0], &[0])], |rules| rules.leader_refuses_rolled_back = false).with_cleaner(),

    // ---- backup
    a_copied_without_settling breaks RESTORE_IS_EXACT:
        a(vec![steps(&[], &[0, 1]), steps(&[0], &[0])], |rules| rules.settle = Settle::Nothing).with_backup(),
    b_copied_without_settling breaks RESTORE_IS_EXACT:
        b(vec![batch(&[], &[0, 1]), batch(&[0], &[0])], |rules| rules.settle = Settle::Nothing).with_backup(),
    a_entries_copied_first_without_settling breaks RESTORE_IS_EXACT:
        a(vec![steps(&[], &[0, 1]), steps(&[0], &[0])], |rules| {
            rules.settle = Settle::Nothing;
            rules.copy_order = CopyOrder::EntriesFirst;
        }).with_backup(),
    b_cells_copied_first_without_settling breaks RESTORE_IS_WHOLE:
        b(vec![batch(&[], &[0, 1]), batch(&[0], &[0])], |rules| {
            rules.settle = Settle::Nothing;
            rules.copy_order = CopyOrder::CellsFirst;
        }).with_backup(),
    a_settling_waits_for_locks_only breaks RESTORE_IS_EXACT:
        a(vec![steps(&[], &[0, 1])], |rules| rules.settle = Settle::LocksReleased).with_backup(),
    b_settling_waits_for_locks_only breaks RESTORE_IS_EXACT:
        b(vec![batch(&[], &[0, 1])], |rules| rules.settle = Settle::LocksReleased).with_backup(),
    fast_forward_ts_before_the_copy breaks FAST_FORWARD_IS_ABOVE:
        a(vec![steps(&[], &[0, 1])], |rules| rules.fast_forward_after_copy = false).with_backup(),

    // ---- sweep
    a_no_sentinel breaks SNAPSHOT_READS:
        a(overwritten(StepByStep), |rules| rules.sentinels = false).with_sweep(),
    b_no_sentinel breaks SNAPSHOT_READS:
        b(overwritten(Batch), |rules| rules.sentinels = false).with_sweep(),
    deleted_before_the_sentinel breaks SNAPSHOT_READS:
        a(overwritten(StepByStep), |rules| rules.sentinel_before_delete = false).with_sweep(),
    sweep_ignores_open_readers breaks NO_LIVING_READER_TOO_OLD:
        a(overwritten(StepByStep), |rules| rules.sweep_respects_readers = false).with_sweep(),
    a_registered_after_the_snapshot breaks NO_LIVING_READER_TOO_OLD:
        a(overwritten(StepByStep), |rules| rules.register_before_read_ts = false).with_sweep(),
    b_registered_after_the_snapshot breaks SNAPSHOT_READS:
        b(overwritten(Batch), |rules| {
            thorough(rules);
            rules.register_before_read_ts = false;
        }).with_sweep(),
    sweep_ignores_the_backup_lock breaks RESTORE_IS_EXACT:
        a(two_writers(StepByStep), |rules| rules.sweep_respects_backup_lock = false).with_sweep().with_backup(),
    locked_while_a_deletion_is_under_way breaks RESTORE_IS_EXACT:
        a(two_writers(StepByStep), |rules| rules.lock_waits_for_deletions = false).with_sweep().with_backup(),
    timestamp_by_hand_pins_nothing breaks RESTORE_IS_EXACT:
        a(two_writers(StepByStep), |rules| {
            rules.timestamp_before_lock = true;
            rules.timestamp_pins_sweep = false;
        }).with_sweep().with_backup(),

    // ---- a second owner
    a_commit_ts_without_a_look_at_the_lease breaks SNAPSHOT_READS:
        a(torn_by_takeover(StepByStep), |rules| {
            rules.commit_ts_looks_at_lease = false;
            rules.check_locks_looks_at_lease = false;
        }).with_takeover(),
    a_lease_looked_at_before_the_data breaks SNAPSHOT_READS:
        a(torn_by_takeover(StepByStep), |rules| {
            rules.move_before(TAKE_COMMIT_TS, Step::PutData(0));
            rules.check_locks_looks_at_lease = false;
        }).with_takeover(),
    a_clock_stands_still_and_no_fence breaks SNAPSHOT_READS:
        a(torn_by_takeover(StepByStep), |_| ()).with_takeover().with_clock_that_stands_still(),
    a_clock_stands_still_and_the_backup_has_no_fence breaks RESTORE_IS_EXACT:
        a(copied_after_takeover(StepByStep), |_| ()).with_takeover().with_backup().with_clock_that_stands_still(),
    a_the_entry_overwrites_the_successors breaks FATES_ARE_FINAL:
        a(torn_by_takeover(StepByStep), |rules| {
            rules.entry_is_believed = false;
            rules.check_locks_looks_at_lease = false;
        }).with_takeover(),
    a_settling_ignores_predecessors breaks RESTORE_IS_EXACT:
        a(copied_after_takeover(StepByStep), |rules| rules.settle_decides_predecessors = false)
            .with_takeover().with_backup(),
    a_sweep_entry_after_commit_ts breaks RESTORE_IS_EXACT:
        a(copied_after_takeover(StepByStep), |rules| {
            rules.move_before(Turn::Step(Step::EnqueueForSweep), Step::CheckLocks);
            rules.check_locks_looks_at_lease = false;
        }).with_takeover().with_backup(),
    b_batches_without_the_fence breaks SNAPSHOT_READS:
        b(torn_by_takeover(Batch), |rules| rules.fence = false).with_takeover(),
    b_backup_without_the_fence breaks RESTORE_IS_EXACT:
        b(copied_after_takeover(Batch), |rules| rules.fence = false).with_takeover().with_backup(),
    ahead_batches_without_the_fence breaks SNAPSHOT_READS:
        b(torn_by_takeover(PutAhead), |rules| rules.fence = false).with_takeover(),
    b_begins_before_the_fence_is_raised breaks SNAPSHOT_READS:
        b(torn_by_takeover(Batch), |rules| rules.fence_before_begin = false).with_takeover(),
    a_successor_issues_below_the_bound breaks ISSUED_ONCE:
        a(torn_by_takeover(StepByStep), |rules| rules.successor_starts_at_bound = false).with_takeover(),
    b_successor_issues_below_the_bound breaks ISSUED_ONCE:
        b(torn_by_takeover(Batch), |rules| rules.successor_starts_at_bound = false).with_takeover(),
}
