//! What was removed without a trace, and who therefore comes too late.
//!
//! On a conservative table a reader that comes too late meets a sentinel. Where a cell was removed entirely (a thorough
//! table, a hard delete) there is nothing to meet: an absence may mean that there never was anything, or that it is
//! gone. So such a table has a timestamp below which its past can't be read, and readers compare with it *after* each
//! read:
//!
//! ```text
//!   sweep    written down ── known here ── delete
//!   reader                                  read, finds nothing ── looks here: too old
//! ```
//!
//! A reader that found too little read after the deletion, which came after the timestamp was known here; so its look
//! finds it. In the store the timestamp stands before the first deletion as well, for the processes that come later.

use crate::schema::{MetaRecord, Replaced, SWEEP_TABLE, internal};
use crate::{Error, Result};
use atlas_kvs::{AtomicScan, KeyValueService, RowRange, TableKind, TableRef, Timestamp};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What begins the names of these records.
const PREFIX: &str = "table:";

/// The table that tells how far sweep has come.
pub fn sweep_table() -> TableRef {
    internal(SWEEP_TABLE)
}

/// How far a table was swept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweptTable {
    /// What no reader at or above this needs may be gone.
    pub swept: Option<Timestamp>,
    /// Cells may be gone without a trace for readers below this.
    pub gone: Option<Timestamp>,
}

impl SweptTable {
    /// The record of a table.
    pub fn in_store(kvs: Arc<dyn KeyValueService>, table: &TableRef) -> MetaRecord<SweptTable> {
        MetaRecord::in_table(kvs, sweep_table(), &format!("{PREFIX}{}", table.name()))
    }
}

/// The tables of which something is gone without a trace.
#[derive(Debug)]
pub(crate) struct SweptTables {
    kvs: Arc<dyn KeyValueService>,
    // Readers of stores without such tables look no further.
    any: AtomicBool,
    gone: RwLock<HashMap<TableRef, Timestamp>>,
    // What stands in the store, to write it only when it changes.
    stored: RwLock<HashMap<TableRef, SweptTable>>,
}

impl SweptTables {
    /// What the store tells, of which the table is made if need be.
    pub(crate) async fn load(kvs: Arc<dyn KeyValueService>) -> Result<SweptTables> {
        kvs.create_table(&sweep_table(), TableKind::Atomic, Bytes::new()).await?;
        let swept = SweptTables {
            kvs: kvs.clone(),
            any: AtomicBool::new(false),
            gone: RwLock::default(),
            stored: RwLock::default(),
        };
        let mut records = kvs.scan_atomic(&sweep_table(), AtomicScan::new(RowRange::prefix(PREFIX)));
        while let Some(record) = records.next().await {
            let (cell, bytes) = record?;
            let damaged = |reason: String| Error::corrupt(format!("table {SWEEP_TABLE}, row {cell}"), reason);
            let name = std::str::from_utf8(&cell.row[PREFIX.len()..]).map_err(|error| damaged(error.to_string()))?;
            let table = TableRef::new(name).map_err(|error| damaged(error.to_string()))?;
            let record: SweptTable = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
            swept.note(&table, record);
        }
        Ok(swept)
    }

    /// Never back: of two who write at the same time the one that was first may come here last.
    fn note(&self, table: &TableRef, record: SweptTable) {
        let mut stored = self.stored.write();
        let known = stored.entry(table.clone()).or_default();
        *known = SweptTable { swept: known.swept.max(record.swept), gone: known.gone.max(record.gone) };
        if let Some(gone) = known.gone {
            self.gone.write().insert(table.clone(), gone);
            self.any.store(true, Ordering::SeqCst);
        }
    }

    /// Writes down that versions of `table` which no reader at or above `sweep_ts` needs are about to be removed,
    /// `without_trace` or behind sentinels. Nothing may be removed before this has returned.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn raise(&self, table: &TableRef, sweep_ts: Timestamp, without_trace: bool) -> Result<()> {
        let wanted = |found: SweptTable| {
            let swept = found.swept.max(Some(sweep_ts));
            // Whoever removes without a trace removes sentinels, too, on which somebody else may have relied who swept by a
            // later timestamp, or is about to. So once there is such a timestamp it goes along with every sweep.
            SweptTable { swept, gone: if without_trace || found.gone.is_some() { swept } else { None } }
        };
        let known = self.stored.read().get(table).copied().unwrap_or_default();
        if wanted(known) == known {
            return Ok(());
        }
        let record = SweptTable::in_store(self.kvs.clone(), table);
        let mut loaded = record.load().await?;
        loop {
            let (found, bytes) = loaded.map_or((SweptTable::default(), None), |(found, bytes)| (found, Some(bytes)));
            let wanted = wanted(found);
            if wanted == found {
                self.note(table, found);
                return Ok(());
            }
            match record.replace(bytes.as_ref(), Some(&wanted)).await? {
                Replaced::Done(_) => {
                    self.note(table, wanted);
                    return Ok(());
                }
                Replaced::Other(other) => loaded = other,
            }
        }
    }

    /// Refuses a reader whose snapshot was swept: to be called after it has read, whatever it found.
    pub(crate) fn check(&self, table: &TableRef, read_ts: Timestamp) -> Result<()> {
        if !self.any.load(Ordering::SeqCst) {
            return Ok(());
        }
        match self.gone.read().get(table) {
            // A snapshot at the very timestamp is one that sweep was granted for.
            Some(gone) if read_ts < *gone => Err(Error::TooOld { table: table.clone(), read_ts }),
            _ => Ok(()),
        }
    }

    /// How far a table was swept, as far as this process knows.
    pub(crate) fn of(&self, table: &TableRef) -> SweptTable {
        self.stored.read().get(table).copied().unwrap_or_default()
    }
}
