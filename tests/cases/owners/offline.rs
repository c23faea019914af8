//! Commands that change a stopped store own it while they do.

use crate::scene::Scene;

#[test]
fn a_stopped_store_is_changed_and_a_running_one_is_not() {
    let scene = Scene::with_table();
    let now: u64 = scene.atlas("timestamp fetch").ok().parse().unwrap();
    let target = now + 50_000_000;
    let (server, _) = scene.serve();
    let pid = format!("process {}", server.pid());
    let lines = [format!("timestamp fast-forward -t {target}"), format!("timestamp clean-transactions -t {target}")];
    for line in &lines {
        scene.atlas(line).fails(9).says(&pid).says("stop that process");
    }
    server.stop();
    scene.atlas(&lines[0]).ok();
    assert_eq!(scene.atlas(&lines[1]).code, Some(0));
    // The state after the clean-up is that of a restore under way, which the second command ends.
    scene.atlas(&format!("timestamp fast-forward -t {}", target + 1)).ok();
    let (server, _) = scene.serve();
    assert!(scene.atlas("timestamp fetch").ok().parse::<u64>().unwrap() > target);
    assert_eq!(scene.atlas("kv get t r c").ok(), "v");
    server.stop();
}

#[test]
fn a_dead_owner_is_given_its_lease_and_people_are_told() {
    let scene = Scene::with_table();
    // Long enough that somebody has to be told, and no longer.
    let line = "--set leader.lease=3s serve";
    let (server, _) = crate::stage::Server::start_and_say(&mut scene.stage.command(line));
    let pid = format!("process {}", server.pid());
    server.kill();
    let ran = scene.atlas("timestamp fast-forward -t 50000000");
    ran.ok();
    ran.says("waiting up to 3 s to be sure that").says(&pid);
    assert!(scene.atlas("timestamp fetch").ok().parse::<u64>().unwrap() > 50_000_000);
}
