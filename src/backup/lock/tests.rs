use super::*;
use crate::lock::mock::{MockClock, settle};
use async_trait::async_trait;
use atlas_kvs::{
    AtomicBatch, AtomicScan, Availability, Capabilities, Cell, CellBound, CellTimestamps, CellVersionRange,
    CellVersions, CheckAndSet, Durability, NativeSnapshot, Ownership, PutUnlessExists, ResultStream, RowRange, Scan,
    TableDescription, TableKind, TableRef, TableSize, Timestamp, Value, Version, VersionScan,
};
use atlas_kvs_memory::MemoryStore;
use bytes::Bytes;
use futures::FutureExt;
use std::collections::VecDeque;
use tokio::sync::oneshot;

const LEASE: Duration = Duration::from_secs(60);

/// What happens to the next compare-and-set.
#[derive(Debug)]
enum Fault {
    /// Applied, and the answer is lost.
    LoseAnswer,
    /// Not applied yet; the answer is lost.
    Delay,
    /// Refused.
    Unavailable,
    /// Applied; the answer comes when this is sent.
    Hold(oneshot::Receiver<()>),
    /// Applied when this is sent.
    Late(oneshot::Receiver<()>),
}

/// A compare-and-set that is still under way: the cell, what is expected there and what shall be.
type Delayed = (Cell, Option<Bytes>, Option<Bytes>);

/// A store in memory that does what stores at the other end of a network do.
#[derive(Debug)]
struct FaultyStore {
    memory: MemoryStore,
    faults: Mutex<VecDeque<Fault>>,
    delayed: Mutex<Option<Delayed>>,
    /// Reads to let pass, and then one that is answered late.
    late_read: Mutex<Option<(usize, oneshot::Receiver<()>)>>,
}

impl FaultyStore {
    fn next(&self, fault: Fault) {
        self.faults.lock().push_back(fault);
    }

    /// The read after `pass` others is made at once and answered when the sender is used.
    fn answer_late(&self, pass: usize) -> oneshot::Sender<()> {
        let (sender, receiver) = oneshot::channel();
        *self.late_read.lock() = Some((pass, receiver));
        sender
    }

    /// The delayed write arrives.
    async fn land(&self) {
        let (cell, expected, new) = self.delayed.lock().take().expect("a write was delayed");
        let table = crate::schema::meta_table();
        let landed = self.memory.check_and_set(&table, &cell, expected, new).await;
        assert_eq!(landed.expect("the store works"), CheckAndSet::Applied);
    }

    fn lost() -> KvsError {
        KvsError::Indeterminate { reason: "the answer was lost".to_owned(), source: None }
    }
}

type KvsResult<T> = atlas_kvs::Result<T>;

#[async_trait]
impl KeyValueService for FaultyStore {
    async fn get_atomic(&self, table: &TableRef, cells: &[Cell]) -> KvsResult<Vec<Option<Bytes>>> {
        let found = self.memory.get_atomic(table, cells).await;
        let late = match &mut *self.late_read.lock() {
            Some((pass, _)) if *pass > 0 => {
                *pass -= 1;
                None
            }
            late => late.take(),
        };
        if let Some((_, receiver)) = late {
            receiver.await.expect("the test lets the read go on");
        }
        found
    }

    async fn check_and_set(
        &self,
        table: &TableRef,
        cell: &Cell,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> KvsResult<CheckAndSet> {
        let fault = self.faults.lock().pop_front();
        match fault {
            None => self.memory.check_and_set(table, cell, expected, new).await,
            Some(Fault::LoseAnswer) => {
                self.memory.check_and_set(table, cell, expected, new).await?;
                Err(FaultyStore::lost())
            }
            Some(Fault::Delay) => {
                *self.delayed.lock() = Some((cell.clone(), expected, new));
                Err(FaultyStore::lost())
            }
            Some(Fault::Unavailable) => Err(KvsError::Unavailable { reason: "no quorum".to_owned(), source: None }),
            Some(Fault::Late(receiver)) => {
                receiver.await.expect("the test lets the write go on");
                self.memory.check_and_set(table, cell, expected, new).await
            }
            Some(Fault::Hold(receiver)) => {
                let answer = self.memory.check_and_set(table, cell, expected, new).await;
                receiver.await.expect("the test lets the write go on");
                answer
            }
        }
    }

    async fn create_table(&self, table: &TableRef, kind: TableKind, metadata: Bytes) -> KvsResult<()> {
        self.memory.create_table(table, kind, metadata).await
    }

    // ---- nothing below concerns records

    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
    fn ownership(&self) -> Ownership {
        self.memory.ownership()
    }
    async fn drop_table(&self, table: &TableRef) -> KvsResult<()> {
        self.memory.drop_table(table).await
    }
    async fn truncate_table(&self, table: &TableRef) -> KvsResult<()> {
        self.memory.truncate_table(table).await
    }
    async fn tables(&self) -> KvsResult<Vec<TableDescription>> {
        self.memory.tables().await
    }
    async fn table(&self, table: &TableRef) -> KvsResult<Option<TableDescription>> {
        self.memory.table(table).await
    }
    async fn put_table_metadata(&self, table: &TableRef, metadata: Bytes) -> KvsResult<()> {
        self.memory.put_table_metadata(table, metadata).await
    }
    async fn table_size(&self, table: &TableRef) -> KvsResult<TableSize> {
        self.memory.table_size(table).await
    }
    async fn get(&self, table: &TableRef, cells: &[CellBound]) -> KvsResult<Vec<Option<Value>>> {
        self.memory.get(table, cells).await
    }
    fn scan(&self, table: &TableRef, request: Scan) -> ResultStream<(Cell, Value)> {
        self.memory.scan(table, request)
    }
    async fn versions(&self, table: &TableRef, cells: &[CellBound]) -> KvsResult<Vec<Vec<Version>>> {
        self.memory.versions(table, cells).await
    }
    fn scan_versions(&self, table: &TableRef, request: VersionScan) -> ResultStream<CellVersions> {
        self.memory.scan_versions(table, request)
    }
    async fn put(&self, puts: Vec<(TableRef, Vec<(Cell, Bytes)>)>, ts: Timestamp) -> KvsResult<()> {
        self.memory.put(puts, ts).await
    }
    async fn put_versions(&self, table: &TableRef, versions: Vec<(Cell, Value)>) -> KvsResult<()> {
        self.memory.put_versions(table, versions).await
    }
    async fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> KvsResult<()> {
        self.memory.add_sentinels(table, cells).await
    }
    async fn delete_versions(&self, table: &TableRef, versions: &[CellTimestamps]) -> KvsResult<()> {
        self.memory.delete_versions(table, versions).await
    }
    async fn delete_version_ranges(&self, table: &TableRef, ranges: &[CellVersionRange]) -> KvsResult<()> {
        self.memory.delete_version_ranges(table, ranges).await
    }
    async fn delete_rows(&self, table: &TableRef, rows: &RowRange) -> KvsResult<()> {
        self.memory.delete_rows(table, rows).await
    }
    fn scan_atomic(&self, table: &TableRef, request: AtomicScan) -> ResultStream<(Cell, Bytes)> {
        self.memory.scan_atomic(table, request)
    }
    async fn put_unless_exists(&self, table: &TableRef, cell: &Cell, value: Bytes) -> KvsResult<PutUnlessExists> {
        self.memory.put_unless_exists(table, cell, value).await
    }
    async fn apply(&self, batch: AtomicBatch, durability: Durability) -> KvsResult<()> {
        self.memory.apply(batch, durability).await
    }
    async fn availability(&self) -> Availability {
        self.memory.availability().await
    }
    fn native_snapshot(&self) -> Option<&dyn NativeSnapshot> {
        self.memory.native_snapshot()
    }
    async fn reopen(&self) -> KvsResult<()> {
        self.memory.reopen().await
    }
    async fn close(&self) -> KvsResult<()> {
        self.memory.close().await
    }
}

struct World {
    store: Arc<FaultyStore>,
    clock: Arc<MockClock>,
    lock: BackupLock,
}

impl World {
    async fn new() -> World {
        let store = Arc::new(FaultyStore {
            memory: MemoryStore::new(),
            faults: Mutex::default(),
            delayed: Mutex::default(),
            late_read: Mutex::default(),
        });
        MetaRecord::<BackupLockRecord>::create_table(&*store).await.expect("the store is empty");
        let clock = MockClock::new();
        let lock = BackupLock::with_clock(store.clone(), clock.clone());
        World { store, clock, lock }
    }

    /// The same store, seen by another process.
    fn elsewhere(&self) -> BackupLock {
        BackupLock::with_clock(self.store.clone(), self.clock.clone())
    }

    async fn renewed(&self) -> BackupLockGuard {
        let guard = self.lock.acquire_renewed("nightly", LEASE).await.expect("nobody holds it");
        settle().await;
        guard
    }

    async fn record(&self) -> Option<BackupLockRecord> {
        self.lock.status().await.expect("the store answers")
    }

    async fn record_id(&self) -> Option<Uuid> {
        self.record().await.map(|record| record.lock_id)
    }

    async fn may_delete(&self) -> bool {
        match self.lock.gate().permit().await {
            Ok(_) => true,
            Err(Error::BackupLockHeld { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

fn is_held<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::BackupLockHeld { .. }))
}

fn is_void(result: Result<()>) -> bool {
    matches!(result, Err(Error::BackupVoid { .. }))
}

/// Runs in the background as far as it can.
async fn spawned<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    let task = tokio::spawn(future);
    settle().await;
    task
}

fn acquire(lock: &BackupLock) -> impl Future<Output = Result<BackupLockRecord>> + Send + 'static {
    let lock = lock.clone();
    async move { lock.acquire_for_nobody("by hand").await }
}

fn release(lock: &BackupLock) -> impl Future<Output = Result<Option<BackupLockRecord>>> + Send + 'static {
    let lock = lock.clone();
    async move { lock.release().await }
}

#[tokio::test]
async fn deletions_are_refused_while_the_lock_is_held_and_allowed_before_and_after() {
    let world = World::new().await;
    assert!(world.may_delete().await);
    let record = world.lock.acquire_for_nobody("by hand").await.expect("nobody holds it");
    assert_eq!((record.renewal, record.lease_ms, &*record.reason), (None, 0, "by hand"));
    assert!(!world.may_delete().await);
    assert_eq!(world.lock.release().await.expect("nobody renews it"), Some(record));
    assert!(world.may_delete().await);
    assert_eq!(world.lock.release().await.expect("nobody holds it"), None);
}

#[tokio::test]
async fn a_lock_taken_by_another_process_stops_deletions_here() {
    let world = World::new().await;
    world.elsewhere().acquire_for_nobody("by hand").await.expect("nobody holds it");
    assert!(!world.may_delete().await);
}

#[tokio::test]
async fn the_record_tells_who_holds_it_and_since_when() {
    let world = World::new().await;
    let record = world.renewed().await.record().clone();
    assert!(record.holder.ends_with(&format!(" pid {}", std::process::id())), "{}", record.holder);
    assert!(record.holder.contains('@') && !record.holder.starts_with('@'), "{}", record.holder);
    record.since.parse::<jiff::Timestamp>().expect("RFC 3339");
    assert_eq!((record.renewal, record.lease_ms, record.renewed_at), (Some(0), 60_000, Some(record.since)));
}

#[tokio::test]
async fn the_lock_has_one_holder_whatever_their_kinds_and_processes() {
    for renewed in [false, true] {
        let world = World::new().await;
        let mut guard = None;
        if renewed {
            guard = Some(world.renewed().await);
        } else {
            world.lock.acquire_for_nobody("by hand").await.expect("nobody holds it");
        }
        let before = world.record_id().await;
        for lock in [world.lock.clone(), world.elsewhere()] {
            assert!(is_held(lock.acquire_for_nobody("again").await));
            assert!(is_held(lock.acquire_renewed("again", LEASE).await));
        }
        settle().await;
        assert_eq!(world.record_id().await, before);
        drop(guard);
    }
}

#[tokio::test]
async fn of_two_acquisitions_at_once_one_is_refused() {
    let world = World::new().await;
    for other in [world.lock.clone(), world.elsewhere()] {
        let (first, second) = tokio::join!(acquire(&world.lock), acquire(&other));
        assert_eq!((is_held(first), is_held(second)), (false, true));
        world.lock.release().await.expect("nobody renews it");
    }
}

#[tokio::test]
async fn acquiring_returns_when_no_deletion_is_under_way_and_stops_every_one_after() {
    let world = World::new().await;
    let first = world.lock.gate().permit().await.expect("nobody holds the lock");
    let second = world.lock.gate().permit().await.expect("nobody holds the lock");
    let task = spawned(acquire(&world.lock)).await;
    assert!(!world.may_delete().await, "or acquiring might never end");
    drop(first);
    settle().await;
    assert!(!task.is_finished(), "one deletion is still under way");
    assert_eq!(world.record().await, None);
    drop(second);
    task.await.expect("no panic").expect("nobody holds it");
    assert!(world.record().await.is_some() && !world.may_delete().await);
}

#[tokio::test]
async fn acquiring_waits_for_a_deletion_that_has_read_that_the_lock_is_free_but_does_not_know_yet() {
    let world = World::new().await;
    let answer = world.store.answer_late(0);
    let gate = world.lock.gate();
    let deletion = spawned(async move { gate.permit().await }).await;
    let task = spawned(acquire(&world.lock)).await;
    assert!(!task.is_finished());
    answer.send(()).expect("the read waits");
    let permit = deletion.await.expect("no panic").expect("it read that the lock is free");
    settle().await;
    assert!(!task.is_finished());
    drop(permit);
    task.await.expect("no panic").expect("nobody holds it");
}

#[tokio::test]
async fn no_deletion_slips_in_between_the_drained_gate_and_the_record() {
    let world = World::new().await;
    let (answer, wait) = oneshot::channel();
    world.store.next(Fault::Late(wait));
    let task = spawned(acquire(&world.lock)).await;
    assert!(!world.may_delete().await);
    answer.send(()).expect("the write waits");
    task.await.expect("no panic").expect("nobody holds it");
}

#[tokio::test]
async fn an_acquisition_dropped_while_it_waits_for_deletions_leaves_nothing_behind() {
    let world = World::new().await;
    let permit = world.lock.gate().permit().await.expect("nobody holds the lock");
    let task = spawned(acquire(&world.lock)).await;
    task.abort();
    settle().await;
    assert!(world.may_delete().await);
    drop(permit);
    settle().await;
    assert_eq!(world.record().await, None);
}

#[tokio::test]
async fn an_acquisition_dropped_while_it_writes_is_taken_back() {
    let world = World::new().await;
    let (answer, wait) = oneshot::channel();
    world.store.next(Fault::Hold(wait));
    let task = spawned(acquire(&world.lock)).await;
    assert!(world.record().await.is_some());
    task.abort();
    settle().await;
    answer.send(()).expect("the write goes on");
    settle().await;
    assert_eq!(world.record().await, None);
    assert!(world.may_delete().await);
}

#[tokio::test]
async fn a_failed_acquisition_opens_the_gate() {
    let world = World::new().await;
    world.store.next(Fault::Unavailable);
    assert!(world.lock.acquire_for_nobody("by hand").await.is_err());
    assert!(world.may_delete().await);
}

#[tokio::test]
async fn an_acquisition_whose_answer_was_lost_is_settled_by_writing() {
    for (fault, lands) in [(Fault::LoseAnswer, true), (Fault::Delay, false)] {
        let world = World::new().await;
        world.store.next(fault);
        let task = spawned(acquire(&world.lock)).await;
        let landed = world.record_id().await;
        assert_eq!(landed.is_some(), lands);
        world.clock.advance(ATTEMPT_PAUSE).await;
        let record = task.await.expect("no panic").expect("nobody else holds it");
        assert_eq!(world.record_id().await, Some(record.lock_id));
        assert!(landed.is_none_or(|landed| landed == record.lock_id));
    }
}

#[tokio::test]
async fn a_lost_write_that_arrives_after_the_lock_was_cleared_is_not_taken_for_it() {
    let world = World::new().await;
    world.store.next(Fault::Delay);
    let lock = world.lock.clone();
    let task = spawned(async move { lock.acquire_renewed("nightly", LEASE).await }).await;
    world.clock.advance(ATTEMPT_PAUSE).await;
    let guard = task.await.expect("no panic").expect("nobody else holds it");
    guard.check().await.expect("it holds");
    world.lock.clear_after_restore().await.expect("the store answers");
    world.store.land().await;
    assert!(is_void(guard.check().await));
}

#[tokio::test]
async fn an_acquisition_that_can_not_be_settled_is_not_said_to_have_failed() {
    let world = World::new().await;
    world.store.next(Fault::Delay);
    (1..ATTEMPTS_MAX).for_each(|_| world.store.next(Fault::Unavailable));
    let task = spawned(acquire(&world.lock)).await;
    world.clock.advance(ATTEMPT_PAUSE * ATTEMPTS_MAX * 2).await;
    let error = task.await.expect("no panic").expect_err("no answer came");
    assert_eq!(error.code(), "INDETERMINATE");
}

#[tokio::test]
async fn the_renewal_is_counted_up_four_times_a_lease() {
    let world = World::new().await;
    let guard = world.renewed().await;
    for _ in 0..8 {
        world.clock.advance(LEASE / 4).await;
    }
    assert_eq!(world.record().await.and_then(|record| record.renewal), Some(8));
    guard.check().await.expect("it holds");
}

#[tokio::test]
async fn renewing_goes_on_after_lost_answers_and_failures() {
    let world = World::new().await;
    let guard = world.renewed().await;
    [Fault::LoseAnswer, Fault::Unavailable].into_iter().for_each(|fault| world.store.next(fault));
    for _ in 0..8 {
        world.clock.advance(LEASE / 4).await;
    }
    // Of eight periods one failed, and one found that the renewal before it had been made.
    assert_eq!(world.record().await.and_then(|record| record.renewal), Some(6));
    guard.check().await.expect("it holds");
}

#[tokio::test]
async fn a_backup_whose_lock_was_cleared_is_void() {
    let world = World::new().await;
    let guard = world.renewed().await;
    world.lock.clear_after_restore().await.expect("the store answers");
    assert!(is_void(guard.check().await));
    world.clock.advance(LEASE).await;
    assert!(is_void(guard.check().await) && world.record().await.is_none(), "it is not written again");
}

#[tokio::test]
async fn a_backup_whose_lock_was_cleared_and_taken_by_another_is_void_and_leaves_the_others_alone() {
    let world = World::new().await;
    let guard = world.renewed().await;
    world.lock.clear_after_restore().await.expect("the store answers");
    let other = world.elsewhere().acquire_for_nobody("by hand").await.expect("nobody holds it");
    assert!(is_void(guard.check().await));
    world.clock.advance(LEASE).await;
    assert!(!guard.release().await.expect("the store answers"));
    assert_eq!(world.record().await, Some(other));
}

#[tokio::test]
async fn releasing_a_guard_ends_the_lock_and_its_renewals() {
    let world = World::new().await;
    let guard = world.renewed().await;
    world.clock.advance(LEASE).await;
    assert!(guard.release().await.expect("the store answers"));
    assert_eq!(world.record().await, None);
    world.clock.advance(LEASE).await;
    assert!(world.may_delete().await);
}

#[tokio::test]
async fn a_release_whose_answer_was_lost_is_tried_again() {
    for (fault, landed) in [(Fault::LoseAnswer, true), (Fault::Unavailable, false), (Fault::Delay, false)] {
        let world = World::new().await;
        let guard = world.renewed().await;
        world.store.next(fault);
        let task = spawned(guard.release()).await;
        assert_eq!(world.record().await.is_none(), landed);
        world.clock.advance(ATTEMPT_PAUSE).await;
        assert!(task.await.expect("no panic").expect("the store answers"));
        assert_eq!(world.record().await, None);
    }
}

#[tokio::test]
async fn a_dropped_guard_releases_the_lock() {
    let world = World::new().await;
    drop(world.renewed().await);
    settle().await;
    assert_eq!(world.record().await, None);
    assert_eq!(world.clock.sleepers(), 0);
}

#[tokio::test]
async fn a_lock_renewed_by_this_process_is_not_released_and_nobody_waits_to_find_out() {
    let world = World::new().await;
    let guard = world.renewed().await;
    let released = release(&world.lock).now_or_never().expect("it does not wait");
    assert!(is_held(released));
    guard.check().await.expect("it holds");
}

#[tokio::test]
async fn a_lock_renewed_by_another_process_is_not_released() {
    let world = World::new().await;
    let guard = world.renewed().await;
    let task = spawned(release(&world.elsewhere())).await;
    world.clock.advance(LEASE).await;
    let error = task.await.expect("no panic").expect_err("it is being renewed");
    assert_eq!(error.exit_code(), crate::exit::CONFLICT);
    guard.check().await.expect("it holds");
}

#[tokio::test]
async fn a_lock_that_nobody_renews_is_released_after_a_whole_lease_and_not_before() {
    let world = World::new().await;
    let guard = world.renewed().await;
    // The owner stalls: its renewals stop.
    guard.renewer.abort();
    let task = spawned(release(&world.elsewhere())).await;
    world.clock.advance(LEASE - Duration::from_secs(1)).await;
    assert!(!task.is_finished());
    guard.check().await.expect("it holds");
    world.clock.advance(LEASE).await;
    assert_eq!(task.await.expect("no panic").expect("nobody renews it"), Some(guard.record().clone()));
    assert!(is_void(guard.check().await), "the owner that stalled finds out");
}

#[tokio::test]
async fn a_renewal_at_the_last_moment_saves_the_lock() {
    let world = World::new().await;
    let guard = world.renewed().await;
    guard.renewer.abort();
    // One read finds the record, and one comes with each look; the last is made and not yet answered.
    let answer = world.store.answer_late(LOOKS as usize);
    let task = spawned(release(&world.elsewhere())).await;
    world.clock.advance(LEASE * 2).await;
    assert!(!task.is_finished());
    let (record, bytes) = world.lock.shared.record.load().await.expect("the store answers").expect("it is held");
    let renewed = BackupLockRecord { renewal: Some(1), ..record };
    world.lock.shared.record.replace(Some(&bytes), Some(&renewed)).await.expect("the store answers");
    answer.send(()).expect("the read waits");
    assert!(is_held(task.await.expect("no panic")));
    assert_eq!(world.record().await, Some(renewed));
}

#[tokio::test]
async fn a_restore_clears_the_lock_of_the_backup_it_came_from() {
    let world = World::new().await;
    let guard = world.renewed().await;
    let cleared = world.elsewhere().clear_after_restore().await.expect("the store answers");
    assert_eq!(cleared.as_ref(), Some(guard.record()));
    assert!(world.may_delete().await);
    assert_eq!(world.lock.clear_after_restore().await.expect("the store answers"), None);
}

#[tokio::test]
async fn a_lease_too_short_to_be_kept_is_refused() {
    let world = World::new().await;
    let refused = world.lock.acquire_renewed("nightly", LEASE_MIN - Duration::from_millis(1)).await;
    assert!(matches!(refused, Err(Error::Usage(_))));
}

#[tokio::test]
async fn a_deletion_whose_caller_is_gone_holds_up_acquisitions_until_it_is_over() {
    let world = World::new().await;
    let (finish, deletion) = oneshot::channel::<()>();
    let gate = world.lock.gate();
    let caller = spawned(async move {
        gate.run(async move {
            deletion.await.expect("the test lets the deletion end");
            Ok(())
        })
        .await
    })
    .await;
    caller.abort();
    settle().await;
    let task = spawned(acquire(&world.lock)).await;
    assert!(!task.is_finished());
    finish.send(()).expect("the deletion waits");
    task.await.expect("no panic").expect("nobody holds it");
}

#[tokio::test]
async fn a_deletion_is_not_begun_while_the_lock_is_held() {
    let world = World::new().await;
    world.lock.acquire_for_nobody("by hand").await.expect("nobody holds it");
    let run = world.lock.gate().run::<()>(async { unreachable!("the deletion is refused") }).await;
    assert!(is_held(run));
}
