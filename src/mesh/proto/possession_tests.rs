//! Possession: what is told, to whom and how often; what is believed, and that it helps where homes are gone.

use super::node_tests::{One, asked_of};
use super::testing::{CHUNKS_PER_SLICE, Net};
use super::*;
use crate::model::{Class, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn told(outputs: &[Output]) -> Vec<(Peer, Vec<(Slice, u64)>)> {
    let told = outputs.iter().filter_map(|output| match output {
        Output::TellPossession { to, slices } => Some((*to, slices.clone())),
        _ => None,
    });
    told.collect()
}

fn claim(one: &mut One, peer: Peer, chunks: &[Chunk]) -> Vec<Output> {
    one.pass(Duration::from_secs(2));
    let slices = chunks.iter().map(|chunk| (Slice(chunk.0), 1)).collect();
    one.input(Input::Possession { peer, slices })
}

#[test]
fn a_few_neighbours_are_told_what_changed_and_an_idle_node_says_nothing() {
    let mut one = One::new(100, Settings::default());
    one.input(Input::Stored { chunk: Chunk(7) });
    let first = told(&one.pass(Duration::from_secs(10)));
    let neighbours: BTreeSet<Peer> = first.iter().map(|(to, _)| *to).collect();
    assert_eq!((neighbours.len(), first.len()), (8, 8), "each once");
    assert!(first.iter().all(|(_, slices)| *slices == [(Slice(7), 1)]), "{first:?}");
    one.input(Input::Stored { chunk: Chunk(9) });
    one.input(Input::Evicted { chunk: Chunk(7) });
    one.input(Input::Stored { chunk: Chunk(7) });
    let second = told(&one.pass(Duration::from_secs(600)));
    assert!(second.iter().all(|(to, _)| neighbours.contains(to)), "the neighbours stay the same");
    assert_eq!((second.len(), second[0].1.len()), (8, 2), "and hear what is new once");
}

#[test]
fn a_new_neighbour_is_told_everything_a_bounded_number_of_slices_at_a_time() {
    let mut one = One::new(3, Settings::default());
    for chunk in (0..300).map(Chunk) {
        one.input(Input::Stored { chunk });
    }
    let mut heard: BTreeMap<Peer, BTreeSet<Slice>> = BTreeMap::new();
    for _ in 0..10 {
        for (to, slices) in told(&one.pass(Duration::from_secs(2))) {
            assert!(slices.len() <= POSSESSION_MAX);
            heard.entry(to).or_default().extend(slices.iter().map(|(slice, _)| *slice));
        }
    }
    assert!(heard.len() == 2 && heard.values().all(|slices| slices.len() == 300), "{heard:?}");
    one.event(Event::Peers(PeerUpdate::Down { peer: Peer(1) }));
    one.event(Event::Peers(PeerUpdate::Up { peer: Peer(1) }));
    one.input(Input::Stored { chunk: Chunk(300) });
    let again = told(&one.pass(Duration::from_secs(60)));
    assert!(again.iter().all(|(_, slices)| slices.len() <= POSSESSION_MAX));
    assert!(again.len() <= 12, "nobody is told everything again for nothing: {}", again.len());
}

#[test]
fn neighbours_change_slowly() {
    let mut one = One::new(100, Settings { neighbours_renew: 4, ..Settings::default() });
    let (mut before, mut changes) = (BTreeSet::new(), 0);
    for chunk in (0..40).map(Chunk) {
        one.input(Input::Stored { chunk });
        let now: BTreeSet<Peer> = told(&one.pass(Duration::from_secs(3))).iter().map(|(to, _)| *to).collect();
        assert_eq!(now.len(), 8);
        changes += now.difference(&before).count();
        before = now;
    }
    assert!((8 + 8..=8 + 12).contains(&changes), "one in four tellings: {changes}");
}

#[test]
fn a_claimant_is_asked_before_the_strata_and_when_a_home_is_gone_before_the_next_rank() {
    let mut one = One::new(20, Settings::default());
    let (own, foreign) = (one.ranked(0), one.ranked(9));
    let holder = one.home(foreign, 12);
    claim(&mut one, holder, &[own, foreign]);
    assert_eq!(asked_of(&one.want(own, Class::Read)), [holder]);
    let first = one.home(foreign, 0);
    assert_eq!(asked_of(&one.want(foreign, Class::Read)), [first], "a home that is there is asked as ever");
    let why = Failure::Unreachable;
    let failed = one.input(Input::Failed { chunk: foreign, from: Source::Peer(first), why });
    assert_eq!(asked_of(&failed), [holder]);
}

#[test]
fn who_claims_falsely_again_and_again_is_not_listened_to_for_a_while() {
    let mut one = One::new(20, Settings { neighbours: 0, ..Settings::default() });
    let chunks: Vec<Chunk> = (0..400)
        .map(Chunk)
        .filter(|chunk| one.core.peers().home(Slice(chunk.0), 0) == Some(Peer(0)))
        .collect();
    let missing = || Answer::Missing { holders: Holders::new() };
    for chunk in &chunks[..4] {
        claim(&mut one, Peer(5), &[*chunk]);
        assert_eq!(asked_of(&one.want(*chunk, Class::Read)), [Peer(5)]);
        one.told(Peer(5), *chunk, missing());
    }
    assert_eq!((one.core.counts().possession_false, one.core.counts().possession_barred), (4, 1));
    claim(&mut one, Peer(5), &[chunks[4]]);
    assert_ne!(asked_of(&one.want(chunks[4], Class::Read)), [Peer(5)]);
    assert_eq!(one.core.counts().possession_refused, 1);
    one.pass(Duration::from_secs(u64::from(Settings::default().distrust_s)));
    claim(&mut one, Peer(5), &[chunks[5]]);
    assert_eq!(asked_of(&one.want(chunks[5], Class::Read)), [Peer(5)], "it has a new chance");
}

#[test]
fn claims_are_bounded_in_size_rate_and_number_and_taken_from_the_own_cell_alone() {
    let mut one = One::new(100, Settings { claims_max: 100, ..Settings::default() });
    let cell_1 = PeerUpdate::Met { peer: Peer(200), key: 7, cell: 1, cell_key: 8, region: 0, weight: 100 };
    one.event(Event::Peers(cell_1));
    one.event(Event::Peers(PeerUpdate::Up { peer: Peer(200) }));
    let refused = |one: &One| one.core.counts().possession_refused;
    one.input(Input::Possession { peer: Peer(200), slices: vec![(Slice(1), 1)] });
    assert_eq!(refused(&one), 1, "from another cell");
    let many = (0..65).map(|slice| (Slice(slice), 1)).collect();
    one.input(Input::Possession { peer: Peer(1), slices: many });
    assert_eq!(refused(&one), 2, "too many at once");
    for peer in (1..60).map(Peer) {
        let slices = (0..64).map(|slice| (Slice(slice + peer.0), u64::MAX)).collect();
        one.input(Input::Possession { peer, slices });
    }
    one.input(Input::Possession { peer: Peer(59), slices: vec![(Slice(1), 1)] });
    assert_eq!(refused(&one), 3, "too often");
    let remembered = one.core.claims_for_test();
    assert!(remembered.0 <= 100 && remembered.1 <= 16, "{remembered:?}");
}

/// A few of a cell hold everything and most are new: how many chunks the new homes take from the strata.
fn copies_without_homes(neighbours: u8, seed: u64) -> usize {
    let settings = Settings { neighbours, ..Settings::default() };
    let mut net = Net::new(&[(0, 0); 30], 40, settings, seed);
    for number in 0..5 {
        for chunk in (0..40).map(Chunk) {
            net.store(Peer(number), chunk);
        }
    }
    // Those who joined late have nothing yet, though they are homes of most. Nobody remembers holders.
    net.run(Time::ZERO + Duration::from_secs(20));
    for number in 5..30 {
        for chunk in (0..40).map(Chunk) {
            net.want(Peer(number), chunk, Class::Read, Duration::from_secs(30));
        }
    }
    net.run(net.now + Duration::from_secs(30));
    assert!(net.open_wants() == 0 && net.results.iter().all(|result| result.2.is_ok()));
    net.fetched_upstream()
}

#[test]
fn where_new_homes_have_nothing_claims_spare_the_strata() {
    let sum = |neighbours| (0..10).map(|seed| copies_without_homes(neighbours, seed)).sum::<usize>();
    let (with, without) = (sum(8), sum(0));
    assert!(without > 0 && with * 10 <= without, "{with} chunks from the strata, without claims {without}");
    assert_eq!(CHUNKS_PER_SLICE, 4, "several chunks a slice: the parts are told apart");
}
