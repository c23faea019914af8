//! `clean-transactions` and `fast-forward`, over the plainest store there is.

mod backup_support;

use atlas::backup::clean::{CleanReport, CleanedEntry, DeletionFloor, WindowChange};
use atlas::backup::{clean_transactions, fast_forward, verify_restored};
use atlas::ops::no_progress;
use atlas::timestamp::{LARGE_JUMP, fast_forward_stored, read_stored};
use atlas::transaction::entry::{CleanedWindow, CleanedWindows, Entry, transactions_table};
use atlas::{Cell, Result, exit};
use atlas_kvs::KeyValueService;
use atlas_kvs_memory::MemoryStore;
use backup_support::{Pretender, Trouble, entry_of, make_store, ts, write_transaction};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// A store that has issued every number below `bound`.
async fn store(bound: u64) -> Arc<dyn KeyValueService> {
    let kvs: Arc<dyn KeyValueService> = Arc::new(MemoryStore::new());
    make_store(&kvs).await;
    fast_forward_stored(Arc::clone(&kvs), ts(bound - 1), true).await.expect("the bound moves");
    kvs
}

async fn commit(kvs: &Arc<dyn KeyValueService>, start: u64, commit: u64) {
    write_transaction(kvs.as_ref(), start, Entry::Committed(ts(commit)), "row", &start.to_string()).await;
}

async fn clean(kvs: &Arc<dyn KeyValueService>, at: u64) -> Result<CleanReport> {
    clean_transactions(Arc::clone(kvs), ts(at), false, &no_progress()).await
}

async fn windows(kvs: &Arc<dyn KeyValueService>) -> Vec<CleanedWindow> {
    CleanedWindows::load(Arc::clone(kvs)).await.expect("they can be read").windows
}

fn window(from: u64, until: Option<u64>) -> CleanedWindow {
    CleanedWindow { from: ts(from), until: until.map(ts) }
}

#[tokio::test]
async fn every_commit_from_the_timestamp_on_is_rolled_back_whatever_its_start() {
    let kvs = store(1000).await;
    for (start, at) in [(10, 20), (98, 99), (50, 150), (97, 100), (101, 102), (300, 999)] {
        commit(&kvs, start, at).await;
    }
    write_transaction(kvs.as_ref(), 120, Entry::RolledBack, "row", "x").await;

    let report = clean(&kvs, 100).await.expect("it can be cleaned");

    assert_eq!((report.scanned, report.rolled_back, report.already), (7, 4, 1));
    assert_eq!(report.window, WindowChange::Opened);
    let example = |start, commit| CleanedEntry { start_ts: ts(start), commit_ts: ts(commit) };
    assert_eq!(report.examples, [example(50, 150), example(97, 100), example(101, 102), example(300, 999)]);
    for kept in [(10, 20), (98, 99)] {
        assert_eq!(entry_of(kvs.as_ref(), kept.0).await, Some(Entry::Committed(ts(kept.1))));
    }
    for gone in [50, 97, 101, 120, 300] {
        assert_eq!(entry_of(kvs.as_ref(), gone).await, Some(Entry::RolledBack), "never removed: {gone}");
    }
    assert_eq!(windows(&kvs).await, [window(100, None)]);
}

#[tokio::test]
async fn ten_thousand_entries_are_cleaned_and_the_second_time_there_is_nothing_to_do() {
    let kvs = store(1_000_000).await;
    for start in 1..=10_000u64 {
        kvs.put_unless_exists(
            &transactions_table(),
            &Entry::cell(ts(start * 10)),
            Entry::Committed(ts(start * 10 + 5)).encode(),
        )
        .await
        .expect("it is written");
    }
    let report = clean(&kvs, 40_000).await.expect("it can be cleaned");
    // 39,995 is the last commit that stays: it belongs to the 3,999th transaction.
    assert_eq!((report.scanned, report.rolled_back, report.already), (10_000, 6_001, 0));
    assert_eq!(report.examples.len(), 10);

    let again = clean(&kvs, 40_000).await.expect("it can be cleaned");
    assert_eq!((again.window, again.rolled_back, again.already), (WindowChange::Resumed, 0, 6_001));
    assert!(again.examples.is_empty());
}

/// Five hundred commits to clean, the store in trouble after 200 of them.
async fn in_trouble(kind: Trouble) -> (Arc<Pretender>, Arc<dyn KeyValueService>) {
    let pretender = Arc::new(Pretender::new(Path::new("/nowhere")));
    let kvs: Arc<dyn KeyValueService> = pretender.clone();
    make_store(&kvs).await;
    fast_forward_stored(Arc::clone(&kvs), ts(99_999), true).await.expect("the bound moves");
    for start in 1..=500u64 {
        commit(&kvs, start * 10, start * 10 + 5).await;
    }
    *pretender.trouble.lock() = Some((200, kind));
    (pretender, kvs)
}

#[tokio::test]
async fn a_run_that_broke_off_is_taken_up_again() {
    for kind in [Trouble::Unavailable, Trouble::LostAnswer] {
        let (pretender, kvs) = in_trouble(kind).await;
        clean(&kvs, 1).await.expect_err("the store does not answer");
        assert_eq!(windows(&kvs).await, [window(1, None)], "{kind:?}: nothing counts any more, marked or not");
        *pretender.trouble.lock() = None;
        let report = clean(&kvs, 1).await.expect("it answers again");
        assert_eq!((report.window, report.scanned), (WindowChange::Resumed, 500), "{kind:?}");
        assert_eq!(report.rolled_back + report.already, 500, "{kind:?}");
        assert!((1..=300).contains(&report.rolled_back), "{kind:?}: {}", report.rolled_back);
        for start in 1..=500 {
            assert_eq!(entry_of(kvs.as_ref(), start * 10).await, Some(Entry::RolledBack), "{kind:?} {start}");
        }
    }
}

#[tokio::test]
async fn an_entry_that_somebody_changes_meanwhile_is_not_overwritten() {
    let (_pretender, kvs) = in_trouble(Trouble::Changed).await;
    let error = clean(&kvs, 1).await.expect_err("somebody else is here");
    assert_eq!(error.exit_code(), exit::REFUSED);
    assert!(error.hint().expect("there is a way on").contains("stop every process"), "{error}");
}

#[tokio::test]
async fn a_dry_run_tells_what_would_be_done_and_does_nothing() {
    let kvs = store(1000).await;
    commit(&kvs, 50, 150).await;
    let report = clean_transactions(Arc::clone(&kvs), ts(100), true, &no_progress()).await.expect("it can be tried");
    assert_eq!((report.rolled_back, report.dry_run, report.examples.len()), (1, true, 1));
    assert_eq!(entry_of(kvs.as_ref(), 50).await, Some(Entry::Committed(ts(150))));
    assert_eq!(windows(&kvs).await, []);
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_stops_the_run_and_is_named() {
    let kvs = store(1000).await;
    commit(&kvs, 10, 20).await;
    let nonsense = Bytes::from_static(b"nonsense");
    kvs.put_unless_exists(&transactions_table(), &Entry::cell(ts(77)), nonsense).await.expect("it is written");
    let error = clean(&kvs, 100).await.expect_err("it can't be read");
    assert_eq!(error.exit_code(), exit::DAMAGED);
    assert!(error.to_string().contains("77"), "{error}");

    let kvs = store(1000).await;
    let foreign = Cell::copy_from("not a timestamp", "t");
    kvs.put_unless_exists(&transactions_table(), &foreign, Bytes::new()).await.expect("it is written");
    let error = clean(&kvs, 100).await.expect_err("it can't be read");
    assert_eq!(error.exit_code(), exit::DAMAGED);
    assert!(error.to_string().contains("not a timestamp"), "{error}");
}

#[tokio::test]
async fn a_repeated_clean_inside_a_closed_window_changes_nothing() {
    let kvs = store(1000).await;
    commit(&kvs, 50, 150).await;
    clean(&kvs, 100).await.expect("it can be cleaned");
    fast_forward(Arc::clone(&kvs), ts(2000), false).await.expect("it can go on");
    // After the restore, life goes on.
    commit(&kvs, 2001, 2002).await;

    for at in [100, 500, 1999] {
        let report = clean(&kvs, at).await.expect("there is nothing to do");
        assert_eq!(report.window, WindowChange::AlreadyClosed { from: ts(100), until: ts(2000) });
        assert_eq!((report.scanned, report.rolled_back), (0, 0));
    }
    assert_eq!(entry_of(kvs.as_ref(), 2001).await, Some(Entry::Committed(ts(2002))));
    assert_eq!(windows(&kvs).await, [window(100, Some(2000))]);
}

#[tokio::test]
async fn a_second_restore_opens_a_second_window_and_leaves_the_hidden_alone() {
    let kvs = store(1000).await;
    commit(&kvs, 50, 60).await;
    clean(&kvs, 100).await.expect("it can be cleaned");
    fast_forward(Arc::clone(&kvs), ts(2000), false).await.expect("it can go on");
    // A commit of the first window, found again because the copy held it under another name of time.
    commit(&kvs, 70, 150).await;
    commit(&kvs, 2001, 2002).await;
    fast_forward_stored(Arc::clone(&kvs), ts(2999), false).await.expect("the bound moves");
    let report = clean(&kvs, 90).await.expect("it can be cleaned");
    assert_eq!((report.rolled_back, report.already), (1, 1), "the commit at 150 is hidden already");
    assert_eq!(entry_of(kvs.as_ref(), 70).await, Some(Entry::Committed(ts(150))));
    assert_eq!(windows(&kvs).await, [window(100, Some(2000)), window(90, None)]);
}

#[tokio::test]
async fn two_restores_at_once_are_refused() {
    let kvs = store(1000).await;
    clean(&kvs, 100).await.expect("it can be cleaned");
    let error = clean(&kvs, 200).await.expect_err("another restore is under way");
    assert_eq!(error.exit_code(), exit::REFUSED);
    assert!(error.to_string().contains("100"), "{error}");
    assert_eq!(windows(&kvs).await, [window(100, None)]);
}

#[tokio::test]
async fn a_state_that_deletions_destroyed_is_refused() {
    let kvs = store(1000).await;
    commit(&kvs, 50, 450).await;
    let floor = DeletionFloor { highest_justifying_commit: ts(400) };
    DeletionFloor::in_store(Arc::clone(&kvs)).replace(None, Some(&floor)).await.expect("it is written");
    for refused in [1, 399, 400] {
        assert_eq!(clean(&kvs, refused).await.expect_err("it is gone").exit_code(), exit::REFUSED, "{refused}");
        assert_eq!(windows(&kvs).await, []);
    }
    assert_eq!(clean(&kvs, 401).await.expect("it is there").rolled_back, 1);
}

#[tokio::test]
async fn a_timestamp_that_was_never_issued_is_refused() {
    let kvs = store(1000).await;
    for refused in [0, 1000, 1 << 50] {
        assert_eq!(clean(&kvs, refused).await.expect_err("never issued").exit_code(), exit::REFUSED, "{refused}");
    }
    assert_eq!(windows(&kvs).await, []);
    clean(&kvs, 999).await.expect("issued");
}

#[tokio::test]
async fn fast_forward_moves_the_bound_and_closes_the_window() {
    let kvs = store(1000).await;
    clean(&kvs, 100).await.expect("it can be cleaned");
    let report = fast_forward(Arc::clone(&kvs), ts(5000), false).await.expect("it can go on");
    assert_eq!((report.before, report.after), (ts(999), ts(5000)));
    assert_eq!(report.window_closed, Some(window(100, Some(5000))));
    assert_eq!(windows(&kvs).await, [window(100, Some(5000))]);

    let again = fast_forward(Arc::clone(&kvs), ts(5000), false).await.expect("nothing is to be done");
    assert_eq!((again.before, again.after, again.window_closed), (ts(5000), ts(5000), None));
}

#[tokio::test]
async fn at_or_below_the_bound_time_stays_and_the_window_ends_at_the_bound() {
    // The bound in a copy lies above everything in it, so a window that ends there hides no less than it must, even
    // if the timestamp given is that of an older backup.
    let kvs = store(1000).await;
    clean(&kvs, 100).await.expect("it can be cleaned");
    let report = fast_forward(Arc::clone(&kvs), ts(200), false).await.expect("there is little to do");
    assert_eq!((report.before, report.after), (ts(999), ts(999)));
    assert_eq!(report.window_closed, Some(window(100, Some(1000))));
}

#[tokio::test]
async fn the_wrong_file_is_refused_and_the_right_one_named() {
    let kvs = store(1000).await;
    clean(&kvs, 100).await.expect("it can be cleaned");
    for refused in [99, 100] {
        let error = fast_forward(Arc::clone(&kvs), ts(refused), false).await.expect_err("it is not above");
        assert_eq!(error.exit_code(), exit::REFUSED);
        assert!(error.hint().expect("there is a way on").contains("fast-forward.timestamp"));
    }
    assert_eq!(windows(&kvs).await, [window(100, None)]);
}

#[tokio::test]
async fn an_absurd_jump_is_refused_and_changes_nothing() {
    let kvs = store(1000).await;
    clean(&kvs, 100).await.expect("it can be cleaned");
    let far = ts(1001 + LARGE_JUMP);
    assert_eq!(fast_forward(Arc::clone(&kvs), far, false).await.expect_err("too far").exit_code(), exit::REFUSED);
    assert_eq!(windows(&kvs).await, [window(100, None)]);
    let record = read_stored(Arc::clone(&kvs)).await.expect("it can be read").expect("it is there");
    assert_eq!(record.bound, ts(1000));
    let report = fast_forward(Arc::clone(&kvs), far, true).await.expect("it was allowed");
    assert_eq!(report.after, far);
}

#[tokio::test]
async fn a_restored_store_is_verified_and_each_thing_left_undone_is_named() {
    let kvs = store(1000).await;
    commit(&kvs, 10, 20).await;
    commit(&kvs, 50, 150).await;
    let verify = |kvs: &Arc<dyn KeyValueService>| {
        let kvs = Arc::clone(kvs);
        async move { verify_restored(kvs, ts(100), ts(1500), &no_progress()).await }
    };

    let error = verify(&kvs).await.expect_err("nothing was done").to_string();
    for part in ["no cleaned window", "transaction 50 is committed at 150", "the oracle's bound 1000"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    clean(&kvs, 100).await.expect("it can be cleaned");
    let error = verify(&kvs).await.expect_err("half was done");
    assert_eq!(error.exit_code(), exit::DAMAGED);
    assert!(error.to_string().contains("still open"), "{error}");

    fast_forward(Arc::clone(&kvs), ts(1500), false).await.expect("it can go on");
    let lock = atlas::backup::BackupLock::new(Arc::clone(&kvs));
    lock.acquire_for_nobody("left over").await.expect("it is free");
    let error = verify(&kvs).await.expect_err("the lock is held").to_string();
    assert!(error.contains("backup lock"), "{error}");

    lock.clear_after_restore().await.expect("it can be cleared");
    let report = verify(&kvs).await.expect("all was done");
    assert_eq!((report.committed, report.rolled_back), (1, 1));
}
