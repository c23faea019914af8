//! Locks kept alive for as long as someone needs them.

use super::{Clock, LockRequest, LockToken};
use crate::planted::Mistake;
use crate::{Error, Result};
use async_trait::async_trait;
use atlas_kvs::Timestamp;
use parking_lot::Mutex;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

/// A lock service, in this process or behind a socket.
#[async_trait]
pub trait LockClient: Debug + Send + Sync + 'static {
    /// Waits until all locks of the request are its own. Cancel safe.
    async fn lock(&self, request: LockRequest) -> Result<LockToken>;

    /// Begins the leases of these tokens anew and answers those for which it did. Cancel safe.
    async fn refresh(&self, tokens: &[LockToken]) -> Result<Vec<LockToken>>;

    /// Gives up the locks of these tokens and answers those that were held.
    async fn unlock(&self, tokens: &[LockToken]) -> Result<Vec<LockToken>>;

    /// How long the service keeps the locks of a holder that is not refreshed.
    fn lease(&self) -> Duration;

    /// The clock of this side. It need not agree with the service's clock, only run as fast.
    fn clock(&self) -> Arc<dyn Clock>;
}

/// Locks that are refreshed while this lives, and given up when it is dropped.
///
/// The lease is counted from *before* each request and ends at three quarters of the service's: whatever the way
/// there and back took, and whichever clock runs a little fast, this side knows that the locks are lost before another
/// gets them.
///
/// ```text
///   here      |- asked ---------------- lost here
///   service        |- lease begins ------------------- lost there
/// ```
#[derive(Debug)]
pub struct HeldLocks {
    shared: Arc<Shared>,
    refresher: AbortHandle,
    runtime: Handle,
}

#[derive(Debug)]
struct Shared {
    client: Arc<dyn LockClient>,
    clock: Arc<dyn Clock>,
    tokens: Vec<LockToken>,
    start_ts: Timestamp,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Held at least until then, on the clock of this side.
    HeldUntil(Duration),
    /// Lost. Stays so: what was locked may have changed since.
    Lost,
    /// Given up by the holder.
    Released,
}

impl HeldLocks {
    /// Takes the locks of a request and keeps them. `start_ts` is the transaction they are for, named in errors.
    ///
    /// Cancel safe: what was taken is given up.
    ///
    /// # Errors
    /// Those of [`LockClient::lock`]; [`Error::LocksLost`] if they were lost again before this returned.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn acquire(client: Arc<dyn LockClient>, start_ts: Timestamp, request: LockRequest) -> Result<HeldLocks> {
        let clock = client.clock();
        let asked = clock.now();
        let token = client.lock(request).await?;
        if clock.now().saturating_sub(asked) < client.lease() / 4 {
            return Ok(HeldLocks::guard(client, start_ts, vec![token], asked));
        }
        // After a long wait nothing may be left of a lease that is counted from before it.
        HeldLocks::adopt(client, start_ts, vec![token]).await
    }

    /// Keeps locks that were taken before.
    ///
    /// Cancel safe: they are given up.
    ///
    /// # Errors
    /// [`Error::LocksLost`] if one of them is not held; those of [`LockClient::refresh`]. All are given up then.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn adopt(client: Arc<dyn LockClient>, start_ts: Timestamp, tokens: Vec<LockToken>) -> Result<HeldLocks> {
        let asked = client.clock().now();
        let held = HeldLocks::guard(client, start_ts, tokens, asked);
        held.shared.refresh().await?;
        held.check()?;
        Ok(held)
    }

    fn guard(client: Arc<dyn LockClient>, start_ts: Timestamp, tokens: Vec<LockToken>, asked: Duration) -> HeldLocks {
        let clock = client.clock();
        let state = Mutex::new(State::HeldUntil(asked + trusted(client.lease())));
        let shared = Arc::new(Shared { client, clock, tokens, start_ts, state });
        let refresher = tokio::spawn(refresh_for_ever(shared.clone())).abort_handle();
        HeldLocks { shared, refresher, runtime: Handle::current() }
    }

    /// Whether all locks are held at this moment, as far as this side can be sure. Asks nobody.
    ///
    /// # Errors
    /// [`Error::LocksLost`] from the first refresh on that was not confirmed, or not in time.
    pub fn check(&self) -> Result<()> {
        self.shared.check()
    }

    /// The tokens.
    pub fn tokens(&self) -> &[LockToken] {
        &self.shared.tokens
    }

    /// The transaction they are for.
    pub fn start_ts(&self) -> Timestamp {
        self.shared.start_ts
    }

    /// Gives the locks up and waits until that is done. Dropping does the same without waiting.
    ///
    /// # Errors
    /// Those of [`LockClient::unlock`]; the leases then end by themselves.
    pub async fn release(self) -> Result<()> {
        self.refresher.abort();
        self.shared.client.unlock(&self.shared.tokens).await?;
        // Only now: a call that is dropped half way leaves it to the drop of `self`.
        *self.shared.state.lock() = State::Released;
        Ok(())
    }
}

impl Drop for HeldLocks {
    fn drop(&mut self) {
        self.refresher.abort();
        if matches!(*self.shared.state.lock(), State::Released) {
            return;
        }
        let shared = self.shared.clone();
        self.runtime.spawn(async move {
            if let Err(error) = shared.client.unlock(&shared.tokens).await {
                // Nobody waits for this, and the leases end by themselves.
                tracing::warn!(%error, start_ts = %shared.start_ts, "locks were not given up");
            }
        });
    }
}

async fn refresh_for_ever(shared: Arc<Shared>) {
    let period = (shared.client.lease() / 4).max(Duration::from_millis(1));
    shared.clock.sleep(period).await;
    while shared.check().is_ok() {
        // The time to the next attempt runs from before this one, so that an attempt that hangs does not delay it.
        let mut next = shared.clock.sleep(period);
        let refreshed = tokio::select! {
            biased;
            refreshed = shared.refresh() => refreshed,
            () = &mut next => continue,
        };
        if let Err(error) = refreshed {
            tracing::debug!(%error, start_ts = %shared.start_ts, "locks were not refreshed");
        }
        next.await;
    }
}

/// How much of the service's lease this side counts on.
fn trusted(lease: Duration) -> Duration {
    lease * if Mistake::TrustForTooLong.is_made() { 8 } else { 3 } / 4
}

impl Shared {
    fn check(&self) -> Result<()> {
        self.settle(self.clock.now(), None)
    }

    /// Asks once. An error says nothing about the locks; the lease goes on running out.
    async fn refresh(&self) -> Result<()> {
        let asked = self.clock.now();
        let confirmed = self.client.refresh(&self.tokens).await?;
        let all = self.tokens.iter().all(|token| confirmed.contains(token));
        let until = if all { asked + trusted(self.client.lease()) } else { Duration::ZERO };
        self.settle(self.clock.now(), Some(until))
    }

    /// Judges the state at `now`, and if it is good, moves its end to `until`.
    fn settle(&self, now: Duration, until: Option<Duration>) -> Result<()> {
        let mut state = self.state.lock();
        if let State::HeldUntil(end) = &mut *state {
            if now < *end {
                *end = until.unwrap_or(*end);
            }
            if now >= *end {
                *state = State::Lost;
            }
        }
        match *state {
            State::HeldUntil(_) => Ok(()),
            State::Lost | State::Released => Err(Error::LocksLost { start_ts: self.start_ts }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mock::{MockClock, settle};
    use super::super::{LockDescriptor, LockOptions, LockService};
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    const LEASE: Duration = Duration::from_secs(20);
    const START_TS: Timestamp = Timestamp::FIRST;

    /// A service behind a wire that can be cut.
    #[derive(Debug)]
    struct Wire {
        service: LockService,
        cut: AtomicBool,
        hangs: AtomicBool,
        refreshes: AtomicUsize,
    }

    #[async_trait]
    impl LockClient for Wire {
        async fn lock(&self, request: LockRequest) -> Result<LockToken> {
            self.service.lock(request).await
        }

        async fn refresh(&self, tokens: &[LockToken]) -> Result<Vec<LockToken>> {
            self.refreshes.fetch_add(1, Ordering::SeqCst);
            if self.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if self.cut.load(Ordering::SeqCst) {
                return Err(Error::Unavailable { what: "the lock service".into(), reason: "the wire is cut".into() });
            }
            Ok(self.service.refresh(tokens))
        }

        async fn unlock(&self, tokens: &[LockToken]) -> Result<Vec<LockToken>> {
            Ok(self.service.unlock(tokens))
        }

        fn lease(&self) -> Duration {
            self.service.lease()
        }

        fn clock(&self) -> Arc<dyn Clock> {
            self.service.clock()
        }
    }

    fn wire() -> (Arc<Wire>, Arc<MockClock>) {
        let clock = MockClock::new();
        let service = LockService::with_clock(1, LockOptions::default(), clock.clone());
        let (cut, hangs) = (AtomicBool::new(false), AtomicBool::new(false));
        (Arc::new(Wire { service, cut, hangs, refreshes: AtomicUsize::new(0) }), clock)
    }

    fn request() -> LockRequest {
        LockRequest::new(vec![LockDescriptor::transaction(START_TS)], LEASE * 100)
    }

    async fn acquire(wire: &Arc<Wire>) -> HeldLocks {
        let held = HeldLocks::acquire(wire.clone(), START_TS, request()).await.expect("the lock is free");
        settle().await;
        held
    }

    fn is_lost(held: &HeldLocks) -> bool {
        matches!(held.check(), Err(Error::LocksLost { start_ts: START_TS }))
    }

    #[tokio::test]
    async fn locks_are_held_for_as_long_as_the_guard_lives() {
        let (wire, clock) = wire();
        let held = acquire(&wire).await;
        clock.advance(LEASE * 4).await;
        held.check().expect("it was refreshed all the time");
        assert!(wire.service.is_held(&held.tokens()[0]));
    }

    #[tokio::test]
    async fn a_dropped_guard_gives_the_locks_up_and_stops_refreshing() {
        let (wire, clock) = wire();
        let held = acquire(&wire).await;
        let token = held.tokens()[0];
        drop(held);
        settle().await;
        assert!(!wire.service.is_held(&token));
        let refreshes = wire.refreshes.load(Ordering::SeqCst);
        clock.advance(LEASE).await;
        assert_eq!(wire.refreshes.load(Ordering::SeqCst), refreshes);
    }

    #[tokio::test]
    async fn releasing_returns_when_the_locks_are_free() {
        let (wire, _clock) = wire();
        let held = acquire(&wire).await;
        let token = held.tokens()[0];
        held.release().await.expect("the service answers");
        assert!(!wire.service.is_held(&token));
    }

    #[tokio::test]
    async fn a_refresh_that_denies_the_token_loses_the_locks_for_good() {
        let (wire, clock) = wire();
        let held = acquire(&wire).await;
        wire.service.unlock(held.tokens());
        clock.advance(LEASE / 4).await;
        assert!(is_lost(&held));
        clock.advance(LEASE / 4).await;
        assert!(is_lost(&held));
    }

    #[tokio::test]
    async fn without_answers_the_locks_are_lost_here_before_the_service_gives_them_away() {
        for hangs in [false, true] {
            let (wire, clock) = wire();
            let held = acquire(&wire).await;
            clock.advance(LEASE).await;
            wire.cut.store(!hangs, Ordering::SeqCst);
            wire.hangs.store(hangs, Ordering::SeqCst);
            let mut lost_first = false;
            for _ in 0..(2 * LEASE).as_secs() {
                let (lost, is_held) = (is_lost(&held), wire.service.is_held(&held.tokens()[0]));
                assert!(lost || is_held, "the guard believes in a lock that the service gave away");
                lost_first |= lost && is_held;
                clock.advance(Duration::from_secs(1)).await;
            }
            assert!(lost_first && is_lost(&held));
        }
    }

    #[tokio::test]
    async fn a_short_interruption_is_survived() {
        let (wire, clock) = wire();
        let held = acquire(&wire).await;
        wire.cut.store(true, Ordering::SeqCst);
        clock.advance(LEASE / 4).await;
        wire.cut.store(false, Ordering::SeqCst);
        clock.advance(LEASE).await;
        held.check().expect("one refresh was missed, the next came in time");
    }

    #[tokio::test]
    async fn one_refresh_that_hangs_does_not_keep_the_next_from_being_made() {
        let (wire, clock) = wire();
        let held = acquire(&wire).await;
        wire.hangs.store(true, Ordering::SeqCst);
        clock.advance(LEASE / 4).await;
        wire.hangs.store(false, Ordering::SeqCst);
        // Longer than the lease: without a second refresh it would be lost.
        clock.advance(LEASE).await;
        held.check().expect("the next refresh came in time");
    }

    #[tokio::test]
    async fn after_a_suspend_longer_than_the_lease_the_locks_are_lost_before_anything_else_runs() {
        let (wire, clock) = wire();
        let held = acquire(&wire).await;
        clock.jump(LEASE * 10);
        assert!(is_lost(&held));
    }

    #[tokio::test]
    async fn the_locks_are_lost_here_when_the_tenure_ends() {
        let (wire, clock) = wire();
        let request = LockRequest { tenure: Some(LEASE), ..request() };
        let held = HeldLocks::acquire(wire.clone(), START_TS, request).await.expect("the lock is free");
        settle().await;
        clock.advance(LEASE + LEASE / 4).await;
        assert!(is_lost(&held) && wire.service.is_held(&held.tokens()[0]));
    }

    #[tokio::test]
    async fn locks_that_were_waited_for_longer_than_a_lease_are_held() {
        let (wire, clock) = wire();
        let first = acquire(&wire).await;
        let second = tokio::spawn(HeldLocks::acquire(wire.clone(), START_TS, request()));
        clock.advance(LEASE * 3).await;
        first.release().await.expect("the service answers");
        let second = second.await.expect("no panic").expect("the lock is free");
        second.check().expect("it was confirmed after the wait");
    }

    #[tokio::test]
    async fn tokens_that_are_not_held_can_not_be_adopted() {
        let (wire, _clock) = wire();
        let token = wire.service.lock(request()).await.expect("the lock is free");
        wire.service.unlock(&[token]);
        let adopted = HeldLocks::adopt(wire.clone(), START_TS, vec![token]).await;
        assert!(matches!(adopted, Err(Error::LocksLost { .. })));
    }
}
