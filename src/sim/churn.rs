//! What goes wrong or takes longer: deaths, a stratum that does not answer some, and waits at busy links.

use super::network::Traffic;
use super::scenario::Scenario;
use crate::model::{Generator, Rng};
use std::ops::Range;

/// Sets the draw of the victims apart from all other randomness.
const VICTIMS: u64 = 0x6465_6174_6873;
/// The same for the draw of those who are not answered.
const STALLED: u64 = 0x7374_616c_6c73;

/// Who dies, and the steps of what is still to come.
#[derive(Clone, Debug)]
pub(super) struct Churn {
    pub(super) victims: Vec<u32>,
    pub(super) dies: Option<u64>,
    pub(super) noticed: Option<u64>,
    pub(super) replaced: Option<u64>,
}

impl Churn {
    pub(super) fn new(scenario: &Scenario, seed: u64, step_ns: u64) -> Option<Self> {
        let deaths = scenario.deaths.as_ref()?;
        let nodes = victims(scenario.fleet.nodes, deaths.per_cent, seed);
        let step = |after_ms: u64| Some((deaths.at_ms + after_ms) * 1_000_000 / step_ns);
        Some(Self {
            victims: nodes,
            dies: step(0),
            noticed: step(deaths.noticed_after_ms),
            replaced: step(deaths.replaced_after_ms),
        })
    }
}

/// Who dies in a fleet of `nodes` of which so many of 100 do.
pub(super) fn victims(nodes: u32, per_cent: u32, seed: u64) -> Vec<u32> {
    draw(nodes, per_cent, Generator::stream(seed, VICTIMS))
}

/// So many of 100 nodes, at least one, in ascending order.
pub(super) fn draw(nodes: u32, per_cent: u32, mut rng: Generator) -> Vec<u32> {
    let mut nodes: Vec<u32> = (0..nodes).collect();
    let count = (nodes.len() * per_cent as usize).div_ceil(100);
    for place in 0..count {
        let other = place + rng.below(nodes.len() - place);
        nodes.swap(place, other);
    }
    nodes.truncate(count);
    nodes.sort_unstable();
    nodes
}

/// Whom the stratum does not answer, in which steps, and what they ask for meanwhile: `R` says what a request is for.
#[derive(Clone, Debug)]
pub(super) struct Stall<R> {
    victims: Vec<u32>,
    span: Range<u64>,
    held: Vec<(u32, R)>,
}

impl<R: Copy + PartialEq> Stall<R> {
    pub(super) fn new(scenario: &Scenario, seed: u64, step_ns: u64) -> Option<Self> {
        let stalls = scenario.stalls.as_ref()?;
        let victims = draw(scenario.fleet.nodes, stalls.per_cent, Generator::stream(seed, STALLED));
        let step = |at_ms: u64| at_ms * 1_000_000 / step_ns;
        let span = step(stalls.at_ms)..step(stalls.at_ms + stalls.for_ms);
        Some(Self { victims, span, held: Vec::new() })
    }

    /// Whether this request waits here.
    pub(super) fn holds(&mut self, now: u64, from: u32, request: R) -> bool {
        let holds = self.span.contains(&now) && self.victims.binary_search(&from).is_ok();
        if holds {
            self.held.push((from, request));
        }
        holds
    }

    /// A request is called off.
    pub(super) fn drop(&mut self, from: u32, request: R) {
        self.held.retain(|held| *held != (from, request));
    }

    /// What is answered after all, once it is over.
    pub(super) fn over(&mut self, now: u64) -> Vec<(u32, R)> {
        if now < self.span.end { Vec::new() } else { std::mem::take(&mut self.held) }
    }
}

/// How long a message waits at each end's links, in half steps: it grows while the link is busy and falls while it is not,
/// half as fast as time goes, so that no message overtakes an earlier one. It grows no further than until the link has carried all chunks that
/// are under way on it: what was not sent stands in no queue.
#[derive(Clone, Debug)]
pub(super) struct Queues {
    /// By end: uplink, downlink.
    levels: Vec<[u64; 2]>,
    /// By end: transfers on its uplink and on its downlink.
    passing: Vec<[u32; 2]>,
    chunk_bytes: f64,
    most: u64,
    last: u64,
}

impl Queues {
    pub(super) fn new(scenario: &Scenario, ends: usize, step_ns: u64) -> Option<Self> {
        let most = 2 * scenario.network.queue_ms * 1_000_000 / step_ns;
        let chunk_bytes = f64::from(scenario.chunk_bytes());
        let (levels, passing) = (vec![[0; 2]; ends], vec![[0; 2]; ends]);
        (most > 0).then(|| Self { levels, passing, chunk_bytes, most, last: 0 })
    }

    pub(super) fn step<S: Copy>(&mut self, now: u64, traffic: &Traffic<S>) {
        let passed = now - self.last;
        self.last = now;
        self.passing.fill([0; 2]);
        for (from, to) in traffic.ends() {
            self.passing[from as usize][0] += 1;
            self.passing[to as usize][1] += 1;
        }
        for (end, (levels, passing)) in (0..).zip(self.levels.iter_mut().zip(&self.passing)) {
            let rates = traffic.rates(end);
            for (way, (level, busy)) in levels.iter_mut().zip(traffic.is_busy(end)).enumerate() {
                let all = 2.0 * f64::from(passing[way]) * self.chunk_bytes / rates[way];
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "positive, and it saturates"
                )]
                let most = self.most.min(all as u64);
                *level = if busy && *level < most {
                    level.saturating_add(passed).min(most)
                } else if busy {
                    level.saturating_sub(passed).max(most)
                } else {
                    level.saturating_sub(passed)
                };
            }
        }
    }

    /// The waits on the way from one end to another, in steps.
    pub(super) fn steps(&self, from: u32, to: u32) -> u64 {
        (self.levels[from as usize][0] + self.levels[to as usize][1]) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::network::{Flow, Links, Model};
    use crate::sim::scenario::Scenario;

    #[test]
    fn a_busy_link_makes_messages_wait_and_none_overtakes_another() {
        let text = include_str!("../../simulations/scenarios/rollout-32.toml");
        // 20 Mbit/s are 10 bytes in 4 µs.
        let links = Links::new(&Scenario::parse(text).unwrap(), 1, 4_000);
        let mut traffic = Traffic::new(Model::Fluid, links, 1);
        traffic.start(Flow { from: 0, to: 1, what: () }, 200);
        let mut queues = Queues {
            levels: vec![[0; 2]; 2],
            passing: vec![[0; 2]; 2],
            chunk_bytes: 200.0,
            most: 16,
            last: 0,
        };
        let (mut longest, mut last) = (0, 0);
        for now in 1..60 {
            traffic.step(&mut Vec::new());
            queues.step(now, &traffic);
            let arrives = now + queues.steps(0, 1);
            assert!(arrives >= last, "step {now}");
            last = arrives;
            longest = longest.max(queues.steps(0, 1));
        }
        assert_eq!((longest, queues.steps(0, 1), queues.steps(1, 0)), (16, 0, 0));
    }

    #[test]
    fn nobody_waits_for_longer_than_all_that_is_under_way_takes() {
        let text = include_str!("../../simulations/scenarios/rollout-32.toml");
        let links = Links::new(&Scenario::parse(text).unwrap(), 1, 4_000);
        let mut traffic = Traffic::new(Model::Fluid, links, 1);
        // 10 bytes a step: one transfer after the other of 6 steps each, and none waits in the sender's queue.
        let mut queues = Queues {
            levels: vec![[0; 2]; 2],
            passing: vec![[0; 2]; 2],
            chunk_bytes: 60.0,
            most: 2_000,
            last: 0,
        };
        let (mut ended, mut longest) = (Vec::new(), 0);
        traffic.start(Flow { from: 0, to: 1, what: () }, 60);
        for now in 1..200 {
            traffic.step(&mut ended);
            if ended.pop().is_some() {
                traffic.start(Flow { from: 0, to: 1, what: () }, 60);
            }
            queues.step(now, &traffic);
            longest = longest.max(queues.steps(0, 1));
        }
        assert_eq!(longest, 12, "6 steps at either end");
    }
}
