//! Scans: pages of the store, resolved to one snapshot, with the own writes merged in.

use super::handle::Inner;
use super::reads::RangeRead;
use crate::ops::ScanOptions;
use crate::{Error, Result};
use atlas_kvs::{Cell, Scan, TableRef};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

const PAGE_SIZE: usize = 256;
const PAGE_SIZE_MAX: usize = 10_000;

/// What to scan, and for whom.
pub(crate) struct ScanJob {
    pub(crate) transaction: Arc<Inner>,
    pub(crate) table: TableRef,
    pub(crate) options: ScanOptions,
    /// Own writes in the range, ascending.
    pub(crate) own: Vec<(Cell, Option<Bytes>)>,
    /// Told how far the scan was consumed, if that has to be checked at the commit.
    pub(crate) kept: Option<Arc<RangeRead>>,
}

/// The scan as a stream. Holds a page in memory, and the own writes in the range.
pub(crate) fn stream(job: ScanJob) -> BoxStream<'static, Result<(Cell, Bytes)>> {
    let limit = job.options.limit;
    let merged = async_stream::try_stream! {
        let ScanJob { transaction, table, options, own, kept } = job;
        let page_size = if options.page_size == 0 { PAGE_SIZE } else { options.page_size.min(PAGE_SIZE_MAX) };
        let reverse = options.reverse;
        let mut own: VecDeque<_> = if reverse { own.into_iter().rev().collect() } else { own.into() };
        let request = Scan {
            rows: options.rows,
            columns: options.columns,
            read_before: transaction.read_ts,
            reverse,
            after: None,
            page_size,
        };
        let mut pages = std::pin::pin!(transaction.core.read_pages(&table, request));
        while let Some(page) = pages.next().await {
            let page = page?;
            transaction.check_open()?;
            for (cell, value) in page {
                while let Some((own_cell, own_value)) =
                    own.pop_front_if(|(own_cell, _)| in_order(own_cell, &cell, reverse) == Ordering::Less)
                {
                    if let Some(own_value) = own_value {
                        give(&kept, &own_cell, &transaction)?;
                        yield (own_cell, own_value);
                    }
                }
                // The own write of the same cell stands in for what the store has.
                let value = match own.pop_front_if(|(own_cell, _)| *own_cell == cell) {
                    Some((_, own_value)) => own_value,
                    None => value,
                };
                if let Some(value) = value {
                    give(&kept, &cell, &transaction)?;
                    yield (cell, value);
                }
            }
        }
        transaction.check_open()?;
        for (own_cell, own_value) in own {
            if let Some(own_value) = own_value {
                give(&kept, &own_cell, &transaction)?;
                yield (own_cell, own_value);
            }
        }
        if kept.as_ref().is_some_and(|kept| !kept.gives_all()) {
            Err(closed(&transaction))?;
        }
    };
    match limit {
        Some(limit) => merged.take(usize::try_from(limit).unwrap_or(usize::MAX)).boxed(),
        None => merged.boxed(),
    }
}

/// Before the cell is given: a reader that has it knows what lies up to it.
fn give(kept: &Option<Arc<RangeRead>>, cell: &Cell, transaction: &Inner) -> Result<()> {
    if kept.as_ref().is_none_or(|kept| kept.gives(cell)) { Ok(()) } else { Err(closed(transaction)) }
}

/// What was fetched before the commit began is not given after it: it would be a read that nobody checks.
fn closed(transaction: &Inner) -> Error {
    let state = "committing or committed";
    transaction.check_open().err().unwrap_or(Error::TransactionClosed { start_ts: transaction.start_ts, state })
}

fn in_order(a: &Cell, b: &Cell, reverse: bool) -> Ordering {
    if reverse { b.cmp(a) } else { a.cmp(b) }
}
