//! Backup and restore step by step: the reference's commands as they are written there, and our page about them.

use crate::stage::{Server, Stage};

/// The reference's commands, with its names for what is to be put in.
const SEED_BACKUP: [&str; 4] = [
    "./bin/atlasdb --config <config-file> --config-root <path-to-atlas-block> timestamp fetch --file <backup-directory>/backup.timestamp",
    "./bin/atlasdb --config <config-file> --config-root <path-to-atlas-block> backup-lock --acquire",
    "./bin/atlasdb --config <config-file> --config-root <path-to-atlas-block> timestamp fetch --file <backup-directory>/fast-forward.timestamp",
    "./bin/atlasdb --config <config-file> --config-root <path-to-atlas-block> backup-lock --release",
];
const SEED_RESTORE: [&str; 3] = [
    "./bin/atlasdb --config <config-file> --config-root <path-to-atlas-block> timestamp clean-transactions --file <backup-directory>/backup.timestamp",
    "./bin/atlasdb --config <config-file> --config-root <path-to-atlas-block> timestamp fast-forward --file <backup-directory>/fast-forward.timestamp",
    "./bin/atlasdb --config <config-file> --config-root <path-to-atlas-block> backup-lock --release",
];

/// A stage whose configuration is a block inside an application's own.
fn nested_stage() -> Stage {
    let stage = Stage::new();
    let data = stage.path("path/to/data");
    stage.write(
        "conf/app.yml",
        &format!(
            "http: {{port: 1}}\nstorage:\n  atlas:\n    namespace: operate\n    keyValueService: {{type: rocksdb, dataDir: \
             {}}}\n    server: {{http: off, grpc: off}}\n",
            data.display()
        ),
    );
    // The same store, for commands that look at it.
    stage.write("atlas.yml", &stage.config("path/to/data"));
    stage
}

fn seed(stage: &Stage, command: &str) -> String {
    let command = command
        .replace("<config-file>", "conf/app.yml")
        .replace("<path-to-atlas-block>", "/storage/atlas")
        .replace("<backup-directory>", "saved");
    stage.bash(&command).ok()
}

fn assert_is_as_at_the_backup(stage: &Stage, before: &str) {
    assert_eq!(stage.accounts(), before, "earlier writes are kept, later ones are gone");
    assert_eq!(stage.atlas("backup-lock --status").ok(), "free");
    assert!(stage.atlas("doctor --check all").ok().lines().all(|line| !line.starts_with("fail")));
    stage.atlas("kv put accounts dave balance 1").ok();
    assert_eq!(stage.atlas("kv get accounts dave balance").ok(), "1");
}

#[test]
fn the_recipe_of_the_reference_restores_a_stopped_store() {
    let stage = nested_stage();
    stage.make_accounts();
    let before = stage.accounts();

    seed(&stage, SEED_BACKUP[0]);
    stage.atlas("kv put accounts alice balance later").ok();
    seed(&stage, SEED_BACKUP[1]);
    stage.atlas("kv put accounts eve balance later").ok();
    stage.atlas("kv delete accounts bob balance").ok();
    stage.bash("tar -czf backup.tgz path/to/data").ok();
    stage.atlas("kv put accounts frank balance last").ok();
    let fast_forward = seed(&stage, SEED_BACKUP[2]);
    seed(&stage, SEED_BACKUP[3]);
    let backup_ts = std::fs::read_to_string(stage.path("saved/backup.timestamp")).unwrap();
    assert!(backup_ts.trim().parse::<u64>().unwrap() < fast_forward.parse().unwrap());
    assert_eq!(stage.atlas(&format!("kv scan accounts --at {backup_ts}")).ok(), before);

    stage.bash("rm -r path/to/data; tar -xzf backup.tgz").ok();
    assert_eq!(stage.atlas("backup-lock --status").ok(), "held", "it came along in the copy");
    seed(&stage, SEED_RESTORE[0]);
    let refused = stage.atlas("kv get accounts alice balance");
    refused.fails(9).says("fast-forward");
    // Each step may be done twice.
    seed(&stage, SEED_RESTORE[0]);
    seed(&stage, SEED_RESTORE[1]);
    seed(&stage, SEED_RESTORE[1]);
    seed(&stage, SEED_RESTORE[2]);
    assert_is_as_at_the_backup(&stage, &before);
    let next: u64 = stage.atlas("timestamp fetch").ok().parse().unwrap();
    assert!(next > fast_forward.parse().unwrap());
    let closed = seed(&stage, SEED_RESTORE[0]);
    assert_eq!(closed, "0", "what was committed after the restore is not touched by a third time");
    assert_eq!(stage.atlas("kv get accounts dave balance").ok(), "1");
}

#[test]
fn the_recipe_of_the_reference_works_beside_a_server() {
    let stage = nested_stage();
    stage.make_accounts();
    let before = stage.accounts();

    let server = stage.serve();
    seed(&stage, SEED_BACKUP[0]);
    stage.atlas("kv put accounts alice balance later").ok();
    seed(&stage, SEED_BACKUP[1]);
    stage.atlas("table drop accounts --yes").fails(5);
    stage.atlas("kv put accounts eve balance later").ok();
    server.stop();
    stage.bash("tar -czf backup.tgz path/to/data").ok();
    let server = stage.serve();
    assert_eq!(stage.atlas("backup-lock --status").ok(), "held", "it survives a restart");
    stage.atlas("kv put accounts frank balance last").ok();
    seed(&stage, SEED_BACKUP[2]);
    seed(&stage, SEED_BACKUP[3]);
    server.kill();

    stage.bash("rm -r path/to/data; tar -xzf backup.tgz").ok();
    seed(&stage, SEED_RESTORE[0]);
    seed(&stage, SEED_RESTORE[1]);
    let server = stage.serve();
    for command in &SEED_RESTORE[..2] {
        let refused = stage.bash(
            &command
                .replace("<config-file>", "conf/app.yml")
                .replace("<path-to-atlas-block>", "/storage/atlas")
                .replace("<backup-directory>", "saved"),
        );
        refused.fails(9).says(&server.pid().to_string());
    }
    seed(&stage, SEED_RESTORE[2]);
    assert_is_as_at_the_backup(&stage, &before);
    server.stop();
}

/// The commands in the fences of a section of the page, a line each.
fn commands_of(section: &str) -> Vec<String> {
    let page = include_str!("../../docs/backup-by-hand.md");
    let (_, rest) = page.split_once(&format!("\n## {section}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let mut commands = Vec::new();
    for block in section.split("```sh\n").skip(1) {
        commands.extend(block.split("```").next().unwrap().lines().map(str::to_owned));
    }
    commands
}

fn documented_stage() -> Stage {
    let stage = Stage::new();
    stage.write("atlas.yml", &stage.config("data/atlas"));
    // As a reader would have it: a path that starts at the working directory.
    stage.write(
        "app.yml",
        "atlasdb: {namespace: operate, keyValueService: {type: rocksdb, dataDir: ./data/atlas}, server: {http: off, grpc: off}}\n",
    );
    stage.make_accounts();
    stage
}

#[test]
fn the_page_about_it_works_as_it_stands() {
    let stage = documented_stage();
    let before = stage.accounts();
    let take = commands_of("Take it");
    assert_eq!(take.len(), 5);
    for command in take {
        stage.bash(&command).ok();
        stage.atlas("kv put accounts alice balance later").ok();
    }
    stage.bash("rm -r data").ok();
    for command in commands_of("Restore it") {
        stage.bash(&command).ok();
    }
    assert_is_as_at_the_backup(&stage, &before);
}

#[test]
fn the_page_about_it_works_beside_a_server_that_stops_for_the_copy() {
    let stage = documented_stage();
    let before = stage.accounts();
    let mut server: Option<Server> = None;
    for command in commands_of("Take it") {
        if command.starts_with("tar ") {
            server.take().unwrap().stop();
        } else {
            server.get_or_insert_with(|| stage.serve());
        }
        stage.bash(&command).ok();
        stage.atlas("kv put accounts alice balance later").ok();
    }
    drop(server);
    stage.bash("rm -r data").ok();
    let commands = commands_of("Restore it");
    let (offline, online): (Vec<_>, Vec<_>) =
        commands.into_iter().partition(|command| !command.contains(" backup-lock ") && !command.contains(" doctor "));
    for command in offline {
        stage.bash(&command).ok();
    }
    let server = stage.serve();
    for command in online {
        stage.bash(&command).ok();
    }
    assert_is_as_at_the_backup(&stage, &before);
    server.stop();
}
