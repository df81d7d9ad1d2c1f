//! What all three models promise.

use super::testing::scenario;
use super::*;
use crate::model::{Generator, Rng};
use proptest::prelude::*;

const MODELS: [Model; 3] = [Model::Fluid, Model::Exact, Model::Fifo];
/// The part of a step's capacity that fluid lets end early, at most.
const HALF_STEP: f64 = 0.5;
const SHARED: &str = "rack_up_mbit_s = 1_500\ncell_down_mbit_s = 2_500\nregion_up_mbit_s = 3_000\n";

/// Twenty-four nodes of three classes in two regions, which share links if that is said, in steps of 1 ms.
fn traffic(model: Model, shares: bool) -> Traffic<u32> {
    let classes = "[[fleet.class]]\nname = 'slow'\nnodes = 5\nup_mbit_s = 200\ndown_mbit_s = 300\n\
                   [[fleet.class]]\nname = 'fast'\nnodes = 3\nup_mbit_s = 2_000\ndown_mbit_s = 4_000\n";
    let scenario = scenario(24, [2, 2, 2], classes, if shares { SHARED } else { "" });
    Traffic::alone(model, Links::new(&scenario, 1, 1_000_000))
}

/// Moves everything to its end. Returns when each ended.
fn finish(traffic: &mut Traffic<u32>) -> Vec<(u32, u64)> {
    let (mut ended, mut ends) = (Vec::new(), Vec::new());
    for now in 1..100_000 {
        if traffic.is_idle() {
            return ends;
        }
        traffic.step(&mut ended);
        ends.extend(ended.drain(..).map(|flow| (flow.what, now)));
    }
    panic!("{} transfers do not end", traffic.under_way);
}

fn any_flow(rng: &mut Generator, what: u32) -> Flow<u32> {
    let from = rng.below(25);
    let to = (from + 1 + rng.below(23)) % 24;
    let [from, to] = [from, to].map(|end| u32::try_from(end).unwrap());
    Flow { from, to, what }
}

#[test]
fn a_transfer_alone_takes_as_long_as_its_slowest_link_needs() {
    for model in MODELS {
        for shares in [false, true] {
            let mut traffic = traffic(model, shares);
            for number in 0..24 {
                let (from, to) = (number, (number + 7) % 24);
                let path = traffic.links.path(from, to);
                let slowest = path.links().iter().map(|link| traffic.links.rates()[*link as usize]);
                let needs = 1e6 / slowest.fold(f64::INFINITY, f64::min);
                traffic.start(Flow { from, to, what: number }, 1_000_000);
                let took = finish(&mut traffic)[0].1 as f64;
                // Fluid rounds to the nearest step, and the others up.
                let early = if model == Model::Fluid { HALF_STEP } else { 0.0 };
                let right = needs - early..needs - early + 1.0 + 2e-3;
                assert!(right.contains(&(took + 1e-3)), "{model:?}: {took} for {needs}");
            }
        }
    }
}

#[test]
fn what_is_stopped_is_that_one_and_the_others_get_its_share() {
    for model in MODELS {
        let mut traffic = traffic(model, true);
        let handles: Vec<Handle> =
            (0..10).map(|what| traffic.start(Flow { from: 24, to: 2 + what, what }, 5_000_000)).collect();
        assert_eq!(traffic.stop(handles[3]).map(|flow| flow.what), Some(3), "{model:?}");
        assert_eq!(traffic.stop(handles[3]), None, "twice");
        let again = traffic.start(Flow { from: 24, to: 5, what: 33 }, 5_000_000);
        assert_eq!(traffic.stop(handles[3]), None, "its number has another one now");
        for handle in handles[5..].iter().chain([&again]) {
            assert!(traffic.stop(*handle).is_some());
        }
        let mut ended: Vec<u32> = finish(&mut traffic).into_iter().map(|end| end.0).collect();
        ended.sort_unstable();
        assert_eq!(ended, [0, 1, 2, 4], "{model:?}");
        let bytes = traffic.network.usage(24).bytes;
        assert!((bytes - 20e6).abs() < 10.0, "{model:?}: what was stopped at once moved nothing, {bytes}");
        assert!(traffic.stop(handles[0]).is_none());
    }
}

#[test]
fn ends_that_fail_take_their_transfers_with_them_and_no_others() {
    for model in MODELS {
        let mut traffic = traffic(model, true);
        let mut rng = Generator::new(5);
        let flows: Vec<Flow<u32>> = (0..200).map(|what| any_flow(&mut rng, what)).collect();
        for flow in &flows {
            traffic.start(*flow, 3_000_000);
        }
        for _ in 0..3 {
            traffic.step(&mut Vec::new());
        }
        let dead = [4, 9, 17];
        let fails = |flow: &Flow<u32>| dead.contains(&flow.from) || dead.contains(&flow.to);
        let stopped = traffic.stop_ends(&dead);
        assert!(
            stopped.iter().all(fails) && stopped.len() == flows.iter().filter(|flow| fails(flow)).count()
        );
        assert_eq!(finish(&mut traffic).len(), 200 - stopped.len(), "{model:?}");
    }
}

#[test]
fn a_link_without_capacity_carries_nothing_until_it_has_some_again() {
    for model in MODELS {
        let mut traffic = traffic(model, false);
        traffic.scale(24, 0.0);
        traffic.start(Flow { from: 24, to: 1, what: 0 }, 100_000);
        traffic.start(Flow { from: 2, to: 3, what: 1 }, 100_000);
        let mut ended = Vec::new();
        for _ in 0..50 {
            traffic.step(&mut ended);
        }
        assert_eq!(ended.len(), 1, "{model:?}");
        assert_eq!((traffic.network.usage(24), traffic.is_idle()), (Usage::default(), false), "{model:?}");
        traffic.scale(24, 1.0);
        assert_eq!(finish(&mut traffic).len(), 1);
    }
}

#[test]
fn a_link_is_busy_while_it_is_full() {
    for model in MODELS {
        let mut traffic = traffic(model, false);
        let (from, to) =
            (24, (0..24).find(|node| traffic.links.rates()[25 + *node as usize] == 125_000.0).unwrap());
        let downlink = 25 + to;
        traffic.start(Flow { from, to, what: 0 }, 1_000_000);
        for now in 1..=7 {
            traffic.step(&mut Vec::new());
            assert!(traffic.is_link_busy(downlink) && !traffic.is_link_busy(to), "{model:?} {now}");
        }
        finish(&mut traffic);
        assert!(!traffic.is_link_busy(downlink), "{model:?}");
        let kinds = traffic.usage(16);
        let downlinks = &kinds[2];
        assert_eq!((downlinks.kind.as_str(), downlinks.links), ("downlinks of nodes", 24));
        assert_eq!(downlinks.busiest, format!("downlink of node {to}"));
        assert!(
            (downlinks.busiest_share - 0.5).abs() < 1e-6 && (downlinks.busy_share - 0.5 / 24.0).abs() < 1e-6
        );
        assert!(
            (downlinks.gigabytes - 1e-3).abs() < 1e-8 && downlinks.busiest_gigabytes == downlinks.gigabytes
        );
    }
}

/// So large that a second thread helps in all parts of a step.
#[test]
fn steps_come_out_the_same_to_the_bit_with_any_number_of_threads() {
    let links = "region_up_mbit_s = 100_000\nregion_down_mbit_s = 100_000\n";
    let scenario = scenario(40_000, [2, 5, 1], "", links);
    let run = |threads| {
        let mut load = NetworkLoad::new(&scenario, 2_000_000, 3, threads);
        (0..8).for_each(|_| load.step());
        let usage = |link| {
            let usage = load.traffic().usage_of_link(link);
            [usage.bytes.to_bits(), usage.busy_steps.to_bits()]
        };
        let usages: Vec<[u64; 2]> = (0..load.traffic().links().count()).map(usage).collect();
        (load.transfers(), load.digest(), usages)
    };
    let alone = run(1);
    let is_busy = |usage: &&[u64; 2]| f64::from_bits(usage[1]) > 0.0;
    let busy = alone.2.iter().filter(is_busy).count();
    assert!(alone.0 > 20_000 && busy > 1_000, "{} transfers ended, {busy} links were busy", alone.0);
    for threads in [2, 3] {
        assert!(run(threads) == alone, "{threads} threads");
    }
}

#[test]
fn what_moves_a_millionth_in_a_step_ends_at_its_time_too() {
    let class = "[[fleet.class]]\nname = 'thin'\nshare = 1.0\nup_mbit_s = 0.25\ndown_mbit_s = 0.25\n";
    let links = Links::new(&scenario(9, [1, 1, 1], class, ""), 1, 250_000);
    let mut traffic = Traffic::alone(Model::Fluid, links);
    for to in 1..8 {
        traffic.start(Flow { from: 0, to, what: to }, 100_000);
    }
    let (mut ended, mut now) = (Vec::new(), 0_u32);
    while !traffic.is_idle() && now < 200_000 {
        traffic.step(&mut ended);
        now += 1;
    }
    // 7 x 100 000 bytes at 7.8125 bytes a step.
    assert_eq!((now, ended.len()), (89_600, 7));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However transfers come, go and are stopped and links change: no link carries more than it can, all that moved is counted
    /// once on each link, and what is not stopped ends.
    #[test]
    fn nothing_is_carried_twice_lost_or_beyond_a_links_capacity(seed in any::<u64>(), model in 0..3_usize) {
        let mut rng = Generator::new(seed);
        let mut traffic = traffic(MODELS[model], true);
        let all = u32::try_from(traffic.links.rates().len()).unwrap();
        let (mut handles, mut ended) = (Vec::new(), Vec::new());
        let (mut started, mut stopped, mut sent) = (0_usize, 0_usize, 0_u64);
        let mut could: Vec<f64> = vec![0.0; all as usize];
        let mut factor = 1.0;
        for now in 0..60 {
            for what in 0..u32::try_from(rng.below(12)).unwrap() {
                let bytes = 50_000 + u32::try_from(rng.below(800_000)).unwrap();
                handles.push(traffic.start(any_flow(&mut rng, what), bytes));
                started += 1;
                sent += u64::from(bytes);
            }
            if now % 5 == 0 && !handles.is_empty() {
                let handle = handles.swap_remove(rng.below(handles.len()));
                stopped += usize::from(traffic.stop(handle).is_some());
            }
            if now == 20 || now == 40 {
                factor = if now == 20 { 0.5 } else { 2.0 };
                traffic.scale(24, factor);
            }
            traffic.step(&mut ended);
            for (link, could) in could.iter_mut().enumerate() {
                *could += traffic.links.rates()[link] * if link == 24 { factor } else { 1.0 };
            }
            for link in 0..all {
                let (usage, could) = (traffic.network.usage(link), could[link as usize]);
                // What fluid lets end half a step early is counted, and owed to the next step.
                let early = HALF_STEP * traffic.links.rates()[link as usize];
                prop_assert!(usage.bytes <= could * (1.0 + 1e-4) + early + 1.0, "{}", traffic.links.name(link));
                prop_assert!(usage.busy_steps <= f64::from(now + 1) + 1e-6);
            }
        }
        let before = ended.len();
        let after = finish(&mut traffic).len();
        prop_assert_eq!(before + after + stopped, started);
        let sum = |links: std::ops::Range<u32>| links.map(|link| traffic.network.usage(link).bytes).sum::<f64>();
        let (up, down) = (sum(0..25), sum(25..50));
        // What was stopped moved in part; in FIFO not equally far on both links.
        let part = stopped as f64 * 850_000.0 + 1_000.0;
        let within = (sent as f64 - part..sent as f64 + 1_000.0).contains(&up);
        prop_assert!(within && (down - up).abs() <= if model == 2 { part } else { 1_000.0 }, "{sent} {up} {down}");
    }
}
