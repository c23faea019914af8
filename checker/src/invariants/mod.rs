//! What each workload keeps, looked at in every snapshot and after every commit.
//!
//! This repeats nothing of the replay: it reads the values, not the timestamps of those who wrote them, so that a
//! mistake in the one can be seen by the other. The crate's README says what tables, columns and values each workload
//! uses; the constants here are those.

mod append;
mod bank;
mod busy;
mod once;
mod ring;
mod transient;
mod write_skew;

pub(crate) use append::TABLE as APPEND_TABLE;

use crate::history::Op;
use crate::index::{CellId, TxnId};
use crate::report::{Findings, Kind};
use crate::story::{Story, name};
use crate::timeline::{Timeline, Version, Witness};

/// The names of the workloads whose invariants are known. `random` has none.
pub const WORKLOADS: [&str; 9] = [
    "bank",
    "write-skew",
    "ring",
    "transient-rows",
    "single-busy-cell",
    "single-busy-cell-touch",
    "multiple-busy-cells",
    "write-once-delete-once",
    "append",
];

/// Looks at the invariant of the history's workload; how often, or none if it has none.
pub(crate) fn check(timeline: &Timeline<'_, '_>, findings: &mut Findings) -> Option<u64> {
    let mut look = Look { timeline, findings, looks: 0 };
    match &*timeline.index.history.header.workload {
        "bank" => bank::check(&mut look),
        "write-skew" => write_skew::check(&mut look),
        "ring" => ring::check(&mut look),
        "transient-rows" => transient::check(&mut look),
        "single-busy-cell" | "single-busy-cell-touch" | "multiple-busy-cells" => busy::check(&mut look),
        "write-once-delete-once" => once::check(&mut look),
        "append" => append::check(&mut look),
        _ => return None,
    }
    Some(look.looks)
}

/// A check of one invariant while it goes on.
struct Look<'t, 'i, 'h> {
    timeline: &'t Timeline<'i, 'h>,
    findings: &'t mut Findings,
    looks: u64,
}

/// A cell's value: row, column, value.
type Found<'h> = (&'h str, &'h str, &'h str);

impl<'h> Look<'_, '_, 'h> {
    /// Reports that `by` saw, or made, something that the workload excludes.
    fn broken(&mut self, by: &[Witness], cells: &[CellId], problem: String) {
        let timeline = self.timeline;
        self.findings.add(Kind::Invariant, || {
            let names: Vec<String> = by.iter().map(|by| name(timeline, *by)).collect();
            let message = format!("{}: {problem}", names.join(" and "));
            let txns = by.iter().filter_map(|by| match by {
                Witness::Transaction(txn) => Some(*txn),
                Witness::FinalState => None,
            });
            (message, txns.collect(), Story::new(timeline, by, cells).draw())
        });
    }

    /// Whether the history or the caller named a table as serializable.
    fn is_serializable(&self, table: &str) -> bool {
        self.timeline.index.tables.iter().any(|known| known.name == table && known.serializable)
    }

    /// All that committed, in the order of their commits.
    fn commits(&self) -> Vec<TxnId> {
        let txns = 0..self.timeline.index.history.transactions.len();
        let mut commits: Vec<TxnId> =
            txns.filter(|&txn| self.timeline.is_committed(txn) && self.timeline.commit_ts(txn).is_some()).collect();
        commits.sort_by_key(|&txn| self.timeline.commit_ts(txn));
        commits
    }

    /// The cells of a table's column.
    fn cells_of(&self, table: &str, col: &str) -> Vec<CellId> {
        let index = self.timeline.index;
        let cells = (0..index.cells.len()).filter(|&cell| index.table_of(cell).name == table);
        cells.filter(|&cell| index.cells[cell].col == col).collect()
    }

    /// A cell's committed versions, oldest first.
    fn committed_versions(&self, cell: CellId) -> Vec<Version<'h>> {
        let versions = self.timeline.versions(cell).iter().copied();
        versions.filter(|version| self.timeline.is_committed(version.txn)).collect()
    }

    /// Every snapshot in which somebody saw a whole table: scans to the end, and the final state.
    ///
    /// A scan by a transaction that had written to the table before shows no snapshot, and is left out.
    fn whole_views(&self, table: &str) -> Vec<(Witness, Vec<Found<'h>>)> {
        let history = self.timeline.index.history;
        let mut views = Vec::new();
        for (txn, transaction) in history.transactions.iter().enumerate() {
            for op in &transaction.ops {
                match op {
                    Op::Put { cell, .. } | Op::Delete { cell } if &*cell.table == table => break,
                    Op::Scan(scan) if &*scan.table == table && scan.is_whole_table() => {
                        views.push((Witness::Transaction(txn), found(&scan.rows)));
                    }
                    Op::Get { .. } | Op::Put { .. } | Op::Delete { .. } | Op::Scan(_) => {}
                }
            }
        }
        let state = history.final_state.as_ref();
        let rows = state.and_then(|state| state.tables.get(table));
        views.extend(rows.map(|rows| (Witness::FinalState, found(rows))));
        views
    }

    /// Calls back with all that each transaction saw of its snapshot in some tables: cells and values, absent ones too.
    fn snapshots(&mut self, tables: &[&str], mut each: impl FnMut(&mut Self, Witness, &[(CellId, Option<&'h str>)])) {
        let index = self.timeline.index;
        for txn in 0..index.history.transactions.len() {
            let mut seen_cells = Vec::new();
            index.observe(txn, |seen| {
                if seen.own.is_none() && tables.contains(&index.table_of(seen.cell).name) {
                    seen_cells.push((seen.cell, seen.got));
                }
            });
            if !seen_cells.is_empty() {
                each(self, Witness::Transaction(txn), &seen_cells);
            }
        }
    }
}

fn found(rows: &[crate::history::Row]) -> Vec<Found<'_>> {
    rows.iter().map(|(row, col, value)| (&**row, &**col, &**value)).collect()
}
