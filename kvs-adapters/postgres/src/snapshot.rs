//! Snapshots as streams: binary `COPY` of every table, as one exported snapshot of the server shows them.
//!
//! ```text
//!   holder   lock tables ── export ── list them ────────────── finish
//!   reader            └────────┬── import ── COPY v_t TO ──┤
//!   reader                     └── import ── COPY v_u TO ──┤
//! ```
//!
//! TRUNCATE empties a table for snapshots from before it, too. So the holder locks all tables against that before it
//! has a snapshot, and begins again if there are others by then.
//!
//! A part is what COPY gave, and behind it the number of its bytes (8 bytes, big-endian): the server itself does not mind
//! if what it loads ends too early, provided it ends behind a row. The parts are named like the SQL tables; a large table is several, cut at blocks of the file it lies in, with a
//! number behind the name. A snapshot may be loaded into another namespace and another server.

use crate::catalog::{column, committed, description, uncommitted};
use crate::errors::{Attempt, Failure, Stakes, Trouble, explain, unavailable};
use crate::names::sql_name;
use crate::session::Server;
use crate::snapshot_catalog::{decode, encode};
use crate::store::PostgresStore;
use async_trait::async_trait;
use atlas_kvs::{
    KeyValueService, KvsError, OpenSnapshot, Result, ResultStream, SnapshotPart, StreamSnapshot, TableDescription,
    TableKind,
};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt, TryStreamExt, stream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, CopyInSink, CopyOutStream};

const CATALOG: &str = "tables";
/// Bytes of a table that are worth a part of their own, and how many parts a table has at most.
const PART_BYTES: i64 = 64 << 20;
const PARTS_MAX: i64 = 256;
/// The server gives rows, which are small; this many bytes of them are passed on at once.
const CHUNK_BYTES: usize = 256 << 10;
/// The number of bytes behind a part.
const LEN_BYTES: usize = 8;
/// Descriptions of tables; something that is given by mistake may be endless.
const CATALOG_BYTES_MAX: usize = 256 << 20;
/// Tables that come and go while a snapshot begins make it begin again.
const BEGINS_MAX: usize = 20;
/// The first server that reads a part of a table without reading all of it.
const RANGES_VERSION: i32 = 14_00_00;

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0; \
                     SET LOCAL idle_in_transaction_session_timeout = 0";

fn read_failed(error: tokio_postgres::Error) -> KvsError {
    told(explain(Failure::Answer(error), Stakes::Read))
}

fn told(trouble: Trouble) -> KvsError {
    let (Trouble::Final(error) | Trouble::Again(error)) = trouble;
    error
}

/// Where the rows of a part lie.
#[derive(Clone, Debug)]
enum Content {
    /// The descriptions themselves.
    Catalog(Bytes),
    /// A statement that gives them.
    Rows(String),
}

struct Exported {
    server: Arc<Server>,
    /// Its transaction keeps the snapshot and the tables.
    holder: Client,
    id: String,
    parts: Vec<SnapshotPart>,
    contents: Vec<Content>,
    over: Arc<AtomicBool>,
}

#[async_trait]
impl StreamSnapshot for PostgresStore {
    async fn estimated_bytes(&self) -> Result<u64> {
        let sql = "SELECT coalesce(sum(pg_table_size(c.oid)), 0)::int8 \
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname = $1::text AND c.relkind = 'r'";
        let server = &self.server;
        let bytes = server.attempts(|| async {
            let rows = server.read(sql, &[&server.names.schema()]).await?;
            rows.first().map_or(Ok(0), |row| column::<i64>(row, 0, "the statistics"))
        });
        Ok(u64::try_from(bytes.await?).unwrap_or(0))
    }

    async fn begin(&self) -> Result<Box<dyn OpenSnapshot>> {
        for _ in 0..BEGINS_MAX {
            if let Some(exported) = self.server.export().await? {
                return Ok(Box::new(exported));
            }
        }
        Err(unavailable("tables come and go, so there is no snapshot of them".to_owned(), None))
    }

    async fn load(&self, part: &str, mut content: ResultStream<Bytes>) -> Result<()> {
        if part != CATALOG {
            return self.server.load_rows(part, content).await;
        }
        let mut bytes = BytesMut::new();
        while let Some(more) = content.try_next().await? {
            if bytes.len() + more.len() > CATALOG_BYTES_MAX {
                return Err(KvsError::corrupt("the tables of a snapshot", "there is no end to them"));
            }
            bytes.extend_from_slice(&more);
        }
        for TableDescription { table, kind, metadata } in decode(&bytes.freeze())? {
            self.create_table(&table, kind, metadata).await?;
        }
        Ok(())
    }

    async fn finish_load(&self) -> Result<()> {
        let connection = self.server.own_connection().await?;
        let mut sql = "SET statement_timeout = 0".to_owned();
        for description in self.tables().await? {
            sql += &format!("; ANALYZE {}", self.server.names.table(&description.table, description.kind));
        }
        connection.batch_execute(&sql).await.map_err(read_failed)
    }
}

impl Server {
    /// Nothing if tables were made or dropped meanwhile.
    async fn export(self: &Arc<Server>) -> Result<Option<Exported>> {
        let expected = self.attempts(|| self.tables()).await?;
        let holder = self.own_connection().await?;
        holder.batch_execute(BEGIN).await.map_err(read_failed)?;
        let names: Vec<String> = expected.iter().map(|table| self.names.table(&table.table, table.kind)).collect();
        if !names.is_empty() {
            let sql = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
            match holder.batch_execute(&sql).await.map_err(Failure::Answer) {
                Ok(()) => {}
                Err(failure) if failure.misses_table() => return Ok(None),
                Err(failure) => return Err(told(explain(failure, Stakes::Read))),
            }
        }
        let row = holder.query_one("SELECT pg_export_snapshot()", &[]).await.map_err(read_failed)?;
        let id: String = column(&row, 0, "the snapshot").map_err(told)?;
        let list = format!("SELECT name, kind, metadata FROM {} ORDER BY name", self.names.quoted("tables"));
        let rows = holder.query(&list, &[]).await.map_err(read_failed)?;
        let tables = rows.iter().map(description).collect::<Attempt<Vec<_>>>().map_err(told)?;
        // Their metadata may have changed, but not which they are.
        let same = |a: &TableDescription, b: &TableDescription| (&a.table, a.kind) == (&b.table, b.kind);
        if tables.len() != expected.len() || !tables.iter().zip(&expected).all(|(a, b)| same(a, b)) {
            return Ok(None);
        }
        let (parts, contents) = self.parts(&holder, &tables).await?;
        Ok(Some(Exported { server: Arc::clone(self), holder, id, parts, contents, over: Arc::default() }))
    }

    /// The descriptions first, and then the largest.
    async fn parts(&self, holder: &Client, tables: &[TableDescription]) -> Result<(Vec<SnapshotPart>, Vec<Content>)> {
        let sql = "SELECT pg_table_size(c.oid), pg_relation_size(c.oid) / current_setting('block_size')::int8, \
                     current_setting('server_version_num')::int4 \
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname = $1::text AND c.relname = $2::text";
        let mut found = Vec::new();
        for TableDescription { table, kind, .. } in tables {
            let sql_name = sql_name(table, *kind);
            let row = holder.query_one(sql, &[&self.names.schema(), &sql_name]).await.map_err(read_failed)?;
            let number = |place| column::<i64>(&row, place, "the statistics").map_err(told);
            let (bytes, blocks) = (number(0)?, number(1)?);
            let version: i32 = column(&row, 2, "the server").map_err(told)?;
            let count =
                if version < RANGES_VERSION { 1 } else { (bytes / PART_BYTES).clamp(1, PARTS_MAX.min(blocks.max(1))) };
            let estimated_bytes = u64::try_from(bytes / count).unwrap_or(0);
            let (name, columns) = (self.names.table(table, *kind), columns(*kind));
            if count == 1 {
                let part = SnapshotPart { name: sql_name, estimated_bytes };
                found.push((part, Content::Rows(format!("COPY {name} ({columns}) TO STDOUT BINARY"))));
                continue;
            }
            for number in 0..count {
                // What was added behind the last block belongs to the last part, which has no end.
                let bound = |number: i64| format!("'({},0)'::tid", blocks * number / count);
                let end = if number + 1 < count { format!(" AND ctid < {}", bound(number + 1)) } else { String::new() };
                let rows = format!("SELECT {columns} FROM {name} WHERE ctid >= {}{end}", bound(number));
                let part = SnapshotPart { name: format!("{sql_name}.{number:04}"), estimated_bytes };
                found.push((part, Content::Rows(format!("COPY ({rows}) TO STDOUT BINARY"))));
            }
        }
        found.sort_by(|a, b| (b.0.estimated_bytes, &a.0.name).cmp(&(a.0.estimated_bytes, &b.0.name)));
        let catalog = encode(tables);
        let first = SnapshotPart { name: CATALOG.to_owned(), estimated_bytes: catalog.len() as u64 };
        found.insert(0, (first, Content::Catalog(catalog)));
        Ok(found.into_iter().unzip())
    }

    async fn load_rows(&self, part: &str, mut content: ResultStream<Bytes>) -> Result<()> {
        let stem = part.split_once('.').map_or(part, |(stem, _)| stem);
        let sql = format!("SELECT kind FROM {} WHERE sql_name = $1::text", self.names.quoted("tables"));
        let rows = self.attempts(async || self.read(&sql, &[&stem]).await).await?;
        let kind = rows.first().map(|row| crate::catalog::kind(row, 0)).transpose().map_err(told)?;
        let kind = kind.ok_or_else(|| KvsError::Backend {
            reason: format!("part '{part}' is of no table that is here; part '{CATALOG}' comes first"),
            source: None,
        })?;
        let connection = self.own_connection().await?;
        let wrong = |error: tokio_postgres::Error| load_failed(part, error, uncommitted);
        connection.batch_execute("BEGIN; SET LOCAL statement_timeout = 0").await.map_err(wrong)?;
        // The transaction is not idle while content is waited for: the server waits for the rest of a statement.
        let copy = format!("COPY {} ({}) FROM STDIN BINARY", self.names.quoted(stem), columns(kind));
        let mut sink: Pin<Box<CopyInSink<Bytes>>> = Box::pin(connection.copy_in(&copy).await.map_err(wrong)?);
        let (mut held, mut len) = (BytesMut::new(), 0_u64);
        while let Some(bytes) = content.try_next().await? {
            held.extend_from_slice(&bytes);
            let ready = held.len().saturating_sub(LEN_BYTES);
            len += ready as u64;
            if ready > 0 {
                sink.send(held.split_to(ready).freeze()).await.map_err(wrong)?;
            }
        }
        if held[..] != len.to_be_bytes() {
            let place = format!("part '{part}' of a snapshot");
            return Err(KvsError::corrupt(place, "it does not end with the number of its bytes".to_owned()));
        }
        sink.as_mut().finish().await.map_err(wrong)?;
        connection.batch_execute("COMMIT").await.map_err(|error| load_failed(part, error, committed))
    }
}

fn load_failed(part: &str, error: tokio_postgres::Error, explain: impl Fn(Failure) -> Trouble) -> KvsError {
    let reason = |db: &tokio_postgres::error::DbError| format!("{} ({})", db.message(), db.code().code());
    match error.as_db_error() {
        Some(db) if *db.code() == SqlState::UNIQUE_VIOLATION => {
            let reason = format!("part '{part}' of a snapshot holds what is here already: the store is not empty");
            KvsError::Backend { reason, source: Some(error.into()) }
        }
        // Bad data, missing values.
        Some(db) if db.code().code().starts_with("22") || *db.code() == SqlState::NOT_NULL_VIOLATION => {
            KvsError::corrupt(format!("part '{part}' of a snapshot"), reason(db))
        }
        _ => told(explain(Failure::Answer(error))),
    }
}

fn columns(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Versioned => "\"row\", col, ts, val",
        TableKind::Atomic => "\"row\", col, val",
    }
}

#[async_trait]
impl OpenSnapshot for Exported {
    fn parts(&self) -> &[SnapshotPart] {
        &self.parts
    }

    fn read(&self, part: usize) -> ResultStream<Bytes> {
        let over = Arc::clone(&self.over);
        let copy = match self.contents.get(part) {
            Some(Content::Catalog(bytes)) => {
                let whole = bytes.clone();
                return stream::once(async move { still_open(&over).map(|()| whole) }).boxed();
            }
            Some(Content::Rows(copy)) => copy.clone(),
            None => {
                let reason = format!("a snapshot of {} parts has none of number {part}", self.parts.len());
                return stream::iter([Err(KvsError::Backend { reason, source: None })]).boxed();
            }
        };
        let (server, id) = (Arc::clone(&self.server), self.id.clone());
        let begun = async move {
            still_open(&over)?;
            let connection = server.own_connection().await?;
            // The identifier is the server's own: digits and dashes.
            let sql = format!("{BEGIN}; SET TRANSACTION SNAPSHOT '{id}'");
            connection.batch_execute(&sql).await.map_err(read_failed)?;
            let rows = Box::pin(connection.copy_out(&copy).await.map_err(read_failed)?);
            Ok(Copying { connection, rows, over, len: 0 })
        };
        let chunks = |copying: Copying| {
            stream::try_unfold(Some(copying), |state| async move {
                match state {
                    Some(copying) => copying.chunk().await,
                    None => Ok(None),
                }
            })
        };
        stream::once(begun).map_ok(chunks).try_flatten().boxed()
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        self.over.store(true, Ordering::SeqCst);
        // Whoever answers has held the snapshot and the tables all the time.
        self.holder.batch_execute("COMMIT").await.map_err(read_failed)
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

fn still_open(over: &AtomicBool) -> Result<()> {
    match over.load(Ordering::SeqCst) {
        false => Ok(()),
        true => Err(KvsError::Backend { reason: "the snapshot has ended".to_owned(), source: None }),
    }
}

/// A part that is being read.
struct Copying {
    connection: Client,
    rows: Pin<Box<CopyOutStream>>,
    over: Arc<AtomicBool>,
    /// Bytes so far.
    len: u64,
}

impl Copying {
    /// The next rows, and what is left, if there can be more.
    async fn chunk(mut self) -> Result<Option<(Bytes, Option<Copying>)>> {
        let mut chunk = BytesMut::new();
        while chunk.len() < CHUNK_BYTES {
            let row = self.rows.next().await.transpose().map_err(read_failed)?;
            still_open(&self.over)?;
            let Some(row) = row else {
                // The part is whole only if the server says so.
                self.connection.batch_execute("COMMIT").await.map_err(read_failed)?;
                chunk.put_u64(self.len);
                return Ok(Some((chunk.freeze(), None)));
            };
            self.len += row.len() as u64;
            if chunk.is_empty() && row.len() >= CHUNK_BYTES {
                return Ok(Some((row, Some(self))));
            }
            chunk.extend_from_slice(&row);
        }
        Ok(Some((chunk.freeze(), Some(self))))
    }
}
