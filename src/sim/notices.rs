//! Who believes whom to be dead. Each node notices a death by itself, as real ones do: in the cell of the dead the first member whose
//! probe found nothing tells the others, elsewhere each looks at its own time. When that is follows from the seed, the dead and who
//! notices, so nothing is kept for a pair.

use super::churn::Spans;
use crate::model::mix;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Sets these draws apart from all other randomness.
const NOTICES: u64 = 0x006e_6f74_6963_6573;
/// Not dead, and all know.
const NEVER: u64 = u64::MAX;
/// Of how long it takes to notice, this many quarters are the same for all members of a cell: the rest is what gossip takes.
const SHARED_QUARTERS: u64 = 3;

/// The last death of a node, in steps.
#[derive(Debug)]
struct Death {
    at: AtomicU64,
    noticed: AtomicU64,
    within: AtomicU64,
    replaced: AtomicU64,
}

/// What all know of the deaths of all. Changes between steps only.
#[derive(Debug)]
pub(super) struct Notices {
    now: AtomicU64,
    salt: u64,
    /// By node; empty if nobody dies.
    deaths: Box<[Death]>,
    /// Nodes of whose death or replacement somebody may not know yet, or that are dead.
    recent: AtomicU32,
}

impl Notices {
    /// Of so many nodes, if any of them may die.
    pub(super) fn new(nodes: Option<u32>, seed: u64) -> Self {
        let none = || AtomicU64::new(NEVER);
        let death = |_| Death { at: none(), noticed: none(), within: none(), replaced: none() };
        Self {
            now: AtomicU64::new(0),
            salt: mix(seed ^ NOTICES),
            deaths: (0..nodes.unwrap_or(0)).map(death).collect(),
            recent: AtomicU32::new(0),
        }
    }

    /// The step that it is.
    pub(super) fn set_now(&self, now: u64) {
        self.now.store(now, Ordering::Relaxed);
    }

    /// A node dies now.
    pub(super) fn died(&self, node: u32, spans: Spans) {
        let Some(death) = self.deaths.get(node as usize) else { return };
        let now = self.now.load(Ordering::Relaxed);
        death.noticed.store(now + spans.noticed, Ordering::Relaxed);
        death.within.store(spans.within, Ordering::Relaxed);
        death.replaced.store(now + spans.replaced, Ordering::Relaxed);
        if death.at.swap(now, Ordering::Relaxed) == NEVER {
            self.recent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets the death of a node at a step, which it was replaced after and all noticed.
    pub(super) fn forget(&self, node: u32, at: u64) {
        let Some(death) = self.deaths.get(node as usize) else { return };
        let is_it = death.at.compare_exchange(at, NEVER, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_it {
            self.recent.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether nobody is dead, and all know who is not any more.
    pub(super) fn is_quiet(&self) -> bool {
        self.recent.load(Ordering::Relaxed) == 0
    }

    /// The step from which on `viewer` knows that a node died, if it did; `near` says whether they share a cell.
    fn notice(&self, viewer: u32, node: u32, near: impl FnOnce() -> bool) -> Option<(u64, &Death)> {
        let death = self.deaths.get(node as usize)?;
        let at = death.at.load(Ordering::Relaxed);
        if at == NEVER {
            return None;
        }
        let (first, within) = (death.noticed.load(Ordering::Relaxed), death.within.load(Ordering::Relaxed));
        if within == 0 {
            return Some((first, death));
        }
        let of_death = mix(self.salt ^ mix(at) ^ u64::from(node) << 32);
        // The upper 24 bits are a part of the span.
        let part = |drawn: u64, span: u64| (span * (drawn >> 40)) >> 24;
        let own = part(mix(of_death ^ u64::from(viewer)), within);
        let notice = if near() {
            first + (SHARED_QUARTERS * part(of_death, within) + (4 - SHARED_QUARTERS) * own) / 4
        } else {
            first + within + 2 * own
        };
        Some((notice, death))
    }

    /// When `viewer` notices the last death of a node, if that is to come or was not long ago.
    pub(super) fn when(&self, viewer: u32, node: u32, near: bool) -> Option<u64> {
        self.notice(viewer, node, || near).map(|(notice, _)| notice)
    }

    /// Whether `viewer` believes that a node is dead.
    pub(super) fn is_away(&self, viewer: u32, node: u32, near: impl FnOnce() -> bool) -> bool {
        self.notice(viewer, node, near).is_some_and(|(notice, death)| {
            (notice..death.replaced.load(Ordering::Relaxed)).contains(&self.now.load(Ordering::Relaxed))
        })
    }

    /// Whether `viewer` still speaks to the dead one, of whom another has taken the place.
    pub(super) fn is_mistaken(&self, viewer: u32, node: u32, near: impl FnOnce() -> bool) -> bool {
        self.notice(viewer, node, near).is_some_and(|(notice, death)| {
            (death.replaced.load(Ordering::Relaxed)..notice).contains(&self.now.load(Ordering::Relaxed))
        })
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.deaths.len() * size_of::<Death>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPANS: Spans = Spans { noticed: 100, within: 80, replaced: 150 };

    fn notices(spans: Spans) -> Notices {
        let notices = Notices::new(Some(64), 7);
        notices.set_now(1_000);
        (0..8).for_each(|node| notices.died(node, spans));
        notices
    }

    #[test]
    fn members_notice_nearly_together_and_others_each_by_itself_later() {
        let notices = notices(SPANS);
        let mut firsts = Vec::new();
        for node in 0..8 {
            let when = |near: bool| -> Vec<u64> {
                let mut all: Vec<u64> =
                    (8..64).filter_map(|viewer| notices.when(viewer, node, near)).collect();
                all.sort_unstable();
                all
            };
            let (near, far) = (when(true), when(false));
            assert!(near[0] >= 1_100 && near[55] <= 1_180 && near[55] - near[0] <= 20, "{near:?}");
            assert!(near[55] - near[0] >= 15, "{near:?}");
            assert!(far[0] >= 1_180 && far[55] <= 1_340 && far[55] - far[0] > 120, "{far:?}");
            firsts.push(near[0]);
        }
        firsts.sort_unstable();
        assert!(firsts[7] - firsts[0] > 20, "each death has a time of its own: {firsts:?}");
    }

    #[test]
    fn without_a_span_all_notice_at_once_and_until_the_end_of_what_was_said() {
        let notices = notices(Spans { within: 0, ..SPANS });
        let is_away = |now: u64| {
            notices.set_now(now);
            notices.is_away(9, 3, || true)
        };
        assert_eq!([1_099, 1_100, 1_149, 1_150].map(is_away), [false, true, true, false]);
        assert!((1_000..1_400).all(|now| {
            notices.set_now(now);
            !notices.is_mistaken(9, 3, || true) && !notices.is_away(9, 12, || true)
        }));
    }

    #[test]
    fn who_notices_late_speaks_to_the_dead_until_then_and_to_its_successor_after() {
        let notices = notices(Spans { replaced: 20, ..SPANS });
        let notice = notices.when(9, 3, false).unwrap();
        for now in 1_000..1_400 {
            notices.set_now(now);
            let speaks_to_nobody = now >= 1_020 && now < notice;
            assert_eq!(
                (notices.is_mistaken(9, 3, || false), notices.is_away(9, 3, || false)),
                (speaks_to_nobody, false)
            );
        }
    }

    #[test]
    fn a_death_is_forgotten_but_for_a_later_one() {
        let notices = notices(SPANS);
        notices.set_now(2_000);
        notices.died(3, SPANS);
        assert!(!notices.is_quiet());
        (0..8).for_each(|node| notices.forget(node, 1_000));
        assert!(
            !notices.is_quiet() && notices.when(9, 3, true).is_some() && notices.when(9, 4, true).is_none()
        );
        notices.forget(3, 2_000);
        assert!(notices.is_quiet() && Notices::new(None, 1).is_quiet());
    }
}
