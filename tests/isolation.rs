//! Snapshot isolation on the stores that live in this process, in every mode.

mod common;
#[macro_use]
#[path = "cases/isolation.rs"]
mod isolation;
#[macro_use]
#[path = "cases/serializable.rs"]
mod serializable;
#[path = "cases/stories.rs"]
mod stories;

lane!(memory_step_by_step, MEMORY_STEPS);
lane!(memory_pipeline, MEMORY_PIPELINE);
lane!(memory_pipeline_0, MEMORY_PIPELINE_0);
lane!(memory_pipeline_1k, MEMORY_PIPELINE_1K);
lane!(memory_pipeline_random, MEMORY_PIPELINE_RANDOM);
lane!(rocksdb_step_by_step, ROCKSDB_STEPS);
lane!(rocksdb_pipeline, ROCKSDB_PIPELINE);
lane!(rocksdb_pipeline_0, ROCKSDB_PIPELINE_0);
lane!(rocksdb_pipeline_1k, ROCKSDB_PIPELINE_1K);
lane!(rocksdb_pipeline_random, ROCKSDB_PIPELINE_RANDOM);

mod of_pipelines {
    pipeline_lane!(memory_pipeline, MEMORY_PIPELINE);
    pipeline_lane!(memory_pipeline_0, MEMORY_PIPELINE_0);
    pipeline_lane!(memory_pipeline_random, MEMORY_PIPELINE_RANDOM);
    pipeline_lane!(rocksdb_pipeline, ROCKSDB_PIPELINE);
    pipeline_lane!(rocksdb_pipeline_1k, ROCKSDB_PIPELINE_1K);
}

mod of_serializable_tables {
    serializable_lane!(memory_step_by_step, MEMORY_STEPS);
    serializable_lane!(memory_pipeline, MEMORY_PIPELINE);
    serializable_lane!(memory_pipeline_0, MEMORY_PIPELINE_0);
    serializable_lane!(memory_pipeline_random, MEMORY_PIPELINE_RANDOM);
    serializable_lane!(rocksdb_step_by_step, ROCKSDB_STEPS);
    serializable_lane!(rocksdb_pipeline, ROCKSDB_PIPELINE);
    serializable_lane!(rocksdb_pipeline_1k, ROCKSDB_PIPELINE_1K);
}

/// Who commits for others ends with the runtime of those who opened the store, and says so to those who kept a handle.
#[test]
fn a_runtime_that_ends_takes_the_leader_along() {
    use common::*;
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let first = runtime();
    let (store, table) = first.block_on(async {
        let store = TestStore::open(ROCKSDB_PIPELINE).await;
        let table = store.table(atlas::schema::ConflictHandler::default()).await;
        write(&store.atlas, &table, &[("x", "1")]).await;
        (store, table)
    });
    drop(first);
    runtime().block_on(async {
        let tx = store.begin().await;
        put(&tx, &table, "x", "2").await;
        let refused = tx.commit().await;
        assert!(matches!(refused, Err(atlas::Error::Unavailable { .. })), "{refused:?}");
        assert_eq!(read(&store.atlas, &table, "x").await.as_deref(), Some("1"));
    });
}

/// With the memory of cells as it usually is, which other tests have or not.
mod of_remembered_cells {
    use crate::common::*;
    use crate::isolation::what_was_read_before_is_read_anew_after_a_commit;

    async fn on(lane: Lane) {
        let usual = atlas::config::TransactionConfig::default().cell_cache;
        let store = TestStore::open_with(lane, |transactions| transactions.cell_cache = usual).await;
        what_was_read_before_is_read_anew_after_a_commit(store).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn small_transactions() {
        on(MEMORY_PIPELINE).await;
        on(ROCKSDB_PIPELINE).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn large_transactions() {
        on(MEMORY_PIPELINE_1K).await;
        on(ROCKSDB_PIPELINE_1K).await;
    }
}

mod golden_stories {
    use crate::common::*;
    use crate::stories::every_story_ends_as_told;

    #[tokio::test(flavor = "multi_thread")]
    async fn memory_steps() {
        every_story_ends_as_told(MEMORY_STEPS).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn memory_pipeline() {
        every_story_ends_as_told(MEMORY_PIPELINE).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn memory_pipeline_0() {
        every_story_ends_as_told(MEMORY_PIPELINE_0).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rocksdb_steps() {
        every_story_ends_as_told(ROCKSDB_STEPS).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rocksdb_pipeline() {
        every_story_ends_as_told(ROCKSDB_PIPELINE).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rocksdb_pipeline_1k() {
        every_story_ends_as_told(ROCKSDB_PIPELINE_1K).await;
    }
}
