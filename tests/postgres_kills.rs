//! A PostgreSQL server that dies dozens of times in the middle of transfers, and comes back.
//!
//! Nobody restarts the store above it. What was acknowledged is there in the end, what was reported as failed is not,
//! what was reported as unknown is decided once and for ever, and the sum is kept.

mod common;

use atlas::config::ByteSize;
use common::bank::Bank;
use common::clerks::{Clerks, Told};
use common::postgres::{Breakable, Death};
use common::*;
use parking_lot::Mutex;
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;

const ACCOUNTS: usize = 120;
const CLERKS: usize = 16;
const LANES: [Lane; 2] = [POSTGRES_STEPS, POSTGRES_PIPELINE];
const DEATHS: [Death; 3] = [Death::Immediate, Death::Postmaster, Death::Backend];
/// Of each kind.
const ROUNDS: usize = 12;
/// Acknowledged between two deaths, at least.
const BETWEEN: usize = 20;

async fn survive(lane: Lane) {
    let server = Breakable::server();
    server.set("fsync", "on").await;
    let place = Place::new(lane.store);
    let mut config = place.config(lane);
    // Half of the transfers are larger than that.
    config.transactions.pipeline_size_max = ByteSize(1024);
    let atlas = place.open_atlas(config.clone()).await;
    let bank = Bank::of_size(&atlas, ACCOUNTS).await;
    let told = Arc::new(Mutex::new(Told::default()));
    let clerks = Clerks::start(&bank, "clerk", CLERKS, true, &told);
    let mut noticed = 0;
    for _ in 0..ROUNDS {
        for death in DEATHS {
            clerks.acknowledge(BETWEEN).await;
            // Anywhere in the course of a commit.
            tokio::time::sleep(Duration::from_micros(rand::rng().random_range(0..20_000))).await;
            let refused = told.lock().refused;
            server.die(death).await;
            noticed += usize::from(told.lock().refused > refused);
        }
    }
    clerks.acknowledge(BETWEEN).await;
    clerks.stop().await;
    let told = std::mem::take(&mut *told.lock());
    let survived = told.check(&bank, "after the last death").await;
    assert_eq!(told.check(&bank, "a second look").await, survived, "an unknown outcome was decided twice");
    atlas.close().await.expect("the store closes");

    let atlas = place.open_atlas(config).await;
    let bank = Bank::of_size(&atlas, ACCOUNTS).await;
    let again = told.check(&bank, "after opening again").await;
    assert_eq!(again, survived, "an unknown outcome was decided twice");
    atlas.close().await.expect("the store closes");

    let deaths = ROUNDS * DEATHS.len();
    eprintln!(
        "{deaths} deaths, {noticed} noticed by clerks: {} acknowledged, {} failed ({} of them conflicts), {} unknown, of \
         which {} committed",
        told.acknowledged.len(),
        told.failed.len(),
        told.failed.len() + told.unknown.len() - told.refused,
        told.unknown.len(),
        survived.len()
    );
    assert!(noticed * 4 >= deaths * 3, "only {noticed} of {deaths} deaths hit anybody");
    assert!(told.acknowledged.len() > deaths * BETWEEN);
    assert!(!told.unknown.is_empty() || told.refused > deaths, "no death came at a bad moment");
}

/// One after the other: they have one server.
#[test]
fn no_acknowledged_transfer_is_lost() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    for lane in LANES {
        runtime.block_on(survive(lane));
    }
}
