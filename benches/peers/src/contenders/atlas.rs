//! atlas, on RocksDB and on Postgres.

use super::{CACHE_BYTES, Contender, Name, Sum, postgres};
use crate::drive::{Client, Performed, tasks};
use crate::measure::{Work, own_syncs};
use crate::shared::accounts::key;
use crate::workload::{Job, Operation};
use anyhow::Result;
use atlas::config::{AtlasConfig, ByteSize, KvsConfig, PostgresKvs};
use atlas::ops::{Operations, ScanOptions};
use atlas::schema::{ConflictHandler, TableSpec};
use atlas::transaction::{RunOptions, Transaction};
use atlas::{Atlas, Cell, RowRange, TableRef};
use bytes::Bytes;
use futures::TryStreamExt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

pub(crate) struct Store {
    runtime: Runtime,
    handle: Handle,
    /// Asks the server how often it synced.
    watcher: Option<postgres::Watcher>,
}

impl Store {
    pub(crate) fn in_directory(name: Name, directory: &Path, sync: bool) -> Result<Store> {
        let runtime = runtime()?;
        let config = on_rocksdb(directory, CACHE_BYTES, sync);
        let handle = runtime.block_on(Handle::open(config, handler(name)))?;
        Ok(Store { runtime, handle, watcher: None })
    }

    pub(crate) fn on_postgres(name: Name, sync: bool) -> Result<Store> {
        let runtime = runtime()?;
        // A schema of its own: both kinds may be open.
        let config = on_postgres(&format!("bench_{name:?}").to_lowercase(), sync);
        let (handle, watcher) = runtime.block_on(async {
            let server = postgres::server();
            postgres::drop_schema(&server, &schema(&config.namespace)).await?;
            let handle = Handle::open(config, handler(name)).await?;
            anyhow::Ok((handle, postgres::Watcher::open(&server).await?))
        })?;
        Ok(Store { runtime, handle, watcher: Some(watcher) })
    }
}

pub(crate) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// The configuration as it comes, but for the memory that all contenders have.
pub(crate) fn on_rocksdb(directory: &Path, cache_bytes: usize, sync: bool) -> AtlasConfig {
    let block_cache = ByteSize(cache_bytes as u64);
    AtlasConfig {
        key_value_service: KvsConfig::Rocksdb { data_dir: directory.to_owned(), block_cache, sync },
        ..AtlasConfig::default()
    }
}

pub(crate) fn on_postgres(namespace: &str, sync: bool) -> AtlasConfig {
    AtlasConfig {
        namespace: namespace.to_owned(),
        key_value_service: KvsConfig::Postgres(PostgresKvs { sync, ..postgres::server() }),
        ..AtlasConfig::default()
    }
}

/// Where the adapter keeps the tables of a namespace.
pub(crate) fn schema(namespace: &str) -> String {
    format!("atlas_{namespace}")
}

fn handler(name: Name) -> ConflictHandler {
    match name {
        Name::AtlasSerializable | Name::AtlasPostgresSerializable => ConflictHandler::Serializable,
        _ => ConflictHandler::default(),
    }
}

/// What a client holds.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) atlas: Atlas,
    pub(crate) table: TableRef,
}

impl Handle {
    pub(crate) async fn open(config: AtlasConfig, conflict_handler: ConflictHandler) -> Result<Handle> {
        let table = TableRef::new("accounts")?;
        let atlas = Atlas::open_unserved(config, Duration::from_secs(5)).await?;
        atlas.create_table(&table, &TableSpec { conflict_handler, ..TableSpec::default() }).await?;
        Ok(Handle { atlas, table })
    }

    /// Every cell, page by page.
    pub(crate) async fn sum(&self) -> Result<Sum> {
        let mut sum = Sum::default();
        let tx = self.atlas.begin().await?;
        let mut cells = tx.scan(&self.table, ScanOptions::default()).await?;
        while let Some((_, value)) = cells.try_next().await? {
            sum.add(&value)?;
        }
        Ok(sum)
    }
}

pub(crate) fn cell(account: u64) -> Cell {
    Cell::copy_from(key(account), "b")
}

impl Client for Handle {
    async fn perform(&self, operation: Operation) -> Result<Performed> {
        let read_only = matches!(operation, Operation::Read(_) | Operation::MultiGet(_) | Operation::Scan { .. });
        // However often it loses, as all contenders do it.
        let options = RunOptions {
            read_only,
            attempts_max: Some(u32::MAX),
            timeout: Some(Duration::from_secs(60)),
            ..RunOptions::default()
        };
        // Owned here: a spawned task can't hold a closure that borrows (rust-lang/rust#110338).
        let table = self.table.clone();
        let work = async |tx| transact(&tx, &table, &operation).await;
        let outcome = self.atlas.run_with(options, work).await?;
        Ok(Performed { retries: u64::from(outcome.attempts - 1), missing: outcome.value })
    }
}

/// How many cells were not there.
async fn transact(tx: &Transaction, table: &TableRef, operation: &Operation) -> Result<u64> {
    match operation {
        Operation::Transfer(transfer) => {
            let cells = [cell(transfer.from), cell(transfer.to)];
            let values = tx.get_many(table, &cells).await?;
            let [Some(from), Some(to)] = &values[..] else { anyhow::bail!("an account is gone") };
            let (from_value, to_value) = transfer.apply(from, to)?;
            let [from, to] = cells;
            tx.put(table, from, from_value).await?;
            tx.put(table, to, to_value).await?;
            Ok(0)
        }
        Operation::Read(account) => Ok(u64::from(tx.get(table, &cell(*account)).await?.is_none())),
        Operation::MultiGet(accounts) => {
            let cells: Vec<_> = accounts.iter().map(|account| cell(*account)).collect();
            let values = tx.get_many(table, &cells).await?;
            Ok(values.iter().filter(|value| value.is_none()).count() as u64)
        }
        Operation::Scan { first, rows } => {
            let start = Bytes::copy_from_slice(&key(*first));
            let limit = Some(*rows as u64);
            let range = RowRange { start, end: None };
            let options = ScanOptions { rows: range, limit, ..ScanOptions::default() };
            let (mut found, mut bytes) = (0, 0);
            // As RocksDB's raw iterator does: the cells are lent, not given.
            tx.for_each(table, options, |cell| {
                bytes += cell.row.len() + cell.value.len();
                found += 1;
                ControlFlow::Continue(())
            })
            .await?;
            std::hint::black_box(bytes);
            Ok((rows - found) as u64)
        }
        Operation::Put { account, value } => {
            tx.put(table, cell(*account), value.clone()).await?;
            Ok(0)
        }
        Operation::ReadModifyWrite { account, value } => {
            let cell = cell(*account);
            let missing = tx.get(table, &cell).await?.is_none();
            tx.put(table, cell, value.clone()).await?;
            Ok(u64::from(missing))
        }
        Operation::PutMany { first, values } => {
            for (account, value) in (*first..).zip(values) {
                tx.put(table, cell(account), value.clone()).await?;
            }
            Ok(0)
        }
    }
}

impl Contender for Store {
    fn run(&self, job: &Arc<Job>, clients: usize, seed: u64) -> Result<Work> {
        tasks(&self.runtime, std::iter::repeat_n(self.handle.clone(), clients), job, seed)
    }

    fn syncs(&self) -> Result<u64> {
        match &self.watcher {
            Some(watcher) => self.runtime.block_on(watcher.syncs()),
            None => own_syncs(),
        }
    }

    fn sum(&self) -> Result<Sum> {
        self.runtime.block_on(self.handle.sum())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.runtime.block_on(self.handle.atlas.close())?)
    }
}
