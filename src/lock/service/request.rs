//! A request for locks on its way, and the calls that wait for it.

use super::{Inner, LockRequest, LockToken};
use crate::lock::LockDescriptor;
use crate::planted::Mistake;
use crate::{Error, Result};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use uuid::Uuid;

#[derive(Default)]
pub(super) struct Requests {
    pub(super) open: HashMap<Uuid, Arc<Request>>,
    // Ids of tokens that are held no more, in two generations: when the younger is full, the elder is forgotten.
    pub(super) ended: HashSet<Uuid>,
    pub(super) ended_before: HashSet<Uuid>,
}

pub(super) struct Request {
    pub(super) id: Uuid,
    /// In which order requests came: unlike their ids the same whenever the same happens.
    pub(super) number: u64,
    pub(super) mode: Mode,
    // Invariant: ascending, no duplicates.
    pub(super) descriptors: Box<[LockDescriptor]>,
    pub(super) tenure: Duration,
    pub(super) since: Duration,
    pub(super) state: Mutex<State>,
    /// Told once, when the request is granted or ended.
    pub(super) decided: Notify,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Take the locks and keep them.
    Hold,
    /// Pass through each queue and hold nothing.
    PassThrough,
}

pub(super) struct State {
    pub(super) phase: Phase,
    /// Calls that wait for this request.
    pub(super) callers: usize,
    /// Whether a caller has the token: then it is not for the next one to give up.
    pub(super) delivered: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Phase {
    /// Has the locks before `taken` and waits for the one there.
    Acquiring { taken: usize },
    /// Has all of them.
    Held { lease_until: Duration, tenure_until: Duration },
    /// Has none, and will have none.
    Ended { granted: bool },
}

impl State {
    pub(super) fn has_expired(&self, now: Duration) -> bool {
        matches!(self.phase, Phase::Held { lease_until, .. } if lease_until <= now)
    }
}

impl Requests {
    /// Remembers an id, and forgets the oldest in return.
    pub(super) fn remember(&mut self, id: Uuid, generation: usize) {
        if self.ended.len() >= generation {
            self.ended_before = std::mem::take(&mut self.ended);
        }
        self.ended.insert(id);
    }
}

impl Request {
    pub(super) fn new(request: LockRequest, mode: Mode, inner: &Inner) -> Request {
        Request {
            id: request.request_id,
            number: inner.numbers.fetch_add(1, Ordering::Relaxed),
            mode,
            descriptors: request.descriptors.into(),
            tenure: request.tenure.unwrap_or(inner.options.tenure),
            since: inner.clock.now(),
            state: Mutex::new(State { phase: Phase::Acquiring { taken: 0 }, callers: 1, delivered: false }),
            decided: Notify::new(),
        }
    }

    pub(super) fn has_expired(&self, now: Duration) -> bool {
        self.state.lock().has_expired(now)
    }

    pub(super) fn is_decided(&self) -> bool {
        !matches!(self.state.lock().phase, Phase::Acquiring { .. })
    }

    /// Ends when the request is granted or ended.
    pub(super) async fn decided(&self) {
        let too_early = Mistake::LookBeforeListening.is_made();
        loop {
            if too_early && self.is_decided() {
                return;
            }
            let mut decided = std::pin::pin!(self.decided.notified());
            // Listen first, look then: what is decided in between is heard.
            decided.as_mut().enable();
            if !too_early && self.is_decided() {
                return;
            }
            decided.await;
        }
    }

    /// What it waits for, for people.
    pub(super) fn awaited(&self) -> String {
        match self.state.lock().phase {
            Phase::Acquiring { taken } => self.descriptors.get(taken).map(LockDescriptor::to_string),
            _ => None,
        }
        .map_or_else(|| "a lock".to_owned(), |descriptor| format!("the lock on {descriptor}"))
    }
}

/// Ascending: requests that take their locks in one order never wait for each other in a circle.
pub(super) fn sort(descriptors: &mut Vec<LockDescriptor>) {
    descriptors.sort_unstable();
    descriptors.dedup();
}

/// A call that waits for a request. When the last one goes without the token, the request is given up.
pub(super) struct Caller {
    pub(super) inner: Arc<Inner>,
    pub(super) request: Arc<Request>,
}

impl Caller {
    pub(super) async fn wait(self, timeout: Duration) -> Result<LockToken> {
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
    pub(super) fn take_token(&self) -> Option<LockToken> {
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
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    pub(super) fn enter(inner: &Inner) -> Option<Waiting<'_>> {
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
