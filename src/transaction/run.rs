//! Doing work in a transaction, again and again until it commits.

use super::core::CommitPath;
use super::handle::{Attempt, Transaction};
use super::manager::TransactionManager;
use super::turns::{Lost, NextAttempt};
use crate::lock::{HeldLocks, LockClient, LockDescriptor, LockRequest};
use crate::ops::BeginOptions;
use crate::{Error, Result};
use atlas_kvs::Timestamp;
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Pause before the second attempt; doubled for each one after it.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// After so many attempts that lost a conflict it is time to keep out of each other's way.
const LOSSES_WITHOUT_PAUSE: u32 = 10;

/// Errors that can tell whether the same work may succeed when done anew.
pub trait Retriable: From<Error> {
    /// The error of the layer inside, if that is what it is.
    fn as_atlas(&self) -> Option<&Error>;
}

impl Retriable for Error {
    fn as_atlas(&self) -> Option<&Error> {
        Some(self)
    }
}

impl Retriable for anyhow::Error {
    fn as_atlas(&self) -> Option<&Error> {
        self.downcast_ref()
    }
}

/// How to run work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// How often to try; `None`: as configured.
    pub attempts_max: Option<u32>,
    /// How long all attempts may take together; `None`: as long as one transaction may.
    pub timeout: Option<Duration>,
    /// The work may be done twice without harm, so it is repeated even when it is not known whether it committed.
    pub idempotent: bool,
    /// Begin read-only transactions.
    pub read_only: bool,
    /// Read the state at a past timestamp.
    pub at: Option<Timestamp>,
}

/// What became of work that ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<T> {
    /// What the work returned.
    pub value: T,
    /// Start timestamp of the attempt that committed.
    pub start_ts: Timestamp,
    /// Its commit timestamp; `None` if it wrote nothing.
    pub commit_ts: Option<Timestamp>,
    /// How many attempts it took.
    pub attempts: u32,
}

impl TransactionManager {
    /// Does `work` in a transaction and commits it; does it anew in a new transaction after conflicts and other
    /// errors that a new attempt may avoid, with pauses that grow and are jittered.
    ///
    /// # Errors
    /// The first error of the work or the commit that is not retriable, or the last one when attempts or time are
    /// used up. Work whose outcome is unknown is not repeated, unless declared idempotent.
    ///
    /// Cancel safe: a commit under way is finished.
    ///
    /// An attempt after a lost conflict may see commits that are being written. It commits behind them or not at all, and
    /// nothing is told before they are durable; but what `work` does beside its transaction is not undone.
    ///
    /// `async |tx| …` may borrow from what is around it, also inside a spawned task; an `async move |tx| …` that takes
    /// captured values along is not accepted, because the work may have to be done more than once.
    pub async fn run<T, E, F, Fut>(&self, options: RunOptions, work: F) -> std::result::Result<Outcome<T>, E>
    where
        E: Retriable,
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = std::result::Result<T, E>>,
    {
        self.run_with_locks(options, &[], work).await
    }

    /// As [`run`](Self::run), each attempt while it holds `locks`, which it takes before it begins. The transaction
    /// commits only if they are still held then. Locks mean what their users agree they mean.
    ///
    /// # Errors
    /// Those of [`run`](Self::run); [`Error::LockTimeout`] if a lock is not granted within the configured time.
    pub async fn run_with_locks<T, E, F, Fut>(
        &self,
        options: RunOptions,
        locks: &[LockDescriptor],
        work: F,
    ) -> std::result::Result<Outcome<T>, E>
    where
        E: Retriable,
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = std::result::Result<T, E>>,
    {
        let attempts_max = options.attempts_max.unwrap_or(self.attempts_max()).max(1);
        // A time too far away to be told is no deadline.
        let deadline = Instant::now().checked_add(options.timeout.unwrap_or(self.timeout()));
        let mut attempt = Abandon { manager: self, attempt: self.new_work() };
        let mut counted = 0;
        let mut next = NextAttempt::default();
        for number in 1.. {
            let begin = BeginOptions {
                read_only: options.read_only,
                at: options.at,
                timeout: options.timeout,
                ..BeginOptions::default()
            };
            let mut seen = None;
            let outcome = match self.begin_holding(begin, attempt.attempt, locks, std::mem::take(&mut next)).await {
                Ok(transaction) => {
                    seen = Some(transaction.seen());
                    attempt_once(transaction, &work).await
                }
                Err(error) => Err(error.into()),
            };
            let mut error = match outcome {
                Ok((value, start_ts, commit_ts)) => {
                    return Ok(Outcome { value, start_ts, commit_ts, attempts: number });
                }
                Err(error) => error,
            };
            let pause = pause_after(number);
            // Cells reserved for a large transaction are free again within a bounded time: waiting for it is no loss.
            let reserved = matches!(error.as_atlas(), Some(Error::Conflict { committed_at: None, .. }));
            counted += u32::from(!reserved);
            let ends = |error: &E| {
                let again = error.as_atlas().is_some_and(|error| may_repeat(error, options.idempotent));
                let late = deadline.is_some_and(|deadline| Instant::now() + pause >= deadline);
                !again || counted >= attempts_max || late
            };
            let unknown = matches!(error.as_atlas(), Some(Error::UnknownOutcome { .. }));
            if ends(&error) && !unknown {
                // Its reason may be something that a crash takes back. What was handed over to be committed is not told
                // by this.
                if let Some(seen) = &seen
                    && let Err(lost) = self.core().landed(seen).await
                {
                    error = lost.into();
                }
            }
            if ends(&error) {
                return Err(error);
            }
            if matches!(error.as_atlas(), Some(Error::Conflict { .. } | Error::ReadConflict { .. })) {
                attempt.attempt.losses += 1;
            }
            tracing::debug!(attempt = number, error = error.as_atlas().map(tracing::field::display), "trying again");
            // The last turn was given back with the attempt: who holds one and waits for another could wait for one who waits
            // for him.
            next = match (&self.core().path, error.as_atlas().and_then(Lost::by)) {
                (CommitPath::Pipeline(pipeline), Some(lost)) if number <= LOSSES_WITHOUT_PAUSE => {
                    self.turns().after(lost, pipeline).await
                }
                _ => {
                    tokio::time::sleep(pause).await;
                    NextAttempt::default()
                }
            };
        }
        unreachable!("attempts are bounded")
    }

    /// Begins a transaction that holds locks until it ends. They are taken first: what it reads must be as it is while
    /// they are held.
    async fn begin_holding(
        &self,
        options: BeginOptions,
        attempt: Attempt,
        locks: &[LockDescriptor],
        again: NextAttempt,
    ) -> Result<Transaction> {
        if locks.is_empty() {
            return self.begin_attempt(options, attempt, again).await;
        }
        let holder = self.oracle().fresh().await?;
        let client: Arc<dyn LockClient> = self.locks().clone();
        let request = LockRequest::new(locks.to_vec(), self.lock_timeout());
        let held = HeldLocks::acquire(client, holder, request).await?;
        let transaction = self.begin_attempt(options, attempt, again).await?;
        transaction.require_locks(Arc::new(held))?;
        Ok(transaction)
    }
}

/// Gives up what is reserved for a piece of work when it ends, however it ends.
struct Abandon<'a> {
    manager: &'a TransactionManager,
    attempt: Attempt,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.manager.abandon(self.attempt);
    }
}

async fn attempt_once<T, E, F, Fut>(
    transaction: Transaction,
    work: &F,
) -> std::result::Result<(T, Timestamp, Option<Timestamp>), E>
where
    E: Retriable,
    F: Fn(Transaction) -> Fut,
    Fut: Future<Output = std::result::Result<T, E>>,
{
    let start_ts = transaction.start_ts();
    match work(transaction.clone()).await {
        Ok(value) => {
            let commit_ts = commit(&transaction).await?;
            Ok((value, start_ts, commit_ts))
        }
        Err(error) => {
            transaction.abort();
            Err(error)
        }
    }
}

async fn commit(transaction: &Transaction) -> Result<Option<Timestamp>> {
    transaction.commit().await
}

fn may_repeat(error: &Error, idempotent: bool) -> bool {
    match error {
        Error::UnknownOutcome { .. } => idempotent,
        error => error.is_retriable(),
    }
}

/// Somewhere between half and the whole of a span that doubles with each attempt, so that rivals do not meet again.
fn pause_after(attempt: u32) -> Duration {
    let span = PAUSE_MIN.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(PAUSE_MAX);
    span.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_send<T: Send>(_: &T) {}

    /// Work that borrows from a spawned task must itself be fit for spawning.
    #[allow(dead_code, reason = "it is enough that it compiles")]
    fn work_can_run_in_a_spawned_task(manager: TransactionManager, table: atlas_kvs::TableRef) {
        let cell = atlas_kvs::Cell::copy_from("row", "column");
        let task = async move { manager.run(RunOptions::default(), async |tx| tx.get(&table, &cell).await).await };
        is_send(&task);
    }
}
