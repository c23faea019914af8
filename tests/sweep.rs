//! Sweep on the stores that live in this process, in every mode.

mod common;
#[macro_use]
#[path = "cases/sweep.rs"]
mod sweep;

use atlas::schema::Replaced;
use atlas::timestamp::read_stored;
use atlas::transaction::entry::TransactionsFloor;
use common::{MEMORY_PIPELINE, Place, StoreKind, read, table, write};

sweep_lane!(memory_step_by_step, MEMORY_STEPS);
sweep_lane!(memory_pipeline, MEMORY_PIPELINE);
sweep_lane!(rocksdb_step_by_step, ROCKSDB_STEPS);
sweep_lane!(rocksdb_pipeline, ROCKSDB_PIPELINE);
sweep_lane!(rocksdb_pipeline_0, ROCKSDB_PIPELINE_0);

/// Entries tell how far time had come. Where they have gone, the floor does: numbers below it are not issued again.
#[tokio::test]
async fn a_store_whose_clock_is_behind_its_floor_is_refused() {
    let place = Place::new(StoreKind::Memory);
    let kvs = place.open().await;
    let config = sweep::by_hand(&place, MEMORY_PIPELINE);
    let atlas = atlas::Atlas::with_store(config.clone(), kvs.clone()).await.expect("it opens");
    let table = table(&atlas, "t", Default::default()).await;
    write(&atlas, &table, &[("a", "v")]).await;
    atlas.transactions().close().await.expect("it closes");
    let bound = read_stored(kvs.clone()).await.expect("it can be read").expect("it was opened").bound;
    let record = TransactionsFloor::in_store(kvs.clone());
    let floor = |below| TransactionsFloor { below, ..TransactionsFloor::default() };
    let written = record.replace(None, Some(&floor(bound.next()))).await.expect("it can be written");
    let error = atlas::Atlas::with_store(config.clone(), kvs.clone()).await.expect_err("it would issue numbers again");
    assert!(matches!(error, atlas::Error::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains(&format!("timestamp {bound} was used")), "{error}");
    let Replaced::Done(bytes) = written else { panic!("nobody else writes it") };
    record.replace(Some(&bytes), Some(&floor(bound))).await.expect("it can be written");
    let atlas = atlas::Atlas::with_store(config, kvs).await.expect("it opens");
    assert_eq!(read(&atlas, &table, "a").await.as_deref(), Some("v"));
}

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
