//! `scan_versions`: the candidates of a sweep.

use crate::TestStore;
use crate::support::*;
use atlas_kvs::{RowRange, TableRef, Timestamp, VersionScan};

async fn sample(store: &TestStore) -> TableRef {
    let t = versioned(store, "t").await;
    let versions = [
        ("a", "x", 2, "two"),
        ("a", "x", 1, "one"),
        ("a", "x", 9, "nine"),
        ("a", "y", 7, "seven"),
        ("b", "x", 8, "eight"),
        ("c", "x", 3, "three"),
        ("c", "y", 4, "four"),
    ];
    put(store, &t, &versions).await;
    store.add_sentinels(&t, &[cell("c", "x"), cell("d", "x")]).await.expect("sentinels can be added");
    t
}

const ALL: [&str; 6] =
    ["a/x@1=one,2=two,9=nine", "a/y@7=seven", "b/x@8=eight", "c/x@0=,3=three", "c/y@4=four", "d/x@0="];

fn all() -> VersionScan {
    VersionScan::new(RowRange::all(), Timestamp::MAX)
}

/// Cells come in ascending order, each with all its versions, oldest first, the sentinel included.
pub async fn cells_come_with_all_their_versions(store: &mut TestStore) {
    let t = sample(store).await;
    assert_eq!(scan_versions(store, &t, all()).await, ALL);
}

/// Only versions below the bound are seen; cells without any are left out.
pub async fn bound_is_exclusive(store: &mut TestStore) {
    let t = sample(store).await;
    let below = |before| VersionScan { page_size: 2, ..VersionScan::new(RowRange::all(), ts(before)) };
    assert_eq!(scan_versions(store, &t, below(0)).await, [""; 0]);
    assert_eq!(scan_versions(store, &t, below(1)).await, ["c/x@0=", "d/x@0="]);
    assert_eq!(scan_versions(store, &t, below(3)).await, ["a/x@1=one,2=two", "c/x@0=", "d/x@0="]);
    assert_eq!(
        scan_versions(store, &t, below(8)).await,
        ["a/x@1=one,2=two", "a/y@7=seven", "c/x@0=,3=three", "c/y@4=four", "d/x@0="]
    );
}

/// The page size is a hint: no cell is cut in two by a page, and none is lost.
pub async fn page_size_changes_nothing(store: &mut TestStore) {
    let t = sample(store).await;
    for page_size in [0, 1, 2, 3, 4, 1_000, usize::MAX] {
        assert_eq!(scan_versions(store, &t, VersionScan { page_size, ..all() }).await, ALL, "pages of {page_size}");
    }
}

/// A cell with far more versions than a page is complete in one item all the same.
pub async fn cell_larger_than_a_page_is_complete(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("a", "x", 1, "before"), ("c", "x", 1, "behind")]).await;
    let versions = (1..=1_000).map(|number| (cell("b", "x"), value(number, "")));
    store.put_versions(&t, versions.collect()).await.expect("versions can be put");
    let numbers: Vec<_> = (1..=1_000).map(|number| format!("{number}=")).collect();
    let expected = ["a/x@1=before".to_owned(), format!("b/x@{}", numbers.join(",")), "c/x@1=behind".to_owned()];
    for page_size in [1, 2, 10, 500] {
        assert!(scan_versions(store, &t, VersionScan { page_size, ..all() }).await == expected, "{page_size}");
    }
}

/// A scan resumes strictly behind the cell it is given, which need not exist.
pub async fn resumed_scan_starts_strictly_behind(store: &mut TestStore) {
    let t = sample(store).await;
    let places =
        [("a", "x", 1), ("a", "x\0", 1), ("a", "y", 2), ("b", "x", 3), ("c", "", 3), ("c", "y", 5), ("d", "x", 6)];
    for page_size in [1, 2, 100] {
        for (row, column, place) in places {
            let request = VersionScan { after: Some(cell(row, column)), page_size, ..all() };
            assert_eq!(scan_versions(store, &t, request).await, ALL[place..], "behind {row}/{column}");
        }
    }
}

/// Only rows of the range are seen.
pub async fn rows_are_of_the_range(store: &mut TestStore) {
    let t = sample(store).await;
    let rows = |rows| VersionScan { page_size: 1, ..VersionScan::new(rows, Timestamp::MAX) };
    assert_eq!(scan_versions(store, &t, rows(RowRange::new("a\0", "c"))).await, ALL[2..3]);
    assert_eq!(scan_versions(store, &t, rows(RowRange::single("c"))).await, ALL[3..5]);
    assert_eq!(scan_versions(store, &t, rows(RowRange::new("c", "c"))).await, [""; 0]);
    let behind = VersionScan { after: Some(cell("a", "x")), ..rows(RowRange::new("b", "d")) };
    assert_eq!(scan_versions(store, &t, behind).await, ALL[2..5]);
}

/// Long stretches of cells without a version below the bound are passed.
pub async fn cells_with_newer_versions_only_are_skipped(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let versions =
        (0..200).map(|number| (cell(format!("{number:03}"), "c"), value(if number == 150 { 1 } else { 9 }, "")));
    store.put_versions(&t, versions.collect()).await.expect("versions can be put");
    for page_size in [1, 3, 100] {
        let request = VersionScan { page_size, ..VersionScan::new(RowRange::all(), ts(9)) };
        assert_eq!(scan_versions(store, &t, request).await, ["150/c@1="]);
    }
}

/// What a version scan tells of a cell is what `versions` tells.
pub async fn scan_and_listing_agree(store: &mut TestStore) {
    let t = sample(store).await;
    put(store, &t, &[("e", "x", 1, &"long".repeat(100))]).await;
    let items = items(store.scan_versions(&t, all())).await;
    for atlas_kvs::CellVersions { cell, versions } in items {
        let bound = atlas_kvs::CellBound::new(cell.clone(), Timestamp::MAX);
        assert_eq!(store.versions(&t, &[bound]).await.expect("versions can be read"), [versions], "{cell}");
    }
}
