//! A cell that halves and joins again, between whole nodes that go on reading.

use super::*;
use crate::mesh::proto::Part;
use std::collections::BTreeSet;

const SIDES: usize = 6;

/// As many identities in each half of the label.
fn halves(mesh: &TestMesh) -> [Vec<Arc<Identity>>; 2] {
    let mut halves = [Vec::new(), Vec::new()];
    while halves.iter().any(|half| half.len() < SIDES) {
        let identity = mesh.member_with(|membership| membership.cell = "eu/a/r1".parse().unwrap());
        let first = Part::of(identity.node().key(), 1) == Part::of(0, 1);
        if halves[usize::from(first)].len() < SIDES {
            halves[usize::from(first)].push(identity);
        }
    }
    halves
}

/// Those whom a node takes for living members of its cell.
async fn cell_of(node: &TestNode) -> BTreeSet<NodeId> {
    let peers = node.mesh.peers().await;
    peers.into_iter().filter(|peer| peer.near && peer.up).map(|peer| peer.node).collect()
}

/// Every node sees those of its side, and nobody else, as its cell.
async fn all_see_cells(what: &str, sides: &[&[TestNode]]) {
    for side in sides {
        let names: BTreeSet<NodeId> = side.iter().map(|node| node.identity.node()).collect();
        for node in *side {
            let mut expected = names.clone();
            expected.remove(&node.identity.node());
            eventually(what, || async { cell_of(node).await == expected }).await;
        }
    }
}

async fn all_read(nodes: &[&TestNode], chunks: std::ops::Range<u64>) {
    let reads = nodes.iter().flat_map(|node| chunks.clone().map(move |n| node.get(n)));
    for read in futures::future::join_all(reads).await {
        read.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_halves_and_joins_again_while_its_members_go_on_reading() {
    let (mesh, stratum) = (TestMesh::new(), Stratum::with(256));
    // Twelve are too many, and two are few.
    let tuning = Tuning { cell_max: 8, pause: Duration::from_millis(800), ..Tuning::default() };
    let options = || Options { tuning: tuning.clone(), ..Options::cell("unused") };
    let [one, other] = halves(&mesh);
    let first = TestNode::start_as(one[0].clone(), options(), &[], &stratum);
    let start =
        |identity: &Arc<Identity>| TestNode::start_as(identity.clone(), options(), &[&first], &stratum);
    let mut other: Vec<TestNode> = other.iter().map(start).collect();
    let mut one: Vec<TestNode> = one[1..].iter().map(start).collect();
    one.push(first);
    // They read while they meet, halve and stand apart.
    let nodes: Vec<&TestNode> = one.iter().chain(&other).collect();
    let reading = async {
        for n in 0..64 {
            all_read(&nodes, n..n + 1).await;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    };
    let sides: [&[TestNode]; 2] = [&one, &other];
    tokio::join!(reading, all_see_cells("the cell halves", &sides));
    for node in &nodes {
        assert_eq!(node.up().await, 2 * SIDES - 1, "the other half is known and up");
    }
    // Each half has homes of its own; the stratum gives one copy all the same.
    all_read(&nodes, 64..128).await;
    let given: Vec<u64> = (64..128).filter(|n| stratum.given(*n) != 1).collect();
    assert!(given.is_empty(), "{given:?}");
    let crossed = |nodes: &[&TestNode]| nodes.iter().all(|node| node.mesh.counts().bytes_down > 0);
    assert!(crossed(&nodes));
    // A newcomer that knows somebody of the other half alone finds its own.
    let dead = one.pop().unwrap();
    let (identity, before) = (dead.identity.clone(), dead.addr);
    dead.mesh.shutdown().await;
    drop(dead);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let back = TestNode::start_as(identity, options(), &[&other[0]], &stratum);
    assert_ne!(back.addr, before);
    one.push(back);
    all_see_cells("the newcomer is in its half", &[&one, &other]).await;
    all_read(&[&one[SIDES - 1]], 0..32).await;
    assert!((64..128).all(|n| stratum.given(n) == 1));
    // Two of each are left.
    for node in one.drain(2..).chain(other.drain(2..)) {
        node.mesh.shutdown().await;
    }
    one.append(&mut other);
    let reading = async {
        for n in 128..160 {
            all_read(&one.iter().collect::<Vec<_>>(), n..n + 1).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let sides: [&[TestNode]; 1] = [&one];
    tokio::join!(reading, all_see_cells("the halves join", &sides));
    all_read(&one.iter().collect::<Vec<_>>(), 160..224).await;
    let given: Vec<u64> = (160..224).filter(|n| stratum.given(*n) != 1).collect();
    assert!(given.is_empty(), "{given:?}");
}
