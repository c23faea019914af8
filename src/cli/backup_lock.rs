//! `atlas backup-lock`.

use super::Context;
use super::args::BackupLockArgs;
use super::connect::{Access, connect};
use super::output::{Reply, pairs};
use crate::Result;
use crate::ops::BackupLockRecord;
use serde_json::json;
use std::time::Duration;

/// After so long somebody wants to know what is waited for.
const SAY_AFTER: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: BackupLockArgs, context: &Context) -> Result<Reply> {
    if args.acquire {
        let operations = connect(context, Access::Create).await?;
        let reason = args.reason.unwrap_or_else(|| format!("taken {}", by_hand()));
        let record = operations.backup_lock_acquire(&reason).await?;
        let table = format!("The backup lock is held; `atlas backup-lock --release` releases it\n{}", show(&record));
        return Ok(Reply::new(json!({"held": true, "lock": record}), record.lock_id.to_string(), table));
    }
    let operations = connect(context, Access::Existing).await?;
    if args.release {
        let releasing = operations.backup_lock_release();
        tokio::pin!(releasing);
        let released = tokio::select! {
            released = &mut releasing => released?,
            () = tokio::time::sleep(SAY_AFTER) => {
                context.note(
                    "The lock was taken by a backup. It is watched for a whole lease (backup.lockLease), and released if \
                     nobody renews it meanwhile ...",
                );
                releasing.await?
            }
        };
        let (plain, table) = match &released {
            Some(record) => ("released", format!("The backup lock is released; it was\n{}", show(record))),
            None => ("free", "The backup lock was not held".to_owned()),
        };
        return Ok(Reply::new(json!({"held": false, "released": released}), plain, table));
    }
    Ok(match operations.backup_lock_status().await? {
        Some(record) => {
            let table = format!("The backup lock is held\n{}", show(&record));
            Reply::new(json!({"held": true, "lock": record}), "held", table)
        }
        None => Reply::new(json!({"held": false, "lock": null}), "free", "The backup lock is free"),
    })
}

/// Who asks, so that whoever finds the lock knows whom to ask.
pub(crate) fn by_hand() -> String {
    let user = std::env::var("USER")
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_else(|_| format!("user {}", rustix::process::getuid().as_raw()));
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    format!("by hand by {user} on {host}, process {}", std::process::id())
}

pub(crate) fn show(record: &BackupLockRecord) -> String {
    let mut rows = vec![
        ("  holder", super::output::visible(record.holder.as_bytes())),
        ("  reason", super::output::visible(record.reason.as_bytes())),
        ("  since", record.since.clone()),
    ];
    if let Some(renewal) = record.renewal {
        let at = record.renewed_at.as_deref().unwrap_or("an unknown time");
        rows.push(("  renewed", format!("{renewal} times, last at {at}")));
    }
    pairs(rows)
}
