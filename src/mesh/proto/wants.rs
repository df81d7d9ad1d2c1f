//! What is wanted on this node: begun in order of urgency, delivered or given up by its deadline.

use super::fetch::{At, Fetch, Want};
use super::marks::Mark;
use super::pending::FillRange;
use super::timer::Timer;
use super::{Chunk, Content, GiveUp, Nearness, Node, Outbox, Output, Peers, Source};
use crate::model::{Class, Rng, Time};
use std::time::Duration;

const CLASSES: [Class; 3] = [Class::Read, Class::Prefetch, Class::Fill];

/// Wants of each class, and their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    bytes: [u64; 3],
    chunks: [u32; 3],
}

impl Tally {
    /// Those of `class` and of more urgent ones.
    fn upto(&self, class: Class) -> (u32, u64) {
        let upto = class as usize + 1;
        (self.chunks[..upto].iter().sum(), self.bytes[..upto].iter().sum())
    }

    fn add(&mut self, class: Class, len_bytes: u32) {
        self.bytes[class as usize] += u64::from(len_bytes);
        self.chunks[class as usize] += 1;
    }

    fn remove(&mut self, class: Class, len_bytes: u32) {
        self.bytes[class as usize] -= u64::from(len_bytes);
        self.chunks[class as usize] -= 1;
    }

    fn chunks(&self) -> u32 {
        self.chunks.iter().sum()
    }
}

/// What is under way for wants of each class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    moves: Tally,
    /// What stands still, and lets others begin meanwhile ([`super::aside`]).
    aside: Tally,
}

impl Window {
    /// What moves, and what stands aside, of `class` and of more urgent ones: less urgent ones do not stand in its way.
    fn upto(&self, class: Class) -> [(u32, u64); 2] {
        [self.moves.upto(class), self.aside.upto(class)]
    }

    fn of(&mut self, aside: bool) -> &mut Tally {
        if aside { &mut self.aside } else { &mut self.moves }
    }

    fn chunks(&self) -> usize {
        self.moves.chunks() as usize + self.aside()
    }

    /// Wants that stand aside.
    pub(super) fn aside(&self) -> usize {
        self.aside.chunks() as usize
    }

    /// How much moves.
    pub(super) fn moving_bytes(&self) -> u64 {
        self.moves.upto(Class::Fill).1
    }

    /// A want that moved stands aside.
    pub(super) fn step_aside(&mut self, class: Class, len_bytes: u32) {
        self.moves.remove(class, len_bytes);
        self.aside.add(class, len_bytes);
    }
}

/// What an audit looks at.
impl Window {
    /// Whether it counts exactly these wants, given with whether they stand aside and their bytes.
    pub(super) fn adds_up(&self, wants: impl Iterator<Item = (Class, bool, u32)>) -> bool {
        let mut counted = Self::default();
        for (class, aside, len_bytes) in wants {
            counted.of(aside).add(class, len_bytes);
        }
        counted == *self
    }
}

/// How long fills gather at most before the first of them begins (guess: nobody waits for them).
pub(super) const GATHER: Duration = Duration::from_millis(5);
/// They begin before when no more has come for so long (guess: a tree is walked faster).
const QUIET: Duration = Duration::from_millis(1);

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    pub(super) fn wanted(&mut self, chunk: Chunk, class: Class, deadline: Time, out: &mut Outbox) {
        if chunk.0 >= self.settings.numbers_max {
            return out.push(Output::GiveUp { chunk, why: GiveUp::TooMany });
        }
        match self.marks.get(chunk) {
            Mark::Held => return out.push(Output::Deliver { chunk }),
            Mark::Fetching(slot) => {
                self.join_want(slot, class, deadline);
                // It may stand in line for the strata as something less urgent.
                return self.fill_upstream(out);
            }
            Mark::Pending(old) => {
                let Some(mut want) = self.pending.remove(chunk, old) else { return };
                want.class = want.class.min(class);
                want.deadline = want.deadline.max(deadline);
                self.push_pending(chunk, want);
            }
            Mark::Nothing if deadline <= self.now => {
                return out.push(Output::GiveUp { chunk, why: GiveUp::Deadline });
            }
            Mark::Nothing
                if self.pending.len() + self.window.chunks() >= self.settings.wants_max as usize =>
            {
                return out.push(Output::GiveUp { chunk, why: GiveUp::TooMany });
            }
            Mark::Nothing => {
                self.push_pending(chunk, Want { class, deadline });
                if class == Class::Fill {
                    // Whoever wants a tree says so chunk by chunk: what begins at once would be the first few for everybody.
                    if self.pending.gather(self.now) {
                        self.timers.arm(Timer::Gathered, self.now + QUIET);
                    }
                    return;
                }
                self.look_up_ahead(chunk, out);
            }
        }
        self.begin_wants(out);
    }

    fn push_pending(&mut self, chunk: Chunk, want: Want) {
        self.marks.set(chunk, Mark::Pending(want.class));
        self.timers.arm(Timer::Pending, want.deadline);
        self.pending.push(chunk, want);
    }

    fn join_want(&mut self, slot: u16, class: Class, deadline: Time) {
        let Some(mut fetch) = self.fetches.take(slot) else { return };
        let want = match self.end_want(&mut fetch) {
            Some(old) => Want { class: old.class.min(class), deadline: old.deadline.max(deadline) },
            None => Want { class, deadline },
        };
        self.set_want(&mut fetch, want);
        self.fetches.put(fetch);
    }

    /// Counts a want in the window. [`Self::end_want`] takes it out again.
    fn set_want(&mut self, fetch: &mut Fetch, want: Want) {
        fetch.aside = false;
        self.window.of(false).add(want.class, fetch.len_bytes);
        self.timers.arm(Timer::Fetch, want.deadline);
        self.timers.arm(Timer::Aside, self.now + self.aside_after());
        fetch.want = Some(want);
    }

    pub(super) fn end_want(&mut self, fetch: &mut Fetch) -> Option<Want> {
        let want = fetch.want.take()?;
        self.window.of(std::mem::take(&mut fetch.aside)).remove(want.class, fetch.len_bytes);
        Some(want)
    }

    /// [`Timer::Gathered`]: fills begin, unless more of them come.
    pub(super) fn gathered(&mut self, out: &mut Outbox) {
        match self.pending.gathered(self.now, QUIET, GATHER) {
            Some(due) => self.timers.arm(Timer::Gathered, due),
            None => self.begin_wants(out),
        }
    }

    /// Begins as many pending wants as there is room for.
    pub(super) fn begin_wants(&mut self, out: &mut Outbox) {
        self.look_ahead_of_fills(out);
        for class in CLASSES {
            while self.pending.has(class)
                && self.pace.may_begin(class, self.window.upto(class), &self.settings)
            {
                let content = &self.content;
                let len_of = |chunk| content.len_bytes(chunk);
                let first = self.peers.members().saturating_mul(self.settings.fill_first as usize);
                let first = first.min(self.settings.fill_first_max as usize);
                let own = Duration::from_millis(u64::from(self.settings.fill_own_ms));
                let range = FillRange {
                    chunks: first,
                    bytes: self.settings.fill_window_bytes,
                    own_bytes: self.pace.down.within(own).unwrap_or(0),
                };
                let ahead = (self.settings.prefetch_window as usize, self.settings.prefetch_oldest_percent);
                let taken = self.pending.take(class, range, ahead, len_of, &mut self.rng);
                let Some((chunk, want)) = taken else { break };
                if want.deadline <= self.now {
                    // Its timer has not fired yet: a loop that is late begins nothing in vain.
                    self.marks.set(chunk, Mark::Nothing);
                    out.push(Output::GiveUp { chunk, why: GiveUp::Deadline });
                    continue;
                }
                if self.begin(chunk, Some(want), out).is_none() {
                    self.push_pending(chunk, want);
                    return;
                }
            }
        }
    }

    /// Begins to fetch `chunk`, without choosing a source yet. `None` when there is no slot.
    pub(super) fn new_fetch(&mut self, chunk: Chunk, want: Option<Want>) -> Option<Box<Fetch>> {
        let (slice, len_bytes) = (self.content.slice(chunk), self.content.len_bytes(chunk));
        let fetch = Fetch::new(chunk, slice, len_bytes, self.now);
        let slot = self.fetches.insert(fetch)?;
        let mut fetch = self.fetches.take(slot)?;
        self.marks.set(chunk, Mark::Fetching(slot));
        self.pace.down.begin(self.now, fetch.len_bytes);
        if let Some(want) = want {
            self.set_want(&mut fetch, want);
        }
        Some(fetch)
    }

    fn begin(&mut self, chunk: Chunk, want: Option<Want>, out: &mut Outbox) -> Option<()> {
        let fetch = self.new_fetch(chunk, want)?;
        self.search(fetch, out);
        Some(())
    }

    pub(super) fn unwanted(&mut self, chunk: Chunk, out: &mut Outbox) {
        match self.marks.get(chunk) {
            Mark::Pending(class) => {
                self.pending.remove(chunk, class);
                self.marks.set(chunk, Mark::Nothing);
            }
            Mark::Fetching(slot) => {
                let Some(mut fetch) = self.fetches.take(slot) else { return };
                self.end_want(&mut fetch);
                self.put_or_abandon(fetch, out);
                self.begin_wants(out);
            }
            Mark::Held | Mark::Nothing => {}
        }
    }

    /// Brings a fetch back, or ends it when nobody waits for it any more.
    pub(super) fn put_or_abandon(&mut self, fetch: Box<Fetch>, out: &mut Outbox) {
        if fetch.is_orphan() {
            self.stop_sources(&fetch, None, out);
            self.release(&fetch, Mark::Nothing, out);
        } else {
            self.fetches.put(fetch);
        }
    }

    /// Withdraws what the fetch has ordered, but from `but`.
    fn stop_sources(&mut self, fetch: &Fetch, but: Option<Source>, out: &mut Outbox) {
        for peer in fetch.asked().filter(|peer| Some(Source::Peer(*peer)) != but) {
            out.push(Output::Cancel { peer, chunk: fetch.chunk });
        }
        if fetch.at == At::Strata && but != Some(Source::Strata) {
            out.push(Output::CancelUpstream { chunk: fetch.chunk });
        }
    }

    /// Ends a fetch that was taken out: its slot and its share of the strata are free again.
    pub(super) fn release(&mut self, fetch: &Fetch, mark: Mark, out: &mut Outbox) {
        if fetch.copy {
            self.copy_ended();
        }
        self.marks.set(fetch.chunk, mark);
        self.pace.down.end(self.now, fetch.len_bytes, mark == Mark::Held);
        self.fetches.release(fetch.slot);
        self.leave_upstream(fetch, out);
    }

    pub(super) fn arrived(&mut self, chunk: Chunk, from: Source, out: &mut Outbox) {
        if let Source::Peer(peer) = from
            && self.end_copy_ask(peer, chunk)
        {
            // A next rank that was to copy it has it.
            self.note_holder(chunk, peer);
        }
        if let Source::Peer(peer) = from {
            let fetches = &self.fetches;
            self.doubts.note_delivered(peer, self.now, || fetches.oldest_ask());
        }
        let Mark::Fetching(slot) = self.marks.get(chunk) else { return self.stored(chunk, out) };
        let Some(fetch) = self.fetches.take(slot) else { return };
        if let Source::Peer(peer) = from {
            self.note_true_claim(peer);
            if let Some(since) = fetch.asked_since(peer) {
                self.speeds.note(peer, fetch.len_bytes, self.now.since(since), self.settings.speeds_max);
            }
            self.counts.hedges_won +=
                u64::from(fetch.hedge.as_deref().is_some_and(|hedge| hedge.peer == peer));
            self.counts.origin_spared += u64::from(fetch.delayed && fetch.upstream_tries == 0);
        }
        self.finish(fetch, Some(from), out);
    }

    /// The chunk of a fetch is there, from a source or from nowhere: what else was ordered is withdrawn, and who waits for
    /// it gets it.
    fn finish(&mut self, mut fetch: Box<Fetch>, from: Option<Source>, out: &mut Outbox) {
        let chunk = fetch.chunk;
        if from.is_some() && self.is_from_outside(fetch.at) {
            self.offer_copies(chunk);
        }
        self.stop_sources(&fetch, from, out);
        self.release(&fetch, Mark::Held, out);
        self.note_stored(chunk);
        if self.end_want(&mut fetch).is_some() {
            out.push(Output::Deliver { chunk });
        }
        let mut waiters = std::mem::take(&mut fetch.waiters);
        drop(fetch);
        // Peers of other cells before those of the own: they are homes there, for whom a cell waits.
        waiters.sort_by_key(|waiter| (waiter.class, self.peers.nearness(waiter.peer) == Nearness::Cell));
        for waiter in waiters {
            self.offer(waiter.ask, waiter.peer, chunk, waiter.class, out);
        }
        self.begin_wants(out);
    }

    pub(super) fn stored(&mut self, chunk: Chunk, out: &mut Outbox) {
        if chunk.0 >= self.settings.numbers_max {
            return;
        }
        match self.marks.get(chunk) {
            Mark::Held => {}
            Mark::Nothing => {
                self.marks.set(chunk, Mark::Held);
                self.note_stored(chunk);
            }
            Mark::Pending(class) => {
                self.pending.remove(chunk, class);
                self.marks.set(chunk, Mark::Held);
                self.note_stored(chunk);
                out.push(Output::Deliver { chunk });
            }
            Mark::Fetching(slot) => {
                if let Some(fetch) = self.fetches.take(slot) {
                    self.finish(fetch, None, out);
                }
            }
        }
    }

    fn note_stored(&mut self, chunk: Chunk) {
        let slice = self.content.slice(chunk);
        let index = slice.0 as usize;
        if index >= self.settings.numbers_max as usize {
            return;
        }
        let len = self.held.len();
        if len <= index {
            // An eighth more rather than twice as many: there are many nodes in a simulation.
            self.held.reserve_exact((index + 1 - len).max(len / 8));
            self.held.resize(index + 1, 0);
        }
        self.held[index] = self.held[index].saturating_add(1);
        self.note_possession(chunk, slice);
        if self.peers.home(slice, 0) == Some(self.peers.me()) {
            self.plan_announcement(self.content.segment(slice));
        }
    }

    pub(super) fn evicted(&mut self, chunk: Chunk, out: &mut Outbox) {
        if self.marks.get(chunk) != Mark::Held {
            return;
        }
        self.marks.set(chunk, Mark::Nothing);
        let slice = self.content.slice(chunk);
        self.unnote_possession(chunk, slice);
        self.note_full();
        self.drop_copy_asks(|_, other, _| other == chunk, out);
        // A saturated count is not known any more; it stays, and the slice never counts as empty.
        if let Some(held) = self.held.get_mut(slice.0 as usize).filter(|held| **held < u16::MAX) {
            *held = held.saturating_sub(1);
        }
    }

    /// [`Timer::Pending`]: gives up what nobody waits for any more.
    pub(super) fn pending_due(&mut self, out: &mut Outbox) {
        let (gone, next) = self.pending.expire(self.now);
        for chunk in gone {
            self.marks.set(chunk, Mark::Nothing);
            out.push(Output::GiveUp { chunk, why: GiveUp::Deadline });
        }
        self.timers.arm(Timer::Pending, next);
    }
}
