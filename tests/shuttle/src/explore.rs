//! What is explored: a few tasks each, and what must hold whoever goes on when.
//!
//! Each exploration states how many schedules it looks at, and which mistakes it must find when they are planted.

use crate::backup::lock::BackupLock;
use crate::clock::Clock;
use crate::common::clock::TestClock;
use crate::common::faulty::{Fault, Faulty, Op};
use crate::lock::{HeldLocks, LockClient, LockDescriptor, LockOptions, LockRequest, LockService, LockToken};
use crate::planted::Mistake;
use crate::schema::MetaRecord;
use crate::timestamp::{LeaseOptions, OracleRecord, TimestampOracle, read_stored};
use crate::transaction::tracker::SnapshotTracker;
use crate::{Error, Result, Timestamp};
use async_trait::async_trait;
use atlas_kvs::KeyValueService;
use atlas_kvs_memory::MemoryStore;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::yield_now;

const LEASE: Duration = Duration::from_secs(20);
/// The steps in which time runs.
const JUMP: Duration = Duration::from_secs(3);
const FOR_EVER: Duration = Duration::from_secs(1_000_000_000);

/// Something to explore.
#[derive(Clone, Copy)]
pub struct Exploration {
    /// What must hold.
    pub name: &'static str,
    /// How many schedules are looked at, and within how many each planted mistake must show.
    pub schedules: usize,
    /// Which mistakes it must find.
    pub finds: &'static [Mistake],
    /// One run of it.
    pub run: fn(),
}

/// Everything there is to explore.
pub const ALL: [Exploration; 7] = [
    Exploration {
        name: "a lock has one holder, and none is forgotten",
        schedules: 2_000,
        finds: &[Mistake::LookBeforeListening, Mistake::KeepWhatWasHandedOver],
        run: || shuttle::future::block_on(a_lock_has_one_holder()),
    },
    Exploration {
        name: "a holder knows that its locks are lost before another gets them",
        schedules: 2_000,
        finds: &[Mistake::TrustForTooLong],
        run: || shuttle::future::block_on(a_holder_knows_what_it_lost()),
    },
    Exploration {
        name: "numbers are unique, and below the bound in the store",
        schedules: 2_000,
        finds: &[Mistake::IssueBeforeTheBound],
        run: || shuttle::future::block_on(numbers_are_unique_and_below_the_bound()),
    },
    Exploration {
        name: "numbers grow over a change of the owner",
        schedules: 2_000,
        finds: &[Mistake::TrustForTooLong],
        run: || shuttle::future::block_on(numbers_grow_over_a_change_of_the_owner()),
    },
    Exploration {
        name: "a lease that was given up stays so",
        schedules: 2_000,
        finds: &[Mistake::RenewWhatWasGivenUp],
        run: || shuttle::future::block_on(a_lease_that_was_given_up_stays_so()),
    },
    Exploration {
        name: "the immutable timestamp passes no open snapshot",
        schedules: 2_000,
        finds: &[Mistake::RegisterLater],
        run: || shuttle::future::block_on(the_immutable_timestamp_passes_no_open_snapshot()),
    },
    Exploration {
        name: "nothing is deleted under a backup lock",
        schedules: 2_000,
        finds: &[Mistake::CountAfterTheLook],
        run: || shuttle::future::block_on(nothing_is_deleted_under_a_backup_lock()),
    },
];

/// Lets others go on, for longer or shorter.
async fn pause() {
    use shuttle::rand::Rng;
    for _ in 0..shuttle::rand::thread_rng().gen_range(1..20) {
        yield_now().await;
    }
}

/// Waits until every task that keeps something alive has ended: what is still there when a run is over can't be dropped in
/// order. Whatever has a lease has the clock.
async fn all_is_dropped(clock: &Arc<TestClock>) {
    while Arc::strong_count(clock) > 1 {
        yield_now().await;
    }
}

fn by_chance() -> bool {
    use shuttle::rand::Rng;
    shuttle::rand::thread_rng().gen_bool(0.5)
}

/// A lock service behind a wire that may be cut.
#[derive(Debug)]
struct Wire {
    service: Arc<LockService>,
    cut: AtomicBool,
}

#[async_trait]
impl LockClient for Wire {
    async fn lock(&self, request: LockRequest) -> Result<LockToken> {
        self.service.lock(request).await
    }

    async fn refresh(&self, tokens: &[LockToken]) -> Result<Vec<LockToken>> {
        match self.cut.load(Ordering::SeqCst) {
            true => Err(Error::Unavailable { what: "the lock service".into(), reason: "the wire is cut".into() }),
            false => Ok(self.service.refresh(tokens)),
        }
    }

    async fn unlock(&self, tokens: &[LockToken]) -> Result<Vec<LockToken>> {
        Ok(self.service.unlock(tokens))
    }

    fn lease(&self) -> Duration {
        self.service.lease()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.service.clock()
    }
}

/// Three tasks take two of three locks each, two more give up in the middle of waiting.
async fn a_lock_has_one_holder() {
    let service = LockService::with_clock(1, LockOptions::default(), TestClock::new());
    let inside: Arc<[AtomicUsize; 3]> = Arc::default();
    let request = |names: &[usize]| {
        let descriptors = names.iter().map(|name| LockDescriptor::advisory(&name.to_string())).collect();
        LockRequest::new(descriptors, FOR_EVER)
    };
    let mut tasks = Vec::new();
    for task in 0..3 {
        let names = [task, (task + 1) % 3];
        let (service, inside, request) = (service.clone(), inside.clone(), request(&names));
        tasks.push(tokio::spawn(async move {
            let token = service.lock(request).await.expect("it is granted in the end");
            for name in names {
                assert_eq!(inside[name].fetch_add(1, Ordering::SeqCst), 0, "lock {name} has two holders");
            }
            yield_now().await;
            for name in names {
                inside[name].fetch_sub(1, Ordering::SeqCst);
            }
            assert_eq!(service.unlock(&[token]), [token]);
        }));
    }
    for task in 0..2 {
        let (service, request) = (service.clone(), request(&[task, task + 1]));
        tasks.push(tokio::spawn(async move {
            let mut call = Box::pin(service.lock(request));
            for _ in 0..2 {
                if let std::task::Poll::Ready(granted) = futures::poll!(&mut call) {
                    service.unlock(&[granted.expect("it is granted")]);
                    return;
                }
                yield_now().await;
            }
            // Given up, perhaps at the very moment at which it is granted.
            drop(call);
        }));
    }
    for task in tasks {
        task.await.expect("the task ends");
    }
    assert!(service.holders().is_empty(), "a lock was forgotten");
}

/// The clock runs while one holder refreshes its lock, or can't, and another one asks for it again and again.
async fn a_holder_knows_what_it_lost() {
    let clock = TestClock::new();
    let service = Arc::new(LockService::with_clock(1, LockOptions::default(), clock.clone()));
    let request = || LockRequest::new(vec![LockDescriptor::advisory("it")], FOR_EVER);
    let wire = Arc::new(Wire { service: service.clone(), cut: AtomicBool::new(false) });
    let first = HeldLocks::acquire(wire.clone(), Timestamp::FIRST, request()).await.expect("it is free");
    wire.cut.store(by_chance(), Ordering::SeqCst);
    let given_away = Arc::new(AtomicBool::new(false));
    let second = {
        let (service, given_away) = (service.clone(), given_away.clone());
        tokio::spawn(async move {
            // Each call looks whether the lease of whoever is in its way has run out.
            let token = loop {
                match service.try_lock(request()).expect("it can be asked for") {
                    Some(token) => break token,
                    None => yield_now().await,
                }
            };
            given_away.store(true, Ordering::SeqCst);
            service.unlock(&[token]);
        })
    };
    let time = {
        let clock = clock.clone();
        tokio::spawn(async move {
            for _ in 0..12 {
                clock.jump(JUMP);
                pause().await;
            }
        })
    };
    let mut wrong = false;
    while !time.is_finished() {
        // The look at the other comes first: what it has by then, it has before the check.
        let given_away = given_away.load(Ordering::SeqCst);
        let held = first.check().is_ok();
        wrong |= held && given_away;
        yield_now().await;
    }
    drop(first);
    second.await.expect("the lock comes to the second");
    drop((wire, service));
    all_is_dropped(&clock).await;
    // Told last: who unwinds can't give up what it holds.
    assert!(!wrong, "the holder believes in a lock that another one has");
}

/// Blocks are used up by several at a time, so that all of them want the bound to be moved.
async fn numbers_are_unique_and_below_the_bound() {
    let store = Faulty::new(Arc::new(MemoryStore::new()));
    let kvs: Arc<dyn KeyValueService> = Arc::new(store.clone());
    MetaRecord::<OracleRecord>::create_table(kvs.as_ref()).await.expect("a table can be made");
    let oracle = Arc::new(TimestampOracle::open(kvs.clone()).await.expect("it opens"));
    let ranges: Arc<std::sync::Mutex<Vec<(u64, u64)>>> = Arc::default();
    // Every write of the bound takes a while, in which the others go on.
    store.on(Op::CheckAndSet).always().then(Fault::Delay(Duration::from_millis(1)));
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let (oracle, ranges, kvs) = (oracle.clone(), ranges.clone(), kvs.clone());
        tasks.push(tokio::spawn(async move {
            for _ in 0..2 {
                let range = oracle.fresh_range(600_000).await.expect("numbers are issued");
                let (first, end) = (range.first.get(), range.first.get() + range.count);
                {
                    let mut ranges = ranges.lock().expect("nobody panicked with it");
                    assert!(ranges.iter().all(|(from, to)| end <= *from || *to <= first), "a number was issued twice");
                    ranges.push((first, end));
                }
                let stored = read_stored(kvs.clone()).await.expect("it can be read").expect("it is there");
                assert!(end <= stored.bound.get(), "numbers up to {end} were issued below {}", stored.bound);
            }
        }));
    }
    for task in tasks {
        task.await.expect("the task ends");
    }
}

/// An owner that renews its lease when it gets the time to, and one that takes over when it did not.
async fn numbers_grow_over_a_change_of_the_owner() {
    let clock = TestClock::new();
    let memory: Arc<dyn KeyValueService> = Arc::new(MemoryStore::new());
    let database = Arc::new(parking_lot::Mutex::new("it".to_owned()));
    let store = || Faulty::shared(memory.clone(), database.clone());
    let options = || LeaseOptions { lease: LEASE, wait: FOR_EVER, clock: clock.clone(), ..LeaseOptions::default() };
    MetaRecord::<OracleRecord>::create_table(memory.as_ref()).await.expect("a table can be made");
    let slow = store();
    let first = TimestampOracle::open_with(Arc::new(slow.clone()), options()).await.expect("it opens");
    let fault = if by_chance() { Fault::Refuse } else { Fault::DelayAnswer(Duration::from_millis(1)) };
    slow.on(Op::CheckAndSet).always().then(fault);
    let (greatest, wrong) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let time = {
        let clock = clock.clone();
        tokio::spawn(async move {
            for _ in 0..12 {
                clock.jump(JUMP);
                pause().await;
            }
        })
    };
    let second = {
        let (store, options, greatest, wrong) = (store(), options(), greatest.clone(), wrong.clone());
        tokio::spawn(async move {
            let Ok(second) = TimestampOracle::open_with(Arc::new(store), options).await else { return };
            for _ in 0..3 {
                draw(&second, &greatest, &wrong);
                yield_now().await;
            }
        })
    };
    while !time.is_finished() {
        draw(&first, &greatest, &wrong);
        yield_now().await;
    }
    slow.heal();
    first.release().await.expect("the store answers");
    // The second begins at once now, or when it has seen nothing change for a lease.
    let more = {
        let clock = clock.clone();
        tokio::spawn(async move {
            loop {
                clock.jump(LEASE / 10);
                yield_now().await;
            }
        })
    };
    second.await.expect("it begins in the end");
    more.abort();
    drop(first);
    all_is_dropped(&clock).await;
    // Told last: who unwinds can't give up what it holds.
    assert!(!wrong.load(Ordering::SeqCst), "a number was lower than one that was answered before");
}

/// Draws a number, if there is one to be had, above all that were answered before.
fn draw(oracle: &TimestampOracle, greatest: &AtomicU64, wrong: &AtomicBool) {
    let before = greatest.load(Ordering::SeqCst);
    // Without waiting: the time in which a renewal could come is over for the others too.
    if let Ok(Some(range)) = oracle.try_fresh_range(1) {
        let number = range.first.get();
        wrong.fetch_or(number <= before, Ordering::SeqCst);
        greatest.fetch_max(number, Ordering::SeqCst);
    }
}

/// A renewal is on its way when the owner learns that another one has taken over.
async fn a_lease_that_was_given_up_stays_so() {
    let clock = TestClock::new();
    let database = Arc::new(parking_lot::Mutex::new("it".to_owned()));
    let store = Faulty::shared(Arc::new(MemoryStore::new()), database);
    MetaRecord::<OracleRecord>::create_table(&store).await.expect("a table can be made");
    let options = LeaseOptions { lease: LEASE, clock: clock.clone(), ..LeaseOptions::default() };
    let oracle = TimestampOracle::open_with(Arc::new(store.clone()), options).await.expect("it opens");
    let oracle = Arc::new(oracle);
    store.on(Op::CheckAndSet).always().then(Fault::Delay(Duration::from_millis(1)));
    let time = {
        let clock = clock.clone();
        tokio::spawn(async move {
            for _ in 0..4 {
                clock.jump(LEASE / 6);
                yield_now().await;
            }
        })
    };
    let loser = {
        let oracle = oracle.clone();
        tokio::spawn(async move {
            pause().await;
            drop(oracle.lose("another one has begun"));
        })
    };
    loser.await.expect("it is told");
    let mut held = false;
    while !time.is_finished() {
        held |= oracle.check_held().is_ok();
        yield_now().await;
    }
    pause().await;
    held |= oracle.check_held().is_ok();
    drop(oracle);
    all_is_dropped(&clock).await;
    // Told last: who unwinds can't give up what it holds.
    assert!(!held, "a lease that was given up is held again");
}

/// Transactions begin and end while commits are published and somebody looks what nobody can see any more.
async fn the_immutable_timestamp_passes_no_open_snapshot() {
    let kvs: Arc<dyn KeyValueService> = Arc::new(MemoryStore::new());
    MetaRecord::<OracleRecord>::create_table(kvs.as_ref()).await.expect("a table can be made");
    let oracle = Arc::new(TimestampOracle::open(kvs).await.expect("it opens"));
    let tracker = SnapshotTracker::new(oracle.last_issued());
    let passed = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for step_by_step in [false, true] {
        let (tracker, oracle, passed) = (tracker.clone(), oracle.clone(), passed.clone());
        tasks.push(tokio::spawn(async move {
            for _ in 0..3 {
                let begun = match step_by_step {
                    true => tracker.begin_at_start(&oracle, FOR_EVER).await,
                    false => tracker.begin_at_watermark(&oracle, FOR_EVER).await,
                };
                let begun = begun.expect("it begins");
                assert!(begun.read_ts <= begun.start_ts);
                for _ in 0..2 {
                    let passed = passed.load(Ordering::SeqCst);
                    assert!(passed <= begun.read_ts.get(), "{passed} passed the snapshot {}", begun.read_ts);
                    yield_now().await;
                }
            }
        }));
    }
    for _ in 0..2 {
        let (tracker, oracle, passed) = (tracker.clone(), oracle.clone(), passed.clone());
        tasks.push(tokio::spawn(async move {
            for _ in 0..3 {
                let commit_ts = oracle.fresh().await.expect("a number is issued");
                tracker.publish(commit_ts);
                passed.fetch_max(tracker.immutable_ts().get(), Ordering::SeqCst);
            }
        }));
    }
    for task in tasks {
        task.await.expect("the task ends");
    }
    assert_eq!(tracker.open_snapshots(), 0);
}

/// Two delete while one takes the lock, copies, and releases it.
async fn nothing_is_deleted_under_a_backup_lock() {
    let store = Faulty::new(Arc::new(MemoryStore::new()));
    MetaRecord::<OracleRecord>::create_table(&store).await.expect("a table can be made");
    // Every look at the record and every write of it takes a while.
    store.on(Op::GetAtomic).always().then(Fault::Delay(Duration::from_millis(1)));
    let lock = BackupLock::with_clock(Arc::new(store), TestClock::new());
    let copying = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let (gate, copying) = (lock.gate(), copying.clone());
        tasks.push(tokio::spawn(async move {
            for _ in 0..2 {
                let copying = copying.clone();
                let deletion = async move {
                    for _ in 0..2 {
                        assert!(!copying.load(Ordering::SeqCst), "something is deleted while it is copied");
                        yield_now().await;
                    }
                    Ok(())
                };
                match gate.run(deletion).await {
                    Ok(()) | Err(Error::BackupLockHeld { .. }) => (),
                    Err(error) => panic!("{error}"),
                }
            }
        }));
    }
    let backup = tokio::spawn(async move {
        lock.acquire_for_nobody("a copy").await.expect("nobody else takes it");
        copying.store(true, Ordering::SeqCst);
        yield_now().await;
        copying.store(false, Ordering::SeqCst);
        lock.release().await.expect("it can be released");
    });
    backup.await.expect("the backup ends");
    for task in tasks {
        task.await.expect("the task ends");
    }
}
