//! The token of a store that several processes share, as it lies in the store.

use super::MetaRecord;
use atlas_kvs::KeyValueService;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What calls to the owner of the store carry. Not `Debug`: nobody shows it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    /// Of the owner that made it. An older one that has not noticed its end must not replace it.
    pub(crate) epoch: u64,
    /// Hexadecimal digits.
    pub(crate) token: String,
}

impl TokenRecord {
    /// Name of the record.
    pub(crate) const NAME: &str = "server-token";

    pub(crate) fn in_store(kvs: Arc<dyn KeyValueService>) -> MetaRecord<TokenRecord> {
        MetaRecord::new(kvs, TokenRecord::NAME)
    }
}
