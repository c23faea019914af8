//! Connections to a PostgreSQL server that are cut in the middle of transfers, also between a commit and its answer.
//!
//! Nobody is told that a transfer failed that is there, or that one is there that failed; and what the wire did not tell
//! is found out: by writing the entry again where commits go step by step, by raising the fence where a group does.

mod common;

use atlas::config::{ByteSize, KvsConfig};
use common::bank::Bank;
use common::clerks::{Clerks, Told, until};
use common::cutter::{Cut, Cutter};
use common::*;
use parking_lot::Mutex;
use std::sync::Arc;

/// Of each kind.
const ROUNDS: usize = 25;

async fn survive(lane: Lane) {
    let place = Place::new(lane.store);
    let mut config = place.config(lane);
    config.transactions.pipeline_size_max = ByteSize(1024);
    let direct = config.clone();
    let KvsConfig::Postgres(settings) = &mut config.key_value_service else { panic!("a PostgreSQL lane") };
    let cutter = Cutter::before(&settings.host, settings.port).await;
    (settings.host, settings.port) = ("127.0.0.1".to_owned(), cutter.port());

    let atlas = place.open_atlas(config).await;
    let bank = Bank::open(&atlas).await;
    let told = Arc::new(Mutex::new(Told::default()));
    let clerks = Clerks::start(&bank, "clerk", 8, true, &told);
    for _ in 0..ROUNDS {
        for cut in Cut::ALL {
            clerks.acknowledge(3).await;
            cutter.order(cut);
            until("a connection to be cut", || cutter.is_done()).await;
        }
    }
    clerks.acknowledge(3).await;
    clerks.stop().await;
    let told = std::mem::take(&mut *told.lock());
    let survived = told.check(&bank, "after the last cut").await;
    atlas.close().await.expect("the store closes");

    // By another way, on which nothing is cut.
    let atlas = place.open_atlas(direct).await;
    let again = told.check(&Bank::open(&atlas).await, "after opening again").await;
    assert_eq!(again, survived, "an unknown outcome was decided twice");
    atlas.close().await.expect("the store closes");
    eprintln!(
        "{} cuts: {} acknowledged, {} refused, {} unknown, of which {} committed",
        cutter.cuts(),
        told.acknowledged.len(),
        told.refused - told.unknown.len(),
        told.unknown.len(),
        survived.len()
    );
    assert_eq!(cutter.cuts(), ROUNDS * Cut::ALL.len());
    assert!(told.refused > 0, "no cut came at a bad moment");
    // The server was there all the time, so it could be asked.
    assert!(told.unknown.is_empty(), "these were not settled: {:?}", told.unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_are_survived_step_by_step() {
    survive(POSTGRES_STEPS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_are_survived_in_the_pipeline() {
    survive(POSTGRES_PIPELINE).await;
}
