//! Reading cells: each is one query of one partition.

use crate::errors::{Attempt, unexpected};
use crate::session::Cluster;
use crate::table::Table;
use atlas_kvs::{Cell, CellBound, KvsError, Result, Timestamp, Value, Version, key};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

/// As Cassandra counts.
pub(crate) fn number(ts: Timestamp) -> i64 {
    i64::try_from(ts.get()).expect("no timestamp is above the greatest signed number")
}

fn stored_timestamp(number: i64, table: &Table) -> Result<Timestamp> {
    let ts = u64::try_from(number).ok().and_then(Timestamp::new).filter(|ts| *ts < Timestamp::MAX);
    ts.ok_or_else(|| damaged(table, format!("{number} is no timestamp")))
}

pub(crate) fn damaged(table: &Table, reason: String) -> KvsError {
    KvsError::corrupt(format!("table '{}'", table.name), reason)
}

/// The key of a cell in the index.
pub(crate) fn key_of(cell: &Cell) -> Bytes {
    let mut key = Vec::with_capacity(cell.row.len() + cell.column.len() + 4);
    key::push_part(&mut key, &cell.row);
    key::push_part(&mut key, &cell.column);
    key.into()
}

/// The cell that a key of the index stands for.
pub(crate) fn cell_of(key: &[u8], table: &Table) -> Result<Cell> {
    let malformed = |error| damaged(table, format!("'{}' in its index: {error}", key.escape_ascii()));
    let (row, rest) = key::split_part(key).map_err(malformed)?;
    let (column, rest) = key::split_part(rest).map_err(malformed)?;
    if !rest.is_empty() {
        return Err(malformed(key::MalformedKey));
    }
    Ok(Cell::new(row, column))
}

/// The two columns of a value: its beginning, which listings read, and the rest, which they don't.
pub(crate) fn split_value(value: &Bytes) -> (Bytes, Bytes) {
    let head = value.len().min(Version::PREFIX_LEN);
    (value.slice(..head), value.slice(head..))
}

fn version(ts: i64, len: Option<i32>, head: Option<Vec<u8>>, table: &Table) -> Result<Version> {
    let ts = stored_timestamp(ts, table)?;
    let len =
        len.and_then(|len| u64::try_from(len).ok()).ok_or_else(|| damaged(table, format!("no length at {ts}")))?;
    Ok(Version { ts, len, prefix: head.unwrap_or_default().into() })
}

impl Cluster {
    pub(crate) async fn newest(&self, table: &Table, cell: &Cell, read_before: Timestamp) -> Attempt<Option<Value>> {
        type Row = (i64, Option<i32>, Option<Vec<u8>>, Option<Vec<u8>>);
        let values = (&cell.row, &cell.column, number(read_before));
        let rows: Vec<Row> = self.rows(&table.versioned().newest, &values, "reading a cell").await?;
        let Some((ts, len, head, rest)) = rows.into_iter().next() else { return Ok(None) };
        let Version { ts, len, prefix } = version(ts, len, head, table)?;
        let rest = rest.unwrap_or_default();
        if (prefix.len() + rest.len()) as u64 != len {
            return Err(damaged(table, format!("the value of {cell} at {ts} has not the {len} bytes it was")).into());
        }
        let bytes = if rest.is_empty() { prefix } else { [&prefix[..], &rest].concat().into() };
        Ok(Some(Value { ts, bytes }))
    }

    pub(crate) async fn get(&self, table: &Table, cells: &[CellBound]) -> Attempt<Vec<Option<Value>>> {
        self.each(cells, |bound| self.newest(table, &bound.cell, bound.read_before)).await
    }

    /// All versions of a cell, as all replicas know them.
    pub(crate) async fn versions_of(
        &self,
        table: &Table,
        cell: &Cell,
        read_before: Timestamp,
    ) -> Attempt<Vec<Version>> {
        let values = (&cell.row, &cell.column, number(read_before));
        let mut found = Vec::new();
        let take = |(ts, len, head): (i64, Option<i32>, Option<Vec<u8>>)| found.push(version(ts, len, head, table));
        let listed = self.all_rows(&table.versioned().versions, &values, "listing versions", take).await;
        if let Err(trouble) = listed {
            return Err(self.name_the_silent(trouble).await);
        }
        let versions: Vec<Version> = found.into_iter().collect::<Result<_>>()?;
        if versions.is_sorted_by(|one, next| one.ts < next.ts) {
            return Ok(versions);
        }
        Err(unexpected("versions do not come in order").into())
    }

    pub(crate) async fn versions(&self, table: &Table, cells: &[CellBound]) -> Attempt<Vec<Vec<Version>>> {
        self.each(cells, |bound| self.versions_of(table, &bound.cell, bound.read_before)).await
    }

    pub(crate) async fn value_of(&self, table: &Table, cell: &Cell) -> Attempt<Option<Bytes>> {
        let values = (&cell.row, &cell.column);
        let rows: Vec<(Option<Vec<u8>>,)> = self.rows(&table.atomic().get, &values, "reading a cell").await?;
        // The row is the value; an empty one may come as none.
        Ok(rows.into_iter().next().map(|(value,)| value.unwrap_or_default().into()))
    }

    pub(crate) async fn get_atomic(&self, table: &Table, cells: &[Cell]) -> Attempt<Vec<Option<Bytes>>> {
        self.each(cells, |cell| self.value_of(table, cell)).await
    }

    /// Does the same with each of many, some at a time, and returns the answers in their order.
    pub(crate) async fn each<'a, I, T, F>(&self, of: &'a [I], ask: impl Fn(&'a I) -> F) -> Attempt<Vec<T>>
    where
        F: Future<Output = Attempt<T>>,
    {
        let asked: Vec<F> = of.iter().map(ask).collect();
        stream::iter(asked).buffered(self.config.concurrency).try_collect().await
    }
}
