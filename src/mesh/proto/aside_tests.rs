//! Wants that stand still let others begin, up to a bound.

use super::node_tests::{FAR_OFF, One};
use super::*;
use crate::model::Class;
use std::collections::BTreeSet;
use std::time::Duration;

const KEEP_ALIVE: Duration = Duration::from_millis(500);

/// A window of five wants; without hedging, nobody but the home is asked meanwhile.
fn settings() -> Settings {
    Settings {
        window_min: 5,
        window_even: 5,
        window_ms: 0,
        hedge_percent: 0,
        aside_max: 8,
        upstream_min: 2,
        slowest_bytes_per_s: 16 << 20,
        ..Settings::default()
    }
}

/// Wants that were begun.
fn under_way(one: &One) -> u32 {
    let usage = one.core.audit().unwrap();
    u32::try_from(usage.fetches).unwrap()
}

/// Lets all whom this node asks say `Wait`, as an honest home does that gets nothing.
fn all_wait(one: &mut One, asked: &mut BTreeSet<(Peer, u32)>, span: Duration) {
    let end = one.now + span;
    while one.now < end {
        note(asked, &one.pass(KEEP_ALIVE));
        for (peer, chunk) in asked.clone() {
            let outputs = one.told(peer, Chunk(chunk), Answer::Wait);
            note(asked, &outputs);
        }
        one.core.audit().unwrap();
    }
}

fn note(asked: &mut BTreeSet<(Peer, u32)>, outputs: &[Output]) {
    for output in outputs {
        match output {
            Output::Ask { peer, chunk, .. } => asked.insert((*peer, chunk.0)),
            Output::Cancel { peer, chunk } => asked.remove(&(*peer, chunk.0)),
            _ => false,
        };
    }
}

/// Wants chunks of which another node is the home; returns what is asked of whom.
fn want(one: &mut One, chunks: std::ops::Range<u32>) -> BTreeSet<(Peer, u32)> {
    let mut asked = BTreeSet::new();
    let others = chunks.filter(|chunk| one.home(Chunk(*chunk), 0) != Peer(0));
    for chunk in others.collect::<Vec<_>>() {
        let outputs = one.want(Chunk(chunk), Class::Fill);
        note(&mut asked, &outputs);
    }
    asked
}

#[test]
fn wants_whose_homes_say_wait_let_others_begin_up_to_a_bound() {
    let mut one = One::new(20, settings());
    let mut asked = want(&mut one, 0..100);
    assert_eq!(under_way(&one), 5);
    all_wait(&mut one, &mut asked, KEEP_ALIVE);
    assert_eq!(under_way(&one), 5, "they may be waiting for their turn");
    all_wait(&mut one, &mut asked, KEEP_ALIVE);
    assert_eq!(under_way(&one), 10, "five stand aside");
    all_wait(&mut one, &mut asked, Duration::from_secs(2));
    assert_eq!((under_way(&one), one.core.counts().asides), (13, 8), "no more than eight do");
    // What ends makes room for another.
    let (peer, chunk) = *asked.iter().next().unwrap();
    asked.remove(&(peer, chunk));
    note(&mut asked, &one.input(Input::Arrived { chunk: Chunk(chunk), from: Source::Peer(peer) }));
    all_wait(&mut one, &mut asked, Duration::from_secs(1));
    assert_eq!(under_way(&one), 13);
    for chunk in 0..100 {
        one.input(Input::Unwanted { chunk: Chunk(chunk) });
        one.core.audit().unwrap();
    }
    assert_eq!(under_way(&one), 0);
}

#[test]
fn a_source_that_is_not_known_to_wait_keeps_its_place() {
    let mut one = One::new(20, settings());
    want(&mut one, 0..100);
    one.pass(Duration::from_millis(1_900));
    assert_eq!((under_way(&one), one.core.counts().asides), (5, 0), "its bytes may be on their way");
}

#[test]
fn wants_that_get_nothing_from_the_strata_stand_aside_and_those_that_do_stay() {
    // Two are under way there, and the others in line.
    for (progress, aside) in [(false, 5), (true, 3)] {
        let mut one = One::new(1, settings());
        for chunk in (0..100).map(Chunk) {
            one.input(Input::Wanted { chunk, class: Class::Fill, deadline: FAR_OFF });
        }
        for _ in 0..18 {
            one.pass(Duration::from_millis(100));
            for chunk in (0..100).map(Chunk).filter(|_| progress) {
                one.input(Input::Progress { chunk });
            }
        }
        let counts = one.core.counts();
        assert_eq!((counts.asides, u64::from(under_way(&one))), (aside, 5 + aside), "{progress}");
    }
}

#[test]
fn what_stands_aside_counts_for_the_bounds_of_all_that_is_under_way() {
    let mut one = One::new(20, Settings { window_chunks: 6, ..settings() });
    let mut asked = want(&mut one, 0..100);
    all_wait(&mut one, &mut asked, Duration::from_secs(3));
    assert_eq!(under_way(&one), 6);
}
