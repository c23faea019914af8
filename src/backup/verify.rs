//! Proves copies and restored stores: what was not checked is not known to be right.

use super::clean::DeletionFloor;
use super::contents::Contents;
use super::directory_target::StoreOpener;
use super::files::{self, Jobs, Meter};
use super::lock::BackupLock;
use super::manifest::{BACKUP_TIMESTAMP_FILE, FAST_FORWARD_TIMESTAMP_FILE, MANIFEST_FILE, Manifest, ManifestFile};
use super::portable;
use super::repository::Repository;
use super::timestamp_file::format_timestamp_line;
use crate::ops::{Progress, ProgressSink};
use crate::schema::{FORMAT_VERSION, MetaRecord, StoreRecord};
use crate::timestamp::read_stored;
use crate::transaction::entry::{CleanedWindows, Entry, transactions_table};
use crate::{Error, Result};
use atlas_kvs::{AtomicScan, KeyValueService, RowRange, TableKind, Timestamp, VersionScan};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many entries or cells are fetched at a time.
const PAGE: usize = 1024;

/// How many things that are wrong a message names; the rest is counted.
const NAMED: usize = 20;

/// How the store in a copy is opened, to look at the numbers in it.
#[derive(Clone)]
pub struct OpenCopy {
    /// Where a copy of the copy is made for it: opening a store changes its files. Needs room for all of it.
    pub scratch_root: PathBuf,
    /// Opens the store in a directory.
    pub opener: StoreOpener,
}

/// What [`verify`] found to be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// The backup's id.
    pub id: String,
    /// The state it restores: commits below this.
    pub backup_ts: Timestamp,
    /// Above every number in it.
    pub fast_forward_ts: Timestamp,
    /// Files whose presence, length and checksum are right.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that do not belong to the backup; a restore ignores them.
    pub extra_files: Vec<String>,
    /// Whether the numbers in the copy were looked at.
    pub numbers: NumbersCheck,
}

/// Whether the numbers in a copy were looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "level")]
pub enum NumbersCheck {
    /// They were not: the files are what was copied, but nobody looked into them.
    Skipped,
    /// Every cell of a portable backup was read; there are no other numbers in it.
    Read {
        /// How many there are.
        cells: u64,
    },
    /// The store was opened, and no number in it is at or above the fast-forward timestamp.
    Checked {
        /// Entries of transactions, each readable.
        entries: u64,
        /// Versions of cells, in all versioned tables.
        versions: u64,
    },
}

/// Verifies a backup: the manifest by its own checksum, every file by presence, length and checksum, the timestamps,
/// every frame of a portable backup, and of one of files, with `open`, also every number in the store. Changes nothing in the repository.
///
/// # Errors
/// [`Error::NotFound`] if there is no such backup; [`Error::Corrupt`] naming every file that is damaged, or what else
/// is. Cancel safe.
pub async fn verify(
    repository: &Repository,
    id: &str,
    open: Option<OpenCopy>,
    progress: &ProgressSink,
) -> Result<VerifyReport> {
    let jobs = Jobs::owned(Arc::clone(progress));
    let id = repository.resolve(id).await?;
    let manifest = repository.manifest(&id).await?;
    let extra_files = check_files(repository, &manifest, &jobs).await?;
    let numbers = match (&manifest.contents, open) {
        (Contents::Files, Some(open)) => check_copy(repository, &manifest, open, &jobs, progress).await?,
        (Contents::Portable { tables }, _) => {
            let cells = portable::check(&repository.directory(&id), &manifest, tables, &jobs).await?;
            NumbersCheck::Read { cells }
        }
        _ => NumbersCheck::Skipped,
    };
    Ok(VerifyReport {
        id,
        backup_ts: manifest.backup_ts,
        fast_forward_ts: manifest.fast_forward_ts,
        files: manifest.totals.files,
        bytes: manifest.totals.bytes,
        extra_files,
        numbers,
    })
}

/// Checks every file of a backup. Answers the files that do not belong to it.
pub(super) async fn check_files(repository: &Repository, manifest: &Manifest, jobs: &Jobs) -> Result<Vec<String>> {
    let directory = repository.directory(&manifest.id);
    let meter = jobs.meter("verify", manifest.totals.bytes);
    let root = directory.clone();
    let mut problems: Vec<String> = jobs
        .run_each(manifest.files.clone(), move |file| check_file(&root, &file, &meter))
        .await?
        .into_iter()
        .flatten()
        .collect();
    for (name, ts) in
        [(BACKUP_TIMESTAMP_FILE, manifest.backup_ts), (FAST_FORWARD_TIMESTAMP_FILE, manifest.fast_forward_ts)]
    {
        let expected = blake3::hash(format_timestamp_line(ts).as_bytes()).to_hex();
        if manifest.files.iter().any(|file| file.path == name && file.blake3 != expected.as_str()) {
            problems.push(format!("{name} says something else than the manifest"));
        }
    }
    if problems.is_empty() {
        let known: BTreeSet<String> = manifest.files.iter().map(|file| file.path.clone()).collect();
        let found = jobs.run(move || files::list(&directory, |_| false)).await?;
        let extra = found.into_iter().map(|file| file.path);
        return Ok(extra.filter(|path| path != MANIFEST_FILE && !known.contains(path)).collect());
    }
    problems.sort();
    Err(Error::corrupt(
        format!("backup '{}' in {}", manifest.id, repository.root().display()),
        format!(
            "{} of {} files are not what was copied: {}",
            problems.len(),
            manifest.files.len(),
            problems.join("; ")
        ),
    ))
}

/// What is wrong with a file, if anything.
fn check_file(root: &Path, file: &ManifestFile, meter: &Meter) -> Result<Option<String>> {
    let path = root.join(&file.path);
    let problem = match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some("is missing".to_owned()),
        Err(error) => Some(format!("can't be read: {error}")),
        Ok(metadata) if !metadata.is_file() => Some("is no file".to_owned()),
        Ok(metadata) if metadata.len() != file.size => {
            Some(format!("has {} bytes instead of {}", metadata.len(), file.size))
        }
        Ok(_) => match files::hash(&path, meter) {
            Ok((_, checksum)) if checksum.to_hex().as_str() == file.blake3 => None,
            Ok(_) => Some("does not match its checksum".to_owned()),
            // A disk that can't read a file has lost it.
            Err(Error::Io { source, .. }) => Some(format!("can't be read: {source}")),
            Err(error) => return Err(error),
        },
    };
    Ok(problem.map(|problem| format!("{} {problem}", file.path)))
}

/// Opens the store of a backup in a directory made for it, and looks at its numbers.
async fn check_copy(
    repository: &Repository,
    manifest: &Manifest,
    open: OpenCopy,
    jobs: &Jobs,
    progress: &ProgressSink,
) -> Result<NumbersCheck> {
    let scratch = lay_out(repository, manifest, &open.scratch_root, jobs).await?;
    let kvs = (open.opener)(scratch.path().to_owned()).await?;
    let checked = check_numbers(kvs.as_ref(), manifest, progress).await;
    let closed = kvs.close().await;
    drop(kvs);
    // Removing a directory blocks.
    jobs.run(move || scratch.close().map_err(|error| Error::io("removing a scratch directory", error))).await?;
    let checked = checked?;
    closed?;
    Ok(checked)
}

async fn lay_out(
    repository: &Repository,
    manifest: &Manifest,
    scratch_root: &Path,
    jobs: &Jobs,
) -> Result<tempfile::TempDir> {
    let (root, needed) = (scratch_root.to_owned(), manifest.totals.bytes);
    let list: Vec<(PathBuf, String)> = manifest
        .store_files()
        .filter_map(|file| Some((repository.directory(&manifest.id).join(&file.path), file.store_path()?.to_owned())))
        .collect();
    let scratch = jobs
        .run(move || {
            files::check_space(&root, needed)?;
            files::make_dirs(&root)?;
            tempfile::Builder::new()
                .prefix("atlas-verify-")
                .tempdir_in(&root)
                .map_err(files::io("making a scratch directory in", &root))
        })
        .await?;
    let (to, meter) = (scratch.path().to_owned(), jobs.meter("open", needed));
    let copy = move |(from, path): (PathBuf, String)| {
        let to = to.join(path);
        to.parent().map_or(Ok(()), files::make_dirs)?;
        files::copy(&from, &to, false, &meter)
    };
    jobs.run_each(list, copy).await?;
    Ok(scratch)
}

/// Makes sure that no number in a store is at or above the fast-forward timestamp of its backup.
async fn check_numbers(
    kvs: &dyn KeyValueService,
    manifest: &Manifest,
    progress: &ProgressSink,
) -> Result<NumbersCheck> {
    let limit = manifest.fast_forward_ts;
    let mut wrong = Wrong::default();
    let mut entries = 0;
    each_entry(kvs, progress, |start_ts, entry| {
        entries += 1;
        if start_ts >= limit {
            wrong.add(format!("transaction {start_ts} began"));
        }
        if let Entry::Committed(commit_ts) = entry
            && commit_ts >= limit
        {
            wrong.add(format!("transaction {start_ts} committed at {commit_ts}"));
        }
    })
    .await?;
    let mut versions = 0;
    for table in kvs.tables().await? {
        if table.kind != TableKind::Versioned {
            continue;
        }
        let all = VersionScan { page_size: PAGE, ..VersionScan::new(RowRange::all(), Timestamp::MAX) };
        let mut cells = kvs.scan_versions(&table.table, all);
        while let Some(cell) = cells.try_next().await? {
            versions += cell.versions.len() as u64;
            if let Some(newest) = cell.versions.last().filter(|version| version.ts >= limit) {
                wrong.add(format!("table '{}', cell {} has a version at {}", table.table, cell.cell, newest.ts));
            }
        }
    }
    wrong.into_result(&format!("backup '{}'", manifest.id), &format!("numbers at or above {limit}"))?;
    Ok(NumbersCheck::Checked { entries, versions })
}

/// What [`verify_restored`] saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredReport {
    /// Transactions that are committed.
    pub committed: u64,
    /// Transactions that were rolled back, or whose commit a cleaned window hides.
    pub rolled_back: u64,
}

/// Verifies a store that was restored to `backup_ts` and fast-forwarded to `fast_forward_ts`: every entry that says
/// *committed* and counts is below the one or at or above the other; the cleaned window is there and closed; the
/// oracle will issue nothing at or below `fast_forward_ts`; the store knows what it is; no backup lock came along.
///
/// # Errors
/// [`Error::Corrupt`] with everything that is not so. Cancel safe; changes nothing.
pub async fn verify_restored(
    kvs: Arc<dyn KeyValueService>,
    backup_ts: Timestamp,
    fast_forward_ts: Timestamp,
    progress: &ProgressSink,
) -> Result<RestoredReport> {
    let mut wrong = Wrong::default();
    match MetaRecord::<StoreRecord>::new(Arc::clone(&kvs), "store").load().await? {
        None => wrong.add("the record of the store is missing".to_owned()),
        Some((store, _)) if store.format_version > FORMAT_VERSION => {
            wrong.add(format!("format version {} is newer than this program's {FORMAT_VERSION}", store.format_version));
        }
        Some(_) => (),
    }
    let windows = CleanedWindows::load(Arc::clone(&kvs)).await?;
    if let Some(open) = windows.open_window() {
        wrong.add(format!("the cleaned window from {} is still open", open.from));
    }
    if !windows.hides(backup_ts) {
        wrong.add(format!("no cleaned window begins at {backup_ts}"));
    }
    let bound = read_stored(Arc::clone(&kvs)).await?.map_or(Timestamp::SENTINEL, |record| record.bound);
    if bound <= fast_forward_ts {
        wrong.add(format!("the oracle's bound {bound} is not above {fast_forward_ts}"));
    }
    if BackupLock::new(Arc::clone(&kvs)).status().await?.is_some() {
        wrong.add("the backup lock is held".to_owned());
    }
    if let Some((floor, _)) = DeletionFloor::in_store(Arc::clone(&kvs)).load().await?
        && floor.highest_justifying_commit >= backup_ts
    {
        wrong.add(format!("versions were removed because of commits up to {}", floor.highest_justifying_commit));
    }
    let mut report = RestoredReport::default();
    each_entry(kvs.as_ref(), progress, |start_ts, entry| match entry {
        Entry::Committed(commit_ts) if !windows.hides(commit_ts) => {
            report.committed += 1;
            if commit_ts >= backup_ts && commit_ts < fast_forward_ts {
                wrong.add(format!("transaction {start_ts} is committed at {commit_ts}"));
            }
        }
        Entry::Committed(_) | Entry::RolledBack => report.rolled_back += 1,
    })
    .await?;
    wrong.into_result("the restored store", &format!("not the state at {backup_ts}"))?;
    Ok(report)
}

/// Shows every entry of `_transactions` to `look`. Stops at one that can't be read.
async fn each_entry(
    kvs: &dyn KeyValueService,
    progress: &ProgressSink,
    mut look: impl FnMut(Timestamp, Entry) + Send,
) -> Result<()> {
    let table = transactions_table();
    if kvs.table(&table).await?.is_none() {
        return Ok(());
    }
    let mut entries = kvs.scan_atomic(&table, AtomicScan { page_size: PAGE, ..AtomicScan::new(RowRange::all()) });
    let mut done = 0u64;
    while let Some((cell, bytes)) = entries.try_next().await? {
        let start_ts = Entry::start_ts_of(&cell)?;
        look(start_ts, Entry::decode(start_ts, &bytes)?);
        done += 1;
        if done.is_multiple_of(PAGE as u64) {
            progress(Progress { step: "verify".to_owned(), done, total: None, unit: "entries".to_owned() });
        }
    }
    Ok(())
}

/// What is wrong: the first few in words, all of them as a number.
#[derive(Default)]
struct Wrong {
    named: Vec<String>,
    count: u64,
}

impl Wrong {
    fn add(&mut self, what: String) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(what);
        }
    }

    fn into_result(self, place: &str, summary: &str) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let rest = self.count - self.named.len() as u64;
        let more = if rest > 0 { format!("; and {rest} more") } else { String::new() };
        Err(Error::corrupt(place, format!("{summary}: {}{more}", self.named.join("; "))))
    }
}
