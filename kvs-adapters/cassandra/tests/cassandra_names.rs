//! Keyspaces and tables that many create, empty and drop at once.

mod common;

use atlas_kvs::{KeyValueService, KvsError, TableKind};
use atlas_kvs_cassandra::{CassandraConfig, CassandraStore, Replication};
use bytes::Bytes;
use common::{Namespace, atomic, cql_table, everything, newest, put, scan, session, table, version, versioned};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_may_set_up_and_change_one_keyspace_at_once() {
    let namespace = Arc::new(Namespace::new());
    let mut tasks = JoinSet::new();
    for number in 0..8_u64 {
        let namespace = Arc::clone(&namespace);
        tasks.spawn(async move {
            // A store of its own for each, as if they were processes.
            let store = namespace.open().await;
            for round in 0..3 {
                let (shared, own) = (format!("shared{round}"), format!("own{number}"));
                let shared = versioned(&store, &shared).await;
                put(&store, &shared, number.to_string(), 1, "v").await;
                let own = atomic(&store, &own).await;
                store.drop_table(&own).await.expect("can be dropped");
            }
            store.close().await.expect("can be closed");
        });
    }
    tasks.join_all().await;
    let store = namespace.open().await;
    let tables: Vec<_> = store.tables().await.expect("tables can be listed").into_iter().map(|t| t.table).collect();
    assert_eq!(tables, (0..3).map(|round| table(&format!("shared{round}"))).collect::<Vec<_>>());
    for shared in tables {
        assert_eq!(scan(&store, &shared, everything()).await.len(), 8);
    }
    assert_eq!(cql_tables(&namespace.config, &store).await, 2 * 3 + 1, "nothing is left of dropped tables");
}

async fn cql_tables(config: &CassandraConfig, store: &CassandraStore) -> usize {
    let sql = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?";
    let rows = session(config).await.query_unpaged(sql, (store.keyspace(),)).await.expect("the schema can be read");
    rows.into_rows_result().expect("there are rows").rows_num()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_table_may_be_created_and_dropped_by_many() {
    let namespace = Namespace::new();
    let mut tasks = JoinSet::new();
    for number in 0..4 {
        let store = namespace.open().await;
        tasks.spawn(async move {
            let t = table("t");
            for round in 0..4 {
                match store.create_table(&t, TableKind::Versioned, Bytes::new()).await {
                    Ok(()) | Err(KvsError::Unavailable { .. }) => {}
                    Err(error) => panic!("a table could not be created: {error:?}"),
                }
                match store.put_versions(&t, vec![version("r", number + 1, "v")]).await {
                    Ok(())
                    | Err(KvsError::NoSuchTable(_) | KvsError::Unavailable { .. } | KvsError::Indeterminate { .. }) => {
                    }
                    Err(error) => panic!("a version could not be put: {error:?}"),
                }
                let emptied = if round % 2 == 0 { store.truncate_table(&t).await } else { store.drop_table(&t).await };
                match emptied {
                    Ok(()) | Err(KvsError::NoSuchTable(_) | KvsError::Unavailable { .. }) => {}
                    Err(error) => panic!("a table could not be emptied or dropped: {error:?}"),
                }
            }
            store.drop_table(&t).await.expect("a table can be dropped");
        });
    }
    tasks.join_all().await;
    let store = namespace.open().await;
    assert_eq!(store.tables().await.expect("tables can be listed"), []);
    assert_eq!(cql_tables(&namespace.config, &store).await, 1, "the catalog alone is left");
}

/// What other processes know of a table is outdated when it is dropped or emptied: they notice.
#[tokio::test]
async fn table_of_an_old_name_is_another_table_for_everybody() {
    let namespace = Namespace::new();
    let (store, other) = (namespace.open().await, namespace.open().await);
    let t = versioned(&store, "t").await;
    put(&store, &t, "r", 1, "old").await;
    put(&other, &t, "s", 1, "old").await;
    store.truncate_table(&t).await.expect("can be emptied");
    assert_eq!(newest(&other, &t, "s").await, None);
    put(&store, &t, "r", 2, "old").await;
    store.drop_table(&t).await.expect("can be dropped");
    let gone = other.put_versions(&t, vec![version("s", 2, "v")]).await;
    assert!(matches!(gone, Err(KvsError::NoSuchTable(_))), "{gone:?}");
    atomic(&store, "t").await;
    let other_kind = other.put_versions(&t, vec![version("s", 3, "v")]).await;
    assert!(matches!(other_kind, Err(KvsError::WrongTableKind { .. })), "{other_kind:?}");
    store.drop_table(&t).await.expect("can be dropped");
    versioned(&store, "t").await;
    put(&other, &t, "s", 4, "new").await;
    let seen = scan(&store, &t, everything()).await;
    assert_eq!(seen.len(), 1, "nothing old is there: {seen:?}");
    assert_eq!(newest(&store, &t, "s").await, Some((4, Bytes::from_static(b"new"))));
}

/// Whoever died in the middle of creating or dropping a table left an entry, and the next one does the rest.
#[tokio::test]
async fn changes_that_were_begun_are_finished_by_whoever_comes_next() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let session = session(&namespace.config).await;
    let catalog = cql_table(&session, &store, "atlas_tables").await;
    for name in ["put", "created"] {
        let begun = format!(
            "INSERT INTO {catalog} (place, name, kind, metadata, id, state) \
             VALUES (0, '{name}', 'versioned', 0x, uuid(), 'new') IF NOT EXISTS"
        );
        session.query_unpaged(begun, ()).await.expect("the test may do so");
    }
    put(&store, &table("put"), "r", 1, "v").await;
    let created = versioned(&store, "created").await;
    put(&store, &created, "r", 1, "v").await;
    let begun = format!("UPDATE {catalog} SET state = 'dropping' WHERE place = 0 AND name = 'put' IF EXISTS");
    session.query_unpaged(begun, ()).await.expect("the test may do so");
    assert_eq!(store.tables().await.expect("tables can be listed").len(), 1, "what is being dropped is no table");
    versioned(&store, "put").await;
    assert_eq!(scan(&namespace.open().await, &table("put"), everything()).await.len(), 0, "it is a new one");
    assert_eq!(cql_tables(&namespace.config, &store).await, 1 + 2 * 2);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_a_reason() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let refused = async |config: CassandraConfig, word: &str| {
        let error = CassandraStore::connect(config).await.expect_err("it must be refused");
        assert!(matches!(&error, KvsError::Misconfigured { reason, .. } if reason.contains(word)), "{error:?}");
    };
    let copies = Replication::Simple { factor: 7 };
    refused(CassandraConfig { replication: copies, ..namespace.config.clone() }, "is replicated as").await;
    // Keyspaces that can't be made, and of which nothing is made.
    let new = Namespace::new();
    let with = |replication| CassandraConfig { replication, ..new.config.clone() };
    refused(with(Replication::Simple { factor: 99 }), "the cluster has ").await;
    let factors = vec![("nowhere".to_owned(), 1)];
    refused(with(Replication::NetworkTopology { factors }), "data centre 'nowhere' has 0 nodes").await;
    assert!(CassandraStore::connect_existing(new.config.clone()).await.expect("it can be looked for").is_none());
    let session = session(&namespace.config).await;
    let catalog = cql_table(&session, &store, "atlas_tables").await;
    let other = format!("UPDATE {catalog} SET kind = 'format 99' WHERE place = 0 AND name = '' IF EXISTS");
    session.query_unpaged(other, ()).await.expect("the test may do so");
    refused(namespace.config.clone(), "format 99").await;
    let back = format!("UPDATE {catalog} SET kind = 'format 1' WHERE place = 0 AND name = '' IF EXISTS");
    session.query_unpaged(back, ()).await.expect("the test may do so");
    let nobody = CassandraConfig { contact_points: vec!["127.255.255.254:9".to_owned()], ..namespace.config.clone() };
    let error = CassandraStore::connect(nobody).await.expect_err("nobody listens there");
    assert!(matches!(&error, KvsError::Unavailable { reason, .. } if reason.contains("127.255.255.254")), "{error:?}");
    // The keyspace is made again, and is another one.
    let t = versioned(&store, "t").await;
    put(&store, &t, "r", 1, "v").await;
    session.query_unpaged(format!("DROP KEYSPACE {}", store.keyspace()), ()).await.expect("the test may do so");
    let error = store.tables().await.expect_err("there is nothing");
    assert!(matches!(&error, KvsError::Backend { reason, .. } if reason.contains("is gone")), "{error:?}");
    assert_eq!(namespace.open().await.tables().await.expect("tables can be listed"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keyspace_that_is_dropped_meanwhile_is_not_misconfigured() {
    let namespace = Arc::new(Namespace::new());
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let namespace = Arc::clone(&namespace);
        tasks.spawn(async move {
            for _ in 0..15 {
                match CassandraStore::connect(namespace.config.clone()).await {
                    Ok(_)
                    | Err(KvsError::Unavailable { .. } | KvsError::Indeterminate { .. } | KvsError::Backend { .. }) => {
                    }
                    Err(error) => panic!("it is told as another fault: {error:?}"),
                }
            }
        });
    }
    let session = session(&namespace.config).await;
    while !tasks.is_empty() {
        // It may be refused, and the crowd may break the connection: it is dropped often enough.
        let _ = session.query_unpaged(format!("DROP KEYSPACE IF EXISTS {}", namespace.config.keyspace()), ()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        while let Some(ended) = tasks.try_join_next() {
            ended.expect("an attempt to open it may fail, and says why");
        }
    }
    assert_eq!(namespace.open().await.tables().await.expect("tables can be listed"), []);
}

#[tokio::test]
async fn namespaces_do_not_see_each_other() {
    let prefix = format!("test {}", std::process::id());
    let names = ["a", "A", "ä", "x\"; --"].map(|name| format!("{prefix} {name}"));
    let namespaces: Vec<_> = names.iter().map(|name| Namespace::named(name)).collect();
    let mut stores = Vec::new();
    for namespace in &namespaces {
        stores.push(namespace.open().await);
    }
    let t = table("t");
    for (store, name) in stores.iter().zip(&names) {
        assert_eq!(store.tables().await.expect("tables can be listed"), []);
        versioned(store, "t").await;
        put(store, &t, "r", 1, name).await;
    }
    stores[0].drop_table(&t).await.expect("can be dropped");
    for (store, name) in stores.iter().zip(&names).skip(1) {
        assert_eq!(newest(store, &t, "r").await, Some((1, Bytes::copy_from_slice(name.as_bytes()))));
    }
}
