//! Operations on a map in memory that do what a test tells them to.

use async_trait::async_trait;
use atlas::kvs_api::TableKind;
use atlas::ops::{
    BackupInfo, BackupLockRecord, BackupRequest, BeginOptions, Connection, DoctorFinding, FindingLevel, HardDeleted,
    Operations, Progress, ProgressSink, Punch, ScanOptions, StoreStatus, SweepPause, SweepReport, SweepRequest,
    SweepShard, SweepStatus, SweepTable, SweepTotals, SweptTableReport, TableInfo, TransactionOps,
};
use atlas::schema::{TableChange, TableSpec};
use atlas::server::{LockLease, LockOps};
use atlas::{Cell, Error, Result, TableRef, Timestamp};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

pub(crate) const ENDLESS_VALUE_LEN: usize = 10_000;

/// A table whose scan has no end.
pub(crate) fn endless() -> TableRef {
    TableRef::new("endless").unwrap()
}

#[derive(Default)]
pub(crate) struct Shared {
    data: Mutex<BTreeMap<(TableRef, Cell), Bytes>>,
    clock: AtomicU64,
    lock: Mutex<Option<BackupLockRecord>>,
    tables: Mutex<BTreeMap<TableRef, TableSpec>>,
    hold: watch::Sender<bool>,
    /// What the next call fails with.
    pub(crate) failure: Mutex<Option<Error>>,
    pub(crate) pins: Mutex<Vec<Duration>>,
    pub(crate) open: AtomicUsize,
    pub(crate) aborts: AtomicUsize,
    pub(crate) commits_begun: AtomicUsize,
    pub(crate) commit_log: Mutex<Vec<Timestamp>>,
    pub(crate) held: AtomicUsize,
    pub(crate) hold_writes: AtomicBool,
    pub(crate) panic_in_commit: AtomicBool,
    pub(crate) endless_scanned: AtomicUsize,
    pub(crate) endless_scans_open: AtomicUsize,
    /// 0: never.
    pub(crate) endless_scan_fails_at: AtomicUsize,
    pub(crate) backups_open: AtomicUsize,
    pub(crate) backup_requests: Mutex<Vec<BackupRequest>>,
    pub(crate) sweeps_open: AtomicUsize,
    pub(crate) sweep_requests: Mutex<Vec<SweepRequest>>,
    pub(crate) sweep_paused: Mutex<Option<SweepPause>>,
    pub(crate) hard_deletes: Mutex<Vec<(TableRef, Vec<Cell>, Duration)>>,
}

#[derive(Default)]
pub(crate) struct Fake(Arc<Shared>);

impl std::ops::Deref for Fake {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Shared {
    /// Commits, and calls on tables, wait from now on.
    pub(crate) fn hold_commits(&self) {
        self.hold.send_replace(true);
    }

    pub(crate) fn let_commits_go(&self) {
        self.hold.send_replace(false);
    }

    async fn held(&self) {
        self.held.fetch_add(1, Relaxed);
        self.hold.subscribe().wait_for(|hold| !hold).await.unwrap();
    }

    fn check(&self) -> Result<()> {
        self.failure.lock().take().map_or(Ok(()), Err)
    }

    fn tick(&self, count: u64) -> Timestamp {
        Timestamp::saturating(self.clock.fetch_add(count, Relaxed) + 1)
    }

    fn info(&self, table: &TableRef) -> Result<TableInfo> {
        let spec =
            *self.tables.lock().get(table).ok_or_else(|| Error::NotFound { what: format!("table '{table}'") })?;
        let kind = if table.is_internal() { TableKind::Atomic } else { TableKind::Versioned };
        let spec = (!table.is_internal()).then_some(spec);
        let (versions, bytes) = (123, 456);
        Ok(TableInfo {
            table: table.clone(),
            kind,
            spec,
            versions,
            bytes,
            cells: Some(0),
            sentinels: None,
            exact: true,
        })
    }

    fn check_lock(&self) -> Result<()> {
        match self.lock.lock().clone() {
            Some(BackupLockRecord { holder, since, reason, .. }) => {
                Err(Error::BackupLockHeld { holder, since, reason })
            }
            None => Ok(()),
        }
    }
}

pub(crate) fn backup_info(name: &str) -> BackupInfo {
    BackupInfo {
        id: name.to_owned(),
        state: "complete".to_owned(),
        backup_ts: Some(Timestamp::saturating(40)),
        fast_forward_ts: None,
        started: "2024-05-06T07:08:09Z".to_owned(),
        took_ms: 1,
        snapshot_ms: 2,
        bytes: 3,
        files: 4,
        store: "fake".to_owned(),
        namespace: "n".to_owned(),
        method: "files".to_owned(),
    }
}

pub(crate) fn backup_steps() -> Vec<Progress> {
    (0..5)
        .map(|done| Progress { step: "copy".to_owned(), done, total: Some(4), unit: "files".to_owned() })
        .chain([Progress { step: "verify".to_owned(), done: 1, total: None, unit: String::new() }])
        .collect()
}

pub(crate) fn sweep_report() -> SweepReport {
    let table = |table: &str, resumed| SweptTableReport {
        table: table.to_owned(),
        strategy: "Conservative".to_owned(),
        cells: 1,
        versions: 2,
        deleted: 3,
        bytes: 4,
        rolled_back: 5,
        resumed,
    };
    SweepReport { sweep_ts: Timestamp::saturating(9), dry_run: true, tables: vec![table("a", true), table("b", false)] }
}

/// How sweep is; with everything in it if `full`, else with as little as can be.
pub(crate) fn sweep_status(paused: Option<SweepPause>, full: bool) -> SweepStatus {
    let ts = |number| full.then_some(Timestamp::saturating(number));
    let table = |name: &str| SweepTable {
        table: TableRef::new(name).unwrap(),
        strategy: "Thorough".to_owned(),
        swept: ts(3),
        behind_ms: full.then_some(4),
        interrupted_at: full.then(|| "row".to_owned()),
    };
    SweepStatus {
        enabled: full,
        stands_still: paused.as_ref().map(|pause| pause.reason.clone()),
        paused,
        backup_lock: None,
        sweep_ts: ts(5),
        held_by: full.then(|| "a pin".to_owned()),
        last_timestamp: Timestamp::saturating(70),
        shards: (0..3)
            .map(|shard| SweepShard {
                shard,
                swept_below: Timestamp::saturating(6),
                behind: 64,
                behind_ms: full.then_some(7),
            })
            .collect(),
        tables: vec![table("a"), table("b")],
        transactions_floor: ts(8),
        totals: SweepTotals {
            cells: 1,
            deleted: 2,
            bytes: 3,
            sentinels: 4,
            rolled_back: 5,
            entries: 6,
            partitions: 7,
            transactions: 8,
            failures: 9,
        },
    }
}

/// Counts what is there as long as it is there.
struct Counted(Arc<Shared>, fn(&Shared) -> &AtomicUsize);

impl Counted {
    fn new(shared: &Arc<Shared>, counter: fn(&Shared) -> &AtomicUsize) -> Counted {
        counter(shared).fetch_add(1, Relaxed);
        Counted(shared.clone(), counter)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Relaxed);
    }
}

#[async_trait]
impl Operations for Fake {
    fn connection(&self) -> Connection {
        Connection::Local
    }

    async fn fresh_timestamp(&self) -> Result<Timestamp> {
        self.check()?;
        Ok(self.tick(1))
    }

    async fn pin_fresh_timestamp(&self, hold: Duration) -> Result<Timestamp> {
        self.pins.lock().push(hold);
        Ok(self.tick(1))
    }

    async fn fresh_timestamps(&self, count: u32) -> Result<Timestamp> {
        Ok(self.tick(count.into()))
    }

    async fn immutable_timestamp(&self) -> Result<Timestamp> {
        Ok(Timestamp::saturating(self.clock.load(Relaxed)))
    }

    async fn wall_clock_millis(&self, ts: Timestamp) -> Result<Option<i64>> {
        Ok((ts < Timestamp::saturating(1000)).then(|| -1000 * ts.get() as i64))
    }

    async fn punched(&self, millis: i64) -> Result<Option<Punch>> {
        Ok((millis >= 0).then_some(Punch { timestamp: Timestamp::saturating(7), millis }))
    }

    async fn backup_lock_acquire(&self, reason: &str) -> Result<BackupLockRecord> {
        self.check_lock()?;
        let record = BackupLockRecord {
            lock_id: Uuid::new_v4(),
            holder: "somebody".to_owned(),
            reason: reason.to_owned(),
            since: "2024-05-06T07:08:09Z".to_owned(),
            renewal: Some(0),
            lease_ms: 60_000,
            renewed_at: None,
        };
        *self.lock.lock() = Some(record.clone());
        Ok(record)
    }

    async fn backup_lock_release(&self) -> Result<Option<BackupLockRecord>> {
        Ok(self.lock.lock().take())
    }

    async fn backup_lock_status(&self) -> Result<Option<BackupLockRecord>> {
        self.check()?;
        Ok(self.lock.lock().clone())
    }

    async fn create_table(&self, table: &TableRef, spec: &TableSpec) -> Result<()> {
        self.tables.lock().insert(table.clone(), *spec);
        Ok(())
    }

    async fn tables(&self, internal: bool) -> Result<Vec<TableInfo>> {
        self.held().await;
        self.tables.lock().entry(TableRef::new("t").unwrap()).or_default();
        self.tables.lock().entry(TableRef::new("_atlas").unwrap()).or_default();
        let tables: Vec<_> =
            self.tables.lock().keys().filter(|name| internal || !name.is_internal()).cloned().collect();
        tables.iter().map(|table| self.info(table)).collect()
    }

    async fn describe_table(&self, table: &TableRef, _count: bool) -> Result<TableInfo> {
        self.info(table)
    }

    async fn alter_table(&self, table: &TableRef, change: &TableChange) -> Result<TableSpec> {
        let mut tables = self.tables.lock();
        let spec = tables.get_mut(table).ok_or_else(|| Error::NotFound { what: format!("table '{table}'") })?;
        *spec = spec.changed(change);
        Ok(*spec)
    }

    async fn drop_table(&self, table: &TableRef) -> Result<()> {
        self.check_lock()?;
        self.tables.lock().remove(table);
        Ok(())
    }

    async fn truncate_table(&self, table: &TableRef) -> Result<()> {
        self.held().await;
        self.check_lock()?;
        self.data.lock().retain(|(of, _), _| of != table);
        Ok(())
    }

    async fn begin_transaction(&self, options: BeginOptions) -> Result<Box<dyn TransactionOps>> {
        self.check()?;
        let start_ts = self.tick(1);
        let open = Counted::new(&self.0, |shared| &shared.open);
        let read_ts = options.at.unwrap_or(start_ts);
        Ok(Box::new(FakeTransaction {
            shared: self.0.clone(),
            start_ts,
            read_ts,
            writes: Mutex::default(),
            _open: open,
        }))
    }

    async fn backup_create(&self, request: BackupRequest, progress: ProgressSink) -> Result<BackupInfo> {
        self.check()?;
        let _open = Counted::new(&self.0, |shared| &shared.backups_open);
        self.backup_requests.lock().push(request.clone());
        for step in backup_steps() {
            progress(step);
        }
        if request.repository.ends_with("endless") {
            std::future::pending::<()>().await;
        }
        Ok(backup_info(&request.name.unwrap_or_default()))
    }

    async fn status(&self) -> Result<StoreStatus> {
        Ok(StoreStatus {
            namespace: "n".to_owned(),
            store: "fake".to_owned(),
            location: "nowhere".to_owned(),
            store_id: Uuid::from_u128(42),
            owner_pid: std::process::id(),
            owner: None,
            commit_mode: "pipeline".to_owned(),
            epoch: 3,
            last_timestamp: Timestamp::saturating(10),
            timestamp_bound: Timestamp::saturating(1000),
            immutable_ts: Timestamp::saturating(9),
            open_transactions: 0,
            tables: Operations::tables(self, false).await?,
            backup_lock: self.lock.lock().clone(),
            last_backup: Some(backup_info("last")),
            uptime_ms: 5000,
            version: "1.2.3".to_owned(),
        })
    }

    async fn sweep(&self, request: SweepRequest, progress: ProgressSink) -> Result<SweepReport> {
        self.check()?;
        let _open = Counted::new(&self.0, |shared| &shared.sweeps_open);
        let endless_one = request.table == Some(endless());
        self.sweep_requests.lock().push(request);
        for step in backup_steps() {
            progress(step);
        }
        if endless_one {
            std::future::pending::<()>().await;
        }
        Ok(sweep_report())
    }

    async fn sweep_status(&self) -> Result<SweepStatus> {
        self.check()?;
        let paused = self.sweep_paused.lock().clone();
        let full = paused.is_some();
        Ok(SweepStatus { backup_lock: self.lock.lock().clone(), ..sweep_status(paused, full) })
    }

    async fn sweep_pause(&self, reason: &str) -> Result<SweepStatus> {
        let (holder, since) = ("me".to_owned(), "2024-05-06T07:08:09Z".to_owned());
        *self.sweep_paused.lock() = Some(SweepPause { holder, reason: reason.to_owned(), since });
        Operations::sweep_status(self).await
    }

    async fn sweep_resume(&self) -> Result<SweepStatus> {
        *self.sweep_paused.lock() = None;
        Operations::sweep_status(self).await
    }

    async fn hard_delete(&self, table: &TableRef, cells: &[Cell], patience: Duration) -> Result<HardDeleted> {
        self.check_lock()?;
        self.hard_deletes.lock().push((table.clone(), cells.to_vec(), patience));
        Ok(HardDeleted { commit_ts: self.tick(1), versions: 3 })
    }

    async fn doctor(&self, checks: &[String]) -> Result<Vec<DoctorFinding>> {
        let levels = [FindingLevel::Ok, FindingLevel::Warn, FindingLevel::Fail];
        let finding = |(check, level): (&String, FindingLevel)| DoctorFinding {
            check: check.clone(),
            level,
            message: "m".to_owned(),
            hint: (level != FindingLevel::Ok).then(|| "h".to_owned()),
        };
        Ok(checks.iter().zip(levels).map(finding).collect())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

struct FakeTransaction {
    shared: Arc<Shared>,
    start_ts: Timestamp,
    read_ts: Timestamp,
    writes: Mutex<BTreeMap<(TableRef, Cell), Option<Bytes>>>,
    _open: Counted,
}

impl FakeTransaction {
    fn seen(&self) -> BTreeMap<(TableRef, Cell), Bytes> {
        let mut seen = self.shared.data.lock().clone();
        for (key, value) in &*self.writes.lock() {
            match value {
                Some(value) => seen.insert(key.clone(), value.clone()),
                None => seen.remove(key),
            };
        }
        seen
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
        self.shared.check()?;
        let seen = self.seen();
        Ok(cells.iter().map(|cell| seen.get(&(table.clone(), cell.clone())).cloned()).collect())
    }

    async fn scan(&self, table: &TableRef, scan: ScanOptions) -> Result<BoxStream<'static, Result<(Cell, Bytes)>>> {
        self.shared.check()?;
        if *table == endless() {
            return Ok(endless_scan(self.shared.clone()));
        }
        let mut found: Vec<_> = self
            .seen()
            .into_iter()
            .filter(|((of, cell), _)| {
                of == table && scan.rows.contains(&cell.row) && scan.columns.contains(&cell.column)
            })
            .map(|((_, cell), value)| Ok((cell, value)))
            .collect();
        if scan.reverse {
            found.reverse();
        }
        found.truncate(scan.limit.map_or(usize::MAX, |limit| limit as usize));
        Ok(futures::stream::iter(found).boxed())
    }

    async fn write(&self, table: &TableRef, writes: Vec<(Cell, Option<Bytes>)>) -> Result<()> {
        self.shared.check()?;
        if self.shared.hold_writes.load(Relaxed) {
            std::future::pending::<()>().await;
        }
        self.writes.lock().extend(writes.into_iter().map(|(cell, value)| ((table.clone(), cell), value)));
        Ok(())
    }

    async fn commit(self: Box<Self>) -> Result<Option<Timestamp>> {
        self.shared.commits_begun.fetch_add(1, Relaxed);
        self.shared.held().await;
        self.shared.check()?;
        assert!(!self.shared.panic_in_commit.load(Relaxed), "told to");
        let writes = std::mem::take(&mut *self.writes.lock());
        if writes.is_empty() {
            return Ok(None);
        }
        let commit_ts = self.shared.tick(1);
        let mut data = self.shared.data.lock();
        for (key, value) in writes {
            match value {
                Some(value) => data.insert(key, value),
                None => data.remove(&key),
            };
        }
        self.shared.commit_log.lock().push(commit_ts);
        Ok(Some(commit_ts))
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.shared.aborts.fetch_add(1, Relaxed);
        Ok(())
    }
}

fn endless_scan(shared: Arc<Shared>) -> BoxStream<'static, Result<(Cell, Bytes)>> {
    let open = Counted::new(&shared, |shared| &shared.endless_scans_open);
    futures::stream::iter(1..)
        .map(move |number: usize| {
            let shared = &open.0;
            shared.endless_scanned.fetch_add(1, Relaxed);
            if shared.endless_scan_fails_at.load(Relaxed) == number {
                return Err(Error::corrupt("the endless table", "it ends"));
            }
            Ok((Cell::copy_from(number.to_be_bytes(), "c"), Bytes::from(vec![7; ENDLESS_VALUE_LEN])))
        })
        .boxed()
}

/// Locks that are granted at once or never.
#[derive(Default)]
pub(crate) struct FakeLocks(Mutex<BTreeMap<Uuid, Vec<Bytes>>>);

fn lease(id: Uuid) -> LockLease {
    LockLease { token: Bytes::copy_from_slice(id.as_bytes()), lease: Duration::from_secs(20) }
}

#[async_trait]
impl LockOps for FakeLocks {
    async fn lock(&self, request_id: Uuid, descriptors: Vec<Bytes>, timeout: Duration) -> Result<LockLease> {
        if !self.0.lock().contains_key(&request_id) {
            self.wait_for(descriptors.clone(), timeout).await?;
            self.0.lock().insert(request_id, descriptors);
        }
        Ok(lease(request_id))
    }

    async fn refresh(&self, tokens: &[Bytes]) -> Result<Vec<Bytes>> {
        let held: Vec<_> = self.0.lock().keys().map(|id| lease(*id).token).collect();
        Ok(tokens.iter().filter(|token| held.contains(token)).cloned().collect())
    }

    async fn unlock(&self, tokens: &[Bytes]) -> Result<Vec<Bytes>> {
        let held = self.refresh(tokens).await?;
        self.0.lock().retain(|id, _| !held.contains(&lease(*id).token));
        Ok(held)
    }

    async fn wait_for(&self, descriptors: Vec<Bytes>, timeout: Duration) -> Result<()> {
        let taken = self.0.lock().values().flatten().any(|taken| descriptors.contains(taken));
        if taken {
            let waited_ms = timeout.as_millis() as u64;
            return Err(Error::LockTimeout { what: "a lock".to_owned(), waited_ms });
        }
        Ok(())
    }
}
