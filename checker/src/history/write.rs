//! Writes a history line by line, while the run goes on.

use super::wire::{FinalFields, FinalLine, HeaderLine, OpField, RowField, TransactionLine};
use super::{FinalState, Header, Op, Row, Transaction};
use std::borrow::Cow;
use std::io::{Result, Write};

/// Writes a history. Nothing is buffered here: hand it a `BufWriter`.
pub struct Writer<W> {
    to: W,
}

impl<W: Write> Writer<W> {
    /// Writes the first line.
    pub fn new(to: W, header: &Header) -> Result<Self> {
        let mut writer = Self { to };
        writer.line(serde_json::to_vec(&HeaderLine::from(header)))?;
        Ok(writer)
    }

    /// Writes one attempt.
    pub fn transaction(&mut self, transaction: &Transaction) -> Result<()> {
        self.encoded(encode_transaction(transaction)?)
    }

    /// Writes an attempt that was encoded elsewhere, for example in the task that made it.
    pub fn encoded(&mut self, mut line: Vec<u8>) -> Result<()> {
        line.push(b'\n');
        // In one call, so that a crash cuts off whole lines as long as it can.
        self.to.write_all(&line)
    }

    /// Writes the last line, and everything out.
    pub fn finish(mut self, state: &FinalState) -> Result<()> {
        let tables = state.tables.iter().map(|(name, rows)| (name.clone(), rows.iter().map(row_field).collect()));
        let state = FinalFields { tables: tables.collect(), read_ts: state.read_ts, faults: state.faults };
        self.line(serde_json::to_vec(&FinalLine { state }))?;
        self.to.flush()
    }

    /// Writes out what was written so far.
    pub fn flush(&mut self) -> Result<()> {
        self.to.flush()
    }

    fn line(&mut self, line: serde_json::Result<Vec<u8>>) -> Result<()> {
        self.encoded(line?)
    }
}

/// One attempt's line, without its end.
pub fn encode_transaction(transaction: &Transaction) -> Result<Vec<u8>> {
    let line = TransactionLine {
        client: (&transaction.client).into(),
        status: transaction.status.into(),
        start_ts: transaction.start_ts,
        read_ts: transaction.read_ts,
        tentative: transaction.tentative,
        commit_ts: transaction.commit_ts,
        begin_ns: transaction.begin_ns,
        end_ns: transaction.end_ns,
        reason: transaction.reason.clone(),
        ops: transaction.ops.iter().map(op_field).collect(),
    };
    Ok(serde_json::to_vec(&line)?)
}

fn row_field((row, col, value): &Row) -> RowField {
    (row.to_string(), col.to_string(), value.to_string())
}

fn op_field(op: &Op) -> OpField<'_> {
    let (name, cell) = match op {
        Op::Get { cell, .. } => ("get", Some(cell)),
        Op::Put { cell, .. } => ("put", Some(cell)),
        Op::Delete { cell } => ("delete", Some(cell)),
        Op::Scan(_) => ("scan", None),
    };
    let mut field = OpField { op: Cow::Borrowed(name), ..OpField::default() };
    if let Some(cell) = cell {
        field.table = Some(Cow::Borrowed(&cell.table));
        field.row = Some(Cow::Borrowed(&cell.row));
        field.col = Some(Cow::Borrowed(&cell.col));
    }
    match op {
        Op::Get { value, .. } => field.value = Some(value.as_deref().map(str::to_owned)),
        Op::Put { value, .. } => field.value = Some(Some(value.to_string())),
        Op::Delete { .. } => {}
        Op::Scan(scan) => {
            field.table = Some(Cow::Borrowed(&scan.table));
            field.start_row = scan.start_row.as_deref().map(Cow::Borrowed);
            field.end_row = scan.end_row.as_deref().map(Cow::Borrowed);
            field.start_col = scan.start_col.as_deref().map(Cow::Borrowed);
            field.end_col = scan.end_col.as_deref().map(Cow::Borrowed);
            field.reverse = scan.reverse;
            field.consumed_to = scan.consumed_to.as_ref().map(|(row, col)| (row.to_string(), col.to_string()));
            field.rows = Some(scan.rows.iter().map(row_field).collect());
        }
    }
    field
}
