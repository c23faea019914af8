//! Removes the versions that nobody can read any more.
//!
//! A cell keeps every version that was ever written, until sweep takes the old ones. It is *granted* a timestamp by
//! those who register snapshots, and keeps whatever a reader at or above it can see:
//!
//! ```text
//!   versions of a cell   v1    v2    v3 (rolled back)   v4 ──┤ sweep_ts ├── v5
//!                        gone  gone  gone               kept               kept
//! ```
//!
//! Two ways lead to a cell. The *queue* names what was written, so its cost is that of the writes (`targeted`); it is
//! worked off in the background. A *walk* over a table finds what no queue knows: imports, restores, what a crash left
//! (`background`). Both come to the same batch of cells, and to one place that decides what goes (`plan`) and takes it
//! away (`batch`).
//!
//! # What must hold, in this order
//!
//! 1. The timestamp is granted under the latch of the readers, so none that needs what goes can begin later.
//! 2. Writers below it that have no entry are rolled back, by writing: they can't commit on what was taken.
//! 3. No backup lock is held, and none is acquired before the batch is over (`PhysicalDeletionGate`).
//! 4. The deletion floor and the table's timestamp stand in the store, and the lease is looked at after that: who takes
//!    the store over reads them. From here on whatever this process deletes, however late, is known to its successor.
//! 5. Sentinels stand where a reader could come too late, before anything is gone.
//! 6. Deletions go from the oldest version to the newest, so that none ever uncovers an older one.
//! 7. Progress moves after the deletions were answered, and is a fact whoever has found it out.
//!
//! A crash anywhere leaves work to be done again, and nothing else: each step may be repeated. A process that was
//! stopped and wakes up under a successor deletes what was dead at a timestamp below everything that the successor has
//! issued, also below the backup timestamp of every backup that the successor takes.

mod background;
mod batch;
mod entries;
mod hard_delete;
mod holds;
mod plan;
mod progress;
mod state;
mod status;
mod step;
mod targeted;

pub use entries::TransactionsFloor;
pub use holds::{SweepPin, SweepPins};
pub use progress::ShardProgress;
pub(crate) use progress::forget_walk;
pub use state::Sweeper;
pub use step::SweepStep;
