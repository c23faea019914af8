//! `atlas table`.

use super::Context;
use super::args::TableCommand;
use super::connect::{Access, connect};
use super::output::{Reply, columns, count, pairs, size};
use crate::ops::TableInfo;
use crate::schema::{TableChange, TableSpec};
use crate::{Error, Result};
use atlas_kvs::TableRef;
use serde_json::json;
use std::io::{BufRead, Write};

pub(crate) async fn run(command: TableCommand, context: &Context) -> Result<Reply> {
    match command {
        TableCommand::Create { name, conflict_handler, sweep_strategy } => {
            TableSpec::check_name(&name)?;
            let spec = TableSpec {
                conflict_handler: conflict_handler.unwrap_or_default(),
                sweep_strategy: sweep_strategy.unwrap_or_default(),
            };
            let operations = connect(context, Access::Create).await?;
            let existed = operations.describe_table(&name, false).await.is_ok();
            operations.create_table(&name, &spec).await?;
            if existed {
                context.note(&format!("Table {name} exists already, unchanged"));
            }
            let table = format!("Table {name} is there: {}, {}", spec.conflict_handler, spec.sweep_strategy);
            Ok(Reply::new(json!({"table": name, "spec": spec}), name.name(), table))
        }
        TableCommand::Alter { name, conflict_handler, sweep_strategy } => {
            TableSpec::check_name(&name)?;
            let change = TableChange { conflict_handler, sweep_strategy };
            let spec = connect(context, Access::Existing).await?.alter_table(&name, &change).await?;
            let table = format!("Table {name} promises now: {}, {}", spec.conflict_handler, spec.sweep_strategy);
            Ok(Reply::new(json!({"table": name, "spec": spec}), name.name(), table))
        }
        TableCommand::List { internal } => {
            let tables = connect(context, Access::Existing).await?.tables(internal).await?;
            Ok(list(&tables))
        }
        TableCommand::Describe { name, stats } => {
            let info = connect(context, Access::Existing).await?.describe_table(&name, stats).await?;
            Ok(describe(&info))
        }
        TableCommand::Drop { name } => remove(&name, Removal::Drop, context).await,
        TableCommand::Truncate { name } => remove(&name, Removal::Truncate, context).await,
    }
}

fn list(tables: &[TableInfo]) -> Reply {
    let names: Vec<&str> = tables.iter().map(|info| info.table.name()).collect();
    let table = match tables {
        [] => "(no tables)".to_owned(),
        _ => table_of(tables),
    };
    Reply::new(json!({"tables": tables}), names.join("\n"), table)
}

/// Tables with their sizes.
pub(crate) fn table_of(tables: &[TableInfo]) -> String {
    columns(
        ["TABLE", "CONFLICT HANDLER", "SWEEP", "CELLS", "VERSIONS", "BYTES"],
        tables.iter().map(|info| {
            let spec = |show: fn(&TableSpec) -> String| info.spec.as_ref().map_or_else(|| "-".to_owned(), show);
            let about = if info.exact { "" } else { "~" };
            [
                info.table.to_string(),
                spec(|spec| spec.conflict_handler.to_string()),
                spec(|spec| spec.sweep_strategy.to_string()),
                info.cells.map_or_else(|| "-".to_owned(), count),
                format!("{about}{}", count(info.versions)),
                format!("~{}", size(info.bytes)),
            ]
        }),
    )
}

fn describe(info: &TableInfo) -> Reply {
    let about = if info.exact { "" } else { "about " };
    let mut rows = vec![("table", info.table.to_string()), ("kind", format!("{:?}", info.kind).to_lowercase())];
    if let Some(spec) = &info.spec {
        rows.push(("conflict handler", spec.conflict_handler.to_string()));
        rows.push(("sweep strategy", spec.sweep_strategy.to_string()));
    }
    rows.extend(info.cells.map(|cells| ("cells", count(cells))));
    rows.push(("versions", format!("{about}{}", count(info.versions))));
    rows.extend(info.sentinels.map(|sentinels| ("sentinels", count(sentinels))));
    rows.push(("bytes", format!("about {}", size(info.bytes))));
    let plain = rows.iter().map(|(name, value)| format!("{name}\t{value}")).collect::<Vec<_>>().join("\n");
    Reply::new(json!(info), plain, pairs(rows))
}

#[derive(Clone, Copy)]
enum Removal {
    Drop,
    Truncate,
}

async fn remove(name: &TableRef, removal: Removal, context: &Context) -> Result<Reply> {
    TableSpec::check_name(name)?;
    let what = match removal {
        Removal::Drop => format!("drop removes table '{name}' and all its data"),
        Removal::Truncate => format!("truncate removes all data of table '{name}'"),
    };
    check_that_somebody_confirms(&what, context)?;
    let operations = connect(context, Access::Existing).await?;
    // Also tells a missing table from one that is gone.
    let info = operations.describe_table(name, false).await?;
    if !context.globals.yes {
        confirm(&format!("{what}, about {} versions", count(info.versions)), name).await?;
    }
    let (data, table) = match removal {
        Removal::Drop => {
            operations.drop_table(name).await?;
            (json!({"table": name, "dropped": true}), format!("Table {name} is gone"))
        }
        Removal::Truncate => {
            operations.truncate_table(name).await?;
            (json!({"table": name, "truncated": true}), format!("Table {name} is empty"))
        }
    };
    Ok(Reply::new(data, name.name(), table))
}

/// What can't be undone is not done unless somebody has said so, or can be asked.
pub(crate) fn check_that_somebody_confirms(what: &str, context: &Context) -> Result<()> {
    if context.globals.yes || context.is_interactive {
        return Ok(());
    }
    let what = format!("{what}, and nobody is here to confirm it");
    Err(Error::refused(what, "if that is what you want, say --yes"))
}

/// Asks for the name on the terminal. On a thread of its own, so that Ctrl-C is heard meanwhile.
pub(crate) async fn confirm(what: &str, name: &TableRef) -> Result<()> {
    let mut stderr = std::io::stderr();
    let asked = write!(stderr, "{what}.\nType the name of the table to go on: ").and_then(|()| stderr.flush());
    asked.map_err(|error| Error::io("asking on standard error", error))?;
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let line = read.await.map_err(std::io::Error::other).flatten();
    let line = line.map_err(|error| Error::io("reading the answer from standard input", error))?;
    if line.trim() == name.name() {
        return Ok(());
    }
    Err(Error::refused("the name was not typed, so nothing was removed", "type exactly the name, or say --yes"))
}
