//! What goes wrong or takes longer: deaths, and waits at busy links.

use super::fluid::Fluid;
use super::scenario::Scenario;
use crate::model::{Generator, Rng};

/// Sets the draw of the victims apart from all other randomness.
const VICTIMS: u64 = 0x6465_6174_6873;

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
        let mut nodes: Vec<u32> = (0..scenario.fleet.nodes).collect();
        let count = (nodes.len() * deaths.per_cent as usize).div_ceil(100);
        let mut rng = Generator::stream(seed, VICTIMS);
        for place in 0..count {
            let other = place + rng.below(nodes.len() - place);
            nodes.swap(place, other);
        }
        nodes.truncate(count);
        nodes.sort_unstable();
        let step = |after_ms: u64| Some((deaths.at_ms + after_ms) * 1_000_000 / step_ns);
        Some(Self {
            victims: nodes,
            dies: step(0),
            noticed: step(deaths.noticed_after_ms),
            replaced: step(deaths.replaced_after_ms),
        })
    }
}

/// How long a message waits at each end's links, in half steps: it grows while the link is busy and falls while it is not,
/// half as fast as time goes, so that no message overtakes an earlier one.
#[derive(Clone, Debug)]
pub(super) struct Queues {
    /// By end: uplink, downlink.
    levels: Vec<[u64; 2]>,
    most: u64,
    last: u64,
}

impl Queues {
    pub(super) fn new(scenario: &Scenario, ends: usize, step_ns: u64) -> Option<Self> {
        let most = 2 * scenario.network.queue_ms * 1_000_000 / step_ns;
        (most > 0).then(|| Self { levels: vec![[0; 2]; ends], most, last: 0 })
    }

    pub(super) fn step<S: Copy>(&mut self, now: u64, fluid: &Fluid<S>) {
        let passed = now - self.last;
        self.last = now;
        for (end, levels) in (0..).zip(&mut self.levels) {
            for (level, busy) in levels.iter_mut().zip(fluid.is_busy(end)) {
                let new = if busy { level.saturating_add(passed) } else { level.saturating_sub(passed) };
                *level = new.min(self.most);
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
    use crate::sim::fluid::Flow;

    #[test]
    fn a_busy_link_makes_messages_wait_and_none_overtakes_another() {
        let mut fluid = Fluid::new(&[10.0; 2], &[10.0; 2]);
        fluid.start(Flow { from: 0, to: 1, what: () }, 200.0);
        let mut queues = Queues { levels: vec![[0; 2]; 2], most: 16, last: 0 };
        let (mut longest, mut last) = (0, 0);
        for now in 1..60 {
            fluid.step(&mut Vec::new());
            queues.step(now, &fluid);
            let arrives = now + queues.steps(0, 1);
            assert!(arrives >= last, "step {now}");
            last = arrives;
            longest = longest.max(queues.steps(0, 1));
        }
        assert_eq!((longest, queues.steps(0, 1), queues.steps(1, 0)), (16, 0, 0));
    }
}
