//! A store that fails as it is told: between the layer and a store that works.
//!
//! Each rule names an operation, a table and what happens to the next calls that match. A call that is *lost* reports
//! `Indeterminate`: applied before the answer was lost, never applied, or applied later, when the test says so, as by
//! a server that had the request in its queue all along.

use super::chaos::Chaos;
use async_trait::async_trait;
use atlas::kvs_api::{
    AtomicBatch, AtomicScan, Availability, Capabilities, CellBound, CellTimestamps, CellVersionRange, CellVersions,
    CheckAndSet, Durability, KeyValueService, KvsError, NativeSnapshot, Ownership, PutUnlessExists, Result,
    ResultStream, Scan, SortedLoad, TableDescription, TableKind, TableSize, Value, Version, VersionScan,
};
use atlas::{Cell, RowRange, TableRef, Timestamp};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long to wait for something that must come, before the test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Get,
    GetAtomic,
    Scan,
    Put,
    PutUnlessExists,
    CheckAndSet,
    Apply,
    Reopen,
    Versions,
    AddSentinels,
    DeleteVersions,
    DeleteRows,
}

/// What happens to a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// `Unavailable`: nothing is applied.
    Refuse,
    /// Applied, and the answer is lost.
    LostApplied,
    /// Not applied, and the answer is lost.
    LostNotApplied,
    /// The answer is lost now, and the call is applied when the gate is opened.
    LostAppliedLater(Gate),
    /// The answer is lost now, and the call is applied after this time.
    LostAppliedAfter(Duration),
    /// A put of which so much is applied, and the answer is lost. Elsewhere: as if nothing was.
    LostPartly(f64),
    /// The call is carried out after this time.
    Delay(Duration),
    /// The call is carried out, and its answer comes after this time.
    DelayAnswer(Duration),
    /// The call waits at the gate and is then carried out.
    Hold(Gate),
    /// The call is carried out, and its answer waits at the gate.
    HoldAnswer(Gate),
    /// The call waits at the gate, and is never carried out. Its answer is lost.
    HoldAndLose(Gate),
    /// The call is carried out, its answer waits at the gate and is lost.
    HoldLostAnswer(Gate),
}

impl Fault {
    /// Whether a store could do this to a call.
    pub fn can_happen_to(&self, op: Op, ownership: &Ownership) -> bool {
        let reads = matches!(op, Op::Get | Op::GetAtomic | Op::Scan | Op::Reopen);
        match self {
            Fault::Refuse | Fault::Delay(_) | Fault::DelayAnswer(_) | Fault::Hold(_) | Fault::HoldAnswer(_) => true,
            // What only reads can't have been applied.
            Fault::LostApplied | Fault::LostNotApplied | Fault::HoldAndLose(_) | Fault::HoldLostAnswer(_) => !reads,
            // Whoever owns a store alone has no server in which a batch could wait.
            Fault::LostAppliedLater(_) | Fault::LostAppliedAfter(_) => {
                !reads && (op != Op::Apply || matches!(ownership, Ownership::Shared))
            }
            // A batch is applied wholly or not at all.
            Fault::LostPartly(_) => op == Op::Put,
        }
    }
}

/// Where calls wait until the test lets them pass.
#[derive(Clone, Debug)]
pub struct Gate {
    arrived: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    pub fn new() -> Gate {
        Gate { arrived: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) }
    }

    /// Waits until a call stands at the gate, and fails if none ever comes.
    pub async fn arrived(&self) {
        let arrived = tokio::time::timeout(PATIENCE, self.arrived.acquire()).await;
        arrived.expect("no call came to the gate").expect("gates are never closed for good").forget();
    }

    /// Lets one call pass, now or when it comes.
    pub fn open(&self) {
        self.open.add_permits(1);
    }

    async fn pass(&self) {
        self.arrived.add_permits(1);
        self.open.acquire().await.expect("gates are never closed for good").forget();
    }
}

#[derive(Debug)]
struct Rule {
    op: Op,
    table: Option<TableRef>,
    cell: Option<Cell>,
    skip: usize,
    times: usize,
    fault: Fault,
}

/// A fault for the very next call that it can happen to.
#[derive(Debug)]
struct Armed {
    fault: Fault,
    /// Raised when it happens.
    happened: Arc<AtomicU64>,
}

/// What was called, and on which tables.
type Call = (Op, Vec<TableRef>);

/// The wrapper.
#[derive(Clone, Debug)]
pub struct Faulty {
    inner: Arc<dyn KeyValueService>,
    rules: Arc<Mutex<Vec<Rule>>>,
    calls: Arc<Mutex<Vec<Call>>>,
    relaxed: Arc<AtomicUsize>,
    chaos: Arc<Mutex<Option<Chaos>>>,
    armed: Arc<Mutex<Option<Armed>>>,
    /// The name of the database, if the store behaves like one that several processes share.
    database: Option<Arc<Mutex<String>>>,
    /// The store behaves like one without atomic batches.
    no_batches: bool,
    /// How many batches it takes at the same time, whatever the store says.
    batches_at_once: Option<usize>,
}

/// How to say which calls a fault is for.
pub struct When<'a> {
    faulty: &'a Faulty,
    rule: Rule,
}

impl When<'_> {
    pub fn on_table(mut self, table: &TableRef) -> Self {
        self.rule.table = Some(table.clone());
        self
    }

    pub fn on_cell(mut self, cell: &Cell) -> Self {
        self.rule.cell = Some(cell.clone());
        self
    }

    /// The first `calls` that match are let through.
    pub fn after(mut self, calls: usize) -> Self {
        self.rule.skip = calls;
        self
    }

    pub fn times(mut self, times: usize) -> Self {
        self.rule.times = times;
        self
    }

    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }

    pub fn then(mut self, fault: Fault) {
        self.rule.fault = fault;
        self.faulty.rules.lock().push(self.rule);
    }
}

impl Faulty {
    pub fn new(inner: Arc<dyn KeyValueService>) -> Faulty {
        Faulty {
            inner,
            rules: Arc::default(),
            calls: Arc::default(),
            relaxed: Arc::default(),
            chaos: Arc::default(),
            armed: Arc::default(),
            database: None,
            no_batches: false,
            batches_at_once: None,
        }
    }

    /// The store as one of several processes sees it.
    pub fn shared(inner: Arc<dyn KeyValueService>, database: Arc<Mutex<String>>) -> Faulty {
        Faulty { database: Some(database), batches_at_once: Some(2), ..Faulty::new(inner) }
    }

    /// The store as one that takes so many batches at the same time.
    pub fn taking_at_once(self, batches: usize) -> Faulty {
        Faulty { batches_at_once: Some(batches), ..self }
    }

    /// The store without its atomic batches.
    pub fn without_batches(self) -> Faulty {
        Faulty { no_batches: true, ..self }
    }

    /// What happens to the next call of `op`, once unless said otherwise.
    pub fn on(&self, op: Op) -> When<'_> {
        When { faulty: self, rule: Rule { op, table: None, cell: None, skip: 0, times: 1, fault: Fault::Refuse } }
    }

    /// From now on calls go wrong by chance.
    pub fn unleash(&self, chaos: Chaos) {
        *self.chaos.lock() = Some(chaos);
    }

    /// The next call that `fault` can happen to goes wrong in this way. `happened` is raised then.
    pub fn arm(&self, fault: Fault, happened: Arc<AtomicU64>) {
        *self.armed.lock() = Some(Armed { fault, happened });
    }

    /// Whether what was armed is still to happen.
    pub fn is_armed(&self) -> bool {
        self.armed.lock().is_some()
    }

    /// Every call is carried out from now on.
    pub fn heal(&self) {
        *self.armed.lock() = None;
        *self.chaos.lock() = None;
        self.rules.lock().clear();
    }

    /// How many calls of `op` named `table`.
    pub fn calls(&self, op: Op, table: &TableRef) -> usize {
        self.calls.lock().iter().filter(|(called, tables)| *called == op && tables.contains(table)).count()
    }

    /// How many batches were not to be durable when they were answered.
    pub fn relaxed_batches(&self) -> usize {
        self.relaxed.load(Ordering::Relaxed)
    }

    fn fault(&self, op: Op, tables: Vec<TableRef>, cells: &[&Cell]) -> Option<Fault> {
        let armed = self.armed.lock().take_if(|armed| armed.fault.can_happen_to(op, &self.ownership()));
        if let Some(Armed { fault, happened }) = armed {
            happened.fetch_add(1, Ordering::Relaxed);
            return Some(fault);
        }
        if let Some(chaos) = &*self.chaos.lock() {
            // Not noted: a run with chaos makes too many calls.
            return chaos.draw(op, &self.ownership());
        }
        let mut rules = self.rules.lock();
        let rule = rules.iter_mut().find(|rule| {
            rule.op == op
                && rule.times > 0
                && rule.table.as_ref().is_none_or(|table| tables.contains(table))
                && rule.cell.as_ref().is_none_or(|cell| cells.contains(&cell))
        });
        self.calls.lock().push((op, tables));
        let rule = rule?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times = rule.times.saturating_sub(1);
        Some(rule.fault.clone())
    }

    /// Carries out `call`, or does to it what the rules say.
    async fn through<T, F>(
        &self,
        op: Op,
        tables: Vec<TableRef>,
        cells: &[&Cell],
        call: impl FnOnce(Arc<dyn KeyValueService>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
        T: Send,
    {
        let fault = self.fault(op, tables, cells);
        self.carry_out(op, fault, call(self.inner.clone())).await
    }

    async fn take_time(&self) {
        let latency = self.chaos.lock().as_ref().and_then(Chaos::latency);
        if let Some(latency) = latency {
            tokio::time::sleep(latency).await;
        }
    }

    async fn carry_out<T: Send>(
        &self,
        op: Op,
        fault: Option<Fault>,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.take_time().await;
        match fault {
            None => call.await,
            Some(Fault::Refuse) => Err(KvsError::Unavailable { reason: format!("{op:?} was refused"), source: None }),
            Some(Fault::LostApplied) => {
                call.await?;
                Err(lost(op))
            }
            Some(Fault::LostNotApplied | Fault::LostPartly(_)) => Err(lost(op)),
            Some(Fault::LostAppliedAfter(time)) => {
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    let _ = call.await;
                });
                Err(lost(op))
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                call.await
            }
            Some(Fault::DelayAnswer(time)) => {
                let answer = call.await;
                tokio::time::sleep(time).await;
                answer
            }
            Some(Fault::LostAppliedLater(gate)) => {
                tokio::spawn(async move {
                    gate.pass().await;
                    let _ = call.await;
                    gate.arrived.add_permits(1);
                });
                Err(lost(op))
            }
            Some(Fault::Hold(gate)) => {
                gate.pass().await;
                call.await
            }
            Some(Fault::HoldAndLose(gate)) => {
                gate.pass().await;
                Err(lost(op))
            }
            Some(Fault::HoldLostAnswer(gate)) => {
                call.await?;
                gate.pass().await;
                Err(lost(op))
            }
            Some(Fault::HoldAnswer(gate)) => {
                let answer = call.await;
                gate.pass().await;
                answer
            }
        }
    }
}

/// The first cells of a put.
fn part_of(puts: Vec<(TableRef, Vec<(Cell, Bytes)>)>, share: f64) -> Vec<(TableRef, Vec<(Cell, Bytes)>)> {
    let all: usize = puts.iter().map(|(_, cells)| cells.len()).sum();
    let mut left = (all as f64 * share) as usize;
    let first = |(table, mut cells): (TableRef, Vec<(Cell, Bytes)>)| {
        cells.truncate(left);
        left -= cells.len();
        (table, cells)
    };
    puts.into_iter().map(first).collect()
}

fn lost(op: Op) -> KvsError {
    KvsError::Indeterminate { reason: format!("the answer to {op:?} was lost"), source: None }
}

#[async_trait]
impl KeyValueService for Faulty {
    fn capabilities(&self) -> Capabilities {
        let has = self.inner.capabilities();
        Capabilities { atomic_batch: has.atomic_batch && !self.no_batches, ..has }
    }

    fn writes_keep_waiting(&self) -> bool {
        self.inner.writes_keep_waiting()
    }

    fn batches_at_once(&self) -> usize {
        self.batches_at_once.unwrap_or(self.inner.batches_at_once())
    }

    fn ownership(&self) -> Ownership {
        if self.database.is_some() { Ownership::Shared } else { self.inner.ownership() }
    }

    async fn identity(&self) -> Result<Option<String>> {
        match &self.database {
            Some(database) => Ok(Some(database.lock().clone())),
            None => self.inner.identity().await,
        }
    }

    async fn create_table(&self, table: &TableRef, kind: TableKind, metadata: Bytes) -> Result<()> {
        self.inner.create_table(table, kind, metadata).await
    }

    async fn drop_table(&self, table: &TableRef) -> Result<()> {
        self.inner.drop_table(table).await
    }

    async fn truncate_table(&self, table: &TableRef) -> Result<()> {
        self.inner.truncate_table(table).await
    }

    async fn tables(&self) -> Result<Vec<TableDescription>> {
        self.inner.tables().await
    }

    async fn table(&self, table: &TableRef) -> Result<Option<TableDescription>> {
        self.inner.table(table).await
    }

    async fn put_table_metadata(&self, table: &TableRef, metadata: Bytes) -> Result<()> {
        self.inner.put_table_metadata(table, metadata).await
    }

    async fn table_size(&self, table: &TableRef) -> Result<TableSize> {
        self.inner.table_size(table).await
    }

    async fn cut_rows(&self, table: &TableRef, parts: usize) -> Result<Vec<Bytes>> {
        self.inner.cut_rows(table, parts).await
    }

    async fn get(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Option<Value>>> {
        let named: Vec<&Cell> = cells.iter().map(|bound| &bound.cell).collect();
        let (table, cells) = (table.clone(), cells.to_vec());
        self.through(Op::Get, vec![table.clone()], &named, |inner| async move { inner.get(&table, &cells).await }).await
    }

    fn scan(&self, table: &TableRef, request: Scan) -> ResultStream<(Cell, Value)> {
        let chaos = self.chaos.lock().clone();
        if chaos.is_none() {
            self.calls.lock().push((Op::Scan, vec![table.clone()]));
        }
        // By chance only: anywhere in the stream, after some of it was seen.
        let fault =
            chaos.and_then(|chaos| Some((chaos.draw(Op::Scan, &self.ownership())?, chaos.cells_before_fault())));
        let (faulty, table) = (self.clone(), table.clone());
        let begun = async move {
            faulty.take_time().await;
            let cells = faulty.inner.scan(&table, request);
            let Some((fault, place)) = fault else { return cells };
            let goes_wrong = async move {
                match fault {
                    Fault::Refuse => {
                        let reason = "the scan was refused".to_owned();
                        Some(Err(KvsError::Unavailable { reason, source: None }))
                    }
                    Fault::Delay(time) => {
                        tokio::time::sleep(time).await;
                        None
                    }
                    other => unreachable!("{other:?} is no fault of a read"),
                }
            };
            let fault = futures::stream::once(goes_wrong).filter_map(std::future::ready);
            // The cells before the fault, the fault, and the rest, which nobody takes after an error.
            let cells = Arc::new(tokio::sync::Mutex::new(cells));
            let taken = |cells: Arc<tokio::sync::Mutex<ResultStream<(Cell, Value)>>>| {
                futures::stream::unfold(cells, async |cells| {
                    let next = cells.lock().await.next().await?;
                    Some((next, cells))
                })
            };
            taken(cells.clone()).take(place).chain(fault).chain(taken(cells)).boxed()
        };
        futures::stream::once(begun).flatten().boxed()
    }

    async fn versions(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Vec<Version>>> {
        let named: Vec<&Cell> = cells.iter().map(|bound| &bound.cell).collect();
        let (table, cells) = (table.clone(), cells.to_vec());
        let call = |inner: Arc<dyn KeyValueService>| {
            let table = table.clone();
            async move { inner.versions(&table, &cells).await }
        };
        self.through(Op::Versions, vec![table.clone()], &named, call).await
    }

    fn scan_versions(&self, table: &TableRef, request: VersionScan) -> ResultStream<CellVersions> {
        self.inner.scan_versions(table, request)
    }

    async fn put(&self, puts: Vec<(TableRef, Vec<(Cell, Bytes)>)>, ts: Timestamp) -> Result<()> {
        let tables = puts.iter().map(|(table, _)| table.clone()).collect();
        let fault = self.fault(Op::Put, tables, &[]);
        let inner = self.inner.clone();
        if let Some(Fault::LostPartly(share)) = fault {
            inner.put(part_of(puts, share), ts).await?;
            return Err(lost(Op::Put));
        }
        self.carry_out(Op::Put, fault, async move { inner.put(puts, ts).await }).await
    }

    async fn put_versions(&self, table: &TableRef, versions: Vec<(Cell, Value)>) -> Result<()> {
        self.inner.put_versions(table, versions).await
    }

    async fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> Result<()> {
        let named: Vec<&Cell> = cells.iter().collect();
        let (table, cells) = (table.clone(), cells.to_vec());
        let call = |inner: Arc<dyn KeyValueService>| {
            let table = table.clone();
            async move { inner.add_sentinels(&table, &cells).await }
        };
        self.through(Op::AddSentinels, vec![table.clone()], &named, call).await
    }

    async fn delete_versions(&self, table: &TableRef, versions: &[CellTimestamps]) -> Result<()> {
        let named: Vec<&Cell> = versions.iter().map(|versions| &versions.cell).collect();
        let fault = self.fault(Op::DeleteVersions, vec![table.clone()], &named);
        let (inner, table, mut versions) = (self.inner.clone(), table.clone(), versions.to_vec());
        if let Some(Fault::LostPartly(share)) = fault {
            // Of each cell the oldest first, as the contract has it.
            for cell in &mut versions {
                cell.timestamps.sort_unstable();
                cell.timestamps.truncate((cell.timestamps.len() as f64 * share) as usize);
            }
            inner.delete_versions(&table, &versions).await?;
            return Err(lost(Op::DeleteVersions));
        }
        self.carry_out(Op::DeleteVersions, fault, async move { inner.delete_versions(&table, &versions).await }).await
    }

    async fn delete_version_ranges(&self, table: &TableRef, ranges: &[CellVersionRange]) -> Result<()> {
        let named: Vec<&Cell> = ranges.iter().map(|range| &range.cell).collect();
        let (table, ranges) = (table.clone(), ranges.to_vec());
        let call = |inner: Arc<dyn KeyValueService>| {
            let table = table.clone();
            async move { inner.delete_version_ranges(&table, &ranges).await }
        };
        self.through(Op::DeleteVersions, vec![table.clone()], &named, call).await
    }

    async fn delete_rows(&self, table: &TableRef, rows: &RowRange) -> Result<()> {
        let (table, rows) = (table.clone(), rows.clone());
        let call = |inner: Arc<dyn KeyValueService>| {
            let table = table.clone();
            async move { inner.delete_rows(&table, &rows).await }
        };
        self.through(Op::DeleteRows, vec![table.clone()], &[], call).await
    }

    async fn get_atomic(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>> {
        let named: Vec<&Cell> = cells.iter().collect();
        let (table, cells) = (table.clone(), cells.to_vec());
        let call = |inner: Arc<dyn KeyValueService>| {
            let table = table.clone();
            async move { inner.get_atomic(&table, &cells).await }
        };
        self.through(Op::GetAtomic, vec![table.clone()], &named, call).await
    }

    fn scan_atomic(&self, table: &TableRef, request: AtomicScan) -> ResultStream<(Cell, Bytes)> {
        self.inner.scan_atomic(table, request)
    }

    async fn put_unless_exists(&self, table: &TableRef, cell: &Cell, value: Bytes) -> Result<PutUnlessExists> {
        let (table, owned) = (table.clone(), cell.clone());
        let call = |inner: Arc<dyn KeyValueService>| {
            let table = table.clone();
            async move { inner.put_unless_exists(&table, &owned, value).await }
        };
        self.through(Op::PutUnlessExists, vec![table.clone()], &[cell], call).await
    }

    async fn check_and_set(
        &self,
        table: &TableRef,
        cell: &Cell,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> Result<CheckAndSet> {
        let (table, owned) = (table.clone(), cell.clone());
        let call = |inner: Arc<dyn KeyValueService>| {
            let table = table.clone();
            async move { inner.check_and_set(&table, &owned, expected, new).await }
        };
        self.through(Op::CheckAndSet, vec![table.clone()], &[cell], call).await
    }

    async fn apply(&self, batch: AtomicBatch, durability: Durability) -> Result<()> {
        assert!(!self.no_batches, "the store has no batches");
        self.relaxed.fetch_add(usize::from(durability == Durability::Relaxed), Ordering::Relaxed);
        let mut tables: Vec<TableRef> = batch.ops.iter().map(|op| op.table().clone()).collect();
        tables.dedup();
        self.through(Op::Apply, tables, &[], |inner| async move { inner.apply(batch, durability).await }).await
    }

    async fn availability(&self) -> Availability {
        self.inner.availability().await
    }

    fn sorted_load(&self) -> Option<&dyn SortedLoad> {
        self.inner.sorted_load()
    }

    fn native_snapshot(&self) -> Option<&dyn NativeSnapshot> {
        self.inner.native_snapshot()
    }

    async fn reopen(&self) -> Result<()> {
        self.through(Op::Reopen, Vec::new(), &[], |inner| async move { inner.reopen().await }).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
