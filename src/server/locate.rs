//! Finds the owner of a store that several processes share, through the store.
//!
//! The record of the timestamps' owner tells where it answers. Nothing but the question for a proof is sent there before
//! the proof is given: in a copied store stands the address of the original's owner.

use super::challenge::Challenge;
use super::client::RemoteAtlas;
use super::store_token;
use crate::timestamp::{self, Contact, OracleRecord};
use crate::{Error, Result};
use atlas_kvs::{KeyValueService, KvsError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Who owns a store.
pub(crate) enum Owner {
    /// Nobody: it was given up, or never had one.
    Nobody,
    /// A process that answers here.
    Server {
        /// Connected.
        server: Box<RemoteAtlas>,
        /// What it is, in words.
        name: String,
    },
    /// A process that can't be asked. It may be alive, or not.
    Unreachable {
        /// What it left of itself.
        record: OracleRecord,
        /// Why it can't be asked, as a sentence.
        why: String,
    },
}

/// Finds out who owns this store, and connects to it if it can be reached and proves that it is the owner.
///
/// # Errors
/// Those of the store, and those of an owner that is proved but does not let us in or speaks another version of the
/// protocol. Cancel safety: a challenge that is left behind is removed by the store's owner.
pub(crate) async fn find_owner(kvs: &Arc<dyn KeyValueService>) -> Result<Owner> {
    let record = match timestamp::read_stored(kvs.clone()).await {
        Ok(Some(record)) if record.holder.is_some() => record,
        Ok(_) | Err(Error::Kvs(KvsError::NoSuchTable(_))) => return Ok(Owner::Nobody),
        Err(error) => return Err(error),
    };
    let unreachable = |why: String| Ok(Owner::Unreachable { record: record.clone(), why });
    let here = Contact::this_process("");
    let Some(contact) = &record.contact else { return unreachable("it left no address".to_owned()) };
    match &contact.address {
        _ if contact.host != here.host => {
            unreachable(format!("it answers on its own machine, '{}', only", contact.host))
        }
        None => unreachable("it answers nobody".to_owned()),
        Some(address) => match locate(kvs, address).await? {
            Located::Owner(server) => {
                Ok(Owner::Server { server, name: format!("{contact}, which answers at {address}") })
            }
            Located::Unreachable(why) => unreachable(format!("its address {address} {why}")),
        },
    }
}

/// What became of the search at an address.
enum Located {
    Owner(Box<RemoteAtlas>),
    /// Why not, as the rest of a sentence about the address.
    Unreachable(String),
}

async fn locate(kvs: &Arc<dyn KeyValueService>, address: &str) -> Result<Located> {
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
