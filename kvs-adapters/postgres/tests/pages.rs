//! Tables whose shape makes a scan change its ways.

mod common;

use atlas_kvs::{
    Cell, CellBound, CellTimestamps, ColumnSelection, FlatCell, FlatPage, KeyValueService, KvsError, RowRange, Scan,
    TableKind, TableRef, Timestamp, Value, VersionScan,
};
use atlas_kvs_postgres::PostgresStore;
use bytes::Bytes;
use common::Namespace;
use futures::TryStreamExt;

fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

async fn versioned(store: &PostgresStore, name: &str) -> TableRef {
    store.create_table(&table(name), TableKind::Versioned, Bytes::new()).await.expect("can be created");
    table(name)
}

async fn scan(store: &PostgresStore, table: &TableRef, request: Scan) -> Vec<(Cell, u64)> {
    let items: Vec<(Cell, Value)> =
        store.scan(table, request.clone()).try_collect().await.expect("a table can be scanned");
    let pages: Vec<FlatPage> = store.scan_flat(table, request).try_collect().await.expect("also by the page");
    let flat = pages.iter().flat_map(|page| page.iter());
    assert!(flat.eq(items.iter().map(|(cell, value)| FlatCell {
        row: &cell.row,
        column: &cell.column,
        ts: value.ts,
        value: &value.bytes
    })));
    items.into_iter().map(|(cell, value)| (cell, value.ts.get())).collect()
}

#[tokio::test]
async fn cells_of_very_many_versions_among_cells_of_few() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    let many = |row: u64| if row.is_multiple_of(7) { 2_000 } else { 1 + row % 3 };
    let mut versions = Vec::new();
    for row in 0..70_u64 {
        let cell = Cell::copy_from(format!("{:02}", row / 2), format!("{}", row % 2));
        let of_one =
            (1..=many(row)).map(|ts| (cell.clone(), Value { ts: Timestamp::saturating(ts), bytes: Bytes::new() }));
        versions.extend(of_one);
    }
    store.put_versions(&t, versions).await.expect("versions can be put");
    for bound in [2, 3, 1_000, u64::MAX] {
        let newest = |row: u64| many(row).min(bound.saturating_sub(1));
        let expected: Vec<_> = (0..70_u64)
            .map(|row| (Cell::copy_from(format!("{:02}", row / 2), format!("{}", row % 2)), newest(row)))
            .collect();
        let reversed: Vec<_> = expected.iter().rev().cloned().collect();
        for page_size in [1, 7, 64, 5_000] {
            let request = Scan { page_size, ..Scan::new(RowRange::all(), Timestamp::saturating(bound)) };
            assert_eq!(scan(&store, &t, request.clone()).await, expected, "pages of {page_size} below {bound}");
            assert_eq!(scan(&store, &t, request.clone().reversed()).await, reversed);
            let columns = ColumnSelection::Range { start: "0\0".into(), end: None };
            let odd: Vec<_> = expected.iter().filter(|(cell, _)| cell.column == "1").cloned().collect();
            assert_eq!(scan(&store, &t, request.clone().columns(columns.clone())).await, odd);
            let odd: Vec<_> = odd.into_iter().rev().collect();
            assert_eq!(scan(&store, &t, request.columns(columns).reversed()).await, odd);
        }
        let request = VersionScan { page_size: 64, ..VersionScan::new(RowRange::all(), Timestamp::saturating(bound)) };
        let items: Vec<_> = store.scan_versions(&t, request).try_collect().await.expect("can be scanned");
        let counts: Vec<_> = items.into_iter().map(|item| (item.cell, item.versions.len() as u64)).collect();
        assert_eq!(counts, expected, "timestamps are numbers from one on");
    }
}

#[tokio::test]
async fn pages_end_where_their_bytes_do() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    let cells: Vec<_> = (0..30_u8).map(|number| Cell::copy_from([number / 10], [number])).collect();
    for (number, cell) in cells.iter().enumerate() {
        // Ten MiB a row, with a small one now and then.
        let len = if number % 4 == 0 { 10 } else { 1 << 20 };
        let value = Bytes::from(vec![number as u8; len]);
        store.put(vec![(t.clone(), vec![(cell.clone(), value)])], Timestamp::FIRST).await.expect("can be put");
    }
    let all = Scan::new(RowRange::all(), Timestamp::MAX);
    let exact = ColumnSelection::Exactly(cells.iter().map(|cell| cell.column.clone()).collect());
    let range = ColumnSelection::Range { start: Bytes::new(), end: None };
    for columns in [ColumnSelection::All, exact, range] {
        let seen: Vec<_> = scan(&store, &t, all.clone().columns(columns.clone())).await;
        assert_eq!(seen.into_iter().map(|(cell, _)| cell).collect::<Vec<_>>(), cells);
        let mut seen: Vec<_> = scan(&store, &t, all.clone().columns(columns).reversed()).await;
        seen.reverse();
        assert_eq!(seen.into_iter().map(|(cell, _)| cell).collect::<Vec<_>>(), cells);
    }
}

/// Where the bytes of a page end between two versions of a cell, neither of the other's is shown in its place.
#[tokio::test]
async fn pages_end_between_versions_of_long_values() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    let long = Bytes::from(vec![1; 3 << 19]);
    // Of 1.5 MiB each: three times in a row, among cells of one short version, and of two versions of which one is short.
    let versions_of = |row: u64| if row.is_multiple_of(3) { 3 } else { row % 3 };
    for row in 0..20_u64 {
        let versions = (1..=versions_of(row)).map(|ts| {
            let bytes = if row % 3 == 0 || ts == 2 { long.clone() } else { Bytes::from_static(b"short") };
            (Cell::copy_from(format!("{row:02}"), "c"), Value { ts: Timestamp::saturating(ts), bytes })
        });
        store.put_versions(&t, versions.collect()).await.expect("versions can be put");
    }
    for bound in [2, 3, 4, u64::MAX] {
        let newest = |row: u64| versions_of(row).min(bound - 1);
        let expected: Vec<_> =
            (0..20_u64).map(|row| (Cell::copy_from(format!("{row:02}"), "c"), newest(row))).collect();
        for page_size in [1, 3, 8, 9, 100] {
            let request = Scan { page_size, ..Scan::new(RowRange::all(), Timestamp::saturating(bound)) };
            assert_eq!(scan(&store, &t, request.clone()).await, expected, "pages of {page_size} below {bound}");
            let mut seen = scan(&store, &t, request.reversed()).await;
            seen.reverse();
            assert_eq!(seen, expected, "backwards, pages of {page_size} below {bound}");
        }
    }
}

/// What is shown is the version that counts, whatever is as long as a page, empty, or removed by sweep meanwhile.
#[tokio::test]
async fn versions_at_the_edge_of_a_page() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    let page = |letter: u8| Bytes::from(vec![letter; 4 << 20]);
    let cells = [Cell::copy_from("a", "c"), Cell::copy_from("a", "d"), Cell::copy_from("b", "c")];
    let stored = [
        (0, 1, page(b'1')),
        (0, 2, Bytes::new()),
        (1, 0, Bytes::new()),
        (1, 5, page(b'2')),
        (2, 1, Bytes::from_static(b"short")),
    ];
    let version = |ts: u64, bytes: &Bytes| Value { ts: Timestamp::saturating(ts), bytes: bytes.clone() };
    let put = stored.iter().filter(|(_, ts, _)| *ts > 0);
    let put = put.map(|(at, ts, bytes)| (cells[*at].clone(), version(*ts, bytes)));
    store.put_versions(&t, put.collect()).await.expect("versions can be put");
    store.add_sentinels(&t, &cells[1..2]).await.expect("a sentinel can be added");
    let newest = |at: usize, before: u64| {
        let below = stored.iter().filter(|(of, ts, _)| *of == at && *ts < before);
        below.max_by_key(|(_, ts, _)| *ts).map(|(_, ts, bytes)| (cells[at].clone(), version(*ts, bytes)))
    };
    for before in [1, 2, 3, 6, u64::MAX] {
        for page_size in [1, 8, 9, 100] {
            let all = Scan { page_size, ..Scan::new(RowRange::all(), Timestamp::saturating(before)) };
            let columns = ColumnSelection::Range { start: "c".into(), end: Some("e".into()) };
            let row = Scan { rows: RowRange::single("a"), columns, ..all.clone() };
            for (request, places) in
                [(all.clone(), 0..3), (row, 0..2), (Scan { after: Some(cells[0].clone()), ..all.clone() }, 1..3)]
            {
                let mut expected: Vec<_> = places.filter_map(|at| newest(at, before)).collect();
                let seen: Vec<_> = store.scan(&t, request.clone()).try_collect().await.expect("can be scanned");
                assert!(seen == expected, "{request:?}: {:?}", names(&seen));
                if request.after.is_none() {
                    expected.reverse();
                    let seen: Vec<_> = store.scan(&t, request.reversed()).try_collect().await.expect("can be scanned");
                    assert!(seen == expected, "backwards below {before}: {:?}", names(&seen));
                }
            }
        }
    }
    // Sweep leaves the newest of each, between two pages.
    let request = Scan { page_size: 8, ..Scan::new(RowRange::all(), Timestamp::MAX) };
    for request in [request.clone(), request.reversed()] {
        let mut scan = store.scan(&t, request);
        let mut seen = vec![scan.try_next().await.expect("can be scanned").expect("a cell")];
        let old = CellTimestamps { cell: cells[0].clone(), timestamps: vec![Timestamp::FIRST] };
        store.delete_versions(&t, &[old]).await.expect("can be deleted");
        seen.extend(scan.try_collect::<Vec<_>>().await.expect("can be scanned"));
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        assert!(seen.iter().cloned().eq((0..3).filter_map(|at| newest(at, u64::MAX))), "{:?}", names(&seen));
        store.put_versions(&t, vec![(cells[0].clone(), version(1, &page(b'1')))]).await.expect("can be put");
    }
}

fn names(cells: &[(Cell, Value)]) -> Vec<String> {
    cells.iter().map(|(cell, value)| format!("{cell}@{} of {} bytes", value.ts, value.bytes.len())).collect()
}

/// A put that is sent in several waves is still one transaction.
#[tokio::test]
async fn large_put_is_whole_or_not_at_all() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let tables = [versioned(&store, "t").await, versioned(&store, "u").await, versioned(&store, "v").await];
    let (standing, number) = (Cell::copy_from("zz", ""), Timestamp::saturating(7));
    let put = vec![(tables[2].clone(), vec![(standing.clone(), Bytes::from_static(b"standing"))])];
    store.put(put, number).await.expect("can be put");
    let value = Bytes::from(vec![1; 1 << 20]);
    let cells: Vec<_> = (0..12_u8).map(|row| (Cell::copy_from([row], ""), value.clone())).collect();
    let many = (0..20_000).map(|row| (Cell::copy_from(format!("{row:05}"), "many"), Bytes::new()));
    let cells: Vec<_> = cells.into_iter().chain(many).collect();
    let puts = |last: Option<Cell>| -> Vec<_> {
        let mut puts: Vec<_> = tables.iter().map(|table| (table.clone(), cells.clone())).collect();
        puts[2].1.extend(last.map(|cell| (cell, Bytes::from_static(b"other"))));
        puts
    };
    let conflict = store.put(puts(Some(standing)), number).await;
    assert!(matches!(&conflict, Err(KvsError::ConflictingValue { cell, .. }) if cell.row == "zz"), "{conflict:?}");
    for table in &tables[..2] {
        assert_eq!(scan(&store, table, Scan::new(RowRange::all(), Timestamp::MAX)).await, []);
    }
    store.put(puts(None), number).await.expect("nothing is in the way");
    for table in &tables[..2] {
        assert_eq!(scan(&store, table, Scan::new(RowRange::all(), Timestamp::MAX)).await.len(), cells.len());
    }
    let asked: Vec<_> = cells.iter().map(|(cell, _)| CellBound::new(cell.clone(), Timestamp::MAX)).collect();
    let seen = store.get(&tables[0], &asked).await.expect("can be read");
    assert!(seen.iter().zip(&cells).all(|(seen, (_, value))| seen.as_ref().is_some_and(|seen| seen.bytes == *value)));
    store.delete_rows(&tables[0], &RowRange::all()).await.expect("can be deleted");
    assert_eq!(scan(&store, &tables[0], Scan::new(RowRange::all(), Timestamp::MAX)).await, []);
}
