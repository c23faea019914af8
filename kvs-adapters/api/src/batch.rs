//! Atomic batches: all of it or nothing of it.

use crate::{Cell, TableRef, Timestamp};
use bytes::Bytes;

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchOp {
    /// Write a version into a versioned table.
    Put {
        /// The table.
        table: TableRef,
        /// The cell.
        cell: Cell,
        /// The version.
        ts: Timestamp,
        /// The content.
        value: Bytes,
    },
    /// Set a cell of an atomic table, whatever it held. For the single owner of a table only: it compares nothing.
    Set {
        /// The table.
        table: TableRef,
        /// The cell.
        cell: Cell,
        /// The content.
        value: Bytes,
    },
}

/// Writes that are applied together: after a crash, all of them are there or none is.
#[derive(Clone, Debug, Default)]
pub struct AtomicBatch {
    /// The writes, in order.
    pub ops: Vec<BatchOp>,
}

/// When a batch counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it would survive the loss of power.
    Synced,
    /// When every reader sees it. A crash of the machine may take it back, together with everything after it.
    Relaxed,
}
