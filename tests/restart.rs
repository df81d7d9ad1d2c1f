//! Proves that an agent may be restarted or killed under its mounts: whoever reads waits, gets the right bytes, and no error.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{
    Dice, Node, Stratum, assert_same, at_fingerprint, can_mount, listing, make_tree, publish, wait_for,
};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Restarts; `STARLING_RESTARTS` asks for more.
const RESTARTS: u64 = 12;
const READERS: u64 = 8;
/// Largest read at once, in bytes.
const READ_MAX: u64 = 100_000;

fn restarts() -> u64 {
    std::env::var("STARLING_RESTARTS").map_or(RESTARTS, |text| text.parse().unwrap())
}

/// Files below `dir`, relative to it.
fn files(dir: &Path, below: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(dir, &path, into);
        } else if kind.is_file() {
            into.push(path);
        }
    }
}

/// Reads as programs do until it is told to stop: whole files, pieces of files that stay open, listings.
fn read_on(seed: u64, tree: &Path, at: &Path, stop: &AtomicBool, reads: &AtomicU64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut names = Vec::new();
    files(tree, Path::new(""), &mut names);
    let large = File::open(at.join("large")).unwrap();
    let right = fs::read(tree.join("large")).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let name = &names[usize::try_from(dice.below(names.len() as u64)).unwrap()];
        match dice.below(4) {
            0 => {
                let offset = dice.below(right.len() as u64);
                let mut piece = vec![0; usize::try_from(dice.below(READ_MAX)).unwrap()];
                let got = large.read_at(&mut piece, offset).unwrap_or_else(|e| panic!("large: {e}"));
                let from = usize::try_from(offset).unwrap();
                assert!(piece[..got] == right[from..from + got], "wrong bytes of `large` at {offset}");
            }
            1 => {
                let mut found = Vec::new();
                files(at, Path::new(""), &mut found);
                assert_eq!(found.len(), names.len());
            }
            _ => {
                let got = fs::read(at.join(name)).unwrap_or_else(|e| panic!("{}: {e}", name.display()));
                assert!(got == fs::read(tree.join(name)).unwrap(), "wrong bytes of {}", name.display());
            }
        }
        reads.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn readers_see_no_error_while_the_agent_is_restarted_and_killed() {
    if can_mount("restart") {
        restart_under_readers("large-files");
    }
}

#[test]
fn nor_do_they_where_the_agent_never_heard_of_the_files_that_they_have_open() {
    if can_mount("restart_small_files") {
        restart_under_readers("small-files");
    }
}

fn restart_under_readers(profile: &str) {
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    make_tree(&tree, 21, 150, 12 << 20);
    let made = publish(&tree, "restart.test", &to, &base.path().join("keys"), &[]);
    let stratum = Stratum::serve(&to, base.path());
    let mut node = Node::new(base.path().join("node")).keeping_mounts();
    node.start();
    node.add_repository(&at_fingerprint(&made), &stratum.url);
    let at = node.mount_with("restart.test", "mnt", &["--profile", profile]);
    let expected = listing(&tree);
    assert_same(&expected, &listing(&at));
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (1..=READERS)
        .map(|seed| {
            let (tree, at, stop, reads) = (tree.clone(), at.clone(), stop.clone(), reads.clone());
            std::thread::spawn(move || read_on(seed, &tree, &at, &stop, &reads))
        })
        .collect();
    let mut dice = Dice(5);
    for round in 0..restarts() {
        std::thread::sleep(Duration::from_millis(dice.below(300)));
        if round % 2 == 0 {
            node.kill();
        } else {
            node.stop();
        }
        std::thread::sleep(Duration::from_millis(dice.below(100)));
        node.start();
        let before = reads.load(Ordering::Relaxed);
        wait_for("readers who go on", Duration::from_secs(30), || {
            assert!(readers.iter().all(|reader| !reader.is_finished()), "a reader failed in round {round}");
            (reads.load(Ordering::Relaxed) >= before + 2 * READERS).then_some(())
        });
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    assert_same(&expected, &listing(&at));
    node.umount(&at);
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
    node.stop();
    // Who leaves a mount says nothing of the answers that it could not give any more.
    let noise: Vec<_> =
        node.log().lines().filter(|line| line.contains(" fuser")).map(str::to_owned).collect();
    assert!(noise.is_empty(), "{noise:#?}");
}

#[test]
fn a_mount_that_was_kept_switches_to_what_was_published_meanwhile_and_open_files_stay() {
    if !can_mount("restart_switch") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to, keys) = (base.path().join("tree"), base.path().join("to"), base.path().join("keys"));
    make_tree(&tree, 22, 40, 2 << 20);
    let made = publish(&tree, "restart.test", &to, &keys, &[]);
    let stratum = Stratum::serve(&to, base.path());
    let mut node = Node::new(base.path().join("node")).keeping_mounts();
    node.start();
    node.add_repository(&at_fingerprint(&made), &stratum.url);
    let at = node.mount("restart.test", "mnt");
    assert_same(&listing(&tree), &listing(&at));
    let before = fs::read(tree.join("large")).unwrap();
    let held = File::open(at.join("large")).unwrap();
    for (round, kill) in [(1, true), (2, false)] {
        if kill {
            node.kill();
        } else {
            node.stop();
        }
        fs::write(tree.join("large"), Dice(round).bytes(1 << 20)).unwrap();
        fs::write(tree.join(format!("new{round}")), b"new").unwrap();
        publish(&tree, "restart.test", &to, &keys, &[]);
        node.start();
        common::ok(&[
            "repo".as_ref(),
            "announce".as_ref(),
            to.join("restart.test/root").as_os_str(),
            "--socket".as_ref(),
            node.socket().as_os_str(),
        ]);
        // A name that nobody asked for before shows the new revision a moment before the old names are gone.
        let switched = || node.log().lines().filter(|line| line.contains("switched")).count();
        wait_for("the switch", Duration::from_secs(30), || (switched() as u64 == round).then_some(()));
        assert_same(&listing(&tree), &listing(&at));
        let mut kept = vec![0; before.len()];
        held.read_exact_at(&mut kept, 0).unwrap();
        assert!(kept == before, "an open file keeps its content");
    }
    drop(held);
    node.umount(&at);
    node.stop();
}
