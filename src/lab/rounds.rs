//! Several runs of one scenario, taken together: medians of those that count, and which goals were missed.

use serde_json::Value;

/// Where the figure stands in a report of which a goal speaks.
const GOALS: [(&str, &str); 7] = [
    ("makespan_over_bound", "/makespan_over_bound"),
    ("strata_copies", "/strata_copies"),
    ("upload_copies", "/most_given_copies"),
    ("crossing_copies", "/most_into_a_cell_copies"),
    ("p99_s", "/p99_s"),
    ("link_bytes_per_s", "/link_bytes_per_s"),
    ("agent_cpu", "/agent_cpu"),
];

/// The runs of one scenario, by their reports as JSON.
#[derive(Debug, Default)]
pub struct Rounds {
    counted: Vec<Value>,
    void: Vec<String>,
    failed: Vec<String>,
}

impl Rounds {
    /// Takes what came of a run: its report, or why there is none.
    pub fn add(&mut self, seed: u64, run: Result<Value, String>) {
        match run {
            Ok(report) => {
                // A wrong byte is wrong on a busy machine, too; only figures of pace do not count then.
                for error in report["errors"].as_array().into_iter().flatten() {
                    self.failed.push(format!("seed {seed}: {}", error.as_str().unwrap_or_default()));
                }
                if report["completed"] != report["nodes"] {
                    let (completed, nodes) = (&report["completed"], &report["nodes"]);
                    self.failed.push(format!("seed {seed}: {completed} of {nodes} nodes completed"));
                }
                if report["void"] == true {
                    let cpu = report["cpu"].as_f64().unwrap_or(f64::NAN);
                    self.void
                        .push(format!("seed {seed} is void: {:.0} % of the machine was busy", cpu * 100.0));
                } else {
                    self.counted.push(report);
                }
            }
            Err(error) => self.failed.push(format!("seed {seed}: {error}")),
        }
    }

    /// How many runs count.
    pub fn counted(&self) -> usize {
        self.counted.len()
    }

    /// The runs that do not count, because the processors may have set their pace.
    pub fn void(&self) -> &[String] {
        &self.void
    }

    fn figures(&self, path: &str) -> Vec<f64> {
        let figure = |report: &Value| report.pointer(path)?.as_f64();
        let mut values: Vec<f64> = self.counted.iter().filter_map(figure).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// The median of a figure over the runs that count; `path` is a JSON pointer.
    pub fn median(&self, path: &str) -> Option<f64> {
        let values = self.figures(path);
        let (low, high) = (values.get(values.len().saturating_sub(1) / 2)?, values.get(values.len() / 2)?);
        Some(f64::midpoint(*low, *high))
    }

    /// Median and range of a figure over the runs that count.
    pub fn summary(&self, path: &str, digits: usize) -> Option<String> {
        let values = self.figures(path);
        let (first, last) = (values.first()?, values.last()?);
        Some(format!("{:.digits$} [{first:.digits$}-{last:.digits$}]", self.median(path)?))
    }

    /// What stands against it that the promise holds: goals that the median misses, runs that failed, or that none counts.
    pub fn problems(&self) -> Vec<String> {
        let mut found = self.failed.clone();
        let Some(report) = self.counted.first() else {
            found.push("no run counts".to_owned());
            return found;
        };
        for (goal, path) in GOALS {
            let Some(most) = report["goals"][goal].as_f64() else { continue };
            match self.median(path) {
                Some(median) if median <= most => {}
                Some(median) => {
                    found.push(format!("{goal}: {median:.4} in the median, promised at most {most}"));
                }
                None => found.push(format!("{goal}: was not measured")),
            }
        }
        found
    }
}

/// A published scenario of `before` nodes with another number of nodes: as large a part of them is at fault, all faults together
/// and rounded, and at least one by each. Of those that are killed, never less than that part.
pub fn resized(text: &str, before: u32, nodes: u32) -> String {
    let (mut in_faults, mut are_killed) = (false, false);
    // At fault so far: in the scenario, and in what comes of it.
    let (mut faulty, mut chosen) = (0, 0);
    let mut lines = String::new();
    for line in text.lines() {
        if line.starts_with('[') {
            (in_faults, are_killed) = (line == "[[faults]]", false);
        }
        are_killed |= in_faults && line == "what = \"kill\"";
        let number = line.strip_prefix("nodes = ").and_then(|number| number.parse::<u32>().ok());
        match number {
            Some(number) if in_faults => {
                faulty += number;
                let part = faulty * nodes;
                let all = if are_killed { part.div_ceil(before) } else { (part + before / 2) / before };
                let here = all.saturating_sub(chosen).max(1);
                chosen += here;
                lines += &format!("nodes = {here}\n");
            }
            Some(number) if number == before => lines += &format!("nodes = {nodes}\n"),
            _ => lines = lines + line + "\n",
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{Fault, Scenario, Which};
    use super::*;
    use serde_json::json;

    fn report(copies: f64, void: bool) -> Result<Value, String> {
        let goals = json!({"strata_copies": 1.05});
        Ok(json!({
            "nodes": 3, "completed": 3, "errors": [], "goals": goals, "strata_copies": copies, "void": void, "cpu": 0.8,
        }))
    }

    fn rounds(runs: impl IntoIterator<Item = Result<Value, String>>) -> Rounds {
        let mut rounds = Rounds::default();
        (1..).zip(runs).for_each(|(seed, run)| rounds.add(seed, run));
        rounds
    }

    #[test]
    fn a_void_run_is_named_and_left_out_of_the_median() {
        let rounds = rounds([report(1.0, false), report(9.0, true), report(1.02, false)]);
        assert_eq!((rounds.counted(), rounds.void().len()), (2, 1));
        assert!(
            rounds.void()[0].contains("seed 2") && rounds.void()[0].contains("80 %"),
            "{:?}",
            rounds.void()
        );
        assert_eq!(rounds.summary("/strata_copies", 2).unwrap(), "1.01 [1.00-1.02]");
        assert_eq!(rounds.problems(), [""; 0]);
    }

    #[test]
    fn the_median_decides_whether_a_goal_is_missed() {
        let one_bad = rounds([report(1.0, false), report(9.0, false), report(1.02, false)]);
        assert_eq!(one_bad.problems(), [""; 0]);
        let two_bad = rounds([report(1.0, false), report(9.0, false), report(1.06, false)]);
        assert!(two_bad.problems()[0].contains("strata_copies: 1.06"), "{:?}", two_bad.problems());
    }

    #[test]
    fn what_did_not_run_to_its_end_is_no_success() {
        assert_eq!(rounds([report(1.0, true)]).problems(), ["no run counts"]);
        let mut short = report(1.0, false).unwrap();
        short["completed"] = 2.into();
        let mut wrong = report(1.0, true).unwrap();
        wrong["errors"] = json!(["n1: other content"]);
        let problems = rounds([Ok(short), Err("no root".to_owned()), Ok(wrong)]).problems();
        let expected = ["seed 1: 2 of 3 nodes completed", "seed 2: no root", "seed 3: n1: other content"];
        assert_eq!(problems, expected, "also where the machine was busy");
    }

    #[test]
    fn the_names_of_all_goals_are_known() {
        let goals: super::super::scenario::Goals =
            serde_json::from_value(GOALS.iter().map(|(goal, _)| ((*goal).to_owned(), json!(1.0))).collect())
                .unwrap();
        let known = serde_json::to_value(&goals).unwrap();
        assert_eq!(known.as_object().unwrap().len(), GOALS.len());
    }

    /// The promise speaks of 10 % that are killed, and of 20 % that lie.
    #[test]
    fn a_smaller_fleet_has_as_large_a_part_at_fault() {
        let read = |name: &str| {
            let file = format!("{}/simulations/lab/{name}.toml", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(file).unwrap()
        };
        for (name, percent) in [("killed", 10), ("replaced", 10), ("liars", 20)] {
            for nodes in 8..=32 {
                let scenario = Scenario::parse(&resized(&read(name), 32, nodes)).unwrap();
                assert_eq!(scenario.fleet.nodes, nodes);
                let at_fault = scenario.faults.iter().map(|fault| match fault {
                    Fault::Kill { nodes: Which::Count(count), .. }
                    | Fault::Replace { nodes: Which::Count(count), .. }
                    | Fault::Liar { nodes: Which::Count(count), .. } => *count,
                    _ => 0,
                });
                let at_fault: u32 = at_fault.sum();
                assert!(at_fault * 100 >= percent * nodes, "{name}: {at_fault} of {nodes}");
            }
        }
    }
}
