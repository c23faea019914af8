//! The fence: a record that every batch of the owner names, so that the store itself refuses those of a former one.
//!
//! A lease tells an owner when to stop, but an owner that was paused may wake up with a batch in its hands. So a
//! successor raises the fence before it does anything else, and the store orders the two: a batch that names the
//! fence as it was before is applied before the fence was raised, or never.
//!
//! ```text
//!   former owner   batch{1,0} ──── paused ──────────────────── batch{1,0} ✗ refused
//!   successor                       record: epoch 2 ── fence {2,0} ── reads, issues, batch{2,0}
//! ```
//!
//! The owner raises it too, by a *generation*, when the store did not answer for a batch: what is not applied when
//! the fence has moved never will be.

use super::issuer::lost;
use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use atlas_kvs::{BatchGuard, KeyValueService};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What batches are compared with. Its bytes are the same wherever it is written: two numbers in a fixed order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FenceRecord {
    /// That of the owner.
    pub epoch: u64,
    /// Raised by the owner to find out what became of a batch.
    pub generation: u64,
}

impl FenceRecord {
    /// The record in the store.
    pub fn in_store(kvs: Arc<dyn KeyValueService>) -> MetaRecord<FenceRecord> {
        MetaRecord::new(kvs, "fence")
    }
}

/// The fence of one epoch.
#[derive(Debug)]
pub(crate) struct BatchFence {
    stored: MetaRecord<FenceRecord>,
    epoch: u64,
    // The record of this epoch as it was last raised, in the bytes that stand in the store.
    raised: Mutex<(FenceRecord, Bytes)>,
}

/// What raising the generation has shown.
#[derive(Debug)]
pub(crate) enum Raised {
    /// The store takes batches with the new guard, and none with an earlier one.
    Ours,
    /// Another owner has raised the fence: the store takes no batch of ours any more, whenever it was sent.
    TakenOver {
        /// Its epoch.
        epoch: u64,
    },
}

impl BatchFence {
    /// Raises the fence to an epoch that was just taken. From the answer on no batch of an earlier one is applied.
    ///
    /// # Errors
    /// [`Error::LostLeadership`] if it stands at a higher epoch already.
    pub(super) async fn raise(kvs: Arc<dyn KeyValueService>, epoch: u64) -> Result<BatchFence> {
        let stored = FenceRecord::in_store(kvs);
        let wanted = FenceRecord { epoch, generation: 0 };
        let mut loaded = stored.load().await?;
        loop {
            let found = loaded.as_ref().map(|(record, _)| *record);
            match found {
                Some(found) if found.epoch > epoch => {
                    return Err(lost(&format!("the fence stands at epoch {}, ours is {epoch}", found.epoch)));
                }
                // An answer of ours that was lost on its way: nobody else writes our epoch.
                Some(found) if found.epoch == epoch => {
                    let raised = Mutex::new(loaded.expect("it was just found"));
                    return Ok(BatchFence { stored, epoch, raised });
                }
                _ => (),
            }
            let expected = loaded.as_ref().map(|(_, bytes)| bytes);
            match stored.replace(expected, Some(&wanted)).await? {
                Replaced::Done(bytes) => {
                    return Ok(BatchFence { stored, epoch, raised: Mutex::new((wanted, bytes)) });
                }
                Replaced::Other(found) => loaded = found,
            }
        }
    }

    /// What every batch of this owner carries.
    pub(crate) fn guard(&self) -> BatchGuard {
        self.stored.guard(self.raised.lock().1.clone())
    }

    /// Makes every batch sent so far one that was applied or never will be. An error says nothing: call again.
    pub(crate) async fn raise_generation(&self) -> Result<Raised> {
        let (record, bytes) = self.raised.lock().clone();
        let next = FenceRecord { generation: record.generation + 1, ..record };
        let now = match self.stored.replace(Some(&bytes), Some(&next)).await? {
            Replaced::Done(bytes) => (next, bytes),
            // An earlier call of ours whose answer was lost. Only a call that has returned counts as raised, so what
            // stands here is above the guard of every batch that was sent.
            Replaced::Other(Some((found, bytes))) if found.epoch == self.epoch && found > record => (found, bytes),
            Replaced::Other(Some((found, _))) if found.epoch > self.epoch => {
                return Ok(Raised::TakenOver { epoch: found.epoch });
            }
            Replaced::Other(found) => return Err(gone_back(found.map(|(found, _)| found), record)),
        };
        *self.raised.lock() = now;
        Ok(Raised::Ours)
    }
}

/// The store was replaced by an older copy of itself, or somebody removed the record.
fn gone_back(found: Option<FenceRecord>, record: FenceRecord) -> Error {
    lost(&format!("the fence was raised to {record:?}, and now it is {found:?}: the store has gone back"))
}
