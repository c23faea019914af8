//! `kill -9` at every step of a commit, over RocksDB.

mod common;
#[path = "cases/crash.rs"]
mod crash;

use common::*;
use crash::{crash_at_every_step, crash_at_every_step_of_a_sweep};

#[test]
fn child() {
    crash::child();
}

#[test]
fn pipeline_survives_a_kill_at_every_step() {
    crash_at_every_step(ROCKSDB_PIPELINE, 4);
}

#[test]
fn step_by_step_survives_a_kill_at_every_step() {
    crash_at_every_step(ROCKSDB_STEPS, 4);
}

#[test]
fn pipeline_survives_a_kill_at_every_step_of_a_sweep() {
    crash_at_every_step_of_a_sweep(ROCKSDB_PIPELINE, 3, true);
}

#[test]
fn step_by_step_survives_a_kill_at_every_step_of_a_sweep() {
    crash_at_every_step_of_a_sweep(ROCKSDB_STEPS, 3, false);
}
