//! Time-stepped fluid against exact max-min fairness, on networks that are drawn.
//!
//! The exact model gets steps of a sixteenth of the other's, so that what takes whole steps under both does not count as right.

use super::testing::scenario;
use super::*;
use crate::model::{Generator, Rng};
use crate::sim::scenario::Scenario;
use std::collections::VecDeque;

/// A third of what a transfer of 1 MiB takes at 1 000 Mbit/s, the fastest that is drawn.
const STEP_NS: u64 = 2_796_000;
const FINE: u64 = 16;
const BYTES: u32 = 1 << 20;

/// Who sends to whom, in this order, so many at once, and who dies when.
struct Case {
    scenario: Scenario,
    seed: u64,
    /// By sender.
    receivers: Vec<VecDeque<u32>>,
    slots: usize,
    dead: Vec<u32>,
    /// In coarse steps.
    dies: u64,
}

fn short(number: usize) -> u32 {
    u32::try_from(number).unwrap()
}

/// Nodes in racks, cells and regions, of three classes, with at least one kind of shared link that holds up.
fn draw_shared(seed: u64) -> Case {
    let mut rng = Generator::new(seed);
    let [regions, cells, racks] = [1 + rng.below(3), 1 + rng.below(2), 1 + rng.below(2)];
    let in_rack = 4 + rng.below(4);
    let nodes = regions * cells * racks * in_rack;
    let mut links = String::new();
    let sizes = [("rack", in_rack), ("cell", racks * in_rack), ("region", cells * racks * in_rack)];
    let sure = rng.below(6);
    for (place, (tier, way)) in sizes.iter().flat_map(|size| [(size, "up"), (size, "down")]).enumerate() {
        if place == sure || rng.below(3) == 0 {
            // From all of what its nodes have together to a sixth of it.
            let rate = tier.1 * 600 / (1 + rng.below(6));
            links += &format!("{}_{way}_mbit_s = {rate}\n", tier.0);
        }
    }
    let classes = "[[fleet.class]]\nname = 'slow'\nshare = 0.2\nup_mbit_s = 200\ndown_mbit_s = 400\n\
                   [[fleet.class]]\nname = 'middle'\nshare = 0.3\nup_mbit_s = 500\ndown_mbit_s = 500\n";
    let scenario = scenario(short(nodes), [regions, cells, racks].map(short), classes, &links);
    let receivers = (0..=nodes)
        .map(|from| {
            let count = if from == nodes { 2 * nodes } else { 16 + rng.below(17) };
            (0..count).map(|_| short((from + 1 + rng.below(nodes.max(2) - 1)) % nodes)).collect()
        })
        .collect();
    let dead = crate::sim::churn::draw(short(nodes), 10, Generator::stream(seed, 1));
    Case { scenario, seed, receivers, slots: 4 + rng.below(5), dead, dies: 40 + rng.below(60) as u64 }
}

/// When each transfer ended that did, in coarse steps, by sender and place in its order.
fn run(case: &Case, model: Model, fine: u64) -> Vec<Vec<f64>> {
    let links = Links::new(&case.scenario, case.seed, STEP_NS / fine);
    let mut traffic = Traffic::new(model, links, 1);
    let mut waiting: Vec<VecDeque<(usize, u32)>> = Vec::new();
    for receivers in &case.receivers {
        waiting.push(receivers.iter().copied().enumerate().collect());
    }
    let mut ends: Vec<Vec<f64>> = waiting.iter().map(|all| vec![f64::NAN; all.len()]).collect();
    let mut busy = vec![0; waiting.len()];
    let (mut ended, mut now) = (Vec::new(), 0);
    while !traffic.is_idle() || waiting.iter().any(|all| !all.is_empty()) {
        if now == case.dies * fine {
            for flow in traffic.stop_ends(&case.dead) {
                busy[flow.from as usize] -= 1;
            }
            for (from, all) in waiting.iter_mut().enumerate() {
                all.retain(|(_, to)| ![short(from), *to].iter().any(|end| case.dead.contains(end)));
            }
        }
        for (from, (all, busy)) in waiting.iter_mut().zip(&mut busy).enumerate() {
            while *busy < case.slots
                && let Some((place, to)) = all.pop_front()
            {
                *busy += 1;
                traffic.start(Flow { from: short(from), to, what: place }, BYTES);
            }
        }
        traffic.step(&mut ended);
        now += 1;
        assert!(now < 10_000 * fine, "{model:?} does not end");
        for flow in ended.drain(..) {
            ends[flow.from as usize][flow.what] = now as f64 / fine as f64;
            busy[flow.from as usize] -= 1;
        }
    }
    ends
}

struct Errors {
    /// Of the last end.
    makespan: f64,
    /// Of a transfer's end, on average.
    mean: f64,
}

/// How far a model is off, relative to the exact one.
fn errors(case: &Case, model: Model) -> Errors {
    let exact: Vec<f64> = run(case, Model::Exact, FINE).concat();
    let found: Vec<f64> = run(case, model, 1).concat();
    let both = || exact.iter().zip(&found).filter(|(exact, found)| exact.is_finite() && found.is_finite());
    let last = |ends: &[f64]| ends.iter().copied().fold(0.0, f64::max);
    let off: f64 = both().map(|(exact, found)| (found / exact - 1.0).abs()).sum();
    Errors { makespan: last(&found) / last(&exact) - 1.0, mean: off / both().count() as f64 }
}

#[test]
fn the_last_end_is_within_three_per_cent_with_shared_links_mixed_links_of_nodes_and_deaths() {
    let cases = 60;
    let (mut last_ends, mut mean_end) = (Vec::new(), 0.0);
    for seed in 0..cases {
        let errors = errors(&draw_shared(seed), Model::Fluid);
        last_ends.push((errors.makespan * 100.0, seed));
        mean_end += errors.mean * 100.0 / cases as f64;
    }
    last_ends.sort_unstable_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
    let mean = last_ends.iter().map(|(off, _)| off.abs()).sum::<f64>() / cases as f64;
    for (off, seed) in &last_ends[..5] {
        println!("seed {seed}: last end off by {off:+.2} %");
    }
    println!("{cases} cases: last ends off by {mean:.2} % on average, transfers' ends by {mean_end:.2} %");
    let (worst, seed) = last_ends[0];
    assert!(worst.abs() <= 3.0, "{worst} % at seed {seed}");
    assert!(mean_end <= 2.0, "{mean_end} %");
}

/// A few transfers through a network without shared links, in which every end counts: the hardest for steps.
fn draw_plain(seed: u64) -> Case {
    let mut rng = Generator::new(seed);
    let of_seed = usize::try_from(seed).unwrap();
    let (ends, count) = (10 + of_seed % 4 * 5, 100 + of_seed % 5 * 25);
    // Links of one speed, as in a fleet, and in every other run of two.
    let classes = "[[fleet.class]]\nname = 'slow'\nshare = 0.33\nup_mbit_s = 400\ndown_mbit_s = 400\n";
    let classes = if seed % 2 == 1 { classes } else { "" };
    let scenario = scenario(short(ends), [1, 1, 1], classes, "");
    let mut receivers = vec![VecDeque::new(); ends];
    for _ in 0..count {
        let from = rng.below(ends);
        receivers[from].push_back(short((from + 1 + rng.below(ends - 1)) % ends));
    }
    Case { scenario, seed, receivers, slots: 8, dead: Vec::new(), dies: 0 }
}

#[test]
fn transfers_end_within_a_few_per_cent_of_exact_max_min_fairness() {
    let (mut mean, mut worst_mean, mut worst_last) = (0.0_f64, 0.0_f64, 0.0_f64);
    for seed in 0..40 {
        let errors = errors(&draw_plain(seed), Model::Fluid);
        mean += errors.mean / 40.0;
        worst_mean = worst_mean.max(errors.mean);
        worst_last = worst_last.max(errors.makespan.abs());
    }
    println!("mean {mean:.4}, worst mean of a run {worst_mean:.4}, worst last end {worst_last:.4}");
    assert!(mean < 0.03, "mean error of a transfer's end: {mean:.4}");
    assert!(worst_mean < 0.06, "mean error of a transfer's end in the worst run: {worst_mean:.4}");
    assert!(worst_last < 0.05, "error of the last end: {worst_last:.4}");
}
