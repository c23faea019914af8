//! Write timestamps.
//!
//! Of two writes of one place Cassandra keeps the one with the greater write timestamp, and of a write and a deletion
//! with the same one the deletion. The oracle's timestamps can't be these: a version that was deleted may be put again
//! under its old timestamp, and the later write must win.
//!
//! So they are microseconds of the wall clock, with two corrections. In a process no two are the same and none is
//! smaller than an earlier one, whatever is done to the wall clock. And a deletion first reads the write timestamps of
//! what it is to delete, from all replicas, and is later than those: it wins over what it deletes even if that was
//! written by a process whose clock runs ahead.
//!
//! What rests on the clocks of two processes agreeing is only this: a version is deleted by one, and soon after put
//! *again* by another whose clock is behind. The transaction layer never does that, since no two transactions have one
//! start timestamp; but for sentinels, and those are read back.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A write timestamp, in microseconds since 1970.
pub(crate) type WriteTime = i64;

/// Hands out write timestamps.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    last: AtomicI64,
}

impl Clock {
    /// A write timestamp greater than every earlier and every observed one.
    pub(crate) fn next(&self) -> WriteTime {
        let now = wall();
        let next = |last: WriteTime| now.max(last.saturating_add(1));
        let last = self.last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| Some(next(last)));
        next(last.unwrap_or_default())
    }

    /// Takes note of a write timestamp that was met.
    pub(crate) fn observe(&self, met: WriteTime) {
        self.last.fetch_max(met, Ordering::SeqCst);
    }

    /// Write timestamps from now on are later than the wall clock tells by this.
    pub(crate) fn run_ahead(&self, by: Duration) {
        let by = WriteTime::try_from(by.as_micros()).unwrap_or(WriteTime::MAX);
        self.observe(wall().saturating_add(by));
    }

    /// Whether something written then is older than this.
    pub(crate) fn is_older(written: WriteTime, age: Duration) -> bool {
        let age = WriteTime::try_from(age.as_micros()).unwrap_or(WriteTime::MAX);
        written < wall().saturating_sub(age)
    }
}

fn wall() -> WriteTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WriteTime::try_from(now.as_micros()).unwrap_or(WriteTime::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_grow_and_stay_behind_nothing_that_was_met() {
        let clock = Clock::default();
        let first = clock.next();
        assert!(clock.next() > first);
        let ahead = first + 1_000_000_000;
        clock.observe(ahead);
        assert_eq!(clock.next(), ahead + 1);
        clock.observe(first);
        assert_eq!(clock.next(), ahead + 2);
    }
}
