//! What is refused, and what it says then.

use crate::stage::{ATLAS, Ran, Running, Stage, output, until};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

#[test]
fn another_namespace_is_refused_whoever_has_the_store() {
    let stage = Stage::new();
    stage.make_accounts();
    let refused = |line: &str| {
        let ran = stage.atlas(line);
        ran.fails(9).says("the store belongs to namespace 'operate', the configuration says 'other'");
        assert!(ran.stdout.is_empty(), "{ran:#?}");
    };
    refused("-n other kv scan accounts");
    let server = stage.serve();
    refused("-n other kv scan accounts");
    refused("-n other backup-lock --acquire");
    stage.atlas("-n operate kv scan accounts").ok();
    server.stop();
}

#[test]
fn a_store_that_is_served_is_told_at_once_and_how_to_use_it() {
    let stage = Stage::new();
    stage.make_accounts();
    let server = stage.serve();
    let begun = Instant::now();
    stage.atlas("serve").fails(9).says(&format!("process {}", server.pid()));
    stage.atlas("--offline kv scan accounts").fails(9).says("leave out --offline");
    assert!(begun.elapsed() < Duration::from_secs(8), "it waited for a server");
    server.stop();
}

#[test]
fn a_place_that_is_something_else_is_no_data_directory() {
    let stage = Stage::new();
    stage.write("data/letter.txt", "dear");
    stage.atlas("table create t").fails(9).says("letter.txt");
    assert_eq!(stage.names_in("data"), ["letter.txt"], "something was made");
    std::fs::remove_dir_all(stage.path("data")).unwrap();
    stage.write("data", "a file");
    stage.atlas("table create t").fails(9).says("keyValueService.dataDir");
    stage.atlas("status").fails(9).says("keyValueService.dataDir");
}

#[test]
fn left_overs_of_a_backup_are_cleared_and_other_directories_are_not() {
    let stage = Stage::new();
    stage.make_accounts();
    stage.write("repo/mine/letter.txt", "dear");
    stage.atlas("backup create --to repo --name mine").fails(9).says("incomplete");
    assert_eq!(stage.names_in("repo/mine"), ["letter.txt"]);
    stage.write("repo/left/backup.timestamp", "7\n");
    stage.write("repo/left/files/db/000001.sst", "half");
    let list = stage.atlas("backup list --repo repo");
    assert_eq!(list.ok(), "");
    assert!(list.stderr.contains("backup left is incomplete"), "{list:#?}");
    let document = stage.atlas("backup list --repo repo -o json").document();
    assert!(document["data"]["backups"].as_array().unwrap().iter().all(|backup| backup["bytes"].is_null()));
    assert_eq!(stage.atlas("backup create --to repo --name left").ok(), "left");
    assert!(!stage.has("repo/left/files/db/000001.sst"));
    stage.atlas("backup verify left --repo repo").ok();
    stage.atlas("backup create --to repo --name left").fails(5).says("--name");
    std::fs::remove_file(stage.path("repo/left/manifest.json")).unwrap();
    let line = "backup restore left --repo repo --into restored.yml";
    stage.atlas(line).fails(7).says("take it anew").says("nothing was written to the target");
    assert_eq!(stage.atlas("backup list --repo repo").ok(), "");
}

#[test]
fn two_backups_of_one_name_do_not_clear_each_other() {
    let stage = Stage::new();
    stage.make_accounts();
    let server = stage.serve_with(&[("FAILPOINTS", "backup::lock=1*sleep(2000)")]);
    let first = Running::start("backup create", &mut stage.command("backup create --to repo --name b"));
    until("the name is reserved", || stage.has("repo/b"));
    stage.atlas("backup create --to repo --name b").fails(5).says("is writing now");
    assert_eq!(first.end().ok(), "b");
    stage.atlas("backup verify b --repo repo").ok();
    server.stop();
}

#[test]
fn the_lock_of_a_dead_backup_is_told_and_released_at_once() {
    let stage = Stage::new();
    stage.write("atlas.yml", &stage.config("data").replace("lockLease: 1s", "lockLease: 60s"));
    stage.make_accounts();
    let server = stage.serve_with(&[("ATLAS_KILL_AT", "backup::copy")]);
    let ran = stage.atlas("backup create --to repo --name b");
    ran.fails(1).says("atlas backup list").says("backup-lock --release");
    server.was_killed();
    let doctor = stage.atlas("doctor").ok();
    let warned = doctor.lines().find(|line| line.starts_with("warn\tbackup-lock\t")).unwrap();
    assert!(warned.ends_with("\t`atlas backup-lock --release`"), "{doctor}");
    let begun = Instant::now();
    assert_eq!(stage.atlas("backup-lock --release").ok(), "released");
    assert!(begun.elapsed() < Duration::from_secs(20), "it watched the lock for its lease");
}

#[test]
fn a_half_restored_store_is_a_finding_of_the_doctor() {
    let stage = Stage::new();
    stage.make_accounts();
    stage.atlas("backup create --to repo --name b").ok();
    let mut command = stage.command("backup restore b --repo repo --into restored.yml");
    Running::start("restore", command.env("ATLAS_KILL_AT", "restore::copy")).end().was_killed();
    stage.atlas_with("restored.yml", "kv scan accounts").fails(9).says("--resume --into restored.yml");
    let ran = stage.atlas_with("restored.yml", "doctor");
    ran.fails(10);
    assert!(ran.stdout.starts_with("fail\trestore\t") && ran.stdout.contains("--resume --into"), "{ran:#?}");
}

#[test]
fn what_is_too_large_names_the_key_of_its_limit() {
    let stage = Stage::new();
    stage.make_accounts();
    let long = "x".repeat(2_000);
    let put = |more: &str| stage.atlas(&format!("{more} kv put accounts r c {long}"));
    put("--set transactions.valueSizeMax=1KiB").fails(2).says("transactions.valueSizeMax");
    put("--set transactions.writeSizeMax=1KiB").fails(2).says("transactions.writeSizeMax");
    stage.atlas(&format!("kv put accounts {long} c v")).fails(2).says("1500");
}

#[test]
fn everything_in_the_store_is_for_its_user_only() {
    let stage = Stage::new();
    stage.make_accounts();
    for name in stage.names_in("data/db") {
        let mode = std::fs::metadata(stage.path("data/db").join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
    }
}

#[test]
fn what_was_done_is_said_beside_the_number() {
    let stage = Stage::new();
    stage.make_accounts();
    let again = stage.atlas("table create accounts");
    assert_eq!(again.ok(), "accounts");
    assert!(again.stderr.contains("exists already, unchanged"), "{again:#?}");
    stage.atlas("table create ..").fails(2);
    stage.atlas("--set server.grpc=0.0.0.0:1 config check").fails(8).says("atlasdb.server.grpc");
    let cleaned = stage.atlas("timestamp clean-transactions --timestamp 1 --dry-run");
    cleaned.ok();
    assert!(cleaned.stderr.contains("would be rolled back"), "{cleaned:#?}");
    let now = stage.atlas("timestamp fetch").ok().parse::<u64>().unwrap();
    let moved = stage.atlas(&format!("timestamp fast-forward --timestamp {}", now + 100_000_000));
    moved.ok();
    assert!(moved.stderr.contains("Timestamps go on above"), "{moved:#?}");
    let idle = stage.atlas("timestamp fast-forward --timestamp 5");
    idle.ok();
    assert!(idle.stderr.contains("nothing was changed"), "{idle:#?}");
    assert!(stage.atlas("status").ok().contains("table\taccounts\tcells=3\tversions=3\tbytes="));
}

#[test]
fn a_full_disk_is_told_with_what_to_do_and_nothing_is_lost() {
    let stage = Stage::new();
    std::fs::create_dir(stage.path("small")).unwrap();
    stage.write("small.yml", &stage.config("small/store"));
    let atlas = format!("{ATLAS} --config small.yml");
    let script = format!(
        "mount -t tmpfs -o size=8m none small || exit 77
         {atlas} table create t && {atlas} kv put t r c v || exit 1
         head -c 9m /dev/zero > small/ballast
         {atlas} kv get t r c
         code=$?
         rm small/ballast
         {atlas} kv get t r c || exit 1
         exit $code"
    );
    let output = output(stage.program("unshare").args(["-m", "bash", "-c", &script]));
    let ran = Ran::new(&script, output);
    if ran.code == Some(77) || ran.stderr.contains("unshare failed") {
        eprintln!("SKIP: a file system can't be mounted here");
        return;
    }
    // RocksDB may need room to open; the file that names the owner does not.
    assert!(matches!(ran.code, Some(0 | 6)) && !ran.stderr.contains("owner"), "{ran:#?}");
    assert!(ran.code == Some(0) || ran.stderr.contains("hint: free space in"), "{ran:#?}");
    assert!(ran.stdout.ends_with("v\n"), "{ran:#?}");
}
