//! A thread that writes groups of commits while the leader admits the next one.
//!
//! Handing a group over and hearing of it costs two changes of threads, so the leader writes by itself while nobody needs
//! it. Those who have lost to a commit on its way do: they come again before it has landed.

use super::flights::Written;
use atlas_kvs::{AtomicBatch, Durability, KeyValueService, KvsError};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::thread::JoinHandle;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// What is to be written, and who is told.
type Job = (AtomicBatch, Durability, oneshot::Sender<Written>);

/// The thread. Dropping this waits for what it writes.
#[derive(Debug)]
pub(super) struct Writer {
    // Nothing once it is to end.
    jobs: Option<blocking::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// A thread for a store, or nothing if the system has none to give: then the leader goes on writing by itself.
    pub(super) fn spawn(kvs: Arc<dyn KeyValueService>) -> Option<Writer> {
        let (jobs, queue) = blocking::channel::<Job>();
        let runtime = Handle::current();
        let work = move || {
            atlas_kvs::allow_waiting();
            while let Ok((batch, durability, reply)) = queue.recv() {
                let _ = reply.send(runtime.block_on(kvs.apply(batch, durability)));
            }
        };
        match std::thread::Builder::new().name("atlas-writes".to_owned()).spawn(work) {
            Ok(thread) => Some(Writer { jobs: Some(jobs), thread: Some(thread) }),
            Err(error) => {
                tracing::debug!(%error, "no thread to write groups of commits");
                None
            }
        }
    }

    /// Writes a batch. It is on its way from now on, whoever waits for the answer. Nothing is written if the thread has ended.
    pub(super) fn write(&self, batch: AtomicBatch, durability: Durability) -> Option<BoxFuture<'static, Written>> {
        let (reply, answer) = oneshot::channel();
        self.jobs.as_ref()?.send((batch, durability, reply)).ok()?;
        let gone = || KvsError::Indeterminate { reason: "the thread that writes has ended".to_owned(), source: None };
        Some(Box::pin(async move { answer.await.unwrap_or_else(|_| Err(gone())) }))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic of it was told as an answer that is missing.
            let _ = thread.join();
        }
    }
}
