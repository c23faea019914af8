//! The program from the outside, on a PostgreSQL server: the commands that it has on every store, and what bad luck
//! gets. Owners and stand-by have tests of their own.

// What can't be unwrapped here has failed the test.
#![allow(clippy::unwrap_used)]

#[path = "../operate/commands.rs"]
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod errors;
#[path = "../operate/importing.rs"]
mod importing;
#[allow(dead_code, reason = "it serves other tests too")]
#[path = "../operate/stage.rs"]
mod stage;
#[path = "../operate/sweeping.rs"]
mod sweeping;
#[path = "../operate/timestamp_files.rs"]
mod timestamp_files;

use common::{Place, StoreKind, postgres};
use stage::Stage;
use std::path::Path;

/// Stores in namespaces of their own; other names than `data` and `restored` are not used.
fn stage() -> Stage {
    let (data, restored) = (Place::new(StoreKind::Postgres), Place::new(StoreKind::Postgres));
    Stage::on_server(move |dir, store| {
        let place = if store == "data" { &data } else { &restored };
        config(dir, place.namespace(), |_| {})
    })
}

/// What a test changes of a connection.
struct Connection {
    host: String,
    port: u16,
    user: String,
    password: String,
    database: String,
}

/// A configuration of a namespace; the password goes into a file.
fn config(dir: &Path, namespace: &str, change: impl FnOnce(&mut Connection)) -> String {
    let settings = postgres::settings();
    let mut connection = Connection {
        host: settings.host,
        port: settings.port,
        user: settings.user,
        password: std::env::var("PGPASSWORD").unwrap_or_default(),
        database: settings.database,
    };
    change(&mut connection);
    let Connection { host, port, user, password, database } = connection;
    let file = dir.join("password");
    let mut given = String::new();
    if !password.is_empty() {
        std::fs::write(&file, password).unwrap();
        given = format!("    passwordFile: {}\n", file.display());
    }
    format!(
        "atlasdb:\n  namespace: {namespace}\n  leader: {{lease: 1s}}\n  server: {{http: off, grpc: \"127.0.0.1:0\"}}\n  \
         backup: {{lockLease: 1s}}\n  keyValueService:\n    type: postgres\n    host: {host}\n    port: {port}\n    user: \
         {user}\n    database: {database}\n    poolSize: 4\n    connectTimeout: 5s\n{given}"
    )
}
