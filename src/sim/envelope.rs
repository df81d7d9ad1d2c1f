//! Inside which set-ups the simulator was held against real nodes, and how far off it was there. One table, which the
//! validation draws its trials from and every report quotes.

use super::scenario::{Name, Scenario};
use std::fmt::Write as _;

/// From where to where a property of the trials goes, both included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The property, in words, with its unit.
    pub what: &'static str,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// How the values lie between them.
    pub scale: Scale,
}

/// How values lie in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Even,
    /// Evenly, whole numbers.
    Whole,
    /// As many between 1 and 2 as between 2 and 4.
    Powers,
    /// The same, whole numbers.
    WholePowers,
    /// Powers of two.
    Doubles,
}

impl Range {
    const fn new(what: &'static str, least: f64, most: f64, scale: Scale) -> Self {
        Self { what, least, most, scale }
    }

    /// The value at a part of the range, from 0 to below 1.
    pub(super) fn at(&self, part: f64) -> f64 {
        let Self { least, most, .. } = *self;
        match self.scale {
            Scale::Even => least + part * (most - least),
            Scale::Whole => (least + part * (most - least + 1.0)).floor().min(most),
            Scale::Powers => least * (most / least).powf(part),
            Scale::WholePowers => (least * (most / least).powf(part)).round(),
            Scale::Doubles => {
                let doublings = (most / least).log2().round();
                least * (part * (doublings + 1.0)).floor().min(doublings).exp2()
            }
        }
    }

    /// Whether a value lies in it, rounding aside.
    fn has(&self, value: f64) -> bool {
        (self.least * 0.99..=self.most * 1.01).contains(&value)
    }
}

/// Nodes of the fleet.
pub const NODES: Range = Range::new("nodes", 8.0, 48.0, Scale::Whole);
/// Cells of its one region.
pub const CELLS: Range = Range::new("cells", 1.0, 3.0, Scale::Whole);
/// Wants under way on a node at most.
pub const IN_FLIGHT: Range = Range::new("chunks under way on a node", 1.0, 16.0, Scale::WholePowers);
/// Length of a chunk; shorter where a node's link would take long for one.
pub const CHUNK_KIB: Range = Range::new("KiB of a chunk", 16.0, 256.0, Scale::Doubles);
/// The nodes' uplinks together. What two processors carry below 70 % of their time.
pub const FLEET_MBIT_S: Range = Range::new("Mbit/s of all nodes together", 140.0, 190.0, Scale::Even);
/// Classes of nodes, by the speed of their links.
pub const CLASSES: Range = Range::new("classes of nodes", 1.0, 3.0, Scale::Whole);
/// The speed of the fastest class over that of the slowest.
pub const CLASS_RATIO: Range =
    Range::new("times the slowest node's link the fastest", 1.3, 2.0, Scale::Powers);
/// A cell's link to the rest, where there are several cells, over the mean of the nodes' links.
pub const CELL_LINK: Range = Range::new("times a node's link a cell's", 3.0, 8.0, Scale::Powers);
/// The stratum's uplink over the mean of the nodes' links.
pub const STRATUM_LINK: Range = Range::new("times a node's link the stratum's", 2.0, 8.0, Scale::Powers);
/// Nodes that are killed and replaced by empty ones; below [`KILLED_LEAST`], none.
pub const KILLED: Range = Range::new("killed of 100 nodes", 0.0, 15.0, Scale::Even);
/// Fewer are none.
pub const KILLED_LEAST: f64 = 9.0;
/// How long a simulation with guessed delays says that it takes; the content is as large as that.
pub const SECONDS: Range = Range::new("seconds", 20.0, 24.0, Scale::Even);

/// What single links have, as it follows from the others.
pub const LINK: Range = Range::new("Mbit/s of a node's link", 1.0, 60.0, Scale::Powers);

/// All that are drawn, in the order of the hypercube's dimensions.
pub const RANGES: [Range; 11] = [
    NODES,
    CELLS,
    IN_FLIGHT,
    CHUNK_KIB,
    FLEET_MBIT_S,
    CLASSES,
    CLASS_RATIO,
    CELL_LINK,
    STRATUM_LINK,
    KILLED,
    SECONDS,
];

/// What the errors of predictions were on the trials that nothing was fitted to: the median, and what nine of ten stayed
/// within; parts of what was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// When.
    pub date: &'static str,
    /// Which state of the program.
    pub commit: &'static str,
    /// Trials that nothing was fitted to.
    pub trials: u32,
    /// Trials that were recorded and could be used, those that parameters were fitted to included.
    pub recorded: u32,
    /// Of the makespan.
    pub makespan: [f64; 2],
    /// Of the time by which 99 % had everything.
    pub p99: [f64; 2],
    /// Of what left the stratum.
    pub egress: [f64; 2],
    /// The largest error of a makespan.
    pub worst_makespan: f64,
}

/// The last measurement: all of the grid's 48 trials, half of them held back.
pub const MEASURED: Option<Measured> = Some(Measured {
    date: "2026-11-30",
    commit: "02d2b24",
    trials: 24,
    recorded: 48,
    makespan: [0.104, 0.254],
    p99: [0.104, 0.254],
    egress: [0.024, 0.118],
    worst_makespan: 0.287,
});

/// Most that the median of the errors may be.
pub const MEDIAN_MOST: f64 = 0.05;
/// Most that nine of ten errors may be.
pub const NINE_OF_TEN_MOST: f64 = 0.10;

impl Measured {
    /// The figures that were off by more than was promised.
    fn missed(&self) -> Vec<&'static str> {
        let within =
            |[median, most]: [f64; 2], median_most: f64| median <= median_most && most <= NINE_OF_TEN_MOST;
        let figures = [
            ("the makespan", within(self.makespan, MEDIAN_MOST)),
            ("the time of 99 %", within(self.p99, f64::INFINITY)),
            ("what left the stratum", within(self.egress, MEDIAN_MOST)),
        ];
        figures.into_iter().filter(|(_, holds)| !holds).map(|(figure, _)| figure).collect()
    }
}

/// What may be promised of a scenario: the errors that were measured, and in what it lies outside of where that was.
pub fn quote(scenario: &Scenario) -> String {
    if scenario.strategy.name != Name::Starling {
        return "a model of another system, which was not held against real nodes".to_owned();
    }
    let Some(measured) = MEASURED else {
        return "not validated against real nodes yet".to_owned();
    };
    let mut text = band(&measured);
    match outside(scenario).as_slice() {
        [] => text += "; this scenario lies within what was measured",
        some => {
            let _ = write!(text, "; outside of what was measured: {}", some.join(", "));
        }
    }
    text
}

fn band(measured: &Measured) -> String {
    let per_cent = |[median, most]: [f64; 2]| format!("{:.1} % ({:.1} %)", median * 100.0, most * 100.0);
    let mut text = format!(
        "against real nodes ({} trials that nothing was fitted to, of {} recorded, {}, {}) the makespan was off by {} in the median (nine of ten \
         trials), the time of 99 % by {}, what left the stratum by {}, the makespan at worst by {:.1} %",
        measured.trials,
        measured.recorded,
        measured.date,
        measured.commit,
        per_cent(measured.makespan),
        per_cent(measured.p99),
        per_cent(measured.egress),
        measured.worst_makespan * 100.0,
    );
    match measured.missed().as_slice() {
        [] => {}
        some => {
            let _ = write!(text, "; more than was promised: {}", some.join(", "));
        }
    }
    text
}

/// In what a scenario lies outside of the ranges, in words.
pub fn outside(scenario: &Scenario) -> Vec<String> {
    let rates = super::network::node_rates(scenario, scenario.seed);
    let up = |rate: &[f64; 2]| rate[0];
    let mean = rates.iter().map(up).sum::<f64>() / rates.len().max(1) as f64;
    let (slowest, fastest) = rates
        .iter()
        .map(up)
        .fold((f64::INFINITY, 0.0_f64), |(least, most), rate| (least.min(rate), most.max(rate)));
    let ratio = fastest / slowest;
    let killed: u32 = scenario.deaths.iter().map(|deaths| deaths.per_cent).sum();
    let mut values = vec![
        (NODES, f64::from(scenario.fleet.nodes)),
        (CELLS, f64::from(scenario.cells())),
        (CHUNK_KIB, f64::from(scenario.chunk_bytes()) / 1_024.0),
        (STRATUM_LINK, scenario.stratum.up_mbit_s / mean),
        (KILLED, f64::from(killed)),
        (LINK, slowest),
        (LINK, fastest),
    ];
    if let Some(rate) = scenario.network.links.cell_down_mbit_s {
        values.push((CELL_LINK, rate / mean));
    }
    if ratio > 1.0 {
        values.push((CLASS_RATIO, ratio));
    }
    let mut found: Vec<String> = values
        .into_iter()
        .filter(|(range, value)| !range.has(*value))
        .map(|(range, value)| format!("{value:.0} {} ({} to {})", range.what, range.least, range.most))
        .collect();
    let others = [
        (scenario.fleet.regions > 1, "several regions"),
        (scenario.churn.is_some(), "nodes that come and go"),
        (scenario.liars.is_some(), "liars"),
        (scenario.stalls.is_some(), "a stratum that does not answer"),
        (!scenario.network.change.is_empty(), "links that change"),
        (scenario.network.loss_per_mille > 0, "lost messages"),
        (scenario.content.read_ahead_chunks.is_some(), "readers"),
        (scenario.arrival.is_some(), "nodes that begin one after the other"),
    ];
    found.dedup();
    found.extend(others.into_iter().filter(|(is, _)| *is).map(|(_, what)| what.to_owned()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_reaches_both_of_its_ends_and_whole_numbers_evenly() {
        let nodes: Vec<f64> = (0..41).map(|part| NODES.at(f64::from(part) / 41.0 + 1e-9)).collect();
        assert_eq!(nodes, (8..=48).map(f64::from).collect::<Vec<_>>());
        let almost = 1.0 - 1e-12;
        for range in RANGES {
            let ends = [range.at(0.0), range.at(almost)];
            assert!((ends[0] - range.least).abs() < 1e-9 && (ends[1] - range.most).abs() < 1e-6, "{range:?}");
        }
        let chunks: Vec<f64> = (0..10).map(|part| CHUNK_KIB.at(f64::from(part) / 10.0)).collect();
        assert_eq!(chunks, [16.0, 16.0, 32.0, 32.0, 64.0, 64.0, 128.0, 128.0, 256.0, 256.0]);
        let in_flight: Vec<f64> = (0..9).map(|part| IN_FLIGHT.at(f64::from(part) / 8.0)).collect();
        assert_eq!(in_flight, [1.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 16.0]);
    }

    #[test]
    fn what_was_not_measured_is_named() {
        let small = Scenario::parse(include_str!("../../simulations/scenarios/rollout-32.toml")).unwrap();
        assert_eq!(outside(&small), [""; 0]);
        let large =
            Scenario::parse(include_str!("../../simulations/scenarios/flash-crowd-10k.toml")).unwrap();
        let found = outside(&large);
        assert!(found.iter().any(|text| text == "10000 nodes (8 to 48)"), "{found:?}");
        let liars = include_str!("../../simulations/scenarios/rollout-32-liars.toml");
        assert_eq!(outside(&Scenario::parse(liars).unwrap()), ["liars"]);
    }

    #[test]
    fn the_band_says_on_what_and_when_it_was_measured() {
        let measured = Measured {
            date: "2026-05-01",
            commit: "abcdef1",
            trials: 24,
            recorded: 47,
            makespan: [0.03, 0.08],
            p99: [0.031, 0.09],
            egress: [0.002, 0.02],
            worst_makespan: 0.12,
        };
        let text = band(&measured);
        for part in [
            "24 trials",
            "of 47 recorded",
            "2026-05-01",
            "abcdef1",
            "3.0 % (8.0 %)",
            "3.1 % (9.0 %)",
            "0.2 % (2.0 %)",
            "12.0 %",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("promised"), "{text}");
        let worse = Measured { makespan: [0.051, 0.08], egress: [0.0, 0.11], p99: [0.2, 0.1], ..measured };
        let text = band(&worse);
        assert!(text.ends_with("; more than was promised: the makespan, what left the stratum"), "{text}");
    }
}
