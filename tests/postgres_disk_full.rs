//! A PostgreSQL server whose disk fills up in the middle of transfers, and has room again later.
//!
//! The tables lie on a small disk by themselves, the server's log does not: its statements fail and it goes on. What was
//! acknowledged is there, what was reported as failed is not, and nobody restarts anything.

mod common;

use atlas::config::{ByteSize, KvsConfig};
use common::bank::Bank;
use common::clerks::{Clerks, Told, until};
use common::small_disk::SmallDisk;
use common::*;
use parking_lot::Mutex;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

/// A database whose tables lie on the disk. The disk is unmounted after the database is gone.
struct SmallDatabase {
    name: String,
    disk: SmallDisk,
}

impl SmallDatabase {
    async fn make(mode: &str) -> Option<SmallDatabase> {
        postgres::settings();
        let disk = SmallDisk::mount("postgres")?;
        let name = format!("small_{mode}_{}", std::process::id());
        // The server runs as another user, who must get to his tables.
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(disk.path(), all).expect("it was made by us");
        let client = postgres::client().await;
        let row = client.query_one("SELECT setting FROM pg_settings WHERE name = 'data_directory'", &[]).await;
        let data: String = row.expect("it can be asked").get(0);
        let place = disk.path().join("tables");
        std::fs::create_dir(&place).expect("the disk has room");
        let owner = std::fs::metadata(data).expect("the server is on this machine");
        std::os::unix::fs::chown(&place, Some(owner.uid()), Some(owner.gid())).expect("root may give it away");
        let sql = format!("CREATE TABLESPACE {name} LOCATION '{}'", place.display());
        client.batch_execute(&sql).await.expect("a tablespace can be made");
        let sql = format!("CREATE DATABASE {name} TABLESPACE {name}");
        client.batch_execute(&sql).await.expect("a database can be made");
        Some(SmallDatabase { name, disk })
    }

    async fn remove(self) {
        let client = postgres::client().await;
        let sql = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        client.batch_execute(&sql).await.expect("the database can be removed");
        client.batch_execute(&format!("DROP TABLESPACE {}", self.name)).await.expect("the tablespace can be removed");
    }
}

/// The server writes out everything before it drops a database, and fails while any of its disks is full.
static ONE_DISK_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn survive(lane: Lane, name: &str) {
    let _alone = ONE_DISK_AT_A_TIME.lock().await;
    let Some(database) = SmallDatabase::make(name).await else { return };
    let place = Place::new(lane.store);
    let mut config = place.config(lane);
    config.transactions.pipeline_size_max = ByteSize(1024);
    let KvsConfig::Postgres(settings) = &mut config.key_value_service else { panic!("a PostgreSQL lane") };
    settings.database.clone_from(&database.name);

    let atlas = place.open_atlas(config.clone()).await;
    let bank = Bank::open(&atlas).await;
    let told = Arc::new(Mutex::new(Told::default()));
    for (name, some_large) in [("small", false), ("mixed", true)] {
        let clerks = Clerks::start(&bank, name, 8, some_large, &told);
        clerks.acknowledge(50).await;
        let refused = told.lock().refused;
        until("a refused transfer", || {
            database.disk.fill();
            told.lock().refused > refused
        })
        .await;
        database.disk.clear();
        clerks.acknowledge(50).await;
        clerks.stop().await;
        let so_far = told.lock().clone();
        so_far.check(&bank, "after the disk had room").await;
    }
    let told = std::mem::take(&mut *told.lock());
    let survived = told.check(&bank, "after both").await;
    atlas.close().await.expect("the store closes");
    let atlas = place.open_atlas(config).await;
    let again = told.check(&Bank::open(&atlas).await, "after opening again").await;
    assert_eq!(again, survived, "an unknown outcome was decided twice");
    atlas.close().await.expect("the store closes");
    eprintln!(
        "{} acknowledged, {} refused, {} unknown, of which {} committed",
        told.acknowledged.len(),
        told.refused - told.unknown.len(),
        told.unknown.len(),
        survived.len()
    );
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_survived_in_the_pipeline() {
    survive(POSTGRES_PIPELINE, "pipeline").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_survived_step_by_step() {
    survive(POSTGRES_STEPS, "steps").await;
}
