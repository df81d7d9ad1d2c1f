//! Each fault that a scenario can have is seen to have its effect in a small run, and the same on any number of threads.

use super::*;

const BASE: &str = "
seed = 1
[fleet]
nodes = 80
regions = 2
cells_per_region = 2
up_mbit_s = 200
down_mbit_s = 200
[network]
latency_us = 500
[content]
bytes = 50_331_648
slice_bytes = 1_048_576
chunk_bytes = 262_144
class = 'Fill'
deadline_s = 120
[stratum]
up_mbit_s = 800
connections = 64
";

fn run(more: &str) -> Report {
    let scenario = Scenario::parse(&format!("{BASE}{more}")).unwrap();
    let report = simulate(&scenario, Some(4), 1, &mut |_| {});
    assert_eq!(simulate(&scenario, Some(4), 3, &mut |_| {}), report, "{more}");
    report
}

fn change(whose: &str, at_ms: u32, for_ms: u32, factor: f64) -> String {
    format!("[[network.change]]\nof = {whose}\nat_ms = {at_ms}\nfor_ms = {for_ms}\nfactor = {factor}\n")
}

/// Each at its time: it takes the bound of 2 s and more for the last of those who were replaced to get all.
#[test]
fn nodes_that_die_at_several_times_are_replaced_and_get_everything() {
    let deaths = |at_ms: u32| {
        format!(
            "[[deaths]]\nper_cent = 10\nat_ms = {at_ms}\nnoticed_after_ms = 200\nreplaced_after_ms = 400\n"
        )
    };
    let one = run(&deaths(500));
    let three = run(&format!("{}{}{}", deaths(500), deaths(1_000), deaths(1_500)));
    assert_eq!((one.deaths, one.rollout.completed), (8, 80), "{one:?}");
    assert!((22..=24).contains(&three.deaths) && three.rollout.completed == 80, "{three:?}");
    assert!(one.rollout.makespan_s > 0.9 + 2.0 && three.rollout.makespan_s > 1.9 + 2.0, "{one:?} {three:?}");
}

#[test]
fn nodes_that_leave_one_by_one_are_replaced_and_get_everything() {
    let churn = "[churn]\nlifetime_s = 10\nfor_ms = 3_000\nnoticed_after_ms = 200\nreplaced_after_ms = 500\n";
    let report = run(churn);
    // 80 nodes for three of ten seconds.
    assert!((12..=36).contains(&report.deaths), "{report:?}");
    assert_eq!(report.rollout.completed, 80, "{report:?}");
    assert!(report.rollout.makespan_s > run("").rollout.makespan_s + 0.5, "{report:?}");
    for strategy in ["origin", "dragonfly", "kraken", "faasnet"] {
        let other = run(&format!("{churn}[strategy]\nname = '{strategy}'\n"));
        assert_eq!(other.rollout.completed, 80, "{strategy} {other:?}");
        assert!(other.deaths > 0, "{strategy}");
    }
}

/// A tenth of the speed for four seconds, and for good.
#[test]
fn slow_nodes_are_slow_for_as_long_as_they_are() {
    let plain = run("");
    let slow = run(&change("'nodes'\nper_cent = 10", 0, 4_000, 0.1));
    let slower = run(&change("'nodes'\nper_cent = 10", 0, 60_000, 0.1));
    assert!(plain.rollout.makespan_s < 4.0, "{plain:?}");
    assert!((4.0..8.0).contains(&slow.rollout.makespan_s), "{slow:?}");
    // 50 MB with 20 Mbit/s are 20 s.
    assert!((20.0..60.0).contains(&slower.rollout.makespan_s), "{slower:?}");
    // They are homes of a tenth of the slices, which is felt by all, but the others do not wait as long as they do.
    assert!(slower.rollout.p50_s < slower.rollout.makespan_s / 2.0, "{slower:?}");
}

#[test]
fn a_region_that_is_cut_off_waits_until_the_cut_ends() {
    let report = run(&change("'region'\nnumber = 1", 400, 5_000, 0.0));
    assert_eq!(report.rollout.completed, 80);
    assert!(report.rollout.p50_s < 5.4 && report.rollout.makespan_s > 5.4, "{report:?}");
}

#[test]
fn a_stratum_that_is_away_or_slow_delays_all() {
    let plain = run("");
    let away = run(&change("'stratum'", 100, 5_000, 0.0));
    assert!(away.rollout.completed == 80 && away.rollout.p50_s > 5.1, "{away:?}");
    // 50 MB for each of two regions with 40 Mbit/s are 20 s.
    let slow = run(&change("'stratum'", 0, 80_000, 0.05));
    assert!(slow.rollout.completed == 80 && slow.rollout.p50_s > 10.0, "{slow:?}");
    assert!(plain.rollout.p50_s < 4.0, "{plain:?}");
}

#[test]
fn liars_are_passed_over_and_the_honest_get_everything() {
    let report = run("[liars]\nper_cent = 20\nhow = ['corrupt', 'stall', 'lie']\n");
    assert_eq!((report.liars, report.rollout.nodes, report.rollout.completed), (16, 64, 64), "{report:?}");
    assert!(report.doubts > 0 && report.rollout.strata_copies > run("").rollout.strata_copies, "{report:?}");
}

#[test]
fn a_root_that_spreads_reaches_all_and_they_begin_when_they_hear_of_it() {
    let at_once = run("");
    let report = run("[arrival.news]\nnodes = 1\n");
    let root = report.root.clone().unwrap();
    assert_eq!((root.heard, report.rollout.completed), (80, 80), "{report:?}");
    assert!(root.heard_s.p50 > 0.01 && root.heard_s.max < 1.0, "{root:?}");
    // ln 20 and three more members, eight contacts, and five more later: at most.
    assert!((5.0..21.0).contains(&root.messages_each), "{root:?}");
    assert!((report.last_start_s - root.heard_s.max).abs() < 1e-9 && at_once.root.is_none());
    let slow = run("[arrival.news]\nnodes = 1\nhandshake_ms = 600\n").root.unwrap();
    assert!(slow.heard_s.p50 > 2.5 * root.heard_s.p50, "{slow:?} {root:?}");
    let many = run("[arrival.news]\nnodes = 40\n").root.unwrap();
    assert!(many.heard_s.p50 < 0.01, "half of them know it from the beginning: {many:?}");
}
