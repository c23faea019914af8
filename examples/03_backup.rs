//! A live backup, the loss of the store, and the restore. `cargo run --example 03_backup`

use atlas::config::{AtlasConfig, KvsConfig};
use atlas::ops::{BackupRequest, Operations, no_progress};
use atlas::schema::TableSpec;
use atlas::typed::TableDef;
use atlas::{Atlas, Result};
use std::path::Path;

const NOTES: TableDef<u64, String> = TableDef::new("notes");

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    backup_and_restore(directory.path()).await
}

/// Writes one note before the backup and one after it; only the first one comes back.
pub(crate) async fn backup_and_restore(directory: &Path) -> anyhow::Result<()> {
    let (repository, lost, restored) = (directory.join("backups"), directory.join("lost"), directory.join("restored"));

    let atlas = Atlas::open(config(&lost)).await?;
    atlas.create_table(&NOTES.table(), &TableSpec::default()).await?;
    write(&atlas, 1, "before the backup").await?;
    // Transactions may go on meanwhile: the backup holds those that committed before its timestamp, whole.
    let request =
        BackupRequest { repository: repository.clone(), name: None, reason: None, portable: false, rate_limit: None };
    let backup = atlas.backup_create(request, no_progress()).await?;
    println!("backup {} holds the commits below {:?}", backup.id, backup.backup_ts);
    write(&atlas, 2, "after the backup").await?;
    atlas.close().await?;
    std::fs::remove_dir_all(&lost)?;

    let report = Atlas::restore(&config(&restored), &repository, "latest", no_progress()).await?;
    println!("restored {} files into {}", report.files, report.location);
    let atlas = Atlas::open(config(&restored)).await?;
    let tx = atlas.begin().await?;
    let found = tx.table(&NOTES).get_many(&[1, 2]).await?;
    anyhow::ensure!(found == [Some("before the backup".to_owned()), None], "the state is that of the backup");
    drop(tx);
    atlas.close().await?;
    Ok(())
}

fn config(directory: &Path) -> AtlasConfig {
    AtlasConfig { key_value_service: KvsConfig::rocksdb(directory), ..AtlasConfig::default() }
}

async fn write(atlas: &Atlas, number: u64, text: &str) -> Result<()> {
    atlas.run(async |tx| tx.table(&NOTES).put(&number, &text.to_owned()).await).await
}
