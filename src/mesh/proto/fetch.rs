//! One chunk on its way to this node: for whom, from where, and what was tried.

use super::few::Few;
use super::rare::{Nothing, Rare};
use super::{Ask, Chunk, Peer, Slice, prefetch, prefetch_list};
use crate::model::{Class, Time};
use smallvec::SmallVec;

/// Peers that failed a fetch and are remembered as such.
const BAD_MAX: usize = 24;
/// Named holders that are remembered untried.
const CANDIDATES_MAX: usize = 8;

/// Somebody on this node waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) class: Class,
    pub(super) deadline: Time,
}

/// A peer that asked and waits for the fetch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) ask: Ask,
    pub(super) peer: Peer,
    pub(super) class: Class,
    /// When it must hear `Wait` again, or for a short wait, when it is redirected.
    pub(super) due: Time,
    /// Whether it only waits shortly, because this node is no home of the slice.
    pub(super) short: bool,
}

/// A peer that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) peer: Peer,
    /// When it was asked.
    pub(super) since: Time,
    /// When it takes too long.
    pub(super) due: Time,
    /// Whether it was named by another, rather than being an authority for the slice.
    pub(super) named: bool,
    /// Whether it said `Wait`: it is alive, and gets the chunk or queues it.
    pub(super) waits: bool,
    /// How many, itself included, it may have to wait for one after the other.
    pub(super) behind: u8,
}

/// Where a fetch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// About to choose a source.
    Choosing,
    /// A peer was asked.
    Peer(Peer),
    /// The strata were asked.
    Strata,
    /// In line for the strata.
    Line,
    /// The DHT was asked for providers.
    Lookup,
    /// A pause; then the authority that said `Busy`, or the strata, are asked again.
    Pause,
}

/// The parts of the search for a source. A fetch only goes forward through them, so it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// The homes before this node, in their order.
    Homes,
    /// This node is the home, new and empty: the next ranks may have it.
    Peek,
    /// It also has the lease, and got it from another cell of the region, where the slice may have been read before.
    PeekCells,
    /// The home of the region's lease cell.
    Lease,
    /// This node has the lease: other regions, then the strata.
    Upstream,
    /// The strata failed: providers that were not looked up yet, then any member.
    LastResort,
}

/// What few fetches have.
#[derive(Clone, Debug, Default)]
pub(super) struct Seldom {
    /// Peers that wait for it.
    pub(super) waiters: Vec<Waiter>,
    /// A second peer, asked because the one at `at` is slow. Whoever delivers first wins.
    pub(super) hedge: Option<Asked>,
    /// Failed or said that it does not have it: not asked again.
    pub(super) bad: Vec<Peer>,
    /// Its place in line for the strata; 0 before it had one.
    pub(super) place: u64,
}

impl Nothing for Seldom {
    const NOTHING: &'static Self = &Self { waiters: Vec::new(), hedge: None, bad: Vec::new(), place: 0 };
}

/// Nobody's number: a peer's place where there is none.
const NOBODY: Peer = Peer(u32::MAX);

fn somebody(peer: Peer) -> Option<Peer> {
    (peer != NOBODY).then_some(peer)
}

/// There are some two dozen in each node, and in a simulation very many nodes: it is as small as it can be.
#[derive(Clone, Debug)]
pub(super) struct Fetch {
    pub(super) chunk: Chunk,
    pub(super) slice: Slice,
    pub(super) len_bytes: u32,
    pub(super) slot: u16,
    /// How urgently somebody on this node wants it, if somebody does, and by when.
    class_wanted: Option<Class>,
    deadline: Time,
    /// It is fetched because a minimum of copies is declared.
    pub(super) copy: bool,
    /// Whether its want stands still and does not keep others from beginning.
    pub(super) aside: bool,
    /// Since when no bytes are known to have come.
    pub(super) still: Time,
    pub(super) at: At,
    /// When `at` takes too long.
    pub(super) due: Time,
    /// When the peer at `at` was asked.
    pub(super) since: Time,
    /// Whether it said `Wait`.
    pub(super) waits: bool,
    /// Whether it is only peeked at: a next rank, or the home in another cell.
    pub(super) peeked: bool,
    /// How many, itself included, it may have to wait for one after the other.
    pub(super) behind: u8,
    /// When the peer at `at` counts as slow.
    pub(super) hedge_at: Time,
    pub(super) stage: Stage,
    /// The next rank to try in this stage.
    pub(super) rank: u8,
    /// Ranks left in the stage `Peek`, cells in `PeekCells`.
    pub(super) peeks: u8,
    /// Somebody who was peeked at holds other chunks of the slice.
    pub(super) partial: bool,
    /// Whom to ask again, because it is responsible or has the chunk but was busy; or nobody.
    again: Peer,
    /// Who of them says `Busy`, or nobody, and since when.
    busy: Peer,
    busy_since: Time,
    /// How often somebody was asked again.
    pub(super) rounds: u8,
    /// Named holders that were tried since an authority last answered.
    pub(super) tries: u8,
    pub(super) upstream_tries: u8,
    /// The origin budget made it wait.
    pub(super) delayed: bool,
    pub(super) looked_up: bool,
    /// Those who claim to hold it were added to the candidates.
    pub(super) claimed: bool,
    /// A peer of another cell depends on it: it must not be asked of a third cell in turn.
    pub(super) cross: bool,
    /// Whether the peer at `at` was named by another, rather than being an authority for the slice.
    pub(super) named: bool,
    pub(super) candidates: Few<3>,
    /// Tried since an authority last answered.
    pub(super) tried: Few<3>,
    pub(super) rare: Rare<Seldom>,
}

impl Fetch {
    pub(super) fn new(chunk: Chunk, slice: Slice, len_bytes: u32, now: Time) -> Self {
        Self {
            chunk,
            slice,
            len_bytes,
            slot: 0,
            class_wanted: None,
            deadline: Time::NEVER,
            copy: false,
            aside: false,
            still: now,
            at: At::Choosing,
            due: Time::NEVER,
            since: Time::ZERO,
            waits: false,
            peeked: false,
            behind: 1,
            hedge_at: Time::NEVER,
            stage: Stage::Homes,
            rank: 0,
            peeks: 0,
            partial: false,
            again: NOBODY,
            busy: NOBODY,
            busy_since: Time::ZERO,
            rounds: 0,
            tries: 0,
            upstream_tries: 0,
            delayed: false,
            looked_up: false,
            claimed: false,
            cross: false,
            named: false,
            candidates: Few::default(),
            tried: Few::default(),
            rare: Rare::default(),
        }
    }

    /// What somebody on this node wants of it.
    pub(super) fn want(&self) -> Option<Want> {
        self.class_wanted.map(|class| Want { class, deadline: self.deadline })
    }

    pub(super) fn set_want(&mut self, want: Want) {
        (self.class_wanted, self.deadline) = (Some(want.class), want.deadline);
    }

    /// Nobody on this node wants it any more.
    pub(super) fn take_want(&mut self) -> Option<Want> {
        let want = self.want();
        (self.class_wanted, self.deadline) = (None, Time::NEVER);
        want
    }

    /// Whom to ask again.
    pub(super) fn again(&self) -> Option<Peer> {
        somebody(self.again)
    }

    pub(super) fn set_again(&mut self, peer: Peer) {
        self.again = peer;
    }

    pub(super) fn take_again(&mut self) -> Option<Peer> {
        somebody(std::mem::replace(&mut self.again, NOBODY))
    }

    /// Who of them says `Busy`, and since when.
    pub(super) fn busy(&self) -> Option<(Peer, Time)> {
        somebody(self.busy).map(|peer| (peer, self.busy_since))
    }

    pub(super) fn set_busy(&mut self, peer: Peer, since: Time) {
        (self.busy, self.busy_since) = (peer, since);
    }

    /// The second peer that is asked.
    pub(super) fn hedge(&self) -> Option<&Asked> {
        self.rare.hedge.as_ref()
    }

    pub(super) fn take_hedge(&mut self) -> Option<Asked> {
        self.rare.there()?.hedge.take()
    }

    /// Peers that wait for it.
    pub(super) fn waiters(&self) -> &[Waiter] {
        &self.rare.waiters
    }

    pub(super) fn take_waiters(&mut self) -> Vec<Waiter> {
        self.rare.there().map(|rare| std::mem::take(&mut rare.waiters)).unwrap_or_default()
    }

    /// Forgets the waiters for which `keep` does not hold.
    pub(super) fn keep_waiters(&mut self, keep: impl FnMut(&Waiter) -> bool) {
        if let Some(rare) = self.rare.there() {
            rare.waiters.retain(keep);
        }
    }

    /// The most urgent of those who wait for it.
    pub(super) fn class(&self) -> Class {
        let waiters = self.waiters().iter().map(|waiter| waiter.class);
        waiters.chain(self.class_wanted).min().unwrap_or(Class::Fill)
    }

    /// Whether a declared minimum of copies is its only reason. Such a fetch asks homes, and nobody else.
    pub(super) fn is_copy_only(&self) -> bool {
        self.copy && self.class_wanted.is_none() && self.waiters().is_empty()
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_orphan(&self) -> bool {
        let beyond = matches!(self.at, At::Strata | At::Line | At::Lookup);
        self.class_wanted.is_none() && self.waiters().is_empty() && (!self.copy || beyond)
    }

    /// Whether `peer` is asked right now.
    pub(super) fn is_asked(&self, peer: Peer) -> bool {
        self.asked().any(|asked| asked == peer)
    }

    /// The peers that are asked right now: at most two.
    pub(super) fn asked(&self) -> impl Iterator<Item = Peer> + use<> {
        let main = match self.at {
            At::Peer(peer) => Some(peer),
            _ => None,
        };
        main.into_iter().chain(self.hedge().map(|hedge| hedge.peer))
    }

    /// When `peer` was asked, if it is asked right now.
    pub(super) fn asked_since(&self, peer: Peer) -> Option<Time> {
        let main = (self.at == At::Peer(peer)).then_some(self.since);
        main.or_else(|| self.hedge().filter(|hedge| hedge.peer == peer).map(|hedge| hedge.since))
    }

    /// The next moment at which something must be done about it, its readers aside.
    pub(super) fn next_due(&self) -> Time {
        self.due.min(self.hedge().map_or(self.hedge_at, |hedge| hedge.due))
    }

    /// The same, its readers included.
    pub(super) fn due_with_readers(&self) -> Time {
        self.next_due().min(self.deadline)
    }

    /// When the first of its waiters must hear of it.
    pub(super) fn waiters_due(&self) -> Time {
        self.waiters().iter().map(|waiter| waiter.due).min().unwrap_or(Time::NEVER)
    }

    /// The second source becomes the first.
    pub(super) fn promote(&mut self) -> bool {
        let Some(hedge) = self.take_hedge() else { return false };
        let Asked { peer, since, due, named, waits, behind } = hedge;
        (self.at, self.since, self.due) = (At::Peer(peer), since, due);
        (self.named, self.waits, self.peeked, self.behind) = (named, waits, false, behind);
        true
    }

    /// Forgets what was tried of peers.
    pub(super) fn begin_anew(&mut self) {
        (self.stage, self.rank, self.peeks, self.partial) = (Stage::Homes, 0, 0, false);
        (self.again, self.rounds, self.tries) = (NOBODY, 0, 0);
        (self.looked_up, self.claimed, self.busy) = (false, false, NOBODY);
        self.candidates.clear();
        self.tried.clear();
        if let Some(rare) = self.rare.there() {
            rare.bad.clear();
        }
    }

    /// Remembers not to ask `peer` again.
    pub(super) fn mark_bad(&mut self, peer: Peer) {
        if self.again == peer {
            self.again = NOBODY;
        }
        let bad = &mut self.rare.bad;
        if bad.len() >= BAD_MAX {
            bad.remove(0);
        }
        bad.push(peer);
    }

    /// Remembers named holders to try.
    pub(super) fn add_candidates(&mut self, peers: impl IntoIterator<Item = Peer>) {
        for peer in peers {
            if self.candidates.len() < CANDIDATES_MAX && !self.candidates.contains(&peer) {
                self.candidates.push(peer);
            }
        }
    }

    /// Gives back the place of what it seldom has, when it does not have it any more.
    fn settle(&mut self) {
        let Seldom { waiters, hedge, bad, place } = &*self.rare;
        if self.rare.is_there() && waiters.is_empty() && hedge.is_none() && bad.is_empty() && *place == 0 {
            self.rare.clear();
        }
    }
}

/// A fetch, and beside it what all of them are looked through for at each wake-up.
#[derive(Clone, Debug)]
struct Slot {
    fetch: Option<Box<Fetch>>,
    /// The next moment at which something must be done about it, its readers included.
    due: Time,
}

impl Slot {
    fn new(mut fetch: Box<Fetch>) -> Self {
        fetch.settle();
        Self { due: fetch.due_with_readers(), fetch: Some(fetch) }
    }
}

/// Room for so many more where there are so many already: a quarter more rather than twice as many.
fn more(len: usize) -> usize {
    4.max(len / 4)
}

/// Fetches by slot. Slots are given again, the lowest free one first come.
///
/// Each lies by itself: it is taken out and put back at every turn, and a node has room for many and seldom many under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Fetches {
    slots: Vec<Slot>,
    free: Vec<u16>,
    len: usize,
}

impl Fetches {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Stores a new fetch; `None` when all slots are taken.
    pub(super) fn insert(&mut self, mut fetch: Fetch) -> Option<u16> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => match u16::try_from(self.slots.len()) {
                Ok(slot) if slot < super::marks::SLOTS_MAX => {
                    if self.slots.len() == self.slots.capacity() {
                        self.slots.reserve_exact(more(self.slots.len()));
                    }
                    self.slots.push(Slot { fetch: None, due: Time::NEVER });
                    slot
                }
                _ => return None,
            },
        };
        fetch.slot = slot;
        self.slots[usize::from(slot)] = Slot::new(Box::new(fetch));
        self.len += 1;
        Some(slot)
    }

    /// Takes a fetch out to work on it; [`Self::put`] brings it back or [`Self::release`] frees its slot.
    pub(super) fn take(&mut self, slot: u16) -> Option<Box<Fetch>> {
        self.slots.get_mut(usize::from(slot)).and_then(|slot| slot.fetch.take())
    }

    pub(super) fn put(&mut self, fetch: Box<Fetch>) {
        let slot = usize::from(fetch.slot);
        debug_assert!(self.slots[slot].fetch.is_none(), "a fetch is taken out before it is put back");
        self.slots[slot] = Slot::new(fetch);
    }

    /// Frees the slot of a fetch that was taken out.
    pub(super) fn release(&mut self, slot: u16) {
        debug_assert!(self.slots[usize::from(slot)].fetch.is_none(), "only what was taken out is released");
        self.free.push(slot);
        self.len -= 1;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Fetch> {
        self.slots.iter().filter_map(|slot| slot.fetch.as_deref())
    }

    fn taken(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.fetch.is_some())
    }

    /// Slots of the fetches about which something must be done by `now`, in the order of the slots.
    pub(super) fn due(&self, now: Time) -> SmallVec<[u16; 16]> {
        let due = (0_u16..).zip(&self.slots).filter(|(_, slot)| slot.due <= now && slot.fetch.is_some());
        due.map(|(number, _)| number).collect()
    }

    /// When something must be done about one of them.
    pub(super) fn due_at(&self) -> Option<Time> {
        self.taken().map(|slot| slot.due).min()
    }

    /// Lets `tell` look at each fetch of which a waiter must hear something by `now`. Returns when the next one must.
    pub(super) fn waiters_due(&mut self, now: Time, mut tell: impl FnMut(&mut Fetch)) -> Time {
        let mut next = Time::NEVER;
        for fetch in self.slots.iter_mut().filter_map(|slot| slot.fetch.as_deref_mut()) {
            if fetch.waiters_due() <= now {
                tell(fetch);
            }
            next = next.min(fetch.waiters_due());
        }
        next
    }

    /// Whether what is kept beside each fetch is what the fetch says: what an audit looks at.
    pub(super) fn in_step(&self) -> bool {
        let is_so =
            |slot: &Slot| slot.fetch.as_deref().is_none_or(|fetch| fetch.due_with_readers() == slot.due);
        self.slots.iter().all(is_so)
    }

    pub(super) fn get(&self, slot: u16) -> Option<&Fetch> {
        self.slots.get(usize::from(slot)).and_then(|slot| slot.fetch.as_deref())
    }

    /// When the oldest of the asks was made on which somebody's idleness is judged: those under way, and of those that were
    /// answered `Busy`. `Time::NEVER` when there are none.
    pub(super) fn oldest_ask(&self) -> Time {
        let of = |fetch: &Fetch| {
            let main = if matches!(fetch.at, At::Peer(_)) { fetch.since } else { Time::NEVER };
            let hedge = fetch.hedge().map_or(Time::NEVER, |hedge| hedge.since);
            main.min(hedge).min(fetch.busy().map_or(Time::NEVER, |busy| busy.1))
        };
        self.iter().map(of).min().unwrap_or(Time::NEVER)
    }

    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self) {
        prefetch_list(&self.slots);
    }

    /// The same for one place.
    pub(super) fn prefetch_slot(&self, slot: u16) {
        prefetch(self.slots.as_ptr().wrapping_add(usize::from(slot)));
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let apart = |fetch: &Fetch| {
            fetch.candidates.heap_bytes()
                + fetch.tried.heap_bytes()
                + fetch.rare.heap_bytes()
                + fetch.rare.waiters.capacity() * size_of::<Waiter>()
                + fetch.rare.bad.capacity() * size_of::<Peer>()
        };
        self.slots.capacity() * size_of::<Slot>()
            + self.free.capacity() * size_of::<u16>()
            + self.iter().map(|fetch| size_of::<Fetch>() + apart(fetch)).sum::<usize>()
    }

    /// Slots of the fetches for which `due` holds, in the order of the slots.
    pub(super) fn slots_where(&self, due: impl Fn(&Fetch) -> bool) -> SmallVec<[u16; 16]> {
        self.iter().filter(|fetch| due(fetch)).map(|fetch| fetch.slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetch_is_small_and_what_it_has_no_more_is_given_back() {
        assert!(size_of::<Fetch>() <= 136 && size_of::<Slot>() == 16, "{}", size_of::<Fetch>());
        let mut fetches = Fetches::default();
        let slot = fetches.insert(Fetch::new(Chunk(1), Slice(1), 9, Time::ZERO)).unwrap();
        let bytes = fetches.heap_bytes();
        let mut fetch = fetches.take(slot).unwrap();
        let (due, named) = (Time::from_nanos(5), false);
        fetch.rare.hedge =
            Some(Asked { peer: Peer(3), since: Time::ZERO, due, named, waits: false, behind: 1 });
        assert!(fetch.is_asked(Peer(3)) && fetch.next_due() == due);
        fetches.put(fetch);
        assert!(fetches.heap_bytes() > bytes && fetches.in_step());
        let mut fetch = fetches.take(slot).unwrap();
        assert_eq!(fetch.take_hedge().map(|hedge| hedge.peer), Some(Peer(3)));
        fetches.put(fetch);
        assert_eq!(fetches.heap_bytes(), bytes);
    }
}
