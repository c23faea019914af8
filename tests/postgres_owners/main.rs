//! Processes on one store in a PostgreSQL server: who owns it, how others find him, and what becomes of him.
//!
//! The programs are the real ones. Leases are short; what is waited for has a limit and is never measured.

// What can't be unwrapped here has failed the test.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod copies;
#[path = "../cases/owners/demo.rs"]
mod demo;
#[path = "../cases/owners/finding.rs"]
mod finding;
#[path = "../cases/owners/offline.rs"]
mod offline;
#[path = "../cases/owners/scene.rs"]
mod scene;
#[allow(dead_code, reason = "it serves other tests too")]
#[path = "../operate/stage.rs"]
mod stage;
#[path = "../cases/owners/standby.rs"]
mod standby;
mod way;

use common::{Lane, POSTGRES_PIPELINE, postgres};

const LANE: Lane = POSTGRES_PIPELINE;
/// How long an owner may be silent, in these tests.
const LEASE: &str = "1s";
/// What makes it a namespace of a server that is not there.
const NOWHERE: fn(u16) -> String = |port| format!("keyValueService.port={port}");

/// The namespaces of demos, as the server has them.
async fn demos() -> Vec<String> {
    let client = postgres::client().await;
    let found =
        client.query("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'atlas\\_demo\\_%'", &[]).await.unwrap();
    found.iter().map(|row| row.get::<_, &str>(0).strip_prefix("atlas_").unwrap().to_owned()).collect()
}
