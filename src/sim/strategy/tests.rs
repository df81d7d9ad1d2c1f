//! Runs of small fleets under each strategy: what can be worked out by hand, that runs repeat, and that no fault holds them up.

use super::*;
use crate::sim::{Plan, simulate};
use proptest::prelude::*;

const OTHERS: [&str; 6] = ["origin", "proxies", "dragonfly", "kraken", "spegel", "faasnet"];
/// All of the content.
const BYTES: f64 = 100_000_000.0;
/// Seconds in which a node's link moves all of it.
const ALONE: f64 = 0.8;

/// Nodes with 1 000 Mbit/s each way in so many regions and cells a region, behind a stratum with 4 000; `keys` are of the
/// strategy, `more` is further tables.
fn text(name: &str, nodes: u32, [regions, cells]: [u32; 2], keys: &str, more: &str) -> String {
    format!(
        "seed = 1
[fleet]
nodes = {nodes}
regions = {regions}
cells_per_region = {cells}
up_mbit_s = 1_000
down_mbit_s = 1_000
[network]
latency_us = 500
region_latency_us = 5_000
[content]
bytes = 100_000_000
slice_bytes = 1_048_576
class = 'Fill'
deadline_s = 600
[stratum]
up_mbit_s = 4_000
connections = 64
[strategy]
name = '{name}'
timeout_ms = 2_000
{keys}
{more}"
    )
}

fn run_of(text: &str, seed: u64) -> Report {
    let scenario = Scenario::parse(text).unwrap_or_else(|error| panic!("{error}"));
    simulate(&scenario, Some(seed), 1, &mut |_| {})
}

fn run_plain(name: &str, nodes: u32, keys: &str) -> Report {
    run_of(&text(name, nodes, [1, 2], keys, ""), 1)
}

/// Whether it is the expected value, or off by so much of it.
fn is_near(found: f64, expected: f64, off: f64) -> bool {
    (found / expected - 1.0).abs() <= off
}

fn gigabytes(report: &Report, kind: &str) -> f64 {
    let links = report.links.iter().filter(|links| links.kind.contains(kind));
    links.map(|links| links.gigabytes).sum()
}

#[test]
fn from_one_origin_all_takes_as_many_copies_as_there_are_nodes() {
    let report = run_plain("origin", 40, "");
    assert_eq!((report.rollout.completed, report.strategy), (40, "origin"));
    assert_eq!(report.rollout.strata_bytes, 4_000_000_000);
    let expected = 40.0 * BYTES / 500e6;
    assert!(is_near(report.rollout.makespan_s, expected, 0.02), "{report:?}");
    // Few nodes are bound by their own links; their latencies are rounded up to steps of 4 ms.
    assert!(is_near(run_plain("origin", 2, "").rollout.makespan_s, ALONE, 0.04));
    assert!(is_near(run_plain("origin", 4, "").rollout.makespan_s, ALONE, 0.04));
}

#[test]
fn proxies_fetch_one_copy_each_and_their_links_bind_their_cells() {
    let report = run_plain("proxies", 60, "");
    assert_eq!((report.rollout.completed, report.rollout.strata_bytes), (60, 200_000_000), "{report:?}");
    assert_eq!(report.rollout.most_given_copies, 0.0);
    let expected = 30.0 * ALONE;
    // A little more, for all wait while the proxy fetches the next few.
    assert!(is_near(report.rollout.makespan_s, expected, 0.04), "{report:?}");
    // All go on alike, so half of them are not done before the end.
    assert!(report.rollout.p50_s > 0.9 * report.rollout.makespan_s, "{report:?}");
    let wide = run_plain("proxies", 60, "[strategy.proxies]\nper_cell = 2\nmbit_s = 10_000");
    assert_eq!(wide.rollout.strata_bytes, 400_000_000);
    assert!(is_near(wide.rollout.makespan_s, 4.0 * BYTES / 500e6 + ALONE, 0.6), "{wide:?}");
    let warm = run_plain("proxies", 60, "[strategy.proxies]\ncache = 'warm'");
    assert_eq!(warm.rollout.strata_copies, 60.0, "what left those who had it in the beginning");
    assert_eq!(gigabytes(&warm, "of the stratum"), 0.0);
}

#[test]
fn in_a_chain_each_node_is_one_block_behind_the_one_before() {
    let keys = "[strategy.faasnet]\narity = 1";
    let block_s = 524_288.0 / 125e6 + 0.000_5;
    for nodes in [1, 10, 40] {
        let report = run_of(&text("faasnet", nodes, [1, 1], keys, ""), 1);
        assert_eq!(report.rollout.strata_bytes, 100_000_000);
        let expected = ALONE + 0.001 + f64::from(nodes - 1) * block_s;
        assert!(is_near(report.rollout.makespan_s, expected, 0.03), "{nodes}: {report:?}");
    }
}

#[test]
fn in_a_binary_tree_two_children_share_a_link_and_twice_the_nodes_are_one_level_more() {
    let report = |nodes: u32| run_of(&text("faasnet", nodes, [1, 1], "", ""), 1);
    let block_s = 524_288.0 / 62.5e6 + 0.000_5;
    for levels in 2_u32..7 {
        let report = report((1 << levels) - 1);
        assert_eq!((report.rollout.strata_copies, report.rollout.most_given_copies), (1.0, 2.0));
        let expected = 2.0 * ALONE + f64::from(levels) * block_s;
        assert!((report.rollout.makespan_s - expected).abs() < 2.0 * block_s, "{levels}: {report:?}");
    }
}

#[test]
fn whole_layers_come_from_the_registry_until_somebody_has_announced_them() {
    // One after the other: the first fetches all from the registry, the others from those before.
    let rolling = text("spegel", 6, [1, 1], "", "[arrival.rolling]\nnodes = 1\n");
    let report = run_of(&format!("{rolling}[strategy.spegel]\nannounce_ms = 0\n"), 1);
    assert_eq!((report.rollout.completed, report.rollout.strata_bytes), (6, 100_000_000), "{report:?}");
    assert!(is_near(report.own_p50_s, ALONE + 3.0 * 0.02, 0.08), "{report:?}");
    // At once: nobody has announced the first three of eight layers, and all are about as far.
    let report = run_plain("spegel", 40, "");
    assert!((15.0..=40.0).contains(&report.rollout.strata_copies), "{report:?}");
    // Half of them after the others have everything: those fetch from these.
    let waves = text("spegel", 40, [1, 2], "", "[arrival.waves]\nper_cent = 50\nevery_ms = 6_000\n");
    let report = run_of(&waves, 1);
    assert_eq!((report.rollout.completed, report.rollout.strata_copies), (40, 20.0), "{report:?}");
    assert!(report.rollout.most_given_copies > 0.5 && report.own_p99_s < 6.0, "{report:?}");
    // Announcements that come too late are as good as none.
    let slow = text("spegel", 40, [1, 1], "", "");
    let report = run_of(&format!("{slow}[strategy.spegel]\nannounce_ms = 60_000\n"), 1);
    assert_eq!(report.rollout.strata_copies, 40.0);
    assert!(is_near(report.rollout.makespan_s, 8.0, 0.03), "{report:?}");
}

#[test]
fn a_swarm_comes_near_the_bound_and_a_cold_origin_fetches_all_of_it_first() {
    let keys = "[strategy.kraken]\npiece_bytes = 262_144\nannounce_ms = 200\n";
    let report = run_plain("kraken", 100, keys);
    assert_eq!(report.rollout.completed, 100);
    assert!(report.rollout.makespan_over_bound < 2.0, "{report:?}");
    assert!(report.rollout.strata_copies < 25.0, "{report:?}");
    assert_eq!(gigabytes(&report, "of the stratum"), 0.0, "the origins have it");
    let cold = run_plain("kraken", 100, &format!("{keys}cache = 'cold'\n"));
    assert_eq!(cold.rollout.strata_bytes, 300_000_000, "each of three origins fetches it once");
    let later = cold.rollout.p50_s - report.rollout.p50_s;
    assert!(is_near(later, ALONE, 0.5), "{later} {report:?} {cold:?}");
}

#[test]
fn seed_peers_alone_fetch_from_the_stratum_and_children_from_parents() {
    let keys = "[strategy.dragonfly]\npiece_bytes = 524_288\n";
    let report = run_plain("dragonfly", 100, keys);
    assert_eq!((report.rollout.completed, report.rollout.strata_bytes), (100, 100_000_000), "{report:?}");
    // Its many children share the seed peer's link, ten pieces each, and have little to give to each other meanwhile.
    assert!(
        report.rollout.makespan_over_bound < 15.0 && report.rollout.most_given_copies > 1.0,
        "{report:?}"
    );
    let two = run_plain("dragonfly", 100, &format!("{keys}seed_peers = 2\n"));
    assert_eq!(two.rollout.strata_bytes, 200_000_000);
    // One child alone, whose parent is the seed peer.
    let one = run_of(&text("dragonfly", 1, [1, 1], keys, ""), 1);
    assert!(is_near(one.rollout.makespan_s, ALONE, 0.1), "{one:?}");
    // Who has no room for children leaves all to the source, for lack of parents.
    let none = "[strategy.dragonfly]\nuploads = 1\nseed_uploads = 1\n";
    let chain = run_plain("dragonfly", 12, none);
    assert_eq!(chain.rollout.completed, 12);
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another_where_something_is_drawn() {
    let more = "[deaths]\nper_cent = 10\nat_ms = 700\nnoticed_after_ms = 500\nreplaced_after_ms = 900\n";
    for name in OTHERS {
        let text = text(name, 50, [2, 2], "", more);
        let report = run_of(&text, 7);
        assert_eq!(run_of(&text, 7), report, "{name}");
        assert_ne!(run_of(&text, 8).result_hash, report.result_hash, "{name}");
        assert_eq!(report.rollout.completed, 50, "{name}: {report:?}");
    }
}

#[test]
fn a_run_that_is_recorded_is_the_same_and_its_record_has_all_nodes_and_servers() {
    for name in OTHERS {
        let scenario = Scenario::parse(&text(name, 40, [2, 2], "", "")).unwrap();
        let recording = Recording { traced: vec![7] };
        let (report, record) = crate::sim::simulate_recorded(&scenario, Some(1), &recording, 1, &mut |_| {});
        assert_eq!(simulate(&scenario, Some(1), 1, &mut |_| {}), report, "{name}");
        assert_eq!(record.nodes.len(), 40, "{name}");
        for node in &record.nodes {
            assert_eq!(node.from_strata + node.from_peers, 100_000_000, "{name}: {node:?}");
        }
        let last = record.samples.last().unwrap();
        assert_eq!((last.completed, last.strata_bytes), (40, report.rollout.strata_bytes), "{name}");
        assert!(!record.traces[0].transfers.is_empty(), "{name}");
        let of_servers = record.links.iter().filter(|link| link.name.contains("of proxy ")).count();
        assert_eq!(of_servers, if name == "proxies" { 8 } else { 0 }, "{:?}", record.links);
    }
}

#[test]
fn no_fault_holds_anybody_up_for_ever() {
    let deaths = "[deaths]\nper_cent = 30\nat_ms = 600\nnoticed_after_ms = 400\nreplaced_after_ms = 1_000\n";
    let cut = "[[network.change]]\nat_ms = 500\nfor_ms = 6_000\nof = 'region'\nnumber = 1\nfactor = 0\n";
    let outage = "[[network.change]]\nat_ms = 100\nfor_ms = 3_000\nof = 'stratum'\nfactor = 0\n";
    let slow = "[[network.change]]\nat_ms = 100\nof = 'nodes'\nper_cent = 20\nfactor = 0.1\n";
    let stalls = "[stalls]\nper_cent = 50\nat_ms = 0\nfor_ms = 3_000\n";
    let waves = "[arrival.waves]\nper_cent = 20\nevery_ms = 400\n";
    let loss = "loss_per_mille = 50\nqueue_ms = 5\n";
    for name in OTHERS {
        let whole = run_of(&text(name, 60, [2, 2], "", ""), 3);
        for more in [deaths, cut, outage, slow, stalls, waves, &[deaths, cut, waves].concat()] {
            let report = run_of(&text(name, 60, [2, 2], "", more), 3);
            assert_eq!(report.rollout.completed, 60, "{name}: {more}{report:?}");
            let longer = report.rollout.makespan_s - whole.rollout.makespan_s;
            assert!(longer < 100.0, "{name}: {more}{report:?}");
        }
        let lossy = text(name, 60, [2, 2], "", "").replace("[content]", &format!("{loss}[content]"));
        assert_eq!(run_of(&lossy, 3).rollout.completed, 60, "{name}");
        for model in ["exact", "fifo"] {
            let text = text(name, 30, [2, 1], "", deaths)
                .replace("[network]", &format!("[network]\nmodel = '{model}'"));
            assert_eq!(run_of(&text, 3).rollout.completed, 30, "{name} {model}");
        }
    }
}

#[test]
fn what_is_cut_off_for_good_ends_with_the_deadline_and_the_rest_is_done() {
    let cut = "[[network.change]]\nat_ms = 0\nof = 'region'\nnumber = 1\nfactor = 0\n";
    for name in OTHERS {
        let text = text(name, 40, [2, 2], "", cut).replace("deadline_s = 600", "deadline_s = 40");
        let report = run_of(&text, 1);
        assert_eq!(report.rollout.completed, 20, "{name}: {report:?}");
    }
}

#[test]
fn what_the_other_strategies_cannot_do_is_refused_with_its_line() {
    let liars = "[liars]\nper_cent = 5\nhow = ['lie']\n";
    let plain = |name: &str, more: &str| text(name, 40, [1, 1], "", more);
    for (text, line, part) in [
        (plain("kraken", liars), "[liars]", "modelled without liars"),
        (
            plain("spegel", "").replace("class = 'Fill'", "class = 'Read'\nread_ahead_chunks = 4"),
            "read_ahead_chunks = 4",
            "modelled without readers",
        ),
        (
            plain("faasnet", "")
                .replace("bytes = 100_000_000", "bytes = 1_000_000_000_000")
                .replace("slice_bytes = 1_048_576", "slice_bytes = 536_870_912")
                .replace("nodes = 40", "nodes = 1_000"),
            "[strategy]",
            "nodes x pieces",
        ),
        (plain("napster", ""), "name = 'napster'", "one of starling, origin"),
        (
            plain("starling", &format!("{liars}[compare]\nstrategies = ['starling', 'origin']\n")),
            "[liars]",
            "the strategy `origin`",
        ),
        (
            plain("starling", "[compare]\nstrategies = ['origin', 'origin']\n"),
            "strategies = ",
            "each strategy once",
        ),
        (plain("starling", "[compare]\nstrategies = []\n"), "strategies = []", "at least one"),
        (
            plain(
                "starling",
                "[compare]\nstrategies = ['origin']\n[sweep]\nstrategy.name = ['origin', 'kraken']\n",
            ),
            "strategy.name",
            "left out with `[compare]`",
        ),
        (
            plain(
                "starling",
                "[compare]\nstrategies = ['origin']\n[sweep]\ncompare.strategies = [['origin']]\n",
            ),
            "compare.strategies",
            "all of `compare.strategies`",
        ),
    ] {
        let error = Plan::parse(&text, None, None).expect_err(part);
        let shown = error.line().and_then(|line| text.lines().nth(line - 1)).unwrap_or("no line");
        assert!(shown.starts_with(line) && error.to_string().contains(part), "{part}: {error}");
    }
    // Those that are fine for all.
    let fine = text(
        "starling",
        40,
        [1, 1],
        "",
        "[compare]\nstrategies = ['starling', 'kraken']\n[settings]\nask_ms = 900\n",
    );
    Plan::parse(&fine, None, None).unwrap();
}

#[test]
fn compared_strategies_are_cases_side_by_side_with_all_that_is_swept() {
    let compare = "[compare]\nstrategies = ['origin', 'starling']\n[sweep]\nfleet.nodes = [10, 20]\n";
    let text = text("kraken", 30, [1, 1], "", compare).replace("seed = 1", "seed = 1\nseeds = 2");
    let plan = Plan::parse(&text, None, None).unwrap();
    let found: Vec<_> = plan
        .runs()
        .iter()
        .map(|(case, seed)| (case.scenario.fleet.nodes, case.scenario.strategy.name.text(), *seed))
        .collect();
    let expected =
        [10, 20].map(|nodes| ["origin", "starling"].map(|name| [1, 2].map(|seed| (nodes, name, seed))));
    assert_eq!(found, expected.as_flattened().as_flattened());
    let named = |value: &(String, serde_json::Value)| value.0 == "strategy.name" && value.1 == "starling";
    assert!(plan.cases[1].values.iter().any(named), "{:?}", plan.cases[1].values);
    let reports: Vec<Report> = plan
        .runs()
        .iter()
        .map(|(case, seed)| simulate(&case.scenario, Some(*seed), 1, &mut |_| {}))
        .collect();
    assert_eq!(reports[0].strategy, "origin");
    assert_eq!((reports[2].strategy, reports[2].rollout.completed), ("starling", 10));
    let alone = run_of(
        &text.replace(compare, "").replace("'kraken'", "'starling'").replace("nodes = 30", "nodes = 10"),
        1,
    );
    assert_eq!(reports[2], alone, "Starling runs as it does alone");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// In debug builds a run itself checks that nothing is lost or made up (`World::adds_up`); here, that its links say the same.
    #[test]
    fn what_leaves_the_links_of_some_enters_those_of_others(
        name in proptest::sample::select(OTHERS.to_vec()),
        nodes in 2_u32..40,
        groups in (1_u32..3, 1_u32..3),
        bytes in 1_u64..30_000_000,
        piece in 16_384_u32..2_000_000,
        dies in 0_u32..60,
        at_ms in 0_u64..400,
        seed in any::<u64>(),
    ) {
        let (regions, cells) = groups;
        let (regions, cells) = if regions * cells > nodes { (1, 1) } else { (regions, cells) };
        let piece = if ["dragonfly", "kraken", "faasnet"].contains(&name) { format!("[strategy.{name}]\npiece_bytes = {piece}\n") } else { String::new() };
        let deaths = format!("[deaths]\nper_cent = {dies}\nat_ms = {at_ms}\nnoticed_after_ms = 90\nreplaced_after_ms = 300\n");
        let text = text(name, nodes, [regions, cells], &piece, if dies > 0 { &deaths } else { "" });
        let report = run_of(&text.replace("bytes = 100_000_000", &format!("bytes = {bytes}")), seed);
        prop_assert_eq!(report.rollout.completed, nodes);
        let up = gigabytes(&report, "uplink");
        let down = gigabytes(&report, "downlinks");
        prop_assert!((up - down).abs() <= 1e-4 * up, "{} {}", up, down);
        let least = f64::from(nodes) * bytes as f64 / 1e9;
        prop_assert!(down >= 0.999 * least && (dies > 0 || down < 12.0 * least), "{} {}", down, least);
        prop_assert!(report.rollout.makespan_s >= 0.99 * report.rollout.bound_s);
    }
}
