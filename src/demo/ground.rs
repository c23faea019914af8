//! Where the demo's two stores are: in its directory, or, one after the other, in a namespace on the configured server
//! that nobody else has. There the backup is restored where it came from, as after a loss, because the store's own
//! snapshot belongs to its namespace.

use super::Stage;
use super::directory::Directory;
use crate::config::{AtlasConfig, KvsConfig, ServerConfig, SweepConfig};
use crate::{Error, Result, registry};
use std::path::PathBuf;
use std::time::Duration;

/// Configurations of the store that is filled and destroyed, and of the one that is restored.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) store: AtlasConfig,
    pub(super) restored: AtlasConfig,
}

impl Ground {
    /// Places that hold nothing: on the server if `config` names one, else in the directory.
    ///
    /// # Errors
    /// [`Error::Refused`] if the namespace is there already; those of the server.
    pub(super) async fn choose(config: &AtlasConfig, directory: &Directory, stage: &dyn Stage) -> Result<Ground> {
        if !registry::is_shared(&config.key_value_service) {
            return Ok(Ground { store: config_in(directory.store()), restored: config_in(directory.restored()) });
        }
        let namespace = format!("demo_{:08x}", rand::random::<u32>());
        let store = AtlasConfig { namespace, server: nowhere(), sweep: busy_sweep(), ..config.clone() };
        if stage.exists(&store).await? {
            let what = format!("{}, which the demo would destroy, is there already", shown(&store));
            return Err(Error::refused(what, "run the demo again: it takes another name"));
        }
        Ok(Ground { restored: store.clone(), store })
    }

    fn is_on_server(&self) -> bool {
        registry::is_shared(&self.store.key_value_service)
    }

    /// Destroys the first store with everything in it.
    pub(super) async fn destroy_store(&self, directory: &Directory, stage: &dyn Stage) -> Result<()> {
        match self.is_on_server() {
            true => stage.destroy(&self.store).await,
            false => directory.destroy_store(),
        }
    }

    /// Removes everything that was made, the directory last.
    pub(super) async fn remove(&self, directory: Directory, stage: &dyn Stage) -> Result<()> {
        if self.is_on_server() {
            stage.destroy(&self.restored).await?;
        }
        directory.remove()
    }

    /// What is there to look at in the end.
    pub(super) fn kept(&self, directory: &Directory) -> String {
        let directory = directory.path().display();
        match self.is_on_server() {
            true => format!("{}, and the backup in {directory}", shown(&self.restored)),
            false => directory.to_string(),
        }
    }
}

/// Where a store is, for people.
pub(super) fn shown(config: &AtlasConfig) -> String {
    let location = registry::location(&config.key_value_service);
    match registry::is_shared(&config.key_value_service) {
        true => format!("namespace '{}' of {location}", config.namespace),
        false => location,
    }
}

fn nowhere() -> ServerConfig {
    ServerConfig { http: "off".to_owned(), grpc: "off".to_owned() }
}

/// Sweep goes on beside it all, and not only now and then: the backup must be right all the same.
fn busy_sweep() -> SweepConfig {
    SweepConfig { interval: Duration::from_millis(200), ..SweepConfig::default() }
}

fn config_in(data_dir: PathBuf) -> AtlasConfig {
    let KvsConfig::Rocksdb { block_cache, sync, .. } = KvsConfig::default() else {
        unreachable!("RocksDB is the default store")
    };
    AtlasConfig {
        namespace: "demo".to_owned(),
        key_value_service: KvsConfig::Rocksdb { data_dir, block_cache, sync },
        server: nowhere(),
        sweep: busy_sweep(),
        ..AtlasConfig::default()
    }
}
