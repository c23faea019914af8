//! Writers at work on a store, and their own log of what they were told: the state at any timestamp follows from it.

use super::common::{cell, scan_cells, table, text};
use atlas::ops::{BeginOptions, ScanOptions};
use atlas::schema::ConflictHandler;
use atlas::transaction::entry::{Entry, transactions_table};
use atlas::transaction::{CommitStep, Transaction};
use atlas::{Atlas, Error, Result, TableRef, Timestamp};
use atlas_kvs::KeyValueService;
use parking_lot::{Condvar, Mutex};
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle as TaskHandle;

const WRITERS: usize = 8;
/// Rows of each of the two tables that are written over and over. The third gets a row for each transaction.
const ROWS: usize = 100;
pub(crate) const TABLES: [(&str, ConflictHandler); 3] = [
    ("accounts", ConflictHandler::RetryOnWriteWriteCell),
    ("notes", ConflictHandler::RetryOnWriteWrite),
    ("ledger", ConflictHandler::RetryOnWriteWriteCell),
];
/// Between two transactions of a writer.
const PAUSE: Duration = Duration::from_millis(50);
/// How often, and for how long, something is looked for that must come.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(180);

/// All cells of all tables: the value of a row of a table.
pub(crate) type State = BTreeMap<(String, String), String>;

/// What a transaction writes: table, row, and the value or none.
pub(crate) type Writes = Vec<(&'static str, String, Option<String>)>;

/// What the writers were told.
#[derive(Clone, Default)]
pub(crate) struct Log {
    pub(crate) commits: Vec<Commit>,
    /// Told that they did not commit.
    pub(crate) failed: usize,
    /// Told that nobody knows, with their start timestamps.
    unknown: Vec<(Timestamp, Writes)>,
}

#[derive(Clone)]
pub(crate) struct Commit {
    pub(crate) start_ts: Timestamp,
    pub(crate) commit_ts: Timestamp,
    pub(crate) acknowledged: Instant,
    writes: Writes,
}

impl Log {
    /// Every commit below `at`, in the order of the commit timestamps, upon `before`.
    pub(crate) fn state_at(&self, before: &State, at: Timestamp) -> State {
        let mut commits: Vec<&Commit> = self.commits.iter().filter(|commit| commit.commit_ts < at).collect();
        commits.sort_by_key(|commit| commit.commit_ts);
        let mut state = before.clone();
        for (table, row, value) in commits.into_iter().flat_map(|commit| &commit.writes) {
            let place = ((*table).to_owned(), row.clone());
            match value {
                Some(value) => drop(state.insert(place, value.clone())),
                None => drop(state.remove(&place)),
            }
        }
        state
    }

    /// Decides what nobody knew, by the entries in the store, as whoever asks for such an outcome does: by writing *rolled
    /// back*, which stays without effect where the commit stands.
    pub(crate) async fn decide_unknown(&mut self, kvs: &dyn KeyValueService) {
        for (start_ts, writes) in std::mem::take(&mut self.unknown) {
            let place = Entry::cell(start_ts);
            let rolled_back = Entry::RolledBack.encode();
            kvs.put_unless_exists(&transactions_table(), &place, rolled_back).await.expect("the cluster answers");
            let found = kvs.get_atomic(&transactions_table(), &[place]).await.expect("the cluster answers");
            let entry = found[0].as_ref().expect("one was written");
            match Entry::decode(start_ts, entry).expect("an entry") {
                Entry::Committed(commit_ts) => {
                    self.commits.push(Commit { start_ts, commit_ts, acknowledged: Instant::now(), writes });
                }
                Entry::RolledBack => self.failed += 1,
            }
        }
    }

    /// Commits acknowledged in a stretch of time.
    pub(crate) fn acknowledged_between(&self, from: Instant, until: Instant) -> usize {
        self.commits.iter().filter(|commit| (from..until).contains(&commit.acknowledged)).count()
    }

    fn note(&mut self, start_ts: Timestamp, writes: Writes, outcome: &Result<Option<Timestamp>>) {
        match outcome {
            Ok(commit_ts) => {
                let commit_ts = commit_ts.expect("it writes");
                self.commits.push(Commit { start_ts, commit_ts, acknowledged: Instant::now(), writes });
            }
            Err(Error::UnknownOutcome { .. }) => self.unknown.push((start_ts, writes)),
            Err(_) => self.failed += 1,
        }
    }
}

async fn tables(atlas: &Atlas) -> BTreeMap<&'static str, TableRef> {
    let mut tables = BTreeMap::new();
    for (name, handler) in TABLES {
        tables.insert(name, table(atlas, name, handler).await);
    }
    tables
}

/// Everything that a reader sees, or saw at a timestamp.
pub(crate) async fn state(atlas: &Atlas, at: Option<Timestamp>) -> State {
    let options = BeginOptions { read_only: true, at, ..BeginOptions::default() };
    let reader = atlas.transactions().begin(options).await.expect("it begins");
    let mut state = State::new();
    for (name, table) in tables(atlas).await {
        for (cell, value) in scan_cells(&reader, &table, ScanOptions::default()).await {
            state.insert((name.to_owned(), text(&cell.row)), text(&value));
        }
    }
    state
}

/// A transaction that has begun and holds what it will write.
pub(crate) struct Begun {
    transaction: Transaction,
    writes: Writes,
    pub(crate) start_ts: Timestamp,
}

impl Begun {
    /// Writes rows that nobody else does.
    pub(crate) async fn new(atlas: &Atlas, id: &str) -> Begun {
        let value = Some(id.to_owned());
        let writes = vec![("accounts", id.to_owned(), value.clone()), ("ledger", id.to_owned(), value)];
        Begun::writing(atlas, &tables(atlas).await, writes).await.expect("it begins")
    }

    async fn writing(atlas: &Atlas, tables: &BTreeMap<&'static str, TableRef>, writes: Writes) -> Result<Begun> {
        let transaction = atlas.begin().await?;
        for (table, row, value) in &writes {
            match value {
                Some(value) => transaction.put(&tables[table], cell(row), value.clone()).await?,
                None => transaction.delete(&tables[table], cell(row)).await?,
            }
        }
        Ok(Begun { start_ts: transaction.start_ts(), transaction, writes })
    }

    pub(crate) async fn commit(self, log: &Mutex<Log>) -> Result<Option<Timestamp>> {
        let outcome = self.transaction.commit().await;
        log.lock().note(self.start_ts, self.writes, &outcome);
        outcome
    }
}

/// Tasks that write until they are stopped.
pub(crate) struct Load {
    pub(crate) log: Arc<Mutex<Log>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<TaskHandle<()>>,
}

impl Load {
    /// `name` tells what it writes from what others wrote.
    pub(crate) async fn start(atlas: &Atlas, name: &'static str) -> Load {
        let (log, stop) = (Arc::<Mutex<Log>>::default(), Arc::<AtomicBool>::default());
        let tables = tables(atlas).await;
        let tasks = (0..WRITERS)
            .map(|writer| {
                let (atlas, log, stop, tables) = (atlas.clone(), Arc::clone(&log), Arc::clone(&stop), tables.clone());
                tokio::spawn(async move {
                    for round in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let writes = some_writes(format!("{name}-{writer}-{round}"));
                        // A transaction that could not begin has written nothing.
                        let Ok(begun) = Begun::writing(&atlas, &tables, writes).await else { continue };
                        let _ = begun.commit(&log).await;
                        // The nodes' tools want to get something done, too.
                        tokio::time::sleep(PAUSE).await;
                    }
                })
            })
            .collect();
        Load { log, stop, tasks }
    }

    /// Waits until so many more transactions were acknowledged.
    pub(crate) async fn acknowledge(&self, more: usize) {
        let before = self.log.lock().commits.len();
        until("more commits", || self.log.lock().commits.len() >= before + more).await;
    }

    pub(crate) async fn stop(self) -> Log {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("it ends");
        }
        self.log.lock().clone()
    }
}

fn some_writes(id: String) -> Writes {
    let mut rng = rand::rng();
    let mut writes = Writes::new();
    for table in ["accounts", "notes"] {
        let first = rng.random_range(0..ROWS);
        let second = (first + rng.random_range(1..ROWS)) % ROWS;
        for row in [first, second] {
            writes.push((table, format!("row{row:03}"), rng.random_bool(0.8).then(|| id.clone())));
        }
    }
    writes.push(("ledger", id.clone(), Some(id)));
    writes
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A transaction on a thread of its own that stands between steps 9 and 10 of its commit: it has drawn its commit
/// timestamp, has found all its locks held, and is about to write its entry.
pub(crate) struct Held {
    thread: JoinHandle<Result<Option<Timestamp>>>,
    gate: Arc<Gate>,
    pub(crate) start_ts: Timestamp,
}

#[derive(Default)]
struct Gate {
    /// Whether it stands there, and whether it may go on.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Held {
    pub(crate) async fn start(atlas: &Atlas, id: &'static str, log: &Arc<Mutex<Log>>) -> Held {
        let gate = Arc::new(Gate::default());
        let held_at = CommitStep::RecordCommit.fail_point();
        fail::cfg_callback(held_at, {
            let gate = Arc::clone(&gate);
            move || {
                // Every other transaction passes.
                if std::thread::current().name() != Some(id) {
                    return;
                }
                let mut state = gate.state.lock();
                state.0 = true;
                gate.changed.notify_all();
                while !state.1 {
                    gate.changed.wait(&mut state);
                }
            }
        })
        .expect("fail points are built in");
        let begun = Begun::new(atlas, id).await;
        let (start_ts, log) = (begun.start_ts, Arc::clone(log));
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(begun.commit(&log))
        };
        let thread = std::thread::Builder::new().name(id.to_owned()).spawn(work).expect("a thread");
        until("the transaction that is to be held", || gate.state.lock().0).await;
        Held { thread, gate, start_ts }
    }

    /// Lets it go on. What it was told.
    pub(crate) async fn release(self) -> Result<Option<Timestamp>> {
        self.gate.state.lock().1 = true;
        self.gate.changed.notify_all();
        let told = tokio::task::spawn_blocking(move || self.thread.join()).await.expect("it ends");
        fail::remove(CommitStep::RecordCommit.fail_point());
        told.expect("it does not panic")
    }
}
