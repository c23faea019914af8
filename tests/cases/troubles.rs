//! Each step of a commit × each trouble on a real store: one run for each step, in which the troubles come one after the
//! other, each time under another workload. All fields of the matrix are played on simulated time
//! (`tests/simulation_matrix.rs`).
//!
//! `ATLAS_TROUBLE_ROUNDS=N` plays all of it N times, each time under the next workload: 10 times is every trouble at every
//! step of every workload.

use crate::common::faulty::Faulty;
use crate::common::leaving::Leaving;
use crate::common::trouble::{Jumps, Scene, Times, Trouble, watcher};
use crate::common::*;
use atlas::Atlas;
use atlas::clock::{BootClock, Clock};
use atlas::kvs_api::Ownership;
use atlas::transaction::{CommitStep, watch_steps};
use atlas::workload::{self, Kind, Plan};
use atlas_checker::{History, Options, check};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::BufReader;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const TASKS: u32 = 6;
const TIMES: Times =
    Times { pause_max: Duration::from_millis(150), late_max: Duration::from_millis(100), refresh: None };
/// Short, so that an owner whose clock has jumped has its lease back soon.
const LEASE: Duration = Duration::from_secs(1);

/// The scene that is played: fail points are those of the whole program, so there is one at a time.
static SCENE: Mutex<Option<Arc<Scene>>> = Mutex::new(None);

/// The clock of the machine, and what it jumped ahead.
#[derive(Debug, Default)]
struct JumpingClock {
    ahead: watch::Sender<Duration>,
}

impl Clock for JumpingClock {
    fn now(&self) -> Duration {
        BootClock.now() + *self.ahead.borrow()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut ahead = self.ahead.subscribe();
        let until = BootClock.now() + *ahead.borrow() + duration;
        Box::pin(async move {
            // Who sleeps wakes up with a jump, so that nobody waits for real seconds for a lease that has run out.
            tokio::select! {
                _ = ahead.wait_for(|ahead| BootClock.now() + *ahead >= until) => (),
                () = BootClock.sleep(duration) => (),
            }
        })
    }
}

impl Jumps for JumpingClock {
    fn jump(&self, by: Duration) {
        self.ahead.send_modify(|ahead| *ahead += by);
    }
}

/// Plays every trouble at every step on each of these lanes, `commits` in each run, which must be enough for one trouble
/// after the other.
pub(crate) async fn every_step_survives_every_trouble(lanes: &[Lane], commits: u64) {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| watch_steps(watcher(|| SCENE.lock().clone())));
    let rounds = std::env::var("ATLAS_TROUBLE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1);
    let mut seed: u64 = rand::random::<u64>() >> 8;
    let started = Instant::now();
    let mut happened: BTreeMap<(CommitStep, Trouble), u64> = BTreeMap::new();
    let mut impossible = BTreeMap::new();
    let first_kind = seed as usize % Kind::ALL.len();
    for number in 0..rounds * CommitStep::ALL.len() {
        let (round, place) = (number / CommitStep::ALL.len(), number % CommitStep::ALL.len());
        let step = CommitStep::ALL[place];
        for lane in lanes {
            seed += 1;
            let kind = Kind::ALL[(first_kind + place + round) % Kind::ALL.len()];
            for (trouble, times) in play(*lane, kind, step, seed, commits, &mut impossible).await {
                *happened.entry((step, trouble)).or_default() += times;
            }
        }
    }
    for step in CommitStep::ALL {
        for trouble in Trouble::ALL {
            let times = happened.get(&(step, trouble)).copied().unwrap_or(0);
            match impossible.get(&(step, trouble)) {
                Some(why) => eprintln!("{step:?} {trouble}: {times} ({why})"),
                None => assert!(times > 0, "{trouble} has never happened at {step:?}: {happened:#?}"),
            }
        }
    }
    eprintln!(
        "{lanes:?}: {} troubles at {} steps in {} ms, {} pairs can't occur",
        happened.values().sum::<u64>(),
        CommitStep::ALL.len(),
        started.elapsed().as_millis(),
        impossible.len(),
    );
}

async fn play(
    lane: Lane,
    kind: Kind,
    step: CommitStep,
    seed: u64,
    commits: u64,
    impossible: &mut BTreeMap<(CommitStep, Trouble), &'static str>,
) -> BTreeMap<Trouble, u64> {
    // Shown when the test fails.
    eprintln!("{lane:?} {kind} {step:?}: seed {seed}");
    let place = Place::new(lane.store);
    let faulty = Faulty::new(place.open().await);
    let mut config = place.config(lane);
    config.leader.lease = LEASE;
    let clock = Arc::new(JumpingClock::default());
    let atlas = Atlas::with_store_and_clock(config, Arc::new(faulty.clone()), clock.clone());
    let atlas = atlas.await.expect("the store opens");
    let kvs = atlas.transactions().kvs();
    let fenced = kvs.capabilities().atomic_batch && matches!(kvs.ownership(), Ownership::Shared);
    let why_not = |trouble: Trouble| match trouble.is_impossible(step, lane.is_pipeline()) {
        None if trouble == Trouble::AppliedPartly && fenced && !lane.is_pipeline() => {
            Some("behind a fence all is written in batches, which are there as a whole or not at all")
        }
        why => why,
    };
    impossible.extend(Trouble::ALL.into_iter().filter_map(|trouble| Some(((step, trouble), why_not(trouble)?))));
    // Batches of the pipeline are there as a whole or not at all, and come late only where a server can hold them up: that
    // is for the lane in which everything is put ahead.
    let puts = !lane.is_pipeline() || matches!(lane.pipeline_size_max, SizeLimit::Bytes(0));
    let for_this_lane = |trouble: &Trouble| {
        why_not(*trouble).is_none() && (puts || !matches!(trouble, Trouble::AppliedPartly | Trouble::AppliedLater))
    };
    let troubles: Vec<Trouble> = Trouble::ALL.into_iter().filter(for_this_lane).collect();
    let scene = Scene::new(seed, step, &troubles, troubles.len() as u64, TIMES, &faulty, clock, &atlas);
    let path = place.dir.join("history.jsonl");
    let plan =
        Plan { tasks: TASKS, time: None, commits: Some(commits), seed, history: Some(path.clone()), ..Plan::new(kind) };
    let operations = Arc::new(Leaving { atlas: atlas.clone(), scene: scene.clone() });
    *SCENE.lock() = Some(scene.clone());
    let report = workload::run(operations, &plan, atlas::ops::no_progress()).await;
    *SCENE.lock() = None;
    faulty.heal();
    let report = report.expect("the workload runs");
    let history = History::read(BufReader::new(std::fs::File::open(&path).expect("there is a history")));
    let judged = check(&history.expect("the history can be read"), &Options::default());
    assert!(judged.is_clean(), "{lane:?} {kind} {step:?}, seed {seed}:\n{judged}");
    assert!(report.committed >= commits, "only {} committed", report.committed);
    atlas.close().await.expect("the store closes");
    scene.happened()
}
