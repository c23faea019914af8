//! Snapshot isolation on PostgreSQL, in every mode it offers.

mod common;
#[macro_use]
#[path = "cases/isolation.rs"]
mod isolation;

lane!(step_by_step, POSTGRES_STEPS);
