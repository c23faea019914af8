//! Transactions older than what the pipeline remembers, on the stores that live in this process.

mod common;
#[path = "cases/conflict_window.rs"]
mod window;

use common::*;

const LANES: [Lane; 4] = [MEMORY_PIPELINE, MEMORY_PIPELINE_0, ROCKSDB_PIPELINE, ROCKSDB_PIPELINE_1K];

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_that_the_window_has_forgotten_is_a_conflict() {
    window::a_conflict_that_the_window_has_forgotten_is_a_conflict(&LANES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_tells_a_touch_from_a_change_too() {
    window::the_store_tells_a_touch_from_a_change_too(&LANES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_are_not_lost_when_everybody_is_behind_the_window() {
    window::updates_are_not_lost_when_everybody_is_behind_the_window(&LANES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_read_that_the_window_has_forgotten_is_a_conflict() {
    window::a_changed_read_that_the_window_has_forgotten_is_a_conflict(&LANES).await;
}
