//! The DHT: as a port, and a model of the real one (`src/mesh/dht/`) that says when an answer comes, what is in it, and how many requests
//! it took. No request is simulated by itself.
//!
//! *Hops*. With buckets of k contacts a request brings a look-up to its goal in about ln n / H_k hops, H_k being the k-th harmonic number (Cai,
//! Devroye: "A probabilistic analysis of Kademlia networks", ISAAC 2013). libp2p has k = 20, H_20 = 3.6, so each hop leaves a 36th of all
//! nodes. Of each hop's requests, as many as are made at once, the first answer counts; whom they go to is drawn.
//!
//! *Requests*. In the hops and in one round more all requests that may be made at once, and one to each replica: 17 with 60 nodes, and 25 for an
//! announcement, which tells each replica. 18 and 26 were measured (`docs/mesh-protocol.md`).

use super::network::Delays;
use crate::mesh::proto::{Peer, Segment};
use crate::model::mix;
use std::collections::{BTreeMap, VecDeque};

/// To how many of all nodes a hop brings one nearer: e to the power of H_20.
const NEARER: u64 = 36;
/// The node's own constants (`src/mesh/dht/`): nodes that hold a record, and requests at once.
const REPLICAS: u64 = 8;
const PARALLEL: u64 = 3;
/// A look-up ends when it knows so many providers, or so long after it knew the first.
const FOUND_ENOUGH: usize = 8;
const FOUND_PAUSE_NS: u64 = 300_000_000;
/// One that reaches nobody ends after this.
const FIND_TIMEOUT_NS: u64 = 10_000_000_000;
/// Records of a key, and of them of one cell.
const PER_KEY: usize = 32;
const PER_CELL: usize = 4;
/// How long a record lives, and when it is announced again (the mean).
const TTL_NS: u64 = 12 * 3_600 * 1_000_000_000;
const REPEAT_NS: u64 = 7 * 1_800 * 1_000_000_000;
/// Announcements of a node: one in so long, and so many at once after a quiet time.
const ANNOUNCE_EACH_NS: u64 = 250_000_000;
const ANNOUNCE_BURST: u64 = 32;
/// Providers that are dialled, and for how long: at most, and from the first answer on.
const DIALLED_MAX: usize = 16;
const DIAL_LIMIT_NS: u64 = 2_000_000_000;
const OTHERS_LIMIT_NS: u64 = 300_000_000;
/// Ways there and back that count as near as the nearest: up to twice its own and this.
const NOISE_NS: u64 = 2_000_000;
/// Ways there and back of a request to somebody to whom there is no connection: that is made first.
const TRIPS: u64 = 2;
/// Sets these draws apart from all other randomness.
const LOOKUPS: u64 = 0x006c_6f6f_6b75_7073;

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// In which step.
    pub(super) at: u64,
    /// Whom, the nearest first.
    pub(super) peers: Vec<Peer>,
}

/// What a directory has to know of the fleet.
pub(super) struct Around<'a> {
    pub(super) delays: &'a Delays,
    /// The cell and the region of a node.
    pub(super) place: &'a dyn Fn(u32) -> (u32, u32),
    /// Whether one node gets an answer from another.
    pub(super) reaches: &'a dyn Fn(u32, u32) -> bool,
}

/// Where nodes say what they have, and ask who has something.
pub(super) trait Directory: std::fmt::Debug {
    /// A node says that it has something of a segment. Others find it some time later.
    fn announce(&mut self, now: u64, from: u32, segment: Segment, around: &Around<'_>);

    /// A node asks who has something of a segment.
    fn find(&mut self, now: u64, from: u32, segment: Segment, around: &Around<'_>) -> Found;

    /// A node dies. What it said stays until it expires.
    fn died(&mut self, now: u64, node: u32);

    /// Requests so far.
    fn requests(&self) -> u64;
}

#[derive(Clone, Copy, Debug)]
struct Record {
    node: u32,
    cell: u32,
    /// From when on others find it.
    from: u64,
}

/// Kademlia as the nodes speak it.
#[derive(Debug)]
pub(super) struct Kademlia {
    nodes: u64,
    hops: u64,
    step_ns: u64,
    /// What each request costs both ends beside its ways, in steps.
    service: u64,
    salt: u64,
    /// By segment, the oldest first.
    records: BTreeMap<u32, VecDeque<Record>>,
    /// By node: until when its announcements use up what it may begin.
    used: BTreeMap<u32, u64>,
    died: BTreeMap<u32, u64>,
    drawn: u64,
    requests: u64,
}

impl Kademlia {
    /// Of so many nodes, in steps of `step_ns`; each request costs `service_us` beside its ways.
    pub(super) fn new(nodes: u32, seed: u64, step_ns: u64, service_us: u64) -> Self {
        let (mut hops, mut reach) = (1, NEARER);
        while reach < u64::from(nodes) {
            (hops, reach) = (hops + 1, reach * NEARER);
        }
        Self {
            nodes: u64::from(nodes),
            hops,
            step_ns,
            service: (service_us * 1_000).div_ceil(step_ns),
            salt: mix(seed ^ LOOKUPS),
            records: BTreeMap::new(),
            used: BTreeMap::new(),
            died: BTreeMap::new(),
            drawn: 0,
            requests: 0,
        }
    }

    fn steps(&self, nanos: u64) -> u64 {
        nanos.div_ceil(self.step_ns).max(1)
    }

    /// How long a round takes until the first answer, if there is one: those who are asked are drawn.
    fn round(&mut self, from: u32, around: &Around<'_>) -> Option<u64> {
        let mut least: Option<u64> = None;
        for _ in 0..PARALLEL {
            self.drawn += 1;
            let to = u32::try_from(mix(self.salt ^ self.drawn) % self.nodes).unwrap_or(0);
            if (around.reaches)(from, to) {
                let there_and_back = around.delays.way(from, to) + around.delays.way(to, from);
                let takes = TRIPS * there_and_back + self.service;
                least = Some(least.map_or(takes, |least| least.min(takes)));
            }
        }
        least
    }

    /// How long so many rounds take. Who gets no answer in one has asked others by then.
    fn rounds(&mut self, count: u64, from: u32, around: &Around<'_>) -> Option<u64> {
        let mut all = 0;
        let mut reached = false;
        for _ in 0..count {
            if let Some(takes) = self.round(from, around) {
                (all, reached) = (all + takes, true);
            }
        }
        reached.then_some(all)
    }

    fn count_requests(&mut self) {
        self.requests += PARALLEL * (self.hops + 1) + REPLICAS;
    }

    /// Whether a record is there at a step: whoever lives announces it again and again.
    fn is_there(&self, record: &Record, at: u64) -> bool {
        let [ttl, repeat] = [TTL_NS, REPEAT_NS].map(|nanos| self.steps(nanos));
        let died = self.died.get(&record.node).copied().filter(|died| *died >= record.from);
        let last = died.map(|died| record.from + (died - record.from) / repeat * repeat);
        record.from <= at && last.is_none_or(|last| at < last + ttl)
    }

    /// Dials those that were found. How long that takes, and who is asked then: those of the own region, or else those about as near
    /// as the nearest.
    fn reach(&self, from: u32, mut found: Vec<u32>, around: &Around<'_>) -> (u64, Vec<Peer>) {
        found.retain(|node| *node != from);
        // In the order of their keys, which says nothing.
        found.sort_by_key(|node| mix(self.salt ^ u64::from(*node) << 20));
        found.truncate(DIALLED_MAX);
        let trip = |node: u32| around.delays.way(from, node) + around.delays.way(node, from);
        let count = found.len();
        found.retain(|node| (around.reaches)(from, *node));
        let mut near: Vec<(u64, u32)> = found.into_iter().map(|node| (trip(node), node)).collect();
        near.sort_unstable();
        let (Some(first), Some(last)) = (near.first().copied(), near.last().copied()) else {
            return (if count == 0 { 0 } else { self.steps(DIAL_LIMIT_NS) }, Vec::new());
        };
        let latest = first.0 + self.service + self.steps(OTHERS_LIMIT_NS);
        let all_answer = near.len() == count;
        let takes = if all_answer { (last.0 + self.service).min(latest) } else { latest };
        near.retain(|(trip, _)| trip + self.service <= latest);
        let region = (around.place)(from).1;
        if near.iter().any(|(_, node)| (around.place)(*node).1 == region) {
            near.retain(|(_, node)| (around.place)(*node).1 == region);
        } else {
            let most = 2 * first.0 + NOISE_NS / self.step_ns;
            near.retain(|(trip, _)| *trip <= most);
        }
        (takes, near.into_iter().map(|(_, node)| Peer(node)).collect())
    }
}

impl Directory for Kademlia {
    fn announce(&mut self, now: u64, from: u32, segment: Segment, around: &Around<'_>) {
        let each = self.steps(ANNOUNCE_EACH_NS);
        let used = self.used.get(&from).copied().unwrap_or(0).max(now);
        let begins = now.max(used.saturating_sub(ANNOUNCE_BURST * each));
        self.used.insert(from, used + each);
        self.count_requests();
        self.requests += REPLICAS;
        let rounds = self.hops + REPLICAS.div_ceil(PARALLEL);
        // Who reaches nobody tries again later, which is not modelled.
        let Some(takes) = self.rounds(rounds, from, around) else { return };
        let record = Record { node: from, cell: (around.place)(from).0, from: begins + takes };
        let records = self.records.entry(segment.0).or_default();
        records.retain(|other| other.node != from);
        if records.iter().filter(|other| other.cell == record.cell).count() >= PER_CELL
            && let Some(oldest) = records.iter().position(|other| other.cell == record.cell)
        {
            records.remove(oldest);
        }
        if records.len() >= PER_KEY {
            records.pop_front();
        }
        records.push_back(record);
    }

    fn find(&mut self, now: u64, from: u32, segment: Segment, around: &Around<'_>) -> Found {
        self.count_requests();
        let Some(hops) = self.rounds(self.hops, from, around) else {
            return Found { at: now + self.steps(FIND_TIMEOUT_NS), peers: Vec::new() };
        };
        let rest = self.rounds(REPLICAS.div_ceil(PARALLEL), from, around).unwrap_or(0);
        let at = now + hops;
        let records = self.records.get(&segment.0);
        let found: Vec<u32> = records
            .into_iter()
            .flatten()
            .filter(|record| self.is_there(record, at))
            .map(|record| record.node)
            .collect();
        let pause = match found.len() {
            0 => rest,
            few if few < FOUND_ENOUGH => rest.min(self.steps(FOUND_PAUSE_NS)),
            _ => 0,
        };
        let (dials, peers) = self.reach(from, found, around);
        Found { at: at + pause + dials, peers }
    }

    fn died(&mut self, now: u64, node: u32) {
        self.died.insert(node, now);
    }

    fn requests(&self) -> u64 {
        self.requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::scenario::Scenario;

    /// 120 nodes in four cells of four regions, 20 ms from each other; steps of 0.5 ms.
    fn delays() -> Delays {
        let small = crate::sim::tests::SMALL;
        let mut scenario = Scenario::parse(small).unwrap();
        (scenario.fleet.regions, scenario.fleet.cells_per_region, scenario.fleet.nodes) = (4, 1, 120);
        scenario.network.latency_us = 500;
        scenario.network.region_latency_us = crate::sim::network::RegionLatency::Same(20_000);
        Delays::new(&scenario, 1, 500_000, |node| node / 30)
    }

    fn with<T>(dead: &[u32], work: impl FnOnce(&Around<'_>) -> T) -> T {
        let delays = delays();
        let reaches = |_: u32, to: u32| !dead.contains(&to);
        work(&Around { delays: &delays, place: &|node| (node / 30, node / 30), reaches: &reaches })
    }

    fn kademlia(nodes: u32) -> Kademlia {
        Kademlia::new(nodes, 5, 500_000, 2_000)
    }

    const KEY: Segment = Segment(3);
    /// Steps of a second.
    const SECOND: u64 = 2_000;

    #[test]
    fn a_request_more_for_every_36_times_as_many_nodes() {
        let hops = |nodes: u32| kademlia(nodes).hops;
        assert_eq!([1, 36, 37, 1_296, 1_297, 1_000_000].map(hops), [1, 1, 2, 2, 3, 4]);
        with(&[], |around| {
            let mut dht = kademlia(60);
            dht.find(0, 1, KEY, around);
            assert_eq!(dht.requests(), 17, "18 were measured");
            dht.announce(0, 1, KEY, around);
            assert_eq!(dht.requests(), 17 + 25, "26 were measured");
        });
    }

    #[test]
    fn a_record_is_found_when_it_was_told_and_not_before() {
        with(&[], |around| {
            let mut dht = kademlia(120);
            assert_eq!(dht.find(0, 7, KEY, around).peers, []);
            dht.announce(0, 8, KEY, around);
            assert_eq!(dht.find(0, 7, KEY, around).peers, [], "it takes some rounds of 80 ms or less");
            let found = dht.find(SECOND, 7, KEY, around);
            assert_eq!(found.peers, [Peer(8)]);
            // Two hops, a pause of 300 ms at most and a dial within the region, in steps of half a millisecond.
            assert!((SECOND + 12..=SECOND + 2 * 164 + 600 + 6).contains(&found.at), "{}", found.at);
            assert_eq!(dht.find(SECOND, 7, Segment(4), around).peers, []);
        });
    }

    #[test]
    fn of_a_cell_four_are_known_and_those_of_the_own_region_are_asked() {
        with(&[], |around| {
            let mut dht = kademlia(120);
            (0..120).for_each(|node| dht.announce(0, node, KEY, around));
            let records = &dht.records[&KEY.0];
            assert_eq!(records.iter().map(|record| record.node).collect::<Vec<_>>().len(), 16);
            let found = dht.find(10 * SECOND, 5, KEY, around);
            assert_eq!(found.peers, [26, 27, 28, 29].map(Peer), "the newest of the own cell");
            (0..40).for_each(|segment| dht.announce(20 * SECOND, 5, Segment(100 + segment), around));
            let last = dht.records[&139].front().unwrap().from;
            let first = dht.records[&100].front().unwrap().from;
            assert!(last - first > SECOND && last - first < 3 * SECOND, "32 at once, then four a second");
        });
    }

    #[test]
    fn who_is_dead_is_dialled_in_vain_and_forgotten_after_twelve_hours() {
        let found = |dead: &[u32], at: u64| {
            let mut dht = with(&[], |around| {
                let mut dht = kademlia(120);
                [40, 70].into_iter().for_each(|node| dht.announce(0, node, KEY, around));
                dht
            });
            dead.iter().for_each(|node| dht.died(10 * SECOND, *node));
            with(dead, |around| dht.find(at, 5, KEY, around))
        };
        let at = 20 * SECOND;
        assert_eq!(found(&[], at).peers, [40, 70].map(Peer), "both as far");
        let one = found(&[40], at);
        assert_eq!(one.peers, [Peer(70)]);
        assert!(one.at >= at + 600 + 80, "it waits for the other for 300 ms");
        assert_eq!(found(&[40, 70], at).peers, []);
        assert!(found(&[40, 70], at).at >= at + 2 * SECOND, "a dial takes two seconds at most");
        let day = 13 * 3_600 * SECOND;
        assert_eq!(found(&[], day).peers.len(), 2, "the living announce it again");
        assert!(found(&[40, 70], day).at < day + SECOND, "nobody is dialled");
    }

    #[test]
    fn who_reaches_nobody_waits_for_ten_seconds() {
        let all: Vec<u32> = (0..120).collect();
        let found = with(&all, |around| kademlia(120).find(0, 5, KEY, around));
        assert_eq!(found, Found { at: 10 * SECOND, peers: Vec::new() });
    }
}
