//! Passing locks on: whoever gives a request a lock moves that request forward, in its name, as far as it goes.

use super::request::{Caller, Mode, Phase, Request, Requests, State, sort};
use super::{Entered, Inner, Lock, LockRequest, LockToken, SHARDS, Step};
use crate::lock::LockDescriptor;
use crate::planted::Mistake;
use crate::{Error, Result};
use parking_lot::{Mutex, MutexGuard};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::ops::Range;
use std::sync::Arc;
use uuid::Uuid;

impl Inner {
    /// Joins the request of this id, or starts it.
    pub(super) fn enter(self: &Arc<Inner>, mut request: LockRequest) -> Result<Entered> {
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
    pub(super) fn start(self: &Arc<Inner>, mut request: LockRequest, mode: Mode) -> Caller {
        sort(&mut request.descriptors);
        self.run_first(Arc::new(Request::new(request, mode, self)))
    }

    pub(super) fn run_first(self: &Arc<Inner>, request: Arc<Request>) -> Caller {
        // Made before the first lock is taken: from here on, whatever is taken has someone who releases it.
        let caller = Caller { inner: self.clone(), request: request.clone() };
        self.run(vec![Step { request, handed_over: false }]);
        caller
    }

    /// Moves requests forward, and those that get a lock by it.
    pub(super) fn run(&self, mut steps: Vec<Step>) {
        while let Some(step) = steps.pop() {
            // Outside of the state's mutex: ending the one in the way may hand its lock to this very request.
            if let Some(in_the_way) = self.advance(&step) {
                self.end_if_expired(&in_the_way, &mut steps);
            }
        }
    }

    /// Takes the locks that the request still wants, in order, up to the first that is in use. Answers the holder of
    /// that one.
    pub(super) fn advance(&self, step: &Step) -> Option<Arc<Request>> {
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
    pub(super) fn take_or_queue(&self, descriptor: &LockDescriptor, request: &Arc<Request>) -> Option<Arc<Request>> {
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
    pub(super) fn release(&self, descriptor: &LockDescriptor, request: &Arc<Request>, steps: &mut Vec<Step>) {
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
    pub(super) fn end(&self, request: &Arc<Request>, mut state: MutexGuard<'_, State>, steps: &mut Vec<Step>) {
        let (on, granted): (Range<usize>, bool) = match state.phase {
            // The lock behind those taken is waited for, or was handed over this moment.
            Phase::Acquiring { taken } => {
                let behind = usize::from(!Mistake::KeepWhatWasHandedOver.is_made());
                (0..(taken + behind).min(request.descriptors.len()), false)
            }
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

    pub(super) fn forget(&self, request: &Arc<Request>, granted: bool) {
        let mut requests = self.requests_of(request.id).lock();
        // Another request may have begun under the id of one that was given up.
        if requests.open.get(&request.id).is_some_and(|open| Arc::ptr_eq(open, request)) {
            requests.open.remove(&request.id);
            if granted {
                requests.remember(request.id, self.options.remembered_max.div_ceil(SHARDS));
            }
        }
    }

    pub(super) fn end_if_expired(&self, request: &Arc<Request>, steps: &mut Vec<Step>) {
        let now = self.clock.now();
        let state = request.state.lock();
        if state.has_expired(now) {
            self.end(request, state, steps);
        }
    }

    /// One call less waits for the request.
    pub(super) fn leave(&self, request: &Arc<Request>) {
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

    /// Ends the leases that ran out, in the order in which their requests came: who gets a lock next is not left to the
    /// order of ids, which are random.
    pub(super) fn reap(&self) {
        let now = self.clock.now();
        let mut expired: Vec<Arc<Request>> = Vec::new();
        for shard in &self.requests {
            // Collected first: the state of a request is never locked inside of a shard.
            let open: Vec<Arc<Request>> = shard.lock().open.values().cloned().collect();
            expired.extend(open.into_iter().filter(|request| request.has_expired(now)));
        }
        expired.sort_unstable_by_key(|request| request.number);
        for request in expired {
            let mut steps = Vec::new();
            self.end_if_expired(&request, &mut steps);
            self.run(steps);
        }
    }

    pub(super) fn refresh(&self, token: LockToken) -> bool {
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

    pub(super) fn unlock(&self, token: LockToken) -> bool {
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
    pub(super) fn granted(&self, token: LockToken) -> Option<Arc<Request>> {
        // Whatever an older service granted, this one may have granted to someone else since.
        if token.epoch != self.epoch {
            return None;
        }
        self.requests_of(token.id).lock().open.get(&token.id).cloned()
    }

    pub(super) fn token(&self, request: &Request) -> LockToken {
        LockToken { epoch: self.epoch, id: request.id }
    }

    pub(super) fn locks_of(&self, descriptor: &LockDescriptor) -> &Mutex<HashMap<LockDescriptor, Lock>> {
        &self.locks[self.shard(descriptor)]
    }

    pub(super) fn requests_of(&self, id: Uuid) -> &Mutex<Requests> {
        &self.requests[self.shard(&id)]
    }

    pub(super) fn shard(&self, key: &impl Hash) -> usize {
        // Reduced first, so that the cast loses nothing on any machine.
        (self.hasher.hash_one(key) % SHARDS as u64) as usize
    }
}
