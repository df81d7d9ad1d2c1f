//! Proves that an agent that is killed at any point of a read comes back right: no wrong byte, no help needed.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Dice, Node, Stratum, assert_same, at_fingerprint, can_mount, listing, make_tree, publish};
use std::time::Duration;

#[test]
fn an_agent_killed_at_fifty_points_of_a_read_comes_back_right() {
    if !can_mount("kill_agent") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    make_tree(&tree, 11, 120, 16 << 20);
    let expected = listing(&tree);
    let made = publish(&tree, "kill.test", &to, &base.path().join("keys"), &[]);
    let stratum = Stratum::serve(&to, base.path());
    let mut node = Node::new(base.path().join("node"));
    node.start();
    node.add_repository(&at_fingerprint(&made), &stratum.url);
    let clock = starling::ambient::now();
    let at = node.mount("kill.test", "mnt");
    assert_same(&expected, &listing(&at));
    let whole = u64::try_from(starling::ambient::now().since(clock).as_micros()).unwrap();
    for seed in 1..=50u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if seed % 5 == 0 {
            // From time to time from an empty cache, so that kills meet insertions too.
            node.kill();
            let _ = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH);
            std::fs::remove_dir_all(node.state().join("cache")).unwrap();
            node.start();
            remount(&mut node);
        }
        let reader = {
            let at = at.clone();
            // The mount dies under it: what it reads until then does not matter, errors are expected.
            std::thread::spawn(move || {
                for entry in walk(&at) {
                    let _ = std::fs::read(entry);
                }
            })
        };
        std::thread::sleep(Duration::from_micros(dice.below(whole + 1000)));
        node.kill();
        reader.join().unwrap();
        node.start();
        remount(&mut node);
        assert_same(&expected, &listing(&at));
    }
    node.stop();
}

#[test]
fn an_agent_whose_mount_is_declared_at_its_start_comes_back_after_a_kill() {
    if !can_mount("kill_agent_declared") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    make_tree(&tree, 3, 4, 1 << 20);
    let made = publish(&tree, "kill.test", &to, &base.path().join("keys"), &[]);
    let stratum = Stratum::serve(&to, base.path());
    let dir = base.path().join("node");
    let declared = format!("kill.test:{}", dir.join("mnt").display());
    let mut node = Node::new(dir).with_args(&["--mount", &declared]);
    node.start();
    node.add_repository(&at_fingerprint(&made), &stratum.url);
    for _ in 0..2 {
        remount(&mut node);
        assert_same(&listing(&tree), &listing(&node.dir.join("mnt")));
        node.kill();
        node.start();
    }
    remount(&mut node);
    node.stop();
}

/// The restarted agent restores its mounts; where it has not, it is asked to.
fn remount(node: &mut Node) {
    let at = node.dir.join("mnt");
    common::wait_for("the restored mount", Duration::from_secs(20), || {
        std::fs::read_dir(&at).ok().filter(|_| at.join("large").exists())
    });
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}
