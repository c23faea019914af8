//! `kill -9` at every step of a commit, over PostgreSQL: who comes next waits for the lease of the dead and takes over.

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
    crash_at_every_step(POSTGRES_PIPELINE, 3);
}

#[test]
fn step_by_step_survives_a_kill_at_every_step() {
    crash_at_every_step(POSTGRES_STEPS, 3);
}

#[test]
fn pipeline_survives_a_kill_at_every_step_of_a_sweep() {
    crash_at_every_step_of_a_sweep(POSTGRES_PIPELINE, 2, true);
}
