//! Proves that nothing dies of an output that nobody reads (`starling … | head -1`): commands finish, agents run on.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Node, Process, STARLING, make_tree, starling, wait_for};
use std::ffi::OsStr;
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The end to write to of a pipe whose other end is closed.
fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

/// Runs a command once without a reader of its output and once without one of its messages.
fn succeeds_unread(args: &[&OsStr]) {
    let shown = args.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let unread = Command::new(STARLING).args(args).stdin(Stdio::null()).stdout(closed()).output().unwrap();
    let said = String::from_utf8_lossy(&unread.stderr);
    assert!(unread.status.success() && !said.contains("panicked"), "{shown}: {}: {said}", unread.status);
    let untold = Command::new(STARLING).args(args).stdin(Stdio::null()).stderr(closed()).output().unwrap();
    assert!(untold.status.success(), "{shown}: {}", untold.status);
}

#[test]
fn commands_succeed_although_nobody_reads_what_they_print() {
    let base = tempfile::tempdir().unwrap();
    let path = |name: &str| base.path().join(name);
    make_tree(&path("tree"), 1, 20, 100_000);
    let (tree, to, keys) = (path("tree"), path("to"), path("keys"));
    succeeds_unread(&[
        "publish".as_ref(),
        tree.as_ref(),
        "--repo".as_ref(),
        "x.test".as_ref(),
        "--to".as_ref(),
        to.as_ref(),
        "--keys".as_ref(),
        keys.as_ref(),
    ]);
    assert!(to.join("x.test/root").exists(), "the tree was not published");
    for args in [
        &["--help"][..],
        &["lab", "--help"],
        &["swarm", "--seed", "1", "--nodes", "4", "--trace"],
        &["swarm", "--seeds", "0..2", "--nodes", "4"],
    ] {
        succeeds_unread(&args.iter().map(OsStr::new).collect::<Vec<_>>());
    }
}

#[test]
fn a_full_disk_behind_the_output_is_an_error() {
    let args = ["swarm", "--seeds", "0..1", "--nodes", "4"];
    let full = File::options().write(true).open("/dev/full").unwrap();
    let out = Command::new(STARLING).args(args).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("standard output"), "{}: {said}", out.status);
}

#[test]
fn an_agent_whose_log_nobody_reads_serves_and_ends_well() {
    let base = tempfile::tempdir().unwrap();
    let node = Node::new(base.path().join("node"));
    let socket = node.socket();
    node.init_mesh("here/a/1");
    let mut agent = Process(
        Command::new(STARLING)
            .args(["agent", "--listen", "127.0.0.1:0", "--state"])
            .arg(node.state())
            .arg("--socket")
            .arg(&socket)
            .env("STARLING_LOG_FILTER", "debug")
            .stdin(Stdio::null())
            .stdout(closed())
            .stderr(closed())
            .spawn()
            .unwrap(),
    );
    wait_for("the agent's answer", Duration::from_secs(20), || {
        let args = [OsStr::new("peers"), "--socket".as_ref(), socket.as_ref()];
        starling(&args).status.success().then_some(())
    });
    assert!(agent.terminate().success());
}
