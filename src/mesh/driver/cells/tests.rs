//! A region of which one member lies, over real sockets on loopback.

use super::super::super::endpoint::EndpointConfig;
use super::super::super::identity::tests::TestMesh;
use super::super::super::wire::MemberRecord;
use super::super::Tamper;
use super::super::tests::{Options, Stratum, TestNode, eventually};
use super::*;
use crate::mesh::transfer::PeerRequest;
use std::sync::atomic::AtomicU8;

const OTHER: &str = "eu/a/r2";

fn options(tamper: Option<Tamper>) -> Options {
    Options { dht: false, tamper, ..Options::cell(OTHER) }
}

fn bind(mesh: &TestMesh, cell: &str) -> (Endpoint, super::super::super::endpoint::Incoming) {
    let identity = mesh.member_with(|membership| membership.cell = cell.parse().unwrap());
    Endpoint::bind(EndpointConfig::new(SocketAddr::from(([127, 0, 0, 1], 0))), identity).unwrap()
}

/// Names nobody but itself, and says that its label was halved so often as `bits` tells.
fn hider(mesh: &TestMesh, stratum: &Arc<Stratum>, bits: &Arc<AtomicU8>) -> TestNode {
    let bits = Arc::clone(bits);
    let bound = bind(mesh, OTHER);
    let identity = Arc::clone(bound.0.identity());
    let certificate = identity.membership().bytes().to_vec();
    let alone = MemberRecord { certificate, addresses: vec![bound.0.local_addr().unwrap()] };
    let tamper: Tamper = Box::new(move |mut requests| {
        let (pass, passed) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                let passed_on = match request {
                    PeerRequest::Members { reply } => {
                        reply.send((bits.load(Ordering::Relaxed), vec![alone.clone()])).is_ok()
                    }
                    other => pass.send(other).await.is_ok(),
                };
                if !passed_on {
                    return;
                }
            }
        });
        passed
    });
    TestNode::over(bound, identity, options(Some(tamper)), &[], stratum)
}

#[tokio::test]
async fn a_member_that_names_only_itself_hides_nobody_of_its_cell() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(0));
    let bits = Arc::new(AtomicU8::new(0));
    let liar = hider(&mesh, &stratum, &bits);
    let one = TestNode::start(&mesh, options(None), &[&liar], &stratum);
    let two = TestNode::start(&mesh, options(None), &[&liar], &stratum);
    for node in [&liar, &one, &two] {
        eventually("the cell is together", || async { node.up().await == 2 }).await;
    }
    let contact = |node: &TestNode| (node.identity.node(), node.addr);
    let (endpoint, _incoming) = bind(&mesh, "eu/a/r1");
    let (inbox, mut told) = mpsc::channel(64);
    let cell = Cell::whole("eu/a/r1".parse().unwrap());
    let (book, (_part, own)) = (CellBook::new(cell.clone()), watch::channel(cell));
    let mut region = Region {
        own,
        book,
        endpoint,
        dht: None,
        inbox,
        cells: BTreeMap::new(),
        contacts: [contact(&liar), contact(&one)].into(),
        looked: Time::ZERO,
        searched: Time::ZERO,
        pause: SEARCH_FIRST,
        announces: Arc::new(AtomicBool::new(false)),
    };
    let mut last_told = || {
        let mut members = None;
        while let Ok(message) = told.try_recv() {
            if let Message::Cell(view) = message {
                members = Some(view.members.len());
            }
        }
        members
    };
    let other = Cell::whole(OTHER.parse().unwrap());
    region.search().await;
    assert_eq!(last_told(), Some(3), "whoever answers first");
    let chosen = region.cells.get_mut(&other).unwrap();
    assert_eq!(chosen.contacts.len(), 3);
    for contacts in [[&liar, &one, &two], [&two, &liar, &one]] {
        region.cells.get_mut(&other).unwrap().contacts = contacts.map(contact).into();
        region.refresh().await;
        assert_eq!(last_told(), Some(3));
    }
    // Nor does it when it makes a cell of its own of them.
    for said in [1, 3] {
        bits.store(said, Ordering::Relaxed);
        region.cells.get_mut(&other).unwrap().contacts = [&liar, &one, &two].map(contact).into();
        region.refresh().await;
        assert!(last_told().is_none_or(|members| members == 3));
        assert!(region.cells.keys().eq([&other]), "{said}");
    }
    bits.store(0, Ordering::Relaxed);
    // Who is gone is gone, once another member has said so, too.
    two.mesh.shutdown().await;
    let gone = two.identity.node();
    for node in [&liar, &one] {
        let is_up = || async { node.mesh.peers().await.iter().any(|peer| peer.up && peer.node == gone) };
        eventually("the others know it", || async { !is_up().await }).await;
    }
    region.refresh().await;
    assert_eq!(last_told(), Some(2));
}
