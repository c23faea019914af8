//! Reads a history line by line, and says which line is wrong and why.

use super::wire::{FinalLine, HeaderLine, OpField, RowField, TransactionLine};
use super::{CellName, FinalState, Header, Op, Row, Scan, Text, Transaction};
use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{BufRead, Read};

/// The longest line that is read, in bytes: a limit on the memory that a damaged file can ask for.
pub const LINE_BYTES_MAX: usize = 256 << 20;

/// Why a history could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("line {line} of the history could not be read: {source}")]
    Io {
        /// From 1.
        line: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not as the format wants it.
    #[error("line {line} of the history: {problem}")]
    Line {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
}

/// A line after the first.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// An attempt.
    Transaction(Transaction),
    /// The last line.
    Final(FinalState),
}

/// Reads a history without holding it in memory.
pub struct Reader<R> {
    from: R,
    header: Header,
    line: u64,
    line_bytes_max: usize,
    buffer: Vec<u8>,
    names: Names,
    finished: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the first line.
    pub fn new(from: R) -> Result<Self, ReadError> {
        Self::with_line_limit(from, LINE_BYTES_MAX)
    }

    /// As [`new`](Self::new), with another limit on the bytes of a line.
    pub fn with_line_limit(from: R, line_bytes_max: usize) -> Result<Self, ReadError> {
        let (header, names) = (Header::default(), Names::default());
        let mut reader = Self { from, header, line: 0, line_bytes_max, buffer: Vec::new(), names, finished: false };
        if !reader.fill()? {
            reader.line = 1;
            return Err(reader.wrong("there is none: the first line of a history names its workload"));
        }
        let header: HeaderLine = serde_json::from_slice(&reader.buffer).map_err(|error| reader.wrong(error))?;
        reader.header = header.into();
        Ok(reader)
    }

    /// The first line.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next line, or none at the end.
    pub fn next_line(&mut self) -> Result<Option<Line>, ReadError> {
        if !self.fill()? {
            return Ok(None);
        }
        if self.finished {
            return Err(self.wrong("the final state must be the last line"));
        }
        if self.is_final() {
            let line: FinalLine = serde_json::from_slice(&self.buffer).map_err(|error| self.wrong(error))?;
            self.finished = true;
            return Ok(Some(Line::Final(final_state(line, &mut self.names))));
        }
        let buffer = std::mem::take(&mut self.buffer);
        let transaction = self.transaction(&buffer);
        self.buffer = buffer;
        Ok(Some(Line::Transaction(transaction?)))
    }

    fn transaction(&mut self, line: &[u8]) -> Result<Transaction, ReadError> {
        let line: TransactionLine<'_> = serde_json::from_slice(line).map_err(|error| self.wrong(error))?;
        let mut ops = Vec::with_capacity(line.ops.len());
        for (number, field) in line.ops.into_iter().enumerate() {
            let op = operation(field, &mut self.names);
            ops.push(op.map_err(|problem| self.wrong(format!("operation {}: {problem}", number + 1)))?);
        }
        Ok(Transaction {
            line: self.line,
            client: line.client.into(),
            status: line.status.into(),
            start_ts: line.start_ts,
            read_ts: line.read_ts,
            tentative: line.tentative,
            commit_ts: line.commit_ts,
            begin_ns: line.begin_ns,
            end_ns: line.end_ns,
            reason: line.reason,
            ops,
        })
    }

    /// The next line that is not empty, without its end; false at the end of the file.
    fn fill(&mut self) -> Result<bool, ReadError> {
        loop {
            self.line += 1;
            self.buffer.clear();
            // One byte more than allowed tells a line that is too long from one that just fits, its end included.
            let mut limited = (&mut self.from).take(self.line_bytes_max as u64 + 1);
            let read = limited.read_until(b'\n', &mut self.buffer);
            match read.map_err(|source| ReadError::Io { line: self.line, source })? {
                0 => return Ok(false),
                bytes if bytes > self.line_bytes_max => {
                    return Err(self.wrong(format!("longer than {} bytes", self.line_bytes_max)));
                }
                _ if !self.buffer.trim_ascii().is_empty() => return Ok(true),
                _ => {}
            }
        }
    }

    /// Whether the object's first key is `final`; only that one line begins so.
    fn is_final(&self) -> bool {
        let rest = self.buffer.trim_ascii_start().strip_prefix(b"{").unwrap_or_default();
        rest.trim_ascii_start().starts_with(b"\"final\"")
    }

    fn wrong(&self, problem: impl ToString) -> ReadError {
        ReadError::Line { line: self.line, problem: problem.to_string() }
    }
}

/// Names are repeated on almost every line; each is kept once.
#[derive(Default)]
struct Names(HashSet<Text>);

impl Names {
    fn shared(&mut self, name: &str) -> Text {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let name: Text = name.into();
        self.0.insert(name.clone());
        name
    }

    fn row(&mut self, (row, col, value): RowField) -> Row {
        (self.shared(&row), self.shared(&col), value.into())
    }
}

fn final_state(line: FinalLine, names: &mut Names) -> FinalState {
    let tables = line.state.tables.into_iter();
    let tables = tables.map(|(name, rows)| (name, rows.into_iter().map(|row| names.row(row)).collect()));
    FinalState { tables: tables.collect(), read_ts: line.state.read_ts, faults: line.state.faults }
}

fn operation(mut field: OpField<'_>, names: &mut Names) -> Result<Op, String> {
    let kind = std::mem::take(&mut field.op);
    let op = match &*kind {
        "get" => Op::Get { cell: cell(&mut field, names)?, value: value(&mut field)?.map(Text::from) },
        "put" => {
            let value = value(&mut field)?.ok_or("a put has a value, not null")?;
            Op::Put { cell: cell(&mut field, names)?, value: value.into() }
        }
        "delete" => Op::Delete { cell: cell(&mut field, names)? },
        "scan" => Op::Scan(Box::new(scan(&mut field, names)?)),
        "" => return Err("has no \"op\"".into()),
        other => return Err(format!("unknown op \"{}\"", crate::text::plain(other))),
    };
    nothing_left(&field).map_err(|name| format!("a {kind} has no field \"{name}\""))?;
    Ok(op)
}

fn cell(field: &mut OpField<'_>, names: &mut Names) -> Result<CellName, String> {
    let mut part = |from: &mut Option<Cow<'_, str>>, name: &str| {
        let text = from.take().ok_or_else(|| format!("has no \"{name}\""))?;
        Ok::<_, String>(names.shared(&text))
    };
    Ok(CellName {
        table: part(&mut field.table, "table")?,
        row: part(&mut field.row, "row")?,
        col: part(&mut field.col, "col")?,
    })
}

fn value(field: &mut OpField<'_>) -> Result<Option<String>, String> {
    field.value.take().ok_or_else(|| "has no \"value\"".into())
}

fn scan(field: &mut OpField<'_>, names: &mut Names) -> Result<Scan, String> {
    let table = field.table.take().ok_or("has no \"table\"")?;
    let rows = field.rows.take().ok_or("has no \"rows\"")?;
    let mut bound = |from: &mut Option<Cow<'_, str>>| from.take().map(|text| names.shared(&text));
    let (start_row, end_row) = (bound(&mut field.start_row), bound(&mut field.end_row));
    let (start_col, end_col) = (bound(&mut field.start_col), bound(&mut field.end_col));
    let consumed_to = field.consumed_to.take().map(|(row, col)| (names.shared(&row), names.shared(&col)));
    let reverse = std::mem::take(&mut field.reverse);
    let table = names.shared(&table);
    let rows = rows.into_iter().map(|row| names.row(row)).collect();
    Ok(Scan { table, start_row, end_row, start_col, end_col, reverse, consumed_to, rows })
}

/// Fails with a field that the operation's kind does not have.
fn nothing_left(field: &OpField<'_>) -> Result<(), &'static str> {
    let left = [
        ("table", field.table.is_some()),
        ("row", field.row.is_some()),
        ("col", field.col.is_some()),
        ("start_row", field.start_row.is_some()),
        ("end_row", field.end_row.is_some()),
        ("start_col", field.start_col.is_some()),
        ("end_col", field.end_col.is_some()),
        ("reverse", field.reverse),
        ("consumed_to", field.consumed_to.is_some()),
        ("value", field.value.is_some()),
        ("rows", field.rows.is_some()),
    ];
    left.into_iter().find(|(_, there)| *there).map_or(Ok(()), |(name, _)| Err(name))
}
