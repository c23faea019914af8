//! Opening a store for transactions, and beginning them.

use super::cell_cache::CellCache;
use super::claim::Claim;
use super::constraint::Constraint;
use super::core::{CommitPath, Core, SchemaCache};
use super::entry::{CleanedWindows, Entry, TransactionsFloor, transactions_table};
use super::handle::{Attempt, Start, Transaction};
use super::mend::Mender;
use super::pipeline::{Groups, Pipeline};
use super::predecessors::Predecessors;
use super::step_by_step::{SETTLE_WITHIN, StepByStep};
use super::sweep_queue::sweep_queue_table;
use super::swept::SweptTables;
use super::table::TransactionTable;
use super::tracker::{Begun, SnapshotTracker};
use super::turns::{NextAttempt, Turns};
use crate::config::{CommitModeChoice, TransactionConfig};
use crate::lock::LockService;
use crate::ops::BeginOptions;
use crate::rule::Rule;
use crate::schema::{ConflictHandler, FORMAT_VERSION, MetaRecord, Replaced, StoreRecord, refuse_unfinished_restore};
use crate::timestamp::{LeaseOptions, TimestampOracle, read_stored};
use crate::{Error, Result};
use atlas_kvs::{
    AtomicScan, Durability, KeyValueService, KvsError, Ownership, RowRange, TableKind, TableRef, Timestamp,
};
use bytes::Bytes;
use futures::stream::StreamExt;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many of the newest entries are checked against the timestamp bound when a store is opened.
const ENTRIES_CHECKED_AT_OPEN: usize = 1000;
/// How long an earlier user of the store in this process may take to end.
const CLAIM_ATTEMPTS: u32 = 100;
const CLAIM_PAUSE: Duration = Duration::from_millis(50);

/// Begins transactions on one store; the only one to do so in this process.
#[derive(Clone, Debug)]
pub struct TransactionManager {
    core: Arc<Core>,
    locks: Arc<LockService>,
    store: Arc<StoreRecord>,
    work_ids: Arc<AtomicU64>,
    turns: Arc<Turns>,
}

/// How to open a store for transactions.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The namespace the store must belong to, or will.
    pub namespace: String,
    /// Limits and time-outs.
    pub transactions: TransactionConfig,
    /// Whether a commit waits until it would survive the loss of power.
    pub durability: Durability,
    /// How to become its owner, on a store that several processes share.
    pub lease: LeaseOptions,
}

impl TransactionManager {
    /// Checks a store, takes over its timestamps, and makes it ready for transactions.
    ///
    /// # Errors
    /// [`Error::Refused`] for another namespace, format, commit mode, or an unfinished restore, and those of
    /// [`TimestampOracle::open_with`]; [`Error::Corrupt`] if the store contradicts itself.
    pub async fn open(kvs: Arc<dyn KeyValueService>, options: OpenOptions) -> Result<TransactionManager> {
        let pipeline = uses_pipeline(kvs.as_ref(), options.transactions.commit_mode)?;
        refuse_unfinished_restore(&kvs).await?;
        MetaRecord::<StoreRecord>::create_table(kvs.as_ref()).await?;
        let store = open_store_record(kvs.clone(), &options.namespace, mode_name(pipeline)).await?;
        // Once more: a restore that begins now sees our record, or we see its marker.
        refuse_unfinished_restore(&kvs).await?;
        kvs.create_table(&transactions_table(), TableKind::Atomic, Bytes::new()).await?;
        kvs.create_table(&sweep_queue_table(), TableKind::Versioned, Bytes::new()).await?;
        refuse_open_window(&CleanedWindows::load(kvs.clone()).await?)?;
        check_bound(kvs.clone()).await?;
        let exclusive = matches!(kvs.ownership(), Ownership::Exclusive(_));
        // Elsewhere the lease sees to it, over all processes.
        let claim = if pipeline && exclusive { Some(claim(kvs.as_ref()).await?) } else { None };
        let oracle = Arc::new(TimestampOracle::open_with(kvs.clone(), options.lease.clone()).await?);
        let windows = match windows_of_owner(kvs.clone(), oracle.last_issued().next()).await {
            Ok(windows) => windows,
            Err(error) => {
                // So that the command which is needed now need not wait for our lease to run out.
                let _ = oracle.release().await;
                return Err(error);
            }
        };
        // Everything that was issued before lies below the bound we start at, and nothing of it is on its way: it was
        // a write of this process, or the fence stops it. What commits step by step is met by readers as undecided, and
        // by whoever settles.
        let tracker = SnapshotTracker::new(oracle.last_issued());
        let floor = TransactionsFloor::load(kvs.clone()).await?;
        let entries = Arc::new(TransactionTable::new(kvs.clone(), windows, floor));
        let locks = Arc::new(LockService::with_clock(oracle.epoch(), Default::default(), options.lease.clock.clone()));
        let config = options.transactions;
        let mender = Arc::new(Mender::new(kvs.clone()));
        let schema = Arc::new(SchemaCache::new(kvs.clone()));
        let whole = pipeline.then(|| CellCache::new(config.cell_cache.len(), tracker.watermark().next())).flatten();
        let cells = whole.map(Arc::new);
        let path = if pipeline {
            CommitPath::Pipeline(Pipeline::start(
                kvs.clone(),
                oracle.clone(),
                tracker.clone(),
                entries.clone(),
                schema.clone(),
                cells.clone(),
                Groups { durability: options.durability, size_max: config.group_size_max.len(), claim },
            ))
        } else {
            let (entries, oracle, mender) = (entries.clone(), oracle.clone(), mender.clone());
            let predecessors = Predecessors::new(kvs.clone(), entries.clone(), tracker.watermark().next());
            let (locks, timeout) = (locks.clone(), config.lock_timeout);
            let steps = StepByStep::new(locks, entries, oracle, mender, predecessors, timeout);
            CommitPath::StepByStep(Box::new(steps))
        };
        let constraints = RwLock::new(HashMap::new());
        // Read after the takeover: a former owner that swept had it written down while its lease was valid.
        let swept = SweptTables::load(kvs.clone()).await?;
        let core = Core { kvs, oracle, tracker, entries, schema, constraints, config, mender, swept, cells, path };
        let (core, store, work_ids) = (Arc::new(core), Arc::new(store), Arc::new(AtomicU64::new(1)));
        Ok(TransactionManager { core, locks, store, work_ids, turns: Arc::default() })
    }

    /// The store below.
    pub fn kvs(&self) -> &Arc<dyn KeyValueService> {
        &self.core.kvs
    }

    /// The issuer of timestamps.
    pub fn oracle(&self) -> &Arc<TimestampOracle> {
        &self.core.oracle
    }

    /// The lock service.
    pub fn locks(&self) -> &Arc<LockService> {
        &self.locks
    }

    /// What the store is.
    pub fn store(&self) -> &StoreRecord {
        &self.store
    }

    /// `pipeline` or `step_by_step`.
    pub fn commit_mode(&self) -> &'static str {
        self.core.path.name()
    }

    /// How many transactions are open.
    pub fn open_transactions(&self) -> u64 {
        self.core.tracker.open_snapshots()
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// Those of the timestamp oracle; [`Error::Usage`] for a snapshot in the future. Cancel safe.
    pub async fn begin(&self, options: BeginOptions) -> Result<Transaction> {
        let dependency = match (&self.core.path, options.lost_to) {
            (CommitPath::Pipeline(pipeline), Some(lost_to)) => pipeline.build_on(lost_to),
            _ => None,
        };
        self.begin_attempt(options, self.new_work(), NextAttempt { turn: None, dependency }).await
    }

    pub(crate) fn new_work(&self) -> Attempt {
        Attempt { work_id: self.work_ids.fetch_add(1, Ordering::Relaxed), losses: 0 }
    }

    pub(crate) async fn begin_attempt(
        &self,
        options: BeginOptions,
        attempt: Attempt,
        again: NextAttempt,
    ) -> Result<Transaction> {
        // Where memory answers everything nothing else ever makes way for other tasks of the thread.
        tokio::task::coop::consume_budget().await;
        let core = &self.core;
        // Before the snapshot is registered: a transaction must not believe that it may still read when it does not count
        // any more.
        let began = tokio::time::Instant::now();
        let timeout = options.timeout.unwrap_or(core.config.timeout);
        let begun = match (options.at, &core.path) {
            (Some(at), _) => self.begin_in_the_past(at, timeout).await,
            (None, CommitPath::Pipeline(_)) => core.tracker.begin_at_watermark(&core.oracle, timeout).await,
            (None, CommitPath::StepByStep(_)) => core.tracker.begin_at_start(&core.oracle, timeout).await,
        };
        let begun = match begun {
            Ok(begun) => begun,
            Err(error) => {
                // The timestamp bound may be what could not be written.
                core.mender.after(&error).await;
                return Err(error);
            }
        };
        let read_only = options.read_only || options.at.is_some();
        let NextAttempt { turn, dependency } = again;
        let dependency = dependency.filter(|_| options.at.is_none()).and_then(|seen| seen.above(begun.read_ts));
        let start = Start { begun, dependency, turn, read_only, timeout, attempt, began };
        Ok(Transaction::new(core.clone(), start))
    }

    async fn begin_in_the_past(&self, at: Timestamp, timeout: Duration) -> Result<Begun> {
        if at > self.core.tracker.watermark().next() {
            // A timestamp that was issued can be read at once the commits below it are settled.
            self.settle(at.min(self.core.oracle.last_issued().next())).await?;
        }
        let registration = self.core.tracker.register_past(at, timeout)?;
        Ok(Begun { start_ts: self.core.oracle.fresh().await?, read_ts: at, registration })
    }

    /// Waits until the fate of every transaction with a commit timestamp below `up_to` is settled, and visible; for a
    /// minute, as [`settle_within`](Self::settle_within) does.
    pub async fn settle(&self, up_to: Timestamp) -> Result<()> {
        self.settle_within(up_to, SETTLE_WITHIN).await
    }

    /// Waits until the fate of every transaction with a commit timestamp below `up_to` is settled, and visible.
    /// `up_to` must have been issued before the call.
    ///
    /// Where commits go step by step, those that take longer than `patience` are rolled back, and so are those of
    /// former owners. The first call after a store was opened looks at what former owners left, and takes as long as
    /// that takes. The pipeline decides each group by itself, and `patience` means nothing to it.
    ///
    /// # Errors
    /// Those of the store; nothing is promised then. Cancel safe.
    pub async fn settle_within(&self, up_to: Timestamp, patience: Duration) -> Result<()> {
        if !Rule::SettleBeforeCopy.is_kept() {
            return Ok(());
        }
        match &self.core.path {
            CommitPath::Pipeline(pipeline) => pipeline.settle().await?,
            CommitPath::StepByStep(steps) => {
                steps.settle(up_to, patience).await?;
                self.core.tracker.publish(up_to.previous());
            }
        }
        Ok(())
    }

    /// The timestamp below which no transaction is open.
    pub async fn immutable_ts(&self) -> Result<Timestamp> {
        match &self.core.path {
            CommitPath::Pipeline(pipeline) => pipeline.settle().await?,
            // Open transactions are registered, so with none open everything issued so far is in the past.
            CommitPath::StepByStep(_) => self.core.tracker.publish(self.core.oracle.last_issued()),
        }
        Ok(self.core.tracker.immutable_ts())
    }

    /// What all transactions of the store share: for sweep.
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// From now on `constraint` is checked for every cell written to `table` by this process.
    pub fn add_constraint(&self, table: &TableRef, constraint: Constraint) {
        self.core.constraints.write().entry(table.clone()).or_default().push(constraint);
    }

    /// Forgets what was known of a table that was created, changed or removed.
    pub(crate) fn forget_table(&self, table: &TableRef) {
        self.core.schema.forget(table);
    }

    /// Forgets what is remembered of cells, after a table was dropped or what was in it removed, or that was tried.
    ///
    /// A group that was applied before the removal may be noted after this: that changes what is held, and nothing is.
    pub(crate) fn forget_cells<T>(&self, removed: &std::result::Result<T, KvsError>) {
        let Some(cells) = self.core.cells.as_ref().filter(|_| Rule::ForgetWhatWasRemoved.is_kept()) else { return };
        match removed {
            // It may still come, and nobody would be told when.
            Err(error) if error.is_indeterminate() => cells.close(),
            _ => cells.forget_all(),
        }
    }

    /// A table is about to be dropped. A later one of its name may make other promises than those who used it knew.
    pub(crate) fn begin_drop(&self, table: &TableRef, handler: ConflictHandler) {
        let (now, oldest) = (self.core.oracle.last_issued(), self.core.tracker.immutable_ts());
        self.core.schema.begin_drop(table, handler, now, oldest);
    }

    /// Whether making the table with this handler changes what it promises to transactions that are open.
    pub(crate) fn changes_by_creation(&self, table: &TableRef, handler: ConflictHandler) -> bool {
        self.core.schema.had_another_handler(table, handler)
    }

    /// Changes what a table promises, by `change`, which writes it. Safe while transactions run: those that used the
    /// table before do not commit after it and are done anew; those that begin after it go by the new promises.
    ///
    /// Done to its end even if the caller goes away.
    pub(crate) async fn change_table<T: Send + 'static>(
        &self,
        table: &TableRef,
        change: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (manager, table) = (self.clone(), table.clone());
        let work = async move {
            let schema = &manager.core.schema;
            let _alone = schema.one_at_a_time().await;
            schema.begin_change(&table);
            let ends = EndChange { core: &manager.core, table: &table };
            let changed = change.await;
            drop(ends);
            changed
        };
        match tokio::spawn(work).await {
            Ok(changed) => changed,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Error::Interrupted),
            },
        }
    }

    /// Waits until whoever begins does so above every change of a table made so far: otherwise his first attempt may be
    /// lost. Waits for the commits under way.
    pub(crate) async fn begin_above_changes(&self) {
        if let CommitPath::Pipeline(pipeline) = &self.core.path {
            let _ = self.core.oracle.fresh().await;
            let _ = pipeline.settle().await;
        }
    }

    /// True once the timestamps were given up.
    pub(crate) fn is_closed(&self) -> bool {
        self.core.oracle.is_lost()
    }

    pub(crate) fn abandon(&self, attempt: Attempt) {
        if let CommitPath::Pipeline(pipeline) = &self.core.path
            && attempt.losses > 0
        {
            pipeline.release(attempt.work_id);
        }
    }

    /// Who may try next after losing what stands in a conflict.
    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
    }

    pub(crate) fn attempts_max(&self) -> u32 {
        self.core.config.attempts_max
    }

    pub(crate) fn lock_timeout(&self) -> Duration {
        self.core.config.lock_timeout
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.core.config.timeout
    }

    /// Does what an owner does now and then where commits go step by step: decides what former owners left behind, and
    /// notes how far all is decided, so that the next owner has little to look at. [`Atlas`](crate::Atlas) sees to it
    /// by itself.
    ///
    /// # Errors
    /// Those of the store; nothing is lost then. Cancel safe.
    pub async fn tidy(&self) -> Result<()> {
        match &self.core.path {
            CommitPath::Pipeline(_) => Ok(()),
            CommitPath::StepByStep(steps) => steps.tidy(&self.core.tracker).await,
        }
    }

    /// Finishes the commits under way and gives the timestamps up. The store stays open. Commits that take longer than
    /// transactions may, or than a minute, are rolled back.
    pub async fn close(&self) -> Result<()> {
        match &self.core.path {
            CommitPath::Pipeline(pipeline) => pipeline.stop().await,
            // Before the timestamps are given up: a successor begins at once, and must find all of it decided.
            CommitPath::StepByStep(steps) => {
                steps.close(&self.core.tracker, self.core.config.timeout.min(SETTLE_WITHIN)).await;
            }
        }
        self.core.oracle.release().await
    }
}

/// Ends the change of a table, however it ends: also after a failure nobody knows which promises were read meanwhile.
struct EndChange<'a> {
    core: &'a Core,
    table: &'a TableRef,
}

impl Drop for EndChange<'_> {
    fn drop(&mut self) {
        // The next number, not one that is drawn: that may fail, and the table would be of no use.
        self.core.schema.end_change(self.table, || self.core.oracle.last_issued().next());
    }
}

/// How transactions commit on this store if it is opened with `choice`.
///
/// # Errors
/// [`Error::Config`] for a choice that the store does not allow.
pub(crate) fn commit_mode_for(kvs: &dyn KeyValueService, choice: CommitModeChoice) -> Result<&'static str> {
    uses_pipeline(kvs, choice).map(mode_name)
}

fn mode_name(pipeline: bool) -> &'static str {
    if pipeline { "pipeline" } else { "step_by_step" }
}

/// The right to commit on the store. An earlier user of it in this process may still be ending.
async fn claim(kvs: &dyn KeyValueService) -> Result<Claim> {
    for _ in 0..CLAIM_ATTEMPTS {
        match Claim::try_new(kvs) {
            Some(claim) => return Ok(claim),
            None => tokio::time::sleep(CLAIM_PAUSE).await,
        }
    }
    Err(Error::refused(
        "the store is in use by this process already: it was opened for transactions and not closed",
        "open a store once and clone the handle; close it before you open it again",
    ))
}

/// The pipeline wants atomic batches. Where other processes can write too, each batch carries the fence of its owner.
fn uses_pipeline(kvs: &dyn KeyValueService, choice: CommitModeChoice) -> Result<bool> {
    let capabilities = kvs.capabilities();
    let possible = capabilities.atomic_batch;
    match choice {
        CommitModeChoice::Auto => Ok(possible && capabilities.persistent),
        CommitModeChoice::StepByStep => Ok(false),
        CommitModeChoice::Pipeline if possible => Ok(true),
        CommitModeChoice::Pipeline => Err(Error::Config {
            place: "transactions.commitMode".to_owned(),
            reason: format!("the commit pipeline needs a store with atomic batches, not {}", capabilities.store),
        }),
    }
}

/// The record of the store, made if this is its first opening.
async fn open_store_record(kvs: Arc<dyn KeyValueService>, namespace: &str, mode: &str) -> Result<StoreRecord> {
    let stored = MetaRecord::<StoreRecord>::new(kvs, "store");
    let found = match stored.load().await? {
        Some((record, _)) => record,
        None => {
            let record = StoreRecord {
                format_version: FORMAT_VERSION,
                store_id: uuid::Uuid::new_v4(),
                namespace: namespace.to_owned(),
                commit_mode: mode.to_owned(),
                created: jiff::Timestamp::now().to_string(),
                restored_from: None,
            };
            match stored.replace(None, Some(&record)).await? {
                Replaced::Done(_) => record,
                Replaced::Other(Some((other, _))) => other,
                Replaced::Other(None) => {
                    return Err(Error::corrupt("record 'store'", "it can neither be read nor written"));
                }
            }
        }
    };
    if found.format_version > FORMAT_VERSION {
        return Err(Error::refused(
            format!("the store has format {}, this program knows up to {FORMAT_VERSION}", found.format_version),
            "open it with the version of atlas that wrote it, or a newer one",
        ));
    }
    if found.namespace != namespace {
        return Err(other_namespace(&found.namespace, namespace));
    }
    if found.commit_mode != mode {
        return Err(Error::refused(
            format!("transactions on this store commit in mode '{}', not '{mode}'", found.commit_mode),
            format!("set `transactions.commitMode: {}` or leave it out", found.commit_mode),
        ));
    }
    Ok(found)
}

/// The store is not the one that is meant.
pub(crate) fn other_namespace(found: &str, wanted: &str) -> Error {
    Error::refused(
        format!("the store belongs to namespace '{found}', the configuration says '{wanted}'"),
        "set `namespace` to that of the store, or name another store",
    )
}

/// While a restore is under way nobody may begin: what he reads and commits would be neither before nor after it.
fn refuse_open_window(windows: &CleanedWindows) -> Result<()> {
    match windows.open_window() {
        None => Ok(()),
        Some(window) => Err(Error::refused(
            format!(
                "a restore to timestamp {} is under way: its transactions were cleaned, but time was not moved on",
                window.from
            ),
            "finish it: `atlas timestamp fast-forward --file fast-forward.timestamp`",
        )),
    }
}

/// The cleaned windows, read by the owner: an earlier look may have missed a restore that another owner began since.
async fn windows_of_owner(kvs: Arc<dyn KeyValueService>, first: Timestamp) -> Result<CleanedWindows> {
    let windows = CleanedWindows::load(kvs).await?;
    refuse_open_window(&windows)?;
    // A commit inside a window does not count: one that was acknowledged there would be lost.
    match windows.windows.iter().filter_map(|window| window.until).max() {
        Some(until) if until > first => Err(Error::corrupt(
            "the timestamp bound",
            format!(
                "time would go on at {first}, but what commits below {until} was cleaned by a restore; run `atlas \
                 timestamp fast-forward -t {until}`"
            ),
        )),
        _ => Ok(windows),
    }
}

/// Refuses a store whose entries are ahead of its clock: it would issue numbers that were used.
async fn check_bound(kvs: Arc<dyn KeyValueService>) -> Result<()> {
    let mut greatest = None;
    let newest = AtomicScan::new(RowRange::all()).reversed();
    let mut entries = kvs.scan_atomic(&transactions_table(), newest).take(ENTRIES_CHECKED_AT_OPEN);
    while let Some(found) = entries.next().await {
        let (cell, bytes) = found?;
        let start_ts = Entry::start_ts_of(&cell)?;
        let seen = match Entry::decode(start_ts, &bytes)? {
            Entry::Committed(commit_ts) => commit_ts,
            Entry::RolledBack => start_ts,
        };
        greatest = greatest.max(Some(seen));
    }
    // Where entries have gone, the floor tells how far time had come at least.
    greatest = greatest.max(Some(TransactionsFloor::load(kvs.clone()).await?.below.previous()));
    // After the entries: an owner that is at work moves the bound before it writes entries up to it.
    let bound = read_stored(kvs.clone()).await?.map_or(Timestamp::FIRST, |record| record.bound);
    match greatest {
        Some(seen) if seen >= bound => Err(Error::corrupt(
            "the timestamp bound",
            format!(
                "timestamp {seen} was used but the bound is {bound}: parts of this store are from different times. \
                 If it is a restored copy, run `atlas timestamp fast-forward` with a timestamp above {seen}"
            ),
        )),
        _ => Ok(()),
    }
}
