//! Thousands of seeds, each a run of its own on simulated time. A seed that fails is told, and fails again:
//! `ATLAS_SIMULATION_SEED=N cargo test --workspace --test simulation`.
//!
//! `ATLAS_SIMULATION_SEEDS=N` simulates more of them, from a beginning that is different each time.

mod common;
#[path = "cases/simulation.rs"]
mod simulation;

use atlas::transaction::CommitStep;
use atlas::workload::Kind;
use common::trouble::Trouble;
use simulation::{Scenario, simulate};
use std::time::Duration;

/// How many are simulated if nobody says.
const SEEDS: u64 = 2000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn every_seed_keeps_its_promise() {
    let alone = number("ATLAS_SIMULATION_SEED");
    let (first, count) = match (alone, number("ATLAS_SIMULATION_SEEDS")) {
        (Some(seed), _) => (seed, 1),
        (None, Some(count)) => (rand::random::<u64>() >> 1, count),
        (None, None) => (1, SEEDS),
    };
    let threads = std::thread::available_parallelism().map_or(2, |threads| threads.get() as u64);
    let totals = std::thread::scope(|scope| {
        let thread = |number: u64| scope.spawn(move || simulate_every(first + number, first + count, threads));
        let running: Vec<_> = (0..threads).map(thread).collect();
        running.into_iter().map(|thread| thread.join().expect("every seed keeps its promise")).collect::<Vec<_>>()
    });
    let sum = |of: fn(&Totals) -> u64| totals.iter().map(of).sum::<u64>();
    eprintln!(
        "{} seeds from {first}: {} commits, {} conflicts, {} unknown, {} faults, {} jumps of the clock",
        sum(|totals| totals.seeds),
        sum(|totals| totals.committed),
        sum(|totals| totals.conflicts),
        sum(|totals| totals.unknown),
        sum(|totals| totals.faults),
        sum(|totals| totals.jumps),
    );
    if alone.is_none() {
        assert_eq!(sum(|totals| totals.seeds), count);
        assert!(sum(|totals| totals.committed) >= 20 * count, "hardly anything committed");
        assert!(sum(|totals| totals.conflicts) >= count, "hardly anybody was in anybody's way");
        assert!(sum(|totals| totals.faults) >= count, "hardly anything went wrong");
        assert!(sum(|totals| totals.jumps) >= count / 10, "the clock hardly ever jumped");
    }
}

#[derive(Default)]
struct Totals {
    seeds: u64,
    committed: u64,
    conflicts: u64,
    unknown: u64,
    faults: u64,
    jumps: u64,
}

fn simulate_every(first: u64, end: u64, step: u64) -> Totals {
    let mut totals = Totals::default();
    let mut seed = first;
    while seed < end {
        let scenario = Scenario::of(seed);
        let again = format!("again: ATLAS_SIMULATION_SEED={seed} cargo test --workspace --test simulation");
        let simulated = simulate(&scenario).unwrap_or_else(|error| panic!("{scenario:?}: {error}\n{again}"));
        assert!(simulated.report.is_clean(), "{scenario:?}:\n{}\n{again}", simulated.report);
        totals.seeds += 1;
        totals.committed += simulated.report.stats.committed;
        totals.conflicts += simulated.report.stats.conflicts;
        totals.unknown += simulated.report.stats.unknown;
        totals.faults += simulated.faults;
        totals.jumps += simulated.jumps;
        seed += step;
    }
    totals
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let mut scenarios: Vec<Scenario> = (1..=150).map(Scenario::of).collect();
    // The clock jumps in every other one, so that leases run out at the same moment and somebody has to be first.
    for scenario in scenarios.iter_mut().step_by(2) {
        scenario.jumps_every = scenario.jumps_every.or(Some(Duration::from_millis(250)));
        scenario.tasks = 7;
    }
    for (number, trouble) in Trouble::ALL.into_iter().cycle().take(50).enumerate() {
        let step = CommitStep::ALL[number % CommitStep::ALL.len()];
        let kind = Kind::ALL[number / 5 % Kind::ALL.len()];
        scenarios.push(Scenario::with_trouble(number as u64, kind, number % 2 == 0, (step, trouble)));
    }
    let mut jumps = 0;
    for scenario in scenarios {
        let first = simulate(&scenario).expect("it runs");
        let second = simulate(&scenario).expect("it runs");
        jumps += first.jumps;
        if first.history != second.history {
            let texts = [&first.history, &second.history].map(|history| String::from_utf8_lossy(history).into_owned());
            let differs = texts[0].lines().zip(texts[1].lines()).find(|(first, second)| first != second);
            panic!("{scenario:?}: two histories, which differ in {differs:#?}");
        }
    }
    eprintln!("200 scenarios twice, {jumps} jumps of the clock: each time the same history");
    assert!(jumps >= 200, "the clock hardly ever jumped");
}
