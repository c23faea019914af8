//! What must hold in every reachable state. The properties read the history (what each transaction read, wrote and was
//! told) and the transactions table, never the rules: they do not share code with the protocol they judge.

use crate::model::{Action, Entry, Pc, Protocol, State, Told, Ts};
use stateright::{Model, Property};

type Check = fn(&Protocol, &State) -> bool;

/// Name and check of each property.
pub const ALL: [(&str, Check); 16] = [
    ("snapshot reads", snapshot_reads),
    ("no dirty read", no_dirty_read),
    ("first committer wins", first_committer_wins),
    ("real-time order", real_time_order),
    ("serializable", serializable),
    ("no acked commit lost", no_acked_commit_lost),
    ("abort answers are true", abort_answers_are_true),
    ("commits are whole", commits_are_whole),
    ("fates are final", fates_are_final),
    ("live writer not rolled back", live_writer_not_rolled_back),
    ("no deadlock", no_deadlock),
    ("restore = state at backup_ts", restore_is_exact),
    ("restore keeps whole transactions", restore_is_whole),
    ("restore keeps what the kept have read", restore_is_closed),
    ("fast-forward above the copy", fast_forward_is_above),
    ("live reader not too old", live_reader_not_too_old),
];

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.init()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(self.candidates(state));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        self.apply_action(last, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        macro_rules! all {
            ($($i:literal)*) => { vec![$(Property::always(ALL[$i].0, |m: &Protocol, s: &State| (ALL[$i].1)(m, s))),*] };
        }
        all!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    }
}

fn commit_of(s: &State, i: usize) -> Option<Ts> {
    let start = s.tx[i].start;
    match s.entries.get(&start) {
        Some(Entry::Committed(c)) if start != 0 => Some(*c),
        _ => None,
    }
}

/// `start_ts` of the newest writer of `cell` committed at or below `bound`.
fn newest_committed(m: &Protocol, s: &State, cell: u8, bound: Ts) -> Ts {
    (0..s.tx.len())
        .filter(|&i| m.scenario.programs[i].writes.contains(&cell))
        .filter_map(|i| commit_of(s, i).map(|c| (c, s.tx[i].start)))
        .filter(|(c, _)| *c <= bound)
        .max()
        .map_or(0, |(_, start)| start)
}

/// Every read returned the newest version committed at or below `read_ts`, and a commit that lands later does not
/// change that answer (so reads are repeatable).
fn snapshot_reads(m: &Protocol, s: &State) -> bool {
    s.tx.iter().all(|t| t.reads.iter().all(|&(cell, seen)| newest_committed(m, s, cell, t.read_ts) == seen))
}

fn no_dirty_read(_: &Protocol, s: &State) -> bool {
    s.tx.iter().flat_map(|t| &t.reads).filter(|r| r.1 != 0).all(|r| commit_of(s, s.tx_of(r.1)).is_some())
}

/// Of two committed writers of a cell, the later took its snapshot after the earlier committed.
fn first_committer_wins(m: &Protocol, s: &State) -> bool {
    let programs = &m.scenario.programs;
    pairs(s.tx.len()).all(|(a, b)| match (commit_of(s, a), commit_of(s, b)) {
        (Some(ca), Some(cb)) if ca < cb && programs[a].writes.iter().any(|c| programs[b].writes.contains(c)) => {
            ca <= s.tx[b].read_ts
        }
        _ => true,
    })
}

/// A transaction sees every commit that was acknowledged, or observed by anybody, before it began.
fn real_time_order(_: &Protocol, s: &State) -> bool {
    s.tx.iter().filter(|t| t.pc != Pc::Idle).all(|t| {
        (0..s.tx.len()).filter(|j| t.must_see & 1 << j != 0).all(|j| commit_of(s, j).is_some_and(|c| c <= t.read_ts))
    })
}

/// The graph of write-write, write-read and read-write dependencies between committed transactions has no cycle.
fn serializable(m: &Protocol, s: &State) -> bool {
    if !m.scenario.serializable {
        return true;
    }
    let n = s.tx.len();
    let mut edge = vec![vec![false; n]; n];
    let counts =
        |i: usize| commit_of(s, i).is_some() || m.scenario.programs[i].writes.is_empty() && s.tx[i].pc == Pc::Done;
    let commit = |start: Ts| if start == 0 { 0 } else { commit_of(s, s.tx_of(start)).unwrap_or(Ts::MAX) };
    for (a, b) in pairs(n).filter(|&(a, b)| counts(a) && counts(b)) {
        let shared = |c: &u8| m.scenario.programs[b].writes.contains(c);
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
    (0..s.tx.len()).filter(|&i| s.tx[i].told == Told::Committed).all(|i| commit_of(s, i) == Some(s.tx[i].commit))
}

fn abort_answers_are_true(_: &Protocol, s: &State) -> bool {
    (0..s.tx.len()).filter(|&i| s.tx[i].told == Told::Aborted).all(|i| commit_of(s, i).is_none())
}

/// A commit entry implies all its data (swept versions excepted).
fn commits_are_whole(m: &Protocol, s: &State) -> bool {
    let swept = |cell: u8, v: Ts| cell == 0 && s.sweep.doomed.as_ref().is_some_and(|d| d.contains(&v));
    (0..s.tx.len()).filter(|&i| commit_of(s, i).is_some()).all(|i| {
        let start = s.tx[i].start;
        m.scenario.programs[i].writes.iter().all(|&c| s.cells[c as usize].contains(&start) || swept(c, start))
    })
}

fn fates_are_final(_: &Protocol, s: &State) -> bool {
    (0..s.tx.len()).filter(|&i| s.tx[i].rolled_back).all(|i| commit_of(s, i).is_none())
}

fn live_writer_not_rolled_back(_: &Protocol, s: &State) -> bool {
    s.tx.iter().all(|t| !t.robbed)
}

/// Somebody can go on without any lease being lost and without a restart, or everybody is done.
fn no_deadlock(m: &Protocol, s: &State) -> bool {
    s.tx.iter().all(|t| t.pc == Pc::Done || t.lost_lease)
        || m.candidates(s)
            .into_iter()
            .filter(|a| !matches!(a, Action::LoseLease(_) | Action::Restart))
            .any(|a| m.apply_action(s, a).is_some())
}

/// The fate of a version in the restored store: clean-transactions has run, readers roll back what is undecided.
fn kept(s: &State, start: Ts) -> bool {
    let entry = s.backup.entries.iter().flatten().find(|e| e.0 == start && start != 0).and_then(|e| e.1);
    matches!(entry, Some(Entry::Committed(c)) if c < s.backup.ts)
}

fn copy_is_complete(s: &State) -> bool {
    s.backup.fast_forward != 0
        && s.backup.cells.iter().all(Option::is_some)
        && s.backup.entries.iter().all(Option::is_some)
}

fn restore_is_exact(m: &Protocol, s: &State) -> bool {
    !copy_is_complete(s)
        || s.backup.cells.iter().enumerate().all(|(cell, versions)| {
            let restored = versions.iter().flatten().rev().find(|&&v| kept(s, v)).copied().unwrap_or(0);
            restored == newest_committed(m, s, cell as u8, s.backup.ts - 1)
        })
}

/// No torn transaction: what is kept is kept in every cell it wrote.
fn restore_is_whole(m: &Protocol, s: &State) -> bool {
    !copy_is_complete(s)
        || (0..s.tx.len()).filter(|&i| kept(s, s.tx[i].start)).all(|i| {
            let has = |c: u8| s.backup.cells[c as usize].iter().flatten().any(|&v| v == s.tx[i].start);
            m.scenario.programs[i].writes.iter().all(|&c| has(c))
        })
}

/// The kept transactions are closed under reads-from and overwrites: no effect without its cause.
fn restore_is_closed(m: &Protocol, s: &State) -> bool {
    let overwrote = |a: usize, b: usize| {
        let shared = m.scenario.programs[a].writes.iter().any(|c| m.scenario.programs[b].writes.contains(c));
        shared && commit_of(s, b).is_some() && commit_of(s, b) < commit_of(s, a)
    };
    !copy_is_complete(s)
        || (0..s.tx.len()).filter(|&a| kept(s, s.tx[a].start)).all(|a| {
            s.tx[a].reads.iter().all(|&(_, seen)| seen == 0 || kept(s, seen))
                && (0..s.tx.len()).all(|b| !overwrote(a, b) || kept(s, s.tx[b].start))
        })
}

/// No timestamp issued after the restore can equal one that lies in the copy.
fn fast_forward_is_above(_: &Protocol, s: &State) -> bool {
    !copy_is_complete(s) || s.backup.cells.iter().flatten().flatten().all(|&v| v < s.backup.fast_forward)
}

fn live_reader_not_too_old(_: &Protocol, s: &State) -> bool {
    s.tx.iter().all(|t| !t.too_old || t.lost_lease)
}

fn pairs(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).flat_map(move |a| (0..n).filter(move |&b| b != a).map(move |b| (a, b)))
}
