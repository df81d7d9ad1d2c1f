//! How the content is distributed: as Starling does it, or as others do. What each of them is, [`crate::sim`]'s room `strategy`
//! says.

use super::fleet::RATE;
use super::keys::{Key, Kind, Preset, Table};
use serde::{Deserialize, Serialize};

/// Bytes that move as a whole, at least and at most.
const PIECE: Kind = Kind::Whole(1 << 14, 1 << 28);
/// Streams, connections and the like of one machine.
const FEW: Kind = Kind::Whole(1, 64);
/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;
/// What holds without a rate of the servers.
const AS_A_NODE: Preset = Preset::Nothing("as `fleet.up_mbit_s`");
/// The words of [`Cache`].
const CACHE: Kind = Kind::Word(&["cold", "warm"]);
/// The words of [`Name`].
const NAMES: &[&str] = &["starling", "origin", "proxies", "dragonfly", "kraken", "spegel", "faasnet"];

/// A key with few of something.
const fn few(name: &'static str, preset: &'static str, meaning: &'static str) -> Key {
    Key { name, kind: FEW, unit: "", preset: Preset::Is(preset), meaning }
}

/// The key of the pieces.
const fn pieces(preset: &'static str, meaning: &'static str) -> Key {
    Key { name: "piece_bytes", kind: PIECE, unit: "bytes", preset: Preset::Is(preset), meaning }
}

/// The key of the servers' links.
const fn links(meaning: &'static str) -> Key {
    Key { name: "mbit_s", kind: RATE, unit: "Mbit/s", preset: AS_A_NODE, meaning }
}

/// The key of what servers have.
const fn cache(preset: &'static str, meaning: &'static str) -> Key {
    Key { name: "cache", kind: CACHE, unit: "", preset: Preset::Is(preset), meaning }
}

/// The keys of strategies that move layers.
const LAYERS: Key = Key {
    name: "layers",
    kind: Kind::Whole(1, 1_000),
    unit: "",
    preset: Preset::Is("8"),
    meaning: "layers of the content, all as long",
};
const LAYERS_AT_ONCE: Key = few("streams", "3", "layers that a node fetches at once");

/// Who decides, and how each of those but Starling is set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Strategy {
    /// Who decides.
    pub name: Name,
    /// Who is silent for so many milliseconds is given up; of all strategies but Starling, which has settings of its own.
    pub timeout_ms: u64,
    /// Every node to one origin.
    pub origin: Origin,
    /// Proxies in front of the strata.
    pub proxies: Proxies,
    /// Scheduler and seed peers.
    pub dragonfly: Dragonfly,
    /// A swarm with a tracker.
    pub kraken: Kraken,
    /// Whole layers, found by a DHT.
    pub spegel: Spegel,
    /// A tree.
    pub faasnet: Faasnet,
}

impl Default for Strategy {
    fn default() -> Self {
        Self {
            name: Name::default(),
            timeout_ms: 10_000,
            origin: Origin::default(),
            proxies: Proxies::default(),
            dragonfly: Dragonfly::default(),
            kraken: Kraken::default(),
            spegel: Spegel::default(),
            faasnet: Faasnet::default(),
        }
    }
}

/// A strategy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Name {
    /// The nodes' own decisions.
    #[default]
    Starling,
    /// Every node fetches all from the stratum.
    Origin,
    /// Every node fetches all from a proxy of its cell.
    Proxies,
    /// Nodes fetch pieces from parents that a scheduler names.
    Dragonfly,
    /// Nodes exchange pieces with neighbours that a tracker named.
    Kraken,
    /// Nodes fetch whole layers from one who announced them.
    Spegel,
    /// Nodes form a tree.
    Faasnet,
}

impl Name {
    /// As the scenario has it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Starling => "starling",
            Self::Origin => "origin",
            Self::Proxies => "proxies",
            Self::Dragonfly => "dragonfly",
            Self::Kraken => "kraken",
            Self::Spegel => "spegel",
            Self::Faasnet => "faasnet",
        }
    }
}

/// What servers have when the run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Nothing.
    Cold,
    /// The whole content.
    Warm,
}

/// Of `origin`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Origin {
    /// Layers of the content.
    pub layers: u32,
    /// Layers that a node fetches at once.
    pub streams: u32,
}

impl Default for Origin {
    fn default() -> Self {
        Self { layers: 8, streams: 3 }
    }
}

/// Of `proxies`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxies {
    /// Proxies of a cell.
    pub per_cell: u32,
    /// Their links.
    pub mbit_s: Option<f64>,
    /// What they have in the beginning.
    pub cache: Cache,
    /// Requests of a node at once.
    pub streams: u32,
    /// Answers of a proxy at once.
    pub connections: u32,
}

impl Default for Proxies {
    fn default() -> Self {
        Self { per_cell: 1, mbit_s: None, cache: Cache::Cold, streams: 4, connections: 256 }
    }
}

/// Of `dragonfly`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dragonfly {
    /// A piece.
    pub piece_bytes: u32,
    /// Seed peers that fetch the content from the stratum.
    pub seed_peers: u32,
    /// Their links.
    pub mbit_s: Option<f64>,
    /// What they have in the beginning.
    pub cache: Cache,
    /// Parents of a node.
    pub parents: u32,
    /// Pieces that a node fetches at once.
    pub streams: u32,
    /// Children of a node.
    pub uploads: u32,
    /// Children of a seed peer.
    pub seed_uploads: u32,
}

impl Default for Dragonfly {
    fn default() -> Self {
        Self {
            piece_bytes: 4 << 20,
            seed_peers: 1,
            mbit_s: None,
            cache: Cache::Cold,
            parents: 4,
            streams: 10,
            uploads: 50,
            seed_uploads: 300,
        }
    }
}

/// Of `kraken`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kraken {
    /// A piece.
    pub piece_bytes: u32,
    /// Origins that hold the content.
    pub origins: u32,
    /// Their links.
    pub mbit_s: Option<f64>,
    /// What they have in the beginning.
    pub cache: Cache,
    /// Neighbours of a node or an origin.
    pub connections: u32,
    /// Pieces that are asked of a neighbour at once.
    pub pipeline: u32,
    /// From one announcement to the tracker to the next.
    pub announce_ms: u64,
}

impl Default for Kraken {
    fn default() -> Self {
        Self {
            piece_bytes: 4 << 20,
            origins: 3,
            mbit_s: None,
            cache: Cache::Warm,
            connections: 10,
            pipeline: 3,
            announce_ms: 3_000,
        }
    }
}

/// Of `spegel`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spegel {
    /// Layers of the content.
    pub layers: u32,
    /// Layers that a node fetches at once.
    pub streams: u32,
    /// From the question who has a layer to the answer.
    pub resolve_ms: u64,
    /// From the announcement of a layer until it is known.
    pub announce_ms: u64,
    /// Providers that are tried before the stratum.
    pub tries: u32,
}

impl Default for Spegel {
    fn default() -> Self {
        Self { layers: 8, streams: 3, resolve_ms: 20, announce_ms: 200, tries: 3 }
    }
}

/// Of `faasnet`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faasnet {
    /// A block.
    pub piece_bytes: u32,
    /// Children of a node.
    pub arity: u32,
}

impl Default for Faasnet {
    fn default() -> Self {
        Self { piece_bytes: 512 << 10, arity: 2 }
    }
}

/// The same scenario under several strategies.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// Which.
    pub strategies: Vec<Name>,
}

pub(super) const TABLE: Table = Table {
    name: "strategy",
    about: "who decides from whom a node fetches what: Starling's own decisions, or a model of another system. See \"Strategies\"",
    is_required: false,
    is_list: false,
    keys: &[
        Key {
            name: "name",
            kind: Kind::Word(NAMES),
            unit: "",
            preset: Preset::Is("starling"),
            meaning: "the strategy; all but `starling` are modelled without liars and readers",
        },
        Key {
            name: "timeout_ms",
            kind: Kind::Whole(1, HOUR_MS),
            unit: "ms",
            preset: Preset::Is("10000"),
            meaning: "who is silent for so long is given up; when all notice a death, that counts earlier. Starling has settings of its \
                      own for this",
        },
    ],
};

pub(super) const ORIGIN: Table = Table {
    name: "strategy.origin",
    about: "every node fetches all layers from the stratum, as `docker pull` does",
    is_required: false,
    is_list: false,
    keys: &[LAYERS, LAYERS_AT_ONCE],
};

pub(super) const PROXIES: Table = Table {
    name: "strategy.proxies",
    about: "every node fetches each chunk from a proxy of its cell, which fetches it once from the stratum, as with CernVM-FS and Squid",
    is_required: false,
    is_list: false,
    keys: &[
        few(
            "per_cell",
            "1",
            "proxies of a cell, each with its own cache; the seed draws which of them a node uses",
        ),
        links("a proxy's uplink, and its downlink"),
        cache("cold", "what a proxy has in the beginning: nothing, or everything"),
        few("streams", "4", "chunks that a node asks for at once"),
        Key {
            name: "connections",
            kind: Kind::Whole(1, 65_536),
            unit: "",
            preset: Preset::Is("256"),
            meaning: "chunks that a proxy sends at once; more requests wait in their order",
        },
    ],
};

pub(super) const DRAGONFLY: Table = Table {
    name: "strategy.dragonfly",
    about: "a scheduler names parents to each node, which fetches pieces from them; seed peers fetch from the stratum",
    is_required: false,
    is_list: false,
    keys: &[
        pieces("4194304", "a piece"),
        few("seed_peers", "1", "seed peers that fetch the content, spread over the cells"),
        links("a seed peer's uplink, and its downlink"),
        cache("cold", "what a seed peer has in the beginning: nothing, or everything (preheated)"),
        few("parents", "4", "parents of a node at most"),
        few("streams", "10", "pieces that a node or seed peer fetches at once"),
        Key {
            name: "uploads",
            kind: Kind::Whole(1, 2_000),
            unit: "",
            preset: Preset::Is("50"),
            meaning: "children of a node at most",
        },
        Key {
            name: "seed_uploads",
            kind: Kind::Whole(1, 2_000),
            unit: "",
            preset: Preset::Is("300"),
            meaning: "children of a seed peer at most",
        },
    ],
};

pub(super) const KRAKEN: Table = Table {
    name: "strategy.kraken",
    about: "nodes and a few origins exchange pieces with neighbours that a tracker names, the rarest first",
    is_required: false,
    is_list: false,
    keys: &[
        pieces("4194304", "a piece"),
        few("origins", "3", "origins that hold the content, spread over the cells"),
        links("an origin's uplink, and its downlink"),
        cache(
            "warm",
            "what an origin has in the beginning: nothing, or everything, as after a push to Kraken",
        ),
        few("connections", "10", "neighbours of a node or origin at most"),
        few("pipeline", "3", "pieces that are asked of one neighbour at once"),
        Key {
            name: "announce_ms",
            kind: Kind::Whole(10, HOUR_MS),
            unit: "ms",
            preset: Preset::Is("3000"),
            meaning: "from one announcement to the tracker to the next; each brings up to 50 more neighbours to choose from",
        },
    ],
};

pub(super) const SPEGEL: Table = Table {
    name: "strategy.spegel",
    about: "a node that has a whole layer announces it in a DHT; others fetch it from one of those, or else from the stratum",
    is_required: false,
    is_list: false,
    keys: &[
        LAYERS,
        LAYERS_AT_ONCE,
        Key {
            name: "resolve_ms",
            kind: Kind::Whole(0, 60_000),
            unit: "ms",
            preset: Preset::Is("20"),
            meaning: "from the question who has a layer to the answer",
        },
        Key {
            name: "announce_ms",
            kind: Kind::Whole(0, 60_000),
            unit: "ms",
            preset: Preset::Is("200"),
            meaning: "from the announcement of a layer until it is known",
        },
        few("tries", "3", "those who have a layer that are tried before the stratum"),
    ],
};

pub(super) const FAASNET: Table = Table {
    name: "strategy.faasnet",
    about: "nodes form a tree, through which the content streams block by block; the root fetches from the stratum",
    is_required: false,
    is_list: false,
    keys: &[pieces("524288", "a block"), few("arity", "2", "children of a node at most")],
};

pub(super) const COMPARE: Table = Table {
    name: "compare",
    about: "the same scenario under several strategies, one after the other, with all seeds and all that is swept",
    is_required: false,
    is_list: false,
    keys: &[Key {
        name: "strategies",
        kind: Kind::Words(NAMES),
        unit: "",
        preset: Preset::Required,
        meaning: "the strategies, each once; `strategy.name` counts for nothing then",
    }],
};
