//! Proves that readers see right bytes whatever happens to the cache's disk: full, read-only, failing, or with flipped bits.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/thin_disk.rs"]
mod thin_disk;

use common::mapping::Mapping;
use common::{Node, Stratum, assert_same, at_fingerprint, can_mount, listing, make_tree, publish, skipped};
use rustix::fs::{Advice, fadvise};
use rustix::mount::{MountFlags, UnmountFlags};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use thin_disk::ThinDisk;

/// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`: from then on every access fails with EIO.
const SHUTDOWN: libc::Ioctl = (2 << 30 | 4 << 16 | 0x58 << 8 | 125) as libc::Ioctl;

/// A disk for a cache, which is gone when the test ends.
struct Disk(PathBuf);

impl Disk {
    /// One in memory, of so many bytes.
    fn in_memory(at: PathBuf, bytes: u64) -> Self {
        fs::create_dir_all(&at).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        rustix::mount::mount("starling-test", &at, "tmpfs", MountFlags::empty(), Some(options.as_c_str()))
            .unwrap();
        Self(at)
    }

    /// One with ext4 in a file. `None` where that cannot be had.
    fn in_a_file(at: PathBuf, test: &str) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let image = at.with_extension("img");
        File::create(&image).unwrap().set_len(128 << 20).unwrap();
        let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = ran(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))
            && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        if !made {
            skipped(test, "it needs mkfs.ext4 and a loop device");
            return None;
        }
        Some(Self(at))
    }

    /// The disk gives up writing, as after an error of its journal, whoever has files of it open.
    fn make_read_only(&self) {
        let done = Command::new("mount").args(["-o", "remount,abort"]).arg(&self.0).status().unwrap();
        assert!(done.success());
        assert!(fs::write(self.0.join("more"), b"x").is_err());
    }

    /// Every access fails from now on.
    fn fail(&self) {
        let folder = File::open(&self.0).unwrap();
        let how: u32 = 2;
        // SAFETY: the call reads a number of four bytes, which lives until it returns.
        assert_eq!(unsafe { libc::ioctl(folder.as_raw_fd(), SHUTDOWN, &raw const how) }, 0);
        drop(folder);
        let error = fs::write(self.0.join("more"), b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A published tree, its stratum, and a node that has mounted it.
struct World {
    tree: PathBuf,
    expected: BTreeMap<PathBuf, String>,
    stratum: Stratum,
    node: Node,
    at: PathBuf,
    base: tempfile::TempDir,
}

const REPOSITORY: &str = "disk.test";

impl World {
    fn new(prepare: impl FnOnce(Node) -> Node) -> Self {
        let base = tempfile::tempdir().unwrap();
        let (tree, to) = (base.path().join("tree"), base.path().join("to"));
        make_tree(&tree, 31, 120, 16 << 20);
        let made = publish(&tree, REPOSITORY, &to, &base.path().join("keys"), &[]);
        let stratum = Stratum::serve(&to, base.path());
        // The disks here are smaller than what a cache leaves free.
        let node = Node::new(base.path().join("node")).with_setting("cache_free_floor_bytes", "0");
        let mut node = prepare(node);
        node.start();
        node.add_repository(&at_fingerprint(&made), &stratum.url);
        let at = node.mount(REPOSITORY, "mnt");
        let expected = listing(&tree);
        Self { tree, expected, stratum, node, at, base }
    }

    /// Reads everything, from the agent or the cache's disk and not from the kernel's memory.
    fn read_all(&self) {
        drop_pages(&self.at);
        assert_same(&self.expected, &listing(&self.at));
    }

    /// The large file is read by the kernel alone once its body is whole and nobody else has it open.
    fn wait_for_passthrough(&self) {
        let mut attempts = 0..10;
        let passed = attempts.any(|_| {
            std::thread::sleep(Duration::from_millis(200));
            is_passed(&self.node, &File::open(self.at.join("large")).unwrap())
        });
        assert!(passed, "the kernel does not read `large` by itself");
    }

    fn restart(&mut self) {
        self.node.stop();
        self.node.start();
        assert!(fs::read_dir(&self.at).unwrap().count() > 0, "it is mounted again");
    }

    fn count_in_log(&self, what: &str) -> usize {
        self.node.log().lines().filter(|line| line.contains(what)).count()
    }

    fn assert_no_read_failed(&self) {
        assert_eq!(self.node.metric("starling_read_errors_total"), 0.0);
        assert_eq!(self.count_in_log("a reader gets an I/O error"), 0);
    }
}

/// Whether the kernel reads this file without the agent: while the agent's time stands still.
fn is_passed(node: &Node, file: &File) -> bool {
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
    let (file, (done, read)) = (file.try_clone().unwrap(), std::sync::mpsc::sync_channel(1));
    node.pause();
    let reader = std::thread::spawn(move || {
        file.read_exact_at(&mut vec![0; 1 << 20], 1 << 20).unwrap();
        let _ = done.send(());
    });
    let is_passed = read.recv_timeout(Duration::from_secs(2)).is_ok();
    node.resume();
    reader.join().unwrap();
    is_passed
}

/// Drops what the kernel keeps of the files below `at`.
fn drop_pages(at: &Path) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            drop_pages(&path);
        } else if kind.is_file() {
            fadvise(File::open(&path).unwrap(), 0, None, Advice::DontNeed).unwrap();
        }
    }
}

/// Flips a bit in every 4 KiB of every file of a cache.
fn flip_bits(folder: &Path) -> u64 {
    let mut flipped = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            flipped += flip_bits(&path);
            continue;
        }
        // Lists and locks are no objects.
        let is_body = path.extension().is_none() && folder.ends_with("bodies");
        if !is_body && path.extension().is_none_or(|extension| extension != "pack") {
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for at in (2_000..file.metadata().unwrap().len()).step_by(4096) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 8], at).unwrap();
            flipped += 1;
        }
    }
    flipped
}

#[test]
fn a_full_disk_is_bypassed_and_reported_once() {
    if !can_mount("cache_disk_full") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let disk = Disk::in_memory(base.path().join("disk"), 6 << 20);
    let mut world = World::new(|node| node.with_setting("cache_dir", disk.0.join("cache")));
    for _ in 0..2 {
        world.read_all();
    }
    assert_eq!(world.count_in_log("the cache cannot store"), 1);
    world.restart();
    world.read_all();
    world.assert_no_read_failed();
    // So full that not even a folder can be made.
    world.node.stop();
    fs::remove_dir_all(disk.0.join("cache")).unwrap();
    fs::write(disk.0.join("others"), vec![0; 8 << 20]).unwrap_err();
    world.node.start();
    world.read_all();
    world.assert_no_read_failed();
    world.node.stop();
}

#[test]
fn a_read_only_disk_serves_what_it_has_and_the_rest_is_fetched() {
    if !can_mount("cache_disk_read_only") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::in_a_file(base.path().join("disk"), "cache_disk_read_only") else { return };
    let mut world = World::new(|node| node.with_setting("cache_dir", disk.0.join("cache")));
    // Some of it is there: a large file as a body, and small ones.
    let small = world.at.join("d0");
    assert!(fs::read(world.at.join("large")).unwrap() == fs::read(world.tree.join("large")).unwrap());
    listing(&small);
    world.wait_for_passthrough();
    disk.make_read_only();
    world.read_all();
    assert_eq!(world.count_in_log("the cache cannot store"), 1);
    world.restart();
    world.read_all();
    // What it has it has without anybody else. The catalogs of it are in memory.
    world.stratum.kill();
    drop_pages(&small);
    assert_same(&listing(&world.tree.join("d0")), &listing(&small));
    world.assert_no_read_failed();
    world.node.stop();
}

#[test]
fn a_failing_disk_is_bypassed_and_reported_once() {
    if !can_mount("cache_disk_fails") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::in_a_file(base.path().join("disk"), "cache_disk_fails") else { return };
    let mut world = World::new(|node| node.with_setting("cache_dir", disk.0.join("cache")));
    world.read_all();
    world.wait_for_passthrough();
    disk.fail();
    for _ in 0..2 {
        world.read_all();
    }
    let said =
        world.count_in_log("the cache cannot be read") + world.count_in_log("the cache dropped a chunk");
    assert_eq!((said, world.count_in_log("the cache cannot store")), (1, 1));
    world.assert_no_read_failed();
    // The disk is no better when the agent is started again.
    world.restart();
    world.read_all();
    assert_eq!(world.count_in_log("the cache's disk cannot be used"), 1);
    world.assert_no_read_failed();
    world.node.stop();
}

#[test]
fn what_a_disk_did_not_take_after_all_is_never_delivered() {
    if !can_mount("cache_disk_thin") {
        return;
    }
    let disk = match ThinDisk::new() {
        Ok(disk) => disk,
        Err(why) => return skipped("cache_disk_thin", &why),
    };
    let mut world = World::new(|node| node.with_setting("cache_dir", disk.at().join("cache")));
    // Every write succeeds, and none of it stays.
    disk.fill_beneath();
    world.read_all();
    let told = (0..300).any(|_| {
        std::thread::sleep(Duration::from_millis(200));
        world.count_in_log("the disk did not take what was written") > 0
    });
    assert!(told, "half a minute, and it was not noticed");
    // Once one thing was not taken, all is looked at.
    std::thread::sleep(Duration::from_secs(1));
    let drop_all = || {
        rustix::fs::sync();
        drop_pages(disk.at());
    };
    for _ in 0..2 {
        drop_all();
        world.read_all();
    }
    assert!(!is_passed(&world.node, &File::open(world.at.join("large")).unwrap()));
    assert!(
        world.node.metric("starling_cache_damaged_chunks_total") > 10.0,
        "nothing was lost: this shows nothing"
    );
    assert_eq!(world.count_in_log("the cache cannot store"), 1);
    world.assert_no_read_failed();
    // Nor after a restart.
    world.restart();
    drop_all();
    world.read_all();
    world.assert_no_read_failed();
    world.node.stop();
}

#[test]
fn an_agent_may_have_as_many_files_open_as_the_system_allows() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let base = tempfile::tempdir().unwrap();
    let before = getrlimit(Resource::Nofile);
    // What most processes are begun with.
    setrlimit(Resource::Nofile, Rlimit { current: Some(1_000), ..before }).unwrap();
    let mut node = Node::new(base.path().join("node"));
    node.start();
    setrlimit(Resource::Nofile, before).unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", node.pid().unwrap())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let [soft, hard] = [3, 4].map(|column| line.split_whitespace().nth(column).unwrap());
    assert!(soft == hard && soft != "1000", "{line}");
    node.stop();
}

#[test]
fn flipped_bits_in_all_that_is_cached_are_never_delivered() {
    if !can_mount("cache_disk_bits") {
        return;
    }
    // While the agent is down.
    let mut world = World::new(|node| node);
    world.read_all();
    world.wait_for_passthrough();
    world.node.kill();
    let _ = rustix::mount::unmount(&world.at, UnmountFlags::DETACH);
    assert!(flip_bits(&world.node.state().join("cache")) > 2_000);
    world.node.start();
    world.read_all();
    assert!(world.node.metric("starling_cache_damaged_chunks_total") > 20.0);
    world.assert_no_read_failed();
    world.wait_for_passthrough();
    world.read_all();
    world.node.stop();

    // While it runs.
    let mut world = World::new(|node| node.with_setting("verify", "always"));
    world.read_all();
    let large = File::open(world.at.join("large")).unwrap();
    assert!(!is_passed(&world.node, &large), "the kernel checks nothing");
    for _ in 0..2 {
        assert!(flip_bits(&world.node.state().join("cache")) > 2_000);
        world.read_all();
    }
    assert!(world.node.metric("starling_cache_damaged_chunks_total") > 200.0);
    // All of it was mended.
    world.stratum.kill();
    world.read_all();
    world.assert_no_read_failed();
    world.node.stop();
}

#[test]
fn a_file_that_is_open_and_mapped_is_read_right_when_it_is_evicted() {
    if !can_mount("cache_disk_mapped") {
        return;
    }
    let mut world = World::new(Node::keeping_mounts);
    let right = fs::read(world.tree.join("large")).unwrap();
    let bodies = world.node.state().join("cache/bodies");
    let there = || fs::read_dir(&bodies).map_or(0, |entries| entries.count());
    // One read by the kernel, one through the agent.
    world.read_all();
    world.wait_for_passthrough();
    let passed = File::open(world.at.join("large")).unwrap();
    let small = fs::read_dir(world.tree.join("d1")).unwrap().map(|entry| entry.unwrap());
    let small = small.filter(|entry| entry.metadata().unwrap().len() < 100_000);
    let largest = small.max_by_key(|entry| entry.metadata().unwrap().len()).unwrap();
    let name = Path::new("d1").join(largest.file_name());
    let cached = File::open(world.at.join(&name)).unwrap();
    let right_cached = fs::read(world.tree.join(&name)).unwrap();
    let (mapped, mapped_cached) = (Mapping::of(&passed), Mapping::of(&cached));
    let check = || {
        for file in [&passed, &cached] {
            fadvise(file, 0, None, Advice::DontNeed).unwrap();
        }
        assert!(mapped.bytes() == right && mapped_cached.bytes() == right_cached);
        let mut buffer = vec![0; right.len()];
        passed.read_exact_at(&mut buffer, 0).unwrap();
        assert!(buffer == right);
    };
    check();
    let socket = world.node.socket();
    let clean = || common::ok(&["cache".as_ref(), "clean".as_ref(), "--socket".as_ref(), socket.as_os_str()]);
    clean();
    assert_eq!(there(), 2, "what is open stays: a body and its list");
    check();
    // Its successor does not have it open, but the kernel has.
    world.restart();
    check();
    clean();
    check();
    world.stratum.kill();
    check_offline(&passed, &right);
    drop((mapped, mapped_cached, passed, cached));
    world.stratum = Stratum::serve(&world.base.path().join("to"), world.base.path());
    world.node.umount(&world.at.clone());
    world.node.stop();
}

/// What the kernel reads by itself needs nobody.
fn check_offline(file: &File, right: &[u8]) {
    let mut buffer = vec![0; right.len()];
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert!(buffer == right);
}
