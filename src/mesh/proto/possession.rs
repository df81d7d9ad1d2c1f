//! What neighbours hold, told in bitmaps: so that sources are found also where homes are gone or swamped.
//!
//! Each node has a few neighbours, random members of its cell, and tells them which sixty-fourths of which slices it
//! holds: what changed lately, and a new neighbour all there is, a bounded number of slices at a time. Nothing is said
//! while nothing changes. What others tell is used where no home names a holder. It is a hint and no more: whoever
//! claims again and again what he does not have is not listened to for a while.

use super::fetch::{At, Fetch};
use super::footprint::tree_bytes;
use super::rare::Nothing;
use super::timer::Timer;
use super::{Chunk, Content, Nearness, Node, Outbox, Output, Peer, Peers, Settings, Slice, prefetch_list};
use crate::model::{Rng, Time};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::time::Duration;

/// Most slices in one message.
pub const POSSESSION_MAX: usize = 64;
/// Peers whose claims are remembered: twice as many as tell, on average.
pub(super) const TELLERS_MAX: usize = 16;
/// Claims in a row that turn out false before no more are taken from a peer (guess: chunks may be evicted in between).
const STRIKES_MAX: u8 = 4;
/// Draws for one new neighbour.
const DRAWS_MAX: usize = 8;

/// A neighbour that is told.
#[derive(Clone, Copy, Debug)]
struct Neighbour {
    peer: Peer,
    /// The next slice number of those that it is told from the first on; past the last, it knows all.
    sweep: u32,
}

/// What this node holds, as it is told.
#[derive(Clone, Debug, Default)]
pub(super) struct Possession {
    /// The parts of each slice that are held, once a chunk is stored that does not begin its slice: before, a count
    /// says as much (a fleet in the simulator moves whole slices).
    parts: Vec<u64>,
    neighbours: SmallVec<[Neighbour; 8]>,
    /// Slices that changed since the last telling, the last ones.
    recent: Vec<Slice>,
    tellings: u32,
    not_before: Time,
}

impl Possession {
    /// Neighbours that are told.
    pub(super) fn neighbours(&self) -> usize {
        self.neighbours.len()
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let spilled = if self.neighbours.spilled() { self.neighbours.capacity() } else { 0 };
        self.parts.capacity() * size_of::<u64>()
            + spilled * size_of::<Neighbour>()
            + self.recent.capacity() * size_of::<Slice>()
    }

    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self) {
        prefetch_list(&self.recent);
    }

    pub(super) fn parts_mut(&mut self, slice: Slice) -> Option<&mut u64> {
        self.parts.get_mut(slice.0 as usize)
    }
}

/// What others told.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    slices: BTreeMap<Slice, SmallVec<[(Peer, u64); 4]>>,
    tellers: Vec<Teller>,
    len: usize,
    hand: u32,
}

#[derive(Clone, Copy, Debug)]
struct Teller {
    peer: Peer,
    last: Time,
    strikes: u8,
    /// Its claims are not taken before then.
    barred: Time,
}

impl Nothing for Claims {
    const NOTHING: &'static Self = &Self { slices: BTreeMap::new(), tellers: Vec::new(), len: 0, hand: 0 };
}

impl Claims {
    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self) {
        prefetch_list(&self.tellers);
    }

    /// Who claims to hold the chunk in `part` of `slice`.
    pub(super) fn of(&self, slice: Slice, part: u8) -> impl Iterator<Item = Peer> + '_ {
        let claims = self.slices.get(&slice).into_iter().flatten();
        claims.filter(move |(_, parts)| parts >> part & 1 == 1).map(|(peer, _)| *peer)
    }

    fn note(&mut self, slice: Slice, peer: Peer, parts: u64, most: usize) {
        if self.len >= most {
            let next = self.slices.range(Slice(self.hand)..).next().or_else(|| self.slices.iter().next());
            if let Some(victim) = next.map(|(slice, _)| *slice) {
                self.len -= self.slices.remove(&victim).map_or(0, |claims| claims.len());
                self.hand = victim.0.wrapping_add(1);
            }
        }
        let claims = self.slices.entry(slice).or_default();
        let before = claims.len();
        claims.retain(|(other, _)| *other != peer);
        if parts != 0 {
            claims.push((peer, parts));
        }
        self.len = self.len + claims.len() - before;
        if claims.is_empty() {
            self.slices.remove(&slice);
        }
    }

    pub(super) fn forget_slice(&mut self, slice: Slice) {
        self.len -= self.slices.remove(&slice).map_or(0, |claims| claims.len());
    }

    pub(super) fn forget_peer(&mut self, peer: Peer) {
        self.slices.retain(|_, claims| {
            claims.retain(|(other, _)| *other != peer);
            !claims.is_empty()
        });
        self.len = self.slices.values().map(SmallVec::len).sum();
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let spilled = self.slices.values().filter(|claims| claims.spilled()).map(SmallVec::capacity);
        tree_bytes::<Slice, SmallVec<[(Peer, u64); 4]>>(self.slices.len())
            + spilled.sum::<usize>() * size_of::<(Peer, u64)>()
            + self.tellers.capacity() * size_of::<Teller>()
    }

    /// Claims as they are remembered, and the peers that made any.
    pub(super) fn len(&self) -> (usize, usize) {
        let counted: usize = self.slices.values().map(SmallVec::len).sum();
        (counted.max(self.len), self.tellers.len())
    }

    /// Whether something that `peer` tells is taken now. Bounds how often and how many tell.
    fn admits(&mut self, peer: Peer, now: Time, settings: &Settings) -> bool {
        let least = Duration::from_millis(u64::from(settings.possession_ms) / 2);
        if let Some(teller) = self.tellers.iter_mut().find(|teller| teller.peer == peer) {
            let admitted = now.since(teller.last) >= least && teller.barred <= now;
            if admitted {
                teller.last = now;
            }
            return admitted;
        }
        if self.tellers.len() >= TELLERS_MAX {
            // Who is barred stays, or he would be admitted at once.
            let silent = self.tellers.iter().enumerate().filter(|(_, teller)| teller.barred <= now);
            let Some(index) = silent.min_by_key(|(_, teller)| teller.last).map(|(index, _)| index) else {
                return false;
            };
            let gone = self.tellers.swap_remove(index).peer;
            self.forget_peer(gone);
        }
        self.tellers.push(Teller { peer, last: now, strikes: 0, barred: Time::ZERO });
        true
    }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// The parts of `slice` that are held here.
    fn parts_held(&self, slice: Slice) -> u64 {
        let index = slice.0 as usize;
        match self.possession.parts.get(index) {
            Some(parts) => *parts,
            None => u64::from(self.held.get(slice) > 0),
        }
    }

    /// A chunk was stored; `held` counts it already.
    pub(super) fn note_possession(&mut self, chunk: Chunk, slice: Slice) {
        if self.settings.neighbours == 0 {
            return;
        }
        let (part, index) = (self.content.part(chunk), slice.0 as usize);
        if part > 0 && self.possession.parts.is_empty() {
            self.possession.parts = self.held.iter().map(|held| u64::from(held > 0)).collect();
            // It is counted, but does not begin its slice.
            if self.held.get(slice) == 1 {
                self.possession.parts[index] = 0;
            }
        }
        if part > 0 || !self.possession.parts.is_empty() {
            if self.possession.parts.len() < self.held.len() {
                self.possession.parts.resize(self.held.len(), 0);
            }
            self.possession.parts[index] |= 1 << part;
        }
        if !self.possession.recent.contains(&slice) {
            if self.possession.recent.len() >= POSSESSION_MAX {
                // Too much for one message: it is told in the order of numbers.
                self.possession.recent.clear();
                self.possession.neighbours.iter_mut().for_each(|neighbour| neighbour.sweep = 0);
            }
            self.possession.recent.push(slice);
        }
        self.plan_telling();
    }

    /// A chunk is not stored any more.
    pub(super) fn unnote_possession(&mut self, chunk: Chunk, slice: Slice) {
        let part = self.content.part(chunk);
        if let Some(parts) = self.possession.parts.get_mut(slice.0 as usize) {
            // Others that begin in the same part may be left: they are not claimed, and found otherwise.
            *parts &= !(1 << part);
        }
    }

    fn plan_telling(&mut self) {
        let pause = Duration::from_millis(u64::from(self.settings.possession_ms.max(1)));
        let due = self.possession.not_before.max(self.now + pause);
        self.timers.arm(Timer::Possession, due);
    }

    /// [`Timer::Possession`]: tells each neighbour what is new to it.
    pub(super) fn possession_due(&mut self, out: &mut Outbox) {
        let pause = Duration::from_millis(u64::from(self.settings.possession_ms.max(1)));
        self.possession.not_before = self.now + pause;
        self.renew_neighbours();
        let recent = std::mem::take(&mut self.possession.recent);
        let mut unfinished = false;
        for index in 0..self.possession.neighbours.len() {
            let Neighbour { peer, mut sweep } = self.possession.neighbours[index];
            let mut slices: Vec<(Slice, u64)> =
                recent.iter().map(|slice| (*slice, self.parts_held(*slice))).collect();
            slices.retain(|(slice, _)| self.peers.may_read(peer, *slice));
            while slices.len() < POSSESSION_MAX && (sweep as usize) < self.held.len() {
                let parts = self.parts_held(Slice(sweep));
                let news = parts != 0 && !recent.contains(&Slice(sweep));
                if news && self.peers.may_read(peer, Slice(sweep)) {
                    slices.push((Slice(sweep), parts));
                }
                sweep += 1;
            }
            unfinished |= (sweep as usize) < self.held.len();
            self.possession.neighbours[index].sweep = sweep;
            if !slices.is_empty() {
                self.counts.possession_told += 1;
                out.push(Output::TellPossession { to: peer, slices });
            }
        }
        if unfinished {
            self.timers.arm(Timer::Possession, self.possession.not_before);
        }
    }

    /// Fills the places of those who went, and now and then gives one place to another.
    fn renew_neighbours(&mut self) {
        let wanted = usize::from(self.settings.neighbours);
        let peers = &self.peers;
        let near = |peer: Peer| peers.is_up(peer) && peers.nearness(peer) == Nearness::Cell;
        self.possession.neighbours.retain(|neighbour| near(neighbour.peer));
        self.possession.tellings = self.possession.tellings.wrapping_add(1);
        let members = self.peers.members();
        if self.possession.tellings.is_multiple_of(self.settings.neighbours_renew.max(1))
            && self.possession.neighbours.len() == wanted
            && members > wanted + 1
        {
            self.possession.neighbours.remove(0);
        }
        let known = |neighbours: &[Neighbour], peer| neighbours.iter().any(|known| known.peer == peer);
        for draw in 0..members.min(DRAWS_MAX * wanted) {
            if self.possession.neighbours.len() >= wanted {
                return;
            }
            // A small cell is known as a whole.
            let index = if members <= wanted + 1 { draw } else { self.rng.below(members) };
            let peer = self.peers.member(index);
            if peer != self.peers.me() && !known(&self.possession.neighbours, peer) {
                self.possession.neighbours.push(Neighbour { peer, sweep: 0 });
            }
        }
    }

    /// A peer tells what it holds.
    pub(super) fn possession_told(&mut self, peer: Peer, slices: &[(Slice, u64)], out: &mut Outbox) {
        let stranger = peer == self.peers.me() || self.peers.nearness(peer) != Nearness::Cell;
        if stranger || slices.len() > POSSESSION_MAX || !self.claims.admits(peer, self.now, &self.settings) {
            self.counts.possession_refused += 1;
            return;
        }
        self.counts.possession_heard += 1;
        let (most, numbers) = (self.settings.claims_max as usize, self.settings.numbers_max);
        for (slice, parts) in slices.iter().filter(|(slice, _)| slice.0 < numbers) {
            self.claims.note(*slice, peer, *parts, most);
            self.source_appeared(*slice, peer, *parts, out);
        }
    }

    /// Fetches of `slice` that stand in line for the strata need not: `peer` has the chunk.
    fn source_appeared(&mut self, slice: Slice, peer: Peer, parts: u64, out: &mut Outbox) {
        let content = &self.content;
        let may = |fetch: &Fetch| {
            fetch.at == At::Line && fetch.slice == slice && parts >> content.part(fetch.chunk) & 1 == 1
        };
        for slot in self.fetches.slots_where(may) {
            let Some(mut fetch) = self.fetches.take(slot) else { continue };
            if !self.usable(&fetch, peer) {
                self.fetches.put(fetch);
                continue;
            }
            self.leave_upstream(&fetch, out);
            fetch.add_candidates([peer]);
            self.advance(fetch, out);
        }
    }

    /// Adds those who claim to hold the chunk to whom is tried next. Once a search.
    pub(super) fn add_claimants(&mut self, fetch: &mut Fetch) {
        if std::mem::replace(&mut fetch.claimed, true) {
            return;
        }
        let part = self.content.part(fetch.chunk);
        let claimants: SmallVec<[Peer; 8]> = self.claims.of(fetch.slice, part).collect();
        if claimants.is_empty() {
            return;
        }
        // A random run of them, for a fetch remembers only a few.
        let start = self.rng.below(claimants.len());
        fetch.tries = 0;
        fetch.add_candidates((0..claimants.len()).map(|index| claimants[(start + index) % claimants.len()]));
    }

    /// `peer` does not have `chunk`, though it may have claimed it.
    pub(super) fn note_false_claim(&mut self, peer: Peer, chunk: Chunk) {
        let (slice, part) = (self.content.slice(chunk), self.content.part(chunk));
        let Some(claims) = self.claims.there() else { return };
        let of_slice = claims.slices.get_mut(&slice);
        let claim = of_slice.and_then(|claims| claims.iter_mut().find(|claim| claim.0 == peer));
        let Some((_, parts)) = claim else { return };
        if *parts >> part & 1 == 0 {
            return;
        }
        *parts &= !(1 << part);
        self.counts.possession_false += 1;
        let barred = self.now + Duration::from_secs(u64::from(self.settings.distrust_s));
        let teller = claims.tellers.iter_mut().find(|teller| teller.peer == peer);
        if let Some(teller) = teller {
            teller.strikes += 1;
            if teller.strikes >= STRIKES_MAX {
                (teller.strikes, teller.barred) = (0, barred);
                self.counts.possession_barred += 1;
                claims.forget_peer(peer);
            }
        }
    }

    /// `peer` delivered what it claimed to have, or something else: it is believed again.
    pub(super) fn note_true_claim(&mut self, peer: Peer) {
        let Some(claims) = self.claims.there() else { return };
        if let Some(teller) = claims.tellers.iter_mut().find(|teller| teller.peer == peer) {
            teller.strikes = 0;
        }
    }
}
