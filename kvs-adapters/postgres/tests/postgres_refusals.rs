//! What a server refuses, and what the caller is told to do about it.

mod common;

use atlas_kvs::{Cell, CellBound, KeyValueService, KvsError, Result, TableKind, TableRef, Timestamp};
use atlas_kvs_postgres::{PostgresConfig, PostgresStore};
use bytes::Bytes;
use common::client;
use common::server::{OwnServer, SmallDisk};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

async fn put(store: &PostgresStore, ts: u64, len: usize) -> Result<()> {
    let cells = vec![(Cell::copy_from("r", format!("{ts}")), Bytes::from(vec![1; len]))];
    store.put(vec![(table("t"), cells)], Timestamp::saturating(ts)).await
}

/// A refusal of the configuration.
async fn misconfigured(config: &PostgresConfig) -> String {
    match PostgresStore::connect(config.clone()).await {
        Err(error @ KvsError::Misconfigured { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// A refusal of the user.
async fn denied(config: &PostgresConfig) -> String {
    match PostgresStore::connect(config.clone()).await {
        Err(error @ KvsError::AccessDenied { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// A refusal that passes.
async fn unavailable(config: &PostgresConfig) -> String {
    match PostgresStore::connect(config.clone()).await {
        Err(error) if error.is_retriable() => error.to_string(),
        other => panic!("{other:?}"),
    }
}

async fn allow(server: &OwnServer, sql: &str) {
    client(&server.config("n")).await.batch_execute(sql).await.expect("the test may do so");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_checked_and_may_be_in_a_file() {
    let server = OwnServer::new(&[]);
    allow(&server, "CREATE ROLE ann LOGIN SUPERUSER PASSWORD 'se:cret'").await;
    server.write("data/pg_hba.conf.new", "host all ann all scram-sha-256\nhost all all all trust");
    server.replace("data/pg_hba.conf.new", "data/pg_hba.conf");
    server.stop("fast");
    server.start();
    let ann = PostgresConfig { user: "ann".to_owned(), ..server.config("n") };
    let with = |password: &str| PostgresConfig { password: Some(password.into()), ..ann.clone() };
    PostgresStore::connect(with("se:cret")).await.expect("it is right");
    let reason = denied(&with("wrong")).await;
    assert!(reason.contains("check user and password") && !reason.contains("wrong"), "{reason}");
    let reason = denied(&ann).await;
    assert!(reason.contains("password"), "{reason}");

    let dir = tempfile::tempdir().expect("a directory can be made");
    let file = dir.path().join("passwords");
    let of_file = |file: &Path| PostgresConfig { password_file: Some(file.to_owned()), ..ann.clone() };
    std::fs::write(&file, format!("127.0.0.1:1:*:*:wrong\n127.0.0.1:{}:*:ann:se\\:cret\n", server.port)).expect("s");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("can be set");
    let reason = misconfigured(&of_file(&file)).await;
    assert!(reason.contains("chmod 0600") && !reason.contains("cret"), "{reason}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("can be set");
    PostgresStore::connect(of_file(&file)).await.expect("it is in the file");
    let reason = misconfigured(&of_file(&dir.path().join("none"))).await;
    assert!(reason.contains("can't be read"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_asked_in_turn_and_sockets_are_servers() {
    let server = OwnServer::new(&[]);
    let socket = server.dir().to_str().expect("the path is text");
    for host in [format!("127.0.0.1:1,127.0.0.1:{}", server.port), format!("127.0.0.1:1,{socket}"), socket.to_owned()] {
        let config = PostgresConfig { host, ..server.config("n") };
        PostgresStore::connect(config).await.expect("one of them is there");
    }
    let nobody = PostgresConfig { host: "127.0.0.1:1,127.0.0.1:2".to_owned(), ..server.config("n") };
    let reason = unavailable(&nobody).await;
    assert!(reason.contains("127.0.0.1:1, 127.0.0.1:2"), "{reason}");
    let reason = misconfigured(&PostgresConfig { host: "a,,b".to_owned(), ..server.config("n") }).await;
    assert!(reason.contains("is no host"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_and_databases_are_named() {
    let server = OwnServer::new(&[]);
    allow(&server, "CREATE ROLE plain LOGIN; CREATE ROLE one LOGIN CONNECTION LIMIT 1").await;
    let store = PostgresStore::connect(server.config("n")).await.expect("the server is there");
    store.create_table(&table("t"), TableKind::Versioned, Bytes::new()).await.expect("can be created");
    let plain = |namespace: &str| PostgresConfig { user: "plain".to_owned(), ..server.config(namespace) };
    let reason = denied(&plain("new")).await;
    assert!(reason.contains("permission denied") && reason.contains("grant"), "no right to make a schema: {reason}");
    let reason = denied(&plain("n")).await;
    assert!(reason.contains("permission denied") && reason.contains("grant"), "no right to use it: {reason}");
    let schema = store.schema();
    allow(
        &server,
        &format!(
            "GRANT USAGE ON SCHEMA \"{schema}\" TO plain; GRANT SELECT ON ALL TABLES IN SCHEMA \"{schema}\" TO plain"
        ),
    )
    .await;
    let reader = PostgresStore::connect(plain("n")).await.expect("the schema is there and may be read");
    let bound = CellBound::new(Cell::copy_from("r", "1"), Timestamp::MAX);
    assert_eq!(reader.get(&table("t"), &[bound]).await.expect("may be read"), [None]);
    let error = put(&reader, 1, 1).await.expect_err("may not be written");
    assert!(matches!(&error, KvsError::AccessDenied { reason, .. } if reason.contains("grant")), "{error:?}");
    let reason = misconfigured(&PostgresConfig { dbname: "none".to_owned(), ..server.config("n") }).await;
    assert!(reason.contains("create the database first"), "{reason}");

    let one = PostgresConfig { user: "one".to_owned(), ..server.config("n") };
    let busy = client(&one).await;
    let reason = unavailable(&one).await;
    assert!(reason.contains("too many connections"), "{reason}");
    drop(busy);
}

/// Read-only for a while, as providers do it to a database that has grown too large.
#[tokio::test(flavor = "multi_thread")]
async fn read_only_database_is_unavailable() {
    let server = OwnServer::new(&[]);
    drop(PostgresStore::connect(server.config("n")).await.expect("the server is there"));
    allow(&server, "ALTER DATABASE postgres SET default_transaction_read_only = on").await;
    let reason = unavailable(&server.config("n")).await;
    assert!(reason.contains("does not allow writes"), "{reason}");
    allow(&server, "BEGIN READ WRITE; ALTER DATABASE postgres RESET default_transaction_read_only; COMMIT").await;
    PostgresStore::connect(server.config("n")).await.expect("it takes writes again");
}

/// There is no server so old here: the answer of a newer one is changed on its way.
#[tokio::test(flavor = "multi_thread")]
async fn server_that_is_too_old_is_refused() {
    let server = OwnServer::new(&[]);
    let version =
        client(&server.config("n")).await.query_one("SHOW server_version_num", &[]).await.expect("can be asked");
    let version: String = version.get(0);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let target = server.port;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let version = version.clone();
            tokio::spawn(async move {
                let server = TcpStream::connect(("127.0.0.1", target)).await.expect("the server is there");
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let mut buffer = vec![0; 1 << 16];
                while let Ok(len @ 1..) = from_server.read(&mut buffer).await {
                    let place = buffer[..len].windows(version.len()).position(|window| window == version.as_bytes());
                    if let Some(place) = place {
                        buffer[place..place + 2].copy_from_slice(b"12");
                    }
                    if to_client.write_all(&buffer[..len]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let reason = misconfigured(&PostgresConfig { port, ..server.config("n") }).await;
    assert!(reason.contains("PostgreSQL 12; 13 or later is needed"), "{reason}");
}

/// The tables lie on a disk that fills up: nothing is half there, and with room again everything goes on.
#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_unavailable_until_there_is_room() {
    let server = OwnServer::new(&[]);
    let Some(disk) = SmallDisk::mount(&server, "24m") else { return };
    let sql = format!("CREATE TABLESPACE small LOCATION '{}'", disk.path().display());
    allow(&server, &sql).await;
    allow(&server, "ALTER DATABASE postgres SET default_tablespace = small").await;
    let store = PostgresStore::connect(server.config("n")).await.expect("the server is there");
    store.create_table(&table("t"), TableKind::Versioned, Bytes::new()).await.expect("can be created");
    let mut written = 0;
    let error = loop {
        match put(&store, written + 1, 1 << 20).await {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "the disk is never full");
    };
    assert!(error.is_retriable() && error.to_string().contains("No space left"), "{error:?}");
    let there = |from: u64, to: u64| {
        (from..=to).map(|ts| CellBound::new(Cell::copy_from("r", format!("{ts}")), Timestamp::MAX))
    };
    let seen = store.get(&table("t"), &there(1, written).collect::<Vec<_>>()).await.expect("reads need no room");
    assert!(seen.iter().all(Option::is_some), "what was acknowledged is there");
    let seen = store.get(&table("t"), &there(written + 1, written + 1).collect::<Vec<_>>()).await.expect("as above");
    assert_eq!(seen, [None]);
    disk.enlarge("64m");
    put(&store, written + 1, 1 << 20).await.expect("there is room again");
}
