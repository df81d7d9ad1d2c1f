//! Nodes with real endpoints on loopback.

use super::super::endpoint::{EndpointConfig, Incoming};
use super::super::identity::tests::TestMesh;
use super::*;
use crate::model::ContentId;
use std::time::Duration;

struct TestNode {
    endpoint: Endpoint,
    dht: Dht,
    neighbours: mpsc::Receiver<Neighbour>,
    addr: SocketAddr,
    chunks: mpsc::Receiver<MemberConnection>,
}

fn node(mesh: &TestMesh, cell: &str, contacts: &[&TestNode]) -> TestNode {
    node_with(mesh, cell, contacts, Spread::default())
}

fn node_with(mesh: &TestMesh, cell: &str, contacts: &[&TestNode], spread: Spread) -> TestNode {
    let identity = mesh.member_with(|membership| membership.cell = cell.parse().unwrap());
    let config = EndpointConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (endpoint, Incoming { libp2p, chunks, .. }) = Endpoint::bind(config, identity).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let contacts = contacts.iter().map(|contact| (contact.endpoint.node(), contact.addr)).collect();
    let start = DhtStart { endpoint: endpoint.clone(), addr, contacts, incoming: libp2p, spread };
    let (dht, neighbours) = Dht::start(start).unwrap();
    TestNode { endpoint, dht, neighbours, addr, chunks }
}

/// Repeats `look` until it gives something; a generous bound, not a measurement.
async fn eventually<T, F: Future<Output = Option<T>>>(look: impl Fn() -> F) -> T {
    for _ in 0..300 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not within half a minute");
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_node_that_knows_only_the_bootstrap_finds_a_provider_and_dials_it() {
    let mesh = TestMesh::new();
    let b = node(&mesh, "middle/b/b", &[]);
    let mut a = node(&mesh, "east/a/a", &[&b]);
    let key = DhtKey::segment(&ContentId::of(b"segment"));
    a.dht.announce(key, Urgency::Fresh);
    eventually(|| async { (count(&a.dht.counters().announcements) > 0).then_some(()) }).await;
    eventually(|| async { (count(&b.dht.counters().records) > 0).then_some(()) }).await;

    let c = node(&mesh, "west/c/c", &[&b]);
    let found = eventually(|| async { Some(c.dht.find(key).await).filter(|found| !found.is_empty()) }).await;
    assert_eq!(found, [(a.endpoint.node(), a.addr)]);
    assert!(count(&c.dht.counters().lookups) > 0 && count(&c.dht.counters().found) == 1);

    let connection = c.endpoint.connection(found[0].0, found[0].1).await.unwrap();
    assert_eq!(connection.membership().cell.as_str(), "east/a/a");
    assert_eq!(a.chunks.recv().await.unwrap().node(), c.endpoint.node());
    assert_eq!(c.dht.find(DhtKey::region("nowhere")).await, []);
}

#[tokio::test]
async fn neighbours_are_reported_with_the_certificate_that_they_showed() {
    let mesh = TestMesh::new();
    let mut b = node(&mesh, "middle/b/b", &[]);
    let mut a = node(&mesh, "east/a/a", &[&b]);
    let neighbour = |of: &TestNode| {
        let membership = of.endpoint.identity().membership();
        Some(Neighbour { node: of.endpoint.node(), addr: of.addr, membership })
    };
    assert_eq!(a.neighbours.recv().await, neighbour(&b));
    assert_eq!(b.neighbours.recv().await, neighbour(&a));
}

#[tokio::test]
async fn a_stranger_of_another_mesh_learns_and_announces_nothing() {
    let (mesh, other) = (TestMesh::new(), TestMesh::new());
    let b = node(&mesh, "middle/b/b", &[]);
    let a = node(&mesh, "east/a/a", &[&b]);
    let key = DhtKey::cell(&"east/a/a".parse().unwrap());
    a.dht.announce(key, Urgency::Fresh);
    eventually(|| async { (count(&b.dht.counters().records) == 1).then_some(()) }).await;
    let stranger = node(&other, "east/a/a", &[&b, &a]);
    stranger.dht.announce(DhtKey::region("east"), Urgency::Fresh);
    assert_eq!(stranger.dht.find(key).await, []);
    assert_eq!(count(&stranger.dht.counters().announcements), 0);
    assert_eq!(count(&b.dht.counters().records), 1);
}

#[tokio::test]
async fn a_node_that_is_no_member_any_more_leaves_the_table_and_takes_its_records_along() {
    let mesh = TestMesh::new();
    let b = node(&mesh, "middle/b/b", &[]);
    let a = node(&mesh, "east/a/a", &[&b]);
    let key = DhtKey::region("east");
    a.dht.announce(key, Urgency::Fresh);
    eventually(|| async { (count(&b.dht.counters().records) == 1).then_some(()) }).await;
    assert_eq!(count(&b.dht.counters().peers), 1);
    b.dht.forget(a.endpoint.node());
    eventually(|| async { (count(&b.dht.counters().records) == 0).then_some(()) }).await;
    assert_eq!((count(&b.dht.counters().peers), b.dht.find(key).await), (0, vec![]));
}

#[tokio::test]
async fn a_full_queue_loses_no_wish_to_forget_and_what_waits_in_it_brings_nobody_back() {
    let mesh = TestMesh::new();
    let b = node(&mesh, "middle/b/b", &[]);
    let a = node(&mesh, "east/a/a", &[&b]);
    eventually(|| async { (count(&b.dht.counters().peers) == 1).then_some(()) }).await;
    a.endpoint.close(Duration::ZERO).await;
    // Nothing waits between these, so that the task does not get at its queue.
    let membership = a.endpoint.identity().membership();
    for _ in 0..=COMMANDS_MAX {
        let (node, membership) = (a.endpoint.node(), membership.clone());
        b.dht.add_member(Neighbour { node, addr: a.addr, membership });
    }
    assert!(count(&b.dht.counters().refused) > 0);
    b.dht.forget(a.endpoint.node());
    eventually(|| async { (count(&b.dht.counters().peers) == 0).then_some(()) }).await;
    // All commands of before have been obeyed by the time that this one is.
    assert_eq!(b.dht.find(DhtKey::region("east")).await, []);
    assert_eq!(count(&b.dht.counters().peers), 0);
}

#[tokio::test]
async fn who_was_never_met_is_not_in_the_routing_table() {
    let mesh = TestMesh::new();
    let b = node(&mesh, "middle/b/b", &[]);
    // A contact that does not exist, and one that does.
    b.dht.add_contact(NodeId([9; 32]), SocketAddr::from(([127, 0, 0, 1], 1)));
    let a = node(&mesh, "east/a/a", &[&b]);
    eventually(|| async { (count(&a.dht.counters().peers) == 1).then_some(()) }).await;
    eventually(|| async { (count(&b.dht.counters().peers) == 1).then_some(()) }).await;
    a.dht.down(b.endpoint.node());
    eventually(|| async { (count(&a.dht.counters().peers) == 0).then_some(()) }).await;
}

#[tokio::test]
async fn requests_beyond_a_members_rate_wait_and_others_are_served() {
    let mesh = TestMesh::new();
    let b = node(&mesh, "middle/b/b", &[]);
    let loud = node(&mesh, "east/a/a", &[&b]);
    let quiet = node(&mesh, "west/c/c", &[&b]);
    let other = node(&mesh, "north/d/d", &[&b]);
    let key = DhtKey::region("west");
    quiet.dht.announce(key, Urgency::Fresh);
    eventually(|| async { (count(&b.dht.counters().records) > 0).then_some(()) }).await;
    eventually(|| async { (count(&loud.dht.counters().peers) > 0).then_some(()) }).await;
    for round in 0..20u64 {
        let finds = (0..128u64).map(|n| {
            let key = DhtKey::segment(&ContentId::of(&(1_000 * round + n).to_le_bytes()));
            loud.dht.find(key)
        });
        let _ = tokio::time::timeout(Duration::from_secs(2), futures::future::join_all(finds)).await;
        if count(&b.dht.counters().delayed) > 0 {
            break;
        }
    }
    eventually(|| async { (count(&b.dht.counters().delayed) > 0).then_some(()) }).await;
    let found =
        eventually(|| async { Some(other.dht.find(key).await).filter(|found| !found.is_empty()) }).await;
    assert_eq!(found, [(quiet.endpoint.node(), quiet.addr)]);
}

/// User and system time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse().unwrap())
        .collect();
    // 100 ticks a second, as on every Linux that is met.
    Duration::from_millis(10 * (fields[0] + fields[1]))
}

/// Announces one key at each of some nodes and looks each up at others. The share that was found.
async fn measure(nodes: usize, replicas: usize, keys: usize) -> f64 {
    let mesh = TestMesh::new();
    let spread = Spread { replicas: NonZeroUsize::new(replicas).unwrap(), ..Spread::default() };
    let mut all: Vec<TestNode> = Vec::new();
    for number in 0..nodes {
        let contacts: Vec<&TestNode> = all.iter().take(2).collect();
        let cell = format!("r{}/a/a", number % 8);
        all.push(node_with(&mesh, &cell, &contacts, spread));
    }
    let least = (nodes / 2).min(20) as u64;
    for node in &all {
        eventually(|| async { (count(&node.dht.counters().peers) >= least).then_some(()) }).await;
    }
    let requests = || all.iter().map(|node| count(&node.dht.counters().requests)).sum::<u64>();
    // Until the tables are filled and the mesh is quiet.
    eventually(|| async {
        let before = requests();
        tokio::time::sleep(Duration::from_secs(2)).await;
        (requests() == before).then_some(())
    })
    .await;
    let key = |number: usize| DhtKey::segment(&ContentId::of(&number.to_le_bytes()));
    let (before, cpu_before) = (requests(), cpu());
    for number in 0..keys {
        all[number % nodes].dht.announce(key(number), Urgency::Fresh);
    }
    eventually(|| async {
        let announced: u64 = all.iter().map(|node| count(&node.dht.counters().announcements)).sum();
        (announced >= keys as u64).then_some(())
    })
    .await;
    let (announced, cpu_announced) = (requests() - before, cpu() - cpu_before);
    let (before, cpu_before) = (requests(), cpu());
    let mut found = 0;
    for number in 0..2 * keys {
        let asker = &all[(number * 7 + 3) % nodes];
        let provider = all[number % keys % nodes].endpoint.node();
        let providers = asker.dht.find(key(number % keys)).await;
        found += usize::from(providers.iter().any(|(node, _)| *node == provider));
    }
    let share = found as f64 / (2 * keys) as f64;
    println!(
        "{nodes} nodes, {replicas} replicas: an announcement {:.1} requests, {:.1} ms of CPU of all; a look-up {:.1} requests, {:.1} ms; found {:.1} %",
        announced as f64 / keys as f64,
        cpu_announced.as_secs_f64() * 1_000.0 / keys as f64,
        (requests() - before) as f64 / (2 * keys) as f64,
        (cpu() - cpu_before).as_secs_f64() * 1_000.0 / (2 * keys) as f64,
        100.0 * share
    );
    share
}

/// With `STARLING_DHT_NODES=80` this is the measurement of docs/mesh-protocol.md: it then tries several numbers of
/// replicas, one after the other, and prints what they cost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_announced_is_found_by_all_with_the_chosen_number_of_replicas() {
    let chosen = Spread::default().replicas.get();
    match std::env::var("STARLING_DHT_NODES").ok().and_then(|nodes| nodes.parse().ok()) {
        Some(nodes) => {
            for replicas in [3, 5, chosen, 12, 20] {
                measure(nodes, replicas, 60).await;
            }
        }
        None => assert!(measure(24, chosen, 16).await >= 1.0),
    }
}
