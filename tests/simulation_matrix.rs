//! Each step of a commit × each trouble × each workload, in both ways to commit, on simulated time and judged by the
//! checker. One field again: `ATLAS_SIMULATION_FIELD="random/steps/PutData/LostLocks/7" cargo test --workspace --test
//! simulation_matrix`.
//!
//! `ATLAS_SIMULATION_SEEDS=N` takes N seeds for each field, from a beginning that is different each time.

mod common;
#[path = "cases/simulation.rs"]
mod simulation;

use atlas::transaction::CommitStep;
use atlas::workload::Kind;
use common::trouble::Trouble;
use parking_lot::Mutex;
use simulation::{Scenario, simulate};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Seeds for each field if nobody says.
const SEEDS: u64 = 2;

/// One field of the matrix.
#[derive(Clone, Copy, Debug)]
struct Field {
    kind: Kind,
    step_by_step: bool,
    step: CommitStep,
    trouble: Trouble,
}

impl Field {
    fn all() -> Vec<Field> {
        let mut fields = Vec::new();
        for kind in Kind::ALL {
            for step_by_step in [false, true] {
                for step in CommitStep::ALL {
                    let possible = Trouble::ALL.into_iter().filter(|t| t.is_impossible(step, !step_by_step).is_none());
                    fields.extend(possible.map(|trouble| Field { kind, step_by_step, step, trouble }));
                }
            }
        }
        fields
    }

    fn name(self, seed: u64) -> String {
        let Field { kind, step_by_step, step, trouble } = self;
        format!("{kind}/{}/{step:?}/{trouble}/{seed}", if step_by_step { "steps" } else { "pipeline" })
    }

    /// How often the trouble happened in a run that kept its promise.
    fn play(self, seed: u64) -> Result<u64, String> {
        let scenario = Scenario::with_trouble(seed, self.kind, self.step_by_step, (self.step, self.trouble));
        let again = format!(
            "again: ATLAS_SIMULATION_FIELD=\"{}\" cargo test --workspace --test simulation_matrix",
            self.name(seed)
        );
        let simulated = simulate(&scenario).map_err(|error| format!("{scenario:?}: {error}\n{again}"))?;
        if !simulated.report.is_clean() {
            return Err(format!("{scenario:?}:\n{}\n{again}", simulated.report));
        }
        if simulated.report.stats.committed < scenario.commits {
            return Err(format!("{scenario:?}: only {} commits\n{again}", simulated.report.stats.committed));
        }
        Ok(simulated.troubles)
    }
}

#[test]
fn every_step_survives_every_trouble_in_every_workload() {
    let fields = Field::all();
    if let Ok(name) = std::env::var("ATLAS_SIMULATION_FIELD") {
        let (field, seed) = name.rsplit_once('/').expect("a field ends with its seed");
        let seed: u64 = seed.parse().expect("a seed is a number");
        let field = fields.iter().find(|known| known.name(seed) == name).unwrap_or_else(|| panic!("no field {field}"));
        match field.play(seed) {
            Ok(times) => eprintln!("{name}: {times} times"),
            Err(error) => panic!("{error}"),
        }
        return;
    }
    let seeds = std::env::var("ATLAS_SIMULATION_SEEDS").ok().and_then(|seeds| seeds.parse::<u64>().ok());
    let first = seeds.map_or(1, |_| rand::random::<u64>() >> 1);
    let seeds = seeds.unwrap_or(SEEDS);
    let next = AtomicUsize::new(0);
    let (hits, wrong) = (Mutex::new(vec![0; fields.len()]), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(field) = fields.get(number) else { return };
                    for seed in first..first + seeds {
                        match field.play(seed) {
                            Ok(times) => hits.lock()[number] += times,
                            Err(error) => wrong.lock().push(error),
                        }
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner();
    assert!(
        wrong.is_empty(),
        "{} runs broke their promise, among them\n{}",
        wrong.len(),
        wrong[..wrong.len().min(3)].join("\n")
    );
    let hits = hits.into_inner();
    let missing: Vec<String> =
        fields.iter().zip(&hits).filter(|(_, hits)| **hits == 0).map(|(field, _)| field.name(first)).collect();
    assert!(missing.is_empty(), "{} fields in which nothing happened: {missing:#?}", missing.len());
    let mut by_pair: BTreeMap<(bool, CommitStep, Trouble), u64> = BTreeMap::new();
    for (field, hits) in fields.iter().zip(hits) {
        *by_pair.entry((field.step_by_step, field.step, field.trouble)).or_default() += hits;
    }
    for ((step_by_step, step, trouble), hits) in &by_pair {
        eprintln!("{} {step:?} {trouble}: {hits}", if *step_by_step { "steps" } else { "pipeline" });
    }
    let pairs = 2 * CommitStep::ALL.len() * Trouble::ALL.len();
    eprintln!(
        "{} fields of {} steps and troubles in {} workloads, {} runs, {} troubles; {} pairs can't occur",
        fields.len(),
        by_pair.len(),
        Kind::ALL.len(),
        fields.len() as u64 * seeds,
        by_pair.values().sum::<u64>(),
        pairs - by_pair.len(),
    );
}
