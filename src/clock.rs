//! The clock that leases are counted on.

use futures::future::BoxFuture;
use std::fmt::Debug;
use std::time::Duration;

/// Time that runs through suspend: a machine that slept must find its leases run out, not as it left them.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Time since an arbitrary point in the past, the same for all callers. Never runs backwards.
    fn now(&self) -> Duration;

    /// Ends after `duration`; it may end late, so whoever decides by time asks [`now`](Self::now). Cancel safe.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// Time since the machine was started, suspend included.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl BootClock {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const ID: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    // Elsewhere there is no clock of that name. Apple's monotonic clock does run through sleep.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const ID: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
}

impl Clock for BootClock {
    fn now(&self) -> Duration {
        Duration::try_from(rustix::time::clock_gettime(BootClock::ID)).expect("the time since boot is not negative")
    }

    /// Tokio's timer stands still during suspend: after it, a sleep ends late by at most what was left of it.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that moves when a test moves it.
#[cfg(test)]
pub(crate) mod mock {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::watch;

    #[derive(Debug)]
    pub(crate) struct MockClock {
        now: watch::Sender<Duration>,
    }

    impl MockClock {
        pub(crate) fn new() -> Arc<MockClock> {
            Arc::new(MockClock { now: watch::Sender::new(Duration::from_secs(1000)) })
        }

        /// Moves time without letting anybody act on it.
        pub(crate) fn jump(&self, duration: Duration) {
            self.now.send_modify(|now| *now += duration);
        }

        /// Moves time in small steps, and after each lets every task do what it can.
        pub(crate) async fn advance(&self, duration: Duration) {
            const STEPS: u32 = 20;
            for _ in 0..STEPS {
                self.jump(duration / STEPS);
                settle().await;
            }
        }

        /// How many sleeps are under way.
        pub(crate) fn sleepers(&self) -> usize {
            self.now.receiver_count()
        }
    }

    impl Clock for MockClock {
        fn now(&self) -> Duration {
            *self.now.borrow()
        }

        fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
            let mut now = self.now.subscribe();
            let until = self.now().saturating_add(duration);
            Box::pin(async move {
                // A clock that is gone never gets there.
                if now.wait_for(|now| *now >= until).await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
        }
    }

    /// Lets every other task of a single-threaded runtime run until it waits.
    pub(crate) async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_does_not_run_backwards() {
        let first = BootClock.now();
        assert!(first > Duration::ZERO && BootClock.now() >= first);
    }
}
