//! Scopes, renewal and revocation between whole nodes.

use super::*;
use crate::mesh::dht::{DhtStart, Spread};
use crate::mesh::office::OfficeConfig;
use crate::mesh::transfer::Reply;
use crate::mesh::wire::Request;
use crate::mesh::{Charter, Scope, swim, transfer};
use crate::model::UnixTime;

/// An authority with its office, as the first node.
fn authority(mesh: &TestMesh, life: Duration, stratum: &Arc<Stratum>) -> (TestNode, Arc<Office>) {
    let identity = mesh.authority();
    let config = OfficeConfig { life, ..OfficeConfig::default() };
    let office = Office::open(identity.clone(), config).unwrap();
    let options = Options { office: Some(office.clone()), ..Options::cell("eu/a/r1") };
    (TestNode::start_as(identity, options, &[], stratum), office)
}

fn in_cell(mesh: &TestMesh, cell: &'static str, scope: Scope, expires_in_s: u64) -> Arc<Identity> {
    mesh.member_with(|statement| {
        statement.cell = cell.parse().unwrap();
        statement.scope = scope;
        statement.expires = UnixTime(statement.issued.0 + expires_in_s);
    })
}

async fn revoke(node: &TestNode, office: &Office, who: NodeId) {
    let list = office.revoke(who, "stolen".into(), ambient::unix_now()).unwrap();
    node.mesh.spread(News::Revocations(list.bytes().to_vec())).await;
}

#[tokio::test]
async fn a_revoked_node_is_down_at_all_members_and_gets_nothing_not_even_from_the_dht() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(40));
    // The default cell is the authority's own.
    let (a, office) = authority(&mesh, Duration::from_secs(3_600), &stratum);
    let near = || in_cell(&mesh, "default/default/default", Scope::All, 3_600);
    let far = in_cell(&mesh, "default/default/other", Scope::All, 3_600);
    let options = || Options::cell("unused");
    let b = TestNode::start_as(near(), options(), &[&a], &stratum);
    let c = TestNode::start_as(far, options(), &[&a], &stratum);
    let out = TestNode::start_as(near(), options(), &[&a], &stratum);
    all_see(&[&a, &b, &c, &out], 3).await;
    for n in 0..32 {
        b.get(n).await.unwrap();
    }
    out.get(0).await.unwrap();
    // As a home it holds some of it itself.
    let missing = (0..32).find(|n| !out.holds(*n)).expect("it is not the home of everything");
    revoke(&a, &office, out.identity.node()).await;
    for node in [&a, &b, &c] {
        eventually("the revoked node is down", || async {
            let peers = node.mesh.peers().await;
            peers.iter().any(|peer| peer.node == out.identity.node() && !peer.up)
        })
        .await;
        assert_eq!(node.identity.trust().revocations().number(), 1);
    }
    stratum.dead.store(true, Ordering::Relaxed);
    let nothing = out.get_within(missing, Duration::from_secs(5)).await;
    assert!(nothing.is_err(), "{nothing:?}");
    assert_eq!(c.get(missing).await.map(|_| ()), Ok(()), "the others go on");
    // It hears of it itself (from the authority's desk: see the tests of joining), and then knows nobody.
    let list = office.identity().trust().revocations();
    out.identity.trust().judge(&News::Revocations(list.bytes().to_vec()), None);
    eventually("the revoked node knows nobody", || async {
        let own = out.identity.membership();
        let knows = out.identity.trust().check(&own, ambient::unix_now()).is_err();
        knows && out.up().await == 0 && out.mesh.members().await.iter().all(|member| member.connections == 0)
    })
    .await;
    let routed = || out.mesh.dht_counters().map(|counters| counters.peers.load(Ordering::Relaxed));
    eventually("its routing table is empty", || async { routed() == Some(0) }).await;
}

#[tokio::test]
async fn a_revoked_node_that_nobody_told_notices_that_members_of_another_cell_refuse_it() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(1));
    let (a, office) = authority(&mesh, Duration::from_secs(3_600), &stratum);
    let apart = |cell| in_cell(&mesh, cell, Scope::All, 3_600);
    let mate = TestNode::start_as(apart("default/b/b"), Options::cell("unused"), &[&a], &stratum);
    let out = TestNode::start_as(apart("default/b/b"), Options::cell("unused"), &[&a], &stratum);
    all_see(&[&a, &mate, &out], 2).await;
    let list = office.revoke(out.identity.node(), "stolen".into(), ambient::unix_now()).unwrap();
    // Nobody but its mate hears of it as news, and that one tells nobody.
    mate.identity.trust().judge(&News::Revocations(list.bytes().to_vec()), None);
    let view = || viewed_by(out.mesh.inbox.clone())();
    eventually("it is refused, though it holds somebody for up", || async {
        let view = view().await;
        view.refused && view.up > 0
    })
    .await;
    assert_eq!(out.identity.trust().revocations().number(), 0);
    let asked: Vec<_> = view().await.authorities.into_iter().map(|(node, _)| node).collect();
    assert_eq!(asked, [a.identity.node()], "whom it asks why");
}

/// What an honest node is asked for by somebody who does not care whether his own membership still counts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Got {
    a_chunk: bool,
    an_answer_by_swim: bool,
    a_record_of_the_dht: bool,
}

const PATIENCE: Duration = Duration::from_secs(5);

async fn got_by(identity: Arc<Identity>, from: &TestNode) -> Got {
    let (wanted, mut got) = (from.identity.node(), Got::default());
    let config = EndpointConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (endpoint, incoming) = Endpoint::bind(config, identity.clone()).unwrap();
    let Incoming { libp2p, mut datagrams, chunks: _chunks, joins: _joins } = incoming;
    let addr = endpoint.local_addr().unwrap();

    endpoint.send_datagram(from.addr, &swim::introduction(&identity, wanted)).unwrap();
    got.an_answer_by_swim = tokio::time::timeout(PATIENCE, datagrams.recv()).await.is_ok();

    // Who dials believes himself connected until the other side has judged him.
    if let Ok(connection) = endpoint.connection(wanted, from.addr).await {
        let request = Request { repository: repository(), class: Class::Read, chunks: vec![chunk(0)] };
        let mut asking = transfer::ask(connection, request).unwrap();
        while let Ok(Some((_, reply))) = tokio::time::timeout(PATIENCE, asking.next()).await {
            got.a_chunk |= matches!(reply, Reply::Arrived(_));
        }
    }

    let contacts = vec![(wanted, from.addr)];
    let start = DhtStart { endpoint, addr, contacts, incoming: libp2p, spread: Spread::default() };
    let (dht, _neighbours) = Dht::start(start).unwrap();
    let key = DhtKey::cell(&from.identity.membership().cell);
    let look = async {
        while dht.find(key).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    got.a_record_of_the_dht = tokio::time::timeout(PATIENCE, look).await.is_ok();
    got
}

#[tokio::test]
async fn who_has_expired_gets_nothing_from_transfer_swim_and_dht() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(1));
    let node = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[], &stratum);
    // The other is in its routing table when it announces its cell.
    let other = TestNode::start(&mesh, Options::cell("eu/a/r1"), &[&node], &stratum);
    all_see(&[&node, &other], 1).await;
    node.get(0).await.unwrap();
    let expired = mesh.member_with(|statement| {
        statement.cell = "eu/a/r1".parse().unwrap();
        statement.issued = UnixTime(statement.issued.0 - 3_600);
        statement.expires = UnixTime(statement.issued.0 + 3_000);
    });
    let member = in_cell(&mesh, "eu/a/r1", Scope::All, 3_600);
    let everything = Got { a_chunk: true, an_answer_by_swim: true, a_record_of_the_dht: true };
    assert_eq!(got_by(member, &node).await, everything, "a member gets what is asked for");
    assert_eq!(got_by(expired.clone(), &node).await, Got::default());
    let peers = node.mesh.peers().await;
    assert!(peers.iter().all(|peer| peer.node != expired.node()), "it is not even heard of: {peers:?}");
}

#[tokio::test]
async fn a_node_without_scope_is_told_of_nothing_named_to_nobody_and_served_nothing() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(8));
    let (a, _) = authority(&mesh, Duration::from_secs(3_600), &stratum);
    let scope = Scope::Only(vec!["other.example.org".parse().unwrap()]);
    let outside = in_cell(&mesh, "default/default/default", scope, 3_600);
    let outside = TestNode::start_as(outside, Options::cell("unused"), &[&a], &stratum);
    let b = in_cell(&mesh, "default/default/default", Scope::All, 3_600);
    let b = TestNode::start_as(b, Options::cell("unused"), &[&a], &stratum);
    all_see(&[&a, &b, &outside], 2).await;
    assert_eq!(a.mesh.announce_local(root(1)).await, NewsVerdict::Fresh);
    eventually("the other member hears of it", || async { *b.local.revision.lock().unwrap() == 1 }).await;
    for n in 0..8 {
        a.get(n).await.unwrap();
        b.get(n).await.unwrap();
    }
    stratum.dead.store(true, Ordering::Relaxed);
    for n in 0..3 {
        let refused = outside.get_within(n, Duration::from_secs(3)).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    assert_eq!(*outside.local.revision.lock().unwrap(), 0, "it was told of a root");
    let members = a.mesh.members().await;
    let seen = members.iter().find(|member| member.membership.node == outside.identity.node()).unwrap();
    assert!(seen.up && !seen.membership.scope.covers(&repository()));
}

#[tokio::test]
async fn certificates_are_renewed_under_open_connections_and_those_outlive_the_old_one() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(4));
    let (a, office) = authority(&mesh, Duration::from_secs(20), &stratum);
    let member = in_cell(&mesh, "default/default/default", Scope::All, 20);
    let b = TestNode::start_as(member, Options::cell("unused"), &[&a], &stratum);
    all_see(&[&a, &b], 1).await;
    let first = b.identity.membership();
    for n in 0..4 {
        b.get(n).await.unwrap();
    }
    let outlived = || async { ambient::unix_now() > first.expires && office.counts().renewed >= 2 };
    eventually("the certificate is renewed more than once, and the first one has ended", outlived).await;
    assert_eq!((a.up().await, b.up().await), (1, 1));
    let seen = a.mesh.members().await[0].membership.clone();
    assert!(seen.issued > first.issued, "the peer knows a renewed one");
}

#[tokio::test]
async fn a_rotation_reaches_all_and_their_certificates_are_renewed_under_the_new_key() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(4));
    let (a, office) = authority(&mesh, Duration::from_secs(3_600), &stratum);
    let member = in_cell(&mesh, "default/default/default", Scope::All, 3_600);
    let b = TestNode::start_as(member, Options::cell("unused"), &[&a], &stratum);
    all_see(&[&a, &b], 1).await;
    let charter = office.rotate(Duration::from_secs(12), ambient::unix_now()).unwrap();
    a.mesh.spread(News::Charter(charter.bytes().to_vec())).await;
    let follows = |node: &TestNode, charter: &Charter| node.identity.trust().charter() == *charter;
    eventually("the member follows", || async { follows(&b, &charter) }).await;
    let renewed = || async { b.identity.membership().signer() == charter.newest() };
    eventually("its certificate is of the new key", renewed).await;
    let retired =
        || async { ambient::unix_now() > charter.overlap_until().unwrap().after(Duration::from_secs(2)) };
    eventually("the old key has retired", retired).await;
    assert_eq!((a.up().await, b.up().await), (1, 1));
    for n in 0..4 {
        b.get(n).await.unwrap();
        a.get(n).await.unwrap();
    }
}
