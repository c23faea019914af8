//! Where a store lies while a test lasts: in memory, in a directory, or in a namespace of a server.

use super::{Lane, StoreKind, cassandra, postgres, rocksdb_in};
use atlas::Atlas;
use atlas::config::{AtlasConfig, KvsConfig, SweepConfig};
use atlas::kvs_api::KeyValueService;
use atlas_kvs_cassandra::CassandraStore;
use atlas_kvs_memory::MemoryStore;
use atlas_kvs_postgres::PostgresStore;
use atlas_kvs_rocksdb::{RocksConfig, RocksStore};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// How often sweep looks for work in tests. Each look costs a server a dozen requests.
fn sweep_every(kind: StoreKind) -> Duration {
    Duration::from_millis(match kind {
        StoreKind::Memory | StoreKind::Rocksdb => 30,
        StoreKind::Postgres => 200,
        StoreKind::Cassandra => 1_000,
    })
}

/// Where one store lies: enough to find it again, from another process too.
#[derive(Clone, Debug)]
pub struct Site {
    pub kind: StoreKind,
    pub dir: PathBuf,
    pub namespace: String,
}

impl Site {
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The configuration of a store here.
    pub fn config(&self, lane: Lane) -> AtlasConfig {
        let key_value_service = match self.kind {
            StoreKind::Memory => KvsConfig::Memory {},
            StoreKind::Rocksdb => rocksdb_in(&self.dir.join("data")),
            StoreKind::Postgres => KvsConfig::Postgres(postgres::settings()),
            StoreKind::Cassandra => KvsConfig::Cassandra(cassandra::settings()),
        };
        AtlasConfig {
            namespace: self.namespace.clone(),
            key_value_service,
            transactions: lane.transactions(),
            // Hot: whatever a test does, sweep runs beside it.
            sweep: SweepConfig { interval: sweep_every(self.kind), pause: Duration::ZERO, ..SweepConfig::default() },
            ..AtlasConfig::default()
        }
    }

    /// The block `keyValueService` of a configuration file for a store here, on a server. A password goes into a file in
    /// `dir`.
    pub fn yaml(&self, dir: &Path) -> String {
        match self.kind {
            StoreKind::Postgres => postgres::yaml(dir),
            StoreKind::Cassandra => cassandra::yaml(),
            StoreKind::Memory | StoreKind::Rocksdb => panic!("{:?} is on no server", self.kind),
        }
    }

    /// Whether somebody has made a store here, on a server.
    pub async fn exists(&self) -> bool {
        match self.kind {
            StoreKind::Postgres => {
                let found = PostgresStore::connect_existing(postgres::connection(&self.namespace)).await;
                found.expect("the server can be reached").is_some()
            }
            StoreKind::Cassandra => {
                let found = CassandraStore::connect_existing(cassandra::connection(&self.namespace)).await;
                found.expect("the cluster can be reached").is_some()
            }
            StoreKind::Memory | StoreKind::Rocksdb => panic!("{:?} is on no server", self.kind),
        }
    }

    /// The store, ready for transactions.
    pub async fn open_atlas(&self, config: AtlasConfig) -> Atlas {
        Atlas::open_unserved(config, Duration::from_secs(60)).await.expect("the store opens")
    }

    /// The store by itself, for who puts something between it and the layer.
    pub async fn open(&self) -> Arc<dyn KeyValueService> {
        match self.kind {
            StoreKind::Memory => Arc::new(MemoryStore::new()),
            StoreKind::Rocksdb => {
                let config = RocksConfig::new(self.dir.join("data"));
                Arc::new(RocksStore::open(config).await.expect("the store opens"))
            }
            StoreKind::Postgres => {
                let config = postgres::connection(&self.namespace);
                Arc::new(PostgresStore::connect(config).await.expect("the server can be reached"))
            }
            StoreKind::Cassandra => {
                let config = cassandra::connection(&self.namespace);
                Arc::new(CassandraStore::connect(config).await.expect("the cluster can be reached"))
            }
        }
    }
}

/// A site of its own for one store. What was made there goes with it, on servers too.
#[derive(Debug)]
pub struct Place {
    site: Site,
    _dir: TempDir,
}

impl Place {
    /// A new place. Ends the whole program if it wants a server and there is none.
    pub fn new(kind: StoreKind) -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        match kind {
            StoreKind::Memory | StoreKind::Rocksdb => {}
            StoreKind::Postgres => drop(postgres::settings()),
            StoreKind::Cassandra => drop(cassandra::settings()),
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("test_{}_{number}", std::process::id());
        let dir = tempfile::tempdir().expect("a directory can be made");
        Place { site: Site { kind, dir: dir.path().to_owned(), namespace }, _dir: dir }
    }
}

impl Deref for Place {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kind.drop_namespace(&self.namespace);
    }
}

impl StoreKind {
    /// Removes a namespace from its server.
    pub fn drop_namespace(self, namespace: &str) {
        match self {
            StoreKind::Memory | StoreKind::Rocksdb => {}
            StoreKind::Postgres => postgres::drop_namespace(namespace),
            StoreKind::Cassandra => cassandra::drop_namespace(namespace),
        }
    }
}
