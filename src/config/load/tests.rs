use super::*;
use crate::config::{ByteSize, CassandraKvs, CommitModeChoice, KvsConfig, LogLevel, PostgresKvs};

fn from_text(text: &str, change: impl FnOnce(&mut Sources)) -> Result<Loaded> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("atlas.yml");
    std::fs::write(&file, text).expect("the file is written");
    let mut sources = Sources { file: Some(file), ..Sources::default() };
    change(&mut sources);
    load(&sources)
}

fn message(text: &str, change: impl FnOnce(&mut Sources)) -> String {
    let error = from_text(text, change).expect_err("this configuration is wrong");
    assert_eq!(error.exit_code(), crate::exit::CONFIG, "{error}");
    let message = error.to_string();
    // The directory is another one in every run.
    match message.find("atlas.yml") {
        Some(at) => message[at..].to_owned(),
        None => message,
    }
}

fn just(text: &str) -> String {
    message(text, |_| ())
}

#[test]
fn the_committed_file_equals_the_defaults() {
    let loaded = from_text(COMMENTED, |_| ()).expect("the committed file is right");
    assert_eq!(loaded.config, AtlasConfig::default());
    assert_eq!(loaded.runtime, RuntimeConfig::default());
    let missing: Vec<&Setting> = loaded.settings.iter().filter(|setting| setting.origin == Origin::Default).collect();
    assert!(missing.is_empty(), "config/atlas.yml does not show {missing:?}");
}

#[test]
fn nothing_at_all_gives_the_defaults() {
    let loaded = load(&Sources { alone: true, ..Sources::default() }).expect("defaults work");
    assert_eq!(loaded.config, AtlasConfig::default());
    assert!(loaded.settings.iter().all(|setting| setting.origin == Origin::Default));
    for empty in ["", "# nothing\n", "atlasdb:\n", "atlasdb: {}\n", "atlasdb:\n  server:\n"] {
        assert_eq!(from_text(empty, |_| ()).expect(empty).config, AtlasConfig::default(), "{empty:?}");
    }
}

#[test]
fn each_layer_goes_before_the_one_below() {
    let text = "atlasdb:\n  namespace: file\n  transactions: {timeout: 1s, attemptsMax: 2, writeSizeMax: 3}\n";
    let loaded = from_text(text, |sources| {
        sources.environment = Environment::from([
            ("ATLAS__NAMESPACE", "environment"),
            ("ATLAS__TRANSACTIONS__TIMEOUT", "2s"),
            ("ATLAS__TRANSACTIONS__ATTEMPTS_MAX", "4"),
            ("ATLAS_UNRELATED", "x"),
        ]);
        sources.set = vec!["transactions.timeout=3s".into(), "atlasdb.namespace=set".into()];
        sources.flags = vec![("namespace", "flag".into(), "--namespace")];
    })
    .expect("all layers are right");
    assert_eq!(loaded.config.namespace, "flag");
    assert_eq!(loaded.config.transactions.timeout.as_secs(), 3);
    assert_eq!(loaded.config.transactions.attempts_max, 4);
    assert_eq!(loaded.config.transactions.write_size_max, ByteSize(3));
    let origin = |key: &str| {
        let setting = loaded.settings.iter().find(|setting| setting.key == key).expect(key);
        setting.origin.to_string()
    };
    assert_eq!(origin("atlasdb.namespace"), "--namespace");
    assert_eq!(origin("atlasdb.transactions.timeout"), "--set");
    assert_eq!(origin("atlasdb.transactions.attemptsMax"), "environment ATLAS__TRANSACTIONS__ATTEMPTS_MAX");
    assert!(origin("atlasdb.transactions.writeSizeMax").ends_with("atlas.yml:3"));
    assert_eq!(origin("atlasdb.server.http"), "default");
}

#[test]
fn keys_may_be_written_in_snake_case() {
    let text = "atlasdb:\n  key_value_service: {type: rocksdb, data_dir: /x, block_cache: 1MiB}\n  transactions: {commit_mode: step_by_step}\n";
    let config = from_text(text, |_| ()).expect("snake case is fine").config;
    let wanted = KvsConfig::Rocksdb { data_dir: "/x".into(), block_cache: ByteSize(1 << 20), sync: true };
    assert_eq!(config.key_value_service, wanted);
    assert_eq!(config.transactions.commit_mode, CommitModeChoice::StepByStep);
    let twice = "atlasdb:\n  server: {http: off}\n  transactions:\n    attempts_max: 1\n    attemptsMax: 2\n";
    assert!(just(twice).contains("given twice"), "{}", just(twice));
}

#[test]
fn unknown_keys_are_refused_with_line_and_nearest_key() {
    let cases = [
        (
            "atlasdb:\n  # comment\n  keyValueServce: {type: rocksdb}\n",
            "atlas.yml, line 3, atlasdb.keyValueServce: unknown key; did you mean 'keyValueService'?",
        ),
        (
            "atlasdb:\n  keyValueService:\n    type: rocksdb\n    datadir: x\n",
            "atlas.yml, line 4, atlasdb.keyValueService.datadir: unknown key; did you mean 'dataDir'?",
        ),
        (
            "atlasdb:\n  dataDir: x\n",
            "atlas.yml, line 2, atlasdb.dataDir: unknown key here; did you mean 'keyValueService.dataDir'?",
        ),
        (
            "atlasdb:\n  keyValueService: {type: memory, dataDir: x}\n",
            "atlas.yml, line 2, atlasdb.keyValueService.dataDir: unknown key; the keys here of this type of store are type",
        ),
        (
            "atlasdb:\n  namespace: a\natlasdb-runtme: {}\n",
            "atlas.yml, line 3, atlasdb-runtme: unknown block; did you mean 'atlasdb-runtime'?",
        ),
        (
            "atlasdb-runtime:\n  loglevel: info\natlasdb: {}\n",
            "atlas.yml, line 2, atlasdb-runtime.loglevel: unknown key; did you mean 'logLevel'?",
        ),
        (
            "atlasdb:\n  xyz: 1\n",
            "atlas.yml, line 2, atlasdb.xyz: unknown key; the keys here are backup, keyValueService, leader, namespace, server, sweep, transactions",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(just(text), wanted, "for {text:?}");
    }
}

#[test]
fn wrong_types_are_refused_with_their_line() {
    let cases = [
        ("atlasdb:\n  namespace: 12\n", "atlas.yml, line 2, atlasdb.namespace: "),
        ("atlasdb:\n  namespace: [a]\n", "atlas.yml, line 2, atlasdb.namespace: "),
        (
            "atlasdb:\n\n  transactions:\n    attemptsMax: many\n",
            "atlas.yml, line 4, atlasdb.transactions.attemptsMax: ",
        ),
        ("atlasdb:\n  transactions: {timeout: 5}\n", "atlas.yml, line 2, atlasdb.transactions.timeout: "),
        (
            "atlasdb:\n  transactions: {timeout: 5 days}\n",
            "atlas.yml, line 2, atlasdb.transactions.timeout: '5 days' is no duration",
        ),
        (
            "atlasdb:\n  keyValueService: {blockCache: true}\n",
            "atlas.yml, line 2, atlasdb.keyValueService.blockCache: expected a size",
        ),
        ("atlasdb:\n  keyValueService: {sync: maybe}\n", "atlas.yml, line 2, atlasdb.keyValueService.sync: "),
        (
            "atlasdb:\n  keyValueService: {type: mongo}\n",
            "atlas.yml, line 2, atlasdb.keyValueService.type: unknown variant `mongo`",
        ),
        ("atlasdb:\n  server: 5\n", "atlas.yml, line 2, atlasdb.server: this is a block with the keys grpc, http"),
        ("atlasdb:\n  namespace: {a: b}\n", "atlas.yml, line 2, atlasdb.namespace: 'namespace' is a single value"),
        ("atlasdb:\n  namespace: ''\n", "atlas.yml, line 2, atlasdb.namespace: write 1 to 100"),
        ("atlasdb:\n  server: {http: nowhere}\n", "atlas.yml, line 2, atlasdb.server.http: write HOST:PORT"),
        ("atlasdb: 5\n", "atlas.yml, atlasdb: this must be a block of keys"),
        ("- 1\n", "atlas.yml: a configuration starts with the block 'atlasdb:'"),
        ("atlasdb: {\n", "atlas.yml, line "),
        ("atlasdb:\n  namespace: a\n  namespace: b\n", "atlas.yml"),
    ];
    for (text, wanted) in cases {
        let message = just(text);
        assert!(message.starts_with(wanted), "{text:?} gave {message:?}, not {wanted:?}");
    }
}

#[test]
fn the_environment_and_set_are_checked_too() {
    let wrong = |name, value| message("", |sources| sources.environment = Environment::from([(name, value)]));
    assert_eq!(
        wrong("ATLAS__KEY_VALUE_SERVICE__DATADIRS", "x"),
        "environment variable ATLAS__KEY_VALUE_SERVICE__DATADIRS: unknown key; did you mean \
         'ATLAS__KEY_VALUE_SERVICE__DATA_DIR'?"
    );
    assert!(wrong("ATLAS__TRANSACTIONS__ATTEMPTS_MAX", "x").starts_with("environment variable"));
    let set = |setting: &str| message("", |sources| sources.set = vec![setting.to_owned()]);
    assert_eq!(set("namespce=x"), "--set namespce: unknown key; did you mean 'namespace'?");
    assert_eq!(set("namespace"), "--set namespace: write KEY=VALUE, as namespace=orders");
    assert!(set("transactions.attemptsMax=-1").starts_with("--set transactions.attemptsMax: "));
}

#[test]
fn text_from_outside_takes_the_type_of_its_setting() {
    let loaded = from_text("", |sources| {
        sources.set = vec!["namespace=123".into(), "keyValueService.sync=false".into()];
        sources.environment = Environment::from([("ATLAS__RUNTIME__LOG_LEVEL", "debug")]);
    })
    .expect("123 is a name where a name is wanted");
    assert_eq!(loaded.config.namespace, "123");
    assert!(matches!(loaded.config.key_value_service, KvsConfig::Rocksdb { sync: false, .. }));
    assert_eq!(loaded.runtime.log_level, LogLevel::Debug);
}

#[test]
fn another_type_of_store_forgets_what_lower_layers_say_of_the_first() {
    let text = "atlasdb:\n  keyValueService: {type: rocksdb, dataDir: /x}\n";
    let loaded = from_text(text, |sources| sources.set = vec!["keyValueService.type=memory".into()]);
    assert_eq!(loaded.expect("memory has no directory").config.key_value_service, KvsConfig::Memory {});
}

#[test]
fn variables_are_put_in_place() {
    let text = "atlasdb:\n  namespace: n-${NAME}\n  transactions: {attemptsMax: \"${N:-7}\"}\n";
    let loaded = from_text(text, |sources| sources.environment = Environment::from([("NAME", "x")])).expect("set");
    assert_eq!((loaded.config.namespace.as_str(), loaded.config.transactions.attempts_max), ("n-x", 7));
    let unset = just(text);
    assert_eq!(
        unset,
        "atlas.yml, line 2, atlasdb.namespace: the variable NAME is not set; set it, or write '${NAME:-otherwise}'"
    );
    let environment = Environment::from([("A", "1"), ("EMPTY", "")]);
    let cases = [
        ("plain $ $A", Ok("plain $ $A")),
        ("${A}${A}", Ok("11")),
        ("${EMPTY}", Ok("")),
        ("${EMPTY:-x}", Ok("x")),
        ("${B:-}", Ok("")),
        ("$${A}", Ok("${A}")),
        ("${A", Err(())),
        ("${}", Err(())),
        ("${a b}", Err(())),
    ];
    for (text, wanted) in cases {
        let result = interpolate(text, &environment).map_err(|_| ());
        assert_eq!(result.as_deref(), wanted.as_ref().map(|text| *text), "{text}");
    }
}

#[test]
fn the_block_may_lie_anywhere() {
    let nested = "app:\n  name: x\n  store:\n    namespace: deep\n  store-runtime: {logLevel: warn}\nother: 1\n";
    for root in ["/app/store", "app/store/"] {
        let loaded = from_text(nested, |sources| sources.root = Some(root.into())).expect(root);
        assert_eq!(loaded.config.namespace, "deep");
        assert_eq!(loaded.runtime.log_level, LogLevel::Warn);
    }
    let whole = from_text("namespace: whole\n", |sources| sources.root = Some("/".into())).expect("the whole file");
    assert_eq!(whole.config.namespace, "whole");
    let atlas = from_text("atlas: {namespace: short}\natlas-runtime: {logLevel: off}\n", |_| ()).expect("/atlas");
    assert_eq!(atlas.config.namespace, "short");
    let seed =
        from_text("atlasdb: {namespace: s}\nserver: {port: 1}\n", |sources| sources.root = Some("/atlasdb".into()));
    assert_eq!(seed.expect("the rest belongs to the application").config.namespace, "s");
    assert_eq!(
        message("atlasdb: {}\n", |sources| sources.root = Some("/nowhere".into())),
        "atlas.yml: there is no block '/nowhere' (--config-root); the file has 'atlasdb'"
    );
    assert!(message("atlasdb: {}\natlas: {}\n", |_| ()).contains("unknown block"));
}

#[test]
fn a_named_file_must_be_there() {
    let named = load(&Sources::only_file("/nowhere/atlas.yml", None)).expect_err("there is no such file");
    assert_eq!(named.exit_code(), crate::exit::CONFIG);
    let variable = Environment::from([("ATLAS_CONFIG", "/nowhere/atlas.yml")]);
    let error = load(&Sources { environment: variable, ..Sources::default() }).expect_err("nor by the variable");
    assert_eq!(error.exit_code(), crate::exit::CONFIG);
    let endless = load(&Sources::only_file("/dev/zero", None)).expect_err("this never ends");
    assert!(endless.to_string().contains("at most"), "{endless}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_loader_panic(text in "(atlasdb:)?[ -~\n]{0,80}") {
        let _ = from_text(&text, |_| ());
    }

    #[test]
    fn variables_name_every_setting(index in 0usize..32) {
        let known = Known::of_every_store();
        let paths: Vec<&str> = known.paths().collect();
        let path = paths[index % paths.len()];
        let layer = environment_layer(&Environment::from([(super::super::layers::variable_of(path).as_str(), "x")]));
        proptest::prop_assert_eq!(layer.expect("it is UTF-8")[0].key(), path);
    }
}

fn from_server_file(text: &str, variables: Environment) -> Loaded {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let file = dir.path().join("server.yml");
    std::fs::write(&file, text).expect("a file can be written");
    load(&Sources { environment: variables, ..Sources::only_file(file, None) }).expect("the committed file is right")
}

#[test]
fn committed_files_of_servers_equal_their_defaults() {
    let postgres = include_str!("../../../config/postgres.yml");
    let cassandra = include_str!("../../../config/cassandra.yml");
    for (text, store) in [
        (postgres, KvsConfig::Postgres(PostgresKvs::default())),
        (cassandra, KvsConfig::Cassandra(CassandraKvs::default())),
    ] {
        let loaded = from_server_file(text, Environment::default());
        assert_eq!(loaded.config, AtlasConfig { key_value_service: store, ..AtlasConfig::default() });
        let missing = loaded.settings.iter().filter(|setting| setting.key.starts_with("atlasdb.keyValueService."));
        let missing: Vec<_> = missing.filter(|setting| setting.origin == Origin::Default).collect();
        assert!(missing.is_empty(), "the file does not show {missing:?}");
    }
}

#[test]
fn database_comes_from_the_variables_of_psql() {
    let text = include_str!("../../../config/postgres.yml");
    let variables = [
        ("PGHOST", "/run/pg"),
        ("PGPORT", "5433"),
        ("PGUSER", "ann"),
        ("PGPASSWORD", "0123"),
        ("PGDATABASE", "orders"),
    ];
    let loaded = from_server_file(text, Environment::from(variables));
    let KvsConfig::Postgres(found) = &loaded.config.key_value_service else { panic!("{:?}", loaded.config) };
    let expected = PostgresKvs {
        host: "/run/pg".to_owned(),
        port: 5433,
        user: "ann".to_owned(),
        password: "0123".into(),
        database: "orders".to_owned(),
        ..PostgresKvs::default()
    };
    assert_eq!(*found, expected);
    let shown = format!("{loaded:?}");
    assert!(shown.contains("orders") && !shown.contains("0123"), "{shown}");
}

#[test]
fn password_is_not_repeated_by_an_error() {
    let text = "atlasdb:\n  keyValueService:\n    type: postgres\n    password: 987654\n";
    let error = from_text(text, |_| ()).expect_err("a number is no password").to_string();
    assert!(error.contains("quotes") && !error.contains("987654"), "{error}");
}
