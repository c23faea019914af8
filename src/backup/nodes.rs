//! Snapshots of a cluster, node by node, made by commands that the operator gives.
//!
//! The nodes take their snapshots at different moments, and that is right: everything committed below the backup
//! timestamp was settled before the first of them, and what came after is rolled back by the restore. What each node
//! must not do is to be missing: a quorum of copies would still be a store, but nobody could tell what it lacks.
//!
//! Each command is a line for the shell, run once for each node, on the machine that takes the backup:
//!
//! | command | environment besides `NODE` and `KEYSPACE` | must |
//! | --- | --- | --- |
//! | `snapshotCommand` | `TAG`, a name for the snapshot that no other has; `TARGET`, an empty directory | flush, take a snapshot of the keyspace and put its files into `TARGET` |
//! | `restoreCommand` | `SOURCE`, the directory with the files of one node; `TABLES`, a file | load them into the node, whose tables exist and are empty |
//! | `repairCommand` | | repair the whole keyspace in full, as one node of all |
//!
//! A restore makes the tables anew, and new tables have new names in the cluster: what lightweight transactions on the
//! old ones left behind in its nodes has nothing to do with them. `TABLES` tells which is which, a line for each: the
//! name that a table had when it was copied, a blank, the name of the table to load it into.
//!
//! The records of the layer are the one table that can't be loaded where it belongs: the marker of the restore stands
//! there already, and rows that an interrupted attempt removed would hide those that the next one loads, which were
//! written before. They are loaded into a table of their own, and taken over from there record by record once the nodes
//! were repaired.

use super::contents::{Contents, NodeTable, is_node_name};
use super::create::{self, BackupStep};
use super::files::{self, Jobs};
use super::manifest::{FILES_DIRECTORY, ManifestFile};
use super::restore::{self, RestoreStep};
use crate::schema::{RestoringRecord, internal, meta_table};
use crate::{Error, Result};
use atlas_kvs::{AtomicScan, KeyValueService, RowRange, Scan, TableKind, TableRef, Timestamp};
use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::join_all;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often a running command is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How much of what a failed command said is told, in bytes: of its beginning, where a program in Java says what is wrong
/// before it says where, and of its end.
const SAID_FIRST: u64 = 400;
const SAID_LAST: u64 = 300;

/// How the nodes of a cluster are snapshotted and restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCommands {
    /// Every node, by the name that the commands know it by; a node that is left out is a node that is missing.
    pub nodes: Vec<String>,
    /// The keyspace.
    pub keyspace: String,
    /// Takes the snapshot of a node; without it no backup of nodes can be taken.
    pub snapshot: Option<String>,
    /// Loads the files of a node; without it a backup can be taken and not restored.
    pub restore: Option<String>,
    /// Repairs, as one node of all; without it a backup can be taken and not restored.
    pub repair: Option<String>,
    /// How long a command may run.
    pub timeout: Duration,
}

impl NodeCommands {
    /// # Errors
    /// [`Error::Usage`] if the nodes can't be told apart, or not be named.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(node) = self.nodes.iter().find(|node| !is_node_name(node)) {
            return Err(Error::Usage(format!("'{}' can't name a node of the cluster", node.escape_default())));
        }
        if self.nodes.is_empty() || self.nodes.iter().collect::<BTreeSet<_>>().len() != self.nodes.len() {
            return Err(Error::Usage("the nodes of the cluster must be named, each once".to_owned()));
        }
        Ok(())
    }

    /// Makes sure that no node of the cluster is left out.
    ///
    /// # Errors
    /// [`Error::Usage`] as [`check`](Self::check), and [`Error::NodesMissing`].
    pub(super) async fn check_complete(&self, kvs: &dyn KeyValueService) -> Result<()> {
        self.check()?;
        let Some(cluster) = kvs.node_store() else { return Ok(()) };
        let found = cluster.nodes().await?;
        if found.len() == self.nodes.len() {
            return Ok(());
        }
        let (named, all) = (self.nodes.join(", "), found.join(", "));
        Err(Error::NodesMissing {
            what: format!("the configuration names {} nodes of {}", self.nodes.len(), found.len()),
            reason: format!("it names {named}, and the cluster consists of {all}; see keyValueService.nodes"),
        })
    }

    /// Takes the snapshots of all nodes at the same time, each into a directory of its name in `directory`.
    ///
    /// # Errors
    /// [`Error::NodesMissing`] naming every node whose command failed or left no files.
    pub(super) async fn snapshot_into(&self, jobs: &Jobs, tag: &str, directory: &Path) -> Result<()> {
        let runs = self.nodes.iter().map(|node| {
            let target = directory.join(node);
            let variables = vec![("TAG", tag.to_owned()), ("TARGET", target.display().to_string())];
            let run = self.run(jobs, self.snapshot.as_deref().unwrap_or_default(), node, variables);
            jobs.run(move || {
                files::make_dir(&target)?;
                if let Some(failure) = run.finish()? {
                    return Ok(Some(failure));
                }
                // A command that did nothing has not failed, and yet the node is missing.
                Ok(files::list(&target, |_| false)?.is_empty().then(|| "it put no files into TARGET".to_owned()))
            })
        });
        self.all_or_none("the snapshot", join_all(runs).await)
    }

    /// Lists and hashes what the nodes gave, and makes it durable.
    pub(super) async fn collect(
        &self,
        jobs: &Jobs,
        kvs: &dyn KeyValueService,
        directory: &Path,
        filled: &BTreeSet<TableRef>,
    ) -> Result<(Vec<ManifestFile>, Contents)> {
        let mut tables = Vec::new();
        for table in kvs.tables().await? {
            let parts = parts_of(kvs, &table.table).await?;
            let metadata = hex::encode(&table.metadata);
            let filled = filled.contains(&table.table);
            tables.push(NodeTable { table: table.table, kind: table.kind, metadata, parts, filled });
        }
        let root = directory.to_owned();
        let found = jobs.run(move || files::list(&root, |_| false)).await?;
        let meter = jobs.meter(BackupStep::Copy.name(), found.iter().map(|file| file.size).sum());
        let root = directory.to_owned();
        let hash = move |file: files::Found| {
            create::reached(BackupStep::CopyFile)?;
            let path = root.join(&file.path);
            let (size, checksum) = files::hash(&path, &meter)?;
            files::make_private(&path)?;
            let path = format!("{FILES_DIRECTORY}/{}", file.path);
            Ok(ManifestFile { path, size, blake3: checksum.to_hex().to_string() })
        };
        let listed = jobs.run_each(found, hash).await?;
        Ok((listed, Contents::Nodes { nodes: self.nodes.clone(), tables }))
    }

    /// Makes the tables in an empty cluster and loads what each node of the backup gave into one node.
    ///
    /// # Errors
    /// [`Error::NodesMissing`] naming every node whose command failed, or a table into which nothing was loaded.
    pub(super) async fn load(
        &self,
        jobs: &Jobs,
        kvs: &dyn KeyValueService,
        directory: &Path,
        nodes: &[String],
        tables: &[NodeTable],
    ) -> Result<()> {
        let mut renamed = String::new();
        for table in tables {
            let metadata = hex::decode(&table.metadata).map(Bytes::from);
            let metadata = metadata.map_err(|error| Error::corrupt("the manifest", error.to_string()))?;
            let place = place_of(&table.table);
            kvs.create_table(&place, table.kind, metadata).await?;
            let parts = parts_of(kvs, &place).await?;
            if parts.len() != table.parts.len() {
                let reason = format!("table '{}' consists of {} parts there", table.table, table.parts.len());
                return Err(Error::corrupt("the manifest", reason));
            }
            for (from, to) in table.parts.iter().zip(parts) {
                renamed.push_str(&format!("{from} {to}\n"));
            }
        }
        let renames = jobs.run(move || temporary(&renamed)).await?;
        let line = self.restore.as_deref().unwrap_or_default();
        // By name where the names are the same, in whatever order they are configured now.
        let same = self.nodes.iter().collect::<BTreeSet<_>>() == nodes.iter().collect();
        let runs = self.nodes.iter().zip(nodes).map(|(node, source)| {
            let source = if same { node } else { source };
            let source = directory.join(FILES_DIRECTORY).join(source);
            let tables = renames.path().display().to_string();
            let run = self.run(jobs, line, node, vec![("SOURCE", source.display().to_string()), ("TABLES", tables)]);
            jobs.run(move || {
                restore::reached(RestoreStep::CopyFile)?;
                run.finish()
            })
        });
        self.all_or_none("loading the files", join_all(runs).await)?;
        // A command that did nothing has not failed: nodetool ignores files that it does not take for those of the table.
        for table in tables.iter().filter(|table| table.filled) {
            if !is_filled(kvs, &place_of(&table.table), table.kind).await? {
                return Err(Error::NodesMissing {
                    what: format!("nothing was loaded into table '{}'", table.table),
                    reason: "restoreCommand said on every node that it was done; look into the logs of the nodes"
                        .to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Repairs every node, one after the other: a repair at the same time on all of them would do the work of each as
    /// often as there are copies.
    ///
    /// # Errors
    /// [`Error::NodesMissing`] naming the first node whose command failed.
    pub(super) async fn repair(&self, jobs: &Jobs) -> Result<()> {
        let line = self.repair.as_deref().unwrap_or_default();
        for node in &self.nodes {
            let run = self.run(jobs, line, node, Vec::new());
            if let Some(failure) = jobs.run(move || run.finish()).await? {
                return Err(missing("the repair", &[(node.as_str(), failure)]));
            }
        }
        Ok(())
    }

    /// Refuses to begin a restore that could not be finished.
    pub(super) fn check_restore(&self, nodes: &[String]) -> Result<()> {
        self.check()?;
        if self.restore.is_none() || self.repair.is_none() {
            return Err(Error::refused(
                "a backup of nodes is restored by commands, and the configuration names none",
                "set `restoreCommand` and `repairCommand` of the store to fill",
            ));
        }
        if nodes.len() != self.nodes.len() {
            return Err(Error::refused(
                format!("the backup is of {} nodes, and the store to fill has {}", nodes.len(), self.nodes.len()),
                "restore it into a cluster of as many nodes; a portable backup fits any",
            ));
        }
        Ok(())
    }

    fn all_or_none(&self, what: &str, answers: Vec<Result<Option<String>>>) -> Result<()> {
        let mut failures = Vec::new();
        for (node, answer) in self.nodes.iter().zip(answers) {
            if let Some(failure) = answer? {
                failures.push((node.as_str(), failure));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(missing(what, &failures)) }
    }

    fn run(&self, jobs: &Jobs, line: &str, node: &str, mut variables: Vec<(&'static str, String)>) -> Run {
        variables.extend([("NODE", node.to_owned()), ("KEYSPACE", self.keyspace.clone())]);
        Run { line: line.to_owned(), variables, timeout: self.timeout, cancel: jobs.token() }
    }
}

/// The tables that hold something.
pub(super) async fn filled_tables(kvs: &dyn KeyValueService) -> Result<BTreeSet<TableRef>> {
    let mut filled = BTreeSet::new();
    for table in kvs.tables().await? {
        if is_filled(kvs, &table.table, table.kind).await? {
            filled.insert(table.table);
        }
    }
    Ok(filled)
}

async fn is_filled(kvs: &dyn KeyValueService, table: &TableRef, kind: TableKind) -> Result<bool> {
    let all = RowRange::all();
    Ok(match kind {
        TableKind::Versioned => kvs.scan(table, Scan::new(all, Timestamp::MAX)).try_next().await?.is_some(),
        TableKind::Atomic => kvs.scan_atomic(table, AtomicScan::new(all)).try_next().await?.is_some(),
    })
}

/// The table that the files of a table are loaded into.
fn place_of(table: &TableRef) -> TableRef {
    if *table == meta_table() { copied_records() } else { table.clone() }
}

/// Where the records of the layer are loaded to.
fn copied_records() -> TableRef {
    internal("_copied_atlas")
}

/// Takes the records over that were loaded from the nodes. What was taken over already stays as it is: whoever did so may
/// have gone on from there. Repeatable.
pub(super) async fn adopt_records(kvs: &dyn KeyValueService) -> Result<()> {
    let copied = copied_records();
    if kvs.table(&copied).await?.is_none() {
        return Ok(());
    }
    let mut records = kvs.scan_atomic(&copied, AtomicScan::new(RowRange::all()));
    while let Some((cell, record)) = records.try_next().await? {
        // That of a restore long ago, at most.
        if cell.row != RestoringRecord::NAME {
            kvs.put_unless_exists(&meta_table(), &cell, record).await?;
        }
    }
    drop(records);
    Ok(kvs.drop_table(&copied).await?)
}

/// What the tools of the store call the parts of a table.
async fn parts_of(kvs: &dyn KeyValueService, table: &TableRef) -> Result<Vec<String>> {
    match kvs.node_store() {
        Some(cluster) => Ok(cluster.parts_of(table).await?),
        None => Ok(vec![table.name().to_owned()]),
    }
}

/// A file that goes away with what is returned.
fn temporary(content: &str) -> Result<tempfile::NamedTempFile> {
    let io = |error| Error::io("making a file with the names of tables", error);
    let mut file = tempfile::NamedTempFile::new().map_err(io)?;
    file.write_all(content.as_bytes()).map_err(io)?;
    Ok(file)
}

fn missing(what: &str, failures: &[(&str, String)]) -> Error {
    let nodes: Vec<&str> = failures.iter().map(|(node, _)| *node).collect();
    let reasons: Vec<String> = failures.iter().map(|(node, reason)| format!("{node}: {reason}")).collect();
    Error::NodesMissing { what: format!("{what} failed on node {}", nodes.join(", ")), reason: reasons.join("; ") }
}

/// A command of the operator, to be run on a thread that may block.
struct Run {
    line: String,
    variables: Vec<(&'static str, String)>,
    timeout: Duration,
    cancel: CancellationToken,
}

impl Run {
    /// Runs it to its end. Answers what went wrong, if anything did.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when nobody wants it any more; it is killed then, with all it started. [`Error::Io`] if
    /// it could not be started.
    fn finish(self) -> Result<Option<String>> {
        let mut said =
            tempfile::tempfile().map_err(|error| Error::io("making a file for the output of a command", error))?;
        let output = || said.try_clone().map_err(|error| Error::io("opening the output of a command", error));
        let (stdout, stderr) = (output()?, output()?);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &self.line]).envs(self.variables.iter().cloned()).stdin(Stdio::null());
        // A group of its own, so that what it started ends with it.
        let mut child = command
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(|error| Error::io("starting /bin/sh", error))?;
        let begun = Instant::now();
        let ended = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Ok(status),
                Ok(None) if self.cancel.is_cancelled() => break Err(Some(Error::Interrupted)),
                Ok(None) if begun.elapsed() > self.timeout => break Err(None),
                Ok(None) => std::thread::sleep(LOOK_EVERY),
                Err(error) => break Err(Some(Error::io("waiting for a command", error))),
            }
        };
        let status = match ended {
            Ok(status) => status,
            Err(why) => {
                kill(&mut child);
                let late = format!("it did not end within {} seconds", self.timeout.as_secs());
                return why.map_or(Ok(Some(late)), Err);
            }
        };
        if status.success() {
            return Ok(None);
        }
        let gist = gist(&mut said).unwrap_or_default();
        Ok(Some(if gist.is_empty() { status.to_string() } else { format!("{status}, {gist}") }))
    }
}

fn kill(child: &mut std::process::Child) {
    let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        // It may have ended this moment.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

/// The beginning and the end of what a command said, on one line.
fn gist(said: &mut File) -> std::io::Result<String> {
    let len = said.seek(SeekFrom::End(0))?;
    let mut part = |from: u64, length: u64| {
        said.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        Read::by_ref(said).take(length).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    if len <= SAID_FIRST + SAID_LAST {
        return part(0, len);
    }
    let (first, last): (String, std::io::Result<String>) = (part(0, SAID_FIRST)?, part(len - SAID_LAST, SAID_LAST));
    Ok(format!("{first} … {}", last?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::no_progress;

    fn run(line: &str, timeout: Duration, cancel: &CancellationToken) -> Result<Option<String>> {
        let variables = vec![("NODE", "n1".to_owned())];
        Run { line: line.to_owned(), variables, timeout, cancel: cancel.clone() }.finish()
    }

    #[test]
    fn a_command_tells_how_it_ended() {
        let (minute, cancel) = (Duration::from_secs(60), CancellationToken::new());
        assert_eq!(run("test $NODE = n1", minute, &cancel).expect("it runs"), None);
        let failure = run("echo one; echo \"no route to  host\" >&2; exit 7", minute, &cancel).expect("it runs");
        assert_eq!(failure.as_deref(), Some("exit status: 7, one no route to host"));
        let chatty = run("echo why; yes words | head -c 1000000; echo end; exit 1", minute, &cancel).expect("it runs");
        let chatty = chatty.expect("it failed");
        assert!(chatty.len() < 800 && chatty.contains("status: 1, why words") && chatty.ends_with("end"), "{chatty}");
        assert!(run("no-such-program-at-all", minute, &cancel).expect("it runs").expect("it failed").contains("127"));
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().expect("a directory");
        let pid_file = dir.path().join("pid");
        let line = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", pid_file.display());
        let cancel = CancellationToken::new();
        let late = run(&line, Duration::from_millis(500), &cancel).expect("it is killed").expect("it did not end");
        assert!(late.contains("did not end within"), "{late}");
        let cancelling = std::thread::spawn({
            let (cancel, pid_file) = (cancel.clone(), pid_file.clone());
            move || {
                let _ = std::fs::remove_file(&pid_file);
                while !pid_file.exists() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                cancel.cancel();
            }
        });
        assert!(matches!(run(&line, Duration::from_secs(60), &cancel), Err(Error::Interrupted)));
        cancelling.join().expect("it ends");
        let pid: i32 = std::fs::read_to_string(&pid_file).expect("it started").trim().parse().expect("a number");
        let is_gone = || {
            // A process that nobody has waited for yet is dead all the same.
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        for _ in 0..600 {
            if is_gone() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("what the command started is still there");
    }

    #[tokio::test]
    async fn every_missing_node_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let commands = NodeCommands {
            nodes: ["a", "b", "c"].map(str::to_owned).to_vec(),
            keyspace: "k".to_owned(),
            snapshot: Some("exit 1".to_owned()),
            restore: None,
            repair: None,
            timeout: Duration::from_secs(60),
        };
        let jobs = Jobs::owned(no_progress());
        let one_fails =
            NodeCommands { snapshot: Some("test $NODE != b && echo x > $TARGET/x".to_owned()), ..commands.clone() };
        let error = one_fails.snapshot_into(&jobs, "tag", dir.path()).await.expect_err("b is missing");
        assert_eq!(error.exit_code(), crate::exit::PARTIAL);
        assert!(error.to_string().contains("node b:"), "{error}");
        let dir = tempfile::tempdir().expect("a directory");
        let idle = NodeCommands { snapshot: Some("true".to_owned()), ..commands };
        let error = idle.snapshot_into(&jobs, "tag", dir.path()).await.expect_err("nobody did anything");
        assert!(error.to_string().contains("a, b, c"), "{error}");
    }

    #[test]
    fn names_of_nodes_are_names_of_directories() {
        let named = |nodes: &[&str]| NodeCommands {
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            keyspace: "k".to_owned(),
            snapshot: None,
            restore: None,
            repair: None,
            timeout: Duration::ZERO,
        };
        for bad in [&[][..], &["a", "a"], &["../x"], &["a/b"], &[""], &[".hidden"]] {
            assert!(matches!(named(bad).check(), Err(Error::Usage(_))), "{bad:?}");
        }
        named(&["10.0.0.1", "::1", "node-3.example.org:7199"]).check().expect("they are fine");
        assert!(matches!(named(&["a"]).check_restore(&["a".to_owned()]), Err(Error::Refused { .. })));
    }
}
