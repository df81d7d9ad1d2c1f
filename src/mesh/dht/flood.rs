//! How much of this node's DHT one member may use: a token bucket for its requests and one for its announcements.
//!
//! Requests beyond the rate are delayed: the member's streams are not read until the bucket has something
//! again, and QUIC's windows bound what it can send meanwhile. Announcements beyond the rate are dropped. Who is beyond
//! its rate without a break for [`FLOOD`] is a flooder: its connections are closed, and it is banned for a while.

use crate::model::{NodeId, Time};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Messages of one member that are taken, a second and at once. A look-up asks a node once or twice and each request
/// counts up to three (negotiation, request, end): in the smallest mesh, where everybody is asked at every step, an
/// announcer at its full rate needs a third of this.
pub(super) const REQUESTS: Rate = Rate { per_s: 64, burst: 1_024 };
/// Announcements of one member: four times its own pace.
pub(super) const ANNOUNCEMENTS: Rate = Rate { per_s: 16, burst: 256 };
/// How long a member may be beyond its rate.
pub(super) const FLOOD: Duration = Duration::from_secs(30);
/// Members that are kept account of; those that have not used anything lately make room.
const MEMBERS_MAX: usize = 4_096;

/// What a bucket gains a second, and holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) per_s: u64,
    pub(super) burst: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// In thousandths of a token.
    level: u64,
    filled: Time,
    /// Since when it has been empty, but for moments.
    dry_since: Option<Time>,
}

/// A bucket for each member.
#[derive(Debug)]
pub(super) struct Buckets {
    rate: Rate,
    members: HashMap<NodeId, Bucket>,
}

impl Buckets {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, members: HashMap::new() }
    }

    /// Takes one token. `Err` says how long to wait for the next.
    pub(super) fn take(&mut self, node: NodeId, now: Time) -> Result<(), Duration> {
        let full = self.rate.burst * 1_000;
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(&node) {
            self.tidy(now);
            if self.members.len() >= MEMBERS_MAX {
                return Err(Duration::from_secs(1));
            }
        }
        let bucket = self.members.entry(node).or_insert(Bucket { level: full, filled: now, dry_since: None });
        bucket.fill(self.rate, now);
        if bucket.level >= 1_000 {
            bucket.level -= 1_000;
            return Ok(());
        }
        bucket.dry_since.get_or_insert(now);
        let millis = (1_000 - bucket.level).div_ceil(self.rate.per_s.max(1));
        Err(Duration::from_millis(millis.max(1)))
    }

    /// Who has been beyond its rate for [`FLOOD`].
    pub(super) fn flooders(&mut self, now: Time) -> Vec<NodeId> {
        let rate = self.rate;
        let mut flooders: Vec<NodeId> = self
            .members
            .iter_mut()
            .filter_map(|(node, bucket)| {
                bucket.fill(rate, now);
                let dry = bucket.dry_since.is_some_and(|since| now.since(since) >= FLOOD);
                dry.then_some(*node)
            })
            .collect();
        flooders.sort_unstable();
        flooders
    }

    /// Forgets a member's account.
    pub(super) fn forget(&mut self, node: &NodeId) {
        self.members.remove(node);
    }

    /// Forgets members whose buckets are full again: a new one would be just so.
    pub(super) fn tidy(&mut self, now: Time) {
        let rate = self.rate;
        self.members.retain(|_, bucket| {
            bucket.fill(rate, now);
            bucket.level < rate.burst * 1_000
        });
    }
}

impl Bucket {
    fn fill(&mut self, rate: Rate, now: Time) {
        let gained = now.since(self.filled).as_millis().min(u128::from(u32::MAX));
        let gained = u64::try_from(gained).unwrap_or(0);
        if gained == 0 {
            return;
        }
        self.filled = now;
        self.level = (self.level + gained * rate.per_s).min(rate.burst * 1_000);
        // A quarter full: it has stopped for a while.
        if self.level >= rate.burst * 250 {
            self.dry_since = None;
        }
    }
}

/// The requests of all members, shared by their streams.
#[derive(Debug)]
pub(super) struct Gate {
    buckets: Mutex<Buckets>,
    delayed: AtomicU64,
}

impl Gate {
    pub(super) fn new(rate: Rate) -> Arc<Self> {
        Arc::new(Self { buckets: Mutex::new(Buckets::new(rate)), delayed: AtomicU64::new(0) })
    }

    /// One message of `node` is about to be read. `Err`: not before so long.
    pub(super) fn pass(&self, node: NodeId, now: Time) -> Result<(), Duration> {
        let passed = self.lock().take(node, now);
        if passed.is_err() {
            self.delayed.fetch_add(1, Ordering::Relaxed);
        }
        passed
    }

    /// Messages that had to wait.
    pub(super) fn delayed(&self) -> u64 {
        self.delayed.load(Ordering::Relaxed)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Buckets> {
        // Each change is one statement.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_s: 10, burst: 20 };

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds_and_others_do_not_feel_it() {
        let mut buckets = Buckets::new(RATE);
        assert_eq!((0..100).filter(|_| buckets.take(NodeId::numbered(1), at(0)).is_ok()).count(), 20);
        assert_eq!(buckets.take(NodeId::numbered(1), at(0)), Err(Duration::from_millis(100)));
        assert_eq!(buckets.take(NodeId::numbered(2), at(0)), Ok(()));
        let passed = (0..10_000).filter(|ms| buckets.take(NodeId::numbered(1), at(*ms)).is_ok()).count();
        assert!((99..=100).contains(&passed), "{passed} in ten seconds at ten a second");
    }

    #[test]
    fn only_who_goes_on_without_a_break_is_a_flooder() {
        let mut buckets = Buckets::new(RATE);
        for ms in (0..60_000).step_by(10) {
            let _ = buckets.take(NodeId::numbered(1), at(ms));
            // Loud for two seconds, then quiet for two.
            if ms / 2_000 % 2 == 0 {
                let _ = buckets.take(NodeId::numbered(2), at(ms));
            }
            let expected = if ms < 31_000 { vec![] } else { vec![NodeId::numbered(1)] };
            if ms % 1_000 == 0 && !(30_000..33_000).contains(&ms) {
                assert_eq!(buckets.flooders(at(ms)), expected, "after {ms} ms");
            }
        }
        buckets.forget(&NodeId::numbered(1));
        assert_eq!(buckets.flooders(at(60_000)), []);
    }

    #[test]
    fn the_account_is_bounded_and_who_is_quiet_makes_room() {
        let mut buckets = Buckets::new(RATE);
        for number in 0..5_000 {
            let _ = buckets.take(NodeId::numbered(number), at(0));
        }
        assert_eq!(buckets.members.len(), MEMBERS_MAX);
        assert!(buckets.take(NodeId::numbered(5_000), at(0)).is_err());
        assert_eq!(buckets.take(NodeId::numbered(5_000), at(60_000)), Ok(()));
        assert_eq!(buckets.members.len(), 1);
    }
}
