//! Point reads: one statement for many cells, one walk down the primary key for each of them.

use crate::catalog::column;
use crate::errors::{Attempt, Stakes};
use crate::session::{Param, Server};
use atlas_kvs::{Cell, CellBound, KvsError, TableKind, TableRef, Timestamp, Value, Version};
use bytes::Bytes;
use std::sync::Arc;
use tokio_postgres::Row;

/// Cells in one statement. Each is one walk, so this many take a few milliseconds.
const CELLS_MAX: usize = 2_048;

/// Of what is visible in `v`, what a [`Version`] shows. Neither reads a long value.
pub(crate) const VERSION_COLUMNS: &str = "octet_length(v.val) AS len, substring(v.val FROM 1 FOR 16) AS prefix";

impl Server {
    /// Runs a statement that changes nothing on a table.
    pub(crate) async fn read_table(
        &self,
        table: &TableRef,
        kind: TableKind,
        sql: &str,
        params: &[Param<'_>],
    ) -> Attempt<Vec<Row>> {
        let mut session = self.session().await?;
        match session.query(sql, params).await {
            Ok(rows) => Ok(rows),
            Err(failure) => {
                drop(session);
                Err(self.table_trouble(failure, table, kind, Stakes::Read).await)
            }
        }
    }

    /// As [`get`](Self::get), perhaps with what others ask for.
    pub(crate) async fn get_shared(
        self: &Arc<Self>,
        table: &TableRef,
        cells: &[CellBound],
    ) -> Attempt<Vec<Option<Value>>> {
        let server = Arc::clone(self);
        let ask = move |table, cells: Vec<CellBound>| {
            let server = Arc::clone(&server);
            async move { server.get(&table, &cells).await }
        };
        self.reads.get(table, cells, self.config.pool_timeout.saturating_add(self.config.statement_timeout), ask).await
    }

    async fn get(&self, table: &TableRef, cells: &[CellBound]) -> Attempt<Vec<Option<Value>>> {
        let sql = format!(
            "SELECT q.n, v.ts, v.val \
             FROM unnest($1::bytea[], $2::bytea[], $3::int8[]) WITH ORDINALITY AS q(r, c, before, n) \
             CROSS JOIN LATERAL (SELECT t.ts, t.val FROM {} t \
               WHERE t.\"row\" = q.r AND t.col = q.c AND t.ts < q.before ORDER BY t.ts DESC LIMIT 1) v",
            self.names.table(table, TableKind::Versioned)
        );
        let mut values = Vec::with_capacity(cells.len());
        for cells in cells.chunks(CELLS_MAX) {
            let start = values.len();
            values.resize(start + cells.len(), None);
            for row in self.of_bounds(table, &sql, cells).await? {
                let value = Value { ts: timestamp(table, &row, 1)?, bytes: bytes(table, &row, 2)? };
                *answer(table, &mut values[start..], &row)? = Some(value);
            }
        }
        Ok(values)
    }

    pub(crate) async fn versions(&self, table: &TableRef, cells: &[CellBound]) -> Attempt<Vec<Vec<Version>>> {
        let sql = format!(
            "SELECT q.n, v.ts, {VERSION_COLUMNS} \
             FROM unnest($1::bytea[], $2::bytea[], $3::int8[]) WITH ORDINALITY AS q(r, c, before, n) \
             CROSS JOIN LATERAL (SELECT t.ts, t.val FROM {} t \
               WHERE t.\"row\" = q.r AND t.col = q.c AND t.ts < q.before OFFSET 0) v",
            self.names.table(table, TableKind::Versioned)
        );
        let mut answers: Vec<Vec<Version>> = Vec::with_capacity(cells.len());
        for cells in cells.chunks(CELLS_MAX) {
            let start = answers.len();
            answers.resize(start + cells.len(), Vec::new());
            for row in self.of_bounds(table, &sql, cells).await? {
                let len: i32 = column(&row, 2, table.name())?;
                let version = Version {
                    ts: timestamp(table, &row, 1)?,
                    len: u64::try_from(len).unwrap_or(0),
                    prefix: bytes(table, &row, 3)?,
                };
                answer(table, &mut answers[start..], &row)?.push(version);
            }
        }
        answers.iter_mut().for_each(|versions| versions.sort_unstable_by_key(|version| version.ts));
        Ok(answers)
    }

    async fn of_bounds(&self, table: &TableRef, sql: &str, cells: &[CellBound]) -> Attempt<Vec<Row>> {
        let rows: Vec<&[u8]> = cells.iter().map(|bound| &bound.cell.row[..]).collect();
        let columns: Vec<&[u8]> = cells.iter().map(|bound| &bound.cell.column[..]).collect();
        let bounds: Vec<i64> = cells.iter().map(|bound| number(bound.read_before)).collect();
        self.read_table(table, TableKind::Versioned, sql, &[&rows, &columns, &bounds]).await
    }

    pub(crate) async fn get_atomic(&self, table: &TableRef, cells: &[Cell]) -> Attempt<Vec<Option<Bytes>>> {
        let sql = format!(
            "SELECT q.n, v.val FROM unnest($1::bytea[], $2::bytea[]) WITH ORDINALITY AS q(r, c, n) \
             CROSS JOIN LATERAL (SELECT t.val FROM {} t WHERE t.\"row\" = q.r AND t.col = q.c OFFSET 0) v",
            self.names.table(table, TableKind::Atomic)
        );
        let mut values = Vec::with_capacity(cells.len());
        for cells in cells.chunks(CELLS_MAX) {
            let start = values.len();
            values.resize(start + cells.len(), None);
            let rows: Vec<&[u8]> = cells.iter().map(|cell| &cell.row[..]).collect();
            let columns: Vec<&[u8]> = cells.iter().map(|cell| &cell.column[..]).collect();
            for row in self.read_table(table, TableKind::Atomic, &sql, &[&rows, &columns]).await? {
                *answer(table, &mut values[start..], &row)? = Some(bytes(table, &row, 1)?);
            }
        }
        Ok(values)
    }
}

/// The place of the question that a row answers, by its ordinal number in the first column.
fn answer<'a, T>(table: &TableRef, answers: &'a mut [T], row: &Row) -> Attempt<&'a mut T> {
    let number: i64 = column(row, 0, table.name())?;
    let place = usize::try_from(number - 1).ok();
    place
        .and_then(|place| answers.get_mut(place))
        .ok_or_else(|| KvsError::corrupt(format!("table '{table}'"), format!("there is no question {number}")).into())
}

/// A timestamp as SQL has it.
pub(crate) fn number(ts: Timestamp) -> i64 {
    i64::try_from(ts.get()).unwrap_or(i64::MAX)
}

pub(crate) fn timestamp(table: &TableRef, row: &Row, number: usize) -> Attempt<Timestamp> {
    stored_timestamp(table, column(row, number, table.name())?)
}

pub(crate) fn stored_timestamp(table: &TableRef, number: i64) -> Attempt<Timestamp> {
    let ts = u64::try_from(number).ok().and_then(Timestamp::new);
    ts.ok_or_else(|| KvsError::corrupt(format!("table '{table}'"), format!("{number} is no timestamp")).into())
}

pub(crate) fn bytes(table: &TableRef, row: &Row, number: usize) -> Attempt<Bytes> {
    Ok(Bytes::copy_from_slice(column(row, number, table.name())?))
}
