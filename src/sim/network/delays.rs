//! How long messages are on their way: latencies between regions, and what it costs when one is lost.
//!
//! QUIC sends again what was lost. A message is small and often the last that is sent for a while, so that no later packet shows
//! the loss: it is sent again when the probe timeout ends, after the smoothed round trip + max(4 variations, 1 ms) + the
//! longest delay of an acknowledgement (RFC 9002, section 6.2.1), each time after twice as long (the same section). Without
//! jitter the variation is 0, and 25 ms are what an end assumes of the other's acknowledgements unless told otherwise
//! (RFC 9000, section 18.2). Where more traffic follows on the same connection real losses show sooner: three later packets
//! suffice (RFC 9002, section 6.1.1).

use super::keys::RegionLatency;
use crate::model::{Generator, Rng, mix};
use crate::sim::scenario::Scenario;
use std::collections::BTreeMap;

/// Sets losses apart from all other randomness.
const LOSSES: u64 = 0x6c6f_7373_6573;
/// 1 ms of granularity and 25 ms of delayed acknowledgement, in nanoseconds.
const PROBE_NS: u64 = 26_000_000;
/// Most times that a message is lost one after the other: by then its delay is 63 probe timeouts.
const LOST_MAX: u32 = 6;
/// The region of the stratum, which is in none.
const NOWHERE: u16 = u16::MAX;
/// Late messages above which those that arrived meanwhile are forgotten.
const LATE_MIN: usize = 4_096;

/// Latencies and losses of a scenario, in steps. A clone knows nothing of messages that are late already.
#[derive(Clone, Debug)]
pub(in crate::sim) struct Delays {
    /// Within a region and to the stratum.
    near: u64,
    /// By region of the sender and of the receiver. Empty with one region.
    between: Vec<u64>,
    regions: usize,
    /// By end, with more than one region.
    region_of: Vec<u16>,
    step_ns: u64,
    loss: Option<Loss>,
    contacts: Option<Contacts>,
}

/// Connections by who made them, where that takes time.
#[derive(Clone, Debug)]
struct Contacts {
    /// What a handshake takes beside its ways.
    steps: u64,
    /// By who made it and to whom, when it is there.
    ready: BTreeMap<(u32, u32), u64>,
}

#[derive(Clone, Debug)]
struct Loss {
    per_mille: usize,
    seed: u64,
    /// By sender, receiver and stream, when a message arrives that was lost at first: what follows it on its stream cannot
    /// overtake it.
    late: BTreeMap<(u32, u32, u32), u64>,
    /// How many of them are tolerated.
    late_max: usize,
}

impl Delays {
    /// Those of a scenario; `region_of` knows the region of a node.
    pub(in crate::sim) fn new(
        scenario: &Scenario,
        seed: u64,
        step_ns: u64,
        region_of: impl Fn(u32) -> u32,
    ) -> Self {
        let (fleet, network) = (&scenario.fleet, &scenario.network);
        let steps = |latency_us: u64| (latency_us * 1_000).div_ceil(step_ns).max(1);
        let regions = fleet.regions as usize;
        let between = match &network.region_latency_us {
            _ if regions == 1 => Vec::new(),
            RegionLatency::Same(latency_us) => vec![steps(*latency_us); regions * regions],
            RegionLatency::Matrix(rows) => rows.iter().flatten().map(|own| steps(*own)).collect(),
        };
        let nodes = if regions == 1 { 0 } else { fleet.nodes };
        let loss = (network.loss_per_mille > 0).then(|| Loss {
            per_mille: network.loss_per_mille as usize,
            seed: mix(seed ^ LOSSES),
            late: BTreeMap::new(),
            late_max: LATE_MIN,
        });
        Self {
            near: steps(network.latency_us),
            between,
            regions,
            region_of: (0..nodes).map(|node| u16::try_from(region_of(node)).unwrap_or(u16::MAX)).collect(),
            step_ns,
            loss,
            contacts: (network.connect_us > 0).then(|| Contacts {
                steps: (network.connect_us * 1_000).div_ceil(step_ns),
                ready: BTreeMap::new(),
            }),
        }
    }

    /// For how many more steps an ask waits until there is a connection: with the first one from a node to another, one is made, which is a
    /// way there and back, with the same waits at links, before it (RFC 9001, section 4.1: the client may send with the end of the handshake).
    pub(in crate::sim) fn connects(&mut self, now: u64, from: u32, to: u32, waits: u64) -> u64 {
        let there_and_back = self.way(from, to) + self.way(to, from) + 2 * waits;
        let Some(contacts) = &mut self.contacts else { return 0 };
        let ready = contacts.ready.entry((from, to)).or_insert(now + there_and_back + contacts.steps);
        ready.saturating_sub(now)
    }

    /// The connections of those who died are no more.
    pub(in crate::sim) fn forget(&mut self, dies: impl Fn(u32) -> bool) {
        if let Some(contacts) = &mut self.contacts {
            contacts.ready.retain(|(from, to), _| !dies(*from) && !dies(*to));
        }
    }

    /// Adds a strategy's servers, the ends after the stratum, by their regions.
    pub(in crate::sim) fn add_servers(&mut self, regions: impl Iterator<Item = u32>) {
        if self.regions > 1 {
            self.region_of.push(NOWHERE);
            self.region_of.extend(regions.map(|region| u16::try_from(region).unwrap_or(NOWHERE)));
        }
    }

    /// Steps from one end to another. The stratum is as near to each region as its own nodes are.
    pub(in crate::sim) fn way(&self, from: u32, to: u32) -> u64 {
        let region = |end: u32| {
            let region = self.region_of.get(end as usize).copied();
            region.filter(|region| *region != NOWHERE).map(usize::from)
        };
        match (region(from), region(to)) {
            (Some(from), Some(to)) if from != to => self.between[from * self.regions + to],
            _ => self.near,
        }
    }

    /// The step in which a message arrives that is sent now and waits so many steps at links. Messages of the same `stream`
    /// keep their order.
    pub(in crate::sim) fn arrival(&mut self, now: u64, from: u32, to: u32, stream: u32, waits: u64) -> u64 {
        let way = self.way(from, to);
        let Some(loss) = &mut self.loss else { return now + way + waits };
        let probe_ns = 2 * way * self.step_ns + PROBE_NS;
        loss.arrival(now, (from, to, stream), now + way + waits, probe_ns.div_ceil(self.step_ns))
    }
}

impl Loss {
    fn arrival(&mut self, now: u64, key: (u32, u32, u32), in_time: u64, probe: u64) -> u64 {
        let lost = self.times_lost(now, key.0, key.1);
        let mut arrival = in_time + probe * ((1 << lost) - 1);
        if let Some(earlier) = self.late.get(&key) {
            arrival = arrival.max(*earlier);
        }
        if lost > 0 {
            self.late.insert(key, arrival);
            if self.late.len() > self.late_max {
                self.late.retain(|_, arrival| *arrival > now);
                self.late_max = LATE_MIN.max(2 * self.late.len());
            }
        }
        arrival
    }

    /// How often what is sent now is lost. All that goes from one end to the same other in one step is one packet and shares its
    /// fate, so it needs no memory of what was drawn, and does not depend on what others send.
    fn times_lost(&self, now: u64, from: u32, to: u32) -> u32 {
        let ends = u64::from(from) << 32 | u64::from(to);
        let mut rng = Generator::new(mix(self.seed ^ mix(now) ^ mix(!ends)));
        (0..LOST_MAX).take_while(|_| rng.below(1_000) < self.per_mille).fold(0, |lost, _| lost + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::network::testing::scenario;

    fn delays(network: &str, regions: u32) -> Delays {
        let text = format!("{network}\n");
        let mut scenario = scenario(40, [regions, 1, 1], "", "");
        let network: toml::Table = text.parse().unwrap();
        if let Some(latency) = network.get("region_latency_us") {
            scenario.network.region_latency_us = latency.clone().try_into().unwrap();
        }
        if let Some(loss) = network.get("loss_per_mille") {
            scenario.network.loss_per_mille = loss.clone().try_into().unwrap();
        }
        if let Some(connect) = network.get("connect_us") {
            scenario.network.connect_us = connect.clone().try_into().unwrap();
        }
        Delays::new(&scenario, 1, 100_000, |node| node * regions / 40)
    }

    #[test]
    fn regions_are_as_far_apart_as_the_matrix_says_in_each_direction() {
        let matrix = "region_latency_us = [[0, 1_000, 30_000], [2_000, 0, 250], [40_000, 5_000, 0]]";
        let delays = delays(matrix, 3);
        let way = |from: u32, to: u32| delays.way(from * 14, to * 14);
        assert_eq!([way(0, 1), way(1, 0), way(0, 2), way(2, 0), way(1, 2)], [10, 20, 300, 400, 3]);
        assert_eq!([way(1, 1), delays.way(40, 39)], [5, 5], "within a region and from the stratum");
    }

    #[test]
    fn servers_are_as_far_away_as_their_regions_and_the_stratum_is_near_to_them() {
        let mut delays = delays("region_latency_us = 7_000", 4);
        delays.add_servers([0, 3].into_iter());
        let [stratum, first, second] = [40, 41, 42];
        assert_eq!([delays.way(first, 0), delays.way(first, 39), delays.way(second, 39)], [5, 70, 5]);
        assert_eq!(
            [delays.way(stratum, first), delays.way(first, second), delays.way(9, stratum)],
            [5, 70, 5]
        );
    }

    #[test]
    fn one_number_holds_between_any_two_regions_and_nothing_with_one() {
        assert_eq!(delays("region_latency_us = 7_000", 4).way(0, 39), 70);
        assert_eq!(delays("region_latency_us = 7_000", 1).way(0, 39), 5);
    }

    #[test]
    fn as_many_messages_are_late_as_are_lost_each_by_whole_probe_timeouts() {
        let mut delays = delays("loss_per_mille = 100", 1);
        let mut late = [0_u32; 8];
        for now in 0..20_000 {
            // 5 steps of way, and a probe timeout of 2 x 0.5 ms + 26 ms = 270 steps.
            let delay = delays.arrival(now, 1, 2, u32::try_from(now).unwrap(), 3) - now - 8;
            let times = (0..8).find(|times| delay == 270 * ((1 << times) - 1)).unwrap();
            late[times] += 1;
        }
        assert!((1_700..1_900).contains(&late[1]) && (140..220).contains(&late[2]), "{late:?}");
        assert!(late[0] > 17_800 && late[7] == 0, "{late:?}");
    }

    #[test]
    fn the_first_ask_waits_for_a_connection_and_those_behind_it_as_long_as_it_takes() {
        let mut delays = delays("connect_us = 2_000", 1);
        // 5 steps of way, 20 of processors.
        let waits = |delays: &mut Delays, now: u64, to: u32| delays.connects(now, 1, to, 3);
        assert_eq!(waits(&mut delays, 100, 2), 5 + 5 + 6 + 20);
        assert_eq!([110, 136, 500].map(|now| waits(&mut delays, now, 2)), [26, 0, 0]);
        assert_eq!((waits(&mut delays, 500, 3), delays.connects(500, 2, 1, 0)), (36, 30), "each has its own");
        delays.forget(|node| node == 3);
        assert_eq!((waits(&mut delays, 900, 3), waits(&mut delays, 900, 2)), (36, 0));
        assert_eq!(self::delays("", 1).connects(1, 2, 3, 4), 0);
    }

    #[test]
    fn nothing_overtakes_on_its_own_stream_and_all_may_on_others() {
        let mut delays = delays("loss_per_mille = 300", 1);
        let (mut last, mut overtook) = (0, false);
        for now in 0..5_000 {
            let own = delays.arrival(now, 1, 2, 7, 0);
            assert!(own >= last, "{now}: {own} before {last}");
            last = own;
            overtook |= delays.arrival(now + 1, 1, 2, 100 + u32::try_from(now).unwrap(), 0) < own;
        }
        assert!(overtook);
    }

    #[test]
    fn late_messages_are_forgotten_when_they_arrived() {
        let mut delays = delays("loss_per_mille = 500", 1);
        for now in 0..200_000 {
            delays.arrival(now, 1, 2, u32::try_from(now).unwrap(), 0);
        }
        assert!(delays.loss.as_ref().unwrap().late.len() < 40_000);
    }
}
