//! The timestamp oracle keeps its promise whatever the store below it does: unique, and in order.

mod common;

use atlas::kvs_api::{CheckAndSet, KeyValueService};
use atlas::schema::{MetaRecord, StoreRecord, meta_table};
use atlas::timestamp::{LARGE_JUMP, TimestampOracle, fast_forward_stored, read_stored};
use atlas::{Cell, Error, Timestamp};
use atlas_kvs_memory::MemoryStore;
use bytes::Bytes;
use common::faulty::{Fault, Faulty, Gate, Op};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Numbers that one durable write of the bound covers.
const BLOCK: u64 = 1_000_000;

fn ts(number: u64) -> Timestamp {
    Timestamp::new(number).expect("the number is a timestamp")
}

async fn empty_store() -> Arc<dyn KeyValueService> {
    prepared(Arc::new(MemoryStore::new())).await
}

async fn prepared(kvs: Arc<dyn KeyValueService>) -> Arc<dyn KeyValueService> {
    MetaRecord::<StoreRecord>::create_table(kvs.as_ref()).await.expect("the table of records can be made");
    kvs
}

async fn faulty_store() -> (Faulty, Arc<dyn KeyValueService>) {
    let faulty = Faulty::new(empty_store().await);
    (faulty.clone(), Arc::new(faulty))
}

async fn open(kvs: &Arc<dyn KeyValueService>) -> TimestampOracle {
    TimestampOracle::open(kvs.clone()).await.expect("the oracle opens")
}

async fn bound_in(kvs: &Arc<dyn KeyValueService>) -> Timestamp {
    read_stored(kvs.clone()).await.expect("the record can be read").expect("there is a record").bound
}

#[track_caller]
fn assert_lost<T: std::fmt::Debug>(outcome: atlas::Result<T>) {
    assert!(matches!(outcome, Err(Error::LostLeadership { .. })), "expected lost leadership, got {outcome:?}");
}

// ---- order

#[tokio::test]
async fn numbers_increase_and_lie_below_the_bound_in_the_store() {
    let kvs = empty_store().await;
    let oracle = open(&kvs).await;
    let mut last = Timestamp::SENTINEL;
    for count in [1, 1, 999_999, 500_000, 1_000_000, 1, 1_000_000] {
        let range = oracle.fresh_range(count).await.expect("numbers are issued");
        assert!(range.first > last);
        assert_eq!(range.count, count);
        last = ts(range.first.get() + count - 1);
        assert_eq!(oracle.last_issued(), last);
        assert!(last < bound_in(&kvs).await, "a crash now would issue {last} again");
    }
    for count in [0, BLOCK + 1] {
        assert!(matches!(oracle.fresh_range(count).await, Err(Error::Usage(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_beside_each_other_never_get_the_same_number() {
    let kvs = empty_store().await;
    let oracle = Arc::new(open(&kvs).await);
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let oracle = oracle.clone();
            tokio::spawn(async move {
                let mut ranges = Vec::new();
                for _ in 0..40 {
                    let range = oracle.fresh_range(100_000).await.expect("numbers are issued");
                    assert!(oracle.last_issued().get() >= range.first.get() + range.count - 1);
                    ranges.push(range.first.get());
                }
                assert!(ranges.is_sorted(), "a caller's own numbers are in order");
                ranges
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.expect("the task ends"));
    }
    all.sort_unstable();
    assert!(all.windows(2).all(|pair| pair[1] - pair[0] >= 100_000), "ranges overlap");
    assert!(bound_in(&kvs).await > oracle.last_issued());
}

#[tokio::test]
async fn a_restart_wastes_the_block_and_repeats_nothing() {
    let kvs = empty_store().await;
    let mut last = Timestamp::SENTINEL;
    for epoch in 1..5 {
        let oracle = open(&kvs).await;
        assert_eq!(oracle.epoch(), epoch);
        let number = oracle.fresh().await.expect("a number is issued");
        assert!(number > last);
        last = number;
        if epoch == 3 {
            oracle.release().await.expect("the timestamps are given up");
            assert_lost(oracle.fresh().await);
            let record = read_stored(kvs.clone()).await.expect("the record can be read").expect("there is one");
            assert_eq!(record.holder, None);
        }
    }
}

// ---- two instances

#[tokio::test]
async fn an_older_instance_issues_nothing_after_a_newer_one_has() {
    let kvs = empty_store().await;
    let old = open(&kvs).await;
    let before = old.fresh().await.expect("a number is issued");
    let new = open(&kvs).await;
    let after = new.fresh().await.expect("a number is issued");
    assert!(after > before);
    // It has most of a block left, and must not use it.
    assert_lost(old.fresh().await);
    assert_lost(old.fresh_range(BLOCK).await);
    assert_lost(old.fast_forward(ts(5 * BLOCK), false).await);
    assert!(new.fresh().await.expect("a number is issued") > after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn takeovers_under_load_repeat_no_number_and_none_is_out_of_order() {
    let kvs = empty_store().await;
    let stop = Arc::new(AtomicBool::new(false));
    // Each reader of the clock remembers the greatest number answered before it asked.
    let greatest = Arc::new(AtomicU64::new(0));
    let current = Arc::new(parking_lot::RwLock::new(Arc::new(open(&kvs).await)));
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let (stop, greatest, current) = (stop.clone(), greatest.clone(), current.clone());
            tokio::spawn(async move {
                let mut numbers = Vec::new();
                let mut oracle = current.read().clone();
                while !stop.load(Ordering::Relaxed) {
                    let answered_before = greatest.load(Ordering::SeqCst);
                    match oracle.fresh().await {
                        Ok(number) => {
                            assert!(number.get() > answered_before, "{number} came after {answered_before}");
                            greatest.fetch_max(number.get(), Ordering::SeqCst);
                            numbers.push(number.get());
                        }
                        Err(Error::LostLeadership { .. }) => oracle = current.read().clone(),
                        Err(error) => panic!("{error}"),
                    }
                    tokio::task::yield_now().await;
                }
                numbers
            })
        })
        .collect();
    for _ in 0..200 {
        let next = Arc::new(open(&kvs).await);
        // The old one is still in use here.
        tokio::task::yield_now().await;
        *current.write() = next;
        let before = greatest.load(Ordering::SeqCst);
        for _ in 0..100_000 {
            if greatest.load(Ordering::SeqCst) > before {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = HashSet::new();
    for task in tasks {
        for number in task.await.expect("the task ends") {
            assert!(all.insert(number), "{number} was issued twice");
        }
    }
    assert!(!all.is_empty());
}

/// The boot reads the bound once. With a second read between somebody's write and the compare-and-set, an instance
/// would expect what it has just seen and start at what it saw before: a range that was given out.
#[tokio::test]
async fn a_takeover_between_read_and_write_of_the_boot_is_noticed() {
    let (faulty, kvs) = faulty_store().await;
    let gate = Gate::new();
    faulty.on(Op::GetAtomic).then(Fault::HoldAnswer(gate.clone()));
    let slow = tokio::spawn(TimestampOracle::open(kvs.clone()));
    gate.arrived().await;
    // It knows the bound. Another instance opens and issues numbers from the same bound on.
    let other = open(&kvs).await;
    let issued = other.fresh_range(BLOCK / 2).await.expect("the other one issues");
    let reads = faulty.calls(Op::GetAtomic, &meta_table());
    gate.open();
    assert_lost(slow.await.expect("the task ends").map(|oracle| oracle.epoch()));
    assert_eq!(faulty.calls(Op::GetAtomic, &meta_table()), reads, "the record is read once");
    assert!(other.fresh().await.expect("the other one goes on") > issued.first);
    let next = open(&kvs).await;
    assert!(next.fresh().await.expect("a number is issued").get() > BLOCK, "the other's block is not used again");
}

#[tokio::test]
async fn a_lost_answer_at_the_boot_wastes_a_block_and_no_more() {
    for fault in [Fault::LostApplied, Fault::LostNotApplied] {
        let (faulty, kvs) = faulty_store().await;
        let first = open(&kvs).await.fresh().await.expect("a number is issued");
        faulty.on(Op::CheckAndSet).then(fault);
        assert!(TimestampOracle::open(kvs.clone()).await.is_err());
        let oracle = open(&kvs).await;
        assert!(oracle.fresh().await.expect("a number is issued") > first);
        assert!(oracle.last_issued() < bound_in(&kvs).await);
    }
}

// ---- moving the bound

#[tokio::test]
async fn a_lost_answer_when_the_bound_moves_repeats_nothing() {
    for fault in [Fault::LostApplied, Fault::LostNotApplied, Fault::Refuse] {
        let (faulty, kvs) = faulty_store().await;
        let oracle = open(&kvs).await;
        let last = oracle.fresh_range(BLOCK).await.expect("the block is used up").first.get() + BLOCK - 1;
        faulty.on(Op::CheckAndSet).then(fault.clone());
        let error = oracle.fresh().await.expect_err("the bound could not be moved");
        assert!(error.is_retriable(), "nothing was issued, so asking again is right: {error}");
        let number = oracle.fresh().await.expect("the bound can be moved again");
        assert!(number.get() > last, "{fault:?}");
        assert!(oracle.last_issued() < bound_in(&kvs).await, "{fault:?}");
        // Another opener starts above all of it.
        assert!(open(&kvs).await.fresh().await.expect("a number is issued") > number);
    }
}

#[tokio::test]
async fn a_move_of_the_bound_that_arrives_late_takes_nothing_back() {
    let (faulty, kvs) = faulty_store().await;
    let oracle = open(&kvs).await;
    oracle.fresh_range(BLOCK).await.expect("the block is used up");
    let gate = Gate::new();
    faulty.on(Op::CheckAndSet).then(Fault::LostAppliedLater(gate.clone()));
    oracle.fresh().await.expect_err("the bound could not be moved");
    let number = oracle.fresh().await.expect("the bound can be moved again");
    gate.arrived().await;
    gate.open();
    gate.arrived().await; // The late write was carried out.
    oracle.fresh_range(BLOCK).await.expect("the bound can be moved once more");
    assert!(oracle.last_issued() > number && oracle.last_issued() < bound_in(&kvs).await);
}

#[tokio::test]
async fn a_fast_forward_after_a_lost_answer_reaches_its_target() {
    let (faulty, kvs) = faulty_store().await;
    let oracle = open(&kvs).await;
    oracle.fresh_range(BLOCK).await.expect("the block is used up");
    faulty.on(Op::CheckAndSet).then(Fault::LostApplied);
    oracle.fresh().await.expect_err("the bound could not be moved");
    // The record in the store is not what this instance last saw. It is its own all the same.
    let target = ts(50 * BLOCK);
    oracle.fast_forward(target, false).await.expect("the record is its own");
    let number = oracle.fresh().await.expect("a number is issued");
    assert!(number > target);
    assert!(number < bound_in(&kvs).await, "{number} would be issued again after a crash");
}

#[tokio::test]
async fn a_caller_that_goes_away_while_the_bound_moves_harms_nobody() {
    let (faulty, kvs) = faulty_store().await;
    let oracle = Arc::new(open(&kvs).await);
    oracle.fresh_range(BLOCK).await.expect("the block is used up");
    for fault in [Fault::Hold, Fault::HoldAnswer] {
        let gate = Gate::new();
        faulty.on(Op::CheckAndSet).then(fault(gate.clone()));
        let caller = tokio::spawn({
            let oracle = oracle.clone();
            async move { oracle.fresh_range(BLOCK).await }
        });
        gate.arrived().await;
        caller.abort();
        assert!(caller.await.is_err_and(|error| error.is_cancelled()));
        let before = oracle.last_issued();
        let range = oracle.fresh_range(BLOCK).await.expect("the next caller is served");
        assert!(range.first > before);
        assert!(oracle.last_issued() < bound_in(&kvs).await);
    }
}

/// A fast-forward asks for less than what the bound already covers: it must not give any of it back, because somebody
/// may be about to use it.
#[tokio::test]
async fn a_fast_forward_never_lowers_the_bound() {
    let (faulty, kvs) = faulty_store().await;
    let oracle = Arc::new(open(&kvs).await);
    oracle.fresh().await.expect("a number is issued");
    // The bound moves a whole block on, and whoever asked for it is gone before he takes his numbers.
    let gate = Gate::new();
    faulty.on(Op::CheckAndSet).then(Fault::HoldAnswer(gate.clone()));
    let caller = tokio::spawn({
        let oracle = oracle.clone();
        async move { oracle.fresh_range(BLOCK).await }
    });
    gate.arrived().await;
    caller.abort();
    caller.await.expect_err("the caller was stopped");
    let before = bound_in(&kvs).await;
    let next = oracle.last_issued().next();
    oracle.fast_forward(next, false).await.expect("the record is its own");
    assert!(bound_in(&kvs).await >= before, "the bound went back");
    oracle.fast_forward(next.next(), false).await.expect("the record is its own");
    assert!(bound_in(&kvs).await >= before, "the bound went back");
}

#[tokio::test]
async fn timestamps_that_are_used_up_are_an_error_and_no_overflow() {
    let kvs = empty_store().await;
    let almost = ts(Timestamp::MAX.get() - LARGE_JUMP - 1);
    fast_forward_stored(kvs.clone(), almost, true).await.expect("it leaves room to go on");
    let too_far = fast_forward_stored(kvs.clone(), ts(Timestamp::MAX.get() - 1), true).await;
    assert!(matches!(too_far, Err(Error::Refused { .. })));
    let oracle = open(&kvs).await;
    assert!(oracle.fresh().await.expect("a number is issued") > almost);
    assert!(matches!(oracle.fast_forward(ts(Timestamp::MAX.get() - 1), true).await, Err(Error::Refused { .. })));
    assert!(oracle.fresh().await.expect("a number is issued") > almost);
}

// ---- fast-forward

#[tokio::test]
async fn a_fast_forward_goes_forward_only() {
    let kvs = empty_store().await;
    let oracle = open(&kvs).await;
    let moved = oracle.fast_forward(ts(5_000_000), false).await.expect("it goes forward");
    assert_eq!(moved.after, ts(5_000_000));
    assert!(moved.before < moved.after);
    assert_eq!(oracle.fresh().await.expect("a number is issued"), ts(5_000_001));
    for target in [1, 4_999_999, 5_000_000, 5_000_001] {
        let nothing = oracle.fast_forward(ts(target), false).await.expect("there is nothing to do");
        assert_eq!(nothing.before, nothing.after, "{target} lies behind");
    }
    assert_eq!(oracle.fresh().await.expect("a number is issued"), ts(5_000_002));
    assert!(oracle.last_issued() < bound_in(&kvs).await);
}

#[tokio::test]
async fn a_fast_forward_of_a_store_at_rest_goes_forward_only() {
    let kvs = empty_store().await;
    let moved = fast_forward_stored(kvs.clone(), ts(7_000_000), false).await.expect("it goes forward");
    assert_eq!((moved.before, moved.after), (Timestamp::FIRST.previous(), ts(7_000_000)));
    for target in [1, 6_999_999, 7_000_000] {
        let nothing = fast_forward_stored(kvs.clone(), ts(target), false).await.expect("there is nothing to do");
        assert_eq!((nothing.before, nothing.after), (ts(7_000_000), ts(7_000_000)));
    }
    assert_eq!(open(&kvs).await.fresh().await.expect("a number is issued"), ts(7_000_001));
}

#[tokio::test]
async fn an_absurd_jump_needs_a_word_of_its_own() {
    let kvs = empty_store().await;
    let oracle = open(&kvs).await;
    let here = oracle.last_issued().next().get();
    let (far, too_far) = (ts(here + LARGE_JUMP), ts(here + LARGE_JUMP + 1));
    let refused = oracle.fast_forward(too_far, false).await.expect_err("it can only be a mistake");
    assert_eq!(refused.exit_code(), atlas::exit::REFUSED);
    assert!(refused.hint().is_some_and(|hint| hint.contains("--allow-large-jump")));
    assert_eq!(oracle.last_issued().next().get(), here, "nothing has moved");
    oracle.fast_forward(far, false).await.expect("it is just allowed");
    let target = ts(far.get() + LARGE_JUMP + 2);
    assert!(matches!(
        fast_forward_stored(kvs.clone(), ts(far.get() + (1 << 50)), false).await,
        Err(Error::Refused { .. })
    ));
    oracle.fast_forward(target, true).await.expect("it was allowed");
    assert!(oracle.fresh().await.expect("a number is issued") > target);
}

#[tokio::test]
async fn a_fast_forward_with_a_lost_answer_can_be_repeated() {
    for fault in [Fault::LostApplied, Fault::LostNotApplied] {
        let (faulty, kvs) = faulty_store().await;
        let oracle = open(&kvs).await;
        let last = oracle.fresh().await.expect("a number is issued");
        faulty.on(Op::CheckAndSet).then(fault.clone());
        oracle.fast_forward(ts(9_000_000), false).await.expect_err("the answer was lost");
        assert!(oracle.fresh().await.expect("a number is issued") > last);
        assert!(oracle.last_issued() < bound_in(&kvs).await, "{fault:?}");
        oracle.fast_forward(ts(9_000_000), false).await.expect("it can be repeated");
        let number = oracle.fresh().await.expect("a number is issued");
        assert!(number > ts(9_000_000) && number < bound_in(&kvs).await, "{fault:?}");
    }
}

#[tokio::test]
async fn a_damaged_record_is_damage_and_not_an_empty_store() {
    for damaged in ["", "{}", "{\"epoch\":1", "{\"epoch\":-1,\"holder\":null,\"bound\":1,\"renewal\":0}"] {
        let kvs = empty_store().await;
        let cell = Cell::copy_from("oracle", "record");
        let written = kvs.check_and_set(&meta_table(), &cell, None, Some(Bytes::from(damaged))).await;
        assert_eq!(written.expect("the store answers"), CheckAndSet::Applied);
        let refused = TimestampOracle::open(kvs).await.map(|oracle| oracle.epoch());
        assert!(matches!(refused, Err(Error::Corrupt { .. })), "{damaged:?}: {refused:?}");
    }
}
