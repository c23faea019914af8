//! The whole way over RocksDB: a live backup, the store lost, the backup restored, the state compared.

mod backup_support;

use atlas::backup::create::create_until;
use atlas::backup::restore::{restore, resume};
use atlas::backup::verify::{NumbersCheck, OpenCopy, verify};
use atlas::backup::{BackupLock, BackupSource, DirectoryTarget, RESTORE_MARKER_FILE, refuse_if_restoring};
use atlas::ops::{BackupRequest, Progress, no_progress};
use atlas::transaction::entry::CleanedWindows;
use atlas::{Error, exit};
use backup_support::{
    Source, create, open_repository, request, rocks, rocks_opener, rocks_source, rocks_target, state_at, store_record,
    visible,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Takes a backup called `one` of a store in `directory/data` and closes the store. Answers it for its log.
async fn backed_up(directory: &Path) -> (Arc<Source>, atlas::Timestamp) {
    let source = rocks_source(&directory.join("data")).await;
    let info = create(&source, &directory.join("repo"), Some("one")).await.expect("it can be taken");
    source.transact_many(10).await;
    source.kvs.close().await.expect("it closes");
    (source, info.backup_ts.expect("it is complete"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backup_taken_while_transactions_run_restores_exactly_the_state_at_its_timestamp() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, repository, target) = (dir.path().join("data"), dir.path().join("repo"), dir.path().join("target"));
    let source = rocks_source(&data).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (source, stop) = (Arc::clone(&source), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut row = writer;
                while !stop.load(Ordering::Relaxed) {
                    source.transact(row % backup_support::ROWS).await;
                    row += 7;
                }
            })
        })
        .collect();
    let info = create(&source, &repository, Some("live")).await.expect("it can be taken");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("it writes");
    }
    let backup_ts = info.backup_ts.expect("it is complete");
    let log = source.log.lock().await.clone();
    assert!(log.iter().any(|(commit_ts, ..)| *commit_ts > backup_ts), "transactions ran on");
    source.kvs.close().await.expect("it closes");
    std::fs::remove_dir_all(&data).expect("the store is lost");

    let found = open_repository(&repository);
    let open = OpenCopy { scratch_root: dir.path().to_owned(), opener: rocks_opener() };
    let report = verify(&found, "live", Some(open), &no_progress()).await.expect("it is sound");
    assert!(matches!(report.numbers, NumbersCheck::Checked { entries, .. } if entries >= 30), "{report:?}");
    let report = restore(&found, "latest", &rocks_target(&target), &no_progress()).await.expect("it can be restored");

    assert_eq!((report.id.as_str(), report.resumed), ("live", false));
    assert_eq!(report.fast_forward.window_closed.map(|window| window.from), Some(backup_ts));
    assert_eq!(report.commands.len(), 4);
    refuse_if_restoring(&target).expect("it is whole");
    let kvs = rocks(&target).await;
    assert_eq!(visible(&kvs).await, state_at(&log, backup_ts));
    let record = store_record(&kvs).load().await.expect("it can be read").expect("it is there").0;
    assert_eq!((record.store_id, record.restored_from.as_deref()), (report.store_id, Some("live")));
    assert_ne!(record.store_id, Uuid::from_u128(1), "it is another store");
    assert_eq!(BackupLock::new(Arc::clone(&kvs)).status().await.expect("it can be read"), None);
    assert_eq!(atlas::backup::create::last_backup(Arc::clone(&kvs)).load().await.expect("it can be read"), None);
    assert_eq!(CleanedWindows::load(Arc::clone(&kvs)).await.expect("they can be read").open_window(), None);

    // Life goes on: a commit after the restore counts, and is in the next backup.
    let again = Arc::new(Source::new(Arc::clone(&kvs), Some(target)).await);
    let first = again.transact(0).await;
    assert!(first > report.fast_forward_ts);
    let second = create(&again, &repository, Some("after")).await.expect("it can be taken");
    assert!(second.backup_ts > info.fast_forward_ts);
    let third = dir.path().join("third");
    kvs.close().await.expect("it closes");
    restore(&found, "after", &rocks_target(&third), &no_progress()).await.expect("it can be restored");
    let kvs = rocks(&third).await;
    let mut expected = state_at(&log, backup_ts);
    expected.extend(state_at(&*again.log.lock().await, second.backup_ts.expect("it is complete")));
    assert_eq!(visible(&kvs).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_target_of_the_same_kind_is_filled() {
    let dir = tempfile::tempdir().expect("a directory");
    backed_up(dir.path()).await;
    let repository = open_repository(&dir.path().join("repo"));
    let refused = async |target: DirectoryTarget| {
        let error = restore(&repository, "one", &target, &no_progress()).await.expect_err("it is refused");
        assert_eq!(error.exit_code(), exit::REFUSED, "{error}");
        error.to_string()
    };

    // The store it came from, closed and, as bad, open.
    let data = dir.path().join("data");
    assert!(refused(rocks_target(&data)).await.contains("empty"));
    let open = rocks(&data).await;
    assert!(refused(rocks_target(&data)).await.contains("empty"));
    open.close().await.expect("it closes");

    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("it can be written");
    refused(rocks_target(&file)).await;
    let full = dir.path().join("full");
    std::fs::create_dir(&full).expect("it can be made");
    std::fs::write(full.join("something"), "x").expect("it can be written");
    assert!(refused(rocks_target(&full)).await.contains("something"));
    assert_eq!(std::fs::read_dir(&full).expect("it is there").count(), 1, "nothing was written");

    let fresh = dir.path().join("fresh");
    let postgres = DirectoryTarget::new(&fresh, "postgres", Vec::new(), rocks_opener());
    assert!(refused(postgres).await.contains("postgres"));
    let other = rocks_target(&fresh).in_namespace("other");
    assert!(refused(other).await.contains("other"));
    assert!(!fresh.exists());

    // With what an owner leaves, it counts as empty.
    std::fs::create_dir(&fresh).expect("it can be made");
    std::fs::write(fresh.join("owner"), "").expect("it can be written");
    drop(std::os::unix::net::UnixListener::bind(fresh.join("socket")).expect("it can be bound"));
    assert!(refused(rocks_target(&fresh)).await.contains("socket"));
    let traces = vec!["owner".to_owned(), "socket".to_owned()];
    let target = DirectoryTarget::new(&fresh, "rocksdb", traces, rocks_opener());
    restore(&repository, "one", &target, &no_progress()).await.expect("it can be restored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_backup_is_found_out_before_anything_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    backed_up(dir.path()).await;
    let repository = open_repository(&dir.path().join("repo"));
    let target = dir.path().join("target");
    std::fs::create_dir(repository.directory("killed")).expect("it can be made");
    for (id, code) in [("none", exit::NOT_FOUND), ("killed", exit::DAMAGED)] {
        let error = restore(&repository, id, &rocks_target(&target), &no_progress()).await.expect_err(id);
        assert_eq!(error.exit_code(), code, "{error}");
    }
    let current = repository.directory("one").join("files/db/CURRENT");
    std::fs::write(current, "MANIFEST-999999\n").expect("it can be written");
    let error = restore(&repository, "latest", &rocks_target(&target), &no_progress()).await.expect_err("damaged");
    assert_eq!(error.exit_code(), exit::DAMAGED);
    assert!(error.to_string().contains("files/db/CURRENT"), "{error}");
    assert!(!target.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_cannot_go_on_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let (source, backup_ts) = backed_up(dir.path()).await;
    let (repository, target) = (dir.path().join("repo"), dir.path().join("target"));
    let nothing = resume(&rocks_target(&target), None, &no_progress()).await.expect_err("nothing was begun");
    assert_eq!(nothing.exit_code(), exit::NOT_FOUND);
    assert!(!target.exists());

    // An opener that fails leaves a restore to go on with.
    let broken = DirectoryTarget::new(
        &target,
        "rocksdb",
        Vec::new(),
        Arc::new(|_| Box::pin(async { Err(Error::Unavailable { what: "it".into(), reason: "test".into() }) })),
    );
    restore(&open_repository(&repository), "one", &broken, &no_progress()).await.expect_err("it can't be opened");
    let error = refuse_if_restoring(&target).expect_err("it is not whole");
    assert!(error.to_string().contains("backup 'one'") && error.to_string().contains("'open'"), "{error}");
    let again = restore(&open_repository(&repository), "one", &rocks_target(&target), &no_progress()).await;
    assert!(again.expect_err("it was begun").hint().expect("a way on").contains("--resume"));

    // The repository is gone; then there is another backup of this name; then it is back, but elsewhere.
    let moved = dir.path().join("moved");
    std::fs::rename(&repository, &moved).expect("it can be moved");
    let error = resume(&rocks_target(&target), None, &no_progress()).await.expect_err("it is gone");
    assert_eq!(error.exit_code(), exit::NOT_FOUND);
    assert!(error.to_string().contains("repo any more"), "{error}");
    let other = rocks_source(&dir.path().join("other")).await;
    create(&other, &repository, Some("one")).await.expect("it can be taken");
    let error = resume(&rocks_target(&target), None, &no_progress()).await.expect_err("it is another one");
    assert_eq!(error.exit_code(), exit::REFUSED);

    let marker = std::fs::read(target.join(RESTORE_MARKER_FILE)).expect("it is there");
    std::fs::write(target.join(RESTORE_MARKER_FILE), &marker[..marker.len() / 2]).expect("it can be written");
    let error = resume(&rocks_target(&target), None, &no_progress()).await.expect_err("it is damaged");
    assert_eq!(error.exit_code(), exit::DAMAGED);
    std::fs::write(target.join(RESTORE_MARKER_FILE), &marker).expect("it can be written");

    let report =
        resume(&rocks_target(&target), Some(&open_repository(&moved)), &no_progress()).await.expect("it is back");
    assert!(report.resumed);
    assert_eq!(visible(&rocks(&target).await).await, state_at(&*source.log.lock().await, backup_ts));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_restores_into_one_directory_exclude_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    backed_up(dir.path()).await;
    let repository = open_repository(&dir.path().join("repo"));
    let target = dir.path().join("target");
    let (told, mut opening) = tokio::sync::mpsc::unbounded_channel();
    let slow = DirectoryTarget::new(
        &target,
        "rocksdb",
        Vec::new(),
        Arc::new(move |_| {
            told.send(()).expect("the test waits");
            Box::pin(std::future::pending())
        }),
    );
    let first = tokio::spawn({
        let repository = repository.clone();
        async move { restore(&repository, "one", &slow, &no_progress()).await }
    });
    opening.recv().await.expect("it opens the store");
    for error in [
        restore(&repository, "one", &rocks_target(&target), &no_progress()).await.expect_err("the first works"),
        resume(&rocks_target(&target), None, &no_progress()).await.expect_err("the first works"),
    ] {
        assert!(matches!(error, Error::StoreInUse { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    }
    first.abort();
    assert!(first.await.expect_err("it was aborted").is_cancelled());
    resume(&rocks_target(&target), None, &no_progress()).await.expect("it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backup_of_another_process_leaves_no_snapshot_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = rocks_source(&dir.path().join("data")).await;
    let left_over = dir.path().join("data/staging/backup-staging-of-a-dead-process");
    std::fs::create_dir(&left_over).expect("it can be made");
    assert_eq!(request(Path::new("/x"), None).name, None);
    create(&source, &dir.path().join("repo"), None).await.expect("it can be taken");
    assert!(!left_over.exists());
}

/// At a byte a second no backup is complete in the time that a test takes, and without a limit every one is.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_keeps_to_its_rate_and_can_be_cancelled_meanwhile() {
    for portable in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let repository = dir.path().join("repo");
        let source = rocks_source(&dir.path().join("data")).await;
        source.transact_many(10).await;
        let (copying, copied) = tokio::sync::watch::channel(false);
        let (mut copied, cancel) = (copied, CancellationToken::new());
        let taking = tokio::spawn({
            let (dynamic, cancel): (Arc<dyn BackupSource>, _) = (Arc::clone(&source) as _, cancel.clone());
            let request = BackupRequest { portable, rate_limit: Some(1), ..request(&repository, None) };
            let tell = move |progress: Progress| {
                if progress.unit == "bytes" {
                    copying.send_replace(true);
                }
            };
            create_until(dynamic, request, Arc::new(tell), cancel)
        });
        copied.wait_for(|begun| *begun).await.expect("it comes to copying");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!taking.is_finished(), "portable {portable}: it went faster");
        cancel.cancel();
        let answer = taking.await.expect("it ends");
        assert!(matches!(answer, Err(Error::Interrupted)), "portable {portable}: {answer:?}");
        assert!(open_repository(&repository).list().await.expect("it can be listed").is_empty());
    }
}
