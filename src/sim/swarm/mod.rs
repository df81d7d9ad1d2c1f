//! Seeded swarms: the node's decisions among everything that can go wrong.
//!
//! A seed draws a swarm of up to 200 nodes, what their readers want, and a storm of troubles: lost, late and reordered
//! messages, broken connections, crashes, restarts with and without the disk, partitions, liars, full disks, rotten
//! chunks, clocks that jump, nodes that stall, membership news that are wrong, strata and a DHT that fail. Then all is
//! mended, and every honest node reads everything. The method is that of FoundationDB's simulation and of TigerBeetle's VOPR:
//! safety is checked at each step, liveness after healing, by checkers that stand outside of the nodes.
//!
//! * `plan`: what a seed means. `readers`, `faults`, `liars`: who does what.
//! * `world`: virtual time and the views; `wires`: the network; `supply`: strata and DHT; `member`: a machine;
//!   `driver`: what carries decisions out, as `mesh/driver/` does in an agent.
//! * `ledger`: the checker of a node. [`crate::mesh::proto::Core::audit`] looks at its tables from inside.
//! * `tape`: the hash of all that happened, and the log.
//!
//! The same seed gives the same swarm to the bit. `starling swarm --seed N --trace` shows it.

mod driver;
mod faults;
mod ledger;
mod liars;
mod member;
mod plan;
mod readers;
mod supply;
mod tape;
#[cfg(test)]
mod tests;
mod wires;
mod world;

pub use plan::NODES_MAX;

use crate::model::Time;
use ledger::{Broken, rule};
use plan::Plan;
use readers::CONVERGED_AFTER;
use std::io::Write;
use std::time::Duration;
use tape::Tape;
use world::World;

/// Events that any swarm may take, and further ones for each chunk and node: a livelock takes more.
const EVENTS_BASE: u64 = 500_000;
const EVENTS_EACH: u64 = 2_000;
/// How long after the last read everything must have come to rest: whoever still asks is a liar, and gives up or is
/// given up within this time.
const REST: Duration = Duration::from_secs(120);

/// How late a node's loop may be, whatever the plan says.
const ASLEEP_MAX: Duration = Duration::from_millis(100);

/// What happened in a swarm, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// What reached the nodes.
    pub events: u64,
    /// Asks of peers.
    pub asks: u64,
    /// Fetches from the strata.
    pub upstream: u64,
    /// Wants that were delivered.
    pub delivered: u64,
    /// Wants that were given up.
    pub given_up: u64,
}

/// A swarm that ran to its end without a broken rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Calm {
    /// Hash of all that happened. The same seed and build give the same.
    pub hash: u64,
    /// In numbers.
    pub count: Count,
    /// Virtual time from healing to the last delivery, in milliseconds.
    pub healed_ms: u64,
}

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed} ({swarm}): at {} s, node {node}: {rule}", at.as_secs_f64())]
pub struct Violation {
    /// The seed.
    pub seed: u64,
    /// What kind of swarm it was.
    pub swarm: String,
    /// When, in virtual time.
    pub at: Time,
    /// Which node was at work.
    pub node: u32,
    /// What it did.
    pub rule: String,
}

/// One line that says what a seed draws.
pub fn describe(seed: u64, nodes: Option<u32>) -> String {
    Plan::draw(seed, nodes).line()
}

/// Runs the swarm of `seed`. `nodes` overrides the drawn number of nodes (2 to [`NODES_MAX`]); `log` takes everything
/// that happens, line by line.
///
/// # Errors
/// [`Violation`] when a rule was broken.
///
/// # Panics
/// When the core does: its own assertions are rules as well.
pub fn swarm(seed: u64, nodes: Option<u32>, log: Option<&mut dyn Write>) -> Result<Calm, Violation> {
    let plan = Plan::draw(seed, nodes);
    let line = plan.line();
    let mut world = World::new(seed, plan, Tape::new(log));
    match run(&mut world) {
        Ok(healed) => {
            let healed_ms = u64::try_from(healed.as_millis()).unwrap_or(u64::MAX);
            Ok(Calm { hash: world.tape.hash(), count: world.count(), healed_ms })
        }
        Err(Broken(rule)) => Err(Violation { seed, swarm: line, at: world.now, node: world.culprit, rule }),
    }
}

/// The storm, the mending, the last reads, the rest. Returns how long after the mending the last read ended.
fn run(world: &mut World<'_>) -> Result<Duration, Broken> {
    let each = u64::from(world.nodes()) * u64::from(world.chunks());
    let events_max = EVENTS_BASE + EVENTS_EACH * each;
    world.populate()?;
    world.plan_trouble();
    world.run(Time::ZERO + world.plan.storm, events_max, |_| false)?;
    world.heal()?;
    if world.plan.clean {
        world.copies_are_few()?;
    }
    // At once, or when everybody has heard that all is well.
    if world.seed.is_multiple_of(2) {
        world.run(world.now + CONVERGED_AFTER, events_max, |_| false)?;
    }
    let began = world.now;
    for node in 0..world.nodes() {
        if world.member(node).alive && world.member(node).is_honest() {
            world.culprit = node;
            world.begin_last_reads(node)?;
        }
    }
    let each = u32::try_from(world.plan.content.len()).unwrap_or(1);
    world.run(began + CONVERGED_AFTER + world.last_patience() * each, events_max, |world| {
        world.last_open == 0
    })?;
    let last = world.now.since(began);
    for node in 0..world.nodes() {
        world.culprit = node;
        let member = world.member(node);
        let open = member.last_wants.iter().chain(&member.last_queue).count();
        rule!(open == 0, "{open} of the last reads do not end: {:?}", member.last_wants);
    }
    if world.plan.clean {
        world.copies_are_few()?;
    }
    // What is being sent takes its time on a thin uplink, whether it is still wanted or not.
    world.run(world.now.max(world.uplinks_free()) + REST, events_max, |_| false)?;
    for node in 0..world.nodes() {
        world.culprit = node;
        world.rests(node)?;
    }
    Ok(last)
}

impl World<'_> {
    /// When the last byte of all that is being sent now will have left.
    fn uplinks_free(&self) -> Time {
        (0..self.nodes()).map(|node| self.member(node).uplink_free).max().unwrap_or(Time::ZERO)
    }

    /// Nothing is left over at a node that nobody wants anything of.
    fn rests(&self, node: u32) -> Result<(), Broken> {
        let member = self.member(node);
        let Some(core) = member.core().filter(|_| member.alive) else { return Ok(()) };
        member.ledger.audit(self.local(node), &self.plan.settings)?;
        member.ledger.is_idle()?;
        let usage = core.audit().map_err(|torn| Broken(torn.to_string()))?;
        rule!(usage.is_idle(), "it does not come to rest: {usage:?}");
        let late = core.next_deadline().map_or(Duration::ZERO, |next| self.local(node).since(next));
        rule!(late < ASLEEP_MAX, "it sleeps over a deadline since {late:?}");
        Ok(())
    }
}
