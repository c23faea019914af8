//! Taking backups and looking at them: what is refused, what is left behind, what is found to be damaged.

mod backup_support;

use atlas::backup::verify::{NumbersCheck, OpenCopy, verify};
use atlas::backup::{BackupLock, BackupSource, Repository, VerifyReport};
use atlas::ops::{BackupInfo, no_progress};
use atlas::schema::TRANSACTIONS_TABLE;
use atlas::transaction::entry::Entry;
use atlas::{Error, Result, exit};
use atlas_kvs::KeyValueService;
use atlas_kvs_memory::MemoryStore;
use backup_support::{
    Pretender, Source, create, make_store, open_repository, pretended, request, ts, write_transaction,
};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

fn scratch() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = dir.path().join("repo");
    (dir, repository)
}

/// A repository with one backup called `one`.
async fn one_backup() -> (TempDir, PathBuf, BackupInfo) {
    let (dir, repository) = scratch();
    let source = Arc::new(pretended(dir.path()).await);
    let info = create(&source, &repository, Some("one")).await.expect("it can be taken");
    (dir, repository, info)
}

async fn verify_one(repository: &Path) -> Result<VerifyReport> {
    verify(&open_repository(repository), "one", None, &no_progress()).await
}

/// Nothing of a failed backup is left: no directory, no snapshot, no lock.
async fn assert_nothing_left(source: &Source, repository: &Path, backups: usize) {
    if repository.exists() {
        let list = open_repository(repository).list().await.expect("it can be listed");
        assert_eq!(list.len(), backups, "{list:?}");
    }
    let staging = source.data_dir.as_ref().expect("it has one").join("staging");
    let left = std::fs::read_dir(staging).map_or(0, Iterator::count);
    assert_eq!(left, 0, "snapshots are left");
    assert_eq!(source.lock.status().await.expect("it can be read"), None, "the lock is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_complete_private_listed_and_remembered() {
    let (dir, repository) = scratch();
    let source = Arc::new(pretended(dir.path()).await);
    let info = create(&source, &repository, None).await.expect("it can be taken");

    assert_eq!((info.state.as_str(), info.files), ("complete", 5));
    assert!(info.backup_ts < info.fast_forward_ts);
    let found = open_repository(&repository);
    assert_eq!(found.list().await.expect("it can be listed"), std::slice::from_ref(&info));
    assert_eq!(found.show("latest").await.expect("it is there"), info);
    let record = atlas::backup::create::last_backup(Arc::clone(&source.kvs));
    assert_eq!(record.load().await.expect("it can be read").expect("it is there").0, info);
    assert_nothing_left(&source, &repository, 1).await;

    let directory = found.directory(&info.id);
    for (path, mode) in [(".", 0o700), ("files/db/deep", 0o700), ("manifest.json", 0o600), ("files/db/CURRENT", 0o600)]
    {
        let found = std::fs::metadata(directory.join(path)).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(found, mode, "{path}");
    }
    let line = std::fs::read_to_string(directory.join("backup.timestamp")).expect("it is there");
    assert_eq!(line, format!("{}\n", info.backup_ts.expect("it is complete")));

    let report = verify(&found, "latest", None, &no_progress()).await.expect("it is sound");
    assert_eq!((report.files, report.numbers), (5, NumbersCheck::Skipped));
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_are_listed_newest_first_and_latest_is_complete() {
    let (dir, repository) = scratch();
    let source = Arc::new(pretended(dir.path()).await);
    for name in ["b", "c", "a"] {
        create(&source, &repository, Some(name)).await.expect("it can be taken");
    }
    std::fs::create_dir(repository.join("killed")).expect("it can be made");
    std::fs::create_dir(repository.join(".hidden")).expect("it can be made");
    std::fs::write(repository.join("notes.txt"), "not a backup").expect("it can be written");
    std::fs::write(repository.join("a/manifest.json"), "{}").expect("it can be written");
    // These two are told by the times of their directories, which file systems keep less exactly than manifests do.
    for (directory, later) in [("killed", 7200), ("a", 3600)] {
        let time = SystemTime::now() + Duration::from_secs(later);
        let opened = std::fs::File::open(repository.join(directory));
        opened.and_then(|directory| directory.set_modified(time)).expect("it is ours");
    }
    let found = open_repository(&repository);
    let list = found.list().await.expect("it can be listed");
    let states: Vec<_> = list.iter().map(|backup| (backup.id.as_str(), backup.state.as_str())).collect();
    assert_eq!(states, [("killed", "incomplete"), ("a", "damaged"), ("c", "complete"), ("b", "complete")]);
    assert_eq!(found.resolve("latest").await.expect("there is one"), "c");
}

#[tokio::test]
async fn a_repository_that_is_not_there_is_not_found_and_an_empty_one_is_empty() {
    let (dir, repository) = scratch();
    let error = Repository::open(&repository).expect_err("it is not there");
    assert_eq!(error.exit_code(), exit::NOT_FOUND);
    assert!(error.to_string().contains("repo"), "{error}");

    let empty = Repository::open(dir.path()).expect("it is there");
    assert_eq!(empty.list().await.expect("it can be listed"), []);
    for id in ["latest", "other"] {
        assert_eq!(empty.resolve(id).await.expect_err("there is none").exit_code(), exit::NOT_FOUND, "{id}");
        let error = verify(&empty, id, None, &no_progress()).await.expect_err("there is none");
        assert_eq!(error.exit_code(), exit::NOT_FOUND, "{id}");
    }
    assert_eq!(empty.resolve("../etc").await.expect_err("no name").exit_code(), exit::USAGE);

    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("it can be written");
    assert_eq!(Repository::open(&file).expect_err("it is a file").exit_code(), exit::REFUSED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_fail_later_is_refused_first() {
    let (dir, repository) = scratch();
    let source = Arc::new(pretended(dir.path()).await);
    create(&source, &repository, Some("used")).await.expect("it can be taken");
    let data = source.data_dir.clone().expect("it has one");
    for (repository, name, code) in [
        (repository.clone(), Some("used"), exit::CONFLICT),
        (repository.clone(), Some("../up"), exit::USAGE),
        (repository.clone(), Some("latest"), exit::USAGE),
        (data.join("backups"), None, exit::REFUSED),
        (data.clone(), None, exit::REFUSED),
        (dir.path().to_owned(), None, exit::REFUSED),
        (dir.path().join("x/../data/backups"), None, exit::REFUSED),
    ] {
        let error = create(&source, &repository, name).await.expect_err("it is refused");
        assert_eq!(error.exit_code(), code, "{} {name:?}: {error}", repository.display());
    }
    assert!(!data.join("backups").exists());
    assert_nothing_left(&source, &repository, 1).await;
    assert_eq!(verify(&open_repository(&repository), "used", None, &no_progress()).await.expect("sound").files, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_without_space_is_refused_before_anything_is_written() {
    let (dir, repository) = scratch();
    let data = dir.path().join("data");
    let mut pretender = Pretender::new(&data);
    pretender.estimate = 1 << 60;
    let source = Arc::new(Source::new(Arc::new(pretender), Some(data)).await);
    let error = create(&source, &repository, None).await.expect_err("there is no room");
    assert_eq!(error.exit_code(), exit::REFUSED);
    assert!(error.to_string().contains("bytes free"), "{error}");
    assert!(!repository.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_snapshots_is_read_by_a_transaction() {
    let (_dir, repository) = scratch();
    let source = Arc::new(Source::new(Arc::new(MemoryStore::new()), None).await);
    let info = create(&source, &repository, None).await.expect("it can be read");
    assert_eq!(info.method, "portable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_snapshot_leaves_nothing() {
    let (dir, repository) = scratch();
    let data = dir.path().join("data");
    let mut pretender = Pretender::new(&data);
    pretender.snapshot_fails = true;
    let source = Arc::new(Source::new(Arc::new(pretender), Some(data)).await);
    let error = create(&source, &repository, None).await.expect_err("it fails");
    assert_eq!(error.exit_code(), exit::UNAVAILABLE);
    assert_nothing_left(&source, &repository, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_backup_at_a_time() {
    let (dir, repository) = scratch();
    let source = Arc::new(pretended(dir.path()).await);
    source.lock.acquire_for_nobody("by hand").await.expect("it is free");
    let error = create(&source, &repository, None).await.expect_err("the lock is held");
    assert!(matches!(error, Error::BackupLockHeld { .. }), "{error}");
    assert_eq!(error.exit_code(), exit::CONFLICT);
    let held = source.lock.status().await.expect("it can be read").expect("it is still held");
    assert_eq!(held.reason, "by hand");
    assert_eq!(open_repository(&repository).list().await.expect("it can be listed"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_lock_was_cleared_is_void_and_removed() {
    let (dir, repository) = scratch();
    let mut source = pretended(dir.path()).await;
    source.in_settle = Some(Box::new(|kvs| {
        Box::pin(async move {
            BackupLock::new(kvs).clear_after_restore().await.expect("it can be cleared");
        })
    }));
    let source = Arc::new(source);
    let error = create(&source, &repository, None).await.expect_err("the lock was lost");
    assert!(matches!(error, Error::BackupVoid { .. }), "{error}");
    assert_eq!(error.exit_code(), exit::DAMAGED);
    assert_nothing_left(&source, &repository, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_goes_away_ends_the_backup() {
    let (dir, repository) = scratch();
    let (told, mut settling) = tokio::sync::mpsc::unbounded_channel();
    let mut source = pretended(dir.path()).await;
    source.in_settle = Some(Box::new(move |_| {
        told.send(()).expect("the test waits");
        Box::pin(std::future::pending())
    }));
    let source = Arc::new(source);
    let dynamic: Arc<dyn BackupSource> = Arc::clone(&source) as _;
    let running =
        tokio::spawn(atlas::backup::create::create(dynamic, request(&repository, Some("gone")), no_progress()));
    settling.recv().await.expect("it settles");
    assert!(repository.join("gone").exists());
    running.abort();
    assert!(running.await.expect_err("it was aborted").is_cancelled());
    // The lock goes last, so with it everything else is gone.
    while source.lock.status().await.expect("it can be read").is_some() {
        tokio::task::yield_now().await;
    }
    assert_nothing_left(&source, &repository, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damaged_file_is_named() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 8] = [
        ("files/db/000001.sst has", |backup| {
            let file = std::fs::OpenOptions::new().write(true).open(backup.join("files/db/000001.sst"));
            file.and_then(|file| file.set_len(1_000_000)).expect("it can be cut off");
        }),
        ("files/db/000001.sst does not match", |backup| {
            let path = backup.join("files/db/000001.sst");
            let mut content = std::fs::read(&path).expect("it is there");
            content[2_345_678] ^= 1;
            std::fs::write(path, content).expect("it can be written");
        }),
        ("files/db/CURRENT is missing", |backup| {
            std::fs::remove_file(backup.join("files/db/CURRENT")).expect("it is there");
        }),
        ("files/db/CURRENT is no file", |backup| {
            std::fs::remove_file(backup.join("files/db/CURRENT")).expect("it is there");
            std::os::unix::fs::symlink("/etc/hostname", backup.join("files/db/CURRENT")).expect("it can be made");
        }),
        ("backup.timestamp", |backup| {
            std::fs::copy(backup.join("fast-forward.timestamp"), backup.join("backup.timestamp")).expect("it is there");
        }),
        ("manifest.json: it is no file", |backup| {
            std::fs::remove_file(backup.join("manifest.json")).expect("it is there");
            std::fs::create_dir(backup.join("manifest.json")).expect("it can be made");
        }),
        ("manifest.json", |backup| std::fs::remove_file(backup.join("manifest.json")).expect("it is there")),
        ("manifest.json", |backup| {
            let path = backup.join("manifest.json");
            let content = std::fs::read_to_string(&path).expect("it is there");
            std::fs::write(path, &content[..content.len() / 2]).expect("it can be written");
        }),
    ];
    for (expected, damage) in damages {
        let (_dir, repository, _) = one_backup().await;
        verify_one(&repository).await.expect("it is sound");
        damage(&repository.join("one"));
        let error = verify_one(&repository).await.expect_err(expected);
        assert_eq!(error.exit_code(), exit::DAMAGED, "{error}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        // Whatever it is, the others can still be listed.
        assert_eq!(open_repository(&repository).list().await.expect("it can be listed").len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_damages_are_both_named_and_extra_files_are_only_told() {
    let (_dir, repository, _) = one_backup().await;
    std::fs::write(repository.join("one/files/extra"), "x").expect("it can be written");
    assert_eq!(verify_one(&repository).await.expect("it is sound").extra_files, ["files/extra"]);
    for path in ["files/db/CURRENT", "files/db/000001.sst"] {
        std::fs::remove_file(repository.join("one").join(path)).expect("it is there");
    }
    let error = verify_one(&repository).await.expect_err("it is damaged").to_string();
    assert!(error.contains("CURRENT is missing") && error.contains("000001.sst is missing"), "{error}");
    assert!(error.contains("2 of 5"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_another_name_is_damage() {
    let (_dir, repository, _) = one_backup().await;
    std::fs::rename(repository.join("one"), repository.join("two")).expect("it can be renamed");
    let error = open_repository(&repository).manifest("two").await.expect_err("it is not `two`");
    assert_eq!(error.exit_code(), exit::DAMAGED);
    assert_eq!(open_repository(&repository).show("two").await.expect("it is there").state, "damaged");
}

/// An opener of a store that holds these transactions, whatever is in the directory.
fn holding(entries: &'static [(u64, u64)]) -> OpenCopy {
    OpenCopy {
        scratch_root: std::env::temp_dir(),
        opener: Arc::new(move |directory| {
            Box::pin(async move {
                assert!(directory.join("db/CURRENT").exists(), "the copy is laid out");
                let kvs: Arc<dyn KeyValueService> = Arc::new(MemoryStore::new());
                make_store(&kvs).await;
                for (start, commit) in entries {
                    write_transaction(kvs.as_ref(), *start, Entry::Committed(ts(*commit)), "row", "x").await;
                }
                Ok(kvs)
            })
        }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_in_a_copy_may_reach_the_fast_forward_timestamp() {
    let (_dir, repository, info) = one_backup().await;
    let limit = info.fast_forward_ts.expect("it is complete").get();
    assert!(limit < 1000, "few numbers were issued: {limit}");
    let repository = open_repository(&repository);
    let report = verify(&repository, "one", Some(holding(&[(3, 4), (5, 6)])), &no_progress()).await.expect("sound");
    assert_eq!(report.numbers, NumbersCheck::Checked { entries: 2, versions: 2 });
    let error = verify(&repository, "one", Some(holding(&[(3, 4), (5, 2000)])), &no_progress()).await;
    let error = error.expect_err("a number is too great");
    assert_eq!(error.exit_code(), exit::DAMAGED);
    assert!(error.to_string().contains("transaction 5 committed at 2000"), "{error}");
    let error = verify(&repository, "one", Some(holding(&[(3000, 3001)])), &no_progress()).await;
    let error = error.expect_err("a number is too great").to_string();
    assert!(error.contains("has a version at 3000") && !error.contains(TRANSACTIONS_TABLE), "{error}");
}
