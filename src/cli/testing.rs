//! A store for tests of the command line: the plainest thing that keeps the promises of `Operations`.

use super::args::{Cli, Format};
use super::backend::{Backend, CleanSummary, FastForwardSummary, RestoreSummary, Search, Serving, VerifySummary};
use super::output::Output;
use super::{Context, execute};
use crate::config::{AtlasConfig, Environment, KvsConfig};
use crate::ops::*;
use crate::schema::{TableChange, TableSpec};
use crate::{Error, Result};
use async_trait::async_trait;
use atlas_kvs::{Cell, TableKind, TableRef, Timestamp};
use bytes::Bytes;
use clap::Parser;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

type Versions = BTreeMap<Timestamp, Option<Bytes>>;

#[derive(Clone, Debug, Default)]
struct Tables {
    cells: BTreeMap<TableRef, (TableSpec, BTreeMap<Cell, Versions>)>,
    clock: u64,
    lock: Option<BackupLockRecord>,
    sweep_paused: Option<SweepPause>,
}

impl Tables {
    fn tick(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp::saturating(self.clock)
    }

    fn table(&self, table: &TableRef) -> Result<&BTreeMap<Cell, Versions>> {
        self.cells.get(table).map(|(_, cells)| cells).ok_or_else(|| not_found(table))
    }

    fn info(&self, table: &TableRef, count: bool) -> Result<TableInfo> {
        let (spec, cells) = self.cells.get(table).ok_or_else(|| not_found(table))?;
        Ok(TableInfo {
            table: table.clone(),
            kind: TableKind::Versioned,
            spec: Some(*spec),
            versions: cells.values().map(|versions| versions.len() as u64).sum(),
            bytes: 0,
            cells: count.then_some(cells.len() as u64),
            sentinels: count.then_some(0),
            exact: count,
        })
    }
}

impl Tables {
    fn check_lock(&self) -> Result<()> {
        match self.lock.clone() {
            Some(BackupLockRecord { holder, since, reason, .. }) => {
                Err(Error::BackupLockHeld { holder, since, reason })
            }
            None => Ok(()),
        }
    }

    fn sweep_status(&self) -> SweepStatus {
        let pause = self.sweep_paused.clone();
        let tables = self.cells.iter().map(|(table, (spec, _))| SweepTable {
            table: table.clone(),
            strategy: spec.sweep_strategy.to_string(),
            swept: Some(Timestamp::FIRST),
            behind_ms: Some(90_000),
            interrupted_at: None,
        });
        let swept_below = Timestamp::FIRST;
        let shards = (0..2).map(|shard| SweepShard { shard, swept_below, behind: 7, behind_ms: None });
        SweepStatus {
            enabled: true,
            stands_still: pause.as_ref().map(|pause| format!("paused by {}", pause.holder)),
            paused: pause,
            backup_lock: self.lock.clone(),
            sweep_ts: Some(Timestamp::FIRST),
            held_by: None,
            last_timestamp: Timestamp::saturating(self.clock.max(1)),
            shards: shards.collect(),
            tables: tables.collect(),
            transactions_floor: None,
            totals: SweepTotals::default(),
        }
    }
}

fn not_found(table: &TableRef) -> Error {
    Error::NotFound { what: format!("table '{table}'") }
}

/// Every store by its directory, backups by their id, and what to do wrong.
#[derive(Default)]
pub(crate) struct FakeBackend {
    stores: Mutex<BTreeMap<PathBuf, FakeStore>>,
    backups: Mutex<BTreeMap<String, (BackupInfo, Tables)>>,
    /// The store at hand is owned by another process.
    pub(crate) in_use: Mutex<bool>,
    /// Damages a restored store in this way.
    pub(crate) damage: Mutex<Option<Damage>>,
    conflicts: Arc<Mutex<u32>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    LoseCell,
    ChangeValue,
    AddCell,
    AddTable,
    KeepLaterCommits,
    TurnBackTime,
}

#[derive(Clone)]
struct FakeStore {
    tables: Arc<Mutex<Tables>>,
    backups: Arc<Mutex<Vec<(BackupInfo, Tables)>>>,
    conflicts: Arc<Mutex<u32>>,
}

impl FakeBackend {
    /// Lets the next `number` commits fail with a conflict.
    pub(crate) fn fail_commits(&self, number: u32) {
        *self.conflicts.lock() = number;
    }

    fn store(&self, config: &AtlasConfig) -> FakeStore {
        let dir = match &config.key_value_service {
            KvsConfig::Rocksdb { data_dir, .. } => data_dir.clone(),
            _ => PathBuf::new(),
        };
        let conflicts = self.conflicts.clone();
        let make = || FakeStore { tables: Arc::default(), backups: Arc::default(), conflicts };
        self.stores.lock().entry(dir).or_insert_with(make).clone()
    }

    fn collect_backups(&self) {
        for store in self.stores.lock().values() {
            for (info, tables) in store.backups.lock().drain(..) {
                self.backups.lock().insert(info.id.clone(), (info, tables));
            }
        }
    }

    fn check_free(&self) -> Result<()> {
        match *self.in_use.lock() {
            true => Err(Error::StoreInUse { place: "./data/atlas".to_owned(), pid: Some(4711) }),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Backend for FakeBackend {
    async fn find_server(&self, config: &AtlasConfig) -> Result<Search> {
        Ok(match self.check_exists(config).await {
            Err(error) => Search::NoStore(error),
            Ok(()) => Search::Nobody(None),
        })
    }

    async fn open_store(&self, config: &AtlasConfig) -> Result<Arc<dyn Operations>> {
        Ok(Arc::new(self.store(config)))
    }

    async fn serve(
        &self,
        _config: &AtlasConfig,
        _standby: bool,
        ready: Box<dyn FnOnce(Serving) + Send>,
        _shutdown: CancellationToken,
    ) -> Result<()> {
        ready(Serving { http: Some("127.0.0.1:1".to_owned()), ..Serving::default() });
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok(())
    }

    async fn clean_transactions(
        &self,
        _config: &AtlasConfig,
        ts: Timestamp,
        _dry_run: bool,
        _progress: ProgressSink,
    ) -> Result<CleanSummary> {
        self.check_free()?;
        Ok(CleanSummary { scanned: 9, rolled_back: 1, already: 0, examples: vec![(ts, ts.next())] })
    }

    async fn fast_forward(&self, config: &AtlasConfig, ts: Timestamp, _large: bool) -> Result<FastForwardSummary> {
        self.check_free()?;
        let store = self.store(config);
        let mut tables = store.tables.lock();
        let before = Timestamp::saturating(tables.clock);
        tables.clock = tables.clock.max(ts.get());
        Ok(FastForwardSummary { before, after: before.max(ts) })
    }

    async fn backup_list(&self, _repository: &Path) -> Result<Vec<BackupInfo>> {
        self.collect_backups();
        Ok(self.backups.lock().values().map(|(info, _)| info.clone()).collect())
    }

    async fn backup_show(&self, _repository: &Path, id: &str) -> Result<BackupInfo> {
        self.collect_backups();
        let missing = || Error::NotFound { what: format!("backup '{id}'") };
        self.backups.lock().get(id).map(|(info, _)| info.clone()).ok_or_else(missing)
    }

    async fn backup_verify(&self, repository: &Path, id: &str, _progress: ProgressSink) -> Result<VerifySummary> {
        self.backup_show(repository, id).await?;
        Ok(VerifySummary { id: id.to_owned(), files: 1, bytes: 2 })
    }

    async fn backup_restore(
        &self,
        repository: &Path,
        id: &str,
        target: &AtlasConfig,
        _progress: ProgressSink,
    ) -> Result<RestoreSummary> {
        let info = self.backup_show(repository, id).await?;
        let mut tables = self.backups.lock()[id].1.clone();
        let backup_ts = info.backup_ts.expect("fake backups have one");
        let damage = *self.damage.lock();
        for (_, cells) in tables.cells.values_mut() {
            for versions in cells.values_mut() {
                if !matches!(damage, Some(Damage::KeepLaterCommits)) {
                    versions.retain(|ts, _| *ts < backup_ts);
                }
            }
        }
        tables.clock = info.fast_forward_ts.expect("fake backups have one").get();
        do_harm(&mut tables, damage);
        *self.store(target).tables.lock() = tables;
        Ok(RestoreSummary {
            id: id.to_owned(),
            store_id: uuid::Uuid::nil(),
            backup_ts,
            fast_forward_ts: info.fast_forward_ts.expect("fake backups have one"),
            bytes: 2,
            rolled_back: 0,
            commands: vec!["cp -a".to_owned()],
        })
    }

    async fn backup_resume(
        &self,
        _repository: Option<&Path>,
        _target: &AtlasConfig,
        _progress: ProgressSink,
    ) -> Result<RestoreSummary> {
        Err(Error::NotFound { what: "interrupted restore".to_owned() })
    }
}

fn do_harm(tables: &mut Tables, damage: Option<Damage>) {
    let some_cell = |tables: &mut Tables| {
        let (name, (_, cells)) = tables.cells.iter().next_back().expect("there are tables");
        (name.clone(), cells.keys().nth(cells.len() / 2).expect("there are cells").clone())
    };
    match damage {
        Some(Damage::LoseCell) => {
            let (table, cell) = some_cell(tables);
            tables.cells.get_mut(&table).expect("it was found").1.remove(&cell);
        }
        Some(Damage::ChangeValue) => {
            let (table, cell) = some_cell(tables);
            let versions = tables.cells.get_mut(&table).expect("it was found").1.get_mut(&cell);
            let last = versions.expect("it was found").values_mut().next_back().expect("there is a version");
            *last = Some(Bytes::from_static(b"7777"));
        }
        Some(Damage::AddCell) => {
            let (table, _) = some_cell(tables);
            let versions = Versions::from([(Timestamp::FIRST, Some(Bytes::from_static(b"1")))]);
            let cell = Cell::copy_from("zzz-zzz", "flights");
            tables.cells.get_mut(&table).expect("it was found").1.insert(cell, versions);
        }
        Some(Damage::AddTable) => {
            let name = TableRef::new("demo.more").expect("the name is well formed");
            tables.cells.insert(name, (TableSpec::default(), BTreeMap::new()));
        }
        Some(Damage::TurnBackTime) => tables.clock = 1_000,
        Some(Damage::KeepLaterCommits) | None => {}
    }
}

#[async_trait]
impl Operations for FakeStore {
    fn connection(&self) -> Connection {
        Connection::Local
    }

    async fn fresh_timestamp(&self) -> Result<Timestamp> {
        Ok(self.tables.lock().tick())
    }

    async fn pin_fresh_timestamp(&self, hold: Duration) -> Result<Timestamp> {
        assert_eq!(hold, Duration::from_secs(600));
        self.fresh_timestamp().await
    }

    async fn fresh_timestamps(&self, count: u32) -> Result<Timestamp> {
        let mut tables = self.tables.lock();
        let first = tables.tick();
        tables.clock += u64::from(count) - 1;
        Ok(first)
    }

    async fn immutable_timestamp(&self) -> Result<Timestamp> {
        Ok(Timestamp::saturating(self.tables.lock().clock))
    }

    async fn wall_clock_millis(&self, _ts: Timestamp) -> Result<Option<i64>> {
        Ok(Some(0))
    }

    async fn punched(&self, millis: i64) -> Result<Option<Punch>> {
        let timestamp = Timestamp::saturating(self.tables.lock().clock);
        Ok((millis >= 60_000).then_some(Punch { timestamp, millis: millis - millis % 60_000 }))
    }

    async fn backup_lock_acquire(&self, reason: &str) -> Result<BackupLockRecord> {
        let mut tables = self.tables.lock();
        if let Some(held) = &tables.lock {
            let BackupLockRecord { holder, since, reason, .. } = held.clone();
            return Err(Error::BackupLockHeld { holder, since, reason });
        }
        let record = BackupLockRecord {
            lock_id: uuid::Uuid::nil(),
            holder: "somebody".to_owned(),
            reason: reason.to_owned(),
            since: "2020-01-01T00:00:00Z".to_owned(),
            renewal: None,
            lease_ms: 0,
            renewed_at: None,
        };
        tables.lock = Some(record.clone());
        Ok(record)
    }

    async fn backup_lock_release(&self) -> Result<Option<BackupLockRecord>> {
        Ok(self.tables.lock().lock.take())
    }

    async fn backup_lock_status(&self) -> Result<Option<BackupLockRecord>> {
        Ok(self.tables.lock().lock.clone())
    }

    async fn create_table(&self, table: &TableRef, spec: &TableSpec) -> Result<()> {
        let mut tables = self.tables.lock();
        let (found, _) = tables.cells.entry(table.clone()).or_insert_with(|| (*spec, BTreeMap::new()));
        match found == spec {
            true => Ok(()),
            false => Err(Error::AlreadyExists { what: format!("table '{table}'") }),
        }
    }

    async fn tables(&self, _internal: bool) -> Result<Vec<TableInfo>> {
        let tables = self.tables.lock();
        tables.cells.keys().map(|table| tables.info(table, false)).collect()
    }

    async fn describe_table(&self, table: &TableRef, count: bool) -> Result<TableInfo> {
        self.tables.lock().info(table, count)
    }

    async fn alter_table(&self, table: &TableRef, change: &TableChange) -> Result<TableSpec> {
        let mut tables = self.tables.lock();
        let (spec, _) = tables.cells.get_mut(table).ok_or_else(|| not_found(table))?;
        *spec = spec.changed(change);
        Ok(*spec)
    }

    async fn drop_table(&self, table: &TableRef) -> Result<()> {
        self.tables.lock().cells.remove(table).map(drop).ok_or_else(|| not_found(table))
    }

    async fn truncate_table(&self, table: &TableRef) -> Result<()> {
        self.tables.lock().cells.get_mut(table).map(|(_, cells)| cells.clear()).ok_or_else(|| not_found(table))
    }

    async fn begin_transaction(&self, options: BeginOptions) -> Result<Box<dyn TransactionOps>> {
        let start_ts = self.tables.lock().tick();
        let read_ts = options.at.unwrap_or(start_ts);
        Ok(Box::new(FakeTransaction { store: self.clone(), start_ts, read_ts, writes: Mutex::default() }))
    }

    async fn backup_create(&self, request: BackupRequest, _progress: ProgressSink) -> Result<BackupInfo> {
        assert!(request.repository.is_absolute());
        let backup_ts = self.fresh_timestamp().await?;
        // Long enough for commits to come in between.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let copy = self.tables.lock().clone();
        let info = BackupInfo {
            id: request.name.unwrap_or_else(|| "made-up".to_owned()),
            state: "complete".to_owned(),
            backup_ts: Some(backup_ts),
            fast_forward_ts: Some(self.fresh_timestamp().await?),
            started: format!("2020-01-01T00:00:{:02}Z", backup_ts.get() % 60),
            took_ms: 50,
            snapshot_ms: 1,
            bytes: 2,
            files: 1,
            store: "fake".to_owned(),
            namespace: "default".to_owned(),
            method: "files".to_owned(),
        };
        self.backups.lock().push((info.clone(), copy));
        Ok(info)
    }

    async fn status(&self) -> Result<StoreStatus> {
        Ok(StoreStatus {
            namespace: "default".to_owned(),
            store: "fake".to_owned(),
            location: "nowhere".to_owned(),
            store_id: uuid::Uuid::nil(),
            owner_pid: 1,
            owner: None,
            commit_mode: "pipeline".to_owned(),
            epoch: 1,
            last_timestamp: Timestamp::FIRST,
            timestamp_bound: Timestamp::FIRST,
            immutable_ts: Timestamp::FIRST,
            open_transactions: 0,
            tables: self.tables(false).await?,
            backup_lock: self.tables.lock().lock.clone(),
            last_backup: None,
            uptime_ms: 5,
            version: "0".to_owned(),
        })
    }

    async fn sweep(&self, request: SweepRequest, progress: ProgressSink) -> Result<SweepReport> {
        let mut tables = self.tables.lock();
        tables.check_lock()?;
        if let Some(table) = &request.table {
            tables.table(table)?;
        }
        let sweep_ts = Timestamp::saturating(tables.clock);
        let mut report = SweepReport { sweep_ts, dry_run: request.dry_run, tables: Vec::new() };
        for (table, (spec, cells)) in &mut tables.cells {
            if request.table.as_ref().is_some_and(|wanted| wanted != table) {
                continue;
            }
            let mut swept = SweptTableReport {
                table: table.name().to_owned(),
                strategy: spec.sweep_strategy.to_string(),
                ..SweptTableReport::default()
            };
            for versions in cells.values_mut() {
                swept.cells += 1;
                swept.versions += versions.len() as u64;
                let newest = versions.keys().next_back().copied().unwrap_or(Timestamp::FIRST);
                for value in versions.range(..newest).map(|(_, value)| value) {
                    swept.deleted += 1;
                    swept.bytes += value.as_ref().map_or(0, |value| value.len() as u64);
                }
                if !request.dry_run {
                    versions.retain(|ts, _| *ts >= newest);
                }
            }
            progress(Progress {
                step: format!("sweep {table}"),
                done: swept.cells,
                total: None,
                unit: "cells".to_owned(),
            });
            report.tables.push(swept);
        }
        Ok(report)
    }

    async fn sweep_status(&self) -> Result<SweepStatus> {
        let tables = self.tables.lock();
        Ok(tables.sweep_status())
    }

    async fn sweep_pause(&self, reason: &str) -> Result<SweepStatus> {
        let mut tables = self.tables.lock();
        let (holder, since) = ("somebody".to_owned(), "2020-01-01T00:00:00Z".to_owned());
        tables.sweep_paused = Some(SweepPause { holder, reason: reason.to_owned(), since });
        Ok(tables.sweep_status())
    }

    async fn sweep_resume(&self) -> Result<SweepStatus> {
        let mut tables = self.tables.lock();
        tables.sweep_paused = None;
        Ok(tables.sweep_status())
    }

    async fn hard_delete(&self, table: &TableRef, cells: &[Cell], _patience: Duration) -> Result<HardDeleted> {
        let mut tables = self.tables.lock();
        tables.check_lock()?;
        tables.table(table)?;
        let commit_ts = tables.tick();
        let (_, found) = tables.cells.get_mut(table).expect("it was found");
        let versions = cells.iter().filter_map(|cell| found.remove(cell)).map(|gone| gone.len() as u64 + 1).sum();
        Ok(HardDeleted { commit_ts, versions })
    }

    async fn doctor(&self, checks: &[String]) -> Result<Vec<DoctorFinding>> {
        let level = if checks.is_empty() { FindingLevel::Ok } else { FindingLevel::Fail };
        let (check, message) = ("clock".to_owned(), "it ticks".to_owned());
        Ok(vec![DoctorFinding { check, level, message, hint: Some("look".to_owned()) }])
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

struct FakeTransaction {
    store: FakeStore,
    start_ts: Timestamp,
    read_ts: Timestamp,
    writes: Mutex<Vec<(TableRef, Cell, Option<Bytes>)>>,
}

impl FakeTransaction {
    fn visible(&self, versions: &Versions) -> Option<Bytes> {
        versions.range(..self.read_ts).next_back().and_then(|(_, value)| value.clone())
    }
}

#[async_trait]
impl TransactionOps for FakeTransaction {
    fn start_ts(&self) -> Timestamp {
        self.start_ts
    }

    fn read_ts(&self) -> Timestamp {
        self.read_ts
    }

    async fn get(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>> {
        let tables = self.store.tables.lock();
        let found = tables.table(table)?;
        Ok(cells.iter().map(|cell| found.get(cell).and_then(|versions| self.visible(versions))).collect())
    }

    async fn scan(&self, table: &TableRef, scan: ScanOptions) -> Result<BoxStream<'static, Result<(Cell, Bytes)>>> {
        let tables = self.store.tables.lock();
        let mut cells: Vec<Result<(Cell, Bytes)>> = tables
            .table(table)?
            .iter()
            .filter(|(cell, _)| scan.rows.contains(&cell.row))
            .filter_map(|(cell, versions)| Some(Ok((cell.clone(), self.visible(versions)?))))
            .collect();
        if scan.reverse {
            cells.reverse();
        }
        cells.truncate(scan.limit.map_or(usize::MAX, |limit| limit as usize));
        Ok(futures::stream::iter(cells).boxed())
    }

    async fn write(&self, table: &TableRef, writes: Vec<(Cell, Option<Bytes>)>) -> Result<()> {
        self.store.tables.lock().table(table)?;
        self.writes.lock().extend(writes.into_iter().map(|(cell, value)| (table.clone(), cell, value)));
        Ok(())
    }

    async fn commit(self: Box<Self>) -> Result<Option<Timestamp>> {
        // Gives the others a turn, as a real commit does.
        tokio::time::sleep(Duration::from_micros(200)).await;
        let writes = self.writes.into_inner();
        let mut tables = self.store.tables.lock();
        let conflict = |cell: &Cell, table: &TableRef| Error::Conflict {
            table: table.clone(),
            cell: cell.clone(),
            committed_at: None,
            read_ts: self.read_ts,
        };
        let mut planned = self.store.conflicts.lock();
        for (table, cell, _) in &writes {
            let newest = tables.table(table)?.get(cell).and_then(|versions| versions.keys().next_back().copied());
            if *planned > 0 || newest.is_some_and(|ts| ts >= self.read_ts) {
                *planned = planned.saturating_sub(1);
                return Err(conflict(cell, table));
            }
        }
        if writes.is_empty() {
            return Ok(None);
        }
        let commit_ts = tables.tick();
        for (table, cell, value) in writes {
            let (_, cells) = tables.cells.get_mut(&table).ok_or_else(|| not_found(&table))?;
            cells.entry(cell).or_default().insert(commit_ts, value);
        }
        Ok(Some(commit_ts))
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// What a command printed, and its exit code.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u8,
    pub(crate) stdout: String,
}

/// A place to run commands in, one after the other.
pub(crate) struct Stand {
    pub(crate) backend: Arc<FakeBackend>,
    pub(crate) dir: tempfile::TempDir,
}

impl Stand {
    /// One with a store in it.
    pub(crate) fn new() -> Stand {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("store/something")).expect("a directory");
        Stand { backend: Arc::default(), dir }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Writes a file and answers its path.
    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        std::fs::write(self.dir.path().join(name), content).expect("the file is written");
        self.path(name)
    }

    pub(crate) async fn run(&self, line: &str) -> Answer {
        self.run_args(line.split_whitespace()).await
    }

    pub(crate) async fn run_args(&self, args: impl IntoIterator<Item = &str>) -> Answer {
        let set = format!("keyValueService.dataDir={}", self.path("store"));
        let front = ["atlas", "--set", &set].map(str::to_owned);
        let args: Vec<String> = front.into_iter().chain(args.into_iter().map(str::to_owned)).collect();
        let cli = Cli::try_parse_from(args).unwrap_or_else(|error| panic!("{error}"));
        let mut context = Context::new(&cli, self.backend.clone(), Environment::default());
        context.sources.alone = true;
        context.is_interactive = false;
        let page = Page::default();
        let format = cli.globals.output.unwrap_or(Format::Plain);
        let mut output = Output::new(format, cli.command.words(), Box::new(page.clone()));
        let code = execute(cli.command, &context, &mut output).await;
        let stdout = String::from_utf8(page.0.lock().clone()).expect("output is text");
        Answer { code, stdout }
    }
}

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
