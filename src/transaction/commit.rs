//! Committing: the part that both modes share, and the way into the pipeline.

use super::buffer::{LocalWriteBuffer, TableWrites};
use super::core::CommitPath;
use super::dependency::Dependency;
use super::handle::{Inner, PreCommitCondition};
use super::pipeline::{Member, Payload, Pipeline, Verdict};
use super::read::Rivals;
use super::reads::Reads;
use super::recheck::{Recheck, Undecided};
use super::reservations::Loser;
use super::step::{CommitStep, reach};
use super::sweep_queue;
use super::tracker::Registration;
use super::unstamped::Unstamped;
use super::value;
use super::window::{ConflictKey, value_hash};
use crate::lock::HeldLocks;
use crate::rule::Rule;
use crate::schema::ConflictHandler;
use crate::timestamp::BatchFence;
use crate::{Error, Result};
use atlas_kvs::{AtomicBatch, BatchOp, Cell, Durability, TableRef, Timestamp};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;

/// How often a transaction is checked against the store because the window has moved past it.
const RECHECKS_MAX: u32 = 20;
/// How many bytes of a large transaction are put in one call.
const PUT_AHEAD_BYTES: usize = 4 << 20;

/// The commit of one transaction.
pub(crate) struct CommitJob {
    pub(crate) transaction: Arc<Inner>,
    pub(crate) buffer: Arc<LocalWriteBuffer>,
    pub(crate) reads: Arc<Reads>,
    pub(crate) conditions: Vec<PreCommitCondition>,
    pub(crate) locks: Vec<Arc<HeldLocks>>,
    /// Among those that lost the same conflict.
    pub(crate) turn: Mutex<Option<OwnedMutexGuard<()>>>,
    /// What it has seen above what is in the store.
    pub(crate) on_its_way: Option<Arc<Dependency>>,
    /// Keeps the snapshot registered until the outcome is known.
    pub(crate) registration: Option<Arc<Registration>>,
}

/// Handlers of the tables a transaction writes to.
pub(crate) type Handlers = BTreeMap<TableRef, ConflictHandler>;

impl CommitJob {
    /// Commits. Once anything was written or handed over, the rest happens even if the caller goes away.
    pub(crate) async fn run(self) -> Result<Timestamp> {
        let core = self.transaction.core.clone();
        let outcome = self.decide().await;
        if let Err(error) = &outcome {
            core.mender.after(error).await;
        }
        outcome
    }

    async fn decide(self) -> Result<Timestamp> {
        let transaction = self.transaction.clone();
        let mut handlers = Handlers::new();
        for (table, writes) in self.buffer.tables() {
            handlers.insert(table.clone(), transaction.spec(table).await?.conflict_handler);
            transaction.core.check_constraints(table, writes)?;
        }
        let start_ts = transaction.start_ts;
        reach(CommitStep::CheckConstraints, start_ts).await;
        match &transaction.core.path {
            CommitPath::Pipeline(pipeline) if self.buffer.size() <= transaction.core.config.pipeline_size_max.len() => {
                self.through_pipeline(pipeline, &handlers).await
            }
            // Several writes one after the other: a task of its own takes them to their end.
            CommitPath::Pipeline(_) => {
                let work = async move {
                    self.keep_registered()?;
                    self.put_ahead(&handlers).await
                };
                detach(start_ts, work).await
            }
            CommitPath::StepByStep(steps) => {
                let under_way = steps.enter()?;
                let work = async move {
                    self.keep_registered()?;
                    let outcome = self.step_by_step(handlers).await;
                    drop(under_way);
                    outcome
                };
                detach(start_ts, work).await
            }
        }
    }

    /// From here on sweep waits for this commit, however long it takes: it goes on whatever the caller does. Whoever swept
    /// may have found that the transaction has been open for too long, and counts on it that it does not commit.
    fn keep_registered(&self) -> Result<()> {
        match &self.registration {
            Some(registration) if !registration.keep() => Err(self.transaction.timed_out()),
            _ => Ok(()),
        }
    }

    async fn through_pipeline(self, pipeline: &Pipeline, handlers: &Handlers) -> Result<Timestamp> {
        reach(CommitStep::Lock, self.transaction.start_ts).await;
        self.check_required_locks()?;
        self.check_conditions().await?;
        let keys = self.conflict_keys(handlers).await?;
        let mut checked_from = self.transaction.read_ts;
        for _ in 0..RECHECKS_MAX {
            checked_from = self.check_against_store(pipeline, &keys, checked_from).await?;
            let payload = Payload::Batch {
                data: Unstamped::of(&self.buffer),
                queue: sweep_queue::chunks(&self.buffer),
                size: self.buffer.size(),
            };
            match self.enter(pipeline, keys.clone(), payload, checked_from).await {
                Entered::Done(outcome) => return outcome,
                Entered::Again => (),
            }
        }
        Err(self.overtaken())
    }

    /// A transaction too large for a shared batch: sweep entries and data first, then the pipeline with nothing but
    /// the entry. All of its puts have returned before it enters, so they lie before the entry in the store's log.
    async fn put_ahead(self, handlers: &Handlers) -> Result<Timestamp> {
        let transaction = self.transaction.clone();
        let CommitPath::Pipeline(pipeline) = &transaction.core.path else {
            unreachable!("only the pipeline puts ahead");
        };
        reach(CommitStep::Lock, transaction.start_ts).await;
        self.check_required_locks()?;
        self.check_conditions().await?;
        let keys = self.conflict_keys(handlers).await?;
        let payload = || Payload::PutAhead { cells: self.buffer.cells() };
        // Before the data too: what has lost already need not be written.
        let mut checked_from = self.check_large(pipeline, &keys, transaction.read_ts).await?;
        // No fence here, also where others can reach the store: data without an entry is never seen, however late it
        // comes, and the entry is written behind the fence.
        if !Rule::DataBeforeEntry.is_kept()
            && let Entered::Done(outcome) = self.enter(pipeline, keys.clone(), payload(), checked_from).await
        {
            self.put_queue_and_data(None).await?;
            return outcome;
        }
        if let Err(error) = self.put_queue_and_data(None).await {
            // Some of it may be there. It must never be followed by a commit, and nobody need wonder about it later.
            let _ = pipeline.roll_back(transaction.start_ts).await;
            return Err(not_applied(error));
        }
        for _ in 0..RECHECKS_MAX {
            checked_from = match self.check_large(pipeline, &keys, checked_from).await {
                Ok(checked_from) => checked_from,
                Err(error) => {
                    let _ = pipeline.roll_back(transaction.start_ts).await;
                    return Err(error);
                }
            };
            match self.enter(pipeline, keys.clone(), payload(), checked_from).await {
                Entered::Done(Err(error)) if !matches!(error, Error::UnknownOutcome { .. }) => {
                    let _ = pipeline.roll_back(transaction.start_ts).await;
                    return Err(error);
                }
                Entered::Done(outcome) => return outcome,
                Entered::Again => (),
            }
        }
        let _ = pipeline.roll_back(transaction.start_ts).await;
        Err(self.overtaken())
    }

    /// Steps 4 and 5, in bounded pieces: sweep entries before the data they speak of. Behind a fence the store refuses
    /// them once a successor has begun.
    pub(super) async fn put_queue_and_data(&self, fence: Option<&BatchFence>) -> Result<()> {
        let start_ts = self.transaction.start_ts;
        reach(CommitStep::EnqueueForSweep, start_ts).await;
        let in_order = Rule::EnqueueBeforeData.is_kept() && Rule::EnqueueBeforeCommitTs.is_kept();
        let queue = sweep_queue::entries(start_ts, &self.buffer);
        let mut bytes: usize = queue.iter().map(|(_, entry)| entry.len()).sum();
        let mut piece: Vec<(TableRef, Vec<(Cell, Bytes)>)> = vec![(sweep_queue::sweep_queue_table(), queue)];
        if !in_order {
            piece.clear();
        }
        // What goes behind a fence is a batch, which is there as a whole or not at all: no data without the entry.
        if fence.is_none() && in_order {
            self.put(std::mem::take(&mut piece), None).await?;
            bytes = 0;
        }
        for (table, writes) in self.buffer.tables() {
            piece.push((table.clone(), Vec::new()));
            for (cell, content) in writes.iter() {
                let version = value::encode(content.as_deref(), None);
                bytes += cell.row.len() + cell.column.len() + version.len();
                piece.last_mut().expect("a table was just pushed").1.push((cell.clone(), version));
                if bytes >= PUT_AHEAD_BYTES {
                    reach(CommitStep::PutData, start_ts).await;
                    self.put(std::mem::replace(&mut piece, vec![(table.clone(), Vec::new())]), fence).await?;
                    bytes = 0;
                }
            }
        }
        reach(CommitStep::PutData, start_ts).await;
        self.put(piece, fence).await?;
        if Rule::EnqueueBeforeData.is_kept() { Ok(()) } else { self.put_queue(fence).await }
    }

    /// Step 4 alone, and too late: for a test that leaves out a rule of its order.
    pub(super) async fn put_queue(&self, fence: Option<&BatchFence>) -> Result<()> {
        let queue = sweep_queue::entries(self.transaction.start_ts, &self.buffer);
        self.put(vec![(sweep_queue::sweep_queue_table(), queue)], fence).await
    }

    async fn put(&self, puts: Vec<(TableRef, Vec<(Cell, Bytes)>)>, fence: Option<&BatchFence>) -> Result<()> {
        let (kvs, ts) = (&self.transaction.core.kvs, self.transaction.start_ts);
        let Some(fence) = fence else { return Ok(kvs.put(puts, ts).await?) };
        let ops = puts.into_iter().flat_map(|(table, cells)| {
            cells.into_iter().map(move |(cell, value)| BatchOp::Put { table: table.clone(), cell, ts, value })
        });
        let batch = AtomicBatch::new(ops.collect()).guarded(Some(fence.guard()));
        // Synced whatever the setting, as a put is.
        Ok(kvs.apply(batch, Durability::Synced).await?)
    }

    async fn enter(
        &self,
        pipeline: &Pipeline,
        keys: Arc<Vec<ConflictKey>>,
        payload: Payload,
        checked_from: Timestamp,
    ) -> Entered {
        let transaction = &self.transaction;
        let attempt = transaction.attempt();
        let member = Member {
            start_ts: transaction.start_ts,
            checked_from,
            work_id: attempt.work_id,
            losses: attempt.losses,
            began: transaction.began,
            keys,
            base: transaction.base,
            reads: self.reads.clone(),
            locks: self.locks.clone(),
            payload,
            writes: self.buffer.clone(),
            dependency: self.on_its_way.clone(),
            turn: self.turn.lock().take(),
            _registration: self.registration.clone(),
        };
        let (start_ts, read_ts) = (transaction.start_ts, transaction.read_ts);
        Entered::Done(match pipeline.commit(member, || self.keep_registered()).await {
            Verdict::Committed { commit_ts, .. } => Ok(commit_ts),
            Verdict::Conflict { table, cell, committed_at } => {
                Err(Error::Conflict { table, cell, committed_at, read_ts })
            }
            Verdict::ReadConflict { table, cell, committed_at } => {
                Err(Error::ReadConflict { table, what: cell.to_string(), committed_at: Some(committed_at), read_ts })
            }
            Verdict::TableChanged(table) => Err(Error::TableChanged { table, start_ts }),
            Verdict::TooOldForWindow => return Entered::Again,
            Verdict::HasEntry => Err(Error::RolledBack { start_ts }),
            Verdict::DependencyLost => Err(Error::DependencyLost { start_ts }),
            Verdict::Failed(error) => Err(error),
            Verdict::Unknown { commit_ts, reason } => Err(Error::UnknownOutcome { start_ts, commit_ts, reason }),
        })
    }

    /// As [`check_against_store`](Self::check_against_store), telling the leader of a loss.
    async fn check_large(
        &self,
        pipeline: &Pipeline,
        keys: &[ConflictKey],
        checked_from: Timestamp,
    ) -> Result<Timestamp> {
        let checked = self.check_against_store(pipeline, keys, checked_from).await;
        if matches!(checked, Err(Error::Conflict { .. } | Error::ReadConflict { .. })) {
            let attempt = self.transaction.attempt();
            let (work_id, losses) = (attempt.work_id, attempt.losses);
            pipeline
                .lost(Loser {
                    work_id,
                    losses,
                    keys: keys.iter().chain(&self.reads.cells).cloned().collect(),
                    took: self.transaction.began.elapsed(),
                })
                .await;
        }
        checked
    }

    /// Checks commits that the leader's window has forgotten. Answers from where on the leader has to check.
    async fn check_against_store(
        &self,
        pipeline: &Pipeline,
        keys: &[ConflictKey],
        checked_from: Timestamp,
    ) -> Result<Timestamp> {
        if checked_from >= pipeline.window_floor() {
            return Ok(checked_from);
        }
        let core = &self.transaction.core;
        // Read before the check: every commit at or below it is applied, so the check sees it.
        let watermark = core.tracker.watermark();
        let read_ts = self.transaction.read_ts;
        let start_ts = self.transaction.start_ts;
        let undecided = Undecided::DecidedLater;
        core.recheck(&self.reads, Recheck { start_ts, read_ts, before: Timestamp::MAX, undecided }).await?;
        let mut by_table: BTreeMap<&TableRef, Vec<&ConflictKey>> = BTreeMap::new();
        for key in keys.iter().filter(|key| key.excludes_writers) {
            by_table.entry(&key.table).or_default().push(key);
        }
        for (table, keys) in by_table {
            let cells: Vec<Cell> = keys.iter().map(|key| key.cell.clone()).collect();
            let newest = core.newest_committed(table, &cells, Rivals::DecidedLater).await?;
            for (key, newest) in keys.into_iter().zip(newest) {
                if let Some((commit_ts, content)) = newest
                    && commit_ts >= read_ts
                    && !key.tolerates(Some(&value_hash(content.as_deref())))
                {
                    let (table, cell) = (table.clone(), key.cell.clone());
                    return Err(Error::Conflict { table, cell, committed_at: Some(commit_ts), read_ts });
                }
            }
        }
        Ok(watermark.next())
    }

    /// The cells to check, with what is needed to tell a touch from a change.
    async fn conflict_keys(&self, handlers: &Handlers) -> Result<Arc<Vec<ConflictKey>>> {
        let mut keys = Vec::with_capacity(self.buffer.tables().values().map(TableWrites::len).sum());
        for (table, writes) in self.buffer.tables() {
            let handler = handlers[table];
            // Also where writers do not exclude each other: readers of the cell must learn of the write.
            if !handler.checks_write_conflicts() && !handler.checks_reads() {
                continue;
            }
            if !handler.compares_values() {
                keys.extend(writes.keys().map(|cell| ConflictKey {
                    excludes_writers: handler.checks_write_conflicts(),
                    seen_by_ranges: handler.checks_reads(),
                    ..ConflictKey::new(table, cell)
                }));
                continue;
            }
            let cells: Vec<Cell> = writes.keys().cloned().collect();
            let read = self.transaction.see_cells(self.on_its_way.as_deref(), table, cells).await?;
            keys.extend(writes.iter().zip(read).map(|((cell, written), read)| ConflictKey {
                written: Some(Arc::new(value_hash(written.as_deref()))),
                touch: *written == read,
                ..ConflictKey::new(table, cell)
            }));
        }
        Ok(Arc::new(keys))
    }

    /// The locks the application took for this transaction.
    pub(super) fn check_required_locks(&self) -> Result<()> {
        self.locks.iter().try_for_each(|locks| locks.check())
    }

    pub(super) async fn check_conditions(&self) -> Result<()> {
        self.transaction.check_time()?;
        for condition in &self.conditions {
            condition.check(self.transaction.start_ts)?;
        }
        reach(CommitStep::PreCommitConditions, self.transaction.start_ts).await;
        Ok(())
    }

    fn overtaken(&self) -> Error {
        Error::Unavailable {
            what: "the commit pipeline".to_owned(),
            reason: format!("transaction {} was overtaken {RECHECKS_MAX} times", self.transaction.start_ts),
        }
    }
}

enum Entered {
    Done(Result<Timestamp>),
    Again,
}

/// A failed put of data that will never be committed is a failure, whatever part of it is there.
pub(super) fn not_applied(error: Error) -> Error {
    match error {
        Error::Kvs(error) if error.is_indeterminate() => Error::Unavailable {
            what: "the store".to_owned(),
            reason: format!("the transaction was given up: {error}"),
        },
        error => error,
    }
}

/// Runs a future to its end even if the caller stops waiting for it.
async fn detach(
    start_ts: Timestamp,
    work: impl Future<Output = Result<Timestamp>> + Send + 'static,
) -> Result<Timestamp> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime shuts down in the middle of it.
            Err(_) => {
                Err(Error::UnknownOutcome { start_ts, commit_ts: None, reason: "the runtime was shut down".to_owned() })
            }
        },
    }
}
