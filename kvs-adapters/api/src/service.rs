//! The store trait.

use crate::{
    AtomicBatch, AtomicScan, Cell, CellBound, CellTimestamps, CellVersionRange, CellVersions, Durability, FlatPage,
    NodeStore, Result, ResultStream, RowRange, Scan, StreamSnapshot, TableDescription, TableKind, TableRef, TableSize,
    Timestamp, Value, Version, VersionScan,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Cells in a page that is made of single cells, at most.
const PAGE_MAX: usize = 10_000;
/// A flat page that is longer than this takes no more cells: it is a copy of what is in memory already.
const FLAT_PAGE_LEN: usize = 1 << 20;

/// A store of versioned and atomic tables.
///
/// Rules for every method:
///
/// * A write that returned `Ok` is durable (a relaxed [`apply`](Self::apply) excepted) and seen by every later read.
/// * An operation on a table that does not exist fails with `NoSuchTable`, one on a table of the other kind with
///   `WrongTableKind`, and neither writes anything.
/// * Empty input is answered with empty output without a visit to the store.
/// * Lengths over [`Limits`] fail with `TooLarge` before anything is written.
/// * A put at a timestamp that is not [`Timestamp::is_data`] fails with `InvalidTimestamp` before anything is written;
///   sentinels are written by [`add_sentinels`](Self::add_sentinels) alone.
/// * Cancel safety: a dropped read does nothing; a dropped write may or may not be applied.
/// * No call blocks the thread of the async runtime.
#[async_trait]
pub trait KeyValueService: Debug + Send + Sync + 'static {
    /// What the store can do; constant for its lifetime.
    fn capabilities(&self) -> Capabilities;

    /// Who else may write into the store.
    fn ownership(&self) -> Ownership;

    // ---- tables

    /// Creates a table. A table of this name and kind is left as it is, its metadata included; one of the other kind
    /// fails with `WrongTableKind`. Safe to call from many callers at once.
    async fn create_table(&self, table: &TableRef, kind: TableKind, metadata: Bytes) -> Result<()>;

    /// Removes a table with all its data and metadata. Absent tables are fine.
    async fn drop_table(&self, table: &TableRef) -> Result<()>;

    /// Removes all data of a table of either kind and keeps the table.
    async fn truncate_table(&self, table: &TableRef) -> Result<()>;

    /// All tables, in the order of their names.
    async fn tables(&self) -> Result<Vec<TableDescription>>;

    /// One table, if it exists.
    async fn table(&self, table: &TableRef) -> Result<Option<TableDescription>>;

    /// Replaces the metadata of a table.
    async fn put_table_metadata(&self, table: &TableRef, metadata: Bytes) -> Result<()>;

    /// Estimated size of a table of either kind, told without reading it.
    async fn table_size(&self, table: &TableRef) -> Result<TableSize>;

    /// Rows at which a versioned table can be cut into at most `parts` ranges of like size, told without reading it: each
    /// is the first row of a range, and they ascend. A hint: fewer, or none, where the store knows no better.
    ///
    /// # Errors
    /// `NoSuchTable`, `WrongTableKind`, and those of every read; a store that knows no cuts may not look.
    async fn cut_rows(&self, table: &TableRef, parts: usize) -> Result<Vec<Bytes>> {
        let _ = (table, parts);
        Ok(Vec::new())
    }

    // ---- versioned tables: reading

    /// For each bound, in the order given, the newest version below it; `None` where there is none. The sentinel
    /// counts as a version. A cell may be asked for more than once.
    async fn get(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Option<Value>>>;

    /// Of each cell in range the newest version below the scan's bound, in the order of cells. Cells without one are
    /// left out. Memory is bounded by a page, whatever the table holds. The stream sees every write that returned
    /// before the scan was called; of writes during the scan it may see any.
    fn scan(&self, table: &TableRef, request: Scan) -> ResultStream<(Cell, Value)>;

    /// What [`scan`](Self::scan) gives, by the page: for those who take many cells. No page is empty; how many cells one
    /// holds is up to the store.
    fn scan_pages(&self, table: &TableRef, request: Scan) -> ResultStream<Vec<(Cell, Value)>> {
        let page_size = request.page_size.clamp(1, PAGE_MAX);
        let pages = self.scan(table, request).ready_chunks(page_size);
        pages.map(|cells| cells.into_iter().collect()).boxed()
    }

    /// What [`scan`](Self::scan) gives, by the page whose cells lie in one piece of memory: for those who look at many
    /// cells and keep few. No page is empty, and no cell is hidden.
    fn scan_flat(&self, table: &TableRef, request: Scan) -> ResultStream<FlatPage> {
        let pages = self.scan_pages(table, request);
        pages.map_ok(|cells| stream::iter(flattened(cells)).map(Ok)).try_flatten().boxed()
    }

    /// For each bound, in the order given, all versions below it, oldest first, the sentinel included. Asks every
    /// replica: what it does not show was removed everywhere.
    async fn versions(&self, table: &TableRef, cells: &[CellBound]) -> Result<Vec<Vec<Version>>>;

    /// The candidates of a sweep: cells in ascending order, each complete in one item. Asks every replica.
    fn scan_versions(&self, table: &TableRef, request: VersionScan) -> ResultStream<CellVersions>;

    // ---- versioned tables: writing

    /// Writes one version each of several cells of several tables at one timestamp. Not atomic, unless
    /// [`Capabilities::atomic_batch`] says so: after an error any part may be there. Writing the same value twice is
    /// fine. A different value at an occupied place, or two values for one place in one call, is refused with
    /// `ConflictingValue` where the store can tell cheaply ([`Capabilities::detects_conflicting_values`]); otherwise
    /// it is undefined which of them stays.
    async fn put(&self, puts: Vec<(TableRef, Vec<(Cell, Bytes)>)>, ts: Timestamp) -> Result<()>;

    /// As [`put`](Self::put) for one table, with a timestamp for each version: for restores, imports and migrations.
    async fn put_versions(&self, table: &TableRef, versions: Vec<(Cell, Value)>) -> Result<()>;

    /// Makes sure that each cell has a sentinel (an empty value at [`Timestamp::SENTINEL`]); other versions stay.
    async fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> Result<()>;

    /// Deletes exactly these versions, of each cell the oldest first, so that a partial failure never leaves an older
    /// version as the newest. Absent versions are fine, neighbours stay.
    async fn delete_versions(&self, table: &TableRef, versions: &[CellTimestamps]) -> Result<()>;

    /// Deletes of each cell all versions of a range, the oldest first.
    async fn delete_version_ranges(&self, table: &TableRef, ranges: &[CellVersionRange]) -> Result<()>;

    /// Deletes all versions of all cells of a range of rows. Not atomic. An empty range does nothing.
    async fn delete_rows(&self, table: &TableRef, rows: &RowRange) -> Result<()>;

    // ---- atomic tables

    /// The values of cells of an atomic table, in the order given. Linearizable with the two writes below.
    async fn get_atomic(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>>;

    /// The cells of an atomic table, in order; memory is bounded by a page.
    fn scan_atomic(&self, table: &TableRef, request: AtomicScan) -> ResultStream<(Cell, Bytes)>;

    /// Writes a value into a cell that has none, or reports the value that stands, even when it is the same. Of two
    /// concurrent calls on one cell at most one writes.
    async fn put_unless_exists(&self, table: &TableRef, cell: &Cell, value: Bytes) -> Result<PutUnlessExists>;

    /// Replaces the value of a cell if it is `expected` (`None`: absent) by `new` (`None`: removes it), or reports
    /// what was there instead. Other cells of the row are of no concern.
    async fn check_and_set(
        &self,
        table: &TableRef,
        cell: &Cell,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> Result<CheckAndSet>;

    // ---- the store as a whole

    /// Applies a batch atomically: readers see all of it or nothing, and so does the next opener after a crash. Fails
    /// with `Unsupported` without [`Capabilities::atomic_batch`], and with `GuardFailed` if its guard does not hold
    /// (a guard whose table is missing fails with `NoSuchTable`; one without writes is checked all the same). An error
    /// other than `Indeterminate` means that nothing was applied.
    async fn apply(&self, batch: AtomicBatch, durability: Durability) -> Result<()>;

    /// Names the database the data live in, for a store that may be moved to another one behind our back: after a
    /// fail-over to a copy that lags, or with a copy started in its place, it is another name. `None` where that can't
    /// happen. At most 200 characters.
    async fn identity(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// Whether writes are calls that keep a thread busy until the disk has answered: then who writes all the time does well
    /// to do so on a thread of his own that [may wait](crate::allow_waiting).
    fn writes_keep_waiting(&self) -> bool {
        false
    }

    /// How many batches are written sooner when they are sent at the same time than one after the other: more than one for a
    /// server that works on several connections at once.
    fn batches_at_once(&self) -> usize {
        1
    }

    /// How much of the store answers. A closed store answers `NoQuorum`.
    async fn availability(&self) -> Availability;

    /// The store's own live snapshot, where it has one.
    fn native_snapshot(&self) -> Option<&dyn NativeSnapshot>;

    /// Sorted versions straight into the files of the store, where it has such a way.
    fn sorted_load(&self) -> Option<&dyn SortedLoad> {
        None
    }

    /// The store's own live snapshot as streams, where it has one: for stores on servers.
    fn stream_snapshot(&self) -> Option<&dyn StreamSnapshot> {
        None
    }

    /// The store as a cluster whose nodes are copied one by one, by the cluster's own tools, where it is one.
    fn node_store(&self) -> Option<&dyn NodeStore> {
        None
    }

    /// Closes and opens the store again, so that what is in its log becomes what is in the store: the way out of
    /// `Indeterminate` for a store with one owner. Running scans fail with `Closed`. Stores on servers do nothing.
    async fn reopen(&self) -> Result<()>;

    /// Removes the store with all its tables, for good, and what holds them where a store has a place of its own in
    /// something larger. Nobody may use it meanwhile; to be followed by [`close`](Self::close). Not atomic.
    async fn destroy(&self) -> Result<()> {
        for table in self.tables().await? {
            self.drop_table(&table.table).await?;
        }
        Ok(())
    }

    /// Releases the store; every later call fails with `Closed`. Removes nothing.
    async fn close(&self) -> Result<()>;
}

/// A page, copied to flat ones.
fn flattened(cells: Vec<(Cell, Value)>) -> Vec<FlatPage> {
    let mut pages: Vec<FlatPage> = Vec::new();
    for (cell, value) in cells {
        if pages.last().is_none_or(|page| page.byte_len() >= FLAT_PAGE_LEN) {
            pages.push(FlatPage::new());
        }
        if let Some(page) = pages.last_mut() {
            page.push(&cell.row, &cell.column, value.ts, &value.bytes);
        }
    }
    pages
}

/// A live, crash-consistent copy made by the store itself.
#[async_trait]
pub trait NativeSnapshot: Send + Sync {
    /// A directory on the file system of the store, fit for [`snapshot_into`](Self::snapshot_into).
    fn staging_root(&self) -> &Path;

    /// Bytes that a snapshot taken now would hold, estimated.
    async fn estimated_bytes(&self) -> Result<u64>;

    /// Makes a snapshot in `directory`, which must not exist and lies under [`staging_root`](Self::staging_root).
    /// Writers go on. Cheap: files are linked, not copied.
    async fn snapshot_into(&self, directory: &Path) -> Result<SnapshotSummary>;
}

/// Takes a version of a sorted load.
pub type SortedSink<'a> = dyn FnMut(&Cell, Timestamp, &[u8]) -> Result<()> + 'a;

/// Large amounts of versions, in order, without a log: several times as fast as puts, for restores.
pub trait SortedLoad: Send + Sync {
    /// Writes what `fill` gives into a versioned table: cells in ascending order, one version of each. All of it is there and
    /// durable when this returns `Ok`, and nothing of it if `fill` fails or gives cells in another order. What lies at these
    /// places is replaced. Several loads may run at a time.
    ///
    /// Blocks the thread, for as long as `fill` does at least.
    fn load_sorted(&self, table: &TableRef, fill: &mut dyn FnMut(&mut SortedSink<'_>) -> Result<()>) -> Result<()>;
}

/// What a snapshot consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotSummary {
    /// Number of files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a store can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The adapter's name, as in the configuration.
    pub store: &'static str,
    /// [`KeyValueService::apply`] works, and a multi-cell put is atomic.
    pub atomic_batch: bool,
    /// A put of another value at an occupied place is refused.
    pub detects_conflicting_values: bool,
    /// Data survives the process.
    pub persistent: bool,
    /// Longest names and values.
    pub limits: Limits,
}

/// Longest names and values of a store, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Row.
    pub row_len_max: usize,
    /// Column.
    pub column_len_max: usize,
    /// Row and column of one cell together, in stores that keep them in one key of limited length. Elsewhere it is the
    /// sum of the two. The error of a cell that is over it names the `row and column`.
    pub cell_len_max: usize,
    /// Value.
    pub value_len_max: usize,
    /// Whether a row or column may be empty. Where it may not, writing one fails with `Unsupported` before anything is
    /// written.
    pub empty_names: bool,
}

/// Who else may write into the store.
#[derive(Clone, Debug)]
pub enum Ownership {
    /// This process alone, kept so by the store or the operating system. The number is shared by everyone who uses
    /// this store in this process: whoever takes over the timestamp oracle puts the new epoch there, and older ones
    /// see that they are outdated.
    Exclusive(Arc<AtomicU64>),
    /// Other processes, at any time.
    Shared,
}

/// The answer of [`KeyValueService::put_unless_exists`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutUnlessExists {
    /// The value was written by this call.
    Written,
    /// This value was there. After an earlier lost answer it may be one's own.
    Exists(Bytes),
}

/// The answer of [`KeyValueService::check_and_set`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckAndSet {
    /// The value was replaced by this call.
    Applied,
    /// This was there instead of what was expected.
    Mismatch(Option<Bytes>),
}

/// How much of a store answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// The configuration contradicts the store; only a person can help.
    Terminal(String),
    /// Neither reads nor writes.
    NoQuorum(String),
    /// Reads and writes, but no deletes and no changes of tables.
    Quorum(String),
    /// Everything.
    All,
}
