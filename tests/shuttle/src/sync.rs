//! What is used of `tokio_util::sync`.

use std::sync::Arc;
use tokio::sync::watch;

/// A flag that is raised once, and heard by who waits for it.
#[derive(Clone, Debug)]
pub struct CancellationToken {
    raised: Arc<watch::Sender<bool>>,
}

impl Default for CancellationToken {
    fn default() -> CancellationToken {
        CancellationToken::new()
    }
}

impl CancellationToken {
    /// A flag that is down.
    pub fn new() -> CancellationToken {
        CancellationToken { raised: Arc::new(watch::channel(false).0) }
    }

    /// Raises it.
    pub fn cancel(&self) {
        self.raised.send_replace(true);
    }

    /// Whether it is raised.
    pub fn is_cancelled(&self) -> bool {
        *self.raised.borrow()
    }

    /// Ends when it is raised.
    pub async fn cancelled(&self) {
        let mut raised = self.raised.subscribe();
        raised.wait_for(|raised| *raised).await.expect("the sender lives in the token");
    }
}
