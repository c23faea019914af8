//! The lock service as the server sees it.

use crate::Result;
use crate::lock::{LockDescriptor, LockRequest, LockService, LockToken};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// Locks, on either side of a socket. Descriptors and tokens are opaque bytes here.
///
/// Cancel safety: a dropped [`lock`](Self::lock) may still be granted, until its lease ends. Asking again with the
/// same request id tells.
#[async_trait]
pub trait LockOps: Send + Sync {
    /// Takes all of `descriptors` or none. The same request id is answered with the same token.
    ///
    /// # Errors
    /// [`Error::LockTimeout`](crate::Error::LockTimeout) if they were not free within `timeout`.
    async fn lock(&self, request_id: uuid::Uuid, descriptors: Vec<Bytes>, timeout: Duration) -> Result<LockLease>;

    /// Prolongs leases, and tells which of the tokens are still held.
    async fn refresh(&self, tokens: &[Bytes]) -> Result<Vec<Bytes>>;

    /// Gives locks back, and tells which of the tokens were held until now.
    async fn unlock(&self, tokens: &[Bytes]) -> Result<Vec<Bytes>>;

    /// Waits until each of `descriptors` was free once after the call.
    ///
    /// # Errors
    /// [`Error::LockTimeout`](crate::Error::LockTimeout) if they were not within `timeout`.
    async fn wait_for(&self, descriptors: Vec<Bytes>, timeout: Duration) -> Result<()>;
}

/// The lock service of this process, for clients of its server.
#[derive(Debug)]
pub struct LocalLocks {
    service: Arc<LockService>,
}

impl LocalLocks {
    /// Serves this service.
    pub fn new(service: Arc<LockService>) -> LocalLocks {
        LocalLocks { service }
    }
}

fn advisory(descriptors: &[Bytes]) -> Vec<LockDescriptor> {
    // Clients name locks of their own; whatever bytes they send, it is never a lock of a transaction here.
    descriptors.iter().map(|bytes| LockDescriptor::advisory(&hex::encode(bytes))).collect()
}

/// Epoch and id, in 8 and 16 bytes.
fn token_bytes(token: &LockToken) -> Bytes {
    let mut bytes = token.epoch.to_be_bytes().to_vec();
    bytes.extend_from_slice(token.id.as_bytes());
    bytes.into()
}

fn token_of(bytes: &Bytes) -> Option<LockToken> {
    let epoch = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
    let id = uuid::Uuid::from_slice(bytes.get(8..)?).ok()?;
    Some(LockToken { epoch, id })
}

fn tokens_of(tokens: &[Bytes]) -> Vec<LockToken> {
    // What is no token is not held.
    tokens.iter().filter_map(token_of).collect()
}

#[async_trait]
impl LockOps for LocalLocks {
    async fn lock(&self, request_id: uuid::Uuid, descriptors: Vec<Bytes>, timeout: Duration) -> Result<LockLease> {
        let request = LockRequest { request_id, ..LockRequest::new(advisory(&descriptors), timeout) };
        let token = self.service.lock(request).await?;
        Ok(LockLease { token: token_bytes(&token), lease: self.service.lease() })
    }

    async fn refresh(&self, tokens: &[Bytes]) -> Result<Vec<Bytes>> {
        Ok(self.service.refresh(&tokens_of(tokens)).iter().map(token_bytes).collect())
    }

    async fn unlock(&self, tokens: &[Bytes]) -> Result<Vec<Bytes>> {
        Ok(self.service.unlock(&tokens_of(tokens)).iter().map(token_bytes).collect())
    }

    async fn wait_for(&self, descriptors: Vec<Bytes>, timeout: Duration) -> Result<()> {
        self.service.wait_for(advisory(&descriptors), timeout).await
    }
}

/// Locks that are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockLease {
    /// Names them.
    pub token: Bytes,
    /// How long they last without being refreshed.
    pub lease: Duration,
}
