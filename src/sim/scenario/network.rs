//! What lies between the nodes.

use super::keys::{Key, Kind, Preset, Table};
use super::one_or_many;
use crate::sim::network::{Change, LinkRates, Model, RegionLatency};
use serde::{Deserialize, Serialize};

/// Microseconds of a minute.
const MINUTE_US: u64 = 60_000_000;
/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;
/// Milliseconds of a minute.
const MINUTE_MS: u64 = 60_000;

/// Links and delays.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// How transfers share links.
    #[serde(default)]
    pub model: Model,
    /// Links that nodes share.
    #[serde(default)]
    pub links: LinkRates,
    /// Links that become slower, faster or are cut for a while.
    #[serde(default, deserialize_with = "one_or_many")]
    pub change: Vec<Change>,
    /// How many of 1 000 messages between nodes are lost, and sent again after a while.
    #[serde(default)]
    pub loss_per_mille: u32,
    /// One way between two nodes of a region, and to the stratum, in microseconds.
    pub latency_us: u64,
    /// One way between two regions, in microseconds.
    #[serde(default = "default_region_latency_us")]
    pub region_latency_us: RegionLatency,
    /// What each request of a look-up in the DHT costs beside its ways, in microseconds.
    #[serde(default = "default_lookup_us")]
    pub lookup_us: u64,
    /// Milliseconds that a message waits at either end's link when that is busy.
    #[serde(default)]
    pub queue_ms: u64,
    /// What links carry beyond the content, in thousandths of it: headers, and what is sent twice.
    #[serde(default)]
    pub header_per_mille: u32,
    /// What links carry beyond the content, in bytes for each chunk: the ask, its answers and acknowledgements.
    #[serde(default)]
    pub request_bytes: u32,
    /// What links carry beyond the content, in bytes for the first chunk that one node sends to another: connections, certificates, who
    /// is there.
    #[serde(default)]
    pub connect_bytes: u32,
    /// What the handshake takes before the first ask from one node to another, beside its ways, in microseconds. 0: it takes no time.
    #[serde(default)]
    pub connect_us: u64,
    /// From when somebody may send a chunk until its first byte leaves, in microseconds.
    #[serde(default)]
    pub first_byte_us: u64,
    /// What a node's connections hold of its uploads, in milliseconds of its uplink: an upload counts as sent when no more is left.
    #[serde(default)]
    pub send_buffer_ms: u64,
    /// What each node sends its cell, and receives from it, beside all transfers, in bytes a second.
    #[serde(default)]
    pub gossip_bytes_per_s: u64,
    /// The same with other cells, if there are any.
    #[serde(default)]
    pub gossip_out_bytes_per_s: u64,
}

fn default_region_latency_us() -> RegionLatency {
    RegionLatency::Same(20_000)
}

/// Measured with 60 nodes on a busy machine: 34 ms of processors for a look-up of 18 requests (`docs/mesh-protocol.md`).
fn default_lookup_us() -> u64 {
    2_000
}

pub(super) const TABLE: Table = Table {
    name: "network",
    about: "how transfers share links, delays and losses",
    is_required: true,
    is_list: false,
    keys: &[
        Key {
            name: "model",
            kind: Kind::Word(&["fluid", "exact", "fifo"]),
            unit: "",
            preset: Preset::Is("fluid"),
            meaning: "how transfers share links: see above; `exact` for 10 000 nodes at most",
        },
        Key {
            name: "loss_per_mille",
            kind: Kind::Whole(0, 500),
            unit: "of 1 000 messages",
            preset: Preset::Is("0"),
            meaning: "messages between nodes that are lost, and sent again after a while",
        },
        Key {
            name: "latency_us",
            kind: Kind::Whole(0, MINUTE_US),
            unit: "µs",
            preset: Preset::Required,
            meaning: "one way between two nodes of a region, and to the stratum",
        },
        Key {
            name: "region_latency_us",
            kind: Kind::Latencies(MINUTE_US),
            unit: "µs",
            preset: Preset::Is("20000"),
            meaning: "one way between two regions; in a matrix from the region of the row to that of the column, and 0 where they are the same",
        },
        Key {
            name: "lookup_us",
            kind: Kind::Whole(0, MINUTE_US),
            unit: "µs",
            preset: Preset::Is("2000"),
            meaning: "what each request of a look-up or an announcement in the DHT costs beside its ways: processors at both ends",
        },
        Key {
            name: "queue_ms",
            kind: Kind::Whole(0, MINUTE_MS),
            unit: "ms",
            preset: Preset::Is("0"),
            meaning: "a message waits as long at a busy link, but no longer than the link takes for what stands in front of it; of the links on its \
                      way, at the two where that is longest",
        },
        Key {
            name: "header_per_mille",
            kind: Kind::Whole(0, 1_000),
            unit: "of 1 000 bytes",
            preset: Preset::Is("0"),
            meaning: "what links carry beyond the content: headers, and what is sent twice",
        },
        Key {
            name: "request_bytes",
            kind: Kind::Whole(0, 1_000_000),
            unit: "bytes",
            preset: Preset::Is("0"),
            meaning: "what links carry beyond the content for each chunk: the ask, its answers and acknowledgements",
        },
        Key {
            name: "connect_bytes",
            kind: Kind::Whole(0, 10_000_000),
            unit: "bytes",
            preset: Preset::Is("0"),
            meaning: "what links carry beyond the content for the first chunk from one node to another: connections, certificates, who is there",
        },
        Key {
            name: "connect_us",
            kind: Kind::Whole(0, MINUTE_US),
            unit: "µs",
            preset: Preset::Is("0"),
            meaning: "the first ask from one node to another waits for a connection: a way there and back, and so long beside for processors; with \
                      0 there is one already",
        },
        Key {
            name: "first_byte_us",
            kind: Kind::Whole(0, MINUTE_US),
            unit: "µs",
            preset: Preset::Is("0"),
            meaning: "from when somebody may send a chunk until its first byte leaves: reading, processors, the sender's pace",
        },
        Key {
            name: "send_buffer_ms",
            kind: Kind::Whole(0, MINUTE_MS),
            unit: "ms",
            preset: Preset::Is("0"),
            meaning: "what the connections of a node hold of its uploads, as time of its uplink: for its decisions an upload has left when it is \
                      among these",
        },
        Key {
            name: "gossip_bytes_per_s",
            kind: Kind::Whole(0, 1_000_000_000),
            unit: "bytes a second",
            preset: Preset::Is("0"),
            meaning: "what each node sends and receives all the time beside transfers within its cell: who is there, the DHT; its links have so much \
                      less for these, and keep a tenth in any case",
        },
        Key {
            name: "gossip_out_bytes_per_s",
            kind: Kind::Whole(0, 1_000_000_000),
            unit: "bytes a second",
            preset: Preset::Is("0"),
            meaning: "as much beside that with other cells, if there are any: the links of cells have so much less for each member",
        },
    ],
};

/// Least and most of a link that many share, in Mbit/s.
const SHARED_RATE: Kind = Kind::Number(0.001, 1e9);

pub(super) const LINKS: Table = Table {
    name: "network.links",
    about: "links that nodes share: all racks have the same, as have all cells and all regions. What stays inside does not pass them; the \
            stratum lies outside of them all",
    is_required: false,
    is_list: false,
    keys: &[
        Key {
            name: "rack_up_mbit_s",
            kind: SHARED_RATE,
            unit: "Mbit/s",
            preset: Preset::Nothing("no limit"),
            meaning: "the link out of each rack",
        },
        Key {
            name: "rack_down_mbit_s",
            kind: SHARED_RATE,
            unit: "Mbit/s",
            preset: Preset::Nothing("no limit"),
            meaning: "the link into each rack",
        },
        Key {
            name: "cell_up_mbit_s",
            kind: SHARED_RATE,
            unit: "Mbit/s",
            preset: Preset::Nothing("no limit"),
            meaning: "the link out of each cell",
        },
        Key {
            name: "cell_down_mbit_s",
            kind: SHARED_RATE,
            unit: "Mbit/s",
            preset: Preset::Nothing("no limit"),
            meaning: "the link into each cell",
        },
        Key {
            name: "region_up_mbit_s",
            kind: SHARED_RATE,
            unit: "Mbit/s",
            preset: Preset::Nothing("no limit"),
            meaning: "the link out of each region",
        },
        Key {
            name: "region_down_mbit_s",
            kind: SHARED_RATE,
            unit: "Mbit/s",
            preset: Preset::Nothing("no limit"),
            meaning: "the link into each region",
        },
    ],
};

pub(super) const CHANGE: Table = Table {
    name: "network.change",
    about: "links that become slower or faster or are cut, and come back; at most 64 changes. Changes of the same link multiply",
    is_required: false,
    is_list: true,
    keys: &[
        Key {
            name: "at_ms",
            kind: Kind::Whole(0, DAY_MS),
            unit: "ms",
            preset: Preset::Required,
            meaning: "when it begins",
        },
        Key {
            name: "for_ms",
            kind: Kind::Whole(1, DAY_MS),
            unit: "ms",
            preset: Preset::Nothing("to the end"),
            meaning: "how long it lasts",
        },
        Key {
            name: "of",
            kind: Kind::Word(&["stratum", "nodes", "rack", "cell", "region"]),
            unit: "",
            preset: Preset::Required,
            meaning: "whose links: the uplink of the stratum, both of some nodes, both of a rack, a cell or a region",
        },
        Key {
            name: "number",
            kind: Kind::Whole(0, 10_000_000),
            unit: "",
            preset: Preset::Nothing("it is of no rack, cell or region"),
            meaning: "which rack, cell or region, counted from 0 through the whole fleet",
        },
        Key {
            name: "per_cent",
            kind: Kind::Whole(1, 100),
            unit: "of 100 nodes",
            preset: Preset::Nothing("it is not of nodes"),
            meaning: "how many nodes, drawn by the seed; at least one",
        },
        Key {
            name: "factor",
            kind: Kind::Number(0.0, 1_000.0),
            unit: "",
            preset: Preset::Required,
            meaning: "what their capacity is multiplied by; with 0 they are cut, and messages do not pass either",
        },
    ],
};
