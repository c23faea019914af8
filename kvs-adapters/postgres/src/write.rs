//! Writes of many cells: arrays instead of single rows, one transaction for one call.
//!
//! All statements of a transaction are sent at once, BEGIN and COMMIT included, so that a call costs one exchange with
//! the server however many tables it writes. Two things make that safe:
//!
//! * A conflict must end the transaction without anyone looking at it. On an occupied place the INSERT turns into an
//!   UPDATE to NULL, which the column refuses, unless the value is the same.
//! * Should BEGIN itself be refused (cancelled by an administrator, say), the statements behind it would each be a
//!   transaction of their own. So they write only where a setting that lives and dies with the transaction is in force.
//!
//! What is too long to be sent at once goes in waves; only the last has the COMMIT.

use crate::catalog::column;
use crate::errors::{Attempt, Failure, Stakes, Trouble, explain, unavailable};
use crate::read::{number, stored_timestamp};
use crate::session::{Param, Server, Step};
use atlas_kvs::{
    BatchOp, Cell, CellTimestamps, CellVersionRange, Durability, KvsError, Result, RowRange, TableKind, TableRef,
    Timestamp,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use tokio_postgres::error::SqlState;

/// Cells of one statement, and bytes of one statement and of one wave; the last cell may exceed the bytes.
const CELLS_MAX: usize = 8_192;
const BYTES_MAX: usize = 8 << 20;
/// Statements of one wave.
const STEPS_MAX: usize = 32;
/// Versions that one statement deletes: others get their turn, and no time-out is near.
const DELETES_MAX: usize = 8_192;

const BEGIN: &str = "BEGIN; SET LOCAL atlas.batch = 'open'";
const BEGIN_RELAXED: &str = "BEGIN; SET LOCAL atlas.batch = 'open'; SET LOCAL synchronous_commit = off";

/// Cells to write, by table: in the order of their names and then of cells, which everyone keeps, so that no two
/// writers wait for each other.
#[derive(Default)]
pub(crate) struct Writes<'a> {
    puts: BTreeMap<&'a TableRef, Vec<Put<'a>>>,
    sets: BTreeMap<&'a TableRef, Vec<(&'a Cell, &'a Bytes)>>,
}

type Put<'a> = (&'a Cell, Timestamp, &'a Bytes);

impl<'a> Writes<'a> {
    pub(crate) fn of_batch(ops: &'a [BatchOp]) -> Writes<'a> {
        let mut writes = Writes::default();
        for op in ops {
            match op {
                BatchOp::Put { table, cell, ts, value } => writes.put(table, cell, *ts, value),
                BatchOp::Set { table, cell, value } => writes.sets.entry(table).or_default().push((cell, value)),
            }
        }
        writes
    }

    pub(crate) fn put(&mut self, table: &'a TableRef, cell: &'a Cell, ts: Timestamp, value: &'a Bytes) {
        self.puts.entry(table).or_default().push((cell, ts, value));
    }

    /// Sorts everything and leaves one write for each place.
    fn into_statements(self) -> Result<Vec<Statement<'a>>> {
        let mut statements = Vec::new();
        for (table, mut puts) in self.puts {
            puts.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
            let conflict =
                puts.windows(2).find(|two| (two[0].0, two[0].1) == (two[1].0, two[1].1) && two[0].2 != two[1].2);
            if let Some(two) = conflict {
                return Err(KvsError::ConflictingValue { table: table.clone(), cell: two[0].0.clone(), ts: two[0].1 });
            }
            puts.dedup_by(|a, b| (a.0, a.1) == (b.0, b.1));
            let mut room = Room::none();
            for (cell, ts, value) in puts {
                let statement = room.for_one(&mut statements, table, TableKind::Versioned, cell, value);
                statement.timestamps.push(number(ts));
            }
        }
        for (table, mut sets) in self.sets {
            // Stable: of several writes of a cell the last one stays behind.
            sets.sort_by(|a, b| a.0.cmp(b.0));
            let mut room = Room::none();
            for (place, (cell, value)) in sets.iter().enumerate() {
                if sets.get(place + 1).is_none_or(|next| next.0 != *cell) {
                    room.for_one(&mut statements, table, TableKind::Atomic, cell, value);
                }
            }
        }
        Ok(statements)
    }
}

/// What is left of the statement that is being filled.
struct Room {
    cells: usize,
    bytes: usize,
}

impl Room {
    fn none() -> Room {
        Room { cells: 0, bytes: 0 }
    }

    /// The statement that takes one more cell, which is in it already.
    fn for_one<'s, 'a>(
        &mut self,
        statements: &'s mut Vec<Statement<'a>>,
        table: &'a TableRef,
        kind: TableKind,
        cell: &'a Cell,
        value: &'a Bytes,
    ) -> &'s mut Statement<'a> {
        let len = cell.row.len() + cell.column.len() + value.len();
        if self.cells == 0 || self.bytes < len {
            *self = Room { cells: CELLS_MAX, bytes: BYTES_MAX.max(len) };
            statements.push(Statement::new(table, kind));
        }
        *self = Room { cells: self.cells - 1, bytes: self.bytes - len };
        let statement = statements.last_mut().expect("a statement was pushed when there was no room");
        statement.rows.push(&cell.row);
        statement.columns.push(&cell.column);
        statement.values.push(value);
        statement.bytes += len;
        statement
    }
}

/// The arrays of one statement.
struct Statement<'a> {
    table: &'a TableRef,
    kind: TableKind,
    rows: Vec<&'a [u8]>,
    columns: Vec<&'a [u8]>,
    /// Of a versioned table only.
    timestamps: Vec<i64>,
    values: Vec<&'a [u8]>,
    bytes: usize,
}

impl<'a> Statement<'a> {
    fn new(table: &'a TableRef, kind: TableKind) -> Statement<'a> {
        let (rows, columns, values) = (Vec::new(), Vec::new(), Vec::new());
        Statement { table, kind, rows, columns, timestamps: Vec::new(), values, bytes: 0 }
    }

    fn sql(&self, server: &Server) -> String {
        let name = server.names.table(self.table, self.kind);
        let here = "$1::bool OR current_setting('atlas.batch', true) = 'open'";
        match self.kind {
            TableKind::Versioned => format!(
                "INSERT INTO {name} AS t (\"row\", col, ts, val) \
                 SELECT * FROM unnest($2::bytea[], $3::bytea[], $4::int8[], $5::bytea[]) WHERE {here} \
                 ON CONFLICT (\"row\", col, ts) DO UPDATE SET val = NULL WHERE t.val <> excluded.val"
            ),
            TableKind::Atomic => format!(
                "INSERT INTO {name} AS t (\"row\", col, val) \
                 SELECT * FROM unnest($2::bytea[], $3::bytea[], $4::bytea[]) WHERE {here} \
                 ON CONFLICT (\"row\", col) DO UPDATE SET val = excluded.val"
            ),
        }
    }

    fn params<'s>(&'s self, alone: &'s bool) -> Vec<Param<'s>> {
        match self.kind {
            TableKind::Versioned => vec![alone, &self.rows, &self.columns, &self.timestamps, &self.values],
            TableKind::Atomic => vec![alone, &self.rows, &self.columns, &self.values],
        }
    }
}

impl Server {
    /// Writes everything or nothing.
    pub(crate) async fn write(&self, writes: Writes<'_>, durability: Durability) -> Result<()> {
        let statements = writes.into_statements()?;
        self.attempts(|| async {
            match (&statements[..], durability) {
                ([], _) => Ok(()),
                ([alone], Durability::Synced) => self.write_alone(alone).await,
                (all, Durability::Synced) => self.write_all(all, BEGIN).await,
                (all, Durability::Relaxed) => self.write_all(all, BEGIN_RELAXED).await,
            }
        })
        .await
    }

    /// One statement is a transaction by itself.
    async fn write_alone(&self, statement: &Statement<'_>) -> Attempt<()> {
        let mut session = self.session().await?;
        match session.execute(&statement.sql(self), &statement.params(&true)).await {
            Ok(_) => Ok(()),
            Err(failure) => {
                drop(session);
                Err(self.write_trouble(failure, statement, Stakes::Committed).await)
            }
        }
    }

    async fn write_all(&self, statements: &[Statement<'_>], begin: &str) -> Attempt<()> {
        let mut session = self.session().await?;
        let mut prepared = Vec::with_capacity(statements.len());
        for statement in statements {
            match session.prepare(&statement.sql(self)).await {
                Ok(known) => prepared.push(known),
                Err(failure) => {
                    drop(session);
                    return Err(self.write_trouble(failure, statement, Stakes::Uncommitted).await);
                }
            }
        }
        let mut first = 0;
        while first < statements.len() {
            let end = first + wave(&statements[first..]);
            let last = end == statements.len();
            let mut steps = Vec::with_capacity(end - first + 2);
            if first == 0 {
                steps.push(Step::Batch(begin));
            }
            let offset = steps.len();
            for (statement, known) in statements[first..end].iter().zip(&prepared[first..end]) {
                steps.push(Step::Execute(known, statement.params(&false)));
            }
            if last {
                steps.push(Step::Batch("COMMIT"));
            }
            let answers = session.pipeline(&steps).await;
            let failed = answers.into_iter().enumerate().find_map(|(step, answer)| Some((step, answer.err()?)));
            if let Some((step, failure)) = failed {
                drop(session);
                // The server works in order. One that answers a step with an error has not come to the COMMIT behind.
                let committing = last && (step == steps.len() - 1 || failure.db_error().is_none());
                let stakes = if committing { Stakes::Committed } else { Stakes::Uncommitted };
                return Err(match step.checked_sub(offset).and_then(|step| statements[first..end].get(step)) {
                    Some(statement) => self.write_trouble(failure, statement, stakes).await,
                    None => explain(failure, stakes),
                });
            }
            first = end;
        }
        Ok(())
    }

    async fn write_trouble(&self, failure: Failure, statement: &Statement<'_>, stakes: Stakes) -> Trouble {
        if statement.kind == TableKind::Versioned && failure.is(&SqlState::NOT_NULL_VIOLATION) {
            return match self.find_conflict(statement).await {
                Ok(Some(conflict)) => conflict.into(),
                Ok(None) => {
                    let reason = format!("the value in the way was removed from table '{}'", statement.table);
                    Trouble::Again(unavailable(reason, None))
                }
                Err(trouble) => trouble,
            };
        }
        self.table_trouble(failure, statement.table, statement.kind, stakes).await
    }

    /// The first place that holds another value than a statement would write.
    async fn find_conflict(&self, statement: &Statement<'_>) -> Attempt<Option<KvsError>> {
        let table = statement.table;
        let sql = format!(
            "SELECT q.r, q.c, q.ts FROM unnest($1::bytea[], $2::bytea[], $3::int8[], $4::bytea[]) \
               WITH ORDINALITY AS q(r, c, ts, val, n) \
             CROSS JOIN LATERAL (SELECT t.val FROM {} t \
               WHERE t.\"row\" = q.r AND t.col = q.c AND t.ts = q.ts OFFSET 0) s \
             WHERE s.val <> q.val ORDER BY q.n LIMIT 1",
            self.names.table(table, TableKind::Versioned)
        );
        let params = &statement.params(&true)[1..];
        let rows = self.read_table(table, TableKind::Versioned, &sql, params).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let cell = Cell::copy_from(column::<&[u8]>(row, 0, table.name())?, column::<&[u8]>(row, 1, table.name())?);
        let ts = stored_timestamp(table, column(row, 2, table.name())?)?;
        Ok(Some(KvsError::ConflictingValue { table: table.clone(), cell, ts }))
    }

    pub(crate) async fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> Attempt<()> {
        let sql = format!(
            "INSERT INTO {} (\"row\", col, ts, val) \
             SELECT q.r, q.c, {}, ''::bytea FROM unnest($1::bytea[], $2::bytea[]) AS q(r, c) \
             ON CONFLICT (\"row\", col, ts) DO NOTHING",
            self.names.table(table, TableKind::Versioned),
            Timestamp::SENTINEL
        );
        let mut cells: Vec<&Cell> = cells.iter().collect();
        cells.sort_unstable();
        cells.dedup();
        for cells in cells.chunks(CELLS_MAX) {
            let rows: Vec<&[u8]> = cells.iter().map(|cell| &cell.row[..]).collect();
            let columns: Vec<&[u8]> = cells.iter().map(|cell| &cell.column[..]).collect();
            self.change(table, &sql, &[&rows, &columns]).await?;
        }
        Ok(())
    }

    // ---- deleting
    //
    // The rows to delete are found by a sub-query that can only walk the key, and then named by their places: a plain
    // join with the arrays might read the whole table. Rows of versioned tables never move.

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

    /// Runs a statement that changes a versioned table.
    async fn change(&self, table: &TableRef, sql: &str, params: &[Param<'_>]) -> Attempt<()> {
        let mut session = self.session().await?;
        match session.execute(sql, params).await {
            Ok(_) => Ok(()),
            Err(failure) => {
                drop(session);
                Err(self.table_trouble(failure, table, TableKind::Versioned, Stakes::Committed).await)
            }
        }
    }
}

/// How many statements fit into a wave; at least one.
fn wave(statements: &[Statement<'_>]) -> usize {
    let mut bytes = 0;
    let fits = |statement: &&Statement<'_>| {
        bytes += statement.bytes;
        bytes <= BYTES_MAX
    };
    statements.iter().take(STEPS_MAX).take_while(fits).count().max(1)
}

/// Deletes what `places` finds, and tells how many that were.
fn delete_in_steps(name: &str, places: &str) -> String {
    format!(
        "WITH doomed AS MATERIALIZED ({places}), \
         gone AS (DELETE FROM {name} WHERE ctid = ANY (ARRAY(SELECT place FROM doomed))) \
         SELECT count(*) FROM doomed"
    )
}
