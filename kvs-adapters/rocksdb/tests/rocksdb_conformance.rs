//! The contract, case by case.

use atlas_kvs::KeyValueService;
use atlas_kvs_conformance::{Factory, conformance_tests};
use atlas_kvs_rocksdb::{RocksConfig, RocksStore};
use std::sync::Arc;
use tempfile::TempDir;

struct Rocks;

impl Factory for Rocks {
    type Place = TempDir;

    async fn place(&self) -> TempDir {
        tempfile::tempdir().expect("a temporary directory can be made")
    }

    async fn open(&self, place: &TempDir) -> Arc<dyn KeyValueService> {
        let store = RocksStore::open(RocksConfig::new(place.path().join("data"))).await;
        Arc::new(store.expect("the store opens"))
    }
}

conformance_tests!(Rocks);
