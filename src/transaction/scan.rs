//! Scans: pages of the store, resolved to one snapshot, with the own writes merged in.
//!
//! ```text
//!   store    page │ page │ page          a page is read, resolved and checked as a whole
//!   stream   cell cell cell cell …       and given cell by cell, own writes in between
//! ```
//!
//! Within a page nothing is awaited. For those who only look at the cells there is [`super::visit`].

use super::handle::Inner;
use super::reads::RangeRead;
use crate::ops::ScanOptions;
use crate::{Error, Result};
use atlas_kvs::{Cell, Scan, TableRef};
use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

const PAGE_SIZE: usize = 256;
/// First page of a scan with a limit, if nobody says how long pages are.
const FIRST_PAGE_MAX: usize = 1_000;
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
    let ScanJob { transaction, table, options, own, kept } = job;
    let reverse = options.reverse;
    let own = if reverse { own.into_iter().rev().collect() } else { own.into() };
    let left = options.limit.unwrap_or(u64::MAX);
    let pages = pages(transaction.clone(), table, options);
    MergedScan { transaction, reverse, pages: Some(pages), page: Vec::new().into_iter(), own, kept, left }.boxed()
}

type Seen = (Cell, Option<Bytes>);

/// What the transaction sees in the store. Fails once the transaction is not open any more: what was fetched before the
/// commit began is not given after it.
fn pages(transaction: Arc<Inner>, table: TableRef, options: ScanOptions) -> BoxStream<'static, Result<Vec<Seen>>> {
    let pages = async_stream::try_stream! {
        let (request, first_page) = request(&transaction, options, PAGE_SIZE);
        let mut pages = std::pin::pin!(transaction.core.read_pages(&table, request, first_page));
        while let Some(page) = pages.next().await {
            let page = page?;
            transaction.check_open()?;
            tokio::task::coop::consume_budget().await;
            yield page;
        }
        transaction.check_open()?;
    };
    pages.boxed()
}

/// What the store is asked for, and how long the first page is to be.
pub(crate) fn request(transaction: &Inner, options: ScanOptions, usual_page_size: usize) -> (Scan, usize) {
    let limit = options.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let (page_size, first_page_max) = match options.page_size {
        0 => (usual_page_size, if options.limit.is_some() { FIRST_PAGE_MAX } else { PAGE_SIZE }),
        given => (given.min(PAGE_SIZE_MAX), given.min(PAGE_SIZE_MAX)),
    };
    let request = Scan {
        rows: options.rows,
        columns: options.columns,
        read_before: transaction.base,
        reverse: options.reverse,
        after: None,
        page_size,
        bypass_cache: options.bypass_cache,
    };
    (request, limit.clamp(1, first_page_max))
}

/// Nothing more may be given: it would be a read that nobody checks.
pub(crate) fn closed(transaction: &Inner) -> Error {
    let (start_ts, state) = (transaction.start_ts, "committing or committed");
    transaction.check_open().err().unwrap_or(Error::TransactionClosed { start_ts, state })
}

struct MergedScan {
    transaction: Arc<Inner>,
    reverse: bool,
    /// Absent after the last page.
    pages: Option<BoxStream<'static, Result<Vec<Seen>>>>,
    page: std::vec::IntoIter<Seen>,
    own: VecDeque<Seen>,
    kept: Option<Arc<RangeRead>>,
    /// How many cells may still be given.
    left: u64,
}

impl MergedScan {
    /// The next cell of the page, or of the own writes before the end of the page.
    fn next_here(&mut self) -> Option<(Cell, Bytes)> {
        loop {
            let (cell, value) = if self.own.is_empty() { self.page.next()? } else { self.next_merged()? };
            if let Some(value) = value {
                return Some((cell, value));
            }
        }
    }

    fn next_merged(&mut self) -> Option<Seen> {
        let Some((cell, _)) = self.page.as_slice().first() else {
            // What the store has behind the page may come before the next own write.
            return if self.pages.is_none() { self.own.pop_front() } else { None };
        };
        let order = self.own.front().map_or(Ordering::Greater, |(own, _)| {
            in_order((&own.row, &own.column), (&cell.row, &cell.column), self.reverse)
        });
        if order == Ordering::Equal {
            // The own write of the same cell stands in for what the store has.
            self.page.next();
        }
        if order == Ordering::Greater { self.page.next() } else { self.own.pop_front() }
    }

    /// Before the cell is given: a reader that has it knows what lies up to it.
    fn gives(&self, cell: &Cell) -> bool {
        self.kept.as_ref().is_none_or(|range| range.gives(&cell.row, &cell.column))
    }

    /// The reader is told that there is no more.
    fn gives_all(&self) -> bool {
        self.kept.as_ref().is_none_or(|range| range.gives_all())
    }

    /// Ends the stream.
    fn fail(&mut self, error: Error) -> Poll<Option<Result<(Cell, Bytes)>>> {
        self.left = 0;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for MergedScan {
    type Item = Result<(Cell, Bytes)>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let scan = self.get_mut();
        while scan.left > 0 {
            if let Some((cell, value)) = scan.next_here() {
                if !scan.gives(&cell) {
                    let closed = closed(&scan.transaction);
                    return scan.fail(closed);
                }
                scan.left -= 1;
                return Poll::Ready(Some(Ok((cell, value))));
            }
            let Some(pages) = &mut scan.pages else {
                scan.left = 0;
                return if scan.gives_all() {
                    Poll::Ready(None)
                } else {
                    Poll::Ready(Some(Err(closed(&scan.transaction))))
                };
            };
            match ready!(pages.poll_next_unpin(cx)) {
                Some(Ok(page)) => scan.page = page.into_iter(),
                Some(Err(error)) => return scan.fail(error),
                None => scan.pages = None,
            }
        }
        Poll::Ready(None)
    }
}

/// Which of two cells, by row and column, comes first.
pub(crate) fn in_order(a: (&[u8], &[u8]), b: (&[u8], &[u8]), reverse: bool) -> Ordering {
    if reverse { b.cmp(&a) } else { a.cmp(&b) }
}
