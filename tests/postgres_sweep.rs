//! Sweep on PostgreSQL.

mod common;
#[macro_use]
#[path = "cases/sweep.rs"]
mod sweep;

sweep_lane!(pipeline, POSTGRES_PIPELINE);
sweep_lane!(step_by_step, POSTGRES_STEPS);

mod everywhere {
    sweep_lane!(
        pipeline,
        POSTGRES_PIPELINE,
        [
            entries_go_and_what_they_said_stays,
            finished_partitions_are_dropped,
            where_writers_do_not_conflict_the_winner_stays,
            cells_of_any_bytes_are_swept,
        ]
    );
}
