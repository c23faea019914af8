//! What transactions promise each other, an anomaly a case. `lane!` makes a test of each on a store in a mode.
//!
//! The names of the anomalies are those of Adya and of Berenson et al. Snapshot isolation forbids all of them but
//! write skew (G2), which is asserted as allowed: a table that must not have it needs a serializable handler.

#![allow(dead_code, reason = "not every store has the pipeline")]

use crate::common::*;
use atlas::ops::{BeginOptions, Operations, ScanOptions};
use atlas::schema::ConflictHandler;
use atlas::transaction::{CellRef, Constraint, NAME_LEN_MAX, RunOptions, Transaction};
use atlas::{Atlas, Cell, ColumnSelection, Error, RowRange, TableRef};
use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// A module of tests, one for each case, all on one lane.
macro_rules! lane {
    ($name:ident, $lane:ident) => {
        lane!($name, $lane, [
            dirty_write_is_refused,
            dirty_read_of_aborted_data_does_not_happen,
            dirty_read_of_intermediate_data_does_not_happen,
            circular_information_flow_does_not_happen,
            lost_update_is_refused,
            lost_update_does_not_happen_under_load,
            fuzzy_read_does_not_happen,
            read_skew_does_not_happen,
            read_skew_does_not_happen_under_load,
            phantom_rows_do_not_appear,
            phantom_columns_do_not_appear,
            write_skew_is_allowed,
            write_skew_over_a_predicate_is_allowed,
            a_commit_is_seen_by_whoever_begins_after_it,
            snapshots_lie_at_or_below_their_start,
            own_writes_are_seen_by_every_kind_of_read,
            scans_are_right_whatever_the_page_size,
            a_visitor_sees_as_much_as_it_wants,
            a_visitor_sees_every_page_of_a_long_scan,
            a_visitor_sees_no_page_after_its_transaction_has_ended,
            deleted_cells_are_gone_for_later_readers_only,
            read_only_transactions_write_nothing,
            the_past_is_read_as_it_was,
            of_two_writers_without_checks_the_later_start_wins,
            overlapping_writers_of_a_cell_conflict,
            writers_of_different_columns_of_a_row_do_not_conflict,
            touches_do_not_conflict_and_changes_do,
            there_and_back_again_is_no_conflict_for_a_touch,
            a_write_after_commit_began_is_an_error,
            a_write_beside_a_commit_is_part_of_it_or_refused,
            an_aborted_transaction_leaves_nothing,
            a_dropped_transaction_leaves_nothing,
            a_commit_that_is_dropped_happens_wholly_or_not_at_all,
            limits_are_checked_before_anything_is_buffered,
            constraints_refuse_the_whole_transaction,
            pre_commit_conditions_decide,
            a_transaction_ends_with_its_time,
            a_large_transaction_loses_to_a_small_one_that_was_faster,
            a_small_transaction_loses_to_a_large_one_that_was_faster,
            a_dropped_table_fails_its_own_writers_only,
            what_was_removed_is_not_remembered,
            run_does_the_work_again_after_a_conflict,
            run_gives_up_after_its_attempts,
            run_returns_other_errors_at_once,
        ]);
    };
    ($name:ident, $lane:ident, [$($case:ident,)*]) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    crate::isolation::$case(crate::common::TestStore::open(crate::common::$lane).await).await;
                }
            )*
        }
    };
}

/// What only the pipeline does.
#[allow(unused_macros, reason = "not every store has the pipeline")]
macro_rules! pipeline_lane {
    ($name:ident, $lane:ident) => {
        lane!($name, $lane, [a_large_transaction_that_keeps_losing_wins_by_its_reservation,]);
    };
}

// ---- anomalies

/// G0: writes of two transactions never mix.
pub(crate) async fn dirty_write_is_refused(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let (alice, bob) = (store.begin().await, store.begin().await);
    put(&alice, &t, "x", "alice").await;
    put(&bob, &t, "x", "bob").await;
    put(&bob, &t, "y", "bob").await;
    put(&alice, &t, "y", "alice").await;
    commit(alice).await;
    assert_conflict(bob.commit().await);
    assert_eq!(everything(&store.begin().await, &t).await, ["x/v=alice", "y/v=alice"]);
}

/// Whatever promises a table makes of writers: a cell that is remembered is not remembered for longer than it stands.
pub(crate) async fn what_was_read_before_is_read_anew_after_a_commit(store: TestStore) {
    for handler in ConflictHandler::ALL {
        let t = store.table(handler).await;
        let mut expected = None;
        // Short ones are brought into memory; a long one after them may be put ahead, and then is not.
        for written in ["short".to_owned(), "x".repeat(2000), "short again".to_owned(), "y".repeat(2000)] {
            // Twice: the second may be answered from memory.
            assert_eq!(read(&store.atlas, &t, "x").await, expected, "{handler}");
            assert_eq!(read(&store.atlas, &t, "x").await, expected, "{handler}");
            write(&store.atlas, &t, &[("x", &written)]).await;
            expected = Some(written);
        }
        assert_eq!(read(&store.atlas, &t, "x").await, expected, "{handler}");
    }
}

/// G1a.
pub(crate) async fn dirty_read_of_aborted_data_does_not_happen(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    write(&store.atlas, &t, &[("x", "0")]).await;
    let (alice, bob) = (store.begin().await, store.begin().await);
    put(&alice, &t, "x", "1").await;
    assert_eq!(get(&bob, &t, "x").await.as_deref(), Some("0"));
    alice.abort();
    assert_eq!(get(&bob, &t, "x").await.as_deref(), Some("0"));
    assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("0"));
}

/// G1b.
pub(crate) async fn dirty_read_of_intermediate_data_does_not_happen(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let alice = store.begin().await;
    put(&alice, &t, "x", "draft").await;
    let bob = store.begin().await;
    assert_eq!(get(&bob, &t, "x").await, None);
    put(&alice, &t, "x", "final").await;
    commit(alice).await;
    assert_eq!(get(&bob, &t, "x").await, None);
    assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("final"));
}

/// G1c: neither of two transactions sees the other.
pub(crate) async fn circular_information_flow_does_not_happen(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let (alice, bob) = (store.begin().await, store.begin().await);
    put(&alice, &t, "x", "alice").await;
    put(&bob, &t, "y", "bob").await;
    assert_eq!(get(&alice, &t, "y").await, None);
    assert_eq!(get(&bob, &t, "x").await, None);
    commit(alice).await;
    commit(bob).await;
}

/// P4.
pub(crate) async fn lost_update_is_refused(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    write(&store.atlas, &t, &[("x", "10")]).await;
    let (alice, bob) = (store.begin().await, store.begin().await);
    assert_eq!(get(&alice, &t, "x").await.as_deref(), Some("10"));
    assert_eq!(get(&bob, &t, "x").await.as_deref(), Some("10"));
    put(&bob, &t, "x", "15").await;
    commit(bob).await;
    put(&alice, &t, "x", "11").await;
    assert_conflict(alice.commit().await);
    assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("15"));
}

pub(crate) async fn lost_update_does_not_happen_under_load(store: TestStore) {
    const TASKS: usize = 6;
    const EACH: usize = 10;
    for handler in [
        ConflictHandler::RetryOnWriteWrite,
        ConflictHandler::RetryOnWriteWriteCell,
        ConflictHandler::RetryOnValueChanged,
    ] {
        let t = store.table(handler).await;
        write(&store.atlas, &t, &[("count", "0")]).await;
        let tasks = (0..TASKS).map(|_| {
            let (atlas, t) = (store.atlas.clone(), t.clone());
            spawn(move || async move {
                for _ in 0..EACH {
                    add(&atlas, &t, "count", 1).await;
                }
            })
        });
        try_join_all(tasks).await.expect("the tasks end");
        let count = read(&store.atlas, &t, "count").await;
        assert_eq!(count, Some((TASKS * EACH).to_string()), "{handler}");
    }
}

/// P2.
pub(crate) async fn fuzzy_read_does_not_happen(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    write(&store.atlas, &t, &[("x", "1")]).await;
    let alice = store.begin().await;
    assert_eq!(get(&alice, &t, "x").await.as_deref(), Some("1"));
    for value in ["2", "3"] {
        write(&store.atlas, &t, &[("x", value)]).await;
        assert_eq!(get(&alice, &t, "x").await.as_deref(), Some("1"));
    }
    let bob = store.begin().await;
    delete(&bob, &t, "x").await;
    commit(bob).await;
    assert_eq!(get(&alice, &t, "x").await.as_deref(), Some("1"));
    assert_eq!(everything(&alice, &t).await, ["x/v=1"]);
}

/// A5A, G-single.
pub(crate) async fn read_skew_does_not_happen(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    write(&store.atlas, &t, &[("x", "50"), ("y", "50")]).await;
    let alice = store.begin().await;
    assert_eq!(get(&alice, &t, "x").await.as_deref(), Some("50"));
    write(&store.atlas, &t, &[("x", "25"), ("y", "75")]).await;
    assert_eq!(get(&alice, &t, "y").await.as_deref(), Some("50"));
    // What was written on the ground of an old read must not be committed over the new value.
    put(&alice, &t, "y", "0").await;
    assert_conflict(alice.commit().await);
}

/// Transfers keep a sum that every reader sees, whichever way it reads.
pub(crate) async fn read_skew_does_not_happen_under_load(store: TestStore) {
    const ACCOUNTS: usize = 5;
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    let tx = store.begin().await;
    for account in 0..ACCOUNTS {
        put(&tx, &t, &account.to_string(), "100").await;
    }
    commit(tx).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|seed| {
            let (atlas, t) = (store.atlas.clone(), t.clone());
            spawn(move || async move {
                let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
                for _ in 0..25 {
                    let accounts: Vec<usize> = (0..ACCOUNTS).collect();
                    let pair: Vec<usize> = accounts.choose_multiple(&mut rng, 2).copied().collect();
                    transfer(&atlas, &t, pair[0], pair[1], rng.random_range(1..20)).await;
                }
            })
        })
        .collect();
    let reader = spawn({
        let (atlas, t, stop) = (store.atlas.clone(), t.clone(), stop.clone());
        move || async move {
            let cells: Vec<Cell> = (0..ACCOUNTS).map(|account| cell(&account.to_string())).collect();
            while !stop.load(Ordering::Relaxed) {
                let tx = atlas.begin().await.expect("a transaction begins");
                let got = tx.get_many(&t, &cells).await.expect("the accounts can be read");
                let by_get: Vec<i64> = got.iter().map(|value| number(value.as_ref().expect("it is there"))).collect();
                let scanned = scan_cells(&tx, &t, ScanOptions { page_size: 2, ..ScanOptions::default() }).await;
                let by_scan: Vec<i64> = scanned.iter().map(|(_, value)| number(value)).collect();
                assert_eq!(by_get.iter().sum::<i64>(), 100 * ACCOUNTS as i64);
                assert_eq!(by_get, by_scan, "two reads of one snapshot");
                tokio::task::yield_now().await;
            }
        }
    });
    try_join_all(writers).await.expect("the writers end");
    stop.store(true, Ordering::Relaxed);
    reader.await.expect("the reader saw the sum at all times");
}

/// P3.
pub(crate) async fn phantom_rows_do_not_appear(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    write(&store.atlas, &t, &[("b", "1"), ("d", "1")]).await;
    let alice = store.begin().await;
    assert_eq!(everything(&alice, &t).await, ["b/v=1", "d/v=1"]);
    write(&store.atlas, &t, &[("a", "2"), ("c", "2"), ("e", "2")]).await;
    let bob = store.begin().await;
    delete(&bob, &t, "b").await;
    commit(bob).await;
    assert_eq!(everything(&alice, &t).await, ["b/v=1", "d/v=1"]);
    assert_eq!(scan(&alice, &t, rows("a", "d")).await, ["b/v=1"]);
    let reversed = ScanOptions { reverse: true, page_size: 1, ..ScanOptions::default() };
    assert_eq!(scan(&alice, &t, reversed).await, ["d/v=1", "b/v=1"]);
    assert_eq!(everything(&store.begin().await, &t).await, ["a/v=2", "c/v=2", "d/v=1", "e/v=2"]);
}

pub(crate) async fn phantom_columns_do_not_appear(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    put_columns(&store.atlas, &t, "row", &["b", "d"]).await;
    let alice = store.begin().await;
    assert_eq!(names(alice.get_row(&t, b"row", ColumnSelection::All).await), ["b", "d"]);
    put_columns(&store.atlas, &t, "row", &["a", "c", "e"]).await;
    assert_eq!(names(alice.get_row(&t, b"row", ColumnSelection::All).await), ["b", "d"]);
    assert_eq!(names(alice.get_row(&t, b"row", columns("a", "d")).await), ["b"]);
    let exactly = ColumnSelection::Exactly(BTreeSet::from([Bytes::from("a"), Bytes::from("d")]));
    assert_eq!(names(alice.get_row(&t, b"row", exactly).await), ["d"]);
    let later = store.begin().await;
    assert_eq!(names(later.get_row(&t, b"row", columns("a", "d")).await), ["a", "b", "c"]);
}

/// A5B, G2-item: *allowed*. Each transaction reads what the other writes, and both commit.
pub(crate) async fn write_skew_is_allowed(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    write(&store.atlas, &t, &[("x", "on call"), ("y", "on call")]).await;
    let (alice, bob) = (store.begin().await, store.begin().await);
    assert_eq!(get(&alice, &t, "y").await.as_deref(), Some("on call"));
    assert_eq!(get(&bob, &t, "x").await.as_deref(), Some("on call"));
    put(&alice, &t, "x", "off").await;
    put(&bob, &t, "y", "off").await;
    commit(alice).await;
    commit(bob).await;
    assert_eq!(everything(&store.begin().await, &t).await, ["x/v=off", "y/v=off"]);
}

/// G2 over a range: *allowed*.
pub(crate) async fn write_skew_over_a_predicate_is_allowed(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let (alice, bob) = (store.begin().await, store.begin().await);
    assert!(everything(&alice, &t).await.is_empty());
    assert!(everything(&bob, &t).await.is_empty());
    put(&alice, &t, "alice", "the only one").await;
    put(&bob, &t, "bob", "the only one").await;
    commit(alice).await;
    commit(bob).await;
    assert_eq!(everything(&store.begin().await, &t).await.len(), 2);
}

// ---- order in time

pub(crate) async fn a_commit_is_seen_by_whoever_begins_after_it(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    let tasks = (0..4).map(|task| {
        let (atlas, t) = (store.atlas.clone(), t.clone());
        spawn(move || async move {
            for round in 0..15 {
                let (row, value) = (format!("row {task}"), format!("{round}"));
                let commit_ts = write(&atlas, &t, &[(&row, &value)]).await;
                let after = atlas.begin().await.expect("a transaction begins");
                assert!(after.read_ts() > commit_ts);
                assert_eq!(get(&after, &t, &row).await, Some(value));
            }
        })
    });
    try_join_all(tasks).await.expect("every task saw what it had committed");
}

pub(crate) async fn snapshots_lie_at_or_below_their_start(store: TestStore) {
    let t = store.table(ConflictHandler::IgnoreAll).await;
    let tasks = (0..4).map(|task| {
        let (atlas, t) = (store.atlas.clone(), t.clone());
        spawn(move || async move {
            for _ in 0..25 {
                let tx = atlas.begin().await.expect("a transaction begins");
                assert!(tx.read_ts() <= tx.start_ts(), "{} > {}", tx.read_ts(), tx.start_ts());
                let start_ts = tx.start_ts();
                put(&tx, &t, &task.to_string(), "x").await;
                assert!(commit(tx).await > start_ts);
            }
        })
    });
    try_join_all(tasks).await.expect("every snapshot was below its start");
    let immutable_ts = store.atlas.immutable_timestamp().await.expect("it can be asked for");
    let open = store.begin().await;
    assert!(immutable_ts <= open.read_ts());
    assert!(store.atlas.immutable_timestamp().await.expect("it can be asked for") <= open.read_ts());
}

// ---- reads

pub(crate) async fn own_writes_are_seen_by_every_kind_of_read(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    write(&store.atlas, &t, &[("a", "old"), ("c", "old"), ("e", "old")]).await;
    put_columns(&store.atlas, &t, "wide", &["c1", "c3"]).await;
    let tx = store.begin().await;
    put(&tx, &t, "b", "new").await;
    put(&tx, &t, "c", "new").await;
    put(&tx, &t, "empty", "").await;
    delete(&tx, &t, "e").await;
    tx.put(&t, Cell::copy_from("wide", "c2"), "new").await.expect("a write is buffered");
    tx.delete(&t, Cell::copy_from("wide", "c3")).await.expect("a deletion is buffered");

    assert_eq!(get(&tx, &t, "a").await.as_deref(), Some("old"));
    assert_eq!(get(&tx, &t, "b").await.as_deref(), Some("new"));
    assert_eq!(get(&tx, &t, "c").await.as_deref(), Some("new"));
    assert_eq!(get(&tx, &t, "e").await, None);
    assert_eq!(get(&tx, &t, "empty").await.as_deref(), Some(""), "an empty value is a value");
    let many = tx.get_many(&t, &[cell("e"), cell("a"), cell("b"), cell("a")]).await.expect("cells can be read");
    assert_eq!(many, [None, Some("old".into()), Some("new".into()), Some("old".into())]);

    let forward = ["a/v=old", "b/v=new", "c/v=new"];
    assert_eq!(scan(&tx, &t, rows("a", "empty")).await, forward);
    let reverse = ScanOptions { reverse: true, ..rows("a", "empty") };
    assert_eq!(scan(&tx, &t, reverse).await, ["c/v=new", "b/v=new", "a/v=old"]);
    assert_eq!(names(tx.get_row(&t, b"wide", ColumnSelection::All).await), ["c1", "c2"]);
    assert_eq!(names(tx.get_row(&t, b"wide", columns("c2", "c9")).await), ["c2"]);
    let rows = tx.get_rows(&t, &["e".into(), "b".into(), "wide".into()], ColumnSelection::All).await;
    assert_eq!(rows.expect("rows can be read").keys().map(text).collect::<Vec<_>>(), ["b", "wide"]);
    // A write, deleted and written again: the last one counts.
    delete(&tx, &t, "b").await;
    assert_eq!(get(&tx, &t, "b").await, None);
    put(&tx, &t, "b", "newest").await;
    let own = everything(&tx, &t).await;
    commit(tx).await;
    assert_eq!(everything(&store.begin().await, &t).await, own, "the commit is what the transaction saw");
}

/// Own writes and deletions in front of, on and behind the borders of pages, in both directions, cut in every way.
pub(crate) async fn scans_are_right_whatever_the_page_size(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    let name = |row: usize, column: usize| Cell::copy_from(format!("r{row}"), format!("c{column}"));
    let mut model = BTreeMap::new();
    let tx = store.begin().await;
    for row in 0..5 {
        for column in 0..4 {
            tx.put(&t, name(row, column), "old").await.expect("a write is buffered");
            model.insert(name(row, column), "old");
        }
    }
    commit(tx).await;
    // Tombstones in the store: cells that a page holds and a reader does not see.
    let tx = store.begin().await;
    for column in 0..4 {
        tx.delete(&t, name(3, column)).await.expect("a deletion is buffered");
        model.remove(&name(3, column));
    }
    commit(tx).await;
    // Later commits are not seen, but fill the pages.
    let tx = store.begin().await;
    let later = store.begin().await;
    for row in 0..8 {
        later.put(&t, name(row, 9), "later").await.expect("a write is buffered");
    }
    commit(later).await;
    for (row, column) in [(0, 0), (0, 5), (1, 3), (2, 0), (3, 1), (4, 3), (4, 4), (9, 0)] {
        tx.put(&t, name(row, column), "own").await.expect("a write is buffered");
        model.insert(name(row, column), "own");
    }
    for (row, column) in [(0, 1), (1, 2), (2, 3), (4, 0), (7, 7)] {
        tx.delete(&t, name(row, column)).await.expect("a deletion is buffered");
        model.remove(&name(row, column));
    }
    let row_ranges = [
        RowRange::all(),
        RowRange::new("r1", "r4"),
        RowRange::single("r4"),
        RowRange::prefix("r"),
        RowRange::new("r5", "r9"),
        RowRange::new("x", "a"),
    ];
    let selections = [
        ColumnSelection::All,
        columns("c1", "c4"),
        ColumnSelection::Range { start: "c3".into(), end: None },
        ColumnSelection::Exactly(BTreeSet::from([Bytes::from("c0"), Bytes::from("c3")])),
        ColumnSelection::Exactly(BTreeSet::new()),
    ];
    for page_size in [0, 1, 2, 3, 4, 5, 7] {
        for rows in &row_ranges {
            for columns in &selections {
                for (reverse, limit) in
                    [(false, None), (true, None), (false, Some(3)), (true, Some(2)), (false, Some(0))]
                {
                    let options = ScanOptions {
                        rows: rows.clone(),
                        columns: columns.clone(),
                        reverse,
                        limit,
                        page_size,
                        bypass_cache: page_size == 1,
                    };
                    let mut expected: Vec<(Cell, Bytes)> = model
                        .iter()
                        .filter(|(cell, _)| rows.contains(&cell.row) && columns.contains(&cell.column))
                        .map(|(cell, value)| (cell.clone(), Bytes::from(*value)))
                        .collect();
                    if reverse {
                        expected.reverse();
                    }
                    expected.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
                    assert_eq!(scan_both_ways(&tx, &t, options.clone()).await, expected, "{options:?}");
                }
            }
        }
    }
}

/// Stopped at each cell, own ones among them, whatever the pages are.
pub(crate) async fn a_visitor_sees_as_much_as_it_wants(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    write(&store.atlas, &t, &[("b", "old"), ("c", "old"), ("e", "old"), ("g", "old")]).await;
    let tx = store.begin().await;
    for own in ["a", "c", "d", "h", "i"] {
        put(&tx, &t, own, "own").await;
    }
    delete(&tx, &t, "g").await;
    for reverse in [false, true] {
        let all = scan_cells(&tx, &t, ScanOptions { reverse, ..ScanOptions::default() }).await;
        assert_eq!(all.len(), 7);
        for page_size in [0, 1, 2, 3] {
            for count in 1..=all.len() + 1 {
                let expected = &all[..count.min(all.len())];
                let options = ScanOptions { reverse, page_size, ..ScanOptions::default() };
                let lent = lent_cells(&tx, &t, options.clone(), count).await.expect("a scan ends");
                assert_eq!(lent, expected, "stopped at {count}, pages of {page_size}");
                let options = ScanOptions { limit: Some(count as u64), ..options };
                let lent = lent_cells(&tx, &t, options, usize::MAX).await.expect("a scan ends");
                assert_eq!(lent, expected, "at most {count}, pages of {page_size}");
            }
        }
    }
}

/// With pages as long as they usually are, names with bytes that stores escape, and cells that nobody sees.
pub(crate) async fn a_visitor_sees_every_page_of_a_long_scan(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    let name =
        |number: u32| Cell::copy_from(number.to_be_bytes(), if number.is_multiple_of(3) { "c" } else { "\0c\0" });
    let mut model: BTreeMap<Cell, Bytes> = BTreeMap::new();
    for round in 0..2 {
        let tx = store.begin().await;
        for number in 0..1_500u32 {
            if round == 1 && !number.is_multiple_of(5) {
                continue;
            }
            let value = Bytes::from(format!("{round} {number}"));
            tx.put(&t, name(number), value.clone()).await.expect("a write is buffered");
            model.insert(name(number), value);
            if round == 1 && number.is_multiple_of(7) {
                tx.delete(&t, name(number)).await.expect("a deletion is buffered");
                model.remove(&name(number));
            }
        }
        commit(tx).await;
    }
    let tx = store.begin().await;
    let later = store.begin().await;
    for number in 0..1_500 {
        later.put(&t, name(number), "later").await.expect("a write is buffered");
    }
    commit(later).await;
    for reverse in [false, true] {
        let mut expected: Vec<(Cell, Bytes)> = model.clone().into_iter().collect();
        if reverse {
            expected.reverse();
        }
        for limit in [None, Some(1_100)] {
            let options = ScanOptions { reverse, limit, ..ScanOptions::default() };
            expected.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
            assert!(scan_both_ways(&tx, &t, options).await == expected, "reverse: {reverse}, limit: {limit:?}");
        }
    }
}

pub(crate) async fn a_visitor_sees_no_page_after_its_transaction_has_ended(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    write(&store.atlas, &t, &[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")]).await;
    let tx = store.begin().await;
    let mut seen = Vec::new();
    let visit = |cell: CellRef<'_>| {
        seen.push(cell.row.to_vec());
        tx.abort();
        ControlFlow::Continue(())
    };
    assert_closed(tx.for_each(&t, ScanOptions { page_size: 2, ..ScanOptions::default() }, visit).await);
    assert!(seen == [b"a", b"b"] || seen == [b"a"], "{seen:?}");
}

pub(crate) async fn deleted_cells_are_gone_for_later_readers_only(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    write(&store.atlas, &t, &[("x", "1"), ("y", "1")]).await;
    let before = store.begin().await;
    let tx = store.begin().await;
    delete(&tx, &t, "x").await;
    delete(&tx, &t, "never written").await;
    commit(tx).await;
    assert_eq!(everything(&before, &t).await, ["x/v=1", "y/v=1"]);
    assert_eq!(everything(&store.begin().await, &t).await, ["y/v=1"]);
    assert_eq!(read(&store.atlas, &t, "x").await, None);
    write(&store.atlas, &t, &[("x", "2")]).await;
    assert_eq!(everything(&store.begin().await, &t).await, ["x/v=2", "y/v=1"]);
    // A deletion conflicts like any other write.
    let (alice, bob) = (store.begin().await, store.begin().await);
    delete(&alice, &t, "x").await;
    put(&bob, &t, "x", "3").await;
    commit(alice).await;
    assert_conflict(bob.commit().await);
}

pub(crate) async fn read_only_transactions_write_nothing(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    write(&store.atlas, &t, &[("x", "1")]).await;
    let options = BeginOptions { read_only: true, ..BeginOptions::default() };
    let tx = store.atlas.transactions().begin(options).await.expect("a transaction begins");
    assert_eq!(get(&tx, &t, "x").await.as_deref(), Some("1"));
    assert!(matches!(tx.put(&t, cell("x"), "2").await, Err(Error::ReadOnly { .. })));
    assert!(matches!(tx.delete(&t, cell("x")).await, Err(Error::ReadOnly { .. })));
    write(&store.atlas, &t, &[("x", "3")]).await;
    assert_eq!(get(&tx, &t, "x").await.as_deref(), Some("1"));
    assert_eq!(tx.commit().await.expect("there is nothing to refuse"), None);
    // Whoever wrote nothing has nothing to commit either, and conflicts with nobody.
    let reader = store.begin().await;
    assert_eq!(get(&reader, &t, "x").await.as_deref(), Some("3"));
    write(&store.atlas, &t, &[("x", "4")]).await;
    assert_eq!(reader.commit().await.expect("there is nothing to refuse"), None);
}

pub(crate) async fn the_past_is_read_as_it_was(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    // Open to the end: sweep removes nothing that it could see, nor what came after.
    let holder = store.begin().await;
    let nobody = holder.start_ts();
    let mut history = Vec::new();
    for value in ["1", "2", "3"] {
        history.push((write(&store.atlas, &t, &[("x", value)]).await, value));
    }
    for (place, (commit_ts, value)) in history.iter().enumerate() {
        let before = place.checked_sub(1).map(|before| history[before].1);
        let at = store.begin_at(*commit_ts).await.expect("the past can be read");
        assert_eq!(get(&at, &t, "x").await.as_deref(), before, "a snapshot excludes its own timestamp");
        let after = store.begin_at(commit_ts.next()).await.expect("the past can be read");
        assert_eq!(get(&after, &t, "x").await.as_deref(), Some(*value));
        assert_eq!(everything(&after, &t).await, [format!("x/v={value}")]);
        assert!(matches!(after.put(&t, cell("x"), "0").await, Err(Error::ReadOnly { .. })));
    }
    let at_nothing = store.begin_at(nobody).await.expect("the past can be read");
    assert!(everything(&at_nothing, &t).await.is_empty());
    let fresh = store.atlas.fresh_timestamp().await.expect("a timestamp is issued");
    let at_fresh = store.begin_at(fresh).await.expect("what was issued can be read at once");
    assert_eq!(get(&at_fresh, &t, "x").await.as_deref(), Some("3"));
    write(&store.atlas, &t, &[("x", "4")]).await;
    assert_eq!(get(&at_fresh, &t, "x").await.as_deref(), Some("3"));
    let future = atlas::Timestamp::saturating(fresh.get() + (1 << 30));
    assert!(matches!(store.begin_at(future).await, Err(Error::Usage(_))));
    holder.abort();
}

// ---- conflict handlers

pub(crate) async fn of_two_writers_without_checks_the_later_start_wins(store: TestStore) {
    let t = store.table(ConflictHandler::IgnoreAll).await;
    for earlier_first in [true, false] {
        let (earlier, later) = (store.begin().await, store.begin().await);
        assert!(earlier.start_ts() < later.start_ts());
        put(&earlier, &t, "x", "earlier").await;
        put(&later, &t, "x", "later").await;
        let (first, second) = if earlier_first { (earlier, later) } else { (later, earlier) };
        commit(first).await;
        commit(second).await;
        assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("later"), "earlier first: {earlier_first}");
        assert_eq!(everything(&store.begin().await, &t).await, ["x/v=later"]);
    }
}

pub(crate) async fn overlapping_writers_of_a_cell_conflict(store: TestStore) {
    for handler in [
        ConflictHandler::RetryOnWriteWrite,
        ConflictHandler::RetryOnWriteWriteCell,
        ConflictHandler::RetryOnValueChanged,
    ] {
        let t = store.table(handler).await;
        for first_deletes in [false, true] {
            let (alice, bob) = (store.begin().await, store.begin().await);
            put(&alice, &t, "x", "alice").await;
            put(&bob, &t, "x", "bob").await;
            if first_deletes {
                delete(&alice, &t, "x").await;
            }
            commit(alice).await;
            assert_conflict(bob.commit().await);
            // Who begins after the commit does not overlap with it.
            write(&store.atlas, &t, &[("x", "again")]).await;
        }
    }
}

pub(crate) async fn writers_of_different_columns_of_a_row_do_not_conflict(store: TestStore) {
    for handler in ConflictHandler::ALL {
        let t = store.table(handler).await;
        let (alice, bob) = (store.begin().await, store.begin().await);
        alice.put(&t, Cell::copy_from("row", "a"), "1").await.expect("a write is buffered");
        bob.put(&t, Cell::copy_from("row", "b"), "2").await.expect("a write is buffered");
        commit(alice).await;
        commit(bob).await;
        assert_eq!(everything(&store.begin().await, &t).await, ["row/a=1", "row/b=2"], "{handler}");
    }
}

pub(crate) async fn touches_do_not_conflict_and_changes_do(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnValueChanged).await;
    // What both read, what the first and the second to commit write (`None` deletes), and whether the second may.
    type Text = Option<&'static str>;
    let outcomes: [(Text, Text, Text, bool); 12] = [
        (Some("x"), Some("x"), Some("x"), true),
        (Some("x"), Some("y"), Some("x"), false),
        (Some("x"), Some("x"), Some("y"), false),
        (Some("x"), Some("y"), Some("y"), false),
        (Some("x"), Some("y"), Some("z"), false),
        (Some("x"), None, Some("x"), false),
        (Some("x"), Some("x"), None, false),
        (Some("x"), None, None, false),
        (None, None, None, true),
        (None, Some("x"), None, false),
        (None, None, Some("x"), false),
        (Some(""), Some(""), Some(""), true),
    ];
    for (place, (found, first, second, allowed)) in outcomes.into_iter().enumerate() {
        let row = format!("row {place}");
        if let Some(found) = found {
            write(&store.atlas, &t, &[(&row, found)]).await;
        }
        let (alice, bob) = (store.begin().await, store.begin().await);
        set(&alice, &t, &row, first).await;
        set(&bob, &t, &row, second).await;
        commit(alice).await;
        let outcome = bob.commit().await;
        let said = format!("{found:?}, then {first:?} and {second:?}: {outcome:?}");
        match allowed {
            true => assert!(outcome.is_ok(), "{said}"),
            false => assert!(matches!(outcome, Err(Error::Conflict { .. })), "{said}"),
        }
        let standing = if allowed { second } else { first };
        assert_eq!(read(&store.atlas, &t, &row).await.as_deref(), standing, "{said}");
    }
}

pub(crate) async fn there_and_back_again_is_no_conflict_for_a_touch(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnValueChanged).await;
    write(&store.atlas, &t, &[("x", "A")]).await;
    let (touch, change) = (store.begin().await, store.begin().await);
    put(&touch, &t, "x", "A").await;
    put(&change, &t, "x", "C").await;
    write(&store.atlas, &t, &[("x", "B")]).await;
    write(&store.atlas, &t, &[("x", "A")]).await;
    assert_conflict(change.commit().await);
    commit(touch).await;
    assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("A"));
}

// ---- the end of a transaction

pub(crate) async fn a_write_after_commit_began_is_an_error(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let tx = store.begin().await;
    put(&tx, &t, "x", "1").await;
    tx.commit().await.expect("the transaction commits");
    assert_closed(tx.put(&t, cell("x"), "2").await);
    assert_closed(tx.delete(&t, cell("x")).await);
    assert_closed(tx.get(&t, &cell("x")).await);
    assert_closed(tx.scan(&t, ScanOptions::default()).await);
    assert_closed(lent_cells(&tx, &t, ScanOptions::default(), usize::MAX).await);
    assert_closed(tx.add_pre_commit_condition(|_| Ok(())));
    assert_closed(tx.commit().await);
    tx.abort();
    assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("1"), "an abort after the commit changes nothing");
    // A scan that was begun before ends with the transaction.
    let tx = store.begin().await;
    let mut stream = tx.scan(&t, ScanOptions::default()).await.expect("a scan begins");
    put(&tx, &t, "y", "1").await;
    tx.commit().await.expect("the transaction commits");
    assert_closed(stream.next().await.expect("the scan says why it ends"));
}

pub(crate) async fn a_write_beside_a_commit_is_part_of_it_or_refused(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    for round in 0..15 {
        let tx = store.begin().await;
        let first = format!("{round}-first");
        put(&tx, &t, &first, "1").await;
        let writer = tokio::spawn({
            let (tx, t) = (tx.clone(), t.clone());
            async move {
                let mut accepted = Vec::new();
                for number in 0..100_000 {
                    let row = format!("{round}-{number}");
                    match tx.put(&t, cell(&row), "1").await {
                        Ok(()) => accepted.push(row),
                        Err(error) => return (accepted, error),
                    }
                    tokio::task::yield_now().await;
                }
                panic!("the commit did not close the transaction");
            }
        });
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        tx.commit().await.expect("the transaction commits");
        let (accepted, refused) = writer.await.expect("the writer ends");
        assert_eq!(refused.code(), "TRANSACTION_CLOSED");
        let after = store.begin().await;
        let cells: Vec<Cell> = accepted.iter().map(|row| cell(row)).collect();
        let found = after.get_many(&t, &cells).await.expect("cells can be read");
        assert!(found.iter().all(Option::is_some), "round {round}: an accepted write is missing");
        let all =
            scan(&after, &t, ScanOptions { rows: RowRange::prefix(format!("{round}-")), ..ScanOptions::default() });
        assert_eq!(all.await.len(), accepted.len() + 1, "round {round}: a refused write is there");
    }
}

pub(crate) async fn an_aborted_transaction_leaves_nothing(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let tx = store.begin().await;
    put(&tx, &t, "x", "1").await;
    tx.abort();
    assert_closed(tx.put(&t, cell("x"), "2").await);
    assert_closed(tx.get(&t, &cell("x")).await);
    assert_closed(tx.commit().await);
    assert!(everything(&store.begin().await, &t).await.is_empty());
}

pub(crate) async fn a_dropped_transaction_leaves_nothing(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let open = store.atlas.transactions().open_transactions();
    let tx = store.begin().await;
    put(&tx, &t, "x", "1").await;
    assert_eq!(store.atlas.transactions().open_transactions(), open + 1);
    drop(tx);
    assert_eq!(store.atlas.transactions().open_transactions(), open, "a dropped snapshot holds nothing back");
    assert!(everything(&store.begin().await, &t).await.is_empty());
    // Nor does it stand in anybody's way.
    let next = store.begin().await;
    put(&next, &t, "x", "2").await;
    commit(next).await;
}

pub(crate) async fn a_commit_that_is_dropped_happens_wholly_or_not_at_all(store: TestStore) {
    const ROWS: [&str; 3] = ["x", "y", "z"];
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    for (polls, large) in (0..30).map(|round| (round / 2, round % 2 == 1)) {
        let value = format!("{polls} {large}");
        let tx = store.begin().await;
        let before = get(&tx, &t, "x").await;
        for row in ROWS {
            put(&tx, &t, row, &value).await;
        }
        if large {
            tx.put(&t, cell("ballast"), vec![b'.'; 1_200_000]).await.expect("a write is buffered");
        }
        {
            let mut committing = pin!(tx.commit());
            for _ in 0..polls {
                if futures::poll!(committing.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        drop(tx);
        // Readers while it goes on: never a part of it.
        for _ in 0..3 {
            whole(&store.begin().await, &t, &ROWS).await;
        }
        // A writer of the same cells decides it, if nothing has.
        let seen = store.atlas.run(async |tx| {
            let seen = whole(&tx, &t, &ROWS).await;
            for row in ROWS {
                tx.put(&t, cell(row), seen.clone().unwrap_or_default()).await?;
            }
            Ok::<_, Error>(seen)
        });
        let seen = seen.await.expect("the cells are not blocked");
        assert!(seen.as_ref() == Some(&value) || seen == before, "{seen:?} was never written");
        assert_eq!(whole(&store.begin().await, &t, &ROWS).await.unwrap_or_default(), seen.unwrap_or_default());
    }
}

pub(crate) async fn limits_are_checked_before_anything_is_buffered(store: TestStore) {
    let lane = store.lane;
    drop(store);
    let store = TestStore::open_with(lane, |transactions| {
        transactions.value_size_max = atlas::config::ByteSize(2000);
        transactions.write_size_max = atlas::config::ByteSize(10_000);
    })
    .await;
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let tx = store.begin().await;
    let limits = store.atlas.transactions().kvs().capabilities().limits;
    let row = vec![b'n'; NAME_LEN_MAX.min(limits.row_len_max)];
    let column = vec![b'n'; NAME_LEN_MAX.min(limits.column_len_max)];
    let longer = |name: &[u8]| [name, b"n"].concat();
    tx.put(&t, Cell::copy_from(&row, "c"), "1").await.expect("a row of the greatest length");
    tx.put(&t, Cell::copy_from("r", &column), "1").await.expect("a column of the greatest length");
    tx.put(&t, cell("v"), vec![1; 2000]).await.expect("a value of the greatest length");
    let empty = if limits.empty_names { Cell::copy_from("", "") } else { cell("empty") };
    tx.put(&t, empty, "").await.expect("empty names, where the store has them, and values");
    let refused = [
        tx.put(&t, Cell::copy_from(longer(&row), "c"), "1").await,
        tx.put(&t, Cell::copy_from("r", longer(&column)), "1").await,
        tx.put(&t, cell("w"), vec![1; 2001]).await,
        tx.delete(&t, Cell::copy_from(longer(&row), "c")).await,
    ];
    for outcome in refused {
        let error = outcome.expect_err("it is over a limit");
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        let Error::TooLarge { len, limit, .. } = error else { continue };
        assert_eq!(len, limit + 1);
    }
    // The whole transaction: names, values and 32 bytes a cell.
    let mut accepted = 0;
    let refused = loop {
        match tx.put(&t, cell(&accepted.to_string()), vec![2; 1000]).await {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 10, "the limit is lower");
    };
    assert!(matches!(refused, Error::TooLarge { limit: 10_000, .. }), "{refused}");
    commit(tx).await;
    assert_eq!(everything(&store.begin().await, &t).await.len(), 4 + accepted, "what was refused is not there");
}

pub(crate) async fn constraints_refuse_the_whole_transaction(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let free = table(&store.atlas, "free", ConflictHandler::RetryOnWriteWrite).await;
    let positive = Constraint::new("positive", |_, value| match value {
        Some(value) if value.starts_with(b"-") => Err("it is negative".to_owned()),
        _ => Ok(()),
    });
    store.atlas.transactions().add_constraint(&t, positive);
    let tx = store.begin().await;
    put(&tx, &free, "x", "-1").await;
    put(&tx, &t, "a", "1").await;
    put(&tx, &t, "b", "-1").await;
    let error = tx.commit().await.expect_err("the constraint refuses it");
    assert!(
        matches!(&error, Error::Constraint { constraint, cell, .. } if &**constraint == "positive" && cell.row == "b")
    );
    assert!(!error.is_retriable());
    assert!(everything(&store.begin().await, &t).await.is_empty());
    assert!(everything(&store.begin().await, &free).await.is_empty());
    write(&store.atlas, &t, &[("a", "1")]).await;
    write(&store.atlas, &free, &[("a", "-1")]).await;
}

pub(crate) async fn pre_commit_conditions_decide(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let tx = store.begin().await;
    let start_ts = tx.start_ts();
    put(&tx, &t, "x", "1").await;
    tx.add_pre_commit_condition(move |ts| if ts == start_ts { Ok(()) } else { Err("another".to_owned()) })
        .expect("the transaction is open");
    commit(tx).await;
    for large in [false, true] {
        let tx = store.begin().await;
        put(&tx, &t, "x", "2").await;
        if large {
            tx.put(&t, cell("ballast"), vec![b'.'; 1_200_000]).await.expect("a write is buffered");
        }
        tx.add_pre_commit_condition(|_| Ok(())).expect("the transaction is open");
        tx.add_pre_commit_condition(|_| Err("the lease is over".to_owned())).expect("the transaction is open");
        let error = tx.commit().await.expect_err("a condition does not hold");
        assert!(matches!(&error, Error::PreCommitCondition { reason, .. } if reason == "the lease is over"), "{error}");
        assert_eq!(everything(&store.begin().await, &t).await, ["x/v=1"]);
    }
    // Of those who only read, too.
    let tx = store.begin().await;
    tx.add_pre_commit_condition(|_| Err("no".to_owned())).expect("the transaction is open");
    assert!(matches!(tx.commit().await, Err(Error::PreCommitCondition { .. })));
    write(&store.atlas, &t, &[("x", "3")]).await;
}

pub(crate) async fn a_transaction_ends_with_its_time(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let options = BeginOptions { timeout: Some(Duration::ZERO), ..BeginOptions::default() };
    let tx = store.atlas.transactions().begin(options.clone()).await.expect("a transaction begins");
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(matches!(tx.get(&t, &cell("x")).await, Err(Error::TimedOut { limit_ms: 0, .. })));
    assert!(matches!(tx.put(&t, cell("x"), "1").await, Err(Error::TimedOut { .. })));
    assert!(matches!(tx.commit().await, Err(Error::TimedOut { .. })));
    // The time ends while the conditions are looked at: nothing is visible.
    let options = BeginOptions { timeout: Some(Duration::from_secs(2)), ..BeginOptions::default() };
    let tx = store.atlas.transactions().begin(options).await.expect("a transaction begins");
    put(&tx, &t, "x", "1").await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let error = tx.commit().await.expect_err("its time is over");
    assert!(matches!(error, Error::TimedOut { limit_ms: 2000, .. }), "{error}");
    assert!(!error.is_retriable());
    assert!(everything(&store.begin().await, &t).await.is_empty());
}

// ---- large and small

/// Larger than any limit of a lane, so that it is put ahead wherever there is a pipeline.
async fn put_large(tx: &Transaction, t: &TableRef, row: &str, value: &str) {
    put(tx, t, row, value).await;
    for number in 0..30 {
        let ballast = cell(&format!("ballast {number}"));
        tx.put(t, ballast, vec![b'.'; 50_000]).await.expect("a write is buffered");
    }
}

pub(crate) async fn a_large_transaction_loses_to_a_small_one_that_was_faster(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    write(&store.atlas, &t, &[("x", "0")]).await;
    let large = store.begin().await;
    put_large(&large, &t, "x", "large").await;
    write(&store.atlas, &t, &[("x", "small")]).await;
    let before = store.begin().await;
    assert_conflict(large.commit().await);
    assert_eq!(everything(&before, &t).await, ["x/v=small"]);
    assert_eq!(everything(&store.begin().await, &t).await, ["x/v=small"], "nothing of the large one");
    write(&store.atlas, &t, &[("x", "next"), ("ballast 3", "next")]).await;
    assert_eq!(everything(&store.begin().await, &t).await, ["ballast 3/v=next", "x/v=next"]);
}

pub(crate) async fn a_small_transaction_loses_to_a_large_one_that_was_faster(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    let (small, large) = (store.begin().await, store.begin().await);
    put(&small, &t, "ballast 7", "small").await;
    put_large(&large, &t, "x", "large").await;
    let before = store.begin().await;
    commit(large).await;
    assert_conflict(small.commit().await);
    assert!(everything(&before, &t).await.is_empty());
    let after = store.begin().await;
    assert_eq!(get(&after, &t, "x").await.as_deref(), Some("large"));
    assert_eq!(
        after.get(&t, &cell("ballast 7")).await.expect("a cell can be read").map(|value| value.len()),
        Some(50_000)
    );
}

/// Each of the first attempts loses to a small transaction that is faster. From then on the small ones have to wait.
pub(crate) async fn a_large_transaction_that_keeps_losing_wins_by_its_reservation(store: TestStore) {
    const LOST: u32 = 3;
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    let attempts = AtomicU32::new(0);
    let refused = AtomicU32::new(0);
    let outcome = store.atlas.run_with(RunOptions::default(), async |tx| {
        put_large(&tx, &t, "x", "large").await;
        let attempt = attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let small = store.begin().await;
        put(&small, &t, "x", &format!("small {attempt}")).await;
        match small.commit().await {
            Ok(_) => assert!(attempt <= LOST, "attempt {attempt}: the cell is reserved"),
            Err(Error::Conflict { committed_at, .. }) => {
                assert!(attempt > LOST, "attempt {attempt}: nothing is reserved yet");
                assert_eq!(committed_at, None, "nobody has committed, it is reserved");
                refused.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => panic!("{error}"),
        }
        // Other cells are not reserved.
        write(&store.atlas, &t, &[("another", "small")]).await;
        Ok::<_, Error>(())
    });
    assert_eq!(outcome.await.expect("it wins in the end").attempts, LOST + 1);
    assert_eq!(refused.load(Ordering::Relaxed), 1);
    assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("large"));
    // And then the cell is free again.
    write(&store.atlas, &t, &[("x", "small")]).await;
}

// ---- tables

pub(crate) async fn a_dropped_table_fails_its_own_writers_only(store: TestStore) {
    let kept = table(&store.atlas, "kept", ConflictHandler::RetryOnWriteWriteCell).await;
    let gone = table(&store.atlas, "gone", ConflictHandler::RetryOnWriteWriteCell).await;
    let writers: Vec<_> = (0..6)
        .map(|task| {
            let (atlas, kept, gone) = (store.atlas.clone(), kept.clone(), gone.clone());
            spawn(move || async move {
                for round in 0..20 {
                    let row = format!("{task} {round}");
                    let tx = atlas.begin().await.expect("a transaction begins");
                    put(&tx, &kept, &row, "1").await;
                    let both = task % 2 == 0;
                    if both && let Err(error) = tx.put(&gone, cell(&row), "1").await {
                        assert_eq!(error.code(), "NOT_FOUND", "{error}");
                        continue;
                    }
                    match tx.commit().await {
                        Ok(_) => (),
                        Err(error) if both && error.code() == "NOT_FOUND" => {
                            assert_eq!(read(&atlas, &kept, &row).await, None, "half of it is there");
                        }
                        Err(error) => panic!("a writer of {}: {error}", if both { "both" } else { "the kept table" }),
                    }
                }
            })
        })
        .collect();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    store.atlas.drop_table(&gone).await.expect("the table can be dropped");
    try_join_all(writers).await.expect("only writers of the dropped table failed");
    let tx = store.begin().await;
    assert!(matches!(tx.get(&gone, &cell("x")).await, Err(Error::NotFound { .. })));
    write(&store.atlas, &kept, &[("x", "1")]).await;
}

// ---- run

/// Neither of a table that was emptied, nor of one that was dropped and made anew.
pub(crate) async fn what_was_removed_is_not_remembered(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWriteCell).await;
    for drop in [false, true] {
        write(&store.atlas, &t, &[("x", "old"), ("y", "old")]).await;
        // Reading it is what one remembers it by; what is written once more is remembered by that.
        assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("old"));
        assert_eq!(read(&store.atlas, &t, "y").await.as_deref(), Some("old"));
        write(&store.atlas, &t, &[("y", "newer")]).await;
        if drop {
            store.atlas.drop_table(&t).await.expect("it can be dropped");
            store.table(ConflictHandler::RetryOnWriteWriteCell).await;
        } else {
            store.atlas.truncate_table(&t).await.expect("it can be emptied");
        }
        for row in ["x", "y"] {
            assert_eq!(read(&store.atlas, &t, row).await, None, "{row}, dropped: {drop}");
        }
        write(&store.atlas, &t, &[("x", "new")]).await;
        assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("new"));
        write(&store.atlas, &t, &[("x", "newer")]).await;
        assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("newer"));
    }
}

pub(crate) async fn run_does_the_work_again_after_a_conflict(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let attempts = AtomicU32::new(0);
    let outcome = store.atlas.run_with(RunOptions::default(), async |tx| {
        put(&tx, &t, "x", "mine").await;
        if attempts.fetch_add(1, Ordering::Relaxed) < 3 {
            write(&store.atlas, &t, &[("x", "theirs")]).await;
        }
        Ok::<_, Error>("done")
    });
    let outcome = outcome.await.expect("nobody is in the way any more");
    assert_eq!((outcome.value, outcome.attempts), ("done", 4));
    assert!(outcome.commit_ts.expect("it wrote") > outcome.start_ts);
    assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("mine"));
}

pub(crate) async fn run_gives_up_after_its_attempts(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let attempts = AtomicU32::new(0);
    let options = RunOptions { attempts_max: Some(3), ..RunOptions::default() };
    let outcome = store.atlas.run_with(options, async |tx| {
        put(&tx, &t, "x", "mine").await;
        attempts.fetch_add(1, Ordering::Relaxed);
        write(&store.atlas, &t, &[("x", "theirs")]).await;
        Ok::<_, Error>(())
    });
    assert_conflict(outcome.await);
    assert_eq!(attempts.load(Ordering::Relaxed), 3);
    assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("theirs"));
}

pub(crate) async fn run_returns_other_errors_at_once(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let attempts = AtomicU32::new(0);
    let outcome = store.atlas.run(async |tx| {
        attempts.fetch_add(1, Ordering::Relaxed);
        put(&tx, &t, "x", "1").await;
        Err::<(), _>(Error::Usage("the application changed its mind".to_owned()))
    });
    assert!(matches!(outcome.await, Err(Error::Usage(_))));
    assert_eq!(attempts.load(Ordering::Relaxed), 1);
    assert!(everything(&store.begin().await, &t).await.is_empty());
}

// ---- short words

async fn add(atlas: &Atlas, t: &TableRef, row: &str, amount: i64) {
    let options = RunOptions { attempts_max: Some(1000), ..RunOptions::default() };
    let done = atlas.run_with(options, async |tx| {
        let found = tx.get(t, &cell(row)).await?.as_ref().map_or(0, number);
        tx.put(t, cell(row), (found + amount).to_string()).await
    });
    done.await.expect("the number can be changed");
}

async fn transfer(atlas: &Atlas, t: &TableRef, from: usize, to: usize, amount: i64) {
    let cells = [cell(&from.to_string()), cell(&to.to_string())];
    let options = RunOptions { attempts_max: Some(1000), ..RunOptions::default() };
    let done = atlas.run_with(options, async |tx| {
        let found = tx.get_many(t, &cells).await?;
        let found: Vec<i64> = found.iter().map(|value| number(value.as_ref().expect("accounts are there"))).collect();
        tx.put(t, cells[0].clone(), (found[0] - amount).to_string()).await?;
        tx.put(t, cells[1].clone(), (found[1] + amount).to_string()).await
    });
    done.await.expect("the transfer commits");
}

async fn put_columns(atlas: &Atlas, t: &TableRef, row: &str, columns: &[&str]) {
    let done = atlas.run(async |tx| {
        for column in columns {
            tx.put(t, Cell::copy_from(row, column), "1").await?;
        }
        Ok::<_, Error>(())
    });
    done.await.expect("the columns can be written");
}

async fn set(tx: &Transaction, t: &TableRef, row: &str, value: Option<&str>) {
    match value {
        Some(value) => put(tx, t, row, value).await,
        None => delete(tx, t, row).await,
    }
}

fn names(row: atlas::Result<BTreeMap<Bytes, Bytes>>) -> Vec<String> {
    row.expect("a row can be read").keys().map(text).collect()
}

/// The value that all rows have; fails if they differ.
async fn whole(tx: &Transaction, t: &TableRef, rows: &[&str]) -> Option<String> {
    let cells: Vec<Cell> = rows.iter().map(|row| cell(row)).collect();
    let found = tx.get_many(t, &cells).await.expect("cells can be read");
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "a part of a commit: {found:?}");
    let options = ScanOptions { columns: ColumnSelection::All, ..ScanOptions::default() };
    let stream = tx.scan(t, options).await.expect("a scan begins");
    let scanned: Vec<(Cell, Bytes)> = stream.try_collect().await.expect("a scan ends");
    let scanned: BTreeMap<Cell, Bytes> = scanned.into_iter().collect();
    assert!(cells.iter().zip(&found).all(|(cell, value)| scanned.get(cell) == value.as_ref()), "a scan sees the same");
    found[0].as_ref().map(text)
}
