//! Trouble at a chosen step of a commit: the client stands still, its locks are gone, a clock jumps, the store fails.
//!
//! ```text
//!   commit ── reaches a step ──> Scene ─┬─ the commit stands there while the others go on
//!                                       ├─ the store does something to the very next call
//!                                       ├─ locks are taken away, the clock of leases jumps
//!                                       └─ whoever called `commit` goes away
//! ```
//!
//! Each trouble is counted when it really happened, so that a test can say that none was left out.

use super::faulty::{Fault, Faulty};
use atlas::clock::Clock;
use atlas::lock::{LockDescriptor, LockService};
use atlas::transaction::{CommitStep, StepWatcher};
use atlas::{Atlas, Timestamp};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// What happens when a commit has reached the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// The client stands still, and the clock of leases runs on until all of its locks are lost. Others go on.
    Pause,
    /// The service takes the commit's locks away; the client finds out as it would from its next refresh.
    LostLocks,
    /// The clock of leases jumps ahead of everybody.
    ClockJump,
    /// The store refuses the next call.
    Refused,
    /// The next call takes long.
    Delayed,
    /// The next write is applied, and reported as of unknown outcome.
    LostApplied,
    /// The next write is not applied, and reported as of unknown outcome.
    LostNotApplied,
    /// The next write is reported as of unknown outcome, and applied later.
    AppliedLater,
    /// Of the next put a part is applied.
    AppliedPartly,
    /// The future that waits for the commit is dropped.
    CallerGone,
}

impl Trouble {
    pub const ALL: [Trouble; 10] = [
        Trouble::Pause,
        Trouble::LostLocks,
        Trouble::ClockJump,
        Trouble::Refused,
        Trouble::Delayed,
        Trouble::LostApplied,
        Trouble::LostNotApplied,
        Trouble::AppliedLater,
        Trouble::AppliedPartly,
        Trouble::CallerGone,
    ];

    /// Why this can't happen at a step, where it can't. Everything else must be seen to have happened.
    pub fn is_impossible(self, step: CommitStep, pipeline: bool) -> Option<&'static str> {
        match self {
            Trouble::LostLocks if pipeline => Some("the pipeline takes no locks: its leader decides alone"),
            Trouble::LostLocks if step < CommitStep::Lock => Some("locks are taken in step 2"),
            _ => None,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A clock that can be made to jump.
pub trait Jumps: Clock {
    /// Moves time ahead of everybody.
    fn jump(&self, ahead: Duration);
}

/// How long things take where they happen.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long a client stands still, at most.
    pub pause_max: Duration,
    /// How long a call is held up, or comes after its answer was given up, at most.
    pub late_max: Duration,
    /// A client whose locks were taken away stands until it has found out. `None`: the clock jumps so far that it must
    /// believe them lost, and all the others with it.
    pub refresh: Option<Duration>,
}

/// One run in which commits meet with trouble at one step.
pub struct Scene {
    step: CommitStep,
    /// One after the other, and from the first again.
    troubles: Vec<Trouble>,
    /// So many commits pass between one and the next.
    spared: u64,
    /// After so many the rest is left alone: where everybody loses answers nothing can be told any more.
    times_max: u64,
    times: Times,
    faulty: Faulty,
    clock: Arc<dyn Jumps>,
    locks: Arc<LockService>,
    state: Mutex<State>,
    happened: BTreeMap<Trouble, Arc<AtomicU64>>,
    /// Whose callers have gone away.
    gone: watch::Sender<BTreeSet<Timestamp>>,
}

struct State {
    random: StdRng,
    reached: u64,
    /// How many troubles there were.
    turn: u64,
}

impl Scene {
    /// `times_max` troubles, drawn from the seed, at every `spared`-th commit or so that reaches the step.
    #[allow(clippy::too_many_arguments, reason = "a scene is what it is made of")]
    pub fn new(
        seed: u64,
        step: CommitStep,
        troubles: &[Trouble],
        times_max: u64,
        times: Times,
        faulty: &Faulty,
        clock: Arc<dyn Jumps>,
        atlas: &Atlas,
    ) -> Arc<Scene> {
        let mut random = StdRng::seed_from_u64(seed ^ 0x7472_6f75_626c_6521);
        Arc::new(Scene {
            step,
            troubles: troubles.to_vec(),
            spared: if troubles.len() > 1 { 1 } else { random.random_range(2..=4) },
            times_max,
            times,
            faulty: faulty.clone(),
            clock,
            locks: atlas.transactions().locks().clone(),
            state: Mutex::new(State { random, reached: 0, turn: 0 }),
            happened: troubles.iter().map(|trouble| (*trouble, Arc::default())).collect(),
            gone: watch::Sender::default(),
        })
    }

    /// How often each trouble has happened.
    pub fn happened(&self) -> BTreeMap<Trouble, u64> {
        self.happened.iter().map(|(trouble, count)| (*trouble, count.load(Ordering::Relaxed))).collect()
    }

    /// How often commits have reached the step.
    pub fn reached(&self) -> u64 {
        self.state.lock().reached
    }

    /// Ends when the caller of this commit goes away.
    pub async fn gone(&self, start_ts: Timestamp) {
        let mut gone = self.gone.subscribe();
        if gone.wait_for(|gone| gone.contains(&start_ts)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What [`watch_steps`](atlas::transaction::watch_steps) is given, by way of whoever knows the scene.
    pub fn on_reach(self: &Arc<Self>, step: CommitStep, start_ts: Timestamp) -> Option<BoxFuture<'static, ()>> {
        if step != self.step {
            return None;
        }
        // Until what is to go wrong is armed: of two commits that come at the same time the second would arm something
        // else in its place.
        let mut state = self.state.lock();
        state.reached += 1;
        let spared = !state.reached.is_multiple_of(self.spared) || state.turn >= self.times_max;
        // What the store is to do next is waited for.
        if spared || self.faulty.is_armed() {
            return None;
        }
        let turn = usize::try_from(state.turn).expect("a small number");
        let trouble = self.troubles[turn % self.troubles.len()];
        if trouble == Trouble::LostLocks && !self.take_locks_away(start_ts) {
            return None; // They were lost already, by a jump of the clock: the next commit has some.
        }
        state.turn += 1;
        let share = state.random.random_range(0.0..1.0);
        let count = self.happened[&trouble].clone();
        let late = self.times.late_max.mul_f64(share);
        let fault = match trouble {
            Trouble::Pause => return Some(self.clone().pause(count, share).boxed()),
            Trouble::LostLocks => {
                count.fetch_add(1, Ordering::Relaxed);
                match self.times.refresh {
                    Some(refresh) => return Some(tokio::time::sleep(refresh).boxed()),
                    None => self.clock.jump(self.locks.lease() * 3 / 4),
                }
                return None;
            }
            Trouble::ClockJump => {
                count.fetch_add(1, Ordering::Relaxed);
                self.clock.jump(Duration::from_secs(1) + Duration::from_secs(40).mul_f64(share));
                return None;
            }
            Trouble::CallerGone => {
                count.fetch_add(1, Ordering::Relaxed);
                self.gone.send_if_modified(|gone| gone.insert(start_ts));
                // Whoever waits gets the time to go away before anything else is done here.
                return Some(tokio::task::yield_now().boxed());
            }
            Trouble::Refused => Fault::Refuse,
            Trouble::Delayed => Fault::Delay(late),
            Trouble::LostApplied => Fault::LostApplied,
            Trouble::LostNotApplied => Fault::LostNotApplied,
            Trouble::AppliedLater => Fault::LostAppliedAfter(late),
            Trouble::AppliedPartly => Fault::LostPartly(share),
        };
        self.faulty.arm(fault, count);
        None
    }

    async fn pause(self: Arc<Self>, count: Arc<AtomicU64>, share: f64) {
        count.fetch_add(1, Ordering::Relaxed);
        self.clock.jump(self.locks.lease() + Duration::from_secs(20).mul_f64(share));
        tokio::time::sleep(self.times.pause_max.mul_f64(share)).await;
    }

    /// Whether the commit held any.
    fn take_locks_away(&self, start_ts: Timestamp) -> bool {
        let own = LockDescriptor::transaction(start_ts);
        let held = self.locks.holders().into_iter().find(|holder| holder.descriptor == own);
        held.is_some_and(|held| !self.locks.unlock(&[held.token]).is_empty())
    }
}

/// A watcher that asks the scene which `scene` finds, if any.
pub fn watcher(scene: impl Fn() -> Option<Arc<Scene>> + Send + Sync + 'static) -> StepWatcher {
    Arc::new(move |step, start_ts| scene()?.on_reach(step, start_ts))
}
