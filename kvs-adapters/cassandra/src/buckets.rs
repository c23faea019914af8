//! Where in the index the key of a cell belongs.
//!
//! A bucket is a partition of the index. It holds the keys of cells that begin with its *prefix*, and the root's prefix
//! is empty. When it is full it is *split*: from then on, keys go to its children, whose prefixes are longer. What is in
//! it stays there, and a mark is left in it for each child:
//!
//! ```text
//!   bucket ""          keys acc/1 … acc/4711             full
//!                      marks "acc/2", "acc/3", "use"
//!   bucket "acc/2"     keys acc/20001 …
//!   bucket "use"       keys user/ann …
//! ```
//!
//! A child's prefix is what all keys of the full bucket have in common, and one byte more; or, for a key that leaves
//! that common part earlier, as far as it follows it and one byte more. So names that begin alike cost no levels, and
//! the depth grows with the logarithm of the number of keys.
//!
//! A mark is written before the first key of its child and never removed. Scans follow marks and nothing else, and merge
//! a bucket with its children whatever is in them. So two processes need not agree on which buckets are full or how they
//! are split: each decides for itself, from what it finds in a bucket when it first has to do with it and from what it
//! has put there since. They then disagree about where a key belongs, which makes a bucket larger (each process may fill
//! it once, and what is under way is not counted), or gives two children of which one contains the other, and nothing
//! worse.

use crate::errors::Attempt;
use crate::session::Cluster;
use crate::table::Table;
use bytes::Bytes;
use dashmap::DashMap;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::Mutex;

/// What a row of a bucket is: the mark of a child, whose prefix is the key of the row.
pub(crate) const CHILD: i8 = 1;
/// What a row of a bucket is: an entry, the key of a cell.
pub(crate) const ENTRY: i8 = 2;
/// A key this much longer counts once more.
const KEY_LEN: usize = 256;

/// The partition key of the bucket of a prefix. It may not be empty.
pub(crate) fn partition(prefix: &[u8]) -> Vec<u8> {
    let mut partition = Vec::with_capacity(prefix.len() + 1);
    partition.push(0);
    partition.extend_from_slice(prefix);
    partition
}

/// The buckets of a table, as far as this process has had to do with them.
#[derive(Debug)]
pub(crate) struct Buckets {
    keys_max: usize,
    known: DashMap<Bytes, Arc<Bucket>>,
}

#[derive(Debug, Default)]
struct Bucket {
    // Nothing until the bucket was looked into.
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
enum State {
    /// It takes keys; about so many are in it. A key that is put twice counts twice until it is counted anew.
    Open { keys: usize },
    /// It takes no more keys.
    Split {
        /// What the keys in it have in common, the prefix included.
        common: Bytes,
        /// Prefixes of children whose marks are written.
        children: BTreeSet<Bytes>,
    },
}

impl Buckets {
    pub(crate) fn new(keys_max: usize) -> Buckets {
        Buckets { keys_max, known: DashMap::new() }
    }

    fn bucket(&self, prefix: &Bytes) -> Arc<Bucket> {
        if let Some(bucket) = self.known.get(prefix) {
            return Arc::clone(&bucket);
        }
        Arc::clone(&self.known.entry(prefix.clone()).or_default())
    }
}

impl Cluster {
    /// The prefix of the bucket that the key of a cell is to be put into. All marks that lead there are written.
    pub(crate) async fn bucket_for(&self, table: &Table, key: &Bytes) -> Attempt<Bytes> {
        let mut prefix = Bytes::new();
        loop {
            let bucket = table.buckets.bucket(&prefix);
            // Nobody else looks into it, counts it or writes its marks meanwhile; most pass without waiting.
            let mut state = bucket.state.lock().await;
            if state.is_none() {
                *state = Some(self.look_into(table, &prefix).await?);
            }
            if let Some(State::Open { keys }) = &mut *state {
                *keys += weight(key);
                if *keys <= table.buckets.keys_max {
                    return Ok(prefix);
                }
                *state = Some(self.count_anew(table, &prefix).await?);
            }
            let Some(State::Split { common, children }) = &mut *state else { return Ok(prefix) };
            // A bucket that only one key can be in is never too large.
            let Some(child) = child_for(&prefix, common, children, key) else { return Ok(prefix) };
            if !children.contains(&child) {
                self.put_index_row(table, &prefix, CHILD, &child).await?;
                children.insert(child.clone());
            }
            drop(state);
            prefix = child;
        }
    }

    /// What a bucket is, told by what is in it.
    async fn look_into(&self, table: &Table, prefix: &Bytes) -> Attempt<State> {
        let doing = "looking into the index";
        let mut children = BTreeSet::new();
        let child = |(key,): (Vec<u8>,)| children.extend([Bytes::from(key)]);
        self.all_rows(&table.index.keys, &(partition(prefix), CHILD), doing, child).await?;
        match children.iter().max_by_key(|child| child.len()) {
            Some(longest) => Ok(State::Split { common: longest.slice(..longest.len() - 1), children }),
            None => self.count_anew(table, prefix).await,
        }
    }

    /// A bucket that is more than half full is full: otherwise one that is nearly full, and whose keys are put again and
    /// again, would be counted all the time.
    async fn count_anew(&self, table: &Table, prefix: &Bytes) -> Attempt<State> {
        let keys_max = table.buckets.keys_max;
        let limit = i32::try_from(keys_max).unwrap_or(i32::MAX);
        let values = (partition(prefix), ENTRY, limit);
        let found: Vec<(Vec<u8>,)> = self.rows(&table.index.first, &values, "counting keys of the index").await?;
        let keys = found.iter().map(|(key,)| weight(key)).sum::<usize>();
        if keys <= keys_max / 2 || found.len() < 2 {
            return Ok(State::Open { keys });
        }
        let first = &found[0].0;
        let common = found.iter().map(|(key,)| common_len(first, key)).min().unwrap_or(first.len());
        tracing::debug!(table = %table.name, prefix = %prefix.escape_ascii(), keys, "a bucket of the index is full");
        Ok(State::Split { common: Bytes::copy_from_slice(&first[..common]), children: BTreeSet::new() })
    }

    /// Writes a row of the index.
    pub(crate) async fn put_index_row(&self, table: &Table, prefix: &[u8], kind: i8, key: &Bytes) -> Attempt<()> {
        let values = (partition(prefix), kind, key, self.clock.next());
        self.write(&table.index.put, &values, "writing into the index").await
    }

    /// Makes a cell visible to scans.
    pub(crate) async fn enter(&self, table: &Table, key: &Bytes) -> Attempt<()> {
        let prefix = self.bucket_for(table, key).await?;
        self.put_index_row(table, &prefix, ENTRY, key).await
    }
}

fn weight(key: &[u8]) -> usize {
    1 + key.len() / KEY_LEN
}

fn common_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The child of a split bucket that a key belongs to: one that exists, if there is one.
fn child_for(prefix: &Bytes, common: &Bytes, children: &BTreeSet<Bytes>, key: &Bytes) -> Option<Bytes> {
    let before = (Bound::Unbounded, Bound::Included(key.clone()));
    if let Some(child) = children.range(before).next_back().filter(|child| key.starts_with(child)) {
        return Some(child.clone());
    }
    let len = common_len(common, key) + 1;
    debug_assert!(key.starts_with(prefix) && len > prefix.len(), "a key is looked for along its own prefixes");
    (len <= key.len()).then(|| key.slice(..len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(prefix: &str, common: &str, children: &[&str], key: &str) -> Option<String> {
        let children = children.iter().map(|child| Bytes::copy_from_slice(child.as_bytes())).collect();
        let of = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let child = child_for(&of(prefix), &of(common), &children, &of(key))?;
        Some(String::from_utf8(child.to_vec()).expect("the parts are text"))
    }

    #[test]
    fn common_beginnings_cost_no_levels() {
        assert_eq!(child("", "user/", &[], "user/ann").as_deref(), Some("user/a"));
        assert_eq!(child("", "user/", &[], "under").as_deref(), Some("un"));
        assert_eq!(child("", "user/", &[], "zoo").as_deref(), Some("z"));
        assert_eq!(child("user/a", "user/an", &[], "user/ann").as_deref(), Some("user/ann"));
    }

    #[test]
    fn children_that_exist_are_taken() {
        assert_eq!(child("", "user/", &["user/a", "z"], "user/ann").as_deref(), Some("user/a"));
        assert_eq!(child("", "", &["use"], "user/ann").as_deref(), Some("use"), "another process split it so");
    }

    #[test]
    fn bucket_of_a_single_key_has_no_child() {
        assert_eq!(child("user", "user", &[], "user"), None);
    }
}
