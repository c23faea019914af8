//! `atlas serve`: who may reach it, and who may own a store.

use crate::stage::{Running, Server, Stage, until};
use atlas::ops::Operations;
use atlas::server::RemoteAtlas;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn mode(path: impl AsRef<Path>) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn socket_and_data_are_private_to_their_user() {
    let stage = Stage::new();
    let served = stage.serve();
    assert_eq!(mode(stage.path("data")), 0o700);
    assert_eq!(mode(stage.path("data/atlas.sock")), 0o600);
    assert_eq!(mode(stage.path("data/owner")) & 0o077, 0);
    served.stop();
    assert!(!stage.has("data/atlas.sock"), "it goes with its owner");

    // A directory that somebody made before, for everybody.
    std::fs::create_dir(stage.path("open")).unwrap();
    std::fs::set_permissions(stage.path("open"), std::fs::Permissions::from_mode(0o755)).unwrap();
    stage.write("open.yml", &stage.config("open"));
    stage.atlas_with("open.yml", "table create t").ok();
    let is_private = |name: &str| mode(stage.path(name)) & 0o077 == 0;
    assert!(is_private("open") || is_private("open/db"), "data must not be readable by others");
}

#[test]
fn a_store_has_one_owner_and_it_is_named() {
    let stage = Stage::new();
    stage.make_accounts();
    let server = stage.serve();
    let pid = format!("process {}", server.pid());
    // Each waits for as long as a short command may take; all of them at the same time.
    let second = Running::start("serve", &mut stage.command("serve"));
    let offline = Running::start("offline", &mut stage.command("--offline kv scan accounts"));
    let json = Running::start("serve", &mut stage.command("serve -o json"));
    second.end().fails(9).says(&pid);
    offline.end().fails(9).says(&pid);
    let ran = json.end();
    assert_eq!(ran.document()["error"]["code"], "STORE_IN_USE", "{ran:#?}");
    assert_eq!(stage.accounts().lines().count(), 3, "the owner does not notice");
    server.stop();

    // A socket that a dead owner left is nobody's.
    let server = stage.serve();
    server.kill();
    assert!(stage.has("data/atlas.sock"));
    assert_eq!(stage.accounts().lines().count(), 3);
    stage.serve().stop();
}

#[test]
fn an_opener_waits_for_a_short_command() {
    let stage = Stage::new();
    stage.make_accounts();
    let commands: Vec<Running> = (0..4)
        .map(|number| Running::start("kv put", &mut stage.command(&format!("kv put accounts row{number} balance 1"))))
        .collect();
    commands.into_iter().for_each(|command| drop(command.end().ok()));
    assert_eq!(stage.accounts().lines().count(), 7);
}

fn serving_stage() -> (Stage, Server, serde_json::Value) {
    let stage = Stage::new();
    let config = stage.config("data").replace("http: off, grpc: off", "http: 127.0.0.1:0, grpc: 127.0.0.1:0");
    stage.write("atlas.yml", &config);
    stage.make_accounts();
    let mut command = stage.command("serve -o json");
    let (server, line) = Server::start_and_say(&mut command);
    let said: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&said["data"]["ready"], &said["data"]["pid"]), (&true.into(), &server.pid().into()));
    let serving = said["data"]["serving"].clone();
    (stage, server, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_tcp_need_the_token_in_the_data_directory() {
    let (stage, server, serving) = serving_stage();
    let address = serving["grpc"].as_str().unwrap();
    let token = atlas::server::token_path(&stage.path("data"));
    assert_eq!(mode(&token), 0o600);
    let error = RemoteAtlas::connect_address(address, None).await.unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("UNAUTHENTICATED", 11));
    assert!(error.to_string().contains(token.to_str().unwrap()), "{error}");
    let remote = RemoteAtlas::connect_address(address, Some(&token)).await.unwrap();
    remote.fresh_timestamp().await.unwrap();
    assert_eq!(remote.owner_pid(), server.pid());
    let first = std::fs::read(&token).unwrap();
    server.stop();
    let server = stage.serve();
    assert_eq!(std::fs::read(&token).unwrap(), first, "it stays");
    server.stop();
    // Damaged, or open to others: the server does not guess.
    std::fs::write(&token, "short\n").unwrap();
    stage.atlas("serve").fails(1).says("server.token");
    std::fs::remove_file(&token).unwrap();
    stage.serve().stop();
    assert_ne!(std::fs::read(&token).unwrap(), first);
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    stage.atlas("serve").fails(1).says("chmod 600");
}

#[test]
fn http_tells_names_and_numbers_only() {
    let (stage, server, serving) = serving_stage();
    stage.atlas("kv put accounts secret-row balance secret-value").ok();
    stage.bash("atlas --config atlas.yml backup-lock --acquire --reason 'secret reason'").ok();
    let address = serving["http"].as_str().unwrap();
    for path in ["healthz", "readyz", "status", "metrics"] {
        let body = stage.bash(&format!("curl -sf http://{address}/{path}")).ok();
        for hidden in ["secret", stage.path("").to_str().unwrap()] {
            assert!(!body.contains(hidden), "{path}: {body}");
        }
    }
    let metrics = stage.bash(&format!("curl -sf http://{address}/metrics")).ok();
    assert!(metrics.contains("atlas_backup_lock_held 1") && metrics.contains("table=\"accounts\""), "{metrics}");
    let status: serde_json::Value =
        serde_json::from_str(&stage.bash(&format!("curl -sf http://{address}/status")).ok()).unwrap();
    assert_eq!(status["namespace"], "operate");
    assert!(status["backup_lock"]["since"].is_string());

    // A port that is taken is told with the key to change, and nobody is served.
    let other = stage.config("other").replace("http: off", &format!("http: '{address}'"));
    stage.write("other.yml", &other);
    stage.atlas_with("other.yml", "serve").fails(8).says("atlasdb.server.http");
    server.stop();
}

#[test]
fn of_two_servers_that_start_together_one_serves() {
    let stage = Stage::new();
    let starting: Vec<Running> = (0..2).map(|_| Running::start("serve", &mut stage.command("serve"))).collect();
    // The one that does not get the store ends by itself, after its wait.
    let mut starting = starting.into_iter();
    let (first, second) = (starting.next().unwrap(), starting.next().unwrap());
    until("one of them has ended", || first.has_ended() || second.has_ended());
    let (loser, winner) = if first.has_ended() { (first, second) } else { (second, first) };
    loser.end().fails(9).says(&format!("process {}", winner.pid()));
    stage.atlas("table create t").ok();
    winner.terminate();
    assert_eq!(winner.end().ok(), "ready");
}

#[test]
fn a_long_path_a_link_and_another_working_directory_lead_to_the_same_store() {
    let stage = Stage::new();
    let deep = format!("{}/store", "d".repeat(180));
    stage.write("atlas.yml", &stage.config(&deep));
    stage.make_accounts();
    std::os::unix::fs::symlink(stage.path(&deep), stage.path("link")).unwrap();
    stage.write("link.yml", &stage.config("link"));
    stage.write(
        "below/relative.yml",
        "atlasdb: {namespace: operate, keyValueService: {type: rocksdb, dataDir: ../link}}\n",
    );
    let server = stage.serve();
    let owner = |ran: crate::stage::Ran| ran.document()["data"]["owner_pid"].as_u64().unwrap();
    assert_eq!(owner(stage.atlas("status -o json")), u64::from(server.pid()));
    assert_eq!(owner(stage.atlas_with("link.yml", "status -o json")), u64::from(server.pid()));
    let below = stage.bash(
        "cd below; atlas -c relative.yml backup create --to ../repo --name b; atlas -c relative.yml kv scan accounts",
    );
    assert_eq!(below.ok().lines().count(), 4);
    assert_eq!(stage.names_in("repo"), ["b"]);
    server.stop();
    assert_eq!(stage.bash("ATLAS_CONFIG=link.yml atlas kv scan accounts").ok().lines().count(), 3);
}

#[test]
fn a_command_that_is_asked_to_end_says_so_with_its_code() {
    let stage = Stage::new();
    stage.make_accounts();
    // It waits for the rest of its input.
    let mut command = stage.command("import --table accounts --format jsonl -");
    command.stdin(std::process::Stdio::piped());
    let import = Running::start("import", &mut command);
    until("it owns the store", || !std::fs::read(stage.path("data/owner")).unwrap_or_default().is_empty());
    import.terminate();
    assert_eq!(import.end().code, Some(143));
    assert_eq!(stage.accounts().lines().count(), 3);
}

#[test]
fn what_can_not_be_written_is_no_success() {
    let stage = Stage::new();
    stage.make_accounts();
    for line in ["version", "kv scan accounts", "kv scan accounts -o json", "completions bash", "status"] {
        stage.bash(&format!("atlas -c atlas.yml {line} > /dev/full")).fails(1).says("standard output");
    }
}

#[test]
fn what_is_too_large_is_refused_before_anything_is_written() {
    let stage = Stage::new();
    stage.write(
        "atlas.yml",
        &format!("{}  transactions: {{valueSizeMax: 1KiB, writeSizeMax: 4KiB}}\n", stage.config("data")),
    );
    stage.atlas("table create t").ok();
    let (long, longer) = ("x".repeat(1500), "x".repeat(1501));
    stage.atlas(&format!("kv put t {long} c v")).ok();
    for served in [false, true] {
        let server = served.then(|| stage.serve());
        for line in [
            format!("kv put t {longer} c v"),
            format!("kv put t r {longer} v"),
            format!("kv put t r c {}", "v".repeat(1025)),
        ] {
            stage.atlas(&line).fails(2).says("limit");
            assert_eq!(stage.atlas(&format!("{line} -o json")).document()["error"]["code"], "TOO_LARGE");
        }
        stage.write("large.jsonl", &format!("{{\"k\":\"a\",\"v\":\"{}\"}}\n", "v".repeat(1000)));
        stage.atlas("import --table t large.jsonl").ok();
        let rows: String = (0..10).map(|row| format!("{{\"k\":\"{row}\",\"v\":\"{}\"}}\n", "v".repeat(1000))).collect();
        stage.write("large.jsonl", &rows);
        stage.atlas("import --table t large.jsonl").fails(2).says("limit").says("0 rows");
        drop(server);
    }
    assert_eq!(stage.atlas("kv scan t").ok().lines().count(), 2);
}
