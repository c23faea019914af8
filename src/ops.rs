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

    /// The greatest timestamp known to have been issued at or before a wall-clock time, in milliseconds since 1970.
    async fn punched(&self, millis: i64) -> Result<Option<Punch>>;

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

    /// Sweeps whole tables now, whatever the queue knows: for what was imported, restored, or left by a crash. Dropping the
    /// future ends it after the batch under way; the same request goes on where it was.
    async fn sweep(&self, request: SweepRequest, progress: ProgressSink) -> Result<SweepReport>;

    /// How far sweep is behind, and why it stands still if it does.
    async fn sweep_status(&self) -> Result<SweepStatus>;

    /// Stops background sweep until it is resumed, over restarts too; answers how it is then.
    async fn sweep_pause(&self, reason: &str) -> Result<SweepStatus>;

    /// Lets background sweep go on; answers how it is then.
    async fn sweep_resume(&self) -> Result<SweepStatus>;

    /// Deletes cells and every version of them, and returns when none is left in the store; `BackupLockHeld` while the
    /// backup lock is held. Backups keep theirs.
    ///
    /// The cells are deleted by a transaction first, so after an error they are gone for readers, or nothing was done.
    async fn hard_delete(&self, table: &TableRef, cells: &[Cell], patience: Duration) -> Result<HardDeleted>;

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

    /// Whether it sees commits that are still being written, as [`BeginOptions::lost_to`] asks for.
    fn is_tentative(&self) -> bool {
        false
    }

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
    /// The commit that an earlier attempt of the same work lost to ([`Error::Conflict`](crate::Error::Conflict),
    /// [`Error::ReadConflict`](crate::Error::ReadConflict)): this one would like to see it, and may see all that is being
    /// written. If that is not durable yet, what is read counts only once [`commit`](TransactionOps::commit) has
    /// succeeded, which waits for it or fails. A wish: where it can't be granted, the snapshot is what is durable. Not for
    /// transactions of the past.
    pub lost_to: Option<Timestamp>,
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
    /// What is read is hardly needed again, and need not drive anything else out of the store's caches; a hint, which a server
    /// is not told.
    pub bypass_cache: bool,
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
    /// Most bytes to copy in a second, so that the store has its disk and its processors for others; `None`: as configured
    /// (`backup.rateLimit`), 0: no limit.
    pub rate_limit: Option<u64>,
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

/// A timestamp, and what the clock showed when it was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Punch {
    /// The timestamp.
    pub timestamp: Timestamp,
    /// The clock, in milliseconds since 1970.
    pub millis: i64,
}

/// What to sweep by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepRequest {
    /// One table; `None`: every table of the application.
    pub table: Option<TableRef>,
    /// Begin at this row, instead of where an earlier run was interrupted.
    pub from_row: Option<Bytes>,
    /// Count what would be removed, and remove nothing.
    pub dry_run: bool,
    /// How long to wait between batches.
    pub pause: Duration,
    /// Most versions to read for a batch, 1 at least.
    pub read_limit: u32,
    /// Most cells to look at in a batch, 1 at least.
    pub candidate_batch: u32,
    /// Most versions to remove in one call, 1 at least.
    pub delete_batch: u32,
}

impl Default for SweepRequest {
    fn default() -> SweepRequest {
        SweepRequest {
            table: None,
            from_row: None,
            dry_run: false,
            pause: Duration::ZERO,
            read_limit: 10_000,
            candidate_batch: 1_000,
            delete_batch: 1_000,
        }
    }
}

/// What a sweep did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    /// What readers at or above this need was kept.
    pub sweep_ts: Timestamp,
    /// Nothing was removed.
    pub dry_run: bool,
    /// Table by table.
    pub tables: Vec<SweptTableReport>,
}

/// What a sweep did with a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweptTableReport {
    /// Its name.
    pub table: String,
    /// Its sweep strategy.
    pub strategy: String,
    /// Cells looked at.
    pub cells: u64,
    /// Versions looked at, sentinels not counted.
    pub versions: u64,
    /// Versions removed.
    pub deleted: u64,
    /// Bytes of the contents of those.
    pub bytes: u64,
    /// Writers without an entry that were rolled back.
    pub rolled_back: u64,
    /// An interrupted run went on here.
    pub resumed: bool,
}

/// How sweep is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepStatus {
    /// Whether the configuration wants it.
    pub enabled: bool,
    /// Who paused it, and why.
    pub paused: Option<SweepPause>,
    /// Why it stands still, if it does: what was tried last and failed, or what holds it back.
    pub stands_still: Option<String>,
    /// The backup lock, if held: nothing is removed then.
    pub backup_lock: Option<BackupLockRecord>,
    /// What readers at or above this need is kept; nothing was granted yet without.
    pub sweep_ts: Option<Timestamp>,
    /// What keeps the next one from being greater: an open snapshot, a pin.
    pub held_by: Option<String>,
    /// Last timestamp issued.
    pub last_timestamp: Timestamp,
    /// Shards of the queue.
    pub shards: Vec<SweepShard>,
    /// Tables of applications.
    pub tables: Vec<SweepTable>,
    /// Entries of `_transactions` below this are not kept; `None` where they all are.
    pub transactions_floor: Option<Timestamp>,
    /// What this process has done since it opened the store.
    pub totals: SweepTotals,
}

/// Who paused sweep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepPause {
    /// User, host and process.
    pub holder: String,
    /// What for.
    pub reason: String,
    /// When, RFC 3339.
    pub since: String,
}

/// One shard of the sweep queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepShard {
    /// Its number.
    pub shard: u16,
    /// What was written by transactions that started below this is swept.
    pub swept_below: Timestamp,
    /// By how many timestamps it is behind the last one issued.
    pub behind: u64,
    /// The same in milliseconds of wall-clock time, where it is known.
    pub behind_ms: Option<u64>,
}

/// How far a table was swept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepTable {
    /// Its name.
    pub table: TableRef,
    /// Its sweep strategy.
    pub strategy: String,
    /// Versions that no reader at or above this needs may be gone; nothing was removed yet without.
    pub swept: Option<Timestamp>,
    /// Wall-clock time since then in milliseconds, where it is known.
    pub behind_ms: Option<u64>,
    /// The last row that a sweep by hand, which was interrupted, has looked at.
    pub interrupted_at: Option<String>,
}

/// What sweep has done in a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepTotals {
    /// Cells looked at.
    pub cells: u64,
    /// Versions removed.
    pub deleted: u64,
    /// Bytes of the contents of those.
    pub bytes: u64,
    /// Sentinels written.
    pub sentinels: u64,
    /// Writers without an entry that were rolled back.
    pub rolled_back: u64,
    /// Queue entries that were worked off.
    pub entries: u64,
    /// Partitions of the queue that were dropped.
    pub partitions: u64,
    /// Entries of `_transactions` that were removed.
    pub transactions: u64,
    /// Batches that failed and are tried again.
    pub failures: u64,
}

/// What a hard delete did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardDeleted {
    /// When the cells were deleted for readers.
    pub commit_ts: Timestamp,
    /// Versions removed, the deletion itself included.
    pub versions: u64,
}
