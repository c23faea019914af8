//! What the model remembers: the store, the clocks, the locks, and where everybody is.
//!
//! Reductions, all safe for the *safety* properties checked here:
//! * A version of a cell is identified by its writer's `start_ts`: every write is a distinct value.
//! * A crashed client is one that is never scheduled again. Each reachable state is therefore also a crash state, so
//!   an invariant that holds in every state holds after a crash at any step. `LoseLease` frees what it held.
//!   `Restart` is the crash of the whole process: memory (pipeline, locks, clients) is gone, unsynced writes too.
//! * A server that sleeps is one that is not scheduled for a while.
//! * "Wait for the lock" is an action that is not enabled while the lock is held.
//! * "Look up the entry, find none, `put_unless_exists(rolled back)`" is one action: a put that loses answers what a
//!   later look-up would have answered.
//!
//! Bounds are inclusive: a commit is visible when `commit_ts <= read_ts`. Timestamps are unique, so this equals the
//! exclusive bounds of the code.

use crate::rules::{Step, Turn};
use std::collections::BTreeMap;

pub(crate) type Ts = u8;
pub(crate) const CELLS: usize = 2;
pub(crate) const OWNERS: usize = 2;
/// The version that conservative sweep leaves below all others.
pub(crate) const SENTINEL: Ts = 0;
/// The first number that nobody may issue without moving the bound in the store.
pub(crate) const BOUND: Ts = 100;

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Entry {
    Committed(Ts),
    RolledBack,
}

/// Where a transaction is.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Pc {
    Idle,
    Reading,
    /// Before the turn with this index in `Rules::turns`.
    Commit(u8),
    /// In the pipeline, no commit timestamp yet.
    Queued,
    /// Admitted by the leader, which has drawn its commit timestamp.
    Admitted,
    Applied,
    Synced,
    Done,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Told {
    Nothing,
    Committed,
    Aborted,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(crate) struct Tx {
    pub(crate) pc: Pc,
    pub(crate) start: Ts,
    pub(crate) read_ts: Ts,
    pub(crate) commit: Ts,
    /// What each read returned: the cell and the writer's `start_ts` (0: absent).
    pub(crate) reads: Vec<(u8, Ts)>,
    /// Versions fetched by the read in progress, not yet resolved, oldest first.
    pub(crate) candidates: Option<Vec<Ts>>,
    /// Its entry of the sweep queue is in the store.
    pub(crate) queued: bool,
    /// One lease covers the registration, the cell locks and the lock on the own `start_ts`.
    pub(crate) lease: bool,
    /// Value at which this transaction is registered for `immutable_ts` (sweep scenarios only).
    pub(crate) registered: Option<Ts>,
    pub(crate) published: bool,
    pub(crate) told: Told,
    pub(crate) lost_lease: bool,
    // Ghost variables: read by properties only.
    pub(crate) rolled_back: bool,
    /// Rolled back by somebody else although it lived and had never lost a lock.
    pub(crate) robbed: bool,
    pub(crate) too_old: bool,
    /// Bit set of transactions acknowledged, or observed by somebody, before this one began.
    pub(crate) must_see: u8,
}

impl Tx {
    pub(crate) const NEW: Tx = Tx {
        pc: Pc::Idle,
        start: 0,
        read_ts: 0,
        commit: 0,
        reads: Vec::new(),
        candidates: None,
        queued: false,
        lease: false,
        registered: None,
        published: false,
        told: Told::Nothing,
        lost_lease: false,
        rolled_back: false,
        robbed: false,
        too_old: false,
        must_see: 0,
    };
}

#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub(crate) struct Backup {
    pub(crate) locked: bool,
    pub(crate) ts: Ts,
    pub(crate) settled: bool,
    pub(crate) cells: [Option<Vec<Ts>>; CELLS],
    /// Per transaction: the entry as copied, with its start timestamp.
    pub(crate) entries: Vec<Option<(Ts, Option<Entry>)>>,
    pub(crate) fast_forward: Ts,
}

/// One sweep of cell 0.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub(crate) struct Sweep {
    /// It has its permit: a deletion is under way.
    pub(crate) permitted: bool,
    pub(crate) ts: Ts,
    /// Versions chosen for deletion, fixed before the sentinel is written.
    pub(crate) doomed: Option<Vec<Ts>>,
    pub(crate) sentinel: bool,
    pub(crate) deleted: bool,
}

/// How far the second server has come.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub(crate) struct Takeover {
    /// The lease of the first is over.
    pub(crate) lease_over: bool,
    /// The record in the store is the successor's.
    pub(crate) taken: bool,
    pub(crate) fence_raised: bool,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub(crate) struct State {
    /// Last timestamp issued, by each owner.
    pub(crate) clock: [Ts; OWNERS],
    pub(crate) cells: [Vec<Ts>; CELLS],
    pub(crate) entries: BTreeMap<Ts, Entry>,
    /// Locks are in the memory of a server.
    pub(crate) locks: [[Option<u8>; CELLS]; OWNERS],
    pub(crate) tx: Vec<Tx>,
    /// Transactions with a commit timestamp, in commit order, until applied, synced and published.
    pub(crate) pipe: Vec<u8>,
    pub(crate) restarted: bool,
    pub(crate) takeover: Takeover,
    pub(crate) backup: Backup,
    pub(crate) sweep: Sweep,
}

impl State {
    pub(crate) fn new(transactions: usize) -> State {
        State {
            clock: [0; OWNERS],
            cells: Default::default(),
            entries: BTreeMap::new(),
            locks: [[None; CELLS]; OWNERS],
            tx: vec![Tx::NEW; transactions],
            pipe: Vec::new(),
            restarted: false,
            takeover: Takeover::default(),
            backup: Backup { entries: vec![None; transactions], ..Backup::default() },
            sweep: Sweep::default(),
        }
    }

    pub(crate) fn tx_of(&self, start: Ts) -> usize {
        self.tx.iter().position(|tx| tx.start == start).expect("a version belongs to a transaction")
    }

    pub(crate) fn put(&mut self, cell: u8, start: Ts) {
        let versions = &mut self.cells[cell as usize];
        versions.push(start);
        versions.sort_unstable();
    }

    pub(crate) fn release(&mut self, i: u8) {
        for lock in self.locks.iter_mut().flatten() {
            if *lock == Some(i) {
                *lock = None;
            }
        }
        self.tx[i as usize].lease = false;
        self.tx[i as usize].registered = None;
    }

    /// The client learns that it failed; its data may stay behind, undecided.
    pub(crate) fn abort(&mut self, i: u8) {
        self.release(i);
        let tx = &mut self.tx[i as usize];
        tx.pc = Pc::Done;
        tx.told = Told::Aborted;
        tx.candidates = None;
    }
}

/// A part of the store, as a backup copies it.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Part {
    Cell(u8),
    EntryOf(u8),
}

/// One step that the real system takes atomically; everything else interleaves freely.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Action {
    Register(u8),
    Begin(u8),
    Fetch(u8),
    Resolve(u8),
    Turn(u8, Turn),
    LoseLease(u8),
    /// Somebody rolls back the undecided data of a client that is gone.
    RollBackLeftOver(u8),
    /// The leader checks the member and draws its commit timestamp.
    Admit(u8),
    Apply(u8),
    Sync(u8),
    Publish(u8),
    Restart,
    LeaseRunsOut,
    TakeOver,
    RaiseFence,
    AcquireBackupLock,
    TakeBackupTs,
    Settle,
    Copy(Part),
    TakeFastForwardTs,
    SweepPermit,
    SweepChoose,
    SweepSentinel,
    SweepDelete,
}

impl Action {
    /// The transaction that takes it.
    pub(crate) fn by(self) -> Option<u8> {
        match self {
            Action::Register(i)
            | Action::Begin(i)
            | Action::Fetch(i)
            | Action::Resolve(i)
            | Action::Turn(i, _)
            | Action::Admit(i)
            | Action::Apply(i) => Some(i),
            _ => None,
        }
    }

    pub(crate) fn draws_commit_ts(self) -> bool {
        matches!(self, Action::Admit(_) | Action::Turn(_, Turn::Step(Step::TakeCommitTs)))
    }

    /// Bad luck: nobody may count on it to get on.
    pub(crate) fn is_failure(self) -> bool {
        matches!(self, Action::LoseLease(_) | Action::Restart | Action::LeaseRunsOut)
    }
}
