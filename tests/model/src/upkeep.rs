//! Backup and sweep, and what keeps them out of each other's way.

use crate::protocol::{Protocol, Seen};
use crate::rules::{CopyOrder, Settle};
use crate::state::{Action, CELLS, Part, Pc, State, Ts, Tx};

impl Protocol {
    /// Who makes the backup: the successor, where there is one.
    pub(crate) fn backup_owner(&self) -> u8 {
        u8::from(self.scenario.takeover)
    }

    pub(crate) fn candidates_of_backup(&self, s: &State, out: &mut Vec<Action>) {
        let backup = &s.backup;
        if self.scenario.takeover && !(s.takeover.taken && (s.takeover.fence_raised || !self.rules().fence)) {
            return;
        }
        // The lock is about sweep, and nothing else.
        let lock_first = self.scenario.sweep && !self.rules().timestamp_before_lock;
        let lock_second = self.scenario.sweep && self.rules().timestamp_before_lock;
        if lock_first && !backup.locked {
            out.push(Action::AcquireBackupLock);
        } else if backup.ts == 0 {
            out.push(Action::TakeBackupTs);
        } else if lock_second && !backup.locked {
            out.push(Action::AcquireBackupLock);
        } else if !backup.settled {
            out.push(Action::Settle);
        } else {
            let cells = (0..CELLS as u8).filter(|cell| backup.cells[*cell as usize].is_none()).map(Part::Cell);
            let entries = (0..s.tx.len() as u8).filter(|i| backup.entries[*i as usize].is_none()).map(Part::EntryOf);
            let next = cells.chain(entries).filter(|part| self.may_copy(s, *part));
            out.extend(next.map(Action::Copy));
            let copied = backup.cells.iter().all(Option::is_some) && backup.entries.iter().all(Option::is_some);
            if backup.fast_forward == 0 && (copied || !self.rules().fast_forward_after_copy) {
                out.push(Action::TakeFastForwardTs);
            }
        }
    }

    fn may_copy(&self, s: &State, part: Part) -> bool {
        match (self.rules().copy_order, part) {
            (CopyOrder::EntriesFirst, Part::Cell(_)) => s.backup.entries.iter().all(Option::is_some),
            (CopyOrder::CellsFirst, Part::EntryOf(_)) => s.backup.cells.iter().all(Option::is_some),
            _ => true,
        }
    }

    pub(crate) fn acquire_backup_lock(&self, s: &mut State) -> bool {
        if self.rules().lock_waits_for_deletions && s.sweep.permitted {
            return false;
        }
        s.backup.locked = true;
        true
    }

    fn is_decided(&self, s: &State, tx: &Tx) -> bool {
        match tx.pc {
            Pc::Admitted | Pc::Applied => false,
            Pc::Commit(_) => s.entries.contains_key(&tx.start),
            _ => true,
        }
    }

    /// After it nobody can commit below the backup's timestamp that has not.
    pub(crate) fn settle(&self, s: &mut State) -> bool {
        let (rules, ts, owner) = (self.rules(), s.backup.ts, self.backup_owner());
        let mine = |i: &usize| self.scenario.programs[*i].owner == owner;
        match rules.settle {
            Settle::Nothing => {}
            Settle::LocksReleased => {
                let mut started = (0..s.tx.len()).filter(mine).map(|i| &s.tx[i]);
                if started.any(|tx| tx.start != 0 && tx.start < ts && tx.lease) {
                    return false;
                }
            }
            Settle::Decided => {
                // Those of the former owner: whoever could still commit is in the sweep queue.
                if owner == 1 && rules.settle_decides_predecessors {
                    let former = (0..s.tx.len()).filter(|i| !mine(i)).map(|i| &s.tx[i]);
                    let queued: Vec<Ts> = former.filter(|tx| tx.queued).map(|tx| tx.start).collect();
                    queued.into_iter().for_each(|start| self.roll_back(s, start));
                }
                let drawn = (0..s.tx.len()).filter(mine).map(|i| &s.tx[i]);
                let open: Vec<Tx> =
                    drawn.filter(|tx| tx.commit != 0 && tx.commit < ts && !self.is_decided(s, tx)).cloned().collect();
                // A member of the pipeline is decided by its leader; whoever has lost its locks is rolled back.
                if open.iter().any(|tx| tx.lease || !matches!(tx.pc, Pc::Commit(_))) {
                    return false;
                }
                open.iter().for_each(|tx| self.roll_back(s, tx.start));
            }
        }
        s.backup.settled = true;
        true
    }

    pub(crate) fn candidates_of_sweep(&self, s: &State, out: &mut Vec<Action>) {
        let (rules, sweep) = (self.rules(), &s.sweep);
        let over = sweep.deleted && (sweep.sentinel || !rules.sentinels);
        if over {
            return;
        }
        // Without a backup there is nobody to ask.
        if self.scenario.backup && !sweep.permitted {
            if !s.backup.locked || !rules.sweep_respects_backup_lock {
                out.push(Action::SweepPermit);
            }
            return;
        }
        if sweep.doomed.is_none() {
            out.push(Action::SweepChoose);
            return;
        }
        if rules.sentinels && !sweep.sentinel {
            out.push(Action::SweepSentinel);
        }
        if !sweep.deleted && (!rules.sentinels || sweep.sentinel || !rules.sentinel_before_delete) {
            out.push(Action::SweepDelete);
        }
    }

    fn immutable_ts(&self, s: &State) -> Ts {
        let watermark = self.watermark(s, 0);
        s.tx.iter().filter_map(|tx| tx.registered).min().unwrap_or(watermark).min(watermark)
    }

    /// Sweep is granted a timestamp and chooses what no reader at or above it can see.
    pub(crate) fn choose_doomed(&self, s: &mut State) -> bool {
        let rules = self.rules();
        let mut ts = if rules.sweep_respects_readers { self.immutable_ts(s) } else { self.watermark(s, 0) };
        if rules.timestamp_before_lock && rules.timestamp_pins_sweep && s.backup.ts != 0 {
            ts = ts.min(s.backup.ts - 1);
        }
        // Undecided below it: its writer is registered no more, so it may be rolled back.
        for version in s.cells[0].clone() {
            if version < ts && !s.entries.contains_key(&version) && !s.tx[s.tx_of(version)].lease {
                self.roll_back(s, version);
            }
        }
        let Seen::Version(keep) = self.newest_visible(s, 0, &s.cells[0], ts, false) else { return false };
        let doomed: Vec<Ts> = s.cells[0].iter().copied().filter(|version| *version < keep).collect();
        if doomed.is_empty() {
            return false;
        }
        s.sweep.ts = ts;
        s.sweep.doomed = Some(doomed);
        true
    }

    pub(crate) fn delete_doomed(&self, s: &mut State) {
        let doomed = s.sweep.doomed.clone().unwrap_or_default();
        s.cells[0].retain(|version| !doomed.contains(version));
        s.sweep.deleted = true;
        // The permit ends with the deletion.
        s.sweep.permitted = s.sweep.permitted && self.rules().sentinels && !s.sweep.sentinel;
    }
}
