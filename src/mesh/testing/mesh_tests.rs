//! Whole nodes, with decisions, membership and transfer, on the virtual network. The DHT is left out but for one test:
//! libp2p keeps real time.

use super::world::address;
use super::{Link, World, run};
use crate::mesh::driver::tests::{Options, Stratum, TestNode, root};
use crate::mesh::{Contact, NewsVerdict, Obtained};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

const CHUNKS: u64 = 24;

impl World {
    /// A whole node at machine `number`.
    pub(super) fn node(
        &self,
        number: u8,
        options: Options,
        contacts: &[&TestNode],
        stratum: &Arc<Stratum>,
    ) -> TestNode {
        let identity = self.mesh.member_with(|membership| membership.cell = options.cell.parse().unwrap());
        TestNode::over(self.bind(&identity, number), identity, options, contacts, stratum)
    }

    /// Nodes 1 to `count` in one cell, who see each other.
    pub(super) async fn cell(&self, count: u8, stratum: &Arc<Stratum>) -> Vec<TestNode> {
        let options = || Options { dht: false, ..Options::cell("eu/a/r1") };
        let mut nodes = vec![self.node(1, options(), &[], stratum)];
        for number in 2..=count {
            let first = &nodes[..1];
            nodes.push(self.node(number, options(), &first.iter().collect::<Vec<_>>(), stratum));
        }
        for node in &nodes {
            until("all see all", 60, || async { node.up().await == usize::from(count) - 1 }).await;
        }
        nodes
    }
}

/// Waits in virtual time until `look` holds.
pub(super) async fn until<F: Future<Output = bool>>(what: &str, limit_s: u64, look: impl Fn() -> F) {
    let end = Instant::now() + Duration::from_secs(limit_s);
    while !look().await {
        assert!(Instant::now() < end, "not within {limit_s} s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn windy() -> Link {
    Link {
        latency: Duration::from_millis(2),
        jitter: Duration::from_millis(3),
        loss_permille: 20,
        bytes_per_s: Some(12_500_000),
        ..Link::default()
    }
}

async fn read_all(nodes: &[TestNode]) {
    let reads = nodes.iter().map(|node| async move {
        for n in 0..CHUNKS {
            node.get(n).await.unwrap();
        }
    });
    futures::future::join_all(reads).await;
}

/// Five nodes find each other and read the same at once; when they were done, and the trace.
async fn flash_crowd(world: World) -> (Duration, String) {
    let stratum = Stratum::with(CHUNKS);
    let nodes = world.cell(5, &stratum).await;
    read_all(&nodes).await;
    let copies: u32 = (0..CHUNKS).map(|n| stratum.given(n)).sum();
    assert!((24..=26).contains(&copies), "{copies} fetches from the stratum for {CHUNKS} chunks");
    (world.began.elapsed(), world.net.trace())
}

#[test]
fn five_nodes_that_read_the_same_take_hardly_more_than_one_copy_from_the_stratum_in_bad_weather() {
    let (took, _) = run(1, windy(), flash_crowd);
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn whole_nodes_do_the_same_for_the_same_seed() {
    let runs: Vec<_> = [3, 3, 4].into_iter().map(|seed| run(seed, windy(), flash_crowd)).collect();
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0].1, runs[2].1);
}

#[test]
fn a_black_holed_member_costs_readers_little_and_comes_back_when_it_is_reached_again() {
    run(5, Link::default(), |world| async move {
        let stratum = Stratum::with(CHUNKS);
        let nodes = world.cell(4, &stratum).await;
        world.net.black_hole(address(4));
        let began = Instant::now();
        read_all(&nodes[..3]).await;
        // The first asks of the dead home wait for the core's time-out of 2 s, once more where another had to wait.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!((0..CHUNKS).all(|n| stratum.given(n) <= 2));
        until("it is missed", 20, || async { nodes[0].up().await == 2 && nodes[2].up().await == 2 }).await;
        world.net.heal(address(4));
        until("it is back", 120, || async { nodes[0].up().await == 3 && nodes[3].up().await == 3 }).await;
        stratum.dead.store(true, Ordering::Relaxed);
        for n in 0..CHUNKS {
            assert!(matches!(nodes[3].get(n).await, Ok(Obtained::Peer(_))));
        }
    });
}

#[test]
fn the_halves_of_a_cut_go_on_with_what_they_have_and_complete_after_healing() {
    run(6, Link::default(), |world| async move {
        let stratum = Stratum::with(CHUNKS);
        let nodes = world.cell(4, &stratum).await;
        for n in 0..CHUNKS / 2 {
            nodes[0].get(n).await.unwrap();
            nodes[3].get(n).await.unwrap();
        }
        stratum.dead.store(true, Ordering::Relaxed);
        for number in [3, 4] {
            world.net.set_side(address(number), 1);
        }
        let began = Instant::now();
        for n in 0..CHUNKS / 2 {
            nodes[1].get(n).await.unwrap();
            nodes[2].get(n).await.unwrap();
        }
        assert_eq!(nodes[0].mesh.announce_local(root(7)).await, NewsVerdict::Fresh);
        tokio::time::sleep(Duration::from_secs(30).saturating_sub(began.elapsed())).await;
        assert_eq!(*nodes[2].local.revision.lock().unwrap(), 0);
        stratum.dead.store(false, Ordering::Relaxed);
        for number in [3, 4] {
            world.net.set_side(address(number), 0);
        }
        read_all(&nodes).await;
        until("the root crosses", 180, || async {
            nodes.iter().all(|node| *node.local.revision.lock().unwrap() == 7)
        })
        .await;
    });
}

#[test]
fn a_member_that_restarts_at_its_address_is_asked_on_a_new_connection() {
    run(7, Link::default(), |world| async move {
        let stratum = Stratum::with(CHUNKS);
        let mut nodes = world.cell(2, &stratum).await;
        read_all(&nodes).await;
        let old = nodes.pop().unwrap();
        let identity = old.identity.clone();
        // Not in order: nobody is told, as after a power failure.
        world.net.black_hole(address(2));
        drop(old);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        world.net.unplug(address(2));
        world.net.heal(address(2));
        let options = Options { dht: false, ..Options::cell("eu/a/r1") };
        let bound = world.bind(&identity, 2);
        let again = TestNode::over(bound, identity, options, &[&nodes[0]], &stratum);
        until("it is back", 30, || async { again.up().await == 1 && nodes[0].up().await == 1 }).await;
        stratum.dead.store(true, Ordering::Relaxed);
        let began = Instant::now();
        for n in 0..CHUNKS {
            assert_eq!(again.get(n).await, Ok(Obtained::Peer(nodes[0].identity.node())));
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    });
}

/// All start with what they remember of each other, none where it was: machine `now[n]` has the address of node `n + 1`.
fn all_start_elsewhere(seed: u64, now: [u8; 3], names: &[&str]) {
    run(seed, Link::default(), |world| async move {
        let stratum = Stratum::with(1);
        let cells = ["eu/a/r1", "eu/b/r1", "eu/b/r1"];
        let identities =
            cells.map(|cell| world.mesh.member_with(|membership| membership.cell = cell.parse().unwrap()));
        let remembered: Vec<Contact> = identities
            .iter()
            .zip(1..)
            .map(|(identity, number)| Contact { node: identity.node(), addresses: vec![address(number)] })
            .collect();
        let mut nodes = Vec::new();
        for ((identity, cell), number) in identities.iter().zip(cells).zip(now) {
            let others = remembered.iter().filter(|contact| contact.node != identity.node());
            let options = Options {
                dht: false,
                remembered: others.cloned().collect(),
                bootstrap: names.iter().map(|name| (*name).to_owned()).collect(),
                ..Options::cell(cell)
            };
            nodes.push(TestNode::over(
                world.bind(identity, number),
                identity.clone(),
                options,
                &[],
                &stratum,
            ));
        }
        for node in &nodes {
            until("all see all", 120, || async { node.up().await == 2 }).await;
        }
    });
}

#[test]
fn members_that_start_with_each_others_addresses_find_each_other() {
    all_start_elsewhere(10, [2, 3, 1], &[]);
}

#[test]
fn members_that_all_start_at_new_addresses_find_each_other_by_name() {
    all_start_elsewhere(11, [4, 5, 6], &["10.0.0.5:4000", "10.0.0.9:4000"]);
}

#[test]
fn two_regions_find_each_others_content_by_the_dht_over_the_virtual_network() {
    run(8, Link::default(), |world| async move {
        let (stratum, nothing) = (Stratum::with(4), Stratum::with(0));
        let bootstrap = world.node(1, Options::cell("middle/m/m"), &[], &nothing);
        let a = world.node(2, Options::cell("east/a/a"), &[&bootstrap], &stratum);
        for n in 0..4 {
            assert_eq!(a.get(n).await, Ok(Obtained::Strata));
        }
        stratum.dead.store(true, Ordering::Relaxed);
        let b = world.node(3, Options::cell("west/b/b"), &[&bootstrap], &stratum);
        // libp2p's own timers run in real time, so virtual minutes pass while it thinks.
        until("B knows another region", 3_600, || async { b.up().await >= 1 }).await;
        until("B finds A", 3_600, || async { b.get(0).await == Ok(Obtained::Peer(a.identity.node())) }).await;
    });
}

#[test]
fn nobody_answers_at_an_address_that_does_not_exist_and_a_node_alone_reads_from_the_strata() {
    run(9, Link::default(), |world| async move {
        let stratum = Stratum::with(2);
        let nowhere: SocketAddr = address(99);
        let ghost = world.mesh.member();
        let alone = world.node(1, Options { dht: false, ..Options::cell("eu/a/r1") }, &[], &stratum);
        let (dialler, _incoming) = world.bind(&world.mesh.member(), 2);
        assert!(dialler.connection(ghost.node(), nowhere).await.is_err());
        assert_eq!(alone.get(1).await, Ok(Obtained::Strata));
    });
}
