//! The writes of a transaction before it commits.

use atlas_kvs::{Cell, ColumnSelection, RowRange, TableRef};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// What a cell counts beside its bytes towards the size of a transaction: keys, timestamps, headers.
pub(crate) const CELL_OVERHEAD: usize = 32;

/// In a list of this length room is made for a cell that comes late; a longer one becomes a tree.
const LIST_MAX: usize = 64;

/// The writes of one table by cell, in ascending order: `None` deletes.
///
/// Most of those who write much write in order, and most others write little. Both are served best by a list.
#[derive(Debug, Default)]
pub(crate) struct TableWrites {
    // Invariant: ascending, and empty as soon as there is a tree.
    list: Vec<(Cell, Option<Bytes>)>,
    tree: BTreeMap<Cell, Option<Bytes>>,
}

impl TableWrites {
    /// Answers what the write replaces.
    fn insert(&mut self, cell: Cell, value: Option<Bytes>) -> Option<Option<Bytes>> {
        if !self.tree.is_empty() {
            return self.tree.insert(cell, value);
        }
        if self.list.last().is_none_or(|(last, _)| *last < cell) {
            self.list.push((cell, value));
            return None;
        }
        match self.list.binary_search_by(|(other, _)| other.cmp(&cell)) {
            Ok(at) => Some(std::mem::replace(&mut self.list[at].1, value)),
            Err(at) if self.list.len() < LIST_MAX => {
                self.list.insert(at, (cell, value));
                None
            }
            Err(_) => {
                self.tree = std::mem::take(&mut self.list).into_iter().collect();
                self.tree.insert(cell, value)
            }
        }
    }

    fn get(&self, cell: &Cell) -> Option<&Option<Bytes>> {
        match self.list.binary_search_by(|(other, _)| other.cmp(cell)) {
            Ok(at) => Some(&self.list[at].1),
            Err(_) => self.tree.get(cell),
        }
    }

    /// The writes from this cell on, it included.
    fn from<'a>(&'a self, first: &Cell) -> impl Iterator<Item = (&'a Cell, &'a Option<Bytes>)> {
        let from = self.list.partition_point(|(cell, _)| cell < first);
        let bounds = (Bound::Included(first), Bound::Unbounded);
        pairs(&self.list[from..]).chain(self.tree.range::<Cell, _>(bounds))
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len() + self.tree.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Cell, &Option<Bytes>)> {
        pairs(&self.list).chain(&self.tree)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Cell> {
        self.iter().map(|(cell, _)| cell)
    }
}

fn pairs(list: &[(Cell, Option<Bytes>)]) -> impl Iterator<Item = (&Cell, &Option<Bytes>)> {
    list.iter().map(|(cell, value)| (cell, value))
}

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
            // By itself: each cell of a large transaction has the name of its table, and other transactions do as well.
            None => self.tables.entry(table.unshared()).or_default(),
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
            .from(&first)
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

    /// The same writes as a map would hold, however they come.
    fn compare(rows: impl IntoIterator<Item = (u32, Option<&'static str>)>) {
        let table = TableRef::new("t").expect("a name");
        let mut buffer = LocalWriteBuffer::default();
        let mut expected = BTreeMap::new();
        for (row, value) in rows {
            let (cell, value) = (Cell::copy_from(row.to_be_bytes(), "c"), value.map(Bytes::from));
            buffer.put(&table, cell.clone(), value.clone());
            expected.insert(cell, value);
        }
        assert_eq!(buffer.size(), expected.iter().map(|(cell, value)| size_of_write(cell, value)).sum::<usize>());
        assert!(expected.iter().all(|(cell, value)| buffer.get(&table, cell).as_ref() == Some(value)));
        assert_eq!(buffer.get(&table, &Cell::copy_from("another", "c")), None);
        let (all, some) =
            (RowRange::all(), RowRange::new(100u32.to_be_bytes().to_vec(), 200u32.to_be_bytes().to_vec()));
        let of = |range: &RowRange| -> Vec<_> {
            let inside = expected.iter().filter(|(cell, _)| range.contains(&cell.row));
            inside.map(|(cell, value)| (cell.clone(), value.clone())).collect()
        };
        assert_eq!(buffer.range(&table, &all, &ColumnSelection::All), of(&all));
        assert_eq!(buffer.range(&table, &some, &ColumnSelection::All), of(&some));
        let cells: Vec<Cell> = buffer.cells().iter().map(|(_, cell)| cell.clone()).collect();
        assert!(cells.iter().eq(expected.keys()));
    }

    #[test]
    fn writes_are_kept_in_order_however_they_come() {
        compare((0..1000).map(|row| (row, Some("x"))));
        compare((0..1000).rev().map(|row| (row, Some("x"))));
        compare((0..1000).map(|row| (row * 7919 % 1000, (row % 3 != 0).then_some("x"))));
        // In order, and then each of them again, and some between.
        compare((0..500).map(|row| (row * 2, Some("x"))).chain((0..1000).map(|row| (row, None))));
    }

    #[test]
    fn few_writes_are_kept_in_order_however_they_come() {
        let lists = (0..LIST_MAX as u32 + 3).map(|len| (0..len).map(move |row| (row * 7919 % 97, Some("x"))));
        lists.for_each(compare);
    }
}
