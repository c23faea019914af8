//! Snapshot isolation on PostgreSQL, in every mode it offers.

mod common;
#[macro_use]
#[path = "cases/isolation.rs"]
mod isolation;
#[macro_use]
#[path = "cases/serializable.rs"]
mod serializable;
#[path = "cases/stories.rs"]
mod stories;

lane!(step_by_step, POSTGRES_STEPS);
lane!(pipeline, POSTGRES_PIPELINE);
lane!(pipeline_0, POSTGRES_PIPELINE_0);
lane!(pipeline_1k, POSTGRES_PIPELINE_1K);
lane!(pipeline_random, POSTGRES_PIPELINE_RANDOM);

mod of_pipelines {
    pipeline_lane!(pipeline, POSTGRES_PIPELINE);
    pipeline_lane!(pipeline_0, POSTGRES_PIPELINE_0);
    pipeline_lane!(pipeline_random, POSTGRES_PIPELINE_RANDOM);
}

mod of_serializable_tables {
    serializable_lane!(step_by_step, POSTGRES_STEPS);
    serializable_lane!(pipeline, POSTGRES_PIPELINE);
    serializable_lane!(pipeline_0, POSTGRES_PIPELINE_0);
}

mod golden_stories {
    use crate::common::*;
    use crate::stories::every_story_ends_as_told;

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_steps() {
        every_story_ends_as_told(POSTGRES_STEPS).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_pipeline() {
        every_story_ends_as_told(POSTGRES_PIPELINE).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_pipeline_0() {
        every_story_ends_as_told(POSTGRES_PIPELINE_0).await;
    }
}
