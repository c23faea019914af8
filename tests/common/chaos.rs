//! Faults by chance: which call fails how is drawn from a seed, and counted.

use super::faulty::{Fault, Op};
use atlas::kvs_api::Ownership;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The longest a call is held up, or comes after its answer was given up.
const LATE_MAX: Duration = Duration::from_millis(60);

/// A source of faults.
#[derive(Clone, Debug)]
pub struct Chaos {
    random: Arc<Mutex<StdRng>>,
    per_mille: u32,
    /// Every call takes up to so long.
    latency_max: Duration,
    /// The longest that a call is held up, or comes after its answer was given up.
    late_max: Duration,
    injected: Arc<AtomicU64>,
}

impl Chaos {
    /// So many of a thousand calls go wrong.
    pub fn new(seed: u64, per_mille: u32) -> Chaos {
        let random = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        Chaos { random, per_mille, latency_max: Duration::ZERO, late_max: LATE_MAX, injected: Arc::default() }
    }

    /// For simulated time: every call takes a while, so that others come in between.
    pub fn with_latency(self, latency_max: Duration, late_max: Duration) -> Chaos {
        Chaos { latency_max, late_max, ..self }
    }

    /// How long the next call takes.
    pub(super) fn latency(&self) -> Option<Duration> {
        let share = self.random.lock().random_range(0.0..1.0);
        (!self.latency_max.is_zero()).then(|| self.latency_max.mul_f64(share))
    }

    /// Behind so many cells a scan goes wrong.
    pub(super) fn cells_before_fault(&self) -> usize {
        self.random.lock().random_range(0..4)
    }

    /// How many went wrong so far.
    pub fn injected(&self) -> Arc<AtomicU64> {
        self.injected.clone()
    }

    pub(super) fn draw(&self, op: Op, ownership: &Ownership) -> Option<Fault> {
        let mut random = self.random.lock();
        if !random.random_ratio(self.per_mille, 1000) {
            return None;
        }
        let late = self.late_max.mul_f64(random.random_range(0.0..1.0));
        let fault = match op {
            // What only reads can't have been applied.
            Op::Get | Op::GetAtomic | Op::Versions | Op::Scan | Op::Reopen => match random.random_range(0..2) {
                0 => Fault::Refuse,
                _ => Fault::Delay(late),
            },
            _ => match random.random_range(0..6) {
                0 => Fault::Refuse,
                1 => Fault::Delay(late),
                2 => Fault::LostNotApplied,
                // Whoever owns a store alone has no server in which a request could wait.
                3 if matches!(ownership, Ownership::Shared) || op != Op::Apply => Fault::LostAppliedAfter(late),
                // A batch is applied wholly or not at all.
                4 if matches!(op, Op::Put | Op::DeleteVersions) => Fault::LostPartly(random.random_range(0.0..1.0)),
                _ => Fault::LostApplied,
            },
        };
        self.injected.fetch_add(1, Ordering::Relaxed);
        Some(fault)
    }
}
