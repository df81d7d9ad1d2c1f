//! What is kept of a run when its record is gone: enough to draw it and to judge it.

use super::Report;
use crate::sim::record::{LinkRecord, NodeRecord, Record, Sample};
use crate::sim::scenario::Scenario;
use crate::sim::statistics::{Spread, completion_curve, median_index, per_mille};

/// Links that are kept: those that are used most.
const LINKS_MAX: usize = 48;
/// The slowest nodes are one of so many.
const SLOWEST: usize = 100;
/// Places that are named when the slowest are looked for.
const PLACES_MAX: usize = 3;

/// A run without what it left of each node.
#[derive(Clone, Debug)]
pub struct Digest {
    /// What sets the run apart from others in a report; runs of one label differ by their seeds alone.
    pub label: String,
    /// Its figures.
    pub report: Report,
    /// Bytes of one copy of the content.
    pub copy: u64,
    /// Number of regions.
    pub regions: u32,
    /// Nodes that died on the way and were replaced.
    pub deaths: u32,
    /// When 1, 2, 3 … of 1 000 honest nodes had everything, in seconds.
    pub curve: Vec<f64>,
    /// When 99.9 % had, in seconds.
    pub p999_s: f64,
    /// How long the run was, in seconds.
    pub run_s: f64,
    /// Its state over time.
    pub samples: Vec<Sample>,
    /// The links that were used most, in their order.
    pub links: Vec<LinkRecord>,
    /// How many more there are.
    pub links_omitted: usize,
    /// How the honest nodes spent their time.
    pub all: Spent,
    /// How the slowest hundredth of them did.
    pub slowest: Spent,
    /// Where the slowest are more often than others: place, share of the slowest, share of all.
    pub slowest_places: Vec<(String, f64, f64)>,
    /// Chunks that honest nodes gave up.
    pub given_up: u64,
}

/// How some nodes spent their time, as means.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// How many they are.
    pub nodes: usize,
    /// When the first of them ended, in seconds; infinite if it never did.
    pub first_end_s: f64,
    /// Seconds in which they received.
    pub receiving_s: f64,
    /// Seconds in which they waited.
    pub waiting_s: f64,
    /// Other seconds.
    pub idle_s: f64,
    /// What the stratum gave of all they took, 0 to 1.
    pub strata_share: f64,
}

impl Spent {
    fn of(nodes: &[&NodeRecord]) -> Self {
        let count = nodes.len().max(1) as f64;
        let mean = |of: fn(&NodeRecord) -> f64| nodes.iter().map(|node| of(node)).sum::<f64>() / count;
        let (strata, peers) = (mean(|node| node.from_strata as f64), mean(|node| node.from_peers as f64));
        let taken = strata + peers;
        Self {
            nodes: nodes.len(),
            first_end_s: nodes.iter().map(|node| end(node)).fold(f64::INFINITY, f64::min),
            receiving_s: mean(|node| node.receiving_s),
            waiting_s: mean(|node| node.waiting_s),
            idle_s: mean(|node| node.idle_s),
            strata_share: if taken > 0.0 { strata / taken } else { 0.0 },
        }
    }

    /// The three parts of their time, as shares of it.
    pub fn shares(&self) -> [f64; 3] {
        let parts = [self.receiving_s, self.waiting_s, self.idle_s];
        let sum: f64 = parts.iter().sum();
        parts.map(|part| if sum > 0.0 { part / sum } else { 0.0 })
    }
}

fn end(node: &NodeRecord) -> f64 {
    node.end_s.unwrap_or(f64::INFINITY)
}

impl Digest {
    /// Of a run.
    pub fn new(label: impl Into<String>, scenario: &Scenario, report: &Report, record: &Record) -> Self {
        let mut honest: Vec<&NodeRecord> = record.nodes.iter().filter(|node| !node.liar).collect();
        honest.sort_by(|a, b| end(a).total_cmp(&end(b)));
        let ends: Vec<f64> = honest.iter().filter_map(|node| node.end_s).collect();
        let slowest = &honest[honest.len() - honest.len().div_ceil(SLOWEST)..];
        let (links, links_omitted) = most_used(&record.links);
        let deaths = scenario.deaths.as_ref().map_or(0, |deaths| {
            u32::try_from((u64::from(scenario.fleet.nodes) * u64::from(deaths.per_cent)).div_ceil(100))
                .unwrap_or(u32::MAX)
        });
        Self {
            label: label.into(),
            report: report.clone(),
            copy: scenario.content.bytes,
            regions: scenario.fleet.regions,
            deaths,
            curve: completion_curve(&ends, honest.len()),
            p999_s: per_mille(&ends, 999),
            run_s: record.samples.last().map_or(0.0, |sample| sample.at_s),
            samples: record.samples.clone(),
            links,
            links_omitted,
            all: Spent::of(&honest),
            slowest: Spent::of(slowest),
            slowest_places: places(&honest, slowest, &record.classes),
            given_up: honest.iter().map(|node| u64::from(node.given_up)).sum(),
        }
    }

    /// The share of what a link could have carried in the run that it did carry.
    pub fn used(&self, link: &LinkRecord) -> f64 {
        let most = link.capacity * self.run_s;
        if most > 0.0 { link.bytes / most } else { 0.0 }
    }

    /// The links that were used most, the first of all first.
    pub fn busiest(&self, count: usize) -> Vec<&LinkRecord> {
        let mut links: Vec<&LinkRecord> = self.links.iter().collect();
        links.sort_by(|a, b| self.used(b).total_cmp(&self.used(a)));
        links.truncate(count);
        links
    }

    /// Where a chart of this run ends: when the last node had everything, or where nodes never had, when the run was over.
    pub fn end_s(&self) -> f64 {
        let makespan_s = self.report.rollout.makespan_s;
        let all = self.report.rollout.completed == self.report.rollout.nodes;
        if all && makespan_s.is_finite() { makespan_s } else { self.run_s }
    }
}

fn most_used(links: &[LinkRecord]) -> (Vec<LinkRecord>, usize) {
    let mut order: Vec<usize> = (0..links.len()).collect();
    let used = |link: &LinkRecord| if link.capacity > 0.0 { link.bytes / link.capacity } else { 0.0 };
    order.sort_by(|a, b| used(&links[*b]).total_cmp(&used(&links[*a])));
    order.truncate(LINKS_MAX);
    order.sort_unstable();
    let kept: Vec<LinkRecord> = order.into_iter().map(|index| links[index].clone()).collect();
    let omitted = links.len() - kept.len();
    (kept, omitted)
}

/// The places that have half as many again of the slowest as of all, those with most of them first.
fn places(all: &[&NodeRecord], slowest: &[&NodeRecord], classes: &[String]) -> Vec<(String, f64, f64)> {
    let mut found = Vec::new();
    for (what, of) in [
        ("class", (|node| u32::from(node.class)) as fn(&NodeRecord) -> u32),
        ("region", |node| node.region),
        ("cell", |node| node.cell),
    ] {
        let count = |nodes: &[&NodeRecord]| {
            let mut counts = std::collections::BTreeMap::new();
            for node in nodes {
                *counts.entry(of(node)).or_insert(0_u32) += 1;
            }
            counts
        };
        let everywhere = count(all);
        for (place, slow) in count(slowest) {
            let share = f64::from(slow) / slowest.len() as f64;
            let usual = everywhere.get(&place).map_or(0.0, |nodes| f64::from(*nodes) / all.len() as f64);
            let name = match classes.get(place as usize) {
                Some(class) if what == "class" => class.clone(),
                _ => format!("{what} {place}"),
            };
            if share > 1.5 * usual && slow > 1 {
                found.push((name, share, usual));
            }
        }
    }
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    found.truncate(PLACES_MAX);
    found
}

/// Runs of one label.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// The label.
    pub label: &'a str,
    /// One run a seed.
    pub runs: Vec<&'a Digest>,
    /// The run whose makespan is the median: it stands for all where one is drawn.
    pub middle: &'a Digest,
}

impl Group<'_> {
    /// The least, the median and the largest of a figure.
    pub fn band(&self, of: impl Fn(&Digest) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(|run| of(run)))
    }
}

/// Runs by label, in the order in which labels come first.
pub fn group(digests: &[Digest]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for digest in digests {
        match groups.iter_mut().find(|group| group.label == digest.label) {
            Some(group) => group.runs.push(digest),
            None => groups.push(Group { label: &digest.label, runs: vec![digest], middle: digest }),
        }
    }
    for group in &mut groups {
        let times: Vec<f64> = group.runs.iter().map(|run| run.end_s()).collect();
        group.middle = median_index(&times).map_or(group.middle, |index| group.runs[index]);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::report::testing::{ends, run};

    #[test]
    fn the_slowest_hundredth_is_told_apart_and_placed() {
        let (scenario, report, mut record) = run(1);
        let last = record.nodes.len();
        for (number, node) in record.nodes.iter_mut().enumerate() {
            node.end_s = Some(1.0 + number as f64 / 1_000.0);
            (node.receiving_s, node.waiting_s, node.idle_s) = (1.0, 0.0, 0.0);
        }
        for node in &mut record.nodes[last - 2..] {
            (node.receiving_s, node.waiting_s, node.idle_s) = (1.0, 2.5, 0.5);
        }
        let digest = Digest::new("a", &scenario, &report, &record);
        assert_eq!((last, digest.slowest.nodes, digest.all.nodes), (200, 2, 200));
        assert_eq!(digest.slowest.shares(), [0.25, 0.625, 0.125]);
        assert!((digest.all.shares()[0] - 200.0 / 206.0).abs() < 1e-12);
        assert_eq!(digest.slowest.first_end_s, record.nodes[198].end_s.unwrap());
        let places: Vec<&str> = digest.slowest_places.iter().map(|place| place.0.as_str()).collect();
        assert_eq!(places, ["region 1", "cell 3"], "all are of one class, which says nothing");
        assert_eq!(digest.slowest_places[1].1, 1.0);
    }

    #[test]
    fn who_never_ended_is_among_the_slowest_and_the_curve_does_not_reach_the_end() {
        let (scenario, mut report, mut record) = run(1);
        record.nodes[5].end_s = None;
        record.nodes[5].given_up = 7;
        report.rollout.completed -= 1;
        let digest = Digest::new("a", &scenario, &report, &record);
        assert_eq!((digest.curve[994].is_finite(), digest.curve[999]), (true, f64::INFINITY));
        assert_eq!((digest.given_up, digest.end_s()), (7, digest.run_s));
    }

    #[test]
    fn runs_of_a_label_are_seeds_and_the_one_in_the_middle_stands_for_them() {
        let digests = [("a", 3.0), ("b", 9.0), ("a", 1.0), ("a", 2.0)].map(|(label, end)| ends(label, end));
        let groups = group(&digests);
        assert_eq!(
            groups.iter().map(|group| (group.label, group.runs.len())).collect::<Vec<_>>(),
            [("a", 3), ("b", 1)]
        );
        assert_eq!(groups[0].middle.end_s(), 2.0);
        let band = groups[0].band(Digest::end_s);
        assert_eq!((band.min, band.median, band.max), (1.0, 2.0, 3.0));
    }

    #[test]
    fn of_many_links_the_most_used_are_kept_in_their_order() {
        let link = |number: u32| LinkRecord {
            name: number.to_string(),
            capacity: 1.0,
            bytes: f64::from(number * 37 % 101),
            busy_share: 0.0,
            over_time: Vec::new(),
        };
        let links: Vec<LinkRecord> = (0..100).map(link).collect();
        let (kept, omitted) = most_used(&links);
        assert_eq!((kept.len(), omitted), (LINKS_MAX, 100 - LINKS_MAX));
        let least = kept.iter().map(|link| link.bytes).fold(f64::INFINITY, f64::min);
        assert_eq!(links.iter().filter(|link| link.bytes > least).count(), LINKS_MAX - 1);
        assert!(kept.iter().map(|link| link.name.parse::<u32>().unwrap()).is_sorted());
    }
}
