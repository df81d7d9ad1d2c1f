//! Proves that a seed gives the same result to the bit: twice in a row, on one thread and on two, in this build and in any other, for
//! the results stand here.
//!
//! `STARLING_PROGRAM=target/release/starling cargo test --test result_hash` holds another build's program against them. A change of
//! the node's decisions or of a model changes results; the test prints the new ones. Where nothing was meant to change, that is a bug.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use starling::sim::{Plan, simulate};
use std::process::Command;

/// All that can surround the node's own decisions, at once.
const EVERYTHING: &str = "
seed = 11
[fleet]
nodes = 150
regions = 3
cells_per_region = 2
racks_per_cell = 2
up_mbit_s = 400
down_mbit_s = 800
[[fleet.class]]
name = 'slow'
share = 0.2
up_mbit_s = 100
down_mbit_s = 200
[network]
latency_us = 500
region_latency_us = [[0, 20_000, 45_000], [20_000, 0, 31_000], [45_000, 31_000, 0]]
loss_per_mille = 20
lookup_us = 4_000
queue_ms = 5
links.rack_up_mbit_s = 3_000
links.rack_down_mbit_s = 3_000
links.cell_up_mbit_s = 4_000
links.cell_down_mbit_s = 4_000
links.region_up_mbit_s = 5_000
links.region_down_mbit_s = 5_000
[[network.change]]
at_ms = 900
for_ms = 1_500
of = 'region'
number = 2
factor = 0
[[network.change]]
at_ms = 400
of = 'nodes'
per_cent = 5
factor = 0.1
[[network.change]]
at_ms = 600
for_ms = 400
of = 'stratum'
factor = 0.3
[content]
bytes = 50_000_000
slice_bytes = 1_048_576
chunk_bytes = 524_288
class = 'Fill'
read_ahead_chunks = 8
read_mbit_s = 300
deadline_s = 120
[stratum]
up_mbit_s = 2_000
connections = 32
[arrival]
canary = { per_cent = 2, pause_ms = 100 }
waves = { per_cent = 30, every_ms = 250 }
[deaths]
per_cent = 5
at_ms = 1_200
noticed_after_ms = 300
replaced_after_ms = 800
[stalls]
per_cent = 4
at_ms = 500
for_ms = 700
[liars]
per_cent = 10
how = ['corrupt', 'stall', 'silent', 'busy', 'missing', 'lie']
";

/// So many transfers at once that the threads of a run share the steps of the network.
const CROWD: &str = "
seed = 5
[fleet]
nodes = 3_000
regions = 2
cells_per_region = 4
up_mbit_s = 1_000
down_mbit_s = 1_000
[network]
latency_us = 500
links.region_down_mbit_s = 400_000
[content]
bytes = 50_331_648
slice_bytes = 1_048_576
class = 'Fill'
deadline_s = 60
[stratum]
up_mbit_s = 10_000
connections = 128
";

/// The strategies that are compared with, and the models of the network beside fluid.
const OTHERS: &str = "
seed = 7
[fleet]
nodes = 60
regions = 2
cells_per_region = 2
up_mbit_s = 500
down_mbit_s = 1_000
[network]
latency_us = 500
links.cell_down_mbit_s = 4_000
[content]
bytes = 40_000_000
slice_bytes = 1_048_576
class = 'Fill'
deadline_s = 120
[stratum]
up_mbit_s = 1_000
connections = 64
[strategy]
dragonfly.piece_bytes = 1_048_576
kraken.piece_bytes = 1_048_576
[deaths]
per_cent = 5
at_ms = 700
noticed_after_ms = 300
replaced_after_ms = 800
[sweep]
network.model = ['fluid', 'exact', 'fifo']
[compare]
strategies = ['starling', 'origin', 'proxies', 'dragonfly', 'kraken', 'spegel', 'faasnet']
";

const RESULTS: [(&str, &str, &[&str]); 3] = [
    ("everything", EVERYTHING, &["f90b2d95628115df"]),
    ("crowd", CROWD, &["bb1ef6bdfacb0a12"]),
    (
        "others",
        OTHERS,
        &[
            "d2188917c0ee6a87",
            "da826939150ee891",
            "4246bc55efe7cc5b",
            "bcadf92462a54fbc",
            "e3077d53447126c1",
            "00cb1c984c66abea",
            "cd63579eb2e00446",
            "92da93abb480169d",
            "e7c28e4bad0c7659",
            "7dc108bc74d1bbef",
            "dd6477a449284371",
            "f26aa72de434fbb3",
            "82ee2be8a4021d1d",
            "e937ffe99d284433",
            "068b1fbdc7c626e1",
            "024e84bc107d471e",
            "a2b0f03b62043b30",
            "c53985ed3c7c8a29",
            "d9b2cb86e4bfb5e4",
            "fbd4f57ebdf415c0",
            "a35fe5600095185e",
        ],
    ),
];

/// The first 16 digits of each run's result hash.
fn hashes(plan: &Plan, threads: usize) -> Vec<String> {
    let hash = |(case, seed): (&starling::sim::Case, u64)| {
        let report = simulate(&case.scenario, Some(seed), threads, &mut |_| {});
        report.result_hash[..16].to_owned()
    };
    plan.runs().into_iter().map(hash).collect()
}

/// The same, of the program under test or of another build's.
fn hashes_of_program(name: &str, scenario: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{name}.toml"));
    std::fs::write(&path, scenario).unwrap();
    let program =
        std::env::var_os("STARLING_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_starling").into());
    let out = Command::new(program).arg("simulate").arg(&path).arg("--json").output().unwrap();
    let printed = String::from_utf8(out.stdout).unwrap();
    let objects = printed.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let found: Vec<String> =
        objects.filter_map(|object| Some(object["result_hash"].as_str()?[..16].to_owned())).collect();
    assert!(!found.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    found
}

#[test]
fn a_seed_gives_the_results_that_stand_here_on_one_thread_and_two_in_this_build_and_in_another() {
    let mut wrong = String::new();
    for (name, scenario, expected) in RESULTS {
        let plan = Plan::parse(scenario, None, None).unwrap();
        let found = hashes(&plan, 1);
        assert_eq!(hashes(&plan, 2), found, "{name}: on two threads");
        assert_eq!(hashes_of_program(name, scenario), found, "{name}: by the program");
        if found != expected {
            wrong += &format!("{name}: {found:?}\n");
        }
    }
    assert!(wrong.is_empty(), "other results:\n{wrong}");
}
