//! Snapshot isolation on Cassandra.

mod common;
#[macro_use]
#[path = "cases/isolation.rs"]
mod isolation;
#[macro_use]
#[path = "cases/serializable.rs"]
mod serializable;

lane!(step_by_step, CASSANDRA_STEPS);

mod of_serializable_tables {
    serializable_lane!(step_by_step, CASSANDRA_STEPS);
}
