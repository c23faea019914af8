//! A cluster of three nodes, of which one at a time dies or hangs in the middle of transfers, and comes back.
//!
//! A quorum is always there, so the transfers go on all the time. What was acknowledged is there in the end, what was
//! reported as failed is not, what was reported as unknown is decided once and for ever, and the sum is kept.

mod common;

use atlas::config::ByteSize;
use common::bank::Bank;
use common::cassandra::Breakable;
use common::clerks::{Clerks, Told};
use common::*;
use parking_lot::Mutex;
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;

const ACCOUNTS: usize = 120;
const CLERKS: usize = 16;
/// Each node is killed so often, and paused as often as `PAUSES`.
const KILLS: usize = 6;
const PAUSES: usize = 2;
/// Acknowledged while a node is away, and again when it is back, at least.
const BETWEEN: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_transfer_is_lost() {
    let cluster = Breakable::of_three();
    let lane = CASSANDRA_STEPS;
    let place = Place::new(lane.store);
    let mut config = place.config(lane);
    config.transactions.pipeline_size_max = ByteSize(1024);
    let atlas = place.open_atlas(config.clone()).await;
    let bank = Bank::of_size(&atlas, ACCOUNTS).await;
    let told = Arc::new(Mutex::new(Told::default()));
    let clerks = Clerks::start(&bank, "clerk", CLERKS, true, &told);
    let mut in_absence = 0;
    for round in 0..KILLS {
        for node in 1..=3 {
            for pause in [false, true] {
                if pause && round >= PAUSES {
                    continue;
                }
                let (away, back) = if pause { ("pause", "resume") } else { ("kill", "start") };
                clerks.acknowledge(BETWEEN).await;
                // Anywhere in the course of a commit.
                tokio::time::sleep(Duration::from_micros(rand::rng().random_range(0..50_000))).await;
                cluster.node(away, node).await;
                let before = told.lock().acknowledged.len();
                clerks.acknowledge(BETWEEN).await;
                in_absence += told.lock().acknowledged.len() - before;
                cluster.node(back, node).await;
                eprintln!("round {round}: {away} and {back} of node {node}");
            }
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

    let (kills, pauses) = (KILLS * 3, PAUSES * 3);
    eprintln!(
        "{kills} kills and {pauses} pauses: {} acknowledged ({in_absence} with a node away), {} failed ({} of them \
         conflicts), {} unknown, of which {} committed",
        told.acknowledged.len(),
        told.failed.len(),
        told.failed.len() + told.unknown.len() - told.refused,
        told.unknown.len(),
        survived.len()
    );
    assert!(told.acknowledged.len() > (kills + pauses) * BETWEEN);
    assert!(in_absence >= (kills + pauses) * BETWEEN, "nothing went on while a node was away");
}
