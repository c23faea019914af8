//! Lost answers, refused calls and calls that hang, between the layer and a Cassandra cluster.

mod common;
#[macro_use]
#[path = "cases/faults.rs"]
mod faults;

steps_lane!(step_by_step, CASSANDRA_STEPS);
