//! Records the layer keeps about itself, each changed by compare-and-set only.
//!
//! One atomic table holds them, a row a record: the store's identity, the timestamp oracle's bound and owner, the
//! backup lock, the cleaned windows. A record is JSON, so that a person with any store tool can read it.

use crate::{Error, Result};
use atlas_kvs::{BatchGuard, Cell, CheckAndSet, KeyValueService, TableKind, TableRef};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::marker::PhantomData;
use std::sync::Arc;

/// The table of records.
pub const META_TABLE: &str = "_atlas";

/// Version of everything the layer writes; a store with a greater one is refused.
pub const FORMAT_VERSION: u32 = 1;

/// The table of records, as a reference.
pub fn meta_table() -> TableRef {
    super::internal(META_TABLE)
}

/// What a store is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreRecord {
    /// Version of what is written in it.
    pub format_version: u32,
    /// Identity: made when the store is made, and anew when it is restored.
    pub store_id: uuid::Uuid,
    /// Namespace it belongs to.
    pub namespace: String,
    /// How transactions commit: `pipeline` or `step_by_step`. Both at once would not see each other's conflicts.
    pub commit_mode: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The backup it was restored from, if any.
    #[serde(default)]
    pub restored_from: Option<String>,
}

/// One record of a table, by name, read and replaced as a whole.
#[derive(Clone, Debug)]
pub struct MetaRecord<T> {
    kvs: Arc<dyn KeyValueService>,
    table: TableRef,
    cell: Cell,
    content: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> MetaRecord<T> {
    /// The record called `name`.
    pub fn new(kvs: Arc<dyn KeyValueService>, name: &'static str) -> MetaRecord<T> {
        MetaRecord::in_table(kvs, meta_table(), name)
    }

    /// The record called `name` of another atomic table of the layer, for records of which there are many.
    pub(crate) fn in_table(kvs: Arc<dyn KeyValueService>, table: TableRef, name: &str) -> MetaRecord<T> {
        MetaRecord { kvs, table, cell: Cell::copy_from(name, "record"), content: PhantomData }
    }

    /// Makes sure that the table of records exists.
    pub async fn create_table(kvs: &dyn KeyValueService) -> Result<()> {
        Ok(kvs.create_table(&meta_table(), TableKind::Atomic, Bytes::new()).await?)
    }

    /// The record as it stands, with the bytes to compare against.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it can't be read.
    pub async fn load(&self) -> Result<Option<(T, Bytes)>> {
        let found = self.kvs.get_atomic(&self.table, std::slice::from_ref(&self.cell)).await?;
        found.into_iter().flatten().next().map(|bytes| Ok((self.decode(&bytes)?, bytes))).transpose()
    }

    /// Replaces what was loaded (`None`: nothing) by `new` (`None`: nothing). Answers the bytes that now stand for
    /// comparison, or what was there instead.
    pub async fn replace(&self, loaded: Option<&Bytes>, new: Option<&T>) -> Result<Replaced<T>> {
        let bytes = new.map(|record| Bytes::from(serde_json::to_vec(record).expect("records are plain data")));
        match self.kvs.check_and_set(&self.table, &self.cell, loaded.cloned(), bytes.clone()).await? {
            CheckAndSet::Applied => Ok(Replaced::Done(bytes.unwrap_or_default())),
            CheckAndSet::Mismatch(found) => {
                let found = found.map(|bytes| Ok::<_, Error>((self.decode(&bytes)?, bytes))).transpose()?;
                Ok(Replaced::Other(found))
            }
        }
    }

    /// The guard of batches that count only as long as the record is what was loaded.
    pub fn guard(&self, loaded: Bytes) -> BatchGuard {
        BatchGuard { table: self.table.clone(), cell: self.cell.clone(), expected: loaded }
    }

    fn place(&self) -> String {
        format!("record '{}' of table {}", self.cell.row.escape_ascii(), self.table)
    }

    fn decode(&self, bytes: &Bytes) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| Error::corrupt(self.place(), error.to_string()))
    }
}

/// The answer of [`MetaRecord::replace`].
#[derive(Debug)]
pub enum Replaced<T> {
    /// Done; these bytes stand now.
    Done(Bytes),
    /// Nothing was changed: this was there.
    Other(Option<(T, Bytes)>),
}
