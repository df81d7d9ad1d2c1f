//! `starling simulate`: predict a roll-out to a fleet with the node's own decisions.

mod meter;
#[cfg(feature = "node")]
mod shard;
mod validate;

use super::{CliError, reports};
use crate::sim::{
    Case, Distribution, Kept, LinksOfAKind, NODE_CHUNKS_MAX, PROFILE_MAX_BYTES, PUBLISHED, Plan, RUNS_MAX,
    Readers, Record, Recording, Report, RootSpread, Spread, Summary, explain, in_order, nearest,
    results_page, simulate_recorded,
};
use meter::Meter;
use reports::Reports;
use serde::Serialize;
use serde_json::{Map, Value};
use std::io::{ErrorKind, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Largest scenario file that is read, in bytes.
const SCENARIO_MAX_BYTES: u64 = 1 << 20;
/// Largest result that is read, in bytes.
const RESULT_MAX_BYTES: u64 = 1 << 20;
/// Threads of one run at most: more only wait for each other (a guess).
const RUN_THREADS_MAX: usize = 8;
/// What starts a name that is no file.
const NO_FILE: &str = "`starling simulate --list` names the scenarios that need no file";
/// Kinds of links of which the table tells; JSON has all.
const BUSY_SHOWN: usize = 3;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  starling simulate --list                                # what needs no file
  starling simulate flash-crowd-10k                       # one of these
  starling simulate flash-crowd-10k --report crowd.html   # with charts, to be opened in a browser
  starling simulate fleet.toml --seeds 10                 # a file of your own, with ten seeds
  starling simulate fleet.toml --json | jq .makespan_s    # an object a run; of several, a summary last
  starling simulate --validate simulations/validation     # how far off it is: against recorded real runs
  starling simulate --explain                             # all keys of a scenario
  starling simulate --explain arrival                     # those of one table
  starling simulate --explain fleet.nodes                 # one: meaning, unit, bounds, default

A file may ask for many runs: the table [sweep] lists values for any key, and `seeds = 5` repeats
each with five seeds. They run in parallel, and are reported in their order:

  [sweep]
  fleet.nodes = [1_000, 10_000]
  arrival = [{}, { waves = { per_cent = 10, every_ms = 5_000 } }, { rolling = { nodes = 100 } }]

The table [compare] runs all of it under several strategies, and shows them side by side:

  [compare]
  strategies = ['origin', 'kraken', 'starling']

Many runs can be divided among machines (deploy/ has a Kubernetes Job and a Slurm array for it):

  starling simulate fleet.toml --shard 0/2 --parquet out/0      # on one machine
  starling simulate fleet.toml --shard 1/2 --parquet out/1      # on another
  starling simulate fleet.toml --merge out/* --report all.html  # as if one had done all

The same scenario and seed give the same result_hash on every machine; wall_s alone differs.
Exit code 1: a node did not get everything. docs/simulation.md says what is modelled, and how.")]
pub(super) struct Args {
    /// The scenario: a TOML file, or the name of a published one.
    #[arg(required_unless_present_any = ["list", "explain", "validate"])]
    file: Option<PathBuf>,
    /// Seed of all randomness, instead of the scenario's.
    #[arg(long)]
    seed: Option<u64>,
    /// Number of seeds that each case is run with, instead of the scenario's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(RUNS_MAX)))]
    seeds: Option<u32>,
    /// Print one JSON object a run instead of a table, and of several runs a summary in the end.
    #[arg(long)]
    json: bool,
    /// List the published scenarios.
    #[arg(long, conflicts_with_all = ["file", "explain"])]
    list: bool,
    /// Tell what a key of a scenario means, or all keys of a table, or all keys.
    #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = "", conflicts_with = "file")]
    explain: Option<String>,
    /// Do only one of N parts of the runs, of about the same weight and counted from 0, and leave it in the folder of --parquet.
    #[cfg(feature = "node")]
    #[arg(long, value_name = "I/N", requires = "parquet", conflicts_with_all = ["report", "csv", "svg", "perfetto", "merge"])]
    shard: Option<shard::Shard>,
    /// Do no run, but take those that all shards left in these folders, and report them as if they had been done here.
    #[cfg(feature = "node")]
    #[arg(long, value_name = "DIR", num_args = 1.., conflicts_with = "perfetto")]
    merge: Vec<PathBuf>,
    /// Keep the figures of the run in DIR, as NAME.json, and make the page README.md there anew from all that is kept in it.
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// Hold the simulation against the recordings of real runs in DIR that `starling lab --grid DIR` made: calibrate with one half of
    /// them, drawn by --seed, and test with the other.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["file", "list", "explain", "seeds", "Options"])]
    validate: Option<PathBuf>,
    /// With --validate: write the calibrated delays and overheads, as keys of a scenario.
    #[arg(long, value_name = "FILE", requires = "validate")]
    calibrated: Option<PathBuf>,
    #[command(flatten)]
    reports: reports::Options,
}

/// Where runs come from.
enum Source {
    /// They are done here, those with these numbers.
    Here(Range<usize>),
    /// Shards did them.
    #[cfg(feature = "node")]
    Shards(shard::Shards),
}

/// What one run shows.
#[derive(Serialize)]
struct Timed {
    /// What was swept.
    #[serde(skip_serializing_if = "Map::is_empty")]
    case: Map<String, Value>,
    #[serde(flatten)]
    report: Report,
    wall_s: f64,
}

impl Timed {
    fn new(case: Map<String, Value>, report: Report, wall_us: u64) -> Self {
        Self { case, report, wall_s: wall_us as f64 / 1e6 }
    }

    /// Whole microseconds.
    #[cfg(feature = "node")]
    fn wall_us(&self) -> u64 {
        std::time::Duration::from_secs_f64(self.wall_s).as_micros().try_into().unwrap_or(u64::MAX)
    }
}

/// What all runs of a case show.
#[derive(Serialize)]
struct CaseSummary {
    #[serde(skip_serializing_if = "Map::is_empty")]
    case: Map<String, Value>,
    #[serde(flatten)]
    summary: Summary,
}

/// The last line of several runs.
#[derive(Serialize)]
struct Together {
    summary: Vec<CaseSummary>,
    wall_s: f64,
}

#[expect(clippy::needless_pass_by_value, reason = "every verb is called like this")]
pub(super) fn run(args: Args) -> Result<(), CliError> {
    if args.list {
        println!("{}", list());
        return Ok(());
    }
    if let Some(key) = &args.explain {
        println!("{}", explained(key)?.trim_end());
        return Ok(());
    }
    if let Some(directory) = &args.validate {
        return validate::run(directory, args.seed.unwrap_or(1), args.json, args.calibrated.as_deref());
    }
    let Some(file) = &args.file else {
        return Err(CliError::usage("which scenario?").hint(NO_FILE));
    };
    let text = read(file)?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let files =
        |name: &str| read_text(&folder.join(name), PROFILE_MAX_BYTES).map_err(|error| error.to_string());
    let plan = Plan::parse_with(&text, args.seed, args.seeds, &files).map_err(|error| {
        CliError::failed(format!("{}: {error}", file.display())).hint(
            "`starling simulate --explain KEY` tells what a key means and may be, `--explain` lists all",
        )
    })?;
    let runs = plan.runs().len();
    if runs != 1 && args.results.is_some() {
        let shown = format!("{} makes {runs} runs, and `--results` keeps that of one", file.display());
        return Err(
            CliError::usage(shown).hint("`--seeds 1` makes one of a file without [sweep] and [compare]")
        );
    }
    // What cannot be merged is said before anything is written.
    #[cfg(feature = "node")]
    let source = if args.merge.is_empty() {
        Source::Here(0..runs)
    } else {
        Source::Shards(shard::Shards::open(&args.merge, args.reports.parquet(), &plan)?)
    };
    #[cfg(not(feature = "node"))]
    let source = Source::Here(0..plan.runs().len());
    let reports = args.reports.begin(file, &text, &plan)?;
    #[cfg(feature = "node")]
    if let (Some(shard), Some(folder)) = (args.shard, args.reports.parquet()) {
        return shard::part(file, &plan, shard, folder, reports, args.json);
    }
    if runs == 1 {
        let keep = args.results.as_deref().map(|folder| (folder, text.as_str()));
        one(file, &plan, &source, reports, args.json, keep)
    } else {
        several(file, &plan, &source, reports, args.json)
    }
}

fn list() -> String {
    let width = PUBLISHED.iter().map(|one| one.name.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        PUBLISHED.iter().map(|one| format!("{:<width$}  {}", one.name, one.about())).collect();
    lines.join("\n")
}

fn explained(key: &str) -> Result<String, CliError> {
    explain(key).ok_or_else(|| {
        let failed = CliError::usage(format!("a scenario has no key `{key}`"));
        match nearest(key) {
            Some(other) => failed.hint(format!("did you mean `{other}`?")),
            None => failed.hint("`starling simulate --explain` lists all keys"),
        }
    })
}

/// The text of a file, or of a published scenario if there is no such file.
fn read(path: &Path) -> Result<String, CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("{}: {error}", path.display()));
    match read_text(path, SCENARIO_MAX_BYTES) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let published = PUBLISHED.iter().find(|one| Path::new(one.name) == path);
            published.map(|one| one.text.to_owned()).ok_or_else(|| failed(error).hint(NO_FILE))
        }
        Err(error) => Err(failed(error)),
    }
}

/// The text of a file that has at most so many bytes.
fn read_text(path: &Path, most: u64) -> std::io::Result<String> {
    let mut text = String::new();
    let length = std::fs::File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if length as u64 > most {
        return Err(std::io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(text)
}

/// Hands out what the runs show and leave, in their order, until `each` fails.
fn each_run(
    source: &Source,
    plan: &Plan,
    meter: &Meter,
    traced: &Recording,
    mut each: impl FnMut(usize, Timed, Record) -> Result<(), CliError>,
) -> Result<(), CliError> {
    #[cfg_attr(
        not(feature = "node"),
        expect(clippy::infallible_destructuring_match, reason = "there are no shards")
    )]
    let range = match source {
        Source::Here(range) => range,
        #[cfg(feature = "node")]
        Source::Shards(shards) => return shards.each(plan, each),
    };
    let runs = &plan.runs()[range.clone()];
    let weights: Vec<u64> = runs.iter().map(|(case, _)| case.scenario.node_chunks()).collect();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let work = |number: usize, threads: usize| {
        let (case, seed) = runs[number];
        let start = now();
        let mut share = meter.share(case.scenario.node_chunks());
        let threads = threads.min(RUN_THREADS_MAX);
        // Of many runs the first is the one whose nodes are traced.
        let recording = if number == 0 { traced.clone() } else { Recording::default() };
        let watch = &mut |progress| share.note(progress);
        let (report, record) = simulate_recorded(&case.scenario, Some(seed), &recording, threads, watch);
        let wall_us = start.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        (Timed::new(swept(case), report, wall_us), record)
    };
    let mut done = Ok(());
    in_order(&weights, NODE_CHUNKS_MAX, threads, work, |number, (timed, record)| {
        if done.is_ok() {
            done = each(range.start + number, timed, record);
        }
    });
    done
}

fn now() -> std::time::Instant {
    #[expect(clippy::disallowed_methods, reason = "the wall time of runs, which no result depends on")]
    std::time::Instant::now()
}

fn swept(case: &Case) -> Map<String, Value> {
    case.values.iter().cloned().collect()
}

fn wanted(runs: &[(&Case, u64)]) -> u64 {
    runs.iter().map(|(case, _)| case.scenario.node_chunks()).sum()
}

fn json(value: &impl Serialize) -> Result<String, CliError> {
    serde_json::to_string(value).map_err(CliError::failed)
}

/// What a report calls a case.
fn label(file: &Path, case: &Case) -> String {
    if case.values.is_empty() {
        return file.display().to_string();
    }
    let values: Vec<String> =
        case.values.iter().map(|(key, value)| format!("{key} = {}", shown(value))).collect();
    values.join(", ")
}

/// `keep` says where the figures are kept, and the text of the scenario.
fn one(
    file: &Path,
    plan: &Plan,
    source: &Source,
    mut reports: Reports,
    as_json: bool,
    keep: Option<(&Path, &str)>,
) -> Result<(), CliError> {
    let meter = Meter::new(wanted(&plan.runs()), 1);
    let mut done = None;
    each_run(source, plan, &meter, &reports.recording(), |_, timed, record| {
        done = Some((timed, record));
        Ok(())
    })?;
    meter.end();
    let (Some((timed, record)), Some((case, seed))) = (done, plan.runs().first().copied()) else {
        return Ok(());
    };
    reports.add(&label(file, case), &case.scenario, &timed.report, &record)?;
    let verdict = reports.finish(&format!("starling simulate {} --seed {seed}", file.display()))?;
    println!("{}", if as_json { json(&timed)? } else { format!("{verdict}\n\n{}", table(file, &timed)) });
    if let Some((folder, text)) = keep {
        keep_result(folder, file, &Kept::new(text, &timed.report))?;
    }
    let rollout = &timed.report.rollout;
    if rollout.completed < rollout.nodes {
        let (missing, nodes) = (rollout.nodes - rollout.completed, rollout.nodes);
        return Err(CliError::failed(format!("{missing} of {nodes} nodes did not get all content")));
    }
    Ok(())
}

/// Writes what is kept of a run, and the page about all that is kept beside it.
fn keep_result(folder: &Path, file: &Path, kept: &Kept<'_>) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let name = file.file_stem().unwrap_or(file.as_os_str()).to_string_lossy();
    let text = serde_json::to_string_pretty(kept).map_err(CliError::failed)?;
    super::pending::write(&folder.join(format!("{name}.json")), (text + "\n").as_bytes()).map_err(failed)?;
    let mut results = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|end| end == "json") {
            let text = read_text(&path, RESULT_MAX_BYTES).map_err(failed)?;
            let result = serde_json::from_str(&text)
                .map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            results.push((name, result));
        }
    }
    results.sort_by(|one: &(String, Value), other| one.0.cmp(&other.0));
    super::pending::write(&folder.join("README.md"), results_page(&results).as_bytes()).map_err(failed)
}

fn several(
    file: &Path,
    plan: &Plan,
    source: &Source,
    mut reports: Reports,
    as_json: bool,
) -> Result<(), CliError> {
    let start = now();
    let runs = plan.runs();
    let meter = Meter::new(wanted(&runs), runs.len());
    let mut figures = Vec::with_capacity(runs.len());
    let done = each_run(source, plan, &meter, &reports.recording(), |number, timed, record| {
        let case = runs[number].0;
        reports.add(&label(file, case), &case.scenario, &timed.report, &record)?;
        // As they come: what is done is not lost when the rest takes too long.
        if as_json {
            let line = json(&timed)?;
            meter.print(|| println!("{line}"));
        }
        figures.push(timed.report);
        Ok(())
    });
    meter.end();
    done?;
    let verdict = reports.finish(&format!("starling simulate {}", file.display()))?;
    let per_case = figures.chunks(plan.seeds.len().max(1));
    let summary: Vec<CaseSummary> = plan
        .cases
        .iter()
        .zip(per_case)
        .map(|(case, reports)| CaseSummary { case: swept(case), summary: Summary::of(reports) })
        .collect();
    let incomplete: usize = summary.iter().map(|case| case.summary.incomplete).sum();
    let together = Together { summary, wall_s: start.elapsed().as_secs_f64() };
    if as_json {
        println!("{}", json(&together)?);
    } else {
        let verdict = if plan.cases.len() == 1 { format!("{verdict}\n\n") } else { String::new() };
        println!("{verdict}{}", summaries(file, plan, &together, &figures));
    }
    if incomplete > 0 {
        return Err(CliError::failed(format!(
            "in {incomplete} of {} runs a node did not get all content",
            runs.len()
        )));
    }
    Ok(())
}

/// The kinds of links whose busiest one was busy for longest.
fn busy_links(report: &Report) -> String {
    let mut links: Vec<&LinksOfAKind> = report.links.iter().collect();
    links.sort_by(|a, b| b.busiest_share.total_cmp(&a.busiest_share));
    let text = |links: &&LinksOfAKind| {
        let (most, mean) = (links.busiest_share * 100.0, links.busy_share * 100.0);
        format!("{} {most:.0} % of the time (mean of {}: {mean:.0} %)", links.busiest, links.kind)
    };
    links.iter().take(BUSY_SHOWN).map(text).collect::<Vec<_>>().join(", ")
}

fn table(path: &Path, timed: &Timed) -> String {
    let report = &timed.report;
    let rollout = &report.rollout;
    let own = format!("{:.4} s / {:.4} s", report.own_p50_s, report.own_p99_s);
    let mut rows = vec![
        ("scenario", format!("{} (seed {})", path.display(), rollout.seed)),
        ("strategy", report.strategy.to_owned()),
        ("nodes", format!("{} of {} completed", rollout.completed, rollout.nodes)),
        ("bound", format!("{:.4} s, bound by {}", rollout.bound_s, rollout.binding_term.text())),
        ("makespan", format!("{:.4} s = {:.3} x bound", rollout.makespan_s, rollout.makespan_over_bound)),
        (
            "p50 / p99 / p99.9",
            format!("{:.4} s / {:.4} s / {:.4} s", rollout.p50_s, rollout.p99_s, rollout.p999_s),
        ),
        ("since they began", format!("{own}; the last began at {:.4} s", report.last_start_s)),
        ("left the stratum", format!("{} bytes = {:.4} copies", rollout.strata_bytes, rollout.strata_copies)),
        ("into a cell", format!("at most {:.4} copies", rollout.most_into_a_cell_copies)),
        ("given by a node", format!("at most {:.4} copies", rollout.most_given_copies)),
        ("busy links", busy_links(report)),
        ("transfers", report.transfers.to_string()),
        ("messages", report.messages.to_string()),
        ("model", report.model.to_string()),
        ("accuracy", report.accuracy.clone()),
        ("wall time", format!("{:.1} s, {} events", timed.wall_s, report.events)),
        ("result hash", report.result_hash.clone()),
    ];
    if let Some(readers) = &report.readers {
        let before = rows.iter().position(|(name, _)| *name == "busy links").unwrap_or(rows.len());
        rows.splice(before..before, reader_rows(readers));
    }
    if let Some(root) = &report.root {
        let before = rows.iter().position(|(name, _)| *name == "busy links").unwrap_or(rows.len());
        rows.insert(before, ("new root", root_row(root)));
    }
    // Where all begin at once, it says what the row before says.
    rows.retain(|(name, _)| *name != "since they began" || report.last_start_s > 0.0);
    for (key, value) in &timed.case {
        rows.insert(2, ("swept", format!("{key} = {}", shown(value))));
    }
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:<17} {value}")).collect();
    lines.join("\n")
}

/// How the new root spread.
fn root_row(root: &RootSpread) -> String {
    let Distribution { p50, p99, max, .. } = root.heard_s;
    format!(
        "{} nodes heard of it, p50 {p50:.4} s, p99 {p99:.4} s, max {max:.4} s; {:.1} messages a node",
        root.heard, root.messages_each
    )
}

/// How those who read waited.
fn reader_rows(readers: &Readers) -> [(&'static str, String); 5] {
    let row = |Distribution { p50, p90, p99, max }: Distribution, digits: usize, unit: &str| {
        format!("p50 {p50:.digits$}, p90 {p90:.digits$}, p99 {p99:.digits$}, max {max:.digits$}{unit}")
    };
    let Readers { read_all, stalls, without_stall, .. } = readers;
    let all = format!("{read_all} of {} read all; {}", readers.readers, row(readers.read_s, 4, " s"));
    let smooth = 100.0 * without_stall;
    [
        ("readers", all),
        ("first chunk", row(readers.first_chunk_s, 4, " s")),
        (
            "stalled in all",
            format!("{}; {smooth:.1} % of the readers never", row(readers.stalled_s, 4, " s")),
        ),
        ("longest stall", row(readers.longest_stall_s, 4, " s")),
        ("stalls", format!("{stalls}; of a reader {}", row(readers.stalls_each, 0, ""))),
    ]
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn summaries(path: &Path, plan: &Plan, together: &Together, reports: &[Report]) -> String {
    let mut keys: Vec<&str> = Vec::new();
    for (key, _) in plan.cases.iter().flat_map(|case| &case.values) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let spread = |Spread { median, min, max }: Spread, digits: usize| {
        if plan.seeds.len() == 1 {
            format!("{median:.digits$}")
        } else {
            format!("{median:.digits$} [{min:.digits$}-{max:.digits$}]")
        }
    };
    let figures = ["complete", "makespan s", "x bound", "p99 s", "p99.9 s", "own p99 s", "copies"];
    let mut rows = vec![keys.iter().copied().chain(figures).map(str::to_owned).collect::<Vec<_>>()];
    for CaseSummary { case, summary } in &together.summary {
        let value = |key: &&str| case.get(*key).map_or_else(|| "-".to_owned(), shown);
        let mut row: Vec<String> = keys.iter().map(value).collect();
        row.push(format!("{} of {}", summary.runs - summary.incomplete, summary.runs));
        row.extend([
            spread(summary.makespan_s, 4),
            spread(summary.makespan_over_bound, 3),
            spread(summary.p99_s, 4),
            spread(summary.p999_s, 4),
            spread(summary.own_p99_s, 4),
            spread(summary.strata_copies, 4),
        ]);
        rows.push(row);
    }
    let (cases, seeds) = (plan.cases.len(), plan.seeds.len());
    let mut text = format!("{}: {cases} x {seeds} runs (cases x seeds)", path.display());
    if seeds > 1 {
        text += ", medians with [least-most]";
    }
    text += "\n\n";
    text += &aligned(&rows);
    let model = reports.first().map_or("", |report| report.model);
    text += &format!("\nmodel: {model}\nwall time: {:.1} s", together.wall_s);
    text
}

/// Columns as wide as their widest cell.
fn aligned(rows: &[Vec<String>]) -> String {
    let mut widths = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(plan: &Plan) -> Vec<Timed> {
        let (runs, mut done) = (plan.runs(), Vec::new());
        let meter = Meter::new(wanted(&runs), runs.len());
        let each = |_, timed, _| {
            done.push(timed);
            Ok(())
        };
        each_run(&Source::Here(0..runs.len()), plan, &meter, &Recording::default(), each).unwrap();
        done
    }

    #[test]
    fn a_published_scenario_needs_no_file_and_what_is_neither_is_said_to_be() {
        assert!(read(Path::new("rollout-32")).unwrap().contains("[fleet]"));
        let error = read(Path::new("rollout-33")).unwrap_err().to_string();
        assert!(error.contains("rollout-33") && error.contains("--list"), "{error}");
        assert!(list().lines().any(|line| line.starts_with("flash-crowd-10k  ")), "{}", list());
    }

    #[test]
    fn a_key_that_is_not_there_is_answered_with_the_one_that_was_meant() {
        assert!(explained("fleet.nodes").unwrap().contains("10 000 000"));
        let error = explained("fleet.node").unwrap_err();
        assert!(error.to_string().contains("`fleet.nodes`") && error.code() == 2, "{error}");
    }

    #[test]
    fn the_example_in_the_help_is_a_sweep_that_runs() {
        use clap::Args as _;
        let help =
            Args::augment_args(clap::Command::new("simulate").term_width(0)).render_long_help().to_string();
        let lines = help.lines().skip_while(|line| line.trim() != "[sweep]").take(3);
        let sweep: String = lines.map(|line| format!("{}\n", line.trim())).collect();
        let text = read(Path::new("rollout-32")).unwrap();
        let plan = Plan::parse(&format!("{text}{sweep}"), None, None).unwrap();
        assert_eq!(plan.cases.len(), 6);
        let compare = help.lines().skip_while(|line| line.trim() != "[compare]").take(2);
        let compare: String = compare.map(|line| format!("{}\n", line.trim())).collect();
        let plan = Plan::parse(&format!("{text}{compare}"), None, None).unwrap();
        assert_eq!(plan.cases.len(), 3);
    }

    #[test]
    fn strategies_that_are_compared_stand_side_by_side() {
        let text = read(Path::new("rollout-32")).unwrap().replace("134_217_728", "8_388_608");
        let text = format!("{text}\n[compare]\nstrategies = ['origin', 'starling']\n");
        let plan = Plan::parse(&text, None, None).unwrap();
        let done = done(&plan);
        let lines: Vec<String> = done.iter().map(|timed| json(timed).unwrap()).collect();
        assert!(lines[0].contains(r#""strategy":"origin""#), "{}", lines[0]);
        assert!(lines[1].contains(r#""strategy":"starling""#), "{}", lines[1]);
        assert!(table(Path::new("f.toml"), &done[0]).contains("strategy          origin"));
        let reports: Vec<Report> = done.into_iter().map(|timed| timed.report).collect();
        let of_case = |(case, report): (&Case, &Report)| CaseSummary {
            case: swept(case),
            summary: Summary::of(std::slice::from_ref(report)),
        };
        let summary = plan.cases.iter().zip(&reports).map(of_case).collect();
        let text = summaries(Path::new("f.toml"), &plan, &Together { summary, wall_s: 1.0 }, &reports);
        let has_row = |start: &str| text.lines().any(|line| line.starts_with(start));
        assert!(has_row("strategy.name") && has_row("origin ") && has_row("starling "), "{text}");
    }

    #[test]
    fn a_summary_has_a_row_for_each_case_with_its_values() {
        let text = read(Path::new("rollout-32")).unwrap().replace("134_217_728", "8_388_608");
        let text = format!("seeds = [1, 2]\n{text}\n[sweep]\nfleet.nodes = [4, 8]\n");
        let plan = Plan::parse(&text, None, None).unwrap();
        let reports: Vec<Report> = done(&plan).into_iter().map(|timed| timed.report).collect();
        assert_eq!(reports.iter().map(|report| report.rollout.nodes).collect::<Vec<_>>(), [4, 4, 8, 8]);
        assert_eq!(reports.iter().map(|report| report.rollout.seed).collect::<Vec<_>>(), [1, 2, 1, 2]);
        let summary = plan
            .cases
            .iter()
            .zip(reports.chunks(2))
            .map(|(case, reports)| CaseSummary { case: swept(case), summary: Summary::of(reports) })
            .collect();
        let text = summaries(Path::new("f.toml"), &plan, &Together { summary, wall_s: 1.0 }, &reports);
        let row = |nodes: &str| text.lines().find(|line| line.starts_with(nodes)).unwrap().to_owned();
        assert!(text.starts_with("f.toml: 2 x 2 runs"), "{text}");
        assert!(row("fleet.nodes").contains("x bound"), "{text}");
        assert!(row("4 ").contains("2 of 2") && row("8 ").contains('['), "{text}");
    }
}
