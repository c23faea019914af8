//! Serializable tables: what was read must stand at the commit, exactly as far as it was read.

use crate::common::clock::TestClock;
use crate::common::*;
use atlas::lock::{HeldLocks, LockClient, LockDescriptor, LockOptions, LockRequest, LockService};
use atlas::ops::{Operations, ScanOptions};
use atlas::schema::{ConflictHandler, TableChange};
use atlas::transaction::{CellRef, RunOptions, Transaction};
use atlas::{Cell, ColumnSelection, Error, Result, TableRef};
use futures::TryStreamExt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Handlers that check reads.
const SERIALIZABLE: [ConflictHandler; 4] = [
    ConflictHandler::Serializable,
    ConflictHandler::SerializableCell,
    ConflictHandler::SerializableIndex,
    ConflictHandler::SerializableLockLevelMigration,
];

macro_rules! serializable_lane {
    ($name:ident, $lane:ident) => {
        serializable_lane!($name, $lane, [
            write_skew_is_refused,
            write_skew_over_a_predicate_is_refused,
            an_absence_that_ends_is_a_conflict,
            a_deletion_of_what_was_read_is_a_conflict,
            a_phantom_in_a_range_is_a_conflict,
            a_phantom_behind_the_consumed_prefix_is_none,
            a_phantom_before_the_consumed_end_of_a_reverse_scan_is_none,
            a_visitor_is_shown_nothing_after_the_commit_began,
            columns_that_were_not_asked_for_are_no_conflict,
            there_and_back_again_is_a_conflict,
            own_writes_never_conflict_with_own_reads,
            writers_without_reads_conflict_by_their_handler,
            readers_that_write_nothing_never_conflict,
            the_read_only_anomaly_does_not_happen,
            reads_of_snapshot_tables_are_not_checked,
            read_checks_can_be_disabled_before_the_first_use,
            too_many_reads_are_checked_as_the_whole_table,
            pairs_never_go_below_zero_under_load,
            sets_stay_disjoint_under_load,
            a_table_can_be_made_serializable_under_load,
            who_used_a_table_before_it_changed_begins_anew,
            who_used_a_table_that_was_made_anew_with_another_handler_begins_anew,
            what_is_to_be_done_on_success_is_done_once,
            nothing_is_done_on_success_without_one,
            what_waits_to_be_done_may_abort_when_it_is_dropped,
            work_that_lost_its_locks_does_not_commit,
            work_with_locks_is_done_by_one_at_a_time,
        ]);
    };
    ($name:ident, $lane:ident, [$($case:ident,)*]) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    crate::serializable::$case(crate::common::TestStore::open(crate::common::$lane).await).await;
                }
            )*
        }
    };
}

#[track_caller]
fn assert_read_conflict<T: std::fmt::Debug>(outcome: Result<T>) {
    assert!(matches!(outcome, Err(Error::ReadConflict { .. })), "expected a read conflict, got {outcome:?}");
}

/// What one transaction reads of a table, and another one writes before it commits.
async fn interfere(
    store: &TestStore,
    t: &TableRef,
    read: impl AsyncFn(&Transaction),
    change: impl AsyncFn(&Transaction),
) -> Result<Option<atlas::Timestamp>> {
    let reader = store.begin().await;
    read(&reader).await;
    let changer = store.begin().await;
    change(&changer).await;
    commit(changer).await;
    // Something to commit, in another row than anything else.
    put(&reader, t, "zz/own", "x").await;
    reader.commit().await
}

/// How a reader takes the cells of a range.
#[derive(Clone, Copy, Debug)]
enum Taking {
    Given,
    Lent,
}

const TAKING: [Taking; 2] = [Taking::Given, Taking::Lent];

/// Takes the first cells of a range, and stops at the last of them.
async fn take(tx: &Transaction, t: &TableRef, options: ScanOptions, count: usize, taking: Taking) {
    match taking {
        Taking::Given => {
            let mut cells = tx.scan(t, options).await.expect("a scan begins");
            for _ in 0..count {
                cells.try_next().await.expect("a scan goes on").expect("there is a cell");
            }
        }
        Taking::Lent => assert_eq!(lent_cells(tx, t, options, count).await.expect("a scan goes on").len(), count),
    }
}

/// Takes all cells of a range, and is told that there are no more. Answers how many there are.
async fn take_all(tx: &Transaction, t: &TableRef, options: ScanOptions, taking: Taking) -> usize {
    match taking {
        Taking::Given => scan_cells(tx, t, options).await.len(),
        Taking::Lent => lent_cells(tx, t, options, usize::MAX).await.expect("a scan ends").len(),
    }
}

// ---- anomalies that snapshot isolation allows

/// G2-item.
pub(crate) async fn write_skew_is_refused(store: TestStore) {
    for handler in SERIALIZABLE {
        let t = store.table(handler).await;
        write(&store.atlas, &t, &[("x", "1"), ("y", "1")]).await;
        let (alice, bob) = (store.begin().await, store.begin().await);
        for tx in [&alice, &bob] {
            assert_eq!((get(tx, &t, "x").await.as_deref(), get(tx, &t, "y").await.as_deref()), (Some("1"), Some("1")));
        }
        put(&alice, &t, "x", "0").await;
        put(&bob, &t, "y", "0").await;
        commit(alice).await;
        assert_read_conflict(bob.commit().await);
        assert_eq!(everything(&store.begin().await, &t).await, ["x/v=0", "y/v=1"], "{handler}");
    }
}

/// G2.
pub(crate) async fn write_skew_over_a_predicate_is_refused(store: TestStore) {
    let t = store.table(ConflictHandler::Serializable).await;
    let (alice, bob) = (store.begin().await, store.begin().await);
    for tx in [&alice, &bob] {
        assert_eq!(scan(tx, &t, rows("a", "c")).await, [""; 0]);
    }
    put(&alice, &t, "a", "alice").await;
    put(&bob, &t, "b", "bob").await;
    commit(bob).await;
    assert_read_conflict(alice.commit().await);
    assert_eq!(everything(&store.begin().await, &t).await, ["b/v=bob"]);
}

// ---- what counts as read

pub(crate) async fn an_absence_that_ends_is_a_conflict(store: TestStore) {
    let t = store.table(ConflictHandler::Serializable).await;
    let outcome = interfere(
        &store,
        &t,
        async |tx| assert_eq!(get(tx, &t, "nothing").await, None),
        async |tx| put(tx, &t, "nothing", "something").await,
    );
    assert_read_conflict(outcome.await);
}

pub(crate) async fn a_deletion_of_what_was_read_is_a_conflict(store: TestStore) {
    let t = store.table(ConflictHandler::SerializableCell).await;
    write(&store.atlas, &t, &[("a", "1"), ("b", "1")]).await;
    let outcome = interfere(
        &store,
        &t,
        async |tx| assert_eq!(get(tx, &t, "a").await.as_deref(), Some("1")),
        async |tx| delete(tx, &t, "a").await,
    );
    assert_read_conflict(outcome.await);
    let outcome = interfere(
        &store,
        &t,
        async |tx| assert_eq!(scan(tx, &t, rows("a", "c")).await, ["b/v=1"]),
        async |tx| delete(tx, &t, "b").await,
    );
    assert_read_conflict(outcome.await);
}

pub(crate) async fn a_phantom_in_a_range_is_a_conflict(store: TestStore) {
    for (reverse, taking) in [false, true].into_iter().flat_map(|reverse| TAKING.map(|taking| (reverse, taking))) {
        for handler in SERIALIZABLE {
            let t = table(&store.atlas, &format!("{handler}{taking:?}"), handler).await;
            write(&store.atlas, &t, &[("a", "1"), ("m", "1")]).await;
            let options = ScanOptions { reverse, ..rows("a", "n") };
            let all = async |tx: &Transaction| {
                take_all(tx, &t, options.clone(), taking).await;
            };
            let phantom = if reverse { "b" } else { "c" };
            let outcome = interfere(&store, &t, all, async |tx| put(tx, &t, phantom, "phantom").await);
            assert_read_conflict(outcome.await);
            // Outside of the range it is none.
            let outcome = interfere(&store, &t, all, async |tx| put(tx, &t, "n", "no phantom").await);
            outcome.await.expect("nothing that was read has changed");
        }
    }
}

pub(crate) async fn a_phantom_behind_the_consumed_prefix_is_none(store: TestStore) {
    for taking in TAKING {
        let t = table(&store.atlas, &format!("{taking:?}"), ConflictHandler::Serializable).await;
        write(&store.atlas, &t, &[("a", "1"), ("c", "1"), ("e", "1"), ("g", "1")]).await;
        let two = async |tx: &Transaction| take(tx, &t, rows("a", "h"), 2, taking).await;
        interfere(&store, &t, two, async |tx| put(tx, &t, "d", "behind").await).await.expect("it read up to c only");
        interfere(&store, &t, two, async |tx| delete(tx, &t, "g").await).await.expect("it read up to c only");
        assert_read_conflict(interfere(&store, &t, two, async |tx| put(tx, &t, "b", "between").await).await);
        // A limit ends a scan as its reader does.
        let limited = async |tx: &Transaction| {
            let options = ScanOptions { limit: Some(2), ..rows("a", "h") };
            assert_eq!(take_all(tx, &t, options, taking).await, 2);
        };
        interfere(&store, &t, limited, async |tx| put(tx, &t, "c", "behind").await)
            .await
            .expect("it read up to b only");
        assert_read_conflict(interfere(&store, &t, limited, async |tx| put(tx, &t, "aa", "between").await).await);
        // Who was told the end has read to the end.
        let all = async |tx: &Transaction| {
            take_all(tx, &t, rows("a", "h"), taking).await;
        };
        assert_read_conflict(interfere(&store, &t, all, async |tx| put(tx, &t, "gg", "at the end").await).await);
    }
}

pub(crate) async fn a_phantom_before_the_consumed_end_of_a_reverse_scan_is_none(store: TestStore) {
    for taking in TAKING {
        let t = table(&store.atlas, &format!("{taking:?}"), ConflictHandler::SerializableCell).await;
        write(&store.atlas, &t, &[("a", "1"), ("c", "1"), ("e", "1"), ("g", "1")]).await;
        let options = ScanOptions { reverse: true, ..rows("a", "h") };
        let two = async |tx: &Transaction| take(tx, &t, options.clone(), 2, taking).await;
        interfere(&store, &t, two, async |tx| put(tx, &t, "d", "before").await).await.expect("it read down to e only");
        assert_read_conflict(interfere(&store, &t, two, async |tx| put(tx, &t, "f", "between").await).await);
    }
}

/// What a visitor is shown is checked at the commit; so nothing is shown once the commit has taken the reads.
pub(crate) async fn a_visitor_is_shown_nothing_after_the_commit_began(store: TestStore) {
    let t = store.table(ConflictHandler::Serializable).await;
    write(&store.atlas, &t, &[("a", "1"), ("b", "1"), ("c", "1")]).await;
    let tx = store.begin().await;
    put(&tx, &t, "z", "own").await;
    let runtime = tokio::runtime::Handle::current();
    let mut seen = Vec::new();
    let visit = |cell: CellRef<'_>| {
        seen.push(cell.row.to_vec());
        // In the middle of a page.
        let committed = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(tx.commit())).join());
        committed.expect("the thread ends").expect("nothing that was read has changed");
        ControlFlow::Continue(())
    };
    let shown = tx.for_each(&t, ScanOptions::default(), visit).await;
    assert!(matches!(shown, Err(Error::TransactionClosed { .. })), "{shown:?}");
    assert_eq!(seen, [b"a"]);
}

pub(crate) async fn columns_that_were_not_asked_for_are_no_conflict(store: TestStore) {
    let t = store.table(ConflictHandler::SerializableCell).await;
    let row = |column: &str| Cell::copy_from("row", column);
    let tx = store.begin().await;
    for column in ["b", "d"] {
        tx.put(&t, row(column), "1").await.expect("buffered");
    }
    commit(tx).await;
    let some = async |tx: &Transaction| drop(tx.get_row(&t, b"row", columns("a", "c")).await.expect("read"));
    let put_column = |column: &'static str| {
        let t = t.clone();
        async move |tx: &Transaction| tx.put(&t, row(column), "2").await.expect("buffered")
    };
    interfere(&store, &t, some, put_column("d")).await.expect("column d was not read");
    assert_read_conflict(interfere(&store, &t, some, put_column("a")).await);
    assert_read_conflict(interfere(&store, &t, some, put_column("b")).await);
    let named = ColumnSelection::Exactly(["b".into(), "x".into()].into());
    let exactly = async |tx: &Transaction| drop(tx.get_row(&t, b"row", named.clone()).await.expect("read"));
    interfere(&store, &t, exactly, put_column("c")).await.expect("column c was not read");
    assert_read_conflict(interfere(&store, &t, exactly, put_column("x")).await);
}

/// A value that was changed and changed back was changed.
pub(crate) async fn there_and_back_again_is_a_conflict(store: TestStore) {
    let t = store.table(ConflictHandler::Serializable).await;
    write(&store.atlas, &t, &[("x", "A")]).await;
    let reader = store.begin().await;
    assert_eq!(get(&reader, &t, "x").await.as_deref(), Some("A"));
    for value in ["B", "A"] {
        write(&store.atlas, &t, &[("x", value)]).await;
    }
    put(&reader, &t, "y", "1").await;
    assert_read_conflict(reader.commit().await);
}

pub(crate) async fn own_writes_never_conflict_with_own_reads(store: TestStore) {
    for handler in SERIALIZABLE {
        let t = store.table(handler).await;
        write(&store.atlas, &t, &[("x", "1"), ("gone", "1")]).await;
        let tx = store.begin().await;
        drop(everything(&tx, &t).await);
        put(&tx, &t, "x", "2").await;
        put(&tx, &t, "new", "2").await;
        delete(&tx, &t, "gone").await;
        assert_eq!(get(&tx, &t, "x").await.as_deref(), Some("2"));
        assert_eq!(everything(&tx, &t).await, ["new/v=2", "x/v=2"]);
        commit(tx).await;
        // Of what it reads from its own buffer it has read nothing that others could change.
        let tx = store.begin().await;
        put(&tx, &t, "only written", "1").await;
        assert_eq!(get(&tx, &t, "only written").await.as_deref(), Some("1"));
        commit(tx).await;
    }
}

pub(crate) async fn writers_without_reads_conflict_by_their_handler(store: TestStore) {
    for handler in SERIALIZABLE {
        let t = store.table(handler).await;
        let (alice, bob) = (store.begin().await, store.begin().await);
        put(&alice, &t, "x", "alice").await;
        put(&bob, &t, "x", "bob").await;
        commit(bob).await;
        match handler {
            ConflictHandler::SerializableIndex => drop(commit(alice).await),
            _ => assert_conflict(alice.commit().await),
        }
    }
}

pub(crate) async fn readers_that_write_nothing_never_conflict(store: TestStore) {
    let t = store.table(ConflictHandler::Serializable).await;
    write(&store.atlas, &t, &[("x", "1")]).await;
    let reader = store.begin().await;
    assert_eq!(get(&reader, &t, "x").await.as_deref(), Some("1"));
    write(&store.atlas, &t, &[("x", "2"), ("y", "2")]).await;
    assert_eq!(get(&reader, &t, "y").await, None);
    assert_eq!(reader.commit().await.expect("it wrote nothing"), None);
}

/// Fekete, O'Neil and O'Neil: a reader that makes a history unserializable which without it would be fine. The writer
/// that the reader contradicts must be refused.
pub(crate) async fn the_read_only_anomaly_does_not_happen(store: TestStore) {
    let t = store.table(ConflictHandler::Serializable).await;
    write(&store.atlas, &t, &[("checking", "0"), ("savings", "0")]).await;
    let withdrawal = store.begin().await;
    for account in ["checking", "savings"] {
        get(&withdrawal, &t, account).await;
    }
    write(&store.atlas, &t, &[("savings", "20")]).await;
    let report = store.begin().await;
    assert_eq!(everything(&report, &t).await, ["checking/v=0", "savings/v=20"]);
    report.commit().await.expect("a reader commits");
    put(&withdrawal, &t, "checking", "-11").await;
    assert_read_conflict(withdrawal.commit().await);
}

pub(crate) async fn reads_of_snapshot_tables_are_not_checked(store: TestStore) {
    let snapshot = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let serializable = store.table(ConflictHandler::Serializable).await;
    for t in [&snapshot, &serializable] {
        write(&store.atlas, t, &[("x", "1")]).await;
    }
    let (first, second) = (store.begin().await, store.begin().await);
    for (tx, row) in [(&first, "first"), (&second, "second")] {
        for t in [&snapshot, &serializable] {
            get(tx, t, "x").await;
        }
        put(tx, &snapshot, row, "1").await;
    }
    write(&store.atlas, &snapshot, &[("x", "2")]).await;
    commit(first).await;
    write(&store.atlas, &serializable, &[("x", "2")]).await;
    assert_read_conflict(second.commit().await);
}

pub(crate) async fn read_checks_can_be_disabled_before_the_first_use(store: TestStore) {
    let t = store.table(ConflictHandler::Serializable).await;
    write(&store.atlas, &t, &[("x", "1")]).await;
    let lax = async |tx: &Transaction| {
        tx.disable_read_checks(&t).expect("the table was not used yet");
        get(tx, &t, "x").await;
    };
    interfere(&store, &t, lax, async |tx| put(tx, &t, "x", "2").await).await.expect("reads are not checked");
    let tx = store.begin().await;
    get(&tx, &t, "x").await;
    assert!(matches!(tx.disable_read_checks(&t), Err(Error::Usage(_))));
}

pub(crate) async fn too_many_reads_are_checked_as_the_whole_table(store: TestStore) {
    let t = store.table(ConflictHandler::SerializableCell).await;
    let cells: Vec<Cell> = (0..70_000).map(|row| cell(&format!("absent {row}"))).collect();
    let many = async |tx: &Transaction| {
        for cells in cells.chunks(5000) {
            tx.get_many(&t, cells).await.expect("cells can be read");
        }
    };
    let outcome = interfere(&store, &t, many, async |tx| put(tx, &t, "nobody asked for this", "1").await);
    assert_read_conflict(outcome.await);
}

// ---- under load

/// Each pair may go to zero together and not below: a constraint over two cells that only serializability keeps.
pub(crate) async fn pairs_never_go_below_zero_under_load(store: TestStore) {
    const PAIRS: usize = 3;
    let t = store.table(ConflictHandler::SerializableCell).await;
    for pair in 0..PAIRS {
        write(&store.atlas, &t, &[(&format!("{pair} a"), "4"), (&format!("{pair} b"), "4")]).await;
    }
    let tasks: Vec<_> = (0..6)
        .map(|task| {
            let (atlas, t) = (store.atlas.clone(), t.clone());
            spawn(move || async move {
                let mut taken = 0;
                for round in 0..8 {
                    let pair = (task + round) % PAIRS;
                    let [mine, other] = if task % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
                    let [mine, other] = [mine, other].map(|side| cell(&format!("{pair} {side}")));
                    let options = RunOptions { attempts_max: Some(1000), ..RunOptions::default() };
                    let took = atlas.run_with(options, async |tx| {
                        let values = tx.get_many(&t, &[mine.clone(), other.clone()]).await?;
                        let [Some(here), Some(there)] = &values[..] else { panic!("a pair has two cells") };
                        if number(here) + number(there) < 1 {
                            return Ok(0);
                        }
                        tx.put(&t, mine.clone(), (number(here) - 1).to_string()).await?;
                        Ok::<_, Error>(1)
                    });
                    taken += took.await.expect("one can be taken in the end").value;
                }
                taken
            })
        })
        .collect();
    let mut taken = 0;
    for task in tasks {
        taken += task.await.expect("the task ends");
    }
    let tx = store.begin().await;
    for pair in 0..PAIRS {
        let mut sum = 0;
        for side in ["a", "b"] {
            sum +=
                get(&tx, &t, &format!("{pair} {side}")).await.expect("it is there").parse::<i64>().expect("a number");
        }
        assert_eq!(sum, 0, "pair {pair}: more takers than there was to take");
    }
    assert_eq!(taken, PAIRS as i64 * 8);
}

/// Everybody takes the smallest free number, found by a range read: no number is taken twice, and none is left out.
pub(crate) async fn sets_stay_disjoint_under_load(store: TestStore) {
    const TASKS: usize = 5;
    const EACH: usize = 4;
    // Writers do not exclude each other here: only the range read does.
    let t = store.table(ConflictHandler::SerializableIndex).await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (atlas, t) = (store.atlas.clone(), t.clone());
            spawn(move || async move {
                for _ in 0..EACH {
                    let options = RunOptions { attempts_max: Some(1000), ..RunOptions::default() };
                    let took = atlas.run_with(options, async |tx| {
                        let taken: Vec<_> = tx.scan(&t, ScanOptions::default()).await?.try_collect().await?;
                        let name = format!("{:03}", taken.len());
                        tx.put(&t, cell(&name), task.to_string()).await
                    });
                    took.await.expect("a number can be taken in the end");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("the task ends");
    }
    let taken = scan_cells(&store.begin().await, &t, ScanOptions::default()).await;
    let expected: Vec<Cell> = (0..TASKS * EACH).map(|taken| cell(&format!("{taken:03}"))).collect();
    assert_eq!(taken.iter().map(|(cell, _)| cell.clone()).collect::<Vec<_>>(), expected);
    for task in 0..TASKS {
        let of_task = taken.iter().filter(|(_, value)| text(value) == task.to_string()).count();
        assert_eq!(of_task, EACH, "what task {task} took was taken by another one too");
    }
}

/// From the moment at which a table is serializable, everything that commits is; and no update is lost on the way
/// through all handlers.
pub(crate) async fn a_table_can_be_made_serializable_under_load(store: TestStore) {
    const TASKS: usize = 4;
    let handlers = [
        ConflictHandler::RetryOnWriteWrite,
        ConflictHandler::RetryOnWriteWriteMigration,
        ConflictHandler::RetryOnWriteWriteCell,
        ConflictHandler::SerializableCell,
        ConflictHandler::SerializableLockLevelMigration,
        ConflictHandler::Serializable,
    ];
    let t = table(&store.atlas, "changing", handlers[0]).await;
    write(&store.atlas, &t, &[("count", "0")]).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (atlas, t, stop, done) = (store.atlas.clone(), t.clone(), stop.clone(), done.clone());
            spawn(move || async move {
                while !stop.load(Ordering::SeqCst) {
                    let options = RunOptions { attempts_max: Some(1000), ..RunOptions::default() };
                    let raised = atlas.run_with(options, async |tx| {
                        let found = tx.get(&t, &cell("count")).await?.as_ref().map_or(0, number);
                        tx.put(&t, cell("count"), (found + 1).to_string()).await
                    });
                    raised.await.expect("the count can be raised");
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for handler in handlers.into_iter().cycle().skip(1).take(2 * handlers.len()) {
        let before = done.load(Ordering::SeqCst);
        while done.load(Ordering::SeqCst) < before + TASKS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let change = TableChange { conflict_handler: Some(handler), sweep_strategy: None };
        let spec = store.atlas.alter_table(&t, &change).await.expect("the table can be changed");
        assert_eq!(spec.conflict_handler, handler);
    }
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.expect("the task ends");
    }
    let raised = done.load(Ordering::SeqCst).to_string();
    assert_eq!(read(&store.atlas, &t, "count").await, Some(raised), "an update was lost");
}

pub(crate) async fn who_used_a_table_before_it_changed_begins_anew(store: TestStore) {
    let t = table(&store.atlas, "changing", ConflictHandler::RetryOnWriteWrite).await;
    let other = store.table(ConflictHandler::RetryOnWriteWrite).await;
    write(&store.atlas, &t, &[("x", "1")]).await;
    let (reader, writer, stranger) = (store.begin().await, store.begin().await, store.begin().await);
    get(&reader, &t, "x").await;
    put(&reader, &other, "r", "1").await;
    put(&writer, &t, "w", "1").await;
    put(&stranger, &other, "s", "1").await;
    let change = TableChange { conflict_handler: Some(ConflictHandler::Serializable), sweep_strategy: None };
    store.atlas.alter_table(&t, &change).await.expect("the table can be changed");
    for tx in [reader, writer] {
        let error = tx.commit().await.expect_err("it used the table before");
        assert!(matches!(error, Error::TableChanged { .. }) && error.is_retriable(), "{error}");
    }
    commit(stranger).await;
    let outcome =
        interfere(&store, &t, async |tx| drop(get(tx, &t, "x").await), async |tx| put(tx, &t, "x", "2").await);
    assert_read_conflict(outcome.await);
    let gone = TableRef::new("gone").expect("a name");
    let error = store.atlas.alter_table(&gone, &change).await.expect_err("there is none");
    assert_eq!(error.code(), "NOT_FOUND");
}

pub(crate) async fn who_used_a_table_that_was_made_anew_with_another_handler_begins_anew(store: TestStore) {
    let name = "made_anew";
    let t = table(&store.atlas, name, ConflictHandler::RetryOnWriteWrite).await;
    let other = store.table(ConflictHandler::RetryOnWriteWrite).await;
    write(&store.atlas, &t, &[("x", "1")]).await;
    let (reader, writer) = (store.begin().await, store.begin().await);
    get(&reader, &t, "x").await;
    put(&reader, &other, "r", "1").await;
    put(&writer, &t, "w", "1").await;
    store.atlas.drop_table(&t).await.expect("the table can be dropped");
    table(&store.atlas, name, ConflictHandler::Serializable).await;
    for tx in [reader, writer] {
        let error = tx.commit().await.expect_err("it used the table before");
        assert!(matches!(error, Error::TableChanged { .. }) && error.is_retriable(), "{error}");
    }
    let outcome =
        interfere(&store, &t, async |tx| drop(get(tx, &t, "x").await), async |tx| put(tx, &t, "x", "2").await);
    assert_read_conflict(outcome.await);
    // With the same handler nothing was promised that does not hold: dropping alone is no change.
    let reader = store.begin().await;
    get(&reader, &t, "x").await;
    put(&reader, &other, "r", "2").await;
    store.atlas.drop_table(&t).await.expect("the table can be dropped");
    table(&store.atlas, name, ConflictHandler::Serializable).await;
    commit(reader).await;
}

// ---- around the commit

pub(crate) async fn what_is_to_be_done_on_success_is_done_once(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let done = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let tx = store.begin().await;
    put(&tx, &t, "x", "1").await;
    for number in 0..3 {
        let done = done.clone();
        tx.on_success(move |commit_ts| {
            done.lock().push((number, commit_ts));
            assert!(number != 1, "one that fails spoils nothing");
        })
        .expect("the transaction is open");
    }
    let commit_ts = tx.commit().await.expect("it commits");
    assert_eq!(*done.lock(), [(0, commit_ts), (1, commit_ts), (2, commit_ts)]);
    assert_closed(tx.commit().await);
    assert_eq!(done.lock().len(), 3);
    assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("1"));
}

pub(crate) async fn nothing_is_done_on_success_without_one(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let (loser, aborted) = (store.begin().await, store.begin().await);
    for tx in [&loser, &aborted] {
        put(tx, &t, "x", "1").await;
        tx.on_success(|_| panic!("it did not commit")).expect("the transaction is open");
    }
    write(&store.atlas, &t, &[("x", "2")]).await;
    assert_conflict(loser.commit().await);
    aborted.abort();
}

/// It is the application's, and may hold a handle of the very transaction.
pub(crate) async fn what_waits_to_be_done_may_abort_when_it_is_dropped(store: TestStore) {
    struct Aborts(Transaction);
    impl Drop for Aborts {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let tx = store.begin().await;
    put(&tx, &t, "x", "1").await;
    let aborts = Aborts(tx.clone());
    tx.on_success(move |_| drop(aborts)).expect("the transaction is open");
    let (ended, end) = tokio::sync::oneshot::channel();
    // A thread of its own: one that waits for itself must not keep the test from ending.
    std::thread::spawn(move || {
        tx.abort();
        let _ = ended.send(());
    });
    let end = tokio::time::timeout(Duration::from_secs(10), end).await;
    end.expect("it does not wait for itself").expect("it does not panic");
    assert_eq!(read(&store.atlas, &t, "x").await, None);
}

/// Whoever holds a lock of the application while he works must not commit once another one may hold it.
pub(crate) async fn work_that_lost_its_locks_does_not_commit(store: TestStore) {
    let t = store.table(ConflictHandler::RetryOnWriteWrite).await;
    let clock = TestClock::new();
    let service: Arc<dyn LockClient> = Arc::new(LockService::with_clock(1, LockOptions::default(), clock.clone()));
    let lock = async |tx: &Transaction| {
        let request = LockRequest::new(vec![LockDescriptor::advisory("the one")], Duration::from_secs(5));
        let held = HeldLocks::acquire(service.clone(), tx.start_ts(), request).await.expect("nobody holds it");
        tx.require_locks(Arc::new(held)).expect("the transaction is open");
    };
    let tx = store.begin().await;
    put(&tx, &t, "x", "1").await;
    lock(&tx).await;
    commit(tx).await;
    for writes in [true, false] {
        let tx = store.begin().await;
        if writes {
            put(&tx, &t, "x", "2").await;
        }
        lock(&tx).await;
        clock.jump(service.lease());
        let error = tx.commit().await.expect_err("another one may hold the lock");
        assert!(matches!(error, Error::LocksLost { .. }) && error.is_retriable(), "{error}");
    }
    assert_eq!(read(&store.atlas, &t, "x").await.as_deref(), Some("1"));
}

pub(crate) async fn work_with_locks_is_done_by_one_at_a_time(store: TestStore) {
    let t = store.table(ConflictHandler::IgnoreAll).await;
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (atlas, t) = (store.atlas.clone(), t.clone());
            spawn(move || async move {
                for _ in 0..5 {
                    // No handler keeps this from losing updates, only the lock.
                    let raised = atlas.run_with_locks(RunOptions::default(), &["the one"], async |tx| {
                        let found = tx.get(&t, &cell("count")).await?.as_ref().map_or(0, number);
                        tx.put(&t, cell("count"), (found + 1).to_string()).await
                    });
                    raised.await.expect("the lock is granted");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("the task ends");
    }
    assert_eq!(read(&store.atlas, &t, "count").await.as_deref(), Some("20"));
}
