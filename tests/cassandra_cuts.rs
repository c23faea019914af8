//! Connections to a Cassandra node that are cut in the middle of transfers, also between a lightweight transaction and its
//! answer.
//!
//! Nobody is told that a transfer failed that is there, or that one is there that failed. What the wire did not tell is
//! found out by writing again, or told as unknown; then it is decided once and for ever.

mod common;

use atlas::config::{ByteSize, KvsConfig};
use common::bank::Bank;
use common::clerks::{Clerks, Told, until};
use common::cql_wire::{CqlWire, Cut};
use common::*;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Of each kind.
const ROUNDS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_are_survived() {
    let lane = CASSANDRA_STEPS;
    let place = Place::new(lane.store);
    let mut config = place.config(lane);
    config.transactions.pipeline_size_max = ByteSize(1024);
    let direct = config.clone();
    let KvsConfig::Cassandra(settings) = &mut config.key_value_service else { panic!("a Cassandra lane") };
    let host = settings.contact_points.split([',', ':']).next().expect("there is a first part").to_owned();
    let wire = CqlWire::before(&host).await;
    settings.contact_points = wire.contact_point();
    // So long an answer that never comes is waited for.
    settings.request_timeout = Duration::from_secs(3);

    let atlas = place.open_atlas(config).await;
    let bank = Bank::open(&atlas).await;
    let told = Arc::new(Mutex::new(Told::default()));
    let clerks = Clerks::start(&bank, "clerk", 8, true, &told);
    for _ in 0..ROUNDS {
        for cut in Cut::ALL {
            clerks.acknowledge(3).await;
            wire.order(cut);
            until("a connection to be cut", || wire.is_done()).await;
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
        wire.cuts(),
        told.acknowledged.len(),
        told.refused - told.unknown.len(),
        told.unknown.len(),
        survived.len()
    );
    assert_eq!(wire.cuts(), ROUNDS * Cut::ALL.len());
}
