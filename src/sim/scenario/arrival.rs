//! When nodes begin to want the content. Before that they are members like all others: homes that fetch for whoever has begun.

use super::keys::{Key, Kind, Preset, Table};
use serde::{Deserialize, Serialize};

/// Some first, then the others: in waves, or a bounded number at a time, or all at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrival {
    /// In which order.
    #[serde(default)]
    pub order: Order,
    /// A few that begin long before the others.
    pub canary: Option<Canary>,
    /// The others begin in waves.
    pub waves: Option<Waves>,
    /// Only so many of the others are under way at once.
    pub rolling: Option<Rolling>,
    /// Each when it hears of the new root.
    pub news: Option<News>,
}

/// The order in which nodes begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Drawn by the seed.
    #[default]
    Drawn,
    /// Cell after cell, region after region.
    ByCell,
}

/// The first nodes, by which one sees whether all is well.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// How many of 100 nodes; at least one.
    pub per_cent: u32,
    /// How long the others wait once the last of these has ended, in milliseconds.
    #[serde(default)]
    pub pause_ms: u64,
}

/// Parts of the fleet that begin one after the other, however far those before are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waves {
    /// How many of 100 nodes of the fleet begin together; at least one.
    pub per_cent: u32,
    /// Time from one wave to the next, in milliseconds.
    pub every_ms: u64,
}

/// A node begins when another has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rolling {
    /// Nodes that are under way at the same time at most.
    pub nodes: u32,
}

/// Nodes begin when they hear of the new root, which spreads among them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct News {
    /// How many hear of it first.
    pub nodes: u32,
    /// How long it takes at most to make a connection, beside the ways, in milliseconds.
    #[serde(default = "default_handshake_ms")]
    pub handshake_ms: u64,
}

fn default_handshake_ms() -> u64 {
    60
}

pub(super) const NEWS: Table = Table {
    name: "arrival.news",
    about: "each node begins when it hears of the new root, which they hand on to each other as their own decisions say (`mesh/proto`): \
            from time 0 on, from a few that hear of it first. Not together with canaries, waves or rolling",
    is_required: false,
    is_list: false,
    keys: &[
        Key {
            name: "nodes",
            kind: Kind::Whole(1, 10_000_000),
            unit: "",
            preset: Preset::Required,
            meaning: "how many hear of it first, drawn by the seed: those that whoever publishes tells, or that ask the stratum",
        },
        Key {
            name: "handshake_ms",
            kind: Kind::Whole(0, 60_000),
            unit: "ms",
            preset: Preset::Is("60"),
            meaning: "to hand it on takes three ways, for a connection is made first, and up to so long beside, drawn evenly: processors \
                      that make many at once, and verify",
        },
    ],
};

pub(super) const TABLE: Table = Table {
    name: "arrival",
    about: "when the nodes begin to want the content; without it all do at once. One that has not begun is a member like all others, \
            and fetches for whoever has",
    is_required: false,
    is_list: false,
    keys: &[Key {
        name: "order",
        kind: Kind::Word(&["drawn", "by-cell"]),
        unit: "",
        preset: Preset::Is("drawn"),
        meaning: "who begins first: drawn by the seed, or cell after cell and region after region",
    }],
};

pub(super) const CANARY: Table = Table {
    name: "arrival.canary",
    about: "a few nodes that begin first; all others wait until these have everything, or gave up",
    is_required: false,
    is_list: false,
    keys: &[
        Key {
            name: "per_cent",
            kind: Kind::Whole(1, 99),
            unit: "of 100 nodes",
            preset: Preset::Required,
            meaning: "how many begin first; at least one",
        },
        Key {
            name: "pause_ms",
            kind: Kind::Whole(0, 86_400_000),
            unit: "ms",
            preset: Preset::Is("0"),
            meaning: "how long the others wait once the last of these has ended",
        },
    ],
};

pub(super) const WAVES: Table = Table {
    name: "arrival.waves",
    about: "the nodes, or those after the canaries, begin in waves, however far those before are",
    is_required: false,
    is_list: false,
    keys: &[
        Key {
            name: "per_cent",
            kind: Kind::Whole(1, 100),
            unit: "of 100 nodes",
            preset: Preset::Required,
            meaning: "how many of the fleet begin together; at least one",
        },
        Key {
            name: "every_ms",
            kind: Kind::Whole(0, 86_400_000),
            unit: "ms",
            preset: Preset::Required,
            meaning: "time from one wave to the next; the last begins before `content.deadline_s`",
        },
    ],
};

pub(super) const ROLLING: Table = Table {
    name: "arrival.rolling",
    about: "of the nodes, or those after the canaries, only some are under way at once: one begins when another has everything, or \
            gave up. Not together with waves",
    is_required: false,
    is_list: false,
    keys: &[Key {
        name: "nodes",
        kind: Kind::Whole(1, 10_000_000),
        unit: "",
        preset: Preset::Required,
        meaning: "number of nodes that are under way at the same time at most",
    }],
};
