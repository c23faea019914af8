//! Transfers of 2 reads and 2 writes on one PostgreSQL server: atlas against the server's own SERIALIZABLE
//! transactions through tokio-postgres.
//!
//! Both sides keep 100,000 accounts with values of 100 bytes in the same database and move money between two that are
//! drawn uniformly, with 64 clients. Both wait for the server's disk: `synchronous_commit` is on for both. The server's
//! own transactions are written in two ways, the better one counts: a round trip for each statement, and three round
//! trips in all (begin and both reads, both updates, commit).
//!
//! Rounds alternate and ratios are paired, as in the benchmark of RocksDB. Run it with `scripts/bench postgres`, which
//! starts a server of its own with fsync on.

mod measure;

use anyhow::{Result, ensure};
use atlas::config::{AtlasConfig, KvsConfig, PostgresKvs};
use atlas::kvs_api::TableRef;
use atlas::ops::Operations;
use atlas::schema::TableSpec;
use atlas::transaction::{RunOptions, Transaction};
use atlas::{Atlas, Cell};
use clap::Parser;
use measure::accounts::{OPENING_BALANCE, balance, key, opening_value};
use measure::machine::Machine;
use measure::server::{connect, server};
use measure::statistics::median;
use measure::{Arm, Transfer, VALUE_LEN, Work, measure, table_of};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

const LOAD_BATCH: u64 = 1000;
/// What atlas has to reach, as a share of the yardstick.
const BAR: f64 = 0.5;

/// Transfers of 2 reads and 2 writes: atlas on Postgres against Postgres's own SERIALIZABLE transactions.
#[derive(Parser, Debug)]
struct Arguments {
    /// How long each side runs in each round.
    #[arg(long, env = "ATLAS_BENCH_SECONDS", default_value_t = 6.0)]
    seconds: f64,
    /// Rounds; at least 5 for numbers worth quoting.
    #[arg(long, env = "ATLAS_BENCH_ROUNDS", default_value_t = 5)]
    rounds: u32,
    /// How many accounts there are.
    #[arg(long, env = "ATLAS_BENCH_ACCOUNTS", default_value_t = 100_000)]
    accounts: u64,
    /// Clients of each side.
    #[arg(long, env = "ATLAS_BENCH_CLIENTS", default_value_t = 64)]
    clients: usize,
    /// Only atlas, for profiling.
    #[arg(long)]
    only_atlas: bool,
    /// Where the numbers are written as JSON.
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/postgres.json"))]
    json: PathBuf,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

// ---- atlas

struct AtlasSide {
    atlas: Atlas,
    table: TableRef,
    accounts: u64,
}

impl AtlasSide {
    async fn open(arguments: &Arguments, server: &PostgresKvs) -> Result<AtlasSide> {
        let table = TableRef::new("accounts")?;
        let config = AtlasConfig {
            namespace: "bench".to_owned(),
            key_value_service: KvsConfig::Postgres(server.clone()),
            ..AtlasConfig::default()
        };
        let atlas = Atlas::open_unserved(config, Duration::ZERO).await?;
        atlas.create_table(&table, &TableSpec::default()).await?;
        let mut random = StdRng::seed_from_u64(1);
        for first in (0..arguments.accounts).step_by(LOAD_BATCH as usize) {
            let rows: Vec<_> = (first..arguments.accounts.min(first + LOAD_BATCH))
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
        Ok(AtlasSide { atlas, table, accounts: arguments.accounts })
    }

    fn cell(account: u64) -> Cell {
        Cell::copy_from(key(account), "b")
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
        let cells = [AtlasSide::cell(transfer.from), AtlasSide::cell(transfer.to)];
        let values = tx.get_many(table, &cells).await?;
        let [Some(from_value), Some(to_value)] = &values[..] else { anyhow::bail!("an account is gone") };
        let (from_value, to_value) = transfer.apply(from_value, to_value)?;
        let [from, to] = cells;
        tx.put(table, from, from_value).await?;
        tx.put(table, to, to_value).await?;
        Ok(())
    }

    /// The sum over all accounts; closes the store.
    async fn close(self) -> Result<u64> {
        use futures::TryStreamExt;
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
        self.atlas.close().await?;
        Ok(sum)
    }
}

// ---- Postgres's own transactions

struct Session {
    client: Client,
    read: Statement,
    write: Statement,
}

impl Session {
    async fn open(server: &PostgresKvs) -> Result<Session> {
        let client = connect(server).await?;
        client.batch_execute("SET synchronous_commit = on").await?;
        let read = client.prepare("SELECT value FROM bench_own.accounts WHERE id = $1").await?;
        let write = client.prepare("UPDATE bench_own.accounts SET value = $2 WHERE id = $1").await?;
        Ok(Session { client, read, write })
    }

    async fn client(
        session: Arc<Mutex<Session>>,
        pipelined: bool,
        accounts: u64,
        until: Instant,
        mut random: StdRng,
    ) -> Result<Work> {
        let session = session.lock().await;
        let mut work = Work::none();
        while Instant::now() < until {
            let transfer = Transfer::draw(&mut random, accounts);
            let begun = Instant::now();
            let mut retries = 0;
            while !session.attempt(&transfer, pipelined).await? {
                retries += 1;
            }
            work.count(begun, retries);
        }
        Ok(work)
    }

    /// False if the server could not serialize it.
    async fn attempt(&self, transfer: &Transfer, pipelined: bool) -> Result<bool> {
        let done = if pipelined { self.in_three_trips(transfer).await } else { self.one_by_one(transfer).await };
        let Err(error) = done else { return Ok(true) };
        let state = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
        if state == Some(&SqlState::T_R_SERIALIZATION_FAILURE) || state == Some(&SqlState::T_R_DEADLOCK_DETECTED) {
            self.client.batch_execute("ROLLBACK").await?;
            return Ok(false);
        }
        Err(error)
    }

    async fn one_by_one(&self, transfer: &Transfer) -> Result<()> {
        let (from, to) = (key(transfer.from), key(transfer.to));
        self.client.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE").await?;
        let from_value: Vec<u8> = self.client.query_one(&self.read, &[&&from[..]]).await?.get(0);
        let to_value: Vec<u8> = self.client.query_one(&self.read, &[&&to[..]]).await?.get(0);
        let (from_value, to_value) = transfer.apply(&from_value, &to_value)?;
        self.client.execute(&self.write, &[&&from[..], &from_value]).await?;
        self.client.execute(&self.write, &[&&to[..], &to_value]).await?;
        Ok(self.client.batch_execute("COMMIT").await?)
    }

    async fn in_three_trips(&self, transfer: &Transfer) -> Result<()> {
        let (from, to) = (key(transfer.from), key(transfer.to));
        let (from, to) = (&from[..], &to[..]);
        let read = async |id: &[u8]| self.client.query_one(&self.read, &[&id]).await;
        let begin = self.client.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE");
        let ((), from_row, to_row) = futures::try_join!(begin, read(from), read(to))?;
        let (from_value, to_value) = transfer.apply(from_row.get(0), to_row.get(0))?;
        let write = async |id: &[u8], value: &[u8]| self.client.execute(&self.write, &[&id, &value]).await;
        futures::try_join!(write(from, &from_value), write(to, &to_value))?;
        Ok(self.client.batch_execute("COMMIT").await?)
    }
}

struct OwnSide {
    sessions: Vec<Arc<Mutex<Session>>>,
    accounts: u64,
}

impl OwnSide {
    async fn open(arguments: &Arguments, server: &PostgresKvs) -> Result<OwnSide> {
        let client = connect(server).await?;
        client
            .batch_execute(
                "CREATE SCHEMA bench_own; \
                 CREATE TABLE bench_own.accounts (id bytea PRIMARY KEY, value bytea NOT NULL)",
            )
            .await?;
        let mut random = StdRng::seed_from_u64(1);
        for first in (0..arguments.accounts).step_by(LOAD_BATCH as usize) {
            let last = arguments.accounts.min(first + LOAD_BATCH);
            let ids: Vec<Vec<u8>> = (first..last).map(|account| key(account).to_vec()).collect();
            let values: Vec<Vec<u8>> = (first..last).map(|_| opening_value(&mut random, VALUE_LEN)).collect();
            let sql = "INSERT INTO bench_own.accounts SELECT * FROM unnest($1::bytea[], $2::bytea[])";
            client.execute(sql, &[&ids, &values]).await?;
        }
        client.batch_execute("VACUUM ANALYZE bench_own.accounts").await?;
        let mut sessions = Vec::new();
        for _ in 0..arguments.clients {
            sessions.push(Arc::new(Mutex::new(Session::open(server).await?)));
        }
        Ok(OwnSide { sessions, accounts: arguments.accounts })
    }

    async fn close(self, server: &PostgresKvs) -> Result<u64> {
        let client = connect(server).await?;
        let rows = client.query("SELECT value FROM bench_own.accounts", &[]).await?;
        ensure!(rows.len() as u64 == self.accounts, "Postgres has {} accounts, not {}", rows.len(), self.accounts);
        rows.iter().map(|row| balance(row.get(0))).sum()
    }
}

// ---- rounds

struct Sides {
    runtime: tokio::runtime::Runtime,
    watcher: Client,
    atlas: AtlasSide,
    own: OwnSide,
    clients: usize,
}

impl Sides {
    fn open(arguments: &Arguments, server: &PostgresKvs) -> Result<Sides> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (watcher, atlas, own) = runtime.block_on(async {
            let watcher = connect(server).await?;
            let atlas = AtlasSide::open(arguments, server).await?;
            anyhow::Ok((watcher, atlas, OwnSide::open(arguments, server).await?))
        })?;
        Ok(Sides { runtime, watcher, atlas, own, clients: arguments.clients })
    }

    /// One of the three arms: atlas, statements one by one, statements in three trips.
    fn run(&self, arm: usize, length: Duration, seed: u64) -> Result<Work> {
        self.runtime.block_on(async {
            let until = Instant::now() + length;
            let clients: Vec<_> = (0..self.clients)
                .map(|client| {
                    let random = StdRng::seed_from_u64(seed + client as u64);
                    if arm == 0 {
                        let (atlas, table) = (self.atlas.atlas.clone(), self.atlas.table.clone());
                        tokio::spawn(AtlasSide::client(atlas, table, self.atlas.accounts, until, random))
                    } else {
                        let session = self.own.sessions[client].clone();
                        tokio::spawn(Session::client(session, arm == 2, self.own.accounts, until, random))
                    }
                })
                .collect();
            let mut work = Work::none();
            for client in clients {
                work = work.add(&client.await??);
            }
            Ok(work)
        })
    }

    /// How often the server has synced its log.
    fn syncs(&self) -> Result<u64> {
        self.runtime.block_on(async {
            let row = self.watcher.query_one("SELECT wal_sync FROM pg_stat_wal", &[]).await?;
            Ok(u64::try_from(row.get::<_, i64>(0))?)
        })
    }

    fn setting(&self, name: &str) -> Result<String> {
        let sql = "SELECT current_setting($1)";
        self.runtime.block_on(async { Ok(self.watcher.query_one(sql, &[&name]).await?.get(0)) })
    }

    fn close(self, server: &PostgresKvs) -> Result<[(&'static str, u64); 2]> {
        let Sides { runtime, atlas, own, .. } = self;
        runtime.block_on(async { Ok([("atlas", atlas.close().await?), ("Postgres", own.close(server).await?)]) })
    }
}

#[derive(Debug, serde::Serialize)]
struct Report {
    atlas: String,
    commit_mode: String,
    postgres: String,
    fsync: String,
    #[serde(flatten)]
    machine: Machine,
    seconds: f64,
    accounts: u64,
    value_bytes: usize,
    clients: usize,
    arms: Vec<Arm>,
    yardstick: Option<String>,
    ratios: Vec<f64>,
    median_ratio: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let server = server();
    let sides = Sides::open(&arguments, &server)?;
    let mut report = Report {
        atlas: env!("CARGO_PKG_VERSION").to_owned(),
        commit_mode: sides.atlas.atlas.transactions().commit_mode().to_owned(),
        postgres: sides.setting("server_version")?,
        fsync: sides.setting("fsync")?,
        machine: Machine::look(),
        seconds: arguments.seconds,
        accounts: arguments.accounts,
        value_bytes: VALUE_LEN,
        clients: arguments.clients,
        arms: vec![Arm::new(format!("atlas, {} tasks", arguments.clients))],
        yardstick: None,
        ratios: Vec::new(),
        median_ratio: f64::NAN,
    };
    println!("atlas {} ({}), PostgreSQL {}, fsync {}", report.atlas, report.commit_mode, report.postgres, report.fsync);
    println!("{}", report.machine);
    if !arguments.only_atlas {
        report.arms.push(Arm::new(format!("SERIALIZABLE, {} clients, statement by statement", arguments.clients)));
        report.arms.push(Arm::new(format!("SERIALIZABLE, {} clients, pipelined", arguments.clients)));
    }
    let length = Duration::from_secs_f64(arguments.seconds);
    for arm in 0..report.arms.len() {
        sides.run(arm, length.min(Duration::from_secs(2)), 7)?;
    }
    for round in 0..arguments.rounds {
        let mut order: Vec<usize> = (0..report.arms.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for arm in order {
            let sample = measure(|| sides.syncs(), || sides.run(arm, length, u64::from(round + 1) << 32))?;
            eprintln!("  round {}: {}: {:.0} commits/s", round + 1, report.arms[arm].name, sample.commits_per_s);
            report.arms[arm].samples.push(sample);
        }
    }
    let expected = arguments.accounts * OPENING_BALANCE;
    for (name, sum) in sides.close(&server)? {
        ensure!(sum == expected, "{name} lost or made money: {sum} instead of {expected}");
    }
    println!("{}", table_of(&report.arms));
    println!("Cores used are those of this program, without the server's.");
    let yardstick = report.arms[1..].iter().max_by(|a, b| a.rate().total_cmp(&b.rate()));
    if let Some(yardstick) = yardstick {
        let pairs = report.arms[0].samples.iter().zip(&yardstick.samples);
        report.ratios = pairs.map(|(ours, theirs)| ours.commits_per_s / theirs.commits_per_s).collect();
        report.median_ratio = median(report.ratios.clone());
        let ratios: Vec<String> = report.ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        println!("atlas / {}: {} → median {:.2}", yardstick.name, ratios.join(" "), report.median_ratio);
        let verdict = if report.median_ratio >= BAR { "reached" } else { "missed" };
        println!("The bar of {BAR} is {verdict}. Both sums are right. Numbers: {}", arguments.json.display());
        report.yardstick = Some(yardstick.name.clone());
    }
    std::fs::write(&arguments.json, serde_json::to_string_pretty(&report)?)?;
    ensure!(report.yardstick.is_none() || report.median_ratio >= BAR, "the bar of {BAR} is missed");
    Ok(())
}
