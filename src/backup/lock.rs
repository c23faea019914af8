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

use crate::lock::{BootClock, Clock};
use crate::ops::BackupLockRecord;
use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, KvsError};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinError};
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
        shared.drain().await;
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

/// The gate is closed while this lives.
struct ClosedGate(Arc<Shared>);

impl ClosedGate {
    fn close(shared: &Arc<Shared>, record: &BackupLockRecord) -> ClosedGate {
        shared.gate.lock().closed_for = Some(record.clone());
        ClosedGate(shared.clone())
    }
}

impl Drop for ClosedGate {
    fn drop(&mut self) {
        self.0.gate.lock().closed_for = None;
    }
}

/// A persisted lock of ours, cleared when this is dropped.
#[derive(Debug)]
struct Claim {
    shared: Arc<Shared>,
    record: BackupLockRecord,
    bytes: Bytes,
    runtime: Handle,
    /// Whether nothing is left to clear.
    settled: bool,
}

impl Claim {
    fn new(shared: &Arc<Shared>, record: BackupLockRecord, bytes: Bytes) -> Claim {
        if record.renewal.is_some() {
            shared.renewed_here.lock().insert(record.lock_id);
        }
        Claim { shared: shared.clone(), record, bytes, runtime: Handle::current(), settled: false }
    }

    /// Leaves the lock to itself.
    fn keep(mut self) -> BackupLockRecord {
        self.settled = true;
        self.record.clone()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.renewed_here.lock().remove(&self.record.lock_id);
        if self.settled {
            return;
        }
        let (shared, lock_id) = (self.shared.clone(), self.record.lock_id);
        self.runtime.spawn(async move {
            if let Err(error) = shared.clear(lock_id).await {
                tracing::warn!(%error, "the backup lock was not released: `atlas backup-lock --release` does it");
            }
        });
    }
}

/// The backup lock, held by a backup that runs in this process. Renewed while this lives; dropping it without
/// [`release`](Self::release) releases the lock in the background, as far as the store answers.
#[derive(Debug)]
pub struct BackupLockGuard {
    claim: Claim,
    lost: Arc<AtomicBool>,
    renewer: AbortHandle,
}

impl BackupLockGuard {
    fn start(claim: Claim, lease: Duration) -> BackupLockGuard {
        let lost = Arc::new(AtomicBool::new(false));
        let renewing =
            renew_for_ever(claim.shared.clone(), claim.record.clone(), claim.bytes.clone(), lease / 4, lost.clone());
        let renewer = tokio::spawn(renewing).abort_handle();
        BackupLockGuard { claim, lost, renewer }
    }

    /// The lock as it was acquired.
    pub fn record(&self) -> &BackupLockRecord {
        &self.claim.record
    }

    /// Asks the store whether the lock is still this acquisition's, and so was all the time since.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Error::BackupVoid`] if it is not; those of the store, after which it is not known.
    pub async fn check(&self) -> Result<()> {
        let found = self.claim.shared.record.load().await?.map(|(record, _)| record);
        let reason = match found {
            // Every acquisition has an id of its own: a lock that was cleared in between would have another one now.
            Some(found) if found.lock_id == self.claim.record.lock_id && !self.lost.load(Ordering::Acquire) => {
                return Ok(());
            }
            Some(found) if found.lock_id != self.claim.record.lock_id => {
                format!("it was released, and taken by {} since {}: {}", found.holder, found.since, found.reason)
            }
            _ => "it was released".to_owned(),
        };
        Err(Error::BackupVoid { reason })
    }

    /// Stops renewing and clears the lock if it is still this acquisition's. Answers whether it was.
    ///
    /// Cancel safe: what is not done is tried in the background.
    ///
    /// # Errors
    /// Those of the store: the lock may be held then, is renewed no more, and is released by hand.
    pub async fn release(mut self) -> Result<bool> {
        self.renewer.abort();
        let was_ours = self.claim.shared.clear(self.claim.record.lock_id).await;
        // Not tried again behind the caller's back: it has been tried often enough, and the caller is told.
        self.claim.settled = true;
        was_ours
    }
}

impl Drop for BackupLockGuard {
    fn drop(&mut self) {
        self.renewer.abort();
    }
}

/// Counts the renewal up, each time by comparing with what was written last.
async fn renew_for_ever(
    shared: Arc<Shared>,
    mut record: BackupLockRecord,
    mut bytes: Bytes,
    period: Duration,
    lost: Arc<AtomicBool>,
) {
    let lock_id = record.lock_id;
    loop {
        shared.clock.sleep(period).await;
        let renewal = record.renewal.map(|renewal| renewal + 1);
        let renewed = BackupLockRecord { renewal, renewed_at: Some(now()), ..record.clone() };
        match shared.record.replace(Some(&bytes), Some(&renewed)).await {
            Ok(Replaced::Done(written)) => (record, bytes) = (renewed, written),
            // A renewal of ours, of which the answer was lost.
            Ok(Replaced::Other(Some((found, written)))) if found.lock_id == lock_id => {
                (record, bytes) = (found, written)
            }
            Ok(Replaced::Other(_)) => {
                lost.store(true, Ordering::Release);
                tracing::error!(%lock_id, "the backup lock was lost: the backup that runs is void");
                return;
            }
            // The next one may do better. Nothing ends by itself, so nothing is lost yet.
            Err(error) => tracing::warn!(%error, "the backup lock was not renewed"),
        }
    }
}

/// What every physical deletion (truncate, drop, range delete, sweep) has to pass. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct PhysicalDeletionGate {
    shared: Arc<Shared>,
}

/// One physical deletion is under way, and no backup lock is acquired until it is over.
#[derive(Debug)]
#[must_use = "the deletion is allowed for as long as this lives"]
pub struct DeletionPermit {
    shared: Arc<Shared>,
}

impl PhysicalDeletionGate {
    /// Allows one deletion. Reads the record each time: another process may have taken the lock.
    ///
    /// The permit must outlive the deletion *in the store*, and a store may go on with a call whose future was
    /// dropped: who may be dropped half way uses [`run`](Self::run). For a long series of deletions, take a permit
    /// for each: an acquisition waits for it.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Error::BackupLockHeld`] if the lock is held or being acquired; those of the store.
    pub async fn permit(&self) -> Result<DeletionPermit> {
        // Counted before the record is read: an acquisition waits for everyone who may have read "free".
        let permit = self.enter()?;
        match self.shared.record.load().await? {
            None => Ok(permit),
            Some((record, _)) => Err(held(&record)),
        }
    }

    /// Carries out one deletion under a permit, in a task of its own: when the caller is dropped, deletion and permit
    /// come to their end together.
    ///
    /// # Errors
    /// Those of [`permit`](Self::permit), in which case the deletion was not begun, and the deletion's own.
    ///
    /// # Panics
    /// Outside of a tokio runtime, and if the deletion does.
    pub async fn run<T: Send + 'static>(
        &self,
        deletion: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let permit = self.permit().await?;
        let task = tokio::spawn(async move {
            let result = deletion.await;
            drop(permit);
            result
        });
        joined(task.await)
    }

    fn enter(&self) -> Result<DeletionPermit> {
        let mut gate = self.shared.gate.lock();
        // Refused, not made to wait: who asks may hold a permit that the acquisition waits for.
        if let Some(record) = &gate.closed_for {
            return Err(held(record));
        }
        gate.permits += 1;
        Ok(DeletionPermit { shared: self.shared.clone() })
    }
}

impl Drop for DeletionPermit {
    fn drop(&mut self) {
        let mut gate = self.shared.gate.lock();
        gate.permits -= 1;
        if gate.permits == 0 {
            self.shared.drained.notify_waiters();
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
fn this_holder() -> String {
    let user =
        ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user}@{host} pid {}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::mock::{MockClock, settle};
    use async_trait::async_trait;
    use atlas_kvs::{
        AtomicBatch, AtomicScan, Availability, Capabilities, Cell, CellBound, CellTimestamps, CellVersionRange,
        CellVersions, CheckAndSet, Durability, NativeSnapshot, Ownership, PutUnlessExists, ResultStream, RowRange,
        Scan, TableDescription, TableKind, TableRef, TableSize, Timestamp, Value, Version, VersionScan,
    };
    use atlas_kvs_memory::MemoryStore;
    use futures::FutureExt;
    use std::collections::VecDeque;
    use tokio::sync::oneshot;

    const LEASE: Duration = Duration::from_secs(60);

    /// What happens to the next compare-and-set.
    #[derive(Debug)]
    enum Fault {
        /// Applied, and the answer is lost.
        LoseAnswer,
        /// Not applied yet; the answer is lost.
        Delay,
        /// Refused.
        Unavailable,
        /// Applied; the answer comes when this is sent.
        Hold(oneshot::Receiver<()>),
        /// Applied when this is sent.
        Late(oneshot::Receiver<()>),
    }

    /// A compare-and-set that is still under way: the cell, what is expected there and what shall be.
    type Delayed = (Cell, Option<Bytes>, Option<Bytes>);

    /// A store in memory that does what stores at the other end of a network do.
    #[derive(Debug)]
    struct FaultyStore {
        memory: MemoryStore,
        faults: Mutex<VecDeque<Fault>>,
        delayed: Mutex<Option<Delayed>>,
        /// Reads to let pass, and then one that is answered late.
        late_read: Mutex<Option<(usize, oneshot::Receiver<()>)>>,
    }

    impl FaultyStore {
        fn next(&self, fault: Fault) {
            self.faults.lock().push_back(fault);
        }

        /// The read after `pass` others is made at once and answered when the sender is used.
        fn answer_late(&self, pass: usize) -> oneshot::Sender<()> {
            let (sender, receiver) = oneshot::channel();
            *self.late_read.lock() = Some((pass, receiver));
            sender
        }

        /// The delayed write arrives.
        async fn land(&self) {
            let (cell, expected, new) = self.delayed.lock().take().expect("a write was delayed");
            let table = crate::schema::meta_table();
            let landed = self.memory.check_and_set(&table, &cell, expected, new).await;
            assert_eq!(landed.expect("the store works"), CheckAndSet::Applied);
        }

        fn lost() -> KvsError {
            KvsError::Indeterminate { reason: "the answer was lost".to_owned(), source: None }
        }
    }

    type KvsResult<T> = atlas_kvs::Result<T>;

    #[async_trait]
    impl KeyValueService for FaultyStore {
        async fn get_atomic(&self, table: &TableRef, cells: &[Cell]) -> KvsResult<Vec<Option<Bytes>>> {
            let found = self.memory.get_atomic(table, cells).await;
            let late = match &mut *self.late_read.lock() {
                Some((pass, _)) if *pass > 0 => {
                    *pass -= 1;
                    None
                }
                late => late.take(),
            };
            if let Some((_, receiver)) = late {
                receiver.await.expect("the test lets the read go on");
            }
            found
        }

        async fn check_and_set(
            &self,
            table: &TableRef,
            cell: &Cell,
            expected: Option<Bytes>,
            new: Option<Bytes>,
        ) -> KvsResult<CheckAndSet> {
            let fault = self.faults.lock().pop_front();
            match fault {
                None => self.memory.check_and_set(table, cell, expected, new).await,
                Some(Fault::LoseAnswer) => {
                    self.memory.check_and_set(table, cell, expected, new).await?;
                    Err(FaultyStore::lost())
                }
                Some(Fault::Delay) => {
                    *self.delayed.lock() = Some((cell.clone(), expected, new));
                    Err(FaultyStore::lost())
                }
                Some(Fault::Unavailable) => Err(KvsError::Unavailable { reason: "no quorum".to_owned(), source: None }),
                Some(Fault::Late(receiver)) => {
                    receiver.await.expect("the test lets the write go on");
                    self.memory.check_and_set(table, cell, expected, new).await
                }
                Some(Fault::Hold(receiver)) => {
                    let answer = self.memory.check_and_set(table, cell, expected, new).await;
                    receiver.await.expect("the test lets the write go on");
                    answer
                }
            }
        }

        async fn create_table(&self, table: &TableRef, kind: TableKind, metadata: Bytes) -> KvsResult<()> {
            self.memory.create_table(table, kind, metadata).await
        }

        // ---- nothing below concerns records

        fn capabilities(&self) -> Capabilities {
            self.memory.capabilities()
        }
        fn ownership(&self) -> Ownership {
            self.memory.ownership()
        }
        async fn drop_table(&self, table: &TableRef) -> KvsResult<()> {
            self.memory.drop_table(table).await
        }
        async fn truncate_table(&self, table: &TableRef) -> KvsResult<()> {
            self.memory.truncate_table(table).await
        }
        async fn tables(&self) -> KvsResult<Vec<TableDescription>> {
            self.memory.tables().await
        }
        async fn table(&self, table: &TableRef) -> KvsResult<Option<TableDescription>> {
            self.memory.table(table).await
        }
        async fn put_table_metadata(&self, table: &TableRef, metadata: Bytes) -> KvsResult<()> {
            self.memory.put_table_metadata(table, metadata).await
        }
        async fn table_size(&self, table: &TableRef) -> KvsResult<TableSize> {
            self.memory.table_size(table).await
        }
        async fn get(&self, table: &TableRef, cells: &[CellBound]) -> KvsResult<Vec<Option<Value>>> {
            self.memory.get(table, cells).await
        }
        fn scan(&self, table: &TableRef, request: Scan) -> ResultStream<(Cell, Value)> {
            self.memory.scan(table, request)
        }
        async fn versions(&self, table: &TableRef, cells: &[CellBound]) -> KvsResult<Vec<Vec<Version>>> {
            self.memory.versions(table, cells).await
        }
        fn scan_versions(&self, table: &TableRef, request: VersionScan) -> ResultStream<CellVersions> {
            self.memory.scan_versions(table, request)
        }
        async fn put(&self, puts: Vec<(TableRef, Vec<(Cell, Bytes)>)>, ts: Timestamp) -> KvsResult<()> {
            self.memory.put(puts, ts).await
        }
        async fn put_versions(&self, table: &TableRef, versions: Vec<(Cell, Value)>) -> KvsResult<()> {
            self.memory.put_versions(table, versions).await
        }
        async fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> KvsResult<()> {
            self.memory.add_sentinels(table, cells).await
        }
        async fn delete_versions(&self, table: &TableRef, versions: &[CellTimestamps]) -> KvsResult<()> {
            self.memory.delete_versions(table, versions).await
        }
        async fn delete_version_ranges(&self, table: &TableRef, ranges: &[CellVersionRange]) -> KvsResult<()> {
            self.memory.delete_version_ranges(table, ranges).await
        }
        async fn delete_rows(&self, table: &TableRef, rows: &RowRange) -> KvsResult<()> {
            self.memory.delete_rows(table, rows).await
        }
        fn scan_atomic(&self, table: &TableRef, request: AtomicScan) -> ResultStream<(Cell, Bytes)> {
            self.memory.scan_atomic(table, request)
        }
        async fn put_unless_exists(&self, table: &TableRef, cell: &Cell, value: Bytes) -> KvsResult<PutUnlessExists> {
            self.memory.put_unless_exists(table, cell, value).await
        }
        async fn apply(&self, batch: AtomicBatch, durability: Durability) -> KvsResult<()> {
            self.memory.apply(batch, durability).await
        }
        async fn availability(&self) -> Availability {
            self.memory.availability().await
        }
        fn native_snapshot(&self) -> Option<&dyn NativeSnapshot> {
            self.memory.native_snapshot()
        }
        async fn reopen(&self) -> KvsResult<()> {
            self.memory.reopen().await
        }
        async fn close(&self) -> KvsResult<()> {
            self.memory.close().await
        }
    }

    struct World {
        store: Arc<FaultyStore>,
        clock: Arc<MockClock>,
        lock: BackupLock,
    }

    impl World {
        async fn new() -> World {
            let store = Arc::new(FaultyStore {
                memory: MemoryStore::new(),
                faults: Mutex::default(),
                delayed: Mutex::default(),
                late_read: Mutex::default(),
            });
            MetaRecord::<BackupLockRecord>::create_table(&*store).await.expect("the store is empty");
            let clock = MockClock::new();
            let lock = BackupLock::with_clock(store.clone(), clock.clone());
            World { store, clock, lock }
        }

        /// The same store, seen by another process.
        fn elsewhere(&self) -> BackupLock {
            BackupLock::with_clock(self.store.clone(), self.clock.clone())
        }

        async fn renewed(&self) -> BackupLockGuard {
            let guard = self.lock.acquire_renewed("nightly", LEASE).await.expect("nobody holds it");
            settle().await;
            guard
        }

        async fn record(&self) -> Option<BackupLockRecord> {
            self.lock.status().await.expect("the store answers")
        }

        async fn record_id(&self) -> Option<Uuid> {
            self.record().await.map(|record| record.lock_id)
        }

        async fn may_delete(&self) -> bool {
            match self.lock.gate().permit().await {
                Ok(_) => true,
                Err(Error::BackupLockHeld { .. }) => false,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn is_held<T>(result: Result<T>) -> bool {
        matches!(result, Err(Error::BackupLockHeld { .. }))
    }

    fn is_void(result: Result<()>) -> bool {
        matches!(result, Err(Error::BackupVoid { .. }))
    }

    /// Runs in the background as far as it can.
    async fn spawned<T: Send + 'static>(
        future: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        let task = tokio::spawn(future);
        settle().await;
        task
    }

    fn acquire(lock: &BackupLock) -> impl Future<Output = Result<BackupLockRecord>> + Send + 'static {
        let lock = lock.clone();
        async move { lock.acquire_for_nobody("by hand").await }
    }

    fn release(lock: &BackupLock) -> impl Future<Output = Result<Option<BackupLockRecord>>> + Send + 'static {
        let lock = lock.clone();
        async move { lock.release().await }
    }

    #[tokio::test]
    async fn deletions_are_refused_while_the_lock_is_held_and_allowed_before_and_after() {
        let world = World::new().await;
        assert!(world.may_delete().await);
        let record = world.lock.acquire_for_nobody("by hand").await.expect("nobody holds it");
        assert_eq!((record.renewal, record.lease_ms, &*record.reason), (None, 0, "by hand"));
        assert!(!world.may_delete().await);
        assert_eq!(world.lock.release().await.expect("nobody renews it"), Some(record));
        assert!(world.may_delete().await);
        assert_eq!(world.lock.release().await.expect("nobody holds it"), None);
    }

    #[tokio::test]
    async fn a_lock_taken_by_another_process_stops_deletions_here() {
        let world = World::new().await;
        world.elsewhere().acquire_for_nobody("by hand").await.expect("nobody holds it");
        assert!(!world.may_delete().await);
    }

    #[tokio::test]
    async fn the_record_tells_who_holds_it_and_since_when() {
        let world = World::new().await;
        let record = world.renewed().await.record().clone();
        assert!(record.holder.ends_with(&format!(" pid {}", std::process::id())), "{}", record.holder);
        assert!(record.holder.contains('@') && !record.holder.starts_with('@'), "{}", record.holder);
        record.since.parse::<jiff::Timestamp>().expect("RFC 3339");
        assert_eq!((record.renewal, record.lease_ms, record.renewed_at), (Some(0), 60_000, Some(record.since)));
    }

    #[tokio::test]
    async fn the_lock_has_one_holder_whatever_their_kinds_and_processes() {
        for renewed in [false, true] {
            let world = World::new().await;
            let mut guard = None;
            if renewed {
                guard = Some(world.renewed().await);
            } else {
                world.lock.acquire_for_nobody("by hand").await.expect("nobody holds it");
            }
            let before = world.record_id().await;
            for lock in [world.lock.clone(), world.elsewhere()] {
                assert!(is_held(lock.acquire_for_nobody("again").await));
                assert!(is_held(lock.acquire_renewed("again", LEASE).await));
            }
            settle().await;
            assert_eq!(world.record_id().await, before);
            drop(guard);
        }
    }

    #[tokio::test]
    async fn of_two_acquisitions_at_once_one_is_refused() {
        let world = World::new().await;
        for other in [world.lock.clone(), world.elsewhere()] {
            let (first, second) = tokio::join!(acquire(&world.lock), acquire(&other));
            assert_eq!((is_held(first), is_held(second)), (false, true));
            world.lock.release().await.expect("nobody renews it");
        }
    }

    #[tokio::test]
    async fn acquiring_returns_when_no_deletion_is_under_way_and_stops_every_one_after() {
        let world = World::new().await;
        let first = world.lock.gate().permit().await.expect("nobody holds the lock");
        let second = world.lock.gate().permit().await.expect("nobody holds the lock");
        let task = spawned(acquire(&world.lock)).await;
        assert!(!world.may_delete().await, "or acquiring might never end");
        drop(first);
        settle().await;
        assert!(!task.is_finished(), "one deletion is still under way");
        assert_eq!(world.record().await, None);
        drop(second);
        task.await.expect("no panic").expect("nobody holds it");
        assert!(world.record().await.is_some() && !world.may_delete().await);
    }

    #[tokio::test]
    async fn acquiring_waits_for_a_deletion_that_has_read_that_the_lock_is_free_but_does_not_know_yet() {
        let world = World::new().await;
        let answer = world.store.answer_late(0);
        let gate = world.lock.gate();
        let deletion = spawned(async move { gate.permit().await }).await;
        let task = spawned(acquire(&world.lock)).await;
        assert!(!task.is_finished());
        answer.send(()).expect("the read waits");
        let permit = deletion.await.expect("no panic").expect("it read that the lock is free");
        settle().await;
        assert!(!task.is_finished());
        drop(permit);
        task.await.expect("no panic").expect("nobody holds it");
    }

    #[tokio::test]
    async fn no_deletion_slips_in_between_the_drained_gate_and_the_record() {
        let world = World::new().await;
        let (answer, wait) = oneshot::channel();
        world.store.next(Fault::Late(wait));
        let task = spawned(acquire(&world.lock)).await;
        assert!(!world.may_delete().await);
        answer.send(()).expect("the write waits");
        task.await.expect("no panic").expect("nobody holds it");
    }

    #[tokio::test]
    async fn an_acquisition_dropped_while_it_waits_for_deletions_leaves_nothing_behind() {
        let world = World::new().await;
        let permit = world.lock.gate().permit().await.expect("nobody holds the lock");
        let task = spawned(acquire(&world.lock)).await;
        task.abort();
        settle().await;
        assert!(world.may_delete().await);
        drop(permit);
        settle().await;
        assert_eq!(world.record().await, None);
    }

    #[tokio::test]
    async fn an_acquisition_dropped_while_it_writes_is_taken_back() {
        let world = World::new().await;
        let (answer, wait) = oneshot::channel();
        world.store.next(Fault::Hold(wait));
        let task = spawned(acquire(&world.lock)).await;
        assert!(world.record().await.is_some());
        task.abort();
        settle().await;
        answer.send(()).expect("the write goes on");
        settle().await;
        assert_eq!(world.record().await, None);
        assert!(world.may_delete().await);
    }

    #[tokio::test]
    async fn a_failed_acquisition_opens_the_gate() {
        let world = World::new().await;
        world.store.next(Fault::Unavailable);
        assert!(world.lock.acquire_for_nobody("by hand").await.is_err());
        assert!(world.may_delete().await);
    }

    #[tokio::test]
    async fn an_acquisition_whose_answer_was_lost_is_settled_by_writing() {
        for (fault, lands) in [(Fault::LoseAnswer, true), (Fault::Delay, false)] {
            let world = World::new().await;
            world.store.next(fault);
            let task = spawned(acquire(&world.lock)).await;
            let landed = world.record_id().await;
            assert_eq!(landed.is_some(), lands);
            world.clock.advance(ATTEMPT_PAUSE).await;
            let record = task.await.expect("no panic").expect("nobody else holds it");
            assert_eq!(world.record_id().await, Some(record.lock_id));
            assert!(landed.is_none_or(|landed| landed == record.lock_id));
        }
    }

    #[tokio::test]
    async fn a_lost_write_that_arrives_after_the_lock_was_cleared_is_not_taken_for_it() {
        let world = World::new().await;
        world.store.next(Fault::Delay);
        let lock = world.lock.clone();
        let task = spawned(async move { lock.acquire_renewed("nightly", LEASE).await }).await;
        world.clock.advance(ATTEMPT_PAUSE).await;
        let guard = task.await.expect("no panic").expect("nobody else holds it");
        guard.check().await.expect("it holds");
        world.lock.clear_after_restore().await.expect("the store answers");
        world.store.land().await;
        assert!(is_void(guard.check().await));
    }

    #[tokio::test]
    async fn an_acquisition_that_can_not_be_settled_is_not_said_to_have_failed() {
        let world = World::new().await;
        world.store.next(Fault::Delay);
        (1..ATTEMPTS_MAX).for_each(|_| world.store.next(Fault::Unavailable));
        let task = spawned(acquire(&world.lock)).await;
        world.clock.advance(ATTEMPT_PAUSE * ATTEMPTS_MAX * 2).await;
        let error = task.await.expect("no panic").expect_err("no answer came");
        assert_eq!(error.code(), "INDETERMINATE");
    }

    #[tokio::test]
    async fn the_renewal_is_counted_up_four_times_a_lease() {
        let world = World::new().await;
        let guard = world.renewed().await;
        for _ in 0..8 {
            world.clock.advance(LEASE / 4).await;
        }
        assert_eq!(world.record().await.and_then(|record| record.renewal), Some(8));
        guard.check().await.expect("it holds");
    }

    #[tokio::test]
    async fn renewing_goes_on_after_lost_answers_and_failures() {
        let world = World::new().await;
        let guard = world.renewed().await;
        [Fault::LoseAnswer, Fault::Unavailable].into_iter().for_each(|fault| world.store.next(fault));
        for _ in 0..8 {
            world.clock.advance(LEASE / 4).await;
        }
        // Of eight periods one failed, and one found that the renewal before it had been made.
        assert_eq!(world.record().await.and_then(|record| record.renewal), Some(6));
        guard.check().await.expect("it holds");
    }

    #[tokio::test]
    async fn a_backup_whose_lock_was_cleared_is_void() {
        let world = World::new().await;
        let guard = world.renewed().await;
        world.lock.clear_after_restore().await.expect("the store answers");
        assert!(is_void(guard.check().await));
        world.clock.advance(LEASE).await;
        assert!(is_void(guard.check().await) && world.record().await.is_none(), "it is not written again");
    }

    #[tokio::test]
    async fn a_backup_whose_lock_was_cleared_and_taken_by_another_is_void_and_leaves_the_others_alone() {
        let world = World::new().await;
        let guard = world.renewed().await;
        world.lock.clear_after_restore().await.expect("the store answers");
        let other = world.elsewhere().acquire_for_nobody("by hand").await.expect("nobody holds it");
        assert!(is_void(guard.check().await));
        world.clock.advance(LEASE).await;
        assert!(!guard.release().await.expect("the store answers"));
        assert_eq!(world.record().await, Some(other));
    }

    #[tokio::test]
    async fn releasing_a_guard_ends_the_lock_and_its_renewals() {
        let world = World::new().await;
        let guard = world.renewed().await;
        world.clock.advance(LEASE).await;
        assert!(guard.release().await.expect("the store answers"));
        assert_eq!(world.record().await, None);
        world.clock.advance(LEASE).await;
        assert!(world.may_delete().await);
    }

    #[tokio::test]
    async fn a_release_whose_answer_was_lost_is_tried_again() {
        for (fault, landed) in [(Fault::LoseAnswer, true), (Fault::Unavailable, false), (Fault::Delay, false)] {
            let world = World::new().await;
            let guard = world.renewed().await;
            world.store.next(fault);
            let task = spawned(guard.release()).await;
            assert_eq!(world.record().await.is_none(), landed);
            world.clock.advance(ATTEMPT_PAUSE).await;
            assert!(task.await.expect("no panic").expect("the store answers"));
            assert_eq!(world.record().await, None);
        }
    }

    #[tokio::test]
    async fn a_dropped_guard_releases_the_lock() {
        let world = World::new().await;
        drop(world.renewed().await);
        settle().await;
        assert_eq!(world.record().await, None);
        assert_eq!(world.clock.sleepers(), 0);
    }

    #[tokio::test]
    async fn a_lock_renewed_by_this_process_is_not_released_and_nobody_waits_to_find_out() {
        let world = World::new().await;
        let guard = world.renewed().await;
        let released = release(&world.lock).now_or_never().expect("it does not wait");
        assert!(is_held(released));
        guard.check().await.expect("it holds");
    }

    #[tokio::test]
    async fn a_lock_renewed_by_another_process_is_not_released() {
        let world = World::new().await;
        let guard = world.renewed().await;
        let task = spawned(release(&world.elsewhere())).await;
        world.clock.advance(LEASE).await;
        let error = task.await.expect("no panic").expect_err("it is being renewed");
        assert_eq!(error.exit_code(), crate::exit::CONFLICT);
        guard.check().await.expect("it holds");
    }

    #[tokio::test]
    async fn a_lock_that_nobody_renews_is_released_after_a_whole_lease_and_not_before() {
        let world = World::new().await;
        let guard = world.renewed().await;
        // The owner stalls: its renewals stop.
        guard.renewer.abort();
        let task = spawned(release(&world.elsewhere())).await;
        world.clock.advance(LEASE - Duration::from_secs(1)).await;
        assert!(!task.is_finished());
        guard.check().await.expect("it holds");
        world.clock.advance(LEASE).await;
        assert_eq!(task.await.expect("no panic").expect("nobody renews it"), Some(guard.record().clone()));
        assert!(is_void(guard.check().await), "the owner that stalled finds out");
    }

    #[tokio::test]
    async fn a_renewal_at_the_last_moment_saves_the_lock() {
        let world = World::new().await;
        let guard = world.renewed().await;
        guard.renewer.abort();
        // One read finds the record, and one comes with each look; the last is made and not yet answered.
        let answer = world.store.answer_late(LOOKS as usize);
        let task = spawned(release(&world.elsewhere())).await;
        world.clock.advance(LEASE * 2).await;
        assert!(!task.is_finished());
        let (record, bytes) = world.lock.shared.record.load().await.expect("the store answers").expect("it is held");
        let renewed = BackupLockRecord { renewal: Some(1), ..record };
        world.lock.shared.record.replace(Some(&bytes), Some(&renewed)).await.expect("the store answers");
        answer.send(()).expect("the read waits");
        assert!(is_held(task.await.expect("no panic")));
        assert_eq!(world.record().await, Some(renewed));
    }

    #[tokio::test]
    async fn a_restore_clears_the_lock_of_the_backup_it_came_from() {
        let world = World::new().await;
        let guard = world.renewed().await;
        let cleared = world.elsewhere().clear_after_restore().await.expect("the store answers");
        assert_eq!(cleared.as_ref(), Some(guard.record()));
        assert!(world.may_delete().await);
        assert_eq!(world.lock.clear_after_restore().await.expect("the store answers"), None);
    }

    #[tokio::test]
    async fn a_lease_too_short_to_be_kept_is_refused() {
        let world = World::new().await;
        let refused = world.lock.acquire_renewed("nightly", LEASE_MIN - Duration::from_millis(1)).await;
        assert!(matches!(refused, Err(Error::Usage(_))));
    }

    #[tokio::test]
    async fn a_deletion_whose_caller_is_gone_holds_up_acquisitions_until_it_is_over() {
        let world = World::new().await;
        let (finish, deletion) = oneshot::channel::<()>();
        let gate = world.lock.gate();
        let caller = spawned(async move {
            gate.run(async move {
                deletion.await.expect("the test lets the deletion end");
                Ok(())
            })
            .await
        })
        .await;
        caller.abort();
        settle().await;
        let task = spawned(acquire(&world.lock)).await;
        assert!(!task.is_finished());
        finish.send(()).expect("the deletion waits");
        task.await.expect("no panic").expect("nobody holds it");
    }

    #[tokio::test]
    async fn a_deletion_is_not_begun_while_the_lock_is_held() {
        let world = World::new().await;
        world.lock.acquire_for_nobody("by hand").await.expect("nobody holds it");
        let run = world.lock.gate().run::<()>(async { unreachable!("the deletion is refused") }).await;
        assert!(is_held(run));
    }
}
