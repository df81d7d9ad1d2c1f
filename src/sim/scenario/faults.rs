//! What goes wrong.

use super::keys::{Key, Kind, Preset, Table};
use serde::{Deserialize, Serialize};

/// Milliseconds of a day.
const DAY_MS: Kind = Kind::Whole(0, 86_400_000);
/// Some of a hundred nodes, at least one.
const SHARE: Kind = Kind::Whole(1, 100);

/// Nodes that die, all at once, and are replaced by empty ones of the same number.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deaths {
    /// How many of 100 nodes, drawn by the seed; at least one.
    pub per_cent: u32,
    /// When, in milliseconds.
    pub at_ms: u64,
    /// When the others notice, in milliseconds after that. Until then who asks them hears nothing.
    pub noticed_after_ms: u64,
    /// When the replacements begin, in milliseconds after the deaths.
    pub replaced_after_ms: u64,
}

pub(super) const DEATHS: Table = Table {
    name: "deaths",
    about: "nodes that die, all at once, and are replaced by empty ones of the same number",
    is_required: false,
    is_list: false,
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
            preset: Preset::Required,
            meaning: "how long after their death the others notice; until then who asks them hears nothing",
        },
        Key {
            name: "replaced_after_ms",
            kind: DAY_MS,
            unit: "ms",
            preset: Preset::Required,
            meaning: "how long after the deaths the replacements are there; longer than `deaths.noticed_after_ms`",
        },
    ],
};

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
