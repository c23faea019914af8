//! Clients that go away in the middle of their commit: what a workload asks for passes through here.

use super::trouble::Scene;
use async_trait::async_trait;
use atlas::ops::{
    BackupInfo, BackupLockRecord, BackupRequest, BeginOptions, Connection, DoctorFinding, HardDeleted, Operations,
    ProgressSink, Punch, ScanOptions, StoreStatus, SweepReport, SweepRequest, SweepStatus, TableInfo, TransactionOps,
};
use atlas::schema::{TableChange, TableSpec};
use atlas::{Atlas, Cell, Error, Result, TableRef, Timestamp};
use bytes::Bytes;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::time::Duration;

/// A store whose clients go away when the scene says so.
pub struct Leaving {
    pub atlas: Atlas,
    pub scene: Arc<Scene>,
}

struct LeavingTransaction {
    inner: Box<dyn TransactionOps>,
    scene: Arc<Scene>,
}

#[async_trait]
impl Operations for Leaving {
    fn connection(&self) -> Connection {
        self.atlas.connection()
    }

    async fn fresh_timestamp(&self) -> Result<Timestamp> {
        self.atlas.fresh_timestamp().await
    }

    async fn create_table(&self, table: &TableRef, spec: &TableSpec) -> Result<()> {
        self.atlas.create_table(table, spec).await
    }

    async fn drop_table(&self, table: &TableRef) -> Result<()> {
        self.atlas.drop_table(table).await
    }

    async fn begin_transaction(&self, options: BeginOptions) -> Result<Box<dyn TransactionOps>> {
        let inner = self.atlas.begin_transaction(options).await?;
        Ok(Box::new(LeavingTransaction { inner, scene: self.scene.clone() }))
    }

    async fn pin_fresh_timestamp(&self, _hold: Duration) -> Result<Timestamp> {
        unreachable!("no workload asks for it")
    }

    async fn fresh_timestamps(&self, _count: u32) -> Result<Timestamp> {
        unreachable!("no workload asks for it")
    }

    async fn immutable_timestamp(&self) -> Result<Timestamp> {
        unreachable!("no workload asks for it")
    }

    async fn wall_clock_millis(&self, _ts: Timestamp) -> Result<Option<i64>> {
        unreachable!("no workload asks for it")
    }

    async fn backup_lock_acquire(&self, _reason: &str) -> Result<BackupLockRecord> {
        unreachable!("no workload asks for it")
    }

    async fn backup_lock_release(&self) -> Result<Option<BackupLockRecord>> {
        unreachable!("no workload asks for it")
    }

    async fn backup_lock_status(&self) -> Result<Option<BackupLockRecord>> {
        unreachable!("no workload asks for it")
    }

    async fn alter_table(&self, _table: &TableRef, _change: &TableChange) -> Result<TableSpec> {
        unreachable!("no workload asks for it")
    }

    async fn tables(&self, _internal: bool) -> Result<Vec<TableInfo>> {
        unreachable!("no workload asks for it")
    }

    async fn describe_table(&self, _table: &TableRef, _count: bool) -> Result<TableInfo> {
        unreachable!("no workload asks for it")
    }

    async fn truncate_table(&self, _table: &TableRef) -> Result<()> {
        unreachable!("no workload asks for it")
    }

    async fn backup_create(&self, _request: BackupRequest, _progress: ProgressSink) -> Result<BackupInfo> {
        unreachable!("no workload asks for it")
    }

    async fn punched(&self, _millis: i64) -> Result<Option<Punch>> {
        unreachable!("no workload asks for it")
    }

    async fn sweep(&self, _request: SweepRequest, _progress: ProgressSink) -> Result<SweepReport> {
        unreachable!("no workload asks for it")
    }

    async fn sweep_status(&self) -> Result<SweepStatus> {
        unreachable!("no workload asks for it")
    }

    async fn sweep_pause(&self, _reason: &str) -> Result<SweepStatus> {
        unreachable!("no workload asks for it")
    }

    async fn sweep_resume(&self) -> Result<SweepStatus> {
        unreachable!("no workload asks for it")
    }

    async fn hard_delete(&self, _table: &TableRef, _cells: &[Cell], _patience: Duration) -> Result<HardDeleted> {
        unreachable!("no workload asks for it")
    }

    async fn status(&self) -> Result<StoreStatus> {
        unreachable!("no workload asks for it")
    }

    async fn doctor(&self, _checks: &[String]) -> Result<Vec<DoctorFinding>> {
        unreachable!("no workload asks for it")
    }

    async fn close(&self) -> Result<()> {
        unreachable!("whoever opened the store closes it")
    }
}

#[async_trait]
impl TransactionOps for LeavingTransaction {
    fn start_ts(&self) -> Timestamp {
        self.inner.start_ts()
    }

    fn is_tentative(&self) -> bool {
        self.inner.is_tentative()
    }

    fn read_ts(&self) -> Timestamp {
        self.inner.read_ts()
    }

    async fn get(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>> {
        self.inner.get(table, cells).await
    }

    async fn scan(&self, table: &TableRef, scan: ScanOptions) -> Result<BoxStream<'static, Result<(Cell, Bytes)>>> {
        self.inner.scan(table, scan).await
    }

    async fn write(&self, table: &TableRef, writes: Vec<(Cell, Option<Bytes>)>) -> Result<()> {
        self.inner.write(table, writes).await
    }

    async fn commit(self: Box<Self>) -> Result<Option<Timestamp>> {
        let start_ts = self.inner.start_ts();
        let commit = self.inner.commit();
        tokio::select! {
            biased;
            () = self.scene.gone(start_ts) => Err(Error::UnknownOutcome {
                start_ts,
                commit_ts: None,
                reason: "the caller went away".to_owned(),
            }),
            outcome = commit => outcome,
        }
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.inner.abort().await
    }
}
