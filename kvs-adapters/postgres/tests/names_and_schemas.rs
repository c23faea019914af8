//! What several processes, namespaces and names have to do with each other: nothing.

mod common;

use atlas_kvs::{
    AtomicBatch, BatchOp, Cell, CellBound, Durability, KeyValueService, KvsError, RowRange, Scan, TableKind, TableRef,
    Timestamp, Value,
};
use atlas_kvs_postgres::{PostgresConfig, PostgresStore};
use bytes::Bytes;
use common::{Namespace, client};
use futures::TryStreamExt;
use std::sync::Arc;
use tokio::task::JoinSet;

fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

fn version(row: &str, ts: u64, value: &str) -> (Cell, Value) {
    let ts = Timestamp::saturating(ts);
    (Cell::copy_from(row, "c"), Value { ts, bytes: Bytes::copy_from_slice(value.as_bytes()) })
}

async fn newest(store: &PostgresStore, table: &TableRef, row: &str) -> Option<Bytes> {
    let bound = CellBound::new(Cell::copy_from(row, "c"), Timestamp::MAX);
    store.get(table, &[bound]).await.expect("cells can be read").remove(0).map(|value| value.bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_may_set_up_and_change_one_schema_at_once() {
    let namespace = Arc::new(Namespace::new());
    let mut tasks = JoinSet::new();
    for number in 0..12_u64 {
        let namespace = Arc::clone(&namespace);
        tasks.spawn(async move {
            // A store of its own for each, as if they were processes.
            let config = PostgresConfig { pool_size: 2, ..namespace.config.clone() };
            let store = PostgresStore::connect(config).await.expect("anyone may set up the schema");
            for round in 0..5 {
                let (shared, own) = (table(&format!("shared{round}")), table(&format!("own{number}")));
                store.create_table(&shared, TableKind::Versioned, Bytes::new()).await.expect("can be created");
                store.put_versions(&shared, vec![version(&number.to_string(), 1, "v")]).await.expect("can be put");
                store.create_table(&own, TableKind::Atomic, Bytes::new()).await.expect("can be created");
                store.drop_table(&own).await.expect("can be dropped");
            }
            store.close().await.expect("can be closed");
        });
    }
    tasks.join_all().await;
    let store = namespace.open().await;
    let tables: Vec<_> = store.tables().await.expect("tables can be listed").into_iter().map(|t| t.table).collect();
    assert_eq!(tables, (0..5).map(|round| table(&format!("shared{round}"))).collect::<Vec<_>>());
    for shared in tables {
        let cells: Vec<_> =
            store.scan(&shared, Scan::new(RowRange::all(), Timestamp::MAX)).try_collect().await.expect("s");
        assert_eq!(cells.len(), 12);
    }
}

#[tokio::test]
async fn one_table_may_be_created_and_dropped_by_many() {
    let namespace = Namespace::new();
    let store = Arc::new(namespace.open().await);
    let mut tasks = JoinSet::new();
    for number in 0..6 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let t = table("t");
            for _ in 0..10 {
                match store.create_table(&t, TableKind::Versioned, Bytes::new()).await {
                    Ok(()) | Err(KvsError::Unavailable { .. }) => {}
                    Err(error) => panic!("a table could not be created: {error:?}"),
                }
                match store.put_versions(&t, vec![version("r", number + 1, "v")]).await {
                    Ok(()) | Err(KvsError::NoSuchTable(_)) => {}
                    Err(error) => panic!("a version could not be put: {error:?}"),
                }
                store.drop_table(&t).await.expect("a table can be dropped");
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(store.tables().await.expect("tables can be listed"), []);
}

#[tokio::test]
async fn namespaces_do_not_see_each_other() {
    let long = "n".repeat(100);
    let prefix = format!("test {}", std::process::id());
    let names = ["a", "A", "ä", &long, &format!("{long}2"), "x\"; --"].map(|name| format!("{prefix} {name}"));
    let namespaces: Vec<_> = names.iter().map(|name| Namespace::named(name)).collect();
    let mut stores = Vec::new();
    for namespace in &namespaces {
        stores.push(namespace.open().await);
    }
    let t = table("t");
    for (store, name) in stores.iter().zip(&names) {
        assert_eq!(store.tables().await.expect("tables can be listed"), []);
        store.create_table(&t, TableKind::Versioned, Bytes::new()).await.expect("can be created");
        store.put_versions(&t, vec![version("r", 1, name)]).await.expect("can be put");
    }
    stores[0].drop_table(&t).await.expect("can be dropped");
    for (store, name) in stores.iter().zip(&names).skip(1) {
        assert_eq!(newest(store, &t, "r").await.as_deref(), Some(name.as_bytes()));
    }
}

#[tokio::test]
async fn names_that_server_objects_could_have_are_fine() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    // Keys, catalogs, system tables, array types; the kind is no part of the name.
    let names = ["accounts", "accounts_pkey", "v_accounts", "kv_accounts", "tables", "meta", "_accounts", "pg_class"];
    for name in names {
        store.create_table(&table(name), TableKind::Versioned, Bytes::new()).await.expect("can be created");
        store.put_versions(&table(name), vec![version("r", 1, name)]).await.expect("can be put");
    }
    for name in names {
        assert_eq!(newest(&store, &table(name), "r").await.as_deref(), Some(name.as_bytes()));
    }
}

#[tokio::test]
async fn longest_names_that_nothing_compresses_fit() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let (t, a) = (table("t"), table("a"));
    store.create_table(&t, TableKind::Versioned, Bytes::new()).await.expect("can be created");
    store.create_table(&a, TableKind::Atomic, Bytes::new()).await.expect("can be created");
    let limits = store.capabilities().limits;
    let mut seed = 1_u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    };
    // Every way in which lengths are padded, from long rows to long columns.
    let rows = (0..16).map(|less| limits.row_len_max - less);
    let columns = (0..16).map(|less| limits.cell_len_max - (limits.column_len_max - less));
    let halves = (0..16).map(|more| limits.cell_len_max / 2 + more);
    for row in rows.chain(columns).chain(halves) {
        let cell = Cell::new(noise(row), noise(limits.cell_len_max - row));
        let value = Bytes::from(noise(100));
        let ops = vec![
            BatchOp::Put { table: t.clone(), cell: cell.clone(), ts: Timestamp::MAX.previous(), value: value.clone() },
            BatchOp::Set { table: a.clone(), cell: cell.clone(), value: value.clone() },
        ];
        store.apply(AtomicBatch::new(ops), Durability::Synced).await.expect("names at the limits fit");
        assert_eq!(store.get_atomic(&a, &[cell]).await.expect("can be read"), [Some(value)]);
    }
}

#[tokio::test]
async fn schema_of_another_format_is_refused() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let sql = format!("UPDATE \"{}\".meta SET value = '99' WHERE key = 'format'", store.schema());
    client(&namespace.config).await.batch_execute(&sql).await.expect("the test may do so");
    let error = PostgresStore::connect(namespace.config.clone()).await.expect_err("the format is not known");
    assert!(matches!(&error, KvsError::Misconfigured { reason, .. } if reason.contains("format 99")), "{error:?}");
    let sql = sql.replace("99", "1");
    client(&namespace.config).await.batch_execute(&sql).await.expect("the test may do so");
}

#[tokio::test]
async fn what_is_not_there_is_not_made_by_looking_and_gone_when_destroyed() {
    let namespace = Namespace::new();
    let look = || async { PostgresStore::connect_existing(namespace.config.clone()).await.expect("can be asked") };
    assert!(look().await.is_none());
    assert!(look().await.is_none(), "looking has made it");
    let store = namespace.open().await;
    let t = table("t");
    store.create_table(&t, TableKind::Versioned, Bytes::new()).await.expect("can be created");
    store.put_versions(&t, vec![version("r", 1, "v")]).await.expect("can be put");
    let found = look().await.expect("it is there");
    assert_eq!(newest(&found, &t, "r").await, Some(Bytes::from_static(b"v")));
    found.destroy().await.expect("can be removed");
    assert!(look().await.is_none());
    namespace.open().await.destroy().await.expect("a store without tables can be removed");
    assert!(look().await.is_none());
}
