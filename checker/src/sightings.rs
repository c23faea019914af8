//! What was seen of the cells that matter for attempts without a place.

use crate::index::{CellId, TxnId};
use crate::timeline::{Fate, Timeline, Witness};
use std::collections::{HashMap, HashSet};

/// One cell as it was below a timestamp.
#[derive(Clone, Copy)]
pub(crate) struct Sighting<'h> {
    pub(crate) by: Witness,
    /// The reader's snapshot, exclusive; or its commit, for a serializable table that was read once more then.
    pub(crate) below: u64,
    pub(crate) got: Option<&'h str>,
    /// Whether it holds only if its reader committed, of which nothing is known.
    pub(crate) is_open: bool,
}

pub(crate) struct Sightings<'h> {
    of: HashMap<CellId, OfCell<'h>>,
}

#[derive(Default)]
struct OfCell<'h> {
    // Invariant: sorted by `below`.
    all: Vec<Sighting<'h>>,
    /// Snapshots of attempts without a place, in a serializable table: they hold once more at commits still unknown.
    placeless: Vec<Sighting<'h>>,
}

impl<'h> Sightings<'h> {
    /// Of all cells that the attempts wrote.
    pub(crate) fn of(timeline: &Timeline<'_, 'h>, attempts: &[TxnId]) -> Self {
        let index = timeline.index;
        let writes = attempts.iter().flat_map(|&txn| index.writes(txn));
        let cells: HashSet<CellId> = writes.map(|write| write.cell).collect();
        let placeless: HashSet<TxnId> = attempts.iter().copied().collect();
        let mut of: HashMap<CellId, OfCell<'h>> = HashMap::new();
        for (reader, transaction) in index.history.transactions.iter().enumerate() {
            let is_open = timeline.fate(reader) == Fate::Open;
            let commit_ts = timeline.commit_ts(reader).filter(|_| is_open || timeline.is_committed(reader));
            index.observe(reader, |seen| {
                if seen.own.is_some() || !cells.contains(&seen.cell) {
                    return;
                }
                let of_cell = of.entry(seen.cell).or_default();
                let by = Witness::Transaction(reader);
                let snapshot = Sighting { by, below: transaction.read_ts, got: seen.got, is_open: false };
                of_cell.all.push(snapshot);
                if index.table_of(seen.cell).serializable {
                    of_cell.all.extend(commit_ts.map(|below| Sighting { below, is_open, ..snapshot }));
                    of_cell.placeless.extend(placeless.contains(&reader).then_some(snapshot));
                }
            });
        }
        if let Some(state) = &index.history.final_state {
            let below = state.read_ts.unwrap_or(u64::MAX);
            index.observe_final(state, |cell, got| {
                if cells.contains(&cell) {
                    of.entry(cell).or_default().all.push(Sighting {
                        by: Witness::FinalState,
                        below,
                        got,
                        is_open: false,
                    });
                }
            });
        }
        for of_cell in of.values_mut() {
            of_cell.all.sort_by_key(|sighting| sighting.below);
        }
        Self { of }
    }

    /// Those above one timestamp and not above another one, lowest first.
    pub(crate) fn between(&self, cell: CellId, above: u64, up_to: u64) -> &[Sighting<'h>] {
        let all = self.of.get(&cell).map_or(&[][..], |of_cell| &of_cell.all);
        let from = all.partition_point(|sighting| sighting.below <= above);
        let end = all.partition_point(|sighting| sighting.below <= up_to);
        &all[from..end.max(from)]
    }

    /// Snapshots of attempts that had no place when this was made, of a cell in a serializable table.
    pub(crate) fn by_placeless(&self, cell: CellId) -> &[Sighting<'h>] {
        self.of.get(&cell).map_or(&[][..], |of_cell| &of_cell.placeless)
    }
}
