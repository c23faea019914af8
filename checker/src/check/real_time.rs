//! Real-time order: what was over before a transaction began lies before it.
//!
//! Over means acknowledged, by one clock for all clients. Three things must then hold for the later one: its start
//! timestamp is higher; it sees every commit that was acknowledged; and it sees every commit that somebody before it
//! could see, because time does not run backwards for readers either.

use crate::history::{Status, Transaction};
use crate::index::TxnId;
use crate::report::{Findings, Kind};
use crate::story::{Story, name};
use crate::timeline::{Timeline, Witness};

/// The highest timestamp so far, and whose it is.
#[derive(Clone, Copy, Default)]
struct Highest(Option<(u64, TxnId)>);

impl Highest {
    fn raise(&mut self, timestamp: Option<u64>, txn: TxnId) {
        if let Some(timestamp) = timestamp.filter(|timestamp| self.0.is_none_or(|(highest, _)| highest < *timestamp)) {
            self.0 = Some((timestamp, txn));
        }
    }

    fn at_least(&self, timestamp: u64) -> Option<(u64, TxnId)> {
        self.0.filter(|(highest, _)| *highest >= timestamp)
    }
}

pub(super) fn check(timeline: &Timeline<'_, '_>, findings: &mut Findings) {
    let transactions = &timeline.index.history.transactions;
    let mut beginnings: Vec<TxnId> = (0..transactions.len()).collect();
    beginnings.sort_by_key(|&txn| transactions[txn].begin_ns);
    let mut ends: Vec<TxnId> = (0..transactions.len()).collect();
    ends.sort_by_key(|&txn| transactions[txn].end_ns);
    let visible = Visible::new(timeline);

    let (mut started, mut committed, mut seen) = (Highest::default(), Highest::default(), Highest::default());
    let mut ended = ends.into_iter().peekable();
    for later in beginnings {
        let transaction = &transactions[later];
        while let Some(txn) = ended.next_if(|&txn| transactions[txn].end_ns < transaction.begin_ns) {
            let over = &transactions[txn];
            started.raise(Some(over.start_ts), txn);
            committed.raise(over.commit_ts.filter(|_| over.status == Status::Committed), txn);
            // A tentative one of unknown outcome was over before what it saw was there for all, though it committed in the end.
            if over.reads_count() {
                seen.raise(visible.newest_below(over.read_ts), txn);
            }
        }
        let Transaction { start_ts, read_ts, .. } = transaction;
        if let Some((commit_ts, first)) = committed.at_least(*read_ts) {
            let what = format!("committed at {commit_ts}, but the other one sees only what lies below {read_ts}");
            out_of_order(timeline, findings, first, later, &what);
        } else if let Some((start, first)) = started.at_least(*start_ts) {
            let what = format!("started at {start}, not below the other one's start at {start_ts}");
            out_of_order(timeline, findings, first, later, &what);
        } else if let Some((commit_ts, first)) = seen.at_least(*read_ts) {
            let what =
                format!("could see the commit {commit_ts}, but the other one sees only what lies below {read_ts}");
            out_of_order(timeline, findings, first, later, &what);
        }
    }
    final_state(timeline, findings);
}

/// The final state was read when everything was over. One that is of an earlier time would excuse whatever was lost since.
fn final_state(timeline: &Timeline<'_, '_>, findings: &mut Findings) {
    let history = timeline.index.history;
    let Some(read_ts) = history.final_state.as_ref().and_then(|state| state.read_ts) else { return };
    let mut committed = Highest::default();
    for (txn, transaction) in history.transactions.iter().enumerate() {
        committed.raise(transaction.commit_ts.filter(|_| transaction.status == Status::Committed), txn);
    }
    if let Some((commit_ts, first)) = committed.at_least(read_ts) {
        findings.add(Kind::RealTime, || {
            let named = name(timeline, Witness::Transaction(first));
            let message =
                format!("{named} committed at {commit_ts}, but the final state shows only what lies below {read_ts}");
            (message, vec![first], Story::by_clock(timeline, &[first]).draw())
        });
    }
}

fn out_of_order(timeline: &Timeline<'_, '_>, findings: &mut Findings, first: TxnId, later: TxnId, what: &str) {
    findings.add(Kind::RealTime, || {
        let named = |txn| name(timeline, Witness::Transaction(txn));
        let message = format!("{} was over before {} began and {what}", named(first), named(later));
        (message, vec![first, later], Story::by_clock(timeline, &[first, later]).draw())
    });
}

/// The commit timestamps of all that committed, ascending.
struct Visible(Vec<u64>);

impl Visible {
    fn new(timeline: &Timeline<'_, '_>) -> Self {
        let txns = 0..timeline.index.history.transactions.len();
        let committed = txns.filter(|&txn| timeline.is_committed(txn));
        // A place that was inferred is only one of several possible ones, and proves nothing about time.
        let mut all: Vec<u64> = committed.filter_map(|txn| timeline.index.txn(txn).commit_ts).collect();
        all.sort_unstable();
        Self(all)
    }

    fn newest_below(&self, read_ts: u64) -> Option<u64> {
        let end = self.0.partition_point(|commit_ts| *commit_ts < read_ts);
        self.0[..end].last().copied()
    }
}
