//! What can be said on the command line, and what it comes to.

use crate::contenders::{self, Name};
use crate::keys::Spread;
use crate::workload::Workload;
use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// The same work on atlas and on what one would use instead.
///
/// Rounds alternate between the contenders, forth and back; ratios are of the same round, and their median counts.
/// Postgres takes part if PGHOST or PGPORT say where a server is; `scripts/bench peers --postgres` starts one.
#[derive(Parser, Debug, Default)]
#[command(name = "peers", bin_name = "scripts/bench peers")]
pub(crate) struct Options {
    /// Rows, with commas: transfer, read, multi-get, scan, update, insert, load, ycsb (all) or ycsb-a to ycsb-f,
    /// timestamps, backup, growth
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) rows: Vec<String>,
    /// Only these, with commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) contenders: Vec<Name>,
    /// A short run of everything, to see that it works; what is given besides holds
    #[arg(long)]
    pub(crate) quick: bool,
    /// Length of each round of a contender [default: 4]
    #[arg(long)]
    pub(crate) seconds: Option<f64>,
    /// Rounds; at least 5 for numbers worth quoting [default: 5]
    #[arg(long, value_name = "N")]
    pub(crate) rounds: Option<usize>,
    /// Accounts each store is filled with [default: 100000]
    #[arg(long, value_name = "N")]
    pub(crate) accounts: Option<u64>,
    /// Length of values
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) value_bytes: usize,
    /// Clients at a time, with commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [8, 64])]
    pub(crate) clients: Vec<usize>,
    /// How keys are picked, with commas
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Spread::Uniform, Spread::Zipfian])]
    pub(crate) keys: Vec<Spread>,
    /// Whether commits wait for the disk, with commas
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Fsync::On, Fsync::Off])]
    pub(crate) fsync: Vec<Fsync>,
    /// Adds this to every fsync of every contender in this process, to see what another disk would do
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub(crate) fsync_delay_us: u64,
    /// Cells of a bulk load [default: 1000000]
    #[arg(long, value_name = "N")]
    pub(crate) load_cells: Option<u64>,
    /// Clients of a bulk load
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) load_clients: usize,
    /// Size of the store that is backed up [default: 1024]
    #[arg(long, value_name = "MIB")]
    pub(crate) backup_mib: Option<u64>,
    /// Sizes of tables, with commas [default: 10000,100000,1000000,10000000]
    #[arg(long, value_name = "CELLS", value_delimiter = ',')]
    pub(crate) growth_cells: Vec<u64>,
    /// Versions of each cell, of which those above 1 are tried on the second of the sizes, with commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 10, 100])]
    pub(crate) growth_versions: Vec<u64>,
    /// Earlier transactions [default: 1000000]
    #[arg(long, value_name = "N")]
    pub(crate) growth_transactions: Option<u64>,
    /// Where stores are made, in a directory of their own that is removed again
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) dir: Option<PathBuf>,
    /// Where the numbers are written
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where a chart is drawn
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

/// Whether commits wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fsync {
    On,
    Off,
}

impl std::fmt::Display for Fsync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Fsync::On { "on" } else { "off" })
    }
}

/// A part of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Work(Workload),
    Timestamps,
    Backup,
    Growth,
}

impl Row {
    fn all() -> Vec<Row> {
        let work = Workload::ALL.into_iter().map(Row::Work);
        work.chain([Row::Timestamps, Row::Backup, Row::Growth]).collect()
    }

    fn name(self) -> &'static str {
        match self {
            Row::Work(workload) => workload.name(),
            Row::Timestamps => "timestamps",
            Row::Backup => "backup",
            Row::Growth => "growth",
        }
    }
}

/// What is going to be done.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rows: Vec<Row>,
    pub(crate) contenders: Vec<Name>,
    pub(crate) round: Duration,
    pub(crate) rounds: usize,
    /// How long is waited between rounds for what goes on in the background.
    pub(crate) patience: Duration,
    pub(crate) accounts: u64,
    pub(crate) value_bytes: usize,
    pub(crate) clients: Vec<usize>,
    pub(crate) keys: Vec<Spread>,
    pub(crate) fsync: Vec<Fsync>,
    pub(crate) fsync_delay_us: u64,
    pub(crate) load_cells: u64,
    pub(crate) load_clients: usize,
    pub(crate) backup_bytes: u64,
    pub(crate) growth_cells: Vec<u64>,
    pub(crate) growth_versions: Vec<u64>,
    pub(crate) growth_transactions: u64,
    pub(crate) dir: PathBuf,
    pub(crate) json: Option<PathBuf>,
    pub(crate) svg: Option<PathBuf>,
}

impl Plan {
    pub(crate) fn of(options: Options) -> Result<Plan> {
        let quick = options.quick;
        let usual = |long: u64, short: u64| if quick { short } else { long };
        let growth_cells = match (options.growth_cells.is_empty(), quick) {
            (false, _) => options.growth_cells,
            (true, false) => vec![10_000, 100_000, 1_000_000, 10_000_000],
            (true, true) => vec![1_000, 10_000],
        };
        let plan = Plan {
            rows: rows(&options.rows)?,
            contenders: contenders(options.contenders, contenders::postgres::is_there())?,
            round: Duration::try_from_secs_f64(options.seconds.unwrap_or(if quick { 0.5 } else { 4.0 }))?,
            rounds: options.rounds.unwrap_or(usual(5, 2) as usize),
            patience: Duration::from_secs(usual(5, 1)),
            accounts: options.accounts.unwrap_or(usual(100_000, 10_000)),
            value_bytes: options.value_bytes,
            clients: options.clients,
            keys: options.keys,
            fsync: options.fsync,
            fsync_delay_us: options.fsync_delay_us,
            load_cells: options.load_cells.unwrap_or(usual(1_000_000, 20_000)),
            load_clients: options.load_clients,
            backup_bytes: options.backup_mib.unwrap_or(usual(1024, 16)) << 20,
            growth_cells,
            growth_versions: options.growth_versions,
            growth_transactions: options.growth_transactions.unwrap_or(usual(1_000_000, 10_000)),
            // Beside the program: where temporary files lie is often no disk.
            dir: match options.dir {
                Some(dir) => dir,
                None => std::env::current_exe()?.parent().context("the program lies in a directory")?.to_owned(),
            },
            json: options.json,
            svg: options.svg,
        };
        ensure!(plan.accounts >= 2, "a transfer needs two accounts");
        ensure!(plan.value_bytes >= 8, "a value has room for a balance: 8 bytes");
        ensure!(plan.rounds >= 1 && !plan.round.is_zero(), "there must be one round, of some length");
        ensure!(!plan.clients.contains(&0) && plan.load_clients > 0, "there must be one client");
        ensure!(plan.growth_cells.iter().all(|cells| *cells >= 2), "a transfer needs two cells");
        ensure!(!plan.growth_versions.contains(&0), "a cell has one version at least");
        Ok(plan)
    }
}

fn rows(names: &[String]) -> Result<Vec<Row>> {
    let all = Row::all();
    if names.is_empty() {
        return Ok(all);
    }
    let mut rows = Vec::new();
    for name in names {
        let found: Vec<Row> = match &name[..] {
            "ycsb" => all.iter().copied().filter(|row| matches!(row, Row::Work(Workload::Ycsb(_)))).collect(),
            name => all.iter().copied().filter(|row| row.name() == name).collect(),
        };
        if found.is_empty() {
            let known: Vec<_> = all.iter().map(|row| row.name()).collect();
            bail!("there is no row '{name}'; there are {} and ycsb", known.join(", "));
        }
        rows.extend(found);
    }
    Ok(rows)
}

fn contenders(asked: Vec<Name>, with_postgres: bool) -> Result<Vec<Name>> {
    if asked.is_empty() {
        return Ok(Name::ALL.into_iter().filter(|name| with_postgres || !name.is_on_postgres()).collect());
    }
    ensure!(
        with_postgres || !asked.iter().any(|name| name.is_on_postgres()),
        "there is no Postgres server: run scripts/bench peers --postgres, or set PGHOST"
    );
    Ok(Name::ALL.into_iter().filter(|name| asked.contains(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arguments: &str) -> Result<Plan> {
        Plan::of(Options::try_parse_from(std::iter::once("peers").chain(arguments.split_whitespace()))?)
    }

    #[test]
    fn without_arguments_it_is_the_whole_bench() -> Result<()> {
        let plan = plan("")?;
        assert_eq!((plan.accounts, plan.value_bytes, plan.load_cells), (100_000, 100, 1_000_000));
        assert_eq!((plan.clients, plan.keys.len(), plan.fsync.len()), (vec![8, 64], 2, 2));
        assert_eq!((plan.rows.len(), plan.backup_bytes), (16, 1 << 30));
        assert_eq!(plan.growth_cells, [10_000, 100_000, 1_000_000, 10_000_000]);
        Ok(())
    }

    #[test]
    fn what_is_given_goes_before_what_quick_means() -> Result<()> {
        let plan = plan("--quick --accounts 77 --rounds 3")?;
        assert_eq!((plan.accounts, plan.rounds, plan.round), (77, 3, Duration::from_millis(500)));
        Ok(())
    }

    #[test]
    fn rows_are_chosen_by_name() -> Result<()> {
        assert_eq!(plan("--rows scan,backup")?.rows, [Row::Work(Workload::Scan), Row::Backup]);
        assert_eq!(plan("--rows ycsb")?.rows.len(), 6);
        let error = plan("--rows scan,scam").expect_err("it is no row").to_string();
        assert!(error.contains("'scam'"), "{error}");
        Ok(())
    }

    #[test]
    fn postgres_takes_part_only_if_it_is_there() -> Result<()> {
        assert!(contenders(Vec::new(), false)?.iter().all(|name| !name.is_on_postgres()));
        assert_eq!(contenders(Vec::new(), true)?, Name::ALL);
        assert!(contenders(vec![Name::PostgresSerializable], false).is_err());
        Ok(())
    }

    #[test]
    fn what_can_not_be_measured_is_refused() {
        for arguments in ["--accounts 1", "--value-bytes 4", "--rounds 0", "--clients 8,0", "--seconds -1"] {
            assert!(plan(arguments).is_err(), "{arguments}");
        }
    }
}
