//! One issuer of timestamps over all processes: who may take over, when, and what the former owner notices.
//!
//! Several "processes" share one store in memory, each through a wrapper of its own that can lose its calls. Time is a
//! clock that the test moves.

mod common;

use atlas::kvs_api::{CheckAndSet, KeyValueService};
use atlas::schema::{MetaRecord, StoreRecord, meta_table};
use atlas::timestamp::{
    Contact, LeaseOptions, OracleRecord, TimestampOracle, fast_forward_stored, read_stored, take_over_for_command,
};
use atlas::{Cell, Error, Result, Timestamp};
use atlas_kvs_memory::MemoryStore;
use bytes::Bytes;
use common::clock::{TestClock, settle};
use common::faulty::{Fault, Faulty, Gate, Op};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Renewed every 2 s, trusted for 9 s.
const LEASE: Duration = Duration::from_secs(12);
const BLOCK: u64 = 1_000_000;

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn ts(number: u64) -> Timestamp {
    Timestamp::new(number).expect("the number is a timestamp")
}

/// A store that several processes share.
struct World {
    inner: Arc<dyn KeyValueService>,
    clock: Arc<TestClock>,
    database: Arc<Mutex<String>>,
}

impl World {
    async fn new() -> World {
        let inner: Arc<dyn KeyValueService> = Arc::new(MemoryStore::new());
        MetaRecord::<StoreRecord>::create_table(inner.as_ref()).await.expect("the table of records can be made");
        World { inner, clock: TestClock::new(), database: Arc::new(Mutex::new("original".to_owned())) }
    }

    fn process(&self) -> Faulty {
        Faulty::shared(self.inner.clone(), self.database.clone())
    }

    fn options(&self) -> LeaseOptions {
        let contact = Contact { pid: 4711, ..Contact::this_process("atlas serve") };
        LeaseOptions { lease: LEASE, clock: self.clock.clone(), contact, ..LeaseOptions::default() }
    }

    async fn owner(&self) -> (Faulty, Arc<TimestampOracle>) {
        let faulty = self.process();
        let oracle = TimestampOracle::open_with(Arc::new(faulty.clone()), self.options()).await;
        (faulty, Arc::new(oracle.expect("nobody owns the store")))
    }

    /// Somebody who wants the store, at work beside the test.
    fn challenger(&self, options: LeaseOptions) -> JoinHandle<Result<TimestampOracle>> {
        tokio::spawn(TimestampOracle::open_with(Arc::new(self.process()), options))
    }

    async fn record(&self) -> OracleRecord {
        read_stored(self.inner.clone()).await.expect("the record can be read").expect("there is a record")
    }

    async fn write_record(&self, old: &OracleRecord, new: &OracleRecord) {
        let bytes = |record| Some(Bytes::from(serde_json::to_vec(record).expect("records are plain data")));
        let cell = Cell::copy_from("oracle", "record");
        let done = self.inner.check_and_set(&meta_table(), &cell, bytes(old), bytes(new)).await;
        assert_eq!(done.expect("the store answers"), CheckAndSet::Applied);
    }

    /// Moves time on by less than a lease, until the task has ended.
    async fn within<T>(&self, limit: Duration, task: JoinHandle<T>) -> T {
        for _ in 0..100 {
            if task.is_finished() {
                return task.await.expect("the task ends");
            }
            self.clock.jump(limit / 100);
            settle().await;
        }
        panic!("it took more than {limit:?}");
    }
}

/// From now on no write of this process arrives.
fn cut_off(faulty: &Faulty) {
    faulty.on(Op::CheckAndSet).always().then(Fault::Refuse);
}

/// Somebody who wants a number, beside the test.
fn asking(owner: &Arc<TimestampOracle>) -> JoinHandle<Result<Timestamp>> {
    let owner = owner.clone();
    tokio::spawn(async move { owner.fresh().await })
}

#[track_caller]
fn assert_lost<T: std::fmt::Debug>(outcome: Result<T>) {
    assert!(matches!(outcome, Err(Error::LostLeadership { .. })), "expected lost leadership, got {outcome:?}");
}

#[track_caller]
fn assert_later<T: std::fmt::Debug>(outcome: Result<T>) {
    assert!(matches!(&outcome, Err(error @ Error::Unavailable { .. }) if error.is_retriable()), "got {outcome:?}");
}

// ---- who may take over

#[tokio::test]
async fn a_living_owner_is_left_in_peace_and_named() {
    let world = World::new().await;
    let (_, owner) = world.owner().await;
    let refused = world.within(LEASE / 2, world.challenger(world.options())).await.expect_err("somebody owns it");
    assert_eq!(refused.exit_code(), atlas::exit::REFUSED, "{refused}");
    let said = refused.to_string();
    assert!(said.contains("atlas serve") && said.contains("4711"), "{said}");
    assert!(refused.hint().is_some_and(|hint| hint.contains("--standby")));
    owner.fresh().await.expect("it was not disturbed");
    // With time to wait, it is waited for, and no longer.
    let patient = world.challenger(LeaseOptions { wait: LEASE * 4, ..world.options() });
    world.clock.advance(LEASE * 3).await;
    assert!(!patient.is_finished(), "it has time to wait");
    world.within(LEASE * 2, patient).await.expect_err("the owner lives");
    owner.fresh().await.expect("it was not disturbed");
}

#[tokio::test]
async fn an_owner_that_ends_in_order_is_followed_at_once_and_nothing_is_wasted() {
    let world = World::new().await;
    let (_, first) = world.owner().await;
    let last = first.fresh().await.expect("a number is issued");
    first.release().await.expect("the timestamps are given up");
    assert!(!first.lost().is_cancelled(), "nobody took them away");
    let record = world.record().await;
    assert_eq!((record.holder, &record.contact), (None, &None));
    let (_, second) = world.owner().await; // The clock has not moved.
    assert_eq!(second.fresh().await.expect("a number is issued"), last.next());
    assert_lost(first.fresh().await);
    world.clock.advance(LEASE).await;
    assert!(!first.lost().is_cancelled(), "a renewal after the end is none");
}

/// The lease that counts is that in the record, not the challenger's.
#[tokio::test]
async fn a_silent_owner_is_followed_after_a_whole_lease_of_its_own() {
    for own_lease in [LEASE / 12, LEASE * 10] {
        let world = World::new().await;
        let (faulty, owner) = world.owner().await;
        let last = owner.fresh().await.expect("a number is issued");
        cut_off(&faulty);
        let challenger = world.challenger(LeaseOptions { lease: own_lease, ..world.options() });
        settle().await; // It has seen the record.
        world.clock.advance(LEASE - secs(0.1)).await;
        assert!(!challenger.is_finished(), "the owner may have renewed its lease just before we looked");
        let follower = world.within(LEASE / 4, challenger).await.expect("the owner is silent");
        assert!(follower.fresh().await.expect("a number is issued") > last);
        assert!(follower.epoch() > owner.epoch());
        assert_later(world.within(LEASE, asking(&owner)).await);
        faulty.heal();
        world.clock.advance(LEASE / 6).await;
        assert!(owner.lost().is_cancelled(), "its next renewal shows it");
        assert_lost(owner.fresh().await);
        owner.release().await.expect("there is nothing to give up");
        follower.fresh().await.expect("it is none of the former owner's business");
    }
}

/// At no moment do two instances believe that they may answer, whatever happens to the owner's renewals.
#[tokio::test]
async fn never_do_two_issue_at_a_time() {
    let faults = [Fault::Refuse, Fault::LostApplied, Fault::LostNotApplied, Fault::HoldAnswer(Gate::new())];
    for (fault, good) in faults.into_iter().flat_map(|fault| (0..4).map(move |good| (fault.clone(), good))) {
        let world = World::new().await;
        let (faulty, owner) = world.owner().await;
        let said = format!("{fault:?} after {good}");
        faulty.on(Op::CheckAndSet).after(good).then(fault.clone());
        faulty.on(Op::CheckAndSet).always().then(Fault::Refuse);
        let challenger = world.challenger(LeaseOptions { wait: LEASE * 10, ..world.options() });
        for _ in 0..400 {
            world.clock.jump(LEASE / 100);
            settle().await;
            assert!(!(challenger.is_finished() && owner.check_held().is_ok()), "{said}");
        }
        assert!(challenger.is_finished(), "{said}");
    }
}

#[tokio::test]
async fn a_stand_by_waits_without_limit_and_can_be_ended() {
    let world = World::new().await;
    let (_, owner) = world.owner().await;
    let end = CancellationToken::new();
    let standing_by = LeaseOptions { standby: Some(CancellationToken::new()), ..world.options() };
    let waiting = world.challenger(standing_by);
    let ended = world.challenger(LeaseOptions { standby: Some(end.clone()), ..world.options() });
    world.clock.advance(LEASE * 5).await;
    assert!(!waiting.is_finished() && !ended.is_finished());
    end.cancel();
    let outcome = world.within(LEASE / 10, ended).await;
    assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
    let last = owner.fresh().await.expect("it was not disturbed");
    owner.release().await.expect("the timestamps are given up");
    let follower = world.within(LEASE / 4, waiting).await.expect("the owner has ended");
    assert!(follower.fresh().await.expect("a number is issued") > last);
}

/// A store that stumbles while somebody waits for a silent owner.
#[tokio::test]
async fn who_waits_for_an_owner_looks_past_errors_of_the_store_for_a_while() {
    for (op, fault) in [Op::GetAtomic, Op::CheckAndSet]
        .into_iter()
        .flat_map(|op| [(op, Fault::Refuse), (op, Fault::LostNotApplied), (op, Fault::LostApplied)])
    {
        let world = World::new().await;
        let (faulty, _owner) = world.owner().await;
        cut_off(&faulty);
        let challenger = world.process();
        let opening = tokio::spawn(TimestampOracle::open_with(Arc::new(challenger.clone()), world.options()));
        settle().await; // It has seen the record.
        challenger.on(op).times(3).then(fault.clone());
        world.within(LEASE * 2, opening).await.expect("the owner is silent");
    }
    // But not for ever, and not before it has seen anything.
    for seen in [true, false] {
        let world = World::new().await;
        let (faulty, _owner) = world.owner().await;
        cut_off(&faulty);
        let challenger = world.process();
        let rule = challenger.on(Op::GetAtomic).always();
        rule.after(if seen { 2 } else { 0 }).then(Fault::Refuse);
        let opening = tokio::spawn(TimestampOracle::open_with(Arc::new(challenger.clone()), world.options()));
        settle().await;
        assert_eq!(opening.is_finished(), !seen);
        let refused = world.within(LEASE * 3, opening).await.expect_err("the store does not answer");
        assert!(matches!(refused, Error::Kvs(_)), "{refused}");
    }
}

#[tokio::test]
async fn an_oracle_that_is_dropped_gives_the_lease_up() {
    let world = World::new().await;
    let (_, owner) = world.owner().await;
    let last = owner.fresh().await.expect("a number is issued");
    drop(owner);
    settle().await;
    assert_eq!(world.record().await.holder, None);
    let (faulty, next) = world.owner().await; // The clock has not moved.
    assert_eq!(next.fresh().await.expect("a number is issued"), last.next());
    // What belongs to a successor is nothing it could give up, also if it does not know that there is one.
    cut_off(&faulty);
    let follower = world.within(LEASE * 2, world.challenger(world.options())).await.expect("the owner is silent");
    faulty.heal();
    drop(next);
    settle().await;
    assert!(world.record().await.holder.is_some());
    follower.fresh().await.expect("it was not disturbed");
}

#[tokio::test]
async fn of_two_challengers_one_takes_over() {
    let world = World::new().await;
    let (faulty, _owner) = world.owner().await;
    cut_off(&faulty);
    let both = [world.challenger(world.options()), world.challenger(world.options())];
    let mut opened = Vec::new();
    for challenger in both {
        opened.push(world.within(LEASE * 2, challenger).await);
    }
    assert_eq!(opened.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{opened:?}");
}

#[tokio::test]
async fn a_takeover_whose_answer_was_lost_is_a_takeover() {
    for fault in [Fault::LostApplied, Fault::LostNotApplied] {
        let world = World::new().await;
        let faulty = world.process();
        faulty.on(Op::CheckAndSet).then(fault);
        let opening = tokio::spawn(TimestampOracle::open_with(Arc::new(faulty), world.options()));
        let oracle = world.within(LEASE / 2, opening).await.expect("nobody else is there");
        oracle.fresh().await.expect("a number is issued");
        assert!(oracle.last_issued() < world.record().await.bound);
    }
}

// ---- what the owner notices

/// A renewal that was answered late counts from when it was asked for.
#[tokio::test]
async fn a_lease_counts_from_before_it_was_asked_for() {
    let world = World::new().await;
    let (faulty, owner) = world.owner().await;
    let gate = Gate::new();
    faulty.on(Op::CheckAndSet).then(Fault::HoldAnswer(gate.clone()));
    cut_off(&faulty);
    world.clock.advance(secs(7.0)).await; // Asked at 2 s.
    gate.arrived().await;
    gate.open();
    settle().await;
    world.clock.advance(secs(3.9)).await;
    owner.check_held().expect("the renewal was answered");
    world.clock.advance(secs(1.0)).await;
    assert_later(owner.check_held());
}

/// Only a look at the clock that comes after the choice can tell that nobody else had begun when it was made.
#[tokio::test]
async fn the_lease_is_checked_after_the_number_was_chosen() {
    let world = World::new().await;
    let (_, owner) = world.owner().await;
    let chosen = Arc::new(AtomicU64::new(0));
    world.clock.on_look({
        let (owner, chosen) = (owner.clone(), chosen.clone());
        move || chosen.store(owner.last_issued().get(), Ordering::SeqCst)
    });
    for _ in 0..3 {
        let number = owner.fresh().await.expect("a number is issued");
        assert_eq!(chosen.load(Ordering::SeqCst), number.get(), "the last look at the clock came before the choice");
    }
}

#[tokio::test]
async fn an_owner_whose_lease_ran_out_waits_a_little_and_goes_on_when_it_is_renewed() {
    let world = World::new().await;
    let (faulty, owner) = world.owner().await;
    let last = owner.fresh().await.expect("a number is issued");
    cut_off(&faulty);
    world.clock.advance(secs(9.1)).await;
    let waiting = asking(&owner);
    settle().await;
    assert!(!waiting.is_finished(), "somebody else may have begun");
    faulty.heal();
    let number = world.within(LEASE / 4, waiting).await.expect("nobody else had begun");
    assert!(number > last);
    assert!(!owner.lost().is_cancelled());
    // And if it is not renewed, whoever asks is told; who comes later need not wait for that.
    cut_off(&faulty);
    world.clock.advance(secs(11.0)).await;
    assert_later(world.within(LEASE / 2, asking(&owner)).await);
    world.clock.advance(LEASE).await;
    assert_later(owner.fresh().await);
    faulty.heal();
    world.clock.advance(LEASE / 6).await;
    owner.fresh().await.expect("nobody took over all the while");
}

#[tokio::test]
async fn lost_answers_to_renewals_lose_nothing_by_themselves() {
    for fault in [Fault::LostApplied, Fault::LostNotApplied, Fault::Refuse] {
        let world = World::new().await;
        let (faulty, owner) = world.owner().await;
        for _ in 0..10 {
            faulty.on(Op::CheckAndSet).times(2).then(fault.clone());
            world.clock.advance(LEASE).await;
            owner.fresh().await.expect("others were answered in between");
        }
    }
}

#[tokio::test]
async fn moves_of_the_bound_and_renewals_do_not_harm_each_other() {
    for fault in [Fault::LostApplied, Fault::LostNotApplied, Fault::LostAppliedLater(Gate::new())] {
        let world = World::new().await;
        let (faulty, owner) = world.owner().await;
        let last = owner.fresh_range(BLOCK).await.expect("the block is used up").first.get() + BLOCK - 1;
        faulty.on(Op::CheckAndSet).then(fault.clone());
        assert_later(owner.fresh().await);
        world.clock.advance(LEASE / 2).await; // Renewed meanwhile.
        if let Fault::LostAppliedLater(gate) = &fault {
            gate.arrived().await;
            gate.open();
            gate.arrived().await;
        }
        world.clock.advance(LEASE).await;
        let number = owner.fresh().await.expect("it is still the owner");
        assert!(number.get() > last && number < world.record().await.bound, "{fault:?}");
        let before = world.record().await.renewal;
        owner.fresh_range(BLOCK).await.expect("the bound moves");
        assert!(world.record().await.renewal > before, "a move of the bound is a sign of life");
    }
}

#[tokio::test]
async fn a_store_that_goes_back_in_time_is_lost() {
    let world = World::new().await;
    let (_, owner) = world.owner().await;
    let early = world.record().await;
    owner.fresh_range(BLOCK).await.expect("numbers are issued");
    owner.fresh_range(BLOCK).await.expect("numbers are issued");
    // As after a fail-over to a copy that lags behind: the record is its own, but its numbers would come again.
    world.write_record(&world.record().await, &early).await;
    world.clock.advance(LEASE / 4).await;
    assert!(owner.lost().is_cancelled());
    assert_lost(owner.fresh().await);
}

// ---- another database

#[tokio::test]
async fn on_another_database_nothing_is_issued_before_a_fast_forward() {
    let world = World::new().await;
    let (_, owner) = world.owner().await;
    let last = owner.fresh().await.expect("a number is issued");
    *world.database.lock() = "copy".to_owned();
    world.clock.advance(LEASE / 4).await;
    assert!(owner.lost().is_cancelled(), "the owner notices it with its next renewal");
    assert_lost(owner.fresh().await);
    drop(owner);
    let refused = world.within(LEASE * 2, world.challenger(world.options())).await.expect_err("it is another database");
    assert_eq!(refused.exit_code(), atlas::exit::REFUSED);
    assert!(refused.hint().is_some_and(|hint| hint.contains("timestamp fast-forward")), "{refused:?}");
    // A command may look at it, for longer than a lease, and has not set anything right by that.
    let kvs: Arc<dyn KeyValueService> = Arc::new(world.process());
    let command = world.within(LEASE * 2, tokio::spawn(take_over_for_command(kvs, world.options()))).await;
    let command = command.expect("a command may take over");
    world.clock.advance(LEASE * 2).await;
    assert!(!command.lost().is_cancelled(), "it knows where it is");
    command.release().await.expect("the timestamps are given up");
    world.within(LEASE, world.challenger(world.options())).await.expect_err("it is still another database");
    // Also a fast-forward that reaches no further than the bound says that the numbers go on here.
    for (target, beside_command) in [(ts(7_000_000), true), (ts(5), true), (ts(5), false)] {
        *world.database.lock() = format!("copy {target} {beside_command}");
        let kvs: Arc<dyn KeyValueService> = Arc::new(world.process());
        let command = match beside_command {
            true => Some(take_over_for_command(kvs.clone(), world.options()).await.expect("nobody owns it")),
            false => None,
        };
        fast_forward_stored(kvs, target, false).await.expect("nobody else owns it");
        if let Some(command) = command {
            command.release().await.expect("the timestamps are given up");
        }
        let (_, next) = world.owner().await;
        assert!(next.fresh().await.expect("a number is issued") > target.max(last));
        next.release().await.expect("the timestamps are given up");
        assert!(world.record().await.bound > ts(7_000_000), "what the command did is kept");
    }
}

#[tokio::test]
async fn a_fast_forward_beside_an_owner_in_another_process_is_refused() {
    let world = World::new().await;
    let (_, owner) = world.owner().await;
    let kvs: Arc<dyn KeyValueService> = Arc::new(world.process());
    owner.release().await.expect("the timestamps are given up");
    let free = world.record().await;
    let held = OracleRecord { holder: Some(uuid::Uuid::new_v4()), lease_ms: 12_000, ..free.clone() };
    world.write_record(&free, &held).await;
    let refused = fast_forward_stored(kvs.clone(), ts(9_000_000), false).await.expect_err("somebody owns it");
    assert_eq!(refused.exit_code(), atlas::exit::REFUSED);
    assert_eq!(world.record().await, held);
    // It is dead, as it turns out, and a command takes over.
    let command = tokio::spawn(take_over_for_command(kvs.clone(), world.options()));
    let command = world.within(LEASE * 2, command).await.expect("the owner is silent");
    fast_forward_stored(kvs, ts(9_000_000), false).await.expect("it is the owner");
    command.release().await.expect("the timestamps are given up");
    assert!(world.record().await.bound > ts(9_000_000));
}
