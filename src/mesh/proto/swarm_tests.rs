//! Seeded swarms: whatever is lost, dies or lies, every want ends in time; once all is well, every want is served.

use super::testing::{CHUNKS_PER_SLICE, Faults, MS, Net};
use super::wants::GATHER;
use super::*;
use crate::model::{Class, Rng, Time};
use std::collections::BTreeMap;
use std::time::Duration;

const CHUNKS: u32 = 24;

/// A failing seed is shown by the test that runs it.
fn seeds(count: u64, name: &str, run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    for seed in 0..count {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("{name}: seed {seed} fails");
            std::panic::resume_unwind(panic);
        }
    }
}

fn peer(number: usize) -> Peer {
    Peer(u32::try_from(number).unwrap())
}

/// Two cells of one region and one of another.
fn three_cells() -> Vec<(u32, u32)> {
    (0..12).map(|node| (node / 4, node / 8)).collect()
}

#[test]
fn under_faults_every_want_ends_by_its_deadline_and_after_healing_all_are_served() {
    seeds(100, "faults", |seed| {
        let mut net = Net::new(&three_cells(), CHUNKS, Settings::default(), seed);
        net.faults = Faults { lose: 20, strata_fail: 6 };
        let liar = net.rng.below(12);
        net.members[liar].liar = true;
        for round in 0..6 {
            for _ in 0..40 {
                let (at, chunk) = (net.rng.below(12), net.rng.below(CHUNKS as usize));
                if net.members[at].alive {
                    let class = [Class::Read, Class::Prefetch, Class::Fill][net.rng.below(3)];
                    let within = MS * u32::try_from(50 + net.rng.below(8_000)).unwrap();
                    net.want(peer(at), Chunk(u32::try_from(chunk).unwrap()), class, within);
                }
            }
            let victim = net.rng.below(12);
            if net.members[victim].alive {
                let unnoticed = MS * u32::try_from(net.rng.below(1_500)).unwrap();
                net.kill(peer(victim), unnoticed);
            }
            net.strata_up = round != 2;
            let until = net.now + 700 * MS;
            net.run(until);
            if let Some(dead) = net.members.iter().position(|member| !member.alive)
                && net.rng.below(2) == 0
            {
                net.restart(peer(dead));
            }
        }
        net.run(net.now + Duration::from_secs(20));
        assert_eq!(net.open_wants(), 0, "every want ends");
        heal_and_read_all(&mut net);
    });
}

fn heal_and_read_all(net: &mut Net) {
    net.faults = Faults::default();
    net.strata_up = true;
    for number in 0..net.members.len() {
        net.members[number].liar = false;
        if !net.members[number].alive {
            net.restart(peer(number));
        }
    }
    net.run(net.now + Duration::from_secs(5));
    net.results.clear();
    for number in 0..net.members.len() {
        for chunk in (0..CHUNKS).map(Chunk) {
            net.want(peer(number), chunk, Class::Read, Duration::from_secs(30));
        }
    }
    net.run(net.now + Duration::from_secs(31));
    assert_eq!(net.open_wants(), 0);
    let failed: Vec<_> = net.results.iter().filter(|result| result.2.is_err()).collect();
    assert!(failed.is_empty(), "with a live source all is delivered: {failed:?}");
}

#[test]
fn without_faults_a_chunk_leaves_the_strata_once_a_region() {
    seeds(20, "once", |seed| {
        let cells: Vec<(u32, u32)> = (0..20).map(|node| (node / 10, 0)).collect();
        let mut net = Net::new(&cells, CHUNKS, Settings::default(), seed);
        for number in 0..20 {
            for chunk in (0..CHUNKS).map(Chunk) {
                net.want(peer(number), chunk, Class::Read, Duration::from_secs(30));
            }
        }
        net.run(Time::ZERO + Duration::from_secs(30));
        assert_eq!((net.open_wants(), net.results.len()), (0, 20 * CHUNKS as usize));
        assert!(net.results.iter().all(|result| result.2.is_ok()));
        let mut upstream: BTreeMap<Chunk, usize> = BTreeMap::new();
        for (_, _, output) in &net.log {
            if let Output::FetchUpstream { chunk } = output {
                *upstream.entry(*chunk).or_default() += 1;
            }
        }
        assert_eq!(upstream.len(), CHUNKS as usize);
        assert!(upstream.values().all(|count| *count == 1), "20 readers in two cells: {upstream:?}");
    });
}

#[test]
fn where_views_are_at_odds_a_slice_s_lease_is_too_and_nowhere_else() {
    seeds(10, "at odds", |seed| {
        let cells: Vec<(u32, u32)> = (0..20).map(|node| (node / 10, 0)).collect();
        let mut net = Net::new(&cells, 80, Settings::default(), seed);
        // Half of the nodes of both cells believe that a member is dead which is alive.
        let shunned = peer(net.rng.below(20));
        let believers: Vec<Peer> = (0..20).step_by(2).map(peer).filter(|node| *node != shunned).collect();
        for believer in &believers {
            net.believe_dead(*believer, shunned);
        }
        for number in 0..20 {
            for chunk in (0..80).map(Chunk) {
                net.want(peer(number), chunk, Class::Read, Duration::from_secs(30));
            }
        }
        net.run(Time::ZERO + Duration::from_secs(30));
        assert_eq!((net.open_wants(), net.results.len()), (0, 20 * 80));
        assert!(net.results.iter().all(|result| result.2.is_ok()));
        let mut upstream: BTreeMap<Chunk, usize> = BTreeMap::new();
        for (_, _, output) in &net.log {
            if let Output::FetchUpstream { chunk } = output {
                *upstream.entry(*chunk).or_default() += 1;
            }
        }
        let (mut disputed, mut taken) = (0, 0);
        for (chunk, copies) in upstream {
            let slice = Slice(chunk.0 / CHUNKS_PER_SLICE);
            let lease = |viewer: u32| net.members[viewer as usize].core.peers().lease_home(slice, 0);
            if (0..20).any(|viewer| lease(viewer) != lease(0)) {
                (disputed, taken) = (disputed + 1, taken + copies);
            } else {
                assert_eq!(copies, 1, "{chunk:?}");
            }
        }
        assert!(taken <= 2 * disputed, "two views take {taken} copies of {disputed} chunks");
    });
}

#[test]
fn a_dead_home_is_replaced_by_the_next_rank_and_not_by_the_strata() {
    seeds(10, "dead home", |seed| {
        let mut net = Net::new(&[(0, 0); 6], CHUNKS, Settings::default(), seed);
        let chunk = Chunk(5);
        let (first, second) = (net.home(0, chunk, 0), net.home(0, chunk, 1));
        net.store(second, chunk);
        // Nobody has noticed yet: the ask fails, and the next rank is asked.
        net.kill(first, Duration::from_secs(60));
        let reader = (0..6).map(peer).find(|reader| ![first, second].contains(reader)).unwrap();
        net.want(reader, chunk, Class::Read, Duration::from_secs(10));
        net.run(Time::ZERO + Duration::from_secs(10));
        assert_eq!(net.results, [(reader, chunk, Ok(()))]);
        assert_eq!(net.fetched_upstream(), 0);
        assert!(
            net.log.iter().any(|(_, who, output)| *who == second && matches!(output, Output::Serve { .. }))
        );
    });
}

#[test]
fn a_new_and_empty_home_asks_the_next_two_ranks_before_the_strata() {
    for holder_rank in [1, 2] {
        let mut net = Net::new(&[(0, 0); 8], CHUNKS, Settings::default(), 1);
        let chunk = Chunk(9);
        let holder = net.home(0, chunk, holder_rank);
        net.store(holder, chunk);
        let home = net.home(0, chunk, 0);
        net.want(home, chunk, Class::Read, Duration::from_secs(10));
        net.run(Time::ZERO + Duration::from_secs(10));
        assert_eq!((net.results.len(), net.fetched_upstream()), (1, 0), "rank {holder_rank} had it");
        let asked = net.count(|output| matches!(output, Output::Ask { .. }));
        assert_eq!(asked, holder_rank, "in their order");
    }
    // Nobody has it: both say so at once, without fetching in their turn, and the strata are asked once.
    let mut net = Net::new(&[(0, 0); 8], CHUNKS, Settings::default(), 1);
    let home = net.home(0, Chunk(9), 0);
    net.want(home, Chunk(9), Class::Read, Duration::from_secs(10));
    net.run(Time::ZERO + Duration::from_secs(10));
    assert_eq!((net.count(|output| matches!(output, Output::Ask { .. })), net.fetched_upstream()), (2, 1));
}

#[test]
fn a_next_rank_that_holds_a_part_of_the_slice_is_asked_for_every_chunk_of_it() {
    let mut net = Net::new(&[(0, 0); 8], CHUNKS, Settings::default(), 1);
    let (missing, held) = (Chunk(8), Chunk(9));
    let home = net.home(0, missing, 0);
    net.store(net.home(0, held, 1), held);
    for chunk in [missing, held] {
        net.want(home, chunk, Class::Read, Duration::from_secs(10));
        net.run(net.now + Duration::from_secs(10));
    }
    assert_eq!(
        (net.results.len(), net.fetched_upstream()),
        (2, 1),
        "only what nobody holds is taken from the strata"
    );
}

#[test]
fn after_a_cut_a_home_asks_the_next_ranks_again() {
    let settings = Settings { neighbours: 0, ..Settings::default() };
    let mut net = Net::new(&[(0, 0); 8], CHUNKS, settings, 1);
    let (first, second) = (Chunk(8), Chunk(9));
    let (home, next) = (net.home(0, first, 0), net.home(0, first, 1));
    assert_eq!(net.home(0, second, 0), home, "of one slice");
    net.want(home, first, Class::Read, Duration::from_secs(10));
    net.run(net.now + Duration::from_secs(10));
    // Its next rank was the home meanwhile, for others who were cut off with it.
    net.kill(next, Duration::from_millis(1));
    net.run(net.now + Duration::from_secs(10));
    net.restart(next);
    net.store(next, second);
    net.run(net.now + Duration::from_secs(10));
    net.want(home, second, Class::Read, Duration::from_secs(10));
    net.run(net.now + Duration::from_secs(10));
    assert_eq!((net.results.len(), net.fetched_upstream()), (2, 1));
}

#[test]
fn with_peers_that_hold_it_and_no_stratum_every_read_succeeds() {
    // The one holder is of no low rank: the DHT finds it if it announced, else the members are asked in turn.
    for announced in [true, false] {
        let mut net = Net::new(&[(0, 0); 10], CHUNKS, Settings::default(), 3);
        net.strata_up = false;
        for chunk in (0..CHUNKS).map(Chunk) {
            let holder = net.home(0, chunk, 8);
            net.store(holder, chunk);
            if announced {
                let segment = Segment(chunk.0 / CHUNKS_PER_SLICE / 2);
                net.announced.entry(segment).or_default().insert(holder);
            }
        }
        for number in 0..10 {
            for chunk in (0..CHUNKS).map(Chunk) {
                net.want(peer(number), chunk, Class::Read, Duration::from_secs(30));
            }
        }
        net.run(Time::ZERO + Duration::from_secs(31));
        let failed: Vec<_> = net.results.iter().filter(|result| result.2.is_err()).collect();
        assert!(failed.is_empty() && net.open_wants() == 0, "announced {announced}: {failed:?}");
    }
}

#[test]
fn another_region_is_asked_before_the_strata() {
    let mut net = Net::new(&three_cells(), CHUNKS, Settings::default(), 4);
    let chunk = Chunk(3);
    net.store(Peer(9), chunk);
    net.announced.entry(Segment(0)).or_default().insert(Peer(9));
    net.want(Peer(0), chunk, Class::Read, Duration::from_secs(10));
    net.run(Time::ZERO + Duration::from_secs(10));
    assert_eq!(net.results, [(Peer(0), chunk, Ok(()))]);
    assert_eq!(net.fetched_upstream(), 0);
    assert_eq!(net.count(|output| matches!(output, Output::FindProviders { .. })), 1);
}

#[test]
fn what_a_fill_comes_to_later_is_looked_up_meanwhile() {
    let looked_up = |lookups_ahead| {
        let (window_min, window_even, window_chunks) = (1, 1, 1);
        let settings =
            Settings { lookups_ahead, window_min, window_even, window_chunks, ..Settings::default() };
        let mut net = Net::new(&three_cells(), CHUNKS, settings, 4);
        for number in 0..10 {
            for chunk in (0..CHUNKS).map(Chunk) {
                net.want(peer(number), chunk, Class::Fill, Duration::from_secs(60));
            }
        }
        net.run(net.now + GATHER);
        let first = net.count(|output| matches!(output, Output::FindProviders { .. }));
        net.run(Time::ZERO + Duration::from_secs(61));
        assert!(net.open_wants() == 0 && net.results.iter().all(|result| result.2.is_ok()));
        first
    };
    let (without, with) = (looked_up(0), looked_up(48));
    assert!(with > 2 * without, "{with} and {without} before anything came");
}

#[test]
fn alone_with_a_stratum_every_read_succeeds_and_without_one_fails_in_time() {
    let mut net = Net::new(&[(0, 0)], CHUNKS, Settings::default(), 5);
    for chunk in (0..CHUNKS).map(Chunk) {
        net.want(Peer(0), chunk, Class::Read, Duration::from_secs(10));
    }
    net.run(Time::ZERO + Duration::from_secs(10));
    assert!(net.results.len() == CHUNKS as usize && net.results.iter().all(|result| result.2.is_ok()));
    let mut net = Net::new(&[(0, 0)], CHUNKS, Settings::default(), 5);
    net.strata_up = false;
    net.want(Peer(0), Chunk(0), Class::Read, Duration::from_secs(10));
    net.run(Time::ZERO + Duration::from_secs(10));
    assert_eq!(net.results, [(Peer(0), Chunk(0), Err(GiveUp::NoSource))]);
}

#[test]
fn a_liar_is_distrusted_and_the_read_succeeds_from_another_source() {
    let mut net = Net::new(&[(0, 0); 5], CHUNKS, Settings::default(), 6);
    let chunk = Chunk(7);
    let (liar, honest) = (net.home(0, chunk, 0), net.home(0, chunk, 1));
    net.members[liar.0 as usize].liar = true;
    net.store(liar, chunk);
    net.store(honest, chunk);
    let reader = (0..5).map(peer).find(|reader| ![liar, honest].contains(reader)).unwrap();
    net.want(reader, chunk, Class::Read, Duration::from_secs(10));
    net.run(Time::ZERO + Duration::from_secs(10));
    assert_eq!(net.results, [(reader, chunk, Ok(()))]);
    assert_eq!(net.count(|output| *output == Output::Distrust { peer: liar }), 1);
    net.want(reader, Chunk(6), Class::Read, Duration::from_secs(10)); // Of the same slice.
    net.log.clear();
    net.run(net.now + Duration::from_secs(10));
    let asks_it = |output: &Output| matches!(output, Output::Ask { peer, .. } if *peer == liar);
    assert!(!net.log.iter().any(|(_, who, output)| *who == reader && asks_it(output)));
}

#[test]
fn news_reaches_all_members_once_and_the_other_cells() {
    let cells: Vec<(u32, u32)> = (0..60).map(|node| (node / 30, 0)).collect();
    let mut net = Net::new(&cells, 4, Settings::default(), 8);
    net.input(Peer(0), Input::NewsSeen { news: NewsId(1), from: None });
    net.run(Time::ZERO + Duration::from_secs(5));
    let mut told = vec![false; 60];
    let mut spread: BTreeMap<Peer, usize> = BTreeMap::new();
    for (_, who, output) in &net.log {
        if let Output::Spread { to, .. } = output {
            told[to.0 as usize] = true;
            *spread.entry(*who).or_default() += 1;
        }
    }
    assert!(told[1..].iter().all(|told| *told), "{told:?}");
    let repeats = usize::from(Settings::default().news_repeats);
    assert!(spread.values().all(|count| *count <= 8 + 8 + repeats), "bounded fan-out: {spread:?}");
}

#[test]
fn a_new_cell_takes_what_another_cell_of_the_region_holds_and_nothing_from_the_strata() {
    // The old cell had the lease of all slices before the new one came; it holds one half of them.
    let cells: Vec<(u32, u32)> = (0..12).map(|node| (node / 6, 0)).collect();
    let mut net = Net::new(&cells, 4 * CHUNKS, Settings::default(), 9);
    for chunk in (0..4 * CHUNKS).map(Chunk) {
        if chunk.0 < 2 * CHUNKS {
            let home = net.home(0, chunk, 0);
            net.store(home, chunk);
        }
    }
    for chunk in (0..4 * CHUNKS).map(Chunk) {
        net.want(Peer(6 + chunk.0 % 6), chunk, Class::Fill, Duration::from_secs(60));
    }
    net.run(Time::ZERO + Duration::from_secs(60));
    assert!(net.results.iter().all(|result| result.2.is_ok()) && net.open_wants() == 0);
    let fetched: Vec<u32> = net
        .log
        .iter()
        .filter_map(|(_, _, output)| match output {
            Output::FetchUpstream { chunk } => Some(chunk.0),
            _ => None,
        })
        .collect();
    assert!(fetched.iter().all(|chunk| *chunk >= 2 * CHUNKS), "{fetched:?}");
    assert_eq!(fetched.len(), 2 * CHUNKS as usize, "one copy of what nobody had");
}
