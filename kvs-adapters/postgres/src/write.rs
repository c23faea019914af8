//! Writes of many cells: arrays instead of single rows, one transaction for one call.
//!
//! What comes again and is not too long is one statement ([`crate::one_statement`]), which is a transaction by itself. The
//! statements of other transactions are sent at once, BEGIN and COMMIT included, so that a call costs one exchange with
//! the server however many tables it writes. Three things make that safe:
//!
//! * A conflict must end the transaction without anyone looking at it. On an occupied place the INSERT turns into an
//!   UPDATE to NULL, which the column refuses, unless the value is the same.
//! * Should BEGIN itself be refused (cancelled by an administrator, say), the statements behind it would each be a
//!   transaction of their own. So they write only where a setting that lives and dies with the transaction is in force.
//!
//! * The guard of a batch that does not hold must end the transaction in the same way: it divides by the number of
//!   rows that it finds. Its row stays locked until the COMMIT, so whoever changes it waits for the batch, and a batch
//!   that finds it locked by a change waits for that and looks again.
//!
//! What is too long to be sent at once goes in waves; only the last has the COMMIT.

use crate::catalog::column;
use crate::errors::{Attempt, Failure, Stakes, Trouble, explain, unavailable};
use crate::read::{number, stored_timestamp};
use crate::session::{Param, Server, Step};
use atlas_kvs::{BatchGuard, BatchOp, Cell, Durability, KvsError, Result, TableKind, TableRef, Timestamp};
use bytes::Bytes;
use std::collections::BTreeMap;
use tokio_postgres::error::SqlState;

/// Cells of one statement, and bytes of one statement and of one wave; the last cell may exceed the bytes.
const CELLS_MAX: usize = 8_192;
const BYTES_MAX: usize = 8 << 20;
/// Statements of one wave.
const STEPS_MAX: usize = 32;

const BEGIN: &str = "BEGIN; SET LOCAL atlas.batch = 'open'";
const BEGIN_RELAXED: &str = "BEGIN; SET LOCAL atlas.batch = 'open'; SET LOCAL synchronous_commit = off";

/// Cells to write, by table: in the order of their names and then of cells, which everyone keeps, so that no two
/// writers wait for each other.
#[derive(Default)]
pub(crate) struct Writes<'a> {
    puts: BTreeMap<&'a TableRef, Vec<Put<'a>>>,
    /// `None` removes the cell.
    sets: BTreeMap<&'a TableRef, Vec<(&'a Cell, Option<&'a Bytes>)>>,
}

type Put<'a> = (&'a Cell, Timestamp, &'a Bytes);

impl<'a> Writes<'a> {
    pub(crate) fn of_batch(ops: &'a [BatchOp]) -> Writes<'a> {
        let mut writes = Writes::default();
        for op in ops {
            match op {
                BatchOp::Put { table, cell, ts, value } => writes.put(table, cell, *ts, value),
                BatchOp::Set { table, cell, value } => writes.sets.entry(table).or_default().push((cell, Some(value))),
                BatchOp::Remove { table, cell } => writes.sets.entry(table).or_default().push((cell, None)),
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
                let statement = room.for_one(&mut statements, table, Does::Put, cell, value);
                statement.timestamps.push(number(ts));
            }
        }
        for (table, mut sets) in self.sets {
            // Stable: of several writes of a cell the last one stays behind.
            sets.sort_by(|a, b| a.0.cmp(b.0));
            let is_last = |place: usize| sets.get(place + 1).is_none_or(|next| next.0 != sets[place].0);
            let last: Vec<_> = (0..sets.len()).filter(|place| is_last(*place)).map(|place| sets[place]).collect();
            let mut room = Room::none();
            for (cell, value) in last.iter().filter_map(|(cell, value)| Some((cell, (*value)?))) {
                room.for_one(&mut statements, table, Does::Set, cell, value);
            }
            let mut room = Room::none();
            for (cell, _) in last.iter().filter(|(_, value)| value.is_none()) {
                room.for_one(&mut statements, table, Does::Remove, cell, &NOTHING);
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
        does: Does,
        cell: &'a Cell,
        value: &'a Bytes,
    ) -> &'s mut Statement<'a> {
        let len = cell.row.len() + cell.column.len() + value.len();
        if self.cells == 0 || self.bytes < len {
            *self = Room { cells: CELLS_MAX, bytes: BYTES_MAX.max(len) };
            statements.push(Statement::new(table, does));
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

static NOTHING: Bytes = Bytes::new();

/// What a statement does to its cells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Put,
    Set,
    Remove,
}

/// The arrays of one statement.
pub(crate) struct Statement<'a> {
    table: &'a TableRef,
    does: Does,
    rows: Vec<&'a [u8]>,
    columns: Vec<&'a [u8]>,
    /// Of a versioned table only.
    timestamps: Vec<i64>,
    values: Vec<&'a [u8]>,
    bytes: usize,
}

/// Where a statement stands, and what it expects.
pub(crate) struct Stand {
    /// The number of its first parameter, from 1.
    pub(crate) first: usize,
    /// It writes only where the transaction of a batch is open.
    asks: bool,
    /// What it puts is new: a row in its place is an error.
    is_new: bool,
}

impl Stand {
    /// By itself, or a part of one that is.
    pub(crate) fn alone(first: usize) -> Stand {
        Stand { first, asks: false, is_new: false }
    }

    pub(crate) fn new_rows(self) -> Stand {
        Stand { is_new: true, ..self }
    }

    const IN_TRANSACTION: Stand = Stand { first: 1, asks: true, is_new: false };
}

impl<'a> Statement<'a> {
    fn new(table: &'a TableRef, does: Does) -> Statement<'a> {
        let (rows, columns, values) = (Vec::new(), Vec::new(), Vec::new());
        Statement { table, does, rows, columns, timestamps: Vec::new(), values, bytes: 0 }
    }

    fn kind(&self) -> TableKind {
        if self.does == Does::Put { TableKind::Versioned } else { TableKind::Atomic }
    }

    pub(crate) fn sql(&self, server: &Server, stand: &Stand) -> String {
        let name = server.names.table(self.table, self.kind());
        let here = if stand.asks { "current_setting('atlas.batch', true) = 'open'" } else { "true" };
        let [a, b, c, d] = [0, 1, 2, 3].map(|place| stand.first + place);
        let on_conflict = match self.does {
            _ if stand.is_new => "",
            Does::Put => "ON CONFLICT (\"row\", col, ts) DO UPDATE SET val = NULL WHERE t.val <> excluded.val",
            Does::Set => "ON CONFLICT (\"row\", col) DO UPDATE SET val = excluded.val",
            Does::Remove => "",
        };
        match self.does {
            Does::Put => format!(
                "INSERT INTO {name} AS t (\"row\", col, ts, val) \
                 SELECT * FROM unnest(${a}::bytea[], ${b}::bytea[], ${c}::int8[], ${d}::bytea[]) WHERE {here} {on_conflict}"
            ),
            Does::Set => format!(
                "INSERT INTO {name} AS t (\"row\", col, val) \
                 SELECT * FROM unnest(${a}::bytea[], ${b}::bytea[], ${c}::bytea[]) WHERE {here} {on_conflict}"
            ),
            Does::Remove => format!(
                "DELETE FROM {name} AS t USING unnest(${a}::bytea[], ${b}::bytea[]) AS gone(\"row\", col) \
                 WHERE t.\"row\" = gone.\"row\" AND t.col = gone.col AND {here}"
            ),
        }
    }

    pub(crate) fn params(&self) -> Vec<Param<'_>> {
        match self.does {
            Does::Put => vec![&self.rows, &self.columns, &self.timestamps, &self.values],
            Does::Set => vec![&self.rows, &self.columns, &self.values],
            Does::Remove => vec![&self.rows, &self.columns],
        }
    }
}

/// The statement of a guard.
pub(crate) struct Guard<'a> {
    guard: &'a BatchGuard,
    cell: [&'a [u8]; 3],
}

impl<'a> Guard<'a> {
    fn new(guard: &'a BatchGuard) -> Guard<'a> {
        Guard { guard, cell: [&guard.cell.row, &guard.cell.column, &guard.expected] }
    }

    fn sql(&self, server: &Server) -> String {
        format!("SELECT 1 / count(*) FROM ({}) held", self.lock(server))
    }

    /// Finds the row that has to be there, from the first three parameters, and locks it. A row that has changed meanwhile is
    /// compared again.
    pub(crate) fn lock(&self, server: &Server) -> String {
        format!(
            "SELECT 1 FROM {} t WHERE t.\"row\" = $1::bytea AND t.col = $2::bytea AND t.val = $3::bytea FOR SHARE",
            server.names.table(&self.guard.table, TableKind::Atomic)
        )
    }

    fn params<'s>(&'s self) -> Vec<Param<'s>> {
        self.cell.iter().map(|part| part as Param<'s>).collect()
    }

    async fn trouble(&self, server: &Server, failure: Failure, stakes: Stakes) -> Trouble {
        let BatchGuard { table, cell, .. } = self.guard;
        if failure.is(&SqlState::DIVISION_BY_ZERO) {
            return KvsError::GuardFailed { table: table.clone(), cell: cell.clone() }.into();
        }
        server.table_trouble(failure, table, TableKind::Atomic, stakes).await
    }
}

/// What a transaction consists of, BEGIN and COMMIT aside: the guard first, if there is one.
pub(crate) enum Part<'p, 'a> {
    Guard(&'p Guard<'a>),
    Write(&'p Statement<'a>),
}

impl<'p, 'a> Part<'p, 'a> {
    fn sql(&self, server: &Server) -> String {
        match self {
            Part::Guard(guard) => guard.sql(server),
            Part::Write(statement) => statement.sql(server, &Stand::IN_TRANSACTION),
        }
    }

    pub(crate) fn params(&self) -> Vec<Param<'p>> {
        match self {
            Part::Guard(guard) => guard.params(),
            Part::Write(statement) => statement.params(),
        }
    }

    pub(crate) fn removes(&self) -> bool {
        matches!(self, Part::Write(statement) if statement.does == Does::Remove)
    }

    fn bytes(&self) -> usize {
        match self {
            Part::Guard(_) => 0,
            Part::Write(statement) => statement.bytes,
        }
    }

    async fn trouble(&self, server: &Server, failure: Failure, stakes: Stakes) -> Trouble {
        match self {
            Part::Guard(guard) => guard.trouble(server, failure, stakes).await,
            Part::Write(statement) => server.write_trouble(failure, statement, stakes).await,
        }
    }
}

impl Server {
    /// Writes everything or nothing, and nothing unless the guard holds.
    pub(crate) async fn write(
        &self,
        writes: Writes<'_>,
        guard: Option<&BatchGuard>,
        durability: Durability,
    ) -> Result<()> {
        let statements = writes.into_statements()?;
        let guard = guard.map(Guard::new);
        let parts: Vec<Part<'_, '_>> =
            guard.iter().map(Part::Guard).chain(statements.iter().map(Part::Write)).collect();
        self.attempts(|| async {
            match (&parts[..], durability) {
                ([], _) => Ok(()),
                ([Part::Guard(guard)], _) => self.check_guard(guard).await,
                ([Part::Write(alone)], Durability::Synced) => self.write_alone(alone).await,
                (all, durability) => match self.write_as_one(all, durability).await? {
                    Some(()) => Ok(()),
                    None if durability == Durability::Relaxed => self.write_all(all, BEGIN_RELAXED).await,
                    None => self.write_all(all, BEGIN).await,
                },
            }
        })
        .await
    }

    /// A guard with nothing behind it.
    async fn check_guard(&self, guard: &Guard<'_>) -> Attempt<()> {
        let mut session = self.session().await?;
        match session.execute(&guard.sql(self), &guard.params()).await {
            Ok(_) => Ok(()),
            Err(failure) => {
                drop(session);
                Err(guard.trouble(self, failure, Stakes::Read).await)
            }
        }
    }

    /// One statement is a transaction by itself.
    async fn write_alone(&self, statement: &Statement<'_>) -> Attempt<()> {
        let mut session = self.session().await?;
        match session.execute(&statement.sql(self, &Stand::alone(1)), &statement.params()).await {
            Ok(_) => Ok(()),
            Err(failure) => {
                drop(session);
                Err(self.write_trouble(failure, statement, Stakes::Committed).await)
            }
        }
    }

    async fn write_all(&self, parts: &[Part<'_, '_>], begin: &str) -> Attempt<()> {
        let mut session = self.session().await?;
        let mut prepared = Vec::with_capacity(parts.len());
        for part in parts {
            match session.prepare(&part.sql(self)).await {
                Ok(known) => prepared.push(known),
                Err(failure) => {
                    drop(session);
                    return Err(part.trouble(self, failure, Stakes::Uncommitted).await);
                }
            }
        }
        let mut first = 0;
        while first < parts.len() {
            let end = first + wave(&parts[first..]);
            let last = end == parts.len();
            let mut steps = Vec::with_capacity(end - first + 2);
            if first == 0 {
                steps.push(Step::Batch(begin));
            }
            let offset = steps.len();
            for (part, known) in parts[first..end].iter().zip(&prepared[first..end]) {
                steps.push(Step::Execute(known, part.params()));
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
                return Err(match step.checked_sub(offset).and_then(|step| parts[first..end].get(step)) {
                    Some(part) => part.trouble(self, failure, stakes).await,
                    None => explain(failure, stakes),
                });
            }
            first = end;
        }
        Ok(())
    }

    async fn write_trouble(&self, failure: Failure, statement: &Statement<'_>, stakes: Stakes) -> Trouble {
        if statement.kind() == TableKind::Versioned && failure.is(&SqlState::NOT_NULL_VIOLATION) {
            return match self.find_conflict(statement).await {
                Ok(Some(conflict)) => conflict.into(),
                Ok(None) => {
                    let reason = format!("the value in the way was removed from table '{}'", statement.table);
                    Trouble::Again(unavailable(reason, None))
                }
                Err(trouble) => trouble,
            };
        }
        self.table_trouble(failure, statement.table, statement.kind(), stakes).await
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
        let rows = self.read_table(table, TableKind::Versioned, &sql, &statement.params()).await?;
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

    /// Runs a statement that changes a versioned table.
    pub(crate) async fn change(&self, table: &TableRef, sql: &str, params: &[Param<'_>]) -> Attempt<()> {
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

/// How many parts fit into a wave; at least one.
pub(crate) fn wave(parts: &[Part<'_, '_>]) -> usize {
    let mut bytes = 0;
    let fits = |part: &&Part<'_, '_>| {
        bytes += part.bytes();
        bytes <= BYTES_MAX
    };
    parts.iter().take(STEPS_MAX).take_while(fits).count().max(1)
}
