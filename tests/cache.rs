//! Proves what `starling cache` promises: what is pinned is brought and stays, what is damaged is found and mended.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Node, Stratum, at_fingerprint, fails, make_tree, ok, publish, starling, wait_for};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// `starling cache ARGS` of a node.
fn cache(args: &[&str], node: &Node) -> Vec<String> {
    let socket = node.socket().to_string_lossy().into_owned();
    let all = ["cache"].iter().chain(args).chain(&["--socket"]).map(|arg| (*arg).to_owned());
    all.chain([socket]).collect()
}

fn json(args: &[&str], node: &Node) -> serde_json::Value {
    let args = [args, &["--json"]].concat();
    serde_json::from_str(&ok(&cache(&args, node))).unwrap()
}

/// The pin of a path, once all of it is there.
fn complete(node: &Node, path: &str) -> serde_json::Value {
    wait_for("the pin to be complete", Duration::from_secs(60), || {
        let pins = json(&["status"], node)["pins"].clone();
        let pin = pins.as_array().unwrap().iter().find(|pin| pin["path"] == path).cloned();
        pin.filter(|pin| pin["complete"] == true)
    })
}

fn bodies(node: &Node) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.state().join("cache/bodies")).unwrap();
    let mut found: Vec<_> =
        entries.map(|entry| entry.unwrap().path()).filter(|p| p.extension().is_none()).collect();
    found.sort();
    found
}

#[test]
fn what_is_pinned_is_brought_stays_and_is_mended() {
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    let keys = base.path().join("keys");
    make_tree(&tree, 7, 30, 4 << 20);
    let made = publish(&tree, "cache.test", &to, &keys, &[]);
    let mut stratum = Stratum::serve(&to, base.path());
    let mut node = Node::new(base.path().join("node"));
    node.start();
    node.add_repository(&at_fingerprint(&made), &stratum.url);

    assert!(fails(&cache(&["pin", "cache.test:/nowhere"], &node)).contains("there is no /nowhere"));
    assert!(fails(&cache(&["unpin", "cache.test:/"], &node)).contains("is not pinned"));
    assert!(ok(&cache(&["pin", "cache.test:"], &node)).contains("cache.test:/ revision 1"));
    let pin = complete(&node, "/");
    assert!(pin["bytes"].as_u64().unwrap() > 3 << 20, "{pin}");

    // A newer revision is brought without having been asked for.
    make_tree(&tree.join("more"), 8, 5, 1 << 20);
    publish(&tree, "cache.test", &to, &keys, &["--announce", node.socket().to_str().unwrap()]);
    ok(&cache(&["pin", "cache.test:/more"], &node));
    complete(&node, "/more");
    wait_for("the newer revision", Duration::from_secs(90), || {
        (complete(&node, "/")["revision"] == 2).then_some(())
    });
    wait_for("the catalogs", Duration::from_secs(90), || {
        let pins = json(&["status"], &node)["pins"].clone();
        let mut pins = pins.as_array().unwrap().iter();
        pins.any(|pin| pin["path"].is_null() && pin["revision"] == 2 && pin["complete"] == true).then_some(())
    });

    // Nobody is there any more, and everything else goes.
    stratum.kill();
    ok(&cache(&["clean"], &node));
    assert!(ok(&cache(&["verify"], &node)).contains("were hashed"));
    let units = json(&["list"], &node);
    assert!(units["units"].as_array().unwrap().iter().all(|unit| unit["pinned"] == true), "{units}");
    node.kill();
    node.start();
    complete(&node, "/");

    // Rot under a running agent.
    let body = bodies(&node).remove(0);
    let file = OpenOptions::new().read(true).write(true).open(&body).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 17).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 17).unwrap();
    let found = starling(&cache(&["verify", "--json"], &node));
    let said = String::from_utf8(found.stderr).unwrap();
    assert!(found.status.code() == Some(1) && said.contains("1 chunks were damaged"), "{said}");
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found["damaged_chunks"], 1, "{found}");
    assert!(ok(&cache(&["verify"], &node)).contains("were hashed"), "it was dropped");

    // It is fetched again and everything is whole.
    let stratum = Stratum::serve(&to, base.path());
    let fingerprint = at_fingerprint(&made);
    node.add_repository(&fingerprint, &stratum.url);
    ok(&cache(&["pin", "cache.test:/"], &node));
    complete(&node, "/");

    assert!(ok(&cache(&["unpin", "cache.test:/more"], &node)).contains("not pinned any more"));
    ok(&cache(&["unpin", "cache.test:/"], &node));
    wait_for("the catalogs to be let go", Duration::from_secs(90), || {
        json(&["status"], &node)["pins"].as_array().unwrap().is_empty().then_some(())
    });
    ok(&cache(&["clean"], &node));
    assert_eq!(json(&["status"], &node)["used_bytes"], 0);
    node.stop();
}
