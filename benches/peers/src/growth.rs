//! Whether a transaction costs the same in a small and in a large store, with few and with many versions, early and
//! late in the life of a store.
//!
//! Commits do not wait for the disk here: what is looked for would drown in it. Versions stay because nothing sweeps
//! them in these cases; elsewhere sweep runs as it comes.
//!
//! Where nothing but the number of cells grows, RocksDB by itself does the same right after, with a cache for blocks of the same
//! size, indexes and filters outside of it, and a thread for each client.

use crate::bars;
use crate::contenders::atlas::{Handle, on_rocksdb, runtime};
use crate::contenders::{Contender, Name, rocksdb};
use crate::drive::tasks;
use crate::keys::{Keys, Spread};
use crate::machine::{forget_peak_memory, peak_memory, size_of};
use crate::measure::{Work, median, settle};
use crate::options::Plan;
use crate::workload::{End, Job, Population, Workload};
use anyhow::{Result, ensure};
use atlas::schema::ConflictHandler;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// As atlas has it where nothing is said.
const CACHE_BYTES: usize = 64 << 20;
/// What RocksDB may hold besides that before it is written out.
const WRITE_BUFFERS_BYTES: u64 = 64 << 20;
const LOADERS: usize = 4;
const KEY_LEN: usize = 16;
/// How long compaction may take after a store was filled.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
pub(crate) struct Growth {
    pub(crate) clients: usize,
    pub(crate) cache_bytes: usize,
    pub(crate) cases: Vec<Case>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Case {
    pub(crate) cells: u64,
    pub(crate) versions: u64,
    pub(crate) earlier_transactions: u64,
    pub(crate) store_bytes: u64,
    pub(crate) transfer: Latency,
    pub(crate) read: Latency,
    pub(crate) scan_seconds: f64,
    /// Of filling, transfers and reads; of the scan of everything.
    pub(crate) peak_memory_bytes: [u64; 2],
    /// Medians of latencies as a multiple of those of the case it is compared with, if it is with any.
    pub(crate) growth: Option<[f64; 2]>,
    /// RocksDB by itself.
    pub(crate) rocksdb: Option<Alone>,
}

/// RocksDB without anything above it: batches without isolation, and reads.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Alone {
    pub(crate) transfer: Latency,
    pub(crate) read: Latency,
    /// As that of the case.
    pub(crate) growth: Option<[f64; 2]>,
}

impl Case {
    pub(crate) fn is_met(&self) -> Option<bool> {
        self.growth.map(|growth| growth.iter().all(|growth| *growth <= bars::GROWTH))
    }

    /// What the process may have had at most; asked of the largest.
    pub(crate) fn memory_bar() -> u64 {
        bars::MEMORY_BYTES + CACHE_BYTES as u64 + WRITE_BUFFERS_BYTES
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

pub(crate) fn run(plan: &Plan) -> Result<Growth> {
    let runtime = runtime()?;
    let clients = plan.clients.iter().copied().min().unwrap_or(1);
    let mut cases = Vec::new();
    for (cells, versions, earlier) in cases_of(plan) {
        let directory = plan.dir.join(format!("growth-{cells}-{versions}-{earlier}"));
        let mut case = measure(plan, &runtime, &directory, clients, (cells, versions, earlier))?;
        std::fs::remove_dir_all(&directory)?;
        eprintln!(
            "  {cells} cells, {versions} versions, {earlier} earlier: transfer {:.0} µs, read {:.0} µs",
            case.transfer.p50_us, case.read.p50_us
        );
        if versions == 1 && earlier == 0 {
            let alone = measure_rocksdb(plan, &directory, clients, cells)?;
            std::fs::remove_dir_all(&directory)?;
            eprintln!("  RocksDB: transfer {:.0} µs, read {:.0} µs", alone.transfer.p50_us, alone.read.p50_us);
            case.rocksdb = Some(alone);
        }
        cases.push(case);
    }
    compare(&mut cases, KEY_LEN + plan.value_bytes);
    Ok(Growth { clients, cache_bytes: CACHE_BYTES, cases })
}

/// Cells, versions of each, and transactions before.
fn cases_of(plan: &Plan) -> Vec<(u64, u64, u64)> {
    let usual = plan.growth_cells.get(1).or(plan.growth_cells.first()).copied().unwrap_or(2);
    let mut cases: Vec<_> = plan.growth_cells.iter().map(|cells| (*cells, 1, 0)).collect();
    cases.extend(plan.growth_versions.iter().filter(|versions| **versions > 1).map(|versions| (usual, *versions, 0)));
    if plan.growth_transactions > 0 {
        cases.push((usual, 1, plan.growth_transactions));
    }
    cases
}

fn measure(
    plan: &Plan,
    runtime: &Runtime,
    directory: &Path,
    clients: usize,
    (cells, versions, earlier): (u64, u64, u64),
) -> Result<Case> {
    let mut config = on_rocksdb(directory, CACHE_BYTES, false);
    config.sweep.enabled = versions == 1;
    forget_peak_memory();
    let handle = runtime.block_on(Handle::open(config, ConflictHandler::default()))?;
    let population = Arc::new(Population::new(cells, plan.value_bytes));
    let work = |workload: Workload, end: End, seed: u64| -> Result<Work> {
        let keys = Keys::new(Spread::Uniform, cells);
        let job = Arc::new(Job { workload, keys, population: population.clone(), end });
        tasks(runtime, std::iter::repeat_n(handle.clone(), clients), &job, seed)
    };
    for version in 0..versions {
        let loaders = std::iter::repeat_n(handle.clone(), LOADERS);
        tasks(runtime, loaders, &Job::fill(cells, plan.value_bytes), version)?;
    }
    work(Workload::Transfer, End::After { left: AtomicU64::new(earlier) }, 5)?;
    settle(PATIENCE.min(plan.patience * 12));

    let (transfer, read) = rounds(plan, work)?;
    let used = peak_memory().unwrap_or(0);
    forget_peak_memory();
    let begun = Instant::now();
    let sum = runtime.block_on(handle.sum())?;
    let scan_seconds = begun.elapsed().as_secs_f64();
    ensure!(sum.accounts == cells, "{} cells were found instead of {cells}", sum.accounts);
    let peak_memory_bytes = [used, peak_memory().unwrap_or(0)];
    let store_bytes = size_of(directory)?;
    runtime.block_on(handle.atlas.close())?;
    Ok(Case {
        cells,
        versions,
        earlier_transactions: earlier,
        store_bytes,
        transfer,
        read,
        scan_seconds,
        peak_memory_bytes,
        growth: None,
        rocksdb: None,
    })
}

fn measure_rocksdb(plan: &Plan, directory: &Path, clients: usize, cells: u64) -> Result<Alone> {
    let store = rocksdb::Store::with_cache(Name::Rocksdb, directory, false, CACHE_BYTES)?;
    store.run(&Job::fill(cells, plan.value_bytes), LOADERS, 0)?;
    let population = Arc::new(Population::new(cells, plan.value_bytes));
    settle(PATIENCE.min(plan.patience * 12));
    let (transfer, read) = rounds(plan, |workload, end, seed| {
        let keys = Keys::new(Spread::Uniform, cells);
        store.run(&Arc::new(Job { workload, keys, population: population.clone(), end }), clients, seed)
    })?;
    Box::new(store).close()?;
    Ok(Alone { transfer, read, growth: None })
}

/// Transfers and reads in turns.
fn rounds(plan: &Plan, work: impl Fn(Workload, End, u64) -> Result<Work>) -> Result<(Latency, Latency)> {
    let mut transfers = Vec::new();
    let mut reads = Vec::new();
    for round in 0..plan.rounds as u64 {
        for (workload, rounds) in [(Workload::Transfer, &mut transfers), (Workload::Read, &mut reads)] {
            settle(plan.patience);
            let begun = Instant::now();
            let done = work(workload, End::At(begun + plan.round), (round + 1) << 32)?;
            ensure!(done.missing == 0, "{} cells were not found", done.missing);
            rounds.push(Latency {
                per_second: done.operations as f64 / begun.elapsed().as_secs_f64(),
                p50_us: done.micros_at(0.5),
                p99_us: done.micros_at(0.99),
            });
        }
    }
    Ok((middle(&transfers), middle(&reads)))
}

fn middle(rounds: &[Latency]) -> Latency {
    let of = |number: fn(&Latency) -> f64| median(rounds.iter().map(number).collect());
    Latency {
        per_second: of(|round| round.per_second),
        p50_us: of(|round| round.p50_us),
        p99_us: of(|round| round.p99_us),
    }
}

/// Tables of more cells are compared with the smallest of which the cells, of so many bytes, do not fit into the block cache.
/// If all fit, nothing is compared: what would be seen is the size of the cache. Those with more versions or more behind them
/// are compared with the one of as many cells.
fn compare(cases: &mut [Case], cell_bytes: usize) {
    let plain: Vec<Case> =
        cases.iter().filter(|case| case.versions == 1 && case.earlier_transactions == 0).copied().collect();
    let too_large = plain.iter().filter(|case| case.cells * cell_bytes as u64 > CACHE_BYTES as u64);
    let large = too_large.min_by_key(|case| case.cells);
    let times = |new: [Latency; 2], old: [Latency; 2]| [0, 1].map(|part| new[part].p50_us / old[part].p50_us);
    for case in cases {
        let is_plain = case.versions == 1 && case.earlier_transactions == 0;
        let base = match is_plain {
            true => large.filter(|base| case.cells > base.cells),
            false => plain.iter().find(|base| base.cells == case.cells),
        };
        let Some(base) = base else { continue };
        case.growth = Some(times([case.transfer, case.read], [base.transfer, base.read]));
        if let (Some(new), Some(old)) = (&mut case.rocksdb, base.rocksdb) {
            new.growth = Some(times([new.transfer, new.read], [old.transfer, old.read]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(cells: u64, versions: u64, p50_us: f64) -> Case {
        let latency = Latency { per_second: 1.0, p50_us, p99_us: p50_us };
        Case {
            cells,
            versions,
            earlier_transactions: 0,
            store_bytes: 1,
            transfer: latency,
            read: latency,
            scan_seconds: 0.0,
            peak_memory_bytes: [0, 0],
            growth: None,
            rocksdb: None,
        }
    }

    fn growth(mut cases: Vec<Case>) -> Vec<Option<[f64; 2]>> {
        compare(&mut cases, 1 << 20);
        cases.iter().map(|case| case.growth).collect()
    }

    #[test]
    fn what_has_more_cells_is_compared_with_the_smallest_that_does_not_fit_the_cache() {
        let cases = vec![case(10, 1, 5.0), case(100, 1, 10.0), case(1000, 1, 12.0), case(10, 9, 20.0)];
        assert_eq!(growth(cases.clone()), [None, None, Some([1.2, 1.2]), Some([4.0, 4.0])]);
        let mut cases = cases;
        compare(&mut cases, 1 << 20);
        assert_eq!((cases[2].is_met(), cases[3].is_met()), (Some(true), Some(false)));
    }

    #[test]
    fn where_all_fit_tables_are_not_compared() {
        assert_eq!(growth(vec![case(10, 1, 5.0), case(50, 1, 10.0)]), [None, None]);
    }
}
