//! Names what is wrong with a read, and draws it.

use crate::history::Op;
use crate::index::{CellId, Put, Seen, TxnId};
use crate::report::{Findings, Kind};
use crate::story::{Story, name};
use crate::text;
use crate::timeline::{Fate, Timeline, Version, Witness};

/// A cell as somebody saw it in a snapshot.
#[derive(Clone, Copy)]
pub(super) struct Reading<'h> {
    pub(super) by: Witness,
    pub(super) cell: CellId,
    /// The snapshot, exclusive.
    pub(super) below: u64,
    pub(super) got: Option<&'h str>,
    /// How a transaction came to see it; none for the final state.
    pub(super) seen: Option<Seen<'h>>,
}

impl Reading<'_> {
    fn in_scan(&self) -> bool {
        self.seen.is_some_and(|seen| seen.in_scan)
    }

    /// `get t/r/c = "b"`
    pub(super) fn what(&self, timeline: &Timeline<'_, '_>) -> String {
        let verb = match self.seen {
            Some(seen) if seen.in_scan => "scan",
            Some(_) => "get",
            None => "is",
        };
        format!("{verb} {} = {}", timeline.index.cell_name(self.cell), text::value(self.got))
    }
}

/// Why a read is wrong: the kind, whose value it saw, who is the witness of the contrary, and half a sentence.
struct Reason {
    kind: Kind,
    writer: Option<TxnId>,
    other: Option<Witness>,
    because: String,
}

/// Reports a read that fits no fate of anybody. `expected` is what should have been seen.
pub(super) fn wrong_read(
    timeline: &Timeline<'_, '_>,
    findings: &mut Findings,
    reading: &Reading<'_>,
    expected: Option<Version<'_>>,
) {
    let reason = match reading.got {
        Some(got) => saw_a_value(timeline, reading, got, expected),
        None => missed_a_commit(timeline, reading, expected),
    };
    findings.add(reason.kind, || {
        let reader = name(timeline, reading.by);
        let message = format!("{reader}: {}, {}", reading.what(timeline), reason.because);
        let overwriter = expected.map(|version| Witness::Transaction(version.txn));
        let writer = reason.writer.map(Witness::Transaction);
        let actors: Vec<Witness> =
            [writer, overwriter, reason.other].into_iter().flatten().chain([reading.by]).collect();
        // Of the outcome that is torn: it was seen here and not by the witness, or the other way round.
        let is_seen_here = |txn: &TxnId| matches!(timeline.fate(*txn), Fate::SeenAborted(_));
        let torn = reason.writer.filter(is_seen_here).or(expected.map(|version| version.txn));
        let seen = reason.other.zip(torn).and_then(|(witness, writer)| evidence(timeline, witness, writer));
        let cells: Vec<CellId> =
            [Some(reading.cell), seen.as_ref().map(|(cell, _)| *cell)].into_iter().flatten().collect();
        let mut story = Story::new(timeline, &actors, &cells);
        if let (Some(witness), Some((_, what))) = (reason.other, seen) {
            let arrow = torn.filter(|torn| timeline.is_committed(*torn));
            story.read(witness, what, arrow);
        }
        story.read(reading.by, reading.what(timeline), reason.writer);
        let should = format!("should be {}", text::value(expected.and_then(|version| version.value)));
        story.read(reading.by, should, expected.map(|version| version.txn));
        (message, transactions(&actors), story.draw())
    });
}

/// Reports a transaction that did not see what it had left in a cell itself.
pub(super) fn wrong_own_read(
    timeline: &Timeline<'_, '_>,
    findings: &mut Findings,
    txn: TxnId,
    reading: &Reading<'_>,
    expected: Option<&str>,
) {
    findings.add(Kind::Internal, || {
        let expected = text::value(expected);
        let what = reading.what(timeline);
        let message = format!("{}: {what}, but its own write had left it {expected}", name(timeline, reading.by));
        let mut story = Story::new(timeline, &[reading.by], &[reading.cell]);
        story.read(reading.by, what, None);
        story.read(reading.by, format!("should be {expected}, its own write"), None);
        (message, vec![txn], story.draw())
    });
}

/// What a witness saw, or did not see, of the first cell that it read of those which an attempt wrote.
fn evidence(timeline: &Timeline<'_, '_>, witness: Witness, writer: TxnId) -> Option<(CellId, String)> {
    let Witness::Transaction(reader) = witness else { return None };
    let below = timeline.index.txn(reader).read_ts;
    let mut first = None;
    timeline.index.observe(reader, |seen| {
        if first.is_none() && seen.own.is_none() && timeline.index.write_to(writer, seen.cell).is_some() {
            let reading = Reading { by: witness, cell: seen.cell, below, got: seen.got, seen: Some(seen) };
            first = Some((seen.cell, reading.what(timeline)));
        }
    });
    first
}

pub(super) fn transactions(actors: &[Witness]) -> Vec<TxnId> {
    let mut txns: Vec<TxnId> = Vec::new();
    for actor in actors {
        match actor {
            Witness::Transaction(txn) if !txns.contains(txn) => txns.push(*txn),
            Witness::Transaction(_) | Witness::FinalState => {}
        }
    }
    txns
}

fn saw_a_value(timeline: &Timeline<'_, '_>, reading: &Reading<'_>, got: &str, expected: Option<Version<'_>>) -> Reason {
    let index = timeline.index;
    let Some(put) = likeliest(timeline, reading, got) else {
        let (writer, because) = match index.puts_of(got).first() {
            Some(put) => {
                let writer = name(timeline, Witness::Transaction(put.txn));
                (Some(put.txn), format!("which {writer} put to {}, not there", index.cell_name(put.cell)))
            }
            None => (None, "which nobody ever put".to_owned()),
        };
        return Reason { kind: Kind::ThinAirRead, writer, other: None, because };
    };
    let writer = name(timeline, Witness::Transaction(put.txn));
    let reason = |kind, because| Reason { kind, writer: Some(put.txn), other: None, because };
    if reading.by == Witness::Transaction(put.txn) {
        return reason(Kind::Internal, "which it put only later".to_owned());
    }
    match timeline.fate(put.txn) {
        Fate::Aborted => return reason(Kind::AbortedRead, format!("of {writer}, which aborted")),
        _ if !put.last => return reason(Kind::IntermediateRead, format!("which {writer} itself overwrote")),
        Fate::SeenAborted(witness) => {
            let because = format!(
                "of {writer}, whose outcome was unknown and of which {} had seen nothing",
                name(timeline, witness)
            );
            return Reason { kind: Kind::TornOutcome, writer: Some(put.txn), other: Some(witness), because };
        }
        Fate::Committed | Fate::SeenCommitted(_) | Fate::Open => {}
    }
    if let Some(commit_ts) = timeline.commit_ts(put.txn).filter(|commit_ts| *commit_ts >= reading.below) {
        return reason(
            Kind::FutureRead,
            format!("of {writer}, which committed at {commit_ts}, not below its snapshot"),
        );
    }
    Reason { writer: Some(put.txn), ..missed_a_commit(timeline, reading, expected) }
}

/// Of several puts of the same value, which only a touch table may have, the one that explains most.
fn likeliest<'h>(timeline: &Timeline<'_, 'h>, reading: &Reading<'_>, got: &str) -> Option<Put<'h>> {
    let here = timeline.index.puts_of(got).iter().filter(|put| put.cell == reading.cell);
    let plausible = |put: &&Put<'h>| {
        let commit_ts = timeline.commit_ts(put.txn);
        let below = commit_ts.is_some_and(|commit_ts| commit_ts < reading.below);
        (put.last && timeline.is_committed(put.txn), below)
    };
    here.max_by_key(plausible).copied()
}

/// Something older than `expected` was seen, or nothing.
fn missed_a_commit(timeline: &Timeline<'_, '_>, reading: &Reading<'_>, expected: Option<Version<'_>>) -> Reason {
    let Some(missed) = expected else {
        let because = "but nothing was committed there below its snapshot".to_owned();
        return Reason { kind: Kind::StaleRead, writer: None, other: None, because };
    };
    let writer = name(timeline, Witness::Transaction(missed.txn));
    let wrote = if missed.value.is_some() { "wrote" } else { "deleted" };
    let because = format!("but {writer} {wrote} it and committed at {}", missed.commit_ts);
    if let Fate::SeenCommitted(witness) = timeline.fate(missed.txn) {
        let is_inferred = timeline.index.txn(missed.txn).commit_ts.is_none();
        let because = format!(
            "but {writer} {wrote} it at {}{}; its outcome was unknown, and {} had seen it",
            missed.commit_ts,
            if is_inferred { ", a place that is inferred" } else { "" },
            name(timeline, witness)
        );
        return Reason { kind: Kind::TornOutcome, writer: None, other: Some(witness), because };
    }
    let is_row_of_scan = reading.in_scan() && (reading.got.is_none() || missed.value.is_none());
    let kind = match reading.by {
        Witness::FinalState => Kind::Durability,
        Witness::Transaction(_) if is_row_of_scan => Kind::Phantom,
        Witness::Transaction(reader) if saw_other_effect(timeline, reader, missed.txn) => Kind::ReadSkew,
        Witness::Transaction(_) => Kind::StaleRead,
    };
    Reason { kind, writer: None, other: None, because }
}

/// Whether a reader saw a value that another transaction put, anywhere.
fn saw_other_effect(timeline: &Timeline<'_, '_>, reader: TxnId, writer: TxnId) -> bool {
    let put_by_writer = |value: &str| timeline.index.puts_of(value).iter().any(|put| put.txn == writer);
    timeline.index.txn(reader).ops.iter().any(|op| match op {
        Op::Get { value, .. } => value.as_deref().is_some_and(put_by_writer),
        Op::Scan(scan) => scan.rows.iter().any(|(_, _, value)| put_by_writer(value)),
        Op::Put { .. } | Op::Delete { .. } => false,
    })
}
