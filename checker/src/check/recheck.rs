//! Serializability: replayed in the order of the commits, every read of a serializable table sees what it saw.
//!
//! A transaction that wrote stands at its commit timestamp, one that only read at its snapshot. So each read of a
//! serializable table by a committed transaction that wrote must also fit the state just below its commit.

use super::classify::{Reading, transactions};
use crate::history::Op;
use crate::index::TxnId;
use crate::report::{Findings, Kind};
use crate::story::{Story, name};
use crate::text;
use crate::timeline::{Timeline, Verdict, Version, Witness};

pub(super) fn check(timeline: &mut Timeline<'_, '_>, findings: &mut Findings) {
    let index = timeline.index;
    if !index.tables.iter().any(|table| table.serializable) {
        return;
    }
    for (txn, transaction) in index.history.transactions.iter().enumerate() {
        let Some(commit_ts) = timeline.commit_ts(txn).filter(|_| timeline.is_committed(txn)) else { continue };
        let mut readings = Vec::new();
        index.observe_all(txn, |seen| {
            if seen.own.is_none() && index.table_of(seen.cell).serializable {
                let by = Witness::Transaction(txn);
                readings.push(Reading { by, cell: seen.cell, below: commit_ts, got: seen.got, seen: Some(seen) });
            }
        });
        findings.stats().rechecked += readings.len() as u64;
        for reading in readings {
            let verdict = timeline.judge(reading.by, reading.cell, commit_ts, reading.got);
            // One that is older than the snapshot was reported when the snapshot was checked.
            let Verdict::Wrong(Some(change)) = verdict else { continue };
            if change.commit_ts >= transaction.read_ts {
                changed(timeline, findings, txn, &reading, change);
            }
        }
    }
}

fn changed(
    timeline: &Timeline<'_, '_>,
    findings: &mut Findings,
    txn: TxnId,
    reading: &Reading<'_>,
    change: Version<'_>,
) {
    let in_scan = reading.seen.is_some_and(|seen| seen.in_scan);
    let is_phantom = in_scan && reading.got.is_some() != change.value.is_some();
    let kind = if is_phantom { Kind::PhantomSkew } else { Kind::WriteSkew };
    findings.add(kind, || {
        let other = Witness::Transaction(change.txn);
        let message = format!(
            "{}: {}, which {} changed to {} at {}, before it committed at {}",
            name(timeline, reading.by),
            reading.what(timeline),
            name(timeline, other),
            text::value(change.value),
            change.commit_ts,
            reading.below,
        );
        let actors = [reading.by, other];
        // In a skew each overwrites what the other one read: both sides belong into the picture.
        let mut cells = vec![reading.cell];
        cells.extend(overwritten(timeline, change.txn, txn));
        let mut story = Story::new(timeline, &actors, &cells);
        story.read(reading.by, reading.what(timeline), None);
        for (what, cell) in reads_of(timeline, change.txn, txn) {
            if cells.contains(&cell) {
                story.read(other, what, None);
            }
        }
        let now = format!("now {} is {}", timeline.index.cell_name(reading.cell), text::value(change.value));
        story.recheck(txn, now, Some(change.txn));
        (message, transactions(&actors), story.draw())
    });
}

/// Up to two cells that `reader` read and `writer` wrote.
fn overwritten(timeline: &Timeline<'_, '_>, reader: TxnId, writer: TxnId) -> Vec<usize> {
    let mut cells: Vec<usize> = reads_of(timeline, reader, writer).into_iter().map(|(_, cell)| cell).collect();
    cells.dedup();
    cells.truncate(2);
    cells
}

fn reads_of(timeline: &Timeline<'_, '_>, reader: TxnId, writer: TxnId) -> Vec<(String, usize)> {
    let by = Witness::Transaction(reader);
    let mut reads = Vec::new();
    timeline.index.observe(reader, |seen| {
        // A scan covers a lot; only what it returned is worth a line.
        let is_shown = matches!(timeline.index.txn(reader).ops[seen.op], Op::Get { .. }) || seen.got.is_some();
        if seen.own.is_none() && is_shown && timeline.index.write_to(writer, seen.cell).is_some() {
            let reading = Reading { by, cell: seen.cell, below: 0, got: seen.got, seen: Some(seen) };
            reads.push((reading.what(timeline), seen.cell));
        }
    });
    reads
}
