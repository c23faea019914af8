//! Every command on a stopped store and on one that is served, in plain and in JSON.

use crate::stage::{Ran, Stage, checkout};
use serde_json::Value;

/// One of the four ways to run a command.
pub(crate) struct Way<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) json: bool,
    /// In place of `T` in a line: the ways share a store.
    pub(crate) table: &'a str,
}

impl Way<'_> {
    fn run(&self, line: &str) -> Ran {
        let line = line.replace("{T}", self.table);
        let form = if self.json { "json" } else { "plain" };
        let ran = self.stage.atlas(&format!("{line} --output {form}"));
        if self.json {
            let document = ran.document();
            assert_eq!(document.get("error").is_some(), ran.code != Some(0), "{ran:#?}");
            assert!(!ran.stderr.contains("error:"), "errors are told once: {ran:#?}");
        } else if ran.code == Some(0) {
            assert!(!ran.stderr.contains("error:"), "{ran:#?}");
        } else {
            ran.fails(ran.code.unwrap());
        }
        ran
    }

    /// Succeeds. In plain the output is given to `plain`, in JSON the data to `data`.
    pub(crate) fn ok(&self, line: &str, plain: impl Fn(&str) -> bool, data: impl Fn(&Value) -> bool) {
        let ran = self.run(line);
        let printed = ran.ok();
        if self.json {
            let document = ran.document();
            assert!(data(&document["data"]), "{ran:#?}");
            let command = document["command"].as_str().unwrap();
            assert!(line.starts_with(command), "{ran:#?}");
        } else {
            assert!(plain(&printed), "{ran:#?}");
        }
    }

    /// Fails with an exit code and, in JSON, with a code in capitals.
    pub(crate) fn fails(&self, line: &str, exit_code: i32, code: &str) {
        let ran = self.run(line);
        assert_eq!(ran.code, Some(exit_code), "{ran:#?}");
        if self.json {
            let error = &ran.document()["error"];
            assert_eq!(error["code"], code, "{ran:#?}");
            assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{ran:#?}");
            assert!(error["retryable"].is_boolean() && error.get("hint").is_some(), "{ran:#?}");
        } else {
            assert_eq!(ran.stdout, "", "{ran:#?}");
        }
    }
}

pub(crate) fn is_number(text: &str) -> bool {
    text.parse::<u64>().is_ok()
}

fn tables_and_cells(way: &Way) {
    let table = way.table;
    way.ok("table create {T}", |out| out == table, |data| data["table"] == table);
    way.ok("table create {T}", |out| out == table, |data| data["table"] == table);
    way.fails("table create {T} --conflict-handler IgnoreAll", 5, "ALREADY_EXISTS");
    way.ok("table list", |out| out.lines().any(|line| line == table), |data| data["tables"].is_array());
    way.ok("table describe {T}", |out| out.contains("RetryOnWriteWrite"), |data| data["exact"] == false);
    way.fails("table describe missing", 4, "NOT_FOUND");
    way.fails("table create _internal", 2, "USAGE");

    way.ok("kv put {T} r c v", is_number, |data| data["commit_ts"].is_u64());
    way.ok("kv put {T} r -1 -2", is_number, |data| data["commit_ts"].is_u64());
    way.ok("kv get {T} r c", |out| out == "v", |data| data["value"] == "v" && data["encoding"] == "utf8");
    way.ok("kv get {T} --hex 72 63", |out| out == "76", |data| data["value"] == "76");
    way.ok(
        "kv scan {T}",
        |out| out == "r\t-1\t-2\nr\tc\tv",
        |data| data["cells"][1]["value"] == "v" && data["count"] == 2,
    );
    way.ok(
        "table describe {T} --stats",
        |out| out.contains("cells\t2"),
        |data| data["cells"] == 2 && data["exact"] == true,
    );
    for line in [
        "kv get {T} r missing",
        "kv get missing r c",
        "kv put missing r c v",
        "kv delete {T} missing c",
        "kv delete missing r c",
        "kv scan missing",
        "table drop missing --yes",
        "table truncate missing --yes",
    ] {
        way.fails(line, 4, "NOT_FOUND");
    }
    way.ok("kv delete {T} r c", is_number, |data| data["commit_ts"].is_u64());
    way.fails("kv get {T} r c", 4, "NOT_FOUND");
    way.fails("kv put _transactions r c v", 2, "USAGE");
    way.fails("kv put {T} --hex zz 00 00", 2, "USAGE");
    way.fails("kv get {T} r", 2, "USAGE");
}

fn timestamps(way: &Way) {
    way.ok("timestamp fetch", is_number, |data| data["timestamp"].is_u64() && data["kind"] == "fresh");
    way.ok("timestamp fetch --immutable", is_number, |data| data["kind"] == "immutable");
    way.ok(
        "timestamp fetch --date-time",
        |out| out.lines().count() == 2 && out.lines().next().is_some_and(is_number),
        |data| data.get("wall_clock").is_some(),
    );
    way.ok("timestamp fetch --file {T}/b.timestamp", is_number, |data| data["file"].is_string());
    let written = std::fs::read_to_string(way.stage.path(format!("{}/b.timestamp", way.table))).unwrap();
    assert!(is_number(written.strip_suffix('\n').unwrap()));
    way.fails("timestamp fetch --timestamp 5", 2, "USAGE");
    way.fails("timestamp --timestamp 5", 2, "USAGE");
}

fn backup_lock_and_backups(way: &Way) {
    way.ok("backup-lock --status", |out| out == "free", |data| data["held"] == false);
    way.ok(
        "backup-lock --acquire",
        |out| out.len() == 36,
        |data| {
            let reason = data["lock"]["reason"].as_str().unwrap();
            data["held"] == true && reason.contains("by hand") && reason.contains("process")
        },
    );
    way.fails("backup-lock --acquire", 5, "LOCK_HELD");
    way.ok("backup-lock --status", |out| out == "held", |data| data["lock"]["renewal"].is_null());
    way.fails("table drop {T} --yes", 5, "LOCK_HELD");
    way.fails("table truncate {T} --yes", 5, "LOCK_HELD");
    way.fails("backup create --to repo --name {T}", 5, "LOCK_HELD");
    way.ok("kv put {T} still works v", is_number, |data| data["commit_ts"].is_u64());
    way.ok("backup-lock --release", |out| out == "released", |data| data["released"]["reason"].is_string());
    way.ok("backup-lock --release", |out| out == "free", |data| data["released"].is_null());
    way.fails("backup-lock", 2, "USAGE");

    let table = way.table;
    way.fails("backup list --repo nowhere", 4, "NOT_FOUND");
    way.fails("backup show latest --repo nowhere", 4, "NOT_FOUND");
    way.ok(
        "backup create --to repo --name {T}",
        |out| out == table,
        |data| data["id"] == table && data["state"] == "complete",
    );
    way.fails("backup create --to repo --name {T}", 5, "ALREADY_EXISTS");
    way.fails("backup create --to repo --name ../x", 2, "USAGE");
    if way.stage.has_directories {
        way.fails("backup create --to data/repo", 9, "REFUSED");
    }
    way.ok(
        "backup list --repo repo",
        |out| out.lines().next() == Some(table),
        |data| data["backups"][0]["id"] == table,
    );
    way.ok("backup show {T} --repo repo", |out| out.contains("complete"), |data| data["backup_ts"].is_u64());
    way.ok("backup show latest --repo repo", |out| out.contains(table), |data| data["id"] == table);
    way.ok("backup verify {T} --repo repo", |out| out == table, |data| data["files"].as_u64() > Some(2));
    way.fails("backup show missing --repo repo", 4, "NOT_FOUND");
    way.fails("backup verify missing --repo repo", 4, "NOT_FOUND");
    way.fails("backup restore missing --repo repo --into restored.yml", 4, "NOT_FOUND");
    way.fails("backup restore {T} --repo repo --into atlas.yml", 9, "REFUSED");
    way.fails("backup restore {T} --repo repo", 2, "USAGE");
    way.fails("backup restore --resume --into restored.yml", 4, "NOT_FOUND");
}

fn looking_around(way: &Way, is_live: bool) {
    way.ok(
        "status",
        |out| {
            let owner = out.lines().find(|line| line.starts_with("owner\t")).unwrap();
            owner.contains("nobody") != is_live && out.contains("backup lock\tfree") && out.contains("table\t")
        },
        |data| {
            let kind = if is_live { "remote" } else { "local" };
            data["connection"]["kind"] == kind && data["tables"].is_array() && data["last_backup"]["id"].is_string()
        },
    );
    let all_is_well = |out: &str| out.lines().all(|line| line.starts_with("ok\t") || line.starts_with("warn\t"));
    way.ok("doctor", all_is_well, |data| data["failed"] == 0);
    way.ok("doctor --check all", all_is_well, |data| data["failed"] == 0);
    way.ok(
        "doctor --check store",
        |out| out.lines().count() == 1,
        |data| data["findings"].as_array().unwrap().len() == 1,
    );
    way.fails("doctor --check nonsense", 2, "USAGE");
    way.ok("config check", |out| out == "ok", |data| data["keys_set"].as_u64() > Some(0));
    way.ok("version", |out| out == env!("CARGO_PKG_VERSION"), |data| data["format_version"].is_u64());
}

fn removing(way: &Way) {
    let table = way.table;
    way.fails("table truncate {T}", 9, "REFUSED");
    way.fails("table drop {T}", 9, "REFUSED");
    way.ok("table truncate {T} --yes", |out| out == table, |data| data["truncated"] == true);
    way.ok("kv scan {T}", str::is_empty, |data| data["count"] == 0);
    way.ok("table drop {T} --yes", |out| out == table, |data| data["dropped"] == true);
    way.fails("kv get {T} r c", 4, "NOT_FOUND");
}

fn every_command(way: &Way, is_live: bool) {
    tables_and_cells(way);
    timestamps(way);
    backup_lock_and_backups(way);
    looking_around(way, is_live);
    removing(way);
}

#[test]
fn every_command_works_on_a_stopped_store() {
    let stage = crate::stage();
    for (json, table) in [(false, "plainly"), (true, "asjson")] {
        every_command(&Way { stage: &stage, json, table }, false);
    }
}

#[test]
fn every_command_works_on_a_store_that_is_served() {
    let stage = crate::stage();
    let server = stage.serve();
    for (json, table) in [(false, "plainly"), (true, "asjson")] {
        let way = Way { stage: &stage, json, table };
        every_command(&way, true);
        // What changes a store behind its owner's back.
        for line in [
            "timestamp clean-transactions --timestamp 5",
            "timestamp --timestamp 5 clean-transactions",
            "timestamp fast-forward --timestamp 5",
            "timestamp fast-forward --timestamp 5 --offline",
        ] {
            way.fails(line, 9, "REFUSED");
            stage.atlas(line).fails(9).says(&format!("process {}", server.pid()));
        }
    }
    server.stop();
}

#[test]
fn time_never_goes_back_and_never_jumps_by_mistake() {
    let stage = crate::stage();
    stage.make_accounts();
    let absurd = (1u64 << 40) + (1 << 30);
    for json in [false, true] {
        let way = Way { stage: &stage, json, table: "accounts" };
        way.ok("timestamp fast-forward --timestamp 2", is_number, |data| {
            data["changed"] == false && data["before"] == data["after"]
        });
        let ran = way.run("timestamp fast-forward --timestamp 2");
        if json {
            assert!(ran.document()["warnings"][0].as_str().unwrap().contains("nothing was changed"), "{ran:#?}");
        } else {
            ran.says("nothing was changed");
        }
        way.fails(&format!("timestamp fast-forward --timestamp {absurd}"), 9, "REFUSED");
        way.fails(&format!("--yes timestamp fast-forward --timestamp {absurd}"), 9, "REFUSED");
        way.fails("timestamp fast-forward --timestamp 9223372036854775807", 9, "REFUSED");
        way.fails("timestamp fast-forward --timestamp 9223372036854775808", 2, "USAGE");
        way.fails("timestamp fast-forward", 2, "USAGE");
        way.fails("timestamp clean-transactions", 2, "USAGE");
        way.fails("timestamp fast-forward --timestamp 5 --file x", 2, "USAGE");
        way.fails(&format!("timestamp clean-transactions --timestamp {absurd}"), 9, "REFUSED");
    }
    stage.atlas(&format!("timestamp fast-forward --timestamp {absurd}")).fails(9).says("--allow-large-jump");
    let before: u64 = stage.atlas("timestamp fetch").ok().parse().unwrap();
    assert!(before < absurd);
    stage.atlas(&format!("timestamp --timestamp {absurd} fast-forward --allow-large-jump")).ok();
    let after: u64 = stage.atlas("timestamp fetch").ok().parse().unwrap();
    assert!(after > absurd);
    assert_eq!(stage.accounts().lines().count(), 3);

    // A dry run counts and changes nothing; the real one needs its second half.
    let ts = stage.atlas("timestamp fetch").ok();
    stage.atlas("kv put accounts eve balance later").ok();
    assert_eq!(stage.atlas(&format!("timestamp clean-transactions -t {ts} --dry-run")).ok(), "1");
    assert_eq!(stage.atlas("kv get accounts eve balance").ok(), "later");
    assert_eq!(stage.atlas(&format!("--offline timestamp -t {ts} clean-transactions -s 3")).ok(), "1");
    stage.atlas("kv get accounts alice balance").fails(9).says("fast-forward");
    stage.atlas(&format!("timestamp fast-forward -t {ts}")).fails(9).says("backup timestamp");
    let later: u64 = ts.parse::<u64>().unwrap() + 1_000_000;
    stage.atlas(&format!("timestamp fast-forward -t {later}")).ok();
    stage.atlas("kv get accounts eve balance").fails(4);
    assert_eq!(stage.accounts().lines().count(), 3);
}

#[test]
fn who_names_what_is_missing_is_told_what_to_do() {
    let stage = crate::stage();
    stage.atlas("table create accounts").ok();
    for (line, code, hint) in [
        ("kv scan nowhere", 4, "`atlas table list`"),
        ("table drop nowhere --yes", 4, "`atlas table list`"),
        ("backup list --repo nowhere", 4, "`atlas backup create --to DIRECTORY`"),
        ("backup verify nothing --repo nowhere", 4, "`atlas backup create --to DIRECTORY`"),
    ] {
        stage.atlas(line).fails(code).says(hint);
    }
    stage.atlas("backup create --to repo --name one").ok();
    stage.atlas("backup verify nothing --repo repo").fails(4).says("`atlas backup list`");
    stage.atlas("backup restore one --repo repo --into nowhere.yml").fails(8).says("`atlas config init nowhere.yml`");
}

#[test]
fn a_store_that_is_not_there_is_not_made_by_a_question() {
    let stage = crate::stage();
    for line in [
        "kv get t r c",
        "kv put t r c v",
        "kv scan t",
        "table list",
        "status",
        "doctor",
        "backup-lock --status",
        "backup-lock --release",
        "backup create --to repo",
        "timestamp clean-transactions --timestamp 5",
        "timestamp fast-forward --timestamp 5",
    ] {
        stage.atlas(line).fails(4).says("store in");
        assert!(!stage.has("data") && !stage.has("repo"), "{line}");
    }
}

#[test]
fn scans_have_every_form() {
    let stage = crate::stage();
    stage.atlas("table create t").ok();
    stage.write("cells.jsonl", "{\"row\":\"a\",\"x\":\"1\"}\n{\"row\":\"ab\",\"x\":\"2\",\"y\":\"3\"}\n{\"row\":\"b\",\"x\":\"4\"}\n{\"row\":\"ü\",\"x\":\"tab\\there\"}\n");
    stage.atlas("import --table t cells.jsonl").ok();
    let scan = |options: &str| stage.atlas(&format!("kv scan t {options}")).ok();
    assert_eq!(scan(""), "a\tx\t1\nab\tx\t2\nab\ty\t3\nb\tx\t4\nü\tx\ttab\\there");
    assert_eq!(scan("--prefix a"), "a\tx\t1\nab\tx\t2\nab\ty\t3");
    assert_eq!(scan("--prefix ü"), "ü\tx\ttab\\there");
    assert_eq!(scan("--start ab --end b"), "ab\tx\t2\nab\ty\t3");
    assert_eq!(scan("--end ab"), "a\tx\t1");
    assert_eq!(scan("--start b --limit 1"), "b\tx\t4");
    assert_eq!(scan("--reverse --limit 3"), "ü\tx\ttab\\there\nb\tx\t4\nab\ty\t3");
    assert_eq!(scan("--reverse --prefix a --limit 1"), "ab\ty\t3");
    assert_eq!(scan("--limit 0"), "");
    assert_eq!(scan("--start x --end b"), "", "an empty range");
    assert_eq!(scan("--hex --start 62 --end 63"), "62\t78\t34");
    assert_eq!(scan("--hex --prefix c3bc"), "c3bc\t78\t7461620968657265");
    let at = stage.atlas("timestamp fetch").ok();
    stage.atlas("kv put t b x 5").ok();
    stage.atlas("kv delete t a x").ok();
    assert_eq!(scan(&format!("--at {at} --limit 1")), "a\tx\t1");
    assert_eq!(stage.atlas(&format!("kv get t b x --at {at}")).ok(), "4");
    assert_eq!(scan("--start b --limit 1"), "b\tx\t5");
    stage.atlas(&format!("kv get t b x --at {}", u64::MAX / 4)).fails(2);

    // Bytes that are no text: exact in hexadecimal, refused in plain, something to look at in a table.
    stage.atlas("kv put t --hex ff00 fe 80").ok();
    assert_eq!(stage.atlas("kv get t --hex ff00 fe").ok(), "80");
    stage.atlas("kv scan t").fails(2).says("--hex");
    let ran = stage.atlas("kv scan t -o json");
    assert_eq!(ran.document()["error"]["code"], "USAGE");
    assert!(stage.atlas("kv scan t -o table").ok().contains("\\xff\\x00"));
    stage.atlas("kv scan t --prefix a --start b").fails(2);
    stage.atlas("kv scan t --limit x").fails(2);
}

#[test]
fn what_needs_no_store() {
    let stage = crate::stage();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(stage.atlas(&format!("completions {shell}")).ok().contains("backup-lock"), "{shell}");
    }
    let ran = stage.atlas("completions bash -o json");
    assert!(ran.document()["data"]["script"].as_str().unwrap().contains("_atlas"));
    let script = stage.atlas("completions bash").ok();
    stage.write("atlas.bash", &script);
    stage.bash("bash -n atlas.bash").ok();
    assert!(stage.atlas("man").ok().starts_with(".ie"));
    stage.atlas("man --dir pages").ok();
    let pages = stage.names_in("pages");
    for page in ["atlas.1", "atlas-backup-create.1", "atlas-timestamp-fast-forward.1"] {
        assert!(pages.iter().any(|name| name == page), "{page} is not in {pages:?}");
    }
    assert_eq!(stage.atlas("version").ok(), env!("CARGO_PKG_VERSION"));
    assert!(stage.atlas("--help").ok().contains("Exit codes"));
    assert!(stage.atlas("backup create --help").ok().contains("--to"));
    stage.atlas("nonsense").fails(2);
    stage.atlas("").fails(2);
    let ran = stage.atlas("kv nonsense -o json");
    assert_eq!(ran.code, Some(2));
    assert_eq!(ran.document()["error"]["code"], "USAGE");
    assert!(!stage.has("data"));
}

#[test]
fn whoever_has_read_enough_may_close_the_pipe() {
    let stage = crate::stage();
    stage.atlas("import --table t --create-table --row-key iata airports.csv").fails(4);
    std::fs::copy(checkout::file("examples/data/airports.csv"), stage.path("airports.csv")).unwrap();
    stage.atlas("import --table t --create-table --row-key iata airports.csv").ok();
    let ran = stage.bash("atlas --config atlas.yml kv scan t | head -n 1");
    assert_eq!(ran.ok().lines().count(), 1);
    // A server that is told not to care for its data is warned of.
    let said: Vec<_> = ran.stderr.lines().filter(|line| !line.contains("fsync is off")).collect();
    assert!(said.is_empty(), "{said:?}");
}
