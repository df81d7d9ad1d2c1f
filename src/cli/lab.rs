//! `starling lab`: run a scenario with real agents in network namespaces of this machine.

mod grid;

use super::CliError;
use super::ask::table;
use crate::config::ByteSize;
use crate::lab::{
    Crossing, Fate, Interrupt, LabError, LiarKind, Moment, Options, Report, Scenario, run as run_lab, tamper,
};
use crate::sim::validation::TRIALS_MAX;
use std::cell::RefCell;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

/// Largest scenario file that is read, in bytes.
const SCENARIO_MAX_BYTES: u64 = 1 << 20;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  starling lab simulations/lab/flash-crowd.toml
  starling lab simulations/lab/flash-crowd.toml --json | jq '{makespan_over_bound, strata_copies, cpu}'
  starling lab simulations/lab/killed.toml --seed 7 --keep
  starling lab --grid recordings            # 48 drawn set-ups, for `starling simulate --validate recordings`

It needs root, `ip`, `tc` and /dev/fuse, and about (nodes + 2) times the content below $TMPDIR. It makes namespaces and
links of its own, touches no others, and removes them in any case; what a killed run left is removed by the next.
Exit code 1: a reader saw an error, or a node did not get all content. docs/lab.md lists all keys of a scenario.")]
pub(super) struct Args {
    /// The scenario (TOML).
    #[arg(required_unless_present = "grid")]
    file: Option<PathBuf>,
    /// Seed of content, order and all draws, instead of the scenario's; with --grid, of the trials that are drawn.
    #[arg(long)]
    seed: Option<u64>,
    /// Print one JSON object instead of a table.
    #[arg(long, conflicts_with = "grid")]
    json: bool,
    /// Record drawn trials into DIR, a file each, to hold simulations against them. Those that are recorded there are left out.
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    grid: Option<PathBuf>,
    /// Number of trials that the grid has.
    #[arg(long, value_name = "N", requires = "grid", default_value_t = 48,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(TRIALS_MAX)))]
    trials: u32,
    /// Record these trials only, by number from 0.
    #[arg(long, value_name = "N,N", requires = "grid", value_delimiter = ',')]
    only: Vec<u32>,
    /// Program of the honest agents, instead of this one: another build, to be compared.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Keep the folder with all state and logs, and tell where it is.
    #[arg(long)]
    keep: bool,
}

/// Arguments of the hidden command that is a liar.
#[derive(Debug, clap::Args)]
pub(super) struct LiarArgs {
    /// How it lies.
    #[arg(long)]
    how: LiarKind,
    #[command(flatten)]
    agent: super::agent::Args,
}

pub(super) fn run_liar(args: LiarArgs) -> Result<(), CliError> {
    super::agent::run_tampered(args.agent, Some(tamper(args.how)))
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let interrupt = Interrupt::catch()?;
    let executable = std::env::current_exe()?;
    let options = for_runs(&args, &executable, &interrupt);
    if let Some(directory) = &args.grid {
        return grid::run(&grid::Grid {
            directory,
            seed: args.seed.unwrap_or(1),
            trials: args.trials,
            only: &args.only,
            options: &options,
            interrupt: interrupt.clone(),
        });
    }
    let Some(file) = &args.file else {
        return Err(CliError::usage("which scenario?").hint("simulations/lab/ has some"));
    };
    let mut scenario = read(file)?;
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    let line = RefCell::new(Line { is_terminal: std::io::stderr().is_terminal() });
    let show = |text: &str| line.borrow_mut().show(text);
    let report = run_lab(&options(scenario, &show));
    line.borrow_mut().clear();
    let report = report?;
    let text = if args.json {
        serde_json::to_string(&report).map_err(CliError::failed)?
    } else {
        in_words(file, &report)
    };
    println!("{text}");
    match report.problems().as_slice() {
        [] => Ok(()),
        problems => Err(CliError::failed(problems.join("\nerror: "))),
    }
}

/// What all runs of a command have in common.
fn for_runs<'a>(
    args: &'a Args,
    executable: &'a Path,
    interrupt: &'a Interrupt,
) -> impl for<'b> Fn(Scenario, &'b dyn Fn(&str)) -> Options<'b> + 'a {
    move |scenario, progress| Options {
        scenario,
        agent: args.agent.clone().unwrap_or_else(|| executable.to_owned()),
        executable: executable.to_owned(),
        temporary: std::env::temp_dir(),
        keep: args.keep,
        tell_homes: args.grid.is_some(),
        hidden: super::own_variables(),
        path: std::env::var_os("PATH"),
        progress,
        interrupt: interrupt.clone(),
    }
}

fn read(path: &Path) -> Result<Scenario, CliError> {
    let name = path.display();
    let failed = |error: &dyn std::fmt::Display| CliError::failed(format!("{name}: {error}"));
    let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
    let mut text = String::new();
    let length =
        file.take(SCENARIO_MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| failed(&error))?;
    if length as u64 > SCENARIO_MAX_BYTES {
        return Err(failed(&format_args!("a scenario has at most {SCENARIO_MAX_BYTES} bytes")));
    }
    Scenario::parse(&text).map_err(|error| failed(&error).hint("docs/lab.md lists all keys and their units"))
}

impl From<LabError> for CliError {
    fn from(error: LabError) -> Self {
        let failed = Self::failed(&error);
        match error.hint() {
            Some(hint) => failed.hint(hint),
            None => failed,
        }
    }
}

/// One line on a terminal that is overwritten; plain lines elsewhere.
struct Line {
    is_terminal: bool,
}

impl Line {
    fn show(&mut self, text: &str) {
        if self.is_terminal {
            eprint!("\r\x1b[K{text}");
        } else {
            eprintln!("{text}");
        }
    }

    fn clear(&mut self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// Means over the time until half of the nodes were done, and after: the two tell a slow middle from a long tail.
fn busy(report: &Report) -> String {
    let mean = |moments: &[Moment], pick: fn(&Moment) -> f64| {
        100.0 * moments.iter().map(pick).sum::<f64>() / moments.len() as f64
    };
    let half = report.timeline.partition_point(|moment| moment.at_s <= report.rollout.p50_s);
    let all = report.timeline.partition_point(|moment| moment.at_s <= report.rollout.makespan_s);
    let part = |moments: &[Moment]| {
        if moments.is_empty() {
            return "-".to_owned();
        }
        format!(
            "{:.0} % of uplinks, {:.0} % of downlinks, {:.0} % of the stratum's",
            mean(moments, |moment| moment.up),
            mean(moments, |moment| moment.down),
            mean(moments, |moment| moment.strata_up)
        )
    };
    let (first, second) = (&report.timeline[..half], &report.timeline[half..all.max(half)]);
    format!("until p50: {}; then: {}", part(first), part(second))
}

fn in_words(path: &Path, report: &Report) -> String {
    let rollout = &report.rollout;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes a second of a link")]
    let per_second = report.link_bytes_per_s as u64;
    let void = if report.void { " - VOID: the processors may have set the pace" } else { "" };
    let crossing = |copies: &dyn Fn(&Crossing) -> f64| {
        report.crossings.iter().map(|link| format!("{:.3}", copies(link))).collect::<Vec<_>>().join(", ")
    };
    let stored = report.stored_bytes as f64;
    let bounded = rollout.bound_s.is_finite();
    let rows = [
        ("scenario", format!("{} (seed {})", path.display(), rollout.seed)),
        ("nodes", format!("{} of {} completed", rollout.completed, rollout.nodes)),
        (
            "bound",
            if bounded {
                format!("{:.3} s, bound by {}", rollout.bound_s, rollout.binding_term.text())
            } else {
                "none: no content travels".to_owned()
            },
        ),
        (
            "makespan",
            if bounded {
                format!("{:.3} s = {:.3} x bound", rollout.makespan_s, rollout.makespan_over_bound)
            } else {
                format!("{:.3} s", rollout.makespan_s)
            },
        ),
        ("p50 / p99", format!("{:.3} s / {:.3} s", rollout.p50_s, rollout.p99_s)),
        (
            "left the stratum",
            format!(
                "{} = {:.4} copies in {} requests; {} on its link",
                ByteSize(rollout.strata_bytes),
                rollout.strata_copies,
                report.strata_requests,
                ByteSize(report.strata_wire_bytes)
            ),
        ),
        ("most uploads", format!("{:.3} copies", rollout.most_given_copies)),
        (
            "crossed",
            format!(
                "{} copies; {} on the links",
                crossing(&|link| link.in_copies),
                crossing(&|link| link.in_bytes as f64 / stored)
            ),
        ),
        ("links busy", busy(report)),
        ("dropped packets", format!("{} up, {} down", report.dropped_up, report.dropped_down)),
        (
            "machine",
            format!(
                "{:.0} % busy, {:.1} s of it in agents ({:.2} % of a processor each){void}",
                report.cpu * 100.0,
                report.agents_cpu_s,
                report.agent_cpu * 100.0
            ),
        ),
        ("a node's link", format!("{} a second", ByteSize(per_second))),
        ("content", if report.identical { "identical" } else { "DIFFERENT" }.to_owned()),
        ("model", report.model.clone()),
    ];
    let mut text: String = rows
        .iter()
        .filter(|(name, _)| *name != "crossed" || !report.crossings.is_empty())
        .map(|(name, value)| format!("{name:<17} {value}\n"))
        .collect();
    text += "\n";
    text += &nodes(report);
    for missed in &report.missed {
        text += &format!("missed: {missed}\n");
    }
    text.trim_end().to_owned()
}

fn nodes(report: &Report) -> String {
    let rows: Vec<_> = report
        .per_node
        .iter()
        .map(|node| {
            let fate = match (node.fate, node.lies) {
                (_, Some(kind)) => format!("liar ({kind})"),
                (Fate::Completed, _) => "completed".to_owned(),
                (Fate::Killed, _) => "killed".to_owned(),
                _ => "INCOMPLETE".to_owned(),
            };
            let bytes =
                |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), |b| ByteSize(b).to_string());
            [
                node.name.clone(),
                node.cell.clone(),
                fate,
                node.completed_s.map_or_else(|| "-".to_owned(), |s| format!("{s:.2} s")),
                format!("{:.2}", node.up_copies),
                bytes(node.from_peers_bytes),
                bytes(node.from_strata_bytes),
            ]
        })
        .collect();
    table(["NODE", "CELL", "FATE", "AT", "UPLOADED", "FROM PEERS", "FROM STRATUM"], &rows)
}
