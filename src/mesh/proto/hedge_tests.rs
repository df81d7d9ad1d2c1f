//! Hedges: a second source beside a slow one, the first to deliver wins, and never more than a share of all asks.

use super::node_tests::{One, asked_of, busy};
use super::testing::{Faults, MS, Net};
use super::*;
use crate::model::{Class, Time};
use std::time::Duration;

/// Wants `chunk`, which its first home delivers after `span`.
fn served(one: &mut One, chunk: Chunk, span: Duration) {
    let home = asked_of(&one.want(chunk, Class::Read))[0];
    one.pass(span);
    one.input(Input::Arrived { chunk, from: Source::Peer(home) });
}

/// A node that knows its peers: they take 10 ms.
fn acquainted(settings: &Settings) -> (One, impl Iterator<Item = Chunk> + use<>) {
    let mut one = One::new(20, Settings { neighbours: 0, ..settings.clone() });
    let peers = one.core.peers();
    let foreign = |chunk: &u32| (0..3).all(|rank| peers.home(Slice(*chunk), rank) != Some(Peer(0)));
    let mut chunks = (0..400).filter(foreign).map(Chunk).collect::<Vec<_>>().into_iter();
    for chunk in chunks.by_ref().take(60) {
        served(&mut one, chunk, 10 * MS);
    }
    (one, chunks)
}

fn cancelled(outputs: &[Output]) -> Vec<Peer> {
    let cancelled = outputs.iter().filter_map(|output| match output {
        Output::Cancel { peer, .. } => Some(*peer),
        _ => None,
    });
    cancelled.collect()
}

#[test]
fn beside_a_slow_source_the_next_rank_is_asked_and_the_first_to_deliver_wins() {
    for second_wins in [true, false] {
        let (mut one, mut chunks) = acquainted(&Settings::default());
        let chunk = chunks.next().unwrap();
        let (first, second) = (one.home(chunk, 0), one.home(chunk, 1));
        assert_eq!(asked_of(&one.want(chunk, Class::Read)), [first]);
        assert_eq!(one.pass(15 * MS), [], "not slow yet");
        assert_eq!(asked_of(&one.pass(50 * MS)), [second], "long before it times out");
        let (winner, loser) = if second_wins { (second, first) } else { (first, second) };
        let outputs = one.input(Input::Arrived { chunk, from: Source::Peer(winner) });
        assert!(outputs.contains(&Output::Deliver { chunk }));
        assert_eq!(cancelled(&outputs), [loser]);
        let counts = one.core.counts();
        assert_eq!((counts.hedges, counts.hedges_won), (1, u64::from(second_wins)));
        assert_eq!(one.pass(Duration::from_secs(30)), [], "nothing is left of it");
    }
}

#[test]
fn when_the_first_source_fails_the_second_is_already_under_way() {
    let (mut one, mut chunks) = acquainted(&Settings::default());
    let chunk = chunks.next().unwrap();
    let (first, second) = (one.home(chunk, 0), one.home(chunk, 1));
    one.want(chunk, Class::Read);
    one.pass(60 * MS);
    let why = Failure::Unreachable;
    let failed = one.input(Input::Failed { chunk, from: Source::Peer(first), why });
    assert_eq!(asked_of(&failed), [], "no third, and nobody twice");
    let arrived = one.input(Input::Arrived { chunk, from: Source::Peer(second) });
    assert!(arrived.contains(&Output::Deliver { chunk }) && cancelled(&arrived).is_empty());
}

#[test]
fn when_the_second_source_fails_another_is_asked_beside_the_first() {
    let (mut one, mut chunks) = acquainted(&Settings::default());
    let chunk = chunks.next().unwrap();
    one.want(chunk, Class::Read);
    one.pass(60 * MS);
    let missing = Answer::Missing { holders: Holders::from_slice(&[Peer(17)]) };
    let outputs = one.told(one.home(chunk, 1), chunk, missing);
    assert_eq!((asked_of(&outputs), cancelled(&outputs)), (vec![Peer(17)], vec![]));
    let gone = one.input(Input::PeerDown { peer: Peer(17) });
    assert_eq!(cancelled(&gone), [Peer(17)], "and the first is still asked");
}

#[test]
fn a_source_that_gets_the_chunk_itself_is_not_gone_around_until_it_stalls() {
    let (mut one, mut chunks) = acquainted(&Settings::default());
    let chunk = chunks.next().unwrap();
    let (first, second) = (one.home(chunk, 0), one.home(chunk, 1));
    one.want(chunk, Class::Read);
    one.told(first, chunk, Answer::Wait);
    assert_eq!(one.pass(Duration::from_millis(1_900)), [], "the next rank would only turn to the first");
    one.told(first, chunk, Answer::Wait);
    assert_eq!(asked_of(&one.pass(Duration::from_millis(200))), [second]);
}

#[test]
fn a_second_home_that_was_asked_beside_the_first_may_wait_for_it() {
    let (mut one, mut chunks) = acquainted(&Settings::default());
    let chunk = chunks.next().unwrap();
    let homes = [0, 1].map(|rank| one.home(chunk, rank));
    one.want(chunk, Class::Fill);
    let (mut asked, mut left) = ([Some(one.now), None], [None; 2]);
    for _ in 0..60 {
        let mut outputs = one.pass(500 * MS);
        for place in 0..2 {
            if asked[place].is_some() && left[place].is_none() {
                outputs.extend(one.told(homes[place], chunk, Answer::Wait));
            }
        }
        if asked_of(&outputs).contains(&homes[1]) {
            asked[1] = Some(one.now);
        }
        for place in 0..2 {
            if cancelled(&outputs).contains(&homes[place]) {
                left[place] = Some(one.now);
            }
        }
    }
    let [first, second] = [0, 1].map(|place| left[place].unwrap().since(asked[place].unwrap()));
    assert!(
        second >= 2 * first - 1_000 * MS,
        "the first was left after {first:?}, the second after {second:?}"
    );
}

#[test]
fn who_named_a_source_that_stalls_is_asked_for_another() {
    let (mut one, mut chunks) = acquainted(&Settings::default());
    let chunk = chunks.next().unwrap();
    let home = one.home(chunk, 0);
    let others: Vec<u32> =
        (1..20).filter(|peer| (0..4).all(|rank| one.home(chunk, rank) != Peer(*peer))).collect();
    one.want(chunk, Class::Fill);
    assert_eq!(asked_of(&one.told(home, chunk, busy(&others[..1]))), [Peer(others[0])]);
    one.told(Peer(others[0]), chunk, Answer::Wait);
    assert_eq!(asked_of(&one.pass(2_100 * MS)), [home], "not the next rank");
    assert_eq!(asked_of(&one.told(home, chunk, busy(&others[1..2]))), [Peer(others[1])]);
}

#[test]
fn a_fill_is_hedged_only_when_its_source_stalls() {
    let (mut one, mut chunks) = acquainted(&Settings::default());
    let chunk = chunks.next().unwrap();
    one.want(chunk, Class::Fill);
    assert_eq!(one.pass(Duration::from_millis(1_900)), []);
    assert_eq!(asked_of(&one.pass(Duration::from_millis(200))), [one.home(chunk, 1)]);
}

#[test]
fn when_all_are_slow_hedges_stay_a_small_share_of_the_asks() {
    let (mut one, chunks) = acquainted(&Settings { window_chunks: 4, ..Settings::default() });
    let before = one.core.counts().hedges;
    let mut asks = 0;
    for chunk in chunks {
        let first = asked_of(&one.want(chunk, Class::Read))[0];
        one.pass(Duration::from_millis(900));
        one.input(Input::Arrived { chunk, from: Source::Peer(first) });
        asks += 1;
    }
    let (hedges, counts) = (one.core.counts().hedges - before, one.core.counts());
    assert!(hedges <= asks / 20 + 9, "{hedges} hedges for {asks} asks");
    assert!(asks > 150 && hedges >= 8, "{hedges} hedges for {asks} asks, {counts:?}");
}

#[test]
fn with_hedges_a_swarm_that_loses_asks_reads_faster_and_takes_no_more_from_the_strata() {
    let slowest = |hedge_percent: u8, seed: u64| {
        let settings = Settings { hedge_percent, hedge_burst: 40, window_even: 16, ..Settings::default() };
        let mut net = Net::new(&[(0, 0); 12], 96, settings, seed);
        for node in 0..12 {
            for chunk in (0..48).map(Chunk) {
                net.want(Peer(node), chunk, Class::Read, Duration::from_secs(30));
            }
        }
        net.run(Time::ZERO + Duration::from_secs(10));
        // From now on one answer in ten is lost: an ask to which there is no answer.
        net.faults = Faults { lose: 10, ..Faults::default() };
        let (began, before) = (net.now, net.fetched_upstream());
        for node in 0..12 {
            for chunk in (48..96).map(Chunk) {
                net.want(Peer(node), chunk, Class::Read, Duration::from_secs(30));
            }
        }
        let mut waited = Vec::new();
        while net.open_wants() > 0 {
            let (open, until) = (net.open_wants(), net.now + 10 * MS);
            net.run(until);
            waited.extend(std::iter::repeat_n(net.now - began, open - net.open_wants()));
        }
        assert!(net.results.iter().all(|result| result.2.is_ok()));
        (waited[waited.len() * 95 / 100], net.fetched_upstream() - before)
    };
    let (mut times, mut copies) = ((Duration::ZERO, Duration::ZERO), (0, 0));
    for seed in 0..6 {
        let (with, without) = (slowest(20, seed), slowest(0, seed));
        times = (times.0 + with.0, times.1 + without.0);
        copies = (copies.0 + with.1, copies.1 + without.1);
    }
    assert!(times.0 * 4 < times.1 * 3, "the 95th percentiles of six swarms together: {times:?}");
    assert!(
        copies.0 <= copies.1 + 6,
        "with hedges {} chunks left the strata, without {}",
        copies.0,
        copies.1
    );
}

#[test]
fn after_this_node_slept_both_sources_are_left_and_the_next_tick_lies_ahead() {
    let (mut one, mut chunks) = acquainted(&Settings::default());
    let chunk = chunks.next().unwrap();
    let (first, second) = (one.home(chunk, 0), one.home(chunk, 1));
    one.want(chunk, Class::Read);
    one.pass(60 * MS);
    one.now = one.now + Duration::from_secs(60);
    let outputs = one.input(Input::Tick);
    assert_eq!(cancelled(&outputs), [first, second]);
    assert!(one.core.next_deadline().is_some_and(|next| next > one.now), "{:?}", one.core.next_deadline());
}
