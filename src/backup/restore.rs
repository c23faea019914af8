//! Restores a backup into an empty store.
//!
//! A restore that was killed must never look like a whole store. Therefore a marker is the first thing in the target
//! and the last thing to go, every opener refuses a target that has one ([`refuse_if_restoring`]), and the marker
//! says everything that is needed to go on:
//!
//! ```text
//!   verify the backup ─ target empty? ─ MARKER ─ copy ─ open ─ new identity ─ clean ─ fast-forward ─ clear the lock
//!                                         │       └ again from here ┘ └──── again from here, each step repeatable
//!                                         └───────────────────────────────────── verify ─ close ─ marker removed
//! ```
//!
//! What is not files (a stream, cells, what nodes gave) is loaded into the open store, which is emptied first; so that
//! too can begin again until the step that opens the store for good.
//!
//! The border between the two ways to go on lies before the store is opened for the first time: an opened store has
//! changed its files, and files of the backup laid among them would make a mixture.

use super::clean::{CleanReport, FastForwardReport, clean_transactions, fast_forward};
use super::contents::Contents;
use super::create::{last_backup, millis, rfc3339};
use super::files::{self, Jobs};
use super::lock::BackupLock;
use super::manifest::{BACKUP_TIMESTAMP_FILE, FAST_FORWARD_TIMESTAMP_FILE, FILES_DIRECTORY, Manifest, ManifestFile};
use super::nodes::{self, NodeCommands};
use super::repository::Repository;
use super::verify::{self, RestoredReport, verify_restored};
use super::{portable, streams};
use crate::config::CommitModeChoice;
use crate::ops::ProgressSink;
use crate::schema::{MetaRecord, Replaced, StoreRecord, TokenRecord};
use crate::timestamp::OracleRecord;
use crate::transaction::commit_mode_for;
use crate::{Error, Result};
use async_trait::async_trait;
use atlas_kvs::{KeyValueService, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use uuid::Uuid;

/// Name of the marker in a directory that is being restored into.
pub const RESTORE_MARKER_FILE: &str = "RESTORE-IN-PROGRESS";

/// Version of the marker this program writes and reads.
const MARKER_VERSION: u32 = 1;

/// Longest marker read, in bytes.
const MARKER_LEN_MAX: u64 = 64 << 10;

/// The steps of a restore, in their order. Fail points have their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreStep {
    /// Verify the backup, every checksum of it.
    Verify,
    /// Make sure that the target is empty.
    CheckEmpty,
    /// Write the marker.
    Marker,
    /// Copy the files of the store.
    Copy,
    /// Copy one of them, or load what one node gave.
    CopyFile,
    /// Open the store.
    Open,
    /// Let the nodes of a cluster agree on what they hold, where there are some.
    Repair,
    /// Give the store an identity of its own, and forget what was true of the original only.
    Identity,
    /// Declare commits at or above the backup timestamp rolled back.
    Clean,
    /// Go on above the fast-forward timestamp.
    FastForward,
    /// Clear the backup lock that came along in the copy.
    ReleaseLock,
    /// Verify the store.
    VerifyRestored,
    /// Close the store.
    Close,
    /// Remove the marker: from here on the store is whole.
    RemoveMarker,
}

impl RestoreStep {
    /// Every step, in order.
    pub const ALL: [RestoreStep; 14] = [
        RestoreStep::Verify,
        RestoreStep::CheckEmpty,
        RestoreStep::Marker,
        RestoreStep::Copy,
        RestoreStep::CopyFile,
        RestoreStep::Open,
        RestoreStep::Repair,
        RestoreStep::Identity,
        RestoreStep::Clean,
        RestoreStep::FastForward,
        RestoreStep::ReleaseLock,
        RestoreStep::VerifyRestored,
        RestoreStep::Close,
        RestoreStep::RemoveMarker,
    ];

    /// The fail point reached right before the step.
    pub fn fail_point(self) -> &'static str {
        match self {
            RestoreStep::Verify => "restore::verify",
            RestoreStep::CheckEmpty => "restore::check_empty",
            RestoreStep::Marker => "restore::marker",
            RestoreStep::Copy => "restore::copy",
            RestoreStep::CopyFile => "restore::copy_file",
            RestoreStep::Open => "restore::open",
            RestoreStep::Identity => "restore::identity",
            RestoreStep::Repair => "restore::repair",
            RestoreStep::Clean => "restore::clean",
            RestoreStep::FastForward => "restore::fast_forward",
            RestoreStep::ReleaseLock => "restore::release_lock",
            RestoreStep::VerifyRestored => "restore::verify_restored",
            RestoreStep::Close => "restore::close",
            RestoreStep::RemoveMarker => "restore::remove_marker",
        }
    }

    /// The name as progress tells it.
    pub fn name(self) -> &'static str {
        self.fail_point().strip_prefix("restore::").expect("every fail point starts so")
    }
}

/// Reaches a fail point. In a program built without them this does nothing.
pub(super) fn reached(step: RestoreStep) -> Result<()> {
    tracing::trace!(step = step.name(), "restore");
    fail::fail_point!(step.fail_point(), |_| Err(Error::Io {
        what: format!("fail point {}", step.fail_point()),
        source: std::io::Error::other("as the test wished"),
    }));
    Ok(())
}

/// Says that a directory is being restored into, from what, and how far that has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreMarker {
    /// Version of the marker.
    pub version: u32,
    /// The backup.
    pub backup_id: String,
    /// The repository it lies in, absolute.
    pub repository: PathBuf,
    /// Checksum of what its manifest says, in hexadecimal digits: the same backup is needed to go on.
    pub manifest: String,
    /// The step that has begun.
    pub step: RestoreStep,
    /// When the restore was started, RFC 3339.
    pub started: String,
    /// The process that works, or worked, on it.
    pub pid: u32,
}

impl RestoreMarker {
    pub(super) fn read(directory: &Path) -> Result<Option<RestoreMarker>> {
        let path = directory.join(RESTORE_MARKER_FILE);
        let Some(content) = files::read_limited(&path, MARKER_LEN_MAX)? else { return Ok(None) };
        let damaged = |reason: String| {
            Error::corrupt(
                path.display().to_string(),
                format!("{reason}; empty the directory and begin the restore again"),
            )
        };
        let marker: RestoreMarker =
            serde_json::from_slice(&content).map_err(|error| damaged(format!("it is no marker: {error}")))?;
        if marker.version != MARKER_VERSION {
            return Err(damaged(format!("its version is {}, this program reads {MARKER_VERSION}", marker.version)));
        }
        Ok(Some(marker))
    }

    /// The marker in a record of a store.
    pub(super) fn of_json(place: &str, content: serde_json::Value) -> Result<RestoreMarker> {
        let damaged =
            |reason: String| Error::corrupt(place, format!("{reason}; empty the store and begin the restore again"));
        let marker: RestoreMarker = serde_json::from_value(content)
            .map_err(|error| damaged(format!("the marker of a restore can't be read: {error}")))?;
        match marker.version {
            MARKER_VERSION => Ok(marker),
            other => Err(damaged(format!("its marker has version {other}, this program reads {MARKER_VERSION}"))),
        }
    }

    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let mut content = serde_json::to_vec_pretty(self).expect("a marker is plain data");
        content.push(b'\n');
        files::replace(&directory.join(RESTORE_MARKER_FILE), &content, || Ok(()))
    }
}

/// Refuses a data directory in which a restore was not finished. Every opener of a store asks this first.
///
/// # Errors
/// [`Error::Refused`] with the command that finishes the restore, also for a marker that can't be read. Blocks the
/// thread for a moment.
pub fn refuse_if_restoring(data_dir: &Path) -> Result<()> {
    let path = data_dir.join(RESTORE_MARKER_FILE);
    match std::fs::symlink_metadata(&path) {
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(());
        }
        Err(error) => return Err(files::io("looking for", &path)(error)),
        Ok(_) => (),
    }
    let detail = match RestoreMarker::read(data_dir) {
        Ok(Some(marker)) => format!(" (backup '{}', stopped at step '{}')", marker.backup_id, marker.step.name()),
        _ => String::new(),
    };
    Err(Error::refused(
        format!("{} holds a restore that was not finished{detail}, so it is no whole store", data_dir.display()),
        "`atlas backup restore --resume --into CONFIG` finishes it, with the configuration of this store",
    ))
}

/// Where a backup is restored into.
#[async_trait]
pub trait RestoreTarget: Send + Sync {
    /// Where it is, for people.
    fn location(&self) -> String;

    /// Refuses a repository that overlaps with the place: one would be taken for a part of the other. Blocks the
    /// thread for a moment.
    fn check_apart(&self, repository: &Path) -> Result<()>;

    /// The adapter of the store to fill. It must be that of the backup, unless that is portable.
    fn store(&self) -> &str;

    /// The namespace of the store to fill; `None` takes any.
    fn namespace(&self) -> Option<&str>;

    /// How transactions will commit on the store.
    fn commit_mode(&self) -> CommitModeChoice {
        CommitModeChoice::Auto
    }

    /// How the nodes of the cluster take files back, where the operator gave commands for it.
    fn node_commands(&self) -> Option<&NodeCommands> {
        None
    }

    /// Keeps every other restore away while the claim lives. Makes an empty place if there is none.
    ///
    /// # Errors
    /// [`Error::StoreInUse`] while another one works on it.
    async fn claim(&self) -> Result<Claim>;

    /// Refuses a place that holds anything, or has no room for `bytes`.
    async fn check_empty(&self, bytes: u64) -> Result<()>;

    /// The marker, if a restore was not finished.
    async fn marker(&self) -> Result<Option<RestoreMarker>>;

    /// Writes the marker, durably and as a whole.
    async fn set_marker(&self, marker: &RestoreMarker) -> Result<()>;

    /// Makes the target hold exactly the files of the backup and the marker. What is there and right is kept.
    ///
    /// # Errors
    /// [`Error::Refused`] for a place that is no directory.
    async fn lay_down(&self, copy: CopyIn) -> Result<()>;

    /// Makes the target hold nothing but the marker: what an earlier attempt left there goes away.
    async fn clear(&self) -> Result<()>;

    /// Opens the store below, though there is a marker.
    async fn open(&self) -> Result<Arc<dyn KeyValueService>>;

    /// Closes what [`open`](Self::open) gave, so that it can be opened again.
    async fn close(&self, kvs: &Arc<dyn KeyValueService>) -> Result<()>;

    /// Removes the marker, durably.
    async fn remove_marker(&self) -> Result<()>;
}

/// Keeps other restores away while it, or a clone, lives.
#[derive(Clone, Debug)]
pub struct Claim {
    // Held for what ends when the last clone is dropped.
    _held: Arc<dyn std::any::Any + Send + Sync>,
}

impl Claim {
    /// A claim that lasts until `held` is dropped: a locked file, or a task that renews a record.
    pub fn new(held: impl std::any::Any + Send + Sync) -> Claim {
        Claim { _held: Arc::new(held) }
    }
}

/// What to lay down.
#[derive(Clone)]
pub struct CopyIn {
    /// The directory of the backup; the files' paths begin there.
    pub directory: PathBuf,
    /// The files of the store.
    pub files: Vec<ManifestFile>,
    /// Keep a clone of it as long as anything is being written.
    pub claim: Claim,
    /// Where progress goes, in bytes.
    pub progress: ProgressSink,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The backup.
    pub id: String,
    /// Where it was restored into.
    pub location: String,
    /// True if an earlier restore was finished.
    pub resumed: bool,
    /// The state that was restored: commits below this.
    pub backup_ts: Timestamp,
    /// Nothing at or below this is ever issued again.
    pub fast_forward_ts: Timestamp,
    /// The store's new identity.
    pub store_id: Uuid,
    /// Files of the store.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What `clean-transactions` did.
    pub clean: CleanReport,
    /// What `fast-forward` did.
    pub fast_forward: FastForwardReport,
    /// What the verification of the store saw.
    pub verified: RestoredReport,
    /// The same by hand: commands for a shell; none where there is no other way.
    pub commands: Vec<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// Restores a backup into an empty target.
///
/// # Errors
/// [`Error::NotFound`] if there is no such backup and [`Error::Corrupt`] if it is damaged, before anything is
/// written; [`Error::Refused`] for a target that is not empty, has no room, or belongs to another adapter or
/// namespace; [`Error::StoreInUse`] while another restore works on it. After any later error, or if the future is
/// dropped, the target refuses to open, and [`resume`] goes on.
pub async fn restore(
    repository: &Repository,
    id: &str,
    target: &dyn RestoreTarget,
    progress: &ProgressSink,
) -> Result<RestoreReport> {
    let clock = Instant::now();
    let jobs = Jobs::owned(Arc::clone(progress));
    // All of it before anything is written: a damaged backup must not cost the time it takes to find out later.
    announce(&jobs, RestoreStep::Verify)?;
    let id = repository.resolve(id).await?;
    let manifest = repository.manifest(&id).await?;
    check_fits(&manifest, target)?;
    target.check_apart(repository.root())?;
    verify::check_files(repository, &manifest, &jobs).await?;

    announce(&jobs, RestoreStep::CheckEmpty)?;
    let claim = target.claim().await?;
    target.check_empty(manifest.totals.bytes).await?;

    announce(&jobs, RestoreStep::Marker)?;
    let marker = RestoreMarker {
        version: MARKER_VERSION,
        backup_id: id,
        repository: repository.root().to_owned(),
        manifest: fingerprint(&manifest),
        step: RestoreStep::Copy,
        started: rfc3339(jiff::Timestamp::now()),
        pid: std::process::id(),
    };
    target.set_marker(&marker).await?;
    let run = Run { repository, manifest, target, claim, jobs, progress, marker, clock };
    run.copy_and_finish(false).await
}

/// Goes on with a restore that was not finished. `moved_to`: the repository, if it is not any more where the marker
/// says.
///
/// # Errors
/// [`Error::NotFound`] if no restore was begun there, or if the repository or the backup is gone; [`Error::Refused`]
/// if there is another backup under the same id; [`Error::Corrupt`] for a damaged marker or backup. Otherwise as
/// [`restore`].
pub async fn resume(
    target: &dyn RestoreTarget,
    moved_to: Option<&Repository>,
    progress: &ProgressSink,
) -> Result<RestoreReport> {
    let clock = Instant::now();
    let jobs = Jobs::owned(Arc::clone(progress));
    // Before the claim, which would make a directory that nobody asked for.
    let nothing = || Error::NotFound { what: format!("unfinished restore in {}", target.location()) };
    target.marker().await?.ok_or_else(nothing)?;
    let claim = target.claim().await?;
    // Again: whoever worked on it before we had the claim may have finished.
    let mut marker = target.marker().await?.ok_or_else(nothing)?;
    marker.pid = std::process::id();
    let repository = match moved_to {
        Some(repository) => repository.clone(),
        None => repository_of(&marker, target)?,
    };
    let manifest = repository.manifest(&marker.backup_id).await?;
    check_fits(&manifest, target)?;
    if fingerprint(&manifest) != marker.manifest {
        return Err(Error::refused(
            format!(
                "backup '{}' in {} is not the one whose restore was begun",
                marker.backup_id,
                repository.root().display()
            ),
            "name the repository that holds it with --repo, or empty the target and begin again",
        ));
    }
    let must_copy = marker.step < RestoreStep::Open;
    if must_copy {
        announce(&jobs, RestoreStep::Verify)?;
        verify::check_files(&repository, &manifest, &jobs).await?;
    }
    let run = Run { repository: &repository, manifest, target, claim, jobs, progress, marker, clock };
    if must_copy { run.copy_and_finish(true).await } else { run.finish(true).await }
}

fn repository_of(marker: &RestoreMarker, target: &dyn RestoreTarget) -> Result<Repository> {
    Repository::open(&marker.repository).map_err(|error| match error {
        Error::NotFound { what } => Error::NotFound {
            what: format!(
                "{what} any more, from which {} is being restored: bring it back, name it with --repo, or empty the \
                 target and restore another backup",
                target.location()
            ),
        },
        error => error,
    })
}

fn check_fits(manifest: &Manifest, target: &dyn RestoreTarget) -> Result<()> {
    let mismatch = |what: &str, backup: &str, wanted: &str| {
        Error::refused(
            format!("backup '{}' is of {what} '{backup}', and the store to fill is of '{wanted}'", manifest.id),
            "restore it with a configuration like that of the store it came from; only what `atlas backup create --portable` \
             takes fits any store",
        )
    };
    match &manifest.contents {
        // Cells, whatever store they came from; what belonged to that store is made anew.
        Contents::Portable { .. } => return Ok(()),
        _ if manifest.store != target.store() => {
            return Err(mismatch("store type", &manifest.store, target.store()));
        }
        Contents::Nodes { nodes, .. } => target.node_commands().ok_or_else(no_commands)?.check_restore(nodes)?,
        Contents::Files | Contents::Stream { .. } => (),
    }
    match target.namespace() {
        Some(namespace) if namespace != manifest.namespace => {
            Err(mismatch("namespace", &manifest.namespace, namespace))
        }
        _ => Ok(()),
    }
}

fn no_commands() -> Error {
    Error::refused(
        "a backup of nodes is restored by commands, and the store to fill has none",
        "set `restoreCommand` and `repairCommand` in its configuration",
    )
}

fn fingerprint(manifest: &Manifest) -> String {
    blake3::hash(&manifest.encode()).to_hex().to_string()
}

fn announce(jobs: &Jobs, step: RestoreStep) -> Result<()> {
    reached(step)?;
    jobs.announce(step.name());
    Ok(())
}

/// A restore whose marker stands.
struct Run<'a> {
    repository: &'a Repository,
    manifest: Manifest,
    target: &'a dyn RestoreTarget,
    claim: Claim,
    jobs: Jobs,
    progress: &'a ProgressSink,
    marker: RestoreMarker,
    clock: Instant,
}

/// What the steps on the open store did.
struct Settled {
    store_id: Uuid,
    clean: CleanReport,
    fast_forward: FastForwardReport,
    verified: RestoredReport,
}

impl Run<'_> {
    async fn copy_and_finish(mut self, resumed: bool) -> Result<RestoreReport> {
        self.begin(RestoreStep::Copy).await?;
        match &self.manifest.contents {
            Contents::Files => {
                self.target
                    .lay_down(CopyIn {
                        directory: self.repository.directory(&self.manifest.id),
                        files: self.manifest.store_files().cloned().collect(),
                        claim: self.claim.clone(),
                        progress: Arc::clone(self.progress),
                    })
                    .await?;
            }
            _ => {
                // Anything an earlier attempt wrote goes first: it may be any part of a part.
                self.target.clear().await?;
                let kvs = self.target.open().await?;
                let loaded = self.load(&kvs).await;
                let closed = self.target.close(&kvs).await;
                loaded?;
                closed?;
            }
        }
        self.finish(resumed).await
    }

    /// Fills an open store that holds nothing.
    async fn load(&self, kvs: &Arc<dyn KeyValueService>) -> Result<()> {
        let (manifest, jobs) = (&self.manifest, &self.jobs);
        let directory = self.repository.directory(&manifest.id);
        match &manifest.contents {
            Contents::Files => Ok(()),
            Contents::Stream { parts } => {
                let store = kvs.stream_snapshot().ok_or_else(|| Error::Unavailable {
                    what: self.target.location(),
                    reason: "this store takes no streams back".to_owned(),
                })?;
                streams::load(store, &directory, manifest, parts, jobs).await
            }
            Contents::Portable { tables } => {
                let namespace = self.target.namespace().unwrap_or(&manifest.namespace);
                let mode = commit_mode_for(kvs.as_ref(), self.target.commit_mode())?;
                portable::load(kvs, &directory, manifest, tables, jobs, namespace, mode).await
            }
            Contents::Nodes { nodes, tables } => {
                let commands = self.target.node_commands().ok_or_else(no_commands)?;
                commands.check_complete(kvs.as_ref()).await?;
                commands.load(jobs, kvs.as_ref(), &directory, nodes, tables).await
            }
        }
    }

    async fn finish(mut self, resumed: bool) -> Result<RestoreReport> {
        // Recorded before the store is opened: from here on the files are its own and must not be copied over.
        self.begin(RestoreStep::Open).await?;
        let kvs = self.target.open().await?;
        let settled = self.settle(&kvs).await;
        let recorded = if settled.is_ok() { self.begin(RestoreStep::Close).await } else { Ok(()) };
        // Also after an error, so that it can be opened again to go on.
        let closed = self.target.close(&kvs).await;
        let settled = settled?;
        recorded?;
        closed?;
        // Last: with the marker goes the only sign that something was left to do.
        announce(&self.jobs, RestoreStep::RemoveMarker)?;
        self.target.remove_marker().await?;
        Ok(RestoreReport {
            location: self.target.location(),
            resumed,
            backup_ts: self.manifest.backup_ts,
            fast_forward_ts: self.manifest.fast_forward_ts,
            store_id: settled.store_id,
            files: self.manifest.store_files().count() as u64,
            bytes: self.manifest.store_files().map(|file| file.size).sum(),
            clean: settled.clean,
            fast_forward: settled.fast_forward,
            verified: settled.verified,
            commands: self.commands(),
            took_ms: millis(self.clock),
            id: self.manifest.id,
        })
    }

    /// The steps on the open store. Each may be repeated.
    async fn settle(&mut self, kvs: &Arc<dyn KeyValueService>) -> Result<Settled> {
        let (backup_ts, fast_forward_ts) = (self.manifest.backup_ts, self.manifest.fast_forward_ts);

        // First: from here on every record and every entry is seen as all nodes together know it.
        self.begin(RestoreStep::Repair).await?;
        if let (Contents::Nodes { .. }, Some(commands)) = (&self.manifest.contents, self.target.node_commands()) {
            // A node that is not named is not repaired, and may know entries that nobody else does.
            commands.check_complete(kvs.as_ref()).await?;
            commands.repair(&self.jobs).await?;
        }

        // Before anything else is written: this is not the store it was copied from, and nobody may take it for that.
        self.begin(RestoreStep::Identity).await?;
        if let Contents::Nodes { .. } = &self.manifest.contents {
            nodes::adopt_records(kvs.as_ref()).await?;
        }
        let store_id = self.new_identity(kvs).await?;

        self.begin(RestoreStep::Clean).await?;
        let clean = clean_transactions(Arc::clone(kvs), backup_ts, false, self.progress).await?;

        // After the marks: it closes the window that keeps transactions from starting.
        self.begin(RestoreStep::FastForward).await?;
        // The manifest is proven, so a large jump is no slip of the pen.
        let fast_forward = fast_forward(Arc::clone(kvs), fast_forward_ts, true).await?;

        // After time was set: it is the lock of the backup that made this copy, and protected the original only.
        self.begin(RestoreStep::ReleaseLock).await?;
        BackupLock::new(Arc::clone(kvs)).clear_after_restore().await?;

        self.begin(RestoreStep::VerifyRestored).await?;
        let verified = verify_restored(Arc::clone(kvs), backup_ts, fast_forward_ts, self.progress).await?;
        Ok(Settled { store_id, clean, fast_forward, verified })
    }

    /// Gives the store an identity of its own; nobody holds its timestamps, and no backup was taken of it yet.
    async fn new_identity(&self, kvs: &Arc<dyn KeyValueService>) -> Result<Uuid> {
        let store_id = Uuid::new_v4();
        let store = MetaRecord::<StoreRecord>::new(Arc::clone(kvs), "store");
        let found = edit(&store, |record: StoreRecord| {
            Some(StoreRecord { store_id, restored_from: Some(self.manifest.id.clone()), ..record })
        })
        .await?;
        if !found {
            return Err(Error::corrupt(self.target.location(), "the copy has no record of the store it came from"));
        }
        let oracle = MetaRecord::<OracleRecord>::new(Arc::clone(kvs), "oracle");
        edit(&oracle, |record: OracleRecord| Some(OracleRecord { holder: None, contact: None, ..record })).await?;
        // Who may read the original must not be let in by the owner of the copy.
        edit(&TokenRecord::in_store(Arc::clone(kvs)), |_| None).await?;
        edit(&last_backup(Arc::clone(kvs)), |_| None).await?;
        Ok(store_id)
    }

    /// Before a step: the fail point, and the marker says how far we are.
    async fn begin(&mut self, step: RestoreStep) -> Result<()> {
        announce(&self.jobs, step)?;
        self.marker.step = step;
        self.target.set_marker(&self.marker).await
    }

    fn commands(&self) -> Vec<String> {
        if !self.manifest.contents.is_files() {
            return Vec::new();
        }
        let directory = self.repository.directory(&self.manifest.id);
        let quoted = |name: &str| quote(&directory.join(name).to_string_lossy());
        vec![
            format!("cp -R {}/. {}", quoted(FILES_DIRECTORY), quote(&self.target.location())),
            format!("atlas timestamp clean-transactions --file {}", quoted(BACKUP_TIMESTAMP_FILE)),
            format!("atlas timestamp fast-forward --file {}", quoted(FAST_FORWARD_TIMESTAMP_FILE)),
            "atlas backup-lock --release".to_owned(),
        ]
    }
}

/// Replaces a record by what `change` makes of it (`None`: removes it). False if there is none.
async fn edit<T>(record: &MetaRecord<T>, change: impl Fn(T) -> Option<T>) -> Result<bool>
where
    T: Serialize + DeserializeOwned,
{
    let mut loaded = record.load().await?;
    loop {
        let Some((found, bytes)) = loaded else { return Ok(false) };
        match record.replace(Some(&bytes), change(found).as_ref()).await? {
            Replaced::Done(_) => return Ok(true),
            Replaced::Other(found) => loaded = found,
        }
    }
}

/// A word for a shell.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;

    #[test]
    fn words_for_a_shell_are_quoted_where_they_must_be() {
        assert_eq!(quote("/a/b-c_1.d"), "/a/b-c_1.d");
        assert_eq!(quote("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(quote(""), "''");
    }

    #[test]
    fn a_marker_in_any_shape_keeps_openers_away() {
        let dir = tempfile::tempdir().expect("a directory");
        refuse_if_restoring(dir.path()).expect("nothing is there");
        refuse_if_restoring(&dir.path().join("absent")).expect("nothing is there");
        for content in [&b""[..], b"{", b"{\"version\": 99}", &[0xff; 100_000]] {
            std::fs::write(dir.path().join(RESTORE_MARKER_FILE), content).expect("it can be written");
            let error = refuse_if_restoring(dir.path()).expect_err("a marker is there");
            assert_eq!(error.exit_code(), exit::REFUSED);
            assert!(error.hint().expect("there is a way out").contains("backup restore --resume --into CONFIG"));
            assert_eq!(RestoreMarker::read(dir.path()).expect_err("it is damaged").exit_code(), exit::DAMAGED);
        }
    }
}
