//! Proves that what a command reads is recorded, is published with the tree, survives a revision as far as files are
//! unchanged, and is fetched as a whole as soon as its first file is opened.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{
    Dice, Node, STARLING, Stratum, at_fingerprint, can_mount, fails, ok, publish, starling, wait_for,
};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const NAME: &str = "traced.test";
/// Files that the recorded command reads, scattered over the tree.
const READ: usize = 40;

struct World {
    base: tempfile::TempDir,
    stratum: Stratum,
    at: String,
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn publish(&self, more: &[&str]) -> Value {
        publish(&self.path("tree"), NAME, &self.path("to"), &self.path("keys"), more)
    }

    /// A node that knows the repository and nothing of it, and its mount.
    fn node(&self, name: &str) -> (Node, PathBuf) {
        let mut node = Node::new(self.path(name));
        node.start();
        node.add_repository(&self.at, &self.stratum.url);
        let mount = node.mount_with(NAME, "mnt", &["--profile", "large-files"]);
        (node, mount)
    }

    fn objects_asked(&self) -> usize {
        self.stratum.access_log().iter().filter(|line| line.contains("/objects/")).count()
    }
}

fn file(number: usize) -> String {
    format!("d{:02}/f{:03}", number % 20, number)
}

fn world() -> World {
    let base = tempfile::tempdir().unwrap();
    let tree = base.path().join("tree");
    let mut dice = Dice(77);
    for number in 0..400 {
        let path = tree.join(file(number));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, dice.bytes(20_000)).unwrap();
    }
    fs::write(tree.join("large"), dice.bytes(3 << 20)).unwrap();
    let made = publish(&tree, NAME, &base.path().join("to"), &base.path().join("keys"), &[]);
    let stratum = Stratum::serve(&base.path().join("to"), base.path());
    World { at: at_fingerprint(&made), stratum, base }
}

/// What the command reads: some files, and the beginning of the large one by a process that outlives its parent.
fn command(mount: &Path) -> String {
    let files: Vec<String> =
        (0..READ).map(|number| mount.join(file(number * 9)).display().to_string()).collect();
    let large = mount.join("large").display().to_string();
    format!(
        "cat {} >/dev/null; (dd if={large} of=/dev/null bs=4096 count=1 2>/dev/null; echo done >{large_done}) & \
         while [ ! -e {large_done} ]; do sleep 0.05; done",
        files.join(" "),
        large_done = mount.parent().unwrap().join("large-done").display(),
    )
}

fn record(node: &Node, target: &OsStr, out: &Path, mount: &Path) {
    let socket = node.socket();
    let script = command(mount);
    let args: [&OsStr; 13] = [
        "trace".as_ref(),
        "record".as_ref(),
        "--out".as_ref(),
        out.as_ref(),
        "--name".as_ref(),
        "start".as_ref(),
        "--socket".as_ref(),
        socket.as_ref(),
        target,
        "--".as_ref(),
        "sh".as_ref(),
        "-c".as_ref(),
        script.as_ref(),
    ];
    ok(&args);
}

fn shown(trace: &Path) -> Value {
    serde_json::from_str(&ok(&[OsStr::new("trace"), "show".as_ref(), "--json".as_ref(), trace.as_ref()]))
        .unwrap()
}

#[test]
fn what_is_recorded_is_replayed_when_its_first_file_is_opened() {
    if !can_mount("trace") {
        return;
    }
    let world = world();
    let trace = world.path("start.trace");
    {
        let (node, mount) = world.node("recorder");
        // In the cache of the agent and of the kernel, and read by somebody else meanwhile.
        (0..400).for_each(|number| drop(fs::read(mount.join(file(number))).unwrap()));
        record(&node, mount.as_os_str(), &trace, &mount);
        let shown = shown(&trace);
        let files = shown["files"].as_array().unwrap();
        assert_eq!((shown["name"].as_str(), files.len()), (Some("start"), READ + 1));
        assert_eq!(files[0]["path"], file(0));
        assert!(files.iter().all(|file| file["chunks"].as_u64().unwrap() >= 1));
        // By the repository's name, too.
        fs::remove_file(mount.parent().unwrap().join("large-done")).unwrap();
        let again = world.path("again.trace");
        record(&node, NAME.as_ref(), &again, &mount);
        assert_eq!(fs::read(&again).unwrap(), fs::read(&trace).unwrap());
    }

    let made = world.publish(&["--trace", trace.to_str().unwrap()]);
    assert_eq!((made["traces"][0]["files"].as_u64(), made["new_revision"].as_bool()), (Some(41), Some(true)));
    assert_eq!(world.publish(&[])["new_revision"], false, "it is kept, so nothing changed");
    let to = world.path("to");
    ok(&[OsStr::new("check"), to.as_ref(), "--repo".as_ref(), world.at.as_ref()]);

    let (node, mount) = world.node("reader");
    let before = world.objects_asked();
    fs::read(mount.join(file(0))).unwrap();
    let read = |number: usize| fs::read(mount.join(file(number * 9))).unwrap();
    let chunks = |node: &Node| node.metric("starling_cache_chunks");
    wait_for("the replay", Duration::from_secs(20), || (chunks(&node) >= 42.0).then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    let asked = world.objects_asked() - before;
    assert!(asked <= 6, "{asked} requests for {READ} files");
    let settled = world.objects_asked();
    for number in 0..READ {
        assert_eq!(read(number), fs::read(world.path("tree").join(file(number * 9))).unwrap());
    }
    assert_eq!(world.objects_asked(), settled, "everything was here");
}

#[test]
fn an_interrupted_command_is_recorded_and_a_killed_recorder_leaves_nothing_behind() {
    if !can_mount("trace") {
        return;
    }
    let world = world();
    let (node, mount) = world.node("recorder");
    let out = world.path("start.trace");
    let run_with = |hangup: libc::sighandler_t, script: &str| {
        let mut command = std::process::Command::new(STARLING);
        command.args(["trace", "record", "--socket"]).arg(node.socket()).arg("--out").arg(&out).arg(&mount);
        // SAFETY: between fork and exec only `signal` is called, which may be called there.
        unsafe {
            command.pre_exec(move || {
                libc::signal(libc::SIGHUP, hangup);
                Ok(())
            });
        }
        command.args(["--", "sh", "-c", script]).output().unwrap()
    };
    // Whoever runs the tests may ignore it.
    let run = |script: &str| run_with(libc::SIG_DFL, script);
    let read = |number| format!("cat {} >/dev/null", mount.join(file(number)).display());
    let (first, second) = (read(1), read(2));
    // The parent of the command is who records.
    let interrupted = run(&format!("{first}; kill -INT $PPID; sleep 0.3; {second}"));
    assert!(interrupted.status.success(), "{interrupted:?}");
    assert_eq!(shown(&out)["files"].as_array().unwrap().len(), 2);
    fs::remove_file(&out).unwrap();
    // What ends the recorder ends the command, which would run for a minute.
    for (signal, code) in [("TERM", 143), ("HUP", 129)] {
        let ended = run(&format!("{first}; kill -{signal} $PPID; exec sleep 60"));
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert_eq!(shown(&out)["files"].as_array().unwrap().len(), 1);
        assert_eq!(traces(world.base.path()), ["start.trace"]);
        fs::remove_file(&out).unwrap();
    }
    // As under `nohup`, neither of the two hears it.
    let deaf = run_with(libc::SIG_IGN, &format!("{first}; kill -HUP $PPID; kill -HUP $$; {second}"));
    assert!(deaf.status.success(), "{deaf:?}");
    assert_eq!(shown(&out)["files"].as_array().unwrap().len(), 2);
    fs::remove_file(&out).unwrap();
    // More often than recordings may run at once.
    for _ in 0..10 {
        assert!(!run(&format!("{first}; kill -KILL $PPID")).status.success());
    }
    let after = run(&first);
    assert!(after.status.success(), "{after:?}");
    assert_eq!(shown(&out)["files"].as_array().unwrap().len(), 1);
}

/// The names of the files in a folder that a recorder leaves there.
fn traces(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("trace")).collect()
}

#[test]
fn a_recorder_ends_as_its_command_does_and_keeps_what_was_there_when_it_records_nothing() {
    if !can_mount("trace") {
        return;
    }
    let world = world();
    let (node, mount) = world.node("recorder");
    let folder = world.path("traces");
    fs::create_dir(&folder).unwrap();
    let run = |out: &Path, more: &[&str], script: &str| {
        let mut command = std::process::Command::new(STARLING);
        command.args(["trace", "record", "--socket"]).arg(node.socket()).arg("--out").arg(out).args(more);
        let ended = command.arg(&mount).args(["--", "sh", "-c", script]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (ended.status.code(), text(ended.stdout), text(ended.stderr))
    };
    let out = folder.join("start.trace");
    let read = format!("cat {} >/dev/null", mount.join(file(1)).display());
    for (end, expected) in [("exit 7", 7), ("exit 1", 1), ("kill -TERM $$", 143)] {
        let (code, _, said) = run(&out, &[], &format!("{read}; {end}"));
        assert!(code == Some(expected) && said.contains("is recorded all the same"), "{code:?}: {said}");
        assert_eq!(shown(&out)["files"].as_array().unwrap().len(), 1);
        fs::remove_file(&out).unwrap();
    }
    // What the command prints does not get between.
    let (code, printed, said) =
        run(&out, &["--json", "--name", "x"], &format!("{read}; echo printed; exit 3"));
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert!(code == Some(3) && said.contains("printed"), "{code:?}: {said}");
    assert_eq!(
        (&report["name"], &report["files"], &report["exit_code"]),
        (&"x".into(), &1.into(), &3.into())
    );
    assert_eq!((report["file"].as_str(), report["mount"].as_str()), (out.to_str(), mount.to_str()));

    let before = fs::read(&out).unwrap();
    let (code, _, said) = run(&out, &[], "true");
    assert!(code == Some(1) && said.contains("read nothing of the mount"), "{code:?}: {said}");
    let (code, _, said) = run(&out, &[], "exit 5");
    assert!(code == Some(5) && said.contains("read nothing of the mount"), "{code:?}: {said}");
    // Where it cannot be written, the command does not begin.
    let begun = world.path("begun");
    let (code, _, said) = run(&folder.join("no/x.trace"), &[], &format!("touch {}", begun.display()));
    assert!(code == Some(1) && said.contains("x.trace") && !begun.exists(), "{code:?}: {said}");
    // A command that succeeds without anybody who tells what it read.
    let (code, _, said) = run(&out, &[], &format!("{read}; kill -KILL {}", node.pid().unwrap()));
    assert!(code == Some(1) && said.contains("error: "), "{code:?}: {said}");
    assert_eq!((fs::read(&out).unwrap(), traces(&folder)), (before, vec!["start.trace".to_owned()]));
}

#[test]
fn a_repository_is_recorded_on_a_mount_that_can_be() {
    if !can_mount("trace") {
        return;
    }
    let world = world();
    let mut node = Node::new(world.path("recorder"));
    node.start();
    node.add_repository(&world.at, &world.stratum.url);
    let socket = node.socket();
    let out = world.path("start.trace");
    let args = |mount: &Path| {
        let read: PathBuf = mount.join(file(1));
        let (out, socket) = (out.to_str().unwrap(), socket.to_str().unwrap());
        let ours = ["trace", "record", "--json", "--out", out, "--socket", socket, NAME];
        let all = [&ours[..], &["--", "cat", read.to_str().unwrap()]].concat();
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let small = node.mount_with(NAME, "a", &["--profile", "small-files"]);
    let said = fails(&args(&small));
    assert!(said.contains("small-files") && said.contains("--profile large-files"), "{said}");
    // The other comes first by its name.
    let large = node.mount_with(NAME, "b", &["--profile", "large-files"]);
    let report: Value = serde_json::from_str(&ok(&args(&large))).unwrap();
    assert_eq!(report["mount"].as_str(), large.to_str());
    assert_eq!(shown(&out)["files"].as_array().unwrap().len(), 1);
}

#[test]
fn small_files_bring_those_that_lie_beside_them() {
    if !can_mount("trace") {
        return;
    }
    let world = world();
    let (_node, mount) = world.node("reader");
    let before = world.objects_asked();
    // In the order of directories, and then the other half in no order.
    let mut order: Vec<usize> = (0..400).collect();
    order.sort_by_key(|number| (*number % 20, *number));
    let mut dice = Dice(3);
    for last in (201..400).rev() {
        let with = 200 + usize::try_from(dice.below((last - 199) as u64)).unwrap();
        order.swap(last, with);
    }
    for number in order {
        let name = file(number);
        assert_eq!(fs::read(mount.join(&name)).unwrap(), fs::read(world.path("tree").join(&name)).unwrap());
    }
    let asked = world.objects_asked() - before;
    assert!(asked <= 100, "{asked} requests for 400 files");
}

#[test]
fn a_trace_survives_a_revision_as_far_as_its_files_do() {
    if !can_mount("trace") {
        return;
    }
    let world = world();
    let trace = world.path("start.trace");
    {
        let (node, mount) = world.node("recorder");
        record(&node, mount.as_os_str(), &trace, &mount);
    }
    world.publish(&["--trace", trace.to_str().unwrap()]);
    let tree = world.path("tree");
    // One is gone, a small one changed, the large one changed.
    fs::remove_file(tree.join(file(9))).unwrap();
    fs::write(tree.join(file(18)), Dice(5).bytes(21_000)).unwrap();
    fs::write(tree.join("large"), Dice(6).bytes(3 << 20)).unwrap();
    let made = world.publish(&[]);
    let published = &made["traces"][0];
    assert_eq!((published["files"].as_u64(), published["left_out"].as_u64()), (Some(39), Some(2)), "{made}");
    let dropped = world.publish(&["--drop-traces"]);
    assert_eq!(
        (dropped["new_revision"].as_bool(), dropped["traces"].as_array().unwrap().len()),
        (Some(true), 0)
    );
}

#[test]
fn a_name_that_no_trace_may_have_is_refused_before_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let (out, socket) = (dir.path().join("x.trace"), dir.path().join("nobody.sock"));
    let run = |name: &str| {
        let (out, socket) = (out.to_str().unwrap(), socket.to_str().unwrap());
        let options = ["trace", "record", "--name", name, "--out", out, "--socket", socket];
        let ended = starling(&[&options[..], &["traced.test", "--", "true"]].concat());
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    let too_long = "x".repeat(129);
    for bad in ["two words", "", "\u{fc}", &too_long] {
        let (code, said) = run(bad);
        assert!(code == Some(2) && said.contains("1 to 128 printable ASCII characters"), "{code:?}: {said}");
    }
    // Only then it is seen that nobody is there who could record.
    let (code, said) = run(&too_long[1..]);
    assert!(code == Some(1) && said.contains("no agent answers"), "{code:?}: {said}");
    assert!(traces(dir.path()).is_empty());
}

#[test]
fn what_is_no_trace_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.trace");
    fs::write(&bad, b"no trace").unwrap();
    let said = fails(&[OsStr::new("trace"), "show".as_ref(), bad.as_ref()]);
    assert!(said.contains("bad.trace") && said.contains("recorded trace"), "{said}");
    let tree = dir.path().join("tree");
    fs::create_dir_all(&tree).unwrap();
    let said = fails(&[
        OsStr::new("publish"),
        tree.as_ref(),
        "--repo".as_ref(),
        NAME.as_ref(),
        "--to".as_ref(),
        dir.path().join("to").as_ref(),
        "--keys".as_ref(),
        dir.path().join("keys").as_ref(),
        "--trace".as_ref(),
        bad.as_ref(),
    ]);
    assert!(said.contains("bad.trace"), "{said}");
}
