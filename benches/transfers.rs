//! Transfers of 2 reads and 2 writes: atlas over RocksDB against RocksDB's own optimistic transactions.
//!
//! Both sides keep 100,000 accounts with values of 100 bytes and move money between two that are drawn uniformly. Both
//! check write-write conflicts on the two accounts and nothing else, and both wait for the same disk: every commit is
//! durable before it is acknowledged in the first block, and none waits in the second.
//!
//! ```text
//!   block (fsync on)    fsync probe │ round 1: A B C │ round 2: C B A │ … │ fsync probe     the ratio of each round is
//!   block (fsync off)   fsync probe │ round 1: A B C │ …              │ fsync probe     paired; the median counts
//! ```
//!
//! Rounds alternate, so that a disk that changes its mind changes it for both. The yardstick is the better of 8 and 64
//! threads. At the end both sums are checked. Run it with `scripts/bench`.

// The one unsafe thing here is to stand in front of `fdatasync`, to count what both sides cost the disk.
#![allow(unsafe_code)]

mod measure;

use anyhow::{Context, Result, ensure};
use atlas::config::{AtlasConfig, ByteSize, KvsConfig};
use atlas::kvs_api::{TableKind, TableRef};
use atlas::ops::Operations;
use atlas::schema::TableSpec;
use atlas::transaction::{RunOptions, Transaction};
use atlas::{Atlas, Cell};
use clap::Parser;
use measure::accounts::{OPENING_BALANCE, balance, key, opening_value};
use measure::machine::Machine;
use measure::statistics::median;
use measure::{Arm, Transfer, VALUE_LEN, Work, disk, measure, rocks, table_of};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rocksdb::{
    ErrorKind, IteratorMode, OptimisticTransactionDB, OptimisticTransactionOptions, WriteBatchWithTransaction,
    WriteOptions,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BLOCK_CACHE_BYTES: usize = 256 << 20;
const LOAD_BATCH: u64 = 1000;
const ATLAS_TASKS: usize = 64;
const ROCKS_THREADS: [usize; 2] = [8, 64];
/// What atlas has to reach, as a share of the yardstick, with fsync on.
const BAR: f64 = 0.5;

/// Transfers of 2 reads and 2 writes: atlas against RocksDB's OptimisticTransactionDB.
#[derive(Parser, Debug)]
struct Arguments {
    /// How long each side runs in each round.
    #[arg(long, env = "ATLAS_BENCH_SECONDS", default_value_t = 4.0)]
    seconds: f64,
    /// Rounds of each block; at least 5 for numbers worth quoting.
    #[arg(long, env = "ATLAS_BENCH_ROUNDS", default_value_t = 5)]
    rounds: u32,
    /// How many accounts there are.
    #[arg(long, env = "ATLAS_BENCH_ACCOUNTS", default_value_t = 100_000)]
    accounts: u64,
    /// Adds this to every fsync, to see what a slower disk would do.
    #[arg(long, env = "ATLAS_BENCH_FSYNC_DELAY_US", default_value_t = 0)]
    fsync_delay_us: u64,
    /// Only this block: `on` or `off`.
    #[arg(long, env = "ATLAS_BENCH_FSYNC")]
    fsync: Option<String>,
    /// Only atlas, for profiling.
    #[arg(long)]
    only_atlas: bool,
    /// Where the stores are made, in a directory of their own that is removed again.
    #[arg(long, env = "ATLAS_BENCH_DIR", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/transfers"))]
    dir: PathBuf,
    /// Where the numbers are written as JSON.
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/transfers.json"))]
    json: PathBuf,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

// ---- the disk

static SYNCS: AtomicU64 = AtomicU64::new(0);
static SYNC_DELAY_US: AtomicU64 = AtomicU64::new(0);

/// Counts and does what libc's function of this name does; RocksDB's log is synced by it.
#[unsafe(no_mangle)]
extern "C" fn fdatasync(descriptor: i32) -> i32 {
    SYNCS.fetch_add(1, Ordering::Relaxed);
    let delay = SYNC_DELAY_US.load(Ordering::Relaxed);
    if delay > 0 {
        std::thread::sleep(Duration::from_micros(delay));
    }
    // SAFETY: the caller of fdatasync keeps its descriptor open for the duration of the call.
    let descriptor = unsafe { rustix::fd::BorrowedFd::borrow_raw(descriptor) };
    // A system call of its own, not libc's function: that would be this one.
    if rustix::fs::fdatasync(descriptor).is_ok() { 0 } else { -1 }
}

// ---- atlas

struct AtlasSide {
    runtime: tokio::runtime::Runtime,
    atlas: Atlas,
    table: TableRef,
    accounts: u64,
}

impl AtlasSide {
    fn open(dir: &Path, accounts: u64, sync: bool) -> Result<AtlasSide> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let table = TableRef::new("accounts")?;
        let block_cache = ByteSize(BLOCK_CACHE_BYTES as u64);
        let config = AtlasConfig {
            key_value_service: KvsConfig::Rocksdb { data_dir: dir.join("atlas"), block_cache, sync },
            ..AtlasConfig::default()
        };
        let atlas = runtime.block_on(async {
            let atlas = Atlas::open_unserved(config, Duration::ZERO).await?;
            atlas.create_table(&table, &TableSpec::default()).await?;
            let mut random = StdRng::seed_from_u64(1);
            for first in (0..accounts).step_by(LOAD_BATCH as usize) {
                let rows: Vec<_> = (first..accounts.min(first + LOAD_BATCH))
                    .map(|account| (AtlasSide::cell(account), opening_value(&mut random, VALUE_LEN)))
                    .collect();
                atlas
                    .run(async |tx| {
                        for (cell, value) in &rows {
                            tx.put(&table, cell.clone(), value.clone()).await?;
                        }
                        Ok::<_, atlas::Error>(())
                    })
                    .await?;
            }
            anyhow::Ok(atlas)
        })?;
        Ok(AtlasSide { runtime, atlas, table, accounts })
    }

    fn cell(account: u64) -> Cell {
        Cell::copy_from(key(account), "b")
    }

    fn run(&self, until: Instant, seed: u64) -> Result<Work> {
        self.runtime.block_on(async {
            let clients: Vec<_> = (0..ATLAS_TASKS)
                .map(|client| {
                    let (atlas, table, accounts) = (self.atlas.clone(), self.table.clone(), self.accounts);
                    let random = StdRng::seed_from_u64(seed + client as u64);
                    tokio::spawn(AtlasSide::client(atlas, table, accounts, until, random))
                })
                .collect();
            let mut work = Work::none();
            for client in clients {
                work = work.add(&client.await??);
            }
            Ok(work)
        })
    }

    async fn client(atlas: Atlas, table: TableRef, accounts: u64, until: Instant, mut random: StdRng) -> Result<Work> {
        let mut work = Work::none();
        while Instant::now() < until {
            let transfer = Transfer::draw(&mut random, accounts);
            let begun = Instant::now();
            // Owned by the closure: a spawned task can't hold one that borrows (rust-lang/rust#110338).
            let table = table.clone();
            let transferred = async |tx| AtlasSide::transfer(&tx, &table, &transfer).await;
            let outcome = atlas.run_with(RunOptions::default(), transferred).await?;
            work.count(begun, u64::from(outcome.attempts - 1));
        }
        Ok(work)
    }

    async fn transfer(tx: &Transaction, table: &TableRef, transfer: &Transfer) -> Result<()> {
        let (from, to) = (AtlasSide::cell(transfer.from), AtlasSide::cell(transfer.to));
        let from_value = tx.get(table, &from).await?.context("an account is gone")?;
        let to_value = tx.get(table, &to).await?.context("an account is gone")?;
        let (from_value, to_value) = transfer.apply(&from_value, &to_value)?;
        tx.put(table, from, from_value).await?;
        tx.put(table, to, to_value).await?;
        Ok(())
    }

    /// The sum over all accounts; closes the store.
    fn close(self) -> Result<u64> {
        use futures::TryStreamExt;
        self.runtime.block_on(async {
            let tx = self.atlas.begin().await?;
            let mut cells = tx.scan(&self.table, atlas::ops::ScanOptions::default()).await?;
            let (mut sum, mut found) = (0, 0);
            while let Some((_, value)) = cells.try_next().await? {
                sum += balance(&value)?;
                found += 1;
            }
            drop(cells);
            drop(tx);
            ensure!(found == self.accounts, "atlas has {found} accounts, not {}", self.accounts);
            let kind = self.atlas.transactions().kvs().table(&self.table).await?.map(|table| table.kind);
            ensure!(kind == Some(TableKind::Versioned), "the table is not what it was made as");
            self.atlas.close().await?;
            Ok(sum)
        })
    }
}

// ---- RocksDB's own transactions

struct RocksSide {
    db: OptimisticTransactionDB,
    accounts: u64,
    sync: bool,
}

impl RocksSide {
    fn open(dir: &Path, accounts: u64, sync: bool) -> Result<RocksSide> {
        let db = OptimisticTransactionDB::open(&rocks::options(BLOCK_CACHE_BYTES), dir.join("rocksdb"))?;
        let mut random = StdRng::seed_from_u64(1);
        for first in (0..accounts).step_by(LOAD_BATCH as usize) {
            let mut batch = WriteBatchWithTransaction::<true>::default();
            for account in first..accounts.min(first + LOAD_BATCH) {
                batch.put(key(account), opening_value(&mut random, VALUE_LEN));
            }
            db.write(batch)?;
        }
        db.flush()?;
        Ok(RocksSide { db, accounts, sync })
    }

    fn run(&self, threads: usize, until: Instant, seed: u64) -> Result<Work> {
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..threads)
                .map(|client| {
                    let random = StdRng::seed_from_u64(seed + client as u64);
                    scope.spawn(move || self.client(until, random))
                })
                .collect();
            clients.into_iter().try_fold(Work::none(), |work, client| {
                let done = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
                Ok(work.add(&done))
            })
        })
    }

    fn client(&self, until: Instant, mut random: StdRng) -> Result<Work> {
        let mut write_options = WriteOptions::default();
        write_options.set_sync(self.sync);
        let mut work = Work::none();
        while Instant::now() < until {
            let transfer = Transfer::draw(&mut random, self.accounts);
            let begun = Instant::now();
            let mut retries = 0;
            while !self.transfer(&transfer, &write_options)? {
                retries += 1;
            }
            work.count(begun, retries);
        }
        Ok(work)
    }

    /// False if another transaction was faster.
    fn transfer(&self, transfer: &Transfer, write_options: &WriteOptions) -> Result<bool> {
        let (from, to) = (key(transfer.from), key(transfer.to));
        let transaction = self.db.transaction_opt(write_options, &OptimisticTransactionOptions::default());
        let from_value = transaction.get_for_update(from, true)?.context("an account is gone")?;
        let to_value = transaction.get_for_update(to, true)?.context("an account is gone")?;
        let (from_value, to_value) = transfer.apply(&from_value, &to_value)?;
        transaction.put(from, from_value)?;
        transaction.put(to, to_value)?;
        match transaction.commit() {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::TryAgain) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The sum over all accounts.
    fn close(self) -> Result<u64> {
        let (mut sum, mut found) = (0, 0);
        for account in self.db.iterator(IteratorMode::Start) {
            sum += balance(&account?.1)?;
            found += 1;
        }
        ensure!(found == self.accounts, "RocksDB has {found} accounts, not {}", self.accounts);
        Ok(sum)
    }
}

// ---- blocks

#[derive(Debug, serde::Serialize)]
struct Block {
    fsync: bool,
    fsync_probe_us: [f64; 2],
    arms: Vec<Arm>,
    yardstick: Option<String>,
    ratios: Vec<f64>,
    median_ratio: f64,
}

impl Block {
    /// True if other programs used more than a tenth of the machine.
    fn is_disturbed(&self) -> bool {
        let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        self.arms.iter().any(|arm| arm.median(|sample| sample.cores_of_others) > cores / 10.0)
    }
}

fn run_block(arguments: &Arguments, stores: &Path, sync: bool) -> Result<Block> {
    let dir = stores.join(if sync { "fsync-on" } else { "fsync-off" });
    std::fs::create_dir_all(&dir)?;
    SYNC_DELAY_US.store(0, Ordering::Relaxed);
    eprintln!("fsync {}: loading {} accounts on each side", if sync { "on" } else { "off" }, arguments.accounts);
    let atlas = AtlasSide::open(&dir, arguments.accounts, sync)?;
    let rocks = RocksSide::open(&dir, arguments.accounts, sync)?;
    SYNC_DELAY_US.store(arguments.fsync_delay_us, Ordering::Relaxed);

    let mut arms = vec![Arm::new(format!("atlas, {ATLAS_TASKS} tasks"))];
    if !arguments.only_atlas {
        arms.extend(ROCKS_THREADS.map(|threads| Arm::new(format!("OptimisticTransactionDB, {threads} threads"))));
    }
    let length = Duration::from_secs_f64(arguments.seconds);
    let run = |arm: usize, length: Duration, seed: u64| {
        measure(
            || Ok(SYNCS.load(Ordering::Relaxed)),
            || match arm {
                0 => atlas.run(Instant::now() + length, seed),
                _ => rocks.run(ROCKS_THREADS[arm - 1], Instant::now() + length, seed),
            },
        )
    };
    for arm in 0..arms.len() {
        run(arm, length.min(Duration::from_secs(2)), 7)?; // Caches and memtables are warm on all sides then.
    }
    let before = disk::probe(&dir)?;
    for round in 0..arguments.rounds {
        let mut order: Vec<usize> = (0..arms.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for arm in order {
            let sample = run(arm, length, u64::from(round + 1) << 32)?;
            let (name, rate) = (&arms[arm].name, sample.commits_per_s);
            eprintln!("  round {}: {name}: {rate:.0} commits/s", round + 1);
            arms[arm].samples.push(sample);
        }
    }
    let after = disk::probe(&dir)?;

    let expected = arguments.accounts * OPENING_BALANCE;
    let sums = [("atlas", atlas.close()?), ("RocksDB", rocks.close()?)];
    for (name, sum) in sums {
        ensure!(sum == expected, "{name} lost or made money: {sum} instead of {expected}");
    }
    std::fs::remove_dir_all(&dir)?;
    let yardstick = arms[1..].iter().max_by(|a, b| a.rate().total_cmp(&b.rate()));
    let ratios: Vec<f64> = yardstick.map_or_else(Vec::new, |yardstick| {
        let pairs = arms[0].samples.iter().zip(&yardstick.samples);
        pairs.map(|(ours, theirs)| ours.commits_per_s / theirs.commits_per_s).collect()
    });
    let (median_ratio, yardstick) = (median(ratios.clone()), yardstick.map(|arm| arm.name.clone()));
    Ok(Block { fsync: sync, fsync_probe_us: [before, after], arms, yardstick, ratios, median_ratio })
}

fn print_block(block: &Block) {
    let [before, after] = block.fsync_probe_us;
    println!("\nfsync {}", if block.fsync { "on" } else { "off" });
    println!("{}", table_of(&block.arms));
    println!("fsync of 4 KiB on this disk: {before:.0} µs before, {after:.0} µs after");
    if let Some(yardstick) = &block.yardstick {
        let ratios: Vec<String> = block.ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        println!("atlas / {yardstick}: {} → median {:.2}", ratios.join(" "), block.median_ratio);
        let cpu = |arm: &Arm| arm.median(|sample| sample.cpu_us_per_commit);
        if let Some(theirs) = block.arms.iter().find(|arm| arm.name == *yardstick) {
            println!("the same for each second of processor time: {:.2}", cpu(theirs) / cpu(&block.arms[0]));
        }
        if block.is_disturbed() {
            println!(
                "Other programs were busy meanwhile. Of what is left, 64 threads get more than the few threads of"
            );
            println!("atlas: measure again on a quiet machine.");
        }
    }
}

// ---- the report

#[derive(Debug, serde::Serialize)]
struct Report {
    atlas: String,
    rocksdb: String,
    #[serde(flatten)]
    machine: Machine,
    seconds: f64,
    accounts: u64,
    value_bytes: usize,
    fsync_delay_us: u64,
    blocks: Vec<Block>,
}

fn report(arguments: &Arguments) -> Report {
    Report {
        atlas: env!("CARGO_PKG_VERSION").to_owned(),
        rocksdb: rocksdb_version().unwrap_or("unknown").to_owned(),
        machine: Machine::look(),
        seconds: arguments.seconds,
        accounts: arguments.accounts,
        value_bytes: VALUE_LEN,
        fsync_delay_us: arguments.fsync_delay_us,
        blocks: Vec::new(),
    }
}

/// The version that is linked, as the lock file has it: crate version, a plus sign, RocksDB's version.
fn rocksdb_version() -> Option<&'static str> {
    let lock = include_str!("../Cargo.lock");
    let package = lock.split("name = \"librocksdb-sys\"").nth(1)?;
    package.split("version = \"").nth(1)?.split('"').next()
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let blocks: &[bool] = match arguments.fsync.as_deref() {
        None => &[true, false],
        Some("on") => &[true],
        Some("off") => &[false],
        Some(other) => anyhow::bail!("--fsync is on or off, not {other}"),
    };
    let stores = disk::empty_stores(&arguments.dir)?;
    let mut report = report(&arguments);
    println!("atlas {}, librocksdb-sys {} (the same library on both sides)", report.atlas, report.rocksdb);
    println!("{}", report.machine);
    println!(
        "{} accounts, {VALUE_LEN}-byte values, {} rounds of {} s a side, {} µs added to each fsync",
        arguments.accounts, arguments.rounds, arguments.seconds, arguments.fsync_delay_us
    );
    for sync in blocks {
        let block = run_block(&arguments, &stores, *sync)?;
        print_block(&block);
        report.blocks.push(block);
    }
    std::fs::write(&arguments.json, serde_json::to_string_pretty(&report)?)?;
    disk::remove_stores(&stores)?;
    println!("\nBoth sums are right. Numbers: {}", arguments.json.display());
    if let Some(block) = report.blocks.iter().find(|block| block.fsync && block.yardstick.is_some()) {
        let verdict = if block.median_ratio >= BAR { "reached" } else { "missed" };
        println!("The bar of {BAR} with fsync on is {verdict}: {:.2}", block.median_ratio);
    }
    Ok(())
}
