//! One block of the report: the same work by all contenders in alternating rounds.
//!
//! ```text
//!   fsync probe │ round 1: A B C │ round 2: C B A │ … │ fsync probe      the ratio of each round is paired
//! ```
//!
//! All stores are open at once, and one of them works at a time. Before each turn the process is let come to rest, so
//! that nobody pays for what another left to do in the background.

use crate::bars::{Bar, bar};
use crate::contenders::{self, Contender, Name, Sum};
use crate::disk;
use crate::keys::{Keys, Spread};
use crate::measure::{Sample, measure, median, paired, settle};
use crate::options::{Fsync, Plan};
use crate::shared::accounts::OPENING_BALANCE;
use crate::shared::disk::probe;
use crate::workload::{End, Job, LOAD_BATCH, Population, Workload};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

const WARM_UP_MAX: Duration = Duration::from_secs(2);

/// What a block is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) workload: Workload,
    pub(crate) spread: Spread,
    pub(crate) fsync: Fsync,
}

#[derive(Debug, Serialize)]
pub(crate) struct Block {
    pub(crate) row: String,
    pub(crate) about: String,
    pub(crate) keys: Option<String>,
    /// Nothing where nothing is written.
    pub(crate) fsync: Option<String>,
    pub(crate) fsync_delay_us: u64,
    pub(crate) fsync_probe_us: [f64; 2],
    pub(crate) arms: Vec<Arm>,
    pub(crate) comparisons: Vec<Comparison>,
}

/// A contender with so many clients, over all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Arm {
    pub(crate) name: Name,
    pub(crate) clients: usize,
    pub(crate) samples: Vec<Sample>,
}

impl Arm {
    pub(crate) fn median(&self, number: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(number).collect())
    }

    pub(crate) fn rate(&self) -> f64 {
        self.median(|sample| sample.per_second)
    }
}

/// atlas beside a peer.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) ours: Name,
    pub(crate) our_clients: usize,
    pub(crate) theirs: Name,
    pub(crate) their_clients: usize,
    /// The peer has as many clients as suit it best.
    pub(crate) at_best: bool,
    pub(crate) ratios: Vec<f64>,
    pub(crate) median: f64,
    /// The same for each second of processor time; nothing where a server does the work.
    pub(crate) by_cpu: Option<f64>,
    pub(crate) bar: Option<f64>,
}

impl Comparison {
    fn between(ours: &Arm, theirs: &Arm, at_best: bool, bar: Option<f64>) -> Comparison {
        let ratios = paired(&ours.samples, &theirs.samples);
        let cpu = |arm: &Arm| arm.median(|sample| sample.cpu_us_per_operation);
        Comparison {
            ours: ours.name,
            our_clients: ours.clients,
            theirs: theirs.name,
            their_clients: theirs.clients,
            at_best,
            median: median(ratios.clone()),
            ratios,
            by_cpu: (!theirs.name.is_on_postgres()).then(|| cpu(theirs) / cpu(ours)),
            bar,
        }
    }

    /// Nothing where nothing is asked for.
    pub(crate) fn is_met(&self) -> Option<bool> {
        self.bar.map(|bar| self.median >= bar)
    }
}

struct Entrant {
    name: Name,
    store: Box<dyn Contender>,
    population: Arc<Population>,
}

/// The blocks of one row.
pub(crate) fn settings(plan: &Plan, workload: Workload) -> Vec<Setting> {
    // What only reads does the same in both.
    let fsync = if workload.writes() { &plan.fsync[..] } else { &[Fsync::Off] };
    let of_spread = |spread| fsync.iter().map(move |fsync| Setting { workload, spread, fsync: *fsync });
    workload.spreads(&plan.keys).into_iter().flat_map(of_spread).collect()
}

pub(crate) fn run(plan: &Plan, setting: Setting) -> Result<Block> {
    let Setting { workload, spread, fsync } = setting;
    let directory = plan.dir.join(format!("{}-{spread}-{fsync}", workload.name()));
    std::fs::create_dir_all(&directory)?;
    let clients = if workload == Workload::Load { vec![plan.load_clients] } else { plan.clients.clone() };

    disk::delay(0);
    let entrants = enter(plan, setting, &directory, &clients)?;
    disk::delay(plan.fsync_delay_us);

    // Each contender with each number of clients.
    let mut arms = Vec::new();
    for (place, entrant) in entrants.iter().enumerate() {
        arms.extend(
            clients.iter().map(|clients| (place, Arm { name: entrant.name, clients: *clients, samples: Vec::new() })),
        );
    }
    let keys = Keys::new(spread, plan.accounts);
    let turn = |entrant: &Entrant, clients: usize, length: Duration, seed: u64| {
        settle(plan.patience);
        let end = match workload {
            Workload::Load => End::Loaded { left: AtomicU64::new(plan.load_cells), batch: LOAD_BATCH },
            _ => End::At(Instant::now() + length),
        };
        let job = Arc::new(Job { workload, keys, population: entrant.population.clone(), end });
        let work = || entrant.store.run(&job, clients, seed);
        let sample = measure(|| entrant.store.syncs(), work).with_context(|| entrant.name.title())?;
        ensure!(
            sample.missing == 0 || workload.may_miss(),
            "{} did not find {} cells",
            entrant.name.title(),
            sample.missing
        );
        anyhow::Ok(sample)
    };
    if workload != Workload::Load {
        // Caches and memtables are warm on all sides then.
        for (place, arm) in &arms {
            turn(&entrants[*place], arm.clients, plan.round.min(WARM_UP_MAX), 7)?;
        }
    }
    let before = probe(&directory)?;
    for round in 0..plan.rounds {
        let mut order: Vec<usize> = (0..arms.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for number in order {
            let (place, arm) = &mut arms[number];
            let sample = turn(&entrants[*place], arm.clients, plan.round, (round as u64 + 1) << 32)?;
            let (title, rate) = (arm.name.title(), sample.per_second);
            eprintln!("  round {}: {title}, {} clients: {rate:.0}/s", round + 1, arm.clients);
            arm.samples.push(sample);
        }
    }
    let after = probe(&directory)?;
    disk::delay(0);
    leave(entrants, workload, plan.accounts)?;
    std::fs::remove_dir_all(&directory)?;

    let arms: Vec<Arm> = arms.into_iter().map(|(_, arm)| arm).collect();
    Ok(Block {
        row: workload.name().to_owned(),
        about: workload.about().to_owned(),
        keys: workload.picks_keys().then(|| spread.to_string()),
        fsync: workload.writes().then(|| fsync.to_string()),
        fsync_delay_us: plan.fsync_delay_us,
        fsync_probe_us: [before, after],
        comparisons: compare(&arms, workload, fsync == Fsync::On),
        arms,
    })
}

/// Opens and fills the stores.
fn enter(plan: &Plan, setting: Setting, directory: &std::path::Path, clients: &[usize]) -> Result<Vec<Entrant>> {
    let clients_max = clients.iter().copied().max().unwrap_or(1);
    let mut entrants = Vec::new();
    for name in plan.contenders.iter().copied().filter(|name| name.does(setting.workload)) {
        let fill = || {
            let reads = !setting.workload.writes() && !name.is_on_postgres();
            // What is only read must be there when the store is opened again, whatever it promises for a commit.
            let sync = setting.fsync == Fsync::On || reads;
            let store = contenders::open(name, directory, sync, clients_max)?;
            store.run(&Job::fill(plan.accounts, plan.value_bytes), 1, 1)?;
            if !reads {
                return anyhow::Ok(store);
            }
            // So that all read files through their caches: how much of what was filled is in a buffer for what was written
            // lately, which is faster, would be by chance.
            store.close()?;
            contenders::open(name, directory, sync, clients_max)
        };
        let store = fill().with_context(|| format!("filling {}", name.title()))?;
        let population = Arc::new(Population::new(plan.accounts, plan.value_bytes));
        entrants.push(Entrant { name, store, population });
    }
    ensure!(!entrants.is_empty(), "none of those chosen does {}", setting.workload.name());
    Ok(entrants)
}

/// Checks and closes the stores.
fn leave(entrants: Vec<Entrant>, workload: Workload, accounts: u64) -> Result<()> {
    for Entrant { name, store, .. } in entrants {
        if workload == Workload::Transfer && name.keeps_sums() {
            let (sum, expected) = (store.sum()?, Sum { accounts, money: accounts * OPENING_BALANCE });
            ensure!(sum == expected, "{} lost or made money: {sum:?} instead of {expected:?}", name.title());
        }
        store.close().with_context(|| format!("closing {}", name.title()))?;
    }
    Ok(())
}

fn compare(arms: &[Arm], workload: Workload, sync: bool) -> Vec<Comparison> {
    let most = arms.iter().map(|arm| arm.clients).max().unwrap_or(0);
    let mut comparisons = Vec::new();
    for theirs in arms {
        let find = |ours: &Name| arms.iter().find(|arm| arm.name == *ours && arm.clients == theirs.clients);
        let Some(ours) = theirs.name.opponents().iter().find_map(find) else { continue };
        let asked = bar(workload, sync, ours.clients == most, theirs.name);
        let with_same_clients = asked.filter(|bar| !bar.at_best).map(|bar| bar.least);
        comparisons.push(Comparison::between(ours, theirs, false, with_same_clients));
        if let Some(Bar { least, at_best: true }) = asked {
            let of_peer = arms.iter().filter(|arm| arm.name == theirs.name);
            if let Some(best) = of_peer.max_by(|a, b| a.rate().total_cmp(&b.rate())) {
                comparisons.push(Comparison::between(ours, best, true, Some(least)));
            }
        }
    }
    comparisons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(name: Name, clients: usize, rates: &[f64]) -> Arm {
        Arm { name, clients, samples: rates.iter().map(|rate| Sample::of_rate(*rate)).collect() }
    }

    #[test]
    fn the_yardstick_is_the_best_number_of_clients_of_the_peer() {
        let arms = [
            arm(Name::Atlas, 8, &[10.0, 10.0]),
            arm(Name::Atlas, 64, &[30.0, 30.0]),
            arm(Name::RocksdbOptimistic, 8, &[20.0, 20.0]),
            arm(Name::RocksdbOptimistic, 64, &[15.0, 15.0]),
        ];
        let found = compare(&arms, Workload::Transfer, true);
        let told: Vec<_> = found
            .iter()
            .map(|found| (found.our_clients, found.their_clients, found.median, found.bar, found.is_met()))
            .collect();
        assert_eq!(told, [(8, 8, 0.5, None, None), (64, 64, 2.0, None, None), (64, 8, 1.5, Some(1.5), Some(true))]);
    }

    #[test]
    fn serializable_peers_are_compared_with_serializable_transactions() {
        let arms = [
            arm(Name::Atlas, 8, &[100.0]),
            arm(Name::AtlasSerializable, 8, &[80.0]),
            arm(Name::Fjall, 8, &[40.0]),
            arm(Name::Surrealkv, 8, &[40.0]),
        ];
        let found = compare(&arms, Workload::Transfer, true);
        let told: Vec<_> = found.iter().map(|found| (found.ours, found.theirs, found.median)).collect();
        assert_eq!(told, [(Name::AtlasSerializable, Name::Fjall, 2.0), (Name::Atlas, Name::Surrealkv, 2.5)]);
    }
}
