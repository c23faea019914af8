//! A directory with a configuration in it, programs that run there, and what they said.

#[allow(dead_code, unreachable_pub, clippy::duplicate_mod, reason = "other tests use the rest, and from further away")]
#[path = "../common/bounded.rs"]
mod bounded;

#[allow(dead_code, unreachable_pub, clippy::duplicate_mod, reason = "other tests use the rest, and from further away")]
#[path = "../common/checkout.rs"]
pub(crate) mod checkout;

pub(crate) use bounded::output;

use bounded::{end_of, line_of, output_of};
use serde_json::Value;
use std::io::{BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

pub(crate) const ATLAS: &str = env!("CARGO_BIN_EXE_atlas");

/// How often something that happens in another process is looked for, and how many times at most.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOOKS_MAX: usize = 3_000;

/// Waits for something that happens in another process.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..LOOKS_MAX {
        if holds() {
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    panic!("waited in vain until {what}");
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// The configuration of a store, by the directory of the stage and a name of the test's choice.
type StoreConfig = Box<dyn Fn(&Path, &str) -> String + Send + Sync>;

pub(crate) struct Stage {
    dir: TempDir,
    store_config: StoreConfig,
    /// Whether stores lie in directories of the stage.
    pub(crate) has_directories: bool,
}

impl Stage {
    /// With `atlas.yml`, which names the store `data`, and `restored.yml`, which names the store `restored`: directories
    /// of the stage, served on their sockets only.
    pub(crate) fn new() -> Stage {
        Stage::raise(true, |dir, store| {
            format!(
                "atlasdb:\n  namespace: operate\n  keyValueService: {{type: rocksdb, dataDir: {}}}\n  server: {{http: \
                 off, grpc: off}}\n  backup: {{lockLease: 1s}}\n",
                dir.join(store).display()
            )
        })
    }

    /// As [`new`](Self::new), with stores on a server.
    pub(crate) fn on_server(config: impl Fn(&Path, &str) -> String + Send + Sync + 'static) -> Stage {
        Stage::raise(false, config)
    }

    fn raise(has_directories: bool, config: impl Fn(&Path, &str) -> String + Send + Sync + 'static) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage { dir, store_config: Box::new(config), has_directories };
        stage.write("atlas.yml", &stage.config("data"));
        stage.write("restored.yml", &stage.config("restored"));
        stage
    }

    /// The configuration of a store.
    pub(crate) fn config(&self, store: &str) -> String {
        (self.store_config)(self.dir.path(), store)
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A program that runs here and inherits nothing.
    pub(crate) fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.dir.path());
        command
    }

    /// `atlas` with the words of a line, on `atlas.yml`.
    pub(crate) fn command(&self, line: &str) -> Command {
        self.command_with("atlas.yml", line)
    }

    pub(crate) fn command_with(&self, config: &str, line: &str) -> Command {
        let mut command = self.program(ATLAS);
        command.args(["--config", config]).args(line.split_whitespace());
        command
    }

    pub(crate) fn atlas(&self, line: &str) -> Ran {
        Ran::new(line, output(&mut self.command(line)))
    }

    pub(crate) fn atlas_with(&self, config: &str, line: &str) -> Ran {
        Ran::new(line, output(&mut self.command_with(config, line)))
    }

    /// Runs a script in bash, with `atlas` in the path.
    pub(crate) fn bash(&self, script: &str) -> Ran {
        let bin = self.path("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for name in ["atlas", "atlasdb"] {
            if !bin.join(name).exists() {
                std::os::unix::fs::symlink(ATLAS, bin.join(name)).unwrap();
            }
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut command = self.program("bash");
        Ran::new(script, output(command.env("PATH", path).args(["-euo", "pipefail", "-c", script])))
    }

    pub(crate) fn serve(&self) -> Server {
        self.serve_with(&[])
    }

    /// `atlas serve`, with more in its environment.
    pub(crate) fn serve_with(&self, environment: &[(&str, &str)]) -> Server {
        let mut command = self.command("serve");
        Server::start(command.envs(environment.iter().copied()))
    }

    /// A table with a few cells.
    pub(crate) fn make_accounts(&self) {
        self.atlas("table create accounts").ok();
        for (row, value) in [("alice", "100"), ("bob", "200"), ("carol", "300")] {
            self.atlas(&format!("kv put accounts {row} balance {value}")).ok();
        }
    }

    pub(crate) fn accounts(&self) -> String {
        self.atlas("kv scan accounts").ok()
    }

    pub(crate) fn restored_accounts(&self) -> String {
        self.atlas_with("restored.yml", "kv scan accounts").ok()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Names in a directory; none if there is no such directory.
    pub(crate) fn names_in(&self, name: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(name)) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// What a program did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) line: String,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn new(line: &str, output: Output) -> Ran {
        Ran {
            line: line.to_owned(),
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What it printed, without the line break at its end.
    pub(crate) fn ok(&self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout.strip_suffix('\n').unwrap_or(&self.stdout).to_owned()
    }

    /// Failed with this exit code, and said so on standard error.
    pub(crate) fn fails(&self, code: i32) -> &Ran {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(self.stderr.contains("error: "), "nothing is said on standard error: {self:#?}");
        self
    }

    /// And said this on standard error.
    pub(crate) fn says(&self, text: &str) -> &Ran {
        assert!(self.stderr.contains(text), "'{text}' is not said: {self:#?}");
        self
    }

    pub(crate) fn was_killed(&self) {
        assert_eq!(self.signal, Some(9), "it did not get to the fail point: {self:#?}");
    }

    /// The one document on standard output.
    pub(crate) fn document(&self) -> Value {
        let mut documents = serde_json::Deserializer::from_str(&self.stdout).into_iter::<Value>();
        let document =
            documents.next().unwrap_or_else(|| panic!("`{}` printed no document: {self:#?}", self.line)).unwrap();
        assert!(documents.next().is_none(), "more than one document: {self:#?}");
        assert_eq!(document["schema"], "atlas.cli/v1", "{self:#?}");
        assert_eq!(document["ok"], self.code == Some(0), "{self:#?}");
        document
    }
}

/// A program under way; killed if it is dropped.
pub(crate) struct Running {
    line: String,
    child: Option<Child>,
    /// What it printed, once a line of it was read.
    printed: Option<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) fn start(line: &str, command: &mut Command) -> Running {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running { line: line.to_owned(), child: Some(child), printed: None }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    #[allow(dead_code, reason = "other tests use it")]
    /// The first line it prints. What it prints later is in its end.
    pub(crate) fn line(&mut self) -> String {
        let out = self.child.as_mut().unwrap().stdout.take().unwrap();
        let (line, rest) = line_of(out).unwrap_or_else(|| panic!("it says nothing: {}", self.line));
        self.printed = Some(rest);
        line
    }

    pub(crate) fn interrupt(&self) {
        signal(self.pid(), rustix::process::Signal::INT);
    }

    pub(crate) fn terminate(&self) {
        signal(self.pid(), rustix::process::Signal::TERM);
    }

    /// True if there is nothing to do any more but to look at what it did.
    pub(crate) fn has_ended(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        status.rsplit(')').next().unwrap().trim_start().starts_with('Z')
    }

    /// Its end.
    pub(crate) fn end(mut self) -> Ran {
        let rest = self.printed.take().map(|mut printed| {
            std::thread::spawn(move || {
                let mut rest = Vec::new();
                printed.read_to_end(&mut rest).map(|_| rest)
            })
        });
        let mut output = output_of(self.child.take().unwrap(), &self.line);
        if let Some(rest) = rest {
            output.stdout = rest.join().unwrap().unwrap();
        }
        Ran::new(&self.line, output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `atlas serve`, ready; killed if it is dropped.
pub(crate) struct Server {
    child: Child,
}

impl Server {
    pub(crate) fn start(command: &mut Command) -> Server {
        let (server, line) = Server::start_and_say(command);
        assert_eq!(line, "ready\n");
        server
    }

    /// Also what it said when it was ready.
    pub(crate) fn start_and_say(command: &mut Command) -> (Server, String) {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut server = Server { child };
        let (line, _) = line_of(server.child.stdout.take().unwrap()).unwrap_or_else(|| panic!("it says nothing"));
        let mut stderr = server.child.stderr.take().unwrap();
        if line.is_empty() {
            let mut said = String::new();
            let _ = server.child.kill();
            stderr.read_to_string(&mut said).unwrap();
            panic!("it is not ready: {said}");
        }
        // Read, so that a server that says much does not wait for us.
        std::thread::spawn(move || drop(std::io::copy(&mut stderr, &mut std::io::sink())));
        (server, line)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and sees that it does.
    pub(crate) fn stop(mut self) {
        signal(self.pid(), rustix::process::Signal::TERM);
        assert_eq!(end_of(&mut self.child, "a server that was asked to end").code(), Some(0));
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// It killed itself, at a fail point.
    pub(crate) fn was_killed(mut self) {
        let status = end_of(&mut self.child, "a server on its way to a fail point");
        assert_eq!(status.signal(), Some(9), "it did not get to the fail point");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
