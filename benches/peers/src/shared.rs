//! What the other benchmarks of this repository have, too.

// Each benchmark uses its part.
#![allow(dead_code)]

#[path = "../../measure/accounts.rs"]
pub(crate) mod accounts;
#[path = "../../measure/disk.rs"]
pub(crate) mod disk;
#[path = "../../measure/machine.rs"]
pub(crate) mod machine;
#[path = "../../measure/processor.rs"]
pub(crate) mod processor;
#[path = "../../measure/rocks.rs"]
pub(crate) mod rocks;
#[path = "../../measure/server.rs"]
pub(crate) mod server;
#[path = "../../measure/statistics.rs"]
pub(crate) mod statistics;
