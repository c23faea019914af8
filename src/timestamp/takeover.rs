//! Taking over the timestamps of a store that several processes share.

use super::fence::FenceRecord;
use super::issuer::check_bound;
use super::lease::LeaseOptions;
use super::oracle::BLOCK;
use super::record::{Contact, OracleRecord};
use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, KvsError, Timestamp};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// A record that is ours.
pub(super) struct Taken {
    pub(super) record: OracleRecord,
    pub(super) bytes: Bytes,
    /// The bound of before: nothing at or above it was issued.
    pub(super) bound: Timestamp,
    /// When we asked, on the clock of the lease.
    pub(super) asked: Duration,
    /// The database it was found on.
    pub(super) database: Option<String>,
}

/// Waits until the store has no living owner, and becomes it.
pub(super) async fn take_over(
    kvs: &Arc<dyn KeyValueService>,
    stored: &MetaRecord<OracleRecord>,
    incarnation: Uuid,
    options: &LeaseOptions,
) -> Result<Taken> {
    let mut watch = Watch { options, started: options.clock.now(), seen: None, alive: false };
    loop {
        match attempt(kvs, stored, incarnation, &mut watch).await {
            Ok(Some(taken)) => return Ok(taken),
            Ok(None) => (),
            // A stand-by is there for the day on which something fails. Others, too, who wait for an owner do not give
            // up because the store stumbled once: a look that failed is one look less, and shows no sign of life.
            Err(error @ (Error::Kvs(_) | Error::Unavailable { .. })) if watch.goes_on_after(&error) => {
                tracing::warn!(%error, "the owner of the store can't be watched at the moment");
            }
            Err(error) => return Err(error),
        }
        watch.pause().await?;
    }
}

/// One look, and the step that it allows.
async fn attempt(
    kvs: &Arc<dyn KeyValueService>,
    stored: &MetaRecord<OracleRecord>,
    incarnation: Uuid,
    watch: &mut Watch<'_>,
) -> Result<Option<Taken>> {
    let options = watch.options;
    let database = kvs.identity().await?;
    // The fence stands at or below the epoch of the record, unless the two were restored from different times. Then
    // too the new epoch must lie above both.
    let fenced = FenceRecord::in_store(kvs.clone()).load().await?.map_or(0, |(fence, _)| fence.epoch);
    let loaded = stored.load().await?;
    let (found, found_bytes) = match loaded {
        Some((record, bytes)) => (record, Some(bytes)),
        None => (OracleRecord::initial(), None),
    };
    check_bound(&found)?;
    check_database(&found, database.as_deref(), options)?;
    if found.holder == Some(incarnation) {
        // Our own takeover, whose answer was lost. It was asked for before this look, so the lease is counted anew by
        // a renewal, which is what a takeover from our own record is.
        tracing::debug!("the answer to a takeover was lost; the record is ours");
    } else if found.holder.is_some() && !watch.is_silent(&found, found_bytes.as_ref()) {
        return match watch.refusal(&found) {
            Some(refusal) => Err(refusal),
            None => Ok(None),
        };
    }
    let record = OracleRecord {
        epoch: found.epoch.max(fenced) + 1,
        holder: Some(incarnation),
        bound: Timestamp::saturating(found.bound.get() + BLOCK),
        renewal: 0,
        lease_ms: u64::try_from(options.lease.as_millis()).unwrap_or(u64::MAX),
        // Who stood by for a week has owned nothing meanwhile.
        contact: Some(Contact { since: jiff::Timestamp::now().to_string(), ..options.contact.clone() }),
        // Naming the database at hand says that the numbers go on here. A command that was let in only to look, or that
        // fails, has not seen to that; a fast-forward does.
        database: if options.allow_other_database { found.database.or(database.clone()) } else { database.clone() },
    };
    let asked = options.clock.now();
    match stored.replace(found_bytes.as_ref(), Some(&record)).await {
        Ok(Replaced::Done(bytes)) => Ok(Some(Taken { record, bytes, bound: found.bound, asked, database })),
        // Somebody was faster, or the owner is alive after all: look again.
        Ok(Replaced::Other(_)) => Ok(None),
        // Applied or not: the next look tells.
        Err(Error::Kvs(error)) if error.is_indeterminate() && watch.waited() < options.wait + options.lease => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a challenger knows of the owner.
struct Watch<'a> {
    options: &'a LeaseOptions,
    started: Duration,
    /// The record as it was seen last, since when, and how long its owner may be silent.
    seen: Option<(Bytes, Duration, Duration)>,
    /// The record has changed since the first look.
    alive: bool,
}

impl Watch<'_> {
    /// Notes what was just read, and tells whether it has stood for a whole lease.
    fn is_silent(&mut self, found: &OracleRecord, bytes: Option<&Bytes>) -> bool {
        // After the answer: the record may have been changed at any time before it.
        let now = self.options.clock.now();
        let Some(bytes) = bytes else { return true };
        match &self.seen {
            Some((seen, since, lease)) if seen == bytes => now.saturating_sub(*since) >= *lease,
            seen => {
                self.alive = seen.is_some();
                // The lease its owner counts on, which need not be ours.
                self.seen = Some((bytes.clone(), now, found.lease().unwrap_or(self.options.lease)));
                false
            }
        }
    }

    fn waited(&self) -> Duration {
        self.options.clock.now().saturating_sub(self.started)
    }

    /// Whether an error of the store is one to look past. For those who wait for an owner that would be until it was
    /// silent for a lease, or until they have no time for a living one: with one lease more for the looks that fail.
    fn goes_on_after(&self, error: &Error) -> bool {
        if self.options.standby.is_some() {
            return true;
        }
        let passing = match error {
            Error::Kvs(error) => matches!(error, KvsError::Unavailable { .. } | KvsError::Indeterminate { .. }),
            _ => true,
        };
        let Some((_, _, lease)) = &self.seen else { return false };
        passing && self.waited() < self.options.wait + *lease * 2
    }

    /// An owner that lives and is not going to be waited for any longer.
    fn refusal(&self, found: &OracleRecord) -> Option<Error> {
        let refuse = self.alive && self.options.standby.is_none() && self.waited() >= self.options.wait;
        refuse.then(|| Error::StoreOwned { owner: found.owner() })
    }

    async fn pause(&self) -> Result<()> {
        let lease = self.seen.as_ref().map_or(self.options.lease, |(_, _, lease)| *lease);
        let pause = self.options.clock.sleep((lease / 10).max(Duration::from_millis(1)));
        match &self.options.standby {
            None => pause.await,
            Some(cancelled) => tokio::select! {
                () = pause => (),
                () = cancelled.cancelled() => return Err(Error::Interrupted),
            },
        }
        Ok(())
    }
}

/// A copy of the store that lags behind would issue numbers again that were used on the original.
fn check_database(found: &OracleRecord, here: Option<&str>, options: &LeaseOptions) -> Result<()> {
    match (found.database.as_deref(), here) {
        (Some(recorded), Some(here)) if recorded != here && !options.allow_other_database => Err(Error::refused(
            format!(
                "the timestamps of this store were issued on database {recorded}, and this is {here}: after a \
                 fail-over, or in a copy, the last of them may be missing"
            ),
            "if this is where the store lives from now on, run `atlas timestamp fast-forward` with a timestamp above \
             all that were issued",
        )),
        _ => Ok(()),
    }
}
