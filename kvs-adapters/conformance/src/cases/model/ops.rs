//! The operations of the model test, over alphabets small enough to collide.

use atlas_kvs::{
    AtomicScan, BatchOp, Capabilities, Cell, CellBound, CellTimestamps, CellVersionRange, ColumnSelection, RowRange,
    Scan, TableRef, Timestamp, Value, VersionScan,
};
use bytes::Bytes;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

/// Timestamps of data are 1 up to this.
const TS_MAX: u64 = 4;

/// Tables are numbers; the test decides about their names.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Put(Vec<(VersionedTable, Vec<(Cell, Bytes)>)>, Timestamp),
    PutVersions(VersionedTable, Vec<(Cell, Value)>),
    AddSentinels(VersionedTable, Vec<Cell>),
    DeleteVersions(VersionedTable, Vec<CellTimestamps>),
    DeleteVersionRanges(VersionedTable, Vec<CellVersionRange>),
    DeleteRows(VersionedTable, RowRange),
    TruncateVersioned(VersionedTable),
    RecreateVersioned(VersionedTable),
    TruncateAtomic,
    RecreateAtomic,
    PutUnlessExists(Cell, Bytes),
    CheckAndSet(Cell, Option<Bytes>, Option<Bytes>),
    Apply(Vec<BatchWrite>),
    Reopen,
    CloseAndOpen,
    Get(VersionedTable, Vec<CellBound>),
    Scan(VersionedTable, Scan),
    Versions(VersionedTable, Vec<CellBound>),
    ScanVersions(VersionedTable, VersionScan),
    GetAtomic(Vec<Cell>),
    ScanAtomic(AtomicScan),
}

/// One of the two versioned tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VersionedTable {
    T,
    U,
}

#[derive(Clone, Debug)]
pub(super) enum BatchWrite {
    Put(VersionedTable, Cell, Timestamp, Bytes),
    Set(Cell, Bytes),
    Remove(Cell),
}

impl BatchWrite {
    pub(super) fn op(&self, versioned: impl Fn(VersionedTable) -> TableRef, atomic: &TableRef) -> BatchOp {
        match self.clone() {
            BatchWrite::Put(table, cell, ts, value) => BatchOp::Put { table: versioned(table), cell, ts, value },
            BatchWrite::Set(cell, value) => BatchOp::Set { table: atomic.clone(), cell, value },
            BatchWrite::Remove(cell) => BatchOp::Remove { table: atomic.clone(), cell },
        }
    }
}

/// Sequences of operations that a store of these capabilities can be asked to do.
pub(super) fn sequence(capabilities: Capabilities) -> impl Strategy<Value = Vec<Op>> {
    let empty = capabilities.limits.empty_names;
    let lifecycle = if capabilities.persistent {
        prop_oneof![4 => Just(Op::Reopen), 1 => Just(Op::CloseAndOpen)].boxed()
    } else {
        Just(Op::Reopen).boxed()
    };
    let batch = if capabilities.atomic_batch { apply(empty).boxed() } else { put(empty).boxed() };
    let op = prop_oneof![
        12 => prop_oneof![put(empty), put_versions(empty)],
        2 => (table(), vec(cell(empty), 1..4)).prop_map(|(table, cells)| Op::AddSentinels(table, cells)),
        8 => deletion(empty),
        2 => emptying(),
        6 => atomic_write(empty),
        4 => batch,
        1 => lifecycle,
        12 => versioned_read(empty),
        4 => atomic_read(empty),
    ];
    vec(op, 1..40)
}

fn put(empty: bool) -> impl Strategy<Value = Op> {
    (vec((table(), vec((cell(empty), value()), 1..4)), 1..3), data_ts()).prop_map(|(puts, ts)| Op::Put(puts, ts))
}

fn put_versions(empty: bool) -> impl Strategy<Value = Op> {
    let version = (cell(empty), data_ts(), value()).prop_map(|(cell, ts, bytes)| (cell, Value { ts, bytes }));
    (table(), vec(version, 1..6)).prop_map(|(table, versions)| Op::PutVersions(table, versions))
}

fn deletion(empty: bool) -> impl Strategy<Value = Op> {
    let timestamps =
        (cell(empty), vec(any_ts(), 0..4)).prop_map(|(cell, timestamps)| CellTimestamps { cell, timestamps });
    let range = (cell(empty), any_ts(), any::<bool>()).prop_map(|(cell, before, include_sentinel)| CellVersionRange {
        cell,
        before,
        include_sentinel,
    });
    prop_oneof![
        (table(), vec(timestamps, 1..4)).prop_map(|(table, versions)| Op::DeleteVersions(table, versions)),
        (table(), vec(range, 1..4)).prop_map(|(table, ranges)| Op::DeleteVersionRanges(table, ranges)),
        (table(), rows()).prop_map(|(table, rows)| Op::DeleteRows(table, rows)),
    ]
}

fn emptying() -> impl Strategy<Value = Op> {
    prop_oneof![
        table().prop_map(Op::TruncateVersioned),
        table().prop_map(Op::RecreateVersioned),
        Just(Op::TruncateAtomic),
        Just(Op::RecreateAtomic),
    ]
}

fn atomic_write(empty: bool) -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => (cell(empty), value()).prop_map(|(cell, value)| Op::PutUnlessExists(cell, value)),
        3 => (cell(empty), option::of(value()), option::of(value()))
            .prop_map(|(cell, expected, new)| Op::CheckAndSet(cell, expected, new)),
    ]
}

fn apply(empty: bool) -> impl Strategy<Value = Op> {
    let write = prop_oneof![
        (table(), cell(empty), data_ts(), value())
            .prop_map(|(table, cell, ts, value)| BatchWrite::Put(table, cell, ts, value)),
        (cell(empty), value()).prop_map(|(cell, value)| BatchWrite::Set(cell, value)),
        cell(empty).prop_map(BatchWrite::Remove),
    ];
    vec(write, 1..6).prop_map(Op::Apply)
}

fn versioned_read(empty: bool) -> impl Strategy<Value = Op> {
    let bounds = || vec((cell(empty), any_ts()).prop_map(|(cell, read_before)| CellBound { cell, read_before }), 1..5);
    let flags = (any::<bool>(), any::<bool>());
    let scan = (rows(), columns(), any_ts(), flags, option::of(cell(true)), page_size()).prop_map(
        |(rows, columns, read_before, (reverse, bypass_cache), after, page_size)| Scan {
            rows,
            columns,
            read_before,
            reverse,
            after,
            page_size,
            bypass_cache,
        },
    );
    let version_scan = (rows(), option::of(cell(true)), any_ts(), page_size())
        .prop_map(|(rows, after, read_before, page_size)| VersionScan { rows, after, read_before, page_size });
    prop_oneof![
        2 => (table(), bounds()).prop_map(|(table, bounds)| Op::Get(table, bounds)),
        4 => (table(), scan).prop_map(|(table, scan)| Op::Scan(table, scan)),
        1 => (table(), bounds()).prop_map(|(table, bounds)| Op::Versions(table, bounds)),
        2 => (table(), version_scan).prop_map(|(table, scan)| Op::ScanVersions(table, scan)),
    ]
}

fn atomic_read(empty: bool) -> impl Strategy<Value = Op> {
    let scan = (rows(), any::<bool>(), option::of(cell(true)), page_size())
        .prop_map(|(rows, reverse, after, page_size)| AtomicScan { rows, reverse, after, page_size });
    prop_oneof![vec(cell(empty), 1..5).prop_map(Op::GetAtomic), scan.prop_map(Op::ScanAtomic)]
}

fn table() -> impl Strategy<Value = VersionedTable> {
    prop_oneof![Just(VersionedTable::T), Just(VersionedTable::U)]
}

fn row(empty: bool) -> impl Strategy<Value = Bytes> {
    one_of(&[b"a", b"a\0", b"b", b"\xff", b""], empty)
}

/// With these rows they make pairs that one string of bytes could stand for: "a" and "\0b", "a\0" and "b".
fn column(empty: bool) -> impl Strategy<Value = Bytes> {
    one_of(&[b"b", b"\0b", b""], empty)
}

/// One of these names, of which the last is the empty one.
fn one_of(names: &'static [&'static [u8]], empty: bool) -> impl Strategy<Value = Bytes> {
    let names = if empty { names } else { &names[..names.len() - 1] };
    proptest::sample::select(names).prop_map(Bytes::from_static)
}

fn cell(empty: bool) -> impl Strategy<Value = Cell> {
    (row(empty), column(empty)).prop_map(|(row, column)| Cell { row, column })
}

fn value() -> impl Strategy<Value = Bytes> {
    const VALUES: [&[u8]; 3] = [b"x", b"", b"longer than what a version shows"];
    proptest::sample::select(&VALUES[..]).prop_map(Bytes::from_static)
}

fn data_ts() -> impl Strategy<Value = Timestamp> {
    (1..=TS_MAX).prop_map(Timestamp::saturating)
}

/// A bound or the timestamp of a version, the sentinel's and one above all data among them.
fn any_ts() -> impl Strategy<Value = Timestamp> {
    prop_oneof![4 => (0..=TS_MAX + 1).prop_map(Timestamp::saturating), 1 => Just(Timestamp::MAX)]
}

fn page_size() -> impl Strategy<Value = usize> {
    prop_oneof![0..5_usize, Just(100)]
}

fn rows() -> impl Strategy<Value = RowRange> {
    prop_oneof![
        2 => Just(RowRange::all()),
        1 => row(true).prop_map(RowRange::prefix),
        1 => row(true).prop_map(RowRange::single),
        2 => (row(true), option::of(row(true))).prop_map(|(start, end)| RowRange { start, end }),
    ]
}

fn columns() -> impl Strategy<Value = ColumnSelection> {
    prop_oneof![
        2 => Just(ColumnSelection::All),
        1 => btree_set(column(true), 0..4).prop_map(ColumnSelection::Exactly),
        1 => (column(true), option::of(column(true))).prop_map(|(start, end)| ColumnSelection::Range { start, end }),
    ]
}
