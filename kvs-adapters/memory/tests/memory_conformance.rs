//! The store keeps the contract.

use atlas_kvs::KeyValueService;
use atlas_kvs_conformance::{Factory, conformance_tests};
use atlas_kvs_memory::MemoryStore;
use std::sync::Arc;

struct Memory;

impl Factory for Memory {
    type Place = ();

    async fn place(&self) {}

    async fn open(&self, (): &()) -> Arc<dyn KeyValueService> {
        Arc::new(MemoryStore::new())
    }
}

conformance_tests!(Memory);
