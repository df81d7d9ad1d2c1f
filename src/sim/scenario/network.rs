//! What lies between the nodes.

use super::keys::{Key, Kind, Preset, Table};
use serde::{Deserialize, Serialize};

/// Microseconds of a minute.
const MINUTE_US: u64 = 60_000_000;
/// Milliseconds of a minute.
const MINUTE_MS: u64 = 60_000;

/// Delays.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// One way between two nodes of a region, and to the stratum, in microseconds.
    pub latency_us: u64,
    /// One way between two regions, in microseconds.
    #[serde(default = "default_region_latency_us")]
    pub region_latency_us: u64,
    /// From a look-up in the DHT to its answer, in milliseconds.
    #[serde(default = "default_lookup_ms")]
    pub lookup_ms: u64,
    /// Milliseconds that a message waits at either end's link when that is busy.
    #[serde(default)]
    pub queue_ms: u64,
}

fn default_region_latency_us() -> u64 {
    20_000
}

fn default_lookup_ms() -> u64 {
    200
}

pub(super) const TABLE: Table = Table {
    name: "network",
    about: "delays",
    is_required: true,
    keys: &[
        Key {
            name: "latency_us",
            kind: Kind::Whole(0, MINUTE_US),
            unit: "µs",
            preset: Preset::Required,
            meaning: "one way between two nodes of a region, and to the stratum",
        },
        Key {
            name: "region_latency_us",
            kind: Kind::Whole(0, MINUTE_US),
            unit: "µs",
            preset: Preset::Is("20000"),
            meaning: "one way between two regions",
        },
        Key {
            name: "lookup_ms",
            kind: Kind::Whole(0, MINUTE_MS),
            unit: "ms",
            preset: Preset::Is("200"),
            meaning: "from a look-up in the DHT to its answer",
        },
        Key {
            name: "queue_ms",
            kind: Kind::Whole(0, MINUTE_MS),
            unit: "ms",
            preset: Preset::Is("0"),
            meaning: "a message waits as long at a busy link, at either end",
        },
    ],
};
