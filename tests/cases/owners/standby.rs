//! A server that stands by takes over, and the one before it knows its place.

use crate::scene::{Scene, get};
use crate::stage::{Running, signal, until};
use rustix::process::Signal;

#[test]
fn a_stand_by_says_whom_it_waits_for_and_takes_over_from_the_dead() {
    let scene = Scene::with_table();
    let (server, _) = scene.serve();
    let standby = scene.stand_by();
    let pid = format!("process {}", server.pid());
    until("the owner is known", || standby.status()["owner"].as_str().is_some_and(|owner| owner.contains(&pid)));
    assert_eq!(standby.status()["state"], "standby");
    let ready = get(&standby.http, "/readyz").unwrap();
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("STANDBY"), "{ready}");
    assert!(get(&standby.http, "/metrics").unwrap().contains("\natlas_leading 0\n"));
    scene.atlas("kv put t r c w").ok();
    server.kill();
    standby.until_it_leads();
    assert_eq!(standby.status()["state"], "leading");
    assert!(get(&standby.http, "/metrics").unwrap().contains("\natlas_leading 1\n"));
    let status = scene.atlas("status -o json").document();
    assert_eq!(status["data"]["owner"]["pid"], standby.running.pid(), "{status}");
    assert_eq!(scene.atlas("kv get t r c").ok(), "w");
    let ran = standby.stop();
    assert_eq!(ran.ok(), "ready");
    assert!(ran.stderr.contains(&pid), "the log does not say for whom it waited: {ran:#?}");
}

#[test]
fn a_stand_by_takes_over_when_the_owner_ends_and_ends_when_it_is_asked_to() {
    let scene = Scene::with_table();
    let (server, _) = scene.serve();
    let (first, second) = (scene.stand_by(), scene.stand_by());
    server.stop();
    until("one has taken over", || first.leads() || second.leads());
    let (leader, waiting) = if first.leads() { (first, second) } else { (second, first) };
    assert_eq!(waiting.status()["state"], "standby");
    assert_eq!(scene.atlas("kv get t r c").ok(), "v");
    // While it waits it ends as a server does, and takes nothing over.
    let pid = leader.running.pid();
    let ran = waiting.stop();
    assert_eq!((ran.code, &*ran.stdout), (Some(0), ""), "{ran:#?}");
    assert_eq!(scene.atlas("status -o json").document()["data"]["owner"]["pid"], pid);
    leader.stop().ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_stopped_for_too_long_ends_when_it_goes_on() {
    let scene = Scene::with_table();
    let line = "serve -o json";
    let mut old = Running::start(line, &mut scene.stage.command(line));
    let ready = old.line();
    let said: serde_json::Value = serde_json::from_str(&ready).unwrap();
    let address = said["data"]["serving"]["grpc"].as_str().unwrap().to_owned();
    let token = scene.record("server-token").await["token"].as_str().unwrap().to_owned();
    let file = scene.stage.write("token", &token);
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let client = atlas::server::RemoteAtlas::connect_address(&address, Some(&file)).await.unwrap();
    let before = atlas::ops::Operations::fresh_timestamp(&client).await.unwrap();

    let standby = scene.stand_by();
    signal(old.pid(), Signal::STOP);
    standby.until_it_leads();
    scene.atlas("kv put t r c w").ok();
    signal(old.pid(), Signal::CONT);
    // Its old client gets no number any more, whatever the server knows of its end by now, and may try elsewhere.
    let error = atlas::ops::Operations::fresh_timestamp(&client).await.unwrap_err();
    assert!(error.is_retriable(), "{} {error}", error.code());
    let ran = old.end();
    assert_eq!(ran.code, Some(12), "{ran:#?}");
    assert!(ran.stderr.contains("another process has taken the store over"), "{ran:#?}");
    assert_eq!(scene.atlas("kv get t r c").ok(), "w");
    let after: u64 = scene.atlas("timestamp fetch").ok().parse().unwrap();
    assert!(after > before.get(), "{after} was issued after {before}");
    standby.stop().ok();
}

#[test]
fn a_directory_has_no_stand_by() {
    let scene = Scene::new();
    scene.stage.atlas_with("restored.yml", "serve --standby").fails(9).says("--standby");
}
