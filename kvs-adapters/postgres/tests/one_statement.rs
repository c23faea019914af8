//! Batches that are one statement: they do and tell what the same ones do as several.

mod common;

use atlas_kvs::{
    AtomicBatch, BatchGuard, BatchOp, Cell, CellBound, Durability, KeyValueService, KvsError, TableKind, TableRef,
    Timestamp,
};
use atlas_kvs_postgres::{PostgresConfig, PostgresStore};
use bytes::Bytes;
use common::server::OwnServer;
use common::{Disturbed, Namespace, PATIENCE, client};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So often a batch of the same tables is sent as several statements, before it is one.
const SEVERAL: u64 = 2;
const TIMES: u64 = SEVERAL + 3;

fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

fn cell(row: &str) -> Cell {
    Cell::copy_from(row, "c")
}

fn put(name: &str, row: &str, ts: u64, value: &'static str) -> BatchOp {
    BatchOp::Put { table: table(name), cell: cell(row), ts: Timestamp::saturating(ts), value: value.into() }
}

fn set(row: &str, value: &'static str) -> BatchOp {
    BatchOp::Set { table: table("a"), cell: cell(row), value: value.into() }
}

fn fence(expected: &'static str) -> Option<BatchGuard> {
    Some(BatchGuard { table: table("f"), cell: cell("fence"), expected: expected.into() })
}

/// A store with the versioned tables `t` and `u`, the atomic table `a`, and `f`, whose fence holds 1.
async fn filled(store: &PostgresStore) {
    let kinds = [("t", TableKind::Versioned), ("u", TableKind::Versioned), ("a", TableKind::Atomic)];
    for (name, kind) in kinds.into_iter().chain([("f", TableKind::Atomic)]) {
        store.create_table(&table(name), kind, Bytes::new()).await.expect("can be created");
    }
    let raised = BatchOp::Set { table: table("f"), cell: cell("fence"), value: "1".into() };
    apply(store, vec![raised], None).await.expect("can be set");
}

async fn apply(store: &PostgresStore, ops: Vec<BatchOp>, guard: Option<BatchGuard>) -> Result<(), KvsError> {
    store.apply(AtomicBatch::new(ops).guarded(guard), Durability::Synced).await
}

async fn newest(store: &PostgresStore, name: &str, row: &str) -> u64 {
    let seen = store.get(&table(name), &[CellBound::new(cell(row), Timestamp::MAX)]).await.expect("can be read");
    seen[0].as_ref().map_or(0, |value| value.ts.get())
}

async fn standing(store: &PostgresStore, row: &str) -> Option<Bytes> {
    store.get_atomic(&table("a"), &[cell(row)]).await.expect("can be read").remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_is_one_statement() {
    let server = OwnServer::new(&["log_statement = all"]);
    let store = PostgresStore::connect(server.config("n")).await.expect("the server is there");
    filled(&store).await;
    let mut before = server.log().len();
    for (durability, is_relaxed) in [(Durability::Synced, false), (Durability::Relaxed, true)] {
        for time in 1..=TIMES {
            let row = &format!("{time} {is_relaxed}");
            let ops = vec![put("t", row, time, "v"), put("u", row, time, "v"), set(row, "v")];
            let batch = AtomicBatch::new(ops).guarded(fence("1"));
            store.apply(batch, durability).await.expect("can be applied");
            // Sessions say what they do before they answer.
            let log = server.log().split_off(before);
            before += log.len();
            let executed = log.matches("execute s").count();
            assert!(time <= SEVERAL || !log.contains("ON CONFLICT"), "they are new: {log}");
            let is_one = executed == 1 && log.contains("WITH ") && !log.contains("BEGIN") && !log.contains("COMMIT");
            assert_eq!(is_one, time > SEVERAL, "{time}: {log}");
            assert_eq!(log.contains("synchronous_commit"), is_relaxed, "{time}: {log}");
        }
    }
}

#[tokio::test]
async fn all_of_it_or_nothing_is_applied_and_whose_fault_it_was_is_told() {
    let server = OwnServer::new(&["log_statement = all"]);
    let store = PostgresStore::connect(server.config("n")).await.expect("the server is there");
    filled(&store).await;
    for time in 1..=TIMES {
        let before = server.log().len();
        let row = &time.to_string();
        let ops = || vec![put("t", row, time, "v"), put("u", row, time, "v"), set(row, "v")];
        let nothing = async || {
            assert_eq!([newest(&store, "t", row).await, newest(&store, "u", row).await], [0, 0], "{time}");
            assert_eq!(standing(&store, row).await, None, "{time}");
        };
        let refused = apply(&store, ops(), fence("0")).await;
        assert!(matches!(refused, Err(KvsError::GuardFailed { .. })), "{time}: {refused:?}");
        nothing().await;
        let missing = apply(&store, [ops(), vec![put("nowhere", row, time, "v")]].concat(), fence("1")).await;
        assert!(
            matches!(&missing, Err(KvsError::NoSuchTable(name)) if *name == table("nowhere")),
            "{time}: {missing:?}"
        );
        nothing().await;
        let wrong = apply(&store, [ops(), vec![put("f", row, time, "v")]].concat(), fence("1")).await;
        assert!(matches!(&wrong, Err(KvsError::WrongTableKind { table: of, .. }) if *of == table("f")), "{wrong:?}");
        nothing().await;
        apply(&store, vec![put("u", "taken", time, "another")], None).await.expect("can be put");
        let conflict = apply(&store, [ops(), vec![put("u", "taken", time, "v")]].concat(), fence("1")).await;
        let place = (table("u"), cell("taken"), Timestamp::saturating(time));
        let is_told = |error: &KvsError| match error {
            KvsError::ConflictingValue { table, cell, ts } => (table.clone(), cell.clone(), *ts) == place,
            _ => false,
        };
        assert!(conflict.as_ref().is_err_and(is_told), "{time}: {conflict:?}");
        nothing().await;

        for _ in 0..3 {
            apply(&store, ops(), fence("1")).await.expect("and once more, which changes nothing");
        }
        apply(&store, vec![put("t", row, time, "v"), put("u", row, time, "v"), set(row, "w")], fence("1"))
            .await
            .expect("set");
        assert_eq!(standing(&store, row).await, Some("w".into()));
        assert_eq!([newest(&store, "t", row).await, newest(&store, "u", row).await], [time, time]);
        let removes = BatchOp::Remove { table: table("a"), cell: cell(row) };
        apply(&store, vec![put("t", row, time + 1, "v"), removes, set("next", "v")], fence("1"))
            .await
            .expect("applied");
        assert_eq!((standing(&store, row).await, standing(&store, "next").await), (None, Some("v".into())));
        assert_eq!(newest(&store, "t", row).await, time + 1);
        let log = server.log().split_off(before);
        let [one, several] = ["WITH ", "BEGIN"].map(|text| log.matches(text).count());
        // In the end each of them is refused in one statement first.
        assert!(time > 1 || several >= 4, "{several}: {log}");
        assert!(time < TIMES || one >= 4, "{one}: {log}");
    }
}

/// Many cells of one table are several arrays, and each is a part of the statement.
#[tokio::test]
async fn many_cells_are_applied_as_well() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    filled(&store).await;
    let rows: Vec<String> = (0..20_000).map(|row| format!("{row:05}")).collect();
    for time in 1..=TIMES {
        let ops = || rows.iter().map(|row| put("t", row, time, "v")).chain([set("fence", "v")]).collect::<Vec<_>>();
        let refused = apply(&store, ops(), fence("0")).await;
        assert!(matches!(refused, Err(KvsError::GuardFailed { .. })), "{time}: {refused:?}");
        assert_eq!(newest(&store, "t", "19999").await, time - 1);
        apply(&store, ops(), fence("1")).await.expect("can be applied");
        assert_eq!([newest(&store, "t", "00000").await, newest(&store, "t", "19999").await], [time; 2]);
    }
}

/// The fence itself may be raised by the batch that it guards.
#[tokio::test]
async fn a_batch_may_write_what_guards_it() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    filled(&store).await;
    for time in 1..=2 * TIMES {
        let (old, new) = if time % 2 == 1 { ("1", "2") } else { ("2", "1") };
        let raise = || {
            let set = BatchOp::Set { table: table("f"), cell: cell("fence"), value: new.into() };
            vec![put("t", "r", time, "v"), set]
        };
        apply(&store, raise(), fence(old)).await.expect("the guard holds");
        let refused = apply(&store, raise(), fence(old)).await;
        assert!(matches!(refused, Err(KvsError::GuardFailed { .. })), "{time}: {refused:?}");
        assert_eq!(newest(&store, "t", "r").await, time);
    }
}

/// What is too long for one statement is sent in several, and as whole.
#[tokio::test]
async fn long_batches_are_applied_as_well() {
    let namespace = Namespace::new();
    let store = namespace.open().await;
    filled(&store).await;
    let long = Bytes::from(vec![b'v'; 5 << 20]);
    for time in 1..=TIMES {
        let ops = ["t", "u"].map(|name| BatchOp::Put {
            table: table(name),
            cell: cell("r"),
            ts: Timestamp::saturating(time),
            value: long.clone(),
        });
        apply(&store, ops.to_vec(), fence("1")).await.expect("can be applied");
        assert_eq!([newest(&store, "t", "r").await, newest(&store, "u", "r").await], [time, time]);
        let refused = apply(&store, ops.to_vec(), fence("0")).await;
        assert!(matches!(refused, Err(KvsError::GuardFailed { .. })), "{refused:?}");
    }
}

/// A store that has sent batches for `t` and `u` as one statement.
async fn fixture(change: impl FnOnce(&mut PostgresConfig)) -> Disturbed {
    let fixture = Disturbed::new(change).await;
    filled(&fixture.store).await;
    for time in 1..=TIMES {
        put_both(&fixture, time).await.expect("can be applied");
    }
    fixture
}

fn put_both(fixture: &Disturbed, ts: u64) -> impl Future<Output = Result<(), KvsError>> + use<> {
    let store = Arc::clone(&fixture.store);
    async move { apply(&store, vec![put("t", "r", ts, "v"), put("u", "r", ts, "v")], fence("1")).await }
}

async fn stored(fixture: &Disturbed) -> [u64; 2] {
    [newest(&fixture.store, "t", "r").await, newest(&fixture.store, "u", "r").await]
}

/// Waits until a connection of the store runs one statement for all and is in such a state, and returns its process.
async fn backend_of_one(fixture: &Disturbed, condition: &str) -> i32 {
    fixture.backend(&format!("query LIKE 'WITH %' AND {condition}")).await
}

/// Before its end and in it: the caller can't tell these apart.
#[tokio::test(flavor = "multi_thread")]
async fn killed_in_its_middle_it_is_indeterminate() {
    let fixture = fixture(|_| {}).await;
    fixture.admin.batch_execute(&format!("BEGIN; LOCK TABLE {}", fixture.sql_table("v_u"))).await.expect("can lock");
    let waits = tokio::spawn(put_both(&fixture, TIMES + 1));
    fixture.terminate(backend_of_one(&fixture, "wait_event_type = 'Lock'").await).await;
    let error = waits.await.expect("no panic").expect_err("the connection was killed");
    assert!(error.is_indeterminate(), "{error:?}");
    fixture.admin.batch_execute("ROLLBACK").await.expect("can unlock");
    assert_eq!(stored(&fixture).await, [TIMES; 2]);

    fixture.slow_commit(&["v_u"]).await;
    let waits = tokio::spawn(put_both(&fixture, TIMES + 2));
    fixture.terminate(backend_of_one(&fixture, "wait_event = 'PgSleep'").await).await;
    let error = waits.await.expect("no panic").expect_err("the connection was killed");
    assert!(error.is_indeterminate(), "{error:?}");
    assert_eq!(stored(&fixture).await, [TIMES; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_is_unavailable_and_nothing_is_there() {
    let fixture = fixture(|config| config.statement_timeout = Duration::from_millis(1_500)).await;
    fixture.admin.batch_execute(&format!("BEGIN; LOCK TABLE {}", fixture.sql_table("v_u"))).await.expect("can lock");
    let error = put_both(&fixture, TIMES + 1).await.expect_err("the table is locked");
    assert!(matches!(error, KvsError::Unavailable { .. }), "{error:?}");
    fixture.admin.batch_execute("ROLLBACK").await.expect("can unlock");
    assert_eq!(stored(&fixture).await, [TIMES; 2]);
    put_both(&fixture, TIMES + 2).await.expect("the store goes on");
    assert_eq!(stored(&fixture).await, [TIMES + 2; 2]);
}

/// What the guard is compared with is what the row holds when it is free, in both forms of the statement.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_changes_while_it_is_waited_for_is_seen() {
    let fixture = fixture(|_| {}).await;
    let fences = fixture.sql_table("a_f");
    for (round, is_new) in [(1, true), (2, false)] {
        if !is_new {
            // From here on rows are looked for.
            put_both(&fixture, TIMES).await.expect("it is there already");
        }
        let ts = TIMES + round;
        fixture.admin.batch_execute(&format!("BEGIN; UPDATE {fences} SET val = val")).await.expect("can be changed");
        let waits = tokio::spawn(put_both(&fixture, ts));
        fixture
            .backend(&format!(
                "wait_event_type = 'Lock' AND {} query LIKE '%ON CONFLICT%'",
                if is_new { "NOT" } else { "" }
            ))
            .await;
        fixture.admin.batch_execute("COMMIT").await.expect("can be committed");
        waits.await.expect("no panic").expect("it holds what it held");
        assert_eq!(stored(&fixture).await, [ts; 2]);

        fixture.admin.batch_execute(&format!("BEGIN; UPDATE {fences} SET val = '2'")).await.expect("can be changed");
        let waits = tokio::spawn(put_both(&fixture, ts + 10));
        backend_of_one(&fixture, "wait_event_type = 'Lock'").await;
        fixture.admin.batch_execute("COMMIT").await.expect("can be committed");
        let refused = waits.await.expect("no panic");
        assert!(matches!(refused, Err(KvsError::GuardFailed { .. })), "{refused:?}");
        assert_eq!(stored(&fixture).await, [ts; 2]);
        fixture.admin.batch_execute(&format!("UPDATE {fences} SET val = '1'")).await.expect("can be changed");
    }
}

/// What a removing batch waits for it has to see: it is not one statement.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_removes_sees_what_it_has_waited_for() {
    let fixture = fixture(|_| {}).await;
    let removes = || BatchOp::Remove { table: table("a"), cell: cell("y") };
    for _ in 0..TIMES {
        apply(&fixture.store, vec![set("x", "1"), removes()], None).await.expect("can be applied");
    }
    let table = fixture.sql_table("a_a");
    let first =
        format!("BEGIN; UPDATE {table} SET val = '2' WHERE \"row\" = 'x'; INSERT INTO {table} VALUES ('y', 'c', '2')");
    fixture.admin.batch_execute(&first).await.expect("can be written");
    let store = Arc::clone(&fixture.store);
    let waits = tokio::spawn(async move { apply(&store, vec![set("x", "3"), removes()], None).await });
    fixture.backend("wait_event_type = 'Lock'").await;
    fixture.admin.batch_execute("COMMIT").await.expect("can be committed");
    waits.await.expect("no panic").expect("can be applied");
    assert_eq!((standing(&fixture.store, "x").await, standing(&fixture.store, "y").await), (Some("3".into()), None));
}

/// Readers of a store share statements, and each gets its own cells.
#[tokio::test(flavor = "multi_thread")]
async fn readers_at_the_same_time_share_statements() {
    let server = OwnServer::new(&["log_statement = all"]);
    let store = Arc::new(PostgresStore::connect(server.config("n")).await.expect("the server is there"));
    filled(&store).await;
    const READERS: u64 = 200;
    let puts = (0..READERS).map(|row| put("t", &row.to_string(), row + 1, "v")).collect();
    apply(&store, puts, None).await.expect("can be put");
    // On a busy machine all of them may wait too long and ask by themselves, but not time and again.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = server.log().len();
        let readers = (0..READERS).map(|row| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { newest(&store, "t", &row.to_string()).await })
        });
        for (reader, row) in readers.collect::<Vec<_>>().into_iter().zip(0..) {
            assert_eq!(reader.await.expect("no panic"), row + 1);
        }
        let statements = server.log().split_off(before).matches("CROSS JOIN LATERAL").count();
        if statements < READERS as usize / 2 {
            break;
        }
        assert!(Instant::now() < deadline, "{statements} statements for {READERS} readers");
    }
}

/// The guard first, and then the tables in the order of their names, as all writers do: or two could wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_before_the_guard_and_the_tables_before() {
    let fixture = fixture(|_| {}).await;
    let others = client(&fixture.namespace.config).await;
    others.batch_execute("SET lock_timeout = '10s'").await.expect("can be set");
    // Whoever puts at a place waits for another who has put there and not committed.
    let is_free = async |name: &str| {
        let sql =
            format!("BEGIN; INSERT INTO {} VALUES ('r', 'c', {}, 'x'); ROLLBACK", fixture.sql_table(name), TIMES + 1);
        others.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{name} was written: {error}"));
    };
    let lock = format!("BEGIN; SELECT 1 FROM {} FOR UPDATE", fixture.sql_table("a_f"));
    fixture.admin.batch_execute(&lock).await.expect("can lock");
    let waits = tokio::spawn(put_both(&fixture, TIMES + 1));
    backend_of_one(&fixture, "wait_event_type = 'Lock'").await;
    is_free("v_t").await;
    is_free("v_u").await;
    fixture.admin.batch_execute("ROLLBACK").await.expect("can unlock");
    waits.await.expect("no panic").expect("the guard holds");

    for (ts, looks) in [(TIMES + 2, false), (TIMES + 3, true)] {
        if looks {
            put_both(&fixture, TIMES).await.expect("it is there already");
        }
        let put = |name: &str| format!("BEGIN; INSERT INTO {} VALUES ('r', 'c', {ts}, 'x')", fixture.sql_table(name));
        fixture.admin.batch_execute(&put("v_t")).await.expect("can put");
        let waits = tokio::spawn(put_both(&fixture, ts));
        let not = if looks { "" } else { "NOT" };
        backend_of_one(&fixture, &format!("wait_event_type = 'Lock' AND {not} query LIKE '%ON CONFLICT%'")).await;
        let second = format!("{}; ROLLBACK", put("v_u"));
        others.batch_execute(&second).await.expect("the second table is written when the first one is");
        fixture.admin.batch_execute("ROLLBACK").await.expect("can unlock");
        waits.await.expect("no panic").expect("nobody is in the way");
    }
}

/// Who writes the same places again and again is not refused each time, which the server would write down.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_row_was_in_the_way_others_are_looked_for_first() {
    let server = OwnServer::new(&[]);
    let store = PostgresStore::connect(server.config("n")).await.expect("the server is there");
    filled(&store).await;
    for time in 1..=3 * TIMES {
        let ops = vec![put("t", "r", time, "v"), set("r", "v")];
        apply(&store, ops, fence("1")).await.expect("can be applied");
        assert_eq!((newest(&store, "t", "r").await, standing(&store, "r").await), (time, Some("v".into())));
    }
    assert_eq!(server.log().matches("duplicate key").count(), 1, "{}", server.log());
}
