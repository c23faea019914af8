//! Keyspaces that are being made: by many at once, by somebody who was killed, or by hand.

use crate::common::{Place, StoreKind, cassandra};
use crate::stage::{Ran, Running, Stage, until};
use crate::{config, stage};

fn place() -> Place {
    Place::new(StoreKind::Cassandra)
}

/// One after the other the changes of a schema take their time, so most of these are made to wait.
#[test]
fn stores_that_are_made_at_the_same_time_do_not_wait_for_each_other_for_ever() {
    let stages: Vec<Stage> = (0..4).map(|_| stage()).collect();
    let making: Vec<Running> =
        stages.iter().map(|stage| Running::start("table create t", &mut stage.command("table create t"))).collect();
    for running in making {
        until("the store is made", || running.has_ended());
        running.end().ok();
    }
    for stage in stages {
        assert_eq!(stage.atlas("table list").ok(), "t");
    }
}

#[test]
fn one_store_that_several_make_at_the_same_time_is_one_store() {
    let stage = stage();
    let lines: Vec<String> = (0..4).map(|number| format!("table create t{number}")).collect();
    let making: Vec<Running> = lines.iter().map(|line| Running::start(line, &mut stage.command(line))).collect();
    for (running, line) in making.into_iter().zip(&lines) {
        until("the store is made", || running.has_ended());
        let ran = running.end();
        // They take turns, and on a slow machine not everybody's comes within the time that a command waits.
        if ran.code == Some(9) {
            ran.says("the store is in use by `atlas table create`");
            stage.atlas(line).ok();
        } else {
            ran.ok();
        }
    }
    assert_eq!(stage.atlas("table list").ok(), "t0\nt1\nt2\nt3");
    stage.atlas("kv put t0 r c v").ok();
    assert_eq!(stage.atlas("kv get t0 r c").ok(), "v");
    let catalogs = cassandra::cql(
        "SELECT keyspace_name, table_name FROM system_schema.tables WHERE table_name = 'atlas_tables' ALLOW FILTERING",
    );
    let namespace =
        stage.config("data").lines().find_map(|line| line.trim().strip_prefix("namespace: ").map(str::to_owned));
    let keyspace = format!("atlas_{}", namespace.unwrap());
    assert_eq!(catalogs.iter().filter(|row| row[0] == keyspace).count(), 1);
}

/// Killed after so many ms, which is anywhere between the first change of the schema and the last.
#[test]
fn who_was_killed_while_he_made_a_store_is_followed_by_whoever_comes_next() {
    for delay in [150, 300, 450] {
        let stage = stage();
        let first = Running::start("serve", &mut stage.command("serve"));
        std::thread::sleep(std::time::Duration::from_millis(delay));
        // Dropped, and so killed.
        drop(first);
        stage.atlas("table create t").ok();
        stage.atlas("kv put t r c v").ok();
        let findings = stage.atlas("doctor --check all").ok();
        assert!(findings.lines().all(|line| !line.starts_with("fail")), "{findings}");
    }
}

/// Of a keyspace alone, and of one whose catalog holds nothing yet.
#[test]
fn what_was_begun_by_hand_or_by_somebody_killed_is_finished() {
    for with_catalog in [false, true] {
        let place = place();
        let keyspace = format!("atlas_{}", place.namespace());
        let factor = cassandra::settings().replication_factor;
        cassandra::cql(&format!(
            "CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': {factor}}}"
        ));
        if with_catalog {
            cassandra::cql(&format!(
                "CREATE TABLE {keyspace}.atlas_tables (place tinyint, name text, kind text, metadata blob, id uuid, \
                 doomed uuid, state text, PRIMARY KEY ((place), name))"
            ));
        }
        let stage = Stage::on_server(move |dir, _| config(dir, &place));
        // No store yet, so a question makes none; whoever may make one does.
        stage.atlas("kv get t r c").fails(4);
        stage.atlas("table create t").ok();
        stage.atlas("kv put t r c v").ok();
        assert_eq!(stage.atlas("kv get t r c").ok(), "v");
    }
}

/// A command on a namespace whose keyspace was made by hand with this replication, and is not touched.
fn on_keyspace(replication: &str, settings: &str) -> Ran {
    let place = place();
    let keyspace = format!("atlas_{}", place.namespace());
    cassandra::cql(&format!("CREATE KEYSPACE {keyspace} WITH replication = {replication}"));
    let stage = Stage::on_server(move |dir, _| config(dir, &place));
    let ran = stage.atlas(&format!("{settings} table create t"));
    let tables =
        cassandra::cql(&format!("SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{keyspace}'"));
    assert!(ran.code == Some(0) || tables.is_empty(), "something was made: {tables:?}");
    ran
}

#[test]
fn another_replication_than_configured_is_a_wrong_configuration_and_both_are_told() {
    let one = "{'class': 'SimpleStrategy', 'replication_factor': 1}";
    let ran = on_keyspace(one, "--set keyValueService.replicationFactor=3");
    ran.fails(8).says(one).says("'replication_factor': 3").says("alter the keyspace");
    let ran = on_keyspace(one, "--set keyValueService.dataCenter=datacenter1");
    ran.fails(8).says(one).says("{'class': 'NetworkTopologyStrategy', 'datacenter1': 1}");
    let centres = "{'class': 'NetworkTopologyStrategy', 'datacenter1': 1}";
    on_keyspace(centres, "").fails(8).says(centres).says("'SimpleStrategy'");
    on_keyspace(centres, "--set keyValueService.dataCenter=datacenter1").ok();
}

#[test]
fn more_copies_than_nodes_are_refused_before_anything_is_made() {
    let nodes = cassandra::settings().contact_points.split(',').count();
    let place = place();
    let keyspace = format!("atlas_{}", place.namespace());
    let stage = Stage::on_server(move |dir, _| config(dir, &place));
    let ran = stage.atlas(&format!("--set keyValueService.replicationFactor={} table create t", nodes + 2));
    ran.fails(8).says(&format!("'replication_factor': {}", nodes + 2)).says(&format!("the cluster has {nodes} node"));
    let ran = stage.atlas("--set keyValueService.dataCenter=nowhere table create t -o json");
    assert_eq!((ran.code, &ran.document()["error"]["code"]), (Some(8), &"CONFIG".into()), "{ran:#?}");
    assert!(ran.stdout.contains("data centre 'nowhere' has 0 nodes; the cluster's are 'datacenter1'"), "{ran:#?}");
    let keyspaces = cassandra::cql("SELECT keyspace_name FROM system_schema.keyspaces");
    assert!(keyspaces.iter().all(|row| row[0] != keyspace), "it was made");
}
