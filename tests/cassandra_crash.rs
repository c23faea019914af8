//! `kill -9` at every step of a commit, over Cassandra: who comes next waits for the lease of the dead and takes over.

mod common;
#[path = "cases/crash.rs"]
mod crash;

#[test]
fn child() {
    crash::child();
}

#[test]
fn step_by_step_survives_a_kill_at_every_step() {
    crash::crash_at_every_step(common::CASSANDRA_STEPS, 2);
}

#[test]
fn step_by_step_survives_a_kill_at_every_step_of_a_sweep() {
    crash::crash_at_every_step_of_a_sweep(common::CASSANDRA_STEPS, 1, false);
}
