//! Scenarios for the tests of this room.

use crate::sim::scenario::Scenario;

/// Nodes with 1 000 Mbit/s each way, in so many regions, cells a region and racks a cell; `more` is further tables, `links` the
/// keys of the shared links.
pub(super) fn scenario(nodes: u32, [regions, cells, racks]: [u32; 3], more: &str, links: &str) -> Scenario {
    let text = format!(
        "seed = 1
[fleet]
nodes = {nodes}
regions = {regions}
cells_per_region = {cells}
racks_per_cell = {racks}
up_mbit_s = 1_000
down_mbit_s = 1_000
[network]
latency_us = 500
[network.links]
{links}
[content]
bytes = 100_000_000
slice_bytes = 1_048_576
class = 'Fill'
deadline_s = 60
[stratum]
up_mbit_s = 4_000
connections = 64
{more}"
    );
    Scenario::parse(&text).unwrap()
}
