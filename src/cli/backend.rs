//! The one place where the program meets what it operates on. Tests put another backend in its place.

use crate::config::AtlasConfig;
use crate::ops::{BackupInfo, Operations, ProgressSink};
use crate::{Error, Result};
use async_trait::async_trait;
use atlas_kvs::Timestamp;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What the program needs from the rest of the crate.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// Asks for a server at the socket of the data directory; `None` if nobody answers there.
    async fn find_server(&self, config: &AtlasConfig) -> Result<Option<Arc<dyn Operations>>>;

    /// Opens the store in this process. `StoreInUse` if another one owns it.
    async fn open_store(&self, config: &AtlasConfig) -> Result<Arc<dyn Operations>>;

    /// Opens the store and serves it until `shutdown`; calls `ready` once when clients can connect.
    async fn serve(
        &self,
        config: &AtlasConfig,
        ready: Box<dyn FnOnce(Serving) + Send>,
        shutdown: CancellationToken,
    ) -> Result<()>;

    /// Rolls back what committed at or above `ts` in a stopped store. `StoreInUse` if a process owns it.
    async fn clean_transactions(
        &self,
        config: &AtlasConfig,
        ts: Timestamp,
        dry_run: bool,
        progress: ProgressSink,
    ) -> Result<CleanSummary>;

    /// Lets the time of a stopped store go on at or above `ts`. `StoreInUse` if a process owns it.
    async fn fast_forward(
        &self,
        config: &AtlasConfig,
        ts: Timestamp,
        allow_large_jump: bool,
    ) -> Result<FastForwardSummary>;

    /// Every backup of a repository.
    async fn backup_list(&self, repository: &Path) -> Result<Vec<BackupInfo>>;

    /// One backup, by id or `latest`; `NotFound` if there is none.
    async fn backup_show(&self, repository: &Path, id: &str) -> Result<BackupInfo>;

    /// Reads every byte of a backup and compares checksums; `Corrupt` on damage.
    async fn backup_verify(&self, repository: &Path, id: &str, progress: ProgressSink) -> Result<VerifySummary>;

    /// Fills the empty store of `target` with a backup.
    async fn backup_restore(
        &self,
        repository: &Path,
        id: &str,
        target: &AtlasConfig,
        progress: ProgressSink,
    ) -> Result<RestoreSummary>;

    /// Finishes the restore whose marker lies in the store of `target`. `repository` if it has moved since.
    async fn backup_resume(
        &self,
        repository: Option<&Path>,
        target: &AtlasConfig,
        progress: ProgressSink,
    ) -> Result<RestoreSummary>;
}

/// Where a server can be found.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Serving {
    /// The socket in the data directory.
    pub(crate) socket: Option<PathBuf>,
    /// Address of HTTP as bound.
    pub(crate) http: Option<String>,
    /// Address of gRPC as bound.
    pub(crate) grpc: Option<String>,
}

/// What `clean-transactions` did.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct CleanSummary {
    /// Entries looked at.
    pub(crate) scanned: u64,
    /// Entries rolled back, or that would be in a dry run.
    pub(crate) rolled_back: u64,
    /// Entries above the timestamp that were rolled back before.
    pub(crate) already: u64,
    /// Start and commit timestamps of the first few rolled back.
    pub(crate) examples: Vec<(Timestamp, Timestamp)>,
}

/// What `fast-forward` did. Both are equal if the timestamp was not above the bound.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct FastForwardSummary {
    /// The bound of timestamps as it was.
    pub(crate) before: Timestamp,
    /// The bound as it is.
    pub(crate) after: Timestamp,
}

/// What `backup verify` looked at.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct VerifySummary {
    /// The backup's id.
    pub(crate) id: String,
    /// Number of files.
    pub(crate) files: u64,
    /// Bytes of all of them.
    pub(crate) bytes: u64,
}

/// What `backup restore` did.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RestoreSummary {
    /// The backup's id.
    pub(crate) id: String,
    /// Identity of the store that was made.
    pub(crate) store_id: uuid::Uuid,
    /// The state it holds: commits below this.
    pub(crate) backup_ts: Timestamp,
    /// Where its time goes on.
    pub(crate) fast_forward_ts: Timestamp,
    /// Bytes copied.
    pub(crate) bytes: u64,
    /// Entries that `clean-transactions` rolled back.
    pub(crate) rolled_back: u64,
}

/// The real one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stores;

// SEAM: each body below answers `not_joined` until the module it stands for is merged. Nothing else has to change then.
fn not_joined<T>(what: &str) -> Result<T> {
    Err(Error::Unavailable { what: what.to_owned(), reason: "this build has no such part".to_owned() })
}

#[async_trait]
impl Backend for Stores {
    // SEAM: server::connect(config).
    async fn find_server(&self, _config: &AtlasConfig) -> Result<Option<Arc<dyn Operations>>> {
        Ok(None)
    }

    // SEAM: Ok(Arc::new(Atlas::open(config.clone()).await?)), once Atlas implements Operations.
    async fn open_store(&self, config: &AtlasConfig) -> Result<Arc<dyn Operations>> {
        crate::Atlas::open(config.clone()).await?;
        not_joined("the store")
    }

    // SEAM: server::serve(Atlas::open(config.clone()).await?, config, ready, shutdown).
    async fn serve(
        &self,
        _config: &AtlasConfig,
        _ready: Box<dyn FnOnce(Serving) + Send>,
        _shutdown: CancellationToken,
    ) -> Result<()> {
        not_joined("the server")
    }

    // SEAM: backup::clean_transactions.
    async fn clean_transactions(
        &self,
        _config: &AtlasConfig,
        _ts: Timestamp,
        _dry_run: bool,
        _progress: ProgressSink,
    ) -> Result<CleanSummary> {
        not_joined("clean-transactions")
    }

    // SEAM: backup::fast_forward.
    async fn fast_forward(
        &self,
        _config: &AtlasConfig,
        _ts: Timestamp,
        _allow_large_jump: bool,
    ) -> Result<FastForwardSummary> {
        not_joined("fast-forward")
    }

    // SEAM: backup::list.
    async fn backup_list(&self, _repository: &Path) -> Result<Vec<BackupInfo>> {
        not_joined("backup list")
    }

    // SEAM: backup::show.
    async fn backup_show(&self, _repository: &Path, _id: &str) -> Result<BackupInfo> {
        not_joined("backup show")
    }

    // SEAM: backup::verify.
    async fn backup_verify(&self, _repository: &Path, _id: &str, _progress: ProgressSink) -> Result<VerifySummary> {
        not_joined("backup verify")
    }

    // SEAM: backup::restore.
    async fn backup_restore(
        &self,
        _repository: &Path,
        _id: &str,
        _target: &AtlasConfig,
        _progress: ProgressSink,
    ) -> Result<RestoreSummary> {
        not_joined("backup restore")
    }

    // SEAM: backup::resume_restore.
    async fn backup_resume(
        &self,
        _repository: Option<&Path>,
        _target: &AtlasConfig,
        _progress: ProgressSink,
    ) -> Result<RestoreSummary> {
        not_joined("backup restore --resume")
    }
}
