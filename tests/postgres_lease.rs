//! Two processes of the operating system on one PostgreSQL: one owns the store, and loses it in every way there is.
//!
//! This program starts itself as a child that opens the store and does as it is told. Between the batch that was built
//! and the batch that is sent it stops itself (SIGSTOP), or dies (SIGKILL). The parent opens the store when it may,
//! writes the same cells, and lets the child go on.

mod common;
#[path = "cases/other.rs"]
mod other;

use atlas::config::AtlasConfig;
use atlas::ops::Operations;
use atlas::schema::ConflictHandler;
use atlas::timestamp::{OracleRecord, read_stored};
use atlas::transaction::CommitStep;
use atlas::transaction::entry::{Entry, transactions_table};
use atlas::{Atlas, Result, Timestamp};
use common::faulty::PATIENCE;
use common::*;
use other::{Other, run, stop_before, tell, told};
use rustix::process::{Signal, kill_process};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

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
    let Some(orders) = other::orders() else { return };
    let [namespace, kind, ahead_over, steps] = &orders[..] else { panic!("{orders:?}?") };
    let lane = if steps == "true" { POSTGRES_STEPS } else { POSTGRES_PIPELINE };
    let config = config_of(
        AtlasConfig {
            key_value_service: atlas::config::KvsConfig::Postgres(common::postgres::settings()),
            transactions: lane.transactions(),
            ..AtlasConfig::default()
        },
        namespace,
        ahead_over.parse().expect("a number"),
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    runtime.block_on(async {
        let atlas = Atlas::open_unserved(config, Duration::ZERO).await.expect("the store opens");
        let t = table(&atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await;
        write(&atlas, &t, &[("x", "old")]).await;
        tell("open");
        assert_eq!(told(), "go on");
        match &**kind {
            "close" => {
                atlas.close().await.expect("the store closes");
                tell("closed");
                return;
            }
            "die" => stop_before(CommitStep::RecordCommit, Signal::KILL),
            "sleep" => stop_before(CommitStep::RecordCommit, Signal::STOP),
            "sleep early" => stop_before(CommitStep::EnqueueForSweep, Signal::STOP),
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

/// The namespace, how it ends, from how many bytes on it puts data ahead, and whether it commits step by step.
fn start(place: &Place, lane: Lane, kind: &str, ahead_over: u64) -> Other {
    Other::start(&[place.namespace(), kind, &ahead_over.to_string(), &(!lane.is_pipeline()).to_string()])
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

#[test]
fn a_process_that_slept_over_its_lease_commits_nothing_and_is_told() {
    run(async {
        for ahead_over in [u64::MAX, 0] {
            let place = Place::new(StoreKind::Postgres);
            let mut other = start(&place, POSTGRES_PIPELINE, "sleep", ahead_over);
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
            assert!(bounded::end_of(&mut other.child, "the other process").success());
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
        let mut other = start(&place, POSTGRES_STEPS, "sleep", u64::MAX);
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
        assert!(bounded::end_of(&mut other.child, "the other process").success());
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
        let mut other = start(&place, POSTGRES_STEPS, "sleep early", u64::MAX);
        other.must_say("open");
        let start_ts = other.reach_the_commit();
        other.await_stop();
        let atlas = open_as(&place, POSTGRES_STEPS).await.expect("its owner is silent");
        atlas.backup_lock_acquire("a copy is made").await.expect("everything is settled");
        kill_process(other.pid(), Signal::CONT).expect("it can be woken");
        other.must_say("LOST_LEADERSHIP");
        other.must_say("LOST_LEADERSHIP");
        other.must_say("noticed");
        assert!(bounded::end_of(&mut other.child, "the other process").success());
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
        let mut other = start(&place, POSTGRES_PIPELINE, "die", u64::MAX);
        other.must_say("open");
        let start_ts = other.reach_the_commit();
        assert_eq!(bounded::end_of(&mut other.child, "the other process").signal(), Some(9));
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
        let mut other = start(&place, POSTGRES_PIPELINE, "close", u64::MAX);
        other.must_say("open");
        let pid = other.child.id();
        let refused = open(&place).await.expect_err("it is in use");
        assert_eq!(refused.exit_code(), atlas::exit::REFUSED, "{refused}");
        assert!(refused.to_string().contains(&format!("process {pid} ")), "{refused}");
        other.tell("go on");
        other.must_say("closed");
        assert!(bounded::end_of(&mut other.child, "the other process").success());
        let left = record(&place).await;
        assert_eq!((left.holder, left.contact), (None, None), "nobody need wait");
        let atlas = open(&place).await.expect("it was given up");
        let t = table(&atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await;
        assert_eq!(read(&atlas, &t, "x").await.as_deref(), Some("old"));
        atlas.close().await.expect("the store closes");
    });
}
