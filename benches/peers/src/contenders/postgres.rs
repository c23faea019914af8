//! Postgres by its own transactions, through tokio-postgres.
//!
//! Statements are prepared, and go together where the next does not need the answer of the last: a transfer takes two
//! round trips, begin and both reads, both writes and the commit.

use super::{Contender, Name, Sum, atlas};
use crate::drive::{Attempt, Client as Works, Performed, tasks};
use crate::measure::Work;
use crate::shared::accounts::key;
use crate::shared::server::variable;
pub(crate) use crate::shared::server::{connect, server};
use crate::workload::{Job, Operation};
use ::atlas::config::PostgresKvs;
use anyhow::{Context, Result};
use std::pin::pin;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Statement};

/// True if the environment names a server, as `scripts/with-postgres` does.
pub(crate) fn is_there() -> bool {
    variable("PGHOST").is_some() || variable("PGPORT").is_some()
}

pub(crate) async fn drop_schema(server: &PostgresKvs, schema: &str) -> Result<()> {
    let sql = format!("DROP SCHEMA IF EXISTS \"{schema}\" CASCADE");
    Ok(connect(server).await?.batch_execute(&sql).await?)
}

/// The server's version and whether it syncs at all.
pub(crate) async fn about() -> Result<(String, String)> {
    let client = connect(&server()).await?;
    let row = client.query_one("SELECT current_setting('server_version'), current_setting('fsync')", &[]).await?;
    Ok((row.get(0), row.get(1)))
}

/// Asks the server what it did.
pub(crate) struct Watcher {
    client: Client,
}

impl Watcher {
    pub(crate) async fn open(server: &PostgresKvs) -> Result<Watcher> {
        Ok(Watcher { client: connect(server).await? })
    }

    /// How often the server has synced its log.
    pub(crate) async fn syncs(&self) -> Result<u64> {
        let row = self.client.query_one("SELECT wal_sync FROM pg_stat_wal", &[]).await?;
        Ok(u64::try_from(row.get::<_, i64>(0))?)
    }
}

pub(crate) struct Store {
    runtime: Runtime,
    watcher: Watcher,
    sessions: Vec<Arc<Session>>,
    table: String,
}

impl Store {
    pub(crate) fn open(name: Name, sync: bool, clients_max: usize) -> Result<Store> {
        let (isolation, schema) = match name {
            Name::PostgresSerializable => ("serializable", "bench_own_serializable"),
            _ => ("repeatable read", "bench_own"),
        };
        let runtime = atlas::runtime()?;
        let table = format!("{schema}.accounts");
        let (watcher, sessions) = runtime.block_on(async {
            let server = server();
            drop_schema(&server, schema).await?;
            let sql =
                format!("CREATE SCHEMA {schema}; CREATE TABLE {table} (id bytea PRIMARY KEY, value bytea NOT NULL)");
            connect(&server).await?.batch_execute(&sql).await?;
            let mut sessions = Vec::new();
            for _ in 0..clients_max {
                sessions.push(Arc::new(Session::open(&server, &table, isolation, sync).await?));
            }
            anyhow::Ok((Watcher::open(&server).await?, sessions))
        })?;
        Ok(Store { runtime, watcher, sessions, table })
    }
}

struct Session {
    client: Client,
    read: Statement,
    read_many: Statement,
    scan: Statement,
    update: Statement,
    put: Statement,
    copy: String,
}

impl Session {
    async fn open(server: &PostgresKvs, table: &str, isolation: &str, sync: bool) -> Result<Session> {
        let client = connect(server).await?;
        let commit = if sync { "on" } else { "off" };
        client
            .batch_execute(&format!(
                "SET synchronous_commit = {commit}; SET default_transaction_isolation = '{isolation}'"
            ))
            .await?;
        Ok(Session {
            read: client.prepare(&format!("SELECT value FROM {table} WHERE id = $1")).await?,
            read_many: client.prepare(&format!("SELECT value FROM {table} WHERE id = ANY($1)")).await?,
            scan: client.prepare(&format!("SELECT id, value FROM {table} WHERE id >= $1 ORDER BY id LIMIT $2")).await?,
            update: client.prepare(&format!("UPDATE {table} SET value = $2 WHERE id = $1")).await?,
            put: client
                .prepare(&format!(
                    "INSERT INTO {table} VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET value = excluded.value"
                ))
                .await?,
            copy: format!("COPY {table} (id, value) FROM STDIN (FORMAT binary)"),
            client,
        })
    }

    /// Tells a conflict from what is wrong.
    async fn attempt(&self, operation: &Operation) -> Result<Attempt> {
        let error = match self.transact(operation).await {
            Ok(missing) => return Ok(Attempt::Done { missing }),
            Err(error) => error,
        };
        let state = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
        if state == Some(&SqlState::T_R_SERIALIZATION_FAILURE) || state == Some(&SqlState::T_R_DEADLOCK_DETECTED) {
            // What was sent behind the statement that failed may have ended the transaction: then it only warns.
            self.client.batch_execute("ROLLBACK").await?;
            return Ok(Attempt::Conflict);
        }
        Err(error)
    }

    async fn transact(&self, operation: &Operation) -> Result<u64> {
        let client = &self.client;
        let read = async |id: &[u8]| client.query_opt(&self.read, &[&id]).await;
        let update = async |id: &[u8], value: &[u8]| client.execute(&self.update, &[&id, &value]).await;
        match operation {
            Operation::Transfer(transfer) => {
                let (from, to) = (&key(transfer.from)[..], &key(transfer.to)[..]);
                let begin = client.batch_execute("BEGIN");
                let ((), from_row, to_row) = futures::try_join!(begin, read(from), read(to))?;
                let (from_row, to_row) = from_row.zip(to_row).context("an account is gone")?;
                let (from_value, to_value) = transfer.apply(from_row.get(0), to_row.get(0))?;
                let commit = client.batch_execute("COMMIT");
                futures::try_join!(update(from, &from_value), update(to, &to_value), commit)?;
                Ok(0)
            }
            Operation::Read(account) => Ok(u64::from(read(&key(*account)).await?.is_none())),
            Operation::MultiGet(accounts) => {
                let distinct: std::collections::BTreeSet<_> = accounts.iter().map(|account| key(*account)).collect();
                let ids: Vec<&[u8]> = distinct.iter().map(|key| &key[..]).collect();
                let rows = client.query(&self.read_many, &[&ids]).await?;
                Ok((ids.len() - rows.len()) as u64)
            }
            Operation::Scan { first, rows } => {
                let found = client.query(&self.scan, &[&&key(*first)[..], &i64::try_from(*rows)?]).await?;
                Ok((rows - found.len()) as u64)
            }
            Operation::Put { account, value } => {
                client.execute(&self.put, &[&&key(*account)[..], value]).await?;
                Ok(0)
            }
            Operation::ReadModifyWrite { account, value } => {
                let id = &key(*account)[..];
                let ((), row) = futures::try_join!(client.batch_execute("BEGIN"), read(id))?;
                futures::try_join!(update(id, value), client.batch_execute("COMMIT"))?;
                Ok(u64::from(row.is_none()))
            }
            Operation::PutMany { first, values } => {
                let rows = client.copy_in(&self.copy).await?;
                let mut rows = pin!(BinaryCopyInWriter::new(rows, &[Type::BYTEA, Type::BYTEA]));
                for (account, value) in (*first..).zip(values) {
                    rows.as_mut().write(&[&&key(account)[..], value]).await?;
                }
                rows.finish().await?;
                Ok(0)
            }
        }
    }
}

impl Works for Arc<Session> {
    async fn perform(&self, operation: Operation) -> Result<Performed> {
        let mut retries = 0;
        loop {
            match self.attempt(&operation).await? {
                Attempt::Done { missing } => return Ok(Performed { retries, missing }),
                Attempt::Conflict => retries += 1,
            }
        }
    }
}

impl Contender for Store {
    fn run(&self, job: &Arc<Job>, clients: usize, seed: u64) -> Result<Work> {
        tasks(&self.runtime, self.sessions.iter().take(clients).cloned(), job, seed)
    }

    fn syncs(&self) -> Result<u64> {
        self.runtime.block_on(self.watcher.syncs())
    }

    fn sum(&self) -> Result<Sum> {
        let sql = format!("SELECT value FROM {}", self.table);
        let rows = self.runtime.block_on(self.watcher.client.query(&sql, &[]))?;
        let mut sum = Sum::default();
        for row in rows {
            sum.add(row.get(0))?;
        }
        Ok(sum)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
