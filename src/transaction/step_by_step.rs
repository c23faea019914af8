//! Mode A: each transaction commits by itself, in ten steps, with locks.
//!
//! For stores without atomic batches. A reader may meet a version whose writer is anywhere between steps 5 and 10, and
//! waits for it; so a writer locks its own start timestamp from before its first put until its entry stands. A writer
//! that is gone is rolled back by whoever meets its data. Its own step 10 and the roll-back are both
//! `put_unless_exists` on one cell: whoever wins, wins, and both see who did.

use super::commit::{CommitJob, Handlers, not_applied};
use super::core::CommitPath;
use super::entry::{Entry, Fate};
use super::handle::Inner;
use super::mend::Mender;
use super::predecessors::Predecessors;
use super::read::Rivals;
use super::recheck::{Recheck, Undecided};
use super::step::{CommitStep, reach};
use super::table::TransactionTable;
use super::tracker::SnapshotTracker;
use super::window::value_hash;
use crate::lock::{HeldLocks, LockClient, LockDescriptor, LockRequest, LockService};
use crate::rule::Rule;
use crate::timestamp::TimestampOracle;
use crate::{Error, Result};
use atlas_kvs::{Cell, KvsError, Timestamp};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How often a lost answer at the commit point is asked for again.
const SETTLE_ATTEMPTS: u32 = 5;
const SETTLE_PAUSE: Duration = Duration::from_millis(100);
/// How long a backup waits for commits below its timestamp before it rolls them back.
pub(super) const SETTLE_WITHIN: Duration = Duration::from_secs(60);
/// How long an owner that closes looks at what former owners left.
const LOOK_BACK_WITHIN: Duration = Duration::from_secs(2);

/// What commits step by step share.
#[derive(Debug)]
pub(crate) struct StepByStep {
    locks: Arc<LockService>,
    entries: Arc<TransactionTable>,
    oracle: Arc<TimestampOracle>,
    mender: Arc<Mender>,
    lock_timeout: Duration,
    // A number is drawn while the register is locked, so that `settle` can't miss one that is drawn but not yet
    // registered.
    register: Mutex<Register>,
    concluded: Notify,
    predecessors: Predecessors,
    // Commits under way, for whoever closes.
    commits: TaskTracker,
}

/// Transactions of this owner that may still commit.
#[derive(Debug, Default)]
struct Register {
    drawn: BTreeMap<Timestamp, Drawn>,
    /// Nothing is drawn any more.
    closed: bool,
}

/// A transaction that has drawn a commit timestamp.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    start_ts: Timestamp,
    /// False when it has ended without knowing how: it is not going to conclude by itself.
    runs: bool,
}

impl Register {
    /// The transactions with a commit timestamp below `up_to`.
    fn below(&self, up_to: Timestamp) -> Vec<(Timestamp, Drawn)> {
        self.drawn.range(..up_to).map(|(commit_ts, drawn)| (*commit_ts, *drawn)).collect()
    }
}

impl StepByStep {
    pub(crate) fn new(
        locks: Arc<LockService>,
        entries: Arc<TransactionTable>,
        oracle: Arc<TimestampOracle>,
        mender: Arc<Mender>,
        predecessors: Predecessors,
        lock_timeout: Duration,
    ) -> StepByStep {
        StepByStep {
            locks,
            entries,
            oracle,
            mender,
            lock_timeout,
            register: Mutex::default(),
            concluded: Notify::new(),
            predecessors,
            commits: TaskTracker::new(),
        }
    }

    /// Notes a commit under way for as long as the token lives.
    pub(super) fn enter(&self) -> Result<TaskTrackerToken> {
        // Counted before the look: whoever closes waits for everyone who may have found it open.
        let token = self.commits.token();
        if self.commits.is_closed() { Err(self.closed()) } else { Ok(token) }
    }

    fn closed(&self) -> Error {
        self.oracle.lost_error().unwrap_or_else(|| Error::Unavailable {
            what: "the store".to_owned(),
            reason: "it is being closed".to_owned(),
        })
    }

    /// Waits for a writer that a reader has met, and rolls it back if it is gone without an entry.
    pub(super) async fn settle_writer(&self, writer: Timestamp) -> Result<Fate> {
        if !Rule::WaitForWriters.is_kept() {
            return self.entries.fate(writer).await;
        }
        self.locks.wait_for(vec![LockDescriptor::transaction(writer)], self.lock_timeout).await?;
        match self.entries.fate(writer).await? {
            Fate::Undecided => self.roll_back(writer).await,
            decided => Ok(decided),
        }
    }

    /// Writes *rolled back* unless there is an entry; the fate that stands.
    pub(super) async fn roll_back(&self, writer: Timestamp) -> Result<Fate> {
        let standing = self.entries.put_unless_exists(writer, Entry::RolledBack).await?;
        Ok(self.entries.windows().fate(Some(standing)))
    }

    /// Decides about a writer met in the conflict check of `start_ts`, which holds the locks of the cell: the writer
    /// should hold none. If it does, it is we who have lost ours, and the healthy one is spared.
    pub(super) async fn decide_rival(&self, writer: Timestamp, start_ts: Timestamp) -> Result<Fate> {
        // Locks are those of this process: of a successor's transactions they know nothing.
        self.oracle.check_held()?;
        let request = LockRequest::new(vec![LockDescriptor::transaction(writer)], Duration::ZERO);
        match self.locks.try_lock(request)? {
            None if Rule::SpareTheLiving.is_kept() => return Err(Error::LocksLost { start_ts }),
            None => (),
            Some(token) => drop(self.locks.unlock(&[token])),
        }
        self.roll_back(writer).await
    }

    /// Step 6. The oracle looks at the lease after it has chosen the number, and this is what keeps a process that
    /// sleeps from committing unnoticed: queue entry and data were answered before, so whoever passes has them in the
    /// store before any successor begins, and the successor finds them. A look later than this one would find out
    /// sooner and prove nothing, because one can always fall asleep behind it.
    async fn draw_commit_ts(&self, start_ts: Timestamp) -> Result<Timestamp> {
        loop {
            {
                let mut register = self.register.lock();
                if register.closed {
                    return Err(self.closed());
                }
                if let Some(range) = self.oracle.try_fresh_range(1)? {
                    register.drawn.insert(range.first, Drawn { start_ts, runs: true });
                    return Ok(range.first);
                }
            }
            // The block is used up: move the bound outside the register, at the price of a number.
            self.oracle.fresh().await?;
        }
    }

    fn conclude(&self, commit_ts: Timestamp) {
        self.register.lock().drawn.remove(&commit_ts);
        self.concluded.notify_waiters();
    }

    /// The transaction has ended, and may commit all the same: whoever settles rolls it back.
    fn leave_undecided(&self, commit_ts: Timestamp) {
        if let Some(drawn) = self.register.lock().drawn.get_mut(&commit_ts) {
            drawn.runs = false;
        }
        self.concluded.notify_waiters();
    }

    /// Returns when the fate of every transaction with a commit timestamp below `up_to` is settled, so that none can
    /// commit later: those of former owners first, then ours, for which it waits. Those that take longer than
    /// `patience` are rolled back. Waiting for locks would not be enough: a client between steps 9 and 10 may have lost
    /// them and still commit.
    pub(crate) async fn settle(&self, up_to: Timestamp, patience: Duration) -> Result<()> {
        if Rule::DecidePredecessors.is_kept() {
            self.predecessors.decide().await?;
        }
        if !Rule::SettleByRegister.is_kept() {
            let drawn = self.register.lock().below(up_to);
            let writers = drawn.into_iter().map(|(_, drawn)| LockDescriptor::transaction(drawn.start_ts)).collect();
            return self.locks.wait_for(writers, patience).await;
        }
        let waited = tokio::time::timeout(patience, async {
            loop {
                let concluded = self.concluded.notified();
                tokio::pin!(concluded);
                concluded.as_mut().enable(); // Before the look: a conclusion between look and wait must wake us.
                if !self.register.lock().below(up_to).iter().any(|(_, drawn)| drawn.runs) {
                    return;
                }
                concluded.await;
            }
        });
        if waited.await.is_err() {
            tracing::warn!(%up_to, "commits that take too long are rolled back");
        }
        self.roll_back_drawn(up_to).await
    }

    /// Rolls back whoever has drawn a commit timestamp below `up_to` and may still commit.
    async fn roll_back_drawn(&self, up_to: Timestamp) -> Result<()> {
        self.roll_back_those(|_| true, up_to).await
    }

    /// Rolls back those whose transactions ended without knowing how: nobody else is going to, unless a reader meets
    /// their data or a backup is taken, and as long as they stand in the register the mark does not pass them.
    async fn roll_back_ended(&self) -> Result<()> {
        self.roll_back_those(|drawn| !drawn.runs, Timestamp::MAX).await
    }

    async fn roll_back_those(&self, which: impl Fn(&Drawn) -> bool, up_to: Timestamp) -> Result<()> {
        let late = self.register.lock().below(up_to);
        for (commit_ts, drawn) in late.into_iter().filter(|(_, drawn)| which(drawn)) {
            self.roll_back(drawn.start_ts).await?;
            self.conclude(commit_ts);
        }
        Ok(())
    }

    /// Moves the mark below which no transaction can commit any more unless it has, so that the next owner has less to
    /// look at.
    pub(crate) async fn note_decided(&self, tracker: &SnapshotTracker) -> Result<()> {
        if !self.predecessors.are_decided() {
            return Ok(());
        }
        // Open transactions are registered in the tracker from before they have a number until their commit has ended;
        // those that ended undecided are in the register by then, which is therefore looked at second.
        tracker.publish(self.oracle.last_issued());
        let open = tracker.immutable_ts();
        let undecided = self.register.lock().drawn.values().map(|drawn| drawn.start_ts).min();
        self.predecessors.raise_mark(undecided.map_or(open, |start_ts| open.min(start_ts))).await
    }

    /// Decides what former owners left, and what ended here without an answer, and moves the mark.
    pub(crate) async fn tidy(&self, tracker: &SnapshotTracker) -> Result<()> {
        self.predecessors.decide().await?;
        let decided = self.roll_back_ended().await;
        // What can't be decided yet holds the mark back where it is; what lies below it need not wait for that.
        self.note_decided(tracker).await?;
        decided
    }

    /// Waits for the commits under way, for as long as `patience` says, and sees to it that none commits later: the
    /// next owner must not meet one between steps 9 and 10. Commits that come from now on are refused.
    pub(crate) async fn close(&self, tracker: &SnapshotTracker, patience: Duration) {
        self.commits.close();
        if tokio::time::timeout(patience, self.commits.wait()).await.is_err() {
            tracing::warn!("commits that take too long are given up by closing the store");
        }
        self.register.lock().closed = true;
        if self.oracle.is_lost() {
            return; // They are the successor's to decide, and so is the mark.
        }
        let decided = async {
            self.roll_back_drawn(Timestamp::MAX).await?;
            // An owner that lived shortly has not looked at what those before it left, and after an orderly end there is
            // nothing. What a crash left may take long, and whoever closes is not kept waiting for it.
            match tokio::time::timeout(LOOK_BACK_WITHIN, self.predecessors.decide()).await {
                Ok(decided) => decided?,
                Err(_) => tracing::debug!("the next owner goes on deciding what former ones left"),
            }
            self.note_decided(tracker).await
        };
        // The next owner decides what is left, as it would after a crash.
        if let Err(error) = decided.await {
            tracing::warn!(%error, "some commits under way are left for the next owner to decide");
        }
    }

    /// Step 10. A lost answer is settled by writing again: the same entry while the locks are held, *rolled back*
    /// otherwise. Reading would prove nothing: an entry that is absent now may still be on its way.
    async fn record(&self, start_ts: Timestamp, commit_ts: Timestamp, locks: &HeldLocks) -> Result<Timestamp> {
        let mut entry = Entry::Committed(commit_ts);
        let mut reason = String::new();
        for attempt in 0..SETTLE_ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(SETTLE_PAUSE).await;
                entry = if locks.check().is_ok() { Entry::Committed(commit_ts) } else { Entry::RolledBack };
            }
            match self.entries.put_unless_exists(start_ts, entry).await {
                Ok(Entry::Committed(standing)) if standing == commit_ts => return Ok(commit_ts),
                Ok(Entry::RolledBack) if !Rule::BelieveTheEntry.is_kept() => return Ok(commit_ts),
                Ok(Entry::RolledBack) => return Err(Error::RolledBack { start_ts }),
                Ok(Entry::Committed(other)) => {
                    let place = format!("the entry of transaction {start_ts}");
                    return Err(Error::corrupt(place, format!("it committed at {other}, not at our {commit_ts}")));
                }
                // The first attempt failed for certain: nothing is there, and nothing will be.
                Err(Error::Kvs(error)) if attempt == 0 && !error.is_indeterminate() => return Err(error.into()),
                Err(error) if !Rule::SettleByWriting.is_kept() => return Err(not_applied(error)),
                Err(error) => {
                    self.mender.after(&error).await;
                    reason = error.to_string();
                }
            }
        }
        Err(Error::UnknownOutcome { start_ts, commit_ts: Some(commit_ts), reason })
    }
}

/// A commit timestamp that others may be waiting for.
struct Registered<'a> {
    steps: &'a StepByStep,
    commit_ts: Timestamp,
    decided: bool,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if self.decided {
            self.steps.conclude(self.commit_ts);
        } else {
            self.steps.leave_undecided(self.commit_ts);
        }
    }
}

impl CommitJob {
    /// The ten steps.
    pub(super) async fn step_by_step(self, handlers: Handlers) -> Result<Timestamp> {
        let transaction = self.transaction.clone();
        let CommitPath::StepByStep(steps) = &transaction.core.path else {
            unreachable!("only this path commits step by step");
        };
        let start_ts = transaction.start_ts;
        if !Rule::LockBeforeCheck.is_kept() {
            self.check_write_conflicts(steps, &handlers).await?;
        }
        let locks = self.lock(steps, &handlers).await?;
        reach(CommitStep::Lock, start_ts).await;
        if Rule::LockBeforeCheck.is_kept() {
            self.check_write_conflicts(steps, &handlers).await?;
        }
        reach(CommitStep::CheckWriteConflicts, start_ts).await;
        let too_early = match Rule::DataBeforeCommitTs.is_kept() && Rule::DataBeforeEntry.is_kept() {
            true => None,
            false => Some(steps.draw_commit_ts(start_ts).await?),
        };
        if !Rule::RecheckAfterData.is_kept() {
            self.recheck(steps, steps.oracle.last_issued().next()).await?;
        }
        if !Rule::CheckLocksLast.is_kept() {
            locks.check()?;
        }
        if let (Some(commit_ts), false) = (too_early, Rule::DataBeforeEntry.is_kept()) {
            steps.record(start_ts, commit_ts, &locks).await?;
        }
        // Behind the fence, where there is one: then it is the store that keeps out what comes after a takeover, and no
        // clock need be right for it.
        let fence = steps.oracle.batch_fence().filter(|_| Rule::GuardData.is_kept());
        if let Err(error) = self.put_queue_and_data(fence.as_deref()).await {
            if let Error::Kvs(KvsError::GuardFailed { .. }) = error {
                return Err(steps.oracle.lose("another instance has raised the fence in the store"));
            }
            // Whatever is there must never commit; readers need not find that out one by one.
            let _ = steps.roll_back(start_ts).await;
            return Err(not_applied(error));
        }
        if !Rule::RecheckAfterCommitTs.is_kept() {
            self.recheck(steps, steps.oracle.last_issued().next()).await?;
        }
        let commit_ts = match too_early {
            None => steps.draw_commit_ts(start_ts).await?,
            Some(commit_ts) => commit_ts,
        };
        reach(CommitStep::TakeCommitTs, start_ts).await;
        // Decided by a definite outcome only: a commit whose task ends in the middle of step 10, with its runtime or by a
        // panic, may still commit, and whoever settles rolls it back.
        let mut registered = Registered { steps, commit_ts, decided: false };
        let outcome = self.check_and_record(steps, commit_ts, &locks).await;
        match &outcome {
            Ok(_) => registered.decided = true,
            Err(Error::UnknownOutcome { .. }) => (),
            Err(_) => {
                // Nothing was written, and nothing will be.
                registered.decided = true;
                // Its data must never count, and readers need not find that out one by one.
                drop(steps.roll_back(start_ts).await);
            }
        }
        // Dropping the locks gives them up without waiting: they have done their work.
        outcome
    }

    /// Steps 7 to 10, with a commit timestamp that others may be waiting for.
    async fn check_and_record(&self, steps: &StepByStep, commit_ts: Timestamp, locks: &HeldLocks) -> Result<Timestamp> {
        let Inner { start_ts, read_ts, core, .. } = self.transaction.as_ref();
        let (start_ts, read_ts) = (*start_ts, *read_ts);
        if Rule::RecheckReads.is_kept() && Rule::RecheckAfterData.is_kept() && Rule::RecheckAfterCommitTs.is_kept() {
            self.recheck(steps, commit_ts).await?;
        }
        reach(CommitStep::RecheckReads, start_ts).await;
        self.check_conditions().await?;
        self.check_required_locks()?;
        // Last check: only the commit entry follows. Locks are those of this process: they keep nobody away who
        // commits through a successor, so the lease counts as one of them.
        if Rule::CheckLocks.is_kept() && Rule::CheckLocksLast.is_kept() {
            locks.check()?;
        }
        if !Rule::EnqueueBeforeCommitTs.is_kept() {
            self.put_queue(None).await?;
        } else if Rule::LookAtTheLease.is_kept() {
            steps.oracle.check_held()?;
        }
        // By the old promises of a table we may have taken other locks than those who begin after its change. Ours are
        // the last who can do so: our data are there, and whoever begins now meets them.
        if let Some(table) = core.schema.changed_since(&self.reads.tables, read_ts) {
            return Err(Error::TableChanged { table: table.clone(), start_ts });
        }
        reach(CommitStep::CheckLocks, start_ts).await;
        reach(CommitStep::RecordCommit, start_ts).await;
        if !Rule::UnlockAfterEntry.is_kept() {
            steps.locks.unlock(locks.tokens());
        }
        let recorded = match steps.record(start_ts, commit_ts, locks).await {
            Err(_) if !Rule::AnswerByTheEntry.is_kept() => commit_ts,
            recorded => recorded?,
        };
        reach(CommitStep::Recorded, start_ts).await;
        reach(CommitStep::Published, start_ts).await;
        Ok(recorded)
    }

    /// Step 7, as of a timestamp that all data of earlier commits are older than.
    async fn recheck(&self, steps: &StepByStep, before: Timestamp) -> Result<()> {
        if self.reads.is_empty() {
            return Ok(());
        }
        let Inner { start_ts, read_ts, core, .. } = self.transaction.as_ref();
        let undecided = match Rule::RecheckDecides.is_kept() {
            true => Undecided::WaitForEarlier(steps),
            false => Undecided::DecidedLater,
        };
        let recheck = Recheck { start_ts: *start_ts, read_ts: *read_ts, before, undecided };
        core.recheck(&self.reads, recheck).await
    }

    async fn lock(&self, steps: &StepByStep, handlers: &Handlers) -> Result<HeldLocks> {
        let mut descriptors = vec![LockDescriptor::transaction(self.transaction.start_ts)];
        for (table, writes) in self.buffer.tables().iter().filter(|_| Rule::LockWrites.is_kept()) {
            let handler = handlers[table];
            for cell in writes.keys() {
                if handler.locks_rows() {
                    descriptors.push(LockDescriptor::row(table, &cell.row));
                }
                if handler.locks_cells() {
                    descriptors.push(LockDescriptor::cell(table, cell));
                }
            }
        }
        let client: Arc<dyn LockClient> = steps.locks.clone();
        let request = LockRequest::new(descriptors, steps.lock_timeout);
        HeldLocks::acquire(client, self.transaction.start_ts, request).await
    }

    async fn check_write_conflicts(&self, steps: &StepByStep, handlers: &Handlers) -> Result<()> {
        if !Rule::CheckWrites.is_kept() {
            return Ok(());
        }
        let (start_ts, read_ts) = (self.transaction.start_ts, self.transaction.read_ts);
        let core = &self.transaction.core;
        for (table, writes) in self.buffer.tables() {
            let handler = handlers[table];
            if !handler.checks_write_conflicts() {
                continue;
            }
            let cells: Vec<Cell> = writes.keys().cloned().collect();
            let rivals = match Rule::DecideRivals.is_kept() {
                true => Rivals::DecideFor(steps, start_ts),
                false => Rivals::DecidedLater,
            };
            let newest = core.newest_committed(table, &cells, rivals).await?;
            let read = if handler.compares_values() {
                core.read_cells(table, cells.clone(), read_ts).await?
            } else {
                vec![None; cells.len()]
            };
            for (((cell, written), newest), read) in writes.iter().zip(newest).zip(read) {
                let Some((commit_ts, content)) = newest.filter(|(commit_ts, _)| *commit_ts >= read_ts) else {
                    continue;
                };
                let unchanged = handler.compares_values()
                    && *written == read
                    && value_hash(written.as_deref()) == value_hash(content.as_deref());
                if !unchanged {
                    let (table, cell) = (table.clone(), cell.clone());
                    return Err(Error::Conflict { table, cell, committed_at: Some(commit_ts), read_ts });
                }
            }
        }
        Ok(())
    }
}
