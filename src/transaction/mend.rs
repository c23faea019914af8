//! Gets a store going again that accepts no writes since one of them failed.
//!
//! An embedded store takes no write on top of one whose fate it does not know. The pipeline's leader opens it again
//! when one of its groups was that write; but it can as well have been a large transaction that put its data ahead,
//! a move of the timestamp bound, or anything else. Whoever is refused because of that calls for help here.

use crate::Error;
use atlas_kvs::{Availability, KeyValueService};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Opens a store again when it is the only way to go on.
#[derive(Debug)]
pub(crate) struct Mender {
    kvs: Arc<dyn KeyValueService>,
    // One is enough: who finds another one at it returns at once.
    busy: Mutex<()>,
}

impl Mender {
    pub(crate) fn new(kvs: Arc<dyn KeyValueService>) -> Mender {
        Mender { kvs, busy: Mutex::default() }
    }

    /// Opens the store again if `error` may come from a store that accepts no writes, and it does not. Safe at any
    /// time: writes under way are finished first, and those without an answer are settled by whoever sent them.
    /// Without success nothing is said: the next one who is refused tries again.
    pub(crate) async fn after(&self, error: &Error) {
        if !matches!(error, Error::Kvs(_) | Error::Unavailable { .. } | Error::UnknownOutcome { .. }) {
            return;
        }
        let Ok(_busy) = self.busy.try_lock() else { return };
        let Availability::NoQuorum(reason) = self.kvs.availability().await else { return };
        match self.kvs.reopen().await {
            Ok(()) => tracing::warn!(reason, "the store accepted no writes and was opened again"),
            Err(error) => tracing::warn!(reason, %error, "the store accepts no writes and can't be opened again yet"),
        }
    }
}
