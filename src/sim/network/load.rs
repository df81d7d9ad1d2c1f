//! A load on the network alone, to measure what a step costs: no machine decides anything.

use super::{Flow, Links, Traffic};
use crate::model::{Generator, Rng, mix};
use crate::sim::scenario::Scenario;

/// One of so many transfers comes from another cell of the region, if there is one, and one from anywhere.
const FROM_REGION: usize = 64;
const FROM_ANYWHERE: usize = 256;

/// The network of a scenario with as many transfers under way to each node as are asked for: one that ends makes place for
/// another, mostly from a neighbour in the cell.
#[derive(Debug)]
pub struct NetworkLoad {
    traffic: Traffic<()>,
    rng: Generator,
    nodes: u32,
    /// Nodes in a cell, and in a region.
    group: [u32; 2],
    bytes: u32,
    ended: Vec<Flow<()>>,
    transfers: u64,
    digest: u64,
}

impl NetworkLoad {
    /// With steps of `step_ns`. Each transfer carries a chunk; the first ones carry parts of one, so that they do not end together.
    pub fn new(scenario: &Scenario, step_ns: u64, each: u32, threads: usize) -> Self {
        let nodes = scenario.fleet.nodes;
        let links = Links::new(scenario, scenario.seed, step_ns);
        let mut load = Self {
            traffic: Traffic::new(scenario.network.model, links, threads),
            rng: Generator::new(scenario.seed),
            nodes,
            group: [nodes / scenario.cells(), nodes / scenario.fleet.regions].map(|size| size.max(2)),
            bytes: scenario.chunk_bytes(),
            ended: Vec::new(),
            transfers: 0,
            digest: 0,
        };
        for _ in 0..each {
            for to in 0..nodes {
                let part = 1 + load.rng.below(load.bytes as usize);
                load.start(to, u32::try_from(part).unwrap_or(u32::MAX));
            }
        }
        load
    }

    fn start(&mut self, to: u32, bytes: u32) {
        let draw = self.rng.below(FROM_ANYWHERE);
        let size = match draw {
            0 => self.nodes,
            _ if draw < FROM_ANYWHERE / FROM_REGION => self.group[1],
            _ => self.group[0],
        };
        let size = size.min(self.nodes);
        let first = (to / size * size).min(self.nodes - size);
        let other = self.rng.below(size.saturating_sub(1).max(1) as usize);
        let from = first + (to - first + 1 + u32::try_from(other).unwrap_or(0)) % size;
        self.traffic.start(Flow { from, to, what: () }, bytes);
    }

    /// Moves everything by one step and begins as many transfers as ended.
    pub fn step(&mut self) {
        let mut ended = std::mem::take(&mut self.ended);
        self.traffic.step(&mut ended);
        for flow in ended.drain(..) {
            self.transfers += 1;
            self.digest = mix(self.digest ^ u64::from(flow.from) << 32 ^ u64::from(flow.to));
            self.start(flow.to, self.bytes);
        }
        self.ended = ended;
    }

    /// What is under way.
    #[cfg(test)]
    pub(super) fn traffic(&self) -> &Traffic<()> {
        &self.traffic
    }

    /// Transfers that ended so far.
    pub fn transfers(&self) -> u64 {
        self.transfers
    }

    /// Which these were, and in which order.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}
