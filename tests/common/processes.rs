//! Several "processes" that share one store in memory, each through a wrapper of its own that can lose or hold its
//! calls. Time is moved by the test; a process may have a clock of its own, which stands still when it sleeps.

use super::clock::{TestClock, settle};
use super::faulty::{Fault, Faulty, Gate, Op, PATIENCE};
use super::{cell, text};
use atlas::config::{ByteSize, CommitModeChoice, TransactionConfig};
use atlas::kvs_api::{Durability, KeyValueService, TableKind};
use atlas::ops::BeginOptions;
use atlas::schema::{ConflictHandler, TableSpec};
use atlas::timestamp::{FenceRecord, LeaseOptions};
use atlas::transaction::entry::{Entry, transactions_table};
use atlas::transaction::{OpenOptions, Transaction, TransactionManager};
use atlas::{Error, Result, TableRef, Timestamp};
use atlas_kvs_memory::MemoryStore;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

pub const LEASE: Duration = Duration::from_secs(12);

/// Everything in one batch.
pub const WHOLE: u64 = 1 << 20;
/// Data ahead, the entry in the batch.
pub const AHEAD: u64 = 0;

pub struct World {
    pub inner: Arc<dyn KeyValueService>,
    pub clock: Arc<TestClock>,
    pub t: TableRef,
    mode: CommitModeChoice,
    /// How the store behaves.
    pub kind: Kind,
    /// Limits of those who open it.
    pub transactions: TransactionConfig,
}

/// How a store behaves to those who open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Several processes reach it, and it has atomic batches with a guard.
    Fenced,
    /// Several processes reach it, and it has no batches.
    Unfenced,
    /// Only this process reaches it, which may open it again.
    Exclusive,
}

/// One process with the store open.
pub struct Process {
    pub faulty: Faulty,
    pub manager: TransactionManager,
    pub t: TableRef,
}

/// A transaction that stands still in the middle of its commit.
pub struct Asleep {
    pub start_ts: Timestamp,
    /// Opened to wake it.
    pub gate: Gate,
    pub task: JoinHandle<Result<Option<Timestamp>>>,
}

impl World {
    pub async fn new(mode: CommitModeChoice) -> World {
        let inner: Arc<dyn KeyValueService> = Arc::new(MemoryStore::new());
        let t = TableRef::new("t").expect("a table name");
        let spec = serde_json::to_vec(&TableSpec::with_handler(ConflictHandler::RetryOnWriteWriteCell));
        let spec = Bytes::from(spec.expect("plain data"));
        inner.create_table(&t, TableKind::Versioned, spec).await.expect("the table can be made");
        let (kind, transactions) = (Kind::Fenced, TransactionConfig::default());
        World { inner, clock: TestClock::new(), t, mode, kind, transactions }
    }

    pub async fn steps(kind: Kind) -> World {
        World { kind, ..World::new(CommitModeChoice::StepByStep).await }
    }

    pub async fn pipeline() -> World {
        World::new(CommitModeChoice::Pipeline).await
    }

    pub fn faulty(&self) -> Faulty {
        let shared = || Faulty::shared(self.inner.clone(), Arc::new(Mutex::new("original".to_owned())));
        match self.kind {
            Kind::Fenced => shared(),
            Kind::Unfenced => shared().without_batches(),
            Kind::Exclusive => Faulty::new(self.inner.clone()),
        }
    }

    pub fn lease(&self) -> LeaseOptions {
        LeaseOptions { lease: LEASE, clock: self.clock.clone(), ..LeaseOptions::default() }
    }

    pub fn opening(&self, faulty: &Faulty, ahead_over: u64) -> JoinHandle<Result<TransactionManager>> {
        self.opening_by(&self.clock, faulty, ahead_over)
    }

    fn opening_by(
        &self,
        clock: &Arc<TestClock>,
        faulty: &Faulty,
        ahead_over: u64,
    ) -> JoinHandle<Result<TransactionManager>> {
        let transactions = TransactionConfig {
            commit_mode: self.mode,
            pipeline_size_max: ByteSize(ahead_over),
            ..self.transactions.clone()
        };
        let lease = LeaseOptions { clock: clock.clone(), ..self.lease() };
        let (namespace, durability) = ("test".to_owned(), Durability::Synced);
        let options = OpenOptions { namespace, transactions, durability, lease };
        tokio::spawn(TransactionManager::open(Arc::new(faulty.clone()), options))
    }

    pub async fn open(&self, ahead_over: u64) -> Process {
        let faulty = self.faulty();
        let manager = self.within(LEASE * 2, self.opening(&faulty, ahead_over)).await.expect("the store opens");
        Process { faulty, manager, t: self.t.clone() }
    }

    /// A process on a machine whose clock stands still: it renews nothing, and believes in its lease for ever.
    pub async fn open_frozen(&self) -> Process {
        let faulty = self.faulty();
        let opening = self.opening_by(&TestClock::new(), &faulty, WHOLE);
        let manager = joined(opening).await.expect("nobody owns the store");
        Process { faulty, manager, t: self.t.clone() }
    }

    /// Moves time on until the task has ended.
    pub async fn within<T>(&self, limit: Duration, task: JoinHandle<T>) -> T {
        for _ in 0..100 {
            if task.is_finished() {
                return task.await.expect("the task ends");
            }
            self.clock.jump(limit / 100);
            settle().await;
        }
        panic!("it took more than {limit:?}");
    }

    /// The entry of a transaction, as the store has it.
    pub async fn entry(&self, start_ts: Timestamp) -> Option<Entry> {
        let found =
            self.inner.get_atomic(&transactions_table(), &[Entry::cell(start_ts)]).await.expect("it can be read");
        found[0].as_ref().map(|bytes| Entry::decode(start_ts, bytes).expect("the entry was written"))
    }

    pub async fn fence(&self) -> FenceRecord {
        let loaded = FenceRecord::in_store(self.inner.clone()).load().await.expect("the fence can be read");
        loaded.expect("the fence was raised").0
    }
}

impl Process {
    pub async fn begin(&self) -> Transaction {
        self.manager.begin(BeginOptions::default()).await.expect("a transaction begins")
    }

    pub async fn writer(&self, row: &str, value: &str) -> Transaction {
        let tx = self.begin().await;
        tx.put(&self.t, cell(row), value.to_owned()).await.expect("a write is buffered");
        tx
    }

    pub async fn write(&self, row: &str, value: &str) -> Result<Timestamp> {
        Ok(self.writer(row, value).await.commit().await?.expect("it wrote"))
    }

    pub async fn read(&self, row: &str) -> Option<String> {
        self.begin().await.get(&self.t, &cell(row)).await.expect("a cell can be read").as_ref().map(text)
    }

    /// What happens to the next batch with an entry.
    pub fn next_batch(&self, fault: Fault) {
        self.faulty.on(Op::Apply).on_table(&transactions_table()).then(fault);
    }

    /// What happens to the next entry that it writes by itself.
    pub fn next_entry(&self, fault: Fault) {
        self.faulty.on(Op::PutUnlessExists).on_table(&transactions_table()).then(fault);
    }

    /// Writes a row, and waits until the commit stands at a gate that `hold` puts in its way.
    pub async fn falls_asleep(&self, row: &str, value: &str, hold: impl FnOnce(Gate)) -> Asleep {
        let gate = Gate::new();
        hold(gate.clone());
        let tx = self.writer(row, value).await;
        let start_ts = tx.start_ts();
        let task = committing(tx);
        gate.arrived().await;
        Asleep { start_ts, gate, task }
    }

    /// The process falls silent: no write of records arrives any more.
    pub fn fall_silent(&self) {
        self.faulty.on(Op::CheckAndSet).always().then(Fault::Refuse);
    }
}

pub fn committing(tx: Transaction) -> JoinHandle<Result<Option<Timestamp>>> {
    tokio::spawn(async move { tx.commit().await })
}

pub async fn joined<T>(task: JoinHandle<T>) -> T {
    tokio::time::timeout(PATIENCE, task).await.expect("the task does not end").expect("the task ends")
}

#[track_caller]
pub fn assert_lost<T: std::fmt::Debug>(outcome: Result<T>) {
    assert!(matches!(outcome, Err(Error::LostLeadership { .. })), "expected lost leadership, got {outcome:?}");
}
