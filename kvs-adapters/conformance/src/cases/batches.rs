//! Atomic batches, and what a store says that has none.

use crate::TestStore;
use crate::support::*;
use atlas_kvs::{AtomicBatch, BatchGuard, BatchOp, Durability, KvsError, TableRef, Timestamp};
use std::time::Duration;

fn put_op(table: &TableRef, row: &str, number: u64, content: &str) -> BatchOp {
    BatchOp::Put { table: table.clone(), cell: cell(row, "c"), ts: ts(number), value: bytes(content) }
}

fn set_op(table: &TableRef, row: &str, content: &str) -> BatchOp {
    BatchOp::Set { table: table.clone(), cell: cell(row, "c"), value: bytes(content) }
}

fn remove_op(table: &TableRef, row: &str) -> BatchOp {
    BatchOp::Remove { table: table.clone(), cell: cell(row, "c") }
}

/// A store without atomic batches says `Unsupported` and applies nothing. Every case below begins here: it returns
/// false after it has seen this promise kept.
async fn batches_or_unsupported(store: &TestStore) -> bool {
    if store.capabilities().atomic_batch {
        return true;
    }
    let (t, a) = (versioned(store, "u.t").await, atomic(store, "u.a").await);
    for durability in [Durability::Synced, Durability::Relaxed] {
        let batch = AtomicBatch::new(vec![put_op(&t, "r", 1, "v"), set_op(&a, "r", "v")]);
        assert_fails!(store.apply(batch, durability).await, KvsError::Unsupported { .. });
    }
    assert_eq!(stored(store, &t).await, [""; 0]);
    assert_eq!(stored_atomic(store, &a).await, [""; 0]);
    false
}

/// A batch writes into several tables of both kinds, whatever its durability; readers see it when it returned.
pub async fn batch_writes_several_tables(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let (t, u, a) = (versioned(store, "t").await, versioned(store, "u").await, atomic(store, "a").await);
    for (row, durability) in [("1", Durability::Synced), ("2", Durability::Relaxed)] {
        let ops =
            vec![put_op(&t, row, 3, "t3"), put_op(&t, row, 5, "t5"), put_op(&u, row, 4, "u4"), set_op(&a, row, "a")];
        store.apply(AtomicBatch::new(ops), durability).await.expect("a batch can be applied");
    }
    assert_eq!(stored(store, &t).await, ["1/c@3=t3,5=t5", "2/c@3=t3,5=t5"]);
    assert_eq!(stored(store, &u).await, ["1/c@4=u4", "2/c@4=u4"]);
    assert_eq!(stored_atomic(store, &a).await, ["1/c=a", "2/c=a"]);
}

/// `Set` replaces what stands without comparing, and compare-and-set sees it.
pub async fn set_replaces_what_stands(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let a = atomic(store, "a").await;
    for content in ["one", "two", "", "two"] {
        apply(store, vec![set_op(&a, "r", content)]).await.expect("a batch can be applied");
        assert_eq!(stored_atomic(store, &a).await, [format!("r/c={content}")]);
    }
    let answer = store.check_and_set(&a, &cell("r", "c"), Some(bytes("two")), None).await.expect("can be removed");
    assert_eq!(answer, atlas_kvs::CheckAndSet::Applied);
}

/// The writes of a batch are applied in order: of several `Set`s of one cell the last one counts.
pub async fn last_set_of_a_cell_counts(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let a = atomic(store, "a").await;
    let ops = vec![set_op(&a, "r", "one"), set_op(&a, "s", "other"), set_op(&a, "r", "two"), set_op(&a, "r", "three")];
    apply(store, ops).await.expect("a batch can be applied");
    assert_eq!(stored_atomic(store, &a).await, ["r/c=three", "s/c=other"]);
}

/// `Remove` removes what stands without comparing, in the order of the batch, and what is not there is fine.
pub async fn remove_removes_what_stands(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let a = atomic(store, "a").await;
    apply(store, vec![set_op(&a, "r", "one"), set_op(&a, "s", "other")]).await.expect("a batch can be applied");
    apply(store, vec![remove_op(&a, "r"), remove_op(&a, "absent")]).await.expect("a batch can be applied");
    assert_eq!(stored_atomic(store, &a).await, ["s/c=other"]);
    let ops = vec![set_op(&a, "r", "two"), remove_op(&a, "r"), remove_op(&a, "s"), set_op(&a, "s", "back")];
    apply(store, ops).await.expect("a batch can be applied");
    assert_eq!(stored_atomic(store, &a).await, ["s/c=back"]);
    let answer = store.put_unless_exists(&a, &cell("r", "c"), bytes("new")).await.expect("it can be written");
    assert_eq!(answer, atlas_kvs::PutUnlessExists::Written);
}

/// The same put twice in a batch is fine, and so is one that is stored already.
pub async fn same_put_twice_is_fine(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let t = versioned(store, "t").await;
    for _ in 0..2 {
        let ops = vec![put_op(&t, "r", 1, "v"), put_op(&t, "r", 1, "v")];
        apply(store, ops).await.expect("the same value may be put again");
    }
    assert_eq!(stored(store, &t).await, ["r/c@1=v"]);
}

/// A batch with one write that can't be made applies nothing, wherever in the batch it stands.
pub async fn batch_with_one_wrong_write_applies_nothing(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    put(store, &t, &[("standing", "c", 1, "v")]).await;
    apply(store, vec![set_op(&a, "standing", "v")]).await.expect("a batch can be applied");
    let nowhere = table("nowhere");
    let long = vec![b'n'; store.capabilities().limits.row_len_max.min(1 << 24) + 1];
    let long = String::from_utf8(long).expect("the name is text");
    let mut wrong = vec![
        put_op(&nowhere, "r", 1, "v"),
        set_op(&nowhere, "r", "v"),
        put_op(&a, "r", 1, "v"),
        set_op(&t, "r", "v"),
        remove_op(&t, "r"),
        remove_op(&nowhere, "r"),
        put_op(&t, "r", Timestamp::SENTINEL.get(), ""),
        put_op(&t, "r", Timestamp::MAX.get(), "v"),
    ];
    if long.len() == store.capabilities().limits.row_len_max + 1 {
        wrong.extend([put_op(&t, &long, 1, "v"), set_op(&a, &long, "v")]);
    }
    if store.capabilities().detects_conflicting_values {
        wrong.push(put_op(&t, "standing", 1, "other"));
    }
    for op in wrong {
        for place in 0..3 {
            let mut ops = vec![put_op(&t, "new", 1, "v"), set_op(&a, "standing", "new")];
            ops.insert(place, op.clone());
            let error = apply(store, ops).await.expect_err("one write can't be made");
            let fits = match &op {
                op if *op.table() == nowhere => matches!(error, KvsError::NoSuchTable(_)),
                BatchOp::Put { table, .. } if *table == a => matches!(error, KvsError::WrongTableKind { .. }),
                BatchOp::Set { table, .. } | BatchOp::Remove { table, .. } if *table == t => {
                    matches!(error, KvsError::WrongTableKind { .. })
                }
                BatchOp::Put { ts, .. } if !ts.is_data() => matches!(error, KvsError::InvalidTimestamp(_)),
                BatchOp::Put { cell, .. } if cell.row == "standing" => {
                    matches!(error, KvsError::ConflictingValue { .. })
                }
                _ => matches!(error, KvsError::TooLarge { .. }),
            };
            assert!(fits, "{error:?}");
            assert_eq!(stored(store, &t).await, ["standing/c@1=v"]);
            assert_eq!(stored_atomic(store, &a).await, ["standing/c=v"]);
        }
    }
}

/// Two values for one place in one batch are refused, and nothing is applied, if the store says that it can tell.
pub async fn two_values_for_one_place_conflict(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let t = versioned(store, "t").await;
    let applied =
        apply(store, vec![put_op(&t, "r", 1, "one"), put_op(&t, "s", 1, "v"), put_op(&t, "r", 1, "two")]).await;
    if store.capabilities().detects_conflicting_values {
        assert_fails!(applied, KvsError::ConflictingValue { .. });
        assert_eq!(stored(store, &t).await, [""; 0]);
    }
}

/// Readers see all of a batch or nothing: who has seen one of its writes sees the others, in whichever order he looks.
pub async fn readers_see_all_of_a_batch_or_nothing(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let (t, u, a) = (versioned(store, "t").await, versioned(store, "u").await, atomic(store, "a").await);
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let readers = orders.map(|order| {
        let shared = (store.share(), t.clone(), u.clone(), a.clone());
        move |_, mut seen: Seen| {
            let (store, t, u, a) = shared.clone();
            async move {
                for place in order {
                    seen = seen.then(match place {
                        0 => newest_version(&store, &t, "first").await,
                        1 => standing_number(&store, &a, "middle").await,
                        _ => newest_version(&store, &u, "last").await,
                    });
                }
                seen
            }
        }
    });
    let apply_batch = async |number: u64| {
        let text = number.to_string();
        let ops =
            vec![put_op(&t, "first", number, &text), set_op(&a, "middle", &text), put_op(&u, "last", number, &text)];
        apply(store, ops).await.expect("a batch can be applied");
    };
    watched(store, 100, apply_batch, readers.into()).await;
}

/// A put of several cells and tables is atomic too where batches are: who sees its last cell sees its first.
pub async fn readers_see_all_of_a_put_or_nothing(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let (t, u) = (versioned(store, "t").await, versioned(store, "u").await);
    let places = [(t, "first"), (u, "last")];
    let readers = [[0, 1], [1, 0]].map(|order| {
        let shared = (store.share(), places.clone());
        move |_, mut seen: Seen| {
            let (store, places) = shared.clone();
            async move {
                for place in order {
                    let (table, row) = &places[place];
                    seen = seen.then(newest_version(&store, table, row).await);
                }
                seen
            }
        }
    });
    let put_both = async |number: u64| {
        let of_one =
            |(table, row): &(TableRef, &str)| (table.clone(), vec![(cell(row, "c"), bytes(number.to_string()))]);
        store.put(places.iter().map(of_one).collect(), ts(number)).await.expect("cells can be put");
    };
    watched(store, 100, put_both, readers.into()).await;
}

/// A batch may hold thousands of writes.
pub async fn batches_of_many_cells_are_complete(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    let name = |number: u64| format!("{number:04}");
    let puts = (0..2_000).map(|number| put_op(&t, &name(number), number + 1, "v"));
    let sets = (0..2_000).map(|number| set_op(&a, &name(number), "v"));
    apply(store, puts.chain(sets).collect()).await.expect("a batch can be applied");
    assert_eq!(stored(store, &t).await.len(), 2_000);
    assert_eq!(stored_atomic(store, &a).await.len(), 2_000);
}

async fn newest_version(store: &impl Store, table: &TableRef, row: &str) -> u64 {
    let seen = store.get(table, &bounds(&[(row, "c", Timestamp::MAX.get())])).await.expect("cells can be read");
    seen[0].as_ref().map_or(0, |value| value.ts.get())
}

async fn standing_number(store: &impl Store, table: &TableRef, row: &str) -> u64 {
    let seen = store.get_atomic(table, &[cell(row, "c")]).await.expect("cells can be read");
    let text = seen[0].as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
    text.map_or(0, |text| text.parse().expect("the value is a number"))
}

fn guard(table: &TableRef, expected: &str) -> Option<BatchGuard> {
    Some(BatchGuard { table: table.clone(), cell: cell("fence", "c"), expected: bytes(expected) })
}

/// A batch whose guard holds is applied; one whose guard holds something else, or nothing, is not, in no part of it.
pub async fn guard_decides_over_the_whole_batch(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    let batch = |number: u64| AtomicBatch::new(vec![put_op(&t, "r", number, "v"), set_op(&a, "r", "v")]);
    for durability in [Durability::Synced, Durability::Relaxed] {
        let refused = store.apply(batch(1).guarded(guard(&a, "")), durability).await;
        assert_fails!(refused, KvsError::GuardFailed { .. });
    }
    apply(store, vec![set_op(&a, "fence", "1")]).await.expect("a batch can be applied");
    for (number, durability) in [(2, Durability::Synced), (3, Durability::Relaxed)] {
        let refused = store.apply(batch(1).guarded(guard(&a, "2")), durability).await;
        assert_fails!(refused, KvsError::GuardFailed { .. });
        store.apply(batch(number).guarded(guard(&a, "1")), durability).await.expect("the guard holds");
    }
    assert_eq!(stored(store, &t).await, ["r/c@2=v,3=v"]);
    assert_eq!(stored_atomic(store, &a).await, ["fence/c=1", "r/c=v"]);

    let nothing_to_write = |expected| AtomicBatch::default().guarded(guard(&a, expected));
    store.apply(nothing_to_write("1"), Durability::Synced).await.expect("the guard holds");
    assert_fails!(store.apply(nothing_to_write("2"), Durability::Synced).await, KvsError::GuardFailed { .. });
}

/// A guard on a table that is missing, or of the wrong kind, is an error, and nothing is applied.
pub async fn guard_of_a_missing_table_applies_nothing(store: &mut TestStore) {
    if !batches_or_unsupported(store).await {
        return;
    }
    let t = versioned(store, "t").await;
    let batch = |guard| AtomicBatch::new(vec![put_op(&t, "r", 1, "v")]).guarded(guard);
    let refused = store.apply(batch(guard(&table("nowhere"), "1")), Durability::Synced).await;
    assert_fails!(refused, KvsError::NoSuchTable(_));
    let refused = store.apply(batch(guard(&t, "1")), Durability::Synced).await;
    assert_fails!(refused, KvsError::WrongTableKind { .. });
    assert_eq!(stored(store, &t).await, [""; 0]);
}

/// From the answer to a change of the guard's cell on, no batch that expects what it held before is applied: what a
/// reader sees then is all there will ever be of it.
pub async fn no_batch_is_applied_behind_a_changed_guard(store: &mut TestStore) {
    const WRITERS: u64 = 4;
    if !batches_or_unsupported(store).await {
        return;
    }
    let (t, a) = (versioned(store, "t").await, atomic(store, "a").await);
    for round in 0..10_u64 {
        let (old, new) = (format!("{round}"), format!("{}", round + 1));
        apply(store, vec![set_op(&a, "fence", &old)]).await.expect("a batch can be applied");
        let writers = (0..WRITERS).map(|writer| {
            let (store, t, guard) = (store.share(), t.clone(), guard(&a, &old));
            tokio::spawn(async move {
                for number in 1..=100_000_u64 {
                    let row = format!("{round}/{writer}/{number:06}");
                    let batch = AtomicBatch::new(vec![put_op(&t, &row, 1, "v")]).guarded(guard.clone());
                    match store.apply(batch, Durability::Synced).await {
                        // A scan of what fast stores apply in no time would take for ever.
                        Ok(()) => tokio::time::sleep(Duration::from_micros(500)).await,
                        Err(KvsError::GuardFailed { .. }) => return number - 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                panic!("the guard was changed long ago")
            })
        });
        let writers: Vec<_> = writers.collect();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let changed = store.check_and_set(&a, &cell("fence", "c"), Some(bytes(&old)), Some(bytes(&new))).await;
        assert_eq!(changed.expect("the fence can be changed"), atlas_kvs::CheckAndSet::Applied);
        let seen = stored(store, &t).await.len();
        let mut applied = 0;
        for writer in writers {
            applied += writer.await.expect("writers end");
        }
        assert_eq!(stored(store, &t).await.len(), seen, "nothing came behind the change");
        let before = stored(store, &t).await.iter().filter(|row| row.starts_with(&format!("{round}/"))).count();
        assert_eq!(before as u64, applied, "what was acknowledged is there, and nothing else");
    }
}
