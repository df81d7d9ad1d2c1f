//! Proves that revisions follow each other under readers without any of them seeing two at once, an old one after the agent said that it
//! shows the new one, or an error.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../common/mod.rs"]
mod common;
mod reader;
mod story;

use common::{Node, Stratum, assert_same, at_fingerprint, can_mount, listing, publish, wait_for};
use reader::{Board, Reader};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use story::{State, Story, become_next};

/// Switches; `STARLING_SWITCHES` asks for more.
const SWITCHES: u64 = 200;
/// Readers, half of them in each of the mounts.
const READERS: u64 = 8;
/// Looks of each reader between two switches, at least.
const LOOKS: u64 = 3;
const REPOSITORY: &str = "switch.test";

fn switches() -> u64 {
    std::env::var("STARLING_SWITCHES").map_or(SWITCHES, |text| text.parse().unwrap())
}

/// Whether the agent says that all mounts show `revision`.
fn shows(node: &Node, mounts: &[PathBuf], revision: u64) -> bool {
    let socket = node.socket();
    let status = common::ok(&[OsStr::new("status"), "--json".as_ref(), "--socket".as_ref(), socket.as_ref()]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let shown = |at: &Path| {
        let mounts = status["mounts"].as_array().unwrap();
        let mount = mounts.iter().find(|mount| mount["directory"] == at.to_str().unwrap());
        mount.and_then(|mount| mount["revision"].as_u64())
    };
    mounts.iter().all(|at| shown(at) == Some(revision))
}

#[test]
fn readers_see_one_revision_at_a_time_and_none_older_than_the_agent_said() {
    if !can_mount("switches") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to, keys) = (base.path().join("tree"), base.path().join("to"), base.path().join("keys"));
    let story = Story::of(switches() + 1);
    std::fs::create_dir(&tree).unwrap();
    become_next(&tree, &State::new(), story.state(1));
    let made = publish(&tree, REPOSITORY, &to, &keys, &[]);
    let stratum = Stratum::serve(&to, base.path());
    let mut node = Node::new(base.path().join("node"));
    node.start();
    node.add_repository(&at_fingerprint(&made), &stratum.url);
    let mounts = ["small-files", "large-files"]
        .map(|profile| node.mount_with(REPOSITORY, profile, &["--profile", profile]));
    let board = Arc::new(Board {
        story,
        acknowledged: AtomicU64::new(1),
        begun: AtomicU64::new(1),
        stop: AtomicBool::new(false),
        looks: AtomicU64::new(0),
    });
    let readers: Vec<_> = (1..=READERS)
        .map(|seed| {
            let at = mounts[usize::try_from(seed % 2).unwrap()].clone();
            let reader = Reader::new(Arc::clone(&board), at, seed);
            std::thread::spawn(move || reader.read_on())
        })
        .collect();
    let socket = node.socket();
    for revision in 2..=board.story.last() {
        become_next(&tree, board.story.state(revision - 1), board.story.state(revision));
        board.begun.store(revision, Ordering::SeqCst);
        publish(&tree, REPOSITORY, &to, &keys, &["--announce", socket.to_str().unwrap()]);
        wait_for("the agent to show the new revision", Duration::from_secs(30), || {
            shows(&node, &mounts, revision).then_some(())
        });
        board.acknowledged.store(revision, Ordering::SeqCst);
        let before = board.looks.load(Ordering::Relaxed);
        wait_for("readers who go on", Duration::from_secs(30), || {
            assert!(readers.iter().all(|reader| !reader.is_finished()), "a reader failed at {revision}");
            (board.looks.load(Ordering::Relaxed) >= before + LOOKS * READERS).then_some(())
        });
    }
    board.stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    println!("{} looks", board.looks.load(Ordering::Relaxed));
    for at in &mounts {
        assert_same(&listing(&tree), &listing(at));
        node.umount(at);
    }
    node.stop();
}
