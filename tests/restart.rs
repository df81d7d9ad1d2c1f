//! Proves that an agent may be restarted or killed under its mounts: whoever reads waits, gets the right bytes, and no error.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{
    Dice, Node, Stratum, assert_same, at_fingerprint, can_mount, listing, make_tree, publish, wait_for,
};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Restarts; `STARLING_RESTARTS` asks for more.
const RESTARTS: u64 = 12;
const READERS: u64 = 8;
/// Switches that are cut off.
const CUT_OFF: u64 = 10;
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
    // What is without service adds up over restarts that follow each other fast.
    let keep_s = (60 + 5 * restarts()).to_string();
    let mut node = Node::new(base.path().join("node")).with_setting("keep_mounts_s", keep_s);
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
    fs::create_dir_all(tree.join("deep/below")).unwrap();
    fs::write(tree.join("deep/below/library"), b"round 0").unwrap();
    let made = publish(&tree, "restart.test", &to, &keys, &[]);
    let stratum = Stratum::serve(&to, base.path());
    let mut node = Node::new(base.path().join("node")).keeping_mounts();
    node.start();
    node.add_repository(&at_fingerprint(&made), &stratum.url);
    let at = node.mount("restart.test", "mnt");
    assert_same(&listing(&tree), &listing(&at));
    let before = fs::read(tree.join("large")).unwrap();
    let held = File::open(at.join("large")).unwrap();
    // As a program that runs does with its libraries.
    let mut libraries = vec![File::open(at.join("deep/below/library")).unwrap()];
    for (round, kill) in [(1, true), (2, false)] {
        if kill {
            node.kill();
        } else {
            node.stop();
        }
        fs::write(tree.join("large"), Dice(round).bytes(1 << 20)).unwrap();
        fs::write(tree.join(format!("new{round}")), b"new").unwrap();
        fs::write(tree.join("deep/below/library"), format!("round {round}")).unwrap();
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
        libraries.push(File::open(at.join("deep/below/library")).unwrap());
        for (number, library) in libraries.iter().enumerate() {
            let mut text = [0; 7];
            library.read_exact_at(&mut text, 0).unwrap();
            assert_eq!(
                text,
                format!("round {number}").as_bytes(),
                "as it was opened, and as it is found now"
            );
        }
        // What the kernel has of it in memory is not what is to be shown here.
        rustix::fs::fadvise(&held, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut kept = vec![0; before.len()];
        held.read_exact_at(&mut kept, 0).unwrap();
        assert!(kept == before, "an open file keeps its content");
    }
    drop((held, libraries));
    node.umount(&at);
    node.stop();
}

/// A published tree, served, and a node that has it mounted at the second of the paths that are returned.
struct World {
    node: Node,
    at: PathBuf,
    _stratum: Stratum,
    /// Removed when nothing is mounted below it any more.
    base: tempfile::TempDir,
}

impl World {
    fn new(seed: u64, node: impl FnOnce(Node) -> Node) -> Self {
        let base = tempfile::tempdir().unwrap();
        make_tree(&base.path().join("tree"), seed, 20, 1 << 20);
        let made = publish_again(base.path());
        let stratum = Stratum::serve(&base.path().join("to"), base.path());
        let mut node = node(Node::new(base.path().join("node")).keeping_mounts());
        node.start();
        node.add_repository(&at_fingerprint(&made), &stratum.url);
        let at = node.mount("restart.test", "mnt");
        open_and_close(&at);
        Self { node, at, _stratum: stratum, base }
    }

    fn mounts(&self) -> Vec<serde_json::Value> {
        let socket = self.node.socket();
        let status = ["status".as_ref(), "--json".as_ref(), "--socket".as_ref(), socket.as_os_str()];
        let status: serde_json::Value = serde_json::from_str(&common::ok(&status)).unwrap();
        status["mounts"].as_array().unwrap().clone()
    }

    /// The processes that keep this node's mounts.
    fn keepers(&self) -> Vec<rustix::process::Pid> {
        let socket = self.node.state().join("keeper.sock");
        let is_it = |pid: i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = command.split(|byte| *byte == 0).collect();
            words.get(1) == Some(&&b"keeper"[..]) && words.get(2) == Some(&socket.as_os_str().as_bytes())
        };
        let all = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        all.filter(|pid| is_it(*pid)).filter_map(rustix::process::Pid::from_raw).collect()
    }

    /// Whether somebody is connected to the keeper, or is about to be.
    fn keeper_is_reached(&self) -> bool {
        let socket = self.node.state().join("keeper.sock");
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        // Number, references, protocol, flags, type, state (3: connected), inode, path.
        sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|fields| {
            fields.get(5) == Some(&"03") && fields.get(7).is_some_and(|path| Path::new(path) == socket)
        })
    }

    /// Has the next starts of the agent hang where it reads a file of its state, which has nobody at its other end, until
    /// [`Self::let_start`].
    fn hinder_start(&self, file: &str) {
        let path = self.node.state().join(file);
        let _ = fs::rename(&path, path.with_extension("aside"));
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }

    /// Lets the agent that starts go on, as if the file were empty.
    fn let_start(&self, file: &str) {
        let path = self.node.state().join(file);
        let without_waiting = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let open = || File::options().write(true).custom_flags(without_waiting).open(&path).ok();
        let opened = wait_for("an agent that reads it", Duration::from_secs(20), open);
        self.hinder_no_start(file);
        drop(opened);
    }

    /// The file is as before.
    fn hinder_no_start(&self, file: &str) {
        let path = self.node.state().join(file);
        fs::remove_file(&path).unwrap();
        let _ = fs::rename(path.with_extension("aside"), &path);
    }

    /// Reads all of a file beside the test, without what the kernel has of it.
    fn read_beside(&self) -> std::thread::JoinHandle<std::io::Result<Vec<u8>>> {
        let at = self.at.join("large");
        std::thread::spawn(move || {
            rustix::fs::fadvise(&File::open(&at)?, 0, None, rustix::fs::Advice::DontNeed)?;
            fs::read(&at)
        })
    }
}

/// When the kernel closes the first file of a mount, it asks whether it may tell so. Who starts an agent here has files of the mount
/// open, which are closed for the new process: that must not have to wait for the agent.
fn open_and_close(at: &Path) {
    fs::read(at.join("large")).unwrap();
}

fn publish_again(base: &Path) -> serde_json::Value {
    publish(&base.join("tree"), "restart.test", &base.join("to"), &base.join("keys"), &[])
}

#[test]
fn what_others_mount_where_a_mount_of_ours_was_stays_and_ours_is_forgotten() {
    if !can_mount("restart_foreign") {
        return;
    }
    let mount_other = |at: &Path| {
        rustix::mount::unmount(at, rustix::mount::UnmountFlags::empty()).unwrap();
        rustix::mount::mount("other", at, "tmpfs", rustix::mount::MountFlags::empty(), c"").unwrap();
        fs::write(at.join("theirs"), b"theirs").unwrap();
    };
    // Found by the next agent, and by the keeper once it has waited for long enough.
    for comes_back in [true, false] {
        let seconds = if comes_back { "60" } else { "1" };
        let mut world = World::new(31, |node| node.with_setting("keep_mounts_s", seconds));
        world.node.kill();
        mount_other(&world.at);
        if comes_back {
            world.node.start();
            let mounts = || world.mounts().is_empty().then_some(());
            wait_for("a mount that is forgotten", Duration::from_secs(20), mounts);
        }
        let gone = || (comes_back || world.keepers().is_empty()).then_some(());
        wait_for("a keeper that has ended", Duration::from_secs(30), gone);
        assert_eq!(fs::read(world.at.join("theirs")).unwrap(), b"theirs");
        world.node.stop();
        assert_eq!(fs::read(world.at.join("theirs")).unwrap(), b"theirs");
        rustix::mount::unmount(&world.at, rustix::mount::UnmountFlags::empty()).unwrap();
    }
}

#[test]
fn an_agent_without_a_keeper_says_so_and_why_until_it_has_one() {
    let base = tempfile::tempdir().unwrap();
    let mut node = Node::new(base.path().join("node")).keeping_mounts();
    let in_the_way = node.state().join("keeper.sock");
    fs::create_dir_all(&in_the_way).unwrap();
    node.start();
    let socket = node.socket();
    let health = ["health".as_ref(), "--socket".as_ref(), socket.as_os_str()];
    let status = ["status".as_ref(), "--socket".as_ref(), socket.as_os_str()];
    for said in [common::fails(&health), common::ok(&status), node.log()] {
        for part in ["end with this agent", "keeper.sock: Is a directory"] {
            assert!(said.contains(part), "{said}");
        }
    }
    fs::remove_dir(&in_the_way).unwrap();
    // It is looked for every 20 to 30 s.
    wait_for("a keeper", Duration::from_secs(60), || {
        common::starling(&health).status.success().then_some(())
    });
    assert!(!common::ok(&status).contains("no keeper"));
    // Where none is wanted, none is missed.
    node.stop();
    let mut node = Node::new(base.path().join("other"));
    fs::create_dir_all(node.state().join("keeper.sock")).unwrap();
    node.start();
    let socket = node.socket();
    let health = ["health".as_ref(), "--socket".as_ref(), socket.as_os_str()];
    common::ok(&health);
    node.stop();
}

#[test]
fn a_keeper_that_was_killed_has_a_successor_before_the_agent_ends() {
    if !can_mount("restart_keeper") {
        return;
    }
    let mut world = World::new(32, |node| node);
    let right = fs::read(world.base.path().join("tree/large")).unwrap();
    let held = File::open(world.at.join("large")).unwrap();
    let [keeper] = world.keepers()[..] else { panic!("{:?}", world.keepers()) };
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
    wait_for("its end", Duration::from_secs(10), || (!world.keepers().contains(&keeper)).then_some(()));
    world.node.stop();
    assert_eq!(world.keepers().len(), 1, "{}", world.node.log());
    world.node.start();
    rustix::fs::fadvise(&held, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut got = vec![0; right.len()];
    held.read_exact_at(&mut got, 0).unwrap();
    assert!(got == right);
    drop(held);
    let at = world.at.clone();
    world.node.umount(&at);
    world.node.stop();
}

#[test]
fn a_mount_point_behind_a_link_keeps_its_mount() {
    if !can_mount("restart_link") {
        return;
    }
    let link = tempfile::tempdir().unwrap();
    let link = link.path().join("link");
    let mut world = World::new(33, |node| {
        std::os::unix::fs::symlink(&node.dir, &link).unwrap();
        fs::create_dir(node.dir.join("declared")).unwrap();
        let declared = format!("restart.test:{}", link.join("declared").display());
        node.with_args(&["--mount", &declared])
    });
    let at = world.node.dir.join("declared");
    let large = || File::open(at.join("large")).ok();
    let held = wait_for("the mount", Duration::from_secs(30), large);
    open_and_close(&at);
    for kill in [true, false] {
        if kill {
            world.node.kill();
        } else {
            world.node.stop();
        }
        world.node.start();
        rustix::fs::fadvise(&held, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut got = vec![0; 1000];
        held.read_exact_at(&mut got, 0).unwrap();
    }
    drop(held);
    world.node.umount(&link.join("declared"));
    let at = world.at.clone();
    world.node.umount(&at);
    world.node.stop();
}

#[test]
fn a_switch_that_is_cut_off_leaves_no_mixture() {
    if !can_mount("restart_cut_off") {
        return;
    }
    let mut world = World::new(34, |node| node);
    let tree = world.base.path().join("tree");
    let mut dice = Dice(34);
    for round in 0..CUT_OFF {
        for number in 0..60 {
            let folder = tree.join(format!("folder{number}/below"));
            fs::create_dir_all(&folder).unwrap();
            for name in ["a", "b", "c"] {
                fs::write(folder.join(name), format!("{name} of round {round:04}")).unwrap();
            }
        }
        // What the kernel knows of the revision before is what it might believe for too long.
        listing(&world.at);
        publish_again(world.base.path());
        common::ok(&[
            "repo".as_ref(),
            "announce".as_ref(),
            world.base.path().join("to/restart.test/root").as_os_str(),
            "--socket".as_ref(),
            world.node.socket().as_os_str(),
        ]);
        std::thread::sleep(Duration::from_millis(dice.below(40)));
        if round % 2 == 0 {
            world.node.kill();
        } else {
            world.node.stop();
        }
        world.node.start();
        let expected = listing(&tree);
        let same = || (listing(&world.at) == expected).then_some(());
        wait_for("all of the new revision", Duration::from_secs(30), same);
    }
    let at = world.at.clone();
    world.node.umount(&at);
    world.node.stop();
}

#[test]
fn an_agent_that_takes_long_to_start_finds_its_mounts_and_readers_see_no_error() {
    if !can_mount("restart_slow_start") {
        return;
    }
    let mut world = World::new(35, |node| node.with_setting("keep_mounts_s", "3"));
    let right = fs::read(world.base.path().join("tree/large")).unwrap();
    world.node.kill();
    // What is read right after the cache.
    world.hinder_start("contacts.json");
    world.node.begin_start();
    wait_for("an agent at its keeper", Duration::from_secs(10), || world.keeper_is_reached().then_some(()));
    let reader = world.read_beside();
    // Longer than mounts are kept without an agent.
    std::thread::sleep(Duration::from_secs(5));
    assert!(!reader.is_finished(), "{:?}", reader.join().unwrap().map(|bytes| bytes.len()));
    world.let_start("contacts.json");
    world.node.end_start();
    assert!(reader.join().unwrap().unwrap() == right);
    let at = world.at.clone();
    world.node.umount(&at);
    world.node.stop();
}

#[test]
fn agents_that_crash_at_their_start_keep_readers_waiting_no_longer_than_none() {
    if !can_mount("restart_crash_loop") {
        return;
    }
    let mut world = World::new(36, |node| node.with_setting("keep_mounts_s", "3"));
    world.node.kill();
    world.hinder_start("mounts.json");
    let reader = world.read_beside();
    let mut rounds = 0;
    while !reader.is_finished() {
        assert!(rounds < 40, "readers wait for ever");
        rounds += 1;
        world.node.begin_start();
        wait_for("an agent at its keeper", Duration::from_secs(10), || {
            (world.keeper_is_reached() || reader.is_finished()).then_some(())
        });
        std::thread::sleep(Duration::from_millis(500));
        world.node.kill();
    }
    assert!(rounds > 2, "they were given up after {rounds} agents");
    let error = reader.join().unwrap().unwrap_err();
    let errno = rustix::io::Errno::from_io_error(&error);
    assert!(
        matches!(errno, Some(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)),
        "what it had asked is given up: {error}"
    );
    // The next agent that lives mounts anew.
    world.hinder_no_start("mounts.json");
    world.node.start();
    let right = fs::read(world.base.path().join("tree/large")).unwrap();
    let read = || fs::read(world.at.join("large")).ok();
    assert!(wait_for("the mount", Duration::from_secs(30), read) == right);
    let at = world.at.clone();
    world.node.umount(&at);
    world.node.stop();
}

#[test]
fn an_agent_that_had_no_answer_from_its_keeper_asks_again_and_readers_go_on() {
    if !can_mount("restart_silent_keeper") {
        return;
    }
    let mut world = World::new(37, |node| node);
    let right = fs::read(world.base.path().join("tree/large")).unwrap();
    let [keeper] = world.keepers()[..] else { panic!("{:?}", world.keepers()) };
    world.node.kill();
    rustix::process::kill_process(keeper, rustix::process::Signal::STOP).unwrap();
    world.node.begin_start();
    let said = || world.node.log().contains("mounts end with this agent").then_some(());
    wait_for("the end of its patience", Duration::from_secs(20), said);
    rustix::process::kill_process(keeper, rustix::process::Signal::CONT).unwrap();
    let reader = world.read_beside();
    world.node.end_start();
    let process = format!("/proc/{}/task", world.node.pid().unwrap());
    let is_probe = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "starling-probe")
    };
    wait_for("an answer", Duration::from_secs(60), || {
        let tasks = fs::read_dir(&process).unwrap().map(|task| task.unwrap());
        assert!(tasks.filter(is_probe).count() < 2, "one thread looks whether somebody serves the mount");
        reader.is_finished().then_some(())
    });
    assert!(reader.join().unwrap().unwrap() == right);
    assert_eq!(world.mounts().len(), 1);
    let at = world.at.clone();
    world.node.umount(&at);
    world.node.stop();
}
