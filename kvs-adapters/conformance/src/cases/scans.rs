//! Scans of versioned tables: ranges, columns, directions, pages.

use crate::TestStore;
use crate::support::*;
use atlas_kvs::{Cell, ColumnSelection, KvsError, RowRange, Scan, TableRef, Timestamp, Value};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

/// A table of three rows of up to three columns, with older and newer versions.
async fn sample(store: &TestStore) -> TableRef {
    let t = versioned(store, "t").await;
    let versions = [
        ("a", "x", 1, "ax1"),
        ("a", "x", 5, "ax5"),
        ("a", "y", 3, "ay3"),
        ("b", "x", 9, "bx9"),
        ("b", "y", 2, "by2"),
        ("b", "z", 2, "bz2"),
        ("c", "x", 4, "cx4"),
    ];
    put(store, &t, &versions).await;
    t
}

const ALL: [&str; 6] = ["a/x@5=ax5", "a/y@3=ay3", "b/x@9=bx9", "b/y@2=by2", "b/z@2=bz2", "c/x@4=cx4"];

fn columns(names: &[&str]) -> ColumnSelection {
    ColumnSelection::Exactly(names.iter().map(bytes).collect())
}

fn column_range(start: &str, end: Option<&str>) -> ColumnSelection {
    ColumnSelection::Range { start: bytes(start), end: end.map(bytes) }
}

fn reversed<T: Clone>(items: &[T]) -> Vec<T> {
    items.iter().rev().cloned().collect()
}

/// A scan shows of each cell the newest version, in the order of cells.
pub async fn forward_scan_is_in_order(store: &mut TestStore) {
    let t = sample(store).await;
    assert_eq!(scan(store, &t, everything()).await, ALL);
}

/// A reverse scan shows the same from the last cell to the first: rows and columns both descending.
pub async fn reverse_scan_is_in_reverse_order(store: &mut TestStore) {
    let t = sample(store).await;
    assert_eq!(scan(store, &t, everything().reversed()).await, reversed(&ALL));
}

/// Only versions below the bound are seen, and cells without any are left out.
pub async fn bound_is_exclusive(store: &mut TestStore) {
    let t = sample(store).await;
    let below = |before| Scan::new(RowRange::all(), ts(before));
    assert_eq!(scan(store, &t, below(1)).await, [""; 0]);
    assert_eq!(scan(store, &t, below(2)).await, ["a/x@1=ax1"]);
    assert_eq!(scan(store, &t, below(5)).await, ["a/x@1=ax1", "a/y@3=ay3", "b/y@2=by2", "b/z@2=bz2", "c/x@4=cx4"]);
    assert_eq!(scan(store, &t, below(9)).await, ["a/x@5=ax5", "a/y@3=ay3", "b/y@2=by2", "b/z@2=bz2", "c/x@4=cx4"]);
    assert_eq!(scan(store, &t, below(10)).await, ALL);
    assert_eq!(
        scan(store, &t, below(5).reversed()).await,
        ["c/x@4=cx4", "b/z@2=bz2", "b/y@2=by2", "a/y@3=ay3", "a/x@1=ax1"]
    );
}

/// Sentinels are seen by scans as by reads: where there is nothing newer.
pub async fn sentinel_is_a_version(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("a", "x", 5, "v")]).await;
    store.add_sentinels(&t, &[cell("a", "x"), cell("b", "x")]).await.expect("sentinels can be added");
    assert_eq!(scan(store, &t, everything()).await, ["a/x@5=v", "b/x@0="]);
    assert_eq!(scan(store, &t, Scan::new(RowRange::all(), ts(5))).await, ["a/x@0=", "b/x@0="]);
    assert_eq!(scan(store, &t, Scan::new(RowRange::all(), Timestamp::SENTINEL)).await, [""; 0]);
}

/// The start of a range is inclusive and its end exclusive, in both directions.
pub async fn row_range_includes_start_and_excludes_end(store: &mut TestStore) {
    let t = sample(store).await;
    let cases: [(RowRange, &[&str]); 8] = [
        (RowRange::new("a", "b"), &ALL[..2]),
        (RowRange::new("b", "c"), &ALL[2..5]),
        (RowRange::new("a\0", "c\0"), &ALL[2..]),
        (RowRange { start: bytes("b"), end: None }, &ALL[2..]),
        (RowRange::new("", "b"), &ALL[..2]),
        (RowRange::single("b"), &ALL[2..5]),
        (RowRange::new("b", "b"), &[]),
        (RowRange::new("c", "a"), &[]),
    ];
    for (rows, expected) in cases {
        let request = Scan::new(rows.clone(), Timestamp::MAX);
        assert_eq!(scan(store, &t, request.clone()).await, expected, "{rows:?}");
        assert_eq!(scan(store, &t, request.reversed()).await, reversed(expected), "{rows:?} reversed");
    }
}

/// A prefix range holds all rows that start with the prefix, the prefix itself included.
pub async fn prefix_range_is_exact(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let rows: [&[u8]; 7] = [b"a", b"ab", b"ab\0", b"ab\xff\xff", b"ac", b"\xff", b"\xff\xff"];
    store
        .put_versions(&t, rows.iter().map(|row| (cell(row, "c"), value(1, "v"))).collect())
        .await
        .expect("versions can be put");
    for (prefix, expected) in [(&b"ab"[..], 1..4), (b"a", 0..5), (b"\xff", 5..7), (b"", 0..7), (b"b", 0..0)] {
        let request = Scan::new(RowRange::prefix(bytes(prefix)), Timestamp::MAX);
        let expected: Vec<_> = rows[expected].iter().map(|row| format!("{}@1=v", cell(row, "c"))).collect();
        assert_eq!(scan(store, &t, request.clone()).await, expected, "{}", prefix.escape_ascii());
        assert_eq!(scan(store, &t, request.reversed()).await, reversed(&expected), "{}", prefix.escape_ascii());
    }
}

/// Named columns are seen and no others; naming none selects none.
pub async fn exact_columns_are_selected(store: &mut TestStore) {
    let t = sample(store).await;
    let cases: [(&[&str], &[&str]); 5] = [
        (&["x"], &["a/x@5=ax5", "b/x@9=bx9", "c/x@4=cx4"]),
        (&["x", "z"], &["a/x@5=ax5", "b/x@9=bx9", "b/z@2=bz2", "c/x@4=cx4"]),
        (&["w", "y", "yy"], &["a/y@3=ay3", "b/y@2=by2"]),
        (&["", "x\0"], &[]),
        (&[], &[]),
    ];
    for (names, expected) in cases {
        for page_size in [1, 2, 100] {
            let request = Scan { page_size, ..everything().columns(columns(names)) };
            assert_eq!(scan(store, &t, request.clone()).await, expected, "{names:?}");
            assert_eq!(scan(store, &t, request.reversed()).await, reversed(expected), "{names:?} reversed");
        }
    }
}

/// A range of columns applies to every row of the scan, start inclusive, end exclusive.
pub async fn column_range_applies_to_every_row(store: &mut TestStore) {
    let t = sample(store).await;
    let cases: [(ColumnSelection, &[&str]); 6] = [
        (column_range("y", None), &["a/y@3=ay3", "b/y@2=by2", "b/z@2=bz2"]),
        (column_range("x", Some("y")), &["a/x@5=ax5", "b/x@9=bx9", "c/x@4=cx4"]),
        (column_range("", Some("z")), &["a/x@5=ax5", "a/y@3=ay3", "b/x@9=bx9", "b/y@2=by2", "c/x@4=cx4"]),
        (column_range("x\0", Some("y\0")), &["a/y@3=ay3", "b/y@2=by2"]),
        (column_range("y", Some("y")), &[]),
        (column_range("z", Some("x")), &[]),
    ];
    for (selection, expected) in cases {
        for page_size in [1, 2, 100] {
            let request = Scan { page_size, ..everything().columns(selection.clone()) };
            assert_eq!(scan(store, &t, request.clone()).await, expected, "{selection:?}");
            assert_eq!(scan(store, &t, request.reversed()).await, reversed(expected), "{selection:?} reversed");
        }
    }
}

/// Rows, columns, bound and direction apply together.
pub async fn selections_combine(store: &mut TestStore) {
    let t = sample(store).await;
    let request = Scan::new(RowRange::new("a", "c"), ts(9)).columns(columns(&["x", "y"]));
    assert_eq!(scan(store, &t, request.clone()).await, ["a/x@5=ax5", "a/y@3=ay3", "b/y@2=by2"]);
    let request = Scan { after: Some(cell("b", "y")), page_size: 1, ..request.reversed() };
    assert_eq!(scan(store, &t, request).await, ["a/y@3=ay3", "a/x@5=ax5"]);
}

/// The page size is a hint: whatever it is, the same cells come in the same order.
pub async fn page_size_changes_nothing(store: &mut TestStore) {
    let t = sample(store).await;
    for page_size in [0, 1, 2, 3, 4, 5, 6, 7, 1_000, usize::MAX] {
        let request = Scan { page_size, ..everything() };
        assert_eq!(scan(store, &t, request.clone()).await, ALL, "pages of {page_size}");
        assert_eq!(scan(store, &t, request.reversed()).await, reversed(&ALL), "pages of {page_size}");
    }
}

/// A scan resumes strictly behind the cell it is given, in its own direction.
pub async fn resumed_scan_starts_strictly_behind(store: &mut TestStore) {
    let t = sample(store).await;
    let cells = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("b", "z"), ("c", "x")];
    for page_size in [1, 2, 3, 100] {
        for (place, (row, column)) in cells.into_iter().enumerate() {
            let request = Scan { after: Some(cell(row, column)), page_size, ..everything() };
            assert_eq!(scan(store, &t, request.clone()).await, ALL[place + 1..], "behind {row}/{column}");
            assert_eq!(scan(store, &t, request.reversed()).await, reversed(&ALL[..place]), "before {row}/{column}");
        }
    }
}

/// The cell to resume behind need not exist, nor lie in the range.
pub async fn resuming_needs_no_existing_cell(store: &mut TestStore) {
    let t = sample(store).await;
    let cases: [(Cell, &[&str], &[&str]); 6] = [
        (cell("a", "x\0"), &ALL[2..5], &[]),
        (cell("b", "x\0"), &ALL[3..5], &ALL[2..3]),
        (cell("b", "zz"), &[], &ALL[2..5]),
        (cell("0", "0"), &ALL[2..5], &[]),
        (cell("z", "z"), &[], &ALL[2..5]),
        (cell("c", "0"), &[], &ALL[2..5]),
    ];
    for (after, forward, backward) in cases {
        let request = Scan { after: Some(after.clone()), ..Scan::new(RowRange::new("b", "c"), Timestamp::MAX) };
        assert_eq!(scan(store, &t, request.clone()).await, forward, "behind {after}");
        assert_eq!(scan(store, &t, request.reversed()).await, reversed(backward), "before {after}");
    }
}

/// A scan that is abandoned and resumed after every single cell sees what an undisturbed one sees.
pub async fn scan_in_single_steps_is_complete(store: &mut TestStore) {
    let t = sample(store).await;
    for request in [everything(), everything().reversed()] {
        let whole = scan(store, &t, request.clone()).await;
        let (mut steps, mut after) = (Vec::new(), None);
        loop {
            let mut stream = store.scan(&t, Scan { after: after.take(), ..request.clone() });
            let Some((cell, value)) = stream.try_next().await.expect("a table can be scanned") else { break };
            steps.push(format!("{cell}@{}", show_value(&value)));
            assert!(steps.len() <= whole.len(), "the scan goes on: {steps:?}");
            after = Some(cell);
        }
        assert_eq!(steps, whole);
    }
}

/// Long stretches of cells that have only newer versions are passed, whatever the page size, and nothing behind them
/// is lost.
pub async fn cells_with_newer_versions_only_are_skipped(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let age = |number: u64| if number % 50 == 25 { 1 } else { 100 };
    let versions = (0..300).map(|number| (cell(format!("{number:03}"), "c"), value(age(number), "v")));
    store.put_versions(&t, versions.collect()).await.expect("versions can be put");
    let expected = ["025", "075", "125", "175", "225", "275"].map(|row| format!("{row}/c@1=v"));
    for page_size in [1, 2, 3, 7, 1_000] {
        let request = Scan { page_size, ..Scan::new(RowRange::all(), ts(100)) };
        assert_eq!(scan(store, &t, request.clone()).await, expected, "pages of {page_size}");
        assert_eq!(scan(store, &t, request.reversed()).await, reversed(&expected), "pages of {page_size}");
    }
}

/// Many versions of a cell give one item, and the cells around it their own.
pub async fn many_versions_give_one_item(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let versions = (1..=400).map(|number| (cell("b", "c"), value(number, number.to_string())));
    store.put_versions(&t, versions.collect()).await.expect("versions can be put");
    put(store, &t, &[("a", "c", 7, "a"), ("c", "c", 7, "c")]).await;
    for page_size in [1, 2, 3, 100] {
        for (before, newest) in [(1_000, 400), (200, 199), (8, 7)] {
            let request = Scan { page_size, ..Scan::new(RowRange::all(), ts(before)) };
            let expected = ["a/c@7=a".to_owned(), format!("b/c@{newest}={newest}"), "c/c@7=c".to_owned()];
            assert_eq!(scan(store, &t, request.clone()).await, expected);
            assert_eq!(scan(store, &t, request.reversed()).await, reversed(&expected));
        }
    }
}

/// Thousands of cells come through pages of any size, each once and in order.
pub async fn thousands_of_cells_come_in_pages(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let cells: Vec<(Cell, Value)> = (0..5_000_u64)
        .map(|number| {
            (cell(format!("{:03}", number / 7), format!("{}", number % 7)), value(1 + number % 3, number.to_string()))
        })
        .collect();
    for part in cells.chunks(1_000) {
        store.put_versions(&t, part.to_vec()).await.expect("versions can be put");
    }
    for page_size in [10, 256, 4_999, 5_000, 100_000] {
        let request = Scan { page_size, ..everything() };
        let seen = items(store.scan(&t, request.clone())).await;
        assert!(seen == cells, "pages of {page_size}");
        let seen = items(store.scan(&t, request.reversed())).await;
        assert!(seen.iter().eq(cells.iter().rev()), "pages of {page_size} reversed");
    }
}

/// One row may have thousands of columns, of which a scan finds a few.
pub async fn wide_row_is_scanned_by_columns(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let name = |number: u64| format!("{number:04}");
    let versions = (0..3_000).map(|number| (cell("wide", name(number)), value(1, name(number))));
    store.put_versions(&t, versions.collect()).await.expect("versions can be put");
    put(store, &t, &[("v", "2000", 1, "v"), ("x", "2000", 1, "x")]).await;
    let request = Scan { page_size: 2, ..Scan::new(RowRange::single("wide"), Timestamp::MAX) };
    let named = request.clone().columns(columns(&["0000", "1500", "2999", "3000"]));
    assert_eq!(scan(store, &t, named).await, ["wide/0000@1=0000", "wide/1500@1=1500", "wide/2999@1=2999"]);
    let ranged = request.columns(column_range("2000", Some("2003"))).reversed();
    assert_eq!(scan(store, &t, ranged).await, ["wide/2002@1=2002", "wide/2001@1=2001", "wide/2000@1=2000"]);
}

/// An empty table gives an empty scan.
pub async fn empty_table_gives_nothing(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    assert_eq!(scan(store, &t, everything()).await, [""; 0]);
    assert_eq!(scan(store, &t, everything().reversed()).await, [""; 0]);
}

/// A scan sees every write that returned before it was called.
pub async fn scan_sees_what_was_written_before(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    for number in 1..50 {
        store
            .put_versions(&t, vec![(cell(format!("{number:02}"), "c"), value(number, "v"))])
            .await
            .expect("can be put");
        let seen = scan(store, &t, everything()).await;
        assert_eq!(seen.len() as u64, number);
    }
}

/// Writes during a scan may or may not be seen, but nothing comes twice, out of order, or gets lost.
pub async fn writes_during_a_scan_disturb_nothing(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let steady: Vec<_> = (0..200).map(|number| cell(format!("{number:03}"), "steady")).collect();
    let versions = steady.iter().map(|cell| (cell.clone(), value(1, "v"))).collect();
    store.put_versions(&t, versions).await.expect("versions can be put");
    for request in [everything(), everything().reversed()] {
        let mut stream = store.scan(&t, Scan { page_size: 3, ..request.clone() });
        let mut seen = Vec::new();
        while let Some((cell, _)) = stream.try_next().await.expect("a table can be scanned") {
            let in_order = |last: &Cell| if request.reverse { *last > cell } else { *last < cell };
            assert!(seen.last().is_none_or(in_order), "{cell} comes out of order, or twice");
            seen.push(cell);
            let step = seen.len() as u64;
            // Behind, before and beside the place where the scan is, for as long as that can't keep it from ending.
            for row in [step, 200 - step.min(200), step * 7].into_iter().filter(|_| step < 150) {
                let beside = crate::support::cell(format!("{:03}", row % 200), step.to_string());
                store.put_versions(&t, vec![(beside, value(step, "w"))]).await.expect("versions can be put");
            }
        }
        let mut found: Vec<_> = seen.into_iter().filter(|cell| cell.column == "steady").collect();
        found.sort();
        assert_eq!(found, steady);
    }
}

/// Pages hold the cells that a scan gives one by one, in the same order, and none of them is empty.
pub async fn pages_hold_what_a_scan_gives(store: &mut TestStore) {
    let t = sample(store).await;
    let requests = [
        everything(),
        everything().columns(columns(&["x", "z"])),
        everything().columns(column_range("y", None)),
        Scan::new(RowRange::new("a\0", "c"), ts(9)),
        Scan { after: Some(cell("b", "x")), ..everything() },
        Scan::new(RowRange::new("d", "e"), Timestamp::MAX),
        Scan::new(RowRange::new("b", "b"), Timestamp::MAX),
    ];
    for request in requests.into_iter().flat_map(|request| [request.clone(), request.reversed()]) {
        for page_size in [0, 1, 2, 3, 100, usize::MAX] {
            let request = Scan { page_size, ..request.clone() };
            let pages = items(store.scan_pages(&t, request.clone())).await;
            assert!(pages.iter().all(|page| !page.is_empty()), "{request:?}");
            let cells = items(store.scan(&t, request.clone())).await;
            assert_eq!(pages.concat(), cells, "{request:?}");
            let pages = items(store.scan_flat(&t, request.clone())).await;
            assert!(pages.iter().all(|page| !page.is_empty()), "{request:?}");
            let flat = pages.iter().flat_map(|page| page.iter());
            let flat = flat.map(|cell| (cell.cell(), value(cell.ts.get(), cell.value)));
            assert_eq!(flat.collect::<Vec<_>>(), cells, "{request:?}");
        }
    }
}

/// Where a page ends, the rest of the last cell's versions is passed: no cell comes twice, none is lost.
pub async fn page_ends_between_cells_not_within(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let versions = (0..200).flat_map(|number| {
        let cell = cell(format!("{:02}", number / 5), (number % 5).to_string());
        (1..=number % 13 + 1).map(move |age| (cell.clone(), value(age, age.to_string())))
    });
    store.put_versions(&t, versions.collect()).await.expect("versions can be put");
    for before in [2, 7, 100] {
        let newest = |number: u64| (number % 13 + 1).min(before - 1);
        let expected: Vec<_> =
            (0..200).map(|number| format!("{:02}/{}@{2}={2}", number / 5, number % 5, newest(number))).collect();
        for page_size in [1, 3, 16, 199, 200, 201] {
            let request = Scan { page_size, ..Scan::new(RowRange::all(), ts(before)) };
            assert_eq!(scan(store, &t, request.clone()).await, expected, "pages of {page_size}");
            assert_eq!(scan(store, &t, request.reversed()).await, reversed(&expected), "pages of {page_size}");
        }
    }
}

/// A scan that can't be made says so in its first item and ends.
pub async fn failed_scan_ends_after_its_error(store: &mut TestStore) {
    let mut stream = store.scan(&table("nowhere"), everything());
    assert_fails!(stream.next().await.expect("a failure is an item"), KvsError::NoSuchTable(_));
    assert!(stream.next().await.is_none(), "nothing comes after the error");
    let mut pages = store.scan_pages(&table("nowhere"), everything());
    assert_fails!(pages.next().await.expect("a failure is an item"), KvsError::NoSuchTable(_));
    assert!(pages.next().await.is_none(), "nothing comes after the error");
    let mut pages = store.scan_flat(&table("nowhere"), everything());
    assert_fails!(pages.next().await.expect("a failure is an item"), KvsError::NoSuchTable(_));
    assert!(pages.next().await.is_none(), "nothing comes after the error");
}

/// Streams and their items belong to the caller: they outlive the reference to the store they came from.
pub async fn stream_borrows_nothing(store: &mut TestStore) {
    let t = sample(store).await;
    let stream = {
        let shared = store.share();
        shared.scan(&t, Scan { page_size: 1, ..everything() })
    };
    let seen = tokio::spawn(items(stream)).await.expect("the stream can be read elsewhere");
    assert_eq!(seen.len(), ALL.len());
    let joined: Bytes = seen.iter().flat_map(|(_, value)| value.bytes.to_vec()).collect();
    assert_eq!(joined, "ax5ay3bx9by2bz2cx4");
}

/// Where a store says that a table can be cut, rows ascend, and the ranges between them are all of the table.
pub async fn cuts_are_in_order_and_lose_nothing(store: &mut TestStore) {
    let t = sample(store).await;
    for parts in [0, 1, 2, 100] {
        let cuts = store.cut_rows(&t, parts).await.expect("it can be asked");
        assert!(cuts.is_sorted_by(|a, b| a < b) && cuts.len() < parts.max(1), "{parts} parts: {cuts:?}");
        let (mut found, mut start) = (Vec::new(), Bytes::new());
        for end in cuts.into_iter().map(Some).chain([None]) {
            let rows = RowRange { start, end: end.clone() };
            found.extend(scan(store, &t, Scan::new(rows, Timestamp::MAX)).await);
            start = end.unwrap_or_default();
        }
        assert_eq!(found, ALL, "{parts} parts");
    }
}
