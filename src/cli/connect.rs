//! From a configuration to operations, on whichever side of a socket the store is.

use super::Context;
use super::backend::Search;
use crate::config::{AtlasConfig, KvsConfig};
use crate::ops::Operations;
use crate::{Error, Result};
use atlas_kvs::KvsError;
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
    let offline = context.globals.offline;
    if offline && access == Access::Existing {
        context.backend.check_exists(config).await?;
    }
    if matches!(config.key_value_service, KvsConfig::Memory {}) {
        context.note("warning: this store is in memory: what is written into it is gone with this command");
    }
    let deadline = Instant::now() + WAIT_FOR_OWNER;
    let mut silent = None;
    let operations = loop {
        // Anew in each round: the owner may have begun to serve, or gone.
        if !offline {
            match context.backend.find_server(config).await? {
                Search::Server(server) => break server,
                Search::NoStore(error) if access == Access::Existing => return Err(error),
                Search::NoStore(_) => silent = None,
                Search::Nobody(why) => silent = why,
            }
        }
        match context.backend.open_store(config).await {
            Err(error) if is_in_use(&error) && offline && is_served(context, config).await? => {
                let what = format!("{error}, which serves it, and --offline opens the store in this process");
                return Err(Error::refused(what, "leave out --offline"));
            }
            Err(error) if is_in_use(&error) && Instant::now() < deadline => tokio::time::sleep(ASK_EVERY).await,
            Err(Error::StoreOwned { owner }) => return Err(Error::StoreOwned { owner: with_reason(owner, silent) }),
            result => break result?,
        }
    };
    context.keep_until_the_end(operations.clone());
    Ok(operations)
}

async fn is_served(context: &Context, config: &AtlasConfig) -> Result<bool> {
    Ok(matches!(context.backend.find_server(config).await?, Search::Server(_)))
}

/// Who owns the store, and why he can't be asked instead.
fn with_reason(owner: String, silent: Option<String>) -> String {
    match silent {
        Some(why) => format!("{owner}, which can't be asked: {why}"),
        None => owner,
    }
}

/// True if another process owns the store.
pub(crate) fn is_in_use(error: &Error) -> bool {
    matches!(error, Error::StoreInUse { .. } | Error::StoreOwned { .. } | Error::Kvs(KvsError::InUse { .. }))
}
