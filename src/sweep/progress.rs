//! How far sweep has come, in the store: each a fact that stays true whoever has found it out.

use crate::schema::{MetaRecord, Replaced};
use crate::transaction::sweep_table;
use crate::{Error, Result};
use atlas_kvs::{Cell, KeyValueService, TableRef, Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How far a shard of the queue was worked off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardProgress {
    /// Entries of writers that started below this are worked off.
    pub below: Timestamp,
    /// Of the writer at `below`, entries up to this one, exclusive, are worked off too.
    #[serde(default)]
    pub chunk: u32,
    /// Partitions below this are dropped.
    #[serde(default)]
    pub dropped: u64,
}

impl Default for ShardProgress {
    fn default() -> ShardProgress {
        ShardProgress { below: Timestamp::FIRST, chunk: 0, dropped: 0 }
    }
}

impl ShardProgress {
    /// The record of a shard.
    pub fn in_store(kvs: Arc<dyn KeyValueService>, shard: u16) -> MetaRecord<ShardProgress> {
        MetaRecord::in_table(kvs, sweep_table(), &format!("shard:{shard}"))
    }

    /// The progress of a shard as it stands.
    pub async fn load(kvs: Arc<dyn KeyValueService>, shard: u16) -> Result<ShardProgress> {
        Ok(ShardProgress::in_store(kvs, shard).load().await?.map(|(progress, _)| progress).unwrap_or_default())
    }

    /// Moves the progress of a shard, never back.
    pub(super) async fn advance(self, kvs: Arc<dyn KeyValueService>, shard: u16) -> Result<()> {
        let record = ShardProgress::in_store(kvs, shard);
        let mut loaded = record.load().await?;
        loop {
            let found = loaded.as_ref().map(|(found, _)| *found).unwrap_or_default();
            let wanted = ShardProgress { dropped: self.dropped.max(found.dropped), ..self.max_place(found) };
            if wanted == found {
                return Ok(());
            }
            match record.replace(loaded.as_ref().map(|(_, bytes)| bytes), Some(&wanted)).await? {
                Replaced::Done(_) => return Ok(()),
                Replaced::Other(other) => loaded = other,
            }
        }
    }

    fn max_place(self, other: ShardProgress) -> ShardProgress {
        if (self.below, self.chunk) >= (other.below, other.chunk) { self } else { other }
    }
}

/// Where a walk over a table was interrupted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WalkProgress {
    /// The last cell that was looked at.
    pub(super) after: Option<Cell>,
}

impl WalkProgress {
    pub(super) fn in_store(kvs: Arc<dyn KeyValueService>, table: &TableRef) -> MetaRecord<WalkProgress> {
        MetaRecord::in_table(kvs, sweep_table(), &format!("walk:{}", table.name()))
    }

    pub(super) async fn load(kvs: Arc<dyn KeyValueService>, table: &TableRef) -> Result<Option<Cell>> {
        Ok(WalkProgress::in_store(kvs, table).load().await?.and_then(|(progress, _)| progress.after))
    }

    /// Writes down where the walk is, or that there is none: a lost one costs a longer walk, no more.
    pub(super) async fn store(kvs: Arc<dyn KeyValueService>, table: &TableRef, after: Option<Cell>) -> Result<()> {
        let record = WalkProgress::in_store(kvs, table);
        let mut loaded = record.load().await?;
        let wanted = after.map(|after| WalkProgress { after: Some(after) });
        loop {
            if loaded.as_ref().map(|(found, _)| found) == wanted.as_ref() {
                return Ok(());
            }
            match record.replace(loaded.as_ref().map(|(_, bytes)| bytes), wanted.as_ref()).await? {
                Replaced::Done(_) => return Ok(()),
                Replaced::Other(other) => loaded = other,
            }
        }
    }
}

/// A table is dropped or emptied: a walk over a later one of its name begins at its first cell.
pub(crate) async fn forget_walk(kvs: Arc<dyn KeyValueService>, table: &TableRef) -> Result<()> {
    WalkProgress::store(kvs, table, None).await
}

/// Replaces a record by what `change` makes of it; nothing is written if that is nothing.
pub(super) async fn update<T: Serialize + serde::de::DeserializeOwned>(
    record: &MetaRecord<T>,
    change: impl Fn(Option<&T>) -> Option<T>,
) -> Result<()> {
    let mut loaded = record.load().await?;
    loop {
        let Some(wanted) = change(loaded.as_ref().map(|(found, _)| found)) else { return Ok(()) };
        match record.replace(loaded.as_ref().map(|(_, bytes)| bytes), Some(&wanted)).await? {
            Replaced::Done(_) => return Ok::<_, Error>(()),
            Replaced::Other(other) => loaded = other,
        }
    }
}
