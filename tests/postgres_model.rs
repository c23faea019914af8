//! Random interleavings against a model, on PostgreSQL.

mod common;
#[path = "cases/model.rs"]
mod model;

use common::*;
use model::check;

#[test]
fn step_by_step_is_snapshot_isolation() {
    check(POSTGRES_STEPS, 1000);
}

#[test]
fn pipeline_is_snapshot_isolation() {
    check(POSTGRES_PIPELINE, 1000);
}

#[test]
fn pipeline_with_a_random_limit_is_snapshot_isolation() {
    check(POSTGRES_PIPELINE_RANDOM, 500);
}
