//! One node at a time: each answer, each bound, each way to the next source.

use super::wants::GATHER;
use super::*;
use crate::model::{Class, Generator, Time, mix};
use std::time::Duration;

pub(super) const CHUNK: Chunk = Chunk(0);
pub(super) const FAR_OFF: Time = Time::from_nanos(3_600_000_000_000);

pub(super) struct One {
    pub(super) core: Core,
    pub(super) now: Time,
}

impl One {
    /// Node 0 in a cell of `members`; every slice is one chunk of 1 MiB.
    pub(super) fn new(members: u32, settings: Settings) -> Self {
        Self::with_chunks(members, 1, settings)
    }

    /// The same with slices of so many chunks.
    pub(super) fn with_chunks(members: u32, chunks_per_slice: u32, settings: Settings) -> Self {
        let start = Start { me: Peer(0), settings, generator: Generator::new(2) };
        let mut one = Self { core: Core::new(start), now: Time::ZERO };
        for peer in (0..members).map(Peer) {
            let key = mix(u64::from(peer.0));
            let met = PeerUpdate::Met { peer, key, cell: 0, cell_key: 5, region: 0, weight: 100 };
            one.event(Event::Peers(met));
            one.event(Event::Peers(PeerUpdate::Up { peer }));
        }
        for chunk in 0..400 {
            let slice = chunk / chunks_per_slice;
            let slice_key = mix(u64::from(slice) << 16);
            let (slice, segment, part, len_bytes) = (Slice(slice), Segment(slice / 8), 0, 1 << 20);
            let chunk = Chunk(chunk);
            let learned = ContentUpdate::Learned { chunk, slice, segment, slice_key, part, len_bytes };
            one.event(Event::Content(learned));
        }
        one
    }

    pub(super) fn event(&mut self, event: Event) -> Vec<Output> {
        let mut out = Outbox::default();
        self.core.apply(self.now, event, &mut out).unwrap();
        out.drain().collect()
    }

    pub(super) fn input(&mut self, input: Input) -> Vec<Output> {
        self.event(Event::Input(input))
    }

    pub(super) fn ask(&mut self, peer: u32, ask: u32, chunk: Chunk, class: Class) -> Vec<Output> {
        self.input(Input::Asked { peer: Peer(peer), ask: Ask(ask), chunk, class })
    }

    /// Wants a chunk; a fill is in no hurry, so time passes until it begins.
    pub(super) fn want(&mut self, chunk: Chunk, class: Class) -> Vec<Output> {
        let mut outputs = self.input(Input::Wanted { chunk, class, deadline: FAR_OFF });
        if class == Class::Fill {
            outputs.extend(self.pass(GATHER));
        }
        outputs
    }

    pub(super) fn told(&mut self, peer: Peer, chunk: Chunk, answer: Answer) -> Vec<Output> {
        self.input(Input::Told { peer, chunk, answer, load: 0 })
    }

    /// Lets time pass, with all ticks that are due. Returns all that was decided.
    pub(super) fn pass(&mut self, span: Duration) -> Vec<Output> {
        let (until, mut all) = (self.now + span, Vec::new());
        for _ in 0..10_000 {
            let Some(next) = self.core.next_deadline().filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            all.extend(self.input(Input::Tick));
        }
        self.now = until;
        all
    }

    /// A chunk for whose slice this node has the given rank.
    pub(super) fn ranked(&self, rank: usize) -> Chunk {
        let is = |chunk: &u32| {
            let slice = self.core.content().slice(Chunk(*chunk));
            self.core.peers().home(slice, rank) == Some(Peer(0))
        };
        Chunk((0..400).find(is).unwrap())
    }

    pub(super) fn home(&self, chunk: Chunk, rank: usize) -> Peer {
        self.core.peers().home(self.core.content().slice(chunk), rank).unwrap()
    }
}

pub(super) fn asked_of(outputs: &[Output]) -> Vec<Peer> {
    let asks = outputs.iter().filter_map(|output| match output {
        Output::Ask { peer, .. } => Some(*peer),
        _ => None,
    });
    asks.collect()
}

pub(super) fn answer_to(outputs: &[Output], number: u32) -> Option<&Answer> {
    outputs.iter().find_map(|output| match output {
        Output::Answer { ask, answer, .. } if *ask == Ask(number) => Some(answer),
        _ => None,
    })
}

pub(super) fn busy(holders: &[u32]) -> Answer {
    Answer::Busy { holders: holders.iter().copied().map(Peer).collect() }
}

#[test]
fn a_stored_chunk_is_served_then_askers_wait_then_they_are_redirected_to_earlier_ones() {
    let settings = Settings { upload_bytes: 2 << 20, upload_queue_bytes: 2 << 20, ..Settings::default() };
    let mut one = One::new(20, settings);
    let chunk = one.ranked(0);
    one.input(Input::Stored { chunk });
    for number in 1..=2 {
        assert_eq!(one.ask(number, number, chunk, Class::Fill), [Output::Serve { ask: Ask(number) }]);
    }
    for number in 3..=4 {
        assert_eq!(one.ask(number, number, chunk, Class::Fill), [], "silent at first");
    }
    let redirected = one.ask(5, 5, chunk, Class::Fill);
    let Some(Answer::Busy { holders }) = answer_to(&redirected, 5) else { panic!("{redirected:?}") };
    assert!([1, 2].iter().all(|peer| holders.contains(&Peer(*peer))), "{holders:?}");
    let waiting = one.pass(Duration::from_millis(60));
    assert_eq!((answer_to(&waiting, 3), answer_to(&waiting, 4)), (Some(&Answer::Wait), Some(&Answer::Wait)));
    assert_eq!(one.input(Input::Served { ask: Ask(1), ok: true }), [Output::Serve { ask: Ask(3) }]);
    let late = one.pass(Duration::from_secs(3));
    let ended =
        |output: &Output| matches!(output, Output::Answer { ask: Ask(4), answer: Answer::Busy { .. }, .. });
    assert!(late.iter().any(ended), "waits end: {late:?}");
}

#[test]
fn uploads_serve_reads_first_and_askers_in_turn() {
    let settings = Settings { uploads_min: 3, uploads_even: 3, queue_even: 9, ..Settings::default() };
    let mut one = One::new(20, settings);
    for chunk in (0..9).map(Chunk) {
        one.input(Input::Stored { chunk });
    }
    let serve = |number| vec![Output::Serve { ask: Ask(number) }];
    for number in 1..=3 {
        assert_eq!(one.ask(1, number, Chunk(number), Class::Fill), serve(number));
    }
    for (peer, number, class) in [(1, 4, Class::Fill), (2, 5, Class::Fill), (1, 6, Class::Prefetch)] {
        assert_eq!(one.ask(peer, number, Chunk(number), class), []);
    }
    // A read does not wait for a free slot, but a second one does.
    assert_eq!(one.ask(1, 7, Chunk(7), Class::Read), serve(7));
    assert_eq!(one.ask(1, 8, Chunk(8), Class::Read), []);
    let order = [7, 1, 2, 8, 6, 5].map(|ended| one.input(Input::Served { ask: Ask(ended), ok: true }));
    assert_eq!(order, [serve(8), vec![], serve(6), serve(5), serve(4), vec![]]);
}

#[test]
fn a_read_takes_the_place_of_a_queued_fill_and_the_oldest_is_served_now_and_then() {
    let settings = Settings { uploads_max: 1, ..Settings::default() };
    let mut one = One::new(20, settings);
    for chunk in (0..40).map(Chunk) {
        one.input(Input::Stored { chunk });
    }
    one.ask(1, 1, Chunk(1), Class::Fill);
    for number in 2..=5 {
        assert_eq!(one.ask(number, number, Chunk(number), Class::Fill), [], "the queue has four places");
    }
    let full = one.ask(6, 6, Chunk(6), Class::Fill);
    assert!(matches!(answer_to(&full, 6), Some(Answer::Busy { .. })));
    let given = one.ask(7, 7, Chunk(7), Class::Read);
    assert!(
        matches!(answer_to(&given, 5), Some(Answer::Busy { .. })),
        "the latest fill gives way: {given:?}"
    );
    // Reads without end: the fill that waits longest has its turn all the same.
    let (mut running, mut served) = (1, Vec::new());
    for number in 8..40 {
        one.ask(7, number, Chunk(number), Class::Read);
        let next = one.input(Input::Served { ask: Ask(running), ok: true });
        let Some(Output::Serve { ask }) = next.iter().find(|output| matches!(output, Output::Serve { .. }))
        else {
            panic!("{next:?}")
        };
        running = ask.0;
        served.push(running);
    }
    assert!([2, 3].iter().all(|fill| served.contains(fill)), "{served:?}");
}

#[test]
fn a_home_makes_askers_wait_and_fetches_once() {
    let mut one = One::new(1, Settings::default());
    one.event(Event::Peers(PeerUpdate::Met {
        peer: Peer(1),
        key: 1,
        cell: 0,
        cell_key: 5,
        region: 0,
        weight: 0,
    }));
    one.event(Event::Peers(PeerUpdate::Up { peer: Peer(1) }));
    let first = one.ask(1, 1, CHUNK, Class::Read);
    assert_eq!(answer_to(&first, 1), Some(&Answer::Wait));
    assert!(first.contains(&Output::FetchUpstream { chunk: CHUNK }), "{first:?}");
    let second = one.ask(1, 2, CHUNK, Class::Read);
    assert_eq!((second.len(), answer_to(&second, 2)), (1, Some(&Answer::Wait)));
    let again = one.pass(Duration::from_millis(600));
    assert_eq!((answer_to(&again, 1), answer_to(&again, 2)), (Some(&Answer::Wait), Some(&Answer::Wait)));
    let arrived = one.input(Input::Arrived { chunk: CHUNK, from: Source::Strata });
    assert_eq!(arrived, [1, 2].map(|ask| Output::Serve { ask: Ask(ask) }));
}

#[test]
fn waiters_beyond_the_bound_are_redirected() {
    let mut one = One::new(12, Settings { home_waiters_max: 3, ..Settings::default() });
    let chunk = one.ranked(0);
    for number in 1..=3 {
        assert_eq!(answer_to(&one.ask(number, number, chunk, Class::Read), number), Some(&Answer::Wait));
    }
    let fourth = one.ask(4, 4, chunk, Class::Read);
    assert_eq!(answer_to(&fourth, 4), Some(&busy(&[1, 2, 3])));
}

#[test]
fn a_node_that_is_no_home_says_so_and_fetches_nothing() {
    let mut one = One::new(12, Settings::default());
    let chunk = one.ranked(7);
    let asker = one.home(chunk, 9);
    let outputs = one.ask(asker.0, 1, chunk, Class::Read);
    assert_eq!(outputs.len(), 1);
    assert!(matches!(answer_to(&outputs, 1), Some(Answer::Missing { .. })));
}

#[test]
fn an_asker_that_ranks_before_this_node_does_not_make_it_fetch() {
    let mut one = One::new(12, Settings::default());
    let chunk = one.ranked(1);
    let first = one.home(chunk, 0);
    let outputs = one.ask(first.0, 1, chunk, Class::Read);
    assert!(matches!(answer_to(&outputs, 1), Some(Answer::Missing { .. })), "{outputs:?}");
    // Neither may it wait for what this node asks of it.
    assert_eq!(asked_of(&one.want(chunk, Class::Read)), [first]);
    let outputs = one.ask(first.0, 2, chunk, Class::Read);
    assert!(matches!(answer_to(&outputs, 2), Some(Answer::Missing { .. })), "{outputs:?}");
}

#[test]
fn a_redirected_reader_tries_the_named_and_comes_back_after_a_pause() {
    let mut one = One::new(20, Settings::default());
    let chunk = one.ranked(9);
    let home = one.home(chunk, 0);
    assert_eq!(asked_of(&one.want(chunk, Class::Read)), [home]);
    let named: Vec<u32> = (1..20).filter(|peer| *peer != home.0).take(3).collect();
    let mut outputs = one.told(home, chunk, busy(&named));
    for _ in 0..3 {
        let asked = asked_of(&outputs);
        assert!(asked.len() == 1 && named.contains(&asked[0].0), "{outputs:?}");
        outputs = one.told(asked[0], chunk, busy(&[]));
    }
    assert_eq!(outputs, [], "a pause");
    assert_eq!(asked_of(&one.pass(Duration::from_millis(20))), [home]);
    assert_eq!(one.told(home, chunk, Answer::Wait), []);
    let arrived = one.input(Input::Arrived { chunk, from: Source::Peer(home) });
    assert_eq!(arrived, [Output::Deliver { chunk }]);
}

#[test]
fn who_was_only_remembered_and_is_busy_is_not_asked_again_before_the_home_was() {
    let mut one = One::with_chunks(20, 2, Settings::default());
    let chunk = one.ranked(9);
    let home = one.home(chunk, 0);
    one.want(chunk, Class::Read);
    let named: Vec<u32> = (1..20).filter(|peer| *peer != home.0).take(2).collect();
    let asked = asked_of(&one.told(home, chunk, busy(&named)));
    one.input(Input::Arrived { chunk, from: Source::Peer(asked[0]) });
    // The other chunk of the slice: those that were named are asked first, then the home, and it alone again and again.
    let other = Chunk(chunk.0 ^ 1);
    let mut outputs = one.want(other, Class::Read);
    for _ in 0..2 {
        let asked = asked_of(&outputs);
        assert!(named.contains(&asked[0].0), "{outputs:?}");
        outputs = one.told(asked[0], other, busy(&[]));
    }
    for _ in 0..4 {
        assert_eq!(asked_of(&outputs), [home]);
        outputs = one.told(home, other, busy(&[]));
        outputs.extend(one.pass(Duration::from_millis(50)));
    }
}

#[test]
fn of_holders_that_are_as_busy_the_nearer_is_asked_and_a_busier_one_is_not_however_near() {
    // So many draws that both are looked at.
    let mut one = One::new(20, Settings { choices: 32, ..Settings::default() });
    for (peer, cell, region) in [(20, 1, 0), (21, 2, 1)] {
        let (peer, key) = (Peer(peer), mix(u64::from(peer)));
        let met = PeerUpdate::Met { peer, key, cell, cell_key: 6, region, weight: 0 };
        one.event(Event::Peers(met));
        one.event(Event::Peers(PeerUpdate::Up { peer }));
    }
    let chunk = one.ranked(9);
    let home = one.home(chunk, 0);
    let near = (1..20).find(|peer| *peer != home.0).unwrap();
    one.want(chunk, Class::Read);
    assert_eq!(asked_of(&one.told(home, chunk, busy(&[21, near, 20]))), [Peer(near)]);
    assert_eq!(asked_of(&one.told(Peer(near), chunk, busy(&[]))), [Peer(20)]);
    // It said that it has much to do.
    let other = (0..400).map(Chunk).find(|other| *other != chunk && one.home(*other, 0) == home).unwrap();
    one.input(Input::Told { peer: Peer(near), chunk, answer: busy(&[]), load: 200 });
    one.want(other, Class::Read);
    assert_eq!(asked_of(&one.told(home, other, busy(&[20, near]))), [Peer(20)]);
}

#[test]
fn a_home_that_misses_it_or_fails_is_followed_by_the_next_rank() {
    let mut one = One::new(20, Settings::default());
    let chunk = one.ranked(9);
    one.want(chunk, Class::Read);
    let outputs = one.told(one.home(chunk, 0), chunk, Answer::Missing { holders: Holders::new() });
    assert_eq!(asked_of(&outputs), [one.home(chunk, 1)]);
    let why = Failure::Refused;
    let outputs = one.input(Input::Failed { chunk, from: Source::Peer(one.home(chunk, 1)), why });
    assert_eq!(asked_of(&outputs), [one.home(chunk, 2)]);
    let down = one.home(chunk, 2);
    let outputs = one.event(Event::Peers(PeerUpdate::Down { peer: down }));
    // The chain is exhausted: the lease home is the first rank, which failed; so the strata.
    assert!(outputs.contains(&Output::FetchUpstream { chunk }), "{outputs:?}");
    let counts = one.core.counts();
    assert_eq!((counts.homes_failed_over, counts.leases, counts.leases_lapsed), (2, 1, 0));
}

#[test]
fn a_silent_source_is_left_for_another() {
    let mut one = One::new(20, Settings::default());
    let chunk = one.ranked(9);
    one.want(chunk, Class::Read);
    let outputs = one.pass(Duration::from_secs(7));
    let home = one.home(chunk, 0);
    assert!(outputs.contains(&Output::Cancel { peer: home, chunk }));
    assert_eq!(asked_of(&outputs)[0], one.home(chunk, 1));
}

#[test]
fn one_source_does_not_make_a_reader_wait_for_ever() {
    let mut one = One::new(20, Settings::default());
    let chunk = one.ranked(9);
    let home = one.home(chunk, 0);
    one.want(chunk, Class::Read);
    let mut asked = Vec::new();
    for _ in 0..40 {
        asked.extend(asked_of(&one.pass(Duration::from_millis(500))));
        asked.extend(asked_of(&one.told(home, chunk, Answer::Wait)));
    }
    assert!(asked.contains(&one.home(chunk, 1)), "{asked:?}");
}

#[test]
fn reads_are_begun_before_fills_and_a_full_window_of_fills_does_not_stop_a_read() {
    let settings = Settings { window_bytes: 4 << 20, ..Settings::default() };
    let mut one = One::new(20, settings);
    let mut begun = 0;
    for chunk in (0..20).map(Chunk) {
        let outputs = one.want(chunk, Class::Fill);
        begun += asked_of(&outputs).len();
        begun += outputs.iter().filter(|output| matches!(output, Output::FetchUpstream { .. })).count();
    }
    assert_eq!(begun, 4);
    let read = one.ranked(9);
    assert_eq!(asked_of(&one.want(read, Class::Read)).len(), 1);
}

#[test]
fn too_many_wants_and_late_ones_are_given_up_at_once() {
    let mut one = One::new(2, Settings { wants_max: 3, ..Settings::default() });
    for chunk in (0..3).map(Chunk) {
        one.want(chunk, Class::Fill);
    }
    let chunk = Chunk(3);
    assert_eq!(one.want(chunk, Class::Fill), [Output::GiveUp { chunk, why: GiveUp::TooMany }]);
    let mut one = One::new(2, Settings::default());
    one.pass(Duration::from_secs(1));
    let late = one.input(Input::Wanted { chunk, class: Class::Read, deadline: Time::ZERO });
    assert_eq!(late, [Output::GiveUp { chunk, why: GiveUp::Deadline }]);
    let chunk = Chunk(u32::MAX);
    assert_eq!(one.want(chunk, Class::Fill), [Output::GiveUp { chunk, why: GiveUp::TooMany }]);
}

#[test]
fn a_withdrawn_want_withdraws_its_ask_unless_somebody_waits() {
    let mut one = One::new(20, Settings::default());
    let chunk = one.ranked(2);
    let first = one.home(chunk, 0);
    one.want(chunk, Class::Read);
    assert_eq!(one.input(Input::Unwanted { chunk }), [Output::Cancel { peer: first, chunk }]);
    one.want(chunk, Class::Read);
    let asker = one.home(chunk, 10);
    assert_eq!(answer_to(&one.ask(asker.0, 1, chunk, Class::Read), 1), Some(&Answer::Wait));
    assert_eq!(one.input(Input::Unwanted { chunk }), []);
    assert_eq!(one.input(Input::AskGone { ask: Ask(1) }), [Output::Cancel { peer: first, chunk }]);
}

#[test]
fn the_strata_are_asked_for_a_bounded_number_of_bytes_and_retried_a_few_times() {
    let mut one = One::new(1, Settings { upstream_min: 3, ..Settings::default() });
    let fetched = |outputs: &[Output]| {
        outputs.iter().filter(|output| matches!(output, Output::FetchUpstream { .. })).count()
    };
    let begun: usize = (0..8).map(|chunk| fetched(&one.want(Chunk(chunk), Class::Read))).sum();
    assert_eq!(begun, 3);
    let next = one.input(Input::Arrived { chunk: Chunk(0), from: Source::Strata });
    assert_eq!(fetched(&next), 1);

    let mut one = One::new(1, Settings::default());
    let mut tries = fetched(&one.want(CHUNK, Class::Read));
    let failed = Input::Failed { chunk: CHUNK, from: Source::Strata, why: Failure::Unreachable };
    let mut outputs = Vec::new();
    for _ in 0..10 {
        outputs.extend(one.input(failed.clone()));
        let passed = one.pass(Duration::from_millis(500));
        tries += fetched(&passed);
        outputs.extend(passed);
    }
    outputs.extend(one.input(Input::Providers { segment: Segment(0), peers: vec![] }));
    assert_eq!(tries, usize::from(Settings::default().upstream_tries));
    assert!(outputs.contains(&Output::FindProviders { segment: Segment(0) }), "{outputs:?}");
    assert!(outputs.contains(&Output::GiveUp { chunk: CHUNK, why: GiveUp::NoSource }), "{outputs:?}");
}

#[test]
fn a_lease_lapses_without_progress() {
    let mut one = One::new(1, Settings::default());
    one.want(CHUNK, Class::Read);
    let outputs = one.pass(Duration::from_secs(7));
    assert!(outputs.contains(&Output::CancelUpstream { chunk: CHUNK }), "{outputs:?}");
    assert_eq!(one.core.counts().leases_lapsed, 1);
}

#[test]
fn a_lease_lasts_while_the_strata_send_something_of_the_same_call() {
    let mut one = One::new(1, Settings::default());
    one.want(CHUNK, Class::Read);
    for _ in 0..20 {
        let outputs = one.pass(Duration::from_millis(1_500));
        assert!(!outputs.contains(&Output::CancelUpstream { chunk: CHUNK }), "{outputs:?}");
        one.input(Input::Progress { chunk: CHUNK });
    }
    let outputs = one.pass(Duration::from_secs(7));
    assert!(outputs.contains(&Output::CancelUpstream { chunk: CHUNK }), "{outputs:?}");
}

#[test]
fn a_home_announces_each_segment_once_and_in_its_time() {
    let mut one = One::new(1, Settings::default());
    for chunk in (0..16).map(Chunk) {
        one.input(Input::Stored { chunk });
    }
    let announced = one.pass(Duration::from_secs(1));
    assert_eq!(announced, [0, 1].map(|segment| Output::Announce { segment: Segment(segment) }));
}

#[test]
fn what_was_evicted_is_not_served_any_more() {
    let mut one = One::new(20, Settings::default());
    let chunk = one.ranked(9);
    one.input(Input::Stored { chunk });
    one.input(Input::Evicted { chunk });
    let outputs = one.ask(one.home(chunk, 10).0, 1, chunk, Class::Read);
    assert!(matches!(answer_to(&outputs, 1), Some(Answer::Missing { .. })));
}

#[test]
fn a_reader_whose_ask_crosses_the_home_s_own_waits_there_and_does_not_go_upstream() {
    let mut one = One::new(12, Settings::default());
    let chunk = one.ranked(0);
    let second = one.home(chunk, 1);
    assert_eq!(asked_of(&one.want(chunk, Class::Read)), [second], "new and empty");
    assert_eq!(answer_to(&one.ask(second.0, 1, chunk, Class::Read), 1), Some(&Answer::Wait));
}

#[test]
fn a_want_whose_time_is_over_is_not_begun_when_the_window_gets_room() {
    let mut one = One::new(20, Settings { window_chunks: 1, ..Settings::default() });
    let (first, second) = (one.ranked(9), one.ranked(10));
    one.want(first, Class::Read);
    let soon = one.now + Duration::from_millis(5);
    one.input(Input::Wanted { chunk: second, class: Class::Read, deadline: soon });
    // The loop is late: the first chunk comes when the second's readers are gone.
    one.now = one.now + Duration::from_millis(9);
    let home = one.home(first, 0);
    let outputs = one.input(Input::Arrived { chunk: first, from: Source::Peer(home) });
    let given_up = Output::GiveUp { chunk: second, why: GiveUp::Deadline };
    assert_eq!(outputs, [Output::Deliver { chunk: first }, given_up]);
}

#[test]
fn an_ask_whose_chunk_was_evicted_while_it_stood_in_the_queue_is_not_served() {
    let settings = Settings { uploads_max: 1, ..Settings::default() };
    let mut one = One::new(20, settings);
    let chunk = one.ranked(9);
    one.input(Input::Stored { chunk });
    let askers = [one.home(chunk, 10), one.home(chunk, 11)];
    assert_eq!(one.ask(askers[0].0, 1, chunk, Class::Read), [Output::Serve { ask: Ask(1) }]);
    assert_eq!(one.ask(askers[1].0, 2, chunk, Class::Read), []);
    one.input(Input::Evicted { chunk });
    let outputs = one.input(Input::Served { ask: Ask(1), ok: true });
    assert!(matches!(answer_to(&outputs, 2), Some(Answer::Missing { .. })), "{outputs:?}");
    assert_eq!(outputs.len(), 1, "{outputs:?}");
}

#[test]
fn a_peer_of_another_cell_makes_this_one_fetch_only_where_the_lease_is() {
    let mut one = One::new(6, Settings::default());
    let stranger = Peer(50);
    let met = PeerUpdate::Met { peer: stranger, key: 77, cell: 1, cell_key: 6, region: 0, weight: 100 };
    one.event(Event::Peers(met));
    one.event(Event::Peers(PeerUpdate::Up { peer: stranger }));
    let leased_here = |chunk: &u32| one.core.peers().lease_home(Slice(*chunk), 0) != Some(stranger);
    let here = Chunk((0..400).find(leased_here).unwrap());
    let there = Chunk((0..400).find(|chunk| !leased_here(chunk)).unwrap());
    assert_eq!(answer_to(&one.ask(stranger.0, 1, here, Class::Read), 1), Some(&Answer::Wait));
    // It holds the lease itself and looks around: whoever waits for it must not be waited for by it.
    let outputs = one.ask(stranger.0, 2, there, Class::Read);
    assert!(matches!(answer_to(&outputs, 2), Some(Answer::Missing { .. })), "{outputs:?}");
    assert_eq!(asked_of(&outputs), []);
}

#[test]
fn one_who_was_named_makes_a_reader_wait_for_less_than_a_home() {
    let mut one = One::new(20, Settings::default());
    let chunk = one.ranked(9);
    let (home, named) = (one.home(chunk, 0), one.home(chunk, 12));
    one.want(chunk, Class::Read);
    assert_eq!(asked_of(&one.told(home, chunk, busy(&[named.0]))), [named]);
    let mut left_after = None;
    for half in 1..40_u32 {
        let mut outputs = one.pass(Duration::from_millis(500));
        outputs.extend(one.told(named, chunk, Answer::Wait));
        if outputs.contains(&Output::Cancel { peer: named, chunk }) {
            left_after.get_or_insert(Duration::from_millis(500) * half);
        }
    }
    let left_after = left_after.unwrap();
    assert!(left_after > Duration::from_secs(4) && left_after <= Duration::from_secs(5), "{left_after:?}");
}

#[test]
fn a_home_that_is_busy_for_ever_and_delivers_nothing_is_left_for_the_next_rank() {
    let mut one = One::new(20, Settings::default());
    let chunk = one.ranked(9);
    let (home, next) = (one.home(chunk, 0), one.home(chunk, 1));
    let mut asked = asked_of(&one.want(chunk, Class::Read));
    while asked == [home] {
        let outputs = one.told(home, chunk, busy(&[]));
        asked = asked_of(&outputs);
        if outputs.is_empty() {
            asked = asked_of(&one.pass(Duration::from_millis(900)));
        }
    }
    let after = one.now.since(Time::ZERO).as_secs();
    assert!(asked == [next] && (4..13).contains(&after), "{asked:?} after {after} s");
}

#[test]
fn one_chunk_goes_to_a_few_at_once_and_others_are_sent_to_them() {
    let mut one = One::new(20, Settings { same_chunk_max: 2, ..Settings::default() });
    let (chunk, other) = (one.ranked(0), one.ranked(1));
    one.input(Input::Stored { chunk });
    one.input(Input::Stored { chunk: other });
    // So that its uplink is known to have room for more.
    for number in 100..140 {
        one.ask(1, number, other, Class::Fill);
        one.now = one.now + Duration::from_millis(5);
        one.input(Input::Served { ask: Ask(number), ok: true });
    }
    for number in 1..=2 {
        assert_eq!(one.ask(number, number, chunk, Class::Fill), [Output::Serve { ask: Ask(number) }]);
    }
    let redirected = one.ask(5, 5, chunk, Class::Fill);
    let Some(Answer::Busy { holders }) = answer_to(&redirected, 5) else { panic!("{redirected:?}") };
    assert_eq!(holders.len(), 2);
    assert_eq!(one.ask(6, 6, other, Class::Fill), [Output::Serve { ask: Ask(6) }], "there was room");
    one.input(Input::Served { ask: Ask(1), ok: true });
    assert_eq!(one.ask(5, 7, chunk, Class::Fill), [Output::Serve { ask: Ask(7) }]);
}

#[test]
fn a_next_rank_that_let_wait_and_is_busy_then_does_not_have_it() {
    let mut one = One::new(20, Settings::default());
    let chunk = one.ranked(0);
    let (first, second) = (one.home(chunk, 1), one.home(chunk, 2));
    assert_eq!(asked_of(&one.want(chunk, Class::Read)), [first], "it is new and empty");
    assert_eq!(asked_of(&one.told(first, chunk, Answer::Wait)), []);
    assert_eq!(asked_of(&one.told(first, chunk, busy(&[]))), [second], "not the same again");
    // Who says so at once may have it and no room.
    assert_eq!(asked_of(&one.told(second, chunk, busy(&[]))), []);
    assert_eq!(asked_of(&one.pass(Duration::from_millis(100))), [second]);
}
