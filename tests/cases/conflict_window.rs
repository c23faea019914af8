//! Transactions that are older than what the leader of the pipeline remembers: they are checked against the store.
//!
//! The window is made small for this program as a whole, which is why it is a program of its own.

use crate::common::*;
use atlas::Error;
use atlas::ops::ScanOptions;
use atlas::schema::ConflictHandler;

fn small_window() {
    fail::cfg("conflict_window::cells_max", "return(4)").expect("fail points are built in");
}

/// Commits enough to push everything that came before out of the window.
async fn fill_window(store: &TestStore) {
    let filler = table(&store.atlas, "filler", ConflictHandler::RetryOnWriteWriteCell).await;
    for number in 0..8 {
        write(&store.atlas, &filler, &[(&number.to_string(), "x"), (&format!("{number} too"), "x")]).await;
    }
}

pub(crate) async fn a_conflict_that_the_window_has_forgotten_is_a_conflict(lanes: &[Lane]) {
    small_window();
    for &lane in lanes {
        for handler in [ConflictHandler::RetryOnWriteWriteCell, ConflictHandler::RetryOnValueChanged] {
            let store = TestStore::open(lane).await;
            let t = store.table(handler).await;
            write(&store.atlas, &t, &[("x", "0"), ("gone", "0")]).await;
            let (old, deleter, untouched) = (store.begin().await, store.begin().await, store.begin().await);
            put(&old, &t, "x", "old").await;
            put(&deleter, &t, "gone", "old").await;
            put(&untouched, &t, "y", "old").await;
            write(&store.atlas, &t, &[("x", "1")]).await;
            let tx = store.begin().await;
            delete(&tx, &t, "gone").await;
            commit(tx).await;
            fill_window(&store).await;
            assert_conflict(old.commit().await);
            assert_conflict(deleter.commit().await);
            commit(untouched).await;
            assert_eq!(everything(&store.begin().await, &t).await, ["x/v=1", "y/v=old"]);
        }
    }
}

pub(crate) async fn the_store_tells_a_touch_from_a_change_too(lanes: &[Lane]) {
    small_window();
    for &lane in lanes {
        let store = TestStore::open(lane).await;
        let t = store.table(ConflictHandler::RetryOnValueChanged).await;
        write(&store.atlas, &t, &[("x", "A"), ("y", "A")]).await;
        let (touch, change) = (store.begin().await, store.begin().await);
        put(&touch, &t, "x", "A").await;
        put(&change, &t, "y", "C").await;
        for value in ["B", "A"] {
            write(&store.atlas, &t, &[("x", value), ("y", value)]).await;
        }
        fill_window(&store).await;
        assert_conflict(change.commit().await);
        commit(touch).await;
        assert_eq!(everything(&store.begin().await, &t).await, ["x/v=A", "y/v=A"]);
    }
}

pub(crate) async fn updates_are_not_lost_when_everybody_is_behind_the_window(lanes: &[Lane]) {
    small_window();
    for &lane in lanes {
        let store = TestStore::open(lane).await;
        let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
        let tasks: Vec<_> = (0..4)
            .map(|task| {
                let (atlas, t) = (store.atlas.clone(), t.clone());
                spawn(move || async move {
                    for _ in 0..20 {
                        let options = atlas::transaction::RunOptions { attempts_max: Some(1000), ..Default::default() };
                        let done = atlas.run_with(options, async |tx| {
                            let found = tx.get(&t, &cell("count")).await?.as_ref().map_or(0, number);
                            for extra in 0..4 {
                                tx.put(&t, cell(&format!("{task} {extra}")), "x").await?;
                            }
                            tx.put(&t, cell("count"), (found + 1).to_string()).await
                        });
                        done.await.expect("the count can be raised");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("the task ends");
        }
        assert_eq!(read(&store.atlas, &t, "count").await.as_deref(), Some("80"));
    }
}

pub(crate) async fn a_changed_read_that_the_window_has_forgotten_is_a_conflict(lanes: &[Lane]) {
    small_window();
    for &lane in lanes {
        for handler in [ConflictHandler::Serializable, ConflictHandler::SerializableIndex] {
            let store = TestStore::open(lane).await;
            let t = store.table(handler).await;
            write(&store.atlas, &t, &[("a", "0"), ("c", "0"), ("gone", "0")]).await;
            let olds = [store.begin().await, store.begin().await, store.begin().await, store.begin().await];
            let [cell_reader, absence_reader, range_reader, prefix_reader] = &olds;
            get(cell_reader, &t, "gone").await;
            get(absence_reader, &t, "b").await;
            scan(range_reader, &t, rows("a", "d")).await;
            scan(prefix_reader, &t, ScanOptions { limit: Some(1), ..rows("a", "d") }).await;
            for (number, old) in olds.iter().enumerate() {
                put(old, &t, &format!("own {number}"), "x").await;
            }
            write(&store.atlas, &t, &[("b", "phantom")]).await;
            let tx = store.begin().await;
            delete(&tx, &t, "gone").await;
            commit(tx).await;
            fill_window(&store).await;
            let [cell_reader, absence_reader, range_reader, prefix_reader] = olds;
            for reader in [cell_reader, absence_reader, range_reader] {
                let outcome = reader.commit().await;
                assert!(matches!(outcome, Err(Error::ReadConflict { .. })), "{outcome:?}");
            }
            commit(prefix_reader).await;
        }
    }
}
