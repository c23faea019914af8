//! The PostgreSQL server that the environment names.

use anyhow::{Context, Result};
use atlas::config::PostgresKvs;
use tokio_postgres::{Client, NoTls};

pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// Where the server is, from the variables that psql knows.
pub(crate) fn server() -> PostgresKvs {
    let usual = PostgresKvs::default();
    PostgresKvs {
        host: variable("PGHOST").unwrap_or(usual.host),
        port: variable("PGPORT").and_then(|port| port.parse().ok()).unwrap_or(usual.port),
        user: variable("PGUSER").unwrap_or(usual.user),
        password: variable("PGPASSWORD").as_deref().unwrap_or_default().into(),
        database: variable("PGDATABASE").unwrap_or(usual.database),
        ..PostgresKvs::default()
    }
}

pub(crate) async fn connect(server: &PostgresKvs) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host(&server.host).port(server.port).user(&server.user).dbname(&server.database);
    if let Some(password) = server.password.reveal() {
        config.password(password);
    }
    let (client, connection) = config.connect(NoTls).await.context("no connection to the server")?;
    tokio::spawn(connection);
    Ok(client)
}
