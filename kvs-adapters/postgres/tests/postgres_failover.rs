//! Another server where ours was: told, and never written to unnoticed.

mod common;

use atlas_kvs::{Cell, CellBound, KeyValueService, KvsError, Result, TableKind, TableRef, Timestamp};
use atlas_kvs_postgres::{PostgresConfig, PostgresStore};
use bytes::Bytes;
use common::client;
use common::server::OwnServer;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(30);

fn table() -> TableRef {
    TableRef::new("t").expect("the name is a table name")
}

async fn put(store: &PostgresStore, ts: u64) -> Result<()> {
    let cells = vec![(Cell::copy_from("r", "c"), Bytes::from_static(b"v"))];
    store.put(vec![(table(), cells)], Timestamp::saturating(ts)).await
}

async fn newest(store: &PostgresStore) -> Result<u64> {
    let seen = store.get(&table(), &[CellBound::new(Cell::copy_from("r", "c"), Timestamp::MAX)]).await?;
    Ok(seen[0].as_ref().map_or(0, |value| value.ts.get()))
}

/// An address that leads to whichever server it is told to, as a name or a virtual address does.
async fn movable(port: u16) -> (u16, Arc<AtomicU16>) {
    let target = Arc::new(AtomicU16::new(port));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let shared = Arc::clone(&target);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let target = shared.load(Ordering::SeqCst);
            tokio::spawn(async move {
                if let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    (port, target)
}

#[tokio::test(flavor = "multi_thread")]
async fn promoted_standby_is_refused_until_the_store_is_opened_anew() {
    let primary = OwnServer::new(&[]);
    let standby = OwnServer::standby_of(&primary);
    let (port, target) = movable(primary.port).await;
    let config = PostgresConfig { port, ..primary.config("n") };
    let store = PostgresStore::connect(config.clone()).await.expect("the primary is there");
    store.create_table(&table(), TableKind::Versioned, Bytes::new()).await.expect("can be created");
    put(&store, 1).await.expect("can be put");
    let before = store.identity().await.expect("can be asked").expect("a server has one");

    let error = PostgresStore::connect(standby.config("n")).await.expect_err("it is read-only");
    assert!(error.is_retriable() && error.to_string().contains("does not allow writes"), "{error:?}");

    // Of several the one that takes writes is found, wherever it stands.
    let both = format!("127.0.0.1:{},127.0.0.1:{}", standby.port, primary.port);
    let found = PostgresStore::connect(PostgresConfig { host: both, ..primary.config("n") }).await;
    let found = found.expect("one of them takes writes").identity().await.expect("can be asked");
    assert_eq!(found.as_ref(), Some(&before));

    // What the primary takes now does not arrive at the standby.
    let reader = client(&standby.config("n")).await;
    let deadline = Instant::now() + PATIENCE;
    let sql = format!("SELECT 1 FROM \"{}\".v_t", store.schema());
    while !reader.query(&sql, &[]).await.is_ok_and(|rows| !rows.is_empty()) {
        assert!(Instant::now() < deadline, "the standby does not follow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    standby.promote();
    put(&store, 2).await.expect("the old primary knows of nothing");
    target.store(standby.port, Ordering::SeqCst);
    primary.stop("immediate");

    let mut refused = 0;
    while refused < 3 {
        match put(&store, 3).await {
            // Connections that were open when the server went.
            Err(error) if error.is_retriable() || error.is_indeterminate() => {}
            Err(KvsError::Misconfigured { reason, .. }) if reason.contains("was promoted") => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    newest(&store).await.expect_err("nothing is read from there either");
    store.identity().await.expect_err("there is no connection");

    let store = PostgresStore::connect(config).await.expect("the new primary is there");
    let after = store.identity().await.expect("can be asked").expect("a server has one");
    assert_eq!(newest(&store).await.expect("can be read"), 1, "the second put is lost, the third was never made");
    assert_ne!(before, after);
    assert_eq!(before.split('/').next(), after.split('/').next(), "the system is the same: {before}, {after}");
    assert!(before.contains("/1/") && after.contains("/2/"), "{before}, {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_or_database_has_another_identity() {
    let (one, other) = (OwnServer::new(&[]), OwnServer::new(&[]));
    client(&one.config("n")).await.batch_execute("CREATE DATABASE copy TEMPLATE template0").await.expect("can copy");
    let copy = PostgresConfig { dbname: "copy".to_owned(), ..one.config("n") };
    let mut identities = std::collections::BTreeSet::new();
    for config in [one.config("n"), other.config("n"), copy] {
        let store = PostgresStore::connect(config).await.expect("the server is there");
        let identity = store.identity().await.expect("can be asked").expect("a server has one");
        assert!(identity.len() <= 200);
        identities.insert(identity);
    }
    assert_eq!(identities.len(), 3, "{identities:?}");
}

/// Who may do no more than use a schema of his own can be told all the same where he is.
#[tokio::test(flavor = "multi_thread")]
async fn identity_needs_no_privilege() {
    let server = OwnServer::new(&[]);
    let sql = "CREATE ROLE plain LOGIN; GRANT CREATE ON DATABASE postgres TO plain";
    client(&server.config("n")).await.batch_execute(sql).await.expect("can be made");
    let config = PostgresConfig { user: "plain".to_owned(), ..server.config("n") };
    let store = PostgresStore::connect(config).await.expect("he may make a schema");
    assert!(store.identity().await.expect("can be asked").is_some());
}
