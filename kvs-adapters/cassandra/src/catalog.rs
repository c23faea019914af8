//! The keyspace of a namespace, and the tables in it.
//!
//! The catalog is one partition of one CQL table, and changed by lightweight transactions alone: whoever wins the one
//! that enters a name has created the table, with the id that he drew. The CQL tables are made from that id by whoever
//! comes along, with ids of their own that follow from it: made by many at once they are still one table.
//!
//! ```text
//!   (none) ──create──> new ──CQL tables are there──> ready ──drop──> dropping ──CQL tables are gone──> (none)
//!                       ^                              │
//!                       └───── truncate: another id ───┘
//! ```
//!
//! Whoever meets an entry that is not `ready` first does what is left to do, so nothing stays half done when a process
//! dies. Emptying a table gives it another id, and so new CQL tables: Cassandra's TRUNCATE of cells and index one after
//! the other would lose track of cells that are written at the same time.

use crate::errors::{Attempt, Failure, Stakes, Trouble, backend, misconfigured, unavailable, unexpected, wrong_kind};
use crate::names;
use crate::session::Cluster;
use crate::statement::{Statement, Use};
use crate::table::Table;
use atlas_kvs::{KvsError, Result, TableDescription, TableKind, TableRef, TableSize};
use bytes::Bytes;
use scylla::errors::{ExecutionError, SchemaAgreementError};
use scylla::response::query_result::QueryRowsResult;
use scylla::statement::{Consistency, Statement as Plain};
use scylla::value::{CqlValue, Row};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

const FORMAT: &str = "format 1";
const CATALOG: &str = "atlas_tables";
/// Of Cassandra; Scylla counts otherwise.
const VERSION_MIN: u32 = 4;
/// How often a change is tried that others get in the way of.
const ROUNDS_MAX: u32 = 50;
/// Between two looks for a catalog that somebody is making.
const CATALOG_PAUSE: Duration = Duration::from_millis(100);
const SCHEMA_ATTEMPTS: u32 = 5;
/// How often a keyspace is made that is dropped at once.
const KEYSPACE_ROUNDS: u32 = 5;
/// What to do about nodes that know different schemas.
const WHO_IS_BEHIND: &str = "`nodetool describecluster` shows which node is behind, and one that stays behind catches up when it is \
                             started again";

/// An entry of the catalog.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    table: TableRef,
    pub(crate) kind: TableKind,
    metadata: Bytes,
    pub(crate) id: Uuid,
    /// The id before the table was emptied, until its CQL tables are gone.
    doomed: Option<Uuid>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Ready,
    Dropping,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::New => "new",
            State::Ready => "ready",
            State::Dropping => "dropping",
        }
    }
}

/// Statements on the catalog.
#[derive(Debug)]
pub(crate) struct Catalog {
    one: Statement,
    all: Statement,
    insert: Statement,
    put_metadata: Statement,
    empty: Statement,
    ready: Statement,
    doom: Statement,
    remove: Statement,
}

impl Catalog {
    pub(crate) fn new(keyspace: &str) -> Catalog {
        let catalog = format!("{keyspace}.{CATALOG}");
        let columns = "name, kind, metadata, id, doomed, state";
        let entry = "WHERE place = 0 AND name = ?";
        let lightweight = |text| Statement::new(Use::Lightweight, text);
        Catalog {
            one: Statement::new(Use::ReadSerial, format!("SELECT {columns} FROM {catalog} {entry}")),
            all: Statement::new(Use::ReadSerial, format!("SELECT {columns} FROM {catalog} WHERE place = 0")),
            insert: lightweight(format!(
                "INSERT INTO {catalog} (place, name, kind, metadata, id, state) VALUES (0, ?, ?, ?, ?, ?) IF NOT EXISTS"
            )),
            put_metadata: lightweight(format!("UPDATE {catalog} SET metadata = ? {entry} IF id = ?")),
            empty: lightweight(format!(
                "UPDATE {catalog} SET id = ?, doomed = ?, state = 'new' {entry} IF id = ? AND state = 'ready'"
            )),
            ready: lightweight(format!(
                "UPDATE {catalog} SET state = 'ready', doomed = null {entry} IF id = ? AND state = 'new'"
            )),
            doom: lightweight(format!("UPDATE {catalog} SET state = 'dropping' {entry} IF id = ?")),
            remove: lightweight(format!("DELETE FROM {catalog} {entry} IF id = ? AND state = 'dropping'")),
        }
    }
}

type EntryRow = (String, String, Option<Vec<u8>>, Option<Uuid>, Option<Uuid>, Option<String>);

fn entry((name, kind, metadata, id, doomed, state): EntryRow) -> Result<Entry> {
    let damaged = |what: &str| KvsError::corrupt("the table of tables", format!("table '{name}' has {what}"));
    let kind = match &*kind {
        "versioned" => TableKind::Versioned,
        "atomic" => TableKind::Atomic,
        other => return Err(damaged(&format!("the kind '{other}'"))),
    };
    let state = match state.as_deref() {
        Some("new") => State::New,
        Some("ready") => State::Ready,
        Some("dropping") => State::Dropping,
        other => return Err(damaged(&format!("the state {other:?}"))),
    };
    let id = id.ok_or_else(|| damaged("no id"))?;
    // An empty value may come as none.
    let metadata = Bytes::from(metadata.unwrap_or_default());
    Ok(Entry { table: TableRef::new(&name)?, kind, metadata, id, doomed, state })
}

fn kind_word(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Versioned => "versioned",
        TableKind::Atomic => "atomic",
    }
}

/// What a lightweight transaction says of itself, and of one column of what stands in its way.
pub(crate) fn verdict(rows: &QueryRowsResult, column: &str) -> Result<(bool, Option<Bytes>)> {
    let row: Row = rows.first_row().map_err(unexpected)?;
    // By name: Cassandra and Scylla tell different columns in different orders.
    let mut named = rows.column_specs().iter().zip(row.columns);
    let (mut applied, mut standing) = (None, None);
    named.by_ref().for_each(|(spec, value)| match (spec.name(), value) {
        ("[applied]", Some(CqlValue::Boolean(answer))) => applied = Some(answer),
        (name, Some(CqlValue::Blob(value))) if name == column => standing = Some(Bytes::from(value)),
        (name, Some(CqlValue::Empty)) if name == column => standing = Some(Bytes::new()),
        _ => {}
    });
    let applied = applied.ok_or_else(|| unexpected("a lightweight transaction does not tell its outcome"))?;
    Ok((applied, standing))
}

impl Cluster {
    // ---- the keyspace

    /// Makes the keyspace and its catalog, unless they are there, and checks that they are ours.
    pub(crate) async fn set_up(&self, catalog: &Catalog) -> Result<()> {
        self.check_server().await?;
        // Two nodes may have been asked, of which one has not heard of a drop yet.
        if !self.has_catalog().await? || self.replication().await?.is_none() {
            self.make_keyspace().await?;
        }
        self.check_replication().await?;
        self.check_format(catalog).await
    }

    /// Checks that the keyspace is there and ours; false if it is not there.
    pub(crate) async fn set_up_existing(&self, catalog: &Catalog) -> Result<bool> {
        self.check_server().await?;
        if !self.has_catalog().await? {
            return Ok(false);
        }
        self.check_replication().await?;
        self.check_format(catalog).await?;
        Ok(true)
    }

    /// Removes the keyspace with everything in it.
    pub(crate) async fn drop_keyspace(&self) -> Result<()> {
        self.change_schema(&format!("DROP KEYSPACE IF EXISTS {}", self.keyspace)).await
    }

    async fn check_server(&self) -> Result<()> {
        let sql = "SELECT release_version FROM system.local WHERE key = 'local'";
        let rows: Vec<(String,)> = self.ask(sql, ()).await?;
        let version = rows.into_iter().next().map(|(version,)| version).unwrap_or_default();
        match why_unsupported(&version) {
            Some(reason) if !self.is_scylla()? => Err(misconfigured(reason, None)),
            _ => Ok(()),
        }
    }

    /// Scylla calls itself a very old Cassandra; but it has shards.
    fn is_scylla(&self) -> Result<bool> {
        Ok(self.session()?.get_cluster_state().get_nodes_info().iter().any(|node| node.sharder().is_some()))
    }

    async fn has_catalog(&self) -> Result<bool> {
        let sql = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?";
        let rows: Vec<(String,)> = self.ask(sql, (&self.keyspace, CATALOG)).await?;
        Ok(!rows.is_empty())
    }

    async fn make_keyspace(&self) -> Result<()> {
        let (keyspace, replication) = (&self.keyspace, self.config.replication.cql());
        // A node that has not heard of the keyspace would make it once more over the one that is there, with our replication and
        // another time of creation.
        self.agree_on_schema().await?;
        let create = format!("CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {replication}");
        for _ in 0..KEYSPACE_ROUNDS {
            if self.replication().await?.is_none() {
                self.check_nodes()?;
            }
            self.create_keyspace(&create).await?;
            // A node that has not heard of a drop yet finds nothing to make, and once it agrees with the others the keyspace is
            // nowhere.
            if self.replication().await?.is_some() {
                break;
            }
            tracing::debug!(keyspace, "the keyspace is gone as soon as it is made");
        }
        // Somebody else may have made it. What does not fit gets no table of ours.
        self.check_replication().await?;
        // All live nodes agree by now, so nobody can create the keyspace a second time, and everybody who is here sees
        // the same moment of its creation. From that follows the id of the catalog: it is the same for all, and another
        // one if the keyspace was dropped and made again.
        let sql = "SELECT WRITETIME(durable_writes) FROM system_schema.keyspaces WHERE keyspace_name = ?";
        let rows: Vec<(Option<i64>,)> = self.ask(sql, (keyspace,)).await?;
        let Some((Some(created),)) = rows.first() else {
            return Err(self.vanished());
        };
        let id = names::derived_id(Uuid::from_u128(u128::from(created.unsigned_abs())), keyspace);
        self.change_schema(&format!(
            "CREATE TABLE IF NOT EXISTS {keyspace}.{CATALOG} (place tinyint, name text, kind text, metadata blob, \
             id uuid, doomed uuid, state text, PRIMARY KEY ((place), name)) WITH ID = {id}"
        ))
        .await
    }

    async fn create_keyspace(&self, create: &str) -> Result<()> {
        if self.is_scylla()? {
            // No lightweight transactions on tablets before 2025.4, and no tablets before 6.0, which refuse the word.
            match self.change_schema(&format!("{create} AND tablets = {{'enabled': false}}")).await {
                Err(KvsError::Backend { .. } | KvsError::Misconfigured { .. }) => (),
                done => return done,
            }
        }
        self.change_schema(create).await
    }

    /// A keyspace with more copies than nodes can be made, and then not be used.
    fn check_nodes(&self) -> Result<()> {
        let session = self.session()?;
        let state = session.get_cluster_state();
        let centres: Vec<&str> =
            state.get_nodes_info().iter().map(|node| node.datacenter.as_deref().unwrap_or_default()).collect();
        let Some(lacking) = self.config.replication.lacking(&centres) else { return Ok(()) };
        let wanted = self.config.replication.cql();
        let reason = format!(
            "keyspace '{}' can't be made in {}: {wanted} is configured, and {lacking}; configure what the cluster can \
             hold, or add nodes",
            self.keyspace,
            self.config.place()
        );
        Err(misconfigured(reason, None))
    }

    /// The options of the keyspace's replication, if it is there.
    async fn replication(&self) -> Result<Option<HashMap<String, String>>> {
        let sql = "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?";
        let rows: Vec<(HashMap<String, String>,)> = self.ask(sql, (&self.keyspace,)).await?;
        Ok(rows.into_iter().next().map(|(replication,)| replication))
    }

    /// Nobody's configuration is wrong about a keyspace that is not there.
    fn vanished(&self) -> KvsError {
        let reason = format!(
            "keyspace '{}' was dropped while it was opened, or a node has not heard of it yet; if nobody drops it, {WHO_IS_BEHIND}",
            self.keyspace
        );
        unavailable(reason, None)
    }

    async fn check_replication(&self) -> Result<()> {
        let Some(told) = self.replication().await? else {
            return Err(self.vanished());
        };
        if self.config.replication.agrees(&told) {
            return Ok(());
        }
        let (told, wanted) = (cql_of(&told), self.config.replication.cql());
        let reason = format!(
            "keyspace '{}' is replicated as {told}, and {wanted} is configured; set the configuration right, or alter \
             the keyspace and repair it",
            self.keyspace
        );
        Err(misconfigured(reason, None))
    }

    /// The entry without a name tells the format. Whoever finds none writes it.
    async fn check_format(&self, catalog: &Catalog) -> Result<()> {
        for round in 1..=ROUNDS_MAX {
            let rows: Vec<EntryRow> = match self.rows(&catalog.one, &("",), "reading the catalog").await {
                // A node tells of a table that somebody is making before it can be used.
                Err(Trouble::Missing(_)) if round < ROUNDS_MAX => {
                    sleep(CATALOG_PAUSE).await;
                    continue;
                }
                rows => rows.map_err(|trouble| self.no_catalog(trouble))?,
            };
            match rows.first().map(|row| &*row.1) {
                Some(FORMAT) => return Ok(()),
                Some(other) => {
                    let reason =
                        format!("keyspace '{}' has '{other}', and this program knows '{FORMAT}'", self.keyspace);
                    return Err(misconfigured(reason, None));
                }
                None => {
                    let values = ("", FORMAT, Bytes::new(), Uuid::nil(), "ready");
                    let written = self.compare(&catalog.insert, &values, "entering the format").await;
                    self.settle_outcome(written).await?;
                }
            }
        }
        Err(unavailable(format!("the format of keyspace '{}' could not be written", self.keyspace), None))
    }

    // ---- tables

    pub(crate) async fn entry(&self, catalog: &Catalog, table: &TableRef) -> Result<Option<Entry>> {
        let rows: Vec<EntryRow> = self
            .rows(&catalog.one, &(table.name(),), "reading the catalog")
            .await
            .map_err(|trouble| self.no_catalog(trouble))?;
        rows.into_iter().next().map(entry).transpose()
    }

    /// The entry of a table that can be used.
    pub(crate) async fn ready_entry(&self, catalog: &Catalog, table: &TableRef) -> Result<Option<Entry>> {
        for _ in 0..ROUNDS_MAX {
            match self.entry(catalog, table).await? {
                Some(entry) if entry.state != State::Ready => self.finish(catalog, &entry).await?,
                entry => return Ok(entry),
            }
        }
        Err(contended(table))
    }

    pub(crate) async fn tables(&self, catalog: &Catalog) -> Result<Vec<TableDescription>> {
        let mut entries = Vec::new();
        let take = |row: EntryRow| {
            if !row.0.is_empty() {
                entries.push(entry(row));
            }
        };
        let listed = self.all_rows(&catalog.all, &(), "reading the catalog", take).await;
        listed.map_err(|trouble| self.no_catalog(trouble))?;
        let entries: Vec<Entry> = entries.into_iter().collect::<Result<_>>()?;
        Ok(entries.into_iter().filter(|entry| entry.state != State::Dropping).map(description).collect())
    }

    pub(crate) async fn table(&self, catalog: &Catalog, table: &TableRef) -> Result<Option<TableDescription>> {
        let entry = self.entry(catalog, table).await?;
        Ok(entry.filter(|entry| entry.state != State::Dropping).map(description))
    }

    pub(crate) async fn create_table(
        &self,
        catalog: &Catalog,
        table: &TableRef,
        kind: TableKind,
        metadata: &Bytes,
    ) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            match self.ready_entry(catalog, table).await? {
                Some(entry) if entry.kind == kind => return Ok(()),
                Some(entry) => return Err(wrong_kind(table, entry.kind)),
                None => {
                    let id = Uuid::new_v4();
                    let values = (table.name(), kind_word(kind), metadata, id, State::New.word());
                    let entered = self.compare(&catalog.insert, &values, "creating a table").await;
                    // Whether it was this one or another, the next round finds and finishes it.
                    self.settle_outcome(entered).await?;
                }
            }
        }
        Err(contended(table))
    }

    pub(crate) async fn drop_table(&self, catalog: &Catalog, table: &TableRef) -> Result<()> {
        let Some(first) = self.entry(catalog, table).await? else { return Ok(()) };
        self.require_all_nodes("dropping a table").await?;
        for _ in 0..ROUNDS_MAX {
            match self.entry(catalog, table).await? {
                Some(entry) if entry.state == State::Dropping => self.finish(catalog, &entry).await?,
                // Of the table that was there at first; one that somebody created after that is not meant.
                Some(entry) if entry.id == first.id || entry.doomed == Some(first.id) => {
                    let doomed = self.compare(&catalog.doom, &(table.name(), entry.id), "dropping a table").await;
                    self.settle_outcome(doomed).await?;
                }
                _ => return Ok(()),
            }
        }
        Err(contended(table))
    }

    pub(crate) async fn truncate_table(&self, catalog: &Catalog, table: &TableRef) -> Result<()> {
        let absent = || KvsError::NoSuchTable(table.clone());
        let first = self.ready_entry(catalog, table).await?.ok_or_else(absent)?;
        self.require_all_nodes("emptying a table").await?;
        for _ in 0..ROUNDS_MAX {
            let entry = self.ready_entry(catalog, table).await?.ok_or_else(absent)?;
            // Emptied by somebody else since is emptied, too.
            if entry.id != first.id {
                return Ok(());
            }
            let values = (Uuid::new_v4(), entry.id, table.name(), entry.id);
            let emptied = self.compare(&catalog.empty, &values, "emptying a table").await;
            self.settle_outcome(emptied).await?;
        }
        Err(contended(table))
    }

    pub(crate) async fn put_table_metadata(&self, catalog: &Catalog, table: &TableRef, metadata: &Bytes) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            let entry = self.ready_entry(catalog, table).await?.ok_or_else(|| KvsError::NoSuchTable(table.clone()))?;
            let values = (metadata, table.name(), entry.id);
            let put = self.compare(&catalog.put_metadata, &values, "writing metadata of a table").await;
            let rows = put.map_err(|trouble| self.no_catalog(trouble))?;
            if verdict(&rows, "metadata")?.0 {
                return Ok(());
            }
        }
        Err(contended(table))
    }

    /// Does what is left to do of a change that was begun, by whomever.
    async fn finish(&self, catalog: &Catalog, entry: &Entry) -> Result<()> {
        let (table, id) = (&entry.table, entry.id);
        match entry.state {
            State::Ready => Ok(()),
            State::New => {
                let made = self.make_ready(catalog, entry).await;
                if matches!(made, Ok(Some(true))) {
                    return Ok(());
                }
                // Somebody else was faster, or nobody knows; and a third may have dropped the table again before ours were
                // made. Ids are used once, so what no entry owns is nobody's.
                let cleared = self.remove_unowned(catalog, entry).await;
                made.and(cleared)
            }
            State::Dropping => {
                for id in [Some(id), entry.doomed].into_iter().flatten() {
                    self.remove_cql_tables(table, entry.kind, id).await?;
                }
                let removed = self.compare(&catalog.remove, &(table.name(), id), "dropping a table").await;
                self.settle_outcome(removed).await.map(drop)
            }
        }
    }

    /// Makes the tables of an entry and enters that they are there, unless somebody else has.
    async fn make_ready(&self, catalog: &Catalog, entry: &Entry) -> Result<Option<bool>> {
        let (table, id) = (&entry.table, entry.id);
        for definition in Table::definitions(&self.keyspace, table, entry.kind, id) {
            self.change_schema(&definition).await?;
        }
        if let Some(doomed) = entry.doomed {
            self.remove_cql_tables(table, entry.kind, doomed).await?;
        }
        let ready = self.compare(&catalog.ready, &(table.name(), id), "creating a table").await;
        self.settle_outcome(ready).await
    }

    /// Removes the tables of an entry that does not stand in the catalog any more.
    async fn remove_unowned(&self, catalog: &Catalog, entry: &Entry) -> Result<()> {
        if self.entry(catalog, &entry.table).await?.is_some_and(|now| now.owns(entry.id)) {
            return Ok(());
        }
        self.remove_cql_tables(&entry.table, entry.kind, entry.id).await
    }

    async fn remove_cql_tables(&self, table: &TableRef, kind: TableKind, id: Uuid) -> Result<()> {
        for removal in Table::removals(&self.keyspace, table, kind, id) {
            self.change_schema(&removal).await?;
        }
        Ok(())
    }

    /// For transactions whose outcome the next look at the catalog tells: not to know it is fine.
    async fn settle_outcome(&self, answer: Attempt<QueryRowsResult>) -> Result<Option<bool>> {
        match answer.map_err(|trouble| self.no_catalog(trouble)) {
            Ok(rows) => Ok(Some(verdict(&rows, "")?.0)),
            Err(KvsError::Indeterminate { reason, .. }) => {
                tracing::debug!(reason, "looking what became of it");
                sleep(Duration::from_millis(50)).await;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn no_catalog(&self, trouble: Trouble) -> KvsError {
        match trouble {
            Trouble::Missing(_) => {
                let reason = format!("keyspace '{}' is gone from {}", self.keyspace, self.config.place());
                backend(reason, None)
            }
            Trouble::Final(error) => error,
        }
    }

    /// From what a node keeps about its own part of the ring, every few minutes.
    pub(crate) async fn table_size(&self, entry: &Entry) -> Result<TableSize> {
        let sql = "SELECT mean_partition_size, partitions_count FROM system.size_estimates \
                   WHERE keyspace_name = ? AND table_name = ?";
        let cells = names::cells(&entry.table, entry.kind, entry.id);
        let ranges: Vec<(Option<i64>, Option<i64>)> = self.ask(sql, (&self.keyspace, &cells)).await?;
        let nodes = self.session()?.get_cluster_state().get_nodes_info().len() as u64;
        let mut size = TableSize::default();
        for (mean, partitions) in ranges {
            let partitions = partitions.and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
            let mean = mean.and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
            size.versions += partitions * nodes;
            size.bytes += partitions * mean * nodes;
        }
        Ok(size)
    }

    // ---- what is asked of one node

    /// Longest value in bytes that the servers take, with room for names and headers.
    ///
    /// A write must fit into half a segment of the commit log, which is 16 MiB unless it is configured otherwise; so much
    /// is also the longest request. Of that only half is taken: several may be under way.
    pub(crate) async fn value_len_max(&self) -> Result<usize> {
        const MIB: usize = 1 << 20;
        let sql = "SELECT value FROM system_views.settings WHERE name = 'max_mutation_size'";
        // Scylla has no such table, and Cassandra 4.0 another name; then it is the default.
        let rows: Vec<(Option<String>,)> = self.ask(sql, ()).await.unwrap_or_default();
        let told = rows.into_iter().next().and_then(|(text,)| bytes_of(&text?)).unwrap_or(16 * MIB);
        Ok(told.saturating_sub(MIB / 4).clamp(MIB / 4, 8 * MIB))
    }

    /// Asks any node for what it keeps by itself.
    async fn ask<R>(&self, sql: &str, values: impl scylla::serialize::row::SerializeRow) -> Result<Vec<R>>
    where
        R: for<'f> scylla::deserialize::row::DeserializeRow<'f, 'f>,
    {
        let session = self.session()?;
        let mut question = Plain::new(sql);
        question.set_consistency(Consistency::One);
        question.set_is_idempotent(true);
        let answer = session.query_unpaged(question, values).await;
        let answer = answer.map_err(|error| Failure::of(error, Stakes::Read).explain("asking a node").into_error())?;
        let rows = answer.into_rows_result().map_err(unexpected)?;
        rows.rows::<R>().map_err(unexpected)?.map(|row| row.map_err(unexpected)).collect()
    }

    /// Changes the schema and waits until all nodes that can be reached agree on it. Made twice it changes nothing
    /// more, so it is made again when nobody knows whether it was made.
    async fn change_schema(&self, sql: &str) -> Result<()> {
        // Changes of one process at least do not get into each other's way.
        let _one_at_a_time = self.schema.lock().await;
        let mut number = 0;
        loop {
            number += 1;
            let session = self.session()?;
            let mut change = Plain::new(sql);
            change.set_consistency(Consistency::One);
            change.set_request_timeout(Some(self.config.request_timeout.saturating_mul(4)));
            let limit = self.config.request_timeout.saturating_mul(4).saturating_add(self.config.schema_agreement());
            let failure = match timeout(limit, session.query_unpaged(change, ())).await {
                // Where there was nothing to change, the driver has waited for nothing: somebody else may have made the change a
                // moment ago.
                Ok(Ok(_)) => return self.agree_on_schema().await,
                // Made, and not everywhere. Sent again it would be answered at once, as if it were.
                Ok(Err(ExecutionError::SchemaAgreementError(error))) => return Err(disagreement(error)),
                Ok(Err(error)) => Failure::of(error, Stakes::Write),
                Err(_) => Failure::Silence(limit),
            };
            match failure {
                failure @ (Failure::NotDone(_) | Failure::NotKnown(_) | Failure::Silence(_))
                    if number < SCHEMA_ATTEMPTS =>
                {
                    tracing::debug!(?failure, sql, "changing the schema again");
                    sleep(Duration::from_millis(100 << number)).await;
                }
                Failure::Missing(reason) => return Err(backend(format!("changing the schema: {reason}"), None)),
                failure => return Err(failure.explain("changing the schema").into_error()),
            }
        }
    }

    /// Waits until all nodes that answer have the same schema.
    async fn agree_on_schema(&self) -> Result<()> {
        self.session()?.await_schema_agreement().await.map(drop).map_err(disagreement)
    }
}

fn disagreement(error: SchemaAgreementError) -> KvsError {
    let what = format!("waiting until the nodes agree on the schema; {WHO_IS_BEHIND}");
    Failure::of(error.into(), Stakes::Read).explain(&what).into_error()
}

/// What is wrong with a server of this version, if anything.
fn why_unsupported(version: &str) -> Option<String> {
    let major: u32 = version.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    (major < VERSION_MIN).then(|| format!("the server is Cassandra {version}; {VERSION_MIN}.0 or later is needed"))
}

/// Options of a replication as CQL writes them, in an order of their own.
fn cql_of(told: &HashMap<String, String>) -> String {
    let mut options: Vec<_> = told.iter().filter(|(option, _)| *option != "class").collect();
    options.sort();
    let class = told.get("class").map_or("nothing", |class| class.rsplit('.').next().unwrap_or(class));
    let options: String = options.into_iter().map(|(name, value)| format!(", '{name}': {value}")).collect();
    format!("{{'class': '{class}'{options}}}")
}

impl Entry {
    fn owns(&self, id: Uuid) -> bool {
        self.id == id || self.doomed == Some(id)
    }
}

/// "4096KiB", say.
fn bytes_of(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[digits..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    text[..digits].parse::<usize>().ok()?.checked_mul(unit)
}

fn description(entry: Entry) -> TableDescription {
    TableDescription { table: entry.table, kind: entry.kind, metadata: entry.metadata }
}

fn contended(table: &TableRef) -> KvsError {
    unavailable(format!("too many others create, empty and drop table '{table}'"), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_too_old_is_told_by_its_version() {
        for version in ["4.0", "4.1.7", "5.0.8", "5.0.8-SNAPSHOT", "10.0"] {
            assert_eq!(why_unsupported(version), None, "{version}");
        }
        for version in ["2.2.19", "3.0.8", "3.11.17", "3.11-SNAPSHOT", "", "five"] {
            let reason = why_unsupported(version).expect("it is too old, or unknown");
            assert!(reason.contains(&format!("Cassandra {version};")) && reason.contains("4.0 or later"), "{reason}");
        }
    }
}
