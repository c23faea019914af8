//! Random interleavings against a model, on the stores that live in this process.

mod common;
#[path = "cases/model.rs"]
mod model;

use common::*;
use model::check;

#[test]
fn memory_step_by_step_is_snapshot_isolation() {
    check(MEMORY_STEPS, 1000);
}

#[test]
fn memory_pipeline_is_snapshot_isolation() {
    check(MEMORY_PIPELINE, 1500);
}

#[test]
fn memory_pipeline_with_everything_put_ahead_is_snapshot_isolation() {
    check(MEMORY_PIPELINE_0, 1000);
}

#[test]
fn rocksdb_pipeline_is_snapshot_isolation() {
    check(ROCKSDB_PIPELINE, 500);
}

#[test]
fn rocksdb_pipeline_with_a_random_limit_is_snapshot_isolation() {
    check(ROCKSDB_PIPELINE_RANDOM, 300);
}
