//! What a table refuses to hold.

use crate::{Error, Result};
use atlas_kvs::{Cell, TableRef};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

type Check = dyn Fn(&Cell, Option<&[u8]>) -> std::result::Result<(), String> + Send + Sync;

/// A rule for single cells of a table, checked at commit before anything is written.
#[derive(Clone)]
pub struct Constraint {
    name: Arc<str>,
    check: Arc<Check>,
}

impl Constraint {
    /// A rule: given a cell and its new value (`None`: deleted), nothing or the reason why not. Called in the middle
    /// of commits, so it must be quick and must not block.
    pub fn new(
        name: &str,
        check: impl Fn(&Cell, Option<&[u8]>) -> std::result::Result<(), String> + Send + Sync + 'static,
    ) -> Constraint {
        Constraint { name: name.into(), check: Arc::new(check) }
    }

    pub(crate) fn check(&self, table: &TableRef, cell: &Cell, value: Option<&Bytes>) -> Result<()> {
        (self.check)(cell, value.map(|bytes| &bytes[..])).map_err(|reason| Error::Constraint {
            table: table.clone(),
            constraint: self.name.as_ref().into(),
            cell: cell.clone(),
            reason,
        })
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Constraint").field(&self.name).finish()
    }
}
