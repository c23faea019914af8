//! Commands find the owner of a store through the store, and nobody is let in beside him.

use crate::common::StoreKind;
use crate::scene::Scene;
use crate::stage::{Ran, Running, until};
use crate::{LANE, LEASE};
use atlas::Atlas;
use atlas::config::LeaderConfig;
use atlas::ops::Operations;

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_answered_by_the_owner_and_leave_nothing_behind() {
    let scene = Scene::with_table();
    let (server, address) = scene.serve();
    assert_eq!(scene.atlas("kv get t r c").ok(), "v");
    scene.atlas("kv put t r c w").ok();
    scene.atlas("table create u").ok();
    assert_eq!(scene.atlas("table list").ok(), "t\nu");
    scene.atlas("backup-lock --acquire").ok();
    scene.atlas("backup-lock --release").ok();
    let status = scene.atlas("status -o json").document();
    let owner = &status["data"]["owner"];
    assert_eq!(owner["pid"], server.pid(), "{status}");
    assert_eq!((owner["program"].as_str(), owner["address"].as_str()), (Some("atlas serve"), Some(&*address)));
    assert_eq!(status["data"]["connection"]["address"], format!("http://{address}"));
    // A renewal may be late on a busy machine.
    until("the lease is younger than it lasts", || {
        let status = scene.atlas("status -o json").document();
        let [age, lasts] = ["lease_age_ms", "lease_ms"].map(|field| status["data"]["owner"][field].as_u64());
        age.expect("a number") < lasts.expect("a number")
    });
    let plain = scene.atlas("status").ok();
    assert!(plain.contains(&format!("owner\tatlas serve, process {} on ", server.pid())), "{plain}");
    let lease = atlas::config::duration_text::parse(LEASE).unwrap().as_millis();
    assert!(plain.contains(&format!("\nlease\t{lease} ms, renewed ")), "{plain}");
    let doctor = scene.atlas("doctor").ok();
    for check in ["ok\tdatabase\t", "ok\taddress\tcommands on "] {
        assert!(doctor.contains(check), "{check}: {doctor}");
    }
    // One renewal may be late, which is a warning then.
    until("the lease is renewed in time", || scene.atlas("doctor --check lease").ok().starts_with("ok\tlease\t"));
    assert!(scene.records().await.iter().all(|(row, _)| row != "challenge"), "a challenge was left");
    server.stop();
    assert_eq!(scene.atlas("kv get t r c").ok(), "w", "without an owner, a command opens the store itself");
    assert_eq!(scene.record("oracle").await["holder"], serde_json::Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_a_store_that_is_missing_makes_none() {
    let scene = Scene::new();
    for line in ["status", "kv get t r c", "doctor", "--offline status", "timestamp fast-forward -t 5"] {
        scene.atlas(line).fails(4).says(scene.place.namespace()).says("`atlas serve` make one");
    }
    assert!(!scene.place.exists().await, "a store was made");
    scene.atlas("table create t").ok();
    scene.atlas("status").ok();
}

#[test]
fn a_second_owner_is_refused_and_told_of_the_first() {
    let scene = Scene::with_table();
    let (server, address) = scene.serve();
    let pid = format!("process {}", server.pid());
    scene.atlas("serve").fails(9).says(&pid).says("--standby");
    assert_eq!(scene.atlas("serve -o json").document()["error"]["code"], "STORE_IN_USE");
    scene.atlas("--offline kv get t r c").fails(9).says(&pid).says("leave out --offline");
    // A port that somebody else has is no reason to take another one.
    scene.atlas(&format!("serve --grpc {address}")).fails(8).says("atlasdb.server.grpc").says(&address);
    assert_eq!(scene.atlas("kv get t r c").ok(), "v", "the owner does not notice");
    server.stop();
    let (server, _) = scene.serve();
    server.stop();
}

#[test]
fn an_owner_that_answers_nobody_is_named() {
    let scene = Scene::with_table();
    let (server, line) = crate::stage::Server::start_and_say(&mut scene.stage.command("serve --grpc off"));
    assert_eq!(line, "ready\n");
    // Each waits for as long as a short command may take; both at the same time.
    let get = Running::start("kv get", &mut scene.stage.command("kv get t r c"));
    let serve = Running::start("serve", &mut scene.stage.command("serve"));
    let pid = format!("process {}", server.pid());
    get.end().fails(9).says(&pid).says("it answers nobody");
    serve.end().fails(9).says(&pid);
    server.stop();
}

#[test]
fn short_commands_wait_for_each_other() {
    let scene = Scene::with_table();
    let lines: Vec<String> = (0..4).map(|row| format!("kv put t row{row} c 1")).collect();
    let commands: Vec<Running> =
        lines.iter().map(|line| Running::start(line, &mut scene.stage.command(line))).collect();
    // All of them first: who comes again finds nobody in his way.
    let ends: Vec<Ran> = commands.into_iter().map(Running::end).collect();
    for (ran, line) in ends.into_iter().zip(&lines) {
        // They take turns, and on a busy cluster not everybody's comes within the time that a command waits.
        if ran.code == Some(9) && LANE.store == StoreKind::Cassandra {
            ran.says("the store is in use by `atlas kv put`");
            scene.atlas(line).ok();
        } else {
            ran.ok();
        }
    }
    assert_eq!(scene.atlas("kv scan t").ok().lines().count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_answers_commands_while_it_runs() {
    let scene = Scene::with_table();
    let lease = atlas::config::duration_text::parse(LEASE).unwrap();
    let mut config = scene.place.config(LANE);
    config.leader = LeaderConfig { lease };
    // Its own address is the system's choice, whatever is configured for `atlas serve`.
    config.server.grpc = "127.0.0.1:1".to_owned();
    let atlas = Atlas::open(config.clone()).await.unwrap();
    let status = scene.atlas("status -o json").document();
    assert_eq!(status["data"]["owner"]["pid"], std::process::id(), "{status}");
    assert!(status["data"]["owner"]["program"].as_str().unwrap().starts_with(env!("CARGO_CRATE_NAME")), "{status}");
    scene.atlas("kv put t r c w").ok();
    let error = Atlas::open(config.clone()).await.unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("STORE_IN_USE", 9), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    atlas.close().await.unwrap();
    let atlas = Atlas::open(config).await.unwrap();
    atlas.fresh_timestamp().await.unwrap();
    atlas.close().await.unwrap();
    assert_eq!(scene.atlas("kv get t r c").ok(), "w");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_in_the_store_and_nowhere_else() {
    let scene = Scene::with_table();
    let (server, address) = scene.serve();
    let token = scene.record("server-token").await["token"].as_str().unwrap().to_owned();
    assert_eq!(token.len(), 64);
    let error = atlas::server::RemoteAtlas::connect_address(&address, None).await.unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("UNAUTHENTICATED", 11));
    assert!(!error.to_string().contains(&token));
    for line in [
        "status -o json",
        "doctor --check all -o json",
        "config show --origin",
        "kv scan t -o json",
        "table list --internal -o json",
        "table describe _atlas --stats",
        "kv scan _atlas",
        "kv get _atlas server-token record",
        "serve",
    ] {
        let ran = scene.atlas(&format!("-vvv {line}"));
        assert!(!ran.stdout.contains(&token) && !ran.stderr.contains(&token), "{line}");
    }
    let command_line = std::fs::read_to_string(format!("/proc/{}/cmdline", server.pid())).unwrap();
    assert!(!command_line.contains(&token));
    server.stop();
    let (server, _) = scene.serve();
    let renewed = scene.record("server-token").await["token"].as_str().unwrap().to_owned();
    assert_ne!(renewed, token, "a new owner has a token of its own");
    server.stop();
}
