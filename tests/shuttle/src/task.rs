//! What is used of `tokio_util::task`.

use tokio::task::JoinHandle;

/// A task that ends with this.
#[derive(Debug)]
pub struct AbortOnDropHandle<T>(JoinHandle<T>);

impl<T> AbortOnDropHandle<T> {
    /// Takes the task over.
    pub fn new(task: JoinHandle<T>) -> AbortOnDropHandle<T> {
        AbortOnDropHandle(task)
    }
}

impl<T> Drop for AbortOnDropHandle<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
