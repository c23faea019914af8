//! Deleting versions: one by one, of each cell the oldest first, from all replicas.
//!
//! Before anything is deleted, all replicas are asked for the write timestamps of what is there: the deletion is then
//! written later than that, and a replica that does not answer is found out while nothing is done yet. The next version
//! goes when all replicas have lost the one before, so whatever happens in between, the newest version is the last.
//!
//! Entries of the index stay. They are removed by whoever comes along and finds that they lead nowhere; see `reaper`.

use crate::errors::Attempt;
use crate::read::{cell_of, key_of, number};
use crate::scan::rows_range;
use crate::session::Cluster;
use crate::table::Table;
use crate::walk::Walk;
use atlas_kvs::{Cell, CellTimestamps, CellVersionRange, KvsError, RowRange, Timestamp};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Cells that are looked for before they are deleted.
const CELLS: usize = 512;

/// What to delete of a cell.
#[derive(Debug, Default)]
struct Doomed {
    /// These versions, be they there or not.
    named: BTreeSet<i64>,
    /// Those that are found below this.
    below: Timestamp,
    sentinel: bool,
}

impl Cluster {
    pub(crate) async fn delete_versions(&self, table: &Table, versions: &[CellTimestamps]) -> Attempt<()> {
        let mut doomed: BTreeMap<Bytes, (&Cell, Doomed)> = BTreeMap::new();
        for CellTimestamps { cell, timestamps } in versions {
            let of_cell = &mut doomed.entry(key_of(cell)).or_insert_with(|| (cell, Doomed::default())).1;
            of_cell.named.extend(timestamps.iter().map(|&ts| number(ts)));
        }
        self.delete_cells(table, doomed.into_values().collect()).await
    }

    pub(crate) async fn delete_version_ranges(&self, table: &Table, ranges: &[CellVersionRange]) -> Attempt<()> {
        let mut doomed: BTreeMap<Bytes, (&Cell, Doomed)> = BTreeMap::new();
        for range in ranges {
            let of_cell = &mut doomed.entry(key_of(&range.cell)).or_insert_with(|| (&range.cell, Doomed::default())).1;
            of_cell.below = of_cell.below.max(range.before);
            of_cell.sentinel |= range.include_sentinel && range.before > Timestamp::SENTINEL;
        }
        self.delete_cells(table, doomed.into_values().collect()).await
    }

    pub(crate) async fn delete_rows(&self, table: &Table, rows: &RowRange) -> Attempt<()> {
        let mut walk = Walk::new(rows_range(rows), false, CELLS);
        let mut cells: Vec<Cell> = Vec::new();
        loop {
            let entry = walk.next(self, table).await?;
            let last = entry.is_none();
            if let Some(entry) = entry {
                let cell = cell_of(&entry.key, table)?;
                if cells.last() != Some(&cell) {
                    cells.push(cell);
                }
            }
            if cells.len() >= CELLS || last {
                let all = || Doomed { below: Timestamp::MAX, sentinel: true, ..Doomed::default() };
                self.delete_cells(table, cells.iter().map(|cell| (cell, all())).collect()).await?;
                cells.clear();
            }
            if last {
                return Ok(());
            }
        }
    }

    async fn delete_cells(&self, table: &Table, doomed: Vec<(&Cell, Doomed)>) -> Attempt<()> {
        match self.each(&doomed, |(cell, doomed)| self.delete_of_cell(table, cell, doomed)).await {
            Ok(_) => Ok(()),
            Err(trouble) => Err(self.name_the_silent(trouble).await),
        }
    }

    async fn delete_of_cell(&self, table: &Table, cell: &Cell, doomed: &Doomed) -> Attempt<()> {
        let last = doomed.named.last().map_or(0, |last| last.saturating_add(1));
        let below = number(doomed.below).max(last);
        if below == 0 {
            return Ok(());
        }
        let mut gone = doomed.named.clone();
        let found = |(ts, written): (i64, Option<i64>)| {
            self.clock.observe(written.unwrap_or_default());
            let in_range = ts < number(doomed.below) && (ts > 0 || doomed.sentinel);
            gone.extend(in_range.then_some(ts));
        };
        let values = (&cell.row, &cell.column, below);
        self.all_rows(&table.versioned().write_times, &values, "looking before deleting", found).await?;
        for (number, ts) in gone.into_iter().enumerate() {
            let values = (self.clock.next(), &cell.row, &cell.column, ts);
            let deleted = self.write(&table.versioned().delete, &values, "deleting a version").await;
            deleted.map_err(|trouble| if number == 0 { trouble } else { partly(trouble) })?;
        }
        Ok(())
    }
}

/// The versions before are gone, so it is not true that nothing was done.
fn partly(trouble: crate::errors::Trouble) -> crate::errors::Trouble {
    use crate::errors::Trouble;
    match trouble {
        Trouble::Final(KvsError::Unavailable { reason, source }) => Trouble::Final(KvsError::Indeterminate {
            reason: format!("older versions of the cell are deleted, this one is not: {reason}"),
            source,
        }),
        other => other,
    }
}
