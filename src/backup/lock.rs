//! The backup lock: while it is held, nothing is physically removed.
//!
//! A live copy of a store takes its time. A version that was visible at the backup's timestamp must not be removed
//! from the part that is not copied yet, so whoever copies takes this lock first. It is a record in the store, so that
//! it is seen by every process, survives them, and travels along in the copy.
//!
//! ```text
//!   deletion   permit ── delete ── drop                 permit: BackupLockHeld
//!   backup         acquire ........... drained ─ record ─ copy ─ check ─ release
//! ```
//!
//! Two kinds: one belongs to nobody's process and stays until it is released; the other is renewed by a running
//! backup, and can be released by hand once its owner renews it no more. Neither ends by itself: deleting under a
//! backup that merely stalled would spoil it, and a lock that is left behind costs space and nothing else. A backup
//! proves at its end, with [`BackupLockGuard::check`], that the lock was its own all the time.
//!
//! Physical deletions are made by the process that owns the store, and by none other: deletions under way are known
//! to their own process only, while the record stops later ones wherever they are.

mod gate;
mod guard;
#[cfg(test)]
mod tests;

pub use gate::{DeletionPermit, PhysicalDeletionGate};
pub use guard::BackupLockGuard;

use crate::lock::{BootClock, Clock};
use crate::ops::BackupLockRecord;
use crate::rule::Rule;
use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, KvsError};
use gate::ClosedGate;
use guard::Claim;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinError;
use uuid::Uuid;

/// Name of the record.
pub const BACKUP_LOCK_RECORD: &str = "backup-lock";

/// Shortest lease of a renewed lock: shorter ones would be lost to a busy store.
pub const LEASE_MIN: Duration = Duration::from_secs(1);

/// How often a write with a lost answer is tried to be settled.
const ATTEMPTS_MAX: u32 = 5;
/// How long to wait between them.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(200);
/// In how many looks a lease is observed.
const LOOKS: u32 = 8;

/// The backup lock of one store. Cloning is cheap; there must be one, with its clones, in a process for a store: it
/// holds the gate that deletions pass.
#[derive(Clone, Debug)]
pub struct BackupLock {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    record: MetaRecord<BackupLockRecord>,
    clock: Arc<dyn Clock>,
    gate: Mutex<Gate>,
    /// Told when the last permit was given back.
    drained: Notify,
    /// One acquisition at a time closes the gate.
    acquiring: Arc<tokio::sync::Mutex<()>>,
    /// Acquisitions that are renewed by this process.
    renewed_here: Mutex<HashSet<Uuid>>,
}

#[derive(Debug, Default)]
struct Gate {
    permits: usize,
    /// Who waits for the permits to be given back, and lets in nobody meanwhile.
    closed_for: Option<BackupLockRecord>,
}

impl BackupLock {
    /// The lock of this store, which must have its table of records.
    pub fn new(kvs: Arc<dyn KeyValueService>) -> BackupLock {
        BackupLock::with_clock(kvs, Arc::new(BootClock))
    }

    /// The same, with leases measured by `clock`.
    pub fn with_clock(kvs: Arc<dyn KeyValueService>, clock: Arc<dyn Clock>) -> BackupLock {
        BackupLock {
            shared: Arc::new(Shared {
                record: MetaRecord::new(kvs, BACKUP_LOCK_RECORD),
                clock,
                gate: Mutex::default(),
                drained: Notify::new(),
                acquiring: Arc::default(),
                renewed_here: Mutex::default(),
            }),
        }
    }

    /// What every physical deletion has to pass.
    pub fn gate(&self) -> PhysicalDeletionGate {
        PhysicalDeletionGate { shared: self.shared.clone() }
    }

    /// The lock as it stands in the store.
    ///
    /// # Errors
    /// Those of the store; [`Error::Corrupt`] if the record can't be read.
    pub async fn status(&self) -> Result<Option<BackupLockRecord>> {
        Ok(self.shared.record.load().await?.map(|(record, _)| record))
    }

    /// Takes the lock for nobody's process: it stays until it is released. Returns when no deletion is under way in
    /// this process; later ones are refused.
    ///
    /// Cancel safe: an acquisition whose caller is gone is taken back, as far as the store answers.
    ///
    /// # Errors
    /// [`Error::BackupLockHeld`] if anybody holds it, or is about to; those of the store. After `Indeterminate` the
    /// lock may be held: [`status`](Self::status) tells, [`release`](Self::release) ends it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn acquire_for_nobody(&self, reason: &str) -> Result<BackupLockRecord> {
        let claim = self.acquire(record_for(reason, None)).await?;
        Ok(claim.keep())
    }

    /// Takes the lock for a backup that runs in this process, and renews it for as long as the guard lives. Returns
    /// when no deletion is under way in this process; later ones are refused.
    ///
    /// `lease` is how long someone who wants to release the lock has to watch it without a renewal.
    ///
    /// Cancel safe, as [`acquire_for_nobody`](Self::acquire_for_nobody).
    ///
    /// # Errors
    /// [`Error::Usage`] for a lease below [`LEASE_MIN`]; otherwise as
    /// [`acquire_for_nobody`](Self::acquire_for_nobody).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn acquire_renewed(&self, reason: &str, lease: Duration) -> Result<BackupLockGuard> {
        if lease < LEASE_MIN {
            return Err(Error::Usage(format!("a backup lock's lease is {} ms at least", LEASE_MIN.as_millis())));
        }
        let claim = self.acquire(record_for(reason, Some(lease))).await?;
        Ok(BackupLockGuard::start(claim, lease))
    }

    /// Clears the lock, and answers what was cleared. A lock for nobody is cleared at once. One that is renewed is
    /// cleared when it was watched for its whole lease without being renewed, which takes that long: clocks of two
    /// machines are not compared. One that is renewed by this process is refused at once.
    ///
    /// A backup whose lock is cleared by mistake, because it stalled, finds out at its end and is void.
    ///
    /// Cancel safe: the lock is cleared or not.
    ///
    /// # Errors
    /// [`Error::BackupLockHeld`] if it is being renewed, or was taken anew meanwhile; those of the store.
    pub async fn release(&self) -> Result<Option<BackupLockRecord>> {
        let Some((record, bytes)) = self.shared.record.load().await? else { return Ok(None) };
        if record.renewal.is_some() {
            match self.watch(&record).await? {
                Watched::Unchanged => (),
                Watched::Gone => return Ok(None),
            }
        }
        // By the bytes observed, so that a renewal at the last moment wins.
        match self.shared.record.replace(Some(&bytes), None).await? {
            Replaced::Done(_) => Ok(Some(record)),
            Replaced::Other(None) => Ok(None),
            Replaced::Other(Some((other, _))) => Err(held(&other)),
        }
    }

    /// As [`release`](Self::release) by a process that owns the store alone: a lock that this process does not renew
    /// is renewed by nobody, so it is cleared at once.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub async fn release_as_owner(&self) -> Result<Option<BackupLockRecord>> {
        // An acquisition under way may have written a lock that it does not count as its own yet.
        let Ok(_no_acquisition) = self.shared.acquiring.try_lock() else { return self.release().await };
        let Some((record, bytes)) = self.shared.record.load().await? else { return Ok(None) };
        if self.is_renewed_here(&record) {
            return Err(held(&record));
        }
        match self.shared.record.replace(Some(&bytes), None).await? {
            Replaced::Done(_) => Ok(Some(record)),
            Replaced::Other(None) => Ok(None),
            Replaced::Other(Some((other, _))) => Err(held(&other)),
        }
    }

    /// True for the lock of a backup that runs in this process.
    pub(crate) fn is_renewed_here(&self, record: &BackupLockRecord) -> bool {
        self.shared.renewed_here.lock().contains(&record.lock_id)
    }

    /// Clears the lock, whoever holds it, and answers what was cleared: for a restore, which finds in the copy the
    /// lock of the backup that made it. Nobody else may use the store.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn clear_after_restore(&self) -> Result<Option<BackupLockRecord>> {
        loop {
            let Some((record, bytes)) = self.shared.record.load().await? else { return Ok(None) };
            if let Replaced::Done(_) = self.shared.record.replace(Some(&bytes), None).await? {
                return Ok(Some(record));
            }
        }
    }

    /// Watches a renewed lock for its whole lease.
    async fn watch(&self, observed: &BackupLockRecord) -> Result<Watched> {
        let pause = Duration::from_millis(observed.lease_ms) / LOOKS;
        // The lease is counted in sleeps, not read off a clock: a machine that was suspended gives its own backups a
        // whole lease of waking time.
        for _ in 0..LOOKS {
            if self.shared.renewed_here.lock().contains(&observed.lock_id) {
                return Err(held(observed));
            }
            self.shared.clock.sleep(pause).await;
            match self.status().await? {
                None => return Ok(Watched::Gone),
                Some(now) if (now.lock_id, now.renewal) == (observed.lock_id, observed.renewal) => (),
                Some(now) => return Err(held(&now)),
            }
        }
        Ok(Watched::Unchanged)
    }

    /// Takes the lock. The order of its steps, and why a crash or a dropped call after each is harmless:
    ///
    /// 1. close the gate: deletions that come are refused; in memory only, and undone by a drop;
    /// 2. wait for the deletions under way; still in memory only;
    /// 3. persist the record: from here on a deletion is refused wherever and whenever it comes. A crash now leaves a
    ///    lock with nobody behind it, which keeps data that could be removed, and is released by hand;
    /// 4. open the gate: who comes now reads the record, and is refused by it.
    ///
    /// Record first and drain second would be as right about deletions. But a renewed lock would run on its first
    /// lease while a long deletion drains, and a dropped call would have to take back what others may have seen.
    async fn acquire(&self, record: BackupLockRecord) -> Result<Claim> {
        let shared = self.shared.clone();
        let one_at_a_time = shared.acquiring.clone().lock_owned().await;
        // Asked before the gate is closed: a lock that is held is no reason to wait for deletions.
        if let Some((other, _)) = shared.record.load().await? {
            return Err(held(&other));
        }
        let closed = ClosedGate::close(&shared, &record);
        if Rule::DrainDeletions.is_kept() {
            shared.drain().await;
        }
        // In a task of its own. A caller that goes away in the middle of the store's write would otherwise leave a
        // lock that nobody knows of; so the write comes to its end, and a claim that nobody takes clears it again.
        let persisted = tokio::spawn(async move {
            let claim = shared.persist(record).await;
            drop((closed, one_at_a_time));
            claim
        });
        joined(persisted.await)
    }
}

enum Watched {
    Unchanged,
    Gone,
}

impl Shared {
    async fn drain(&self) {
        loop {
            let mut drained = std::pin::pin!(self.drained.notified());
            // Listen first, look then: a permit given back in between is heard.
            drained.as_mut().enable();
            if self.gate.lock().permits == 0 {
                return;
            }
            drained.await;
        }
    }

    /// Writes the record where there is none.
    async fn persist(self: &Arc<Shared>, mut record: BackupLockRecord) -> Result<Claim> {
        let mut tried = HashSet::new();
        let mut unknown = None;
        for _ in 0..ATTEMPTS_MAX {
            tried.insert(record.lock_id);
            match self.record.replace(None, Some(&record)).await {
                Ok(Replaced::Done(bytes)) => return Ok(Claim::new(self, record, bytes)),
                // An earlier attempt of ours, of which the answer was lost.
                Ok(Replaced::Other(Some((found, bytes)))) if tried.contains(&found.lock_id) => {
                    return Ok(Claim::new(self, found, bytes));
                }
                Ok(Replaced::Other(Some((other, _)))) => return Err(held(&other)),
                // Cleared between the comparison and the answer.
                Ok(Replaced::Other(None)) => (),
                Err(error @ Error::Kvs(KvsError::Indeterminate { .. })) => unknown = Some(error),
                // After a lost answer, "nothing was applied" is true of this attempt only.
                Err(error) if unknown.is_none() => return Err(error),
                Err(_) => (),
            }
            // Settled by writing, not by reading that there is nothing: the lost write may still come. Under a new id,
            // so that when it comes after this lock was cleared, nobody takes it for the lock that was cleared.
            record.lock_id = Uuid::new_v4();
            self.clock.sleep(ATTEMPT_PAUSE).await;
        }
        Err(unknown.unwrap_or_else(|| Error::Unavailable {
            what: "the backup lock".to_owned(),
            reason: "others take and release it all the time".to_owned(),
        }))
    }

    /// Clears the record if it is this acquisition's. Answers whether it was.
    async fn clear(&self, lock_id: Uuid) -> Result<bool> {
        let mut attempts = 0;
        let mut may_be_cleared = false;
        loop {
            attempts += 1;
            let result = match self.record.load().await {
                Ok(Some((record, bytes))) if record.lock_id == lock_id => self.record.replace(Some(&bytes), None).await,
                Ok(_) => return Ok(may_be_cleared),
                Err(error) => Err(error),
            };
            match result {
                Ok(Replaced::Done(_)) => return Ok(true),
                // A renewal came in between; it was the last.
                Ok(Replaced::Other(_)) => continue,
                Err(error) if attempts >= ATTEMPTS_MAX => return Err(error),
                Err(error) => may_be_cleared |= matches!(error, Error::Kvs(KvsError::Indeterminate { .. })),
            }
            self.clock.sleep(ATTEMPT_PAUSE).await;
        }
    }
}

/// What a task of ours came to.
fn joined<T>(result: std::result::Result<Result<T>, JoinError>) -> Result<T> {
    result.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        // We cancel none of them: the runtime is being shut down.
        Err(_) => Err(Error::Interrupted),
    })
}

fn held(record: &BackupLockRecord) -> Error {
    let BackupLockRecord { holder, since, reason, .. } = record.clone();
    Error::BackupLockHeld { holder, since, reason }
}

fn record_for(reason: &str, lease: Option<Duration>) -> BackupLockRecord {
    let since = now();
    BackupLockRecord {
        lock_id: Uuid::new_v4(),
        holder: this_holder(),
        reason: reason.to_owned(),
        renewal: lease.map(|_| 0),
        lease_ms: lease.map_or(0, |lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)),
        renewed_at: lease.map(|_| since.clone()),
        since,
    }
}

/// The wall-clock time in RFC 3339, for people.
fn now() -> String {
    format!("{:.0}", jiff::Timestamp::now())
}

/// `user@host pid N`.
pub(crate) fn this_holder() -> String {
    let user =
        ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user}@{host} pid {}", std::process::id())
}
