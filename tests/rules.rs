//! Each rule of the protocol is left out once, and one test that was written for it must miss it.
//!
//! `tests/simulation_rules.rs` does the same by chance, with the rules that a history of reads and writes can show. Here
//! are those that take a certain moment: a lock that is lost, a server that sleeps, a copy that is made. The rules are
//! left out by fail points, which are those of the whole program: one test, one rule after the other.

#[allow(unused_imports, reason = "one test makes a backup")]
mod backup_support;
mod common;
#[allow(dead_code, unused_macros, reason = "some of its cases are run here")]
#[path = "cases/dependencies.rs"]
mod dependencies;
#[allow(unused_macros, reason = "some of its cases are run here")]
#[path = "cases/faults.rs"]
mod faults;
#[allow(unused_macros, reason = "one of its cases is run here")]
#[path = "cases/isolation.rs"]
mod isolation;
#[path = "cases/rules.rs"]
mod rules;
#[allow(dead_code, unused_macros, reason = "some of its cases are run here")]
#[path = "cases/serializable.rs"]
mod serializable;

use common::{MEMORY_PIPELINE, MEMORY_PIPELINE_0, MEMORY_STEPS, TestStore};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A test that takes longer has missed the rule, too: it waits for what does not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A test, ready to be run.
type Killer = fn() -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! killers {
    ($($rule:literal => $test:expr,)*) => {
        [$(($rule, stringify!($test), (|| Box::pin($test)) as Killer)),*]
    };
}

#[test]
fn every_rule_that_is_left_out_is_missed_by_its_test() {
    let killers = killers! {
        // Step by step.
        "rule::decide_rivals" => faults::a_settling_writer_without_its_locks_rolls_itself_back(MEMORY_STEPS),
        "rule::spare_the_living" => faults::the_conflict_check_spares_a_rival_that_is_alive(MEMORY_STEPS),
        "rule::unlock_after_entry" => faults::a_reader_waits_for_a_writer_that_may_have_committed_before_it(MEMORY_STEPS),
        "rule::answer_by_the_entry" => faults::a_refused_commit_entry_is_a_plain_failure(MEMORY_STEPS),
        "rule::check_locks_last" => rules::locks_that_are_lost_after_the_data_count(),
        "rule::enqueue_before_data" => rules::data_are_never_there_without_their_sweep_entry(false),
        "rule::enqueue_before_data" => rules::data_are_never_there_without_their_sweep_entry(true),
        "rule::data_before_entry" => faults::the_entry_waits_for_the_last_put(MEMORY_STEPS),
        "rule::data_before_entry" => faults::the_entry_waits_for_the_last_put(MEMORY_PIPELINE_0),
        // Serializable.
        "rule::recheck_after_commit_ts" => rules::a_commit_between_the_last_look_and_the_number_is_a_conflict(),
        "rule::wait_for_earlier_only" => rules::two_who_read_what_the_other_writes_do_not_wait_for_each_other(),
        "rule::recheck_absences" => serializable_on(MEMORY_STEPS, serializable::an_absence_that_ends_is_a_conflict),
        "rule::recheck_absences" => serializable_on(MEMORY_PIPELINE, serializable::an_absence_that_ends_is_a_conflict),
        "rule::recheck_ranges" => serializable_on(MEMORY_STEPS, serializable::a_phantom_in_a_range_is_a_conflict),
        "rule::recheck_ranges" => serializable_on(MEMORY_PIPELINE, serializable::a_phantom_in_a_range_is_a_conflict),
        // The pipeline.
        "rule::see_members_ahead" => faults::of_two_rivals_in_one_group_one_commits(MEMORY_PIPELINE),
        "rule::snapshot_at_watermark" => faults::a_group_is_seen_when_it_is_durable_and_not_before(MEMORY_PIPELINE),
        "rule::sync_before_publish" => rules::groups_are_synced(),
        "rule::forget_what_was_removed" => remembering(MEMORY_PIPELINE, isolation::what_was_removed_is_not_remembered),
        "rule::refuse_dependents" => dependencies::who_has_read_what_is_lost_does_not_commit(MEMORY_PIPELINE),
        "rule::refuse_dependents" => dependencies::a_lost_member_takes_along_who_has_read_of_it(MEMORY_PIPELINE),
        "rule::build_on_what_is_known" => dependencies::nobody_builds_behind_what_is_being_settled(MEMORY_PIPELINE),
        "rule::tell_what_has_landed" => dependencies::who_writes_nothing_waits_for_what_it_has_read(MEMORY_PIPELINE),
        "rule::tell_what_has_landed" => dependencies::a_refusal_of_the_work_waits_for_what_it_has_read(MEMORY_PIPELINE),
        // Backup.
        "rule::settle_before_copy" => faults::settling_waits_for_commit_timestamps_that_were_drawn(MEMORY_STEPS),
        "rule::settle_before_copy" => faults::a_marker_waits_for_the_group_before_it(MEMORY_PIPELINE),
        "rule::settle_by_register" => rules::who_lost_its_locks_is_settled_too(),
        "rule::fast_forward_after_snapshot" => rules::time_goes_on_above_all_that_was_copied(),
        "rule::drain_deletions" => rules::the_backup_lock_waits_for_a_deletion(),
        // A second owner.
        "rule::look_at_the_lease" => rules::who_sleeps_before_its_sweep_entry_does_not_commit(),
        "rule::enqueue_before_commit_ts" => rules::who_sleeps_before_its_sweep_entry_does_not_commit(),
        "rule::decide_predecessors" => rules::a_sleeper_of_a_former_owner_does_not_commit_once_all_is_settled(),
        "rule::believe_the_entry" => rules::a_sleeper_of_a_former_owner_does_not_commit_once_all_is_settled(),
        "rule::guard_batches" => rules::a_batch_of_a_former_owner_is_refused(),
        "rule::guard_data" => rules::data_of_a_former_owner_are_refused_whatever_its_clock_says(),
        "rule::numbers_above_the_bound" => rules::a_successor_repeats_no_number(),
    };
    let mut wrong = Vec::new();
    for (rule, name, killer) in killers {
        if let Err(why) = run(killer) {
            wrong.push(format!("{name} fails with {rule} kept: {why}"));
            continue;
        }
        fail::cfg(rule, "return").expect("fail points are built in");
        // A failure is what is expected here, and not worth a trace.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        let missed = run(killer);
        std::panic::set_hook(hook);
        fail::remove(rule);
        match missed {
            Err(how) => eprintln!("{rule}: {name}: {how}"),
            Ok(()) => wrong.push(format!("{rule} is not missed by {name}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A case on a store that remembers what was read.
async fn remembering<F: Future<Output = ()>>(lane: common::Lane, case: impl Fn(TestStore) -> F) {
    let usual = atlas::config::TransactionConfig::default().cell_cache;
    case(TestStore::open_with(lane, |transactions| transactions.cell_cache = usual).await).await;
}

async fn serializable_on<F: Future<Output = ()>>(lane: common::Lane, case: impl Fn(TestStore) -> F) {
    case(TestStore::open(lane).await).await;
}

/// How the test fails, if it does.
fn run(killer: Killer) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let test =
        std::panic::AssertUnwindSafe(|| runtime.block_on(async { tokio::time::timeout(PATIENCE, killer()).await }));
    let outcome = std::panic::catch_unwind(test);
    // What a test has left behind may wait for ever.
    runtime.shutdown_background();
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("it does not end".to_owned()),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(said.unwrap_or("a panic").lines().next().unwrap_or_default().to_owned())
        }
    }
}
