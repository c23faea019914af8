//! Where a read is answered that RocksDB's memory does not answer: on the thread that asks, or on one that may wait.
//!
//! What is not in RocksDB's caches the system often has in its own, and then the read is over sooner than another thread has
//! begun with it. Whether it has can't be asked, but it is much as it was for the reads before. So all of them are timed: while
//! they are short they are made where they are asked for, and else where nobody is held up.
//!
//! Where memory hardly ever has the answer, asking it first is most of the work of a short read. Then it is asked now and then
//! only, to see whether that has changed.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A thread of the runtime is held up no longer than this, as far as can be foreseen.
const HERE_MAX: Duration = Duration::from_micros(100);
/// A store begins with this: its first reads go where they may wait.
const UNKNOWN: Duration = Duration::from_millis(1);
/// How much one that took longer counts: a few short ones make up for it.
const COUNTED_MAX: Duration = Duration::from_millis(2);
/// One read moves the mean by so much of its distance.
const SHARE: u64 = 8;
/// Where more of a thousand reads than this are not answered by memory, it is asked by one in so many.
const MOSTLY: u64 = 750;
const ASKED: u32 = 8;

/// How long reads have taken lately that went past RocksDB's memory.
#[derive(Debug)]
pub(crate) struct Misses {
    /// Of a cell, in nanoseconds. Two at the same time may count as one.
    mean: AtomicU64,
    /// Of a thousand reads that ask memory, how many it does not answer wholly.
    missed: AtomicU64,
    /// Counts reads, so that one in so many asks.
    turn: AtomicU32,
}

impl Default for Misses {
    fn default() -> Misses {
        Misses { mean: AtomicU64::new(nanos(UNKNOWN)), missed: AtomicU64::new(0), turn: AtomicU32::new(0) }
    }
}

impl Misses {
    /// Whether so many cells may be read on a thread that nobody should hold up.
    pub(crate) fn are_short(&self, cells: usize) -> bool {
        self.mean.load(Ordering::Relaxed).saturating_mul(cells as u64) <= nanos(HERE_MAX)
    }

    /// Whether memory need not be asked for so many cells: it would not answer, and the read is short.
    pub(crate) fn are_usual(&self, cells: usize) -> bool {
        self.missed.load(Ordering::Relaxed) > MOSTLY
            && self.are_short(cells)
            && !self.turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(ASKED)
    }

    /// Memory was asked, and has answered all or not.
    pub(crate) fn asked(&self, missed: bool) {
        moved(&self.missed, if missed { 1000 } else { 0 });
    }

    /// So many cells were read past the memory, which took so long.
    pub(crate) fn took(&self, cells: usize, time: Duration) {
        moved(&self.mean, (nanos(time) / (cells as u64).max(1)).min(nanos(COUNTED_MAX)));
    }

    /// As [`took`](Self::took), of a few cells that memory was not asked for. What it would have answered says nothing of files,
    /// and takes no such time.
    pub(crate) fn took_unasked(&self, cells: usize, time: Duration) {
        if time > HERE_MAX {
            self.took(cells, time);
        }
    }
}

fn moved(mean: &AtomicU64, to: u64) {
    let at = mean.load(Ordering::Relaxed);
    // Rounded up on the way up, so that it gets there.
    let moved = if to > at { at + (to - at).div_ceil(SHARE) } else { at - (at - to) / SHARE };
    mean.store(moved, Ordering::Relaxed);
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(times: &[(u64, usize)]) -> Misses {
        let misses = Misses::default();
        for &(micros, repeated) in times {
            for _ in 0..repeated {
                misses.took(1, Duration::from_micros(micros));
            }
        }
        misses
    }

    #[test]
    fn nothing_is_known_at_first() {
        assert!(!Misses::default().are_short(1));
        assert!(!after(&[(10, 3)]).are_short(1));
    }

    #[test]
    fn short_reads_are_made_here_and_many_of_them_are_not() {
        let misses = after(&[(10, 100)]);
        assert!(misses.are_short(1) && misses.are_short(5));
        assert!(!misses.are_short(20));
    }

    #[test]
    fn reads_that_wait_for_a_disk_go_elsewhere() {
        assert!(!after(&[(10, 100), (150, 30)]).are_short(1));
        assert!(!after(&[(150, 1000)]).are_short(1));
        assert!(after(&[(150, 100), (10, 30)]).are_short(1), "the system has them by now");
    }

    #[test]
    fn one_that_took_long_is_made_up_for_soon() {
        let misses = after(&[(10, 100), (10_000_000, 1)]);
        assert!(!misses.are_short(1));
        for _ in 0..20 {
            misses.took(1, Duration::from_micros(10));
        }
        assert!(misses.are_short(1));
    }

    #[test]
    fn memory_that_hardly_ever_answers_is_asked_now_and_then() {
        let misses = after(&[(10, 100)]);
        assert!((0..20).all(|_| !misses.are_usual(1)), "it was never asked");
        (0..50).for_each(|_| misses.asked(true));
        let unasked = (0..80).filter(|_| misses.are_usual(1)).count();
        assert_eq!(unasked, 70);
        assert!((0..20).all(|_| !misses.are_usual(1000)), "that many are not short");
        misses.took_unasked(1, Duration::from_micros(90));
        assert!((1..8).any(|_| misses.are_usual(1)), "perhaps memory had it");
        (0..30).for_each(|_| misses.took_unasked(1, Duration::from_millis(1)));
        assert!((0..20).all(|_| !misses.are_usual(1)), "the disk is slow");
        let misses = after(&[(10, 100)]);
        (0..50).for_each(|_| misses.asked(true));
        (0..5).for_each(|_| misses.asked(false));
        assert!((0..20).all(|_| !misses.are_usual(1)), "memory has them by now");
    }

    #[test]
    fn cells_that_are_read_together_count_by_the_cell() {
        let misses = Misses::default();
        for _ in 0..100 {
            misses.took(10, Duration::from_micros(100));
        }
        assert!(misses.are_short(5));
        for _ in 0..100 {
            misses.took(200, Duration::from_secs(1));
        }
        assert!(!misses.are_short(1), "5 ms each");
    }
}
