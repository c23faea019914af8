//! Stores on servers: streams, clusters of nodes, and restores into a namespace, which is filled once or finished.

mod backup_support;

use atlas::backup::restore::{restore, resume};
use atlas::backup::verify::verify;
use atlas::backup::{Contents, NodeCommands, RestoreStep, StoreTarget};
use atlas::config::{AtlasConfig, CommitModeChoice};
use atlas::ops::{Operations, no_progress};
use atlas::transaction::entry::CleanedWindows;
use atlas::{Atlas, Error, exit};
use atlas_kvs::KeyValueService;
use backup_support::accounts::{filled, memory, open, portable_request, restore_into, state};
use backup_support::{
    Pretender, Snapshots, Source, create, empty_server, merge_into, open_repository, parts_of, pretended_with,
    server_target, state_at, visible,
};
use fail::FailScenario;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_any_step_leaves_a_namespace_to_be_finished() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("a directory");
    let atlas = filled(&memory(), CommitModeChoice::Auto).await;
    let info = atlas
        .backup_create(portable_request(&dir.path().join("repo"), "one"), no_progress())
        .await
        .expect("it is taken");
    let expected = state(&atlas, info.backup_ts).await;
    for step in RestoreStep::ALL {
        let kvs = memory();
        fail::cfg(step.fail_point(), "return").expect("the action exists");
        let error = restore_into(dir.path(), "one", &server_target(&kvs)).await.expect_err("it is hit");
        assert!(error.to_string().contains(step.fail_point()), "{step:?}: {error}");
        fail::remove(step.fail_point());
        if step <= RestoreStep::Marker {
            restore_into(dir.path(), "one", &server_target(&kvs)).await.expect("nothing was begun");
        } else {
            let refused = Atlas::with_store(AtlasConfig::default(), Arc::clone(&kvs)).await.expect_err("not whole");
            assert!(refused.hint().expect("a way on").contains("--resume"), "{step:?}");
            let again = restore_into(dir.path(), "one", &server_target(&kvs)).await.expect_err("it was begun");
            assert_eq!(again.exit_code(), exit::REFUSED, "{step:?}: {again}");
            // A second time on the way, at the last step.
            fail::cfg(RestoreStep::RemoveMarker.fail_point(), "return").expect("the action exists");
            resume(&server_target(&kvs), None, &no_progress()).await.expect_err("it is hit");
            fail::remove(RestoreStep::RemoveMarker.fail_point());
            let report = resume(&server_target(&kvs), None, &no_progress()).await.expect("it goes on");
            assert!(report.resumed, "{step:?}");
        }
        assert_eq!(state(&open(&kvs, CommitModeChoice::Auto).await, None).await, expected, "{step:?}");
        let nothing = resume(&server_target(&kvs), None, &no_progress()).await.expect_err("it is finished");
        assert_eq!(nothing.exit_code(), exit::NOT_FOUND, "{step:?}");
    }
    scenario.teardown();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_restores_into_one_namespace_exclude_each_other() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("a directory");
    let atlas = filled(&memory(), CommitModeChoice::Auto).await;
    atlas
        .backup_create(portable_request(&dir.path().join("repo"), "one"), no_progress())
        .await
        .expect("it can be taken");
    let kvs = memory();
    let (told, mut reached) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    fail::cfg_callback("restore::copy_file", move || {
        let _ = told.send(());
        // Until the other side is gone.
        let _ = wait.lock().expect("nobody panics with it").recv();
    })
    .expect("it can be set");
    let first = tokio::spawn({
        let (directory, target) = (dir.path().to_owned(), server_target(&kvs));
        async move { restore_into(&directory, "one", &target).await }
    });
    reached.recv().await.expect("it copies");
    // The first is alive: it renews its claim, though it stands still.
    for _ in 0..3 {
        let error = resume(&server_target(&kvs), None, &no_progress()).await.expect_err("the first works");
        assert!(matches!(error, Error::StoreInUse { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    }
    fail::remove("restore::copy_file");
    drop(go_on);
    first.await.expect("it ends").expect("it can be restored");
    open(&kvs, CommitModeChoice::Auto).await;
    scenario.teardown();
}

/// Transactions that go on until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn on(source: &Arc<Source>) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..3).map(|writer| {
            let (source, stop) = (Arc::clone(source), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut row = writer;
                while !stop.load(Ordering::Relaxed) {
                    source.transact(row % backup_support::ROWS).await;
                    row += 7;
                    // The fake stores read everything one by one: their tables should not outgrow them.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        });
        let writers = writers.collect();
        Load { stop, writers }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.expect("it writes");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stream_taken_while_transactions_run_restores_exactly_the_state_at_its_timestamp() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("a directory");
    let source = Arc::new(pretended_with(dir.path(), Snapshots::Streams).await);
    let load = Load::on(&source);
    let info = create(&source, &dir.path().join("repo"), Some("live")).await.expect("it can be taken");
    load.end().await;
    assert_eq!(info.method, "stream");
    let repository = open_repository(&dir.path().join("repo"));
    let manifest = repository.manifest("live").await.expect("it is complete");
    let Contents::Stream { parts } = &manifest.contents else { panic!("{:?}", manifest.contents) };
    assert!(parts.iter().any(|part| part.files > 1), "{parts:?}");
    verify(&repository, "live", None, &no_progress()).await.expect("it is sound");

    let kvs = empty_server(dir.path(), Snapshots::Streams);
    let report = restore(&repository, "live", &server_target(&kvs), &no_progress()).await.expect("it can be restored");
    let log = source.log.lock().await.clone();
    let backup_ts = info.backup_ts.expect("it is complete");
    assert!(log.iter().any(|(commit_ts, ..)| *commit_ts > backup_ts), "transactions ran on");
    assert_eq!(visible(&kvs).await, state_at(&log, backup_ts));
    assert_ne!(report.store_id, manifest.store_id);

    // Neither into a directory nor into another kind of store.
    let other = memory();
    let error = restore(&repository, "live", &server_target(&other), &no_progress()).await.expect_err("another kind");
    assert_eq!(error.exit_code(), exit::REFUSED);
    scenario.teardown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_did_not_last_is_no_backup() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = Pretender::new(dir.path());
    (store.snapshots, store.snapshot_fails) = (Snapshots::Streams, true);
    let source = Arc::new(Source::new(Arc::new(store), None).await);
    let error = create(&source, &dir.path().join("repo"), Some("one")).await.expect_err("it did not last");
    assert_eq!(error.exit_code(), exit::UNAVAILABLE);
    assert!(open_repository(&dir.path().join("repo")).list().await.expect("it is listed").is_empty());
    assert_eq!(source.lock.status().await.expect("it can be read"), None);
    scenario.teardown();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_any_step_of_restoring_a_stream_leaves_it_to_be_finished() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("a directory");
    let source = Arc::new(pretended_with(dir.path(), Snapshots::Streams).await);
    let info = create(&source, &dir.path().join("repo"), Some("one")).await.expect("it can be taken");
    let expected = state_at(&*source.log.lock().await, info.backup_ts.expect("it is complete"));
    for step in RestoreStep::ALL {
        let kvs = empty_server(dir.path(), Snapshots::Streams);
        // In the middle of the copy, some parts are there already.
        let action = if step == RestoreStep::CopyFile { "3*off->return" } else { "return" };
        fail::cfg(step.fail_point(), action).expect("the action exists");
        restore_into(dir.path(), "one", &server_target(&kvs)).await.expect_err("it is hit");
        fail::remove(step.fail_point());
        if step <= RestoreStep::Marker {
            restore_into(dir.path(), "one", &server_target(&kvs)).await.expect("nothing was begun");
        } else {
            resume(&server_target(&kvs), None, &no_progress()).await.expect("it goes on");
        }
        assert_eq!(visible(&kvs).await, expected, "{step:?}");
    }
    scenario.teardown();
}

// ---- clusters of nodes

/// Nodes that hold all the same, as far as each knows. Their commands are shell, and what the commands ask for is done here:
/// a node's snapshot is what the store holds when it is its turn, and what nodes load is merged by a repair.
struct Cluster {
    control: PathBuf,
    commands: NodeCommands,
}

const NODES: [&str; 3] = ["10.0.0.1", "10.0.0.2", "::3"];

impl Cluster {
    fn new(directory: &Path) -> Cluster {
        let control = directory.join("control");
        std::fs::create_dir(&control).expect("it can be made");
        // Asks, waits for the answer, and puts it where it belongs.
        let ask = |verb: &str, what: &str| {
            format!(
                "cd '{}' && echo \"{what}\" > $NODE.{verb}.new && mv $NODE.{verb}.new $NODE.{verb} && \
                 while ! test -e $NODE.done; do test -e $NODE.failed && exit 1; sleep 0.01; done; rm $NODE.done",
                control.display()
            )
        };
        let commands = NodeCommands {
            nodes: NODES.map(str::to_owned).to_vec(),
            keyspace: "atlas_bank".to_owned(),
            snapshot: Some(ask("snapshot", "$TARGET")),
            restore: Some(ask("restore", "$SOURCE|$TABLES")),
            repair: Some(ask("repair", "$KEYSPACE")),
            timeout: Duration::from_secs(60),
        };
        Cluster { control, commands }
    }

    fn file(&self, node: &str, verb: &str) -> PathBuf {
        self.control.join(format!("{node}.{verb}"))
    }

    /// What a node's command asks for, once it does.
    async fn asked(&self, node: &str, verb: &str) -> PathBuf {
        let path = self.file(node, verb);
        for _ in 0..3000 {
            if let Ok(line) = std::fs::read_to_string(&path) {
                std::fs::remove_file(&path).expect("it is there");
                return line.trim().into();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("node {node} was never asked for a {verb}");
    }

    fn done(&self, node: &str) {
        std::fs::write(self.file(node, "done"), "").expect("it can be written");
    }

    /// Takes the snapshots, one node after the other, with some time between them.
    async fn take_snapshots(&self, kvs: Arc<dyn KeyValueService>) {
        for node in NODES {
            let tables = self.asked(node, "snapshot").await.join("tables");
            std::fs::create_dir_all(&tables).expect("it can be made");
            for (name, content) in parts_of(kvs.as_ref()).await.expect("it can be read") {
                std::fs::write(tables.join(name), content).expect("it can be written");
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
            self.done(node);
        }
    }

    /// Loads what each node is given. What all of them hold together is what is seen, by a quorum at least.
    async fn load(&self, kvs: Arc<dyn KeyValueService>) {
        let mut sources: Vec<PathBuf> = Vec::new();
        let mut renames = PathBuf::new();
        for node in NODES {
            let asked = self.asked(node, "restore").await.into_os_string().into_string().expect("it is text");
            let (source, tables) = asked.split_once('|').expect("two paths");
            sources.push(source.into());
            renames = tables.into();
        }
        // The node that was last knows the latest, as the cluster's own timestamps would tell.
        sources.reverse();
        merge_into(kvs.as_ref(), &sources, &renames).await;
        for node in NODES {
            self.done(node);
        }
    }

    /// Repairs, and looks that nothing was cleaned before.
    async fn repair(&self, kvs: Arc<dyn KeyValueService>) {
        for node in NODES {
            assert_eq!(self.asked(node, "repair").await, Path::new("atlas_bank"));
            let windows = CleanedWindows::load(Arc::clone(&kvs)).await.expect("they can be read");
            assert_eq!(windows, CleanedWindows::default(), "cleaned before all nodes were repaired");
            self.done(node);
        }
    }
}

fn nodes_target(kvs: &Arc<dyn KeyValueService>, commands: &NodeCommands) -> StoreTarget {
    server_target(kvs).with_nodes(commands.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_snapshotted_one_after_the_other_restore_exactly_the_state_at_the_timestamp() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = Arc::new(Cluster::new(dir.path()));
    let mut source = pretended_with(dir.path(), Snapshots::None).await;
    source.nodes = Some(cluster.commands.clone());
    let source = Arc::new(source);
    let load = Load::on(&source);
    let nodes = tokio::spawn({
        let (cluster, kvs) = (Arc::clone(&cluster), Arc::clone(&source.kvs));
        async move { cluster.take_snapshots(kvs).await }
    });
    let info = create(&source, &dir.path().join("repo"), Some("one")).await.expect("it can be taken");
    nodes.await.expect("they are there");
    load.end().await;
    assert_eq!(info.method, "nodes");
    let repository = open_repository(&dir.path().join("repo"));
    verify(&repository, "one", None, &no_progress()).await.expect("it is sound");
    let manifest = repository.manifest("one").await.expect("it is complete");
    let of_node = |node: &str| {
        let file = manifest.files.iter().find(|file| file.path == format!("files/{node}/tables/table-2"));
        file.expect("it gave one").blake3.clone()
    };
    assert_ne!(of_node(NODES[0]), of_node(NODES[2]), "they were taken at different times");

    // Other commands, other nodes: said before anything is written.
    let kvs = empty_server(dir.path(), Snapshots::None);
    for (what, target) in [
        ("no commands", server_target(&kvs)),
        ("no repair", nodes_target(&kvs, &NodeCommands { repair: None, ..cluster.commands.clone() })),
        (
            "two nodes",
            nodes_target(&kvs, &NodeCommands { nodes: vec!["a".into(), "b".into()], ..cluster.commands.clone() }),
        ),
    ] {
        let error = restore(&repository, "one", &target, &no_progress()).await.expect_err(what);
        assert_eq!(error.exit_code(), exit::REFUSED, "{what}: {error}");
    }
    assert!(kvs.tables().await.expect("they are listed").is_empty());

    let nodes = tokio::spawn({
        let (cluster, kvs) = (Arc::clone(&cluster), Arc::clone(&kvs));
        async move {
            cluster.load(Arc::clone(&kvs)).await;
            cluster.repair(kvs).await;
        }
    });
    let target = nodes_target(&kvs, &cluster.commands);
    let report = restore(&repository, "one", &target, &no_progress()).await.expect("it can be restored");
    nodes.await.expect("they are there");
    assert!(report.clean.rolled_back > 0, "transactions ran on while the nodes were snapshotted");
    let backup_ts = info.backup_ts.expect("it is complete");
    assert_eq!(visible(&kvs).await, state_at(&*source.log.lock().await, backup_ts));
    scenario.teardown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_node_makes_a_backup_void_and_a_restore_to_be_finished() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = Arc::new(Cluster::new(dir.path()));
    let mut source = pretended_with(dir.path(), Snapshots::None).await;
    let tags = dir.path().join("tags");
    source.nodes = Some(NodeCommands {
        snapshot: Some(format!(
            "echo $TAG > {}.$NODE && test $NODE != {} && echo $KEYSPACE > $TARGET/x",
            tags.display(),
            NODES[1]
        )),
        ..cluster.commands.clone()
    });
    let source = Arc::new(source);
    let error = create(&source, &dir.path().join("repo"), Some("one")).await.expect_err("a node is missing");
    assert_eq!((error.exit_code(), error.code()), (exit::PARTIAL, "NODES_MISSING"));
    assert!(error.to_string().contains(&format!("node {}:", NODES[1])), "{error}");
    assert!(open_repository(&dir.path().join("repo")).list().await.expect("it is listed").is_empty(), "it is void");
    assert_eq!(source.lock.status().await.expect("it can be read"), None, "the lock is released");

    // A node may still have the snapshot of the attempt before: the next one's has another name, on all nodes the same.
    let told = || NODES.map(|node| std::fs::read_to_string(format!("{}.{node}", tags.display())).expect("it was told"));
    let first = told();
    create(&source, &dir.path().join("repo"), Some("one")).await.expect_err("a node is missing");
    let second = told();
    assert!(first[0].starts_with("atlas-one-") && second[0].starts_with("atlas-one-"), "{first:?} {second:?}");
    assert!(first.iter().all(|tag| *tag == first[0]) && second.iter().all(|tag| *tag == second[0]));
    assert_ne!(first[0], second[0]);

    let mut source = Arc::into_inner(source).expect("nobody else has it");
    source.nodes = Some(cluster.commands.clone());
    let source = Arc::new(source);
    let nodes = tokio::spawn({
        let (cluster, kvs) = (Arc::clone(&cluster), Arc::clone(&source.kvs));
        async move { cluster.take_snapshots(kvs).await }
    });
    let info = create(&source, &dir.path().join("repo"), Some("one")).await.expect("the name is free");
    nodes.await.expect("they are there");

    // A node that can't be loaded, and one that can't be repaired: nothing is cleaned, and the restore goes on later.
    let expected = state_at(&*source.log.lock().await, info.backup_ts.expect("it is complete"));
    for (repairs, broken) in [
        (false, NodeCommands { restore: Some("exit 1".to_owned()), ..cluster.commands.clone() }),
        (true, NodeCommands { repair: Some("exit 1".to_owned()), ..cluster.commands.clone() }),
    ] {
        let kvs = empty_server(dir.path(), Snapshots::None);
        let nodes = |loads: bool, repairs: bool| {
            let (cluster, kvs) = (Arc::clone(&cluster), Arc::clone(&kvs));
            tokio::spawn(async move {
                if loads {
                    cluster.load(Arc::clone(&kvs)).await;
                }
                if repairs {
                    cluster.repair(kvs).await;
                }
            })
        };
        let working = nodes(repairs, false);
        let target = nodes_target(&kvs, &broken);
        let error = restore_into(dir.path(), "one", &target).await.expect_err("a node is missing");
        assert_eq!(error.exit_code(), exit::PARTIAL, "{error}");
        working.await.expect("they are there");
        Atlas::with_store(AtlasConfig::default(), Arc::clone(&kvs)).await.expect_err("it is no whole store");
        let windows = CleanedWindows::load(Arc::clone(&kvs)).await;
        assert!(windows.is_ok_and(|windows| windows == CleanedWindows::default()), "nothing was cleaned");
        // What was loaded is not loaded again.
        let working = nodes(!repairs, true);
        let target = nodes_target(&kvs, &cluster.commands);
        resume(&target, None, &no_progress()).await.expect("it goes on");
        working.await.expect("they are there");
        assert_eq!(visible(&kvs).await, expected);
    }
    scenario.teardown();
}
