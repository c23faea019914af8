//! What benchmarks of transfers have in common: accounts, what one side did in one round, and a table of all rounds.

// Each benchmark uses its part.
#![allow(dead_code)]

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{Rng, RngCore};
use std::time::Instant;

pub(crate) const VALUE_LEN: usize = 100;
pub(crate) const OPENING_BALANCE: u64 = 1000;

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

/// Processor time of all threads of this process, RocksDB's own included.
pub(crate) fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Processor time of all programs of this machine, as far as it is told; in hundredths of seconds, which every Linux
/// counts in.
pub(crate) fn busy_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let times: Vec<f64> = all.filter_map(|time| time.parse().ok()).collect();
    // User, nice and system; idle and waiting for the disk do not count, nor does what interrupts take.
    times.iter().take(3).sum::<f64>() / 100.0
}

pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let half = numbers.len() / 2;
    match numbers.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => numbers[half],
        _ => f64::midpoint(numbers[half - 1], numbers[half]),
    }
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

    /// The two values after the transfer. An account without enough pays what it has.
    pub(crate) fn apply(&self, from: &[u8], to: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
        let amount = self.amount.min(balance(from)?);
        Ok((with_balance(from, balance(from)? - amount), with_balance(to, balance(to)? + amount)))
    }
}

/// 16 bytes, as keys that carry a little more than a number do.
pub(crate) fn key(account: u64) -> [u8; 16] {
    let mut key = *b"account:\0\0\0\0\0\0\0\0";
    key[8..].copy_from_slice(&account.to_be_bytes());
    key
}

/// A balance and bytes that do not compress.
pub(crate) fn opening_value(random: &mut StdRng) -> Vec<u8> {
    let mut value = vec![0; VALUE_LEN];
    random.fill_bytes(&mut value);
    with_balance(&value, OPENING_BALANCE)
}

pub(crate) fn balance(value: &[u8]) -> Result<u64> {
    Ok(u64::from_be_bytes(*value.first_chunk().context("a value is too short")?))
}

pub(crate) fn with_balance(value: &[u8], balance: u64) -> Vec<u8> {
    let mut value = value.to_vec();
    value[..8].copy_from_slice(&balance.to_be_bytes());
    value
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

/// Processor, cores, kernel and load of this machine.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) load: String,
}

impl Machine {
    pub(crate) fn look() -> Machine {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let processor =
            text("/proc/cpuinfo").lines().find_map(|line| Some(line.strip_prefix("model name")?.to_owned()));
        Machine {
            processor: processor.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: text("/proc/sys/kernel/osrelease"),
            load: text("/proc/loadavg"),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × {}, Linux {}, load {}", self.cores, self.processor, self.kernel, self.load)
    }
}
