//! The demo on a server: in a namespace of its own, which is gone when it ends.

use crate::common::StoreKind;
use crate::scene::{Scene, free_port};
use crate::stage::{Ran, checkout, output};
use crate::{LANE, demos};

/// With the configuration that is shipped, which finds the server by the environment as an operator's would.
fn shipped(scene: &Scene, line: &str) -> Ran {
    let (file, variables) = match LANE.store {
        StoreKind::Postgres => ("postgres.yml", "PG"),
        StoreKind::Cassandra => ("cassandra.yml", "ATLAS_CASSANDRA_"),
        StoreKind::Memory | StoreKind::Rocksdb => panic!("{LANE:?} is on no server"),
    };
    let file = checkout::file(&format!("config/{file}"));
    let mut command = scene.stage.command_with(&file, line);
    let given: Vec<_> = std::env::vars().filter(|(name, _)| name.starts_with(variables)).collect();
    assert!(!given.is_empty(), "without {variables}… it would be a server of somebody else");
    Ran::new(line, output(command.envs(given)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_proves_a_backup_and_leaves_nothing_unless_it_is_told_to() {
    let scene = Scene::with_table();
    let before = demos().await;
    let line = "demo --seconds 2 --tasks 8 --dir demo -o json";
    let ran = shipped(&scene, line);
    ran.ok();
    let document = ran.document();
    assert_eq!(document["data"]["cells_compared"], 3376 * 6 + 5366 * 3, "{document}");
    assert!(document["data"]["commits_during_backup"].as_u64() > Some(0), "{document}");
    assert_eq!(demos().await, before);
    assert!(!scene.stage.has("demo"));

    // It loads the machine, and its owner must not lose its lease to that.
    let document = scene.atlas(&format!("--set leader.lease=10s {line} --keep")).document();
    let kept = document["data"]["kept"].as_str().unwrap();
    let left: Vec<_> = demos().await.into_iter().filter(|name| !before.contains(name)).collect();
    let [namespace] = &left[..] else { panic!("the restored store alone is left: {left:?}") };
    assert!(kept.contains(namespace), "{kept}");
    assert_eq!(scene.stage.names_in("demo/backups").len(), 1);
    let tables = scene.atlas(&format!("-n {namespace} table list")).ok();
    LANE.store.drop_namespace(namespace);
    assert_eq!(tables.lines().count(), 2, "{tables}");
    assert_eq!(scene.atlas("kv get t r c").ok(), "v", "the configured namespace is none of its business");
}

#[test]
fn a_server_that_is_away_ends_the_demo_before_it_has_begun() {
    let scene = Scene::new();
    let line = format!("--set {} demo --dir demo", crate::NOWHERE(free_port()));
    scene.atlas(&line).fails(6);
    assert!(!scene.stage.has("demo"));
}
