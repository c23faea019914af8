//! Two processes of the operating system on one Cassandra cluster: one owns the store, stops in the middle of a commit
//! (SIGSTOP) or dies there (SIGKILL), and the other takes over, works on the same cells, and lets the first go on.
//!
//! Cassandra has no fence: nothing refuses a write because of who sends it. What is promised instead, and proven here for
//! every step at which the first can stand, is in `docs/guarantees.md`, section "Step by step: the entry":
//!
//! * up to step 9 it finds out by itself that it has lost the store: nothing of it is committed;
//! * between 9 and 10 whoever has met its data has rolled it back, whole, and its compare-and-set finds that;
//! * if nobody has met them, it commits below all that the successor has issued: nobody has seen the contrary.

mod common;
#[path = "cases/other.rs"]
mod other;

use atlas::config::{AtlasConfig, KvsConfig};
use atlas::schema::ConflictHandler;
use atlas::timestamp::{OracleRecord, read_stored};
use atlas::transaction::CommitStep;
use atlas::transaction::entry::{Entry, transactions_table};
use atlas::{Atlas, Result, TableRef, Timestamp};
use common::faulty::PATIENCE;
use common::*;
use other::{Other, run, stop_before, tell, told};
use rustix::process::{Signal, kill_process};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

/// A busy node may answer a renewal late, and nobody is to lose the store for that.
const LEASE: Duration = Duration::from_secs(6);

fn config(namespace: &str) -> AtlasConfig {
    let mut config = AtlasConfig {
        namespace: namespace.to_owned(),
        key_value_service: KvsConfig::Cassandra(cassandra::settings()),
        transactions: CASSANDRA_STEPS.transactions(),
        ..AtlasConfig::default()
    };
    config.leader.lease = LEASE;
    config
}

async fn make_table(atlas: &Atlas) -> TableRef {
    table(atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await
}

// ---- the child

async fn write_stale(atlas: &Atlas) -> Result<Option<Timestamp>> {
    let t = make_table(atlas).await;
    let tx = atlas.begin().await?;
    tell(&format!("began {}", tx.start_ts()));
    for row in ["x", "only stale"] {
        tx.put(&t, cell(row), "stale").await?;
    }
    tx.commit().await
}

fn tell_outcome(outcome: Result<Option<Timestamp>>) {
    tell(&match outcome {
        Ok(commit_ts) => format!("committed {}", commit_ts.expect("it wrote something")),
        Err(error) if error.is_retriable() || error.code() == "LOST_LEADERSHIP" => "not committed".to_owned(),
        Err(error) => format!("{}: {error}", error.code()),
    });
}

/// The child's life, when this program is started as one; otherwise there is nothing to do.
#[test]
fn child() {
    let Some(orders) = other::orders() else { return };
    let [namespace, step, signal] = &orders[..] else { panic!("{orders:?}?") };
    let step = CommitStep::ALL.into_iter().find(|known| known.fail_point() == step).expect("a step");
    let signal = if signal == "die" { Signal::KILL } else { Signal::STOP };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    runtime.block_on(async {
        let atlas = Atlas::open_unserved(config(namespace), Duration::ZERO).await.expect("the store opens");
        let t = make_table(&atlas).await;
        write(&atlas, &t, &[("x", "old")]).await;
        tell("open");
        assert_eq!(told(), "go on");
        stop_before(step, signal);
        tell_outcome(write_stale(&atlas).await);
        // Whatever comes later begins nothing.
        tell_outcome(write_stale(&atlas).await);
        let noticed = tokio::time::timeout(PATIENCE, atlas.transactions().oracle().lost().cancelled()).await;
        tell(if noticed.is_ok() { "noticed" } else { "did not notice" });
    });
}

// ---- the parent

/// A child that stands, or lies dead, before a step of its commit, and what it has begun.
fn stand_before(place: &Place, step: CommitStep, signal: &str) -> (Other, Timestamp) {
    let mut other = Other::start(&[place.namespace(), step.fail_point(), signal]);
    other.must_say("open");
    let start_ts = other.reach_the_commit();
    (other, start_ts)
}

async fn successor(place: &Place) -> (Atlas, TableRef) {
    let atlas = Atlas::open_unserved(config(place.namespace()), Duration::ZERO).await.expect("its owner is silent");
    let t = make_table(&atlas).await;
    (atlas, t)
}

async fn record(place: &Place) -> OracleRecord {
    read_stored(place.open().await).await.expect("the record can be read").expect("there is one")
}

async fn entry(atlas: &Atlas, start_ts: Timestamp) -> Option<Entry> {
    let kvs = atlas.transactions().kvs();
    let found = kvs.get_atomic(&transactions_table(), &[Entry::cell(start_ts)]).await.expect("entries can be read");
    found[0].as_ref().map(|bytes| Entry::decode(start_ts, bytes).expect("the entry was written"))
}

async fn seen(atlas: &Atlas, t: &TableRef) -> Vec<String> {
    everything(&atlas.begin().await.expect("it begins"), t).await
}

/// Lets the child go on to its end, and answers what it said of its transaction.
fn wake(mut other: Other) -> String {
    kill_process(other.pid(), Signal::CONT).expect("it can be woken");
    let first = other.says().expect("it goes on");
    // It can't even begin a second one; what it says of that is the last before it notices.
    let mut later = other.says();
    if later.as_deref().is_some_and(|said| said.starts_with("began ")) {
        later = other.says();
    }
    assert_eq!(later.as_deref(), Some("not committed"));
    other.must_say("noticed");
    assert!(bounded::end_of(&mut other.child, "the other process").success());
    first
}

/// The successor has read and written one of the two cells that the other is about to commit.
#[test]
fn whoever_slept_over_its_lease_commits_nothing_that_others_have_met() {
    run(async {
        let steps = [CommitStep::PutData, CommitStep::TakeCommitTs, CommitStep::CheckLocks, CommitStep::RecordCommit];
        let cases = steps.map(|step| async move {
            let place = Place::new(StoreKind::Cassandra);
            let (other, start_ts) = stand_before(&place, step, "sleep");
            other.await_stop();
            let (atlas, t) = successor(&place).await;
            let snapshot = atlas.begin().await.expect("it begins");
            assert_eq!(get(&snapshot, &t, "x").await.as_deref(), Some("old"), "{step}");
            write(&atlas, &t, &[("x", "new")]).await;
            assert_eq!(wake(other), "not committed", "{step}");
            assert!(!matches!(entry(&atlas, start_ts).await, Some(Entry::Committed(_))), "{step}");
            assert_eq!(seen(&atlas, &t).await, ["x/v=new"], "{step}");
            assert_eq!(everything(&snapshot, &t).await, ["x/v=old"], "{step}: a snapshot has changed");
            write(&atlas, &t, &[("x", "newer"), ("only stale", "written since")]).await;
            atlas.close().await.expect("the store closes");
        });
        futures::future::join_all(cases).await;
    });
}

/// The one case in which it commits: allowed, because it is as if it had been a little faster.
#[test]
fn whoever_slept_behind_the_last_check_commits_in_the_past_what_nobody_has_met() {
    run(async {
        let place = Place::new(StoreKind::Cassandra);
        let (other, start_ts) = stand_before(&place, CommitStep::RecordCommit, "sleep");
        other.await_stop();
        let (atlas, t) = successor(&place).await;
        let first = atlas.begin().await.expect("it begins");
        write(&atlas, &t, &[("y", "new")]).await;
        let said = wake(other);
        let commit_ts = said.strip_prefix("committed ").unwrap_or_else(|| panic!("{said}"));
        let commit_ts = Timestamp::new(commit_ts.parse().expect("a number")).expect("a timestamp");
        assert!(commit_ts < first.start_ts(), "below all that its successor has issued");
        assert_eq!(entry(&atlas, start_ts).await, Some(Entry::Committed(commit_ts)));
        // Whole, and for every snapshot of the successor.
        assert_eq!(everything(&first, &t).await, ["only stale/v=stale", "x/v=stale"]);
        assert_eq!(seen(&atlas, &t).await, ["only stale/v=stale", "x/v=stale", "y/v=new"]);
        // Who has read it may write over it.
        write(&atlas, &t, &[("x", "newer")]).await;
        atlas.close().await.expect("the store closes");
    });
}

#[test]
fn of_a_process_that_was_killed_nothing_is_there_that_was_not_recorded() {
    run(async {
        for (step, expected) in [
            (CommitStep::RecordCommit, vec!["x/v=old"]),
            (CommitStep::Recorded, vec!["only stale/v=stale", "x/v=stale"]),
        ] {
            let place = Place::new(StoreKind::Cassandra);
            let (mut other, start_ts) = stand_before(&place, step, "die");
            assert_eq!(bounded::end_of(&mut other.child, "the other process").signal(), Some(9));
            let left = record(&place).await;
            assert!(left.holder.is_some(), "it gave nothing up");
            let (atlas, t) = successor(&place).await;
            assert_eq!(atlas.transactions().oracle().epoch(), left.epoch + 1);
            assert_eq!(seen(&atlas, &t).await, expected, "{step}");
            // The look has decided it for ever.
            let committed = matches!(entry(&atlas, start_ts).await, Some(Entry::Committed(_)));
            assert_eq!(committed, step == CommitStep::Recorded);
            write(&atlas, &t, &[("x", "new")]).await;
            atlas.close().await.expect("the store closes");
        }
    });
}
