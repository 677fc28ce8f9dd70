//! Which prefixes are on disk, in the order of their use.

use std::cmp::Reverse;
use std::sync::Arc;

/// Most prefixes, however small they are: all are compared with every prompt.
const MOST: usize = 4096;

/// A prefix on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPrefix {
    /// Scope of the requests that it is of.
    pub scope: u64,
    /// Its tokens.
    pub tokens: Arc<[u32]>,
    /// Name of the file.
    pub(super) name: String,
    /// Bytes of the file.
    pub(super) bytes: u64,
}

/// The prefixes, the least recently used first.
#[derive(Debug, Default)]
pub(super) struct PrefixIndex(Vec<StoredPrefix>);

impl PrefixIndex {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|stored| stored.bytes).sum()
    }

    /// The prefixes, the most recently used first.
    pub(super) fn recent(&self) -> impl Iterator<Item = &StoredPrefix> {
        self.0.iter().rev()
    }

    /// The prefix of which most positions are usable, and how many; of equals the one that is read fastest.
    pub(super) fn longest(&self, usable: impl Fn(&StoredPrefix) -> usize) -> Option<(&StoredPrefix, usize)> {
        let all = self.0.iter().map(|stored| (stored, usable(stored))).filter(|(_, count)| *count > 0);
        all.max_by_key(|(stored, count)| (*count, Reverse(stored.bytes)))
    }

    /// Adds a prefix as the one that was used last.
    pub(super) fn add(&mut self, prefix: StoredPrefix) {
        self.remove(&prefix.name);
        self.0.push(prefix);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<StoredPrefix> {
        let at = self.0.iter().position(|stored| stored.name == name)?;
        Some(self.0.remove(at))
    }

    /// Notes that a prefix is used now.
    pub(super) fn touch(&mut self, name: &str) {
        if let Some(prefix) = self.remove(name) {
            self.0.push(prefix);
        }
    }

    /// Removes those used longest ago, so that `bytes` more stay within `limit`.
    pub(super) fn make_room(&mut self, bytes: u64, limit: u64) -> Vec<StoredPrefix> {
        let (mut have, mut count) = (self.bytes(), 0);
        for stored in &self.0 {
            if have.saturating_add(bytes) <= limit && self.0.len() - count < MOST {
                break;
            }
            (have, count) = (have - stored.bytes, count + 1);
        }
        self.0.drain(..count).collect()
    }

    /// Removes those of whose positions `prefix` has all.
    pub(super) fn remove_covered(&mut self, prefix: &StoredPrefix) -> Vec<StoredPrefix> {
        let covers = |stored: &mut StoredPrefix| {
            let is_other = stored.name != prefix.name && stored.scope == prefix.scope;
            is_other && prefix.tokens.starts_with(&stored.tokens)
        };
        self.0.extract_if(.., covers).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(name: &str, scope: u64, tokens: &[u32], bytes: u64) -> StoredPrefix {
        StoredPrefix { scope, tokens: tokens.into(), name: name.to_owned(), bytes }
    }

    fn names(prefixes: &[StoredPrefix]) -> Vec<&str> {
        prefixes.iter().map(|prefix| prefix.name.as_str()).collect()
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let mut index = PrefixIndex::default();
        for (name, bytes) in [("a", 10), ("b", 20), ("c", 30)] {
            index.add(prefix(name, 1, &[1], bytes));
        }
        index.touch("a");
        index.touch("unknown");
        assert_eq!((index.bytes(), index.len()), (60, 3));
        assert!(index.make_room(40, 100).is_empty());
        assert_eq!(names(&index.make_room(41, 100)), ["b"]);
        assert_eq!(names(&index.make_room(61, 100)), ["c"]);
        assert_eq!(names(&index.make_room(u64::MAX, 100)), ["a"]);
        assert!(index.make_room(u64::MAX, 100).is_empty());
        // The same again is no second.
        index.add(prefix("a", 1, &[1], 10));
        index.add(prefix("a", 1, &[1], 10));
        assert_eq!(index.len(), 1);
        (0..MOST).for_each(|at| index.add(prefix(&at.to_string(), 1, &[1], 0)));
        assert_eq!(names(&index.make_room(0, 100)), ["a", "0"]);
        assert_eq!(index.len(), MOST - 1, "room for one more");
    }

    #[test]
    fn the_longest_is_found_and_what_it_covers_removed() {
        let mut index = PrefixIndex::default();
        index.add(prefix("short", 1, &[1, 2], 10));
        index.add(prefix("large", 1, &[1, 2, 3, 4], 30));
        index.add(prefix("other", 1, &[1, 9], 10));
        index.add(prefix("another's", 2, &[1, 2], 10));
        let found = |tokens: &[u32]| {
            let same = |stored: &StoredPrefix| {
                let same = stored.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
                if stored.scope == 1 { same } else { 0 }
            };
            index.longest(same).map(|(stored, count)| (stored.name.clone(), count))
        };
        assert_eq!(found(&[1, 2, 3]), Some(("large".to_owned(), 3)));
        assert_eq!(found(&[1, 2, 7]), Some(("short".to_owned(), 2)), "the smaller file of equals");
        assert_eq!(found(&[7]), None);
        let longer = prefix("longer", 1, &[1, 2, 3, 4, 5], 50);
        assert_eq!(names(&index.remove_covered(&longer)), ["short", "large"]);
        assert_eq!(index.recent().map(|stored| stored.name.as_str()).collect::<Vec<_>>(), ["another's", "other"]);
    }
}
