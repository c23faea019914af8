//! Statements: their text, what they are for, and their prepared form.

use scylla::statement::prepared::PreparedStatement;
use tokio::sync::OnceCell;

/// What a statement is for, which decides who is asked and what may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Reads from a quorum.
    Read,
    /// Reads from all replicas.
    ReadAll,
    /// Reads what lightweight transactions have decided.
    ReadSerial,
    /// Writes to a quorum, under a write timestamp.
    Write,
    /// Deletes from all replicas, under a write timestamp.
    Delete,
    /// Compares and sets.
    Lightweight,
}

/// A statement that is prepared when it is used first.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) text: String,
    pub(crate) usage: Use,
    pub(crate) prepared: OnceCell<PreparedStatement>,
}

impl Statement {
    pub(crate) fn new(usage: Use, text: String) -> Statement {
        Statement { text, usage, prepared: OnceCell::new() }
    }
}
