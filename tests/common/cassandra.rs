//! A Cassandra cluster for tests, found by the variables that `scripts/with-cassandra` sets.

use super::bounded::{self, STUCK_AFTER};
use super::checkout;
use super::small_disk::SmallDisk;
use atlas::config::CassandraKvs;
use atlas::kvs_api::KeyValueService;
use atlas_kvs_cassandra::{CassandraConfig, CassandraStore};
use rand::Rng;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

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
    ask(host_of(&points[0]), statement).unwrap_or_else(|refused| panic!("{statement}: {refused}"))
}

fn host_of(point: &str) -> &str {
    point.split(':').next().expect("there is a first part")
}

/// Runs a statement on one node, and answers its rows or what was said instead.
fn ask(host: &str, statement: &str) -> Result<Vec<Vec<String>>, String> {
    let script = checkout::file("scripts/cassandra.d/cql.py");
    let output = bounded::output(Command::new("python3").args(["-E", "-s", &script, "--host", host, statement]));
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).expect("it is text");
    // Behind the line of names.
    Ok(text.lines().skip(1).map(|row| row.split('\t').map(str::to_owned).collect()).collect())
}

/// Removes what a test made. From a thread of its own: the test's runtime may be the one that is ending.
pub fn drop_namespace(namespace: &str) {
    let config = connection(namespace);
    let dropped = std::thread::spawn(move || {
        if may_be_broken(&config) {
            return drop_everywhere(&config);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let dropping = async {
            let Ok(store) = CassandraStore::connect(config).await else { return };
            // A cluster that is busy with the next tests may break the connection over it. To drop what is gone is fine.
            while let Err(error) = store.destroy().await {
                eprintln!("the keyspace is not dropped yet: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        runtime.block_on(async { tokio::time::timeout(STUCK_AFTER, dropping).await.expect("it got stuck") });
    });
    if dropped.join().is_err() && !std::thread::panicking() {
        panic!("the namespace {namespace} could not be removed");
    }
}

/// Drops a keyspace of a cluster whose nodes tests break, and sees to it that every node has done so.
///
/// A node that was started a moment ago, and is still sent what it has missed, may fail to drop a keyspace in the middle
/// (Cassandra 5.0: `Unknown CF` in its migration stage). From then on it agrees with the others on no schema, and every
/// test after this one would fail for it, until it is started again. So it is.
fn drop_everywhere(config: &CassandraConfig) {
    let hosts: Vec<&str> = config.contact_points.iter().map(|point| host_of(point)).collect();
    let drop = format!("DROP KEYSPACE IF EXISTS {}", config.keyspace());
    for _ in 0..3 {
        let (deadline, mut round) = (Instant::now() + PATIENCE, 0);
        while Instant::now() < deadline {
            let late = behind(&hosts, &config.keyspace());
            if late.is_empty() {
                return;
            }
            // By one node at a time, and another one each time: any may be the one that does not follow.
            if let Err(refused) = ask(late[round % late.len()], &drop) {
                eprintln!("the keyspace is not dropped yet: {refused}");
            }
            round += 1;
            std::thread::sleep(Duration::from_secs(1));
        }
        for host in behind(&hosts, &config.keyspace()) {
            let number = 1 + hosts.iter().position(|other| *other == host).expect("it is one of them");
            eprintln!("node {number} does not follow the others' schema; it is started again");
            assert!(script(&["stop", &number.to_string()]).status.success(), "node {number} can't be stopped");
            let started = script(&["start", &number.to_string()]);
            assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        }
    }
    assert!(behind(&hosts, &config.keyspace()).is_empty(), "{drop}: some nodes still have it, or don't agree");
}

/// How long nodes may take to agree on a schema.
const PATIENCE: Duration = Duration::from_secs(30);

/// The nodes that have the keyspace, or another schema than most have, or don't answer.
fn behind<'h>(hosts: &[&'h str], keyspace: &str) -> Vec<&'h str> {
    let looking = format!("SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = '{keyspace}'");
    let schemas: Vec<Option<String>> = hosts
        .iter()
        .map(|host| {
            let found = ask(host, &looking).ok()?;
            let version = ask(host, "SELECT schema_version FROM system.local WHERE key = 'local'").ok()?;
            found.is_empty().then(|| version[0][0].clone())
        })
        .collect();
    let shared = |one: &Option<String>| schemas.iter().filter(|other| *other == one).count();
    let most = schemas.iter().filter(|one| one.is_some()).max_by_key(|one| shared(one)).cloned().flatten();
    hosts.iter().zip(&schemas).filter(|(_, one)| **one != most || one.is_none()).map(|(host, _)| *host).collect()
}

/// `scripts/cassandra` for the cluster that all tests share. A node may take as long to start as it does: what is tested is
/// not how fast that is beside all that runs here.
fn script(arguments: &[&str]) -> Output {
    let mut run = Command::new(checkout::file("scripts/cassandra"));
    bounded::output(run.env("ATLAS_CASSANDRA_SECONDS", "300").args(arguments).stdin(Stdio::null()))
}

/// Whether it is a cluster of three nodes of `scripts/with-cassandra`, and nobody else's.
fn may_be_broken(config: &CassandraConfig) -> bool {
    let ours = ["ATLAS_CASSANDRA_RUN", "ATLAS_CASSANDRA_NET"].iter().all(|name| std::env::var_os(name).is_some());
    config.contact_points.len() == 3 && ours
}

/// A cluster that tests may break: a throw-away one of `scripts/with-cassandra`.
pub struct Breakable(());

impl Breakable {
    /// Ends the program if the cluster is somebody's, or has another number of nodes.
    pub fn of_three() -> Breakable {
        if !may_be_broken(&connection("")) {
            super::without_server("cassandra", "this test kills nodes, so it wants those of scripts/with-cassandra 3");
        }
        Breakable(())
    }

    /// `scripts/cassandra COMMAND NODE`: kill, start, pause and resume.
    pub async fn node(&self, command: &str, node: usize) {
        let arguments = [command.to_owned(), node.to_string()];
        let running = tokio::task::spawn_blocking(move || script(&arguments.each_ref().map(String::as_str)).status);
        let status = running.await.expect("no panic");
        assert!(status.success(), "scripts/cassandra {command} {node}: {status}");
    }
}

/// A node of the test's own, beside the one that other tests share: with other settings, or to be broken. It is ended and
/// removed when dropped.
pub struct OwnNode {
    run: TempDir,
    net: String,
    variables: Vec<(&'static str, &'static str)>,
    disk: Option<SmallDisk>,
}

impl OwnNode {
    /// With these variables for `scripts/cassandra`. Ends the program where the lane has no server.
    pub fn start(variables: &[(&'static str, &'static str)]) -> OwnNode {
        OwnNode::start_on(variables, None).expect("it wants no disk")
    }

    /// With a directory of the node on a small disk: `data`, or `commitlog`. Nothing where nothing may be mounted, unless
    /// the lane is required. What it acknowledges is in its log: otherwise the last tenth of a second may be lost when
    /// its process dies.
    pub fn start_on_small_disk(part: &'static str) -> Option<OwnNode> {
        OwnNode::start_on(&[("ATLAS_CASSANDRA_COMMITLOG", "batch")], Some(part))
    }

    fn start_on(variables: &[(&'static str, &'static str)], part: Option<&str>) -> Option<OwnNode> {
        connection("");
        for _ in 0..3 {
            // Whoever has the address already is told by the script, and another one is taken.
            let (second, third) = (rand::rng().random_range(210..250), rand::rng().random_range(0..250));
            let run = tempfile::tempdir().expect("a directory can be made");
            let net = format!("127.{second}.{third}");
            let mut node = OwnNode { run, net, variables: variables.to_vec(), disk: None };
            if let Some(part) = part {
                let place = node.directory().join(part);
                std::fs::create_dir_all(&place).expect("a directory can be made");
                // Cassandra takes no data for a disk with less than 50 MiB.
                node.disk = Some(SmallDisk::mount_at(&place, 128, "cassandra")?);
            }
            let up = node.script(&["up", "1"]);
            if up.status.success() {
                return Some(node);
            }
            eprintln!("{}", String::from_utf8_lossy(&up.stderr));
        }
        panic!("the node does not start");
    }

    fn directory(&self) -> PathBuf {
        self.run.path().join("cluster/n1")
    }

    /// Where it serves.
    pub fn host(&self) -> String {
        format!("{}.1", self.net)
    }

    pub fn disk(&self) -> &SmallDisk {
        self.disk.as_ref().expect("it was started on one")
    }

    /// `scripts/cassandra` with these arguments, for this node.
    pub fn script(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(checkout::file("scripts/cassandra"));
        command.env("ATLAS_CASSANDRA_RUN", self.run.path().join("cluster")).env("ATLAS_CASSANDRA_NET", &self.net);
        command.env("ATLAS_CASSANDRA_SECONDS", "300");
        // A machine of Java that dies says why in a file, which is not for the directory it happens to be in. A node that
        // must find again what it wrote takes no short cuts; another one takes those of the shared node.
        let short_cuts = std::env::var("ATLAS_CASSANDRA_OPTS").ok().filter(|_| self.disk.is_none()).unwrap_or_default();
        let error_file = format!("-XX:ErrorFile={}/java-%p.log", self.run.path().display());
        command.env("ATLAS_CASSANDRA_OPTS", format!("{short_cuts} {error_file}"));
        command.envs(self.variables.iter().copied());
        bounded::output(command.args(arguments).stdin(Stdio::null()))
    }

    /// The same, and it must succeed.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.script(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("it is text")
    }
}

impl Drop for OwnNode {
    fn drop(&mut self) {
        // What is mounted can't be removed.
        let _ = self.script(&["kill", "1"]);
        self.disk = None;
        let _ = self.script(&["down"]);
    }
}
