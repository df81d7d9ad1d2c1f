//! The scenarios that come with the program, and what is kept of their runs.

use super::report::Report;
use serde::Serialize;
use std::fmt::Write as _;

/// A scenario by name.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Its file's name, without `.toml`.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

macro_rules! published {
    ($($name:literal),+ $(,)?) => {
        [$(Published {
            name: $name,
            text: include_str!(concat!("../../simulations/scenarios/", $name, ".toml")),
        }),+]
    };
}

/// All of `simulations/scenarios/`, by name.
pub const PUBLISHED: &[Published] = &published![
    "churn-2k",
    "dadi",
    "edge-1m",
    "faasnet",
    "faults-10k",
    "flash-crowd-10k",
    "gpu-140gb-4k",
    "grid-100k",
    "in-order-10k",
    "kraken",
    "kubernetes-waves-10k",
    "liars-20-percent",
    "region-cut",
    "rollout-32",
    "rollout-32-cells",
    "rollout-32-deaths",
    "rollout-32-in-order",
    "rollout-32-liars",
    "rollout-32-stalls",
    "root-spread-100k",
    "stratum-outage",
];

/// The command that makes all results anew.
const ALL_ANEW: &str = "simulations/run-all.sh";

/// What is kept of a run, to be compared with later ones.
#[derive(Debug, Serialize)]
pub struct Kept<'a> {
    /// BLAKE3 of the scenario's file.
    pub scenario_hash: String,
    /// The program and its version.
    pub program: String,
    /// The figures.
    #[serde(flatten)]
    pub report: &'a Report,
}

impl<'a> Kept<'a> {
    /// Of a run of the scenario with this text.
    pub fn new(text: &str, report: &'a Report) -> Self {
        let program = format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        Self { scenario_hash: scenario_hash(text), program, report }
    }
}

/// The name of a scenario's text.
fn scenario_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// A page in Markdown about what was kept, by name in the order of the names.
pub fn results_page(results: &[(String, serde_json::Value)]) -> String {
    let mut page = format!(
        "# Results of the published scenarios\n\n\
         Each is one run with the scenario's own seed, and lies here as `NAME.json`. Only `wall_s` is left out: all else is the same on every\n\
         machine. `starling simulate NAME` shows a run, `starling simulate NAME --results simulations/results` puts it here and makes this page\n\
         anew, and `{ALL_ANEW}` does so for all. A test refuses a result whose scenario has changed since; one whose program has changed\n\
         shows as another `result_hash`.\n\n\
         | scenario | nodes | all after | bound | times the bound | half after | 99 % after | copies out of the strata |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for (name, result) in results {
        let number = |key: &str| result[key].as_f64().unwrap_or(f64::NAN);
        let (completed, nodes) = (number("completed"), number("nodes"));
        let whole = if completed < nodes { format!("{completed} of {nodes}") } else { format!("{nodes}") };
        let _ = writeln!(
            page,
            "| [`{name}`](../scenarios/{name}.toml) | {whole} | {:.3} s | {:.3} s | {:.3} | {:.3} s | {:.3} s | {:.3} |",
            number("makespan_s"),
            number("bound_s"),
            number("makespan_over_bound"),
            number("p50_s"),
            number("p99_s"),
            number("strata_copies")
        );
    }
    for (name, result) in results {
        if let Some(root) = result.get("root") {
            let number = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
            let times = &root["heard_s"];
            let _ = writeln!(
                page,
                "\nIn `{name}` half of the nodes hear of the new root within {:.3} s, 99 % within {:.3} s and the last after {:.3} s, for {:.1} \
                 messages a node.",
                number(&times["p50"]),
                number(&times["p99"]),
                number(&times["max"]),
                number(&root["messages_each"])
            );
        }
    }
    page
}

impl Published {
    /// What it is about: its first line.
    pub fn about(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Plan;

    /// Those without a result yet: one run of them takes from some minutes to an hour of two cores.
    const NOT_RUN: &[&str] = &["edge-1m", "faults-10k", "grid-100k"];

    #[test]
    fn each_result_is_of_the_scenario_as_it_is_now_and_the_page_shows_what_they_say() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/simulations/results");
        let mut results = Vec::new();
        for one in PUBLISHED {
            let path = format!("{folder}/{}.json", one.name);
            let Ok(text) = std::fs::read_to_string(&path) else {
                assert!(NOT_RUN.contains(&one.name), "{path} is missing: {ALL_ANEW} makes it");
                continue;
            };
            let result: serde_json::Value = serde_json::from_str(&text).unwrap();
            let plan = Plan::parse(one.text, None, None).unwrap();
            assert_eq!(
                result["scenario_hash"],
                scenario_hash(one.text),
                "{} has changed since it was run: `starling simulate {0} --results simulations/results`",
                one.name
            );
            assert_eq!(result["seed"], plan.seeds[0], "{}", one.name);
            let liars = result["liars"].as_u64().unwrap() + result["nodes"].as_u64().unwrap();
            assert_eq!(liars, u64::from(plan.cases[0].scenario.fleet.nodes), "{}", one.name);
            results.push((one.name.to_owned(), result));
        }
        let others = std::fs::read_dir(folder).unwrap().count() - results.len();
        assert_eq!(others, 1, "only README.md lies beside the results of what is published");
        assert_eq!(std::fs::read_to_string(format!("{folder}/README.md")).unwrap(), results_page(&results));
    }

    #[test]
    fn all_of_the_folder_are_published_well_formed_and_say_what_they_are_about() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/simulations/scenarios");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().trim_end_matches(".toml").to_owned())
            .collect();
        names.sort();
        assert_eq!(PUBLISHED.iter().map(|one| one.name).collect::<Vec<_>>(), names);
        let mut lines = std::collections::BTreeSet::new();
        for one in PUBLISHED {
            Plan::parse(one.text, None, None).unwrap_or_else(|error| panic!("{}: {error}", one.name));
            assert!((20..115).contains(&one.about().len()), "{}: {}", one.name, one.about());
            assert!(lines.insert(one.about()), "{} says no more than another", one.name);
        }
    }
}
