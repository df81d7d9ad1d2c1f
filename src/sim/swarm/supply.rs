//! Where chunks and addresses come from beyond the neighbours: the strata and the DHT.

use super::ledger::rule;
use super::member::Bytes;
use super::world::{Happening, Step, World};
use crate::mesh::proto::{Chunk, Failure, Input, Peer, Segment, Source};
use crate::model::Rng;
use std::collections::BTreeMap;
use std::time::Duration;

/// Providers that a look-up brings.
const PROVIDERS_MAX: usize = 12;
/// Records of a segment that the DHT keeps; the oldest goes.
const RECORDS_MAX: usize = 64;
/// Most fetches of one chunk for a region when nothing goes wrong.
const COPIES_MAX: u32 = 1;

/// How the strata are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Weather {
    #[default]
    Fine,
    /// Nobody listens.
    Down,
    /// Requests get no answer.
    Hang,
    /// Answers take seconds.
    Slow,
    /// One in three fails.
    Flaky,
    /// Half of the answers are not what was asked for.
    Rubbish,
    /// They know no such repository.
    Refusing,
}

/// The strata.
#[derive(Debug, Default)]
pub(super) struct Strata {
    pub(super) weather: Weather,
}

/// The DHT: who announced what. It forgets nobody who died.
#[derive(Debug, Default)]
pub(super) struct Dht {
    records: BTreeMap<Segment, Vec<u32>>,
    /// It answers nothing.
    pub(super) silent: bool,
}

impl Dht {
    pub(super) fn announce(&mut self, segment: Segment, node: u32) {
        let records = self.records.entry(segment).or_default();
        records.retain(|other| *other != node);
        if records.len() >= RECORDS_MAX {
            records.remove(0);
        }
        records.push(node);
    }
}

impl World<'_> {
    pub(super) fn fetch_upstream(&mut self, node: u32, chunk: Chunk) {
        let region = self.plan.seats[node as usize].region;
        *self.copies.entry((region, chunk)).or_default() += 1;
        let slow = if self.strata.weather == Weather::Slow { 3_000 } else { 0 };
        let millis = 3 + self.net_below(30) + if slow > 0 { self.net_below(slow) } else { 0 };
        let takes = Duration::from_micros(u64::from(self.plan.content[chunk.0 as usize].len_bytes) / 100);
        let member = self.member_mut(node);
        let (number, life) = (member.books.next_fetch(), member.life);
        member.books.upstream.insert(chunk, number);
        let at = self.now + Duration::from_millis(u64::from(millis)) + takes;
        self.push(at, Happening::Strata { node, life, number, chunk });
    }

    /// A fetch is called off. When nobody waits for the chunk any more, that is its readers' doing: what they want again
    /// later may leave the strata again.
    pub(super) fn stop_upstream(&mut self, node: u32, chunk: Chunk) {
        let region = self.plan.seats[node as usize].region;
        let member = self.member_mut(node);
        let stopped = member.books.upstream.remove(&chunk).is_some();
        if stopped
            && !member.ledger.has_reason(chunk)
            && let Some(copies) = self.copies.get_mut(&(region, chunk))
        {
            *copies -= 1;
        }
    }

    /// In a swarm where nothing goes wrong, a chunk leaves the strata once a region.
    pub(super) fn copies_are_few(&self) -> Step {
        for ((region, chunk), copies) in &self.copies {
            rule!(*copies <= COPIES_MAX, "{chunk:?} left the strata {copies} times for region {region}");
        }
        Ok(())
    }

    /// The strata answer a fetch, if it is still under way; and now and then if it is not.
    pub(super) fn strata_answer(&mut self, node: u32, number: u32, chunk: Chunk) -> Step {
        let under_way = self.member(node).books.upstream.get(&chunk) == Some(&number);
        let weather = if self.member(node).no_strata { Weather::Down } else { self.strata.weather };
        let failed = match weather {
            Weather::Fine | Weather::Slow => self.chance(self.chances.strata).then_some(Failure::Unreachable),
            Weather::Down => Some(Failure::Unreachable),
            Weather::Flaky => self.chance(3).then_some(Failure::Unreachable),
            Weather::Rubbish => self.chance(2).then_some(Failure::WrongBytes),
            Weather::Refusing => Some(Failure::Refused),
            Weather::Hang => {
                if under_way {
                    let life = self.member(node).life;
                    self.after_ms(500, Happening::Strata { node, life, number, chunk });
                }
                return Ok(());
            }
        };
        if !under_way {
            // It was called off; the bytes may come all the same.
            if failed.is_none() && self.chance(3) {
                return self.arrived(node, chunk, Source::Strata, Bytes::of(chunk));
            }
            return Ok(());
        }
        self.member_mut(node).books.upstream.remove(&chunk);
        match failed {
            Some(why) => self.input(node, Input::Failed { chunk, from: Source::Strata, why }),
            None => self.arrived(node, chunk, Source::Strata, Bytes::of(chunk)),
        }
    }

    /// A look-up: a few of those who announced the segment, dead or alive.
    pub(super) fn find_providers(&mut self, node: u32, segment: Segment) {
        let known = self.dht.records.get(&segment).cloned().unwrap_or_default();
        let start = self.net_rng.below(known.len());
        let found = (0..known.len().min(PROVIDERS_MAX)).map(|step| Peer(known[(start + step) % known.len()]));
        let peers: Vec<Peer> = found.filter(|peer| peer.0 != node).collect();
        if self.dht.silent {
            return;
        }
        let late = if self.stormy && self.net_below(10) == 0 { 6_000 } else { 0 };
        let millis = 10 + self.net_below(200) + late;
        let life = self.member(node).life;
        self.after_ms(millis, Happening::Dht { node, life, segment, peers });
    }

    /// The DHT answers. Who is not known is met without a cell; who is known in the own cell is SWIM's business.
    pub(super) fn dht_answers(&mut self, node: u32, segment: Segment, peers: Vec<Peer>) -> Step {
        for peer in &peers {
            self.meet(node, peer.0, false)?;
            if !self.is_own_member(node, peer.0) {
                self.set_up(node, peer.0, true)?;
            }
        }
        self.input(node, Input::Providers { segment, peers })
    }
}
