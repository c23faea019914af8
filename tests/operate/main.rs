//! The program from the outside: every command, on a store that is stopped and on one that is served, and what bad
//! input and bad luck get. Each test has a directory of its own; nothing is measured, and processes are ended by their id.

// What can't be unwrapped here has failed the test.
#![allow(clippy::unwrap_used)]

mod backups;
mod by_hand;
mod commands;
mod configuration;
mod crashes;
mod importing;
mod refusals;
mod serving;
#[allow(dead_code, reason = "it serves other tests too")]
mod stage;
mod sweeping;
mod timestamp_files;
mod workloads;

/// For tests that run on other stores, too.
fn stage() -> stage::Stage {
    stage::Stage::new()
}
