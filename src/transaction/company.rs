//! Waiting for company before a group of commits takes off.
//!
//! Who is answered comes again soon. Where a sync takes much longer than that, the first who comes again would take off with
//! hardly anybody, and all others would stand behind a sync that is for a few:
//!
//! ```text
//!   60 ── sync ──┤ 4 ── sync ──┤ 60 ── sync ──┤ 4 ── sync ──┤       two syncs for 64 commits
//!   64 ── sync ──┤ wait ── 64 ── sync ──┤ wait ── 64 ── sync ──┤     one
//! ```
//!
//! So the leader waits for as many as it has just answered, for a part of what it took the group to land. Who does not come again
//! is not waited for again and again: after a wait in vain a group takes off at once, and twice as many after the next.
//!
//! What a group took is measured from its take-off to its landing. Of one with few rows that is the disk; one with many says
//! nothing of it, and nobody is waited for after it.

use std::time::{Duration, Instant};

/// Where a group lands sooner than this, whoever is on his way comes while the next one flies.
const SLOW: Duration = Duration::from_millis(1);
/// To write more rows than this takes about as long as a slow disk does.
const ROWS_MAX: usize = 1_000;
/// The longest wait, but for what the system makes of giving way.
const PATIENCE_MAX: Duration = Duration::from_millis(1);
/// How many groups take off at once after a wait in vain, at most.
const REST_MAX: u32 = 1024;

/// Whom the leader waits for.
#[derive(Debug)]
pub(super) struct Company {
    /// How many were answered when the last group landed.
    answered: usize,
    patience: Duration,
    /// So many groups take off at once.
    rest: u32,
    /// How many after the next wait in vain.
    next_rest: u32,
}

impl Default for Company {
    fn default() -> Company {
        Company { answered: 0, patience: Duration::ZERO, rest: 0, next_rest: 1 }
    }
}

/// A wait, which begins when it is first asked about.
#[derive(Debug)]
pub(super) struct Wait {
    wanted: usize,
    patience: Duration,
    until: Option<Instant>,
}

impl Company {
    /// A group of so many commits, of which so many rows were written, has landed, so long after it took off.
    pub(super) fn landed(&mut self, commits: usize, rows: usize, took: Duration) {
        self.answered = commits;
        let is_slow = took >= SLOW && rows <= ROWS_MAX;
        self.patience = if is_slow { (took / 2).min(PATIENCE_MAX) } else { Duration::ZERO };
    }

    /// Whom the next group waits for; nobody unless it may.
    pub(super) fn wait(&mut self, may: bool) -> Wait {
        let may = may && atlas_kvs::may_wait() && !self.patience.is_zero();
        let rests = may && self.rest > 0;
        if rests {
            self.rest -= 1;
        }
        let wanted = if may && !rests { self.answered } else { 0 };
        Wait { wanted, patience: self.patience, until: None }
    }

    /// How many have come.
    pub(super) fn waited(&mut self, wait: Wait, came: usize) {
        if wait.until.is_none() {
            return;
        }
        // Who takes off has come anyway.
        if came * 2 <= wait.wanted {
            self.rest = self.next_rest;
            self.next_rest = (self.next_rest * 2).min(REST_MAX);
        } else {
            self.next_rest = 1;
        }
    }
}

impl Wait {
    /// Whether to go on waiting, when so many have come.
    pub(super) fn goes_on(&mut self, came: usize) -> bool {
        if came >= self.wanted {
            return false;
        }
        let now = Instant::now();
        now < *self.until.get_or_insert(now + self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    /// Whether the next group waits, of which so many come.
    fn waits(company: &mut Company, came: usize) -> bool {
        // As the leader's thread does.
        atlas_kvs::allow_waiting();
        let mut wait = company.wait(true);
        let waits = wait.goes_on(0);
        company.waited(wait, came);
        waits
    }

    #[test]
    fn as_many_as_were_answered_are_waited_for_where_a_sync_takes_long() {
        let mut company = Company::default();
        assert!(!waits(&mut company, 1), "nobody was answered");
        company.landed(10, ROWS_MAX, SLOW - Duration::from_nanos(1));
        assert!(!waits(&mut company, 1), "whoever is on his way comes meanwhile");
        company.landed(10, ROWS_MAX, LONG);
        let mut wait = company.wait(true);
        assert_eq!(wait.patience, PATIENCE_MAX);
        assert!(wait.goes_on(9) && !wait.goes_on(10));
        assert!(!company.wait(false).goes_on(0), "nothing is synced, or something is on its way");
        company.landed(10, 0, SLOW);
        assert_eq!(company.wait(true).patience, SLOW / 2);
        company.landed(10, ROWS_MAX + 1, LONG);
        assert!(!waits(&mut company, 1), "it was long because it was large");
    }

    #[test]
    fn a_wait_ends() {
        let mut wait = Wait { wanted: 2, patience: Duration::ZERO, until: None };
        assert!(!wait.goes_on(1));
    }

    #[test]
    fn who_does_not_come_again_is_waited_for_less_and_less() {
        let mut company = Company::default();
        company.landed(10, 0, LONG);
        let groups: String = (0..20).map(|_| if waits(&mut company, 4) { 'w' } else { '.' }).collect();
        assert_eq!(groups, "w.w..w....w........w");
        while !waits(&mut company, 6) {}
        assert!(waits(&mut company, 6), "more than half of them have come");
        company.landed(2, 0, LONG);
        let groups: String = (0..6).map(|_| if waits(&mut company, 1) { 'w' } else { '.' }).collect();
        assert_eq!(groups, "w.w..w", "nobody but the one who takes off");
    }
}
