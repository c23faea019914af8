//! A page of a scan that brings every entry with what it holds; which version of a cell counts is decided here.
//!
//! ```text
//!   seen    a/x@3 a/x@7 a/y@2 b/x@1 b/x@4 │ b/x@9          entries in the order of the key, one more than was asked for
//!   given   a/x@7 a/y@2                                    newest below the bound, of cells that are whole
//!   open                      b/x                          where the next page begins
//! ```
//!
//! A cell is whole when another one follows it, or nothing does. Of a page whose values are long only the first have come,
//! and behind them one entry without its timestamp: its cell is open.

use crate::catalog::column;
use crate::errors::Attempt;
use crate::read::{number, stored_timestamp};
use crate::scan::{BYTES_MAX, Cells, Found, Page, Span, filled, page_limit};
use crate::session::Server;
use atlas_kvs::{Cell, Scan, TableKind, TableRef};
use tokio_postgres::Row;

/// Below one cell in this many entries most of what would be read at once is of no use.
pub(crate) const ENTRIES_PER_CELL_MAX: i64 = 2;

/// What a page that was read at once gives.
pub(crate) struct AtOnce<P> {
    pub(crate) cells: P,
    /// The first cell that is not whole. None: the span ends here.
    pub(crate) open: Option<Cell>,
    /// There was no whole cell.
    pub(crate) is_stuck: bool,
    /// There were few entries for each cell.
    pub(crate) pays: bool,
}

impl Server {
    /// One page of a scan of whole rows, or of a stretch of one row.
    pub(crate) async fn page_at_once<P: Cells>(
        &self,
        table: &TableRef,
        span: &Span,
        request: &Scan,
    ) -> Attempt<AtOnce<P>> {
        let limit = page_limit(request.page_size);
        let name = self.names.table(table, TableKind::Versioned);
        // One more, to know whether the last cell is whole.
        let mut page = Page::new(name, span, limit + 1);
        let before = page.args.add(number(request.read_before), "int8");
        let Page { args, order: (order, _), name, inside, limit: limit_arg, .. } = page;
        let sql = format!(
            "SELECT r, c, CASE WHEN size - len < {BYTES_MAX} THEN ts END, \
               CASE WHEN size - len < {BYTES_MAX} AND ts < {before} THEN val END FROM (\
               SELECT r, c, ts, val, len, sum(len) OVER w AS size, lag(len, 1, 0) OVER w AS len_before FROM (\
                 SELECT t.\"row\" AS r, t.col AS c, t.ts, t.val, \
                   CASE WHEN t.ts < {before} THEN octet_length(t.val) ELSE 0 END AS len \
                 FROM {name} t WHERE {inside} \
                 ORDER BY t.\"row\" {order}, t.col {order}, t.ts {order} LIMIT {limit_arg}) seen \
               WINDOW w AS (ORDER BY r {order}, c {order}, ts {order} ROWS UNBOUNDED PRECEDING)) sized \
             WHERE size - len - len_before < {BYTES_MAX} ORDER BY r {order}, c {order}, ts {order}"
        );
        let rows = self.page_rows(table, TableKind::Versioned, &sql, &args).await?;
        let is_full = i64::try_from(rows.len()).is_ok_and(|seen| seen > limit);
        let mut walk = Walk::new(table, request);
        rows.iter().try_for_each(|row| walk.add(row))?;
        Ok(walk.end(is_full, rows.len()))
    }
}

/// The entries of a page, while they are looked at in their order.
struct Walk<'a> {
    table: &'a TableRef,
    before: i64,
    reverse: bool,
    /// Of each whole cell that has any the newest version below the bound.
    whole: Vec<Found<'a>>,
    /// The cell of the last entry; what it shows; and how many cells came before it.
    place: Option<(&'a [u8], &'a [u8])>,
    shown: Option<Found<'a>>,
    passed: i64,
    /// Of the last entry only its cell has come, because there were too many bytes before it.
    is_cut: bool,
}

impl<'a> Walk<'a> {
    fn new(table: &'a TableRef, request: &Scan) -> Walk<'a> {
        Walk {
            table,
            before: number(request.read_before),
            reverse: request.reverse,
            whole: Vec::new(),
            place: None,
            shown: None,
            passed: 0,
            is_cut: false,
        }
    }

    fn add(&mut self, row: &'a Row) -> Attempt<()> {
        let place = (column(row, 0, self.table.name())?, column(row, 1, self.table.name())?);
        if self.place != Some(place) {
            self.pass();
            self.place = Some(place);
        }
        let Some(ts) = column::<Option<i64>>(row, 2, self.table.name())? else {
            self.is_cut = true;
            return Ok(());
        };
        // Forward the newest comes last, backward first.
        let is_older = self.reverse && self.shown.is_some();
        if ts < self.before && !is_older {
            self.shown = Some(Found::new(self.table, row, stored_timestamp(self.table, ts)?, 3)?);
        }
        Ok(())
    }

    /// The cell of the last entry is whole.
    fn pass(&mut self) {
        self.passed += i64::from(self.place.is_some());
        self.whole.extend(self.shown.take());
    }

    fn end<P: Cells>(mut self, is_full: bool, seen: usize) -> AtOnce<P> {
        let is_open = is_full || self.is_cut;
        if !is_open {
            self.pass();
        }
        let open = self.place.filter(|_| is_open).map(|(row, column)| Cell::copy_from(row, column));
        AtOnce {
            cells: filled(&self.whole),
            is_stuck: self.passed == 0,
            pays: i64::try_from(seen).is_ok_and(|seen| (self.passed + 1) * ENTRIES_PER_CELL_MAX >= seen),
            open,
        }
    }
}
