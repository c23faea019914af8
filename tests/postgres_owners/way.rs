//! The way to the server: what is wrong with it has an exit code of its own.

use crate::scene::{Scene, free_port};

#[test]
fn what_is_wrong_with_the_way_to_the_server_has_its_exit_code() {
    let scene = Scene::new();
    let with = |set: &str| scene.atlas(&format!("--set keyValueService.{set} table create t"));
    with(&format!("port={}", free_port())).fails(6).says("no connection to database");
    with("database=there_is_none").fails(8).says("create the database");
    with("user=nobody_of_this_name").fails(11).says("check user and password");
    if std::env::var("PGPASSWORD").is_ok_and(|password| !password.is_empty()) {
        scene.stage.write("password", "Wr0ng-Secret\n");
        let ran = scene.atlas("-vvv table create t");
        ran.fails(11).says("check user and password");
        assert!(!ran.stderr.contains("Wr0ng-Secret"), "{ran:#?}");
    }
}
