//! Transactions with live, consistent backup and proven restore over key-value stores that have none.

mod atlas;
pub mod backup;
pub mod cli;
pub mod clock;
pub mod config;
mod demo;
mod doctor;
mod error;
pub mod lock;
pub mod ops;
pub mod planted;
mod punch;
mod registry;
mod rule;
pub mod schema;
pub mod server;
pub mod sweep;
pub mod timestamp;
pub mod transaction;
pub mod typed;
pub mod workload;

pub use atlas::Atlas;
pub use atlas_kvs as kvs_api;
pub use atlas_kvs::{Cell, ColumnSelection, RowRange, TableRef, Timestamp};
pub use error::{Error, Result, exit};
