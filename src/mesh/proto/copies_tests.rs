//! The declared minimum of copies: made, restored when members go, and bounded.

use super::node_tests::{One, answer_to, asked_of};
use super::testing::Net;
use super::*;
use crate::model::Class;
use std::time::Duration;

fn minimum(min_copies: u8) -> Settings {
    Settings { min_copies, neighbours: 0, ..Settings::default() }
}

fn holders(net: &Net, chunk: Chunk) -> usize {
    net.members.iter().filter(|member| member.alive && member.stored.contains(&chunk)).count()
}

/// One reader of everything in a cell of twelve. Returns how many hold the chunk that the fewest hold.
fn least_copies(net: &Net) -> usize {
    (0..40).map(|chunk| holders(net, Chunk(chunk))).min().unwrap()
}

#[test]
fn a_cell_keeps_the_declared_number_of_copies_though_members_go_one_after_the_other() {
    for seed in 0..5 {
        let mut net = Net::new(&[(0, 0); 12], 40, minimum(2), seed);
        for chunk in (0..40).map(Chunk) {
            net.want(Peer(0), chunk, Class::Read, Duration::from_secs(30));
        }
        net.run(net.now + Duration::from_secs(60));
        assert!(net.open_wants() == 0 && net.results.iter().all(|result| result.2.is_ok()));
        assert_eq!(net.fetched_upstream(), 40, "copies are made from within");
        for gone in 0..8 {
            net.kill(Peer(gone), Duration::from_millis(500));
            net.run(net.now + Duration::from_secs(60));
            assert!(least_copies(&net) >= 2, "{} copies after {gone} went, seed {seed}", least_copies(&net));
        }
        assert_eq!(net.fetched_upstream(), 40, "the last copy never went");
    }
}

#[test]
fn without_a_declared_minimum_nothing_is_copied() {
    let mut net = Net::new(&[(0, 0); 12], 40, minimum(1), 1);
    for chunk in (0..40).map(Chunk) {
        net.want(Peer(0), chunk, Class::Read, Duration::from_secs(30));
    }
    net.run(net.now + Duration::from_secs(60));
    net.kill(Peer(0), Duration::ZERO);
    net.run(net.now + Duration::from_secs(60));
    assert!((0..40).map(Chunk).all(|chunk| holders(&net, chunk) <= 1));
}

#[test]
fn a_next_rank_copies_what_it_was_asked_for_as_a_fill_and_few_at_a_time() {
    let mut one = One::new(20, minimum(2));
    let ranked_second = |chunk: &Chunk| one.core.peers().home(Slice(chunk.0), 1) == Some(Peer(0));
    let chunks: Vec<Chunk> = (0..400).map(Chunk).filter(ranked_second).take(6).collect();
    for (number, chunk) in (0..).zip(&chunks) {
        let first = one.home(*chunk, 0);
        let answers = one.ask(first.0, number, *chunk, Class::Fill);
        assert!(matches!(answer_to(&answers, number), Some(Answer::Missing { .. })));
    }
    let begun = one.pass(Duration::from_secs(1));
    let asks: Vec<&Output> = begun.iter().filter(|output| matches!(output, Output::Ask { .. })).collect();
    assert_eq!(asks.len(), 4, "{begun:?}");
    assert!(asks.iter().all(|ask| matches!(ask, Output::Ask { class: Class::Fill, .. })));
    let arrived = Input::Arrived { chunk: chunks[0], from: Source::Peer(one.home(chunks[0], 0)) };
    assert!(!one.input(arrived).contains(&Output::Deliver { chunk: chunks[0] }), "nobody here wanted it");
    assert_eq!(asked_of(&one.pass(Duration::from_secs(1))).len(), 1);
}

#[test]
fn a_node_whose_store_is_full_and_one_that_is_no_home_make_no_copies() {
    let mut full = One::new(20, minimum(2));
    full.input(Input::Stored { chunk: Chunk(399) });
    full.input(Input::Evicted { chunk: Chunk(399) });
    let mut other = One::new(20, minimum(2));
    let mut undeclared = One::new(20, minimum(1));
    for (one, rank) in [(&mut full, 1), (&mut other, 2), (&mut undeclared, 1)] {
        let chunk = one.ranked(rank);
        one.ask(one.home(chunk, 0).0, 1, chunk, Class::Fill);
        assert_eq!(asked_of(&one.pass(Duration::from_secs(60))), []);
    }
    let mut reader = One::new(20, minimum(2));
    let chunk = reader.ranked(1);
    reader.ask(reader.home(chunk, 0).0, 1, chunk, Class::Read);
    assert_eq!(asked_of(&reader.pass(Duration::from_secs(60))), [], "a peek of a home that reads");
}
