//! Processes on one store in a PostgreSQL server: who owns it, how others find him, and what becomes of him.
//!
//! The programs are the real ones. Leases are short; what is waited for has a limit and is never measured.

// What can't be unwrapped here has failed the test.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod copies;
mod demo;
mod finding;
mod offline;
mod scene;
#[allow(dead_code, reason = "it serves other tests too")]
#[path = "../operate/stage.rs"]
mod stage;
mod standby;
