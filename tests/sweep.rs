//! Sweep on the stores that live in this process, in every mode.

mod common;
#[macro_use]
#[path = "cases/sweep.rs"]
mod sweep;

sweep_lane!(memory_step_by_step, MEMORY_STEPS);
sweep_lane!(memory_pipeline, MEMORY_PIPELINE);
sweep_lane!(rocksdb_step_by_step, ROCKSDB_STEPS);
sweep_lane!(rocksdb_pipeline, ROCKSDB_PIPELINE);
sweep_lane!(rocksdb_pipeline_0, ROCKSDB_PIPELINE_0);

mod everywhere {
    sweep_lane!(
        memory_steps,
        MEMORY_STEPS,
        [finished_partitions_are_dropped, where_writers_do_not_conflict_the_winner_stays, cells_of_any_bytes_are_swept,]
    );
    sweep_lane!(
        rocksdb_pipeline,
        ROCKSDB_PIPELINE,
        [
            entries_go_and_what_they_said_stays,
            finished_partitions_are_dropped,
            where_writers_do_not_conflict_the_winner_stays,
            cells_of_any_bytes_are_swept,
        ]
    );
    sweep_lane!(rocksdb_pipeline_0, ROCKSDB_PIPELINE_0, [entries_go_and_what_they_said_stays,]);
    sweep_lane!(memory_pipeline, MEMORY_PIPELINE, [entries_go_and_what_they_said_stays,]);
}
