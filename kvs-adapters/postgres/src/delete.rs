//! Deletes of versions, in statements of bounded size, the oldest version of a cell first.
//!
//! The rows to delete are found by a sub-query that can only walk the key, and then named by their places: a plain
//! join with the arrays might read the whole table. Rows of versioned tables never move.

use crate::catalog::column;
use crate::errors::{Attempt, Stakes};
use crate::read::number;
use crate::session::{Param, Server};
use atlas_kvs::{Cell, CellTimestamps, CellVersionRange, RowRange, TableKind, TableRef, Timestamp};

/// Cells of one statement.
const CELLS_MAX: usize = 8_192;
/// Versions that one statement deletes: others get their turn, and no time-out is near.
const DELETES_MAX: usize = 8_192;

impl Server {
    pub(crate) async fn delete_versions(&self, table: &TableRef, versions: &[CellTimestamps]) -> Attempt<()> {
        let name = self.names.table(table, TableKind::Versioned);
        let sql = format!(
            "DELETE FROM {name} WHERE ctid = ANY (ARRAY(\
               SELECT v.ctid FROM unnest($1::bytea[], $2::bytea[], $3::int8[]) AS q(r, c, ts) \
               CROSS JOIN LATERAL (SELECT t.ctid FROM {name} t \
                 WHERE t.\"row\" = q.r AND t.col = q.c AND t.ts = q.ts OFFSET 0) v))"
        );
        let of_cell = |item: &CellTimestamps| item.timestamps.len();
        let mut doomed: Vec<(&Cell, i64)> = Vec::with_capacity(versions.iter().map(of_cell).sum());
        for item in versions {
            doomed.extend(item.timestamps.iter().map(|&ts| (&item.cell, number(ts))));
        }
        // Each statement takes effect as a whole, so the oldest first is a matter of the order of statements.
        doomed.sort_unstable();
        doomed.dedup();
        for doomed in doomed.chunks(DELETES_MAX) {
            let rows: Vec<&[u8]> = doomed.iter().map(|(cell, _)| &cell.row[..]).collect();
            let columns: Vec<&[u8]> = doomed.iter().map(|(cell, _)| &cell.column[..]).collect();
            let timestamps: Vec<i64> = doomed.iter().map(|(_, ts)| *ts).collect();
            self.change(table, &sql, &[&rows, &columns, &timestamps]).await?;
        }
        Ok(())
    }

    pub(crate) async fn delete_version_ranges(&self, table: &TableRef, ranges: &[CellVersionRange]) -> Attempt<()> {
        let name = self.names.table(table, TableKind::Versioned);
        let sql = delete_in_steps(
            &name,
            &format!(
                "SELECT v.ctid AS place FROM unnest($2::bytea[], $3::bytea[], $4::int8[], $5::int8[]) \
                   AS q(r, c, start, before) \
                 CROSS JOIN LATERAL (SELECT t.ctid FROM {name} t WHERE t.\"row\" = q.r AND t.col = q.c \
                   AND t.ts >= q.start AND t.ts < q.before ORDER BY t.ts LIMIT $1::int8) v LIMIT $1::int8"
            ),
        );
        for ranges in ranges.chunks(CELLS_MAX) {
            let rows: Vec<&[u8]> = ranges.iter().map(|range| &range.cell.row[..]).collect();
            let columns: Vec<&[u8]> = ranges.iter().map(|range| &range.cell.column[..]).collect();
            let first = |range: &CellVersionRange| match range.include_sentinel {
                true => number(Timestamp::SENTINEL),
                false => number(Timestamp::FIRST),
            };
            let starts: Vec<i64> = ranges.iter().map(first).collect();
            let bounds: Vec<i64> = ranges.iter().map(|range| number(range.before)).collect();
            self.delete_all(table, &sql, &[&rows, &columns, &starts, &bounds]).await?;
        }
        Ok(())
    }

    pub(crate) async fn delete_rows(&self, table: &TableRef, rows: &RowRange) -> Attempt<()> {
        let name = self.names.table(table, TableKind::Versioned);
        let end = if rows.end.is_some() { "AND t.\"row\" < $3::bytea" } else { "" };
        let sql = delete_in_steps(
            &name,
            &format!(
                "SELECT t.ctid AS place FROM {name} t WHERE t.\"row\" >= $2::bytea {end} \
                 ORDER BY t.\"row\", t.col, t.ts LIMIT $1::int8"
            ),
        );
        let (start, end) = (&rows.start[..], rows.end.as_deref());
        let mut params: Vec<Param<'_>> = vec![&start];
        if let Some(end) = &end {
            params.push(end);
        }
        self.delete_all(table, &sql, &params).await
    }

    /// Repeats a statement of [`delete_in_steps`] until it finds nothing more.
    async fn delete_all(&self, table: &TableRef, sql: &str, params: &[Param<'_>]) -> Attempt<()> {
        let at_once = i64::try_from(DELETES_MAX).unwrap_or(i64::MAX);
        let params: Vec<Param<'_>> = std::iter::once(&at_once as Param<'_>).chain(params.iter().copied()).collect();
        loop {
            let mut session = self.session().await?;
            let found = match session.query(sql, &params).await {
                Ok(rows) => rows.first().map(|row| column::<i64>(row, 0, table.name())).transpose()?.unwrap_or(0),
                Err(failure) => {
                    drop(session);
                    return Err(self.table_trouble(failure, table, TableKind::Versioned, Stakes::Committed).await);
                }
            };
            if found < at_once {
                return Ok(());
            }
        }
    }
}

/// Deletes what `places` finds, and tells how many that were.
fn delete_in_steps(name: &str, places: &str) -> String {
    format!(
        "WITH doomed AS MATERIALIZED ({places}), \
         gone AS (DELETE FROM {name} WHERE ctid = ANY (ARRAY(SELECT place FROM doomed))) \
         SELECT count(*) FROM doomed"
    )
}
