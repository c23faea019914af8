//! Which of two writes wins: always the later one, and only where they meet.

mod common;

use atlas_kvs::{Cell, CellBound, KeyValueService, KvsError, RowRange, Timestamp, VersionScan};
use bytes::Bytes;
use common::{Namespace, cell, cql_table, delete, everything, newest, put, scan, session, version, versioned};
use futures::TryStreamExt;
use std::time::{SystemTime, UNIX_EPOCH};

fn micros() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    i64::try_from(now.as_micros()).expect("it is before the year 290000")
}

/// Writes a version as another process would whose clock shows `at`.
async fn put_at(session: &scylla::client::session::Session, cells: &str, row: &str, ts: i64, value: &str, at: i64) {
    let sql = format!("INSERT INTO {cells} (r, c, ts, len, head, rest) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?");
    let len = i32::try_from(value.len()).expect("the value is short");
    let values = (row.as_bytes(), b"c", ts, len, value.as_bytes(), b"", at);
    session.query_unpaged(sql, values).await.expect("a row can be written");
}

#[tokio::test]
async fn late_put_does_not_bring_a_deleted_version_back() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    let session = session(&namespace.config).await;
    let cells = cql_table(&session, &store, "v_").await;
    // It was there, and a replica gets it again, from a hint say.
    put(&store, &t, "there", 5, "v").await;
    let before = micros();
    delete(&store, &t, "there", 5).await.expect("a version can be deleted");
    put_at(&session, &cells, "there", 5, "v", before).await;
    assert_eq!(newest(&store, &t, "there").await, None);
    // It was under way, and nobody had it yet.
    let before = micros();
    delete(&store, &t, "under way", 5).await.expect("a version can be deleted");
    put_at(&session, &cells, "under way", 5, "v", before).await;
    assert_eq!(newest(&store, &t, "under way").await, None);
    // Its neighbours are of no concern, however old.
    put_at(&session, &cells, "there", 4, "older", before - 1_000_000).await;
    put_at(&session, &cells, "there", 6, "newer", before - 1_000_000).await;
    assert_eq!(newest(&store, &t, "there").await, Some((6, Bytes::from_static(b"newer"))));
    delete(&store, &t, "there", 6).await.expect("a version can be deleted");
    assert_eq!(newest(&store, &t, "there").await, Some((4, Bytes::from_static(b"older"))));
}

#[tokio::test]
async fn deletion_wins_over_a_writer_whose_clock_runs_ahead() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    let session = session(&namespace.config).await;
    let cells = cql_table(&session, &store, "v_").await;
    let ahead = micros() + 3_600_000_000;
    for ts in [0, 5] {
        put_at(&session, &cells, "r", ts, if ts == 0 { "" } else { "v" }, ahead).await;
    }
    delete(&store, &t, "r", 5).await.expect("a version can be deleted");
    assert_eq!(newest(&store, &t, "r").await, Some((0, Bytes::new())));
    delete(&store, &t, "r", 0).await.expect("a sentinel can be deleted");
    assert_eq!(newest(&store, &t, "r").await, None);
    // And a later put wins over the deletion.
    put(&store, &t, "r", 5, "again").await;
    assert_eq!(newest(&store, &t, "r").await, Some((5, Bytes::from_static(b"again"))));
    store.add_sentinels(&t, &[cell("r")]).await.expect("a sentinel can be added");
    let all = VersionScan::new(RowRange::all(), Timestamp::MAX);
    let listed: Vec<_> = store.scan_versions(&t, all).try_collect().await.expect("can be listed");
    assert_eq!(listed[0].versions.iter().map(|version| version.ts.get()).collect::<Vec<_>>(), [0, 5]);
}

#[tokio::test]
async fn a_sentinel_is_there_although_it_was_removed_by_a_clock_that_ran_ahead() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    let session = session(&namespace.config).await;
    let cells = cql_table(&session, &store, "v_").await;
    let remove = async |row: &str, ahead: i64| {
        let sql = format!("DELETE FROM {cells} USING TIMESTAMP ? WHERE r = ? AND c = ? AND ts = 0");
        session.query_unpaged(sql, (micros() + ahead, row.as_bytes(), b"c")).await.expect("a row can be removed");
    };
    for (row, ahead) in [("by nothing", 0), ("by seconds", 7_000_000), ("by minutes", 600_000_000)] {
        put(&store, &t, row, 5, "v").await;
        store.add_sentinels(&t, &[cell(row)]).await.expect("sentinels can be added");
        remove(row, ahead).await;
    }
    let all = [cell("by minutes"), cell("by nothing"), cell("by seconds")];
    store.add_sentinels(&t, &all).await.expect("sentinels can be added");
    for cell in &all {
        let row = std::str::from_utf8(&cell.row).expect("it is text");
        let bound = [CellBound::new(cell.clone(), Timestamp::FIRST)];
        let found = store.get(&t, &bound).await.expect("it can be read");
        assert!(found[0].is_some(), "{row}");
    }
    // Further than clocks differ: somebody should have a look at them.
    remove("by nothing", 3 * 24 * 3_600_000_000).await;
    let error = store.add_sentinels(&t, &[cell("by nothing")]).await.expect_err("nothing would be there");
    assert!(matches!(error, KvsError::Backend { .. }), "{error}");
    assert!(error.to_string().contains("clock"), "{error}");
}

#[tokio::test]
async fn what_was_put_again_is_deleted_again() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let other = namespace.open().await;
    let t = versioned(&store, "t").await;
    for round in 0..20 {
        let (one, two) = if round % 2 == 0 { (&store, &other) } else { (&other, &store) };
        put(one, &t, "r", 5, &format!("{round}")).await;
        assert_eq!(newest(two, &t, "r").await, Some((5, Bytes::from(format!("{round}")))));
        assert_eq!(scan(two, &t, everything()).await.len(), 1);
        delete(two, &t, "r", 5).await.expect("a version can be deleted");
        assert_eq!(newest(one, &t, "r").await, None);
        assert_eq!(scan(one, &t, everything()).await.len(), 0);
    }
}

#[tokio::test]
async fn values_up_to_the_limit_are_kept_and_longer_ones_refused() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    let t = versioned(&store, "t").await;
    let a = common::atomic(&store, "a").await;
    let limits = store.capabilities().limits;
    let value = |len: usize| Bytes::from((0..len).map(|place| (place * 31 % 251) as u8).collect::<Vec<_>>());
    // The longest names, of the byte that takes most room in the index.
    let long = Cell::new(vec![0; limits.row_len_max], vec![0; limits.column_len_max]);
    for len in [0, 1, 15, 16, 17, 1_000, limits.value_len_max] {
        for cell in [cell("short"), long.clone()] {
            let put =
                store.put(vec![(t.clone(), vec![(cell.clone(), value(len))])], Timestamp::saturating(len as u64 + 1));
            put.await.expect("the value is within the limit");
            let seen = store.get(&t, &[atlas_kvs::CellBound::new(cell.clone(), Timestamp::MAX)]).await;
            let seen = seen.expect("can be read").remove(0).expect("it was put");
            assert!(seen.bytes == value(len), "{len} bytes");
        }
    }
    let set = store.check_and_set(&a, &long, None, Some(value(limits.value_len_max))).await;
    assert_eq!(set.expect("the value is within the limit"), atlas_kvs::CheckAndSet::Applied);
    let seen = store.get_atomic(&a, std::slice::from_ref(&long)).await.expect("can be read").remove(0);
    assert!(seen.is_some_and(|seen| seen == value(limits.value_len_max)));
    assert_eq!(scan(&store, &t, everything()).await.len(), 2);
    let long = vec![version("r", 1, value(limits.value_len_max + 1))];
    assert!(matches!(store.put_versions(&t, long).await, Err(KvsError::TooLarge { .. })));
}
