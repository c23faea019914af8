//! A history made searchable: every cell it mentions, who wrote which value, what each transaction observed.

use crate::history::{CellName, FinalState, History, Op, Row, Scan, Transaction};
use std::collections::HashMap;

/// A transaction's place in [`History::transactions`].
pub(crate) type TxnId = usize;
/// A cell's place in [`Index::cells`].
pub(crate) type CellId = usize;

pub(crate) struct Index<'h> {
    pub(crate) history: &'h History,
    pub(crate) cells: Vec<CellInfo<'h>>,
    pub(crate) tables: Vec<TableInfo<'h>>,
    table_ids: HashMap<&'h str, usize>,
    /// What each transaction leaves in each cell it wrote, if it commits.
    writes: Vec<Vec<Write<'h>>>,
    // Invariant: sorted by value, then transaction, then operation.
    puts: Vec<Put<'h>>,
}

pub(crate) struct CellInfo<'h> {
    pub(crate) table: usize,
    pub(crate) row: &'h str,
    pub(crate) col: &'h str,
}

pub(crate) struct TableInfo<'h> {
    pub(crate) name: &'h str,
    pub(crate) serializable: bool,
    /// Without a write-write check: of the visible versions that with the highest start timestamp is seen.
    pub(crate) no_conflict: bool,
    pub(crate) touch: bool,
    /// In the order of a scan.
    cells: Vec<CellId>,
    ids: HashMap<(&'h str, &'h str), CellId>,
}

/// What a transaction leaves in a cell: a value, or none if it deleted it.
#[derive(Clone, Copy)]
pub(crate) struct Write<'h> {
    pub(crate) cell: CellId,
    pub(crate) value: Option<&'h str>,
}

/// One put, of any attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Put<'h> {
    pub(crate) value: &'h str,
    pub(crate) txn: TxnId,
    pub(crate) op: usize,
    pub(crate) cell: CellId,
    /// Whether the transaction wrote nothing else to the cell afterwards.
    pub(crate) last: bool,
}

/// One cell as an operation saw it.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'h> {
    pub(crate) op: usize,
    pub(crate) cell: CellId,
    pub(crate) got: Option<&'h str>,
    /// What the transaction itself had left there before, if anything.
    pub(crate) own: Option<Option<&'h str>>,
    pub(crate) in_scan: bool,
}

impl<'h> Index<'h> {
    /// `serializable` names tables in addition to those of the first line.
    pub(crate) fn new(history: &'h History, serializable: &'h [String]) -> Self {
        let (cells, tables, table_ids) = Default::default();
        let mut index = Self { history, cells, tables, table_ids, writes: Vec::new(), puts: Vec::new() };
        index.add_tables(serializable);
        for (txn, transaction) in history.transactions.iter().enumerate() {
            let writes = index.add_transaction(txn, transaction);
            index.writes.push(writes);
        }
        for (table, rows) in history.final_state.iter().flat_map(|state| &state.tables) {
            let table = index.table_id(table);
            index.add_rows(table, rows);
        }
        index.puts.sort_unstable();
        let Self { cells, tables, .. } = &mut index;
        for table in tables {
            table.cells.sort_unstable_by_key(|cell| (cells[*cell].row, cells[*cell].col));
        }
        index
    }

    fn add_tables(&mut self, serializable: &'h [String]) {
        let header = &self.history.header;
        for name in header.serializable_tables.iter().chain(serializable) {
            let table = self.table_id(name);
            self.tables[table].serializable = true;
        }
        for name in &header.no_conflict_tables {
            let table = self.table_id(name);
            self.tables[table].no_conflict = true;
        }
        for name in &header.touch_tables {
            let table = self.table_id(name);
            self.tables[table].touch = true;
        }
    }

    fn add_transaction(&mut self, txn: TxnId, transaction: &'h Transaction) -> Vec<Write<'h>> {
        let mut writes: Vec<Write<'h>> = Vec::new();
        let mut latest: HashMap<CellId, (usize, Option<usize>)> = HashMap::new();
        for (op, operation) in transaction.ops.iter().enumerate() {
            let (cell, value) = match operation {
                Op::Get { cell, .. } => {
                    self.add_cell(cell);
                    continue;
                }
                Op::Scan(scan) => {
                    let table = self.table_id(&scan.table);
                    self.add_rows(table, &scan.rows);
                    continue;
                }
                Op::Put { cell, value } => (self.add_cell(cell), Some(&**value)),
                Op::Delete { cell } => (self.add_cell(cell), None),
            };
            let put = value.map(|value| {
                self.puts.push(Put { value, txn, op, cell, last: true });
                self.puts.len() - 1
            });
            match latest.get_mut(&cell) {
                Some((write, earlier)) => {
                    writes[*write].value = value;
                    if let Some(earlier) = std::mem::replace(earlier, put) {
                        self.puts[earlier].last = false;
                    }
                }
                None => {
                    latest.insert(cell, (writes.len(), put));
                    writes.push(Write { cell, value });
                }
            }
        }
        writes
    }

    fn add_rows(&mut self, table: usize, rows: &'h [Row]) {
        for (row, col, _) in rows {
            self.cell_of(table, row, col);
        }
    }

    fn add_cell(&mut self, cell: &'h CellName) -> CellId {
        let table = self.table_id(&cell.table);
        self.cell_of(table, &cell.row, &cell.col)
    }

    fn cell_of(&mut self, table: usize, row: &'h str, col: &'h str) -> CellId {
        let info = &mut self.tables[table];
        if let Some(&id) = info.ids.get(&(row, col)) {
            return id;
        }
        let id = self.cells.len();
        self.cells.push(CellInfo { table, row, col });
        info.ids.insert((row, col), id);
        info.cells.push(id);
        id
    }

    fn table_id(&mut self, name: &'h str) -> usize {
        if let Some(&id) = self.table_ids.get(name) {
            return id;
        }
        let id = self.tables.len();
        let (cells, ids) = Default::default();
        self.tables.push(TableInfo { name, serializable: false, no_conflict: false, touch: false, cells, ids });
        self.table_ids.insert(name, id);
        id
    }

    pub(crate) fn table_of(&self, cell: CellId) -> &TableInfo<'h> {
        &self.tables[self.cells[cell].table]
    }

    pub(crate) fn txn(&self, txn: TxnId) -> &'h Transaction {
        &self.history.transactions[txn]
    }

    pub(crate) fn writes(&self, txn: TxnId) -> &[Write<'h>] {
        &self.writes[txn]
    }

    /// What a transaction leaves in a cell; none if it does not write it.
    pub(crate) fn write_to(&self, txn: TxnId, cell: CellId) -> Option<Write<'h>> {
        self.writes[txn].iter().copied().find(|write| write.cell == cell)
    }

    /// Every put of a value.
    pub(crate) fn puts_of(&self, value: &str) -> &[Put<'h>] {
        let from = self.puts.partition_point(|put| put.value < value);
        let len = self.puts[from..].partition_point(|put| put.value == value);
        &self.puts[from..from + len]
    }

    /// All puts, equal values beside one another.
    pub(crate) fn puts(&self) -> &[Put<'h>] {
        &self.puts
    }

    pub(crate) fn cell_name(&self, cell: CellId) -> String {
        let CellInfo { table, row, col } = &self.cells[cell];
        crate::text::cell(self.tables[*table].name, row, col)
    }

    /// Calls back for every cell a transaction observed, in program order: also for those a scan found absent. Not for those
    /// of whom it is not known that what they read counts.
    pub(crate) fn observe(&self, txn: TxnId, seen: impl FnMut(Seen<'h>)) {
        if self.txn(txn).reads_count() {
            self.observe_all(txn, seen);
        }
    }

    /// As [`observe`](Self::observe), of one that has committed, as its client knows or as somebody saw.
    pub(crate) fn observe_all(&self, txn: TxnId, mut seen: impl FnMut(Seen<'h>)) {
        let mut own: HashMap<CellId, Option<&'h str>> = HashMap::new();
        for (op, operation) in self.txn(txn).ops.iter().enumerate() {
            match operation {
                Op::Put { cell, value } => {
                    own.insert(self.known(cell), Some(value));
                }
                Op::Delete { cell } => {
                    own.insert(self.known(cell), None);
                }
                Op::Get { cell, value } => {
                    let cell = self.known(cell);
                    let own = own.get(&cell).copied();
                    seen(Seen { op, cell, got: value.as_deref(), own, in_scan: false });
                }
                Op::Scan(scan) => {
                    // One that contradicts itself is reported for that, and says nothing about the store.
                    if scan_problem(scan).is_some() {
                        continue;
                    }
                    self.scan(scan, |cell, got| {
                        seen(Seen { op, cell, got, own: own.get(&cell).copied(), in_scan: true });
                    });
                }
            }
        }
    }

    /// Calls back for every cell that a table of the final state tells about.
    pub(crate) fn observe_final(&self, state: &'h FinalState, mut seen: impl FnMut(CellId, Option<&'h str>)) {
        for (name, rows) in &state.tables {
            let table = &self.tables[self.table_ids[&**name]];
            let values: HashMap<CellId, &str> =
                rows.iter().map(|(row, col, value)| (table.ids[&(&**row, &**col)], &**value)).collect();
            for &cell in &table.cells {
                seen(cell, values.get(&cell).copied());
            }
        }
    }

    fn scan(&self, scan: &'h Scan, mut seen: impl FnMut(CellId, Option<&'h str>)) {
        let table = &self.tables[self.table_ids[&*scan.table]];
        let address = |cell: &CellId| (self.cells[*cell].row, self.cells[*cell].col);
        // Only what may be covered is walked over.
        let from = table.cells.partition_point(|cell| {
            let (row, col) = address(cell);
            let before_start = scan.start_row.as_deref().is_some_and(|start| row < start);
            let last = scan.consumed_to.as_ref().filter(|_| scan.reverse);
            before_start || last.is_some_and(|(last_row, last_col)| (row, col) < (last_row, last_col))
        });
        let mut rows = scan.rows.iter().peekable();
        for cell in &table.cells[from..] {
            let (row, col) = address(cell);
            let past_end = scan.end_row.as_deref().is_some_and(|end| row >= end);
            let last = scan.consumed_to.as_ref().filter(|_| !scan.reverse);
            if past_end || last.is_some_and(|(last_row, last_col)| (row, col) > (last_row, last_col)) {
                break;
            }
            if scan.covers(row, col) {
                let found = rows.next_if(|found| (&*found.0, &*found.1) == (row, col));
                seen(*cell, found.map(|(_, _, value)| &**value));
            }
        }
    }

    fn known(&self, cell: &CellName) -> CellId {
        self.tables[self.table_ids[&*cell.table]].ids[&(&*cell.row, &*cell.col)]
    }
}

/// What makes a scan's own line impossible, if anything does.
pub(crate) fn scan_problem(scan: &Scan) -> Option<String> {
    let address = |row: &Row| (row.0.clone(), row.1.clone());
    if let Some(pair) = scan.rows.windows(2).find(|pair| address(&pair[0]) >= address(&pair[1])) {
        let cell = crate::text::cell(&scan.table, &pair[1].0, &pair[1].1);
        return Some(format!("its rows are not ascending at {cell}"));
    }
    let outside = scan.rows.iter().find(|(row, col, _)| !scan.covers(row, col))?;
    let cell = crate::text::cell(&scan.table, &outside.0, &outside.1);
    Some(format!("it returned {cell}, which is outside its bounds or beyond what it consumed"))
}
