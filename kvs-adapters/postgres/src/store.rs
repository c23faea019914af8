//! The store: checks what it is asked before the server is.

use crate::config::PostgresConfig;
use crate::scan;
use crate::session::Server;
use crate::write::Writes;
use async_trait::async_trait;
use atlas_kvs::{
    AtomicBatch, AtomicScan, Availability, BatchOp, Capabilities, Cell, CellBound, CellTimestamps, CellVersionRange,
    CellVersions, CheckAndSet, Durability, FlatPage, KeyValueService, KvsError, Limits, NativeSnapshot, Ownership,
    PutUnlessExists, Result, ResultStream, RowRange, Scan, StreamSnapshot, TableDescription, TableKind, TableRef,
    TableSize, Timestamp, Value, Version, VersionScan,
};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// An entry of a primary key has at most 2,704 bytes, a third of a page, however little of it can be compressed. Row
/// and column share them with 34 bytes at most of headers, timestamp and padding.
const LIMITS: Limits = Limits {
    row_len_max: 2_048,
    column_len_max: 2_048,
    cell_len_max: 2_656,
    value_len_max: 256 << 20,
    empty_names: true,
};

/// A store in a PostgreSQL database.
///
/// See the [crate] for its guarantees. Cheap to share: all callers use one pool of connections.
pub struct PostgresStore {
    pub(crate) server: Arc<Server>,
}

impl PostgresStore {
    /// Connects to a database, and makes the schema of the namespace there unless it exists. Any number of processes
    /// may do so at once.
    ///
    /// Cancel safe: a dropped call leaves the schema made or not made.
    ///
    /// # Errors
    /// [`KvsError::Unavailable`] if the server can't be reached, takes no more connections or is a read-only standby;
    /// [`KvsError::AccessDenied`] if it refuses the user or what the user does; [`KvsError::Misconfigured`] if it has no
    /// such database, is older than PostgreSQL 13, or the schema has a format that this program does not know.
    pub async fn connect(config: PostgresConfig) -> Result<PostgresStore> {
        let server = Arc::new(Server::new(config).await?);
        server.set_up().await?;
        Ok(PostgresStore { server })
    }

    /// As [`connect`](Self::connect), but makes nothing: `None` if the database has no schema of this namespace.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_existing(config: PostgresConfig) -> Result<Option<PostgresStore>> {
        let server = Arc::new(Server::new(config).await?);
        Ok(server.set_up_existing().await?.then_some(PostgresStore { server }))
    }

    /// The schema of the namespace, in which all tables of the store are; for the database's own tools.
    pub fn schema(&self) -> &str {
        self.server.names.schema()
    }

    async fn put_all(&self, puts: &[(TableRef, Vec<(Cell, Bytes)>)], ts: Timestamp) -> Result<()> {
        let mut writes = Writes::default();
        for (table, cells) in puts {
            for (cell, value) in cells {
                check_put(cell, ts, value)?;
                writes.put(table, cell, ts, value);
            }
        }
        self.server.write(writes, None, Durability::Synced).await
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.server.config;
        f.debug_struct("PostgresStore").field("place", &config.place()).field("schema", &self.schema()).finish()
    }
}

fn check_cell(cell: &Cell) -> Result<()> {
    check_len("row", cell, cell.row.len(), LIMITS.row_len_max)?;
    check_len("column", cell, cell.column.len(), LIMITS.column_len_max)?;
    check_len("row and column", cell, cell.row.len() + cell.column.len(), LIMITS.cell_len_max)
}

fn check_value(cell: &Cell, value: &Bytes) -> Result<()> {
    check_cell(cell)?;
    check_len("value", cell, value.len(), LIMITS.value_len_max)
}

fn check_put(cell: &Cell, ts: Timestamp, value: &Bytes) -> Result<()> {
    if !ts.is_data() {
        return Err(KvsError::InvalidTimestamp(ts.get()));
    }
    check_value(cell, value)
}

fn check_len(what: &'static str, cell: &Cell, len: usize, limit: usize) -> Result<()> {
    if len <= limit { Ok(()) } else { Err(KvsError::TooLarge { what, cell: cell.clone(), len, limit }) }
}

#[async_trait]
impl KeyValueService for PostgresStore {
    /// A connection has a process of the server to itself; a third would have little left to do but wait for the disk.
    fn batches_at_once(&self) -> usize {
        2
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            store: "postgres",
            atomic_batch: true,
            detects_conflicting_values: true,
            persistent: true,
            limits: LIMITS,
        }
    }

    fn ownership(&self) -> Ownership {
        Ownership::Shared
    }

    async fn create_table(&self, table: &TableRef, kind: TableKind, metadata: Bytes) -> Result<()> {
        self.server.attempts(|| self.server.create_table(table, kind, &metadata)).await
    }

    async fn drop_table(&self, table: &TableRef) -> Result<()> {
        self.server.attempts(|| self.server.drop_table(table)).await
    }

    async fn truncate_table(&self, table: &TableRef) -> Result<()> {
        self.server.attempts(|| self.server.truncate_table(table)).await
    }

    async fn tables(&self) -> Result<Vec<TableDescription>> {
        self.server.attempts(|| self.server.tables()).await
    }

    async fn table(&self, table: &TableRef) -> Result<Option<TableDescription>> {
        self.server.attempts(|| self.server.table(table)).await
    }

    async fn put_table_metadata(&self, table: &TableRef, metadata: Bytes) -> Result<()> {
        self.server.attempts(|| self.server.put_table_metadata(table, &metadata)).await
    }

    async fn table_size(&self, table: &TableRef) -> Result<TableSize> {
        self.server.attempts(|| self.server.table_size(table)).await
    }

    async fn get(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Option<Value>>> {
        self.server.check_open()?;
        self.server.attempts(|| self.server.get_shared(table, cells)).await
    }

    fn scan(&self, table: &TableRef, request: Scan) -> ResultStream<(Cell, Value)> {
        scan::scan(Arc::clone(&self.server), table.clone(), request)
    }

    fn scan_pages(&self, table: &TableRef, request: Scan) -> ResultStream<Vec<(Cell, Value)>> {
        scan::scan_pages(Arc::clone(&self.server), table.clone(), request)
    }

    fn scan_flat(&self, table: &TableRef, request: Scan) -> ResultStream<FlatPage> {
        scan::scan_pages(Arc::clone(&self.server), table.clone(), request)
    }

    async fn versions(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Vec<Version>>> {
        self.server.check_open()?;
        self.server.attempts(|| self.server.versions(table, cells)).await
    }

    fn scan_versions(&self, table: &TableRef, request: VersionScan) -> ResultStream<CellVersions> {
        scan::scan_versions(Arc::clone(&self.server), table.clone(), request)
    }

    async fn put(&self, puts: Vec<(TableRef, Vec<(Cell, Bytes)>)>, ts: Timestamp) -> Result<()> {
        self.server.check_open()?;
        self.put_all(&puts, ts).await
    }

    async fn put_versions(&self, table: &TableRef, versions: Vec<(Cell, Value)>) -> Result<()> {
        self.server.check_open()?;
        let mut writes = Writes::default();
        for (cell, value) in &versions {
            check_put(cell, value.ts, &value.bytes)?;
            writes.put(table, cell, value.ts, &value.bytes);
        }
        self.server.write(writes, None, Durability::Synced).await
    }

    async fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> Result<()> {
        self.server.check_open()?;
        cells.iter().try_for_each(check_cell)?;
        self.server.attempts(|| self.server.add_sentinels(table, cells)).await
    }

    async fn delete_versions(&self, table: &TableRef, versions: &[CellTimestamps]) -> Result<()> {
        self.server.check_open()?;
        self.server.attempts(|| self.server.delete_versions(table, versions)).await
    }

    async fn delete_version_ranges(&self, table: &TableRef, ranges: &[CellVersionRange]) -> Result<()> {
        self.server.check_open()?;
        self.server.attempts(|| self.server.delete_version_ranges(table, ranges)).await
    }

    async fn delete_rows(&self, table: &TableRef, rows: &RowRange) -> Result<()> {
        self.server.check_open()?;
        if rows.is_empty() {
            return Ok(());
        }
        self.server.attempts(|| self.server.delete_rows(table, rows)).await
    }

    async fn get_atomic(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>> {
        self.server.check_open()?;
        self.server.attempts(|| self.server.get_atomic(table, cells)).await
    }

    fn scan_atomic(&self, table: &TableRef, request: AtomicScan) -> ResultStream<(Cell, Bytes)> {
        scan::scan_atomic(Arc::clone(&self.server), table.clone(), request)
    }

    async fn put_unless_exists(&self, table: &TableRef, cell: &Cell, value: Bytes) -> Result<PutUnlessExists> {
        Ok(match self.check_and_set(table, cell, None, Some(value)).await? {
            CheckAndSet::Applied => PutUnlessExists::Written,
            CheckAndSet::Mismatch(Some(standing)) => PutUnlessExists::Exists(standing),
            CheckAndSet::Mismatch(None) => unreachable!("nothing was expected, so nothing is no mismatch"),
        })
    }

    async fn check_and_set(
        &self,
        table: &TableRef,
        cell: &Cell,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> Result<CheckAndSet> {
        match &new {
            Some(new) => check_value(cell, new)?,
            None => check_cell(cell)?,
        }
        self.server.attempts(|| self.server.check_and_set(table, cell, expected.as_ref(), new.as_ref())).await
    }

    async fn apply(&self, batch: AtomicBatch, durability: Durability) -> Result<()> {
        self.server.check_open()?;
        for op in batch.ops.iter() {
            match op {
                BatchOp::Put { cell, ts, value, .. } => check_put(cell, *ts, value)?,
                BatchOp::Set { cell, value, .. } => check_value(cell, value)?,
                BatchOp::Remove { cell, .. } => check_value(cell, &Bytes::new())?,
            }
        }
        self.server.write(Writes::of_batch(&batch.ops), batch.guard.as_ref(), durability).await
    }

    async fn identity(&self) -> Result<Option<String>> {
        self.server.attempts(|| self.server.identity()).await.map(Some)
    }

    async fn availability(&self) -> Availability {
        match self.server.attempts(|| self.server.read("SELECT 1", &[])).await {
            Ok(_) => Availability::All,
            Err(
                error @ (KvsError::Backend { .. } | KvsError::AccessDenied { .. } | KvsError::Misconfigured { .. }),
            ) => Availability::Terminal(error.to_string()),
            Err(error) => Availability::NoQuorum(error.to_string()),
        }
    }

    fn native_snapshot(&self) -> Option<&dyn NativeSnapshot> {
        None
    }

    fn stream_snapshot(&self) -> Option<&dyn StreamSnapshot> {
        Some(self)
    }

    async fn reopen(&self) -> Result<()> {
        self.server.check_open()
    }

    async fn destroy(&self) -> Result<()> {
        // One by one: the server has a limit to what one transaction may lock.
        for table in self.tables().await? {
            self.drop_table(&table.table).await?;
        }
        self.server.attempts(|| self.server.drop_schema()).await
    }

    async fn close(&self) -> Result<()> {
        self.server.check_open()?;
        self.server.close();
        Ok(())
    }
}
