//! Old versions go away: by themselves while a store is served, and by hand; what holds that up, and what is told then.

use crate::commands::{Way, is_number};
use crate::stage::{Ran, Running, Server, Stage};
use serde_json::Value;

/// A stage on which nothing is swept by itself before it is asked for: commands that take long must not do it.
fn stage() -> Stage {
    let stage = crate::stage();
    stage.write("atlas.yml", &format!("{}  sweep: {{interval: 1h}}\n", stage.config("data")));
    stage
}

/// `atlas serve`, which sweeps all the time.
fn serve_and_sweep(stage: &Stage) -> Server {
    Server::start(&mut stage.command("--set sweep.interval=100ms serve"))
}

/// How often something that a command tells is looked for: its own time comes on top.
const LOOKS_MAX: usize = 300;

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..LOOKS_MAX {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("waited in vain until {what}");
}

/// Writes so many cells so many times; the last value of each is the number of times.
pub(crate) fn overwrite(stage: &Stage, table: &str, cells: usize, times: usize) {
    for value in 1..=times {
        let rows: String = (0..cells).map(|row| format!("row{row:03},{value}\n")).collect();
        stage.write("rows.csv", &format!("row,c\n{rows}"));
        stage.atlas(&format!("import --table {table} --create-table rows.csv")).ok();
    }
}

/// What is stored of a table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) cells: u64,
    /// Sentinels not counted.
    pub(crate) versions: u64,
    pub(crate) sentinels: u64,
}

pub(crate) fn stored(stage: &Stage, table: &str) -> Stored {
    let document = stage.atlas(&format!("table describe {table} --stats -o json")).document();
    let number = |name: &str| document["data"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {document}"));
    let sentinels = number("sentinels");
    assert!(number("bytes") < u64::MAX);
    Stored { cells: number("cells"), versions: number("versions") - sentinels, sentinels }
}

fn status(stage: &Stage) -> Value {
    stage.atlas("sweep status -o json").document()["data"].take()
}

fn table_in<'a>(status: &'a Value, table: &str) -> &'a Value {
    let tables = status["tables"].as_array().unwrap();
    tables.iter().find(|found| found["table"] == table).unwrap()
}

fn finding(stage: &Stage, options: &str, check: &str) -> String {
    stage.atlas(&format!("{options} doctor --check {check}")).ok()
}

// ---- every command

fn total(deleted: u64, versions: u64) -> String {
    format!("total\tcells=20\tversions={versions}\tdeleted={deleted}\t")
}

fn by_hand(way: &Way) {
    let (stage, table) = (way.stage, way.table);
    let expect = |line: &str, deleted: u64, versions: u64| {
        way.ok(
            line,
            |out| out.lines().any(|line| line.starts_with(&total(deleted, versions))),
            |data| data["total"]["deleted"] == deleted && data["total"]["versions"] == versions,
        );
    };
    overwrite(stage, table, 20, 1);
    let early = stage.atlas("timestamp fetch").ok();
    overwrite(stage, table, 20, 5);
    assert_eq!(stored(stage, table), Stored { cells: 20, versions: 120, sentinels: 0 });

    expect("sweep --table {T} --dry-run", 100, 120);
    assert_eq!(stored(stage, table).versions, 120, "a dry run removed something");
    way.ok(&format!("kv get {{T}} row007 c --at {early}"), |out| out == "1", |data| data["value"] == "1");
    expect(
        "sweep -t {T} --row 726f77 --read-limit 40 --candidate-batch-hint 7 --delete-batch-hint 3 --sleep 1",
        100,
        120,
    );
    assert_eq!(stored(stage, table), Stored { cells: 20, versions: 20, sentinels: 20 });
    way.ok(
        "table describe {T} --stats",
        |out| out.contains("cells\t20\n") && out.contains("versions\t40\n") && out.contains("sentinels\t20\n"),
        |data| data["cells"] == 20 && data["versions"] == 40 && data["sentinels"] == 20 && data["bytes"].is_u64(),
    );
    expect("sweep --table {T}", 0, 20);
    way.ok("kv get {T} row007 c", |out| out == "5", |data| data["value"] == "5");

    // Who comes too late is told so, and never gets another value.
    for line in ["kv get {T} row007 c", "kv scan {T}"] {
        let line = format!("{line} --at {early}");
        way.fails(&line, 1, "TOO_OLD");
        let told = stage.atlas(&format!("{} -o json", line.replace("{T}", table))).document();
        assert_eq!(told["error"]["retryable"], true, "{told}");
    }

    let namespace = stage.atlas("status -o json").document()["data"]["namespace"].as_str().unwrap().to_owned();
    let of_ours = |out: &str| out.lines().any(|line| line.starts_with(&format!("table\t{table}\tcells=20\t")));
    for line in ["sweep --all".to_owned(), format!("sweep --namespace {namespace}")] {
        way.ok(&line, of_ours, |data| data["tables"].as_array().is_some_and(|tables| !tables.is_empty()));
    }
    for line in [
        "sweep",
        "sweep --all --table {T}",
        "sweep --all --row 00",
        "sweep --table {T} --row zz",
        "sweep status --all",
        "kv delete {T} row000 c --wait 5s",
    ] {
        way.fails(line, 2, "USAGE");
    }
    way.fails(&format!("sweep --all --namespace {namespace}"), 2, "USAGE");
    way.fails("sweep --table missing", 4, "NOT_FOUND");
    way.fails("sweep --table missing --dry-run", 4, "NOT_FOUND");
    if stage.has_directories {
        way.fails("sweep --namespace other", 9, "REFUSED");
    }
}

fn looking_pausing_and_resuming(way: &Way) {
    let table = way.table;
    way.ok(
        "sweep status",
        |out| {
            let has = |start: &str| out.lines().any(|line| line.starts_with(start));
            has("shard\t0\tswept_below=")
                && has(&format!("table\t{table}\tstrategy=Conservative\tswept="))
                && has("backup lock\tfree")
                && has("paused\tno")
        },
        |data| {
            let swept = &table_in(data, table)["swept"];
            data["shards"].as_array().unwrap().len() == 8 && data["enabled"] == true && swept.is_u64()
        },
    );
    way.ok("sweep pause --reason busy", |out| out == "paused", |data| data["paused"]["reason"] == "busy");
    way.ok(
        "sweep status",
        |out| out.contains("paused\tbusy") && out.contains("stands still: paused by "),
        |data| data["paused"]["reason"] == "busy" && data["stands_still"].as_str().unwrap().contains("busy"),
    );
    way.ok(
        "status",
        |out| out.contains("; stands still: paused by "),
        |data| data["sweep"]["stands_still"].is_string(),
    );
    let paused = |out: &str| out.starts_with("warn\tsweep\tpaused by ") && out.contains("atlas sweep resume");
    way.ok("doctor --check sweep", paused, |data| data["findings"][0]["level"] == "warn");
    // Whoever asks for it is not stopped.
    way.ok("sweep --table {T}", |out| out.contains("total\t"), |data| data["total"]["cells"] == 20);
    way.ok("sweep resume", |out| out == "resumed", |data| data["paused"].is_null());
    way.ok("sweep resume", |out| out == "resumed", |data| data["paused"].is_null());
    way.ok("doctor --check sweep", |out| out.starts_with("ok\tsweep\t"), |data| data["failed"] == 0);
    way.ok(
        "status",
        |out| out.lines().any(|line| line.starts_with("sweep\t")),
        |data| data["sweep"]["behind"].is_u64(),
    );
}

fn under_the_lock(way: &Way) {
    let (stage, table) = (way.stage, way.table);
    way.ok("backup-lock --acquire --reason by-hand", |out| out.len() == 36, |data| data["held"] == true);
    overwrite(stage, table, 20, 2);
    let before = stored(stage, table);
    for line in ["sweep --all", "sweep --table {T}", "kv delete {T} row000 c --hard --yes"] {
        way.fails(line, 5, "LOCK_HELD");
    }
    assert_eq!(stored(stage, table), before);
    way.ok("kv get {T} row000 c", |out| out == "2", |data| data["value"] == "2");
    way.ok("sweep --table {T} --dry-run", |out| out.contains("deleted=40"), |data| data["total"]["deleted"] == 40);
    way.ok(
        "sweep status",
        |out| {
            let lock = out.lines().find(|line| line.starts_with("backup lock\t")).unwrap();
            lock.contains("held by ") && lock.contains(" for ") && lock.ends_with(": by-hand")
        },
        |data| data["backup_lock"]["reason"] == "by-hand" && data["backup_lock_age_ms"].is_u64(),
    );
    way.ok("backup-lock --release", |out| out == "released", |data| data["held"] == false);
    way.ok("sweep --table {T}", |out| out.contains("deleted=40"), |data| data["total"]["deleted"] == 40);
}

fn for_good(way: &Way) {
    let (stage, table) = (way.stage, way.table);
    overwrite(stage, table, 20, 2);
    let before = stored(stage, table);
    way.fails("kv delete {T} row003 c --hard", 9, "REFUSED");
    way.fails("kv delete missing row003 c --hard --yes", 4, "NOT_FOUND");
    assert_eq!(stored(stage, table), before);
    way.ok("kv delete {T} row003 c --hard --yes", is_number, |data| data["versions"].as_u64() > Some(2));
    way.fails("kv get {T} row003 c", 4, "NOT_FOUND");
    // Three versions and the sentinel in front of them.
    let wanted = Stored { cells: 19, versions: before.versions - 3, sentinels: before.sentinels - 1 };
    assert_eq!(stored(stage, table), wanted);
    // There may have been something before.
    way.ok("kv delete {T} row003 c --hard --yes --wait 10s", is_number, |data| data["versions"].is_u64());
    assert_eq!(stored(stage, table), wanted);
}

fn wall_clock(way: &Way) {
    way.ok("read-punch-table", is_number, |data| data["timestamp"].is_u64() && data["wall_clock"].is_string());
    way.ok("read-punch-table --epoch-ms 9000000000000", is_number, |data| data["asked_ms"] == 9_000_000_000_000u64);
    way.ok("read-punch-table --date-time 2200-01-02T03:04:05Z", is_number, |data| data["timestamp_str"].is_string());
    way.fails("read-punch-table --epoch-ms 0", 4, "NOT_FOUND");
    way.fails("read-punch-table --date-time 1999-01-02T03:04:05Z", 4, "NOT_FOUND");
    way.fails("read-punch-table --date-time noon", 2, "USAGE");
    way.fails("read-punch-table --epoch-ms 1 --date-time -2h", 2, "USAGE");
}

fn every_command(stage: &Stage) {
    for (json, table) in [(false, "plainly"), (true, "asjson")] {
        let way = Way { stage, json, table };
        by_hand(&way);
        looking_pausing_and_resuming(&way);
        under_the_lock(&way);
        for_good(&way);
        wall_clock(&way);
        stage.atlas(&format!("table drop {table} --yes")).ok();
    }
    assert!(stage.atlas("doctor --check all").ok().lines().all(|line| !line.starts_with("fail")));
}

#[test]
fn every_command_of_sweep_works_on_a_stopped_store() {
    every_command(&stage());
}

#[test]
fn every_command_of_sweep_works_on_a_store_that_is_served() {
    let stage = stage();
    let server = stage.serve();
    every_command(&stage);
    server.stop();
}

// ---- by itself

fn eventually_swept(stage: &Stage, table: &str, cells: u64) {
    eventually("only what can be read is left", || stored(stage, table).versions == cells);
    assert_eq!(stored(stage, table).cells, cells);
}

#[test]
fn a_table_shrinks_with_no_command_given() {
    let stage = stage();
    let server = serve_and_sweep(&stage);
    overwrite(&stage, "t", 1_000, 1);
    let early = stage.atlas("timestamp fetch").ok();
    overwrite(&stage, "t", 1_000, 10);
    eventually_swept(&stage, "t", 1_000);
    assert_eq!(stored(&stage, "t").sentinels, 1_000);
    assert_eq!(stage.atlas("kv get t row042 c").ok(), "10");
    stage.atlas(&format!("kv get t row042 c --at {early}")).fails(1).says("too old");
    // What a round that failed had done is not in the sums: whether it had is not known. What is left was counted
    // above. Its failure is told until the next one has ended, and what a round deletes is in the sum only afterwards.
    eventually("all that was done is told, and nothing is in the way", || {
        let status = status(&stage);
        let totals = &status["totals"];
        let all = totals["deleted"].as_u64() >= Some(10_000) && totals["sentinels"].as_u64() >= Some(1_000);
        (all || totals["failures"].as_u64() > Some(0)) && status["stands_still"].is_null()
    });
    eventually("the doctor finds nothing", || finding(&stage, "", "sweep").starts_with("ok\tsweep\t"));
    server.stop();
    assert_eq!(stage.atlas("kv get t row042 c").ok(), "10");
    stage.atlas(&format!("kv get t row042 c --at {early}")).fails(1).says("too old");
}

#[test]
fn under_the_backup_lock_everything_stays_and_afterwards_it_goes_by_itself() {
    let stage = stage();
    let server = serve_and_sweep(&stage);
    overwrite(&stage, "t", 10, 1);
    let early = stage.atlas("timestamp fetch").ok();
    stage.atlas("backup-lock --acquire --reason copying").ok();
    overwrite(&stage, "t", 10, 4);
    eventually("sweep has met the lock", || {
        status(&stage)["stands_still"].as_str().is_some_and(|why| why.contains("copying"))
    });
    assert_eq!(stored(&stage, "t"), Stored { cells: 10, versions: 50, sentinels: 0 });
    assert_eq!(stage.atlas(&format!("kv get t row003 c --at {early}")).ok(), "1");
    stage.atlas("backup-lock --release").ok();
    eventually_swept(&stage, "t", 10);
    stage.atlas(&format!("kv get t row003 c --at {early}")).fails(1).says("too old");
    server.stop();
}

#[test]
fn a_pause_outlives_the_server() {
    let stage = stage();
    let server = serve_and_sweep(&stage);
    stage.atlas("sweep pause --reason maintenance").ok();
    overwrite(&stage, "t", 10, 3);
    server.stop();
    let server = serve_and_sweep(&stage);
    // Time enough to have swept it many times.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(stored(&stage, "t").versions, 30);
    assert_eq!(status(&stage)["paused"]["reason"], "maintenance");
    stage.atlas("sweep resume").ok();
    eventually_swept(&stage, "t", 10);
    server.stop();
}

#[test]
fn a_lock_that_is_held_for_long_is_a_finding_of_the_doctor() {
    let stage = stage();
    stage.atlas("backup-lock --acquire --reason forgotten").ok();
    assert!(finding(&stage, "", "backup-lock").starts_with("ok\tbackup-lock\theld by "));
    assert!(finding(&stage, "", "sweep").starts_with("ok\tsweep\tit waits for the backup lock"));
    eventually("it is held for longer than the configuration says", || {
        let told = finding(&stage, "--set backup.lockHeldLong=1ms", "backup-lock");
        told.starts_with("warn\tbackup-lock\t") && told.contains("forgotten") && told.contains("--release")
    });
    stage.atlas("backup-lock --release").ok();
    let disabled = finding(&stage, "--set sweep.enabled=false", "sweep");
    assert!(disabled.starts_with("warn\tsweep\t") && disabled.contains("sweep.enabled"), "{disabled}");
}

// ---- what comes in between

#[test]
fn a_sweep_that_was_interrupted_goes_on_where_it_was_and_says_so() {
    let stage = stage();
    let server = stage.serve();
    overwrite(&stage, "t", 30, 3);
    let slowly = "sweep --table t --candidate-batch-hint 2 --sleep 3000";
    let sweep = Running::start(slowly, &mut stage.command(slowly));
    eventually("it is somewhere", || table_in(&status(&stage), "t")["interrupted_at"].is_string());
    sweep.interrupt();
    assert_eq!(sweep.end().code, Some(130));
    let half = stored(&stage, "t");
    assert!(half.versions > 30 && half.versions < 90, "{half:?}");
    let again = stage.atlas("sweep --table t -o json");
    again.says("a sweep was interrupted at row row");
    let report = &again.document()["data"];
    assert_eq!(report["tables"][0]["resumed"], true, "{report}");
    let examined = report["total"]["cells"].as_u64().unwrap();
    assert!(examined < 30, "it began anew: {report}");
    assert_eq!(stored(&stage, "t"), Stored { cells: 30, versions: 30, sentinels: 30 });
    assert!(table_in(&status(&stage), "t")["interrupted_at"].is_null());
    let anew = stage.atlas("sweep --table t");
    assert!(anew.ok().contains("total\tcells=30\t") && !anew.stderr.contains("interrupted"), "{anew:#?}");
    server.stop();
}

#[test]
fn who_may_still_read_holds_up_a_hard_delete() {
    let stage = stage();
    overwrite(&stage, "t", 3, 2);
    stage.atlas("timestamp fetch --file pinned").ok();
    for is_served in [false, true] {
        let server = is_served.then(|| stage.serve());
        let ran: Ran = stage.atlas("kv delete t row001 c --hard --yes --wait 100ms");
        ran.fails(6).says("may still read what was there").says("the pin at");
        stage.atlas("kv get t row001 c").fails(4);
        let pinned = std::fs::read_to_string(stage.path("pinned")).unwrap();
        assert_eq!(stage.atlas(&format!("kv get t row001 c --at {}", pinned.trim())).ok(), "2");
        assert!(status(&stage)["held_by"].as_str().unwrap().contains("pin"));
        drop(server);
    }
}
