//! The other ways to distribute, in the same network and with the same scenario, to compare Starling with.
//!
//! Each is a model of what its system decides, behind the trait [`Strategy`]; its file says what was left out, and where the
//! facts come from. All else is the same for all of them: streams of pieces in the network of the scenario and virtual time
//! (`world`), faults and arrival (`engine`), who has what (`pieces`). Starling itself is not here: it runs the node's own
//! decisions in an engine of its own, whose machines do far more than pass on pieces.

mod calendar;
mod dragonfly;
mod engine;
mod faasnet;
mod kraken;
mod origin;
mod pieces;
mod proxies;
mod spegel;
#[cfg(test)]
mod tests;
mod world;

use super::engine::Progress;
use super::network::Servers;
use super::record::{Record, Recording};
use super::report::Report;
use super::scenario::{Cache, Name, Scenario, ScenarioError, check};
use dragonfly::Dragonfly;
use engine::run;
use faasnet::Faasnet;
use kraken::Kraken;
use origin::Origin;
use pieces::Layout;
use proxies::Proxies;
use spegel::Spegel;
use world::{Stream, World};

/// What a system decides: for all of its machines, each of which may use only what it knows.
///
/// Whatever is lost is answered: a stream that falls silent with [`Self::failed`], a message with [`Self::unanswered`], both
/// after `strategy.timeout_ms` or when all notice the death that caused it.
trait Strategy {
    /// What its machines say to each other.
    type Note: Copy + std::fmt::Debug;

    /// What a run needs to know before it begins.
    fn setup(scenario: &Scenario, layout: Layout) -> Setup;

    /// Before anybody has begun.
    fn new(scenario: &Scenario, world: &World<Self::Note>) -> Self;

    /// A node wants the content from now on: at its turn, and again when it was replaced.
    fn begin(&mut self, node: u32, world: &mut World<Self::Note>);

    /// An end gets a message, or is reminded of what it told itself (`from` is `to` then).
    fn told(&mut self, from: u32, to: u32, note: Self::Note, world: &mut World<Self::Note>);

    /// A message is not answered: it was lost in a cut, or its receiver is dead.
    fn unanswered(&mut self, _from: u32, _to: u32, _note: Self::Note, _world: &mut World<Self::Note>) {}

    /// A piece has arrived. It may have been there before.
    fn received(&mut self, stream: &Stream, piece: u32, world: &mut World<Self::Note>);

    /// The last byte of a stream has left its sender.
    fn sent(&mut self, _stream: &Stream, _world: &mut World<Self::Note>) {}

    /// A stream is no more before all of it has arrived.
    fn failed(&mut self, stream: &Stream, world: &mut World<Self::Note>);

    /// An end lacks a piece that it was asked for: the stream waits until it has it.
    fn lacks(&mut self, _end: u32, _piece: u32, _world: &mut World<Self::Note>) {}

    /// A node dies, and with it what it knew.
    fn died(&mut self, node: u32);

    /// All notice that these are dead.
    fn noticed(&mut self, _nodes: &[u32], _world: &mut World<Self::Note>) {}
}

/// What a run needs to know of a strategy before it begins.
#[derive(Clone, Debug)]
struct Setup {
    layout: Layout,
    servers: Servers,
    /// What the servers have in the beginning.
    cache: Cache,
    /// Streams that a node and a server send at once.
    slots: [usize; 2],
    /// Whether each piece is asked for by itself, so that latencies matter.
    asks_for_each: bool,
    /// It cannot take less time than that, in seconds; 0 if that is not known.
    least_s: f64,
}

impl Setup {
    /// Without servers.
    fn new(layout: Layout, asks_for_each: bool) -> Self {
        Self {
            layout,
            servers: Servers::default(),
            cache: Cache::Cold,
            slots: [usize::MAX; 2],
            asks_for_each,
            least_s: 0.0,
        }
    }
}

/// So many servers, spread evenly over the cells.
fn spread(scenario: &Scenario, name: [&'static str; 2], count: u32, mbit_s: Option<f64>) -> Servers {
    let place = |number: u32| u64::from(number) * u64::from(scenario.cells()) / u64::from(count);
    Servers {
        name,
        cells: (0..count).map(|number| u32::try_from(place(number)).unwrap_or(0)).collect(),
        mbit_s: mbit_s.unwrap_or(scenario.fleet.up_mbit_s),
    }
}

/// Seconds that it takes to send so many bytes.
fn seconds(bytes: f64, mbit_s: f64) -> f64 {
    bytes * 8.0 / (mbit_s * 1e6)
}

/// The content as a strategy cuts it; nothing if it is Starling, who has chunks.
fn layout(scenario: &Scenario) -> Option<Layout> {
    let (bytes, strategy) = (scenario.content.bytes, &scenario.strategy);
    Some(match strategy.name {
        Name::Starling => return None,
        Name::Origin => Layout::layered(bytes, strategy.origin.layers),
        Name::Proxies => Layout::new(bytes, scenario.chunk_bytes()),
        Name::Dragonfly => Layout::new(bytes, strategy.dragonfly.piece_bytes),
        Name::Kraken => Layout::new(bytes, strategy.kraken.piece_bytes),
        Name::Spegel => Layout::layered(bytes, strategy.spegel.layers),
        Name::Faasnet => Layout::new(bytes, strategy.faasnet.piece_bytes),
    })
}

/// The number of those pieces.
pub(super) fn strategy_pieces(scenario: &Scenario) -> Option<u64> {
    layout(scenario).map(|layout| u64::from(layout.pieces()))
}

/// Runs a scenario under its strategy, and hands out the record as well if it is recorded; nothing if it is Starling.
pub(super) fn simulate_other(
    scenario: &Scenario,
    seed: u64,
    recording: Option<&Recording>,
    watch: &mut dyn FnMut(Progress),
) -> Option<(Report, Record)> {
    let layout = layout(scenario)?;
    Some(match scenario.strategy.name {
        Name::Starling => return None,
        Name::Origin => run::<Origin>(scenario, seed, layout, recording, watch),
        Name::Proxies => run::<Proxies>(scenario, seed, layout, recording, watch),
        Name::Dragonfly => run::<Dragonfly>(scenario, seed, layout, recording, watch),
        Name::Kraken => run::<Kraken>(scenario, seed, layout, recording, watch),
        Name::Spegel => run::<Spegel>(scenario, seed, layout, recording, watch),
        Name::Faasnet => run::<Faasnet>(scenario, seed, layout, recording, watch),
    })
}

/// Most servers of a run.
const SERVERS_MAX: u64 = 1_000_000;

/// Checks what the strategy of a scenario cannot do.
pub(super) fn check_strategy(scenario: &Scenario) -> Result<(), ScenarioError> {
    if let Some(compare) = &scenario.compare {
        let mut seen = Vec::new();
        for name in &compare.strategies {
            let must = "each strategy once";
            check(!seen.contains(name), "compare.strategies", name.text(), must)?;
            seen.push(*name);
        }
    }
    let name = scenario.strategy.name;
    if name == Name::Starling {
        return Ok(());
    }
    let must = |what: &str| format!("left out: the strategy `{}` is modelled without {what}", name.text());
    check(scenario.liars.is_none(), "liars", "a table", must("liars"))?;
    let readers = scenario.content.read_ahead_chunks;
    check(readers.is_none(), "content.read_ahead_chunks", readers.unwrap_or(0), must("readers"))?;
    let per_cell = scenario.strategy.proxies.per_cell;
    let proxies = u64::from(per_cell) * u64::from(scenario.cells());
    check(
        name != Name::Proxies || proxies <= SERVERS_MAX,
        "strategy.proxies.per_cell",
        per_cell,
        format!("so few that there are at most 1 000 000 proxies, not {proxies}"),
    )?;
    let (bytes, key) = match name {
        Name::Dragonfly => (scenario.strategy.dragonfly.piece_bytes, "strategy.dragonfly.piece_bytes"),
        Name::Kraken => (scenario.strategy.kraken.piece_bytes, "strategy.kraken.piece_bytes"),
        Name::Faasnet => (scenario.strategy.faasnet.piece_bytes, "strategy.faasnet.piece_bytes"),
        _ => (0, "content.bytes"),
    };
    let total = scenario.node_chunks();
    let most = super::scenario::NODE_CHUNKS_MAX;
    let must = format!("so large that nodes x pieces are at most {most}, not {total}");
    check(total <= most, key, bytes, must)
}
