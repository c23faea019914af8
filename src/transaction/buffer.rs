//! The writes of a transaction before it commits.

use atlas_kvs::{Cell, ColumnSelection, RowRange, TableRef};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// What a cell counts beside its bytes towards the size of a transaction: keys, timestamps, headers.
pub(crate) const CELL_OVERHEAD: usize = 32;

/// The writes of one table: `None` deletes.
pub(crate) type TableWrites = BTreeMap<Cell, Option<Bytes>>;

/// Writes by table and cell; the last write of a cell counts.
#[derive(Debug, Default)]
pub(crate) struct LocalWriteBuffer {
    // Invariant: every cell appears once. Two values for one cell at one timestamp have no order.
    tables: BTreeMap<TableRef, TableWrites>,
    // Invariant: the sum of `size_of_write` over all writes.
    size: usize,
}

impl LocalWriteBuffer {
    pub(crate) fn put(&mut self, table: &TableRef, cell: Cell, value: Option<Bytes>) {
        self.size += size_of_write(&cell, &value);
        let writes = match self.tables.get_mut(table) {
            Some(writes) => writes,
            None => self.tables.entry(table.clone()).or_default(),
        };
        let names = cell.row.len() + cell.column.len();
        if let Some(replaced) = writes.insert(cell, value) {
            self.size -= names + replaced.map_or(0, |value| value.len()) + CELL_OVERHEAD;
        }
    }

    /// The buffered write of a cell: `Some(None)` if it deletes.
    pub(crate) fn get(&self, table: &TableRef, cell: &Cell) -> Option<Option<Bytes>> {
        self.tables.get(table)?.get(cell).cloned()
    }

    /// The buffered writes of a range, in ascending order.
    pub(crate) fn range(
        &self,
        table: &TableRef,
        rows: &RowRange,
        columns: &ColumnSelection,
    ) -> Vec<(Cell, Option<Bytes>)> {
        let Some(writes) = self.tables.get(table) else { return Vec::new() };
        let first = Cell { row: rows.start.clone(), column: Bytes::new() };
        writes
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(|(cell, _)| rows.contains(&cell.row))
            .filter(|(cell, _)| columns.contains(&cell.column))
            .map(|(cell, value)| (cell.clone(), value.clone()))
            .collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Bytes of all names and values, and [`CELL_OVERHEAD`] for each cell.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Every cell that is written.
    pub(crate) fn cells(&self) -> Arc<[(TableRef, Cell)]> {
        let of_table = |(table, writes): (&TableRef, &TableWrites)| {
            writes.keys().map(|cell| (table.clone(), cell.clone())).collect::<Vec<_>>()
        };
        self.tables.iter().flat_map(of_table).collect()
    }

    pub(crate) fn tables(&self) -> &BTreeMap<TableRef, TableWrites> {
        &self.tables
    }
}

pub(crate) fn size_of_write(cell: &Cell, value: &Option<Bytes>) -> usize {
    cell.row.len() + cell.column.len() + value.as_ref().map_or(0, Bytes::len) + CELL_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_write_of_a_cell_counts_and_so_does_its_size() {
        let table = TableRef::new("t").expect("a name");
        let cell = Cell::copy_from("row", "c");
        let mut buffer = LocalWriteBuffer::default();
        buffer.put(&table, cell.clone(), Some(Bytes::from_static(b"12345")));
        assert_eq!(buffer.size(), 4 + 5 + CELL_OVERHEAD);
        buffer.put(&table, cell.clone(), Some(Bytes::from_static(b"1")));
        assert_eq!(buffer.size(), 4 + 1 + CELL_OVERHEAD);
        buffer.put(&table, cell.clone(), None);
        assert_eq!(buffer.size(), 4 + CELL_OVERHEAD);
        assert_eq!(buffer.get(&table, &cell), Some(None));
    }
}
