//! Large histories: time and memory grow with them, not with their square.
//!
//! Nothing is timed here. A quadratic check of this many transactions would not end within the run's patience.

#![allow(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

use atlas_checker::history::{CellName, Client, FinalState, Header, Op, Scan, Status, Text, Transaction};
use atlas_checker::{History, Kind, Options, check};
use std::collections::{BTreeMap, VecDeque};

const TRANSACTIONS: u64 = 200_000;
/// How many transactions overlap.
const CLIENTS: u64 = 8;

/// Every transaction reads and writes two cells of its client; some are unknown, some scan. With `hot` all of them read
/// one cell besides, of which one client in turn writes 25,000 versions.
fn history(hot: bool) -> History {
    let header = Header { workload: "random".into(), serializable_tables: vec!["t".into()], ..Header::default() };
    let name = |client: u64, n: u64| CellName::new("t", &format!("{client}-{n:03}"), "c");
    let cells: Vec<Vec<CellName>> = (0..CLIENTS).map(|client| (0..100).map(|n| name(client, n)).collect()).collect();
    let hot_cell = CellName::new("hot", "h", "c");
    let mut state: BTreeMap<CellName, Text> = BTreeMap::new();
    // What the hot cell held at each commit that an open snapshot may still have to see.
    let mut hot_versions: VecDeque<(u64, Text)> = VecDeque::new();
    let mut transactions = Vec::new();
    for number in 0..TRANSACTIONS {
        let client = number % CLIENTS;
        // Begins before the last few commits, so that snapshots overlap; those are of other clients.
        let read_ts = (2 * number + 2).saturating_sub(CLIENTS).max(1);
        let (start_ts, commit_ts) = (2 * number + 2, 2 * number + 3);
        let mut ops = Vec::new();
        if hot && number > CLIENTS {
            while hot_versions.get(1).is_some_and(|(next, _)| *next < read_ts) {
                hot_versions.pop_front();
            }
            let value = hot_versions.front().map(|(_, value)| value.clone());
            ops.push(Op::Get { cell: hot_cell.clone(), value });
        }
        for n in [number / CLIENTS % 100, number * 7 / CLIENTS % 100] {
            let cell = cells[client as usize][n as usize].clone();
            if ops.iter().all(|op| !matches!(op, Op::Put { cell: put, .. } if *put == cell)) {
                ops.push(Op::Get { cell: cell.clone(), value: state.get(&cell).cloned() });
                let value: Text = format!("{number}/{n}").into();
                state.insert(cell.clone(), value.clone());
                ops.push(Op::Put { cell, value });
            }
        }
        if number % 50 == 0 {
            let own = cells[client as usize][..10].iter();
            let rows = own.filter_map(|cell| Some((cell.row.clone(), cell.col.clone(), state.get(cell)?.clone())));
            let mut scan = Scan::whole("t", rows.collect());
            (scan.start_row, scan.end_row) =
                (Some(cells[client as usize][0].row.clone()), Some(cells[client as usize][10].row.clone()));
            ops.push(Op::Scan(Box::new(scan)));
        }
        // One writer of the hot cell at a time: its snapshot ends above the commit of the one before.
        if hot && number % CLIENTS == 0 {
            let value: Text = format!("hot {number}").into();
            hot_versions.push_back((commit_ts, value.clone()));
            ops.push(Op::Put { cell: hot_cell.clone(), value });
        }
        let is_unknown = number % 97 == 5;
        transactions.push(Transaction {
            line: 0,
            client: Client::Number(client),
            status: if is_unknown { Status::Unknown } else { Status::Committed },
            start_ts,
            read_ts,
            tentative: false,
            commit_ts: (number % 194 != 5).then_some(commit_ts),
            begin_ns: read_ts * 10,
            end_ns: commit_ts * 10,
            reason: None,
            ops,
        });
    }
    let rows = state.iter().map(|(cell, value)| (cell.row.clone(), cell.col.clone(), value.clone()));
    let tables = BTreeMap::from([("t".to_owned(), rows.collect())]);
    History { header, transactions, final_state: Some(FinalState { tables, read_ts: None, faults: None }) }
}

#[test]
fn two_hundred_thousand_transactions_are_checked() {
    let history = history(false);
    let report = check(&history, &Options::default());
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.stats.transactions, TRANSACTIONS);
    assert!(report.stats.unknown_committed > 1000 && report.stats.reads > 400_000, "{}", report.stats);
}

#[test]
fn a_hot_cell_costs_no_more() {
    let report = check(&history(true), &Options::default());
    assert!(report.is_clean(), "{report}");
}

#[test]
fn one_wrong_read_among_many_is_found() {
    let mut history = history(false);
    let wrong = history.transactions.len() / 2;
    for op in &mut history.transactions[wrong].ops {
        if let Op::Get { value, .. } = op {
            *value = None;
        }
    }
    let report = check(&history, &Options::default());
    assert!(report.count(Kind::StaleRead) > 0, "{report}");
}

#[test]
fn a_file_of_them_is_read() {
    let mut file = Vec::new();
    history(false).write(&mut file).unwrap();
    assert_eq!(History::read(&file[..]).unwrap().transactions.len() as u64, TRANSACTIONS);
}
