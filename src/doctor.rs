//! Looks for everything that should not be so.
//!
//! The quick checks take a moment; `all` adds the deep one, which reads every commit entry, every version and every
//! sweep entry of the store.

use crate::Atlas;
use crate::ops::{DoctorFinding, FindingLevel, Operations, SweepStatus};
use crate::schema::{TRANSACTIONS_TABLE, TableSpec};
use crate::server::{self, Owner};
use crate::timestamp::read_stored;
use crate::transaction::entry::{CleanedWindows, Entry, transactions_table};
use crate::transaction::{check_version, sweep_queue};
use crate::{Error, Result, backup};
use atlas_kvs::{AtomicScan, Availability, RowRange, Scan, TableKind, TableRef, Timestamp, VersionScan};
use futures::StreamExt;
use std::time::Duration;

const BACKUP_OLD_SECS: i64 = 7 * 24 * 3600;
/// Sweep that is behind for longer is worth a look.
const SWEEP_FAR_BEHIND_MS: u64 = 3600 * 1000;
/// Before that, it can't have done much: commands open a store for a moment.
const SWEEP_BEGINS_WITHIN: Duration = Duration::from_secs(60);

/// Names of the checks, the quick ones first.
pub(crate) const CHECKS: [&str; 10] =
    ["store", "database", "lease", "address", "timestamps", "restore", "backup-lock", "backup", "sweep", "data"];
/// The deep check, done only when it or `all` is asked for.
const DEEP: &str = "data";

/// Runs the checks named; none named: the quick ones; `all`: every one.
pub(crate) async fn examine(atlas: &Atlas, checks: &[String]) -> Result<Vec<DoctorFinding>> {
    if let Some(unknown) = checks.iter().find(|name| *name != "all" && !CHECKS.contains(&name.as_str())) {
        return Err(Error::Usage(format!("there is no check '{unknown}'; there are all, {}", CHECKS.join(", "))));
    }
    let wanted =
        |name: &str| checks.iter().any(|check| check == name || check == "all") || (checks.is_empty() && name != DEEP);
    let mut findings = Vec::new();
    for name in CHECKS.into_iter().filter(|name| wanted(name)) {
        let found = match name {
            "store" => store(atlas).await,
            "database" => database(atlas).await,
            "lease" => lease(atlas).await,
            "address" => address(atlas).await,
            "timestamps" => timestamps(atlas).await,
            "restore" => restore(atlas).await,
            "backup-lock" => backup_lock(atlas).await,
            "backup" => last_backup(atlas).await,
            "sweep" => sweep(atlas).await,
            _ => data(atlas).await,
        };
        findings.extend(found.unwrap_or_else(|error| {
            let hint = error.hint().or_else(|| Some("restore the latest backup: `atlas backup list`".to_owned()));
            vec![finding(name, FindingLevel::Fail, error.to_string(), hint)]
        }));
    }
    Ok(findings)
}

fn finding(check: &str, level: FindingLevel, message: String, hint: Option<String>) -> DoctorFinding {
    DoctorFinding { check: check.to_owned(), level, message, hint }
}

fn fine(check: &str, message: impl Into<String>) -> Result<Vec<DoctorFinding>> {
    Ok(vec![finding(check, FindingLevel::Ok, message.into(), None)])
}

async fn store(atlas: &Atlas) -> Result<Vec<DoctorFinding>> {
    let (level, message) = match atlas.store_below().availability().await {
        Availability::All => (FindingLevel::Ok, "the store answers".to_owned()),
        Availability::Quorum(reason) => (FindingLevel::Warn, format!("the store answers in part: {reason}")),
        Availability::NoQuorum(reason) => (FindingLevel::Fail, format!("the store does not answer: {reason}")),
        Availability::Terminal(reason) => (FindingLevel::Fail, format!("the store can't be used: {reason}")),
    };
    Ok(vec![finding("store", level, message, None)])
}

/// Whether the numbers go on in the database in which they were issued.
async fn database(atlas: &Atlas) -> Result<Vec<DoctorFinding>> {
    const CHECK: &str = "database";
    let Some(here) = atlas.store_below().identity().await? else {
        return fine(CHECK, "this store can't be moved to another database unnoticed");
    };
    let recorded = read_stored(atlas.store_below().clone()).await?.and_then(|record| record.database);
    match recorded {
        Some(recorded) if recorded != here => Ok(vec![finding(
            CHECK,
            FindingLevel::Fail,
            format!("the timestamps were issued on database {recorded}, and this is {here}"),
            Some(
                "after a fail-over: stop every process on it, and run `atlas timestamp fast-forward` with a timestamp \
                 above all that were issued"
                    .to_owned(),
            ),
        )]),
        Some(_) => fine(CHECK, format!("it is the one the timestamps were issued on: {here}")),
        None => fine(CHECK, format!("it is {here}")),
    }
}

/// Whether this process owns the store, and renews its lease in time.
async fn lease(atlas: &Atlas) -> Result<Vec<DoctorFinding>> {
    const CHECK: &str = "lease";
    let oracle = atlas.transactions().oracle();
    let Some(owner) = atlas.owner().await? else {
        return match oracle.lease_age() {
            None => fine(CHECK, "the store has one owner, which needs no lease"),
            Some(_) => {
                Ok(vec![finding(CHECK, FindingLevel::Fail, "the store has no owner on record".to_owned(), None)])
            }
        };
    };
    let message = format!(
        "`{}`, process {} on {}, owns the store since {}; its lease of {} ms was renewed {} ms ago",
        owner.program, owner.pid, owner.host, owner.since, owner.lease_ms, owner.lease_age_ms
    );
    if let Err(error) = oracle.check_held() {
        let hint = Some("look whether the store answers in time; a longer `leader.lease` waits longer".to_owned());
        return Ok(vec![finding(CHECK, FindingLevel::Fail, format!("{message}: {error}"), hint)]);
    }
    // It is renewed several times while it lasts.
    if owner.lease_age_ms > owner.lease_ms / 2 {
        let hint = Some("the store answers late: look at its load, or set a longer `leader.lease`".to_owned());
        return Ok(vec![finding(CHECK, FindingLevel::Warn, message, hint)]);
    }
    fine(CHECK, message)
}

/// Whether commands on this machine find the owner through the store, as it says.
async fn address(atlas: &Atlas) -> Result<Vec<DoctorFinding>> {
    const CHECK: &str = "address";
    let Some(owner) = atlas.owner().await? else {
        return fine(CHECK, "the owner of this store is not looked for through the store");
    };
    let Some(address) = owner.address else {
        // A command that opened the store for itself, or a server that was told so.
        return fine(CHECK, format!("`{}` answers no other process", owner.program));
    };
    match server::find_owner(atlas.store_below()).await? {
        Owner::Server { .. } => fine(CHECK, format!("commands on {} reach the owner at {address}", owner.host)),
        Owner::Unreachable { why, .. } => {
            let hint = Some("end the owner, and start it again".to_owned());
            Ok(vec![finding(CHECK, FindingLevel::Fail, format!("the owner can't be asked by others: {why}"), hint)])
        }
        Owner::Nobody => Ok(vec![finding(CHECK, FindingLevel::Fail, "the owner has gone meanwhile".to_owned(), None)]),
    }
}

async fn timestamps(atlas: &Atlas) -> Result<Vec<DoctorFinding>> {
    let oracle = atlas.transactions().oracle();
    let (issued, bound) = (oracle.last_issued(), oracle.bound().previous());
    let newest = AtomicScan { page_size: 1, ..AtomicScan::new(RowRange::all()).reversed() };
    if let Some(entry) = atlas.store_below().scan_atomic(&transactions_table(), newest).next().await {
        let start_ts = Entry::start_ts_of(&entry?.0)?;
        if start_ts > issued {
            return Err(Error::corrupt(
                "the timestamp oracle",
                format!("transaction {start_ts} is newer than the last timestamp issued, {issued}"),
            ));
        }
    }
    let lag = issued.get().saturating_sub(atlas.immutable_timestamp().await?.get());
    fine("timestamps", format!("issued up to {issued}, bound {bound}, oldest snapshot {lag} behind"))
}

async fn restore(atlas: &Atlas) -> Result<Vec<DoctorFinding>> {
    let windows = CleanedWindows::load(atlas.store_below().clone()).await?;
    match windows.open_window() {
        Some(window) => Ok(vec![finding(
            "restore",
            FindingLevel::Fail,
            format!("a restore to timestamp {} was not finished", window.from),
            Some("atlas timestamp fast-forward --file fast-forward.timestamp".to_owned()),
        )]),
        None => fine("restore", format!("no restore under way, {} in the past", windows.windows.len())),
    }
}

async fn backup_lock(atlas: &Atlas) -> Result<Vec<DoctorFinding>> {
    let Some(record) = atlas.backup_lock_status().await? else { return fine("backup-lock", "free") };
    let age = seconds_since(&record.since);
    let held = format!("held by {} since {}: {}", record.holder, record.since, record.reason);
    let long = i64::try_from(atlas.config().backup.lock_held_long.as_secs()).unwrap_or(i64::MAX);
    if age.is_some_and(|age| age > long) {
        let message = format!("{held}; nothing is swept meanwhile");
        let hint = match record.renewal {
            None => "if no backup needs it any more: `atlas backup-lock --release`",
            Some(_) => "a running backup renews it: look whether it makes progress",
        };
        return Ok(vec![finding("backup-lock", FindingLevel::Warn, message, Some(hint.to_owned()))]);
    }
    if atlas.is_abandoned(&record) {
        let message = format!("{held}; that backup runs no more, so nothing is removed until the lock is released");
        let hint = Some("`atlas backup-lock --release`".to_owned());
        return Ok(vec![finding("backup-lock", FindingLevel::Warn, message, hint)]);
    }
    fine("backup-lock", held)
}

async fn last_backup(atlas: &Atlas) -> Result<Vec<DoctorFinding>> {
    let hint = Some("atlas backup create".to_owned());
    match backup::create::last_backup(atlas.store_below().clone()).load().await? {
        None => Ok(vec![finding("backup", FindingLevel::Warn, "no backup was ever taken".to_owned(), hint)]),
        Some((info, _)) if seconds_since(&info.started).is_some_and(|age| age > BACKUP_OLD_SECS) => {
            let message = format!("the last backup, {}, is from {}", info.id, info.started);
            Ok(vec![finding("backup", FindingLevel::Warn, message, hint)])
        }
        Some((info, _)) => fine("backup", format!("the last backup, {}, is from {}", info.id, info.started)),
    }
}

/// Whether old versions go away.
async fn sweep(atlas: &Atlas) -> Result<Vec<DoctorFinding>> {
    Ok(findings_about_sweep(&atlas.sweep_status().await?, atlas.uptime()))
}

fn findings_about_sweep(status: &SweepStatus, uptime: Duration) -> Vec<DoctorFinding> {
    const CHECK: &str = "sweep";
    let behind = status.shards.iter().map(|shard| shard.behind).max().unwrap_or(0);
    let behind_ms = status.shards.iter().filter_map(|shard| shard.behind_ms).max().unwrap_or(0);
    let noun = if behind == 1 { "timestamp" } else { "timestamps" };
    let lag = format!("{behind} {noun} and {} s behind", behind_ms / 1000);
    let is_far_behind = behind_ms > SWEEP_FAR_BEHIND_MS;
    let warn = |message: String, hint: &str| finding(CHECK, FindingLevel::Warn, message, Some(hint.to_owned()));
    let fine = |message: String| finding(CHECK, FindingLevel::Ok, message, None);
    let first = if let Some(pause) = &status.paused {
        let message = format!("paused by {} since {}: {}; {lag}", pause.holder, pause.since, pause.reason);
        warn(message, "`atlas sweep resume`")
    } else if !status.enabled {
        let message = format!("the configuration says `sweep.enabled: false`, so nothing is swept by itself; {lag}");
        warn(message, "set `sweep.enabled: true`")
    } else if status.backup_lock.is_some() {
        fine(format!("it waits for the backup lock; {lag}"))
    } else if let Some(why) = &status.stands_still {
        let message = format!("it fails and is tried again: {why}; {lag}");
        warn(message, "look whether the store answers; the log of the owner tells each attempt")
    } else if is_far_behind && uptime < SWEEP_BEGINS_WITHIN {
        fine(format!("{lag}: nobody has owned the store for long enough to sweep it"))
    } else if is_far_behind {
        let (message, hint) = match &status.held_by {
            Some(holder) => (format!("{lag}; held back by {holder}"), "end what reads for so long"),
            None => (lag, "more is written than is swept: a shorter `sweep.pause` lets it do more"),
        };
        warn(message, hint)
    } else {
        fine(lag)
    };
    let kept = status.transactions_floor.is_none();
    let kept = kept.then(|| fine("commits go step by step here, so every entry of `_transactions` is kept".to_owned()));
    [first].into_iter().chain(kept).collect()
}

fn seconds_since(time: &str) -> Option<i64> {
    let time = time.parse::<jiff::Timestamp>().ok()?;
    Some(jiff::Timestamp::now().as_second() - time.as_second())
}

/// Reads everything and checks that it can be read, and that no number in it is one that was never issued.
async fn data(atlas: &Atlas) -> Result<Vec<DoctorFinding>> {
    let kvs = atlas.store_below();
    let mut findings = Vec::new();
    let mut entries = 0u64;
    let mut all = kvs.scan_atomic(&transactions_table(), AtomicScan::new(RowRange::all()));
    while let Some(found) = all.next().await {
        let (cell, bytes) = found?;
        let start_ts = Entry::start_ts_of(&cell)?;
        let newest = match Entry::decode(start_ts, &bytes)? {
            Entry::Committed(commit_ts) => commit_ts,
            Entry::RolledBack => start_ts,
        };
        check_issued(atlas, newest, TRANSACTIONS_TABLE)?;
        entries += 1;
    }
    findings.extend(fine("data", format!("{entries} commit entries can be read"))?);
    for description in kvs.tables().await? {
        if description.kind != TableKind::Versioned {
            continue;
        }
        let table = &description.table;
        let message = if table.is_internal() {
            format!("{} entries of {table} can be read", sweep_entries(atlas, table).await?)
        } else {
            TableSpec::from_description(&description)?;
            format!("{} versions of {table} can be read", versions(atlas, table).await?)
        };
        findings.extend(fine("data", message)?);
    }
    Ok(findings)
}

async fn versions(atlas: &Atlas, table: &TableRef) -> Result<u64> {
    let mut count = 0;
    let mut cells = atlas.store_below().scan_versions(table, VersionScan::new(RowRange::all(), Timestamp::MAX));
    while let Some(found) = cells.next().await {
        let found = found?;
        for version in &found.versions {
            check_issued(atlas, version.ts, table.name())?;
            check_version(table, &found.cell, version)?;
            count += 1;
        }
    }
    Ok(count)
}

async fn sweep_entries(atlas: &Atlas, table: &TableRef) -> Result<u64> {
    let mut count = 0;
    let mut entries = atlas.store_below().scan(table, Scan::new(RowRange::all(), Timestamp::MAX));
    while let Some(found) = entries.next().await {
        let (cell, value) = found?;
        let (start_ts, _) = sweep_queue::decode(&cell, &value.bytes)?;
        check_issued(atlas, start_ts, table.name())?;
        count += 1;
    }
    Ok(count)
}

fn check_issued(atlas: &Atlas, ts: Timestamp, place: &str) -> Result<()> {
    // Read again each time: others commit while we look.
    let issued = atlas.transactions().oracle().last_issued();
    if ts > issued {
        return Err(Error::corrupt(
            format!("table '{place}'"),
            format!("it holds timestamp {ts}, the last one issued is {issued}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{BackupLockRecord, SweepPause, SweepShard, SweepTotals};

    const HOUR: Duration = Duration::from_secs(3600);

    fn behind(behind_ms: u64) -> SweepStatus {
        SweepStatus {
            enabled: true,
            paused: None,
            stands_still: None,
            backup_lock: None,
            sweep_ts: None,
            held_by: None,
            last_timestamp: Timestamp::FIRST,
            shards: vec![SweepShard {
                shard: 0,
                swept_below: Timestamp::FIRST,
                behind: 12,
                behind_ms: Some(behind_ms),
            }],
            tables: Vec::new(),
            transactions_floor: Some(Timestamp::FIRST),
            totals: SweepTotals::default(),
        }
    }

    fn told(status: &SweepStatus, uptime: Duration) -> (FindingLevel, String) {
        let findings = findings_about_sweep(status, uptime);
        assert!(findings.iter().all(|finding| finding.check == "sweep"));
        assert!(findings.iter().all(|finding| finding.hint.is_some() == (finding.level != FindingLevel::Ok)));
        (findings[0].level, findings[0].message.clone())
    }

    fn text(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn sweep_is_well_as_long_as_it_follows() {
        assert_eq!(told(&behind(59_000), HOUR), (FindingLevel::Ok, text("12 timestamps and 59 s behind")));
        let (level, message) = told(&behind(7_200_000), HOUR);
        assert_eq!((level, &*message), (FindingLevel::Warn, "12 timestamps and 7200 s behind"));
        let (level, message) = told(&SweepStatus { held_by: Some(text("a pin")), ..behind(7_200_000) }, HOUR);
        assert_eq!((level, &*message), (FindingLevel::Warn, "12 timestamps and 7200 s behind; held back by a pin"));
        // A command has just opened it.
        assert_eq!(told(&behind(7_200_000), Duration::from_secs(1)).0, FindingLevel::Ok);
    }

    #[test]
    fn sweep_that_was_stopped_or_fails_is_told_with_the_reason() {
        let pause = SweepPause { holder: text("me"), reason: text("busy"), since: text("noon") };
        let (level, message) = told(&SweepStatus { paused: Some(pause), ..behind(0) }, HOUR);
        assert_eq!(level, FindingLevel::Warn);
        assert!(message.starts_with("paused by me since noon: busy; "), "{message}");
        let (level, message) = told(&SweepStatus { enabled: false, ..behind(0) }, HOUR);
        assert!(level == FindingLevel::Warn && message.contains("sweep.enabled"), "{message}");
        let (level, message) = told(&SweepStatus { stands_still: Some(text("the disk is gone")), ..behind(0) }, HOUR);
        assert!(level == FindingLevel::Warn && message.contains("the disk is gone"), "{message}");
    }

    #[test]
    fn the_backup_lock_has_a_check_of_its_own() {
        let lock = BackupLockRecord {
            lock_id: uuid::Uuid::nil(),
            holder: text("me"),
            reason: text("copying"),
            since: text("noon"),
            renewal: None,
            lease_ms: 0,
            renewed_at: None,
        };
        let status = SweepStatus { backup_lock: Some(lock), stands_still: Some(text("the lock")), ..behind(7_200_000) };
        assert_eq!(told(&status, HOUR).0, FindingLevel::Ok);
    }

    #[test]
    fn a_store_that_keeps_its_entries_says_so() {
        let findings = findings_about_sweep(&SweepStatus { transactions_floor: None, ..behind(0) }, HOUR);
        let last = findings.last().map(|finding| (finding.level, finding.message.contains("step by step")));
        assert_eq!((findings.len(), last), (2, Some((FindingLevel::Ok, true))));
    }
}
