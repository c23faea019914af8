//! Opens the store that a configuration names: the only place that knows which stores there are.

mod servers;

use crate::backup::{
    ConnectionOpener, DirectoryTarget, NodeCommands, RestoreTarget, StoreOpener, StoreTarget, refuse_if_restoring,
};
use crate::config::{AtlasConfig, KvsConfig};
use crate::{Error, Result};
use atlas_kvs::{Durability, KeyValueService};
use atlas_kvs_memory::MemoryStore;
use futures::FutureExt;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Files of a data directory that tell who owns it and nothing about its content.
const OWNER_FILES: [&str; 4] = ["owner", "atlas.sock", "atlas.sock.path", "server.token"];

/// What else may lie in a directory that holds no store yet: work of ours, and what file systems put at their root.
const HARMLESS: [&str; 2] = ["staging", "lost+found"];
/// The directory in which the database itself lies.
const DATABASE: &str = "db";

/// An open store, with what is known about the place it lives in.
#[derive(Debug)]
pub(crate) struct OpenedStore {
    pub(crate) kvs: Arc<dyn KeyValueService>,
    /// Where it is, for people; no secrets.
    pub(crate) location: String,
    /// The directory it lives in, if it lives in one.
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) durability: Durability,
}

/// The directory of the configured store, if it lives in one.
pub(crate) fn data_dir(config: &KvsConfig) -> Option<&Path> {
    match config {
        KvsConfig::Rocksdb { data_dir, .. } => Some(data_dir),
        KvsConfig::Postgres(_) | KvsConfig::Cassandra(_) | KvsConfig::Memory {} => None,
    }
}

/// Opens the configured store, or makes it.
///
/// # Errors
/// [`Error::StoreInUse`] if another process owns it for longer than `wait_for_owner`, [`Error::Refused`] while it is
/// being restored, and those of the store.
pub(crate) async fn open(config: &AtlasConfig, wait_for_owner: Duration) -> Result<OpenedStore> {
    let durability = |sync: bool| if sync { Durability::Synced } else { Durability::Relaxed };
    match &config.key_value_service {
        KvsConfig::Rocksdb { data_dir, sync, .. } => {
            refuse_if_restoring(data_dir)?;
            refuse_other_use(data_dir)?;
            let kvs = open_rocksdb(&config.key_value_service, data_dir, wait_for_owner).await?;
            // Once more as its owner: a restore may have begun before we had the lock.
            refuse_if_restoring(data_dir)?;
            Ok(OpenedStore {
                kvs,
                location: data_dir.display().to_string(),
                data_dir: Some(data_dir.clone()),
                durability: durability(*sync),
            })
        }
        KvsConfig::Postgres(settings) => {
            Ok(on_server(&config.key_value_service, servers::open_postgres(settings, &config.namespace).await?))
        }
        KvsConfig::Cassandra(settings) => {
            Ok(on_server(&config.key_value_service, servers::open_cassandra(settings, &config.namespace).await?))
        }
        KvsConfig::Memory {} => Ok(OpenedStore {
            kvs: Arc::new(MemoryStore::new()),
            location: "memory".to_owned(),
            data_dir: None,
            durability: Durability::Synced,
        }),
    }
}

/// True for a store that several processes reach, and find each other through.
pub(crate) fn is_shared(config: &KvsConfig) -> bool {
    matches!(config, KvsConfig::Postgres(_) | KvsConfig::Cassandra(_))
}

/// Connects to the configured store on a server, and makes nothing.
///
/// # Errors
/// [`Error::NotFound`] if there is none; those of the store.
pub(crate) async fn open_existing(config: &AtlasConfig) -> Result<OpenedStore> {
    let namespace = &config.namespace;
    let found = match &config.key_value_service {
        KvsConfig::Postgres(settings) => servers::existing_postgres(settings, namespace).await?,
        KvsConfig::Cassandra(settings) => servers::existing_cassandra(settings, namespace).await?,
        KvsConfig::Rocksdb { .. } | KvsConfig::Memory {} => return open(config, Duration::ZERO).await,
    };
    let opened = found.map(|kvs| on_server(&config.key_value_service, kvs));
    opened.ok_or_else(|| no_store(format!("namespace '{namespace}' of {}", location(&config.key_value_service))))
}

/// Refuses if there is no store yet; what is wrong in another way is told when it is opened.
///
/// # Errors
/// [`Error::NotFound`], and those of a store on a server.
pub(crate) async fn check_exists(config: &AtlasConfig) -> Result<()> {
    match &config.key_value_service {
        KvsConfig::Rocksdb { data_dir, .. } if is_missing_or_empty(data_dir) => {
            Err(no_store(format!("{} (keyValueService.dataDir)", data_dir.display())))
        }
        KvsConfig::Rocksdb { .. } | KvsConfig::Memory {} => Ok(()),
        KvsConfig::Postgres(_) | KvsConfig::Cassandra(_) => Ok(open_existing(config).await?.kvs.close().await?),
    }
}

/// Removes the configured store on a server for good. It may be gone already.
///
/// # Errors
/// [`Error::Refused`] for a store in a directory, which is removed with its directory.
pub(crate) async fn destroy(config: &AtlasConfig) -> Result<()> {
    if !is_shared(&config.key_value_service) {
        let place = location(&config.key_value_service);
        return Err(Error::refused(format!("{place} is not on a server"), "remove the directory"));
    }
    let kvs = match open_existing(config).await {
        Ok(opened) => opened.kvs,
        Err(Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let destroyed = kvs.destroy().await;
    kvs.close().await?;
    Ok(destroyed?)
}

/// There is no store in `place`.
pub(crate) fn no_store(place: String) -> Error {
    Error::NotFound { what: format!("store in {place}; `atlas table create` and `atlas serve` make one") }
}

/// What can't be read is not missing: opening it tells why.
fn is_missing_or_empty(dir: &Path) -> bool {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Where the configured store is, for people; no secrets.
pub(crate) fn location(config: &KvsConfig) -> String {
    match config {
        KvsConfig::Postgres(settings) => {
            format!("database '{}' at {}:{}", settings.database, settings.host, settings.port)
        }
        KvsConfig::Cassandra(settings) => format!("the cluster at {}", settings.contact_points),
        KvsConfig::Rocksdb { data_dir, .. } => data_dir.display().to_string(),
        KvsConfig::Memory {} => "memory".to_owned(),
    }
}

fn on_server(config: &KvsConfig, kvs: Arc<dyn KeyValueService>) -> OpenedStore {
    let durability = match config {
        KvsConfig::Postgres(settings) if !settings.sync => Durability::Relaxed,
        _ => Durability::Synced,
    };
    OpenedStore { kvs, location: location(config), data_dir: None, durability }
}

/// Refuses a place that is something else: a store that is made in it would mix with what is there.
fn refuse_other_use(data_dir: &Path) -> Result<()> {
    let shown = data_dir.display();
    let entries = match std::fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return Err(Error::refused(
                format!("{shown} (keyValueService.dataDir) can't be a data directory: it is a file, or lies below one"),
                "name a directory of its own in keyValueService.dataDir",
            ));
        }
        // It is made when it is missing; whatever else is wrong is told by who uses it.
        Err(_) => return Ok(()),
    };
    let mut foreign = None;
    for entry in entries {
        let name = entry.map_err(|error| Error::io(format!("reading {shown}"), error))?.file_name();
        let name = name.to_string_lossy();
        if name == DATABASE {
            return Ok(());
        }
        let is_ours = OWNER_FILES.contains(&name.as_ref()) || HARMLESS.contains(&name.as_ref());
        if !is_ours && !name.starts_with(".atlas-") {
            foreign = Some(name.into_owned());
        }
    }
    match foreign {
        None => Ok(()),
        Some(name) => Err(Error::refused(
            format!("{shown} (keyValueService.dataDir) holds no store but other things, such as '{name}'"),
            "name an empty directory, or one that does not exist yet",
        )),
    }
}

/// The operator's commands for the nodes of the configured cluster, where there are some.
pub(crate) fn node_commands(config: &AtlasConfig) -> Option<NodeCommands> {
    match &config.key_value_service {
        KvsConfig::Cassandra(settings) => servers::node_commands(settings, &config.namespace),
        KvsConfig::Rocksdb { .. } | KvsConfig::Postgres(_) | KvsConfig::Memory {} => None,
    }
}

/// Where a backup is restored to if `config` is the configuration of the store to fill.
///
/// # Errors
/// [`Error::Refused`] for a store that can't be restored into.
pub(crate) fn restore_target(config: &AtlasConfig) -> Result<Box<dyn RestoreTarget>> {
    match &config.key_value_service {
        KvsConfig::Rocksdb { data_dir, .. } => {
            let owner_files = OWNER_FILES.map(str::to_owned).to_vec();
            let opener = opener(config.key_value_service.clone());
            let target = DirectoryTarget::new(data_dir, "rocksdb", owner_files, opener);
            Ok(Box::new(target.in_namespace(&config.namespace).committing(config.transactions.commit_mode)))
        }
        KvsConfig::Postgres(_) => Ok(Box::new(server_target(config, "postgres"))),
        KvsConfig::Cassandra(_) => {
            let target = server_target(config, "cassandra");
            Ok(Box::new(match node_commands(config) {
                Some(commands) => target.with_nodes(commands),
                None => target,
            }))
        }
        KvsConfig::Memory {} => Err(Error::refused(
            "a store in memory can't be restored into: it would be gone with this process",
            "name a configuration with `type: rocksdb`",
        )),
    }
}

/// The configured namespace of a store on a server.
fn server_target(config: &AtlasConfig, store: &str) -> StoreTarget {
    let location = format!("namespace '{}' of {}", config.namespace, location(&config.key_value_service));
    let (config, mode) = (config.clone(), config.transactions.commit_mode);
    let namespace = config.namespace.clone();
    let opener: ConnectionOpener = Arc::new(move || {
        let config = config.clone();
        async move { Ok(open(&config, Duration::ZERO).await?.kvs) }.boxed()
    });
    StoreTarget::new(location, store, namespace, opener).committing(mode)
}

/// Opens the configured kind of store in whatever directory it is asked to.
pub(crate) fn opener(config: KvsConfig) -> StoreOpener {
    Arc::new(move |directory: PathBuf| {
        let config = config.clone();
        async move { open_rocksdb(&config, &directory, Duration::ZERO).await }.boxed()
    })
}

#[cfg(feature = "rocksdb")]
async fn open_rocksdb(config: &KvsConfig, data_dir: &Path, wait: Duration) -> Result<Arc<dyn KeyValueService>> {
    use atlas_kvs_rocksdb::{RocksConfig, RocksStore};

    let usual = RocksConfig { wait_for_owner: wait, ..RocksConfig::new(data_dir) };
    let config = match config {
        KvsConfig::Rocksdb { block_cache, sync, .. } => {
            RocksConfig { block_cache_bytes: block_cache.len(), sync: *sync, ..usual }
        }
        KvsConfig::Postgres(_) | KvsConfig::Cassandra(_) | KvsConfig::Memory {} => usual,
    };
    Ok(Arc::new(RocksStore::open(config).await?))
}

#[cfg(not(feature = "rocksdb"))]
async fn open_rocksdb(_config: &KvsConfig, _data_dir: &Path, _wait: Duration) -> Result<Arc<dyn KeyValueService>> {
    Err(not_built("rocksdb"))
}

/// A store that this program was built without.
#[cfg_attr(all(feature = "rocksdb", feature = "postgres", feature = "cassandra"), allow(dead_code))]
fn not_built(store: &str) -> Error {
    Error::Config {
        place: "keyValueService.type".to_owned(),
        reason: format!("this build of atlas has no {store}; build it with the feature `{store}`"),
    }
}
