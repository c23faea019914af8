//! The store: checks what it is asked, and takes blocking work to blocking threads.

use crate::config::RocksConfig;
use crate::db::Db;
use crate::load;
use crate::owner::OwnerLock;
use crate::page::{Collect, FlatCells, Items, Next, Page, SharedCells};
use crate::read::{Answers, Tier};
use crate::scan::KeyRange;
use crate::snapshot;
use async_trait::async_trait;
use atlas_kvs::{
    AtomicBatch, AtomicScan, Availability, BatchOp, Capabilities, Cell, CellBound, CellTimestamps, CellVersionRange,
    CellVersions, CheckAndSet, ColumnSelection, Durability, FlatPage, KeyValueService, KvsError, Limits,
    NativeSnapshot, Ownership, PutUnlessExists, Result, ResultStream, RowRange, Scan, SnapshotSummary, SortedLoad,
    SortedSink, TableDescription, TableKind, TableRef, TableSize, Timestamp, Value, Version, VersionScan,
};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use parking_lot::RwLock;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tokio::time::Instant;

const LIMITS: Limits = Limits {
    row_len_max: 64 << 10,
    column_len_max: 64 << 10,
    cell_len_max: 128 << 10,
    value_len_max: 256 << 20,
    empty_names: true,
};
/// More cells than this are not looked up on a thread of the runtime: other tasks wait meanwhile.
const MEMORY_READS_MAX: usize = 128;
/// More writes than this are not made on a thread of the runtime.
const MEMORY_WRITES_MAX: usize = 128;
/// How long to wait until running operations let go of the database.
const DRAIN: Duration = Duration::from_secs(60);

/// A store in a directory of this machine.
///
/// See the [crate] for its guarantees. Dropping it closes it too, on the thread that drops it;
/// [`close`](KeyValueService::close) does so without blocking.
pub struct RocksStore {
    inner: Arc<Inner>,
}

/// Point reads of a [`RocksStore`] since it was opened, in cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadStatistics {
    /// Answered from memory, on the thread that asked.
    pub without_io: u64,
    /// Read past the memory, because a file had to be read, because there were many, or because memory hardly ever answers: on
    /// a blocking thread, unless such reads have been short.
    pub with_io: u64,
}

struct Inner {
    config: RocksConfig,
    staging_root: PathBuf,
    epoch_cell: Arc<AtomicU64>,
    state: RwLock<State>,
    /// Held by changes of tables, which are one after the other, and by snapshots.
    tables: Arc<Mutex<()>>,
    /// Held by [`reopen`](KeyValueService::reopen) and [`close`](KeyValueService::close).
    lifecycle: Mutex<()>,
}

enum State {
    Open(Arc<Db>),
    /// Between closing and opening again, where an opening that failed stays too.
    Reopening {
        owner: Arc<OwnerLock>,
        /// Still there while operations use it.
        old: Option<Arc<Db>>,
        next_epoch: u64,
        reason: String,
    },
    Closed,
}

impl RocksStore {
    /// Opens the store in a directory, and makes one there if there is none. Left-over snapshots and tables that were
    /// half made or half dropped are removed.
    ///
    /// Cancel safe: a dropped call leaves the directory closed, if only after a moment.
    ///
    /// # Errors
    /// [`KvsError::InUse`] if another owner holds the directory for longer than `wait_for_owner`;
    /// [`KvsError::Corrupt`] with the path and RocksDB's words if the files are damaged; [`KvsError::Unavailable`] if
    /// the disk is full; [`KvsError::Backend`] with the path if it can't be used, for example for lack of permission.
    pub async fn open(config: RocksConfig) -> Result<RocksStore> {
        let owner = OwnerLock::acquire(&config.data_dir, config.wait_for_owner).await?;
        RocksStore::open_with_lock(config, owner).await
    }

    /// As [`open`](RocksStore::open) by one who holds the lock of the directory already.
    ///
    /// # Errors
    /// As for [`open`](RocksStore::open), and [`KvsError::Backend`] if the lock is that of another directory. The lock
    /// is given back then.
    pub async fn open_with_lock(config: RocksConfig, owner: OwnerLock) -> Result<RocksStore> {
        if owner.data_dir() != config.data_dir {
            let (locked, wanted) = (owner.data_dir().display(), config.data_dir.display());
            let reason = format!("the lock of {locked} does not allow to open {wanted}");
            return Err(KvsError::Backend { reason, source: None });
        }
        let (config, db) = read_blocking(move || {
            snapshot::clear_staging(&config.data_dir)?;
            let db = Db::open(&config, Arc::new(owner), 0)?;
            Ok((config, db))
        })
        .await?;
        let inner = Inner {
            staging_root: snapshot::staging_root(&config.data_dir),
            config,
            epoch_cell: Arc::default(),
            state: RwLock::new(State::Open(Arc::new(db))),
            tables: Arc::default(),
            lifecycle: Mutex::default(),
        };
        Ok(RocksStore { inner: Arc::new(inner) })
    }

    /// The directory of the store.
    pub fn data_dir(&self) -> &Path {
        &self.inner.config.data_dir
    }

    /// How point reads were answered since the store was opened or reopened; zeros while it is not open.
    pub fn read_statistics(&self) -> ReadStatistics {
        self.inner.db().map_or_else(
            |_| ReadStatistics::default(),
            |db| ReadStatistics {
                without_io: db.reads.without_io.load(Ordering::Relaxed),
                with_io: db.reads.with_io.load(Ordering::Relaxed),
            },
        )
    }

    /// Does what changes tables, one after the other.
    async fn change_tables(&self, change: impl FnOnce(&Db) -> Result<()> + Send + 'static) -> Result<()> {
        let held = self.inner.tables.clone().lock_owned().await;
        let db = self.inner.db()?;
        write_blocking(move || {
            // Held by the work itself, which goes on if the caller does not wait for it.
            let _held: OwnedMutexGuard<()> = held;
            change(&db)
        })
        .await
    }

    /// Looks into the catalog, on a blocking thread if a change of a table is under way.
    async fn look<T: Send + 'static>(&self, look: impl Fn(&crate::db::Catalog) -> T + Send + 'static) -> Result<T> {
        let db = self.inner.db()?;
        if let Some(catalog) = db.catalog(Tier::Memory) {
            return Ok(look(&catalog));
        }
        read_blocking(move || Ok(look(&db.tables.read()))).await
    }

    fn pages<C: Collect + 'static>(&self, table: &TableRef, request: Scan) -> ResultStream<C::Items> {
        if selects_nothing(&request.rows, &request.columns) {
            return self.nothing();
        }
        let (table, range) = (table.clone(), KeyRange::of_scan(&request));
        // Much of what is read past the cache is not in it.
        let tier = if request.bypass_cache { Tier::Disk } else { Tier::Memory };
        Pages::stream(&self.inner, tier, move |db, from, tier| db.scan_page::<C>(&table, &request, &range, from, tier))
    }

    /// The stream of a scan that selects nothing.
    fn nothing<T: Send + 'static>(&self) -> ResultStream<T> {
        stream::iter(self.inner.db().err().map(Err)).boxed()
    }
}

impl std::fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksStore").field("data_dir", &self.inner.config.data_dir).finish_non_exhaustive()
    }
}

impl Inner {
    fn db(&self) -> Result<Arc<Db>> {
        match &*self.state.read() {
            State::Open(db) => Ok(db.clone()),
            State::Reopening { reason, .. } => Err(KvsError::Unavailable { reason: reason.clone(), source: None }),
            State::Closed => Err(KvsError::Closed),
        }
    }

    /// The database, if it is still the one of this epoch.
    fn db_of(&self, epoch: u64) -> Result<Arc<Db>> {
        match &*self.state.read() {
            State::Open(db) if db.epoch == epoch => Ok(db.clone()),
            _ => Err(KvsError::Closed),
        }
    }

    async fn reopen(self: Arc<Inner>) -> Result<()> {
        let _held = self.lifecycle.lock().await;
        self.begin_reopening()?;
        self.drain_old().await?;
        let (owner, epoch) = match &*self.state.read() {
            State::Reopening { owner, next_epoch, .. } => (owner.clone(), *next_epoch),
            State::Open(_) | State::Closed => return Err(KvsError::Closed),
        };
        let inner = self.clone();
        let opened = read_blocking(move || Db::open(&inner.config, owner, epoch)).await;
        let mut state = self.state.write();
        match opened {
            Ok(db) => {
                *state = State::Open(Arc::new(db));
                Ok(())
            }
            Err(error) => {
                if let State::Reopening { reason, .. } = &mut *state {
                    *reason = format!("the store could not be opened again: {error}");
                }
                Err(error)
            }
        }
    }

    /// From here on nobody gets hold of the database.
    fn begin_reopening(&self) -> Result<()> {
        let mut state = self.state.write();
        *state = match std::mem::replace(&mut *state, State::Closed) {
            State::Open(db) => State::Reopening {
                owner: db.owner.clone(),
                next_epoch: db.epoch + 1,
                old: Some(db),
                reason: "the store is being reopened".to_owned(),
            },
            reopening @ State::Reopening { .. } => reopening,
            State::Closed => return Err(KvsError::Closed),
        };
        Ok(())
    }

    async fn drain_old(&self) -> Result<()> {
        let deadline = Instant::now() + DRAIN;
        loop {
            let taken = match &mut *self.state.write() {
                State::Reopening { old, .. } => match old.take().map(Arc::try_unwrap) {
                    None => return Ok(()),
                    Some(Ok(db)) => Some(db),
                    Some(Err(db)) => {
                        *old = Some(db);
                        None
                    }
                },
                State::Open(_) | State::Closed => return Ok(()),
            };
            match taken {
                Some(db) => {
                    return read_blocking(move || {
                        drop(db);
                        Ok(())
                    })
                    .await;
                }
                None if Instant::now() >= deadline => return Err(in_use()),
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    async fn close(self: Arc<Inner>) -> Result<()> {
        let _held = self.lifecycle.lock().await;
        let mut db = match std::mem::replace(&mut *self.state.write(), State::Closed) {
            State::Open(db) => Some(db),
            State::Reopening { old, .. } => old,
            State::Closed => return Err(KvsError::Closed),
        };
        let deadline = Instant::now() + DRAIN;
        while let Some(shared) = db.take() {
            match Arc::try_unwrap(shared) {
                Ok(db) => return read_blocking(move || close_db(db)).await,
                // The last user closes the database.
                Err(_) if Instant::now() >= deadline => return Err(in_use()),
                Err(shared) => db = Some(shared),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

/// What was acknowledged without a sync is synced on the way out. A database that failed a write has nothing to add.
fn close_db(db: Db) -> Result<()> {
    let synced = if db.fault().is_none() { db.sync() } else { Ok(()) };
    drop(db);
    synced
}

fn in_use() -> KvsError {
    KvsError::Unavailable { reason: "running operations did not end in time".to_owned(), source: None }
}

// ---- blocking threads

/// Runs what may block. If the runtime ends before it begins, nothing was done.
async fn read_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    joined(tokio::task::spawn_blocking(work).await, || KvsError::Closed)
}

/// As [`read_blocking`] for what may write. On a thread that may wait it is done there: two changes of threads for each
/// write cost more than a small one takes.
async fn write_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    if atlas_kvs::may_wait() {
        return work();
    }
    joined(tokio::task::spawn_blocking(work).await, || KvsError::Indeterminate {
        reason: "the runtime is shutting down".to_owned(),
        source: None,
    })
}

fn joined<T>(
    result: std::result::Result<Result<T>, tokio::task::JoinError>,
    cancelled: impl FnOnce() -> KvsError,
) -> Result<T> {
    match result {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(cancelled()),
        },
    }
}

type CellReader<Q, T> = fn(&Db, &TableRef, &[Q], Tier) -> Result<Answers<T>>;

/// Point reads: what memory answers is answered at once, the rest where [`read_past_memory`] says.
async fn read_cells<Q, T>(
    db: Arc<Db>,
    table: &TableRef,
    questions: &[Q],
    read: CellReader<Q, T>,
) -> Result<Vec<Option<T>>>
where
    Q: Clone + Send + 'static,
    T: Clone + Send + 'static,
{
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    let asks_memory = questions.len() <= MEMORY_READS_MAX && !db.misses.are_usual(questions.len());
    let mut answers = if asks_memory {
        let answers = read(&db, table, questions, Tier::Memory)?;
        db.misses.asked(!answers.missed.is_empty());
        answers
    } else {
        Answers::all_missed(questions.len())
    };
    if !answers.missed.is_empty() {
        let open: Vec<Q> = answers.missed.iter().map(|&index| questions[index].clone()).collect();
        let late = read_past_memory(db, table, open, read, asks_memory).await?;
        debug_assert!(late.missed.is_empty(), "the disk answers everything");
        for (index, answer) in answers.missed.into_iter().zip(late.found) {
            answers.found[index] = answer;
        }
    }
    Ok(answers.found)
}

/// Reads that memory does not answer: here if they are short, as far as can be told, and else on a blocking thread.
async fn read_past_memory<Q, T>(
    db: Arc<Db>,
    table: &TableRef,
    questions: Vec<Q>,
    read: CellReader<Q, T>,
    asked_memory: bool,
) -> Result<Answers<T>>
where
    Q: Send + 'static,
    T: Send + 'static,
{
    // A change of tables under way would be waited for.
    let here = db.misses.are_short(questions.len()) && db.catalog(Tier::Memory).is_some();
    let table = table.clone();
    let work = move || {
        let begun = std::time::Instant::now();
        let answers = read(&db, &table, &questions, Tier::Disk)?;
        match asked_memory {
            true => db.misses.took(questions.len(), begun.elapsed()),
            false if questions.len() <= MEMORY_READS_MAX => db.misses.took_unasked(questions.len(), begun.elapsed()),
            // Memory has answered some of so many.
            false => (),
        }
        Ok(answers)
    };
    if here { work() } else { read_blocking(work).await }
}

/// A scan by the page. Pages are read in memory, others having their turn between them, until one is not there; from
/// then on blocking threads read them, each while the one before it is consumed.
struct Pages<I> {
    inner: Arc<Inner>,
    epoch: u64,
    read: Arc<PageReader<I>>,
    next: Next,
    ahead: Option<JoinHandle<Result<Page<I>>>>,
    tier: Tier,
}

type PageReader<I> = dyn Fn(&Db, &Next, Tier) -> Result<Page<I>> + Send + Sync;

impl<I: Items> Pages<I> {
    fn stream(
        inner: &Arc<Inner>,
        tier: Tier,
        read: impl Fn(&Db, &Next, Tier) -> Result<Page<I>> + Send + Sync + 'static,
    ) -> ResultStream<I> {
        let epoch = match inner.db() {
            Ok(db) => db.epoch,
            Err(error) => return stream::iter([Err(error)]).boxed(),
        };
        let pages = Pages { inner: inner.clone(), epoch, read: Arc::new(read), next: Next::Start, ahead: None, tier };
        stream::try_unfold(pages, |mut pages| async move {
            while pages.next != Next::End {
                let items = pages.turn().await?;
                if !items.is_empty() {
                    return Ok(Some((items, pages)));
                }
            }
            Ok(None)
        })
        .boxed()
    }

    async fn turn(&mut self) -> Result<I> {
        let is_first = self.next == Next::Start;
        let page = match (self.ahead.take(), self.tier) {
            (Some(ahead), _) => joined(ahead.await, || KvsError::Closed)?,
            (None, Tier::Memory) => self.read_here(is_first).await?,
            (None, Tier::Disk) => {
                let (read, next, db) = (self.read.clone(), self.next.clone(), self.inner.db_of(self.epoch)?);
                read_blocking(move || read(&db, &next, Tier::Disk)).await?
            }
        };
        // A page that was read ahead belongs to a store that may be closed by now.
        self.inner.db_of(self.epoch)?;
        self.next = page.next;
        if self.tier == Tier::Disk && !is_first && self.next != Next::End {
            self.read_ahead();
        }
        if page.fell_short {
            self.tier = Tier::Disk;
        }
        Ok(page.items)
    }

    async fn read_here(&self, is_first: bool) -> Result<Page<I>> {
        if !is_first {
            tokio::task::yield_now().await;
        }
        (self.read)(&*self.inner.db_of(self.epoch)?, &self.next, Tier::Memory)
    }

    fn read_ahead(&mut self) {
        let (inner, epoch) = (self.inner.clone(), self.epoch);
        let (read, next) = (self.read.clone(), self.next.clone());
        self.ahead = Some(tokio::task::spawn_blocking(move || read(&*inner.db_of(epoch)?, &next, Tier::Disk)));
    }
}

/// The items of pages, one by one.
fn flattened<T: Send + 'static>(pages: ResultStream<Vec<T>>) -> ResultStream<T> {
    pages.map_ok(|page| stream::iter(page.into_iter().map(Ok))).try_flatten().boxed()
}

// ---- checks

fn check_cell(cell: &Cell) -> Result<()> {
    check_len("row", cell.row.len(), LIMITS.row_len_max, cell)?;
    check_len("column", cell.column.len(), LIMITS.column_len_max, cell)
}

pub(crate) fn check_write(cell: &Cell, value: &[u8]) -> Result<()> {
    check_cell(cell)?;
    check_len("value", value.len(), LIMITS.value_len_max, cell)
}

fn check_len(what: &'static str, len: usize, limit: usize, cell: &Cell) -> Result<()> {
    if len <= limit { Ok(()) } else { Err(KvsError::TooLarge { what, cell: cell.clone(), len, limit }) }
}

pub(crate) fn check_ts(ts: Timestamp) -> Result<()> {
    if ts.is_data() { Ok(()) } else { Err(KvsError::InvalidTimestamp(ts.get())) }
}

fn selects_nothing(rows: &RowRange, columns: &ColumnSelection) -> bool {
    let no_column = match columns {
        ColumnSelection::All => false,
        ColumnSelection::Exactly(columns) => columns.is_empty(),
        ColumnSelection::Range { start, end } => end.as_ref().is_some_and(|end| end <= start),
    };
    rows.is_empty() || no_column
}

#[async_trait]
impl KeyValueService for RocksStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            store: "rocksdb",
            atomic_batch: true,
            detects_conflicting_values: false,
            persistent: true,
            limits: LIMITS,
        }
    }

    fn ownership(&self) -> Ownership {
        Ownership::Exclusive(self.inner.epoch_cell.clone())
    }

    async fn create_table(&self, table: &TableRef, kind: TableKind, metadata: Bytes) -> Result<()> {
        let table = table.clone();
        self.change_tables(move |db| db.create_table(&table, kind, metadata)).await
    }

    async fn drop_table(&self, table: &TableRef) -> Result<()> {
        let table = table.clone();
        self.change_tables(move |db| db.drop_table(&table)).await
    }

    async fn truncate_table(&self, table: &TableRef) -> Result<()> {
        let table = table.clone();
        self.change_tables(move |db| db.truncate_table(&table)).await
    }

    async fn tables(&self) -> Result<Vec<TableDescription>> {
        self.look(|catalog| {
            let tables = catalog.tables.iter();
            tables.map(|(table, record)| record.describe(table)).collect()
        })
        .await
    }

    async fn table(&self, table: &TableRef) -> Result<Option<TableDescription>> {
        let table = table.clone();
        self.look(move |catalog| catalog.tables.get(&table).map(|record| record.describe(&table))).await
    }

    async fn put_table_metadata(&self, table: &TableRef, metadata: Bytes) -> Result<()> {
        let table = table.clone();
        self.change_tables(move |db| db.put_table_metadata(&table, metadata)).await
    }

    async fn table_size(&self, table: &TableRef) -> Result<TableSize> {
        let (db, table) = (self.inner.db()?, table.clone());
        read_blocking(move || db.table_size(&table)).await
    }

    async fn cut_rows(&self, table: &TableRef, parts: usize) -> Result<Vec<Bytes>> {
        let (db, table) = (self.inner.db()?, table.clone());
        read_blocking(move || db.cut_rows(&table, parts)).await
    }

    async fn get(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Option<Value>>> {
        read_cells(self.inner.db()?, table, cells, Db::get).await
    }

    fn scan(&self, table: &TableRef, request: Scan) -> ResultStream<(Cell, Value)> {
        flattened(self.scan_pages(table, request))
    }

    fn scan_pages(&self, table: &TableRef, request: Scan) -> ResultStream<Vec<(Cell, Value)>> {
        self.pages::<SharedCells>(table, request)
    }

    fn scan_flat(&self, table: &TableRef, request: Scan) -> ResultStream<FlatPage> {
        self.pages::<FlatCells>(table, request)
    }

    async fn versions(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Vec<Version>>> {
        let (db, table, cells) = (self.inner.db()?, table.clone(), cells.to_vec());
        if cells.is_empty() {
            return Ok(Vec::new());
        }
        read_blocking(move || db.versions(&table, &cells)).await
    }

    fn scan_versions(&self, table: &TableRef, request: VersionScan) -> ResultStream<CellVersions> {
        if request.rows.is_empty() {
            return self.nothing();
        }
        let (table, range) = (table.clone(), KeyRange::of_version_scan(&request));
        flattened(Pages::stream(&self.inner, Tier::Disk, move |db, from, tier| {
            db.version_page(&table, &request, &range, from, tier)
        }))
    }

    async fn put(&self, puts: Vec<(TableRef, Vec<(Cell, Bytes)>)>, ts: Timestamp) -> Result<()> {
        let db = self.inner.db()?;
        if puts.iter().all(|(_, cells)| cells.is_empty()) {
            return Ok(());
        }
        check_ts(ts)?;
        puts.iter().flat_map(|(_, cells)| cells).try_for_each(|(cell, value)| check_write(cell, value))?;
        write_blocking(move || db.put(&puts, ts)).await
    }

    async fn put_versions(&self, table: &TableRef, versions: Vec<(Cell, Value)>) -> Result<()> {
        let (db, table) = (self.inner.db()?, table.clone());
        if versions.is_empty() {
            return Ok(());
        }
        for (cell, value) in &versions {
            check_ts(value.ts)?;
            check_write(cell, &value.bytes)?;
        }
        write_blocking(move || db.put_versions(&table, &versions)).await
    }

    async fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> Result<()> {
        let (db, table, cells) = (self.inner.db()?, table.clone(), cells.to_vec());
        if cells.is_empty() {
            return Ok(());
        }
        cells.iter().try_for_each(check_cell)?;
        write_blocking(move || db.add_sentinels(&table, &cells)).await
    }

    async fn delete_versions(&self, table: &TableRef, versions: &[CellTimestamps]) -> Result<()> {
        let (db, table, versions) = (self.inner.db()?, table.clone(), versions.to_vec());
        if versions.iter().all(|cell| cell.timestamps.is_empty()) {
            return Ok(());
        }
        write_blocking(move || db.delete_versions(&table, versions)).await
    }

    async fn delete_version_ranges(&self, table: &TableRef, ranges: &[CellVersionRange]) -> Result<()> {
        let (db, table, ranges) = (self.inner.db()?, table.clone(), ranges.to_vec());
        if ranges.is_empty() {
            return Ok(());
        }
        write_blocking(move || db.delete_version_ranges(&table, &ranges)).await
    }

    async fn delete_rows(&self, table: &TableRef, rows: &RowRange) -> Result<()> {
        let (db, table, rows) = (self.inner.db()?, table.clone(), rows.clone());
        if rows.is_empty() {
            return Ok(());
        }
        write_blocking(move || db.delete_rows(&table, &rows)).await
    }

    async fn get_atomic(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>> {
        read_cells(self.inner.db()?, table, cells, Db::get_atomic).await
    }

    fn scan_atomic(&self, table: &TableRef, request: AtomicScan) -> ResultStream<(Cell, Bytes)> {
        if request.rows.is_empty() {
            return self.nothing();
        }
        let (table, range) = (table.clone(), KeyRange::of_atomic_scan(&request));
        flattened(Pages::stream(&self.inner, Tier::Memory, move |db, from, tier| {
            db.atomic_page(&table, &request, &range, from, tier)
        }))
    }

    async fn put_unless_exists(&self, table: &TableRef, cell: &Cell, value: Bytes) -> Result<PutUnlessExists> {
        let (db, table, cell) = (self.inner.db()?, table.clone(), cell.clone());
        check_write(&cell, &value)?;
        write_blocking(move || db.put_unless_exists(&table, &cell, &value)).await
    }

    async fn check_and_set(
        &self,
        table: &TableRef,
        cell: &Cell,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> Result<CheckAndSet> {
        let (db, table, cell) = (self.inner.db()?, table.clone(), cell.clone());
        check_write(&cell, new.as_deref().unwrap_or_default())?;
        write_blocking(move || db.check_and_set(&table, &cell, expected.as_ref(), new.as_ref())).await
    }

    async fn apply(&self, batch: AtomicBatch, durability: Durability) -> Result<()> {
        let db = self.inner.db()?;
        if batch.ops.is_empty() && batch.guard.is_none() {
            return Ok(());
        }
        for op in batch.ops.iter() {
            match op {
                BatchOp::Put { cell, ts, value, .. } => {
                    check_ts(*ts)?;
                    check_write(cell, value)?;
                }
                BatchOp::Set { cell, value, .. } => check_write(cell, value)?,
                BatchOp::Remove { cell, .. } => check_write(cell, &[])?,
            }
        }
        // Two changes of threads cost more than a small batch does.
        let small = batch.guard.is_none() && batch.ops.len() <= MEMORY_WRITES_MAX && !atlas_kvs::may_wait();
        if durability == Durability::Relaxed && small && db.apply_at_once(&batch)? {
            return Ok(());
        }
        write_blocking(move || db.apply(&batch, durability == Durability::Synced)).await
    }

    fn writes_keep_waiting(&self) -> bool {
        true
    }

    async fn availability(&self) -> Availability {
        let db = match self.inner.db() {
            Ok(db) => db,
            Err(error) => return Availability::NoQuorum(error.to_string()),
        };
        match read_blocking(move || Ok(db.fault())).await {
            Ok(None) => Availability::All,
            Ok(Some(fault)) => Availability::NoQuorum(fault),
            Err(error) => Availability::NoQuorum(error.to_string()),
        }
    }

    fn native_snapshot(&self) -> Option<&dyn NativeSnapshot> {
        Some(self)
    }

    fn sorted_load(&self) -> Option<&dyn SortedLoad> {
        Some(self)
    }

    async fn reopen(&self) -> Result<()> {
        // A task of its own: once begun it is brought to an end, whether or not anyone waits.
        joined(tokio::spawn(self.inner.clone().reopen()).await, || KvsError::Closed)
    }

    async fn close(&self) -> Result<()> {
        joined(tokio::spawn(self.inner.clone().close()).await, || KvsError::Closed)
    }
}

#[async_trait]
impl NativeSnapshot for RocksStore {
    fn staging_root(&self) -> &Path {
        &self.inner.staging_root
    }

    async fn estimated_bytes(&self) -> Result<u64> {
        let db = self.inner.db()?;
        read_blocking(move || db.estimated_bytes()).await
    }

    async fn snapshot_into(&self, directory: &Path) -> Result<SnapshotSummary> {
        let held = self.inner.tables.clone().lock_owned().await;
        let (db, inner, directory) = (self.inner.db()?, self.inner.clone(), directory.to_owned());
        read_blocking(move || {
            let _held: OwnedMutexGuard<()> = held;
            snapshot::snapshot_into(&db, &inner.staging_root, &directory)
        })
        .await
    }
}

impl SortedLoad for RocksStore {
    fn load_sorted(&self, table: &TableRef, fill: &mut dyn FnMut(&mut SortedSink<'_>) -> Result<()>) -> Result<()> {
        load::load_sorted(&*self.inner.db()?, &self.inner.staging_root, table, fill)
    }
}
