//! The issuer of timestamps.

use super::fence::BatchFence;
use super::issuer::{Issuer, Right, check_bound, lost, renew_for_ever, run_out};
use super::lease::{Lease, LeaseOptions};
use super::record::{FastForward, OracleRecord, check_jump};
use super::takeover::{Taken, take_over};
use crate::rule::Rule;
use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, Ownership, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

/// How many numbers one durable write of the bound covers.
pub(super) const BLOCK: u64 = 1_000_000;

/// Numbers in a row, all issued by one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampRange {
    /// The first.
    pub first: Timestamp,
    /// How many.
    pub count: u64,
}

/// Issues timestamps; see the [module](super) for what it guarantees.
///
/// On a store that several processes share it renews its lease in the background for as long as it lives. Dropped
/// without [`release`](Self::release) it gives the lease up in the background, as far as the runtime goes on and the
/// store answers; otherwise it falls silent, and its successor waits for a lease.
#[derive(Debug)]
pub struct TimestampOracle {
    issuer: Arc<Issuer>,
    batch_fence: Option<Arc<BatchFence>>,
    _renewer: Option<AbortOnDropHandle<()>>,
}

impl TimestampOracle {
    /// Takes over the timestamps of a store as [`open_with`](Self::open_with) does, with the usual lease.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub async fn open(kvs: Arc<dyn KeyValueService>) -> Result<TimestampOracle> {
        TimestampOracle::open_with(kvs, LeaseOptions::default()).await
    }

    /// Takes over the timestamps of a store. Where the store has one owner, older instances in this process stop
    /// issuing; where it is shared, a living owner is left in peace.
    ///
    /// Cancel safe, but a takeover that was under way may make the next one wait for a lease.
    ///
    /// # Errors
    /// [`Error::StoreOwned`] if another process owns a shared store and renews its lease; [`Error::Refused`] if the
    /// numbers were issued on another database; [`Error::Interrupted`] if the stand-by was cancelled; [`Error::Corrupt`] for a damaged
    /// record; [`Error::LostLeadership`] if another instance takes over meanwhile.
    pub async fn open_with(kvs: Arc<dyn KeyValueService>, options: LeaseOptions) -> Result<TimestampOracle> {
        match kvs.ownership() {
            Ownership::Exclusive(newest) => open_exclusive(kvs, newest).await,
            Ownership::Shared => open_shared(kvs, options).await,
        }
    }

    /// Epoch of this instance; grows with each takeover.
    pub fn epoch(&self) -> u64 {
        self.issuer.epoch
    }

    /// Nothing at or above this was issued by this instance.
    pub fn bound(&self) -> Timestamp {
        Timestamp::saturating(self.issuer.numbers.bound())
    }

    /// The last number issued, or the one before the first this instance can issue.
    pub fn last_issued(&self) -> Timestamp {
        self.issuer.last_issued()
    }

    /// True once this instance issues nothing any more: it was released, or another one took over.
    pub fn is_lost(&self) -> bool {
        self.issuer.numbers.is_lost()
    }

    /// Cancelled when another instance has taken over. A release does not cancel it.
    pub fn lost(&self) -> CancellationToken {
        self.issuer.lost.clone()
    }

    /// How long ago the lease was last renewed; `None` on a store with one owner.
    pub fn lease_age(&self) -> Option<Duration> {
        match &self.issuer.right {
            Right::InProcess(_) => None,
            Right::Leased { lease, .. } => Some(lease.age()),
        }
    }

    /// Whether the right to issue is held at this moment: on a shared store, whether no successor can have begun yet.
    ///
    /// # Errors
    /// [`Error::LostLeadership`] for good; [`Error::Unavailable`] while the lease has run out and may be renewed.
    pub fn check_held(&self) -> Result<()> {
        if self.issuer.holds_right()? { Ok(()) } else { Err(run_out()) }
    }

    /// What batches have to carry, on a store that others can reach and that can compare it.
    pub(crate) fn batch_fence(&self) -> Option<Arc<BatchFence>> {
        self.batch_fence.clone()
    }

    /// Notes that another instance has taken over, and answers the error that says so.
    pub(crate) fn lose(&self, reason: &str) -> Error {
        self.issuer.lose(reason.to_owned())
    }

    /// The error of an instance that another one has replaced; `None` while that is not known, and after a release.
    pub(crate) fn lost_error(&self) -> Option<Error> {
        if !self.issuer.lost.is_cancelled() {
            return None;
        }
        self.issuer.numbers.lost().as_deref().map(lost)
    }

    /// One number above all whose request was answered before this call.
    ///
    /// # Errors
    /// [`Error::LostLeadership`] for good once another instance took over; errors of the store when the bound can't
    /// be moved, or [`Error::Unavailable`] while the lease is not renewed: nothing was issued then, and a later call may
    /// succeed.
    ///
    /// Cancel safe: numbers of a dropped call are wasted.
    pub async fn fresh(&self) -> Result<Timestamp> {
        Ok(self.fresh_range(1).await?.first)
    }

    /// `count` numbers in a row. At least 1 and at most a block; see [`fresh`](Self::fresh).
    pub async fn fresh_range(&self, count: u64) -> Result<TimestampRange> {
        if count == 0 || count > BLOCK {
            return Err(Error::Usage(format!("between 1 and {BLOCK} timestamps can be had at once, not {count}")));
        }
        loop {
            if let Some(range) = self.try_fresh_range(count)? {
                return Ok(range);
            }
            self.issuer.make_way(count).await?;
        }
    }

    /// Numbers from the block at hand, without waiting; `None` if it does not hold enough, or if the lease has run out.
    pub(crate) fn try_fresh_range(&self, count: u64) -> Result<Option<TimestampRange>> {
        let Some(first) = self.issuer.numbers.take(count)? else { return Ok(None) };
        // After the number was chosen, right before the answer: a check before it could be outdated by the choice.
        let held = !Rule::LookAtTheLease.is_kept() || self.issuer.holds_right()?;
        Ok(held.then(|| TimestampRange { first: Timestamp::saturating(first), count }))
    }

    /// Makes sure that every number issued from now on is greater than `target`. Never goes back.
    ///
    /// # Errors
    /// [`Error::Refused`] for a jump over more than [`super::LARGE_JUMP`], unless `allow_large_jump`.
    pub async fn fast_forward(&self, target: Timestamp, allow_large_jump: bool) -> Result<FastForward> {
        let mut extension = self.issuer.extension.lock().await;
        self.issuer.numbers.check()?;
        let before = self.last_issued().next();
        if target < before {
            return Ok(FastForward::inclusive(before, before));
        }
        check_jump(before, target, allow_large_jump)?;
        let after = target.next();
        self.issuer.move_bound(&mut extension, after.get() + BLOCK).await?;
        self.issuer.numbers.skip_to(after.get());
        Ok(FastForward::inclusive(before, after))
    }

    /// Gives the timestamps up, so that the next owner need not wait, and what is left of the block with them.
    pub async fn release(&self) -> Result<()> {
        self.issuer.release(false).await
    }

    /// As [`release`](Self::release), with the bound left where it stands: for commands that read it from the store and
    /// rely on it. A fast-forward closes the cleaned window there, and a number issued below would be hidden by it.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub async fn release_at_bound(&self) -> Result<()> {
        self.issuer.release(true).await
    }
}

impl Drop for TimestampOracle {
    /// Everything that commits holds the oracle, so nothing of this owner is on its way any more, and nothing is issued.
    fn drop(&mut self) {
        let Right::Leased { lease, .. } = &self.issuer.right else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.is_lost() {
            return;
        }
        let (issuer, patience) = (self.issuer.clone(), lease.length);
        runtime.spawn(async move {
            // Later than that it is no news.
            if let Ok(Err(error)) = tokio::time::timeout(patience, issuer.release(false)).await {
                tracing::debug!(%error, "the lease on a store that was dropped was not given up");
            }
        });
    }
}

/// Opens a store that nobody else can open: the newest instance of this process is the one that counts.
async fn open_exclusive(kvs: Arc<dyn KeyValueService>, newest: Arc<AtomicU64>) -> Result<TimestampOracle> {
    let stored = OracleRecord::in_store(kvs.clone());
    // The bound is read once, and what was read is both where we start and what the compare-and-set expects. Two
    // reads with somebody's write between them would let us issue a range that was already given out.
    let (found, found_bytes) = match stored.load().await? {
        Some((record, bytes)) => (record, Some(bytes)),
        None => (OracleRecord::initial(), None),
    };
    check_bound(&found)?;
    let incarnation = Uuid::new_v4();
    let record = OracleRecord {
        epoch: found.epoch + 1,
        holder: Some(incarnation),
        bound: Timestamp::saturating(found.bound.get() + BLOCK),
        renewal: 0,
        lease_ms: 0,
        contact: None,
        database: None,
    };
    let bytes = match stored.replace(found_bytes.as_ref(), Some(&record)).await? {
        Replaced::Done(bytes) => bytes,
        Replaced::Other(_) => return Err(lost("another instance took over while this one started")),
    };
    // After the record has moved and before the first number is issued: an older instance either sees this and stops,
    // or answered a request that was under way before any of ours began.
    newest.fetch_max(record.epoch, Ordering::SeqCst);
    let first = first_of(found.bound);
    let issuer = Issuer::new(kvs, stored, incarnation, Right::InProcess(newest), first, record, bytes);
    Ok(TimestampOracle { issuer: Arc::new(issuer), batch_fence: None, _renewer: None })
}

/// The first number of an owner that has found the bound there.
fn first_of(bound: Timestamp) -> Timestamp {
    match Rule::NumbersAboveTheBound.is_kept() {
        true => bound,
        false => Timestamp::saturating(bound.get().saturating_sub(BLOCK)).max(Timestamp::FIRST),
    }
}

/// Opens a store that other processes can reach, when it has no living owner.
async fn open_shared(kvs: Arc<dyn KeyValueService>, options: LeaseOptions) -> Result<TimestampOracle> {
    let stored = OracleRecord::in_store(kvs.clone());
    let incarnation = Uuid::new_v4();
    let Taken { record, bytes, bound, asked, database } = take_over(&kvs, &stored, incarnation, &options).await?;
    let epoch = record.epoch;
    let lease = Lease::new(options.lease, options.clock, incarnation, asked);
    let right = Right::Leased { lease, database };
    let issuer = Arc::new(Issuer::new(kvs.clone(), stored, incarnation, right, first_of(bound), record, bytes));
    // From now on, also while the fence is raised: that waits for batches of the former owner which are under way.
    let renewer = AbortOnDropHandle::new(tokio::spawn(renew_for_ever(issuer.clone())));
    // Before anything is issued or read: from here on what the former owners wrote is all they will ever have written.
    let batch_fence = if kvs.capabilities().atomic_batch {
        match BatchFence::raise(kvs, epoch).await {
            Ok(fence) => Some(Arc::new(fence)),
            Err(error) => {
                // So that the next opener need not wait for a lease that nobody uses.
                let _ = issuer.release(false).await;
                return Err(error);
            }
        }
    } else {
        None
    };
    Ok(TimestampOracle { issuer, batch_fence, _renewer: Some(renewer) })
}

/// Takes the timestamps of a store over for a command that changes it by hand, so that no server starts meanwhile and
/// none that was paused goes on. It may be a copy, or have failed over: that is what such commands are for. To be
/// [released](TimestampOracle::release) when the command ends.
///
/// # Errors
/// As [`TimestampOracle::open_with`].
pub async fn take_over_for_command(kvs: Arc<dyn KeyValueService>, options: LeaseOptions) -> Result<TimestampOracle> {
    MetaRecord::<OracleRecord>::create_table(kvs.as_ref()).await?;
    TimestampOracle::open_with(kvs, LeaseOptions { allow_other_database: true, ..options }).await
}
