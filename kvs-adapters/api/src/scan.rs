//! What to scan: ranges of rows, selections of columns, direction.

use crate::{Cell, Timestamp};
use bytes::Bytes;
use std::collections::BTreeSet;

/// A range of rows: `start` inclusive, `end` exclusive, `None` for no end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowRange {
    /// First row of the range. Empty: from the beginning.
    pub start: Bytes,
    /// First row behind the range. `None`: to the end of the table.
    pub end: Option<Bytes>,
}

impl RowRange {
    /// Every row.
    pub fn all() -> RowRange {
        RowRange::default()
    }

    /// Rows from `start` up to, not including, `end`.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> RowRange {
        RowRange { start: start.into(), end: Some(end.into()) }
    }

    /// Just this row.
    pub fn single(row: impl Into<Bytes>) -> RowRange {
        let row = row.into();
        let mut end = row.to_vec();
        end.push(0);
        RowRange { start: row, end: Some(end.into()) }
    }

    /// Every row that starts with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> RowRange {
        let start = prefix.into();
        let end = after_prefix(&start);
        RowRange { start, end }
    }

    /// True if `row` lies in the range.
    pub fn contains(&self, row: &[u8]) -> bool {
        row >= &self.start[..] && self.end.as_ref().is_none_or(|end| row < &end[..])
    }

    /// True if no row can lie in the range.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end <= &self.start)
    }

    /// True if the range holds exactly one possible row.
    pub fn is_single(&self) -> bool {
        self.end.as_ref().is_some_and(|end| {
            end.len() == self.start.len() + 1 && end.last() == Some(&0) && end.starts_with(&self.start)
        })
    }
}

/// The smallest name greater than all names that start with `prefix`; nothing if there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let keep = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end.into())
}

/// Which columns of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ColumnSelection {
    /// Every column.
    #[default]
    All,
    /// These columns. An empty set selects none.
    Exactly(BTreeSet<Bytes>),
    /// Columns from `start` (inclusive) to `end` (exclusive; `None`: to the last).
    Range {
        /// First column.
        start: Bytes,
        /// First column behind the range.
        end: Option<Bytes>,
    },
}

impl ColumnSelection {
    /// True if `column` is selected.
    pub fn contains(&self, column: &[u8]) -> bool {
        match self {
            ColumnSelection::All => true,
            ColumnSelection::Exactly(columns) => columns.contains(column),
            ColumnSelection::Range { start, end } => {
                column >= &start[..] && end.as_ref().is_none_or(|end| column < &end[..])
            }
        }
    }
}

/// A scan of a versioned table: of each cell the newest version below `read_before`.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Which rows.
    pub rows: RowRange,
    /// Which columns of each.
    pub columns: ColumnSelection,
    /// Only versions below this are seen.
    pub read_before: Timestamp,
    /// From the last cell to the first: rows and columns both descending.
    pub reverse: bool,
    /// Start strictly behind this cell in scan order; for resuming.
    pub after: Option<Cell>,
    /// How many cells to fetch at a time; a hint, for which every number is allowed.
    pub page_size: usize,
    /// What is read is hardly needed again, and need not drive anything else out of the store's caches; a hint.
    pub bypass_cache: bool,
}

impl Scan {
    /// A forward scan of all cells of `rows`.
    pub fn new(rows: RowRange, read_before: Timestamp) -> Scan {
        Scan {
            rows,
            columns: ColumnSelection::All,
            read_before,
            reverse: false,
            after: None,
            page_size: 256,
            bypass_cache: false,
        }
    }

    /// The same scan from the end to the beginning.
    pub fn reversed(self) -> Scan {
        Scan { reverse: true, ..self }
    }

    /// The same scan of these columns only.
    pub fn columns(self, columns: ColumnSelection) -> Scan {
        Scan { columns, ..self }
    }
}

/// A scan of a versioned table for all versions of each cell, in ascending order of cells.
#[derive(Clone, Debug)]
pub struct VersionScan {
    /// Which rows.
    pub rows: RowRange,
    /// Start strictly behind this cell; for resuming.
    pub after: Option<Cell>,
    /// Only versions below this are seen. Cells without any are left out.
    pub read_before: Timestamp,
    /// How many cells to fetch at a time; a hint, for which every number is allowed.
    pub page_size: usize,
}

impl VersionScan {
    /// All versions below `read_before` of all cells of `rows`.
    pub fn new(rows: RowRange, read_before: Timestamp) -> VersionScan {
        VersionScan { rows, after: None, read_before, page_size: 256 }
    }
}

/// A scan of an atomic table.
#[derive(Clone, Debug)]
pub struct AtomicScan {
    /// Which rows.
    pub rows: RowRange,
    /// From the last cell to the first.
    pub reverse: bool,
    /// Start strictly behind this cell in scan order; for resuming.
    pub after: Option<Cell>,
    /// How many cells to fetch at a time; a hint, for which every number is allowed.
    pub page_size: usize,
}

impl AtomicScan {
    /// A forward scan of all cells of `rows`.
    pub fn new(rows: RowRange) -> AtomicScan {
        AtomicScan { rows, reverse: false, after: None, page_size: 256 }
    }

    /// The same scan from the end to the beginning.
    pub fn reversed(self) -> AtomicScan {
        AtomicScan { reverse: true, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_range_ends_behind_the_last_name_with_the_prefix() {
        assert_eq!(after_prefix(b"ab"), Some(Bytes::from_static(b"ac")));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(Bytes::from_static(b"b")));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }

    #[test]
    fn single_row_range_holds_that_row_and_no_other() {
        let range = RowRange::single("a");
        assert!(range.is_single() && range.contains(b"a") && !range.contains(b"a\0") && !range.contains(b"b"));
        assert!(!RowRange::new("a", "b").is_single());
    }
}
