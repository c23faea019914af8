//! Open snapshots, and what none of them can see any more.
//!
//! Everything that begins does so under a latch: choose the snapshot, register it, draw the start timestamp, in
//! this order. Otherwise the immutable timestamp could pass a snapshot between its choice and its registration, and
//! sweep would remove what it is about to read.
//!
//! There are several latches, and a snapshot is registered under one of them: threads that begin at the same time would
//! else wait for each other. Whoever grants sweep something holds them all.
//!
//! A snapshot counts until its transaction ends, or has been open for longer than it may: a handle that somebody forgot
//! must not hold sweep back for ever. A commit that is under way counts until its outcome is known.
//!
//! ```text
//!   ──────●───────────────●──────────┤ watermark ├ ─ ─ ─ ─ ─ ─ ┤ last issued
//!     immutable_ts     read_ts of    all commits    commits on
//!     (oldest open)    another       are applied    their way
//! ```

use super::stripe::{self, CachePadded, STRIPES};
use crate::planted::Mistake;
use crate::rule::Rule;
use crate::timestamp::TimestampOracle;
use crate::{Error, Result};
use atlas_kvs::Timestamp;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Registers snapshots and keeps the watermark.
#[derive(Debug)]
pub(crate) struct SnapshotTracker {
    stripes: [CachePadded<Mutex<Stripe>>; STRIPES],
    /// Every commit at or below this is applied and durable. Never goes back. Read under the latch of a stripe by who
    /// registers there: whoever locks that stripe later finds the snapshot, or has found a watermark not above it.
    watermark: AtomicU64,
    /// The greatest timestamp that sweep was granted: what no snapshot at or above it needs may be gone. Changed under all
    /// latches.
    granted: AtomicU64,
}

/// Some of the open snapshots.
#[derive(Debug, Default)]
struct Stripe {
    /// Until when each counts: nothing for one whose transaction commits.
    registered: BTreeMap<Place, Option<Instant>>,
    /// How many were registered here so far.
    numbered: u64,
}

/// What a snapshot reads below, and a number of its own in its stripe.
type Place = (u64, u64);

impl Stripe {
    fn register(&mut self, read_ts: u64, deadline: Option<Instant>) -> Place {
        self.numbered += 1;
        self.registered.insert((read_ts, self.numbered), deadline);
        (read_ts, self.numbered)
    }

    /// What the oldest open snapshot reads below. Those before it that were open for too long are forgotten.
    fn oldest(&mut self) -> Option<u64> {
        if self.registered.is_empty() {
            return None;
        }
        let now = Instant::now();
        while let Some(oldest) = self.registered.first_entry() {
            if oldest.get().is_none_or(|deadline| now <= deadline) {
                return Some(oldest.key().0);
            }
            oldest.remove();
        }
        None
    }
}

/// A registered snapshot; dropping it lets the immutable timestamp move on.
#[derive(Debug)]
pub(crate) struct Registration {
    tracker: Arc<SnapshotTracker>,
    stripe: usize,
    /// Nothing for a snapshot that came too late to be kept: its reads are answered as far as its versions stand.
    place: Option<Place>,
}

impl Registration {
    /// From now on it counts until it is dropped, however long that takes. False if it does not count any more.
    pub(crate) fn keep(&self) -> bool {
        let Some(place) = &self.place else { return true };
        if !Rule::KeepWhileCommitting.is_kept() {
            return true;
        }
        match self.tracker.stripes[self.stripe].lock().registered.get_mut(place) {
            Some(deadline) => {
                *deadline = None;
                true
            }
            None => false,
        }
    }
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
        Arc::new(SnapshotTracker {
            stripes: std::array::from_fn(|_| CachePadded::default()),
            watermark: AtomicU64::new(watermark.get()),
            granted: AtomicU64::new(0),
        })
    }

    /// Begins in the pipeline's way: the snapshot is everything applied so far. It counts for `timeout`, unless it commits.
    pub(crate) async fn begin_at_watermark(
        self: &Arc<Self>,
        oracle: &TimestampOracle,
        timeout: Duration,
    ) -> Result<Begun> {
        let too_early = match Rule::SnapshotBeforeNumber.is_kept() {
            true => None,
            false => Some(oracle.fresh().await?),
        };
        if too_early.is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if !Rule::SnapshotAtWatermark.is_kept() {
            return self.begin_at_start(oracle, timeout).await;
        }
        let begun = self.begin(oracle, timeout, |watermark, _| watermark.get() + 1, |read_ts, _| read_ts).await?;
        Ok(Begun { start_ts: too_early.unwrap_or(begun.start_ts), ..begun })
    }

    /// Begins in the step-by-step way: the snapshot is everything that committed before the start timestamp. What is
    /// registered lies below the start timestamp, because it must be chosen first.
    pub(crate) async fn begin_at_start(self: &Arc<Self>, oracle: &TimestampOracle, timeout: Duration) -> Result<Begun> {
        self.begin(oracle, timeout, |_, issued| issued.get() + 1, |_, start_ts| start_ts).await
    }

    async fn begin(
        self: &Arc<Self>,
        oracle: &TimestampOracle,
        timeout: Duration,
        register_at: impl Fn(Timestamp, Timestamp) -> u64,
        read_at: impl Fn(Timestamp, Timestamp) -> Timestamp,
    ) -> Result<Begun> {
        let number = stripe::own();
        loop {
            let begun = {
                let mut stripe = self.stripes[number].lock();
                let registered = register_at(self.watermark(), oracle.last_issued());
                debug_assert!(registered >= self.granted(), "sweep is granted nothing that a new snapshot needs");
                if Mistake::RegisterLater.is_made() {
                    drop(stripe);
                    stripe = self.stripes[number].lock();
                }
                oracle.try_fresh_range(1)?.map(|range| (stripe.register(registered, deadline(timeout)), range.first))
            };
            if let Some((place, start_ts)) = begun {
                let read_ts = read_at(Timestamp::saturating(place.0), start_ts);
                debug_assert!(read_ts <= start_ts, "a snapshot is chosen before its transaction is numbered");
                let registration = Registration { tracker: self.clone(), stripe: number, place: Some(place) };
                return Ok(Begun { start_ts, read_ts, registration });
            }
            // The block is used up. Moving the bound takes a write, so it is done outside the latch; the number it
            // costs is wasted.
            oracle.fresh().await?;
        }
    }

    /// Registers a snapshot of the past for `timeout`. One below what sweep was granted is not kept: its reads find what still
    /// stands, or that they come too late.
    ///
    /// # Errors
    /// [`Error::Usage`] for a timestamp above the watermark: what commits below it is not settled yet.
    pub(crate) fn register_past(self: &Arc<Self>, read_ts: Timestamp, timeout: Duration) -> Result<Registration> {
        let number = stripe::own();
        let mut stripe = self.stripes[number].lock();
        if read_ts > self.watermark().next() {
            return Err(Error::Usage(format!(
                "timestamp {read_ts} was not issued yet: the state below it is still in the making"
            )));
        }
        // Under the latch: a grant comes before this and is seen, or after it and sees the snapshot.
        let kept = read_ts.get() >= self.granted();
        let place = kept.then(|| stripe.register(read_ts.get(), deadline(timeout)));
        Ok(Registration { tracker: self.clone(), stripe: number, place })
    }

    /// Grants sweep a timestamp, at most `hold`: what no snapshot at or above it can see may be removed, and none below
    /// it is registered from now on. Under the latches of all who begin: a sweeper that read the immutable timestamp by
    /// itself could be overtaken by a snapshot of the past between the look and the first deletion.
    pub(crate) fn grant_sweep(&self, hold: Timestamp) -> Timestamp {
        let mut stripes: Vec<_> = self.stripes.iter().map(|stripe| stripe.lock()).collect();
        let oldest = stripes.iter_mut().filter_map(|stripe| stripe.oldest()).min();
        let oldest = oldest.filter(|_| Rule::SweepBelowReaders.is_kept());
        let granted = oldest.unwrap_or(u64::MAX).min(self.watermark().get() + 1).min(hold.get());
        self.granted.fetch_max(granted, Ordering::AcqRel);
        Timestamp::saturating(granted)
    }

    fn granted(&self) -> u64 {
        self.granted.load(Ordering::Acquire)
    }

    /// The oldest open snapshot, if any.
    pub(crate) fn oldest_open(&self) -> Option<Timestamp> {
        self.stripes.iter().filter_map(|stripe| stripe.lock().oldest()).min().map(Timestamp::saturating)
    }

    /// Every commit at or below this is applied.
    pub(crate) fn watermark(&self) -> Timestamp {
        Timestamp::saturating(self.watermark.load(Ordering::Acquire))
    }

    /// Publishes that every commit at or below `watermark` is applied and durable. Never goes back.
    ///
    /// Without a latch: who begins reads the watermark before he draws his number, so he is numbered above any watermark
    /// he has read, though it be the last number issued.
    pub(crate) fn publish(&self, watermark: Timestamp) {
        self.watermark.fetch_max(watermark.get(), Ordering::AcqRel);
    }

    /// No open snapshot reads below this.
    pub(crate) fn immutable_ts(&self) -> Timestamp {
        // The watermark first: whoever registers in a stripe after we have looked there reads one that is not below it.
        let watermark = self.watermark();
        self.oldest_open().map_or(watermark.next(), |oldest| oldest.min(watermark.next()))
    }

    /// How many snapshots are open.
    pub(crate) fn open_snapshots(&self) -> u64 {
        self.stripes.iter().map(|stripe| stripe.lock().registered.len() as u64).sum()
    }
}

/// A time too far away to be told is none.
fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            self.tracker.stripes[self.stripe].lock().registered.remove(place);
        }
    }
}
