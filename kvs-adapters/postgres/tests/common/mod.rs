//! A server for tests, found by the PG* variables, and namespaces on it that go when their test ends.

#![allow(dead_code, reason = "each target uses a part")]

pub(crate) mod server;

use atlas_kvs_postgres::{PostgresConfig, PostgresStore};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

/// How long a test waits for what has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The connection that tests begin from.
///
/// Without a server the whole target ends here, and passes unless its lane is required: no test of it can say
/// anything.
pub(crate) fn config(namespace: &str) -> PostgresConfig {
    if std::env::var_os("PGHOST").is_none_or(|host| host.is_empty()) {
        let lanes = std::env::var("ATLAS_REQUIRE_LANES").unwrap_or_default();
        let required = lanes.split([',', ' ']).any(|lane| lane == "postgres");
        // Past the capturing of the test harness, which would swallow it.
        let mut out = std::io::stdout().lock();
        let _ = match required {
            true => writeln!(out, "FAIL postgres (PGHOST is not set, and the lane is required)"),
            false => writeln!(out, "SKIP postgres (PGHOST is not set; run scripts/with-postgres)"),
        };
        let _ = out.flush();
        // With the lock held: one test says so for all.
        std::process::exit(i32::from(required));
    }
    let config = PostgresConfig::from_env(namespace).expect("the variables are fine");
    PostgresConfig { pool_size: 8, ..config }
}

/// A namespace of its own; what was made in it is removed in the end.
pub(crate) struct Namespace {
    pub(crate) config: PostgresConfig,
    /// False on a server that goes with its test.
    pub(crate) remove: bool,
}

impl Namespace {
    pub(crate) fn new() -> Namespace {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Namespace::named(&format!("test_{}_{number}", std::process::id()))
    }

    pub(crate) fn named(name: &str) -> Namespace {
        Namespace { config: config(name), remove: true }
    }

    pub(crate) async fn open(&self) -> PostgresStore {
        PostgresStore::connect(self.config.clone()).await.expect("the server can be reached")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.remove {
            return;
        }
        let config = self.config.clone();
        // A runtime of its own: the test's may be the one that drops this.
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let schema = PostgresStore::connect(config.clone()).await.map(|store| store.schema().to_owned());
                let (Ok(schema), client) = (schema, client(&config).await) else { return };
                let sql = format!("SET lock_timeout = '10s'; DROP SCHEMA \"{schema}\" CASCADE");
                client.batch_execute(&sql).await.expect("the schema can be dropped");
            });
        });
        if cleaned.join().is_err() && !std::thread::panicking() {
            panic!("the namespace could not be removed");
        }
    }
}

/// A store that a test disturbs from outside.
pub(crate) struct Disturbed {
    pub(crate) namespace: Namespace,
    pub(crate) store: Arc<PostgresStore>,
    /// A connection of the test's own.
    pub(crate) admin: Client,
}

impl Disturbed {
    /// Without tables.
    pub(crate) async fn new(change: impl FnOnce(&mut PostgresConfig)) -> Disturbed {
        let mut namespace = Namespace::new();
        change(&mut namespace.config);
        namespace.config.application_name = format!("atlas {}", namespace.config.namespace);
        let store = Arc::new(namespace.open().await);
        let admin = client(&namespace.config).await;
        Disturbed { namespace, store, admin }
    }

    pub(crate) fn sql_table(&self, name: &str) -> String {
        format!("\"{}\".\"{name}\"", self.store.schema())
    }

    /// Waits until a connection of the store is in such a state, and returns its process.
    pub(crate) async fn backend(&self, condition: &str) -> i32 {
        let name = &self.namespace.config.application_name;
        let sql = format!("SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND {condition}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rows = self.activity(&sql, name).await;
            if let Some(row) = rows.first() {
                return row.get(0);
            }
            assert!(Instant::now() < deadline, "no connection with {condition}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What connections do now. A transaction, in which the test may be, would show again what it has once seen.
    pub(crate) async fn activity(&self, sql: &str, name: &str) -> Vec<tokio_postgres::Row> {
        self.admin.batch_execute("SELECT pg_stat_clear_snapshot()").await.expect("can be cleared");
        self.admin.query(sql, &[&name]).await.expect("can be asked")
    }

    /// Lets every transaction that wrote into these tables sleep at its commit, before that takes effect.
    pub(crate) async fn slow_commit(&self, tables: &[&str]) {
        let function = self.sql_table("slow");
        let triggers = tables.iter().map(|name| {
            let name = self.sql_table(name);
            format!(
                "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON {name} DEFERRABLE INITIALLY DEFERRED \
                 FOR EACH ROW EXECUTE FUNCTION {function}();"
            )
        });
        let sql = format!(
            "CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'; {}",
            triggers.collect::<String>()
        );
        self.admin.batch_execute(&sql).await.expect("the test may do so");
    }

    pub(crate) async fn terminate(&self, pid: i32) {
        self.admin.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.expect("can be terminated");
    }
}

/// A connection of the test's own.
pub(crate) async fn client(config: &PostgresConfig) -> Client {
    let mut postgres = tokio_postgres::Config::new();
    postgres.host(&config.host).port(config.port).user(&config.user).dbname(&config.dbname);
    if let Ok(password) = std::env::var("PGPASSWORD") {
        postgres.password(password);
    }
    postgres.connect_timeout(Duration::from_secs(10));
    let (client, connection) = postgres.connect(NoTls).await.expect("the server can be reached");
    tokio::spawn(connection);
    client
}
