//! `starling lab --grid`: record real runs of trials, for `starling simulate --validate`.

use super::{CliError, Options, Report, Scenario, run_lab};
use crate::ambient;
use crate::cli::recordings;
use crate::lab::{Fate, Interrupt, NodeReport};
use crate::sim::validation::{FORMAT, Recorded, RecordedNode, Trial, draw};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;

/// What rates and content are multiplied by when a run was void, and how often.
const SLOWER: f64 = 0.75;
/// Runs of a trial at most.
const TRIES_MAX: i32 = 2;

/// Makes the options of a run of a scenario, which says how far it is.
pub(super) type Prepare<'a> = dyn for<'b> Fn(Scenario, &'b dyn Fn(&str)) -> Options<'b> + 'a;

/// Which grid is recorded where.
pub(super) struct Grid<'a> {
    pub(super) directory: &'a Path,
    pub(super) seed: u64,
    pub(super) trials: u32,
    /// Trials that are recorded now, by number; all of them if there are none.
    pub(super) only: &'a [u32],
    /// Prepares the run of a scenario, which says how far it is.
    pub(super) options: &'a Prepare<'a>,
    pub(super) interrupt: Interrupt,
}

/// Records what is not recorded yet. What is, stays: it goes on where it was stopped.
pub(super) fn run(grid: &Grid<'_>) -> Result<(), CliError> {
    let directory = grid.directory;
    std::fs::create_dir_all(directory)
        .map_err(|error| CliError::failed(format!("{}: {error}", directory.display())))?;
    let trials = draw(grid.seed, grid.trials);
    let mut waiting = Vec::new();
    for trial in &trials {
        let is_wanted = grid.only.is_empty() || grid.only.contains(&trial.number);
        if is_wanted && !is_recorded(directory, grid, trial)? {
            waiting.push(trial);
        }
    }
    let bar = bar(waiting.len());
    let mut failed = Vec::new();
    for trial in waiting {
        match record(grid, trial, &bar) {
            Ok(None) => {}
            Ok(Some(defect)) => failed.push(format!("trial {}: {defect}", trial.number)),
            // One that could not be run may be run next time; the user's wish ends all.
            Err(error) if grid.interrupt.is_set() => return Err(error),
            Err(error) => failed.push(format!("trial {}: {error}", trial.number)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if failed.is_empty() {
        return Ok(());
    }
    Err(CliError::failed(failed.join("\nerror: "))
        .hint("the same command again runs these once more, and no others"))
}

/// Whether a trial has a recording that can be used.
fn is_recorded(directory: &Path, grid: &Grid<'_>, trial: &Trial) -> Result<bool, CliError> {
    let path = recordings::path(directory, trial.number);
    let Some(found) = recordings::read(&path)? else { return Ok(false) };
    if (found.grid_seed, found.grid_trials) != (grid.seed, grid.trials) {
        return Err(CliError::failed(format!("{}: it is a trial of another grid", path.display())).hint(
            "record this grid into an empty folder, or name the seed and the number of trials of that one",
        ));
    }
    Ok(found.defect().is_none())
}

/// Runs a trial, slower and slower as long as the machine is too busy with it, and writes the last recording. What is wrong with
/// it, if anything is.
fn record(grid: &Grid<'_>, drawn: &Trial, bar: &ProgressBar) -> Result<Option<String>, CliError> {
    let path = recordings::path(grid.directory, drawn.number);
    let drawn = &drawn.clone().sized().map_err(CliError::failed)?;
    let mut last = None;
    for attempt in 0..TRIES_MAX {
        let trial = drawn.scaled(SLOWER.powi(attempt));
        let text = trial.lab();
        let scenario = Scenario::parse(&text).map_err(CliError::failed)?;
        let say = |told: &str| {
            let line = format!("trial {} ({} nodes): {told}", drawn.number, drawn.nodes);
            if bar.is_hidden() { eprintln!("{line}") } else { bar.set_message(line) }
        };
        let report = run_lab(&(grid.options)(scenario, &say))?;
        let recorded = recorded(grid, drawn, trial, &report);
        recordings::write(&path, &recorded)?;
        let seconds = report.rollout.makespan_s;
        let note = format!(
            "trial {}: {} nodes, makespan {seconds:.2} s = {:.3} of the bound, {:.4} copies, machine {:.0} % busy{}",
            drawn.number,
            drawn.nodes,
            report.rollout.makespan_over_bound,
            report.rollout.strata_copies,
            report.cpu * 100.0,
            if report.void { " - VOID" } else { "" }
        );
        if bar.is_hidden() {
            eprintln!("{note}");
        } else {
            bar.println(note);
        }
        last = recorded.defect();
        if !report.void {
            break;
        }
    }
    Ok(last)
}

fn recorded(grid: &Grid<'_>, drawn: &Trial, trial: Trial, report: &Report) -> Recorded {
    let node = |node: &NodeReport| RecordedNode {
        place: node.place,
        killed: node.fate == Fate::Killed,
        began_s: node.began_s,
        completed_s: node.completed_s,
        up_bytes: node.up_bytes,
        down_bytes: node.down_bytes,
    };
    Recorded {
        format: FORMAT,
        grid_seed: grid.seed,
        grid_trials: grid.trials,
        drawn: drawn.clone(),
        trial,
        recorded_unix_s: ambient::unix_now().0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: report.model.clone(),
        cpu: report.cpu,
        void: report.void,
        problems: report.problems(),
        strata_bytes: report.rollout.strata_bytes,
        strata_link_bytes: report.strata_wire_bytes,
        nodes: report.per_node.iter().map(node).collect(),
        into_cells_bytes: report.crossings.iter().map(|link| link.in_bytes).collect(),
        keys: report.keys.clone(),
    }
}

fn bar(trials: usize) -> ProgressBar {
    let bar = ProgressBar::new(trials as u64);
    match ProgressStyle::with_template("{bar:20} {pos} of {len}, {eta} left; {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trial_is_a_scenario_of_the_lab_with_the_links_of_the_simulated_one() {
        for trial in draw(1, 48) {
            let lab =
                Scenario::parse(&trial.lab()).unwrap_or_else(|error| panic!("{error}\n{}", trial.lab()));
            let text = trial.simulation(&crate::sim::validation::Calibrated::START, None);
            let simulated = crate::sim::Scenario::parse(&text).unwrap();
            let fleet = &simulated.fleet;
            let other = [fleet.up_mbit_s, fleet.down_mbit_s];
            assert_eq!(
                lab.rates(),
                crate::sim::class_rates(fleet.nodes, other, &fleet.class, simulated.seed)
            );
            assert_eq!((lab.seed, lab.content.bytes), (simulated.seed, simulated.content.bytes));
            assert_eq!(lab.settings, simulated.settings);
            assert_eq!(u64::from(lab.content.files) * u64::from(trial.chunk_bytes), lab.content.bytes);
            assert_eq!(lab.network.shared_mbit_s, simulated.network.links.cell_down_mbit_s);
        }
    }
}
