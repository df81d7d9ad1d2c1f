//! When others delivered last.

use super::{Peer, prefetch};
use crate::model::Time;
use std::time::Duration;

/// Deliveries in the order of time. Within some four seconds each takes eight bytes, for there are many nodes in a simulation.
#[derive(Clone, Debug)]
pub(super) enum Deliveries {
    /// How many nanoseconds after `base` each was.
    Near {
        base: Time,
        after: Vec<(Peer, u32)>,
    },
    Far(Vec<(Peer, Time)>),
}

impl Default for Deliveries {
    fn default() -> Self {
        Self::Near { base: Time::ZERO, after: Vec::new() }
    }
}

fn after(base: Time, at: Time) -> Option<u32> {
    u32::try_from(at.since(base).as_nanos()).ok()
}

fn time(base: Time, after: u32) -> Time {
    base + Duration::from_nanos(after.into())
}

impl Deliveries {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Near { after, .. } => after.len(),
            Self::Far(all) => all.len(),
        }
    }

    pub(super) fn capacity(&self) -> usize {
        match self {
            Self::Near { after, .. } => after.capacity(),
            Self::Far(all) => all.capacity(),
        }
    }

    pub(super) fn reserve_exact(&mut self, more: usize) {
        match self {
            Self::Near { after, .. } => after.reserve_exact(more),
            Self::Far(all) => all.reserve_exact(more),
        }
    }

    /// `at` is not before the last one.
    pub(super) fn push(&mut self, peer: Peer, at: Time) {
        if let Self::Near { base, after: list } = self {
            if list.is_empty() {
                *base = at;
            }
            match after(*base, at) {
                Some(after) => return list.push((peer, after)),
                None => self.begin_at(at),
            }
        }
        match self {
            Self::Near { base, after: list } => list.extend(after(*base, at).map(|after| (peer, after))),
            Self::Far(all) => all.push((peer, at)),
        }
    }

    /// Counts from the first one on, if all until `last` are near it.
    fn begin_at(&mut self, last: Time) {
        let all: Vec<(Peer, Time)> = self.iter().collect();
        let base = all.first().map_or(last, |first| first.1);
        *self = if after(base, last).is_some() {
            let mut list = Vec::with_capacity(self.capacity());
            list.extend(all.iter().filter_map(|(peer, at)| Some((*peer, after(base, *at)?))));
            Self::Near { base, after: list }
        } else {
            Self::Far(all)
        };
    }

    /// The oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (Peer, Time)> {
        let base = if let Self::Near { base, .. } = self { *base } else { Time::ZERO };
        let near: &[(Peer, u32)] = if let Self::Near { after, .. } = self { after } else { &[] };
        let far: &[(Peer, Time)] = if let Self::Far(all) = self { all } else { &[] };
        near.iter().map(move |(peer, after)| (*peer, time(base, *after))).chain(far.iter().copied())
    }

    /// Keeps those that `keep`, asked the newest first, says.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(Peer, Time) -> bool) {
        match self {
            Self::Near { base, after } => {
                after.reverse();
                after.retain(|(peer, after)| keep(*peer, time(*base, *after)));
                after.reverse();
            }
            Self::Far(all) => {
                all.reverse();
                all.retain(|(peer, at)| keep(*peer, *at));
                all.reverse();
                if let Some((_, last)) = all.last().copied() {
                    self.begin_at(last);
                }
            }
        }
    }

    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self) {
        match self {
            Self::Near { after, .. } => prefetch(after.as_ptr().wrapping_add(after.len())),
            Self::Far(all) => prefetch(all.as_ptr().wrapping_add(all.len())),
        }
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Near { after, .. } => after.capacity() * size_of::<(Peer, u32)>(),
            Self::Far(all) => all.capacity() * size_of::<(Peer, Time)>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generator, Rng};

    #[test]
    fn it_is_the_same_list_whether_times_are_near_or_far() {
        let (mut deliveries, mut plain, mut rng) =
            (Deliveries::default(), Vec::<(Peer, Time)>::new(), Generator::new(8));
        let (mut now, mut far) = (Time::ZERO, 0);
        for turn in 0..4_000_u32 {
            // Some hundred milliseconds, and now and then minutes.
            let span = if rng.below(100) == 0 { 1_u64 << 36 } else { 1 << 27 };
            now = now + Duration::from_nanos(rng.below(usize::try_from(span).unwrap()) as u64);
            deliveries.push(Peer(turn), now);
            plain.push((Peer(turn), now));
            if plain.len() > 40 {
                let oldest = plain[20 + rng.below(20)].1;
                deliveries.retain(|peer, at| at >= oldest && peer.0 % 3 > 0);
                plain.retain(|(peer, at)| *at >= oldest && peer.0 % 3 > 0);
            }
            assert!(deliveries.iter().eq(plain.iter().copied()) && deliveries.len() == plain.len());
            far += u32::from(matches!(deliveries, Deliveries::Far(_)));
        }
        assert!((200..3_800).contains(&far), "{far}");
    }
}
