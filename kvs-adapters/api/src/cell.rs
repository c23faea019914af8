//! Cells, versions and the timestamps that order them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A point in logical time, issued by the timestamp oracle; never wall-clock time.
///
/// Data lies at timestamps from [`Timestamp::FIRST`] up to, not including, [`Timestamp::MAX`], which fits in the
/// signed 64-bit integers of SQL stores. Zero is the place of the sentinel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Timestamp(u64);

impl TryFrom<u64> for Timestamp {
    type Error = String;

    fn try_from(number: u64) -> Result<Timestamp, String> {
        Timestamp::new(number).ok_or_else(|| format!("{number} is greater than every timestamp"))
    }
}

impl From<Timestamp> for u64 {
    fn from(ts: Timestamp) -> u64 {
        ts.0
    }
}

impl Timestamp {
    /// Where sweep leaves the mark "older versions of this cell were removed".
    pub const SENTINEL: Timestamp = Timestamp(0);
    /// The smallest timestamp that data can have.
    pub const FIRST: Timestamp = Timestamp(1);
    /// Above every timestamp that data can have. As `read_before` it means "everything".
    pub const MAX: Timestamp = Timestamp(i64::MAX as u64);

    /// A timestamp of this number, or nothing if the number is above [`Timestamp::MAX`].
    pub const fn new(number: u64) -> Option<Timestamp> {
        if number <= Timestamp::MAX.0 { Some(Timestamp(number)) } else { None }
    }

    /// A timestamp of this number, cut off at [`Timestamp::MAX`].
    pub const fn saturating(number: u64) -> Timestamp {
        if number <= Timestamp::MAX.0 { Timestamp(number) } else { Timestamp::MAX }
    }

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The next greater timestamp; [`Timestamp::MAX`] stays where it is.
    pub const fn next(self) -> Timestamp {
        Timestamp::saturating(self.0 + 1)
    }

    /// The next smaller timestamp; zero stays where it is.
    pub const fn previous(self) -> Timestamp {
        Timestamp(self.0.saturating_sub(1))
    }

    /// True for a timestamp that data may be written at.
    pub fn is_data(self) -> bool {
        self >= Timestamp::FIRST && self < Timestamp::MAX
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Every byte at its own place.
static BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

/// The address of a value: a row and a column in it. Both may be empty and may hold any bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cell {
    /// The row, first in the order of a table.
    pub row: Bytes,
    /// The column, second in the order of a table.
    pub column: Bytes,
}

impl Cell {
    /// A cell of this row and column.
    pub fn new(row: impl Into<Bytes>, column: impl Into<Bytes>) -> Cell {
        Cell { row: row.into(), column: column.into() }
    }

    /// A cell of these bytes, copied. Row and column share their memory.
    pub fn copy_from(row: impl AsRef<[u8]>, column: impl AsRef<[u8]>) -> Cell {
        let (row, column) = (row.as_ref(), column.as_ref());
        // Columns of one byte are common, and their bytes are always there.
        if let [byte] = column {
            let at = usize::from(*byte);
            return Cell { row: Bytes::copy_from_slice(row), column: Bytes::from_static(&BYTES[at..=at]) };
        }
        let mut names = Bytes::from([row, column].concat());
        let column = names.split_off(row.len());
        Cell { row: names, column }
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.row.escape_ascii(), self.column.escape_ascii())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One version of a cell, with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The timestamp it was written at.
    pub ts: Timestamp,
    /// The content, which may be empty.
    pub bytes: Bytes,
}

/// One version of a cell without its content: what sweep and conflict checks need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The timestamp it was written at.
    pub ts: Timestamp,
    /// Length of the content in bytes.
    pub len: u64,
    /// The first [`Version::PREFIX_LEN`] bytes of the content, or all of it where it is shorter.
    pub prefix: Bytes,
}

impl Version {
    /// How much of the content a version shows: enough for the header that the transaction layer puts in front.
    pub const PREFIX_LEN: usize = 16;
}

/// A cell and the exclusive upper bound of a read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellBound {
    /// What to read.
    pub cell: Cell,
    /// Only versions below this are seen.
    pub read_before: Timestamp,
}

impl CellBound {
    /// A read of `cell` that sees versions below `read_before`.
    pub fn new(cell: Cell, read_before: Timestamp) -> CellBound {
        CellBound { cell, read_before }
    }
}

/// Exact versions of one cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellTimestamps {
    /// The cell.
    pub cell: Cell,
    /// The versions, in any order; adapters sort them.
    pub timestamps: Vec<Timestamp>,
}

/// A range of versions of one cell, from the oldest up to a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellVersionRange {
    /// The cell.
    pub cell: Cell,
    /// Versions below this belong to the range. Zero: the range is empty.
    pub before: Timestamp,
    /// Whether the sentinel, being below `before`, belongs to the range too.
    pub include_sentinel: bool,
}

/// All versions of one cell below the bound of the scan, oldest first, the sentinel included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellVersions {
    /// The cell.
    pub cell: Cell,
    /// Never empty; ascending by timestamp.
    pub versions: Vec<Version>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_cell_has_the_names_it_was_given() {
        for column in [&b""[..], b"\0", b"b", b"\xff", b"column"] {
            for row in [&b""[..], b"r", b"row"] {
                let cell = Cell::copy_from(row, column);
                assert_eq!((&cell.row[..], &cell.column[..]), (row, column));
            }
        }
    }
}
