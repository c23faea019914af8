//! Lost answers, refused calls and calls that hang, on the stores that live in this process.

mod common;
#[macro_use]
#[path = "cases/faults.rs"]
mod faults;
#[macro_use]
#[path = "cases/dependencies.rs"]
mod dependencies;

steps_lane!(memory_step_by_step, MEMORY_STEPS);
steps_lane!(rocksdb_step_by_step, ROCKSDB_STEPS);
pipeline_lane!(memory_pipeline, MEMORY_PIPELINE);
pipeline_lane!(memory_pipeline_0, MEMORY_PIPELINE_0);
pipeline_lane!(rocksdb_pipeline, ROCKSDB_PIPELINE);
pipeline_lane!(rocksdb_pipeline_0, ROCKSDB_PIPELINE_0);

mod put_ahead {
    ahead_lane!(memory_pipeline_0, MEMORY_PIPELINE_0);
    ahead_lane!(rocksdb_pipeline_0, ROCKSDB_PIPELINE_0);
}

mod put_together {
    together_lane!(memory_pipeline, MEMORY_PIPELINE);
    together_lane!(rocksdb_pipeline, ROCKSDB_PIPELINE);
}

mod patience {
    patience_lane!(memory_pipeline, MEMORY_PIPELINE);
    patience_lane!(rocksdb_pipeline_0, ROCKSDB_PIPELINE_0);
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_rocksdb_again_keeps_what_was_acknowledged() {
    faults::opening_again_keeps_what_was_acknowledged(common::ROCKSDB_PIPELINE).await;
}

mod building_on_commits {
    dependency_lane!(memory_pipeline, MEMORY_PIPELINE);
    dependency_lane!(rocksdb_pipeline, ROCKSDB_PIPELINE);
}
