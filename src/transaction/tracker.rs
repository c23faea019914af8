//! Open snapshots, and what none of them can see any more.
//!
//! Everything that begins does so under one latch: choose the snapshot, register it, draw the start timestamp, in
//! this order. Otherwise the immutable timestamp could pass a snapshot between its choice and its registration, and
//! sweep would remove what it is about to read.
//!
//! ```text
//!   ──────●───────────────●──────────┤ watermark ├ ─ ─ ─ ─ ─ ─ ┤ last issued
//!     immutable_ts     read_ts of    all commits    commits on
//!     (oldest open)    another       are applied    their way
//! ```

use crate::planted::Mistake;
use crate::rule::Rule;
use crate::timestamp::TimestampOracle;
use crate::{Error, Result};
use atlas_kvs::Timestamp;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Registers snapshots and keeps the watermark.
#[derive(Debug)]
pub(crate) struct SnapshotTracker {
    state: Mutex<State>,
    // A copy of the state's watermark for those who need no latch.
    watermark: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Every commit at or below this is applied and durable.
    watermark: u64,
    /// How many open snapshots read below each timestamp.
    registered: BTreeMap<u64, usize>,
    /// The greatest timestamp that sweep was granted: what no snapshot at or above it needs may be gone.
    granted: u64,
}

/// A registered snapshot; dropping it lets the immutable timestamp move on.
#[derive(Debug)]
pub(crate) struct Registration {
    tracker: Arc<SnapshotTracker>,
    /// Nothing for a snapshot that came too late to be kept: its reads are answered as far as its versions stand.
    registered: Option<u64>,
}

/// What a transaction begins with.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) start_ts: Timestamp,
    pub(crate) read_ts: Timestamp,
    pub(crate) registration: Registration,
}

impl SnapshotTracker {
    /// A tracker for a store in which every commit at or below `watermark` is applied.
    pub(crate) fn new(watermark: Timestamp) -> Arc<SnapshotTracker> {
        let watermark = watermark.get();
        Arc::new(SnapshotTracker {
            state: Mutex::new(State { watermark, registered: BTreeMap::new(), granted: 0 }),
            watermark: AtomicU64::new(watermark),
        })
    }

    /// Begins in the pipeline's way: the snapshot is everything applied so far.
    pub(crate) async fn begin_at_watermark(self: &Arc<Self>, oracle: &TimestampOracle) -> Result<Begun> {
        let too_early = match Rule::SnapshotBeforeNumber.is_kept() {
            true => None,
            false => Some(oracle.fresh().await?),
        };
        if too_early.is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        if !Rule::SnapshotAtWatermark.is_kept() {
            return self.begin_at_start(oracle).await;
        }
        let begun = self.begin(oracle, |state, _| state.watermark + 1, |read_ts, _| read_ts).await?;
        Ok(Begun { start_ts: too_early.unwrap_or(begun.start_ts), ..begun })
    }

    /// Begins in the step-by-step way: the snapshot is everything that committed before the start timestamp. What is
    /// registered lies below the start timestamp, because it must be chosen first.
    pub(crate) async fn begin_at_start(self: &Arc<Self>, oracle: &TimestampOracle) -> Result<Begun> {
        self.begin(oracle, |_, issued| issued.get() + 1, |_, start_ts| start_ts).await
    }

    async fn begin(
        self: &Arc<Self>,
        oracle: &TimestampOracle,
        register_at: impl Fn(&State, Timestamp) -> u64,
        read_at: impl Fn(Timestamp, Timestamp) -> Timestamp,
    ) -> Result<Begun> {
        loop {
            let begun = {
                let mut state = self.state.lock();
                let registered = register_at(&state, oracle.last_issued());
                debug_assert!(registered >= state.granted, "sweep is granted nothing that a new snapshot needs");
                if Mistake::RegisterLater.is_made() {
                    drop(state);
                    state = self.state.lock();
                }
                oracle.try_fresh_range(1)?.map(|range| {
                    *state.registered.entry(registered).or_default() += 1;
                    (registered, range.first)
                })
            };
            if let Some((registered, start_ts)) = begun {
                let read_ts = read_at(Timestamp::saturating(registered), start_ts);
                debug_assert!(read_ts <= start_ts, "a snapshot is chosen before its transaction is numbered");
                let registration = Registration { tracker: self.clone(), registered: Some(registered) };
                return Ok(Begun { start_ts, read_ts, registration });
            }
            // The block is used up. Moving the bound takes a write, so it is done outside the latch; the number it
            // costs is wasted.
            oracle.fresh().await?;
        }
    }

    /// Registers a snapshot of the past. One below what sweep was granted is not kept: its reads find what still
    /// stands, or that they come too late.
    ///
    /// # Errors
    /// [`Error::Usage`] for a timestamp above the watermark: what commits below it is not settled yet.
    pub(crate) fn register_past(self: &Arc<Self>, read_ts: Timestamp) -> Result<Registration> {
        let mut state = self.state.lock();
        if read_ts.get() > state.watermark + 1 {
            return Err(Error::Usage(format!(
                "timestamp {read_ts} was not issued yet: the state below it is still in the making"
            )));
        }
        if read_ts.get() < state.granted {
            return Ok(Registration { tracker: self.clone(), registered: None });
        }
        *state.registered.entry(read_ts.get()).or_default() += 1;
        Ok(Registration { tracker: self.clone(), registered: Some(read_ts.get()) })
    }

    /// Grants sweep a timestamp, at most `hold`: what no snapshot at or above it can see may be removed, and none below
    /// it is registered from now on. Under the latch of those who begin: a sweeper that read the immutable timestamp by
    /// itself could be overtaken by a snapshot of the past between the look and the first deletion.
    pub(crate) fn grant_sweep(&self, hold: Timestamp) -> Timestamp {
        let mut state = self.state.lock();
        let oldest = state.registered.keys().next().copied().filter(|_| Rule::SweepBelowReaders.is_kept());
        let granted = oldest.unwrap_or(u64::MAX).min(state.watermark + 1).min(hold.get());
        state.granted = state.granted.max(granted);
        Timestamp::saturating(granted)
    }

    /// The oldest open snapshot, if any.
    pub(crate) fn oldest_open(&self) -> Option<Timestamp> {
        self.state.lock().registered.keys().next().copied().map(Timestamp::saturating)
    }

    /// Every commit at or below this is applied.
    pub(crate) fn watermark(&self) -> Timestamp {
        Timestamp::saturating(self.watermark.load(Ordering::Acquire))
    }

    /// Publishes that every commit at or below `watermark` is applied and durable. Never goes back.
    pub(crate) fn publish(&self, watermark: Timestamp) {
        self.publish_with(|| watermark);
    }

    /// As [`publish`](Self::publish), with a watermark chosen under the latch.
    pub(crate) fn publish_with(&self, watermark: impl FnOnce() -> Timestamp) {
        let mut state = self.state.lock();
        state.watermark = state.watermark.max(watermark().get());
        self.watermark.store(state.watermark, Ordering::Release);
    }

    /// No open snapshot reads below this.
    pub(crate) fn immutable_ts(&self) -> Timestamp {
        let state = self.state.lock();
        let oldest = state.registered.keys().next().copied();
        Timestamp::saturating(oldest.unwrap_or(u64::MAX).min(state.watermark + 1))
    }

    /// How many snapshots are open.
    pub(crate) fn open_snapshots(&self) -> u64 {
        self.state.lock().registered.values().map(|count| *count as u64).sum()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(registered) = self.registered else { return };
        let mut state = self.tracker.state.lock();
        if let Some(count) = state.registered.get_mut(&registered) {
            *count -= 1;
            if *count == 0 {
                state.registered.remove(&registered);
            }
        }
    }
}
