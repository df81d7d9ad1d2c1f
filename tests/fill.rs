//! Proves that a filled mount needs nobody any more, that a fill follows the newest revision, and that filling nodes share one copy.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{
    Node, Process, STARLING, Stratum, assert_same, at_fingerprint, can_mount, fails, listing, make_tree,
    mesh, ok, publish, wait_for,
};
use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Stdio};
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

#[test]
fn whoever_waits_for_a_fill_that_cannot_be_is_told_so_and_a_directory_that_fits_is_brought() {
    if !can_mount("fill_wait") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let tree = base.path().join("tree");
    make_tree(&tree.join("part"), 9, 20, 1 << 20);
    make_tree(&tree.join("rest"), 10, 20, 4 << 20);
    // Larger than the smallest cache, and soon published.
    fs::File::create(tree.join("large")).unwrap().set_len(80 << 20).unwrap();
    let made = publish(&tree, "wait.test", &base.path().join("to"), &base.path().join("keys"), &[]);
    let mut stratum = Stratum::serve(&base.path().join("to"), base.path());
    let mut node = Node::new(base.path().join("node")).with_args(&["--cache-quota", "64 MiB"]);
    node.start();
    node.add_repository(&at_fingerprint(&made), &stratum.url);
    let (at, socket) = (node.dir.join("all"), node.socket());
    fs::create_dir_all(&at).unwrap();
    let all = ["mount", "--fill", "--wait", "wait.test"].map(OsStr::new);
    let said = fails(&[&all[..], &[at.as_ref(), "--socket".as_ref(), socket.as_ref()]].concat());
    assert!(said.contains("not filled") && said.contains("the cache takes 67108864"), "{said}");
    node.umount(&at);
    let part = node.mount_with("wait.test", "part", &["--fill", "--wait", "--path", "/part"]);
    let filled = fill(&node);
    assert_eq!((&filled["fill"]["complete"], &filled["fill"]["ended"]), (&true.into(), &true.into()));
    stratum.kill();
    assert_same(&listing(&tree.join("part")), &listing(&part));
    node.umount(&part);

    // Nobody has the rest any more, which is no end: who waits hears why, and goes on waiting.
    let (at, heard) = (node.dir.join("rest"), base.path().join("heard"));
    fs::create_dir_all(&at).unwrap();
    let mut command = Command::new(STARLING);
    command.args(["mount", "--fill", "--wait", "--path", "/rest", "--socket"]).arg(node.socket());
    command.arg("wait.test").arg(&at).stdin(Stdio::null()).stdout(Stdio::null());
    let mut waiting = Process(command.stderr(fs::File::create(&heard).unwrap()).spawn().unwrap());
    let said = || fs::read_to_string(&heard).unwrap();
    wait_for("the reason", Duration::from_secs(90), || {
        assert!(waiting.0.try_wait().unwrap().is_none(), "it ended: {}", said());
        said().contains("is not filled yet").then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(waiting.0.try_wait().unwrap().is_none());
    assert_eq!(said().lines().count(), 1, "{}", said());
    waiting.kill();
    node.umount(&at);
}
