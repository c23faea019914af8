//! The store: checks what it is asked before the cluster is.

use crate::atomic::Turns;
use crate::catalog::Catalog;
use crate::config::CassandraConfig;
use crate::errors::{Attempt, Trouble, backend, wrong_kind};
use crate::names;
use crate::reaper::Reaper;
use crate::scan::Scans;
use crate::session::Cluster;
use crate::table::Table;
use crate::write::Puts;
use async_trait::async_trait;
use atlas_kvs::{
    AtomicBatch, AtomicScan, Availability, Capabilities, Cell, CellBound, CellTimestamps, CellVersionRange,
    CellVersions, CheckAndSet, Durability, KeyValueService, KvsError, Limits, NativeSnapshot, NodeStore, Ownership,
    PutUnlessExists, Result, ResultStream, RowRange, Scan, TableDescription, TableKind, TableRef, TableSize, Timestamp,
    Value, Version, VersionScan,
};
use bytes::Bytes;
use dashmap::DashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A partition key has at most 64 KiB, and so has a key of the index, in which every zero byte counts twice.
const ROW_LEN_MAX: usize = 16 << 10;
const COLUMN_LEN_MAX: usize = 8 << 10;
/// How often an operation looks for its table when that is not where it was.
const LOOKS_MAX: u32 = 8;

/// A store in a Cassandra cluster.
///
/// See the [crate] for its guarantees. Cheap to share: all callers use the same connections.
pub struct CassandraStore {
    tables: Arc<Tables>,
    turns: Turns,
    scans: Scans,
    limits: Limits,
}

/// The tables, as far as this process knows them.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) cluster: Arc<Cluster>,
    catalog: Catalog,
    known: DashMap<TableRef, Arc<Table>>,
}

impl Tables {
    /// A table, looked up unless it is known. `looks` is how often it was looked for in vain by the same caller.
    pub(crate) async fn find(&self, name: &TableRef, kind: TableKind, looks: u32) -> Result<Arc<Table>> {
        self.cluster.check_open()?;
        if let Some(known) = self.known.get(name).map(|table| Arc::clone(&table)) {
            if known.kind == kind {
                return Ok(known);
            }
            // Another process may have dropped it and created one of the other kind.
            self.known.remove_if(name, |_, still| still.id == known.id);
        }
        // A node may not have heard of the table yet, though the others agree on it.
        if looks > 1 {
            tokio::time::sleep(Duration::from_millis(10 << looks)).await;
        }
        let entry = self.cluster.ready_entry(&self.catalog, name).await?;
        let entry = entry.ok_or_else(|| KvsError::NoSuchTable(name.clone()))?;
        if entry.kind != kind {
            return Err(wrong_kind(name, entry.kind));
        }
        let keys_max = self.cluster.config.bucket_keys_max;
        let table = || Arc::new(Table::new(&self.cluster.keyspace, name.clone(), entry.kind, entry.id, keys_max));
        // What another one has learnt of the table meanwhile is kept.
        let mut known = self.known.entry(name.clone()).or_insert_with(table);
        if known.id != entry.id {
            *known = table();
        }
        Ok(Arc::clone(&known))
    }

    /// Forgets a table that is not there any more, so that it is looked up again.
    pub(crate) fn forget(&self, table: &Table, looks: u32, reason: &str) -> Result<()> {
        self.known.remove_if(&table.name, |_, known| known.id == table.id);
        if looks < LOOKS_MAX {
            return Ok(());
        }
        let reason = format!(
            "table '{}' is in the catalog, and its CQL tables are not there, or not known to all nodes: {reason}",
            table.name
        );
        Err(backend(reason, None))
    }

    async fn on<T, F>(&self, name: &TableRef, kind: TableKind, operation: impl Fn(Arc<Table>) -> F) -> Result<T>
    where
        F: Future<Output = Attempt<T>>,
    {
        let mut looks = 0;
        loop {
            let table = self.find(name, kind, looks).await?;
            match operation(Arc::clone(&table)).await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Missing(reason)) => {
                    looks += 1;
                    self.forget(&table, looks, &reason)?;
                }
            }
        }
    }
}

impl CassandraStore {
    /// Connects to a cluster, and makes the keyspace of the namespace there unless it exists. Any number of processes
    /// may do so at once.
    ///
    /// Cancel safe: a dropped call leaves the keyspace made or not made.
    ///
    /// # Errors
    /// [`KvsError::Unavailable`] if no node can be reached, the nodes do not agree on the schema, or the keyspace is dropped
    /// meanwhile;
    /// [`KvsError::AccessDenied`] if the cluster refuses the user, or what the user does; [`KvsError::Misconfigured`] with
    /// what to do about it if the configuration can't work, the cluster is older than Cassandra 4.0 or has fewer nodes
    /// than there shall be copies, the keyspace is there with another replication than configured, or it has a format that
    /// this program does not know.
    pub async fn connect(config: CassandraConfig) -> Result<CassandraStore> {
        let cluster = Cluster::connect(config).await?;
        let catalog = Catalog::new(&cluster.keyspace);
        cluster.set_up(&catalog).await?;
        CassandraStore::open(cluster, catalog).await
    }

    /// As [`connect`](Self::connect), but makes nothing: `None` if the cluster has no keyspace of this namespace.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_existing(config: CassandraConfig) -> Result<Option<CassandraStore>> {
        let cluster = Cluster::connect(config).await?;
        let catalog = Catalog::new(&cluster.keyspace);
        if !cluster.set_up_existing(&catalog).await? {
            return Ok(None);
        }
        CassandraStore::open(cluster, catalog).await.map(Some)
    }

    async fn open(cluster: Cluster, catalog: Catalog) -> Result<CassandraStore> {
        let cluster = Arc::new(cluster);
        let value_len_max = cluster.value_len_max().await?;
        let limits = Limits {
            row_len_max: ROW_LEN_MAX,
            column_len_max: COLUMN_LEN_MAX,
            value_len_max,
            cell_len_max: ROW_LEN_MAX + COLUMN_LEN_MAX,
            empty_names: true,
        };
        let reaper = Reaper::start(&cluster);
        let tables = Arc::new(Tables { cluster, catalog, known: DashMap::new() });
        let scans = Scans { tables: Arc::clone(&tables), reaper };
        Ok(CassandraStore { tables, turns: Turns::new(), scans, limits })
    }

    /// The keyspace of the namespace, in which all tables of the store are; for the cluster's own tools.
    pub fn keyspace(&self) -> &str {
        &self.tables.cluster.keyspace
    }

    fn cluster(&self) -> &Cluster {
        &self.tables.cluster
    }

    fn check_cell(&self, cell: &Cell) -> Result<()> {
        check_len("row", cell, cell.row.len(), self.limits.row_len_max)?;
        check_len("column", cell, cell.column.len(), self.limits.column_len_max)
    }

    fn check_value(&self, cell: &Cell, value: &Bytes) -> Result<()> {
        self.check_cell(cell)?;
        check_len("value", cell, value.len(), self.limits.value_len_max)
    }

    fn check_put(&self, cell: &Cell, ts: Timestamp, value: &Bytes) -> Result<()> {
        if !ts.is_data() {
            return Err(KvsError::InvalidTimestamp(ts.get()));
        }
        self.check_value(cell, value)
    }

    /// Writes into several tables, of which each must be there before anything is written.
    async fn put_all(&self, puts: Vec<(TableRef, Puts)>) -> Result<()> {
        let names: Vec<TableRef> = puts.iter().map(|(name, _)| name.clone()).collect();
        let mut puts: Vec<(Arc<Table>, Puts)> = {
            let mut found = Vec::with_capacity(puts.len());
            for (name, puts) in puts {
                found.push((self.tables.find(&name, TableKind::Versioned, 0).await?, puts));
            }
            found
        };
        let mut looks = 0;
        loop {
            match self.cluster().put(&puts).await {
                Ok(()) => return Ok(()),
                Err(Trouble::Final(error)) => return Err(error),
                // All of it again: to write a version twice changes nothing.
                Err(Trouble::Missing(reason)) => {
                    looks += 1;
                    for ((table, _), name) in puts.iter_mut().zip(&names) {
                        self.tables.forget(table, looks, &reason)?;
                        *table = self.tables.find(name, TableKind::Versioned, looks).await?;
                    }
                }
            }
        }
    }
}

impl fmt::Debug for CassandraStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.cluster().config.place();
        f.debug_struct("CassandraStore").field("place", &place).field("keyspace", &self.keyspace()).finish()
    }
}

fn check_len(what: &'static str, cell: &Cell, len: usize, limit: usize) -> Result<()> {
    if len <= limit { Ok(()) } else { Err(KvsError::TooLarge { what, cell: cell.clone(), len, limit }) }
}

#[async_trait]
impl KeyValueService for CassandraStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            store: "cassandra",
            atomic_batch: false,
            detects_conflicting_values: false,
            persistent: true,
            limits: self.limits,
        }
    }

    fn ownership(&self) -> Ownership {
        Ownership::Shared
    }

    async fn create_table(&self, table: &TableRef, kind: TableKind, metadata: Bytes) -> Result<()> {
        self.cluster().create_table(&self.tables.catalog, table, kind, &metadata).await
    }

    async fn drop_table(&self, table: &TableRef) -> Result<()> {
        let dropped = self.cluster().drop_table(&self.tables.catalog, table).await;
        self.tables.known.remove(table);
        dropped
    }

    async fn truncate_table(&self, table: &TableRef) -> Result<()> {
        let emptied = self.cluster().truncate_table(&self.tables.catalog, table).await;
        self.tables.known.remove(table);
        emptied
    }

    async fn tables(&self) -> Result<Vec<TableDescription>> {
        self.cluster().tables(&self.tables.catalog).await
    }

    async fn table(&self, table: &TableRef) -> Result<Option<TableDescription>> {
        self.cluster().table(&self.tables.catalog, table).await
    }

    async fn put_table_metadata(&self, table: &TableRef, metadata: Bytes) -> Result<()> {
        self.cluster().put_table_metadata(&self.tables.catalog, table, &metadata).await
    }

    async fn table_size(&self, table: &TableRef) -> Result<TableSize> {
        let entry = self.cluster().ready_entry(&self.tables.catalog, table).await?;
        let entry = entry.ok_or_else(|| KvsError::NoSuchTable(table.clone()))?;
        self.cluster().table_size(&entry).await
    }

    async fn get(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Option<Value>>> {
        self.cluster().check_open()?;
        if cells.is_empty() {
            return Ok(Vec::new());
        }
        let get = async |table: Arc<Table>| self.cluster().get(&table, cells).await;
        self.tables.on(table, TableKind::Versioned, get).await
    }

    fn scan(&self, table: &TableRef, request: Scan) -> ResultStream<(Cell, Value)> {
        self.scans.scan(table.clone(), request)
    }

    async fn versions(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Vec<Version>>> {
        self.cluster().check_open()?;
        if cells.is_empty() {
            return Ok(Vec::new());
        }
        let list = async |table: Arc<Table>| self.cluster().versions(&table, cells).await;
        self.tables.on(table, TableKind::Versioned, list).await
    }

    fn scan_versions(&self, table: &TableRef, request: VersionScan) -> ResultStream<CellVersions> {
        self.scans.scan_versions(table.clone(), request)
    }

    async fn put(&self, puts: Vec<(TableRef, Vec<(Cell, Bytes)>)>, ts: Timestamp) -> Result<()> {
        self.cluster().check_open()?;
        let mut of_tables: Vec<(TableRef, Puts)> = Vec::with_capacity(puts.len());
        for (table, cells) in puts {
            let mut of_table = Puts::default();
            for (cell, bytes) in cells {
                self.check_put(&cell, ts, &bytes)?;
                of_table.add(cell, Value { ts, bytes });
            }
            if !of_table.is_empty() {
                of_tables.push((table, of_table));
            }
        }
        self.put_all(of_tables).await
    }

    async fn put_versions(&self, table: &TableRef, versions: Vec<(Cell, Value)>) -> Result<()> {
        self.cluster().check_open()?;
        let mut puts = Puts::default();
        for (cell, value) in versions {
            self.check_put(&cell, value.ts, &value.bytes)?;
            puts.add(cell, value);
        }
        if puts.is_empty() {
            return Ok(());
        }
        self.put_all(vec![(table.clone(), puts)]).await
    }

    async fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> Result<()> {
        self.cluster().check_open()?;
        cells.iter().try_for_each(|cell| self.check_cell(cell))?;
        if cells.is_empty() {
            return Ok(());
        }
        let add = async |table: Arc<Table>| self.cluster().add_sentinels(&table, cells).await;
        self.tables.on(table, TableKind::Versioned, add).await
    }

    async fn delete_versions(&self, table: &TableRef, versions: &[CellTimestamps]) -> Result<()> {
        self.cluster().check_open()?;
        if versions.is_empty() {
            return Ok(());
        }
        let delete = async |table: Arc<Table>| self.cluster().delete_versions(&table, versions).await;
        self.tables.on(table, TableKind::Versioned, delete).await
    }

    async fn delete_version_ranges(&self, table: &TableRef, ranges: &[CellVersionRange]) -> Result<()> {
        self.cluster().check_open()?;
        if ranges.is_empty() {
            return Ok(());
        }
        let delete = async |table: Arc<Table>| self.cluster().delete_version_ranges(&table, ranges).await;
        self.tables.on(table, TableKind::Versioned, delete).await
    }

    async fn delete_rows(&self, table: &TableRef, rows: &RowRange) -> Result<()> {
        self.cluster().check_open()?;
        if rows.is_empty() {
            return Ok(());
        }
        let delete = async |table: Arc<Table>| {
            self.cluster().delete_rows(&table, rows).await?;
            self.scans.reaper.come_back_to(&table, rows.clone());
            Ok(())
        };
        self.tables.on(table, TableKind::Versioned, delete).await
    }

    async fn get_atomic(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>> {
        self.cluster().check_open()?;
        if cells.is_empty() {
            return Ok(Vec::new());
        }
        let get = async |table: Arc<Table>| self.cluster().get_atomic(&table, cells).await;
        self.tables.on(table, TableKind::Atomic, get).await
    }

    fn scan_atomic(&self, table: &TableRef, request: AtomicScan) -> ResultStream<(Cell, Bytes)> {
        self.scans.scan_atomic(table.clone(), request)
    }

    async fn put_unless_exists(&self, table: &TableRef, cell: &Cell, value: Bytes) -> Result<PutUnlessExists> {
        Ok(match self.check_and_set(table, cell, None, Some(value)).await? {
            CheckAndSet::Applied => PutUnlessExists::Written,
            CheckAndSet::Mismatch(Some(standing)) => PutUnlessExists::Exists(standing),
            CheckAndSet::Mismatch(None) => {
                return Err(backend(
                    format!("{cell} of table '{table}' holds a value that the cluster does not tell"),
                    None,
                ));
            }
        })
    }

    async fn check_and_set(
        &self,
        table: &TableRef,
        cell: &Cell,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> Result<CheckAndSet> {
        self.cluster().check_open()?;
        match &new {
            Some(new) => self.check_value(cell, new)?,
            None => self.check_cell(cell)?,
        }
        let set = async |table: Arc<Table>| {
            self.cluster().check_and_set(&table, &self.turns, cell, expected.as_ref(), new.as_ref()).await
        };
        self.tables.on(table, TableKind::Atomic, set).await
    }

    async fn apply(&self, _batch: AtomicBatch, _durability: Durability) -> Result<()> {
        self.cluster().check_open()?;
        Err(KvsError::Unsupported { store: "cassandra", operation: "atomic batches" })
    }

    async fn availability(&self) -> Availability {
        self.cluster().availability().await
    }

    fn native_snapshot(&self) -> Option<&dyn NativeSnapshot> {
        None
    }

    fn node_store(&self) -> Option<&dyn NodeStore> {
        Some(self)
    }

    async fn reopen(&self) -> Result<()> {
        self.cluster().check_open()
    }

    async fn destroy(&self) -> Result<()> {
        self.cluster().drop_keyspace().await
    }

    async fn close(&self) -> Result<()> {
        self.cluster().check_open()?;
        self.cluster().close();
        Ok(())
    }
}

#[async_trait]
impl NodeStore for CassandraStore {
    async fn nodes(&self) -> Result<Vec<String>> {
        self.cluster().addresses()
    }

    async fn parts_of(&self, table: &TableRef) -> Result<Vec<String>> {
        let entry = self.cluster().ready_entry(&self.tables.catalog, table).await?;
        let entry = entry.ok_or_else(|| KvsError::NoSuchTable(table.clone()))?;
        Ok(vec![names::cells(table, entry.kind, entry.id), names::index(table, entry.id)])
    }
}
