//! What a read costs of a cell that was overwritten very often, after sweep, beside one of a cell that was written once.
//!
//! Both cells lie in one RocksDB store, far enough from each other. Rounds alternate, the ratio of each round is paired,
//! and the median counts. The program fails over its bar. Run it with `scripts/bench sweep`.

use anyhow::{Context, Result, ensure};
use atlas::config::{AtlasConfig, KvsConfig};
use atlas::ops::{Operations, no_progress};
use atlas::schema::TableSpec;
use atlas::{Atlas, Cell, TableRef};
use clap::Parser;
use std::time::Instant;

/// The most that a read of the old cell may cost, as a share of one of the fresh cell.
const BAR: f64 = 1.2;
/// Cells between the two, so that they share no block.
const BETWEEN: u32 = 2_000;

/// Reads of a cell that was overwritten and swept, beside reads of a fresh one.
#[derive(Parser, Debug)]
struct Arguments {
    /// How often the old cell is overwritten.
    #[arg(long, default_value_t = 10_000)]
    overwrites: u32,
    /// Reads of each cell in each round.
    #[arg(long, default_value_t = 20_000)]
    reads: u32,
    /// Rounds, 5 at least for numbers worth quoting.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tokio::runtime::Runtime::new()?.block_on(compare(&arguments))
}

async fn compare(arguments: &Arguments) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut config =
        AtlasConfig { key_value_service: KvsConfig::rocksdb(directory.path().join("data")), ..AtlasConfig::default() };
    // When is said below.
    config.sweep.enabled = false;
    let atlas = Atlas::open_unserved(config, std::time::Duration::ZERO).await?;
    let table = TableRef::new("cells").context("it is a name")?;
    atlas.create_table(&table, &TableSpec::default()).await?;
    let cell = |name: &str| Cell::copy_from(name, "c");
    for number in 0..arguments.overwrites {
        put(&atlas, &table, vec![cell("a")], number).await?;
    }
    put(&atlas, &table, (0..BETWEEN).map(|number| cell(&format!("between {number:05}"))).collect(), 0).await?;
    put(&atlas, &table, vec![cell("z")], 0).await?;
    let before = paired(&atlas, &table, arguments).await?;
    atlas.sweeper().round().await?;
    let deleted = atlas.sweep_status().await?.totals.deleted;
    ensure!(deleted == u64::from(arguments.overwrites) - 1, "{deleted} versions were swept");
    // A walk over everything, as it may come at any time, changes nothing.
    atlas.sweep(Default::default(), no_progress()).await?;
    let after = paired(&atlas, &table, arguments).await?;
    println!("a read of a cell overwritten {} times, as a share of one of a fresh cell:", arguments.overwrites);
    println!("  before sweep  {}", told(&before));
    println!("  after sweep   {}   (bar {BAR})", told(&after));
    atlas.close().await?;
    let median = after[after.len() / 2];
    ensure!(median <= BAR, "over the bar: {median:.2}");
    Ok(())
}

fn told(ratios: &[f64]) -> String {
    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
    format!("median {:.2}, {least:.2} to {most:.2} in {} rounds", ratios[ratios.len() / 2], ratios.len())
}

async fn put(atlas: &Atlas, table: &TableRef, cells: Vec<Cell>, number: u32) -> Result<()> {
    let work = async |tx: atlas::transaction::Transaction| {
        for cell in &cells {
            tx.put(table, cell.clone(), vec![(number % 251) as u8; 100]).await?;
        }
        Ok::<_, atlas::Error>(())
    };
    Ok(atlas.run(work).await?)
}

/// Ratios of the rounds, ascending.
async fn paired(atlas: &Atlas, table: &TableRef, arguments: &Arguments) -> Result<Vec<f64>> {
    let mut ratios = Vec::new();
    for round in 0..arguments.rounds.max(1) {
        let names = if round % 2 == 0 { ["a", "z"] } else { ["z", "a"] };
        let mut took = [0.0; 2];
        for name in names {
            let cell = Cell::copy_from(name, "c");
            let begun = Instant::now();
            for _ in 0..arguments.reads {
                let found = atlas.begin().await?.get(table, &cell).await?;
                ensure!(found.is_some(), "the cell is there");
            }
            took[usize::from(name == "z")] = begun.elapsed().as_secs_f64();
        }
        ratios.push(took[0] / took[1]);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(ratios)
}
