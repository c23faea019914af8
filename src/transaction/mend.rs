//! Gets a store going again that accepts no writes since one of them failed.
//!
//! An embedded store takes no write on top of one whose fate it does not know. The pipeline's leader opens it again
//! when one of its groups was that write; but it can as well have been a large transaction that put its data ahead,
//! a move of the timestamp bound, or anything else. Whoever is refused because of that calls for help here.

use crate::Error;
use atlas_kvs::{Availability, KeyValueService, KvsError, Ownership};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Pauses between attempts to open the store again.
const PAUSE: Duration = Duration::from_millis(200);

/// Opens a store again when it is the only way to go on.
#[derive(Debug)]
pub(crate) struct Mender {
    kvs: Arc<dyn KeyValueService>,
    // One is enough: who finds another one at it returns at once.
    busy: Arc<Mutex<()>>,
}

impl Mender {
    pub(crate) fn new(kvs: Arc<dyn KeyValueService>) -> Mender {
        Mender { kvs, busy: Arc::default() }
    }

    /// Opens the store again if `error` may come from a store that accepts no writes, and it does not. Safe at any
    /// time: writes under way are finished first, and those without an answer are settled by whoever sent them.
    ///
    /// Tries once before it returns, and goes on behind the caller's back if that fails: a store that could not be
    /// opened serves no reads either, so that nobody who reads before he writes would come here again.
    pub(crate) async fn after(&self, error: &Error) {
        // A store on servers is not ours to open.
        if matches!(self.kvs.ownership(), Ownership::Shared) {
            return;
        }
        if !matches!(error, Error::Kvs(_) | Error::Unavailable { .. } | Error::UnknownOutcome { .. }) {
            return;
        }
        let Ok(busy) = self.busy.clone().try_lock_owned() else { return };
        if !attempt(self.kvs.as_ref()).await {
            tokio::spawn(go_on(Arc::downgrade(&self.kvs), busy));
        }
    }
}

/// Ends with success, or with the store.
async fn go_on(kvs: Weak<dyn KeyValueService>, _busy: OwnedMutexGuard<()>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some(kvs) = kvs.upgrade() else { return };
        if attempt(kvs.as_ref()).await {
            return;
        }
    }
}

/// False if it is worth trying again.
async fn attempt(kvs: &dyn KeyValueService) -> bool {
    let Availability::NoQuorum(reason) = kvs.availability().await else { return true };
    match kvs.reopen().await {
        Ok(()) => {
            tracing::warn!(reason, "the store accepted no writes and was opened again");
            true
        }
        Err(KvsError::Closed) => true,
        Err(error) => {
            tracing::warn!(reason, %error, "the store accepts no writes and can't be opened again yet");
            false
        }
    }
}
