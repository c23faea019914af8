//! Finds the owner of a store that several processes share, through the store.

use super::challenge::Challenge;
use super::client::RemoteAtlas;
use super::store_token;
use crate::Result;
use atlas_kvs::KeyValueService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What became of the search at an address.
pub(crate) enum Located {
    /// The owner.
    Owner(Box<RemoteAtlas>),
    /// Nobody who could be asked; why not, as the rest of a sentence about the address.
    Unreachable(String),
}

/// Connects to the owner of this store, which says that it answers at `address`, as soon as it has proved that it is.
///
/// Nothing is sent to anybody else: in a copied store stands the address of the original's owner.
///
/// # Errors
/// Those of the store, and those of an owner that is proved but does not let us in or speaks another version of the
/// protocol. Cancel safety: a challenge that is left behind is removed by the store's owner.
pub(crate) async fn locate(kvs: &Arc<dyn KeyValueService>, address: &str) -> Result<Located> {
    let unreachable = |why: &str| Ok(Located::Unreachable(why.to_owned()));
    let Some(address) = address.parse::<SocketAddr>().ok().filter(|address| address.ip().is_loopback()) else {
        return unreachable("is no address of this machine");
    };
    // Nothing is written for a port on which nobody listens.
    match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Ok(Located::Unreachable(format!("can't be reached ({error})"))),
        Err(_) => return unreachable("accepts no connections"),
    }
    let challenge = Challenge::write(kvs.clone()).await?;
    let met = RemoteAtlas::is_met_at(address, &challenge).await;
    if let Err(error) = challenge.remove().await {
        tracing::warn!(%error, "a challenge could not be removed from the store; its owner will do so");
    }
    match met {
        Ok(true) => {}
        Ok(false) => return unreachable("is that of another store's server"),
        Err(error) => return Ok(Located::Unreachable(format!("can't be reached ({error})"))),
    }
    match store_token::read(kvs.clone()).await? {
        Some(token) => Ok(Located::Owner(Box::new(RemoteAtlas::connect_proven(address, &token).await?))),
        None => unreachable("has no token in the store"),
    }
}
