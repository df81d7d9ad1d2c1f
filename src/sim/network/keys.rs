//! What a scenario says of the network, and whether it makes sense.

use super::links::Tier;
use crate::sim::scenario::{Scenario, ScenarioError, check};
use serde::{Deserialize, Serialize};

/// Most classes of nodes: what a table of them can show.
const CLASSES_MAX: usize = 64;
/// Most changes during a run.
const CHANGES_MAX: usize = 64;
/// Most nodes under the exact model, whose cost grows with their square.
const EXACT_NODES_MAX: u32 = 10_000;
/// Most messages of 1 000 that are lost: with more, the transport would close the connection.
const LOSS_PER_MILLE_MAX: u32 = 500;
/// A day, in milliseconds.
const DAY_MS: u64 = 86_400_000;
/// A minute, in microseconds.
const MINUTE_US: u64 = 60_000_000;

/// How transfers share links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// Time-stepped fluid.
    #[default]
    Fluid,
    /// Exact max-min fairness.
    Exact,
    /// Chunk after chunk.
    Fifo,
}

/// Transfers at once with which steps may be longer (tests: against exact sharing with 4 to 8).
const MANY: u32 = 8;

impl Model {
    /// Steps in the transfer of a chunk over the fastest node's whole link, at least, where nodes have so many transfers under way
    /// at once. Each of many has a part of the link and takes longer; what is left of a step when the only one ends is lost. The exact
    /// model is to show what is wrong with the others, so what still takes whole steps under it shall not matter.
    pub(in crate::sim) const fn steps_per_chunk(self, at_once: u32) -> f64 {
        match self {
            Self::Fluid if at_once >= MANY => 1.5,
            Self::Fluid | Self::Fifo => 3.0,
            Self::Exact => 12.0,
        }
    }

    /// The model, with what is known of its error.
    pub(in crate::sim) const fn text(self) -> &'static str {
        match self {
            Self::Fluid => {
                "time-stepped fluid (water-filling, steps of at most two thirds of a chunk's time; against exact max-min \
                 fairness last ends of transfers are off by 3 % at most)"
            }
            Self::Exact => {
                "exact max-min fairness (from event to event; transfers begin at steps of at most a twelfth of a chunk's \
                 time)"
            }
            Self::Fifo => {
                "chunk FIFO, a preview (each link serves one chunk after the other, so that transfers do not slow each \
                 other down as real ones do)"
            }
        }
    }
}

/// Nodes with links of their own speed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeClass {
    /// What people call it.
    pub name: String,
    /// How many of all nodes, between 0 and 1; this or `nodes`.
    pub share: Option<f64>,
    /// How many nodes.
    pub nodes: Option<u32>,
    /// Uplink of a node, in Mbit/s.
    pub up_mbit_s: f64,
    /// Downlink of a node, in Mbit/s.
    pub down_mbit_s: f64,
}

impl NodeClass {
    /// How many nodes it has in a fleet of `nodes`; at least one.
    pub(super) fn count(&self, nodes: u32) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a u32")]
        let part = |share: f64| (f64::from(nodes) * share).round() as u32;
        self.nodes.unwrap_or_else(|| part(self.share.unwrap_or(0.0)).max(1))
    }
}

/// Links that nodes share, in Mbit/s. Those that are not given do not limit anything. All racks have the same, as have all
/// cells and all regions. What stays within a rack, a cell, a region does not pass its links; the stratum lies outside of
/// them all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkRates {
    /// Out of a rack.
    pub rack_up_mbit_s: Option<f64>,
    /// Into a rack.
    pub rack_down_mbit_s: Option<f64>,
    /// Out of a cell.
    pub cell_up_mbit_s: Option<f64>,
    /// Into a cell.
    pub cell_down_mbit_s: Option<f64>,
    /// Out of a region.
    pub region_up_mbit_s: Option<f64>,
    /// Into a region.
    pub region_down_mbit_s: Option<f64>,
}

impl LinkRates {
    /// Those of a tier: up, down.
    pub(super) const fn of(&self, tier: Tier) -> [Option<f64>; 2] {
        match tier {
            Tier::Rack => [self.rack_up_mbit_s, self.rack_down_mbit_s],
            Tier::Cell => [self.cell_up_mbit_s, self.cell_down_mbit_s],
            Tier::Region => [self.region_up_mbit_s, self.region_down_mbit_s],
        }
    }
}

/// One way between regions, in microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number of microseconds, or a matrix of them with a row for each region")]
pub enum RegionLatency {
    /// The same between any two.
    Same(u64),
    /// From the region of the row to that of the column.
    Matrix(Vec<Vec<u64>>),
}

/// Links that are slower, faster or cut for a while.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// When it begins, in milliseconds.
    pub at_ms: u64,
    /// How long it lasts, in milliseconds; without it, to the end.
    pub for_ms: Option<u64>,
    /// Whose links.
    pub of: Whose,
    /// Which rack, cell or region, counted from 0 through all of them.
    pub number: Option<u32>,
    /// How many of 100 nodes, drawn by the seed; at least one.
    pub per_cent: Option<u32>,
    /// What their capacity is multiplied by. With 0, messages do not pass either.
    pub factor: f64,
}

/// Whose links a [`Change`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Whose {
    /// The uplink of the stratum.
    Stratum,
    /// Both links of some nodes.
    Nodes,
    /// Both links of a rack.
    Rack,
    /// Both links of a cell.
    Cell,
    /// Both links of a region.
    Region,
}

impl Whose {
    /// The tier, if it is one.
    pub(super) const fn tier(self) -> Option<Tier> {
        match self {
            Self::Stratum | Self::Nodes => None,
            Self::Rack => Some(Tier::Rack),
            Self::Cell => Some(Tier::Cell),
            Self::Region => Some(Tier::Region),
        }
    }
}

/// Checks all that a scenario says of the network.
pub(in crate::sim) fn check_network(scenario: &Scenario) -> Result<(), ScenarioError> {
    let (fleet, network) = (&scenario.fleet, &scenario.network);
    let racks = u64::from(scenario.cells()) * u64::from(fleet.racks_per_cell);
    check(
        (1..=1_000).contains(&fleet.racks_per_cell) && racks <= u64::from(fleet.nodes),
        "fleet.racks_per_cell",
        fleet.racks_per_cell,
        "1 to 1 000, and no more racks than nodes",
    )?;
    check_classes(fleet.nodes, &fleet.class)?;
    let links = &network.links;
    for (key, rate) in [
        ("network.links.rack_up_mbit_s", links.rack_up_mbit_s),
        ("network.links.rack_down_mbit_s", links.rack_down_mbit_s),
        ("network.links.cell_up_mbit_s", links.cell_up_mbit_s),
        ("network.links.cell_down_mbit_s", links.cell_down_mbit_s),
        ("network.links.region_up_mbit_s", links.region_up_mbit_s),
        ("network.links.region_down_mbit_s", links.region_down_mbit_s),
    ] {
        let rate = rate.unwrap_or(1.0);
        check((0.001..=1e9).contains(&rate), key, rate, "0.001 to 1 000 000 000 (Mbit/s)")?;
    }
    check(
        network.model != Model::Exact || fleet.nodes <= EXACT_NODES_MAX,
        "network.model",
        "exact",
        format!("`fluid` for more than {EXACT_NODES_MAX} nodes, of which there are {}", fleet.nodes),
    )?;
    let loss = network.loss_per_mille;
    check(loss <= LOSS_PER_MILLE_MAX, "network.loss_per_mille", loss, "0 to 500")?;
    check_latency(&network.region_latency_us, fleet.regions)?;
    check_changes(scenario)
}

/// Checks the classes of a fleet of `nodes`.
///
/// # Errors
/// [`ScenarioError`] names the key that is wrong.
pub fn check_classes(nodes: u32, classes: &[NodeClass]) -> Result<(), ScenarioError> {
    let key = "fleet.class";
    check(classes.len() <= CLASSES_MAX, key, classes.len(), "at most 64 classes")?;
    let mut total = 0;
    for (place, class) in classes.iter().enumerate() {
        let name = class.name.as_str();
        let of = |name: &str| format!("fleet.class[{place}].{name}");
        check((1..=64).contains(&name.len()), &of("name"), name, "1 to 64 bytes")?;
        let is_new = classes[..place].iter().all(|other| other.name != name);
        check(is_new, &of("name"), name, "another name for each class")?;
        let one = class.share.is_some() != class.nodes.is_some();
        check(one, &format!("{key}[{place}]"), name, "either `share` or `nodes`, for each class")?;
        let share = class.share.unwrap_or(1.0);
        check(share > 0.0 && share <= 1.0, &of("share"), share, "above 0 and at most 1")?;
        check(class.nodes != Some(0), &of("nodes"), 0, "at least 1")?;
        for (name, rate) in [("up_mbit_s", class.up_mbit_s), ("down_mbit_s", class.down_mbit_s)] {
            check((0.001..=1e7).contains(&rate), &of(name), rate, "0.001 to 10 000 000 (Mbit/s)")?;
        }
        total += u64::from(class.count(nodes));
    }
    let must = format!("no more than fleet.nodes = {nodes} together, not {total}");
    check(total <= u64::from(nodes), key, classes.len(), must)
}

fn check_latency(latency: &RegionLatency, regions: u32) -> Result<(), ScenarioError> {
    let key = "network.region_latency_us";
    let rows = match latency {
        RegionLatency::Same(one) => return check(*one <= MINUTE_US, key, one, "at most a minute"),
        RegionLatency::Matrix(rows) => rows,
    };
    let must = "a row for each region, each with a column for each region";
    check(rows.len() == regions as usize, key, format!("{} rows", rows.len()), must)?;
    for (number, row) in rows.iter().enumerate() {
        check(row.len() == regions as usize, key, format!("row {number} of {} columns", row.len()), must)?;
        let longest = row.iter().copied().max().unwrap_or(0);
        check(longest <= MINUTE_US, key, longest, "at most a minute")?;
        let own = row[number];
        let must = "0 where row and column are the same region (network.latency_us holds there)";
        check(own == 0, key, format!("{own} in row {number}"), must)?;
    }
    Ok(())
}

fn check_changes(scenario: &Scenario) -> Result<(), ScenarioError> {
    let changes = &scenario.network.change;
    check(changes.len() <= CHANGES_MAX, "network.change", changes.len(), "at most 64 changes")?;
    for (index, change) in changes.iter().enumerate() {
        let key = |name: &str| format!("network.change[{index}].{name}");
        check(change.at_ms <= DAY_MS, &key("at_ms"), change.at_ms, "at most a day")?;
        let span = change.for_ms.unwrap_or(1);
        check((1..=DAY_MS).contains(&span), &key("for_ms"), span, "1 to a day")?;
        let factor = change.factor;
        check((0.0..=1_000.0).contains(&factor), &key("factor"), factor, "0 to 1 000")?;
        let groups = change.of.tier().map(|tier| scenario.groups(tier));
        let found = change.number.map_or("none".to_owned(), |number| number.to_string());
        let (ok, must) = match groups {
            Some(groups) => (
                change.number.is_some_and(|number| number < groups),
                format!("the number of one of the {groups}, from 0"),
            ),
            None => (change.number.is_none(), "only for a rack, a cell or a region".to_owned()),
        };
        check(ok, &key("number"), found, must)?;
        let found = change.per_cent.map_or("none".to_owned(), |part| part.to_string());
        let is_of_nodes = change.of == Whose::Nodes;
        let ok = change.per_cent.map_or(!is_of_nodes, |part| is_of_nodes && (1..=100).contains(&part));
        check(ok, &key("per_cent"), found, "1 to 100 for `nodes`, and only for them")?;
    }
    Ok(())
}
