//! Who takes part.

use super::keys::{Key, Kind, Preset, Table};
use super::one_or_many;
use crate::sim::network::NodeClass;
use serde::{Deserialize, Serialize};

/// Least and most of a link, in Mbit/s.
pub(super) const RATE: Kind = Kind::Number(0.001, 1e7);

/// The nodes: the same number in each cell, and all alike but for their classes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// Number of nodes.
    pub nodes: u32,
    /// Number of regions.
    pub regions: u32,
    /// Number of cells in each region.
    pub cells_per_region: u32,
    /// Number of racks in each cell.
    #[serde(default = "default_racks_per_cell")]
    pub racks_per_cell: u32,
    /// Uplink of a node of no class, in Mbit/s.
    pub up_mbit_s: f64,
    /// Downlink of a node of no class, in Mbit/s.
    pub down_mbit_s: f64,
    /// Nodes with links of their own speed, drawn by the seed from all of them.
    #[serde(default, deserialize_with = "one_or_many")]
    pub class: Vec<NodeClass>,
}

fn default_racks_per_cell() -> u32 {
    1
}

pub(super) const TABLE: Table = Table {
    name: "fleet",
    about: "the nodes: as many in each cell, and all alike but for their classes",
    is_required: true,
    is_list: false,
    keys: &[
        Key {
            name: "nodes",
            kind: Kind::Whole(1, 10_000_000),
            unit: "",
            preset: Preset::Required,
            meaning: "number of nodes",
        },
        Key {
            name: "regions",
            kind: Kind::Whole(1, 1_000),
            unit: "",
            preset: Preset::Required,
            meaning: "number of regions, among which they are divided evenly",
        },
        Key {
            name: "cells_per_region",
            kind: Kind::Whole(1, 10_000_000),
            unit: "",
            preset: Preset::Required,
            meaning: "number of cells in each region, among which its nodes are divided evenly; no more cells than nodes",
        },
        Key {
            name: "racks_per_cell",
            kind: Kind::Whole(1, 1_000),
            unit: "",
            preset: Preset::Is("1"),
            meaning: "number of racks in each cell, among which its nodes are divided evenly; no more racks than nodes",
        },
        Key {
            name: "up_mbit_s",
            kind: RATE,
            unit: "Mbit/s",
            preset: Preset::Required,
            meaning: "uplink of a node of no class",
        },
        Key {
            name: "down_mbit_s",
            kind: RATE,
            unit: "Mbit/s",
            preset: Preset::Required,
            meaning: "downlink of a node of no class",
        },
    ],
};

pub(super) const CLASS: Table = Table {
    name: "fleet.class",
    about: "nodes with links of another speed: a share of all or a number, drawn by the seed from the whole fleet; at most 64 classes. \
            The bound is that of the mixed fleet",
    is_required: false,
    is_list: true,
    keys: &[
        Key {
            name: "name",
            kind: Kind::Text(64),
            unit: "",
            preset: Preset::Required,
            meaning: "what people call the class; each has another name",
        },
        Key {
            name: "share",
            kind: Kind::Number(0.0, 1.0),
            unit: "",
            preset: Preset::Nothing("`nodes` says how many"),
            meaning: "how many of all nodes are of the class; one at least",
        },
        Key {
            name: "nodes",
            kind: Kind::Whole(1, 10_000_000),
            unit: "",
            preset: Preset::Nothing("`share` says how many"),
            meaning: "number of nodes of the class",
        },
        Key {
            name: "up_mbit_s",
            kind: RATE,
            unit: "Mbit/s",
            preset: Preset::Required,
            meaning: "uplink of a node of the class",
        },
        Key {
            name: "down_mbit_s",
            kind: RATE,
            unit: "Mbit/s",
            preset: Preset::Required,
            meaning: "downlink of a node of the class",
        },
    ],
};
