//! Where the leader of the pipeline works: on a thread of its own where the store keeps whoever writes waiting.
//!
//! As a task it would wait for another thread to write and for one of the runtime to go on, twice for each group, and groups
//! are short. In a runtime with one thread it is a task all the same: everything is done in one order there.
//!
//! The thread ends with the runtime. A watchman, a task that is dropped when the runtime shuts down, tells the leader so and
//! waits for the group at hand: a process that ends must not take away the store's library from under a write.

use atlas_kvs::KeyValueService;
use futures::future::{BoxFuture, FutureExt};
use std::sync::mpsc as blocking;
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

/// How long the end of a runtime waits for the group at hand.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ends when the runtime of those who commit is gone.
pub(crate) type Gone = BoxFuture<'static, ()>;

/// Sets `leader` to work, which is to end soon after the future it is given has ended.
pub(crate) fn spawn<F>(kvs: &dyn KeyValueService, leader: impl FnOnce(Gone) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = Handle::current();
    if runtime.runtime_flavor() != RuntimeFlavor::MultiThread || !kvs.writes_keep_waiting() {
        drop(runtime.spawn(leader(std::future::pending().boxed())));
        return;
    }
    let (hand_over, handed_over) = blocking::sync_channel::<(F, blocking::Sender<()>, oneshot::Sender<()>)>(1);
    let handle = runtime.clone();
    let work = move || {
        let Ok((leader, over, told)) = handed_over.recv() else { return };
        atlas_kvs::allow_waiting();
        handle.block_on(leader);
        // In this order: whoever hears of the end waits for nothing any more.
        drop(over);
        drop(told);
    };
    match std::thread::Builder::new().name("atlas-commits".to_owned()).spawn(work) {
        Ok(_) => {
            let (tell, gone) = oneshot::channel::<()>();
            let (over, wait) = blocking::channel();
            let (told, ended) = oneshot::channel();
            let watchman = Watchman { tell: Some(tell), wait };
            drop(runtime.spawn(async move {
                let _watchman = watchman;
                let _ = ended.await;
            }));
            let leader = leader(gone.map(drop).boxed());
            hand_over.send((leader, over, told)).expect("the thread waits for it");
        }
        Err(error) => {
            tracing::warn!(%error, "no thread for commits; they share those of the runtime");
            drop(runtime.spawn(leader(std::future::pending().boxed())));
        }
    }
}

/// Dropped when the leader has ended, or with the runtime.
struct Watchman {
    tell: Option<oneshot::Sender<()>>,
    wait: blocking::Receiver<()>,
}

impl Drop for Watchman {
    fn drop(&mut self) {
        drop(self.tell.take());
        // An error is what is waited for: the other end is dropped.
        if let Err(blocking::RecvTimeoutError::Timeout) = self.wait.recv_timeout(PATIENCE) {
            tracing::error!("the runtime ends while a group of commits is being written");
        }
    }
}
