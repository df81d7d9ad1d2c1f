//! One chunk on its way to this node: for whom, from where, and what was tried.

use super::{Ask, Chunk, Peer, Slice, prefetch_list};
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

#[derive(Clone, Debug)]
pub(super) struct Fetch {
    pub(super) chunk: Chunk,
    pub(super) slice: Slice,
    pub(super) len_bytes: u32,
    pub(super) slot: u16,
    pub(super) want: Option<Want>,
    /// It is fetched because a minimum of copies is declared.
    pub(super) copy: bool,
    pub(super) waiters: Vec<Waiter>,
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
    /// A second peer, asked because the one at `at` is slow. Whoever delivers first wins.
    pub(super) hedge: Option<Box<Asked>>,
    /// When the peer at `at` counts as slow.
    pub(super) hedge_at: Time,
    pub(super) stage: Stage,
    /// The next rank to try in this stage.
    pub(super) rank: u8,
    /// Ranks left in the stage `Peek`, cells in `PeekCells`.
    pub(super) peeks: u8,
    /// Somebody who was peeked at holds other chunks of the slice.
    pub(super) partial: bool,
    /// Whom to ask again, because it is responsible or has the chunk but was busy.
    pub(super) again: Option<Peer>,
    /// Who of them says `Busy`, and since when.
    pub(super) busy: Option<(Peer, Time)>,
    /// How often somebody was asked again.
    pub(super) rounds: u8,
    /// Named holders that were tried since an authority last answered.
    pub(super) tries: u8,
    pub(super) upstream_tries: u8,
    /// Its place in line for the strata; 0 before it had one.
    pub(super) place: u64,
    /// The origin budget made it wait.
    pub(super) delayed: bool,
    pub(super) looked_up: bool,
    /// Those who claim to hold it were added to the candidates.
    pub(super) claimed: bool,
    /// A peer of another cell depends on it: it must not be asked of a third cell in turn.
    pub(super) cross: bool,
    /// Whether the peer at `at` was named by another, rather than being an authority for the slice.
    pub(super) named: bool,
    pub(super) candidates: SmallVec<[Peer; 4]>,
    /// Tried since an authority last answered.
    pub(super) tried: SmallVec<[Peer; 6]>,
    /// Failed or said that it does not have it: not asked again. Seldom anybody.
    pub(super) bad: Vec<Peer>,
}

impl Fetch {
    pub(super) fn new(chunk: Chunk, slice: Slice, len_bytes: u32, now: Time) -> Self {
        Self {
            chunk,
            slice,
            len_bytes,
            slot: 0,
            want: None,
            copy: false,
            waiters: Vec::new(),
            aside: false,
            still: now,
            at: At::Choosing,
            due: Time::NEVER,
            since: Time::ZERO,
            waits: false,
            peeked: false,
            behind: 1,
            hedge: None,
            hedge_at: Time::NEVER,
            stage: Stage::Homes,
            rank: 0,
            peeks: 0,
            partial: false,
            again: None,
            busy: None,
            rounds: 0,
            tries: 0,
            upstream_tries: 0,
            place: 0,
            delayed: false,
            looked_up: false,
            claimed: false,
            cross: false,
            named: false,
            candidates: SmallVec::new(),
            tried: SmallVec::new(),
            bad: Vec::new(),
        }
    }

    /// The most urgent of those who wait for it.
    pub(super) fn class(&self) -> Class {
        let waiters = self.waiters.iter().map(|waiter| waiter.class);
        waiters.chain(self.want.map(|want| want.class)).min().unwrap_or(Class::Fill)
    }

    /// Whether a declared minimum of copies is its only reason. Such a fetch asks homes, and nobody else.
    pub(super) fn is_copy_only(&self) -> bool {
        self.copy && self.want.is_none() && self.waiters.is_empty()
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_orphan(&self) -> bool {
        let beyond = matches!(self.at, At::Strata | At::Line | At::Lookup);
        self.want.is_none() && self.waiters.is_empty() && (!self.copy || beyond)
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
        main.into_iter().chain(self.hedge.as_deref().map(|hedge| hedge.peer))
    }

    /// When `peer` was asked, if it is asked right now.
    pub(super) fn asked_since(&self, peer: Peer) -> Option<Time> {
        let main = (self.at == At::Peer(peer)).then_some(self.since);
        main.or_else(|| self.hedge.as_deref().filter(|hedge| hedge.peer == peer).map(|hedge| hedge.since))
    }

    /// The next moment at which something must be done about it, its readers aside.
    pub(super) fn next_due(&self) -> Time {
        let hedge = self.hedge.as_deref().map_or(Time::NEVER, |hedge| hedge.due);
        let slow = if self.hedge.is_none() { self.hedge_at } else { Time::NEVER };
        self.due.min(hedge).min(slow)
    }

    /// The same, its readers included.
    pub(super) fn due_with_readers(&self) -> Time {
        self.next_due().min(self.want.map_or(Time::NEVER, |want| want.deadline))
    }

    /// When the first of its waiters must hear of it.
    pub(super) fn waiters_due(&self) -> Time {
        self.waiters.iter().map(|waiter| waiter.due).min().unwrap_or(Time::NEVER)
    }

    /// The second source becomes the first.
    pub(super) fn promote(&mut self) -> bool {
        let Some(hedge) = self.hedge.take() else { return false };
        let Asked { peer, since, due, named, waits } = *hedge;
        (self.at, self.since, self.due) = (At::Peer(peer), since, due);
        (self.named, self.waits, self.peeked) = (named, waits, false);
        true
    }

    /// Forgets what was tried of peers.
    pub(super) fn begin_anew(&mut self) {
        (self.stage, self.rank, self.peeks, self.partial) = (Stage::Homes, 0, 0, false);
        (self.again, self.rounds, self.tries) = (None, 0, 0);
        (self.looked_up, self.claimed, self.busy) = (false, false, None);
        self.candidates.clear();
        self.tried.clear();
        self.bad.clear();
    }

    /// Remembers not to ask `peer` again.
    pub(super) fn mark_bad(&mut self, peer: Peer) {
        if self.again == Some(peer) {
            self.again = None;
        }
        if self.bad.len() >= BAD_MAX {
            self.bad.remove(0);
        }
        self.bad.push(peer);
    }

    /// Remembers named holders to try.
    pub(super) fn add_candidates(&mut self, peers: impl IntoIterator<Item = Peer>) {
        for peer in peers {
            if self.candidates.len() < CANDIDATES_MAX && !self.candidates.contains(&peer) {
                self.candidates.push(peer);
            }
        }
    }
}

/// A fetch, and beside it what all of them are looked through for again and again.
#[derive(Clone, Debug)]
struct Slot {
    fetch: Option<Box<Fetch>>,
    /// The next moment at which something must be done about it, its readers included.
    due: Time,
    /// When the first of its waiters must hear of it.
    waiters_due: Time,
}

impl Slot {
    fn new(fetch: Box<Fetch>) -> Self {
        let (due, waiters_due) = (fetch.due_with_readers(), fetch.waiters_due());
        Self { fetch: Some(fetch), due, waiters_due }
    }
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
                    self.slots.push(Slot { fetch: None, due: Time::NEVER, waiters_due: Time::NEVER });
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
        for slot in self.slots.iter_mut().filter(|slot| slot.waiters_due <= now) {
            if let Some(fetch) = slot.fetch.as_deref_mut() {
                tell(fetch);
                slot.waiters_due = fetch.waiters_due();
            }
        }
        self.taken().map(|slot| slot.waiters_due).min().unwrap_or(Time::NEVER)
    }

    /// Whether what is kept beside each fetch is what the fetch says: what an audit looks at.
    pub(super) fn in_step(&self) -> bool {
        let moments = |fetch: &Fetch| (fetch.due_with_readers(), fetch.waiters_due());
        let is_so = |slot: &Slot| {
            slot.fetch.as_deref().is_none_or(|fetch| moments(fetch) == (slot.due, slot.waiters_due))
        };
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
            let hedge = fetch.hedge.as_deref().map_or(Time::NEVER, |hedge| hedge.since);
            main.min(hedge).min(fetch.busy.map_or(Time::NEVER, |busy| busy.1))
        };
        self.iter().map(of).min().unwrap_or(Time::NEVER)
    }

    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self) {
        prefetch_list(&self.slots);
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let spilled = |fetch: &Fetch| {
            let lists =
                [fetch.candidates.capacity(), fetch.tried.capacity()].map(|places| places.saturating_sub(6));
            fetch.waiters.capacity() * size_of::<Waiter>()
                + (fetch.bad.capacity() + lists.iter().sum::<usize>()) * size_of::<Peer>()
                + fetch.hedge.as_ref().map_or(0, |_| size_of::<Asked>())
        };
        self.slots.capacity() * size_of::<Slot>()
            + self.free.capacity() * size_of::<u16>()
            + self.iter().map(|fetch| size_of::<Fetch>() + spilled(fetch)).sum::<usize>()
    }

    /// Slots of the fetches for which `due` holds, in the order of the slots.
    pub(super) fn slots_where(&self, due: impl Fn(&Fetch) -> bool) -> SmallVec<[u16; 16]> {
        self.iter().filter(|fetch| due(fetch)).map(|fetch| fetch.slot).collect()
    }
}
