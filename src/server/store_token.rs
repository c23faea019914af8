//! The token of a store that several processes share lies in the store: whoever may read it may call its owner.
//!
//! Each owner makes it anew when it takes over, before it answers anybody. So a token that came into strange hands, as
//! when a dead owner's port was taken by somebody, is worth nothing to the successor; nor is the one in a copy.

use super::token::Token;
use crate::schema::{Replaced, TokenRecord};
use crate::timestamp::read_stored;
use crate::{Error, Result};
use atlas_kvs::KeyValueService;
use std::sync::Arc;

/// Puts a new token into the store.
///
/// # Errors
/// [`Error::LostLeadership`] if a later owner has put its own there.
pub(crate) async fn renew(kvs: Arc<dyn KeyValueService>, epoch: u64) -> Result<Token> {
    let token = Token::random().map_err(|error| Error::io("asking the system for random bytes", error))?;
    let ours = TokenRecord { epoch, token: token.digits().to_owned() };
    let stored = TokenRecord::in_store(kvs.clone());
    let mut loaded = stored.load().await?;
    loop {
        if let Some((found, _)) = &loaded {
            // In a store that was put together from different times the token may be of an epoch that is yet to come.
            if found.epoch > epoch && !owns(kvs.clone(), epoch).await? {
                return Err(Error::LostLeadership {
                    reason: format!("the token in the store is of epoch {}, ours is {epoch}", found.epoch),
                });
            }
            if found.token == ours.token {
                return Ok(token);
            }
        }
        match stored.replace(loaded.as_ref().map(|(_, bytes)| bytes), Some(&ours)).await? {
            Replaced::Done(_) => return Ok(token),
            Replaced::Other(found) => loaded = found,
        }
    }
}

async fn owns(kvs: Arc<dyn KeyValueService>, epoch: u64) -> Result<bool> {
    Ok(read_stored(kvs).await?.is_some_and(|record| record.epoch == epoch))
}

/// The token of the store's owner, if it has made one.
pub(super) async fn read(kvs: Arc<dyn KeyValueService>) -> Result<Option<Token>> {
    let Some((record, _)) = TokenRecord::in_store(kvs).load().await? else { return Ok(None) };
    Token::from_digits(&record.token)
        .map(Some)
        .ok_or_else(|| Error::corrupt(format!("record '{}'", TokenRecord::NAME), "it holds no token"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use atlas_kvs_memory::MemoryStore;

    #[tokio::test]
    async fn each_owner_makes_its_own_and_an_outdated_one_none() {
        let kvs: Arc<dyn KeyValueService> = Arc::new(MemoryStore::new());
        crate::schema::MetaRecord::<TokenRecord>::create_table(&*kvs).await.expect("made");
        assert!(read(kvs.clone()).await.expect("read").is_none());
        let first = renew(kvs.clone(), 1).await.expect("made");
        let second = renew(kvs.clone(), 2).await.expect("made");
        assert_ne!(first.digits(), second.digits());
        let Err(error) = renew(kvs.clone(), 1).await else { panic!("it replaced the token of its successor") };
        assert_eq!(error.code(), "LOST_LEADERSHIP");
        assert_eq!(read(kvs).await.expect("read").expect("there").digits(), second.digits());
    }
}
