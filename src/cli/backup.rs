//! `atlas backup`.

use super::Context;
use super::args::BackupCommand;
use super::connect::{Access, connect};
use super::output::{Reply, columns, count, millis, pairs, size};
use crate::backup::{COMPLETE, refuse_if_restoring};
use crate::config::AtlasConfig;
use crate::config::ByteSize;
use crate::config::{Sources, load};
use crate::ops::{BackupInfo, BackupRequest};
use crate::registry;
use crate::{Error, Result};
use atlas_kvs::KvsError;
use serde_json::json;
use std::cmp::Reverse;
use std::path::{Path, PathBuf};

pub(crate) async fn run(command: BackupCommand, context: &Context) -> Result<Reply> {
    match command {
        BackupCommand::Create { to, name, portable, rate_limit } => {
            let rate_limit = rate_limit.map(|ByteSize(bytes)| bytes);
            create(
                BackupRequest { repository: repository(to, context)?, name, reason: None, portable, rate_limit },
                context,
            )
            .await
        }
        BackupCommand::List(args) => {
            let repository = repository(args.repo, context)?;
            let mut backups = context.backend.backup_list(&repository).await?;
            // Stable: of one moment, they stay in the order of the repository.
            backups.sort_by_key(|backup| Reverse(backup.started.parse::<jiff::Timestamp>().ok()));
            Ok(list(&backups))
        }
        BackupCommand::Show { id, repo } => {
            let repository = repository(repo.repo, context)?;
            Ok(show(&context.backend.backup_show(&repository, &id).await?))
        }
        BackupCommand::Verify { id, repo } => {
            let repository = repository(repo.repo, context)?;
            let reporter = context.reporter();
            let summary = context.backend.backup_verify(&repository, &id, reporter.sink()).await;
            let summary = summary.map_err(|error| damaged(error, &repository, None))?;
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

async fn create(request: BackupRequest, context: &Context) -> Result<Reply> {
    let repository = request.repository.clone();
    let operations = connect(context, Access::Existing).await?;
    let reporter = context.reporter();
    let undone = context.undone_on_signal(operations.clone());
    let backup = operations.backup_create(request, reporter.sink()).await.map_err(lost)?;
    undone.forget();
    drop(reporter);
    let table = format!("Backup {} is complete in {}\n{}", backup.id, repository.display(), pairs(rows(&backup)));
    let mut data = json!(backup);
    data["repository"] = json!(repository);
    Ok(Reply::new(data, backup.id.clone(), table))
}

fn list(backups: &[BackupInfo]) -> Reply {
    let (complete, others): (Vec<_>, Vec<_>) = backups.iter().partition(|backup| backup.state == COMPLETE);
    let ids: Vec<&str> = complete.iter().map(|backup| backup.id.as_str()).collect();
    let rows = backups.iter().map(|backup| {
        [
            backup.id.clone(),
            backup.state.clone(),
            backup.backup_ts.map_or_else(|| "-".to_owned(), |ts| ts.to_string()),
            backup.started.clone(),
            known(backup, millis(backup.took_ms)),
            known(backup, size(backup.bytes)),
        ]
    });
    let table = match backups {
        [] => "(no backups)".to_owned(),
        _ => columns(["ID", "STATE", "BACKUP TS", "STARTED", "TOOK", "SIZE"], rows),
    };
    let documents: Vec<_> = backups.iter().map(document).collect();
    let mut reply = Reply::new(json!({"backups": documents}), ids.join("\n"), table);
    let notes: Vec<_> = others.iter().map(|backup| format!("backup {} is {}", backup.id, backup.state)).collect();
    reply.note = (!notes.is_empty()).then(|| format!("not listed: {}", notes.join(", ")));
    reply
}

/// What is only known of a complete backup.
fn known(backup: &BackupInfo, text: String) -> String {
    if backup.state == COMPLETE { text } else { "-".to_owned() }
}

/// A backup for programs: what is not known is null.
fn document(backup: &BackupInfo) -> serde_json::Value {
    let mut document = json!(backup);
    if backup.state != COMPLETE {
        for name in ["took_ms", "snapshot_ms", "bytes", "files", "store", "namespace", "method"] {
            document[name] = serde_json::Value::Null;
        }
    }
    document
}

/// The server went away in the middle.
fn lost(error: Error) -> Error {
    match error {
        Error::Kvs(KvsError::Indeterminate { .. }) => {
            with_hint(error, "see `atlas backup list`; the lock may need `atlas backup-lock --release`".to_owned())
        }
        error => error,
    }
}

/// Says what to do about damage in a backup. `target` is where it was to be restored into.
fn damaged(error: Error, repository: &Path, target: Option<&AtlasConfig>) -> Error {
    if !matches!(error, Error::Corrupt { .. }) {
        return error;
    }
    let mut hint = match error.to_string().contains("it was never completed") {
        true => "it was never completed; take it anew: `atlas backup create`".to_owned(),
        false => format!("do not use this backup; `atlas backup list --repo {}` shows others", repository.display()),
    };
    if let Some(target) = target {
        let directory = registry::data_dir(&target.key_value_service);
        hint.push_str(match directory.map(refuse_if_restoring) {
            Some(Ok(())) => "; nothing was written to the target",
            _ => "; the target holds a part of it and is no store",
        });
    }
    with_hint(error, hint)
}

fn with_hint(error: Error, hint: String) -> Error {
    Error::Remote {
        code: error.code().to_owned(),
        message: error.to_string(),
        hint: Some(hint),
        retriable: error.is_retriable(),
        exit_code: error.exit_code(),
    }
}

fn show(backup: &BackupInfo) -> Reply {
    let rows = rows(backup);
    let plain = rows.iter().map(|(name, value)| format!("{name}\t{value}")).collect::<Vec<_>>().join("\n");
    Reply::new(document(backup), plain, pairs(rows))
}

fn rows(backup: &BackupInfo) -> Vec<(&'static str, String)> {
    let ts = |ts: Option<atlas_kvs::Timestamp>| ts.map_or_else(|| "unknown".to_owned(), |ts| ts.to_string());
    vec![
        ("id", backup.id.clone()),
        ("state", backup.state.clone()),
        ("backup timestamp", ts(backup.backup_ts)),
        ("fast-forward timestamp", ts(backup.fast_forward_ts)),
        ("started", backup.started.clone()),
        ("took", known(backup, millis(backup.took_ms))),
        ("snapshot took", known(backup, millis(backup.snapshot_ms))),
        ("files", known(backup, count(backup.files))),
        ("size", known(backup, size(backup.bytes))),
        ("method", known(backup, backup.method.clone())),
        ("store", known(backup, backup.store.clone())),
        ("namespace", known(backup, backup.namespace.clone())),
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
        Some(file) => {
            context.target(file, load(&Sources::only_file(file, context.globals.config_root.clone())))?.config
        }
        None => context.config()?.config.clone(),
    };
    let reporter = context.reporter();
    let summary = match id {
        Some(id) if !resume => {
            let repository = repository(repo, context)?;
            let restored = context.backend.backup_restore(&repository, &id, &target, reporter.sink()).await;
            restored.map_err(|error| damaged(error, &repository, Some(&target)))?
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
