//! What a transaction has read of tables that check reads.
//!
//! Cells are kept one by one, ranges with how far they were consumed: a reader that stopped at the third cell learned
//! nothing of the fourth. What it learned includes absences, so everything between two cells it was given counts.

use super::window::ConflictKey;
use crate::schema::TableSpec;
use atlas_kvs::{Cell, ColumnSelection, RowRange, TableRef};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

/// How many reads are kept apart. A transaction that has read more is checked as if it had read the whole table it
/// read most of: it may conflict needlessly, and takes no more memory.
const READS_MAX: usize = 1 << 16;

/// The reads of an open transaction.
#[derive(Debug, Default)]
pub(crate) struct ReadSet {
    /// Every table read or written, whatever its handler.
    touched: BTreeSet<TableRef>,
    /// Tables whose reads are not checked in this transaction.
    exempt: BTreeSet<TableRef>,
    cells: BTreeMap<TableRef, BTreeSet<Cell>>,
    ranges: BTreeMap<TableRef, Vec<Arc<RangeRead>>>,
    whole: BTreeSet<TableRef>,
    // Invariant: how many cells and ranges there are.
    kept: usize,
}

/// A range that is being read.
#[derive(Debug)]
pub(crate) struct RangeRead {
    rows: RowRange,
    columns: ColumnSelection,
    reverse: bool,
    consumed: Mutex<Consumed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Consumed {
    Nothing,
    /// Names of its own: those of a page are lent, or would keep the page.
    UpTo(Names),
    All,
    /// The transaction has ended: nothing more may be given.
    Closed,
}

/// Row and column, in memory that is used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    row: Vec<u8>,
    column: Vec<u8>,
}

impl Names {
    fn set(&mut self, row: &[u8], column: &[u8]) {
        for (name, new) in [(&mut self.row, row), (&mut self.column, column)] {
            name.clear();
            name.extend_from_slice(new);
        }
    }

    fn cell(&self) -> Cell {
        Cell::copy_from(&self.row, &self.column)
    }
}

impl RangeRead {
    /// The reader is given a cell: it knows everything up to it, in the order of the scan. False if it must not be
    /// given anything any more, because what it is given would not be checked.
    #[must_use]
    pub(crate) fn gives(&self, row: &[u8], column: &[u8]) -> bool {
        let mut consumed = self.consumed.lock();
        if *consumed == Consumed::Nothing {
            *consumed = Consumed::UpTo(Names::default());
        }
        match &mut *consumed {
            Consumed::UpTo(names) => names.set(row, column),
            Consumed::All | Consumed::Nothing => (),
            Consumed::Closed => return false,
        }
        true
    }

    /// The reader is told that there is no more; false as for [`gives`](Self::gives).
    #[must_use]
    pub(crate) fn gives_all(&self) -> bool {
        let mut consumed = self.consumed.lock();
        if *consumed == Consumed::Closed {
            return false;
        }
        *consumed = Consumed::All;
        true
    }

    fn freeze(&self, table: &TableRef) -> Option<ReadRange> {
        let (mut rows, columns) = (self.rows.clone(), self.columns.clone());
        let (mut first, mut last) = (Bound::Unbounded, Bound::Unbounded);
        match &std::mem::replace(&mut *self.consumed.lock(), Consumed::Closed) {
            Consumed::Nothing | Consumed::Closed => return None,
            Consumed::All => (),
            Consumed::UpTo(names) if self.reverse => {
                let cell = names.cell();
                rows.start = cell.row.clone();
                first = Bound::Included(cell);
            }
            Consumed::UpTo(names) => {
                let cell = names.cell();
                rows.end = RowRange::single(cell.row.clone()).end;
                last = Bound::Included(cell);
            }
        }
        Some(ReadRange { table: table.clone(), rows, columns, first, last })
    }
}

impl ReadSet {
    /// The transaction uses a table: if its handler changes before the commit, the transaction must not commit.
    pub(crate) fn touch(&mut self, table: &TableRef) {
        if !self.touched.contains(table) {
            self.touched.insert(table.clone());
        }
    }

    /// Reads of `table` are not checked from the beginning. False if the table was used already.
    pub(crate) fn exempt(&mut self, table: &TableRef) -> bool {
        let untouched = !self.touched.contains(table);
        if untouched {
            self.exempt.insert(table.clone());
        }
        untouched
    }

    /// True if what is read of the table has to be kept.
    pub(crate) fn keeps(&self, table: &TableRef, spec: &TableSpec) -> bool {
        spec.conflict_handler.checks_reads() && !self.exempt.contains(table) && !self.whole.contains(table)
    }

    /// The transaction reads cells of a table whose reads are kept.
    pub(crate) fn read_cells(&mut self, table: &TableRef, cells: &[Cell]) {
        let kept = self.cells.entry(table.clone()).or_default();
        for cell in cells {
            self.kept += usize::from(kept.insert(cell.clone()));
        }
        self.bound();
    }

    /// Forgets a read of a cell: for a test that leaves out a rule.
    pub(crate) fn forget_cell(&mut self, table: &TableRef, cell: &Cell) {
        if self.cells.get_mut(table).is_some_and(|cells| cells.remove(cell)) {
            self.kept -= 1;
        }
    }

    /// The transaction begins to read a range of a table whose reads are kept.
    pub(crate) fn read_range(
        &mut self,
        table: &TableRef,
        rows: &RowRange,
        columns: &ColumnSelection,
        reverse: bool,
    ) -> Arc<RangeRead> {
        let consumed = Mutex::new(Consumed::Nothing);
        let range = Arc::new(RangeRead { rows: rows.clone(), columns: columns.clone(), reverse, consumed });
        self.ranges.entry(table.clone()).or_default().push(range.clone());
        self.kept += 1;
        self.bound();
        range
    }

    fn bound(&mut self) {
        let reads_of = |set: &ReadSet, table: &TableRef| {
            set.cells.get(table).map_or(0, BTreeSet::len) + set.ranges.get(table).map_or(0, Vec::len)
        };
        while self.kept > READS_MAX {
            let tables: BTreeSet<&TableRef> = self.cells.keys().chain(self.ranges.keys()).collect();
            let Some(most) = tables.into_iter().max_by_key(|table| reads_of(self, table)).cloned() else { return };
            self.kept -= reads_of(self, &most);
            self.cells.remove(&most);
            self.ranges.remove(&most);
            self.whole.insert(most);
        }
    }

    /// What has to be checked at the commit.
    pub(crate) fn freeze(self) -> Reads {
        let cells = self.cells.iter().flat_map(|(table, cells)| cells.iter().map(|cell| ConflictKey::new(table, cell)));
        let ranges =
            self.ranges.iter().flat_map(|(table, ranges)| ranges.iter().filter_map(|range| range.freeze(table)));
        let whole = self.whole.iter().map(ReadRange::whole);
        let (cells, ranges) = (cells.collect(), ranges.chain(whole).collect());
        Reads { tables: self.touched.into_iter().collect(), cells, ranges }
    }
}

/// The reads of a transaction that commits.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Every table that was used.
    pub(crate) tables: Vec<TableRef>,
    /// Cells that must stand as they were read.
    pub(crate) cells: Vec<ConflictKey>,
    /// Ranges that must stand as they were read.
    pub(crate) ranges: Vec<ReadRange>,
}

impl Reads {
    /// True if no read has to be checked.
    pub(crate) fn is_empty(&self) -> bool {
        self.cells.is_empty() && self.ranges.is_empty()
    }
}

/// A range as far as it was consumed.
#[derive(Clone, Debug)]
pub(crate) struct ReadRange {
    pub(crate) table: TableRef,
    // Invariant: no row outside holds a consumed cell.
    pub(crate) rows: RowRange,
    pub(crate) columns: ColumnSelection,
    first: Bound<Cell>,
    last: Bound<Cell>,
}

impl ReadRange {
    fn whole(table: &TableRef) -> ReadRange {
        let (rows, columns) = (RowRange::all(), ColumnSelection::All);
        ReadRange { table: table.clone(), rows, columns, first: Bound::Unbounded, last: Bound::Unbounded }
    }

    /// True if a write of `cell` changes what the reader was told.
    pub(crate) fn contains(&self, cell: &Cell) -> bool {
        let behind_first = match &self.first {
            Bound::Included(first) => cell >= first,
            Bound::Excluded(first) => cell > first,
            Bound::Unbounded => true,
        };
        let before_last = match &self.last {
            Bound::Included(last) => cell <= last,
            Bound::Excluded(last) => cell < last,
            Bound::Unbounded => true,
        };
        behind_first && before_last && self.rows.contains(&cell.row) && self.columns.contains(&cell.column)
    }

    /// The cells between which everything in the range lies.
    pub(crate) fn bounds(&self) -> (Bound<Cell>, Bound<Cell>) {
        let first = match &self.first {
            Bound::Unbounded => Bound::Included(Cell { row: self.rows.start.clone(), column: Bytes::new() }),
            first => first.clone(),
        };
        let last = match (&self.last, &self.rows.end) {
            (Bound::Unbounded, Some(end)) => Bound::Excluded(Cell { row: end.clone(), column: Bytes::new() }),
            (last, _) => last.clone(),
        };
        (first, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::ConflictHandler;

    fn table() -> TableRef {
        TableRef::new("t").expect("a name")
    }

    fn read(reverse: bool, consume: impl Fn(&RangeRead)) -> Option<ReadRange> {
        let mut set = ReadSet::default();
        let range = set.read_range(&table(), &RowRange::new("b", "y"), &ColumnSelection::All, reverse);
        consume(&range);
        set.freeze().ranges.pop()
    }

    fn cell(row: &str, column: &str) -> Cell {
        Cell::copy_from(row, column)
    }

    #[test]
    fn a_range_counts_as_far_as_it_was_consumed() {
        assert!(read(false, |_| ()).is_none(), "who was given nothing knows nothing");
        let forward = read(false, |range| assert!(range.gives(b"m", b"c"))).expect("consumed");
        assert!(forward.contains(&cell("b", "")) && forward.contains(&cell("m", "c")));
        assert!(!forward.contains(&cell("m", "d")) && !forward.contains(&cell("a", "z")));
        let reverse = read(true, |range| assert!(range.gives(b"m", b"c"))).expect("consumed");
        assert!(reverse.contains(&cell("x", "")) && reverse.contains(&cell("m", "c")));
        assert!(!reverse.contains(&cell("m", "b")) && !reverse.contains(&cell("y", "")));
        let all = read(false, |range| {
            assert!(range.gives(b"c", b"c") && range.gives_all());
        });
        assert!(all.expect("consumed").contains(&cell("xz", "z")));
    }

    #[test]
    fn nothing_is_given_after_the_reads_were_taken_for_the_commit() {
        let mut set = ReadSet::default();
        let range = set.read_range(&table(), &RowRange::all(), &ColumnSelection::All, false);
        assert!(range.gives(b"a", b"c"));
        let reads = set.freeze();
        assert!(!range.gives(b"b", b"c") && !range.gives_all());
        assert!(reads.ranges[0].contains(&cell("a", "c")) && !reads.ranges[0].contains(&cell("b", "c")));
    }

    #[test]
    fn too_many_reads_of_a_table_become_the_whole_table() {
        let mut set = ReadSet::default();
        let cells: Vec<Cell> = (0..=READS_MAX).map(|row| cell(&row.to_string(), "c")).collect();
        set.read_cells(&table(), &cells);
        let spec = TableSpec::with_handler(ConflictHandler::Serializable);
        assert!(!set.keeps(&table(), &spec), "the whole table is kept already");
        let reads = set.freeze();
        assert!(reads.cells.is_empty());
        assert!(reads.ranges[0].contains(&cell("anything", "x")));
    }
}
