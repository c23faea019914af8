//! Where a table can be cut into ranges of rows of like size.
//!
//! Known without reading the table are the ends of its files, and about how many bytes lie between two keys. Where files are
//! few or lie over each other, keys in between are guessed, evenly spread, and the next key that exists is taken:
//!
//! ```text
//!   files      ├──────────────┤├────────┤├──────────────────────┤
//!   guessed         ·     ·     ·     ·     ·     ·     ·     ·
//!   bytes        30    25   20  15 35    20    30    25    40         between neighbours, estimated
//!   cuts                       ▲                ▲                     where a share is full
//! ```

use crate::db::{Db, family_name};
use crate::errors::{corrupt_key, read_failed};
use crate::keys;
use atlas_kvs::{Result, TableKind, TableRef};
use bytes::Bytes;
use rocksdb::{Range, ReadOptions};
use std::collections::BTreeSet;

/// How many keys are guessed for each part.
const GUESSES: usize = 16;
/// More parts than anybody asks for; each guess is a seek.
const PARTS_MAX: usize = 64;

impl Db {
    /// The first rows of all parts but the first, when a table of versions is cut into at most so many parts.
    pub(crate) fn cut_rows(&self, table: &TableRef, parts: usize) -> Result<Vec<Bytes>> {
        // Given back at once: who changes tables would wait for all that is read here, and everybody else for him.
        let catalog = self.tables.read_recursive();
        let family = self.family(&catalog, table, TableKind::Versioned)?;
        let name = family_name(table, catalog.get(table)?.family);
        drop(catalog);
        let files = self.rocks.live_files().map_err(|error| read_failed(table, error))?;
        let mut ends: BTreeSet<Vec<u8>> = files
            .into_iter()
            .filter(|file| file.column_family_name == name)
            .flat_map(|file| [file.start_key, file.end_key])
            .flatten()
            .collect();
        let (Some(first), Some(last)) = (ends.first().cloned(), ends.last().cloned()) else {
            // All of it lies in memory.
            return Ok(Vec::new());
        };
        let parts = parts.clamp(1, PARTS_MAX);
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.fill_cache(false);
        let mut iterator = self.rocks.raw_iterator_cf_opt(&family, options);
        for guess in keys_between(&first, &last, parts * GUESSES) {
            iterator.seek(&guess);
            ends.extend(iterator.key().map(<[u8]>::to_vec));
            iterator.status().map_err(|error| read_failed(table, error))?;
        }
        let mut rows = BTreeSet::new();
        for key in &ends {
            rows.insert(keys::row_of(key).map_err(|_| corrupt_key(table, key))?);
        }
        let rows: Vec<&[u8]> = rows.into_iter().collect();
        let ranges: Vec<Range<'_>> = rows.windows(2).map(|pair| Range::new(pair[0], pair[1])).collect();
        let sizes = self.rocks.get_approximate_sizes_cf(&family, &ranges);
        cuts(&sizes, parts).into_iter().map(|at| self.plain_row(table, rows[at])).collect()
    }

    fn plain_row(&self, table: &TableRef, escaped: &[u8]) -> Result<Bytes> {
        let mut row = Vec::new();
        keys::take_part(escaped, 0, &mut row).map_err(|_| corrupt_key(table, escaped))?;
        Ok(row.into())
    }
}

/// Evenly spread byte strings between two keys, taken for numbers behind what both begin with.
fn keys_between(first: &[u8], last: &[u8], count: usize) -> Vec<Vec<u8>> {
    const DIGITS: usize = 8;
    let common = first.iter().zip(last).take_while(|(first, last)| first == last).count();
    let number = |key: &[u8]| {
        let mut digits = [0; DIGITS];
        let rest = &key[common..];
        let len = rest.len().min(DIGITS);
        digits[..len].copy_from_slice(&rest[..len]);
        u128::from(u64::from_be_bytes(digits))
    };
    let (low, high, count) = (number(first), number(last), count as u128);
    let key_of = |number: u128| {
        let digits = u64::try_from(number).unwrap_or(u64::MAX).to_be_bytes();
        [&first[..common], &digits].concat()
    };
    (1..count).map(|part| key_of(low + high.saturating_sub(low) * part / count)).collect()
}

/// Behind which of the sizes to cut, for at most so many parts of like size: of each cut the number of sizes before it.
fn cuts(sizes: &[u64], parts: usize) -> Vec<usize> {
    let total: u128 = sizes.iter().copied().map(u128::from).sum();
    let (mut cuts, mut before, mut full) = (Vec::new(), 0u128, 0);
    for (at, size) in sizes.iter().enumerate().take(sizes.len().saturating_sub(1)) {
        before += u128::from(*size);
        // One size may fill several.
        let full_now = (before * parts as u128).checked_div(total).unwrap_or(0);
        if full_now > full && full_now < parts as u128 {
            cuts.push(at + 1);
            full = full_now;
        }
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_like_size() {
        assert_eq!(cuts(&[10; 8], 4), [2, 4, 6]);
        assert_eq!(cuts(&[10, 10, 70, 10, 10], 2), [3]);
        assert_eq!(cuts(&[10, 10, 70, 10, 10], 4), [3]);
        assert_eq!(cuts(&[10; 3], 1), []);
        assert_eq!(cuts(&[10; 3], 9), [1, 2]);
        assert_eq!(cuts(&[0; 3], 3), []);
        assert_eq!(cuts(&[], 3), []);
    }

    #[test]
    fn guesses_ascend_and_lie_between() {
        for (first, last) in
            [("a", "b"), ("user0001", "user9999"), ("", "z"), ("a", "a\u{1}long and longer"), ("a", "a")]
        {
            let (first, last) = (first.as_bytes(), last.as_bytes());
            let guesses = keys_between(first, last, 16);
            assert_eq!(guesses.len(), 15);
            assert!(guesses.is_sorted());
            let mut end = last.to_vec();
            end.extend([0; 16]);
            assert!(guesses.iter().all(|guess| &guess[..] >= first && *guess <= end), "{first:?} {last:?}");
        }
    }
}
