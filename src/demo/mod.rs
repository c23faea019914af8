//! `atlas demo`: a live backup under load, the store destroyed, the backup restored and proven right.
//!
//! ```text
//!   load airports, routes ── tasks move and book flights ─────────────┐ stop
//!                                    └─ live backup ─┘                │
//!   log of acknowledged commits: [commit_ts, writes] …  ──────────────┴──> state below backup_ts
//!                                                                              = every cell restored?
//! ```
//!
//! With a server configured, both stores are, one after the other, in a namespace of its own there; otherwise in the demo's
//! directory, where the backup is in any case.
//!
//! What the restored store must hold is computed from the demo's own log and never read from a store, so that a commit
//! the store lost, or one it invented, shows.

mod data;
mod directory;
mod ground;
mod log;
mod work;

use crate::config::AtlasConfig;
use crate::ops::{BackupRequest, BeginOptions, Operations, ProgressSink, ScanOptions};
use crate::{Error, Result};
use async_trait::async_trait;
use atlas_kvs::{Cell, TableRef, Timestamp};
use bytes::Bytes;
use directory::Directory;
use futures::StreamExt;
use ground::{Ground, shown};
use log::{Log, State};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use work::Workload;

/// What the demo is to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The program's configuration. If it names a server, the stores are there.
    pub(crate) config: AtlasConfig,
    /// Where to work.
    pub(crate) dir: PathBuf,
    /// How long transactions run.
    pub(crate) seconds: u64,
    /// How many of them at a time.
    pub(crate) tasks: u32,
    /// Leave the restored store and the backup.
    pub(crate) keep: bool,
}

/// What the demo plays on.
#[async_trait]
pub(crate) trait Stage: Sync {
    /// Opens a store in this process, or makes it.
    async fn open(&self, config: &AtlasConfig) -> Result<Arc<dyn Operations>>;

    /// Fills the empty store of `target` with a backup.
    async fn restore(&self, repository: &Path, id: &str, target: &AtlasConfig) -> Result<()>;

    /// Whether there is a store.
    async fn exists(&self, config: &AtlasConfig) -> Result<bool>;

    /// Removes a store on a server for good; it may be gone already.
    async fn destroy(&self, config: &AtlasConfig) -> Result<()>;

    /// Where the progress of long steps goes.
    fn progress(&self) -> ProgressSink;

    /// Tells people what happens.
    fn say(&self, text: &str);
}

/// What was done, and how fast.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    rows_loaded: u64,
    load_ms: u64,
    tasks: u32,
    run_ms: u64,
    commits: u64,
    commits_per_second: u64,
    conflicts_retried: u64,
    flights_booked: i64,
    backup_id: String,
    backup_ts: Timestamp,
    backup_bytes: u64,
    backup_ms: u64,
    commits_during_backup: u64,
    commits_after_backup_ts: u64,
    restore_ms: u64,
    cells_compared: u64,
    flights: i64,
    /// What was left to look at, if anything.
    kept: Option<String>,
}

impl Report {
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let count = |number: u64| indicatif::HumanCount(number).to_string();
        let flights = |number: i64| count(number.unsigned_abs());
        let mut rows = vec![
            ("rows loaded", format!("{} in {} ms", count(self.rows_loaded), count(self.load_ms))),
            ("commits", format!("{} by {} tasks in {} ms", count(self.commits), self.tasks, count(self.run_ms))),
            ("commits per second", count(self.commits_per_second)),
            ("conflicts retried", count(self.conflicts_retried)),
            ("flights booked", flights(self.flights_booked)),
            ("backup", format!("{} at timestamp {}", self.backup_id, self.backup_ts)),
            (
                "backup size and time",
                format!("{} in {} ms", indicatif::HumanBytes(self.backup_bytes), count(self.backup_ms)),
            ),
            ("commits during backup", count(self.commits_during_backup)),
            ("commits after its timestamp", count(self.commits_after_backup_ts)),
            ("restore time", format!("{} ms", count(self.restore_ms))),
            ("cells compared", format!("{}, all equal", count(self.cells_compared))),
            ("flights in all", format!("{}, as computed", flights(self.flights))),
        ];
        rows.extend(self.kept.clone().map(|kept| ("kept", kept)));
        rows
    }
}

/// Plays the demo. [`Error::Corrupt`] if the restored store is not exactly what it should be.
pub(crate) async fn run(plan: &Plan, stage: &dyn Stage) -> Result<Report> {
    let directory = Directory::take(&plan.dir)?;
    let ground = match Ground::choose(&plan.config, &directory, stage).await {
        Ok(ground) => ground,
        Err(error) => {
            // Nothing was made yet.
            directory.remove()?;
            return Err(error);
        }
    };
    let log = Arc::new(Log::default());

    stage.say(&format!("Loading US airports and routes into a fresh store in {}", shown(&ground.store)));
    let operations = stage.open(&ground.store).await?;
    let started = Instant::now();
    let rows_loaded = data::load(&*operations, &log).await?;
    let load_ms = millis_since(started);

    stage.say(&format!("{} tasks move and book flights; a live backup is taken meanwhile", plan.tasks));
    let started = Instant::now();
    let before = log.len();
    let mut workload = Workload::start(operations.clone(), log.clone(), plan.tasks)?;
    let half = Duration::from_secs(plan.seconds) / 2;
    workload.go_on(half).await?;
    let log_len_before_backup = log.len();
    let backup_started = Instant::now();
    let request = BackupRequest {
        repository: directory.backups(),
        name: None,
        reason: Some("atlas demo".to_owned()),
        portable: false,
        rate_limit: None,
    };
    let backup = operations.backup_create(request, stage.progress()).await?;
    let backup_ms = millis_since(backup_started);
    let commits_during_backup = (log.len() - log_len_before_backup) as u64;
    let backup_ts = backup.backup_ts.ok_or_else(|| wrong("the backup", "its manifest names no backup timestamp"))?;
    // Commits that the backup must leave out are as much of the proof as those it holds.
    workload.go_on(half.max(Duration::from_secs(1))).await?;
    let conflicts_retried = workload.stop().await?;
    let run_ms = millis_since(started);
    let commits = (log.len() - before) as u64;
    operations.close().await?;
    drop(operations);

    stage.say("Destroying the store, and restoring the backup into a new one");
    ground.destroy_store(&directory, stage).await?;
    let started = Instant::now();
    stage.restore(&directory.backups(), &backup.id, &ground.restored).await?;
    let restore_ms = millis_since(started);

    stage.say("Comparing every cell with the log of acknowledged commits");
    let restored = stage.open(&ground.restored).await?;
    let wanted = log.state_below(backup_ts);
    let cells_compared = compare(&*restored, &wanted).await?;
    check_alive(&*restored, backup.fast_forward_ts.unwrap_or(backup_ts)).await?;
    restored.close().await?;
    drop(restored);

    let report = Report {
        rows_loaded,
        load_ms,
        tasks: plan.tasks,
        run_ms,
        commits,
        commits_per_second: commits * 1000 / run_ms.max(1),
        conflicts_retried,
        flights_booked: log.booked(),
        backup_id: backup.id,
        backup_ts,
        backup_bytes: backup.bytes,
        backup_ms,
        commits_during_backup,
        commits_after_backup_ts: log.count_from(backup_ts),
        restore_ms,
        cells_compared,
        flights: wanted.flights,
        kept: plan.keep.then(|| ground.kept(&directory)),
    };
    // After a failure everything stays where it is, for a look.
    if !plan.keep {
        ground.remove(directory, stage).await?;
    }
    Ok(report)
}

fn millis_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn wrong(place: &str, reason: impl Into<String>) -> Error {
    Error::corrupt(place, reason)
}

/// Compares both tables cell by cell, in order, and the sum. Answers how many cells were equal.
async fn compare(restored: &dyn Operations, wanted: &State) -> Result<u64> {
    const PLACE: &str = "the restored store";
    let found: Vec<TableRef> = restored.tables(false).await?.into_iter().map(|info| info.table).collect();
    let tables: Vec<TableRef> = wanted.tables.keys().cloned().collect();
    if found != tables {
        return Err(wrong(PLACE, format!("it has the tables {found:?}, and should have {tables:?}")));
    }
    let transaction = restored.begin_transaction(BeginOptions { read_only: true, ..BeginOptions::default() }).await?;
    let mut compared = 0;
    let mut flights = 0;
    for (table, cells) in &wanted.tables {
        let mut wanted_cells = cells.iter();
        let mut found_cells = transaction.scan(table, ScanOptions::default()).await?;
        loop {
            let found = found_cells.next().await.transpose()?;
            let wanted = wanted_cells.next();
            match (&found, wanted) {
                (None, None) => break,
                (Some((cell, value)), Some((wanted_cell, wanted_value)))
                    if cell == wanted_cell && value == wanted_value =>
                {
                    compared += 1;
                    flights += data::flights_in(table, cell, value)?;
                }
                _ => {
                    let found = tell(found.as_ref().map(|(cell, value)| (cell, value)));
                    let wanted = tell(wanted);
                    return Err(wrong(PLACE, format!("table {table} holds {found}, and should hold {wanted}")));
                }
            }
        }
    }
    transaction.abort().await?;
    if flights != wanted.flights {
        return Err(wrong(PLACE, format!("it has {flights} flights, and should have {}", wanted.flights)));
    }
    Ok(compared)
}

fn tell(cell: Option<(&Cell, &Bytes)>) -> String {
    cell.map_or_else(|| "nothing more".to_owned(), |(cell, value)| format!("{cell} = '{}'", value.escape_ascii()))
}

/// A restored store must take new commits, and number them above everything that ever was.
async fn check_alive(restored: &dyn Operations, fast_forward_ts: Timestamp) -> Result<()> {
    const PLACE: &str = "the restored store";
    let transaction = restored.begin_transaction(BeginOptions::default()).await?;
    let cell = Cell::copy_from("00M", "name");
    transaction.write(&data::airports(), vec![(cell, Some(Bytes::from_static(b"Restored")))]).await?;
    match transaction.commit().await? {
        Some(commit_ts) if commit_ts > fast_forward_ts => Ok(()),
        commit_ts => Err(wrong(
            PLACE,
            format!(
                "a new commit is numbered {commit_ts:?}, which is not above the fast-forward timestamp {fast_forward_ts}"
            ),
        )),
    }
}

#[cfg(test)]
mod tests;
