//! What holds sweep back besides open snapshots: pins, for copies that are made by hand.
//!
//! A pin keeps what readers at its timestamp need, for some minutes and whatever process owns the store. It ends by
//! itself: one whose taker died lets go. Its end is told by the wall clock, so it is also bounded by how long it could
//! have been meant: a clock that jumps back does not make it endless.

use crate::Result;
use crate::schema::{MetaRecord, Replaced};
use atlas_kvs::{KeyValueService, Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// No pin is meant to last longer.
const PIN_MAX: Duration = Duration::from_secs(24 * 3600);

/// Timestamps for which nothing is swept, although no transaction reads at them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepPins {
    /// In the order they were made.
    pub pins: Vec<SweepPin>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepPin {
    /// What readers at this need is kept.
    pub ts: Timestamp,
    /// Until then, in milliseconds since 1970.
    pub until_ms: i64,
}

impl SweepPin {
    fn counts(&self, now_ms: i64) -> bool {
        let longest = i64::try_from(PIN_MAX.as_millis()).unwrap_or(i64::MAX);
        self.until_ms > now_ms && self.until_ms <= now_ms.saturating_add(longest)
    }
}

impl SweepPin {
    /// For people.
    pub(super) fn told(&self) -> String {
        let left_ms = self.until_ms.saturating_sub(now_ms()).max(0);
        format!("the pin at {}, for {} s more", self.ts, left_ms / 1000)
    }
}

impl SweepPins {
    /// The record in the store.
    pub fn in_store(kvs: Arc<dyn KeyValueService>) -> MetaRecord<SweepPins> {
        MetaRecord::new(kvs, "sweep-pins")
    }

    /// Adds a pin at `ts` for `hold`, a day at most.
    pub(crate) async fn add(kvs: Arc<dyn KeyValueService>, ts: Timestamp, hold: Duration) -> Result<()> {
        let stored = SweepPins::in_store(kvs);
        let now = now_ms();
        let hold = i64::try_from(hold.min(PIN_MAX).as_millis()).unwrap_or(i64::MAX);
        let mut loaded = stored.load().await?;
        loop {
            let (mut record, bytes) =
                loaded.map_or((SweepPins::default(), None), |(record, bytes)| (record, Some(bytes)));
            record.pins.retain(|pin| pin.counts(now));
            record.pins.push(SweepPin { ts, until_ms: now.saturating_add(hold) });
            match stored.replace(bytes.as_ref(), Some(&record)).await? {
                Replaced::Done(_) => return Ok(()),
                Replaced::Other(found) => loaded = found,
            }
        }
    }

    /// The oldest pin that counts.
    pub(super) async fn oldest(kvs: Arc<dyn KeyValueService>) -> Result<Option<SweepPin>> {
        let Some((record, _)) = SweepPins::in_store(kvs).load().await? else { return Ok(None) };
        let now = now_ms();
        Ok(record.pins.into_iter().filter(|pin| pin.counts(now)).min_by_key(|pin| pin.ts))
    }
}

/// The wall clock, in milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_ends_by_itself_whatever_the_clock_does() {
        let pin = SweepPin { ts: Timestamp::FIRST, until_ms: 10_000 };
        assert!(pin.counts(9_999));
        assert!(!pin.counts(10_000));
        // The clock has jumped back by years: nobody meant to pin for so long.
        let day = 24 * 3600 * 1000;
        assert!(pin.counts(10_000 - day) && !pin.counts(9_999 - day));
    }
}
