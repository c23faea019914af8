//! The versions of every cell in the order in which readers see them, and what is known of each writer's fate.
//!
//! An attempt whose outcome its client never learned is *maybe* committed. Each read that could have seen it is
//! evidence: either it shows its effect, or something older, and then the attempt is not committed. The first piece
//! of evidence decides; a later one that contradicts it is an anomaly, not a second opinion. A read that fits
//! several fates (an absent cell, below a delete that may not have happened) decides nothing.

use crate::history::Status;
use crate::index::{CellId, Index, TxnId};
use std::collections::HashMap;

pub(crate) struct Timeline<'i, 'h> {
    pub(crate) index: &'i Index<'h>,
    /// Of each transaction: its commit timestamp if it has one, given or inferred.
    commit_ts: Vec<Option<u64>>,
    fates: Vec<Fate>,
    versions: Vec<Vec<Version<'h>>>,
    /// Grows whenever an unknown fate is decided.
    decided: usize,
    /// Of each cell: attempts that may have written it, nobody knows when.
    placeless: HashMap<CellId, Vec<TxnId>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Committed,
    Aborted,
    /// Unknown, and nothing speaks for either.
    Open,
    /// Unknown to its client, but its effect was seen.
    SeenCommitted(Witness),
    /// Unknown to its client, but who must have seen its effect did not.
    SeenAborted(Witness),
}

/// Who observed something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Witness {
    Transaction(TxnId),
    FinalState,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Version<'h> {
    pub(crate) commit_ts: u64,
    start_ts: u64,
    pub(crate) txn: TxnId,
    pub(crate) value: Option<&'h str>,
}

/// How an observation compares with what should have been seen.
pub(crate) enum Verdict<'h> {
    Fits,
    /// It fits more than one fate of an unknown writer.
    Open,
    /// It fits only if an attempt committed of which nobody knows when, and nothing speaks against that.
    Excused,
    /// It fits none. What should have been seen, as far as that is certain: none is a cell never written.
    Wrong(Option<Version<'h>>),
}

impl<'i, 'h> Timeline<'i, 'h> {
    pub(crate) fn new(index: &'i Index<'h>) -> Self {
        let transactions = &index.history.transactions;
        let fates = transactions.iter().map(|transaction| match transaction.status {
            // Without a commit timestamp its place is as unknown as that of a lost answer.
            Status::Committed if transaction.commit_ts.is_some() || !transaction.wrote() => Fate::Committed,
            Status::Aborted => Fate::Aborted,
            Status::Committed | Status::Unknown => Fate::Open,
        });
        let mut timeline = Self {
            index,
            commit_ts: vec![None; transactions.len()],
            fates: fates.collect(),
            versions: vec![Vec::new(); index.cells.len()],
            decided: 0,
            placeless: HashMap::new(),
        };
        for (txn, transaction) in transactions.iter().enumerate() {
            if let Some(commit_ts) = transaction.commit_ts.filter(|_| transaction.status != Status::Aborted) {
                timeline.add(txn, commit_ts);
            }
        }
        for cell in 0..timeline.versions.len() {
            timeline.sort(cell);
        }
        timeline
    }

    /// Places an attempt whose commit timestamp was not told.
    pub(crate) fn place(&mut self, txn: TxnId, commit_ts: u64) {
        self.add(txn, commit_ts);
        for write in self.index.writes(txn) {
            self.sort(write.cell);
        }
    }

    fn add(&mut self, txn: TxnId, commit_ts: u64) {
        self.commit_ts[txn] = Some(commit_ts);
        let start_ts = self.index.txn(txn).start_ts;
        for write in self.index.writes(txn) {
            self.versions[write.cell].push(Version { commit_ts, start_ts, txn, value: write.value });
        }
    }

    fn sort(&mut self, cell: CellId) {
        let by_start = self.index.table_of(cell).no_conflict;
        let key = |version: &Version<'h>| {
            if by_start { (version.start_ts, version.txn) } else { (version.commit_ts, version.txn) }
        };
        self.versions[cell].sort_unstable_by_key(key);
    }

    /// Takes down who is left without a place: they may explain what nothing else does.
    pub(crate) fn leave_placeless(&mut self, txns: &[TxnId]) {
        for &txn in txns {
            for write in self.index.writes(txn) {
                self.placeless.entry(write.cell).or_default().push(txn);
            }
        }
    }

    fn is_excused(&self, cell: CellId, below: u64, got: Option<&str>, certain: Option<Version<'_>>) -> bool {
        // Where values repeat, an inferred place is too weak a witness: several orders may explain what was seen.
        let is_inferred = certain.is_some_and(|version| self.index.txn(version.txn).commit_ts.is_none());
        if is_inferred && self.index.table_of(cell).touch {
            return true;
        }
        self.placeless.get(&cell).is_some_and(|txns| {
            txns.iter().any(|&txn| {
                let left = self.index.write_to(txn, cell).map(|write| write.value);
                left == Some(got) && self.index.txn(txn).start_ts < below && self.can_hide(txn, cell, certain)
            })
        })
    }

    /// Whether an attempt may have written on top of a version: it saw it, or, in a table without conflicts, started
    /// after it.
    pub(crate) fn can_hide(&self, txn: TxnId, cell: CellId, hidden: Option<Version<'_>>) -> bool {
        let transaction = self.index.txn(txn);
        let is_free = self.index.table_of(cell).no_conflict;
        hidden.is_none_or(|hidden| {
            if is_free { hidden.start_ts < transaction.start_ts } else { hidden.commit_ts < transaction.read_ts }
        })
    }

    pub(crate) fn fate(&self, txn: TxnId) -> Fate {
        self.fates[txn]
    }

    /// Whether it committed, as its client knows or as somebody saw.
    pub(crate) fn is_committed(&self, txn: TxnId) -> bool {
        matches!(self.fates[txn], Fate::Committed | Fate::SeenCommitted(_))
    }

    pub(crate) fn commit_ts(&self, txn: TxnId) -> Option<u64> {
        self.commit_ts[txn]
    }

    pub(crate) fn decided(&self) -> usize {
        self.decided
    }

    /// A cell's versions in the order of their visibility, the last one on top.
    pub(crate) fn versions(&self, cell: CellId) -> &[Version<'h>] {
        &self.versions[cell]
    }

    /// The versions committed below a timestamp, whoever of them really did, in the order in which a reader looks.
    pub(crate) fn newest_first(&self, cell: CellId, below: u64) -> impl Iterator<Item = Version<'h>> {
        let by_start = self.index.table_of(cell).no_conflict;
        let versions = &self.versions[cell];
        let end = versions.partition_point(|version| {
            // A commit timestamp is above its start timestamp, so this bound holds for both orders.
            if by_start { version.start_ts < below } else { version.commit_ts < below }
        });
        versions[..end].iter().rev().copied().filter(move |version| version.commit_ts < below)
    }

    /// What is certainly seen below a timestamp, leaving out attempts of unknown fate.
    pub(crate) fn certain(&self, cell: CellId, below: u64) -> Option<Version<'h>> {
        self.newest_first(cell, below).find(|version| self.is_committed(version.txn))
    }

    /// Whether a value fits what may be seen below a timestamp.
    pub(crate) fn may_be(&self, cell: CellId, below: u64, got: Option<&str>) -> bool {
        for version in self.newest_first(cell, below) {
            match self.fates[version.txn] {
                Fate::Aborted | Fate::SeenAborted(_) => {}
                Fate::Open if version.value == got => return true,
                Fate::Open => {}
                Fate::Committed | Fate::SeenCommitted(_) => return version.value == got,
            }
        }
        got.is_none()
    }

    /// Compares an observation with what may be seen below a timestamp, and learns from it who committed.
    pub(crate) fn judge(&mut self, by: Witness, cell: CellId, below: u64, got: Option<&str>) -> Verdict<'h> {
        let mut open: Vec<Version<'h>> = Vec::new();
        let mut certain = None;
        for version in self.newest_first(cell, below) {
            match self.fates[version.txn] {
                Fate::Aborted | Fate::SeenAborted(_) => {}
                Fate::Open => open.push(version),
                Fate::Committed | Fate::SeenCommitted(_) => {
                    certain = Some(version);
                    break;
                }
            }
        }
        let bottom_fits = certain.and_then(|version| version.value) == got;
        let first_fit = open.iter().position(|version| version.value == got);
        let fits = open.iter().filter(|version| version.value == got).count() + usize::from(bottom_fits);
        if fits == 0 {
            let excused = self.is_excused(cell, below, got, certain);
            return if excused { Verdict::Excused } else { Verdict::Wrong(certain) };
        }
        // Whatever lies above the topmost fit would have been seen instead of it.
        for version in &open[..first_fit.unwrap_or(open.len())] {
            self.decide(version.txn, Fate::SeenAborted(by));
        }
        match first_fit {
            _ if fits > 1 => Verdict::Open,
            Some(fit) => {
                self.decide(open[fit].txn, Fate::SeenCommitted(by));
                Verdict::Fits
            }
            None => Verdict::Fits,
        }
    }

    /// Takes down that an effect of an attempt of unknown outcome was seen.
    pub(crate) fn seen(&mut self, txn: TxnId, by: Witness) {
        if self.fates[txn] == Fate::Open {
            self.decide(txn, Fate::SeenCommitted(by));
        }
    }

    /// Takes down that somebody saw what `writer` left, so that nothing above it was there.
    pub(crate) fn seen_through(&mut self, by: Witness, cell: CellId, below: u64, writer: TxnId) {
        if self.commit_ts[writer].is_none_or(|commit_ts| commit_ts >= below) {
            return;
        }
        let above = self.newest_first(cell, below).take_while(|version| version.txn != writer);
        let open: Vec<TxnId> = above.map(|version| version.txn).filter(|txn| self.fates[*txn] == Fate::Open).collect();
        for txn in open {
            self.decide(txn, Fate::SeenAborted(by));
        }
    }

    pub(crate) fn has_open(&self) -> bool {
        self.fates.contains(&Fate::Open)
    }

    fn decide(&mut self, txn: TxnId, fate: Fate) {
        debug_assert_eq!(self.fates[txn], Fate::Open, "evidence is for those of whom nothing is known");
        self.fates[txn] = fate;
        self.decided += 1;
    }
}
