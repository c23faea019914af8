//! Live backup and restore, beside copying the same bytes by the tools that everyone has.
//!
//! A copy is made durable here as a backup is: every file of it is synced before the clock stops. `cp` without that is
//! told as well. The store is open and at rest while it is copied; what a running backup costs writers is measured
//! apart.
//!
//! On Postgres the yardsticks are `pg_dump` and `pg_restore`, see [`on_postgres`].

mod on_postgres;

use crate::bars;
use crate::contenders::CACHE_BYTES;
use crate::contenders::atlas::{Handle, on_rocksdb, runtime};
use crate::contenders::postgres;
use crate::drive::tasks;
use crate::keys::{Keys, Spread};
use crate::machine::size_of;
use crate::measure::{median, settle};
use crate::options::Plan;
use crate::workload::{End, Job, Population, Workload};
use anyhow::{Context, Result, ensure};
use atlas::Atlas;
use atlas::ops::{BackupInfo, BackupRequest, Operations, no_progress};
use atlas::schema::ConflictHandler;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const VALUE_LEN: usize = 1024;
const WRITERS: usize = 8;
/// How fast backups go that leave the machine to writers, in bytes a second.
const RATE_LIMIT: u64 = 50 << 20;
const LOADERS: usize = 4;
/// How much smaller the store is with which the time of the snapshot is compared.
const SMALLER: u64 = 16;
/// How much longer the snapshot of the large store may take.
const SNAPSHOT_RATIO: f64 = 2.0;
/// Shorter times are not told apart, in milliseconds.
const SNAPSHOT_FLOOR_MS: f64 = 20.0;

#[derive(Debug, Serialize)]
pub(crate) struct Backups {
    pub(crate) store_bytes: u64,
    pub(crate) backup_bytes: u64,
    pub(crate) ways: Vec<Timed>,
    /// How long the store's own snapshot took, in milliseconds: of a small store, and of this one.
    pub(crate) snapshot_ms: [f64; 2],
    /// Writes in a second before, during and after a backup, each round by itself.
    pub(crate) writers: Vec<[f64; 3]>,
    pub(crate) checks: Vec<Check>,
    /// The same on a Postgres server.
    pub(crate) postgres: Option<Vec<Timed>>,
}

/// A way to copy, over all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Timed {
    pub(crate) way: String,
    pub(crate) seconds: Vec<f64>,
    pub(crate) mib_per_second: f64,
}

impl Timed {
    fn of(way: &str, bytes: u64, seconds: Vec<f64>) -> Timed {
        let mib_per_second = bytes as f64 / f64::from(1 << 20) / median(seconds.clone());
        Timed { way: way.to_owned(), seconds, mib_per_second }
    }
}

/// A number that has a bar.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) bar: f64,
    /// Above the bar, or not above it.
    pub(crate) at_least: bool,
}

impl Check {
    pub(crate) fn is_met(&self) -> bool {
        if self.at_least { self.value >= self.bar } else { self.value <= self.bar }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Cp,
    CpSynced,
    TarSynced,
    Backup,
    PortableBackup,
    CpBack,
    Restore,
    RestorePortable,
}

impl Way {
    const ALL: [Way; 8] = [
        Way::Cp,
        Way::CpSynced,
        Way::TarSynced,
        Way::Backup,
        Way::PortableBackup,
        Way::CpBack,
        Way::Restore,
        Way::RestorePortable,
    ];

    fn title(self) -> &'static str {
        match self {
            Way::Cp => "cp -r, not synced",
            Way::CpSynced => "cp -r, synced",
            Way::TarSynced => "tar, synced",
            Way::Backup => "atlas backup create",
            Way::PortableBackup => "atlas backup create --portable",
            Way::CpBack => "cp -r of the backup, synced",
            Way::Restore => "atlas backup restore",
            Way::RestorePortable => "atlas backup restore, portable",
        }
    }
}

pub(crate) fn run(plan: &Plan) -> Result<Backups> {
    let directory = plan.dir.join("backup");
    let runtime = runtime()?;
    let small = Bench::make(&runtime, directory.join("small"), plan.backup_bytes / SMALLER)?;
    let (small_ms, _) = small.snapshot_ms(plan)?;
    small.remove()?;

    let bench = Bench::make(&runtime, directory.join("large"), plan.backup_bytes)?;
    settle(plan.patience);
    let store_bytes = size_of(&bench.data())?;
    let (large_ms, backup_bytes) = bench.snapshot_ms(plan)?;
    let mut ways: Vec<(Way, Vec<f64>)> = Way::ALL.map(|way| (way, Vec::new())).into();
    for round in 0..plan.rounds {
        // One after the other in the same order: restores need what the backups made.
        for (way, seconds) in &mut ways {
            settle(plan.patience);
            bench.forget(*way)?;
            touch_memory(store_bytes + store_bytes / 4);
            let took = bench.copy(*way)?;
            eprintln!("  round {}: {}: {took:.2} s", round + 1, way.title());
            seconds.push(took);
        }
        bench.remove_copies()?;
    }
    let writers = bench.writers(plan)?;
    bench.remove()?;
    let postgres = if postgres::is_there() { Some(on_postgres::run(plan, &runtime)?) } else { None };

    let ratio = |theirs: Way, ours: Way| {
        let of = |way: Way| ways.iter().find(|(known, _)| *known == way).map_or(&[][..], |(_, seconds)| &seconds[..]);
        median(of(theirs).iter().zip(of(ours)).map(|(theirs, ours)| theirs / ours).collect())
    };
    let at_least = |what: &str, value: f64, bar: f64| Check { what: what.to_owned(), value, bar, at_least: true };
    let during = writers.iter().map(|[before, during, after]| during / f64::midpoint(*before, *after)).collect();
    let checks = vec![
        at_least("speed of backup, as a share of cp", ratio(Way::CpSynced, Way::Backup), bars::BACKUP),
        at_least("speed of portable backup", ratio(Way::CpSynced, Way::PortableBackup), bars::BACKUP),
        at_least("speed of restore", ratio(Way::CpBack, Way::Restore), bars::BACKUP),
        at_least("speed of portable restore", ratio(Way::CpBack, Way::RestorePortable), bars::BACKUP),
        at_least("speed of writers during a backup at 50 MiB/s", median(during), bars::WRITERS_DURING_BACKUP),
        Check {
            what: format!("time of the snapshot, as a multiple of that of a store of 1/{SMALLER} the size"),
            value: large_ms.max(SNAPSHOT_FLOOR_MS) / small_ms.max(SNAPSHOT_FLOOR_MS),
            bar: SNAPSHOT_RATIO,
            at_least: false,
        },
    ];
    let timed = |(way, seconds): (Way, Vec<f64>)| Timed::of(way.title(), store_bytes, seconds);
    Ok(Backups {
        store_bytes,
        backup_bytes,
        ways: ways.into_iter().map(timed).collect(),
        snapshot_ms: [small_ms, large_ms],
        writers,
        checks,
        postgres,
    })
}

/// A store with something in it, and where its copies go.
struct Bench<'a> {
    runtime: &'a Runtime,
    directory: PathBuf,
    handle: Handle,
    cells: u64,
}

impl<'a> Bench<'a> {
    fn make(runtime: &'a Runtime, directory: PathBuf, bytes: u64) -> Result<Bench<'a>> {
        std::fs::create_dir_all(&directory)?;
        let cells = (bytes / VALUE_LEN as u64).max(2);
        let config = on_rocksdb(&directory.join("data"), CACHE_BYTES, true);
        let open = || runtime.block_on(Handle::open(config.clone(), ConflictHandler::default()));
        let filled = open()?;
        tasks(runtime, std::iter::repeat_n(filled.clone(), LOADERS), &Job::fill(cells, VALUE_LEN), 1)?;
        // Opened again, it has written out its log: otherwise much would be copied twice, by `cp` alone.
        runtime.block_on(filled.atlas.close())?;
        drop(filled);
        Ok(Bench { runtime, handle: open()?, directory, cells })
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn repository(&self, portable: bool) -> PathBuf {
        self.directory.join(if portable { "portable" } else { "native" })
    }

    fn create(&self, repository: PathBuf, portable: bool) -> Result<BackupInfo> {
        let request = BackupRequest { repository, name: None, reason: None, portable, rate_limit: None };
        Ok(self.runtime.block_on(self.handle.atlas.backup_create(request, no_progress()))?)
    }

    /// How long the store's own snapshot takes, as the median over a few backups, and the size of one.
    fn snapshot_ms(&self, plan: &Plan) -> Result<(f64, u64)> {
        let repository = self.directory.join("snapshots");
        let (mut times, mut bytes) = (Vec::new(), 0);
        for _ in 0..plan.rounds.min(3) {
            let made = self.create(repository.clone(), false)?;
            times.push(made.snapshot_ms as f64);
            bytes = made.bytes;
        }
        std::fs::remove_dir_all(repository)?;
        Ok((median(times), bytes))
    }

    /// How long it took, in seconds.
    fn copy(&self, way: Way) -> Result<f64> {
        let (data, copy) = (self.data(), self.directory.join("copy"));
        let begun = Instant::now();
        match way {
            Way::Cp | Way::CpSynced => command("cp", &["-r".as_ref(), data.as_ref(), copy.as_ref()])?,
            Way::TarSynced => {
                let file = copy.join("data.tar");
                std::fs::create_dir(&copy)?;
                command("tar", &["-cf".as_ref(), file.as_ref(), "-C".as_ref(), data.as_ref(), ".".as_ref()])?;
            }
            Way::Backup => drop(self.create(self.repository(false), false)?),
            Way::PortableBackup => drop(self.create(self.repository(true), true)?),
            Way::CpBack => command("cp", &["-r".as_ref(), self.repository(false).as_ref(), copy.as_ref()])?,
            Way::Restore | Way::RestorePortable => {
                let repository = self.repository(way == Way::RestorePortable);
                let config = on_rocksdb(&copy, CACHE_BYTES, true);
                self.runtime.block_on(Atlas::restore(&config, &repository, "latest", no_progress()))?;
            }
        }
        if matches!(way, Way::CpSynced | Way::TarSynced | Way::CpBack) {
            sync(&copy)?;
        }
        let took = begun.elapsed().as_secs_f64();
        if copy.exists() {
            std::fs::remove_dir_all(&copy)?;
        }
        Ok(took)
    }

    /// Takes what will be copied back out of the system's cache: a backup is rarely restored right after it was made, and what
    /// is read first would pay for what is read next.
    fn forget(&self, way: Way) -> Result<()> {
        match way {
            Way::CpBack | Way::Restore => forget(&self.repository(false)),
            Way::RestorePortable => forget(&self.repository(true)),
            Way::Cp | Way::CpSynced | Way::TarSynced | Way::Backup | Way::PortableBackup => Ok(()),
        }
    }

    fn remove_copies(&self) -> Result<()> {
        for portable in [false, true] {
            std::fs::remove_dir_all(self.repository(portable))?;
        }
        Ok(())
    }

    /// Updates in a second by a few clients: before, during and after backups that follow each other.
    fn writers(&self, plan: &Plan) -> Result<Vec<[f64; 3]>> {
        let mut rounds = Vec::new();
        for round in 0..plan.rounds {
            let seed = (round as u64 + 1) << 32;
            settle(plan.patience);
            let before = self.update(plan.round, seed)?;
            let done = Arc::new(AtomicBool::new(false));
            let backups = {
                let (atlas, done, repository) =
                    (self.handle.atlas.clone(), done.clone(), self.directory.join(format!("during-{round}")));
                self.runtime.spawn(async move {
                    let mut made = 0;
                    while !done.load(Ordering::Relaxed) {
                        let request = BackupRequest {
                            repository: repository.clone(),
                            name: None,
                            reason: None,
                            portable: false,
                            rate_limit: Some(RATE_LIMIT),
                        };
                        atlas.backup_create(request, no_progress()).await?;
                        made += 1;
                    }
                    std::fs::remove_dir_all(repository)?;
                    anyhow::Ok(made)
                })
            };
            let during = self.update(plan.round, seed + 1)?;
            done.store(true, Ordering::Relaxed);
            ensure!(self.runtime.block_on(backups)?? > 0, "no backup was made");
            settle(plan.patience);
            let after = self.update(plan.round, seed + 2)?;
            eprintln!("  round {}: writers: {before:.0}/s, {during:.0}/s during a backup, {after:.0}/s", round + 1);
            rounds.push([before, during, after]);
        }
        Ok(rounds)
    }

    fn update(&self, length: Duration, seed: u64) -> Result<f64> {
        let begun = Instant::now();
        let job = Arc::new(Job {
            workload: Workload::Update,
            keys: Keys::new(Spread::Uniform, self.cells),
            population: Arc::new(Population::new(self.cells, VALUE_LEN)),
            end: End::At(begun + length),
        });
        let work = tasks(self.runtime, std::iter::repeat_n(self.handle.clone(), WRITERS), &job, seed)?;
        Ok(work.operations as f64 / begun.elapsed().as_secs_f64())
    }

    fn remove(self) -> Result<()> {
        self.runtime.block_on(self.handle.atlas.close())?;
        Ok(std::fs::remove_dir_all(&self.directory)?)
    }
}

/// Takes memory from the host of a virtual machine that takes back what lies unused: otherwise the first copy that needs it
/// would pay for it, and the ones behind would not.
fn touch_memory(bytes: u64) {
    let mut memory = vec![0u8; usize::try_from(bytes).unwrap_or(0)];
    memory.iter_mut().step_by(4096).for_each(|page| *page = 1);
    std::hint::black_box(&memory);
}

fn command(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().with_context(|| program.to_owned())?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}

/// Takes every file below a directory out of the system's cache.
fn forget(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            forget(&path)?;
        } else {
            rustix::fs::fadvise(std::fs::File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// Syncs every file and directory below a directory.
fn sync(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            sync(&path)?;
        } else {
            std::fs::File::open(path)?.sync_all()?;
        }
    }
    Ok(std::fs::File::open(directory)?.sync_all()?)
}
