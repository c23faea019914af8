//! The layer on simulated time: one thread, one seed, a store in memory that is slow and fails by chance.
//!
//! Nothing waits for real time. Each call to the store takes a time drawn from the seed, and the clock jumps to the next
//! moment at which somebody has something to do; so what comes between what is drawn as well, and the same seed
//! gives the same history, to the byte.

use crate::common::chaos::Chaos;
use crate::common::faulty::Faulty;
use crate::common::leaving::Leaving;
use crate::common::trouble::{Jumps, Scene, Times, Trouble, watcher};
use atlas::clock::Clock;
use atlas::config::{AtlasConfig, ByteSize, CommitModeChoice, KvsConfig};
use atlas::ops::Operations;
use atlas::transaction::{CommitStep, watch_steps};
use atlas::workload::{self, Kind, Plan};
use atlas_checker::{History, Options, Report, check};
use atlas_kvs_memory::MemoryStore;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};
use std::time::Duration;
use tokio::time::Instant;

/// A run that takes longer than this in simulated time has got stuck.
const STUCK_AFTER: Duration = Duration::from_secs(48 * 3600);
const LATENCY_MAX: Duration = Duration::from_millis(3);
/// How often one run meets with trouble at most.
const TROUBLES_MAX: u64 = 3;
const TROUBLE_TIMES: Times = Times {
    pause_max: Duration::from_millis(400),
    late_max: Duration::from_millis(400),
    // A client asks every five seconds whether its locks are still its own.
    refresh: Some(Duration::from_millis(5_500)),
};

/// What is simulated, all of it drawn from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) kind: Kind,
    pub(crate) step_by_step: bool,
    pub(crate) pipeline_size_max: u64,
    pub(crate) tasks: u32,
    pub(crate) commits: u64,
    pub(crate) faults_per_mille: u32,
    /// How long a request can be held up at most.
    pub(crate) late_max: Duration,
    /// How often the clock of leases jumps ahead of everybody.
    pub(crate) jumps_every: Option<Duration>,
    /// The store is one that several processes reach: owned by a lease, and a batch may come late.
    pub(crate) shared: bool,
    /// What commits meet with at one of their steps.
    pub(crate) trouble: Option<(CommitStep, Trouble)>,
}

#[allow(dead_code, reason = "each test file uses some of it")]
impl Scenario {
    pub(crate) fn of(seed: u64) -> Scenario {
        let mut random = StdRng::seed_from_u64(seed);
        let kind = Kind::ALL[random.random_range(0..Kind::ALL.len())];
        Scenario {
            seed,
            kind,
            step_by_step: random.random_bool(0.6),
            pipeline_size_max: if random.random_bool(0.5) { random.random_range(0..600) } else { 1 << 20 },
            tasks: random.random_range(2..=7),
            commits: random.random_range(20..=70),
            faults_per_mille: [0, 5, 20, 40][random.random_range(0..4)],
            late_max: Duration::from_millis([20, 400, 10_000][random.random_range(0..3)]),
            jumps_every: random.random_bool(0.4).then(|| Duration::from_millis(random.random_range(150..2500))),
            shared: false,
            trouble: None,
        }
    }

    /// One field of the matrix: everything works but for the trouble at this step.
    pub(crate) fn with_trouble(
        seed: u64,
        kind: Kind,
        step_by_step: bool,
        (step, trouble): (CommitStep, Trouble),
    ) -> Scenario {
        let mut random = StdRng::seed_from_u64(seed);
        Scenario {
            seed,
            kind,
            step_by_step,
            // What can fail in part is put ahead of the pipeline.
            pipeline_size_max: match trouble {
                Trouble::AppliedPartly => 0,
                _ => [0, 300, 1 << 20][random.random_range(0..3)],
            },
            tasks: random.random_range(3..=6),
            commits: random.random_range(14..=24),
            faults_per_mille: 0,
            late_max: Duration::from_millis(20),
            jumps_every: None,
            shared: match trouble {
                // A batch that comes late takes a server in which it can wait.
                Trouble::AppliedLater => true,
                // Behind a fence all is written in batches, which are there as a whole or not at all.
                Trouble::AppliedPartly => false,
                _ => random.random_bool(0.5),
            },
            trouble: Some((step, trouble)),
        }
    }
}

/// What came of a simulation.
#[derive(Debug)]
#[allow(dead_code, reason = "each test file uses some of it")]
pub(crate) struct Simulated {
    pub(crate) history: Vec<u8>,
    pub(crate) report: Report,
    pub(crate) faults: u64,
    pub(crate) jumps: u64,
    /// How often the trouble of the scenario has happened.
    pub(crate) troubles: u64,
}

/// Runs a scenario to its end.
///
/// # Errors
/// What the run failed with, if it got no history to judge.
pub(crate) fn simulate(scenario: &Scenario) -> Result<Simulated, String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = directory.path().join("history.jsonl");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let ran = runtime.block_on(async { tokio::time::timeout(STUCK_AFTER, run(scenario, &path)).await });
    let Ran { faults, jumps, troubles } = ran.map_err(|_| "it got stuck".to_owned())??;
    let history = std::fs::read(&path).map_err(|error| error.to_string())?;
    let parsed = History::read(&history[..]).map_err(|error| error.to_string())?;
    let report = check(&parsed, &Options::default());
    Ok(Simulated { history, report, faults, jumps, troubles })
}

struct Ran {
    faults: u64,
    jumps: u64,
    troubles: u64,
}

thread_local! {
    /// The scene of the simulation that runs on this thread.
    static SCENE: RefCell<Option<Arc<Scene>>> = const { RefCell::new(None) };
}

async fn run(scenario: &Scenario, path: &Path) -> Result<Ran, String> {
    let clock = Arc::new(SimulatedClock::new());
    let memory = Arc::new(MemoryStore::new());
    let faulty = match scenario.shared {
        true => Faulty::shared(memory, Arc::new(Mutex::new("simulated".to_owned()))),
        false => Faulty::new(memory),
    };
    let mut config = AtlasConfig { key_value_service: KvsConfig::Memory {}, ..AtlasConfig::default() };
    config.transactions.commit_mode =
        if scenario.step_by_step { CommitModeChoice::StepByStep } else { CommitModeChoice::Pipeline };
    config.transactions.pipeline_size_max = ByteSize(scenario.pipeline_size_max);
    if scenario.seed.is_multiple_of(4) {
        config.transactions.cell_cache = ByteSize(0);
    }
    let atlas = atlas::Atlas::with_store_and_clock(config, Arc::new(faulty.clone()), clock.clone());
    let atlas = atlas.await.map_err(|error| error.to_string())?;
    let chaos = Chaos::new(scenario.seed, scenario.faults_per_mille).with_latency(LATENCY_MAX, scenario.late_max);
    let faults = chaos.injected();
    faulty.unleash(chaos);
    let plan = Plan {
        tasks: scenario.tasks,
        time: None,
        commits: Some(scenario.commits),
        seed: scenario.seed,
        history: Some(path.to_owned()),
        faults: Some(faults.clone()),
        ..Plan::new(scenario.kind)
    };
    let scene = scenario.trouble.map(|(step, trouble)| {
        let (seed, times) = (scenario.seed, TROUBLE_TIMES);
        Scene::new(seed, step, &[trouble], TROUBLES_MAX, times, &faulty, clock.clone(), &atlas)
    });
    let operations: Arc<dyn Operations> = match &scene {
        Some(scene) => Arc::new(Leaving { atlas: atlas.clone(), scene: scene.clone() }),
        None => Arc::new(atlas.clone()),
    };
    let _on_stage = scene.clone().map(OnStage::enter);
    let run = workload::run(operations, &plan, atlas::ops::no_progress());
    let ran = tokio::select! {
        biased;
        ran = run => ran,
        () = clock.jump_now_and_then(scenario) => unreachable!("it never ends"),
    };
    ran.map_err(|error| error.to_string())?;
    faulty.heal();
    atlas.close().await.map_err(|error| error.to_string())?;
    let troubles = scene.map_or(0, |scene| scene.happened().values().sum());
    Ok(Ran { faults: faults.load(Ordering::Relaxed), jumps: clock.jumps(), troubles })
}

/// The scene is that of this thread while this lives.
struct OnStage;

impl OnStage {
    fn enter(scene: Arc<Scene>) -> OnStage {
        static WATCHED: Once = Once::new();
        WATCHED.call_once(|| watch_steps(watcher(|| SCENE.with_borrow(Clone::clone))));
        SCENE.set(Some(scene));
        OnStage
    }
}

impl Drop for OnStage {
    fn drop(&mut self) {
        SCENE.set(None);
    }
}

/// A clock that runs with simulated time, and jumps ahead of it.
#[derive(Debug)]
struct SimulatedClock {
    began: Instant,
    ahead: Mutex<(Duration, u64)>,
}

impl SimulatedClock {
    fn new() -> SimulatedClock {
        SimulatedClock { began: Instant::now(), ahead: Mutex::default() }
    }

    fn jumps(&self) -> u64 {
        self.ahead.lock().1
    }

    /// As when everybody slept but the clock: leases run out that nobody had the time to renew.
    async fn jump_now_and_then(&self, scenario: &Scenario) {
        let Some(every) = scenario.jumps_every else { return std::future::pending().await };
        let mut random = StdRng::seed_from_u64(scenario.seed.wrapping_add(1));
        loop {
            tokio::time::sleep(every.mul_f64(random.random_range(0.1..2.0))).await;
            self.jump(Duration::from_secs(random.random_range(1..40)));
        }
    }
}

impl Jumps for SimulatedClock {
    fn jump(&self, by: Duration) {
        let mut ahead = self.ahead.lock();
        ahead.0 += by;
        ahead.1 += 1;
    }
}

/// The clock behind an `Arc`, as those who sleep by it want it.
impl Clock for SimulatedClock {
    fn now(&self) -> Duration {
        Duration::from_secs(1000) + self.began.elapsed() + self.ahead.lock().0
    }

    /// By simulated time only: a jump is noticed by who looks at the clock.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}
