//! What goes wrong or takes longer: deaths, a stratum that does not answer some, and waits at busy links.

use super::scenario::{Leaving, Scenario};
use crate::model::{Generator, Rng};
use std::collections::BTreeMap;
use std::ops::Range;

/// Sets the draw of the victims apart from all other randomness.
const VICTIMS: u64 = 0x6465_6174_6873;
/// The same for when each node leaves.
const LEAVING: u64 = 0x6c65_6176_696e;
/// The same for the draw of those who are not answered.
const STALLED: u64 = 0x7374_616c_6c73;

/// What becomes of some nodes at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// They die: nothing reaches them, and who asks them hears nothing.
    Dies,
    /// The others notice, if all do at once.
    Noticed,
    /// Empty ones of the same number take their places.
    Replaced,
}

/// How many steps after a death it is noticed, over how many more each notices it by itself, and when after the death another is in the place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans {
    pub(super) noticed: u64,
    pub(super) within: u64,
    pub(super) replaced: u64,
}

/// Nodes that die, and what follows when.
#[derive(Clone, Debug)]
struct Deaths {
    nodes: Vec<u32>,
    spans: Spans,
}

/// Who dies when, of those that the scenario lets die together and of those that leave one by one.
#[derive(Clone, Debug)]
pub(super) struct Churn {
    /// Deaths to come, by step and in the order of the scenario.
    deaths: BTreeMap<(u64, usize), Deaths>,
    /// Of those who died, what is to come, by step and in the order of their deaths.
    fates: BTreeMap<(u64, usize), (Fate, Vec<u32>)>,
    /// By node: whether it is dead and not replaced.
    gone: Vec<bool>,
    /// Nodes that died.
    died: u32,
    /// What follows when after the last deaths.
    spans: Spans,
    /// Lists of fates so far.
    planned: usize,
    /// The last step at which whoever lets time pass was told to stop.
    stopped: Option<u64>,
}

impl Churn {
    pub(super) fn new(scenario: &Scenario, seed: u64, step_ns: u64) -> Option<Self> {
        if scenario.deaths.is_empty() && scenario.churn.is_none() {
            return None;
        }
        let nodes = scenario.fleet.nodes;
        let steps = |ms: u64| ms * 1_000_000 / step_ns;
        let mut all = BTreeMap::new();
        for (number, deaths) in scenario.deaths.iter().enumerate() {
            let [noticed, within, replaced] =
                [deaths.noticed_after_ms, deaths.noticed_within_ms, deaths.replaced_after_ms].map(steps);
            let spans = Spans { noticed, within, replaced };
            let dead = Deaths { nodes: victims(nodes, deaths.per_cent, seed, number), spans };
            all.insert((steps(deaths.at_ms), number), dead);
        }
        if let Some(leaving) = &scenario.churn {
            let [noticed, within, replaced] =
                [leaving.noticed_after_ms, leaving.noticed_within_ms, leaving.replaced_after_ms].map(steps);
            let spans = Spans { noticed, within, replaced };
            for node in 0..nodes {
                for ms in departures(leaving, Generator::stream(seed, LEAVING ^ (u64::from(node) + 1) << 24))
                {
                    let key = (steps(ms), scenario.deaths.len());
                    let none = || Deaths { nodes: Vec::new(), spans };
                    all.entry(key).or_insert_with(none).nodes.push(node);
                }
            }
        }
        Some(Self {
            deaths: all,
            fates: BTreeMap::new(),
            gone: vec![false; nodes as usize],
            died: 0,
            spans: Spans::default(),
            planned: 0,
            stopped: None,
        })
    }

    /// What comes next of all that is due: some nodes, in ascending order, and what becomes of them.
    pub(super) fn next(&mut self, now: u64) -> Option<(Fate, Vec<u32>)> {
        loop {
            let died = self.deaths.first_key_value().map(|((step, _), _)| *step);
            let fate = self.fates.first_key_value().map(|((step, _), _)| *step);
            let first = died.into_iter().chain(fate).min().filter(|step| *step <= now)?;
            // Who is replaced in the same step as others die may be among them.
            if fate == Some(first) {
                let (_, (fate, nodes)) = self.fates.pop_first()?;
                if fate == Fate::Replaced {
                    nodes.iter().for_each(|node| self.gone[*node as usize] = false);
                }
                return Some((fate, nodes));
            }
            let (_, Deaths { mut nodes, spans }) = self.deaths.pop_first()?;
            // Who is dead cannot die.
            nodes.retain(|node| !self.gone[*node as usize]);
            // Twice in one step is once.
            nodes.dedup();
            if nodes.is_empty() {
                continue;
            }
            nodes.iter().for_each(|node| self.gone[*node as usize] = true);
            self.died += u32::try_from(nodes.len()).unwrap_or(0);
            self.spans = spans;
            // Who waits for all to notice at once does so before the replacement.
            let noticed = spans.noticed.min(spans.replaced.saturating_sub(1));
            for (fate, after) in [(Fate::Noticed, noticed), (Fate::Replaced, spans.replaced)] {
                self.fates.insert((first + after, self.planned), (fate, nodes.clone()));
                self.planned += 1;
            }
            return Some((Fate::Dies, nodes));
        }
    }

    /// The step of what comes next, once for each: idle time must not leave it out.
    pub(super) fn stop(&mut self) -> Option<u64> {
        let died = self.deaths.first_key_value().map(|((step, _), _)| *step);
        let fate = self.fates.first_key_value().map(|((step, _), _)| *step);
        let next = died.into_iter().chain(fate).min();
        if next == self.stopped {
            return None;
        }
        self.stopped = next;
        next
    }

    /// When the death of those who died last is noticed, if that is to come.
    pub(super) fn notice(&self, node: u32) -> Option<u64> {
        let is_it =
            |(fate, nodes): &&(Fate, Vec<u32>)| *fate == Fate::Noticed && nodes.binary_search(&node).is_ok();
        self.fates.iter().find(|(_, planned)| is_it(planned)).map(|((step, _), _)| *step)
    }

    /// What follows when after the deaths that came last.
    pub(super) fn spans(&self) -> Spans {
        self.spans
    }

    /// How often a node died.
    pub(super) fn died(&self) -> u32 {
        self.died
    }
}

/// When a node leaves, in milliseconds: as often as its mean lifetime says, at moments that know nothing of each other (a
/// Poisson process), so that it does not matter how long it was away meanwhile.
fn departures(leaving: &Leaving, mut rng: Generator) -> impl Iterator<Item = u64> {
    let mean_ms = f64::from(leaving.lifetime_s) * 1_000.0;
    let (from, until) = (leaving.at_ms as f64, (leaving.at_ms + leaving.for_ms) as f64);
    let mut at = from;
    std::iter::from_fn(move || {
        at += mean_ms * exponential(&mut rng);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, at most two days"
        )]
        (at < until).then_some(at as u64)
    })
}

/// A draw from the exponential distribution of mean 1 by comparisons alone (von Neumann, "Various techniques used in connection
/// with random digits", 1951): a logarithm is not the same to the last bit on all machines.
fn exponential(rng: &mut Generator) -> f64 {
    const PARTS: usize = 1 << 30;
    let mut whole = 0.0;
    loop {
        let first = rng.below(PARTS);
        let (mut last, mut falls) = (first, 0_u32);
        loop {
            let next = rng.below(PARTS);
            if next >= last {
                break;
            }
            (last, falls) = (next, falls + 1);
        }
        // An even number of falls, none included, has the probability e^-x.
        if falls.is_multiple_of(2) {
            return whole + first as f64 / PARTS as f64;
        }
        whole += 1.0;
    }
}

/// Who dies in a fleet of `nodes` of which so many of 100 do, in the deaths of this number.
pub(super) fn victims(nodes: u32, per_cent: u32, seed: u64, number: usize) -> Vec<u32> {
    draw(nodes, per_cent, Generator::stream(seed, VICTIMS ^ (number as u64) << 48))
}

/// So many of 100 nodes, at least one, in ascending order.
pub(super) fn draw(nodes: u32, per_cent: u32, rng: Generator) -> Vec<u32> {
    draw_nodes(nodes, (nodes as usize * per_cent as usize).div_ceil(100), rng)
}

/// So many of all nodes, in ascending order.
pub(super) fn draw_nodes(nodes: u32, count: usize, mut rng: Generator) -> Vec<u32> {
    let mut nodes: Vec<u32> = (0..nodes).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::scenario::Scenario;

    /// 120 nodes, in steps of a millisecond.
    fn churn(text: &str, seed: u64) -> Churn {
        let scenario = Scenario::parse(&format!("{}{text}", crate::sim::tests::SMALL)).unwrap();
        Churn::new(&scenario, seed, 1_000_000).unwrap()
    }

    #[test]
    fn draws_by_comparisons_are_exponential() {
        let mut rng = Generator::new(5);
        let mut drawn: Vec<f64> = (0..40_000).map(|_| exponential(&mut rng)).collect();
        drawn.sort_unstable_by(f64::total_cmp);
        let mean = drawn.iter().sum::<f64>() / 40_000.0;
        // Of the mean, the standard error is 0.005; the quantiles are -ln(1 - q).
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        for (index, expected) in [
            (4_000, 0.105_36),
            (20_000, std::f64::consts::LN_2),
            (36_000, std::f64::consts::LN_10),
            (39_600, 4.605_17),
        ] {
            assert!((drawn[index] / expected - 1.0).abs() < 0.06, "{index}: {} not {expected}", drawn[index]);
        }
    }

    #[test]
    fn who_is_dead_does_not_die_again_and_each_death_is_noticed_and_ended_in_its_time() {
        let deaths = |at_ms: u32, per_cent: u32| {
            format!(
                "[[deaths]]\nat_ms = {at_ms}\nper_cent = {per_cent}\nnoticed_after_ms = 20\nreplaced_after_ms = 50\n"
            )
        };
        let mut churn = churn(&format!("{}{}{}", deaths(100, 50), deaths(140, 100), deaths(150, 10)), 3);
        assert_eq!((churn.stop(), churn.stop(), churn.next(99)), (Some(100), None, None));
        let (fate, first) = churn.next(100).unwrap();
        assert_eq!((fate, first.len(), churn.notice(first[7])), (Fate::Dies, 60, Some(120)));
        let mut all = Vec::new();
        while let Some(step) = churn.stop() {
            while let Some((fate, nodes)) = churn.next(step) {
                all.push((step, fate, nodes));
            }
        }
        let (_, _, second) = &all[1];
        assert!(second.iter().all(|node| first.binary_search(node).is_err()), "all others");
        // The first are alive again when the last die, and only they can.
        let (_, _, third) = &all[3];
        assert!(
            third.iter().all(|node| first.binary_search(node).is_ok()) && (1..=12).contains(&third.len())
        );
        let steps: Vec<(u64, Fate, usize)> =
            all.iter().map(|(step, fate, nodes)| (*step, *fate, nodes.len())).collect();
        let count = third.len();
        assert_eq!(
            steps,
            [
                (120, Fate::Noticed, 60),
                (140, Fate::Dies, 60),
                (150, Fate::Replaced, 60),
                (150, Fate::Dies, count),
                (160, Fate::Noticed, 60),
                (170, Fate::Noticed, count),
                (190, Fate::Replaced, 60),
                (200, Fate::Replaced, count),
            ]
        );
        assert_eq!(churn.died() as usize, 120 + count);
    }

    #[test]
    fn nodes_leave_as_often_as_their_lifetime_says_each_by_its_own_stream() {
        let text = "[churn]\nlifetime_s = 10\nat_ms = 2_000\nfor_ms = 20_000\nnoticed_after_ms = 1\nreplaced_after_ms = 2\n";
        let all = |seed: u64| {
            let (mut churn, mut left) = (churn(text, seed), Vec::new());
            while let Some(step) = churn.stop() {
                while let Some((fate, nodes)) = churn.next(step) {
                    left.extend(nodes.into_iter().filter(|_| fate == Fate::Dies).map(|node| (node, step)));
                }
            }
            left
        };
        let left = all(1);
        // 120 nodes twice each on average; the standard deviation is 15.5.
        assert!((180..300).contains(&left.len()), "{}", left.len());
        assert!(left.iter().all(|(_, step)| (2_000..22_000).contains(step)));
        let early = left.iter().filter(|(_, step)| *step < 12_000).count();
        assert!((80..160).contains(&early), "{early}: evenly over time");
        assert!(all(1) == left && all(2) != left);
        let leaving = Leaving {
            lifetime_s: 10,
            at_ms: 2_000,
            for_ms: 20_000,
            noticed_after_ms: 1,
            noticed_within_ms: 0,
            replaced_after_ms: 2,
        };
        for node in [0, 7, 119] {
            let own: Vec<u64> =
                departures(&leaving, Generator::stream(1, LEAVING ^ (u64::from(node) + 1) << 24)).collect();
            let seen: Vec<u64> =
                left.iter().filter(|(other, _)| *other == node).map(|(_, step)| *step).collect();
            assert!(seen.iter().all(|step| own.contains(step)), "whoever else there is: {own:?} {seen:?}");
        }
    }
}
