//! Finds places in a history for a falsification, with a replay of its own.

use crate::simulator::{Rng, Truth};
use atlas_checker::History;
use atlas_checker::history::{CellName, Op, Scan, Status, Text};
use std::collections::{BTreeMap, BTreeSet};

/// What a committed transaction left in a cell.
#[derive(Clone)]
pub(crate) struct Version {
    pub(crate) txn: usize,
    pub(crate) commit_ts: u64,
    pub(crate) value: Option<Text>,
}

pub(crate) type Versions = BTreeMap<CellName, Vec<Version>>;

/// A get of a cell that its transaction had not written, in a table that orders versions by their commits.
#[derive(Clone)]
pub(crate) struct Get {
    pub(crate) txn: usize,
    pub(crate) op: usize,
    pub(crate) cell: CellName,
    pub(crate) got: Option<Text>,
    pub(crate) read_ts: u64,
}

/// The versions that really committed, oldest first.
pub(crate) fn versions(history: &History, truth: &[Truth]) -> Versions {
    let mut versions = Versions::new();
    for (txn, truth) in truth.iter().enumerate() {
        let Truth::Committed(commit_ts) = *truth else { continue };
        for (cell, value) in writes(history, txn) {
            versions.entry(cell).or_default().push(Version { txn, commit_ts, value });
        }
    }
    versions.values_mut().for_each(|of_cell| of_cell.sort_by_key(|version| version.commit_ts));
    versions
}

/// What a transaction leaves behind.
pub(crate) fn writes(history: &History, txn: usize) -> BTreeMap<CellName, Option<Text>> {
    let mut writes = BTreeMap::new();
    for op in &history.transactions[txn].ops {
        match op {
            Op::Put { cell, value } => writes.insert(cell.clone(), Some(value.clone())),
            Op::Delete { cell } => writes.insert(cell.clone(), None),
            Op::Get { .. } | Op::Scan(_) => None,
        };
    }
    writes
}

pub(crate) fn is_plain(history: &History, table: &str) -> bool {
    let header = &history.header;
    !header.no_conflict_tables.iter().chain(&header.touch_tables).any(|known| known == table)
}

pub(crate) fn gets(history: &History) -> Vec<Get> {
    let mut gets = Vec::new();
    for (txn, transaction) in history.transactions.iter().enumerate() {
        let mut own = BTreeSet::new();
        for (op, operation) in transaction.ops.iter().enumerate() {
            match operation {
                Op::Put { cell, .. } | Op::Delete { cell } => {
                    own.insert(cell.clone());
                }
                Op::Get { cell, value } if !own.contains(cell) && is_plain(history, &cell.table) => {
                    let (cell, got) = (cell.clone(), value.clone());
                    gets.push(Get { txn, op, cell, got, read_ts: transaction.read_ts });
                }
                Op::Get { .. } | Op::Scan(_) => {}
            }
        }
    }
    gets
}

/// Scans of plain tables by transactions that had not written before.
pub(crate) fn scans(history: &History) -> Vec<(usize, usize)> {
    let mut scans = Vec::new();
    for (txn, transaction) in history.transactions.iter().enumerate() {
        for (op, operation) in transaction.ops.iter().enumerate() {
            match operation {
                Op::Put { .. } | Op::Delete { .. } => break,
                Op::Scan(scan) if is_plain(history, &scan.table) => scans.push((txn, op)),
                Op::Get { .. } | Op::Scan(_) => {}
            }
        }
    }
    scans
}

pub(crate) fn scan_at(history: &mut History, (txn, op): (usize, usize)) -> &mut Scan {
    match &mut history.transactions[txn].ops[op] {
        Op::Scan(scan) => scan,
        other => panic!("{other:?} is no scan"),
    }
}

pub(crate) fn set_get(history: &mut History, get: &Get, value: Option<Text>) -> String {
    let what = format!("T{} gets {value:?} of {:?}", history.transactions[get.txn].start_ts, get.cell);
    history.transactions[get.txn].ops[get.op] = Op::Get { cell: get.cell.clone(), value };
    what
}

/// Of a cell's versions, those below a snapshot and those above.
pub(crate) fn split<'v>(versions: &'v Versions, cell: &CellName, read_ts: u64) -> (&'v [Version], &'v [Version]) {
    let all = versions.get(cell).map_or(&[][..], Vec::as_slice);
    all.split_at(all.partition_point(|version| version.commit_ts < read_ts))
}

pub(crate) fn is_acknowledged(history: &History, version: &Version) -> bool {
    history.transactions[version.txn].status == Status::Committed
}

/// One of all that fit, by chance.
pub(crate) fn any<T>(rng: &mut Rng, from: impl IntoIterator<Item = T>) -> Option<T> {
    let mut all: Vec<T> = from.into_iter().collect();
    (!all.is_empty()).then(|| all.swap_remove(rng.below(all.len())))
}
