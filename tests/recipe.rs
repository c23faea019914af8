//! The program as an operator runs it: the recipe of a backup by hand, signals, and pipes that close early.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn atlas(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atlas"));
    command.current_dir(dir).env_remove("ATLAS_CONFIG").env_remove("ATLAS_LOG");
    command.args(["--config", "atlas.yml", "--config-root", "/app/atlasdb"]).args(line.split_whitespace());
    command
}

fn run(dir: &Path, line: &str, code: i32) -> String {
    let Output { status, stdout, stderr } = atlas(dir, line).output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(code), "{line}: {stderr}");
    String::from_utf8(stdout).expect("output is text").trim_end().to_owned()
}

fn stand() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config =
        "app:\n  atlasdb:\n    keyValueService: {type: rocksdb, dataDir: ./data}\n    server: {http: off, grpc: off}\n";
    std::fs::write(dir.path().join("atlas.yml"), config).expect("the configuration is written");
    dir
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs").success());
}

#[test]
fn the_recipe_of_a_backup_by_hand_restores_the_backup_timestamp() {
    let stand = stand();
    let dir = stand.path();
    run(dir, "table create accounts", 0);
    run(dir, "kv put accounts alice balance 1", 0);
    let backup_ts = run(dir, "timestamp fetch --file backup/backup.timestamp", 0);
    run(dir, "backup-lock --acquire", 0);
    run(dir, "backup-lock --acquire", 5);
    run(dir, "table truncate accounts --yes", 5);
    run(dir, "kv put accounts alice balance 2", 0);
    assert!(
        Command::new("cp").args(["-a", "data", "backup/data"]).current_dir(dir).status().expect("cp runs").success()
    );
    let fast_forward_ts = run(dir, "timestamp fetch --file backup/fast-forward.timestamp", 0);
    run(dir, "backup-lock --release", 0);
    run(dir, "kv put accounts alice balance 3", 0);

    std::fs::remove_dir_all(dir.join("data")).expect("the store is lost");
    std::fs::rename(dir.join("backup/data"), dir.join("data")).expect("the copy is laid down");
    assert_eq!(run(dir, "timestamp clean-transactions --file backup/backup.timestamp", 0), "1");
    run(dir, "timestamp fast-forward --file backup/fast-forward.timestamp", 0);
    assert_eq!(run(dir, "backup-lock --release", 0), "released");
    assert_eq!(run(dir, "kv get accounts alice balance", 0), "1");
    let number = |text: &str| text.parse::<u64>().expect("plain output is a number");
    assert!(number(&backup_ts) < number(&fast_forward_ts));
    assert!(number(&run(dir, "timestamp fetch", 0)) > number(&fast_forward_ts));
}

#[test]
fn commands_find_a_serving_process_and_those_for_a_stopped_store_refuse() {
    let stand = stand();
    let dir = stand.path();
    let mut server = atlas(dir, "serve").stdout(Stdio::piped()).spawn().expect("the program starts");
    let mut ready = String::new();
    BufReader::new(server.stdout.take().expect("it is piped")).read_line(&mut ready).expect("a line comes");
    assert_eq!(ready, "ready\n");
    run(dir, "table create t", 0);
    run(dir, "kv put t r c v", 0);
    assert_eq!(run(dir, "kv get t r c", 0), "v");
    assert!(run(dir, "status", 0).contains(&format!("process {}", server.id())));
    run(dir, "timestamp fast-forward -t 5", 9);
    run(dir, "timestamp clean-transactions -t 5", 9);
    signal(&server, "TERM");
    assert_eq!(server.wait().expect("it ends").code(), Some(0));
    assert_eq!(run(dir, "kv get t r c", 0), "v");
}

#[test]
fn an_interrupted_command_ends_with_130_and_releases_the_store() {
    let stand = stand();
    let dir = stand.path();
    run(dir, "table create t", 0);
    let import = atlas(dir, "import --table t --format csv -").stdin(Stdio::piped()).spawn();
    let mut import = import.expect("the program starts");
    let stdin = import.stdin.take();
    // It owns the store once its socket answers; before that, an offline command would do its work.
    let socket = dir.join("data/atlas.sock");
    for _ in 0..200 {
        if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    signal(&import, "INT");
    assert_eq!(import.wait().expect("it ends").code(), Some(130));
    drop(stdin);
    run(dir, "timestamp fast-forward -t 5", 0);
}

#[test]
fn a_reader_who_has_enough_is_no_failure() {
    let stand = stand();
    let dir = stand.path();
    let rows: String = (0..20_000).map(|row| format!("{row},some text that fills the pipe\n")).collect();
    std::fs::write(dir.join("rows.csv"), format!("row,text\n{rows}")).expect("the file is written");
    assert_eq!(run(dir, "import --table t rows.csv --create-table", 0), "20000");
    let mut scan = atlas(dir, "kv scan t").stdout(Stdio::piped()).spawn().expect("the program starts");
    let mut line = String::new();
    BufReader::new(scan.stdout.take().expect("it is piped")).read_line(&mut line).expect("a line comes");
    assert_eq!(line, "0\ttext\tsome text that fills the pipe\n");
    assert_eq!(scan.wait().expect("it ends").code(), Some(0));
}
