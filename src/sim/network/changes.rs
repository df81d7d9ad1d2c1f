//! Links that become slower, faster or are cut during a run.

use super::Traffic;
use super::keys::Whose;
use super::links::{Links, Place};
use crate::model::Generator;
use crate::sim::churn::draw;
use crate::sim::scenario::Scenario;

/// Sets the draws of the nodes whose links change apart from all other randomness.
const CHANGED: u64 = 0x6368_616e_6765;

#[derive(Debug)]
struct Planned {
    place: Place,
    /// In ascending order.
    links: Vec<u32>,
    factor: f64,
    holds: bool,
}

/// All changes of a scenario, and which of them hold.
#[derive(Debug)]
pub(in crate::sim) struct Changes {
    planned: Vec<Planned>,
    /// What is to come, the next one last: the step, the change, and whether it begins.
    due: Vec<(u64, usize, bool)>,
    /// Changes that hold and let nothing pass.
    cuts: Vec<usize>,
}

impl Changes {
    /// Those of a scenario, in steps of `step_ns`.
    pub(in crate::sim) fn new(scenario: &Scenario, seed: u64, step_ns: u64, links: &Links) -> Self {
        let (mut planned, mut due) = (Vec::new(), Vec::new());
        for (number, change) in scenario.network.change.iter().enumerate() {
            let nodes = change.per_cent.filter(|_| change.of == Whose::Nodes).map(|per_cent| {
                draw(scenario.fleet.nodes, per_cent, Generator::stream(seed, CHANGED ^ (number as u64) << 48))
            });
            let place = Place::new(change.of, change.number, nodes.unwrap_or_default());
            let mut own = links.of(&place);
            own.sort_unstable();
            planned.push(Planned { place, links: own, factor: change.factor, holds: false });
            let step = |at_ms: u64| at_ms * 1_000_000 / step_ns;
            due.push((step(change.at_ms), number, true));
            due.extend(change.for_ms.map(|span| (step(change.at_ms + span), number, false)));
        }
        due.sort_unstable();
        due.reverse();
        Self { planned, due, cuts: Vec::new() }
    }

    /// Lets changes begin and end whose time has come. Returns whether there were any.
    pub(in crate::sim) fn apply<S: Copy>(&mut self, now: u64, traffic: &mut Traffic<S>) -> bool {
        let mut any = false;
        while let Some((_, number, begins)) = self.due.pop_if(|due| due.0 <= now) {
            any = true;
            self.planned[number].holds = begins;
            for link in &self.planned[number].links {
                let of_link = |planned: &&Planned| planned.holds && planned.links.binary_search(link).is_ok();
                let factor = self.planned.iter().filter(of_link).map(|planned| planned.factor).product();
                traffic.scale(*link, factor);
            }
        }
        if any {
            let cuts =
                self.planned.iter().enumerate().filter(|(_, planned)| planned.holds && planned.factor == 0.0);
            self.cuts = cuts.map(|(number, _)| number).collect();
        }
        any
    }

    /// Whether a link on the way from one end to another is cut.
    pub(in crate::sim) fn cut(&self, links: &Links, from: u32, to: u32) -> bool {
        self.cuts.iter().any(|number| links.passes(&self.planned[*number].place, from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::network::testing::scenario;
    use crate::sim::network::{Flow, Model};

    const CUT: &str = "[[network.change]]\nat_ms = 10\nfor_ms = 20\nof = 'region'\nnumber = 1\nfactor = 0\n";
    const SLOW: &str = "[[network.change]]\nat_ms = 20\nfor_ms = 20\nof = 'stratum'\nfactor = 0.5\n\
                        [[network.change]]\nat_ms = 30\nof = 'stratum'\nfactor = 0.5\n";

    fn set_up(changes: &str, model: Model) -> (Changes, Traffic<u32>) {
        let scenario = scenario(20, [2, 1, 1], changes, "");
        let links = Links::new(&scenario, 1, 1_000_000);
        (Changes::new(&scenario, 1, 1_000_000, &links), Traffic::new(model, links, 1))
    }

    #[test]
    fn what_lies_on_both_sides_of_a_cut_waits_until_it_ends_and_the_rest_goes_on() {
        for model in [Model::Fluid, Model::Exact, Model::Fifo] {
            let (mut changes, mut traffic) = set_up(CUT, model);
            // 1 000 Mbit/s are 125 000 bytes a step: 16 steps alone.
            for (from, to) in [(0, 1), (2, 15), (16, 17), (18, 3)] {
                traffic.start(Flow { from, to, what: from }, 2_000_000);
            }
            let (mut ends, mut ended) = ([0; 20], Vec::new());
            for now in 1..60 {
                changes.apply(now, &mut traffic);
                let cut = |from, to| changes.cut(traffic.links(), from, to);
                let holds = (10..30).contains(&now);
                assert_eq!([cut(2, 15), cut(15, 2), cut(20, 15)], [holds; 3], "{now}");
                assert!(!cut(2, 3) && !cut(15, 16) && !cut(20, 3));
                traffic.step(&mut ended);
                for flow in ended.drain(..) {
                    ends[flow.what as usize] = now;
                }
            }
            assert_eq!([ends[0], ends[16]], [16, 16], "{model:?}");
            // The shared link into the receiver's region is cut in one case and the one out of it in the other. A chunk in FIFO is
            // over for a link that is done with it, which the wide links of regions are before the cut.
            let late = if model == Model::Fifo { 16 } else { 36 };
            assert_eq!([ends[2], ends[18]], [late, late], "{model:?}");
        }
    }

    #[test]
    fn changes_of_the_same_link_hold_together_and_end_one_by_one() {
        let (mut changes, mut traffic) = set_up(SLOW, Model::Exact);
        let stratum = traffic.links().stratum();
        for to in 0..8 {
            traffic.start(Flow { from: stratum, to, what: to }, 1_000_000_000);
        }
        let (mut carried, mut before) = (Vec::new(), 0.0);
        for now in 1..60 {
            changes.apply(now, &mut traffic);
            traffic.step(&mut Vec::new());
            let bytes = traffic.usage(now)[0].gigabytes * 1e9;
            carried.push((bytes - before).round());
            before = bytes;
        }
        // 4 000 Mbit/s, from 20 on half of it, from 30 on a quarter, from 40 on half again.
        assert_eq!(
            [1, 19, 20, 29, 30, 39, 40, 58].map(|now| carried[now - 1]),
            [500_000.0, 500_000.0, 250_000.0, 250_000.0, 125_000.0, 125_000.0, 250_000.0, 250_000.0]
        );
    }

    #[test]
    fn nodes_that_slow_down_are_drawn_by_the_seed() {
        let change = "[[network.change]]\nat_ms = 1\nof = 'nodes'\nper_cent = 10\nfactor = 0\n";
        let scenario = scenario(20, [2, 1, 1], change, "");
        let links = Links::new(&scenario, 1, 1_000_000);
        let of_seed = |seed: u64| Changes::new(&scenario, seed, 1_000_000, &links).planned.remove(0).place;
        let all: Vec<Place> = (0..9).map(of_seed).collect();
        assert!(all.iter().all(|place| matches!(place, Place::Nodes(nodes) if nodes.len() == 2)));
        assert!(all[1..].iter().any(|place| *place != all[0]) && of_seed(0) == all[0]);
    }
}
