//! A cluster for tests, found by `ATLAS_CASSANDRA_CONTACT_POINTS`, and namespaces on it that go when their test ends.

#![allow(dead_code, reason = "each target uses a part")]

use atlas_kvs_cassandra::{CassandraConfig, CassandraStore};
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

impl Drop for Namespace {
    fn drop(&mut self) {
        let config = self.config.clone();
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
                let dropped = session.query_unpaged(format!("DROP KEYSPACE IF EXISTS {keyspace}"), ()).await;
                dropped.expect("the keyspace can be dropped");
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
