//! The store on a PostgreSQL server: a schema for each namespace, an SQL table for each table.
//!
//! # What it promises
//!
//! A write that returned is committed with `synchronous_commit` on, whatever the server's default, unless a relaxed
//! batch says otherwise; a stronger setting of the server is kept. Every put and every batch is one SQL transaction and
//! therefore atomic across tables. Another value at an occupied place is refused. Other processes, and other
//! namespaces in the same database, may be at work at any time.
//!
//! # Layout
//!
//! ```text
//!   database
//!     schema atlas_bank                       one namespace; see `names` for how names are made
//!       tables                                one row for each table: name, kind, metadata
//!       v_accounts  (row, col, ts, val)       primary key (row, col, ts): all versions of a cell side by side
//!       a_locks     (row, col, val)           primary key (row, col)
//! ```
//!
//! PostgreSQL compares `bytea` as unsigned bytes, so the order of the primary key is the order of cells. The newest
//! version below a bound is one walk down that key and one step back, whatever the number of versions.
//!
//! # Transactions of the server
//!
//! None lasts longer than a call, and reads are single statements: a scan is a series of pages, between which neither a
//! snapshot nor a connection is held. All of it runs in READ COMMITTED; isolation is the business of the layer above.
//!
//! A batch that comes again, for the same tables, is one statement, and so one message and one answer. Reads of few cells
//! share statements with what others ask for at the same time.
//!
//! # After a failure
//!
//! What the server refused, it rolled back: nothing was applied. What it did not answer may have been applied if it may
//! have been told to commit ([`Indeterminate`](atlas_kvs::KvsError::Indeterminate)), and was not applied if it can't
//! have been ([`Unavailable`](atlas_kvs::KvsError::Unavailable)). A deadlock, and a connection that turned out to be
//! dead before anything was sent, are tried again before anyone is told. A connection whose state is not known is
//! closed, never used again.
//!
//! Every connection of a store leads to the same database: system identifier, timeline and database are checked, so that
//! a fail-over is told and nothing is written to what may lack the last commits. The store has to be opened anew then.
//!
//! # Snapshots
//!
//! A snapshot is what one exported snapshot of the server shows: the tables' descriptions and the binary `COPY` of each
//! table, over connections of their own. While one is read, tables can't be dropped or truncated.
//!
//! # Not supported
//!
//! Poolers that lend a server connection for one transaction only: settings and prepared statements belong to a
//! connection.

mod at_once;
mod atomic;
mod catalog;
mod config;
mod connect;
mod delete;
mod errors;
mod hosts;
mod names;
mod one_statement;
mod read;
mod scan;
mod session;
mod shared_reads;
mod snapshot;
mod snapshot_catalog;
mod store;
mod tls;
mod write;

pub use config::{Password, PostgresConfig, SslMode};
pub use store::PostgresStore;
