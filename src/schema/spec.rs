//! What is promised for a table.

use crate::{Error, Result};
use atlas_kvs::{TableDescription, TableKind, TableRef};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a transaction must check before it may commit its writes to a table, and what it read of it.
///
/// | handler | locks (step by step) | write-write | read-write |
/// | --- | --- | --- | --- |
/// | `IgnoreAll` | none | no | no |
/// | `RetryOnWriteWrite` | row | yes | no |
/// | `RetryOnWriteWriteCell` | cell | yes | no |
/// | `RetryOnValueChanged` | row | unless the value is unchanged | no |
/// | `Serializable` | row | yes | yes |
/// | `SerializableCell` | cell | yes | yes |
/// | `SerializableIndex` | none | no | yes |
/// | `RetryOnWriteWriteMigration` | row and cell | yes | no |
/// | `SerializableLockLevelMigration` | row and cell | yes | yes |
///
/// Where reads are checked, a transaction that writes anything commits only if everything it read in the table stands
/// unchanged at its commit timestamp: cells, ranges as far as they were consumed, and what was absent. Versions count,
/// not values: a value that went from A to B and back to A was changed.
///
/// `SerializableIndex` is for tables whose rows follow from those of another table that checks write-write conflicts.
/// The two migrations lock rows and cells, so that neither those who lock rows nor those who lock cells get past them.
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
    /// Serializable: as `RetryOnWriteWrite`, and what was read must not have changed.
    Serializable,
    /// Serializable, with locks on cells only.
    SerializableCell,
    /// What was read must not have changed; writers do not conflict with each other.
    SerializableIndex,
    /// Between `RetryOnWriteWrite` and `RetryOnWriteWriteCell`.
    RetryOnWriteWriteMigration,
    /// Between `Serializable` and `SerializableCell`.
    SerializableLockLevelMigration,
}

impl ConflictHandler {
    /// Every handler, in the order of the table above.
    pub const ALL: [ConflictHandler; 9] = [
        ConflictHandler::IgnoreAll,
        ConflictHandler::RetryOnWriteWrite,
        ConflictHandler::RetryOnWriteWriteCell,
        ConflictHandler::RetryOnValueChanged,
        ConflictHandler::Serializable,
        ConflictHandler::SerializableCell,
        ConflictHandler::SerializableIndex,
        ConflictHandler::RetryOnWriteWriteMigration,
        ConflictHandler::SerializableLockLevelMigration,
    ];

    /// True if overlapping writers of one cell conflict.
    pub fn checks_write_conflicts(self) -> bool {
        !matches!(self, ConflictHandler::IgnoreAll | ConflictHandler::SerializableIndex)
    }

    /// True if what was read must stand unchanged at the commit timestamp.
    pub fn checks_reads(self) -> bool {
        matches!(
            self,
            ConflictHandler::Serializable
                | ConflictHandler::SerializableCell
                | ConflictHandler::SerializableIndex
                | ConflictHandler::SerializableLockLevelMigration
        )
    }

    /// True if step 2 locks whole rows.
    pub fn locks_rows(self) -> bool {
        matches!(
            self,
            ConflictHandler::RetryOnWriteWrite
                | ConflictHandler::RetryOnValueChanged
                | ConflictHandler::Serializable
                | ConflictHandler::RetryOnWriteWriteMigration
                | ConflictHandler::SerializableLockLevelMigration
        )
    }

    /// True if step 2 locks cells.
    pub fn locks_cells(self) -> bool {
        matches!(
            self,
            ConflictHandler::RetryOnWriteWriteCell
                | ConflictHandler::SerializableCell
                | ConflictHandler::RetryOnWriteWriteMigration
                | ConflictHandler::SerializableLockLevelMigration
        )
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

/// What to change of a table's promises; `None` leaves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableChange {
    /// Conflict handler.
    pub conflict_handler: Option<ConflictHandler>,
    /// Sweep strategy.
    pub sweep_strategy: Option<SweepStrategy>,
}

impl TableSpec {
    /// The specification after a change.
    pub fn changed(self, change: &TableChange) -> TableSpec {
        TableSpec {
            conflict_handler: change.conflict_handler.unwrap_or(self.conflict_handler),
            sweep_strategy: change.sweep_strategy.unwrap_or(self.sweep_strategy),
        }
    }

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
