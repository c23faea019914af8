//! Where a table can be cut: rows that are there, in order, into parts of like size.

mod common;

use atlas_kvs::{Cell, KeyValueService, KvsError, SortedLoad, TableKind, TableRef};
use atlas_kvs_rocksdb::RocksStore;
use bytes::Bytes;
use common::{open, scan, table, ts, versioned};

/// Rows `row 00` to `row 99`, a zero byte in each, with so many bytes that no compression makes fewer.
fn load(store: &RocksStore, table: &TableRef, bytes_of: impl Fn(u32) -> usize) {
    let mut noise = 1u64;
    let loaded = store.load_sorted(table, &mut |sink| {
        (0..100u32).try_for_each(|number| {
            let value: Vec<u8> = std::iter::repeat_with(|| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (noise >> 56) as u8
            })
            .take(bytes_of(number))
            .collect();
            sink(&Cell::copy_from(format!("row\0{number:02}"), "c"), ts(3), &value)
        })
    });
    loaded.expect("a load");
}

/// Number of the rows of each part.
async fn parts(store: &RocksStore, table: &TableRef, parts: usize) -> Vec<usize> {
    let cuts = store.cut_rows(table, parts).await.expect("it can be cut");
    assert!(cuts.is_sorted_by(|a, b| a < b), "{cuts:?}");
    let rows: Vec<Bytes> = scan(store, table).await.into_iter().map(|(cell, _)| cell.row).collect();
    let mut places: Vec<usize> =
        cuts.iter().map(|cut| rows.iter().position(|row| row == cut).expect("a row that is there")).collect();
    places.push(rows.len());
    let begins = std::iter::once(0).chain(places.clone());
    places.iter().zip(begins).map(|(end, begin)| end - begin).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_is_cut_into_parts_of_like_size() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let even = versioned(&store, "even").await;
    load(&store, &even, |_| 20_000);
    let found = parts(&store, &even, 4).await;
    assert!(found.len() == 4 && found.iter().all(|rows| (15..=35).contains(rows)), "{found:?}");
    assert_eq!(parts(&store, &even, 1).await, [100]);

    let uneven = versioned(&store, "uneven").await;
    load(&store, &uneven, |number| if number < 80 { 1_000 } else { 50_000 });
    let found = parts(&store, &uneven, 2).await;
    assert!(found.len() == 2 && found[0] > 80, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_follow_each_other_are_cut_between_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let table = versioned(&store, "t").await;
    for row in ["a", "b", "c", "d"] {
        let loaded = store.load_sorted(&table, &mut |sink| sink(&Cell::copy_from(row, "c"), ts(3), &[7; 100]));
        loaded.expect("a load");
    }
    let found = parts(&store, &table, 4).await;
    assert_eq!(found.iter().sum::<usize>(), 4, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_files_is_not_cut_and_what_is_no_table_of_versions_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).await;
    let empty = versioned(&store, "empty").await;
    assert_eq!(store.cut_rows(&empty, 4).await.expect("it can be asked"), [""; 0]);
    let error = store.cut_rows(&table("nowhere"), 4).await.expect_err("there is no such table");
    assert!(matches!(error, KvsError::NoSuchTable(_)), "{error}");
    let atomic = table("atomic");
    store.create_table(&atomic, TableKind::Atomic, Bytes::new()).await.expect("it can be made");
    let error = store.cut_rows(&atomic, 4).await.expect_err("it holds no versions");
    assert!(matches!(error, KvsError::WrongTableKind { .. }), "{error}");
}
