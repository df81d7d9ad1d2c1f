//! What goes wrong.

use super::keys::{Key, Kind, Preset, Table};
use super::{Scenario, ScenarioError, check};
use serde::{Deserialize, Serialize};

/// Milliseconds of a day.
const DAY_MS: Kind = Kind::Whole(0, 86_400_000);
/// Some of a hundred nodes, at least one.
const SHARE: Kind = Kind::Whole(1, 100);

/// Nodes that die, these at once, and are replaced by empty ones of the same number.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deaths {
    /// How many of 100 nodes, drawn by the seed; at least one.
    pub per_cent: u32,
    /// When, in milliseconds.
    pub at_ms: u64,
    /// When the others notice, in milliseconds after that. Until then who asks them hears nothing.
    #[serde(default = "default_noticed_after_ms")]
    pub noticed_after_ms: u64,
    /// Over how long a time after that they do, each by itself, in milliseconds. 0: all at once.
    #[serde(default)]
    pub noticed_within_ms: u64,
    /// When the replacements begin, in milliseconds after the deaths.
    pub replaced_after_ms: u64,
}

/// How long membership takes with the node's own constants (`src/mesh/swim/mod.rs`): 1.6 s until somebody probes the dead, 1 s until it is
/// suspected, 2.5 s in which it may speak up, 1 s until all know.
fn default_noticed_after_ms() -> u64 {
    6_000
}

pub(super) const DEATHS: Table = Table {
    name: "deaths",
    about: "nodes that die, these at once, and are replaced by empty ones of the same number; `[[deaths]]`, several times, for several \
            times, at most 64. Each draws for itself; who is dead already does not die again",
    is_required: false,
    is_list: true,
    keys: &[
        Key {
            name: "per_cent",
            kind: SHARE,
            unit: "of 100 nodes",
            preset: Preset::Required,
            meaning: "how many die, drawn by the seed; at least one",
        },
        Key {
            name: "at_ms",
            kind: DAY_MS,
            unit: "ms",
            preset: Preset::Required,
            meaning: "when, from the beginning of the run",
        },
        Key {
            name: "noticed_after_ms",
            kind: DAY_MS,
            unit: "ms",
            preset: Preset::Is("6000"),
            meaning: "how long after their death the others notice at the earliest; until then who asks them hears nothing. As long as the \
                      node's own membership takes",
        },
        Key {
            name: "noticed_within_ms",
            kind: DAY_MS,
            unit: "ms",
            preset: Preset::Is("0"),
            meaning: "each notices by itself: members of the cell within so long after that, nearly together, others after it within twice as \
                      long; with 0 all notice at once",
        },
        Key {
            name: "replaced_after_ms",
            kind: DAY_MS,
            unit: "ms",
            preset: Preset::Required,
            meaning: "how long after the deaths the replacements are there; longer than `deaths.noticed_after_ms`, unless each notices by itself",
        },
    ],
};

/// Nodes that leave one by one, as those of any fleet do, each replaced by an empty one of the same number.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaving {
    /// How long a node stays on average, in seconds.
    pub lifetime_s: u32,
    /// When nodes begin to leave, in milliseconds.
    #[serde(default)]
    pub at_ms: u64,
    /// How long they do, in milliseconds after that.
    pub for_ms: u64,
    /// When the others notice, in milliseconds after a node left.
    #[serde(default = "default_noticed_after_ms")]
    pub noticed_after_ms: u64,
    /// Over how long a time after that they do, each by itself, in milliseconds. 0: all at once.
    #[serde(default)]
    pub noticed_within_ms: u64,
    /// When another takes its place, in milliseconds after it left.
    pub replaced_after_ms: u64,
}

pub(super) const CHURN: Table = Table {
    name: "churn",
    about: "nodes that leave one by one, each at moments of its own stream of randomness, and are replaced by empty ones of the same \
            number: of N nodes with a mean lifetime of L seconds N / L leave in a second. At most 1 000 000 departures are to be expected",
    is_required: false,
    is_list: false,
    keys: &[
        Key {
            name: "lifetime_s",
            kind: Kind::Whole(1, 4_000_000_000),
            unit: "s",
            preset: Preset::Required,
            meaning: "how long a node stays on average; lifetimes are distributed exponentially",
        },
        Key {
            name: "at_ms",
            kind: DAY_MS,
            unit: "ms",
            preset: Preset::Is("0"),
            meaning: "when nodes begin to leave, from the beginning of the run",
        },
        Key {
            name: "for_ms",
            kind: Kind::Whole(1, 86_400_000),
            unit: "ms",
            preset: Preset::Required,
            meaning: "how long they do; who leaves shortly before the end of the run may not get everything again",
        },
        Key {
            name: "noticed_after_ms",
            kind: DAY_MS,
            unit: "ms",
            preset: Preset::Is("6000"),
            meaning: "how long after it left the others notice at the earliest; until then who asks it hears nothing. As long as the node's \
                      own membership takes",
        },
        Key {
            name: "noticed_within_ms",
            kind: DAY_MS,
            unit: "ms",
            preset: Preset::Is("0"),
            meaning: "each notices by itself, as with `deaths.noticed_within_ms`",
        },
        Key {
            name: "replaced_after_ms",
            kind: DAY_MS,
            unit: "ms",
            preset: Preset::Required,
            meaning: "how long after it left another is in its place; longer than `churn.noticed_after_ms`, unless each notices by itself",
        },
    ],
};

/// Departures of a run that may be expected at most.
const DEPARTURES_MAX: u64 = 1_000_000;
/// Times at which nodes die at most.
const DEATHS_MAX: usize = 64;

/// Checks when nodes die and leave.
pub(super) fn check_deaths(scenario: &Scenario) -> Result<(), ScenarioError> {
    let all = &scenario.deaths;
    check(all.len() <= DEATHS_MAX, "deaths", format!("{} times", all.len()), "at most 64 times")?;
    for (number, deaths) in all.iter().enumerate() {
        let key = format!("deaths[{number}].noticed_after_ms");
        let must = format!("less than deaths.replaced_after_ms, which is {}", deaths.replaced_after_ms);
        let is_less = deaths.noticed_within_ms > 0 || deaths.noticed_after_ms < deaths.replaced_after_ms;
        check(is_less, &key, deaths.noticed_after_ms, must)?;
    }
    let Some(churn) = &scenario.churn else { return Ok(()) };
    let must = format!("less than churn.replaced_after_ms, which is {}", churn.replaced_after_ms);
    let noticed = churn.noticed_after_ms;
    let is_less = churn.noticed_within_ms > 0 || noticed < churn.replaced_after_ms;
    check(is_less, "churn.noticed_after_ms", noticed, must)?;
    let departures = u64::from(scenario.fleet.nodes) * churn.for_ms / (1_000 * u64::from(churn.lifetime_s));
    let must =
        format!("so long that at most {DEPARTURES_MAX} departures are to be expected, not {departures}");
    check(departures <= DEPARTURES_MAX, "churn.lifetime_s", churn.lifetime_s, must)
}

/// Nodes that the stratum does not answer for a while: what they ask for meanwhile begins afterwards, unless it is called off.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stalls {
    /// How many of 100 nodes, drawn by the seed; at least one.
    pub per_cent: u32,
    /// When it begins, in milliseconds.
    pub at_ms: u64,
    /// How long it lasts, in milliseconds.
    pub for_ms: u64,
}

pub(super) const STALLS: Table = Table {
    name: "stalls",
    about: "nodes that the stratum does not answer for a while; what they ask for meanwhile begins afterwards, unless it is called off",
    is_required: false,
    is_list: false,
    keys: &[
        Key {
            name: "per_cent",
            kind: SHARE,
            unit: "of 100 nodes",
            preset: Preset::Required,
            meaning: "how many it does not answer, drawn by the seed; at least one",
        },
        Key {
            name: "at_ms",
            kind: DAY_MS,
            unit: "ms",
            preset: Preset::Required,
            meaning: "when it begins, from the beginning of the run",
        },
        Key {
            name: "for_ms",
            kind: DAY_MS,
            unit: "ms",
            preset: Preset::Required,
            meaning: "how long it lasts",
        },
    ],
};

/// Nodes that lie to whoever asks them, and are homes like all others. They want the content like all others, too; figures
/// are of the honest nodes alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Liars {
    /// How many of 100 nodes, drawn by the seed; at least one.
    pub per_cent: u32,
    /// What they do: those drawn take the kinds in turn.
    pub how: Vec<Lie>,
}

/// How a node lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lie {
    /// It sends wrong bytes.
    Corrupt,
    /// It says `Wait`, again and again.
    Stall,
    /// It says nothing.
    Silent,
    /// It says `Busy` and names some who asked it.
    Busy,
    /// It says `Missing` and names some who asked it.
    Missing,
    /// It says `Busy` or `Missing`.
    #[serde(rename = "lie")]
    Evade,
}

pub(super) const LIARS: Table = Table {
    name: "liars",
    about: "nodes that lie to whoever asks them, and are homes and want the content like all others. Counts and times are of the \
            honest nodes; the bound is that of a fleet without liars",
    is_required: false,
    is_list: false,
    keys: &[
        Key {
            name: "per_cent",
            kind: Kind::Whole(1, 90),
            unit: "of 100 nodes",
            preset: Preset::Required,
            meaning: "how many lie, drawn by the seed; at least one",
        },
        Key {
            name: "how",
            kind: Kind::Words(&["corrupt", "stall", "silent", "busy", "missing", "lie"]),
            unit: "",
            preset: Preset::Required,
            meaning: "how they lie, those drawn in turn: wrong bytes, `Wait` for ever, silence, false `Busy`, false `Missing`, either of the two",
        },
    ],
};
