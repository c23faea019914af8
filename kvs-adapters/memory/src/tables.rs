//! What the store holds: tables of either kind, and the rules for writing into them.

use atlas_kvs::{
    AtomicBatch, BatchGuard, BatchOp, Cell, KvsError, Result, TableDescription, TableKind, TableRef, TableSize,
    Timestamp,
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The versions of one cell; never empty while the cell is in its table.
pub(crate) type Versions = BTreeMap<Timestamp, Bytes>;

pub(crate) type VersionedCells = BTreeMap<Cell, Versions>;
pub(crate) type AtomicCells = BTreeMap<Cell, Bytes>;

#[derive(Default)]
pub(crate) struct Tables(BTreeMap<TableRef, Table>);

pub(crate) struct Table {
    pub(crate) metadata: Bytes,
    cells: Cells,
}

enum Cells {
    Versioned(VersionedCells),
    Atomic(AtomicCells),
}

/// The rows behind every so many cells, at most so many parts.
pub(crate) fn cut_rows(cells: &VersionedCells, parts: usize) -> Vec<Bytes> {
    let part = cells.len().div_ceil(parts.max(1)).max(1);
    let mut rows: Vec<Bytes> = cells.keys().step_by(part).skip(1).map(|cell| cell.row.clone()).collect();
    // Of a row that fills several parts.
    rows.dedup();
    if rows.first() == cells.keys().next().map(|cell| &cell.row) {
        rows.remove(0);
    }
    rows
}

impl Tables {
    pub(crate) fn create(&mut self, table: &TableRef, kind: TableKind, metadata: Bytes) -> Result<()> {
        let stored = self.0.entry(table.clone()).or_insert_with(|| Table { metadata, cells: Cells::empty(kind) });
        if stored.cells.kind() == kind { Ok(()) } else { Err(stored.wrong_kind(table)) }
    }

    pub(crate) fn remove(&mut self, table: &TableRef) {
        self.0.remove(table);
    }

    pub(crate) fn descriptions(&self) -> Vec<TableDescription> {
        self.0.iter().map(|(table, stored)| stored.description(table)).collect()
    }

    pub(crate) fn description(&self, table: &TableRef) -> Option<TableDescription> {
        self.0.get(table).map(|stored| stored.description(table))
    }

    pub(crate) fn find(&self, table: &TableRef) -> Result<&Table> {
        self.0.get(table).ok_or_else(|| KvsError::NoSuchTable(table.clone()))
    }

    pub(crate) fn find_mut(&mut self, table: &TableRef) -> Result<&mut Table> {
        self.0.get_mut(table).ok_or_else(|| KvsError::NoSuchTable(table.clone()))
    }

    pub(crate) fn versioned(&self, table: &TableRef) -> Result<&VersionedCells> {
        let stored = self.find(table)?;
        match &stored.cells {
            Cells::Versioned(cells) => Ok(cells),
            Cells::Atomic(_) => Err(stored.wrong_kind(table)),
        }
    }

    pub(crate) fn versioned_mut(&mut self, table: &TableRef) -> Result<&mut VersionedCells> {
        self.versioned(table)?;
        match &mut self.find_mut(table)?.cells {
            Cells::Versioned(cells) => Ok(cells),
            Cells::Atomic(_) => unreachable!("the kind was checked above"),
        }
    }

    pub(crate) fn atomic(&self, table: &TableRef) -> Result<&AtomicCells> {
        let stored = self.find(table)?;
        match &stored.cells {
            Cells::Atomic(cells) => Ok(cells),
            Cells::Versioned(_) => Err(stored.wrong_kind(table)),
        }
    }

    pub(crate) fn atomic_mut(&mut self, table: &TableRef) -> Result<&mut AtomicCells> {
        self.atomic(table)?;
        match &mut self.find_mut(table)?.cells {
            Cells::Atomic(cells) => Ok(cells),
            Cells::Versioned(_) => unreachable!("the kind was checked above"),
        }
    }

    /// Keeps of one cell the versions that `keep` names, and no cell without a version.
    pub(crate) fn retain(&mut self, table: &TableRef, cell: &Cell, keep: impl Fn(Timestamp) -> bool) -> Result<()> {
        let cells = self.versioned_mut(table)?;
        if let Some(versions) = cells.get_mut(cell) {
            versions.retain(|ts, _| keep(*ts));
            if versions.is_empty() {
                cells.remove(cell);
            }
        }
        Ok(())
    }

    /// Checks all that could stand in the way of a batch, so that [`write`](Self::write) cannot stop half way.
    pub(crate) fn check(&self, batch: &AtomicBatch) -> Result<()> {
        if let Some(BatchGuard { table, cell, expected }) = &batch.guard
            && self.atomic(table)?.get(cell) != Some(expected)
        {
            return Err(KvsError::GuardFailed { table: table.clone(), cell: cell.clone() });
        }
        let mut planned = BTreeMap::new();
        for op in batch.ops.iter() {
            match op {
                BatchOp::Set { table, .. } | BatchOp::Remove { table, .. } => drop(self.atomic(table)?),
                BatchOp::Put { table, cell, ts, value } => {
                    let stored = self.versioned(table)?.get(cell).and_then(|versions| versions.get(ts));
                    if !ts.is_data() {
                        return Err(KvsError::InvalidTimestamp(ts.get()));
                    }
                    // The batch may hold two values for one place, too.
                    let standing = planned.entry((table, cell, ts)).or_insert(stored.unwrap_or(value));
                    if *standing != value {
                        return Err(KvsError::ConflictingValue { table: table.clone(), cell: cell.clone(), ts: *ts });
                    }
                }
            }
        }
        Ok(())
    }

    /// What is kept is a copy: names and contents of a batch may be parts of something large.
    pub(crate) fn write(&mut self, op: &BatchOp) -> Result<()> {
        match op {
            BatchOp::Set { table, cell, value } => drop(self.atomic_mut(table)?.insert(own(cell), own_bytes(value))),
            BatchOp::Remove { table, cell } => drop(self.atomic_mut(table)?.remove(cell)),
            BatchOp::Put { table, cell, ts, value } => {
                let cells = self.versioned_mut(table)?;
                match cells.get_mut(cell) {
                    Some(versions) => drop(versions.insert(*ts, own_bytes(value))),
                    None => drop(cells.insert(own(cell), Versions::from([(*ts, own_bytes(value))]))),
                }
            }
        }
        Ok(())
    }
}

impl Table {
    pub(crate) fn clear(&mut self) {
        self.cells = Cells::empty(self.cells.kind());
    }

    pub(crate) fn size(&self) -> TableSize {
        match &self.cells {
            Cells::Versioned(cells) => {
                let per_cell = |(cell, versions): (&Cell, &Versions)| {
                    let values: usize = versions.values().map(|value| size_of::<Timestamp>() + value.len()).sum();
                    (versions.len(), name_len(cell) + values)
                };
                sum(cells.iter().map(per_cell))
            }
            Cells::Atomic(cells) => sum(cells.iter().map(|(cell, value)| (1, name_len(cell) + value.len()))),
        }
    }

    fn description(&self, table: &TableRef) -> TableDescription {
        TableDescription { table: table.clone(), kind: self.cells.kind(), metadata: self.metadata.clone() }
    }

    fn wrong_kind(&self, table: &TableRef) -> KvsError {
        let actual = match self.cells.kind() {
            TableKind::Versioned => "versioned",
            TableKind::Atomic => "atomic",
        };
        KvsError::WrongTableKind { table: table.clone(), actual }
    }
}

impl Cells {
    fn empty(kind: TableKind) -> Cells {
        match kind {
            TableKind::Versioned => Cells::Versioned(BTreeMap::new()),
            TableKind::Atomic => Cells::Atomic(BTreeMap::new()),
        }
    }

    fn kind(&self) -> TableKind {
        match self {
            Cells::Versioned(_) => TableKind::Versioned,
            Cells::Atomic(_) => TableKind::Atomic,
        }
    }
}

fn own(cell: &Cell) -> Cell {
    Cell::copy_from(&cell.row, &cell.column)
}

fn own_bytes(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn name_len(cell: &Cell) -> usize {
    cell.row.len() + cell.column.len()
}

fn sum(cells: impl Iterator<Item = (usize, usize)>) -> TableSize {
    cells.fold(TableSize::default(), |size, (versions, bytes)| TableSize {
        versions: size.versions + versions as u64,
        bytes: size.bytes + bytes as u64,
    })
}
