//! What issues: numbers in memory below a bound in the store, and the right to hand them out.

use super::lease::{Lease, renewal_period};
use super::oracle::BLOCK;
use super::record::OracleRecord;
use crate::planted::Mistake;
use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, Timestamp};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often a lost answer to the release is asked for again.
const RELEASE_ATTEMPTS: u32 = 3;

#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) epoch: u64,
    pub(super) incarnation: Uuid,
    pub(super) kvs: Arc<dyn KeyValueService>,
    pub(super) stored: MetaRecord<OracleRecord>,
    pub(super) right: Right,
    pub(super) numbers: Numbers,
    // Held while the record is changed, so that one move of the bound serves all who wait for it. Holds the record as
    // it stands for all we know, and the bytes to compare with.
    pub(super) extension: tokio::sync::Mutex<(OracleRecord, Bytes)>,
    pub(super) lost: CancellationToken,
}

/// The numbers at hand. Who draws one takes no latch: threads that begin at the same time would wait for each other.
#[derive(Debug)]
pub(super) struct Numbers {
    // Invariant: without the mark it is at most the bound, and every number below was issued or wasted.
    next: AtomicU64,
    bound: AtomicU64,
    lost: Mutex<Option<String>>,
}

/// Marks the next number when none is issued any more, so that whoever is about to take it fails. Timestamps end below.
const CLOSED: u64 = 1 << 63;

/// How an outdated issuer learns that it is outdated.
#[derive(Debug)]
pub(super) enum Right {
    /// The newest epoch of this store in this process; nobody else can open the store.
    InProcess(Arc<AtomicU64>),
    /// Others can reach the store. They keep away for as long as the lease is renewed.
    Leased {
        lease: Lease,
        /// Where the lease was taken. Elsewhere it is nobody's.
        database: Option<String>,
    },
}

/// Why the owner of a store that was closed in order is none any more.
const GIVEN_UP: &str = "it was given up by its owner";

pub(super) async fn renew_for_ever(issuer: Arc<Issuer>) {
    let Right::Leased { lease, .. } = &issuer.right else { return };
    let period = renewal_period(lease.length);
    lease.clock.sleep(period).await;
    while !issuer.numbers.is_lost() {
        // The time to the next attempt runs from before this one, which may take long.
        let next = lease.clock.sleep(period);
        // A renewal that hangs must not use up the lease: a second one may be answered.
        let renewed = tokio::select! {
            biased;
            renewed = issuer.renew() => renewed,
            () = lease.clock.sleep(lease.length / 2) => Err(run_out()),
        };
        if let Err(error) = renewed {
            if issuer.numbers.lost().as_deref() == Some(GIVEN_UP) {
                return; // By ourselves, while the renewal was on its way.
            }
            tracing::warn!(%error, "the lease on the store was not renewed");
        }
        next.await;
    }
}

impl Numbers {
    fn new(next: u64, bound: u64) -> Numbers {
        Numbers { next: AtomicU64::new(next), bound: AtomicU64::new(bound), lost: Mutex::new(None) }
    }

    /// Fails once nothing is issued any more.
    pub(super) fn check(&self) -> Result<()> {
        if self.next.load(Ordering::SeqCst) & CLOSED == 0 {
            return Ok(());
        }
        // Marked under the latch, with the reason.
        self.lost.lock().as_deref().map_or(Ok(()), |reason| Err(lost(reason)))
    }

    /// Why nothing is issued any more.
    pub(super) fn lost(&self) -> Option<String> {
        self.check().err().and_then(|_| self.lost.lock().clone())
    }

    pub(super) fn is_lost(&self) -> bool {
        self.next.load(Ordering::SeqCst) & CLOSED != 0
    }

    pub(super) fn bound(&self) -> u64 {
        self.bound.load(Ordering::SeqCst)
    }

    pub(super) fn next(&self) -> u64 {
        self.next.load(Ordering::SeqCst) & !CLOSED
    }

    /// Takes `count` numbers and answers the first; `None` if there are not so many.
    pub(super) fn take(&self, count: u64) -> Result<Option<u64>> {
        let mut next = self.next.load(Ordering::SeqCst);
        loop {
            if next & CLOSED != 0 {
                self.check()?;
            }
            // A bound read too early is one that is too low.
            if self.bound().saturating_sub(next) < count {
                return Ok(None);
            }
            match self.next.compare_exchange_weak(next, next + count, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(first) => return Ok(Some(first)),
                Err(now) => next = now,
            }
        }
    }

    /// Goes on at `next`, if it is not there yet. The bound must reach as far.
    pub(super) fn skip_to(&self, next: u64) {
        // What is closed stays so: the mark makes it the greatest.
        self.next.fetch_max(next, Ordering::SeqCst);
    }

    fn set_bound(&self, bound: u64) {
        self.bound.store(bound, Ordering::SeqCst);
    }

    /// Issues nothing any more; the first reason counts. Answers it, whether it is the one that was given, and the
    /// number that would have come next: nothing at or above it was issued, or will be.
    fn close(&self, reason: String) -> (String, bool, u64) {
        let mut lost = self.lost.lock();
        let is_first = lost.is_none();
        let reason = lost.get_or_insert(reason).clone();
        (reason, is_first, self.next.fetch_or(CLOSED, Ordering::SeqCst) & !CLOSED)
    }
}

impl Issuer {
    pub(super) fn new(
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
            numbers: Numbers::new(first.get(), record.bound.get()),
            extension: tokio::sync::Mutex::new((record, bytes)),
            lost: CancellationToken::new(),
        }
    }

    pub(super) fn last_issued(&self) -> Timestamp {
        Timestamp::saturating(self.numbers.next() - 1)
    }

    /// For good. The first reason counts.
    pub(super) fn lose(&self, reason: String) -> Error {
        let (reason, by_others, _) = self.numbers.close(reason);
        let error = lost(&reason);
        self.give_up_lease();
        if by_others {
            tracing::error!(%error, "no timestamps are issued any more");
            self.lost.cancel();
        }
        error
    }

    pub(super) fn give_up_lease(&self) {
        if let Right::Leased { lease, .. } = &self.right {
            lease.give_up();
        }
    }

    /// False while a lease has run out and may still be renewed.
    pub(super) fn holds_right(&self) -> Result<bool> {
        match &self.right {
            Right::InProcess(newest) if newest.load(Ordering::SeqCst) != self.epoch => {
                Err(self.lose("a newer instance took over in this process".to_owned()))
            }
            Right::InProcess(_) => Ok(true),
            Right::Leased { lease, .. } if lease.is_held() => Ok(true),
            Right::Leased { .. } => self.numbers.check().map(|()| false),
        }
    }

    /// Waits for what was missing when no number could be issued.
    pub(super) async fn make_way(&self, count: u64) -> Result<()> {
        if let Right::Leased { lease, .. } = &self.right
            && !lease.is_held()
        {
            let held = lease.wait_until_held().await;
            self.numbers.check()?;
            return if held { Ok(()) } else { Err(run_out()) };
        }
        self.extend(count).await
    }

    pub(super) async fn extend(&self, count: u64) -> Result<()> {
        let mut extension = self.extension.lock().await;
        let wanted = {
            let (next, bound) = (self.numbers.next(), self.numbers.bound());
            if bound.saturating_sub(next) >= count {
                return Ok(()); // Somebody moved the bound while we waited for our turn.
            }
            next.max(bound) + BLOCK
        };
        self.move_bound(&mut extension, wanted).await
    }

    /// Moves the bound to `bound` or beyond. Never back: somebody may be about to use what it covers already.
    pub(super) async fn move_bound(&self, extension: &mut (OracleRecord, Bytes), bound: u64) -> Result<()> {
        if bound >= Timestamp::MAX.get() {
            return Err(Error::Unavailable {
                what: "the timestamp oracle".to_owned(),
                reason: "all timestamps are used up; the store can be read but not written".to_owned(),
            });
        }
        if Mistake::IssueBeforeTheBound.is_made() {
            self.numbers.set_bound(bound);
        }
        while extension.0.bound.get() < bound {
            self.write(extension, Timestamp::saturating(bound)).await?;
        }
        self.numbers.set_bound(extension.0.bound.get());
        Ok(())
    }

    /// Shows the others that we live.
    pub(super) async fn renew(&self) -> Result<()> {
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
    pub(super) async fn check_database(&self) -> Result<()> {
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
    pub(super) async fn write(&self, extension: &mut (OracleRecord, Bytes), bound: Timestamp) -> Result<bool> {
        // After a release too: the record is not ours any more, and that is no news.
        self.numbers.check()?;
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

    pub(super) fn is_ours(&self, found: &OracleRecord) -> bool {
        found.epoch == self.epoch && found.holder == Some(self.incarnation)
    }

    pub(super) async fn release(&self, keep_bound: bool) -> Result<()> {
        // There is nothing to give up.
        if self.lost.is_cancelled() {
            return Ok(());
        }
        let mut extension = self.extension.lock().await;
        // From here on nothing is issued, so `next` is a bound: nothing at or above it ever was.
        let (_, _, next) = self.numbers.close(GIVEN_UP.to_owned());
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

/// Refuses a bound that can't have been written.
pub(super) fn check_bound(found: &OracleRecord) -> Result<()> {
    if found.bound < Timestamp::FIRST || found.bound.get() >= Timestamp::MAX.get() - BLOCK {
        return Err(Error::corrupt("record 'oracle'", format!("{} can't be the timestamp bound", found.bound)));
    }
    Ok(())
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

pub(super) fn run_out() -> Error {
    Error::Unavailable {
        what: "the timestamp oracle".to_owned(),
        reason: "its lease on the store ran out and was not renewed in time".to_owned(),
    }
}

pub(super) fn lost(reason: &str) -> Error {
    Error::LostLeadership { reason: reason.to_owned() }
}
