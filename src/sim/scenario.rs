//! What is simulated: a scenario file, checked before a byte of memory is taken for it.

use crate::mesh::proto::Settings;
use crate::model::Class;
use serde::Deserialize;

/// Most nodes times chunks that a run may have (measured before nodes became smaller: 10 million took 0.5 GiB, which is
/// 10 GiB for as many as these).
const NODE_CHUNKS_MAX: u64 = 200_000_000;
/// Most members of a region's cell times slices: what the table of homes holds.
const CELL_SLICES_MAX: u64 = 10_000_000;

/// A scenario as its file states it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The seed of all randomness, unless the command line names another.
    pub seed: u64,
    /// Who takes part.
    pub fleet: Fleet,
    /// What lies between them.
    pub network: Network,
    /// What all want.
    pub content: Content,
    /// Where it comes from.
    pub stratum: Stratum,
    /// Nodes that die.
    pub deaths: Option<Deaths>,
    /// Nodes that lie.
    pub liars: Option<Liars>,
    /// Nodes that the stratum does not answer for a while.
    pub stalls: Option<Stalls>,
    /// The nodes' constants, where they differ from the defaults.
    #[serde(default)]
    pub settings: Settings,
}

/// Nodes that die, all at once, and are replaced by empty ones of the same number.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deaths {
    /// How many of 100 nodes, drawn by the seed; at least one.
    pub per_cent: u32,
    /// When, in milliseconds.
    pub at_ms: u64,
    /// When the others notice, in milliseconds after that. Until then who asks them hears nothing.
    pub noticed_after_ms: u64,
    /// When the replacements begin, in milliseconds after the deaths.
    pub replaced_after_ms: u64,
}

/// Nodes that the stratum does not answer for a while: what they ask for meanwhile begins afterwards, unless it is called off.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stalls {
    /// How many of 100 nodes, drawn by the seed; at least one.
    pub per_cent: u32,
    /// When it begins, in milliseconds.
    pub at_ms: u64,
    /// How long it lasts, in milliseconds.
    pub for_ms: u64,
}

/// Nodes that lie to whoever asks them, and are homes like all others. They want the content like all others, too; figures
/// are of the honest nodes alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Liars {
    /// How many of 100 nodes, drawn by the seed; at least one.
    pub per_cent: u32,
    /// What they do: those drawn take the kinds in turn.
    pub how: Vec<Lie>,
}

/// How a node lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lie {
    /// It sends wrong bytes.
    Corrupt,
    /// It says `Wait`, again and again.
    Stall,
    /// It says nothing.
    Silent,
    /// It says `Busy` and names some who asked it.
    Busy,
    /// It says `Missing` and names some who asked it.
    Missing,
    /// It says `Busy` or `Missing`.
    #[serde(rename = "lie")]
    Evade,
}

/// The nodes: all alike, the same number in each cell.
#[derive(Clone, Debug, Deserialize)]
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

/// Delays.
#[derive(Clone, Debug, Deserialize)]
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

/// The content: slices, in chunks of one length.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// All bytes.
    pub bytes: u64,
    /// Bytes of a slice. The last one may be shorter.
    pub slice_bytes: u32,
    /// Bytes of a chunk, which moves as a whole and divides the slice; a slice is one chunk if it is not given.
    pub chunk_bytes: Option<u32>,
    /// How urgently all nodes want all of it, from time 0.
    pub class: Class,
    /// On each node somebody also reads the content in its order, with this many chunks of read-ahead.
    pub read_ahead_chunks: Option<u32>,
    /// Seconds after which the nodes give up, and the run ends.
    pub deadline_s: u32,
}

/// The stratum: one, with a bounded number of transfers at once; more requests wait in their order.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stratum {
    /// Its uplink, in Mbit/s.
    pub up_mbit_s: f64,
    /// Transfers at once.
    pub connections: u32,
}

/// Why a file is not a scenario that can be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScenarioError {
    /// The text is not TOML, lacks a key, or has an unknown one. The message names line and key.
    #[error("{0}")]
    Syntax(String),
    /// A value makes no sense.
    #[error("{key} = {found}: {must}")]
    Value {
        /// The key, with its table.
        key: &'static str,
        /// The offending value.
        found: String,
        /// What it must be.
        must: String,
    },
}

fn check(
    ok: bool,
    key: &'static str,
    found: impl std::fmt::Display,
    must: impl Into<String>,
) -> Result<(), ScenarioError> {
    if ok { Ok(()) } else { Err(ScenarioError::Value { key, found: found.to_string(), must: must.into() }) }
}

impl Scenario {
    /// Reads and checks a scenario.
    ///
    /// # Errors
    /// [`ScenarioError`] names the first line or key that is wrong.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)
            .map_err(|error| ScenarioError::Syntax(error.to_string().trim_end().to_owned()))?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Number of slices.
    pub fn slices(&self) -> u32 {
        u32::try_from(self.content.bytes.div_ceil(u64::from(self.content.slice_bytes.max(1))))
            .unwrap_or(u32::MAX)
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> u32 {
        self.content.chunk_bytes.unwrap_or(self.content.slice_bytes)
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.content.bytes.div_ceil(u64::from(self.chunk_bytes().max(1)))).unwrap_or(u32::MAX)
    }

    /// Number of cells in all regions.
    pub fn cells(&self) -> u32 {
        self.fleet.regions.saturating_mul(self.fleet.cells_per_region)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let Self { fleet, network, content, stratum, settings, .. } = self;
        check((1..=10_000_000).contains(&fleet.nodes), "fleet.nodes", fleet.nodes, "1 to 10 000 000")?;
        check((1..=1_000).contains(&fleet.regions), "fleet.regions", fleet.regions, "1 to 1 000")?;
        check(
            fleet.cells_per_region >= 1 && self.cells() <= fleet.nodes,
            "fleet.cells_per_region",
            fleet.cells_per_region,
            "at least 1, and no more cells than nodes",
        )?;
        for (key, rate) in [
            ("fleet.up_mbit_s", fleet.up_mbit_s),
            ("fleet.down_mbit_s", fleet.down_mbit_s),
            ("fleet.cell_down_mbit_s", fleet.cell_down_mbit_s.unwrap_or(1.0)),
            ("stratum.up_mbit_s", stratum.up_mbit_s),
        ] {
            check((0.001..=1e7).contains(&rate), key, rate, "0.001 to 10 000 000 (Mbit/s)")?;
        }
        let minute_us = 60_000_000;
        check(network.latency_us <= minute_us, "network.latency_us", network.latency_us, "at most a minute")?;
        let regional = network.region_latency_us;
        check(regional <= minute_us, "network.region_latency_us", regional, "at most a minute")?;
        check(network.lookup_ms <= 60_000, "network.lookup_ms", network.lookup_ms, "at most a minute")?;
        check(network.queue_ms <= 60_000, "network.queue_ms", network.queue_ms, "at most a minute")?;
        check(content.bytes >= 1, "content.bytes", content.bytes, "at least 1")?;
        let slice = content.slice_bytes;
        check((1 << 10..=1 << 29).contains(&slice), "content.slice_bytes", slice, "1 KiB to 512 MiB")?;
        let chunk = self.chunk_bytes();
        check(
            chunk >= 1 << 10 && slice.is_multiple_of(chunk),
            "content.chunk_bytes",
            chunk,
            "at least 1 KiB, and a divisor of content.slice_bytes",
        )?;
        let slices = content.bytes.div_ceil(u64::from(slice));
        let chunks = content.bytes.div_ceil(u64::from(chunk));
        let most = u64::from(settings.wants_max.min(settings.numbers_max));
        check(
            chunks <= most,
            "content.bytes",
            content.bytes,
            format!("at most {most} chunks, not {chunks}"),
        )?;
        let total = chunks * u64::from(fleet.nodes);
        let must = format!("nodes x chunks at most {NODE_CHUNKS_MAX}, not {total}");
        check(total <= NODE_CHUNKS_MAX, "fleet.nodes", fleet.nodes, must)?;
        let homes = slices * u64::from(self.cells());
        let must = format!("cells x slices at most {CELL_SLICES_MAX}, not {homes}");
        check(homes <= CELL_SLICES_MAX, "fleet.cells_per_region", fleet.cells_per_region, must)?;
        check(
            (1..=86_400).contains(&content.deadline_s),
            "content.deadline_s",
            content.deadline_s,
            "1 to 86 400",
        )?;
        if let Some(deaths) = &self.deaths {
            let per_cent = deaths.per_cent;
            check((1..=100).contains(&per_cent), "deaths.per_cent", per_cent, "1 to 100")?;
            let latest = deaths.at_ms.max(deaths.noticed_after_ms).max(deaths.replaced_after_ms);
            check(latest <= 86_400_000, "deaths.*_ms", latest, "at most a day")?;
            check(
                deaths.noticed_after_ms < deaths.replaced_after_ms,
                "deaths.noticed_after_ms",
                deaths.noticed_after_ms,
                "less than deaths.replaced_after_ms",
            )?;
        }
        if let Some(stalls) = &self.stalls {
            let per_cent = stalls.per_cent;
            check((1..=100).contains(&per_cent), "stalls.per_cent", per_cent, "1 to 100")?;
            let latest = stalls.at_ms.max(stalls.for_ms);
            check(latest <= 86_400_000, "stalls.*_ms", latest, "at most a day")?;
        }
        if let Some(liars) = &self.liars {
            let per_cent = liars.per_cent;
            check((1..=90).contains(&per_cent), "liars.per_cent", per_cent, "1 to 90")?;
            check(!liars.how.is_empty(), "liars.how", "[]", "at least one kind")?;
        }
        check(
            (1..=65_536).contains(&stratum.connections),
            "stratum.connections",
            stratum.connections,
            "1 to 65 536",
        )
    }
}
