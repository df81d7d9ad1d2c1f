//! What a run shows.

use super::bound::{Bound, Term, bound};
use super::engine::{Engine, Progress};
use super::scenario::Scenario;
use crate::model::Time;
use serde::Serialize;

/// The network model, with what is known of its error.
const MODEL: &str = "time-stepped fluid (3 rounds of water-filling, steps of at most a third of a slice time; against \
                     exact max-min fairness ends of transfers are off by 3 % on average, last ends by 4 % at most; \
                     not yet validated against real nodes)";

/// The figures of a run. Bytes are content, without headers; times are virtual.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Seed of the run.
    pub seed: u64,
    /// Number of nodes.
    pub nodes: u32,
    /// Nodes that have all of the content in the end.
    pub completed: u32,
    /// When the last node had it, in seconds; of those that completed.
    pub makespan_s: f64,
    /// The least possible time, in seconds (Kumar and Ross).
    pub bound_s: f64,
    /// The term of the bound that binds.
    pub binding_term: Term,
    /// `makespan_s / bound_s`.
    pub makespan_over_bound: f64,
    /// When half of the nodes had it, in seconds.
    pub p50_s: f64,
    /// When 99 % had it, in seconds.
    pub p99_s: f64,
    /// Bytes that left the stratum.
    pub strata_bytes: u64,
    /// The same in copies of the content.
    pub strata_copies: f64,
    /// Most that came into a cell from outside of it, the stratum included, in copies of the content.
    pub most_into_a_cell_copies: f64,
    /// Most that a node gave to others, in copies of the content.
    pub most_given_copies: f64,
    /// Messages between nodes and to the stratum.
    pub messages: u64,
    /// Chunks that moved.
    pub transfers: u64,
    /// Events that nodes reacted to.
    pub events: u64,
    /// The network model and its error band.
    pub model: &'static str,
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
    let mut engine = Engine::new(scenario, seed, threads);
    engine.run(watch);
    summarise(scenario, seed, &engine)
}

fn summarise(scenario: &Scenario, seed: u64, engine: &Engine) -> Report {
    let mut hasher = blake3::Hasher::new();
    let mut times = Vec::with_capacity(engine.machines.len());
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
        if machine.finished.is_some() && machine.given_up == 0 {
            times.push(finished.as_secs_f64());
        }
    }
    hasher.update(&engine.strata_bytes.to_le_bytes());
    times.sort_unstable_by(f64::total_cmp);
    let quantile = |per_cent: usize| {
        let index = (times.len() * per_cent).div_ceil(100).max(1) - 1;
        times.get(index).copied().unwrap_or(f64::NAN)
    };
    let bytes_s = |mbit_s: f64| mbit_s * 1e6 / 8.0;
    let bytes = scenario.content.bytes as f64;
    let Bound { seconds, term } = bound(
        bytes,
        f64::from(scenario.fleet.nodes),
        bytes_s(scenario.stratum.up_mbit_s),
        bytes_s(scenario.fleet.up_mbit_s),
        bytes_s(scenario.fleet.down_mbit_s),
    );
    let makespan_s = quantile(100);
    Report {
        seed,
        nodes: scenario.fleet.nodes,
        completed: u32::try_from(times.len()).unwrap_or(u32::MAX),
        makespan_s,
        bound_s: seconds,
        binding_term: term,
        makespan_over_bound: makespan_s / seconds,
        p50_s: quantile(50),
        p99_s: quantile(99),
        strata_bytes: engine.strata_bytes,
        strata_copies: engine.strata_bytes as f64 / bytes,
        most_into_a_cell_copies: engine.crossed_bytes.iter().copied().max().unwrap_or(0) as f64 / bytes,
        most_given_copies: engine.machines.iter().map(|machine| machine.given).max().unwrap_or(0) as f64
            / bytes,
        messages: engine.messages,
        transfers: engine.transfers,
        events: engine.events,
        model: MODEL,
        result_hash: hasher.finalize().to_hex().to_string(),
    }
}
