//! Proves what an agent does that sees nobody: it asks the strata for newer roots, and says what is wrong with it.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Node, Stratum, at_fingerprint, can_mount, fails, make_tree, ok, publish, starling, wait_for};
use std::ffi::OsStr;
use std::fs;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(90);

/// What `starling health` says of a node that it takes for unfit.
fn unfit(node: &Node) -> Option<String> {
    let socket = node.socket();
    let out = starling(&[OsStr::new("health"), "--socket".as_ref(), socket.as_ref()]);
    (!out.status.success()).then(|| String::from_utf8(out.stderr).unwrap())
}

fn invite(node: &Node) -> Vec<std::ffi::OsString> {
    vec!["mesh".into(), "invite".into(), "--socket".into(), node.socket().into()]
}

#[test]
fn an_agent_whose_machine_became_a_member_meanwhile_says_that_it_must_be_restarted() {
    let base = tempfile::tempdir().unwrap();
    let mut node = Node::new(base.path().join("node"));
    node.start();
    assert_eq!(unfit(&node), None, "to stand alone is no trouble");
    let said = fails(&invite(&node));
    assert!(said.contains("mesh init") && !said.contains("restart"), "{said}");
    let state = node.state();
    let made = starling(&[OsStr::new("mesh"), "init".as_ref(), "--state".as_ref(), state.as_ref()]);
    let said = String::from_utf8(made.stderr).unwrap();
    assert!(made.status.success() && said.contains("restart"), "{said}");
    for said in [fails(&invite(&node)), unfit(&node).unwrap()] {
        assert!(said.contains("restart the agent"), "{said}");
    }
    node.stop();
    node.start();
    assert_eq!(unfit(&node), None, "the first member of a mesh is alone by rights");
    ok(&invite(&node));
}

#[test]
fn an_authority_whose_desk_cannot_be_opened_starts_and_says_that_nobody_can_join() {
    let base = tempfile::tempdir().unwrap();
    let mut node = Node::new(base.path().join("node"));
    node.init_mesh("here/a/1");
    fs::write(node.state().join("used-tickets"), [7; 300]).unwrap();
    node.start();
    let said = unfit(&node).unwrap();
    assert!(said.contains("nobody can join here") && said.contains("used-tickets"), "{said}");
    let joiner = Node::new(base.path().join("joiner"));
    let (ticket, state) = (node.invite(), joiner.state());
    fails(&[OsStr::new("join"), ticket.as_ref(), "--state".as_ref(), state.as_ref()]);
}

#[test]
fn a_node_that_sees_nobody_gets_a_new_revision_from_the_strata() {
    if !can_mount("alone") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to, keys) = (base.path().join("tree"), base.path().join("to"), base.path().join("keys"));
    make_tree(&tree, 7, 20, 1 << 20);
    let made = publish(&tree, "alone.test", &to, &keys, &[]);
    let stratum = Stratum::serve(&to, base.path());
    let mut first = Node::new(base.path().join("first"));
    first.init_mesh("here/a/1");
    first.start();
    first.add_repository(&at_fingerprint(&made), &stratum.url);
    let mut second = Node::new(base.path().join("second"));
    second.join(&first.invite(), "here/a/1");
    second.start();
    let at = second.mount("alone.test", "mnt");
    wait_for("both to see each other", LONG, || (second.peers_up() == 1).then_some(()));
    second.stop();
    first.stop();
    fs::write(tree.join("new"), b"new").unwrap();
    publish(&tree, "alone.test", &to, &keys, &[]);
    second.start();
    wait_for("the new revision", LONG, || at.join("new").exists().then_some(()));
    let said = wait_for("to be missed", LONG, || unfit(&second));
    assert!(
        said.contains("sees nobody") && said.contains("1 member") && said.contains("bootstrap"),
        "{said}"
    );
    first.start();
    wait_for("health", LONG, || unfit(&second).is_none().then_some(()));
}

#[test]
fn who_is_gone_for_good_is_not_missed_any_longer_once_it_was_revoked() {
    let base = tempfile::tempdir().unwrap();
    let mut first = Node::new(base.path().join("first"));
    first.init_mesh("here/a/1");
    first.start();
    let mut second = Node::new(base.path().join("second"));
    second.join(&first.invite(), "here/a/1");
    second.start();
    wait_for("both to see each other", LONG, || (first.peers_up() == 1).then_some(()));
    let socket = second.socket();
    let words = ["mesh", "members", "--json", "--socket"].map(OsStr::new);
    let told: serde_json::Value =
        serde_json::from_str(&ok(&[&words[..], &[socket.as_os_str()]].concat())).unwrap();
    let own = told["members"].as_array().unwrap().iter().find(|member| member["this"] == true).unwrap();
    let gone = own["node"].as_str().unwrap().to_owned();
    wait_for("it to be remembered", LONG, || {
        let contacts = fs::read_to_string(first.state().join("contacts.json")).unwrap_or_default();
        contacts.contains(&gone).then_some(())
    });
    first.stop();
    second.stop();
    first.start();
    wait_for("to be missed", LONG, || unfit(&first));
    // It is not seen in this run, only remembered.
    let socket = first.socket();
    ok(&["mesh".as_ref(), "revoke".as_ref(), gone.as_ref(), "--socket".as_ref(), socket.as_os_str()]);
    wait_for("health", LONG, || unfit(&first).is_none().then_some(()));
}

#[test]
fn a_node_whose_membership_has_lapsed_finds_an_authority_at_another_address_by_name() {
    let base = tempfile::tempdir().unwrap();
    let later = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = |name: &str, text: String| {
        let file = base.path().join(name);
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let short = config("authority.toml", "certificate_life_s = 6\n".into());
    let named = config("node.toml", format!("bootstrap = [\"localhost:{}\"]\n", later.port()));
    let mut first = Node::new(base.path().join("first")).with_args(&["--config", &short]);
    first.init_mesh("here/a/1");
    first.start();
    let mut second = Node::new(base.path().join("second")).with_args(&["--config", &named]);
    second.join(&first.invite(), "here/a/1");
    second.start();
    wait_for("both to see each other", LONG, || (second.peers_up() == 1).then_some(()));
    second.stop();
    first.stop();
    std::thread::sleep(Duration::from_secs(7));
    first.move_to(&later.to_string());
    first.start();
    second.start();
    wait_for("the mesh", LONG, || (second.peers_up() == 1 && first.peers_up() == 1).then_some(()));
}
