//! Who in this process may commit on a store that no other process can write into.

use atlas_kvs::{KeyValueService, Ownership};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The right to commit on a store with one owner, of one leader in the process.
///
/// A second leader would begin transactions while a batch of the first is on its way: their snapshots would miss
/// commits below them, and their windows conflicts. Timestamps alone can't fence a write that is under way.
#[derive(Debug)]
pub(crate) struct Claim {
    store: usize,
}

static CLAIMED: parking_lot::Mutex<BTreeSet<usize>> = parking_lot::Mutex::new(BTreeSet::new());

impl Claim {
    /// Claims a store, unless another leader has it.
    pub(crate) fn try_new(kvs: &dyn KeyValueService) -> Option<Claim> {
        let store = match kvs.ownership() {
            Ownership::Exclusive(shared) => Arc::as_ptr(&shared).addr(),
            Ownership::Shared => return None,
        };
        let is_first = CLAIMED.lock().insert(store);
        // Made only then, and when the latch is free: one that is dropped gives the store up.
        is_first.then(|| Claim { store })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().remove(&self.store);
    }
}
