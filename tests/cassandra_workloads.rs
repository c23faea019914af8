//! Workloads under faults on Cassandra.

mod common;
#[macro_use]
#[path = "cases/workloads.rs"]
mod workloads;

workload_lane!(step_by_step, CASSANDRA_STEPS, 2_000);
