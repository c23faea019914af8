//! The white-box check: replays a history by its own timestamps and compares everything that was observed.
//!
//! Time is linearithmic in the operations and in the cells that scans cover; memory is linear. No part of it trusts
//! another one: a wrong timestamp is reported by the check of timestamps, and its consequences by the others.

mod classify;
mod conflicts;
mod form;
mod real_time;
mod recheck;
mod snapshot;
mod vacuity;

use crate::history::{History, Status};
use crate::index::Index;
use crate::report::{Findings, Report, Stats};
use crate::timeline::{Fate, Timeline};

/// What a run must at least have done for its success to mean anything. Zero asks for nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Minimums {
    /// Acknowledged commits.
    pub committed: u64,
    /// Acknowledged commits that wrote.
    pub committed_writers: u64,
    /// Attempts that lost against another transaction.
    pub conflicts: u64,
    /// Attempts of unknown outcome.
    pub unknown: u64,
    /// Injected faults; the last line of the history tells them.
    pub faults: u64,
    /// Looks at the workload's invariant.
    pub invariants: u64,
    /// Whether the history must end with the final state.
    pub final_state: bool,
}

/// How to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Serializable tables, in addition to those that the first line names.
    pub serializable: Vec<String>,
    /// What the run must have done.
    pub minimums: Minimums,
    /// How many anomalies of each kind are described; all are counted.
    pub shown_per_kind: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { serializable: Vec::new(), minimums: Minimums::default(), shown_per_kind: 3 }
    }
}

/// Checks a history: everything that this crate knows of but the second opinion.
pub fn check(history: &History, options: &Options) -> Report {
    let index = Index::new(history, &options.serializable);
    let mut findings = Findings::new(options.shown_per_kind);
    let mut timeline = Timeline::new(&index);
    crate::placement::place_unknown(&mut timeline);

    form::check(&timeline, &mut findings);
    // Snapshots come first of the rest: they tell which of the unknown ones committed.
    snapshot::check(&mut timeline, &mut findings);
    recheck::check(&mut timeline, &mut findings);
    conflicts::check(&timeline, &mut findings);
    real_time::check(&timeline, &mut findings);
    findings.stats().invariants = crate::invariants::check(&timeline, &mut findings);
    count(&timeline, findings.stats());
    vacuity::check(history, &options.minimums, &mut findings);
    findings.finish()
}

fn count(timeline: &Timeline<'_, '_>, stats: &mut Stats) {
    let history = timeline.index.history;
    for (txn, transaction) in history.transactions.iter().enumerate() {
        stats.transactions += 1;
        match transaction.status {
            Status::Committed => {
                stats.committed += 1;
                stats.committed_writers += u64::from(transaction.wrote());
            }
            Status::Aborted => {
                stats.aborted += 1;
                stats.conflicts += u64::from(transaction.is_conflict());
            }
            Status::Unknown => {
                stats.unknown += 1;
                match timeline.fate(txn) {
                    Fate::SeenCommitted(_) => stats.unknown_committed += 1,
                    Fate::SeenAborted(_) => stats.unknown_aborted += 1,
                    Fate::Open | Fate::Committed | Fate::Aborted => stats.unknown_open += 1,
                }
            }
        }
    }
    stats.faults = history.final_state.as_ref().and_then(|state| state.faults);
}
