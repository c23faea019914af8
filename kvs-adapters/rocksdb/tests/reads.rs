//! Reads: from memory and from disk, across prefixes, and of damaged data.

mod common;

use atlas_kvs::{
    AtomicScan, Cell, CellBound, CellTimestamps, ColumnSelection, FlatPage, KeyValueService, KvsError, RowRange, Scan,
    TableKind, Timestamp, Value, VersionScan,
};
use atlas_kvs_rocksdb::{RocksConfig, RocksStore};
use bytes::Bytes;
use common::{family_of, open, raw, table, ts, value, versioned};
use futures::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Moves everything that was written into table files.
fn flush(dir: &std::path::Path, families: &[String]) {
    let rocks = raw(dir);
    for name in families {
        rocks.flush_cf(&rocks.cf_handle(name).expect("the family exists")).expect("a flush");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_memory_is_read_from_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let data = versioned(&store, "data").await;
    let atomic = table("atomic");
    store.create_table(&atomic, TableKind::Atomic, Bytes::new()).await.expect("a table");
    let cells: Vec<_> = (0..1000u32).map(|n| Cell::copy_from(n.to_be_bytes(), "c")).collect();
    let content = Bytes::from(vec![7; 200]);
    let puts = cells.iter().map(|cell| (cell.clone(), content.clone())).collect();
    store.put(vec![(data.clone(), puts)], ts(5)).await.expect("a put");
    store.put_unless_exists(&atomic, &cells[0], content.clone()).await.expect("a put");
    let families = [family_of_open(&store, "data"), family_of_open(&store, "atomic")];
    let bounds: Vec<_> = cells.iter().take(100).map(|cell| CellBound::new(cell.clone(), Timestamp::MAX)).collect();
    let found = |values: Vec<Option<Value>>| values.iter().filter(|v| v.as_ref() == Some(&value(5, &content))).count();

    // In the memtable: no thread but ours is needed.
    assert_eq!(found(store.get(&data, &bounds).await.expect("a read")), 100);
    assert_eq!(store.get_atomic(&atomic, &cells[..2]).await.expect("a read"), [Some(content.clone()), None]);
    assert_eq!((store.read_statistics().without_io, store.read_statistics().with_io), (102, 0));
    store.close().await.expect("the store closes");
    flush(dir.path(), &families);

    // On disk: RocksDB says that it would have to read, and a blocking thread does.
    let store = open(dir.path()).await;
    assert_eq!(found(store.get(&data, &bounds).await.expect("a read")), 100);
    let cold = store.read_statistics();
    assert!(cold.with_io > 0, "{cold:?}");
    // In the block cache now.
    assert_eq!(found(store.get(&data, &bounds).await.expect("a read")), 100);
    let warm = store.read_statistics();
    assert_eq!((warm.without_io - cold.without_io, warm.with_io), (100, cold.with_io));
    assert_eq!(store.get_atomic(&atomic, &cells[..2]).await.expect("a read"), [Some(content.clone()), None]);
    assert!(store.read_statistics().with_io > warm.with_io);

    // A scan that begins in memory and goes on on disk misses nothing. The reopened store has a cold cache.
    store.reopen().await.expect("the store reopens");
    assert_eq!(common::scan(&store, &data).await.len(), 1000);
    let reverse = Scan { page_size: 7, ..Scan::new(RowRange::all(), Timestamp::MAX).reversed() };
    store.reopen().await.expect("the store reopens");
    assert_eq!(store.scan(&data, reverse).count().await, 1000);
}

/// Filters and indexes of many pieces, under a cache that holds a few of them: memory hardly ever answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_much_larger_than_its_cache_is_read_by_pieces() {
    const CELLS: u32 = 30_000;
    let dir = tempfile::tempdir().expect("a directory");
    let config =
        RocksConfig { block_cache_bytes: 256 << 10, write_buffer_bytes: 2 << 20, ..common::config(dir.path()) };
    let store = RocksStore::open(config.clone()).await.expect("the store opens");
    let data = versioned(&store, "data").await;
    // Every second number: the others are looked for in vain.
    let cell = |number: u32| Cell::copy_from((number * 2).to_be_bytes(), "c");
    let content = |number: u32, ts: u64| Bytes::from(format!("{number}@{ts} {}", "x".repeat(90)));
    for version in [5, 9] {
        // Scattered, so that files overlap.
        let puts =
            (0..CELLS).map(|place| (place * 7_919) % CELLS).map(|number| (cell(number), content(number, version)));
        for puts in puts.collect::<Vec<_>>().chunks(1_000) {
            store.put(vec![(data.clone(), puts.to_vec())], ts(version)).await.expect("a put");
        }
    }
    store.close().await.expect("the store closes");

    let store = RocksStore::open(config).await.expect("the store opens");
    for number in (0..CELLS).map(|place| (place * 104_729) % CELLS).take(3_000) {
        let absent = Cell::copy_from((number * 2 + 1).to_be_bytes(), "c");
        let bounds = [
            CellBound::new(cell(number), Timestamp::MAX),
            CellBound::new(cell(number), ts(9)),
            CellBound::new(cell(number), ts(5)),
            CellBound::new(absent, Timestamp::MAX),
        ];
        let expected = [Some(value(9, content(number, 9))), Some(value(5, content(number, 5))), None, None];
        assert_eq!(store.get(&data, &bounds).await.expect("a read"), expected, "cell {number}");
    }
    let reads = store.read_statistics();
    assert!(reads.with_io > reads.without_io, "{reads:?}");
    let scanned = common::scan(&store, &data).await;
    assert_eq!(scanned.len(), CELLS as usize);
    assert!(scanned.iter().zip(0..).all(|((found, newest), number)| *found == cell(number) && newest.ts == ts(9)));
    let bounds: Vec<_> = (0..CELLS).step_by(11).map(|number| CellBound::new(cell(number), Timestamp::MAX)).collect();
    let versions = store.versions(&data, &bounds).await.expect("versions can be read");
    assert!(versions.iter().all(|versions| versions.iter().map(|version| version.ts.get()).eq([5, 9])));
}

fn family_of_open(store: &RocksStore, name: &str) -> String {
    family_of(store.data_dir(), &table(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_and_deletions_cross_prefixes_in_memory_and_on_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = table("data");
    let rows: [&[u8]; 8] = [b"", b"\0", b"\0\xff", b"a", b"a\0", b"a\x01", b"b", b"\xff"];
    let mut model: BTreeMap<Cell, BTreeMap<u64, Bytes>> = BTreeMap::new();
    let mut seed = 7u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for round in 0..12 {
        let store = open(dir.path()).await;
        versioned(&store, "data").await;
        let mut writes = Vec::new();
        for _ in 0..60 {
            let cell = Cell::copy_from(rows[random(8) as usize], rows[random(8) as usize]);
            let number = 1 + random(40);
            // One value for one place, whatever the round.
            let content = Bytes::from(format!("{cell:?}@{number}"));
            model.entry(cell.clone()).or_default().insert(number, content.clone());
            writes.push((cell, Value { ts: ts(number), bytes: content }));
        }
        store.put_versions(&data, writes).await.expect("a put");
        if round % 3 == 2 {
            let start = rows[random(8) as usize];
            let end = (random(3) > 0).then(|| Bytes::from_static(rows[random(8) as usize]));
            let gone = RowRange { start: Bytes::from_static(start), end };
            store.delete_rows(&data, &gone).await.expect("a deletion");
            model.retain(|cell, _| !gone.contains(&cell.row));
        }
        check(&store, &model).await;
        store.close().await.expect("the store closes");
        // Most rounds end up in a table file, so that a cell has versions in several of them and in memory.
        if round % 4 != 3 {
            flush(dir.path(), &[family_of(dir.path(), &data)]);
        }
        let store = open(dir.path()).await;
        check(&store, &model).await;
        store.close().await.expect("the store closes");
    }
}

/// Compares gets, scans in both directions and scans of versions with the model.
async fn check(store: &RocksStore, model: &BTreeMap<Cell, BTreeMap<u64, Bytes>>) {
    let data = table("data");
    let selections = [
        ColumnSelection::All,
        ColumnSelection::Exactly(BTreeSet::from([Bytes::from_static(b"a"), Bytes::from_static(b"\xff")])),
        ColumnSelection::Range { start: Bytes::from_static(b"\0\xff"), end: Some(Bytes::from_static(b"a\x01")) },
    ];
    for read_before in [1, 3, 20, 41] {
        let newest = |versions: &BTreeMap<u64, Bytes>| {
            versions.range(..read_before).next_back().map(|(number, bytes)| value(*number, bytes))
        };
        let bounds: Vec<_> = model.keys().map(|cell| CellBound::new(cell.clone(), ts(read_before))).collect();
        let expected: Vec<_> = model.values().map(newest).collect();
        assert_eq!(store.get(&data, &bounds).await.expect("a read"), expected);
        for columns in &selections {
            let expected: Vec<_> = model
                .iter()
                .filter(|(cell, _)| columns.contains(&cell.column))
                .filter_map(|(cell, versions)| Some((cell.clone(), newest(versions)?)))
                .collect();
            for page_size in [1, 3, 1000] {
                let scan = Scan { page_size, ..Scan::new(RowRange::all(), ts(read_before)).columns(columns.clone()) };
                let forward: Vec<_> = store.scan(&data, scan.clone()).try_collect().await.expect("a scan");
                assert_eq!(forward, expected, "{columns:?}");
                let mut backward: Vec<_> = store.scan(&data, scan.reversed()).try_collect().await.expect("a scan");
                backward.reverse();
                assert_eq!(backward, expected, "{columns:?}");
            }
        }
        let versions: Vec<_> = store
            .scan_versions(&data, VersionScan { page_size: 2, ..VersionScan::new(RowRange::all(), ts(read_before)) })
            .try_collect()
            .await
            .expect("a scan");
        let numbers =
            |versions: &BTreeMap<u64, Bytes>| versions.range(..read_before).map(|(n, _)| *n).collect::<Vec<_>>();
        let expected: Vec<_> = model
            .iter()
            .map(|(cell, versions)| (cell.clone(), numbers(versions)))
            .filter(|(_, numbers)| !numbers.is_empty())
            .collect();
        let found: Vec<_> = versions
            .into_iter()
            .map(|item| (item.cell, item.versions.iter().map(|version| version.ts.get()).collect::<Vec<_>>()))
            .collect();
        assert_eq!(found, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_goes_on_on_disk_where_memory_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let data = versioned(&store, "data").await;
    let cells: Vec<_> = (0..2000u32).map(|n| (Cell::copy_from(n.to_be_bytes(), "c"), value(5, [7; 200]))).collect();
    store.put_versions(&data, cells.clone()).await.expect("a put");
    store.close().await.expect("the store closes");
    flush(dir.path(), &[family_of(dir.path(), &data)]);
    let store = open(dir.path()).await;
    for reverse in [false, true] {
        store.reopen().await.expect("the store reopens");
        let expected: Vec<_> = if reverse { cells.iter().rev().cloned().collect() } else { cells.clone() };
        // Into the block cache: the first part of the scan.
        let bounds = expected.iter().take(100).map(|(cell, _)| CellBound::new(cell.clone(), Timestamp::MAX));
        store.get(&data, &bounds.collect::<Vec<_>>()).await.expect("a read");
        let request = Scan { reverse, page_size: 400, ..Scan::new(RowRange::all(), Timestamp::MAX) };
        let pages: Vec<_> = store.scan_pages(&data, request.clone()).try_collect().await.expect("a scan");
        assert!((100..400).contains(&pages[0].len()), "the first page has {} cells", pages[0].len());
        assert!(pages.concat() == expected, "every cell comes once");
        // All of it is in the cache now.
        let pages: Vec<_> = store.scan_pages(&data, request).try_collect().await.expect("a scan");
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [400; 5]);
        assert!(pages.concat() == expected, "every cell comes once");
    }
}

fn of_flat(pages: &[FlatPage]) -> Vec<(Cell, Value)> {
    let cells = pages.iter().flat_map(|page| page.iter());
    cells.map(|cell| (cell.cell(), value(cell.ts.get(), cell.value))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn flat_pages_go_on_on_disk_where_memory_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let data = versioned(&store, "data").await;
    // Some names hold zeros, which keys escape. Of each cell there is a version before, and a later one that is not seen.
    let name = |n: u32| Cell::copy_from(n.to_be_bytes().map(|byte| byte.max(n as u8 % 2)), format!("c{n}"));
    let seen: Vec<_> = (0..3000).map(|n| (name(n), value(5, vec![n as u8; n as usize % 40]))).collect();
    for ts in [3, 9] {
        store
            .put_versions(&data, seen.iter().map(|(cell, _)| (cell.clone(), value(ts, "x"))).collect())
            .await
            .expect("a put");
    }
    store.put_versions(&data, seen.clone()).await.expect("a put");
    store.close().await.expect("the store closes");
    flush(dir.path(), &[family_of(dir.path(), &data)]);
    let mut expected = seen;
    expected.sort_by(|(a, _), (b, _)| a.cmp(b));
    for reverse in [false, true] {
        let store = open(dir.path()).await;
        let request = Scan { reverse, page_size: 2500, ..Scan::new(RowRange::all(), ts(9)) };
        // Nothing is in the cache first, and all of it then.
        for _ in 0..2 {
            let pages: Vec<_> = store.scan_flat(&data, request.clone()).try_collect().await.expect("a scan");
            assert!(of_flat(&pages) == expected, "every cell comes once, reverse: {reverse}");
        }
        let pages: Vec<_> = store.scan_flat(&data, request).try_collect().await.expect("a scan");
        assert!(pages.len() >= 3 && pages.iter().all(|page| page.len() <= 1000), "pages from memory are short");
        store.close().await.expect("the store closes");
        expected.reverse();
    }
}

#[tokio::test]
async fn others_have_their_turn_between_pages() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let data = versioned(&store, "data").await;
    let cells = (0..2000u32).map(|n| (Cell::copy_from(n.to_be_bytes(), "c"), value(5, "v"))).collect();
    store.put_versions(&data, cells).await.expect("a put");
    let (turns, counted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let others = tokio::spawn({
        let turns = turns.clone();
        async move {
            loop {
                turns.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        }
    });
    let mut pages = store.scan_pages(&data, Scan { page_size: 100, ..Scan::new(RowRange::all(), Timestamp::MAX) });
    while let Some(page) = pages.try_next().await.expect("a scan") {
        counted.fetch_add(page.len(), Ordering::SeqCst);
    }
    others.abort();
    assert_eq!(counted.load(Ordering::SeqCst), 2000);
    assert!(turns.load(Ordering::SeqCst) >= 19, "one turn at least between two pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_pass_long_runs_of_deletions() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let data = versioned(&store, "data").await;
    let cells: Vec<_> = (0..5000u32).map(|n| (Cell::copy_from(n.to_be_bytes(), "c"), value(5, "v"))).collect();
    store.put_versions(&data, cells.clone()).await.expect("a put");
    let gone = cells[10..4990].iter().map(|(cell, _)| CellTimestamps { cell: cell.clone(), timestamps: vec![ts(5)] });
    store.delete_versions(&data, &gone.collect::<Vec<_>>()).await.expect("a deletion");
    let mut expected = [&cells[..10], &cells[4990..]].concat();
    for reverse in [false, true] {
        let request = Scan { reverse, ..Scan::new(RowRange::all(), Timestamp::MAX) };
        let found: Vec<_> = store.scan(&data, request).try_collect().await.expect("a scan");
        assert_eq!(found, expected);
        expected.reverse();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_key_is_told_with_table_and_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let data = versioned(&store, "data").await;
    store.put_versions(&data, vec![(Cell::copy_from("a", "c"), value(1, "x"))]).await.expect("a put");
    store.close().await.expect("the store closes");
    {
        let rocks = raw(dir.path());
        let name = family_of(dir.path(), &data);
        let family = rocks.cf_handle(&name).expect("the family exists");
        rocks.put_cf(&family, b"bad\x00\x07", b"").expect("a put");
    }
    let store = open(dir.path()).await;
    for reverse in [false, true] {
        let scan = Scan { reverse, ..Scan::new(RowRange::all(), Timestamp::MAX) };
        let error = store.scan(&data, scan).try_collect::<Vec<_>>().await.expect_err("the key is damaged");
        let text = error.to_string();
        assert!(matches!(error, KvsError::Corrupt { .. }), "{text}");
        assert!(text.contains("table 'data'") && text.contains("6261640007"), "{text}");
    }
    let scan = VersionScan::new(RowRange::all(), Timestamp::MAX);
    assert!(store.scan_versions(&data, scan).try_collect::<Vec<_>>().await.is_err());
    assert_eq!(common::get(&store, &data, "a", "c").await.as_deref(), Some("x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_stretches_without_a_visible_cell_end_pages_and_not_scans() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let data = versioned(&store, "data").await;
    let atomic = table("atomic");
    store.create_table(&atomic, TableKind::Atomic, Bytes::new()).await.expect("a table");
    let invisible = (0..3000u32).map(|n| (Cell::copy_from(n.to_be_bytes(), ""), value(9, ""))).collect();
    store.put_versions(&data, invisible).await.expect("a put");
    let last = Cell::copy_from(5000u32.to_be_bytes(), "");
    store.put_versions(&data, vec![(last.clone(), value(3, "seen"))]).await.expect("a put");
    for reverse in [false, true] {
        let scan = Scan { reverse, ..Scan::new(RowRange::all(), ts(9)) };
        let found: Vec<_> = store.scan(&data, scan).try_collect().await.expect("a scan");
        assert_eq!(found, [(last.clone(), value(3, "seen"))]);
    }
    // Pages end by bytes too.
    for n in 0..12u32 {
        let cell = Cell::copy_from(n.to_be_bytes(), "");
        store.put_unless_exists(&atomic, &cell, vec![1; 1 << 20].into()).await.expect("a put");
    }
    assert_eq!(store.scan_atomic(&atomic, AtomicScan::new(RowRange::all())).count().await, 12);
    assert_eq!(store.scan_atomic(&atomic, AtomicScan::new(RowRange::all()).reversed()).count().await, 12);
}

/// Cells that lie beside each other and cells that do not, in files and in memory, some asked for twice: versions are what
/// they are when each cell is asked for by itself.
#[tokio::test(flavor = "multi_thread")]
async fn versions_of_many_cells_are_those_of_each() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = open(dir.path()).await;
    let data = versioned(&store, "data").await;
    let cell = |n: u32| Cell::copy_from(n.to_be_bytes(), "c");
    let put = async |store: &RocksStore, at: u64, numbers: &mut dyn Iterator<Item = u32>| {
        let puts = numbers.map(|n| (cell(n), Bytes::from(vec![n as u8; 20]))).collect();
        store.put(vec![(data.clone(), puts)], ts(at)).await.expect("a put");
    };
    put(&store, 5, &mut (0..400)).await;
    put(&store, 7, &mut (0..400).step_by(3)).await;
    let family = family_of_open(&store, "data");
    store.close().await.expect("the store closes");
    flush(dir.path(), &[family]);
    store = open(dir.path()).await;
    // Many that are too young for what is asked, one after the other.
    for at in 20..30 {
        put(&store, at, &mut (100..110)).await;
    }
    put(&store, 9, &mut (300..500).step_by(2)).await;

    let bound = |n: u32, before: u64| CellBound::new(cell(n), ts(before));
    let questions: [Vec<CellBound>; 5] = [
        (0..600).map(|n| bound(n, 15)).collect(),
        (0..600).rev().map(|n| bound(n, 6)).collect(),
        (0..600).step_by(17).map(|n| bound(n, 15)).collect(),
        (0..200).flat_map(|n| [bound(n, 6), bound(n, 15), bound(n, 8)]).collect(),
        // Close together first, then far apart, then close together.
        (0..50).chain((50..450).step_by(40)).chain(450..520).map(|n| bound(n, 25)).collect(),
    ];
    for bounds in questions {
        let together = store.versions(&data, &bounds).await.expect("a read");
        for (bound, together) in bounds.iter().zip(together) {
            let alone = store.versions(&data, std::slice::from_ref(bound)).await.expect("a read");
            assert_eq!([together], alone[..], "{bound:?}");
        }
    }
}
