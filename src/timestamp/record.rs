//! The oracle's record in the store, and the changes that need no running oracle.

use super::lease;
use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, Ownership, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

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
    /// How long the holder may be silent before another one takes over, in milliseconds. Zero on a store with one
    /// owner, and in records of programs that knew no leases.
    #[serde(default)]
    pub lease_ms: u64,
    /// Where the holder is found; `None` after a clean end.
    #[serde(default)]
    pub contact: Option<Contact>,
    /// The database the numbers were issued on, as the store names it.
    #[serde(default)]
    pub database: Option<String>,
}

/// Where an owner of timestamps is found, for people and for clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Its process.
    pub pid: u32,
    /// The machine it runs on.
    pub host: String,
    /// What it is, such as `atlas serve`.
    pub program: String,
    /// Where it answers over gRPC, as host and port, if it does.
    pub address: Option<String>,
    /// Since when it owns the timestamps, RFC 3339.
    pub since: String,
}

impl Contact {
    /// This process, from now on.
    pub fn this_process(program: impl Into<String>) -> Contact {
        Contact {
            pid: std::process::id(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            program: program.into(),
            address: None,
            since: jiff::Timestamp::now().to_string(),
        }
    }
}

impl fmt::Display for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`, process {} on {}, since {}", self.program, self.pid, self.host, self.since)
    }
}

impl OracleRecord {
    /// What a store without a record is taken for.
    pub(super) fn initial() -> OracleRecord {
        OracleRecord {
            epoch: 0,
            holder: None,
            bound: Timestamp::FIRST,
            renewal: 0,
            lease_ms: 0,
            contact: None,
            database: None,
        }
    }

    /// The lease its holder has promised to renew, if it has.
    pub(crate) fn lease(&self) -> Option<Duration> {
        (self.lease_ms > 0).then(|| Duration::from_millis(self.lease_ms))
    }

    /// Whose it is, for people.
    pub(crate) fn owner(&self) -> String {
        self.contact.as_ref().map_or_else(|| "a process that left no name".to_owned(), Contact::to_string)
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

/// Makes sure that no number up to and including `target` will ever be issued, in a store on which no oracle runs, or
/// none but one of this process ([`take_over_for_command`](super::take_over_for_command)). Never goes back: at or
/// below the bound, the bound stays as it is. On a shared store it also records that the numbers go on in the database
/// at hand, whatever database the record named before.
///
/// # Errors
/// [`Error::Refused`] for a jump over more than [`LARGE_JUMP`], unless `allow_large_jump`, and on a shared store that
/// has an owner in another process.
pub async fn fast_forward_stored(
    kvs: Arc<dyn KeyValueService>,
    target: Timestamp,
    allow_large_jump: bool,
) -> Result<FastForward> {
    let shared = matches!(kvs.ownership(), Ownership::Shared);
    let database = if shared { kvs.identity().await? } else { None };
    let stored = OracleRecord::in_store(kvs);
    let mut loaded = stored.load().await?;
    loop {
        let (record, bytes) = match loaded {
            Some((record, bytes)) => (record, Some(bytes)),
            None => (OracleRecord::initial(), None),
        };
        if shared {
            refuse_foreign_holder(&record)?;
        }
        let before = record.bound;
        let after = if target < before { before } else { target.next() };
        check_jump(before, target, allow_large_jump)?;
        let next =
            OracleRecord { bound: after, database: database.clone().or(record.database.clone()), ..record.clone() };
        if next == record {
            return Ok(FastForward::inclusive(before, after));
        }
        match stored.replace(bytes.as_ref(), Some(&next)).await? {
            Replaced::Done(_) => return Ok(FastForward::inclusive(before, after)),
            // Somebody else moved it: look again. Each round means that another one made progress.
            Replaced::Other(found) => loaded = found,
        }
    }
}

/// An owner keeps the next number in memory, and would issue on below the target.
fn refuse_foreign_holder(record: &OracleRecord) -> Result<()> {
    match record.holder {
        Some(holder) if !lease::is_of_this_process(holder) => Err(Error::refused(
            format!("the timestamps of the store are owned by {}", record.owner()),
            "end it, or let the command take over when its lease has run out",
        )),
        _ => Ok(()),
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
