//! What goes wrong in a run, and when.

use super::error::LabError;
use super::measure::LeftStratum;
use super::netns::Rates;
use super::node::{Node, join_and_start};
use super::run::{Member, Run};
use super::scenario::{Fault, LiarKind, Scenario, Which};
use crate::ambient;
use crate::model::{Generator, Rng as _, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often the access log is looked at.
const LOG_EVERY: Duration = Duration::from_millis(500);
/// How long nothing more may have left the stratum before one copy counts as being inside: several times a full queue.
const QUIET: Duration = Duration::from_secs(1);

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
enum Act {
    Kill { place: u32, then: Then },
    Cut { switch: u32, is_cut: bool },
    Slow { place: u32, up: f64, down: f64 },
    KillStratum,
}

/// What comes in the place of a node that was killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Nobody,
    /// An empty node.
    New(Option<LiarKind>),
}

/// All that is still to happen, the next at the end.
#[derive(Debug)]
pub(super) struct Faults {
    due: Vec<(Time, Act)>,
    /// The stratum dies once one copy is inside.
    watched: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    next: Time,
    seen: LeftStratum,
    quiet_since: Time,
}

impl Faults {
    /// Draws times and nodes from the scenario's seed.
    pub(super) fn plan(scenario: &Scenario, start: Time) -> Self {
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut generator = Generator::stream(scenario.seed, 1 << 32);
        let mut due = Vec::new();
        let mut watched = None;
        for (fault, places) in scenario.faults.iter().zip(places(scenario)) {
            match fault {
                Fault::Kill { at_s, until_s, .. } | Fault::Replace { at_s, until_s, .. } => {
                    let then = match fault {
                        Fault::Replace { how, .. } => Then::New(Some(*how)),
                        Fault::Kill { replace: true, .. } => Then::New(None),
                        _ => Then::Nobody,
                    };
                    let span = until_s.unwrap_or(*at_s) - at_s;
                    for place in places {
                        let part = f64::from(u32::try_from(generator.below(1_000)).unwrap_or(0)) / 1e3;
                        due.push((at(at_s + span * part), Act::Kill { place, then }));
                    }
                }
                Fault::Cut { at_s, for_s, switches } => {
                    for switch in switches {
                        due.push((at(*at_s), Act::Cut { switch: *switch, is_cut: true }));
                        due.push((at(at_s + for_s), Act::Cut { switch: *switch, is_cut: false }));
                    }
                }
                Fault::Slow { at_s, up_mbit_s, down_mbit_s, .. } => {
                    for place in places {
                        due.push((at(*at_s), Act::Slow { place, up: *up_mbit_s, down: *down_mbit_s }));
                    }
                }
                Fault::Liar { .. } => {}
                Fault::KillStratum { at_s: Some(seconds) } => due.push((at(*seconds), Act::KillStratum)),
                Fault::KillStratum { at_s: None } => {
                    watched = Some(Watch { next: start, seen: LeftStratum::default(), quiet_since: start });
                }
            }
        }
        due.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        Self { due, watched }
    }

    /// The liars among the first nodes, by place.
    pub(super) fn liars(scenario: &Scenario) -> BTreeMap<u32, LiarKind> {
        let mut liars = BTreeMap::new();
        for (fault, places) in scenario.faults.iter().zip(places(scenario)) {
            if let Fault::Liar { how, .. } = fault {
                liars.extend(places.into_iter().map(|place| (place, *how)));
            }
        }
        liars
    }

    /// The places where nodes will be killed, in order, and how who comes there lies.
    #[cfg(test)]
    pub(super) fn killed(&self) -> Vec<(u32, Option<LiarKind>)> {
        let place = |(_, act): &(Time, Act)| match act {
            Act::Kill { place, then: Then::New(liar) } => Some((*place, *liar)),
            Act::Kill { place, then: Then::Nobody } => Some((*place, None)),
            _ => None,
        };
        self.due.iter().rev().filter_map(place).collect()
    }

    /// The lowest rate that a fault gives to a downlink, in Mbit/s.
    pub(super) fn slowest(scenario: &Scenario) -> Option<f64> {
        let slow = scenario.faults.iter().filter_map(|fault| match fault {
            Fault::Slow { down_mbit_s, .. } => Some(*down_mbit_s),
            _ => None,
        });
        slow.min_by(f64::total_cmp)
    }

    /// Does what is due. Replacements are new members of the run.
    pub(super) fn act(&mut self, run: &mut Run<'_>) -> Result<(), LabError> {
        let now = ambient::now();
        let mut replaced = Vec::new();
        while let Some((_, act)) = self.due.pop_if(|(at, _)| *at <= now) {
            match act {
                Act::Kill { place, then } => {
                    kill(run, place);
                    if let Then::New(liar) = then {
                        replaced.push((place, liar));
                    }
                }
                Act::Cut { switch, is_cut } => run.network.cut(switch, is_cut)?,
                Act::Slow { place, up, down } => run.network.slow(place, Rates { up, down })?,
                Act::KillStratum => kill_stratum(run),
            }
        }
        self.watch_stratum(run, now)?;
        if replaced.is_empty() { Ok(()) } else { replace(run, &replaced) }
    }

    fn watch_stratum(&mut self, run: &mut Run<'_>, now: Time) -> Result<(), LabError> {
        let Some(watch) = self.watched.as_mut().filter(|watch| watch.next <= now) else { return Ok(()) };
        watch.next = now + LOG_EVERY;
        let left = LeftStratum::read(&run.stratum.log)?;
        let whole = left.distinct >= run.stage.scenario.content.bytes;
        if left != watch.seen {
            watch.seen = left;
            watch.quiet_since = now;
        }
        if whole && now.since(watch.quiet_since) >= QUIET {
            kill_stratum(run);
            self.watched = None;
        }
        Ok(())
    }
}

fn kill_stratum(run: &mut Run<'_>) {
    if let Some(process) = run.stratum.process.take() {
        process.kill();
    }
}

/// Kills the node that is alive in a place.
fn kill(run: &mut Run<'_>, place: u32) {
    for member in run.members.iter_mut().filter(|member| member.node.place == place) {
        if let Some(process) = member.process.take() {
            member.node.kill(process);
        }
    }
}

/// Puts new, empty nodes into places.
fn replace(run: &mut Run<'_>, places: &[(u32, Option<LiarKind>)]) -> Result<(), LabError> {
    let mut nodes = Vec::new();
    for (place, liar) in places {
        let before = run.members.iter().filter(|member| member.node.place == *place).count();
        let generation = u32::try_from(before + 1).unwrap_or(u32::MAX);
        nodes.push(Node::new(run.stage, run.network, *place, generation, *liar)?);
    }
    let authority = run.members[0].node.clone();
    let started = join_and_start(run.stage, &authority, &nodes)?;
    for (node, process) in nodes.into_iter().zip(started) {
        run.members.push(Member::new(node, process));
    }
    Ok(())
}

/// The places of each fault's nodes. Nobody is hit by two, and the authority by none.
fn places(scenario: &Scenario) -> Vec<Vec<u32>> {
    let named = |fault: &Fault| match which(fault) {
        Some(Which::Named(list)) => list.clone(),
        _ => Vec::new(),
    };
    let taken: BTreeSet<u32> = scenario.faults.iter().flat_map(named).collect();
    let mut free: Vec<u32> = (1..scenario.fleet.nodes).filter(|place| !taken.contains(place)).collect();
    let mut generator = Generator::stream(scenario.seed, 2 << 32);
    let mut places = Vec::new();
    for fault in &scenario.faults {
        places.push(match which(fault) {
            Some(Which::Count(count)) => {
                let draws = (0..*count)
                    .map_while(|_| (!free.is_empty()).then(|| free.swap_remove(generator.below(free.len()))));
                draws.collect()
            }
            _ => named(fault),
        });
    }
    places
}

fn which(fault: &Fault) -> Option<&Which> {
    match fault {
        Fault::Kill { nodes, .. }
        | Fault::Replace { nodes, .. }
        | Fault::Slow { nodes, .. }
        | Fault::Liar { nodes, .. } => Some(nodes),
        Fault::Cut { .. } | Fault::KillStratum { .. } => None,
    }
}
