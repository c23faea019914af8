//! A Cassandra cluster for tests, found by the variables that `scripts/with-cassandra` sets.

use atlas::config::CassandraKvs;
use atlas::kvs_api::KeyValueService;
use atlas_kvs_cassandra::{CassandraConfig, CassandraStore};
use std::process::{Command, Stdio};

/// How the cluster is reached, as the adapter has it.
///
/// Ends the program if there is no cluster: as passed, unless the lane is required.
pub fn connection(namespace: &str) -> CassandraConfig {
    if std::env::var_os("ATLAS_CASSANDRA_CONTACT_POINTS").is_none_or(|points| points.is_empty()) {
        super::without_server("cassandra", "ATLAS_CASSANDRA_CONTACT_POINTS is not set; run scripts/test cassandra");
    }
    CassandraConfig::from_env(namespace).expect("the variables are fine")
}

/// How the cluster is reached, as the configuration has it.
pub fn settings() -> CassandraKvs {
    let connection = connection("");
    let replication_factor = std::env::var("ATLAS_CASSANDRA_REPLICATION")
        .map_or(1, |factor| factor.parse().expect("ATLAS_CASSANDRA_REPLICATION is a number"));
    CassandraKvs { contact_points: connection.contact_points.join(","), replication_factor, ..CassandraKvs::default() }
}

/// The same as a block of a configuration file.
pub fn yaml() -> String {
    let CassandraKvs { contact_points, replication_factor, .. } = settings();
    format!(
        "  keyValueService:\n    type: cassandra\n    contactPoints: \"{contact_points}\"\n    replicationFactor: \
         {replication_factor}\n"
    )
}

/// Runs a statement on the cluster, and answers its rows as text.
pub fn cql(statement: &str) -> Vec<Vec<String>> {
    let points = connection("").contact_points;
    let host = points[0].split(':').next().expect("there is a first part");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/cassandra.d/cql.py");
    let output = Command::new("python3").args(["-E", "-s", script, "--host", host, statement]).output();
    let output = output.expect("python3 can be run");
    assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("it is text");
    // Behind the line of names.
    text.lines().skip(1).map(|row| row.split('\t').map(str::to_owned).collect()).collect()
}

/// Removes what a test made. From a thread of its own: the test's runtime may be the one that is ending.
pub fn drop_namespace(namespace: &str) {
    let config = connection(namespace);
    let dropped = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let Ok(store) = CassandraStore::connect(config).await else { return };
            store.destroy().await.expect("the keyspace can be dropped");
        });
    });
    if dropped.join().is_err() && !std::thread::panicking() {
        panic!("the namespace {namespace} could not be removed");
    }
}

/// A cluster that tests may break: a throw-away one of `scripts/with-cassandra`.
pub struct Breakable(());

impl Breakable {
    /// Ends the program if the cluster is somebody's, or has another number of nodes.
    pub fn of_three() -> Breakable {
        let nodes = connection("").contact_points.len();
        let ours = ["ATLAS_CASSANDRA_RUN", "ATLAS_CASSANDRA_NET"].iter().all(|name| std::env::var_os(name).is_some());
        if nodes != 3 || !ours {
            super::without_server("cassandra", "this test kills nodes, so it wants those of scripts/with-cassandra 3");
        }
        Breakable(())
    }

    /// `scripts/cassandra COMMAND NODE`: kill, start, pause and resume.
    pub async fn node(&self, command: &str, node: usize) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/cassandra");
        let mut run = Command::new(script);
        // As long as it takes: what is tested is not how fast a node starts beside all that runs here.
        run.env("ATLAS_CASSANDRA_SECONDS", "300");
        run.args([command, &node.to_string()]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = tokio::task::spawn_blocking(move || run.status()).await.expect("no panic");
        let status = status.expect("the script can be run");
        assert!(status.success(), "scripts/cassandra {command} {node}: {status}");
    }
}
