//! The one place where the program meets what it operates on. Tests put another backend in its place.

use crate::atlas::WAIT_FOR_OWNER;
use crate::backup::{self, Repository, RestoreReport};
use crate::config::AtlasConfig;
use crate::ops::{BackupInfo, Operations, ProgressSink};
use crate::server::{self, Server};
use crate::transaction::other_namespace;
use crate::{Atlas, Error, Result, registry};
use async_trait::async_trait;
use atlas_kvs::{KeyValueService, KvsError, Timestamp};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
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
    /// The same by hand: commands for a shell.
    pub(crate) commands: Vec<String>,
}

/// The real one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stores;

/// Opens a stopped store without starting anything on it.
async fn open_stopped(config: &AtlasConfig) -> Result<Arc<dyn KeyValueService>> {
    if let Some(data_dir) = registry::data_dir(&config.key_value_service)
        && let Some(server) = server::connect(data_dir).await?
    {
        // No use in waiting: who serves does not hold the store for a moment only.
        return Err(in_use(data_dir, Some(server.owner_pid())));
    }
    match registry::open(config, WAIT_FOR_OWNER).await {
        Ok(opened) => Ok(opened.kvs),
        Err(Error::Kvs(KvsError::InUse { place, pid })) => Err(in_use(Path::new(&place), pid)),
        Err(error) => Err(error),
    }
}

fn in_use(data_dir: &Path, pid: Option<u32>) -> Error {
    let owner = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
    Error::refused(
        format!("this command runs on a stopped store only, and {} is in use by {owner}", data_dir.display()),
        format!("stop {owner} and repeat the command"),
    )
}

fn restored(report: RestoreReport) -> RestoreSummary {
    RestoreSummary {
        id: report.id,
        store_id: report.store_id,
        backup_ts: report.backup_ts,
        fast_forward_ts: report.fast_forward_ts,
        bytes: report.bytes,
        rolled_back: report.clean.rolled_back,
        commands: report.commands,
    }
}

#[async_trait]
impl Backend for Stores {
    async fn find_server(&self, config: &AtlasConfig) -> Result<Option<Arc<dyn Operations>>> {
        let Some(data_dir) = registry::data_dir(&config.key_value_service) else { return Ok(None) };
        let Some(server) = server::connect(data_dir).await? else { return Ok(None) };
        match server.namespace() {
            Some(found) if found != config.namespace => Err(other_namespace(found, &config.namespace)),
            _ => Ok(Some(Arc::new(server))),
        }
    }

    async fn open_store(&self, config: &AtlasConfig) -> Result<Arc<dyn Operations>> {
        // Not served: a client that finds a short command's socket would lose its store in the middle of its work.
        Ok(Arc::new(Atlas::open_unserved(config.clone(), Duration::ZERO).await?))
    }

    async fn serve(
        &self,
        config: &AtlasConfig,
        ready: Box<dyn FnOnce(Serving) + Send>,
        shutdown: CancellationToken,
    ) -> Result<()> {
        if let Some(data_dir) = registry::data_dir(&config.key_value_service)
            && let Some(server) = server::connect(data_dir).await?
        {
            // At once: who serves does not hold the store for a moment only.
            let place = data_dir.display().to_string();
            return Err(Error::StoreInUse { place, pid: Some(server.owner_pid()) });
        }
        let atlas = Atlas::open_unserved(config.clone(), WAIT_FOR_OWNER).await?;
        let mut services = atlas.services();
        if let Some(path) = std::env::var_os(server::TOKEN_FILE_VARIABLE).filter(|path| !path.is_empty()) {
            services = services.token_file(path);
        }
        let served = match Server::bind(services, &config.server, atlas.data_dir()).await {
            Ok(server) => {
                let addresses = server.addresses().clone();
                ready(Serving {
                    socket: addresses.socket,
                    http: addresses.http.map(|address| address.to_string()),
                    grpc: addresses.grpc.map(|address| address.to_string()),
                });
                server.run(shutdown.cancelled()).await;
                Ok(())
            }
            Err(error) => Err(error),
        };
        let closed = atlas.close().await;
        served.and(closed)
    }

    async fn clean_transactions(
        &self,
        config: &AtlasConfig,
        ts: Timestamp,
        dry_run: bool,
        progress: ProgressSink,
    ) -> Result<CleanSummary> {
        let kvs = open_stopped(config).await?;
        let report = backup::clean_transactions(kvs.clone(), ts, dry_run, &progress).await;
        kvs.close().await?;
        let report = report?;
        Ok(CleanSummary {
            scanned: report.scanned,
            rolled_back: report.rolled_back,
            already: report.already,
            examples: report.examples.iter().map(|entry| (entry.start_ts, entry.commit_ts)).collect(),
        })
    }

    async fn fast_forward(
        &self,
        config: &AtlasConfig,
        ts: Timestamp,
        allow_large_jump: bool,
    ) -> Result<FastForwardSummary> {
        let kvs = open_stopped(config).await?;
        let report = backup::fast_forward(kvs.clone(), ts, allow_large_jump).await;
        kvs.close().await?;
        let report = report?;
        Ok(FastForwardSummary { before: report.before, after: report.after })
    }

    async fn backup_list(&self, repository: &Path) -> Result<Vec<BackupInfo>> {
        Repository::open(repository)?.list().await
    }

    async fn backup_show(&self, repository: &Path, id: &str) -> Result<BackupInfo> {
        Repository::open(repository)?.show(id).await
    }

    async fn backup_verify(&self, repository: &Path, id: &str, progress: ProgressSink) -> Result<VerifySummary> {
        let repository = Repository::open(repository)?;
        let report = backup::verify::verify(&repository, id, None, &progress).await?;
        Ok(VerifySummary { id: report.id, files: report.files, bytes: report.bytes })
    }

    async fn backup_restore(
        &self,
        repository: &Path,
        id: &str,
        target: &AtlasConfig,
        progress: ProgressSink,
    ) -> Result<RestoreSummary> {
        let repository = Repository::open(repository)?;
        let target = registry::restore_target(target)?;
        backup::restore::restore(&repository, id, target.as_ref(), &progress).await.map(restored)
    }

    async fn backup_resume(
        &self,
        repository: Option<&Path>,
        target: &AtlasConfig,
        progress: ProgressSink,
    ) -> Result<RestoreSummary> {
        let repository = repository.map(Repository::open).transpose()?;
        let target = registry::restore_target(target)?;
        backup::restore::resume(target.as_ref(), repository.as_ref(), &progress).await.map(restored)
    }
}
