//! A server of a test's own, which it may stop, copy and fill.

use super::Namespace;
use atlas_kvs_postgres::PostgresConfig;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Gone when dropped, with all its data.
pub(crate) struct OwnServer {
    dir: PathBuf,
    pub(crate) port: u16,
}

impl OwnServer {
    /// A running server with these lines in its configuration. Everybody on this machine may log in as anyone.
    pub(crate) fn new(settings: &[&str]) -> OwnServer {
        let server = OwnServer::nowhere();
        let data = server.data();
        let options = ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"];
        run(program("initdb").args(options).arg("-D").arg(&data));
        server.start_first(settings);
        server
    }

    /// A running standby of another server.
    pub(crate) fn standby_of(primary: &OwnServer) -> OwnServer {
        let server = OwnServer::nowhere();
        let from = format!("host=127.0.0.1 port={} user=postgres", primary.port);
        let options = ["--no-sync", "--checkpoint=fast", "--write-recovery-conf", "--dbname", &from];
        run(program("pg_basebackup").args(options).arg("--pgdata").arg(server.data()));
        server.start_first(&[]);
        server
    }

    fn nowhere() -> OwnServer {
        // Ends the target where there is no lane for it.
        drop(super::config("nobody"));
        let made = run(as_server_user("mktemp").args(["-d", "/tmp/atlas-test-server.XXXXXX"]));
        let dir = String::from_utf8(made.stdout).expect("the name is text").trim().into();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        OwnServer { dir, port: listener.local_addr().expect("it is bound").port() }
    }

    fn start_first(&self, settings: &[&str]) {
        let own = ["fsync = off".to_owned(), format!("port = {}", self.port), self.socket_setting()];
        self.configure(&own.iter().map(String::as_str).chain(settings.iter().copied()).collect::<Vec<_>>());
        self.start();
    }

    fn socket_setting(&self) -> String {
        format!("unix_socket_directories = '{}'", self.dir.display())
    }

    /// Adds lines to the configuration, which count from the next start on.
    pub(crate) fn configure(&self, lines: &[&str]) {
        self.write("data/postgresql.auto.conf", &lines.join("\n"));
    }

    /// Adds to a file of the server, as its user.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let script = "printf '%s\\n' \"$2\" >> \"$1\" && chmod 600 \"$1\"";
        run(as_server_user("sh").args(["-c", script, "sh"]).arg(self.dir.join(name)).arg(text));
    }

    /// Puts a file of the server in the place of another one.
    pub(crate) fn replace(&self, from: &str, to: &str) {
        run(as_server_user("mv").arg(self.dir.join(from)).arg(self.dir.join(to)));
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn start(&self) {
        self.control(&["start", "-w", "-l"], Some(&self.dir.join("log")));
    }

    /// `fast`, or `immediate`, which is as a crash.
    pub(crate) fn stop(&self, mode: &str) {
        self.control(&["stop", "-w", "-m", mode], None);
    }

    pub(crate) fn promote(&self) {
        self.control(&["promote", "-w"], None);
    }

    fn control(&self, action: &[&str], last: Option<&Path>) {
        let mut command = program("pg_ctl");
        command.arg("-D").arg(self.data()).args(action).args(last);
        // What it starts keeps its outputs open: nobody may wait for their end.
        let done = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
        assert!(done.as_ref().is_ok_and(|status| status.success()), "pg_ctl {action:?}: {done:?}\n{}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub(crate) fn config(&self, namespace: &str) -> PostgresConfig {
        let host = "127.0.0.1".to_owned();
        PostgresConfig { host, port: self.port, pool_size: 8, ..PostgresConfig::new(namespace) }
    }

    pub(crate) fn namespace(&self, name: &str) -> Namespace {
        Namespace { config: self.config(name), remove: false }
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _ = program("pg_ctl").arg("-D").arg(self.data()).args(["stop", "-w", "-m", "immediate"]).output();
        let _ = as_server_user("rm").arg("-rf").arg(&self.dir).output();
    }
}

/// A program of PostgreSQL: of the version that `scripts/with-postgres` has started.
fn program(name: &str) -> Command {
    let version = std::env::var("PGVERSION").expect("PGVERSION says which PostgreSQL; use scripts/with-postgres");
    as_server_user(&format!("/usr/lib/postgresql/{version}/bin/{name}"))
}

/// A server refuses to run as root.
fn as_server_user(program: &str) -> Command {
    if run(&mut Command::new("id")).stdout.starts_with(b"uid=0(") {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", program]).current_dir("/");
        return command;
    }
    Command::new(program)
}

pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the program is there");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A file system of its own for a server, as small as it is told to be.
pub(crate) struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Nothing where nothing may be mounted, unless this lane is required.
    pub(crate) fn mount(server: &OwnServer, size: &str) -> Option<SmallDisk> {
        let path = server.dir().join("disk");
        run(as_server_user("mkdir").arg(&path));
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&path).output();
        if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
            let lanes = std::env::var("ATLAS_REQUIRE_LANES").unwrap_or_default();
            assert!(!lanes.split([',', ' ']).any(|lane| lane == "postgres"), "the disk can't be mounted: {mounted:?}");
            eprintln!("SKIP: no file system can be mounted here, so no disk was filled: {mounted:?}");
            return None;
        }
        run(Command::new("chown").arg("--reference").arg(server.dir()).arg(&path));
        run(Command::new("chmod").arg("700").arg(&path));
        Some(SmallDisk { path })
    }

    pub(crate) fn enlarge(&self, size: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.path));
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
