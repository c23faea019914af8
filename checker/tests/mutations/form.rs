//! Falsified timestamps, clocks and lines.

use super::find::{any, scan_at, scans};
use crate::simulator::{Rng, Truth};
use atlas_checker::History;
use atlas_checker::history::{Op, Status};

fn acknowledged_writers(history: &History) -> Vec<usize> {
    let all = 0..history.transactions.len();
    all.filter(|&txn| history.transactions[txn].status == Status::Committed && history.transactions[txn].wrote())
        .collect()
}

pub(crate) fn same_start(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let one = 1 + rng.below(history.transactions.len() - 1);
    history.transactions[one].start_ts = history.transactions[one - 1].start_ts;
    Some(format!("{one}"))
}

pub(crate) fn same_commit(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let writers = acknowledged_writers(history);
    let at = 1 + rng.below(writers.len() - 1);
    history.transactions[writers[at]].commit_ts = history.transactions[writers[at - 1]].commit_ts;
    Some(format!("{at}"))
}

pub(crate) fn late_snapshot(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let transaction = &mut history.transactions[rng.below(300)];
    transaction.read_ts = transaction.start_ts + 1;
    Some(format!("T{}", transaction.start_ts))
}

pub(crate) fn swapped_commits(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let writers = acknowledged_writers(history);
    let (first, last) = (writers[rng.below(writers.len() / 2)], writers[writers.len() - 1]);
    let commit_ts = history.transactions[first].commit_ts;
    history.transactions[first].commit_ts = history.transactions[last].commit_ts;
    history.transactions[last].commit_ts = commit_ts;
    Some(format!("{first} and {last}"))
}

pub(crate) fn no_commit_ts(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let txn = any(rng, acknowledged_writers(history))?;
    history.transactions[txn].commit_ts = None;
    Some(format!("{txn}"))
}

pub(crate) fn reader_commit_ts(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let readers = history.transactions.iter_mut().filter(|transaction| !transaction.wrote());
    let reader = any(rng, readers)?;
    reader.commit_ts = Some(1_000_000_000);
    Some(format!("T{}", reader.start_ts))
}

pub(crate) fn value_twice(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let puts = history.transactions.iter_mut().flat_map(|transaction| &mut transaction.ops);
    let mut puts: Vec<_> = puts
        .filter_map(|op| match op {
            Op::Put { cell, value } if &*cell.table != "touched" => Some(value),
            _ => None,
        })
        .collect();
    let (one, other) = (rng.below(puts.len() / 2), puts.len() / 2 + rng.below(puts.len() / 2));
    *puts[one] = puts[other].clone();
    Some(format!("{}", puts[one]))
}

pub(crate) fn backwards(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let transaction = &mut history.transactions[rng.below(300)];
    std::mem::swap(&mut transaction.begin_ns, &mut transaction.end_ns);
    Some(format!("T{}", transaction.start_ts))
}

pub(crate) fn rows_out_of_order(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let long: Vec<_> = scans(history).into_iter().filter(|at| scan_at(history, *at).rows.len() > 1).collect();
    let at = any(rng, long)?;
    scan_at(history, at).rows.swap(0, 1);
    Some(format!("{at:?}"))
}

pub(crate) fn rows_beyond_consumed(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let long: Vec<_> = scans(history).into_iter().filter(|at| scan_at(history, *at).rows.len() > 1).collect();
    let scan = scan_at(history, any(rng, long)?);
    let kept = if scan.reverse { scan.rows.last() } else { scan.rows.first() };
    scan.consumed_to = kept.map(|(row, col, _)| (row.clone(), col.clone()));
    Some(format!("{:?}", scan.consumed_to))
}

pub(crate) fn final_out_of_order(history: &mut History, _: &[Truth], _: &mut Rng) -> Option<String> {
    history.final_state.as_mut()?.tables.get_mut("accounts")?.swap(0, 1);
    Some("swapped".into())
}

/// A reader that ran beside a commit it does not see runs after its acknowledgement.
pub(crate) fn too_late_for_its_snapshot(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let mut places = Vec::new();
    for writer in acknowledged_writers(history) {
        let commit_ts = history.transactions[writer].commit_ts?;
        let end_ns = history.transactions[writer].end_ns;
        for (reader, transaction) in history.transactions.iter().enumerate() {
            if reader != writer && transaction.read_ts <= commit_ts && transaction.end_ns > end_ns {
                places.push((reader, end_ns));
            }
        }
    }
    let (reader, end_ns) = any(rng, places)?;
    let transaction = &mut history.transactions[reader];
    (transaction.begin_ns, transaction.end_ns) = (end_ns + 1, transaction.end_ns.max(end_ns + 2));
    Some(format!("T{} begins at {}", transaction.start_ts, transaction.begin_ns))
}

/// The first transaction of the run is over before the last one begins; their places on the clock are exchanged.
pub(crate) fn starts_swapped(history: &mut History, _: &[Truth], _: &mut Rng) -> Option<String> {
    let last = history.transactions.len() - 1;
    let clock = |at: usize| (history.transactions[at].begin_ns, history.transactions[at].end_ns);
    let (first_clock, last_clock) = (clock(1), clock(last));
    let set = |transaction: &mut atlas_checker::history::Transaction, clock: (u64, u64)| {
        (transaction.begin_ns, transaction.end_ns) = clock;
    };
    set(&mut history.transactions[1], last_clock);
    set(&mut history.transactions[last], first_clock);
    Some("swapped".into())
}

/// A reader of nothing, whose snapshot lies before that of one that ended before it began.
pub(crate) fn snapshot_set_back(history: &mut History, _: &[Truth], _: &mut Rng) -> Option<String> {
    let last = history.transactions.len() - 1;
    history.transactions[last].read_ts = 1;
    history.transactions[last].ops.clear();
    history.transactions[last].commit_ts = None;
    history.transactions[last].status = Status::Aborted;
    // Nobody told that a commit was acknowledged; but it was seen.
    for transaction in history.transactions.iter_mut().filter(|transaction| transaction.wrote()) {
        transaction.end_ns = u64::MAX;
    }
    Some("set back".into())
}
