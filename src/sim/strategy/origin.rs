//! Every node fetches everything from the stratum, as `docker pull` does from a registry.
//!
//! A pull fetches the layers of an image by one HTTP request each, three at once (`max-concurrent-downloads` of the Docker
//! daemon, whose documentation gives 3 as its default). Left out: the manifest, unpacking, and that layers differ in size. The
//! registry serves as many requests at once as `stratum.connections` says, the others wait in their order. A layer moves in
//! parts one after the other, which is of no consequence but for rounding.

use super::pieces::Layout;
use super::world::{Stream, World};
use super::{Setup, Strategy, seconds};
use crate::sim::scenario::Scenario;

/// How far all nodes are.
#[derive(Debug)]
pub(super) struct Origin {
    streams: u32,
    /// By node: the first layer that it did not ask for yet.
    next: Vec<u32>,
}

impl Origin {
    fn fetch_next(&mut self, node: u32, world: &mut World<()>) {
        let next = &mut self.next[node as usize];
        if *next < world.layout.layers() {
            let pieces = world.layout.layer(*next);
            *next += 1;
            world.open(node, world.stratum(), pieces);
        }
    }
}

impl Strategy for Origin {
    type Note = ();

    fn setup(scenario: &Scenario, layout: Layout) -> Setup {
        let all_bytes = f64::from(scenario.fleet.nodes) * scenario.content.bytes as f64;
        Setup { least_s: seconds(all_bytes, scenario.stratum.up_mbit_s), ..Setup::new(layout, false) }
    }

    fn new(scenario: &Scenario, world: &World<()>) -> Self {
        Self { streams: scenario.strategy.origin.streams, next: vec![0; world.nodes() as usize] }
    }

    fn begin(&mut self, node: u32, world: &mut World<()>) {
        for _ in 0..self.streams {
            self.fetch_next(node, world);
        }
    }

    fn told(&mut self, _from: u32, _to: u32, (): (), _world: &mut World<()>) {}

    fn received(&mut self, stream: &Stream, _piece: u32, world: &mut World<()>) {
        if stream.is_over() {
            self.fetch_next(stream.to, world);
        }
    }

    fn failed(&mut self, stream: &Stream, world: &mut World<()>) {
        world.open(stream.to, stream.from, stream.arrived..stream.end);
    }

    fn died(&mut self, node: u32) {
        self.next[node as usize] = 0;
    }
}
