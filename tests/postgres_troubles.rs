//! Trouble at every step of a commit, on PostgreSQL.

mod common;
#[path = "cases/troubles.rs"]
mod troubles;

use common::{POSTGRES_PIPELINE, POSTGRES_PIPELINE_0, POSTGRES_STEPS};
use troubles::every_step_survives_every_trouble;

/// One after the other: the steps that are watched are those of the whole program.
#[tokio::test(flavor = "multi_thread")]
async fn every_step_survives_every_trouble_on_postgres() {
    every_step_survives_every_trouble(&[POSTGRES_PIPELINE_0, POSTGRES_PIPELINE], 160).await;
    every_step_survives_every_trouble(&[POSTGRES_STEPS], 80).await;
}
