//! The origin budget: it holds, the most urgent go first, it refuses nothing, and it uses holders that appear.

use super::node_tests::{One, asked_of};
use super::testing::Net;
use super::*;
use crate::model::{Class, Time};
use std::collections::BTreeMap;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn budget(bytes_per_s: u64, burst_bytes: u64) -> Settings {
    Settings {
        origin_bytes_per_s: bytes_per_s,
        origin_burst_bytes: burst_bytes,
        // The tests look at long waits; how long one source may make a node wait is another matter.
        wait_max_s: 600,
        ..Settings::default()
    }
}

fn fetched(outputs: &[Output]) -> Vec<u32> {
    let fetched = outputs.iter().filter_map(|output| match output {
        Output::FetchUpstream { chunk } => Some(chunk.0),
        _ => None,
    });
    fetched.collect()
}

#[test]
fn the_budget_is_spent_on_reads_then_prefetches_then_fills() {
    let mut one = One::new(1, budget(MIB, MIB));
    assert_eq!(fetched(&one.want(Chunk(0), Class::Fill)), [0], "the bucket is full at first");
    for (chunk, class) in [(1, Class::Fill), (2, Class::Prefetch), (3, Class::Read), (4, Class::Read)] {
        assert_eq!(fetched(&one.want(Chunk(chunk), class)), [0; 0]);
    }
    one.input(Input::Arrived { chunk: Chunk(0), from: Source::Strata });
    let mut order = Vec::new();
    for _ in 0..4 {
        let begun = fetched(&one.pass(Duration::from_millis(1_001)));
        assert!(begun.len() <= 1, "one chunk a second: {begun:?}");
        for chunk in &begun {
            one.input(Input::Arrived { chunk: Chunk(*chunk), from: Source::Strata });
        }
        order.extend(begun);
    }
    assert_eq!(order, [3, 4, 2, 1]);
    assert_eq!(one.core.counts().origin_delays, 4, "each stood first in line once");
}

#[test]
fn a_read_does_not_wait_for_room_at_the_strata_behind_prefetches() {
    let bytes = 2 * u64::from(super::testing::LEN_BYTES);
    let settings = Settings { upstream_min: 2, upstream_first_bytes: bytes, ..Settings::default() };
    let mut one = One::new(1, settings);
    for (chunk, begun) in [(0, &[0][..]), (1, &[1]), (2, &[])] {
        assert_eq!(fetched(&one.want(Chunk(chunk), Class::Prefetch)), begun);
    }
    assert_eq!(fetched(&one.want(Chunk(3), Class::Read)), [3], "those do not count for it");
    assert_eq!(fetched(&one.want(Chunk(2), Class::Read)), [2], "nor when it stood in line as one of them");
    assert_eq!(fetched(&one.want(Chunk(4), Class::Read)), [0; 0], "reads do");
}

#[test]
fn what_is_wanted_soon_travels_with_what_is_under_way_of_its_slice_whatever_the_room() {
    let settings =
        Settings { upstream_min: 1, upstream_first_bytes: 1, upstream_max: 4, ..Settings::default() };
    let mut one = One::with_chunks(1, 4, settings);
    assert_eq!(fetched(&one.want(Chunk(0), Class::Prefetch)), [0]);
    assert_eq!(fetched(&one.want(Chunk(4), Class::Prefetch)), [0; 0], "of another slice");
    assert_eq!(fetched(&one.want(Chunk(1), Class::Fill)), [0; 0], "wanted some time");
    assert_eq!(fetched(&one.want(Chunk(2), Class::Prefetch)), [2]);
    assert_eq!(fetched(&one.want(Chunk(3), Class::Prefetch)), [3]);
    assert_eq!(
        fetched(&one.want(Chunk(1), Class::Prefetch)),
        [0; 0],
        "a quarter of the bound is left to reads"
    );
    assert_eq!(fetched(&one.want(Chunk(1), Class::Read)), [1]);
    one.input(Input::Arrived { chunk: Chunk(0), from: Source::Strata });
    assert_eq!(fetched(&one.want(Chunk(5), Class::Read)), [0; 0], "of another slice, beside a read");
    for chunk in [1, 2] {
        let went = fetched(&one.input(Input::Arrived { chunk: Chunk(chunk), from: Source::Strata }));
        assert_eq!(went, if chunk == 1 { vec![5] } else { vec![4] }, "with room, and then with company");
    }
}

#[test]
fn a_chunk_that_the_budget_holds_back_is_taken_from_a_holder_that_appears() {
    let mut one = One::new(20, budget(1, MIB));
    let first = one.ranked(0);
    let second = (first.0 + 1..400)
        .map(Chunk)
        .find(|chunk| one.core.peers().home(Slice(chunk.0), 0) == Some(Peer(0)))
        .unwrap();
    let miss = |one: &mut One, chunk| {
        let mut outputs = one.want(chunk, Class::Read);
        for rank in [1, 2] {
            assert_eq!(asked_of(&outputs), [one.home(chunk, rank)]);
            let missing = Answer::Missing { holders: Holders::new() };
            outputs = one.told(one.home(chunk, rank), chunk, missing);
        }
        outputs
    };
    assert_eq!(fetched(&miss(&mut one, first)), [first.0]);
    assert_eq!(fetched(&miss(&mut one, second)), [0; 0], "twelve days later");
    let again = one.pass(Duration::from_millis(u64::from(Settings::default().origin_look_ms)));
    let next = one.home(second, 1);
    assert!(asked_of(&again).contains(&next), "{again:?}");
    let delivered = one.input(Input::Arrived { chunk: second, from: Source::Peer(next) });
    assert!(delivered.contains(&Output::Deliver { chunk: second }));
    assert_eq!((one.core.counts().origin_delays, one.core.counts().origin_spared), (1, 1));
}

#[test]
fn in_a_swarm_no_node_exceeds_its_budget_and_every_read_succeeds() {
    let (rate, burst) = (2 * MIB, MIB);
    for seed in 0..10 {
        let cells: Vec<(u32, u32)> = (0..12).map(|node| (node / 6, 0)).collect();
        let mut net = Net::new(&cells, 60, budget(rate, burst), seed);
        for number in 0..12 {
            for chunk in (0..60).map(Chunk) {
                net.want(Peer(number), chunk, Class::Read, Duration::from_secs(60));
            }
        }
        net.run(Time::ZERO + Duration::from_secs(60));
        assert_eq!((net.open_wants(), net.results.len()), (0, 12 * 60));
        assert!(net.results.iter().all(|result| result.2.is_ok()), "delayed, not refused: seed {seed}");
        let mut taken: BTreeMap<Peer, Vec<Time>> = BTreeMap::new();
        for (at, who, output) in &net.log {
            if matches!(output, Output::FetchUpstream { .. }) {
                taken.entry(*who).or_default().push(*at);
            }
        }
        assert!(taken.values().any(|times| times.len() > 6), "somebody is delayed: {taken:?}");
        for times in taken.values() {
            for (first, from) in times.iter().enumerate() {
                for (last, to) in times.iter().enumerate().skip(first) {
                    let bytes = (last - first + 1) as f64 * f64::from(super::testing::LEN_BYTES);
                    let most = burst as f64 + (*to - *from).as_secs_f64() * rate as f64 + 1.0;
                    assert!(bytes <= most, "{bytes} bytes, {most} are allowed, seed {seed}");
                }
            }
        }
    }
}
