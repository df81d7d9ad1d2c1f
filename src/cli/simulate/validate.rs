//! `starling simulate --validate`: hold the simulation against recorded runs of real nodes.

use super::aligned;
use crate::cli::{CliError, recordings};
use crate::sim::validation::{Compared, FIGURES, Promise, Row, Validation, validate};
use std::fmt::Write as _;
use std::path::Path;

/// Reads the recordings of `directory`, calibrates with one half and tests with the other.
pub(super) fn run(
    directory: &Path,
    seed: u64,
    as_json: bool,
    calibrated: Option<&Path>,
) -> Result<(), CliError> {
    let recorded = recordings::read_all(directory)?;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let bar = Bar::new();
    let found = validate(&recorded, seed, threads, &mut |round, most| bar.show(round, most));
    bar.end();
    let found = found.map_err(|error| {
        CliError::failed(format!("{}: {error}", directory.display()))
            .hint("`starling lab --grid DIR` records trials; docs/lab.md says what it needs")
    })?;
    if let Some(file) = calibrated {
        let text = format!("{}{}", heading(&found), found.calibrated.toml());
        crate::cli::pending::write(file, text.as_bytes())
            .map_err(|error| CliError::failed(format!("{}: {error}", file.display())))?;
    }
    let text = if as_json {
        serde_json::to_string(&found).map_err(CliError::failed)?
    } else {
        in_words(directory, &found)
    };
    println!("{}", text.trim_end());
    Ok(())
}

fn halves(found: &Validation) -> (usize, usize) {
    let fitted = found.trials.iter().filter(|one| one.fitted).count();
    (fitted, found.trials.len() - fitted)
}

/// What the file of calibrated values begins with.
fn heading(found: &Validation) -> String {
    let (fitted, held_back) = halves(found);
    format!(
        "# Found by `starling simulate --validate` with {fitted} recorded trials of real nodes, and held against {held_back} others.\n\
         # These are keys of a scenario.\n\n"
    )
}

fn in_words(directory: &Path, found: &Validation) -> String {
    let (fitted, held_back) = halves(found);
    let mut text = format!(
        "{}: {fitted} trials that parameters were fitted to, {held_back} others, {} left out\n\n",
        directory.display(),
        found.left_out.len()
    );
    text += &format!("calibrated\n{}\n", indented(&found.calibrated.toml()));
    text += "errors on the others, with 95 % intervals\n";
    text += &rows(&found.held_back);
    text += "\nerrors on the trials that parameters were fitted to\n";
    text += &rows(&found.fitted);
    text += "\npromises\n";
    for promise in &found.promises {
        text += &format!("  {}\n", promised(promise, &found.held_back));
    }
    text += &worst(found);
    for out in &found.left_out {
        let _ = writeln!(text, "left out: trial {}: {}", out.trial, out.why);
    }
    text
}

fn indented(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.map(|line| format!("  {line}\n")).collect()
}

fn per_cent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

fn with_interval([value, least, most]: [f64; 3]) -> String {
    format!("{:.1} % [{:.1} to {:.1}]", value * 100.0, least * 100.0, most * 100.0)
}

fn rows(rows: &[Row]) -> String {
    let head = ["figure", "trials", "median", "nine of ten within", "worst", "median with its sign"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for Row { figure, accuracy } in rows.iter().filter(|row| row.accuracy.trials > 0) {
        lines.push(vec![
            (*figure).to_owned(),
            accuracy.trials.to_string(),
            with_interval(accuracy.median),
            with_interval(accuracy.most),
            per_cent(accuracy.worst),
            with_interval(accuracy.bias),
        ]);
    }
    indented(&aligned(&lines))
}

fn promised(promise: &Promise, rows: &[Row]) -> String {
    let word = if promise.holds { "holds" } else { "MISSED" };
    let found = rows.iter().find(|row| row.figure == promise.figure).map(|row| row.accuracy);
    let [median, most] = found.map_or([f64::NAN; 2], |found| [found.median[0], found.most[0]]);
    let within = per_cent(promise.nine_of_ten_most);
    match promise.median_most {
        Some(limit) => format!(
            "{word}: {} within {} (median: {}) and {within} (nine of ten trials: {})",
            promise.figure,
            per_cent(limit),
            per_cent(median),
            per_cent(most)
        ),
        None => {
            format!("{word}: {} within {within} (nine of ten trials: {})", promise.figure, per_cent(most))
        }
    }
}

fn worst(found: &Validation) -> String {
    let Some(Compared { trial, measured, simulated, errors, .. }) =
        found.trials.iter().find(|one| one.trial.number == found.worst)
    else {
        return String::new();
    };
    let killed = trial.killed.as_ref().map_or(0, |killed| killed.nodes.len());
    format!(
        "worst: trial {}: {} {:.2} s, simulated {:.2} s ({:+.1} %); {} nodes, {} cells, {} chunks of {} KiB, {} under way, links of {:?} Mbit/s, \
         the stratum's {}, {killed} killed\n",
        trial.number,
        FIGURES[0],
        measured[0],
        simulated[0],
        errors[0] * 100.0,
        trial.nodes,
        trial.cells,
        trial.chunks,
        trial.chunk_bytes >> 10,
        trial.in_flight,
        trial.mbit_s,
        trial.stratum_mbit_s,
    )
}

/// How far the calibration is, in the build that has bars.
struct Bar {
    #[cfg(feature = "node")]
    bar: indicatif::ProgressBar,
}

impl Bar {
    fn new() -> Self {
        #[cfg(feature = "node")]
        {
            let bar = indicatif::ProgressBar::new(0);
            let style = indicatif::ProgressStyle::with_template(
                "calibrating: {bar:30} {pos} of {len} rounds at most, {eta} left",
            );
            Self { bar: style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style)) }
        }
        #[cfg(not(feature = "node"))]
        Self {}
    }

    fn show(&self, round: usize, most: usize) {
        #[cfg(feature = "node")]
        {
            self.bar.set_length(most as u64);
            self.bar.set_position(round as u64);
        }
        #[cfg(not(feature = "node"))]
        let _ = (self, round, most);
    }

    fn end(&self) {
        #[cfg(feature = "node")]
        self.bar.finish_and_clear();
        #[cfg(not(feature = "node"))]
        let _ = self;
    }
}
