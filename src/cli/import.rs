//! `atlas import`: CSV and JSON lines into a table, a batch of rows a transaction.

mod records;

use super::Context;
use super::args::{ImportArgs, ImportFormat};
use super::connect::{Access, connect};
use super::output::{Failure, Outcome, Reply, count, millis};
use super::retry::in_transaction;
use crate::ops::{Operations, Progress, TransactionOps};
use crate::schema::TableSpec;
use crate::{Error, Result};
use atlas_kvs::{Cell, KvsError, TableRef};
use bytes::Bytes;
use records::{Record, Records};
use serde_json::json;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;

/// A batch of long rows ends here, before the number of rows asked for: transactions have a limit.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// Batches read ahead of the one that commits.
const BATCHES_AHEAD: usize = 2;

/// Rows of one transaction.
#[derive(Debug, Default, PartialEq, Eq)]
struct Batch {
    rows: u64,
    writes: Vec<(Cell, Option<Bytes>)>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Written {
    rows: u64,
    cells: u64,
    batches: u64,
}

pub(crate) async fn run(args: ImportArgs, context: &Context) -> Outcome {
    let started = Instant::now();
    let format = format_of(&args.file, args.format)?;
    let (file, total) = open(&args.file)?;
    TableSpec::check_name(&args.table)?;
    let access = if args.create_table { Access::Create } else { Access::Existing };
    let operations = connect(context, access).await?;
    find_or_make_table(&*operations, &args.table, args.create_table).await?;
    let mut written = Written::default();
    match copy(&args, context, format, file, total, &*operations, &mut written).await {
        Ok(()) => Ok(summary(&args.table, &written, started)),
        Err(error) => {
            let details = json!({"rows_written": written.rows, "batches_written": written.batches});
            let note = match &error {
                Error::UnknownOutcome { .. } => {
                    format!("{} rows were written before; of the next batch that is not known", count(written.rows))
                }
                _ => format!("{} rows were written before, and nothing after them", count(written.rows)),
            };
            Err(Failure { error, details: Some(details), note: Some(note) })
        }
    }
}

fn format_of(file: &Path, given: Option<ImportFormat>) -> Result<ImportFormat> {
    let by_name = || match file.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "csv" => Some(ImportFormat::Csv),
        "jsonl" | "ndjson" | "json" => Some(ImportFormat::Jsonl),
        _ => None,
    };
    let unknown = || {
        let file = file.display();
        Error::Usage(format!("the name '{file}' does not tell what the file holds; say --format csv or --format jsonl"))
    };
    given.or_else(by_name).ok_or_else(unknown)
}

/// The file and its length, where it has one.
fn open(path: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let found = File::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    match found {
        Ok((_, metadata)) if metadata.is_dir() => Err(Error::Usage(format!("{} is a directory", path.display()))),
        Ok((file, metadata)) => {
            let len = metadata.is_file().then_some(metadata.len());
            Ok((Box::new(file), len))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Error::NotFound { what: format!("file {}", path.display()) })
        }
        Err(error) => Err(Error::io(format!("opening {}", path.display()), error)),
    }
}

async fn find_or_make_table(operations: &dyn Operations, table: &TableRef, may_create: bool) -> Result<()> {
    match operations.describe_table(table, false).await {
        Ok(_) => Ok(()),
        Err(error) if error.code() != "NOT_FOUND" => Err(error),
        Err(_) if may_create => operations.create_table(table, &TableSpec::default()).await,
        // The store's own error has a hint where to look for tables.
        Err(_) => Err(Error::NotFound {
            what: format!("table '{table}'; `atlas table create {table}` or --create-table makes it"),
        }),
    }
}

async fn copy(
    args: &ImportArgs,
    context: &Context,
    format: ImportFormat,
    file: Box<dyn Read + Send>,
    total: Option<u64>,
    operations: &dyn Operations,
    written: &mut Written,
) -> Result<()> {
    let position = Arc::new(AtomicU64::new(0));
    let counted = Counted { file, position: position.clone() };
    let (sender, mut batches) = mpsc::channel(BATCHES_AHEAD);
    let (name, row_key, rows_max) = (args.file.display().to_string(), args.row_key.clone(), u64::from(args.batch));
    // Reading blocks, so it has a thread of its own. It ends when nobody takes its batches any more.
    tokio::task::spawn_blocking(move || {
        let mut records = match Records::open(format, Box::new(BufReader::with_capacity(1 << 16, counted)), row_key) {
            Ok(records) => records,
            Err(error) => return drop(sender.blocking_send(Err(error.in_file(&name)))),
        };
        loop {
            let batch = read_batch(&mut records, rows_max).map_err(|error| error.in_file(&name));
            let is_last = !matches!(&batch, Ok(Some(_)));
            let Some(batch) = batch.transpose() else { return };
            if sender.blocking_send(batch).is_err() || is_last {
                return;
            }
        }
    });
    let reporter = context.reporter();
    let sink = reporter.sink();
    while let Some(batch) = batches.recv().await {
        let Batch { rows, writes, .. } = batch?;
        let cells = writes.len() as u64;
        let write = async |transaction: &dyn TransactionOps| transaction.write(&args.table, writes.clone()).await;
        in_transaction(operations, write).await.map_err(missing_table)?;
        written.rows += rows;
        written.cells += cells;
        written.batches += 1;
        let progress = match total {
            Some(_) => (position.load(Ordering::Relaxed), "bytes"),
            None => (written.rows, "rows"),
        };
        sink(Progress { step: "import".into(), done: progress.0, total, unit: progress.1.into() });
    }
    Ok(())
}

/// The table was there a moment ago.
fn missing_table(error: Error) -> Error {
    match error {
        Error::Kvs(KvsError::NoSuchTable(table)) => {
            Error::NotFound { what: format!("table '{table}' any more: it was dropped during the import") }
        }
        error => error,
    }
}

fn read_batch(records: &mut Records, rows_max: u64) -> std::result::Result<Option<Batch>, records::Malformed> {
    let mut batch = Batch::default();
    while batch.rows < rows_max && batch.bytes < BATCH_BYTES_MAX {
        let Some(Record { row, columns }) = records.next_record()? else { break };
        batch.rows += 1;
        let row = Bytes::from(row);
        for (column, value) in columns {
            batch.bytes += row.len() + column.len() + value.len();
            batch.writes.push((Cell::new(row.clone(), column), Some(value.into())));
        }
    }
    Ok((batch.rows > 0).then_some(batch))
}

fn summary(table: &TableRef, written: &Written, started: Instant) -> Reply {
    let took_ms = started.elapsed().as_millis() as u64;
    let text = format!(
        "{} rows with {} cells are in {table}, in {} transactions and {}",
        count(written.rows),
        count(written.cells),
        count(written.batches),
        millis(took_ms)
    );
    let data = json!({
        "table": table,
        "rows": written.rows,
        "cells": written.cells,
        "batches": written.batches,
        "took_ms": took_ms,
    });
    Reply::new(data, written.rows.to_string(), text)
}

/// Knows how much was read.
struct Counted {
    file: Box<dyn Read + Send>,
    position: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.file.read(buffer)?;
        self.position.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}
