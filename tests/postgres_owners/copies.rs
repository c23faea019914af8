//! A copy of a store holds the address of the original's owner, who must not be taken for its own.

use crate::common::{bounded, postgres};
use crate::scene::Scene;
use std::process::{Command, Stdio};

/// A database of its own that holds a copy of a namespace; removed in the end.
struct Copy(String);

impl Copy {
    /// As the server's own tools make it, while the original is in use.
    async fn of(scene: &Scene) -> Copy {
        let name = format!("copy_{}", scene.place.namespace());
        postgres::client().await.batch_execute(&format!("CREATE DATABASE \"{name}\"")).await.unwrap();
        let copy = Copy(name);
        let settings = postgres::settings();
        let mut dump = Command::new("pg_dump")
            .args(["--schema", &format!("*{}", scene.place.namespace()), &settings.database])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let load = bounded::status(
            Command::new("psql")
                .args(["--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", &copy.0])
                .stdin(dump.stdout.take().unwrap())
                .stdout(Stdio::null()),
        );
        assert!(bounded::end_of(&mut dump, "pg_dump").success() && load.success());
        copy
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", self.0);
        let dropped = bounded::output(Command::new("psql").args(["--quiet", "--command", &sql]));
        assert!(std::thread::panicking() || dropped.status.success(), "{sql}: {dropped:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_on_a_copy_does_not_reach_the_original() {
    let scene = Scene::with_table();
    let (server, address) = scene.serve();
    let copy = Copy::of(&scene).await;
    scene.atlas("kv put t r c later").ok();
    let on_copy = |line: &str| scene.atlas(&format!("--set keyValueService.database={} {line}", copy.0));
    // The copy names an owner that is alive and answers, only not for the copy. Whatever the command does, it does it
    // to the copy.
    let ran = on_copy("kv get t r c");
    if ran.code == Some(9) {
        // A copy that the store knows as one: its time has to be set right first.
        ran.says("fast-forward");
        on_copy("timestamp fast-forward -t 50000000").ok();
    }
    assert_eq!(on_copy("kv get t r c").ok(), "v", "the original was read");
    on_copy("table create only_here").ok();
    on_copy("kv put t r c changed").ok();
    let status = on_copy("status -o json").document();
    assert_eq!(status["data"]["connection"]["kind"], "local", "{status}");
    assert_eq!(scene.atlas("table list").ok(), "t");
    assert_eq!(scene.atlas("kv get t r c").ok(), "later");
    let status = scene.atlas("status -o json").document();
    assert_eq!(status["data"]["owner"]["address"], *address, "the original's owner does not notice");
    server.stop();
}
