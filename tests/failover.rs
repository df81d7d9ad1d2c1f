//! Proves that a killed member is noticed by the others and that its slices are served by the next rank.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Node, Stratum, assert_same, can_mount, listing, make_tree, publish, wait_for};
use std::time::Duration;

#[test]
fn when_a_member_is_killed_the_next_rank_serves_its_slices() {
    if !can_mount("failover") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    make_tree(&tree, 21, 40, 12 << 20);
    let expected = listing(&tree);
    let made = publish(&tree, "fail.test", &to, &base.path().join("keys"), &[]);
    let mut stratum = Stratum::serve(&to, base.path());
    let mut nodes: Vec<Node> = Vec::new();
    for i in 0..4 {
        let mut node = Node::new(base.path().join(format!("node{i}")));
        if i == 0 {
            node.init_mesh("here/a/1");
            node.start();
            node.add_repository(
                &format!("fail.test@{}", made["fingerprint"].as_str().unwrap()),
                &stratum.url,
            );
        } else {
            node.join(&nodes[0].invite(), "here/a/1");
            node.start();
        }
        nodes.push(node);
    }
    for node in &nodes {
        wait_for("all to know all", Duration::from_secs(60), || (node.peers_up() == 3).then_some(()));
    }
    // Three of four hold everything; the fourth is empty.
    for node in &mut nodes[..3] {
        let at = node.mount("fail.test", "mnt");
        assert_same(&expected, &listing(&at));
    }
    stratum.kill();
    nodes[1].kill();
    for i in [0, 2, 3] {
        wait_for("the killed member to be noticed", Duration::from_secs(60), || {
            (nodes[i].peers_up() == 2).then_some(())
        });
    }
    // A fourth of the slices had the killed member as their first home.
    let at = nodes[3].mount("fail.test", "mnt");
    assert_same(&expected, &listing(&at));
    assert_eq!(nodes[3].metric("starling_obtained_bytes_total{source=\"strata\"}"), 0.0);
}
