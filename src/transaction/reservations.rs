//! Cells that are kept free for a large transaction which lost its conflicts too often.

use super::window::ConflictKey;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// A reservation lasts twice as long as the attempt that lost, within these bounds, if its owner does not come back.
const RESERVED_FOR_MIN: Duration = Duration::from_secs(5);
const RESERVED_FOR_MAX: Duration = Duration::from_secs(120);
/// How many cells are reserved at most, over all transactions.
const RESERVED_MAX: usize = 1 << 20;

/// A large transaction that lost a conflict before it entered.
#[derive(Debug)]
pub(crate) struct Loser {
    pub(crate) work_id: u64,
    pub(crate) losses: u32,
    pub(crate) keys: Vec<ConflictKey>,
    /// How long its attempt took; the next one takes about as long.
    pub(crate) took: Duration,
}

/// Cells that only one piece of work may write for a while.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    by_cell: HashMap<u64, u64>,
    by_work: HashMap<u64, (Instant, Vec<u64>)>,
}

impl Reservations {
    pub(super) fn is_for_another(&self, hash: u64, work_id: u64) -> bool {
        let Some(owner) = self.by_cell.get(&hash).filter(|owner| **owner != work_id) else { return false };
        self.by_work.get(owner).is_some_and(|(until, _)| *until > Instant::now())
    }

    /// Reserves all cells of a loser, or none: two that held a part each of what both need would refuse each other
    /// for ever. For the same reason a loser gives up what was reserved for its last attempt before anything else.
    pub(super) fn add(&mut self, loser: &Loser) {
        self.forget_expired();
        self.remove(loser.work_id);
        let full = self.by_cell.len() + loser.keys.len() > RESERVED_MAX;
        if full || loser.keys.iter().any(|key| self.by_cell.contains_key(&key.hash)) {
            return;
        }
        let cells: Vec<u64> = loser.keys.iter().map(|key| key.hash).collect();
        self.by_cell.extend(cells.iter().map(|hash| (*hash, loser.work_id)));
        let span = loser.took.saturating_mul(2).clamp(RESERVED_FOR_MIN, RESERVED_FOR_MAX);
        self.by_work.insert(loser.work_id, (Instant::now() + span, cells));
    }

    pub(super) fn remove(&mut self, work_id: u64) {
        if let Some((_, cells)) = self.by_work.remove(&work_id) {
            for hash in cells {
                self.by_cell.remove(&hash);
            }
        }
    }

    fn forget_expired(&mut self) {
        let now = Instant::now();
        let expired: Vec<u64> =
            self.by_work.iter().filter(|(_, (until, _))| *until <= now).map(|(work_id, _)| *work_id).collect();
        for work_id in expired {
            self.remove(work_id);
        }
    }
}
