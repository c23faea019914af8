//! Stores with a few tables of accounts in them, through the whole of the layer.

use super::open_repository;
use atlas::backup::restore::restore;
use atlas::backup::{RestoreReport, RestoreTarget};
use atlas::config::{AtlasConfig, CommitModeChoice};
use atlas::ops::{BackupRequest, BeginOptions, Operations, ScanOptions, no_progress};
use atlas::schema::{ConflictHandler, TableSpec};
use atlas::{Atlas, Cell, Error, Result, TableRef, Timestamp};
use atlas_kvs::KeyValueService;
use atlas_kvs_memory::MemoryStore;
use futures::TryStreamExt;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub(crate) type State = BTreeMap<(String, Cell), Vec<u8>>;

pub(crate) fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("a name")
}

pub(crate) fn spec(name: &str) -> TableSpec {
    match name {
        "Accounts" => TableSpec::with_handler(ConflictHandler::RetryOnWriteWriteCell),
        _ => TableSpec::default(),
    }
}

/// Names that differ in ways that names of files may not.
pub(crate) const TABLES: [&str; 4] = ["accounts", "Accounts", "large.values", "empty"];

pub(crate) fn config(mode: CommitModeChoice) -> AtlasConfig {
    let mut config = AtlasConfig::default();
    config.transactions.commit_mode = mode;
    config
}

pub(crate) async fn open(kvs: &Arc<dyn KeyValueService>, mode: CommitModeChoice) -> Atlas {
    Atlas::with_store(config(mode), Arc::clone(kvs)).await.expect("it opens")
}

pub(crate) async fn filled(kvs: &Arc<dyn KeyValueService>, mode: CommitModeChoice) -> Atlas {
    let atlas = open(kvs, mode).await;
    for name in TABLES {
        atlas.create_table(&table(name), &spec(name)).await.expect("it can be made");
    }
    for round in 0..4u32 {
        let written = atlas.run(async |tx| {
            for row in 0..40u32 {
                let cell = Cell::copy_from(format!("row{row:03}"), [row as u8, 0, 0xff]);
                if (row + round) % 7 == 0 {
                    tx.delete(&table("accounts"), cell).await?;
                } else {
                    tx.put(&table("accounts"), cell, format!("{round}-{row}").into_bytes()).await?;
                }
            }
            tx.put(&table("Accounts"), Cell::copy_from("", ""), vec![]).await?;
            tx.put(&table("large.values"), Cell::copy_from([round as u8], "c"), vec![round as u8; 300_000]).await?;
            Ok::<_, Error>(())
        });
        written.await.expect("it commits");
    }
    atlas
}

pub(crate) async fn state(atlas: &Atlas, at: Option<Timestamp>) -> State {
    let options = BeginOptions { read_only: true, at, ..BeginOptions::default() };
    let reader = atlas.begin_transaction(options).await.expect("it begins");
    let mut state = State::new();
    for name in TABLES {
        let cells = reader.scan(&table(name), ScanOptions::default()).await.expect("it can be read");
        let cells: Vec<_> = cells.try_collect().await.expect("it can be read");
        state.extend(cells.into_iter().map(|(cell, value)| ((name.to_owned(), cell), value.to_vec())));
    }
    state
}

pub(crate) fn portable_request(repository: &Path, name: &str) -> BackupRequest {
    BackupRequest {
        repository: repository.to_owned(),
        name: Some(name.to_owned()),
        reason: None,
        portable: true,
        rate_limit: None,
    }
}

pub(crate) fn memory() -> Arc<dyn KeyValueService> {
    Arc::new(MemoryStore::new())
}

pub(crate) async fn restore_into(directory: &Path, id: &str, target: &dyn RestoreTarget) -> Result<RestoreReport> {
    restore(&open_repository(&directory.join("repo")), id, target, &no_progress()).await
}
