//! Who waits for the disk, whatever the server's defaults are and become.

mod common;

use atlas_kvs::{AtomicBatch, BatchOp, Cell, CheckAndSet, Durability, KeyValueService, TableKind, TableRef, Timestamp};
use atlas_kvs_postgres::PostgresStore;
use bytes::Bytes;
use common::client;
use common::server::OwnServer;

fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

fn cell() -> Cell {
    Cell::copy_from("r", "c")
}

fn batch(ts: u64) -> AtomicBatch {
    let put = BatchOp::Put {
        table: table("t"),
        cell: cell(),
        ts: Timestamp::saturating(ts),
        value: Bytes::from_static(b"v"),
    };
    AtomicBatch::new(vec![put])
}

/// Every write but a relaxed batch, at timestamps from this one on, into tables that refuse who does not wait enough.
async fn all_writes_wait(store: &PostgresStore, ts: u64) {
    let put = |name: &str| (table(name), vec![(cell(), Bytes::from_static(b"v"))]);
    store.put(vec![put("t")], Timestamp::saturating(ts)).await.expect("a put waits for the disk");
    store.put(vec![put("t"), put("u")], Timestamp::saturating(ts + 1)).await.expect("a put waits for the disk");
    let standing = store.get_atomic(&table("a"), &[cell()]).await.expect("can be read").pop().flatten();
    let new = Some(Bytes::from(ts.to_string()));
    let set = store.check_and_set(&table("a"), &cell(), standing, new).await;
    assert_eq!(set.expect("compare-and-set waits for the disk"), CheckAndSet::Applied);
    store.apply(batch(ts + 2), Durability::Synced).await.expect("a synced batch waits for the disk");
    store.apply(batch(ts + 3), Durability::Relaxed).await.expect_err("the table refuses who does not wait");
    store.apply(batch(ts + 4), Durability::Synced).await.expect("the setting ends with its transaction");
}

/// Relaxed batches that succeed, in both forms, and behind each of them one that must wait, on the only connection there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_relaxed_batch_leaves_its_connection_as_it_was() {
    let server = OwnServer::new(&[]);
    let mut namespace = server.namespace("n");
    namespace.config.pool_size = 1;
    let store = namespace.open().await;
    for name in ["t", "u", "relaxed"] {
        store.create_table(&table(name), TableKind::Versioned, Bytes::new()).await.expect("can be created");
    }
    let admin = client(&namespace.config).await;
    for (name, right) in [("v_t", "= 'on'"), ("v_u", "= 'on'"), ("v_relaxed", "= 'off'")] {
        let schema = store.schema();
        let sql = format!("ALTER TABLE \"{schema}\".{name} ADD CHECK (current_setting('synchronous_commit') {right})");
        admin.batch_execute(&sql).await.expect("the test may do so");
    }
    let put = |name, ts| BatchOp::Put { table: table(name), cell: cell(), ts, value: Bytes::from_static(b"v") };
    for ts in (1..=8).map(Timestamp::saturating) {
        store.apply(AtomicBatch::new(vec![put("relaxed", ts)]), Durability::Relaxed).await.expect("it need not wait");
        for names in [vec!["t", "u"], vec!["t"]] {
            let ts = Timestamp::saturating(10 * ts.get() + names.len() as u64);
            let ops = names.into_iter().map(|name| put(name, ts)).collect();
            store.apply(AtomicBatch::new(ops), Durability::Synced).await.expect("it waits for the disk");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_durable_whatever_the_default_and_relaxed_ones_need_not() {
    let server = OwnServer::new(&["synchronous_commit = off"]);
    let namespace = server.namespace("n");
    let store = namespace.open().await;
    for (name, kind) in [("t", TableKind::Versioned), ("u", TableKind::Versioned), ("a", TableKind::Atomic)] {
        store.create_table(&table(name), kind, Bytes::new()).await.expect("can be created");
    }
    let admin = client(&namespace.config).await;
    for name in ["v_t", "v_u", "a_a"] {
        let sql = format!(
            "ALTER TABLE \"{}\".{name} ADD CHECK (current_setting('synchronous_commit') IN ('on', 'remote_apply'))",
            store.schema()
        );
        admin.batch_execute(&sql).await.expect("the test may do so");
    }
    all_writes_wait(&store, 10).await;
    for weak in ["off", "local", "remote_write"] {
        for place in ["ROLE postgres", "DATABASE postgres", "ROLE postgres IN DATABASE postgres"] {
            admin.batch_execute(&format!("ALTER {place} SET synchronous_commit = {weak}")).await.expect("can be set");
            all_writes_wait(&namespace.open().await, 20).await;
            admin.batch_execute(&format!("ALTER {place} RESET synchronous_commit")).await.expect("can be reset");
        }
    }
}

/// A default that changes while connections are open reaches those that have not set it themselves.
#[tokio::test(flavor = "multi_thread")]
async fn changed_default_changes_nothing_for_open_connections() {
    let server = OwnServer::new(&[]);
    let namespace = server.namespace("n");
    let store = namespace.open().await;
    for (name, kind) in [("t", TableKind::Versioned), ("u", TableKind::Versioned), ("a", TableKind::Atomic)] {
        store.create_table(&table(name), kind, Bytes::new()).await.expect("can be created");
    }
    let admin = client(&namespace.config).await;
    let sql =
        format!("ALTER TABLE \"{}\".v_t ADD CHECK (current_setting('synchronous_commit') = 'on')", store.schema());
    admin.batch_execute(&sql).await.expect("the test may do so");
    all_writes_wait(&store, 10).await;
    admin.batch_execute("ALTER SYSTEM SET synchronous_commit = off").await.expect("can be set");
    admin.batch_execute("SELECT pg_reload_conf()").await.expect("can be reloaded");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let shown = admin.query_one("SHOW synchronous_commit", &[]).await.expect("can be asked");
        if shown.get::<_, &str>(0) == "off" {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the setting does not arrive");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    all_writes_wait(&store, 20).await;
}
