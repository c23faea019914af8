//! Atomic batches: all of it or nothing of it.

use crate::{Cell, TableRef, Timestamp};
use bytes::Bytes;
use std::sync::Arc;

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
    /// Remove a cell of an atomic table, whatever it holds; one that holds nothing is fine. For the single owner of a
    /// table only: it compares nothing.
    Remove {
        /// The table.
        table: TableRef,
        /// The cell.
        cell: Cell,
    },
}

impl BatchOp {
    /// The table it writes to.
    pub fn table(&self) -> &TableRef {
        match self {
            BatchOp::Put { table, .. } | BatchOp::Set { table, .. } | BatchOp::Remove { table, .. } => table,
        }
    }
}

/// Writes that are applied together: after a crash, all of them are there or none is.
///
/// Clones share the writes: whoever sent a batch can look at it again, and send it once more, without a copy.
#[derive(Clone, Debug, Default)]
pub struct AtomicBatch {
    /// What must hold for the batch to be applied.
    pub guard: Option<BatchGuard>,
    /// The writes, in order. Their names and contents may be parts of something large, so whoever keeps one copies it.
    pub ops: Arc<Vec<BatchOp>>,
}

impl AtomicBatch {
    /// A batch that is applied whatever the store holds.
    pub fn new(ops: Vec<BatchOp>) -> AtomicBatch {
        AtomicBatch { guard: None, ops: Arc::new(ops) }
    }

    /// The same batch behind a guard.
    #[must_use]
    pub fn guarded(self, guard: Option<BatchGuard>) -> AtomicBatch {
        AtomicBatch { guard, ..self }
    }
}

/// A cell of an atomic table that holds exactly these bytes from before the batch is applied until it is.
///
/// The fence of an owner that is a lease: a successor changes the cell, and from the answer to that change on no batch
/// of its predecessor can be applied any more, however long it was on its way. A store therefore orders the two: a
/// change of the cell waits for batches that have seen it, and a batch that comes later sees the change and fails with
/// [`KvsError::GuardFailed`](crate::KvsError::GuardFailed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchGuard {
    /// An atomic table.
    pub table: TableRef,
    /// The cell.
    pub cell: Cell,
    /// What it must hold.
    pub expected: Bytes,
}

/// When a batch counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it would survive the loss of power.
    Synced,
    /// When every reader sees it. A crash of the machine may take it back, together with everything after it.
    Relaxed,
}
