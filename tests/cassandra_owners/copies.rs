//! A copy of a store holds the address of the original's owner, who must not be taken for its own.

use crate::LANE;
use crate::common::Place;
use crate::scene::Scene;
use atlas::Timestamp;
use atlas::kvs_api::{AtomicScan, CellBound, KeyValueService, RowRange, TableKind, Value, VersionScan};
use futures::TryStreamExt;

/// Everything that a store consists of, as files that were copied bring it along: its own records as well.
async fn copy(from: &dyn KeyValueService, to: &dyn KeyValueService) {
    for description in from.tables().await.unwrap() {
        let table = &description.table;
        to.create_table(table, description.kind, description.metadata.clone()).await.unwrap();
        match description.kind {
            TableKind::Atomic => {
                let cells: Vec<_> =
                    from.scan_atomic(table, AtomicScan::new(RowRange::all())).try_collect().await.unwrap();
                for (cell, value) in cells {
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
    copy(&*scene.place.open().await, &*place.open().await).await;
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
    copy(&*scene.place.open().await, &*place.open().await).await;
    let line = format!("--namespace {} serve -o json", place.namespace());
    let (copied, _) = crate::stage::Server::start_and_say(&mut scene.stage.command(&line));
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
