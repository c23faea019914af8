//! Backups and restores on a disk that becomes full, and then has space again.
//!
//! The disk is a small file system in memory, mounted where only the test's own process sees it.

mod backup_support;

use atlas::backup::RestoreStep;
use atlas::backup::refuse_if_restoring;
use atlas::backup::restore::{restore, resume};
use atlas::ops::no_progress;
use atlas::{Error, exit};
use backup_support::{
    Pretender, Source, create, open_repository, rocks, rocks_source, rocks_target, state_at, visible,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const RUN_IN: &str = "ATLAS_TEST_RUN_IN";

/// Runs one of the tests below with mounts of its own.
fn run_with_own_mounts(test: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let namespaces = if rustix::process::geteuid().is_root() { "-m" } else { "-Urm" };
    let output = Command::new("unshare")
        .arg(namespaces)
        .arg(std::env::current_exe().expect("it runs"))
        .args(["--exact", test, "--nocapture"])
        .env(RUN_IN, directory.path())
        .output()
        .expect("unshare, of util-linux, can be started");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

fn own_directory() -> Option<PathBuf> {
    std::env::var_os(RUN_IN).map(PathBuf::from)
}

fn mount(at: &Path, options: &str) {
    std::fs::create_dir_all(at).expect("it can be made");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status();
    assert!(mounted.expect("mount can be started").success(), "a tmpfs can be mounted");
}

fn assert_full(error: &Error) {
    let full = matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull);
    assert!(full, "{error:?}");
}

#[test]
fn a_backup_onto_a_full_disk_is_undone_and_with_space_it_succeeds() {
    run_with_own_mounts("back_up_onto_a_full_disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn back_up_onto_a_full_disk() {
    let Some(directory) = own_directory() else { return };
    let (data, disk) = (directory.join("data"), directory.join("disk"));
    mount(&disk, "size=6m");
    let mut pretender = Pretender::new(&data);
    // A snapshot that grew after it was estimated.
    (pretender.estimate, pretender.size) = (0, 9_000_000);
    let source = Arc::new(Source::new(Arc::new(pretender), Some(data)).await);
    let repository = disk.join("repo");

    let error = create(&source, &repository, Some("one")).await.expect_err("the disk is full");
    assert_full(&error);
    assert!(error.to_string().contains("000001.sst"), "{error}");
    assert_eq!(open_repository(&repository).list().await.expect("it can be listed"), []);
    assert_eq!(source.lock.status().await.expect("it can be read"), None);

    mount(&disk, "size=5m");
    std::fs::write(disk.join("filler"), vec![1; 2 << 20]).expect("it fits");
    let error = create(&source, &repository, Some("one")).await.expect_err("it is refused at once");
    assert_eq!(error.exit_code(), exit::REFUSED, "{error}");
    assert!(!repository.exists());

    mount(&disk, "size=30m");
    create(&source, &repository, Some("one")).await.expect("there is space again");
}

#[test]
fn a_restore_onto_a_full_disk_goes_on_when_there_is_space() {
    run_with_own_mounts("restore_onto_a_full_disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_onto_a_full_disk() {
    let Some(directory) = own_directory() else { return };
    let source = rocks_source(&directory.join("data")).await;
    let info = create(&source, &directory.join("repo"), Some("one")).await.expect("it can be taken");
    let expected = state_at(&*source.log.lock().await, info.backup_ts.expect("it is complete"));
    let (repository, disk) = (open_repository(&directory.join("repo")), directory.join("disk"));
    let (target, filler) = (disk.join("target"), disk.join("filler"));

    mount(&disk, "size=4k");
    let error = restore(&repository, "one", &rocks_target(&target), &no_progress()).await.expect_err("no room");
    assert_eq!(error.exit_code(), exit::REFUSED, "{error}");
    refuse_if_restoring(&target).expect("nothing was begun");

    // The disk fills up between the look at it and the first copy.
    mount(&disk, "size=64m");
    fail::cfg_callback(RestoreStep::CopyFile.fail_point(), {
        let filler = filler.clone();
        move || {
            let _ = std::fs::write(&filler, vec![1; 65 << 20]);
        }
    })
    .expect("it can be set");
    let error = restore(&repository, "one", &rocks_target(&target), &no_progress()).await.expect_err("no room");
    assert_full(&error);
    fail::remove(RestoreStep::CopyFile.fail_point());
    refuse_if_restoring(&target).expect_err("it is not whole");

    std::fs::remove_file(&filler).expect("it is there");
    resume(&rocks_target(&target), None, &no_progress()).await.expect("there is space again");
    let kvs = rocks(&target).await;
    assert_eq!(visible(&kvs).await, expected);
    kvs.close().await.expect("it closes");
}
