//! The model: what the contract says, without a word about how.

use super::ops::{BatchWrite, VersionedTable};
use atlas_kvs::{
    AtomicScan, Cell, CellBound, CellVersionRange, CellVersions, Scan, Timestamp, Value, Version, VersionScan,
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Versions of one table, in the order of cells and, within a cell, of timestamps.
pub(super) type Versions = BTreeMap<(Cell, Timestamp), Bytes>;

#[derive(Default)]
pub(super) struct Model {
    t: Versions,
    u: Versions,
    pub(super) atomic: BTreeMap<Cell, Bytes>,
}

impl Model {
    pub(super) fn versioned(&mut self, table: VersionedTable) -> &mut Versions {
        match table {
            VersionedTable::T => &mut self.t,
            VersionedTable::U => &mut self.u,
        }
    }

    /// True if among the puts one finds or makes its place occupied by another value.
    pub(super) fn conflicts(&mut self, writes: &[BatchWrite]) -> bool {
        let mut planned: Vec<(VersionedTable, &Cell, Timestamp, &Bytes)> = Vec::new();
        for write in writes {
            if let BatchWrite::Put(table, cell, ts, value) = write {
                let stored = self.versioned(*table).get(&(cell.clone(), *ts)).is_some_and(|stored| stored != value);
                let other = |put: &(VersionedTable, &Cell, Timestamp, &Bytes)| {
                    (put.0, put.1, put.2) == (*table, cell, *ts) && put.3 != value
                };
                if stored || planned.iter().any(other) {
                    return true;
                }
                planned.push((*table, cell, *ts, value));
            }
        }
        false
    }

    pub(super) fn write(&mut self, writes: &[BatchWrite]) {
        for write in writes.iter().cloned() {
            match write {
                BatchWrite::Put(table, cell, ts, value) => drop(self.versioned(table).insert((cell, ts), value)),
                BatchWrite::Set(cell, value) => drop(self.atomic.insert(cell, value)),
                BatchWrite::Remove(cell) => drop(self.atomic.remove(&cell)),
            }
        }
    }

    /// The answer of a compare-and-set: nothing if it was applied, otherwise what stands.
    pub(super) fn check_and_set(
        &mut self,
        cell: &Cell,
        expected: &Option<Bytes>,
        new: &Option<Bytes>,
    ) -> Result<(), Option<Bytes>> {
        let standing = self.atomic.get(cell).cloned();
        if standing != *expected {
            return Err(standing);
        }
        match new {
            Some(value) => self.atomic.insert(cell.clone(), value.clone()),
            None => self.atomic.remove(cell),
        };
        Ok(())
    }

    pub(super) fn scan_atomic(&self, request: &AtomicScan) -> Vec<(Cell, Bytes)> {
        let in_range = self.atomic.iter().filter(|(cell, _)| request.rows.contains(&cell.row));
        let items = in_range.map(|(cell, value)| (cell.clone(), value.clone())).collect();
        directed(items, request.reverse, &request.after, |(cell, _)| cell)
    }
}

pub(super) fn newest(versions: &Versions, bound: &CellBound) -> Option<Value> {
    let below = versions.iter().filter(|((cell, ts), _)| *cell == bound.cell && *ts < bound.read_before);
    below.last().map(|((_, ts), bytes)| Value { ts: *ts, bytes: bytes.clone() })
}

pub(super) fn all(versions: &Versions, bound: &CellBound) -> Vec<Version> {
    let below = versions.iter().filter(|((cell, ts), _)| *cell == bound.cell && *ts < bound.read_before);
    below.map(|((_, ts), bytes)| version(*ts, bytes)).collect()
}

pub(super) fn scan(versions: &Versions, request: &Scan) -> Vec<(Cell, Value)> {
    let selected = |cell: &Cell| request.rows.contains(&cell.row) && request.columns.contains(&cell.column);
    let cells = cells(versions).into_iter().filter(selected);
    let items = cells.filter_map(|cell| {
        let value = newest(versions, &CellBound::new(cell.clone(), request.read_before))?;
        Some((cell, value))
    });
    directed(items.collect(), request.reverse, &request.after, |(cell, _)| cell)
}

pub(super) fn scan_versions(versions: &Versions, request: &VersionScan) -> Vec<CellVersions> {
    let cells = cells(versions).into_iter().filter(|cell| request.rows.contains(&cell.row));
    let items = cells.map(|cell| {
        let versions = all(versions, &CellBound::new(cell.clone(), request.read_before));
        CellVersions { cell, versions }
    });
    directed(items.filter(|item| !item.versions.is_empty()).collect(), false, &request.after, |item| &item.cell)
}

pub(super) fn in_range(range: &CellVersionRange, ts: Timestamp) -> bool {
    ts < range.before && (ts != Timestamp::SENTINEL || range.include_sentinel)
}

fn cells(versions: &Versions) -> Vec<Cell> {
    let mut cells: Vec<_> = versions.keys().map(|(cell, _)| cell.clone()).collect();
    cells.dedup();
    cells
}

fn version(ts: Timestamp, bytes: &Bytes) -> Version {
    Version { ts, len: bytes.len() as u64, prefix: bytes.slice(..bytes.len().min(Version::PREFIX_LEN)) }
}

/// Ascending items in the direction of a scan, without those up to the cell behind which it starts.
fn directed<T>(mut items: Vec<T>, reverse: bool, after: &Option<Cell>, cell_of: impl Fn(&T) -> &Cell) -> Vec<T> {
    if reverse {
        items.reverse();
    }
    items.retain(|item| {
        after.as_ref().is_none_or(|after| if reverse { cell_of(item) < after } else { cell_of(item) > after })
    });
    items
}
