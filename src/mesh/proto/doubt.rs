//! Who takes asks and never delivers.
//!
//! A peer that says `Wait` or `Busy`, or nothing, costs everyone who asks it time. Nothing of it is a proof, for an honest peer
//! may have to wait itself. What tells one from the other is whether it delivers anything at all: who was asked, delivered
//! nothing since, and made a fetch wait for longer than those who deliver do, is *doubted*. He is passed over, as if he
//! were dead, for a while that doubles each time; then one ask tries him again. What he delivers makes up for one doubt. Where
//! nobody else is left, he is asked all the same.

use super::deliveries::Deliveries;
use super::fetch::{Fetch, Stage};
use super::{Content, Node, Peer, Peers};
use crate::model::{Rng, Time};
use std::time::Duration;

/// Peers that are doubted at once; who would be believed again first makes room (guess).
pub(super) const DOUBTED_MAX: usize = 256;
/// Peers of which the last delivery is remembered; a further one displaces another. Who is forgotten counts from the ask at
/// hand (guess).
const DELIVERED_SLOTS: usize = 256;
/// How often the time that 95 of 100 answers take may pass instead of what the chunk takes at the slowest speed, where that is less (guess).
const USUAL_TIMES: u32 = 16;
/// Doublings of the time for which somebody is doubted (guess: up to eight minutes).
const DOUBLINGS_MAX: u8 = 4;

#[derive(Clone, Copy, Debug)]
struct Doubt {
    peer: Peer,
    /// Doubts that it did not make up for.
    times: u8,
    /// Whether it delivered since the last of them.
    delivers: bool,
    /// When the last of them arose.
    last: Time,
    /// When it is tried again.
    until: Time,
}

/// Deliveries that are remembered before it is looked which of them do not matter any more.
const DELIVERED_FEW: usize = 32;

fn place_of(peer: Peer) -> usize {
    peer.0 as usize % DELIVERED_SLOTS
}

/// Who is doubted, and when others delivered last.
#[derive(Clone, Debug, Default)]
pub(super) struct Doubts {
    doubted: Vec<Doubt>,
    /// In the order of time; of each place the last one counts. What no ask under way began before is not kept for long.
    delivered: Deliveries,
    /// When this node last began to run again, having stood still itself.
    woke: Time,
}

impl Doubts {
    /// Whether `peer` is passed over.
    pub(super) fn has(&self, peer: Peer, now: Time) -> bool {
        self.doubted.iter().any(|doubt| doubt.peer == peer && doubt.until > now)
    }

    /// Whether `peer` was doubted after `since`.
    fn arose(&self, peer: Peer, since: Time) -> bool {
        self.doubted.iter().any(|doubt| doubt.peer == peer && doubt.last >= since)
    }

    /// For how long `peer`, asked at `since`, has delivered nothing.
    fn idle(&self, peer: Peer, since: Time, now: Time) -> Duration {
        let last = self.delivered.iter().rfind(|(other, _)| place_of(*other) == place_of(peer));
        let last = last.filter(|(other, _)| *other == peer).map_or(Time::ZERO, |(_, at)| at);
        now.since(since.max(last).max(self.woke))
    }

    fn note(&mut self, peer: Peer, now: Time, first: Duration) {
        let place = self.doubted.iter().position(|doubt| doubt.peer == peer).unwrap_or_else(|| {
            let until = now;
            if self.doubted.len() < DOUBTED_MAX {
                self.doubted.push(Doubt { peer, times: 0, delivers: false, last: now, until });
                return self.doubted.len() - 1;
            }
            let soonest = self.doubted.iter().enumerate().min_by_key(|(_, doubt)| doubt.until);
            let place = soonest.map_or(0, |(place, _)| place);
            self.doubted[place] = Doubt { peer, times: 0, delivers: false, last: now, until };
            place
        });
        let doubt = &mut self.doubted[place];
        (doubt.last, doubt.delivers) = (now, false);
        doubt.until = now + first * (1 << doubt.times.min(DOUBLINGS_MAX));
        doubt.times = doubt.times.saturating_add(1).min(DOUBLINGS_MAX + 1);
    }

    /// This node did not run for a while: what nobody could deliver to it meanwhile is nobody's fault.
    pub(super) fn note_woke(&mut self, now: Time) {
        self.woke = now;
    }

    /// `peer` is asked. If it was doubted, nobody else tries it while this ask is open.
    pub(super) fn note_asked(&mut self, peer: Peer, now: Time, span: Duration) {
        if let Some(doubt) = self.doubted.iter_mut().find(|doubt| doubt.peer == peer && !doubt.delivers) {
            doubt.until = doubt.until.max(now + span);
        }
    }

    /// `peer` delivered. `oldest` says when the oldest of the asks under way was made: who delivered before it and nothing
    /// since is idle since the ask, remembered or not.
    pub(super) fn note_delivered(&mut self, peer: Peer, now: Time, oldest: impl FnOnce() -> Time) {
        let len = self.delivered.len();
        if len >= DELIVERED_FEW && len == self.delivered.capacity() {
            let oldest = oldest();
            self.delivered.retain(|_, at| at >= oldest);
            if self.delivered.len() > len * 3 / 4 {
                self.forget_displaced();
            }
            // A quarter more rather than twice as many: there are many nodes in a simulation.
            if self.delivered.len() > len * 3 / 4 {
                self.delivered.reserve_exact(len / 4);
            }
        }
        if self.delivered.capacity() == 0 {
            self.delivered.reserve_exact(DELIVERED_FEW);
        }
        self.delivered.push(peer, now);
        if let Some(doubt) = self.doubted.iter_mut().find(|doubt| doubt.peer == peer) {
            (doubt.times, doubt.delivers, doubt.until) = (doubt.times - 1, true, now);
        }
        self.doubted.retain(|doubt| doubt.times > 0);
    }

    /// Keeps the last delivery of each place.
    fn forget_displaced(&mut self) {
        let mut taken = [false; DELIVERED_SLOTS];
        self.delivered.retain(|peer, _| !std::mem::replace(&mut taken[place_of(peer)], true));
    }

    /// `peer` went: who comes under its number is somebody else.
    pub(super) fn forget_peer(&mut self, peer: Peer) {
        self.doubted.retain(|doubt| doubt.peer != peer);
    }

    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self) {
        self.delivered.prefetch();
    }

    pub(super) fn len(&self) -> usize {
        self.doubted.len()
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.doubted.capacity() * size_of::<Doubt>() + self.delivered.heap_bytes()
    }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// Whether `peer` is to be passed over by `fetch`.
    pub(super) fn is_doubted(&self, fetch: &Fetch, peer: Peer) -> bool {
        fetch.stage != Stage::LastResort && self.doubts.has(peer, self.now)
    }

    /// Whether `peer`, who has said `Wait` or `Busy` to `fetch` since `since`, has delivered nothing at all for too long.
    /// Each rank may have had to wait for those before it; and where everybody takes long, it may, too.
    pub(super) fn shirks(&self, fetch: &Fetch, peer: Peer, since: Time, behind: u8) -> bool {
        let once = Duration::from_millis(u64::from(self.settings.ask_ms));
        // Nobody is idle for longer than he was waited for: most answers need no look at what he delivered.
        let waited = self.now.since(since);
        let is_idle = |most: Duration| waited > most && self.doubts.idle(peer, since, self.now) > most;
        if self.doubts.has(peer, self.now) {
            return is_idle(once);
        }
        let slowest = u64::from(self.settings.slowest_bytes_per_s.max(1));
        let alone = Duration::from_millis(u64::from(fetch.len_bytes) * 1_000 / slowest);
        let usual = self.speeds.usual(peer, fetch.len_bytes);
        let alone = usual.map_or(alone, |usual| alone.min(USUAL_TIMES * usual));
        // A home may have to look for providers, and a lease may lapse before it gets the chunk.
        let lookup = if self.peers.has_other_regions() { self.settings.lookup_ms } else { 0 };
        let beyond = Duration::from_millis(u64::from(self.settings.lease_ms.saturating_add(lookup)));
        // A home that would go to another cell next costs the strata nothing if it is wrong.
        let is_home = || {
            behind > 1 && !self.leases(fetch.slice) && self.rank_of(self.peers.me(), fetch.slice).is_some()
        };
        let behind = if waited > once && is_home() { behind - 1 } else { behind };
        let patience = u32::from(behind) * (once + alone + beyond);
        waited > patience && is_idle(patience.max(2 * usual.unwrap_or_default()))
    }

    /// How many, itself included, an authority may have to wait for one after the other: each rank for those before it, and
    /// a home for that of another cell.
    pub(super) fn behind(&self, fetch: &Fetch, named: bool) -> u8 {
        match fetch.stage {
            _ if named => 1,
            Stage::Homes => fetch.rank.max(1).saturating_add(u8::from(!self.leases(fetch.slice))),
            Stage::Lease => fetch.rank.max(1),
            _ => 1,
        }
    }

    /// `fetch` waited for `peer` since `since` in vain: if it delivered nothing else since, it is doubted.
    pub(super) fn doubt(&mut self, peer: Peer, since: Time) {
        let least = Duration::from_millis(u64::from(self.settings.ask_ms));
        // What was asked before the last doubt shares it.
        let idle = self.doubts.idle(peer, since, self.now);
        if idle < least.max(self.now.since(since)) || self.doubts.arose(peer, since) {
            return;
        }
        self.counts.doubts += 1;
        self.doubts.note(peer, self.now, Duration::from_secs(u64::from(self.settings.doubt_s)));
        self.hints.forget_peer(peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Generator;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_doubt_ends_comes_back_longer_and_is_made_up_for() {
        let (mut doubts, first) = (Doubts::default(), Duration::from_secs(10));
        doubts.note(Peer(1), at(0), first);
        assert!(doubts.has(Peer(1), at(9)) && !doubts.has(Peer(1), at(10)) && !doubts.has(Peer(2), at(0)));
        doubts.note_asked(Peer(1), at(10), first);
        assert!(doubts.has(Peer(1), at(11)), "one tries it");
        doubts.note(Peer(1), at(20), first);
        assert!(doubts.has(Peer(1), at(39)) && !doubts.has(Peer(1), at(40)));
        doubts.note_delivered(Peer(1), at(30), || Time::ZERO);
        assert!(!doubts.has(Peer(1), at(30)) && doubts.len() == 1);
        doubts.note_delivered(Peer(1), at(31), || Time::ZERO);
        assert_eq!(doubts.len(), 0);
    }

    #[test]
    fn they_are_bounded_and_who_delivers_is_not_idle() {
        let mut doubts = Doubts::default();
        for peer in 0..1_000 {
            doubts.note(Peer(peer), at(u64::from(peer)), Duration::from_secs(10_000));
        }
        assert_eq!(doubts.len(), DOUBTED_MAX);
        assert!(doubts.has(Peer(999), at(1_000)) && !doubts.has(Peer(1), at(1_000)), "the last replaces one");
        doubts.note_delivered(Peer(7), at(5), || Time::ZERO);
        assert_eq!(doubts.idle(Peer(7), at(2), at(6)), Duration::from_secs(1));
        assert_eq!(doubts.idle(Peer(8), at(2), at(6)), Duration::from_secs(4));
        doubts.note_woke(at(5));
        assert_eq!(doubts.idle(Peer(8), at(2), at(6)), Duration::from_secs(1), "this node slept itself");
    }

    #[test]
    fn deliveries_before_all_asks_under_way_make_no_difference_and_are_forgotten() {
        let (mut doubts, mut all) = (Doubts::default(), vec![(Peer(u32::MAX), Time::ZERO); DELIVERED_SLOTS]);
        let mut rng = Generator::new(9);
        for second in 0..5_000_u64 {
            let peer = Peer(u32::try_from(rng.below(1_000)).unwrap());
            let oldest = at(second.saturating_sub(20));
            doubts.note_delivered(peer, at(second), || oldest);
            all[place_of(peer)] = (peer, at(second));
            let (asked, since) = (
                Peer(u32::try_from(rng.below(1_000)).unwrap()),
                at(second.saturating_sub(rng.below(20) as u64)),
            );
            let (other, last) = all[place_of(asked)];
            let last = if other == asked { last } else { Time::ZERO };
            assert_eq!(doubts.idle(asked, since, at(second + 3)), at(second + 3).since(since.max(last)));
        }
        assert!(doubts.delivered.capacity() <= 2 * DELIVERED_FEW, "{}", doubts.delivered.capacity());
        // All deliveries matter: then one of each place is kept.
        for second in 5_000..9_000 {
            doubts.note_delivered(Peer(u32::try_from(rng.below(1_000)).unwrap()), at(second), || at(5_000));
        }
        assert!(doubts.delivered.capacity() <= 3 * DELIVERED_SLOTS, "{}", doubts.delivered.capacity());
    }
}
