//! What can go wrong in a store, by what the caller can do about it.

use crate::{Cell, TableRef};

/// The result of a store operation.
pub type Result<T> = std::result::Result<T, KvsError>;

/// Why a store operation did not do what was asked.
///
/// The line that matters runs between [`KvsError::Indeterminate`] and all others: after every other error *nothing
/// was applied* by a single-cell or atomic operation (a multi-cell put without atomic batches may have applied some
/// cells in any case).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvsError {
    /// Nothing was applied; the same call may succeed later.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// What the store said.
        reason: String,
        /// The store's own error.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The answer was lost: the write may have been applied, may be applied later, or never.
    #[error("it is not known whether the write was applied: {reason}")]
    Indeterminate {
        /// What the store said.
        reason: String,
        /// The store's own error.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// There is no such table.
    #[error("there is no table '{0}'")]
    NoSuchTable(TableRef),
    /// The table is of the other kind, or exists with another one.
    #[error("table '{table}' is {actual}, which does not allow this operation")]
    WrongTableKind {
        /// The table.
        table: TableRef,
        /// Its kind.
        actual: &'static str,
    },
    /// A name that no table can have.
    #[error("'{name}' is not a table name: {reason}")]
    InvalidTableName {
        /// The name given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit of the store; nothing was written.
    #[error("{what} of {cell} has {len} bytes; the limit is {limit}")]
    TooLarge {
        /// Row, column or value.
        what: &'static str,
        /// Where.
        cell: Cell,
        /// Length in bytes.
        len: usize,
        /// Longest allowed, in bytes.
        limit: usize,
    },
    /// A timestamp that data can't be written at.
    #[error("no data can be written at timestamp {0}")]
    InvalidTimestamp(u64),
    /// Two different values for one cell at one timestamp: a mistake of the caller, never applied.
    #[error("table '{table}' already holds another value for {cell} at timestamp {ts}")]
    ConflictingValue {
        /// The table.
        table: TableRef,
        /// The cell.
        cell: Cell,
        /// The timestamp.
        ts: crate::Timestamp,
    },
    /// A batch was not applied, because the cell of its guard holds something else, or nothing.
    #[error("the batch was not applied: {cell} of table '{table}' has changed")]
    GuardFailed {
        /// The guard's table.
        table: TableRef,
        /// Its cell.
        cell: Cell,
    },
    /// Bytes that the store can't have written so.
    #[error("damaged data in {place}: {reason}")]
    Corrupt {
        /// Table, file or record.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// Another process owns the store.
    #[error("{place} is in use by process {}", .pid.map_or_else(|| "(unknown)".to_owned(), |pid| pid.to_string()))]
    InUse {
        /// What is in use.
        place: String,
        /// The owner, where it left its number.
        pid: Option<u32>,
    },
    /// The store can't do this at all.
    #[error("{store} has no {operation}")]
    Unsupported {
        /// The adapter.
        store: &'static str,
        /// The operation.
        operation: &'static str,
    },
    /// The store does not let this user in, or does not let it do this. Nothing was applied; somebody has to give it the
    /// right, or the configuration another user.
    #[error("{reason}")]
    AccessDenied {
        /// What was refused, and what to check.
        reason: String,
        /// The store's own error.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The store can't be used as it is configured: no such database, a version too old. Nothing was applied.
    #[error("{reason}")]
    Misconfigured {
        /// What does not fit, and what to do.
        reason: String,
        /// The store's own error.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Anything else; nothing was applied, and trying again will not help.
    #[error("{reason}")]
    Backend {
        /// What the store said.
        reason: String,
        /// The store's own error.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl KvsError {
    /// True if the same call may succeed later without anyone's help.
    pub fn is_retriable(&self) -> bool {
        matches!(self, KvsError::Unavailable { .. })
    }

    /// True if the write may have been applied.
    pub fn is_indeterminate(&self) -> bool {
        matches!(self, KvsError::Indeterminate { .. })
    }

    /// Damage at a place.
    pub fn corrupt(place: impl Into<String>, reason: impl Into<String>) -> KvsError {
        KvsError::Corrupt { place: place.into(), reason: reason.into() }
    }
}
