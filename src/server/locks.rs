//! The lock service as the server sees it.

use crate::Result;
use async_trait::async_trait;
use bytes::Bytes;
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

/// Locks that are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockLease {
    /// Names them.
    pub token: Bytes,
    /// How long they last without being refreshed.
    pub lease: Duration,
}
