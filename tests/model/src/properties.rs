//! What must hold in every reachable state. The properties read the history (what each transaction read, wrote and was
//! told) and the entries, never the rules: they share no code with the protocol they judge.

use crate::protocol::Protocol;
use crate::state::{Action, Entry, Pc, State, Told, Ts};
use stateright::{Model, Property};

type Check = fn(&Protocol, &State) -> bool;

pub(crate) const SNAPSHOT_READS: &str = "snapshot reads";
pub(crate) const NO_DIRTY_READ: &str = "no dirty read";
pub(crate) const FIRST_COMMITTER_WINS: &str = "first committer wins";
pub(crate) const REAL_TIME_ORDER: &str = "real-time order";
pub(crate) const SERIALIZABLE: &str = "serializable";
pub(crate) const NO_ACKED_COMMIT_LOST: &str = "no acknowledged commit is lost";
pub(crate) const ABORTS_ARE_TRUE: &str = "who was told of an abort did not commit";
pub(crate) const COMMITS_ARE_WHOLE: &str = "commits are whole";
pub(crate) const FATES_ARE_FINAL: &str = "fates are final";
pub(crate) const LIVING_LEFT_ALONE: &str = "no living writer is rolled back";
pub(crate) const NO_DEADLOCK: &str = "no deadlock";
pub(crate) const RESTORE_IS_EXACT: &str = "restore = state at backup_ts";
pub(crate) const RESTORE_IS_WHOLE: &str = "restore keeps whole transactions";
pub(crate) const RESTORE_IS_CLOSED: &str = "restore keeps what the kept have read";
pub(crate) const FAST_FORWARD_IS_ABOVE: &str = "fast-forward lies above the copy";
pub(crate) const NO_LIVING_READER_TOO_OLD: &str = "no living reader is too old";
pub(crate) const DATA_ARE_ENQUEUED: &str = "data are in the sweep queue";
pub(crate) const ISSUED_ONCE: &str = "timestamps are issued once";

/// Name and check of each property.
pub(crate) const ALL: [(&str, Check); 18] = [
    (SNAPSHOT_READS, snapshot_reads),
    (NO_DIRTY_READ, no_dirty_read),
    (FIRST_COMMITTER_WINS, first_committer_wins),
    (REAL_TIME_ORDER, real_time_order),
    (SERIALIZABLE, serializable),
    (NO_ACKED_COMMIT_LOST, no_acked_commit_lost),
    (ABORTS_ARE_TRUE, aborts_are_true),
    (COMMITS_ARE_WHOLE, commits_are_whole),
    (FATES_ARE_FINAL, fates_are_final),
    (LIVING_LEFT_ALONE, living_left_alone),
    (NO_DEADLOCK, no_deadlock),
    (RESTORE_IS_EXACT, restore_is_exact),
    (RESTORE_IS_WHOLE, restore_is_whole),
    (RESTORE_IS_CLOSED, restore_is_closed),
    (FAST_FORWARD_IS_ABOVE, fast_forward_is_above),
    (NO_LIVING_READER_TOO_OLD, no_living_reader_too_old),
    (DATA_ARE_ENQUEUED, data_are_enqueued),
    (ISSUED_ONCE, issued_once),
];

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.scenario.programs.len())]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(self.candidates(state));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        self.take(last, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        // A property takes a plain function, which can't know its place in the list otherwise.
        macro_rules! all {
            ($($i:literal)*) => { vec![$(Property::always(ALL[$i].0, |m: &Protocol, s: &State| (ALL[$i].1)(m, s))),*] };
        }
        let all: Vec<Property<Self>> = all!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17);
        assert_eq!(all.len(), ALL.len());
        all
    }
}

fn commit_of(s: &State, i: usize) -> Option<Ts> {
    let start = s.tx[i].start;
    match s.entries.get(&start) {
        Some(Entry::Committed(commit)) if start != 0 => Some(*commit),
        _ => None,
    }
}

/// `start_ts` of the newest writer of `cell` committed at or below `bound`.
fn newest_committed(m: &Protocol, s: &State, cell: u8, bound: Ts) -> Ts {
    (0..s.tx.len())
        .filter(|i| m.scenario.programs[*i].writes.contains(&cell))
        .filter_map(|i| commit_of(s, i).map(|commit| (commit, s.tx[i].start)))
        .filter(|(commit, _)| *commit <= bound)
        .max()
        .map_or(0, |(_, start)| start)
}

/// Every read returned the newest version committed at or below `read_ts`, and a commit that lands later does not
/// change that answer (so reads are repeatable).
fn snapshot_reads(m: &Protocol, s: &State) -> bool {
    s.tx.iter().all(|tx| tx.reads.iter().all(|&(cell, seen)| newest_committed(m, s, cell, tx.read_ts) == seen))
}

fn no_dirty_read(_: &Protocol, s: &State) -> bool {
    let mut seen = s.tx.iter().flat_map(|tx| &tx.reads).map(|read| read.1).filter(|version| *version != 0);
    seen.all(|version| commit_of(s, s.tx_of(version)).is_some())
}

/// Of two committed writers of a cell, the later took its snapshot after the earlier committed.
fn first_committer_wins(m: &Protocol, s: &State) -> bool {
    let programs = &m.scenario.programs;
    pairs(s.tx.len()).all(|(a, b)| match (commit_of(s, a), commit_of(s, b)) {
        (Some(first), Some(second))
            if first < second && programs[a].writes.iter().any(|cell| programs[b].writes.contains(cell)) =>
        {
            first <= s.tx[b].read_ts
        }
        _ => true,
    })
}

/// A transaction sees every commit that was acknowledged, or observed by anybody, before it began.
fn real_time_order(_: &Protocol, s: &State) -> bool {
    s.tx.iter().filter(|tx| tx.pc != Pc::Idle).all(|tx| {
        (0..s.tx.len())
            .filter(|j| tx.must_see & 1 << j != 0)
            .all(|j| commit_of(s, j).is_some_and(|commit| commit <= tx.read_ts))
    })
}

/// The graph of write-write, write-read and read-write dependencies between committed transactions has no cycle. A
/// range reads each of its cells, absent ones too.
fn serializable(m: &Protocol, s: &State) -> bool {
    if !m.scenario.serializable {
        return true;
    }
    let n = s.tx.len();
    let mut edge = vec![vec![false; n]; n];
    let counts = |i: usize| {
        let reader = m.scenario.programs[i].writes.is_empty();
        commit_of(s, i).is_some() || (reader && s.tx[i].pc == Pc::Done && s.tx[i].told != Told::Aborted)
    };
    let commit = |start: Ts| if start == 0 { 0 } else { commit_of(s, s.tx_of(start)).unwrap_or(Ts::MAX) };
    for (a, b) in pairs(n).filter(|&(a, b)| counts(a) && counts(b)) {
        let shared = |cell: &u8| m.scenario.programs[b].writes.contains(cell);
        if m.scenario.programs[a].writes.iter().any(shared) && commit_of(s, a) < commit_of(s, b) {
            edge[a][b] = true;
        }
        for &(cell, seen) in &s.tx[a].reads {
            if seen == s.tx[b].start {
                edge[b][a] = true;
            } else if shared(&cell) && commit_of(s, b) > Some(commit(seen)) {
                edge[a][b] = true;
            }
        }
    }
    for k in 0..n {
        for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
            edge[i][j] |= edge[i][k] && edge[k][j];
        }
    }
    (0..n).all(|i| !edge[i][i])
}

fn no_acked_commit_lost(_: &Protocol, s: &State) -> bool {
    let mut told = (0..s.tx.len()).filter(|i| s.tx[*i].told == Told::Committed);
    told.all(|i| commit_of(s, i) == Some(s.tx[i].commit))
}

fn aborts_are_true(_: &Protocol, s: &State) -> bool {
    (0..s.tx.len()).filter(|i| s.tx[*i].told == Told::Aborted).all(|i| commit_of(s, i).is_none())
}

/// A commit entry implies all its data (swept versions excepted).
fn commits_are_whole(m: &Protocol, s: &State) -> bool {
    let swept =
        |cell: u8, version: Ts| cell == 0 && s.sweep.doomed.as_ref().is_some_and(|doomed| doomed.contains(&version));
    (0..s.tx.len()).filter(|i| commit_of(s, *i).is_some()).all(|i| {
        let start = s.tx[i].start;
        m.scenario.programs[i].writes.iter().all(|&cell| s.cells[cell as usize].contains(&start) || swept(cell, start))
    })
}

fn fates_are_final(_: &Protocol, s: &State) -> bool {
    (0..s.tx.len()).filter(|i| s.tx[*i].rolled_back).all(|i| commit_of(s, i).is_none())
}

fn living_left_alone(_: &Protocol, s: &State) -> bool {
    s.tx.iter().all(|tx| !tx.robbed)
}

/// Somebody can go on without any failure, or everybody is done. Who wants the second server waits for the first to
/// end, which is no deadlock.
fn no_deadlock(m: &Protocol, s: &State) -> bool {
    let waits_for_takeover = |i: usize| m.owner(i as u8) == 1 && !s.takeover.taken && s.tx[i].pc == Pc::Idle;
    s.tx.iter().enumerate().all(|(i, tx)| tx.pc == Pc::Done || tx.lost_lease || waits_for_takeover(i))
        || m.candidates(s).into_iter().filter(|action| !action.is_failure()).any(|action| m.take(s, action).is_some())
}

/// The fate of a version in the restored store: what lies at or above the backup's timestamp is cleaned away, and
/// readers roll back what is undecided.
fn kept(s: &State, start: Ts) -> bool {
    let entry = s.backup.entries.iter().flatten().find(|entry| entry.0 == start && start != 0);
    matches!(entry, Some((_, Some(Entry::Committed(commit)))) if *commit < s.backup.ts)
}

fn copy_is_complete(s: &State) -> bool {
    s.backup.fast_forward != 0
        && s.backup.cells.iter().all(Option::is_some)
        && s.backup.entries.iter().all(Option::is_some)
}

fn restore_is_exact(m: &Protocol, s: &State) -> bool {
    !copy_is_complete(s)
        || s.backup.cells.iter().enumerate().all(|(cell, versions)| {
            let restored = versions.iter().flatten().rev().find(|version| kept(s, **version)).copied().unwrap_or(0);
            restored == newest_committed(m, s, cell as u8, s.backup.ts - 1)
        })
}

/// No torn transaction: what is kept is kept in every cell it wrote (swept versions excepted).
fn restore_is_whole(m: &Protocol, s: &State) -> bool {
    let swept =
        |cell: u8, version: Ts| cell == 0 && s.sweep.doomed.as_ref().is_some_and(|doomed| doomed.contains(&version));
    !copy_is_complete(s)
        || (0..s.tx.len()).filter(|i| kept(s, s.tx[*i].start)).all(|i| {
            let start = s.tx[i].start;
            let has = |cell: u8| s.backup.cells[cell as usize].iter().flatten().any(|version| *version == start);
            m.scenario.programs[i].writes.iter().all(|&cell| has(cell) || swept(cell, start))
        })
}

/// The kept transactions are closed under reads-from and overwrites: no effect without its cause.
fn restore_is_closed(m: &Protocol, s: &State) -> bool {
    let overwrote = |a: usize, b: usize| {
        let shared = m.scenario.programs[a].writes.iter().any(|cell| m.scenario.programs[b].writes.contains(cell));
        shared && commit_of(s, b).is_some() && commit_of(s, b) < commit_of(s, a)
    };
    !copy_is_complete(s)
        || (0..s.tx.len()).filter(|a| kept(s, s.tx[*a].start)).all(|a| {
            s.tx[a].reads.iter().all(|&(_, seen)| seen == 0 || kept(s, seen))
                && (0..s.tx.len()).all(|b| !overwrote(a, b) || kept(s, s.tx[b].start))
        })
}

/// No timestamp issued after the restore can equal one that lies in the copy.
fn fast_forward_is_above(_: &Protocol, s: &State) -> bool {
    !copy_is_complete(s) || s.backup.cells.iter().flatten().flatten().all(|version| *version < s.backup.fast_forward)
}

fn no_living_reader_too_old(_: &Protocol, s: &State) -> bool {
    s.tx.iter().all(|tx| !tx.too_old || tx.lost_lease)
}

/// A crash leaves no data that nothing speaks of.
fn data_are_enqueued(_: &Protocol, s: &State) -> bool {
    s.cells.iter().flatten().all(|version| s.tx[s.tx_of(*version)].queued)
}

/// Over all servers.
fn issued_once(_: &Protocol, s: &State) -> bool {
    let mut issued: Vec<Ts> = s.tx.iter().flat_map(|tx| [tx.start, tx.commit]).filter(|ts| *ts != 0).collect();
    let count = issued.len();
    issued.sort_unstable();
    issued.dedup();
    issued.len() == count
}

fn pairs(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).flat_map(move |a| (0..n).filter(move |b| *b != a).map(move |b| (a, b)))
}
