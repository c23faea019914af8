//! Servers that fail at every moment: what the caller is told, and what is true.

mod common;

use atlas_kvs::{
    AtomicBatch, Availability, BatchGuard, BatchOp, Cell, CellBound, CheckAndSet, Durability, KeyValueService,
    KvsError, Result, TableKind, TableRef, Timestamp,
};
use atlas_kvs_postgres::{PostgresConfig, PostgresStore};
use bytes::Bytes;
use common::{Disturbed, Namespace, PATIENCE};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

fn cell(row: &str) -> Cell {
    Cell::copy_from(row, "c")
}

/// A put into both tables, which is one transaction of several statements.
async fn put_both(store: &PostgresStore, ts: u64) -> Result<()> {
    let cells = || vec![(cell("r"), Bytes::from_static(b"v"))];
    store.put(vec![(table("t"), cells()), (table("u"), cells())], Timestamp::saturating(ts)).await
}

async fn put_one(store: &PostgresStore, ts: u64) -> Result<()> {
    store.put(vec![(table("t"), vec![(cell("r"), Bytes::from_static(b"v"))])], Timestamp::saturating(ts)).await
}

/// The newest timestamps in both tables.
async fn stored(store: &PostgresStore) -> [u64; 2] {
    let mut newest = [0; 2];
    for (newest, name) in newest.iter_mut().zip(["t", "u"]) {
        let seen = store.get(&table(name), &[CellBound::new(cell("r"), Timestamp::MAX)]).await.expect("can be read");
        *newest = seen[0].as_ref().map_or(0, |value| value.ts.get());
    }
    newest
}

/// A store with the versioned tables `t` and `u`, and the atomic table `a`.
async fn fixture(change: impl FnOnce(&mut PostgresConfig)) -> Disturbed {
    let fixture = Disturbed::new(change).await;
    for (name, kind) in [("t", TableKind::Versioned), ("u", TableKind::Versioned), ("a", TableKind::Atomic)] {
        fixture.store.create_table(&table(name), kind, Bytes::new()).await.expect("can be created");
    }
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_commit_is_unavailable_and_nothing_is_there() {
    let fixture = fixture(|_| {}).await;
    fixture.admin.batch_execute(&format!("BEGIN; LOCK TABLE {}", fixture.sql_table("v_u"))).await.expect("can lock");
    let store = Arc::clone(&fixture.store);
    let put = tokio::spawn(async move { put_both(&store, 1).await });
    fixture.terminate(fixture.backend("wait_event_type = 'Lock'").await).await;
    let error = put.await.expect("no panic").expect_err("the connection was killed");
    assert!(matches!(error, KvsError::Unavailable { .. }), "{error:?}");
    fixture.admin.batch_execute("ROLLBACK").await.expect("can unlock");
    assert_eq!(stored(&fixture.store).await, [0, 0]);
    put_both(&fixture.store, 2).await.expect("the store goes on");
    assert_eq!(stored(&fixture.store).await, [2, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_commit_is_indeterminate() {
    let fixture = fixture(|_| {}).await;
    fixture.slow_commit(&["v_t", "v_u"]).await;
    for both in [true, false] {
        let store = Arc::clone(&fixture.store);
        let put = tokio::spawn(async move { if both { put_both(&store, 1).await } else { put_one(&store, 1).await } });
        fixture.terminate(fixture.backend("wait_event = 'PgSleep'").await).await;
        let error = put.await.expect("no panic").expect_err("the connection was killed");
        assert!(error.is_indeterminate(), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_connections_are_replaced() {
    let fixture = fixture(|config| config.pool_size = 3).await;
    for round in 1..=10 {
        let name = &fixture.namespace.config.application_name;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
        fixture.admin.execute(sql, &[name]).await.expect("can be terminated");
        // At once, before anyone has noticed, and again: reads find a live connection by themselves.
        assert_eq!(stored(&fixture.store).await, [round - 1; 2]);
        let mut tries = 0;
        while let Err(error) = put_both(&fixture.store, round).await {
            tries += 1;
            assert!(error.is_retriable() || error.is_indeterminate(), "{error:?}");
            assert!(tries <= 3, "there are no more dead connections than that");
        }
        assert_eq!(stored(&fixture.store).await, [round; 2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_timeout_is_unavailable_and_nothing_is_there() {
    let fixture = fixture(|config| config.statement_timeout = Duration::from_millis(300)).await;
    fixture.admin.batch_execute(&format!("BEGIN; LOCK TABLE {}", fixture.sql_table("v_u"))).await.expect("can lock");
    let begun = Instant::now();
    let error = put_both(&fixture.store, 1).await.expect_err("the table is locked");
    assert!(matches!(error, KvsError::Unavailable { .. }), "{error:?}");
    assert!(begun.elapsed() < PATIENCE);
    let get = fixture.store.get(&table("u"), &[CellBound::new(cell("r"), Timestamp::MAX)]).await;
    assert!(matches!(get, Err(KvsError::Unavailable { .. })), "{get:?}");
    fixture.admin.batch_execute("ROLLBACK").await.expect("can unlock");
    assert_eq!(stored(&fixture.store).await, [0, 0]);
    put_both(&fixture.store, 2).await.expect("the store goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_pool_is_waited_for_only_so_long() {
    let change = |config: &mut PostgresConfig| {
        config.pool_size = 2;
        config.pool_timeout = Duration::from_millis(200);
    };
    let fixture = fixture(change).await;
    fixture.admin.batch_execute(&format!("BEGIN; LOCK TABLE {}", fixture.sql_table("v_u"))).await.expect("can lock");
    let blocked: Vec<_> = (1..=2)
        .map(|ts| {
            let store = Arc::clone(&fixture.store);
            tokio::spawn(async move { put_both(&store, ts).await })
        })
        .collect();
    let both =
        "(SELECT count(*) FROM pg_stat_activity b WHERE b.application_name = $1 AND b.wait_event_type = 'Lock') = 2";
    fixture.backend(both).await;
    let begun = Instant::now();
    let error = put_one(&fixture.store, 9).await.expect_err("all connections are in use");
    assert!(matches!(&error, KvsError::Unavailable { reason, .. } if reason.contains("in use")), "{error:?}");
    assert!(begun.elapsed() < PATIENCE);
    fixture.admin.batch_execute("ROLLBACK").await.expect("can unlock");
    for put in blocked {
        put.await.expect("no panic").expect("the lock is gone");
    }
    put_one(&fixture.store, 9).await.expect("connections are free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_call_leaves_no_transaction_behind() {
    let fixture = fixture(|config| config.pool_size = 1).await;
    fixture.admin.batch_execute(&format!("BEGIN; LOCK TABLE {}", fixture.sql_table("v_u"))).await.expect("can lock");
    let dropped = tokio::time::timeout(Duration::from_millis(300), put_both(&fixture.store, 1)).await;
    assert!(dropped.is_err(), "the table is locked");
    // The only connection there may be is a new one, and the old one is told to stop although the lock stays.
    fixture.store.tables().await.expect("there is a connection");
    let deadline = Instant::now() + PATIENCE;
    let sql = "SELECT 1 FROM pg_stat_activity WHERE application_name = $1 \
               AND (state LIKE 'idle in transaction%' OR wait_event_type = 'Lock')";
    while !fixture.activity(sql, &fixture.namespace.config.application_name).await.is_empty() {
        assert!(Instant::now() < deadline, "the transaction is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fixture.admin.batch_execute("ROLLBACK").await.expect("can unlock");
    assert_eq!(stored(&fixture.store).await, [0, 0]);
    put_both(&fixture.store, 2).await.expect("the store goes on");
}

/// What stands between store and server, and when it acts.
#[derive(Clone, Copy)]
enum Disturbance {
    /// Delivers the COMMIT and then nothing more to either side.
    CutBehindCommit,
    /// Delivers nothing from the COMMIT on.
    CutBeforeCommit,
    /// Delivers what is before the COMMIT, and then nothing more: to the server a client that was stopped.
    StopBeforeCommit,
    /// Makes a BEGIN into something that the server refuses.
    SpoilBegin,
}

/// A store whose connections go through a disturber. Its tables exist already.
async fn disturbed(fixture: &Disturbed, disturbance: Disturbance) -> PostgresStore {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let target = fixture.namespace.config.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                if target.host.starts_with('/') {
                    let path = format!("{}/.s.PGSQL.{}", target.host, target.port);
                    let server = tokio::net::UnixStream::connect(path).await.expect("the server is there");
                    disturb(client, server, disturbance).await;
                } else {
                    let server = TcpStream::connect((&*target.host, target.port)).await.expect("the server is there");
                    disturb(client, server, disturbance).await;
                }
            });
        }
    });
    let config = PostgresConfig { host: "127.0.0.1".to_owned(), port, ..fixture.namespace.config.clone() };
    PostgresStore::connect(config).await.expect("connecting is not disturbed")
}

async fn disturb(client: TcpStream, server: impl AsyncRead + AsyncWrite, disturbance: Disturbance) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let forward = async {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(len @ 1..) = from_client.read(&mut buffer).await {
            let data = &mut buffer[..len];
            let find = |what: &[u8]| data.windows(what.len()).position(|window| window == what);
            match disturbance {
                Disturbance::CutBehindCommit if find(b"COMMIT").is_some() => {
                    let _ = to_server.write_all(data).await;
                    // The answer is on its way, but nobody takes it from here on.
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    return;
                }
                Disturbance::CutBeforeCommit if find(b"COMMIT").is_some() => return,
                Disturbance::StopBeforeCommit => {
                    if let Some(place) = find(b"COMMIT") {
                        // A byte for the kind of message and four for its length.
                        let _ = to_server.write_all(&data[..place - 5]).await;
                        std::future::pending::<()>().await;
                    }
                }
                Disturbance::SpoilBegin => {
                    if let Some(place) = find(b"BEGIN; SET") {
                        data[place] = b'X';
                    }
                }
                Disturbance::CutBehindCommit | Disturbance::CutBeforeCommit => {}
            }
            if to_server.write_all(data).await.is_err() {
                return;
            }
        }
    };
    let deaf = matches!(disturbance, Disturbance::CutBehindCommit);
    let backward = async {
        let mut buffer = vec![0; 1 << 16];
        let mut answers = 0;
        while let Ok(len @ 1..) = from_server.read(&mut buffer).await {
            // A transaction of the test is answered in one piece that ends with that of its COMMIT: hold it back.
            if deaf && buffer[..len].windows(6).any(|window| window == b"COMMIT") {
                answers += 1;
                std::future::pending::<()>().await;
            }
            if to_client.write_all(&buffer[..len]).await.is_err() {
                return;
            }
        }
        debug_assert_eq!(answers, 0);
    };
    tokio::select! {
        () = forward => {}
        () = backward => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answer_to_a_commit_is_indeterminate_and_everything_is_there() {
    let fixture = fixture(|_| {}).await;
    let store = disturbed(&fixture, Disturbance::CutBehindCommit).await;
    let error = put_both(&store, 1).await.expect_err("the answer was lost");
    assert!(error.is_indeterminate(), "{error:?}");
    assert_eq!(stored(&fixture.store).await, [1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_that_never_arrived_is_indeterminate_and_nothing_is_there() {
    let fixture = fixture(|_| {}).await;
    let store = disturbed(&fixture, Disturbance::CutBeforeCommit).await;
    let error = put_both(&store, 1).await.expect_err("the connection was cut");
    assert!(error.is_indeterminate(), "{error:?}");
    assert_eq!(stored(&fixture.store).await, [0, 0]);
}

/// The owner is stopped between the check of its guard and its COMMIT. Its successor must not wait for it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn stopped_client_does_not_hold_back_its_successor() {
    let fixture = fixture(|config| config.idle_in_transaction_timeout = Duration::from_millis(500)).await;
    let fence = |expected: &'static str| BatchGuard {
        table: table("a"),
        cell: cell("fence"),
        expected: Bytes::from_static(expected.as_bytes()),
    };
    let set = BatchOp::Set { table: table("a"), cell: cell("fence"), value: Bytes::from_static(b"1") };
    fixture.store.apply(AtomicBatch::new(vec![set]), Durability::Synced).await.expect("can be set");
    let store = disturbed(&fixture, Disturbance::StopBeforeCommit).await;
    let put = move |expected| {
        let (table, value) = (table("t"), Bytes::from_static(b"v"));
        let put = BatchOp::Put { table, cell: cell("r"), ts: Timestamp::FIRST, value };
        AtomicBatch::new(vec![put]).guarded(Some(fence(expected)))
    };
    let batch = tokio::spawn(async move { store.apply(put("1"), Durability::Synced).await });
    fixture.backend("state = 'idle in transaction'").await;
    let (old, new) = (Some(Bytes::from_static(b"1")), Some(Bytes::from_static(b"2")));
    let changed = fixture.store.check_and_set(&table("a"), &cell("fence"), old, new).await;
    assert_eq!(changed.expect("the server has ended the other transaction"), CheckAndSet::Applied);
    // Its transaction's own lock is what the change waits for. What else is told of it may linger for a moment.
    let still_open = "SELECT 1 FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE application_name = $1 \
                      AND state = 'idle in transaction' AND locktype = 'transactionid' AND granted";
    let open = fixture.activity(still_open, &fixture.namespace.config.application_name).await;
    assert!(open.is_empty(), "the change waits for whoever has seen the guard");
    let error = batch.await.expect("no panic").expect_err("the connection was ended");
    assert!(error.is_indeterminate(), "{error:?}");
    let error = fixture.store.apply(put("1"), Durability::Synced).await.expect_err("the fence has changed");
    assert!(matches!(error, KvsError::GuardFailed { .. }), "{error:?}");
    assert_eq!(stored(&fixture.store).await, [0, 0]);
    fixture.store.apply(put("2"), Durability::Synced).await.expect("the guard holds");
    assert_eq!(stored(&fixture.store).await, [1, 0]);
}

/// The statements are on their way when BEGIN is refused. None of them may take effect by itself.
#[tokio::test(flavor = "multi_thread")]
async fn refused_begin_leaves_nothing_behind() {
    let fixture = fixture(|_| {}).await;
    let store = disturbed(&fixture, Disturbance::SpoilBegin).await;
    let error = put_both(&store, 1).await.expect_err("BEGIN was refused");
    assert!(matches!(error, KvsError::Backend { .. }), "{error:?}");
    let set = BatchOp::Set { table: table("a"), cell: cell("r"), value: Bytes::new() };
    let put = BatchOp::Put { table: table("t"), cell: cell("r"), ts: Timestamp::FIRST, value: Bytes::new() };
    let batch = AtomicBatch::new(vec![set, put]);
    store.apply(batch, Durability::Synced).await.expect_err("BEGIN was refused");
    assert_eq!(stored(&fixture.store).await, [0, 0]);
    assert_eq!(fixture.store.get_atomic(&table("a"), &[cell("r")]).await.expect("can be read"), [None]);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let namespace = Namespace::new();
    let with = |change: &dyn Fn(&mut PostgresConfig)| {
        let mut config = namespace.config.clone();
        change(&mut config);
        PostgresStore::connect(config)
    };
    let error = with(&|config| config.dbname = "no such database".to_owned()).await.expect_err("there is none");
    assert!(
        matches!(&error, KvsError::Misconfigured { reason, .. } if reason.contains("create the database")),
        "{error:?}"
    );
    let error = with(&|config| config.user = "no such user".to_owned()).await.expect_err("there is none");
    assert!(matches!(&error, KvsError::AccessDenied { reason, .. } if reason.contains("check user")), "{error:?}");
    let error = with(&|config| config.namespace = String::new()).await.expect_err("it has no name");
    assert!(matches!(error, KvsError::Misconfigured { .. }), "{error:?}");
    let error =
        with(&|config| (config.host, config.port) = ("127.0.0.1".to_owned(), 1)).await.expect_err("nobody there");
    assert!(matches!(error, KvsError::Unavailable { .. }), "{error:?}");
    if namespace.config.password.is_some() {
        let error = with(&|config| config.password = Some("wrong".into())).await.expect_err("it is wrong");
        assert!(matches!(&error, KvsError::AccessDenied { reason, .. } if reason.contains("check user")), "{error:?}");
        let error = with(&|config| config.password = None).await.expect_err("there is none");
        assert!(matches!(&error, KvsError::AccessDenied { reason, .. } if reason.contains("check user")), "{error:?}");
    }
}

#[tokio::test]
async fn vanished_schema_is_told() {
    let fixture = fixture(|_| {}).await;
    assert_eq!(fixture.store.availability().await, Availability::All);
    fixture
        .admin
        .batch_execute(&format!("DROP SCHEMA \"{}\" CASCADE", fixture.store.schema()))
        .await
        .expect("can be dropped");
    let error = put_both(&fixture.store, 1).await.expect_err("there is nothing");
    assert!(matches!(&error, KvsError::Backend { reason, .. } if reason.contains("is gone")), "{error:?}");
}
