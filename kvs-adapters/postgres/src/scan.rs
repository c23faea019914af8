//! Scans, page by page: each page is a statement of its own, which begins where the last one ended.
//!
//! No transaction stays open while a reader thinks, and no connection is held. A page is a limited amount of *work*,
//! not of results: it looks at so many rows of the key and tells how far it came, so that a long stretch of cells with
//! nothing to show takes many short statements and not one endless one.
//!
//! ```text
//!   seen      where the page looks       a/x a/x a/x a/y b/x     so many rows of the key
//!   picked    which cells that makes     a/x a/y b/x
//!   found     what they hold             a/x@7 b/x@3             newest below the bound, one walk each
//! ```
//!
//! There are four ways to look, all along the primary key:
//!
//! * **at once** ([`crate::at_once`]): row after row with what it holds, and which version of a cell counts is decided here.
//!   For stretches where most cells have one version.
//! * **entries**: row after row, and then each cell. The next page begins behind the last cell, not behind its last
//!   version, so one cell with a million versions costs one page and no more.
//! * **steps**: from a cell to the next one in one walk, over all versions and unwanted columns between them. For
//!   stretches where entries gave few cells, and for ranges of columns of many rows.
//! * **rows**: from a row to the next one, looking up the wanted columns by name in each.

use crate::at_once;
use crate::catalog::column;
use crate::errors::Attempt;
use crate::read::{VERSION_COLUMNS, bytes, number, stored_timestamp};
use crate::session::{Param, Server};
use atlas_kvs::{
    AtomicScan, Cell, CellVersions, ColumnSelection, FlatPage, KvsError, Result, ResultStream, RowRange, Scan,
    TableKind, TableRef, Timestamp, Value, Version, VersionScan,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// What a page looks at, whatever the hint says.
const PAGE_MAX: usize = 2_048;
/// Values of a page; the last one may exceed it.
pub(crate) const BYTES_MAX: i64 = 4 << 20;
/// Below one cell in this many entries it is cheaper to step from cell to cell.
const ENTRIES_PER_CELL_MAX: i64 = 8;
/// Pages of fewer cells are not read at once: often the last cell of a page is not whole, and is read again.
const AT_ONCE_MIN: i64 = 8;

/// Where a scan has still to look, between two places in the order of cells.
#[derive(Clone)]
pub(crate) struct Span {
    start: Bound<Cell>,
    end: Bound<Cell>,
    reverse: bool,
}

impl Span {
    fn new(rows: &RowRange, reverse: bool, after: Option<Cell>) -> Span {
        let first = |row: &Bytes| Cell { row: row.clone(), column: Bytes::new() };
        let start = Bound::Included(first(&rows.start));
        let end = rows.end.as_ref().map_or(Bound::Unbounded, |row| Bound::Excluded(first(row)));
        let mut span = Span { start, end, reverse };
        if let Some(after) = after {
            span.go_behind(after);
        }
        span
    }

    /// Leaves out everything up to this cell, in the direction of the scan.
    fn go_behind(&mut self, cell: Cell) {
        if self.reverse {
            if place(&self.end).is_none_or(|end| cell <= *end) {
                self.end = Bound::Excluded(cell);
            }
        } else if place(&self.start).is_none_or(|start| cell >= *start) {
            self.start = Bound::Excluded(cell);
        }
    }

    /// Leaves out everything before this cell, which lies in the span.
    fn go_to(&mut self, cell: Cell) {
        let bound = if self.reverse { &mut self.end } else { &mut self.start };
        *bound = Bound::Included(cell);
    }

    /// Leaves out everything up to the end of this row.
    fn go_behind_row(&mut self, row: Bytes) {
        if self.reverse {
            self.end = Bound::Excluded(Cell { row, column: Bytes::new() });
        } else {
            let mut next = row.to_vec();
            next.push(0);
            self.start = Bound::Included(Cell::new(next, Bytes::new()));
        }
    }

    /// Keeps only these columns of a single row.
    fn narrow(&mut self, row: &Bytes, columns: (&Bytes, Option<&Bytes>)) {
        let of = |column: &Bytes| Cell { row: row.clone(), column: column.clone() };
        let first = of(columns.0);
        if place(&self.start).is_none_or(|start| *start < first) {
            self.start = Bound::Included(first);
        }
        if let Some(end) = columns.1.map(of)
            && place(&self.end).is_none_or(|old| end < *old)
        {
            self.end = Bound::Excluded(end);
        }
    }

    fn is_empty(&self) -> bool {
        match (&self.start, &self.end) {
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (start, end) => place(start).zip(place(end)).is_some_and(|(start, end)| start >= end),
        }
    }
}

fn place(bound: &Bound<Cell>) -> Option<&Cell> {
    match bound {
        Bound::Included(cell) | Bound::Excluded(cell) => Some(cell),
        Bound::Unbounded => None,
    }
}

/// A statement while it is written: text that refers to arguments, and the arguments.
pub(crate) struct Args {
    params: Vec<Box<dyn ToSql + Send + Sync>>,
}

impl Args {
    pub(crate) fn add(&mut self, value: impl ToSql + Send + Sync + 'static, kind: &str) -> String {
        self.params.push(Box::new(value));
        format!("${}::{kind}", self.params.len())
    }

    fn bytes(&mut self, value: &Bytes) -> String {
        self.add(value.to_vec(), "bytea")
    }

    fn list(&mut self, values: &BTreeSet<Bytes>) -> String {
        self.add(values.iter().map(|value| value.to_vec()).collect::<Vec<_>>(), "bytea[]")
    }

    fn place(&mut self, cell: &Cell) -> String {
        format!("({}, {})", self.bytes(&cell.row), self.bytes(&cell.column))
    }
}

/// How a page is made.
#[derive(Clone)]
enum Way {
    AtOnce,
    Cells(Look),
}

/// How a page looks for cells, each of which is then read.
#[derive(Clone)]
enum Look {
    Entries,
    Steps { columns: Option<(Bytes, Option<Bytes>)> },
    Rows { columns: Arc<BTreeSet<Bytes>> },
}

/// The text of one page, made for one span.
pub(crate) struct Page {
    pub(crate) args: Args,
    /// In the direction of the scan, and against it.
    pub(crate) order: (&'static str, &'static str),
    pub(crate) name: String,
    /// `t` lies in the span; and: not behind its far end.
    pub(crate) inside: String,
    not_behind: String,
    /// How to name the place of `t` in the span, for other names of its columns.
    bounds: Vec<(&'static str, String)>,
    pub(crate) limit: String,
}

impl Page {
    pub(crate) fn new(name: String, span: &Span, limit: i64) -> Page {
        let mut args = Args { params: Vec::new() };
        let start = match &span.start {
            Bound::Included(cell) => Some((">=", args.place(cell))),
            Bound::Excluded(cell) => Some((">", args.place(cell))),
            Bound::Unbounded => None,
        };
        let end = match &span.end {
            Bound::Included(cell) => Some(("<=", args.place(cell))),
            Bound::Excluded(cell) => Some(("<", args.place(cell))),
            Bound::Unbounded => None,
        };
        let far = if span.reverse { &start } else { &end };
        let not_behind = conditions("t.\"row\", t.col", far.iter());
        let bounds: Vec<_> = start.into_iter().chain(end).collect();
        let inside = conditions("t.\"row\", t.col", bounds.iter());
        let order = if span.reverse { ("DESC", "ASC") } else { ("ASC", "DESC") };
        let limit = args.add(limit, "int8");
        Page { args, order, name, inside, not_behind, bounds, limit }
    }

    /// `seen` (rows `r, c`) and `picked` (cells `r, c`, each once).
    fn look(&mut self, look: &Look) -> String {
        let Page { order: (order, _), name, inside, not_behind, limit, .. } = self;
        let sorted = format!("t.\"row\" {order}, t.col {order}");
        let first = format!("SELECT t.\"row\" AS r, t.col AS c FROM {name} t WHERE {inside} ORDER BY {sorted}");
        let onward = if *order == "ASC" { ">" } else { "<" };
        match look {
            Look::Entries => format!(
                "WITH seen AS MATERIALIZED ({first}, t.ts {order} LIMIT {limit}), \
                 picked AS MATERIALIZED (SELECT DISTINCT r, c FROM seen)"
            ),
            Look::Steps { columns } => {
                let bounds = columns.as_ref().map(|(start, end)| {
                    let start = self.args.bytes(start);
                    (start, end.as_ref().map(|end| self.args.bytes(end)))
                });
                let wanted = |column: &str| match &bounds {
                    None => "true".to_owned(),
                    Some((start, None)) => format!("{column} >= {start}"),
                    Some((start, Some(end))) => format!("{column} >= {start} AND {column} < {end}"),
                };
                let (in_row, picked) = (wanted("t.col"), wanted("c"));
                format!(
                    "WITH RECURSIVE walk AS (({first} LIMIT 1) UNION ALL SELECT n.r, n.c FROM walk w \
                       CROSS JOIN LATERAL (\
                         (SELECT t.\"row\" AS r, t.col AS c FROM {name} t WHERE t.\"row\" = w.r \
                            AND t.col {onward} w.c AND {in_row} AND {not_behind} ORDER BY {sorted} LIMIT 1) \
                         UNION ALL \
                         (SELECT t.\"row\", t.col FROM {name} t WHERE t.\"row\" {onward} w.r \
                            AND {not_behind} ORDER BY {sorted} LIMIT 1) \
                         LIMIT 1) n), \
                     seen AS MATERIALIZED (SELECT r, c FROM walk LIMIT {limit}), \
                     picked AS MATERIALIZED (SELECT r, c FROM seen WHERE {picked})"
                )
            }
            Look::Rows { columns } => {
                let columns = self.args.list(columns);
                let inside = conditions("s.r, q.c", self.bounds.iter());
                format!(
                    "WITH RECURSIVE walk AS (({first} LIMIT 1) UNION ALL SELECT n.r, n.c FROM walk w \
                       CROSS JOIN LATERAL (SELECT t.\"row\" AS r, t.col AS c FROM {name} t \
                         WHERE t.\"row\" {onward} w.r AND {not_behind} ORDER BY {sorted} LIMIT 1) n), \
                     seen AS MATERIALIZED (SELECT r, c FROM walk LIMIT {limit}), \
                     picked AS MATERIALIZED (SELECT s.r, q.c FROM seen s CROSS JOIN unnest({columns}) AS q(c) \
                       WHERE {inside})"
                )
            }
        }
    }

    /// The last of what was seen, with how much that was.
    fn last(&self) -> String {
        let against = self.order.1;
        format!(
            "(SELECT count(*) AS seen FROM seen) s \
             LEFT JOIN (SELECT r, c FROM seen ORDER BY r {against}, c {against} LIMIT 1) l ON true"
        )
    }
}

fn conditions<'a>(place: &str, bounds: impl Iterator<Item = &'a (&'static str, String)>) -> String {
    let conditions: Vec<String> = bounds.map(|(compare, bound)| format!("({place}) {compare} {bound}")).collect();
    if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") }
}

impl Server {
    pub(crate) async fn page_rows(
        &self,
        table: &TableRef,
        kind: TableKind,
        sql: &str,
        args: &Args,
    ) -> Attempt<Vec<Row>> {
        let params: Vec<Param<'_>> = args.params.iter().map(|param| &**param as Param<'_>).collect();
        self.read_table(table, kind, sql, &params).await
    }

    /// One page of a scan that looks for cells, and how far it came.
    async fn scan_page<P: Cells>(
        &self,
        table: &TableRef,
        span: &Span,
        look: &Look,
        request: &Scan,
    ) -> Attempt<(P, Progress)> {
        let limit = match look {
            Look::Rows { columns } => page_limit(request.page_size / columns.len().max(1)),
            Look::Entries | Look::Steps { .. } => page_limit(request.page_size),
        };
        let name = self.names.table(table, TableKind::Versioned);
        let mut page = Page::new(name.clone(), span, limit);
        let look_sql = page.look(look);
        let before = page.args.add(number(request.read_before), "int8");
        let (order, last) = (page.order.0, page.last());
        let sql = format!(
            "{look_sql}, found AS MATERIALIZED (\
               SELECT p.r, p.c, v.ts, v.val, sum(octet_length(v.val)) \
                 OVER (ORDER BY p.r {order}, p.c {order} ROWS UNBOUNDED PRECEDING) - octet_length(v.val) AS size_before \
               FROM picked p CROSS JOIN LATERAL (SELECT t.ts, t.val FROM {name} t \
                 WHERE t.\"row\" = p.r AND t.col = p.c AND t.ts < {before} ORDER BY t.ts DESC LIMIT 1) v) \
             SELECT r, c, ts, val, NULL::int8, NULL::int8, NULL::int8 FROM found WHERE size_before < {BYTES_MAX} \
             UNION ALL \
             SELECT l.r, l.c, NULL, NULL, s.seen, (SELECT count(*) FROM picked), (SELECT count(*) FROM found) FROM {last}"
        );
        let rows = self.page_rows(table, TableKind::Versioned, &sql, &page.args).await?;
        let mut found = Vec::with_capacity(rows.len());
        let mut progress = Progress::new(limit);
        for row in &rows {
            match column::<Option<i64>>(row, 2, table.name())? {
                Some(ts) => found.push(Found::new(table, row, stored_timestamp(table, ts)?, 3)?),
                None => progress.read(table, row, [4, 5, 6])?,
            }
        }
        sort(&mut found, span.reverse, |found| (found.row, found.column));
        progress.check(table, found.len(), found.last().map(Found::cell));
        Ok((filled(&found), progress))
    }

    async fn version_page(
        &self,
        table: &TableRef,
        span: &Span,
        request: &VersionScan,
    ) -> Attempt<(Vec<CellVersions>, Progress)> {
        let limit = page_limit(request.page_size);
        let name = self.names.table(table, TableKind::Versioned);
        let mut page = Page::new(name.clone(), span, limit);
        let look_sql = page.look(&Look::Entries);
        let before = page.args.add(number(request.read_before), "int8");
        let last = page.last();
        let sql = format!(
            "{look_sql} SELECT p.r, p.c, a.ts, a.len, a.prefix, NULL::int8 FROM picked p CROSS JOIN LATERAL (\
               SELECT array_agg(v.ts) AS ts, array_agg(v.len) AS len, array_agg(v.prefix) AS prefix FROM (\
                 SELECT v.ts, {VERSION_COLUMNS} FROM {name} v \
                 WHERE v.\"row\" = p.r AND v.col = p.c AND v.ts < {before} ORDER BY v.ts) v) a \
             WHERE a.ts IS NOT NULL \
             UNION ALL SELECT l.r, l.c, NULL, NULL, NULL, s.seen FROM {last}"
        );
        let mut items = Vec::new();
        let mut progress = Progress::new(limit);
        for row in &self.page_rows(table, TableKind::Versioned, &sql, &page.args).await? {
            match column::<Option<Vec<i64>>>(row, 2, table.name())? {
                Some(timestamps) => {
                    let lens: Vec<i32> = column(row, 3, table.name())?;
                    let prefixes: Vec<&[u8]> = column(row, 4, table.name())?;
                    let versions = timestamps.into_iter().zip(lens).zip(prefixes).map(|((ts, len), prefix)| {
                        let prefix = Bytes::copy_from_slice(prefix);
                        Ok(Version { ts: stored_timestamp(table, ts)?, len: u64::try_from(len).unwrap_or(0), prefix })
                    });
                    let mut versions = versions.collect::<Attempt<Vec<Version>>>()?;
                    versions.sort_unstable_by_key(|version| version.ts);
                    items.push(CellVersions { cell: cell(table, row)?, versions });
                }
                None => progress.read(table, row, [5, 5, 5])?,
            }
        }
        sort(&mut items, false, |item| (&item.cell.row, &item.cell.column));
        Ok((items, progress))
    }

    async fn atomic_page(
        &self,
        table: &TableRef,
        span: &Span,
        page_size: usize,
    ) -> Attempt<(Vec<(Cell, Bytes)>, Progress)> {
        let limit = page_limit(page_size);
        let name = self.names.table(table, TableKind::Atomic);
        let Page { args, order: (order, _), inside, limit: limit_arg, .. } = Page::new(name.clone(), span, limit);
        let sql = format!(
            "WITH found AS MATERIALIZED (SELECT p.r, p.c, p.val, sum(octet_length(p.val)) \
                 OVER (ORDER BY p.r {order}, p.c {order} ROWS UNBOUNDED PRECEDING) - octet_length(p.val) AS size_before \
               FROM (SELECT t.\"row\" AS r, t.col AS c, t.val FROM {name} t WHERE {inside} \
                 ORDER BY t.\"row\" {order}, t.col {order} LIMIT {limit_arg}) p) \
             SELECT r, c, val, NULL::int8 FROM found WHERE size_before < {BYTES_MAX} \
             UNION ALL SELECT NULL, NULL, NULL, count(*) FROM found"
        );
        let mut items = Vec::new();
        let mut progress = Progress::new(limit);
        for row in &self.page_rows(table, TableKind::Atomic, &sql, &args).await? {
            match column::<Option<&[u8]>>(row, 2, table.name())? {
                Some(value) => items.push((cell(table, row)?, Bytes::copy_from_slice(value))),
                None => progress.read(table, row, [3, 3, 3])?,
            }
        }
        sort(&mut items, span.reverse, |item| (&item.0.row, &item.0.column));
        // What was seen is what was found, and the last of it is the place to go on from.
        progress.last = items.last().map(|item| item.0.clone());
        progress.check(table, items.len(), items.last().map(|item| item.0.clone()));
        Ok((items, progress))
    }
}

/// What a page gives of a cell, as it came from the server.
pub(crate) struct Found<'a> {
    row: &'a [u8],
    column: &'a [u8],
    ts: Timestamp,
    value: &'a [u8],
}

impl<'a> Found<'a> {
    /// Of a row of a result whose first two columns are the cell.
    pub(crate) fn new(table: &TableRef, row: &'a Row, ts: Timestamp, value: usize) -> Attempt<Found<'a>> {
        let bytes = |number| column(row, number, table.name());
        Ok(Found { row: bytes(0)?, column: bytes(1)?, ts, value: bytes(value)? })
    }

    fn cell(&self) -> Cell {
        Cell::copy_from(self.row, self.column)
    }
}

/// What holds the cells of a page.
pub(crate) trait Cells: Default + Send + 'static {
    fn reserve(&mut self, cells: usize, bytes: usize);
    fn push(&mut self, found: &Found<'_>);
    fn is_empty(&self) -> bool;
}

impl Cells for Vec<(Cell, Value)> {
    fn reserve(&mut self, cells: usize, _: usize) {
        self.reserve(cells);
    }

    fn push(&mut self, found: &Found<'_>) {
        self.push((found.cell(), Value { ts: found.ts, bytes: Bytes::copy_from_slice(found.value) }));
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl Cells for FlatPage {
    fn reserve(&mut self, cells: usize, bytes: usize) {
        self.reserve(cells, bytes);
    }

    fn push(&mut self, found: &Found<'_>) {
        self.push(found.row, found.column, found.ts, found.value);
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

pub(crate) fn filled<P: Cells>(found: &[Found<'_>]) -> P {
    let mut cells = P::default();
    cells.reserve(found.len(), found.iter().map(|of| of.row.len() + of.column.len() + of.value.len()).sum());
    found.iter().for_each(|found| cells.push(found));
    cells
}

/// How far a page came.
struct Progress {
    limit: i64,
    seen: i64,
    picked: i64,
    found: i64,
    /// The last place that was looked at.
    last: Option<Cell>,
    /// Values were left out behind this cell, because there were too many bytes of them.
    cut: Option<Cell>,
}

impl Progress {
    fn new(limit: i64) -> Progress {
        Progress { limit, seen: 0, picked: 0, found: 0, last: None, cut: None }
    }

    fn read(&mut self, table: &TableRef, row: &Row, [seen, picked, found]: [usize; 3]) -> Attempt<()> {
        self.seen = column(row, seen, table.name())?;
        self.picked = column(row, picked, table.name())?;
        self.found = column(row, found, table.name())?;
        if column::<Option<&[u8]>>(row, 0, table.name())?.is_some() {
            self.last = Some(cell(table, row)?);
        }
        Ok(())
    }

    fn check(&mut self, table: &TableRef, items: usize, last: Option<Cell>) {
        if i64::try_from(items).is_ok_and(|items| items < self.found) {
            debug_assert!(last.is_some(), "a page of {table} has at least one of the values it found");
            self.cut = last;
        }
    }

    /// Whether there are at most this many entries for each cell.
    fn is_within(&self, entries_per_cell: i64) -> bool {
        self.picked * entries_per_cell >= self.seen
    }

    /// What is left of a span behind the page.
    fn rest(self, mut span: Span, by_row: bool) -> Option<Span> {
        match (self.cut, self.last) {
            (Some(cell), _) => span.go_behind(cell),
            (None, Some(_)) if self.seen < self.limit => return None,
            (None, Some(last)) if by_row => span.go_behind_row(last.row),
            (None, Some(last)) => span.go_behind(last),
            (None, None) => return None,
        }
        (!span.is_empty()).then_some(span)
    }
}

pub(crate) fn page_limit(hint: usize) -> i64 {
    i64::try_from(hint.clamp(1, PAGE_MAX)).unwrap_or(1)
}

fn cell(table: &TableRef, row: &Row) -> Attempt<Cell> {
    Ok(Cell { row: bytes(table, row, 0)?, column: bytes(table, row, 1)? })
}

/// The statements give the order already, but SQL promises none for a union.
fn sort<T>(items: &mut [T], reverse: bool, place: impl Fn(&T) -> (&[u8], &[u8])) {
    items.sort_by(|a, b| if reverse { place(b).cmp(&place(a)) } else { place(a).cmp(&place(b)) });
}

/// All pages. `state` tells what the next page needs; none: there is no next page.
fn pages<S, T, F>(state: Option<S>, page: impl Fn(S) -> F + Send + 'static) -> ResultStream<T>
where
    S: Send + 'static,
    T: Send + 'static,
    F: Future<Output = Result<(T, Option<S>)>> + Send + 'static,
{
    let pages = stream::try_unfold(state, move |state| {
        let next = state.map(&page);
        async move {
            match next {
                Some(next) => next.await.map(Some),
                None => Ok(None),
            }
        }
    });
    pages.boxed()
}

/// All items of all pages.
fn items<T: Send + 'static>(pages: ResultStream<Vec<T>>) -> ResultStream<T> {
    pages.map_ok(|items| stream::iter(items.into_iter().map(Ok::<T, KvsError>))).try_flatten().boxed()
}

pub(crate) fn scan(server: Arc<Server>, table: TableRef, request: Scan) -> ResultStream<(Cell, Value)> {
    items(scan_pages(server, table, request))
}

/// The pages of a scan, of which none is empty.
pub(crate) fn scan_pages<P: Cells>(server: Arc<Server>, table: TableRef, mut request: Scan) -> ResultStream<P> {
    let mut span = Span::new(&request.rows, request.reverse, request.after.take());
    let single = request.rows.is_single();
    let at_once = page_limit(request.page_size) >= AT_ONCE_MIN;
    let entries = if at_once { Way::AtOnce } else { Way::Cells(Look::Entries) };
    let way = match &request.columns {
        ColumnSelection::All => entries,
        ColumnSelection::Exactly(columns) if columns.is_empty() => return nothing(&server),
        ColumnSelection::Exactly(columns) => Way::Cells(Look::Rows { columns: Arc::new(columns.clone()) }),
        ColumnSelection::Range { start, end } if single => {
            span.narrow(&request.rows.start, (start, end.as_ref()));
            entries
        }
        ColumnSelection::Range { start, end } => {
            Way::Cells(Look::Steps { columns: Some((start.clone(), end.clone())) })
        }
    };
    if span.is_empty() || request.read_before == Timestamp::SENTINEL {
        return nothing(&server);
    }
    let request = Arc::new(request);
    let pages = pages(Some((span, way)), move |(span, way)| {
        let (server, table, request) = (Arc::clone(&server), table.clone(), Arc::clone(&request));
        async move {
            match way {
                Way::AtOnce => server.next_at_once(&table, span, &request).await,
                Way::Cells(look) => server.next_page(&table, span, look, &request).await,
            }
        }
    });
    pages.try_filter(|page: &P| std::future::ready(!page.is_empty())).boxed()
}

/// A page, and where to go on, and how; nothing behind the last one.
type Next<P> = (P, Option<(Span, Way)>);

impl Server {
    async fn next_at_once<P: Cells>(&self, table: &TableRef, mut span: Span, request: &Scan) -> Result<Next<P>> {
        let page = self.attempts(|| self.page_at_once(table, &span, request)).await?;
        let Some(open) = page.open else { return Ok((page.cells, None)) };
        span.go_to(open);
        // Where not a single cell was whole, the same place is looked at in a way that always comes on.
        let way = if page.is_stuck || !page.pays { Way::Cells(Look::Entries) } else { Way::AtOnce };
        Ok((page.cells, Some((span, way))))
    }

    async fn next_page<P: Cells>(&self, table: &TableRef, span: Span, look: Look, request: &Scan) -> Result<Next<P>> {
        let (cells, progress) = self.attempts(|| self.scan_page(table, &span, &look, request)).await?;
        let by_row = matches!(look, Look::Rows { .. });
        let at_once_pays = progress.limit >= AT_ONCE_MIN && progress.is_within(at_once::ENTRIES_PER_CELL_MAX);
        let next = match look {
            Look::Entries if !progress.is_within(ENTRIES_PER_CELL_MAX) => Way::Cells(Look::Steps { columns: None }),
            Look::Entries if at_once_pays => Way::AtOnce,
            // Back to a cheaper way: if it is still the wrong one, that is found out soon.
            Look::Steps { columns: None } => Way::Cells(Look::Entries),
            look => Way::Cells(look),
        };
        Ok((cells, progress.rest(span, by_row).map(|span| (span, next))))
    }
}

pub(crate) fn scan_versions(
    server: Arc<Server>,
    table: TableRef,
    mut request: VersionScan,
) -> ResultStream<CellVersions> {
    let span = Span::new(&request.rows, false, request.after.take());
    if span.is_empty() || request.read_before == Timestamp::SENTINEL {
        return nothing(&server);
    }
    let request = Arc::new(request);
    let pages = pages(Some(span), move |span| {
        let (server, table, request) = (Arc::clone(&server), table.clone(), Arc::clone(&request));
        async move {
            let (items, progress) = server.attempts(|| server.version_page(&table, &span, &request)).await?;
            Ok((items, progress.rest(span, false)))
        }
    });
    items(pages)
}

pub(crate) fn scan_atomic(
    server: Arc<Server>,
    table: TableRef,
    mut request: AtomicScan,
) -> ResultStream<(Cell, Bytes)> {
    let span = Span::new(&request.rows, request.reverse, request.after.take());
    if span.is_empty() {
        return nothing(&server);
    }
    let pages = pages(Some(span), move |span| {
        let (server, table) = (Arc::clone(&server), table.clone());
        async move {
            let (items, progress) = server.attempts(|| server.atomic_page(&table, &span, request.page_size)).await?;
            Ok((items, progress.rest(span, false)))
        }
    });
    items(pages)
}

/// The stream of a scan that selects nothing.
fn nothing<T: Send + 'static>(server: &Server) -> ResultStream<T> {
    stream::iter(server.check_open().err().map(Err)).boxed()
}
