//! Lost answers, refused calls and calls that hang, between the layer and a PostgreSQL server.

mod common;
#[macro_use]
#[path = "cases/faults.rs"]
mod faults;

steps_lane!(step_by_step, POSTGRES_STEPS);
pipeline_lane!(pipeline, POSTGRES_PIPELINE);
pipeline_lane!(pipeline_0, POSTGRES_PIPELINE_0);

mod put_ahead {
    ahead_lane!(pipeline_0, POSTGRES_PIPELINE_0);
}

mod put_together {
    together_lane!(pipeline, POSTGRES_PIPELINE);
}

mod patience {
    patience_lane!(pipeline, POSTGRES_PIPELINE);
    patience_lane!(pipeline_0, POSTGRES_PIPELINE_0);
}
