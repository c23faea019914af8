//! Pages of cells, and how their bytes are kept.
//!
//! Whoever keeps cells gets them with bytes that count who shares them; whoever only looks at them gets a
//! [`FlatPage`].
//!
//! An allocation each for the row, the column and the value of a cell would cost more than reading it. So the bytes of
//! some cells lie in one piece of memory, which they share:
//!
//! ```text
//!   row a │ column x │ value │ column y │ value │ row b │ column x │ value
//!   └──────── a/x ───────────┘                  └──────────── b/x ───────┘
//!   └────────┘     and      └─── a/y ───────────┘
//! ```
//!
//! Pieces are short, because whoever keeps one cell keeps the piece it lies in. What is longer than a piece has one of
//! its own.

use crate::names::Names;
use atlas_kvs::{Cell, CellVersions, FlatPage, Timestamp, Value, Version};
use bytes::Bytes;
use std::ops::Range;

/// A piece that is longer than this takes no more cells.
const PIECE_LEN: usize = 8 << 10;
/// A piece is this many times as long as a row at least, so that cells of a long row share it.
const ROWS_PER_PIECE: usize = 8;

/// Cells in a page that is read on a thread of the runtime: as many as take it as long as a flat page.
const SHARED_IN_MEMORY_MAX: usize = 500;
const FLAT_IN_MEMORY_MAX: usize = 1_000;
/// Memory that is asked for before more than the first cell of a flat page is known.
const FLAT_RESERVED_MAX: usize = 256 << 10;

/// Some cells, and where the next page begins.
#[derive(Debug)]
pub(crate) struct Page<I> {
    pub(crate) items: I,
    pub(crate) next: Next,
    /// The page ended because its tier did not reach what follows.
    pub(crate) fell_short: bool,
}

/// Where to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The scan is over.
    End,
    /// At the beginning: nothing was read.
    Start,
    /// Forward: at this key. Backward: before it.
    At(Vec<u8>),
}

/// What a page holds.
pub(crate) trait Items: Default + Send + 'static {
    fn is_empty(&self) -> bool;
}

impl<T: Send + 'static> Items for Vec<T> {
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl Items for FlatPage {
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl<I: Items> Page<I> {
    /// A page that ends at `next`.
    pub(crate) fn full(items: I, next: Next) -> Page<I> {
        Page { items, next, fell_short: false }
    }

    /// A page that ends at `next` because its tier does not reach further.
    pub(crate) fn short(items: I, next: Next) -> Page<I> {
        Page { items, next, fell_short: true }
    }
}

/// Takes the versions of a page one by one.
pub(crate) trait Collect {
    type Items: Items;

    /// How many cells a page may have that is read on a thread of the runtime.
    const IN_MEMORY_MAX: usize;

    /// For a page of so many cells at most.
    fn new(cells_max: usize) -> Self;

    fn push(&mut self, names: &Names, ts: Timestamp, value: &[u8]);

    fn into_items(self) -> Self::Items;
}

/// For those who keep cells.
pub(crate) type SharedCells = Cells<(Cell, Value)>;

impl Collect for SharedCells {
    type Items = Vec<(Cell, Value)>;

    const IN_MEMORY_MAX: usize = SHARED_IN_MEMORY_MAX;

    fn new(cells_max: usize) -> SharedCells {
        Cells::new(cells_max)
    }

    fn push(&mut self, names: &Names, ts: Timestamp, value: &[u8]) {
        Cells::push(self, names, value, ts);
    }

    fn into_items(self) -> Vec<(Cell, Value)> {
        Cells::into_items(self)
    }
}

/// For those who look at cells.
pub(crate) struct FlatCells {
    page: FlatPage,
    cells_max: usize,
}

impl Collect for FlatCells {
    type Items = FlatPage;

    const IN_MEMORY_MAX: usize = FLAT_IN_MEMORY_MAX;

    fn new(cells_max: usize) -> FlatCells {
        FlatCells { page: FlatPage::new(), cells_max }
    }

    fn push(&mut self, names: &Names, ts: Timestamp, value: &[u8]) {
        if self.page.is_empty() {
            // If all cells are like this one.
            let bytes = self.cells_max.saturating_mul(names.row.len() + names.column.len() + value.len());
            self.page.reserve(self.cells_max.min(FLAT_IN_MEMORY_MAX), bytes.min(FLAT_RESERVED_MAX));
        }
        self.page.push(&names.row, &names.column, ts, value);
    }

    fn into_items(self) -> FlatPage {
        self.page
    }
}

/// What a page of shared cells consists of.
pub(crate) trait Item {
    /// What is told of a cell beside its value.
    type Beside;

    fn new(cell: Cell, value: Bytes, beside: Self::Beside) -> Self;
}

impl Item for (Cell, Value) {
    type Beside = Timestamp;

    fn new(cell: Cell, bytes: Bytes, ts: Timestamp) -> (Cell, Value) {
        (cell, Value { ts, bytes })
    }
}

impl Item for (Cell, Bytes) {
    type Beside = ();

    fn new(cell: Cell, value: Bytes, (): ()) -> (Cell, Bytes) {
        (cell, value)
    }
}

impl Item for CellVersions {
    type Beside = Vec<Version>;

    fn new(cell: Cell, _: Bytes, versions: Vec<Version>) -> CellVersions {
        CellVersions { cell, versions }
    }
}

/// The cells of a page under way.
pub(crate) struct Cells<T: Item> {
    closed: Vec<T>,
    piece: Vec<u8>,
    // Invariant: all ranges lie in `piece`.
    open: Vec<Place<T::Beside>>,
    cells_max: usize,
}

/// Where the names and the value of a cell lie.
struct Place<B> {
    row: Range<usize>,
    column: Range<usize>,
    value: Range<usize>,
    beside: B,
}

impl<T: Item> Cells<T> {
    pub(crate) fn new(cells_max: usize) -> Cells<T> {
        Cells { closed: Vec::new(), piece: Vec::new(), open: Vec::new(), cells_max }
    }

    pub(crate) fn push(&mut self, names: &Names, value: &[u8], beside: T::Beside) {
        let Names { row, column, .. } = names;
        let last_row =
            self.open.last().map(|place| place.row.clone()).filter(|range| self.piece[range.clone()] == *row);
        let row = match last_row {
            Some(range) if self.has_room(row.len(), column.len() + value.len()) => range,
            _ => {
                self.make_room(row.len(), row.len() + column.len() + value.len());
                self.copy(row)
            }
        };
        let (column, value) = (self.copy(column), self.copy(value));
        self.open.push(Place { row, column, value, beside });
    }

    fn has_room(&self, row_len: usize, len: usize) -> bool {
        self.piece.len() + len <= PIECE_LEN.max(ROWS_PER_PIECE * row_len)
    }

    fn make_room(&mut self, row_len: usize, len: usize) {
        if !self.has_room(row_len, len) {
            self.close_piece();
        }
        if self.piece.capacity() == 0 {
            // If all cells are like this one.
            let cells_left = self.cells_max.saturating_sub(self.closed.len()).max(1);
            self.piece.reserve_exact(len.saturating_mul(cells_left).min(PIECE_LEN).max(len));
        }
    }

    fn copy(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.piece.len();
        self.piece.extend_from_slice(bytes);
        start..self.piece.len()
    }

    fn close_piece(&mut self) {
        let mut piece = std::mem::take(&mut self.piece);
        if piece.len() < piece.capacity() / 2 {
            piece.shrink_to_fit();
        }
        let piece = Bytes::from(piece);
        self.closed.extend(self.open.drain(..).map(|Place { row, column, value, beside }| {
            let cell = Cell { row: piece.slice(row), column: piece.slice(column) };
            T::new(cell, piece.slice(value), beside)
        }));
    }

    pub(crate) fn into_items(mut self) -> Vec<T> {
        self.close_piece();
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that someone keeps who keeps nothing but this.
    fn held_by(bytes: Bytes) -> usize {
        bytes.try_into_mut().expect("nobody else keeps the piece").capacity()
    }

    #[test]
    fn a_kept_value_keeps_no_more_than_its_piece() {
        let mut cells = Cells::<(Cell, Bytes)>::new(10_000);
        for number in 0..10_000u32 {
            cells.push(&Names::of(&number.to_be_bytes(), b"c"), &[7; 100], ());
        }
        let items = cells.into_items();
        assert_eq!(items.len(), 10_000);
        let mut held = 0;
        // From the back: the first cell of a piece is left alone with all of it.
        for (cell, value) in items.into_iter().rev() {
            drop(cell);
            held = held.max(value.try_into_mut().map_or(0, |piece| piece.capacity()));
        }
        assert!(held > PIECE_LEN / 2 && held <= PIECE_LEN, "{held} bytes are kept");
    }

    #[test]
    fn a_page_of_few_cells_takes_no_whole_piece() {
        let mut cells = Cells::<(Cell, Bytes)>::new(256);
        cells.push(&Names::of(b"r", b"c"), &[7; 10], ());
        let (cell, value) = cells.into_items().pop().expect("one cell was pushed");
        drop(value);
        drop(cell.column);
        assert!(held_by(cell.row) < 100);
    }

    #[test]
    fn a_long_value_lies_by_itself() {
        let mut cells = Cells::<(Cell, Bytes)>::new(256);
        for (column, len) in [(b"a", 10), (b"b", 100 << 10), (b"c", 10)] {
            cells.push(&Names::of(b"row", column), &vec![7; len], ());
        }
        let items = cells.into_items();
        assert_eq!(items.iter().map(|(_, value)| value.len()).collect::<Vec<_>>(), [10, 100 << 10, 10]);
        for (cell, value) in items {
            let len = value.len();
            drop(cell);
            assert!(held_by(value) <= len + 100);
        }
    }

    #[test]
    fn cells_of_a_row_share_it_even_if_it_is_long() {
        let row = vec![b'r'; 60 << 10];
        let mut cells = Cells::<(Cell, Bytes)>::new(100);
        for column in 0..100u8 {
            cells.push(&Names::of(&row, &[column]), b"value", ());
        }
        let items = cells.into_items();
        assert!(
            items
                .iter()
                .zip(0..)
                .all(|((cell, value), column)| { cell.row == row && cell.column[..] == [column] && value == "value" })
        );
        let first = items[0].0.row.as_ptr();
        assert!(items.iter().all(|(cell, _)| cell.row.as_ptr() == first));
    }
}
