//! Mode A: each transaction commits by itself, in ten steps, with locks.
//!
//! For stores without atomic batches. A reader may meet a version whose writer is anywhere between steps 5 and 10, and
//! waits for it; so a writer locks its own start timestamp from before its first put until its entry stands. A writer
//! that is gone is rolled back by whoever meets its data. Its own step 10 and the roll-back are both
//! `put_unless_exists` on one cell: whoever wins, wins, and both see who did.

use super::commit::{CommitJob, Handlers, not_applied};
use super::core::CommitPath;
use super::entry::{Entry, Fate};
use super::mend::Mender;
use super::read::Rivals;
use super::step::{CommitStep, reach};
use super::table::TransactionTable;
use super::window::value_hash;
use crate::lock::{HeldLocks, LockClient, LockDescriptor, LockRequest, LockService};
use crate::timestamp::TimestampOracle;
use crate::{Error, Result};
use atlas_kvs::{Cell, Timestamp};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How often a lost answer at the commit point is asked for again.
const SETTLE_ATTEMPTS: u32 = 5;
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

/// What commits step by step share.
#[derive(Debug)]
pub(crate) struct StepByStep {
    locks: Arc<LockService>,
    entries: Arc<TransactionTable>,
    oracle: Arc<TimestampOracle>,
    mender: Arc<Mender>,
    lock_timeout: Duration,
    // Commit timestamps that were drawn and whose transaction may still commit, with its start timestamp. A number is
    // drawn while the register is locked, so that `settle` can't miss one that is drawn but not yet registered.
    drawn: Mutex<BTreeMap<Timestamp, Timestamp>>,
    concluded: Notify,
}

impl StepByStep {
    pub(crate) fn new(
        locks: Arc<LockService>,
        entries: Arc<TransactionTable>,
        oracle: Arc<TimestampOracle>,
        mender: Arc<Mender>,
        lock_timeout: Duration,
    ) -> StepByStep {
        StepByStep { locks, entries, oracle, mender, lock_timeout, drawn: Mutex::default(), concluded: Notify::new() }
    }

    /// Waits for a writer that a reader has met, and rolls it back if it is gone without an entry.
    pub(super) async fn settle_writer(&self, writer: Timestamp) -> Result<Fate> {
        self.locks.wait_for(vec![LockDescriptor::transaction(writer)], self.lock_timeout).await?;
        match self.entries.fate(writer).await? {
            Fate::Undecided => self.roll_back(writer).await,
            decided => Ok(decided),
        }
    }

    /// Writes *rolled back* unless there is an entry; the fate that stands.
    async fn roll_back(&self, writer: Timestamp) -> Result<Fate> {
        let standing = self.entries.put_unless_exists(writer, Entry::RolledBack).await?;
        Ok(self.entries.windows().fate(Some(standing)))
    }

    /// Decides about a writer met in the conflict check of `start_ts`, which holds the locks of the cell: the writer
    /// should hold none. If it does, it is we who have lost ours, and the healthy one is spared.
    pub(super) async fn decide_rival(&self, writer: Timestamp, start_ts: Timestamp) -> Result<Fate> {
        let request = LockRequest::new(vec![LockDescriptor::transaction(writer)], Duration::ZERO);
        match self.locks.try_lock(request)? {
            None => Err(Error::LocksLost { start_ts }),
            Some(token) => {
                self.locks.unlock(&[token]);
                self.roll_back(writer).await
            }
        }
    }

    async fn draw_commit_ts(&self, start_ts: Timestamp) -> Result<Timestamp> {
        loop {
            {
                let mut drawn = self.drawn.lock();
                if let Some(range) = self.oracle.try_fresh_range(1)? {
                    drawn.insert(range.first, start_ts);
                    return Ok(range.first);
                }
            }
            // The block is used up: move the bound outside the register, at the price of a number.
            self.oracle.fresh().await?;
        }
    }

    fn conclude(&self, commit_ts: Timestamp) {
        self.drawn.lock().remove(&commit_ts);
        self.concluded.notify_waiters();
    }

    /// Waits until every commit timestamp below `up_to` belongs to a transaction whose fate is settled. Those that
    /// take too long are rolled back, so that none can commit later. Waiting for locks would not be enough: a client
    /// between steps 9 and 10 may have lost them and still commit.
    pub(crate) async fn settle(&self, up_to: Timestamp, within: Duration) -> Result<()> {
        let waited = tokio::time::timeout(within, async {
            loop {
                let concluded = self.concluded.notified();
                tokio::pin!(concluded);
                concluded.as_mut().enable(); // Before the look: a conclusion between look and wait must wake us.
                if self.drawn.lock().range(..up_to).next().is_none() {
                    return;
                }
                concluded.await;
            }
        });
        if waited.await.is_ok() {
            return Ok(());
        }
        let late: Vec<(Timestamp, Timestamp)> =
            self.drawn.lock().range(..up_to).map(|(commit_ts, start_ts)| (*commit_ts, *start_ts)).collect();
        for (commit_ts, start_ts) in late {
            self.roll_back(start_ts).await?;
            self.conclude(commit_ts);
        }
        Ok(())
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
                Ok(Entry::RolledBack) => return Err(Error::RolledBack { start_ts }),
                Ok(Entry::Committed(other)) => {
                    let place = format!("the entry of transaction {start_ts}");
                    return Err(Error::corrupt(place, format!("it committed at {other}, not at our {commit_ts}")));
                }
                // The first attempt failed for certain: nothing is there, and nothing will be.
                Err(Error::Kvs(error)) if attempt == 0 && !error.is_indeterminate() => return Err(error.into()),
                Err(error) => {
                    self.mender.after(&error).await;
                    reason = error.to_string();
                }
            }
        }
        Err(Error::UnknownOutcome { start_ts, reason })
    }
}

/// A commit timestamp that others may be waiting for.
struct Drawn<'a> {
    steps: &'a StepByStep,
    commit_ts: Timestamp,
    concludes: bool,
}

impl Drop for Drawn<'_> {
    fn drop(&mut self) {
        if self.concludes {
            self.steps.conclude(self.commit_ts);
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
        let locks = self.lock(steps, &handlers).await?;
        reach(CommitStep::Lock);
        self.check_write_conflicts(steps, &handlers).await?;
        reach(CommitStep::CheckWriteConflicts);
        if let Err(error) = self.put_queue_and_data(None).await {
            // Whatever is there must never commit; readers need not find that out one by one.
            let _ = steps.roll_back(start_ts).await;
            return Err(not_applied(error));
        }
        let commit_ts = steps.draw_commit_ts(start_ts).await?;
        reach(CommitStep::TakeCommitTs);
        // Concludes also when a condition of the application panics: before step 10 nothing can commit.
        let mut drawn = Drawn { steps, commit_ts, concludes: true };
        let outcome = self.check_and_record(steps, commit_ts, &locks).await;
        match &outcome {
            Ok(_) => (),
            // May still commit: whoever settles waits for it, and rolls it back in the end.
            Err(Error::UnknownOutcome { .. }) => drawn.concludes = false,
            // Its data must never count, and readers need not find that out one by one.
            Err(_) => drop(steps.roll_back(start_ts).await),
        }
        // Dropping the locks gives them up without waiting: they have done their work.
        outcome
    }

    /// Steps 7 to 10, with a commit timestamp that others may be waiting for.
    async fn check_and_record(&self, steps: &StepByStep, commit_ts: Timestamp, locks: &HeldLocks) -> Result<Timestamp> {
        reach(CommitStep::RecheckReads);
        self.check_conditions()?;
        // Last check: only the commit entry follows. Locks are those of this process: they keep nobody away who
        // commits through a successor, so the lease counts as one of them.
        locks.check()?;
        steps.oracle.check_held()?;
        reach(CommitStep::CheckLocks);
        reach(CommitStep::RecordCommit);
        let recorded = steps.record(self.transaction.start_ts, commit_ts, locks).await?;
        reach(CommitStep::Recorded);
        reach(CommitStep::Published);
        Ok(recorded)
    }

    async fn lock(&self, steps: &StepByStep, handlers: &Handlers) -> Result<HeldLocks> {
        let mut descriptors = vec![LockDescriptor::transaction(self.transaction.start_ts)];
        for (table, writes) in self.buffer.tables() {
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
        let (start_ts, read_ts) = (self.transaction.start_ts, self.transaction.read_ts);
        let core = &self.transaction.core;
        for (table, writes) in self.buffer.tables() {
            let handler = handlers[table];
            if !handler.checks_write_conflicts() {
                continue;
            }
            let cells: Vec<Cell> = writes.keys().cloned().collect();
            let newest = core.newest_committed(table, &cells, Rivals::DecideFor(steps, start_ts)).await?;
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
