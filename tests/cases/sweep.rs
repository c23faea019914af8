//! Sweep: what goes, what stays, who is told that he comes too late, and what stops it.
//!
//! But for the cases that say otherwise, sweep does nothing by itself here: a test says when.

use crate::common::*;
use atlas::config::AtlasConfig;
use atlas::kvs_api::{CellBound, KeyValueService};
use atlas::ops::{BeginOptions, Operations, ScanOptions, SweepRequest, SweepStatus, TableInfo, no_progress};
use atlas::schema::{ConflictHandler, SweepStrategy, TableChange, TableSpec};
use atlas::sweep::ShardProgress;
use atlas::transaction::SweptTable;
use atlas::transaction::entry::{TransactionsFloor, transactions_table};
use atlas::transaction::sweep_queue::{PARTITION, SHARDS, sweep_queue_table};
use atlas::{Atlas, Cell, Error, TableRef, Timestamp};
use futures::TryStreamExt;
use std::time::Duration;

/// A module of tests, one for each case.
macro_rules! sweep_lane {
    ($name:ident, $lane:ident) => {
        sweep_lane!(
            $name,
            $lane,
            [
                a_table_shrinks_by_itself_to_what_can_be_read,
                while_the_backup_lock_is_held_nothing_goes,
                a_reader_keeps_what_it_can_see,
                a_reader_that_comes_too_late_is_told_so,
                deleted_cells_stay_as_deletions_behind_sentinels,
                deleted_cells_go_entirely_where_sweep_is_thorough,
                who_reads_the_past_of_a_thorough_table_is_told_so,
                what_was_rolled_back_goes,
                a_commit_that_is_too_young_is_come_back_to,
                a_table_that_was_dropped_stalls_nobody,
                a_table_of_which_nothing_is_to_go_keeps_everything,
                a_strategy_may_change_at_any_time,
                a_pin_holds_sweep_back,
                what_was_swept_can_not_be_restored_from_this_store,
                a_paused_sweep_stands_still_over_a_restart,
                a_walk_finds_what_the_queue_does_not_know,
                a_walk_over_a_new_table_begins_at_its_first_cell,
                a_dry_run_removes_nothing,
                a_hard_delete_leaves_no_version,
                a_hard_delete_waits_for_readers,
                a_huge_transaction_is_swept_in_pieces,
                a_transaction_that_is_forgotten_holds_sweep_back_for_its_time_only,
                once_something_went_without_a_trace_every_sweep_says_so,
                a_pause_ends_a_round_behind_its_batch,
            ]
        );
    };
    ($name:ident, $lane:ident, [$($case:ident,)*]) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    crate::sweep::$case(crate::common::$lane).await;
                }
            )*
        }
    };
}

/// An open store with sweep in the hands of the test.
pub(crate) struct Swept {
    pub(crate) atlas: Atlas,
    pub(crate) place: Place,
    lane: Lane,
}

pub(crate) fn by_hand(place: &Place, lane: Lane) -> AtlasConfig {
    let mut config = place.config(lane);
    config.sweep.enabled = false;
    config.sweep.pause = Duration::ZERO;
    // On a server, who comes next waits for the lease of who went away. A busy cluster may answer a renewal late.
    config.leader.lease = Duration::from_secs(if lane.store == StoreKind::Cassandra { 6 } else { 2 });
    config
}

/// Versions and sentinels of a table.
pub(crate) async fn counts(atlas: &Atlas, table: &TableRef) -> (u64, u64) {
    let stats = atlas.describe_table(table, true).await.expect("it can be counted");
    let sentinels = stats.sentinels.expect("they were counted");
    (stats.versions - sentinels, sentinels)
}

impl Swept {
    pub(crate) async fn open(lane: Lane) -> Swept {
        let place = Place::new(lane.store);
        let atlas = place.open_atlas(by_hand(&place, lane)).await;
        Swept { atlas, place, lane }
    }

    /// Closes the store and opens it again. Not for a store in memory, which would be gone.
    async fn reopened(self) -> Swept {
        self.atlas.close().await.expect("it closes");
        let atlas = self.place.open_atlas(by_hand(&self.place, self.lane)).await;
        Swept { atlas, ..self }
    }

    pub(crate) async fn table(&self, name: &str, strategy: SweepStrategy) -> TableRef {
        let table = TableRef::new(name).expect("a name");
        let spec = TableSpec { sweep_strategy: strategy, ..TableSpec::default() };
        self.atlas.create_table(&table, &spec).await.expect("the table can be made");
        table
    }

    /// Sweeps all that can be swept now.
    pub(crate) async fn sweep(&self) {
        self.atlas.sweeper().round().await.expect("a round of sweep");
    }

    pub(crate) async fn stats(&self, table: &TableRef) -> TableInfo {
        self.atlas.describe_table(table, true).await.expect("it can be counted")
    }

    /// Versions and sentinels of a table.
    pub(crate) async fn counts(&self, table: &TableRef) -> (u64, u64) {
        counts(&self.atlas, table).await
    }

    pub(crate) fn kvs(&self) -> &std::sync::Arc<dyn KeyValueService> {
        self.atlas.transactions().kvs()
    }

    async fn versions_of(&self, table: &TableRef, row: &str) -> Vec<u64> {
        let bound = [CellBound::new(cell(row), Timestamp::MAX)];
        let found = self.kvs().versions(table, &bound).await.expect("versions can be read");
        found[0].iter().map(|version| version.ts.get()).collect()
    }

    async fn delete(&self, table: &TableRef, row: &str) -> Timestamp {
        let tx = self.atlas.begin().await.expect("it begins");
        delete(&tx, table, row).await;
        commit(tx).await
    }

    /// Reads the past; nothing said of who keeps it.
    pub(crate) async fn read_at(&self, table: &TableRef, row: &str, at: Timestamp) -> Result<Option<String>, Error> {
        let options = BeginOptions { at: Some(at), ..BeginOptions::default() };
        let tx = self.atlas.transactions().begin(options).await?;
        Ok(tx.get(table, &cell(row)).await?.as_ref().map(text))
    }
}

pub(crate) async fn overwrite(atlas: &Atlas, table: &TableRef, row: &str, times: usize) {
    for number in 0..times {
        write(atlas, table, &[(row, &format!("{row}{number}"))]).await;
    }
}

fn assert_too_old<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    let error = outcome.expect_err("it comes too late");
    assert!(matches!(error, Error::TooOld { .. }), "{error}");
    assert!(error.is_retriable(), "a newer snapshot can be read");
}

/// Cells and overwrites that a store can take in a test's time.
fn size(lane: Lane) -> (usize, usize) {
    match lane.store {
        StoreKind::Memory | StoreKind::Rocksdb => (1000, 100),
        StoreKind::Postgres => (1000, 30),
        StoreKind::Cassandra => (100, 10),
    }
}

/// With the configuration as it comes, and no command given.
pub(crate) async fn a_table_shrinks_by_itself_to_what_can_be_read(lane: Lane) {
    let place = Place::new(lane.store);
    let config = place.config(lane);
    assert!(config.sweep.enabled, "it is on by default");
    let swept = Swept { atlas: place.open_atlas(config).await, place, lane };
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let (cells, times) = size(lane);
    for number in 0..times {
        let tx = swept.atlas.begin().await.expect("it begins");
        for row in 0..cells {
            put(&tx, &table, &format!("{row:04}"), &format!("{number}")).await;
        }
        commit(tx).await;
    }
    let mut counts = (0, 0);
    // Far more than it takes: how fast it is, is no matter of a test.
    for _ in 0..300 {
        counts = swept.counts(&table).await;
        if counts.0 == cells as u64 {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(counts.0, cells as u64, "as many versions as cells; and sentinels: {}", counts.1);
    assert!(counts.1 <= cells as u64);
    let stats = swept.stats(&table).await;
    assert_eq!(stats.cells, Some(cells as u64));
    assert_eq!(read(&swept.atlas, &table, "0007").await, Some(format!("{}", times - 1)));
    // What a round that failed had removed is not in the sum: whether it had is not known. Its failure is told until the
    // next one has ended, and what a round removes is in the sum only afterwards.
    let is_told = |status: &SweepStatus| {
        let all = status.totals.failures > 0 || status.totals.deleted >= ((times - 1) * cells) as u64;
        status.stands_still.is_none() && all
    };
    let mut status = swept.atlas.sweep_status().await.expect("a status");
    for _ in 0..300 {
        if is_told(&status) {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        status = swept.atlas.sweep_status().await.expect("a status");
    }
    assert!(is_told(&status), "{status:?}");
}

pub(crate) async fn while_the_backup_lock_is_held_nothing_goes(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    overwrite(&swept.atlas, &table, "a", 5).await;
    swept.atlas.backup_lock_acquire("a test").await.expect("it is free");
    let error = swept.atlas.sweeper().round().await.expect_err("the lock is held");
    assert!(matches!(error, Error::BackupLockHeld { .. }), "{error}");
    let error = swept.atlas.sweep(SweepRequest::default(), no_progress()).await.expect_err("the lock is held");
    assert!(matches!(error, Error::BackupLockHeld { .. }), "{error}");
    let cells = [cell("a")];
    let error = swept.atlas.hard_delete(&table, &cells, Duration::ZERO).await.expect_err("the lock is held");
    assert!(matches!(error, Error::BackupLockHeld { .. }), "{error}");
    assert_eq!(swept.counts(&table).await, (5, 0));
    assert_eq!(read(&swept.atlas, &table, "a").await, Some("a4".to_owned()), "the hard delete did nothing at all");
    let status = swept.atlas.sweep_status().await.expect("a status");
    assert!(status.stands_still.expect("it says why").contains("a test"));
    assert_eq!(status.backup_lock.expect("it is named").reason, "a test");
    swept.atlas.backup_lock_release().await.expect("it can be released");
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (1, 1));
}

pub(crate) async fn a_reader_keeps_what_it_can_see(lane: Lane) {
    let swept = Swept::open(lane).await;
    for strategy in [SweepStrategy::Conservative, SweepStrategy::Thorough] {
        let table = swept.table(&format!("{strategy}"), strategy).await;
        write(&swept.atlas, &table, &[("a", "before"), ("b", "before")]).await;
        let reader = swept.atlas.begin().await.expect("it begins");
        overwrite(&swept.atlas, &table, "a", 100).await;
        swept.delete(&table, "b").await;
        swept.sweep().await;
        assert_eq!(get(&reader, &table, "a").await, Some("before".to_owned()));
        assert_eq!(get(&reader, &table, "b").await, Some("before".to_owned()));
        assert_eq!(everything(&reader, &table).await, ["a/v=before", "b/v=before"]);
        let status = swept.atlas.sweep_status().await.expect("a status");
        assert!(status.held_by.expect("somebody holds it back").contains("an open transaction"));
        drop(reader);
        swept.sweep().await;
        let left = if strategy == SweepStrategy::Thorough { (1, 0) } else { (2, 2) };
        assert_eq!(swept.counts(&table).await, left, "{strategy}");
    }
}

pub(crate) async fn a_reader_that_comes_too_late_is_told_so(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let first = write(&swept.atlas, &table, &[("a", "first"), ("b", "stays")]).await;
    let second = write(&swept.atlas, &table, &[("a", "second")]).await;
    write(&swept.atlas, &table, &[("a", "third")]).await;
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (2, 1));
    for at in [first.next(), second, second.next()] {
        assert_too_old(swept.read_at(&table, "a", at).await);
        // A past read is answered wherever its versions still stand.
        assert_eq!(swept.read_at(&table, "b", at).await.expect("it stands"), Some("stays".to_owned()));
        let tx = swept.atlas.transactions().begin(BeginOptions { at: Some(at), ..Default::default() }).await;
        let tx = tx.expect("it begins");
        let scanned = tx.scan(&table, ScanOptions::default()).await.expect("it begins");
        assert_too_old(scanned.try_collect::<Vec<_>>().await);
        assert_too_old(lent_cells(&tx, &table, ScanOptions::default(), usize::MAX).await);
    }
    // Before there was anything: the sentinel says that something is gone, not since when it was there.
    let before = swept.read_at(&table, "a", first).await;
    assert!(matches!(before, Ok(None) | Err(Error::TooOld { .. })), "{before:?}");
    assert_eq!(read(&swept.atlas, &table, "a").await, Some("third".to_owned()));
}

pub(crate) async fn deleted_cells_stay_as_deletions_behind_sentinels(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    overwrite(&swept.atlas, &table, "a", 3).await;
    let deleted = swept.delete(&table, "a").await;
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (1, 1), "the deletion and a sentinel");
    assert_eq!(read(&swept.atlas, &table, "a").await, None);
    assert_too_old(swept.read_at(&table, "a", deleted).await);
    // Written again, it is a cell like any other.
    write(&swept.atlas, &table, &[("a", "again")]).await;
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (1, 1));
    assert_eq!(read(&swept.atlas, &table, "a").await, Some("again".to_owned()));
}

pub(crate) async fn deleted_cells_go_entirely_where_sweep_is_thorough(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Thorough).await;
    overwrite(&swept.atlas, &table, "a", 3).await;
    overwrite(&swept.atlas, &table, "b", 3).await;
    swept.delete(&table, "a").await;
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (1, 0));
    assert_eq!(swept.versions_of(&table, "a").await, [0; 0]);
    assert_eq!(read(&swept.atlas, &table, "a").await, None);
    assert_eq!(read(&swept.atlas, &table, "b").await, Some("b2".to_owned()));
}

pub(crate) async fn who_reads_the_past_of_a_thorough_table_is_told_so(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Thorough).await;
    let written = write(&swept.atlas, &table, &[("a", "there")]).await;
    swept.delete(&table, "a").await;
    swept.sweep().await;
    let check = async |swept: &Swept| {
        assert_too_old(swept.read_at(&table, "a", written.next()).await);
        // Where nothing is found there is nothing to meet, and it must be told all the same.
        let options = BeginOptions { at: Some(written.next()), ..BeginOptions::default() };
        let tx = swept.atlas.transactions().begin(options).await.expect("it begins");
        let scanned = tx.scan(&table, ScanOptions::default()).await.expect("it begins");
        assert_too_old(scanned.try_collect::<Vec<_>>().await);
        assert_too_old(lent_cells(&tx, &table, ScanOptions::default(), usize::MAX).await);
        assert_too_old(tx.get_row(&table, b"a", Default::default()).await);
        // Who begins now is not too late.
        assert_eq!(read(&swept.atlas, &table, "a").await, None);
    };
    check(&swept).await;
    if lane.store != StoreKind::Memory {
        // It stands in the store, for those who come later.
        let swept = swept.reopened().await;
        check(&swept).await;
        swept.atlas.close().await.expect("it closes");
    }
}

pub(crate) async fn what_was_rolled_back_goes(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    write(&swept.atlas, &table, &[("a", "good")]).await;
    // As a writer leaves it that died between its data and its entry.
    let tx = swept.atlas.begin().await.expect("it begins");
    let start_ts = tx.start_ts();
    drop(tx);
    let orphan = vec![(table.clone(), vec![(cell("a"), bytes::Bytes::from_static(b"\0bad"))])];
    swept.kvs().put(orphan, start_ts).await.expect("it can be put");
    assert_eq!(swept.versions_of(&table, "a").await.len(), 2);
    // No queue knows it, so a walk has to come.
    let report = swept.atlas.sweep(SweepRequest::default(), no_progress()).await.expect("a walk");
    assert_eq!((report.tables[0].deleted, report.tables[0].rolled_back), (1, 1), "{report:?}");
    assert_eq!(swept.counts(&table).await, (1, 0), "nobody misses it, so there is no sentinel");
    assert_eq!(read(&swept.atlas, &table, "a").await, Some("good".to_owned()));
}

pub(crate) async fn a_commit_that_is_too_young_is_come_back_to(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    write(&swept.atlas, &table, &[("a", "old")]).await;
    // It starts early and commits late; who begins in between holds sweep back below its commit, and above its start.
    let late = swept.atlas.begin().await.expect("it begins");
    put(&late, &table, "a", "new").await;
    write(&swept.atlas, &table, &[("b", "between")]).await;
    let reader = swept.atlas.begin().await.expect("it begins");
    commit(late).await;
    swept.sweep().await;
    assert_eq!(get(&reader, &table, "a").await, Some("old".to_owned()));
    drop(reader);
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (2, 1), "its entry was kept, and 'old' is gone now");
}

pub(crate) async fn a_table_that_was_dropped_stalls_nobody(lane: Lane) {
    let swept = Swept::open(lane).await;
    let doomed = swept.table("doomed", SweepStrategy::Conservative).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    for _ in 0..3 {
        overwrite(&swept.atlas, &doomed, "a", 1).await;
        overwrite(&swept.atlas, &table, "a", 1).await;
    }
    swept.atlas.drop_table(&doomed).await.expect("it can be dropped");
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (1, 1));
    let status = swept.atlas.sweep_status().await.expect("a status");
    assert_eq!(status.totals.failures, 0);
    // Made anew under its name, it keeps what is its own.
    swept.table("doomed", SweepStrategy::Conservative).await;
    overwrite(&swept.atlas, &doomed, "a", 2).await;
    swept.sweep().await;
    assert_eq!(read(&swept.atlas, &doomed, "a").await, Some("a1".to_owned()));
}

pub(crate) async fn a_table_of_which_nothing_is_to_go_keeps_everything(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Nothing).await;
    let first = write(&swept.atlas, &table, &[("a", "first")]).await;
    overwrite(&swept.atlas, &table, "a", 3).await;
    swept.sweep().await;
    let report = swept.atlas.sweep(SweepRequest::default(), no_progress()).await.expect("a walk");
    assert_eq!(report.tables[0].deleted, 0);
    assert_eq!(swept.counts(&table).await, (4, 0));
    assert_eq!(swept.read_at(&table, "a", first.next()).await.expect("it is there"), Some("first".to_owned()));
}

pub(crate) async fn a_strategy_may_change_at_any_time(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    overwrite(&swept.atlas, &table, "a", 2).await;
    let first = swept.delete(&table, "a").await;
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (1, 1));
    let change = |strategy| TableChange { sweep_strategy: Some(strategy), ..TableChange::default() };
    swept.atlas.alter_table(&table, &change(SweepStrategy::Thorough)).await.expect("it can be changed");
    // Its entries are worked off; a walk goes by what holds now.
    swept.atlas.sweep(SweepRequest::default(), no_progress()).await.expect("a walk");
    assert_eq!(swept.counts(&table).await, (0, 0), "deletion and sentinel are gone");
    assert_too_old(swept.read_at(&table, "a", first).await);
    // Back again: what is gone without a trace stays known.
    swept.atlas.alter_table(&table, &change(SweepStrategy::Conservative)).await.expect("it can be changed");
    assert_too_old(swept.read_at(&table, "a", first).await);
    overwrite(&swept.atlas, &table, "a", 2).await;
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (1, 1));
}

pub(crate) async fn a_pin_holds_sweep_back(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    write(&swept.atlas, &table, &[("a", "pinned")]).await;
    let pinned = swept.atlas.pin_fresh_timestamp(Duration::from_secs(600)).await.expect("it is pinned");
    overwrite(&swept.atlas, &table, "a", 3).await;
    swept.sweep().await;
    assert_eq!(swept.read_at(&table, "a", pinned).await.expect("it is kept"), Some("pinned".to_owned()));
    let status = swept.atlas.sweep_status().await.expect("a status");
    assert!(status.held_by.expect("it says so").contains("the pin"));
    // One that is over holds nothing.
    let pins = atlas::sweep::SweepPins::in_store(swept.kvs().clone());
    let (_, bytes) = pins.load().await.expect("they can be read").expect("there is one");
    pins.replace(Some(&bytes), None).await.expect("they can be removed");
    swept.atlas.pin_fresh_timestamp(Duration::ZERO).await.expect("it is pinned");
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (1, 1));
}

pub(crate) async fn what_was_swept_can_not_be_restored_from_this_store(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    write(&swept.atlas, &table, &[("a", "first")]).await;
    let copied = swept.atlas.fresh_timestamp().await.expect("a timestamp");
    write(&swept.atlas, &table, &[("a", "second")]).await;
    let kvs = swept.kvs().clone();
    let cleaned = atlas::backup::clean_transactions(kvs.clone(), copied, true, &no_progress()).await;
    assert_eq!(cleaned.expect("the state is there").rolled_back, 1);
    swept.sweep().await;
    let refused = atlas::backup::clean_transactions(kvs.clone(), copied, true, &no_progress()).await;
    let refused = refused.expect_err("the state at it is gone").to_string();
    assert!(refused.contains("not in this copy any more"), "{refused}");
    // A timestamp of now is fine.
    let now = swept.atlas.fresh_timestamp().await.expect("a timestamp");
    atlas::backup::clean_transactions(kvs, now, true, &no_progress()).await.expect("the state is there");
}

pub(crate) async fn a_paused_sweep_stands_still_over_a_restart(lane: Lane) {
    let place = Place::new(lane.store);
    let config = AtlasConfig { sweep: place.config(lane).sweep, ..by_hand(&place, lane) };
    let mut hot = config.clone();
    hot.sweep.enabled = true;
    hot.sweep.interval = Duration::from_millis(20);
    let mut swept = Swept { atlas: place.open_atlas(hot.clone()).await, place, lane };
    let status = swept.atlas.sweep_pause("a test").await.expect("it can be paused");
    assert_eq!(status.paused.expect("it is paused").reason, "a test");
    let table = swept.table("t", SweepStrategy::Conservative).await;
    overwrite(&swept.atlas, &table, "a", 3).await;
    if lane.store != StoreKind::Memory {
        swept.atlas.close().await.expect("it closes");
        swept.atlas = swept.place.open_atlas(hot).await;
    }
    // Longer than it would have taken: what does not happen can't be waited for.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(swept.counts(&table).await, (3, 0));
    let status = swept.atlas.sweep_status().await.expect("a status");
    assert!(status.stands_still.expect("it says why").contains("paused by"));
    swept.atlas.sweep_resume().await.expect("it can be resumed");
    for _ in 0..600 {
        if swept.counts(&table).await == (1, 1) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it does not go on: {:?}", swept.atlas.sweep_status().await);
}

pub(crate) async fn a_walk_finds_what_the_queue_does_not_know(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Nothing).await;
    for row in 0..10 {
        overwrite(&swept.atlas, &table, &format!("{row}"), 3).await;
    }
    // Worked off while nothing was to go.
    swept.sweep().await;
    let conservative = TableChange { sweep_strategy: Some(SweepStrategy::Conservative), ..TableChange::default() };
    swept.atlas.alter_table(&table, &conservative).await.expect("it can be changed");
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (30, 0));
    let small = SweepRequest { table: Some(table.clone()), candidate_batch: 3, ..SweepRequest::default() };
    // From a row on.
    let from = SweepRequest { from_row: Some("7".into()), ..small.clone() };
    let report = swept.atlas.sweep(from, no_progress()).await.expect("a walk");
    assert_eq!((report.tables[0].cells, report.tables[0].deleted), (3, 6));
    // Interrupted, and taken up again: by whoever does not wait for its end.
    let counted = interrupted_walk(&swept, &table, &small).await;
    assert_eq!(counted, (18, 6));
    let report = swept.atlas.sweep(small, no_progress()).await.expect("a walk");
    assert!(report.tables[0].resumed, "{report:?}");
    assert_eq!((report.tables[0].cells, report.tables[0].deleted), (7, 8), "{report:?}");
    assert_eq!(swept.counts(&table).await, (10, 10));
    assert_eq!(swept.atlas.sweep_status().await.expect("a status").tables[0].interrupted_at, None);
    let error = swept
        .atlas
        .sweep(SweepRequest { read_limit: 0, ..SweepRequest::default() }, no_progress())
        .await
        .expect_err("nothing would ever be read");
    assert!(matches!(error, Error::Usage(_)), "{error}");
}

/// Begins a walk, and leaves it behind its first batch. What is in the table then.
async fn interrupted_walk(swept: &Swept, table: &TableRef, request: &SweepRequest) -> (u64, u64) {
    let request = SweepRequest { pause: Duration::from_secs(3600), ..request.clone() };
    let atlas = swept.atlas.clone();
    let walk = tokio::spawn(async move { atlas.sweep(request, no_progress()).await });
    let mut is_left = false;
    // Its progress is written after the batch.
    for _ in 0..600 {
        is_left = swept.atlas.sweep_status().await.expect("a status").tables[0].interrupted_at.is_some();
        if is_left {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    walk.abort();
    let _ = walk.await;
    assert!(is_left, "the walk has not come behind its first batch");
    swept.counts(table).await
}

/// Where an earlier table of its name was left says nothing of it.
pub(crate) async fn a_walk_over_a_new_table_begins_at_its_first_cell(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let small = SweepRequest { candidate_batch: 1, ..SweepRequest::default() };
    for emptied in [false, true] {
        for row in ["a", "b", "c"] {
            overwrite(&swept.atlas, &table, row, 2).await;
        }
        interrupted_walk(&swept, &table, &small).await;
        if emptied {
            swept.atlas.truncate_table(&table).await.expect("it can be emptied");
        } else {
            swept.atlas.drop_table(&table).await.expect("it can be dropped");
            swept.table("t", SweepStrategy::Conservative).await;
        }
        overwrite(&swept.atlas, &table, "a", 2).await;
        let report = swept.atlas.sweep(SweepRequest::default(), no_progress()).await.expect("a walk");
        assert!(!report.tables[0].resumed, "{report:?}");
        assert_eq!(swept.counts(&table).await, (1, 1));
    }
}

pub(crate) async fn a_dry_run_removes_nothing(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    overwrite(&swept.atlas, &table, "a", 5).await;
    let dry = SweepRequest { dry_run: true, ..SweepRequest::default() };
    for _ in 0..2 {
        let report = swept.atlas.sweep(dry.clone(), no_progress()).await.expect("a walk");
        assert_eq!((report.tables[0].versions, report.tables[0].deleted), (5, 4));
        assert_eq!(swept.counts(&table).await, (5, 0));
    }
    let report = swept.atlas.sweep(SweepRequest::default(), no_progress()).await.expect("a walk");
    assert_eq!(report.tables[0].deleted, 4, "as it said");
}

pub(crate) async fn a_hard_delete_leaves_no_version(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let first = write(&swept.atlas, &table, &[("secret", "one"), ("other", "stays")]).await;
    overwrite(&swept.atlas, &table, "secret", 3).await;
    let done = swept.atlas.hard_delete(&table, &[cell("secret")], Duration::from_secs(60)).await;
    let done = done.expect("it is deleted");
    assert_eq!(done.versions, 5, "four values and their deletion");
    assert_eq!(swept.versions_of(&table, "secret").await, [0; 0]);
    assert_eq!(read(&swept.atlas, &table, "secret").await, None);
    assert_eq!(read(&swept.atlas, &table, "other").await, Some("stays".to_owned()));
    // Not "there never was anything": that would be another value.
    assert_too_old(swept.read_at(&table, "secret", first.next()).await);
    // Work that is left in the queue finds nothing, and what is written later stays.
    write(&swept.atlas, &table, &[("secret", "new")]).await;
    swept.sweep().await;
    assert_eq!(read(&swept.atlas, &table, "secret").await, Some("new".to_owned()));
}

pub(crate) async fn a_hard_delete_waits_for_readers(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    write(&swept.atlas, &table, &[("secret", "one")]).await;
    let reader = swept.atlas.begin().await.expect("it begins");
    let error = swept.atlas.hard_delete(&table, &[cell("secret")], Duration::ZERO).await.expect_err("a reader");
    assert!(error.to_string().contains("an open transaction"), "{error}");
    assert_eq!(get(&reader, &table, "secret").await, Some("one".to_owned()));
    let waits = tokio::spawn({
        let (atlas, table) = (swept.atlas.clone(), table.clone());
        async move { atlas.hard_delete(&table, &[cell("secret")], Duration::from_secs(120)).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waits.is_finished());
    drop(reader);
    waits.await.expect("no panic").expect("it is deleted");
    assert_eq!(swept.versions_of(&table, "secret").await, [0; 0]);
}

pub(crate) async fn a_huge_transaction_is_swept_in_pieces(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let cells = if lane.store == StoreKind::Cassandra { 1_500 } else { 5_000 };
    for value in ["one", "two"] {
        let tx = swept.atlas.begin().await.expect("it begins");
        for row in 0..cells {
            put(&tx, &table, &format!("{row:05}"), value).await;
        }
        commit(tx).await;
    }
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (cells, cells));
    let status = swept.atlas.sweep_status().await.expect("a status");
    assert!(status.totals.entries > 2, "several entries for one transaction: {status:?}");
}

pub(crate) async fn a_transaction_that_is_forgotten_holds_sweep_back_for_its_time_only(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    write(&swept.atlas, &table, &[("a", "first")]).await;
    let options = BeginOptions { timeout: Some(Duration::from_secs(2)), ..BeginOptions::default() };
    let forgotten = swept.atlas.transactions().begin(options).await.expect("it begins");
    put(&forgotten, &table, "a", "forgotten").await;
    // One that ended long ago and whose handle is kept.
    let kept = swept.atlas.begin().await.expect("it begins");
    put(&kept, &table, "a", "second").await;
    kept.commit().await.expect("it commits");
    write(&swept.atlas, &table, &[("a", "third")]).await;
    for _ in 0..200 {
        swept.sweep().await;
        if swept.counts(&table).await == (1, 1) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(swept.counts(&table).await, (1, 1));
    for outcome in [forgotten.get(&table, &cell("a")).await.map(drop), forgotten.commit().await.map(drop)] {
        let error = outcome.expect_err("its time is over");
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    }
    assert_eq!(read(&swept.atlas, &table, "a").await.as_deref(), Some("third"));
}

pub(crate) async fn once_something_went_without_a_trace_every_sweep_says_so(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Thorough).await;
    overwrite(&swept.atlas, &table, "a", 2).await;
    swept.sweep().await;
    let said = async |swept: &Swept| {
        let record = SweptTable::in_store(swept.kvs().clone(), &table).load().await.expect("it can be read");
        record.expect("something was swept").0
    };
    let first = said(&swept).await;
    assert_eq!(first.gone, first.swept);
    let change = TableChange { sweep_strategy: Some(SweepStrategy::Conservative), ..TableChange::default() };
    swept.atlas.alter_table(&table, &change).await.expect("it can be changed");
    overwrite(&swept.atlas, &table, "a", 2).await;
    swept.sweep().await;
    // Somebody who still sweeps thoroughly may remove the sentinels of those who do not any more.
    let second = said(&swept).await;
    assert!(second.gone > first.gone && second.gone == second.swept, "{first:?}, then {second:?}");
    assert_eq!(swept.counts(&table).await, (1, 1));
    // The other way round, sentinels go with the next sweep of their cells, though no version does.
    let change = TableChange { sweep_strategy: Some(SweepStrategy::Thorough), ..TableChange::default() };
    swept.atlas.alter_table(&table, &change).await.expect("it can be changed");
    swept.atlas.sweep(SweepRequest::default(), no_progress()).await.expect("it can be walked");
    assert_eq!(swept.counts(&table).await, (1, 0));
    // And come again.
    let change = TableChange { sweep_strategy: Some(SweepStrategy::Conservative), ..TableChange::default() };
    swept.atlas.alter_table(&table, &change).await.expect("it can be changed");
    overwrite(&swept.atlas, &table, "a", 2).await;
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (1, 1));
}

/// A queue that takes long to be worked off does not make those who pause sweep wait for all of it.
pub(crate) async fn a_pause_ends_a_round_behind_its_batch(lane: Lane) {
    let place = Place::new(lane.store);
    let mut config = by_hand(&place, lane);
    (config.sweep.enabled, config.sweep.interval) = (true, Duration::from_millis(20));
    // A cell a batch, and a rest after it that nobody would wait for.
    (config.sweep.batch_cells, config.sweep.pause) = (1, Duration::from_secs(1));
    let atlas = place.open_atlas(config).await;
    let table = table(&atlas, "t", Default::default()).await;
    for row in 0..60 {
        overwrite(&atlas, &table, &format!("{row:02}"), 2).await;
    }
    let swept = Swept { atlas, place, lane };
    until_something_went(&swept, &table).await;
    swept.atlas.sweeper().pause("a test").await.expect("it can be paused");
    // The batch under way is finished, whenever that is, and the rest stays. A round that goes on stands still at the
    // end only.
    let (mut left, mut stands_still) = (swept.counts(&table).await.0, false);
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = swept.counts(&table).await.0;
        stands_still = now == left;
        left = now;
        if stands_still {
            break;
        }
    }
    assert!(stands_still && left > 60, "{left} versions are left, and it stands still: {stands_still}");
    swept.atlas.close().await.expect("it closes");
}

async fn until_something_went(swept: &Swept, table: &TableRef) {
    for _ in 0..600 {
        if swept.counts(table).await.0 < 120 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing was swept");
}

// ---- stores on which versions carry their commit timestamp

/// Entries go, and what was committed stays committed; what was rolled back never comes back.
pub(crate) async fn entries_go_and_what_they_said_stays(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let entries = async |swept: &Swept| {
        let scan = atlas::kvs_api::AtomicScan::new(atlas::RowRange::all());
        let found = swept.kvs().scan_atomic(&transactions_table(), scan).try_collect::<Vec<_>>().await;
        found.expect("they can be read").len()
    };
    for number in 0..40 {
        overwrite(&swept.atlas, &table, &format!("{}", number % 10), 1).await;
    }
    // The floor moves in strides.
    swept.atlas.fresh_timestamps(4_000).await.expect("numbers are issued");
    let before = entries(&swept).await;
    let large = matches!(lane.pipeline_size_max, SizeLimit::Bytes(0));
    assert!(before >= 40);
    swept.sweep().await;
    let after = entries(&swept).await;
    let floor = TransactionsFloor::load(swept.kvs().clone()).await.expect("a floor").below;
    assert!(floor > Timestamp::FIRST);
    if large {
        // Their versions do not say when they committed, so somebody has to.
        assert_eq!(after, before);
    } else {
        assert!(after < before, "{after} of {before} entries are left");
    }
    for row in 0..10 {
        assert_eq!(read(&swept.atlas, &table, &format!("{row}")).await, Some(format!("{row}0")));
    }
    let status = swept.atlas.sweep_status().await.expect("a status");
    assert_eq!(status.transactions_floor, Some(floor));
    if lane.store != StoreKind::Memory {
        let swept = swept.reopened().await;
        for row in 0..10 {
            assert_eq!(read(&swept.atlas, &table, &format!("{row}")).await, Some(format!("{row}0")));
        }
        let findings = swept.atlas.doctor(&["all".to_owned()]).await.expect("a look at everything");
        assert!(findings.iter().all(|finding| finding.level != atlas::ops::FindingLevel::Fail), "{findings:#?}");
        swept.atlas.close().await.expect("it closes");
    }
}

/// Finished partitions of the queue are dropped whole.
pub(crate) async fn finished_partitions_are_dropped(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let queued = async |swept: &Swept| {
        let scan = atlas::kvs_api::Scan::new(atlas::RowRange::all(), Timestamp::MAX);
        swept.kvs().scan(&sweep_queue_table(), scan).try_collect::<Vec<_>>().await.expect("it can be read").len()
    };
    overwrite(&swept.atlas, &table, "a", 20).await;
    assert_eq!(queued(&swept).await, 20);
    swept.sweep().await;
    assert_eq!(queued(&swept).await, 20, "their partition is not finished");
    for _ in 0..PARTITION / 10_000 + 1 {
        swept.atlas.fresh_timestamps(10_000).await.expect("numbers are issued");
    }
    overwrite(&swept.atlas, &table, "a", 2).await;
    swept.sweep().await;
    assert_eq!(queued(&swept).await, 2, "those of the partition that is not finished");
    for shard in 0..SHARDS {
        let progress = ShardProgress::load(swept.kvs().clone(), shard).await.expect("progress");
        assert!(progress.dropped >= 1, "{progress:?}");
    }
    assert_eq!(swept.counts(&table).await, (1, 1));
}

/// In tables without a check of writes the greater start timestamp wins, whichever commits first.
pub(crate) async fn where_writers_do_not_conflict_the_winner_stays(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = TableRef::new("t").expect("a name");
    let spec = TableSpec::with_handler(ConflictHandler::IgnoreAll);
    swept.atlas.create_table(&table, &spec).await.expect("the table can be made");
    let early = swept.atlas.begin().await.expect("it begins");
    put(&early, &table, "a", "early").await;
    write(&swept.atlas, &table, &[("a", "late start")]).await;
    commit(early).await;
    let seen = read(&swept.atlas, &table, "a").await;
    assert_eq!(seen.as_deref(), Some("late start"));
    swept.sweep().await;
    assert_eq!(read(&swept.atlas, &table, "a").await, seen);
    assert_eq!(swept.counts(&table).await.0, 1);
}

/// Names of cells are any bytes.
pub(crate) async fn cells_of_any_bytes_are_swept(lane: Lane) {
    let swept = Swept::open(lane).await;
    let table = swept.table("t", SweepStrategy::Conservative).await;
    let names: [&[u8]; 4] = [b"\0", b"\xff\xff", b"a\0b", &[b'n'; 1000]];
    for value in ["one", "two"] {
        let tx = swept.atlas.begin().await.expect("it begins");
        for row in names {
            tx.put(&table, Cell::copy_from(row, b"\0\xff"), value.to_owned()).await.expect("a write is buffered");
        }
        commit(tx).await;
    }
    swept.sweep().await;
    assert_eq!(swept.counts(&table).await, (4, 4));
}
