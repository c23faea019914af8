//! The lease: the right to issue timestamps on a store that several processes reach.
//!
//! The owner changes its record now and then. A challenger that sees no change for a whole lease takes over. The owner
//! counts from *before* it asked for a change and stops at three quarters; the challenger counts from *after* it saw
//! the last one. Clocks need not agree, they only have to run about as fast, and through suspend:
//!
//! ```text
//!   owner        |- asks ──────────────── stops here (3/4)
//!   store             |- changed
//!   challenger             |- seen ───────────────────────────── takes over (1/1)
//! ```

use super::record::Contact;
use crate::clock::{BootClock, Clock};
use crate::planted::Mistake;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How to take over a store that several processes share. A store with one owner needs none of it.
#[derive(Clone, Debug)]
pub struct LeaseOptions {
    /// How long this owner may be silent before another one takes over.
    pub lease: Duration,
    /// How long a living owner is waited for before the store is refused. One that is dead is always waited for.
    pub wait: Duration,
    /// Wait without limit for the owner to end, until this is cancelled.
    pub standby: Option<CancellationToken>,
    /// Where this owner is found.
    pub contact: Contact,
    /// Take over although the numbers were issued on another database: for commands that set it right.
    pub allow_other_database: bool,
    /// The clock that leases are counted on.
    pub clock: Arc<dyn Clock>,
}

impl Default for LeaseOptions {
    fn default() -> LeaseOptions {
        LeaseOptions {
            lease: Duration::from_secs(10),
            wait: Duration::ZERO,
            standby: None,
            contact: Contact::this_process("atlas"),
            allow_other_database: false,
            clock: Arc::new(BootClock),
        }
    }
}

/// The incarnations that live in this process.
static OWN: Mutex<BTreeSet<Uuid>> = Mutex::new(BTreeSet::new());

/// Whether the holder of a record is an oracle of this process.
pub(super) fn is_of_this_process(holder: Uuid) -> bool {
    OWN.lock().contains(&holder)
}

/// The owner's side of a lease.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) length: Duration,
    pub(super) clock: Arc<dyn Clock>,
    holder: Uuid,
    // Where on the clock the right to answer ends. Moved forward by renewals, to zero when it is given up.
    until: watch::Sender<Duration>,
}

impl Lease {
    /// A lease that was asked for at `asked` and granted.
    pub(super) fn new(length: Duration, clock: Arc<dyn Clock>, holder: Uuid, asked: Duration) -> Lease {
        OWN.lock().insert(holder);
        Lease { length, clock, holder, until: watch::channel(asked + trusted(length)).0 }
    }

    /// Whether an answer may be given at this moment.
    pub(super) fn is_held(&self) -> bool {
        self.clock.now() < *self.until.borrow()
    }

    /// How long ago the last renewal was asked for. A lease that was given up is as old as can be.
    pub(super) fn age(&self) -> Duration {
        (self.clock.now() + trusted(self.length)).saturating_sub(*self.until.borrow())
    }

    /// The record was changed at our wish, for which we asked at `asked`.
    pub(super) fn renewed(&self, asked: Duration) {
        // Given up is given up: a renewal that was on its way brings nothing back.
        self.until.send_if_modified(|until| {
            let later = asked + trusted(self.length);
            let given_up = *until == Duration::ZERO && !Mistake::RenewWhatWasGivenUp.is_made();
            let moves = !given_up && later > *until;
            if moves {
                *until = later;
            }
            moves
        });
    }

    /// No more answers, whatever is left of it.
    pub(super) fn give_up(&self) {
        self.until.send_replace(Duration::ZERO);
    }

    /// Waits for a renewal, for a while only: until half a lease has gone by since it ran out. So one that stays away
    /// makes all who wait behind each other wait once. Tells whether it is held.
    pub(super) async fn wait_until_held(&self) -> bool {
        let mut until = self.until.subscribe();
        let patience = *until.borrow_and_update() + self.length / 2;
        let left = patience.saturating_sub(self.clock.now());
        tokio::select! {
            biased;
            _ = until.wait_for(|until| *until == Duration::ZERO || self.clock.now() < *until) => (),
            () = self.clock.sleep(left) => (),
        }
        self.is_held()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        OWN.lock().remove(&self.holder);
    }
}

/// How much of a lease its owner counts on: whichever clock runs a little fast, it stops before another one begins.
fn trusted(lease: Duration) -> Duration {
    lease * if Mistake::TrustForTooLong.is_made() { 8 } else { 3 } / 4
}

/// Time from one renewal to the next.
pub(super) fn renewal_period(lease: Duration) -> Duration {
    (lease / 6).max(Duration::from_millis(1))
}
