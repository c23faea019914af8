//! The program from the outside, on a Cassandra cluster: the commands that it has on every store, and what bad luck
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
mod schema;
#[allow(dead_code, reason = "it serves other tests too")]
#[path = "../operate/stage.rs"]
mod stage;
#[path = "../operate/sweeping.rs"]
mod sweeping;
#[path = "../operate/timestamp_files.rs"]
mod timestamp_files;

use common::{Place, StoreKind};
use stage::Stage;
use std::path::Path;

/// Stores in namespaces of their own; other names than `data` and `restored` are not used.
fn stage() -> Stage {
    let (data, restored) = (Place::new(StoreKind::Cassandra), Place::new(StoreKind::Cassandra));
    Stage::on_server(move |dir, store| config(dir, if store == "data" { &data } else { &restored }))
}

fn config(dir: &Path, place: &Place) -> String {
    format!(
        "atlasdb:\n  namespace: {}\n  leader: {{lease: 3s}}\n  server: {{http: off, grpc: \"127.0.0.1:0\"}}\n  backup: \
         {{lockLease: 1s}}\n{}",
        place.namespace(),
        place.yaml(dir)
    )
}
