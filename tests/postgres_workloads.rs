//! Workloads under faults on PostgreSQL.

mod common;
#[macro_use]
#[path = "cases/workloads.rs"]
mod workloads;

workload_lane!(pipeline, POSTGRES_PIPELINE, 10_000);
