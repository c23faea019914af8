//! Encrypted connections: who is believed, and who is not.

mod common;

use atlas_kvs::{KeyValueService, KvsError, TableKind, TableRef};
use atlas_kvs_postgres::{PostgresConfig, PostgresStore, SslMode};
use bytes::Bytes;
use common::client;
use common::server::{OwnServer, run};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server with a certificate for `localhost`, and the authority that signed it.
struct Encrypted {
    server: OwnServer,
    files: tempfile::TempDir,
}

impl Encrypted {
    fn new(settings: &[&str]) -> Encrypted {
        let files = tempfile::tempdir().expect("a directory can be made");
        let server = OwnServer::new(settings);
        let in_dir = |script: &str| {
            run(Command::new("sh").args(["-e", "-c", script]).current_dir(files.path()));
        };
        in_dir(
            "new='openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -batch' \n\
             for ca in root other; do \
               $new -x509 -days 2 -subj /CN=$ca -keyout $ca.key -out $ca.crt; done \n\
             $new -subj /CN=localhost -keyout server.key -out server.csr \n\
             echo subjectAltName=DNS:localhost > names \n\
             openssl x509 -req -days 2 -in server.csr -CA root.crt -CAkey root.key -CAcreateserial \
               -extfile names -out server.crt",
        );
        for name in ["server.key", "server.crt"] {
            let text = std::fs::read_to_string(files.path().join(name)).expect("it was made");
            server.write(&format!("data/{name}"), &text);
        }
        server.configure(&["ssl = on"]);
        // Whoever is not encrypted is refused, this machine's own socket excepted.
        server.write("data/pg_hba.conf.new", "hostssl all all all trust\nlocal all all trust");
        server.replace("data/pg_hba.conf.new", "data/pg_hba.conf");
        server.stop("fast");
        server.start();
        Encrypted { server, files }
    }

    fn config(&self, ssl_mode: SslMode, root: Option<&str>) -> PostgresConfig {
        let ssl_root_certificate = root.map(|name| self.file(name));
        let host = "localhost".to_owned();
        PostgresConfig { host, ssl_mode, ssl_root_certificate, ..self.server.config("n") }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }
}

async fn refusal(config: PostgresConfig) -> String {
    match PostgresStore::connect(config).await {
        Err(KvsError::Misconfigured { reason, .. } | KvsError::AccessDenied { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_proves_who_it_is_is_believed() {
    let encrypted = Encrypted::new(&[]);
    // All connections are really encrypted.
    for config in [encrypted.config(SslMode::Require, None), encrypted.config(SslMode::VerifyFull, Some("root.crt"))] {
        let store = PostgresStore::connect(config).await.expect("the server is who it should be");
        let table = TableRef::new("t").expect("the name is a table name");
        store.create_table(&table, TableKind::Versioned, Bytes::new()).await.expect("can be created");
        let socket = PostgresConfig {
            host: encrypted.server.dir().to_str().expect("the path is text").to_owned(),
            ..encrypted.server.config("n")
        };
        let admin = client(&socket).await;
        let sql = "SELECT count(*) FILTER (WHERE s.ssl), count(*) FILTER (WHERE NOT s.ssl) \
                   FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.application_name = 'atlas'";
        let row = admin.query_one(sql, &[]).await.expect("can be asked");
        let (with, without): (i64, i64) = (row.get(0), row.get(1));
        assert!(with > 0 && without == 0, "{with} with, {without} without");
        store.close().await.expect("can be closed");
    }

    let reason = refusal(encrypted.config(SslMode::VerifyFull, Some("other.crt"))).await;
    assert!(reason.contains("check host, sslmode and root certificate"), "another authority: {reason}");
    let by_address =
        PostgresConfig { host: "127.0.0.1".to_owned(), ..encrypted.config(SslMode::VerifyFull, Some("root.crt")) };
    let reason = refusal(by_address).await;
    assert!(reason.contains("check host, sslmode and root certificate"), "another name: {reason}");
    let reason = refusal(encrypted.config(SslMode::Disable, None)).await;
    assert!(reason.contains("no encryption"), "the server insists: {reason}");
    let plain = OwnServer::new(&[]);
    let reason = refusal(PostgresConfig { ssl_mode: SslMode::Require, ..plain.config("n") }).await;
    assert!(reason.contains("does not support TLS"), "the server can't: {reason}");
}

#[tokio::test]
async fn contradictions_are_told_before_anyone_is_asked() {
    let nobody = |ssl_mode, root: Option<&str>| PostgresConfig {
        port: 1,
        ssl_mode,
        ssl_root_certificate: root.map(PathBuf::from),
        ..PostgresConfig::new("n")
    };
    let reason = refusal(nobody(SslMode::VerifyFull, None)).await;
    assert!(reason.contains("needs the file of the root certificate"), "{reason}");
    let reason = refusal(nobody(SslMode::Require, Some("/root.crt"))).await;
    assert!(reason.contains("only with verify-full"), "{reason}");
    let reason = refusal(nobody(SslMode::VerifyFull, Some("/no/such/file"))).await;
    assert!(reason.contains("/no/such/file can't be read"), "{reason}");
    let reason = refusal(nobody(SslMode::VerifyFull, Some(file!().trim_start_matches("kvs-adapters/postgres/")))).await;
    assert!(reason.contains("holds no certificate"), "{reason}");
}

/// The request to stop goes over a connection of its own, which has to be encrypted too.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_call_is_cancelled_over_an_encrypted_connection() {
    let encrypted = Encrypted::new(&[]);
    let config = encrypted.config(SslMode::VerifyFull, Some("root.crt"));
    let store = Arc::new(PostgresStore::connect(config).await.expect("the server is who it should be"));
    let table = TableRef::new("t").expect("the name is a table name");
    store.create_table(&table, TableKind::Versioned, Bytes::new()).await.expect("can be created");
    let host = encrypted.server.dir().to_str().expect("the path is text").to_owned();
    let admin = client(&PostgresConfig { host, ..encrypted.server.config("n") }).await;
    admin.batch_execute(&format!("BEGIN; LOCK TABLE \"{}\".v_t", store.schema())).await.expect("can lock");
    let truncate = store.truncate_table(&table);
    tokio::time::timeout(Duration::from_millis(300), truncate).await.expect_err("the table is locked");
    let deadline = Instant::now() + PATIENCE;
    let waiting = "SELECT 1 FROM pg_locks WHERE NOT granted";
    while !admin.query(waiting, &[]).await.expect("can be asked").is_empty() {
        assert!(Instant::now() < deadline, "the statement still waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
