//! What all want, and where it comes from.

use super::fleet::RATE;
use super::keys::{Key, Kind, Preset, Table};
use crate::model::Class;
use serde::{Deserialize, Serialize};

/// Bytes of a slice at most.
const SLICE_MAX: u64 = 1 << 29;

/// The content: slices, in chunks of one length.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// All bytes.
    pub bytes: u64,
    /// Bytes of a slice. The last one may be shorter.
    pub slice_bytes: u32,
    /// Bytes of a chunk, which moves as a whole and divides the slice; a slice is one chunk if it is not given.
    pub chunk_bytes: Option<u32>,
    /// How urgently all nodes want all of it, from when they begin.
    pub class: Class,
    /// On each node somebody also reads the content in its order, with this many chunks of read-ahead.
    pub read_ahead_chunks: Option<u32>,
    /// Milliseconds from when a node begins until it knows what it wants: mounting, root and catalogs.
    #[serde(default)]
    pub prepare_ms: u64,
    /// Seconds after which the nodes give up, and the run ends.
    pub deadline_s: u32,
}

pub(super) const TABLE: Table = Table {
    name: "content",
    about: "what all nodes want: slices of one length, in chunks of one length",
    is_required: true,
    is_list: false,
    keys: &[
        Key {
            name: "bytes",
            kind: Kind::Whole(1, i64::MAX as u64),
            unit: "bytes",
            preset: Preset::Required,
            meaning: "all of it",
        },
        Key {
            name: "slice_bytes",
            kind: Kind::Whole(1 << 10, SLICE_MAX),
            unit: "bytes",
            preset: Preset::Required,
            meaning: "a slice; the last one may be shorter",
        },
        Key {
            name: "chunk_bytes",
            kind: Kind::Whole(1 << 10, SLICE_MAX),
            unit: "bytes",
            preset: Preset::Nothing("a slice is one chunk"),
            meaning: "a chunk, which moves as a whole and divides the slice",
        },
        Key {
            name: "class",
            kind: Kind::Word(&["Read", "Prefetch", "Fill"]),
            unit: "",
            preset: Preset::Required,
            meaning: "how urgently all nodes want all of it: a reader waits, will soon wait, or nobody does",
        },
        Key {
            name: "read_ahead_chunks",
            kind: Kind::Whole(0, u32::MAX as u64),
            unit: "chunks",
            preset: Preset::Nothing("nobody reads"),
            meaning: "on each node somebody also reads the content in its order, with so much read-ahead",
        },
        Key {
            name: "prepare_ms",
            kind: Kind::Whole(0, 60_000),
            unit: "ms",
            preset: Preset::Is("0"),
            meaning: "from when a node begins until it knows what it wants: mounting, root and catalogs",
        },
        Key {
            name: "deadline_s",
            kind: Kind::Whole(1, 86_400),
            unit: "s",
            preset: Preset::Required,
            meaning: "when all nodes give up and the run ends, from its beginning",
        },
    ],
};

/// The stratum: one, with a bounded number of transfers at once; more requests wait in their order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stratum {
    /// Its uplink, in Mbit/s.
    pub up_mbit_s: f64,
    /// Transfers at once.
    pub connections: u32,
}

pub(super) const STRATUM: Table = Table {
    name: "stratum",
    about: "where the content comes from",
    is_required: true,
    is_list: false,
    keys: &[
        Key {
            name: "up_mbit_s",
            kind: RATE,
            unit: "Mbit/s",
            preset: Preset::Required,
            meaning: "the stratum's uplink",
        },
        Key {
            name: "connections",
            kind: Kind::Whole(1, 65_536),
            unit: "",
            preset: Preset::Required,
            meaning: "transfers that the stratum makes at once; more requests wait in their order",
        },
    ],
};
