//! The marker of a store on a server that is being restored into. Who opens a store asks for it first.

use super::{MetaRecord, meta_table};
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, KvsError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use uuid::Uuid;

/// Says that the store is no whole store yet, and who works on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoringRecord {
    /// The attempt that works, or worked, on it.
    pub claim: Uuid,
    /// Counted up as long as that attempt lives.
    pub renewal: u64,
    /// An attempt that did not count for this long is dead, in milliseconds.
    pub lease_ms: u64,
    /// The machine it runs on.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// The backup.
    pub backup_id: String,
    /// The step that has begun.
    pub step: String,
    /// Everything that is needed to go on, as the restore wrote it.
    pub marker: serde_json::Value,
}

impl RestoringRecord {
    /// Its name.
    pub(crate) const NAME: &str = "restoring";

    /// The record in the store.
    pub(crate) fn in_store(kvs: Arc<dyn KeyValueService>) -> MetaRecord<RestoringRecord> {
        MetaRecord::new(kvs, RestoringRecord::NAME)
    }

    /// The record, and the bytes to compare against; nothing also in a store that has no tables yet.
    pub(crate) async fn load(kvs: &Arc<dyn KeyValueService>) -> Result<Option<(RestoringRecord, Bytes)>> {
        match RestoringRecord::in_store(Arc::clone(kvs)).load().await {
            Err(Error::Kvs(KvsError::NoSuchTable(table))) if table == meta_table() => Ok(None),
            loaded => loaded,
        }
    }
}

/// Refuses a store in which a restore was not finished.
///
/// # Errors
/// [`Error::Refused`] with the command that finishes the restore; [`Error::Corrupt`] for a marker that can't be read.
pub async fn refuse_unfinished_restore(kvs: &Arc<dyn KeyValueService>) -> Result<()> {
    let Some((record, _)) = RestoringRecord::load(kvs).await? else { return Ok(()) };
    Err(Error::refused(
        format!(
            "the store holds a restore that was not finished (backup '{}', step '{}', process {} on {}), so it is no \
             whole store",
            record.backup_id, record.step, record.pid, record.host
        ),
        "`atlas backup restore --resume --into CONFIG` finishes it, with the configuration of this store",
    ))
}
