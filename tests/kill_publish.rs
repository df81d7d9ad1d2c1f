//! Proves that a publish that is killed at any point leaves a valid repository, and that the next publish is right.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Dice, STARLING, make_tree, publish};
use starling::model::UnixTime;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn a_publish_killed_at_fifty_points_leaves_nothing_wrong() {
    let base = tempfile::tempdir().unwrap();
    let (tree, to, keys) = (base.path().join("tree"), base.path().join("to"), base.path().join("keys"));
    make_tree(&tree, 7, 400, 24 << 20);
    let clock = starling::ambient::now();
    let first = publish(&tree, "kill.test", &to, &keys, &[]);
    let mut whole = starling::ambient::now().since(clock);
    let fingerprint = first["fingerprint"].as_str().unwrap().to_owned();
    let mut revision = first["revision"].as_u64().unwrap();
    let mut killed = 0;
    for seed in 1..=50u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Something new of every kind: chunks, metadata, and a catalog that shrinks.
        fs::write(tree.join("large"), dice.bytes(12 << 20)).unwrap();
        fs::write(tree.join(format!("d1/new-{seed}")), dice.bytes(5000)).unwrap();
        let _ = fs::remove_file(tree.join(format!("d2/f{}", 2 + 20 * (seed % 20))));
        let mut child = Command::new(STARLING)
            .arg("publish")
            .arg(&tree)
            .args(["--repo", "kill.test", "--json", "--to"])
            .arg(&to)
            .arg("--keys")
            .arg(&keys)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let limit = u64::try_from(whole.as_micros()).unwrap().max(1000);
        let until = Duration::from_micros(dice.below(limit));
        std::thread::sleep(until);
        let ended = child.try_wait().unwrap().is_some();
        if ended {
            // It takes less than the first, which published everything: the next are killed earlier.
            whole = until;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed += u64::from(!ended);
        let after = check(&to, &fingerprint);
        assert!(after == revision || after == revision + 1, "seed {seed}: revision {after} after {revision}");
        revision = after;
        if seed % 10 == 0 {
            publish(&tree, "kill.test", &to, &keys, &["--force"]);
            revision += 1;
            assert_eq!(check(&to, &fingerprint), revision, "seed {seed}");
        }
    }
    assert!(killed >= 25, "only {killed} of 50 were killed before they had ended");
    let leftovers: Vec<_> = walk(&to)
        .into_iter()
        .filter(|p| p.strip_prefix(&to).unwrap().to_string_lossy().contains("tmp"))
        .collect();
    assert!(leftovers.is_empty(), "temporary files stay behind: {leftovers:?}");
}

/// Reads everything that the current root names; the revision.
fn check(to: &Path, fingerprint: &str) -> u64 {
    let bytes = fs::read(to.join("kill.test/root")).expect("the root is there");
    starling::publish::check::repository(
        to,
        &"kill.test".parse().unwrap(),
        &fingerprint.parse().unwrap(),
        UnixTime(0),
        &bytes,
    )
    .expect("everything that the root names is there and right")
    .revision
    .0
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}
