//! What a check found out: anomalies with their pictures, and how much was checked at all.

use std::collections::BTreeMap;
use std::fmt;

/// What kind of thing went wrong. Where the literature has a name for it, [`name`](Kind::name) begins with that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A line that contradicts itself: an end before its beginning, a scan with rows outside its bounds.
    Malformed,
    /// Two attempts have one start timestamp.
    DuplicateStartTs,
    /// Two attempts have one commit timestamp.
    DuplicateCommitTs,
    /// A snapshot above its start, a commit not above its start, a commit timestamp missing or too many.
    TimestampOrder,
    /// A value was put twice, in a table that does not allow that: reads of it prove nothing.
    DuplicateValue,
    /// Adya G1a: an aborted write was seen.
    AbortedRead,
    /// Adya G1b: a value was seen that its writer overwrote before it committed.
    IntermediateRead,
    /// A value was seen that nobody put, or put elsewhere only.
    ThinAirRead,
    /// A commit at or above the snapshot was seen: a fuzzy read (P2).
    FutureRead,
    /// A commit below the snapshot was not seen; an older version was seen instead.
    StaleRead,
    /// Adya G-single, read skew (A5A): one effect of a commit was seen and another one was not.
    ReadSkew,
    /// Hermitage PMP: a scan missed a row that its snapshot holds, or returned one that was deleted.
    Phantom,
    /// A transaction did not see its own last write, or saw what it wrote only later.
    Internal,
    /// The effect of one attempt of unknown outcome was seen by one reader and must be, but was not, by another.
    TornOutcome,
    /// P4: two transactions read a cell, and both wrote it without seeing the other.
    LostUpdate,
    /// Two committed transactions wrote a cell, neither of which saw the other: the second had to lose.
    WriteConflict,
    /// Adya G2-item, write skew (A5B): what a serializable transaction read had changed before its commit.
    WriteSkew,
    /// Adya G2: a row appeared in, or vanished from, a range that a serializable transaction read, before its commit.
    PhantomSkew,
    /// What was acknowledged before a transaction began is not before it in the order of timestamps.
    RealTime,
    /// The final state does not hold what was committed.
    Durability,
    /// What the workload keeps was not kept.
    Invariant,
    /// The run did too little for its success to mean anything.
    Vacuous,
}

impl Kind {
    /// Every kind, in the order in which a report counts them.
    pub const ALL: [Self; 22] = [
        Self::Malformed,
        Self::DuplicateStartTs,
        Self::DuplicateCommitTs,
        Self::TimestampOrder,
        Self::DuplicateValue,
        Self::AbortedRead,
        Self::IntermediateRead,
        Self::ThinAirRead,
        Self::FutureRead,
        Self::StaleRead,
        Self::ReadSkew,
        Self::Phantom,
        Self::Internal,
        Self::TornOutcome,
        Self::LostUpdate,
        Self::WriteConflict,
        Self::WriteSkew,
        Self::PhantomSkew,
        Self::RealTime,
        Self::Durability,
        Self::Invariant,
        Self::Vacuous,
    ];

    /// Its name in reports; machines may rely on it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::DuplicateStartTs => "duplicate-start-ts",
            Self::DuplicateCommitTs => "duplicate-commit-ts",
            Self::TimestampOrder => "timestamp-order",
            Self::DuplicateValue => "duplicate-value",
            Self::AbortedRead => "G1a-aborted-read",
            Self::IntermediateRead => "G1b-intermediate-read",
            Self::ThinAirRead => "thin-air-read",
            Self::FutureRead => "future-read",
            Self::StaleRead => "stale-read",
            Self::ReadSkew => "G-single-read-skew",
            Self::Phantom => "PMP-phantom",
            Self::Internal => "internal",
            Self::TornOutcome => "torn-outcome",
            Self::LostUpdate => "P4-lost-update",
            Self::WriteConflict => "write-conflict",
            Self::WriteSkew => "G2-item-write-skew",
            Self::PhantomSkew => "G2-phantom",
            Self::RealTime => "real-time",
            Self::Durability => "durability",
            Self::Invariant => "invariant",
            Self::Vacuous => "vacuous",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anomaly {
    /// What kind of thing.
    pub kind: Kind,
    /// What happened, in a sentence.
    pub message: String,
    /// Those involved, as places in [`History::transactions`](crate::history::History::transactions).
    pub transactions: Vec<usize>,
    /// Who did what when, one lane for each of them; empty where a sentence says it all. ASCII, lines end with `\n`.
    pub picture: String,
}

/// How much there was to check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Attempts.
    pub transactions: u64,
    /// Acknowledged commits, those that only read included.
    pub committed: u64,
    /// Acknowledged commits that wrote.
    pub committed_writers: u64,
    /// Attempts that aborted.
    pub aborted: u64,
    /// Those of them that lost against another transaction.
    pub conflicts: u64,
    /// Attempts whose outcome their clients did not learn.
    pub unknown: u64,
    /// Those of them whose effect was seen.
    pub unknown_committed: u64,
    /// Those of them whose effect must have been seen, and was not.
    pub unknown_aborted: u64,
    /// Those of them of which nothing is known in the end, or that wrote nothing.
    pub unknown_open: u64,
    /// Cells compared with a snapshot: each cell of a scan counts, present or absent.
    pub reads: u64,
    /// Cells compared once more with the state just below a commit, in serializable tables.
    pub rechecked: u64,
    /// Reads that fit only if an attempt committed whose commit timestamp nobody knows: neither right nor wrong.
    pub excused: u64,
    /// Cells compared with the final state; none if there is no final state.
    pub final_cells: Option<u64>,
    /// How often the workload's invariant was looked at; none if it has none.
    pub invariants: Option<u64>,
    /// Faults that were injected; none if the history does not say.
    pub faults: Option<u64>,
}

/// What a check found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The first few of each kind, in the order of the checks.
    pub anomalies: Vec<Anomaly>,
    /// How many of each kind there are in all.
    pub counts: BTreeMap<Kind, u64>,
    /// How much there was to check.
    pub stats: Stats,
}

impl Report {
    /// Whether nothing went wrong.
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many anomalies there are of a kind.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }
}

impl fmt::Display for Report {
    /// For people: the same report is the same text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for anomaly in &self.anomalies {
            writeln!(f, "{}: {}", anomaly.kind, anomaly.message)?;
            for line in anomaly.picture.lines() {
                writeln!(f, "    {line}")?;
            }
            writeln!(f)?;
        }
        for (kind, count) in &self.counts {
            let shown = self.anomalies.iter().filter(|anomaly| anomaly.kind == *kind).count() as u64;
            let note = if shown < *count { format!(", {shown} shown") } else { String::new() };
            writeln!(f, "{kind}: {count}{note}")?;
        }
        write!(f, "{}", self.stats)?;
        writeln!(f, "{}", if self.is_clean() { "no anomaly" } else { "ANOMALIES FOUND" })
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transactions, committed, committed_writers, aborted, conflicts, unknown, .. } = self;
        writeln!(
            f,
            "{transactions} transactions: {committed} committed ({committed_writers} of them wrote), {aborted} aborted \
             ({conflicts} by conflict), {unknown} unknown"
        )?;
        if *unknown > 0 {
            let Self { unknown_committed, unknown_aborted, unknown_open, .. } = self;
            writeln!(
                f,
                "of the unknown {unknown_committed} committed, {unknown_aborted} did not, {unknown_open} nobody can tell"
            )?;
        }
        writeln!(f, "{} reads checked, {} of them again at commit", self.reads, self.rechecked)?;
        if self.excused > 0 {
            writeln!(
                f,
                "{} of them prove nothing: an attempt of unknown outcome and time may explain them",
                self.excused
            )?;
        }
        match self.final_cells {
            Some(cells) => writeln!(f, "final state: {cells} cells checked")?,
            None => writeln!(f, "final state: none in the history, durability was not checked")?,
        }
        if let Some(invariants) = self.invariants {
            writeln!(f, "invariant of the workload: checked {invariants} times")?;
        }
        self.faults.map_or(Ok(()), |faults| writeln!(f, "faults injected: {faults}"))
    }
}

/// Collects anomalies, and only counts those that nobody would read any more.
pub(crate) struct Findings {
    shown_per_kind: u64,
    report: Report,
}

impl Findings {
    pub(crate) fn new(shown_per_kind: u64) -> Self {
        Self { shown_per_kind, report: Report::default() }
    }

    /// Adds an anomaly. `describe` is asked for the sentence, those involved and the picture if it will be shown.
    pub(crate) fn add(&mut self, kind: Kind, describe: impl FnOnce() -> (String, Vec<usize>, String)) {
        let count = self.report.counts.entry(kind).or_default();
        *count += 1;
        if *count <= self.shown_per_kind {
            let (message, transactions, picture) = describe();
            self.report.anomalies.push(Anomaly { kind, message, transactions, picture });
        }
    }

    pub(crate) fn stats(&mut self) -> &mut Stats {
        &mut self.report.stats
    }

    pub(crate) fn finish(self) -> Report {
        self.report
    }
}
