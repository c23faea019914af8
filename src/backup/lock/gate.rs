//! The gate that every physical deletion passes: closed while the lock is being acquired, and guarded by its record.

use super::{Shared, held, joined};
use crate::Result;
use crate::ops::BackupLockRecord;
use crate::planted::Mistake;
use std::future::Future;
use std::sync::Arc;

/// What every physical deletion (truncate, drop, range delete, sweep) has to pass. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct PhysicalDeletionGate {
    pub(super) shared: Arc<Shared>,
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
    /// [`Error::BackupLockHeld`](crate::Error::BackupLockHeld) if the lock is held or being acquired; those of the store.
    pub async fn permit(&self) -> Result<DeletionPermit> {
        // Counted before the record is read: an acquisition waits for everyone who may have read "free".
        let too_late = Mistake::CountAfterTheLook.is_made();
        let permit = if too_late { None } else { Some(self.enter()?) };
        match self.shared.record.load().await? {
            None => permit.map_or_else(|| self.enter(), Ok),
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

/// The gate is closed while this lives.
pub(super) struct ClosedGate(Arc<Shared>);

impl ClosedGate {
    pub(super) fn close(shared: &Arc<Shared>, record: &BackupLockRecord) -> ClosedGate {
        shared.gate.lock().closed_for = Some(record.clone());
        ClosedGate(shared.clone())
    }
}

impl Drop for ClosedGate {
    fn drop(&mut self) {
        self.0.gate.lock().closed_for = None;
    }
}
