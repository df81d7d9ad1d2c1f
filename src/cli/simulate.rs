//! `starling simulate`: predict a roll-out to a fleet with the node's own decisions.

use super::{CliError, reports};
use crate::sim::{Progress, Report, Scenario, simulate_recorded};
use serde::Serialize;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

/// Largest scenario file that is read, in bytes.
const SCENARIO_MAX_BYTES: u64 = 1 << 20;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  starling simulate simulations/scenarios/flash-crowd-10k.toml
  starling simulate simulations/scenarios/flash-crowd-10k.toml --seed 7 --json
  starling simulate simulations/scenarios/flash-crowd-10k.toml --report crowd.html --csv crowd

The same scenario and seed give the same result_hash on every machine; wall_s alone differs.")]
pub(super) struct Args {
    /// The scenario (TOML).
    file: PathBuf,
    /// Seed of all randomness, instead of the scenario's.
    #[arg(long)]
    seed: Option<u64>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reports: reports::Options,
}

#[derive(Serialize)]
struct Timed<'a> {
    #[serde(flatten)]
    report: &'a Report,
    wall_s: f64,
}

#[expect(clippy::needless_pass_by_value, reason = "every verb is called like this")]
pub(super) fn run(args: Args) -> Result<(), CliError> {
    let (text, scenario) = read(&args.file)?;
    let mut reports = args.reports.begin(&args.file, &text, &scenario)?;
    #[expect(clippy::disallowed_methods, reason = "the wall time of the run, which no result depends on")]
    let start = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
    let tty = std::io::stderr().is_terminal();
    let (report, record) =
        simulate_recorded(&scenario, args.seed, &reports.recording(), threads, &mut |progress| {
            if tty {
                show(progress);
            }
        });
    if tty {
        eprint!("\r\x1b[K");
    }
    let timed = Timed { report: &report, wall_s: start.elapsed().as_secs_f64() };
    let file = args.file.display().to_string();
    reports.add(&file, &scenario, &report, &record)?;
    let verdict = reports.finish(&format!("starling simulate {file} --seed {}", report.rollout.seed))?;
    let text = if args.json {
        serde_json::to_string(&timed).map_err(CliError::failed)?
    } else {
        format!("{verdict}\n\n{}", table(&args.file, &timed))
    };
    println!("{text}");
    if report.rollout.completed < report.rollout.nodes {
        let missing = report.rollout.nodes - report.rollout.completed;
        return Err(CliError::failed(format!(
            "{missing} of {} nodes did not get all content",
            report.rollout.nodes
        )));
    }
    Ok(())
}

fn read(path: &Path) -> Result<(String, Scenario), CliError> {
    let name = path.display();
    let file = std::fs::File::open(path).map_err(|error| CliError::failed(format!("{name}: {error}")))?;
    let mut text = String::new();
    let length = file
        .take(SCENARIO_MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| CliError::failed(format!("{name}: {error}")))?;
    if length as u64 > SCENARIO_MAX_BYTES {
        return Err(CliError::failed(format!("{name}: a scenario has at most {SCENARIO_MAX_BYTES} bytes")));
    }
    let scenario = Scenario::parse(&text).map_err(|error| {
        CliError::failed(format!("{name}: {error}")).hint("docs/simulation.md lists all keys and their units")
    })?;
    Ok((text, scenario))
}

fn show(progress: Progress) {
    let share = progress.transfers as f64 / progress.wanted.max(1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 30")]
    let full = (share.clamp(0.0, 1.0) * 30.0) as usize;
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(30 - full));
    eprint!("\r[{bar}] {:5.1} %  virtual time {:.3} s ", share * 100.0, progress.now.as_secs_f64());
}

fn table(path: &Path, timed: &Timed<'_>) -> String {
    let report = timed.report;
    let rows = [
        ("scenario", format!("{} (seed {})", path.display(), report.rollout.seed)),
        ("nodes", format!("{} of {} completed", report.rollout.completed, report.rollout.nodes)),
        (
            "bound",
            format!("{:.4} s, bound by {}", report.rollout.bound_s, report.rollout.binding_term.text()),
        ),
        (
            "makespan",
            format!("{:.4} s = {:.3} x bound", report.rollout.makespan_s, report.rollout.makespan_over_bound),
        ),
        ("p50 / p99", format!("{:.4} s / {:.4} s", report.rollout.p50_s, report.rollout.p99_s)),
        (
            "left the stratum",
            format!("{} bytes = {:.4} copies", report.rollout.strata_bytes, report.rollout.strata_copies),
        ),
        ("into a cell", format!("at most {:.4} copies", report.rollout.most_into_a_cell_copies)),
        ("given by a node", format!("at most {:.4} copies", report.rollout.most_given_copies)),
        ("transfers", report.transfers.to_string()),
        ("messages", report.messages.to_string()),
        ("model", report.model.to_string()),
        ("wall time", format!("{:.1} s, {} events", timed.wall_s, report.events)),
        ("result hash", report.result_hash.clone()),
    ];
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:<17} {value}")).collect();
    lines.join("\n")
}
