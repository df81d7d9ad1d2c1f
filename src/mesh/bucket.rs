//! Token buckets: how much somebody may do at once, and how much a second from then on.

use crate::model::Time;
use std::collections::BTreeMap;

/// A pace: at most `burst` at once, `per_s` a second in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) burst: u32,
    pub(super) per_s: u32,
}

const NANOS: u64 = 1_000_000_000;

impl Pace {
    /// Time after which an empty bucket is full again, in nanoseconds.
    const fn fill_nanos(self) -> u64 {
        (self.burst as u64) * NANOS / (self.per_s as u64)
    }

    const fn cost_nanos(self, tokens: u32) -> u64 {
        (tokens as u64) * NANOS / (self.per_s as u64)
    }
}

/// One bucket. It holds the moment at which it is full again ("generic cell rate", ITU-T I.371), so that a full one
/// needs no memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    full_at: u64,
}

impl Bucket {
    /// Takes `tokens` if there are as many.
    pub(super) fn take(&mut self, pace: Pace, tokens: u32, now: Time) -> bool {
        let full_at = self.full_at.max(now.as_nanos()).saturating_add(pace.cost_nanos(tokens));
        let has = full_at - now.as_nanos() <= pace.fill_nanos();
        if has {
            self.full_at = full_at;
        }
        has
    }

    /// Whether at least half of it is left.
    pub(super) const fn is_half_full(&self, pace: Pace, now: Time) -> bool {
        self.full_at.saturating_sub(now.as_nanos()) <= pace.fill_nanos() / 2
    }

    const fn is_full(&self, now: Time) -> bool {
        self.full_at <= now.as_nanos()
    }
}

/// A bucket for each of many, of whom those are remembered whose bucket is not full.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    pace: Pace,
    max: usize,
    by_key: BTreeMap<K, Bucket>,
}

impl<K: Ord + Copy> Buckets<K> {
    /// Buckets for at most `max` at a time.
    pub(super) const fn new(pace: Pace, max: usize) -> Self {
        Self { pace, max, by_key: BTreeMap::new() }
    }

    /// Takes `tokens` of `key`'s bucket if there are as many. When too many are remembered already, a newcomer gets
    /// nothing: whoever fills the table with names hurts newcomers for as long as a bucket takes to fill.
    pub(super) fn take(&mut self, key: K, tokens: u32, now: Time) -> bool {
        if self.by_key.len() >= self.max && !self.by_key.contains_key(&key) {
            self.by_key.retain(|_, bucket| !bucket.is_full(now));
            if self.by_key.len() >= self.max {
                return false;
            }
        }
        self.by_key.entry(key).or_default().take(self.pace, tokens, now)
    }

    /// The same, but when too many are remembered, the one that has most left makes room for a newcomer.
    pub(super) fn take_with_room(&mut self, key: K, tokens: u32, now: Time) -> bool {
        if self.by_key.len() >= self.max && !self.by_key.contains_key(&key) {
            let fullest = self.by_key.iter().min_by_key(|(_, bucket)| bucket.full_at).map(|(key, _)| *key);
            fullest.map(|fullest| self.by_key.remove(&fullest));
        }
        self.take(key, tokens, now)
    }

    /// Whether at least half of `key`'s bucket is left.
    pub(super) fn is_half_full(&self, key: &K, now: Time) -> bool {
        self.by_key.get(key).is_none_or(|bucket| bucket.is_half_full(self.pace, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PACE: Pace = Pace { burst: 10, per_s: 2 };

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_its_pace_from_then_on() {
        let mut bucket = Bucket::default();
        let start = Time::from_nanos(77);
        assert_eq!((0..20).filter(|_| bucket.take(PACE, 1, start)).count(), 10);
        assert!(!bucket.is_half_full(PACE, start));
        let later = start + Duration::from_secs(3);
        assert_eq!((0..20).filter(|_| bucket.take(PACE, 1, later)).count(), 6);
        let full = later + Duration::from_secs(100);
        assert!(!bucket.take(PACE, 11, full), "more than it ever holds");
        assert!(bucket.take(PACE, 10, full) && !bucket.take(PACE, 1, full));
        assert!(bucket.is_half_full(PACE, full + Duration::from_millis(2_500)));
    }

    #[test]
    fn many_keys_cost_bounded_memory_and_only_newcomers_suffer() {
        let mut buckets = Buckets::new(PACE, 100);
        assert!((0..100).all(|key| buckets.take(key, 5, Time::ZERO)));
        assert!(!buckets.take(100, 1, Time::ZERO), "the table is full");
        assert!(buckets.take(7, 5, Time::ZERO), "who is known is served");
        assert!(buckets.is_half_full(&8, Time::ZERO) && !buckets.is_half_full(&7, Time::ZERO));
        let later = Time::ZERO + Duration::from_secs(4);
        assert!(buckets.take(100, 1, later));
        assert!(buckets.by_key.len() <= 2, "full buckets are forgotten: {}", buckets.by_key.len());
    }

    #[test]
    fn where_newcomers_must_be_known_who_has_taken_least_makes_room() {
        let mut buckets = Buckets::new(PACE, 100);
        assert!((0..100).all(|key| buckets.take_with_room(key, if key == 42 { 3 } else { 5 }, Time::ZERO)));
        assert!(buckets.take_with_room(100, 9, Time::ZERO));
        assert!(!buckets.take_with_room(100, 2, Time::ZERO), "it is known");
        assert!(!buckets.by_key.contains_key(&42) && buckets.by_key.len() == 100);
    }
}
