//! Portable backups: taken of one store, restored into another, in both ways to commit.

mod backup_support;

use atlas::backup::create::create;
use atlas::backup::restore::restore;
use atlas::backup::verify::{NumbersCheck, verify};
use atlas::backup::{BackupLock, BackupSource, Contents};
use atlas::config::{AtlasConfig, CommitModeChoice};
use atlas::ops::{BackupRequest, BeginOptions, Operations, TransactionOps, no_progress};
use atlas::schema::StoreRecord;
use atlas::transaction::entry::transactions_table;
use atlas::{Atlas, Cell, Error, Result, Timestamp, exit};
use atlas_kvs::{Durability, KeyValueService};
use backup_support::accounts::{
    State, TABLES, filled, memory, open, portable_request, restore_into, spec, state, table,
};
use backup_support::{Pretender, Snapshots, open_repository, rocks, rocks_target, server_target};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// The source of `Atlas`, with small files.
struct SmallFiles(Atlas);

#[async_trait::async_trait]
impl BackupSource for SmallFiles {
    fn kvs(&self) -> Arc<dyn KeyValueService> {
        Arc::clone(self.0.transactions().kvs())
    }
    fn namespace(&self) -> String {
        "default".to_owned()
    }
    fn store_id(&self) -> Uuid {
        self.0.transactions().store().store_id
    }
    fn data_dir(&self) -> Option<std::path::PathBuf> {
        None
    }
    async fn fresh_timestamp(&self) -> Result<Timestamp> {
        self.0.transactions().oracle().fresh().await
    }
    async fn settle(&self, up_to: Timestamp) -> Result<()> {
        self.0.transactions().settle(up_to).await
    }
    fn backup_lock(&self) -> BackupLock {
        BackupLock::new(self.kvs())
    }
    fn lock_lease(&self) -> Duration {
        Duration::from_secs(10)
    }
    async fn read_at(&self, at: Timestamp) -> Result<Box<dyn TransactionOps>> {
        let options = BeginOptions { read_only: true, at: Some(at), ..BeginOptions::default() };
        self.0.begin_transaction(options).await
    }
    fn file_size(&self) -> u64 {
        200_000
    }
}

/// The restored store is an ordinary one: readers, writers, conflicts, and the next backup.
async fn assert_lives(kvs: &Arc<dyn KeyValueService>, mode: CommitModeChoice, expected: &State, repository: &Path) {
    let atlas = open(kvs, mode).await;
    assert_eq!(state(&atlas, None).await, *expected);
    for name in TABLES {
        let found = atlas.describe_table(&table(name), false).await.expect("it is there");
        assert_eq!(found.spec, Some(spec(name)), "{name}");
    }
    let cell = Cell::copy_from("row001", [1, 0, 0xff]);
    let (first, second) = (atlas.begin().await.expect("it begins"), atlas.begin().await.expect("it begins"));
    for transaction in [&first, &second] {
        let found = transaction.get(&table("accounts"), &cell).await.expect("it can be read");
        assert_eq!(found.as_deref(), expected.get(&("accounts".to_owned(), cell.clone())).map(Vec::as_slice));
        transaction.put(&table("accounts"), cell.clone(), "new").await.expect("it can be buffered");
    }
    first.commit().await.expect("it commits over what was restored");
    assert!(matches!(second.commit().await, Err(Error::Conflict { .. })), "{mode:?}");
    let findings = atlas.doctor(&[]).await.expect("it can be examined");
    assert!(findings.iter().all(|finding| finding.level != atlas::ops::FindingLevel::Fail), "{findings:?}");
    let after = state(&atlas, None).await;
    let name = format!("again-{}", Uuid::new_v4());
    atlas.backup_create(portable_request(repository, &name), no_progress()).await.expect("it can be taken");
    let again = memory();
    let restored = restore(&open_repository(repository), &name, &server_target(&again), &no_progress()).await;
    restored.expect("it can be restored");
    assert_eq!(state(&open(&again, CommitModeChoice::Auto).await, None).await, after);
    atlas.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_portable_backup_of_any_store_restores_into_any_other() {
    for (number, mode) in [CommitModeChoice::Pipeline, CommitModeChoice::StepByStep].into_iter().enumerate() {
        let dir = tempfile::tempdir().expect("a directory");
        let repository = dir.path().join("repo");
        let sources = [memory(), rocks(&dir.path().join("data")).await];
        for (name, kvs) in ["memory", "rocksdb"].into_iter().zip(sources) {
            let atlas = filled(&kvs, mode).await;
            let info =
                atlas.backup_create(portable_request(&repository, name), no_progress()).await.expect("it can be taken");
            assert_eq!((info.method.as_str(), info.store.as_str()), ("portable", name));
            let expected = state(&atlas, info.backup_ts).await;
            assert_eq!(expected.len(), 40 - 6 + 1 + 4);
            atlas.close().await.expect("it closes");

            let report = verify(&open_repository(&repository), name, None, &no_progress()).await.expect("it is sound");
            assert_eq!(report.numbers, NumbersCheck::Read { cells: expected.len() as u64 });

            // Into a directory, to be opened in the other mode than it came from.
            let other = [CommitModeChoice::StepByStep, CommitModeChoice::Pipeline][number];
            let target = dir.path().join(format!("restored-{name}"));
            let place = rocks_target(&target).committing(other);
            let report = restore_into(dir.path(), name, &place).await.expect("it can be restored");
            assert_eq!((report.verified.committed, report.clean.rolled_back), (1, 0));
            assert!(report.commands.is_empty());
            let kvs = rocks(&target).await;
            assert_lives(&kvs, other, &expected, &repository).await;

            // And into a namespace of a server.
            let kvs = memory();
            restore_into(dir.path(), name, &server_target(&kvs)).await.expect("it can be restored");
            assert_lives(&kvs, CommitModeChoice::Auto, &expected, &repository).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_portable_backup_taken_while_transactions_run_is_exactly_the_state_at_its_timestamp() {
    for mode in [CommitModeChoice::Pipeline, CommitModeChoice::StepByStep] {
        let dir = tempfile::tempdir().expect("a directory");
        let atlas = filled(&memory(), mode).await;
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..3u8)
            .map(|writer| {
                let (atlas, stop) = (atlas.clone(), Arc::clone(&stop));
                tokio::spawn(async move {
                    let mut round = 0u32;
                    while !stop.load(Ordering::Relaxed) {
                        round += 1;
                        let written = atlas.run(async |tx| {
                            for row in [round % 40, (round * 7 + 3) % 40] {
                                let cell = Cell::copy_from(format!("row{row:03}"), [row as u8, 0, 0xff]);
                                tx.put(&table("accounts"), cell, format!("{writer}-{round}").into_bytes()).await?;
                            }
                            tx.put(&table("Accounts"), Cell::copy_from([writer], "round"), round.to_be_bytes().to_vec())
                                .await
                        });
                        written.await.expect("it commits");
                    }
                })
            })
            .collect();
        let source = Arc::new(SmallFiles(atlas.clone()));
        let info = create(source, portable_request(&dir.path().join("repo"), "live"), no_progress()).await;
        let info = info.expect("it can be taken");
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.expect("it writes");
        }
        let expected = state(&atlas, info.backup_ts).await;
        assert_ne!(state(&atlas, None).await, expected, "transactions ran on");
        let kvs = memory();
        restore_into(dir.path(), "live", &server_target(&kvs)).await.expect("it can be restored");
        assert_eq!(state(&open(&kvs, CommitModeChoice::Auto).await, None).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_tables_are_cut_into_files_and_empty_ones_make_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let atlas = filled(&memory(), CommitModeChoice::Auto).await;
    let source = Arc::new(SmallFiles(atlas.clone()));
    create(source, portable_request(&dir.path().join("repo"), "one"), no_progress()).await.expect("it can be taken");
    let repository = open_repository(&dir.path().join("repo"));
    let manifest = repository.manifest("one").await.expect("it is complete");
    assert_eq!(manifest.version, 2);
    let Contents::Portable { tables } = &manifest.contents else { panic!("{:?}", manifest.contents) };
    let files: Vec<_> = tables.iter().map(|table| (table.table.name(), table.files, table.cells)).collect();
    assert_eq!(files, [("Accounts", 1, 1), ("accounts", 1, 34), ("empty", 0, 0), ("large.values", 4, 4)]);

    // A manifest that promises other cells than the files hold, sealed by somebody who wants to be believed.
    let mut other = manifest.clone();
    let Contents::Portable { tables } = &mut other.contents else { panic!("it is portable") };
    tables[1].cells += 1;
    std::fs::write(repository.directory("one").join("manifest.json"), other.encode()).expect("it can be written");
    let error = verify(&repository, "one", None, &no_progress()).await.expect_err("it does not hold them");
    assert_eq!(error.exit_code(), exit::DAMAGED, "{error}");
    let kvs = memory();
    let error = restore_into(dir.path(), "one", &server_target(&kvs)).await.expect_err("it does not hold them");
    assert_eq!(error.exit_code(), exit::DAMAGED, "{error}");
    let error = Atlas::with_store(AtlasConfig::default(), kvs).await.expect_err("it is no whole store");
    assert_eq!(error.exit_code(), exit::REFUSED, "{error}");
}

/// Rows of two columns, with values that no compression makes shorter.
async fn fill_rows(atlas: &Atlas, count: u32) {
    let written = atlas.run(async |tx| {
        let mut noise = 1u64;
        for row in 0..count {
            for column in ["a", "b"] {
                let value: Vec<u8> = std::iter::repeat_with(|| {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (noise >> 56) as u8
                })
                .take(2_000)
                .collect();
                tx.put(&table("accounts"), Cell::copy_from(format!("row{row:03}"), column), value).await?;
            }
        }
        Ok::<_, Error>(())
    });
    written.await.expect("it commits");
}

/// The row that a file of a portable backup begins with.
fn first_row(path: &Path) -> Vec<u8> {
    let file = std::fs::read(path).expect("it can be read");
    // The preamble, the header of a frame, the lengths of a cell, and its row.
    let len = usize::from(u16::from_be_bytes([file[16], file[17]]));
    file[24..24 + len].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_copied_in_pieces_whose_files_are_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let in_files = filled(&rocks(&data).await, CommitModeChoice::Auto).await;
    fill_rows(&in_files, 300).await;
    // Opened again, it has its cells in files, of which it knows where they can be cut.
    in_files.close().await.expect("it closes");
    drop(in_files);
    let in_memory = filled(&memory(), CommitModeChoice::Auto).await;
    fill_rows(&in_memory, 300).await;
    let in_files = open(&rocks(&data).await, CommitModeChoice::Auto).await;
    for (name, atlas) in [("rocksdb", in_files), ("memory", in_memory)] {
        let request = portable_request(&dir.path().join("repo"), name);
        create(Arc::new(SmallFiles(atlas.clone())), request, no_progress()).await.expect("it can be taken");
        let repository = open_repository(&dir.path().join("repo"));
        let manifest = repository.manifest(name).await.expect("it is complete");
        let files: Vec<_> = manifest.files.iter().filter(|file| file.path.starts_with("files/00001.")).collect();
        assert!(files.iter().map(|file| file.size).sum::<u64>() > 1_200_000, "{name}: {files:?}");
        // Of one stream only the last file can be shorter than a frame, which is larger than these files want to be.
        assert!(files.iter().filter(|file| file.size < 256 << 10).count() > 1, "{name}: {files:?}");
        let first: Vec<_> = files.iter().map(|file| first_row(&repository.directory(name).join(&file.path))).collect();
        assert!(first.is_sorted(), "{name}: {first:?}");
        let left: Vec<_> = std::fs::read_dir(repository.directory(name).join("files")).expect("a listing").collect();
        assert_eq!(left.len() as u64 + 2, manifest.totals.files, "{name}: {left:?}");

        let expected = state(&atlas, None).await;
        let kvs = memory();
        restore_into(dir.path(), name, &server_target(&kvs)).await.expect("it can be restored");
        assert_eq!(state(&open(&kvs, CommitModeChoice::Auto).await, None).await, expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_wait_for_the_disk_with_their_entry_where_a_crash_ends_the_restore_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let atlas = filled(&memory(), CommitModeChoice::Auto).await;
    let request = portable_request(&dir.path().join("repo"), "one");
    atlas.backup_create(request, no_progress()).await.expect("it can be taken");
    for shared in [false, true] {
        let mut store = Pretender::new(dir.path());
        (store.snapshots, store.shared) = (Snapshots::None, shared);
        let store = Arc::new(store);
        let kvs: Arc<dyn KeyValueService> = store.clone();
        restore_into(dir.path(), "one", &server_target(&kvs)).await.expect("it can be restored");
        let writes = store.writes.lock().clone();
        let entry = writes.iter().position(|(table, _)| *table == transactions_table()).expect("it was written");
        assert_eq!(writes[entry].1, Durability::Synced);
        let data: Vec<_> = writes.iter().enumerate().filter(|(_, (table, _))| !table.is_internal()).collect();
        assert!(!data.is_empty());
        for (place, (table, durability)) in data {
            assert!(place < entry, "{table} was written after the entry");
            let expected = if shared { Durability::Synced } else { Durability::Relaxed };
            assert_eq!(*durability, expected, "{table}, shared: {shared}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_can_be_backed_up_and_restored() {
    let dir = tempfile::tempdir().expect("a directory");
    let atlas = open(&memory(), CommitModeChoice::Auto).await;
    atlas
        .backup_create(portable_request(&dir.path().join("repo"), "one"), no_progress())
        .await
        .expect("it can be taken");
    let kvs = memory();
    let report = restore_into(dir.path(), "one", &server_target(&kvs)).await.expect("it can be restored");
    assert_eq!(report.verified.committed, 0);
    assert_eq!(open(&kvs, CommitModeChoice::Auto).await.tables(false).await.expect("they are listed"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_files_does_not_fit_another_store_and_says_what_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let atlas = filled(&rocks(&dir.path().join("data")).await, CommitModeChoice::Auto).await;
    let usual = BackupRequest { portable: false, ..portable_request(&dir.path().join("repo"), "files") };
    let info = atlas.backup_create(usual, no_progress()).await.expect("it can be taken");
    assert_eq!(info.method, "files");
    let kvs = memory();
    let error = restore_into(dir.path(), "files", &server_target(&kvs)).await.expect_err("it does not fit");
    assert_eq!(error.exit_code(), exit::REFUSED);
    assert!(error.hint().expect("a way on").contains("--portable"), "{:?}", error.hint());
    assert!(kvs.tables().await.expect("they are listed").is_empty(), "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_namespace_is_filled_and_its_own_name_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let atlas = filled(&memory(), CommitModeChoice::Auto).await;
    atlas
        .backup_create(portable_request(&dir.path().join("repo"), "one"), no_progress())
        .await
        .expect("it can be taken");
    let used = memory();
    open(&used, CommitModeChoice::Auto).await;
    let before = used.tables().await.expect("they are listed");
    let error = restore_into(dir.path(), "one", &server_target(&used)).await.expect_err("it is not empty");
    assert_eq!(error.exit_code(), exit::REFUSED);
    assert_eq!(used.tables().await.expect("they are listed"), before);

    let kvs = memory();
    let opener: atlas::backup::ConnectionOpener = {
        let kvs = Arc::clone(&kvs);
        Arc::new(move || {
            let kvs = Arc::clone(&kvs);
            Box::pin(async move { Ok(kvs) })
        })
    };
    let target = atlas::backup::StoreTarget::new("a server", "memory", "staging", opener);
    restore_into(dir.path(), "one", &target).await.expect("it can be restored");
    let record: StoreRecord =
        backup_support::store_record(&kvs).load().await.expect("it is read").expect("it is there").0;
    assert_eq!((record.namespace.as_str(), record.restored_from.as_deref()), ("staging", Some("one")));
    assert_eq!(record.commit_mode, "step_by_step");
}
