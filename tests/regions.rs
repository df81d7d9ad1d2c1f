//! Proves that a node finds content in another region through the DHT, at an address that it was never given.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Node, Stratum, assert_same, at_fingerprint, can_mount, listing, make_tree, publish, wait_for};
use std::time::Duration;

#[test]
fn content_of_another_region_is_found_through_the_dht_and_only_through_it() {
    if !can_mount("regions") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    make_tree(&tree, 3, 30, 4 << 20);
    let expected = listing(&tree);
    let made = publish(&tree, "far.test", &to, &base.path().join("keys"), &[]);
    let mut stratum = Stratum::serve(&to, base.path());

    // The bootstrap member holds no content and is the only address that anybody is given.
    let mut bootstrap = Node::new(base.path().join("bootstrap"));
    bootstrap.init_mesh("middle/m/1");
    bootstrap.start();
    bootstrap.add_repository(&at_fingerprint(&made), &stratum.url);

    let mut a = Node::new(base.path().join("a"));
    a.join(&bootstrap.invite(), "east/a/1");
    a.start();
    let at = a.mount("far.test", "mnt");
    assert_same(&expected, &listing(&at));
    wait_for("A to announce what it holds", Duration::from_secs(60), || {
        (a.metric("starling_dht_announcements_total") > 0.0).then_some(())
    });
    stratum.kill();

    // Without the DHT the read fails ...
    let mut blind = Node::new(base.path().join("blind")).with_args(&["--no-dht", "--read-timeout", "6s"]);
    blind.join(&bootstrap.invite(), "west/x/1");
    blind.start();
    let blind_reads = blind.try_to_read("far.test", "mnt");
    assert!(blind_reads.is_err(), "without the DHT nobody can have told it where the content is");

    // ... with it, it succeeds.
    let mut b = Node::new(base.path().join("b"));
    b.join(&bootstrap.invite(), "west/b/1");
    b.start();
    b.try_to_read("far.test", "mnt").expect("B reads what only A holds");
    assert_same(&expected, &listing(&b.dir.join("mnt")));
    assert!(b.metric("starling_dht_lookups_total") > 0.0);
    assert_eq!(b.metric("starling_obtained_bytes_total{source=\"strata\"}"), 0.0);
}
