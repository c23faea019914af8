//! Two processes of the operating system on one PostgreSQL: one owns the store, and loses it in every way there is.
//!
//! This program starts itself as a child that opens the store and does as it is told. Between the batch that was built
//! and the batch that is sent it stops itself (SIGSTOP), or dies (SIGKILL). The parent opens the store when it may,
//! writes the same cells, and lets the child go on.

mod common;

use atlas::config::AtlasConfig;
use atlas::ops::Operations;
use atlas::schema::ConflictHandler;
use atlas::timestamp::{OracleRecord, read_stored};
use atlas::transaction::CommitStep;
use atlas::transaction::entry::{Entry, transactions_table};
use atlas::{Atlas, Result, Timestamp};
use common::faulty::PATIENCE;
use common::*;
use rustix::process::{Pid, Signal, getpid, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// What tells the child what to do: `namespace`, `kind` of end, bytes from which data are put ahead, whether commits go
/// step by step; lines of one.
const ORDERS: &str = "ATLAS_LEASE_ORDERS";
const LEASE: Duration = Duration::from_secs(2);

fn config(place: &Place, lane: Lane) -> AtlasConfig {
    config_of(place.config(lane), place.namespace(), u64::MAX)
}

fn config_of(mut config: AtlasConfig, namespace: &str, ahead_over: u64) -> AtlasConfig {
    config.namespace = namespace.to_owned();
    config.leader.lease = LEASE;
    if ahead_over < u64::MAX {
        config.transactions.pipeline_size_max = atlas::config::ByteSize(ahead_over);
    }
    config
}

// ---- the child

/// Past the capturing of the test harness.
fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "child: {line}").expect("the parent listens");
    out.flush().expect("the parent listens");
}

/// The next line of the parent.
fn told() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the parent speaks");
    line.trim().to_owned()
}

fn stop_at(step: CommitStep, signal: Signal) {
    let reached = move || {
        tell("at the commit");
        kill_process(getpid(), signal).expect("a process may signal itself");
        if signal == Signal::KILL {
            // Nothing more happens on this thread, however long the signal takes.
            loop {
                std::thread::park();
            }
        }
        // The signal may reach another thread first: this one must not run on before the process stands still.
        std::thread::sleep(Duration::from_millis(500));
        // Once: what the leader does later has to go through.
        fail::remove(step.fail_point());
    };
    fail::cfg_callback(step.fail_point(), reached).expect("fail points are built in");
}

async fn write_stale(atlas: &Atlas) -> Result<Option<Timestamp>> {
    let t = table(atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await;
    let tx = atlas.begin().await?;
    tell(&format!("began {}", tx.start_ts()));
    for row in ["x", "only stale"] {
        tx.put(&t, cell(row), "stale").await?;
    }
    tx.commit().await
}

/// The child's life, when this program is started as one; otherwise there is nothing to do.
#[test]
fn child() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let lines: Vec<&str> = orders.split('\n').collect();
    let (namespace, kind) = (lines[0], lines[1]);
    let steps: bool = lines[3].parse().expect("true or false");
    let lane = if steps { POSTGRES_STEPS } else { POSTGRES_PIPELINE };
    let config = config_of(
        AtlasConfig {
            key_value_service: atlas::config::KvsConfig::Postgres(common::postgres::settings()),
            transactions: lane.transactions(),
            ..AtlasConfig::default()
        },
        namespace,
        lines[2].parse().expect("a number"),
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    runtime.block_on(async {
        let atlas = Atlas::open_unserved(config, Duration::ZERO).await.expect("the store opens");
        let t = table(&atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await;
        write(&atlas, &t, &[("x", "old")]).await;
        tell("open");
        assert_eq!(told(), "go on");
        match kind {
            "close" => {
                atlas.close().await.expect("the store closes");
                tell("closed");
                return;
            }
            "die" => stop_at(CommitStep::RecordCommit, Signal::KILL),
            "sleep" => stop_at(CommitStep::RecordCommit, Signal::STOP),
            "sleep early" => stop_at(CommitStep::EnqueueForSweep, Signal::STOP),
            kind => panic!("{kind}?"),
        }
        let outcome = write_stale(&atlas).await;
        tell(&match outcome {
            Ok(commit_ts) => format!("committed {commit_ts:?}"),
            Err(error) => error.code().to_owned(),
        });
        let next = write_stale(&atlas).await;
        tell(
            next.map_or_else(|error| error.code().to_owned(), |commit_ts| format!("committed {commit_ts:?}")).as_str(),
        );
        let lost = atlas.transactions().oracle().lost();
        let noticed = tokio::time::timeout(PATIENCE, lost.cancelled()).await;
        tell(if noticed.is_ok() { "noticed" } else { "did not notice" });
    });
}

// ---- the parent

struct Other {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Other {
    fn start(place: &Place, lane: Lane, kind: &str, ahead_over: u64) -> Other {
        let mut child = Command::new(std::env::current_exe().expect("this program has a file"))
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(ORDERS, format!("{}\n{kind}\n{ahead_over}\n{}", place.namespace(), !lane.is_pipeline()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        Other { child, lines }
    }

    /// What the child says next, or nothing when it has ended.
    fn says(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).expect("the child can be heard") == 0 {
                return None;
            }
            // The harness says things too, and on the same line.
            if let Some((_, said)) = line.split_once("child: ") {
                return Some(said.trim().to_owned());
            }
        }
    }

    #[track_caller]
    fn must_say(&mut self, expected: &str) {
        assert_eq!(self.says().as_deref(), Some(expected));
    }

    fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{line}").expect("the child listens");
    }

    /// Tells it to go on, and waits until it has begun and stands at its commit. Answers its start timestamp.
    fn reach_the_commit(&mut self) -> Timestamp {
        self.tell("go on");
        let began = self.says().expect("it begins");
        let start_ts = began.strip_prefix("began ").expect("it begins").parse().expect("a timestamp");
        self.must_say("at the commit");
        Timestamp::new(start_ts).expect("a timestamp")
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until the operating system has stopped it.
    fn await_stop(&self) {
        let stat = format!("/proc/{}/stat", self.child.id());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = std::fs::read_to_string(&stat).expect("the child is there");
            if state.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T')) {
                return;
            }
            assert!(Instant::now() < deadline, "the child does not stop: {state}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Only if the test has failed: otherwise it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn open(place: &Place) -> Result<Atlas> {
    open_as(place, POSTGRES_PIPELINE).await
}

async fn open_as(place: &Place, lane: Lane) -> Result<Atlas> {
    Atlas::open_unserved(config(place, lane), Duration::ZERO).await
}

async fn record(place: &Place) -> OracleRecord {
    read_stored(place.open().await).await.expect("the record can be read").expect("there is one")
}

async fn entry(atlas: &Atlas, start_ts: Timestamp) -> Option<Entry> {
    let kvs = atlas.transactions().kvs();
    let found = kvs.get_atomic(&transactions_table(), &[Entry::cell(start_ts)]).await.expect("entries can be read");
    found[0].as_ref().map(|bytes| Entry::decode(start_ts, bytes).expect("the entry was written"))
}

fn is_child() -> bool {
    std::env::var_os(ORDERS).is_some()
}

fn run(test: impl Future<Output = ()>) {
    if is_child() {
        return; // The child runs its own test only.
    }
    tokio::runtime::Runtime::new().expect("a runtime can be made").block_on(test);
}

#[test]
fn a_process_that_slept_over_its_lease_commits_nothing_and_is_told() {
    run(async {
        for ahead_over in [u64::MAX, 0] {
            let place = Place::new(StoreKind::Postgres);
            let mut other = Other::start(&place, POSTGRES_PIPELINE, "sleep", ahead_over);
            other.must_say("open");
            let start_ts = other.reach_the_commit();
            other.await_stop();
            let atlas = open(&place).await.expect("its owner is silent");
            let t = table(&atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await;
            assert_eq!(read(&atlas, &t, "x").await.as_deref(), Some("old"));
            write(&atlas, &t, &[("x", "new")]).await;
            kill_process(other.pid(), Signal::CONT).expect("it can be woken");
            other.must_say("LOST_LEADERSHIP");
            // Whatever comes later is told the same, and begins nothing.
            other.must_say("LOST_LEADERSHIP");
            other.must_say("noticed");
            assert!(other.child.wait().expect("it can be waited for").success());
            assert_eq!(entry(&atlas, start_ts).await, None, "nothing was applied");
            assert_eq!(everything(&atlas.begin().await.expect("it begins"), &t).await, ["x/v=new"]);
            write(&atlas, &t, &[("x", "newer")]).await;
            atlas.close().await.expect("the store closes");
        }
    });
}

/// Step by step: asleep between its last check and its entry, and nobody meets its data. Whoever prepares a copy decides.
#[test]
fn a_process_that_slept_at_its_entry_commits_nothing_once_all_is_settled() {
    run(async {
        let place = Place::new(StoreKind::Postgres);
        let mut other = Other::start(&place, POSTGRES_STEPS, "sleep", u64::MAX);
        other.must_say("open");
        let start_ts = other.reach_the_commit();
        other.await_stop();
        let atlas = open_as(&place, POSTGRES_STEPS).await.expect("its owner is silent");
        assert_eq!(entry(&atlas, start_ts).await, None, "a takeover alone decides nothing");
        atlas.backup_lock_acquire("a copy is made").await.expect("everything is settled");
        assert_eq!(entry(&atlas, start_ts).await, Some(Entry::RolledBack));
        kill_process(other.pid(), Signal::CONT).expect("it can be woken");
        other.must_say("ROLLED_BACK");
        // Its lease is over; whether it knows yet that there is a successor is a matter of moments.
        let next = other.says();
        assert!(matches!(next.as_deref(), Some("LOST_LEADERSHIP" | "UNAVAILABLE")), "{next:?}");
        other.must_say("noticed");
        assert!(other.child.wait().expect("it can be waited for").success());
        let t = table(&atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await;
        assert_eq!(everything(&atlas.begin().await.expect("it begins"), &t).await, ["x/v=old"]);
        atlas.close().await.expect("the store closes");
    });
}

/// Step by step: asleep before its queue entry. The database refuses that, whatever time it is.
#[test]
fn a_process_that_slept_before_its_data_puts_none() {
    run(async {
        let place = Place::new(StoreKind::Postgres);
        let mut other = Other::start(&place, POSTGRES_STEPS, "sleep early", u64::MAX);
        other.must_say("open");
        let start_ts = other.reach_the_commit();
        other.await_stop();
        let atlas = open_as(&place, POSTGRES_STEPS).await.expect("its owner is silent");
        atlas.backup_lock_acquire("a copy is made").await.expect("everything is settled");
        kill_process(other.pid(), Signal::CONT).expect("it can be woken");
        other.must_say("LOST_LEADERSHIP");
        other.must_say("LOST_LEADERSHIP");
        other.must_say("noticed");
        assert!(other.child.wait().expect("it can be waited for").success());
        assert_eq!(entry(&atlas, start_ts).await, None);
        let t = table(&atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await;
        let bounds = [atlas::kvs_api::CellBound::new(cell("x"), Timestamp::MAX)];
        let versions = atlas.transactions().kvs().versions(&t, &bounds).await.expect("versions can be read");
        assert!(versions[0].iter().all(|version| version.ts != start_ts), "it put something");
        atlas.close().await.expect("the store closes");
    });
}

#[test]
fn a_process_that_was_killed_is_followed_and_nothing_of_its_last_batch_is_there() {
    run(async {
        let place = Place::new(StoreKind::Postgres);
        let mut other = Other::start(&place, POSTGRES_PIPELINE, "die", u64::MAX);
        other.must_say("open");
        let start_ts = other.reach_the_commit();
        assert_eq!(other.child.wait().expect("it can be waited for").signal(), Some(9));
        let left = record(&place).await;
        assert!(left.holder.is_some(), "it gave nothing up");
        let atlas = open(&place).await.expect("its owner is dead");
        assert_eq!(atlas.transactions().oracle().epoch(), left.epoch + 1);
        let t = table(&atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await;
        assert_eq!(everything(&atlas.begin().await.expect("it begins"), &t).await, ["x/v=old"]);
        assert_eq!(entry(&atlas, start_ts).await, None);
        write(&atlas, &t, &[("x", "new")]).await;
        atlas.close().await.expect("the store closes");
    });
}

#[test]
fn a_process_that_lives_is_left_in_peace_and_followed_when_it_has_closed() {
    run(async {
        let place = Place::new(StoreKind::Postgres);
        let mut other = Other::start(&place, POSTGRES_PIPELINE, "close", u64::MAX);
        other.must_say("open");
        let pid = other.child.id();
        let refused = open(&place).await.expect_err("it is in use");
        assert_eq!(refused.exit_code(), atlas::exit::REFUSED, "{refused}");
        assert!(refused.to_string().contains(&format!("process {pid} ")), "{refused}");
        other.tell("go on");
        other.must_say("closed");
        assert!(other.child.wait().expect("it can be waited for").success());
        let left = record(&place).await;
        assert_eq!((left.holder, left.contact), (None, None), "nobody need wait");
        let atlas = open(&place).await.expect("it was given up");
        let t = table(&atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await;
        assert_eq!(read(&atlas, &t, "x").await.as_deref(), Some("old"));
        atlas.close().await.expect("the store closes");
    });
}
