//! Nodes and a few origins exchange pieces with neighbours that a tracker names, the rarest first: Kraken.
//!
//! Kraken's documentation and its defaults (README, docs/CONFIGURATION.md, lib/torrent/scheduler, tracker/trackerserver): 3 to
//! 5 dedicated origins seed; every agent announces to the tracker every 3 s while it downloads, and gets up to 50 others,
//! origins among them, with at most 10 of whom it is connected. Neighbours tell each other of each piece (4 MB) that they get.
//! An agent asks each for 3 pieces at once, those first that the fewest of its neighbours have, and near the end pieces that it
//! asked others for. Who has everything parts from those that have it too. The published test: 3 GB to 2 600 hosts with 300
//! MB/s each, 5 origins and 5 trackers: p50 10 s, p99 18 s, p99.9 22 s.
//!
//! Left out: that an image has several blobs, each with a swarm of its own; unpacking and disks; that idle connections are
//! closed and others barred for a while; priorities among those that the tracker names, which are drawn; timeouts of pieces
//! that are merely slow. Somebody who was dialled and has not answered yet takes no place of the 10: in Kraken it does, but
//! there not all begin in the same moment, in which everybody would refuse everybody. The trackers are one, who sits with the
//! first origin and costs no time but the way. A connection sends one piece after the other in each direction. A node that
//! looks for a piece sees what its neighbours have at that moment. Origins that begin without the content fetch all of it from
//! the stratum; the tracker names nobody before one of them has it, since the hashes of the pieces are not known earlier.

use super::pieces::{Held, Layout};
use super::world::{Stream, World};
use super::{Setup, Strategy, spread};
use crate::model::Rng as _;
use crate::sim::scenario::Scenario;

/// Peers that the tracker names (`announce_limit`).
const HANDOUT: usize = 50;

/// What machines say to each other.
#[derive(Clone, Copy, Debug)]
pub(super) enum Note {
    /// A node reminds itself to announce.
    Tick,
    /// To the tracker: I want the content.
    Announce,
    /// From the tracker: here are others.
    Others,
    /// Let us be neighbours.
    Dial,
    /// Yes.
    Accept,
    /// No: I have enough.
    Refuse,
    /// We are neighbours no longer.
    Part,
    /// I have this piece.
    Have(u32),
    /// Send me this piece.
    Ask(u32),
}

/// A neighbour.
#[derive(Clone, Debug)]
struct Neighbour {
    end: u32,
    /// Pieces that were asked of it.
    asked: Vec<u32>,
    /// Pieces that it asked for, of which the first may be moving.
    line: Vec<u32>,
    is_sending: bool,
}

#[derive(Clone, Debug, Default)]
struct Peer {
    neighbours: Vec<Neighbour>,
    /// Others who were asked to be neighbours.
    dialled: Vec<u32>,
    /// Others of whom the tracker told.
    known: Vec<u32>,
    is_tracked: bool,
}

/// All peers, and the tracker.
#[derive(Debug)]
pub(super) struct Kraken {
    connections: usize,
    pipeline: usize,
    announce_ms: u64,
    /// By end.
    peers: Vec<Peer>,
    /// Pieces that were asked for, by end.
    asked: Held,
    /// By end and piece: neighbours that have it.
    counts: Vec<u8>,
    /// Nodes that announced, in any order.
    tracked: Vec<u32>,
    /// Nodes that wait until an origin has the content.
    early: Vec<u32>,
    /// Whether the origins fetch the content, or have it.
    is_fetched: bool,
}

impl Kraken {
    fn tracker(world: &World<Note>) -> u32 {
        world.servers().start
    }

    fn peer(&mut self, end: u32) -> &mut Peer {
        &mut self.peers[end as usize]
    }

    fn neighbour(&mut self, end: u32, other: u32) -> Option<&mut Neighbour> {
        self.peer(end).neighbours.iter_mut().find(|neighbour| neighbour.end == other)
    }

    /// The tracker hears of a node, and names others to it once an origin has the content.
    fn announced(&mut self, node: u32, world: &mut World<Note>) {
        if !std::mem::replace(&mut self.is_fetched, true) {
            for origin in world.servers().filter(|origin| !world.held().has_all(*origin)).collect::<Vec<_>>()
            {
                world.open(origin, world.stratum(), 0..world.layout.pieces());
            }
        }
        if world.servers().any(|origin| world.held().has_all(origin)) {
            self.name_others(node, world);
        } else if !self.early.contains(&node) {
            self.early.push(node);
        }
    }

    fn name_others(&mut self, node: u32, world: &mut World<Note>) {
        let tracker = Self::tracker(world);
        let mut others: Vec<u32> = world.servers().filter(|origin| world.held().has_all(*origin)).collect();
        for drawn in 0..(HANDOUT + 1).min(self.tracked.len()) {
            let other = drawn + world.rng(tracker).below(self.tracked.len() - drawn);
            self.tracked.swap(drawn, other);
            others.push(self.tracked[drawn]);
        }
        others.retain(|other| *other != node);
        for place in (1..others.len()).rev() {
            others.swap(place, world.rng(tracker).below(place + 1));
        }
        others.truncate(HANDOUT);
        if !std::mem::replace(&mut self.peer(node).is_tracked, true) {
            self.tracked.push(node);
        }
        self.peer(node).known = others;
        world.send(tracker, node, Note::Others);
    }

    /// Asks others to be neighbours, as long as there is room.
    fn dial(&mut self, node: u32, world: &mut World<Note>) {
        if world.held().has_all(node) {
            return;
        }
        while self.peers[node as usize].neighbours.len() + self.peers[node as usize].dialled.len()
            < self.connections
        {
            let Some(other) = self.peer(node).known.pop() else { return };
            let is_new =
                !self.peers[node as usize].dialled.contains(&other) && self.neighbour(node, other).is_none();
            if is_new {
                self.peer(node).dialled.push(other);
                world.send(node, other, Note::Dial);
            }
        }
    }

    fn dialled(&mut self, from: u32, to: u32, world: &mut World<Note>) {
        let has_room = self.peers[to as usize].neighbours.len() < self.connections;
        let is_useless = world.held().has_all(from) && world.held().has_all(to);
        if self.neighbour(to, from).is_some() {
            world.send(to, from, Note::Accept);
        } else if is_useless || !has_room {
            world.send(to, from, Note::Refuse);
        } else {
            self.join(to, from, world);
            world.send(to, from, Note::Accept);
            self.ask(to, from, world);
        }
    }

    /// From now on, one has another as its neighbour.
    fn join(&mut self, end: u32, other: u32, world: &World<Note>) {
        self.peer(end).dialled.retain(|dialled| *dialled != other);
        if self.neighbour(end, other).is_some() {
            return;
        }
        self.peer(end).neighbours.push(Neighbour {
            end: other,
            asked: Vec::new(),
            line: Vec::new(),
            is_sending: false,
        });
        self.count_all(end, other, world, |count| count.saturating_add(1));
    }

    fn count_all(&mut self, end: u32, other: u32, world: &World<Note>, change: impl Fn(u8) -> u8) {
        let first = end as usize * world.layout.pieces() as usize;
        for piece in 0..world.layout.pieces() {
            if world.held().has(other, piece) {
                let count = &mut self.counts[first + piece as usize];
                *count = change(*count);
            }
        }
    }

    /// One has another as its neighbour no longer, and asks others for what it asked of it.
    fn leave(&mut self, end: u32, other: u32, world: &mut World<Note>) {
        self.peer(end).dialled.retain(|dialled| *dialled != other);
        let neighbours = &mut self.peer(end).neighbours;
        let Some(place) = neighbours.iter().position(|neighbour| neighbour.end == other) else { return };
        let gone = neighbours.remove(place);
        self.count_all(end, other, world, |count| count.saturating_sub(1));
        for piece in gone.asked {
            let is_asked = |neighbour: &Neighbour| neighbour.asked.contains(&piece);
            if !self.peers[end as usize].neighbours.iter().any(is_asked) {
                self.asked.unset(end, piece);
            }
        }
        self.ask_all(end, world);
        self.dial(end, world);
    }

    /// Two are neighbours no longer.
    fn part(&mut self, one: u32, other: u32, world: &mut World<Note>) {
        for (end, other) in [(one, other), (other, one)] {
            if !world.is_dead(end) {
                self.leave(end, other, world);
            }
        }
    }

    fn ask_all(&mut self, end: u32, world: &mut World<Note>) {
        for place in 0..self.peers[end as usize].neighbours.len() {
            let other = self.peers[end as usize].neighbours[place].end;
            self.ask(end, other, world);
        }
    }

    /// Asks a neighbour for as many pieces as it may.
    fn ask(&mut self, end: u32, other: u32, world: &mut World<Note>) {
        let pipeline = self.pipeline;
        while self.neighbour(end, other).is_some_and(|neighbour| neighbour.asked.len() < pipeline) {
            let Some(piece) = self.rarest(end, other, world).or_else(|| self.last_ones(end, other, world))
            else {
                return;
            };
            self.asked.set(end, piece);
            if let Some(neighbour) = self.neighbour(end, other) {
                neighbour.asked.push(piece);
            }
            world.send(end, other, Note::Ask(piece));
        }
    }

    /// Of the pieces that a neighbour has and nobody was asked for, one that the fewest neighbours have.
    fn rarest(&self, end: u32, other: u32, world: &mut World<Note>) -> Option<u32> {
        let pieces = world.layout.pieces();
        // Where several are as rare, the first after a drawn one.
        let start = u32::try_from(world.rng(end).below(pieces as usize)).unwrap_or(0);
        let first = end as usize * pieces as usize;
        let useful = world.held().useful(other, end, &self.asked);
        useful.min_by_key(|piece| (self.counts[first + *piece as usize], (*piece + pieces - start) % pieces))
    }

    /// When few are missing, one that others were asked for and this one was not.
    fn last_ones(&mut self, end: u32, other: u32, world: &World<Note>) -> Option<u32> {
        let missing = world.layout.pieces() - world.held().count(end);
        if missing as usize > self.pipeline || missing == 0 {
            return None;
        }
        let asked = self.neighbour(end, other)?.asked.clone();
        let pieces = 0..world.layout.pieces();
        let is_last = |piece: &u32| {
            world.held().has(other, *piece) && !world.held().has(end, *piece) && !asked.contains(piece)
        };
        pieces.into_iter().find(is_last)
    }

    /// Sends the next piece that a neighbour asked for.
    fn serve(&mut self, end: u32, other: u32, world: &mut World<Note>) {
        let Some(neighbour) = self.neighbour(end, other) else { return };
        if !neighbour.is_sending && !neighbour.line.is_empty() {
            neighbour.is_sending = true;
            let piece = neighbour.line.remove(0);
            world.push(end, other, piece..piece + 1);
        }
    }

    /// One has everything: it parts from those that have it too.
    fn completed(&mut self, end: u32, world: &mut World<Note>) {
        self.peer(end).known.clear();
        let neighbours = &self.peers[end as usize].neighbours;
        let others: Vec<u32> = neighbours
            .iter()
            .map(|neighbour| neighbour.end)
            .filter(|other| world.held().has_all(*other))
            .collect();
        for other in others {
            self.leave(end, other, world);
            world.send(end, other, Note::Part);
        }
        if world.is_server(end) {
            for node in std::mem::take(&mut self.early) {
                self.name_others(node, world);
            }
        }
    }
}

impl Strategy for Kraken {
    type Note = Note;

    fn setup(scenario: &Scenario, layout: Layout) -> Setup {
        let kraken = &scenario.strategy.kraken;
        let name = ["origin", "origins"];
        Setup {
            servers: spread(scenario, name, kraken.origins, kraken.mbit_s),
            cache: kraken.cache,
            ..Setup::new(layout, true)
        }
    }

    fn new(scenario: &Scenario, world: &World<Note>) -> Self {
        let (kraken, pieces) = (&scenario.strategy.kraken, world.layout.pieces());
        Self {
            connections: kraken.connections as usize,
            pipeline: kraken.pipeline as usize,
            announce_ms: kraken.announce_ms,
            peers: vec![Peer::default(); world.ends()],
            asked: Held::new(world.ends(), pieces),
            counts: vec![0; world.ends() * pieces as usize],
            tracked: Vec::new(),
            early: Vec::new(),
            is_fetched: false,
        }
    }

    fn begin(&mut self, node: u32, world: &mut World<Note>) {
        self.told(node, node, Note::Tick, world);
    }

    fn told(&mut self, from: u32, to: u32, note: Note, world: &mut World<Note>) {
        match note {
            Note::Tick => {
                if !world.held().has_all(to) {
                    world.send(to, Self::tracker(world), Note::Announce);
                    world.later(to, self.announce_ms, Note::Tick);
                }
            }
            Note::Announce => self.announced(from, world),
            Note::Others => self.dial(to, world),
            Note::Dial => self.dialled(from, to, world),
            Note::Accept => {
                let is_full = self.peers[to as usize].neighbours.len() >= self.connections;
                if is_full && self.neighbour(to, from).is_none() {
                    self.peer(to).dialled.retain(|dialled| *dialled != from);
                    world.send(to, from, Note::Part);
                } else {
                    self.join(to, from, world);
                    self.ask(to, from, world);
                }
            }
            Note::Refuse => {
                self.peer(to).dialled.retain(|dialled| *dialled != from);
                self.dial(to, world);
            }
            Note::Part => self.leave(to, from, world),
            Note::Have(piece) => {
                if self.neighbour(to, from).is_some() {
                    let count = &mut self.counts[(to * world.layout.pieces() + piece) as usize];
                    *count = count.saturating_add(1);
                    self.ask(to, from, world);
                }
            }
            Note::Ask(piece) => match self.neighbour(to, from) {
                Some(neighbour) => {
                    neighbour.line.push(piece);
                    self.serve(to, from, world);
                }
                None => world.send(to, from, Note::Part),
            },
        }
    }

    fn unanswered(&mut self, from: u32, to: u32, note: Note, world: &mut World<Note>) {
        match note {
            Note::Dial => {
                self.peer(from).dialled.retain(|dialled| *dialled != to);
                self.dial(from, world);
            }
            // The connection is broken, which the other side sees as well.
            Note::Accept | Note::Refuse | Note::Ask(_) | Note::Have(_) | Note::Part => {
                self.part(from, to, world);
                if !world.is_dead(to) {
                    self.dial(to, world);
                }
            }
            Note::Tick | Note::Announce | Note::Others => {}
        }
    }

    fn received(&mut self, stream: &Stream, piece: u32, world: &mut World<Note>) {
        let end = stream.to;
        if let Some(neighbour) = self.neighbour(end, stream.from) {
            neighbour.asked.retain(|asked| *asked != piece);
        }
        self.asked.unset(end, piece);
        let others: Vec<u32> =
            self.peers[end as usize].neighbours.iter().map(|neighbour| neighbour.end).collect();
        for other in others {
            if other != stream.from && !world.held().has_all(other) {
                world.send(end, other, Note::Have(piece));
            }
        }
        if world.held().has_all(end) {
            self.completed(end, world);
        } else {
            self.ask(end, stream.from, world);
        }
    }

    fn sent(&mut self, stream: &Stream, world: &mut World<Note>) {
        if let Some(neighbour) = self.neighbour(stream.from, stream.to) {
            neighbour.is_sending = false;
            self.serve(stream.from, stream.to, world);
        }
    }

    fn failed(&mut self, stream: &Stream, world: &mut World<Note>) {
        if stream.from == world.stratum() {
            world.open(stream.to, stream.from, stream.arrived..stream.end);
            return;
        }
        self.part(stream.to, stream.from, world);
    }

    fn died(&mut self, node: u32) {
        let is_tracked = self.peer(node).is_tracked;
        *self.peer(node) = Peer { is_tracked, ..Peer::default() };
        self.asked.clear(node);
        let row = self.counts.len() / self.peers.len();
        self.counts[node as usize * row..][..row].fill(0);
    }

    fn noticed(&mut self, nodes: &[u32], world: &mut World<Note>) {
        self.tracked.retain(|node| nodes.binary_search(node).is_err());
        self.early.retain(|node| nodes.binary_search(node).is_err());
        for node in nodes {
            self.peer(*node).is_tracked = false;
        }
        for end in 0..u32::try_from(self.peers.len()).unwrap_or(u32::MAX) {
            let is_gone = |other: &u32| nodes.binary_search(other).is_ok();
            let peer = &self.peers[end as usize];
            let gone: Vec<u32> =
                peer.neighbours.iter().map(|neighbour| neighbour.end).filter(is_gone).collect();
            for other in gone {
                self.leave(end, other, world);
            }
        }
    }
}
