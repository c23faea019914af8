//! Transactions that the server holds for its clients, and the outcomes of those that ended.
//!
//! ```text
//!   Begin ──> open ──(Commit, Abort, lease over, shutdown: whoever is first)──> ending ──> ended, outcome kept
//! ```
//!
//! Ending happens once, in a task of its own: it goes on when the client that asked for it is gone, and everybody who
//! asks for the transaction later is told the same outcome. So a client whose connection broke during a commit may
//! simply ask again.

use super::proto::ErrorDetail;
use super::services::Limits;
use super::wire;
use crate::ops::{BeginOptions, Operations, TransactionOps};
use crate::{Error, Timestamp};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, RwLock, RwLockReadGuard, Semaphore, watch};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// How a transaction ended: its commit timestamp, if it wrote anything, or why it did not commit.
pub(super) type Outcome = Result<Option<Timestamp>, ErrorDetail>;

/// All transactions of a server.
#[derive(Debug)]
pub(super) struct Transactions {
    limits: Limits,
    /// A permit for each transaction that is open or being opened.
    slots: Arc<Semaphore>,
    table: Mutex<Table>,
    /// Bytes that all open transactions have buffered. Invariant: the sum of `OpenTransaction::buffered`.
    buffered: AtomicU64,
    draining: AtomicBool,
    ending: TaskTracker,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<Uuid, Arc<OpenTransaction>>,
    ended: HashMap<Uuid, Outcome>,
    // Invariant: the keys of `ended`, oldest first.
    ended_order: VecDeque<(Instant, Uuid)>,
}

/// A transaction that is open, or ending.
pub(super) struct OpenTransaction {
    pub(super) id: Uuid,
    pub(super) start_ts: Timestamp,
    pub(super) read_ts: Timestamp,
    pub(super) tentative: bool,
    seen: Mutex<Instant>,
    /// Reads and writes share it; whoever ends the transaction takes it, and waits for them.
    inner: RwLock<Option<Box<dyn TransactionOps>>>,
    ending: AtomicBool,
    outcome: watch::Sender<Option<Outcome>>,
    buffered: AtomicU64,
    _slot: OwnedSemaphorePermit,
}

impl std::fmt::Debug for OpenTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenTransaction")
            .field("id", &self.id)
            .field("start_ts", &self.start_ts)
            .finish_non_exhaustive()
    }
}

/// Use of a transaction that can't end meanwhile.
pub(super) struct InUse<'a>(RwLockReadGuard<'a, Option<Box<dyn TransactionOps>>>);

impl std::ops::Deref for InUse<'_> {
    type Target = dyn TransactionOps;

    fn deref(&self) -> &(dyn TransactionOps + 'static) {
        self.0.as_deref().expect("checked when the use began, and the guard keeps it from being taken")
    }
}

#[derive(Clone, Copy, Debug)]
enum End {
    Commit,
    Abort,
    Expire,
    Shutdown,
}

enum Found {
    Open(Arc<OpenTransaction>),
    Ended(Outcome),
    Unknown,
}

impl Transactions {
    pub(super) fn new(limits: Limits) -> Arc<Transactions> {
        Arc::new(Transactions {
            slots: Arc::new(Semaphore::new(limits.transactions_max)),
            table: Mutex::default(),
            buffered: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            ending: TaskTracker::new(),
            limits,
        })
    }

    /// How long a transaction lives without a sign of life.
    pub(super) fn lease(&self) -> Duration {
        self.limits.lease
    }

    pub(super) fn open_count(&self) -> usize {
        self.table.lock().open.len()
    }

    pub(super) async fn begin(
        &self,
        operations: &dyn Operations,
        options: BeginOptions,
    ) -> Result<Arc<OpenTransaction>, Error> {
        if self.is_draining() {
            return Err(super::services::shutting_down());
        }
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| Error::Unavailable {
            what: "the server".to_owned(),
            reason: format!("{} transactions are open, and it holds no more", self.limits.transactions_max),
        })?;
        let transaction = operations.begin_transaction(options).await?;
        let entry = Arc::new(OpenTransaction {
            id: Uuid::new_v4(),
            start_ts: transaction.start_ts(),
            read_ts: transaction.read_ts(),
            tentative: transaction.is_tentative(),
            seen: Mutex::new(Instant::now()),
            inner: RwLock::new(Some(transaction)),
            ending: AtomicBool::new(false),
            outcome: watch::Sender::new(None),
            buffered: AtomicU64::new(0),
            _slot: slot,
        });
        self.table.lock().open.insert(entry.id, entry.clone());
        Ok(entry)
    }

    /// The open transaction of this id; counts as a sign of life.
    pub(super) fn open(&self, id: Uuid) -> Result<Arc<OpenTransaction>, ErrorDetail> {
        match self.find(id) {
            Found::Open(entry) => {
                entry.touch();
                Ok(entry)
            }
            Found::Ended(Ok(_)) => Err(closed("committed")),
            Found::Ended(Err(detail)) => Err(detail),
            Found::Unknown => Err(unknown()),
        }
    }

    /// Reserves room for `len` bytes that `entry` is about to buffer.
    pub(super) fn reserve(&self, entry: &OpenTransaction, len: u64) -> Result<(), Error> {
        let limit = self.limits.buffered_bytes_max;
        let before = self.buffered.fetch_add(len, Ordering::Relaxed);
        if before.saturating_add(len) > limit {
            self.buffered.fetch_sub(len, Ordering::Relaxed);
            return Err(Error::Unavailable {
                what: "the server".to_owned(),
                reason: format!("its open transactions have buffered {before} bytes; the limit is {limit}"),
            });
        }
        entry.buffered.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back room that was not used.
    pub(super) fn release(&self, entry: &OpenTransaction, len: u64) {
        entry.buffered.fetch_sub(len, Ordering::Relaxed);
        self.buffered.fetch_sub(len, Ordering::Relaxed);
    }

    /// Commits, or tells how the transaction ended. Cancel safe: a commit that has begun goes on.
    pub(super) async fn commit(self: &Arc<Self>, id: Uuid) -> Outcome {
        match self.find(id) {
            Found::Open(entry) => self.end(entry, End::Commit).await,
            Found::Ended(outcome) => outcome,
            Found::Unknown => Err(unknown()),
        }
    }

    /// Aborts, unless the transaction is committed or commits right now. Cancel safe: an abort that has begun goes on.
    pub(super) async fn abort(self: &Arc<Self>, id: Uuid) -> Result<(), ErrorDetail> {
        let outcome = match self.find(id) {
            Found::Open(entry) => self.end(entry, End::Abort).await,
            Found::Ended(outcome) => outcome,
            Found::Unknown => return Ok(()),
        };
        match outcome {
            Ok(_) => Err(closed("committed")),
            Err(_) => Ok(()),
        }
    }

    /// Aborts transactions whose lease is over and forgets old outcomes. To be called from time to time.
    pub(super) fn reap(self: &Arc<Self>, now: Instant) {
        let (expired, forgotten): (Vec<_>, usize) = {
            let mut table = self.table.lock();
            let forgotten = table.forget_ended(now, &self.limits);
            let expired = |entry: &&Arc<OpenTransaction>| {
                // A transaction in use lives: a long read need not be interrupted by signs of life.
                now.saturating_duration_since(*entry.seen.lock()) > self.limits.lease && entry.inner.try_write().is_ok()
            };
            (table.open.values().filter(expired).cloned().collect(), forgotten)
        };
        if forgotten > 0 || !expired.is_empty() {
            tracing::debug!(expired = expired.len(), forgotten, "looked after the clients' transactions");
        }
        for entry in expired {
            self.start_ending(&entry, End::Expire);
        }
    }

    /// Takes no more transactions from now on.
    pub(super) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Waits until every commit and abort that has begun is done.
    pub(super) async fn ended(&self) {
        self.ending.close();
        self.ending.wait().await;
    }

    /// Aborts whatever is still open.
    pub(super) async fn abort_all(self: &Arc<Self>) {
        let open: Vec<_> = self.table.lock().open.values().cloned().collect();
        for entry in &open {
            self.start_ending(entry, End::Shutdown);
        }
        self.ended().await;
    }

    fn find(&self, id: Uuid) -> Found {
        let table = self.table.lock();
        match (table.open.get(&id), table.ended.get(&id)) {
            (Some(entry), _) => Found::Open(entry.clone()),
            (None, Some(outcome)) => Found::Ended(outcome.clone()),
            (None, None) => Found::Unknown,
        }
    }

    async fn end(self: &Arc<Self>, entry: Arc<OpenTransaction>, end: End) -> Outcome {
        let mut outcome = entry.outcome.subscribe();
        self.start_ending(&entry, end);
        let found = outcome.wait_for(Option::is_some).await.expect("the sender lives in the entry held here");
        found.clone().expect("waited for")
    }

    fn start_ending(self: &Arc<Self>, entry: &Arc<OpenTransaction>, end: End) {
        if entry.ending.swap(true, Ordering::AcqRel) {
            return;
        }
        let (transactions, entry) = (self.clone(), entry.clone());
        self.ending.spawn(async move {
            let transaction = entry.inner.write().await.take().expect("only one task ends a transaction");
            let start_ts = entry.start_ts;
            // In a task of its own, so that a panic is an outcome too: whoever waits must not wait for ever.
            let work = tokio::spawn(run_to_end(transaction, end, transactions.limits.lease));
            let outcome = work.await.unwrap_or_else(|error| {
                let reason = format!("the server failed while it ended the transaction: {error}");
                Err(wire::detail_of(&Error::UnknownOutcome { start_ts, commit_ts: None, reason }))
            });
            transactions.keep_outcome(&entry, outcome);
        });
    }

    fn keep_outcome(&self, entry: &OpenTransaction, outcome: Outcome) {
        {
            let mut table = self.table.lock();
            table.open.remove(&entry.id);
            table.ended.insert(entry.id, outcome.clone());
            table.ended_order.push_back((Instant::now(), entry.id));
            while table.ended_order.len() > self.limits.outcomes_max {
                table.forget_oldest();
            }
        }
        self.buffered.fetch_sub(entry.buffered.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        entry.outcome.send_replace(Some(outcome));
    }
}

impl Table {
    fn forget_ended(&mut self, now: Instant, limits: &Limits) -> usize {
        let before = self.ended_order.len();
        while let Some((at, _)) = self.ended_order.front()
            && now.saturating_duration_since(*at) > limits.outcome_kept
        {
            self.forget_oldest();
        }
        before - self.ended_order.len()
    }

    fn forget_oldest(&mut self) {
        if let Some((_, id)) = self.ended_order.pop_front() {
            self.ended.remove(&id);
        }
    }
}

impl OpenTransaction {
    /// The transaction itself, for a read or a write.
    pub(super) async fn use_it(&self) -> Result<InUse<'_>, ErrorDetail> {
        let guard = self.inner.read().await;
        match *guard {
            Some(_) => Ok(InUse(guard)),
            None => Err(closed("ending")),
        }
    }

    /// A sign of life.
    pub(super) fn touch(&self) {
        *self.seen.lock() = Instant::now();
    }

    pub(super) fn id_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.id.as_bytes())
    }
}

async fn run_to_end(transaction: Box<dyn TransactionOps>, end: End, lease: Duration) -> Outcome {
    let start_ts = transaction.start_ts();
    if let End::Commit = end {
        return transaction.commit().await.map_err(|error| wire::detail_of(&error));
    }
    if let Err(error) = transaction.abort().await {
        tracing::warn!(%start_ts, %error, "a transaction could not be aborted in order");
    }
    Err(match end {
        End::Commit => unreachable!("returned above"),
        End::Abort => closed("aborted"),
        End::Expire => rolled_back(
            start_ts,
            &format!("nothing was heard of its client for {} s", lease.as_secs_f64()),
            "do the work again; a client keeps a transaction alive with KeepAlive",
        ),
        End::Shutdown => rolled_back(start_ts, "the server was shut down", "do the work again once it is back"),
    })
}

fn rolled_back(start_ts: Timestamp, reason: &str, hint: &str) -> ErrorDetail {
    let detail = wire::detail_of(&Error::RolledBack { start_ts });
    ErrorDetail { message: format!("{}: {reason}", detail.message), hint: Some(hint.to_owned()), ..detail }
}

fn closed(state: &str) -> ErrorDetail {
    ErrorDetail {
        code: "TRANSACTION_CLOSED".to_owned(),
        message: format!("the transaction is {state}: it takes no more calls"),
        hint: None,
        retriable: false,
        exit_code: crate::exit::FAILURE.into(),
        commit_ts: None,
    }
}

fn unknown() -> ErrorDetail {
    ErrorDetail {
        code: wire::UNKNOWN_TRANSACTION.to_owned(),
        message: "the server does not know the transaction: it was restarted, or the transaction ended long ago"
            .to_owned(),
        hint: None,
        // True of the first call that hears it: what was never asked to commit did not. A repeated Commit is settled
        // by the client.
        retriable: true,
        exit_code: crate::exit::FAILURE.into(),
        commit_ts: None,
    }
}
