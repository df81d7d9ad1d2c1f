//! What a run shows, in the form of the simulator's report and beside it.

use super::measure::{Sample, Traffic};
use super::scenario::{Goals, LiarKind};
use crate::sim::{Keys, Rollout};
use serde::Serialize;

/// Above this share of the machine the processors, not the links, may have set the pace.
pub const CPU_MAX: f64 = 0.7;

/// The figures of a run. Bytes of links are what they carried, Ethernet headers included.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What simulated and real runs have in common.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// How the network was made.
    pub model: String,
    /// Bytes of the files.
    pub content_bytes: u64,
    /// Bytes that the stratum stores of them: one copy.
    pub stored_bytes: u64,
    /// Share of the machine's processors that was busy, 0 to 1.
    pub cpu: f64,
    /// Whether that was more than [`CPU_MAX`]: then the run says nothing about the links.
    pub void: bool,
    /// Seconds on processors that all agents took together.
    pub agents_cpu_s: f64,
    /// Share of one processor that an agent took, as the mean of all nodes.
    pub agent_cpu: f64,
    /// Bytes a second on a node's link, both ways together, as the mean of all nodes.
    pub link_bytes_per_s: f64,
    /// Bytes on the stratum's uplink.
    pub strata_wire_bytes: u64,
    /// Requests to the stratum.
    pub strata_requests: u64,
    /// Packets that uplinks' queues dropped.
    pub dropped_up: u64,
    /// Packets that all other queues dropped.
    pub dropped_down: u64,
    /// Links between switches.
    pub crossings: Vec<Crossing>,
    /// What readers saw and should not have, at most a few of each node.
    pub errors: Vec<String>,
    /// Whether all that was read is what was published.
    pub identical: bool,
    /// What was promised.
    pub goals: Goals,
    /// The goals that were missed, in words.
    pub missed: Vec<String>,
    /// Each node, replacements after those that they replaced.
    pub per_node: Vec<NodeReport>,
    /// How busy the links were over time.
    pub timeline: Vec<Moment>,
    /// What decided who was the home of what, if that was asked for. Not printed: it says nothing without a simulation.
    #[serde(skip)]
    pub keys: Option<Keys>,
}

/// What became of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It got everything.
    Completed,
    /// It did not, until the deadline or because of an error.
    Incomplete,
    /// It was killed.
    Killed,
    /// It was a liar.
    Liar,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeReport {
    /// Its name, as in the names of its logs.
    pub name: String,
    /// Its cell.
    pub cell: String,
    /// What became of it.
    pub fate: Fate,
    /// How it lied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lies: Option<LiarKind>,
    /// Its place among the nodes of the scenario; a replacement has that of the node that it replaces.
    pub place: u32,
    /// When it began to mount, in seconds from the start of the run.
    pub began_s: Option<f64>,
    /// When it had everything, in seconds from the start of the run.
    pub completed_s: Option<f64>,
    /// Bytes on its uplink. A replacement shares the link with the node that it replaces.
    pub up_bytes: u64,
    /// Bytes on its downlink.
    pub down_bytes: u64,
    /// `up_bytes` in copies of the content.
    pub up_copies: f64,
    /// Seconds on processors that its agent took in the measured time; `None` when it was killed.
    pub cpu_s: Option<f64>,
    /// Plain bytes that neighbours sent it, by its own account; `None` when its agent does not run.
    pub from_peers_bytes: Option<u64>,
    /// Plain bytes that it took from the stratum.
    pub from_strata_bytes: Option<u64>,
}

/// The link between a switch and the rest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Crossing {
    /// Which switch.
    pub switch: u32,
    /// Bytes of chunks that came to the nodes behind it from elsewhere: from neighbours, by the agents' account, and bodies from the
    /// stratum. Where an agent was killed, or does not tell, all that the link carried.
    pub in_chunk_bytes: u64,
    /// The same in copies of the content.
    pub in_copies: f64,
    /// Bytes that crossed to the nodes behind it, with all headers, answers, and what was given up on the way.
    pub in_bytes: u64,
    /// Bytes that left it.
    pub out_bytes: u64,
}

/// How busy the links were in the time up to a moment, as shares of their rates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Moment {
    /// Seconds from the start.
    pub at_s: f64,
    /// The stratum's uplink.
    pub strata_up: f64,
    /// The mean of all nodes' uplinks.
    pub up: f64,
    /// The mean of all nodes' downlinks.
    pub down: f64,
    /// The machine's processors.
    pub cpu: f64,
}

/// Full rates, in bytes a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct FullRates {
    pub(super) strata_up: f64,
    pub(super) up: f64,
    pub(super) down: f64,
}

/// Seconds between two moments of the timeline.
const MOMENT_S: f64 = 1.0;

/// The timeline; in each sample the nodes' ports come first, then the stratum's.
pub(super) fn timeline(samples: &[Sample], nodes: usize, rates: FullRates) -> Vec<Moment> {
    let mut moments = Vec::new();
    let Some(mut last) = samples.first() else { return moments };
    let start = last.at;
    for sample in &samples[1..] {
        let seconds = sample.at.since(last.at).as_secs_f64();
        if seconds < MOMENT_S {
            continue;
        }
        let gone = |port: usize| difference(last.ports[port], sample.ports[port]);
        let mean = |pick: fn(Traffic) -> u64| {
            (0..nodes).map(|port| pick(gone(port)) as f64).sum::<f64>() / nodes as f64 / seconds
        };
        moments.push(Moment {
            at_s: sample.at.since(start).as_secs_f64(),
            strata_up: gone(nodes).up as f64 / seconds / rates.strata_up,
            up: mean(|traffic| traffic.up) / rates.up,
            down: mean(|traffic| traffic.down) / rates.down,
            cpu: busy(last, sample),
        });
        last = sample;
    }
    moments
}

/// What went through a port between two samples.
pub(super) fn difference(before: Traffic, after: Traffic) -> Traffic {
    Traffic { up: after.up.saturating_sub(before.up), down: after.down.saturating_sub(before.down) }
}

/// The share of the processors' time that they were busy.
pub(super) fn busy(before: &Sample, after: &Sample) -> f64 {
    let (before, after) = (before.processors, after.processors);
    after.busy.saturating_sub(before.busy) as f64 / after.all.saturating_sub(before.all).max(1) as f64
}

impl Report {
    /// Holds the figures against the goals.
    pub(super) fn judge(&mut self) {
        let goals = &self.goals;
        let judged = [
            ("makespan over bound", self.rollout.makespan_over_bound, goals.makespan_over_bound),
            ("copies that left the stratum", self.rollout.strata_copies, goals.strata_copies),
            ("copies that one node uploaded", self.rollout.most_given_copies, goals.upload_copies),
            (
                "copies that crossed to one switch",
                self.rollout.most_into_a_cell_copies,
                goals.crossing_copies,
            ),
            ("seconds until 99 % had it", self.rollout.p99_s, goals.p99_s),
            ("bytes a second on a node's link", self.link_bytes_per_s, goals.link_bytes_per_s),
            ("share of a processor for an agent", self.agent_cpu, goals.agent_cpu),
        ];
        self.missed = judged
            .into_iter()
            // What is not a number is no success.
            .filter_map(|(what, found, goal)| {
                goal.filter(|goal| found.is_nan() || found > *goal).map(|goal| (what, found, goal))
            })
            .map(|(what, found, goal)| format!("{what}: {found:.4}, promised at most {goal}"))
            .collect();
    }

    /// What makes the run a failure, goals aside.
    pub fn problems(&self) -> Vec<String> {
        let mut found = self.errors.clone();
        let missing = self.rollout.nodes.saturating_sub(self.rollout.completed);
        if missing > 0 {
            found.push(format!("{missing} of {} nodes did not get all content", self.rollout.nodes));
        }
        found
    }
}
