//! Proves that a filled mount needs nobody any more, that a fill follows the newest revision, and that filling nodes share one copy.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{
    Node, Stratum, assert_same, at_fingerprint, can_mount, listing, make_tree, mesh, ok, publish, wait_for,
};
use std::ffi::OsStr;
use std::time::Duration;

/// The fill of the only mount, as `starling status` shows it.
fn fill(node: &Node) -> serde_json::Value {
    let text = ok(&[OsStr::new("status"), "--json".as_ref(), "--socket".as_ref(), node.socket().as_ref()]);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    status["mounts"][0].clone()
}

#[test]
fn filled_nodes_need_nobody_and_shared_one_copy() {
    if !can_mount("fill") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    let keys = base.path().join("keys");
    make_tree(&tree, 5, 40, 12 << 20);
    let made = publish(&tree, "fill.test", &to, &keys, &[]);
    let mut stratum = Stratum::serve(&to, base.path());
    let mut nodes = mesh(base.path(), 3, &["here/a/1"], &at_fingerprint(&made), &stratum.url, &[]);
    let mounts: Vec<_> =
        nodes.iter_mut().map(|node| node.mount_with("fill.test", "mnt", &["--fill"])).collect();
    let filled = |node: &Node, revision: u64| {
        wait_for("the fill", Duration::from_secs(60), || {
            let mount = fill(node);
            (mount["fill"]["complete"] == true && mount["revision"] == revision).then_some(())
        });
    };
    nodes.iter().for_each(|node| filled(node, 1));
    let strata: f64 =
        nodes.iter().map(|node| node.metric("starling_obtained_bytes_total{source=\"strata\"}")).sum();
    let all: f64 = nodes
        .iter()
        .map(|node| {
            ["strata", "peers"]
                .map(|source| node.metric(&format!("starling_obtained_bytes_total{{source=\"{source}\"}}")))
                .iter()
                .sum::<f64>()
        })
        .sum();
    assert!((strata - all / 3.0).abs() < 0.01 * all, "{strata} of {all} bytes came from the stratum");

    // A newer revision is brought as well, without having been asked for.
    make_tree(&tree.join("more"), 6, 10, 1 << 20);
    publish(&tree, "fill.test", &to, &keys, &["--announce", nodes[0].socket().to_str().unwrap()]);
    nodes.iter().for_each(|node| filled(node, 2));
    stratum.kill();
    let expected = listing(&tree);
    for others in [1, 2] {
        nodes[others].kill();
    }
    assert_same(&expected, &listing(&mounts[0]));
}
