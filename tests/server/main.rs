//! The server and its client, through real sockets, over operations that are a map in memory.

// What can't be unwrapped here has failed the test; how large an error may be is decided in the library.
#![allow(clippy::unwrap_used, clippy::result_large_err)]

mod fake;

use async_trait::async_trait;
use atlas::config::ServerConfig;
use atlas::ops::{
    BackupRequest, BeginOptions, Connection, Operations, ScanOptions, SweepRequest, SweepStatus, TransactionOps,
    no_progress,
};
use atlas::schema::{ConflictHandler, SweepStrategy, TableSpec};
use atlas::server::{self, Limits, LockOps, RemoteAtlas, Server, Services, proto as pb};
use atlas::{Cell, ColumnSelection, Error, RowRange, TableRef, Timestamp, exit};
use bytes::Bytes;
use fake::{Fake, FakeLocks};
use futures::{StreamExt, TryStreamExt};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::{Channel, Endpoint};

// ---- the stage

struct Running {
    fake: Arc<Fake>,
    data_dir: PathBuf,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Running {
    async fn start() -> Running {
        Running::with_limits(Limits::default()).await
    }

    async fn with_limits(limits: Limits) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().to_owned();
        let fake = Arc::new(Fake::default());
        let services = Services::new(fake.clone()).locks(Arc::new(FakeLocks::default())).limits(limits);
        let server = Server::bind_socket(services, &data_dir).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(server.run(async move { drop(stopped.await) }));
        Running { fake, data_dir, stop: Some(stop), task, _directory: directory }
    }

    async fn client(&self) -> RemoteAtlas {
        server::connect(&self.data_dir).await.unwrap().expect("somebody answers")
    }

    async fn raw(&self) -> pb::transactions_client::TransactionsClient<Channel> {
        pb::transactions_client::TransactionsClient::new(channel_to(server::socket_path(&self.data_dir)).await)
    }

    fn start_shutdown(&mut self) {
        drop(self.stop.take());
    }

    async fn shut_down(mut self) {
        self.start_shutdown();
        self.task.await.unwrap();
    }
}

async fn channel_to(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://test").connect_with_connector(connector).await.unwrap()
}

/// Stands between a client and a server, and breaks what runs through it.
struct Proxy {
    directory: tempfile::TempDir,
    target: watch::Sender<PathBuf>,
    /// Counted up to break all connections.
    cut: watch::Sender<u32>,
    task: JoinHandle<()>,
}

impl Proxy {
    fn start(target: &Path) -> Proxy {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(server::socket_path(directory.path())).unwrap();
        let (target, cut) = (watch::Sender::new(server::socket_path(target)), watch::Sender::new(0));
        let (targets, cuts) = (target.clone(), cut.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let (target, mut cut) = (targets.borrow().clone(), cuts.subscribe());
                connections.spawn(async move {
                    let Ok(mut far) = UnixStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Proxy { directory, target, cut, task }
    }

    async fn client(&self) -> RemoteAtlas {
        server::connect(self.directory.path()).await.unwrap().expect("somebody answers")
    }

    fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Nobody listens any more.
    async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.cut();
    }
}

fn table() -> TableRef {
    TableRef::new("t").unwrap()
}

fn cell(row: &str, column: &str) -> Cell {
    Cell::copy_from(row, column)
}

fn put(row: &str, value: &str) -> (Cell, Option<Bytes>) {
    (cell(row, "c"), Some(Bytes::copy_from_slice(value.as_bytes())))
}

async fn begin(remote: &RemoteAtlas) -> Box<dyn TransactionOps> {
    remote.begin_transaction(BeginOptions::default()).await.unwrap()
}

async fn scan(transaction: &dyn TransactionOps, options: ScanOptions) -> Vec<(Cell, Bytes)> {
    transaction.scan(&table(), options).await.unwrap().try_collect().await.unwrap()
}

/// Waits for something that happens in another task.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain until {what}");
}

// ---- every call

#[tokio::test]
async fn cells_and_values_of_any_bytes_go_there_and_back() {
    let running = Running::start().await;
    let remote = running.client().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let names: [&[u8]; 5] = [b"", b"\0", &every_byte, b"\0\xff", b"plain"];
    let written: Vec<(Cell, Bytes)> = names
        .iter()
        .flat_map(|row| names.iter().map(move |column| Cell::copy_from(row, column)))
        .enumerate()
        .map(|(number, cell)| (cell, Bytes::from(every_byte.repeat(number))))
        .collect();

    let transaction = begin(&remote).await;
    assert_eq!(transaction.read_ts(), transaction.start_ts());
    let writes = written.iter().map(|(cell, value)| (cell.clone(), Some(value.clone()))).collect();
    transaction.write(&table(), writes).await.unwrap();
    let cells: Vec<Cell> = written.iter().map(|(cell, _)| cell.clone()).chain([cell("not", "there")]).collect();
    let values: Vec<_> = written.iter().map(|(_, value)| Some(value.clone())).chain([None]).collect();
    assert_eq!(transaction.get(&table(), &cells).await.unwrap(), values, "own writes, in the order asked for");
    let commit_ts = transaction.commit().await.unwrap().expect("something was written");

    let reader = begin(&remote).await;
    assert!(reader.start_ts() > commit_ts);
    assert_eq!(reader.get(&table(), &cells).await.unwrap(), values);
    assert_eq!(scan(&*reader, ScanOptions::default()).await, written, "in order");
    assert_eq!(reader.commit().await.unwrap(), None);

    let eraser = begin(&remote).await;
    eraser.write(&table(), vec![(cells[0].clone(), None)]).await.unwrap();
    assert_eq!(eraser.get(&table(), &cells[..1]).await.unwrap(), [None]);
    eraser.abort().await.unwrap();
    assert_eq!(running.fake.aborts.load(Relaxed), 1);
    running.shut_down().await;
}

#[tokio::test]
async fn a_scan_has_the_rows_columns_direction_and_limit_asked_for() {
    let running = Running::start().await;
    let remote = running.client().await;
    let transaction = begin(&remote).await;
    let names = ["a", "b", "c", "d"];
    let writes = names.iter().flat_map(|row| names.iter().map(|column| (cell(row, column), Some(Bytes::new()))));
    transaction.write(&table(), writes.collect()).await.unwrap();
    let found = async |options: ScanOptions| {
        let cells = scan(&*transaction, options).await;
        cells.iter().map(|(cell, _)| cell.to_string()).collect::<Vec<_>>().join(" ")
    };
    let all = ScanOptions::default();
    let rows = RowRange::new("b", "d");
    let some = ScanOptions { rows: rows.clone(), limit: Some(5), page_size: 2, ..all.clone() };
    assert_eq!(found(some.clone()).await, "b/a b/b b/c b/d c/a");
    assert_eq!(found(ScanOptions { reverse: true, ..some }).await, "c/d c/c c/b c/a b/d");
    let columns = ColumnSelection::Range { start: Bytes::from("c"), end: None };
    assert_eq!(found(ScanOptions { rows: RowRange::single("a"), columns, ..all.clone() }).await, "a/c a/d");
    let columns = ColumnSelection::Range { start: Bytes::new(), end: Some(Bytes::from("b")) };
    assert_eq!(found(ScanOptions { rows, columns, ..all.clone() }).await, "b/a c/a");
    let columns = ColumnSelection::Exactly([Bytes::from("d"), Bytes::from("x")].into());
    assert_eq!(found(ScanOptions { columns, ..all.clone() }).await, "a/d b/d c/d d/d");
    let columns = ColumnSelection::Exactly([].into());
    assert_eq!(found(ScanOptions { columns, ..all }).await, "", "an empty set is not the same as none");
    running.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_that_share_a_connection_get_timestamps_of_their_own_above_all_before() {
    let running = Running::start().await;
    let remote = running.client().await;
    // What anybody has seen by now.
    let seen = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..64 {
        let (remote, seen) = (remote.clone(), seen.clone());
        callers.spawn(async move {
            let mut numbers = Vec::new();
            for _ in 0..50 {
                let before = seen.load(SeqCst);
                let number = remote.fresh_timestamp().await.unwrap().get();
                assert!(number > before, "{number} was drawn before its caller asked, when {before} was out already");
                seen.fetch_max(number, SeqCst);
                numbers.push(number);
            }
            numbers
        });
    }
    let mut numbers = callers.join_all().await.concat();
    numbers.sort_unstable();
    let all = numbers.len();
    numbers.dedup();
    assert_eq!((numbers.len(), all), (64 * 50, 64 * 50), "each has its own");
    running.shut_down().await;
}

#[tokio::test]
async fn timestamps_backup_lock_tables_status_and_doctor_are_those_of_the_owner() {
    let running = Running::start().await;
    let (fake, remote) = (&running.fake, running.client().await);
    let path = server::socket_path(&running.data_dir).display().to_string();
    assert_eq!(remote.connection(), Connection::Remote { address: path, pid: Some(std::process::id()) });
    assert_eq!(remote.store_id(), Some(fake.status().await.unwrap().store_id));
    assert_eq!(remote.owner_version(), env!("CARGO_PKG_VERSION"));

    let first = remote.fresh_timestamp().await.unwrap();
    let block = remote.fresh_timestamps(100).await.unwrap();
    let pinned = remote.pin_fresh_timestamp(Duration::from_millis(1500)).await.unwrap();
    assert!(block > first && pinned.get() >= block.get() + 100);
    assert_eq!(fake.pins.lock().as_slice(), [Duration::from_millis(1500)]);
    assert_eq!(remote.fresh_timestamps(0).await.unwrap_err().exit_code(), exit::USAGE);
    assert_eq!(remote.immutable_timestamp().await.unwrap(), fake.immutable_timestamp().await.unwrap());
    assert_eq!(remote.wall_clock_millis(Timestamp::saturating(7)).await.unwrap(), Some(-7000));
    assert_eq!(remote.wall_clock_millis(Timestamp::MAX).await.unwrap(), None);
    assert_eq!(remote.punched(5).await.unwrap(), fake.punched(5).await.unwrap());
    assert_eq!(remote.punched(-5).await.unwrap(), None);

    assert_eq!(remote.backup_lock_status().await.unwrap(), None);
    let lock = remote.backup_lock_acquire("because").await.unwrap();
    assert_eq!(lock.reason, "because");
    assert_eq!(remote.backup_lock_status().await.unwrap(), Some(lock.clone()));
    let held = remote.backup_lock_acquire("again").await.unwrap_err();
    assert_eq!((held.code(), held.exit_code()), ("LOCK_HELD", exit::CONFLICT));
    assert!(held.hint().unwrap().contains("backup-lock --status"));
    assert_eq!(remote.drop_table(&table()).await.unwrap_err().code(), "LOCK_HELD");
    assert_eq!(remote.backup_lock_release().await.unwrap(), Some(lock));
    assert_eq!(remote.backup_lock_release().await.unwrap(), None);

    for (number, conflict_handler) in ConflictHandler::ALL.into_iter().enumerate() {
        for (letter, sweep_strategy) in ["x", "y", "z"].into_iter().zip(SweepStrategy::ALL) {
            let name = TableRef::new(format!("{letter}{number}")).unwrap();
            let spec = TableSpec { conflict_handler, sweep_strategy };
            remote.create_table(&name, &spec).await.unwrap();
            assert_eq!(remote.describe_table(&name, true).await.unwrap().spec, Some(spec));
        }
    }
    assert_eq!(remote.tables(true).await.unwrap(), fake.tables(true).await.unwrap());
    // And the one that the fake always has.
    assert_eq!(remote.tables(false).await.unwrap().len(), 1 + ConflictHandler::ALL.len() * SweepStrategy::ALL.len());
    let missing = TableRef::new("missing").unwrap();
    let error = remote.describe_table(&missing, false).await.unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("NOT_FOUND", exit::NOT_FOUND));
    remote.truncate_table(&table()).await.unwrap();
    remote.drop_table(&TableRef::new("x0").unwrap()).await.unwrap();
    assert_eq!(remote.tables(false).await.unwrap().len(), ConflictHandler::ALL.len() * SweepStrategy::ALL.len());

    remote.backup_lock_acquire("shown in the status").await.unwrap();
    assert_eq!(remote.status().await.unwrap(), fake.status().await.unwrap());
    let findings = remote.doctor(&["disk".to_owned(), "clock".to_owned(), "lock".to_owned()]).await.unwrap();
    assert_eq!(findings, fake.doctor(&["disk".to_owned(), "clock".to_owned(), "lock".to_owned()]).await.unwrap());
    remote.close().await.unwrap();
    running.shut_down().await;
}

#[tokio::test]
async fn locks_are_taken_refreshed_waited_for_and_given_back() {
    let running = Running::start().await;
    let remote = running.client().await;
    let (first, second) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let wanted = vec![Bytes::from_static(b"\0\xff"), Bytes::from_static(b"x")];
    let lease = remote.lock(first, wanted.clone(), Duration::from_secs(1)).await.unwrap();
    assert_eq!(lease.lease, Duration::from_secs(20));
    assert_eq!(remote.lock(first, wanted.clone(), Duration::ZERO).await.unwrap(), lease, "the same request");
    let error = remote.lock(second, wanted.clone(), Duration::from_millis(1)).await.unwrap_err();
    assert_eq!((error.code(), error.exit_code(), error.is_retriable()), ("LOCK_TIMEOUT", exit::UNAVAILABLE, true));
    let error = remote.wait_for(wanted.clone(), Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(error.code(), "LOCK_TIMEOUT");
    let tokens = [lease.token.clone(), Bytes::from_static(b"nobody's")];
    assert_eq!(remote.refresh(&tokens).await.unwrap(), tokens[..1]);
    assert_eq!(remote.unlock(&tokens).await.unwrap(), tokens[..1]);
    assert!(remote.unlock(&tokens).await.unwrap().is_empty());
    remote.wait_for(wanted.clone(), Duration::ZERO).await.unwrap();
    let error = remote.lock(second, vec![Bytes::new(); 10_001], Duration::ZERO).await.unwrap_err();
    assert_eq!(error.code(), "USAGE");
    running.shut_down().await;
}

#[tokio::test]
async fn an_error_is_the_same_on_both_sides() {
    let running = Running::start().await;
    let remote = running.client().await;
    type MakeError = fn() -> Error;
    let errors: [MakeError; 5] = [
        || Error::Conflict {
            table: table(),
            cell: cell("r", "c"),
            committed_at: Some(Timestamp::saturating(4)),
            read_ts: Timestamp::saturating(2),
        },
        || Error::refused("no: ünïcödé\nand more lines", "do it like this"),
        || Error::corrupt("file 7", "a bit fell over"),
        || Error::Kvs(atlas::kvs_api::KvsError::NoSuchTable(table())),
        || Error::Usage("x".repeat(2_000)),
    ];
    for make in errors {
        let expected = make();
        let expect = |error: Error| {
            assert!(matches!(error, Error::Remote { .. }));
            assert_eq!(error.code(), expected.code());
            assert_eq!(error.to_string(), expected.to_string());
            assert_eq!(error.hint(), expected.hint());
            assert_eq!(error.exit_code(), expected.exit_code());
            assert_eq!(error.is_retriable(), expected.is_retriable());
        };
        let fail = || *running.fake.failure.lock() = Some(make());
        fail();
        expect(remote.fresh_timestamp().await.unwrap_err());
        fail();
        expect(remote.begin_transaction(BeginOptions::default()).await.err().unwrap());
        let transaction = begin(&remote).await;
        fail();
        expect(transaction.get(&table(), &[cell("r", "c")]).await.unwrap_err());
        fail();
        expect(transaction.scan(&table(), ScanOptions::default()).await.err().unwrap());
        fail();
        expect(transaction.write(&table(), vec![put("r", "v")]).await.unwrap_err());
        fail();
        expect(transaction.commit().await.unwrap_err());
        fail();
        let request = BackupRequest {
            repository: "/backups".into(),
            name: None,
            reason: None,
            portable: false,
            rate_limit: None,
        };
        expect(remote.backup_create(request, no_progress()).await.unwrap_err());
        fail();
        expect(remote.sweep(SweepRequest::default(), no_progress()).await.unwrap_err());
        fail();
        expect(remote.sweep_status().await.unwrap_err());
    }
    running.shut_down().await;
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_scan_comes_behind_the_cells_before_it() {
    let running = Running::start().await;
    let remote = running.client().await;
    running.fake.endless_scan_fails_at.store(2_500, Relaxed);
    let transaction = begin(&remote).await;
    let mut cells = transaction.scan(&fake::endless(), ScanOptions::default()).await.unwrap();
    for _ in 0..2_000 {
        cells.next().await.unwrap().unwrap();
    }
    let error = loop {
        match cells.next().await.expect("a scan that fails does not look like one that ends") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), "CORRUPT");
    running.shut_down().await;
}

// ---- size

#[tokio::test]
async fn large_values_and_many_cells_are_divided_into_messages() {
    let running = Running::start().await;
    let remote = running.client().await;
    let transaction = begin(&remote).await;
    let mut writes: Vec<_> = (0..5_000).map(|number| put(&format!("{number:05}"), &"v".repeat(2_000))).collect();
    writes.push((cell("large", "c"), Some(Bytes::from(vec![0xff; 60 << 20]))));
    transaction.write(&table(), writes.clone()).await.unwrap();
    let cells: Vec<_> = writes.iter().map(|(cell, _)| cell.clone()).collect();
    let values: Vec<_> = writes.iter().map(|(_, value)| value.clone()).collect();
    assert!(transaction.get(&table(), &cells).await.unwrap() == values);
    let found = scan(&*transaction, ScanOptions::default()).await;
    assert!(found.into_iter().map(|(cell, value)| (cell, Some(value))).eq(writes));
    transaction.commit().await.unwrap();
    running.shut_down().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_by_both_sides() {
    let running = Running::start().await;
    let remote = running.client().await;
    let transaction = begin(&remote).await;
    let too_large = Bytes::from(vec![0; server::MESSAGE_LEN_MAX]);
    let error = transaction
        .write(&table(), vec![put("a", "fine"), (cell("r", "c"), Some(too_large.clone()))])
        .await
        .unwrap_err();
    assert_eq!(error.code(), "TOO_LARGE");
    transaction.write(&table(), vec![put("b", "fine")]).await.unwrap();
    assert_eq!(scan(&*transaction, ScanOptions::default()).await.len(), 1, "nothing of the refused call was written");

    // A client that does not look at the length first.
    let mut raw = running.raw().await.max_encoding_message_size(usize::MAX);
    let begun = raw.begin(pb::BeginRequest::default()).await.unwrap().into_inner();
    let write = pb::CellWrite { row: Bytes::new(), column: Bytes::new(), value: Some(too_large) };
    let request = pb::WriteRequest { transaction_id: begun.transaction_id, table: "t".to_owned(), writes: vec![write] };
    let status = raw.write(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    transaction.commit().await.unwrap();
    running.shut_down().await;
}

#[tokio::test]
async fn a_scan_that_nobody_reads_stands_still() {
    let running = Running::start().await;
    let remote = running.client().await;
    let transaction = begin(&remote).await;
    let mut cells = transaction.scan(&fake::endless(), ScanOptions::default()).await.unwrap();
    cells.next().await.unwrap().unwrap();
    let scanned = || running.fake.endless_scanned.load(Relaxed);
    let mut before = 0;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if std::mem::replace(&mut before, scanned()) == scanned() {
            break;
        }
    }
    let bytes = scanned() * fake::ENDLESS_VALUE_LEN;
    assert!(bytes < 32 << 20, "the server is {bytes} bytes ahead of its reader");
    drop(cells);
    until("the scan is dropped", || running.fake.endless_scans_open.load(Relaxed) == 0).await;
    // The connection serves others all the time.
    remote.fresh_timestamp().await.unwrap();
    running.shut_down().await;
}

// ---- commits whose answers are lost

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_settled_by_asking_again() {
    let running = Running::start().await;
    let proxy = Proxy::start(&running.data_dir);
    let remote = proxy.client().await;
    let transaction = begin(&remote).await;
    transaction.write(&table(), vec![put("r", "v")]).await.unwrap();
    running.fake.hold_commits();
    let commit = tokio::spawn(transaction.commit());
    until("the commit runs", || running.fake.commits_begun.load(Relaxed) == 1).await;
    proxy.cut();
    tokio::time::sleep(Duration::from_millis(100)).await;
    running.fake.let_commits_go();
    let commit_ts = commit.await.unwrap().unwrap().expect("something was written");
    assert_eq!(running.fake.commit_log.lock().as_slice(), [commit_ts], "once, and at the timestamp told");
    running.shut_down().await;
}

#[tokio::test]
async fn a_commit_that_failed_is_told_as_failed_when_asked_again() {
    let running = Running::start().await;
    let proxy = Proxy::start(&running.data_dir);
    let remote = proxy.client().await;
    let transaction = begin(&remote).await;
    running.fake.hold_commits();
    let commit = tokio::spawn(transaction.commit());
    until("the commit runs", || running.fake.commits_begun.load(Relaxed) == 1).await;
    *running.fake.failure.lock() = Some(Error::RolledBack { start_ts: Timestamp::saturating(1) });
    proxy.cut();
    running.fake.let_commits_go();
    assert_eq!(commit.await.unwrap().unwrap_err().code(), "ROLLED_BACK");
    running.shut_down().await;
}

#[tokio::test]
async fn a_commit_whose_answer_stays_lost_is_unknown_and_never_a_failure() {
    let running = Running::start().await;
    let mut proxy = Proxy::start(&running.data_dir);
    let remote = proxy.client().await;
    let transaction = begin(&remote).await;
    let start_ts = transaction.start_ts();
    transaction.write(&table(), vec![put("r", "v")]).await.unwrap();
    running.fake.hold_commits();
    let commit = tokio::spawn(transaction.commit());
    until("the commit runs", || running.fake.commits_begun.load(Relaxed) == 1).await;
    proxy.stop().await;
    let error = commit.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::UnknownOutcome { start_ts: of, .. } if of == start_ts), "{error:?}");
    assert!(!error.is_retriable());
    running.fake.let_commits_go();
    until("the commit was carried through", || running.fake.commit_log.lock().len() == 1).await;
    running.shut_down().await;
}

#[tokio::test]
async fn a_commit_that_another_process_is_asked_about_is_unknown() {
    let (first, second) = (Running::start().await, Running::start().await);
    let proxy = Proxy::start(&first.data_dir);
    let remote = proxy.client().await;
    let transaction = begin(&remote).await;
    first.fake.hold_commits();
    let commit = tokio::spawn(transaction.commit());
    until("the commit runs", || first.fake.commits_begun.load(Relaxed) == 1).await;
    proxy.target.send_replace(server::socket_path(&second.data_dir));
    proxy.cut();
    let error = commit.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::UnknownOutcome { .. }), "{error:?}");
    first.fake.let_commits_go();
    first.shut_down().await;
    second.shut_down().await;
}

#[tokio::test]
async fn a_commit_that_was_never_sent_is_unavailable() {
    let running = Running::start().await;
    let mut proxy = Proxy::start(&running.data_dir);
    let remote = proxy.client().await;
    let transaction = begin(&remote).await;
    transaction.write(&table(), vec![put("r", "v")]).await.unwrap();
    proxy.stop().await;
    // The client notices on its own.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let error = transaction.commit().await.unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("UNAVAILABLE", exit::UNAVAILABLE));
    assert_eq!(running.fake.commits_begun.load(Relaxed), 0);
    running.shut_down().await;
}

#[tokio::test]
async fn a_commit_that_is_unknown_to_the_store_is_unknown_to_the_client() {
    let running = Running::start().await;
    let remote = running.client().await;
    let transaction = begin(&remote).await;
    let start_ts = transaction.start_ts();
    let commit_ts = Some(start_ts.next());
    *running.fake.failure.lock() =
        Some(Error::UnknownOutcome { start_ts, commit_ts, reason: "the disk is full".to_owned() });
    let error = transaction.commit().await.unwrap_err();
    let Error::UnknownOutcome { start_ts: of, commit_ts: drawn, reason } = error else { panic!("{error:?}") };
    assert_eq!((of, drawn, reason.as_str()), (start_ts, commit_ts, "the disk is full"));
    running.shut_down().await;
}

#[tokio::test]
async fn every_repetition_of_a_commit_has_the_same_answer_and_a_panic_is_an_unknown_outcome() {
    let running = Running::start().await;
    let mut raw = running.raw().await;
    let id = raw.begin(pb::BeginRequest::default()).await.unwrap().into_inner().transaction_id;
    let writes = vec![pb::CellWrite { row: Bytes::new(), column: Bytes::new(), value: Some(Bytes::new()) }];
    raw.write(pb::WriteRequest { transaction_id: id.clone(), table: "t".to_owned(), writes }).await.unwrap();
    let first = raw.commit(pb::CommitRequest { transaction_id: id.clone() }).await.unwrap().into_inner();
    let second =
        running.raw().await.commit(pb::CommitRequest { transaction_id: id.clone() }).await.unwrap().into_inner();
    assert_eq!(first, second);
    assert_eq!(running.fake.commits_begun.load(Relaxed), 1);
    let status = raw.abort(pb::AbortRequest { transaction_id: id.clone() }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "what is committed can't be aborted");
    let status = raw.keep_alive(pb::KeepAliveRequest { transaction_id: id }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    let status = raw.commit(pb::CommitRequest { transaction_id: Bytes::from(vec![7; 16]) }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
    raw.abort(pb::AbortRequest { transaction_id: Bytes::from(vec![7; 16]) }).await.unwrap();

    let transaction = begin(&running.client().await).await;
    running.fake.panic_in_commit.store(true, Relaxed);
    let error = transaction.commit().await.unwrap_err();
    assert!(matches!(error, Error::UnknownOutcome { .. }), "{error:?}");
    running.shut_down().await;
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_indeterminate_and_a_question_unavailable() {
    let running = Running::start().await;
    let proxy = Proxy::start(&running.data_dir);
    let remote = proxy.client().await;
    running.fake.hold_commits();
    let before = running.fake.held.load(Relaxed);
    let asked = remote.clone();
    let question = tokio::spawn(async move { asked.tables(false).await.map(drop) });
    let asked = remote.clone();
    let change = tokio::spawn(async move { asked.truncate_table(&table()).await });
    until("both are there", || running.fake.held.load(Relaxed) == before + 2).await;
    proxy.cut();
    assert_eq!(question.await.unwrap().unwrap_err().code(), "UNAVAILABLE");
    assert_eq!(change.await.unwrap().unwrap_err().code(), "INDETERMINATE");
    running.fake.let_commits_go();
    remote.fresh_timestamp().await.expect("the connection is made anew");
    running.shut_down().await;
}

// ---- leases

fn short_lease() -> Limits {
    let mut limits = Limits::default();
    limits.lease = Duration::from_secs(1);
    limits
}

#[tokio::test]
async fn a_transaction_whose_client_is_silent_is_aborted_and_says_so() {
    let running = Running::with_limits(short_lease()).await;
    let mut raw = running.raw().await;
    let id = raw.begin(pb::BeginRequest::default()).await.unwrap().into_inner().transaction_id;
    // Every call is a sign of life, on whatever connection.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        running.raw().await.keep_alive(pb::KeepAliveRequest { transaction_id: id.clone() }).await.unwrap();
    }
    assert_eq!(running.fake.aborts.load(Relaxed), 0, "the loss of a connection aborts nothing");
    until("it is aborted", || running.fake.aborts.load(Relaxed) == 1).await;
    let status = raw.commit(pb::CommitRequest { transaction_id: id }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Aborted);
    assert!(status.message().contains("nothing was heard"), "{status}");
    running.shut_down().await;
}

#[tokio::test]
async fn a_remote_transaction_is_kept_alive_while_it_is_held_and_aborted_when_it_is_dropped() {
    let running = Running::with_limits(short_lease()).await;
    let remote = running.client().await;
    let transaction = begin(&remote).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    transaction.write(&table(), vec![put("r", "v")]).await.unwrap();
    transaction.commit().await.unwrap().unwrap();
    let dropped = begin(&remote).await;
    assert_eq!(running.fake.open.load(Relaxed), 1);
    drop(dropped);
    until("it is aborted", || running.fake.aborts.load(Relaxed) == 1).await;
    running.shut_down().await;
}

#[tokio::test]
async fn no_more_transactions_are_held_than_the_limits_allow() {
    let mut limits = Limits::default();
    limits.transactions_max = 2;
    limits.buffered_bytes_max = 10_000;
    let running = Running::with_limits(limits).await;
    let remote = running.client().await;
    let (first, second) = (begin(&remote).await, begin(&remote).await);
    let error = remote.begin_transaction(BeginOptions::default()).await.err().unwrap();
    assert_eq!((error.code(), error.is_retriable()), ("UNAVAILABLE", true));

    first.write(&table(), vec![put("r", &"v".repeat(9_000))]).await.unwrap();
    let error = second.write(&table(), vec![put("r", &"v".repeat(2_000))]).await.unwrap_err();
    assert_eq!(error.code(), "UNAVAILABLE", "{error}");
    first.abort().await.unwrap();
    second.write(&table(), vec![put("r", &"v".repeat(2_000))]).await.expect("there is room again");
    second.commit().await.unwrap();
    begin(&remote).await.commit().await.unwrap();
    running.shut_down().await;
}

#[tokio::test]
async fn a_transaction_with_an_interrupted_write_does_not_commit_half_of_it() {
    let running = Running::start().await;
    let remote = running.client().await;
    let transaction = begin(&remote).await;
    running.fake.hold_writes.store(true, Relaxed);
    let table = table();
    let write = transaction.write(&table, vec![put("r", "v")]);
    assert!(tokio::time::timeout(Duration::from_millis(100), write).await.is_err());
    let error = transaction.commit().await.unwrap_err();
    assert_eq!((error.code(), error.is_retriable()), ("UNAVAILABLE", true));
    until("it is aborted", || running.fake.aborts.load(Relaxed) == 1).await;
    assert_eq!(running.fake.commits_begun.load(Relaxed), 0);
    running.shut_down().await;
}

// ---- backup

#[tokio::test]
async fn a_backup_tells_its_steps_and_then_its_result() {
    let running = Running::start().await;
    let remote = running.client().await;
    let steps = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = steps.clone();
    let not_utf8 = PathBuf::from(OsStr::from_bytes(b"/backups/\xff"));
    let request = BackupRequest {
        repository: not_utf8,
        name: Some("n".to_owned()),
        reason: None,
        portable: false,
        rate_limit: None,
    };
    let info = remote.backup_create(request.clone(), Arc::new(move |step| seen.lock().push(step))).await.unwrap();
    assert_eq!(info, fake::backup_info("n"));
    assert_eq!(*steps.lock(), fake::backup_steps());
    assert_eq!(running.fake.backup_requests.lock().as_slice(), [request]);
    let relative =
        BackupRequest { repository: "backups".into(), name: None, reason: None, portable: false, rate_limit: None };
    assert_eq!(remote.backup_create(relative, no_progress()).await.unwrap_err().code(), "USAGE");
    running.shut_down().await;
}

#[tokio::test]
async fn a_backup_ends_when_its_client_drops_it_or_is_gone() {
    let running = Running::start().await;
    let proxy = Proxy::start(&running.data_dir);
    let remote = proxy.client().await;
    let request =
        BackupRequest { repository: "/endless".into(), name: None, reason: None, portable: false, rate_limit: None };
    let open = || running.fake.backups_open.load(Relaxed);

    let (asked, wanted) = (remote.clone(), request.clone());
    let dropped = tokio::spawn(async move { asked.backup_create(wanted, no_progress()).await });
    until("it runs", || open() == 1).await;
    dropped.abort();
    until("it was ended by its client", || open() == 0).await;

    let lost = tokio::spawn(async move { remote.backup_create(request, no_progress()).await });
    until("it runs", || open() == 1).await;
    proxy.cut();
    assert_eq!(lost.await.unwrap().unwrap_err().code(), "INDETERMINATE");
    until("it was ended by the loss of its client", || open() == 0).await;
    running.shut_down().await;
}

// ---- sweep

#[tokio::test]
async fn a_sweep_tells_its_steps_and_then_its_report() {
    let running = Running::start().await;
    let remote = running.client().await;
    let steps = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = steps.clone();
    let request = SweepRequest {
        table: Some(table()),
        from_row: Some(Bytes::from_static(b"\xff\x00")),
        dry_run: true,
        pause: Duration::from_millis(1_500),
        read_limit: 1,
        candidate_batch: 2,
        delete_batch: 3,
    };
    let report = remote.sweep(request.clone(), Arc::new(move |step| seen.lock().push(step))).await.unwrap();
    assert_eq!(report, fake::sweep_report());
    assert_eq!(*steps.lock(), fake::backup_steps());
    remote.sweep(SweepRequest::default(), no_progress()).await.unwrap();
    assert_eq!(running.fake.sweep_requests.lock().as_slice(), [request, SweepRequest::default()]);
    running.shut_down().await;
}

#[tokio::test]
async fn a_sweep_ends_when_its_client_drops_it_or_is_gone() {
    let running = Running::start().await;
    let proxy = Proxy::start(&running.data_dir);
    let remote = proxy.client().await;
    let request = SweepRequest { table: Some(fake::endless()), ..SweepRequest::default() };
    let open = || running.fake.sweeps_open.load(Relaxed);

    let (asked, wanted) = (remote.clone(), request.clone());
    let dropped = tokio::spawn(async move { asked.sweep(wanted, no_progress()).await });
    until("it runs", || open() == 1).await;
    dropped.abort();
    until("it was ended by its client", || open() == 0).await;

    let lost = tokio::spawn(async move { remote.sweep(request, no_progress()).await });
    until("it runs", || open() == 1).await;
    proxy.cut();
    assert_eq!(lost.await.unwrap().unwrap_err().code(), "UNAVAILABLE");
    until("it was ended by the loss of its client", || open() == 0).await;
    running.shut_down().await;
}

#[tokio::test]
async fn sweep_is_looked_at_paused_and_resumed() {
    let running = Running::start().await;
    let remote = running.client().await;
    let fake = &running.fake;
    assert_eq!(remote.sweep_status().await.unwrap(), fake::sweep_status(None, false));
    let paused = remote.sweep_pause("the disks are busy").await.unwrap();
    let pause = fake.sweep_paused.lock().clone();
    assert_eq!(pause.as_ref().map(|pause| pause.reason.as_str()), Some("the disks are busy"));
    assert_eq!(paused, fake::sweep_status(pause.clone(), true));
    let lock = remote.backup_lock_acquire("because").await.unwrap();
    let status = remote.sweep_status().await.unwrap();
    assert_eq!(status, SweepStatus { backup_lock: Some(lock), ..fake::sweep_status(pause, true) });
    remote.backup_lock_release().await.unwrap();
    assert_eq!(remote.sweep_resume().await.unwrap(), fake::sweep_status(None, false));
    running.shut_down().await;
}

#[tokio::test]
async fn a_hard_delete_names_its_cells_and_is_refused_under_the_backup_lock() {
    let running = Running::start().await;
    let remote = running.client().await;
    let cells = [Cell::copy_from("a", "x"), Cell::copy_from(b"\xff", b"\x00")];
    let patience = Duration::from_millis(2_500);
    let done = remote.hard_delete(&table(), &cells, patience).await.unwrap();
    assert_eq!(done.versions, 3);
    assert_eq!(running.fake.hard_deletes.lock().as_slice(), [(table(), cells.to_vec(), patience)]);
    remote.backup_lock_acquire("because").await.unwrap();
    let error = remote.hard_delete(&table(), &cells, patience).await.unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("LOCK_HELD", exit::CONFLICT));
    assert_eq!(running.fake.hard_deletes.lock().len(), 1);
    running.shut_down().await;
}

// ---- the socket

#[tokio::test]
async fn the_socket_is_private_and_goes_with_its_server() {
    let running = Running::start().await;
    let path = server::socket_path(&running.data_dir);
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let entries = std::fs::read_dir(&running.data_dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(entries.collect::<Vec<_>>(), ["atlas.sock"], "nothing is left of the way it was made");
    let (data_dir, keep) = (running.data_dir.clone(), tempfile::tempdir().unwrap());
    running.shut_down().await;
    assert!(!path.exists());
    assert!(server::connect(&data_dir).await.unwrap().is_none());
    assert!(server::connect(keep.path()).await.unwrap().is_none(), "no socket");
    assert!(server::connect(&keep.path().join("not/there")).await.unwrap().is_none(), "no directory");
}

#[tokio::test]
async fn a_directory_with_a_long_path_has_a_socket_too() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&data_dir).unwrap();
    assert!(data_dir.as_os_str().len() > 200);
    let operations: Arc<dyn Operations> = Arc::new(Fake::default());
    let server = Server::bind_socket(operations, &data_dir).await.unwrap();
    assert_eq!(server.addresses().socket, Some(data_dir.join("atlas.sock")));
    let task = tokio::spawn(server.run(std::future::pending()));
    let mode = std::fs::metadata(data_dir.join("atlas.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let remote = server::connect(&data_dir).await.unwrap().expect("somebody answers");
    remote.fresh_timestamp().await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(!data_dir.join("atlas.sock").exists(), "also when it ends without being asked to");
    assert!(server::connect(&data_dir).await.unwrap().is_none());
}

#[tokio::test]
async fn what_a_dead_owner_left_is_replaced_and_a_living_owner_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = server::socket_path(directory.path());
    // A socket whose process is gone, and one that died while it made its socket.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    std::fs::create_dir(directory.path().join(".atlas-sock-abc")).unwrap();
    assert!(path.exists() && server::connect(directory.path()).await.unwrap().is_none());

    let operations: Arc<dyn Operations> = Arc::new(Fake::default());
    let server = Server::bind_socket(operations.clone(), directory.path()).await.unwrap();
    assert!(!directory.path().join(".atlas-sock-abc").exists());
    let task = tokio::spawn(server.run(std::future::pending()));
    let remote = server::connect(directory.path()).await.unwrap().expect("somebody answers");

    let error = Server::bind_socket(operations, directory.path()).await.unwrap_err();
    let Error::StoreInUse { pid, .. } = &error else { panic!("{error:?}") };
    assert_eq!((*pid, error.exit_code()), (Some(std::process::id()), exit::REFUSED));
    remote.fresh_timestamp().await.expect("the first goes on");
    task.abort();
}

#[tokio::test]
async fn garbage_does_not_disturb_the_others() {
    let running = Running::start().await;
    let remote = running.client().await;
    let mut silent = Vec::new();
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let frame_from_hell = [preface, &[0xff; 9], &[0xff; 1000]].concat();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 5000], &[0xff; 5000], preface, &frame_from_hell, b""] {
        let mut stream = UnixStream::connect(server::socket_path(&running.data_dir)).await.unwrap();
        let _ = stream.write_all(garbage).await;
        silent.push(stream);
        remote.fresh_timestamp().await.unwrap();
    }
    drop(silent);
    running.client().await.fresh_timestamp().await.unwrap();
    // Nor do calls that don't exist, and requests that make no sense.
    let mut raw = running.raw().await;
    let status = raw.commit(pb::CommitRequest { transaction_id: Bytes::from_static(b"short") }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let request = pb::BeginRequest { at: Some(u64::MAX), ..Default::default() };
    assert_eq!(raw.begin(request).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    running.shut_down().await;
}

struct FromTheFuture;

#[async_trait]
impl pb::admin_server::Admin for FromTheFuture {
    async fn hello(
        &self,
        _: tonic::Request<pb::HelloRequest>,
    ) -> Result<tonic::Response<pb::HelloResponse>, tonic::Status> {
        let version = "99.0.0".to_owned();
        Ok(tonic::Response::new(pb::HelloResponse { pid: 7, version, protocol: 99, ..Default::default() }))
    }

    async fn status(
        &self,
        _: tonic::Request<pb::StatusRequest>,
    ) -> Result<tonic::Response<pb::StatusResponse>, tonic::Status> {
        Err(tonic::Status::internal("not asked"))
    }

    async fn doctor(
        &self,
        _: tonic::Request<pb::DoctorRequest>,
    ) -> Result<tonic::Response<pb::DoctorResponse>, tonic::Status> {
        Err(tonic::Status::internal("not asked"))
    }
}

#[tokio::test]
async fn an_owner_of_another_version_is_told_from_one_that_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(server::socket_path(directory.path())).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let service = pb::admin_server::AdminServer::new(FromTheFuture);
    let task = tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(service, incoming));
    let error = server::connect(directory.path()).await.unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("REFUSED", exit::REFUSED));
    assert!(error.to_string().contains("99.0.0") && error.to_string().contains("process 7"), "{error}");
    task.abort();
}

// ---- the end

#[tokio::test]
async fn a_server_that_ends_lets_commits_finish_and_aborts_the_rest() {
    let mut running = Running::start().await;
    let remote = running.client().await;
    let (committing, open) = (begin(&remote).await, begin(&remote).await);
    committing.write(&table(), vec![put("r", "v")]).await.unwrap();
    let mut endless = open.scan(&fake::endless(), ScanOptions::default()).await.unwrap();
    endless.next().await.unwrap().unwrap();
    running.fake.hold_commits();
    let commit = tokio::spawn(committing.commit());
    until("the commit runs", || running.fake.commits_begun.load(Relaxed) == 1).await;

    running.start_shutdown();
    let path = server::socket_path(&running.data_dir);
    until("the socket is gone", || !path.exists()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!running.task.is_finished(), "it waits for the commit");
    running.fake.let_commits_go();
    commit.await.unwrap().unwrap().expect("it is answered");
    running.task.await.unwrap();
    assert_eq!(running.fake.aborts.load(Relaxed), 1, "the open one was aborted");
    assert_eq!(running.fake.open.load(Relaxed), 0);
    assert_eq!(running.fake.endless_scans_open.load(Relaxed), 0);
    let error = remote.fresh_timestamp().await.unwrap_err();
    assert_eq!(error.code(), "UNAVAILABLE");
    drop((open, endless));
}

#[tokio::test]
async fn a_commit_that_never_ends_does_not_keep_the_server() {
    let mut limits = Limits::default();
    limits.drain = Duration::from_millis(200);
    let running = Running::with_limits(limits).await;
    let remote = running.client().await;
    let transaction = begin(&remote).await;
    let fake = running.fake.clone();
    fake.hold_commits();
    let commit = tokio::spawn(transaction.commit());
    until("the commit runs", || fake.commits_begun.load(Relaxed) == 1).await;
    tokio::time::timeout(Duration::from_secs(8), running.shut_down()).await.expect("it ends");
    let error = commit.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::UnknownOutcome { .. }), "{error:?}");
}

// ---- TCP and HTTP

async fn http_get(address: std::net::SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn serve_answers_over_tcp_and_tells_its_health_over_http() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let config = ServerConfig { http: "127.0.0.1:0".to_owned(), grpc: "localhost:0".to_owned() };
    let server = Server::bind(Services::new(fake.clone()), &config, Some(directory.path())).await.unwrap();
    let addresses = server.addresses().clone();
    let (grpc, http) = (addresses.grpc.unwrap(), addresses.http.unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(server.run(async move { drop(stopped.await) }));

    server::connect(directory.path()).await.unwrap().unwrap().fresh_timestamp().await.unwrap();
    let token = server::token_path(directory.path());
    let remote = RemoteAtlas::connect_address(&format!("http://{grpc}"), Some(&token)).await.unwrap();
    remote.fresh_timestamp().await.unwrap();
    let error = remote.lock(uuid::Uuid::nil(), vec![], Duration::ZERO).await.unwrap_err();
    assert_eq!(error.code(), "REFUSED", "no lock service was bound");

    assert_eq!(http_get(http, "/healthz").await.1, "ok\n");
    assert_eq!(http_get(http, "/readyz").await.1, "ready\n");
    let (head, body) = http_get(http, "/status").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/json"), "{head}");
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status["store"], "fake");
    assert!(status.get("location").is_none(), "everybody may ask, so no paths are told: {body}");
    fake.sweep_pause("a secret").await.unwrap();
    let (head, body) = http_get(http, "/metrics").await;
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(!body.contains("secret"), "what people wrote for each other is not told: {body}");
    for line in [
        "# TYPE atlas_open_transactions gauge",
        "atlas_info{namespace=\"n\",store=\"fake\",version=\"1.2.3\"} 1",
        "atlas_backup_lock_held 0",
        "atlas_server_transactions 0",
        "atlas_table_bytes{table=\"t\"} 456",
        "# TYPE atlas_sweep_deleted_versions counter",
        "atlas_sweep_lag_timestamps{shard=\"2\"} 64",
        "atlas_sweep_lag_seconds{shard=\"2\"} 0",
        "atlas_sweep_paused 1",
        "atlas_sweep_stands_still 1",
        "atlas_sweep_deleted_versions 2",
        "atlas_sweep_deleted_bytes 3",
        "atlas_sweep_sentinels 4",
        "atlas_sweep_removed_entries 8",
        "atlas_sweep_failures 9",
    ] {
        assert!(body.lines().any(|found| found == line), "{line} is not in\n{body}");
    }
    assert!(http_get(http, "/nothing").await.0.starts_with("HTTP/1.1 404"));

    *fake.failure.lock() = Some(Error::Unavailable { what: "the disk".to_owned(), reason: "gone".to_owned() });
    let (head, body) = http_get(http, "/readyz").await;
    assert!(head.starts_with("HTTP/1.1 503") && body.contains("UNAVAILABLE"), "{head}\n{body}");
    assert!(!body.contains("disk"), "sentences may name paths: {body}");
    drop(stop);
    task.await.unwrap();
    assert!(TcpStream::connect(http).await.is_err() && TcpStream::connect(grpc).await.is_err());
    let error = RemoteAtlas::connect_address(&grpc.to_string(), Some(&token)).await.unwrap_err();
    assert_eq!(error.code(), "UNAVAILABLE");
    assert_eq!(RemoteAtlas::connect_address("http://example.com:1", None).await.unwrap_err().code(), "USAGE");
}

#[tokio::test]
async fn a_call_over_tcp_carries_the_token_and_nothing_is_done_without() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let config = ServerConfig { http: "off".to_owned(), grpc: "127.0.0.1:0".to_owned() };
    let server = Server::bind(Services::new(fake.clone()), &config, Some(directory.path())).await.unwrap();
    let grpc = server.addresses().grpc.unwrap().to_string();
    let token = server::token_path(directory.path());
    let metadata = std::fs::metadata(&token).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let stop = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(server.run(stop.clone().cancelled_owned()));

    let error = RemoteAtlas::connect_address(&grpc, None).await.unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("UNAUTHENTICATED", exit::PERMISSION));
    assert!(!error.is_retriable() && error.to_string().contains("server.token"), "{error}");
    assert!(error.hint().unwrap().contains("ATLAS_SERVER_TOKEN_FILE"));

    let elsewhere = tempfile::tempdir().unwrap();
    let wrong = elsewhere.path().join("token");
    let error = RemoteAtlas::connect_address(&grpc, Some(&wrong)).await.unwrap_err();
    assert_eq!(error.exit_code(), exit::NOT_FOUND);
    let write = |text: &str| {
        std::fs::write(&wrong, text).unwrap();
        std::fs::set_permissions(&wrong, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(&"0".repeat(64));
    let error = RemoteAtlas::connect_address(&grpc, Some(&wrong)).await.unwrap_err();
    assert_eq!(error.code(), "UNAUTHENTICATED");
    write("not a token");
    assert_eq!(RemoteAtlas::connect_address(&grpc, Some(&wrong)).await.unwrap_err().code(), "IO");

    // Every service, and what is no service at all, by a program that does not know of tokens.
    let channel = Endpoint::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
    let mut timestamps = pb::timestamps_client::TimestampsClient::new(channel.clone());
    let mut transactions = pb::transactions_client::TransactionsClient::new(channel.clone());
    let mut tables = pb::tables_client::TablesClient::new(channel.clone());
    let mut locks = pb::locks_client::LocksClient::new(channel.clone());
    let mut backup_lock = pb::backup_lock_client::BackupLockClient::new(channel.clone());
    let mut backup = pb::backup_client::BackupClient::new(channel.clone());
    let mut admin = pb::admin_client::AdminClient::new(channel);
    for status in [
        timestamps.fresh(pb::FreshRequest::default()).await.unwrap_err(),
        transactions.begin(pb::BeginRequest::default()).await.unwrap_err(),
        tables.list(pb::ListTablesRequest::default()).await.unwrap_err(),
        locks.lock(pb::LockRequest::default()).await.unwrap_err(),
        backup_lock.acquire(pb::AcquireRequest::default()).await.unwrap_err(),
        backup.create(pb::CreateBackupRequest::default()).await.unwrap_err(),
        admin.hello(pb::HelloRequest::default()).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");
        assert!(status.message().contains("server.token"), "{status}");
    }

    RemoteAtlas::connect_address(&grpc, Some(&token)).await.unwrap().fresh_timestamp().await.unwrap();
    server::connect(directory.path()).await.unwrap().expect("the socket asks for none");
    stop.cancel();
    task.await.unwrap();

    // The next server takes the same token, and another file if it is told one.
    let first = std::fs::read(&token).unwrap();
    let server = Server::bind(Services::new(fake.clone()), &config, Some(directory.path())).await.unwrap();
    assert_eq!(std::fs::read(&token).unwrap(), first);
    drop(server);
    let other = elsewhere.path().join("other");
    Server::bind(Services::new(fake.clone()).token_file(&other), &config, None).await.unwrap();
    assert_ne!(std::fs::read(&other).unwrap(), first);
    let error = Server::bind(Services::new(fake), &config, None).await.unwrap_err();
    assert_eq!(error.exit_code(), exit::CONFIG, "no place for a token");
}

#[tokio::test]
async fn a_taken_port_and_a_public_address_are_refused_with_the_key_to_change() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let operations: Arc<dyn Operations> = Arc::new(Fake::default());
    let off = || "off".to_owned();
    for (key, config) in [
        ("atlasdb.server.http", ServerConfig { http: address.clone(), grpc: off() }),
        ("atlasdb.server.grpc", ServerConfig { http: off(), grpc: address.clone() }),
        ("atlasdb.server.grpc", ServerConfig { http: off(), grpc: "0.0.0.0:0".to_owned() }),
        ("atlasdb.server.http", ServerConfig { http: "nonsense".to_owned(), grpc: off() }),
    ] {
        let error = server::serve(operations.clone(), &config, None, std::future::ready(())).await.unwrap_err();
        assert_eq!(error.exit_code(), exit::CONFIG);
        assert!(error.to_string().contains(key), "{error}");
    }
    let nothing = ServerConfig { http: off(), grpc: off() };
    server::serve(operations.clone(), &nothing, None, std::future::ready(())).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    server::serve_socket(operations, directory.path(), std::future::ready(())).await.unwrap();
}
