//! The search for a source of one chunk: whom to ask next, and what to make of the answer.
//!
//! A fetch goes through the stages in their order and through the ranks of each; nothing is tried twice except an
//! authority that said `Busy`, after a pause and a bounded number of times. So every fetch ends.

use super::fetch::{At, Fetch, Stage};
use super::marks::Mark;
use super::timer::Timer;
use super::{Answer, Chunk, Content, Failure, GiveUp, Holders, Nearness, Node, Outbox, Output, Peer, Peers};
use crate::model::{Rng, Time};
use std::time::Duration;

/// Longest first pause before a busy peer is asked again (guess: a chunk of 64 KiB at 10 Mbit/s).
const PAUSE_MOST: Duration = Duration::from_millis(50);
/// Longest first pause before all are asked again of whom one was busy and nobody else had the chunk (guess).
const BUSY_AGAIN_US: u32 = 500_000;
/// Doublings of the pause before a busy peer is asked again.
const BACKOFF_DOUBLINGS_MAX: u8 = 2;

fn millis(span: u32) -> Duration {
    Duration::from_millis(u64::from(span))
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    /// Begins the search for a fetch that was just made.
    pub(super) fn search(&mut self, mut fetch: Box<Fetch>, out: &mut Outbox) {
        let slice = fetch.slice;
        // What is known here of holders saves the way to the home; as home, it is all there is.
        if let Some(home) = self.homes.get_mut(slice) {
            let part = self.content.part(fetch.chunk);
            fetch.add_candidates(home.name(part, self.now, &self.settings, |_| true));
        } else {
            fetch.add_candidates(self.hints.get(slice, self.now).iter().copied().take(2));
        }
        self.advance(fetch, out);
    }

    /// Chooses the next source and orders from it, or ends the fetch. Takes the fetch and puts it back.
    pub(super) fn advance(&mut self, mut fetch: Box<Fetch>, out: &mut Outbox) {
        if fetch.is_orphan() {
            return self.put_or_abandon(fetch, out);
        }
        if fetch.promote() {
            match fetch.at {
                // Both were silent for too long, as all are after this node slept.
                At::Peer(peer) if fetch.due <= self.now => {
                    out.push(Output::Cancel { peer, chunk: fetch.chunk });
                    fetch.mark_bad(peer);
                }
                _ => return self.watch(fetch),
            }
        }
        fetch.at = At::Choosing;
        fetch.due = Time::NEVER;
        fetch.hedge_at = Time::NEVER;
        if let Some(peer) = self.choose(&mut fetch) {
            fetch.named = true;
            return self.ask(fetch, peer, out);
        }
        if fetch.again().is_some() {
            let least = Duration::from_micros(u64::from(self.settings.backoff_us));
            let first = self.pace.transfer(fetch.len_bytes, 1, [least, PAUSE_MOST.max(least)]);
            return self.pause(fetch, u32::try_from(first.as_micros()).unwrap_or(u32::MAX));
        }
        loop {
            let stage = fetch.stage;
            if stage != Stage::Homes && fetch.is_copy_only() {
                return self.release(&fetch, Mark::Nothing, out);
            }
            // A home is gone, or this node is one and has to find a source itself.
            if (stage != Stage::Homes || !fetch.rare.bad.is_empty()) && !fetch.claimed {
                self.add_claimants(&mut fetch);
                if let Some(peer) = self.choose(&mut fetch) {
                    fetch.named = true;
                    return self.ask(fetch, peer, out);
                }
            }
            match self.next_authority(&mut fetch) {
                Some(peer) => {
                    fetch.named = false;
                    match stage {
                        Stage::Homes if fetch.rank > 1 => self.counts.homes_failed_over += 1,
                        Stage::Peek => self.counts.peeks += 1,
                        Stage::PeekCells => self.counts.peeks_elsewhere += 1,
                        _ => {}
                    }
                    return self.ask(fetch, peer, out);
                }
                None if stage == Stage::Upstream => return self.go_upstream(fetch, out),
                None if stage == Stage::LastResort => {
                    if !fetch.looked_up {
                        return self.look_up(fetch, out);
                    }
                    return self.give_up(fetch, out);
                }
                None => {}
            }
        }
    }

    /// The next peer that the current stage would ask, or `None` when the stage is over; unless it is the last
    /// or `Upstream`, the fetch then stands at the next one.
    pub(super) fn next_authority(&mut self, fetch: &mut Fetch) -> Option<Peer> {
        let me = self.peers.me();
        let next_rank = |fetch: &mut Fetch| {
            fetch.rank += 1;
            usize::from(fetch.rank - 1)
        };
        match fetch.stage {
            Stage::Homes => {
                while fetch.rank < self.settings.home_ranks {
                    let home = self.peers.home(fetch.slice, next_rank(fetch));
                    match home {
                        Some(peer) if peer == me => {
                            // A slice has many chunks, and the next ranks may have any of them. Only a peek that
                            // found nothing of the slice ends the peeking.
                            let checked = self.homes.get(fetch.slice).is_some_and(|home| home.checked);
                            if !checked {
                                (fetch.stage, fetch.peeks) = (Stage::Peek, self.settings.peek_ranks);
                                return None;
                            }
                            break;
                        }
                        Some(peer) if self.usable(fetch, peer) => return Some(peer),
                        Some(_) => {}
                        None => break,
                    }
                }
                (fetch.stage, fetch.rank) = (Stage::Lease, 0);
            }
            Stage::Peek => {
                while fetch.peeks > 0 {
                    fetch.peeks -= 1;
                    match self.peers.home(fetch.slice, next_rank(fetch)) {
                        Some(peer) if self.usable(fetch, peer) => return Some(peer),
                        Some(_) => {}
                        None => break,
                    }
                }
                let cells = if self.leases(fetch.slice) { self.settings.peek_cells } else { 0 };
                (fetch.stage, fetch.peeks, fetch.rank) = (Stage::PeekCells, cells, 0);
            }
            Stage::PeekCells => {
                while fetch.peeks > 0 {
                    fetch.peeks -= 1;
                    match self.peers.home_elsewhere(fetch.slice, next_rank(fetch)) {
                        Some(peer) if self.usable(fetch, peer) => return Some(peer),
                        Some(_) => {}
                        None => break,
                    }
                }
                if !fetch.partial {
                    self.homes.entry(fetch.slice, self.settings.slices_max).checked = true;
                }
                (fetch.stage, fetch.rank) = (Stage::Lease, 0);
            }
            Stage::Lease => {
                while fetch.rank < self.settings.lease_ranks {
                    match self.peers.lease_home(fetch.slice, next_rank(fetch)) {
                        Some(peer) if peer == me => break,
                        Some(peer) if fetch.cross && self.peers.nearness(peer) != Nearness::Cell => break,
                        Some(peer) if self.usable(fetch, peer) => return Some(peer),
                        Some(_) => {}
                        None => break,
                    }
                }
                (fetch.stage, fetch.rank) = (Stage::Upstream, 0);
            }
            Stage::Upstream => {}
            Stage::LastResort => {
                while fetch.looked_up && fetch.rank < self.settings.sweep_ranks {
                    match self.peers.home(fetch.slice, next_rank(fetch)) {
                        Some(peer) if self.usable(fetch, peer) => return Some(peer),
                        Some(_) => {}
                        None => break,
                    }
                }
            }
        }
        None
    }

    /// One of the named holders: the least busy of a few random ones, as far as their load is known, and of those that are
    /// as busy the nearest.
    pub(super) fn choose(&mut self, fetch: &mut Fetch) -> Option<Peer> {
        if fetch.tries >= self.settings.tries_max {
            fetch.candidates.clear();
        }
        let mut candidates = std::mem::take(&mut fetch.candidates);
        candidates.retain(|peer| self.usable(fetch, peer) && !fetch.tried.contains(&peer));
        let mut best: Option<usize> = None;
        for _ in 0..self.settings.choices.max(1) {
            let index = self.rng.below(candidates.len());
            let cost =
                |index: usize| (self.loads.get(candidates[index]), self.peers.nearness(candidates[index]));
            if index < candidates.len() && best.is_none_or(|best| cost(index) < cost(best)) {
                best = Some(index);
            }
        }
        let chosen = best.map(|index| candidates.swap_remove(index));
        fetch.candidates = candidates;
        fetch.tries += u8::from(chosen.is_some());
        chosen
    }

    fn ask(&mut self, mut fetch: Box<Fetch>, peer: Peer, out: &mut Outbox) {
        fetch.at = At::Peer(peer);
        fetch.since = self.now;
        fetch.waits = false;
        fetch.due = self.patience(fetch.len_bytes);
        fetch.peeked = matches!(fetch.stage, Stage::Peek | Stage::PeekCells) && !fetch.named;
        fetch.behind = self.behind(&fetch, fetch.named);
        if fetch.peeked {
            // A courtesy that has another way out.
            fetch.due = fetch.due.min(self.now + self.peek_max());
        }
        fetch.tried.push(peer);
        self.doubts.note_asked(peer, self.now, fetch.due.since(self.now) + millis(self.settings.ask_ms));
        self.speeds.earn(&self.settings);
        out.push(Output::Ask { peer, chunk: fetch.chunk, class: fetch.class() });
        self.watch(fetch);
    }

    /// How long a peer may go without progress: the core does not see bytes, so their length counts; and so does what else
    /// is under way to this node and shares its link.
    pub(super) fn patience(&self, len_bytes: u32) -> Time {
        let slowest = u64::from(self.settings.slowest_bytes_per_s.max(1));
        let alone = Duration::from_millis(u64::from(len_bytes) * 1_000 / slowest);
        let longest = 2 * millis(self.settings.ask_ms);
        self.now + millis(self.settings.ask_ms) + alone.max(self.pace.down.takes(slowest).min(longest))
    }

    /// How long a next rank may be silent, busy, or say `Wait` that is peeked at: others wait here meanwhile, and less patiently
    /// than that twice. Not less where it usually answers sooner: whoever uploads much at once answers late, and has the
    /// chunk (seen: of 500 MiB that a neighbour held the strata were asked for 3 %).
    fn peek_max(&self) -> Duration {
        millis(self.settings.ask_ms) / 2
    }

    /// How long a source may say `Wait`. An authority may be getting the chunk, over others and from the strata; who was
    /// named has it and at most lets askers queue for an upload slot.
    pub(super) fn wait_max(&self, named: bool) -> Duration {
        if named {
            millis(self.settings.upload_queue_ms.saturating_add(self.settings.ask_ms))
        } else {
            Duration::from_secs(u64::from(self.settings.wait_max_s))
        }
    }

    /// Waits a random while, longer at each round, before somebody busy is asked again.
    fn pause(&mut self, mut fetch: Box<Fetch>, first_us: u32) {
        let doublings = fetch.rounds.saturating_sub(1).min(BACKOFF_DOUBLINGS_MAX);
        let most = usize::try_from(u64::from(first_us) << doublings).unwrap_or(usize::MAX);
        let micros = self.rng.below(most) as u64 + 1;
        fetch.at = At::Pause;
        fetch.due = self.now + Duration::from_micros(micros);
        self.timers.arm(Timer::Fetch, fetch.due);
        self.fetches.put(fetch);
    }

    /// The pause is over.
    fn resume(&mut self, mut fetch: Box<Fetch>, out: &mut Outbox) {
        let Some(peer) = fetch.take_again() else { return self.advance(fetch, out) };
        fetch.tries = 0;
        fetch.tried.clear();
        if !self.usable(&fetch, peer) {
            return self.advance(fetch, out);
        }
        fetch.named = false;
        self.ask(fetch, peer, out);
    }

    /// Takes the fetch out if it stands at `at`.
    pub(super) fn take_at(&mut self, chunk: Chunk, at: At) -> Option<Box<Fetch>> {
        let Mark::Fetching(slot) = self.marks.get(chunk) else { return None };
        if self.fetches.get(slot)?.at != at {
            return None;
        }
        self.fetches.take(slot)
    }

    /// A peer that was asked says something instead of data.
    pub(super) fn told(&mut self, peer: Peer, chunk: Chunk, answer: Answer, load: u8, out: &mut Outbox) {
        self.loads.note(peer, load, self.settings.loads_max);
        if matches!(answer, Answer::Missing { .. }) {
            self.note_false_claim(peer, chunk);
        }
        self.copy_told(peer, chunk, &answer, out);
        if let Some(fetch) = self.take_hedged(chunk, peer) {
            return self.hedge_told(fetch, answer, out);
        }
        let Some(mut fetch) = self.take_at(chunk, At::Peer(peer)) else { return };
        if !fetch.waits {
            self.pace.note_trip(self.now.since(fetch.since));
        }
        match answer {
            Answer::Wait => {
                if self.now.since(fetch.since) > self.wait_max(fetch.named)
                    || self.shirks(&fetch, peer, fetch.since, fetch.behind)
                {
                    out.push(Output::Cancel { peer, chunk });
                    self.note_false_claim(peer, chunk);
                    self.doubt(peer, fetch.since);
                    fetch.mark_bad(peer);
                    return self.advance(fetch, out);
                }
                fetch.waits = true;
                fetch.due = if fetch.peeked {
                    (fetch.since + self.peek_max()).max(self.now + Duration::from_millis(1))
                } else {
                    self.patience(fetch.len_bytes)
                };
                self.timers.arm(Timer::Fetch, fetch.due);
                let stands = self.step_aside(&mut fetch);
                self.fetches.put(fetch);
                if stands {
                    self.begin_wants(out);
                }
            }
            Answer::Busy { holders } => {
                // Who was only remembered from another answer may be waiting itself, for somebody who waits for this node:
                // before a home was asked, nobody else is worth asking again.
                let home_first = (fetch.stage, fetch.rank) == (Stage::Homes, 0);
                if !fetch.named || (fetch.again().is_none() && !home_first) {
                    fetch.set_again(peer);
                    fetch.rounds = fetch.rounds.saturating_add(1);
                    fetch.tries = 0;
                    let since = match fetch.busy() {
                        Some((other, since)) if other == peer => since,
                        _ => self.now,
                    };
                    fetch.set_busy(peer, since);
                    let most = Duration::from_secs(u64::from(self.settings.busy_max_s));
                    // Who has it and no room says so at once. Who let wait before waits for it, perhaps for this node.
                    if fetch.peeked && (fetch.waits || self.now.since(since) > self.peek_max()) {
                        fetch.mark_bad(peer);
                    } else if self.now.since(since) > most || self.shirks(&fetch, peer, since, fetch.behind) {
                        self.doubt(peer, since);
                        fetch.mark_bad(peer);
                    }
                }
                self.note_advice(&mut fetch, &holders);
                self.advance(fetch, out);
            }
            Answer::Missing { holders } => {
                fetch.mark_bad(peer);
                fetch.partial |= holders.contains(&peer);
                if !fetch.named {
                    fetch.tries = 0;
                }
                self.note_advice(&mut fetch, &holders);
                self.advance(fetch, out);
            }
        }
    }

    pub(super) fn note_advice(&mut self, fetch: &mut Fetch, holders: &Holders) {
        let until = self.now + Duration::from_secs(u64::from(self.settings.hints_s));
        self.hints.note(fetch.slice, holders, until);
        fetch.add_candidates(holders.iter().copied());
    }

    /// A peer that was asked failed.
    pub(super) fn peer_failed(&mut self, chunk: Chunk, peer: Peer, why: Failure, out: &mut Outbox) {
        if why == Failure::WrongBytes {
            self.distrust(peer, out);
        }
        self.end_copy_ask(peer, chunk);
        if let Some(home) = self.homes.get_mut(self.content.slice(chunk)) {
            home.unnote(peer, self.content.part(chunk));
        }
        if let Some(fetch) = self.take_hedged(chunk, peer) {
            return self.hedge_over(fetch, true, out);
        }
        let Some(mut fetch) = self.take_at(chunk, At::Peer(peer)) else { return };
        if why == Failure::TimedOut {
            self.doubt(peer, fetch.since);
        }
        fetch.mark_bad(peer);
        self.advance(fetch, out);
    }

    /// Nothing is left to try.
    fn give_up(&mut self, mut fetch: Box<Fetch>, out: &mut Outbox) {
        let chunk = fetch.chunk;
        if fetch.busy().is_some() && fetch.want().is_some_and(|want| want.deadline > self.now) {
            // Somebody has it and is only busy, and nobody else is left: late is better than never.
            fetch.begin_anew();
            return self.pause(fetch, BUSY_AGAIN_US);
        }
        self.release(&fetch, Mark::Nothing, out);
        let until = self.now + millis(self.settings.ask_ms);
        self.upstream.note_hopeless(chunk, until);
        for waiter in fetch.take_waiters() {
            let holders = self.known_holders(chunk, waiter.peer);
            self.answer(waiter.ask, Answer::Missing { holders }, out);
        }
        if self.end_want(&mut fetch).is_some() {
            out.push(Output::GiveUp { chunk, why: GiveUp::NoSource });
            self.begin_wants(out);
        }
    }

    /// [`Timer::Fetch`]: sources that are too slow, pauses that are over, readers that give up.
    pub(super) fn fetches_due(&mut self, out: &mut Outbox) {
        let now = self.now;
        for slot in self.fetches.due(now) {
            // What was done for an earlier slot may have ended this one.
            let Some(mut fetch) = self.fetches.take(slot) else { continue };
            if fetch.want().is_some_and(|want| want.deadline <= now) {
                self.end_want(&mut fetch);
                out.push(Output::GiveUp { chunk: fetch.chunk, why: GiveUp::Deadline });
            }
            if fetch.is_orphan() || fetch.next_due() > now {
                self.put_or_abandon(fetch, out);
                continue;
            }
            if fetch.due > now {
                self.hedge_due(fetch, out);
                continue;
            }
            match fetch.at {
                At::Peer(peer) => {
                    out.push(Output::Cancel { peer, chunk: fetch.chunk });
                    // Who claims to have it and does not send it is no better than who does not have it.
                    self.note_false_claim(peer, fetch.chunk);
                    // A peek is a courtesy, and its time-out short.
                    if !fetch.peeked {
                        self.doubt(peer, fetch.since);
                    }
                    fetch.mark_bad(peer);
                    self.advance(fetch, out);
                }
                At::Strata => self.lease_lapsed(fetch, out),
                At::Pause => self.resume(fetch, out),
                At::Line => self.look_again(fetch, out),
                At::Choosing | At::Lookup => self.fetches.put(fetch),
            }
        }
        self.begin_wants(out);
        // At `Lookup` there is nothing to wake for but the readers.
        if let Some(next) = self.fetches.due_at() {
            self.timers.arm(Timer::Fetch, next);
        }
    }
}
