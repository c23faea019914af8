//! Deleting versions and rows.

use crate::TestStore;
use crate::support::*;
use atlas_kvs::{CellTimestamps, CellVersionRange, RowRange, TableRef, Timestamp};

async fn sample(store: &TestStore) -> TableRef {
    let t = versioned(store, "t").await;
    let versions = [("a", "x", 1), ("a", "x", 3), ("a", "x", 5), ("a", "y", 3), ("a", "x\0", 3), ("b", "x", 3)];
    put(store, &t, &versions.map(|(row, column, number)| (row, column, number, "v"))).await;
    store.add_sentinels(&t, &[cell("a", "x"), cell("a", "y")]).await.expect("sentinels can be added");
    t
}

async fn delete(store: &TestStore, table: &TableRef, row: &str, column: &str, numbers: &[u64]) {
    let timestamps = numbers.iter().map(|&number| ts(number)).collect();
    let versions = [CellTimestamps { cell: cell(row, column), timestamps }];
    store.delete_versions(table, &versions).await.expect("versions can be deleted");
}

async fn delete_range(store: &TestStore, table: &TableRef, before: Timestamp, include_sentinel: bool) {
    let ranges = [CellVersionRange { cell: cell("a", "x"), before, include_sentinel }];
    store.delete_version_ranges(table, &ranges).await.expect("versions can be deleted");
}

const NEIGHBOURS: [&str; 3] = ["a/x\\x00@3=v", "a/y@0=,3=v", "b/x@3=v"];

/// Exactly the named versions go; other versions, and cells and rows beside, stay.
pub async fn exactly_the_named_versions_go(store: &mut TestStore) {
    let t = sample(store).await;
    delete(store, &t, "a", "x", &[3]).await;
    assert_eq!(stored(store, &t).await, [&["a/x@0=,1=v,5=v"], &NEIGHBOURS[..]].concat());
    delete(store, &t, "a", "x", &[5, 0]).await;
    assert_eq!(stored(store, &t).await, [&["a/x@1=v"], &NEIGHBOURS[..]].concat());
    assert_eq!(get(store, &t, &[("a", "x", 9)]).await, ["1=v"]);
    delete(store, &t, "a", "x", &[1]).await;
    assert_eq!(stored(store, &t).await, NEIGHBOURS);
    assert_eq!(get(store, &t, &[("a", "x", 9)]).await, ["none"]);
}

/// Absent versions of cells present or absent are fine, and so is naming one twice.
pub async fn absent_versions_are_fine(store: &mut TestStore) {
    let t = sample(store).await;
    let before = stored(store, &t).await;
    delete(store, &t, "a", "x", &[2, 4, 6, 2]).await;
    delete(store, &t, "nowhere", "x", &[0, 1]).await;
    delete(store, &t, "a", "y", &[Timestamp::MAX.get(), 1]).await;
    assert_eq!(stored(store, &t).await, before);
}

/// Versions may be named in any order, and several cells in one call, one of them twice.
pub async fn several_cells_in_one_call(store: &mut TestStore) {
    let t = sample(store).await;
    let of = |row: &str, column: &str, numbers: &[u64]| CellTimestamps {
        cell: cell(row, column),
        timestamps: numbers.iter().map(|&number| ts(number)).collect(),
    };
    let versions = [of("b", "x", &[3]), of("a", "x", &[5, 1]), of("a", "y", &[0]), of("a", "x", &[3])];
    store.delete_versions(&t, &versions).await.expect("versions can be deleted");
    assert_eq!(stored(store, &t).await, ["a/x@0=", "a/x\\x00@3=v", "a/y@3=v"]);
}

/// The oldest version goes first: who reads beside a deletion of all versions sees the newest one or none, and never
/// an older one.
pub async fn oldest_version_goes_first(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    const NEWEST: u64 = 100;
    let readers = (0..2).map(|_| {
        let shared = (store.share(), t.clone());
        move |finished: u64, seen: Seen| {
            let (store, t) = shared.clone();
            // The row that is being deleted, and the last one that was.
            let (next, last) = (row(finished + 1), row(finished));
            async move {
                let asked = bounds(&[(&next, "c", NEWEST + 1), (&last, "c", NEWEST + 1)]);
                let values = store.get(&t, &asked).await.expect("cells can be read");
                assert!(values[0].as_ref().is_none_or(|value| value.ts.get() == NEWEST), "{values:?}");
                assert_eq!(values[1], None, "what was deleted is gone");
                seen
            }
        }
    });
    let delete = async |step: u64| {
        let cell = cell(row(step), "c");
        // The newest first, so that a reader of the row that is being written never sees another.
        store.put_versions(&t, vec![(cell.clone(), value(NEWEST, "v"))]).await.expect("versions can be put");
        let older = (1..NEWEST).map(|number| (cell.clone(), value(number, "v")));
        store.put_versions(&t, older.collect()).await.expect("versions can be put");
        if step.is_multiple_of(2) {
            let timestamps = (1..=NEWEST).rev().map(ts).collect();
            store.delete_versions(&t, &[CellTimestamps { cell, timestamps }]).await.expect("versions can be deleted");
        } else {
            let range = CellVersionRange { cell, before: Timestamp::MAX, include_sentinel: false };
            store.delete_version_ranges(&t, &[range]).await.expect("versions can be deleted");
        }
    };
    watched(store, 20, delete, readers.collect()).await;
}

/// All versions below the limit of a range go, the one at the limit stays, and so does the sentinel.
pub async fn range_goes_up_to_its_limit(store: &mut TestStore) {
    let t = sample(store).await;
    delete_range(store, &t, ts(3), false).await;
    assert_eq!(stored(store, &t).await, [&["a/x@0=,3=v,5=v"], &NEIGHBOURS[..]].concat());
    delete_range(store, &t, ts(4), false).await;
    assert_eq!(stored(store, &t).await, [&["a/x@0=,5=v"], &NEIGHBOURS[..]].concat());
    delete_range(store, &t, Timestamp::MAX, false).await;
    assert_eq!(stored(store, &t).await, [&["a/x@0="], &NEIGHBOURS[..]].concat());
}

/// The sentinel goes with a range that includes it.
pub async fn range_takes_the_sentinel_if_asked(store: &mut TestStore) {
    let t = sample(store).await;
    delete_range(store, &t, ts(1), true).await;
    assert_eq!(stored(store, &t).await, [&["a/x@1=v,3=v,5=v"], &NEIGHBOURS[..]].concat());
    store.add_sentinels(&t, &[cell("a", "x")]).await.expect("sentinels can be added");
    delete_range(store, &t, ts(5), true).await;
    assert_eq!(stored(store, &t).await, [&["a/x@5=v"], &NEIGHBOURS[..]].concat());
    delete_range(store, &t, Timestamp::MAX, true).await;
    assert_eq!(stored(store, &t).await, NEIGHBOURS);
}

/// An empty range of versions does nothing, and one of an absent cell neither.
pub async fn empty_version_range_does_nothing(store: &mut TestStore) {
    let t = sample(store).await;
    let before = stored(store, &t).await;
    delete_range(store, &t, Timestamp::SENTINEL, false).await;
    delete_range(store, &t, Timestamp::SENTINEL, true).await;
    delete_range(store, &t, Timestamp::FIRST, false).await;
    let range = CellVersionRange { cell: cell("nowhere", "x"), before: Timestamp::MAX, include_sentinel: true };
    store.delete_version_ranges(&t, &[range]).await.expect("absent cells are fine");
    assert_eq!(stored(store, &t).await, before);
}

/// Several ranges in one call, of one cell too.
pub async fn several_ranges_in_one_call(store: &mut TestStore) {
    let t = sample(store).await;
    let of = |row: &str, column: &str, before: u64, include_sentinel: bool| CellVersionRange {
        cell: cell(row, column),
        before: ts(before),
        include_sentinel,
    };
    let ranges = [of("b", "x", 9, false), of("a", "x", 4, false), of("a", "y", 3, true), of("a", "x", 2, true)];
    store.delete_version_ranges(&t, &ranges).await.expect("versions can be deleted");
    assert_eq!(stored(store, &t).await, ["a/x@5=v", "a/x\\x00@3=v", "a/y@3=v"]);
}

/// All versions of all cells of the rows go, sentinels included; rows beside stay.
pub async fn rows_go_with_all_their_versions(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    for row in ["a", "a\0", "b", "b\0", "c", "d"] {
        put(store, &t, &[(row, "x", 1, "v"), (row, "x", 2, "v"), (row, "y", 1, "v")]).await;
        store.add_sentinels(&t, &[cell(row, "x"), cell(row, "z")]).await.expect("sentinels can be added");
    }
    let rows = async |store: &TestStore| {
        let mut rows: Vec<_> =
            stored(store, &t).await.iter().map(|item| item.split('/').next().map(str::to_owned)).collect();
        rows.dedup();
        rows.into_iter().flatten().collect::<Vec<_>>()
    };
    store.delete_rows(&t, &RowRange::single("a")).await.expect("rows can be deleted");
    assert_eq!(rows(store).await, ["a\\x00", "b", "b\\x00", "c", "d"]);
    store.delete_rows(&t, &RowRange::new("b", "c")).await.expect("rows can be deleted");
    assert_eq!(rows(store).await, ["a\\x00", "c", "d"]);
    store.delete_rows(&t, &RowRange { start: bytes("d"), end: None }).await.expect("rows can be deleted");
    assert_eq!(rows(store).await, ["a\\x00", "c"]);
    store.delete_rows(&t, &RowRange::all()).await.expect("rows can be deleted");
    assert_eq!(stored(store, &t).await, [""; 0]);
    assert!(store.table(&t).await.expect("a table can be described").is_some(), "the table itself stays");
}

/// An empty range of rows does nothing, and neither does a range without rows.
pub async fn empty_row_range_does_nothing(store: &mut TestStore) {
    let t = sample(store).await;
    let before = stored(store, &t).await;
    for rows in [RowRange::new("a", "a"), RowRange::new("b", "a"), RowRange::new("", ""), RowRange::new("c", "d")] {
        store.delete_rows(&t, &rows).await.expect("an empty range is fine");
    }
    assert_eq!(stored(store, &t).await, before);
}

/// Rows that were deleted take data again, at the timestamps that were there.
pub async fn deleted_rows_take_data_again(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    for content in ["one", "two", "three"] {
        put(store, &t, &[("r", "c", 1, content), ("r", "d", 2, content)]).await;
        assert_eq!(stored(store, &t).await, [format!("r/c@1={content}"), format!("r/d@2={content}")]);
        store.delete_rows(&t, &RowRange::prefix("r")).await.expect("rows can be deleted");
        assert_eq!(stored(store, &t).await, [""; 0]);
        assert_eq!(get(store, &t, &[("r", "c", 9), ("r", "d", 9)]).await, ["none", "none"]);
    }
}

fn row(step: u64) -> String {
    format!("{step:05}")
}
