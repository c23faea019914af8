//! A transaction of the simulated store: reads of its snapshot, and a commit with its checks.

use super::{Bug, Range, Truth, Tx};
use atlas_checker::history::{CellName, Client, Op, Scan, Status, Transaction};
use std::collections::BTreeMap;

impl Tx<'_> {
    pub(crate) fn rng(&mut self) -> &mut super::Rng {
        &mut self.store.rng
    }

    /// Something that no other value of the run has.
    pub(crate) fn tag(&mut self) -> u64 {
        self.store.tags += 1;
        self.store.tags
    }

    pub(crate) fn get(&mut self, table: &str, row: &str, col: &str) -> Option<String> {
        let below = self.below();
        let value = self.see(table, row, col, below);
        let cell = CellName::new(table, row, col);
        self.ops.push(Op::Get { cell, value: value.as_deref().map(Into::into) });
        value
    }

    pub(crate) fn put(&mut self, table: &str, row: &str, col: &str, value: &str) {
        self.own.insert((table.into(), row.into(), col.into()), Some(value.into()));
        self.ops.push(Op::Put { cell: CellName::new(table, row, col), value: value.into() });
    }

    pub(crate) fn delete(&mut self, table: &str, row: &str, col: &str) {
        self.own.insert((table.into(), row.into(), col.into()), None);
        self.ops.push(Op::Delete { cell: CellName::new(table, row, col) });
    }

    pub(crate) fn scan(&mut self, table: &str, range: &Range) -> Vec<(String, String, String)> {
        let below = self.below();
        let mut rows = self.cells_in(table, range, below);
        let mut consumed_to = None;
        if range.reverse {
            rows.reverse();
        }
        if let Some(limit) = range.limit.filter(|limit| *limit < rows.len()) {
            rows.truncate(limit);
            consumed_to = rows.last().map(|(row, col, _)| (row.as_str().into(), col.as_str().into()));
        }
        if range.reverse {
            rows.reverse();
        }
        let bound = |bound: &Option<String>| bound.as_deref().map(Into::into);
        self.ops.push(Op::Scan(Box::new(Scan {
            table: table.into(),
            start_row: bound(&range.start_row),
            end_row: bound(&range.end_row),
            start_col: bound(&range.start_col),
            end_col: bound(&range.end_col),
            reverse: range.reverse,
            consumed_to,
            rows: rows.iter().map(|(r, c, v)| (r.as_str().into(), c.as_str().into(), v.as_str().into())).collect(),
        })));
        rows
    }

    fn below(&mut self) -> u64 {
        let latest = self.store.settings.bug == Bug::ReadsTheLatest && self.store.rng.percent(5);
        if latest { u64::MAX } else { self.read_ts }
    }

    fn see(&self, table: &str, row: &str, col: &str, below: u64) -> Option<String> {
        let key = (table.to_owned(), row.to_owned(), col.to_owned());
        match self.own.get(&key) {
            Some(own) => own.clone(),
            None => self.store.visible(table, &(key.1, key.2), below),
        }
    }

    fn cells_in(&self, table: &str, range: &Range, below: u64) -> Vec<(String, String, String)> {
        let stored = self.store.tables.get(table).into_iter().flat_map(BTreeMap::keys).cloned();
        let own = self.own.keys().filter(|(own_table, ..)| own_table == table);
        let mut keys: Vec<(String, String)> = stored.chain(own.map(|(_, r, c)| (r.clone(), c.clone()))).collect();
        keys.sort();
        keys.dedup();
        keys.retain(|(row, col)| {
            range.start_row.as_ref().is_none_or(|start| row >= start)
                && range.end_row.as_ref().is_none_or(|end| row < end)
                && range.start_col.as_ref().is_none_or(|start| col >= start)
                && range.end_col.as_ref().is_none_or(|end| col < end)
        });
        let values = keys.into_iter().filter_map(|(row, col)| {
            let value = self.see(table, &row, &col, below)?;
            Some((row, col, value))
        });
        values.collect()
    }

    pub(super) fn commit(mut self) {
        if self.own.is_empty() {
            return self.end(Status::Committed, None, Truth::ReadOnly, None);
        }
        if self.store.settings.faults && self.store.rng.percent(5) {
            return self.end(Status::Aborted, None, Truth::Fault, Some("fault"));
        }
        let commit_ts = self.store.fresh_ts();
        let bug = self.store.settings.bug;
        if bug != Bug::SkipConflictCheck && self.write_conflict() {
            return self.lose(commit_ts, Truth::WriteConflict);
        }
        if bug != Bug::SkipRecheck && self.read_conflict(commit_ts) {
            return self.lose(commit_ts, Truth::ReadConflict);
        }
        let mut writes: Vec<_> = std::mem::take(&mut self.own).into_iter().collect();
        // The answer of some is lost, and half of those never arrived.
        if self.store.settings.faults && self.store.rng.percent(8) {
            let told = self.store.rng.percent(50).then_some(commit_ts);
            if self.store.rng.percent(50) {
                return self.end(Status::Unknown, told, Truth::Fault, Some("fault"));
            }
            self.store.apply(self.start_ts, commit_ts, writes);
            return self.end(Status::Unknown, told, Truth::Committed(commit_ts), Some("fault"));
        }
        match bug {
            Bug::ForgetsCommits if self.store.rng.percent(5) => writes.clear(),
            Bug::TornCommits if self.store.rng.percent(10) => writes.truncate(writes.len() - 1),
            _ => {}
        }
        self.store.apply(self.start_ts, commit_ts, writes);
        self.end(Status::Committed, Some(commit_ts), Truth::Committed(commit_ts), None);
    }

    fn lose(mut self, commit_ts: u64, truth: Truth) {
        if self.store.settings.bug == Bug::AbortsLeak && self.store.rng.percent(50) {
            let writes = std::mem::take(&mut self.own).into_iter().collect();
            self.store.apply(self.start_ts, commit_ts, writes);
        }
        self.end(Status::Aborted, Some(commit_ts), truth, Some("conflict"));
    }

    fn write_conflict(&self) -> bool {
        self.own.keys().filter(|(table, ..)| !self.store.is_free(table)).any(|(table, row, col)| {
            let versions = self.store.tables.get(table).and_then(|cells| cells.get(&(row.clone(), col.clone())));
            versions.is_some_and(|versions| versions.iter().any(|version| version.commit_ts >= self.read_ts))
        })
    }

    /// Whether anything it read in a serializable table is different just below its commit.
    fn read_conflict(&mut self, commit_ts: u64) -> bool {
        let own = std::mem::take(&mut self.own);
        let ops = std::mem::take(&mut self.ops);
        let mut differs = false;
        for op in &ops {
            match op {
                Op::Put { cell, value } => {
                    self.own.insert(name(cell), Some(value.to_string()));
                }
                Op::Delete { cell } => {
                    self.own.insert(name(cell), None);
                }
                Op::Get { cell, value } if self.store.is_serializable(&cell.table) => {
                    differs |= self.see(&cell.table, &cell.row, &cell.col, commit_ts).as_deref() != value.as_deref();
                }
                Op::Scan(scan) if self.store.is_serializable(&scan.table) => {
                    differs |= self.scan_differs(scan, commit_ts);
                }
                Op::Get { .. } | Op::Scan(_) => {}
            }
        }
        (self.own, self.ops) = (own, ops);
        differs
    }

    fn scan_differs(&self, scan: &Scan, below: u64) -> bool {
        let now = self.cells_in(&scan.table, &Range::default(), below);
        let mut now = now.iter().filter(|(row, col, _)| scan.covers(row, col));
        if self.store.settings.bug == Bug::RecheckIgnoresAbsence {
            return scan
                .rows
                .iter()
                .any(|(row, col, value)| self.see(&scan.table, row, col, below).as_deref() != Some(&**value));
        }
        let same = scan.rows.iter().all(|(row, col, value)| {
            now.next().is_some_and(|(r, c, v)| (r.as_str(), c.as_str(), v.as_str()) == (&**row, &**col, &**value))
        });
        !same || now.next().is_some()
    }

    fn end(self, status: Status, commit_ts: Option<u64>, truth: Truth, reason: Option<&str>) {
        let end_ns = self.store.tick();
        let Self { store, client, start_ts, read_ts, begin_ns, ops, .. } = self;
        let reason = reason.map(str::to_owned);
        let client = Client::Number(client as u64);
        store.history.push(Transaction {
            line: 0,
            client,
            status,
            start_ts,
            read_ts,
            tentative: false,
            commit_ts,
            begin_ns,
            end_ns,
            reason,
            ops,
        });
        store.truth.push(truth);
    }
}

fn name(cell: &CellName) -> (String, String, String) {
    (cell.table.to_string(), cell.row.to_string(), cell.col.to_string())
}
