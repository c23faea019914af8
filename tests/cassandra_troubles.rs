//! Trouble at every step of a commit, on Cassandra.

mod common;
#[path = "cases/troubles.rs"]
mod troubles;

use common::CASSANDRA_STEPS;
use troubles::every_step_survives_every_trouble;

#[tokio::test(flavor = "multi_thread")]
async fn every_step_survives_every_trouble_on_cassandra() {
    every_step_survives_every_trouble(&[CASSANDRA_STEPS], 60).await;
}
