//! A clock that moves when a test moves it.

use atlas::clock::Clock;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

type Hook = Box<dyn FnMut() + Send>;

pub struct TestClock {
    now: watch::Sender<Duration>,
    hook: Mutex<Option<Hook>>,
}

impl fmt::Debug for TestClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestClock")
    }
}

impl TestClock {
    pub fn new() -> Arc<TestClock> {
        Arc::new(TestClock { now: watch::channel(Duration::from_secs(1000)).0, hook: Mutex::new(None) })
    }

    /// Moves time without letting anybody act on it.
    pub fn jump(&self, duration: Duration) {
        self.now.send_modify(|now| *now += duration);
    }

    /// Moves time in small steps, and after each lets every other task of a single-threaded runtime do what it can.
    pub async fn advance(&self, duration: Duration) {
        const STEPS: u32 = 20;
        for _ in 0..STEPS {
            self.jump(duration / STEPS);
            settle().await;
        }
    }

    /// Called whenever somebody looks at the clock.
    pub fn on_look(&self, hook: impl FnMut() + Send + 'static) {
        *self.hook.lock() = Some(Box::new(hook));
    }
}

impl Clock for TestClock {
    fn now(&self) -> Duration {
        if let Some(hook) = self.hook.lock().as_mut() {
            hook();
        }
        *self.now.borrow()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut now = self.now.subscribe();
        let until = now.borrow().saturating_add(duration);
        Box::pin(async move {
            // A clock that is gone never gets there.
            if now.wait_for(|now| *now >= until).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

/// Lets every other task of a single-threaded runtime run until it waits.
pub async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
