//! Scans: a walk along the index, and a read of each cell that it names, some at a time.
//!
//! Nothing is held on the cluster while the reader thinks. When the table turns out to be another one than before (it
//! was emptied, or dropped and created), the scan goes on in that behind the last cell it gave.

use crate::errors::{Attempt, Trouble};
use crate::read::{cell_of, key_of};
use crate::reaper::Reaper;
use crate::session::Cluster;
use crate::store::Tables;
use crate::table::Table;
use crate::walk::{IndexEntry, KeyRange, Walk, behind};
use atlas_kvs::{
    AtomicScan, Cell, CellVersions, ColumnSelection, ResultStream, RowRange, Scan, TableKind, TableRef, Value,
    VersionScan, key,
};
use bytes::Bytes;
use futures::stream::{FuturesOrdered, StreamExt};
use std::sync::Arc;

/// Cells that are read at a time, whatever the page size: each may hold a value of many MiB.
const READS_MAX: usize = 32;

/// What scans need.
#[derive(Clone, Debug)]
pub(crate) struct Scans {
    pub(crate) tables: Arc<Tables>,
    pub(crate) reaper: Reaper,
}

/// Which cells to look at, and in which order.
#[derive(Clone, Debug)]
struct Span {
    kind: TableKind,
    range: KeyRange,
    columns: ColumnSelection,
    reverse: bool,
    page_size: usize,
}

impl Span {
    fn new(kind: TableKind, rows: &RowRange, columns: ColumnSelection, reverse: bool, page_size: usize) -> Span {
        let mut range = rows_range(rows);
        // Of one row, the columns are a range of keys. Of many they are chosen from among all.
        if rows.is_single() {
            let at = |column: &Bytes| key_of(&Cell { row: rows.start.clone(), column: column.clone() });
            match &columns {
                ColumnSelection::All => {}
                ColumnSelection::Exactly(columns) => match (columns.first(), columns.last()) {
                    (Some(first), Some(last)) => {
                        range.begin_at(at(first));
                        range.end_at(behind(&at(last)));
                    }
                    _ => range = nothing(),
                },
                ColumnSelection::Range { start, end } => {
                    range.begin_at(at(start));
                    if let Some(end) = end {
                        range.end_at(at(end));
                    }
                }
            }
        }
        if matches!(&columns, ColumnSelection::Exactly(columns) if columns.is_empty()) {
            range = nothing();
        }
        Span { kind, range, columns, reverse, page_size }
    }

    fn go_behind(&mut self, cell: &Cell) {
        match self.reverse {
            true => self.range.end_at(key_of(cell)),
            false => self.range.begin_at(behind(&key_of(cell))),
        }
    }
}

fn nothing() -> KeyRange {
    KeyRange { start: Bytes::new(), end: Some(Bytes::new()) }
}

/// The keys of all cells of these rows.
pub(crate) fn rows_range(rows: &RowRange) -> KeyRange {
    let at = |row: &Bytes| {
        let mut start = Vec::with_capacity(row.len() + 2);
        key::push_part(&mut start, row);
        Bytes::from(start)
    };
    // No key is less than the one of the first row.
    if rows.is_empty() { nothing() } else { KeyRange { start: at(&rows.start), end: rows.end.as_ref().map(at) } }
}

impl Scans {
    pub(crate) fn scan(&self, table: TableRef, request: Scan) -> ResultStream<(Cell, Value)> {
        let Scan { rows, columns, read_before, reverse, after, page_size, .. } = request;
        let span = Span::new(TableKind::Versioned, &rows, columns, reverse, page_size);
        self.run(table, span, after, move |cluster, table, cell| async move {
            Ok(cluster.newest(&table, &cell, read_before).await?.map(|value| (cell, value)))
        })
    }

    pub(crate) fn scan_versions(&self, table: TableRef, request: VersionScan) -> ResultStream<CellVersions> {
        let VersionScan { rows, after, read_before, page_size } = request;
        let span = Span::new(TableKind::Versioned, &rows, ColumnSelection::All, false, page_size);
        self.run(table, span, after, move |cluster, table, cell| async move {
            let versions = cluster.versions_of(&table, &cell, read_before).await?;
            Ok((!versions.is_empty()).then_some(CellVersions { cell, versions }))
        })
    }

    pub(crate) fn scan_atomic(&self, table: TableRef, request: AtomicScan) -> ResultStream<(Cell, Bytes)> {
        let AtomicScan { rows, reverse, after, page_size } = request;
        let span = Span::new(TableKind::Atomic, &rows, ColumnSelection::All, reverse, page_size);
        self.run(table, span, after, move |cluster, table, cell| async move {
            Ok(cluster.value_of(&table, &cell).await?.map(|value| (cell, value)))
        })
    }

    fn run<T, F>(
        &self,
        name: TableRef,
        mut span: Span,
        after: Option<Cell>,
        read: impl Fn(Arc<Cluster>, Arc<Table>, Cell) -> F + Send + 'static,
    ) -> ResultStream<T>
    where
        T: Send + 'static,
        F: Future<Output = Attempt<Option<T>>> + Send + 'static,
    {
        let Scans { tables, reaper } = self.clone();
        let cluster = Arc::clone(&tables.cluster);
        if let Some(after) = &after {
            span.go_behind(after);
        }
        let reads_max = span.page_size.clamp(4, READS_MAX);
        let scan = async_stream::try_stream! {
            let mut restarts = 0;
            'table: loop {
                let table = tables.find(&name, span.kind, restarts).await?;
                let mut walk = Walk::new(span.range.clone(), span.reverse, span.page_size);
                let (mut reading, mut ended, mut last) = (FuturesOrdered::new(), false, Bytes::new());
                loop {
                    while !ended && reading.len() < reads_max {
                        let entry = match walk.next(&cluster, &table).await {
                            Ok(Some(entry)) => entry,
                            Ok(None) => {
                                ended = true;
                                break;
                            }
                            Err(Trouble::Missing(reason)) => {
                                restarts += 1;
                                tables.forget(&table, restarts, &reason)?;
                                continue 'table;
                            }
                            Err(Trouble::Final(error)) => Err(error)?,
                        };
                        let cell = cell_of(&entry.key, &table)?;
                        // The same key in two buckets is one cell; what is behind the first has not to be reaped.
                        if !span.columns.contains(&cell.column) || entry.key == last {
                            continue;
                        }
                        last = entry.key.clone();
                        let found = read(Arc::clone(&cluster), Arc::clone(&table), cell.clone());
                        reading.push_back(async move { (entry, cell, found.await) });
                    }
                    let Some((entry, cell, found)): Option<(IndexEntry, Cell, Attempt<Option<T>>)> = reading.next().await
                    else {
                        return;
                    };
                    match found {
                        Ok(Some(item)) => {
                            cluster.check_open()?;
                            span.go_behind(&cell);
                            yield item;
                        }
                        Ok(None) => reaper.tell(&cluster, &table, entry),
                        Err(Trouble::Missing(reason)) => {
                            restarts += 1;
                            tables.forget(&table, restarts, &reason)?;
                            continue 'table;
                        }
                        Err(Trouble::Final(error)) => Err(error)?,
                    }
                }
            }
        };
        Box::pin(scan)
    }
}
