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

use super::{BootClock, Clock, LockClient, LockDescriptor};
use crate::{Error, Result};
use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::hash_map::{Entry, RandomState};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::Notify;
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
    waiting: AtomicUsize,
    reaper: OnceLock<AbortHandle>,
}

/// A lock in use. A lock that nobody holds has no entry.
struct Lock {
    holder: Arc<Request>,
    // First come, first served. Invariant: a request is in one queue at most, that of the lock it wants next.
    queue: VecDeque<Arc<Request>>,
}

#[derive(Default)]
struct Requests {
    open: HashMap<Uuid, Arc<Request>>,
    // Ids of tokens that are held no more, in two generations: when the younger is full, the elder is forgotten.
    ended: HashSet<Uuid>,
    ended_before: HashSet<Uuid>,
}

struct Request {
    id: Uuid,
    mode: Mode,
    // Invariant: ascending, no duplicates.
    descriptors: Box<[LockDescriptor]>,
    tenure: Duration,
    since: Duration,
    state: Mutex<State>,
    /// Told once, when the request is granted or ended.
    decided: Notify,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Take the locks and keep them.
    Hold,
    /// Pass through each queue and hold nothing.
    PassThrough,
}

struct State {
    phase: Phase,
    /// Calls that wait for this request.
    callers: usize,
    /// Whether a caller has the token: then it is not for the next one to give up.
    delivered: bool,
}

#[derive(Clone, Copy)]
enum Phase {
    /// Has the locks before `taken` and waits for the one there.
    Acquiring { taken: usize },
    /// Has all of them.
    Held { lease_until: Duration, tenure_until: Duration },
    /// Has none, and will have none.
    Ended { granted: bool },
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
    /// [`Error::LockTimeout`] with the lock it waited for; [`Error::Unavailable`] if too many wait already;
    /// [`Error::Usage`] if the id was used for other locks.
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
    /// [`Error::Usage`] if the id was used for other locks.
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

    /// How many locks, requests and waiting calls are kept in memory.
    #[cfg(test)]
    fn kept(&self) -> (usize, usize, usize) {
        let locks = self.inner.locks.iter().map(|shard| shard.lock().len()).sum();
        let requests = self.inner.requests.iter().map(|shard| shard.lock().open.len()).sum();
        (locks, requests, self.inner.waiting.load(Ordering::SeqCst))
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

impl Inner {
    /// Joins the request of this id, or starts it.
    fn enter(self: &Arc<Inner>, mut request: LockRequest) -> Result<Entered> {
        sort(&mut request.descriptors);
        let token = LockToken { epoch: self.epoch, id: request.request_id };
        let mut requests = self.requests_of(token.id).lock();
        if requests.ended.contains(&token.id) || requests.ended_before.contains(&token.id) {
            return Ok(Entered::Known(token));
        }
        if let Some(known) = requests.open.get(&token.id) {
            let mut state = known.state.lock();
            match state.phase {
                Phase::Ended { granted: true } => return Ok(Entered::Known(token)),
                // Given up by its callers a moment ago, and about to be forgotten.
                Phase::Ended { granted: false } => (),
                _ if *known.descriptors != *request.descriptors => {
                    return Err(Error::Usage(format!("the id {} was used for other locks", token.id)));
                }
                _ => {
                    state.callers += 1;
                    return Ok(Entered::Caller(Caller { inner: self.clone(), request: known.clone() }));
                }
            }
        }
        let request = Arc::new(Request::new(request, Mode::Hold, self));
        requests.open.insert(token.id, request.clone());
        drop(requests);
        Ok(Entered::Caller(self.run_first(request)))
    }

    /// Starts a request that nobody can join.
    fn start(self: &Arc<Inner>, mut request: LockRequest, mode: Mode) -> Caller {
        sort(&mut request.descriptors);
        self.run_first(Arc::new(Request::new(request, mode, self)))
    }

    fn run_first(self: &Arc<Inner>, request: Arc<Request>) -> Caller {
        // Made before the first lock is taken: from here on, whatever is taken has someone who releases it.
        let caller = Caller { inner: self.clone(), request: request.clone() };
        self.run(vec![Step { request, handed_over: false }]);
        caller
    }

    /// Moves requests forward, and those that get a lock by it.
    fn run(&self, mut steps: Vec<Step>) {
        while let Some(step) = steps.pop() {
            // Outside of the state's mutex: ending the one in the way may hand its lock to this very request.
            if let Some(in_the_way) = self.advance(&step) {
                self.end_if_expired(&in_the_way, &mut steps);
            }
        }
    }

    /// Takes the locks that the request still wants, in order, up to the first that is in use. Answers the holder of
    /// that one.
    fn advance(&self, step: &Step) -> Option<Arc<Request>> {
        let request = &step.request;
        let mut state = request.state.lock();
        // Given up in the meantime: then whoever ended it has passed on what it was handed.
        let Phase::Acquiring { mut taken } = state.phase else { return None };
        taken += usize::from(step.handed_over);
        let blocker = loop {
            let Some(descriptor) = request.descriptors.get(taken) else { break None };
            match self.take_or_queue(descriptor, request) {
                None => taken += 1,
                blocker => break blocker,
            }
        };
        state.phase = match (&blocker, request.mode) {
            (Some(_), _) => Phase::Acquiring { taken },
            (None, Mode::Hold) => {
                let now = self.clock.now();
                let tenure_until = now.saturating_add(request.tenure);
                Phase::Held { lease_until: now + self.options.lease, tenure_until }
            }
            (None, Mode::PassThrough) => Phase::Ended { granted: true },
        };
        if blocker.is_none() {
            request.decided.notify_waiters();
        }
        blocker
    }

    /// Takes a lock if it is free; otherwise waits in its queue and answers its holder.
    fn take_or_queue(&self, descriptor: &LockDescriptor, request: &Arc<Request>) -> Option<Arc<Request>> {
        match self.locks_of(descriptor).lock().entry(descriptor.clone()) {
            Entry::Occupied(mut lock) => {
                lock.get_mut().queue.push_back(request.clone());
                Some(lock.get().holder.clone())
            }
            Entry::Vacant(free) => {
                if request.mode == Mode::Hold {
                    free.insert(Lock { holder: request.clone(), queue: VecDeque::new() });
                }
                None
            }
        }
    }

    /// Takes the request off a lock, whether it has it, was just handed it, waits for it, or none of these. A lock it
    /// had goes to the first in the queue.
    fn release(&self, descriptor: &LockDescriptor, request: &Arc<Request>, steps: &mut Vec<Step>) {
        let mut locks = self.locks_of(descriptor).lock();
        let Some(lock) = locks.get_mut(descriptor) else { return };
        if !Arc::ptr_eq(&lock.holder, request) {
            lock.queue.retain(|waiting| !Arc::ptr_eq(waiting, request));
            return;
        }
        // Those that only pass through hold up nobody: they go on together with the first that keeps the lock.
        while let Some(next) = lock.queue.pop_front() {
            steps.push(Step { request: next.clone(), handed_over: true });
            if next.mode == Mode::Hold {
                lock.holder = next;
                return;
            }
        }
        locks.remove(descriptor);
    }

    /// Ends a request of which `state` is locked, whatever it has, and hands on its locks.
    fn end(&self, request: &Arc<Request>, mut state: MutexGuard<'_, State>, steps: &mut Vec<Step>) {
        let (on, granted): (Range<usize>, bool) = match state.phase {
            // The lock behind those taken is waited for, or was handed over this moment.
            Phase::Acquiring { taken } => (0..(taken + 1).min(request.descriptors.len()), false),
            // Granted, but told to nobody: as if it had never been.
            Phase::Held { .. } => (0..request.descriptors.len(), state.delivered || state.callers > 0),
            Phase::Ended { .. } => return,
        };
        state.phase = Phase::Ended { granted };
        drop(state);
        request.decided.notify_waiters();
        request.descriptors[on].iter().for_each(|descriptor| self.release(descriptor, request, steps));
        self.forget(request, granted);
    }

    fn forget(&self, request: &Arc<Request>, granted: bool) {
        let mut requests = self.requests_of(request.id).lock();
        // Another request may have begun under the id of one that was given up.
        if requests.open.get(&request.id).is_some_and(|open| Arc::ptr_eq(open, request)) {
            requests.open.remove(&request.id);
            if granted {
                requests.remember(request.id, self.options.remembered_max.div_ceil(SHARDS));
            }
        }
    }

    fn end_if_expired(&self, request: &Arc<Request>, steps: &mut Vec<Step>) {
        let now = self.clock.now();
        let state = request.state.lock();
        if matches!(state.phase, Phase::Held { lease_until, .. } if lease_until <= now) {
            self.end(request, state, steps);
        }
    }

    /// One call less waits for the request.
    fn leave(&self, request: &Arc<Request>) {
        let mut steps = Vec::new();
        let mut state = request.state.lock();
        state.callers -= 1;
        // Decided and ended under one lock, so that nobody joins a request that is being given up.
        if state.callers == 0 && !state.delivered {
            self.end(request, state, &mut steps);
        } else {
            drop(state);
        }
        self.run(steps);
    }

    fn reap(&self) {
        for shard in &self.requests {
            let open: Vec<Arc<Request>> = shard.lock().open.values().cloned().collect();
            let mut steps = Vec::new();
            open.iter().for_each(|request| self.end_if_expired(request, &mut steps));
            self.run(steps);
        }
    }

    fn refresh(&self, token: LockToken) -> bool {
        let Some(request) = self.granted(token) else { return false };
        let now = self.clock.now();
        match &mut request.state.lock().phase {
            Phase::Held { lease_until, tenure_until } if now < *lease_until && now < *tenure_until => {
                *lease_until = now + self.options.lease;
                true
            }
            _ => false,
        }
    }

    fn unlock(&self, token: LockToken) -> bool {
        let Some(request) = self.granted(token) else { return false };
        let mut steps = Vec::new();
        let state = request.state.lock();
        let Phase::Held { lease_until, .. } = state.phase else { return false };
        let was_held = self.clock.now() < lease_until;
        self.end(&request, state, &mut steps);
        self.run(steps);
        was_held
    }

    /// The request behind a token, if it may still be held.
    fn granted(&self, token: LockToken) -> Option<Arc<Request>> {
        // Whatever an older service granted, this one may have granted to someone else since.
        if token.epoch != self.epoch {
            return None;
        }
        self.requests_of(token.id).lock().open.get(&token.id).cloned()
    }

    fn token(&self, request: &Request) -> LockToken {
        LockToken { epoch: self.epoch, id: request.id }
    }

    fn locks_of(&self, descriptor: &LockDescriptor) -> &Mutex<HashMap<LockDescriptor, Lock>> {
        &self.locks[self.shard(descriptor)]
    }

    fn requests_of(&self, id: Uuid) -> &Mutex<Requests> {
        &self.requests[self.shard(&id)]
    }

    fn shard(&self, key: &impl Hash) -> usize {
        // Reduced first, so that the cast loses nothing on any machine.
        (self.hasher.hash_one(key) % SHARDS as u64) as usize
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(reaper) = self.reaper.get() {
            reaper.abort();
        }
    }
}

impl Requests {
    /// Remembers an id, and forgets the oldest in return.
    fn remember(&mut self, id: Uuid, generation: usize) {
        if self.ended.len() >= generation {
            self.ended_before = std::mem::take(&mut self.ended);
        }
        self.ended.insert(id);
    }
}

impl Request {
    fn new(request: LockRequest, mode: Mode, inner: &Inner) -> Request {
        Request {
            id: request.request_id,
            mode,
            descriptors: request.descriptors.into(),
            tenure: request.tenure.unwrap_or(inner.options.tenure),
            since: inner.clock.now(),
            state: Mutex::new(State { phase: Phase::Acquiring { taken: 0 }, callers: 1, delivered: false }),
            decided: Notify::new(),
        }
    }

    fn is_decided(&self) -> bool {
        !matches!(self.state.lock().phase, Phase::Acquiring { .. })
    }

    /// Ends when the request is granted or ended.
    async fn decided(&self) {
        loop {
            let mut decided = std::pin::pin!(self.decided.notified());
            // Listen first, look then: what is decided in between is heard.
            decided.as_mut().enable();
            if self.is_decided() {
                return;
            }
            decided.await;
        }
    }

    /// What it waits for, for people.
    fn awaited(&self) -> String {
        match self.state.lock().phase {
            Phase::Acquiring { taken } => self.descriptors.get(taken).map(LockDescriptor::to_string),
            _ => None,
        }
        .map_or_else(|| "a lock".to_owned(), |descriptor| format!("the lock on {descriptor}"))
    }
}

/// Ascending: requests that take their locks in one order never wait for each other in a circle.
fn sort(descriptors: &mut Vec<LockDescriptor>) {
    descriptors.sort_unstable();
    descriptors.dedup();
}

/// A call that waits for a request. When the last one goes without the token, the request is given up.
struct Caller {
    inner: Arc<Inner>,
    request: Arc<Request>,
}

impl Caller {
    async fn wait(self, timeout: Duration) -> Result<LockToken> {
        if let Some(token) = self.take_token() {
            return Ok(token);
        }
        let _waiting = Waiting::enter(&self.inner).ok_or_else(|| Error::Unavailable {
            what: self.request.awaited(),
            reason: format!("{} calls wait for locks already", self.inner.options.waiters_max),
        })?;
        let started = self.inner.clock.now();
        tokio::select! {
            biased;
            () = self.request.decided() => (),
            () = self.inner.clock.sleep(timeout) => (),
        }
        let waited = self.inner.clock.now().saturating_sub(started);
        let what = self.request.awaited();
        // Once more after the time-out: what was granted in the meantime is not thrown away.
        self.take_token().ok_or_else(|| Error::LockTimeout {
            what,
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// The token, if the request was granted. From now on it is the caller's to unlock.
    fn take_token(&self) -> Option<LockToken> {
        let mut state = self.request.state.lock();
        match state.phase {
            Phase::Acquiring { .. } | Phase::Ended { granted: false } => None,
            // The caller learns from its first refresh or check that one that ended is gone.
            Phase::Held { .. } | Phase::Ended { granted: true } => {
                state.delivered = true;
                Some(self.inner.token(&self.request))
            }
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.inner.leave(&self.request);
    }
}

/// One of the calls that may wait at a time.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn enter(inner: &Inner) -> Option<Waiting<'_>> {
        let waiting = Waiting(&inner.waiting);
        // Counted before the limit is looked at; a refused one is taken off again by its drop.
        (inner.waiting.fetch_add(1, Ordering::Relaxed) < inner.options.waiters_max).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::mock::{MockClock, settle};
    use super::*;
    use futures::FutureExt;
    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};
    use std::future::Future;
    use std::pin::Pin;
    use std::task::Poll;

    const FOREVER: Duration = Duration::from_secs(1_000_000);
    const LEASE: Duration = Duration::from_secs(20);
    const NOTHING: (usize, usize, usize) = (0, 0, 0);

    fn service() -> (LockService, Arc<MockClock>) {
        let clock = MockClock::new();
        (LockService::with_clock(7, LockOptions::default(), clock.clone()), clock)
    }

    fn names(names: &str) -> Vec<LockDescriptor> {
        names.chars().map(|name| LockDescriptor::advisory(&name.to_string())).collect()
    }

    fn request(descriptors: &str) -> LockRequest {
        LockRequest::new(names(descriptors), FOREVER)
    }

    fn take(service: &LockService, descriptors: &str) -> LockToken {
        service.try_lock(request(descriptors)).expect("the id is new").expect("the locks are free")
    }

    fn is_free(service: &LockService, descriptors: &str) -> bool {
        let token = service.try_lock(request(descriptors)).expect("the id is new");
        service.unlock(&token.into_iter().collect::<Vec<_>>());
        token.is_some()
    }

    type Locking = Pin<Box<dyn Future<Output = Result<LockToken>> + Send>>;

    /// A call for locks that has come as far as it can.
    async fn waiting(service: &LockService, request: LockRequest) -> Locking {
        let service = service.clone();
        let mut call: Locking = Box::pin(async move { service.lock(request).await });
        assert!(futures::poll!(&mut call).is_pending(), "somebody should have had the locks");
        call
    }

    async fn granted(call: &mut Locking) -> Option<LockToken> {
        match futures::poll!(call) {
            Poll::Ready(token) => Some(token.expect("the call does not fail")),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn a_lock_has_one_holder() {
        let (service, _clock) = service();
        let a = take(&service, "ab");
        assert!(!is_free(&service, "a") && !is_free(&service, "bc") && is_free(&service, "c"));
        assert!(service.is_held(&a));
        assert_eq!(service.unlock(&[a]), [a]);
        assert!(is_free(&service, "abc") && !service.is_held(&a));
        assert_eq!(service.unlock(&[a]), [], "what was given up can't be given up again");
        assert_eq!(service.kept(), NOTHING);
    }

    #[tokio::test]
    async fn who_came_first_is_served_first() {
        let (service, _clock) = service();
        let mut holder = take(&service, "a");
        let mut calls = Vec::new();
        for _ in 0..5 {
            calls.push(waiting(&service, request("a")).await);
        }
        for next in 0..calls.len() {
            service.unlock(&[holder]);
            // Asked in reverse, so that the order of asking can't be what decides.
            let mut served = Vec::new();
            for index in (next..calls.len()).rev() {
                if let Some(token) = granted(&mut calls[index]).await {
                    served.push((index, token));
                }
            }
            let [(index, token)] = served[..] else { panic!("one is served at a time, not {served:?}") };
            assert_eq!(index, next);
            holder = token;
        }
    }

    #[tokio::test]
    async fn a_newcomer_does_not_overtake_one_who_was_handed_the_lock_and_still_sleeps() {
        let (service, _clock) = service();
        let holder = take(&service, "a");
        let mut sleeper = waiting(&service, request("a")).await;
        service.unlock(&[holder]);
        assert!(!is_free(&service, "a"));
        assert!(granted(&mut sleeper).await.is_some());
    }

    #[tokio::test]
    async fn locks_are_taken_in_one_order_whatever_the_request_says() {
        let (service, _clock) = service();
        let a = take(&service, "a");
        // Were `b` taken first, it would be in use now.
        let _call = waiting(&service, request("bba")).await;
        assert!(is_free(&service, "b"));
        service.unlock(&[a]);
        assert!(!is_free(&service, "b"), "the request goes on without its caller being asked");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn fifty_tasks_that_lock_overlapping_sets_all_come_to_an_end() {
        let seed: u64 = rand::rng().random();
        println!("seed {seed}");
        let service = LockService::new(1, LockOptions::default());
        let inside: Arc<Vec<AtomicUsize>> = Arc::new((0..8).map(|_| AtomicUsize::new(0)).collect());
        let tasks = (0..50).map(|task| {
            let (service, inside) = (service.clone(), inside.clone());
            tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(seed.wrapping_add(task));
                for _ in 0..40 {
                    let wanted: HashSet<usize> = (0..4).map(|_| rng.random_range(0..inside.len())).collect();
                    let mut order: Vec<usize> = wanted.iter().copied().collect();
                    order.rotate_left(rng.random_range(0..wanted.len()));
                    let descriptors = order.iter().map(|n| LockDescriptor::advisory(&n.to_string())).collect();
                    let request = LockRequest::new(descriptors, FOREVER);
                    // Some lose patience, so that handing over and giving up meet.
                    if [true, false, false].choose(&mut rng).is_some_and(|impatient| *impatient) {
                        let mut call = Box::pin(service.lock(request));
                        for _ in 0..rng.random_range(0..3) {
                            if let Poll::Ready(token) = futures::poll!(&mut call) {
                                service.unlock(&[token.expect("the call does not fail")]);
                                break;
                            }
                            tokio::task::yield_now().await;
                        }
                        continue;
                    }
                    let token = service.lock(request).await.expect("everybody lets go in the end");
                    for n in &wanted {
                        assert_eq!(inside[*n].fetch_add(1, Ordering::SeqCst), 0, "two hold lock {n} (seed {seed})");
                    }
                    tokio::task::yield_now().await;
                    wanted.iter().for_each(|n| assert_eq!(inside[*n].fetch_sub(1, Ordering::SeqCst), 1));
                    assert_eq!(service.unlock(&[token]), [token]);
                }
            })
        });
        let all = futures::future::join_all(tasks);
        let all = tokio::time::timeout(Duration::from_secs(60), all).await;
        for task in all.unwrap_or_else(|_| panic!("tasks wait for each other (seed {seed})")) {
            task.expect("no task panics");
        }
        assert_eq!(service.kept(), NOTHING);
    }

    #[tokio::test]
    async fn a_dropped_call_leaves_nothing_behind() {
        let (service, clock) = service();
        let b = take(&service, "b");
        let call = waiting(&service, request("abc")).await;
        let mut behind = waiting(&service, request("a")).await;
        drop(call);
        let a = granted(&mut behind).await.expect("what the dropped call had taken goes to the next");
        service.unlock(&[a, b]);
        assert_eq!(service.kept(), NOTHING);
        assert_eq!(clock.sleepers(), 0, "the task has not begun to sleep, and no call sleeps on");
    }

    #[tokio::test]
    async fn a_call_dropped_after_it_was_granted_but_before_it_knew_gives_the_locks_up() {
        let (service, _clock) = service();
        let a = take(&service, "a");
        let call = waiting(&service, request("ab")).await;
        service.unlock(&[a]);
        assert!(!is_free(&service, "a") && !is_free(&service, "b"));
        drop(call);
        assert!(is_free(&service, "ab"));
        assert_eq!(service.kept(), NOTHING);
    }

    #[tokio::test]
    async fn a_call_that_was_never_polled_takes_nothing() {
        let (service, _clock) = service();
        drop(service.lock(request("a")));
        assert_eq!(service.kept(), NOTHING);
    }

    #[tokio::test]
    async fn a_call_that_times_out_names_the_lock_and_leaves_nothing_behind() {
        let (service, clock) = service();
        let b = take(&service, "b");
        let call = waiting(&service, LockRequest::new(names("abc"), Duration::from_secs(5))).await;
        clock.advance(Duration::from_secs(5)).await;
        let error = call.now_or_never().expect("the time is over").expect_err("`b` is in use");
        assert_eq!(error.to_string(), "the lock on 'b' was not granted within 5000 ms");
        assert!(matches!(error, Error::LockTimeout { .. }));
        assert!(is_free(&service, "ac"));
        service.unlock(&[b]);
        assert_eq!(service.kept(), NOTHING);
    }

    #[tokio::test]
    async fn the_same_id_joins_a_request_that_waits() {
        let (service, _clock) = service();
        let a = take(&service, "a");
        let same = request("ab");
        let first = waiting(&service, same.clone()).await;
        let mut second = waiting(&service, same.clone()).await;
        drop(first);
        assert!(!is_free(&service, "a"), "`a` is in use");
        service.unlock(&[a]);
        let token = granted(&mut second).await.expect("the request was kept for the second call");
        assert_eq!(service.lock(same).now_or_never().expect("granted before").expect("same id"), token);
        assert_eq!(service.unlock(&[token]), [token], "there was one request only");
        assert_eq!(service.kept(), NOTHING);
    }

    #[tokio::test]
    async fn a_late_repetition_takes_no_lock_again() {
        let (service, _clock) = service();
        let same = request("a");
        let token = service.lock(same.clone()).await.expect("`a` is free");
        service.unlock(&[token]);
        assert_eq!(service.lock(same).await.expect("the id is remembered"), token);
        assert!(!service.is_held(&token) && is_free(&service, "a"));
    }

    #[tokio::test]
    async fn a_request_that_timed_out_may_be_made_again() {
        let (service, clock) = service();
        let a = take(&service, "a");
        let same = LockRequest { timeout: Duration::from_secs(1), ..request("a") };
        let call = waiting(&service, same.clone()).await;
        clock.jump(Duration::from_secs(1));
        assert!(call.await.is_err());
        service.unlock(&[a]);
        let token = service.lock(same).await.expect("`a` is free");
        assert!(service.is_held(&token));
    }

    #[tokio::test]
    async fn an_id_stands_for_one_set_of_locks() {
        let (service, _clock) = service();
        let first = request("ab");
        let token = service.lock(LockRequest { descriptors: names("ba"), ..first.clone() }).await.expect("free");
        assert_eq!(service.lock(first.clone()).await.expect("the same locks"), token);
        let other = LockRequest { descriptors: names("ac"), ..first };
        assert!(matches!(service.lock(other).await, Err(Error::Usage(_))));
    }

    #[tokio::test]
    async fn ids_are_remembered_in_bounded_memory() {
        let clock = MockClock::new();
        let options = LockOptions { remembered_max: 1000, ..LockOptions::default() };
        let service = LockService::with_clock(1, options, clock);
        let remembered = || -> usize {
            service.inner.requests.iter().map(|shard| shard.lock()).map(|s| s.ended.len() + s.ended_before.len()).sum()
        };
        for _ in 0..10_000 {
            let token = take(&service, "a");
            service.unlock(&[token]);
        }
        // Rounded up once for each shard and generation.
        assert!((1000..=2000 + 2 * SHARDS).contains(&remembered()), "{}", remembered());
    }

    #[tokio::test]
    async fn too_many_waiting_calls_are_refused_and_leave_no_trace() {
        let clock = MockClock::new();
        let service = LockService::with_clock(1, LockOptions { waiters_max: 1, ..LockOptions::default() }, clock);
        let a = take(&service, "a");
        let call = waiting(&service, request("a")).await;
        let refused = service.lock(request("ab")).await;
        assert!(matches!(refused, Err(Error::Unavailable { .. })));
        drop(call);
        drop(waiting(&service, request("a")).await);
        service.unlock(&[a]);
        assert_eq!(service.kept(), NOTHING);
    }

    #[tokio::test]
    async fn the_locks_of_a_silent_holder_go_to_the_next_without_help() {
        let (service, clock) = service();
        settle().await;
        let silent = take(&service, "a");
        let mut call = waiting(&service, request("a")).await;
        clock.advance(LEASE - Duration::from_secs(1)).await;
        assert!(service.is_held(&silent) && granted(&mut call).await.is_none());
        clock.advance(LEASE / 2).await;
        assert!(!service.is_held(&silent));
        let next = granted(&mut call).await.expect("nobody but the clock moved");
        assert!(service.is_held(&next));
        assert_eq!(service.refresh(&[silent, next]), [next]);
        assert_eq!(service.unlock(&[silent, next]), [next]);
    }

    #[tokio::test]
    async fn an_expired_lock_is_free_before_any_task_has_looked_at_it() {
        let (service, clock) = service();
        let silent = take(&service, "a");
        clock.jump(LEASE);
        assert!(!service.is_held(&silent));
        assert!(service.holders().is_empty());
        assert!(is_free(&service, "a"));
        assert_eq!(service.unlock(&[silent]), []);
    }

    #[tokio::test]
    async fn an_expired_token_is_forgotten_though_nobody_wants_the_lock() {
        let (service, clock) = service();
        settle().await;
        take(&service, "a");
        clock.advance(LEASE * 2).await;
        assert_eq!(service.kept(), NOTHING);
    }

    #[tokio::test]
    async fn a_refreshed_holder_keeps_its_locks_up_to_its_tenure_and_a_lease() {
        let (service, clock) = service();
        settle().await;
        let tenure = Some(Duration::from_secs(60));
        let token = service.lock(LockRequest { tenure, ..request("a") }).await.expect("`a` is free");
        for _ in 0..5 {
            clock.advance(Duration::from_secs(10)).await;
            assert_eq!(service.refresh(&[token]), [token]);
        }
        clock.advance(Duration::from_secs(10)).await;
        assert_eq!(service.refresh(&[token]), [], "its tenure is over");
        assert!(service.is_held(&token), "the lease it was promised at 50 s stands");
        clock.advance(Duration::from_secs(10)).await;
        assert!(!service.is_held(&token) && is_free(&service, "a"));
    }

    #[tokio::test]
    async fn a_token_of_another_epoch_is_void() {
        let (service, clock) = service();
        let token = take(&service, "a");
        let next = LockService::with_clock(8, LockOptions::default(), clock);
        // The worst case: the same request was granted in the new epoch too.
        let again = LockRequest { request_id: token.id, ..request("a") };
        let new = next.lock(again).await.expect("`a` is free");
        assert_eq!((new.epoch, new.id), (8, token.id));
        assert!(!next.is_held(&token) && next.is_held(&new));
        assert_eq!(next.refresh(&[token]), []);
        assert_eq!(next.unlock(&[token]), []);
        assert!(next.is_held(&new));
    }

    #[tokio::test]
    async fn waiting_for_locks_ends_when_their_holders_let_go_and_takes_nothing() {
        let (service, _clock) = service();
        let a = take(&service, "a");
        let mut wait = Box::pin(service.wait_for(names("ab"), FOREVER));
        assert!(futures::poll!(&mut wait).is_pending());
        let mut behind = waiting(&service, request("a")).await;
        let mut wait_again = Box::pin(service.wait_for(names("a"), FOREVER));
        assert!(futures::poll!(&mut wait_again).is_pending());
        assert!(is_free(&service, "b"));

        service.unlock(&[a]);
        let next = granted(&mut behind).await.expect("the one in front only passed through");
        assert!(futures::poll!(&mut wait).is_ready());
        assert!(futures::poll!(&mut wait_again).is_pending(), "one came before it");
        service.unlock(&[next]);
        assert!(futures::poll!(&mut wait_again).is_ready());
        drop((wait, wait_again));
        assert_eq!(service.kept(), NOTHING);
    }

    #[tokio::test]
    async fn waiting_for_locks_times_out_and_leaves_the_queue() {
        let (service, clock) = service();
        let a = take(&service, "a");
        let mut wait = Box::pin(service.wait_for(names("a"), Duration::from_secs(3)));
        assert!(futures::poll!(&mut wait).is_pending());
        assert_eq!(service.holders()[0].waiters, 1);
        clock.jump(Duration::from_secs(3));
        assert!(matches!(wait.await, Err(Error::LockTimeout { waited_ms: 3000, .. })));
        assert_eq!(service.holders()[0].waiters, 0);
        service.unlock(&[a]);
        assert_eq!(service.kept(), NOTHING);
    }

    #[tokio::test]
    async fn holders_show_who_has_what_and_how_many_want_it() {
        let (service, clock) = service();
        let b = take(&service, "b");
        clock.jump(Duration::from_secs(5));
        let _call = waiting(&service, request("ab")).await;
        let shown: Vec<_> = service
            .holders()
            .into_iter()
            .map(|h| (h.descriptor.to_string(), h.token == b, h.age.as_secs(), h.lease_left, h.waiters))
            .collect();
        let left = Some(Duration::from_secs(15));
        assert_eq!(shown, [("'a'".to_owned(), false, 0, None, 0), ("'b'".to_owned(), true, 5, left, 1)]);
    }

    #[tokio::test]
    async fn the_background_task_ends_with_the_service() {
        let (service, clock) = service();
        settle().await;
        assert_eq!(clock.sleepers(), 1);
        drop(service);
        settle().await;
        assert_eq!(clock.sleepers(), 0);
    }
}
