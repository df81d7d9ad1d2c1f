//! What is run: a scenario file, checked before anything is made for it.
//!
//! The tables that the simulator's scenarios have too mean the same here, with the same keys and units.

use crate::mesh::proto::Settings;
use crate::model::CellLabel;
use crate::sim::{NodeClass, ScenarioError, check, check_classes, class_rates};
use serde::Deserialize;

/// Most nodes: each is a process with a mount and a copy of the content on one machine (a guess).
pub const NODES_MAX: u32 = 250;
/// Most bytes of content on all nodes together (a guess: what a small machine's disk takes).
const ALL_BYTES_MAX: u64 = 64 << 30;
/// Least and most bytes of a chunk: what `starling publish` takes.
const CHUNK_BYTES_MIN: u32 = 4 << 10;
/// See [`CHUNK_BYTES_MIN`].
const CHUNK_BYTES_MAX: u32 = 1 << 20;
/// Most files.
const FILES_MAX: u32 = 100_000;

/// A scenario as its file states it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The seed of content, order and all draws, unless the command line names another.
    pub seed: u64,
    /// Who takes part.
    pub fleet: Fleet,
    /// What lies between them.
    #[serde(default)]
    pub network: Network,
    /// What is distributed.
    pub content: Content,
    /// Where it comes from.
    pub stratum: Stratum,
    /// What the nodes do with it.
    pub work: Work,
    /// What happens meanwhile.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// What the issue of the project promises; shown beside what was measured.
    #[serde(default)]
    pub goals: Goals,
    /// Settings of all agents, as in an agent's settings file.
    #[serde(default)]
    pub agent: toml::Table,
    /// The nodes' decisions, where they differ from the defaults.
    #[serde(default)]
    pub settings: Settings,
}

/// The nodes: all alike but for their classes, the same number in each cell. The first is also the mesh's authority.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// Number of nodes.
    pub nodes: u32,
    /// Number of regions.
    #[serde(default = "one")]
    pub regions: u32,
    /// Number of cells in each region.
    #[serde(default = "one")]
    pub cells_per_region: u32,
    /// Uplink of a node of no class, in Mbit/s, Ethernet headers included.
    pub up_mbit_s: f64,
    /// Downlink of a node of no class, in Mbit/s.
    pub down_mbit_s: f64,
    /// Nodes with links of their own speed; the seed draws the same ones as in the simulator.
    #[serde(default)]
    pub class: Vec<NodeClass>,
}

fn one() -> u32 {
    1
}

/// Links and queues.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Length of every queue before a link, in milliseconds at the link's rate. Default 50.
    pub queue_ms: f64,
    /// Rate of the link between each switch and the rest, each way, in Mbit/s. Default: not limited.
    pub shared_mbit_s: Option<f64>,
    /// Switches in each cell; its nodes lie behind them in equal parts. A cut separates whole switches. Default 1.
    pub switches_per_cell: u32,
    /// Whether packets travel through the lab in bundles of up to 64 KiB. They cost less CPU then, and the queues of
    /// downlinks take or drop bundles. Default: no; a node's own uplink queue takes its bundles whole, as on a real machine.
    pub offload: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self { queue_ms: 50.0, shared_mbit_s: None, switches_per_cell: 1, offload: false }
    }
}

/// The content: incompressible bytes, drawn from the seed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// All bytes.
    pub bytes: u64,
    /// Number of files. Default 1.
    #[serde(default = "one")]
    pub files: u32,
    /// The largest file is about this many times as large as the smallest. Default 1: all alike.
    #[serde(default = "one")]
    pub spread: u32,
    /// A file of at most so many bytes is one chunk, and larger ones are cut into chunks of so many on average. Default: as
    /// `starling publish` cuts.
    pub chunk_bytes: Option<u32>,
}

/// The stratum: `starling stratum serve` behind a link of its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stratum {
    /// Its uplink, in Mbit/s. Its downlink is the same.
    pub up_mbit_s: f64,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Mounts, and reads all files through the mount, all nodes in the same order ("recorded").
    Read,
    /// Mounts, and reads all blocks of 128 KiB through the mount, each node in an order of its own.
    Random,
    /// Mounts with a background fill; all is read through the mount afterwards, outside of the measured time.
    Fill,
    /// Has mounted and filled before; a new revision is published, and the time is measured until the mount shows it.
    Revision,
    /// Has mounted, and does nothing until the deadline: what a mesh costs that nobody uses.
    Idle,
}

impl How {
    /// Whether nodes mount before the measured part.
    pub(super) fn mounts_before(self) -> bool {
        matches!(self, Self::Revision | Self::Idle)
    }
}

/// What the nodes do with the content.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// What a node does.
    pub how: How,
    /// Threads that read on each node. Default 1.
    #[serde(default = "one")]
    pub readers: u32,
    /// Whether what is read is filled in the background as well, as `starling mount --fill` does. `fill` does in any case. Default false.
    #[serde(default)]
    pub with_fill: bool,
    /// Each node begins at a random time within this span, in milliseconds. Default 0: all at once.
    #[serde(default)]
    pub start_within_ms: u32,
    /// Seconds after which the run ends, whoever has completed.
    pub deadline_s: u32,
}

/// Some of the nodes: so many, drawn from the seed, or those named. Never the authority.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a number of nodes, or a list of their numbers")]
pub enum Which {
    /// So many.
    Count(u32),
    /// These.
    Named(Vec<u32>),
}

/// How a liar lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LiarKind {
    /// Answers everything at once, with wrong bytes.
    Corrupt,
    /// Says that the bytes come, and sends none.
    Stall,
    /// Says that it is busy or has nothing, and names holders that hold nothing.
    Lie,
}

/// Something that goes wrong, at a time in seconds from the start.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Nodes die, at random times within a span.
    Kill {
        /// From when.
        at_s: f64,
        /// Until when. Default: all at once.
        until_s: Option<f64>,
        /// Which.
        nodes: Which,
        /// Whether each is replaced at once by an empty node with a new identity.
        #[serde(default)]
        replace: bool,
    },
    /// Nodes die, at random times within a span, and at once an empty node with a new identity and a valid certificate takes each
    /// one's place, and lies. Neither counts among the nodes that shall complete.
    Replace {
        /// From when.
        at_s: f64,
        /// Until when. Default: all at once.
        until_s: Option<f64>,
        /// Which.
        nodes: Which,
        /// How the new ones lie.
        how: LiarKind,
    },
    /// Switches are cut off from the rest.
    Cut {
        /// When.
        at_s: f64,
        /// For how long, in seconds.
        for_s: f64,
        /// Which switches, from 0. The stratum is behind none of them.
        switches: Vec<u32>,
    },
    /// Nodes' links become slower.
    Slow {
        /// When.
        at_s: f64,
        /// Which.
        nodes: Which,
        /// The new rate of the uplink, in Mbit/s.
        up_mbit_s: f64,
        /// The new rate of the downlink, in Mbit/s.
        down_mbit_s: f64,
    },
    /// Nodes lie, from the start. They have valid certificates and are homes like all others. They count neither
    /// among the nodes that shall complete nor for the bound.
    Liar {
        /// Which.
        nodes: Which,
        /// How.
        how: LiarKind,
    },
    /// The stratum dies.
    KillStratum {
        /// When, in seconds. Default: once all of the content has left it.
        at_s: Option<f64>,
    },
}

/// What is promised. Everything is optional.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Goals {
    /// Most for the last node's time, in bounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub makespan_over_bound: Option<f64>,
    /// Most copies that leave the stratum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strata_copies: Option<f64>,
    /// Most copies that one node uploads, by the bytes on its uplink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_copies: Option<f64>,
    /// Most copies that cross into one switch's part of the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crossing_copies: Option<f64>,
    /// Most for the 99th percentile of the nodes' times, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_s: Option<f64>,
    /// Most bytes a second on a node's link, up and down together, as the mean of all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_bytes_per_s: Option<f64>,
    /// Most of one processor that an agent takes, as the mean of all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_cpu: Option<f64>,
}

impl Scenario {
    /// Reads and checks a scenario.
    ///
    /// # Errors
    /// [`ScenarioError`] names the first line or key that is wrong.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text).map_err(|error| ScenarioError::from_toml(&error, text))?;
        scenario.check().map_err(|error| error.within(text))?;
        Ok(scenario)
    }

    /// Number of cells in all regions.
    pub fn cells(&self) -> u32 {
        self.fleet.regions.saturating_mul(self.fleet.cells_per_region)
    }

    /// By node: the rates of its links in Mbit/s, up and down.
    pub fn rates(&self) -> Vec<[f64; 2]> {
        let fleet = &self.fleet;
        class_rates(fleet.nodes, [fleet.up_mbit_s, fleet.down_mbit_s], &fleet.class, self.seed)
    }

    /// Number of switches that nodes lie behind. With one only, the nodes and the stratum share it.
    pub fn switches(&self) -> u32 {
        self.cells().saturating_mul(self.network.switches_per_cell)
    }

    /// The switch of a node. Neighbours in number lie behind the same one.
    pub fn switch_of(&self, node: u32) -> u32 {
        let at = u64::from(node) * u64::from(self.switches()) / u64::from(self.fleet.nodes.max(1));
        u32::try_from(at).unwrap_or(0)
    }

    /// The cell of a node.
    pub fn cell_of(&self, node: u32) -> CellLabel {
        let cell = self.switch_of(node) / self.network.switches_per_cell.max(1);
        let region = cell / self.fleet.cells_per_region.max(1);
        format!("region{region}/zone/cell{cell}").parse().unwrap_or_default()
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let Self { fleet, network, content, stratum, work, agent, .. } = self;
        check(
            (1..=NODES_MAX).contains(&fleet.nodes),
            "fleet.nodes",
            fleet.nodes,
            format!("1 to {NODES_MAX}"),
        )?;
        check((1..=16).contains(&fleet.regions), "fleet.regions", fleet.regions, "1 to 16")?;
        check(
            fleet.cells_per_region >= 1 && self.cells() <= fleet.nodes,
            "fleet.cells_per_region",
            fleet.cells_per_region,
            "at least 1, and no more cells than nodes",
        )?;
        check(
            network.switches_per_cell >= 1 && self.switches() <= fleet.nodes,
            "network.switches_per_cell",
            network.switches_per_cell,
            "at least 1, and no more switches than nodes",
        )?;
        for (key, rate) in [
            ("fleet.up_mbit_s", fleet.up_mbit_s),
            ("fleet.down_mbit_s", fleet.down_mbit_s),
            ("stratum.up_mbit_s", stratum.up_mbit_s),
            ("network.shared_mbit_s", network.shared_mbit_s.unwrap_or(1.0)),
        ] {
            check_rate(key, rate)?;
        }
        check_classes(fleet.nodes, &fleet.class)?;
        for class in &fleet.class {
            check_rate("fleet.class.up_mbit_s", class.up_mbit_s)?;
            check_rate("fleet.class.down_mbit_s", class.down_mbit_s)?;
        }
        let queue = network.queue_ms;
        check((1.0..=10_000.0).contains(&queue), "network.queue_ms", queue, "1 to 10 000 (milliseconds)")?;
        let all = content.bytes.saturating_mul(u64::from(fleet.nodes) + 2);
        let must = format!("at least 1, and at most {ALL_BYTES_MAX} on all nodes together, not {all}");
        check(content.bytes >= 1 && all <= ALL_BYTES_MAX, "content.bytes", content.bytes, must)?;
        check(
            (1..=FILES_MAX).contains(&content.files) && u64::from(content.files) <= content.bytes,
            "content.files",
            content.files,
            format!("1 to {FILES_MAX}, and no more than bytes"),
        )?;
        check((1..=1_000_000).contains(&content.spread), "content.spread", content.spread, "1 to 1 000 000")?;
        let chunk = content.chunk_bytes.unwrap_or(CHUNK_BYTES_MIN);
        check(
            chunk.is_power_of_two() && (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk),
            "content.chunk_bytes",
            chunk,
            format!("a power of two, {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}"),
        )?;
        check((1..=16).contains(&work.readers), "work.readers", work.readers, "1 to 16")?;
        check((1..=7_200).contains(&work.deadline_s), "work.deadline_s", work.deadline_s, "1 to 7 200")?;
        let start = u64::from(work.start_within_ms);
        check(
            start < 1_000 * u64::from(work.deadline_s),
            "work.start_within_ms",
            work.start_within_ms,
            "less than work.deadline_s",
        )?;
        for key in ["state_dir", "socket", "listen", "advertise", "cache_dir"] {
            check(!agent.contains_key(key), "agent", key, "a setting that the lab does not choose itself")?;
        }
        self.check_faults()
    }

    fn check_faults(&self) -> Result<(), ScenarioError> {
        let deadline = f64::from(self.work.deadline_s);
        let time = |at: f64| check((0.0..=deadline).contains(&at), "faults.at_s", at, "0 to work.deadline_s");
        let mut chosen = 0;
        for fault in &self.faults {
            match fault {
                Fault::Kill { at_s, until_s, nodes, .. } | Fault::Replace { at_s, until_s, nodes, .. } => {
                    time(*at_s)?;
                    let until = until_s.unwrap_or(*at_s);
                    let ok = (*at_s..=deadline).contains(&until);
                    check(ok, "faults.until_s", until, "from at_s to work.deadline_s")?;
                    chosen += self.check_nodes(nodes)?;
                }
                Fault::Cut { at_s, for_s, switches } => {
                    time(*at_s)?;
                    check((0.0..=deadline).contains(for_s), "faults.for_s", for_s, "0 to work.deadline_s")?;
                    let shown = format!("{switches:?}");
                    let known = switches.iter().all(|switch| *switch < self.switches());
                    let must = "numbers of switches, of which there are two at least (see network.switches_per_cell)";
                    check(known && self.switches() > 1, "faults.switches", shown, must)?;
                }
                Fault::Slow { at_s, nodes, up_mbit_s, down_mbit_s } => {
                    time(*at_s)?;
                    check_rate("faults.up_mbit_s", *up_mbit_s)?;
                    check_rate("faults.down_mbit_s", *down_mbit_s)?;
                    chosen += self.check_nodes(nodes)?;
                }
                Fault::Liar { nodes, .. } => chosen += self.check_nodes(nodes)?,
                Fault::KillStratum { at_s } => time(at_s.unwrap_or(0.0))?,
            }
        }
        let must = format!("at most {} of all faults together, each node once", self.fleet.nodes - 1);
        check(chosen < self.fleet.nodes, "faults.nodes", chosen, must)
    }

    fn check_nodes(&self, nodes: &Which) -> Result<u32, ScenarioError> {
        match nodes {
            Which::Count(count) => Ok(*count),
            Which::Named(list) => {
                let ok = list.iter().all(|node| (1..self.fleet.nodes).contains(node));
                let must = "numbers from 1 (0 is the authority) to fleet.nodes - 1";
                check(ok, "faults.nodes", format!("{list:?}"), must)?;
                Ok(u32::try_from(list.len()).unwrap_or(u32::MAX))
            }
        }
    }
}

fn check_rate(key: &'static str, rate: f64) -> Result<(), ScenarioError> {
    check((0.1..=100_000.0).contains(&rate), key, rate, "0.1 to 100 000 (Mbit/s)")
}
