//! What a run shows: its figures, and what can be made of its record for people and for other programs.
//!
//! [`Digest`] is what reports keep of a run when its record is gone: many runs fit into memory. [`verdict`] says in words how
//! runs went, [`html`] draws them, [`svg`] has the charts alone; [`csv`], `parquet` (with the feature `node`) and [`perfetto`]
//! take the record itself, and [`restore`] makes a run of its tables again. Everything is written to a [`std::io::Write`] that the caller opened.

mod charts;
pub mod csv;
mod digest;
pub mod html;
#[cfg(feature = "node")]
pub mod parquet;
pub mod perfetto;
pub mod restore;
pub mod svg;
pub mod tables;
#[cfg(test)]
mod testing;
mod text;
pub mod verdict;

pub use digest::{Digest, Group, Spent, group};

use super::bound::{Servers, bound_of};
use super::engine::{Engine, Progress};
use super::envelope;
use super::fleet::Machine;
use super::network::LinksOfAKind;
use super::readers::Readers;
use super::record::{Record, Recording};
use super::rollout::{Moved, Rollout, quantile};
use super::root_spread::RootSpread;
use super::scenario::{Name, Scenario};
use super::strategy::simulate_other;
use crate::model::Time;
use serde::Serialize;

/// The figures of a run. Bytes are content, without headers; times are virtual.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Who decided.
    pub strategy: &'static str,
    /// What simulated and real runs have in common.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// When the last node of those that completed began, in seconds.
    pub last_start_s: f64,
    /// What half of them took at most since they began, in seconds.
    pub own_p50_s: f64,
    /// What 99 % of them took at most since they began, in seconds.
    pub own_p99_s: f64,
    /// Messages between nodes and to the stratum.
    pub messages: u64,
    /// Chunks that moved.
    pub transfers: u64,
    /// Events that nodes reacted to.
    pub events: u64,
    /// Nodes that lied. They are not among those that completed, nor in the times.
    pub liars: u32,
    /// Nodes that died on the way and were replaced, each as often as it did.
    pub deaths: u32,
    /// Times that an honest node decided to pass somebody over for a while, who took asks and delivered nothing.
    pub doubts: u64,
    /// Times that an honest node's want stood still for so long that another began in its place.
    pub asides: u64,
    /// How those who read waited, if somebody reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readers: Option<Readers>,
    /// How the new root spread, if the nodes began with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<RootSpread>,
    /// What the links did, kind by kind.
    pub links: Vec<LinksOfAKind>,
    /// The network model, and how far it is from exact sharing.
    pub model: &'static str,
    /// How far off predictions were where they were held against real nodes, and in what this scenario lies outside of that.
    pub accuracy: String,
    /// BLAKE3 over each node's time and byte counters, in order.
    pub result_hash: String,
}

/// Runs a scenario. `seed` overrides the scenario's; `threads` changes nothing but the speed.
pub fn simulate(
    scenario: &Scenario,
    seed: Option<u64>,
    threads: usize,
    watch: &mut dyn FnMut(Progress),
) -> Report {
    let seed = seed.unwrap_or(scenario.seed);
    if let Some((report, _)) = simulate_other(scenario, seed, None, watch) {
        return report;
    }
    let mut engine = Engine::new(scenario, seed, threads);
    engine.run(watch);
    summarise(scenario, seed, &engine)
}

/// The same, and what it leaves for reports. The figures are those of [`simulate`].
pub fn simulate_recorded(
    scenario: &Scenario,
    seed: Option<u64>,
    recording: &Recording,
    threads: usize,
    watch: &mut dyn FnMut(Progress),
) -> (Report, Record) {
    let seed = seed.unwrap_or(scenario.seed);
    if let Some(done) = simulate_other(scenario, seed, Some(recording), watch) {
        return done;
    }
    let mut engine = Engine::new(scenario, seed, threads);
    engine.record(scenario, seed, recording);
    engine.run(watch);
    let report = summarise(scenario, seed, &engine);
    let record = engine.take_record().unwrap_or_default();
    (report, record)
}

pub(super) fn summarise(scenario: &Scenario, seed: u64, engine: &Engine) -> Report {
    let mut hasher = blake3::Hasher::new();
    let mut times = Vec::with_capacity(engine.machines.len());
    let mut own_times = Vec::with_capacity(engine.machines.len());
    let mut last_start_s = 0.0_f64;
    for machine in &engine.machines {
        let finished = machine.finished.unwrap_or(Time::NEVER);
        for number in [
            finished.as_nanos(),
            machine.from_peers,
            machine.from_strata,
            u64::from(machine.delivered),
            u64::from(machine.given_up),
        ] {
            hasher.update(&number.to_le_bytes());
        }
        if machine.liar.is_none() && machine.finished.is_some() && machine.given_up == 0 {
            let start = engine.start(machine.me).as_secs_f64();
            last_start_s = last_start_s.max(start);
            times.push(finished.as_secs_f64());
            own_times.push(finished.as_secs_f64() - start);
        }
    }
    hasher.update(&engine.strata_bytes.to_le_bytes());
    let bytes = scenario.content.bytes as f64;
    let bound = bound_of(scenario, seed, Servers::default());
    let moved = Moved {
        copy: bytes,
        strata: engine.strata_bytes,
        most_into_a_cell: engine.crossed_bytes.iter().copied().max().unwrap_or(0),
        most_given: engine.machines.iter().map(|machine| machine.given).max().unwrap_or(0),
    };
    let honest = || engine.machines.iter().filter(|machine| machine.liar.is_none());
    let nodes = u32::try_from(honest().count()).unwrap_or(u32::MAX);
    let rollout = Rollout::new(seed, nodes, &mut times, bound, moved);
    own_times.sort_unstable_by(f64::total_cmp);
    Report {
        strategy: Name::Starling.text(),
        rollout,
        last_start_s,
        own_p50_s: quantile(&own_times, 50),
        own_p99_s: quantile(&own_times, 99),
        liars: scenario.fleet.nodes - nodes,
        deaths: engine.died(),
        doubts: honest().map(|machine| machine.counts().doubts).sum(),
        asides: honest().map(|machine| machine.counts().asides).sum(),
        messages: engine.messages(),
        transfers: engine.transfers,
        events: engine.events(),
        readers: Readers::of(honest().filter_map(Machine::reading)),
        root: engine.root_spread(),
        links: engine.usage(),
        model: scenario.network.model.text(),
        accuracy: envelope::quote(scenario),
        result_hash: hasher.finalize().to_hex().to_string(),
    }
}
