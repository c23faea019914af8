//! Finds out what is certain of attempts of unknown outcome before anything is compared: which of them were seen, and
//! where in the order of commits those stand whose commit timestamp was lost with the answer.
//!
//! As long as nobody saw an effect of such an attempt, it needs no place. Once somebody did, it committed below that
//! reader's snapshot, and every other observation of its cells says where it can't have been: a reader that saw
//! something older shuts out the time from that version's commit to its own snapshot. The first timestamp that nothing
//! shuts out is taken. If there is none, an attempt whose very value was seen is placed as early as it can be, and the
//! checks that follow report what contradicts it.
//!
//! A delete leaves no value to recognize it by. It is believed only if a cell was found absent that nothing else
//! explains, and if the attempt, were it committed, would contradict nobody.

use crate::index::{CellId, Index, TxnId, Write};
use crate::sightings::{Sighting, Sightings};
use crate::timeline::{Fate, Timeline, Version, Witness};

pub(crate) fn place_unknown(timeline: &mut Timeline<'_, '_>) {
    if !timeline.has_open() {
        return;
    }
    believe_values(timeline);
    let mut waiting: Vec<TxnId> = (0..timeline.index.history.transactions.len())
        .filter(|&txn| matches!(timeline.fate(txn), Fate::Open | Fate::SeenCommitted(_)))
        .filter(|&txn| timeline.commit_ts(txn).is_none() && !timeline.index.writes(txn).is_empty())
        .collect();
    if waiting.is_empty() {
        return;
    }
    // Two that wrote the same cell and both committed did so in the order of their start: the second saw the first.
    waiting.sort_by_key(|&txn| timeline.index.txn(txn).start_ts);
    let sightings = Sightings::of(timeline, &waiting);
    // Placing one can give another one a place, or make it necessary: a delete that hides what the first one put. Those
    // whose values were seen come first: they are certain, and others must fit in between. What is certain and fits
    // nowhere is placed last, when nothing else can help it any more.
    while place(timeline, &sightings, &mut waiting, Which::Certain)
        || place(timeline, &sightings, &mut waiting, Which::Possible)
        || place_anyhow(timeline, &sightings, &mut waiting)
    {}
    timeline.leave_placeless(&waiting);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Their values were seen.
    Certain,
    /// They explain what nothing else does.
    Possible,
}

/// A value that only one attempt ever put proves that this one committed, and that those did not who would have
/// overwritten it below the reader's snapshot.
///
/// Both passes are right whatever the attempts without a place did, so they come before these are placed.
fn believe_values(timeline: &mut Timeline<'_, '_>) {
    for_each_value(timeline, |timeline, by, _, writer| timeline.seen(writer, by));
    for_each_value(timeline, |timeline, by, (cell, below), writer| timeline.seen_through(by, cell, below, writer));
}

/// Calls back for every value that somebody saw and whose only writer left it there: by whom, where, of whom.
fn for_each_value<'i, 'h>(
    timeline: &mut Timeline<'i, 'h>,
    mut each: impl FnMut(&mut Timeline<'i, 'h>, Witness, (CellId, u64), TxnId),
) {
    let index = timeline.index;
    let mut value = |by: Witness, cell: CellId, below: u64, got: Option<&str>| {
        if let Some([put]) = got.map(|got| index.puts_of(got))
            && put.cell == cell
            && put.last
            && by != Witness::Transaction(put.txn)
        {
            each(timeline, by, (cell, below), put.txn);
        }
    };
    for (txn, transaction) in index.history.transactions.iter().enumerate() {
        index.observe(txn, |seen| {
            if seen.own.is_none() {
                value(Witness::Transaction(txn), seen.cell, transaction.read_ts, seen.got);
            }
        });
    }
    if let Some(state) = &index.history.final_state {
        let below = state.read_ts.unwrap_or(u64::MAX);
        index.observe_final(state, |cell, got| value(Witness::FinalState, cell, below, got));
    }
}

/// Places all of a kind that fit somewhere, each as early as can be; whether there were any.
fn place(timeline: &mut Timeline<'_, '_>, sightings: &Sightings<'_>, waiting: &mut Vec<TxnId>, which: Which) -> bool {
    let mut any = false;
    for txn in waiting.clone() {
        if timeline.is_committed(txn) != (which == Which::Certain) || must_wait(timeline, sightings, txn) {
            continue;
        }
        let Some(bounds) = evidence(timeline, sightings, txn) else { continue };
        if let Some(commit_ts) = choose(timeline, sightings, &bounds, waiting) {
            timeline.seen(txn, bounds.by);
            timeline.place(txn, commit_ts);
            waiting.retain(|other| *other != txn);
            any = true;
        }
    }
    any
}

/// Places the first one that is certain as early as it can be, whatever contradicts it; whether there was one.
fn place_anyhow(timeline: &mut Timeline<'_, '_>, sightings: &Sightings<'_>, waiting: &mut Vec<TxnId>) -> bool {
    let Some(at) = waiting.iter().position(|&txn| timeline.is_committed(txn)) else { return false };
    let txn = waiting[at];
    let first = timeline.index.txn(txn).start_ts.saturating_add(1);
    let bounds = evidence(timeline, sightings, txn);
    let commit_ts = bounds.map_or(first, |bounds| choose(timeline, sightings, &bounds, waiting).unwrap_or(bounds.from));
    timeline.place(txn, commit_ts);
    waiting.remove(at);
    true
}

/// Whether a certain one without a place read what this one wrote, and did not see it: it comes first.
fn must_wait(timeline: &Timeline<'_, '_>, sightings: &Sightings<'_>, txn: TxnId) -> bool {
    timeline.index.writes(txn).iter().any(|write| {
        sightings.by_placeless(write.cell).iter().any(|sighting| match sighting.by {
            Witness::Transaction(reader) => {
                reader != txn
                    && timeline.is_committed(reader)
                    && timeline.commit_ts(reader).is_none()
                    && sighting.got != write.value
                    // What it saw is not something on top of this one.
                    && !is_over(timeline.index, write.cell, timeline.index.txn(txn).start_ts, sighting.got)
            }
            Witness::FinalState => false,
        })
    })
}

/// Where an attempt must have committed: at or above `from`, below `before`.
struct Bounds {
    txn: TxnId,
    by: Witness,
    from: u64,
    before: u64,
}

/// Who saw what only this attempt can have done, and what follows for its place.
fn evidence(timeline: &Timeline<'_, '_>, sightings: &Sightings<'_>, txn: TxnId) -> Option<Bounds> {
    let index = timeline.index;
    let start_ts = index.txn(txn).start_ts;
    let (from, before) = (start_ts.saturating_add(1), u64::MAX);
    let mut bounds: Option<Bounds> = None;
    for write in index.writes(txn) {
        for sighting in sightings.between(write.cell, start_ts, u64::MAX) {
            let hidden = timeline.certain(write.cell, sighting.below);
            if is_effect(timeline, txn, write, sighting.below, sighting.got, hidden) {
                let bounds = bounds.get_or_insert(Bounds { txn, by: sighting.by, from, before });
                bounds.before = bounds.before.min(sighting.below);
                if let Some(hidden) = hidden.filter(|_| !index.table_of(write.cell).no_conflict) {
                    bounds.from = bounds.from.max(hidden.commit_ts.saturating_add(1));
                }
                break;
            }
            if is_over(index, write.cell, start_ts, sighting.got) {
                break;
            }
        }
    }
    bounds
}

/// Whether what was seen is this attempt's work: its value, or what nothing else explains.
fn is_effect(
    timeline: &Timeline<'_, '_>,
    txn: TxnId,
    write: &Write<'_>,
    below: u64,
    got: Option<&str>,
    hidden: Option<Version<'_>>,
) -> bool {
    let index = timeline.index;
    if let Some([put]) = got.map(|got| index.puts_of(got)) {
        return put.txn == txn && put.cell == write.cell;
    }
    let can_hide = timeline.can_hide(txn, write.cell, hidden);
    got == write.value && can_hide && !timeline.may_be(write.cell, below, got)
}

/// Whether a value shows that a transaction wrote the cell that started later, after which nothing is left to see.
fn is_over(index: &Index<'_>, cell: CellId, start_ts: u64, got: Option<&str>) -> bool {
    let Some([put]) = got.map(|got| index.puts_of(got)) else { return false };
    put.cell == cell && index.txn(put.txn).start_ts > start_ts
}

/// A place that contradicts nobody. Best is one that suits also those of whom nobody knows whether they committed, and
/// that needs none of them to have committed.
fn choose(timeline: &Timeline<'_, '_>, sightings: &Sightings<'_>, bounds: &Bounds, waiting: &[TxnId]) -> Option<u64> {
    let place = |open| first_place(timeline, sightings, bounds, waiting, open);
    place(Open::MayGoEitherWay).or_else(|| place(Open::Ignored))
}

/// What is made of attempts with a place of which nobody knows whether they committed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    MayGoEitherWay,
    /// What they read binds nobody, and what they wrote may explain anything.
    Ignored,
}

/// The first timestamp within the bounds that no observation and no rule shuts out.
///
/// `waiting` are all that have no place yet.
fn first_place(
    timeline: &Timeline<'_, '_>,
    sightings: &Sightings<'_>,
    bounds: &Bounds,
    waiting: &[TxnId],
    open: Open,
) -> Option<u64> {
    let index = timeline.index;
    let mut shut: Vec<(u64, u64)> = Vec::new();
    let mut before = bounds.before;
    for write in index.writes(bounds.txn) {
        let rivals: Vec<TxnId> = waiting
            .iter()
            .copied()
            .filter(|&rival| rival != bounds.txn && index.write_to(rival, write.cell).is_some())
            .collect();
        shut_by_readers(timeline, sightings, bounds, write, &rivals, open, &mut shut);
        if !index.table_of(write.cell).no_conflict {
            before = before.min(shut_by_writers(timeline, bounds.txn, write.cell, &mut shut));
            let start_ts = index.txn(bounds.txn).start_ts;
            let certain = rivals.iter().filter(|&&rival| matches!(timeline.fate(rival), Fate::SeenCommitted(_)));
            let later = certain.map(|&rival| index.txn(rival)).filter(|rival| rival.start_ts > start_ts);
            before = later.map(|rival| rival.read_ts).fold(before, u64::min);
        }
    }
    shut_by_own_reads(timeline, bounds.txn, before, &mut shut);
    shut.sort_unstable();
    let mut choice = bounds.from;
    for (from, to) in shut {
        if from <= choice && choice < to {
            choice = to;
        }
    }
    (choice < before).then_some(choice)
}

/// A reader that saw something else, committed at `c`, saw a state without this one: it is not in `[c, read_ts)`. So
/// did, just below its commit, one that wrote and read a serializable table.
fn shut_by_readers(
    timeline: &Timeline<'_, '_>,
    sightings: &Sightings<'_>,
    bounds: &Bounds,
    write: &Write<'_>,
    rivals: &[TxnId],
    open: Open,
    shut: &mut Vec<(u64, u64)>,
) {
    let index = timeline.index;
    let no_conflict = index.table_of(write.cell).no_conflict;
    let start_ts = index.txn(bounds.txn).start_ts;
    let placed_since = sightings.by_placeless(write.cell).iter().filter_map(|sighting| match sighting.by {
        Witness::Transaction(reader) => Some(Sighting { below: timeline.commit_ts(reader)?, ..*sighting }),
        Witness::FinalState => None,
    });
    let between = sightings.between(write.cell, start_ts, bounds.before).iter().copied();
    for sighting in between.chain(placed_since) {
        let is_own = sighting.by == Witness::Transaction(bounds.txn);
        if sighting.got == write.value || is_own || (sighting.is_open && open == Open::Ignored) {
            continue;
        }
        // What another one without a place may have left on top of this one tells nothing.
        let by_rival = rivals.iter().any(|&rival| {
            let left = index.write_to(rival, write.cell).map(|write| write.value);
            let rival_start_ts = index.txn(rival).start_ts;
            left == Some(sighting.got) && start_ts < rival_start_ts && rival_start_ts < sighting.below
        });
        if by_rival {
            continue;
        }
        let fits = || timeline.newest_first(write.cell, sighting.below).filter(|version| version.value == sighting.got);
        let certain = fits().find(|version| timeline.is_committed(version.txn) && open == Open::MayGoEitherWay);
        let shown = certain.or_else(|| fits().next());
        let from = match shown {
            // Wherever it stands, it would have been seen instead of what started before it.
            Some(shown) if no_conflict && index.txn(shown.txn).start_ts > start_ts => continue,
            _ if no_conflict => 0,
            Some(shown) => shown.commit_ts,
            None if sighting.got.is_none() => 0,
            None => continue,
        };
        shut.push((from, sighting.below));
    }
}

/// First committer wins: of two writers of a cell one committed before the other one's snapshot.
///
/// Returns what the attempt must have committed before.
fn shut_by_writers(timeline: &Timeline<'_, '_>, txn: TxnId, cell: CellId, shut: &mut Vec<(u64, u64)>) -> u64 {
    let transaction = timeline.index.txn(txn);
    let versions = timeline.versions(cell);
    let from = versions.partition_point(|version| version.commit_ts <= transaction.start_ts.min(transaction.read_ts));
    let mut before = u64::MAX;
    for version in versions[from..].iter().filter(|version| timeline.is_committed(version.txn)) {
        shut.push((timeline.index.txn(version.txn).read_ts, version.commit_ts.saturating_add(1)));
        if version.commit_ts >= transaction.read_ts {
            // Versions stand in the order of their commits: what follows binds no tighter.
            before = before.min(version.commit_ts);
            break;
        }
    }
    before
}

/// Just below its commit its own reads of serializable tables hold: not while something else stood there.
fn shut_by_own_reads(timeline: &Timeline<'_, '_>, txn: TxnId, before: u64, shut: &mut Vec<(u64, u64)>) {
    let read_ts = timeline.index.txn(txn).read_ts;
    timeline.index.observe(txn, |seen| {
        let table = timeline.index.table_of(seen.cell);
        if seen.own.is_some() || !table.serializable || table.no_conflict {
            return;
        }
        let versions = timeline.versions(seen.cell);
        let from = versions.partition_point(|version| version.commit_ts < read_ts);
        let changes = versions[from..].iter().filter(|version| timeline.is_committed(version.txn));
        let mut changes = changes.take_while(|version| version.commit_ts < before).peekable();
        while let Some(change) = changes.next() {
            if change.value != seen.got {
                let until = changes.peek().map_or(u64::MAX, |next| next.commit_ts.saturating_add(1));
                shut.push((change.commit_ts, until));
            }
        }
    });
}
