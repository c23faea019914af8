//! Keeping threads out of each other's way: what many of them change at the same time is split into stripes, and each thread
//! has one of its own as far as they last.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};

/// More than threads begin at a time, usually.
pub(crate) const STRIPES: usize = 16;

/// The stripe of the thread that asks.
pub(crate) fn own() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    }
    // A thread that is about to end has none any more.
    NUMBER.try_with(|number| *number).unwrap_or(0) % STRIPES
}

/// Keeps what is in it on cache lines of its own. Processors fetch lines in pairs, so on two.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct CachePadded<T>(T);

impl<T> Deref for CachePadded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
