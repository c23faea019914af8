//! Pages of cells whose bytes lie in one piece of memory.
//!
//! ```text
//!   bytes    row a │ column x │ value │ row b │ column x │ value │ …
//!            ▲                ▲       ▲                  ▲
//!   places   names, value ────┘       names, value ──────┘
//! ```
//!
//! For those who look at many cells and keep few: two allocations for a page, and none for a cell. Who keeps a cell
//! copies it.

use crate::{Cell, Timestamp};

/// Cells in the order of a scan, of each one version.
///
/// A cell can be hidden, or shown with another value, after the page was filled: a layer above the store decides which
/// version of a cell counts.
#[derive(Clone, Debug, Default)]
pub struct FlatPage {
    bytes: Vec<u8>,
    // Invariant: all of them lie in `bytes`.
    places: Vec<Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    /// Where the row begins; the column follows it.
    names: usize,
    row_len: u32,
    column_len: u32,
    value: usize,
    value_len: usize,
    ts: Timestamp,
    hidden: bool,
}

/// A cell of a page, lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlatCell<'a> {
    /// The row.
    pub row: &'a [u8],
    /// The column.
    pub column: &'a [u8],
    /// The timestamp the version was written at.
    pub ts: Timestamp,
    /// The content of the version.
    pub value: &'a [u8],
}

impl FlatCell<'_> {
    /// The address of the cell, copied.
    pub fn cell(&self) -> Cell {
        Cell::copy_from(self.row, self.column)
    }
}

impl FlatPage {
    /// An empty page.
    pub fn new() -> FlatPage {
        FlatPage::default()
    }

    /// Makes room for so many more cells, with so many bytes of names and values in all.
    pub fn reserve(&mut self, cells: usize, bytes: usize) {
        self.places.reserve(cells);
        self.bytes.reserve(bytes);
    }

    /// Appends a cell, copied.
    ///
    /// # Panics
    /// If a name is longer than 4 GiB: no store takes such.
    pub fn push(&mut self, row: &[u8], column: &[u8], ts: Timestamp, value: &[u8]) {
        let name_len = |name: &[u8]| u32::try_from(name.len()).expect("a name is shorter than 4 GiB");
        let names = self.bytes.len();
        self.bytes.extend_from_slice(row);
        self.bytes.extend_from_slice(column);
        let place = Place {
            names,
            row_len: name_len(row),
            column_len: name_len(column),
            value: self.bytes.len(),
            value_len: value.len(),
            ts,
            hidden: false,
        };
        self.bytes.extend_from_slice(value);
        self.places.push(place);
    }

    /// How many cells there are, the hidden ones included.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes of all names and values that were ever put into it.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The cell at a place, hidden or not; from 0 up to, not including, [`len`](Self::len).
    ///
    /// # Panics
    /// If there is no such place.
    pub fn get(&self, index: usize) -> FlatCell<'_> {
        self.lend(&self.places[index])
    }

    /// The last cell, hidden or not.
    pub fn last(&self) -> Option<FlatCell<'_>> {
        self.places.last().map(|place| self.lend(place))
    }

    /// The cells that are not hidden, in order.
    pub fn iter(&self) -> impl Iterator<Item = FlatCell<'_>> {
        self.places.iter().filter(|place| !place.hidden).map(|place| self.lend(place))
    }

    /// Leaves a cell out of [`iter`](Self::iter).
    ///
    /// # Panics
    /// If there is no such place.
    pub fn hide(&mut self, index: usize) {
        self.places[index].hidden = true;
    }

    /// Takes the first `len` bytes off the value of a cell.
    ///
    /// # Panics
    /// If there is no such place, or the value is shorter.
    pub fn cut(&mut self, index: usize, len: usize) {
        let place = &mut self.places[index];
        assert!(len <= place.value_len, "no more is cut off than there is");
        place.value += len;
        place.value_len -= len;
    }

    /// Shows a cell with another value, whether it was hidden or not.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn show(&mut self, index: usize, value: &[u8]) {
        let place = &mut self.places[index];
        (place.value, place.value_len, place.hidden) = (self.bytes.len(), value.len(), false);
        self.bytes.extend_from_slice(value);
    }

    fn lend(&self, place: &Place) -> FlatCell<'_> {
        let (row, rest) = self.bytes[place.names..].split_at(place.row_len as usize);
        FlatCell {
            row,
            column: &rest[..place.column_len as usize],
            ts: place.ts,
            value: &self.bytes[place.value..place.value + place.value_len],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> FlatPage {
        let mut page = FlatPage::new();
        page.push(b"a", b"x", Timestamp::FIRST, b"-one");
        page.push(b"", b"", Timestamp::FIRST, b"");
        page.push(b"b", b"yy", Timestamp::FIRST, b"-three");
        page
    }

    fn told(page: &FlatPage) -> Vec<String> {
        page.iter().map(|cell| format!("{}={}", cell.cell(), cell.value.escape_ascii())).collect()
    }

    #[test]
    fn cells_come_as_they_were_put() {
        assert_eq!(told(&page()), ["a/x=-one", "/=", "b/yy=-three"]);
        assert_eq!((page().len(), page().byte_len()), (3, 15));
    }

    #[test]
    fn cells_are_hidden_cut_and_shown_where_they_are() {
        let mut page = page();
        page.hide(0);
        page.hide(2);
        page.cut(0, 1);
        assert_eq!(told(&page), ["/="]);
        assert_eq!(page.get(0).value, b"one", "a hidden cell can be looked at");
        assert_eq!(page.last().map(|cell| cell.cell()), Some(Cell::copy_from("b", "yy")));
        page.show(2, b"another");
        page.show(1, b"more");
        assert_eq!(told(&page), ["/=more", "b/yy=another"]);
    }

    #[test]
    #[should_panic(expected = "no more is cut off than there is")]
    fn no_more_is_cut_off_than_there_is() {
        page().cut(0, 5);
    }
}
