//! One attempt of a piece of work: what it asks of the store, and the notes it takes of the answers.

use super::{Plan, stored_name};
use crate::ops::{ScanOptions, TransactionOps};
use crate::schema::ConflictHandler;
use crate::{Error, Result};
use atlas_checker::history::{CellName, Op, Row, Scan, Text};
use atlas_checker::value;
use atlas_kvs::{Cell, ColumnSelection, RowRange, TableRef, Timestamp};
use bytes::Bytes;
use futures::TryStreamExt;
use std::fmt::Display;

/// A table of a workload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    /// Its name in the history.
    pub(super) name: &'static str,
    /// Its handler, if the run is not wholly serializable.
    pub(super) handler: ConflictHandler,
}

/// A table of a run.
#[derive(Debug)]
pub(super) struct RunTable {
    /// Its name in the history.
    pub(super) name: &'static str,
    /// Its name in the store.
    pub(super) stored: TableRef,
    /// What it promises.
    pub(super) handler: ConflictHandler,
}

/// The tables of a run.
#[derive(Debug)]
pub(super) struct Tables(Vec<RunTable>);

impl Tables {
    pub(super) fn new(plan: &Plan, run: Timestamp) -> Result<Tables> {
        let of_workload = plan.kind.workload().tables();
        let table = |table: Table| {
            // A table for touches stays one: elsewhere a value that is put twice would be a mistake.
            let changes = plan.serializable && !table.handler.compares_values();
            let handler = if changes { ConflictHandler::Serializable } else { table.handler };
            Ok(RunTable { name: table.name, stored: stored_name(plan, run, table.name)?, handler })
        };
        Ok(Tables(of_workload.into_iter().map(table).collect::<Result<_>>()?))
    }

    pub(super) fn all(&self) -> &[RunTable] {
        &self.0
    }

    fn stored(&self, name: &str) -> &TableRef {
        let table = self.0.iter().find(|table| table.name == name);
        &table.expect("a workload names its tables").stored
    }
}

/// What to scan, in the words of the history.
#[derive(Clone, Debug, Default)]
pub(super) struct Range {
    pub(super) start_row: Option<String>,
    pub(super) end_row: Option<String>,
    pub(super) start_col: Option<String>,
    pub(super) end_col: Option<String>,
    pub(super) reverse: bool,
    /// Stop after so many cells.
    pub(super) at_most: Option<usize>,
}

/// An attempt under way.
pub(super) struct Attempt<'a> {
    tx: &'a dyn TransactionOps,
    tables: &'a Tables,
    /// Unique in the run.
    tag: String,
    puts: u64,
    ops: Vec<Op>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(tx: &'a dyn TransactionOps, tables: &'a Tables, tag: String) -> Attempt<'a> {
        Attempt { tx, tables, tag, puts: 0, ops: Vec::new() }
    }

    /// What was noted, in the order of the program.
    pub(super) fn into_ops(self) -> Vec<Op> {
        self.ops
    }

    /// A number no other attempt of the run has.
    pub(super) fn unique_number(&self) -> i64 {
        i64::try_from(self.tx.start_ts().get()).unwrap_or(i64::MAX)
    }

    pub(super) async fn get(&mut self, table: &str, row: &str, col: &str) -> Result<Option<String>> {
        let cells = [Cell::copy_from(row, col)];
        let found = self.tx.get(self.tables.stored(table), &cells).await?.into_iter().next().flatten();
        let value = found.map(|bytes| text(&bytes)).transpose()?;
        self.ops.push(Op::Get { cell: CellName::new(table, row, col), value: value.clone() });
        Ok(value.map(|value| value.to_string()))
    }

    /// The number of a tagged value; `None` for a cell that is absent.
    pub(super) async fn get_number(&mut self, table: &str, row: &str, col: &str) -> Result<Option<i64>> {
        let Some(found) = self.get(table, row, col).await? else { return Ok(None) };
        match value::number(&found) {
            Some(number) => Ok(Some(number)),
            None => Err(Error::corrupt(format!("{table}:{row}/{col}"), format!("'{found}' is no tagged number"))),
        }
    }

    /// Puts a content with a tag that makes it unique.
    pub(super) async fn put(&mut self, table: &str, row: &str, col: &str, content: impl Display) -> Result<()> {
        self.puts += 1;
        let tagged = value::tagged(content, format_args!("{}.{}", self.tag, self.puts));
        self.put_exactly(table, row, col, &tagged).await
    }

    /// Puts a value as it is.
    pub(super) async fn put_exactly(&mut self, table: &str, row: &str, col: &str, value: &str) -> Result<()> {
        self.write(table, row, col, Some(Bytes::copy_from_slice(value.as_bytes()))).await?;
        self.ops.push(Op::Put { cell: CellName::new(table, row, col), value: value.into() });
        Ok(())
    }

    pub(super) async fn delete(&mut self, table: &str, row: &str, col: &str) -> Result<()> {
        self.write(table, row, col, None).await?;
        self.ops.push(Op::Delete { cell: CellName::new(table, row, col) });
        Ok(())
    }

    async fn write(&self, table: &str, row: &str, col: &str, value: Option<Bytes>) -> Result<()> {
        self.tx.write(self.tables.stored(table), vec![(Cell::copy_from(row, col), value)]).await
    }

    /// Reads a range, and stops early if it is told to.
    pub(super) async fn scan(&mut self, table: &str, range: &Range) -> Result<Vec<Row>> {
        let bytes = |name: &Option<String>| name.clone().map(Bytes::from);
        let rows = RowRange { start: bytes(&range.start_row).unwrap_or_default(), end: bytes(&range.end_row) };
        let columns = match (&range.start_col, &range.end_col) {
            (None, None) => ColumnSelection::All,
            (start, end) => ColumnSelection::Range { start: bytes(start).unwrap_or_default(), end: bytes(end) },
        };
        let options = ScanOptions { rows, columns, reverse: range.reverse, ..ScanOptions::default() };
        let mut cells = self.tx.scan(self.tables.stored(table), options).await?;
        let mut found: Vec<Row> = Vec::new();
        let mut stopped = false;
        while !stopped && let Some((cell, value)) = cells.try_next().await? {
            found.push((text(&cell.row)?, text(&cell.column)?, text(&value)?));
            stopped = range.at_most.is_some_and(|most| found.len() >= most);
        }
        let consumed_to = found.last().filter(|_| stopped).map(|(row, col, _)| (row.clone(), col.clone()));
        if range.reverse {
            found.reverse();
        }
        let shared = |name: &Option<String>| name.as_deref().map(Text::from);
        self.ops.push(Op::Scan(Box::new(Scan {
            table: table.into(),
            start_row: shared(&range.start_row),
            end_row: shared(&range.end_row),
            start_col: shared(&range.start_col),
            end_col: shared(&range.end_col),
            reverse: range.reverse,
            consumed_to,
            rows: found.clone(),
        })));
        Ok(found)
    }
}

/// Everything a workload writes is text; what is not was not written by it.
pub(super) fn text(bytes: &[u8]) -> Result<Text> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.into()),
        Err(_) => Err(Error::corrupt("a table of the workload", format!("'{}' is no text", bytes.escape_ascii()))),
    }
}
