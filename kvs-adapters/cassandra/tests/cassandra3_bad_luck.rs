//! Three nodes, of which some are killed, hang and come back: what goes on, what waits, and what stays true.

mod common;

use atlas_kvs::{
    Availability, Cell, CellBound, CheckAndSet, KeyValueService, KvsError, PutUnlessExists, Result, RowRange, TableRef,
    Timestamp, VersionScan,
};
use atlas_kvs_cassandra::CassandraStore;
use bytes::Bytes;
use common::{Namespace, atomic, cell, delete, everything, newest, put, scan, table, version, versioned};
use futures::TryStreamExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, MutexGuard};

/// How long the cluster may take to notice something.
const PATIENCE: Duration = Duration::from_secs(90);

/// Nodes are disturbed by one test at a time.
static NODES: Mutex<()> = Mutex::const_new(());

struct Nodes {
    // Dropped last.
    namespace: Namespace,
    _alone: MutexGuard<'static, ()>,
}

impl Nodes {
    async fn new() -> Nodes {
        let alone = NODES.lock().await;
        let namespace = Namespace::with(|config| config.request_timeout = Duration::from_secs(11));
        assert_eq!(namespace.config.contact_points.len(), 3, "these tests need three nodes: scripts/with-cassandra 3");
        Nodes { namespace, _alone: alone }
    }

    /// The address of a node, as errors name it.
    fn address(&self, node: usize) -> &str {
        &self.namespace.config.contact_points[node - 1]
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // Whatever a failed test has left.
        for node in ["1", "2", "3"] {
            let _ = run(&["resume", node]);
            let started = run(&["start", node]);
            assert!(started || std::thread::panicking(), "node {node} runs again");
        }
    }
}

/// Calls scripts/cassandra, which finds the cluster by the same variables as we.
fn run(arguments: &[&str]) -> bool {
    let script =
        Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the tests")).join("../../scripts/cassandra");
    // No node takes longer; one that does must not hold up all tests.
    let mut command = std::process::Command::new("timeout");
    command.args(["--kill-after=10", "400"]).arg(script).args(arguments);
    command.output().expect("the script can be run").status.success()
}

async fn nodes(action: &'static str, node: usize) {
    let done = tokio::task::spawn_blocking(move || run(&[action, &node.to_string()])).await.expect("no panic");
    assert!(done, "scripts/cassandra {action} {node}");
}

/// Repeats a call until it succeeds, for as long as it fails in a way that allows it.
async fn in_the_end<T>(what: &str, call: impl AsyncFn() -> Result<T>) -> T {
    let begin = Instant::now();
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error @ (KvsError::Unavailable { .. } | KvsError::Indeterminate { .. })) => {
                assert!(begin.elapsed() < PATIENCE, "{what} does not succeed: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => panic!("{what}: {error:?}"),
        }
    }
}

async fn until_available(store: &CassandraStore, wanted: impl Fn(&Availability) -> bool) -> Availability {
    let begin = Instant::now();
    loop {
        let availability = store.availability().await;
        if wanted(&availability) {
            return availability;
        }
        assert!(begin.elapsed() < PATIENCE, "still {availability:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Adds one to a counter, whatever it takes, and never twice.
async fn increment(store: &CassandraStore, table: &TableRef, cell: &Cell, mine: u32) {
    let begin = Instant::now();
    // A value of its own for each increment tells whether it was ours that got through.
    let goal = Bytes::from(mine.to_string());
    let before = (mine > 1).then(|| Bytes::from((mine - 1).to_string()));
    loop {
        match store.check_and_set(table, cell, before.clone(), Some(goal.clone())).await {
            Ok(CheckAndSet::Applied) => return,
            Ok(CheckAndSet::Mismatch(Some(standing))) if standing == goal => return,
            Ok(CheckAndSet::Mismatch(standing)) => panic!("{standing:?} stands before {mine}"),
            Err(KvsError::Unavailable { .. } | KvsError::Indeterminate { .. }) => {
                assert!(begin.elapsed() < PATIENCE, "increment {mine} gets nowhere");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn names(error: &KvsError, address: &str) -> bool {
    matches!(error, KvsError::Unavailable { reason, .. } if reason.contains(address))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_node_of_three_may_be_down_and_what_deletes_waits_for_it() {
    let nodes_ = Nodes::new().await;
    let store = nodes_.namespace.open().await;
    let (t, a) = (versioned(&store, "t").await, atomic(&store, "a").await);
    for ts in 1..=3 {
        put(&store, &t, "everywhere", ts, "v").await;
    }
    nodes("kill", 2).await;
    let address = nodes_.address(2);

    // Reads, writes and commits go on. At the moment of the crash an answer may be lost; afterwards none is.
    in_the_end("a put", async || store.put_versions(&t, vec![version("behind", 1, "v")]).await).await;
    increment(&store, &a, &cell("counter"), 1).await;
    let seen = until_available(&store, |availability| matches!(availability, Availability::Quorum(_))).await;
    assert!(matches!(&seen, Availability::Quorum(who) if who.contains(address)), "{seen:?} names {address}");
    for number in 2..30 {
        put(&store, &t, "behind", number, "v").await;
        assert_eq!(newest(&store, &t, "behind").await.map(|(ts, _)| ts), Some(number));
        increment(&store, &a, &cell("counter"), number as u32).await;
        let commit = store.put_unless_exists(&a, &cell(number.to_string()), Bytes::from("commit")).await;
        assert_eq!(commit.expect("commits go on"), PutUnlessExists::Written);
    }
    assert_eq!(scan(&store, &t, everything()).await.len(), 2);

    // What asks all replicas says who is missing, and does nothing.
    let listed = store.versions(&t, &[CellBound::new(cell("everywhere"), Timestamp::MAX)]).await;
    let swept: Result<Vec<_>> =
        store.scan_versions(&t, VersionScan::new(RowRange::all(), Timestamp::MAX)).try_collect().await;
    for (what, outcome) in [
        ("delete", delete(&store, &t, "everywhere", 1).await),
        ("delete of rows", store.delete_rows(&t, &RowRange::all()).await),
        ("listing", listed.map(drop)),
        ("listing of all", swept.map(drop)),
        ("truncate", store.truncate_table(&t).await),
        ("drop", store.drop_table(&a).await),
    ] {
        let error = outcome.expect_err(what);
        assert!(names(&error, address), "{what} names {address}: {error:?}");
    }
    let oldest = store.get(&t, &[CellBound::new(cell("everywhere"), Timestamp::saturating(2))]).await;
    assert_eq!(oldest.expect("can be read")[0].as_ref().map(|value| value.ts), Some(Timestamp::FIRST));

    // Back again, with what it had, and hints of what it missed on the way to it.
    nodes("start", 2).await;
    until_available(&store, |availability| *availability == Availability::All).await;
    for ts in 1..=3 {
        in_the_end("a deletion", async || delete(&store, &t, "everywhere", ts).await).await;
    }
    for ts in 1..30 {
        in_the_end("a deletion", async || delete(&store, &t, "behind", ts).await).await;
    }
    // Whoever answers, nothing comes back.
    for down in [1, 3] {
        nodes("kill", down).await;
        let read = async || store.get(&t, &[CellBound::new(cell("everywhere"), Timestamp::MAX)]).await;
        assert_eq!(in_the_end("a read", read).await, [None], "without node {down}");
        assert_eq!(newest(&store, &t, "behind").await, None, "without node {down}");
        assert_eq!(scan(&store, &t, everything()).await, []);
        let counter = store.get_atomic(&a, &[cell("counter")]).await;
        assert_eq!(counter.expect("can be read"), [Some(Bytes::from("29"))]);
        nodes("start", down).await;
        until_available(&store, |availability| *availability == Availability::All).await;
    }
}

/// A node that hangs is worse than one that is dead: its connections stay, and nobody says no.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_node_of_three_may_hang() {
    let nodes_ = Nodes::new().await;
    let store = Arc::new(nodes_.namespace.open().await);
    let (t, a) = (versioned(&store, "t").await, atomic(&store, "a").await);
    put(&store, &t, "r", 1, "v").await;
    increment(&store, &a, &cell("counter"), 1).await;
    nodes("pause", 3).await;
    let address = nodes_.address(3);
    for number in 2..20_u32 {
        let ts = u64::from(number);
        in_the_end("a put", async || store.put_versions(&t, vec![version("r", ts, "v")]).await).await;
        let read = async || store.get(&t, &[CellBound::new(cell("r"), Timestamp::MAX)]).await;
        let seen = in_the_end("a read", read).await;
        assert_eq!(seen[0].as_ref().map(|value| value.ts.get()), Some(ts));
        increment(&store, &a, &cell("counter"), number).await;
    }
    let listed = async || store.versions(&t, &[CellBound::new(cell("r"), Timestamp::MAX)]).await;
    let error = listed().await.expect_err("one replica does not answer");
    assert!(names(&error, address), "{error:?} names {address}");
    let error = delete(&store, &t, "r", 1).await.expect_err("one replica does not answer");
    assert!(names(&error, address), "{error:?} names {address}");
    let seen = store.availability().await;
    assert!(matches!(&seen, Availability::Quorum(who) if who.contains(address)), "{seen:?}");
    nodes("resume", 3).await;
    until_available(&store, |availability| *availability == Availability::All).await;
    let counter = async || store.get_atomic(&a, &[cell("counter")]).await;
    assert_eq!(in_the_end("a read", counter).await, [Some(Bytes::from("19"))], "every increment counted once");
    assert_eq!(in_the_end("a listing", listed).await[0].len(), 19);
    in_the_end("a deletion", async || delete(&store, &t, "r", 1).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_of_three_down_stop_everything_and_lose_nothing() {
    let nodes_ = Nodes::new().await;
    let store = nodes_.namespace.open().await;
    let (t, a) = (versioned(&store, "t").await, atomic(&store, "a").await);
    put(&store, &t, "r", 1, "v").await;
    let set = store.put_unless_exists(&a, &cell("r"), Bytes::from("v")).await;
    assert_eq!(set.expect("can be set"), PutUnlessExists::Written);
    nodes("kill", 2).await;
    nodes("kill", 3).await;
    until_available(&store, |availability| matches!(availability, Availability::NoQuorum(_))).await;
    let read = store.get(&t, &[CellBound::new(cell("r"), Timestamp::MAX)]).await;
    assert!(matches!(read, Err(KvsError::Unavailable { .. })), "{read:?}");
    let write = store.put_versions(&t, vec![version("r", 2, "v")]).await;
    assert!(matches!(write, Err(KvsError::Unavailable { .. } | KvsError::Indeterminate { .. })), "{write:?}");
    let commit = store.put_unless_exists(&a, &cell("new"), Bytes::from("v")).await;
    assert!(matches!(commit, Err(KvsError::Unavailable { .. } | KvsError::Indeterminate { .. })), "{commit:?}");
    let scanned: Result<Vec<_>> = store.scan(&table("t"), everything()).try_collect().await;
    assert!(matches!(scanned, Err(KvsError::Unavailable { .. })), "{scanned:?}");
    nodes("start", 2).await;
    nodes("start", 3).await;
    until_available(&store, |availability| *availability == Availability::All).await;
    let read = async || store.get(&t, &[CellBound::new(cell("r"), Timestamp::saturating(2))]).await;
    assert_eq!(in_the_end("a read", read).await[0].as_ref().map(|value| value.ts.get()), Some(1));
    let counter = async || store.get_atomic(&a, &[cell("r")]).await;
    assert_eq!(in_the_end("a read", counter).await, [Some(Bytes::from("v"))]);
    in_the_end("a put", async || store.put_versions(&t, vec![version("r", 3, "v")]).await).await;
}
