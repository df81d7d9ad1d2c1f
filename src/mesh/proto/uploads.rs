//! Asks of others: served while there are slots, kept waiting shortly, else redirected.

use super::fetch::{At, Fetch, Waiter};
use super::marks::Mark;
use super::timer::Timer;
use super::{Answer, Ask, Chunk, Content, Holders, Nearness, Node, Outbox, Output, Peer, Peers};
use crate::model::{Class, Rng, Time};
use std::collections::VecDeque;
use std::time::Duration;

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
    peer: Peer,
    class: Class,
    /// Whether it lives in this node's cell. A peer of another cell is a home there, for whom a cell waits.
    near: bool,
    since: Time,
    /// When it hears `Wait`.
    due: Time,
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
            Err(place) => self.0.insert(place, (ask, asked)),
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
    serving: u32,
    serving_bytes: u64,
    queued_bytes: u64,
}

impl Uploads {
    pub(super) fn asks_of(&self, peer: Peer) -> Vec<Ask> {
        self.asks.iter().filter(|(_, asked)| asked.peer == peer).map(|(ask, _)| ask).collect()
    }

    pub(super) fn is_serving(&self, ask: Ask) -> bool {
        self.asks.get(ask).is_some_and(|asked| asked.state == State::Serving)
    }

    /// Who is being served `chunk`.
    pub(super) fn served(&self, chunk: Chunk) -> impl Iterator<Item = Peer> {
        let serving = move |asked: &&Asked| asked.chunk == chunk && asked.state == State::Serving;
        self.asks.values().filter(serving).map(|asked| asked.peer)
    }

    fn load(&self) -> u8 {
        let load = (self.serving as usize).saturating_add(self.queue.len());
        u8::try_from(load).unwrap_or(u8::MAX)
    }

    /// The queued ask to serve next: the most urgent class, then those from other cells, then whose asker has the fewest uploads running, then
    /// the oldest.
    fn next(&mut self) -> Option<Queued> {
        let running = |peer: Peer| {
            let serving = |asked: &&Asked| asked.peer == peer && asked.state == State::Serving;
            self.asks.values().filter(serving).count()
        };
        let index = match self.queue.len() {
            0 => return None,
            1 => 0,
            _ => {
                let ranked = self
                    .queue
                    .iter()
                    .enumerate()
                    .map(|(index, queued)| (queued.class, queued.near, running(queued.peer), index));
                ranked.min()?.3
            }
        };
        self.queue.remove(index)
    }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    pub(super) fn answer(&mut self, ask: Ask, answer: Answer, out: &mut Outbox) {
        if answer != Answer::Wait {
            self.uploads.asks.remove(ask);
        }
        out.push(Output::Answer { ask, answer, load: self.uploads.load() });
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
        let len_bytes = self.content.len_bytes(chunk);
        self.uploads.asks.insert(ask, Asked { peer, chunk, len_bytes, state: State::Waiting });
        match self.marks.get(chunk) {
            Mark::Held => self.offer(ask, peer, chunk, class, out),
            Mark::Fetching(slot) => self.join(slot, ask, peer, class, out),
            mark @ (Mark::Nothing | Mark::Pending(_)) => self.fetch_for(mark, ask, peer, chunk, class, out),
        }
    }

    /// Serves a stored chunk, or lets the asker wait for a slot, or redirects it.
    pub(super) fn offer(&mut self, ask: Ask, peer: Peer, chunk: Chunk, class: Class, out: &mut Outbox) {
        let settings = &self.settings;
        let uploads = &mut self.uploads;
        let Some(asked) = uploads.asks.get_mut(ask) else { return };
        let near = self.peers.nearness(peer) == Nearness::Cell;
        let slots = uploads.serving_bytes < settings.upload_bytes && uploads.serving < settings.uploads_max;
        if slots && uploads.queue.is_empty() {
            return self.serve(ask, out);
        }
        let room = (uploads.queued_bytes < settings.upload_queue_bytes || !near)
            && uploads.queue.len() < settings.upload_queue_max as usize;
        if !room {
            return self.redirect(ask, peer, chunk, out);
        }
        asked.state = State::Queued;
        uploads.queued_bytes += u64::from(asked.len_bytes);
        let due = self.now + Duration::from_millis(SILENT_MS);
        uploads.queue.push_back(Queued { ask, peer, class, near, since: self.now, due });
        self.timers.arm(Timer::Queue, due);
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
        self.uploads.serving += 1;
        self.uploads.serving_bytes += u64::from(asked.len_bytes);
        let (chunk, peer) = (asked.chunk, asked.peer);
        self.note_holder(chunk, peer);
        out.push(Output::Serve { ask });
    }

    fn serve_queued(&mut self, out: &mut Outbox) {
        while self.uploads.serving_bytes < self.settings.upload_bytes
            && self.uploads.serving < self.settings.uploads_max
        {
            let Some(queued) = self.uploads.next() else { return };
            let Some(asked) = self.uploads.asks.get(queued.ask) else { continue };
            self.uploads.queued_bytes -= u64::from(asked.len_bytes);
            self.serve(queued.ask, out);
        }
    }

    /// An upload ended, or the asker went away.
    pub(super) fn ask_ended(&mut self, ask: Ask, ok: bool, out: &mut Outbox) {
        let Some(asked) = self.uploads.asks.remove(ask) else { return };
        match asked.state {
            State::Serving => {
                self.uploads.serving -= 1;
                self.uploads.serving_bytes -= u64::from(asked.len_bytes);
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
        self.serve_queued(out);
    }

    fn drop_waiter(&mut self, ask: Ask, chunk: Chunk, out: &mut Outbox) {
        let Mark::Fetching(slot) = self.marks.get(chunk) else { return };
        let Some(mut fetch) = self.fetches.take(slot) else { return };
        fetch.waiters.retain(|waiter| waiter.ask != ask);
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
    /// another cell of the region asks because it believes that the lease is here. A peer of another region
    /// found an announcement: it takes what there is.
    fn fetch_for(&mut self, mark: Mark, ask: Ask, peer: Peer, chunk: Chunk, class: Class, out: &mut Outbox) {
        let slice = self.content.slice(chunk);
        let duty = match self.peers.nearness(peer) {
            Nearness::Cell => {
                self.rank_of(self.peers.me(), slice).is_some_and(|mine| !self.outranks(peer, slice, mine))
            }
            Nearness::Region => true,
            Nearness::Far => false,
        };
        if !duty || self.upstream.is_hopeless(chunk, self.now) {
            return self.answer_missing(ask, peer, chunk, None, out);
        }
        if self.fetches.len() >= (self.settings.relays_max + self.settings.window_chunks) as usize {
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
        let may_wait = (!fetch.is_asked(peer) || (near == Nearness::Cell && ranks_behind))
            && match near {
                Nearness::Cell => from_strata || mine.is_none_or(|mine| !self.outranks(peer, slice, mine)),
                // Across cells, waits lead into the lease cell and on to the strata, never out of it: so no ring of
                // cells can wait for itself.
                Nearness::Region => {
                    from_strata || (elsewhere.is_none() && (fetch.cross || self.leases(slice)))
                }
                Nearness::Far => from_strata,
            };
        if !may_wait {
            self.fetches.put(fetch);
            return self.answer_missing(ask, peer, chunk, elsewhere, out);
        }
        let short = mine.is_none() && near == Nearness::Cell;
        let most = if short { self.settings.waiters_max } else { self.settings.home_waiters_max };
        if fetch.waiters.len() >= usize::from(most) {
            let mut holders: Holders = self.known_holders(chunk, peer);
            let room = holders.inline_size().saturating_sub(holders.len());
            if !short {
                // The first waiters hold it soon, and none of them is waited for by this node.
                let first = fetch.waiters.iter().map(|waiter| waiter.peer);
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

    /// Whether the lease for `slice` lies in this node's cell.
    fn leases(&self, slice: super::Slice) -> bool {
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
        if self.held.get(slice.0 as usize).is_some_and(|held| *held > 0) {
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
        let span = if short { self.settings.waiter_ms } else { self.settings.keep_alive_ms };
        let due = self.now + Duration::from_millis(u64::from(span));
        fetch.waiters.push(Waiter { ask, peer, class, due, short });
        self.timers.arm(Timer::Waiters, due);
        self.answer(ask, Answer::Wait, out);
    }

    /// [`Timer::Waiters`]: those who wait here hear that they still do; short waits end.
    pub(super) fn waiters_due(&mut self, out: &mut Outbox) {
        let now = self.now;
        let again = now + Duration::from_millis(u64::from(self.settings.keep_alive_ms));
        let (mut tell, mut redirect) = (Vec::new(), Vec::new());
        let mut next = Time::NEVER;
        for fetch in self.fetches.iter_mut() {
            let chunk = fetch.chunk;
            for waiter in fetch.waiters.iter_mut().filter(|waiter| waiter.due <= now) {
                if waiter.short {
                    redirect.push((waiter.ask, waiter.peer, chunk));
                } else {
                    waiter.due = again;
                    tell.push(waiter.ask);
                }
            }
            fetch.waiters.retain(|waiter| waiter.due > now);
            next = fetch.waiters.iter().map(|waiter| waiter.due).fold(next, Time::min);
        }
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
            let Some(asked) = self.uploads.asks.get(queued.ask).copied() else { continue };
            self.uploads.queued_bytes -= u64::from(asked.len_bytes);
            self.redirect(queued.ask, queued.peer, asked.chunk, out);
        }
        self.timers.arm(Timer::Queue, next);
    }
}
