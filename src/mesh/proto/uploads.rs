//! Asks of others: served while there are slots, kept waiting shortly, else redirected.

use super::fetch::{At, Fetch, Waiter};
use super::holders::BRANCHES;
use super::marks::Mark;
use super::pace::Pace;
use super::timer::Timer;
use super::{
    Answer, Ask, Chunk, Content, Holders, Nearness, Node, Outbox, Output, Peer, Peers, prefetch_list,
};
use crate::model::{Class, Rng, Time};
use std::collections::VecDeque;
use std::time::Duration;

/// How often the oldest in the queue is served whatever its class (guess: an eighth of the uplink for those who would starve).
const OLDEST_EVERY: u32 = 8;
/// Transfers for which somebody may wait at a node that is no home of the slice (simulated: from two to twenty-four it makes no difference).
const SHORT_WAIT_TRANSFERS: u32 = 12;
/// Wait for an upload slot, in milliseconds, after which the asker hears of it (guess: a few slices at 1 Gbit/s).
const SILENT_MS: u64 = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The bytes are on their way.
    Serving,
    /// It is stored; a slot is not free yet.
    Queued,
    /// It is being fetched.
    Waiting,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    peer: Peer,
    chunk: Chunk,
    len_bytes: u32,
    state: State,
}

#[derive(Clone, Copy, Debug)]
struct Queued {
    ask: Ask,
    class: Class,
    /// Whether it lives in this node's cell. A peer of another cell is a home there, for whom a cell waits.
    near: bool,
    since: Time,
    /// When it hears `Wait`.
    due: Time,
}

/// Room for so many more where there are so many already: a quarter more rather than twice as many, for there are many nodes in a
/// simulation.
fn more(len: usize) -> usize {
    4.max(len / 4)
}

/// Asks by number, in its order. They are few and looked up at every turn, so they lie side by side; numbers that grow
/// are appended.
#[derive(Clone, Debug, Default)]
struct Asks(Vec<(Ask, Asked)>);

impl Asks {
    fn place(&self, ask: Ask) -> Result<usize, usize> {
        self.0.binary_search_by_key(&ask, |(other, _)| *other)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn contains(&self, ask: Ask) -> bool {
        self.place(ask).is_ok()
    }

    fn get(&self, ask: Ask) -> Option<&Asked> {
        self.place(ask).ok().map(|place| &self.0[place].1)
    }

    fn get_mut(&mut self, ask: Ask) -> Option<&mut Asked> {
        self.place(ask).ok().map(|place| &mut self.0[place].1)
    }

    fn insert(&mut self, ask: Ask, asked: Asked) {
        match self.place(ask) {
            Ok(place) => self.0[place].1 = asked,
            Err(place) => {
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(more(self.0.len()));
                }
                self.0.insert(place, (ask, asked));
            }
        }
    }

    fn remove(&mut self, ask: Ask) -> Option<Asked> {
        self.place(ask).ok().map(|place| self.0.remove(place).1)
    }

    fn iter(&self) -> impl Iterator<Item = (Ask, &Asked)> {
        self.0.iter().map(|(ask, asked)| (*ask, asked))
    }

    fn values(&self) -> impl Iterator<Item = &Asked> {
        self.0.iter().map(|(_, asked)| asked)
    }
}

/// All asks under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Uploads {
    asks: Asks,
    queue: VecDeque<Queued>,
    queued_bytes: u64,
    /// Uploads that were begun from the queue.
    begun: u32,
}

impl Uploads {
    /// Asks of `peer` that wait.
    fn waiting_of(&self, peer: Peer) -> Vec<Ask> {
        let waits = |asked: &Asked| asked.peer == peer && asked.state != State::Serving;
        self.asks.iter().filter(|(_, asked)| waits(asked)).map(|(ask, _)| ask).collect()
    }

    /// Who is being served `chunk`.
    pub(super) fn served(&self, chunk: Chunk) -> impl Iterator<Item = Peer> {
        let serving = move |asked: &&Asked| asked.chunk == chunk && asked.state == State::Serving;
        self.asks.values().filter(serving).map(|asked| asked.peer)
    }

    /// The queued ask to serve next: the most urgent class, then those from other cells, then whose asker has the fewest uploads running, then
    /// the oldest. Every eighth time just the oldest, so that nobody starves.
    fn next(&mut self) -> Option<Queued> {
        let running = |ask: Ask| {
            let Some(peer) = self.asks.get(ask).map(|asked| asked.peer) else { return 0 };
            let serving = |asked: &&Asked| asked.peer == peer && asked.state == State::Serving;
            self.asks.values().filter(serving).count()
        };
        let index = match self.queue.len() {
            0 => return None,
            1 => 0,
            _ if self.begun.wrapping_add(1).is_multiple_of(OLDEST_EVERY) => 0,
            _ => {
                let ranked = self
                    .queue
                    .iter()
                    .enumerate()
                    .map(|(index, queued)| (queued.class, queued.near, running(queued.ask), index));
                ranked.min()?.3
            }
        };
        self.begun = self.begun.wrapping_add(1);
        self.queue.remove(index)
    }

    /// The queued ask that gives way to one of `class`: the latest of the least urgent ones of this cell.
    fn gives_way(&mut self, class: Class) -> Option<Queued> {
        let queue = self.queue.iter().enumerate();
        let later = queue.filter(|(_, queued)| queued.near && queued.class > class);
        let index = later.max_by_key(|(index, queued)| (queued.class, *index))?.0;
        self.queue.remove(index)
    }
}

/// What an audit looks at.
impl Uploads {
    pub(super) fn len(&self) -> usize {
        self.asks.len()
    }

    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// See [`super::prefetch`].
    pub(super) fn prefetch(&self) {
        prefetch_list(&self.asks.0);
        let (first, _) = self.queue.as_slices();
        prefetch_list(first);
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.asks.0.capacity() * size_of::<(Ask, Asked)>() + self.queue.capacity() * size_of::<Queued>()
    }

    /// Asks that wait for a fetch.
    pub(super) fn waiting(&self) -> usize {
        self.asks.values().filter(|asked| asked.state == State::Waiting).count()
    }

    pub(super) fn is_waiting_for(&self, ask: Ask, chunk: Chunk) -> bool {
        self.asks.get(ask).is_some_and(|asked| asked.state == State::Waiting && asked.chunk == chunk)
    }

    /// When the first in the queue must hear of it.
    pub(super) fn queue_due_at(&self) -> Option<Time> {
        self.queue.iter().map(|queued| queued.due).min()
    }

    /// Whether the sums are those of the asks, and the queue holds those that are queued. `serving` says how many
    /// uploads run, and their bytes.
    pub(super) fn adds_up(&self, serving: (u32, u64)) -> bool {
        let bytes = |state: State| {
            let in_state = self.asks.values().filter(|asked| asked.state == state);
            in_state.fold((0_u32, 0_u64), |sum, asked| (sum.0 + 1, sum.1 + u64::from(asked.len_bytes)))
        };
        let queued = bytes(State::Queued);
        let is_queued =
            |queued: &Queued| self.asks.get(queued.ask).is_some_and(|asked| asked.state == State::Queued);
        bytes(State::Serving) == serving
            && (queued.0 as usize, queued.1) == (self.queue.len(), self.queued_bytes)
            && self.queue.iter().all(is_queued)
    }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    pub(super) fn answer(&mut self, ask: Ask, answer: Answer, out: &mut Outbox) {
        if answer != Answer::Wait {
            self.uploads.asks.remove(ask);
        }
        let load = (self.pace.up.count as usize).saturating_add(self.uploads.queue.len());
        out.push(Output::Answer { ask, answer, load: u8::try_from(load).unwrap_or(u8::MAX) });
    }

    /// A peer asks for a chunk.
    pub(super) fn asked(&mut self, peer: Peer, ask: Ask, chunk: Chunk, class: Class, out: &mut Outbox) {
        if self.uploads.asks.contains(ask) {
            debug_assert!(false, "{ask:?} is under way already");
            return;
        }
        let full = self.uploads.asks.len() >= self.settings.asks_max as usize;
        if full || chunk.0 >= self.settings.numbers_max {
            return self.answer(ask, Answer::Busy { holders: Holders::new() }, out);
        }
        let len_bytes = Pace::upload_len(self.content.len_bytes(chunk), &self.settings);
        self.uploads.asks.insert(ask, Asked { peer, chunk, len_bytes, state: State::Waiting });
        self.settle(ask, peer, chunk, class, out);
    }

    /// Decides on an ask by what this node has to do with its chunk now.
    fn settle(&mut self, ask: Ask, peer: Peer, chunk: Chunk, class: Class, out: &mut Outbox) {
        match self.marks.get(chunk) {
            Mark::Held => self.offer(ask, peer, chunk, class, out),
            Mark::Fetching(slot) => self.join(slot, ask, peer, class, out),
            mark @ (Mark::Nothing | Mark::Pending(_)) => self.fetch_for(mark, ask, peer, chunk, class, out),
        }
    }

    /// Serves a stored chunk, or lets the asker wait for a slot, or redirects it.
    pub(super) fn offer(&mut self, ask: Ask, peer: Peer, chunk: Chunk, class: Class, out: &mut Outbox) {
        let near = self.peers.nearness(peer) == Nearness::Cell;
        // Those who get it now have it soon, and serve others. Somebody who reads is served at once if he can be.
        if near
            && class != Class::Read
            && self.uploads.served(chunk).count() >= usize::from(self.settings.same_chunk_max.max(1))
        {
            return self.redirect(ask, peer, chunk, out);
        }
        let ahead = self.uploads.queue.iter().any(|queued| queued.class <= class);
        if !ahead && self.pace.may_upload(class, &self.settings) {
            return self.serve(ask, out);
        }
        let waiting = (self.uploads.queue.len(), self.uploads.queued_bytes);
        let room = (!near || self.pace.may_queue(waiting, &self.settings))
            && waiting.0 < self.settings.upload_queue_max as usize;
        if !room {
            let Some(other) = self.uploads.gives_way(class) else {
                return self.redirect(ask, peer, chunk, out);
            };
            self.turn_away(other, out);
        }
        let uploads = &mut self.uploads;
        let Some(asked) = uploads.asks.get_mut(ask) else { return };
        asked.state = State::Queued;
        uploads.queued_bytes += u64::from(asked.len_bytes);
        let due = self.now + Duration::from_millis(SILENT_MS);
        if uploads.queue.len() == uploads.queue.capacity() {
            uploads.queue.reserve_exact(more(uploads.queue.len()));
        }
        uploads.queue.push_back(Queued { ask, class, near, since: self.now, due });
        self.timers.arm(Timer::Queue, due);
    }

    /// Redirects an ask that was taken out of the queue.
    fn turn_away(&mut self, queued: Queued, out: &mut Outbox) {
        let Some(asked) = self.uploads.asks.get(queued.ask).copied() else { return };
        self.uploads.queued_bytes -= u64::from(asked.len_bytes);
        self.redirect(queued.ask, asked.peer, asked.chunk, out);
    }

    fn redirect(&mut self, ask: Ask, peer: Peer, chunk: Chunk, out: &mut Outbox) {
        let holders = self.known_holders(chunk, peer);
        if !holders.is_empty() {
            self.note_holder(chunk, peer);
        }
        self.answer(ask, Answer::Busy { holders }, out);
    }

    fn serve(&mut self, ask: Ask, out: &mut Outbox) {
        let Some(asked) = self.uploads.asks.get_mut(ask) else { return };
        asked.state = State::Serving;
        self.pace.up.begin(self.now, asked.len_bytes);
        let (chunk, peer) = (asked.chunk, asked.peer);
        self.note_holder(chunk, peer);
        out.push(Output::Serve { ask });
    }

    fn serve_queued(&mut self, out: &mut Outbox) {
        while let Some(class) = self.uploads.queue.iter().map(|queued| queued.class).min() {
            if !self.pace.may_upload(class, &self.settings) {
                return;
            }
            let Some(queued) = self.uploads.next() else { return };
            let Some(asked) = self.uploads.asks.get_mut(queued.ask) else { continue };
            self.uploads.queued_bytes -= u64::from(asked.len_bytes);
            let (chunk, peer) = (asked.chunk, asked.peer);
            if self.marks.get(chunk) == Mark::Held {
                self.serve(queued.ask, out);
            } else {
                // It was evicted while the ask stood in the queue.
                asked.state = State::Waiting;
                self.settle(queued.ask, peer, chunk, queued.class, out);
            }
        }
    }

    /// An upload ended, or the asker went away.
    pub(super) fn ask_ended(&mut self, ask: Ask, ok: bool, out: &mut Outbox) {
        self.end_ask(ask, ok, out);
        self.serve_queued(out);
    }

    /// Everything that a peer who is gone was not given yet ends. Not one after the other: what the first makes room for might
    /// be another one of his.
    pub(super) fn asker_gone(&mut self, peer: Peer, out: &mut Outbox) {
        for ask in self.uploads.waiting_of(peer) {
            self.end_ask(ask, false, out);
        }
        self.serve_queued(out);
    }

    fn end_ask(&mut self, ask: Ask, ok: bool, out: &mut Outbox) {
        let Some(asked) = self.uploads.asks.remove(ask) else { return };
        match asked.state {
            State::Serving => {
                self.pace.up.end(self.now, asked.len_bytes, ok);
            }
            State::Queued => {
                self.uploads.queue.retain(|queued| queued.ask != ask);
                self.uploads.queued_bytes -= u64::from(asked.len_bytes);
            }
            State::Waiting => self.drop_waiter(ask, asked.chunk, out),
        }
        if !ok && let Some(home) = self.homes.get_mut(self.content.slice(asked.chunk)) {
            home.unnote(asked.peer, self.content.part(asked.chunk));
        }
    }

    fn drop_waiter(&mut self, ask: Ask, chunk: Chunk, out: &mut Outbox) {
        let Mark::Fetching(slot) = self.marks.get(chunk) else { return };
        let Some(mut fetch) = self.fetches.take(slot) else { return };
        fetch.keep_waiters(|waiter| waiter.ask != ask);
        self.put_or_abandon(fetch, out);
    }

    /// Whether `peer` is a home of the slice before `rank`.
    fn outranks(&self, peer: Peer, fetch_slice: super::Slice, rank: u8) -> bool {
        self.rank_of(peer, fetch_slice).is_some_and(|theirs| theirs < rank)
    }

    /// Nothing is under way for the chunk: whether it is this node's duty to get it depends on who asks.
    ///
    /// A home gets it for a member that ranks behind it or is no home. An asker that ranks before it is a new and
    /// empty home that takes what there is; if that made this node fetch, both would wait for each other. A peer of
    /// another cell of the region asks because it believes that the lease is here; where this node believes
    /// otherwise, or the asker found an announcement, as from another region, it takes what there is: the lease home
    /// that asks around would else make others ask the lease home.
    fn fetch_for(&mut self, mark: Mark, ask: Ask, peer: Peer, chunk: Chunk, class: Class, out: &mut Outbox) {
        let slice = self.content.slice(chunk);
        let duty = match self.peers.nearness(peer) {
            Nearness::Cell => {
                self.rank_of(self.peers.me(), slice).is_some_and(|mine| !self.outranks(peer, slice, mine))
            }
            Nearness::Region => self.leases(slice),
            Nearness::Far => false,
        };
        if !duty {
            self.note_copy(peer, chunk, class);
        }
        if !duty || self.upstream.is_hopeless(chunk, self.now) {
            return self.answer_missing(ask, peer, chunk, None, out);
        }
        if self.is_crowded() {
            return self.redirect(ask, peer, chunk, out);
        }
        let want = match mark {
            Mark::Pending(class) => self.pending.remove(chunk, class),
            _ => None,
        };
        let Some(mut fetch) = self.new_fetch(chunk, want) else {
            return self.redirect(ask, peer, chunk, out);
        };
        fetch.cross = self.peers.nearness(peer) == Nearness::Region;
        self.add_waiter(&mut fetch, ask, peer, class, false, out);
        self.search(fetch, out);
    }

    /// The chunk is being fetched: the asker may wait for it, if nobody can end up waiting for himself.
    fn join(&mut self, slot: u16, ask: Ask, peer: Peer, class: Class, out: &mut Outbox) {
        let Some(mut fetch) = self.fetches.take(slot) else { return };
        let (chunk, slice) = (fetch.chunk, fetch.slice);
        let mine = self.rank_of(self.peers.me(), slice);
        let near = self.peers.nearness(peer);
        let from_strata = matches!(fetch.at, At::Strata | At::Line);
        let elsewhere = fetch.asked().find(|source| self.peers.nearness(*source) == Nearness::Region);
        // Asks that cross: who ranks behind answers this node at once, so it may wait; the other way round not.
        let ranks_behind =
            mine.is_some_and(|mine| self.rank_of(peer, slice).is_none_or(|theirs| mine < theirs));
        let may_wait = match near {
            Nearness::Cell => {
                (!fetch.is_asked(peer) || ranks_behind)
                    && (from_strata || mine.is_none_or(|mine| !self.outranks(peer, slice, mine)))
            }
            // Across cells, waits lead into the lease cell and on to the strata, never out of it: so no ring of
            // cells can wait for itself.
            Nearness::Region => from_strata || fetch.cross || self.leases(slice),
            Nearness::Far => from_strata,
        };
        if !may_wait {
            self.fetches.put(fetch);
            return self.answer_missing(ask, peer, chunk, elsewhere, out);
        }
        // The lease home itself may ask a third cell that announced the segment, or this very asker. Then nobody stays
        // here, but comes back: whoever is sent away takes a second copy from the strata.
        let short = match near {
            Nearness::Cell => mine.is_none(),
            Nearness::Region => elsewhere.is_some(),
            Nearness::Far => false,
        };
        // What is fetched for others as well stays when nobody here wants it any more.
        let full = fetch.waiters().is_empty() && !fetch.copy && self.is_crowded();
        let most = if short { self.settings.waiters_max } else { self.settings.home_waiters_max };
        if full || fetch.waiters().len() >= usize::from(most) {
            let mut holders: Holders = self.known_holders(chunk, peer);
            let room = holders.inline_size().saturating_sub(holders.len());
            if !short {
                // The first waiters hold it soon, and none of them is waited for by this node.
                // Some of those who are served first, in turn: each can serve as many again.
                let soon = fetch.waiters().len().div_ceil(BRANCHES);
                let (before, from) = fetch.waiters().split_at(self.rng.below(soon));
                let first = from.iter().chain(before).map(|waiter| waiter.peer);
                let near =
                    first.filter(|other| *other != peer && self.peers.nearness(*other) == Nearness::Cell);
                holders.extend(near.take(room));
            }
            self.fetches.put(fetch);
            return self.answer(ask, Answer::Busy { holders }, out);
        }
        fetch.cross |= near == Nearness::Region;
        self.add_waiter(&mut fetch, ask, peer, class, short, out);
        self.fetches.put(fetch);
    }

    /// Whether so much is fetched that nothing more is begun for others.
    pub(super) fn is_crowded(&self) -> bool {
        self.fetches.len() >= (self.settings.relays_max + self.settings.window_chunks) as usize
    }

    /// Whether the lease for `slice` lies in this node's cell.
    pub(super) fn leases(&self, slice: super::Slice) -> bool {
        self.peers.lease_home(slice, 0).is_none_or(|home| self.peers.nearness(home) == Nearness::Cell)
    }

    /// Says that `chunk` is not here and who may have it. A node that holds other chunks of the slice names itself:
    /// a new home learns from it that the slice as a whole is not new.
    fn answer_missing(
        &mut self,
        ask: Ask,
        peer: Peer,
        chunk: Chunk,
        elsewhere: Option<Peer>,
        out: &mut Outbox,
    ) {
        let mut holders = self.known_holders(chunk, peer);
        holders.extend(elsewhere.filter(|source| *source != peer));
        let slice = self.content.slice(chunk);
        if self.held.get(slice) > 0 {
            holders.push(self.peers.me());
        }
        self.answer(ask, Answer::Missing { holders }, out);
    }

    fn add_waiter(
        &mut self,
        fetch: &mut Fetch,
        ask: Ask,
        peer: Peer,
        class: Class,
        short: bool,
        out: &mut Outbox,
    ) {
        let most = Duration::from_millis(u64::from(self.settings.keep_alive_ms));
        let span = if short {
            let least = Duration::from_millis(u64::from(self.settings.waiter_ms)).min(most);
            self.pace.transfer(fetch.len_bytes, SHORT_WAIT_TRANSFERS, [least, most])
        } else {
            most
        };
        let due = self.now + span;
        fetch.rare.waiters.push(Waiter { ask, peer, class, due, short });
        self.timers.arm(Timer::Waiters, due);
        self.answer(ask, Answer::Wait, out);
    }

    /// [`Timer::Waiters`]: those who wait here hear that they still do; short waits end.
    pub(super) fn waiters_due(&mut self, out: &mut Outbox) {
        let now = self.now;
        let again = now + Duration::from_millis(u64::from(self.settings.keep_alive_ms));
        let (mut tell, mut redirect) = (Vec::new(), Vec::new());
        let next = self.fetches.waiters_due(now, |fetch| {
            let chunk = fetch.chunk;
            for waiter in fetch.rare.waiters.iter_mut().filter(|waiter| waiter.due <= now) {
                if waiter.short {
                    redirect.push((waiter.ask, waiter.peer, chunk));
                } else {
                    waiter.due = again;
                    tell.push(waiter.ask);
                }
            }
            fetch.keep_waiters(|waiter| waiter.due > now);
        });
        for ask in tell {
            self.answer(ask, Answer::Wait, out);
        }
        for (ask, peer, chunk) in redirect {
            self.redirect(ask, peer, chunk, out);
            if let Mark::Fetching(slot) = self.marks.get(chunk)
                && let Some(fetch) = self.fetches.take(slot)
            {
                self.put_or_abandon(fetch, out);
            }
        }
        self.timers.arm(Timer::Waiters, next);
    }

    /// [`Timer::Queue`]: who waits for a slot hears so, and is redirected when it takes too long.
    pub(super) fn queue_due(&mut self, out: &mut Outbox) {
        let now = self.now;
        let longest = Duration::from_millis(u64::from(self.settings.upload_queue_ms));
        let again = now + Duration::from_millis(u64::from(self.settings.keep_alive_ms));
        let mut queue = std::mem::take(&mut self.uploads.queue);
        let (mut tell, mut redirect, mut next) = (Vec::new(), Vec::new(), Time::NEVER);
        queue.retain_mut(|queued| {
            if now.since(queued.since) >= longest {
                redirect.push(*queued);
                return false;
            }
            if queued.due <= now {
                queued.due = again;
                tell.push(queued.ask);
            }
            next = next.min(queued.due).min(queued.since + longest);
            true
        });
        self.uploads.queue = queue;
        for ask in tell {
            self.answer(ask, Answer::Wait, out);
        }
        for queued in redirect {
            self.turn_away(queued, out);
        }
        self.timers.arm(Timer::Queue, next);
    }
}
