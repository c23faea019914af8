//! Tables: their names, kinds and descriptions.

use crate::{KvsError, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The name of a table: 1 to [`TableRef::MAX_LEN`] bytes of ASCII letters, digits, `_`, `.` and `-`.
///
/// Names that start with `_` belong to the layer itself. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableRef(Arc<str>);

impl TableRef {
    /// Longest name in bytes.
    pub const MAX_LEN: usize = 200;

    /// Checks a name and makes a reference of it.
    ///
    /// # Errors
    /// [`KvsError::InvalidTableName`] with the reason.
    pub fn new(name: impl AsRef<str>) -> Result<TableRef> {
        let name = name.as_ref();
        let reason = if name.is_empty() {
            Some("a table name has at least one character".to_owned())
        } else if name.len() > Self::MAX_LEN {
            Some(format!("a table name has at most {} bytes", Self::MAX_LEN))
        } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
            Some("a table name has letters, digits, '_', '.' and '-' only".to_owned())
        } else if name == "." || name == ".." {
            Some("'.' and '..' mean directories".to_owned())
        } else {
            None
        };
        match reason {
            Some(reason) => Err(KvsError::InvalidTableName { name: name.to_owned(), reason }),
            None => Ok(TableRef(name.into())),
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The same name in memory of its own. Clones of a reference count together, which slows down threads that make very many
    /// at the same time; clones of this one count by themselves.
    #[must_use]
    pub fn unshared(&self) -> TableRef {
        TableRef(Arc::from(self.name()))
    }

    /// True for the tables of the layer itself.
    pub fn is_internal(&self) -> bool {
        self.0.starts_with('_')
    }
}

impl TryFrom<String> for TableRef {
    type Error = KvsError;

    fn try_from(name: String) -> Result<TableRef> {
        TableRef::new(name)
    }
}

impl From<TableRef> for String {
    fn from(table: TableRef) -> String {
        table.0.as_ref().to_owned()
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a table promises; fixed when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// Many versions a cell, each under a timestamp.
    Versioned,
    /// At most one value a cell, changed by compare-and-set only.
    Atomic,
}

/// A table as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDescription {
    /// Its name.
    pub table: TableRef,
    /// Its kind.
    pub kind: TableKind,
    /// What the creator left with it; the store does not look inside.
    pub metadata: Bytes,
}

/// How large a table is, as far as the store can tell without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableSize {
    /// Stored versions, estimated.
    pub versions: u64,
    /// Bytes on disk or in memory, estimated.
    pub bytes: u64,
}
