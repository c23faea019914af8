//! From a configuration to operations, on whichever side of a socket the store is.

use super::Context;
use crate::config::{AtlasConfig, KvsConfig};
use crate::ops::Operations;
use crate::{Error, Result};
use atlas_kvs::KvsError;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to wait for a short command of another process.
const WAIT_FOR_OWNER: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Whether a store that is missing is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It must be there: a mistyped path must not make an empty store that answers "not found" for ever after.
    Existing,
    /// It is made if it is missing.
    Create,
}

/// Operations on the configured store: by the server that owns it, else in this process. Closed when the command ends.
pub(crate) async fn connect(context: &Context, access: Access) -> Result<Arc<dyn Operations>> {
    let config = &context.config()?.config;
    if access == Access::Existing {
        check_exists(config)?;
    }
    if matches!(config.key_value_service, KvsConfig::Memory {}) {
        context.note("warning: this store is in memory: what is written into it is gone with this command");
    }
    let deadline = Instant::now() + WAIT_FOR_OWNER;
    let operations = loop {
        // Anew in each round: the owner may have begun to serve, or gone.
        if !context.globals.offline
            && let Some(server) = context.backend.find_server(config).await?
        {
            break server;
        }
        match context.backend.open_store(config).await {
            Err(error)
                if is_in_use(&error)
                    && context.globals.offline
                    && context.backend.find_server(config).await?.is_some() =>
            {
                let what = format!("{error}, which serves it, and --offline opens the store in this process");
                return Err(Error::refused(what, "leave out --offline"));
            }
            Err(error) if is_in_use(&error) && Instant::now() < deadline => tokio::time::sleep(ASK_EVERY).await,
            result => break result?,
        }
    };
    context.keep_until_the_end(operations.clone());
    Ok(operations)
}

/// True if another process owns the store.
pub(crate) fn is_in_use(error: &Error) -> bool {
    matches!(error, Error::StoreInUse { .. } | Error::Kvs(KvsError::InUse { .. }))
}

/// Refuses if there is no store yet.
pub(crate) fn check_exists(config: &AtlasConfig) -> Result<()> {
    match &config.key_value_service {
        KvsConfig::Rocksdb { data_dir, .. } if is_missing_or_empty(data_dir) => {
            let dir = data_dir.display();
            let what =
                format!("store in {dir} (keyValueService.dataDir); `atlas table create` and `atlas serve` make one");
            Err(Error::NotFound { what })
        }
        _ => Ok(()),
    }
}

/// What can't be read is not missing: opening it tells why.
fn is_missing_or_empty(dir: &Path) -> bool {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}
