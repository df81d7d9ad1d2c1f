//! Proves that a new revision spreads, that mounts switch to it, and that nothing older or forged is accepted after it.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{
    Node, Stratum, assert_same, at_fingerprint, can_mount, fails, listing, make_tree, ok, publish, wait_for,
};
use std::ffi::OsStr;
use std::fs;
use std::time::Duration;

#[test]
fn whoever_publishes_is_told_each_time_how_others_trust_it() {
    let base = tempfile::tempdir().unwrap();
    let (tree, to, keys) = (base.path().join("tree"), base.path().join("to"), base.path().join("keys"));
    make_tree(&tree, 1, 5, 1000);
    let made = publish(&tree, "rev.test", &to, &keys, &[]);
    let again: [&OsStr; 8] = [
        "publish".as_ref(),
        tree.as_ref(),
        "--repo".as_ref(),
        "rev.test".as_ref(),
        "--to".as_ref(),
        to.as_ref(),
        "--keys".as_ref(),
        keys.as_ref(),
    ];
    let said = ok(&again);
    assert!(said.contains("nothing changed") && said.contains(&at_fingerprint(&made)), "{said}");
}

#[test]
fn a_new_revision_reaches_every_mount_and_an_older_one_is_refused_after_it() {
    if !can_mount("revisions") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to, keys) = (base.path().join("tree"), base.path().join("to"), base.path().join("keys"));
    make_tree(&tree, 33, 60, 4 << 20);
    let made = publish(&tree, "rev.test", &to, &keys, &[]);
    let old_root = fs::read(to.join("rev.test/root")).unwrap();
    let stratum = Stratum::serve(&to, base.path());
    let mut first = Node::new(base.path().join("first"));
    first.init_mesh("here/a/1");
    first.start();
    first.add_repository(&at_fingerprint(&made), &stratum.url);
    let mut second = Node::new(base.path().join("second"));
    second.join(&first.invite(), "here/b/1");
    second.start();
    let mounts = [first.mount("rev.test", "mnt"), second.mount("rev.test", "mnt")];
    for at in &mounts {
        assert_same(&listing(&tree), &listing(at));
    }

    // An open file keeps its content over the switch.
    let mut held = fs::File::open(mounts[1].join("large")).unwrap();
    let before = fs::read(tree.join("large")).unwrap();
    fs::write(tree.join("large"), common::Dice(99).bytes(1 << 20)).unwrap();
    fs::remove_file(tree.join("empty")).unwrap();
    fs::write(tree.join("new"), b"new").unwrap();
    publish(&tree, "rev.test", &to, &keys, &["--announce", first.socket().to_str().unwrap()]);
    for at in &mounts {
        wait_for("the new revision", Duration::from_secs(30), || at.join("new").exists().then_some(()));
        assert_same(&listing(&tree), &listing(at));
    }
    let mut kept = Vec::new();
    std::io::Read::read_to_end(&mut held, &mut kept).unwrap();
    assert!(kept == before, "an open file changed under its reader");

    // The old root is refused by both nodes, whoever brings it, and also after a restart.
    let old = base.path().join("old-root");
    fs::write(&old, &old_root).unwrap();
    second.stop();
    second.start();
    for node in [&first, &second] {
        let said = fails(&[
            OsStr::new("repo"),
            "announce".as_ref(),
            old.as_ref(),
            "--socket".as_ref(),
            node.socket().as_ref(),
        ]);
        assert!(said.contains("older"), "{said}");
    }
    for at in &mounts {
        wait_for("the mount after the restart", Duration::from_secs(30), || {
            at.join("new").exists().then_some(())
        });
    }

    // A forged root is refused.
    let mut forged = fs::read(to.join("rev.test/root")).unwrap();
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    fs::write(&old, &forged).unwrap();
    fails(&[
        OsStr::new("repo"),
        "announce".as_ref(),
        old.as_ref(),
        "--socket".as_ref(),
        first.socket().as_ref(),
    ]);
    let status = ok(&[OsStr::new("status"), "--socket".as_ref(), first.socket().as_ref()]);
    assert!(status.contains("rev.test"), "{status}");
}
