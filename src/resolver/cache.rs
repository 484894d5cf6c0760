//! What was found lately, for as long as it may be used. Pure: time comes in as milliseconds.

use std::collections::HashMap;
use std::hash::Hash;

/// Bounded: when it is full, what is used up goes, else what would be used up first.
#[derive(Debug)]
pub struct Cache<K, V> {
    entries: HashMap<K, Entry<V>>,
    most: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    until_ms: u64,
}

impl<K: Eq + Hash + Clone, V> Cache<K, V> {
    /// For at most so many entries.
    pub fn new(most: usize) -> Self {
        Cache { entries: HashMap::new(), most }
    }

    pub fn get(&self, key: &K, now_ms: u64) -> Option<&V> {
        let entry = self.entries.get(key)?;
        (now_ms < entry.until_ms).then_some(&entry.value)
    }

    /// Keeps a value until then.
    pub fn put(&mut self, key: K, value: V, now_ms: u64, until_ms: u64) {
        if until_ms <= now_ms {
            self.entries.remove(&key);
            return;
        }
        if self.entries.len() >= self.most && !self.entries.contains_key(&key) {
            self.entries.retain(|_, entry| now_ms < entry.until_ms);
        }
        if self.entries.len() >= self.most && !self.entries.contains_key(&key) {
            let first = self.entries.iter().min_by_key(|(_, entry)| entry.until_ms);
            if let Some(first) = first.map(|(key, _)| key.clone()) {
                self.entries.remove(&first);
            }
        }
        self.entries.insert(key, Entry { value, until_ms });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_is_there_until_its_time() {
        let mut cache = Cache::new(2);
        cache.put("a", 1, 0, 10);
        assert_eq!((cache.get(&"a", 9), cache.get(&"a", 10)), (Some(&1), None));
        cache.put("a", 2, 10, 20);
        assert_eq!(cache.get(&"a", 19), Some(&2));
        // One that may not be kept replaces one that could be.
        cache.put("a", 3, 10, 10);
        assert_eq!(cache.get(&"a", 10), None);
    }

    #[test]
    fn the_used_up_go_first_then_the_ones_that_are_next() {
        let mut cache = Cache::new(2);
        cache.put("a", 1, 0, 5);
        cache.put("b", 2, 0, 9);
        cache.put("c", 3, 6, 8);
        assert_eq!((cache.get(&"b", 6), cache.get(&"c", 6)), (Some(&2), Some(&3)));
        cache.put("d", 4, 6, 7);
        assert_eq!((cache.get(&"b", 6), cache.get(&"c", 6)), (Some(&2), None));
        assert_eq!(cache.get(&"d", 6), Some(&4));
    }

    proptest! {
        #[test]
        fn never_too_many_and_never_too_old(
            steps in prop::collection::vec((0u8..9, 0u64..20, 0u64..20), 0..60),
        ) {
            let mut cache = Cache::new(4);
            let mut now = 0;
            for (key, later, life) in steps {
                now += later;
                cache.put(key, now + life, now, now + life);
                prop_assert!(cache.entries.len() <= 4);
                prop_assert_eq!(cache.get(&key, now).is_some(), life > 0);
                for key in 0..9 {
                    prop_assert!(cache.get(&key, now).is_none_or(|until| now < *until));
                }
            }
        }
    }
}
