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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Atlas;
    use crate::config::AtlasConfig;
    use crate::ops::Operations;
    use crate::schema::meta_table;
    use crate::server::{Listeners, Server};
    use atlas_kvs::{AtomicScan, RowRange};
    use atlas_kvs_memory::MemoryStore;
    use futures::TryStreamExt;
    use tokio::net::TcpListener;

    struct Served {
        kvs: Arc<dyn KeyValueService>,
        atlas: Atlas,
        address: String,
        task: tokio_util::task::AbortOnDropHandle<()>,
    }

    /// A store whose owner can be found through it.
    async fn served() -> Served {
        let kvs: Arc<dyn KeyValueService> = Arc::new(MemoryStore::new());
        let atlas = Atlas::with_store(AtlasConfig::default(), kvs.clone()).await.expect("opened");
        let listeners = Listeners::any().await.expect("bound");
        let address = listeners.grpc_address().expect("bound").to_string();
        let token = store_token::renew(kvs.clone(), 1).await.expect("made");
        let services = atlas.services().shared(kvs.clone(), token);
        let server = Server::on(listeners, services, None).await.expect("made");
        let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(server.run(std::future::pending())));
        Served { kvs, atlas, address, task }
    }

    async fn refusal(kvs: &Arc<dyn KeyValueService>, address: &str) -> String {
        match locate(kvs, address).await.expect("the store can be asked") {
            Located::Owner(owner) => panic!("{owner:?} was taken for the owner"),
            Located::Unreachable(why) => why,
        }
    }

    async fn challenges_in(kvs: &dyn KeyValueService) -> usize {
        let rows = AtomicScan::new(RowRange::single("challenge"));
        kvs.scan_atomic(&meta_table(), rows).try_collect::<Vec<_>>().await.expect("read").len()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_the_owner_of_the_same_store_is_found() {
        let (one, other) = (served().await, served().await);
        let Located::Owner(owner) = locate(&one.kvs, &one.address).await.expect("asked") else {
            panic!("the owner was not found")
        };
        owner.fresh_timestamp().await.expect("it answers");
        assert!(refusal(&one.kvs, &other.address).await.contains("another store"));
        let nowhere = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound");
        assert!(refusal(&one.kvs, &nowhere.to_string()).await.contains("can't be reached"));
        for no_address in ["192.0.2.1:80", "localhost", ""] {
            assert!(refusal(&one.kvs, no_address).await.contains("no address"), "{no_address}");
        }
        for kvs in [&one.kvs, &other.kvs] {
            assert_eq!(challenges_in(&**kvs).await, 0);
        }
        for served in [one, other] {
            drop(served.task);
            served.atlas.close().await.expect("closed");
        }
    }

    /// Somebody at another address who passes everything on would be shown the token next.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_only_passes_the_question_on_is_not_taken_for_the_owner() {
        let served = served().await;
        let between = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = between.local_addr().expect("bound").to_string();
        let owner = served.address.clone();
        let _passing = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok((mut client, _)) = between.accept().await {
                let owner = owner.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(owner).await.expect("it is there");
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        }));
        assert!(refusal(&served.kvs, &address).await.contains("another store"));
        assert!(matches!(locate(&served.kvs, &served.address).await, Ok(Located::Owner(_))));
    }
}
