//! Files as backups need them: private, synced, copied with a checksum, on threads that may block.
//!
//! Everything here is either plain blocking code or [`Jobs`], which runs such code on blocking threads and makes sure
//! that it ends soon after its owner is gone.

use super::direct::DirectFile;
use crate::ops::{Progress, ProgressSink};
use crate::{Error, Result};
use futures::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many files are read or written at a time. Two keep a disk busy; more would take memory and the disk's cache
/// from the store that goes on working.
const PARALLEL: usize = 2;

/// How much of a file is in memory at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// Who rests looks so often whether anybody still wants the work.
const LOOK_EVERY: Duration = Duration::from_millis(100);

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Turns an error of the system into ours, with what was being done on which path.
pub(super) fn io(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let what = format!("{what} {}", path.display());
    move |source| Error::io(what, source)
}

/// Makes a directory for its owner only, which must not exist, and makes its name durable.
pub(super) fn make_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().mode(DIRECTORY_MODE).create(path).map_err(io("making directory", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes a directory for its owner only and those above it, where they are missing; durable.
pub(super) fn make_dirs(path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_dirs(parent)?;
    }
    match make_dir(path) {
        // Somebody made it at the same moment.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io("syncing directory", path))
}

/// Makes the names in a directory and in all directories below it durable.
pub(super) fn sync_tree(root: &Path) -> Result<()> {
    for entry in read_dir(root)? {
        if entry.file_type().map_err(io("reading the type of", &entry.path()))?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync_dir(root)
}

/// Writes a file for its owner only, which must not exist. Its content is durable; its name is not yet.
pub(super) fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = create(path, false)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io("writing", path))
}

/// Replaces a file as a whole: after a crash there is the old content or the new one. `before_rename` runs when the
/// new content is durable under the temporary name.
pub(super) fn replace(path: &Path, content: &[u8], before_rename: impl FnOnce() -> Result<()>) -> Result<()> {
    let temporary = temporary_name(path);
    let mut file = create(&temporary, true)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io("writing", &temporary))?;
    before_rename()?;
    std::fs::rename(&temporary, path).map_err(io("renaming a temporary file to", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// The name [`replace`] writes under first.
pub(super) fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// Opens a file for writing, for its owner only.
pub(super) fn create(path: &Path, may_exist: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).mode(FILE_MODE);
    if may_exist {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    options.open(path).map_err(io("creating", path))
}

/// Makes a file that somebody else wrote readable for its owner only, and its content durable.
pub(super) fn make_private(path: &Path) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(FILE_MODE))
        .map_err(io("setting the mode of", path))?;
    File::open(path).and_then(|file| file.sync_all()).map_err(io("syncing", path))
}

/// Reads a file of at most `limit` bytes; `None` if there is none.
///
/// # Errors
/// [`Error::Corrupt`] for a larger one, and for what is no file: it can't be what it is taken for.
pub(super) fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let damaged = |reason: String| Error::corrupt(path.display().to_string(), reason);
    // Looked at before it is opened, because to open a pipe is to wait for its other end.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => (),
        Ok(_) => return Err(damaged("it is no file".to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("opening", path)(error)),
    }
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut content));
    read.map_err(io("reading", path))?;
    if content.len() as u64 > limit {
        return Err(damaged(format!("it has more than {limit} bytes")));
    }
    Ok(Some(content))
}

/// Entries of a directory, in no order.
pub(super) fn read_dir(path: &Path) -> Result<Vec<std::fs::DirEntry>> {
    std::fs::read_dir(path).and_then(Iterator::collect).map_err(io("reading directory", path))
}

/// A file below a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    /// Its path below the directory, with `/` between the parts.
    pub(super) path: String,
    /// Its length in bytes.
    pub(super) size: u64,
}

/// All files below a directory, in the order of their paths, except those to `skip`.
///
/// # Errors
/// [`Error::Corrupt`] for anything else that is neither file nor directory, and for names that are not UTF-8.
pub(super) fn list(root: &Path, skip: impl Fn(&str) -> bool) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    list_below(root, "", &skip, &mut found)?;
    found.sort();
    Ok(found)
}

fn list_below(directory: &Path, prefix: &str, skip: &dyn Fn(&str) -> bool, found: &mut Vec<Found>) -> Result<()> {
    for entry in read_dir(directory)? {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| Error::corrupt(path.display().to_string(), "the name is not UTF-8"))?;
        let relative = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        if skip(&relative) {
            continue;
        }
        // The entry itself, not what a symbolic link leads to: a backup holds data, not ways to data.
        let metadata = entry.metadata().map_err(io("reading the size of", &path))?;
        if metadata.is_dir() {
            list_below(&path, &relative, skip, found)?;
        } else if metadata.is_file() {
            found.push(Found { path: relative, size: metadata.len() });
        } else {
            return Err(Error::corrupt(path.display().to_string(), "it is neither a file nor a directory"));
        }
    }
    Ok(())
}

/// Length and checksum of a file.
pub(super) fn hash(path: &Path, meter: &Meter) -> Result<(u64, blake3::Hash)> {
    let mut file = File::open(path).map_err(io("opening", path))?;
    let mut hashing = Hashing::new(meter);
    let mut buffer = vec![0; CHUNK];
    loop {
        match read_some(&mut file, path, &mut buffer)? {
            0 => return Ok(hashing.finish()),
            len => hashing.add(&buffer[..len])?,
        }
    }
}

/// Copies a file, durably, and tells the length and checksum of what was copied. `may_exist`: replaces a file that is
/// there. Shares the blocks where the file system can, which is as independent of the source as a copy.
pub(super) fn copy(from: &Path, to: &Path, may_exist: bool, meter: &Meter) -> Result<(u64, blake3::Hash)> {
    let mut source = File::open(from).map_err(io("opening", from))?;
    let target = create(to, may_exist)?;
    match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => {
            // The checksum is taken from the copy: what lies there is what has to be right.
            let copied = hash(to, meter)?;
            target.sync_all().map_err(io("syncing", to))?;
            Ok(copied)
        }
        // Another file system, or one that can't share blocks.
        Err(_) => copy_bytes(&mut source, from, DirectFile::of(target, to), meter),
    }
}

fn copy_bytes(source: &mut File, from: &Path, mut target: DirectFile, meter: &Meter) -> Result<(u64, blake3::Hash)> {
    let mut hashing = Hashing::new(meter);
    loop {
        let room = target.room();
        let len = read_some(source, from, room)?;
        if len == 0 {
            target.finish()?;
            return Ok(hashing.finish());
        }
        hashing.add(&room[..len])?;
        target.advance(len)?;
    }
}

/// Reads as much as there is at the moment; nothing at the end of the file.
pub(super) fn read_some(file: &mut File, path: &Path, into: &mut [u8]) -> Result<usize> {
    loop {
        match file.read(into) {
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            read => return read.map_err(io("reading", path)),
        }
    }
}

/// Length and checksum of what passes.
struct Hashing<'a> {
    hasher: blake3::Hasher,
    size: u64,
    meter: &'a Meter,
}

impl Hashing<'_> {
    fn new(meter: &Meter) -> Hashing<'_> {
        Hashing { hasher: blake3::Hasher::new(), size: 0, meter }
    }

    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.meter.add(bytes.len() as u64)
    }

    fn finish(self) -> (u64, blake3::Hash) {
        (self.size, self.hasher.finalize())
    }
}

/// Bytes free for us on the file system of a path, which must exist.
pub(super) fn free_bytes(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).map_err(|error| io("asking for free space at", path)(error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The space that a copy of a store of `bytes` takes: a tenth more and a few MiB, for the files that grow between the
/// estimate and a snapshot, and for what a restored store writes when it is opened.
pub(super) fn with_margin(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 10).saturating_add(4 << 20)
}

/// Refuses to begin what would not fit: `needed` bytes at `path`, which need not exist yet.
pub(super) fn check_space(path: &Path, needed: u64) -> Result<()> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let free = free_bytes(existing)?;
    if free >= needed {
        return Ok(());
    }
    Err(Error::refused(
        format!("{} has {free} bytes free, and {needed} are needed", path.display()),
        "free some space there, or choose another place; nothing was written",
    ))
}

/// A repository inside the store would be lost with it, and might be taken for its data; a store inside the
/// repository would be taken for a backup.
pub(super) fn check_apart(repository: &Path, data_dir: &Path) -> Result<()> {
    let (repository, data_dir) = (real_path(repository)?, real_path(data_dir)?);
    if repository.starts_with(&data_dir) || data_dir.starts_with(&repository) {
        return Err(Error::refused(
            format!("the repository {} and the store's directory {} overlap", repository.display(), data_dir.display()),
            "put backups on another disk, or at least into a directory of their own",
        ));
    }
    Ok(())
}

/// A path without symbolic links and `..`, whose last parts need not exist yet.
pub(super) fn real_path(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(io("resolving", path))?;
    let mut real = PathBuf::new();
    for part in absolute.components() {
        if part == std::path::Component::ParentDir {
            // What stands so far has no links, so its parent is what the system would go to.
            real.pop();
            continue;
        }
        real.push(part);
        match real.canonicalize() {
            Ok(found) => real = found,
            // It will be made, and not as a link.
            Err(error) if error.kind() == ErrorKind::NotFound => (),
            Err(error) => return Err(io("resolving", path)(error)),
        }
    }
    Ok(real)
}

/// Most bytes in a second, for everything that shares it: whoever has done some rests until they are worth their time.
/// Rest is not saved up: after a pause work goes on at the same speed.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    /// When what was done so far is worth its time.
    worth_at: Mutex<Instant>,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second, worth_at: Mutex::new(Instant::now()) }
    }

    /// How long to rest after so many bytes.
    fn rest_after(&self, bytes: u64, now: Instant) -> Duration {
        let takes = Duration::try_from_secs_f64(bytes as f64 / self.bytes_per_second as f64).unwrap_or(Duration::MAX);
        let mut worth_at = self.worth_at.lock();
        *worth_at = (*worth_at).max(now).checked_add(takes).unwrap_or(now);
        worth_at.saturating_duration_since(now)
    }
}

/// Counts what is done, tells it, holds it to the pace, and ends the work when nobody wants it any more.
pub(super) struct Meter {
    progress: ProgressSink,
    step: &'static str,
    done: AtomicU64,
    total: u64,
    cancel: CancellationToken,
    pace: Option<Arc<Pace>>,
}

impl Meter {
    /// Blocks the thread for as long as the pace demands.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the work was cancelled.
    pub(super) fn add(&self, bytes: u64) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::Interrupted);
        }
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(Progress {
            step: self.step.to_owned(),
            done,
            // Of a stream the total is an estimate.
            total: Some(self.total.max(done)),
            unit: "bytes".to_owned(),
        });
        match &self.pace {
            Some(pace) => self.rest(pace.rest_after(bytes, Instant::now())),
            None => Ok(()),
        }
    }

    fn rest(&self, mut left: Duration) -> Result<()> {
        while !left.is_zero() {
            if self.cancel.is_cancelled() {
                return Err(Error::Interrupted);
            }
            let length = left.min(LOOK_EVERY);
            std::thread::sleep(length);
            left -= length;
        }
        Ok(())
    }
}

/// Work on blocking threads. Dropping it ends the work at the next chunk of a file.
pub(super) struct Jobs {
    tracker: TaskTracker,
    cancel: CancellationToken,
    progress: ProgressSink,
    pace: Option<Arc<Pace>>,
}

impl Jobs {
    /// Work that also ends when `parent` is cancelled.
    pub(super) fn new(parent: &CancellationToken, progress: ProgressSink) -> Jobs {
        Jobs { tracker: TaskTracker::new(), cancel: parent.child_token(), progress, pace: None }
    }

    /// From now on these jobs move no more than so many bytes in a second, all together.
    pub(super) fn keep_to(&mut self, bytes_per_second: u64) {
        self.pace = Some(Arc::new(Pace::new(bytes_per_second.max(1))));
    }

    /// Work that ends with its owner only.
    pub(super) fn owned(progress: ProgressSink) -> Jobs {
        Jobs::new(&CancellationToken::new(), progress)
    }

    /// True when nobody wants the work any more.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Returns when the work is cancelled.
    pub(super) async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Is cancelled when nobody wants the work any more.
    pub(super) fn token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Tells that a step has begun.
    pub(super) fn announce(&self, step: &'static str) {
        (self.progress)(Progress { step: step.to_owned(), done: 0, total: None, unit: "steps".to_owned() });
    }

    /// A meter of `total` bytes for these jobs.
    pub(super) fn meter(&self, step: &'static str, total: u64) -> Arc<Meter> {
        Arc::new(Meter {
            progress: Arc::clone(&self.progress),
            step,
            done: AtomicU64::new(0),
            total,
            cancel: self.cancel.clone(),
            pace: self.pace.clone(),
        })
    }

    /// Runs one thing on a blocking thread.
    pub(super) async fn run<R: Send + 'static>(&self, work: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
        joined(self.tracker.spawn_blocking(work).await)
    }

    /// Runs the same for each of a list, a few at a time; answers in no order. Stops at the first error.
    pub(super) async fn run_each<T, R>(
        &self,
        list: Vec<T>,
        work: impl Fn(T) -> Result<R> + Clone + Send + 'static,
    ) -> Result<Vec<R>>
    where
        T: Send + 'static,
        R: Send + 'static,
    {
        self.run_some(PARALLEL, list, work).await
    }

    /// As [`run_each`](Self::run_each), so many at a time.
    pub(super) async fn run_some<T, R>(
        &self,
        at_a_time: usize,
        list: Vec<T>,
        work: impl Fn(T) -> Result<R> + Clone + Send + 'static,
    ) -> Result<Vec<R>>
    where
        T: Send + 'static,
        R: Send + 'static,
    {
        stream::iter(list)
            .map(|item| {
                let work = work.clone();
                let running = self.tracker.spawn_blocking(move || work(item));
                async { joined(running.await) }
            })
            .buffer_unordered(at_a_time)
            .try_collect()
            .await
    }

    /// Cancels what still runs and waits for its end.
    pub(super) async fn end(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The answer of a thread or task. Its panic is ours.
pub(super) fn joined<R>(answer: std::result::Result<Result<R>, tokio::task::JoinError>) -> Result<R> {
    match answer {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down.
        Err(_) => Err(Error::Interrupted),
    }
}

/// Removes a directory with all in it when dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct PartialDir {
    path: PathBuf,
    keep: bool,
}

impl PartialDir {
    /// Takes over a directory that may not exist yet.
    pub(super) fn new(path: PathBuf) -> PartialDir {
        PartialDir { path, keep: false }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// It is whole now and stays.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for PartialDir {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        match std::fs::remove_dir_all(&self.path) {
            Ok(()) => (),
            Err(error) if error.kind() == ErrorKind::NotFound => (),
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "an unfinished directory remains"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept_by_all_together_and_rest_is_not_saved_up() {
        let begun = Instant::now();
        let pace = Pace { bytes_per_second: 1000, worth_at: Mutex::new(begun) };
        let ms = Duration::from_millis;
        assert_eq!(pace.rest_after(500, begun), ms(500));
        assert_eq!(pace.rest_after(250, begun), ms(750), "somebody else has done some");
        assert_eq!(pace.rest_after(250, begun + ms(900)), ms(250), "he came late, and has saved nothing");
        assert_eq!(pace.rest_after(1000, begun + ms(60_000)), ms(1000));
        assert_eq!(pace.rest_after(0, begun + ms(70_000)), ms(0));
    }

    #[test]
    fn whoever_rests_ends_when_the_work_is_cancelled() {
        let mut jobs = Jobs::owned(crate::ops::no_progress());
        jobs.keep_to(1);
        let meter = jobs.meter("copy", 0);
        drop(jobs);
        assert!(matches!(meter.rest(Duration::from_secs(1 << 30)), Err(Error::Interrupted)));
    }

    #[test]
    fn real_paths_have_no_links_and_no_way_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("it exists");
        std::fs::create_dir_all(root.join("a/b")).expect("it can be made");
        std::os::unix::fs::symlink(root.join("a/b"), root.join("link")).expect("it can be made");
        for (path, expected) in [
            ("a", "a"),
            ("a/b/", "a/b"),
            ("link", "a/b"),
            ("link/..", "a"),
            ("link/../new/file", "a/new/file"),
            ("none/../a/./b", "a/b"),
            ("none/../link/x/../y", "a/b/y"),
        ] {
            assert_eq!(real_path(&root.join(path)).expect(path), root.join(expected), "{path}");
            assert!(!real_path(&root.join(path)).expect(path).to_string_lossy().ends_with('/'), "{path}");
        }
    }
}
