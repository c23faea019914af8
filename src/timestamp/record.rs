//! The oracle's record in the store, and the changes that need no running oracle.

use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A fast-forward over more than this is taken for a mistake: a store moved close to the greatest number can never
/// be moved back.
pub const LARGE_JUMP: u64 = 1 << 40;

/// Bound and ownership of the timestamps of a store, in one record so that one compare-and-set moves both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OracleRecord {
    /// Raised with each takeover.
    pub epoch: u64,
    /// The incarnation that issues; `None` after a clean end.
    pub holder: Option<uuid::Uuid>,
    /// Nothing at or above this was ever issued.
    pub bound: Timestamp,
    /// Raised by the holder while it lives, on stores that several processes share.
    pub renewal: u64,
}

impl OracleRecord {
    /// What a store without a record is taken for.
    pub(super) fn initial() -> OracleRecord {
        OracleRecord { epoch: 0, holder: None, bound: Timestamp::FIRST, renewal: 0 }
    }

    pub(super) fn in_store(kvs: Arc<dyn KeyValueService>) -> MetaRecord<OracleRecord> {
        MetaRecord::new(kvs, "oracle")
    }
}

/// What a fast-forward did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FastForward {
    /// The greatest number that may have been issued before.
    pub before: Timestamp,
    /// Nothing at or below this is issued from now on; the same as `before` if there was nothing to do.
    pub after: Timestamp,
}

impl FastForward {
    /// People count the last number, the record the first that is free.
    pub(super) fn inclusive(before: Timestamp, after: Timestamp) -> FastForward {
        FastForward { before: before.previous(), after: after.previous() }
    }
}

/// The record of a store, as it stands.
///
/// # Errors
/// [`Error::Corrupt`] for a damaged record.
pub async fn read_stored(kvs: Arc<dyn KeyValueService>) -> Result<Option<OracleRecord>> {
    Ok(OracleRecord::in_store(kvs).load().await?.map(|(record, _)| record))
}

/// Makes sure that no number up to and including `target` will ever be issued, in a store on which no oracle runs.
/// Never goes back: at or below the bound nothing changes.
///
/// # Errors
/// [`Error::Refused`] for a jump over more than [`LARGE_JUMP`], unless `allow_large_jump`.
pub async fn fast_forward_stored(
    kvs: Arc<dyn KeyValueService>,
    target: Timestamp,
    allow_large_jump: bool,
) -> Result<FastForward> {
    let stored = OracleRecord::in_store(kvs);
    let mut loaded = stored.load().await?;
    loop {
        let (record, bytes) = match loaded {
            Some((record, bytes)) => (record, Some(bytes)),
            None => (OracleRecord::initial(), None),
        };
        let before = record.bound;
        if target < before {
            return Ok(FastForward::inclusive(before, before));
        }
        check_jump(before, target, allow_large_jump)?;
        let after = target.next();
        let next = OracleRecord { bound: after, ..record };
        match stored.replace(bytes.as_ref(), Some(&next)).await? {
            Replaced::Done(_) => return Ok(FastForward::inclusive(before, after)),
            // Somebody else moved it: look again. Each round means that another one made progress.
            Replaced::Other(found) => loaded = found,
        }
    }
}

/// Refuses a jump that can only be a mistake.
pub(super) fn check_jump(before: Timestamp, target: Timestamp, allow_large_jump: bool) -> Result<()> {
    // Even an allowed jump leaves room to go on: a store at the greatest number could not begin a transaction.
    if target.get() >= Timestamp::MAX.get() - LARGE_JUMP {
        return Err(Error::refused(
            format!(
                "timestamp {target} lies too close to the greatest possible one: the store could not be used again"
            ),
            "check the number; a backup's timestamps are in its files backup.timestamp and fast-forward.timestamp",
        ));
    }
    let jump = target.get().saturating_sub(before.get());
    if jump > LARGE_JUMP && !allow_large_jump {
        return Err(Error::refused(
            format!("a jump from {before} to {target} is over more than 2^40 timestamps, which no use would reach"),
            "check the number; if it is right, repeat the command with --allow-large-jump: it can't be undone",
        ));
    }
    Ok(())
}
