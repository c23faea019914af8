//! The service that hands locks out.
//!
//! ```text
//!   locks      descriptor -> holder, queue       sharded by descriptor
//!   requests   id -> request                     sharded by id; a token is the id of a request that was granted
//! ```
//!
//! A request is moved forward by whoever gives it a lock: the thread that unlocks hands the lock to the first in the
//! queue and takes, in that request's name, the next locks it wants, until one is in use or all are taken. The
//! caller's future only waits for the end of this, so a handover costs one wake-up however many locks are wanted, and
//! a caller that is slow to wake delays nobody behind it in other queues.
//!
//! Order of mutexes: shard of requests, then state of a request, then shard of locks. Never two of one kind at once.

mod passing;
mod request;
#[cfg(test)]
mod tests;

use request::{Caller, Mode, Phase, Request, Requests};

use super::{BootClock, Clock, LockClient, LockDescriptor};
use crate::Result;
use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::task::AbortHandle;
use uuid::Uuid;

/// A power of two well above the number of processors, so that two threads seldom meet.
const SHARDS: usize = 64;

/// How locks are handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockOptions {
    /// A holder that was not refreshed for this long loses its locks. At least a millisecond counts.
    pub lease: Duration,
    /// A holder is refreshed for this long after it was granted, where its request says nothing else.
    pub tenure: Duration,
    /// Most calls that may wait at a time, over all locks.
    pub waiters_max: usize,
    /// Of about how many requests that ended the ids are remembered; twice as many at most.
    pub remembered_max: usize,
}

impl Default for LockOptions {
    fn default() -> LockOptions {
        LockOptions {
            lease: Duration::from_secs(20),
            tenure: Duration::from_secs(15 * 60),
            waiters_max: 100_000,
            remembered_max: 16_384,
        }
    }
}

/// What to lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// Identity of the request. A call repeated with the same id, because an answer was lost, gets the same answer.
    pub request_id: Uuid,
    /// Which locks, in any order, repeated or not.
    pub descriptors: Vec<LockDescriptor>,
    /// How long to wait for all of them together.
    pub timeout: Duration,
    /// For how long after it is granted the token may be refreshed; `None`: as the service is set.
    pub tenure: Option<Duration>,
}

impl LockRequest {
    /// A request of a new id and the usual tenure.
    pub fn new(descriptors: Vec<LockDescriptor>, timeout: Duration) -> LockRequest {
        LockRequest { request_id: Uuid::new_v4(), descriptors, timeout, tenure: None }
    }
}

/// Stands for the locks of a request that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockToken {
    /// Epoch of the service that granted it; void in any other.
    pub epoch: u64,
    /// The request's id.
    pub id: Uuid,
}

/// A lock in use, as operators see it.
#[derive(Clone, Debug)]
pub struct LockHolder {
    /// The lock.
    pub descriptor: LockDescriptor,
    /// Whose it is. A request that still waits for other locks has no right to this token yet.
    pub token: LockToken,
    /// Time since the request came.
    pub age: Duration,
    /// What is left of the lease; `None` while the request still waits for other locks.
    pub lease_left: Option<Duration>,
    /// How many wait for this lock.
    pub waiters: usize,
}

/// Hands out locks within one process. Cloning is cheap; all clones are one service.
///
/// Dropped with its last clone, and its background task with it.
#[derive(Clone)]
pub struct LockService {
    inner: Arc<Inner>,
}

struct Inner {
    epoch: u64,
    options: LockOptions,
    clock: Arc<dyn Clock>,
    hasher: RandomState,
    locks: Box<[Mutex<HashMap<LockDescriptor, Lock>>]>,
    requests: Box<[Mutex<Requests>]>,
    // The number of the next request.
    numbers: AtomicU64,
    waiting: AtomicUsize,
    reaper: OnceLock<AbortHandle>,
}

/// A lock in use. A lock that nobody holds has no entry.
struct Lock {
    holder: Arc<Request>,
    // First come, first served. Invariant: a request is in one queue at most, that of the lock it wants next.
    queue: VecDeque<Arc<Request>>,
}

/// A request that was just handed a lock, or starts.
struct Step {
    request: Arc<Request>,
    handed_over: bool,
}

impl LockService {
    /// A service whose tokens are valid in `epoch` only.
    ///
    /// # Panics
    /// Outside of a tokio runtime: a background task ends leases that ran out.
    pub fn new(epoch: u64, options: LockOptions) -> LockService {
        LockService::with_clock(epoch, options, Arc::new(BootClock))
    }

    /// The same, with leases counted on `clock`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn with_clock(epoch: u64, options: LockOptions, clock: Arc<dyn Clock>) -> LockService {
        let inner = Arc::new(Inner {
            epoch,
            options: LockOptions { lease: options.lease.max(Duration::from_millis(1)), ..options },
            clock,
            hasher: RandomState::new(),
            locks: (0..SHARDS).map(|_| Mutex::default()).collect(),
            requests: (0..SHARDS).map(|_| Mutex::default()).collect(),
            numbers: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            reaper: OnceLock::new(),
        });
        let reaper = tokio::spawn(reap_for_ever(Arc::downgrade(&inner))).abort_handle();
        inner.reaper.set(reaper).expect("the service was made a moment ago");
        LockService { inner }
    }

    /// The epoch its tokens are valid in.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// How long a holder that is not refreshed keeps its locks.
    pub fn lease(&self) -> Duration {
        self.inner.options.lease
    }

    /// The clock that leases are counted on.
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.inner.clock.clone()
    }

    /// Waits until all locks of the request are its own.
    ///
    /// A second call with the same id waits together with the first, or gets the same token at once; so does one that
    /// comes after the token was unlocked or expired, as far as ids are remembered, and then the token is held no
    /// more. A request that timed out is forgotten: the same id begins anew.
    ///
    /// Cancel safe: when the last call that waits for the request is dropped, all it took is released.
    ///
    /// # Errors
    /// [`Error::LockTimeout`](crate::Error::LockTimeout) with the lock it waited for;
    /// [`Error::Unavailable`](crate::Error::Unavailable) if too many wait already;
    /// [`Error::Usage`](crate::Error::Usage) if the id was used for other locks.
    pub async fn lock(&self, request: LockRequest) -> Result<LockToken> {
        let timeout = request.timeout;
        match self.inner.enter(request)? {
            Entered::Known(token) => Ok(token),
            Entered::Caller(caller) => caller.wait(timeout).await,
        }
    }

    /// Takes the locks of the request if nobody has any of them; `None` otherwise. Does not wait.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) if the id was used for other locks.
    pub fn try_lock(&self, request: LockRequest) -> Result<Option<LockToken>> {
        match self.inner.enter(request)? {
            Entered::Known(token) => Ok(Some(token)),
            Entered::Caller(caller) => Ok(caller.take_token()),
        }
    }

    /// Waits until whoever has one of these locks, or waits for it, at the time of the call has let go of it. The
    /// locks are waited for one after the other, and none is taken.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub async fn wait_for(&self, descriptors: Vec<LockDescriptor>, timeout: Duration) -> Result<()> {
        let request = LockRequest::new(descriptors, timeout);
        self.inner.start(request, Mode::PassThrough).wait(timeout).await.map(|_| ())
    }

    /// Begins the lease of each token anew, and answers those for which it did. A token that is not in the answer is
    /// not held, or will not be for longer than its lease still lasts: its tenure is over.
    pub fn refresh(&self, tokens: &[LockToken]) -> Vec<LockToken> {
        tokens.iter().copied().filter(|token| self.inner.refresh(*token)).collect()
    }

    /// Gives up the locks of these tokens, and answers those that were held until now.
    pub fn unlock(&self, tokens: &[LockToken]) -> Vec<LockToken> {
        tokens.iter().copied().filter(|token| self.inner.unlock(*token)).collect()
    }

    /// True if the locks of the token are held at this moment.
    pub fn is_held(&self, token: &LockToken) -> bool {
        let Some(request) = self.inner.granted(*token) else { return false };
        let now = self.inner.clock.now();
        let state = request.state.lock();
        matches!(state.phase, Phase::Held { lease_until, .. } if now < lease_until)
    }

    /// All locks in use, in order. A picture of each lock, not of all at one time.
    pub fn holders(&self) -> Vec<LockHolder> {
        let now = self.inner.clock.now();
        let mut holders = Vec::new();
        for shard in &self.inner.locks {
            // Collected first: the state of a request is never locked inside of a shard.
            let locks: Vec<(LockDescriptor, Arc<Request>, usize)> = shard
                .lock()
                .iter()
                .map(|(descriptor, lock)| (descriptor.clone(), lock.holder.clone(), lock.queue.len()))
                .collect();
            for (descriptor, request, waiters) in locks {
                let lease_left = match request.state.lock().phase {
                    Phase::Held { lease_until, .. } if now < lease_until => Some(lease_until - now),
                    Phase::Acquiring { .. } => None,
                    Phase::Held { .. } | Phase::Ended { .. } => continue,
                };
                let token = self.inner.token(&request);
                let age = now.saturating_sub(request.since);
                holders.push(LockHolder { descriptor, token, age, lease_left, waiters });
            }
        }
        holders.sort_by(|a, b| a.descriptor.cmp(&b.descriptor));
        holders
    }
}

impl fmt::Debug for LockService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockService").field("epoch", &self.inner.epoch).finish_non_exhaustive()
    }
}

#[async_trait]
impl LockClient for LockService {
    async fn lock(&self, request: LockRequest) -> Result<LockToken> {
        LockService::lock(self, request).await
    }

    async fn refresh(&self, tokens: &[LockToken]) -> Result<Vec<LockToken>> {
        Ok(LockService::refresh(self, tokens))
    }

    async fn unlock(&self, tokens: &[LockToken]) -> Result<Vec<LockToken>> {
        Ok(LockService::unlock(self, tokens))
    }

    fn lease(&self) -> Duration {
        LockService::lease(self)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        LockService::clock(self)
    }
}

/// Ends leases that ran out, for those who wait for the locks. New requests look for themselves.
async fn reap_for_ever(service: Weak<Inner>) {
    let Some((clock, period)) = service.upgrade().map(|inner| (inner.clock.clone(), inner.options.lease / 4)) else {
        return;
    };
    loop {
        clock.sleep(period).await;
        let Some(inner) = service.upgrade() else { return };
        inner.reap();
    }
}

/// What a call got from entering a request.
enum Entered {
    /// It was granted before.
    Known(LockToken),
    /// It is under way, perhaps granted.
    Caller(Caller),
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(reaper) = self.reaper.get() {
            reaper.abort();
        }
    }
}
