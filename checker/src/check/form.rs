//! Whether the history can be what it claims to be: timestamps, values and lines that agree with one another.

use crate::history::{Op, Status, Transaction};
use crate::index::{TxnId, scan_problem};
use crate::report::{Findings, Kind};
use crate::story::{Story, name};
use crate::text;
use crate::timeline::{Timeline, Witness};
use std::collections::HashMap;

pub(super) fn check(timeline: &Timeline<'_, '_>, findings: &mut Findings) {
    for (txn, transaction) in timeline.index.history.transactions.iter().enumerate() {
        for (kind, problem) in problems(transaction) {
            findings.add(kind, || {
                let message = format!("{}: {problem}", name(timeline, Witness::Transaction(txn)));
                (message, vec![txn], Story::by_clock(timeline, &[txn]).draw())
            });
        }
    }
    unique(timeline, findings, Kind::DuplicateStartTs, "start", |transaction| Some(transaction.start_ts));
    unique(timeline, findings, Kind::DuplicateCommitTs, "commit", |transaction| transaction.commit_ts);
    unique_values(timeline, findings);
    final_rows(timeline, findings);
}

/// What is wrong with one line by itself.
fn problems(transaction: &Transaction) -> Vec<(Kind, String)> {
    let mut found = Vec::new();
    let Transaction { start_ts, read_ts, begin_ns, end_ns, .. } = transaction;
    if begin_ns > end_ns {
        found.push((Kind::Malformed, format!("it ended at {end_ns} ns, before it began at {begin_ns} ns")));
    }
    for (number, op) in transaction.ops.iter().enumerate() {
        if let Op::Scan(scan) = op
            && let Some(problem) = scan_problem(scan)
        {
            found.push((Kind::Malformed, format!("operation {}, a scan: {problem}", number + 1)));
        }
    }
    if read_ts > start_ts {
        found.push((Kind::TimestampOrder, format!("its read_ts {read_ts} is above its start_ts {start_ts}")));
    }
    match transaction.commit_ts {
        Some(commit_ts) if commit_ts <= *start_ts => {
            found.push((
                Kind::TimestampOrder,
                format!("its commit_ts {commit_ts} is not above its start_ts {start_ts}"),
            ));
        }
        Some(commit_ts) if !transaction.wrote() => {
            found.push((Kind::TimestampOrder, format!("it wrote nothing, but has the commit_ts {commit_ts}")));
        }
        None if transaction.wrote() && transaction.status == Status::Committed => {
            found.push((Kind::TimestampOrder, "it committed writes without a commit_ts".into()));
        }
        Some(_) | None => {}
    }
    found
}

fn unique(
    timeline: &Timeline<'_, '_>,
    findings: &mut Findings,
    kind: Kind,
    of: &str,
    timestamp: impl Fn(&Transaction) -> Option<u64>,
) {
    let mut first: HashMap<u64, TxnId> = HashMap::new();
    for (txn, transaction) in timeline.index.history.transactions.iter().enumerate() {
        let Some(timestamp) = timestamp(transaction) else { continue };
        if let Some(&other) = first.get(&timestamp) {
            findings.add(kind, || {
                let message = format!("two attempts have the {of} timestamp {timestamp}");
                (message, vec![other, txn], Story::by_clock(timeline, &[other, txn]).draw())
            });
        } else {
            first.insert(timestamp, txn);
        }
    }
}

fn unique_values(timeline: &Timeline<'_, '_>, findings: &mut Findings) {
    let index = timeline.index;
    for pair in index.puts().windows(2) {
        let (first, second) = (pair[0], pair[1]);
        let may_repeat = index.table_of(first.cell).touch && index.table_of(second.cell).touch;
        if first.value == second.value && !may_repeat {
            findings.add(Kind::DuplicateValue, || {
                let message = format!(
                    "{} was put to {} by {} and to {} by {}",
                    text::value(Some(first.value)),
                    index.cell_name(first.cell),
                    name(timeline, Witness::Transaction(first.txn)),
                    index.cell_name(second.cell),
                    name(timeline, Witness::Transaction(second.txn)),
                );
                (message, vec![first.txn, second.txn], String::new())
            });
        }
    }
}

fn final_rows(timeline: &Timeline<'_, '_>, findings: &mut Findings) {
    for (table, rows) in timeline.index.history.final_state.iter().flat_map(|state| &state.tables) {
        let address = |at: usize| (&rows[at].0, &rows[at].1);
        if let Some(at) = (1..rows.len()).find(|&at| address(at - 1) >= address(at)) {
            findings.add(Kind::Malformed, || {
                let cell = text::cell(table, &rows[at].0, &rows[at].1);
                (format!("the rows of the final state are not ascending at {cell}"), Vec::new(), String::new())
            });
        }
    }
}
