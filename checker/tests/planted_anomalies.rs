//! Good histories, each falsified in one place: the checker finds it, and names it rightly.

#![allow(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

mod mutations;
mod simulator;

use atlas_checker::{Kind, Options, check};
use mutations::{MUTATIONS, Mutation};
use simulator::workloads::Workload;
use simulator::{Rng, Run, Settings, run};

const SEEDS: u64 = 12;

/// Every mutation must find a place for itself in at least half of the histories, or it tests nothing.
#[test]
fn every_mutation_is_found_on_every_seed() {
    let mut failures = Vec::new();
    for Mutation { name, kinds, workload, apply } in MUTATIONS {
        let mut applied = 0;
        for seed in 0..SEEDS {
            let Run { mut history, truth } = run(Settings { attempts: 400, ..Settings::new(*workload, seed) });
            let Some(what) = apply(&mut history, &truth, &mut Rng::new(seed)) else { continue };
            applied += 1;
            let report = check(&history, &Options { shown_per_kind: 1, ..Options::default() });
            if !kinds.iter().any(|kind| report.count(*kind) > 0) {
                failures.push(format!("{name}, seed {seed}: {what}: wanted one of {kinds:?}\n{report}"));
            }
        }
        if applied * 2 < SEEDS {
            failures.push(format!("{name}: found a place in only {applied} of {SEEDS} histories"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_kind_is_planted_by_something() {
    let elsewhere = [Kind::Vacuous];
    let planted = |kind: &Kind| MUTATIONS.iter().any(|mutation| mutation.kinds.contains(kind));
    let missing: Vec<&Kind> = Kind::ALL.iter().filter(|kind| !planted(kind) && !elsewhere.contains(kind)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_same_history_gives_the_same_report() {
    let Run { mut history, truth } = run(Settings::new(Workload::Random, 3));
    for mutation in MUTATIONS.iter().filter(|mutation| mutation.workload == Workload::Random) {
        (mutation.apply)(&mut history, &truth, &mut Rng::new(1));
    }
    let reports: Vec<String> = (0..3).map(|_| check(&history, &Options::default()).to_string()).collect();
    assert!(reports[0].contains("ANOMALIES FOUND"));
    assert!(reports.iter().all(|report| *report == reports[0]));
    assert!(reports[0].is_ascii(), "a picture must look the same everywhere");
}
