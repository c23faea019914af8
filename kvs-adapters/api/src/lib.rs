//! The contract between the transaction layer and the stores below it.
//!
//! A store keeps *tables* of *cells*. A cell is addressed by a row and a column, both arbitrary bytes, and all
//! order is unsigned lexicographic order of bytes: rows first, columns within a row. A table is of one of two kinds:
//!
//! * **versioned**: a cell holds any number of versions, each under a [`Timestamp`]; reads name an exclusive upper
//!   bound (`read_before`) and get the newest version below it;
//! * **atomic**: a cell holds at most one value, changed only by compare-and-set.
//!
//! ```text
//!   versioned   row ── column ──┬── ts 17 ── value
//!                               ├── ts  9 ── value         read_before 17 sees ts 9
//!                               └── ts  0 ── (sentinel)    "older versions were removed"
//!   atomic      row ── column ───── value
//! ```
//!
//! The crate knows no store and no transaction. An adapter implements [`KeyValueService`] and proves itself with the
//! suite in `atlas-kvs-conformance`, in which every sentence of the contract is a case.

mod batch;
mod cell;
mod error;
mod flat;
pub mod key;
mod scan;
mod service;
mod snapshot;
mod table;
mod waiting;

pub use batch::{AtomicBatch, BatchGuard, BatchOp, Durability};
pub use cell::{Cell, CellBound, CellTimestamps, CellVersionRange, CellVersions, Timestamp, Value, Version};
pub use error::{KvsError, Result};
pub use flat::{FlatCell, FlatPage};
pub use scan::{AtomicScan, ColumnSelection, RowRange, Scan, VersionScan};
pub use service::{
    Availability, Capabilities, CheckAndSet, KeyValueService, Limits, NativeSnapshot, Ownership, PutUnlessExists,
    SnapshotSummary, SortedLoad, SortedSink,
};
pub use snapshot::{NodeStore, OpenSnapshot, PART_NAME_LEN_MAX, SnapshotPart, StreamSnapshot, is_part_name};
pub use table::{TableDescription, TableKind, TableRef, TableSize};
pub use waiting::{allow_waiting, may_wait};

/// A stream of results that borrows nothing from the store. It ends after its first error.
pub type ResultStream<T> = futures::stream::BoxStream<'static, Result<T>>;
