//! Backup and restore: a live copy of a store that restores exactly the state at one timestamp.
//!
//! A copy made while transactions run holds more than that state: parts of whatever committed meanwhile. Two numbers
//! make it exact. What committed below `backup_ts` is all in the copy, because nothing at or above it had begun to be
//! copied before it was settled; what committed from `backup_ts` on is declared rolled back by the restore, and no
//! number below `fast_forward_ts`, which is above everything in the copy, is ever issued again.
//!
//! ```text
//!   ─── lock ── backup_ts ── settle ── snapshot ── fast_forward_ts ── copy ── lock still held? ── manifest ── release
//!                   │                                     │
//!   commits  …x..x..┤.x....x....x.....x......x............├..x….
//!              kept │         rolled back by a restore    │ not in the copy
//! ```
//!
//! The data are taken by one of four methods, told in the manifest: see [`Contents`]. Everything else (order of the
//! steps, checksums, what a crash leaves) is the same for all of them.
//!
//! | step | where |
//! | --- | --- |
//! | take a backup | [`create`](create::create) |
//! | look at backups | [`Repository`], [`verify`](verify::verify) |
//! | restore | [`restore`](restore::restore), [`resume`](restore::resume) |
//! | by hand | [`clean_transactions`], [`fast_forward`], [`read_timestamp_file`] |

mod cells;
mod chunks;
pub mod clean;
mod contents;
pub mod create;
mod direct;
mod directory_target;
mod files;
pub mod lock;
mod manifest;
mod nodes;
mod pieces;
mod portable;
mod repository;
pub mod restore;
mod store_target;
mod streams;
mod timestamp_file;
pub mod verify;

pub use clean::{CleanReport, FastForwardReport, clean_transactions, fast_forward};
pub use contents::{Contents, NodeTable, PortableTable, StreamPart};
pub use create::{BackupSource, BackupStep};
pub use directory_target::{DirectoryTarget, StoreOpener};
pub use lock::{BackupLock, BackupLockGuard, DeletionPermit, PhysicalDeletionGate};
pub use manifest::{
    BACKUP_TIMESTAMP_FILE, FAST_FORWARD_TIMESTAMP_FILE, FILES_DIRECTORY, MANIFEST_FILE, MANIFEST_VERSION, Manifest,
    ManifestFile, Timings, Totals,
};
pub use nodes::NodeCommands;
pub use repository::{COMPLETE, DAMAGED, INCOMPLETE, LATEST, Repository, check_id};
pub use restore::{RESTORE_MARKER_FILE, RestoreMarker, RestoreReport, RestoreStep, RestoreTarget, refuse_if_restoring};
pub use store_target::{ConnectionOpener, StoreTarget};
pub use timestamp_file::{format_timestamp_line, parse_timestamp_line, read_timestamp_file, write_timestamp_file};
pub use verify::{VerifyReport, verify_restored};
