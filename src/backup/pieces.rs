//! Tables in pieces, so that a portable backup reads several ranges of rows of one table at the same time.
//!
//! One range after the other, a reader, a checksum and a disk wait for each other. A piece is a stream of its own and has
//! files of its own; in the end they are numbered as if one stream had been cut into them:
//!
//! ```text
//!   rows     ─────────────────────┼───────────────────┼──────────────────
//!   written  00003-00000.000000 … │ 00003-00001.000000│ 00003-00002.000000 …
//!   named    00003.000000, 000001 │ 00003.000002      │ 00003.000003 …
//! ```
//!
//! A row lies in one piece, so no cell is cut, and cells ascend from file to file.

use super::contents::{chunk_name, chunk_path, table_stem};
use super::files::io;
use super::manifest::ManifestFile;
use crate::Result;
use atlas_kvs::{KeyValueService, RowRange, TableRef};
use bytes::Bytes;
use std::path::Path;

/// Most pieces of a table. More would not end sooner: only a few are read at a time.
const PIECES_MAX: u64 = 16;

/// Ranges of rows that together are all of a table, in order: as many as are worth a file each, where the store knows where
/// to cut.
pub(super) async fn ranges(kvs: &dyn KeyValueService, table: &TableRef, file_size: u64) -> Result<Vec<RowRange>> {
    let bytes = kvs.table_size(table).await?.bytes;
    // Half a file: of whole ones, those that turn out a little longer than thought would have a tiny second file.
    let pieces = (bytes / (file_size / 2).max(1)).clamp(1, PIECES_MAX);
    let mut cuts = if pieces > 1 { kvs.cut_rows(table, pieces as usize).await? } else { Vec::new() };
    // A hint, which must not decide whether a row is read once.
    cuts.sort();
    cuts.dedup();
    Ok(between(cuts))
}

fn between(cuts: Vec<Bytes>) -> Vec<RowRange> {
    let mut ranges = Vec::with_capacity(cuts.len() + 1);
    let mut start = Bytes::new();
    for cut in cuts.into_iter().filter(|cut| !cut.is_empty()) {
        ranges.push(RowRange { start, end: Some(cut.clone()) });
        start = cut;
    }
    ranges.push(RowRange { start, end: None });
    ranges
}

/// What the names of a piece's files begin with, until they have their own.
pub(super) fn piece_stem(place: usize, piece: usize) -> String {
    format!("{}-{piece:05}", table_stem(place))
}

/// Gives the files of a table's pieces, in order, the names of the table's files. Blocks the thread. The names are durable
/// when the directory is synced.
pub(super) fn name_files(directory: &Path, place: usize, pieces: Vec<Vec<ManifestFile>>) -> Result<Vec<ManifestFile>> {
    let stem = table_stem(place);
    let mut named = Vec::new();
    for (piece, files) in pieces.into_iter().enumerate() {
        for (file, number) in files.into_iter().zip(0..) {
            let target = u32::try_from(named.len()).unwrap_or(u32::MAX);
            let to = directory.join(chunk_name(&stem, target));
            std::fs::rename(directory.join(chunk_name(&piece_stem(place, piece), number)), &to)
                .map_err(io("renaming a file to", &to))?;
            named.push(ManifestFile { path: chunk_path(&stem, target), ..file });
        }
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_all_of_a_table() {
        let row = |name: &'static str| Bytes::from_static(name.as_bytes());
        assert_eq!(between(Vec::new()), [RowRange::all()]);
        assert_eq!(between(vec![row("")]), [RowRange::all()]);
        let ranges = between(vec![row("b"), row("d")]);
        let expected = [RowRange::new("", "b"), RowRange::new("b", "d"), RowRange { start: row("d"), end: None }];
        assert_eq!(ranges, expected);
    }
}
