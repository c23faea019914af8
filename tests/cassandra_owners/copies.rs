//! A copy of a store holds the address of the original's owner, who must not be taken for its own.

use crate::LANE;
use crate::common::{Place, Site};
use crate::scene::Scene;
use atlas::Timestamp;
use atlas::kvs_api::{AtomicScan, CellBound, RowRange, TableKind, Value, VersionScan};
use futures::TryStreamExt;

/// A copy of a whole store, its own records included, as files that were copied bring it along to another cluster. There
/// it has its old name; here it can't, and its record is told the new one.
async fn copy(original: &Site, to: &Site) {
    copy_as(original, to, to.namespace()).await;
}

/// As [`copy`], for a store that is told that it has this name.
async fn copy_as(original: &Site, to: &Site, name: &str) {
    let (from, to) = (original.open().await, to.open().await);
    for description in from.tables().await.unwrap() {
        let table = &description.table;
        to.create_table(table, description.kind, description.metadata.clone()).await.unwrap();
        match description.kind {
            TableKind::Atomic => {
                let cells: Vec<_> =
                    from.scan_atomic(table, AtomicScan::new(RowRange::all())).try_collect().await.unwrap();
                for (cell, mut value) in cells {
                    if table.name() == "_atlas" && cell.row == "store" {
                        let record = String::from_utf8(value.to_vec()).unwrap();
                        assert!(record.contains(original.namespace()), "{record}");
                        value = record.replace(original.namespace(), name).into();
                    }
                    to.put_unless_exists(table, &cell, value).await.unwrap();
                }
            }
            TableKind::Versioned => {
                let all = VersionScan::new(RowRange::all(), Timestamp::MAX);
                let cells: Vec<_> = from.scan_versions(table, all).try_collect().await.unwrap();
                for found in cells {
                    for version in found.versions {
                        let bound = CellBound::new(found.cell.clone(), version.ts.next());
                        let value: Value = from.get(table, &[bound]).await.unwrap().remove(0).unwrap();
                        to.put_versions(table, vec![(found.cell.clone(), value)]).await.unwrap();
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_on_a_copy_does_not_reach_the_original() {
    let scene = Scene::with_table();
    let (server, address) = scene.serve();
    let place = Place::new(LANE.store);
    copy(&scene.place, &place).await;
    scene.atlas("kv put t r c later").ok();
    let on_copy = |line: &str| scene.atlas(&format!("--namespace {} {line}", place.namespace()));
    // The copy names an owner that is alive and answers, only not for the copy: whose challenge he can't read. He is
    // waited for, as one that is silent. Whatever the command does then, it does to the copy.
    let first = on_copy("kv get t r c");
    assert_eq!(first.ok(), "v", "the original was read");
    on_copy("table create only_here").ok();
    on_copy("kv put t r c changed").ok();
    let status = on_copy("status -o json").document();
    assert_eq!(status["data"]["connection"]["kind"], "local", "{status}");
    // Nor does it disturb him.
    assert_eq!(scene.atlas("table list").ok(), "t");
    assert_eq!(scene.atlas("kv get t r c").ok(), "later");
    let status = scene.atlas("status -o json").document();
    assert_eq!(status["data"]["owner"]["address"], *address, "the original's owner does not notice");
    assert_eq!(status["data"]["owner"]["pid"], server.pid(), "{status}");
    server.stop();
}

/// The owner of the copy and that of the original have the same record, but for what each has put into it since.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_a_copy_and_one_of_the_original_are_told_apart() {
    let scene = Scene::with_table();
    let (original, _) = scene.serve();
    let place = Place::new(LANE.store);
    copy(&scene.place, &place).await;
    let line = format!("--namespace {} serve", place.namespace());
    let copied = crate::stage::Server::start(&mut scene.stage.command(&line));
    for (namespace, server, value) in
        [(place.namespace(), &copied, "copy"), (scene.place.namespace(), &original, "original")]
    {
        let on = |line: &str| scene.atlas(&format!("--namespace {namespace} {line}"));
        on(&format!("kv put t r c {value}")).ok();
        let status = on("status -o json").document();
        assert_eq!(
            (&status["data"]["connection"]["kind"], &status["data"]["owner"]["pid"]),
            (&"remote".into(), &server.pid().into())
        );
    }
    assert_eq!(scene.atlas("kv get t r c").ok(), "original");
    assert_eq!(scene.atlas(&format!("--namespace {} kv get t r c", place.namespace())).ok(), "copy");
    copied.stop();
    original.stop();
}

/// A keyspace that was copied under another name is told by the name that it knows itself by.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_under_another_name_is_refused() {
    let scene = Scene::with_table();
    let place = Place::new(LANE.store);
    copy_as(&scene.place, &place, scene.place.namespace()).await;
    for line in ["kv get t r c", "kv put t r c w", "serve"] {
        let ran = scene.atlas(&format!("--namespace {} {line}", place.namespace()));
        ran.fails(9).says(scene.place.namespace()).says(place.namespace());
    }
    assert_eq!(scene.atlas("kv get t r c").ok(), "v");
}
