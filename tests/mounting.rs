//! Proves that a repository is mounted as it was asked for: which revision, which part, with which owners, by `mount` and fstab, and when
//! somebody looks.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{
    Dice, Node, STARLING, Stratum, assert_same, at_fingerprint, can_mount, fails, listing, make_tree, ok,
    publish, wait_for,
};
use rustix::mount::UnmountFlags;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
const READERS: u64 = 3;
/// Reads of each of them.
const ROUNDS: usize = 12;

/// A published repository, a stratum and a node that knows them.
struct World {
    node: Node,
    tree: PathBuf,
    stratum: Stratum,
    fingerprint: String,
    base: TempDir,
}

impl World {
    fn new(name: &str, node: impl FnOnce(Node, &Path) -> Node) -> Self {
        let base = tempfile::tempdir().unwrap();
        let tree = base.path().join("tree");
        make_tree(&tree, 77, 40, 2 << 20);
        fs::create_dir_all(tree.join("releases/1")).unwrap();
        fs::write(tree.join("releases/1/what"), "one").unwrap();
        let made =
            publish(&tree, name, &base.path().join("to"), &base.path().join("keys"), &["--tag", "first"]);
        let stratum = Stratum::serve(&base.path().join("to"), base.path());
        let mut node = node(Node::new(base.path().join("node")), base.path());
        node.start();
        node.add_repository(&at_fingerprint(&made), &stratum.url);
        Self { node, tree, stratum, fingerprint: at_fingerprint(&made), base }
    }

    /// Publishes the tree as it is now, and announces it.
    fn publish(&self, name: &str, more: &[&str]) -> String {
        let socket = self.node.socket();
        let more = [more, &["--announce", socket.to_str().unwrap()]].concat();
        let made = publish(&self.tree, name, &self.to(), &self.base.path().join("keys"), &more);
        made["root"].as_str().unwrap().to_owned()
    }

    fn to(&self) -> PathBuf {
        self.base.path().join("to")
    }

    fn refused(&self, name: &str, more: &[&str]) -> String {
        let (at, socket) = (self.node.dir.join("refused"), self.node.socket());
        fs::create_dir_all(&at).unwrap();
        let mut args: Vec<&OsStr> =
            vec!["mount".as_ref(), name.as_ref(), at.as_ref(), "--socket".as_ref(), socket.as_ref()];
        args.extend(more.iter().map(OsStr::new));
        fails(&args)
    }

    fn status(&self) -> serde_json::Value {
        let socket = self.node.socket();
        let status = ok(&[OsStr::new("status"), "--json".as_ref(), "--socket".as_ref(), socket.as_ref()]);
        serde_json::from_str(&status).unwrap()
    }

    /// What the agent says of a mount.
    fn mount_at(&self, at: &Path) -> Option<serde_json::Value> {
        let status = self.status();
        let mounts = status["mounts"].as_array().unwrap();
        mounts.iter().find(|mount| mount["directory"] == at.to_str().unwrap()).cloned()
    }
}

fn attribute(path: &Path, name: &str) -> Option<String> {
    let value = xattr::get(path, format!("user.starling.{name}")).unwrap();
    value.map(|value| String::from_utf8(value).unwrap())
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Inode and number of links of everything below a directory.
fn numbers(at: &Path) -> Vec<(PathBuf, u64, u64)> {
    let of = |path: &PathBuf| {
        let found = fs::symlink_metadata(at.join(path)).unwrap();
        (path.clone(), found.ino(), found.nlink())
    };
    listing(at).keys().map(of).collect()
}

#[test]
fn several_mounts_of_a_repository_show_each_what_was_asked_of_it() {
    if !can_mount("mounting") {
        return;
    }
    let mut world = World::new("mnt.test", |node, _| node);
    let first = listing(&world.tree);
    assert_eq!(world.status()["repositories"][0]["revision"], 1);
    fs::write(world.tree.join("releases/1/what"), "one, mended").unwrap();
    fs::create_dir(world.tree.join("releases/2")).unwrap();
    fs::write(world.tree.join("releases/2/what"), "two").unwrap();
    // A name like ours is not shown: it would be listed and not be read.
    let like_ours = world.tree.join("releases/2/what");
    xattr::set(&like_ours, "user.starling.mine", b"1").unwrap();
    let second_root = world.publish("mnt.test", &["--tag", "second"]);
    xattr::remove(&like_ours, "user.starling.mine").unwrap();
    let second = listing(&world.tree);

    let newest = world.node.mount("mnt.test", "newest");
    let by_number = world.node.mount_with("mnt.test", "number", &["--revision", "1"]);
    let by_tag = world.node.mount_with("mnt.test", "tag", &["--tag", "first", "--profile", "small-files"]);
    let by_date = world.node.mount_with("mnt.test", "date", &["--date", "2999-12-31"]);
    let part = world.node.mount_with("mnt.test", "part", &["--path", "/releases/2/"]);
    let rules = ["--uid-map", "4242:7", "--uid-map", "*:4243", "--gid-map", "*:4244", "--noexec"];
    let mapped = world.node.mount_with("mnt.test", "mapped", &rules);
    for (at, shows) in [(&newest, &second), (&by_number, &first), (&by_tag, &first), (&by_date, &second)] {
        assert_same(shows, &listing(at));
    }
    assert_same(&listing(&world.tree.join("releases/2")), &listing(&part));
    assert_eq!(fs::metadata(part.join("..")).unwrap().dev(), fs::metadata(&world.node.dir).unwrap().dev());
    for path in ["", "large", "link", "empty-dir"] {
        let found = fs::symlink_metadata(mapped.join(path)).unwrap();
        assert_eq!((found.uid(), found.gid()), (4243, 4244), "{path}");
    }
    let listed = text(Path::new("/proc/self/mounts"));
    let line = listed.lines().find(|line| line.contains(mapped.to_str().unwrap())).unwrap();
    assert!(line.contains("noexec") && line.contains("ro,"), "{line}");

    // What `auto` has chosen is told, and what was asked for.
    let profile = |at: &Path| world.mount_at(at).unwrap()["profile"].clone();
    assert_eq!(profile(&by_tag), "small-files");
    assert!(profile(&newest) == "small-files" || profile(&newest) == "large-files", "{}", profile(&newest));

    // Attributes that tell, and that no list shows.
    for (at, revision, tag) in [(&newest, "2", None), (&by_tag, "1", Some("first"))] {
        for path in ["", "large", "d0", "empty"] {
            let path = at.join(path);
            assert_eq!(attribute(&path, "revision").as_deref(), Some(revision));
            assert_eq!(attribute(&path, "repository").as_deref(), Some("mnt.test"));
            assert_eq!(attribute(&path, "tag").as_deref(), tag);
            assert_eq!(xattr::list(&path).unwrap().count(), 0, "{}", path.display());
        }
    }
    assert_eq!(attribute(&newest, "root"), Some(second_root));
    assert_eq!(attribute(&newest, "chunks"), None, "a directory has none");
    let small = newest.join("releases/1/what");
    let hash = blake3::hash(b"one, mended").to_hex();
    assert!(attribute(&small, "hash").unwrap().contains(hash.as_str()));
    assert_eq!(attribute(&small, "chunks").as_deref(), Some("1"));
    assert!(attribute(&newest.join("large"), "sources").unwrap().contains("strata "));
    let chunks: usize = attribute(&newest.join("large"), "chunks").unwrap().parse().unwrap();
    let list = attribute(&newest.join("large"), "chunk_list").unwrap();
    assert!(chunks > 1 && list.lines().count() == chunks, "{chunks}: {list}");
    assert_eq!(attribute(&newest.join("large"), "hash"), None, "nobody has hashed the whole");
    assert!(xattr::get(&newest, "user.starling").unwrap().is_some());
    assert_eq!(attribute(&part.join("what"), "mine"), None);

    // Sizes are those of the revision; numbers those of the files.
    let sizes = rustix::fs::statvfs(&newest).unwrap();
    let files = second.values().filter(|what| what.contains(" bytes ")).count() as u64;
    let bytes = sizes.f_blocks * sizes.f_frsize;
    assert!(sizes.f_files > files && bytes >= 1 << 20, "{} files, {bytes} bytes", sizes.f_files);
    let links = |path: &str| fs::metadata(newest.join(path)).unwrap();
    assert_eq!(links("large").ino(), links("d0/same-as-large").ino());
    assert_eq!(links("large").nlink(), 2);
    let before = numbers(&newest);
    let another = world.node.mount("mnt.test", "another");
    assert!(before == numbers(&another), "the same in each mount");

    // A newer revision moves the one that follows and no other; so it is after a restart.
    fs::write(world.tree.join("new"), "new").unwrap();
    world.publish("mnt.test", &[]);
    wait_for("the new revision", PATIENCE, || newest.join("new").exists().then_some(()));
    let third = listing(&world.tree);
    let before = numbers(&newest);
    for round in 0..2 {
        for (at, shows) in [(&newest, &third), (&by_number, &first), (&by_tag, &first), (&by_date, &second)] {
            assert_same(shows, &listing(at));
        }
        assert_eq!(text(&part.join("what")), "two");
        assert!(numbers(&newest) == before, "the same numbers after a restart");
        if round == 0 {
            world.node.stop();
            world.node.start();
            for at in [&newest, &by_number, &by_tag, &by_date, &part] {
                wait_for("the mounts", PATIENCE, || fs::read_dir(at).unwrap().next().map(drop));
            }
        }
    }
    for at in [&newest, &by_number, &by_tag, &by_date, &part, &mapped, &another] {
        world.node.umount(at);
    }
    world.node.stop();
}

#[test]
fn what_cannot_be_mounted_is_refused_with_what_there_is() {
    if !can_mount("mounting_refused") {
        return;
    }
    let world = World::new("no.test", |node, _| node);
    for (more, says) in [
        (&["--revision", "7"][..], &["no revision 7", "there are 1"][..]),
        (&["--tag", "third"], &["no tag third", "it has first"]),
        (&["--date", "2001-02-03"], &["no revision at 2001-02-03T23:59:59Z", "the oldest"]),
        (&["--date", "then"], &["`then` is no moment"]),
        (&["--tag", "a", "--revision", "1"], &["cannot be used with"]),
        (&["--path", "/releases/9"], &["revision 1: there is no /releases/9"]),
        (&["--path", "/large"], &["/large is not a directory"]),
        (&["--path", "/link"], &["/link is a symbolic link to d0/f0"]),
        (&["--path", "/releases/../d0"], &["no path"]),
        (&["--uid-map", "a:1"], &["FROM:TO"]),
    ] {
        let said = world.refused("no.test", more);
        assert!(says.iter().all(|what| said.contains(what)), "{more:?}: {said}");
    }
    assert_eq!(world.status()["mounts"].as_array().unwrap().len(), 0);
}

#[test]
fn a_part_that_vanishes_from_the_newest_revision_stays_as_it_was_and_the_agent_says_so() {
    if !can_mount("mounting_vanishes") {
        return;
    }
    let mut world = World::new("part.test", |node, _| node);
    let part = world.node.mount_with("part.test", "part", &["--path", "/releases/1"]);
    fs::rename(world.tree.join("releases/1"), world.tree.join("releases/old")).unwrap();
    world.publish("part.test", &[]);
    let note = wait_for("the agent to notice", PATIENCE, || {
        world.mount_at(&part)?["note"].as_str().map(str::to_owned)
    });
    assert!(note.contains("there is no /releases/1") && note.contains("revision 1"), "{note}");
    assert_eq!(text(&part.join("what")), "one");
    fs::rename(world.tree.join("releases/old"), world.tree.join("releases/1")).unwrap();
    fs::write(world.tree.join("releases/1/what"), "again").unwrap();
    world.publish("part.test", &[]);
    wait_for("the switch", PATIENCE, || (text(&part.join("what")) == "again").then_some(()));
    assert_eq!(world.mount_at(&part).unwrap()["note"], serde_json::Value::Null);
    world.node.umount(&part);
}

/// The line of the kernel's list of mounts for a directory.
fn listed(at: &Path) -> String {
    let mounts = text(Path::new("/proc/self/mounts"));
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == at.to_str());
    line.unwrap_or_else(|| panic!("{} is not mounted: {mounts}", at.display())).to_owned()
}

#[test]
fn set_id_bits_mean_nothing_unless_the_mount_was_asked_to_honour_them() {
    if !can_mount("mounting_suid") {
        return;
    }
    let mut world = World::new("suid.test", |node, _| node);
    // Others than root must be able to enter.
    fs::set_permissions(world.base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let who = world.tree.join("who");
    fs::copy("/usr/bin/id", &who).unwrap();
    fs::set_permissions(&who, fs::Permissions::from_mode(0o4755)).unwrap();
    world.publish("suid.test", &[]);
    let usual = world.node.mount("suid.test", "usual");
    let asked = world.node.mount_with("suid.test", "asked", &["--suid"]);
    for (at, user) in [(&usual, "65534"), (&asked, "0")] {
        let program = at.join("who");
        assert_eq!(fs::metadata(&program).unwrap().mode() & 0o7777, 0o4755, "the bits are shown as they are");
        let output = Command::new(&program).arg("-u").uid(65_534).gid(65_534).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), user, "{}", at.display());
        let line = listed(at);
        assert_eq!(line.contains("nosuid"), user != "0", "{line}");
        assert!(line.contains("nodev"), "{line}");
    }
    world.node.umount(&usual);
    world.node.umount(&asked);
}

#[test]
fn a_mount_that_is_to_be_allowed_less_goes_on_with_less_under_the_next_agent() {
    if !can_mount("mounting_less") {
        return;
    }
    let mut world = World::new("less.test", |node, _| node.keeping_mounts());
    // With small files the first close of a mount asks the agent, and here that close is in the way of its start.
    let at = world.node.mount_with("less.test", "kept", &["--suid", "--profile", "large-files"]);
    assert!(!listed(&at).contains("nosuid"));
    let mut held = File::open(at.join("large")).unwrap();
    world.node.stop();
    // As an agent before this default has written it, with less to say of the mount than the keeper has.
    let list = world.node.state().join("mounts.json");
    let mut mounts: serde_json::Value = serde_json::from_str(&text(&list)).unwrap();
    assert_eq!(mounts["mounts"][0]["options"]["restrict"]["nosuid"], false);
    mounts["mounts"][0]["options"].as_object_mut().unwrap().remove("restrict");
    fs::write(&list, mounts.to_string()).unwrap();
    world.node.start();
    let line = wait_for("the next agent", PATIENCE, || {
        world.mount_at(&at)?["revision"].as_u64()?;
        Some(listed(&at))
    });
    assert!(line.contains("nosuid") && line.contains("nodev") && line.contains("ro,"), "{line}");
    let mut bytes = Vec::new();
    held.read_to_end(&mut bytes).unwrap();
    assert!(bytes == fs::read(world.tree.join("large")).unwrap(), "who was inside goes on reading");
    world.node.umount(&at);
}

/// Runs a command where `mount` finds its helper for this type, which is in no other process's /sbin.
fn with_helper(base: &Path, command: &str) -> Output {
    let script = format!(
        "mount -t tmpfs none \"$(readlink -f /sbin)\" && ln -s {STARLING} /sbin/mount.starling && {command}"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "sh", "-c", &script]);
    command.current_dir(base).output().unwrap()
}

#[test]
fn mount_and_fstab_mount_it_and_umount_ends_it() {
    if !can_mount("mounting_fstab") {
        return;
    }
    let world = World::new("tab.test", |node, _| node);
    let at = world.base.path().join("at");
    fs::create_dir(&at).unwrap();
    let (dir, socket) = (at.to_str().unwrap(), world.node.socket());
    let socket = socket.to_str().unwrap();
    let mounted = |output: &Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(text(&at.join("what")), "one");
    };
    let call = format!("mount -t starling tab.test {dir} -o socket={socket},path=/releases/1,uid=5,nosuid");
    mounted(&with_helper(world.base.path(), &call));
    assert_eq!(fs::metadata(at.join("what")).unwrap().uid(), 5);
    // Once more is no error: at boot, the agent may have been faster.
    mounted(&with_helper(world.base.path(), &call));
    let other = with_helper(world.base.path(), &call.replace("uid=5", "uid=6"));
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(other.status.code() == Some(32) && said.contains("is taken by tab.test"), "{said}");
    let umount = || assert!(Command::new("umount").arg(&at).status().unwrap().success());
    umount();
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);

    // A line of fstab, as a person writes it; and that it is forgotten when it is unmounted.
    let line = format!(
        "# a comment\ntab.test {dir} starling socket={socket},tag=first,path=/releases/1,_netdev,nofail,\
         x-systemd.requires=starling.service,x-systemd.automount,noauto,user 0 0\n"
    );
    fs::write(world.base.path().join("fstab"), line).unwrap();
    mounted(&with_helper(world.base.path(), &format!("mount -T fstab {dir}")));
    assert_eq!(attribute(&at.join("what"), "tag").as_deref(), Some("first"));
    umount();
    wait_for("the agent to forget it", PATIENCE, || world.mount_at(&at).is_none().then_some(()));
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);

    let wrong = with_helper(
        world.base.path(),
        &format!("mount -t starling tab.test {dir} -o socket={socket},taag=x"),
    );
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && said.contains("`taag=x` is not known"), "{said}");
}

/// A folder that is detached when the test ends, however it ends.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn can_automount() -> bool {
    let is_there = Path::new("/dev/autofs").exists();
    if !is_there {
        common::skipped("automount", "the kernel has no automounter here (/dev/autofs)");
    }
    is_there
}

#[test]
fn a_repository_is_mounted_when_somebody_enters_it_and_unmounted_when_nobody_uses_it() {
    if !can_mount("automount") || !can_automount() {
        return;
    }
    let mut at = PathBuf::new();
    let world = World::new("auto.test", |node, base| {
        at = base.join("all");
        node.with_args(&["--automount", at.to_str().unwrap()]).with_setting("automount_idle_s", "1")
    });
    let folder = Folder(at);
    let at = &folder.0;
    let names = || -> Vec<_> { fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    wait_for("the repository to be shown", PATIENCE, || (names() == ["auto.test"]).then_some(()));
    assert_eq!(world.status()["mounts"].as_array().unwrap().len(), 0, "looking at its name mounts nothing");
    for unknown in ["other.test", ".git", "NOT A NAME"] {
        let error = fs::metadata(at.join(unknown).join("x")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{unknown}");
    }
    // Many at once, and none is told that nothing is there.
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let path = at.join("auto.test/releases/1/what");
            std::thread::spawn(move || fs::read_to_string(path).unwrap())
        })
        .collect();
    assert!(readers.into_iter().all(|reader| reader.join().unwrap() == "one"));
    let inside = at.join("auto.test");
    assert_same(&listing(&world.tree), &listing(&inside));
    assert_eq!(world.mount_at(&inside).unwrap()["automatic"], true);

    // As long as a file is open it stays; then it goes, and comes back.
    let mut held = File::open(inside.join("large")).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert!(world.mount_at(&inside).is_some(), "it is in use");
    let mut bytes = Vec::new();
    held.read_to_end(&mut bytes).unwrap();
    assert!(bytes == fs::read(world.tree.join("large")).unwrap());
    drop(held);
    wait_for("it to be unmounted", PATIENCE, || world.mount_at(&inside).is_none().then_some(()));
    assert_eq!(names(), ["auto.test"], "its name stays");
    assert_eq!(text(&inside.join("releases/1/what")), "one");

    // An agent that ends takes the folder along.
    let mut world = world;
    world.node.stop();
    assert_eq!(fs::read_dir(at).unwrap().count(), 0);
    world.node.start();
    assert_eq!(text(&inside.join("releases/1/what")), "one");
    drop(world.stratum);
    assert!(world.fingerprint.starts_with("auto.test@"));
}

#[test]
fn a_repository_that_somebody_enters_is_mounted_with_the_options_of_the_folder() {
    let wrong = fails(&["agent", "--automount", "/nowhere", "--automount-options", "a.b:taag=1"]);
    assert!(
        wrong.contains("automount_options") && wrong.contains("`a.b`") && wrong.contains("taag=1"),
        "{wrong}"
    );
    if !can_mount("automount_options") || !can_automount() {
        return;
    }
    let mut at = PathBuf::new();
    let world = World::new("opts.test", |node, base| {
        at = base.join("all");
        node.with_args(&["--automount", at.to_str().unwrap(), "--automount-options", "*:path=/no/where"])
            .with_setting("automount_options", "opts.test:path=/releases/1,tag=first,noexec")
    });
    let folder = Folder(at);
    let inside = folder.0.join("opts.test");
    assert_eq!(text(&inside.join("what")), "one");
    let line = listed(&inside);
    assert!(line.contains("noexec") && line.contains("nosuid"), "{line}");
    assert_eq!(attribute(&inside, "tag").as_deref(), Some("first"));
    let options = &world.mount_at(&inside).unwrap()["options"];
    assert_eq!((&options["path"], &options["show"]["tag"]), (&"/releases/1".into(), &"first".into()));
}

#[test]
fn whoever_comes_while_it_is_being_unmounted_or_after_an_agent_was_killed_finds_it_all_the_same() {
    if !can_mount("automount_race") || !can_automount() {
        return;
    }
    let mut at = PathBuf::new();
    let mut world = World::new("race.test", |node, base| {
        at = base.join("all");
        node.with_args(&["--automount", at.to_str().unwrap()]).with_setting("automount_idle_s", "1")
    });
    let folder = Folder(at);
    let inside = folder.0.join("race.test");
    wait_for("the repository to be shown", PATIENCE, || inside.exists().then_some(()));
    let readers: Vec<_> = (1..=READERS)
        .map(|seed| {
            let path = inside.join("releases/1/what");
            std::thread::spawn(move || {
                let mut dice = Dice(seed);
                for round in 0..ROUNDS {
                    let read = fs::read_to_string(&path);
                    assert!(
                        read.as_ref().is_ok_and(|text| text == "one"),
                        "reader {seed}, round {round}: {read:?}"
                    );
                    // All together are idle for long enough now and then.
                    std::thread::sleep(Duration::from_millis(1_400 + dice.below(400)));
                }
            })
        })
        .collect();
    let mut unmounted = 0;
    let mut was_there = false;
    while readers.iter().any(|reader| !reader.is_finished()) {
        let is_there = world.mount_at(&inside).is_some();
        unmounted += usize::from(was_there && !is_there);
        was_there = is_there;
        std::thread::sleep(Duration::from_millis(20));
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    println!("it was seen unmounted {unmounted} times");

    for _ in 0..3 {
        assert_eq!(text(&inside.join("releases/1/what")), "one");
        world.node.kill();
        world.node.start();
    }
    assert_same(&listing(&world.tree), &listing(&inside));
    world.node.stop();
}

#[test]
fn the_folder_of_all_repositories_outlives_its_agent_and_the_next_goes_on() {
    if !can_mount("automount_restart") || !can_automount() {
        return;
    }
    let mut at = PathBuf::new();
    let mut world = World::new("kept.test", |node, base| {
        at = base.join("all");
        node.with_args(&["--automount", at.to_str().unwrap()]).keeping_mounts()
    });
    let folder = Folder(at);
    let inside = folder.0.join("kept.test");
    assert_eq!(text(&inside.join("releases/1/what")), "one");
    let mut held = File::open(inside.join("large")).unwrap();
    for kill in [true, false] {
        if kill {
            world.node.kill();
        } else {
            world.node.stop();
        }
        world.node.start();
        let mut bytes = vec![0; 1000];
        held.read_exact(&mut bytes).unwrap();
        assert_same(&listing(&world.tree), &listing(&inside));
        assert_eq!(world.mount_at(&inside).unwrap()["automatic"], true);
        // The successor is the one whom the kernel asks.
        assert!(fs::metadata(folder.0.join("unknown.test")).is_err());
    }
    drop(held);
    world.node.umount(&inside);
    assert_eq!(text(&inside.join("releases/1/what")), "one", "whoever enters it again finds it again");
    world.node.umount(&inside);
}
