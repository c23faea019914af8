//! Workloads under faults on the stores that live in this process.

mod common;
#[macro_use]
#[path = "cases/workloads.rs"]
mod workloads;

const COMMITS: u64 = 10_000;

workload_lane!(memory_step_by_step, MEMORY_STEPS, crate::COMMITS);
workload_lane!(memory_pipeline, MEMORY_PIPELINE_RANDOM, crate::COMMITS);
workload_lane!(rocksdb_pipeline, ROCKSDB_PIPELINE, crate::COMMITS);
