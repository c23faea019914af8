//! Random interleavings against a model, on Cassandra.

mod common;
#[path = "cases/model.rs"]
mod model;

use common::*;
use model::check;

#[test]
fn step_by_step_is_snapshot_isolation() {
    check(CASSANDRA_STEPS, 200);
}
