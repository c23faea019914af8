//! The schema of a namespace, and the tables in it.
//!
//! ```text
//!   schema atlas_<namespace>
//!     meta      key, value            the format of the schema
//!     tables    name, kind, metadata  one row for each table
//!     v_…       row, col, ts, val     a versioned table
//!     a_…       row, col, val         an atomic table
//! ```
//!
//! A row in `tables` and its SQL table come and go in one transaction, under one advisory lock for the whole schema:
//! `IF NOT EXISTS` alone does not keep two processes from making the same thing at once. No other operation looks here.
//! The name and the kind of a table give the SQL name, and only if that is not there, `tables` is asked why.

use crate::errors::{Attempt, Failure, Stakes, Trouble, explain, unexpected, wrong_kind};
use crate::names::sql_name;
use crate::session::{Server, Session};
use atlas_kvs::{KvsError, Result, TableDescription, TableKind, TableRef, TableSize};
use bytes::Bytes;
use tokio_postgres::Row;

const FORMAT: &str = "1";
const PLACE: &str = "the table of tables";

impl Server {
    /// Makes the schema, unless it is there, and checks that it is one of ours.
    pub(crate) async fn set_up(&self) -> Result<()> {
        self.attempts(|| async {
            if !self.has_schema().await? {
                self.make_schema().await?;
            }
            self.check_format().await?;
            self.warn_of_lies().await
        })
        .await
    }

    /// Checks that the schema is one of ours. False if there is none.
    pub(crate) async fn set_up_existing(&self) -> Result<bool> {
        self.attempts(|| async {
            let found = self.has_schema().await?;
            if found {
                self.check_format().await?;
            }
            Ok(found)
        })
        .await
    }

    /// Removes the schema with everything in it. It may be gone already.
    pub(crate) async fn drop_schema(&self) -> Attempt<()> {
        let mut session = self.begin_change().await?;
        session
            .batch(&format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", self.names.schema()))
            .await
            .map_err(uncommitted)?;
        session.commit().await.map_err(committed)?;
        self.forget_statements();
        Ok(())
    }

    /// No setting of a connection makes a server durable that does not wait for its disk.
    async fn warn_of_lies(&self) -> Attempt<()> {
        let rows = self.read("SELECT 1 WHERE current_setting('fsync') = 'off'", &[]).await?;
        if !rows.is_empty() {
            tracing::warn!(place = self.config.place(), "fsync is off: a crash of the machine may damage everything");
        }
        Ok(())
    }

    async fn has_schema(&self) -> Attempt<bool> {
        // By its name in the catalog, not by `to_regclass`, which fails for want of permission.
        let sql = "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname = $1::text AND c.relname = 'meta'";
        Ok(!self.read(sql, &[&self.names.schema()]).await?.is_empty())
    }

    async fn make_schema(&self) -> Attempt<()> {
        let (schema, meta, tables) = (self.names.schema(), self.names.quoted("meta"), self.names.quoted("tables"));
        let sql = format!(
            "CREATE SCHEMA IF NOT EXISTS \"{schema}\"; \
             CREATE TABLE IF NOT EXISTS {meta} (key text PRIMARY KEY, value text NOT NULL); \
             CREATE TABLE IF NOT EXISTS {tables} (name text COLLATE \"C\" PRIMARY KEY, \
               kind text NOT NULL CHECK (kind IN ('versioned', 'atomic')), metadata bytea NOT NULL, \
               sql_name text NOT NULL UNIQUE); \
             INSERT INTO {meta} VALUES ('format', '{FORMAT}') ON CONFLICT DO NOTHING"
        );
        let mut session = self.begin_change().await?;
        session.batch(&sql).await.map_err(uncommitted)?;
        session.commit().await.map_err(committed)
    }

    async fn check_format(&self) -> Attempt<()> {
        let sql = format!("SELECT value FROM {} WHERE key = 'format'", self.names.quoted("meta"));
        let rows = self.read(&sql, &[]).await?;
        let format: Option<&str> = rows.first().map(|row| column(row, 0, "the schema")).transpose()?;
        if format == Some(FORMAT) {
            return Ok(());
        }
        let (schema, format) = (self.names.schema(), format.unwrap_or("none"));
        let reason = format!("schema '{schema}' has format {format}, and this program knows {FORMAT}");
        Err(KvsError::Misconfigured { reason, source: None }.into())
    }

    /// A transaction that changes the schema, which is one at a time.
    async fn begin_change(&self) -> Attempt<Session> {
        let mut session = self.session().await?;
        session.begin().await.map_err(uncommitted)?;
        let lock = format!("SELECT pg_advisory_xact_lock({})", self.names.lock());
        session.batch(&lock).await.map_err(uncommitted)?;
        Ok(session)
    }

    pub(crate) async fn create_table(&self, table: &TableRef, kind: TableKind, metadata: &Bytes) -> Attempt<()> {
        // Most tables exist, and then nobody has to wait for anybody.
        if let Some(actual) = self.kind_of(table).await? {
            return same_kind(table, kind, actual);
        }
        let mut session = self.begin_change().await?;
        let record = format!(
            "INSERT INTO {} (name, kind, metadata, sql_name) VALUES ($1::text, $2::text, $3::bytea, $4::text) \
             ON CONFLICT (name) DO NOTHING",
            self.names.quoted("tables")
        );
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&table.name(), &kind_word(kind), &&metadata[..], &sql_name(table, kind)];
        let recorded = session.execute(&record, &params).await.map_err(|failure| self.no_schema(failure))?;
        if recorded == 0 {
            session.rollback().await.map_err(uncommitted)?;
            drop(session);
            return match self.kind_of(table).await? {
                Some(actual) => same_kind(table, kind, actual),
                // Dropped again at this moment.
                None => Err(Trouble::Again(contended(table))),
            };
        }
        session.batch(&self.table_definition(table, kind)).await.map_err(uncommitted)?;
        session.commit().await.map_err(committed)
    }

    fn table_definition(&self, table: &TableRef, kind: TableKind) -> String {
        let (name, key) = (self.names.table(table, kind), format!("k{}", sql_name(table, kind)));
        let (ts, key_ts) = match kind {
            TableKind::Versioned => ("ts int8 NOT NULL, ", ", ts"),
            TableKind::Atomic => ("", ""),
        };
        // Values are compressed above us. EXTERNAL lets the length and the beginning of a long one be told without
        // reading it; MAIN keeps names beside each other.
        format!(
            "CREATE TABLE {name} (\"row\" bytea NOT NULL, col bytea NOT NULL, {ts}val bytea NOT NULL, \
             CONSTRAINT \"{key}\" PRIMARY KEY (\"row\", col{key_ts})); \
             ALTER TABLE {name} ALTER COLUMN \"row\" SET STORAGE MAIN, ALTER COLUMN col SET STORAGE MAIN, \
             ALTER COLUMN val SET STORAGE EXTERNAL"
        )
    }

    pub(crate) async fn drop_table(&self, table: &TableRef) -> Attempt<()> {
        if self.kind_of(table).await?.is_none() {
            return Ok(());
        }
        let mut session = self.begin_change().await?;
        let sql = format!("DELETE FROM {} WHERE name = $1::text RETURNING kind", self.names.quoted("tables"));
        let rows = session.query(&sql, &[&table.name()]).await.map_err(|failure| self.no_schema(failure))?;
        for row in &rows {
            let sql = format!("DROP TABLE IF EXISTS {}", self.names.table(table, kind(row, 0)?));
            session.batch(&sql).await.map_err(uncommitted)?;
        }
        session.commit().await.map_err(committed)?;
        self.forget_statements();
        Ok(())
    }

    pub(crate) async fn truncate_table(&self, table: &TableRef) -> Attempt<()> {
        let kind = self.kind_of(table).await?.ok_or_else(|| KvsError::NoSuchTable(table.clone()))?;
        let sql = format!("TRUNCATE {}", self.names.table(table, kind));
        let mut session = self.session().await?;
        match session.batch(&sql).await {
            Ok(()) => Ok(()),
            Err(failure) => {
                drop(session);
                Err(self.table_trouble(failure, table, kind, Stakes::Committed).await)
            }
        }
    }

    pub(crate) async fn tables(&self) -> Attempt<Vec<TableDescription>> {
        let sql = format!("SELECT name, kind, metadata FROM {} ORDER BY name", self.names.quoted("tables"));
        self.catalog(&sql, &[]).await?.iter().map(description).collect()
    }

    pub(crate) async fn table(&self, table: &TableRef) -> Attempt<Option<TableDescription>> {
        let tables = self.names.quoted("tables");
        let sql = format!("SELECT name, kind, metadata FROM {tables} WHERE name = $1::text");
        self.catalog(&sql, &[&table.name()]).await?.first().map(description).transpose()
    }

    async fn kind_of(&self, table: &TableRef) -> Attempt<Option<TableKind>> {
        let sql = format!("SELECT kind FROM {} WHERE name = $1::text", self.names.quoted("tables"));
        self.catalog(&sql, &[&table.name()]).await?.first().map(|row| kind(row, 0)).transpose()
    }

    async fn catalog(&self, sql: &str, params: &[crate::session::Param<'_>]) -> Attempt<Vec<Row>> {
        let mut session = self.session().await?;
        session.query(sql, params).await.map_err(|failure| match failure.misses_table() {
            true => self.no_schema(failure),
            false => explain(failure, Stakes::Read),
        })
    }

    /// The table of tables is not there any more: somebody has dropped the schema.
    fn no_schema(&self, failure: Failure) -> Trouble {
        if !failure.misses_table() {
            return uncommitted(failure);
        }
        let reason = format!("schema '{}' is gone from {}", self.names.schema(), self.config.place());
        KvsError::Backend { reason, source: None }.into()
    }

    pub(crate) async fn put_table_metadata(&self, table: &TableRef, metadata: &Bytes) -> Attempt<()> {
        let tables = self.names.quoted("tables");
        let sql = format!("UPDATE {tables} SET metadata = $2::bytea WHERE name = $1::text");
        let mut session = self.session().await?;
        match session.execute(&sql, &[&table.name(), &&metadata[..]]).await {
            Ok(0) => Err(KvsError::NoSuchTable(table.clone()).into()),
            Ok(_) => Ok(()),
            Err(failure) if failure.misses_table() => Err(self.no_schema(failure)),
            Err(failure) => Err(committed(failure)),
        }
    }

    /// From the statistics that the server keeps anyway.
    pub(crate) async fn table_size(&self, table: &TableRef) -> Attempt<TableSize> {
        let kind = self.kind_of(table).await?.ok_or_else(|| KvsError::NoSuchTable(table.clone()))?;
        let sql = "SELECT greatest(c.reltuples::int8, pg_stat_get_live_tuples(c.oid), 0), \
                          coalesce(pg_total_relation_size(c.oid), 0) \
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname = $1::text AND c.relname = $2::text";
        let rows = self.read(sql, &[&self.names.schema(), &sql_name(table, kind)]).await?;
        let row = rows.first().ok_or_else(|| Trouble::Again(KvsError::NoSuchTable(table.clone())))?;
        let number =
            |place| -> Attempt<u64> { Ok(u64::try_from(column::<i64>(row, place, "the statistics")?).unwrap_or(0)) };
        Ok(TableSize { versions: number(0)?, bytes: number(1)? })
    }

    /// What a failed statement on a table means. If the table was not there, the table of tables says why.
    pub(crate) async fn table_trouble(
        &self,
        failure: Failure,
        table: &TableRef,
        kind: TableKind,
        stakes: Stakes,
    ) -> Trouble {
        if !failure.misses_table() {
            return explain(failure, stakes);
        }
        match self.kind_of(table).await {
            Ok(None) => Trouble::Final(KvsError::NoSuchTable(table.clone())),
            Ok(Some(actual)) if actual != kind => Trouble::Final(wrong_kind(table, actual)),
            // Created since, or lost.
            Ok(Some(_)) => {
                let reason = format!("it is recorded, but {} is not there", self.names.table(table, kind));
                Trouble::Again(KvsError::corrupt(format!("table '{table}'"), reason))
            }
            Err(trouble) => trouble,
        }
    }
}

pub(crate) fn uncommitted(failure: Failure) -> Trouble {
    explain(failure, Stakes::Uncommitted)
}

pub(crate) fn committed(failure: Failure) -> Trouble {
    explain(failure, Stakes::Committed)
}

/// A column of a row of ours.
pub(crate) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    number: usize,
    place: &str,
) -> Attempt<T> {
    row.try_get(number).map_err(|error| unexpected(place, error))
}

pub(crate) fn description(row: &Row) -> Attempt<TableDescription> {
    let table = TableRef::new(column::<&str>(row, 0, PLACE)?)?;
    let metadata = Bytes::copy_from_slice(column(row, 2, PLACE)?);
    Ok(TableDescription { table, kind: kind(row, 1)?, metadata })
}

fn kind_word(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Versioned => "versioned",
        TableKind::Atomic => "atomic",
    }
}

pub(crate) fn kind(row: &Row, number: usize) -> Attempt<TableKind> {
    match column::<&str>(row, number, PLACE)? {
        "versioned" => Ok(TableKind::Versioned),
        "atomic" => Ok(TableKind::Atomic),
        other => Err(KvsError::corrupt(PLACE, format!("'{other}' is no kind of table")).into()),
    }
}

fn same_kind(table: &TableRef, wanted: TableKind, actual: TableKind) -> Attempt<()> {
    if wanted == actual { Ok(()) } else { Err(wrong_kind(table, actual).into()) }
}

fn contended(table: &TableRef) -> KvsError {
    KvsError::Unavailable { reason: format!("others create and drop table '{table}'"), source: None }
}
