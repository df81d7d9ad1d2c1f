//! All runs that a file asks for: each combination of what is swept, with each seed.

use super::content::{Files, Profiles};
use super::document::{Document, Name, Value, json, nested};
use super::error::{Problem, ScenarioError};
use super::keys::{check_known, grouped};
use super::{Scenario, Seeds, no_files};
use toml::de::{DeArray, DeTable, DeValue};

/// Most runs of a file (a guess: more are no longer one question).
pub const RUNS_MAX: u32 = 4_096;

/// All runs that a file asks for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is run with each seed: one without a sweep.
    pub cases: Vec<Case>,
    /// What each case is run with.
    pub seeds: Vec<u64>,
}

/// One combination of what is swept.
#[derive(Clone, Debug)]
pub struct Case {
    /// The swept keys with their values, in the order of the file.
    pub values: Vec<(String, serde_json::Value)>,
    /// What comes of it.
    pub scenario: Scenario,
}

/// A key that is swept, with its values.
struct Axis<'a> {
    path: Vec<Name<'a>>,
    values: DeArray<'a>,
}

impl Plan {
    /// Reads and checks a file that names no others. `seed` and `seeds`, the number of runs of each case, take the place of the file's.
    ///
    /// # Errors
    /// [`ScenarioError`] names the first line and key that is wrong.
    pub fn parse(text: &str, seed: Option<u64>, seeds: Option<u32>) -> Result<Self, ScenarioError> {
        Self::parse_with(text, seed, seeds, &no_files)
    }

    /// The same, of a scenario that may name files.
    ///
    /// # Errors
    /// [`ScenarioError`] names the first line and key that is wrong.
    pub fn parse_with(
        text: &str,
        seed: Option<u64>,
        seeds: Option<u32>,
        files: &Files<'_>,
    ) -> Result<Self, ScenarioError> {
        let mut profiles = Profiles::new(files);
        let mut document = Document::parse(text)?;
        let sweep = document.take("sweep");
        let overlays = match &sweep {
            None => vec![DeTable::new()],
            Some(sweep) => overlays(&document, sweep)?,
        };
        let overlays = compared(&document, overlays)?;
        let mut cases = Vec::with_capacity(overlays.len());
        for overlay in overlays {
            let mut values = Vec::new();
            label("", &overlay, &mut values);
            values.sort_by_key(|(at, ..)| *at);
            let values = values.into_iter().map(|(_, key, value)| (key, value)).collect();
            cases.push(Case { values, scenario: Scenario::read(&document.under(&overlay), &mut profiles)? });
        }
        let seeds = match cases.first() {
            Some(case) => chosen(&case.scenario, seed, seeds),
            None => Vec::new(),
        };
        let plan = Self { cases, seeds };
        if plan.runs().len() > RUNS_MAX as usize {
            let key = if sweep.is_some() { "sweep" } else { "seeds" };
            return Err(too_many(key, plan.runs().len()).at(text, sweep.map(|sweep| sweep.span())));
        }
        Ok(plan)
    }

    /// The runs in their order, case by case, each with its seed.
    pub fn runs(&self) -> Vec<(&Case, u64)> {
        self.cases.iter().flat_map(|case| self.seeds.iter().map(move |seed| (case, *seed))).collect()
    }
}

/// The seeds of the runs. A seed on the command line begins a count, and stands alone where the file has a list.
fn chosen(scenario: &Scenario, seed: Option<u64>, seeds: Option<u32>) -> Vec<u64> {
    let from = |first: u64, count: u32| (0..u64::from(count)).map(|step| first.wrapping_add(step)).collect();
    let first = seed.unwrap_or(scenario.seed);
    match (seeds, &scenario.seeds) {
        (Some(count), _) => from(first, count),
        (None, None) => vec![first],
        (None, Some(_)) if seed.is_some() => vec![first],
        (None, Some(Seeds::Count(count))) => from(first, *count),
        (None, Some(Seeds::List(list))) => list.clone(),
    }
}

fn too_many(key: &str, runs: usize) -> ScenarioError {
    let must = format!("no more than {} runs", grouped(u64::from(RUNS_MAX)));
    Problem::Value { key: key.to_owned(), found: format!("{} runs", grouped(runs as u64)), must }.into()
}

/// What is laid over the scenario for each case.
fn overlays<'a>(document: &Document<'a>, sweep: &Value<'a>) -> Result<Vec<DeTable<'a>>, ScenarioError> {
    match sweep.get_ref() {
        DeValue::Table(table) => {
            let mut axes = Vec::new();
            find_axes(document, table, &mut Vec::new(), &mut axes)?;
            // The parser does not keep the order of keys; the text does.
            axes.sort_by_key(|axis| axis.path.last().map_or(0, |name| name.span().start));
            combine(document, sweep, &axes)
        }
        DeValue::Array(list) if !list.is_empty() => {
            let most = RUNS_MAX as usize;
            if list.len() > most {
                return Err(too_many("sweep", list.len()).at(document.text(), Some(sweep.span())));
            }
            let mut tables = Vec::with_capacity(list.len());
            for value in list.iter() {
                match value.get_ref() {
                    DeValue::Table(table) => {
                        for name in table.keys() {
                            refuse_seeds(document, &[name], name)?;
                        }
                        tables.push(table.clone());
                    }
                    _ => {
                        return Err(document.wrong("sweep", value, "a table that is laid over the scenario"));
                    }
                }
            }
            Ok(tables)
        }
        _ => Err(document.wrong("sweep", sweep, "a table of keys with lists of values, or a list of tables")),
    }
}

fn dotted(path: &[Name<'_>]) -> String {
    path.iter().map(|name| &**name.get_ref()).collect::<Vec<_>>().join(".")
}

/// The same with each of the strategies that are compared laid over it, which change fastest.
fn compared<'a>(
    document: &Document<'a>,
    overlays: Vec<DeTable<'a>>,
) -> Result<Vec<DeTable<'a>>, ScenarioError> {
    let strategies = document.get("compare.strategies").and_then(|value| value.get_ref().as_array());
    let Some(strategies) = strategies.filter(|strategies| !strategies.is_empty()) else {
        // If something is wrong with it, reading says so.
        return Ok(overlays);
    };
    let count = overlays.len().saturating_mul(strategies.len());
    if count > RUNS_MAX as usize {
        let span = document.span_of("compare");
        return Err(too_many("compare.strategies", count).at(document.text(), span));
    }
    let mut all = Vec::with_capacity(count);
    for overlay in overlays {
        let overlay = Document::empty(document.text()).under(&overlay);
        if let Some(name) = overlay.get("strategy.name") {
            let must = "left out with `[compare]`, which names the strategies";
            return Err(document.wrong("sweep.strategy.name", name, must));
        }
        for strategy in strategies.iter() {
            let path = ["strategy", "name"].map(|name| Name::new(strategy.span(), name.into()));
            all.push(overlay.under(&nested(&path, strategy.clone())).into_root());
        }
    }
    Ok(all)
}

/// Refuses to sweep the seed and the strategies that are compared: each case is run with all of them.
fn refuse_seeds(document: &Document<'_>, path: &[&Name<'_>], name: &Name<'_>) -> Result<(), ScenarioError> {
    let must = match path {
        [only] if matches!(&**only.get_ref(), "seed" | "seeds") => {
            "left out: every case is run with all of `seeds`, which stands before the tables"
        }
        [first, ..] if &**first.get_ref() == "compare" => {
            "left out: every case is run with all of `compare.strategies`"
        }
        _ => return Ok(()),
    };
    let (key, must) = (format!("sweep.{}", name.get_ref()), must.to_owned());
    let error = ScenarioError::from(Problem::Value { key, found: "a key".to_owned(), must });
    Err(error.at(document.text(), Some(name.span())))
}

fn find_axes<'a>(
    document: &Document<'a>,
    table: &DeTable<'a>,
    path: &mut Vec<Name<'a>>,
    axes: &mut Vec<Axis<'a>>,
) -> Result<(), ScenarioError> {
    for (name, value) in table {
        path.push(name.clone());
        refuse_seeds(document, &path.iter().collect::<Vec<_>>(), name)?;
        match value.get_ref() {
            DeValue::Table(table) => find_axes(document, table, path, axes)?,
            DeValue::Array(values) if !values.is_empty() => {
                check_known(document, dotted(path), name.span())?;
                axes.push(Axis { path: path.clone(), values: values.clone() });
            }
            _ => {
                let key = format!("sweep.{}", dotted(path));
                return Err(document.wrong(&key, value, "a list of values, one at least"));
            }
        }
        path.pop();
    }
    Ok(())
}

/// Every combination, the first key changing slowest.
fn combine<'a>(
    document: &Document<'a>,
    sweep: &Value<'a>,
    axes: &[Axis<'a>],
) -> Result<Vec<DeTable<'a>>, ScenarioError> {
    let count = axes.iter().fold(1_usize, |count, axis| count.saturating_mul(axis.values.len()));
    if count > RUNS_MAX as usize {
        return Err(too_many("sweep", count).at(document.text(), Some(sweep.span())));
    }
    let mut all = Vec::with_capacity(count);
    for number in 0..count {
        let mut left = number;
        let mut chosen = Vec::with_capacity(axes.len());
        for axis in axes.iter().rev() {
            chosen.push((axis, &axis.values[left % axis.values.len()]));
            left /= axis.values.len();
        }
        let mut overlay = Document::empty(document.text());
        for (axis, value) in chosen.into_iter().rev() {
            overlay = overlay.under(&nested(&axis.path, value.clone()));
        }
        all.push(overlay.into_root());
    }
    Ok(all)
}

/// The values in a table with their keys and places.
fn label(path: &str, table: &DeTable<'_>, values: &mut Vec<(usize, String, serde_json::Value)>) {
    for (name, value) in table {
        let inner =
            if path.is_empty() { name.get_ref().to_string() } else { format!("{path}.{}", name.get_ref()) };
        match value.get_ref() {
            DeValue::Table(table) => label(&inner, table, values),
            other => values.push((name.span().start, inner, json(other))),
        }
    }
}
