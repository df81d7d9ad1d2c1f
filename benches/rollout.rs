//! Roll-outs with real agents in network namespaces: the project's promises, measured.
//!
//! `cargo bench --bench rollout -- [--runs N] [--nodes N] [SCENARIO...]` runs each scenario of `simulations/lab/` (or those
//! named, without `.toml`) N times with seeds 1 to N and prints medians with ranges. A run that kept more than 70 % of the machine busy is void.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// In this order; the clean run first, with which the one among liars is compared.
const SCENARIOS: [&str; 8] =
    ["flash-crowd", "killed", "container-start", "four-cells", "stratum-dies", "cut", "liars", "revision"];

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
    Ok(found)
}

/// Nodes of the scenarios as they are.
const NODES: u32 = 32;

/// A scenario with another number of nodes: as large a part of them is at fault, at least one.
fn resized(text: &str, nodes: u32) -> String {
    let mut in_faults = false;
    let lines = text.lines().map(|line| {
        in_faults = if line.starts_with('[') { line == "[[faults]]" } else { in_faults };
        match line.strip_prefix("nodes = ").and_then(|number| number.parse::<u32>().ok()) {
            Some(faulty) if in_faults => {
                format!("nodes = {}\n", ((faulty * nodes + NODES / 2) / NODES).max(1))
            }
            Some(NODES) => format!("nodes = {nodes}\n"),
            _ => format!("{line}\n"),
        }
    });
    lines.collect()
}

/// The file of a scenario, or a copy with another number of nodes.
fn scenario(name: &str, nodes: Option<u32>) -> Result<PathBuf, String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("simulations/lab/{name}.toml"));
    let Some(nodes) = nodes else { return Ok(file) };
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let copy = std::env::temp_dir().join(format!("starling-rollout-{}-{name}.toml", std::process::id()));
    std::fs::write(&copy, resized(&text, nodes)).map_err(|error| format!("{}: {error}", copy.display()))?;
    Ok(copy)
}

fn run(file: &Path, seed: u64) -> Result<serde_json::Value, String> {
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

fn figure(report: &serde_json::Value, path: &str) -> Option<f64> {
    report.pointer(path)?.as_f64()
}

/// Median and range.
fn summary(reports: &[serde_json::Value], path: &str, digits: usize) -> String {
    let mut values: Vec<f64> = reports.iter().filter_map(|report| figure(report, path)).collect();
    values.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return "-".to_owned() };
    let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
    format!("{median:.digits$} [{first:.digits$}-{last:.digits$}]")
}

fn bench(name: &str, arguments: &Arguments) -> Result<Vec<serde_json::Value>, String> {
    let file = scenario(name, arguments.nodes)?;
    let mut reports = Vec::new();
    for seed in 1..=arguments.runs {
        let report = run(&file, seed);
        match report {
            Ok(report) => reports.push(report),
            Err(error) => println!("{name}, seed {seed}: {error}"),
        }
    }
    if arguments.nodes.is_some() {
        let _ = std::fs::remove_file(file);
    }
    Ok(reports)
}

fn print(name: &str, reports: &[serde_json::Value]) {
    let is = |key: &str| reports.iter().filter(|report| report[key] == true).count();
    let whole = reports.iter().filter(|report| report["completed"] == report["nodes"]).count();
    println!(
        "{name}: {} runs, {whole} in which all completed, {} with identical content, {} void",
        reports.len(),
        is("identical"),
        is("void")
    );
    for (title, path, digits) in COLUMNS {
        let shown = summary(reports, path, digits);
        if shown != "-" {
            println!("  {title:<12} {shown}");
        }
    }
    let wire = summary(reports, "/strata_wire_bytes", 0);
    println!("  {:<12} {wire} bytes", "stratum link");
    for report in reports {
        for problem in report["missed"]
            .as_array()
            .into_iter()
            .flatten()
            .chain(report["errors"].as_array().into_iter().flatten())
        {
            println!("  seed {}: {}", report["seed"], problem.as_str().unwrap_or_default());
        }
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
    let mut clean_p99 = None;
    for name in &arguments.scenarios {
        let reports = match bench(name, &arguments) {
            Ok(reports) => reports,
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        };
        print(name, &reports);
        let mut p99: Vec<f64> = reports.iter().filter_map(|report| figure(report, "/p99_s")).collect();
        p99.sort_by(f64::total_cmp);
        let median = p99.get(p99.len() / 2).copied();
        match (name.as_str(), median, clean_p99) {
            ("flash-crowd", Some(median), _) => clean_p99 = Some(median),
            ("liars", Some(median), Some(clean)) => {
                println!("  p99 of the honest over that of a clean run: {:.3}", median / clean);
            }
            _ => {}
        }
    }
    ExitCode::SUCCESS
}
