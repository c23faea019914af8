//! Scans that lend their cells.
//!
//! ```text
//!   store     flat page │ flat page          read, resolved and checked as a whole, as for a stream
//!   visitor   &cell &cell &cell …            each lent for one call, own writes in between
//! ```
//!
//! What a stream gives belongs to who takes it: three slices of shared memory a cell, which cost more than reading it.
//! Here nothing is made for a cell.

use super::handle::{Inner, Transaction};
use super::reads::RangeRead;
use super::scan::{ScanJob, closed, in_order, request};
use crate::Result;
use crate::ops::ScanOptions;
use atlas_kvs::{Cell, FlatPage, Scan, TableRef};
use bytes::Bytes;
use futures::StreamExt;
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Cells of a page after the first one, which may be all that the visitor wants to see.
const PAGE_SIZE: usize = 1_000;

/// A cell and its value, lent by [`Transaction::for_each`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellRef<'a> {
    /// The row.
    pub row: &'a [u8],
    /// The column.
    pub column: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

impl Transaction {
    /// Shows the cells of a range to `visit`, one by one, until it breaks: what [`scan`](Transaction::scan) gives, but lent for the
    /// length of one call. For those who look at many cells and keep few it takes a fraction of the time; who keeps what is
    /// lent copies it.
    ///
    /// Cells come page by page, and between two pages others have their turn. `visit` runs on the thread that polls, so it
    /// should be short, and must not wait.
    ///
    /// ```
    /// # use atlas::config::{AtlasConfig, KvsConfig};
    /// # use atlas::ops::{Operations, ScanOptions};
    /// # use atlas::schema::TableSpec;
    /// # use atlas::{Atlas, Cell, TableRef};
    /// use std::ops::ControlFlow;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> atlas::Result<()> {
    /// # let config = AtlasConfig { key_value_service: KvsConfig::Memory {}, ..AtlasConfig::default() };
    /// # let atlas = Atlas::open(config).await?;
    /// # let stock = TableRef::new("stock").expect("a name");
    /// # atlas.create_table(&stock, &TableSpec::default()).await?;
    /// # let tx = atlas.begin().await?;
    /// # for (item, count) in [("bolt", "7"), ("nail", "12"), ("nut", "0"), ("screw", "3")] {
    /// #     tx.put(&stock, Cell::copy_from(item, "count"), count).await?;
    /// # }
    /// // The first item that has run out, and how many were looked at until then.
    /// let (mut seen, mut empty) = (0, None);
    /// tx.for_each(&stock, ScanOptions::default(), |cell| {
    ///     seen += 1;
    ///     if cell.value == b"0" {
    ///         empty = Some(cell.row.to_vec());
    ///         return ControlFlow::Break(());
    ///     }
    ///     ControlFlow::Continue(())
    /// })
    /// .await?;
    /// assert_eq!((seen, empty.as_deref()), (3, Some(&b"nut"[..])));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`get`](Transaction::get). Cells may have been shown before; what a transaction that can't go on has read is not
    /// to be relied on.
    ///
    /// Cancel safe: dropped between two pages, it has shown some cells. In tables that check reads, what was shown counts as
    /// read, and nothing behind it.
    pub async fn for_each(
        &self,
        table: &TableRef,
        options: ScanOptions,
        visit: impl FnMut(CellRef<'_>) -> ControlFlow<()> + Send,
    ) -> Result<()> {
        for_each(self.scan_job(table, options).await?, visit).await
    }
}

/// Shows the cells of a scan to a visitor.
pub(crate) async fn for_each(job: ScanJob, visit: impl FnMut(CellRef<'_>) -> ControlFlow<()> + Send) -> Result<()> {
    let ScanJob { transaction, table, options, own, kept } = job;
    let (reverse, left) = (options.reverse, options.limit.unwrap_or(u64::MAX));
    if left == 0 {
        return Ok(());
    }
    let own = if reverse { own.into_iter().rev().collect() } else { own.into() };
    let (request, first_page) = request(&transaction, options, PAGE_SIZE);
    let mut lender = Lender { transaction: transaction.clone(), reverse, own, kept, left, visit };
    let (core, base) = (&transaction.core, transaction.base);
    let mut is_short = first_page < request.page_size;
    let mut pages = core.kvs.scan_flat(&table, Scan { page_size: first_page, ..request.clone() });
    while let Some(page) = pages.next().await {
        let mut page = page?;
        core.resolve_flat(&table, &mut page, base).await?;
        tokio::task::coop::consume_budget().await;
        transaction.check_open()?;
        if lender.lend_page(&page)?.is_break() {
            return Ok(());
        }
        if is_short && page.len() >= first_page {
            is_short = false;
            let after = page.last().map(|cell| cell.cell());
            pages = core.kvs.scan_flat(&table, Scan { after, ..request.clone() });
        }
    }
    // Also of a range in which nothing was found.
    core.check_not_swept(&table, base).await?;
    transaction.check_open()?;
    lender.lend_rest()
}

/// Lends cells of the store, and the own writes where they belong.
struct Lender<V> {
    transaction: Arc<Inner>,
    reverse: bool,
    /// Own writes that were not passed yet, in the order of the scan.
    own: VecDeque<(Cell, Option<Bytes>)>,
    kept: Option<Arc<RangeRead>>,
    /// How many cells may still be lent: one at least.
    left: u64,
    visit: V,
}

impl<V: FnMut(CellRef<'_>) -> ControlFlow<()>> Lender<V> {
    fn lend_page(&mut self, page: &FlatPage) -> Result<ControlFlow<()>> {
        for cell in page.iter() {
            let cell = CellRef { row: cell.row, column: cell.column, value: cell.value };
            if !self.own.is_empty() {
                match self.lend_own_up_to(&cell)? {
                    Passed::Before => (),
                    // The own write of the same cell stands in for what the store has.
                    Passed::Same => continue,
                    Passed::Enough => return Ok(ControlFlow::Break(())),
                }
            }
            if self.lend(cell)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Lends what was written before a cell of the store, or to it.
    fn lend_own_up_to(&mut self, cell: &CellRef<'_>) -> Result<Passed> {
        while let Some((own, _)) = self.own.front() {
            let order = in_order((&own.row, &own.column), (cell.row, cell.column), self.reverse);
            if order == Ordering::Greater {
                break;
            }
            if self.lend_next_own()?.is_break() {
                return Ok(Passed::Enough);
            }
            if order == Ordering::Equal {
                return Ok(Passed::Same);
            }
        }
        Ok(Passed::Before)
    }

    /// Own writes behind all cells of the store. The visitor is told that there is no more.
    fn lend_rest(&mut self) -> Result<()> {
        while !self.own.is_empty() {
            if self.lend_next_own()?.is_break() {
                return Ok(());
            }
        }
        let told = self.kept.as_ref().is_none_or(|range| range.gives_all());
        if told { Ok(()) } else { Err(closed(&self.transaction)) }
    }

    fn lend_next_own(&mut self) -> Result<ControlFlow<()>> {
        match self.own.pop_front() {
            Some((Cell { row, column }, Some(value))) => {
                self.lend(CellRef { row: &row, column: &column, value: &value })
            }
            // A deletion.
            _ => Ok(ControlFlow::Continue(())),
        }
    }

    fn lend(&mut self, cell: CellRef<'_>) -> Result<ControlFlow<()>> {
        // Before the cell is lent: a visitor that saw it knows what lies up to it.
        if self.kept.as_ref().is_some_and(|range| !range.gives(cell.row, cell.column)) {
            return Err(closed(&self.transaction));
        }
        self.left -= 1;
        let wants_more = (self.visit)(cell);
        Ok(if self.left == 0 { ControlFlow::Break(()) } else { wants_more })
    }
}

/// How far the own writes were lent.
enum Passed {
    /// Those before the cell.
    Before,
    /// The one of the cell, too.
    Same,
    /// The visitor wants no more, or may have no more.
    Enough,
}
