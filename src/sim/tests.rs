//! Whole runs of small fleets.

use super::*;

const SMALL: &str = "
seed = 1
[fleet]
nodes = 120
regions = 1
cells_per_region = 3
up_mbit_s = 10_000
down_mbit_s = 10_000
[network]
latency_us = 500
[content]
bytes = 100_000_000
slice_bytes = 1_048_576
class = 'Fill'
deadline_s = 60
[stratum]
up_mbit_s = 40_000
connections = 64
";

fn run(text: &str, seed: u64, threads: usize) -> Report {
    simulate(&Scenario::parse(text).unwrap(), Some(seed), threads, &mut |_| {})
}

#[test]
fn the_same_seed_gives_the_same_result_on_any_number_of_threads_and_another_seed_another() {
    let report = run(SMALL, 7, 1);
    assert_eq!(run(SMALL, 7, 1), report);
    assert_eq!(run(SMALL, 7, 3), report);
    assert_ne!(run(SMALL, 8, 1).result_hash, report.result_hash);
}

#[test]
fn all_get_everything_and_the_content_leaves_the_stratum_once() {
    let report = run(SMALL, 1, 1);
    assert_eq!((report.rollout.completed, report.rollout.strata_bytes), (120, 100_000_000));
    assert!(report.rollout.makespan_s >= report.rollout.bound_s, "the bound is one: {report:?}");
    assert_eq!(report.rollout.binding_term, Term::SlowestDownlink);
}

#[test]
fn with_regions_the_content_leaves_the_stratum_at_most_once_a_region() {
    let text = SMALL
        .replace("regions = 1\n", "regions = 2\n")
        .replace("cells_per_region = 3", "cells_per_region = 2");
    let report = run(&text, 1, 1);
    assert!(report.rollout.completed == 120 && report.rollout.strata_copies <= 2.1, "{report:?}");
}

#[test]
fn readers_in_order_get_everything_too() {
    let report = run(&SMALL.replace("'Fill'", "'Read'"), 1, 1);
    assert!(report.rollout.completed == 120 && report.rollout.strata_copies <= 1.05, "{report:?}");
}

#[test]
fn homes_that_the_stratum_does_not_answer_do_not_keep_the_others() {
    let report = |aside_max: u32| {
        let text = include_str!("../../simulations/scenarios/rollout-32-stalls.toml");
        let text = text.replace("bytes = 134_217_728", "bytes = 67_108_864");
        let text = text.replace("at_ms = 10_000", "at_ms = 2_000");
        run(&format!("{text}\n[settings]\naside_max = {aside_max}\n"), 1, 1)
    };
    let (with, without) = (report(96), report(0));
    assert_eq!((with.rollout.completed, without.rollout.completed), (32, 32));
    assert!(with.asides > 0 && without.asides == 0);
    let (with, without) = (with.rollout.makespan_over_bound, without.rollout.makespan_over_bound);
    assert!(with < 1.3 && with < without, "{with} with wants that stand aside, {without} without");
}

#[test]
fn wrong_scenarios_are_refused_with_the_key_and_the_value() {
    let error = |from: &str, to: &str| Scenario::parse(&SMALL.replace(from, to)).unwrap_err().to_string();
    for (from, to, parts) in [
        ("nodes = 120", "nodes = 0", ["fleet.nodes", "0"]),
        ("nodes = 120", "nodes = 9_000_000", ["nodes x chunks", "200000000"]),
        ("nodes = 120", "noodles = 120", ["noodles", "line 4"]),
        ("seed = 1", "", ["seed", "missing"]),
        ("cells_per_region = 3", "cells_per_region = 500", ["fleet.cells_per_region", "500"]),
        ("bytes = 100_000_000", "bytes = 100_000_000_000_000", ["content.bytes", "chunks"]),
        ("slice_bytes = 1_048_576", "slice_bytes = 5", ["content.slice_bytes", "5"]),
        ("class =", "chunk_bytes = 65_537\nclass =", ["content.chunk_bytes", "65537"]),
        (
            "[network]",
            "[deaths]\nper_cent = 0\nat_ms = 1\nnoticed_after_ms = 1\nreplaced_after_ms = 2\n[network]",
            ["deaths.per_cent", "0"],
        ),
        (
            "[network]",
            "[stalls]\nper_cent = 101\nat_ms = 1\nfor_ms = 1\n[network]",
            ["stalls.per_cent", "101"],
        ),
        ("up_mbit_s = 40_000", "up_mbit_s = nan", ["stratum.up_mbit_s", "NaN"]),
        ("'Fill'", "'fill'", ["fill", "Prefetch"]),
        ("connections = 64", "connections = 64\n[settings]\nwindow = 3", ["window", "unknown"]),
        ("[fleet]", "[fleet", ["line 3", "fleet"]),
    ] {
        let text = error(from, to);
        assert!(parts.iter().all(|part| text.contains(part)), "{to}: {text}");
    }
}

#[test]
fn the_published_scenario_is_well_formed_and_the_stratum_does_not_bind_it() {
    let text = include_str!("../../simulations/scenarios/flash-crowd-10k.toml");
    let scenario = Scenario::parse(text).unwrap();
    assert_eq!((scenario.fleet.nodes, scenario.slices(), scenario.cells()), (10_000, 1_024, 5));
    let gbit = |mbit_s: f64| mbit_s / 8.0 * 1e6;
    let (stratum, up) = (gbit(scenario.stratum.up_mbit_s), gbit(scenario.fleet.up_mbit_s));
    let least = bound(scenario.content.bytes as f64, 10_000.0, stratum, up, gbit(scenario.fleet.down_mbit_s));
    assert_ne!(least.term, Term::Stratum);
}
