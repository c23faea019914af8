//! `atlas kv`: cells, one transaction each.

use super::args::{CellArgs, Format, KvCommand, ScanArgs};
use super::connect::{Access, connect};
use super::output::{Output, Reply, count, visible};
use super::retry::in_transaction;
use super::{Context, table};
use crate::ops::{BeginOptions, ScanOptions};
use crate::{Error, Result};
use atlas_kvs::{Cell, RowRange, TableRef, Timestamp};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Map, json};
use std::time::Duration;

/// How long a hard delete waits for readers, unless it is told.
const WAIT_FOR_READERS: Duration = Duration::from_secs(30);

pub(crate) async fn run(command: KvCommand, context: &Context, output: &mut Output) -> Result<Reply> {
    match command {
        KvCommand::Put { cell, value, hex } => put(cell, &value, Text { is_hex: hex }, context).await,
        KvCommand::Get { cell, hex, at } => get(cell, Text { is_hex: hex }, at, context, output.format()).await,
        KvCommand::Delete { cell, hex, hard: true, wait } => {
            hard_delete(cell, Text { is_hex: hex }, wait.unwrap_or(WAIT_FOR_READERS), context).await
        }
        KvCommand::Delete { cell, hex, .. } => delete(cell, Text { is_hex: hex }, context).await,
        KvCommand::Scan(args) => scan(args, context, output).await,
    }
}

/// How bytes are written on the command line.
#[derive(Clone, Copy)]
struct Text {
    is_hex: bool,
}

impl Text {
    fn encoding(self) -> &'static str {
        if self.is_hex { "hex" } else { "utf8" }
    }

    fn parse(self, text: &str, what: &str) -> Result<Bytes> {
        if !self.is_hex {
            return Ok(Bytes::copy_from_slice(text.as_bytes()));
        }
        let wrong = |error| Error::Usage(format!("--hex: {what} '{text}' is not hexadecimal: {error}"));
        hex::decode(text).map(Bytes::from).map_err(wrong)
    }

    fn parse_cell(self, args: CellArgs) -> Result<(TableRef, Cell)> {
        let row = self.parse(&args.row, "the row")?;
        let column = self.parse(&args.column, "the column")?;
        Ok((args.table, Cell::new(row, column)))
    }

    /// Bytes as they are printed. Programs get them exactly or not at all; people get something to look at.
    fn show(self, bytes: &[u8], what: impl FnOnce() -> String, format: Format) -> Result<String> {
        if self.is_hex {
            return Ok(hex::encode(bytes));
        }
        match std::str::from_utf8(bytes) {
            _ if format == Format::Table => Ok(visible(bytes)),
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Error::Usage(format!("{} is not UTF-8 text; --hex prints it", what()))),
        }
    }
}

async fn put(cell: CellArgs, value: &str, text: Text, context: &Context) -> Result<Reply> {
    let value = text.parse(value, "the value")?;
    let (table, cell) = text.parse_cell(cell)?;
    let operations = connect(context, Access::Existing).await?;
    let write = async |transaction: &dyn crate::ops::TransactionOps| {
        transaction.write(&table, vec![(cell.clone(), Some(value.clone()))]).await
    };
    let ((), commit_ts) = in_transaction(&*operations, write).await?;
    Ok(committed(&table, commit_ts))
}

async fn delete(cell: CellArgs, text: Text, context: &Context) -> Result<Reply> {
    let (table, cell) = text.parse_cell(cell)?;
    let operations = connect(context, Access::Existing).await?;
    let remove = async |transaction: &dyn crate::ops::TransactionOps| {
        let found = transaction.get(&table, std::slice::from_ref(&cell)).await?;
        if found.iter().all(Option::is_none) {
            return Err(missing(&table, &cell));
        }
        transaction.write(&table, vec![(cell.clone(), None)]).await
    };
    let ((), commit_ts) = in_transaction(&*operations, remove).await?;
    Ok(committed(&table, commit_ts))
}

/// Unlike [`delete`] also of a cell without a value, which may have old versions.
async fn hard_delete(cell: CellArgs, text: Text, wait: Duration, context: &Context) -> Result<Reply> {
    let (table, cell) = text.parse_cell(cell)?;
    let what = format!("kv delete --hard removes every version of cell {cell} of table '{table}' for good");
    table::check_that_somebody_confirms(&what, context)?;
    let operations = connect(context, Access::Existing).await?;
    operations.describe_table(&table, false).await?;
    if !context.globals.yes {
        table::confirm(&what, &table).await?;
    }
    let done = operations.hard_delete(&table, std::slice::from_ref(&cell), wait).await?;
    let people = format!(
        "Deleted at {}, and {} versions were removed: none is left in the store. Backups keep theirs",
        done.commit_ts,
        count(done.versions)
    );
    let data = json!({"table": table, "commit_ts": done.commit_ts, "versions": done.versions});
    Ok(Reply::new(data, done.commit_ts.to_string(), people).noted())
}

fn committed(table: &TableRef, commit_ts: Option<Timestamp>) -> Reply {
    let plain = commit_ts.map_or_else(String::new, |ts| ts.to_string());
    let line = commit_ts.map_or_else(|| "Nothing to commit".to_owned(), |ts| format!("Committed at {ts}"));
    Reply::new(json!({"table": table, "commit_ts": commit_ts}), plain, line)
}

fn missing(table: &TableRef, cell: &Cell) -> Error {
    Error::NotFound { what: format!("cell {cell} in table '{table}'") }
}

fn reading(at: Option<Timestamp>) -> BeginOptions {
    BeginOptions { read_only: true, at, ..BeginOptions::default() }
}

async fn get(cell: CellArgs, text: Text, at: Option<Timestamp>, context: &Context, format: Format) -> Result<Reply> {
    let (table, cell) = text.parse_cell(cell)?;
    let operations = connect(context, Access::Existing).await?;
    let transaction = operations.begin_transaction(reading(at)).await?;
    let read_ts = transaction.read_ts();
    let value = transaction.get(&table, std::slice::from_ref(&cell)).await?.pop().flatten();
    transaction.abort().await?;
    let value = value.ok_or_else(|| missing(&table, &cell))?;
    let shown = text.show(&value, || format!("the value of {table}:{cell}"), format)?;
    let data = json!({
        "table": table,
        "row": text.show(&cell.row, || "the row".to_owned(), format)?,
        "column": text.show(&cell.column, || "the column".to_owned(), format)?,
        "value": shown,
        "encoding": text.encoding(),
        "read_ts": read_ts,
    });
    Ok(Reply { data, plain: format!("{shown}\n"), table: format!("{shown}\n"), ..Reply::default() })
}

async fn scan(args: ScanArgs, context: &Context, output: &mut Output) -> Result<Reply> {
    let text = Text { is_hex: args.hex };
    let rows = match &args.prefix {
        Some(prefix) => RowRange::prefix(text.parse(prefix, "the prefix")?),
        None => {
            let start = args.start.as_deref().map(|row| text.parse(row, "the first row")).transpose()?;
            let end = args.end.as_deref().map(|row| text.parse(row, "the end")).transpose()?;
            RowRange { start: start.unwrap_or_default(), end }
        }
    };
    let options = ScanOptions { rows, reverse: args.reverse, limit: args.limit, ..ScanOptions::default() };
    let operations = connect(context, Access::Existing).await?;
    let transaction = operations.begin_transaction(reading(args.at)).await?;
    let read_ts = transaction.read_ts();
    let mut cells = transaction.scan(&args.table, options).await?;
    let mut next = cells.next().await.transpose()?;
    // Only now that the first page came: an unknown table is a plain error, not a stream that breaks off.
    let head = Map::from_iter([
        ("table".to_owned(), json!(args.table)),
        ("encoding".to_owned(), json!(text.encoding())),
        ("read_ts".to_owned(), json!(read_ts)),
    ]);
    output.begin_cells(&head)?;
    let format = output.format();
    while let Some((cell, value)) = next {
        let what = || format!("cell {}:{cell}", args.table);
        let row = text.show(&cell.row, what, format)?;
        let column = text.show(&cell.column, what, format)?;
        output.cell(&row, &column, &text.show(&value, what, format)?)?;
        next = cells.next().await.transpose()?;
    }
    drop(cells);
    transaction.abort().await?;
    Ok(Reply::streamed())
}
