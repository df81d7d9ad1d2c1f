//! Trials: set-ups drawn by Latin hypercube, each of them a scenario of the lab and one of the simulator.
//!
//! In a Latin hypercube (McKay, Beckman, Conover: "A comparison of three methods for selecting values of input variables in
//! the analysis of output from a computer code", 1979) each of n points lies in another n-th of every dimension, so that few
//! points reach all of every range.

use super::Calibrated;
use crate::model::{Generator, Rng, mix};
use crate::sim::churn::victims;
use crate::sim::envelope::{CHUNK_KIB, KILLED_LEAST, RANGES};
use crate::sim::{Scenario, ScenarioError, simulate};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// Trials of a grid at most.
pub const TRIALS_MAX: u32 = 1_000;
/// Sets the draw of the points apart from all other randomness.
const POINTS: u64 = 0x0067_7269_6473;
/// Seconds of a run, after which it ends, whoever has completed.
const DEADLINE_S: u32 = 60;
/// Most seconds that the slowest node's link takes for a chunk: with more, what passes from node to node a few times takes all of a run.
const CHUNK_S_MAX: f64 = 0.15;
/// Length of all queues. The slowest links hold several bundles of packets, as the buffers of real ones do: with 50 ms they held one, and as
/// much was sent twice as once.
const QUEUE_MS: u32 = 200;
/// Simulations by which a content is sized: the makespan grows nearly as it does.
const SIZINGS: u32 = 6;
/// When replacements begin after a kill, for these simulations, in milliseconds.
const REPLACED_AFTER_MS: u64 = 2_000;
/// Bytes of a slice, as repositories have them.
const SLICE_BYTES: u32 = 1 << 20;

/// One set-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Its number in the grid, from 0.
    pub number: u32,
    /// Of content, order and all draws.
    pub seed: u64,
    /// Nodes.
    pub nodes: u32,
    /// Cells of the one region.
    pub cells: u32,
    /// Wants under way on a node at most.
    pub in_flight: u32,
    /// How long it shall take about, in seconds.
    pub seconds: f64,
    /// Bytes of each chunk.
    pub chunk_bytes: u32,
    /// Number of chunks: at first, as many as the slowest node's link takes the time for.
    pub chunks: u32,
    /// Both links of a node, in Mbit/s, by class, the slowest first; each class has as many nodes, but for the remainder.
    pub mbit_s: Vec<f64>,
    /// The stratum's link, in Mbit/s.
    pub stratum_mbit_s: f64,
    /// The link between a cell and the rest, each way, in Mbit/s, if there are several cells.
    pub cell_mbit_s: Option<f64>,
    /// Who is killed and replaced by empty nodes.
    pub killed: Option<Killed>,
}

/// Nodes that are killed and replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Killed {
    /// How many of 100.
    pub per_cent: u32,
    /// Which: those that the simulator draws.
    pub nodes: Vec<u32>,
    /// When, in milliseconds from the start.
    pub at_ms: u64,
}

/// The points of a Latin hypercube, each with a number from 0 to below 1 for each dimension.
fn hypercube(seed: u64, points: u32, dimensions: usize) -> Vec<Vec<f64>> {
    let count = points as usize;
    let mut rng = Generator::stream(seed, POINTS);
    let mut found = vec![Vec::with_capacity(dimensions); count];
    for _ in 0..dimensions {
        let mut places: Vec<usize> = (0..count).collect();
        for place in 1..count {
            places.swap(place, rng.below(place + 1));
        }
        for (point, place) in found.iter_mut().zip(places) {
            let within = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
            point.push((place as f64 + within) / count as f64);
        }
    }
    found
}

/// The trials of a grid.
pub fn draw(seed: u64, trials: u32) -> Vec<Trial> {
    let points = hypercube(seed, trials.min(TRIALS_MAX), RANGES.len());
    (0..).zip(points).map(|(number, point)| trial(seed, number, &point)).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small positive numbers of the ranges"
)]
fn trial(grid: u64, number: u32, point: &[f64]) -> Trial {
    let mut values = RANGES.iter().zip(point).map(|(range, part)| range.at(*part));
    let mut next = || values.next().unwrap_or(0.0);
    let (nodes, cells, in_flight, chunk_kib) = (next() as u32, next() as u32, next() as u32, next());
    let (fleet_mbit_s, classes, ratio) = (next(), next() as u32, next());
    let (cell_link, stratum_link, per_cent, seconds) = (next(), next(), next(), next());
    let mean = fleet_mbit_s / f64::from(nodes);
    // Each class is as many times faster than the one before, and their mean is the mean.
    let steps = f64::from(classes.max(2) - 1);
    let speeds: Vec<f64> = (0..classes).map(|class| ratio.powf(f64::from(class) / steps)).collect();
    let each = f64::from(nodes / classes);
    let fastest: f64 = speeds[1..].iter().map(|speed| speed * each).sum();
    let sum = speeds[0] * (f64::from(nodes) - each * f64::from(classes - 1)) + fastest;
    let mbit_s: Vec<f64> = speeds.iter().map(|speed| rounded(fleet_mbit_s * speed / sum)).collect();
    let mut chunk = chunk_kib * 1_024.0;
    while chunk > CHUNK_S_MAX * mbit_s[0] * 1e6 / 8.0 && chunk > CHUNK_KIB.least * 1_024.0 {
        chunk /= 2.0;
    }
    let seed = mix(grid ^ mix(u64::from(number))) >> 32;
    let killed = (per_cent >= KILLED_LEAST).then(|| {
        let per_cent = per_cent as u32;
        // The lab kills everybody but the authority, which is node 0.
        let seed = (seed..seed + 1_000).find(|seed| !victims(nodes, per_cent, *seed, 0).contains(&0));
        (seed, Killed { per_cent, nodes: Vec::new(), at_ms: (seconds * 300.0) as u64 })
    });
    let seed = killed.as_ref().and_then(|(seed, _)| *seed).unwrap_or(seed);
    let killed =
        killed.map(|(_, killed)| Killed { nodes: victims(nodes, killed.per_cent, seed, 0), ..killed });
    Trial {
        number,
        seed,
        nodes,
        cells,
        in_flight,
        seconds: rounded(seconds),
        chunk_bytes: chunk as u32,
        chunks: (seconds * mbit_s[0] * 1e6 / 8.0 / chunk).round().max(1.0) as u32,
        mbit_s,
        stratum_mbit_s: rounded(mean * stratum_link),
        cell_mbit_s: (cells > 1).then(|| rounded(mean * cell_link)),
        killed,
    }
}

/// To hundredths: what is written is what is meant.
fn rounded(rate: f64) -> f64 {
    (rate * 100.0).round() / 100.0
}

impl Trial {
    /// Bytes of the content.
    pub fn bytes(&self) -> u64 {
        u64::from(self.chunks) * u64::from(self.chunk_bytes)
    }

    /// The same with as much content as a simulation with guessed delays takes the wanted time for: who has few chunks under way gets
    /// less in it than the links would carry.
    ///
    /// # Errors
    /// [`ScenarioError`] if it is no scenario.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
    pub fn sized(mut self) -> Result<Self, ScenarioError> {
        let mut nearest = (f64::INFINITY, self.chunks);
        for _ in 0..SIZINGS {
            let replaced_at_ms = self.killed.as_ref().map(|killed| killed.at_ms + REPLACED_AFTER_MS);
            let scenario = Scenario::parse(&self.simulation(&Calibrated::START, replaced_at_ms))?;
            let makespan_s = simulate(&scenario, None, 1, &mut |_| {}).rollout.makespan_s;
            // Who has nothing by the deadline has a time nevertheless, which is the deadline.
            let factor =
                if makespan_s.is_finite() { (self.seconds / makespan_s).clamp(0.1, 2.0) } else { 0.1 };
            // Chance may make a smaller content take longer: the best of those that were tried.
            let off = factor.max(1.0 / factor);
            if off < nearest.0 {
                nearest = (off, self.chunks);
            }
            self.chunks = (f64::from(self.chunks) * factor).round().max(1.0) as u32;
        }
        self.chunks = nearest.1;
        Ok(self)
    }

    /// The same with all rates and the content so many times as large: for a machine that is too busy with it as it is.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        let rate = |rate: f64| rounded(rate * factor);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a u32")]
        let chunks = (f64::from(self.chunks) * factor).round().max(1.0) as u32;
        Self {
            chunks,
            mbit_s: self.mbit_s.iter().copied().map(rate).collect(),
            stratum_mbit_s: rate(self.stratum_mbit_s),
            cell_mbit_s: self.cell_mbit_s.map(rate),
            ..self.clone()
        }
    }

    fn fleet(&self) -> String {
        let Self { nodes, cells, mbit_s, .. } = self;
        let slowest = mbit_s[0];
        let mut text = format!(
            "[fleet]\nnodes = {nodes}\nregions = 1\ncells_per_region = {cells}\nup_mbit_s = {slowest}\ndown_mbit_s = {slowest}\n"
        );
        let each = *nodes / u32::try_from(mbit_s.len()).unwrap_or(1);
        for (class, rate) in (1..).zip(&mbit_s[1..]) {
            let _ = write!(
                text,
                "[[fleet.class]]\nname = \"class {class}\"\nnodes = {each}\nup_mbit_s = {rate}\ndown_mbit_s = {rate}\n"
            );
        }
        text
    }

    /// The scenario for `starling lab`.
    pub fn lab(&self) -> String {
        let mut text = format!(
            "seed = {}\n{}[network]\nqueue_ms = {QUEUE_MS}\noffload = true\n",
            self.seed,
            self.fleet()
        );
        if let Some(rate) = self.cell_mbit_s {
            let _ = writeln!(text, "shared_mbit_s = {rate}");
        }
        let _ = write!(
            text,
            "[content]\nbytes = {}\nfiles = {}\nchunk_bytes = {}\n[stratum]\nup_mbit_s = {}\n[work]\nhow = \"fill\"\n\
             deadline_s = {DEADLINE_S}\n[settings]\nwindow_chunks = {}\n",
            self.bytes(),
            self.chunks,
            self.chunk_bytes,
            self.stratum_mbit_s,
            self.in_flight
        );
        if let Some(killed) = &self.killed {
            let _ = write!(
                text,
                "[[faults]]\nwhat = \"kill\"\nat_s = {}\nnodes = {:?}\nreplace = true\n",
                killed.at_ms as f64 / 1e3,
                killed.nodes
            );
        }
        text
    }

    /// The scenario for `starling simulate`. Replacements begin when the real ones did, in milliseconds from the start.
    pub fn simulation(&self, calibrated: &Calibrated, replaced_at_ms: Option<u64>) -> String {
        let [(_, network), (_, content), (_, deaths)] = calibrated.keys();
        let mut text =
            format!("seed = {}\n{}[network]\nqueue_ms = {QUEUE_MS}\n{network}", self.seed, self.fleet());
        if let Some(rate) = self.cell_mbit_s {
            let _ = write!(text, "[network.links]\ncell_up_mbit_s = {rate}\ncell_down_mbit_s = {rate}\n");
        }
        let _ = write!(
            text,
            "[content]\nbytes = {}\nslice_bytes = {SLICE_BYTES}\nchunk_bytes = {}\nclass = \"Fill\"\n{content}\
             deadline_s = {DEADLINE_S}\n[stratum]\nup_mbit_s = {}\nconnections = 512\n[settings]\nwindow_chunks = {}\n",
            self.bytes(),
            self.chunk_bytes,
            self.stratum_mbit_s,
            self.in_flight
        );
        if let Some(killed) = &self.killed {
            let replaced = replaced_at_ms
                .map_or(u64::MAX, |at| at.saturating_sub(killed.at_ms))
                .clamp(2, 1_000 * u64::from(DEADLINE_S));
            let _ = write!(
                text,
                "[deaths]\nper_cent = {}\nat_ms = {}\nreplaced_after_ms = {replaced}\n{deaths}",
                killed.per_cent, killed.at_ms
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::churn::{Churn, Fate};
    use crate::sim::envelope;

    #[test]
    fn every_point_has_a_part_of_each_dimension_of_its_own() {
        let points = hypercube(7, 48, 11);
        for dimension in 0..11 {
            let mut parts: Vec<u32> = (0..48)
                .filter(|part| {
                    let within = |point: &&Vec<f64>| {
                        (f64::from(*part)..f64::from(*part + 1)).contains(&(point[dimension] * 48.0))
                    };
                    points.iter().filter(within).count() == 1
                })
                .collect();
            parts.dedup();
            assert_eq!(parts.len(), 48, "dimension {dimension}");
        }
        assert_ne!(hypercube(7, 48, 11), hypercube(8, 48, 11));
    }

    #[test]
    fn a_grid_is_the_same_each_time_and_its_scenarios_are_well_formed() {
        for seed in [1, 2, 77] {
            let trials = draw(seed, 48);
            assert_eq!(trials, draw(seed, 48));
            for trial in &trials {
                let text = trial.simulation(&Calibrated::START, Some(9_000));
                let scenario = Scenario::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
                assert_eq!(scenario.content.bytes, trial.bytes());
                assert_eq!(envelope::outside(&scenario), [""; 0], "{text}");
            }
            let killed: Vec<&Killed> = trials.iter().filter_map(|trial| trial.killed.as_ref()).collect();
            assert!((14..24).contains(&killed.len()), "{} of 48", killed.len());
            assert!(killed.iter().all(|killed| !killed.nodes.is_empty() && !killed.nodes.contains(&0)));
        }
    }

    #[test]
    fn those_that_the_lab_kills_are_those_that_die_in_the_simulation() {
        let trials = draw(1, 48);
        let trial = trials.iter().find(|trial| trial.killed.is_some()).unwrap();
        let killed = trial.killed.as_ref().unwrap();
        let scenario = Scenario::parse(&trial.simulation(&Calibrated::START, Some(9_000))).unwrap();
        let mut drawn = Churn::new(&scenario, trial.seed, 1_000_000).unwrap();
        assert_eq!(drawn.next(killed.at_ms), Some((Fate::Dies, killed.nodes.clone())));
        assert!(trial.lab().contains(&format!("nodes = {:?}", killed.nodes)), "{}", trial.lab());
    }

    /// A run of the lab may take 30 s, and the real nodes may be slower than guessed.
    #[test]
    fn a_sized_trial_takes_as_long_as_wanted() {
        for trial in draw(1, 48).into_iter().step_by(4) {
            let sized = trial.clone().sized().unwrap();
            let killed_ms = trial.killed.as_ref().map_or(0, |killed| killed.at_ms);
            let scenario = Scenario::parse(&sized.simulation(&Calibrated::START, Some(killed_ms + 2_000)));
            let took_s = simulate(&scenario.unwrap(), None, 1, &mut |_| {}).rollout.makespan_s;
            assert!((0.6..1.5).contains(&(took_s / sized.seconds)) && took_s < 35.0, "{took_s}: {sized:?}");
            assert!(sized.chunks >= 16, "{sized:?}");
            assert_eq!(
                (sized.seed, &sized.mbit_s, &sized.killed),
                (trial.seed, &trial.mbit_s, &trial.killed)
            );
        }
    }

    #[test]
    fn a_slower_trial_takes_as_long() {
        for trial in draw(3, 48) {
            let slower = trial.scaled(0.5);
            let seconds = |trial: &Trial| trial.bytes() as f64 / trial.mbit_s[0];
            // Chunks are whole, and rates are hundredths.
            let rounding = 0.01 + 1.0 / f64::from(slower.chunks);
            assert!((seconds(&slower) / seconds(&trial) - 1.0).abs() < rounding, "{trial:?}");
            assert_eq!((slower.seed, &slower.killed), (trial.seed, &trial.killed));
        }
    }
}
