//! Proves that a running agent's decisions, recorded, are made again byte for byte by the build without I/O.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Node, Stratum, assert_same, can_mount, listing, make_tree, publish, wait_for};
use std::fs;
use std::time::Duration;

#[test]
fn recorded_decisions_replay_to_equal_bytes() {
    if !can_mount("replay") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    make_tree(&tree, 17, 60, 24 << 20);
    let expected = listing(&tree);
    let made = publish(&tree, "play.test", &to, &base.path().join("keys"), &[]);
    let stratum = Stratum::serve(&to, base.path());
    let record = base.path().join("inputs.jsonl");
    let mut nodes: Vec<Node> = Vec::new();
    for i in 0..6 {
        let mut node = Node::new(base.path().join(format!("node{i}")));
        if i == 0 {
            node = node.with_args(&["--record-inputs", record.to_str().unwrap()]);
            node.init_mesh("here/a/1");
            node.start();
            node.add_repository(
                &format!("play.test@{}", made["fingerprint"].as_str().unwrap()),
                &stratum.url,
            );
        } else {
            node.join(&nodes[0].invite(), "here/a/1");
            node.start();
        }
        nodes.push(node);
    }
    for node in &nodes {
        wait_for("all to know all", Duration::from_secs(60), || (node.peers_up() == 5).then_some(()));
    }
    let mounts: Vec<_> = nodes.iter_mut().map(|node| node.mount("play.test", "mnt")).collect();
    let readers: Vec<_> = mounts.into_iter().map(|at| std::thread::spawn(move || listing(&at))).collect();
    for reader in readers {
        assert_same(&expected, &reader.join().unwrap());
    }
    nodes[0].stop();
    let text = fs::read_to_string(&record).unwrap();
    for (what, word) in [
        ("asks", "\"Ask\""),
        ("serves", "\"Serve\""),
        ("makes others wait", "\"Wait\""),
        ("redirects", "\"holders\""),
        ("takes a lease", "\"FetchUpstream\""),
    ] {
        assert!(text.contains(word), "the recording never {what}");
    }

    // The build without `node`, in a target directory of its own.
    let target = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("core");
    let build = std::process::Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--locked",
            "--no-default-features",
            "--bin",
            "starling",
            "--manifest-path",
        ])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    assert!(build.success());
    let replay = |file: &std::path::Path| {
        std::process::Command::new(target.join("debug/starling"))
            .arg("core-replay")
            .arg(file)
            .output()
            .unwrap()
    };
    let out = replay(&record);
    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );

    // It can fail: a recording in which one decision was changed is found out.
    let changed = text.replacen("\"Serve\"", "\"Cancel\"", 1);
    assert_ne!(changed, text);
    let other = base.path().join("changed.jsonl");
    fs::write(&other, changed).unwrap();
    assert_eq!(replay(&other).status.code(), Some(1));
}
