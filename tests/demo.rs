//! Proves that the demonstration shows what it promises, in numbers, and leaves nothing behind.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{STARLING, can_mount, make_tree};
use std::fs;
use std::process::Command;

#[test]
fn the_demo_reads_every_byte_from_where_it_says_and_leaves_nothing_behind() {
    if !can_mount("demo") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, temporary) = (base.path().join("tree"), base.path().join("tmp"));
    make_tree(&tree, 5, 200, 8 << 20);
    fs::create_dir(&temporary).unwrap();
    let out = Command::new(STARLING)
        .arg("demo")
        .arg(&tree)
        .args(["--nodes", "4", "--json"])
        .env("TMPDIR", &temporary)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}\n{said}", out.status);
    let shown: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(shown["identical"], true, "{shown}");
    assert!(
        shown["tree_bytes"].as_u64().unwrap() > 4 << 20 && shown["tree_files"].as_u64().unwrap() > 200,
        "{shown}"
    );
    let passes = shown["nodes"].as_array().unwrap();
    let names: Vec<_> = passes.iter().map(|pass| pass["name"].as_str().unwrap()).collect();
    assert_eq!(names.first(), Some(&"node-1"));
    assert_eq!(names.last(), Some(&"node-3-without-stratum"));
    assert_eq!(names.len(), 5, "{names:?}");
    for pass in passes {
        let bytes = |source: &str| pass[format!("from_{source}_bytes")].as_u64().unwrap();
        let (cache, peers, strata) = (bytes("cache"), bytes("peers"), bytes("strata"));
        assert_eq!(pass["identical"], true, "{pass}");
        assert!(pass["read_seconds"].as_f64().unwrap() > 0.0);
        let all = cache + peers + strata;
        assert!(all > 4 << 20, "{pass}");
        match pass["name"].as_str().unwrap() {
            "node-1" => assert_eq!((cache, peers), (0, 0), "{pass}"),
            "node-1-again" => assert_eq!((peers, strata), (0, 0), "{pass}"),
            "node-3-without-stratum" => assert_eq!((cache, strata), (0, 0), "{pass}"),
            _ => assert!(peers * 100 >= all * 95, "{pass}"),
        }
    }
    let left: Vec<_> = fs::read_dir(&temporary).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(temporary.to_str().unwrap()), "{mounts}");
}
