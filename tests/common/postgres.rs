//! A PostgreSQL server for tests, found by the PG* variables: what `scripts/with-postgres` sets.

use atlas::config::{PostgresKvs, Secret};
use atlas_kvs_postgres::{PostgresConfig, PostgresStore};
use std::time::Duration;
use tokio_postgres::{Client, NoTls};

/// Connections of one store. Tests run side by side, and together they must not use up the server.
const POOL_SIZE: usize = 8;

/// How the server is reached, as the adapter has it.
///
/// Ends the program if there is no server: as passed, unless the lane is required.
pub fn connection(namespace: &str) -> PostgresConfig {
    if std::env::var_os("PGHOST").is_none_or(|host| host.is_empty()) {
        super::without_server("postgres", "PGHOST is not set; run scripts/test postgres");
    }
    let config = PostgresConfig::from_env(namespace).expect("the variables are fine");
    PostgresConfig { pool_size: POOL_SIZE, ..config }
}

/// How the server is reached, as the configuration has it.
pub fn settings() -> PostgresKvs {
    let connection = connection("");
    PostgresKvs {
        host: connection.host,
        port: connection.port,
        user: connection.user,
        password: Secret::from(&*std::env::var("PGPASSWORD").unwrap_or_default()),
        database: connection.dbname,
        pool_size: POOL_SIZE as u32,
        ..PostgresKvs::default()
    }
}

/// A connection of the test's own.
pub async fn client() -> Client {
    let config = connection("");
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

/// Removes what a test made. From a thread of its own: the test's runtime may be the one that is ending.
pub fn drop_namespace(namespace: &str) {
    let config = connection(namespace);
    let dropped = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let Ok(store) = PostgresStore::connect(config).await else { return };
            let schema = store.schema().to_owned();
            let client = client().await;
            // Whoever still uses it holds locks for the length of a statement only.
            for _ in 0..20 {
                let sql = format!("SET lock_timeout = '5s'; DROP SCHEMA IF EXISTS \"{schema}\" CASCADE");
                if client.batch_execute(&sql).await.is_ok() {
                    return;
                }
            }
            panic!("the schema {schema} could not be removed");
        });
    });
    if dropped.join().is_err() && !std::thread::panicking() {
        panic!("the namespace {namespace} could not be removed");
    }
}
