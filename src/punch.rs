//! The punch table: which timestamp was issued at about which wall-clock time.
//!
//! A point is written when a store is opened and every minute after that. The clock of the machine may jump, so a
//! point only says "this timestamp was issued when the clock showed that", and answers are about a minute.

use crate::schema::{PUNCH_TABLE, internal};
use crate::transaction::entry::Entry;
use crate::{Error, Result};
use atlas_kvs::{AtomicScan, Cell, KeyValueService, RowRange, TableKind, TableRef, Timestamp};
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

/// Time between points.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);

fn table() -> TableRef {
    internal(PUNCH_TABLE)
}

pub(crate) async fn create_table(kvs: &dyn KeyValueService) -> Result<()> {
    Ok(kvs.create_table(&table(), TableKind::Atomic, Bytes::new()).await?)
}

/// Writes a point: `ts` was issued now.
pub(crate) async fn punch(kvs: &dyn KeyValueService, ts: Timestamp) -> Result<()> {
    let now = jiff::Timestamp::now().as_millisecond();
    kvs.put_unless_exists(&table(), &cell(ts), Bytes::copy_from_slice(&now.to_be_bytes())).await?;
    Ok(())
}

/// Milliseconds since 1970 at the last point at or below `ts`.
pub(crate) async fn wall_clock_millis(kvs: &Arc<dyn KeyValueService>, ts: Timestamp) -> Result<Option<i64>> {
    let up_to = RowRange::new(Bytes::new(), Entry::cell(ts.next()).row);
    let mut points = kvs.scan_atomic(&table(), AtomicScan { page_size: 1, ..AtomicScan::new(up_to).reversed() });
    let Some(point) = points.next().await else { return Ok(None) };
    let (cell, bytes) = point?;
    let millis = <[u8; 8]>::try_from(&bytes[..])
        .map_err(|_| Error::corrupt(format!("table {PUNCH_TABLE}, row {cell}"), "this is no wall-clock time"))?;
    Ok(Some(i64::from_be_bytes(millis)))
}

/// Rows sort by timestamp.
fn cell(ts: Timestamp) -> Cell {
    Cell { row: Entry::cell(ts).row, column: Bytes::from_static(b"t") }
}
