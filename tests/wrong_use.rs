//! Proves that wrong use gets a clear error and a non-zero exit, and changes nothing.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Node, STARLING, Stratum, at_fingerprint, can_mount, fails, make_tree, ok, publish, skipped};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

fn publish_args<'a>(tree: &'a Path, name: &'a str, to: &'a Path, keys: &'a Path) -> Vec<&'a OsStr> {
    vec![
        "publish".as_ref(),
        tree.as_ref(),
        "--repo".as_ref(),
        name.as_ref(),
        "--to".as_ref(),
        to.as_ref(),
        "--keys".as_ref(),
        keys.as_ref(),
    ]
}

#[test]
fn publish_refuses_a_missing_tree_a_file_and_a_bad_name() {
    let base = tempfile::tempdir().unwrap();
    let (tree, to, keys) = (base.path().join("tree"), base.path().join("to"), base.path().join("keys"));
    assert!(fails(&publish_args(&tree, "x.test", &to, &keys)).contains("tree"));
    fs::write(&tree, b"a file").unwrap();
    assert!(fails(&publish_args(&tree, "x.test", &to, &keys)).contains("directory"));
    fs::remove_file(&tree).unwrap();
    make_tree(&tree, 1, 5, 1000);
    for bad in ["", "..", "A.test", "a/b", "a b"] {
        let said = fails(&publish_args(&tree, bad, &to, &keys));
        assert!(said.contains("repository name") || said.contains("--repo"), "{bad}: {said}");
    }
    assert!(!to.exists(), "a refused publish left something behind");
}

#[test]
fn an_unreadable_file_is_named_and_nothing_is_published() {
    if !rustix::process::geteuid().is_root() {
        return skipped("an_unreadable_file", "it needs root to drop privileges from");
    }
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (tree, to, keys) = (base.path().join("tree"), base.path().join("to"), base.path().join("keys"));
    make_tree(&tree, 1, 5, 1000);
    fs::write(tree.join("secret"), b"x").unwrap();
    fs::set_permissions(tree.join("secret"), fs::Permissions::from_mode(0o000)).unwrap();
    // The program may lie below a folder that the other user cannot enter.
    let program = base.path().join("starling");
    fs::copy(STARLING, &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let out = Command::new(&program)
        .args(publish_args(&tree, "x.test", &to, &keys))
        .uid(65534)
        .gid(65534)
        .env("HOME", base.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("secret") && said.contains("ermission"), "{said}");
    assert!(!to.join("x.test/root").exists());
}

#[test]
fn tickets_that_are_expired_spent_or_mangled_are_refused() {
    let base = tempfile::tempdir().unwrap();
    let mut authority = Node::new(base.path().join("authority"));
    authority.init_mesh("here/a/1");
    authority.start();
    let invite = |more: &[&str]| {
        let mut args: Vec<&OsStr> = vec!["mesh".as_ref(), "invite".as_ref(), "--socket".as_ref()];
        let socket = authority.socket();
        args.push(socket.as_os_str());
        args.extend(more.iter().map(|m| OsStr::new(*m)));
        ok(&args).lines().find(|l| l.starts_with("starling-")).unwrap().trim().to_owned()
    };
    let join = |ticket: &str, name: &str| {
        let state = base.path().join(name);
        common::starling(&[OsStr::new("join"), ticket.as_ref(), "--state".as_ref(), state.as_os_str()])
    };
    let expired = invite(&["--expires", "1s"]);
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let out = join(&expired, "late");
    assert!(!out.status.success());
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("expired"),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );

    let ticket = invite(&[]);
    assert!(join(&ticket, "first").status.success());
    let again = join(&ticket, "second");
    assert!(!again.status.success(), "a one-time ticket worked twice");
    let mangled = format!("{}aaaa", &ticket[..ticket.len() - 4]);
    for bad in ["", "nonsense", &mangled, "starling-ticket-"] {
        assert!(!join(bad, "third").status.success(), "{bad}");
    }
    assert!(!base.path().join("third/membership").exists());
}

#[test]
fn a_ticket_travels_in_a_file_and_one_that_leads_nowhere_is_not_made() {
    let base = tempfile::tempdir().unwrap();
    let mut authority = Node::new(base.path().join("authority"));
    authority.init_mesh("here/a/1");
    authority.start();
    let (socket, file, state) = (authority.socket(), base.path().join("ticket"), base.path().join("joiner"));
    let words: [&OsStr; 4] = ["mesh".as_ref(), "invite".as_ref(), "--socket".as_ref(), socket.as_ref()];
    let invite = |option: &str, value: &OsStr| -> Vec<OsString> {
        words.iter().copied().chain([option.as_ref(), value]).map(OsStr::to_owned).collect()
    };
    for nowhere in ["0.0.0.0:7400", "[::]:7400", "239.1.1.1:7400", "127.0.0.1:0"] {
        let said = fails(&invite("--address", nowhere.as_ref()));
        assert!(said.contains(nowhere) && said.contains("leads nowhere"), "{said}");
    }
    assert!(!ok(&invite("--out", file.as_ref())).contains("starling-ticket"));
    let join: [&OsStr; 4] = ["join".as_ref(), "--state".as_ref(), state.as_ref(), "--ticket-file".as_ref()];
    ok(&[&join[..], &[file.as_ref()]].concat());
    assert!(state.join("membership").exists());
    // Standard input is empty here.
    assert!(fails(&[&join[..], &["-".as_ref()]].concat()).contains("standard input"));
}

#[test]
fn mounting_where_it_cannot_be_is_refused_with_the_reason() {
    if !can_mount("mounting_where_it_cannot_be") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    make_tree(&tree, 1, 5, 1000);
    let made = publish(&tree, "x.test", &to, &base.path().join("keys"), &[]);
    let mut stratum = Stratum::serve(&to, base.path());
    let mut node = Node::new(base.path().join("node")).with_args(&["--read-timeout", "3s"]);
    node.start();
    let socket = node.socket();
    let mount = |name: &str, at: &Path| {
        fails(&[OsStr::new("mount"), name.as_ref(), at.as_ref(), "--socket".as_ref(), socket.as_ref()])
    };
    let free = base.path().join("free");
    fs::create_dir(&free).unwrap();
    assert!(mount("x.test", &free).contains("repo add"), "an unknown repository says how to make it known");
    node.add_repository(&at_fingerprint(&made), &stratum.url);
    assert!(mount("x.test", &base.path().join("nowhere")).contains("nowhere"));
    assert!(mount("x.test", &tree).contains("empty"));
    assert!(mount("Bad Name", &free).contains("repository name"));
    stratum.kill();
    let said = fails(&[
        OsStr::new("repo"),
        "add".as_ref(),
        format!("y.test@{}", made["fingerprint"].as_str().unwrap()).as_ref(),
        "--stratum".as_ref(),
        stratum.url.as_ref(),
        "--socket".as_ref(),
        socket.as_ref(),
    ]);
    assert!(said.contains("stratum not reachable"), "{said}");
    // What is cached mounts without a stratum; what is not there fails in bounded time, and the log says why.
    let at = node.mount("x.test", "mnt");
    assert!(fs::read(at.join("large")).is_err());
    assert!(node.log().contains("chunk"), "{}", node.log());
    let foreign = fails(&[OsStr::new("status"), "--socket".as_ref(), base.path().join("no-agent").as_ref()]);
    assert!(foreign.contains("agent"), "{foreign}");
}

#[test]
fn a_full_cache_disk_only_bypasses_the_cache() {
    if !can_mount("a_full_cache_disk") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (tree, to) = (base.path().join("tree"), base.path().join("to"));
    make_tree(&tree, 8, 40, 24 << 20);
    let made = publish(&tree, "full.test", &to, &base.path().join("keys"), &[]);
    let stratum = Stratum::serve(&to, base.path());
    let mut node = Node::new(base.path().join("node"));
    let cache = node.state().join("cache");
    fs::create_dir_all(&cache).unwrap();
    let small =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&cache).status().unwrap();
    assert!(small.success());
    let guard = Unmount(cache);
    node.start();
    node.add_repository(&at_fingerprint(&made), &stratum.url);
    let at = node.mount("full.test", "mnt");
    common::assert_same(&common::listing(&tree), &common::listing(&at));
    // Each stored byte left the stratum about once: a bypassed cache is no licence to fetch again for every read.
    let sent: u64 = stratum.access_log().len() as u64;
    assert!(sent > 0);
    node.stop();
    drop(guard);
}

#[test]
fn an_agent_that_is_told_what_cannot_be_does_not_start_and_makes_nothing() {
    let base = tempfile::tempdir().unwrap();
    let path = |name: &str| base.path().join(name).to_str().unwrap().to_owned();
    let (state, socket, long) = (path("state"), path("sock"), path(&"x".repeat(120)));
    let mounts = [format!("a.test:{}", path("at")), format!("b.test:{}", path("at"))];
    let twice = ["--state", &state, "--socket", &socket, "--mount", &mounts[0], "--mount", &mounts[1]];
    let options = ["--state", &state, "--socket", &socket, "--automount-options", "*:noexec"];
    let cases: [(&[&str], &[&str]); 4] = [
        (&twice, &["a.test", "b.test", "at"]),
        (&options, &["--automount-options", "--automount,"]),
        (&["--state", &long, "--socket", &socket], &["`state_dir`", "107", "--state"]),
        (&["--state", &state, "--socket", &long], &["`socket`", "107", "--socket"]),
    ];
    for (args, says) in cases {
        // Settings of whoever runs the test do not count.
        let mut command = Command::new(STARLING);
        command.env_remove("STARLING_KEEP_MOUNTS_S").env_remove("STARLING_AUTOMOUNT_DIR");
        let out = command.arg("agent").args(args).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{said}");
        assert!(said.contains("hint: ") && says.iter().all(|part| said.contains(part)), "{said}");
    }
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
