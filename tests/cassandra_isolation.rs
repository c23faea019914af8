//! Snapshot isolation on Cassandra.

mod common;
#[macro_use]
#[path = "cases/isolation.rs"]
mod isolation;
#[macro_use]
#[path = "cases/serializable.rs"]
mod serializable;
#[path = "cases/stories.rs"]
mod stories;

lane!(step_by_step, CASSANDRA_STEPS);

mod of_serializable_tables {
    serializable_lane!(step_by_step, CASSANDRA_STEPS);
}

mod golden_stories {
    use crate::common::*;
    use crate::stories::every_story_ends_as_told;

    #[tokio::test(flavor = "multi_thread")]
    async fn cassandra_steps() {
        every_story_ends_as_told(CASSANDRA_STEPS).await;
    }
}
