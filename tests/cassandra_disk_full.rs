//! A Cassandra node whose disk fills up in the middle of transfers, and that is started again once there is room.
//!
//! Without room for its tables the node stops serving and its process stays; without room for its log, which it has mapped
//! into memory, the process dies. Either way requests that were under way have no answer. What was acknowledged is
//! there in the end, what was reported as failed is not, what was reported as unknown is decided once and for ever, and
//! the sum is kept.

// What can't be unwrapped here has failed the test.
#![allow(clippy::unwrap_used)]

mod common;
#[allow(dead_code, reason = "it serves other tests too")]
#[path = "operate/stage.rs"]
mod stage;

use atlas::config::{ByteSize, KvsConfig};
use common::bank::Bank;
use common::cassandra::OwnNode;
use common::clerks::{Clerks, Told, until};
use common::*;
use parking_lot::Mutex;
use stage::Stage;
use std::sync::Arc;
use std::time::Duration;

const NAMESPACE: &str = "small_disk";

/// Runs a script that keeps the node busy, while the clerks are at work.
async fn script(node: &Arc<OwnNode>, arguments: &'static [&'static str]) -> std::process::Output {
    let node = Arc::clone(node);
    tokio::task::spawn_blocking(move || node.script(arguments)).await.expect("no panic")
}

async fn survive(part: &'static str) {
    let lane = CASSANDRA_STEPS;
    let Some(node) = OwnNode::start_on_small_disk(part).map(Arc::new) else { return };
    let dir = tempfile::tempdir().unwrap();
    let site = Site { kind: lane.store, dir: dir.path().to_owned(), namespace: NAMESPACE.to_owned() };
    let mut config = site.config(lane);
    config.transactions.pipeline_size_max = ByteSize(1024);
    // Longer than the node is away: the same owner goes on afterwards. (One whose lease is over is replaced, which is what
    // the tests of leases are about.)
    config.leader.lease = Duration::from_secs(600);
    let KvsConfig::Cassandra(settings) = &mut config.key_value_service else { panic!("a Cassandra lane") };
    (settings.contact_points, settings.replication_factor) = (node.host(), 1);

    let atlas = site.open_atlas(config.clone()).await;
    let bank = Bank::open(&atlas).await;
    let told = Arc::new(Mutex::new(Told::default()));
    let clerks = Clerks::start(&bank, "clerk", 8, true, &told);
    clerks.acknowledge(50).await;

    let refused = told.lock().refused;
    node.disk().fill();
    if part == "data" {
        // Otherwise it would keep what is written in memory for a while. It answers that it can't.
        assert!(!script(&node, &["nodetool", "1", "flush"]).await.status.success());
    }
    until("a refused transfer", || told.lock().refused > refused).await;
    // Whoever comes now is told that the node is away, and what there is to look at.
    for line in ["kv get accounts 0 v", "table create t", "status"] {
        let contact = node.host();
        let stage = Stage::on_server(move |_, _| {
            format!(
                "atlasdb:\n  namespace: {NAMESPACE}\n  server: {{http: off, grpc: off}}\n  keyValueService:\n    type: \
                 cassandra\n    contactPoints: {contact}\n"
            )
        });
        let ran = tokio::task::spawn_blocking(move || stage.atlas(line)).await.expect("no panic");
        ran.fails(6).says(&node.host());
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:#?}");
    }

    node.disk().clear();
    for arguments in [&["kill", "1"], &["start", "1"]] {
        let done = script(&node, arguments).await;
        assert!(done.status.success(), "{done:?}");
    }
    clerks.acknowledge(50).await;
    clerks.stop().await;
    let told = std::mem::take(&mut *told.lock());
    let survived = told.check(&bank, "after the disk had room").await;
    atlas.close().await.expect("the store closes");
    let atlas = site.open_atlas(config).await;
    let again = told.check(&Bank::open(&atlas).await, "after opening again").await;
    assert_eq!(again, survived, "an unknown outcome was decided twice");
    atlas.close().await.expect("the store closes");
    eprintln!(
        "{part}: {} acknowledged, {} refused, {} unknown, of which {} committed",
        told.acknowledged.len(),
        told.refused - told.unknown.len(),
        told.unknown.len(),
        survived.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_room_for_its_tables_is_survived() {
    survive("data").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_room_for_its_log_is_survived() {
    survive("commitlog").await;
}
