//! What a driver does: it carries out what a node decided and tells it what came of it (compare `mesh/driver/`).

use super::ledger::rule;
use super::member::{Bytes, Waiting};
use super::wires::Mail;
use super::world::{Happening, Step, World};
use crate::mesh::proto::{
    Answer, Ask, Chunk, Failure, GiveUp, Holders, Input, NewsId, Output, Peer, Slice, Source,
};
use crate::model::{Class, Rng};
use std::time::Duration;

/// How long a liar is banned, as in the driver.
const BAN: Duration = Duration::from_secs(600);
/// How often bytes that the core holds for stored may turn out lost before a reader is told so, as in the driver.
const LOADS_MAX: u8 = 3;

impl World<'_> {
    /// Carries out everything that a node decided.
    pub(super) fn carry_out(&mut self, node: u32) -> Step {
        self.member_mut(node).books.carrying = true;
        while let Some(output) = self.member_mut(node).books.decided.pop_front() {
            self.carry_out_one(node, output)?;
        }
        self.member_mut(node).books.carrying = false;
        Ok(())
    }

    fn carry_out_one(&mut self, node: u32, output: Output) -> Step {
        match output {
            Output::Ask { peer, chunk, class } => {
                self.request(node, peer.0, chunk, class);
            }
            Output::Cancel { peer, chunk } => {
                if let Some(request) = self.member_mut(node).books.outgoing.remove(&(chunk, peer)) {
                    self.send(request, Mail::Withdraw, Duration::ZERO);
                }
            }
            Output::Serve { ask } => return self.serve(node, ask),
            Output::Answer { ask, answer, load } => {
                let books = &mut self.member_mut(node).books;
                let request = if answer == Answer::Wait {
                    books.incoming.get(&ask).copied()
                } else {
                    books.incoming.remove(&ask)
                };
                if let Some(request) = request {
                    self.send(request, Mail::Told { answer, load }, Duration::ZERO);
                }
            }
            Output::FetchUpstream { chunk } => self.fetch_upstream(node, chunk),
            Output::CancelUpstream { chunk } => self.stop_upstream(node, chunk),
            Output::FindProviders { segment } => self.find_providers(node, segment),
            Output::Announce { segment } => self.dht.announce(segment, node),
            Output::Deliver { chunk } => return self.deliver(node, chunk),
            Output::GiveUp { chunk, why } => {
                if self.member_mut(node).books.readers.remove(&chunk).is_some() {
                    return self.want_ended(node, chunk, Err(why));
                }
            }
            Output::Spread { news, to } => self.spread(node, news, to.0),
            Output::TellPossession { to, slices } => self.tell_possession(node, to.0, slices),
            Output::Distrust { peer } => {
                let until = self.local(node) + BAN;
                self.member_mut(node).books.banned.insert(peer.0, until);
                self.break_link(node, peer.0, 10);
            }
        }
        Ok(())
    }

    /// An ask reaches a node.
    pub(super) fn ask_comes(&mut self, number: u32) -> Step {
        let request = self.requests[number as usize];
        let (node, asker) = (request.asked, request.asker);
        if !self.member(node).is_honest() {
            return self.lie(number);
        }
        if self.refuses(node, asker) {
            self.send(number, Mail::Failed(Failure::Unreachable), Duration::ZERO);
            return Ok(());
        }
        self.send(number, Mail::Connected, Duration::ZERO);
        self.neighbour(node, asker)?;
        let ask = self.member_mut(node).books.next_ask();
        self.requests[number as usize].ask = Some(ask);
        self.member_mut(node).books.incoming.insert(ask, number);
        self.input(node, Input::Asked { peer: Peer(asker), ask, chunk: request.chunk, class: request.class })
    }

    /// An asker withdrew, or the connection to it broke.
    pub(super) fn ask_goes(&mut self, number: u32) -> Step {
        let request = self.requests[number as usize];
        let Some(ask) = request.ask else { return Ok(()) };
        if self.member_mut(request.asked).books.incoming.remove(&ask).is_none() {
            return Ok(());
        }
        self.input(request.asked, Input::AskGone { ask })
    }

    fn serve(&mut self, node: u32, ask: Ask) -> Step {
        let Some(number) = self.member(node).books.incoming.get(&ask).copied() else {
            return self.input(node, Input::Served { ask, ok: false });
        };
        let chunk = self.requests[number as usize].chunk;
        let now = self.now;
        let len = u64::from(self.plan.content[chunk.0 as usize].len_bytes);
        let member = self.member_mut(node);
        let Some(bytes) = member.disk.load(chunk) else {
            member.books.incoming.remove(&ask);
            let answer = Answer::Missing { holders: Holders::new() };
            self.send(number, Mail::Told { answer, load: 0 }, Duration::ZERO);
            self.input(node, Input::Evicted { chunk })?;
            return self.input(node, Input::Served { ask, ok: false });
        };
        rule!(bytes.are(chunk), "it relays wrong bytes of {chunk:?}");
        let takes = Duration::from_nanos(len * 1_000_000_000 / member.up_bytes_per_s.max(1));
        let end = member.uplink_free.max(now) + takes;
        member.uplink_free = end;
        let life = member.life;
        self.push(end, Happening::Sent { node, life, ask });
        self.send(number, Mail::Data(bytes), end.since(now));
        Ok(())
    }

    /// The last byte of an upload left.
    pub(super) fn sent(&mut self, node: u32, ask: Ask) -> Step {
        if self.member_mut(node).books.incoming.remove(&ask).is_none() {
            return Ok(());
        }
        self.input(node, Input::Served { ask, ok: true })
    }

    /// A peer says something instead of data.
    pub(super) fn told(
        &mut self,
        number: u32,
        node: u32,
        peer: Peer,
        chunk: Chunk,
        answer: Answer,
        load: u8,
    ) -> Step {
        if !self.is_under_way(node, peer, chunk, number) {
            return Ok(());
        }
        let known = |holders: Holders| -> Holders {
            let view = &self.member(node).view;
            holders.into_iter().filter(|peer| peer.0 != node && view[peer.0 as usize].met).collect()
        };
        let answer = match answer {
            Answer::Wait => Answer::Wait,
            Answer::Busy { holders } => Answer::Busy { holders: known(holders) },
            Answer::Missing { holders } => Answer::Missing { holders: known(holders) },
        };
        if answer != Answer::Wait {
            self.member_mut(node).books.outgoing.remove(&(chunk, peer));
        }
        self.input(node, Input::Told { peer, chunk, answer, load })
    }

    fn is_under_way(&self, node: u32, peer: Peer, chunk: Chunk, number: u32) -> bool {
        self.member(node).books.outgoing.get(&(chunk, peer)) == Some(&number)
    }

    /// Bytes came. Verified ones are always welcome, also when they were withdrawn.
    pub(super) fn data(&mut self, number: u32, node: u32, peer: Peer, chunk: Chunk, bytes: Bytes) -> Step {
        if !self.member(node).is_honest() {
            return Ok(());
        }
        let under_way = self.is_under_way(node, peer, chunk, number);
        if under_way {
            self.member_mut(node).books.outgoing.remove(&(chunk, peer));
        }
        if bytes.are(chunk) {
            return self.arrived(node, chunk, Source::Peer(peer), bytes);
        }
        if under_way {
            let why = Failure::WrongBytes;
            return self.input(node, Input::Failed { chunk, from: Source::Peer(peer), why });
        }
        Ok(())
    }

    /// Verified bytes came in; the disk may not take them.
    pub(super) fn arrived(&mut self, node: u32, chunk: Chunk, from: Source, bytes: Bytes) -> Step {
        let kept = self.member_mut(node).disk.keep(chunk, bytes);
        self.input(node, Input::Arrived { chunk, from })?;
        self.carry_out(node)?;
        if !kept {
            return self.input(node, Input::Evicted { chunk });
        }
        while self.member(node).disk.chunks().len() > self.plan.disk_chunks {
            let count = self.member(node).disk.chunks().len();
            let victim = self.fault_rng.below(count);
            let Some(victim) = self.member(node).disk.chunks().nth(victim) else { break };
            self.member_mut(node).disk.remove(victim);
            self.input(node, Input::Evicted { chunk: victim })?;
        }
        Ok(())
    }

    /// An ask of this node came to nothing.
    pub(super) fn ask_failed(
        &mut self,
        number: u32,
        node: u32,
        peer: Peer,
        chunk: Chunk,
        why: Failure,
    ) -> Step {
        if !self.is_under_way(node, peer, chunk, number) {
            return Ok(());
        }
        if why == Failure::Unreachable && !self.is_own_member(node, peer.0) {
            self.set_up(node, peer.0, false)?;
            self.look_later(node, peer.0);
        }
        self.member_mut(node).books.outgoing.remove(&(chunk, peer));
        self.input(node, Input::Failed { chunk, from: Source::Peer(peer), why })
    }

    /// A reader wants a chunk within some time.
    pub(super) fn want(&mut self, node: u32, chunk: Chunk, class: Class, within: Duration) -> Step {
        let deadline = self.local(node) + within;
        let first = Waiting { class, deadline, lost: 0 };
        let waiting = self.member_mut(node).books.readers.entry(chunk).or_insert(first);
        waiting.class = waiting.class.min(class);
        waiting.deadline = waiting.deadline.max(deadline);
        self.input(node, Input::Wanted { chunk, class, deadline })
    }

    /// A wanted chunk is here: it goes to the readers, if the disk really has it.
    fn deliver(&mut self, node: u32, chunk: Chunk) -> Step {
        let member = self.member_mut(node);
        let Some(waiting) = member.books.readers.get_mut(&chunk) else { return Ok(()) };
        waiting.lost += 1;
        let Waiting { class, deadline, lost } = *waiting;
        if let Some(bytes) = member.disk.load(chunk) {
            rule!(bytes.are(chunk), "it delivers wrong bytes of {chunk:?}");
            member.books.readers.remove(&chunk);
            return self.want_ended(node, chunk, Ok(()));
        }
        if lost >= LOADS_MAX {
            member.books.readers.remove(&chunk);
            return self.want_ended(node, chunk, Err(GiveUp::NoSource));
        }
        self.input(node, Input::Evicted { chunk })?;
        self.input(node, Input::Wanted { chunk, class, deadline })
    }

    fn spread(&mut self, node: u32, news: NewsId, to: u32) {
        if !self.wires.joined(node, to) || self.chance(self.chances.lost) {
            return;
        }
        let (life, at) = (self.member(to).life, self.now + self.latency(node, to));
        self.push(at, Happening::News { node: to, life, news, from: node });
        // The same document comes from several, and the same message may come twice.
        if self.chance(20) {
            self.push(at, Happening::News { node: to, life, news, from: node });
        }
    }

    /// What a node holds, or says that it does, is on its way to another.
    pub(super) fn tell_possession(&mut self, node: u32, to: u32, slices: Vec<(Slice, u64)>) {
        if self.wires.joined(node, to) && !self.chance(self.chances.lost) {
            let (life, at) = (self.member(to).life, self.now + self.latency(node, to));
            self.push(at, Happening::Possession { node: to, life, from: node, slices });
        }
    }

    /// A peer tells what it holds.
    pub(super) fn possession_comes(&mut self, node: u32, from: u32, slices: Vec<(Slice, u64)>) -> Step {
        if !self.member(node).is_honest() || self.refuses(node, from) {
            return Ok(());
        }
        self.neighbour(node, from)?;
        self.input(node, Input::Possession { peer: Peer(from), slices })
    }

    /// A document comes from a peer. The core hears of those that the adapter judges fresh.
    pub(super) fn news_comes(&mut self, node: u32, news: NewsId, from: u32) -> Step {
        if !self.member(node).is_honest() {
            return Ok(());
        }
        self.neighbour(node, from)?;
        if !self.member_mut(node).books.judged.insert(news) {
            return Ok(());
        }
        self.input(node, Input::NewsSeen { news, from: Some(Peer(from)) })
    }
}
