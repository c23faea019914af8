//! What benchmarks of transfers have in common: accounts, what one side did in one round, and a table of all rounds.

// Each benchmark uses its part.
#![allow(dead_code)]

// The files beside this one are also parts of the benchmark of peers, which is a workspace of its own.
pub(crate) mod accounts;
pub(crate) mod disk;
pub(crate) mod machine;
pub(crate) mod processor;
pub(crate) mod rocks;
pub(crate) mod server;
pub(crate) mod statistics;

use accounts::moved;
use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use processor::{busy_seconds, cpu_seconds};
use rand::Rng;
use rand::rngs::StdRng;
use statistics::median;
use std::time::Instant;

pub(crate) const VALUE_LEN: usize = 100;

// ---- what is measured

/// What the clients of one side did in one round.
pub(crate) struct Work {
    pub(crate) commits: u64,
    pub(crate) retries: u64,
    pub(crate) micros: Histogram<u64>,
}

impl Work {
    pub(crate) fn none() -> Work {
        Work { commits: 0, retries: 0, micros: Histogram::new_with_max(60_000_000, 3).expect("the bounds are right") }
    }

    pub(crate) fn count(&mut self, begun: Instant, retries: u64) {
        self.commits += 1;
        self.retries += retries;
        self.micros.saturating_record(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn add(mut self, other: &Work) -> Work {
        self.commits += other.commits;
        self.retries += other.retries;
        self.micros.add(&other.micros).expect("histograms of the same shape");
        self
    }
}

/// One side in one round.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Sample {
    pub(crate) commits_per_s: f64,
    pub(crate) retries_percent: f64,
    pub(crate) fsyncs_per_commit: f64,
    pub(crate) cpu_us_per_commit: f64,
    pub(crate) cores_used: f64,
    pub(crate) cores_of_others: f64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
}

/// `count_syncs` tells how many fsyncs there were so far.
pub(crate) fn measure(count_syncs: impl Fn() -> Result<u64>, work: impl FnOnce() -> Result<Work>) -> Result<Sample> {
    let syncs = count_syncs()?;
    let (cpu, busy, begun) = (cpu_seconds(), busy_seconds(), Instant::now());
    let work = work()?;
    let busy = busy_seconds() - busy;
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let syncs = count_syncs()? - syncs;
    ensure!(work.commits > 0, "nothing was committed");
    let commits = work.commits as f64;
    Ok(Sample {
        commits_per_s: commits / seconds,
        retries_percent: 100.0 * work.retries as f64 / commits,
        fsyncs_per_commit: syncs as f64 / commits,
        cpu_us_per_commit: cpu * 1e6 / commits,
        cores_used: cpu / seconds,
        cores_of_others: (busy - cpu).max(0.0) / seconds,
        p50_us: work.micros.value_at_quantile(0.5),
        p99_us: work.micros.value_at_quantile(0.99),
    })
}

// ---- accounts and transfers

pub(crate) struct Transfer {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) amount: u64,
}

impl Transfer {
    pub(crate) fn draw(random: &mut StdRng, accounts: u64) -> Transfer {
        let from = random.random_range(0..accounts);
        let to = (from + random.random_range(1..accounts)) % accounts;
        Transfer { from, to, amount: random.random_range(1..=10) }
    }

    /// The two values after the transfer.
    pub(crate) fn apply(&self, from: &[u8], to: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
        moved(self.amount, from, to)
    }
}

// ---- rounds

/// One arm of the comparison over all rounds of a block.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Arm {
    pub(crate) name: String,
    pub(crate) samples: Vec<Sample>,
}

impl Arm {
    pub(crate) fn new(name: impl Into<String>) -> Arm {
        Arm { name: name.into(), samples: Vec::new() }
    }

    pub(crate) fn median(&self, number: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(number).collect())
    }

    pub(crate) fn rate(&self) -> f64 {
        self.median(|sample| sample.commits_per_s)
    }
}

/// A line for each arm, medians over its rounds.
pub(crate) fn table_of(arms: &[Arm]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "",
        "commits/s",
        "min",
        "max",
        "p50 µs",
        "p99 µs",
        "fsyncs/commit",
        "CPU µs/commit",
        "cores used",
        "by others",
        "retries %",
    ]);
    for arm in arms {
        let rates = || arm.samples.iter().map(|sample| sample.commits_per_s);
        table.add_row([
            arm.name.clone(),
            format!("{:.0}", arm.rate()),
            format!("{:.0}", rates().fold(f64::INFINITY, f64::min)),
            format!("{:.0}", rates().fold(0.0, f64::max)),
            format!("{:.0}", arm.median(|sample| sample.p50_us as f64)),
            format!("{:.0}", arm.median(|sample| sample.p99_us as f64)),
            format!("{:.4}", arm.median(|sample| sample.fsyncs_per_commit)),
            format!("{:.1}", arm.median(|sample| sample.cpu_us_per_commit)),
            format!("{:.2}", arm.median(|sample| sample.cores_used)),
            format!("{:.2}", arm.median(|sample| sample.cores_of_others)),
            format!("{:.2}", arm.median(|sample| sample.retries_percent)),
        ]);
    }
    table
}
