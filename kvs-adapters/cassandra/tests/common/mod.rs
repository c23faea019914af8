//! A cluster for tests, found by `ATLAS_CASSANDRA_CONTACT_POINTS`, and namespaces on it that go when their test ends.

#![allow(dead_code, reason = "each target uses a part")]

use atlas_kvs::{
    Cell, CellBound, CellTimestamps, KeyValueService, RowRange, Scan, TableKind, TableRef, Timestamp, Value,
};
use atlas_kvs_cassandra::{CassandraConfig, CassandraStore};
use bytes::Bytes;
use futures::TryStreamExt;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The connection that tests begin from.
///
/// Without a cluster the whole target ends here, and passes unless its lane is required: no test of it can say
/// anything.
pub(crate) fn config(namespace: &str) -> CassandraConfig {
    if std::env::var_os("ATLAS_CASSANDRA_CONTACT_POINTS").is_none_or(|points| points.is_empty()) {
        let lanes = std::env::var("ATLAS_REQUIRE_LANES").unwrap_or_default();
        let required = lanes.split([',', ' ']).any(|lane| lane == "cassandra");
        // Past the capturing of the test harness, which would swallow it.
        let mut out = std::io::stdout().lock();
        let unset = "ATLAS_CASSANDRA_CONTACT_POINTS is not set";
        let _ = match required {
            true => writeln!(out, "FAIL cassandra ({unset}, and the lane is required)"),
            false => writeln!(out, "SKIP cassandra ({unset}; run scripts/with-cassandra)"),
        };
        let _ = out.flush();
        // With the lock held: one test says so for all.
        std::process::exit(i32::from(required));
    }
    CassandraConfig::from_env(namespace).expect("the variables are fine")
}

/// A namespace of its own; its keyspace is removed in the end.
pub(crate) struct Namespace {
    pub(crate) config: CassandraConfig,
}

impl Namespace {
    pub(crate) fn new() -> Namespace {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Namespace::named(&format!("test_{}_{number}", std::process::id()))
    }

    pub(crate) fn named(name: &str) -> Namespace {
        Namespace { config: config(name) }
    }

    /// With other settings than the defaults.
    pub(crate) fn with(change: impl FnOnce(&mut CassandraConfig)) -> Namespace {
        let mut namespace = Namespace::new();
        change(&mut namespace.config);
        namespace
    }

    pub(crate) async fn open(&self) -> CassandraStore {
        CassandraStore::connect(self.config.clone()).await.expect("the cluster can be reached")
    }
}

/// How often the removal of what a test made is tried.
const CLEANING_ATTEMPTS: u32 = 20;

impl Drop for Namespace {
    fn drop(&mut self) {
        let config = self.config.clone();
        // Nodes that tests break are thrown away with what is on them: one that was started a moment ago, and is still sent what
        // it has missed, may fail to drop a keyspace in the middle (Cassandra 5.0: `Unknown CF` in its migration stage), and does
        // not agree with the others on any schema until it is started again.
        if config.contact_points.len() > 1 {
            return;
        }
        // A runtime of its own: the test's may be the one that drops this.
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let Ok(keyspace) =
                    CassandraStore::connect(config.clone()).await.map(|store| store.keyspace().to_owned())
                else {
                    return;
                };
                let session = session(&config).await;
                let drop = format!("DROP KEYSPACE IF EXISTS {keyspace}");
                // A cluster that is busy with the other tests may take longer than one request may.
                for _ in 0..CLEANING_ATTEMPTS {
                    match session.query_unpaged(drop.clone(), ()).await {
                        Ok(_) => return,
                        Err(error) => eprintln!("the keyspace is not dropped yet: {error}"),
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                panic!("the keyspace {keyspace} can't be dropped");
            });
        });
        if cleaned.join().is_err() && !std::thread::panicking() {
            panic!("the namespace could not be removed");
        }
    }
}

/// A connection of the test's own.
pub(crate) async fn session(config: &CassandraConfig) -> Session {
    SessionBuilder::new()
        .known_nodes(&config.contact_points)
        .schema_agreement_interval(Duration::from_millis(20))
        .fetch_schema_metadata(false)
        .build()
        .await
        .expect("the cluster can be reached")
}

pub(crate) fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

pub(crate) fn cell(row: impl AsRef<[u8]>) -> Cell {
    Cell::copy_from(row, "c")
}

pub(crate) fn version(row: impl AsRef<[u8]>, ts: u64, value: impl AsRef<[u8]>) -> (Cell, Value) {
    (cell(row), Value { ts: Timestamp::saturating(ts), bytes: Bytes::copy_from_slice(value.as_ref()) })
}

pub(crate) async fn versioned(store: &CassandraStore, name: &str) -> TableRef {
    store.create_table(&table(name), TableKind::Versioned, Bytes::new()).await.expect("a table can be created");
    table(name)
}

pub(crate) async fn atomic(store: &CassandraStore, name: &str) -> TableRef {
    store.create_table(&table(name), TableKind::Atomic, Bytes::new()).await.expect("a table can be created");
    table(name)
}

pub(crate) async fn put(store: &CassandraStore, table: &TableRef, row: impl AsRef<[u8]>, ts: u64, value: &str) {
    store.put_versions(table, vec![version(row, ts, value)]).await.expect("a version can be put");
}

pub(crate) async fn delete(store: &CassandraStore, table: &TableRef, row: &str, ts: u64) -> atlas_kvs::Result<()> {
    let versions = CellTimestamps { cell: cell(row), timestamps: vec![Timestamp::saturating(ts)] };
    store.delete_versions(table, &[versions]).await
}

pub(crate) async fn newest(store: &CassandraStore, table: &TableRef, row: &str) -> Option<(u64, Bytes)> {
    let bound = CellBound::new(cell(row), Timestamp::MAX);
    let value = store.get(table, &[bound]).await.expect("cells can be read").remove(0)?;
    Some((value.ts.get(), value.bytes))
}

pub(crate) async fn scan(store: &CassandraStore, table: &TableRef, request: Scan) -> Vec<(Cell, Value)> {
    store.scan(table, request).try_collect().await.expect("a table can be scanned")
}

pub(crate) fn everything() -> Scan {
    Scan::new(RowRange::all(), Timestamp::MAX)
}

/// The one CQL table of a keyspace whose name begins so.
pub(crate) async fn cql_table(session: &Session, store: &CassandraStore, beginning: &str) -> String {
    let sql = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?";
    let rows = session.query_unpaged(sql, (store.keyspace(),)).await.expect("the schema can be read");
    let rows = rows.into_rows_result().expect("there are rows");
    let names = rows.rows::<(String,)>().expect("names are text").map(|row| row.expect("a name is text").0);
    let mut found: Vec<_> = names.filter(|name| name.starts_with(beginning)).collect();
    assert_eq!(found.len(), 1, "one table begins with {beginning}: {found:?}");
    format!("{}.{}", store.keyspace(), found.remove(0))
}
