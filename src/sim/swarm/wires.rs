//! The network: requests on streams, latencies, cuts, broken connections.
//!
//! It shows the nodes what QUIC would: a stream is reliable and in order, streams overtake each other, a lost packet is a
//! late message, a cut is silence until the connection times out, and both ends learn of a broken connection each in its time.

use super::member::Bytes;
use super::world::{Happening, Step, World};
use crate::mesh::proto::{Answer, Ask, Chunk, Failure, Peer};
use crate::model::{Class, Rng, Time};
use std::collections::BTreeSet;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

/// One chunk that one node asks of another: a stream with two directions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) asker: u32,
    pub(super) asked: u32,
    asker_life: u32,
    asked_life: u32,
    pub(super) chunk: Chunk,
    pub(super) class: Class,
    /// Its number at the asked node, once it came there.
    pub(super) ask: Option<Ask>,
    /// Which connection of the pair it runs on.
    link: u32,
    /// When the last message of each direction arrives: to the asked, to the asker.
    last: [Time; 2],
}

/// What travels on a stream, or is learned of it.
#[derive(Clone, Debug)]
pub(super) enum Mail {
    /// To the asked.
    Ask,
    Withdraw,
    Gone,
    /// To the asker.
    Connected,
    Told {
        answer: Answer,
        load: u8,
    },
    Data(Bytes),
    Failed(Failure),
}

impl Mail {
    fn is_for_asked(&self) -> bool {
        matches!(self, Self::Ask | Self::Withdraw | Self::Gone)
    }

    /// Whether a node learns it by itself, rather than from a message.
    fn is_local(&self) -> bool {
        matches!(self, Self::Gone | Self::Failed(_))
    }
}

/// Pairs of nodes.
#[derive(Debug)]
pub(super) struct Wires {
    nodes: usize,
    /// How many cuts there are from one node to another.
    cuts: Vec<u8>,
    /// Which connection a pair has, in both orders.
    links: Vec<u32>,
    /// Messages that wait behind a cut.
    held: Vec<(u32, Mail)>,
    /// Connections that will time out.
    timing_out: BTreeSet<(u32, u32)>,
}

impl Wires {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            nodes,
            cuts: vec![0; nodes * nodes],
            links: vec![0; nodes * nodes],
            held: Vec::new(),
            timing_out: BTreeSet::new(),
        }
    }

    fn at(&self, from: u32, to: u32) -> usize {
        from as usize * self.nodes + to as usize
    }

    pub(super) fn cut(&mut self, from: u32, to: u32) {
        let at = self.at(from, to);
        self.cuts[at] = self.cuts[at].saturating_add(1);
    }

    pub(super) fn mend(&mut self, from: u32, to: u32) {
        let at = self.at(from, to);
        self.cuts[at] = self.cuts[at].saturating_sub(1);
    }

    pub(super) fn mend_all(&mut self) {
        self.cuts.fill(0);
    }

    fn is_cut(&self, from: u32, to: u32) -> bool {
        self.cuts[self.at(from, to)] > 0
    }

    /// Whether two nodes can talk.
    pub(super) fn joined(&self, a: u32, b: u32) -> bool {
        !self.is_cut(a, b) && !self.is_cut(b, a)
    }

    fn link(&self, a: u32, b: u32) -> u32 {
        self.links[self.at(a, b)]
    }

    fn new_link(&mut self, a: u32, b: u32) {
        for at in [self.at(a, b), self.at(b, a)] {
            self.links[at] += 1;
        }
    }
}

impl World<'_> {
    /// The time that a message takes.
    pub(super) fn latency(&mut self, from: u32, to: u32) -> Duration {
        let (a, b) = (self.plan.seats[from as usize], self.plan.seats[to as usize]);
        let far = if a.cell == b.cell {
            0
        } else if a.region == b.region {
            1
        } else {
            2
        };
        let (least, spread) = self.plan.latency_us[far];
        let mut micros = least + self.net_rng.below(spread);
        if self.chance(self.chances.late) {
            micros += 20_000 + self.net_rng.below(800_000);
        }
        Duration::from_micros(micros as u64)
    }

    /// One in so many; 0 is never.
    pub(super) fn chance(&mut self, one_in: usize) -> bool {
        one_in > 0 && self.net_rng.below(one_in) == 0
    }

    /// A new request. The ask itself is on its way afterwards.
    pub(super) fn request(&mut self, asker: u32, asked: u32, chunk: Chunk, class: Class) -> u32 {
        let number = u32::try_from(self.requests.len()).unwrap_or(u32::MAX);
        let life = |node: u32| self.members[node as usize].life;
        self.requests.push(Request {
            asker,
            asked,
            asker_life: life(asker),
            asked_life: life(asked),
            chunk,
            class,
            ask: None,
            link: self.wires.link(asker, asked),
            last: [Time::ZERO; 2],
        });
        if self.members[asker as usize].is_honest() {
            self.members[asker as usize].books.outgoing.insert((chunk, Peer(asked)), number);
        }
        if self.refuses(asker, asked) {
            self.learn_mail(number, Mail::Failed(Failure::Unreachable), Duration::from_micros(1));
        } else {
            self.send(number, Mail::Ask, Duration::ZERO);
        }
        number
    }

    /// Whether `node` has no connections with `other` because it lied.
    pub(super) fn refuses(&self, node: u32, other: u32) -> bool {
        let now = self.local(node);
        self.members[node as usize].books.banned.get(&other).is_some_and(|until| *until > now)
    }

    /// Sends a message `after` some time.
    pub(super) fn send(&mut self, number: u32, mail: Mail, after: Duration) {
        let request = self.requests[number as usize];
        let (from, to, way) = if mail.is_for_asked() {
            (request.asker, request.asked, 0)
        } else {
            (request.asked, request.asker, 1)
        };
        if self.chance(self.chances.broken) {
            return self.break_link(from, to, 500);
        }
        if self.chance(self.chances.lost) {
            return;
        }
        if self.wires.is_cut(from, to) {
            return self.hold(number, mail, from, to);
        }
        let at = (self.now + after + self.latency(from, to)).max(request.last[way]);
        self.requests[number as usize].last[way] = at;
        self.push(at, Happening::Mail { request: number, mail });
    }

    /// A node learns something of a request by itself.
    fn learn_mail(&mut self, number: u32, mail: Mail, after: Duration) {
        self.push(self.now + after, Happening::Mail { request: number, mail });
    }

    /// A message meets a cut: it is sent again and again, until the cut is mended or the connection times out.
    fn hold(&mut self, number: u32, mail: Mail, from: u32, to: u32) {
        self.wires.held.push((number, mail));
        let pair = (from.min(to), from.max(to));
        if self.wires.timing_out.insert(pair) {
            let at = self.now + MS * (1_000 + self.net_below(9_000));
            self.push(at, Happening::LinkTimeout { pair });
        }
    }

    /// What was held goes on where the cut is mended.
    pub(super) fn release_held(&mut self) {
        for (number, mail) in std::mem::take(&mut self.wires.held) {
            let after = MS * self.net_below(1_000);
            let request = self.requests[number as usize];
            if request.link == self.wires.link(request.asker, request.asked) {
                self.send(number, mail, after);
            }
        }
    }

    /// A connection has had no answer for too long.
    pub(super) fn link_timeout(&mut self, pair: (u32, u32)) -> Step {
        self.wires.timing_out.remove(&pair);
        if !self.wires.joined(pair.0, pair.1) {
            self.break_link(pair.0, pair.1, 500);
        }
        Ok(())
    }

    /// The connection between two nodes is gone: what runs on it fails, at each end within `within_ms`.
    pub(super) fn break_link(&mut self, a: u32, b: u32, within_ms: u32) {
        self.wires.new_link(a, b);
        for (node, other) in [(a, b), (b, a)] {
            let books = &self.members[node as usize].books;
            let asked = books.outgoing.iter().filter(|((_, peer), _)| peer.0 == other);
            let mut lost: Vec<(u32, Mail)> =
                asked.map(|(_, number)| (*number, Mail::Failed(Failure::Unreachable))).collect();
            let gone =
                books.incoming.values().filter(|number| self.requests[**number as usize].asker == other);
            lost.extend(gone.map(|number| (*number, Mail::Gone)));
            for (number, mail) in lost {
                let after = MS * self.net_below(within_ms);
                self.learn_mail(number, mail, after);
            }
        }
    }

    /// All connections of a node that died.
    pub(super) fn break_all(&mut self, dead: u32, within_ms: u32) {
        for other in (0..self.nodes()).filter(|other| *other != dead) {
            self.break_link(dead, other, within_ms);
        }
    }

    /// The addressee of a message, if it still lives the life that it was sent to.
    pub(super) fn addressee(&self, request: u32, mail: &Mail) -> u32 {
        let request = &self.requests[request as usize];
        if mail.is_for_asked() { request.asked } else { request.asker }
    }

    /// A message arrives.
    pub(super) fn mail(&mut self, number: u32, mail: Mail) -> Step {
        let request = self.requests[number as usize];
        let alive = |node: u32, life: u32| {
            let member = &self.members[node as usize];
            member.alive && member.life == life
        };
        let stale = !mail.is_local() && request.link != self.wires.link(request.asker, request.asked);
        if mail.is_for_asked() {
            if !alive(request.asked, request.asked_life) {
                if matches!(mail, Mail::Ask) {
                    // Nobody is there: refused at once, or silence until the dialler gives up.
                    let after =
                        if self.net_below(2) == 0 { MS } else { MS * (1_000 + self.net_below(9_000)) };
                    self.learn_mail(number, Mail::Failed(Failure::Unreachable), after);
                }
                return Ok(());
            }
            if stale {
                return Ok(());
            }
            return match mail {
                Mail::Ask => self.ask_comes(number),
                _ => self.ask_goes(number),
            };
        }
        if stale || !alive(request.asker, request.asker_life) {
            return Ok(());
        }
        let (asker, asked, chunk) = (request.asker, Peer(request.asked), request.chunk);
        match mail {
            Mail::Connected => self.neighbour(asker, request.asked),
            Mail::Told { answer, load } => self.told(number, asker, asked, chunk, answer, load),
            Mail::Data(bytes) => self.data(number, asker, asked, chunk, bytes),
            Mail::Failed(why) => self.ask_failed(number, asker, asked, chunk, why),
            Mail::Ask | Mail::Withdraw | Mail::Gone => Ok(()),
        }
    }

    pub(super) fn net_below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.net_rng.below(bound as usize)).unwrap_or(0)
    }
}
