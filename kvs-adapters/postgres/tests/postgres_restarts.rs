//! A server that stops and crashes under load: nothing acknowledged is lost, nothing refused is there, and everything
//! goes on by itself.

mod common;

use atlas_kvs::{
    AtomicBatch, BatchGuard, BatchOp, Cell, CellBound, CheckAndSet, Durability, KeyValueService, KvsError, Result,
    TableKind, TableRef, Timestamp,
};
use atlas_kvs_postgres::{PostgresConfig, PostgresStore};
use bytes::Bytes;
use common::server::OwnServer;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const WORKERS: u64 = 6;
const ROUNDS: u64 = 8;
/// Successes between two interruptions, of all workers together.
const PROGRESS: u64 = 60;
const PATIENCE: Duration = Duration::from_secs(60);

fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

/// What a caller was told about one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Done,
    NotDone,
    Unknown,
}

fn told(answer: Result<()>) -> Told {
    match answer {
        Ok(()) => Told::Done,
        Err(KvsError::Unavailable { .. }) => Told::NotDone,
        Err(KvsError::Indeterminate { .. }) => Told::Unknown,
        Err(error) => panic!("a restart is no reason for {error:?}"),
    }
}

struct Load {
    store: PostgresStore,
    over: AtomicBool,
    done: AtomicU64,
}

/// What one worker did, by timestamp: alternately a put and a batch, into two tables each.
type Story = BTreeMap<u64, Told>;

impl Load {
    async fn run(self: Arc<Load>, worker: u64) -> Story {
        let mut story = Story::new();
        let mut counter = 0_u64;
        let mut ts = 0;
        while !self.over.load(Ordering::SeqCst) {
            ts += 1;
            let told = told(if ts % 2 == 0 { self.put(worker, ts).await } else { self.apply(worker, ts).await });
            story.insert(ts, told);
            counter = self.count(worker, counter).await;
            match told {
                Told::Done => drop(self.done.fetch_add(1, Ordering::SeqCst)),
                Told::NotDone | Told::Unknown => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        assert_eq!(self.counted(worker).await, counter, "worker {worker}");
        story
    }

    async fn put(&self, worker: u64, ts: u64) -> Result<()> {
        let cells = || vec![(cell(worker, ts), value(ts))];
        self.store.put(vec![(table("t"), cells()), (table("u"), cells())], Timestamp::saturating(ts)).await
    }

    async fn apply(&self, worker: u64, ts: u64) -> Result<()> {
        let put = |name: &str| BatchOp::Put {
            table: table(name),
            cell: cell(worker, ts),
            ts: Timestamp::saturating(ts),
            value: value(ts),
        };
        let guard = BatchGuard { table: table("a"), cell: fence(), expected: value(0) };
        self.store.apply(AtomicBatch::new(vec![put("t"), put("u")]).guarded(Some(guard)), Durability::Synced).await
    }

    /// Adds one to a counter that no other worker has, and returns what it is now.
    async fn count(&self, worker: u64, counter: u64) -> u64 {
        let expected = (counter > 0).then(|| value(counter));
        let new = Some(value(counter + 1));
        match self.store.check_and_set(&table("a"), &cell(worker, 0), expected, new).await {
            Ok(CheckAndSet::Applied) => counter + 1,
            Ok(mismatch) => panic!("nobody else counts here: {mismatch:?}, and it was {counter}"),
            Err(KvsError::Unavailable { .. }) => counter,
            // The server may still be at it, but it can't be behind the next one that is answered.
            Err(KvsError::Indeterminate { .. }) => {
                let now = self.counted(worker).await;
                assert!(now == counter || now == counter + 1, "{now} after {counter}");
                now
            }
            Err(error) => panic!("a restart is no reason for {error:?}"),
        }
    }

    async fn counted(&self, worker: u64) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.store.get_atomic(&table("a"), &[cell(worker, 0)]).await {
                Ok(values) => return values[0].as_ref().map_or(0, number),
                Err(error) => assert!(error.is_retriable() && Instant::now() < deadline, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn wait_for_progress(&self) {
        let goal = self.done.load(Ordering::SeqCst) + PROGRESS;
        let deadline = Instant::now() + PATIENCE;
        while self.done.load(Ordering::SeqCst) < goal {
            assert!(Instant::now() < deadline, "the store does not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn cell(worker: u64, ts: u64) -> Cell {
    Cell::copy_from(format!("{worker}"), format!("{ts}"))
}

fn fence() -> Cell {
    Cell::copy_from("fence", "")
}

fn value(number: u64) -> Bytes {
    Bytes::from(number.to_string())
}

fn number(value: &Bytes) -> u64 {
    String::from_utf8_lossy(value).parse().expect("it was written as a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_survives_and_nothing_refused_is_there() {
    let server = OwnServer::new(&[]);
    let config = PostgresConfig { pool_size: 4, ..server.config("n") };
    let store = PostgresStore::connect(config).await.expect("the server is there");
    for (name, kind) in [("t", TableKind::Versioned), ("u", TableKind::Versioned), ("a", TableKind::Atomic)] {
        store.create_table(&table(name), kind, Bytes::new()).await.expect("can be created");
    }
    store.put_unless_exists(&table("a"), &fence(), value(0)).await.expect("can be put");
    let load = Arc::new(Load { store, over: AtomicBool::new(false), done: AtomicU64::new(0) });
    let workers: Vec<_> = (0..WORKERS).map(|worker| tokio::spawn(Arc::clone(&load).run(worker))).collect();
    let server = Arc::new(server);
    for round in 0..ROUNDS {
        load.wait_for_progress().await;
        let server = Arc::clone(&server);
        // A crash, mostly; or connections are ended, but the log is complete.
        let mode = if round % 3 == 2 { "fast" } else { "immediate" };
        let restarted = tokio::task::spawn_blocking(move || {
            server.stop(mode);
            server.start();
        });
        restarted.await.expect("the server can be restarted");
    }
    load.wait_for_progress().await;
    load.over.store(true, Ordering::SeqCst);
    let mut stories = Vec::new();
    for worker in workers {
        stories.push(worker.await.expect("no worker meets a contradiction"));
    }

    let mut numbers = BTreeMap::from([("done", 0), ("not done", 0), ("unknown", 0)]);
    for (worker, story) in (0..).zip(&stories) {
        let asked: Vec<_> = story.keys().map(|ts| CellBound::new(cell(worker, *ts), Timestamp::MAX)).collect();
        let first = load.store.get(&table("t"), &asked).await.expect("can be read");
        let second = load.store.get(&table("u"), &asked).await.expect("can be read");
        for ((ts, told), (first, second)) in story.iter().zip(first.into_iter().zip(second)) {
            assert_eq!(first, second, "worker {worker}, timestamp {ts}: a part of it");
            let there = first.is_some();
            let (word, fits) = match told {
                Told::Done => ("done", there),
                Told::NotDone => ("not done", !there),
                Told::Unknown => ("unknown", true),
            };
            assert!(fits, "worker {worker}, timestamp {ts}: {told:?}, and there: {there}");
            *numbers.entry(word).or_default() += 1;
        }
    }
    println!("{numbers:?}");
    assert!(numbers["not done"] + numbers["unknown"] >= ROUNDS, "the interruptions were felt: {numbers:?}");
}
