//! Proves that a chunk leaves the stratum once for a region, however many readers in however many cells want it at once.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Dice, Node, Stratum, can_mount, publish, wait_for};
use std::fs;
use std::time::Duration;

/// Nodes a cell; two cells make 20 readers.
const NODES_PER_CELL: usize = 10;

#[test]
fn twenty_readers_in_two_cells_cause_one_upstream_request_a_chunk() {
    if !can_mount("one_copy") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    fs::create_dir_all(&tree).unwrap();
    let content = Dice(5).bytes(6 << 20);
    fs::write(tree.join("wanted"), &content).unwrap();
    let made = publish(&tree, "one.test", &to, &base.path().join("keys"), &[]);
    let stratum = Stratum::serve(&to, base.path());

    let mut nodes = Vec::new();
    for i in 0..2 * NODES_PER_CELL {
        let mut node = Node::new(base.path().join(format!("node{i}")));
        let cell = if i % 2 == 0 { "here/a/1" } else { "here/b/1" };
        if nodes.is_empty() {
            node.init_mesh(cell);
            node.start();
            node.add_repository(&format!("one.test@{}", made["fingerprint"].as_str().unwrap()), &stratum.url);
        } else {
            let first: &Node = &nodes[0];
            node.join(&first.invite(), cell);
            node.start();
        }
        nodes.push(node);
    }
    for node in &nodes {
        wait_for("every node to know every other", Duration::from_secs(90), || {
            (node.peers_up() >= 2 * NODES_PER_CELL - 1).then_some(())
        });
    }
    let mounts: Vec<_> = nodes.iter_mut().map(|node| node.mount("one.test", "mnt")).collect();

    // All at once.
    let gate = std::sync::Arc::new(std::sync::Barrier::new(mounts.len()));
    let readers: Vec<_> = mounts
        .into_iter()
        .map(|at| {
            let gate = gate.clone();
            std::thread::spawn(move || {
                gate.wait();
                fs::read(at.join("wanted")).unwrap()
            })
        })
        .collect();
    for reader in readers {
        assert!(reader.join().unwrap() == content, "a reader got other bytes");
    }
    assert_each_byte_left_once(&stratum.access_log());
}

/// No two successful answers for one object overlap.
fn assert_each_byte_left_once(log: &[String]) {
    let mut served: std::collections::BTreeMap<String, Vec<(u64, u64)>> = std::collections::BTreeMap::new();
    for line in log {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let path = fields.iter().find(|f| f.starts_with('/')).unwrap();
        if !path.contains("/objects/") || !fields.contains(&"206") && !fields.contains(&"200") {
            continue;
        }
        let range =
            fields.iter().find_map(|f| f.strip_prefix("bytes=")).expect("objects are asked for by range");
        let (from, to) = range.split_once('-').unwrap();
        served.entry((*path).to_owned()).or_default().push((from.parse().unwrap(), to.parse().unwrap()));
    }
    assert!(!served.is_empty(), "nothing was served");
    for (object, mut ranges) in served {
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            assert!(
                pair[0].1 < pair[1].0,
                "{object}: bytes {:?} and {:?} left the stratum twice",
                pair[0],
                pair[1]
            );
        }
    }
}
