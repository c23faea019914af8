//! A walk along the index: the keys of cells, in order.
//!
//! ```text
//!   bucket ""           entries  b   d         p      ┐
//!   bucket "d"          entries       da  dz          ├─ merged:  b d da dz k m p
//!   bucket "k"…"m"      entries              k  m     ┘
//! ```
//!
//! A bucket is opened when the walk comes to where its keys may begin, and not before; then its marks are read, which
//! tell its children, and the first page of its entries. So what is held is a page of each bucket between the root and
//! the place where the walk is. Marks are always read anew: a walk finds every entry that was written before it began,
//! by whomever.

use crate::buckets::{CHILD, ENTRY, partition};
use crate::clock::WriteTime;
use crate::errors::Attempt;
use crate::session::Cluster;
use crate::table::Table;
use bytes::Bytes;
use futures::future::try_join_all;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

/// Keys of a bucket that are fetched at a time.
const PAGE_MIN: usize = 64;
const PAGE_MAX: usize = 1_024;
/// Buckets that are opened at a time, where the walk is sure to come to all of them.
const OPENED_MAX: usize = 8;

/// Keys from `start` on, up to, not including, `end`.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyRange {
    pub(crate) start: Bytes,
    pub(crate) end: Option<Bytes>,
}

impl KeyRange {
    pub(crate) fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Leaves out what lies before.
    pub(crate) fn begin_at(&mut self, start: Bytes) {
        if start > self.start {
            self.start = start;
        }
    }

    /// Leaves out what lies there and behind.
    pub(crate) fn end_at(&mut self, end: Bytes) {
        if self.end.as_ref().is_none_or(|old| end < *old) {
            self.end = Some(end);
        }
    }

    /// Whether a key that begins with `prefix` can lie in the range.
    fn meets(&self, prefix: &[u8]) -> bool {
        (prefix >= &self.start[..] || self.start.starts_with(prefix))
            && self.end.as_ref().is_none_or(|end| prefix < &end[..])
    }
}

/// An entry of the index.
#[derive(Clone, Debug)]
pub(crate) struct IndexEntry {
    /// The prefix of the bucket it is in.
    pub(crate) prefix: Bytes,
    pub(crate) key: Bytes,
    pub(crate) written: WriteTime,
}

/// A bucket on the way.
#[derive(Debug)]
struct Source {
    prefix: Bytes,
    // Nothing before it is opened. Afterwards never empty.
    entries: Option<VecDeque<(Bytes, WriteTime)>>,
    /// What is left behind `entries`.
    rest: KeyRange,
    done: bool,
    reverse: bool,
}

impl Source {
    fn unopened(prefix: Bytes, range: &KeyRange, reverse: bool) -> Source {
        Source { prefix, entries: None, rest: range.clone(), done: false, reverse }
    }

    /// Where the walk meets it next: at a key, or at the first place where one of its keys can be. Backward, that is
    /// behind everything that begins with its prefix.
    fn front(&self) -> (&[u8], bool) {
        match &self.entries {
            Some(entries) => (entries.front().map_or(&[], |(key, _)| key), false),
            None => (&self.prefix, self.reverse),
        }
    }
}

/// Compares two places of which each may mean "behind everything that begins so".
fn compare((a, a_behind): (&[u8], bool), (b, b_behind): (&[u8], bool)) -> Ordering {
    if a_behind && b.starts_with(a) {
        return if b_behind && a == b { Ordering::Equal } else { Ordering::Greater };
    }
    if b_behind && a.starts_with(b) {
        return Ordering::Less;
    }
    a.cmp(b)
}

impl Ord for Source {
    /// The greatest is the one that the walk comes to next.
    fn cmp(&self, other: &Source) -> Ordering {
        let forward = compare(self.front(), other.front());
        let order = if self.reverse { forward } else { forward.reverse() };
        // At the same place, what is not opened comes first: it may hold just that key.
        order.then_with(|| self.entries.is_none().cmp(&other.entries.is_none()))
    }
}

impl PartialOrd for Source {
    fn partial_cmp(&self, other: &Source) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Source) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Source {}

/// Goes along the index of a table.
#[derive(Debug)]
pub(crate) struct Walk {
    range: KeyRange,
    reverse: bool,
    page: usize,
    sources: BinaryHeap<Source>,
}

impl Walk {
    pub(crate) fn new(range: KeyRange, reverse: bool, page_size: usize) -> Walk {
        let mut sources = BinaryHeap::new();
        if !range.is_empty() {
            sources.push(Source::unopened(Bytes::new(), &range, reverse));
        }
        Walk { range, reverse, page: page_size.clamp(PAGE_MIN, PAGE_MAX), sources }
    }

    /// The next entry. A key that is in two buckets comes twice, one behind the other.
    pub(crate) async fn next(&mut self, cluster: &Cluster, table: &Table) -> Attempt<Option<IndexEntry>> {
        loop {
            let Some(mut source) = self.sources.pop() else { return Ok(None) };
            let Some(entries) = &mut source.entries else {
                self.open(cluster, table, source).await?;
                continue;
            };
            let Some((key, written)) = entries.pop_front() else { continue };
            let entry = IndexEntry { prefix: source.prefix.clone(), key, written };
            if entries.is_empty() && !source.done {
                self.fetch(cluster, table, &mut source).await?;
            }
            if source.entries.as_ref().is_some_and(|entries| !entries.is_empty()) {
                self.sources.push(source);
            }
            return Ok(Some(entry));
        }
    }

    /// Opens a bucket, and those that would be opened next.
    async fn open(&mut self, cluster: &Cluster, table: &Table, first: Source) -> Attempt<()> {
        let mut unopened = vec![first];
        while unopened.len() < OPENED_MAX && self.sources.peek().is_some_and(|source| source.entries.is_none()) {
            unopened.extend(self.sources.pop());
        }
        let opened = unopened.into_iter().map(|mut source| async {
            let mut children = Vec::new();
            let marks = (partition(&source.prefix), CHILD);
            let child = |(key,): (Vec<u8>,)| children.push(Bytes::from(key));
            let marks = cluster.all_rows(&table.index.keys, &marks, "reading the index", child);
            let (marks, entries) = futures::join!(marks, self.fetch(cluster, table, &mut source));
            marks.and(entries)?;
            Attempt::Ok((source, children))
        });
        for (source, children) in try_join_all(opened).await? {
            let children = children.into_iter().filter(|child| self.range.meets(child));
            let children: Vec<_> = children.map(|child| Source::unopened(child, &self.range, self.reverse)).collect();
            self.sources.extend(children);
            if source.entries.as_ref().is_some_and(|entries| !entries.is_empty()) {
                self.sources.push(source);
            }
        }
        Ok(())
    }

    /// Reads the next page of entries of a bucket.
    async fn fetch(&self, cluster: &Cluster, table: &Table, source: &mut Source) -> Attempt<()> {
        let statement = if self.reverse { &table.index.backward } else { &table.index.forward };
        let (end_kind, end) = match &source.rest.end {
            Some(end) => (ENTRY, end.clone()),
            None => (ENTRY + 1, Bytes::new()),
        };
        let limit = i32::try_from(self.page).unwrap_or(i32::MAX);
        let values = (partition(&source.prefix), ENTRY, &source.rest.start, end_kind, &end, limit);
        let rows: Vec<(Vec<u8>, Option<i64>)> = cluster.rows(statement, &values, "reading the index").await?;
        source.done = rows.len() < self.page;
        // Without a write timestamp it is not one of ours; the newest possible is never removed.
        let entries: VecDeque<_> =
            rows.into_iter().map(|(key, written)| (Bytes::from(key), written.unwrap_or(WriteTime::MAX))).collect();
        if let Some((last, _)) = entries.back() {
            match self.reverse {
                true => source.rest.end = Some(last.clone()),
                false => source.rest.start = behind(last),
            }
            source.done |= source.rest.is_empty();
        }
        source.entries = Some(entries);
        Ok(())
    }
}

/// The smallest key behind this one.
pub(crate) fn behind(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_behind_a_prefix_are_behind_all_that_begins_with_it() {
        let at = |text: &'static str| (text.as_bytes(), false);
        let behind = |text: &'static str| (text.as_bytes(), true);
        let order = [at("a"), at("ab"), at("abz"), behind("ab"), at("ac"), behind("a"), at("b"), behind("")];
        for (i, a) in order.into_iter().enumerate() {
            for (j, b) in order.into_iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn ranges_meet_the_prefixes_of_their_keys() {
        let range = KeyRange { start: "bc".into(), end: Some("d".into()) };
        for (prefix, meets) in [("", true), ("b", true), ("bc", true), ("bcd", true), ("bb", false), ("c", true)] {
            assert_eq!(range.meets(prefix.as_bytes()), meets, "{prefix}");
        }
        assert!(!range.meets(b"d") && !range.meets(b"a"));
        assert!(KeyRange { start: "a".into(), end: None }.meets(b"\xff"));
    }
}
