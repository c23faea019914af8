//! Proof that a server has the store we mean.
//!
//! Whoever reaches a store that several processes share finds its owner's address in it. The address proves nothing: in
//! a restored or copied store it is that of the original's owner, and of a dead owner's port anybody may have made use.
//! So before a client says anything else, it leaves a secret in the store and asks who answers there to show that it
//! can read it:
//!
//! ```text
//!   client                           store                             server at A
//!     |- name, secret ----------------->|                                  |
//!     |- Prove(name) ------------------------------------------------------>|
//!     |                                 |<--------------------- read name --|
//!     |<------------------------------------- H(secret, A) -----------------|
//!     |- remove name ------------------>|
//! ```
//!
//! The answer is bound to the address that the server listens on, so that nobody in between can pass on the question
//! and then be taken for the server. The secret itself is never sent.

use crate::schema::meta_table;
use crate::{Error, Result};
use atlas_kvs::{AtomicScan, Cell, CheckAndSet, KeyValueService, PutUnlessExists, RowRange};
use bytes::Bytes;
use futures::StreamExt;
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// All challenges lie in this row of the table of records, a column each.
const ROW: &[u8] = b"challenge";
pub(super) const NAME_LEN: usize = 16;
const SECRET_LEN: usize = 32;
/// How many left-over challenges are removed in one round at most; the next round removes the others.
const CLEANED_MAX: usize = 1_000;
/// How often the owner of a store looks for challenges that killed clients have left. What it has seen twice goes, so
/// every client has at least this long for its question, whatever its clock says.
pub(crate) const CLEAN_EVERY: Duration = Duration::from_secs(60);

/// A challenge that lies in the store.
pub(super) struct Challenge {
    kvs: Arc<dyn KeyValueService>,
    name: [u8; NAME_LEN],
    secret: [u8; SECRET_LEN],
}

impl Challenge {
    /// Leaves a new one in the store, which must have a table of records.
    pub(super) async fn write(kvs: Arc<dyn KeyValueService>) -> Result<Challenge> {
        let (mut name, mut secret) = ([0; NAME_LEN], [0; SECRET_LEN]);
        for bytes in [&mut name[..], &mut secret[..]] {
            OsRng
                .try_fill_bytes(bytes)
                .map_err(|error| Error::io("asking the system for random bytes", std::io::Error::other(error)))?;
        }
        let challenge = Challenge { kvs, name, secret };
        match challenge.kvs.put_unless_exists(&meta_table(), &cell(&name), challenge.value()).await? {
            PutUnlessExists::Written => Ok(challenge),
            PutUnlessExists::Exists(found) if found == challenge.value() => Ok(challenge),
            PutUnlessExists::Exists(_) => Err(Error::corrupt("the store", "a random name was in use")),
        }
    }

    /// What it is asked by.
    pub(super) fn name(&self) -> Bytes {
        Bytes::copy_from_slice(&self.name)
    }

    /// True for the answer of a server that listens on `address` and reads this store.
    pub(super) fn is_met_by(&self, proof: &[u8], address: SocketAddr) -> bool {
        // Compared in the same time wherever they differ.
        <[u8; 32]>::try_from(proof).is_ok_and(|proof| proof_of(&self.secret, address) == blake3::Hash::from(proof))
    }

    /// Takes it out of the store.
    pub(super) async fn remove(&self) -> Result<()> {
        self.kvs.check_and_set(&meta_table(), &cell(&self.name), Some(self.value()), None).await?;
        Ok(())
    }

    fn value(&self) -> Bytes {
        Bytes::copy_from_slice(&self.secret)
    }
}

/// The server's answer; `None` if there is no such challenge in its store.
pub(super) async fn answer(
    kvs: &dyn KeyValueService,
    name: &[u8],
    address: SocketAddr,
) -> Result<Option<blake3::Hash>> {
    let Ok(name) = <[u8; NAME_LEN]>::try_from(name) else {
        return Err(Error::Usage(format!("the name of a challenge has {NAME_LEN} bytes")));
    };
    let found = kvs.get_atomic(&meta_table(), &[cell(&name)]).await?.into_iter().flatten().next();
    let secret = found.and_then(|value| <[u8; SECRET_LEN]>::try_from(&value[..]).ok());
    Ok(secret.map(|secret| proof_of(&secret, address)))
}

/// Removes what killed clients have left: every challenge that was there in the round before. `seen` is what this round
/// leaves for the next.
pub(crate) async fn clean(kvs: &dyn KeyValueService, seen: &mut BTreeSet<Bytes>) -> Result<()> {
    let row = Bytes::from_static(ROW);
    let mut found = kvs.scan_atomic(&meta_table(), AtomicScan::new(RowRange::single(row))).take(CLEANED_MAX);
    let mut now = BTreeSet::new();
    let mut old = Vec::new();
    while let Some(challenge) = found.next().await {
        let (cell, value) = challenge?;
        if seen.contains(&cell.column) {
            old.push((cell, value));
        } else {
            now.insert(cell.column);
        }
    }
    for (cell, value) in old {
        if let CheckAndSet::Applied = kvs.check_and_set(&meta_table(), &cell, Some(value), None).await? {
            tracing::debug!("a challenge that its client left was removed");
        }
    }
    *seen = now;
    Ok(())
}

fn cell(name: &[u8; NAME_LEN]) -> Cell {
    Cell::copy_from(ROW, hex::encode(name))
}

fn proof_of(secret: &[u8; SECRET_LEN], address: SocketAddr) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(b"atlas store challenge 1\0");
    hasher.update(address.to_string().as_bytes());
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::StoreRecord;
    use atlas_kvs_memory::MemoryStore;

    async fn store() -> Arc<dyn KeyValueService> {
        let kvs: Arc<dyn KeyValueService> = Arc::new(MemoryStore::new());
        crate::schema::MetaRecord::<StoreRecord>::create_table(&*kvs).await.expect("made");
        kvs
    }

    async fn challenges_in(kvs: &dyn KeyValueService) -> usize {
        kvs.scan_atomic(&meta_table(), AtomicScan::new(RowRange::all())).count().await
    }

    #[tokio::test]
    async fn only_who_reads_the_store_and_listens_there_meets_a_challenge() {
        let (kvs, other) = (store().await, store().await);
        let here: SocketAddr = "127.0.0.1:8422".parse().expect("an address");
        let there: SocketAddr = "127.0.0.1:8423".parse().expect("an address");
        let challenge = Challenge::write(kvs.clone()).await.expect("written");
        let proof = answer(&*kvs, &challenge.name(), here).await.expect("read").expect("there");
        assert!(challenge.is_met_by(proof.as_bytes(), here));
        assert!(!challenge.is_met_by(proof.as_bytes(), there), "the answer of another server was passed on");
        assert!(!challenge.is_met_by(&proof.as_bytes()[..31], here));
        assert!(!challenge.is_met_by(b"", here));
        assert_eq!(answer(&*other, &challenge.name(), here).await.expect("read"), None);
        assert_eq!(answer(&*kvs, b"store", here).await.expect_err("no name").code(), "USAGE");
        challenge.remove().await.expect("removed");
        assert_eq!(answer(&*kvs, &challenge.name(), here).await.expect("read"), None);
        assert_eq!(challenges_in(&*kvs).await, 0);
    }

    #[tokio::test]
    async fn left_over_challenges_go_in_the_second_round_and_records_stay() {
        let kvs = store().await;
        let record = Cell::copy_from("oracle", "record");
        kvs.put_unless_exists(&meta_table(), &record, Bytes::from_static(b"{}")).await.expect("written");
        let mut seen = BTreeSet::new();
        let left = Challenge::write(kvs.clone()).await.expect("written");
        clean(&*kvs, &mut seen).await.expect("looked");
        let fresh = Challenge::write(kvs.clone()).await.expect("written");
        assert_eq!(challenges_in(&*kvs).await, 3);
        clean(&*kvs, &mut seen).await.expect("cleaned");
        let here = "127.0.0.1:1".parse().expect("an address");
        assert_eq!(answer(&*kvs, &left.name(), here).await.expect("read"), None);
        assert!(answer(&*kvs, &fresh.name(), here).await.expect("read").is_some(), "it may be asked for still");
        clean(&*kvs, &mut seen).await.expect("cleaned");
        assert_eq!(challenges_in(&*kvs).await, 1);
        left.remove().await.expect("to remove what is gone is no failure");
    }
}
