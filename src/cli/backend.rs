//! The one place where the program meets what it operates on. Tests put another backend in its place.

use crate::atlas::{Opening, WAIT_FOR_OWNER};
use crate::backup::{self, Repository, RestoreReport};
use crate::config::AtlasConfig;
use crate::ops::{BackupInfo, Operations, ProgressSink};
use crate::schema::refuse_unfinished_restore;
use crate::server::{self, Listeners, Owner, Server, Services, Standby};
use crate::timestamp;
use crate::transaction::other_namespace;
use crate::{Atlas, Error, Result, registry};
use async_trait::async_trait;
use atlas_kvs::{KeyValueService, KvsError, Ownership, Timestamp};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What the program needs from the rest of the crate.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// Refuses with `NotFound` if there is no store yet. Makes nothing.
    async fn check_exists(&self, config: &AtlasConfig) -> Result<()> {
        registry::check_exists(config).await
    }

    /// Removes the store on a server for good; it may be gone already.
    async fn destroy(&self, config: &AtlasConfig) -> Result<()> {
        registry::destroy(config).await
    }

    /// Asks for a server: at the socket of the data directory, or where a store on a server says that its owner is.
    /// Makes nothing.
    async fn find_server(&self, config: &AtlasConfig) -> Result<Search>;

    /// Opens the store in this process. `StoreInUse` if another one owns it.
    async fn open_store(&self, config: &AtlasConfig) -> Result<Arc<dyn Operations>>;

    /// Opens the store and serves it until `shutdown`; calls `ready` once when clients can connect. With `standby` it
    /// waits first until no other process owns the store. `LostLeadership` if another one takes it over.
    async fn serve(
        &self,
        config: &AtlasConfig,
        standby: bool,
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

/// What the search for a server has found.
pub(crate) enum Search {
    /// It.
    Server(Arc<dyn Operations>),
    /// There is a store, and nobody who answers for it. If somebody owns it, why he can't be asked.
    Nobody(Option<String>),
    /// There is no store, as an error says.
    NoStore(Error),
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
pub(crate) struct Stores {
    /// What this process is called where others see that it owns a store.
    program: String,
    /// Where people are told that something takes long.
    say: Box<dyn Fn(&str) + Send + Sync>,
}

impl Stores {
    pub(crate) fn new(program: String, say: impl Fn(&str) + Send + Sync + 'static) -> Stores {
        Stores { program, say: Box::new(say) }
    }

    fn opening(&self) -> Opening {
        Opening { program: self.program.clone(), ..Opening::default() }
    }

    /// Opens a stopped store without starting anything on it, and keeps others away while `work` changes it.
    async fn on_stopped<T, F>(
        &self,
        config: &AtlasConfig,
        work: impl FnOnce(Arc<dyn KeyValueService>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let kvs = open_stopped(config).await?;
        let oracle = match kvs.ownership() {
            Ownership::Exclusive(_) => None,
            Ownership::Shared => {
                let lease = self.opening().lease(config);
                let taken = self.patiently(&kvs, timestamp::take_over_for_command(kvs.clone(), lease)).await;
                Some(taken.map_err(|error| only_stopped(config, error))?)
            }
        };
        let done = work(kvs.clone()).await;
        // The next opener need not wait.
        let released = match &oracle {
            Some(oracle) => oracle.release_at_bound().await,
            None => Ok(()),
        };
        kvs.close().await?;
        let done = done?;
        released.map(|()| done)
    }

    /// Tells people why they wait, if they do: a dead owner is given time to prove that it is alive.
    async fn patiently<T>(&self, kvs: &Arc<dyn KeyValueService>, opened: impl Future<Output = Result<T>>) -> Result<T> {
        // Both go on together: a look at the store may wait for what `opened` is in the middle of, such as making a table.
        let telling = async {
            tokio::time::sleep(TELL_AFTER).await;
            if let Ok(Some(record)) = timestamp::read_stored(kvs.clone()).await
                && record.holder.is_some()
                && let Some(lease) = record.lease()
            {
                (self.say)(&format!(
                    "waiting up to {} s to be sure that {} is gone",
                    lease.as_secs().max(1),
                    record.owner()
                ));
            }
            std::future::pending().await
        };
        tokio::select! {
            opened = opened => opened,
            never = telling => never,
        }
    }

    async fn serve_shared(
        &self,
        config: &AtlasConfig,
        standby: bool,
        ready: Box<dyn FnOnce(Serving) + Send>,
        shutdown: CancellationToken,
    ) -> Result<()> {
        // Before anything is taken over, so that the new owner can be found from the first moment.
        let listeners = Listeners::bind(&config.server).await?;
        let opened = registry::open(config, Duration::ZERO).await?;
        if !standby && let Owner::Server { name, .. } = server::find_owner(&opened.kvs).await? {
            // At once: it answered, so it is alive.
            return Err(Error::StoreOwned { owner: name });
        }
        let kvs = opened.kvs.clone();
        let opening =
            Opening { address: listeners.grpc_address(), standby: standby.then(|| shutdown.clone()), ..self.opening() };
        let owned = Atlas::open_as(config.clone(), opened, opening);
        let atlas = tokio::select! {
            owned = answering(&listeners, kvs.clone(), owned) => match owned {
                Err(Error::Interrupted) if shutdown.is_cancelled() => return Ok(kvs.close().await?),
                owned => owned?,
            },
            // A stand-by ends by itself, and in order.
            () = shutdown.cancelled(), if !standby => return Ok(kvs.close().await?),
        };
        let lost = atlas.lost();
        let served = async {
            let server = Server::on(listeners, with_token_file(atlas.services_to_serve().await?), None).await?;
            serve_until(server, ready, async {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = lost.cancelled() => tracing::error!("another process has taken the store over; this one ends"),
                }
            })
            .await;
            Ok(())
        };
        let served = served.await;
        let closed = atlas.close().await;
        if lost.is_cancelled() && !shutdown.is_cancelled() {
            let reason = "another process has taken the store over, so this server has ended".to_owned();
            return Err(Error::LostLeadership { reason });
        }
        served.and(closed)
    }
}

/// How long people are left without a word.
const TELL_AFTER: Duration = Duration::from_millis(1500);
/// How often a stand-by looks whom it waits for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Answers as a stand-by while `opened` waits for the owner of the store.
async fn answering<T>(
    listeners: &Listeners,
    kvs: Arc<dyn KeyValueService>,
    opened: impl Future<Output = Result<T>>,
) -> Result<T> {
    let (tell, owner) = watch::channel(String::new());
    let standby = Standby::start(listeners, owner)?;
    let looking = async {
        loop {
            if let Ok(Some(record)) = timestamp::read_stored(kvs.clone()).await
                && record.holder.is_some()
                && tell.send_if_modified(|known| std::mem::replace(known, record.owner()) != *known)
            {
                tracing::info!(owner = record.owner(), "waiting for the owner of the store to end");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let opened = tokio::select! {
        opened = opened => opened,
        never = looking => never,
    };
    drop(standby);
    opened
}

fn with_token_file(services: Services) -> Services {
    match std::env::var_os(server::TOKEN_FILE_VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => services.token_file(path),
        None => services,
    }
}

async fn serve_until(server: Server, ready: Box<dyn FnOnce(Serving) + Send>, end: impl Future<Output = ()> + Send) {
    let addresses = server.addresses().clone();
    ready(Serving {
        socket: addresses.socket,
        http: addresses.http.map(|address| address.to_string()),
        grpc: addresses.grpc.map(|address| address.to_string()),
    });
    server.run(end).await;
}

async fn open_stopped(config: &AtlasConfig) -> Result<Arc<dyn KeyValueService>> {
    if let Some(data_dir) = registry::data_dir(&config.key_value_service)
        && let Some(server) = server::connect(data_dir).await?
    {
        // No use in waiting: who serves does not hold the store for a moment only.
        return Err(in_use(data_dir, Some(server.owner_pid())));
    }
    if registry::is_shared(&config.key_value_service) {
        let kvs = registry::open_existing(config).await?.kvs;
        refuse_unfinished_restore(&kvs).await?;
        return Ok(kvs);
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

fn only_stopped(config: &AtlasConfig, error: Error) -> Error {
    let Error::StoreOwned { owner } = error else { return error };
    let place = registry::location(&config.key_value_service);
    Error::refused(
        format!(
            "this command runs on a stopped store only, and namespace '{}' of {place} is in use by {owner}",
            config.namespace
        ),
        "stop that process and repeat the command",
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
    async fn find_server(&self, config: &AtlasConfig) -> Result<Search> {
        let server = if registry::is_shared(&config.key_value_service) {
            let opened = match registry::open_existing(config).await {
                Ok(opened) => opened,
                Err(error @ Error::NotFound { .. }) => return Ok(Search::NoStore(error)),
                Err(error) => return Err(error),
            };
            let owner = server::find_owner(&opened.kvs).await;
            opened.kvs.close().await?;
            match owner? {
                Owner::Server { server, .. } => *server,
                Owner::Unreachable { why, .. } => return Ok(Search::Nobody(Some(why))),
                Owner::Nobody => return Ok(Search::Nobody(None)),
            }
        } else {
            if let Err(error @ Error::NotFound { .. }) = registry::check_exists(config).await {
                return Ok(Search::NoStore(error));
            }
            let Some(data_dir) = registry::data_dir(&config.key_value_service) else { return Ok(Search::Nobody(None)) };
            match server::connect(data_dir).await? {
                Some(server) => server,
                None => return Ok(Search::Nobody(None)),
            }
        };
        match server.namespace() {
            Some(found) if found != config.namespace => Err(other_namespace(found, &config.namespace)),
            _ => Ok(Search::Server(Arc::new(server))),
        }
    }

    async fn open_store(&self, config: &AtlasConfig) -> Result<Arc<dyn Operations>> {
        // Not served: a client that finds a short command's socket would lose its store in the middle of its work.
        let opened = registry::open(config, Duration::ZERO).await?;
        let kvs = opened.kvs.clone();
        let owned = Atlas::open_as(config.clone(), opened, self.opening());
        Ok(Arc::new(self.patiently(&kvs, owned).await?))
    }

    async fn serve(
        &self,
        config: &AtlasConfig,
        standby: bool,
        ready: Box<dyn FnOnce(Serving) + Send>,
        shutdown: CancellationToken,
    ) -> Result<()> {
        if registry::is_shared(&config.key_value_service) {
            return self.serve_shared(config, standby, ready, shutdown).await;
        }
        if standby {
            return Err(Error::refused(
                "a store in a directory has no stand-by: its owner is known by a lock that the system gives back at once",
                "leave out --standby, and let a supervisor start the server again",
            ));
        }
        if let Some(data_dir) = registry::data_dir(&config.key_value_service)
            && let Some(server) = server::connect(data_dir).await?
        {
            // At once: who serves does not hold the store for a moment only.
            let place = data_dir.display().to_string();
            return Err(Error::StoreInUse { place, pid: Some(server.owner_pid()) });
        }
        let atlas = Atlas::open_unserved(config.clone(), WAIT_FOR_OWNER).await?;
        let served = match Server::bind(with_token_file(atlas.services()), &config.server, atlas.data_dir()).await {
            Ok(server) => {
                serve_until(server, ready, shutdown.cancelled()).await;
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
        let clean = |kvs| async move { backup::clean_transactions(kvs, ts, dry_run, &progress).await };
        let report = self.on_stopped(config, clean).await?;
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
        let forward = |kvs| backup::fast_forward(kvs, ts, allow_large_jump);
        let report = self.on_stopped(config, forward).await?;
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
