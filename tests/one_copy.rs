//! Proves that a chunk leaves the stratum once for a region, however many readers in however many cells want it at once.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Dice, Stratum, at_fingerprint, can_mount, mesh, publish};
use starling::upstream::AccessLine;
use std::fs;

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

    let cells = ["here/a/1", "here/b/1"];
    let mut nodes = mesh(base.path(), 20, &cells, &at_fingerprint(&made), &stratum.url, &[]);
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
        let line: AccessLine = line.parse().unwrap();
        if line.path.contains("/objects/") && line.body_bytes > 0 {
            let part = line.range.unwrap_or((0, line.body_bytes - 1));
            served.entry(line.path).or_default().push(part);
        }
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
