//! What a run of transactions did, as its clients saw it.
//!
//! A history is a [`Header`], one [`Transaction`] for every attempt that got a start timestamp, and, if the run read
//! its tables once more at the end, a [`FinalState`]. As a file it is JSON, one object a line; the crate's README
//! defines it. [`Reader`] and [`Writer`] are the two ends of that file.
//!
//! All timestamps are logical, all `_ns` are nanoseconds of one monotonic clock, and every bound is exclusive unless
//! it says otherwise.

mod read;
mod wire;
mod write;

pub use read::{LINE_BYTES_MAX, Line, ReadError, Reader};
pub use write::{Writer, encode_transaction};

use std::collections::BTreeMap;
use std::fmt;
use std::io::BufRead;
use std::sync::Arc;

/// The name of a table, row or column, or a value: text, shared because a run repeats its names very often.
pub type Text = Arc<str>;

/// The first line: which workload ran, and what its tables promise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The workload's name; [`crate::invariants`] knows what some of them keep.
    pub workload: String,
    /// Tables whose reads are checked again at commit.
    pub serializable_tables: Vec<String>,
    /// Tables without a write-write check: there the version with the highest start timestamp wins.
    pub no_conflict_tables: Vec<String>,
    /// Tables in which a put may repeat a value.
    pub touch_tables: Vec<String>,
}

/// How an attempt ended, as its client knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// The commit was acknowledged.
    Committed,
    /// It certainly did not commit, and never will.
    Aborted,
    /// The answer was lost: it may have committed, or may still.
    Unknown,
}

impl Status {
    /// The word in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::Unknown => "unknown",
        }
    }
}

/// Who ran an attempt: a number or a name, only shown to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Client {
    /// Usually the number of a task.
    Number(u64),
    /// Anything that helps to find it again.
    Name(String),
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(&crate::text::plain(name)),
        }
    }
}

/// One attempt of a transaction that got a start timestamp, read-only ones and retries included.
#[derive(Debug, Clone, PartialEq)]
pub struct Transaction {
    /// The line of the file it stood on, from 1; 0 if it was not read from a file.
    pub line: u64,
    /// Who ran it.
    pub client: Client,
    /// How it ended.
    pub status: Status,
    /// Unique over the run.
    pub start_ts: u64,
    /// The snapshot: commits below it are seen. Not above `start_ts`.
    pub read_ts: u64,
    /// It also saw commits that were still being written, below `read_ts`: what it read counts if it committed, and else not.
    pub tentative: bool,
    /// The commit timestamp, above `start_ts`; none for one that wrote nothing or never drew one.
    pub commit_ts: Option<u64>,
    /// Before the transaction was begun.
    pub begin_ns: u64,
    /// After its outcome was known, or given up on.
    pub end_ns: u64,
    /// Why it did not commit: `conflict`, or another word; what stands nowhere counts as a conflict if it aborted.
    pub reason: Option<String>,
    /// In program order.
    pub ops: Vec<Op>,
}

impl Transaction {
    /// Whether it put or deleted anything.
    pub fn wrote(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Put { .. } | Op::Delete { .. }))
    }

    /// Whether what it read is promised to be right, as far as its client knows.
    pub fn reads_count(&self) -> bool {
        !self.tentative || self.status == Status::Committed
    }

    /// Whether it aborted because of another transaction, as far as the history tells.
    pub fn is_conflict(&self) -> bool {
        self.status == Status::Aborted && self.reason.as_deref().is_none_or(|reason| reason == "conflict")
    }
}

/// A cell's address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellName {
    /// The table's name.
    pub table: Text,
    /// The row's name.
    pub row: Text,
    /// The column's name.
    pub col: Text,
}

impl CellName {
    /// Of borrowed names.
    pub fn new(table: &str, row: &str, col: &str) -> Self {
        Self { table: table.into(), row: row.into(), col: col.into() }
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Read one cell: its value, or none if it was absent.
    Get {
        /// What was read.
        cell: CellName,
        /// What was there.
        value: Option<Text>,
    },
    /// Wrote one cell.
    Put {
        /// What was written.
        cell: CellName,
        /// The new value, unique in the run except in touch tables.
        value: Text,
    },
    /// Removed one cell.
    Delete {
        /// What was removed.
        cell: CellName,
    },
    /// Read a range.
    Scan(Box<Scan>),
}

/// One cell as a scan returned it: row, column, value.
pub type Row = (Text, Text, Text);

/// A read of all cells within bounds, or of a first part of them.
///
/// A cell is within bounds if its row is in `[start_row, end_row)` and its column in `[start_col, end_col)`; a bound
/// that is none does not bound. Cells are ordered by row, then column, as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The table.
    pub table: Text,
    /// Inclusive.
    pub start_row: Option<Text>,
    /// Exclusive.
    pub end_row: Option<Text>,
    /// Inclusive.
    pub start_col: Option<Text>,
    /// Exclusive.
    pub end_col: Option<Text>,
    /// Whether it went from the last cell to the first.
    pub reverse: bool,
    /// The last cell that it took, inclusive, if it stopped there; none if it saw everything within its bounds.
    pub consumed_to: Option<(Text, Text)>,
    /// What it returned, ascending whatever its direction.
    pub rows: Vec<Row>,
}

impl Scan {
    /// A forward scan of a whole table.
    pub fn whole(table: &str, rows: Vec<Row>) -> Self {
        Self {
            table: table.into(),
            start_row: None,
            end_row: None,
            start_col: None,
            end_col: None,
            reverse: false,
            consumed_to: None,
            rows,
        }
    }

    /// Whether nothing but its table bounds it and it was read to the end.
    pub fn is_whole_table(&self) -> bool {
        let bounds = [&self.start_row, &self.end_row, &self.start_col, &self.end_col];
        bounds.iter().all(|bound| bound.is_none()) && self.consumed_to.is_none()
    }

    /// Whether a cell lies within its bounds and within what it consumed of them.
    pub fn covers(&self, row: &str, col: &str) -> bool {
        let within = |name: &str, start: &Option<Text>, end: &Option<Text>| {
            start.as_deref().is_none_or(|start| start <= name) && end.as_deref().is_none_or(|end| name < end)
        };
        let consumed = self.consumed_to.as_ref().is_none_or(|(last_row, last_col)| {
            let last = (&**last_row, &**last_col);
            if self.reverse { (row, col) >= last } else { (row, col) <= last }
        });
        consumed && within(row, &self.start_row, &self.end_row) && within(col, &self.start_col, &self.end_col)
    }
}

/// What stood in the tables when the run was over, read in one snapshot; and what else the run knows by then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FinalState {
    /// Each table's cells, ascending. A table that is not named here was not read.
    pub tables: BTreeMap<String, Vec<Row>>,
    /// The snapshot it was read in, exclusive; none if everything was below it.
    pub read_ts: Option<u64>,
    /// How many faults were injected into the run; none if none could be.
    pub faults: Option<u64>,
}

/// A whole run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// What ran.
    pub header: Header,
    /// Every attempt, in any order.
    pub transactions: Vec<Transaction>,
    /// What was left.
    pub final_state: Option<FinalState>,
}

impl History {
    /// Reads a whole history. Memory grows with it.
    ///
    /// Fails with the line that is not as the format wants it; never panics, whatever the bytes.
    pub fn read(from: impl BufRead) -> Result<Self, ReadError> {
        let mut reader = Reader::new(from)?;
        let mut history = Self { header: reader.header().clone(), ..Self::default() };
        while let Some(line) = reader.next_line()? {
            match line {
                Line::Transaction(transaction) => history.transactions.push(transaction),
                Line::Final(state) => history.final_state = Some(state),
            }
        }
        Ok(history)
    }

    /// Writes it as a file that [`read`](Self::read) gives back.
    pub fn write(&self, to: impl std::io::Write) -> std::io::Result<()> {
        let mut writer = Writer::new(to, &self.header)?;
        for transaction in &self.transactions {
            writer.transaction(transaction)?;
        }
        match &self.final_state {
            Some(state) => writer.finish(state),
            None => writer.flush(),
        }
    }
}
