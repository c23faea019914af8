//! The punch table: which timestamp was issued at about which wall-clock time.
//!
//! A point is written when a store is opened and every minute after that. Timestamps only grow; the clock of a machine
//! may jump. So a point holds the greatest time that was shown by then, and not what the clock shows:
//!
//! ```text
//!   timestamp    100     200     300     400     500
//!   the clock    12:00   12:01   09:00   09:01   12:02      it was set back for a while
//!   the point    12:00   12:01   12:01   12:01   12:02
//! ```
//!
//! Points never decrease, so a later timestamp is never told to be from an earlier time, and one point answers, however
//! many there are. After a clock that went ahead, answers stand still until the time has come. The last point is also a
//! record, which is moved by compare-and-set before the point is written: of two processes, one of which does not know
//! yet that it was replaced, only one writes.
//!
//! A point a minute would be too many in the end: those older than [`MINUTES_KEPT`] are thinned out to one an hour.

use crate::ops::Punch;
use crate::schema::{MetaRecord, PUNCH_TABLE, Replaced, internal};
use crate::transaction::entry::Entry;
use crate::{Error, Result};
use atlas_kvs::{AtomicScan, Cell, KeyValueService, RowRange, TableKind, TableRef, Timestamp};
use bytes::Bytes;
use futures::TryStreamExt;
use std::sync::Arc;
use std::time::Duration;

/// Time between points.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);
/// How long every point is kept.
const MINUTES_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);
/// Of older ones, the first in each such time is kept.
const HOUR_MS: i64 = 3_600_000;
/// How often it is looked for points that are too many, in points: about once a day.
const THIN_EVERY: u32 = 1_440;
/// Most points that are removed at a time.
const THINNED_MAX: usize = 10_000;

fn table() -> TableRef {
    internal(PUNCH_TABLE)
}

fn last_point(kvs: &Arc<dyn KeyValueService>) -> MetaRecord<Punch> {
    MetaRecord::new(kvs.clone(), "punch")
}

pub(crate) async fn create_table(kvs: &dyn KeyValueService) -> Result<()> {
    Ok(kvs.create_table(&table(), TableKind::Atomic, Bytes::new()).await?)
}

/// Writes a point: `ts` was issued now.
pub(crate) async fn punch(kvs: &Arc<dyn KeyValueService>, ts: Timestamp) -> Result<()> {
    punch_at(kvs, ts, now_ms()).await
}

async fn punch_at(kvs: &Arc<dyn KeyValueService>, ts: Timestamp, now_ms: i64) -> Result<()> {
    let record = last_point(kvs);
    let mut loaded = record.load().await?;
    let point = loop {
        let last = match &loaded {
            Some((last, _)) => Some(*last),
            // From before there was a record.
            None => at_or_below(kvs, Timestamp::MAX).await?,
        };
        // Somebody has written a later one: ours would come too late.
        let Some(point) = following(last, ts, now_ms) else { return Ok(()) };
        match record.replace(loaded.as_ref().map(|(_, bytes)| bytes), Some(&point)).await? {
            Replaced::Done(_) => break point,
            Replaced::Other(other) => loaded = other,
        }
    };
    kvs.put_unless_exists(&table(), &cell(ts), Bytes::copy_from_slice(&point.millis.to_be_bytes())).await?;
    Ok(())
}

/// The point of `ts`, issued when the clock showed `now_ms`, behind the last one.
fn following(last: Option<Punch>, timestamp: Timestamp, now_ms: i64) -> Option<Punch> {
    match last {
        Some(last) if last.timestamp >= timestamp => None,
        Some(last) => Some(Punch { timestamp, millis: now_ms.max(last.millis) }),
        None => Some(Punch { timestamp, millis: now_ms }),
    }
}

/// Milliseconds since 1970 at the last point at or below `ts`.
pub(crate) async fn wall_clock_millis(kvs: &Arc<dyn KeyValueService>, ts: Timestamp) -> Result<Option<i64>> {
    Ok(at_or_below(kvs, ts).await?.map(|point| point.millis))
}

async fn at_or_below(kvs: &Arc<dyn KeyValueService>, ts: Timestamp) -> Result<Option<Punch>> {
    let up_to = RowRange::new(Bytes::new(), Entry::cell(ts.next()).row);
    let scan = AtomicScan { page_size: 1, ..AtomicScan::new(up_to).reversed() };
    let mut points = kvs.scan_atomic(&table(), scan);
    points.try_next().await?.map(|(cell, bytes)| decode(&cell, &bytes)).transpose()
}

/// The last point at or before a wall-clock time.
pub(crate) async fn at_or_before(kvs: &Arc<dyn KeyValueService>, millis: i64) -> Result<Option<Punch>> {
    let mut points = kvs.scan_atomic(&table(), AtomicScan { page_size: 4096, ..AtomicScan::new(RowRange::all()) });
    let mut found = None;
    while let Some((cell, bytes)) = points.try_next().await? {
        let point = decode(&cell, &bytes)?;
        if point.millis > millis {
            break;
        }
        found = Some(point);
    }
    Ok(found)
}

/// Whether it is time to look for points that are too many, after so many of a process. Early, because not every process
/// lasts a day; not with the first, for the sake of short commands.
pub(crate) fn is_time_to_thin(points: u32) -> bool {
    points % THIN_EVERY == 2
}

/// Points that are too many by now, some of them.
pub(crate) async fn superfluous(kvs: &Arc<dyn KeyValueService>) -> Result<Vec<Punch>> {
    superfluous_at(kvs, now_ms()).await
}

async fn superfluous_at(kvs: &Arc<dyn KeyValueService>, now_ms: i64) -> Result<Vec<Punch>> {
    let old = now_ms.saturating_sub(i64::try_from(MINUTES_KEPT.as_millis()).unwrap_or(i64::MAX));
    let mut points = kvs.scan_atomic(&table(), AtomicScan { page_size: 4096, ..AtomicScan::new(RowRange::all()) });
    let (mut found, mut hour) = (Vec::new(), None);
    while let Some((cell, bytes)) = points.try_next().await? {
        let point = decode(&cell, &bytes)?;
        if point.millis >= old || found.len() >= THINNED_MAX {
            break;
        }
        // The first of an hour stays: for the others it is known that they are not older.
        let its_hour = Some(point.millis.div_euclid(HOUR_MS));
        if its_hour == hour {
            found.push(point);
        }
        hour = its_hour;
    }
    Ok(found)
}

/// Removes points, if they are what they were.
pub(crate) async fn remove(kvs: &dyn KeyValueService, points: &[Punch]) -> Result<()> {
    for point in points {
        let expected = Bytes::copy_from_slice(&point.millis.to_be_bytes());
        kvs.check_and_set(&table(), &cell(point.timestamp), Some(expected), None).await?;
    }
    Ok(())
}

/// Rows sort by timestamp.
fn cell(ts: Timestamp) -> Cell {
    Cell { row: Entry::cell(ts).row, column: Bytes::from_static(b"t") }
}

fn decode(cell: &Cell, bytes: &Bytes) -> Result<Punch> {
    let damaged = || Error::corrupt(format!("table {PUNCH_TABLE}, row {cell}"), "this is no wall-clock time");
    let millis = <[u8; 8]>::try_from(&bytes[..]).map_err(|_| damaged())?;
    Ok(Punch { timestamp: Entry::start_ts_of(cell)?, millis: i64::from_be_bytes(millis) })
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: i64 = 60_000;
    const DAY_MS: i64 = 24 * HOUR_MS;

    async fn store() -> Arc<dyn KeyValueService> {
        let kvs: Arc<dyn KeyValueService> = Arc::new(atlas_kvs_memory::MemoryStore::new());
        MetaRecord::<Punch>::create_table(kvs.as_ref()).await.expect("in memory");
        create_table(kvs.as_ref()).await.expect("in memory");
        kvs
    }

    async fn with_points(points: impl IntoIterator<Item = (u64, i64)>) -> Arc<dyn KeyValueService> {
        let kvs = store().await;
        for (ts, clock) in points {
            punch_at(&kvs, Timestamp::saturating(ts), clock).await.expect("in memory");
        }
        kvs
    }

    async fn clock_of(kvs: &Arc<dyn KeyValueService>, ts: u64) -> Option<i64> {
        wall_clock_millis(kvs, Timestamp::saturating(ts)).await.expect("in memory")
    }

    async fn ts_at(kvs: &Arc<dyn KeyValueService>, millis: i64) -> Option<u64> {
        at_or_before(kvs, millis).await.expect("in memory").map(|point| point.timestamp.get())
    }

    #[tokio::test]
    async fn both_directions_agree_while_the_clock_runs() {
        let kvs = with_points([(100, 1_000), (200, 2_000), (300, 3_000)]).await;
        assert_eq!(clock_of(&kvs, 99).await, None);
        assert_eq!(clock_of(&kvs, 100).await, Some(1_000));
        assert_eq!(clock_of(&kvs, 299).await, Some(2_000));
        assert_eq!(clock_of(&kvs, 1_000_000).await, Some(3_000));
        assert_eq!(ts_at(&kvs, 999).await, None);
        assert_eq!(ts_at(&kvs, 1_000).await, Some(100));
        assert_eq!(ts_at(&kvs, 2_999).await, Some(200));
        assert_eq!(ts_at(&kvs, i64::MAX).await, Some(300));
    }

    #[tokio::test]
    async fn time_does_not_run_backwards_with_a_clock_that_jumps() {
        // Back, on, ahead and back again.
        let clock = [1_000, 2_000, 500, 700, 2_100, 9_000, 2_200, 2_300, 9_100];
        let kvs = with_points((1..).map(|at| at * 100).zip(clock)).await;
        let mut told = Vec::new();
        for ts in (100..=900).step_by(100) {
            told.push(clock_of(&kvs, ts).await.expect("there is a point"));
        }
        assert_eq!(told, [1_000, 2_000, 2_000, 2_000, 2_100, 9_000, 9_000, 9_000, 9_100]);
        assert_eq!(ts_at(&kvs, 999).await, None);
        assert_eq!(ts_at(&kvs, 2_000).await, Some(400));
        assert_eq!(ts_at(&kvs, 8_999).await, Some(500));
        assert_eq!(ts_at(&kvs, 9_000).await, Some(800));
        let mut last = None;
        for millis in (0..10_000).step_by(50) {
            let ts = ts_at(&kvs, millis).await;
            assert!(ts >= last, "at {millis}: {ts:?} after {last:?}");
            last = ts;
        }
    }

    #[tokio::test]
    async fn who_comes_too_late_writes_nothing() {
        let kvs = with_points([(100, 1_000), (300, 2_000), (200, 9_000)]).await;
        assert_eq!(clock_of(&kvs, 250).await, Some(1_000));
        assert_eq!(clock_of(&kvs, 300).await, Some(2_000));
    }

    #[tokio::test]
    async fn points_from_before_there_was_a_record_count() {
        let kvs = store().await;
        let millis = Bytes::copy_from_slice(&5_000i64.to_be_bytes());
        kvs.put_unless_exists(&table(), &cell(Timestamp::saturating(100)), millis).await.expect("in memory");
        punch_at(&kvs, Timestamp::saturating(200), 4_000).await.expect("in memory");
        assert_eq!(clock_of(&kvs, 200).await, Some(5_000));
    }

    #[tokio::test]
    async fn old_points_are_thinned_out_to_one_an_hour_and_answers_stay_as_good_as_that() {
        let hours = 5;
        let minutes = (0..60 * hours).map(|minute| (100 + minute as u64, minute * MINUTE_MS));
        let kvs = with_points(minutes).await;
        let now = 90 * DAY_MS + 3 * HOUR_MS;
        let before: Vec<_> = superfluous_at(&kvs, now).await.expect("in memory");
        assert_eq!(before.len(), 3 * 59, "of three hours that are old enough");
        remove(kvs.as_ref(), &before).await.expect("in memory");
        assert!(superfluous_at(&kvs, now).await.expect("in memory").is_empty());
        assert_eq!(clock_of(&kvs, 100 + 90).await, Some(HOUR_MS));
        assert_eq!(ts_at(&kvs, 90 * MINUTE_MS).await, Some(160));
        // Every minute of the others is there.
        assert_eq!(clock_of(&kvs, 100 + 3 * 60 + 7).await, Some((3 * 60 + 7) * MINUTE_MS));
        assert_eq!(ts_at(&kvs, i64::MAX).await, Some(100 + 60 * hours as u64 - 1));
    }

    #[tokio::test]
    async fn a_clock_that_went_far_ahead_lets_nothing_go_but_what_is_too_many_then_too() {
        let kvs = with_points([(100, 0), (200, MINUTE_MS), (300, 2 * DAY_MS)]).await;
        let told = superfluous_at(&kvs, i64::MAX).await.expect("in memory");
        let ts: Vec<_> = told.iter().map(|point| point.timestamp.get()).collect();
        assert_eq!(ts, [200]);
    }
}
