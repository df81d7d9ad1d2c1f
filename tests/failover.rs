//! Proves that a killed member is noticed by the others and that its slices are served by the next rank.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Stratum, assert_same, at_fingerprint, can_mount, listing, make_tree, mesh, publish, wait_for};
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
    let mut nodes = mesh(base.path(), 4, &["here/a/1"], &at_fingerprint(&made), &stratum.url, &[]);
    // Three of four hold everything; the fourth is empty.
    for node in &mut nodes[..3] {
        let at = node.mount("fail.test", "mnt");
        assert_same(&expected, &listing(&at));
    }
    // As a home the fourth has already taken from the stratum what the others asked it for.
    let before = nodes[3].metric("starling_obtained_bytes_total{source=\"strata\"}");
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
    assert_eq!(nodes[3].metric("starling_obtained_bytes_total{source=\"strata\"}"), before);
}
