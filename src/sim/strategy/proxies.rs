//! Every node fetches each chunk from a proxy of its cell, which fetches it from the stratum once: CernVM-FS behind Squid.
//!
//! The documentation of CernVM-FS recommends at least two Squids a site, says that one serves a couple of hundred nodes well,
//! and that `collapsed_forwarding` is important where many jobs begin together: simultaneous requests for the same object
//! become one to the stratum (chapters "Setting up a Local Squid Proxy" and "Client Configuration"; Squid's own reference says
//! that those that wait get the answer to the first). A node uses one proxy of its group, drawn by the seed, and another one
//! when it hears nothing. All nodes want the chunks in the same order, a few at once.
//!
//! Left out: misses for lack of memory, disks and CPU of the proxy, requests without a proxy (`DIRECT`), and that Squid passes
//! on an answer while it still comes in: here a chunk is passed on when it is whole. A proxy sends a bounded number of chunks
//! at once; that many share its link, and the others wait in their order, where Squid would let all share it: the proxy is as
//! busy, and all nodes go on alike either way.

use super::pieces::{Held, Layout};
use super::world::{Stream, World};
use super::{Setup, Strategy, seconds};
use crate::model::Rng as _;
use crate::sim::network::Servers;
use crate::sim::scenario::Scenario;

/// How far all nodes are, and what proxies fetch.
#[derive(Debug)]
pub(super) struct Proxies {
    per_cell: u32,
    streams: u32,
    /// By node: the first chunk that it did not ask for yet.
    next: Vec<u32>,
    /// By node: which proxy of its cell it uses, once it has begun.
    used: Vec<Option<u32>>,
    /// What proxies asked the stratum for.
    asked: Held,
}

impl Proxies {
    /// The proxy that a node uses.
    fn proxy(&mut self, node: u32, world: &mut World<()>) -> u32 {
        let number = match self.used[node as usize] {
            Some(number) => number,
            None => {
                let drawn = world.rng(node).below(self.per_cell as usize);
                u32::try_from(drawn).unwrap_or(0)
            }
        };
        self.used[node as usize] = Some(number);
        world.servers().start + world.cell(node) * self.per_cell + number
    }

    fn fetch_next(&mut self, node: u32, world: &mut World<()>) {
        let next = self.next[node as usize];
        if next < world.layout.pieces() {
            self.next[node as usize] += 1;
            let proxy = self.proxy(node, world);
            world.open(node, proxy, next..next + 1);
        }
    }
}

impl Strategy for Proxies {
    type Note = ();

    fn setup(scenario: &Scenario, layout: Layout) -> Setup {
        let proxies = &scenario.strategy.proxies;
        let cells = 0..scenario.cells();
        let servers = Servers {
            name: ["proxy", "proxies"],
            cells: cells.flat_map(|cell| std::iter::repeat_n(cell, proxies.per_cell as usize)).collect(),
            mbit_s: proxies.mbit_s.unwrap_or(scenario.fleet.up_mbit_s),
        };
        let copies = f64::from(scenario.fleet.nodes) / servers.cells.len() as f64;
        Setup {
            least_s: seconds(copies * scenario.content.bytes as f64, servers.mbit_s),
            servers,
            cache: proxies.cache,
            slots: [usize::MAX, proxies.connections as usize],
            ..Setup::new(layout, true)
        }
    }

    fn new(scenario: &Scenario, world: &World<()>) -> Self {
        let proxies = &scenario.strategy.proxies;
        let nodes = world.nodes() as usize;
        Self {
            per_cell: proxies.per_cell,
            streams: proxies.streams,
            next: vec![0; nodes],
            used: vec![None; nodes],
            asked: Held::new(world.ends() - nodes, world.layout.pieces()),
        }
    }

    fn begin(&mut self, node: u32, world: &mut World<()>) {
        for _ in 0..self.streams {
            self.fetch_next(node, world);
        }
    }

    fn told(&mut self, _from: u32, _to: u32, (): (), _world: &mut World<()>) {}

    fn received(&mut self, stream: &Stream, _piece: u32, world: &mut World<()>) {
        if !world.is_server(stream.to) {
            self.fetch_next(stream.to, world);
        }
    }

    fn failed(&mut self, stream: &Stream, world: &mut World<()>) {
        let mut from = stream.from;
        if !world.is_server(stream.to)
            && let Some(used) = &mut self.used[stream.to as usize]
        {
            *used = (*used + 1) % self.per_cell;
            from = self.proxy(stream.to, world);
        }
        world.open(stream.to, from, stream.arrived..stream.end);
    }

    fn lacks(&mut self, proxy: u32, piece: u32, world: &mut World<()>) {
        if self.asked.set(proxy - world.nodes(), piece) {
            world.open(proxy, world.stratum(), piece..piece + 1);
        }
    }

    fn died(&mut self, node: u32) {
        self.next[node as usize] = 0;
        self.used[node as usize] = None;
    }
}
