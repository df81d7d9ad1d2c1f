//! Who takes asks and never delivers is passed over, and tried again later.

use super::node_tests::{One, answer_to, asked_of, busy};
use super::*;
use crate::model::{Class, Time};
use std::time::Duration;

const S: Duration = Duration::from_secs(1);

/// Chunks of different slices that have `home` for their first home.
fn homed_at(one: &One, home: Peer) -> Vec<Chunk> {
    (0..400).map(Chunk).filter(|chunk| one.home(*chunk, 0) == home).collect()
}

/// Lets `home` answer `chunk` with `answer` every half second until it is left; returns after how long.
fn until_left(one: &mut One, home: Peer, chunk: Chunk, answer: Option<&Answer>) -> Duration {
    let start = one.now;
    loop {
        let mut outputs = one.pass(S / 2);
        if let Some(answer) = answer {
            outputs.extend(one.told(home, chunk, answer.clone()));
        }
        if asked_of(&outputs).iter().any(|peer| *peer != home) {
            return one.now.since(start);
        }
        assert!(one.now.since(start) < 20 * S, "it waits for ever");
    }
}

#[test]
fn who_stalls_or_is_busy_or_silent_is_passed_over_for_a_while_and_then_tried_once() {
    // With hedging, the next rank would be asked sooner.
    for answer in [Some(Answer::Wait), Some(busy(&[])), None] {
        let mut one = One::new(20, Settings { hedge_percent: 0, ..Settings::default() });
        let liar = one.home(one.ranked(9), 0);
        let chunks = homed_at(&one, liar);
        assert_eq!(asked_of(&one.want(chunks[0], Class::Read)), [liar]);
        let left = until_left(&mut one, liar, chunks[0], answer.as_ref());
        assert!(left > 2 * S && left < 13 * S, "{answer:?}: left after {left:?}");
        assert_eq!(one.core.counts().doubts, 1);
        let next = one.home(chunks[1], 1);
        assert_eq!(asked_of(&one.want(chunks[1], Class::Read)), [next], "{answer:?}: not the liar again");
        for chunk in &chunks[..2] {
            one.input(Input::Unwanted { chunk: *chunk });
        }
        one.pass(31 * S);
        assert_eq!(asked_of(&one.want(chunks[2], Class::Read)), [liar], "{answer:?}: one tries it again");
        let next = one.home(chunks[3], 1);
        assert_eq!(asked_of(&one.want(chunks[3], Class::Read)), [next], "{answer:?}: and no other");
        one.input(Input::Arrived { chunk: chunks[2], from: Source::Peer(liar) });
        assert_eq!(asked_of(&one.want(chunks[4], Class::Read)), [liar], "{answer:?}: it delivers");
    }
}

#[test]
fn nobody_is_doubted_because_this_node_slept() {
    let mut one = One::new(20, Settings { hedge_percent: 0, ..Settings::default() });
    let home = one.home(one.ranked(9), 0);
    let chunks = homed_at(&one, home);
    one.want(chunks[0], Class::Read);
    one.told(home, chunks[0], busy(&[]));
    // No tick comes for longer than anybody may be busy.
    one.now = one.now + 40 * S;
    one.input(Input::Tick);
    one.told(home, chunks[0], busy(&[]));
    assert_eq!(one.core.counts().doubts, 0);
    assert_eq!(asked_of(&one.want(chunks[1], Class::Read)), [home], "it is asked as before");
}

#[test]
fn who_delivers_other_chunks_meanwhile_is_waited_for() {
    let mut one = One::new(20, Settings { hedge_percent: 0, ..Settings::default() });
    let home = one.home(one.ranked(9), 0);
    let chunks = homed_at(&one, home);
    one.want(chunks[0], Class::Read);
    for chunk in &chunks[1..4] {
        assert_eq!(asked_of(&one.want(*chunk, Class::Read)), [home]);
        for _ in 0..4 {
            let mut outputs = one.pass(S / 2);
            outputs.extend(one.told(home, chunks[0], Answer::Wait));
            outputs.extend(one.told(home, *chunk, Answer::Wait));
            assert_eq!(asked_of(&outputs), []);
        }
        one.input(Input::Arrived { chunk: *chunk, from: Source::Peer(home) });
    }
    assert_eq!(one.core.counts().doubts, 0);
}

#[test]
fn who_is_doubted_is_asked_when_nobody_else_is_left() {
    // The strata are asked for both chunks at once.
    let mut one = One::new(2, Settings { upstream_min: 2, ..Settings::default() });
    let other = Peer(1);
    let chunks = homed_at(&one, other);
    one.want(chunks[0], Class::Read);
    one.pass(7 * S);
    assert_eq!(one.core.counts().doubts, 1);
    let outputs = one.want(chunks[1], Class::Read);
    let upstream = Output::FetchUpstream { chunk: chunks[1] };
    assert!(outputs.contains(&upstream), "the strata stand in for it: {outputs:?}");
    let refused = Input::Failed { chunk: chunks[1], from: Source::Strata, why: Failure::Refused };
    let mut outputs = one.input(refused);
    let segment = one.core.content().segment(one.core.content().slice(chunks[1]));
    outputs.extend(one.input(Input::Providers { segment, peers: Vec::new() }));
    assert_eq!(asked_of(&outputs), [other]);
}

#[test]
fn fetches_for_others_stay_within_their_bound_when_wants_end() {
    let settings = Settings { relays_max: 2, window_chunks: 2, window_min: 2, ..Settings::default() };
    let mut one = One::new(20, settings);
    let mine = homed_at(&one, Peer(0));
    for chunk in &mine[..2] {
        one.input(Input::Wanted { chunk: *chunk, class: Class::Read, deadline: Time::ZERO + 9 * S });
    }
    let behind = one.home(mine[0], 12).0;
    for (number, chunk) in (0..).zip(&mine[2..6]) {
        one.ask(behind, number, *chunk, Class::Read);
    }
    // Two wants and two for others are under way: the asker may not wait for a want, lest it stay.
    let outputs = one.ask(behind, 9, mine[0], Class::Read);
    assert!(matches!(answer_to(&outputs, 9), Some(Answer::Busy { .. })), "{outputs:?}");
    one.pass(10 * S);
    one.core.audit().unwrap();
}
