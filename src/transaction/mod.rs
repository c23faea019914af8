//! Transactions over a store that has none: snapshots to read, a buffer to write, one entry that makes it a commit.
//!
//! A transaction reads the newest versions that committed below its `read_ts`, and writes versions at its `start_ts`.
//! What it wrote counts from the moment an entry `start_ts -> commit_ts` stands in `_transactions`, and not before:
//!
//! ```text
//!   read_ts ≤ start_ts ───── reads, buffered writes ───── conflict check ── data ── commit_ts ── entry
//!                                                                                                └ committed here
//! ```
//!
//! Two ways lead there. Step by step (`step_by_step`) works on any store. The pipeline (`pipeline`) is for stores
//! with atomic batches and one owner: there the last four steps of all waiting transactions are one write. Both take
//! the same steps, named in [`CommitStep`], and readers decide visibility in one place (`read`).

mod buffer;
mod cell_cache;
mod claim;
mod commit;
mod company;
mod constraint;
mod core;
mod dependency;
pub mod entry;
mod flights;
mod group;
mod handle;
mod leader;
mod leader_thread;
mod manager;
mod mend;
mod pipeline;
mod predecessors;
mod read;
mod reads;
mod recheck;
mod reservations;
mod run;
mod scan;
mod settle_group;
mod step;
mod step_by_step;
mod stripe;
pub mod sweep_queue;
mod swept;
mod table;
mod tracker;
mod turns;
mod unstamped;
mod value;
mod visit;
mod window;
mod writer;

pub use constraint::Constraint;
pub use handle::{NAME_LEN_MAX, Transaction};
pub(crate) use manager::commit_mode_for;
pub(crate) use manager::other_namespace;
pub use manager::{OpenOptions, TransactionManager};
pub use predecessors::DecidedMark;
pub use run::{Outcome, Retriable, RunOptions};
pub use step::{CommitStep, StepWatcher, watch_steps};
pub use swept::{SweptTable, sweep_table};
pub(crate) use value::{check_version, committed_version, damaged, header, version_len};
pub use visit::CellRef;
