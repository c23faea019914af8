//! Writing into versioned tables: `put`, `put_versions`, `add_sentinels`.

use crate::TestStore;
use crate::support::*;
use atlas_kvs::{CellBound, KvsError, Timestamp};

/// One put writes cells of several tables at one timestamp.
pub async fn put_writes_several_tables(store: &mut TestStore) {
    let (t, u) = (versioned(store, "t").await, versioned(store, "u").await);
    let puts = vec![
        (t.clone(), vec![(cell("r", "c"), bytes("tc")), (cell("r", "d"), bytes("td"))]),
        (u.clone(), vec![(cell("r", "c"), bytes("uc"))]),
        (t.clone(), vec![(cell("a", "a"), bytes("ta"))]),
    ];
    store.put(puts, ts(4)).await.expect("cells can be put");
    assert_eq!(stored(store, &t).await, ["a/a@4=ta", "r/c@4=tc", "r/d@4=td"]);
    assert_eq!(stored(store, &u).await, ["r/c@4=uc"]);
}

/// `put_versions` writes each version at its own timestamp, several of one cell too, in any order.
pub async fn put_versions_writes_each_at_its_own_timestamp(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("r", "c", 9, "nine"), ("a", "a", 4, "four"), ("r", "c", 2, "two"), ("r", "c", 5, "")]).await;
    assert_eq!(stored(store, &t).await, ["a/a@4=four", "r/c@2=two,5=,9=nine"]);
}

/// Writing the same value twice is fine, in two calls or in one.
pub async fn same_value_twice_is_fine(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let place = || (cell("r", "c"), bytes("v"));
    for _ in 0..3 {
        store.put(vec![(t.clone(), vec![place(), place()])], ts(5)).await.expect("the same value may be put again");
        put(store, &t, &[("r", "c", 5, "v"), ("r", "c", 5, "v")]).await;
    }
    assert_eq!(stored(store, &t).await, ["r/c@5=v"]);
}

/// Another value at an occupied place is refused and not written, if the store says that it can tell; one of the two
/// values stands in any case.
pub async fn conflicting_value_is_refused_where_promised(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let detects = store.capabilities().detects_conflicting_values;
    put(store, &t, &[("r", "c", 5, "first"), ("r", "c", 4, "older")]).await;
    for other in ["other", "", "firs", "first\0"] {
        let put = store.put(vec![(t.clone(), vec![(cell("r", "c"), bytes(other))])], ts(5)).await;
        let put_versions = store.put_versions(&t, vec![(cell("r", "c"), value(5, other))]).await;
        if detects {
            let what = KvsError::ConflictingValue { table: t.clone(), cell: cell("r", "c"), ts: ts(5) }.to_string();
            assert_eq!(put.expect_err("the place is occupied").to_string(), what);
            assert_eq!(put_versions.expect_err("the place is occupied").to_string(), what);
            assert_eq!(get(store, &t, &[("r", "c", 9)]).await, ["5=first"]);
        } else {
            let seen = get(store, &t, &[("r", "c", 9)]).await;
            assert!(seen == ["5=first"] || seen == [format!("5={}", other.as_bytes().escape_ascii())], "{seen:?}");
        }
    }
    assert_eq!(get(store, &t, &[("r", "c", 5)]).await, ["4=older"], "other versions are of no concern");
}

/// Two values for one place in one call are refused in the same way.
pub async fn two_values_for_one_place_conflict(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let versions = vec![(cell("r", "c"), value(5, "one")), (cell("r", "c"), value(5, "two"))];
    let put = store.put_versions(&t, versions).await;
    if store.capabilities().detects_conflicting_values {
        assert_fails!(put, KvsError::ConflictingValue { .. });
    }
    if store.capabilities().detects_conflicting_values && store.capabilities().atomic_batch {
        assert_eq!(stored(store, &t).await, [""; 0]);
    } else {
        let seen = get(store, &t, &[("r", "c", 9)]).await;
        assert!(["none", "5=one", "5=two"].contains(&&*seen[0]), "{seen:?}");
    }
}

/// A put with a conflicting value writes nothing at all, if the store says that puts are atomic.
pub async fn conflicting_put_is_atomic_where_promised(store: &mut TestStore) {
    let (t, u) = (versioned(store, "t").await, versioned(store, "u").await);
    put(store, &u, &[("m", "c", 5, "standing")]).await;
    let cells = |rows: [&str; 3]| rows.map(|row| (cell(row, "c"), bytes("new"))).to_vec();
    let put = store.put(vec![(t.clone(), cells(["a", "m", "z"])), (u.clone(), cells(["a", "m", "z"]))], ts(5)).await;
    if store.capabilities().detects_conflicting_values {
        assert_fails!(put, KvsError::ConflictingValue { .. });
        assert_eq!(get(store, &u, &[("m", "c", 9)]).await, ["5=standing"]);
        if store.capabilities().atomic_batch {
            assert_eq!(stored(store, &t).await, [""; 0]);
            assert_eq!(stored(store, &u).await, ["m/c@5=standing"]);
        }
    }
}

/// Data can't be written at the place of the sentinel nor at the end of time; nothing of such a call is written.
pub async fn timestamps_that_data_cannot_have_are_refused(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    for bad in [Timestamp::SENTINEL, Timestamp::MAX] {
        let put = store.put(vec![(t.clone(), vec![(cell("r", "c"), bytes("v"))])], bad).await;
        assert_fails!(put, KvsError::InvalidTimestamp(number) if number == bad.get());
        let versions = vec![(cell("a", "a"), value(1, "v")), (cell("r", "c"), value(bad.get(), ""))];
        assert_fails!(store.put_versions(&t, versions).await, KvsError::InvalidTimestamp(_));
    }
    assert_eq!(stored(store, &t).await, [""; 0]);
    put(store, &t, &[("r", "c", 1, "first"), ("r", "c", Timestamp::MAX.get() - 1, "last")]).await;
}

/// A put into several tables of which one does not exist, or is atomic, writes into none of them.
pub async fn put_with_one_wrong_table_writes_nothing(store: &mut TestStore) {
    let (t, u) = (versioned(store, "t").await, versioned(store, "u").await);
    let a = atomic(store, "a").await;
    let cells = || vec![(cell("r", "c"), bytes("v"))];
    let put = |wrong| vec![(t.clone(), cells()), (wrong, cells()), (u.clone(), cells())];
    assert_fails!(store.put(put(table("nowhere")), ts(1)).await, KvsError::NoSuchTable(_));
    assert_fails!(store.put(put(a), ts(1)).await, KvsError::WrongTableKind { .. });
    assert_eq!(stored(store, &t).await, [""; 0]);
    assert_eq!(stored(store, &u).await, [""; 0]);
}

/// A put of many cells writes every one of them.
pub async fn put_of_many_cells_is_complete(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let cells = (0..3_000).map(|number| (cell(format!("{:02}", number % 60), format!("{number:04}")), bytes("v")));
    store.put(vec![(t.clone(), cells.collect())], ts(3)).await.expect("cells can be put");
    assert_eq!(scan(store, &t, everything()).await.len(), 3_000);
}

/// Each cell gets a sentinel; other versions stay.
pub async fn sentinels_leave_other_versions(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    put(store, &t, &[("r", "c", 1, "one"), ("r", "c", 7, "seven"), ("r", "d", 1, "neighbour")]).await;
    store.add_sentinels(&t, &[cell("r", "c"), cell("new", "new")]).await.expect("sentinels can be added");
    assert_eq!(stored(store, &t).await, ["new/new@0=", "r/c@0=,1=one,7=seven", "r/d@1=neighbour"]);
}

/// Sentinels may be added again, and twice in one call.
pub async fn sentinels_are_idempotent(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    for _ in 0..3 {
        store.add_sentinels(&t, &[cell("r", "c"), cell("r", "c")]).await.expect("sentinels can be added");
    }
    assert_eq!(stored(store, &t).await, ["r/c@0="]);
}

/// A sentinel that was deleted can be added again.
pub async fn deleted_sentinel_can_be_added_again(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    for _ in 0..3 {
        store.add_sentinels(&t, &[cell("r", "c")]).await.expect("sentinels can be added");
        assert_eq!(stored(store, &t).await, ["r/c@0="]);
        let sentinel = atlas_kvs::CellTimestamps { cell: cell("r", "c"), timestamps: vec![Timestamp::SENTINEL] };
        store.delete_versions(&t, &[sentinel]).await.expect("versions can be deleted");
        assert_eq!(stored(store, &t).await, [""; 0]);
    }
}

/// A version that was deleted can be written again, with the same value or another.
pub async fn deleted_version_can_be_written_again(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    for content in ["one", "one", "two"] {
        put(store, &t, &[("r", "c", 5, content)]).await;
        assert_eq!(stored(store, &t).await, [format!("r/c@5={content}")]);
        let version = atlas_kvs::CellTimestamps { cell: cell("r", "c"), timestamps: vec![ts(5)] };
        store.delete_versions(&t, &[version]).await.expect("versions can be deleted");
    }
}

/// Concurrent writers of different cells lose nothing, and each sees its own write as soon as it returned.
pub async fn concurrent_puts_are_all_kept(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let writers = together(8, |writer| {
        let (store, t) = (store.share(), t.clone());
        async move {
            for number in 1..=50 {
                let mine = cell("shared row", writer.to_string());
                let put = vec![(t.clone(), vec![(mine.clone(), bytes(number.to_string()))])];
                store.put(put, ts(number)).await.expect("cells can be put");
                let bound = CellBound::new(mine, Timestamp::MAX);
                let seen = store.get(&t, &[bound]).await.expect("cells can be read");
                assert_eq!(seen, [Some(value(number, number.to_string()))]);
            }
        }
    });
    writers.await;
    let items = stored(store, &t).await;
    assert_eq!(items.len(), 8);
    for item in items {
        assert_eq!(item.split(',').count(), 50, "{item}");
    }
}

/// Of concurrent writers of different values to the same places exactly one succeeds, if the store says that it can
/// tell, and its values stand; where puts are atomic, all places of a put hold the values of one writer.
pub async fn concurrent_conflicting_puts_have_one_winner(store: &mut TestStore) {
    let t = versioned(store, "t").await;
    let rounds = 50 * haste(store) as u64;
    let cells: Vec<_> = (0..50).map(|number| cell("r", format!("{number:02}"))).collect();
    let outcomes = together(8, |writer| {
        let (store, t, content) = (store.share(), t.clone(), bytes(writer.to_string()));
        let puts: Vec<_> = cells.iter().map(|cell| (cell.clone(), content.clone())).collect();
        async move {
            let mut outcomes = Vec::new();
            for number in 1..=rounds {
                outcomes.push((content.clone(), store.put(vec![(t.clone(), puts.clone())], ts(number)).await));
            }
            outcomes
        }
    });
    let outcomes = outcomes.await;
    let capabilities = store.capabilities();
    for (round, number) in (1..=rounds).enumerate() {
        let asked: Vec<_> = cells.iter().map(|cell| CellBound::new(cell.clone(), ts(number + 1))).collect();
        let standing: Vec<_> = store.get(&t, &asked).await.expect("cells can be read").into_iter().flatten().collect();
        assert!(standing.len() == cells.len() && standing.iter().all(|value| value.ts.get() == number));
        if capabilities.atomic_batch {
            assert!(standing.iter().all(|value| value.bytes == standing[0].bytes), "round {number}: {standing:?}");
        }
        for (content, outcome) in outcomes.iter().map(|of_one| &of_one[round]) {
            match outcome {
                Ok(()) if capabilities.detects_conflicting_values => {
                    assert!(standing.iter().all(|value| value.bytes == content), "round {number}: {standing:?}");
                }
                Ok(()) => {}
                other => assert_fails!(other, KvsError::ConflictingValue { .. }),
            }
        }
    }
}
