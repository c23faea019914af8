//! A restore's target that is a directory, whatever store lives in it.

use super::files::{self, Jobs, Meter, io};
use super::manifest::ManifestFile;
use super::restore::{
    Claim, CopyIn, RESTORE_MARKER_FILE, RestoreMarker, RestoreStep, RestoreTarget, reached, refuse_if_restoring,
};
use crate::config::CommitModeChoice;
use crate::ops::no_progress;
use crate::{Error, Result};
use async_trait::async_trait;
use atlas_kvs::KeyValueService;
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Opens the store in a directory. Given by whoever knows which store that is; it does not look for a marker.
pub type StoreOpener = Arc<dyn Fn(PathBuf) -> BoxFuture<'static, Result<Arc<dyn KeyValueService>>> + Send + Sync>;

/// A directory to restore into.
#[derive(Clone)]
pub struct DirectoryTarget {
    directory: PathBuf,
    store: String,
    namespace: Option<String>,
    owner_files: Vec<String>,
    opener: StoreOpener,
    commit_mode: CommitModeChoice,
}

impl DirectoryTarget {
    /// The directory `directory` of a store of adapter `store` that `opener` opens. `owner_files` are names of files
    /// in it that only tell who owns it: a directory with nothing else counts as empty.
    pub fn new(
        directory: impl Into<PathBuf>,
        store: impl Into<String>,
        owner_files: Vec<String>,
        opener: StoreOpener,
    ) -> DirectoryTarget {
        let (directory, store) = (directory.into(), store.into());
        DirectoryTarget { directory, store, namespace: None, owner_files, opener, commit_mode: CommitModeChoice::Auto }
    }

    /// The same, for backups of this namespace only.
    pub fn in_namespace(self, namespace: impl Into<String>) -> DirectoryTarget {
        DirectoryTarget { namespace: Some(namespace.into()), ..self }
    }

    /// The same, for a store on which transactions will commit in this way.
    pub fn committing(self, commit_mode: CommitModeChoice) -> DirectoryTarget {
        DirectoryTarget { commit_mode, ..self }
    }

    async fn blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce(&DirectoryTarget) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let target = self.clone();
        Jobs::owned(no_progress()).run(move || work(&target)).await
    }

    /// Names that are neither of the store nor of the backup.
    fn is_ours(&self, path: &str) -> bool {
        path == RESTORE_MARKER_FILE || self.is_trace(path)
    }

    /// Names that say nothing about content: those of the owner, and a marker that was never given its name.
    fn is_trace(&self, path: &str) -> bool {
        let unnamed_marker = files::temporary_name(Path::new(RESTORE_MARKER_FILE));
        Path::new(path) == unnamed_marker || self.owner_files.iter().any(|name| name == path)
    }

    fn claim_now(&self) -> Result<Claim> {
        let directory = &self.directory;
        if directory.exists() && !directory.is_dir() {
            return Err(not_empty(directory, "it is no directory"));
        }
        files::make_dirs(&files::real_path(directory)?)?;
        // The directory itself is locked: a file for it would be one more thing in a directory that must be empty.
        let lock = std::fs::File::open(directory).map_err(io("opening", directory))?;
        match lock.try_lock() {
            Ok(()) => Ok(Claim::new(lock)),
            Err(TryLockError::WouldBlock) => {
                let pid = RestoreMarker::read(directory).ok().flatten().map(|marker| marker.pid);
                Err(Error::StoreInUse { place: directory.display().to_string(), pid })
            }
            Err(TryLockError::Error(error)) => Err(io("locking", directory)(error)),
        }
    }

    fn check_empty_now(&self, bytes: u64) -> Result<()> {
        // The more helpful of the two refusals first.
        refuse_if_restoring(&self.directory)?;
        for entry in files::read_dir(&self.directory)? {
            let name = entry.file_name();
            if !name.to_str().is_some_and(|name| self.is_trace(name)) {
                return Err(not_empty(&self.directory, &format!("it holds {}", name.to_string_lossy())));
            }
        }
        files::check_space(&self.directory, files::with_margin(bytes))
    }

    /// Removes what is not of the backup, and makes the directories its files lie in.
    fn make_room(&self, list: &[ManifestFile]) -> Result<()> {
        let wanted: BTreeSet<&str> = list.iter().filter_map(ManifestFile::store_path).collect();
        if let Some(path) = wanted.iter().find(|path| self.is_ours(path)) {
            return Err(Error::corrupt(self.directory.display().to_string(), format!("a backup can't hold '{path}'")));
        }
        // Skipped before they are looked at: an owner may leave a socket.
        for found in files::list(&self.directory, |path| self.is_ours(path))? {
            if !wanted.contains(found.path.as_str()) {
                let path = self.directory.join(&found.path);
                std::fs::remove_file(&path).map_err(io("removing", &path))?;
            }
        }
        for parent in wanted.iter().filter_map(|path| Path::new(path).parent()) {
            files::make_dirs(&self.directory.join(parent))?;
        }
        Ok(())
    }
}

fn not_empty(directory: &Path, reason: &str) -> Error {
    Error::refused(
        format!("a backup is restored into an empty directory only, and {} is not: {reason}", directory.display()),
        "name a new directory in the configuration given by --into, or move away what is there",
    )
}

/// Copies one file, unless it is there and right.
fn lay_down_file(from: &Path, to: &Path, file: &ManifestFile, meter: &Meter) -> Result<()> {
    let is_right =
        |(size, checksum): (u64, blake3::Hash)| size == file.size && checksum.to_hex().as_str() == file.blake3;
    if std::fs::symlink_metadata(to).is_ok_and(|found| found.is_file() && found.len() == file.size)
        && is_right(files::hash(to, meter)?)
    {
        // It may have been written by a process that was killed before it was synced.
        return std::fs::File::open(to).and_then(|file| file.sync_all()).map_err(io("syncing", to));
    }
    // Checked again while it is copied: between the first look and this one the disk had time to change its mind.
    if is_right(files::copy(from, to, true, meter)?) {
        return Ok(());
    }
    Err(Error::corrupt(from.display().to_string(), "it changed since the backup was verified"))
}

#[async_trait]
impl RestoreTarget for DirectoryTarget {
    fn location(&self) -> String {
        self.directory.display().to_string()
    }

    fn check_apart(&self, repository: &Path) -> Result<()> {
        files::check_apart(repository, &self.directory)
    }

    fn store(&self) -> &str {
        &self.store
    }

    fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    fn commit_mode(&self) -> CommitModeChoice {
        self.commit_mode
    }

    async fn claim(&self) -> Result<Claim> {
        self.blocking(DirectoryTarget::claim_now).await
    }

    async fn check_empty(&self, bytes: u64) -> Result<()> {
        self.blocking(move |target| target.check_empty_now(bytes)).await
    }

    async fn marker(&self) -> Result<Option<RestoreMarker>> {
        self.blocking(|target| RestoreMarker::read(&target.directory)).await
    }

    async fn set_marker(&self, marker: &RestoreMarker) -> Result<()> {
        let marker = marker.clone();
        self.blocking(move |target| marker.write(&target.directory)).await
    }

    async fn lay_down(&self, copy: CopyIn) -> Result<()> {
        let jobs = Jobs::owned(copy.progress);
        let (target, list) = (self.clone(), copy.files.clone());
        jobs.run(move || target.make_room(&list)).await?;
        let meter = jobs.meter(RestoreStep::Copy.name(), copy.files.iter().map(|file| file.size).sum());
        let (from, to, claim) = (copy.directory, self.directory.clone(), copy.claim);
        let lay_down = move |file: ManifestFile| {
            // Moved into the thread: as long as it writes, nobody else may begin to.
            let _claim = &claim;
            reached(RestoreStep::CopyFile)?;
            let path = file.store_path().expect("only files of the store are laid down");
            lay_down_file(&from.join(&file.path), &to.join(path), &file, &meter)
        };
        let answer = jobs.run_each(copy.files, lay_down).await.map(drop);
        // Also after an error: the next attempt must not meet a thread that still writes.
        jobs.end().await;
        answer?;
        let directory = self.directory.clone();
        Jobs::owned(no_progress()).run(move || files::sync_tree(&directory)).await
    }

    async fn open(&self) -> Result<Arc<dyn KeyValueService>> {
        (self.opener)(self.directory.clone()).await
    }

    async fn clear(&self) -> Result<()> {
        self.blocking(|target| target.make_room(&[])).await
    }

    async fn close(&self, kvs: &Arc<dyn KeyValueService>) -> Result<()> {
        Ok(kvs.close().await?)
    }

    async fn remove_marker(&self) -> Result<()> {
        self.blocking(|target| {
            let path = target.directory.join(RESTORE_MARKER_FILE);
            std::fs::remove_file(&path).map_err(io("removing", &path))?;
            files::sync_dir(&target.directory)
        })
        .await
    }
}
