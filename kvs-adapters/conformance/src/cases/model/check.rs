//! Does a sequence of operations in the store and in the model, and compares every answer.

use super::ops::{BatchWrite, Op, VersionedTable};
use super::reference::{self, Model, Versions};
use crate::TestStore;
use crate::support::{table, try_items};
use atlas_kvs::{
    AtomicBatch, AtomicScan, CheckAndSet, Durability, KvsError, PutUnlessExists, RowRange, TableKind, TableRef,
    Timestamp, VersionScan,
};
use bytes::Bytes;
use futures::FutureExt;
use std::fmt::Debug;
use std::panic::AssertUnwindSafe;

/// Runs a sequence on fresh tables and tells the first difference, or a panic of the store.
pub(super) async fn run(store: &mut TestStore, ops: &[Op]) -> Result<(), String> {
    match AssertUnwindSafe(run_to_first_difference(store, ops)).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            Err(format!("the store panicked: {}", text.unwrap_or_default()))
        }
    }
}

async fn run_to_first_difference(store: &mut TestStore, ops: &[Op]) -> Result<(), String> {
    let mut model = Model::default();
    for (table, kind) in [
        (name(VersionedTable::T), TableKind::Versioned),
        (name(VersionedTable::U), TableKind::Versioned),
        (atomic(), TableKind::Atomic),
    ] {
        recreate(store, &table, kind).await.map_err(|error| format!("{table} could not be created: {error}"))?;
    }
    for (place, op) in ops.iter().enumerate() {
        let outcome = step(store, &mut model, op).await;
        outcome.map_err(|difference| format!("after {} operations, {op:?}: {difference}", place + 1))?;
    }
    for table in [VersionedTable::T, VersionedTable::U] {
        let everything = VersionScan::new(RowRange::all(), Timestamp::MAX);
        let outcome = step(store, &mut model, &Op::ScanVersions(table, everything)).await;
        outcome.map_err(|difference| format!("in the end, table {table:?}: {difference}"))?;
    }
    let outcome = step(store, &mut model, &Op::ScanAtomic(AtomicScan::new(RowRange::all()))).await;
    outcome.map_err(|difference| format!("in the end, the atomic table: {difference}"))
}

async fn step(store: &mut TestStore, model: &mut Model, op: &Op) -> Result<(), String> {
    match op {
        Op::Put(puts, ts) => {
            let cells = puts.iter().flat_map(|(table, cells)| cells.iter().map(move |cell| (*table, cell)));
            let writes = cells.map(|(table, (cell, value))| BatchWrite::Put(table, cell.clone(), *ts, value.clone()));
            let puts = puts.iter().map(|(table, cells)| (name(*table), cells.clone())).collect();
            let (ts, writes) = (*ts, writes.collect());
            write(store, model, writes, async |store| store.put(puts, ts).await).await
        }
        Op::PutVersions(table, versions) => {
            let put = |(cell, value): &(_, atlas_kvs::Value)| {
                BatchWrite::Put(*table, atlas_kvs::Cell::clone(cell), value.ts, value.bytes.clone())
            };
            let (table, writes) = (*table, versions.iter().map(put).collect());
            write(store, model, writes, async |store| store.put_versions(&name(table), versions.clone()).await).await
        }
        Op::Apply(writes) => {
            let ops = writes.iter().map(|write| write.op(name, &atomic())).collect();
            let apply = async |store: &TestStore| store.apply(AtomicBatch::new(ops), Durability::Synced).await;
            write(store, model, writes.clone(), apply).await
        }
        Op::AddSentinels(table, cells) => {
            succeeded(store.add_sentinels(&name(*table), cells).await)?;
            let sentinels = cells.iter().map(|cell| ((cell.clone(), Timestamp::SENTINEL), Bytes::new()));
            model.versioned(*table).extend(sentinels);
            Ok(())
        }
        Op::DeleteVersions(table, versions) => {
            succeeded(store.delete_versions(&name(*table), versions).await)?;
            model.versioned(*table).retain(|(cell, ts), _| {
                !versions.iter().any(|doomed| doomed.cell == *cell && doomed.timestamps.contains(ts))
            });
            Ok(())
        }
        Op::DeleteVersionRanges(table, ranges) => {
            succeeded(store.delete_version_ranges(&name(*table), ranges).await)?;
            model.versioned(*table).retain(|(cell, ts), _| {
                !ranges.iter().any(|range| range.cell == *cell && reference::in_range(range, *ts))
            });
            Ok(())
        }
        Op::DeleteRows(table, rows) => {
            succeeded(store.delete_rows(&name(*table), rows).await)?;
            model.versioned(*table).retain(|(cell, _), _| !rows.contains(&cell.row));
            Ok(())
        }
        Op::TruncateVersioned(table) => {
            succeeded(store.truncate_table(&name(*table)).await)?;
            model.versioned(*table).clear();
            Ok(())
        }
        Op::RecreateVersioned(table) => {
            succeeded(recreate(store, &name(*table), TableKind::Versioned).await)?;
            model.versioned(*table).clear();
            Ok(())
        }
        Op::TruncateAtomic => {
            succeeded(store.truncate_table(&atomic()).await)?;
            model.atomic.clear();
            Ok(())
        }
        Op::RecreateAtomic => {
            succeeded(recreate(store, &atomic(), TableKind::Atomic).await)?;
            model.atomic.clear();
            Ok(())
        }
        Op::PutUnlessExists(cell, value) => {
            let answer = succeeded(store.put_unless_exists(&atomic(), cell, value.clone()).await)?;
            let expected = match model.check_and_set(cell, &None, &Some(value.clone())) {
                Ok(()) => PutUnlessExists::Written,
                Err(standing) => PutUnlessExists::Exists(standing.expect("a value stands in the way")),
            };
            same(answer, expected)
        }
        Op::CheckAndSet(cell, expected, new) => {
            let answer = succeeded(store.check_and_set(&atomic(), cell, expected.clone(), new.clone()).await)?;
            let due = model.check_and_set(cell, expected, new);
            same(answer, due.map_or_else(CheckAndSet::Mismatch, |()| CheckAndSet::Applied))
        }
        Op::Reopen => succeeded(store.reopen().await),
        Op::CloseAndOpen => {
            store.close_and_open().await;
            Ok(())
        }
        Op::Get(table, bounds) => {
            let answer = succeeded(store.get(&name(*table), bounds).await)?;
            let versions: &Versions = model.versioned(*table);
            same(answer, bounds.iter().map(|bound| reference::newest(versions, bound)).collect())
        }
        Op::Versions(table, bounds) => {
            let answer = succeeded(store.versions(&name(*table), bounds).await)?;
            let versions: &Versions = model.versioned(*table);
            same(answer, bounds.iter().map(|bound| reference::all(versions, bound)).collect())
        }
        Op::Scan(table, request) => {
            let answer = succeeded(try_items(store.scan(&name(*table), request.clone())).await)?;
            same(answer, reference::scan(model.versioned(*table), request))
        }
        Op::ScanVersions(table, request) => {
            let answer = succeeded(try_items(store.scan_versions(&name(*table), request.clone())).await)?;
            same(answer, reference::scan_versions(model.versioned(*table), request))
        }
        Op::GetAtomic(cells) => {
            let answer = succeeded(store.get_atomic(&atomic(), cells).await)?;
            same(answer, cells.iter().map(|cell| model.atomic.get(cell).cloned()).collect())
        }
        Op::ScanAtomic(request) => {
            let answer = succeeded(try_items(store.scan_atomic(&atomic(), request.clone())).await)?;
            same(answer, model.scan_atomic(request))
        }
    }
}

/// Writes in the store as in the model. Conflicting values are written only where the outcome is promised: they are
/// detected, and nothing is applied.
async fn write(
    store: &TestStore,
    model: &mut Model,
    writes: Vec<BatchWrite>,
    call: impl AsyncFnOnce(&TestStore) -> atlas_kvs::Result<()>,
) -> Result<(), String> {
    let capabilities = store.capabilities();
    if !model.conflicts(&writes) {
        succeeded(call(store).await)?;
        model.write(&writes);
        return Ok(());
    }
    if !capabilities.detects_conflicting_values || !capabilities.atomic_batch {
        return Ok(());
    }
    match call(store).await {
        Err(KvsError::ConflictingValue { .. }) => Ok(()),
        other => Err(format!("a conflicting value was answered with {other:?}")),
    }
}

async fn recreate(store: &TestStore, table: &TableRef, kind: TableKind) -> atlas_kvs::Result<()> {
    store.drop_table(table).await?;
    store.create_table(table, kind, Bytes::new()).await
}

fn succeeded<T>(answer: atlas_kvs::Result<T>) -> Result<T, String> {
    answer.map_err(|error| format!("the store failed: {error}"))
}

fn same<T: PartialEq + Debug>(store: T, model: T) -> Result<(), String> {
    if store == model { Ok(()) } else { Err(format!("\n  store {store:?}\n  model {model:?}")) }
}

fn name(versioned: VersionedTable) -> TableRef {
    match versioned {
        VersionedTable::T => table("model.t"),
        VersionedTable::U => table("model.u"),
    }
}

fn atomic() -> TableRef {
    table("model.a")
}
