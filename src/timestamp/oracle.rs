//! The issuer of timestamps.

use super::record::{FastForward, OracleRecord, check_jump};
use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, Ownership, Timestamp};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// How many numbers one durable write of the bound covers.
const BLOCK: u64 = 1_000_000;

/// Numbers in a row, all issued by one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampRange {
    /// The first.
    pub first: Timestamp,
    /// How many.
    pub count: u64,
}

/// Issues timestamps; see the [module](super) for what it guarantees.
#[derive(Debug)]
pub struct TimestampOracle {
    epoch: u64,
    incarnation: Uuid,
    stored: MetaRecord<OracleRecord>,
    fence: Fence,
    // Invariant: next <= bound, and every number below `next` was issued or wasted.
    numbers: Mutex<Numbers>,
    // Held while the bound is moved, so that one move serves all who wait for it. Holds the bytes to compare with.
    extension: tokio::sync::Mutex<(OracleRecord, Bytes)>,
}

#[derive(Debug)]
struct Numbers {
    next: u64,
    bound: u64,
    lost: bool,
}

/// How an outdated issuer learns that it is outdated.
#[derive(Debug)]
enum Fence {
    /// The newest epoch of this store in this process; nobody else can open the store.
    InProcess(Arc<AtomicU64>),
    /// The store has other writers; only one issuer is started on it by configuration.
    Store,
}

impl TimestampOracle {
    /// Takes over the timestamps of a store: older instances on it stop issuing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a damaged record, [`Error::LostLeadership`] if another instance takes over meanwhile.
    pub async fn open(kvs: Arc<dyn KeyValueService>) -> Result<TimestampOracle> {
        let stored = OracleRecord::in_store(kvs.clone());
        // The bound is read once, and what was read is both where we start and what the compare-and-set expects. Two
        // reads with somebody's write between them would let us issue a range that was already given out.
        let loaded = stored.load().await?;
        let (found, found_bytes) = match loaded {
            Some((record, bytes)) => (record, Some(bytes)),
            None => (OracleRecord::initial(), None),
        };
        if found.bound < Timestamp::FIRST || found.bound.get() >= Timestamp::MAX.get() - BLOCK {
            return Err(Error::corrupt("record 'oracle'", format!("{} can't be the timestamp bound", found.bound)));
        }
        let incarnation = Uuid::new_v4();
        let record = OracleRecord {
            epoch: found.epoch + 1,
            holder: Some(incarnation),
            bound: Timestamp::saturating(found.bound.get() + BLOCK),
            renewal: 0,
        };
        let bytes = match stored.replace(found_bytes.as_ref(), Some(&record)).await? {
            Replaced::Done(bytes) => bytes,
            Replaced::Other(_) => return Err(lost("another instance took over while this one started")),
        };
        let fence = match kvs.ownership() {
            Ownership::Exclusive(newest) => {
                // After the record has moved and before the first number is issued: an older instance either sees
                // this and stops, or answered a request that was under way before any of ours began.
                newest.fetch_max(record.epoch, Ordering::SeqCst);
                Fence::InProcess(newest)
            }
            Ownership::Shared => Fence::Store,
        };
        Ok(TimestampOracle {
            epoch: record.epoch,
            incarnation,
            stored,
            fence,
            numbers: Mutex::new(Numbers { next: found.bound.get(), bound: record.bound.get(), lost: false }),
            extension: tokio::sync::Mutex::new((record, bytes)),
        })
    }

    /// Epoch of this instance; grows with each takeover.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Nothing at or above this was issued by this instance.
    pub fn bound(&self) -> Timestamp {
        Timestamp::saturating(self.numbers.lock().bound)
    }

    /// The last number issued, or the one before the first this instance can issue.
    pub fn last_issued(&self) -> Timestamp {
        Timestamp::saturating(self.numbers.lock().next - 1)
    }

    /// True once this instance issues nothing any more: it was released, or another one took over.
    pub fn is_lost(&self) -> bool {
        self.numbers.lock().lost
    }

    /// One number above all whose request was answered before this call.
    ///
    /// # Errors
    /// [`Error::LostLeadership`] for good once another instance took over; errors of the store when the bound can't
    /// be moved: nothing was issued then, and a later call may succeed.
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
            self.extend(count).await?;
        }
    }

    /// Numbers from the block at hand, without waiting; `None` if it does not hold enough.
    pub(crate) fn try_fresh_range(&self, count: u64) -> Result<Option<TimestampRange>> {
        let first = {
            let mut numbers = self.numbers.lock();
            if numbers.lost {
                return Err(lost("another instance moved the bound"));
            }
            if numbers.bound - numbers.next < count {
                return Ok(None);
            }
            let first = numbers.next;
            numbers.next += count;
            first
        };
        // After the number was chosen, right before the answer: a check before it could be outdated by the choice.
        self.check_fence()?;
        Ok(Some(TimestampRange { first: Timestamp::saturating(first), count }))
    }

    /// Makes sure that every number issued from now on is greater than `target`. Never goes back.
    ///
    /// # Errors
    /// [`Error::Refused`] for a jump over more than [`super::LARGE_JUMP`], unless `allow_large_jump`.
    pub async fn fast_forward(&self, target: Timestamp, allow_large_jump: bool) -> Result<FastForward> {
        let mut extension = self.extension.lock().await;
        let before = self.last_issued().next();
        if target < before {
            return Ok(FastForward::inclusive(before, before));
        }
        check_jump(before, target, allow_large_jump)?;
        let after = target.next();
        self.move_bound(&mut extension, after.get() + BLOCK).await?;
        let mut numbers = self.numbers.lock();
        numbers.next = numbers.next.max(after.get());
        Ok(FastForward::inclusive(before, after))
    }

    /// Gives the timestamps up, so that the next owner need not wait, and what is left of the block with them.
    pub async fn release(&self) -> Result<()> {
        let extension = self.extension.lock().await;
        let next = {
            let mut numbers = self.numbers.lock();
            // From here on nothing is issued, so `next` is a bound: nothing at or above it ever was.
            numbers.lost = true;
            numbers.next
        };
        let (record, bytes) = &*extension;
        let record = OracleRecord { holder: None, bound: Timestamp::saturating(next), ..record.clone() };
        // Not being the holder any more is what we wanted.
        self.stored.replace(Some(bytes), Some(&record)).await.map(|_| ())
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
        loop {
            let (record, bytes) = &*extension;
            if record.bound.get() >= bound {
                self.numbers.lock().bound = record.bound.get();
                return Ok(());
            }
            let next = OracleRecord { bound: Timestamp::saturating(bound), ..record.clone() };
            *extension = match self.stored.replace(Some(bytes), Some(&next)).await.map_err(not_issued)? {
                Replaced::Done(now) => (next, now),
                // A lost answer of an earlier move that was applied after all: the record is ours and says another
                // bound than we knew, which need not reach as far as this move. Any other record means that somebody
                // took over.
                Replaced::Other(Some((found, now)))
                    if found.epoch == self.epoch && found.holder == Some(self.incarnation) =>
                {
                    (found, now)
                }
                Replaced::Other(found) => {
                    self.numbers.lock().lost = true;
                    return Err(lost(&format!(
                        "epoch {} stands in the store, ours is {}",
                        found.map_or(0, |(record, _)| record.epoch),
                        self.epoch
                    )));
                }
            };
        }
    }

    fn check_fence(&self) -> Result<()> {
        match &self.fence {
            Fence::InProcess(newest) if newest.load(Ordering::SeqCst) != self.epoch => {
                self.numbers.lock().lost = true;
                Err(lost("a newer instance took over in this process"))
            }
            Fence::InProcess(_) | Fence::Store => Ok(()),
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

fn lost(reason: &str) -> Error {
    Error::LostLeadership { reason: reason.to_owned() }
}
