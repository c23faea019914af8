//! The demo on a server: in a namespace of its own, which is gone when it ends.

use crate::common::postgres;
use crate::scene::Scene;
use crate::stage::Stage;

async fn demo_schemas() -> Vec<String> {
    let client = postgres::client().await;
    let found =
        client.query("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'atlas\\_demo\\_%'", &[]).await.unwrap();
    found.iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_proves_a_backup_and_leaves_nothing_unless_it_is_told_to() {
    let scene = Scene::with_table();
    let demo = |more: &str| scene.atlas(&format!("demo --seconds 2 --tasks 4 --dir demo -o json{more}"));
    let document = demo("").document();
    assert_eq!(document["data"]["cells_compared"], 3376 * 6 + 5366 * 3, "{document}");
    assert!(document["data"]["commits_during_backup"].as_u64() > Some(0), "{document}");
    assert_eq!(demo_schemas().await, Vec::<String>::new());
    assert!(!scene.stage.has("demo"));

    let document = demo(" --keep").document();
    let kept = document["data"]["kept"].as_str().unwrap();
    let left = demo_schemas().await;
    let [schema] = &left[..] else { panic!("the restored store alone is left: {left:?}") };
    assert!(kept.contains(schema.strip_prefix("atlas_").unwrap()), "{kept}");
    assert_eq!(scene.stage.names_in("demo/backups").len(), 1);
    let namespace = schema.strip_prefix("atlas_").unwrap();
    let tables = scene.atlas(&format!("-n {namespace} table list")).ok();
    postgres::drop_namespace(namespace);
    assert_eq!(tables.lines().count(), 2, "{tables}");
    assert_eq!(scene.atlas("kv get t r c").ok(), "v", "the configured namespace is none of its business");
}

#[test]
fn a_server_that_is_away_ends_the_demo_before_it_has_begun() {
    let scene = Scene::new();
    let stage: &Stage = &scene.stage;
    let line = format!("--set keyValueService.port={} demo --dir demo", crate::scene::free_port());
    stage.atlas(&line).fails(6);
    assert!(!stage.has("demo"));
}
