//! The issuer of timestamps.

use super::fence::BatchFence;
use super::lease::{Lease, LeaseOptions, renewal_period};
use super::record::{FastForward, OracleRecord, check_jump};
use super::takeover::{Taken, take_over};
use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, Ownership, Timestamp};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

/// How many numbers one durable write of the bound covers.
pub(super) const BLOCK: u64 = 1_000_000;
/// How often a lost answer to the release is asked for again.
const RELEASE_ATTEMPTS: u32 = 3;

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

#[derive(Debug)]
struct Issuer {
    epoch: u64,
    incarnation: Uuid,
    kvs: Arc<dyn KeyValueService>,
    stored: MetaRecord<OracleRecord>,
    right: Right,
    // Invariant: next <= bound, and every number below `next` was issued or wasted.
    numbers: Mutex<Numbers>,
    // Held while the record is changed, so that one move of the bound serves all who wait for it. Holds the record as
    // it stands for all we know, and the bytes to compare with.
    extension: tokio::sync::Mutex<(OracleRecord, Bytes)>,
    lost: CancellationToken,
}

#[derive(Debug)]
struct Numbers {
    next: u64,
    bound: u64,
    /// Why nothing is issued any more.
    lost: Option<String>,
}

/// How an outdated issuer learns that it is outdated.
#[derive(Debug)]
enum Right {
    /// The newest epoch of this store in this process; nobody else can open the store.
    InProcess(Arc<AtomicU64>),
    /// Others can reach the store. They keep away for as long as the lease is renewed.
    Leased {
        lease: Lease,
        /// Where the lease was taken. Elsewhere it is nobody's.
        database: Option<String>,
    },
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
        Timestamp::saturating(self.issuer.numbers.lock().bound)
    }

    /// The last number issued, or the one before the first this instance can issue.
    pub fn last_issued(&self) -> Timestamp {
        self.issuer.last_issued()
    }

    /// True once this instance issues nothing any more: it was released, or another one took over.
    pub fn is_lost(&self) -> bool {
        self.issuer.numbers.lock().lost.is_some()
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
        self.issuer.numbers.lock().lost.as_deref().map(lost)
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
        let first = {
            let mut numbers = self.issuer.numbers.lock();
            numbers.check()?;
            if numbers.bound - numbers.next < count {
                return Ok(None);
            }
            let first = numbers.next;
            numbers.next += count;
            first
        };
        // After the number was chosen, right before the answer: a check before it could be outdated by the choice.
        let held = self.issuer.holds_right()?;
        Ok(held.then(|| TimestampRange { first: Timestamp::saturating(first), count }))
    }

    /// Makes sure that every number issued from now on is greater than `target`. Never goes back.
    ///
    /// # Errors
    /// [`Error::Refused`] for a jump over more than [`super::LARGE_JUMP`], unless `allow_large_jump`.
    pub async fn fast_forward(&self, target: Timestamp, allow_large_jump: bool) -> Result<FastForward> {
        let mut extension = self.issuer.extension.lock().await;
        self.issuer.numbers.lock().check()?;
        let before = self.last_issued().next();
        if target < before {
            return Ok(FastForward::inclusive(before, before));
        }
        check_jump(before, target, allow_large_jump)?;
        let after = target.next();
        self.issuer.move_bound(&mut extension, after.get() + BLOCK).await?;
        let mut numbers = self.issuer.numbers.lock();
        numbers.next = numbers.next.max(after.get());
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
    let issuer = Issuer::new(kvs, stored, incarnation, Right::InProcess(newest), found.bound, record, bytes);
    Ok(TimestampOracle { issuer: Arc::new(issuer), batch_fence: None, _renewer: None })
}

/// Opens a store that other processes can reach, when it has no living owner.
async fn open_shared(kvs: Arc<dyn KeyValueService>, options: LeaseOptions) -> Result<TimestampOracle> {
    let stored = OracleRecord::in_store(kvs.clone());
    let incarnation = Uuid::new_v4();
    let Taken { record, bytes, bound, asked, database } = take_over(&kvs, &stored, incarnation, &options).await?;
    let epoch = record.epoch;
    let lease = Lease::new(options.lease, options.clock, incarnation, asked);
    let right = Right::Leased { lease, database };
    let issuer = Arc::new(Issuer::new(kvs.clone(), stored, incarnation, right, bound, record, bytes));
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

/// Refuses a bound that can't have been written.
pub(super) fn check_bound(found: &OracleRecord) -> Result<()> {
    if found.bound < Timestamp::FIRST || found.bound.get() >= Timestamp::MAX.get() - BLOCK {
        return Err(Error::corrupt("record 'oracle'", format!("{} can't be the timestamp bound", found.bound)));
    }
    Ok(())
}

async fn renew_for_ever(issuer: Arc<Issuer>) {
    let Right::Leased { lease, .. } = &issuer.right else { return };
    let period = renewal_period(lease.length);
    lease.clock.sleep(period).await;
    while issuer.numbers.lock().lost.is_none() {
        // The time to the next attempt runs from before this one, which may take long.
        let next = lease.clock.sleep(period);
        // A renewal that hangs must not use up the lease: a second one may be answered.
        let renewed = tokio::select! {
            renewed = issuer.renew() => renewed,
            () = lease.clock.sleep(lease.length / 2) => Err(run_out()),
        };
        if let Err(error) = renewed {
            tracing::warn!(%error, "the lease on the store was not renewed");
        }
        next.await;
    }
}

impl Numbers {
    fn check(&self) -> Result<()> {
        self.lost.as_deref().map_or(Ok(()), |reason| Err(lost(reason)))
    }
}

impl Issuer {
    fn new(
        kvs: Arc<dyn KeyValueService>,
        stored: MetaRecord<OracleRecord>,
        incarnation: Uuid,
        right: Right,
        first: Timestamp,
        record: OracleRecord,
        bytes: Bytes,
    ) -> Issuer {
        Issuer {
            epoch: record.epoch,
            incarnation,
            kvs,
            stored,
            right,
            numbers: Mutex::new(Numbers { next: first.get(), bound: record.bound.get(), lost: None }),
            extension: tokio::sync::Mutex::new((record, bytes)),
            lost: CancellationToken::new(),
        }
    }

    fn last_issued(&self) -> Timestamp {
        Timestamp::saturating(self.numbers.lock().next - 1)
    }

    /// For good. The first reason counts.
    fn lose(&self, reason: String) -> Error {
        let (error, by_others) = {
            let mut numbers = self.numbers.lock();
            let by_others = numbers.lost.is_none();
            let reason = numbers.lost.get_or_insert(reason);
            (lost(reason), by_others)
        };
        self.give_up_lease();
        if by_others {
            tracing::error!(%error, "no timestamps are issued any more");
            self.lost.cancel();
        }
        error
    }

    fn give_up_lease(&self) {
        if let Right::Leased { lease, .. } = &self.right {
            lease.give_up();
        }
    }

    /// False while a lease has run out and may still be renewed.
    fn holds_right(&self) -> Result<bool> {
        match &self.right {
            Right::InProcess(newest) if newest.load(Ordering::SeqCst) != self.epoch => {
                Err(self.lose("a newer instance took over in this process".to_owned()))
            }
            Right::InProcess(_) => Ok(true),
            Right::Leased { lease, .. } if lease.is_held() => Ok(true),
            Right::Leased { .. } => self.numbers.lock().check().map(|()| false),
        }
    }

    /// Waits for what was missing when no number could be issued.
    async fn make_way(&self, count: u64) -> Result<()> {
        if let Right::Leased { lease, .. } = &self.right
            && !lease.is_held()
        {
            let held = lease.wait_until_held().await;
            self.numbers.lock().check()?;
            return if held { Ok(()) } else { Err(run_out()) };
        }
        self.extend(count).await
    }

    async fn extend(&self, count: u64) -> Result<()> {
        let mut extension = self.extension.lock().await;
        let wanted = {
            let numbers = self.numbers.lock();
            if numbers.bound - numbers.next >= count {
                return Ok(()); // Somebody moved the bound while we waited for our turn.
            }
            numbers.next.max(numbers.bound) + BLOCK
        };
        self.move_bound(&mut extension, wanted).await
    }

    /// Moves the bound to `bound` or beyond. Never back: somebody may be about to use what it covers already.
    async fn move_bound(&self, extension: &mut (OracleRecord, Bytes), bound: u64) -> Result<()> {
        if bound >= Timestamp::MAX.get() {
            return Err(Error::Unavailable {
                what: "the timestamp oracle".to_owned(),
                reason: "all timestamps are used up; the store can be read but not written".to_owned(),
            });
        }
        while extension.0.bound.get() < bound {
            self.write(extension, Timestamp::saturating(bound)).await?;
        }
        self.numbers.lock().bound = extension.0.bound.get();
        Ok(())
    }

    /// Shows the others that we live.
    async fn renew(&self) -> Result<()> {
        let mut extension = self.extension.lock().await;
        self.check_database().await?;
        loop {
            let bound = extension.0.bound;
            if self.write(&mut extension, bound).await? {
                return Ok(());
            }
        }
    }

    /// A fail-over to a copy of the store looks like a server that was restarted. What was committed last may be
    /// missing in it, and what we remember of the store would be wrong.
    async fn check_database(&self) -> Result<()> {
        let Right::Leased { database, .. } = &self.right else { return Ok(()) };
        let here = self.kvs.identity().await?;
        match (database, here) {
            (Some(known), Some(here)) if *known != here => {
                Err(self.lose(format!("the store has moved from database {known} to {here}")))
            }
            _ => Ok(()),
        }
    }

    /// Writes the record once, with this bound; each write renews the lease. False if it has to be repeated: the
    /// record was ours, but not as we knew it.
    async fn write(&self, extension: &mut (OracleRecord, Bytes), bound: Timestamp) -> Result<bool> {
        // After a release too: the record is not ours any more, and that is no news.
        self.numbers.lock().check()?;
        let (record, bytes) = &*extension;
        let (asked, next) = match &self.right {
            Right::InProcess(_) => (Duration::ZERO, OracleRecord { bound, ..record.clone() }),
            Right::Leased { lease, .. } => {
                (lease.clock.now(), OracleRecord { bound, renewal: record.renewal + 1, ..record.clone() })
            }
        };
        match self.stored.replace(Some(bytes), Some(&next)).await.map_err(not_issued)? {
            Replaced::Done(now) => {
                *extension = (next, now);
                if let Right::Leased { lease, .. } = &self.right {
                    lease.renewed(asked);
                }
                Ok(true)
            }
            // A lost answer of an earlier write that was applied after all: the record is ours and says another bound
            // than we knew, which need not reach as far as this move.
            Replaced::Other(Some((found, now))) if self.is_ours(&found) => {
                if found.bound < record.bound || found.renewal < record.renewal {
                    return Err(self.lose("the store has gone back to an earlier state".to_owned()));
                }
                *extension = (found, now);
                Ok(false)
            }
            // Any other record means that somebody took over.
            Replaced::Other(found) => {
                let epoch = found.map_or(0, |(record, _)| record.epoch);
                Err(self.lose(format!("epoch {epoch} stands in the store, ours is {}", self.epoch)))
            }
        }
    }

    fn is_ours(&self, found: &OracleRecord) -> bool {
        found.epoch == self.epoch && found.holder == Some(self.incarnation)
    }

    async fn release(&self, keep_bound: bool) -> Result<()> {
        // There is nothing to give up.
        if self.lost.is_cancelled() {
            return Ok(());
        }
        let mut extension = self.extension.lock().await;
        let next = {
            let mut numbers = self.numbers.lock();
            // From here on nothing is issued, so `next` is a bound: nothing at or above it ever was.
            numbers.lost.get_or_insert_with(|| "it was given up by its owner".to_owned());
            numbers.next
        };
        self.give_up_lease();
        let mut bound = Timestamp::saturating(next);
        let mut attempts = 0;
        loop {
            let (record, bytes) = &*extension;
            if keep_bound {
                bound = record.bound.max(bound);
            }
            let given_up = OracleRecord { holder: None, contact: None, bound, ..record.clone() };
            attempts += 1;
            match self.stored.replace(Some(bytes), Some(&given_up)).await {
                // The record was moved without our knowledge, by a lost answer or by a command beside us, which may
                // rely on it.
                Ok(Replaced::Other(Some((found, now)))) if self.is_ours(&found) => {
                    bound = found.bound.max(bound);
                    *extension = (found, now);
                }
                // Not being the holder any more is what we wanted.
                Ok(Replaced::Done(_) | Replaced::Other(_)) => return Ok(()),
                Err(Error::Kvs(error)) if error.is_indeterminate() && attempts < RELEASE_ATTEMPTS => (),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether a move of the bound was applied is nothing the caller need care about: no number was issued.
fn not_issued(error: Error) -> Error {
    match error {
        Error::Kvs(error) if error.is_indeterminate() => Error::Unavailable {
            what: "the timestamp oracle".to_owned(),
            reason: format!("no timestamp was issued: {error}"),
        },
        error => error,
    }
}

fn run_out() -> Error {
    Error::Unavailable {
        what: "the timestamp oracle".to_owned(),
        reason: "its lease on the store ran out and was not renewed in time".to_owned(),
    }
}

pub(super) fn lost(reason: &str) -> Error {
    Error::LostLeadership { reason: reason.to_owned() }
}
