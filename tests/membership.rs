//! Proves that memberships end and go on as they should: revocation within five seconds on all members and known to
//! the revoked node itself, expiry, late renewal, renewal and rotation under a read, scopes.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Node, Stratum, at_fingerprint, can_mount, fails, make_tree, ok, publish, starling, wait_for};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

const LONG: Duration = Duration::from_secs(90);
/// Life of certificates that do not end during a test.
const LONG_LIFE_S: u64 = 3_600;

fn mesh(node: &Node, verb: &str, more: &[&str]) -> Value {
    let mut args: Vec<&OsStr> = vec!["mesh".as_ref(), verb.as_ref()];
    args.extend(more.iter().map(|m| OsStr::new(*m)));
    let socket = node.socket();
    args.extend(["--json".as_ref(), "--socket".as_ref(), socket.as_os_str()]);
    serde_json::from_str(&ok(&args)).unwrap()
}

fn ticket(node: &Node, more: &[&str]) -> String {
    mesh(node, "invite", more)["ticket"].as_str().unwrap().to_owned()
}

/// A mesh whose authority issues certificates of `life_s` seconds: `count` nodes, all known to all. Where those live
/// long, in two cells: a cell hears of another's renewed certificates only twice a minute.
fn meshed(base: &Path, count: usize, life_s: u64) -> Vec<Node> {
    let config = base.join("authority.toml");
    fs::write(&config, format!("certificate_life_s = {life_s}\n")).unwrap();
    let mut nodes: Vec<Node> = Vec::new();
    for i in 0..count {
        let mut node = Node::new(base.join(format!("node{i}")));
        let cell = if i % 2 == 0 || life_s < LONG_LIFE_S { "here/a/1" } else { "here/b/1" };
        if let Some(first) = nodes.first() {
            node.join(&first.invite(), cell);
        } else {
            node = node.with_args(&["--config", config.to_str().unwrap()]);
            node.init_mesh(cell);
        }
        node.start();
        nodes.push(node);
    }
    for node in &nodes {
        wait_for("all to know all", LONG, || (node.peers_up() == count - 1).then_some(()));
    }
    nodes
}

/// What a command says to people.
fn said(node: &Node, words: &[&str]) -> String {
    let socket = node.socket();
    let mut args: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    args.extend(["--socket".as_ref(), socket.as_os_str()]);
    ok(&args)
}

/// What a command says when it is refused.
fn refused(node: &Node, words: &[&str]) -> String {
    let socket = node.socket();
    let mut args: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    args.extend(["--socket".as_ref(), socket.as_os_str()]);
    fails(&args)
}

fn node_name(node: &Node) -> String {
    let members = mesh(node, "members", &[]);
    let own = members["members"].as_array().unwrap().iter().find(|m| m["this"] == true).unwrap().clone();
    own["node"].as_str().unwrap().to_owned()
}

/// What `seer` says of the member `name`.
fn seen(seer: &Node, name: &str) -> Option<Value> {
    let members = mesh(seer, "members", &[]);
    members["members"].as_array().unwrap().iter().find(|m| m["node"] == name).cloned()
}

/// Whether a node knows a repository.
fn knows(node: &Node, repository: &str) -> bool {
    let list = ok(&[OsStr::new("repo"), "list".as_ref(), "--socket".as_ref(), node.socket().as_ref()]);
    list.contains(repository)
}

/// What the node says of itself.
fn status(node: &Node) -> Value {
    let socket = node.socket();
    let args = [OsStr::new("status"), "--json".as_ref(), "--socket".as_ref(), socket.as_ref()];
    serde_json::from_str(&ok(&args)).unwrap()
}

/// What its health check says is wrong with it.
fn ailment(node: &Node) -> String {
    fails(&[OsStr::new("health"), "--socket".as_ref(), node.socket().as_ref()])
}

fn is_gone(seer: &Node, name: &str) -> bool {
    seen(seer, name).is_none_or(|member| member["up"] == false && member["connections"] == 0)
}

/// The time by the file system's clock.
fn moment(dir: &Path) -> SystemTime {
    let file = dir.join("clock");
    fs::write(&file, b"tick").unwrap();
    fs::metadata(&file).unwrap().modified().unwrap()
}

#[test]
fn a_revocation_closes_a_nodes_connections_on_all_members_within_five_seconds() {
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    make_tree(&tree, 5, 40, 24 << 20);
    let made = publish(&tree, "x.test", &to, &base.path().join("keys"), &[]);
    let stratum = Stratum::serve(&to, base.path());
    let mut nodes = meshed(base.path(), 6, LONG_LIFE_S);
    nodes[0].add_repository(&at_fingerprint(&made), &stratum.url);
    let old = ticket(&nodes[0], &["--uses", "3"]);
    let out = node_name(&nodes[5]);
    // All read the same, so that the node has connections with members of both cells when it is revoked.
    let with_reads = can_mount("the members have connections with the revoked node");
    if with_reads {
        for node in &mut nodes {
            wait_for("the card and the root to spread", LONG, || knows(node, "x.test").then_some(()));
            node.mount_with("x.test", "mnt", &["--fill"]);
        }
    }
    let wanted = if with_reads { 3 } else { 1 };
    wait_for("several to have a connection with it", LONG, || {
        let connected = |node: &&Node| seen(node, &out).is_some_and(|member| member["connections"] != 0);
        (nodes[..5].iter().filter(connected).count() >= wanted).then_some(())
    });
    let began = moment(base.path());
    let revoked = mesh(&nodes[0], "revoke", &[&out[..12], "--reason", "disk sold"]);
    assert_eq!((revoked["node"].as_str().unwrap(), revoked["number"].as_u64()), (&*out, Some(1)));
    wait_for("all members to have turned it out", LONG, || {
        nodes[..5].iter().all(|node| is_gone(node, &out)).then_some(())
    });
    // One bound for all of them together, the time of asking them included: what the project promises.
    let took = moment(base.path()).duration_since(began).unwrap();
    assert!(took <= Duration::from_secs(5), "it took {took:?}");
    let rows = said(&nodes[0], &["peers"]);
    assert!(rows.lines().any(|row| row.contains(&out[..10]) && row.contains("revoked")), "{rows}");
    let listed = mesh(&nodes[3], "members", &[]);
    assert_eq!(listed["revoked"][0]["reason"], "disk sold");
    for node in &nodes[..5] {
        assert!(is_gone(node, &out), "it came back");
        assert_eq!(node.peers_up(), 4);
        assert!(seen(node, &out).is_none_or(|member| member["revoked"] == true), "it is only down");
    }

    // Nobody speaks to it any more but the authority's desk, where it hears why.
    let socket = nodes[5].socket();
    let health: [&OsStr; 3] = ["health".as_ref(), "--socket".as_ref(), socket.as_os_str()];
    wait_for("the revoked node to know it", LONG, || (!starling(&health).status.success()).then_some(()));
    assert!(fails(&health).contains("no member of its mesh any more"));

    // No ticket from before lets it in again, and one from after does.
    let state = nodes[5].state();
    let again = |ticket: &str| {
        let words = ["join", ticket, "--cell", "here/b/1", "--force", "--state"];
        let mut args: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        args.push(state.as_os_str());
        args.iter().map(|arg| arg.to_os_string()).collect::<Vec<_>>()
    };
    // Its agent would write the old membership over the new one.
    let told = fails(&again(&old));
    assert!(
        told.contains("an agent works in this state folder") && told.contains("stop the agent"),
        "{told}"
    );
    nodes[5].stop();
    assert!(fails(&again(&old)).contains("revocation"), "an old ticket");
    let new = ticket(&nodes[0], &[]);
    ok(&again(&new));
    nodes[5].start();
    for node in &nodes {
        wait_for("the invited node to be back", LONG, || (node.peers_up() == 5).then_some(()));
    }
}

#[test]
fn a_revoked_node_finds_out_says_so_and_its_mounts_go_on_with_what_is_cached() {
    if !can_mount("a_revoked_node_finds_out_says_so") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    make_tree(&tree, 6, 40, 8 << 20);
    let made = publish(&tree, "x.test", &to, &base.path().join("keys"), &[]);
    let mut stratum = Stratum::serve(&to, base.path());
    let mut nodes = meshed(base.path(), 4, LONG_LIFE_S);
    nodes[0].add_repository(&at_fingerprint(&made), &stratum.url);
    let mut out = nodes.pop().unwrap();
    let name = node_name(&out);
    wait_for("the card and the root to spread", LONG, || knows(&out, "x.test").then_some(()));
    let at = out.mount_with("x.test", "mnt", &[]);
    let large = fs::read(tree.join("large")).unwrap();
    assert!(fs::read(at.join("large")).unwrap() == large);
    ok(&[OsStr::new("health"), "--socket".as_ref(), out.socket().as_ref()]);
    assert_eq!(status(&out)["mesh"]["ended"], Value::Null);

    // It is away while all others turn it out. What they had sent it before may tell it when it is back; otherwise it is
    // refused, and asks the authority why.
    out.pause();
    mesh(&nodes[0], "revoke", &[&name, "--reason", "stolen"]);
    wait_for("all members to have turned it out", LONG, || {
        nodes.iter().all(|node| is_gone(node, &name)).then_some(())
    });
    out.resume();
    let ended = wait_for("the node to know of its end", LONG, || {
        status(&out)["mesh"]["ended"].as_str().map(str::to_owned)
    });
    assert!(ended.contains("revoked"), "{ended}");
    wait_for("the node to know nobody", LONG, || {
        let members = mesh(&out, "members", &[]);
        let others = members["members"].as_array().unwrap().iter().filter(|member| member["this"] != true);
        let gone = |member: &Value| member["up"] == false && member["connections"] == 0;
        (out.peers_up() == 0 && others.into_iter().all(gone)).then_some(())
    });
    assert_eq!(status(&out)["mesh"]["members_up"], 1, "itself");
    assert!(ailment(&out).contains("no member of its mesh any more"));
    assert!(out.log().contains("this node was revoked"), "the log says so");

    // A file that nobody has read yet comes from the stratum; what is cached, from the cache, by a mount of its own and
    // after a restart, with nobody left to ask.
    let unread = |at: &Path| fs::read(at.join("d0/f0")).unwrap();
    assert!(unread(&at) == fs::read(tree.join("d0/f0")).unwrap());
    stratum.kill();
    let again = out.mount_with("x.test", "again", &[]);
    assert!(fs::read(again.join("large")).unwrap() == large);
    out.stop();
    out.start();
    wait_for("its mounts to be back", LONG, || {
        (fs::read(at.join("large")).ok()? == large && unread(&again).len() > 1).then_some(())
    });
    assert!(ailment(&out).contains("no member of its mesh any more"));
    assert_eq!(out.peers_up(), 0);
    for node in &nodes {
        wait_for("the others to go on", LONG, || {
            (is_gone(node, &name) && node.peers_up() == 2).then_some(())
        });
    }
}

#[test]
fn expired_nodes_get_nothing_until_the_authority_is_back_and_renews_them() {
    let base = tempfile::tempdir().unwrap();
    let mut nodes = meshed(base.path(), 3, 8);
    let names: Vec<String> = nodes.iter().map(node_name).collect();
    // It comes back where it was, and finds the others by what it remembers.
    let remembered = nodes[0].state().join("contacts.json");
    wait_for("the authority to remember the others", LONG, || {
        let text = fs::read_to_string(&remembered).unwrap_or_default();
        names[1..].iter().all(|name| text.contains(name.as_str())).then_some(())
    });
    nodes[0].kill();
    // Nobody renews: within two lives all certificates have ended, and everybody refuses everybody.
    for (seer, other) in [(1, 2), (2, 1)] {
        wait_for("an expired member to be turned out", LONG, || {
            is_gone(&nodes[seer], &names[other]).then_some(())
        });
    }
    std::thread::sleep(Duration::from_secs(8));
    assert!(is_gone(&nodes[1], &names[2]) && is_gone(&nodes[2], &names[1]));
    assert_eq!((nodes[1].peers_up(), nodes[2].peers_up()), (0, 0));
    nodes[0].start();
    for node in &nodes {
        wait_for("all to be renewed", Duration::from_secs(180), || (node.peers_up() == 2).then_some(()));
    }
    let renewed = mesh(&nodes[0], "authority", &[]);
    assert!(renewed["counts"]["renewed"].as_u64().unwrap() >= 2, "{renewed}");
}

#[test]
fn a_read_goes_on_while_certificates_are_renewed_and_the_authoritys_key_is_rotated() {
    if !can_mount("a_read_goes_on_while_certificates_are_renewed") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    make_tree(&tree, 4, 20, 48 << 20);
    let made = publish(&tree, "x.test", &to, &base.path().join("keys"), &[]);
    let stratum = Stratum::serve(&to, base.path());
    let mut nodes = meshed(base.path(), 3, 10);
    nodes[0].add_repository(&at_fingerprint(&made), &stratum.url);
    wait_for("the card and the root to spread", LONG, || knows(&nodes[2], "x.test").then_some(()));
    let at = nodes[2].mount("x.test", "mnt");
    let before = seen(&nodes[2], &node_name(&nodes[2])).unwrap();
    let wanted = fs::read(tree.join("large")).unwrap();
    let mut file = fs::File::open(at.join("large")).unwrap();
    let piece_len = wanted.len() / 30;
    for (number, piece) in wanted.chunks(piece_len).enumerate() {
        let mut read = vec![0; piece.len()];
        file.read_exact(&mut read).expect("the read goes on");
        assert!(read == piece, "piece {number} has other bytes");
        if number == 8 {
            let rotated = mesh(&nodes[0], "rotate", &["--overlap", "10s"]);
            assert_eq!((rotated["key_number"].as_u64(), rotated["cards"].as_u64()), (Some(2), Some(1)));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let after = seen(&nodes[2], &node_name(&nodes[2])).unwrap();
    assert!(after["issued"].as_u64() > before["expires"].as_u64(), "{before} {after}");
    for node in &nodes {
        let authority = mesh(node, "authority", &[]);
        assert_eq!(authority["key_number"].as_u64(), Some(2));
        assert_eq!(authority["old_keys_until"], Value::Null, "the old key has retired");
        assert_eq!(node.peers_up(), 2);
    }
    // Who joins after it learns of repositories whose cards the new key signed.
    let mut late = Node::new(base.path().join("late"));
    late.join(&nodes[0].invite(), "here/a/1");
    late.start();
    wait_for("the newcomer to know the repository", LONG, || knows(&late, "x.test").then_some(()));
}

#[test]
fn a_member_is_told_only_of_the_repositories_of_its_ticket() {
    let base = tempfile::tempdir().unwrap();
    let to = base.path().join("to");
    let names = ["one.test", "two.test"];
    let made = names.map(|name| {
        let tree = base.path().join(name);
        make_tree(&tree, 2, 5, 10_000);
        publish(&tree, name, &to, &base.path().join(format!("{name}-keys")), &[])
    });
    let stratum = Stratum::serve(&to, base.path());
    let mut nodes = meshed(base.path(), 2, LONG_LIFE_S);
    let mut guest = Node::new(base.path().join("guest"));
    guest.join(&ticket(&nodes[0], &["--repo", "two.test", "--cell", "here/a/1"]), "here/a/1");
    guest.start();
    wait_for("the guest to be up", LONG, || (guest.peers_up() == 2).then_some(()));
    for made in &made {
        nodes[0].add_repository(&at_fingerprint(made), &stratum.url);
    }
    for (node, name) in [(&nodes[1], "one.test"), (&nodes[1], "two.test"), (&guest, "two.test")] {
        wait_for("news of a repository", LONG, || knows(node, name).then_some(()));
    }
    assert!(!knows(&guest, "one.test"), "it is not in the ticket");
    // Also not when it asks for everything, as it does after a start.
    guest.stop();
    guest.start();
    wait_for("the guest to be up again", LONG, || (guest.peers_up() == 2).then_some(()));
    std::thread::sleep(Duration::from_secs(3));
    assert!(knows(&guest, "two.test") && !knows(&guest, "one.test"));
    let own = seen(&nodes[0], &node_name(&guest)).unwrap();
    assert_eq!(own["repositories"], serde_json::json!(["two.test"]));
    nodes.truncate(0);
}

#[test]
fn only_an_authority_invites_revokes_and_rotates_and_there_may_be_several() {
    let base = tempfile::tempdir().unwrap();
    let nodes = meshed(base.path(), 2, LONG_LIFE_S);
    let member = nodes[1].socket();
    for words in [&["invite"][..], &["rotate"], &["revoke", &"ab".repeat(32)]] {
        let mut args: Vec<&OsStr> = vec!["mesh".as_ref()];
        args.extend(words.iter().map(OsStr::new));
        args.extend(["--socket".as_ref(), member.as_os_str()]);
        let said = fails(&args);
        assert!(said.contains("not an authority") && said.contains("hint"), "{said}");
    }
    let mut second = Node::new(base.path().join("second"));
    second.join(&ticket(&nodes[0], &["--role", "authority"]), "here/a/1");
    second.start();
    wait_for("the second authority to be up", LONG, || (second.peers_up() == 2).then_some(()));
    let mut third = Node::new(base.path().join("third"));
    third.join(&second.invite(), "here/b/1");
    third.start();
    wait_for("its guest to be up", LONG, || (third.peers_up() == 3).then_some(()));
    let out = node_name(&third);
    mesh(&second, "revoke", &[&out]);
    wait_for("the first authority's members to heed the second", Duration::from_secs(5), || {
        nodes.iter().all(|node| is_gone(node, &out)).then_some(())
    });
    let known = mesh(&nodes[1], "authority", &[]);
    assert_eq!(known["authorities"].as_array().unwrap().len(), 2, "{known}");
    assert_eq!(known["certificate_life_s"], Value::Null);
}

#[test]
fn a_lost_authority_is_restored_from_its_key_charter_and_revocations() {
    let base = tempfile::tempdir().unwrap();
    let mut nodes = meshed(base.path(), 2, LONG_LIFE_S);
    mesh(&nodes[0], "rotate", &[]);
    mesh(&nodes[0], "revoke", &[&"ab".repeat(32), "--reason", "disk sold"]);
    let before = mesh(&nodes[0], "authority", &[]);
    let lost = node_name(&nodes[0]);
    let member = seen(&nodes[1], &node_name(&nodes[1])).unwrap();
    wait_for("the member to follow", LONG, || {
        let known = mesh(&nodes[1], "authority", &[]);
        (known["key"] == before["key"] && known["revocations"] == before["revocations"]).then_some(())
    });

    let config = base.path().join("restored.toml");
    let address = member["address"].as_str().unwrap();
    fs::write(&config, format!("certificate_life_s = {LONG_LIFE_S}\nbootstrap = [\"{address}\"]\n")).unwrap();
    let mut restored =
        Node::new(base.path().join("restored")).with_args(&["--config", config.to_str().unwrap()]);
    fs::create_dir(restored.state()).unwrap();
    for file in ["authority.key", "charter", "revocations"] {
        fs::copy(nodes[0].state().join(file), restored.state().join(file)).unwrap();
    }
    nodes[0].kill();
    restored.init_mesh("here/a/1");
    restored.start();
    wait_for("the mesh to have its authority again", LONG, || (restored.peers_up() == 1).then_some(()));
    let after = mesh(&restored, "authority", &[]);
    for what in ["mesh", "key", "key_number", "revoked"] {
        assert_eq!(after[what], before[what], "{what}");
    }
    assert_eq!(after["key_problem"], Value::Null);
    assert_ne!(node_name(&restored), lost, "it is a new node");
    let mut third = Node::new(base.path().join("third"));
    third.join(&restored.invite(), "here/b/1");
    third.start();
    wait_for("its guest to know both", LONG, || (third.peers_up() == 2).then_some(()));
    mesh(&restored, "revoke", &[&lost]);
    wait_for("the member to heed it", LONG, || {
        let members = mesh(&nodes[1], "members", &[]);
        members["revoked"].as_array().unwrap().iter().any(|entry| entry["node"] == lost).then_some(())
    });
}

#[test]
fn an_authority_with_an_old_key_says_so_and_a_key_can_be_dropped_soon() {
    let base = tempfile::tempdir().unwrap();
    let nodes = meshed(base.path(), 2, LONG_LIFE_S);
    let mut second = Node::new(base.path().join("second"));
    second.join(&ticket(&nodes[0], &["--role", "authority"]), "here/a/1");
    second.start();
    wait_for("the second authority to be up", LONG, || (second.peers_up() == 2).then_some(()));
    assert!(said(&second, &["mesh", "authority"]).contains("certifies for"));
    ok(&[OsStr::new("health"), "--socket".as_ref(), second.socket().as_ref()]);

    mesh(&nodes[0], "rotate", &[]);
    wait_for("the second authority to hear of it", LONG, || {
        (mesh(&second, "authority", &[])["key_number"] == 2).then_some(())
    });
    let shown = said(&second, &["mesh", "authority"]);
    assert!(shown.contains("NO FULL AUTHORITY") && !shown.contains("certifies for"), "{shown}");
    assert!(said(&second, &["status"]).contains("NO FULL AUTHORITY"));
    assert!(ailment(&second).contains("newest key"));
    assert!(second.log().contains("does not hold the mesh's newest key"), "the log says so");
    let nobody = "ab".repeat(32);
    for words in
        [&["mesh", "rotate"][..], &["mesh", "revoke", &nobody], &["mesh", "invite", "--role", "authority"]]
    {
        let told = refused(&second, words);
        assert!(told.contains("--role authority") && told.contains("--force"), "{told}");
    }

    // A second rotation by mistake, and then a third that cannot wait.
    mesh(&nodes[0], "rotate", &[]);
    let told = refused(&nodes[0], &["mesh", "rotate"]);
    assert!(told.contains("3 keys count already") && told.contains("--drop-oldest"), "{told}");
    let before = seen(&nodes[1], &node_name(&nodes[1])).unwrap();
    let rotated = mesh(&nodes[0], "rotate", &["--overlap", "10m", "--drop-oldest"]);
    assert_eq!((&rotated["key_number"], &rotated["dropped"]["key_number"]), (&4.into(), &1.into()));
    assert!(rotated["dropped"]["members"].as_u64() >= Some(1), "{rotated}");
    // Members spread over the first three eighths of the six minutes that the oldest key has left.
    wait_for("the member to be renewed in time", 2 * LONG, || {
        let own = seen(&nodes[1], &node_name(&nodes[1])).unwrap();
        (own["issued"].as_u64() > before["issued"].as_u64() && nodes[1].peers_up() >= 1).then_some(())
    });
    for node in &nodes {
        assert_eq!(mesh(node, "authority", &[])["key_number"], 4);
    }
}
