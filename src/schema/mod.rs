//! Tables: what is promised for each, and the records the layer keeps about itself.

mod meta;
mod restoring;
mod spec;
mod token;

pub use meta::{FORMAT_VERSION, META_TABLE, MetaRecord, Replaced, StoreRecord, meta_table};
pub use restoring::{RestoringRecord, refuse_unfinished_restore};
pub use spec::{ConflictHandler, SweepStrategy, TableChange, TableSpec};
pub(crate) use token::TokenRecord;

use atlas_kvs::TableRef;

/// `start_ts -> commit_ts`, or rolled back: the one witness of a commit.
pub const TRANSACTIONS_TABLE: &str = "_transactions";
/// What targeted sweep has to look at.
pub const SWEEP_QUEUE_TABLE: &str = "_sweep_queue";
/// How far sweep has come.
pub const SWEEP_TABLE: &str = "_sweep";
/// Wall-clock time to timestamp, a point a minute.
pub const PUNCH_TABLE: &str = "_punch";

/// A table of the layer itself.
pub(crate) fn internal(name: &str) -> TableRef {
    TableRef::new(name).expect("internal table names are well formed")
}
