//! Processes on one store in a Cassandra cluster: who owns it, how others find him, and what becomes of him.
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

use common::{CASSANDRA_STEPS, Lane, cassandra};

const LANE: Lane = CASSANDRA_STEPS;
/// How long an owner may be silent, in these tests: a busy node may answer one renewal late, and stay alive.
const LEASE: &str = "5s";
/// What makes it a namespace of a cluster that is not there.
const NOWHERE: fn(u16) -> String = |port| format!("keyValueService.contactPoints=127.0.0.1:{port}");

/// The namespaces of demos, as the cluster has them.
async fn demos() -> Vec<String> {
    let keyspaces = cassandra::cql("SELECT keyspace_name FROM system_schema.keyspaces");
    keyspaces
        .iter()
        .filter_map(|row| row[0].strip_prefix("atlas_"))
        .filter(|name| name.starts_with("demo_"))
        .map(str::to_owned)
        .collect()
}
