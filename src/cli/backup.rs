//! `atlas backup`.

use super::Context;
use super::args::BackupCommand;
use super::connect::{Access, connect};
use super::output::{Reply, columns, count, millis, pairs, size};
use crate::config::{Sources, load};
use crate::ops::{BackupInfo, BackupRequest};
use crate::{Error, Result};
use serde_json::json;
use std::path::PathBuf;

pub(crate) async fn run(command: BackupCommand, context: &Context) -> Result<Reply> {
    match command {
        BackupCommand::Create { to, name } => create(to, name, context).await,
        BackupCommand::List(args) => {
            let repository = repository(args.repo, context)?;
            let mut backups = context.backend.backup_list(&repository).await?;
            // RFC 3339 in UTC sorts as text; ids settle those of one moment.
            backups.sort_by(|a, b| (&b.started, &b.id).cmp(&(&a.started, &a.id)));
            Ok(list(&backups))
        }
        BackupCommand::Show { id, repo } => {
            let repository = repository(repo.repo, context)?;
            Ok(show(&context.backend.backup_show(&repository, &id).await?))
        }
        BackupCommand::Verify { id, repo } => {
            let repository = repository(repo.repo, context)?;
            let reporter = context.reporter();
            let summary = context.backend.backup_verify(&repository, &id, reporter.sink()).await?;
            let table = format!(
                "Backup {} is whole: {} files, {}, every checksum is right",
                summary.id,
                count(summary.files),
                size(summary.bytes)
            );
            Ok(Reply::new(json!(summary), summary.id.clone(), table))
        }
        BackupCommand::Restore { id, repo, into, resume } => restore(id, repo.repo, into, resume, context).await,
    }
}

/// The repository, absolute, because the process that owns the store may work in another directory.
fn repository(given: Option<PathBuf>, context: &Context) -> Result<PathBuf> {
    let path = match given {
        Some(path) => path,
        None => context.config()?.config.backup.repository.clone(),
    };
    std::path::absolute(&path)
        .map_err(|error| Error::Usage(format!("'{}' names no repository: {error}", path.display())))
}

async fn create(to: Option<PathBuf>, name: Option<String>, context: &Context) -> Result<Reply> {
    let repository = repository(to, context)?;
    let operations = connect(context, Access::Existing).await?;
    let reporter = context.reporter();
    let request = BackupRequest { repository: repository.clone(), name, reason: None };
    let backup = operations.backup_create(request, reporter.sink()).await?;
    drop(reporter);
    let table = format!("Backup {} is complete in {}\n{}", backup.id, repository.display(), pairs(rows(&backup)));
    let mut data = json!(backup);
    data["repository"] = json!(repository);
    Ok(Reply::new(data, backup.id.clone(), table))
}

fn list(backups: &[BackupInfo]) -> Reply {
    let ids: Vec<&str> = backups.iter().map(|backup| backup.id.as_str()).collect();
    let rows = backups.iter().map(|backup| {
        [
            backup.id.clone(),
            backup.state.clone(),
            backup.backup_ts.map_or_else(|| "-".to_owned(), |ts| ts.to_string()),
            backup.started.clone(),
            millis(backup.took_ms),
            size(backup.bytes),
        ]
    });
    let table = match backups {
        [] => "(no backups)".to_owned(),
        _ => columns(["ID", "STATE", "BACKUP TS", "STARTED", "TOOK", "SIZE"], rows),
    };
    Reply::new(json!({"backups": backups}), ids.join("\n"), table)
}

fn show(backup: &BackupInfo) -> Reply {
    let rows = rows(backup);
    let plain = rows.iter().map(|(name, value)| format!("{name}\t{value}")).collect::<Vec<_>>().join("\n");
    Reply::new(json!(backup), plain, pairs(rows))
}

fn rows(backup: &BackupInfo) -> Vec<(&'static str, String)> {
    let ts = |ts: Option<atlas_kvs::Timestamp>| ts.map_or_else(|| "unknown".to_owned(), |ts| ts.to_string());
    vec![
        ("id", backup.id.clone()),
        ("state", backup.state.clone()),
        ("backup timestamp", ts(backup.backup_ts)),
        ("fast-forward timestamp", ts(backup.fast_forward_ts)),
        ("started", backup.started.clone()),
        ("took", millis(backup.took_ms)),
        ("snapshot took", millis(backup.snapshot_ms)),
        ("files", count(backup.files)),
        ("size", size(backup.bytes)),
        ("store", backup.store.clone()),
        ("namespace", backup.namespace.clone()),
    ]
}

async fn restore(
    id: Option<String>,
    repo: Option<PathBuf>,
    into: Option<PathBuf>,
    resume: bool,
    context: &Context,
) -> Result<Reply> {
    // What `ATLAS__…` or --set say about the store at hand must not redirect the restore into it.
    let target = match &into {
        Some(file) => load(&Sources::only_file(file, context.globals.config_root.clone()))?.config,
        None => context.config()?.config.clone(),
    };
    let reporter = context.reporter();
    let summary = match id {
        Some(id) if !resume => {
            let repository = repository(repo, context)?;
            context.backend.backup_restore(&repository, &id, &target, reporter.sink()).await?
        }
        _ => {
            let repository = repo.map(|repo| repository(Some(repo), context)).transpose()?;
            context.backend.backup_resume(repository.as_deref(), &target, reporter.sink()).await?
        }
    };
    drop(reporter);
    let rows = vec![
        ("store id", summary.store_id.to_string()),
        ("state", format!("commits below {}", summary.backup_ts)),
        ("time goes on above", summary.fast_forward_ts.to_string()),
        ("copied", size(summary.bytes)),
        ("rolled back", format!("{} later commits", count(summary.rolled_back))),
    ];
    let mut table = format!("Backup {} is restored\n{}", summary.id, pairs(rows));
    if !summary.commands.is_empty() {
        table.push_str(&format!("\n\nThe same by hand:\n  {}", summary.commands.join("\n  ")));
    }
    Ok(Reply::new(json!(summary), summary.id.clone(), table))
}
