//! Backups of a store on three real nodes, each of which is copied at another moment while transactions go on: by one
//! command, by hand as the page has it, and with a node missing.
//!
//! What must be restored is known from the writers' own log of what was acknowledged to them, not from the store.

// What can't be unwrapped here has failed the test.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod load;
mod scene;
#[allow(dead_code, reason = "it serves other tests too")]
#[path = "../operate/stage.rs"]
mod stage;

use atlas::ops::Operations;
use atlas::transaction::entry::{CleanedWindows, Entry, Fate, transactions_table};
use atlas::{Error, TableRef, Timestamp};
use atlas_kvs::{AtomicScan, KeyValueService, RowRange};
use atlas_kvs_cassandra::CassandraStore;
use common::cassandra::{self, Breakable};
use futures::TryStreamExt;
use load::{Begun, Held, Load, Log, State, state};
use scene::{Block, NODES, Scene, blocks_of};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// One at a time: they want all nodes up, or stop some, and what one does to the schema gets into the way of the other's
/// imports.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Acknowledged between one node's snapshot and the next one's, at least.
const BETWEEN_NODES: usize = 60;
/// And between the first node's and the last one's.
const BETWEEN_FIRST_AND_LAST: usize = 100;

/// The store below, past the layer.
async fn below(scene: &Scene) -> Arc<CassandraStore> {
    Arc::new(CassandraStore::connect(cassandra::connection(&scene.namespace)).await.unwrap())
}

async fn entries_of(kvs: &dyn KeyValueService, start_ts: &[Timestamp]) -> Vec<Option<Entry>> {
    let mut entries = Vec::new();
    for some in start_ts.chunks(50) {
        let cells: Vec<_> = some.iter().map(|start_ts| Entry::cell(*start_ts)).collect();
        let found = kvs.get_atomic(&transactions_table(), &cells).await.unwrap();
        let decoded = some.iter().zip(found);
        entries.extend(decoded.map(|(start_ts, bytes)| bytes.map(|bytes| Entry::decode(*start_ts, &bytes).unwrap())));
    }
    entries
}

/// Whether the nodes hold the same of the tables that nobody wrote since they were repaired: their own tool compares.
async fn assert_in_sync(scene: &Scene, kvs: &CassandraStore) {
    let mut tables = String::new();
    for name in load::TABLES.map(|(name, _)| name) {
        for part in kvs.node_store().unwrap().parts_of(&TableRef::new(name).unwrap()).await.unwrap() {
            tables.push_str(&format!(" {part}"));
        }
    }
    let command = format!("NODE={} nodetool repair --preview --full -- {}{tables}", NODES[0], scene.keyspace());
    let ran = tokio::task::block_in_place(|| scene.stage.bash(&command));
    assert!(ran.ok().contains("Previewed data was in sync"), "the nodes differ: {ran:#?}");
}

/// What was written in the time of the backup, and at which timestamps.
struct Story {
    log: Log,
    /// The state that must be restored.
    expected: State,
    backup_ts: Timestamp,
    fast_forward_ts: Timestamp,
    /// Start timestamps of transactions of which some nodes' copies know that they committed, and others do not.
    across: [Timestamp; 2],
    held: Timestamp,
}

/// Checks a restored store from above and from below, and goes on working with it.
async fn assert_restored(scene: &Scene, story: &Story) {
    let kvs = below(scene).await;
    assert_in_sync(scene, &kvs).await;
    let known: Vec<_> = story.across.into_iter().chain([story.held]).collect();
    assert_eq!(entries_of(kvs.as_ref(), &known).await, [Some(Entry::RolledBack); 3], "of transactions {known:?}");
    let windows = CleanedWindows::load(Arc::clone(&kvs) as Arc<dyn KeyValueService>).await.unwrap();
    let started: Vec<_> = story.log.commits.iter().map(|commit| commit.start_ts).collect();
    let mut hidden = 0;
    for (commit, entry) in story.log.commits.iter().zip(entries_of(kvs.as_ref(), &started).await) {
        if commit.commit_ts < story.backup_ts {
            assert_eq!(entry, Some(Entry::Committed(commit.commit_ts)), "of transaction {}", commit.start_ts);
        } else {
            assert!(!matches!(windows.fate(entry), Fate::Committed(_)), "{entry:?} of transaction {}", commit.start_ts);
            hidden += usize::from(matches!(entry, Some(Entry::Committed(_))));
        }
    }
    // A node copies the index of a table and its cells one after the other. What was written between the two, on the last
    // node, stands in no copy of the index: no scan finds it, so nobody can mark it, and only the window hides it.
    eprintln!("{hidden} entries are hidden by the cleaned window alone");
    let scanned: Vec<_> =
        kvs.scan_atomic(&transactions_table(), AtomicScan::new(RowRange::all())).try_collect().await.unwrap();
    for (cell, bytes) in scanned {
        if let Entry::Committed(commit_ts) = Entry::decode(Entry::start_ts_of(&cell).unwrap(), &bytes).unwrap() {
            assert!(commit_ts < story.backup_ts, "{commit_ts} is left of transaction {cell}");
        }
    }
    kvs.close().await.unwrap();

    assert_eq!(scene.atlas("backup-lock --status").await.ok(), "free");
    let atlas = scene.open().await;
    assert_eq!(state(&atlas, None).await, story.expected);
    let findings = scene.atlas("doctor --check all").await.ok();
    assert!(findings.lines().all(|line| !line.starts_with("fail")), "{findings}");
    let load = Load::start(&atlas, "later").await;
    load.acknowledge(20).await;
    let mut later = load.stop().await;
    let kvs = below(scene).await;
    later.decide_unknown(kvs.as_ref()).await;
    assert!(later.commits.iter().all(|commit| commit.start_ts > story.fast_forward_ts), "time went backwards");
    assert_eq!(state(&atlas, None).await, later.state_at(&story.expected, Timestamp::MAX));
    kvs.close().await.unwrap();
    atlas.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_command_restores_exactly_the_state_at_the_timestamp() {
    let _alone = ALONE.lock().await;
    let scene = Scene::new("one_command");
    let atlas = scene.open().await;
    let load = Load::start(&atlas, "load").await;
    load.acknowledge(100).await;

    // One has drawn its commit timestamp and is held before its entry; others have begun.
    let held = Held::start(&atlas, "held", &load.log).await;
    let held_start_ts = held.start_ts;
    let across = Begun::new(&atlas, "across").await;
    let late = Begun::new(&atlas, "late").await;
    let began = [across.start_ts, late.start_ts];
    // The original is read at the backup timestamp when the backup holds sweep back no longer.
    atlas.pin_fresh_timestamp(Duration::from_secs(1200)).await.unwrap();

    scene.hold_snapshots();
    let backup = scene.begin("backup create --to repo --name one -o json");
    scene.let_snapshot(NODES[0]).await;
    let first_done = Instant::now();
    load.acknowledge(BETWEEN_NODES).await;
    // Its entry is in two of the three copies, and that of the next in one.
    let across = across.commit(&load.log).await.unwrap().unwrap();
    scene.let_snapshot(NODES[1]).await;
    load.acknowledge(BETWEEN_NODES).await;
    let late = late.commit(&load.log).await.unwrap().unwrap();
    let last_begins = Instant::now();
    scene.let_snapshot(NODES[2]).await;
    let taken = tokio::task::spawn_blocking(move || backup.end()).await.unwrap().document();
    let told = held.release().await;
    load.acknowledge(20).await;
    let mut log = load.stop().await;

    let backup = &taken["data"];
    assert_eq!((&backup["method"], &backup["store"]), (&"nodes".into(), &"cassandra".into()), "{backup}");
    let ts = |name: &str| Timestamp::new(backup[name].as_u64().unwrap()).unwrap();
    let (backup_ts, fast_forward_ts) = (ts("backup_ts"), ts("fast_forward_ts"));
    // Whoever stands in the way of the settling is rolled back, and told so when he comes to his entry.
    assert!(matches!(told, Err(Error::RolledBack { start_ts }) if start_ts == held_start_ts), "{told:?}");
    assert!(held_start_ts < backup_ts);
    for (start_ts, commit_ts) in began.into_iter().zip([across, late]) {
        assert!(start_ts < backup_ts && backup_ts <= commit_ts && commit_ts < fast_forward_ts);
    }
    let between = log.acknowledged_between(first_done, last_begins);
    assert!(between >= BETWEEN_FIRST_AND_LAST, "only {between} commits between the first and the last node");
    let kvs = below(&scene).await;
    log.decide_unknown(kvs.as_ref()).await;
    kvs.close().await.unwrap();
    let expected = log.state_at(&State::new(), backup_ts);
    assert_eq!(state(&atlas, Some(backup_ts)).await, expected, "the original at the backup timestamp");
    assert_ne!(state(&atlas, None).await, expected);
    atlas.close().await.unwrap();
    eprintln!(
        "{} commits, {} failed; {between} between the snapshots of the first and the last node; {} below {backup_ts}",
        log.commits.len(),
        log.failed,
        log.commits.iter().filter(|commit| commit.commit_ts < backup_ts).count(),
    );

    scene.atlas("backup verify one --repo repo").await.ok();
    scene.destroy().await;
    let restored = scene.atlas("backup restore one --repo repo --into app.yml -o json").await;
    restored.ok();
    let restored = restored.document();
    assert!(restored["data"]["rolled_back"].as_u64().unwrap() >= 2, "{restored}");
    let story = Story { log, expected, backup_ts, fast_forward_ts, across: began, held: held_start_ts };
    assert_restored(&scene, &story).await;
}

/// What a block of the page finds in its environment.
fn variables(node: &str) -> String {
    format!(
        "export NODE='{node}' DATA='{}' REPLICATION=\"{{'class': 'SimpleStrategy', 'replication_factor': 3}}\"\n",
        Scene::data_of(node).display()
    )
}

/// Runs a block where the page says that it is run.
async fn run_block(scene: &Arc<Scene>, block: &Block) {
    let run = |node: &str| {
        let (scene, script) = (Arc::clone(scene), format!("{}{}", variables(node), block.script));
        tokio::task::spawn_blocking(move || drop(scene.stage.bash(&script).ok()))
    };
    match block.place.as_str() {
        "" | "on-one-node" => run(NODES[1]).await.unwrap(),
        "on-every-node" => {
            for node in NODES {
                run(node).await.unwrap();
            }
        }
        "on-every-node at-once" => {
            for running in NODES.map(run) {
                running.await.unwrap();
            }
        }
        place => panic!("nobody knows where '{place}' is"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_page_works_by_hand_as_it_stands() {
    let _alone = ALONE.lock().await;
    let scene = Arc::new(Scene::new("bank"));
    let atlas = scene.open().await;
    let load = Load::start(&atlas, "load").await;
    load.acknowledge(100).await;
    let (across, late) = (Begun::new(&atlas, "across").await, Begun::new(&atlas, "late").await);
    let began = [across.start_ts, late.start_ts];
    // The original is read at the backup timestamp when the backup holds sweep back no longer.
    atlas.pin_fresh_timestamp(Duration::from_secs(1200)).await.unwrap();

    let blocks = blocks_of("Take it by hand");
    assert_eq!(blocks.iter().map(|block| &*block.place).collect::<Vec<_>>(), ["", "on-every-node", ""]);
    run_block(&scene, &blocks[0]).await;
    let held = Begun::new(&atlas, "after the lock").await;
    let held_start_ts = held.start_ts;
    scene.hold_snapshots();
    let work = tokio::spawn({
        let (scene, script) = (Arc::clone(&scene), blocks[1].script.clone());
        async move {
            for node in NODES {
                let block = Block { place: String::new(), script: format!("{}{script}", variables(node)) };
                run_block(&scene, &block).await;
            }
        }
    });
    scene.let_snapshot(NODES[0]).await;
    let first_done = Instant::now();
    load.acknowledge(BETWEEN_NODES).await;
    across.commit(&load.log).await.unwrap();
    held.commit(&load.log).await.unwrap();
    scene.let_snapshot(NODES[1]).await;
    load.acknowledge(BETWEEN_NODES).await;
    late.commit(&load.log).await.unwrap();
    let last_begins = Instant::now();
    scene.let_snapshot(NODES[2]).await;
    work.await.unwrap();
    run_block(&scene, &blocks[2]).await;
    load.acknowledge(20).await;
    let mut log = load.stop().await;

    let between = log.acknowledged_between(first_done, last_begins);
    assert!(between >= BETWEEN_FIRST_AND_LAST, "only {between} commits between the first and the last node");
    let kvs = below(&scene).await;
    log.decide_unknown(kvs.as_ref()).await;
    kvs.close().await.unwrap();
    let in_file = |name: &str| {
        let line = std::fs::read_to_string(scene.stage.path(format!("backup/{name}.timestamp"))).unwrap();
        Timestamp::new(line.trim().parse().unwrap()).unwrap()
    };
    let (backup_ts, fast_forward_ts) = (in_file("backup"), in_file("fast-forward"));
    let expected = log.state_at(&State::new(), backup_ts);
    assert_eq!(state(&atlas, Some(backup_ts)).await, expected, "the original at the backup timestamp");
    atlas.close().await.unwrap();
    eprintln!("{} commits, {between} between the snapshots of the first and the last node", log.commits.len());

    scene.destroy().await;
    let blocks = blocks_of("Restore it by hand");
    assert_eq!(blocks.len(), 5);
    for block in &blocks {
        run_block(&scene, block).await;
    }
    let story = Story { log, expected, backup_ts, fast_forward_ts, across: began, held: held_start_ts };
    assert_restored(&scene, &story).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_missing_node_ends_a_backup_and_a_restore_before_it_cleans() {
    let _alone = ALONE.lock().await;
    let scene = Scene::new("missing_node");
    let cluster = Breakable::of_three();
    scene.atlas("table create accounts").await.ok();
    for (row, value) in [("alice", "100"), ("bob", "200")] {
        scene.atlas(&format!("kv put accounts {row} balance {value}")).await.ok();
    }

    // A node that is left out of the configuration is missing, too.
    let whole = std::fs::read_to_string(scene.stage.path("app.yml")).unwrap();
    scene.stage.write("two.yml", &whole.replace("node-1,node-2,node-3", "node-1,node-2"));
    let two = scene.stage.atlas_with("two.yml", "backup create --to repo --name two");
    two.fails(3).says("names 2 nodes of 3");

    scene.atlas("backup create --to repo --name whole").await.ok();
    scene.atlas("kv put accounts alice balance later").await.ok();
    let before = "alice\tbalance\t100\nbob\tbalance\t200";

    cluster.node("kill", 3).await;
    let void = scene.atlas("backup create --to repo --name void").await;
    void.fails(3).says("node-3");
    assert!(!void.stderr.contains("node-1:") && !void.stderr.contains("node-2:"), "{void:?}");
    assert_eq!(scene.stage.names_in("repo").iter().filter(|name| *name != "whole").count(), 0, "nothing of it is left");
    assert_eq!(scene.atlas("backup-lock --status").await.ok(), "free");
    // A quorum is enough for the other way.
    scene.atlas("backup create --portable --to repo --name portable").await.ok();
    cluster.node("start", 3).await;

    // It dies when the first node has loaded everything, and begins to be repaired.
    scene.destroy().await;
    let script = crate::stage::checkout::file("scripts/cassandra");
    scene.before("repair", NODES[0], &format!("'{script}' kill 3 >&2\n"));
    scene
        .atlas("backup restore whole --repo repo --into app.yml")
        .await
        .fails(3)
        .says("the repair failed on node node-1");
    let kvs = below(&scene).await;
    let windows = CleanedWindows::load(Arc::clone(&kvs) as Arc<dyn KeyValueService>).await.unwrap();
    assert_eq!(windows, CleanedWindows::default(), "nothing was cleaned");
    kvs.close().await.unwrap();
    scene.atlas("kv scan accounts").await.fails(9).says("--resume");
    scene.atlas("backup restore --resume --into app.yml").await.fails(3).says("node-1");

    scene.not_before("repair", NODES[0]);
    cluster.node("start", 3).await;
    scene.atlas("backup restore --resume --into app.yml").await.ok();
    assert_eq!(scene.atlas("kv scan accounts").await.ok(), before);
    scene.atlas("kv put accounts carol balance 300").await.ok();
    assert_eq!(scene.atlas("kv scan accounts").await.ok(), format!("{before}\ncarol\tbalance\t300"));
}
