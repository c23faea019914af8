//! Atomic tables: compare-and-set, alone and in a crowd.

use crate::TestStore;
use crate::support::*;
use atlas_kvs::{AtomicScan, CheckAndSet, PutUnlessExists, RowRange, TableRef};
use bytes::Bytes;
use std::sync::Arc;

async fn set(store: &TestStore, a: &TableRef, row: &str, expected: Option<&str>, new: Option<&str>) -> CheckAndSet {
    check_and_set(store, a, &cell(row, "c"), expected.map(bytes), new.map(bytes)).await
}

async fn read(store: &TestStore, a: &TableRef, row: &str) -> Option<Bytes> {
    store.get_atomic(a, &[cell(row, "c")]).await.expect("cells can be read").remove(0)
}

fn mismatch(standing: Option<&str>) -> CheckAndSet {
    CheckAndSet::Mismatch(standing.map(bytes))
}

/// Values come in the order asked for, absent ones as `None`, and a cell may be asked for twice.
pub async fn answers_come_in_the_order_given(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    for row in ["x", "y", "z"] {
        assert_eq!(set(store, &a, row, None, Some(row)).await, CheckAndSet::Applied);
    }
    let asked = ["z", "w", "x", "z", "y"].map(|row| cell(row, "c"));
    let seen = store.get_atomic(&a, &asked).await.expect("cells can be read");
    assert_eq!(seen, [Some("z"), None, Some("x"), Some("z"), Some("y")].map(|value| value.map(bytes)));
}

/// A value is written into a cell that has none; after that the one that stands is reported, even if it is the same.
pub async fn put_unless_exists_reports_what_stands(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    let put = async |value: &str| put_unless_exists(store, &a, &cell("r", "c"), bytes(value)).await;
    assert_eq!(put("first").await, PutUnlessExists::Written);
    assert_eq!(put("second").await, PutUnlessExists::Exists(bytes("first")));
    assert_eq!(put("first").await, PutUnlessExists::Exists(bytes("first")));
    assert_eq!(read(store, &a, "r").await, Some(bytes("first")));
}

/// An empty value is a value: it stands in the way of others and is told from absence.
pub async fn empty_value_is_a_value(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    assert_eq!(set(store, &a, "r", None, Some("")).await, CheckAndSet::Applied);
    let put = put_unless_exists(store, &a, &cell("r", "c"), bytes("v")).await;
    assert_eq!(put, PutUnlessExists::Exists(Bytes::new()));
    assert_eq!(set(store, &a, "r", None, Some("v")).await, mismatch(Some("")));
    assert_eq!(stored_atomic(store, &a).await, ["r/c="]);
    assert_eq!(set(store, &a, "r", Some(""), None).await, CheckAndSet::Applied);
    assert_eq!(set(store, &a, "r", Some(""), Some("v")).await, mismatch(None));
}

/// Every combination of what stands, what is expected and what is new does what it says, and a mismatch tells what
/// stands and changes nothing.
pub async fn check_and_set_in_every_combination(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    let values = [None, Some(""), Some("x"), Some("y"), Some("x\0"), Some("X")];
    for (row, standing) in values.into_iter().enumerate() {
        for (column, expected) in values.into_iter().enumerate() {
            for (last, new) in values.into_iter().enumerate() {
                let row = format!("{row}{column}{last}");
                if standing.is_some() {
                    assert_eq!(set(store, &a, &row, None, standing).await, CheckAndSet::Applied);
                }
                let answer = set(store, &a, &row, expected, new).await;
                let (answer_due, value_due) =
                    if expected == standing { (CheckAndSet::Applied, new) } else { (mismatch(standing), standing) };
                assert_eq!(answer, answer_due, "{standing:?} stands, {expected:?} expected, {new:?} new");
                assert_eq!(read(store, &a, &row).await, value_due.map(bytes));
            }
        }
    }
}

/// A removed value is gone, and the cell takes another.
pub async fn removed_cell_takes_a_value_again(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    for value in ["one", "two", "one"] {
        let put = put_unless_exists(store, &a, &cell("r", "c"), bytes(value)).await;
        assert_eq!(put, PutUnlessExists::Written);
        assert_eq!(set(store, &a, "r", Some(value), None).await, CheckAndSet::Applied);
        assert_eq!(read(store, &a, "r").await, None);
        assert_eq!(set(store, &a, "r", Some(value), Some("late")).await, mismatch(None));
        assert_eq!(stored_atomic(store, &a).await, [""; 0]);
    }
}

/// Only values are compared, not histories: who expects "a" succeeds after "a", "b", "a". Allowed, and relied upon.
pub async fn aba_is_allowed(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    for (expected, new) in [(None, "a"), (Some("a"), "b"), (Some("b"), "a")] {
        assert_eq!(set(store, &a, "r", expected, Some(new)).await, CheckAndSet::Applied);
    }
    assert_eq!(set(store, &a, "r", Some("a"), Some("c")).await, CheckAndSet::Applied);
}

/// Other cells of the row, and cells with names that extend this one's, are of no concern.
pub async fn other_cells_are_of_no_concern(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    let cells = [cell("r", "c"), cell("r", "c\0"), cell("r", "cc"), cell("r\0", "c"), cell("rr", "c"), cell("r", "b")];
    for (number, cell) in cells.iter().enumerate() {
        let value = bytes(number.to_string());
        let answer = check_and_set(store, &a, cell, None, Some(value.clone())).await;
        assert_eq!(answer, CheckAndSet::Applied, "{cell}");
    }
    assert_eq!(set(store, &a, "r", Some("0"), None).await, CheckAndSet::Applied);
    let seen = store.get_atomic(&a, &cells).await.expect("cells can be read");
    assert_eq!(seen, [None, Some("1"), Some("2"), Some("3"), Some("4"), Some("5")].map(|value| value.map(bytes)));
}

/// Of concurrent calls on one cell exactly one writes, and all others are told its value.
pub async fn concurrent_put_unless_exists_has_one_winner(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    let cells: Vec<_> = (0..200 * haste(store)).map(|number| cell(format!("{number:04}"), "c")).collect();
    // All walk along the same cells: whoever finds them taken is faster and catches up with whoever takes them.
    let answers = together(8, |writer| {
        let (store, a, cells, value) = (store.share(), a.clone(), cells.clone(), bytes(writer.to_string()));
        async move {
            let mut answers = Vec::new();
            for cell in &cells {
                answers.push((value.clone(), put_unless_exists(&store, &a, cell, value.clone()).await));
            }
            answers
        }
    });
    let answers = answers.await;
    let standing = store.get_atomic(&a, &cells).await.expect("cells can be read");
    for (number, standing) in standing.into_iter().enumerate() {
        let standing = standing.expect("somebody has written");
        let answers: Vec<_> = answers.iter().map(|of_one| &of_one[number]).collect();
        let winners = answers.iter().filter(|(_, answer)| *answer == PutUnlessExists::Written).count();
        assert_eq!(winners, 1, "cell {number}: {answers:?}");
        for (value, answer) in answers {
            match answer {
                PutUnlessExists::Written => assert_eq!(*value, standing),
                PutUnlessExists::Exists(told) => assert_eq!(*told, standing),
            }
        }
    }
}

/// Counters that many callers increase by compare-and-set lose no increment, also when they lie in one row.
pub async fn contended_counters_lose_nothing(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    let (mut rounds, mut mismatches, mismatches_min) = (0, 0, 1_000 * haste(store));
    // A fast store may be done before two tasks have met: go on until they have.
    while rounds < 500 && mismatches < mismatches_min {
        rounds += 1;
        let increments = together(8, |task| {
            let (store, a) = (store.share(), a.clone());
            async move {
                let counter = cell("row", (task % 2).to_string());
                let mut standing =
                    store.get_atomic(&a, std::slice::from_ref(&counter)).await.expect("can be read").remove(0);
                let (mut applied, mut mismatches) = (0, 0);
                while applied < 25 {
                    let new = bytes((standing.as_ref().map_or(0, parse) + 1).to_string());
                    match check_and_set(&store, &a, &counter, standing.clone(), Some(new.clone())).await {
                        CheckAndSet::Applied => {
                            applied += 1;
                            standing = Some(new);
                        }
                        CheckAndSet::Mismatch(told) => {
                            mismatches += 1;
                            standing = told;
                        }
                    }
                }
                mismatches
            }
        });
        mismatches += increments.await.into_iter().sum::<usize>();
        let due = rounds * 4 * 25;
        assert_eq!(stored_atomic(store, &a).await, [format!("row/0={due}"), format!("row/1={due}")]);
    }
}

/// A read that follows a write sees it or something newer: a counter never runs backwards for anyone.
pub async fn reads_never_run_backwards(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    let readers = (0..3).map(|_| {
        let (shared, a) = (store.share(), a.clone());
        move |finished: u64, seen: Seen| {
            let (store, a) = (Arc::clone(&shared), a.clone());
            async move {
                let standing = store.get_atomic(&a, &[cell("r", "c")]).await.expect("cells can be read").remove(0);
                let count = standing.as_ref().map_or(0, parse);
                assert!(count >= finished, "{count} was read after {finished} was written");
                seen.then(count)
            }
        }
    });
    let count_to = async |count: u64| {
        let standing = (count > 1).then(|| (count - 1).to_string());
        assert_eq!(set(store, &a, "r", standing.as_deref(), Some(&count.to_string())).await, CheckAndSet::Applied);
    };
    watched(store, 50, count_to, readers.collect()).await;
}

/// Scans of atomic tables keep order, range, direction, pages and place as those of versioned tables do.
pub async fn scan_keeps_order_range_and_place(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    let cells = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x")];
    for (row, column) in [3, 0, 4, 2, 1].map(|number| cells[number]) {
        let value = Some(bytes(column));
        check_and_set(store, &a, &cell(row, column), None, value.clone()).await;
    }
    let all = ["a/x=x", "a/y=y", "b/x=x", "b/y=y", "c/x=x"];
    let backward = |items: &[&str]| items.iter().rev().map(|&item| item.to_owned()).collect::<Vec<_>>();
    for page_size in [0, 1, 2, 3, 100, usize::MAX] {
        let request = AtomicScan { page_size, ..AtomicScan::new(RowRange::all()) };
        assert_eq!(scan_atomic(store, &a, request.clone()).await, all);
        assert_eq!(scan_atomic(store, &a, request.clone().reversed()).await, backward(&all));
        for (place, (row, column)) in cells.into_iter().enumerate() {
            let request = AtomicScan { after: Some(cell(row, column)), ..request.clone() };
            assert_eq!(scan_atomic(store, &a, request.clone()).await, all[place + 1..]);
            assert_eq!(scan_atomic(store, &a, request.reversed()).await, backward(&all[..place]));
        }
        let request = AtomicScan { rows: RowRange::new("a\0", "c"), ..request };
        assert_eq!(scan_atomic(store, &a, request.clone()).await, all[2..4]);
        let request = AtomicScan { after: Some(cell("b", "x\0")), ..request };
        assert_eq!(scan_atomic(store, &a, request.clone()).await, all[3..4]);
        assert_eq!(scan_atomic(store, &a, request.reversed()).await, all[2..3]);
    }
    assert_eq!(scan_atomic(store, &a, AtomicScan::new(RowRange::new("b", "b"))).await, [""; 0]);
}

/// A scan of an atomic table shows the value that stands, and no removed cell.
pub async fn scan_shows_what_stands(store: &mut TestStore) {
    let a = atomic(store, "a").await;
    for row in ["a", "b", "c"] {
        assert_eq!(set(store, &a, row, None, Some("old")).await, CheckAndSet::Applied);
    }
    assert_eq!(set(store, &a, "a", Some("old"), Some("new")).await, CheckAndSet::Applied);
    assert_eq!(set(store, &a, "b", Some("old"), None).await, CheckAndSet::Applied);
    let request = AtomicScan { page_size: 1, ..AtomicScan::new(RowRange::all()) };
    assert_eq!(scan_atomic(store, &a, request.clone()).await, ["a/c=new", "c/c=old"]);
    assert_eq!(scan_atomic(store, &a, request.reversed()).await, ["c/c=old", "a/c=new"]);
}

fn parse(count: &Bytes) -> u64 {
    std::str::from_utf8(count).expect("the counter is text").parse().expect("the counter is a number")
}
