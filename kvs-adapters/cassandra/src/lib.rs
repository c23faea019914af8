//! The store on a Cassandra cluster: a keyspace for each namespace, a partition for each cell, an ordered index beside.
//!
//! # Layout
//!
//! ```text
//!   keyspace atlas_bank                                 one namespace; see `names` for how names are made
//!     atlas_tables   ((place), name) kind, id, …        the catalog: one partition, changed by lightweight transactions
//!     v_accounts_…   ((r, c), ts) len, head, rest       all versions of a cell are one partition, the newest first
//!     a_locks_…      ((r, c)) v                         a cell of an atomic table
//!     x_…            ((bucket), kind, key) x            the index of a table: which cells there are, in order
//! ```
//!
//! A stock cluster spreads partitions by a hash (Murmur3), so nothing is in order across partitions. A cell is read by
//! one query of one partition, which the driver sends to a replica of it. What is in order is the index: a tree of
//! *buckets*, each a partition of bounded size that holds keys with a common beginning. A bucket that is full stays as
//! it is, and later keys go to its *children*. A scan merges buckets as it comes to them and reads the cells that they
//! name; see `buckets` and `walk`. Why so and not otherwise: `docs/decisions/`.
//!
//! # What it promises
//!
//! A write that returned is on a quorum of the replicas of its cell, and so is the entry that scans find it by. Reads
//! ask a quorum. Both go on with a minority of replicas down. What removes versions, and what lists them for a sweep,
//! asks *all* replicas: a deletion that one of them missed would come back with it. It fails with
//! [`Unavailable`](atlas_kvs::KvsError::Unavailable), naming who is missing, and has then removed nothing of the cell.
//!
//! # Write timestamps
//!
//! Cassandra decides between two writes of one place by their write timestamps. Ours are microseconds of a clock that
//! never runs backwards in a process and is set forward by whatever it meets; see `clock`. A deletion covers exactly one
//! version, and is written later than what it saw there. There are no deletions of ranges or partitions: they would hide
//! writes that they know nothing of. Atomic tables are touched by lightweight transactions alone, whose timestamps
//! Cassandra chooses itself.
//!
//! # After a failure
//!
//! Versions are written with fixed write timestamps, so the same write may be sent twice: that is done, to another
//! coordinator, when an answer does not come. A lightweight transaction is sent once. Whatever leaves its outcome open
//! (`WriteTimeout` first of all) is [`Indeterminate`](atlas_kvs::KvsError::Indeterminate).
//!
//! # Scylla
//!
//! Untested: nothing here has run on Scylla. What its documentation says differs is provided for. The answer of a
//! lightweight transaction is read by the names of its columns, of which Scylla tells others. Keyspaces are made without
//! tablets, on which older versions have no lightweight transactions. Its version, which looks like that of a very old
//! Cassandra, is not held against it.
//!
//! # Not supported
//!
//! TLS; a choice of data centre (a quorum is one of all copies, wherever they are); values of more than 8 MiB, or less
//! where the servers are configured so ([`Limits`](atlas_kvs::Limits) tell).

mod atomic;
mod buckets;
mod catalog;
mod clock;
mod config;
mod delete;
mod errors;
mod names;
mod nodes;
mod read;
mod reaper;
mod scan;
mod session;
mod statement;
mod store;
mod table;
mod walk;
mod write;

pub use config::{CassandraConfig, Password, Replication};
pub use store::CassandraStore;
