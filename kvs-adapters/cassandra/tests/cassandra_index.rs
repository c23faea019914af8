//! Scans of tables whose index is split, by writers who know nothing of each other.

mod common;

use atlas_kvs::{
    Cell, CellTimestamps, ColumnSelection, KeyValueService, RowRange, Scan, TableRef, Timestamp, Value, VersionScan,
};
use atlas_kvs_cassandra::CassandraStore;
use bytes::Bytes;
use common::{Namespace, cell, cql_table, delete, everything, put, scan, session, table, versioned};
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const KEYS_MAX: usize = 4;

/// Names that make a splitter's life hard: long common beginnings, zeros, names within names.
fn name(random: &mut StdRng) -> Vec<u8> {
    const PARTS: [&[u8]; 8] = [b"a", b"b", b"\0", b"\xff", b"a\0", b"account/", b"account/00000000", b""];
    let parts = random.random_range(0..4);
    (0..parts).flat_map(|_| PARTS[random.random_range(0..PARTS.len())].to_vec()).collect()
}

fn random_cell(random: &mut StdRng) -> Cell {
    Cell::new(name(random), name(random))
}

/// How many entries each bucket holds.
async fn bucket_sizes(namespace: &Namespace, store: &CassandraStore) -> HashMap<Vec<u8>, usize> {
    let session = session(&namespace.config).await;
    let index = cql_table(&session, store, "x_").await;
    let rows = session.query_iter(format!("SELECT bucket, kind FROM {index}"), ()).await.expect("it can be read");
    let rows = rows.rows_stream::<(Vec<u8>, i8)>().expect("the columns are so");
    let mut sizes = HashMap::new();
    for (bucket, kind) in rows.try_collect::<Vec<_>>().await.expect("it can be read") {
        *sizes.entry(bucket).or_default() += usize::from(kind == 2);
    }
    sizes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn scans_agree_with_a_model_whoever_wrote_what_and_split_how() {
    let seed = std::env::var("ATLAS_MODEL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("run it again with ATLAS_MODEL_SEED={seed}");
    let namespace = Namespace::with(|config| config.bucket_keys_max = KEYS_MAX);
    let first = namespace.open().await;
    let t = versioned(&first, "t").await;
    // Processes of their own, one of which splits elsewhere than the others.
    let mut stores = vec![first];
    stores.push(namespace.open().await);
    let mut config = namespace.config.clone();
    config.bucket_keys_max = 3 * KEYS_MAX;
    stores.push(CassandraStore::connect(config).await.expect("the cluster can be reached"));
    let stores: Vec<_> = stores.into_iter().map(Arc::new).collect();

    let mut random = StdRng::seed_from_u64(seed);
    let mut model: BTreeMap<Cell, Bytes> = BTreeMap::new();
    for round in 1..=6_u64 {
        let mut writers = JoinSet::new();
        for (number, store) in stores.iter().enumerate() {
            let cells: Vec<Cell> = (0..40).map(|_| random_cell(&mut random)).collect();
            let value = Bytes::from(format!("{round}"));
            model.extend(cells.iter().map(|cell| (cell.clone(), value.clone())));
            let (store, t, mut writer) = (Arc::clone(store), t.clone(), StdRng::seed_from_u64(seed + number as u64));
            writers.spawn(async move {
                for part in cells.chunks(writer.random_range(1..20)) {
                    let cells = part.iter().map(|cell| (cell.clone(), value.clone())).collect();
                    store.put(vec![(t.clone(), cells)], Timestamp::saturating(round)).await.expect("can be put");
                }
            });
        }
        writers.join_all().await;
        let doomed: Vec<Cell> = model.keys().filter(|_| random.random_ratio(1, 5)).cloned().collect();
        let timestamps: Vec<_> = (1..=round).map(Timestamp::saturating).collect();
        let versions: Vec<_> =
            doomed.iter().map(|cell| CellTimestamps { cell: cell.clone(), timestamps: timestamps.clone() }).collect();
        stores[round as usize % 3].delete_versions(&t, &versions).await.expect("versions can be deleted");
        model.retain(|cell, _| !doomed.contains(cell));
        for (number, store) in stores.iter().enumerate() {
            compare(store, &t, &model, &mut random).await.unwrap_or_else(|difference| {
                panic!("round {round}, store {number}, seed {seed}: {difference}");
            });
        }
    }
    let sizes = bucket_sizes(&namespace, &stores[0]).await;
    assert!(sizes.len() > 10, "the index was split: {sizes:?}");
    // Each of the writers may have filled it before it knew of the others, up to the greatest limit of any.
    let largest = sizes.values().max().copied().unwrap_or(0);
    assert!(largest <= 3 * 3 * KEYS_MAX, "a bucket holds {largest} keys");
}

async fn compare(
    store: &CassandraStore,
    t: &TableRef,
    model: &BTreeMap<Cell, Bytes>,
    random: &mut StdRng,
) -> Result<(), String> {
    for number in 0..12 {
        let rows = match number {
            0 => RowRange::all(),
            1 => RowRange::prefix(name(random)),
            2 => RowRange::single(name(random)),
            _ => RowRange { start: name(random).into(), end: random.random_bool(0.7).then(|| name(random).into()) },
        };
        let columns = match random.random_range(0..3) {
            0 => ColumnSelection::Range { start: name(random).into(), end: Some(name(random).into()) },
            1 => ColumnSelection::Exactly((0..3).map(|_| Bytes::from(name(random))).collect()),
            _ => ColumnSelection::All,
        };
        let after = random.random_bool(0.3).then(|| random_cell(random));
        let page_size = random.random_range(0..100);
        for reverse in [false, true] {
            let request = Scan {
                rows: rows.clone(),
                columns: columns.clone(),
                read_before: Timestamp::MAX,
                reverse,
                after: after.clone(),
                page_size,
                bypass_cache: false,
            };
            let wanted = |cell: &Cell| {
                let behind = after.as_ref().is_none_or(|after| if reverse { cell < after } else { cell > after });
                rows.contains(&cell.row) && columns.contains(&cell.column) && behind
            };
            let mut expected: Vec<(Cell, Bytes)> = model
                .iter()
                .filter(|(cell, _)| wanted(cell))
                .map(|(cell, value)| (cell.clone(), value.clone()))
                .collect();
            if reverse {
                expected.reverse();
            }
            let seen: Vec<(Cell, Bytes)> =
                scan(store, t, request.clone()).await.into_iter().map(|(cell, value)| (cell, value.bytes)).collect();
            if seen != expected {
                return Err(format!("{request:?}\n  store {seen:?}\n  model {expected:?}"));
            }
        }
    }
    let all = VersionScan::new(RowRange::all(), Timestamp::MAX);
    let seen: Vec<Cell> =
        store.scan_versions(t, all).map_ok(|item| item.cell).try_collect().await.expect("can be scanned");
    if seen.iter().eq(model.keys()) { Ok(()) } else { Err("the listing of versions shows other cells".to_owned()) }
}

#[tokio::test]
async fn keys_that_come_in_order_make_no_deep_tree_and_full_buckets_stay_full() {
    // One after the other: what is under way is not counted.
    let namespace = Namespace::with(|config| (config.bucket_keys_max, config.concurrency) = (10, 1));
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    let prefix = "a very long beginning that all of the rows of this table have in common/".repeat(3);
    let rows: Vec<String> = (0..1_000).map(|number| format!("{prefix}{number:06}")).collect();
    for part in rows.chunks(50) {
        let cells = part.iter().map(|row| (cell(row), Bytes::new())).collect();
        store.put(vec![(t.clone(), cells)], Timestamp::FIRST).await.expect("can be put");
    }
    let seen: Vec<Bytes> = scan(&store, &t, everything()).await.into_iter().map(|(cell, _)| cell.row).collect();
    assert_eq!(seen, rows);
    let sizes = bucket_sizes(&namespace, &store).await;
    assert!(sizes.values().all(|&size| size <= 10), "no bucket holds more than its limit: {sizes:?}");
    // The common beginning costs no level, and then there are three digits to tell apart.
    let depth = |bucket: &Vec<u8>| sizes.keys().filter(|other| bucket.starts_with(other)).count();
    let deepest = sizes.keys().map(depth).max().expect("there are buckets");
    assert!(deepest <= 5, "{deepest} buckets are on the way to one key");
    // Another process, which has to find out all of this.
    let other = namespace.open().await;
    put(&other, &t, format!("{prefix}000000x"), 1, "v").await;
    assert_eq!(scan(&store, &t, everything()).await.len(), 1_001);
    let sizes = bucket_sizes(&namespace, &store).await;
    assert!(sizes.values().all(|&size| size <= 11), "{sizes:?}");
}

#[tokio::test]
async fn one_cell_that_is_written_again_and_again_splits_nothing() {
    let namespace = Namespace::with(|config| config.bucket_keys_max = KEYS_MAX);
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    for ts in 1..100 {
        put(&store, &t, "r", ts, "v").await;
    }
    let sizes = bucket_sizes(&namespace, &store).await;
    assert_eq!(sizes.len(), 1, "{sizes:?}");
}

#[tokio::test]
async fn entries_that_lead_nowhere_are_removed_and_come_again() {
    let namespace = Namespace::with(|config| {
        config.request_timeout = Duration::from_millis(1_000);
        config.index_grace = Duration::from_millis(4_000);
    });
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    for row in ["a", "b", "c"] {
        put(&store, &t, row, 1, "v").await;
    }
    delete(&store, &t, "b", 1).await.expect("a version can be deleted");
    assert_eq!(entries(&namespace, &store).await, 3, "the entry outlives the version");
    let rows = |items: Vec<(Cell, Value)>| items.into_iter().map(|(cell, _)| cell.row).collect::<Vec<_>>();
    // Young entries stay, old ones go when a scan has met them.
    let mut left = 3;
    for _ in 0..100 {
        assert_eq!(rows(scan(&store, &t, everything()).await), ["a", "c"]);
        left = entries(&namespace, &store).await;
        if left == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(left, 2, "the entry of the empty cell is removed");
    put(&store, &t, "b", 1, "again").await;
    assert_eq!(rows(scan(&store, &t, everything()).await), ["a", "b", "c"]);
    // Only entries whose cell is empty go: a scan that may not see the cell's version is no reason.
    tokio::time::sleep(Duration::from_millis(4_200)).await;
    for _ in 0..5 {
        let below = Scan::new(RowRange::all(), Timestamp::FIRST);
        assert_eq!(rows(scan(&store, &t, below).await).len(), 0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(rows(scan(&store, &t, everything()).await), ["a", "b", "c"]);
}

#[tokio::test]
async fn the_index_of_deleted_rows_is_cleared_without_a_scan() {
    let namespace = Namespace::with(|config| {
        config.request_timeout = Duration::from_millis(1_000);
        config.index_grace = Duration::from_millis(4_000);
    });
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    for row in ["a", "b1", "b2", "c"] {
        put(&store, &t, row, 1, "v").await;
    }
    store.delete_rows(&t, &RowRange::prefix("b")).await.expect("rows can be deleted");
    // A row that is written again in the meantime stays.
    put(&store, &t, "b2", 2, "again").await;
    let mut left = 4;
    for _ in 0..200 {
        left = entries(&namespace, &store).await;
        if left == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(left, 3, "the entry of the row that stayed deleted is removed");
    let seen: Vec<Bytes> = scan(&store, &t, everything()).await.into_iter().map(|(cell, _)| cell.row).collect();
    assert_eq!(seen, ["a", "b2", "c"]);
}

async fn entries(namespace: &Namespace, store: &CassandraStore) -> usize {
    bucket_sizes(namespace, store).await.values().sum()
}

#[tokio::test]
async fn scan_goes_on_in_a_table_that_was_emptied() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let other = namespace.open().await;
    let t = versioned(&store, "t").await;
    for number in 0..200 {
        put(&store, &t, format!("{number:03}"), 1, "old").await;
    }
    let mut stream = store.scan(&t, Scan { page_size: 1, ..everything() });
    let first = stream.try_next().await.expect("can be scanned").expect("there are cells");
    assert_eq!(first.0.row, "000");
    other.truncate_table(&t).await.expect("can be emptied");
    put(&other, &t, "000", 1, "new").await;
    put(&other, &t, "150", 1, "new").await;
    let rest: Vec<(Cell, Value)> = stream.try_collect().await.expect("a scan does not mind");
    assert!(rest.is_sorted_by(|(a, _), (b, _)| a < b), "nothing comes twice");
    assert_eq!(rest.last().map(|(cell, value)| (&cell.row[..], &value.bytes[..])), Some((&b"150"[..], &b"new"[..])));
    other.drop_table(&t).await.expect("can be dropped");
    let gone: atlas_kvs::Result<Vec<_>> = store.scan(&table("t"), everything()).try_collect().await;
    assert!(matches!(gone, Err(atlas_kvs::KvsError::NoSuchTable(_))), "{gone:?}");
}
