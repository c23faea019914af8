//! A PostgreSQL server for tests, found by the PG* variables: what `scripts/with-postgres` sets.

use super::bounded::{self, STUCK_AFTER};
use atlas::config::{PostgresKvs, Secret};
use atlas_kvs_postgres::{PostgresConfig, PostgresStore};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

/// Connections of one store. Tests run side by side, and together they must not use up the server.
const POOL_SIZE: usize = 8;
/// How long to wait for a server that must come back, before the test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the server is reached, as the adapter has it.
///
/// Ends the program if there is no server: as passed, unless the lane is required.
pub fn connection(namespace: &str) -> PostgresConfig {
    if std::env::var_os("PGHOST").is_none_or(|host| host.is_empty()) {
        super::without_server("postgres", "PGHOST is not set; run scripts/test postgres");
    }
    let config = PostgresConfig::from_env(namespace).expect("the variables are fine");
    PostgresConfig { pool_size: POOL_SIZE, ..config }
}

/// How the server is reached, as the configuration has it.
pub fn settings() -> PostgresKvs {
    let connection = connection("");
    PostgresKvs {
        host: connection.host,
        port: connection.port,
        user: connection.user,
        password: Secret::from(&*std::env::var("PGPASSWORD").unwrap_or_default()),
        database: connection.dbname,
        pool_size: POOL_SIZE as u32,
        ..PostgresKvs::default()
    }
}

/// The same as a block of a configuration file, with fewer connections. The password goes into a file in `dir`.
pub fn yaml(dir: &Path) -> String {
    let PostgresKvs { host, port, user, database, .. } = settings();
    // An empty file is no password; without one, the server wants none.
    let mut given = String::new();
    if let Some(password) = std::env::var("PGPASSWORD").ok().filter(|password| !password.is_empty()) {
        let file = dir.join("password");
        std::fs::write(&file, password).expect("a file can be written");
        given = format!("    passwordFile: {}\n", file.display());
    }
    format!(
        "  keyValueService:\n    type: postgres\n    host: {host}\n    port: {port}\n    user: {user}\n    database: \
         {database}\n    poolSize: 4\n{given}"
    )
}

/// A connection of the test's own.
pub async fn client() -> Client {
    try_client().await.expect("the server can be reached")
}

async fn try_client() -> Result<Client, tokio_postgres::Error> {
    let config = connection("");
    let mut postgres = tokio_postgres::Config::new();
    postgres.host(&config.host).port(config.port).user(&config.user).dbname(&config.dbname);
    if let Ok(password) = std::env::var("PGPASSWORD") {
        postgres.password(password);
    }
    postgres.connect_timeout(Duration::from_secs(10));
    let (client, connection) = postgres.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Removes what a test made. From a thread of its own: the test's runtime may be the one that is ending.
pub fn drop_namespace(namespace: &str) {
    let config = connection(namespace);
    let dropped = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let dropping = async {
            let Ok(store) = PostgresStore::connect(config).await else { return };
            let schema = store.schema().to_owned();
            let client = client().await;
            // Whoever still uses it holds locks for the length of a statement only.
            for _ in 0..20 {
                let sql = format!("SET lock_timeout = '5s'; DROP SCHEMA IF EXISTS \"{schema}\" CASCADE");
                if client.batch_execute(&sql).await.is_ok() {
                    return;
                }
            }
            panic!("the schema {schema} could not be removed");
        };
        runtime.block_on(async { tokio::time::timeout(STUCK_AFTER, dropping).await.expect("it got stuck") });
    });
    if dropped.join().is_err() && !std::thread::panicking() {
        panic!("the namespace {namespace} could not be removed");
    }
}

/// How a server dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// All its processes stop at once, and it is started again.
    Immediate,
    /// SIGKILL for the one that started the others, which then end by themselves; started again.
    Postmaster,
    /// SIGKILL for one that serves a client. The server takes no chances, ends the others and recovers by itself.
    Backend,
}

/// A server that tests may break: a throw-away one of `scripts/with-postgres`.
pub struct Breakable {
    version: String,
    data: PathBuf,
}

impl Breakable {
    /// Ends the program if the server is somebody's.
    pub fn server() -> Breakable {
        let version = std::env::var("PGVERSION").unwrap_or_default();
        if version.is_empty() || std::env::var_os("PG_CLUSTER_CONF_ROOT").is_none() {
            super::without_server("postgres", "this test kills its server, so it wants that of scripts/with-postgres");
        }
        let mut command = Command::new("pg_conftool");
        let output = bounded::output(command.args(["-s", &version, "regress", "show", "data_directory"]));
        assert!(output.status.success(), "{output:?}");
        Breakable { version, data: String::from_utf8_lossy(&output.stdout).trim().into() }
    }

    /// Changes a setting that needs no restart. It stays.
    pub async fn set(&self, name: &str, value: &str) {
        let client = client().await;
        client.batch_execute(&format!("ALTER SYSTEM SET {name} = {value}")).await.expect("tests may do so");
        client.batch_execute("SELECT pg_reload_conf()").await.expect("tests may do so");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let row = client.query_one(&format!("SHOW {name}"), &[]).await.expect("it can be asked");
            if row.get::<_, &str>(0) == value {
                return;
            }
            assert!(Instant::now() < deadline, "{name} stays {}", row.get::<_, &str>(0));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills the server and waits until it serves again.
    pub async fn die(&self, death: Death) {
        match death {
            Death::Immediate => self.ctl(&["stop", "-m", "immediate"]).await,
            Death::Postmaster => {
                let file = std::fs::read_to_string(self.data.join("postmaster.pid")).expect("it is running");
                let pid: i32 = file.lines().next().and_then(|pid| pid.trim().parse().ok()).expect("a process id");
                kill(pid);
            }
            Death::Backend => {
                let sql = "SELECT pid FROM pg_stat_activity \
                           WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1";
                let row = client().await.query_one(sql, &[]).await.expect("somebody is connected");
                kill(row.get(0));
            }
        }
        let deadline = Instant::now() + PATIENCE;
        if death != Death::Backend {
            // In vain while the processes of the old one are still there.
            while !self.serves().await {
                assert!(Instant::now() < deadline, "the server does not start again");
                self.ctl(&["start"]).await;
            }
        }
        while !self.serves().await {
            assert!(Instant::now() < deadline, "the server does not recover");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn serves(&self) -> bool {
        try_client().await.is_ok()
    }

    async fn ctl(&self, arguments: &[&str]) {
        let mut command = Command::new("pg_ctlcluster");
        command.args([&*self.version, "regress"]).args(arguments);
        // What it says is in the server's log, which is shown when the lane fails.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        tokio::task::spawn_blocking(move || bounded::status(&mut command)).await.expect("no panic");
    }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    // It may have ended meanwhile.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}
