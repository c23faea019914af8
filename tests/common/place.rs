//! Where a store lies while a test lasts: in memory, in a directory, or in a namespace of a server.

use super::{Lane, StoreKind, postgres, rocksdb_in};
use atlas::config::{AtlasConfig, KvsConfig};
use atlas::kvs_api::KeyValueService;
use atlas_kvs_memory::MemoryStore;
use atlas_kvs_postgres::PostgresStore;
use atlas_kvs_rocksdb::{RocksConfig, RocksStore};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// A place of its own for one store. What was made there goes with it, on servers too.
pub struct Place {
    kind: StoreKind,
    namespace: String,
    dir: TempDir,
}

impl Place {
    /// A new place. Ends the whole program if it wants a server and there is none.
    pub fn new(kind: StoreKind) -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if kind == StoreKind::Postgres {
            postgres::settings();
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("test_{}_{number}", std::process::id());
        Place { kind, namespace, dir: tempfile::tempdir().expect("a directory can be made") }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The configuration of a store here.
    pub fn config(&self, lane: Lane) -> AtlasConfig {
        let key_value_service = match self.kind {
            StoreKind::Memory => KvsConfig::Memory {},
            StoreKind::Rocksdb => rocksdb_in(&self.dir().join("data")),
            StoreKind::Postgres => KvsConfig::Postgres(postgres::settings()),
        };
        AtlasConfig {
            namespace: self.namespace.clone(),
            key_value_service,
            transactions: lane.transactions(),
            ..AtlasConfig::default()
        }
    }

    /// The store by itself, for who puts something between it and the layer.
    pub async fn open(&self) -> Arc<dyn KeyValueService> {
        match self.kind {
            StoreKind::Memory => Arc::new(MemoryStore::new()),
            StoreKind::Rocksdb => {
                let config = RocksConfig::new(self.dir().join("data"));
                Arc::new(RocksStore::open(config).await.expect("the store opens"))
            }
            StoreKind::Postgres => {
                let config = postgres::connection(&self.namespace);
                Arc::new(PostgresStore::connect(config).await.expect("the server can be reached"))
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match self.kind {
            StoreKind::Memory | StoreKind::Rocksdb => {}
            StoreKind::Postgres => postgres::drop_namespace(&self.namespace),
        }
    }
}
