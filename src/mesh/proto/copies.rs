//! The declared minimum of copies: the first few live homes of a slice keep what one of them has.
//!
//! By default a cell keeps what is read, and a home's going can take the only copy along. With a minimum of N, a home
//! that got a chunk from outside the cell asks the next ranks for it, as the least urgent ask there is. They do not have it,
//! say so, and remember to copy it from there when there is room, few at a time. When a member goes, the remaining homes
//! ask those ranks for everything that they are not known to hold, a bounded number of chunks at a time. A node whose store
//! just dropped something takes no copies for a while: it has no room, and would push out others.
//!
//! The ask serves as the news: it names the chunk, needs no message of its own, and a node that declares no minimum
//! answers it like any other. Copies that readers hold do not count, because they may go at any time.

use super::fetch::At;
use super::marks::Mark;
use super::rare::Nothing;
use super::timer::Timer;
use super::{Answer, Chunk, Content, Nearness, Node, Outbox, Output, Peer, Peers};
use crate::model::{Class, Rng, Time};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::time::Duration;

/// Copies that are fetched at once.
const AT_ONCE: usize = 4;
/// Chunks that wait to be copied; more are left out, and named again when a member goes (guess).
const LINE_MAX: usize = 4_096;
/// Asks of next ranks that are under way.
const ASKS_MAX: usize = 32;
/// Chunks that are looked at in one turn, and the pause between two turns (guess: a million chunks in seven minutes).
const LOOKS_MAX: usize = 256;
const TURN: Duration = Duration::from_millis(100);
/// How long a node takes no copies after its store dropped something (guess: as long as peers are distrusted).
const FULL_FOR: Duration = Duration::from_secs(600);

/// What is to be copied here, and whom others are asked to copy.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    /// Chunks that this node should copy.
    line: VecDeque<Chunk>,
    under_way: usize,
    /// Chunks that the next ranks should copy.
    offers: VecDeque<Chunk>,
    /// The next chunk number to look at after a member went; past the last, all were looked at.
    sweep: u32,
    /// Each with the time until which an answer is waited for.
    asked: Vec<(Peer, Chunk, Time)>,
    full_until: Time,
}

impl Nothing for Copies {
    const NOTHING: &'static Self = &Self {
        line: VecDeque::new(),
        under_way: 0,
        offers: VecDeque::new(),
        sweep: 0,
        asked: Vec::new(),
        full_until: Time::ZERO,
    };
}

impl Copies {
    /// Whether all tables are within their bounds; else one that is not, and its bound.
    pub(super) fn check(&self) -> Result<(), (u64, u64)> {
        let tables = [
            (self.line.len(), LINE_MAX),
            (self.offers.len(), LINE_MAX),
            (self.under_way, AT_ONCE),
            (self.asked.len(), ASKS_MAX + usize::from(u8::MAX)),
        ];
        let over = tables.into_iter().find(|(found, most)| found > most);
        over.map_or(Ok(()), |(found, most)| Err((found as u64, most as u64)))
    }
}

impl<P: Peers, C: Content, R: Rng> Node<P, C, R> {
    fn copies_wanted(&self) -> u8 {
        self.settings.min_copies.min(self.settings.home_ranks)
    }

    /// A chunk came from outside the cell.
    pub(super) fn offer_copies(&mut self, chunk: Chunk) {
        if self.copies_wanted() > 1 && self.copies.offers.len() < LINE_MAX {
            self.copies.offers.push_back(chunk);
            self.timers.arm(Timer::Copies, self.now + TURN);
        }
    }

    /// A member went: the homes may be others.
    pub(super) fn check_copies(&mut self) {
        if self.copies_wanted() > 1 {
            self.copies.sweep = 0;
            self.timers.arm(Timer::Copies, self.now + TURN);
        }
    }

    /// A home that ranks before this node asks for what is not here: if this node should hold a copy, it gets one later.
    pub(super) fn note_copy(&mut self, asker: Peer, chunk: Chunk, class: Class) {
        let slice = self.content.slice(chunk);
        let wanted = self.copies_wanted();
        if wanted < 2 || class != Class::Fill || self.copies.full_until > self.now {
            return;
        }
        let rank = |peer: Peer| self.rank_of(peer, slice).filter(|rank| *rank < wanted);
        let (Some(theirs), Some(mine)) = (rank(asker), rank(self.peers.me())) else { return };
        let room = self.copies.line.len() < LINE_MAX && !self.copies.line.contains(&chunk);
        if theirs < mine && room && self.marks.get(chunk) == Mark::Nothing {
            self.copies.line.push_back(chunk);
            self.timers.arm(Timer::Copies, self.now + TURN);
        }
    }

    /// The store dropped a chunk.
    pub(super) fn note_full(&mut self) {
        self.copies.full_until = self.now + FULL_FOR;
        self.copies.line.clear();
    }

    /// The chunk's number means something else now.
    pub(super) fn forget_copy(&mut self, chunk: Chunk) {
        if let Some(copies) = self.copies.there() {
            copies.line.retain(|other| *other != chunk);
            copies.offers.retain(|other| *other != chunk);
        }
    }

    /// A copy is there, or nobody has it.
    pub(super) fn copy_ended(&mut self) {
        self.copies.under_way = self.copies.under_way.saturating_sub(1);
        self.timers.arm(Timer::Copies, self.now + TURN);
    }

    /// A next rank answered whether it has `chunk`. `Wait`: it is getting it already.
    pub(super) fn copy_told(&mut self, peer: Peer, chunk: Chunk, answer: &Answer, out: &mut Outbox) {
        if self.end_copy_ask(peer, chunk) && *answer == Answer::Wait {
            out.push(Output::Cancel { peer, chunk });
        }
    }

    /// Whether the next rank `peer` was asked for `chunk`; it is not any more.
    pub(super) fn end_copy_ask(&mut self, peer: Peer, chunk: Chunk) -> bool {
        let index = self.copies.asked.iter().position(|asked| (asked.0, asked.1) == (peer, chunk));
        index.map(|index| self.copies.asked.swap_remove(index)).is_some()
    }

    /// Withdraws asks of next ranks: of one that went, or for a chunk that this node does not hold any more.
    pub(super) fn drop_copy_asks(&mut self, drop: impl Fn(Peer, Chunk, Time) -> bool, out: &mut Outbox) {
        let Some(copies) = self.copies.there() else { return };
        copies.asked.retain(|(peer, chunk, due)| {
            let gone = drop(*peer, *chunk, *due);
            if gone {
                out.push(Output::Cancel { peer: *peer, chunk: *chunk });
            }
            !gone
        });
    }

    /// [`Timer::Copies`]: begins a few copies, and asks next ranks for a few chunks.
    pub(super) fn copies_due(&mut self, out: &mut Outbox) {
        while self.copies.under_way < AT_ONCE && !self.is_crowded() {
            let Some(chunk) = self.copies.line.pop_front() else { break };
            if self.marks.get(chunk) != Mark::Nothing {
                continue;
            }
            let Some(mut fetch) = self.new_fetch(chunk, None) else { break };
            fetch.copy = true;
            self.copies.under_way += 1;
            self.counts.copies_made += 1;
            self.search(fetch, out);
        }
        let now = self.now;
        self.drop_copy_asks(|_, _, due| due <= now, out);
        let mut looks = 0;
        while looks < LOOKS_MAX && self.copies.asked.len() < ASKS_MAX {
            looks += 1;
            if let Some(chunk) = self.copies.offers.pop_front() {
                self.ask_to_copy(chunk, out);
            } else if self.copies.sweep < self.marks.end() {
                let chunk = Chunk(self.copies.sweep);
                self.copies.sweep += 1;
                self.ask_to_copy(chunk, out);
            } else {
                break;
            }
        }
        if let Some(due) = self.copies.asked.iter().map(|asked| asked.2).min() {
            self.timers.arm(Timer::Copies, due);
        }
        let more = self.copies.sweep < self.marks.end() || !self.copies.offers.is_empty();
        if more || (!self.copies.line.is_empty() && self.copies.under_way < AT_ONCE) {
            self.timers.arm(Timer::Copies, self.now + TURN);
        }
    }

    /// Asks those of the first homes for a chunk that is stored here which are not known to hold it.
    fn ask_to_copy(&mut self, chunk: Chunk, out: &mut Outbox) {
        if self.marks.get(chunk) != Mark::Held {
            return;
        }
        let (me, slice, part) = (self.peers.me(), self.content.slice(chunk), self.content.part(chunk));
        let wanted = self.copies_wanted();
        let Some(mine) = self.rank_of(me, slice).filter(|mine| *mine < wanted) else { return };
        let ranks = (mine + 1..wanted).map_while(|rank| self.peers.home(slice, usize::from(rank)));
        let next: SmallVec<[Peer; 4]> = ranks.collect();
        // Who was one of them when it was asked may have others before it now.
        self.drop_copy_asks(|peer, other, _| other == chunk && !next.contains(&peer), out);
        for peer in next {
            let holds = self.homes.get(slice).is_some_and(|home| home.holds(peer, part))
                || self.claims.of(slice, part).any(|holder| holder == peer);
            let asked = |asked: &(Peer, Chunk, Time)| (asked.0, asked.1) == (peer, chunk);
            let known = holds || self.copies.asked.iter().any(asked);
            if known || self.peers.nearness(peer) != Nearness::Cell || !self.peers.is_up(peer) {
                continue;
            }
            self.counts.copies_asked += 1;
            let due = self.patience(self.content.len_bytes(chunk));
            self.copies.asked.push((peer, chunk, due));
            out.push(Output::Ask { peer, chunk, class: Class::Fill });
        }
    }

    /// Whether a chunk that arrived was taken from outside the cell, by this node itself.
    pub(super) fn is_from_outside(&self, at: At) -> bool {
        match at {
            At::Strata => true,
            At::Peer(peer) => self.peers.nearness(peer) != Nearness::Cell,
            _ => false,
        }
    }
}
