//! Snapshots: what a namespace holds at one moment, read over several connections at once, and loaded back.
//!
//! One connection begins a transaction and exports its snapshot; others import it, so that all of them see the same
//! moment while writers go on. Each part is one `COPY` in the server's binary format, which is the same on all versions
//! and machines:
//!
//! ```text
//!   exporter   BEGIN ── LOCK … ACCESS SHARE ── pg_export_snapshot ─────────────────────────────── COMMIT
//!   reader 1                                   └── SET TRANSACTION SNAPSHOT ── COPY t1, blocks 0 to 9999
//!   reader 2                                   └── SET TRANSACTION SNAPSHOT ── COPY t1, blocks 10000 and up
//!
//!   part 00000   "ATLASPGC" │ for each table: kind (1) │ name │ metadata         lengths in 4 bytes, big-endian
//!   others       "ATLASPGD" │ kind (1) │ name │ what COPY gave │ "ATLASPGE"
//! ```
//!
//! The locks keep away what no snapshot protects from: `TRUNCATE`, and a rewrite that moves rows to other blocks.
//! While a snapshot is open the server keeps every row version of all its databases, so it should not be open for days.

use crate::catalog::{column, committed, description, uncommitted};
use crate::errors::{Answer, Attempt, Failure, Stakes, Trouble, explain};
use crate::session::{Server, Session};
use async_trait::async_trait;
use atlas_kvs::{
    KvsError, OpenSnapshot, Result, ResultStream, SnapshotPart, StreamSnapshot, TableDescription, TableKind, TableRef,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt, TryStreamExt};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_postgres::error::SqlState;

const CATALOG: &[u8; 8] = b"ATLASPGC";
const DATA: &[u8; 8] = b"ATLASPGD";
/// Without it a part was cut off: the server takes the end of a row for the end of all.
const END: &[u8; 8] = b"ATLASPGE";

/// Longest catalog, and longest name or metadata in it, in bytes: what is longer is none of ours.
const CATALOG_LEN_MAX: usize = 256 << 20;

/// How many parts are copied at a time, if the pool has so many connections to spare.
const PARALLEL_MAX: usize = 8;

/// Connections of the pool that are left to others.
const SPARED: usize = 2;

/// Rows are gathered until they are so many bytes: the server sends them one by one.
const CHUNK_LEN: usize = 128 << 10;

/// How long a copy may stand still. Longer than a statement may take, because a checkpoint may stop everything.
const STANDSTILL: Duration = Duration::from_secs(300);

/// Servers before this one look for rows by their place only by reading the whole table.
const RANGES_FROM_VERSION: i32 = 140_000;

/// Gives and takes the snapshots of a server.
pub(crate) struct Snapshots {
    server: Arc<Server>,
    // So that nobody waits in vain for a connection that another part holds for hours.
    copies: Arc<Semaphore>,
}

/// A table, and the place of its rows.
struct Sized {
    table: TableDescription,
    bytes: u64,
    blocks: u64,
}

/// Rows in these blocks of a table; `None`: up to the last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    table: TableRef,
    kind: TableKind,
    from: u64,
    until: Option<u64>,
}

struct Snapshot {
    server: Arc<Server>,
    copies: Arc<Semaphore>,
    exporter: tokio::sync::Mutex<Session>,
    id: String,
    parts: Vec<SnapshotPart>,
    catalog: Bytes,
    ranges: Vec<Range>,
}

impl Snapshots {
    pub(crate) fn new(server: Arc<Server>) -> Snapshots {
        let parallel = server.config.pool_size.saturating_sub(SPARED).clamp(1, PARALLEL_MAX);
        Snapshots { server, copies: Arc::new(Semaphore::new(parallel)) }
    }

    async fn export(&self) -> Attempt<Snapshot> {
        let server = &self.server;
        if server.config.pool_size < 2 {
            return Err(KvsError::Backend {
                reason: "a snapshot needs two connections, and the pool has one".to_owned(),
                source: None,
            }
            .into());
        }
        let known = server.tables().await?;
        let mut exporter = server.session().await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        exporter.begin_with(begin).await.map_err(|failure| explain(failure, Stakes::Read))?;
        if !known.is_empty() {
            let names: Vec<String> = known.iter().map(|table| server.names.table(&table.table, table.kind)).collect();
            // With the session's time-out: it may have to wait for somebody.
            let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
            exporter.batch(&lock).await.map_err(again_if_dropped)?;
        }
        exporter.batch(NO_TIMEOUT).await.map_err(|failure| explain(failure, Stakes::Read))?;
        let read = |failure| explain(failure, Stakes::Read);
        let rows = exporter.query("SELECT pg_export_snapshot(), current_setting('server_version_num')::int4", &[]);
        let rows = rows.await.map_err(read)?;
        let row = rows.first().ok_or_else(|| KvsError::corrupt("the server", "it exported no snapshot"))?;
        let (id, version): (String, i32) = (column(row, 0, "the snapshot")?, column(row, 1, "the snapshot")?);
        if !id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            return Err(KvsError::corrupt("the server", "the name of a snapshot is none").into());
        }
        let tables = sized(server, &mut exporter).await?;
        if tables.iter().map(|found| &found.table).ne(&known) {
            // Created or dropped before the snapshot was exported: those would not be locked.
            return Err(Trouble::Again(KvsError::Unavailable {
                reason: "others create and drop tables".to_owned(),
                source: None,
            }));
        }
        let part_bytes =
            if version >= RANGES_FROM_VERSION { server.config.snapshot_part_bytes.max(1) } else { u64::MAX };
        let (parts, ranges) = cut(&tables, part_bytes);
        let catalog = encode_catalog(&tables);
        Ok(Snapshot {
            server: Arc::clone(server),
            copies: Arc::clone(&self.copies),
            exporter: tokio::sync::Mutex::new(exporter),
            id,
            parts,
            catalog,
            ranges,
        })
    }

    async fn load_data(&self, head: Head, content: ResultStream<Bytes>) -> Result<()> {
        let Head { table, kind, rest } = head;
        let _permit = self.copies.acquire().await.map_err(|_| KvsError::Closed)?;
        let mut session = self.server.session().await.map_err(error)?;
        session.begin().await.map_err(|failure| error(uncommitted(failure)))?;
        session.batch(NO_TIMEOUT).await.map_err(|failure| error(uncommitted(failure)))?;
        let sql =
            format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.server.names.table(&table, kind), columns(kind));
        let sink = match session.copy_in(&sql).await {
            Ok(sink) => sink,
            Err(failure) if failure.misses_table() => return Err(KvsError::NoSuchTable(table)),
            Err(failure) => return Err(error(uncommitted(failure))),
        };
        let mut sink = pin!(sink);
        let mut content = futures::stream::once(async { Ok(rest) }).chain(content).boxed();
        // Held back until it is known whether it is the end.
        let mut last = BytesMut::new();
        while let Some(chunk) = content.next().await {
            last.extend_from_slice(&chunk?);
            let rows = last.split_to(last.len().saturating_sub(END.len())).freeze();
            moving(sink.send(rows)).await.map_err(|failure| refused_rows(failure, &table))?;
        }
        if last != END[..] {
            return Err(no_part("it is cut off"));
        }
        moving(sink.finish()).await.map_err(|failure| refused_rows(failure, &table))?;
        session.copied();
        session.commit().await.map_err(|failure| error(committed(failure)))
    }
}

const NO_TIMEOUT: &str = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";

fn error(trouble: Trouble) -> KvsError {
    let (Trouble::Final(error) | Trouble::Again(error)) = trouble;
    error
}

fn again_if_dropped(failure: Failure) -> Trouble {
    let dropped = failure.misses_table();
    match explain(failure, Stakes::Read) {
        Trouble::Final(error) if dropped => Trouble::Again(error),
        trouble => trouble,
    }
}

/// What the server says of rows that it never gave so itself.
fn refused_rows(failure: Failure, table: &TableRef) -> KvsError {
    let states = [
        SqlState::BAD_COPY_FILE_FORMAT,
        SqlState::INVALID_BINARY_REPRESENTATION,
        SqlState::UNIQUE_VIOLATION,
        SqlState::NOT_NULL_VIOLATION,
        SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        SqlState::PROGRAM_LIMIT_EXCEEDED,
        SqlState::PROTOCOL_VIOLATION,
    ];
    if states.iter().any(|state| failure.is(state)) {
        let said = failure.db_error().map(|error| error.message().to_owned()).unwrap_or_default();
        return KvsError::corrupt(format!("the rows of table '{table}'"), said);
    }
    error(uncommitted(failure))
}

/// Waits for one step of a copy, but not for ever.
async fn moving<T>(step: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>) -> Answer<T> {
    match tokio::time::timeout(STANDSTILL, step).await {
        Ok(answer) => answer.map_err(Failure::Answer),
        Err(_) => Err(Failure::Silence(STANDSTILL)),
    }
}

fn columns(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Versioned => "\"row\", col, ts, val",
        TableKind::Atomic => "\"row\", col, val",
    }
}

/// All tables as the session sees them, in the order of their names, and how large they are now.
async fn sized(server: &Server, session: &mut Session) -> Attempt<Vec<Sized>> {
    let sql = format!(
        "SELECT t.name, t.kind, t.metadata, coalesce(pg_table_size(c.oid), 0), \
                coalesce(pg_relation_size(c.oid) / current_setting('block_size')::int8, 0) \
         FROM {} t JOIN pg_namespace n ON n.nspname = $1::text \
              JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.sql_name ORDER BY t.name",
        server.names.quoted("tables")
    );
    let rows =
        session.query(&sql, &[&server.names.schema()]).await.map_err(|failure| explain(failure, Stakes::Read))?;
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    rows.iter()
        .map(|row| {
            let (bytes, blocks) = (column(row, 3, "the statistics")?, column(row, 4, "the statistics")?);
            Ok(Sized { table: description(row)?, bytes: number(bytes), blocks: number(blocks) })
        })
        .collect()
}

/// Cuts tables into parts of about `part_bytes`, behind the catalog, which is the first.
fn cut(tables: &[Sized], part_bytes: u64) -> (Vec<SnapshotPart>, Vec<Range>) {
    let mut parts = vec![SnapshotPart { name: "00000".to_owned(), estimated_bytes: 64 * tables.len() as u64 }];
    let mut ranges = Vec::new();
    for Sized { table, bytes, blocks } in tables {
        let count = bytes.div_ceil(part_bytes).clamp(1, (*blocks).max(1));
        let step = blocks.div_ceil(count).max(1);
        let mut from = 0;
        loop {
            // The last is open: rows may have been added behind since the table was measured.
            let until = Some(from + step).filter(|until| until < blocks);
            parts.push(SnapshotPart { name: format!("{:05}", parts.len()), estimated_bytes: bytes / count });
            ranges.push(Range { table: table.table.clone(), kind: table.kind, from, until });
            match until {
                Some(until) => from = until,
                None => break,
            }
        }
    }
    (parts, ranges)
}

fn encode_catalog(tables: &[Sized]) -> Bytes {
    let mut bytes = BytesMut::from(&CATALOG[..]);
    for Sized { table, .. } in tables {
        bytes.put_u8(kind_byte(table.kind));
        for text in [table.table.name().as_bytes(), &table.metadata] {
            bytes.put_u32(text.len() as u32);
            bytes.put_slice(text);
        }
    }
    bytes.freeze()
}

fn decode_catalog(mut bytes: Bytes) -> Result<Vec<TableDescription>> {
    let mut tables = Vec::new();
    while !bytes.is_empty() {
        let kind = kind_of(bytes.get_u8())?;
        let table = TableRef::new(text(take(&mut bytes)?)?)?;
        tables.push(TableDescription { table, kind, metadata: take(&mut bytes)? });
    }
    Ok(tables)
}

/// The next bytes that say their own length.
fn take(bytes: &mut Bytes) -> Result<Bytes> {
    let len = if bytes.len() < 4 { usize::MAX } else { bytes.get_u32() as usize };
    if len > bytes.len() {
        return Err(no_part("it is cut off"));
    }
    Ok(bytes.split_to(len))
}

fn text(bytes: Bytes) -> Result<String> {
    String::from_utf8(bytes.into()).map_err(|_| no_part("a name is no text"))
}

fn kind_byte(kind: TableKind) -> u8 {
    match kind {
        TableKind::Versioned => b'v',
        TableKind::Atomic => b'a',
    }
}

fn kind_of(byte: u8) -> Result<TableKind> {
    match byte {
        b'v' => Ok(TableKind::Versioned),
        b'a' => Ok(TableKind::Atomic),
        _ => Err(no_part("a kind of table is none")),
    }
}

fn no_part(reason: &str) -> KvsError {
    KvsError::corrupt("a part of a snapshot", reason)
}

/// What stands before the rows of a part.
struct Head {
    table: TableRef,
    kind: TableKind,
    /// Rows that came along with it.
    rest: Bytes,
}

impl Head {
    fn encode(range: &Range) -> Bytes {
        let name = range.table.name();
        let mut bytes = BytesMut::from(&DATA[..]);
        bytes.put_u8(kind_byte(range.kind));
        bytes.put_u32(name.len() as u32);
        bytes.put_slice(name.as_bytes());
        bytes.freeze()
    }

    /// Of the bytes behind the preamble; reads on until the name is whole.
    async fn read(mut bytes: BytesMut, content: &mut ResultStream<Bytes>) -> Result<Head> {
        const FIXED: usize = 5;
        fill(&mut bytes, FIXED, content).await?;
        let kind = kind_of(bytes.get_u8())?;
        let len = bytes.get_u32() as usize;
        if len > TableRef::MAX_LEN {
            return Err(no_part("a name is longer than names are"));
        }
        fill(&mut bytes, len, content).await?;
        let table = TableRef::new(text(bytes.split_to(len).freeze())?)?;
        Ok(Head { table, kind, rest: bytes.freeze() })
    }
}

/// Reads on until there are at least `len` bytes.
async fn fill(bytes: &mut BytesMut, len: usize, content: &mut ResultStream<Bytes>) -> Result<()> {
    while bytes.len() < len {
        let chunk = content.try_next().await?.ok_or_else(|| no_part("it is cut off"))?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(())
}

#[async_trait]
impl StreamSnapshot for Snapshots {
    async fn estimated_bytes(&self) -> Result<u64> {
        let server = &self.server;
        server
            .attempts(|| async {
                let mut session = server.session().await?;
                let tables = sized(server, &mut session).await?;
                Ok(tables.iter().fold(0, |sum: u64, table| sum.saturating_add(table.bytes)))
            })
            .await
    }

    async fn begin(&self) -> Result<Box<dyn OpenSnapshot>> {
        self.server.check_open()?;
        Ok(Box::new(self.server.attempts(|| self.export()).await?))
    }

    async fn load(&self, _part: &str, mut content: ResultStream<Bytes>) -> Result<()> {
        self.server.check_open()?;
        let mut bytes = BytesMut::new();
        fill(&mut bytes, CATALOG.len(), &mut content).await?;
        let preamble = bytes.split_to(CATALOG.len());
        if preamble == DATA[..] {
            let head = Head::read(bytes, &mut content).await?;
            return self.load_data(head, content).await;
        }
        if preamble != CATALOG[..] {
            return Err(no_part("it does not begin as one does"));
        }
        while let Some(chunk) = content.try_next().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > CATALOG_LEN_MAX {
                return Err(no_part("the catalog is longer than any"));
            }
        }
        for TableDescription { table, kind, metadata } in decode_catalog(bytes.freeze())? {
            self.server.attempts(|| self.server.create_table(&table, kind, &metadata)).await?;
            // One that is there, as the caller's own may be, gets what the snapshot says.
            self.server.attempts(|| self.server.put_table_metadata(&table, &metadata)).await?;
        }
        Ok(())
    }

    /// Statistics: without them the server would have to guess until it collects them by itself.
    async fn finish_load(&self) -> Result<()> {
        let server = &self.server;
        for table in server.attempts(|| server.tables()).await? {
            let analyze = format!("{NO_TIMEOUT}; ANALYZE {}", server.names.table(&table.table, table.kind));
            server
                .attempts(|| async {
                    let mut session = server.session().await?;
                    session.begin().await.map_err(uncommitted)?;
                    session.unhurried(&analyze).await.map_err(uncommitted)?;
                    session.commit().await.map_err(uncommitted)
                })
                .await?;
        }
        Ok(())
    }
}

#[async_trait]
impl OpenSnapshot for Snapshot {
    fn parts(&self) -> &[SnapshotPart] {
        &self.parts
    }

    fn read(&self, part: usize) -> ResultStream<Bytes> {
        let Some(number) = part.checked_sub(1) else {
            let catalog = self.catalog.clone();
            return futures::stream::once(async { Ok(catalog) }).boxed();
        };
        let Some(range) = self.ranges.get(number).cloned() else {
            return futures::stream::once(async { Err(no_part("there is none of this number")) }).boxed();
        };
        rows(Arc::clone(&self.server), Arc::clone(&self.copies), self.id.clone(), range)
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        let mut exporter = self.exporter.lock().await;
        // A read-only transaction: if its end is not confirmed, nothing is lost but the proof that it lasted.
        exporter.commit().await.map_err(|failure| error(explain(failure, Stakes::Read)))
    }
}

/// The head of a part and its rows.
fn rows(server: Arc<Server>, copies: Arc<Semaphore>, snapshot: String, range: Range) -> ResultStream<Bytes> {
    async_stream::try_stream! {
        let _permit = copies.acquire().await.map_err(|_| KvsError::Closed)?;
        let read = |failure| error(explain(failure, Stakes::Read));
        let mut session = server.session().await.map_err(error)?;
        // Not tried again: a snapshot can't be imported once its exporter is gone.
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{snapshot}'; {NO_TIMEOUT}"
        );
        session.begin_with(&begin).await.map_err(read)?;
        let table = server.names.table(&range.table, range.kind);
        let end = range.until.map_or(String::new(), |until| format!(" AND ctid < '({until},0)'::tid"));
        let some = format!(
            "(SELECT {} FROM {table} WHERE ctid >= '({},0)'::tid{end})", columns(range.kind), range.from
        );
        let all = format!("{table} ({})", columns(range.kind));
        let what = if range.from == 0 && range.until.is_none() { all } else { some };
        let copy = session.copy_out(&format!("COPY {what} TO STDOUT (FORMAT binary)")).await.map_err(read)?;
        let mut copy = pin!(copy);
        let mut chunk = BytesMut::from(&Head::encode(&range)[..]);
        while let Some(row) = moving(async { copy.try_next().await }).await.map_err(read)? {
            if chunk.is_empty() && row.len() >= CHUNK_LEN {
                yield row;
                continue;
            }
            chunk.extend_from_slice(&row);
            if chunk.len() >= CHUNK_LEN {
                yield chunk.split().freeze();
            }
        }
        session.copied();
        session.commit().await.map_err(read)?;
        chunk.extend_from_slice(END);
        yield chunk.freeze();
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, bytes: u64, blocks: u64) -> Sized {
        let table = TableRef::new(name).expect("a name");
        let table = TableDescription { table, kind: TableKind::Versioned, metadata: Bytes::from_static(b"m") };
        Sized { table, bytes, blocks }
    }

    #[test]
    fn tables_are_cut_without_gaps_and_the_last_part_is_open() {
        for (bytes, blocks, expected) in [
            (0, 0, vec![(0, None)]),
            (100, 1, vec![(0, None)]),
            (100, 10, vec![(0, None)]),
            (101, 10, vec![(0, Some(5)), (5, None)]),
            (300, 10, vec![(0, Some(4)), (4, Some(8)), (8, None)]),
            // Large values lie elsewhere: few blocks, many bytes.
            (100_000, 2, vec![(0, Some(1)), (1, None)]),
        ] {
            let (parts, ranges) = cut(&[table("t", bytes, blocks)], 100);
            let found: Vec<_> = ranges.iter().map(|range| (range.from, range.until)).collect();
            assert_eq!(found, expected, "{bytes} bytes in {blocks} blocks");
            assert_eq!(parts.len(), ranges.len() + 1);
            assert!(parts.iter().all(|part| atlas_kvs::is_part_name(&part.name)));
        }
    }

    #[test]
    fn a_catalog_survives_its_encoding_and_any_other_bytes_are_damage() {
        let encoded = encode_catalog(&[table("a", 0, 0), table("B.c-d", 0, 0)]);
        let body = encoded.slice(CATALOG.len()..);
        let read = decode_catalog(body.clone()).expect("it was encoded");
        assert_eq!(read.iter().map(|table| table.table.name()).collect::<Vec<_>>(), ["a", "B.c-d"]);
        assert!(read.iter().all(|table| table.metadata == "m"));
        for cut in 1..body.len() {
            match decode_catalog(body.slice(..cut)) {
                Ok(read) => assert_eq!(read.len(), 1, "cut between the two"),
                Err(error) => assert!(matches!(error, KvsError::Corrupt { .. }), "{error}"),
            }
        }
        assert!(decode_catalog(Bytes::from_static(b"v\xff\xff\xff\xffabc")).is_err());
    }
}
