//! Proves that `starling simulate` lists, explains, refuses with the line, and runs sweeps as it runs single scenarios.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

const SCENARIO: &str = "seed = 3
[fleet]
nodes = 24
regions = 1
cells_per_region = 1
up_mbit_s = 1_000
down_mbit_s = 1_000
[network]
latency_us = 500
[content]
bytes = 16_777_216
slice_bytes = 1_048_576
class = 'Fill'
deadline_s = 60
[stratum]
up_mbit_s = 4_000
connections = 64
";

fn simulate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
    command.arg("simulate").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The objects that were printed, one a line.
fn objects(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn published_scenarios_are_listed_and_keys_explained() {
    let listed = simulate(&["--list"]);
    assert!(listed.status.success());
    let names: Vec<&str> =
        text(&listed.stdout).lines().map(|line| line.split("  ").next().unwrap().trim()).collect();
    assert!(names.contains(&"flash-crowd-10k") && names.contains(&"rollout-32-liars"), "{names:?}");

    let explained = simulate(&["--explain", "arrival.waves.every_ms"]);
    let shown = text(&explained.stdout);
    assert!(explained.status.success() && shown.contains("86 400 000") && shown.contains("(ms)"), "{shown}");
    let all = simulate(&["--explain"]);
    assert!(text(&all.stdout).contains("[arrival.canary]") && text(&all.stdout).contains("settings.ask_ms"));
    let unknown = simulate(&["--explain", "fleet.noodles"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("did you mean `fleet.nodes`"), "{unknown:?}");
}

#[test]
fn a_wrong_scenario_gets_an_error_that_shows_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |name: &str, from: &str, to: &str| {
        let output = simulate(&[&file(folder.path(), name, &SCENARIO.replacen(from, to, 1))]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
        text(&output.stderr).to_owned()
    };
    let shown = refused("value.toml", "nodes = 24", "nodes = 0");
    let expected = "value.toml: line 3, column 9: fleet.nodes = 0: must be a whole number, 1 to 10 000 000\n  |\n\
                    3 | nodes = 0\n  |         ^\n";
    assert!(shown.contains(expected), "{shown}");
    assert!(refused("syntax.toml", "[fleet]", "[fleet").contains("line 2, column"));
    assert!(refused("unknown.toml", "latency_us", "latency").contains("did you mean `network.latency_us`"));
    let shown = refused("lacks.toml", "deadline_s = 60\n", "");
    assert!(shown.contains("line 10") && shown.contains("`content.deadline_s` is missing"), "{shown}");
    let shown = text(&simulate(&["no-such-scenario"]).stderr).to_owned();
    assert!(shown.contains("no-such-scenario") && shown.contains("--list"), "{shown}");
}

#[test]
fn a_sweep_is_what_its_single_runs_are_in_the_order_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let sweep =
        "[sweep]\nfleet.nodes = [24, 12]\narrival = [{}, { waves = { per_cent = 50, every_ms = 400 } }]\n";
    let swept = file(folder.path(), "sweep.toml", &format!("seeds = [9, 4]\n{SCENARIO}{sweep}"));
    let runs = objects(&simulate(&[&swept, "--json"]));
    let (summary, runs) = runs.split_last().unwrap();
    let of = |run: &Value| {
        (
            run["nodes"].as_u64().unwrap(),
            run["seed"].as_u64().unwrap(),
            run["last_start_s"].as_f64().unwrap() > 0.0,
        )
    };
    let expected = [24, 12].into_iter().flat_map(|nodes| {
        [false, true].into_iter().flat_map(move |waves| [9, 4].map(|seed| (nodes, seed, waves)))
    });
    assert_eq!(runs.iter().map(of).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert_eq!(runs[2]["case"]["arrival.waves.every_ms"], 400);

    let one = file(folder.path(), "one.toml", &SCENARIO.replace("nodes = 24", "nodes = 12"));
    let single = objects(&simulate(&[&one, "--json", "--seed", "4"]));
    assert_eq!((single.len(), &single[0]["result_hash"]), (1, &runs[5]["result_hash"]));
    assert!(single[0].get("case").is_none());

    let cases = summary["summary"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    let makespan = |run: &Value| run["makespan_s"].as_f64().unwrap();
    let (one, two) = (makespan(&runs[4]), makespan(&runs[5]));
    let spread = &cases[2]["makespan_s"];
    assert_eq!(cases[2]["case"]["fleet.nodes"], 12);
    assert_eq!((spread["min"].as_f64(), spread["max"].as_f64()), (Some(one.min(two)), Some(one.max(two))));

    let table = simulate(&[&swept]);
    let shown = text(&table.stdout);
    assert!(
        table.status.success() && shown.contains("4 x 2 runs") && shown.contains("fleet.nodes"),
        "{shown}"
    );
}

#[test]
fn what_is_kept_of_a_run_is_the_same_each_time_and_the_page_has_a_row_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = file(folder.path(), "small.toml", SCENARIO);
    let results = folder.path().join("results");
    let keep = || {
        let output = simulate(&[&scenario, "--results", results.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        ["small.json", "README.md"].map(|name| std::fs::read_to_string(results.join(name)).unwrap())
    };
    let [json, page] = keep();
    assert_eq!(keep(), [json.clone(), page.clone()]);
    let kept: Value = serde_json::from_str(&json).unwrap();
    let run = &objects(&simulate(&[&scenario, "--json"]))[0];
    for key in ["result_hash", "makespan_s", "strata_copies", "seed"] {
        assert_eq!(kept[key], run[key], "{key}");
    }
    assert_eq!(kept["scenario_hash"], blake3::hash(SCENARIO.as_bytes()).to_hex().as_str());
    assert!(kept.get("wall_s").is_none() && kept["program"].as_str().unwrap().starts_with("starling "));
    let row = page.lines().find(|line| line.starts_with("| [`small`]")).unwrap();
    assert!(row.contains(&format!("| 24 | {:.3} s |", kept["makespan_s"].as_f64().unwrap())), "{row}");

    let several = simulate(&[&scenario, "--seeds", "2", "--results", results.to_str().unwrap()]);
    assert_eq!(several.status.code(), Some(2), "{several:?}");
    assert!(text(&several.stderr).contains("makes 2 runs"), "{several:?}");
}
