//! Sweep on a Cassandra cluster.

mod common;
#[allow(dead_code, reason = "a store that keeps its entries has no use for all of it")]
#[macro_use]
#[path = "cases/sweep.rs"]
mod sweep;

sweep_lane!(step_by_step, CASSANDRA_STEPS);

mod everywhere {
    sweep_lane!(
        step_by_step,
        CASSANDRA_STEPS,
        [finished_partitions_are_dropped, where_writers_do_not_conflict_the_winner_stays, cells_of_any_bytes_are_swept,]
    );
}
