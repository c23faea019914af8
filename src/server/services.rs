//! The services of the protocol, each call a thin translation to [`Operations`].

use super::challenge;
use super::locks::{LockLease, LockOps};
use super::proto as pb;
use super::token::Token;
use super::transactions::{OpenTransaction, Transactions};
use super::wire;
use super::{LOCKS_MAX, MESSAGE_LEN_MAX, PAGE_LEN, PROTOCOL};
use crate::ops::{BackupRequest, BeginOptions, Operations, Progress, ProgressSink, SweepRequest};
use crate::{Cell, Error, TableRef};
use async_trait::async_trait;
use atlas_kvs::KeyValueService;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use pb::{create_backup_response::Event, sweep_response::Event as SweepEvent};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// How long a lock may be waited for.
const LOCK_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// How long Hello waits for the store to tell its identity.
const STORE_ID_TIMEOUT: Duration = Duration::from_secs(1);
/// How many proofs are made at a time, and how long the store may take for one.
const PROOFS_AT_ONCE: usize = 4;
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);
/// Most cells of a message.
const PAGE_CELLS_MAX: usize = 1_000;
/// What a write costs in memory besides its bytes.
const WRITE_OVERHEAD: u64 = 96;

/// What a server may hold for its clients at most.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Open transactions.
    pub transactions_max: usize,
    /// How long a transaction lives without a sign of life of its client.
    pub lease: Duration,
    /// How long the outcome of a finished transaction is kept for clients that ask again.
    pub outcome_kept: Duration,
    /// How many outcomes are kept; the oldest go first.
    pub outcomes_max: usize,
    /// Bytes that the writes of all open transactions together may take.
    pub buffered_bytes_max: u64,
    /// Connections of each listener; more wait to be let in.
    pub connections_max: usize,
    /// How long commits that have begun may take once the server is asked to end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            transactions_max: 10_000,
            lease: Duration::from_secs(60),
            outcome_kept: Duration::from_secs(300),
            outcomes_max: 100_000,
            buffered_bytes_max: 1 << 30,
            connections_max: 1_024,
            drain: Duration::from_secs(10),
        }
    }
}

/// What a server answers with.
#[derive(Clone)]
pub struct Services {
    pub(super) operations: Arc<dyn Operations>,
    pub(super) locks: Option<Arc<dyn LockOps>>,
    pub(super) limits: Limits,
    pub(super) token_file: Option<PathBuf>,
    pub(super) namespace: Option<String>,
    /// The store that others find us through, and the token in it.
    pub(super) shared: Option<Arc<dyn KeyValueService>>,
    pub(super) store_token: Option<Token>,
}

impl Services {
    /// Operations, without locks for others.
    pub fn new(operations: Arc<dyn Operations>) -> Services {
        Services {
            operations,
            locks: None,
            limits: Limits::default(),
            token_file: None,
            namespace: None,
            shared: None,
            store_token: None,
        }
    }

    /// And a lock service.
    pub fn locks(self, locks: Arc<dyn LockOps>) -> Services {
        Services { locks: Some(locks), ..self }
    }

    /// And the namespace of the store, so that a client that means another one is refused.
    pub fn namespace(self, namespace: impl Into<String>) -> Services {
        Services { namespace: Some(namespace.into()), ..self }
    }

    /// And other limits than the usual ones.
    pub fn limits(self, limits: Limits) -> Services {
        Services { limits, ..self }
    }

    /// And proofs for clients that have found us through the store, which then show the token in it.
    pub(crate) fn shared(self, kvs: Arc<dyn KeyValueService>, token: Token) -> Services {
        Services { shared: Some(kvs), store_token: Some(token), ..self }
    }

    /// And the token of calls over TCP in another file than `server.token` of the data directory.
    pub fn token_file(self, path: impl Into<PathBuf>) -> Services {
        Services { token_file: Some(path.into()), ..self }
    }
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").field("locks", &self.locks.is_some()).field("limits", &self.limits).finish()
    }
}

impl From<Arc<dyn Operations>> for Services {
    fn from(operations: Arc<dyn Operations>) -> Services {
        Services::new(operations)
    }
}

/// The implementation of every service; cheap to clone.
#[derive(Clone)]
pub(super) struct Api(Arc<Shared>);

pub(super) struct Shared {
    pub(super) operations: Arc<dyn Operations>,
    locks: Option<Arc<dyn LockOps>>,
    pub(super) transactions: Arc<Transactions>,
    /// Ends answers of unlimited length.
    pub(super) stop: CancellationToken,
    store_id: OnceCell<String>,
    namespace: Option<String>,
    /// What proofs are made from: the store, and where we listen.
    identity: Option<(Arc<dyn KeyValueService>, SocketAddr)>,
    proofs: Semaphore,
}

impl std::ops::Deref for Api {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Pages<T> = BoxStream<'static, Result<T, Status>>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

fn refused(error: Error) -> Status {
    wire::status_of(&error)
}

fn refused_with(detail: pb::ErrorDetail) -> Status {
    wire::status_of_detail(&detail)
}

impl Api {
    pub(super) fn new(services: Services, grpc: Option<SocketAddr>) -> Api {
        Api(Arc::new(Shared {
            operations: services.operations,
            locks: services.locks,
            transactions: Transactions::new(services.limits),
            stop: CancellationToken::new(),
            store_id: OnceCell::new(),
            namespace: services.namespace,
            identity: services.shared.zip(grpc),
            proofs: Semaphore::new(PROOFS_AT_ONCE),
        }))
    }

    /// Every service under its path.
    pub(super) fn router(&self) -> axum::Router {
        macro_rules! routes {
            ($router:expr, $($module:ident :: $server:ident),* $(,)?) => {
                $router $(.route_service(
                    &format!("/{}/{{method}}", pb::$module::SERVICE_NAME),
                    pb::$module::$server::new(self.clone())
                        .max_decoding_message_size(MESSAGE_LEN_MAX)
                        .max_encoding_message_size(MESSAGE_LEN_MAX),
                ))*
            };
        }
        routes!(
            axum::Router::new(),
            timestamps_server::TimestampsServer,
            locks_server::LocksServer,
            backup_lock_server::BackupLockServer,
            tables_server::TablesServer,
            transactions_server::TransactionsServer,
            backup_server::BackupServer,
            sweep_server::SweepServer,
            identity_server::IdentityServer,
            admin_server::AdminServer,
        )
        .fallback(no_such_service)
    }

    fn lock_ops(&self) -> Result<&dyn LockOps, Status> {
        self.locks.as_deref().ok_or_else(|| {
            refused(Error::refused("this server has no lock service", "take locks where the store is open"))
        })
    }

    fn open(&self, transaction_id: &[u8]) -> Result<Arc<OpenTransaction>, Status> {
        let id = wire::id(transaction_id, "transaction_id").map_err(wire::Malformed::in_request)?;
        self.transactions.open(id).map_err(refused_with)
    }

    /// The answers of a stream, until the server ends.
    fn until_stopped<T: Send + 'static>(&self, mut pages: Pages<T>) -> Pages<T> {
        let stop = self.stop.clone();
        Box::pin(async_stream::stream! {
            loop {
                let page = tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    page = pages.next() => page,
                };
                match page {
                    Some(page) => yield page,
                    None => return,
                }
            }
            yield Err(refused(shutting_down()));
        })
    }
}

pub(super) fn shutting_down() -> Error {
    Error::Unavailable { what: "the server".to_owned(), reason: "it is shutting down".to_owned() }
}

async fn no_such_service() -> axum::response::Response {
    Status::unimplemented("there is no such service").into_http()
}

fn table_of(name: &str) -> Result<TableRef, Status> {
    wire::table(name).map_err(wire::Malformed::in_request)
}

#[async_trait]
impl pb::timestamps_server::Timestamps for Api {
    async fn fresh(&self, request: Request<pb::FreshRequest>) -> Answer<pb::FreshResponse> {
        let first = match request.get_ref().count {
            0 | 1 => self.operations.fresh_timestamp().await,
            count => self.operations.fresh_timestamps(count).await,
        };
        answer(pb::FreshResponse { first: first.map_err(refused)?.get() })
    }

    async fn pin(&self, request: Request<pb::PinRequest>) -> Answer<pb::PinResponse> {
        let hold = Duration::from_millis(request.get_ref().hold_ms);
        let timestamp = self.operations.pin_fresh_timestamp(hold).await.map_err(refused)?;
        answer(pb::PinResponse { timestamp: timestamp.get() })
    }

    async fn immutable(&self, _: Request<pb::ImmutableRequest>) -> Answer<pb::ImmutableResponse> {
        let timestamp = self.operations.immutable_timestamp().await.map_err(refused)?;
        answer(pb::ImmutableResponse { timestamp: timestamp.get() })
    }

    async fn wall_clock(&self, request: Request<pb::WallClockRequest>) -> Answer<pb::WallClockResponse> {
        let timestamp = wire::timestamp(request.get_ref().timestamp).map_err(wire::Malformed::in_request)?;
        answer(pb::WallClockResponse { millis: self.operations.wall_clock_millis(timestamp).await.map_err(refused)? })
    }

    async fn punched(&self, request: Request<pb::PunchedRequest>) -> Answer<pb::PunchedResponse> {
        let punch = self.operations.punched(request.get_ref().millis).await.map_err(refused)?;
        answer(pb::PunchedResponse { punch: punch.map(Into::into) })
    }
}

fn check_lock_count(what: &str, count: usize) -> Result<(), Status> {
    if count > LOCKS_MAX {
        return Err(refused(Error::Usage(format!("one call names at most {LOCKS_MAX} {what}, not {count}"))));
    }
    Ok(())
}

#[async_trait]
impl pb::locks_server::Locks for Api {
    async fn lock(&self, request: Request<pb::LockRequest>) -> Answer<pb::LockResponse> {
        let locks = self.lock_ops()?;
        let request = request.into_inner();
        check_lock_count("locks", request.descriptors.len())?;
        let id = wire::id(&request.request_id, "request_id").map_err(wire::Malformed::in_request)?;
        let timeout = Duration::from_millis(request.timeout_ms).min(LOCK_TIMEOUT_MAX);
        let LockLease { token, lease } = locks.lock(id, request.descriptors, timeout).await.map_err(refused)?;
        answer(pb::LockResponse { token, lease_ms: wire::millis(lease) })
    }

    async fn refresh(&self, request: Request<pb::RefreshRequest>) -> Answer<pb::RefreshResponse> {
        let locks = self.lock_ops()?;
        check_lock_count("tokens", request.get_ref().tokens.len())?;
        let tokens = locks.refresh(&request.get_ref().tokens).await.map_err(refused)?;
        answer(pb::RefreshResponse { tokens })
    }

    async fn unlock(&self, request: Request<pb::UnlockRequest>) -> Answer<pb::UnlockResponse> {
        let locks = self.lock_ops()?;
        check_lock_count("tokens", request.get_ref().tokens.len())?;
        let tokens = locks.unlock(&request.get_ref().tokens).await.map_err(refused)?;
        answer(pb::UnlockResponse { tokens })
    }

    async fn wait_for(&self, request: Request<pb::WaitForRequest>) -> Answer<pb::WaitForResponse> {
        let locks = self.lock_ops()?;
        let request = request.into_inner();
        check_lock_count("locks", request.descriptors.len())?;
        let timeout = Duration::from_millis(request.timeout_ms).min(LOCK_TIMEOUT_MAX);
        locks.wait_for(request.descriptors, timeout).await.map_err(refused)?;
        answer(pb::WaitForResponse {})
    }
}

#[async_trait]
impl pb::backup_lock_server::BackupLock for Api {
    async fn acquire(&self, request: Request<pb::AcquireRequest>) -> Answer<pb::AcquireResponse> {
        let lock = self.operations.backup_lock_acquire(&request.get_ref().reason).await.map_err(refused)?;
        answer(pb::AcquireResponse { lock: Some(lock.into()) })
    }

    async fn release(&self, _: Request<pb::ReleaseRequest>) -> Answer<pb::ReleaseResponse> {
        let lock = self.operations.backup_lock_release().await.map_err(refused)?;
        answer(pb::ReleaseResponse { lock: lock.map(Into::into) })
    }

    async fn status(&self, _: Request<pb::BackupLockStatusRequest>) -> Answer<pb::BackupLockStatusResponse> {
        let lock = self.operations.backup_lock_status().await.map_err(refused)?;
        answer(pb::BackupLockStatusResponse { lock: lock.map(Into::into) })
    }
}

#[async_trait]
impl pb::tables_server::Tables for Api {
    async fn create(&self, request: Request<pb::CreateTableRequest>) -> Answer<pb::CreateTableResponse> {
        let request = request.into_inner();
        let table = table_of(&request.table)?;
        let spec = request.spec.unwrap_or_default().try_into().map_err(wire::Malformed::in_request)?;
        self.operations.create_table(&table, &spec).await.map_err(refused)?;
        answer(pb::CreateTableResponse {})
    }

    async fn list(&self, request: Request<pb::ListTablesRequest>) -> Answer<pb::ListTablesResponse> {
        let tables = self.operations.tables(request.get_ref().internal).await.map_err(refused)?;
        answer(pb::ListTablesResponse { tables: tables.into_iter().map(Into::into).collect() })
    }

    async fn describe(&self, request: Request<pb::DescribeTableRequest>) -> Answer<pb::DescribeTableResponse> {
        let table = table_of(&request.get_ref().table)?;
        let info = self.operations.describe_table(&table, request.get_ref().count).await.map_err(refused)?;
        answer(pb::DescribeTableResponse { table: Some(info.into()) })
    }

    async fn alter(&self, request: Request<pb::AlterTableRequest>) -> Answer<pb::AlterTableResponse> {
        let request = request.into_inner();
        let table = table_of(&request.table)?;
        let change = request.spec.unwrap_or_default().try_into().map_err(wire::Malformed::in_request)?;
        let spec = self.operations.alter_table(&table, &change).await.map_err(refused)?;
        answer(pb::AlterTableResponse { spec: Some(spec.into()) })
    }

    async fn drop(&self, request: Request<pb::DropTableRequest>) -> Answer<pb::DropTableResponse> {
        self.operations.drop_table(&table_of(&request.get_ref().table)?).await.map_err(refused)?;
        answer(pb::DropTableResponse {})
    }

    async fn truncate(&self, request: Request<pb::TruncateTableRequest>) -> Answer<pb::TruncateTableResponse> {
        self.operations.truncate_table(&table_of(&request.get_ref().table)?).await.map_err(refused)?;
        answer(pb::TruncateTableResponse {})
    }
}

#[async_trait]
impl pb::transactions_server::Transactions for Api {
    type GetStream = Pages<pb::GetResponse>;
    type ScanStream = Pages<pb::ScanResponse>;

    async fn begin(&self, request: Request<pb::BeginRequest>) -> Answer<pb::BeginResponse> {
        let options = BeginOptions::try_from(request.into_inner()).map_err(wire::Malformed::in_request)?;
        let transaction = self.transactions.begin(&*self.operations, options).await.map_err(refused)?;
        answer(pb::BeginResponse {
            transaction_id: transaction.id_bytes(),
            start_ts: transaction.start_ts.get(),
            read_ts: transaction.read_ts.get(),
            tentative: transaction.tentative,
            lease_ms: wire::millis(self.transactions.lease()),
        })
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Answer<Self::GetStream> {
        let request = request.into_inner();
        let transaction = self.open(&request.transaction_id)?;
        let table = table_of(&request.table)?;
        let cells = request.cells.into_iter().map(Cell::from).collect();
        answer(self.until_stopped(get_pages(transaction, table, cells)))
    }

    async fn scan(&self, request: Request<pb::ScanRequest>) -> Answer<Self::ScanStream> {
        let request = request.into_inner();
        let transaction = self.open(&request.transaction_id)?;
        let table = table_of(&request.table)?;
        let options = wire::scan_options(request, PAGE_CELLS_MAX);
        let page_size = if options.page_size == 0 { PAGE_CELLS_MAX } else { options.page_size };
        let cells = {
            let in_use = transaction.use_it().await.map_err(refused_with)?;
            in_use.scan(&table, options).await.map_err(refused)?
        };
        answer(self.until_stopped(scan_pages(transaction, cells, page_size)))
    }

    async fn write(&self, request: Request<pb::WriteRequest>) -> Answer<pb::WriteResponse> {
        let request = request.into_inner();
        let transaction = self.open(&request.transaction_id)?;
        let table = table_of(&request.table)?;
        let writes: Vec<_> = request.writes.into_iter().map(<(Cell, Option<Bytes>)>::from).collect();
        let len = writes.iter().map(|(cell, value)| WRITE_OVERHEAD + write_len(cell, value.as_ref())).sum();
        let in_use = transaction.use_it().await.map_err(refused_with)?;
        self.transactions.reserve(&transaction, len).map_err(refused)?;
        if let Err(error) = in_use.write(&table, writes).await {
            self.transactions.release(&transaction, len);
            return Err(refused(error));
        }
        answer(pb::WriteResponse {})
    }

    async fn commit(&self, request: Request<pb::CommitRequest>) -> Answer<pb::CommitResponse> {
        let id = transaction_id(&request.get_ref().transaction_id)?;
        let commit_ts = self.transactions.commit(id).await.map_err(refused_with)?;
        answer(pb::CommitResponse { commit_ts: commit_ts.map(|ts| ts.get()) })
    }

    async fn abort(&self, request: Request<pb::AbortRequest>) -> Answer<pb::AbortResponse> {
        let id = transaction_id(&request.get_ref().transaction_id)?;
        self.transactions.abort(id).await.map_err(refused_with)?;
        answer(pb::AbortResponse {})
    }

    async fn keep_alive(&self, request: Request<pb::KeepAliveRequest>) -> Answer<pb::KeepAliveResponse> {
        self.open(&request.get_ref().transaction_id)?;
        answer(pb::KeepAliveResponse { lease_ms: wire::millis(self.transactions.lease()) })
    }
}

fn transaction_id(bytes: &[u8]) -> Result<Uuid, Status> {
    wire::id(bytes, "transaction_id").map_err(wire::Malformed::in_request)
}

fn write_len(cell: &Cell, value: Option<&Bytes>) -> u64 {
    let len = cell.row.len() + cell.column.len() + value.map_or(0, Bytes::len);
    len as u64
}

/// Values are fetched a few cells at a time, so that neither side holds more than a few.
fn get_pages(transaction: Arc<OpenTransaction>, table: TableRef, cells: Vec<Cell>) -> Pages<pb::GetResponse> {
    const CELLS_AT_A_TIME: usize = 100;
    Box::pin(async_stream::try_stream! {
        for some in cells.chunks(CELLS_AT_A_TIME) {
            transaction.touch();
            let found = {
                let in_use = transaction.use_it().await.map_err(refused_with)?;
                in_use.get(&table, some).await.map_err(refused)?
            };
            let mut page = Page::new(CELLS_AT_A_TIME);
            for value in found {
                let len = value.as_ref().map_or(0, Bytes::len);
                if let Some(values) = page.push(pb::CellValue { value }, len) {
                    yield pb::GetResponse { values };
                }
            }
            if let Some(values) = page.rest() {
                yield pb::GetResponse { values };
            }
        }
    })
}

fn scan_pages(
    transaction: Arc<OpenTransaction>,
    mut cells: BoxStream<'static, crate::Result<(Cell, Bytes)>>,
    page_size: usize,
) -> Pages<pb::ScanResponse> {
    Box::pin(async_stream::try_stream! {
        let mut page = Page::new(page_size);
        while let Some(found) = cells.next().await {
            let (cell, value) = found.map_err(refused)?;
            let len = cell.row.len() + cell.column.len() + value.len();
            if let Some(cells) = page.push((cell, value).into(), len) {
                // A scan that is being read is a sign of life.
                transaction.touch();
                yield pb::ScanResponse { cells };
            }
        }
        if let Some(cells) = page.rest() {
            yield pb::ScanResponse { cells };
        }
    })
}

/// Gathers what goes into one message.
struct Page<T> {
    items: Vec<T>,
    len: usize,
    items_max: usize,
}

impl<T> Page<T> {
    fn new(items_max: usize) -> Page<T> {
        Page { items: Vec::new(), len: 0, items_max }
    }

    /// Adds an item of `len` bytes, and gives out the page before it if it is full: only a single item that is
    /// longer by itself makes a page longer than [`PAGE_LEN`].
    fn push(&mut self, item: T, len: usize) -> Option<Vec<T>> {
        let full = self.items.len() >= self.items_max || (!self.items.is_empty() && self.len + len > PAGE_LEN);
        let page = full.then(|| std::mem::take(&mut self.items));
        self.len = if full { len } else { self.len + len };
        self.items.push(item);
        page
    }

    fn rest(self) -> Option<Vec<T>> {
        (!self.items.is_empty()).then_some(self.items)
    }
}

#[async_trait]
impl pb::backup_server::Backup for Api {
    type CreateStream = Pages<pb::CreateBackupResponse>;

    async fn create(&self, request: Request<pb::CreateBackupRequest>) -> Answer<Self::CreateStream> {
        let request = BackupRequest::try_from(request.into_inner()).map_err(wire::Malformed::in_request)?;
        if self.transactions.is_draining() {
            return Err(refused(shutting_down()));
        }
        let operations = self.operations.clone();
        let work = |progress| -> Work<_> { Box::pin(async move { operations.backup_create(request, progress).await }) };
        let message = |event| pb::CreateBackupResponse { event: Some(event) };
        answer(self.until_stopped(events_of(
            "taking a backup",
            work,
            move |step| message(Event::Progress(step.into())),
            move |info| message(Event::Result(info.into())),
        )))
    }
}

type Work<T> = BoxFuture<'static, crate::Result<T>>;

/// What takes long runs in its own task, because it must not stand still when its client is slow to read: a backup
/// renews its lock. When the stream is dropped, which is what happens when the client ends the call or is gone, so is
/// the task.
fn events_of<T: Send + 'static, M: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce(ProgressSink) -> Work<T>,
    step: impl Fn(Progress) -> M + Send + Sync + 'static,
    result: impl FnOnce(T) -> M + Send + 'static,
) -> Pages<M> {
    const EVENTS_BUFFERED: usize = 64;
    let (events, mut received) = mpsc::channel(EVENTS_BUFFERED);
    let progress: ProgressSink = Arc::new(move |progress: Progress| {
        // A step more or less makes no difference to who watches, so a full channel loses it.
        let _ = events.try_send(step(progress));
    });
    let mut work = AbortOnDropHandle::new(tokio::spawn(work(progress)));
    Box::pin(async_stream::try_stream! {
        let done = loop {
            let event = tokio::select! {
                biased;
                Some(event) = received.recv() => event,
                done = &mut work => break done,
            };
            yield event;
        };
        while let Ok(event) = received.try_recv() {
            yield event;
        }
        let done = done
            .unwrap_or_else(|error| Err(Error::io(doing, std::io::Error::other(error))))
            .map_err(refused)?;
        yield result(done);
    })
}

#[async_trait]
impl pb::sweep_server::Sweep for Api {
    type RunStream = Pages<pb::SweepResponse>;

    async fn run(&self, request: Request<pb::SweepRequest>) -> Answer<Self::RunStream> {
        let request = SweepRequest::try_from(request.into_inner()).map_err(wire::Malformed::in_request)?;
        let operations = self.operations.clone();
        let work = |progress| -> Work<_> { Box::pin(async move { operations.sweep(request, progress).await }) };
        let message = |event| pb::SweepResponse { event: Some(event) };
        answer(self.until_stopped(events_of(
            "sweeping",
            work,
            move |step| message(SweepEvent::Progress(step.into())),
            move |report| message(SweepEvent::Result(report.into())),
        )))
    }

    async fn status(&self, _: Request<pb::SweepStatusRequest>) -> Answer<pb::SweepStatusResponse> {
        let status = self.operations.sweep_status().await.map_err(refused)?;
        answer(pb::SweepStatusResponse { status: Some(status.into()) })
    }

    async fn pause(&self, request: Request<pb::SweepPauseRequest>) -> Answer<pb::SweepPauseResponse> {
        let status = self.operations.sweep_pause(&request.get_ref().reason).await.map_err(refused)?;
        answer(pb::SweepPauseResponse { status: Some(status.into()) })
    }

    async fn resume(&self, _: Request<pb::SweepResumeRequest>) -> Answer<pb::SweepResumeResponse> {
        let status = self.operations.sweep_resume().await.map_err(refused)?;
        answer(pb::SweepResumeResponse { status: Some(status.into()) })
    }

    async fn hard_delete(&self, request: Request<pb::HardDeleteRequest>) -> Answer<pb::HardDeleteResponse> {
        let request = request.into_inner();
        let table = table_of(&request.table)?;
        let cells: Vec<Cell> = request.cells.into_iter().map(Cell::from).collect();
        let patience = Duration::from_millis(request.patience_ms);
        let done = self.operations.hard_delete(&table, &cells, patience).await.map_err(refused)?;
        answer(done.into())
    }
}

#[async_trait]
impl pb::identity_server::Identity for Api {
    async fn prove(&self, request: Request<pb::ProveRequest>) -> Answer<pb::ProveResponse> {
        let Some((kvs, address)) = &self.identity else {
            let hint = "use the socket in its directory, or show the token";
            return Err(refused(Error::refused("this server is not found through its store", hint)));
        };
        // Anybody may ask. So many at a time, and the store is not kept busy by strangers.
        let _turn = self.proofs.acquire().await.expect("the semaphore is never closed");
        let asked = challenge::answer(&**kvs, &request.get_ref().name, *address);
        let proof = tokio::time::timeout(PROOF_TIMEOUT, asked).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", PROOF_TIMEOUT.as_secs());
            Err(Error::Unavailable { what: "the store".to_owned(), reason })
        });
        let proof = proof.map_err(|error| match error {
            // Strangers learn nothing of the store.
            Error::Usage(_) => refused(error),
            error => {
                tracing::warn!(%error, "a challenge could not be read");
                let reason = "it can't read its store".to_owned();
                refused(Error::Unavailable { what: "the server".to_owned(), reason })
            }
        })?;
        answer(pb::ProveResponse {
            proof: proof.map_or_else(Bytes::new, |proof| Bytes::copy_from_slice(proof.as_bytes())),
        })
    }
}

#[async_trait]
impl pb::admin_server::Admin for Api {
    async fn hello(&self, _: Request<pb::HelloRequest>) -> Answer<pb::HelloResponse> {
        // A store in trouble must not keep an operator from connecting to ask what the trouble is.
        let ask = || async { self.operations.status().await.map(|status| status.store_id.to_string()) };
        let asked = tokio::time::timeout(STORE_ID_TIMEOUT, self.store_id.get_or_try_init(ask)).await;
        let store_id = asked.ok().and_then(Result::ok).cloned();
        answer(pb::HelloResponse {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store_id,
            protocol: PROTOCOL,
            namespace: self.namespace.clone(),
        })
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        let status = self.operations.status().await.map_err(refused)?;
        answer(pb::StatusResponse { status: Some(status.into()) })
    }

    async fn doctor(&self, request: Request<pb::DoctorRequest>) -> Answer<pb::DoctorResponse> {
        let findings = self.operations.doctor(&request.get_ref().checks).await.map_err(refused)?;
        answer(pb::DoctorResponse { findings: findings.into_iter().map(Into::into).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_given_out_before_it_grows_too_long() {
        let mut page = Page::new(3);
        assert_eq!(page.push(1, PAGE_LEN - 1), None);
        assert_eq!(page.push(2, 1), None);
        assert_eq!(page.push(3, 1), Some(vec![1, 2]));
        assert_eq!(page.push(4, 10 * PAGE_LEN), Some(vec![3]));
        assert_eq!(page.push(5, 0), Some(vec![4]));
        assert_eq!(page.push(6, 0), None);
        assert_eq!(page.push(7, 0), None);
        assert_eq!(page.push(8, 0), Some(vec![5, 6, 7]));
        assert_eq!(page.rest(), Some(vec![8]));
    }
}
