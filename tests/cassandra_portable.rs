//! A portable backup of a store in a Cassandra cluster, taken while writers go on, restored after the store is gone.
//!
//! What must be there again is computed from the writers' own log of acknowledged commits, up to the backup's timestamp,
//! and never read from the store: a commit that was lost shows, and so does one that came from nowhere.

// What can't be unwrapped here has failed the test.
#![allow(clippy::unwrap_used)]

mod common;
#[allow(dead_code, reason = "it serves other tests too")]
#[path = "operate/stage.rs"]
mod stage;

use atlas::Atlas;
use atlas::backup::RestoreStep;
use atlas::schema::ConflictHandler;
use common::*;
use parking_lot::Mutex;
use stage::{Ran, Running, Stage};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WRITERS: usize = 4;
/// Rows per writer. Each transaction writes two of the writer's own, and one that all of them write.
const ROWS: usize = 25;

/// What was acknowledged: at which timestamp, which row, and its new value, if it was not deleted.
type Log = Vec<(u64, String, Option<String>)>;

/// What `kv scan` prints of the log's state below a timestamp.
fn state_below(log: &Log, backup_ts: u64) -> String {
    let mut log: Vec<_> = log.iter().filter(|(commit_ts, ..)| *commit_ts < backup_ts).collect();
    log.sort();
    let mut rows = BTreeMap::new();
    for (_, row, value) in log {
        match value {
            Some(value) => drop(rows.insert(row, value)),
            None => drop(rows.remove(row)),
        }
    }
    rows.iter().map(|(row, value)| format!("{row}\tv\t{value}")).collect::<Vec<_>>().join("\n")
}

/// One writer's next transaction, acknowledged or not.
async fn write_once(atlas: &Atlas, writer: usize, round: usize, log: &Mutex<Log>) {
    let rows = [format!("w{writer}-{:02}", round % ROWS), format!("w{writer}-{:02}", (round * 7 + 3) % ROWS)];
    let mut changes: BTreeMap<String, Option<String>> = BTreeMap::new();
    changes.insert(rows[0].clone(), Some(format!("{round}")));
    changes.insert(rows[1].clone(), (!round.is_multiple_of(5)).then(|| format!("{round} too")));
    changes.insert("shared".to_owned(), Some(format!("{writer}-{round}")));
    let t = atlas::TableRef::new("t").unwrap();
    let outcome = atlas
        .run_with(Default::default(), async |tx| {
            for (row, value) in &changes {
                match value {
                    Some(value) => tx.put(&t, cell(row), value.clone()).await?,
                    None => tx.delete(&t, cell(row)).await?,
                }
            }
            Ok::<_, atlas::Error>(())
        })
        .await;
    match outcome {
        Ok(done) => {
            let commit_ts = done.commit_ts.expect("it wrote something").get();
            log.lock().extend(changes.into_iter().map(|(row, value)| (commit_ts, row, value)));
        }
        // So many conflicts in a row; nothing of it is there.
        Err(error) if error.is_retriable() => {}
        Err(error) => panic!("{error}"),
    }
}

/// A directory with `atlas.yml` of a store in the cluster, `local.yml` of one in a directory, and `other.yml` of another
/// one in the cluster.
struct Scene {
    stage: Stage,
    place: Place,
    _other: Place,
}

impl Scene {
    fn new() -> Scene {
        let scene = Scene {
            stage: Stage::new(),
            place: Place::new(StoreKind::Cassandra),
            _other: Place::new(StoreKind::Cassandra),
        };
        for (name, place) in [("atlas.yml", &scene.place), ("other.yml", &scene._other)] {
            scene.stage.write(
                name,
                &format!(
                    "atlasdb:\n  namespace: {}\n  leader: {{lease: 2s}}\n  backup: {{lockLease: 1s}}\n  server: {{http: \
                     off, grpc: \"127.0.0.1:0\"}}\n{}",
                    place.namespace(),
                    place.yaml(&scene.stage.path(""))
                ),
            );
        }
        scene.stage.write("local.yml", &scene.stage.config("local"));
        scene
    }

    /// The state at the timestamp of the portable backup `live`, by the writers' log. The store is destroyed.
    async fn back_up_and_destroy(&self) -> String {
        let mut config = self.place.config(CASSANDRA_STEPS);
        config.leader.lease = Duration::from_secs(2);
        config.server.grpc = "127.0.0.1:0".to_owned();
        let atlas = Atlas::open(config).await.unwrap();
        table(&atlas, "t", ConflictHandler::RetryOnWriteWriteCell).await;
        let (log, stop) = (Arc::new(Mutex::new(Log::new())), Arc::new(AtomicBool::new(false)));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (atlas, log, stop) = (atlas.clone(), Arc::clone(&log), Arc::clone(&stop));
                spawn(move || async move {
                    for round in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        write_once(&atlas, writer, round, &log).await;
                    }
                })
            })
            .collect();
        until_len(&log, 200).await;
        let line = "backup create --portable --to repo --name live -o json";
        let backup = Running::start(line, &mut self.stage.command(line));
        let backup = tokio::task::spawn_blocking(|| backup.end().document()).await.unwrap();
        let so_far = log.lock().len();
        until_len(&log, so_far + 200).await;
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        let data = &backup["data"];
        assert_eq!((&data["method"], &data["store"]), (&"portable".into(), &"cassandra".into()), "{backup}");
        let backup_ts = data["backup_ts"].as_u64().unwrap();
        let fast_forward_ts = data["fast_forward_ts"].as_u64().unwrap();
        atlas.close().await.unwrap();
        self.place.kind.drop_namespace(self.place.namespace());
        assert!(!self.place.exists().await);
        let log = std::mem::take(&mut *log.lock());
        let within = |from: u64, to: u64| log.iter().filter(|(ts, ..)| (from..to).contains(ts)).count();
        assert!(within(0, backup_ts) > 0 && within(fast_forward_ts, u64::MAX) > 0, "the writers went on");
        state_below(&log, backup_ts)
    }

    fn assert_restored(&self, config: &str, expected: &str) {
        assert_eq!(self.scan(config), expected, "{config}");
        assert_eq!(self.stage.atlas_with(config, "backup-lock --status").ok(), "free");
        let findings = self.stage.atlas_with(config, "doctor --check all").ok();
        assert!(findings.lines().all(|line| !line.starts_with("fail")), "{findings}");
    }

    fn scan(&self, config: &str) -> String {
        self.stage.atlas_with(config, "kv scan t").ok()
    }
}

async fn until_len(log: &Mutex<Log>, len: usize) {
    for _ in 0..6_000 {
        if log.lock().len() >= len {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the writers came to {} instead of {len}", log.lock().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_live_backup_restores_exactly_the_state_at_its_timestamp_here_and_elsewhere() {
    let scene = Scene::new();
    let expected = scene.back_up_and_destroy().await;
    scene.stage.atlas("backup verify live --repo repo").ok();
    scene.stage.atlas("backup restore live --repo repo --into atlas.yml").ok();
    scene.assert_restored("atlas.yml", &expected);
    // Into a directory, which is written to, and from there into another namespace of the cluster.
    scene.stage.atlas("backup restore live --repo repo --into local.yml").ok();
    scene.assert_restored("local.yml", &expected);
    scene.stage.atlas_with("local.yml", "kv put t zz v elsewhere").ok();
    scene.stage.atlas_with("local.yml", "backup create --portable --to repo --name back").ok();
    scene.stage.atlas("backup restore back --repo repo --into other.yml").ok();
    scene.assert_restored("other.yml", &format!("{expected}\nzz\tv\telsewhere"));
    // They are stores of their own, and full.
    scene.stage.atlas("kv put t zz v here").ok();
    assert_eq!(scene.stage.atlas_with("other.yml", "kv get t zz v").ok(), "elsewhere");
    scene.stage.atlas("backup restore live --repo repo --into atlas.yml").fails(9).says("empty");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restore_killed_on_its_way_looks_whole_to_nobody_and_can_be_finished() {
    let scene = Scene::new();
    let expected = scene.back_up_and_destroy().await;
    let line = "backup restore live --repo repo --into atlas.yml";
    for (step, again) in [
        // Once anywhere, and once more while it is finished.
        (RestoreStep::CopyFile, Some(RestoreStep::Identity)),
        (RestoreStep::Clean, Some(RestoreStep::FastForward)),
        (RestoreStep::RemoveMarker, None),
    ] {
        let killed = |line: &str, step: RestoreStep| {
            let mut command = scene.stage.command(line);
            Ran::new(line, stage::output(command.env("ATLAS_KILL_AT", step.fail_point()))).was_killed();
        };
        killed(line, step);
        for line in ["kv scan t", "timestamp fast-forward -t 5", "timestamp fetch", line] {
            scene.stage.atlas(line).fails(9).says("--resume");
        }
        if let Some(again) = again {
            killed("backup restore --resume --into atlas.yml", again);
        }
        scene.stage.atlas("backup restore --resume --into atlas.yml").ok();
        scene.assert_restored("atlas.yml", &expected);
        scene.place.kind.drop_namespace(scene.place.namespace());
    }
}
