//! What is simulated: a scenario file, checked before a byte of memory is taken for it.
//!
//! One struct a table; beside each struct stands what its keys mean and may be ([`keys`]). [`Scenario`] is one run,
//! [`Plan`] all that a file asks for.

mod arrival;
mod content;
mod document;
mod error;
mod faults;
mod fleet;
mod keys;
mod network;
mod plan;
mod strategy;
#[cfg(test)]
mod tests;

pub(super) use arrival::{Order, Rolling, Waves};
pub use content::Files;
pub use error::{Problem, ScenarioError, check};
pub(super) use faults::{Leaving, Lie};
pub use keys::{explain, nearest};
pub use plan::{Case, Plan, RUNS_MAX};
pub(super) use strategy::{Cache, Name};

use super::network::check_network;
use super::profile::ContentProfile;
use super::reader::ReadPlan;
use super::strategy::{check_strategy, strategy_pieces};
use crate::mesh::proto::Settings;
use arrival::Arrival;
use content::{Content, Profiles, Stratum, check_choice, check_count};
use document::Document;
use faults::{Deaths, Liars, Stalls, check_deaths};
use fleet::Fleet;
use keys::grouped;
use network::Network;
use serde::{Deserialize, Deserializer, Serialize};
use std::sync::Arc;
use strategy::{Compare, Strategy};

/// Most nodes times chunks that a run may have, or all that run at once: a million nodes with 256. Two bytes each, and what a node
/// takes whatever the content.
pub const NODE_CHUNKS_MAX: u64 = 256_000_000;
/// Most members of a region's cell times slices: what the table of homes holds.
const CELL_SLICES_MAX: u64 = 10_000_000;

/// A scenario as its file states it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The seed of all randomness, unless the command line names another.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// How often it is run.
    pub seeds: Option<Seeds>,
    /// Who takes part.
    pub fleet: Fleet,
    /// What lies between them.
    pub network: Network,
    /// What all want.
    pub content: Content,
    /// Where it comes from.
    pub stratum: Stratum,
    /// When they begin to want it, if not all at once.
    pub arrival: Option<Arrival>,
    /// Nodes that die.
    #[serde(default, deserialize_with = "one_or_many")]
    pub deaths: Vec<Deaths>,
    /// Nodes that leave one by one.
    pub churn: Option<Leaving>,
    /// Nodes that lie.
    pub liars: Option<Liars>,
    /// Nodes that the stratum does not answer for a while.
    pub stalls: Option<Stalls>,
    /// Who decides.
    #[serde(default)]
    pub strategy: Strategy,
    /// The strategies under which it is run, if it is under several.
    pub compare: Option<Compare>,
    /// The nodes' constants, where they differ from the defaults.
    #[serde(default)]
    pub settings: Settings,
    /// What decides who is the home of what, where that is not drawn. No key of a file.
    #[serde(skip)]
    pub(super) keys: Option<Arc<Keys>>,
    /// Sets the nodes' own randomness apart between runs of one seed, whose fleet, homes and dead are the same. No key of a file.
    #[serde(skip)]
    pub(super) draw: u64,
}

/// The rendezvous keys of a real run: who was the home of what there. What has no key here draws one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Of nodes, by place.
    pub nodes: Vec<u64>,
    /// Of cells, by number.
    pub cells: Vec<u64>,
    /// Of slices, whole ones first.
    pub slices: Vec<u64>,
}

/// What stands for the files of a scenario that may name none.
fn no_files(_: &str) -> Result<String, String> {
    Err("this scenario is no file of a folder, so it can name none".to_owned())
}

/// A list of tables, or one table that stands for a list of one.
pub(super) fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<T> {
        Many(Vec<T>),
        One(T),
    }
    // What either may say was looked at before, so that the error of the other does not matter.
    Ok(match Either::deserialize(from)? {
        Either::Many(many) => many,
        Either::One(one) => vec![one],
    })
}

fn default_seed() -> u64 {
    1
}

/// The seeds of the runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number of runs, or a list of their seeds")]
pub enum Seeds {
    /// So many, from the scenario's own upwards.
    Count(u32),
    /// These.
    List(Vec<u64>),
}

impl Scenario {
    /// Whether nodes die or leave.
    pub(super) fn somebody_dies(&self) -> bool {
        !self.deaths.is_empty() || self.churn.is_some()
    }

    /// Reads and checks a scenario that names no files: one run of a file that asks for several, without what is swept.
    ///
    /// # Errors
    /// [`ScenarioError`] names the first line and key that is wrong.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let mut document = Document::parse(text)?;
        document.take("sweep");
        Self::read(&document, &mut Profiles::new(&no_files))
    }

    /// From a document, without what is swept.
    fn read(document: &Document<'_>, profiles: &mut Profiles<'_>) -> Result<Self, ScenarioError> {
        keys::check(document)?;
        check_choice(document)?;
        let mut scenario: Self = document.read()?;
        if let Some(name) = &scenario.content.profile {
            let profile = profiles.get(name).map_err(|error| document.place(error))?;
            scenario.content.take(profile);
        }
        scenario.check().map_err(|error| document.place(error))?;
        Ok(scenario)
    }

    /// The profile of the content, if it has one.
    pub fn profile(&self) -> Option<&ContentProfile> {
        self.content.profiled()
    }

    /// How somebody reads on each node, if anybody does.
    pub(super) fn read_plan(&self, chunks: u32) -> Option<ReadPlan> {
        let ahead = self.content.read_ahead_chunks?;
        let order = self.profile().and_then(ContentProfile::order).map(Into::into);
        // 8 bits a byte, and 1 Mbit/s is a bit in 1 000 ns.
        let nanos_per_byte = self.content.read_mbit_s.map_or(0.0, |mbit_s| 8_000.0 / mbit_s);
        Some(ReadPlan { chunks, order, ahead, nanos_per_byte })
    }

    /// Number of slices.
    pub fn slices(&self) -> u32 {
        if let Some(profile) = self.profile() {
            return profile.slices();
        }
        u32::try_from(self.content.bytes.div_ceil(u64::from(self.content.slice_bytes.max(1))))
            .unwrap_or(u32::MAX)
    }

    /// Bytes of a chunk; where they differ, their mean.
    pub fn chunk_bytes(&self) -> u32 {
        if let Some(profile) = self.profile() {
            return profile.mean_len();
        }
        self.content.chunk_bytes.unwrap_or(self.content.slice_bytes)
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u32 {
        if let Some(profile) = self.profile() {
            return profile.len();
        }
        u32::try_from(self.content.bytes.div_ceil(u64::from(self.chunk_bytes().max(1)))).unwrap_or(u32::MAX)
    }

    /// Number of cells in all regions.
    pub fn cells(&self) -> u32 {
        self.fleet.regions.saturating_mul(self.fleet.cells_per_region)
    }

    /// Chunks, or what a strategy has in their place, that all nodes want together: what a run's memory and time grow with.
    pub fn node_chunks(&self) -> u64 {
        let pieces = strategy_pieces(self).unwrap_or_else(|| u64::from(self.chunks()));
        u64::from(self.fleet.nodes).saturating_mul(pieces)
    }

    /// What no single key can be refused for.
    fn check(&self) -> Result<(), ScenarioError> {
        let Self { fleet, content, settings, .. } = self;
        check(
            self.cells() <= fleet.nodes,
            "fleet.cells_per_region",
            fleet.cells_per_region,
            format!("no more cells than nodes, not {} for {}", self.cells(), fleet.nodes),
        )?;
        check_network(self)?;
        let (slice, chunk) = (content.slice_bytes, self.chunk_bytes());
        check(
            self.profile().is_some() || slice.is_multiple_of(chunk),
            "content.chunk_bytes",
            chunk,
            format!("a divisor of content.slice_bytes, which is {slice}"),
        )?;
        let (slices, chunks) = match self.profile() {
            Some(profile) => (u64::from(profile.slices()), u64::from(profile.len())),
            None => (content.bytes.div_ceil(u64::from(slice)), content.bytes.div_ceil(u64::from(chunk))),
        };
        check_count(content, chunks, u64::from(settings.wants_max.min(settings.numbers_max)))?;
        let total = chunks * u64::from(fleet.nodes);
        let must = format!(
            "so few that nodes x chunks are at most {}, not {}",
            grouped(NODE_CHUNKS_MAX),
            grouped(total)
        );
        check(total <= NODE_CHUNKS_MAX, "fleet.nodes", fleet.nodes, must)?;
        let homes = slices * u64::from(self.cells());
        let must = format!(
            "so few that cells x slices are at most {}, not {}",
            grouped(CELL_SLICES_MAX),
            grouped(homes)
        );
        check(homes <= CELL_SLICES_MAX, "fleet.cells_per_region", fleet.cells_per_region, must)?;
        check_strategy(self)?;
        check_deaths(self)?;
        self.arrival.as_ref().map_or(Ok(()), |arrival| self.check_arrival(arrival))
    }

    fn check_arrival(&self, arrival: &Arrival) -> Result<(), ScenarioError> {
        let Arrival { canary, waves, rolling, news, .. } = arrival;
        let others = canary.is_some() || waves.is_some() || rolling.is_some();
        let some = others || news.is_some();
        check(
            some,
            "arrival",
            "a table",
            "with a table canary, waves, rolling or news; without all it says nothing",
        )?;
        check(
            !(others && news.is_some()),
            "arrival.news",
            "a table",
            "without arrival.canary, arrival.waves and arrival.rolling: nodes begin when they hear of the root, or otherwise",
        )?;
        if let Some(news) = news {
            let must = format!("at most all {} nodes", self.fleet.nodes);
            check(news.nodes <= self.fleet.nodes, "arrival.news.nodes", news.nodes, must)?;
        }
        let both = waves.is_some() && rolling.is_some();
        check(
            !both,
            "arrival.rolling",
            "a table",
            "without arrival.waves: nodes begin in one way or the other",
        )?;
        if let Some(waves) = waves {
            let before = u64::from(canary.as_ref().map_or(0, |canary| canary.per_cent));
            let count = (100 - before).div_ceil(u64::from(waves.per_cent));
            let (last_ms, deadline_s) = ((count - 1) * waves.every_ms, self.content.deadline_s);
            let must = format!(
                "so short that the last of {count} waves begins before content.deadline_s, which is {deadline_s} s, not {last_ms} ms \
                 after the first"
            );
            check(last_ms < 1_000 * u64::from(deadline_s), "arrival.waves.every_ms", waves.every_ms, must)?;
        }
        Ok(())
    }
}
