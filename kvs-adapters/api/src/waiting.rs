//! Threads that may be kept waiting.
//!
//! A store that lies in the process writes with calls that keep their thread busy until the disk has answered. On a thread
//! of an async runtime that would hold up others, so such calls go to a thread of their own and back, which costs two
//! changes of threads. Who calls from a thread that does nothing else can save them.

use std::cell::Cell;

thread_local! {
    static MAY_WAIT: Cell<bool> = const { Cell::new(false) };
}

/// From now on this thread may be kept waiting by the stores it calls: nobody else needs it.
pub fn allow_waiting() {
    MAY_WAIT.set(true);
}

/// Whether a call may keep the thread that makes it waiting.
pub fn may_wait() -> bool {
    MAY_WAIT.get()
}
