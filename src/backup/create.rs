//! Takes a live backup.
//!
//! Transactions go on meanwhile; only deletions wait. The order of the steps is the whole proof, so each says why it
//! stands where it stands. Whatever ends a backup early (an error, a caller who goes away, a panic) releases the lock
//! and removes what was copied. Only a killed process leaves something: a directory without a manifest, which lists
//! show as incomplete, and a lock that nobody renews.

use super::chunks;
use super::contents::Contents;
use super::files::{self, Jobs, PartialDir, io};
use super::lock::{BackupLock, BackupLockGuard};
use super::manifest::{
    BACKUP_TIMESTAMP_FILE, FAST_FORWARD_TIMESTAMP_FILE, FILES_DIRECTORY, MANIFEST_FILE, Manifest, ManifestFile,
    Timings, Totals,
};
use super::nodes::{self, NodeCommands};
use super::portable;
use super::repository::{COMPLETE, Repository, check_id, new_id};
use super::streams;
use super::timestamp_file::format_timestamp_line;
use crate::ops::{BackupInfo, BackupRequest, ProgressSink, TransactionOps};
use crate::rule::Rule;
use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use async_trait::async_trait;
use atlas_kvs::{KeyValueService, NativeSnapshot, OpenSnapshot, StreamSnapshot, TableRef, Timestamp};
use futures::FutureExt;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Directories of this prefix in the store's staging root belong to backups.
const STAGING_PREFIX: &str = "backup-staging-";

/// An open store, as far as a backup needs it.
#[async_trait]
pub trait BackupSource: Send + Sync + 'static {
    /// The store below.
    fn kvs(&self) -> Arc<dyn KeyValueService>;

    /// The namespace of the store.
    fn namespace(&self) -> String;

    /// The identity of the store.
    fn store_id(&self) -> Uuid;

    /// The directory the store lives in, if it lives in one. The repository must lie outside.
    fn data_dir(&self) -> Option<PathBuf>;

    /// A timestamp above all issued before the call.
    async fn fresh_timestamp(&self) -> Result<Timestamp>;

    /// Returns when every commit below `up_to` is applied and no other can be any more. Cancel safe.
    async fn settle(&self, up_to: Timestamp) -> Result<()>;

    /// The backup lock of the store: the one that its deletions pass.
    fn backup_lock(&self) -> BackupLock;

    /// How long the lock outlives its last renewal.
    fn lock_lease(&self) -> Duration;

    /// A read-only transaction that sees the commits below `at`, which are settled, and has no time limit.
    async fn read_at(&self, at: Timestamp) -> Result<Box<dyn TransactionOps>>;

    /// How the nodes of a cluster are snapshotted, where the operator gave commands for it.
    fn node_commands(&self) -> Option<NodeCommands> {
        None
    }

    /// Most bytes that a backup copies in a second where the request says nothing; 0: no limit.
    fn rate_limit(&self) -> u64 {
        0
    }

    /// About how large the files are that streams are cut into, in bytes.
    fn file_size(&self) -> u64 {
        chunks::FILE_SIZE
    }
}

/// How the data of a store are taken.
enum Method {
    /// The store makes a directory of files.
    Files,
    /// The store hands over streams.
    Stream,
    /// Every node of the cluster is snapshotted by a command.
    Nodes(NodeCommands),
    /// A transaction reads everything.
    Portable,
}

/// What the snapshot left to be copied.
enum Taken {
    Files(PathBuf),
    Stream(Box<dyn OpenSnapshot>),
    /// With the tables that were not empty before.
    Nodes(NodeCommands, BTreeSet<TableRef>),
    Portable(Arc<dyn TransactionOps>),
}

impl Method {
    /// What was asked for, or the fastest there is.
    async fn choose(source: &dyn BackupSource, kvs: &dyn KeyValueService, request: &BackupRequest) -> Result<Method> {
        if request.portable {
            return Ok(Method::Portable);
        }
        if kvs.native_snapshot().is_some() {
            return Ok(Method::Files);
        }
        if kvs.stream_snapshot().is_some() {
            return Ok(Method::Stream);
        }
        match source.node_commands().filter(|commands| commands.snapshot.is_some()) {
            Some(commands) => {
                commands.check_complete(kvs).await?;
                Ok(Method::Nodes(commands))
            }
            None => Ok(Method::Portable),
        }
    }

    async fn estimated_bytes(&self, kvs: &dyn KeyValueService) -> Result<u64> {
        match self {
            Method::Files => Ok(native(kvs)?.estimated_bytes().await?),
            Method::Stream => Ok(streams_of(kvs)?.estimated_bytes().await?),
            Method::Portable | Method::Nodes(_) => portable::estimated_bytes(kvs).await,
        }
    }
}

fn native(kvs: &dyn KeyValueService) -> Result<&dyn NativeSnapshot> {
    kvs.native_snapshot().ok_or_else(|| no_snapshots(kvs))
}

fn streams_of(kvs: &dyn KeyValueService) -> Result<&dyn StreamSnapshot> {
    kvs.stream_snapshot().ok_or_else(|| no_snapshots(kvs))
}

/// The steps of a backup, in their order. Fail points have their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackupStep {
    /// Look for everything that would make the backup fail later.
    Preflight,
    /// Make the backup's directory: from here on its name is used.
    Reserve,
    /// Acquire the backup lock.
    Lock,
    /// Draw the backup timestamp.
    BackupTimestamp,
    /// Wait until every commit below it is applied.
    Settle,
    /// Let the store make its snapshot.
    Snapshot,
    /// Draw the fast-forward timestamp.
    FastForwardTimestamp,
    /// Copy the snapshot into the repository.
    Copy,
    /// Copy one file of it.
    CopyFile,
    /// Make sure that the lock is still ours.
    CheckLock,
    /// Write the manifest.
    Manifest,
    /// Give the manifest its name: from here on the backup is complete.
    ManifestRename,
    /// Remember the backup in the store.
    Remember,
    /// Release the lock.
    Release,
    /// Remove the snapshot.
    RemoveStaging,
}

impl BackupStep {
    /// Every step, in order.
    pub const ALL: [BackupStep; 15] = [
        BackupStep::Preflight,
        BackupStep::Reserve,
        BackupStep::Lock,
        BackupStep::BackupTimestamp,
        BackupStep::Settle,
        BackupStep::Snapshot,
        BackupStep::FastForwardTimestamp,
        BackupStep::Copy,
        BackupStep::CopyFile,
        BackupStep::CheckLock,
        BackupStep::Manifest,
        BackupStep::ManifestRename,
        BackupStep::Remember,
        BackupStep::Release,
        BackupStep::RemoveStaging,
    ];

    /// The fail point reached right before the step.
    pub fn fail_point(self) -> &'static str {
        match self {
            BackupStep::Preflight => "backup::preflight",
            BackupStep::Reserve => "backup::reserve",
            BackupStep::Lock => "backup::lock",
            BackupStep::BackupTimestamp => "backup::backup_timestamp",
            BackupStep::Settle => "backup::settle",
            BackupStep::Snapshot => "backup::snapshot",
            BackupStep::FastForwardTimestamp => "backup::fast_forward_timestamp",
            BackupStep::Copy => "backup::copy",
            BackupStep::CopyFile => "backup::copy_file",
            BackupStep::CheckLock => "backup::check_lock",
            BackupStep::Manifest => "backup::manifest",
            BackupStep::ManifestRename => "backup::manifest_rename",
            BackupStep::Remember => "backup::remember",
            BackupStep::Release => "backup::release",
            BackupStep::RemoveStaging => "backup::remove_staging",
        }
    }

    /// The name as progress tells it.
    pub fn name(self) -> &'static str {
        self.fail_point().strip_prefix("backup::").expect("every fail point starts so")
    }
}

/// Reaches a fail point. In a program built without them this does nothing.
pub(super) fn reached(step: BackupStep) -> Result<()> {
    tracing::trace!(step = step.name(), "backup");
    fail::fail_point!(step.fail_point(), |_| Err(Error::Io {
        what: format!("fail point {}", step.fail_point()),
        source: std::io::Error::other("as the test wished"),
    }));
    Ok(())
}

/// The record of the last backup taken from a store.
pub fn last_backup(kvs: Arc<dyn KeyValueService>) -> MetaRecord<BackupInfo> {
    MetaRecord::new(kvs, "last-backup")
}

/// Takes a backup. Progress is told in bytes while files are copied, and step by step otherwise.
///
/// # Errors
/// Before anything is written: [`Error::Usage`] for a name that can't be one, [`Error::AlreadyExists`] for one that
/// is used, [`Error::Refused`] for a repository without space, inside the store's directory or around it.
/// [`Error::BackupLockHeld`] while another backup runs. [`Error::NodesMissing`] if a node of a cluster gave no
/// snapshot. [`Error::BackupVoid`] if the
/// backup lock was lost meanwhile. [`Error::Io`] for a full disk and the like. After any error, nothing of the backup
/// is left.
///
/// Dropping the future ends the backup: the lock is released and what was copied is removed, in a task of its own.
/// A program that is about to exit uses [`create_until`] instead, to see the end of that.
pub async fn create(
    source: Arc<dyn BackupSource>,
    request: BackupRequest,
    progress: ProgressSink,
) -> Result<BackupInfo> {
    create_until(source, request, progress, CancellationToken::new()).await
}

/// As [`create`], until `cancel` is cancelled: then it tidies up and answers [`Error::Interrupted`]. A backup that is
/// complete by then is finished instead.
///
/// # Errors
/// As [`create`], and [`Error::Interrupted`].
pub async fn create_until(
    source: Arc<dyn BackupSource>,
    request: BackupRequest,
    progress: ProgressSink,
    cancel: CancellationToken,
) -> Result<BackupInfo> {
    let cancel = cancel.child_token();
    // A task of its own, so that what must be undone is undone even if nobody waits for the answer any more.
    let _when_dropped = cancel.clone().drop_guard();
    let attempt =
        Attempt { source, jobs: Jobs::new(&cancel, progress), lock: None, target: None, reserved: None, staging: None };
    match tokio::spawn(attempt.run(request)).await {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down.
        Err(_) => Err(Error::Interrupted),
    }
}

/// A backup under way, with everything that has to be undone if it fails.
struct Attempt {
    source: Arc<dyn BackupSource>,
    // Before the directories: fields are dropped in this order, and the copies must end before what they write into
    // is removed.
    jobs: Jobs,
    staging: Option<PartialDir>,
    target: Option<PartialDir>,
    /// The backup's directory, locked for as long as it is written into.
    reserved: Option<File>,
    lock: Option<BackupLockGuard>,
}

/// What is known about a backup before it begins.
struct Plan {
    repository: Repository,
    id: String,
    reason: String,
    started: jiff::Timestamp,
    clock: Instant,
    /// Bytes that it will hold, estimated.
    estimate: u64,
}

impl Attempt {
    async fn run(mut self, request: BackupRequest) -> Result<BackupInfo> {
        let answer = AssertUnwindSafe(self.take(request)).catch_unwind().await;
        self.undo().await;
        answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    async fn take(&mut self, request: BackupRequest) -> Result<BackupInfo> {
        match request.rate_limit.unwrap_or(self.source.rate_limit()) {
            0 => (),
            bytes_per_second => self.jobs.keep_to(bytes_per_second),
        }
        let kvs = self.source.kvs();
        let method = Method::choose(self.source.as_ref(), kvs.as_ref(), &request).await?;
        let mut timings = Timings::default();

        // First, because it costs nothing: what can be known to fail must not stop a single deletion.
        self.begin(BackupStep::Preflight)?;
        let plan = self.preflight(method.estimated_bytes(kvs.as_ref()).await?, request).await?;
        self.begin(BackupStep::Reserve)?;
        let left_over = self.reserve(&plan).await?;

        // Before the timestamp: from the moment there is a state to restore, nothing of it may be removed.
        self.begin(BackupStep::Lock)?;
        let clock = Instant::now();
        let lock_id = self.acquire(&plan.reason).await?;
        timings.lock_ms = millis(clock);
        if let Some(directory) = left_over {
            self.adopt(directory).await?;
        }
        if let Method::Files = method {
            self.remove_left_over_staging(native(kvs.as_ref())?.staging_root()).await?;
        }

        self.begin(BackupStep::BackupTimestamp)?;
        let backup_ts = self.source.fresh_timestamp().await?;
        self.write_timestamp(BACKUP_TIMESTAMP_FILE, backup_ts).await?;

        let too_early = match Rule::FastForwardAfterSnapshot.is_kept() {
            true => None,
            false => Some(self.source.fresh_timestamp().await?),
        };

        // Before the snapshot: a commit below `backup_ts` that were applied after it would be missing in the copy.
        self.begin(BackupStep::Settle)?;
        let clock = Instant::now();
        self.unless_cancelled(self.source.settle(backup_ts)).await?;
        timings.settle_ms = millis(clock);

        self.begin(BackupStep::Snapshot)?;
        let clock = Instant::now();
        let taken = self.snapshot(kvs.as_ref(), method, &plan, backup_ts).await?;
        timings.snapshot_ms = millis(clock);

        // After the snapshot: above every number in it, which is what makes it safe to go on from there. It need not
        // wait for the copy, because nothing changes in the snapshot any more. (What a transaction reads of a portable
        // backup lies below the backup timestamp, whenever it is read.)
        self.begin(BackupStep::FastForwardTimestamp)?;
        let fast_forward_ts = match too_early {
            None => self.source.fresh_timestamp().await?,
            Some(fast_forward_ts) => fast_forward_ts,
        };
        self.write_timestamp(FAST_FORWARD_TIMESTAMP_FILE, fast_forward_ts).await?;

        self.begin(BackupStep::Copy)?;
        let clock = Instant::now();
        let (mut files, contents) = self.copy(kvs.as_ref(), taken, plan.estimate).await?;
        files.push(timestamp_entry(BACKUP_TIMESTAMP_FILE, backup_ts));
        files.push(timestamp_entry(FAST_FORWARD_TIMESTAMP_FILE, fast_forward_ts));
        files.sort_by(|a, b| a.path.cmp(&b.path));
        timings.copy_ms = millis(clock);

        // After everything the lock protects, and before anything claims to be a backup: if somebody cleared the lock
        // before the snapshot was made, a deletion may have removed what `backup_ts` needs.
        self.begin(BackupStep::CheckLock)?;
        self.lock.as_ref().expect("it was acquired").check().await?;

        // Last: a directory without a manifest is no backup, whatever else is in it.
        self.begin(BackupStep::Manifest)?;
        timings.total_ms = millis(plan.clock);
        let manifest = Manifest {
            version: Manifest::version_of(&contents),
            id: plan.id,
            state: COMPLETE.to_owned(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            store: kvs.capabilities().store.to_owned(),
            namespace: self.source.namespace(),
            store_id: self.source.store_id(),
            backup_ts,
            fast_forward_ts,
            started: rfc3339(plan.started),
            finished: rfc3339(jiff::Timestamp::now()),
            timings,
            lock_id,
            totals: Totals::of(&files).ok_or_else(|| Error::corrupt("the snapshot", "its size is no number"))?,
            contents,
            files,
        };
        self.write_manifest(&manifest).await?;

        // From here on the backup is complete and stays, whatever happens; what follows can be done by hand.
        let info = manifest.info();
        reached(BackupStep::Remember)?;
        if let Err(error) = remember(Arc::clone(&kvs), &info).await {
            tracing::warn!(backup = info.id, %error, "the store does not know of its last backup");
        }
        // After the manifest, though the snapshot needs it no longer: until then there is something to be void, and
        // the lock is what keeps a second backup away.
        reached(BackupStep::Release)?;
        self.release().await;
        // Without the lock: it is invisible to everybody else, and the next backup would remove it.
        reached(BackupStep::RemoveStaging)?;
        Ok(info)
    }

    /// Before a step: the fail point, and the last moment to stop.
    fn begin(&self, step: BackupStep) -> Result<()> {
        reached(step)?;
        self.jobs.announce(step.name());
        if self.jobs.is_cancelled() { Err(Error::Interrupted) } else { Ok(()) }
    }

    async fn unless_cancelled<T>(&self, waiting: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.jobs.cancelled() => Err(Error::Interrupted),
            answer = waiting => answer,
        }
    }

    async fn preflight(&self, estimate: u64, request: BackupRequest) -> Result<Plan> {
        let (clock, started) = (Instant::now(), jiff::Timestamp::now());
        let id = request.name.unwrap_or_else(|| new_id(started));
        check_id(&id)?;
        let needed = files::with_margin(estimate);
        let (root, data_dir) = (request.repository, self.source.data_dir());
        let (used, repository) = self
            .jobs
            .run({
                let id = id.clone();
                move || {
                    if let Some(data_dir) = data_dir {
                        files::check_apart(&root, &data_dir)?;
                    }
                    files::check_space(&root, needed)?;
                    let repository = Repository::open_or_create(&root)?;
                    let directory = repository.directory(&id);
                    // One without a manifest may be a left-over, which is looked at when it is its turn.
                    let used = directory.exists() && (!directory.is_dir() || directory.join(MANIFEST_FILE).exists());
                    Ok((used, repository))
                }
            })
            .await?;
        if used {
            return Err(name_used(&id, &repository));
        }
        let reason = request.reason.unwrap_or_else(|| format!("backup {id}"));
        Ok(Plan { repository, id, reason, started, clock, estimate })
    }

    /// Makes the backup's directory. The system lets one caller win, so a name is never used twice.
    /// It is locked too, for as long as it is written: so what a killed backup left is told apart from what another
    /// one, perhaps of another store, is writing now. Answers the directory if it holds such left-overs.
    async fn reserve(&mut self, plan: &Plan) -> Result<Option<PathBuf>> {
        let directory = plan.repository.directory(&plan.id);
        let path = directory.clone();
        let reserved = self.jobs.run(move || reserve_directory(&path)).await?;
        match reserved {
            Reserved::New(file) => {
                self.reserved = file;
                self.target = Some(PartialDir::new(directory));
                Ok(None)
            }
            Reserved::LeftOver(file) => {
                self.reserved = Some(file);
                Ok(Some(directory))
            }
            Reserved::Used => Err(name_used(&plan.id, &plan.repository)),
            Reserved::Written => Err(Error::AlreadyExists {
                what: format!(
                    "backup '{}' in {}, which another backup is writing now,",
                    plan.id,
                    plan.repository.root().display()
                ),
            }),
            Reserved::Unclear => Err(Error::refused(
                format!(
                    "{} is incomplete: it has no {MANIFEST_FILE}, and it can't be told to be the left-over of an \
                     interrupted backup",
                    directory.display()
                ),
                "remove that directory if nobody needs it, or choose another --name",
            )),
        }
    }

    /// Clears what a killed backup left under our name. Only now: we hold the backup lock and that of the directory.
    async fn adopt(&mut self, directory: PathBuf) -> Result<()> {
        tracing::info!(path = %directory.display(), "clearing what an interrupted backup left");
        self.target = Some(PartialDir::new(directory.clone()));
        self.jobs
            .run(move || {
                for entry in files::read_dir(&directory)? {
                    let path = entry.path();
                    let is_dir = entry.file_type().map_err(io("reading the type of", &path))?.is_dir();
                    let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                    removed.map_err(io("removing", &path))?;
                }
                Ok(())
            })
            .await
    }

    async fn acquire(&mut self, reason: &str) -> Result<Uuid> {
        let (lock, lease) = (self.source.backup_lock(), self.source.lock_lease());
        // A deletion under way may take its time, and nobody has to wait for it: what is dropped is taken back.
        let guard = self.unless_cancelled(lock.acquire_renewed(reason, lease)).await?;
        let lock_id = guard.record().lock_id;
        self.lock = Some(guard);
        Ok(lock_id)
    }

    /// Removes snapshots of backups that were killed. We hold the lock, so no other backup is under way.
    async fn remove_left_over_staging(&self, root: &Path) -> Result<()> {
        let root = root.to_owned();
        self.jobs
            .run(move || {
                if !root.exists() {
                    return files::make_dirs(&root);
                }
                for entry in files::read_dir(&root)? {
                    if entry.file_name().to_string_lossy().starts_with(STAGING_PREFIX) {
                        tracing::info!(path = %entry.path().display(), "removing the snapshot of a killed backup");
                        match std::fs::remove_dir_all(entry.path()) {
                            // The backup before this one has released its lock and is removing its own.
                            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
                            removed => removed.map_err(io("removing", &entry.path()))?,
                        }
                    }
                }
                Ok(())
            })
            .await
    }

    async fn write_timestamp(&self, name: &str, ts: Timestamp) -> Result<()> {
        let path = self.target_dir().join(name);
        self.jobs.run(move || files::write_new(&path, format_timestamp_line(ts).as_bytes())).await
    }

    async fn snapshot(
        &mut self,
        kvs: &dyn KeyValueService,
        method: Method,
        plan: &Plan,
        backup_ts: Timestamp,
    ) -> Result<Taken> {
        Ok(match method {
            Method::Files => {
                let native = native(kvs)?;
                let staging = native.staging_root().join(format!("{STAGING_PREFIX}{}", Uuid::new_v4()));
                let staging = self.staging.insert(PartialDir::new(staging)).path().to_owned();
                // Not interrupted: it only links files, and a snapshot that went on behind our back would never be
                // removed.
                native.snapshot_into(&staging).await?;
                Taken::Files(staging)
            }
            Method::Stream => {
                let begun = async { streams_of(kvs)?.begin().await.map_err(Error::from) };
                Taken::Stream(self.unless_cancelled(begun).await?)
            }
            Method::Nodes(commands) => {
                let directory = self.make_files_directory().await?;
                let filled = nodes::filled_tables(kvs).await?;
                // Of this attempt alone: what another one left on a node, or another store has there under the same name
                // of a backup, is not taken for it. Who looks at the node recognises the backup all the same.
                let lock_id = self.lock.as_ref().expect("it was acquired").record().lock_id;
                commands.snapshot_into(&self.jobs, &format!("atlas-{}-{lock_id}", plan.id), &directory).await?;
                Taken::Nodes(commands, filled)
            }
            // It registers as a reader, so that nothing it needs would go away even without the lock.
            Method::Portable => Taken::Portable(self.unless_cancelled(self.source.read_at(backup_ts)).await?.into()),
        })
    }

    async fn copy(
        &self,
        kvs: &dyn KeyValueService,
        taken: Taken,
        estimate: u64,
    ) -> Result<(Vec<ManifestFile>, Contents)> {
        let file_size = self.source.file_size();
        let directory = self.target_dir().join(FILES_DIRECTORY);
        let copied = match taken {
            Taken::Files(staging) => (self.copy_files(&staging).await?, Contents::Files),
            Taken::Stream(snapshot) => {
                self.make_files_directory().await?;
                streams::copy_out(&self.jobs, snapshot, &directory, file_size).await?
            }
            Taken::Nodes(commands, filled) => commands.collect(&self.jobs, kvs, &directory, &filled).await?,
            Taken::Portable(reader) => {
                self.make_files_directory().await?;
                portable::copy_out(&self.jobs, kvs, reader, &directory, file_size, estimate).await?
            }
        };
        self.jobs.run(move || files::sync_tree(&directory)).await?;
        Ok(copied)
    }

    async fn make_files_directory(&self) -> Result<PathBuf> {
        let directory = self.target_dir().join(FILES_DIRECTORY);
        let path = directory.clone();
        self.jobs.run(move || files::make_dir(&path)).await?;
        Ok(directory)
    }

    async fn copy_files(&self, staging: &Path) -> Result<Vec<ManifestFile>> {
        let target = self.make_files_directory().await?;
        let found = self
            .jobs
            .run({
                let (staging, target) = (staging.to_owned(), target.clone());
                move || {
                    let found = files::list(&staging, |_| false)?;
                    for parent in found.iter().filter_map(|file| Path::new(&file.path).parent()) {
                        files::make_dirs(&target.join(parent))?;
                    }
                    Ok(found)
                }
            })
            .await?;
        let meter = self.jobs.meter(BackupStep::Copy.name(), found.iter().map(|file| file.size).sum());
        let staging = staging.to_owned();
        let copied = self.jobs.run_each(found, move |file| {
            reached(BackupStep::CopyFile)?;
            let (size, checksum) = files::copy(&staging.join(&file.path), &target.join(&file.path), false, &meter)?;
            let path = format!("{FILES_DIRECTORY}/{}", file.path);
            Ok(ManifestFile { path, size, blake3: checksum.to_hex().to_string() })
        });
        copied.await
    }

    async fn write_manifest(&mut self, manifest: &Manifest) -> Result<()> {
        let directory = self.target_dir().to_owned();
        let content = manifest.encode();
        let write = move || {
            // The timestamp files and the directory of files have names that must be there before the manifest's.
            files::sync_dir(&directory)?;
            files::replace(&directory.join(MANIFEST_FILE), &content, || reached(BackupStep::ManifestRename))
        };
        self.jobs.run(write).await?;
        self.target.as_mut().expect("it was reserved").keep();
        Ok(())
    }

    async fn release(&mut self) {
        if let Some(lock) = self.lock.take()
            && let Err(error) = lock.release().await
        {
            tracing::warn!(%error, "the backup lock was not released; `atlas backup-lock --release` clears it");
        }
    }

    /// Undoes what is not finished; after a success only the snapshot.
    async fn undo(mut self) {
        // First the copies: they write into what is removed next.
        self.jobs.end().await;
        let directories = (self.target.take(), self.staging.take());
        // Not `jobs`, which take no work any more. Nothing is lost if the runtime drops it: the directories are
        // removed where they are dropped.
        let _ = tokio::task::spawn_blocking(move || drop(directories)).await;
        // Last, so that nobody who waits for the lock finds our left-overs.
        self.release().await;
    }

    fn target_dir(&self) -> &Path {
        self.target.as_ref().expect("it was reserved").path()
    }
}

/// What became of reserving a name.
enum Reserved {
    /// The directory was made; locked where the file system can.
    New(Option<File>),
    /// It was left by a backup that did not get to its manifest, and nobody writes it.
    LeftOver(File),
    /// There is a backup of this name.
    Used,
    /// Somebody is writing it.
    Written,
    /// There is something else, or nobody can tell.
    Unclear,
}

fn reserve_directory(path: &Path) -> Result<Reserved> {
    let made = match files::make_dir(path) {
        Ok(()) => true,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    let file = File::open(path).map_err(io("opening", path))?;
    match file.try_lock() {
        Ok(()) if made => return Ok(Reserved::New(Some(file))),
        Ok(()) => {}
        // Between making and locking, another one took it for a left-over.
        Err(TryLockError::WouldBlock) => return Ok(Reserved::Written),
        // A file system without locks: a name that is new is ours all the same.
        Err(TryLockError::Error(_)) if made => return Ok(Reserved::New(None)),
        Err(TryLockError::Error(_)) => return Ok(Reserved::Unclear),
    }
    if path.join(MANIFEST_FILE).exists() || !path.is_dir() {
        return Ok(Reserved::Used);
    }
    // Removed or replaced while we looked.
    let (ours, there) = (file.metadata().map_err(io("looking at", path))?, std::fs::metadata(path));
    if !there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
        return Ok(Reserved::Written);
    }
    // Nothing is removed that a backup can't have written.
    let unnamed_manifest = files::temporary_name(Path::new(MANIFEST_FILE));
    let names: Vec<OsString> = files::read_dir(path)?.into_iter().map(|entry| entry.file_name()).collect();
    let is_ours = |name: &OsString| {
        name == BACKUP_TIMESTAMP_FILE
            || name == FAST_FORWARD_TIMESTAMP_FILE
            || name == FILES_DIRECTORY
            || name == unnamed_manifest.as_os_str()
    };
    let is_left_over =
        names.iter().all(is_ours) && (names.is_empty() || names.iter().any(|n| n == BACKUP_TIMESTAMP_FILE));
    Ok(if is_left_over { Reserved::LeftOver(file) } else { Reserved::Unclear })
}

/// Writes the record of the last backup. One that another backup wrote meanwhile is replaced: it was earlier.
async fn remember(kvs: Arc<dyn KeyValueService>, info: &BackupInfo) -> Result<()> {
    let record = last_backup(kvs);
    let mut found = record.load().await?;
    loop {
        match record.replace(found.as_ref().map(|(_, bytes)| bytes), Some(info)).await? {
            Replaced::Done(_) => return Ok(()),
            Replaced::Other(other) => found = other,
        }
    }
}

fn timestamp_entry(path: &str, ts: Timestamp) -> ManifestFile {
    let content = format_timestamp_line(ts);
    let checksum = blake3::hash(content.as_bytes()).to_hex().to_string();
    ManifestFile { path: path.to_owned(), size: content.len() as u64, blake3: checksum }
}

/// It had some when the method was chosen.
fn no_snapshots(kvs: &dyn KeyValueService) -> Error {
    Error::Unavailable {
        what: format!("the snapshot of the {} store", kvs.capabilities().store),
        reason: "the store takes none any more".to_owned(),
    }
}

fn name_used(id: &str, repository: &Repository) -> Error {
    Error::AlreadyExists { what: format!("backup '{id}' in {}", repository.root().display()) }
}

pub(super) fn rfc3339(time: jiff::Timestamp) -> String {
    // Milliseconds are what a person can use.
    time.round(jiff::Unit::Millisecond).unwrap_or(time).to_string()
}

pub(super) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
