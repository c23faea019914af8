//! What is promised for a table.

use crate::{Error, Result};
use atlas_kvs::{TableDescription, TableKind, TableRef};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a transaction must check before it may commit its writes to a table.
///
/// | handler | locks (step by step) | write-write | read-write |
/// | --- | --- | --- | --- |
/// | `IgnoreAll` | none | no | no |
/// | `RetryOnWriteWrite` | row | yes | no |
/// | `RetryOnWriteWriteCell` | cell | yes | no |
/// | `RetryOnValueChanged` | row | unless the value is unchanged | no |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ConflictHandler {
    /// No check: of two writers the one with the greater start timestamp wins, silently.
    IgnoreAll,
    /// Snapshot isolation: of two overlapping writers of a cell the second to commit fails. Locks whole rows.
    #[default]
    RetryOnWriteWrite,
    /// The same with locks on cells only: less waiting.
    RetryOnWriteWriteCell,
    /// As `RetryOnWriteWrite`, but two writers that leave the value as they read it (a *touch*) do not conflict.
    RetryOnValueChanged,
}

impl ConflictHandler {
    /// Every handler, in the order of the table above.
    pub const ALL: [ConflictHandler; 4] = [
        ConflictHandler::IgnoreAll,
        ConflictHandler::RetryOnWriteWrite,
        ConflictHandler::RetryOnWriteWriteCell,
        ConflictHandler::RetryOnValueChanged,
    ];

    /// True if overlapping writers of one cell conflict.
    pub fn checks_write_conflicts(self) -> bool {
        self != ConflictHandler::IgnoreAll
    }

    /// True if step 2 locks whole rows.
    pub fn locks_rows(self) -> bool {
        matches!(self, ConflictHandler::RetryOnWriteWrite | ConflictHandler::RetryOnValueChanged)
    }

    /// True if step 2 locks cells.
    pub fn locks_cells(self) -> bool {
        self == ConflictHandler::RetryOnWriteWriteCell
    }

    /// True if an unchanged value is no conflict.
    pub fn compares_values(self) -> bool {
        self == ConflictHandler::RetryOnValueChanged
    }
}

impl fmt::Display for ConflictHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for ConflictHandler {
    type Err = Error;

    fn from_str(name: &str) -> Result<ConflictHandler> {
        ConflictHandler::ALL.into_iter().find(|handler| same_word(&handler.to_string(), name)).ok_or_else(|| {
            Error::Usage(format!("'{name}' is no conflict handler; there are {}", list(&ConflictHandler::ALL)))
        })
    }
}

/// What sweep may remove of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SweepStrategy {
    /// Nothing, ever.
    Nothing,
    /// Old versions, behind a sentinel that tells a reader who comes too late.
    #[default]
    Conservative,
    /// Old versions and deleted cells entirely; readers check that they are not too old.
    Thorough,
}

impl SweepStrategy {
    /// Every strategy.
    pub const ALL: [SweepStrategy; 3] = [SweepStrategy::Nothing, SweepStrategy::Conservative, SweepStrategy::Thorough];
}

impl fmt::Display for SweepStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for SweepStrategy {
    type Err = Error;

    fn from_str(name: &str) -> Result<SweepStrategy> {
        SweepStrategy::ALL.into_iter().find(|strategy| same_word(&strategy.to_string(), name)).ok_or_else(|| {
            Error::Usage(format!("'{name}' is no sweep strategy; there are {}", list(&SweepStrategy::ALL)))
        })
    }
}

/// `RetryOnWriteWrite`, `retry_on_write_write` and `RETRY-ON-WRITE-WRITE` are one word.
fn same_word(name: &str, given: &str) -> bool {
    name.eq_ignore_ascii_case(&given.replace(['_', '-'], ""))
}

fn list<T: fmt::Display>(all: &[T]) -> String {
    all.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// A table's promises, kept as its metadata in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSpec {
    /// Conflict handler.
    #[serde(default)]
    pub conflict_handler: ConflictHandler,
    /// Sweep strategy.
    #[serde(default)]
    pub sweep_strategy: SweepStrategy,
}

impl TableSpec {
    /// A specification with this conflict handler and everything else as usual.
    pub fn with_handler(conflict_handler: ConflictHandler) -> TableSpec {
        TableSpec { conflict_handler, ..TableSpec::default() }
    }

    pub(crate) fn to_metadata(self) -> Bytes {
        serde_json::to_vec(&self).expect("a table specification is plain data").into()
    }

    pub(crate) fn from_description(description: &TableDescription) -> Result<TableSpec> {
        let place = || format!("the metadata of table '{}'", description.table);
        if description.kind != TableKind::Versioned {
            return Err(Error::corrupt(place(), "a table for transactions must be versioned"));
        }
        serde_json::from_slice(&description.metadata).map_err(|error| Error::corrupt(place(), error.to_string()))
    }

    /// Whether applications may use a table of this name.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name of the layer itself.
    pub(crate) fn check_name(table: &TableRef) -> Result<()> {
        if table.is_internal() {
            return Err(Error::Usage(format!("'{table}': table names that start with '_' belong to atlas itself")));
        }
        Ok(())
    }
}
