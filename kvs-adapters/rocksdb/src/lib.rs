//! The embedded store: tables of cells in RocksDB, in a directory that one process owns at a time.
//!
//! # What it promises
//!
//! A write that returned is on the disk before it is seen, unless [`RocksConfig::sync`] or a relaxed batch says
//! otherwise; what a crash leaves is always a prefix of what was written, because all tables share one log. Every
//! write is one RocksDB batch and therefore atomic across tables. One process at a time uses the directory, kept so by
//! a lock of the operating system.
//!
//! # Keys
//!
//! A table is a column family. Its keys sort as its cells do, newest version first:
//!
//! ```text
//!   escape(row) 00 00 escape(column) 00 00 │ !ts
//!
//!   row "a", column "x", ts 9     61 00 00 78 00 00 │ ff ff ff ff ff ff ff f6     get(a/x, read_before 9):
//!   row "a", column "x", ts 5     61 00 00 78 00 00 │ ff ff ff ff ff ff ff fa     ◀── seek to a/x│!8
//!   row "a", column "x", ts 0     61 00 00 78 00 00 │ ff ff ff ff ff ff ff ff     the sentinel
//!   row "a\0", column "x", ts 7   61 00 ff 00 00 78 00 00 │ …
//! ```
//!
//! Everything left of the bar is the prefix that bloom filters know, so that a read of a cell skips the files that
//! don't have it. Atomic tables have the part left of the bar only.
//!
//! # Files
//!
//! ```text
//!   data_dir/             0700, and so nothing below it is anyone else's to read
//!     owner               locked by the owner, with its process number in it
//!     db/                 RocksDB: table files, one log for all tables, manifest
//!     staging/<name>/     a snapshot: db/ again, links to table files and a copy of the log
//!     staging/load-*.sst  a table file that is being written, for a sorted load
//! ```
//!
//! An opener takes the lock of `owner`, waiting a moment for a predecessor; empties `staging`, where without their
//! maker nobody can tell a whole snapshot from a half one; lets RocksDB replay its log; and drops the column families
//! that no table names, which are what a crash in the middle of creating, truncating or dropping one leaves behind. A
//! table exists when its record does, and the record is one synced write. A directory with table files but without the
//! file that says which of them count is refused, never taken for an empty store.
//!
//! # After a failure
//!
//! A write that RocksDB failed may be in its log or not: [`Indeterminate`](atlas_kvs::KvsError::Indeterminate). From
//! then on the store accepts no write (`Unavailable`: nothing was applied) until it was
//! [reopened](atlas_kvs::KeyValueService::reopen), which replays the log and so decides. Reads go on until then.
//!
//! # Threads
//!
//! RocksDB blocks. Point reads and first pages of scans are tried on the thread that asks, restricted to what is in
//! memory; what is not goes to a blocking thread, unless such reads have been short, and so does every write. RocksDB merges
//! the syncs of concurrent writers.

#[cfg(not(unix))]
compile_error!("the directory modes and the lock of this store are those of Unix");

mod config;
mod cut;
mod db;
mod errors;
mod keys;
mod load;
mod misses;
mod names;
mod owner;
mod page;
mod read;
mod scan;
mod snapshot;
mod store;
mod versions;

pub use config::RocksConfig;
pub use owner::{OwnerLock, owner_pid};
pub use store::{ReadStatistics, RocksStore};
