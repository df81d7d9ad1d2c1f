//! A scheduler names parents to each node, which fetches pieces from them; seed peers fetch from the stratum: Dragonfly 2.
//!
//! Dragonfly's documentation ("System Design", "Scheduler") and its scheduler's defaults: a peer registers its task with a
//! scheduler, who triggers a seed peer the first time and answers with at most 4 candidate parents. They are the best of 15 that
//! are drawn from the peers of the task: those that are fed themselves, have an upload slot left (50 of a peer, 300 of a seed
//! peer) and are no descendants of the one that asks. What is best, a score says since version 2.4: load 0.6, same data centre
//! 0.2, same location 0.1, kind of host 0.1. A peer for which none is found is scheduled again after 50 ms; after 5 times it may
//! fetch from the source itself, but only 3 peers of a task, and after 10 times it does so in any case. Parents tell children
//! which pieces they have; a child fetches 10 pieces at once, each from the parent whose load is the least (the second stage of
//! the same version).
//!
//! Left out: the manager, probing of the network, that a parent is looked for anew while pieces come, rate limits, disks. Load is
//! the share of a parent's upload slots that are taken when the scheduler looks, and the uploads under way when a child does, who
//! knows them at once; cells are data centres, regions are locations; a seed peer is the better kind of host while it fetches
//! itself, as in versions before. The scheduler sits with the first seed peer. A child sees at once what a parent has when it
//! looks; one that finds nothing is told of the next piece a latency later. Which of the pieces it takes, it draws. A parent that
//! fails is replaced by scheduling again.

use super::pieces::{Held, Layout};
use super::world::{Stream, World};
use super::{Setup, Strategy, spread};
use crate::model::Rng as _;
use crate::sim::scenario::Scenario;

/// Peers from which the best are chosen (`filterParentLimit`).
const SAMPLE: usize = 15;
/// Time until a peer is scheduled again, in milliseconds (`retryInterval`).
const RETRY_MS: u64 = 50;
/// Times after which a peer may fetch from the source (`retryBackToSourceLimit`).
const SOURCE_AFTER: u32 = 5;
/// Peers that may do so (`backToSourceCount`).
const SOURCE_PEERS: u32 = 3;
/// Times after which it does so in any case (`retryLimit`).
const RETRIES: u32 = 10;
/// Ancestors of a candidate that are looked at; with more, it is no candidate.
const ANCESTORS_MAX: usize = 4_096;

/// What machines say to each other.
#[derive(Clone, Copy, Debug)]
pub(super) enum Note {
    /// A node asks the scheduler for parents.
    Register,
    /// The scheduler reminds itself of a node for which it found none so often.
    Again(u32, u32),
    /// The scheduler named parents.
    Parents,
    /// The scheduler says that there are none: fetch from the source.
    Source,
    /// A parent has more.
    More,
}

#[derive(Clone, Debug, Default)]
struct Peer {
    parents: Vec<u32>,
    children: Vec<u32>,
    /// Pieces on their way to it.
    fetching: u32,
    /// It looked for pieces and could fetch more.
    is_hungry: bool,
    /// It fetches from the stratum.
    has_source: bool,
    /// The scheduler knows it.
    is_known: bool,
    /// It waits for the scheduler.
    waits: bool,
}

/// All peers, and what the scheduler knows of them.
#[derive(Debug)]
pub(super) struct Dragonfly {
    parents_max: usize,
    streams: u32,
    /// Of a node, of a seed peer.
    uploads: [usize; 2],
    /// By end.
    peers: Vec<Peer>,
    /// Pieces on their way, by end.
    asked: Held,
    /// Peers that the scheduler knows, in any order.
    known: Vec<u32>,
    has_seeds: bool,
    from_source: u32,
}

impl Dragonfly {
    fn scheduler(world: &World<Note>) -> u32 {
        world.servers().start
    }

    fn peer(&mut self, end: u32) -> &mut Peer {
        &mut self.peers[end as usize]
    }

    fn register(&mut self, node: u32, world: &mut World<Note>) {
        if !std::mem::replace(&mut self.peer(node).waits, true) {
            world.send(node, Self::scheduler(world), Note::Register);
        }
    }

    fn make_known(&mut self, end: u32) {
        if !std::mem::replace(&mut self.peer(end).is_known, true) {
            self.known.push(end);
        }
    }

    /// The scheduler looks for parents of a node, for which it did so before.
    fn schedule(&mut self, node: u32, before: u32, world: &mut World<Note>) {
        if !std::mem::replace(&mut self.has_seeds, true) {
            for seed in world.servers() {
                self.make_known(seed);
                self.peer(seed).has_source = true;
                self.fetch(seed, world);
            }
        }
        self.make_known(node);
        let missing = self.parents_max.saturating_sub(self.peer(node).parents.len());
        let parents = self.candidates(node, missing, world);
        let scheduler = Self::scheduler(world);
        for parent in &parents {
            self.peer(node).parents.push(*parent);
            self.peer(*parent).children.push(node);
        }
        if !self.peer(node).parents.is_empty() {
            world.send(scheduler, node, Note::Parents);
        } else if before >= SOURCE_AFTER && self.from_source < SOURCE_PEERS || before >= RETRIES {
            self.from_source += 1;
            world.send(scheduler, node, Note::Source);
        } else {
            world.later(scheduler, RETRY_MS, Note::Again(node, before + 1));
        }
    }

    /// The best of those that are drawn.
    fn candidates(&mut self, node: u32, most: usize, world: &mut World<Note>) -> Vec<u32> {
        let scheduler = Self::scheduler(world);
        let mut scored: Vec<(f64, u32)> = Vec::new();
        for drawn in 0..SAMPLE.min(self.known.len()) {
            let other = drawn + world.rng(scheduler).below(self.known.len() - drawn);
            self.known.swap(drawn, other);
            let candidate = self.known[drawn];
            if self.is_candidate(candidate, node, world) {
                scored.push((self.score(candidate, node, world), candidate));
            }
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        scored.into_iter().take(most).map(|(_, candidate)| candidate).collect()
    }

    fn slots(&self, end: u32, world: &World<Note>) -> usize {
        self.uploads[usize::from(world.is_server(end))]
    }

    fn is_candidate(&self, candidate: u32, node: u32, world: &World<Note>) -> bool {
        let peer = &self.peers[candidate as usize];
        let is_fed = peer.has_source || !peer.parents.is_empty() || world.held().has_all(candidate);
        candidate != node
            && is_fed
            && peer.children.len() < self.slots(candidate, world)
            && !self.peers[node as usize].parents.contains(&candidate)
            && !self.descends(candidate, node)
    }

    /// Whether one gets pieces from another, directly or through others.
    fn descends(&self, from: u32, ancestor: u32) -> bool {
        if self.peers[ancestor as usize].children.is_empty() {
            return false;
        }
        let (mut open, mut seen) = (vec![from], std::collections::BTreeSet::from([from]));
        while let Some(end) = open.pop() {
            if end == ancestor || seen.len() > ANCESTORS_MAX {
                return true;
            }
            open.extend(
                self.peers[end as usize].parents.iter().copied().filter(|parent| seen.insert(*parent)),
            );
        }
        false
    }

    fn score(&self, candidate: u32, node: u32, world: &World<Note>) -> f64 {
        let slots = self.slots(candidate, world) as f64;
        let free = 1.0 - self.peers[candidate as usize].children.len() as f64 / slots;
        // A seed peer is preferred while it fetches itself, and spared afterwards.
        let kind = match (world.is_server(candidate), world.held().has_all(candidate)) {
            (false, _) => 0.5,
            (true, is_done) => f64::from(u8::from(!is_done)),
        };
        let same = |is_same: bool| f64::from(u8::from(is_same));
        let cell = same(world.cell(candidate) == world.cell(node));
        let region = same(world.region(candidate) == world.region(node));
        0.6 * free + 0.2 * cell + 0.1 * region + 0.1 * kind
    }

    /// Fetches what is there, as much at once as it may.
    fn fetch(&mut self, end: u32, world: &mut World<Note>) {
        while self.peers[end as usize].fetching < self.streams {
            let Some((piece, parent)) = self.find(end, world) else { break };
            self.asked.set(end, piece);
            self.peer(end).fetching += 1;
            world.open(end, parent, piece..piece + 1);
        }
        self.peer(end).is_hungry = self.peers[end as usize].fetching < self.streams;
    }

    /// A piece that it lacks, and a parent that has it.
    fn find(&self, end: u32, world: &mut World<Note>) -> Option<(u32, u32)> {
        let peer = &self.peers[end as usize];
        let (pieces, parents) = (world.layout.pieces() as usize, peer.parents.len());
        // Of several with the same load, the first after a drawn one.
        let first = world.rng(end).below(parents.max(1));
        let start = u32::try_from(world.rng(end).below(pieces)).unwrap_or(0);
        let useful = |parent: u32, start: u32| {
            let piece = world.held().useful_after(parent, end, &self.asked, start);
            piece.map(|piece| (piece, parent))
        };
        let from = (0..parents).map(|step| peer.parents[(first + step) % parents]);
        let found = from.filter_map(|parent| Some((world.load(parent), useful(parent, start)?)));
        let from_parents = found.min_by_key(|(load, _)| *load).map(|(_, found)| found);
        // From the source everything comes in its order.
        from_parents.or_else(|| if peer.has_source { useful(world.stratum(), 0) } else { None })
    }

    /// Two have nothing to do with each other any more.
    fn part(&mut self, parent: u32, child: u32) {
        self.peer(child).parents.retain(|other| *other != parent);
        self.peer(parent).children.retain(|other| *other != child);
    }

    fn is_done(&self, node: u32, world: &World<Note>) -> bool {
        world.held().has_all(node)
    }
}

impl Strategy for Dragonfly {
    type Note = Note;

    fn setup(scenario: &Scenario, layout: Layout) -> Setup {
        let dragonfly = &scenario.strategy.dragonfly;
        let name = ["seed peer", "seed peers"];
        Setup {
            servers: spread(scenario, name, dragonfly.seed_peers, dragonfly.mbit_s),
            cache: dragonfly.cache,
            ..Setup::new(layout, true)
        }
    }

    fn new(scenario: &Scenario, world: &World<Note>) -> Self {
        let dragonfly = &scenario.strategy.dragonfly;
        Self {
            parents_max: dragonfly.parents as usize,
            streams: dragonfly.streams,
            uploads: [dragonfly.uploads as usize, dragonfly.seed_uploads as usize],
            peers: vec![Peer::default(); world.ends()],
            asked: Held::new(world.ends(), world.layout.pieces()),
            known: Vec::new(),
            has_seeds: false,
            from_source: 0,
        }
    }

    fn begin(&mut self, node: u32, world: &mut World<Note>) {
        self.register(node, world);
    }

    fn told(&mut self, from: u32, to: u32, note: Note, world: &mut World<Note>) {
        match note {
            Note::Register => self.schedule(from, 0, world),
            // It may have died meanwhile, or have everything.
            Note::Again(node, before) => {
                if self.peers[node as usize].waits {
                    self.schedule(node, before, world);
                }
            }
            Note::Parents => {
                self.peer(to).waits = false;
                self.fetch(to, world);
            }
            Note::Source => {
                self.peer(to).waits = false;
                self.peer(to).has_source = true;
                self.fetch(to, world);
            }
            Note::More => self.fetch(to, world),
        }
    }

    fn unanswered(&mut self, from: u32, to: u32, note: Note, world: &mut World<Note>) {
        match note {
            // Who hears nothing from the scheduler fetches from the source.
            Note::Register => {
                self.peer(from).waits = false;
                self.peer(from).has_source = true;
                self.fetch(from, world);
            }
            Note::More if !world.is_dead(to) => self.fetch(to, world),
            Note::Parents | Note::Source if !world.is_dead(to) => {
                self.peer(to).waits = false;
                self.register(to, world);
            }
            _ => {}
        }
    }

    fn received(&mut self, stream: &Stream, piece: u32, world: &mut World<Note>) {
        let end = stream.to;
        self.asked.unset(end, piece);
        self.peer(end).fetching -= 1;
        let children = std::mem::take(&mut self.peer(end).children);
        for child in &children {
            if std::mem::take(&mut self.peer(*child).is_hungry) {
                world.send(end, *child, Note::More);
            }
        }
        self.peer(end).children = children;
        if self.is_done(end, world) {
            for parent in std::mem::take(&mut self.peer(end).parents) {
                self.peer(parent).children.retain(|other| *other != end);
            }
        } else {
            self.fetch(end, world);
        }
    }

    fn failed(&mut self, stream: &Stream, world: &mut World<Note>) {
        let end = stream.to;
        self.asked.unset(end, stream.arrived);
        self.peer(end).fetching -= 1;
        if stream.from != world.stratum() {
            self.part(stream.from, end);
            if !self.is_done(end, world) {
                self.register(end, world);
            }
        }
        self.fetch(end, world);
    }

    fn died(&mut self, node: u32) {
        // Its children, and the scheduler, do not know yet.
        let peer = self.peer(node);
        let (is_known, children) = (peer.is_known, std::mem::take(&mut peer.children));
        let parents = std::mem::take(&mut peer.parents);
        *self.peer(node) = Peer { is_known, children, ..Peer::default() };
        for parent in parents {
            self.peer(parent).children.retain(|other| *other != node);
        }
        self.asked.clear(node);
    }

    fn noticed(&mut self, nodes: &[u32], world: &mut World<Note>) {
        self.known.retain(|end| nodes.binary_search(end).is_err());
        for node in nodes {
            self.peer(*node).is_known = false;
            for child in std::mem::take(&mut self.peer(*node).children) {
                self.peer(child).parents.retain(|other| other != node);
                if !world.is_dead(child) && !self.is_done(child, world) {
                    self.register(child, world);
                }
            }
        }
    }
}
