//! The steps of a sweep, in one place: fail points and crash tests use these names.

/// The steps of a batch, in the order in which they are taken. The order is the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SweepStep {
    /// A timestamp was granted.
    Granted,
    /// Writers without an entry were rolled back.
    Decided,
    /// Deletion floor and timestamp of the table stand in the store.
    WrittenDown,
    /// Sentinels stand.
    SentinelsWritten,
    /// Versions are gone.
    Deleted,
    /// Progress stands in the store.
    ProgressMoved,
    /// Finished partitions of the queue are gone.
    PartitionsDropped,
    /// The floor of `_transactions` stands in the store, and nothing below it was removed yet.
    FloorRaised,
}

impl SweepStep {
    /// Every step, in order.
    pub const ALL: [SweepStep; 8] = [
        SweepStep::Granted,
        SweepStep::Decided,
        SweepStep::WrittenDown,
        SweepStep::SentinelsWritten,
        SweepStep::Deleted,
        SweepStep::ProgressMoved,
        SweepStep::PartitionsDropped,
        SweepStep::FloorRaised,
    ];

    /// Name of the step's fail point.
    pub fn fail_point(self) -> &'static str {
        match self {
            SweepStep::Granted => "sweep::granted",
            SweepStep::Decided => "sweep::decided",
            SweepStep::WrittenDown => "sweep::written_down",
            SweepStep::SentinelsWritten => "sweep::sentinels_written",
            SweepStep::Deleted => "sweep::deleted",
            SweepStep::ProgressMoved => "sweep::progress_moved",
            SweepStep::PartitionsDropped => "sweep::partitions_dropped",
            SweepStep::FloorRaised => "sweep::floor_raised",
        }
    }
}

/// Sweep stands behind this step. A build with fail points may end the process or wait here.
pub(super) fn reach(step: SweepStep) {
    // Named before the macro, which is empty in other builds.
    let _name = step.fail_point();
    fail::fail_point!(_name);
}
