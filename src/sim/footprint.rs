//! What a run takes in memory, by part: where the bytes of a million nodes are.

use super::engine::{Engine, Progress};
use super::report::{Report, summarise};
use super::scenario::Scenario;
use crate::mesh::proto::PartBytes;

/// Looks at a run: when a quarter, a half and three quarters of the content have moved.
const LOOKS: u64 = 4;

/// Bytes by part, of all nodes together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint {
    nodes: usize,
    parts: Vec<PartBytes>,
}

impl Footprint {
    pub(super) fn of_nodes(nodes: usize) -> Self {
        Self { nodes, parts: Vec::new() }
    }

    pub(super) fn add(&mut self, (name, bytes): PartBytes) {
        match self.parts.iter_mut().find(|part| part.0 == name) {
            Some(part) => part.1 += bytes,
            None => self.parts.push((name, bytes)),
        }
    }

    /// All of it.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.1).sum()
    }

    /// Each part with its bytes a node.
    pub fn a_node(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        let nodes = self.nodes.max(1) as f64;
        self.parts.iter().map(move |(name, bytes)| (*name, *bytes as f64 / nodes))
    }
}

/// Runs a scenario like [`super::simulate`] and looks at its memory now and then. The largest of the looks is returned.
pub fn measure(
    scenario: &Scenario,
    seed: Option<u64>,
    threads: usize,
    watch: &mut dyn FnMut(Progress),
) -> (Report, Footprint) {
    let seed = seed.unwrap_or(scenario.seed);
    let mut engine = Engine::new(scenario, seed, threads);
    let (mut largest, mut looks) = (engine.footprint(), 0);
    engine.run_watched(&mut |engine| {
        let progress = engine.progress();
        watch(progress);
        let look = (progress.transfers * LOOKS / progress.wanted.max(1)).min(LOOKS - 1);
        if look > looks {
            looks = look;
            let now = engine.footprint();
            if now.bytes() > largest.bytes() {
                largest = now;
            }
        }
    });
    (summarise(scenario, seed, &engine), largest)
}
