//! How a new root spreads over the fleet, where the nodes begin when they hear of it. Whom a node tells and when, the node's own
//! decisions say (`mesh/proto`); here is who hears first, how long a hand-over takes, and what came of it.

use super::churn::draw_nodes;
use super::readers::Distribution;
use super::scenario::Scenario;
use crate::model::{Generator, Rng as _, mix};
use serde::Serialize;

/// Sets what is drawn here apart from all other randomness.
const ROOT: u64 = 0x726f_6f74;

/// Of a run: how a root spreads.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    seed: u64,
    handshake_ns: u64,
    /// Messages that handed it on.
    pub(super) messages: u64,
}

impl Spread {
    /// Nothing if nodes do not begin with a root; else who hears of it first, too.
    pub(super) fn new(scenario: &Scenario, seed: u64) -> Option<(Self, Vec<u32>)> {
        let news = scenario.arrival.as_ref()?.news.as_ref()?;
        let first = draw_nodes(scenario.fleet.nodes, news.nodes as usize, Generator::stream(seed, ROOT));
        let spread =
            Self { seed: mix(seed ^ ROOT), handshake_ns: news.handshake_ms * 1_000_000, messages: 0 };
        Some((spread, first))
    }

    /// Nanoseconds that one node needs to make a connection to another, beside the ways. It depends on nothing that others do.
    pub(super) fn handshake_ns(&self, now: u64, from: u32, to: u32) -> u64 {
        let ends = u64::from(from) << 32 | u64::from(to);
        let mut rng = Generator::new(mix(self.seed ^ mix(now) ^ mix(!ends)));
        rng.below(usize::try_from(self.handshake_ns).unwrap_or(usize::MAX).saturating_add(1)) as u64
    }
}

/// How a new root spread.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RootSpread {
    /// Nodes that heard of it.
    pub heard: u32,
    /// When they did, in seconds from when the first of them did.
    pub heard_s: Distribution,
    /// Messages that handed it on.
    pub messages: u64,
    /// The same for each node, on average.
    pub messages_each: f64,
}

impl RootSpread {
    /// From when each node heard of it, in seconds, and how many messages that took.
    pub(super) fn new(heard: Vec<f64>, nodes: u32, messages: u64) -> Self {
        Self {
            heard: u32::try_from(heard.len()).unwrap_or(u32::MAX),
            heard_s: Distribution::of(heard),
            messages,
            messages_each: messages as f64 / f64::from(nodes),
        }
    }
}
