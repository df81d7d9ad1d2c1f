//! Who holds what: what a home remembers of its slices, what others said, and how busy peers were.

use super::{Holders, Peer, Settings, Slice, prefetch};
use crate::model::Time;
use std::time::Duration;

/// To how many others who waits for a chunk is named before somebody who began to wait later is: what all want then goes from node to
/// node as in a tree, and not in long chains (as many as may wait at a node that is no home; simulated:
/// with it the makespan in a cell of 2 000 is half a per cent shorter).
pub(super) const BRANCHES: usize = 4;

#[derive(Clone, Copy, Debug)]
struct Holder {
    /// Sixty-fourths of the slice in which chunks begin that it holds.
    parts: u64,
    /// When it was last noted: it may still be fetching what it was noted for.
    since: Time,
}

/// What a home remembers of one of its slices: the last holders, in the order in which they were noted.
///
/// Holders are named in turn, the oldest first, so that each is named as often as any other: then all who hold a
/// slice upload it about as often, without anybody knowing their load.
#[derive(Clone, Debug, Default)]
pub(super) struct Home {
    /// A ring, in step with `holders`; apart, because it is searched for every ask.
    peers: Vec<Peer>,
    holders: Vec<Holder>,
    /// Where the oldest holder is, once the ring is full.
    oldest: usize,
    /// How many holders after the oldest the next to be named is.
    turn: usize,
    /// The next ranks were asked and have nothing.
    pub(super) checked: bool,
}

impl Home {
    /// Notes that `peer` holds, or is about to hold, the chunk in `part`.
    pub(super) fn note(&mut self, peer: Peer, part: u8, now: Time, settings: &Settings) {
        let new = Holder { parts: 1 << part, since: now };
        if let Some(index) = self.peers.iter().position(|other| *other == peer) {
            let parts = self.holders[index].parts | new.parts;
            self.holders[index] = Holder { parts, ..new };
        } else if self.peers.len() < usize::from(settings.holders_max) {
            let len = self.peers.len();
            if len == self.peers.capacity() {
                // A quarter more rather than twice as many: there are many nodes in a simulation.
                self.peers.reserve_exact(8.max(len / 4));
                self.holders.reserve_exact(8.max(len / 4));
            }
            self.peers.push(peer);
            self.holders.push(new);
        } else if let (Some(old), Some(holder)) =
            (self.peers.get_mut(self.oldest), self.holders.get_mut(self.oldest))
        {
            (*old, *holder) = (peer, new);
            self.oldest = (self.oldest + 1) % self.peers.len();
            self.turn = self.turn.saturating_sub(1);
        }
    }

    /// Notes that `peer` does not hold the chunk in `part` after all.
    pub(super) fn unnote(&mut self, peer: Peer, part: u8) {
        let Some(index) = self.peers.iter().position(|other| *other == peer) else { return };
        self.holders[index].parts &= !(1 << part);
        if self.holders[index].parts == 0 {
            self.forget(peer);
        }
    }

    /// Whether `peer` is remembered to hold the chunk in `part`.
    pub(super) fn holds(&self, peer: Peer, part: u8) -> bool {
        let index = self.peers.iter().position(|other| *other == peer);
        index.is_some_and(|index| self.holders[index].parts >> part & 1 == 1)
    }

    pub(super) fn forget(&mut self, peer: Peer) {
        let Some(index) = self.peers.iter().position(|other| *other == peer) else { return };
        self.peers.rotate_left(self.oldest);
        self.holders.rotate_left(self.oldest);
        let index = (index + self.peers.len() - self.oldest) % self.peers.len();
        self.peers.remove(index);
        self.holders.remove(index);
        self.oldest = 0;
    }

    /// The next few holders of the chunk in `part`: of those that had time to get it, if there are enough, else of those who get it first.
    pub(super) fn name(
        &mut self,
        part: u8,
        now: Time,
        settings: &Settings,
        suits: impl Fn(Peer) -> bool,
    ) -> Holders {
        let ripe_after = Duration::from_millis(u64::from(settings.holder_ripe_ms));
        let mut named = Holders::new();
        let (len, wanted) = (self.peers.len(), named.inline_size());
        let ripe = self.ripe(|holder| now.since(holder.since) >= ripe_after);
        let range = if ripe >= wanted { ripe } else { len.div_ceil(BRANCHES).max(wanted).min(len) };
        for _ in 0..range.min(4 * wanted) {
            self.turn = if self.turn >= range { 0 } else { self.turn };
            let index = (self.oldest + self.turn) % len;
            self.turn += 1;
            let (peer, holder) = (self.peers[index], self.holders[index]);
            if holder.parts >> part & 1 == 1 && suits(peer) {
                named.push(peer);
                if named.len() == wanted {
                    break;
                }
            }
        }
        named
    }

    /// How many of the oldest holders are ripe. Halving finds it, for they lie in the order of time, but for those that
    /// were noted again.
    fn ripe(&self, is_ripe: impl Fn(&Holder) -> bool) -> usize {
        let (mut low, mut high) = (0, self.holders.len());
        while low < high {
            let middle = low.midpoint(high);
            if is_ripe(&self.holders[(self.oldest + middle) % self.holders.len()]) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// The homes' memory, bounded: a further slice displaces another.
///
/// In the order of the slices, and each apart: a node is home of few slices, and of as many as it may be seldom a new one.
#[derive(Clone, Debug, Default)]
pub(super) struct Homes {
    slices: Vec<(Slice, Box<Home>)>,
    hand: u32,
}

impl Homes {
    fn place(&self, slice: Slice) -> Result<usize, usize> {
        self.slices.binary_search_by_key(&slice, |(other, _)| *other)
    }

    pub(super) fn get(&self, slice: Slice) -> Option<&Home> {
        self.place(slice).ok().map(|place| &*self.slices[place].1)
    }

    pub(super) fn get_mut(&mut self, slice: Slice) -> Option<&mut Home> {
        self.place(slice).ok().map(|place| &mut *self.slices[place].1)
    }

    pub(super) fn entry(&mut self, slice: Slice, slices_max: u32) -> &mut Home {
        let place = self.place(slice).unwrap_or_else(|mut place| {
            if self.slices.len() >= slices_max as usize && !self.slices.is_empty() {
                let next = self.slices.partition_point(|(other, _)| other.0 < self.hand);
                let victim = if next < self.slices.len() { next } else { 0 };
                self.hand = self.slices.remove(victim).0.0.wrapping_add(1);
                place -= usize::from(victim < place);
            }
            self.slices.insert(place, (slice, Box::default()));
            place
        });
        &mut self.slices[place].1
    }

    pub(super) fn forget_slice(&mut self, slice: Slice) {
        if let Ok(place) = self.place(slice) {
            self.slices.remove(place);
        }
    }

    pub(super) fn forget_peer(&mut self, peer: Peer) {
        for (_, home) in &mut self.slices {
            home.forget(peer);
        }
    }

    /// Somebody may have what the next ranks did not have before.
    pub(super) fn check_anew(&mut self) {
        for (_, home) in &mut self.slices {
            home.checked = false;
        }
    }

    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self) {
        if let [first, ..] = &self.slices[..] {
            prefetch(first);
        }
    }
}

/// What an audit looks at.
impl Homes {
    pub(super) fn len(&self) -> usize {
        self.slices.len()
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let of = |(_, home): &(Slice, Box<Home>)| {
            size_of::<Home>()
                + home.peers.capacity() * size_of::<Peer>()
                + home.holders.capacity() * size_of::<Holder>()
        };
        self.slices.capacity() * size_of::<(Slice, Box<Home>)>() + self.slices.iter().map(of).sum::<usize>()
    }

    /// Most holders that are remembered of a slice; `None` when a ring is torn.
    pub(super) fn most_holders(&self) -> Option<usize> {
        let in_step = |home: &Home| home.peers.len() == home.holders.len() && home.oldest <= home.peers.len();
        let sorted = self.slices.is_sorted_by(|a, b| a.0 < b.0);
        let all = sorted && self.slices.iter().all(|(_, home)| in_step(home));
        all.then(|| self.slices.iter().map(|(_, home)| home.peers.len()).max().unwrap_or(0))
    }
}

/// Holders that others named, for the other chunks of the slice. Direct-mapped: a further slice displaces another.
#[derive(Clone, Debug, Default)]
pub(super) struct Hints {
    entries: Vec<Hint>,
}

/// Nearly all that is named is a few, and lies in place.
#[derive(Clone, Debug)]
enum Hint {
    None,
    Few { slice: Slice, until: Time, count: u8, peers: [Peer; 4] },
    Many { slice: Slice, until: Time, peers: Box<[Peer]> },
}

impl Hint {
    fn new(slice: Slice, until: Time, named: &[Peer]) -> Self {
        let mut peers = [Peer(0); 4];
        match (named.len(), peers.get_mut(..named.len())) {
            (0, _) => Self::None,
            (count, Some(few)) => {
                few.copy_from_slice(named);
                Self::Few { slice, until, count: u8::try_from(count).unwrap_or(0), peers }
            }
            (_, None) => Self::Many { slice, until, peers: named.into() },
        }
    }

    fn of(&self) -> Option<(Slice, Time, &[Peer])> {
        match self {
            Self::None => None,
            Self::Few { slice, until, count, peers } => Some((*slice, *until, &peers[..usize::from(*count)])),
            Self::Many { slice, until, peers } => Some((*slice, *until, peers)),
        }
    }
}

impl Hints {
    const SLOTS: usize = 32;

    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self, slice: Slice) {
        prefetch(self.entries.as_ptr().wrapping_add(slice.0 as usize % Self::SLOTS));
    }

    pub(super) fn note(&mut self, slice: Slice, peers: &Holders, until: Time) {
        if peers.is_empty() {
            return;
        }
        if self.entries.is_empty() {
            self.entries.resize_with(Self::SLOTS, || Hint::None);
        }
        self.entries[slice.0 as usize % Self::SLOTS] = Hint::new(slice, until, peers);
    }

    pub(super) fn get(&self, slice: Slice, now: Time) -> &[Peer] {
        match self.entries.get(slice.0 as usize % Self::SLOTS).and_then(Hint::of) {
            Some((of, until, peers)) if of == slice && until > now => peers,
            _ => &[],
        }
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let many = |hint: &Hint| if let Hint::Many { peers, .. } = hint { size_of_val(&**peers) } else { 0 };
        self.entries.capacity() * size_of::<Hint>() + self.entries.iter().map(many).sum::<usize>()
    }

    pub(super) fn forget_slice(&mut self, slice: Slice) {
        if let Some(entry) = self.entries.get_mut(slice.0 as usize % Self::SLOTS) {
            *entry = Hint::None;
        }
    }

    pub(super) fn forget_peer(&mut self, peer: Peer) {
        for entry in &mut self.entries {
            if let Some((slice, until, peers)) = entry.of().filter(|(_, _, peers)| peers.contains(&peer)) {
                let left: Holders = peers.iter().copied().filter(|other| *other != peer).collect();
                *entry = Hint::new(slice, until, &left);
            }
        }
    }
}

/// The last known load of peers that answered. Direct-mapped; who is not in it counts as idle.
#[derive(Clone, Debug, Default)]
pub(super) struct Loads {
    entries: Vec<Load>,
}

/// Not aligned, for there are many nodes in a simulation.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
struct Load {
    peer: Peer,
    load: u8,
}

impl Loads {
    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self, peer: Peer) {
        prefetch(self.entries.as_ptr().wrapping_add(peer.0 as usize % self.entries.len().max(1)));
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Load>()
    }

    pub(super) fn note(&mut self, peer: Peer, load: u8, slots: u16) {
        let slots = usize::from(slots.max(1));
        if self.entries.len() != slots {
            self.entries.resize(slots, Load { peer: Peer(u32::MAX), load: 0 });
        }
        self.entries[peer.0 as usize % slots] = Load { peer, load };
    }

    pub(super) fn get(&self, peer: Peer) -> u8 {
        match self.entries.len() {
            0 => 0,
            slots => {
                let Load { peer: found, load } = self.entries[peer.0 as usize % slots];
                if found == peer { load } else { 0 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_names_those_first_who_had_time_to_get_it() {
        let settings = Settings::default();
        let mut home = Home::default();
        let (early, late) = (Time::from_nanos(0), Time::from_nanos(1_000_000_000));
        for peer in 0..4 {
            home.note(Peer(peer), 5, early, &settings);
            home.note(Peer(peer + 20), 6, early, &settings);
        }
        for peer in 10..14 {
            home.note(Peer(peer), 5, late, &settings);
        }
        let named = home.name(5, late, &settings, |peer| peer != Peer(2));
        assert_eq!(
            named.as_slice(),
            [Peer(0), Peer(1), Peer(3)],
            "not the late ones, nor those of another part"
        );
        home.unnote(Peer(0), 5);
        assert!(!home.name(5, late, &settings, |_| true).contains(&Peer(0)));
    }

    #[test]
    fn who_does_not_have_it_yet_is_named_to_four_before_a_later_one_is() {
        let settings = Settings::default();
        let (mut home, mut named) = (Home::default(), [0_usize; 128]);
        for peer in 0..128 {
            for holder in home.name(0, Time::ZERO, &settings, |_| true) {
                named[holder.0 as usize] += 1;
            }
            home.note(Peer(peer), 0, Time::ZERO, &settings);
        }
        // All are named to those who came after them, and who came early to more.
        assert!(named[40..].iter().all(|count| *count == 0), "{named:?}");
        assert!(named[..4].iter().all(|count| *count > 0), "{named:?}");
    }

    #[test]
    fn holders_are_named_in_turn() {
        let settings = Settings { holders_max: 8, ..Settings::default() };
        let mut home = Home::default();
        for peer in 0..11 {
            home.note(Peer(peer), 0, Time::ZERO, &settings);
        }
        home.forget(Peer(6));
        let late = Time::from_nanos(1 << 40);
        let mut count = [0; 11];
        for _ in 0..14 {
            for peer in home.name(0, late, &settings, |_| true) {
                count[peer.0 as usize] += 1;
            }
        }
        assert_eq!(count, [0, 0, 0, 8, 8, 8, 0, 8, 8, 8, 8], "each of the seven last ones alike");
    }

    #[test]
    fn the_memory_of_a_slice_and_of_slices_is_bounded() {
        let settings = Settings { holders_max: 8, slices_max: 3, ..Settings::default() };
        let mut homes = Homes::default();
        for slice in 0..50 {
            for peer in 0..50 {
                let home = homes.entry(Slice(slice), settings.slices_max);
                home.note(Peer(peer), 0, Time::ZERO, &settings);
                assert!(home.peers.len() <= 8 && home.holders.len() == home.peers.len());
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
