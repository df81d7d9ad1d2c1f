//! How far the simulator may be believed: its predictions held against real nodes.
//!
//! [`draw`] makes a grid of trials. The lab runs each of them with real agents, and leaves a [`Recorded`]. [`validate`] simulates the
//! same trials: with half of them, drawn by the seed, it finds the delays and overheads of the network model with which it is least
//! wrong ([`Calibrated`]), and says how wrong it is on the other half, to which nothing was fitted. What comes out belongs
//! into [`super::envelope`].

mod figures;
mod fit;
mod grid;
#[cfg(test)]
mod tests;

pub use figures::{Accuracy, FIGURES};
pub use grid::{Killed, TRIALS_MAX, Trial, draw};

use super::engine::Engine;
use super::envelope::{MEDIAN_MOST, NINE_OF_TEN_MOST};
use super::scenario::{Keys, Scenario, ScenarioError};
use super::sweep::in_order;
use crate::model::{Generator, Rng};
use figures::{EGRESS, Figures, MAKESPAN, OnLinks, P99, cost};
use fit::{Knob, fit};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The form in which recordings are written.
pub const FORMAT: u32 = 1;
/// Least recordings of which a half can be fitted to: as many as there are parameters, in each half.
pub const RECORDINGS_MIN: usize = 2 * KNOBS.len();
/// How often all trials of a half are simulated to find the parameters.
const ASKS_MAX: usize = 100;
/// Runs of which the median is what is predicted: chance among the nodes decides over some per cent of a makespan. Calibration makes
/// do with one, for it looks at all trials together.
const DRAWS: u64 = 5;
/// Sets the draw of the halves apart from all other randomness.
const HALVES: u64 = 0x6861_6c76_6573;

/// What a real run of a trial showed. Bytes of links are what they carried, headers included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// [`FORMAT`].
    pub format: u32,
    /// The seed of the grid.
    pub grid_seed: u64,
    /// The number of its trials.
    pub grid_trials: u32,
    /// The trial as it was drawn and sized.
    pub drawn: Trial,
    /// The trial as it was run: slower, if the machine was too busy with it.
    pub trial: Trial,
    /// When it was recorded, in seconds since 1970.
    pub recorded_unix_s: u64,
    /// Which program was run.
    pub version: String,
    /// How the network was made.
    pub model: String,
    /// Share of the machine's processors that was busy, 0 to 1.
    pub cpu: f64,
    /// Whether that was too much: then the run says nothing about links.
    pub void: bool,
    /// What went wrong.
    pub problems: Vec<String>,
    /// Bytes of content that left the stratum.
    pub strata_bytes: u64,
    /// Bytes on its uplink.
    pub strata_link_bytes: u64,
    /// The nodes, replacements after all others.
    pub nodes: Vec<RecordedNode>,
    /// By cell, if there are several, bytes on the link into it.
    pub into_cells_bytes: Vec<u64>,
    /// What decided who was the home of what, as far as it is known. Identities are drawn anew in each run, and who the few homes of a
    /// small content are decides over much.
    #[serde(default)]
    pub keys: Option<Keys>,
}

/// A node of a recorded run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedNode {
    /// Its place. A replacement has that, and the link, of whom it replaces.
    pub place: u32,
    /// Whether it was killed.
    pub killed: bool,
    /// When it began, in seconds from the start of the run.
    pub began_s: Option<f64>,
    /// When it had everything.
    pub completed_s: Option<f64>,
    /// Bytes on its uplink.
    pub up_bytes: u64,
    /// Bytes on its downlink.
    pub down_bytes: u64,
}

impl Recorded {
    /// Why it is not to be used, if it is not.
    pub fn defect(&self) -> Option<String> {
        if self.format != FORMAT {
            return Some(format!("its form is {}, this program knows {FORMAT}", self.format));
        }
        if self.void {
            return Some(format!("the machine was {:.0} % busy", self.cpu * 100.0));
        }
        self.problems.first().cloned()
    }

    /// When the replacements began, in milliseconds from the start, if anybody was replaced.
    fn replaced_at_ms(&self) -> Option<u64> {
        let is_replaced = |node: &&RecordedNode| {
            !node.killed && self.nodes.iter().any(|other| other.killed && other.place == node.place)
        };
        let began = self.nodes.iter().filter(is_replaced).filter_map(|node| node.began_s);
        let (count, sum) = began.fold((0_u32, 0.0), |(count, sum), began| (count + 1, sum + began));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time within a run")]
        let mean_ms = (sum / f64::from(count.max(1)) * 1e3).max(0.0) as u64;
        (count > 0).then_some(mean_ms)
    }

    fn figures(&self) -> Figures {
        let times = self.nodes.iter().filter(|node| !node.killed).filter_map(|node| node.completed_s);
        // The link of a replaced node was that of two.
        let first = |(index, node): &(usize, &RecordedNode)| {
            self.nodes[..*index].iter().all(|other| other.place != node.place)
        };
        let links = || self.nodes.iter().enumerate().filter(first).map(|(_, node)| node);
        let into_cells = self.into_cells_bytes.iter().sum::<u64>() as f64;
        let moved = OnLinks {
            strata: self.strata_bytes as f64,
            strata_link: self.strata_link_bytes as f64,
            up: links().map(|node| node.up_bytes).sum::<u64>() as f64,
            down: links().map(|node| node.down_bytes).sum::<u64>() as f64,
            into_cells: if self.into_cells_bytes.is_empty() { f64::NAN } else { into_cells },
        };
        Figures::new(times.collect(), moved)
    }

    /// The median of so many draws.
    fn predicted(&self, calibrated: &Calibrated, draws: u64) -> Result<Figures, ScenarioError> {
        let runs = (0..draws).map(|draw| self.simulated(calibrated, draw)).collect::<Result<Vec<_>, _>>()?;
        Ok(Figures::median(&runs))
    }

    fn simulated(&self, calibrated: &Calibrated, draw: u64) -> Result<Figures, ScenarioError> {
        let mut scenario = Scenario::parse(&self.trial.simulation(calibrated, self.replaced_at_ms()))?;
        (scenario.keys, scenario.draw) = (self.keys.clone().map(Arc::new), draw);
        let mut engine = Engine::new(&scenario, self.trial.seed, 1);
        engine.run(&mut |_| {});
        let times = engine.machines.iter().map(|machine| match machine.finished {
            Some(finished) if machine.given_up == 0 => finished.as_secs_f64(),
            _ => f64::INFINITY,
        });
        let kinds = engine.usage();
        let bytes = |kind: &str| {
            kinds.iter().find(|links| links.kind == kind).map_or(f64::NAN, |links| links.gigabytes * 1e9)
        };
        let moved = OnLinks {
            strata: engine.strata_bytes as f64,
            strata_link: bytes("uplink of the stratum"),
            up: bytes("uplinks of nodes"),
            down: bytes("downlinks of nodes"),
            into_cells: bytes("downlinks of cells"),
        };
        Ok(Figures::new(times.collect(), moved))
    }
}

/// Delays and overheads of the network model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrated {
    /// One way of a message, beside the queues, in microseconds (`network.latency_us`).
    pub latency_us: u64,
    /// `network.header_per_mille`.
    pub header_per_mille: u64,
    /// `network.request_bytes`.
    pub request_bytes: u64,
    /// `network.connect_bytes`.
    pub connect_bytes: u64,
    /// `network.connect_us`.
    pub connect_us: u64,
    /// `network.first_byte_us`.
    pub first_byte_us: u64,
    /// `network.send_buffer_ms`.
    pub send_buffer_ms: u64,
    /// `network.gossip_bytes_per_s`.
    pub gossip_bytes_per_s: u64,
    /// `network.gossip_out_bytes_per_s`.
    pub gossip_out_bytes_per_s: u64,
    /// `content.prepare_ms`.
    pub prepare_ms: u64,
    /// `deaths.noticed_after_ms`.
    pub noticed_after_ms: u64,
    /// `deaths.noticed_within_ms`.
    pub noticed_within_ms: u64,
}

/// Bounds of the parameters, near to where they begin, for chance in single runs decides over more than what lies beyond; in the order of
/// [`Calibrated`]'s fields, but for delays of messages and handshakes, which decide over too little, and for when deaths are noticed: these
/// were measured by themselves.
const KNOBS: [Knob; 8] = [
    Knob { least: 20.0, most: 100.0, first: 50.0 },
    Knob { least: 100.0, most: 3_000.0, first: 500.0 },
    Knob { least: 4_000.0, most: 60_000.0, first: 15_000.0 },
    Knob { least: 200.0, most: 4_000.0, first: 500.0 },
    Knob { least: 120.0, most: 500.0, first: 250.0 },
    Knob { least: 4_000.0, most: 30_000.0, first: 9_000.0 },
    Knob { least: 4_000.0, most: 30_000.0, first: 9_000.0 },
    Knob { least: 100.0, most: 800.0, first: 250.0 },
];

impl Calibrated {
    /// Where calibration begins: what came near to fourteen earlier recordings, and when deaths were noticed in eight (`docs/simulation.md`).
    pub const START: Self = Self {
        latency_us: 1_000,
        header_per_mille: 50,
        request_bytes: 500,
        connect_bytes: 15_000,
        connect_us: 5_000,
        first_byte_us: 500,
        send_buffer_ms: 250,
        gossip_bytes_per_s: 9_000,
        gossip_out_bytes_per_s: 9_000,
        prepare_ms: 250,
        noticed_after_ms: 4_000,
        noticed_within_ms: 6_000,
    };

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within the bounds of the knobs"
    )]
    fn of(values: &[f64]) -> Self {
        let mut values = values.iter().map(|value| value.round() as u64);
        let mut next = || values.next().unwrap_or(0);
        Self {
            header_per_mille: next(),
            request_bytes: next(),
            connect_bytes: next(),
            first_byte_us: next(),
            send_buffer_ms: next(),
            gossip_bytes_per_s: next(),
            gossip_out_bytes_per_s: next(),
            prepare_ms: next(),
            ..Self::START
        }
    }

    /// The keys of each table of a scenario, as its file has them.
    pub(super) fn keys(&self) -> [(&'static str, String); 3] {
        let lines = |keys: &[(&str, u64)]| {
            keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>()
        };
        [
            (
                "network",
                lines(&[
                    ("latency_us", self.latency_us),
                    ("header_per_mille", self.header_per_mille),
                    ("request_bytes", self.request_bytes),
                    ("connect_bytes", self.connect_bytes),
                    ("connect_us", self.connect_us),
                    ("first_byte_us", self.first_byte_us),
                    ("send_buffer_ms", self.send_buffer_ms),
                    ("gossip_bytes_per_s", self.gossip_bytes_per_s),
                    ("gossip_out_bytes_per_s", self.gossip_out_bytes_per_s),
                ]),
            ),
            ("content", lines(&[("prepare_ms", self.prepare_ms)])),
            (
                "deaths",
                lines(&[
                    ("noticed_after_ms", self.noticed_after_ms),
                    ("noticed_within_ms", self.noticed_within_ms),
                ]),
            ),
        ]
    }

    /// The keys of a scenario, as its file has them.
    pub fn toml(&self) -> String {
        let tables = self.keys().map(|(name, keys)| format!("[{name}]\n{keys}"));
        tables.join("\n")
    }
}

/// What became of a validation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Validation {
    /// What was found with the first half.
    pub calibrated: Calibrated,
    /// How far off each figure is on the half that parameters were fitted to.
    pub fitted: Vec<Row>,
    /// How far off it is on the other half.
    pub held_back: Vec<Row>,
    /// What was promised of the other half.
    pub promises: Vec<Promise>,
    /// The trial of the other half whose makespan is off most.
    pub worst: u32,
    /// Each trial.
    pub trials: Vec<Compared>,
    /// Recordings that were not used, and why.
    pub left_out: Vec<LeftOut>,
}

/// How far off a figure is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which.
    pub figure: &'static str,
    /// As parts of what was measured.
    #[serde(flatten)]
    pub accuracy: Accuracy,
}

/// A promise of the project, held against what came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Promise {
    /// Of which figure.
    pub figure: &'static str,
    /// Most for the median of the errors, if that was promised.
    pub median_most: Option<f64>,
    /// Most for what nine of ten trials stay within.
    pub nine_of_ten_most: f64,
    /// Whether both hold.
    pub holds: bool,
}

/// A trial, real and simulated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Which.
    pub trial: Trial,
    /// Whether parameters were fitted to it.
    pub fitted: bool,
    /// In the order of [`FIGURES`].
    pub measured: [f64; FIGURES.len()],
    /// The same, simulated.
    pub simulated: [f64; FIGURES.len()],
    /// How far off that is, as parts of what was measured.
    pub errors: [f64; FIGURES.len()],
}

/// A recording that was not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The number of its trial.
    pub trial: u32,
    /// Why.
    pub why: String,
}

/// The promises: figure, most for the median, most for nine of ten.
const PROMISES: [(usize, Option<f64>, f64); 3] = [
    (MAKESPAN, Some(MEDIAN_MOST), NINE_OF_TEN_MOST),
    (EGRESS, Some(MEDIAN_MOST), NINE_OF_TEN_MOST),
    (P99, None, NINE_OF_TEN_MOST),
];

/// Why there is no validation.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// Too few can be used.
    #[error("{found} of {all} recordings can be used, {RECORDINGS_MIN} are the least")]
    TooFew {
        /// As many.
        found: usize,
        /// Of so many.
        all: usize,
    },
    /// A recording whose trial is no scenario.
    #[error("the trial of a recording: {0}")]
    Trial(#[from] ScenarioError),
}

/// The recordings in halves.
struct Halves<'a> {
    fitted: Vec<&'a Recorded>,
    held_back: Vec<&'a Recorded>,
    left_out: Vec<LeftOut>,
}

impl<'a> Halves<'a> {
    fn draw(recorded: &'a [Recorded], seed: u64) -> Result<Self, ValidationError> {
        let defects = recorded.iter().filter_map(|one| Some((one.drawn.number, one.defect()?)));
        let left_out = defects.map(|(trial, why)| LeftOut { trial, why }).collect();
        let mut fitted: Vec<&Recorded> = recorded.iter().filter(|one| one.defect().is_none()).collect();
        if fitted.len() < RECORDINGS_MIN {
            return Err(ValidationError::TooFew { found: fitted.len(), all: recorded.len() });
        }
        fitted.sort_by_key(|one| one.drawn.number);
        let mut rng = Generator::stream(seed, HALVES);
        for place in 1..fitted.len() {
            fitted.swap(place, rng.below(place + 1));
        }
        let held_back = fitted.split_off(fitted.len() / 2);
        Ok(Self { fitted, held_back, left_out })
    }

    fn judge(self, calibrated: Calibrated, seed: u64, threads: usize) -> Result<Validation, ValidationError> {
        let mut fitted = compare(&self.fitted, &calibrated, DRAWS, threads)?;
        let held_back = compare(&self.held_back, &calibrated, DRAWS, threads)?;
        for one in &mut fitted {
            one.fitted = true;
        }
        let off = |one: &Compared| one.errors[MAKESPAN].abs();
        let worst = held_back.iter().max_by(|a, b| off(a).total_cmp(&off(b)));
        let of_held_back = rows(&held_back, seed);
        Ok(Validation {
            calibrated,
            promises: promises(&of_held_back),
            fitted: rows(&fitted, seed),
            held_back: of_held_back,
            worst: worst.map_or(0, |one| one.trial.number),
            trials: fitted.into_iter().chain(held_back).collect(),
            left_out: self.left_out,
        })
    }
}

/// Calibrates with one half of the recordings and tests with the other. `seed` draws the halves; `watch` is told how many rounds of the
/// calibration are done, of how many at most. The number of threads changes nothing but the speed.
///
/// # Errors
/// [`ValidationError`] when too few recordings can be used, or one of them is no trial.
pub fn validate(
    recorded: &[Recorded],
    seed: u64,
    threads: usize,
    watch: &mut dyn FnMut(usize, usize),
) -> Result<Validation, ValidationError> {
    let halves = Halves::draw(recorded, seed)?;
    // What cannot be simulated cannot be with other parameters either.
    compare(&halves.fitted, &Calibrated::START, 1, threads)?;
    let mut asked = 0;
    let (values, _) = fit(&KNOBS, ASKS_MAX, |values| {
        asked += 1;
        watch(asked, ASKS_MAX);
        let all = compare(&halves.fitted, &Calibrated::of(values), 1, threads);
        all.map_or(f64::INFINITY, |all| cost(&all.iter().map(|one| one.errors).collect::<Vec<_>>()))
    });
    halves.judge(Calibrated::of(&values), seed, threads)
}

/// The same with values that were calibrated before.
///
/// # Errors
/// As of [`validate`].
pub fn test(
    recorded: &[Recorded],
    calibrated: Calibrated,
    seed: u64,
    threads: usize,
) -> Result<Validation, ValidationError> {
    Halves::draw(recorded, seed)?.judge(calibrated, seed, threads)
}

/// Simulates recorded trials and lays them beside what was measured.
fn compare(
    recorded: &[&Recorded],
    calibrated: &Calibrated,
    draws: u64,
    threads: usize,
) -> Result<Vec<Compared>, ScenarioError> {
    let mut all = Vec::with_capacity(recorded.len());
    let work = |number: usize, _| recorded[number].predicted(calibrated, draws);
    in_order(&vec![1; recorded.len()], u64::MAX, threads, work, |number, simulated| {
        let (one, measured) = (recorded[number], recorded[number].figures());
        all.push(simulated.map(|simulated| Compared {
            trial: one.trial.clone(),
            fitted: false,
            measured: measured.0,
            simulated: simulated.0,
            errors: measured.errors(&simulated),
        }));
    });
    all.into_iter().collect()
}

fn rows(compared: &[Compared], seed: u64) -> Vec<Row> {
    let row = |(place, figure): (usize, &&'static str)| Row {
        figure,
        accuracy: Accuracy::of(compared.iter().map(|one| one.errors[place]), seed),
    };
    FIGURES.iter().enumerate().map(row).collect()
}

fn promises(rows: &[Row]) -> Vec<Promise> {
    let promise = |(place, median_most, nine_of_ten_most): (usize, Option<f64>, f64)| {
        let Row { figure, accuracy } = &rows[place];
        let holds =
            median_most.is_none_or(|most| accuracy.median[0] <= most) && accuracy.most[0] <= nine_of_ten_most;
        Promise { figure, median_most, nine_of_ten_most, holds }
    };
    PROMISES.into_iter().map(promise).collect()
}
