//! The client: [`Operations`] carried out by the process that owns the store.
//!
//! What a lost answer means depends on the call. Nothing is lost with a question, so it is `UNAVAILABLE`. A change that
//! may have reached the server is `INDETERMINATE`. A commit is asked about once more over a new connection, because the
//! server keeps the outcome; only if that fails too, it is `UNKNOWN_OUTCOME`.

use super::challenge::Challenge;
use super::coalesce::Coalescer;
use super::locks::{LockLease, LockOps};
use super::proto as pb;
use super::socket;
use super::token::{self, Credentials, Token};
use super::wire::{self, Malformed};
use super::{MESSAGE_LEN_MAX, PAGE_LEN, PING_INTERVAL, PROTOCOL};
use crate::ops::{
    BackupInfo, BackupLockRecord, BackupRequest, BeginOptions, Connection, DoctorFinding, HardDeleted, Operations,
    ProgressSink, Punch, ScanOptions, StoreStatus, SweepReport, SweepRequest, SweepStatus, TableInfo, TransactionOps,
};
use crate::schema::{TableChange, TableSpec};
use crate::{Cell, Error, Result, TableRef, Timestamp};
use async_trait::async_trait;
use atlas_kvs::KvsError;
use bytes::Bytes;
use futures::stream::BoxStream;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, ConnectError, Response, Status};
use uuid::Uuid;

/// How long the first answer may take. Also of a commit that is asked about again: longer ones are known only to the
/// server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long who is found through the store may take to prove that it has that store; a little longer than it gives
/// itself for it.
const PROOF_TIMEOUT: Duration = Duration::from_secs(7);
/// How much a message that can be divided has at most; small enough to be sent while others want to be, too.
const CHUNK_LEN: usize = 4 * PAGE_LEN;
const CELLS_PER_GET: usize = 1_000;
/// Room for what is in a message besides the longest value.
const FRAME_LEN: usize = 4 << 10;
/// What a cell costs in a message besides its bytes.
const CELL_OVERHEAD: usize = 32;

/// The store of another process. Cloning is cheap; clones share a connection, which is made anew when it breaks.
#[derive(Clone)]
pub struct RemoteAtlas {
    target: Target,
    channel: Channel,
    credentials: Credentials,
    timestamps: Arc<Coalescer>,
    pid: u32,
    version: String,
    store_id: Option<Uuid>,
    namespace: Option<String>,
}

/// Where the server is.
#[derive(Clone, Debug)]
enum Target {
    /// The socket of this data directory.
    Socket(PathBuf),
    /// TCP on this machine.
    Tcp(SocketAddr),
}

/// What a call answers before its status is turned into an error.
type Answer<T, E = Status> = std::result::Result<T, E>;

/// What it means that the answer to a call is lost.
#[derive(Clone, Copy)]
enum Effect {
    /// Nothing: it may be asked again.
    Question,
    /// It may have been done, or not.
    Change,
}

macro_rules! clients {
    ($($name:ident: $module:ident :: $client:ident),* $(,)?) => {
        $(fn $name(&self) -> pb::$module::$client<InterceptedService<Channel, Credentials>> {
            pb::$module::$client::with_interceptor(self.channel.clone(), self.credentials.clone())
                .max_decoding_message_size(MESSAGE_LEN_MAX)
                .max_encoding_message_size(MESSAGE_LEN_MAX)
        })*
    };
}

impl RemoteAtlas {
    clients! {
        timestamps_client: timestamps_client::TimestampsClient,
        locks_client: locks_client::LocksClient,
        backup_lock_client: backup_lock_client::BackupLockClient,
        tables_client: tables_client::TablesClient,
        transactions_client: transactions_client::TransactionsClient,
        backup_client: backup_client::BackupClient,
        sweep_client: sweep_client::SweepClient,
        admin_client: admin_client::AdminClient,
    }

    /// See [`super::connect`].
    pub(super) async fn connect_socket(data_dir: &Path) -> Result<Option<RemoteAtlas>> {
        // Tried by hand first: only here is it told apart whether nobody listens or somebody does not answer.
        match socket::open(data_dir).await {
            Err(error) if socket::is_dead(&error) => return Ok(None),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock) => {
                return Err(Error::Unavailable {
                    what: socket::socket_path(data_dir).display().to_string(),
                    reason: "its process accepts no more connections".to_owned(),
                });
            }
            Err(error) => {
                return Err(Error::io(format!("connecting to {}", socket::socket_path(data_dir).display()), error));
            }
            Ok(_) => {}
        }
        RemoteAtlas::greet(Target::Socket(data_dir.to_owned()), Credentials::default()).await.map(Some)
    }

    /// Connects to `atlas serve` at an address of this machine, such as `http://127.0.0.1:8422` or `127.0.0.1:8422`.
    /// `token_file` is the server's [`token_path`](super::token_path); `None`: what the environment variable
    /// `ATLAS_SERVER_TOKEN_FILE` names.
    ///
    /// # Errors
    /// * [`Error::Usage`] for anything that is no loopback address: the connection is not protected.
    /// * [`Error::NotFound`] and [`Error::Io`] for a token file that is missing or can't be used.
    /// * `UNAUTHENTICATED` if the server wants another token, or one at all.
    /// * [`Error::Unavailable`] if nobody answers.
    /// * [`Error::Refused`] if the server speaks another version of the protocol.
    ///
    /// Cancel safe: nothing is changed anywhere.
    pub async fn connect_address(address: &str, token_file: Option<&Path>) -> Result<RemoteAtlas> {
        let text = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
        let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        let parsed = numeric.as_deref().unwrap_or(text).parse::<SocketAddr>().ok();
        let Some(target) = parsed.filter(|address| address.ip().is_loopback()) else {
            return Err(Error::Usage(format!(
                "'{address}' is no address of this machine: write one such as http://127.0.0.1:8422"
            )));
        };
        let by_environment =
            || std::env::var_os(token::FILE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let credentials = match token_file.map(Path::to_owned).or_else(by_environment) {
            Some(path) => Credentials::read(&path)?,
            None => Credentials::default(),
        };
        RemoteAtlas::greet(Target::Tcp(target), credentials).await
    }

    /// Asks who listens at `address` whether it has the store in which `challenge` lies. Shows it no token.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if nobody answers in time, or who answers can't tell.
    pub(super) async fn is_met_at(address: SocketAddr, challenge: &Challenge) -> Result<bool> {
        let target = Target::Tcp(address);
        let unavailable = |reason: String| Error::Unavailable { what: target.to_string(), reason };
        let mut client = pb::identity_client::IdentityClient::new(target.channel());
        let asked = client.prove(pb::ProveRequest { name: challenge.name() });
        match tokio::time::timeout(PROOF_TIMEOUT, asked).await {
            Ok(Ok(answer)) => Ok(challenge.is_met_by(&answer.get_ref().proof, address)),
            Ok(Err(status)) => Err(unavailable(status.message().to_owned())),
            Err(_) => Err(unavailable(format!("no answer within {} s", PROOF_TIMEOUT.as_secs()))),
        }
    }

    /// Connects to a server that has proved what it is.
    pub(super) async fn connect_proven(address: SocketAddr, token: &Token) -> Result<RemoteAtlas> {
        RemoteAtlas::greet(Target::Tcp(address), Credentials::of(token)).await
    }

    async fn greet(target: Target, credentials: Credentials) -> Result<RemoteAtlas> {
        let channel = target.channel();
        let timestamps = Arc::new(coalescer(channel.clone(), credentials.clone()));
        let (version, store_id, namespace) = (String::new(), None, None);
        let mut remote = RemoteAtlas { target, channel, credentials, timestamps, pid: 0, version, store_id, namespace };
        let request = pb::HelloRequest { version: env!("CARGO_PKG_VERSION").to_owned(), protocol: PROTOCOL };
        let mut client = remote.admin_client();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.hello(request)).await.map_err(|_| {
            let reason = format!("it accepts connections but did not answer within {} s", ANSWER_TIMEOUT.as_secs());
            Error::Unavailable { what: remote.target.to_string(), reason }
        })?;
        let hello = remote.answer("Hello", Effect::Question, answer)?;
        if hello.protocol != PROTOCOL {
            return Err(Error::refused(
                format!(
                    "process {} at {} speaks protocol {} (atlas {}), this program protocol {PROTOCOL} (atlas {})",
                    hello.pid,
                    remote.target,
                    hello.protocol,
                    hello.version,
                    env!("CARGO_PKG_VERSION"),
                ),
                "use a program of the owner's version, or stop the owner",
            ));
        }
        remote.pid = hello.pid;
        remote.version = hello.version;
        remote.namespace = hello.namespace;
        remote.store_id = hello.store_id.and_then(|id| Uuid::parse_str(&id).ok());
        Ok(remote)
    }

    /// Process id of the owner, as it was when the connection was made first.
    pub fn owner_pid(&self) -> u32 {
        self.pid
    }

    /// Version of the owner's program.
    pub fn owner_version(&self) -> &str {
        &self.version
    }

    /// Identity of the store, if the owner told it.
    pub fn store_id(&self) -> Option<Uuid> {
        self.store_id
    }

    /// Namespace of the store, if the owner told it.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The same server over a connection of its own.
    fn reconnected(&self) -> RemoteAtlas {
        RemoteAtlas { channel: self.target.channel(), ..self.clone() }
    }

    fn answer<T>(&self, call: &str, effect: Effect, answer: Answer<Response<T>>) -> Result<T> {
        answer.map(Response::into_inner).map_err(|status| self.error(call, effect, &status))
    }

    fn error(&self, call: &str, effect: Effect, status: &Status) -> Error {
        if let Some(error) = wire::error_of(status) {
            return error;
        }
        match (status.code(), effect) {
            // Codes that gRPC itself gives before the service has seen the call.
            (Code::Unimplemented, _) => Error::refused(
                format!("{} does not know the call {call}", self.target),
                "use a program of the owner's version",
            ),
            (Code::OutOfRange, _) => Error::Remote {
                code: "TOO_LARGE".to_owned(),
                message: format!("{call}: {}", status.message()),
                hint: None,
                retriable: false,
                exit_code: crate::exit::FAILURE,
            },
            (_, Effect::Change) if !was_not_sent(status) => Error::Kvs(KvsError::Indeterminate {
                reason: format!("the connection to {} was lost during {call}: {}", self.target, status.message()),
                source: None,
            }),
            _ => self.unavailable(status),
        }
    }

    fn unavailable(&self, status: &Status) -> Error {
        Error::Unavailable { what: self.target.to_string(), reason: status.message().to_owned() }
    }
}

impl std::fmt::Debug for RemoteAtlas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteAtlas").field("target", &self.target).field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Socket(data_dir) => socket::socket_path(data_dir).display().fmt(f),
            Target::Tcp(address) => write!(f, "http://{address}"),
        }
    }
}

impl Target {
    /// A connection that is made with the first call, and made anew when it is lost.
    fn channel(&self) -> Channel {
        let endpoint = |uri: Uri| {
            Endpoint::from(uri)
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_INTERVAL)
        };
        match self {
            Target::Tcp(address) => {
                let uri = Uri::try_from(format!("http://{address}")).expect("an address and a port make a URI");
                endpoint(uri).tcp_nodelay(true).connect_lazy()
            }
            Target::Socket(data_dir) => {
                let data_dir: Arc<Path> = data_dir.as_path().into();
                // The name is required, and ignored.
                endpoint(Uri::from_static("http://atlas.sock")).connect_with_connector_lazy(tower::service_fn(
                    move |_: Uri| {
                        let data_dir = data_dir.clone();
                        async move { socket::open(&data_dir).await.map(TokioIo::new) }
                    },
                ))
            }
        }
    }
}

/// Waiting callers share a request over this connection.
fn coalescer(channel: Channel, credentials: Credentials) -> Coalescer {
    let client = pb::timestamps_client::TimestampsClient::with_interceptor(channel, credentials);
    Coalescer::new(move |count| {
        let mut client = client.clone();
        async move { Ok(client.fresh(pb::FreshRequest { count }).await?.into_inner().first) }
    })
}

/// True if a call failed before a connection was there to carry it.
fn was_not_sent(status: &Status) -> bool {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |error| error.source()).any(|error| error.is::<ConnectError>())
}

#[async_trait]
impl Operations for RemoteAtlas {
    fn connection(&self) -> Connection {
        Connection::Remote { address: self.target.to_string(), pid: Some(self.pid) }
    }

    async fn fresh_timestamp(&self) -> Result<Timestamp> {
        let number = self.timestamps.fresh().await;
        let number = number.map_err(|status| self.error("Timestamps.Fresh", Effect::Question, &status))?;
        wire::timestamp(number).map_err(Malformed::in_answer)
    }

    async fn pin_fresh_timestamp(&self, hold: Duration) -> Result<Timestamp> {
        let request = pb::PinRequest { hold_ms: wire::millis(hold) };
        let answer = self.timestamps_client().pin(request).await;
        // A pin that nobody knows of ends by itself.
        let timestamp = self.answer("Timestamps.Pin", Effect::Question, answer)?.timestamp;
        wire::timestamp(timestamp).map_err(Malformed::in_answer)
    }

    async fn fresh_timestamps(&self, count: u32) -> Result<Timestamp> {
        if count == 0 {
            return Err(Error::Usage("at least one timestamp must be asked for".to_owned()));
        }
        let answer = self.timestamps_client().fresh(pb::FreshRequest { count }).await;
        // Numbers whose answer is lost are gaps, which are allowed.
        let first = self.answer("Timestamps.Fresh", Effect::Question, answer)?.first;
        wire::timestamp(first).map_err(Malformed::in_answer)
    }

    async fn immutable_timestamp(&self) -> Result<Timestamp> {
        let answer = self.timestamps_client().immutable(pb::ImmutableRequest {}).await;
        let timestamp = self.answer("Timestamps.Immutable", Effect::Question, answer)?.timestamp;
        wire::timestamp(timestamp).map_err(Malformed::in_answer)
    }

    async fn wall_clock_millis(&self, ts: Timestamp) -> Result<Option<i64>> {
        let answer = self.timestamps_client().wall_clock(pb::WallClockRequest { timestamp: ts.get() }).await;
        Ok(self.answer("Timestamps.WallClock", Effect::Question, answer)?.millis)
    }

    async fn punched(&self, millis: i64) -> Result<Option<Punch>> {
        let answer = self.timestamps_client().punched(pb::PunchedRequest { millis }).await;
        let punch = self.answer("Timestamps.Punched", Effect::Question, answer)?.punch;
        punch.map(TryInto::try_into).transpose().map_err(Malformed::in_answer)
    }

    async fn backup_lock_acquire(&self, reason: &str) -> Result<BackupLockRecord> {
        let answer = self.backup_lock_client().acquire(pb::AcquireRequest { reason: reason.to_owned() }).await;
        let lock = self.answer("BackupLock.Acquire", Effect::Change, answer)?.lock;
        wire::required(lock, "lock").and_then(TryInto::try_into).map_err(Malformed::in_answer)
    }

    async fn backup_lock_release(&self) -> Result<Option<BackupLockRecord>> {
        let answer = self.backup_lock_client().release(pb::ReleaseRequest {}).await;
        let lock = self.answer("BackupLock.Release", Effect::Change, answer)?.lock;
        lock.map(TryInto::try_into).transpose().map_err(Malformed::in_answer)
    }

    async fn backup_lock_status(&self) -> Result<Option<BackupLockRecord>> {
        let answer = self.backup_lock_client().status(pb::BackupLockStatusRequest {}).await;
        let lock = self.answer("BackupLock.Status", Effect::Question, answer)?.lock;
        lock.map(TryInto::try_into).transpose().map_err(Malformed::in_answer)
    }

    async fn create_table(&self, table: &TableRef, spec: &TableSpec) -> Result<()> {
        let request = pb::CreateTableRequest { table: table.name().to_owned(), spec: Some((*spec).into()) };
        let answer = self.tables_client().create(request).await;
        self.answer("Tables.Create", Effect::Change, answer).map(drop)
    }

    async fn tables(&self, internal: bool) -> Result<Vec<TableInfo>> {
        let answer = self.tables_client().list(pb::ListTablesRequest { internal }).await;
        let tables = self.answer("Tables.List", Effect::Question, answer)?.tables;
        wire::table_infos(tables).map_err(Malformed::in_answer)
    }

    async fn describe_table(&self, table: &TableRef, count: bool) -> Result<TableInfo> {
        let request = pb::DescribeTableRequest { table: table.name().to_owned(), count };
        let answer = self.tables_client().describe(request).await;
        let info = self.answer("Tables.Describe", Effect::Question, answer)?.table;
        wire::required(info, "table").and_then(TryInto::try_into).map_err(Malformed::in_answer)
    }

    async fn alter_table(&self, table: &TableRef, change: &TableChange) -> Result<TableSpec> {
        let request = pb::AlterTableRequest { table: table.name().to_owned(), spec: Some((*change).into()) };
        let answer = self.tables_client().alter(request).await;
        let spec = self.answer("Tables.Alter", Effect::Change, answer)?.spec;
        wire::required(spec, "spec").and_then(TryInto::try_into).map_err(Malformed::in_answer)
    }

    async fn drop_table(&self, table: &TableRef) -> Result<()> {
        let request = pb::DropTableRequest { table: table.name().to_owned() };
        let answer = self.tables_client().drop(request).await;
        self.answer("Tables.Drop", Effect::Change, answer).map(drop)
    }

    async fn truncate_table(&self, table: &TableRef) -> Result<()> {
        let request = pb::TruncateTableRequest { table: table.name().to_owned() };
        let answer = self.tables_client().truncate(request).await;
        self.answer("Tables.Truncate", Effect::Change, answer).map(drop)
    }

    /// The transaction lives at the server, is kept alive from here while it is held, and is aborted when it is
    /// dropped. Cancel safe: what was begun in vain is aborted when its lease is over.
    async fn begin_transaction(&self, options: BeginOptions) -> Result<Box<dyn TransactionOps>> {
        let answer = self.transactions_client().begin(pb::BeginRequest::from(options)).await;
        let begun = self.answer("Transactions.Begin", Effect::Question, answer)?;
        Ok(Box::new(RemoteTransaction {
            start_ts: wire::timestamp(begun.start_ts).map_err(Malformed::in_answer)?,
            read_ts: wire::timestamp(begun.read_ts).map_err(Malformed::in_answer)?,
            tentative: begun.tentative,
            unsettled_writes: AtomicUsize::new(0),
            open: true,
            _kept_alive: keep_alive(self.clone(), begun.transaction_id.clone(), begun.lease_ms),
            id: begun.transaction_id,
            remote: self.clone(),
        }))
    }

    async fn backup_create(&self, request: BackupRequest, progress: ProgressSink) -> Result<BackupInfo> {
        const CALL: &str = "Backup.Create";
        let answer = self.backup_client().create(pb::CreateBackupRequest::from(request)).await;
        // Dropping the stream resets the call, which ends the backup over there.
        let mut events = self.answer(CALL, Effect::Change, answer)?;
        loop {
            let event = events.message().await.map_err(|status| self.error(CALL, Effect::Change, &status))?;
            match event.map(|event| event.event) {
                Some(Some(pb::create_backup_response::Event::Progress(step))) => progress(step.into()),
                Some(Some(pb::create_backup_response::Event::Result(info))) => {
                    return info.try_into().map_err(Malformed::in_answer);
                }
                // A kind of event that this version does not know.
                Some(None) => {}
                None => {
                    return Err(Error::Kvs(KvsError::Indeterminate {
                        reason: "the backup ended without a result".to_owned(),
                        source: None,
                    }));
                }
            }
        }
    }

    async fn status(&self) -> Result<StoreStatus> {
        let answer = self.admin_client().status(pb::StatusRequest {}).await;
        let status = self.answer("Admin.Status", Effect::Question, answer)?.status;
        wire::required(status, "status").and_then(TryInto::try_into).map_err(Malformed::in_answer)
    }

    async fn sweep(&self, request: SweepRequest, progress: ProgressSink) -> Result<SweepReport> {
        const CALL: &str = "Sweep.Run";
        // What was removed is removed, and the same request goes on behind it: a lost answer is no loss.
        let answer = self.sweep_client().run(pb::SweepRequest::from(request)).await;
        // Dropping the stream resets the call, which ends the sweep over there.
        let mut events = self.answer(CALL, Effect::Question, answer)?;
        loop {
            let event = events.message().await.map_err(|status| self.error(CALL, Effect::Question, &status))?;
            match event.map(|event| event.event) {
                Some(Some(pb::sweep_response::Event::Progress(step))) => progress(step.into()),
                Some(Some(pb::sweep_response::Event::Result(report))) => {
                    return report.try_into().map_err(Malformed::in_answer);
                }
                // A kind of event that this version does not know.
                Some(None) => {}
                None => {
                    return Err(Error::Unavailable {
                        what: self.target.to_string(),
                        reason: "the sweep ended without a result".to_owned(),
                    });
                }
            }
        }
    }

    async fn sweep_status(&self) -> Result<SweepStatus> {
        let answer = self.sweep_client().status(pb::SweepStatusRequest {}).await;
        sweep_status(self.answer("Sweep.Status", Effect::Question, answer)?.status)
    }

    async fn sweep_pause(&self, reason: &str) -> Result<SweepStatus> {
        let answer = self.sweep_client().pause(pb::SweepPauseRequest { reason: reason.to_owned() }).await;
        sweep_status(self.answer("Sweep.Pause", Effect::Change, answer)?.status)
    }

    async fn sweep_resume(&self) -> Result<SweepStatus> {
        let answer = self.sweep_client().resume(pb::SweepResumeRequest {}).await;
        sweep_status(self.answer("Sweep.Resume", Effect::Change, answer)?.status)
    }

    async fn hard_delete(&self, table: &TableRef, cells: &[Cell], patience: Duration) -> Result<HardDeleted> {
        let request = pb::HardDeleteRequest {
            table: table.name().to_owned(),
            cells: cells.iter().cloned().map(Into::into).collect(),
            patience_ms: wire::millis(patience),
        };
        let answer = self.sweep_client().hard_delete(request).await;
        self.answer("Sweep.HardDelete", Effect::Change, answer)?.try_into().map_err(Malformed::in_answer)
    }

    async fn doctor(&self, checks: &[String]) -> Result<Vec<DoctorFinding>> {
        let answer = self.admin_client().doctor(pb::DoctorRequest { checks: checks.to_vec() }).await;
        let findings = self.answer("Admin.Doctor", Effect::Question, answer)?.findings;
        findings.into_iter().map(TryInto::try_into).collect::<Answer<_, _>>().map_err(Malformed::in_answer)
    }

    /// Nothing to release: the store belongs to the server, and the connection ends with the last clone.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

fn sweep_status(status: Option<pb::SweepStatus>) -> Result<SweepStatus> {
    wire::required(status, "status").and_then(TryInto::try_into).map_err(Malformed::in_answer)
}

#[async_trait]
impl LockOps for RemoteAtlas {
    async fn lock(&self, request_id: Uuid, descriptors: Vec<Bytes>, timeout: Duration) -> Result<LockLease> {
        let request = pb::LockRequest {
            request_id: Bytes::copy_from_slice(request_id.as_bytes()),
            descriptors,
            timeout_ms: wire::millis(timeout),
        };
        let answer = self.locks_client().lock(request).await;
        // The same request id may be asked again, so a lost answer is no loss.
        let granted = self.answer("Locks.Lock", Effect::Question, answer)?;
        Ok(LockLease { token: granted.token, lease: Duration::from_millis(granted.lease_ms) })
    }

    async fn refresh(&self, tokens: &[Bytes]) -> Result<Vec<Bytes>> {
        let answer = self.locks_client().refresh(pb::RefreshRequest { tokens: tokens.to_vec() }).await;
        Ok(self.answer("Locks.Refresh", Effect::Question, answer)?.tokens)
    }

    async fn unlock(&self, tokens: &[Bytes]) -> Result<Vec<Bytes>> {
        let answer = self.locks_client().unlock(pb::UnlockRequest { tokens: tokens.to_vec() }).await;
        Ok(self.answer("Locks.Unlock", Effect::Change, answer)?.tokens)
    }

    async fn wait_for(&self, descriptors: Vec<Bytes>, timeout: Duration) -> Result<()> {
        let request = pb::WaitForRequest { descriptors, timeout_ms: wire::millis(timeout) };
        let answer = self.locks_client().wait_for(request).await;
        self.answer("Locks.WaitFor", Effect::Question, answer).map(drop)
    }
}

/// A transaction held by the server.
struct RemoteTransaction {
    remote: RemoteAtlas,
    id: Bytes,
    start_ts: Timestamp,
    read_ts: Timestamp,
    tentative: bool,
    /// Writes that may have been applied in part, because they are on their way or their answers were lost. A
    /// transaction with any of them does not commit: it would write less than its owner believes.
    unsettled_writes: AtomicUsize,
    /// Neither commit nor abort has begun.
    open: bool,
    _kept_alive: AbortOnDropHandle<()>,
}

/// Gives signs of life until it is dropped, or the server says that it is too late.
fn keep_alive(remote: RemoteAtlas, transaction_id: Bytes, lease_ms: u64) -> AbortOnDropHandle<()> {
    let period = Duration::from_millis(lease_ms / 3).max(Duration::from_millis(10));
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            tokio::time::sleep(period).await;
            let request = pb::KeepAliveRequest { transaction_id: transaction_id.clone() };
            match remote.transactions_client().keep_alive(request).await {
                Err(status) if wire::detail_in(&status).is_some() => return,
                // A connection that breaks may come back before the lease is over.
                Ok(_) | Err(_) => {}
            }
        }
    }))
}

#[async_trait]
impl TransactionOps for RemoteTransaction {
    fn start_ts(&self) -> Timestamp {
        self.start_ts
    }

    fn read_ts(&self) -> Timestamp {
        self.read_ts
    }

    fn is_tentative(&self) -> bool {
        self.tentative
    }

    async fn get(&self, table: &TableRef, cells: &[Cell]) -> Result<Vec<Option<Bytes>>> {
        let mut values = Vec::with_capacity(cells.len());
        for some in cells.chunks(CELLS_PER_GET) {
            self.get_some(table, some, &mut values).await?;
        }
        Ok(values)
    }

    /// The server sends a page when the one before is read, so that a slow reader costs no memory.
    async fn scan(&self, table: &TableRef, scan: ScanOptions) -> Result<BoxStream<'static, Result<(Cell, Bytes)>>> {
        const CALL: &str = "Transactions.Scan";
        let request = wire::scan_request(self.id.clone(), table, scan);
        let answer = self.remote.transactions_client().scan(request).await;
        let mut pages = self.remote.answer(CALL, Effect::Question, answer)?;
        let remote = self.remote.clone();
        Ok(Box::pin(async_stream::try_stream! {
            while let Some(page) = pages.message().await.map_err(|status| remote.error(CALL, Effect::Question, &status))? {
                for found in page.cells {
                    yield found.into();
                }
            }
        }))
    }

    /// Not cancel safe: a transaction whose write was dropped half-way does not commit any more.
    async fn write(&self, table: &TableRef, writes: Vec<(Cell, Option<Bytes>)>) -> Result<()> {
        let chunks = chunks(table, writes)?;
        self.unsettled_writes.fetch_add(1, Ordering::AcqRel);
        for (index, writes) in chunks.into_iter().enumerate() {
            let request = pb::WriteRequest { transaction_id: self.id.clone(), table: table.name().to_owned(), writes };
            if let Err(status) = self.remote.transactions_client().write(request).await {
                if index == 0 && wire::detail_in(&status).is_some() {
                    self.unsettled_writes.fetch_sub(1, Ordering::AcqRel);
                }
                return Err(self.remote.error("Transactions.Write", Effect::Question, &status));
            }
        }
        self.unsettled_writes.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }

    /// Cancel safety: once the request is sent, the server carries it through.
    async fn commit(mut self: Box<Self>) -> Result<Option<Timestamp>> {
        if self.unsettled_writes.load(Ordering::Acquire) > 0 {
            return Err(Error::Unavailable {
                what: format!("transaction {}", self.start_ts),
                reason: "a write was interrupted or refused in part, so it was aborted".to_owned(),
            });
        }
        self.open = false;
        let first = match self.ask_to_commit(&self.remote).await {
            Ok(answer) => return self.commit_ts(answer.commit_ts),
            Err(status) => status,
        };
        if let Some(detail) = wire::detail_in(&first) {
            return Err(self.commit_error(detail));
        }
        let sent = !was_not_sent(&first);
        let again = self.remote.reconnected();
        let second = match tokio::time::timeout(ANSWER_TIMEOUT, self.ask_to_commit(&again)).await {
            Ok(Ok(answer)) => return self.commit_ts(answer.commit_ts),
            Ok(Err(status)) => status,
            Err(_) => return Err(self.unknown_outcome(&first, "and it did not answer when it was asked again")),
        };
        match wire::detail_in(&second) {
            // Another process answers, or one that does not own the store yet, or it was asked too late: only what a
            // commit itself can be told tells what became of the first one.
            Some(detail) if sent && !OUTCOMES.contains(&detail.code.as_str()) => {
                Err(self.unknown_outcome(&first, "and the server does not know what became of the transaction"))
            }
            Some(detail) => Err(self.commit_error(detail)),
            None if !sent && was_not_sent(&second) => Err(self.remote.unavailable(&second)),
            None => Err(self.unknown_outcome(&first, "and the server could not be asked again")),
        }
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.open = false;
        let request = pb::AbortRequest { transaction_id: self.id.clone() };
        match self.remote.transactions_client().abort(request).await {
            Ok(_) => Ok(()),
            // It is gone, or will be when its lease is over; nothing of it is visible either way.
            Err(status) if wire::detail_in(&status).is_none() => Ok(()),
            Err(status) => Err(self.remote.error("Transactions.Abort", Effect::Question, &status)),
        }
    }
}

/// Codes that only the commit of a transaction is answered with.
const OUTCOMES: [&str; 14] = [
    "CONFLICT",
    "READ_CONFLICT",
    "TABLE_CHANGED",
    "DEPENDENCY_LOST",
    "LOCK_TIMEOUT",
    "LOCKS_LOST",
    "ROLLED_BACK",
    "TOO_OLD",
    "TRANSACTION_TIMED_OUT",
    "UNKNOWN_OUTCOME",
    "TOO_LARGE",
    "CONSTRAINT",
    "PRE_COMMIT_CONDITION",
    "READ_ONLY",
];

impl RemoteTransaction {
    async fn get_some(&self, table: &TableRef, cells: &[Cell], values: &mut Vec<Option<Bytes>>) -> Result<()> {
        const CALL: &str = "Transactions.Get";
        let request = pb::GetRequest {
            transaction_id: self.id.clone(),
            table: table.name().to_owned(),
            cells: cells.iter().cloned().map(Into::into).collect(),
        };
        let answer = self.remote.transactions_client().get(request).await;
        let mut pages = self.remote.answer(CALL, Effect::Question, answer)?;
        let wanted = values.len() + cells.len();
        while let Some(page) =
            pages.message().await.map_err(|status| self.remote.error(CALL, Effect::Question, &status))?
        {
            values.extend(page.values.into_iter().map(|value| value.value));
        }
        if values.len() != wanted {
            let reason = format!("it has {} values too few or too many", wanted.abs_diff(values.len()));
            return Err(Error::Unavailable { what: "the server's answer".to_owned(), reason });
        }
        Ok(())
    }

    async fn ask_to_commit(&self, remote: &RemoteAtlas) -> Answer<pb::CommitResponse> {
        let request = pb::CommitRequest { transaction_id: self.id.clone() };
        remote.transactions_client().commit(request).await.map(Response::into_inner)
    }

    fn commit_ts(&self, commit_ts: Option<u64>) -> Result<Option<Timestamp>> {
        // It did commit, so an answer that makes no sense is no failure.
        commit_ts.map(wire::timestamp).transpose().map_err(|_| Error::UnknownOutcome {
            start_ts: self.start_ts,
            commit_ts: None,
            reason: "the server said that it committed, at a timestamp that can't be".to_owned(),
        })
    }

    /// An unknown outcome has a variant of its own, wherever it became unknown.
    fn commit_error(&self, detail: pb::ErrorDetail) -> Error {
        let start_ts = self.start_ts;
        // One that makes no sense tells nothing.
        let commit_ts = detail.commit_ts.and_then(Timestamp::new);
        let error = wire::error_of_detail(detail);
        if error.code() != "UNKNOWN_OUTCOME" {
            return error;
        }
        let message = error.to_string();
        let prefix = Error::UnknownOutcome { start_ts, commit_ts: None, reason: String::new() }.to_string();
        let reason = message.strip_prefix(&prefix).unwrap_or(&message).to_owned();
        Error::UnknownOutcome { start_ts, commit_ts, reason }
    }

    fn unknown_outcome(&self, first: &Status, then: &str) -> Error {
        let lost = format!("the connection to {} was lost ({})", self.remote.target, first.message());
        Error::UnknownOutcome { start_ts: self.start_ts, commit_ts: None, reason: format!("{lost}, {then}") }
    }
}

impl Drop for RemoteTransaction {
    fn drop(&mut self) {
        // Without a runtime, the lease ends it a little later.
        if let (true, Ok(runtime)) = (self.open, tokio::runtime::Handle::try_current()) {
            let mut client = self.remote.transactions_client();
            let request = pb::AbortRequest { transaction_id: self.id.clone() };
            runtime.spawn(async move { tokio::time::timeout(ANSWER_TIMEOUT, client.abort(request)).await });
        }
    }
}

/// Divides writes into messages; refuses a single one that fits in none before anything is sent.
fn chunks(table: &TableRef, writes: Vec<(Cell, Option<Bytes>)>) -> Result<Vec<Vec<pb::CellWrite>>> {
    let mut chunks = Vec::new();
    let mut chunk_len = usize::MAX;
    for (cell, value) in writes {
        let len = cell.row.len() + cell.column.len() + value.as_ref().map_or(0, Bytes::len) + CELL_OVERHEAD;
        if len > MESSAGE_LEN_MAX - FRAME_LEN {
            let what = format!("a write to {table}:{}", shortened(&cell));
            return Err(Error::TooLarge { what, len, limit: MESSAGE_LEN_MAX - FRAME_LEN });
        }
        if chunk_len.saturating_add(len) > CHUNK_LEN {
            chunks.push(Vec::new());
            chunk_len = 0;
        }
        chunk_len += len;
        chunks.last_mut().expect("the first write starts a chunk").push((cell, value).into());
    }
    Ok(chunks)
}

/// The cell may be what is too long.
fn shortened(cell: &Cell) -> Cell {
    let start = |name: &Bytes| name.slice(..name.len().min(64));
    Cell { row: start(&cell.row), column: start(&cell.column) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(len: usize) -> (Cell, Option<Bytes>) {
        (Cell::copy_from("row", "column"), Some(Bytes::from(vec![7; len])))
    }

    #[test]
    fn writes_are_divided_in_order_and_one_that_fits_nowhere_is_refused() {
        let table = TableRef::new("t").expect("well formed");
        let lens = |writes| chunks(&table, writes).expect("fits").iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lens(vec![]), Vec::<usize>::new());
        assert_eq!(lens(vec![write(1), write(2)]), [2]);
        assert_eq!(lens(vec![write(CHUNK_LEN), write(1), write(2), write(CHUNK_LEN)]), [1, 2, 1]);
        let error = chunks(&table, vec![write(1), write(MESSAGE_LEN_MAX)]).expect_err("too large");
        assert_eq!(error.code(), "TOO_LARGE");
    }
}
