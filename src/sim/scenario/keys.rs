//! All keys of a scenario in one table: what parsing refuses, what `--explain` prints and what the documentation lists
//! come from it, so that they cannot disagree. Each struct of the scenario has its part of the table beside it.

use super::document::{Document, Value};
use super::error::{Problem, ScenarioError};
use super::{arrival, content, faults, fleet, network, strategy};
use crate::mesh::proto::Settings;
use std::fmt::Write as _;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// A table of a scenario.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    /// Its name; empty for the root.
    pub(super) name: &'static str,
    /// What it is about.
    pub(super) about: &'static str,
    /// Whether every scenario has it.
    pub(super) is_required: bool,
    /// Whether there may be several, one after the other.
    pub(super) is_list: bool,
    /// Its keys.
    pub(super) keys: &'static [Key],
}

/// A key of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Its name in the table.
    pub(super) name: &'static str,
    /// What it may be.
    pub(super) kind: Kind,
    /// What it counts; empty where the meaning says it.
    pub(super) unit: &'static str,
    /// What holds when it is not there.
    pub(super) preset: Preset,
    /// What it says.
    pub(super) meaning: &'static str,
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// A whole number between these, both included.
    Whole(u64, u64),
    /// A number between these, both included.
    Number(f64, f64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// A list of some of these words, one at least.
    Words(&'static [&'static str]),
    /// A text of so many bytes at most.
    Text(usize),
    /// Microseconds up to this, the same between any two regions or a matrix of them.
    Latencies(u64),
    /// A number of runs up to this, or a list of as many seeds at most.
    Seeds(u32),
}

/// What holds when a key is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preset {
    /// It must be there, if its table is.
    Required,
    /// This value.
    Is(&'static str),
    /// No value; this says what that means.
    Nothing(&'static str),
}

/// The keys outside of all tables.
const ROOT: Table = Table {
    name: "",
    about: "outside of all tables, before the first of them",
    is_required: true,
    is_list: false,
    keys: &[
        Key {
            name: "seed",
            kind: Kind::Whole(0, i64::MAX as u64),
            unit: "",
            preset: Preset::Is("1"),
            meaning: "the seed of all randomness; `--seed` names another",
        },
        Key {
            name: "seeds",
            kind: Kind::Seeds(super::plan::RUNS_MAX),
            unit: "",
            preset: Preset::Nothing("one run"),
            meaning: "number of runs, with `seed` and those after it; or a list of their seeds, and then `seed` counts for \
                      nothing. `--seeds` names another number",
        },
    ],
};

const SWEEP: Table = Table {
    name: "sweep",
    about: "each key of the scenario that stands here has a list of values, and there is a run for each of them; with several keys for \
            each combination, the first key changing slowest. Tables in a list are laid over the scenario's, so \
            `deaths = [{}, { per_cent = 5 }]` under `[sweep]` runs without and with changed deaths. `[[sweep]]`, several times, \
            lists tables that are laid over the whole scenario, one a run. `seeds` is no key to sweep: each of them is run with all seeds",
    is_required: false,
    is_list: false,
    keys: &[],
};

const SETTINGS: Table = Table {
    name: "settings",
    about: "the constants of the nodes' decisions, where they differ from the node's own",
    is_required: false,
    is_list: false,
    keys: &[],
};

/// All tables.
pub(super) const TABLES: &[Table] = &[
    ROOT,
    fleet::TABLE,
    fleet::CLASS,
    network::TABLE,
    network::LINKS,
    network::CHANGE,
    content::TABLE,
    content::STRATUM,
    arrival::TABLE,
    arrival::CANARY,
    arrival::WAVES,
    arrival::ROLLING,
    faults::DEATHS,
    faults::STALLS,
    faults::LIARS,
    strategy::TABLE,
    strategy::ORIGIN,
    strategy::PROXIES,
    strategy::DRAGONFLY,
    strategy::KRAKEN,
    strategy::SPEGEL,
    strategy::FAASNET,
    SETTINGS,
    strategy::COMPARE,
    SWEEP,
];

/// The file of the constants, whose comments explain them.
const SETTINGS_SOURCE: &str = include_str!("../../mesh/proto/settings.rs");

impl Table {
    /// A key's name with that of its table.
    pub(super) fn path(&self, key: &Key) -> String {
        join(self.name, key.name)
    }
}

fn join(table: &str, name: &str) -> String {
    if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") }
}

impl Kind {
    /// In words.
    pub(super) fn text(self) -> String {
        match self {
            Self::Whole(least, most) => {
                format!("a whole number, {} to {}", grouped(least), grouped(most))
            }
            Self::Number(least, most) => format!("a number, {least} to {}", grouped_number(most)),
            Self::Word(words) => format!("one of {}", words.join(", ")),
            Self::Words(words) => format!("a list of at least one of {}", words.join(", ")),
            Self::Text(most) => format!("a text of 1 to {most} bytes"),
            Self::Latencies(most) => format!(
                "a number of microseconds, or a matrix of them with a row for each region, each 0 to {}",
                grouped(most)
            ),
            Self::Seeds(most) => format!("1 to {}, or a list of as many seeds", grouped(u64::from(most))),
        }
    }

    fn takes(self, value: &DeValue<'_>) -> bool {
        let is_of =
            |value: &DeValue<'_>, words: &[&str]| value.as_str().is_some_and(|word| words.contains(&word));
        match self {
            Self::Whole(least, most) => whole(value).is_some_and(|number| (least..=most).contains(&number)),
            Self::Number(least, most) => number(value).is_some_and(|number| (least..=most).contains(&number)),
            Self::Word(words) => is_of(value, words),
            Self::Words(words) => value.as_array().is_some_and(|list| {
                !list.is_empty() && list.iter().all(|value| is_of(value.get_ref(), words))
            }),
            Self::Text(most) => value.as_str().is_some_and(|text| (1..=most).contains(&text.len())),
            Self::Latencies(most) => {
                let is_fine = |value: &DeValue<'_>| whole(value).is_some_and(|number| number <= most);
                let is_row = |value: &DeValue<'_>| {
                    value.as_array().is_some_and(|row| row.iter().all(|value| is_fine(value.get_ref())))
                };
                is_fine(value)
                    || value
                        .as_array()
                        .is_some_and(|rows| !rows.is_empty() && rows.iter().all(|row| is_row(row.get_ref())))
            }
            Self::Seeds(most) => match value.as_array() {
                Some(list) => {
                    (1..=most as usize).contains(&list.len())
                        && list.iter().all(|value| whole(value.get_ref()).is_some_and(is_seed))
                }
                None => whole(value).is_some_and(|number| (1..=u64::from(most)).contains(&number)),
            },
        }
    }
}

/// TOML's whole numbers have 64 bits with their sign.
fn is_seed(number: u64) -> bool {
    i64::try_from(number).is_ok()
}

fn whole(value: &DeValue<'_>) -> Option<u64> {
    let value = value.as_integer()?;
    u64::from_str_radix(value.as_str(), value.radix()).ok()
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Float(number) => number.as_str().parse().ok(),
        other => whole(other).map(|number| number as f64),
    }
}

/// A number with its digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn grouped_number(number: f64) -> String {
    if number.fract() == 0.0 && (0.0..1e15).contains(&number) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "just looked at")]
        let whole = number as u64;
        grouped(whole)
    } else {
        number.to_string()
    }
}

fn find(path: &str) -> Option<(&'static Table, &'static Key)> {
    let mut all = TABLES.iter().flat_map(|table| table.keys.iter().map(move |key| (table, key)));
    all.find(|(table, key)| table.path(key) == path)
}

/// Whether a table, or one further in, has this name.
fn is_table(path: &str) -> bool {
    let inner = |name: &str| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    TABLES.iter().any(|table| table.name == path || inner(table.name))
}

/// Whether there may be several tables of this name.
fn is_list(path: &str) -> bool {
    TABLES.iter().any(|table| table.name == path && table.is_list)
}

/// The node's own constants, by name.
fn settings() -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(Settings::default()) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    }
}

/// Refuses what the table of keys refuses: unknown keys, values out of bounds, missing keys. The first in the text counts.
pub(super) fn check(document: &Document<'_>) -> Result<(), ScenarioError> {
    let mut found = Vec::new();
    look(document.root(), "", &mut found);
    // A file may be wrong in a hundred thousand places: only one is looked at closely.
    if let Some(first) = found.into_iter().min_by_key(|wrong| wrong.at.start) {
        return Err(match first.value {
            Some((value, must)) => document.wrong(&first.path, value, must),
            None => unknown(document, first.path, first.at),
        });
    }
    for table in TABLES {
        let found = tables(document, table.name);
        let mut required = table.keys.iter().filter(|key| key.preset == Preset::Required);
        if found.is_empty()
            && table.is_required
            && let Some(key) = required.next()
        {
            return Err(missing_from(document, table, key, None));
        }
        for (at, found) in found {
            let mut required = table.keys.iter().filter(|key| key.preset == Preset::Required);
            if let Some(key) = required.find(|key| !found.contains_key(key.name)) {
                return Err(missing_from(document, table, key, Some(at)));
            }
        }
    }
    Ok(())
}

/// The tables of a name, with their places.
fn tables<'d, 'a>(document: &'d Document<'a>, name: &str) -> Vec<(Range<usize>, &'d DeTable<'a>)> {
    let table = |value: &'d Value<'a>| value.get_ref().as_table().map(|table| (value.span(), table));
    match document.get(name) {
        _ if name.is_empty() => vec![(0..0, document.root())],
        None => Vec::new(),
        Some(value) => match value.get_ref() {
            DeValue::Array(list) => list.iter().filter_map(table).collect(),
            _ => table(value).into_iter().collect(),
        },
    }
}

/// An error about a key that must be there because another one is not.
pub(super) fn missing(document: &Document<'_>, path: &str) -> ScenarioError {
    match find(path) {
        Some((table, key)) => missing_from(document, table, key, document.span_of(path)),
        None => unknown(document, path.to_owned(), 0..0),
    }
}

/// An error about a key that must be there.
fn missing_from(
    document: &Document<'_>,
    table: &Table,
    key: &Key,
    at: Option<Range<usize>>,
) -> ScenarioError {
    let problem = Problem::Missing { key: table.path(key), meaning: key.meaning.to_owned() };
    ScenarioError::from(problem).at(document.text(), at)
}

/// An error about a key that nothing is known by.
fn unknown(document: &Document<'_>, path: String, at: Range<usize>) -> ScenarioError {
    let problem = Problem::Unknown { instead: nearest(&path), key: path };
    ScenarioError::from(problem).at(document.text(), Some(at))
}

/// Refuses a key, or a table, that nothing is known by.
pub(super) fn check_known(
    document: &Document<'_>,
    path: String,
    at: Range<usize>,
) -> Result<(), ScenarioError> {
    let is_setting = |name: &str| settings().contains_key(name);
    let is_known =
        is_table(&path) || find(&path).is_some() || path.strip_prefix("settings.").is_some_and(is_setting);
    if is_known { Ok(()) } else { Err(unknown(document, path, at)) }
}

/// Something wrong in a document.
struct Wrong<'d, 'a> {
    at: Range<usize>,
    path: String,
    /// The value, and what it must be; none where the key is unknown.
    value: Option<(&'d Value<'a>, String)>,
}

/// Notes all that is wrong in a table.
fn look<'d, 'a>(table: &'d DeTable<'a>, path: &str, found: &mut Vec<Wrong<'d, 'a>>) {
    for (name, value) in table {
        let inner = join(path, name.get_ref());
        let must = if let Some((_, key)) = find(&inner) {
            (!key.kind.takes(value.get_ref())).then(|| key.kind.text())
        } else if path == SETTINGS.name && settings().contains_key(&**name.get_ref()) {
            whole(value.get_ref()).is_none().then(|| "a whole number".to_owned())
        } else if is_table(&inner) {
            match value.get_ref() {
                DeValue::Table(table) if !is_list(&inner) => {
                    look(table, &inner, found);
                    None
                }
                DeValue::Array(list)
                    if is_list(&inner) && list.iter().all(|value| value.get_ref().is_table()) =>
                {
                    list.iter().filter_map(|value| value.get_ref().as_table()).for_each(|table| {
                        look(table, &inner, found);
                    });
                    None
                }
                _ if is_list(&inner) => Some("a list of tables".to_owned()),
                _ => Some("a table".to_owned()),
            }
        } else {
            found.push(Wrong { at: name.span(), path: inner, value: None });
            continue;
        };
        if let Some(must) = must {
            found.push(Wrong { at: value.span(), path: inner, value: Some((value, must)) });
        }
    }
}

/// All names, of tables and of keys.
fn names() -> Vec<String> {
    let of_settings = settings().into_iter().map(|(name, _)| join(SETTINGS.name, &name));
    let tables = TABLES.iter().filter(|table| !table.name.is_empty()).map(|table| table.name.to_owned());
    let keys = TABLES.iter().flat_map(|table| table.keys.iter().map(|key| table.path(key)));
    keys.chain(tables).chain(of_settings).collect()
}

/// The name that is most like this one, if one is.
pub fn nearest(path: &str) -> Option<String> {
    const MAX: usize = 64;
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let path: String = path.chars().take(MAX).collect();
    let distance_to = |name: &String| {
        // The right key in the wrong table is as near as one wrong letter.
        if last(name) == last(&path) { 1 } else { distance(name, &path) }
    };
    // Of several, the one that is most like it as a whole.
    let (distance, _, name) =
        names().into_iter().map(|name| (distance_to(&name), distance(&name, &path), name)).min()?;
    (distance <= (path.chars().count() / 3).min(3)).then_some(name)
}

/// Letters to insert, remove or change to make one word of another (Levenshtein, 1966).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], above + 1);
        for (place, another) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *another);
            diagonal = row[place + 1];
            row[place + 1] = changed.min(diagonal + 1).min(row[place] + 1);
        }
    }
    row[other.len()]
}

/// What a key says, what it may be and what holds without it; of a table, all its keys; of nothing, all tables.
pub fn explain(path: &str) -> Option<String> {
    if path.is_empty() {
        let all: Vec<String> = TABLES.iter().map(explain_table).collect();
        return Some(all.join("\n"));
    }
    if let Some((_, key)) = find(path) {
        return Some(explain_key(path, key));
    }
    if let Some(name) = path.strip_prefix("settings.") {
        return explain_setting(name);
    }
    let of = |name: &str| name == path || name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    let found: Vec<String> = TABLES.iter().filter(|table| of(table.name)).map(explain_table).collect();
    (!found.is_empty()).then(|| found.join("\n"))
}

fn explain_key(path: &str, key: &Key) -> String {
    let unit = if key.unit.is_empty() { String::new() } else { format!(" ({})", key.unit) };
    let preset = match key.preset {
        Preset::Required => "It must be given.".to_owned(),
        Preset::Is(value) => format!("Default: {value}."),
        Preset::Nothing(meaning) => format!("Without it: {meaning}."),
    };
    format!("{path}\n  {}.\n  It is {}{unit}. {preset}\n", capital(key.meaning), key.kind.text())
}

fn explain_table(table: &Table) -> String {
    let head = match table.name {
        "" => "(root)".to_owned(),
        name if table.is_list => format!("[[{name}]]"),
        name => format!("[{name}]"),
    };
    let mut text = format!("{head}  {}\n", table.about);
    for key in table.keys {
        let path = table.path(key);
        let _ = writeln!(text, "  {path:<26} {}", key.meaning);
    }
    if table.name == SETTINGS.name {
        for (name, value) in settings() {
            let _ = writeln!(text, "  {:<34} {value}", join(SETTINGS.name, &name));
        }
    }
    text
}

/// A constant of the core: what its comment says, and its value.
fn explain_setting(name: &str) -> Option<String> {
    let value = settings().remove(name)?;
    let field = format!("    pub {name}: ");
    let lines: Vec<&str> = SETTINGS_SOURCE.lines().collect();
    let at = lines.iter().position(|line| line.starts_with(&field))?;
    let comment = lines[..at].iter().rev().map_while(|line| line.trim().strip_prefix("/// "));
    let mut comment: Vec<&str> = comment.collect();
    comment.reverse();
    let text = comment.join("\n  ").replace("[`Self::", "`").replace("`]", "`");
    Some(format!("settings.{name}\n  {text}\n  It is a whole number. Default: {value}.\n"))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// The table of all keys as the documentation has it, in Markdown.
#[cfg(test)]
pub(super) fn markdown() -> String {
    let mut text =
        "| key | meaning | unit | what it may be | default |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for table in TABLES {
        if table.keys.is_empty() {
            let _ = writeln!(text, "| `{}.*` | {} | | | |", table.name, table.about);
        }
        for key in table.keys {
            let preset = match key.preset {
                Preset::Required => "required".to_owned(),
                Preset::Is(value) => format!("`{value}`"),
                Preset::Nothing(meaning) => meaning.to_owned(),
            };
            let (path, kind) = (table.path(key), key.kind.text());
            let _ = writeln!(text, "| `{path}` | {} | {} | {kind} | {preset} |", key.meaning, key.unit);
        }
    }
    text
}
