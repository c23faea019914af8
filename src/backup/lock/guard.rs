//! The lock in the hands of a backup that runs: renewed, checked at the end, and cleared when it is dropped.

use super::{Shared, now};
use crate::ops::BackupLockRecord;
use crate::schema::Replaced;
use crate::{Error, Result};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

/// A persisted lock of ours, cleared when this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    shared: Arc<Shared>,
    record: BackupLockRecord,
    bytes: Bytes,
    runtime: Handle,
    /// Whether nothing is left to clear.
    settled: bool,
}

impl Claim {
    pub(super) fn new(shared: &Arc<Shared>, record: BackupLockRecord, bytes: Bytes) -> Claim {
        if record.renewal.is_some() {
            shared.renewed_here.lock().insert(record.lock_id);
        }
        Claim { shared: shared.clone(), record, bytes, runtime: Handle::current(), settled: false }
    }

    /// Leaves the lock to itself.
    pub(super) fn keep(mut self) -> BackupLockRecord {
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
    pub(super) renewer: AbortHandle,
}

impl BackupLockGuard {
    pub(super) fn start(claim: Claim, lease: Duration) -> BackupLockGuard {
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
