//! Who holds what: what a home remembers of its slices, what others said, and how busy peers were.

use super::{Holders, Peer, Settings, Slice};
use crate::model::{Rng, Time};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
struct Holder {
    /// Sixty-fourths of the slice in which chunks begin that it holds.
    parts: u64,
    /// When it was last noted: it may still be fetching what it was noted for.
    since: Time,
    peer: Peer,
}

/// What a home remembers of one of its slices.
#[derive(Clone, Debug, Default)]
pub(super) struct Home {
    holders: Vec<Holder>,
    /// The next ranks were asked and have nothing.
    pub(super) checked: bool,
}

impl Home {
    /// Whether nobody is known to hold anything of it.
    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// Notes that `peer` holds, or is about to hold, the chunk in `part`.
    pub(super) fn note(&mut self, peer: Peer, part: u8, now: Time, settings: &Settings, rng: &mut impl Rng) {
        if let Some(holder) = self.holders.iter_mut().find(|holder| holder.peer == peer) {
            holder.parts |= 1 << part;
            holder.since = now;
            return;
        }
        let new = Holder { parts: 1 << part, since: now, peer };
        if self.holders.len() < usize::from(settings.holders_max) {
            self.holders.push(new);
        } else if rng.below(usize::from(settings.holders_turnover)) == 0 {
            let victim = rng.below(self.holders.len());
            self.holders[victim] = new;
        }
    }

    /// Notes that `peer` does not hold the chunk in `part` after all.
    pub(super) fn unnote(&mut self, peer: Peer, part: u8) {
        let Some(index) = self.holders.iter().position(|holder| holder.peer == peer) else { return };
        self.holders[index].parts &= !(1 << part);
        if self.holders[index].parts == 0 {
            self.holders.swap_remove(index);
        }
    }

    pub(super) fn forget(&mut self, peer: Peer) {
        self.holders.retain(|holder| holder.peer != peer);
    }

    /// A few random holders of the chunk in `part`, those first that had time to get it.
    pub(super) fn name(
        &self,
        part: u8,
        now: Time,
        settings: &Settings,
        rng: &mut impl Rng,
        suits: impl Fn(Peer) -> bool,
    ) -> Holders {
        let ripe_after = Duration::from_millis(u64::from(settings.holder_ripe_ms));
        let (mut ripe, mut unripe) = (Holders::new(), Holders::new());
        let (len, wanted) = (self.holders.len(), ripe.inline_size());
        if len == 0 {
            return ripe;
        }
        // A random stride through the list: an odd walk that meets each entry at most once.
        let start = rng.below(len);
        for step in 0..len.min(4 * wanted) {
            let holder = &self.holders[(start + step) % len];
            if holder.parts >> part & 1 == 0 || !suits(holder.peer) {
                continue;
            }
            if now.since(holder.since) >= ripe_after {
                ripe.push(holder.peer);
            } else if unripe.len() < wanted {
                unripe.push(holder.peer);
            }
            if ripe.len() == wanted {
                return ripe;
            }
        }
        let room = wanted - ripe.len();
        ripe.extend(unripe.into_iter().take(room));
        ripe
    }
}

/// The homes' memory, bounded: a further slice displaces another.
#[derive(Clone, Debug, Default)]
pub(super) struct Homes {
    slices: BTreeMap<Slice, Home>,
    hand: u32,
}

impl Homes {
    pub(super) fn get(&self, slice: Slice) -> Option<&Home> {
        self.slices.get(&slice)
    }

    pub(super) fn get_mut(&mut self, slice: Slice) -> Option<&mut Home> {
        self.slices.get_mut(&slice)
    }

    pub(super) fn entry(&mut self, slice: Slice, slices_max: u32) -> &mut Home {
        if self.slices.len() >= slices_max as usize && !self.slices.contains_key(&slice) {
            let next = self.slices.range(Slice(self.hand)..).next().or_else(|| self.slices.iter().next());
            if let Some(victim) = next.map(|(slice, _)| *slice) {
                self.slices.remove(&victim);
                self.hand = victim.0.wrapping_add(1);
            }
        }
        self.slices.entry(slice).or_default()
    }

    pub(super) fn forget_slice(&mut self, slice: Slice) {
        self.slices.remove(&slice);
    }

    pub(super) fn forget_peer(&mut self, peer: Peer) {
        for home in self.slices.values_mut() {
            home.forget(peer);
        }
    }
}

/// Holders that others named, for the other chunks of the slice. Direct-mapped: a further slice displaces another.
#[derive(Clone, Debug, Default)]
pub(super) struct Hints {
    entries: Vec<Option<Hint>>,
}

#[derive(Clone, Debug)]
struct Hint {
    slice: Slice,
    until: Time,
    peers: Holders,
}

impl Hints {
    const SLOTS: usize = 32;

    pub(super) fn note(&mut self, slice: Slice, peers: &Holders, until: Time) {
        if peers.is_empty() {
            return;
        }
        if self.entries.is_empty() {
            self.entries.resize_with(Self::SLOTS, || None);
        }
        self.entries[slice.0 as usize % Self::SLOTS] = Some(Hint { slice, until, peers: peers.clone() });
    }

    pub(super) fn get(&self, slice: Slice, now: Time) -> &[Peer] {
        match self.entries.get(slice.0 as usize % Self::SLOTS) {
            Some(Some(hint)) if hint.slice == slice && hint.until > now => &hint.peers,
            _ => &[],
        }
    }

    pub(super) fn forget_slice(&mut self, slice: Slice) {
        if let Some(entry) = self.entries.get_mut(slice.0 as usize % Self::SLOTS) {
            *entry = None;
        }
    }

    pub(super) fn forget_peer(&mut self, peer: Peer) {
        for hint in self.entries.iter_mut().flatten() {
            hint.peers.retain(|other| *other != peer);
        }
    }
}

/// The last known load of peers that answered. Direct-mapped; who is not in it counts as idle.
#[derive(Clone, Debug, Default)]
pub(super) struct Loads {
    entries: Vec<(Peer, u8)>,
}

impl Loads {
    pub(super) fn note(&mut self, peer: Peer, load: u8, slots: u16) {
        let slots = usize::from(slots.max(1));
        if self.entries.len() != slots {
            self.entries.resize(slots, (Peer(u32::MAX), 0));
        }
        self.entries[peer.0 as usize % slots] = (peer, load);
    }

    pub(super) fn get(&self, peer: Peer) -> u8 {
        match self.entries.len() {
            0 => 0,
            slots => {
                let (found, load) = self.entries[peer.0 as usize % slots];
                if found == peer { load } else { 0 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Generator;

    #[test]
    fn a_home_names_those_first_who_had_time_to_get_it() {
        let (settings, mut rng) = (Settings::default(), Generator::new(3));
        let mut home = Home::default();
        let (early, late) = (Time::from_nanos(0), Time::from_nanos(1_000_000_000));
        for peer in 0..4 {
            home.note(Peer(peer), 5, early, &settings, &mut rng);
            home.note(Peer(peer + 10), 5, late, &settings, &mut rng);
            home.note(Peer(peer + 20), 6, early, &settings, &mut rng);
        }
        let named = home.name(5, late, &settings, &mut rng, |peer| peer != Peer(2));
        assert!([0, 1, 3].iter().all(|peer| named.contains(&Peer(*peer))), "{named:?}");
        assert!(named.len() == 4 && (10..14).contains(&named[3].0), "{named:?}");
        home.unnote(Peer(0), 5);
        assert!(!home.name(5, late, &settings, &mut rng, |_| true).contains(&Peer(0)));
    }

    #[test]
    fn the_memory_of_a_slice_and_of_slices_is_bounded() {
        let settings = Settings { holders_max: 8, slices_max: 3, ..Settings::default() };
        let (mut homes, mut rng) = (Homes::default(), Generator::new(3));
        for slice in 0..50 {
            for peer in 0..50 {
                let home = homes.entry(Slice(slice), settings.slices_max);
                home.note(Peer(peer), 0, Time::ZERO, &settings, &mut rng);
                assert!(home.holders.len() <= 8);
            }
            assert!(homes.slices.len() <= 3 && homes.get(Slice(slice)).is_some());
        }
    }

    #[test]
    fn hints_end_and_loads_default_to_idle() {
        let (mut hints, mut loads) = (Hints::default(), Loads::default());
        hints.note(Slice(4), &Holders::from_slice(&[Peer(1), Peer(2)]), Time::from_nanos(10));
        hints.forget_peer(Peer(2));
        assert_eq!(hints.get(Slice(4), Time::from_nanos(9)), [Peer(1)]);
        assert!(hints.get(Slice(4), Time::from_nanos(10)).is_empty());
        assert!(hints.get(Slice(36), Time::ZERO).is_empty());
        loads.note(Peer(3), 9, 4);
        assert_eq!((loads.get(Peer(3)), loads.get(Peer(7))), (9, 0));
    }
}
