//! The simulation finds what it is for: each rule of the protocol is left out once, and some seed must show it.
//!
//! The rules are left out by fail points, which are those of the whole program: one test, one rule after the other.

mod common;
#[path = "cases/simulation.rs"]
mod simulation;

use simulation::{Scenario, simulate};

/// Each rule, and within how many seeds its absence must show.
const RULES: [(&str, u64); 20] = [
    ("rule::lock_writes", 200),
    ("rule::check_writes", 50),
    ("rule::data_before_commit_ts", 200),
    ("rule::recheck_reads", 50),
    ("rule::check_locks", 2000),
    ("rule::wait_for_writers", 200),
    ("rule::believe_the_entry", 3000),
    ("rule::settle_by_writing", 400),
    ("rule::apply_before_publish", 50),
    ("rule::lock_before_check", 200),
    ("rule::recheck_after_data", 50),
    ("rule::recheck_decides", 50),
    ("rule::count_from_snapshot", 50),
    ("rule::snapshot_before_number", 50),
    ("rule::publish_before_answer", 50),
    ("rule::note_before_publish", 100),
    ("rule::bring_in_unless_overtaken", 100),
    ("rule::forget_the_unknown", 400),
    ("rule::see_members_ahead", 50),
    ("rule::refuse_dependents", 200),
];

#[test]
fn every_rule_that_is_left_out_is_missed() {
    let mut unnoticed = Vec::new();
    for (rule, seeds) in RULES {
        fail::cfg(rule, "return").expect("fail points are built in");
        // What shows may be a panic of the layer itself, which is not worth a trace here.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        let shown = (1..=seeds).find_map(|seed| shows(seed).map(|how| (seed, how)));
        std::panic::set_hook(hook);
        fail::remove(rule);
        match shown {
            // With the rule kept there is nothing to see.
            Some((seed, how)) if shows(seed).is_some() => {
                unnoticed.push(format!("{rule}: seed {seed} is bad anyway: {how}"))
            }
            Some((seed, how)) => eprintln!("{rule}: seed {seed}: {how}"),
            None => unnoticed.push(format!("{rule} is not missed within {seeds} seeds")),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

/// What went wrong with a seed, if anything.
fn shows(seed: u64) -> Option<String> {
    let scenario = Scenario::of(seed);
    match std::panic::catch_unwind(|| simulate(&scenario)) {
        Ok(Ok(simulated)) if simulated.report.is_clean() => None,
        Ok(Ok(simulated)) => {
            let kinds: Vec<String> = simulated.report.counts.keys().map(ToString::to_string).collect();
            Some(format!("{}: {}", scenario.kind, kinds.join(", ")))
        }
        Ok(Err(error)) => Some(format!("{}: {error}", scenario.kind)),
        Err(_) => Some(format!("{}: a panic", scenario.kind)),
    }
}
