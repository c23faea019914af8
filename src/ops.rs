//! What an operator can ask of a store, wherever it is.
//!
//! The command line talks to this trait and does not know which side of a socket it is on: `Atlas`
//! answers in its own process, `RemoteAtlas` asks the process that owns the store.

use crate::Result;
use async_trait::async_trait;
use atlas_kvs::{Cell, ColumnSelection, RowRange, TableRef, Timestamp};
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::schema::{TableChange, TableSpec};

/// Operations on a store that may run while applications use it.
#[async_trait]
pub trait Operations: Send + Sync {
    /// Which side of a socket this is.
    fn connection(&self) -> Connection;

    /// A timestamp above all issued before the call.
    async fn fresh_timestamp(&self) -> Result<Timestamp>;

    /// As [`fresh_timestamp`](Self::fresh_timestamp), and no version that a reader at it needs is swept for `hold`.
    async fn pin_fresh_timestamp(&self, hold: Duration) -> Result<Timestamp>;

    /// `count` timestamps in a row, the first of which is returned; 1 to 10,000.
    async fn fresh_timestamps(&self, count: u32) -> Result<Timestamp>;

    /// The timestamp below which no transaction is open.
    async fn immutable_timestamp(&self) -> Result<Timestamp>;

    /// Wall-clock time, in milliseconds since 1970, at about which `ts` was issued; `None` if it is not known.
    async fn wall_clock_millis(&self, ts: Timestamp) -> Result<Option<i64>>;

    /// Takes the backup lock for nobody's process: it stays until it is released.
    async fn backup_lock_acquire(&self, reason: &str) -> Result<BackupLockRecord>;

    /// Clears the backup lock; refused while a live backup renews it. Returns what was cleared, if anything.
    async fn backup_lock_release(&self) -> Result<Option<BackupLockRecord>>;

    /// The backup lock as it stands.
    async fn backup_lock_status(&self) -> Result<Option<BackupLockRecord>>;

    /// Creates a table; one with the same specification is left alone, another one is `AlreadyExists`.
    async fn create_table(&self, table: &TableRef, spec: &TableSpec) -> Result<()>;

    /// Changes what a table promises, safely while transactions run: those that used it before are done anew. Answers
    /// what it promises now.
    async fn alter_table(&self, table: &TableRef, change: &TableChange) -> Result<TableSpec>;

    /// Tables of applications, in order; with `internal` those of the layer too.
    async fn tables(&self, internal: bool) -> Result<Vec<TableInfo>>;

    /// One table, or `NotFound`. `count` reads the whole table to give exact numbers.
    async fn describe_table(&self, table: &TableRef, count: bool) -> Result<TableInfo>;

    /// Removes a table; `BackupLockHeld` while the backup lock is held.
    async fn drop_table(&self, table: &TableRef) -> Result<()>;

    /// Removes all data of a table; `BackupLockHeld` while the backup lock is held.
    async fn truncate_table(&self, table: &TableRef) -> Result<()>;

    /// Starts a transaction.
    async fn begin_transaction(&self, options: BeginOptions) -> Result<Box<dyn TransactionOps>>;

    /// Takes a live backup. Dropping the future ends it: the lock is released, what was copied is removed.
    async fn backup_create(&self, request: BackupRequest, progress: ProgressSink) -> Result<BackupInfo>;

    /// What there is and how it is.
    async fn status(&self) -> Result<StoreStatus>;

    /// Checks of a running store, all of them or those named.
    async fn doctor(&self, checks: &[String]) -> Result<Vec<DoctorFinding>>;

    /// Releases everything; a store opened for this call is closed.
    async fn close(&self) -> Result<()>;
}

/// A transaction on either side of a socket. Dropping it aborts it.
#[async_trait]
pub trait TransactionOps: Send + Sync {
    /// Its identity.
    fn start_ts(&self) -> Timestamp;

    /// The snapshot it reads: commits below this.
    fn read_ts(&self) -> Timestamp;

    /// Values of cells, in the order given, own writes included.
    async fn get(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>>;

    /// Cells of a range in order, own writes included, paged.
    async fn scan(&self, table: &TableRef, scan: ScanOptions) -> Result<BoxStream<'static, Result<(Cell, Bytes)>>>;

    /// Buffers writes; `None` deletes.
    async fn write(&self, table: &TableRef, writes: Vec<(Cell, Option<Bytes>)>) -> Result<()>;

    /// Commits. The commit timestamp, or `None` if there was nothing to write.
    async fn commit(self: Box<Self>) -> Result<Option<Timestamp>>;

    /// Aborts.
    async fn abort(self: Box<Self>) -> Result<()>;
}

/// Which side of a socket operations are carried out on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Connection {
    /// In this process, which owns the store.
    Local,
    /// In the process behind a socket.
    Remote {
        /// The socket's path or address.
        address: String,
        /// The owner's process id, where it is told.
        pid: Option<u32>,
    },
}

/// How to begin a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BeginOptions {
    /// Refuse writes; commit costs nothing.
    pub read_only: bool,
    /// Read the state at this past timestamp (exclusive); implies `read_only`.
    pub at: Option<Timestamp>,
    /// Abort the transaction when it is older than this; `None`: the configured limit.
    pub timeout: Option<Duration>,
}

/// What to scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// Which rows.
    pub rows: RowRange,
    /// Which columns of each.
    pub columns: ColumnSelection,
    /// From the last cell to the first.
    pub reverse: bool,
    /// At most this many cells; `None`: all.
    pub limit: Option<u64>,
    /// How many cells to fetch at a time; `0`: the layer chooses.
    pub page_size: usize,
}

/// The backup lock as persisted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupLockRecord {
    /// Identity of this acquisition.
    pub lock_id: uuid::Uuid,
    /// User, host and process that took it.
    pub holder: String,
    /// What for.
    pub reason: String,
    /// When, RFC 3339.
    pub since: String,
    /// `None`: belongs to nobody's process and stays until released. `Some`: renewed by a running backup, counted up
    /// with each renewal.
    pub renewal: Option<u64>,
    /// How long a renewal counts, in milliseconds; 0 without renewals.
    #[serde(default)]
    pub lease_ms: u64,
    /// When it was last renewed, RFC 3339; for people only.
    #[serde(default)]
    pub renewed_at: Option<String>,
}

/// A table as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableInfo {
    /// Its name.
    pub table: TableRef,
    /// `versioned` or `atomic`.
    pub kind: atlas_kvs::TableKind,
    /// What it was created with; internal tables have none.
    pub spec: Option<TableSpec>,
    /// Stored versions: estimated unless `exact`.
    pub versions: u64,
    /// Bytes, estimated.
    pub bytes: u64,
    /// Visible cells, where they were counted.
    pub cells: Option<u64>,
    /// Sentinels, where they were counted.
    pub sentinels: Option<u64>,
    /// Whether the numbers were counted rather than estimated.
    pub exact: bool,
}

/// What backup to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupRequest {
    /// Directory of the repository, absolute.
    pub repository: PathBuf,
    /// The backup's id; made from the time if absent.
    pub name: Option<String>,
    /// Reason written into the backup lock; made up if absent.
    pub reason: Option<String>,
    /// Read it as a transaction does, so that it can be restored into any kind of store, whatever snapshots the store
    /// has of its own.
    pub portable: bool,
}

/// A backup as listed and shown; taken from its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupInfo {
    /// Its id.
    pub id: String,
    /// `complete`, `incomplete` (no manifest) or `damaged` (manifest does not match its checksum).
    pub state: String,
    /// The state it restores: commits below this.
    pub backup_ts: Option<Timestamp>,
    /// Where time goes on after a restore.
    pub fast_forward_ts: Option<Timestamp>,
    /// When it was started, RFC 3339.
    pub started: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// How long the store's own snapshot took, in milliseconds.
    pub snapshot_ms: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
    /// Adapter of the store it came from.
    pub store: String,
    /// Namespace it came from.
    pub namespace: String,
    /// How the data were taken: `files`, `stream`, `portable` or `nodes`; empty where it is not known.
    #[serde(default)]
    pub method: String,
}

/// A step of something long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Name of the step.
    pub step: String,
    /// How much is done.
    pub done: u64,
    /// How much there is, where it is known.
    pub total: Option<u64>,
    /// What is counted: `bytes`, `rows`, `entries`.
    pub unit: String,
}

/// Where progress goes. Must not block.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// A sink for those who don't want to know.
pub fn no_progress() -> ProgressSink {
    Arc::new(|_| ())
}

/// What there is and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Namespace.
    pub namespace: String,
    /// Adapter.
    pub store: String,
    /// Where: a directory or an address without secrets.
    pub location: String,
    /// Identity of the store; new after a restore.
    pub store_id: uuid::Uuid,
    /// Process that owns it.
    pub owner_pid: u32,
    /// What is known of that process, on a store that several can reach; `None` elsewhere.
    #[serde(default)]
    pub owner: Option<StoreOwner>,
    /// `step_by_step` or `pipeline`.
    pub commit_mode: String,
    /// Epoch of the timestamp oracle.
    pub epoch: u64,
    /// Last timestamp issued.
    pub last_timestamp: Timestamp,
    /// The greatest timestamp that may be issued before the persisted bound has to move.
    pub timestamp_bound: Timestamp,
    /// No transaction below this is open.
    pub immutable_ts: Timestamp,
    /// Open transactions.
    pub open_transactions: u64,
    /// Tables of applications.
    pub tables: Vec<TableInfo>,
    /// The backup lock, if held.
    pub backup_lock: Option<BackupLockRecord>,
    /// The last backup taken from this store.
    pub last_backup: Option<BackupInfo>,
    /// Milliseconds since the owner opened the store.
    pub uptime_ms: u64,
    /// Version of the program that owns the store.
    pub version: String,
}

/// The process that owns a store which several can reach, and its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreOwner {
    /// What it is, such as `atlas serve`.
    pub program: String,
    /// Its process id.
    pub pid: u32,
    /// The machine it runs on.
    pub host: String,
    /// Where it answers over gRPC, if it does.
    pub address: Option<String>,
    /// Since when it owns the store, RFC 3339.
    pub since: String,
    /// How long it may be silent before another one takes over, in milliseconds.
    pub lease_ms: u64,
    /// How long ago it renewed its lease, in milliseconds.
    pub lease_age_ms: u64,
}

/// A finding of the doctor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorFinding {
    /// Name of the check.
    pub check: String,
    /// How it went.
    pub level: FindingLevel,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingLevel {
    /// As it should be.
    Ok,
    /// Works, but somebody should look.
    Warn,
    /// Broken.
    Fail,
}
