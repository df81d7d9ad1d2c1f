//! Who begins when: all at once, a few first, in waves, or a bounded number at a time.

use super::scenario::{Order, Rolling, Scenario, Waves};
use crate::model::{Generator, Rng};
use std::collections::VecDeque;

/// Sets the order in which nodes begin apart from all other randomness.
const ORDER: u64 = 0x006f_7264_6572;
/// The step of a node of which it is not known yet when it begins.
const UNKNOWN: u64 = u64::MAX;

/// A node, and the step in which it begins.
pub(super) type Start = (u64, u32);

/// When each node begins, of those that do not all begin at once.
#[derive(Clone, Debug)]
pub(super) struct Arrivals {
    /// By node.
    starts: Vec<u64>,
    /// By node: whether it has ended once. Who dies later and is replaced does not count twice.
    ended: Vec<bool>,
    /// Who begins later, in this order.
    waiting: VecDeque<u32>,
    /// Canaries that have not ended.
    canaries: usize,
    /// Steps from the end of the last canary to the others.
    pause: u64,
    /// Nodes of a wave, and steps from one to the next.
    waves: Option<(usize, u64)>,
    /// Nodes under way at once.
    rolling: Option<usize>,
    /// Nobody begins from here on: all give up then.
    deadline: u64,
}

impl Arrivals {
    /// `None` if all begin at once; else who begins in the first place as well.
    pub(super) fn new(scenario: &Scenario, seed: u64, step_ns: u64) -> Option<(Self, Vec<Start>)> {
        let arrival = scenario.arrival.as_ref()?;
        let nodes = scenario.fleet.nodes;
        let steps = |ms: u64| ms * 1_000_000 / step_ns;
        let share = |per_cent: u32| (nodes as usize * per_cent as usize).div_ceil(100);
        let mut arrivals = Self {
            starts: vec![UNKNOWN; nodes as usize],
            ended: vec![false; nodes as usize],
            waiting: order(nodes, arrival.order, Generator::stream(seed, ORDER)).into(),
            canaries: arrival.canary.as_ref().map_or(0, |canary| share(canary.per_cent)),
            pause: arrival.canary.as_ref().map_or(0, |canary| steps(canary.pause_ms)),
            waves: arrival
                .waves
                .as_ref()
                .map(|Waves { per_cent, every_ms }| (share(*per_cent), steps(*every_ms))),
            rolling: arrival.rolling.as_ref().map(|Rolling { nodes }| *nodes as usize),
            deadline: steps(u64::from(scenario.content.deadline_s) * 1_000),
        };
        let first = match arrivals.canaries {
            // Who hears first is told apart: they begin as all others do, when they have heard.
            _ if arrival.news.is_some() => Vec::new(),
            0 => arrivals.rest(1),
            canaries => arrivals.begin(canaries, 1),
        };
        Some((arrivals, first))
    }

    /// The step in which a node begins, if it is known.
    pub(super) fn start(&self, node: u32) -> Option<u64> {
        self.starts.get(node as usize).copied().filter(|start| *start != UNKNOWN)
    }

    /// A node hears of the new root: when it begins therefore, unless it has.
    pub(super) fn heard(&mut self, node: u32, now: u64) -> Vec<Start> {
        let start = now + 1;
        if self.starts[node as usize] != UNKNOWN || start >= self.deadline {
            return Vec::new();
        }
        self.starts[node as usize] = start;
        vec![(start, node)]
    }

    /// A node has everything, or gave up what it has not: who begins therefore.
    pub(super) fn ended(&mut self, node: u32, now: u64) -> Vec<Start> {
        if std::mem::replace(&mut self.ended[node as usize], true) {
            return Vec::new();
        }
        if self.canaries > 0 {
            // Only canaries have begun so far.
            self.canaries -= 1;
            return if self.canaries == 0 { self.rest(now + 1 + self.pause) } else { Vec::new() };
        }
        if self.rolling.is_some() { self.begin(1, now + 1) } else { Vec::new() }
    }

    /// All but the canaries, from this step on.
    fn rest(&mut self, from: u64) -> Vec<Start> {
        match (self.waves, self.rolling) {
            (Some((size, every)), _) => {
                let mut starts = Vec::with_capacity(self.waiting.len());
                let mut at = from;
                while !self.waiting.is_empty() && at < self.deadline {
                    starts.extend(self.begin(size, at));
                    at += every;
                }
                starts
            }
            (None, Some(nodes)) => self.begin(nodes, from),
            (None, None) => self.begin(self.waiting.len(), from),
        }
    }

    /// The next few, in this step.
    fn begin(&mut self, count: usize, at: u64) -> Vec<Start> {
        if at >= self.deadline {
            return Vec::new();
        }
        let next: Vec<u32> = self.waiting.drain(..count.min(self.waiting.len())).collect();
        for node in &next {
            self.starts[*node as usize] = at;
        }
        next.into_iter().map(|node| (at, node)).collect()
    }
}

fn order(nodes: u32, order: Order, mut rng: Generator) -> Vec<u32> {
    let mut all: Vec<u32> = (0..nodes).collect();
    if order == Order::Drawn {
        // Fisher and Yates.
        for place in 0..all.len() {
            let other = place + rng.below(all.len() - place);
            all.swap(place, other);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::tests::SMALL;

    /// Of 120 nodes, in steps of a millisecond.
    fn arrivals(text: &str) -> (Arrivals, Vec<Start>) {
        let scenario = Scenario::parse(&format!("{SMALL}{text}")).unwrap();
        Arrivals::new(&scenario, 7, 1_000_000).unwrap()
    }

    #[test]
    fn without_arrival_there_is_nothing_to_keep() {
        assert!(Arrivals::new(&Scenario::parse(SMALL).unwrap(), 7, 1_000_000).is_none());
    }

    #[test]
    fn waves_begin_one_after_the_other_and_each_node_once() {
        let (arrivals, starts) = arrivals("[arrival.waves]\nper_cent = 30\nevery_ms = 500\n");
        let size = |at: u64| starts.iter().filter(|start| start.0 == at).count();
        assert_eq!([1, 501, 1_001, 1_501].map(size), [36, 36, 36, 12]);
        let mut nodes: Vec<u32> = starts.iter().map(|start| start.1).collect();
        assert!(!nodes.is_sorted(), "drawn");
        nodes.sort_unstable();
        assert_eq!(nodes, (0..120).collect::<Vec<_>>());
        assert_eq!(arrivals.start(starts[40].1), Some(501));
    }

    #[test]
    fn by_cell_the_first_wave_is_the_first_cell() {
        let text = "[arrival]\norder = 'by-cell'\n[arrival.waves]\nper_cent = 30\nevery_ms = 500\n";
        let (_, starts) = arrivals(text);
        assert_eq!(starts[..36].iter().map(|start| start.1).collect::<Vec<_>>(), (0..36).collect::<Vec<_>>());
    }

    #[test]
    fn the_others_wait_for_the_last_canary_and_the_pause_after_it() {
        let (mut arrivals, first) = arrivals("[arrival.canary]\nper_cent = 2\npause_ms = 100\n");
        let canaries: Vec<u32> = first.iter().map(|start| start.1).collect();
        assert_eq!((canaries.len(), first[0].0), (3, 1));
        assert_eq!(arrivals.ended(canaries[0], 50), []);
        assert_eq!(arrivals.ended(canaries[0], 60), [], "a replaced one counts once");
        assert_eq!(arrivals.ended(canaries[2], 70), []);
        let rest = arrivals.ended(canaries[1], 200);
        assert_eq!((rest.len(), rest[0].0, rest[116].0), (117, 301, 301));
        assert_eq!(arrivals.ended(rest[0].1, 400), []);
    }

    #[test]
    fn rolling_never_has_more_under_way_and_reaches_everybody() {
        let (mut arrivals, first) = arrivals("[arrival.rolling]\nnodes = 7\n");
        let mut under_way: VecDeque<u32> = first.iter().map(|start| start.1).collect();
        let (mut now, mut begun) = (1, under_way.len());
        while let Some(node) = under_way.pop_front() {
            assert!(under_way.len() < 7);
            now += 10;
            let next = arrivals.ended(node, now);
            assert!(next.iter().all(|start| start.0 == now + 1));
            begun += next.len();
            under_way.extend(next.iter().map(|start| start.1));
            assert_eq!(arrivals.ended(node, now), [], "a replaced one counts once");
        }
        assert_eq!(begun, 120);
    }

    #[test]
    fn nobody_begins_once_all_give_up() {
        let (mut arrivals, first) = arrivals("[arrival.rolling]\nnodes = 7\n");
        assert_eq!(arrivals.ended(first[0].1, 60_000), []);
        assert_eq!(arrivals.waiting.len(), 113);
    }
}
