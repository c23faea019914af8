//! What was found: as JSON, and as tables for people.

use crate::backup::{Backups, Timed};
use crate::block::{Arm, Block, Comparison};
use crate::contenders::Name;
use crate::growth::{Case, Growth};
use crate::machine::versions;
use crate::options::Plan;
use crate::shared::machine::Machine;
use crate::timestamps::Timestamps;
use anyhow::Result;
use comfy_table::Table;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) contenders: Vec<Who>,
    pub(crate) accounts: u64,
    pub(crate) value_bytes: usize,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) fsync_delay_us: u64,
    pub(crate) blocks: Vec<Block>,
    pub(crate) timestamps: Vec<Timestamps>,
    pub(crate) backup: Option<Backups>,
    pub(crate) growth: Option<Growth>,
}

/// Who took part, and how.
#[derive(Debug, Serialize)]
pub(crate) struct Who {
    pub(crate) name: Name,
    pub(crate) title: &'static str,
    pub(crate) isolation: &'static str,
    pub(crate) form: &'static str,
}

impl Report {
    pub(crate) fn new(plan: &Plan) -> Result<Report> {
        let who =
            |name: &Name| Who { name: *name, title: name.title(), isolation: name.isolation(), form: name.form() };
        Ok(Report {
            machine: Machine::look(),
            versions: versions()?,
            contenders: plan.contenders.iter().map(who).collect(),
            accounts: plan.accounts,
            value_bytes: plan.value_bytes,
            rounds: plan.rounds,
            seconds: plan.round.as_secs_f64(),
            fsync_delay_us: plan.fsync_delay_us,
            blocks: Vec::new(),
            timestamps: Vec::new(),
            backup: None,
            growth: None,
        })
    }

    pub(crate) fn print_head(&self) {
        println!("{}", self.machine);
        let versions: Vec<_> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        println!("{}", versions.join(", "));
        println!(
            "{} accounts, values of {} bytes, {} rounds of {} s each, {} µs added to each fsync",
            self.accounts, self.value_bytes, self.rounds, self.seconds, self.fsync_delay_us
        );
        println!("With fsync on, what was acknowledged survives the loss of power; off, the end of the process.\n");
        let mut table = new_table(&["contender", "isolation", "how it is used"]);
        for who in &self.contenders {
            table.add_row([who.title, who.isolation, who.form]);
        }
        println!("{table}");
    }

    /// Bars that were met, and all that there are.
    pub(crate) fn bars(&self) -> [usize; 2] {
        let blocks = self.blocks.iter().flat_map(|block| block.comparisons.iter().filter_map(Comparison::is_met));
        let timestamps = self.timestamps.iter().filter_map(Timestamps::is_met);
        let backup = self.backup.iter().flat_map(|backup| backup.checks.iter().map(|check| check.is_met()));
        let growth = self.growth.iter().flat_map(|growth| growth.cases.iter().filter_map(Case::is_met));
        let all: Vec<bool> = blocks.chain(timestamps).chain(backup).chain(growth).collect();
        [all.iter().filter(|is_met| **is_met).count(), all.len()]
    }
}

fn new_table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(head);
    table
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

pub(crate) fn print_block(block: &Block) {
    let keys = block.keys.as_ref().map_or(String::new(), |keys| format!(", {keys} keys"));
    let fsync = block.fsync.as_ref().map_or(String::new(), |fsync| format!(", fsync {fsync}"));
    println!("\n{}{keys}{fsync}: {}", block.row, block.about);
    let head = [
        "",
        "clients",
        "per s",
        "min",
        "max",
        "p50 µs",
        "p99 µs",
        "fsyncs/tx",
        "CPU µs/tx",
        "cores",
        "by others",
        "retries %",
        "atlas/it",
        "by CPU",
        "bar",
    ];
    let mut table = new_table(&head);
    for arm in &block.arms {
        table.add_row(row_of(block, arm));
    }
    println!("{table}");
    for comparison in block.comparisons.iter().filter(|comparison| comparison.at_best) {
        let Some(bar) = comparison.bar else { continue };
        println!(
            "{} with {} clients / {} with {}, its best number: {:.2}, the bar is {bar}: {}",
            comparison.ours.title(),
            comparison.our_clients,
            comparison.theirs.title(),
            comparison.their_clients,
            comparison.median,
            comparison.is_met().map_or("", verdict),
        );
    }
    let [before, after] = block.fsync_probe_us;
    println!("fsync of 4 KiB on this disk: {before:.0} µs before, {after:.0} µs after");
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    // A server's work is that of another program, too.
    let of_own_process = block.arms.iter().filter(|arm| !arm.name.is_on_postgres());
    if of_own_process.into_iter().any(|arm| arm.median(|sample| sample.cores_of_others) > cores / 10.0) {
        println!("Other programs were busy meanwhile. Of what is left, many threads get more than the few of atlas:");
        println!("measure again on a quiet machine. `by CPU` is the ratio for each second of processor time.");
    }
}

fn row_of(block: &Block, arm: &Arm) -> Vec<String> {
    let rates = || arm.samples.iter().map(|sample| sample.per_second);
    let same_clients = block.comparisons.iter().find(|comparison| {
        comparison.theirs == arm.name && comparison.their_clients == arm.clients && !comparison.at_best
    });
    let bar = same_clients.and_then(|comparison| Some((comparison.bar?, comparison.is_met()?)));
    vec![
        arm.name.title().to_owned(),
        arm.clients.to_string(),
        format!("{:.0}", arm.rate()),
        format!("{:.0}", rates().fold(f64::INFINITY, f64::min)),
        format!("{:.0}", rates().fold(0.0, f64::max)),
        format!("{:.1}", arm.median(|sample| sample.p50_us)),
        format!("{:.1}", arm.median(|sample| sample.p99_us)),
        format!("{:.4}", arm.median(|sample| sample.fsyncs_per_operation)),
        format!("{:.1}", arm.median(|sample| sample.cpu_us_per_operation)),
        format!("{:.2}", arm.median(|sample| sample.cores_used)),
        format!("{:.2}", arm.median(|sample| sample.cores_of_others)),
        format!("{:.2}", arm.median(|sample| sample.retries_percent)),
        same_clients.map_or(String::new(), |comparison| format!("{:.2}", comparison.median)),
        same_clients.and_then(|comparison| comparison.by_cpu).map_or(String::new(), |ratio| format!("{ratio:.2}")),
        bar.map_or(String::new(), |(bar, is_met)| format!("{bar} {}", verdict(is_met))),
    ]
}

pub(crate) fn print_timestamps(timestamps: &[Timestamps]) {
    println!("\nfresh timestamps");
    let mut table = new_table(&["", "clients", "per s", "p50 µs", "p99 µs", "bar"]);
    for row in timestamps {
        let bar = row.bar_per_second.map_or(String::new(), |bar| {
            let p99 = row.bar_p99_us.map_or(String::new(), |bar| format!(", p99 under {bar} µs"));
            format!("{bar:.0}{p99}: {}", row.is_met().map_or("", verdict))
        });
        table.add_row([
            row.way.title().to_owned(),
            row.clients.to_string(),
            format!("{:.0}", row.per_second),
            format!("{:.2}", row.p50_us),
            format!("{:.2}", row.p99_us),
            bar,
        ]);
    }
    println!("{table}");
}

pub(crate) fn print_backup(backup: &Backups) {
    println!(
        "\nlive backup and restore of a store of {} MiB, of which a backup has {} MiB",
        backup.store_bytes >> 20,
        backup.backup_bytes >> 20
    );
    print_ways(&backup.ways);
    if let Some(ways) = &backup.postgres {
        println!("on Postgres, MiB of keys and values:");
        print_ways(ways);
    }
    let [small, large] = backup.snapshot_ms;
    println!("The store's own snapshot took {small:.0} ms when it was small, and {large:.0} ms.");
    for [before, during, after] in &backup.writers {
        println!("Writes in a second: {before:.0} before, {during:.0} during and {after:.0} after a backup.");
    }
    for check in &backup.checks {
        let relation = if check.at_least { "at least" } else { "at most" };
        println!("{}: {:.2}, {relation} {}: {}", check.what, check.value, check.bar, verdict(check.is_met()));
    }
}

fn print_ways(ways: &[Timed]) {
    let mut table = new_table(&["", "MiB/s", "seconds of each round"]);
    for way in ways {
        let seconds: Vec<_> = way.seconds.iter().map(|seconds| format!("{seconds:.2}")).collect();
        table.add_row([way.way.clone(), format!("{:.0}", way.mib_per_second), seconds.join(" ")]);
    }
    println!("{table}");
}

pub(crate) fn print_growth(growth: &Growth) {
    println!("\ngrowth: {} clients, block cache {} MiB, fsync off", growth.clients, growth.cache_bytes >> 20);
    let head = [
        "cells",
        "versions",
        "earlier",
        "MiB",
        "transfer/s",
        "p50 µs",
        "p99 µs",
        "read/s",
        "p50 µs",
        "p99 µs",
        "p50s / base",
        "bar",
        "RocksDB: p50s, µs",
        "/ base",
        "scan s",
        "peak MiB",
        "of scan",
    ];
    let mut table = new_table(&head);
    for case in &growth.cases {
        let times = |growth: Option<[f64; 2]>| {
            growth.map_or(String::new(), |[transfer, read]| format!("{transfer:.2} {read:.2}"))
        };
        let alone = case.rocksdb.map(|alone| format!("{:.1} {:.1}", alone.transfer.p50_us, alone.read.p50_us));
        let [peak, of_scan] = case.peak_memory_bytes.map(|bytes| (bytes >> 20).to_string());
        table.add_row([
            case.cells.to_string(),
            case.versions.to_string(),
            case.earlier_transactions.to_string(),
            (case.store_bytes >> 20).to_string(),
            format!("{:.0}", case.transfer.per_second),
            format!("{:.1}", case.transfer.p50_us),
            format!("{:.1}", case.transfer.p99_us),
            format!("{:.0}", case.read.per_second),
            format!("{:.1}", case.read.p50_us),
            format!("{:.1}", case.read.p99_us),
            times(case.growth),
            case.is_met().map_or(String::new(), |is_met| format!("{} {}", crate::bars::GROWTH, verdict(is_met))),
            alone.unwrap_or_default(),
            times(case.rocksdb.and_then(|alone| alone.growth)),
            format!("{:.2}", case.scan_seconds),
            peak,
            of_scan,
        ]);
    }
    println!("{table}");
    if let Some(largest) = growth.cases.iter().max_by_key(|case| case.cells) {
        let bar = Case::memory_bar();
        let is_met = largest.peak_memory_bytes.iter().all(|bytes| *bytes <= bar);
        println!("peak memory with {} cells, at most {} MiB: {}", largest.cells, bar >> 20, verdict(is_met));
    }
}
