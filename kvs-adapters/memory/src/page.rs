//! Scans in pages: the lock is held while a page is read, never while its reader thinks.

use crate::tables::Tables;
use atlas_kvs::{Cell, KvsError, Result, ResultStream, RowRange};
use bytes::Bytes;
use futures::{TryStreamExt, future, stream};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// A page holds what this many cells give, whatever the hint says.
const CELLS_MAX: usize = 1_000;

pub(crate) struct Page<T> {
    items: Vec<T>,
    /// The last cell that was looked at, if there may be more behind it. It need not be among the items: a stretch of
    /// cells with nothing to show is passed page by page as well.
    last: Option<Cell>,
}

/// The items of all pages, beginning strictly behind `after`.
pub(crate) fn stream<T, F>(tables: Arc<RwLock<Option<Tables>>>, after: Option<Cell>, read: F) -> ResultStream<T>
where
    T: Send + 'static,
    F: Fn(&Tables, Option<&Cell>) -> Result<Page<T>> + Send + 'static,
{
    let next_page = move |after: Option<Option<Cell>>| {
        let page = after.map(|after| match tables.read().as_ref() {
            Some(tables) => read(tables, after.as_ref()),
            None => Err(KvsError::Closed),
        });
        future::ready(page.transpose().map(|page| page.map(|Page { items, last }| (items, last.map(Some)))))
    };
    let pages = stream::try_unfold(Some(after), next_page);
    Box::pin(pages.map_ok(|items| stream::iter(items.into_iter().map(Ok))).try_flatten())
}

/// One page of `cells`: what `see` makes of the next cells of `rows` behind `after`.
pub(crate) fn read<V, T>(
    cells: &BTreeMap<Cell, V>,
    rows: &RowRange,
    after: Option<&Cell>,
    reverse: bool,
    page_size: usize,
    see: impl Fn(&Cell, &V) -> Option<T>,
) -> Page<T> {
    let Some(bounds) = remaining(rows, after, reverse) else {
        return Page { items: Vec::new(), last: None };
    };
    let cells_max = page_size.clamp(1, CELLS_MAX);
    let range = cells.range(bounds);
    let seen: Vec<_> = if reverse { range.rev().take(cells_max).collect() } else { range.take(cells_max).collect() };
    let last = seen.last().filter(|_| seen.len() == cells_max).map(|(cell, _)| (*cell).clone());
    Page { items: seen.into_iter().filter_map(|(cell, stored)| see(cell, stored)).collect(), last }
}

/// The cells of `rows` that come behind `after` in scan order; `None` if there can be none.
fn remaining(rows: &RowRange, after: Option<&Cell>, reverse: bool) -> Option<(Bound<Cell>, Bound<Cell>)> {
    let first_of = |row: &Bytes| Cell { row: row.clone(), column: Bytes::new() };
    let mut start = Bound::Included(first_of(&rows.start));
    let mut end = rows.end.as_ref().map_or(Bound::Unbounded, |row| Bound::Excluded(first_of(row)));
    match after {
        Some(after) if reverse && cell_of(&end).is_none_or(|end| after < end) => end = Bound::Excluded(after.clone()),
        Some(after) if !reverse && cell_of(&start).is_none_or(|start| after >= start) => {
            start = Bound::Excluded(after.clone());
        }
        _ => {}
    }
    // A map panics on bounds in the wrong order, and so it would on two exclusive ones at the same place.
    let possible = cell_of(&end).is_none_or(|end| cell_of(&start).is_none_or(|start| start < end));
    possible.then_some((start, end))
}

fn cell_of(bound: &Bound<Cell>) -> Option<&Cell> {
    match bound {
        Bound::Included(cell) | Bound::Excluded(cell) => Some(cell),
        Bound::Unbounded => None,
    }
}
