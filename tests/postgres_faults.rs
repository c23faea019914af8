//! Lost answers, refused calls and calls that hang, between the layer and a PostgreSQL server.

mod common;
#[macro_use]
#[path = "cases/faults.rs"]
mod faults;

steps_lane!(step_by_step, POSTGRES_STEPS);
