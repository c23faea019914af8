//! Falsified observations.

use super::find::{Get, any, gets, is_acknowledged, is_plain, scan_at, scans, set_get, split, versions, writes};
use crate::simulator::{Rng, Truth};
use atlas_checker::History;
use atlas_checker::history::{CellName, Op, Status, Text};

pub(crate) fn older(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let places = gets(history).into_iter().filter_map(|get| {
        let (below, _) = split(&versions, &get.cell, get.read_ts);
        let [.., before, seen] = below else { return None };
        let value = before.value.clone()?;
        (is_acknowledged(history, seen) && is_acknowledged(history, before)).then_some((get, value))
    });
    let (get, value) = any(rng, places)?;
    Some(set_get(history, &get, Some(value)))
}

pub(crate) fn missing(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let places = gets(history).into_iter().filter(|get| {
        let seen = split(&versions, &get.cell, get.read_ts).0.last();
        get.got.is_some() && seen.is_some_and(|seen| is_acknowledged(history, seen))
    });
    let get = any(rng, places)?;
    Some(set_get(history, &get, None))
}

/// Of a transaction that read two cells which one commit wrote, the second read becomes the version before.
pub(crate) fn skewed(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let all = gets(history);
    let places = all.windows(2).filter_map(|pair| {
        let writer = |get: &Get| split(&versions, &get.cell, get.read_ts).0.last().map(|version| version.txn);
        let is_pair = pair[0].txn == pair[1].txn && writer(&pair[0]).is_some() && writer(&pair[0]) == writer(&pair[1]);
        let [.., before, seen] = split(&versions, &pair[1].cell, pair[1].read_ts).0 else { return None };
        (is_pair && is_acknowledged(history, seen)).then_some((pair[1].clone(), before.value.clone()?))
    });
    let (get, value) = any(rng, places)?;
    Some(set_get(history, &get, Some(value)))
}

pub(crate) fn newer(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let places = gets(history).into_iter().filter_map(|get| {
        let (_, above) = split(&versions, &get.cell, get.read_ts);
        let next = above.iter().find(|version| version.txn != get.txn && version.value.is_some())?;
        is_acknowledged(history, next).then(|| (get, next.value.clone()))
    });
    let (get, value) = any(rng, places)?;
    Some(set_get(history, &get, value))
}

pub(crate) fn aborted(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let (get, value) = any_pair(history, rng, |history, get| {
        let losers = (0..history.transactions.len())
            .filter(|txn| *txn != get.txn && history.transactions[*txn].status == Status::Aborted);
        losers.filter_map(|txn| writes(history, txn).remove(&get.cell).flatten()).next()
    })?;
    Some(set_get(history, &get, Some(value)))
}

pub(crate) fn intermediate(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let (get, value) = any_pair(history, rng, |history, get| {
        history.transactions.iter().enumerate().find_map(|(txn, transaction)| {
            let mut puts = transaction.ops.iter().filter_map(|op| match op {
                Op::Put { cell, value } if *cell == get.cell => Some(value.clone()),
                _ => None,
            });
            let (first, second) = (puts.next()?, puts.next());
            (txn != get.txn && transaction.status == Status::Committed && second.is_some()).then_some(first)
        })
    })?;
    Some(set_get(history, &get, Some(value)))
}

pub(crate) fn elsewhere(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let get = any(rng, gets(history))?;
    let others = versions.iter().filter(|(cell, _)| **cell != get.cell && is_plain(history, &cell.table));
    let value = any(rng, others.filter_map(|(_, of_cell)| of_cell[0].value.clone()))?;
    Some(set_get(history, &get, Some(value)))
}

pub(crate) fn invented(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let get = any(rng, gets(history))?;
    Some(set_get(history, &get, Some("nobody put this".into())))
}

pub(crate) fn own_missed(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let mut places = Vec::new();
    for (txn, transaction) in history.transactions.iter().enumerate() {
        for (op, operation) in transaction.ops.iter().enumerate() {
            if let Op::Put { cell, .. } = operation {
                places.push((txn, op, cell.clone()));
            }
        }
    }
    let (txn, op, cell) = any(rng, places)?;
    history.transactions[txn].ops.insert(op + 1, Op::Get { cell, value: None });
    Some(format!("T{} misses its own put", history.transactions[txn].start_ts))
}

pub(crate) fn own_early(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let (get, value) = any_pair(history, rng, |history, get| writes(history, get.txn).remove(&get.cell).flatten())?;
    Some(set_get(history, &get, Some(value)))
}

pub(crate) fn row_lost(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let mut places = Vec::new();
    for at in scans(history) {
        let read_ts = history.transactions[at.0].read_ts;
        let scan = scan_at(history, at).clone();
        for (number, (row, col, _)) in scan.rows.iter().enumerate() {
            let cell = CellName { table: scan.table.clone(), row: row.clone(), col: col.clone() };
            let seen = split(&versions, &cell, read_ts).0.last().expect("it was seen");
            if is_acknowledged(history, seen) {
                places.push((at, number));
            }
        }
    }
    let (at, number) = any(rng, places)?;
    let row = scan_at(history, at).rows.remove(number);
    Some(format!("T{} loses {row:?}", history.transactions[at.0].start_ts))
}

pub(crate) fn row_resurrected(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    add_row(history, rng, |history, cell, read_ts| {
        let [.., before, seen] = split(&versions, cell, read_ts).0 else { return None };
        let both = is_acknowledged(history, seen) && is_acknowledged(history, before) && seen.value.is_none();
        before.value.clone().filter(|_| both)
    })
}

pub(crate) fn row_of_the_future(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    add_row(history, rng, |history, cell, read_ts| {
        let (below, above) = split(&versions, cell, read_ts);
        let absent = below.last().is_none_or(|version| version.value.is_none());
        let next = above.iter().find(|version| version.value.is_some())?;
        next.value.clone().filter(|_| absent && is_acknowledged(history, next))
    })
}

/// A scan that stopped early says that it did not, although there was more.
pub(crate) fn prefix_as_whole(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let mut places = Vec::new();
    for at in scans(history) {
        let read_ts = history.transactions[at.0].read_ts;
        let stopped = scan_at(history, at).clone();
        let mut whole = stopped.clone();
        whole.consumed_to = None;
        let more = versions.keys().filter(|cell| cell.table == stopped.table);
        let more = more.filter(|cell| whole.covers(&cell.row, &cell.col) && !stopped.covers(&cell.row, &cell.col));
        let mut seen = more.filter_map(|cell| split(&versions, cell, read_ts).0.last());
        if seen.any(|seen| seen.value.is_some() && is_acknowledged(history, seen)) {
            places.push(at);
        }
    }
    let at = any(rng, places)?;
    scan_at(history, at).consumed_to = None;
    Some(format!("T{} claims that its scan ended", history.transactions[at.0].start_ts))
}

/// A commit turns unknown; one reader saw it, and one with a later snapshot does not any more.
pub(crate) fn half_seen(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let all = gets(history);
    let mut places = Vec::new();
    for get in &all {
        let [.., before, seen] = split(&versions, &get.cell, get.read_ts).0 else { continue };
        let value = before.value.clone().filter(|_| is_acknowledged(history, seen) && is_acknowledged(history, before));
        let witness = all.iter().find(|other| other.txn != get.txn && other.got.is_some() && other.got == get.got);
        if let (Some(value), Some(_)) = (value, witness) {
            places.push((get.clone(), value, seen.txn));
        }
    }
    let (get, value, writer) = any(rng, places)?;
    history.transactions[writer].status = Status::Unknown;
    Some(set_get(history, &get, Some(value)))
}

fn add_row(
    history: &mut History,
    rng: &mut Rng,
    value: impl Fn(&History, &CellName, u64) -> Option<Text>,
) -> Option<String> {
    let mut cells: Vec<CellName> =
        (0..history.transactions.len()).flat_map(|txn| writes(history, txn).into_keys()).collect();
    cells.sort();
    cells.dedup();
    let mut places = Vec::new();
    for at in scans(history) {
        let read_ts = history.transactions[at.0].read_ts;
        let scan = scan_at(history, at).clone();
        for cell in cells.iter().filter(|cell| cell.table == scan.table && scan.covers(&cell.row, &cell.col)) {
            if let Some(value) = value(history, cell, read_ts) {
                places.push((at, (cell.row.clone(), cell.col.clone(), value)));
            }
        }
    }
    let (at, row) = any(rng, places)?;
    let what = format!("T{} finds {row:?}", history.transactions[at.0].start_ts);
    let rows = &mut scan_at(history, at).rows;
    rows.push(row);
    rows.sort();
    Some(what)
}

/// A get, by chance, for which there is another value.
fn any_pair(history: &History, rng: &mut Rng, value: impl Fn(&History, &Get) -> Option<Text>) -> Option<(Get, Text)> {
    let mut all = gets(history);
    while !all.is_empty() {
        let get = all.swap_remove(rng.below(all.len()));
        if let Some(value) = value(history, &get) {
            return Some((get, value));
        }
    }
    None
}
