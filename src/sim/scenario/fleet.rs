//! Who takes part.

use super::keys::{Key, Kind, Preset, Table};
use serde::{Deserialize, Serialize};

/// Least and most of a link, in Mbit/s.
pub(super) const RATE: Kind = Kind::Number(0.001, 1e7);

/// The nodes: all alike, the same number in each cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// Number of nodes.
    pub nodes: u32,
    /// Number of regions.
    pub regions: u32,
    /// Number of cells in each region.
    pub cells_per_region: u32,
    /// Uplink of a node, in Mbit/s.
    pub up_mbit_s: f64,
    /// Downlink of a node, in Mbit/s.
    pub down_mbit_s: f64,
    /// The link through which all comes into a cell that was sent outside of it, in Mbit/s; without it, that is no
    /// limit.
    pub cell_down_mbit_s: Option<f64>,
}

pub(super) const TABLE: Table = Table {
    name: "fleet",
    about: "the nodes: all alike, as many in each cell",
    is_required: true,
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
            name: "up_mbit_s",
            kind: RATE,
            unit: "Mbit/s",
            preset: Preset::Required,
            meaning: "uplink of a node",
        },
        Key {
            name: "down_mbit_s",
            kind: RATE,
            unit: "Mbit/s",
            preset: Preset::Required,
            meaning: "downlink of a node",
        },
        Key {
            name: "cell_down_mbit_s",
            kind: RATE,
            unit: "Mbit/s",
            preset: Preset::Nothing("no limit"),
            meaning: "the link through which all comes into a cell from outside of it",
        },
    ],
};
