//! Roll-outs with real agents in network namespaces: the project's promises, measured.
//!
//! `cargo bench --bench rollout -- [--runs N] [--nodes N] [SCENARIO...]` runs each scenario of `simulations/lab/` (or those
//! named, without `.toml`) N times with seeds 1 to N and prints medians with ranges. A run that kept more than 70 % of the machine busy is void:
//! it is named and left out. The exit code is 1 when the median of a scenario misses a goal, when not all nodes of a run completed or not
//! with the same content, when a run ended with an error, and when no run of a scenario counts.

use serde_json::Value;
use starling::lab::{Rounds, resized};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// In this order; the clean run first, with which the one among liars is compared.
const SCENARIOS: [&str; 9] = [
    "flash-crowd",
    "killed",
    "replaced",
    "container-start",
    "four-cells",
    "stratum-dies",
    "cut",
    "liars",
    "revision",
];
/// Most for the 99th percentile of the honest among liars, over that of a clean run: the project's promise.
const LIARS_P99: f64 = 1.5;

/// What is printed: title, path in the JSON object, digits.
const COLUMNS: [(&str, &str, usize); 10] = [
    ("makespan s", "/makespan_s", 2),
    ("x bound", "/makespan_over_bound", 3),
    ("p50 s", "/p50_s", 2),
    ("p99 s", "/p99_s", 2),
    ("copies", "/strata_copies", 4),
    ("uploads", "/most_given_copies", 2),
    ("into a cell", "/most_into_a_cell_copies", 3),
    ("cpu", "/cpu", 2),
    ("agent cpu", "/agent_cpu", 4),
    ("link B/s", "/link_bytes_per_s", 0),
];

struct Arguments {
    runs: u64,
    nodes: Option<u32>,
    scenarios: Vec<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments { runs: 5, nodes: None, scenarios: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let text = words.next().unwrap_or_default();
            text.parse().map_err(|_| format!("{word} takes a number, not `{text}`"))
        };
        match word.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--runs" => found.runs = number()?,
            "--nodes" => found.nodes = Some(u32::try_from(number()?).unwrap_or(u32::MAX)),
            name if SCENARIOS.contains(&name) => found.scenarios.push(name.to_owned()),
            other => return Err(format!("`{other}` is none of {}", SCENARIOS.join(", "))),
        }
    }
    if found.scenarios.is_empty() {
        found.scenarios = SCENARIOS.map(str::to_owned).to_vec();
    }
    // What these two cost is only seen beside a clean run.
    let clean = found.scenarios.iter().position(|name| name == CLEAN);
    let compared = found.scenarios.iter().position(|name| COMPARED.contains(&name.as_str()));
    if compared.is_some_and(|compared| clean.is_none_or(|clean| clean > compared)) {
        found.scenarios.retain(|name| name != CLEAN);
        found.scenarios.insert(0, CLEAN.to_owned());
    }
    Ok(found)
}

/// The clean run, and the scenarios that are compared with it.
const CLEAN: &str = "flash-crowd";
const COMPARED: [&str; 2] = ["liars", "replaced"];
/// Nodes of the scenarios as they are.
const NODES: u32 = 32;

/// The file of a scenario, or a copy with another number of nodes.
fn scenario(name: &str, nodes: Option<u32>) -> Result<PathBuf, String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("simulations/lab/{name}.toml"));
    let Some(nodes) = nodes else { return Ok(file) };
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let copy = std::env::temp_dir().join(format!("starling-rollout-{}-{name}.toml", std::process::id()));
    std::fs::write(&copy, resized(&text, NODES, nodes))
        .map_err(|error| format!("{}: {error}", copy.display()))?;
    Ok(copy)
}

fn run(file: &Path, seed: u64) -> Result<Value, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_starling"))
        .args(["lab", "--json", "--seed", &seed.to_string()])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    // A run in which not all completed has figures too, and says so.
    serde_json::from_slice(&output.stdout)
        .map_err(|_| String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("no result").to_owned())
}

fn bench(name: &str, arguments: &Arguments) -> Result<Rounds, String> {
    let file = scenario(name, arguments.nodes)?;
    let mut rounds = Rounds::default();
    for seed in 1..=arguments.runs {
        rounds.add(seed, run(&file, seed));
    }
    if arguments.nodes.is_some() {
        let _ = std::fs::remove_file(file);
    }
    Ok(rounds)
}

fn print(name: &str, arguments: &Arguments, rounds: &Rounds) {
    println!("{name}: {} of {} runs count", rounds.counted(), arguments.runs);
    for (title, path, digits) in COLUMNS {
        if let Some(shown) = rounds.summary(path, digits) {
            println!("  {title:<12} {shown}");
        }
    }
    if let Some(wire) = rounds.summary("/strata_wire_bytes", 0) {
        println!("  {:<12} {wire} bytes", "stratum link");
    }
    for void in rounds.void() {
        println!("  {void}");
    }
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = starling::lab::check(std::env::var_os("PATH").as_deref()) {
        println!("skipped: rollout: {error}");
        return ExitCode::SUCCESS;
    }
    let (mut clean_p99, mut is_good) = (None, true);
    for name in &arguments.scenarios {
        let rounds = match bench(name, &arguments) {
            Ok(rounds) => rounds,
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        };
        print(name, &arguments, &rounds);
        let mut problems = rounds.problems();
        match (name.as_str(), rounds.median("/p99_s"), clean_p99) {
            (CLEAN, median, _) => clean_p99 = median,
            (compared, Some(median), Some(clean)) if COMPARED.contains(&compared) => {
                let over = median / clean;
                println!("  p99 of the honest over that of a clean run: {over:.3}");
                if name == "liars" && over > LIARS_P99 {
                    problems.push(format!("p99 over that of a clean run: promised at most {LIARS_P99}"));
                }
            }
            _ => {}
        }
        for problem in &problems {
            println!("  MISSED {problem}");
        }
        is_good &= problems.is_empty();
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
