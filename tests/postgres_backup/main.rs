//! Backups of a store in a PostgreSQL server, as an operator takes and restores them: by one command and by hand, beside
//! a server that goes on serving, and with `kill -9` at every step of a restore.

// What can't be unwrapped here has failed the test.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "it serves other tests too")]
#[path = "../operate/stage.rs"]
mod stage;

use atlas::backup::RestoreStep;
use common::{bounded, postgres};
use stage::{Server, Stage};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The namespace of the pages, which each test has in databases of its own.
const NAMESPACE: &str = "bank";

/// A directory with configurations: `app.yml` and `atlas.yml` of a store in the database `from`, `restored.yml` of one in
/// `into`. Both databases are removed in the end.
struct Scene {
    stage: Stage,
    from: String,
    into: String,
}

impl Scene {
    fn new() -> Scene {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // Ends the program where there is no server.
        let settings = postgres::settings();
        let name = format!("backup_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let scene = Scene { stage: Stage::new(), from: format!("{name}_from"), into: format!("{name}_into") };
        for database in [&scene.from, &scene.into] {
            psql("postgres", &format!("CREATE DATABASE {database}"));
        }
        scene.stage.write("password", &std::env::var("PGPASSWORD").unwrap_or_default());
        scene.configure("atlas.yml", &scene.from, settings.port);
        scene.configure("app.yml", &scene.from, settings.port);
        scene.configure("restored.yml", &scene.into, settings.port);
        scene.stage.make_accounts();
        scene
    }

    fn configure(&self, name: &str, database: &str, port: u16) {
        let settings = postgres::settings();
        // An empty file is no password; without one, the server wants none.
        let password = match std::env::var("PGPASSWORD") {
            Ok(password) if !password.is_empty() => {
                format!("    passwordFile: {}\n", self.stage.path("password").display())
            }
            _ => String::new(),
        };
        // Nothing is swept by itself: the past is read here as it was, and nobody has pinned it.
        self.stage.write(
            name,
            &format!(
                "atlasdb:\n  namespace: {NAMESPACE}\n  leader: {{lease: 1s}}\n  backup: {{lockLease: 1s}}\n  sweep: \
                 {{interval: 1h}}\n  server: {{http: off, grpc: \"127.0.0.1:0\"}}\n  keyValueService:\n    type: \
                 postgres\n    host: {}\n    port: {port}\n    user: {}\n    database: {database}\n    poolSize: \
                 6\n{password}",
                settings.host, settings.user,
            ),
        );
    }

    fn serve(&self) -> Server {
        self.stage.serve()
    }

    /// A script with the variables that lead the server's own tools to `database`.
    fn bash(&self, database: &str, script: &str) -> stage::Ran {
        let mut exports = format!("export PGDATABASE={database}\n");
        for name in ["PGHOST", "PGPORT", "PGUSER", "PGPASSWORD"] {
            if let Ok(value) = std::env::var(name) {
                exports.push_str(&format!("export {name}='{}'\n", value.replace('\'', r"'\''")));
            }
        }
        self.stage.bash(&format!("{exports}{script}"))
    }

    fn assert_restored(&self, config: &str, before: &str) {
        assert_eq!(self.stage.atlas_with(config, "kv scan accounts").ok(), before, "what came later is gone");
        assert_eq!(self.stage.atlas_with(config, "backup-lock --status").ok(), "free");
        let findings = self.stage.atlas_with(config, "doctor --check all").ok();
        assert!(findings.lines().all(|line| !line.starts_with("fail")), "{findings}");
        self.stage.atlas_with(config, "kv put accounts dave balance 1").ok();
        assert_eq!(self.stage.atlas_with(config, "kv get accounts dave balance").ok(), "1");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for database in [&self.from, &self.into] {
            let sql = format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)");
            let dropped =
                bounded::output(Command::new("psql").args(["--quiet", "--dbname=postgres", "--command", &sql]));
            assert!(std::thread::panicking() || dropped.status.success(), "{sql}: {dropped:?}");
        }
    }
}

fn psql(database: &str, sql: &str) {
    let arguments = ["--quiet", "--set=ON_ERROR_STOP=1", &format!("--dbname={database}"), &format!("--command={sql}")];
    assert!(bounded::status(Command::new("psql").args(arguments)).success(), "{sql}");
}

/// The program that Debian keeps out of the path, of the version that the tests' server has or else of the latest.
fn pg_ctl() -> String {
    let version = std::env::var("PGVERSION").ok();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let names = versions.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let chosen = names.filter(|name| version.as_ref().is_none_or(|version| version == name)).max();
    let name = chosen.expect("PostgreSQL lies where Debian puts it, as scripts/with-postgres wants it");
    format!("/usr/lib/postgresql/{name}/bin/pg_ctl")
}

/// The commands in the fences of a section of the page.
fn commands_of(section: &str) -> Vec<String> {
    let page = include_str!("../../docs/backup-postgres.md");
    let (_, rest) = page.split_once(&format!("\n## {section}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let commands = section.split("```sh\n").skip(1).flat_map(|block| block.split("```").next().unwrap().lines());
    commands.map(str::to_owned).collect()
}

#[test]
fn one_command_backs_up_a_served_store_and_one_restores_it() {
    let scene = Scene::new();
    let server = scene.serve();
    let before = scene.stage.accounts();
    let writing = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..20 {
                scene.stage.atlas(&format!("kv put accounts later balance {round}")).ok();
            }
        });
        let taken = scene.stage.atlas("backup create --to repo --name one -o json").document();
        writer.join().unwrap();
        taken
    });
    let backup = &writing["data"];
    assert_eq!((&backup["method"], &backup["store"]), (&"stream".into(), &"postgres".into()), "{backup}");
    let at = backup["backup_ts"].as_u64().unwrap();
    let expected = scene.stage.atlas(&format!("kv scan accounts --at {at}")).ok();
    assert!(expected.starts_with(&before), "{expected}");
    scene.stage.atlas("backup verify one --repo repo").ok();
    scene.stage.atlas("backup restore one --repo repo --into restored.yml").ok();
    server.stop();
    scene.assert_restored("restored.yml", &expected);
    // It is another store, and full.
    scene.stage.atlas("backup restore one --repo repo --into restored.yml").fails(9).says("empty");
    scene.stage.atlas("backup restore one --repo repo --into atlas.yml").fails(9).says("empty");
}

#[test]
fn a_portable_backup_goes_to_a_directory_and_back() {
    let scene = Scene::new();
    let before = scene.stage.accounts();
    scene.stage.atlas("backup create --portable --to repo --name away").ok();
    scene.stage.write("local.yml", &scene.stage.config("local"));
    scene.stage.atlas("backup restore away --repo repo --into local.yml").ok();
    assert_eq!(scene.stage.atlas_with("local.yml", "kv scan accounts").ok(), before);
    scene.stage.atlas_with("local.yml", "kv put accounts erin balance 5").ok();
    scene.stage.atlas_with("local.yml", "backup create --portable --to repo --name back").ok();
    scene.stage.atlas("backup restore back --repo repo --into restored.yml").ok();
    assert_eq!(scene.stage.atlas_with("restored.yml", "kv get accounts erin balance").ok(), "5");
    let accounts = scene.stage.atlas_with("local.yml", "kv scan accounts").ok();
    scene.assert_restored("restored.yml", &accounts);
}

#[test]
fn a_restore_killed_at_any_step_looks_whole_to_nobody_and_can_be_finished() {
    let scene = Scene::new();
    let before = scene.stage.accounts();
    scene.stage.atlas("backup create --to repo --name one").ok();
    for step in RestoreStep::ALL {
        let mut command = scene.stage.command("backup restore one --repo repo --into restored.yml");
        let ran = stage::Ran::new("backup restore", stage::output(command.env("ATLAS_KILL_AT", step.fail_point())));
        ran.was_killed();
        if step <= RestoreStep::Marker {
            scene.stage.atlas("backup restore one --repo repo --into restored.yml").ok();
        } else {
            for line in ["kv scan accounts", "timestamp fast-forward -t 5", "timestamp fetch"] {
                scene.stage.atlas_with("restored.yml", line).fails(9).says("--resume");
            }
            scene.stage.atlas("backup restore one --repo repo --into restored.yml").fails(9).says("--resume");
            scene.stage.atlas("backup restore --resume --into restored.yml").ok();
        }
        assert_eq!(scene.stage.atlas_with("restored.yml", "kv scan accounts").ok(), before, "{step:?}");
        psql(&scene.into, &format!("DROP SCHEMA atlas_{NAMESPACE} CASCADE"));
    }
}

#[test]
fn the_page_about_pg_dump_works_as_it_stands() {
    let scene = Scene::new();
    let before = scene.stage.accounts();
    let server = scene.serve();
    for command in commands_of("Take it with pg_dump") {
        scene.bash(&scene.from, &command).ok();
        scene.stage.atlas("kv put accounts alice balance later").ok();
    }
    server.stop();
    // Into another database: the configuration names it from now on.
    scene.configure("app.yml", &scene.into, postgres::settings().port);
    let commands = commands_of("Restore it with pg_restore");
    assert_eq!(commands.len(), 6);
    for command in commands {
        scene.bash(&scene.into, &command).ok();
    }
    scene.assert_restored("app.yml", &before);
    // What was lost when the old database is dropped is nothing but what came after the backup.
    assert!(scene.stage.accounts().contains("later"));
}

/// A server on the files of a copy; it is stopped, and its directory given back, in the end.
struct Restored<'a> {
    scene: &'a Scene,
    port: u16,
}

impl Restored<'_> {
    /// As the documentation has it, except that no server runs as root: `pg_ctl` is a script that changes the user then.
    fn bash(&self, script: &str) -> stage::Ran {
        self.scene.bash(&self.scene.from, &format!("export PGPORT={}\n{script}", self.port))
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        let stopped = self.bash("test ! -e restored/postmaster.pid || pg_ctl --pgdata=restored --mode=immediate stop");
        assert!(std::thread::panicking() || stopped.code == Some(0), "{stopped:?}");
    }
}

#[test]
fn the_page_about_pg_basebackup_works_as_it_stands() {
    let scene = Scene::new();
    let before = scene.stage.accounts();
    let server = scene.serve();
    for command in commands_of("Take it with pg_basebackup") {
        scene.bash(&scene.from, &command).ok();
        scene.stage.atlas("kv put accounts alice balance later").ok();
    }
    server.stop();

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    scene.configure("app.yml", &scene.from, port);
    let is_root = rustix::process::getuid().is_root();
    let program = pg_ctl();
    let wrapper = if is_root {
        format!(
            "#!/bin/sh\nchown -R postgres restored\ntouch restored.log\nchown postgres restored.log\nexec setpriv --reuid=postgres --regid=postgres --init-groups {program} \"$@\"\n"
        )
    } else {
        format!("#!/bin/sh\nexec {program} \"$@\"\n")
    };
    scene.stage.write("bin/pg_ctl", &wrapper);
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(scene.stage.path("bin/pg_ctl"), executable.clone()).unwrap();
    std::fs::set_permissions(scene.stage.path(""), executable).unwrap();
    let restored = Restored { scene: &scene, port };
    for command in commands_of("Restore it from pg_basebackup") {
        if command.starts_with("pg_ctl ") {
            // On Debian the configuration lies elsewhere, which the page says; this is the least there is.
            let configure = "if ! test -e restored/postgresql.conf; then \
                echo \"listen_addresses = '127.0.0.1'\" > restored/postgresql.conf; \
                echo \"unix_socket_directories = '/tmp'\" >> restored/postgresql.conf; \
                echo 'host all all 127.0.0.1/32 trust' > restored/pg_hba.conf; : > restored/pg_ident.conf; fi";
            restored.bash(configure).ok();
        }
        restored.bash(&command).ok();
    }
    scene.assert_restored("app.yml", &before);
}
