//! Proves that a running agent's decisions, recorded, are made again byte for byte by the build without I/O.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Stratum, assert_same, at_fingerprint, can_mount, listing, make_tree, mesh, publish};
use std::fs;

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
    let recorded = ["--record-inputs", record.to_str().unwrap()];
    let mut nodes = mesh(base.path(), 6, &["here/a/1"], &at_fingerprint(&made), &stratum.url, &recorded);
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
