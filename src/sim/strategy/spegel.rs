//! A node that has a whole layer announces it in a DHT; others fetch it from one of those, or else from the registry: Spegel.
//!
//! Spegel's documentation ("Architecture"): every node advertises the digests that are on its disk in a Kademlia DHT; a request
//! of containerd goes to the local Spegel first, which looks the digest up and forwards the request to a node that has it; if
//! none is found, containerd falls back to the registry. The look-up may take 20 ms, and three nodes are tried
//! (`mirrorResolveTimeout` and `mirrorResolveRetries` of its chart). Since version 0.3 layers are advertised one by one as they
//! come. containerd fetches three layers at once (`max_concurrent_downloads` of its CRI plugin).
//!
//! A look-up takes `resolve_ms` and finds whoever announced the layer, of whom one is drawn; an announcement can be found after
//! `strategy.spegel.announce_ms`. Left out: manifests, that Kademlia finds some providers more often than others, a bound on uploads
//! (there is none), and disks. A layer that breaks off goes on where it was. Announcements of the dead are there until all
//! notice their death.

use super::pieces::Layout;
use super::world::{Stream, World};
use super::{Setup, Strategy};
use crate::model::Rng as _;
use crate::sim::scenario::Scenario;

/// What a node tells itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Note {
    /// The DHT answers about a layer.
    Resolved(u32),
    /// The announcement of a layer can be found.
    Announced(u32),
}

/// How far all nodes are, and what the DHT knows.
#[derive(Debug)]
pub(super) struct Spegel {
    streams: u32,
    resolve_ms: u64,
    announce_ms: u64,
    tries_max: u32,
    layers: u32,
    /// By node: the first layer that it did not ask for yet.
    next: Vec<u32>,
    /// By node and layer: providers that failed.
    tries: Vec<u8>,
    /// By layer: who announced it.
    providers: Vec<Vec<u32>>,
}

impl Spegel {
    fn fetch_next(&mut self, node: u32, world: &mut World<Note>) {
        let layer = self.next[node as usize];
        if layer < self.layers {
            self.next[node as usize] += 1;
            world.later(node, self.resolve_ms, Note::Resolved(layer));
        }
    }

    fn tries(&mut self, node: u32, layer: u32) -> &mut u8 {
        &mut self.tries[node as usize * self.layers as usize + layer as usize]
    }

    /// Fetches what is missing of a layer from a provider, or from the stratum.
    fn fetch(&mut self, node: u32, layer: u32, world: &mut World<Note>) {
        let may_try = u32::from(*self.tries(node, layer)) < self.tries_max;
        let providers = &self.providers[layer as usize];
        let from = if may_try && !providers.is_empty() {
            providers[world.rng(node).below(providers.len())]
        } else {
            world.stratum()
        };
        let pieces = world.layout.layer(layer);
        let missing = pieces.clone().find(|piece| !world.held().has(node, *piece));
        world.open(node, from, missing.unwrap_or(pieces.start)..pieces.end);
    }

    fn layer_of(stream: &Stream, world: &World<Note>) -> u32 {
        let layers = 0..world.layout.layers();
        layers.into_iter().find(|layer| world.layout.layer(*layer).contains(&(stream.end - 1))).unwrap_or(0)
    }
}

impl Strategy for Spegel {
    type Note = Note;

    fn setup(_scenario: &Scenario, layout: Layout) -> Setup {
        Setup::new(layout, false)
    }

    fn new(scenario: &Scenario, world: &World<Note>) -> Self {
        let (spegel, layers) = (&scenario.strategy.spegel, world.layout.layers());
        let nodes = world.nodes() as usize;
        Self {
            streams: spegel.streams,
            resolve_ms: spegel.resolve_ms,
            announce_ms: spegel.announce_ms,
            tries_max: spegel.tries,
            layers,
            next: vec![0; nodes],
            tries: vec![0; nodes * layers as usize],
            providers: vec![Vec::new(); layers as usize],
        }
    }

    fn begin(&mut self, node: u32, world: &mut World<Note>) {
        for _ in 0..self.streams {
            self.fetch_next(node, world);
        }
    }

    fn told(&mut self, _from: u32, node: u32, note: Note, world: &mut World<Note>) {
        match note {
            Note::Resolved(layer) => self.fetch(node, layer, world),
            Note::Announced(layer) => self.providers[layer as usize].push(node),
        }
    }

    fn received(&mut self, stream: &Stream, _piece: u32, world: &mut World<Note>) {
        if stream.is_over() {
            let layer = Self::layer_of(stream, world);
            world.later(stream.to, self.announce_ms, Note::Announced(layer));
            self.fetch_next(stream.to, world);
        }
    }

    fn failed(&mut self, stream: &Stream, world: &mut World<Note>) {
        let layer = Self::layer_of(stream, world);
        if stream.from != world.stratum() {
            let tries = self.tries(stream.to, layer);
            *tries = tries.saturating_add(1);
        }
        self.fetch(stream.to, layer, world);
    }

    fn died(&mut self, node: u32) {
        self.next[node as usize] = 0;
        (0..self.layers).for_each(|layer| *self.tries(node, layer) = 0);
    }

    fn noticed(&mut self, nodes: &[u32], _world: &mut World<Note>) {
        for providers in &mut self.providers {
            providers.retain(|provider| nodes.binary_search(provider).is_err());
        }
    }
}
