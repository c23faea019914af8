//! `kill -9` in the middle of it all.

use crate::stage::{Ran, Running, Server, Stage, output, until};
use crate::sweeping::{Stored, overwrite, stored};
use atlas::backup::{BackupStep, RestoreStep};
use atlas::ops::{BeginOptions, Operations};
use atlas::server::RemoteAtlas;
use atlas::sweep::SweepStep;
use atlas::{Cell, TableRef};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn kill_at(point: &str) -> [(&str, &str); 1] {
    [("ATLAS_KILL_AT", point)]
}

fn states(stage: &Stage) -> Vec<(String, String)> {
    let document = stage.atlas("backup list --repo repo -o json").document();
    let backups = document["data"]["backups"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let mut states: Vec<_> = backups.iter().map(|backup| (text(&backup["id"]), text(&backup["state"]))).collect();
    states.sort();
    states
}

/// After a backup `killed` was killed: the store is whole, the backup is what it is, and another one can be taken.
fn assert_recovered(stage: &Stage, step: &str, is_complete: bool, before: &str) {
    assert_eq!(stage.accounts(), before, "{step}");
    let state = if is_complete { "complete" } else { "incomplete" };
    assert!(states(stage).iter().all(|(id, found)| (id == "killed" && found == state) || id == "whole"), "{step}");
    if is_complete {
        stage.atlas("backup verify killed --repo repo").ok();
    } else if stage.has("repo/killed") {
        stage.atlas("backup restore killed --repo repo --into restored.yml").fails(7).says("never completed");
        stage.atlas("backup verify killed --repo repo").fails(7);
    }
    if stage.atlas("backup-lock --status").ok() == "held" {
        // Nobody renews it any more.
        stage.atlas("backup create --to repo --name again").fails(5).says("backup-lock --release");
        assert_eq!(stage.atlas("backup-lock --release").ok(), "released", "{step}");
    }
    if !is_complete && stage.has("repo/killed") {
        // What is left of it does not keep its name.
        assert_eq!(stage.atlas("backup create --to repo --name killed").ok(), "killed", "{step}");
        stage.atlas("backup verify killed --repo repo").ok();
        std::fs::remove_dir_all(stage.path("repo/killed")).unwrap();
    }
    stage.atlas("backup create --to repo --name again").ok();
    assert!(stage.names_in("data/staging").is_empty(), "{step}: a snapshot is left");
    stage.atlas("backup verify again --repo repo").ok();
    std::fs::remove_dir_all(stage.path("repo/again")).unwrap();
}

const BACKUP_STEPS: [BackupStep; 8] = [
    BackupStep::Lock,
    BackupStep::Settle,
    BackupStep::Snapshot,
    BackupStep::Copy,
    BackupStep::CopyFile,
    BackupStep::ManifestRename,
    BackupStep::Remember,
    BackupStep::RemoveStaging,
];

#[test]
fn a_server_killed_in_the_middle_of_a_backup_leaves_an_incomplete_one_and_a_whole_store() {
    let stage = Stage::new();
    stage.make_accounts();
    let before = stage.accounts();
    stage.atlas("backup create --to repo --name whole").ok();
    for step in BACKUP_STEPS {
        let server = stage.serve_with(&kill_at(step.fail_point()));
        let ran = stage.atlas("backup create --to repo --name killed");
        assert!(matches!(ran.code, Some(1 | 6)), "{step:?}: {ran:#?}");
        ran.fails(ran.code.unwrap());
        server.was_killed();
        assert_recovered(&stage, step.fail_point(), step >= BackupStep::Remember, &before);
        let _ = std::fs::remove_dir_all(stage.path("repo/killed"));
    }
    stage.atlas("backup restore latest --repo repo --into restored.yml").ok();
    assert_eq!(stage.restored_accounts(), before);
}

#[test]
fn a_backup_of_a_stopped_store_killed_in_the_middle_leaves_the_same() {
    let stage = Stage::new();
    stage.make_accounts();
    let before = stage.accounts();
    for point in ["backup::copy_file:3", "backup::manifest"] {
        let mut command = stage.command("backup create --to repo --name killed");
        Ran::new(point, output(command.envs(kill_at(point)))).was_killed();
        assert_recovered(&stage, point, false, &before);
    }
}

#[test]
fn a_restore_killed_at_any_step_is_no_store_until_it_is_resumed() {
    let stage = Stage::new();
    stage.make_accounts();
    let before = stage.accounts();
    stage.atlas("backup create --to repo --name b").ok();
    stage.atlas("kv put accounts alice balance later").ok();
    let restore = "backup restore b --repo repo --into restored.yml";
    let restored = stage.path("restored");
    for step in RestoreStep::ALL {
        let point = step.fail_point();
        let mut command = stage.command(restore);
        Ran::new(point, output(command.envs(kill_at(point)))).was_killed();
        if step <= RestoreStep::Marker {
            // Nothing was written yet, so it is simply begun again.
            stage.atlas(restore).ok();
        } else {
            for line in ["kv scan accounts", "serve", "timestamp fetch", "timestamp fast-forward -t 5"] {
                let ran = stage.atlas_with("restored.yml", line);
                ran.fails(9).says("atlas backup restore --resume --into");
            }
            stage.atlas(restore).fails(9).says("--resume");
            stage.atlas("backup restore --resume --into restored.yml").ok();
        }
        assert_eq!(stage.restored_accounts(), before, "{step:?}");
        stage.atlas("backup restore --resume --into restored.yml").fails(4);
        std::fs::remove_dir_all(&restored).unwrap();
    }
    // Killed, resumed and killed again; then resumed from where the repository was moved to.
    let run = |line: &str, point: &str| Ran::new(point, output(stage.command(line).envs(kill_at(point))));
    run(restore, "restore::copy_file:2").was_killed();
    run("backup restore --resume --into restored.yml", "restore::fast_forward").was_killed();
    std::fs::rename(stage.path("repo"), stage.path("moved")).unwrap();
    stage.atlas("backup restore --resume --into restored.yml").fails(4).says("--repo");
    stage.atlas("backup restore --resume --repo moved --into restored.yml").ok();
    assert_eq!(stage.restored_accounts(), before);
    assert!(stage.atlas_with("restored.yml", "doctor --check all").ok().lines().all(|line| !line.starts_with("fail")));
}

#[test]
fn ctrl_c_in_a_restore_leaves_what_a_kill_leaves() {
    let stage = Stage::new();
    stage.make_accounts();
    let before = stage.accounts();
    stage.atlas("backup create --to repo --name b").ok();
    let mut command = stage.command("backup restore b --repo repo --into restored.yml");
    let restore = Running::start("restore", command.env("FAILPOINTS", "restore::copy_file=sleep(300)"));
    until("it copies", || !stage.names_in("restored/db").is_empty());
    restore.interrupt();
    assert_eq!(restore.end().code, Some(130));
    stage.atlas_with("restored.yml", "kv scan accounts").fails(9).says("--resume");
    stage.atlas("backup restore --resume --into restored.yml").ok();
    assert_eq!(stage.restored_accounts(), before);
}

// ---- sweep

/// The stage, and nothing is swept by itself but where a test says so.
fn unswept_stage() -> Stage {
    let stage = Stage::new();
    stage.write("atlas.yml", &format!("{}  sweep: {{interval: 1h}}\n", stage.config("data")));
    stage
}

const SERVE_AND_SWEEP: &str = "--set sweep.interval=100ms serve";

fn assert_swept(stage: &Stage, times: usize, step: &str) {
    assert_eq!(stored(stage, "t"), Stored { cells: 12, versions: 12, sentinels: 12 }, "{step}");
    let expected: Vec<_> = (0..12).map(|row| format!("row{row:03}\tc\t{times}")).collect();
    assert_eq!(stage.atlas("kv scan t").ok(), expected.join("\n"), "{step}");
    assert!(stage.atlas("doctor --check all").ok().lines().all(|line| !line.starts_with("fail")), "{step}");
}

#[test]
fn a_sweep_by_hand_that_was_killed_goes_on_where_it_was() {
    let stage = unswept_stage();
    // The steps that a batch of a walk takes.
    for step in [SweepStep::Decided, SweepStep::WrittenDown, SweepStep::SentinelsWritten, SweepStep::Deleted] {
        overwrite(&stage, "t", 12, 3);
        let line = "sweep --table t --candidate-batch-hint 4";
        let at = format!("{}:2", step.fail_point());
        Ran::new(&at, output(stage.command(line).envs(kill_at(&at)))).was_killed();
        assert_eq!(stage.atlas("kv get t row011 c").ok(), "3", "{step:?}");
        let again = stage.atlas(&format!("{line} -o json"));
        again.says("Table t: a sweep was interrupted at row row003, and goes on there");
        let report = &again.document()["data"];
        assert_eq!((&report["tables"][0]["resumed"], &report["total"]["cells"]), (&true.into(), &8.into()), "{step:?}");
        assert_swept(&stage, 3, step.fail_point());
    }
}

#[test]
fn a_server_killed_at_any_step_of_a_sweep_leaves_it_to_the_next() {
    let stage = unswept_stage();
    for step in SweepStep::ALL {
        overwrite(&stage, "t", 12, 3);
        // Over the end of a partition of the queue, and far enough for the floor of `_transactions` to be raised.
        let now: u64 = stage.atlas("timestamp fetch").ok().parse().unwrap();
        stage.atlas(&format!("timestamp fast-forward --timestamp {}", now + 70_000)).ok();
        // Perhaps before it says that it is ready.
        let point = step.fail_point();
        Ran::new(point, output(stage.command(SERVE_AND_SWEEP).envs(kill_at(point)))).was_killed();
        assert_eq!(stage.atlas("kv get t row011 c").ok(), "3", "{step:?}");
        let server = Server::start(&mut stage.command(SERVE_AND_SWEEP));
        until("the next one has done it", || stored(&stage, "t").versions == 12);
        server.stop();
        assert_swept(&stage, 3, point);
    }
}

// ---- load

const ACCOUNTS: u64 = 20;
const EACH: u64 = 100;

fn accounts() -> TableRef {
    TableRef::new("accounts").unwrap()
}

fn balance(account: u64) -> Cell {
    Cell::copy_from(format!("account-{account:02}"), "balance")
}

fn number(value: Option<Bytes>) -> u64 {
    std::str::from_utf8(&value.unwrap()).unwrap().parse().unwrap()
}

fn bytes(number: u64) -> Option<Bytes> {
    Some(Bytes::from(number.to_string()))
}

/// Moves one unit from an account to another and counts the move in a cell of the writer's own, in one transaction.
async fn transfer(remote: &RemoteAtlas, writer: u64, turn: u64) -> atlas::Result<()> {
    let (from, to) = ((writer + turn) % ACCOUNTS, (writer * 7 + turn * 3 + 1) % ACCOUNTS);
    let transaction = remote.begin_transaction(BeginOptions::default()).await?;
    let found = transaction.get(&accounts(), &[balance(from), balance(to)]).await?;
    let mut writes = vec![(Cell::copy_from(format!("writer-{writer}"), "moves"), bytes(turn))];
    let (from_has, to_has) = (number(found[0].clone()), number(found[1].clone()));
    if from != to && from_has > 0 {
        writes.extend([(balance(from), bytes(from_has - 1)), (balance(to), bytes(to_has + 1))]);
    }
    transaction.write(&accounts(), writes).await?;
    transaction.commit().await?;
    Ok(())
}

/// Writers that go on until they are told to stop or the server is gone. What each knows to be committed is in `done`.
struct Load {
    done: Arc<Vec<AtomicU64>>,
    stop: Arc<AtomicBool>,
    runtime: tokio::runtime::Runtime,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(stage: &Stage, writers: u64, first_turn: u64) -> Load {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let done: Arc<Vec<AtomicU64>> = Arc::new((0..writers).map(|_| AtomicU64::new(first_turn)).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let data_dir = stage.path("data");
        let remote = runtime.block_on(atlas::server::connect(&data_dir)).unwrap().unwrap();
        let tasks = (0..writers).map(|writer| {
            let (remote, done, stop) = (remote.clone(), done.clone(), stop.clone());
            runtime.spawn(async move {
                let mut turn = first_turn + 1;
                while !stop.load(Ordering::SeqCst) {
                    match transfer(&remote, writer, turn).await {
                        Ok(()) => {
                            done[writer as usize].store(turn, Ordering::SeqCst);
                            turn += 1;
                        }
                        Err(error) if error.code() == "CONFLICT" || error.code() == "TOO_OLD" => {}
                        // The server is gone; whether the last one is committed is not known.
                        Err(_) => return,
                    }
                }
            })
        });
        Load { tasks: tasks.collect(), done, stop, runtime }
    }

    fn done(&self) -> u64 {
        self.done.iter().map(|done| done.load(Ordering::SeqCst)).sum()
    }

    fn run_until(&self, done: u64) {
        until("enough is committed", || self.done() >= done);
    }

    fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            self.runtime.block_on(task).unwrap();
        }
        self.done.iter().map(|done| done.load(Ordering::SeqCst)).collect()
    }
}

fn make_load_accounts(stage: &Stage) {
    let mut csv = "account,balance\n".to_owned();
    (0..ACCOUNTS).for_each(|account| csv.push_str(&format!("account-{account:02},{EACH}\n")));
    stage.write("accounts.csv", &csv);
    stage.atlas("import --table accounts --create-table accounts.csv").ok();
}

fn sum(scanned: &str) -> u64 {
    let balances = scanned.lines().filter(|line| line.starts_with("account-"));
    balances.map(|line| line.rsplit('\t').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_backup_under_load_restores_the_state_at_its_timestamp() {
    let stage = unswept_stage();
    make_load_accounts(&stage);
    let server = stage.serve();
    let load = Load::start(&stage, 4, 0);
    load.run_until(40);
    stage.atlas("kv put accounts hand before 1").ok();
    stage.atlas("backup create --to repo --name live").ok();
    stage.atlas("kv put accounts hand after 1").ok();
    let at_backup = load.done();
    load.run_until(at_backup + 40);
    let done = load.end();
    assert!(done.iter().all(|done| *done > 0));
    let document = stage.atlas("backup show live --repo repo -o json").document();
    let backup_ts = document["data"]["backup_ts"].as_u64().unwrap();
    let expected = stage.atlas(&format!("kv scan accounts --at {backup_ts}")).ok();
    assert!(expected.contains("hand\tbefore\t1") && !expected.contains("hand\tafter"));
    assert_eq!(sum(&expected), ACCOUNTS * EACH);
    server.kill();
    std::fs::remove_dir_all(stage.path("data")).unwrap();

    stage.atlas("backup restore live --repo repo --into restored.yml").ok();
    assert_eq!(stage.restored_accounts(), expected);
    let doctor = stage.atlas_with("restored.yml", "doctor --check all").ok();
    assert!(doctor.lines().all(|line| !line.starts_with("fail")), "{doctor}");
}

#[test]
fn a_server_killed_under_load_loses_nothing_that_was_acknowledged() {
    let stage = Stage::new();
    make_load_accounts(&stage);
    let mut first_turn = 0;
    for round in 0..3 {
        let server = stage.serve();
        let load = Load::start(&stage, 4, first_turn);
        let goal = load.done() + 40;
        load.run_until(goal);
        server.kill();
        let acknowledged = load.end();
        // The very next command works: the lock went with the process, and the socket is nobody's.
        let scanned = stage.accounts();
        assert_eq!(sum(&scanned), ACCOUNTS * EACH, "round {round}");
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            let prefix = format!("writer-{writer}\tmoves\t");
            let found: u64 = scanned.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap().parse().unwrap();
            assert!((*acknowledged..=acknowledged + 1).contains(&found), "writer {writer}: {found} of {acknowledged}");
        }
        first_turn = acknowledged.into_iter().max().unwrap() + 1;
        let doctor = stage.atlas("doctor --check all").ok();
        assert!(doctor.lines().all(|line| !line.starts_with("fail")), "{doctor}");
    }
}

#[test]
fn a_client_killed_in_its_commit_is_either_there_or_not() {
    let stage = Stage::new();
    stage.make_accounts();
    for (point, is_there) in [("commit::check_write_conflicts", false), ("commit::published", true)] {
        let mut command = stage.command("kv put accounts dave balance 1");
        Ran::new(point, output(command.envs(kill_at(point)))).was_killed();
        let ran = stage.atlas("kv get accounts dave balance");
        assert_eq!(ran.code, Some(if is_there { 0 } else { 4 }), "{point}: {ran:#?}");
    }
    // A server that is killed when the commit is durable: the client can't know, and says so.
    let server = stage.serve_with(&kill_at("commit::recorded"));
    let ran = stage.atlas("kv put accounts eve balance 1");
    server.was_killed();
    ran.fails(1).says("not known");
    assert_eq!(stage.atlas("kv get accounts eve balance").ok(), "1");
}
