//! Backups by one command, and what is refused.

use crate::stage::{ATLAS, Ran, Running, Stage, checkout, output, until};
use atlas::backup::{MANIFEST_FILE, Manifest};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// Makes the copying of a backup last for as long as it takes to look at it.
const SLOWLY: (&str, &str) = ("FAILPOINTS", "backup::copy_file=sleep(400)");

/// The files of a backup, largest first.
fn files_of(backup: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut left = vec![backup.join("files")];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() { left.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files.sort_by_key(|file| std::cmp::Reverse(file.metadata().unwrap().len()));
    files
}

fn assert_whole(stage: &Stage, expected: &str) {
    assert_eq!(stage.restored_accounts(), expected);
    let doctor = stage.atlas_with("restored.yml", "doctor --check all").ok();
    assert!(doctor.lines().all(|line| line.starts_with("ok\t") || line.starts_with("warn\t")), "{doctor}");
    assert_eq!(stage.atlas_with("restored.yml", "backup-lock --status").ok(), "free");
}

#[test]
fn a_restored_store_is_the_state_at_the_backup_and_a_store_of_its_own() {
    let stage = Stage::new();
    stage.make_accounts();
    let before = stage.accounts();
    let id = stage.atlas("backup create --to repo").ok();
    assert!(!id.contains(char::is_whitespace));
    stage.atlas("kv put accounts alice balance later").ok();
    stage.atlas("backup create --to repo --name second").ok();
    assert_eq!(stage.atlas("backup list --repo repo").ok(), format!("second\n{id}"), "the newest first");
    let ran = stage.atlas("status -o json");
    assert_eq!(ran.document()["data"]["last_backup"]["id"], "second");

    let ran = stage.atlas(&format!("backup restore {id} --repo repo --into restored.yml -o json"));
    let restored = ran.document()["data"].clone();
    assert_whole(&stage, &before);
    let status = |config| stage.atlas_with(config, "status -o json").document()["data"].clone();
    let (original, new) = (status("atlas.yml"), status("restored.yml"));
    assert_eq!(new["store_id"], restored["store_id"]);
    assert_ne!(new["store_id"], original["store_id"]);
    assert!(new["last_backup"].is_null(), "none was taken of it");
    assert!(new["last_timestamp"].as_u64() > restored["fast_forward_ts"].as_u64());
    assert!(stage.accounts().contains("later"), "the original is as it was");
    for file in files_of(&stage.path(format!("repo/{id}"))) {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{}", file.display());
    }

    // The same store twice, one that lives, and a directory of something else.
    stage.atlas("backup restore latest --repo repo --into restored.yml").fails(9).says("not");
    assert_eq!(stage.restored_accounts(), before);
    let server = stage.serve();
    stage.atlas("backup restore latest --repo repo --into atlas.yml").fails(9);
    server.stop();
    stage.write("other/note.txt", "mine");
    stage.write("other.yml", &stage.config("other"));
    stage.atlas("backup restore latest --repo repo --into other.yml").fails(9).says("note.txt");
    assert_eq!(stage.names_in("other"), ["note.txt"]);
    stage.write("file", "");
    stage.write("file.yml", &stage.config("file"));
    stage.atlas("backup restore latest --repo repo --into file.yml").fails(9);
    std::fs::remove_file(stage.path("file")).unwrap();
    for inside in ["repo/restored", "repo", &format!("repo/{id}/new")] {
        stage.write("inside.yml", &stage.config(inside));
        stage.atlas("backup restore latest --repo repo --into inside.yml").fails(9).says("overlap");
    }
    assert_eq!(stage.names_in("repo").len(), 2);
    stage.write("memory.yml", "atlasdb: {namespace: operate, keyValueService: {type: memory}}\n");
    stage.atlas("backup restore latest --repo repo --into memory.yml").fails(9);

    // A backup of what was restored, and back.
    stage.atlas_with("restored.yml", "backup create --to repo --name third").ok();
    stage.write("again.yml", &stage.config("again"));
    stage.atlas("backup restore third --repo repo --into again.yml").ok();
    assert_eq!(stage.atlas_with("again.yml", "kv scan accounts").ok(), before);
}

#[test]
fn a_backup_of_a_served_store_has_nothing_of_its_owner() {
    let stage = Stage::new();
    let config = stage.config("data").replace("grpc: off", "grpc: 127.0.0.1:0");
    stage.write("atlas.yml", &config);
    stage.make_accounts();
    let server = stage.serve();
    assert!(stage.has("data/server.token"));
    stage.atlas("backup create --to repo --name b").ok();
    let files = files_of(&stage.path("repo/b"));
    let root = stage.path("repo/b/files/db");
    assert!(files.iter().all(|file| file.starts_with(&root)), "{files:?}");
    server.stop();

    // A token that waits for its server does not make a directory full, and a restore leaves it.
    std::fs::create_dir(stage.path("restored")).unwrap();
    std::fs::copy(stage.path("data/server.token"), stage.path("restored/server.token")).unwrap();
    let token = std::fs::read(stage.path("restored/server.token")).unwrap();
    stage.atlas("backup restore b --repo repo --into restored.yml").ok();
    assert_eq!(std::fs::read(stage.path("restored/server.token")).unwrap(), token);
    assert_eq!(stage.restored_accounts().lines().count(), 3);
}

#[test]
fn a_damaged_backup_is_told_and_never_restored() {
    let stage = Stage::new();
    stage.make_accounts();
    stage.atlas("backup create --to repo --name b").ok();
    let backup = stage.path("repo/b");
    let file = files_of(&backup).remove(0);
    let name = file.strip_prefix(&backup).unwrap().to_str().unwrap().to_owned();
    let manifest = backup.join(MANIFEST_FILE);
    let edit = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut content = std::fs::read(path).unwrap();
        change(&mut content);
        std::fs::write(path, content).unwrap();
    };
    let check = |what: &str, path: &Path, says: &str, damage: &dyn Fn()| {
        let original = std::fs::read(path).unwrap();
        damage();
        for line in ["backup verify b --repo repo", "backup restore b --repo repo --into restored.yml"] {
            stage.atlas(line).fails(7).says(says);
            assert_eq!(stage.atlas(&format!("{line} -o json")).document()["error"]["code"], "CORRUPT", "{what}");
        }
        assert!(stage.names_in("restored").is_empty(), "{what}: something was written");
        stage.atlas("backup list --repo repo").ok();
        std::fs::write(path, original).unwrap();
    };
    check("truncated", &file, &name, &|| edit(&file, &|content| content.truncate(content.len() / 2)));
    check("emptied", &file, &name, &|| edit(&file, &Vec::clear));
    check("longer", &file, &name, &|| edit(&file, &|content| content.push(0)));
    check("one bit", &file, &name, &|| {
        edit(&file, &|content| {
            let at = content.len() / 2;
            content[at] ^= 1;
        });
    });
    check("missing file", &file, &name, &|| std::fs::remove_file(&file).unwrap());
    let timestamp = backup.join("backup.timestamp");
    check("edited timestamp", &timestamp, "backup.timestamp", &|| std::fs::write(&timestamp, "7\n").unwrap());
    check("missing timestamp", &timestamp, "backup.timestamp", &|| std::fs::remove_file(&timestamp).unwrap());
    check("edited manifest", &manifest, "manifest.json", &|| {
        edit(&manifest, &|content| {
            let at = content.windows(8).position(|window| window == b"\"blake3\"").unwrap();
            content[at + 12] = if content[at + 12] == b'0' { b'1' } else { b'0' };
        });
    });
    check("truncated manifest", &manifest, "manifest.json", &|| edit(&manifest, &|content| content.truncate(100)));
    check("empty manifest", &manifest, "manifest.json", &|| edit(&manifest, &Vec::clear));
    check("missing manifest", &manifest, "never completed", &|| std::fs::remove_file(&manifest).unwrap());
    check("wrong checksum under a right seal", &manifest, "checksum", &|| {
        let mut sealed = Manifest::decode("here", &std::fs::read(&manifest).unwrap()).unwrap();
        sealed.files.iter_mut().for_each(|file| file.blake3 = "0".repeat(64));
        std::fs::write(&manifest, sealed.encode()).unwrap();
    });
    check("a backup under another's name", &manifest, "manifest.json", &|| {
        let mut sealed = Manifest::decode("here", &std::fs::read(&manifest).unwrap()).unwrap();
        sealed.id = "other".to_owned();
        std::fs::write(&manifest, sealed.encode()).unwrap();
    });
    // A link is no data.
    std::fs::rename(&file, stage.path("moved")).unwrap();
    std::os::unix::fs::symlink(stage.path("moved"), &file).unwrap();
    stage.atlas("backup restore b --repo repo --into restored.yml").fails(7).says(&name);
    std::fs::rename(stage.path("moved"), &file).unwrap();

    let states = |stage: &Stage| -> Vec<String> {
        let ran = stage.atlas("backup list --repo repo -o json");
        let backups = ran.document()["data"]["backups"].as_array().unwrap().clone();
        backups.iter().map(|backup| backup["state"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(states(&stage), ["complete"]);
    let original = std::fs::read(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    assert_eq!(states(&stage), ["incomplete"]);
    stage.atlas("backup restore latest --repo repo --into restored.yml").fails(4);
    std::fs::write(&manifest, b"{}").unwrap();
    assert_eq!(states(&stage), ["damaged"]);
    stage.atlas("backup restore latest --repo repo --into restored.yml").fails(4);
    std::fs::write(&manifest, original).unwrap();
    stage.atlas("backup verify b --repo repo").ok();
    stage.atlas("backup restore latest --repo repo --into restored.yml").ok();
    assert_whole(&stage, &stage.accounts());
}

#[test]
fn a_repository_lies_apart_from_the_store() {
    let stage = Stage::new();
    stage.make_accounts();
    std::os::unix::fs::symlink(stage.path("data"), stage.path("link")).unwrap();
    for repository in ["data", "data/repo", "data/db/x", "link/repo", "nowhere/../data/repo", "."] {
        stage.atlas(&format!("backup create --to {repository}")).fails(9).says("overlap");
    }
    stage.write("file", "");
    stage.atlas("backup create --to file").fails(9);
    let id = "x".repeat(101);
    for name in ["..", "a/b", ".hidden", "latest", id.as_str()] {
        stage.atlas(&format!("backup create --to repo --name {name}")).fails(2);
    }
    assert!(!stage.has("repo"), "nothing was made for what was refused");
    assert_eq!(stage.atlas("backup-lock --status").ok(), "free");
}

#[test]
fn one_backup_at_a_time_and_its_lock_is_its_own() {
    let stage = Stage::new();
    stage.make_accounts();
    let before = stage.accounts();
    // For longer than all that comes in between, on a slow machine too.
    let server = stage.serve_with(&[("FAILPOINTS", "backup::copy_file=sleep(2000)")]);
    let first = Running::start("backup create", &mut stage.command("backup create --to repo --name first"));
    until("it holds the lock", || stage.atlas("backup-lock --status").ok() == "held");
    // At once: one after the other they might outlast the backup.
    let refused = [
        "backup create --to repo --name second",
        "backup-lock --acquire",
        "table drop accounts --yes",
        "table truncate accounts --yes",
    ];
    for running in refused.map(|line| Running::start(line, &mut stage.command(line))) {
        running.end().fails(5).says("lock");
    }
    until("it copies", || !stage.names_in("repo/first/files/db").is_empty());
    stage.atlas("kv put accounts alice balance later").ok();
    assert_eq!(first.end().ok(), "first");
    assert_eq!(stage.atlas("backup-lock --status").ok(), "free");
    assert_eq!(stage.names_in("repo"), ["first"]);
    server.stop();
    stage.atlas("backup restore first --repo repo --into restored.yml").ok();
    assert_whole(&stage, &before);
}

#[test]
fn a_lock_that_a_backup_renews_is_not_released_by_hand() {
    let stage = Stage::new();
    stage.make_accounts();
    // Longer than the lock's lease, which the release watches.
    let server = stage.serve_with(&[("FAILPOINTS", "backup::manifest=sleep(4000)")]);
    let first = Running::start("backup create", &mut stage.command("backup create --to repo --name first"));
    until("it holds the lock", || stage.atlas("backup-lock --status").ok() == "held");
    stage.atlas("backup-lock --release").fails(5);
    assert_eq!(first.end().ok(), "first");
    stage.atlas("backup verify first --repo repo").ok();
    server.stop();
}

/// Interrupts a backup in the middle of copying, and sees that nothing of it is left.
fn interrupt(stage: &Stage, create: Running) {
    until("it copies", || !stage.names_in("repo/b/files/db").is_empty());
    create.interrupt();
    let ran = create.end();
    assert_eq!(ran.code, Some(130), "{ran:#?}");
    // At once: the program has waited for the end.
    stage.atlas("backup create --to repo --name b").ok();
    assert_eq!(stage.names_in("repo"), ["b"]);
    until("the snapshots are gone", || stage.names_in("data/staging").is_empty());
    stage.atlas("backup verify b --repo repo").ok();
}

#[test]
fn ctrl_c_ends_a_backup_of_a_stopped_store_and_leaves_nothing() {
    let stage = Stage::new();
    stage.make_accounts();
    let mut command = stage.command("backup create --to repo --name b");
    interrupt(&stage, Running::start("backup create", command.envs([SLOWLY])));
}

#[test]
fn ctrl_c_ends_a_backup_of_a_served_store_and_leaves_nothing() {
    let stage = Stage::new();
    stage.make_accounts();
    let server = stage.serve_with(&[SLOWLY]);
    let create = Running::start("backup create", &mut stage.command("backup create --to repo --name b"));
    interrupt(&stage, create);
    server.stop();
}

#[test]
fn a_server_that_is_asked_to_end_ends_its_backup_first() {
    let stage = Stage::new();
    stage.make_accounts();
    let server = stage.serve_with(&[SLOWLY]);
    let create = Running::start("backup create", &mut stage.command("backup create --to repo --name b"));
    until("it copies", || !stage.names_in("repo/b/files/db").is_empty());
    server.stop();
    let ran = create.end();
    assert_ne!(ran.code, Some(0), "{ran:#?}");
    ran.fails(ran.code.unwrap());
    assert!(stage.names_in("repo").is_empty());
    assert_eq!(stage.atlas("backup-lock --status").ok(), "free");
}

#[test]
fn a_target_without_space_is_refused_before_it_starts() {
    let stage = Stage::new();
    stage.make_accounts();
    stage.atlas("backup create --to repo --name fits").ok();
    std::fs::create_dir(stage.path("small")).unwrap();
    // A mount that nobody else sees, and that goes with the shell.
    let on_small = |line: &str| {
        let script =
            format!("mount -t tmpfs -o size=256k none small && {line}; code=$?; find small -type f; exit $code");
        let output = output(stage.program("unshare").args(["-m", "bash", "-c", &script]));
        Ran::new(line, output)
    };
    if on_small("true").code != Some(0) {
        eprintln!("SKIP: a file system can't be mounted here");
        return;
    }
    let ran = on_small(&format!("{ATLAS} --config atlas.yml backup create --to small/repo"));
    ran.fails(9).says("bytes free").says("small/repo");
    assert_eq!(ran.stdout, "", "nothing was written");
    assert_eq!(stage.atlas("backup-lock --status").ok(), "free");

    stage.write("small.yml", &stage.config("small/restored"));
    let ran = on_small(&format!("{ATLAS} backup restore fits --repo repo --into small.yml"));
    ran.fails(9).says("bytes free");
    assert_eq!(ran.stdout, "", "nothing was written");
}

#[test]
fn a_store_on_a_full_disk_goes_on_when_there_is_space_again() {
    let stage = Stage::new();
    std::fs::create_dir(stage.path("small")).unwrap();
    stage.write("small.yml", &stage.config("small/store"));
    let airports = checkout::file("examples/data/airports.csv");
    let atlas = format!("{ATLAS} --config small.yml");
    let script = format!(
        "mount -t tmpfs -o size=1m none small || exit 77
         head -c 600k /dev/zero > small/ballast
         {atlas} import --table t --create-table --batch 100 -o json {airports} > import.json
         code=$?
         rm small/ballast
         {atlas} kv scan t > rows && {atlas} doctor --check all && {atlas} kv put t again c v >&2 || exit 1
         exit $code"
    );
    let output = output(stage.program("unshare").args(["-m", "bash", "-c", &script]));
    let ran = Ran::new(&script, output);
    if ran.code == Some(77) || ran.stderr.contains("unshare failed") {
        eprintln!("SKIP: a file system can't be mounted here");
        return;
    }
    assert!(ran.stdout.contains("ok\tdata") && !ran.stdout.contains("fail\t"), "it can be used again: {ran:#?}");
    let import: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(stage.path("import.json")).unwrap()).unwrap();
    assert_eq!(import["ok"], false, "the disk was not full: {import}");
    // What was acknowledged is there; the batch of which it is not known is there as a whole or not at all.
    let acknowledged = import["error"]["details"]["rows_written"].as_u64().unwrap();
    let found = std::fs::read_to_string(stage.path("rows")).unwrap().lines().count() as u64 / 6;
    assert!(found == acknowledged || found == acknowledged + 100, "{found} rows: {import}");
}

#[test]
fn what_is_not_permitted_is_said() {
    let stage = Stage::new();
    std::fs::set_permissions(stage.path("."), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(stage.path("public")).unwrap();
    std::fs::set_permissions(stage.path("public"), std::fs::Permissions::from_mode(0o777)).unwrap();
    stage.make_accounts();
    let server = stage.serve();
    // Somebody else needs a program that they may run.
    std::fs::copy(ATLAS, stage.path("public/atlas")).unwrap();
    let somebody = |line: &str| {
        let mut command = stage.program(stage.path("public/atlas"));
        command.args(["--config", "atlas.yml"]).args(line.split_whitespace());
        if rustix::process::getuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
        Ran::new(line, output(&mut command))
    };
    if rustix::process::getuid().is_root() {
        for line in ["kv scan accounts", "status", "--offline kv scan accounts", "timestamp clean-transactions -t 5"] {
            somebody(line).fails(11).says("data");
            let ran = somebody(&format!("{line} -o json"));
            assert_eq!(ran.document()["error"]["code"], "PERMISSION", "{ran:#?}");
        }
        server.stop();
        for line in ["kv scan accounts", "serve", "backup create --to public/repo", "backup verify x --repo data"] {
            somebody(line).fails(11);
        }
    } else {
        server.stop();
        std::fs::create_dir(stage.path("closed")).unwrap();
        std::fs::set_permissions(stage.path("closed"), std::fs::Permissions::from_mode(0o500)).unwrap();
        somebody("backup create --to closed/repo").fails(11).says("closed");
        somebody("timestamp fetch --file closed/x").fails(11).says("closed");
        std::fs::set_permissions(stage.path("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    stage.atlas("kv scan accounts").ok();
}

#[test]
fn a_client_that_is_killed_takes_its_backup_with_it() {
    let stage = Stage::new();
    stage.make_accounts();
    let server = stage.serve_with(&[SLOWLY]);
    let create = Running::start("backup create", &mut stage.command("backup create --to repo --name b"));
    until("it copies", || !stage.names_in("repo/b/files/db").is_empty());
    drop(create);
    until("nothing is left of it", || stage.names_in("repo").is_empty());
    until("the lock is released", || stage.atlas("backup-lock --status").ok() == "free");
    server.stop();
}

#[test]
fn damage_in_the_store_itself_is_told_where_it_is_found() {
    let stage = Stage::new();
    let airports = checkout::file("examples/data/airports.csv");
    stage.atlas(&format!("import --table airports --create-table {airports}")).ok();
    stage.atlas("backup create --to repo --name b").ok();
    // From the backup, because its files hold all data: nothing of it is in a log.
    stage.atlas("backup restore b --repo repo --into restored.yml").ok();
    let tables = stage.names_in("restored/db").into_iter().filter(|name| name.ends_with(".sst"));
    let largest =
        tables.map(|name| stage.path("restored/db").join(name)).max_by_key(|file| file.metadata().unwrap().len());
    let file = largest.unwrap();
    let mut content = std::fs::read(&file).unwrap();
    let middle = content.len() / 3;
    content[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::write(&file, content).unwrap();
    stage.atlas_with("restored.yml", "kv scan airports").fails(7).says("damage");
    let ran = stage.atlas_with("restored.yml", "doctor --check all");
    ran.fails(10);
    assert!(ran.stdout.lines().any(|line| line.starts_with("fail\tdata\t")), "{ran:#?}");
    assert_eq!(
        stage.atlas_with("restored.yml", "doctor --check all -o json").document()["error"]["code"],
        "DOCTOR_FAILED"
    );
}
