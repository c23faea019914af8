//! A transaction as the application holds it.

use super::buffer::{LocalWriteBuffer, size_of_write};
use super::commit::CommitJob;
use super::core::Core;
use super::dependency::Dependency;
use super::reads::{RangeRead, ReadSet};
use super::scan::{self, ScanJob};
use super::tracker::{Begun, Registration};
use crate::lock::HeldLocks;
use crate::ops::ScanOptions;
use crate::rule::Rule;
use crate::schema::TableSpec;
use crate::{Error, Result};
use atlas_kvs::{Cell, ColumnSelection, RowRange, TableRef, Timestamp};
use bytes::Bytes;
use futures::stream::{BoxStream, TryStreamExt};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

/// Longest row or column of a cell, in bytes.
pub const NAME_LEN_MAX: usize = 1500;

/// A transaction. Reads see one snapshot and the own writes; writes are buffered until [`commit`](Self::commit).
///
/// Clones are the same transaction. When the last one is dropped without a commit, it aborts, which costs nothing:
/// nothing was written.
#[derive(Clone, Debug)]
#[must_use = "a transaction that is not committed does nothing"]
pub struct Transaction {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) core: Arc<Core>,
    pub(crate) start_ts: Timestamp,
    /// It sees what committed below this.
    pub(crate) read_ts: Timestamp,
    /// And of that everything below this in the store; the rest is on its way there.
    pub(crate) base: Timestamp,
    pub(crate) read_only: bool,
    pub(crate) began: Instant,
    timeout: Duration,
    attempt: Attempt,
    // Phase and buffer share a lock, so that a write either is part of the commit or is refused: none is lost between.
    writes: Mutex<Writes>,
}

/// What a transaction begins with.
pub(crate) struct Start {
    pub(crate) begun: Begun,
    pub(crate) dependency: Option<Dependency>,
    /// Among those that lost the same conflict.
    pub(crate) turn: Option<OwnedMutexGuard<()>>,
    pub(crate) read_only: bool,
    pub(crate) timeout: Duration,
    pub(crate) attempt: Attempt,
    pub(crate) began: Instant,
}

/// What a transaction has seen that is not in the store yet.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) start_ts: Timestamp,
    pub(crate) on_its_way: Option<Arc<Dependency>>,
}

/// Which attempt of which piece of work a transaction is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) work_id: u64,
    pub(crate) losses: u32,
}

#[derive(Debug)]
struct Writes {
    phase: Phase,
    buffer: LocalWriteBuffer,
    reads: ReadSet,
    conditions: Vec<PreCommitCondition>,
    callbacks: Vec<Callback>,
    locks: Vec<Arc<HeldLocks>>,
    turn: Option<OwnedMutexGuard<()>>,
    /// What it sees above what is in the store.
    on_its_way: Option<Arc<Dependency>>,
    // Until it ends: a handle that is kept after that holds nothing back.
    registration: Option<Registration>,
}

/// Where a transaction is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Committing,
    Aborted,
}

/// What an application wants to be done after the commit.
struct Callback(Box<dyn FnOnce(Option<Timestamp>) + Send>);

impl std::fmt::Debug for Callback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Callback")
    }
}

type Condition = dyn Fn(Timestamp) -> std::result::Result<(), String> + Send + Sync;

/// A condition of the application that must hold for a transaction to commit; see
/// [`Transaction::add_pre_commit_condition`].
#[derive(Clone)]
pub(crate) struct PreCommitCondition(Arc<Condition>);

impl std::fmt::Debug for PreCommitCondition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PreCommitCondition")
    }
}

impl PreCommitCondition {
    pub(crate) fn check(&self, start_ts: Timestamp) -> Result<()> {
        (self.0)(start_ts).map_err(|reason| Error::PreCommitCondition { start_ts, reason })
    }
}

impl Transaction {
    pub(crate) fn new(core: Arc<Core>, start: Start) -> Transaction {
        let Start { begun, dependency, turn, read_only, timeout, attempt, began } = start;
        let Begun { start_ts, read_ts: base, registration } = begun;
        let read_ts = dependency.as_ref().map_or(base, |dependency| dependency.last().next());
        debug_assert!(
            dependency.is_none() || read_ts <= start_ts,
            "it is looked at before the transaction is numbered"
        );
        let writes = Writes {
            phase: Phase::Open,
            buffer: LocalWriteBuffer::default(),
            reads: ReadSet::default(),
            conditions: Vec::new(),
            callbacks: Vec::new(),
            locks: Vec::new(),
            turn,
            on_its_way: dependency.map(Arc::new),
            registration: Some(registration),
        };
        Transaction {
            inner: Arc::new(Inner {
                core,
                start_ts,
                read_ts,
                base,
                read_only,
                began,
                timeout,
                attempt,
                writes: Mutex::new(writes),
            }),
        }
    }

    /// The identity of the transaction, unique for all time.
    pub fn start_ts(&self) -> Timestamp {
        self.inner.start_ts
    }

    /// The snapshot: reads see what committed below this. After a lost conflict, also what is about to; see
    /// [`TransactionManager::run`](super::TransactionManager::run).
    pub fn read_ts(&self) -> Timestamp {
        self.inner.read_ts
    }

    /// The value of a cell, or nothing.
    ///
    /// # Errors
    /// [`Error::TooOld`] if the snapshot was swept, [`Error::TransactionClosed`] and [`Error::TimedOut`] as they say.
    /// Cancel safe.
    pub async fn get(&self, table: &TableRef, cell: &Cell) -> Result<Option<Bytes>> {
        let spec = self.inner.core.schema.spec(table).await?;
        {
            let mut writes = self.inner.open_writes()?;
            if let Some(own) = writes.buffer.get(table, cell) {
                return Ok(own);
            }
            self.inner.keep_cells(&mut writes.reads, table, &spec, std::slice::from_ref(cell));
            if let Some(written) = writes.on_its_way(table, cell) {
                return Ok(written);
            }
        }
        tokio::task::coop::consume_budget().await;
        let value = self.inner.core.read_cell(table, cell, self.inner.base).await?;
        if value.is_none() && !Rule::RecheckAbsences.is_kept() {
            self.inner.open_writes()?.reads.forget_cell(table, cell);
        }
        self.inner.check_open()?;
        Ok(value)
    }

    /// The values of cells, in the order given; see [`get`](Self::get).
    pub async fn get_many(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>> {
        let spec = self.inner.core.schema.spec(table).await?;
        let mut values = vec![None; cells.len()];
        let mut places = Vec::with_capacity(cells.len());
        let mut unwritten = Vec::with_capacity(cells.len());
        {
            let mut writes = self.inner.open_writes()?;
            for (place, cell) in cells.iter().enumerate() {
                match writes.buffer.get(table, cell) {
                    Some(own) => values[place] = own,
                    None => {
                        places.push(place);
                        unwritten.push(cell.clone());
                    }
                }
            }
            self.inner.keep_cells(&mut writes.reads, table, &spec, &unwritten);
        }
        if !unwritten.is_empty() {
            tokio::task::coop::consume_budget().await;
            let on_its_way = self.inner.writes.lock().on_its_way.clone();
            let found = self.inner.see_cells(on_its_way.as_deref(), table, unwritten).await?;
            for (place, value) in places.into_iter().zip(found) {
                if value.is_none() && !Rule::RecheckAbsences.is_kept() {
                    self.inner.open_writes()?.reads.forget_cell(table, &cells[place]);
                }
                values[place] = value;
            }
        }
        self.inner.check_open()?;
        Ok(values)
    }

    /// The selected columns of a row, in order; empty if the row has none.
    pub async fn get_row(
        &self,
        table: &TableRef,
        row: &[u8],
        columns: ColumnSelection,
    ) -> Result<BTreeMap<Bytes, Bytes>> {
        let rows = RowRange::single(Bytes::copy_from_slice(row));
        let options = ScanOptions { rows, columns, ..ScanOptions::default() };
        let cells = self.scan(table, options).await?.map_ok(|(cell, value)| (cell.column, value));
        cells.try_collect().await
    }

    /// The selected columns of rows. Rows without any are left out; duplicates collapse.
    pub async fn get_rows(
        &self,
        table: &TableRef,
        rows: &[Bytes],
        columns: ColumnSelection,
    ) -> Result<BTreeMap<Bytes, BTreeMap<Bytes, Bytes>>> {
        let mut found = BTreeMap::new();
        for row in rows {
            let columns = self.get_row(table, row, columns.clone()).await?;
            if !columns.is_empty() {
                found.insert(row.clone(), columns);
            }
        }
        Ok(found)
    }

    /// Cells of a range of rows, or of a range of columns of one row, forward or in reverse, as a stream that fetches
    /// page by page. Own writes made before the call are merged in; later ones may be missing.
    ///
    /// The stream yields an error and ends where [`get`](Self::get) would fail.
    pub async fn scan(
        &self,
        table: &TableRef,
        options: ScanOptions,
    ) -> Result<BoxStream<'static, Result<(Cell, Bytes)>>> {
        Ok(scan::stream(self.scan_job(table, options).await?))
    }

    /// What a scan of this transaction works with; from now on the range is being read.
    pub(super) async fn scan_job(&self, table: &TableRef, options: ScanOptions) -> Result<ScanJob> {
        let spec = self.inner.core.schema.spec(table).await?;
        let (own, kept) = {
            let mut writes = self.inner.open_writes()?;
            let own = writes.buffer.range(table, &options.rows, &options.columns);
            let own = match &writes.on_its_way {
                Some(on_its_way) => on_its_way.with_own(own, table, &options.rows, &options.columns),
                None => own,
            };
            (own, self.inner.keep_range(&mut writes.reads, table, &spec, &options))
        };
        Ok(ScanJob { transaction: self.inner.clone(), table: table.clone(), options, own, kept })
    }

    /// Reads of `table` are not checked at the commit of this transaction, although its handler says so: for reads
    /// whose outcome does not matter to what is written.
    ///
    /// # Errors
    /// [`Error::Usage`] if the transaction has used the table already: what it read then is checked.
    pub fn disable_read_checks(&self, table: &TableRef) -> Result<()> {
        if self.inner.open_writes()?.reads.exempt(table) {
            return Ok(());
        }
        Err(Error::Usage(format!("read checks of table '{table}' can be disabled only before its first use")))
    }

    /// Buffers a value for a cell. Empty values are values.
    ///
    /// # Errors
    /// [`Error::TooLarge`] over a limit, [`Error::TransactionClosed`] after commit or abort has begun,
    /// [`Error::ReadOnly`], [`Error::NotFound`] for a table that does not exist. Nothing was buffered then.
    pub async fn put(&self, table: &TableRef, cell: Cell, value: impl Into<Bytes>) -> Result<()> {
        self.write(table, cell, Some(value.into())).await
    }

    /// Buffers the deletion of a cell; see [`put`](Self::put).
    pub async fn delete(&self, table: &TableRef, cell: Cell) -> Result<()> {
        self.write(table, cell, None).await
    }

    async fn write(&self, table: &TableRef, cell: Cell, value: Option<Bytes>) -> Result<()> {
        self.inner.core.schema.spec(table).await?;
        self.inner.check_limits(&cell, &value)?;
        let mut writes = self.inner.open_writes()?;
        let size_max = self.inner.core.config.write_size_max.len();
        let size = writes.buffer.size() + size_of_write(&cell, &value);
        if size > size_max {
            let what = format!("what transaction {} writes", self.inner.start_ts);
            return Err(Error::TooLarge { what, len: size, limit: size_max });
        }
        writes.reads.touch(table);
        writes.buffer.put(table, cell, value);
        Ok(())
    }

    /// Adds a condition that must hold for the transaction to commit: it is given the start timestamp, and returns
    /// nothing or the reason why not. Checked after the conflict checks that need no commit timestamp.
    pub fn add_pre_commit_condition(
        &self,
        condition: impl Fn(Timestamp) -> std::result::Result<(), String> + Send + Sync + 'static,
    ) -> Result<()> {
        self.inner.open_writes()?.conditions.push(PreCommitCondition(Arc::new(condition)));
        Ok(())
    }

    /// Does something after the commit, and only if it is certain that the transaction committed: it is given the commit
    /// timestamp, or `None` if there was nothing to write. Several are done in the order in which they were added. One
    /// that panics changes nothing about the commit, nor about the others.
    ///
    /// It is done by the task that awaits [`commit`](Self::commit): not at all if that is dropped.
    pub fn on_success(&self, callback: impl FnOnce(Option<Timestamp>) + Send + 'static) -> Result<()> {
        self.inner.open_writes()?.callbacks.push(Callback(Box::new(callback)));
        Ok(())
    }

    /// Commits only if these locks are still held then: those that were taken for the work of this transaction.
    pub fn require_locks(&self, locks: Arc<HeldLocks>) -> Result<()> {
        self.inner.open_writes()?.locks.push(locks);
        Ok(())
    }

    /// Commits. Answers the commit timestamp, or `None` if there was nothing to write.
    ///
    /// # Errors
    /// After [`Error::UnknownOutcome`] the transaction may be committed; after every other error nothing of it is
    /// visible, now or later. [`Error::is_retriable`] tells whether the same work may succeed when done anew.
    ///
    /// A future dropped in the middle leaves nothing half done: the commit is finished, or not begun.
    pub async fn commit(&self) -> Result<Option<Timestamp>> {
        let Ending { buffer, reads, conditions, callbacks, locks, turn, on_its_way, registration } =
            self.inner.start_commit()?;
        let commit_ts = if buffer.is_empty() {
            drop(turn);
            if on_its_way.is_some() {
                // First: it may take a while, and what is checked is to hold then.
                let seen = Seen { start_ts: self.inner.start_ts, on_its_way };
                self.inner.core.landed(&seen).await?;
            }
            for condition in &conditions {
                condition.check(self.inner.start_ts)?;
            }
            for locks in &locks {
                locks.check()?;
            }
            None
        } else {
            let reads = Arc::new(reads.freeze());
            let registration = registration.map(Arc::new);
            let transaction = self.inner.clone();
            let (buffer, turn) = (Arc::new(buffer), Mutex::new(turn));
            let job = CommitJob { transaction, buffer, reads, conditions, locks, turn, on_its_way, registration };
            Some(job.run().await?)
        };
        for Callback(callback) in callbacks {
            // The transaction is committed whatever becomes of this.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| callback(commit_ts))).is_err() {
                tracing::error!(start_ts = %self.inner.start_ts, "what was to be done after the commit panicked");
            }
        }
        Ok(commit_ts)
    }

    /// What it sees, for who waits until that is durable.
    pub(crate) fn seen(&self) -> Seen {
        Seen { start_ts: self.inner.start_ts, on_its_way: self.inner.writes.lock().on_its_way.clone() }
    }

    /// Aborts: nothing was written, nothing will be. Later calls fail.
    pub fn abort(&self) {
        let ended = {
            let mut writes = self.inner.writes.lock();
            (writes.phase == Phase::Open).then(|| {
                writes.phase = Phase::Aborted;
                writes.take()
            })
        };
        // What was read and waits to be done goes too; neither must be kept alive by a clone of the handle. Not under the
        // lock: what waits to be done is the application's, and may hold a handle that aborts when it is dropped.
        drop(ended);
    }
}

impl Writes {
    /// What commits on their way have written to a cell, of those that are seen.
    fn on_its_way(&self, table: &TableRef, cell: &Cell) -> Option<Option<Bytes>> {
        self.on_its_way.as_ref()?.get(table, cell)
    }

    fn take(&mut self) -> Ending {
        Ending {
            buffer: std::mem::take(&mut self.buffer),
            reads: std::mem::take(&mut self.reads),
            conditions: std::mem::take(&mut self.conditions),
            callbacks: std::mem::take(&mut self.callbacks),
            locks: std::mem::take(&mut self.locks),
            turn: self.turn.take(),
            on_its_way: self.on_its_way.take(),
            registration: self.registration.take(),
        }
    }
}

/// What a transaction leaves when it ends.
struct Ending {
    buffer: LocalWriteBuffer,
    reads: ReadSet,
    conditions: Vec<PreCommitCondition>,
    callbacks: Vec<Callback>,
    locks: Vec<Arc<HeldLocks>>,
    turn: Option<OwnedMutexGuard<()>>,
    on_its_way: Option<Arc<Dependency>>,
    registration: Option<Registration>,
}

impl Inner {
    /// What it sees of cells, its own writes aside.
    pub(crate) async fn see_cells(
        &self,
        on_its_way: Option<&Dependency>,
        table: &TableRef,
        cells: Vec<Cell>,
    ) -> Result<Vec<Option<Bytes>>> {
        let Some(on_its_way) = on_its_way else {
            return self.core.read_cells(table, cells, self.base).await;
        };
        let written: Vec<_> = cells.iter().map(|cell| on_its_way.get(table, cell)).collect();
        let seen = self.core.read_cells(table, cells, self.base).await?;
        Ok(seen.into_iter().zip(written).map(|(seen, written)| written.unwrap_or(seen)).collect())
    }

    pub(crate) fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Fails once the transaction takes no more reads and writes.
    pub(crate) fn check_open(&self) -> Result<()> {
        self.open_writes().map(drop)
    }

    pub(crate) fn check_time(&self) -> Result<()> {
        if self.began.elapsed() > self.timeout {
            return Err(self.timed_out());
        }
        Ok(())
    }

    pub(crate) fn timed_out(&self) -> Error {
        let limit_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        Error::TimedOut { start_ts: self.start_ts, limit_ms }
    }

    fn open_writes(&self) -> Result<parking_lot::MutexGuard<'_, Writes>> {
        let writes = self.writes.lock();
        let state = match writes.phase {
            Phase::Open => {
                self.check_time()?;
                return Ok(writes);
            }
            Phase::Committing => "committing or committed",
            Phase::Aborted => "aborted",
        };
        Err(Error::TransactionClosed { start_ts: self.start_ts, state })
    }

    fn start_commit(&self) -> Result<Ending> {
        let mut writes = self.open_writes()?;
        writes.phase = Phase::Committing;
        Ok(writes.take())
    }

    /// Before the cells are read: what is kept may be too much, never too little.
    fn keep_cells(&self, reads: &mut ReadSet, table: &TableRef, spec: &TableSpec, cells: &[Cell]) {
        if self.read_only {
            return; // It is as of its snapshot, whatever comes later.
        }
        reads.touch(table);
        if reads.keeps(table, spec) {
            reads.read_cells(table, cells);
        }
    }

    fn keep_range(
        &self,
        reads: &mut ReadSet,
        table: &TableRef,
        spec: &TableSpec,
        options: &ScanOptions,
    ) -> Option<Arc<RangeRead>> {
        if self.read_only {
            return None;
        }
        reads.touch(table);
        let keeps = reads.keeps(table, spec) && Rule::RecheckRanges.is_kept();
        keeps.then(|| reads.read_range(table, &options.rows, &options.columns, options.reverse))
    }

    fn check_limits(&self, cell: &Cell, value: &Option<Bytes>) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly { start_ts: self.start_ts });
        }
        let store = self.core.kvs.capabilities().limits;
        let lengths = [
            ("row", cell.row.len(), NAME_LEN_MAX.min(store.row_len_max)),
            ("column", cell.column.len(), NAME_LEN_MAX.min(store.column_len_max)),
            ("row and column", cell.row.len() + cell.column.len(), store.cell_len_max),
            (
                "value",
                value.as_ref().map_or(0, Bytes::len),
                self.core.config.value_size_max.len().min(store.value_len_max - super::value::HEADER_LEN_MAX),
            ),
        ];
        for (what, len, limit) in lengths {
            if len > limit {
                return Err(Error::TooLarge { what: format!("the {what} of a cell"), len, limit });
            }
        }
        if !store.empty_names && (cell.row.is_empty() || cell.column.is_empty()) {
            return Err(Error::Usage(format!("this store ({}) has no empty rows and columns", self.store_name())));
        }
        Ok(())
    }

    fn store_name(&self) -> &'static str {
        self.core.kvs.capabilities().store
    }

    /// The specification of a table this transaction writes to.
    pub(crate) async fn spec(&self, table: &TableRef) -> Result<TableSpec> {
        self.core.schema.spec(table).await
    }
}
