//! Falsified outcomes, final states, and what the values mean.

use super::find::{any, gets, is_acknowledged, is_plain, scans, versions, writes};
use crate::simulator::{Rng, Truth};
use atlas_checker::History;
use atlas_checker::history::{CellName, Op, Status, Text};
use atlas_checker::value::{content, encode_list, list, number, tagged};

pub(crate) fn committed_to_aborted(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let all = gets(history);
    let seen = |value: &Option<Text>, txn: usize| all.iter().any(|get| get.txn != txn && get.got == *value);
    let places = versions.values().flatten().filter(|version| {
        version.value.is_some() && is_acknowledged(history, version) && seen(&version.value, version.txn)
    });
    let txn = any(rng, places)?.txn;
    history.transactions[txn].status = Status::Aborted;
    Some(format!("T{}", history.transactions[txn].start_ts))
}

fn commits(history: &mut History, rng: &mut Rng, losers: Vec<usize>) -> Option<String> {
    let txn = any(rng, losers)?;
    history.transactions[txn].status = Status::Committed;
    Some(format!("T{}", history.transactions[txn].start_ts))
}

pub(crate) fn loser_commits(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let losers = losers(history, truth, |_, _| true);
    commits(history, rng, losers)
}

pub(crate) fn blind_loser_commits(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let losers = losers(history, truth, |history, txn| {
        let ops = &history.transactions[txn].ops;
        ops.iter().all(|op| matches!(op, Op::Put { .. } | Op::Delete { .. }))
    });
    commits(history, rng, losers)
}

/// Those that lost against a commit whose client knows of it.
fn losers(history: &History, truth: &[Truth], fits: impl Fn(&History, usize) -> bool) -> Vec<usize> {
    let versions = versions(history, truth);
    let lost = (0..truth.len()).filter(|txn| truth[*txn] == Truth::WriteConflict && fits(history, *txn));
    let against_acknowledged = |txn: &usize| {
        let transaction = &history.transactions[*txn];
        writes(history, *txn).keys().filter(|cell| is_plain(history, &cell.table)).any(|cell| {
            let winners = versions.get(cell).into_iter().flatten();
            winners
                .filter(|winner| is_acknowledged(history, winner))
                .any(|winner| winner.commit_ts >= transaction.read_ts && Some(winner.commit_ts) < transaction.commit_ts)
        })
    };
    lost.filter(against_acknowledged).collect()
}

/// Only those whose reads were changed by commits that are known, so that the checker can't excuse them.
pub(crate) fn skewed_commits(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let losers = (0..truth.len()).filter(|txn| truth[*txn] == Truth::ReadConflict).filter(|txn| {
        let transaction = &history.transactions[*txn];
        let between = versions.values().flatten().filter(|version| {
            version.commit_ts >= transaction.read_ts && Some(version.commit_ts) < transaction.commit_ts
        });
        between.clone().count() > 0 && between.clone().all(|version| is_acknowledged(history, version))
    });
    let losers = losers.collect();
    commits(history, rng, losers)
}

pub(crate) fn final_loses(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let last = versions.iter().filter(|(cell, _)| is_plain(history, &cell.table));
    let last = last.filter_map(|(cell, of_cell)| Some((cell, of_cell.last()?)));
    let places = last.filter(|(_, last)| last.value.is_some() && is_acknowledged(history, last));
    let cell = any(rng, places)?.0.clone();
    let rows = history.final_state.as_mut()?.tables.get_mut(&*cell.table)?;
    rows.retain(|(row, col, _)| (row, col) != (&cell.row, &cell.col));
    Some(format!("{cell:?}"))
}

/// A snapshot from before the last commit, true to itself: that commit may be lost, and nothing else tells.
pub(crate) fn final_of_earlier(history: &mut History, _: &[Truth], _: &mut Rng) -> Option<String> {
    let (commit_ts, last) = history
        .transactions
        .iter()
        .filter_map(|transaction| Some((transaction.commit_ts?, transaction)))
        .max_by_key(|(commit_ts, _)| *commit_ts)?;
    (last.status == Status::Committed).then_some(())?;
    let state = history.final_state.as_mut()?;
    state.read_ts = Some(commit_ts);
    Some(format!("{commit_ts}"))
}

/// What a store would show that has lost everything.
pub(crate) fn final_of_nothing(history: &mut History, _: &[Truth], _: &mut Rng) -> Option<String> {
    let state = history.final_state.as_mut()?;
    state.tables.values_mut().for_each(Vec::clear);
    state.read_ts = Some(0);
    Some("everything".to_owned())
}

pub(crate) fn final_older(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let places = versions.iter().filter_map(|(cell, of_cell)| {
        let [.., before, last] = &of_cell[..] else { return None };
        let fits = is_acknowledged(history, last) && is_acknowledged(history, before);
        Some((cell.clone(), before.value.clone().filter(|_| fits)?))
    });
    let (cell, value) = any(rng, places)?;
    set_final(history, &cell, value)
}

pub(crate) fn final_aborted(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let aborted = (0..history.transactions.len()).filter(|txn| history.transactions[*txn].status == Status::Aborted);
    let values = aborted.flat_map(|txn| writes(history, txn)).filter_map(|(cell, value)| Some((cell, value?)));
    let (cell, value) = any(rng, values)?;
    set_final(history, &cell, value)
}

/// The last writer of a cell, which somebody saw, turns unknown, and the final state shows the version before.
pub(crate) fn final_forgets_unknown(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let all = gets(history);
    let places = versions.iter().filter_map(|(cell, of_cell)| {
        let [.., before, last] = &of_cell[..] else { return None };
        let fits = is_acknowledged(history, last) && is_acknowledged(history, before);
        let seen = all.iter().any(|get| get.txn != last.txn && get.got.is_some() && get.got == last.value);
        Some((cell.clone(), before.value.clone().filter(|_| fits && seen)?, last.txn))
    });
    let (cell, value, txn) = any(rng, places)?;
    history.transactions[txn].status = Status::Unknown;
    set_final(history, &cell, value)
}

fn set_final(history: &mut History, cell: &CellName, value: Text) -> Option<String> {
    let rows = history.final_state.as_mut()?.tables.get_mut(&*cell.table)?;
    let row = rows.iter_mut().find(|(row, col, _)| (row, col) == (&cell.row, &cell.col))?;
    row.2 = value.clone();
    Some(format!("{cell:?} is {value}"))
}

/// Replaces a value wherever it stands, so that the replay finds nothing: only its meaning is wrong.
fn replace(history: &mut History, from: &Text, to: &str) -> String {
    let to: Text = to.into();
    let rename = |value: &mut Text| {
        if *value == *from {
            *value = to.clone();
        }
    };
    for op in history.transactions.iter_mut().flat_map(|transaction| &mut transaction.ops) {
        match op {
            Op::Put { value, .. } | Op::Get { value: Some(value), .. } => rename(value),
            Op::Scan(scan) => scan.rows.iter_mut().for_each(|(.., value)| rename(value)),
            Op::Get { value: None, .. } | Op::Delete { .. } => {}
        }
    }
    let tables = history.final_state.iter_mut().flat_map(|state| state.tables.values_mut());
    tables.flatten().for_each(|(.., value)| rename(value));
    format!("{from} becomes {to}")
}

/// A value that an acknowledged commit, not the first one, left in a cell.
fn any_value(history: &History, truth: &[Truth], rng: &mut Rng) -> Option<Text> {
    let versions = versions(history, truth);
    let places = versions.values().flat_map(|of_cell| &of_cell[1..]);
    any(rng, places.filter(|version| is_acknowledged(history, version)).filter_map(|version| version.value.clone()))
}

pub(crate) fn other_number(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let value = any_value(history, truth, rng)?;
    let to = tagged(number(&value)? + 7, "other");
    Some(replace(history, &value, &to))
}

pub(crate) fn negative_number(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let value = any_value(history, truth, rng)?;
    Some(replace(history, &value, &tagged(-1000, "other")))
}

pub(crate) fn ring_cut(history: &mut History, _: &[Truth], rng: &mut Rng) -> Option<String> {
    let at = any(rng, scans(history))?;
    let row = any(rng, super::find::scan_at(history, at).rows.clone())?;
    let to = tagged(if content(&row.2)? == "n0" { "n1" } else { "n0" }, "other");
    Some(replace(history, &row.2, &to))
}

pub(crate) fn list_rewritten(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let value = any_value(history, truth, rng)?;
    let mut elements = list(&value)?;
    elements[0] = -1;
    Some(replace(history, &value, &encode_list(&elements)))
}

/// A put of an index entry that only its own transaction knows of is left out, with all that was seen of it.
pub(crate) fn half_a_row(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let entries = versions.iter().filter(|(cell, _)| &*cell.table == "transient_index").flat_map(|(_, all)| all);
    let entries = entries.filter(|version| is_acknowledged(history, version));
    let value = any(rng, entries.filter_map(|version| version.value.clone()))?;
    for transaction in &mut history.transactions {
        transaction.ops.retain(|op| !matches!(op, Op::Put { value: put, .. } if *put == value));
        for op in &mut transaction.ops {
            match op {
                Op::Get { value: got, .. } if got.as_ref() == Some(&value) => *got = None,
                Op::Scan(scan) => scan.rows.retain(|(.., found)| *found != value),
                _ => {}
            }
        }
    }
    let tables = history.final_state.iter_mut().flat_map(|state| state.tables.values_mut());
    tables.for_each(|rows| rows.retain(|(.., found)| *found != value));
    Some(format!("{value} never was"))
}

/// One more transaction, after all others, that puts a deleted cell again.
pub(crate) fn comes_back(history: &mut History, truth: &[Truth], rng: &mut Rng) -> Option<String> {
    let versions = versions(history, truth);
    let deleted = versions
        .iter()
        .filter(|(_, all)| all.last().is_some_and(|last| last.value.is_none() && is_acknowledged(history, last)));
    let cell = any(rng, deleted)?.0.clone();
    let mut again = history.transactions.iter().find(|transaction| transaction.wrote())?.clone();
    let ts = history.transactions.iter().flat_map(|txn| [Some(txn.start_ts), txn.commit_ts]).flatten().max()?;
    let ns = history.transactions.iter().map(|transaction| transaction.end_ns).max()?;
    (again.start_ts, again.read_ts, again.commit_ts) = (ts + 1, ts + 1, Some(ts + 2));
    (again.begin_ns, again.end_ns, again.status) = (ns + 1, ns + 2, Status::Committed);
    again.ops = vec![Op::Put { cell: cell.clone(), value: "again".into() }];
    history.transactions.push(again);
    let rows = history.final_state.as_mut()?.tables.get_mut(&*cell.table)?;
    rows.push((cell.row.clone(), cell.col.clone(), "again".into()));
    rows.sort();
    Some(format!("{cell:?}"))
}
