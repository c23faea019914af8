//! Commands from their words to what they print, on a store in memory.

use super::testing::{Answer, Stand};
use crate::exit;
use serde_json::Value;

fn json(answer: &Answer) -> Value {
    serde_json::from_str(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", answer.stdout))
}

async fn check(stand: &Stand, line: &str, code: u8, stdout: &str) {
    let answer = stand.run(line).await;
    assert_eq!((answer.code, answer.stdout.as_str()), (code, stdout), "{line}");
}

#[tokio::test]
async fn cells_are_put_read_scanned_and_deleted() {
    let stand = Stand::new();
    check(&stand, "kv get t r c", exit::NOT_FOUND, "").await;
    check(&stand, "table create t", 0, "t\n").await;
    check(&stand, "kv get t r c", exit::NOT_FOUND, "").await;
    check(&stand, "kv delete t r c", exit::NOT_FOUND, "").await;
    let put = stand.run("kv put t a c 1").await;
    let first_ts: u64 = put.stdout.trim().parse().expect("plain output is the commit timestamp");
    assert_eq!(stand.run("kv put t a c 2").await.code, 0);
    assert_eq!(stand.run("kv put t b c -5").await.code, 0);
    check(&stand, "kv get t a c", 0, "2\n").await;
    check(&stand, &format!("kv get t a c --at {}", first_ts + 1), 0, "1\n").await;
    check(&stand, &format!("kv get t a c --at {first_ts}"), exit::NOT_FOUND, "").await;
    check(&stand, "kv scan t", 0, "a\tc\t2\nb\tc\t-5\n").await;
    check(&stand, "kv scan t --reverse --limit 1", 0, "b\tc\t-5\n").await;
    check(&stand, "kv scan t --prefix a", 0, "a\tc\t2\n").await;
    check(&stand, "kv scan t --start b --end c", 0, "b\tc\t-5\n").await;
    check(&stand, "kv scan t --prefix x", 0, "").await;
    check(&stand, "kv scan nothing", exit::NOT_FOUND, "").await;
    assert_eq!(stand.run("kv delete t a c").await.code, 0);
    check(&stand, "kv scan t -o table", 0, "ROW  COLUMN  VALUE\nb    c       -5\n").await;
    check(&stand, "kv scan t --prefix x -o table", 0, "(no cells)\n").await;
}

#[tokio::test]
async fn bytes_go_in_and_out_as_hexadecimal() {
    let stand = Stand::new();
    stand.run("table create t").await;
    assert_eq!(stand.run("kv put t --hex 00ff 01 fffe").await.code, 0);
    check(&stand, "kv get t 00ff 01 --hex", 0, "fffe\n").await;
    check(&stand, "kv scan t --hex --prefix 00", 0, "00ff\t01\tfffe\n").await;
    check(&stand, "kv put t --hex xyz 01 00", exit::USAGE, "").await;
    check(&stand, "kv put t --hex 0 01 00", exit::USAGE, "").await;
    // Programs get bytes exactly or not at all; people get something to look at.
    check(&stand, "kv scan t", exit::USAGE, "").await;
    check(&stand, "kv scan t -o table", 0, "ROW       COLUMN  VALUE\n\\x00\\xff  \\u{1}   \\xff\\xfe\n").await;
    let answer = stand.run("kv scan t -o json").await;
    assert_eq!(answer.code, exit::USAGE);
    let document = json(&answer);
    assert_eq!((&document["ok"], &document["error"]["code"]), (&Value::from(false), &Value::from("USAGE")));
}

#[tokio::test]
async fn json_is_one_document_for_success_and_failure() {
    let stand = Stand::new();
    stand.run("table create t").await;
    stand.run("kv put t a c 1").await;
    let scan = json(&stand.run("kv scan t -o json").await);
    assert_eq!(scan["command"], "kv scan");
    assert_eq!(scan["data"]["cells"], serde_json::json!([{"row": "a", "column": "c", "value": "1"}]));
    assert_eq!(scan["data"]["count"], 1);
    let get = json(&stand.run("kv get t a c -o json").await);
    assert_eq!((&get["ok"], &get["data"]["value"]), (&Value::from(true), &Value::from("1")));
    for line in ["kv get t x c", "kv scan x", "table describe x", "table drop t", "timestamp fast-forward"] {
        let answer = stand.run(&format!("{line} -o json")).await;
        let document = json(&answer);
        assert_ne!(answer.code, 0, "{line}");
        assert_eq!(document["ok"], false, "{line}");
        assert_eq!(document["schema"], "atlas.cli/v1");
        assert!(document["error"]["message"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn commands_are_done_again_after_conflicts() {
    let stand = Stand::new();
    stand.run("table create t").await;
    stand.backend.fail_commits(3);
    assert_eq!(stand.run("kv put t a c 1").await.code, 0);
    stand.backend.fail_commits(u32::MAX);
    assert_eq!(stand.run("kv put t a c 2").await.code, exit::CONFLICT);
}

#[tokio::test]
async fn a_store_that_is_missing_is_not_made_by_reading() {
    let stand = Stand::new();
    std::fs::remove_dir_all(stand.path("store")).expect("it is there");
    for line in ["kv get t r c", "kv scan t", "status", "doctor", "table list", "table drop t -y", "backup create"] {
        check(&stand, line, exit::NOT_FOUND, "").await;
    }
    for line in ["timestamp clean-transactions -t 5", "timestamp fast-forward -t 5", "backup-lock --release"] {
        check(&stand, line, exit::NOT_FOUND, "").await;
    }
    assert_eq!(stand.run("timestamp fetch").await.code, 0);
}

#[tokio::test]
async fn tables_are_made_described_emptied_and_dropped() {
    let stand = Stand::new();
    check(&stand, "table create t --conflict-handler IgnoreAll", 0, "t\n").await;
    check(&stand, "table create t --conflict-handler ignore_all", 0, "t\n").await;
    check(&stand, "table create t", exit::CONFLICT, "").await;
    check(&stand, "table create _x", exit::USAGE, "").await;
    check(&stand, "table list", 0, "t\n").await;
    let described = json(&stand.run("table describe t --stats -o json").await);
    assert_eq!(described["data"]["spec"]["conflict_handler"], "IgnoreAll");
    assert_eq!(described["data"]["exact"], true);
    for verb in ["drop", "truncate"] {
        check(&stand, &format!("table {verb} t"), exit::REFUSED, "").await;
        check(&stand, &format!("table {verb} nothing --yes"), exit::NOT_FOUND, "").await;
        check(&stand, &format!("table {verb} _transactions --yes"), exit::USAGE, "").await;
    }
    check(&stand, "table truncate t --yes", 0, "t\n").await;
    check(&stand, "table drop t -y", 0, "t\n").await;
    check(&stand, "table list -o table", 0, "(no tables)\n").await;
}

#[tokio::test]
async fn timestamps_are_fetched_into_files() {
    let stand = Stand::new();
    let file = stand.path("deep/er/backup.timestamp");
    let fetched = stand.run(&format!("timestamp fetch --file {file}")).await;
    assert_eq!(fetched.code, 0);
    assert_eq!(std::fs::read_to_string(&file).expect("it was written"), fetched.stdout);
    let with_time = stand.run("timestamp fetch -d").await;
    assert_eq!(with_time.stdout.lines().nth(1), Some("1970-01-01T00:00:00Z"));
    let people = stand.run("timestamp fetch -i -o table").await;
    assert!(people.stdout.starts_with("The immutable timestamp is: "), "{people:?}");
    let document = json(&stand.run("timestamp fetch -o json").await);
    assert_eq!(document["data"]["timestamp"].to_string(), document["data"]["timestamp_str"].as_str().unwrap_or("none"));
    check(&stand, "timestamp -t 5 fetch", exit::USAGE, "").await;
}

#[tokio::test]
async fn offline_commands_take_one_timestamp_and_a_stopped_store() {
    let stand = Stand::new();
    let good = stand.file("good", "90\n");
    let bad = stand.file("bad", "90\n91\n");
    check(&stand, &format!("timestamp fast-forward -f {good}"), 0, "90\n").await;
    check(&stand, &format!("timestamp -f {good} fast-forward --offline"), 0, "90\n").await;
    let back = stand.run("timestamp fast-forward -t 7 -o table").await;
    assert_eq!((back.code, back.stdout.contains("Nothing to do")), (0, true), "{back:?}");
    let clean = stand.run(&format!("timestamp clean-transactions --file {good} -o table")).await;
    assert!(clean.stdout.contains("[start=90, commit=91]"), "{clean:?}");
    for verb in ["fast-forward", "clean-transactions"] {
        check(&stand, &format!("timestamp {verb}"), exit::USAGE, "").await;
        check(&stand, &format!("timestamp {verb} -t 5 -f {good}"), exit::USAGE, "").await;
        check(&stand, &format!("timestamp -t 5 {verb} -f {good}"), exit::USAGE, "").await;
        check(&stand, &format!("timestamp {verb} -f {bad}"), exit::USAGE, "").await;
        check(&stand, &format!("timestamp {verb} -f {bad}.missing"), exit::NOT_FOUND, "").await;
    }
    *stand.backend.in_use.lock() = true;
    for verb in ["fast-forward", "clean-transactions"] {
        let answer = stand.run(&format!("timestamp {verb} -t 5 -o json")).await;
        assert_eq!(answer.code, exit::REFUSED);
        let message = json(&answer)["error"]["message"].to_string();
        assert!(message.contains("stopped store") && message.contains("process 4711"), "{message}");
    }
}

#[tokio::test]
async fn the_backup_lock_is_held_by_one() {
    let stand = Stand::new();
    check(&stand, "backup-lock --status", 0, "free\n").await;
    let acquired = json(&stand.run("backup-lock --acquire -o json").await);
    let reason = acquired["data"]["lock"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains(&std::process::id().to_string()), "{reason}");
    check(&stand, "backup-lock --acquire", exit::CONFLICT, "").await;
    check(&stand, "backup-lock --status", 0, "held\n").await;
    check(&stand, "backup-lock --release", 0, "released\n").await;
    check(&stand, "backup-lock --release", 0, "free\n").await;
    assert_eq!(stand.run_args(["backup-lock", "--acquire", "--reason", "two words"]).await.code, 0);
}

#[tokio::test]
async fn files_are_imported_in_batches() {
    let stand = Stand::new();
    let csv = stand.file("a.csv", "id,name\n1,ann\n2,bob\n3,cleo\n");
    check(&stand, &format!("import --table t {csv}"), exit::NOT_FOUND, "").await;
    check(&stand, &format!("import --table t {csv} --create-table --batch 2"), 0, "3\n").await;
    check(&stand, "kv scan t", 0, "1\tname\tann\n2\tname\tbob\n3\tname\tcleo\n").await;
    check(&stand, &format!("import --table t {csv} --row-key name"), 0, "3\n").await;
    check(&stand, "kv get t bob id", 0, "2\n").await;
    let lines = stand.file("a.jsonl", "{\"k\":\"x\",\"v\":1}\n{\"k\":\"y\",\"v\":[2]}\n");
    check(&stand, &format!("import --table t {lines}"), 0, "2\n").await;
    check(&stand, "kv get t y v", 0, "[2]\n").await;
    check(&stand, "import --table t /nowhere.csv", exit::NOT_FOUND, "").await;
    check(&stand, &format!("import --table t {}", stand.file("a.txt", "")), exit::USAGE, "").await;
    check(&stand, &format!("import --table _x {csv}"), exit::USAGE, "").await;
}

#[tokio::test]
async fn a_malformed_line_keeps_the_batches_before_it() {
    let stand = Stand::new();
    let file = stand.file("a.csv", "id,v\n1,a\n2,b\n3,c\n4\n5,e\n");
    let answer = stand.run(&format!("import --table t {file} --create-table --batch 2 -o json")).await;
    let document = json(&answer);
    assert_eq!(answer.code, exit::USAGE);
    let message = document["error"]["message"].as_str().unwrap_or_default();
    assert!(message.ends_with("a.csv, line 5: there are 1 fields; the header has 2"), "{message}");
    assert_eq!(document["error"]["details"]["rows_written"], 2);
    check(&stand, "kv scan t", 0, "1\tv\ta\n2\tv\tb\n").await;
}

#[tokio::test]
async fn backups_are_made_listed_and_restored() {
    let stand = Stand::new();
    stand.run("table create t").await;
    stand.run("kv put t a c 1").await;
    for name in ["one", "two"] {
        check(&stand, &format!("backup create --to {} --name {name}", stand.path("repo")), 0, &format!("{name}\n"))
            .await;
    }
    check(&stand, "backup list", 0, "two\none\n").await;
    assert_eq!(stand.run("backup show one --repo x").await.code, 0);
    check(&stand, "backup show three", exit::NOT_FOUND, "").await;
    check(&stand, "backup verify one", 0, "one\n").await;
    let text = format!("atlasdb: {{keyValueService: {{type: rocksdb, dataDir: {}}}}}\n", stand.path("new"));
    let into = stand.file("into.yml", &text);
    check(&stand, &format!("backup restore one --into {into}"), 0, "one\n").await;
    std::fs::create_dir_all(stand.path("new/x")).expect("what a real restore makes");
    let set = format!("keyValueService.dataDir={}", stand.path("new"));
    let restored = stand.run_args(["kv", "get", "t", "a", "c", "--set", &set]).await;
    assert_eq!(restored.stdout, "1\n", "{restored:?}");
    check(&stand, "backup restore one --into /nowhere.yml", exit::CONFIG, "").await;
    check(&stand, &format!("backup restore --resume --into {into}"), exit::NOT_FOUND, "").await;
}

#[tokio::test]
async fn status_doctor_and_serve_answer() {
    let stand = Stand::new();
    stand.run("table create t").await;
    let status = stand.run("status").await;
    assert!(status.stdout.contains("table\tt\tcells=-\tversions=0\tbytes=0\n"), "{status:?}");
    assert!(stand.run("status -o table").await.stdout.contains("CONFLICT HANDLER"));
    check(&stand, "doctor", 0, "ok\tclock\tit ticks\tlook\n").await;
    check(&stand, "doctor --check all", exit::DOCTOR, "fail\tclock\tit ticks\tlook\n").await;
    let document = json(&stand.run("doctor --check all -o json").await);
    assert_eq!((&document["ok"], &document["error"]["code"]), (&Value::from(false), &Value::from("DOCTOR_FAILED")));
    check(&stand, "serve", 0, "ready\n").await;
    assert_eq!(json(&stand.run("serve -o json").await)["data"]["ready"], true);
    check(&stand, "serve --http nowhere", exit::CONFIG, "").await;
}

#[tokio::test]
async fn the_configuration_is_shown_checked_and_written() {
    let stand = Stand::new();
    check(&stand, "config check", 0, "ok\n").await;
    let origins = stand.run("config show --origin -n orders").await;
    assert!(origins.stdout.contains("atlasdb.namespace\torders\t--namespace\n"), "{origins:?}");
    let shown = stand.run("config show").await;
    assert!(shown.stdout.contains("namespace: default"), "{shown:?}");
    let path = stand.path("conf/atlas.yml");
    check(&stand, &format!("config init {path}"), 0, &format!("{path}\n")).await;
    check(&stand, &format!("config init {path}"), exit::REFUSED, "").await;
    assert_eq!(std::fs::read_to_string(&path).expect("it was written"), crate::config::COMMENTED);
    let wrong = stand.file("wrong.yml", "atlasdb:\n  namespce: x\n");
    let set = stand.run(&format!("config check -c {wrong} -o json")).await;
    assert_eq!(set.code, exit::CONFIG);
    assert!(json(&set)["error"]["message"].to_string().contains("line 2"), "{set:?}");
}

#[tokio::test]
async fn the_shell_gets_completions_pages_and_version() {
    let stand = Stand::new();
    check(&stand, "version", 0, concat!(env!("CARGO_PKG_VERSION"), "\n")).await;
    for shell in ["bash", "zsh", "fish"] {
        assert!(stand.run(&format!("completions {shell}")).await.stdout.contains("fast-forward"), "{shell}");
    }
    assert!(stand.run("man").await.stdout.contains(".TH atlas"));
    assert_eq!(stand.run(&format!("man --dir {}", stand.path("man"))).await.code, 0);
    assert!(std::fs::exists(stand.path("man/atlas-timestamp-fetch.1")).expect("it can be looked for"));
}

#[tokio::test]
async fn old_versions_are_counted_and_swept() {
    let stand = Stand::new();
    for table in ["t", "u"] {
        stand.run(&format!("table create {table}")).await;
        for value in ["one", "two", "three"] {
            assert_eq!(stand.run(&format!("kv put {table} r c {value}")).await.code, 0);
        }
    }
    let lines = "table\tt\tcells=1\tversions=3\tdeleted=2\tbytes=6\ntotal\tcells=1\tversions=3\tdeleted=2\tbytes=6\n";
    check(&stand, "sweep --table t --dry-run", 0, lines).await;
    check(&stand, "sweep --table t", 0, lines).await;
    let people = stand.run("sweep --all -o table").await;
    assert!(
        people.stdout.starts_with("2 cells with 4 versions were examined; 2 versions of 6 B were deleted\n"),
        "{people:?}"
    );
    let rest = json(&stand.run("sweep --namespace default -o json").await);
    assert_eq!((&rest["command"], &rest["data"]["total"]["deleted"]), (&Value::from("sweep"), &Value::from(0)));
    for line in ["sweep", "sweep --all --table t", "sweep --all -n default", "sweep --table t -n default"] {
        check(&stand, line, exit::USAGE, "").await;
    }
    check(&stand, "sweep --table nothing", exit::NOT_FOUND, "").await;
    stand.run("backup-lock --acquire").await;
    check(&stand, "sweep --all", exit::CONFLICT, "").await;
}

#[tokio::test]
async fn sweep_is_looked_at_paused_and_resumed() {
    let stand = Stand::new();
    stand.run("table create t").await;
    let status = stand.run("sweep status").await.stdout;
    let line = "shard\t1\tswept_below=1\tbehind=7\tbehind_ms=-";
    assert!(status.lines().any(|found| found == line), "{status}");
    let line = "table\tt\tstrategy=Conservative\tswept=1\tbehind_ms=90000\tinterrupted_at=-";
    assert!(status.lines().any(|found| found == line), "{status}");
    assert!(status.lines().any(|found| found == "sweep\t7 timestamps behind"), "{status}");
    check(&stand, "sweep pause", 0, "paused\n").await;
    let paused = json(&stand.run("sweep status -o json").await);
    let reason = paused["data"]["paused"]["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("paused by hand by "), "{paused}");
    let people = stand.run("sweep status -o table").await.stdout;
    assert!(people.contains("7 timestamps behind; stands still: paused by somebody"), "{people}");
    assert!(stand.run("status").await.stdout.contains("stands still: paused by somebody"));
    check(&stand, "sweep resume", 0, "resumed\n").await;
    assert_eq!(json(&stand.run("sweep status -o json").await)["data"]["paused"], Value::Null);
    check(&stand, "sweep resume -o table", 0, "Sweep goes on\n").await;
    stand.run("backup-lock --acquire").await;
    let held = json(&stand.run("sweep status -o json").await);
    assert!(held["data"]["backup_lock_age_ms"].as_u64() > Some(1_000_000_000), "since 2020: {held}");
}

#[tokio::test]
async fn a_hard_delete_is_confirmed_and_refused_under_the_backup_lock() {
    let stand = Stand::new();
    stand.run("table create t").await;
    stand.run("kv put t r c 1").await;
    check(&stand, "kv delete t r c --hard", exit::REFUSED, "").await;
    check(&stand, "kv delete nothing r c --hard --yes", exit::NOT_FOUND, "").await;
    check(&stand, "kv get t r c", 0, "1\n").await;
    stand.run("backup-lock --acquire").await;
    check(&stand, "kv delete t r c --hard --yes", exit::CONFLICT, "").await;
    stand.run("backup-lock --release").await;
    let done = json(&stand.run("kv delete t r c --hard --yes --wait 5s -o json").await);
    assert_eq!((&done["command"], &done["data"]["versions"]), (&Value::from("kv delete"), &Value::from(2)));
    check(&stand, "kv get t r c", exit::NOT_FOUND, "").await;
}

#[tokio::test]
async fn a_wall_clock_time_has_a_timestamp() {
    let stand = Stand::new();
    check(&stand, "read-punch-table --epoch-ms 59999", exit::NOT_FOUND, "").await;
    stand.run("timestamp fetch").await;
    check(&stand, "read-punch-table --epoch-ms 60000", 0, "1\n").await;
    check(&stand, "read-punch-table --date-time 2026-05-06T07:08:09Z", 0, "1\n").await;
    check(&stand, "read-punch-table --date-time -2h", 0, "1\n").await;
    check(&stand, "read-punch-table", 0, "1\n").await;
    check(&stand, "read-punch-table --date-time noon", exit::USAGE, "").await;
    check(&stand, "read-punch-table --epoch-ms 9223372036854775807", exit::USAGE, "").await;
    let wanted = "The timestamp at 1970-01-01T00:02:00.5Z is: 1\nIt was issued at about 1970-01-01T00:02:00Z\n";
    check(&stand, "read-punch-table --epoch-ms 120500 -o table", 0, wanted).await;
}
