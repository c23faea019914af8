//! All versions of cells by name, as sweep asks for them.
//!
//! Two ways lead from one cell to the next. A *look* asks the filters and goes straight to a cell wherever it lies. A *walk* goes
//! on from where the last cell has ended, which costs a fraction of that where the cells asked for are neighbours, as they are
//! after a bulk load:
//!
//! ```text
//!   cells in the store   a  b  c  d  e  f  g  h  …
//!   asked for            a  b  c  d                 walked: one step each
//!   asked for            a              f           looked for: the filters pass over what lies between
//! ```
//!
//! Which it is shows when one tries. A walk that did not lead to the next cell is tried again after twice as many cells.

use crate::db::{Db, RawIterator};
use crate::errors::read_failed;
use crate::keys;
use crate::read::{Tier, in_key_order, point_options, versions_here};
use atlas_kvs::{Cell, CellBound, Result, TableKind, TableRef, Timestamp, Version};

/// How many steps a walk takes at most to the next cell: cells that are not asked for may lie before it, and versions too young
/// to be. A look costs about as much as so many.
const STEPS_MAX: usize = 32;
/// And past how many bytes: what lies on the way is read, and a look would pass over it.
const BYTES_MAX: usize = 16 << 10;
/// For fewer cells than this no walk is tried.
const CELLS_MIN: usize = 16;

impl Db {
    /// All versions below each bound, oldest first. Goes to the disk if it must.
    pub(crate) fn versions(&self, table: &TableRef, bounds: &[CellBound]) -> Result<Vec<Vec<Version>>> {
        let family = self.family(&self.tables.read_recursive(), table, TableKind::Versioned)?;
        let mut look = self.rocks.raw_iterator_cf_opt(&family, point_options(Tier::Disk));
        let mut walk = (bounds.len() >= CELLS_MIN).then(|| {
            let mut options = Tier::Disk.options();
            // The filters know single cells only.
            options.set_total_order_seek(true);
            Walk { iterator: self.rocks.raw_iterator_cf_opt(&family, options), rest: 0, next_rest: 1 }
        });
        let mut answers = vec![Vec::new(); bounds.len()];
        let mut key = Vec::new();
        let mut last: Option<&Cell> = None;
        for index in in_key_order(bounds) {
            let CellBound { cell, read_before } = &bounds[index];
            if *read_before == Timestamp::SENTINEL {
                continue;
            }
            key.clear();
            keys::push_cell(&mut key, cell);
            let cell_len = key.len();
            keys::push_timestamp(&mut key, read_before.previous());
            // Of the same cell again the walk has gone past what is asked for now.
            let is_again = last.replace(cell) == Some(cell);
            let walked = match walk.as_mut().filter(|_| !is_again) {
                Some(walk) => walk.to(&key).map_err(|error| read_failed(table, error))?,
                None => None,
            };
            let iterator = match walked {
                Some(iterator) => iterator,
                None => {
                    look.seek(&key);
                    &mut look
                }
            };
            answers[index] = versions_here(table, iterator, &key[..cell_len])?;
            iterator.status().map_err(|error| read_failed(table, error))?;
        }
        Ok(answers)
    }
}

/// An iterator over all keys, which goes forward only.
struct Walk<'a> {
    iterator: RawIterator<'a>,
    /// How many cells are looked for before it is tried again.
    rest: usize,
    /// How many then, if that fails.
    next_rest: usize,
}

impl<'a> Walk<'a> {
    /// The iterator at the first key at or behind this one, which has to be behind all that it has passed; nothing where it
    /// is better to look.
    fn to(&mut self, key: &[u8]) -> std::result::Result<Option<&mut RawIterator<'a>>, rocksdb::Error> {
        if self.rest > 0 {
            self.rest -= 1;
            if self.rest > 0 {
                return Ok(None);
            }
            // The next cell shows whether it was worth it.
            self.iterator.seek(key);
            return Ok(Some(&mut self.iterator));
        }
        let mut passed = 0;
        for _ in 0..STEPS_MAX {
            match self.iterator.item() {
                Some((at, _)) if at >= key => {
                    self.next_rest = 1;
                    return Ok(Some(&mut self.iterator));
                }
                Some((at, value)) if passed < BYTES_MAX => {
                    passed += at.len() + value.len();
                    self.iterator.next();
                }
                _ => break,
            }
        }
        self.iterator.status()?;
        self.rest = self.next_rest;
        self.next_rest *= 2;
        Ok(None)
    }
}
