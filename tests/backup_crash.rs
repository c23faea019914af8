//! Backups and restores that end at every step they have: by an error, a panic, a cancellation, and `kill -9`.

mod backup_support;

use atlas::backup::create::create_until;
use atlas::backup::restore::{restore, resume};
use atlas::backup::verify::verify;
use atlas::backup::{BackupSource, BackupStep, RestoreStep, refuse_if_restoring};
use atlas::ops::{BackupInfo, BackupRequest, no_progress};
use atlas::{Error, Result, exit};
use backup_support::{
    Snapshots, Source, create, open_repository, pretended_with, request, rocks, rocks_source, rocks_target, state_at,
    visible,
};
use fail::FailScenario;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::sync::CancellationToken;

/// True if a backup that ends right before this step is complete.
fn is_complete_before(step: BackupStep) -> bool {
    step >= BackupStep::Remember
}

async fn assert_undone(source: &Source, repository: &Path, step: BackupStep) {
    let list = open_repository(repository).list().await.expect("it can be listed");
    let states: Vec<_> = list.iter().map(|backup| backup.state.as_str()).collect();
    let expected: &[&str] = if is_complete_before(step) { &["complete"] } else { &[] };
    assert_eq!(states, expected, "{step:?}");
    let staging = source.data_dir.as_ref().expect("it has one").join("staging");
    assert_eq!(std::fs::read_dir(staging).map_or(0, Iterator::count), 0, "{step:?}: a snapshot is left");
    assert_eq!(source.lock.status().await.expect("it can be read"), None, "{step:?}: the lock is left");
}

/// Without snapshots a store is read by a transaction.
fn every_step_of_every_method() -> impl Iterator<Item = (BackupStep, Snapshots)> {
    let methods = [Snapshots::Files, Snapshots::Streams, Snapshots::None];
    methods.into_iter().flat_map(|snapshots| BackupStep::ALL.map(|step| (step, snapshots)))
}

/// Ends a backup at every step in one way, looks at what is left, and takes another one.
async fn end_at_every_step(action: &str) {
    let scenario = FailScenario::setup();
    for (step, snapshots) in every_step_of_every_method() {
        let dir = tempfile::tempdir().expect("a directory");
        let repository = dir.path().join("repo");
        std::fs::create_dir(&repository).expect("it can be made");
        let source = Arc::new(pretended_with(dir.path(), snapshots).await);
        fail::cfg(step.fail_point(), action).expect("the action exists");
        let running = tokio::spawn({
            let (source, repository) = (Arc::clone(&source), repository.clone());
            async move { create(&source, &repository, Some("first")).await }
        });
        match running.await {
            Ok(answer) => {
                let error = answer.expect_err("the fail point is reached");
                assert!(error.to_string().contains(step.fail_point()), "{step:?}: {error}");
            }
            Err(panic) => assert!(panic.is_panic() && action == "panic", "{step:?}"),
        }
        fail::remove(step.fail_point());
        assert_undone(&source, &repository, step).await;
        let name = if is_complete_before(step) { "second" } else { "first" };
        create(&source, &repository, Some(name)).await.expect("another one can be taken");
        verify(&open_repository(&repository), name, None, &no_progress()).await.expect("it is sound");
    }
    scenario.teardown();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_any_step_undoes_the_backup_or_comes_too_late() {
    end_at_every_step("return").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_at_any_step_undoes_the_backup_or_comes_too_late() {
    end_at_every_step("panic").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_at_any_step_undoes_the_backup_or_comes_too_late() {
    let scenario = FailScenario::setup();
    for (step, snapshots) in every_step_of_every_method() {
        let dir = tempfile::tempdir().expect("a directory");
        let repository = dir.path().join("repo");
        std::fs::create_dir(&repository).expect("it can be made");
        let source = Arc::new(pretended_with(dir.path(), snapshots).await);
        let (cancel, hits) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        fail::cfg_callback(step.fail_point(), {
            let (cancel, hits) = (cancel.clone(), Arc::clone(&hits));
            move || {
                hits.fetch_add(1, Ordering::Relaxed);
                cancel.cancel();
            }
        })
        .expect("it can be set");
        let dynamic: Arc<dyn BackupSource> = Arc::clone(&source) as _;
        let answer = create_until(dynamic, request(&repository, None), no_progress(), cancel).await;
        fail::remove(step.fail_point());
        assert!(hits.load(Ordering::Relaxed) > 0, "{step:?} was not reached");
        // From the moment the manifest is being named, the backup is finished rather than given up.
        let too_late = step >= BackupStep::ManifestRename;
        match answer {
            Ok(BackupInfo { state, .. }) => assert!(too_late && state == "complete", "{step:?}"),
            Err(error) => assert!(!too_late && matches!(error, Error::Interrupted), "{step:?}: {error}"),
        }
        assert_undone(&source, &repository, if too_late { BackupStep::Remember } else { step }).await;
    }
    scenario.teardown();
}

const KILL_AT: &str = "ATLAS_TEST_KILL_AT";
const KILL_IN: &str = "ATLAS_TEST_KILL_IN";

/// Runs one of the tests below in a process of its own, which kills itself at a fail point.
fn run_and_be_killed(test: &str, fail_point: &str, directory: &Path) {
    let output = Command::new(std::env::current_exe().expect("it runs"))
        .args(["--exact", test, "--nocapture"])
        .env(KILL_AT, fail_point)
        .env(KILL_IN, directory)
        .output()
        .expect("it can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(9), "{fail_point} was not reached: {:?}\n{said}", output.status);
}

/// In the process that is to be killed: its fail point is armed. `None` among the other tests.
fn armed() -> Option<std::path::PathBuf> {
    let (fail_point, directory) = (std::env::var(KILL_AT).ok()?, std::env::var_os(KILL_IN)?);
    fail::cfg_callback(fail_point, || {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::park();
    })
    .expect("it can be set");
    Some(directory.into())
}

/// Portable if a file says so, because the process that is to be killed must know it too.
fn request_by_method(directory: &Path, name: &str) -> BackupRequest {
    let portable = directory.join("portable").exists();
    BackupRequest { portable, ..request(&directory.join("repo"), Some(name)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn take_a_backup_and_be_killed() {
    let Some(directory) = armed() else { return };
    let source = Arc::new(Source::new(rocks(&directory.join("data")).await, Some(directory.join("data"))).await);
    let request = request_by_method(&directory, "killed");
    let source: Arc<dyn BackupSource> = source;
    let answer = create_until(source, request, no_progress(), CancellationToken::new()).await;
    panic!("not killed: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backup_is_never_taken_for_one() {
    // Fail points are the whole process's: nobody else may set one meanwhile.
    let scenario = FailScenario::setup();
    for (step, portable) in [false, true].into_iter().flat_map(|portable| BackupStep::ALL.map(|step| (step, portable)))
    {
        let dir = tempfile::tempdir().expect("a directory");
        if portable {
            std::fs::write(dir.path().join("portable"), "").expect("it can be written");
        }
        let (data, repository) = (dir.path().join("data"), dir.path().join("repo"));
        std::fs::create_dir(&repository).expect("it can be made");
        rocks_source(&data).await.kvs.close().await.expect("it closes");
        run_and_be_killed("take_a_backup_and_be_killed", step.fail_point(), dir.path());

        let found = open_repository(&repository);
        let states: Vec<_> = found.list().await.expect("it can be listed").into_iter().map(|b| b.state).collect();
        let complete = is_complete_before(step);
        let expected: &[&str] = match step {
            BackupStep::Preflight | BackupStep::Reserve => &[],
            _ if complete => &["complete"],
            _ => &["incomplete"],
        };
        assert_eq!(states, expected, "{step:?}");
        match found.resolve("latest").await {
            Ok(id) => assert!(complete && id == "killed", "{step:?}"),
            Err(error) => assert!(!complete && error.exit_code() == exit::NOT_FOUND, "{step:?}: {error}"),
        }

        // The store is whole, and the lock stands, renewed by nobody, until somebody clears it.
        let source = Arc::new(Source::new(rocks(&data).await, Some(data)).await);
        assert_eq!(visible(&source.kvs).await.len(), 20, "{step:?}");
        let held = source.lock.status().await.expect("it can be read");
        let expected = step > BackupStep::Lock && step < BackupStep::RemoveStaging;
        assert_eq!(held.is_some(), expected, "{step:?}");
        if held.is_some() {
            let error = create(&source, &repository, Some("next")).await.expect_err("the lock stands");
            assert!(matches!(error, Error::BackupLockHeld { .. }), "{step:?}: {error}");
            // Waiting for the lease to pass is the lock's own test; once is enough here.
            if step == BackupStep::Copy {
                source.lock.release().await.expect("nobody renews it");
            } else {
                source.lock.clear_after_restore().await.expect("it can be cleared");
            }
        }
        if !states.is_empty() && !complete {
            // What is left does not keep its name: it is cleared.
            create(&source, &repository, Some("killed")).await.expect("the name can be used");
            assert_eq!(found.resolve("latest").await.expect("there is one"), "killed", "{step:?}");
        } else if complete {
            let error = create(&source, &repository, Some("killed")).await.expect_err("the name is used");
            assert!(matches!(error, Error::AlreadyExists { .. }), "{step:?}: {error}");
        }
        create(&source, &repository, Some("next")).await.expect("another one can be taken");
        assert_eq!(found.resolve("latest").await.expect("there is one"), "next");
    }
    scenario.teardown();
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_a_backup_and_be_killed() {
    let Some(directory) = armed() else { return };
    let (repository, target) = (open_repository(&directory.join("repo")), rocks_target(&directory.join("target")));
    let answer: Result<_> = if directory.join("resume").exists() {
        resume(&target, None, &no_progress()).await
    } else {
        restore(&repository, "latest", &target, &no_progress()).await
    };
    panic!("not killed: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_never_looks_whole_and_goes_on_where_it_was() {
    kill_a_restore_at_every_step(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_of_a_portable_backup_never_looks_whole_either() {
    kill_a_restore_at_every_step(true).await;
}

async fn kill_a_restore_at_every_step(portable: bool) {
    // Fail points are the whole process's: nobody else may set one meanwhile.
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("a directory");
    let source = rocks_source(&dir.path().join("data")).await;
    let request = BackupRequest { portable, ..request(&dir.path().join("repo"), Some("one")) };
    let dynamic: Arc<dyn BackupSource> = Arc::clone(&source) as _;
    let info = create_until(dynamic, request, no_progress(), CancellationToken::new()).await.expect("it can be taken");
    source.kvs.close().await.expect("it closes");
    let expected = state_at(&*source.log.lock().await, info.backup_ts.expect("it is complete"));
    let (repository, target) = (open_repository(&dir.path().join("repo")), dir.path().join("target"));

    for step in RestoreStep::ALL {
        run_and_be_killed("restore_a_backup_and_be_killed", step.fail_point(), dir.path());
        if step <= RestoreStep::Marker {
            // Nothing was begun, so there is nothing to go on with, and nothing that could be taken for a store.
            refuse_if_restoring(&target).expect("there is no marker");
            assert_eq!(std::fs::read_dir(&target).map_or(0, Iterator::count), 0, "{step:?}");
            restore(&repository, "one", &rocks_target(&target), &no_progress()).await.expect("it can be restored");
        } else {
            assert_eq!(refuse_if_restoring(&target).expect_err("it is not whole").exit_code(), exit::REFUSED);
            let again = restore(&repository, "one", &rocks_target(&target), &no_progress()).await;
            assert_eq!(again.expect_err("it is not empty").exit_code(), exit::REFUSED, "{step:?}");
            if step <= RestoreStep::CopyFile {
                // What a kill in the middle of a file leaves, and something that was never of the backup.
                std::fs::create_dir_all(target.join("db")).expect("it can be made");
                std::fs::write(target.join("db/CURRENT"), "MANI").expect("it can be written");
                std::fs::write(target.join("db/999999.sst"), "stray").expect("it can be written");
            }
            // Killed a second time on the way, at the last step.
            std::fs::write(dir.path().join("resume"), "").expect("it can be written");
            run_and_be_killed("restore_a_backup_and_be_killed", RestoreStep::RemoveMarker.fail_point(), dir.path());
            std::fs::remove_file(dir.path().join("resume")).expect("it is there");
            let report = resume(&rocks_target(&target), None, &no_progress()).await.expect("it goes on");
            assert!(report.resumed, "{step:?}");
        }
        refuse_if_restoring(&target).expect("it is whole");
        assert!(!target.join("db/999999.sst").exists(), "{step:?}");
        let kvs = rocks(&target).await;
        assert_eq!(visible(&kvs).await, expected, "{step:?}");
        kvs.close().await.expect("it closes");
        std::fs::remove_dir_all(&target).expect("it is there");
    }
    scenario.teardown();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_any_step_of_a_restore_leaves_it_to_be_finished() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("a directory");
    let source = rocks_source(&dir.path().join("data")).await;
    create(&source, &dir.path().join("repo"), Some("one")).await.expect("it can be taken");
    let (repository, target) = (open_repository(&dir.path().join("repo")), dir.path().join("target"));
    for step in RestoreStep::ALL {
        fail::cfg(step.fail_point(), "return").expect("the action exists");
        let error = restore(&repository, "one", &rocks_target(&target), &no_progress()).await.expect_err("it is hit");
        assert!(error.to_string().contains(step.fail_point()), "{step:?}: {error}");
        fail::remove(step.fail_point());
        // In the same process: the store was closed, so that it can be opened again.
        if step > RestoreStep::Marker {
            refuse_if_restoring(&target).expect_err("it is not whole");
            resume(&rocks_target(&target), None, &no_progress()).await.expect("it goes on");
            std::fs::remove_dir_all(&target).expect("it is there");
        }
    }
    scenario.teardown();
}
