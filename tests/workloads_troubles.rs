//! Trouble at every step of a commit, on RocksDB.

mod common;
#[path = "cases/troubles.rs"]
mod troubles;

use common::{ROCKSDB_PIPELINE, ROCKSDB_PIPELINE_0, ROCKSDB_STEPS};
use troubles::every_step_survives_every_trouble;

/// One after the other: the steps that are watched are those of the whole program.
#[tokio::test(flavor = "multi_thread")]
async fn every_step_survives_every_trouble_on_rocksdb() {
    every_step_survives_every_trouble(&[ROCKSDB_PIPELINE_0, ROCKSDB_PIPELINE], 240).await;
    every_step_survives_every_trouble(&[ROCKSDB_STEPS], 80).await;
}
