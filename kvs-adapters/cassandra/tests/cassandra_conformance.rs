//! The contract, case by case, on a real cluster.

mod common;

use atlas_kvs::KeyValueService;
use atlas_kvs_conformance::{Factory, conformance_tests};
use common::Namespace;
use std::sync::Arc;

struct Cassandra;

impl Factory for Cassandra {
    type Place = Namespace;

    async fn place(&self) -> Namespace {
        Namespace::new()
    }

    async fn open(&self, place: &Namespace) -> Arc<dyn KeyValueService> {
        Arc::new(place.open().await)
    }
}

conformance_tests!(Cassandra);
