//! Snapshot reads: every cell that was observed is the newest version committed below the reader's snapshot, or the
//! reader's own. The final state is read like a snapshot above everything.

use super::classify::{self, Reading};
use crate::index::TxnId;
use crate::report::Findings;
use crate::timeline::{Timeline, Verdict, Witness};

pub(super) fn check(timeline: &mut Timeline<'_, '_>, findings: &mut Findings) {
    let mut undecided = Vec::new();
    transactions(timeline, findings, &mut undecided, |timeline, txn| timeline.index.txn(txn).reads_count());
    final_state(timeline, findings, &mut undecided);
    settle(timeline, findings, undecided);
    // Tentative ones that were seen to have committed though their clients do not know it: what they read counts after all.
    let mut undecided = Vec::new();
    transactions(timeline, findings, &mut undecided, |timeline, txn| {
        !timeline.index.txn(txn).reads_count() && timeline.is_committed(txn)
    });
    settle(timeline, findings, undecided);
}

fn settle<'h>(timeline: &mut Timeline<'_, 'h>, findings: &mut Findings, mut undecided: Vec<Reading<'h>>) {
    // What one read decides can decide another one. Each round decides a fate or is the last.
    loop {
        let decided = timeline.decided();
        for reading in std::mem::take(&mut undecided) {
            judge(timeline, findings, &mut undecided, reading);
        }
        if timeline.decided() == decided {
            return;
        }
    }
}

fn transactions<'h>(
    timeline: &mut Timeline<'_, 'h>,
    findings: &mut Findings,
    undecided: &mut Vec<Reading<'h>>,
    whose: impl Fn(&Timeline<'_, 'h>, TxnId) -> bool,
) {
    let index = timeline.index;
    let mut reads = 0;
    for (txn, transaction) in index.history.transactions.iter().enumerate() {
        if !whose(timeline, txn) {
            continue;
        }
        let by = Witness::Transaction(txn);
        index.observe_all(txn, |seen| {
            reads += 1;
            let reading = Reading { by, cell: seen.cell, below: transaction.read_ts, got: seen.got, seen: Some(seen) };
            match seen.own {
                None => judge(timeline, findings, undecided, reading),
                Some(expected) if expected == seen.got => {}
                Some(expected) => classify::wrong_own_read(timeline, findings, txn, &reading, expected),
            }
        });
    }
    findings.stats().reads += reads;
}

fn final_state<'h>(timeline: &mut Timeline<'_, 'h>, findings: &mut Findings, undecided: &mut Vec<Reading<'h>>) {
    let index = timeline.index;
    let Some(state) = &index.history.final_state else { return };
    let below = state.read_ts.unwrap_or(u64::MAX);
    let mut cells = 0;
    index.observe_final(state, |cell, got| {
        cells += 1;
        judge(timeline, findings, undecided, Reading { by: Witness::FinalState, cell, below, got, seen: None });
    });
    findings.stats().final_cells = Some(cells);
}

fn judge<'h>(
    timeline: &mut Timeline<'_, 'h>,
    findings: &mut Findings,
    undecided: &mut Vec<Reading<'h>>,
    reading: Reading<'h>,
) {
    match timeline.judge(reading.by, reading.cell, reading.below, reading.got) {
        Verdict::Fits => {}
        Verdict::Open => undecided.push(reading),
        Verdict::Excused => findings.stats().excused += 1,
        Verdict::Wrong(expected) => classify::wrong_read(timeline, findings, &reading, expected),
    }
}
