//! Nodes with real endpoints on loopback.

use super::super::endpoint::{EndpointConfig, Incoming};
use super::super::identity::tests::TestMesh;
use super::*;
use crate::model::ContentId;

struct TestNode {
    endpoint: Endpoint,
    dht: Dht,
    neighbours: mpsc::Receiver<Neighbour>,
    addr: SocketAddr,
    chunks: mpsc::Receiver<MemberConnection>,
}

fn node(mesh: &TestMesh, cell: &str, contacts: &[&TestNode]) -> TestNode {
    let identity = mesh.member_with(|membership| membership.cell = cell.parse().unwrap());
    let config = EndpointConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (endpoint, Incoming { libp2p, chunks, .. }) = Endpoint::bind(config, identity).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let contacts = contacts.iter().map(|contact| (contact.endpoint.node(), contact.addr)).collect();
    let start = DhtStart { endpoint: endpoint.clone(), addr, contacts, incoming: libp2p };
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
    a.dht.announce(key);
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
    a.dht.announce(key);
    eventually(|| async { (count(&b.dht.counters().records) == 1).then_some(()) }).await;
    let stranger = node(&other, "east/a/a", &[&b, &a]);
    stranger.dht.announce(DhtKey::region("east"));
    assert_eq!(stranger.dht.find(key).await, []);
    assert_eq!(count(&stranger.dht.counters().announcements), 0);
    assert_eq!(count(&b.dht.counters().records), 1);
}
