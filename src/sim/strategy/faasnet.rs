//! Nodes form a tree, through which the content streams: FaaSNet's function tree.
//!
//! Wang et al., "FaaSNet: Scalable and Fast Provisioning of Custom Serverless Container Runtimes at Alibaba Cloud Function
//! Compute" (USENIX ATC 2021): the virtual machines of a function form a balanced binary tree. Only its root fetches from the
//! registry; every other one fetches block by block from its parent, and passes on what it has while more comes in. A new
//! machine becomes the child of the first one that has room for it; when one is gone, the tree is balanced again. DADI (Li et
//! al., USENIX ATC 2020) distributes block images through trees as well.
//!
//! Left out: that containers start with a part of the image, that a machine is in one tree for each of its functions, and their
//! manager's own time: places are given at once. In the place of one that is gone comes the last of the tree, where the paper
//! rotates: both keep it balanced. Each node streams all blocks in their order from its parent, over one connection.

use super::pieces::Layout;
use super::world::{Stream, StreamId, World};
use super::{Setup, Strategy};
use crate::sim::scenario::Scenario;

/// The tree. The children of the place `p` have the places from `arity * p + 1` on.
#[derive(Debug)]
pub(super) struct Faasnet {
    arity: usize,
    /// By place.
    nodes: Vec<u32>,
    /// By node.
    places: Vec<Option<usize>>,
    /// By node: what its parent sends to it.
    streams: Vec<Option<StreamId>>,
}

impl Faasnet {
    /// Lets a node stream what it lacks from its parent.
    fn connect(&mut self, node: u32, world: &mut World<()>) {
        if let Some(stream) = self.streams[node as usize].take() {
            world.close(stream);
        }
        let Some(place) = self.places[node as usize] else { return };
        if world.is_dead(node) || world.held().has_all(node) {
            return;
        }
        let parent = match place {
            0 => world.stratum(),
            _ => self.nodes[(place - 1) / self.arity],
        };
        // Blocks come in their order, so what is there is a beginning.
        let stream = world.open(node, parent, world.held().count(node)..world.layout.pieces());
        self.streams[node as usize] = Some(stream);
    }

    /// Gives the place of one that is gone to the last of the tree.
    fn remove(&mut self, node: u32, world: &mut World<()>) {
        let Some(place) = self.places[node as usize].take() else { return };
        let Some(last) = self.nodes.pop() else { return };
        if last != node {
            self.nodes[place] = last;
            self.places[last as usize] = Some(place);
            self.connect(last, world);
        }
        let children = self.arity * place + 1..(self.arity * (place + 1) + 1).min(self.nodes.len());
        for child in children {
            self.connect(self.nodes[child], world);
        }
    }
}

impl Strategy for Faasnet {
    type Note = ();

    fn setup(_scenario: &Scenario, layout: Layout) -> Setup {
        // A block waits for its latency at each level of the tree.
        Setup::new(layout, true)
    }

    fn new(scenario: &Scenario, world: &World<()>) -> Self {
        let nodes = world.nodes() as usize;
        Self {
            arity: scenario.strategy.faasnet.arity as usize,
            nodes: Vec::with_capacity(nodes),
            places: vec![None; nodes],
            streams: vec![None; nodes],
        }
    }

    fn begin(&mut self, node: u32, world: &mut World<()>) {
        if self.places[node as usize].is_none() {
            self.places[node as usize] = Some(self.nodes.len());
            self.nodes.push(node);
        }
        self.connect(node, world);
    }

    fn told(&mut self, _from: u32, _to: u32, (): (), _world: &mut World<()>) {}

    fn received(&mut self, stream: &Stream, _piece: u32, _world: &mut World<()>) {
        if stream.is_over() {
            self.streams[stream.to as usize] = None;
        }
    }

    fn failed(&mut self, stream: &Stream, world: &mut World<()>) {
        self.streams[stream.to as usize] = None;
        self.connect(stream.to, world);
    }

    fn died(&mut self, node: u32) {
        self.streams[node as usize] = None;
    }

    fn noticed(&mut self, nodes: &[u32], world: &mut World<()>) {
        for node in nodes {
            self.remove(*node, world);
        }
    }
}
