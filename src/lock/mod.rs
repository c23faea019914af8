//! Locks that keep transactions out of each other's way, and that nobody holds for ever.
//!
//! A request names any number of locks and gets all of them, under one token, or none. Locks are exclusive and fair:
//! each has a queue, and who came first is served first. A request takes its locks in the order of their descriptors,
//! so two requests never wait for each other.
//!
//! ```text
//!   request {a, c}   a taken ── c: queue ──────────────── c handed over ── token
//!   holder  {c}      ........... refresh ... refresh ... unlock, or its lease runs out
//! ```
//!
//! A token is kept by refreshing it: a holder that falls silent for a *lease* loses its locks to the next in line, and
//! after its *tenure* a holder is refreshed no more, however alive. [`HeldLocks`] does the refreshing, and knows that
//! the locks are lost before the service gives them away. Locks live in memory: with a new epoch all tokens are void.

mod descriptor;
mod held;
mod service;

#[cfg(test)]
pub(crate) use crate::clock::mock;
pub use crate::clock::{BootClock, Clock};
pub use descriptor::LockDescriptor;
pub use held::{HeldLocks, LockClient};
pub use service::{LockHolder, LockOptions, LockRequest, LockService, LockToken};
