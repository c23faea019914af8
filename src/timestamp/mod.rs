//! The timestamp oracle: unique numbers, strictly increasing in real time.
//!
//! Two records of one thing: how far numbers *have been* issued lives in memory, how far they *may be* issued (the
//! bound) lives in the store and is moved a block at a time by compare-and-set. A crash wastes the rest of a block,
//! which is harmless because gaps are allowed.
//!
//! ```text
//!   issued ........|                 | bound (durable)
//!                  next number       nothing at or above it is ever issued before the bound has moved
//! ```
//!
//! Two issuers with blocks of their own would hand out numbers out of order, so there is one at a time. An issuer
//! takes over by raising the *epoch* in the same compare-and-set that moves the bound, and every older one finds out
//! before its next answer: in a store with one owner through a number the two share in memory, elsewhere because the
//! record is a [lease](LeaseOptions) that it failed to renew. What it had on its way by then is stopped by a fence, in
//! stores that can compare one with each batch.

mod fence;
mod issuer;
mod lease;
mod oracle;
mod record;
mod takeover;

pub use fence::FenceRecord;
pub(crate) use fence::{BatchFence, Raised};
pub use lease::LeaseOptions;
pub use oracle::{TimestampOracle, TimestampRange, take_over_for_command};
pub use record::{Contact, FastForward, LARGE_JUMP, OracleRecord, fast_forward_stored, read_stored};
