//! The store as an application holds it.

use crate::backup::{self, BackupLock, BackupSource, NodeCommands, PhysicalDeletionGate};
use crate::clock::{BootClock, Clock};
use crate::config::AtlasConfig;
use crate::lock::{HeldLocks, LockClient, LockDescriptor, LockRequest};
use crate::ops::{
    BackupInfo, BackupLockRecord, BackupRequest, BeginOptions, Connection, DoctorFinding, HardDeleted, Operations,
    ProgressSink, Punch, ScanOptions, StoreOwner, StoreStatus, SweepReport, SweepRequest, SweepStatus, TableInfo,
    TransactionOps,
};
use crate::registry::{self, OpenedStore};
use crate::schema::{TableChange, TableSpec};
use crate::server::{self, Listeners, Owner, Server, Services};
use crate::sweep::{SweepPins, Sweeper, forget_walk};
use crate::timestamp::{Contact, LeaseOptions, read_stored};
use crate::transaction::{OpenOptions, Outcome, Retriable, RunOptions, Transaction, TransactionManager};
use crate::{Error, Result, doctor, punch};
use async_trait::async_trait;
use atlas_kvs::{
    Cell, KeyValueService, KvsError, Ownership, RowRange, TableDescription, TableKind, TableRef, Timestamp, VersionScan,
};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// Tables with more versions than this are not counted by `status`.
const COUNTED_VERSIONS_MAX: u64 = 200_000;

/// How long an opener waits for a short command that holds the store.
pub(crate) const WAIT_FOR_OWNER: Duration = Duration::from_secs(10);

/// An open store. Cloning is cheap. [`Atlas::close`] closes it in order; dropping the last clone closes it too, but
/// does not wait for it.
#[derive(Clone, Debug)]
pub struct Atlas {
    store: Arc<Store>,
    // `None` in the clone that the server itself holds: otherwise the two would keep each other alive.
    server: Option<Arc<ServerHandle>>,
}

#[derive(Debug)]
struct Store {
    config: AtlasConfig,
    opened: OpenedStore,
    manager: TransactionManager,
    backup_lock: BackupLock,
    sweeper: Sweeper,
    opened_at: Instant,
    closed: OnceCell<()>,
    backups: TaskTracker,
    closing: CancellationToken,
    // These two end with the store.
    puncher: tokio::sync::Mutex<Option<AbortOnDropHandle<()>>>,
    sweeping: tokio::sync::Mutex<Option<AbortOnDropHandle<()>>>,
    _cleaner: Option<AbortOnDropHandle<()>>,
}

/// The server of the socket; ends when it is dropped.
#[derive(Debug)]
struct ServerHandle {
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// How a store is taken over. All of it counts only where several processes can reach it.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    /// What this process is, for people.
    pub(crate) program: String,
    /// Where it is going to answer.
    pub(crate) address: Option<SocketAddr>,
    /// How long a living owner is waited for.
    pub(crate) wait: Duration,
    /// Waits for its end, until this is cancelled.
    pub(crate) standby: Option<CancellationToken>,
    /// What leases are counted on.
    pub(crate) clock: Arc<dyn Clock>,
}

impl Default for Opening {
    /// An application that is named as its file is, and waits for nobody.
    fn default() -> Opening {
        let file = std::env::args_os().next().map(PathBuf::from);
        let name = file.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let program = name.unwrap_or_else(|| "an application".to_owned());
        Opening { program, address: None, wait: Duration::ZERO, standby: None, clock: Arc::new(BootClock) }
    }
}

impl Opening {
    pub(crate) fn lease(&self, config: &AtlasConfig) -> LeaseOptions {
        let address = self.address.map(|address| address.to_string());
        LeaseOptions {
            lease: config.leader.lease,
            wait: self.wait,
            standby: self.standby.clone(),
            clock: self.clock.clone(),
            contact: Contact { address, ..Contact::this_process(self.program.as_str()) },
            ..LeaseOptions::default()
        }
    }
}

impl Atlas {
    /// Opens the store that the configuration names, or makes it, and answers the command line while the application
    /// runs: on the socket in the store's directory, or, if the store is on a server, on a port of this machine that
    /// the system chooses and the store tells.
    ///
    /// # Errors
    /// [`Error::StoreInUse`] if another process owns the directory and does not let go within ten seconds;
    /// [`Error::StoreOwned`] if another process owns the store on a server: at once if it serves, after ten seconds
    /// otherwise; a dead one is waited for until its lease is over. [`Error::Refused`] for another namespace or commit
    /// mode or an unfinished restore; [`Error::Corrupt`] if it contradicts itself.
    pub async fn open(config: AtlasConfig) -> Result<Atlas> {
        if registry::is_shared(&config.key_value_service) {
            return Atlas::open_shared(config).await;
        }
        let atlas = Atlas::open_unserved(config, WAIT_FOR_OWNER).await?;
        let Some(data_dir) = atlas.data_dir().map(Path::to_owned) else { return Ok(atlas) };
        let server = Server::bind_socket(atlas.services(), &data_dir).await?;
        Ok(atlas.served_by(server))
    }

    async fn open_shared(config: AtlasConfig) -> Result<Atlas> {
        // Before the store is taken over, so that its new owner can be found from the first moment.
        let listeners = Listeners::any().await?;
        let opened = registry::open(&config, WAIT_FOR_OWNER).await?;
        let wait = match server::find_owner(&opened.kvs).await? {
            Owner::Server { name, .. } => return Err(Error::StoreOwned { owner: name }),
            Owner::Unreachable { record, .. }
                if record.contact.as_ref().is_some_and(|owner| owner.address.is_some()) =>
            {
                Duration::ZERO
            }
            // Short commands have no address, and are soon done.
            Owner::Unreachable { .. } | Owner::Nobody => WAIT_FOR_OWNER,
        };
        let opening = Opening { address: listeners.grpc_address(), wait, ..Opening::default() };
        let atlas = Atlas::open_as(config, opened, opening).await?;
        let served = async { Server::on(listeners, atlas.services_to_serve().await?, None).await };
        match served.await {
            Ok(server) => Ok(atlas.served_by(server)),
            Err(error) => {
                let _ = atlas.close().await;
                Err(error)
            }
        }
    }

    fn served_by(self, server: Server) -> Atlas {
        let stop = CancellationToken::new();
        let (stopped, lost) = (stop.clone(), self.lost());
        let task = tokio::spawn(async move {
            let ended = async {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = lost.cancelled() => tracing::error!("another process has taken the store over"),
                }
            };
            server.run(ended).await;
        });
        let server = ServerHandle { stop, task: Mutex::new(Some(task)) };
        Atlas { server: Some(Arc::new(server)), ..self }
    }

    /// Opens the store without answering others: for short commands, and for those who serve it themselves.
    ///
    /// # Errors
    /// As [`open`](Self::open), with `wait_for_owner` for another process that is alive.
    pub async fn open_unserved(config: AtlasConfig, wait_for_owner: Duration) -> Result<Atlas> {
        let opened = registry::open(&config, wait_for_owner).await?;
        Atlas::open_as(config, opened, Opening { wait: wait_for_owner, ..Opening::default() }).await
    }

    /// Opens a store that was made elsewhere, for tests and for stores this program does not know.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn with_store(config: AtlasConfig, kvs: Arc<dyn KeyValueService>) -> Result<Atlas> {
        let location = kvs.capabilities().store.to_owned();
        let durability = atlas_kvs::Durability::Synced;
        Atlas::open_as(config, OpenedStore { kvs, location, data_dir: None, durability }, Opening::default()).await
    }

    /// As [`with_store`](Self::with_store), with leases of locks and of the store counted on `clock`, for simulations.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn with_store_and_clock(
        config: AtlasConfig,
        kvs: Arc<dyn KeyValueService>,
        clock: Arc<dyn Clock>,
    ) -> Result<Atlas> {
        let location = kvs.capabilities().store.to_owned();
        let opened = OpenedStore { kvs, location, data_dir: None, durability: atlas_kvs::Durability::Synced };
        Atlas::open_as(config, opened, Opening { clock, ..Opening::default() }).await
    }

    /// Takes an open store over for transactions.
    pub(crate) async fn open_as(config: AtlasConfig, opened: OpenedStore, opening: Opening) -> Result<Atlas> {
        let options = OpenOptions {
            namespace: config.namespace.clone(),
            transactions: config.transactions.clone(),
            durability: opened.durability,
            lease: opening.lease(&config),
        };
        let manager = TransactionManager::open(opened.kvs.clone(), options).await?;
        punch::create_table(opened.kvs.as_ref()).await?;
        // Nobody leaves challenges where nobody looks for an owner.
        let is_shared = matches!(opened.kvs.ownership(), Ownership::Shared);
        let cleaner = is_shared.then(|| AbortOnDropHandle::new(tokio::spawn(clean_challenges(manager.clone()))));
        let backup_lock = BackupLock::new(opened.kvs.clone());
        let puncher = AbortOnDropHandle::new(tokio::spawn(punch_regularly(manager.clone(), backup_lock.gate())));
        let sweeper = Sweeper::new(manager.clone(), backup_lock.gate(), config.sweep.clone());
        let sweeping = config.sweep.enabled.then(|| AbortOnDropHandle::new(tokio::spawn(sweeper.clone().run())));
        let opened_at = Instant::now();
        let store = Store {
            config,
            opened,
            manager,
            backup_lock,
            sweeper,
            opened_at,
            closed: OnceCell::new(),
            backups: TaskTracker::new(),
            closing: CancellationToken::new(),
            puncher: tokio::sync::Mutex::new(Some(puncher)),
            sweeping: tokio::sync::Mutex::new(sweeping),
            _cleaner: cleaner,
        };
        Ok(Atlas { store: Arc::new(store), server: None })
    }

    /// What a server of this store answers with.
    pub fn services(&self) -> Services {
        let unserved = Atlas { store: self.store.clone(), server: None };
        Services::new(Arc::new(unserved.clone()))
            .locks(Arc::new(crate::server::LocalLocks::new(self.store.manager.locks().clone())))
            .namespace(&self.store.manager.store().namespace)
    }

    /// As [`services`](Self::services), and clients that find this process through the store are let in.
    pub(crate) async fn services_to_serve(&self) -> Result<Services> {
        let kvs = self.kvs().clone();
        if !matches!(kvs.ownership(), Ownership::Shared) {
            return Ok(self.services());
        }
        let token = server::store_token::renew(kvs.clone(), self.store.manager.oracle().epoch()).await?;
        Ok(self.services().shared(kvs, token))
    }

    /// Cancelled when another process has taken the store over: nothing can be done with it here any more.
    pub fn lost(&self) -> CancellationToken {
        self.store.manager.oracle().lost()
    }

    /// Who owns the store, as the store itself tells, and how old our lease is. `None` where there is no lease.
    pub(crate) async fn owner(&self) -> Result<Option<StoreOwner>> {
        let Some(age) = self.store.manager.oracle().lease_age() else { return Ok(None) };
        let record = read_stored(self.kvs().clone()).await?;
        Ok(record.and_then(|record| {
            let contact = record.contact?;
            Some(StoreOwner {
                program: contact.program,
                pid: contact.pid,
                host: contact.host,
                address: contact.address,
                since: contact.since,
                lease_ms: record.lease_ms,
                lease_age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            })
        }))
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &AtlasConfig {
        &self.store.config
    }

    /// The directory the store lives in, if it lives in one.
    pub fn data_dir(&self) -> Option<&Path> {
        self.store.opened.data_dir.as_deref()
    }

    /// The part that begins transactions.
    pub fn transactions(&self) -> &TransactionManager {
        &self.store.manager
    }

    /// Does `work` in a transaction and commits it, and does it anew after conflicts; see [`TransactionManager::run`].
    ///
    /// ```no_run
    /// # async fn example(atlas: atlas::Atlas, accounts: atlas::TableRef) -> atlas::Result<()> {
    /// use atlas::Cell;
    /// let visits = atlas
    ///     .run(async |tx| {
    ///         let cell = Cell::copy_from("page", "visits");
    ///         let seen = tx.get(&accounts, &cell).await?.map_or(0, |bytes| bytes.len());
    ///         tx.put(&accounts, cell, vec![b'|'; seen + 1]).await?;
    ///         Ok::<_, atlas::Error>(seen + 1)
    ///     })
    ///     .await?;
    /// # let _ = visits; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The first error that is not retriable, or the last one when attempts or time are used up.
    pub async fn run<T, E, F, Fut>(&self, work: F) -> std::result::Result<T, E>
    where
        E: Retriable,
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = std::result::Result<T, E>>,
    {
        Ok(self.store.manager.run(RunOptions::default(), work).await?.value)
    }

    /// As [`run`](Self::run), with options, telling how it went.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_with<T, E, F, Fut>(&self, options: RunOptions, work: F) -> std::result::Result<Outcome<T>, E>
    where
        E: Retriable,
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = std::result::Result<T, E>>,
    {
        self.store.manager.run(options, work).await
    }

    /// As [`run_with`](Self::run_with), each attempt while it holds advisory locks of these names; see
    /// [`TransactionManager::run_with_locks`].
    ///
    /// # Errors
    /// As [`run`](Self::run); [`Error::LockTimeout`] if a lock is not granted in time.
    pub async fn run_with_locks<T, E, F, Fut>(
        &self,
        options: RunOptions,
        names: &[&str],
        work: F,
    ) -> std::result::Result<Outcome<T>, E>
    where
        E: Retriable,
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = std::result::Result<T, E>>,
    {
        let locks: Vec<LockDescriptor> = names.iter().map(|name| LockDescriptor::advisory(name)).collect();
        self.store.manager.run_with_locks(options, &locks, work).await
    }

    /// Does `work` in a read-only transaction: it takes no locks, writes nothing and never conflicts.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn read<T, E, F, Fut>(&self, work: F) -> std::result::Result<T, E>
    where
        E: Retriable,
        F: Fn(Transaction) -> Fut,
        Fut: Future<Output = std::result::Result<T, E>>,
    {
        let options = RunOptions { read_only: true, ..RunOptions::default() };
        Ok(self.store.manager.run(options, work).await?.value)
    }

    /// Begins a transaction to be committed by hand.
    ///
    /// # Errors
    /// Those of the timestamp oracle. Cancel safe.
    pub async fn begin(&self) -> Result<Transaction> {
        self.store.manager.begin(BeginOptions::default()).await
    }

    /// Takes an advisory lock: it means what its users agree it means, and is kept until the guard is dropped or this
    /// process dies.
    ///
    /// # Errors
    /// [`Error::LockTimeout`] if it is not granted in time. Cancel safe.
    pub async fn advisory_lock(&self, name: &str, timeout: Duration) -> Result<HeldLocks> {
        let start_ts = self.store.manager.oracle().fresh().await?;
        let client: Arc<dyn LockClient> = self.store.manager.locks().clone();
        HeldLocks::acquire(client, start_ts, LockRequest::new(vec![LockDescriptor::advisory(name)], timeout)).await
    }

    /// The part that removes old versions.
    pub fn sweeper(&self) -> &Sweeper {
        &self.store.sweeper
    }

    fn kvs(&self) -> &Arc<dyn KeyValueService> {
        &self.store.opened.kvs
    }

    async fn describe(&self, description: &TableDescription, count: bool) -> Result<TableInfo> {
        let table = &description.table;
        let size = self.kvs().table_size(table).await?;
        let spec = if table.is_internal() { None } else { Some(TableSpec::from_description(description)?) };
        let mut info = TableInfo {
            table: table.clone(),
            kind: description.kind,
            spec,
            versions: size.versions,
            bytes: size.bytes,
            cells: None,
            sentinels: None,
            exact: false,
        };
        if count && description.kind == TableKind::Versioned {
            self.count(&mut info).await?;
        }
        Ok(info)
    }

    async fn count(&self, info: &mut TableInfo) -> Result<()> {
        let mut versions = 0;
        let mut sentinels = 0;
        let everything = VersionScan::new(RowRange::all(), Timestamp::MAX);
        let mut stored = self.kvs().scan_versions(&info.table, everything);
        while let Some(found) = stored.next().await {
            let found = found?;
            sentinels += found.versions.iter().filter(|version| version.ts == Timestamp::SENTINEL).count() as u64;
            versions += found.versions.len() as u64;
        }
        if !info.table.is_internal() {
            let options = BeginOptions { read_only: true, ..BeginOptions::default() };
            let transaction = self.store.manager.begin(options).await?;
            let mut visible = transaction.scan(&info.table, ScanOptions::default()).await?;
            let mut cells = 0;
            while let Some(found) = visible.next().await {
                found?;
                cells += 1;
            }
            info.cells = Some(cells);
        }
        info.versions = versions;
        info.sentinels = Some(sentinels);
        info.exact = true;
        Ok(())
    }

    /// Tables of applications, with their cells counted where that takes a moment only.
    async fn tables_with_cells(&self) -> Result<Vec<TableInfo>> {
        let mut tables = Vec::new();
        for description in self.kvs().tables().await? {
            if !description.table.is_internal() {
                let estimated = self.describe(&description, false).await?;
                let small = estimated.versions <= COUNTED_VERSIONS_MAX;
                tables.push(if small { self.describe(&description, true).await? } else { estimated });
            }
        }
        Ok(tables)
    }

    async fn existing(&self, table: &TableRef) -> Result<TableDescription> {
        let found = self.kvs().table(table).await?;
        found.ok_or_else(|| Error::NotFound { what: format!("table '{table}'") })
    }

    /// Fills the empty store that `config` names with a backup; `latest` is the newest one. The store can be opened when
    /// this has returned, and not before.
    ///
    /// # Errors
    /// As [`backup::restore::restore`], which tells what an interrupted restore leaves behind.
    pub async fn restore(
        config: &AtlasConfig,
        repository: impl AsRef<Path>,
        id: &str,
        progress: ProgressSink,
    ) -> Result<backup::RestoreReport> {
        let repository = backup::Repository::open(repository)?;
        backup::restore::restore(&repository, id, registry::restore_target(config)?.as_ref(), &progress).await
    }

    /// Closes the store in order: clients of the socket first, then backups, which are cancelled, then commits under
    /// way, then the store itself.
    ///
    /// # Errors
    /// Those of the store; it is closed all the same.
    pub async fn close(&self) -> Result<()> {
        if let Some(server) = &self.server {
            server.stop.cancel();
            let task = server.task.lock().take();
            if let Some(task) = task {
                let _ = task.await;
            }
        }
        // Whoever calls again, or at the same time, waits for the same end; whoever gave up waiting can call again.
        let closing = self.store.closed.get_or_try_init(|| async {
            self.store.closing.cancel();
            self.store.backups.close();
            self.store.backups.wait().await;
            if let Some(puncher) = self.store.puncher.lock().await.take() {
                puncher.abort();
                // It may be in the middle of a look at what others left, which closing takes up.
                let _ = puncher.await;
            }
            if let Some(sweeping) = self.store.sweeping.lock().await.take() {
                sweeping.abort();
                let _ = sweeping.await;
            }
            let released = self.store.manager.close().await;
            match self.kvs().close().await {
                Ok(()) | Err(KvsError::Closed) => released,
                Err(error) => Err(error.into()),
            }
        });
        closing.await.map(drop)
    }
}

impl Store {
    async fn acquire_and_settle(&self, reason: &str) -> Result<BackupLockRecord> {
        let record = self.backup_lock.acquire_for_nobody(reason).await?;
        // A copy that is made from now on must hold every commit below the timestamp that was fetched before.
        let within = self.config.backup.settle_timeout;
        let settled = async { self.manager.settle_within(self.manager.oracle().fresh().await?, within).await };
        match settled.await {
            Ok(()) => Ok(record),
            Err(error) => {
                // Who is told that he does not hold the lock must not hold it.
                self.release_quietly().await;
                Err(error)
            }
        }
    }

    async fn release_quietly(&self) {
        if let Err(error) = self.backup_lock.release().await {
            tracing::warn!(%error, "the backup lock is held by nobody and could not be released");
        }
    }
}

/// Before anything is removed: whoever fetched a backup timestamp earlier and copies the store later has a copy without
/// what was there at that timestamp, and must not take it for a backup.
async fn raise_deletion_floor(manager: &TransactionManager) -> Result<()> {
    backup::clean::DeletionFloor::raise(manager.kvs().clone(), manager.oracle().fresh().await?).await
}

/// Removes the questions of clients that were killed before they could.
async fn clean_challenges(manager: TransactionManager) {
    let mut seen = BTreeSet::new();
    loop {
        if let Err(error) = server::challenge::clean(manager.kvs().as_ref(), &mut seen).await
            && !manager.is_closed()
        {
            tracing::warn!(%error, "challenges that clients left could not be removed");
        }
        tokio::time::sleep(server::challenge::CLEAN_EVERY).await;
        if manager.is_closed() {
            return;
        }
    }
}

async fn punch_regularly(manager: TransactionManager, gate: PhysicalDeletionGate) {
    for points in 1u32.. {
        let punched = async { punch::punch(manager.kvs(), manager.oracle().fresh().await?).await };
        if let Err(error) = punched.await {
            if manager.is_closed() {
                return;
            }
            tracing::warn!(%error, "the wall-clock time of timestamps could not be recorded");
        }
        if punch::is_time_to_thin(points) {
            match thin_punches(&manager, &gate).await {
                // Another day.
                Ok(()) | Err(Error::BackupLockHeld { .. }) => {}
                Err(_) if manager.is_closed() => return,
                Err(error) => tracing::warn!(%error, "old points of the punch table could not be removed"),
            }
        }
        tokio::time::sleep(punch::INTERVAL).await;
        // Not right after opening, for the sake of short commands.
        if let Err(error) = manager.tidy().await
            && !manager.is_closed()
        {
            tracing::warn!(%error, "what former owners of the store left could not be decided");
        }
    }
}

/// Removes some of the points that are too many; like all that is removed, not under the backup lock.
async fn thin_punches(manager: &TransactionManager, gate: &PhysicalDeletionGate) -> Result<()> {
    let kvs = manager.kvs().clone();
    let superfluous = punch::superfluous(&kvs).await?;
    if superfluous.is_empty() {
        return Ok(());
    }
    gate.run(async move { punch::remove(kvs.as_ref(), &superfluous).await }).await
}

#[async_trait]
impl Operations for Atlas {
    fn connection(&self) -> Connection {
        Connection::Local
    }

    async fn fresh_timestamp(&self) -> Result<Timestamp> {
        self.store.manager.oracle().fresh().await
    }

    async fn pin_fresh_timestamp(&self, hold: Duration) -> Result<Timestamp> {
        // Pinned before the timestamp is drawn: between the two, sweep must not pass it.
        let pinned = self.store.manager.immutable_ts().await?;
        SweepPins::add(self.kvs().clone(), pinned, hold).await?;
        self.fresh_timestamp().await
    }

    async fn fresh_timestamps(&self, count: u32) -> Result<Timestamp> {
        if count > 10_000 {
            return Err(Error::Usage(format!("at most 10000 timestamps can be had at once, not {count}")));
        }
        Ok(self.store.manager.oracle().fresh_range(count.into()).await?.first)
    }

    async fn immutable_timestamp(&self) -> Result<Timestamp> {
        self.store.manager.immutable_ts().await
    }

    async fn wall_clock_millis(&self, ts: Timestamp) -> Result<Option<i64>> {
        punch::wall_clock_millis(self.kvs(), ts).await
    }

    async fn punched(&self, millis: i64) -> Result<Option<Punch>> {
        punch::at_or_before(self.kvs(), millis).await
    }

    async fn backup_lock_acquire(&self, reason: &str) -> Result<BackupLockRecord> {
        let (store, reason) = (self.store.clone(), reason.to_owned());
        let (answer, answered) = oneshot::channel();
        // A task of its own: whoever stops waiting in the middle must not leave a lock that belongs to nobody.
        tokio::spawn(async move {
            let acquired = store.acquire_and_settle(&reason).await;
            if let Err(Ok(_)) = answer.send(acquired) {
                store.release_quietly().await;
            }
        });
        answered.await.map_err(|_| Error::Interrupted)?
    }

    async fn backup_lock_release(&self) -> Result<Option<BackupLockRecord>> {
        match self.data_dir() {
            // Its owner is this process and none other.
            Some(_) => self.store.backup_lock.release_as_owner().await,
            None => self.store.backup_lock.release().await,
        }
    }

    async fn backup_lock_status(&self) -> Result<Option<BackupLockRecord>> {
        self.store.backup_lock.status().await
    }

    async fn create_table(&self, table: &TableRef, spec: &TableSpec) -> Result<()> {
        TableSpec::check_name(table)?;
        let manager = &self.store.manager;
        let created = {
            let (kvs, table, metadata) = (self.kvs().clone(), table.clone(), spec.to_metadata());
            async move { Ok(kvs.create_table(&table, TableKind::Versioned, metadata).await?) }
        };
        if manager.changes_by_creation(table, spec.conflict_handler) {
            manager.change_table(table, created).await?;
            manager.begin_above_changes().await;
        } else {
            created.await?;
            manager.forget_table(table);
        }
        let found = TableSpec::from_description(&self.existing(table).await?)?;
        if found != *spec {
            return Err(Error::AlreadyExists {
                what: format!(
                    "table '{table}' (conflict handler {}, sweep strategy {})",
                    found.conflict_handler, found.sweep_strategy
                ),
            });
        }
        Ok(())
    }

    async fn alter_table(&self, table: &TableRef, change: &TableChange) -> Result<TableSpec> {
        TableSpec::check_name(table)?;
        let (atlas, table, change) = (self.clone(), table.clone(), *change);
        let altered = {
            let table = table.clone();
            async move {
                let spec = TableSpec::from_description(&atlas.existing(&table).await?)?.changed(&change);
                atlas.kvs().put_table_metadata(&table, spec.to_metadata()).await?;
                Ok(spec)
            }
        };
        let spec = self.store.manager.change_table(&table, altered).await?;
        self.store.manager.begin_above_changes().await;
        Ok(spec)
    }

    async fn tables(&self, internal: bool) -> Result<Vec<TableInfo>> {
        let mut tables = Vec::new();
        for description in self.kvs().tables().await? {
            if internal || !description.table.is_internal() {
                tables.push(self.describe(&description, false).await?);
            }
        }
        Ok(tables)
    }

    async fn describe_table(&self, table: &TableRef, count: bool) -> Result<TableInfo> {
        let description = self.existing(table).await?;
        self.describe(&description, count).await
    }

    async fn drop_table(&self, table: &TableRef) -> Result<()> {
        TableSpec::check_name(table)?;
        let found = self.existing(table).await?;
        // Nobody can have used a table whose handler can't be read.
        let handler = TableSpec::from_description(&found).ok().map(|spec| spec.conflict_handler);
        let (kvs, manager, table) = (self.kvs().clone(), self.store.manager.clone(), table.clone());
        let dropped = async move {
            raise_deletion_floor(&manager).await?;
            if let Some(handler) = handler {
                manager.begin_drop(&table, handler);
            }
            forget_walk(kvs.clone(), &table).await?;
            let dropped = kvs.drop_table(&table).await;
            manager.forget_table(&table);
            manager.forget_cells(&dropped);
            Ok(dropped?)
        };
        self.store.backup_lock.gate().run(dropped).await
    }

    async fn truncate_table(&self, table: &TableRef) -> Result<()> {
        TableSpec::check_name(table)?;
        self.existing(table).await?;
        let (kvs, manager, table) = (self.kvs().clone(), self.store.manager.clone(), table.clone());
        let truncated = async move {
            raise_deletion_floor(&manager).await?;
            forget_walk(kvs.clone(), &table).await?;
            let truncated = kvs.truncate_table(&table).await;
            manager.forget_cells(&truncated);
            Ok(truncated?)
        };
        self.store.backup_lock.gate().run(truncated).await
    }

    async fn begin_transaction(&self, options: BeginOptions) -> Result<Box<dyn TransactionOps>> {
        Ok(Box::new(LocalTransaction { transaction: self.store.manager.begin(options).await? }))
    }

    async fn backup_create(&self, request: BackupRequest, progress: ProgressSink) -> Result<BackupInfo> {
        let cancel = self.store.closing.child_token();
        let _when_dropped = cancel.clone().drop_guard();
        let source = Arc::new(Source { store: self.store.clone() });
        // A task that closing waits for: what an abandoned backup has to undo needs the store.
        let task = self.store.backups.spawn(backup::create::create_until(source, request, progress, cancel));
        match task.await {
            Ok(answer) => answer,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::Interrupted),
        }
    }

    async fn status(&self) -> Result<StoreStatus> {
        let manager = &self.store.manager;
        Ok(StoreStatus {
            namespace: manager.store().namespace.clone(),
            store: self.kvs().capabilities().store.to_owned(),
            location: self.store.opened.location.clone(),
            store_id: manager.store().store_id,
            owner_pid: std::process::id(),
            owner: self.owner().await?,
            commit_mode: manager.commit_mode().to_owned(),
            epoch: manager.oracle().epoch(),
            last_timestamp: manager.oracle().last_issued(),
            timestamp_bound: manager.oracle().bound().previous(),
            immutable_ts: manager.immutable_ts().await?,
            open_transactions: manager.open_transactions(),
            tables: self.tables_with_cells().await?,
            backup_lock: self.backup_lock_status().await?,
            last_backup: backup::create::last_backup(self.kvs().clone()).load().await?.map(|(info, _)| info),
            uptime_ms: u64::try_from(self.uptime().as_millis()).unwrap_or(u64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    async fn sweep(&self, request: SweepRequest, progress: ProgressSink) -> Result<SweepReport> {
        self.store.sweeper.walk(&request, &progress).await
    }

    async fn sweep_status(&self) -> Result<SweepStatus> {
        self.store.sweeper.status(self.backup_lock_status().await?).await
    }

    async fn sweep_pause(&self, reason: &str) -> Result<SweepStatus> {
        self.store.sweeper.pause(reason).await?;
        self.sweep_status().await
    }

    async fn sweep_resume(&self) -> Result<SweepStatus> {
        self.store.sweeper.resume().await?;
        self.sweep_status().await
    }

    async fn hard_delete(&self, table: &TableRef, cells: &[Cell], patience: Duration) -> Result<HardDeleted> {
        self.store.sweeper.hard_delete(table, cells, patience).await
    }

    async fn doctor(&self, checks: &[String]) -> Result<Vec<DoctorFinding>> {
        doctor::examine(self, checks).await
    }

    async fn close(&self) -> Result<()> {
        Atlas::close(self).await
    }
}

impl Atlas {
    /// True for a lock that a backup renews, if that backup can't be running: this process owns the store and renews
    /// no such lock.
    /// For how long this process has owned the store.
    pub(crate) fn uptime(&self) -> Duration {
        self.store.opened_at.elapsed()
    }

    pub(crate) fn is_abandoned(&self, lock: &BackupLockRecord) -> bool {
        lock.renewal.is_some() && self.data_dir().is_some() && !self.store.backup_lock.is_renewed_here(lock)
    }

    pub(crate) fn store_below(&self) -> &Arc<dyn KeyValueService> {
        self.kvs()
    }
}

/// The store as a backup sees it.
struct Source {
    store: Arc<Store>,
}

#[async_trait]
impl BackupSource for Source {
    fn kvs(&self) -> Arc<dyn KeyValueService> {
        self.store.opened.kvs.clone()
    }

    fn namespace(&self) -> String {
        self.store.config.namespace.clone()
    }

    fn store_id(&self) -> uuid::Uuid {
        self.store.manager.store().store_id
    }

    fn data_dir(&self) -> Option<PathBuf> {
        self.store.opened.data_dir.clone()
    }

    async fn fresh_timestamp(&self) -> Result<Timestamp> {
        self.store.manager.oracle().fresh().await
    }

    async fn settle(&self, up_to: Timestamp) -> Result<()> {
        self.store.manager.settle_within(up_to, self.store.config.backup.settle_timeout).await
    }

    fn node_commands(&self) -> Option<NodeCommands> {
        registry::node_commands(&self.store.config)
    }

    fn backup_lock(&self) -> BackupLock {
        self.store.backup_lock.clone()
    }

    fn lock_lease(&self) -> Duration {
        self.store.config.backup.lock_lease
    }

    fn rate_limit(&self) -> u64 {
        self.store.config.backup.rate_limit.0
    }

    async fn read_at(&self, at: Timestamp) -> Result<Box<dyn TransactionOps>> {
        let options = BeginOptions { read_only: true, at: Some(at), timeout: Some(Duration::MAX), lost_to: None };
        Ok(Box::new(LocalTransaction { transaction: self.store.manager.begin(options).await? }))
    }
}

/// A transaction of this process, as operators see it.
struct LocalTransaction {
    transaction: Transaction,
}

#[async_trait]
impl TransactionOps for LocalTransaction {
    fn start_ts(&self) -> Timestamp {
        self.transaction.start_ts()
    }

    fn read_ts(&self) -> Timestamp {
        self.transaction.read_ts()
    }

    fn is_tentative(&self) -> bool {
        self.transaction.seen().on_its_way.is_some()
    }

    async fn get(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>> {
        self.transaction.get_many(table, cells).await
    }

    async fn scan(&self, table: &TableRef, scan: ScanOptions) -> Result<BoxStream<'static, Result<(Cell, Bytes)>>> {
        self.transaction.scan(table, scan).await
    }

    async fn write(&self, table: &TableRef, writes: Vec<(Cell, Option<Bytes>)>) -> Result<()> {
        for (cell, value) in writes {
            match value {
                Some(value) => self.transaction.put(table, cell, value).await?,
                None => self.transaction.delete(table, cell).await?,
            }
        }
        Ok(())
    }

    async fn commit(self: Box<Self>) -> Result<Option<Timestamp>> {
        self.transaction.commit().await
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.transaction.abort();
        Ok(())
    }
}
