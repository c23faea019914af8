//! Configurations that are wrong, and the commands about them.

use crate::stage::Stage;

#[test]
fn a_wrong_configuration_is_told_with_its_place() {
    let stage = Stage::new();
    for (content, says) in [
        (
            "atlasdb:\n  namespace: a\n  keyValueServce: {type: rocksdb}\n",
            &["wrong.yml, line 3", "keyValueService"][..],
        ),
        ("atlasdb:\n  keyValueService:\n    type: rocksdb\n    dataDr: x\n", &["wrong.yml, line 4", "dataDir"]),
        ("atlasdb:\n  keyValueService:\n    type: rocksb\n", &["wrong.yml, line 3", "rocksdb"]),
        ("atlasdb:\n  server:\n    grpc: off\n    http: 0.0.0.0:80\n", &["atlasdb.server.http"]),
        ("atlasdb:\n  transactions:\n    timeout: soon\n", &["wrong.yml, line 3", "soon"]),
        ("atlasdb: [1\n", &["wrong.yml"]),
        ("atlasdb:\n  namespace: a\nother: 1\n", &["wrong.yml, line 3", "--config-root"]),
    ] {
        stage.write("wrong.yml", content);
        let line = if content.contains("http") { "serve" } else { "config check" };
        let ran = stage.atlas_with("wrong.yml", line);
        ran.fails(8);
        for text in says {
            ran.says(text);
        }
        let ran = stage.atlas_with("wrong.yml", &format!("{line} -o json"));
        assert_eq!(ran.code, Some(8), "{ran:#?}");
        assert_eq!(ran.document()["error"]["code"], "CONFIG");
    }
    for line in ["kv get t r c", "status", "serve", "backup create --to repo", "timestamp fetch"] {
        stage.write("wrong.yml", "atlasdb: {namspace: x}\n");
        stage.atlas_with("wrong.yml", line).fails(8).says("namespace");
    }
    stage.atlas_with("missing.yml", "config check").fails(8).says("missing.yml");
    stage.atlas("--config-root /nowhere config check").fails(8).says("nowhere");
    stage.atlas("--set nonsense.key=1 config check").fails(8).says("--set");
    stage.write("restored.yml", "atlasdb: {keyValueService: {type: rocksdb, datadir: x}}\n");
    stage.atlas("backup restore latest --repo repo --into restored.yml").fails(8).says("restored.yml");
}

#[test]
fn what_holds_is_shown_with_its_origin() {
    let stage = Stage::new();
    let shown = stage.atlas("config show").ok();
    assert!(shown.contains("namespace: operate") && shown.contains("blockCache: 64MiB"), "{shown}");
    stage.write("shown.yml", &shown);
    assert_eq!(stage.atlas_with("shown.yml", "config show").ok(), shown, "what is shown can be read");

    let mut command = stage.command("config show --origin --set backup.lockLease=2s -n flagged");
    command.env("ATLAS__KEY_VALUE_SERVICE__BLOCK_CACHE", "1MiB");
    let output = crate::stage::Ran::new("config show --origin", crate::stage::output(&mut command)).ok();
    for (key, from) in [
        ("atlasdb.namespace\tflagged", "--namespace"),
        ("atlasdb.backup.lockLease\t2s", "--set"),
        ("atlasdb.keyValueService.blockCache\t1MiB", "ATLAS__KEY_VALUE_SERVICE__BLOCK_CACHE"),
        ("atlasdb.keyValueService.type", "atlas.yml:3"),
        ("atlasdb.transactions.attemptsMax\t50", "default"),
    ] {
        let line = output.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}: {output}"));
        assert!(line.contains(from), "{line}");
    }

    stage.atlas("config init made/atlas.yml").ok();
    stage.atlas_with("made/atlas.yml", "config check").ok();
    stage.atlas("config init made/atlas.yml").fails(9).says("left as it is");
    let defaults = crate::stage::Ran::new(
        "config show",
        crate::stage::output(stage.program(crate::stage::ATLAS).args(["config", "show"])),
    );
    assert_eq!(
        stage.atlas_with("made/atlas.yml", "config show").ok(),
        defaults.ok(),
        "what is written are the defaults"
    );
}

#[test]
fn a_store_belongs_to_one_namespace() {
    let stage = Stage::new();
    stage.make_accounts();
    stage.atlas("-n other kv scan accounts").fails(9).says("operate");
    assert_eq!(stage.accounts().lines().count(), 3);
    stage.atlas("backup create --to repo --name b").ok();
    stage.write("other.yml", &stage.config("restored").replace("namespace: operate", "namespace: other"));
    stage.atlas("backup restore b --repo repo --into other.yml").fails(9).says("namespace");
    assert!(!stage.has("restored"));
}
