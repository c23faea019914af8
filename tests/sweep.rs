//! Sweep on the stores that live in this process, in every mode.

mod common;
#[macro_use]
#[path = "cases/sweep.rs"]
mod sweep;

use atlas::kvs_api::CellBound;
use atlas::ops::{Operations, SweepRequest, no_progress};
use atlas::schema::Replaced;
use atlas::timestamp::read_stored;
use atlas::transaction::entry::{Entry, TransactionsFloor, transactions_table};
use atlas::transaction::sweep_queue::sweep_queue_table;
use common::faulty::{Fault, Faulty, Gate, Op};
use common::{MEMORY_PIPELINE, MEMORY_PIPELINE_0, Place, StoreKind, cell, put, read, table, write};
use std::sync::Arc;
use std::time::Duration;

sweep_lane!(memory_step_by_step, MEMORY_STEPS);
sweep_lane!(memory_pipeline, MEMORY_PIPELINE);
sweep_lane!(rocksdb_step_by_step, ROCKSDB_STEPS);
sweep_lane!(rocksdb_pipeline, ROCKSDB_PIPELINE);
sweep_lane!(rocksdb_pipeline_0, ROCKSDB_PIPELINE_0);

/// A store with a table, of which sweep takes a cell at a time.
async fn swept_by_the_cell() -> (Faulty, atlas::Atlas, atlas::TableRef) {
    let place = Place::new(StoreKind::Memory);
    let faulty = Faulty::new(place.open().await);
    let mut config = sweep::by_hand(&place, MEMORY_PIPELINE);
    config.sweep.batch_cells = 1;
    let atlas = atlas::Atlas::with_store(config, Arc::new(faulty.clone())).await.expect("it opens");
    let table = table(&atlas, "t", Default::default()).await;
    (faulty, atlas, table)
}

/// What was worked off before it is not looked at again, and of a stretch that was not all is.
#[tokio::test]
async fn a_stretch_of_the_queue_that_fails_in_the_middle_is_worked_off_by_the_next_round() {
    const ROWS: usize = 240;
    let (faulty, atlas, table) = swept_by_the_cell().await;
    for row in 0..ROWS {
        sweep::overwrite(&atlas, &table, &format!("{row:03}"), 2).await;
    }
    let looks = || faulty.calls(Op::Versions, &table);
    let mut looked_at = Vec::new();
    // Every round fails at another place.
    for after in [20, 45, 45, 45, 45, 45] {
        faulty.on(Op::Versions).on_table(&table).after(after).then(Fault::Refuse);
        let before = looks();
        let outcome = atlas.sweeper().round().await;
        looked_at.push(looks() - before);
        if outcome.is_ok() {
            break;
        }
    }
    faulty.heal();
    let (left, _) = sweep::counts(&atlas, &table).await;
    let before = looks();
    atlas.sweeper().round().await.expect("a round of sweep");
    looked_at.push(looks() - before);
    assert_eq!(sweep::counts(&atlas, &table).await.0, ROWS as u64, "{left} before, {looked_at:?} looks");
    let again = looked_at.iter().sum::<usize>();
    // Twice each, for the entries of its two writers, and once more what was in a stretch that failed.
    assert!(looked_at.len() > 2 && looked_at[0] > 20, "nothing failed: {looked_at:?}");
    assert!((ROWS + 1..=3 * ROWS).contains(&again), "{looked_at:?} looks at {ROWS} cells");
    let before = looks();
    atlas.sweeper().round().await.expect("a round of sweep");
    assert_eq!(looks(), before, "nothing is left to do");
}

#[tokio::test]
async fn a_long_queue_is_read_in_ever_longer_stretches() {
    let (faulty, atlas, table) = swept_by_the_cell().await;
    sweep::overwrite(&atlas, &table, "hot", 800).await;
    let queue = sweep_queue_table();
    let read_before = faulty.calls(Op::Scan, &queue);
    atlas.sweeper().round().await.expect("a round of sweep");
    assert_eq!(sweep::counts(&atlas, &table).await.0, 1);
    // 1, 2, 4 … 64 entries of a shard at a time, of which there are a few hundred.
    let read = faulty.calls(Op::Scan, &queue) - read_before;
    assert!((8..=8 * 9).contains(&read), "the queue was read {read} times");
}

/// A put whose answer was lost arrives when its writer was rolled back long ago, and the entry that said so is gone.
#[tokio::test]
async fn a_put_that_arrives_below_the_floor_is_seen_by_nobody() {
    let place = Place::new(StoreKind::Memory);
    let store = place.open().await;
    let faulty = Faulty::new(store.clone());
    let config = sweep::by_hand(&place, MEMORY_PIPELINE_0);
    let atlas = atlas::Atlas::with_store(config.clone(), Arc::new(faulty.clone())).await.expect("it opens");
    let table = table(&atlas, "t", Default::default()).await;
    write(&atlas, &table, &[("a", "old")]).await;
    let late = Gate::new();
    faulty.on(Op::Put).on_table(&table).then(Fault::LostAppliedLater(late.clone()));
    let writer = atlas.begin().await.expect("it begins");
    let start_ts = writer.start_ts();
    put(&writer, &table, "a", "late").await;
    let error = writer.commit().await.expect_err("its data may not be there");
    assert!(!matches!(error, atlas::Error::UnknownOutcome { .. }), "nothing of it is ever visible: {error}");
    atlas.fresh_timestamps(4_000).await.expect("numbers are issued");
    write(&atlas, &table, &[("b", "later")]).await;
    atlas.sweeper().round().await.expect("a round of sweep");
    let entry = [Entry::cell(start_ts)];
    let entry_of_writer =
        async || store.get_atomic(&transactions_table(), &entry).await.expect("it can be read").remove(0);
    assert_eq!(entry_of_writer().await, None, "what nobody needs is gone");
    late.open();
    let stored = async || {
        let bounds = [CellBound::new(cell("a"), start_ts.next())];
        let found = store.versions(&table, &bounds).await.expect("versions can be read").remove(0);
        found.iter().any(|found| found.ts == start_ts)
    };
    for _ in 0..500 {
        if stored().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(stored().await, "it has arrived");
    assert_eq!(read(&atlas, &table, "a").await.as_deref(), Some("old"));
    atlas.transactions().close().await.expect("it closes");
    // Nor does somebody believe in it who has not seen its writer fail.
    let atlas = atlas::Atlas::with_store(config, store.clone()).await.expect("it opens");
    assert_eq!(read(&atlas, &table, "a").await.as_deref(), Some("old"));
    assert_eq!(entry_of_writer().await, None, "below the floor no entry comes again");
    atlas.sweep(SweepRequest::default(), no_progress()).await.expect("it can be walked");
    assert!(!stored().await, "a walk finds it");
    assert_eq!(read(&atlas, &table, "a").await.as_deref(), Some("old"));
}

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
