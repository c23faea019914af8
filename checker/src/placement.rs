//! Finds a place in the commit order for attempts whose outcome and commit timestamp were both lost.
//!
//! A client that lost the answer of its server knows neither. As long as nobody saw an effect of such an attempt, it
//! needs no place. Once somebody did, it committed below that reader's snapshot, and every other observation of its
//! cells says where it can't have been: a reader that saw something older shuts out the time from that version's
//! commit to its own snapshot. The first timestamp that nothing shuts out is taken. If there is none, the earliest is
//! taken, and the checks that follow report what contradicts it.

use crate::index::{CellId, Index, TxnId};
use crate::timeline::{Fate, Timeline};
use std::collections::{HashMap, HashSet};

/// Places every attempt of that kind that was seen.
pub(crate) fn place_unknown(timeline: &mut Timeline<'_, '_>) {
    let mut waiting: Vec<TxnId> = (0..timeline.index.history.transactions.len())
        .filter(|&txn| timeline.fate(txn) == Fate::Open && timeline.commit_ts(txn).is_none())
        .filter(|&txn| !timeline.index.writes(txn).is_empty())
        .collect();
    if waiting.is_empty() {
        return;
    }
    // Two that wrote the same cell and both committed did so in the order of their start: the second saw the first.
    waiting.sort_by_key(|&txn| timeline.index.txn(txn).start_ts);
    let sightings = Sightings::of(timeline.index, &waiting);
    loop {
        // Placing one can make another one necessary: a delete that hides what the first one put.
        let seen: Vec<Bounds> = waiting.iter().filter_map(|&txn| sightings.evidence(timeline, txn)).collect();
        if seen.is_empty() {
            return;
        }
        waiting.retain(|txn| seen.iter().all(|bounds| bounds.txn != *txn));
        for at in 0..seen.len() {
            let commit_ts = sightings.choose(timeline, &seen[at], &seen[at + 1..]);
            timeline.place(seen[at].txn, commit_ts);
        }
    }
}

/// What was seen in the cells that attempts without a place wrote.
struct Sightings<'h> {
    of: HashMap<CellId, Vec<Sighting<'h>>>,
}

struct Sighting<'h> {
    reader: Option<TxnId>,
    below: u64,
    got: Option<&'h str>,
}

/// Where an attempt must have committed: at or above `from`, below `before`.
struct Bounds {
    txn: TxnId,
    from: u64,
    before: u64,
}

impl<'h> Sightings<'h> {
    fn of(index: &Index<'h>, waiting: &[TxnId]) -> Self {
        let cells: HashSet<CellId> =
            waiting.iter().flat_map(|&txn| index.writes(txn)).map(|write| write.cell).collect();
        let mut of: HashMap<CellId, Vec<Sighting<'h>>> = HashMap::new();
        for (reader, transaction) in index.history.transactions.iter().enumerate() {
            index.observe(reader, |seen| {
                if seen.own.is_none() && cells.contains(&seen.cell) {
                    let sighting = Sighting { reader: Some(reader), below: transaction.read_ts, got: seen.got };
                    of.entry(seen.cell).or_default().push(sighting);
                }
            });
        }
        if let Some(state) = &index.history.final_state {
            index.observe_final(state, |cell, got| {
                if cells.contains(&cell) {
                    let below = state.read_ts.unwrap_or(u64::MAX);
                    of.entry(cell).or_default().push(Sighting { reader: None, below, got });
                }
            });
        }
        Self { of }
    }

    fn at(&self, cell: CellId) -> &[Sighting<'h>] {
        self.of.get(&cell).map_or(&[], Vec::as_slice)
    }

    /// Whether anybody saw what only this attempt can have done, and what follows for its place.
    fn evidence(&self, timeline: &Timeline<'_, '_>, txn: TxnId) -> Option<Bounds> {
        let index = timeline.index;
        let start_ts = index.txn(txn).start_ts;
        let mut bounds = Bounds { txn, from: start_ts.saturating_add(1), before: u64::MAX };
        let mut seen = false;
        for write in index.writes(txn) {
            for sighting in self.at(write.cell).iter().filter(|sighting| sighting.below > start_ts) {
                let is_effect = sighting.got == write.value
                    || sighting.got.is_some_and(|got| {
                        index.puts_of(got).iter().any(|put| put.txn == txn && put.cell == write.cell)
                    });
                if is_effect && !timeline.may_be(write.cell, sighting.below, sighting.got) {
                    seen = true;
                    bounds.before = bounds.before.min(sighting.below);
                    if let Some(hidden) = timeline.certain(write.cell, sighting.below)
                        && !index.table_of(write.cell).no_conflict
                    {
                        bounds.from = bounds.from.max(hidden.commit_ts.saturating_add(1));
                    }
                }
            }
        }
        seen.then_some(bounds)
    }

    /// The first timestamp within the bounds that no observation and no rule shuts out.
    ///
    /// `later` are attempts that were seen as well and started later.
    fn choose(&self, timeline: &Timeline<'_, '_>, bounds: &Bounds, later: &[Bounds]) -> u64 {
        let index = timeline.index;
        let mut shut: Vec<(u64, u64)> = Vec::new();
        let mut before = bounds.before;
        for write in index.writes(bounds.txn) {
            self.shut_by_readers(timeline, bounds.txn, write.cell, write.value, &mut shut);
            if !index.table_of(write.cell).no_conflict {
                before = before.min(shut_by_writers(timeline, bounds.txn, write.cell, &mut shut));
                let others = later.iter().filter(|other| index.write_to(other.txn, write.cell).is_some());
                before = others.map(|other| index.txn(other.txn).read_ts).fold(before, u64::min);
            }
        }
        before = before.min(first_change_of_reads(timeline, bounds.txn));
        shut.sort_unstable();
        let mut choice = bounds.from;
        for (from, to) in shut {
            if from <= choice && choice < to {
                choice = to;
            }
        }
        if choice < before { choice } else { bounds.from }
    }

    /// A reader that saw something else, committed at `c`, saw a state without this one: it is not in `[c, read_ts)`;
    /// for a reader of a serializable table that wrote, not even in `[c, commit_ts)`.
    fn shut_by_readers(
        &self,
        timeline: &Timeline<'_, '_>,
        txn: TxnId,
        cell: CellId,
        value: Option<&str>,
        shut: &mut Vec<(u64, u64)>,
    ) {
        let table = timeline.index.table_of(cell);
        for sighting in self.at(cell).iter().filter(|sighting| sighting.got != value && sighting.reader != Some(txn)) {
            let recheck = sighting.reader.filter(|&reader| table.serializable && timeline.is_committed(reader));
            let below = recheck.and_then(|reader| timeline.commit_ts(reader)).unwrap_or(sighting.below);
            if table.no_conflict {
                // There it would have been seen wherever it stands, unless what was seen started later.
                let shown = timeline.newest_first(cell, sighting.below).find(|version| version.value == sighting.got);
                let later = shown
                    .is_some_and(|shown| timeline.index.txn(shown.txn).start_ts > timeline.index.txn(txn).start_ts);
                if !later {
                    shut.push((0, below));
                }
                continue;
            }
            let shown = timeline.newest_first(cell, sighting.below).find(|version| version.value == sighting.got);
            match (shown, sighting.got) {
                (Some(shown), _) => shut.push((shown.commit_ts, below)),
                (None, None) => shut.push((0, below)),
                // It shows something that has no place yet.
                (None, Some(_)) => {}
            }
        }
    }
}

/// First committer wins: of two writers of a cell one committed before the other one's snapshot.
///
/// Returns what the attempt must have committed before.
fn shut_by_writers(timeline: &Timeline<'_, '_>, txn: TxnId, cell: CellId, shut: &mut Vec<(u64, u64)>) -> u64 {
    let read_ts = timeline.index.txn(txn).read_ts;
    let mut before = u64::MAX;
    for version in timeline.versions(cell).iter().filter(|version| timeline.is_committed(version.txn)) {
        shut.push((timeline.index.txn(version.txn).read_ts, version.commit_ts.saturating_add(1)));
        if version.commit_ts >= read_ts {
            before = before.min(version.commit_ts);
        }
    }
    before
}

/// When the first of its own reads of serializable tables would have turned out different.
fn first_change_of_reads(timeline: &Timeline<'_, '_>, txn: TxnId) -> u64 {
    let read_ts = timeline.index.txn(txn).read_ts;
    let mut first = u64::MAX;
    timeline.index.observe(txn, |seen| {
        let table = timeline.index.table_of(seen.cell);
        if seen.own.is_some() || !table.serializable || table.no_conflict {
            return;
        }
        let versions = timeline.versions(seen.cell);
        let from = versions.partition_point(|version| version.commit_ts < read_ts);
        let change = versions[from..].iter().find(|version| timeline.is_committed(version.txn));
        first = change.map_or(first, |version| first.min(version.commit_ts));
    });
    first
}
