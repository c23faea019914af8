//! How transactions read and commit, on both paths.

use crate::rules::{Path, Program, Publish, Reads, Rules, Scenario, Step, Turn};
use crate::state::{Action, BOUND, Entry, Part, Pc, SENTINEL, State, Takeover, Told, Ts, Tx};

pub(crate) struct Protocol {
    pub(crate) scenario: Scenario,
}

/// What stands for a reader among the versions of a cell.
pub(crate) enum Seen {
    Version(Ts),
    /// Nothing visible above the sentinel: what was below may have been swept.
    TooOld,
    /// An undecided version stands in the way; the writer still holds its lock.
    Wait,
    /// An undecided version stands in the way; its writer holds no lock here.
    LeftOver(Ts),
}

/// What came of a step.
enum Taken {
    WentOn,
    /// Somebody else has to move first.
    Waits,
    /// It has decided about another transaction, and is not over.
    LooksAgain,
    GaveUp,
}

fn gave_up(s: &mut State, i: u8) -> Taken {
    s.abort(i);
    Taken::GaveUp
}

impl Protocol {
    pub(crate) fn rules(&self) -> &Rules {
        &self.scenario.rules
    }

    fn program(&self, i: u8) -> &Program {
        &self.scenario.programs[i as usize]
    }

    pub(crate) fn owner(&self, i: u8) -> u8 {
        self.program(i).owner
    }

    fn clock(&self, s: &State, i: u8) -> Ts {
        s.clock[self.owner(i) as usize]
    }

    pub(crate) fn draw(&self, s: &mut State, owner: u8) -> Ts {
        s.clock[owner as usize] += 1;
        s.clock[owner as usize]
    }

    /// Whether a server that looks at its clock believes that it owns the store.
    pub(crate) fn holds_lease(&self, s: &State, owner: u8) -> bool {
        owner == 1 || !s.takeover.lease_over || self.scenario.clock_stands_still
    }

    /// `put_unless_exists(start -> rolled back)`.
    pub(crate) fn roll_back(&self, s: &mut State, start: Ts) {
        if s.entries.contains_key(&start) {
            return;
        }
        s.entries.insert(start, Entry::RolledBack);
        let i = s.tx_of(start);
        // Nobody promises a server that was replaced, or one that is taken for its own successor, that its
        // transactions are left alone.
        let promised = !s.takeover.lease_over;
        let tx = &mut s.tx[i];
        tx.rolled_back = true;
        tx.robbed = promised && tx.pc != Pc::Done && !tx.lost_lease;
    }

    /// Largest timestamp with no commit in flight at or below it.
    pub(crate) fn watermark(&self, s: &State, owner: u8) -> Ts {
        let in_flight = s.pipe.iter().filter(|i| self.owner(**i) == owner).map(|i| &s.tx[*i as usize]);
        let in_flight = in_flight.filter(|tx| !tx.published).map(|tx| tx.commit);
        in_flight.min().map_or(s.clock[owner as usize], |commit| commit - 1)
    }

    /// Walks `versions` (oldest first, own version excluded) from the newest down.
    pub(crate) fn newest_visible(
        &self,
        s: &State,
        owner: u8,
        versions: &[Ts],
        bound: Ts,
        settles_writers: bool,
    ) -> Seen {
        for &version in versions.iter().rev() {
            if version == SENTINEL {
                return Seen::TooOld;
            }
            match s.entries.get(&version) {
                Some(Entry::Committed(commit)) if *commit <= bound => return Seen::Version(version),
                Some(_) => {}
                None if !settles_writers => {}
                None if self.holds_lock_here(s, owner, version) => return Seen::Wait,
                None => return Seen::LeftOver(version),
            }
        }
        Seen::Version(0)
    }

    /// Whether the writer of a version holds the lock on its start timestamp, for all that this server knows: locks
    /// of another one are in the other one's memory.
    fn holds_lock_here(&self, s: &State, owner: u8, version: Ts) -> bool {
        let writer = s.tx_of(version);
        self.scenario.programs[writer].owner == owner && s.tx[writer].lease
    }

    fn reads_done(&self, i: u8, tx: &Tx) -> bool {
        let program = self.program(i);
        let found = tx.reads.last().is_some_and(|read| read.1 != 0);
        tx.reads.len() == program.reads.len() || (program.kind == Reads::RangeUntilFound && found)
    }

    /// Whether the serializable check looks at a read again.
    fn is_checked_again(&self, i: u8, seen: Ts) -> bool {
        seen != 0
            || match self.program(i).kind {
                Reads::Cells => self.rules().recheck_absences,
                Reads::Range | Reads::RangeUntilFound => self.rules().recheck_ranges,
            }
    }

    /// Skips the turns that this transaction does not need; past the last one it is done.
    fn go_to(&self, s: &mut State, i: u8, mut at: usize) {
        let writes = self.program(i).writes.len();
        let reads = s.tx[i as usize].reads.len();
        let needed = |turn: &Turn| match turn {
            Turn::Step(Step::Lock(n) | Step::PutData(n)) => (*n as usize) < writes,
            Turn::Step(Step::RecheckReads(n)) => self.scenario.serializable && (*n as usize) < reads,
            _ => true,
        };
        let turns = &self.rules().turns;
        while at < turns.len() && !needed(&turns[at]) {
            at += 1;
        }
        s.tx[i as usize].pc = if at < turns.len() { Pc::Commit(at as u8) } else { Pc::Done };
    }

    fn finish_reads(&self, s: &mut State, i: u8) {
        if !self.reads_done(i, &s.tx[i as usize]) {
            return;
        }
        let program = self.program(i);
        if program.writes.is_empty() {
            s.release(i);
            s.tx[i as usize].pc = Pc::Done;
        } else if program.path == Path::Batch {
            s.tx[i as usize].pc = Pc::Queued;
        } else {
            self.go_to(s, i, 0);
        }
    }

    fn begin(&self, s: &mut State, i: u8) {
        let owner = self.owner(i);
        if !self.holds_lease(s, owner) {
            return s.abort(i);
        }
        let rules = self.rules();
        // A server whose clock stood still goes on giving out snapshots as old as its sleep, and nobody promises it
        // what its successor's clients were told or have seen meanwhile.
        let promised = |j: &usize| !self.scenario.clock_stands_still || owner == 1 || self.owner(*j as u8) == 0;
        let told = (0..s.tx.len()).filter(promised);
        let observed: Vec<Ts> = told.clone().flat_map(|j| s.tx[j].reads.iter().map(|read| read.1)).collect();
        let seen = |j: &usize| s.tx[*j].start != 0 && observed.contains(&s.tx[*j].start);
        let acknowledged = told.filter(|j| s.tx[*j].told == Told::Committed);
        let must_see = acknowledged.chain((0..s.tx.len()).filter(seen)).fold(0, |mask, j| mask | 1 << j);
        if !rules.snapshot_before_start_ts && s.tx[i as usize].start == 0 {
            s.tx[i as usize].start = self.draw(s, owner);
            return;
        }
        let watermark = self.watermark(s, owner);
        if s.tx[i as usize].start == 0 {
            s.tx[i as usize].start = self.draw(s, owner);
        }
        let at_start = self.program(i).path == Path::StepByStep || !rules.snapshot_at_watermark;
        let tx = &mut s.tx[i as usize];
        tx.read_ts = if at_start { tx.start } else { watermark };
        tx.must_see = must_see;
        tx.pc = Pc::Reading;
        self.finish_reads(s, i);
    }

    fn fetch(&self, s: &mut State, i: u8) {
        let tx = &s.tx[i as usize];
        let cell = self.program(i).reads[tx.reads.len()];
        let mut versions: Vec<Ts> =
            s.cells[cell as usize].iter().copied().filter(|version| *version <= tx.read_ts).collect();
        if cell == 0 && s.sweep.sentinel {
            versions.insert(0, SENTINEL);
        }
        s.tx[i as usize].candidates = Some(versions);
    }

    fn resolve(&self, s: &mut State, i: u8) -> bool {
        let tx = &s.tx[i as usize];
        let versions = tx.candidates.clone().expect("resolve follows fetch");
        let settles = self.rules().readers_settle_writers;
        match self.newest_visible(s, self.owner(i), &versions, tx.read_ts, settles) {
            Seen::Wait => return false,
            Seen::LeftOver(version) => self.roll_back(s, version),
            Seen::TooOld => {
                s.tx[i as usize].too_old = true;
                s.abort(i);
            }
            // Without sentinels a missing version may have been swept: the registration decides.
            Seen::Version(_) if self.rules().readers_check_registration && !tx.lease => s.abort(i),
            Seen::Version(version) => {
                let tx = &mut s.tx[i as usize];
                let cell = self.program(i).reads[tx.reads.len()];
                tx.reads.push((cell, version));
                tx.candidates = None;
                self.finish_reads(s, i);
            }
        }
        true
    }

    fn others(&self, s: &State, i: u8, cell: u8) -> Vec<Ts> {
        s.cells[cell as usize].iter().copied().filter(|version| *version != s.tx[i as usize].start).collect()
    }

    /// A version committed above the snapshot is a conflict; what is undecided is decided first.
    fn write_conflict(&self, s: &mut State, i: u8) -> bool {
        let (rules, owner) = (self.rules(), self.owner(i));
        let tx = &s.tx[i as usize];
        let since = if rules.conflicts_from_read_ts { tx.read_ts } else { tx.start };
        for &cell in self.program(i).writes {
            for version in self.others(s, i, cell) {
                match s.entries.get(&version) {
                    Some(Entry::Committed(commit)) if *commit > since => return true,
                    Some(_) => {}
                    None if !rules.check_decides_rivals => {}
                    // Of a successor's transactions our locks know nothing.
                    None if !self.holds_lease(s, owner) => return true,
                    None if rules.check_spares_the_living && self.holds_lock_here(s, owner, version) => return true,
                    None => self.roll_back(s, version),
                }
            }
        }
        false
    }

    /// Does a member ahead in the pipeline, not yet applied, write this cell?
    fn is_written_ahead(&self, s: &State, i: u8, cell: u8) -> bool {
        self.rules().leader_sees_ahead
            && s.pipe.iter().any(|&j| {
                j != i
                    && self.owner(j) == self.owner(i)
                    && s.tx[j as usize].pc == Pc::Admitted
                    && self.program(j).writes.contains(&cell)
            })
    }

    /// The leader takes one member: conflicts, then the commit timestamp.
    fn admit(&self, s: &mut State, i: u8) {
        let owner = self.owner(i);
        let refused = self.rules().leader_refuses_rolled_back && s.entries.contains_key(&s.tx[i as usize].start);
        let writes = self.program(i).writes;
        if refused || self.write_conflict(s, i) || writes.iter().any(|&cell| self.is_written_ahead(s, i, cell)) {
            return s.abort(i);
        }
        if self.scenario.serializable {
            for (cell, seen) in s.tx[i as usize].reads.clone() {
                if !self.is_checked_again(i, seen) {
                    continue;
                }
                let versions = self.others(s, i, cell);
                let changed = match self.newest_visible(s, owner, &versions, Ts::MAX, false) {
                    Seen::Version(version) => version != seen,
                    _ => true,
                };
                if changed || self.is_written_ahead(s, i, cell) {
                    return s.abort(i);
                }
            }
        }
        if self.rules().commit_ts_looks_at_lease && !self.holds_lease(s, owner) {
            return s.abort(i);
        }
        s.tx[i as usize].commit = self.draw(s, owner);
        s.tx[i as usize].pc = Pc::Admitted;
        s.pipe.push(i);
    }

    /// What a former owner sends is refused once the fence is raised.
    fn is_fenced_off(&self, s: &State, i: u8) -> bool {
        self.rules().fence && s.takeover.fence_raised && self.owner(i) == 0
    }

    /// Sweep entry, data and entry in one batch; for a large transaction the first two are there already.
    fn apply(&self, s: &mut State, i: u8) {
        if self.is_fenced_off(s, i) {
            s.pipe.retain(|j| *j != i);
            return s.abort(i);
        }
        let tx = &mut s.tx[i as usize];
        let (start, commit) = (tx.start, tx.commit);
        tx.pc = Pc::Applied;
        tx.queued = true;
        let program = self.program(i);
        if program.path == Path::Batch {
            program.writes.iter().for_each(|&cell| s.put(cell, start));
        }
        s.entries.insert(start, Entry::Committed(commit));
    }

    fn leave_pipe(&self, s: &mut State, i: u8) {
        if s.tx[i as usize].pc == Pc::Synced && s.tx[i as usize].published {
            s.pipe.retain(|j| *j != i);
            s.release(i);
            s.tx[i as usize].pc = Pc::Done;
            s.tx[i as usize].told = Told::Committed;
        }
    }

    fn sync(&self, s: &mut State, owner: u8) {
        for i in s.pipe.clone() {
            if self.owner(i) == owner && s.tx[i as usize].pc == Pc::Applied {
                s.tx[i as usize].pc = Pc::Synced;
                if !self.rules().publish_before_acknowledge {
                    s.tx[i as usize].told = Told::Committed;
                }
                self.leave_pipe(s, i);
            }
        }
    }

    /// False when the turn has to wait.
    fn turn(&self, s: &mut State, i: u8, turn: Turn) -> bool {
        let n = i as usize;
        let Pc::Commit(at) = s.tx[n].pc else { unreachable!("turns are taken in a commit") };
        match turn {
            Turn::Register => s.tx[n].lease = true,
            Turn::Enter => {
                s.tx[n].pc = Pc::Queued;
                return true;
            }
            Turn::Acknowledge => s.tx[n].told = Told::Committed,
            Turn::Unlock => s.release(i),
            Turn::Step(step) => match self.step(s, i, step) {
                Taken::Waits => return false,
                Taken::LooksAgain | Taken::GaveUp => return true,
                Taken::WentOn => {}
            },
        }
        self.go_to(s, i, at as usize + 1);
        true
    }

    fn step(&self, s: &mut State, i: u8, step: Step) -> Taken {
        let (n, owner) = (i as usize, self.owner(i));
        let writes = self.program(i).writes;
        match step {
            Step::Lock(k) => {
                let cell = writes[k as usize] as usize;
                if s.locks[owner as usize][cell].is_some() {
                    return Taken::Waits;
                }
                // One request takes all locks; once it has lapsed, later cells stay unlocked and step 9 fails.
                if k == 0 || s.tx[n].lease {
                    s.locks[owner as usize][cell] = self.rules().locks_cells.then_some(i);
                    s.tx[n].lease = true;
                }
            }
            Step::CheckWriteConflicts => {
                if self.write_conflict(s, i) {
                    return gave_up(s, i);
                }
            }
            // What large transactions put ahead needs no fence: without an entry it is never seen.
            Step::EnqueueForSweep | Step::PutData(_)
                if self.program(i).path == Path::StepByStep && self.is_fenced_off(s, i) =>
            {
                return gave_up(s, i);
            }
            Step::EnqueueForSweep => s.tx[n].queued = true,
            Step::PutData(k) => s.put(writes[k as usize], s.tx[n].start),
            Step::TakeCommitTs => {
                if self.rules().commit_ts_looks_at_lease && !self.holds_lease(s, owner) {
                    return gave_up(s, i);
                }
                s.tx[n].commit = self.draw(s, owner);
            }
            Step::RecheckReads(k) => return self.recheck(s, i, k),
            Step::CheckLocks => {
                let lease_over = self.rules().check_locks_looks_at_lease && !self.holds_lease(s, owner);
                if !s.tx[n].lease || s.tx[n].lost_lease || lease_over {
                    return gave_up(s, i);
                }
            }
            Step::RecordCommit => {
                let (start, commit) = (s.tx[n].start, s.tx[n].commit);
                if self.rules().entry_is_believed && s.entries.contains_key(&start) {
                    return gave_up(s, i);
                }
                s.entries.insert(start, Entry::Committed(commit));
            }
        }
        Taken::WentOn
    }

    /// Step 7, for one read.
    fn recheck(&self, s: &mut State, i: u8, k: u8) -> Taken {
        let (rules, owner) = (self.rules(), self.owner(i));
        let tx = &s.tx[i as usize];
        let (cell, seen) = tx.reads[k as usize];
        if !self.is_checked_again(i, seen) {
            return Taken::WentOn;
        }
        let bound = if tx.commit == 0 { self.clock(s, i) } else { tx.commit };
        let (start, versions) = (tx.start, self.others(s, i, cell));
        let versions: Vec<Ts> = versions.into_iter().filter(|version| *version <= bound).collect();
        match self.newest_visible(s, owner, &versions, bound, rules.recheck_settles_writers) {
            Seen::Version(version) if version == seen => Taken::WentOn,
            Seen::Version(_) | Seen::TooOld => gave_up(s, i),
            Seen::Wait | Seen::LeftOver(_) => {
                let undecided = versions.iter().rev().find(|version| !s.entries.contains_key(version));
                let writer = *undecided.expect("somebody is undecided");
                if writer > start && rules.recheck_waits_for_earlier_only {
                    gave_up(s, i)
                } else if self.holds_lock_here(s, owner, writer) {
                    Taken::Waits
                } else {
                    self.roll_back(s, writer);
                    Taken::LooksAgain
                }
            }
        }
    }

    /// The whole process dies, and is started again.
    fn restart(&self, s: &mut State) {
        s.restarted = true;
        s.pipe.clear();
        for i in 0..s.tx.len() as u8 {
            if s.tx[i as usize].pc == Pc::Applied {
                // Never synced: the log is cut before this batch.
                let start = s.tx[i as usize].start;
                s.entries.remove(&start);
                if self.program(i).path == Path::Batch {
                    s.cells.iter_mut().for_each(|versions| versions.retain(|version| *version != start));
                }
            }
            s.release(i);
            let tx = &mut s.tx[i as usize];
            if tx.pc != Pc::Idle {
                tx.pc = Pc::Done;
                tx.lost_lease = true;
                tx.candidates = None;
            }
        }
    }

    /// Whether a server can be asked to begin a transaction.
    fn is_open(&self, s: &State, owner: u8) -> bool {
        let fenced = s.takeover.fence_raised || !self.rules().fence || !self.rules().fence_before_begin;
        owner == 0 || (s.takeover.taken && fenced)
    }

    fn is_left_over(&self, s: &State, tx: &Tx) -> bool {
        // The leader alone writes entries, so what is in its hands is not rolled back behind its back.
        let in_hands = matches!(tx.pc, Pc::Admitted | Pc::Applied | Pc::Synced);
        tx.start != 0
            && !tx.lease
            && tx.lost_lease
            && !in_hands
            && !s.entries.contains_key(&tx.start)
            && s.cells.iter().any(|versions| versions.contains(&tx.start))
    }

    fn candidates_of(&self, s: &State, i: u8, out: &mut Vec<Action>) {
        let (scenario, tx) = (&self.scenario, &s.tx[i as usize]);
        match tx.pc {
            Pc::Idle if !self.is_open(s, self.owner(i)) => {}
            Pc::Idle if scenario.sweep && scenario.rules.register_before_read_ts && tx.registered.is_none() => {
                out.push(Action::Register(i));
            }
            Pc::Idle => out.push(Action::Begin(i)),
            Pc::Reading if scenario.sweep && tx.registered.is_none() && !tx.lost_lease => {
                out.push(Action::Register(i));
            }
            Pc::Reading if tx.candidates.is_none() => out.push(Action::Fetch(i)),
            Pc::Reading => out.push(Action::Resolve(i)),
            Pc::Commit(at) => out.push(Action::Turn(i, scenario.rules.turns[at as usize])),
            Pc::Queued => out.push(Action::Admit(i)),
            Pc::Admitted | Pc::Applied | Pc::Synced | Pc::Done => {}
        }
        if tx.lease && !matches!(tx.pc, Pc::Idle | Pc::Done) {
            out.push(Action::LoseLease(i));
        }
        if scenario.cleaner && self.is_left_over(s, tx) {
            out.push(Action::RollBackLeftOver(i));
        }
    }

    fn candidates_of_leader(&self, s: &State, owner: u8, out: &mut Vec<Action>) {
        let pipe: Vec<u8> = s.pipe.iter().copied().filter(|i| self.owner(*i) == owner).collect();
        let pc = |i: u8| s.tx[i as usize].pc;
        out.extend(pipe.iter().find(|i| pc(**i) == Pc::Admitted).map(|i| Action::Apply(*i)));
        if pipe.iter().any(|i| pc(*i) == Pc::Applied) {
            out.push(Action::Sync(owner));
        }
        if let Some(&i) = pipe.iter().find(|i| !s.tx[**i as usize].published) {
            let ready = match self.rules().publish {
                Publish::AfterSync => pc(i) == Pc::Synced,
                Publish::BeforeSync => matches!(pc(i), Pc::Synced | Pc::Applied),
                Publish::BeforeApply => true,
            };
            if ready {
                out.push(Action::Publish(i));
            }
        }
    }

    /// Candidate actions; [`take`](Self::take) answers `None` for those that must wait.
    pub(crate) fn candidates(&self, s: &State) -> Vec<Action> {
        let mut out = Vec::new();
        (0..s.tx.len() as u8).for_each(|i| self.candidates_of(s, i, &mut out));
        (0..2).for_each(|owner| self.candidates_of_leader(s, owner, &mut out));
        if self.scenario.restart && !s.restarted {
            out.push(Action::Restart);
        }
        if self.scenario.takeover {
            let Takeover { lease_over, taken, fence_raised } = s.takeover;
            if !lease_over {
                out.push(Action::LeaseRunsOut);
            } else if !taken {
                out.push(Action::TakeOver);
            } else if self.rules().fence && !fence_raised {
                out.push(Action::RaiseFence);
            }
        }
        if self.scenario.backup {
            self.candidates_of_backup(s, &mut out);
        }
        if self.scenario.sweep {
            self.candidates_of_sweep(s, &mut out);
        }
        out
    }

    /// The state after an action; `None` if it has to wait.
    pub(crate) fn take(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        let s = &mut state;
        let mut goes = true;
        match action {
            Action::Register(i) => {
                let watermark = self.watermark(s, self.owner(i));
                let tx = &mut s.tx[i as usize];
                tx.registered = Some(if tx.pc == Pc::Idle { watermark } else { tx.read_ts });
                tx.lease = true;
            }
            Action::Begin(i) => self.begin(s, i),
            Action::Fetch(i) => self.fetch(s, i),
            Action::Resolve(i) => goes = self.resolve(s, i),
            Action::Turn(i, turn) => goes = self.turn(s, i, turn),
            Action::LoseLease(i) => {
                s.release(i);
                s.tx[i as usize].lost_lease = true;
            }
            Action::RollBackLeftOver(i) => self.roll_back(s, s.tx[i as usize].start),
            Action::Admit(i) => self.admit(s, i),
            Action::Apply(i) => self.apply(s, i),
            Action::Sync(owner) => self.sync(s, owner),
            Action::Publish(i) => {
                s.tx[i as usize].published = true;
                self.leave_pipe(s, i);
            }
            Action::Restart => self.restart(s),
            Action::LeaseRunsOut => s.takeover.lease_over = true,
            Action::TakeOver => {
                s.takeover.taken = true;
                s.clock[1] = if self.rules().successor_starts_at_bound { BOUND } else { self.newest_commit(s) };
            }
            Action::RaiseFence => s.takeover.fence_raised = true,
            Action::AcquireBackupLock => goes = self.acquire_backup_lock(s),
            Action::TakeBackupTs => s.backup.ts = self.draw(s, self.backup_owner()),
            Action::Settle => goes = self.settle(s),
            Action::Copy(Part::Cell(cell)) => s.backup.cells[cell as usize] = Some(s.cells[cell as usize].clone()),
            Action::Copy(Part::EntryOf(i)) => {
                let start = s.tx[i as usize].start;
                s.backup.entries[i as usize] = Some((start, s.entries.get(&start).copied()));
            }
            Action::TakeFastForwardTs => s.backup.fast_forward = self.draw(s, self.backup_owner()),
            Action::SweepPermit => s.sweep.permitted = true,
            Action::SweepChoose => goes = self.choose_doomed(s),
            Action::SweepSentinel => s.sweep.sentinel = true,
            Action::SweepDelete => self.delete_doomed(s),
        }
        goes.then_some(state)
    }

    /// All that a successor knows who does not go by the bound.
    fn newest_commit(&self, s: &State) -> Ts {
        let commits = s.entries.values().filter_map(|entry| match entry {
            Entry::Committed(commit) => Some(*commit),
            Entry::RolledBack => None,
        });
        commits.max().unwrap_or(0)
    }
}
