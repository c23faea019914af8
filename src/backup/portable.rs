//! Portable backups: what a transaction at the backup timestamp reads, written again as one ordinary commit below it.
//!
//! Only what applications wrote is in them: of each cell the one visible value. What the layer keeps for itself is not
//! copied but made anew, so the backup fits a store of any kind:
//!
//! ```text
//!   from   every cell as of B             into   one version of each cell at start_ts = B - 2, in which its commit
//!          the tables with their specs           timestamp B - 1 lies beside the value; the entry B - 2 -> B - 1;
//!          (manifest) namespace, B, F            a record of the store, and of the oracle with a bound above B
//! ```
//!
//! From there it goes on like every restore: what follows finds an ordinary store in which one transaction committed
//! everything right before B. Both numbers are free: the store holds nothing else, and a state at B that is not empty
//! took a start and a commit below B.

use super::cells::{self, Cells, FrameWriter, PREAMBLE};
use super::chunks::{self, ChunkFiles, PARALLEL};
use super::contents::{Contents, PortableTable, table_stem};
use super::create::BackupStep;
use super::files::{Jobs, Meter};
use super::manifest::{Manifest, ManifestFile};
use super::pieces;
use super::restore::RestoreStep;
use crate::ops::{ScanOptions, TransactionOps};
use crate::schema::{FORMAT_VERSION, MetaRecord, Replaced, StoreRecord, TableSpec};
use crate::timestamp::OracleRecord;
use crate::transaction::entry::{Entry, transactions_table};
use crate::transaction::sweep_queue::sweep_queue_table;
use crate::transaction::{committed_version, version_len};
use crate::{Error, Result};
use atlas_kvs::{
    AtomicBatch, BatchOp, Cell, Durability, KeyValueService, KvsError, Ownership, PutUnlessExists, RowRange, TableKind,
    TableRef, Timestamp, Value,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use std::cell::{Cell as StdCell, RefCell};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many cells are fetched at a time, of each table; the store sees to it that large ones are fewer.
const PAGE: usize = 1024;

/// Most bytes written into the store at a time, one cell excepted.
const WRITE_SIZE: usize = 1 << 20;

/// Most cells written into the store at a time: small ones take more memory than their bytes.
const WRITE_CELLS: usize = 10_000;

/// Bytes that a portable backup of a store would hold, estimated from what its tables hold.
pub(super) async fn estimated_bytes(kvs: &dyn KeyValueService) -> Result<u64> {
    let mut bytes = 0u64;
    for table in kvs.tables().await? {
        if !table.table.is_internal() {
            bytes = bytes.saturating_add(kvs.table_size(&table.table).await?.bytes);
        }
    }
    Ok(bytes)
}

/// Reads every table of applications as `reader` sees it into files in `directory`, several tables and pieces of them at
/// once.
pub(super) async fn copy_out(
    jobs: &Jobs,
    kvs: &dyn KeyValueService,
    reader: Arc<dyn TransactionOps>,
    directory: &Path,
    file_size: u64,
    estimate: u64,
) -> Result<(Vec<ManifestFile>, Contents)> {
    let mut tables = Vec::new();
    for description in kvs.tables().await? {
        if !description.table.is_internal() {
            let spec = TableSpec::from_description(&description)?;
            tables.push(PortableTable { table: description.table, spec, cells: 0, files: 0 });
        }
    }
    let meter = jobs.meter(BackupStep::Copy.name(), estimate);
    // Made before the first is polled: a closure that lives as long as the stream would not be `Send` enough.
    let mut copies: Vec<BoxFuture<'_, Result<Copied>>> = Vec::new();
    for (place, table) in tables.iter().enumerate() {
        for (piece, rows) in pieces::ranges(kvs, &table.table, file_size).await?.into_iter().enumerate() {
            let stem = pieces::piece_stem(place, piece);
            let into = ChunkFiles { directory: directory.to_owned(), stem, preamble: PREAMBLE, file_size };
            let cells = Arc::new(AtomicU64::new(0));
            let frames = (Arc::clone(&reader), table.table.clone(), rows, Arc::clone(&cells));
            let meter = Arc::clone(&meter);
            let copy = async move {
                let (reader, table, rows, count) = frames;
                let frames = chunks::on_a_task(frames_of(reader, table, rows, count));
                let files = chunks::write(jobs, frames, into, meter).await?;
                Ok(Copied { place, files, cells: cells.load(Ordering::Relaxed) })
            };
            copies.push(copy.boxed());
        }
    }
    let copied: Vec<Copied> = stream::iter(copies).buffered(PARALLEL).try_collect().await?;
    let mut pieces: Vec<Vec<Vec<ManifestFile>>> = tables.iter().map(|_| Vec::new()).collect();
    for Copied { place, files, cells } in copied {
        tables[place].cells += cells;
        tables[place].files += u32::try_from(files.len()).unwrap_or(u32::MAX);
        pieces[place].push(files);
    }
    let directory = directory.to_owned();
    let name = move || {
        let named = pieces.into_iter().enumerate();
        named.map(|(place, pieces)| pieces::name_files(&directory, place, pieces)).collect::<Result<Vec<_>>>()
    };
    let files = jobs.run(name).await?.into_iter().flatten().collect();
    Ok((files, Contents::Portable { tables }))
}

/// A piece of the table at a place in the list, in the repository.
struct Copied {
    place: usize,
    files: Vec<ManifestFile>,
    cells: u64,
}

/// The frames of some rows of a table; `count` is the number of cells when they have ended.
fn frames_of(
    reader: Arc<dyn TransactionOps>,
    table: TableRef,
    rows: RowRange,
    count: Arc<AtomicU64>,
) -> BoxStream<'static, Result<bytes::Bytes>> {
    async_stream::try_stream! {
        let options = ScanOptions { rows, page_size: PAGE, bypass_cache: true, ..ScanOptions::default() };
        let mut cells = reader.scan(&table, options).await?;
        let mut frames = FrameWriter::default();
        while let Some((cell, value)) = cells.try_next().await? {
            if let Some(frame) = frames.push(&cell, &value)? {
                yield frame;
            }
        }
        if let Some(frame) = frames.take() {
            yield frame;
        }
        count.store(frames.cells(), Ordering::Relaxed);
    }
    .boxed()
}

/// Reads every frame of a portable backup. Answers the number of cells.
///
/// # Errors
/// [`Error::Corrupt`] if it does not hold what the manifest says.
pub(super) async fn check(directory: &Path, manifest: &Manifest, tables: &[PortableTable], jobs: &Jobs) -> Result<u64> {
    let meter = jobs.meter("read", manifest.store_files().map(|file| file.size).sum());
    let mut total = 0;
    for (place, table) in tables.iter().enumerate() {
        let mut seen = 0;
        for file in manifest.chunks(&table_stem(place), table.files) {
            let mut cells = read_cells(directory.join(&file.path), file, Arc::clone(&meter));
            while let Some(cells) = cells.try_next().await? {
                seen += cells.len() as u64;
            }
        }
        check_count(manifest, table, seen)?;
        total += seen;
    }
    Ok(total)
}

fn check_count(manifest: &Manifest, table: &PortableTable, seen: u64) -> Result<()> {
    if seen == table.cells {
        return Ok(());
    }
    Err(Error::corrupt(
        format!("backup '{}', table '{}'", manifest.id, table.table),
        format!("it holds {seen} cells instead of {}", table.cells),
    ))
}

fn read_cells(path: PathBuf, file: ManifestFile, meter: Arc<Meter>) -> BoxStream<'static, Result<Cells>> {
    let place = path.display().to_string();
    chunks::read(path, file, meter, move |source, send| cells::read_frames(source, &place, send))
}

/// Versions that are written together.
type Versions = Vec<(Cell, Value)>;

/// The cells of a file as versions at these start and commit timestamps, in batches. Made on the thread that reads, so
/// that the next batch is ready when one is written.
fn read_batches(
    path: PathBuf,
    file: ManifestFile,
    meter: Arc<Meter>,
    (start_ts, commit_ts): (Timestamp, Timestamp),
) -> BoxStream<'static, Result<Versions>> {
    let place = path.display().to_string();
    chunks::read(path, file, meter, move |source, send| {
        let batch = RefCell::new((Versions::new(), 0));
        cells::read_frames(source, &place, &|cells| {
            let (versions, size) = &mut *batch.borrow_mut();
            for (cell, content) in cells {
                *size += cell.row.len() + cell.column.len() + version_len(content.len());
                versions.push((cell, Value { ts: start_ts, bytes: committed_version(&content, commit_ts) }));
                if *size >= WRITE_SIZE || versions.len() >= WRITE_CELLS {
                    send(std::mem::take(versions))?;
                    *size = 0;
                }
            }
            Ok(())
        })?;
        match batch.into_inner().0 {
            rest if rest.is_empty() => Ok(()),
            rest => send(rest),
        }
    })
}

/// Loads a file into a store that takes sorted loads, and answers the number of its cells. Nothing of a file is loaded that is
/// not what the manifest says.
fn load_file(
    kvs: &dyn KeyValueService,
    table: &TableRef,
    path: PathBuf,
    file: &ManifestFile,
    meter: Arc<Meter>,
    (start_ts, commit_ts): (Timestamp, Timestamp),
) -> Result<u64> {
    let loader =
        kvs.sorted_load().ok_or(KvsError::Unsupported { store: kvs.capabilities().store, operation: "sorted load" })?;
    let place = path.display().to_string();
    let (count, mut failed) = (StdCell::new(0), None);
    let loaded = loader.load_sorted(table, &mut |sink| {
        let sink = RefCell::new(sink);
        let read = chunks::read_here(path.clone(), file, Arc::clone(&meter), |source| {
            cells::read_frames(source, &place, &|cells| {
                for (cell, content) in cells {
                    (*sink.borrow_mut())(&cell, start_ts, &committed_version(&content, commit_ts))?;
                    count.set(count.get() + 1);
                }
                Ok(())
            })
        });
        read.map_err(|error| {
            failed = Some(error);
            // Ends the load; told is what has failed.
            KvsError::Closed
        })
    });
    match (failed, loaded) {
        (Some(error), _) => Err(error),
        (None, loaded) => {
            loaded?;
            Ok(count.get())
        }
    }
}

/// Writes a portable backup into a store that holds nothing, several tables at once. `namespace` and `commit_mode` are
/// what the store will be opened with.
pub(super) async fn load(
    kvs: &Arc<dyn KeyValueService>,
    directory: &Path,
    manifest: &Manifest,
    tables: &[PortableTable],
    jobs: &Jobs,
    namespace: &str,
    commit_mode: &str,
) -> Result<()> {
    MetaRecord::<StoreRecord>::create_table(kvs.as_ref()).await?;
    kvs.create_table(&transactions_table(), TableKind::Atomic, bytes::Bytes::new()).await?;
    kvs.create_table(&sweep_queue_table(), TableKind::Versioned, bytes::Bytes::new()).await?;
    for table in tables {
        kvs.create_table(&table.table, TableKind::Versioned, table.spec.to_metadata()).await?;
    }
    if let Some((start_ts, commit_ts)) = numbers(manifest, tables)? {
        let load = Load { kvs, directory, manifest, start_ts, commit_ts, relaxed: may_relax(kvs.as_ref()) };
        load.data(tables, jobs).await?;
        load.entry().await?;
    }
    // Last: they make it a store.
    write_records(kvs, manifest, namespace, commit_mode).await
}

/// Whether data need not wait for the disk until the entry after them does.
///
/// Only in a store of this process. A crash that takes writes back ends the restore too, and it begins anew from an
/// empty store. A server may crash, lose what it had answered, and be back before we ask again: we would go on behind
/// the gap.
fn may_relax(kvs: &dyn KeyValueService) -> bool {
    kvs.capabilities().atomic_batch && matches!(kvs.ownership(), Ownership::Exclusive(_))
}

/// The start and commit timestamp of everything; nothing for a backup without cells.
fn numbers(manifest: &Manifest, tables: &[PortableTable]) -> Result<Option<(Timestamp, Timestamp)>> {
    if tables.iter().all(|table| table.cells == 0) {
        return Ok(None);
    }
    let commit_ts = manifest.backup_ts.previous();
    let start_ts = commit_ts.previous();
    if start_ts.is_data() && start_ts < commit_ts {
        return Ok(Some((start_ts, commit_ts)));
    }
    Err(Error::corrupt(
        format!("backup '{}'", manifest.id),
        format!("it holds cells, though nothing can have committed below {}", manifest.backup_ts),
    ))
}

struct Load<'a> {
    kvs: &'a Arc<dyn KeyValueService>,
    directory: &'a Path,
    manifest: &'a Manifest,
    start_ts: Timestamp,
    commit_ts: Timestamp,
    /// See [`may_relax`].
    relaxed: bool,
}

impl Load<'_> {
    async fn data(&self, tables: &[PortableTable], jobs: &Jobs) -> Result<()> {
        let bytes = self.manifest.store_files().map(|file| file.size).sum();
        let meter = jobs.meter(RestoreStep::Copy.name(), bytes);
        let loads: Vec<BoxFuture<'_, Result<()>>> = tables
            .iter()
            .enumerate()
            .map(|(place, table)| self.table(place, table, Arc::clone(&meter), jobs).boxed())
            .collect();
        stream::iter(loads).buffer_unordered(PARALLEL).try_collect().await
    }

    async fn table(&self, place: usize, table: &PortableTable, meter: Arc<Meter>, jobs: &Jobs) -> Result<()> {
        if self.kvs.sorted_load().is_some() {
            return self.sorted(place, table, meter, jobs).await;
        }
        let mut seen = 0;
        for file in self.manifest.chunks(&table_stem(place), table.files) {
            let numbers = (self.start_ts, self.commit_ts);
            let mut batches = read_batches(self.directory.join(&file.path), file, Arc::clone(&meter), numbers);
            while let Some(batch) = batches.try_next().await? {
                seen += batch.len() as u64;
                self.put(&table.table, batch).await?;
            }
        }
        check_count(self.manifest, table, seen)
    }

    /// Each file as one sorted load, a few at a time: cells ascend in it, and no other file has the same.
    async fn sorted(&self, place: usize, table: &PortableTable, meter: Arc<Meter>, jobs: &Jobs) -> Result<()> {
        let files = self.manifest.chunks(&table_stem(place), table.files);
        let (kvs, directory, table_ref) = (Arc::clone(self.kvs), self.directory.to_owned(), table.table.clone());
        let numbers = (self.start_ts, self.commit_ts);
        let load = move |file: ManifestFile| {
            load_file(kvs.as_ref(), &table_ref, directory.join(&file.path), &file, Arc::clone(&meter), numbers)
        };
        // More than processors: while one waits for its file to be synced, others are made.
        let seen = jobs.run_some(PARALLEL, files, load).await?.into_iter().sum();
        check_count(self.manifest, table, seen)
    }

    async fn put(&self, table: &TableRef, versions: Versions) -> Result<()> {
        if !self.relaxed {
            return Ok(self.kvs.put_versions(table, versions).await?);
        }
        let put = |(cell, Value { ts, bytes })| BatchOp::Put { table: table.clone(), cell, ts, value: bytes };
        let batch = AtomicBatch::new(versions.into_iter().map(put).collect());
        Ok(self.kvs.apply(batch, Durability::Relaxed).await?)
    }

    /// After the data, as in every commit. Durable when it returns, and so are the data: what a crash takes back of
    /// relaxed writes, it takes together with everything after them.
    async fn entry(&self) -> Result<()> {
        let entry = Entry::Committed(self.commit_ts).encode();
        let cell = Entry::cell(self.start_ts);
        match self.kvs.put_unless_exists(&transactions_table(), &cell, entry.clone()).await? {
            PutUnlessExists::Written => Ok(()),
            // A write of ours whose answer was lost on the way.
            PutUnlessExists::Exists(found) if found == entry => Ok(()),
            PutUnlessExists::Exists(_) => Err(not_alone("the entry of the restored data")),
        }
    }
}

async fn write_records(
    kvs: &Arc<dyn KeyValueService>,
    manifest: &Manifest,
    namespace: &str,
    commit_mode: &str,
) -> Result<()> {
    let oracle = OracleRecord {
        epoch: 0,
        holder: None,
        // As if `backup_ts` had been the last number issued.
        bound: manifest.backup_ts.next(),
        renewal: 0,
        lease_ms: 0,
        contact: None,
        database: None,
    };
    put_record(MetaRecord::new(Arc::clone(kvs), "oracle"), &oracle).await?;
    let store = StoreRecord {
        format_version: FORMAT_VERSION,
        store_id: uuid::Uuid::new_v4(),
        namespace: namespace.to_owned(),
        commit_mode: commit_mode.to_owned(),
        created: jiff::Timestamp::now().to_string(),
        restored_from: Some(manifest.id.clone()),
    };
    put_record(MetaRecord::new(Arc::clone(kvs), "store"), &store).await
}

async fn put_record<T>(record: MetaRecord<T>, content: &T) -> Result<()>
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq,
{
    match record.replace(None, Some(content)).await? {
        Replaced::Done(_) => Ok(()),
        Replaced::Other(Some((found, _))) if found == *content => Ok(()),
        Replaced::Other(_) => Err(not_alone("a record of the restored store")),
    }
}

fn not_alone(what: &str) -> Error {
    Error::refused(
        format!("{what} is there already: somebody else writes into the store that is being restored"),
        "stop every process that uses the store, then `atlas backup restore --resume --into CONFIG`",
    )
}
