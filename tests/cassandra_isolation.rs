//! Snapshot isolation on Cassandra.

mod common;
#[macro_use]
#[path = "cases/isolation.rs"]
mod isolation;

lane!(step_by_step, CASSANDRA_STEPS);
