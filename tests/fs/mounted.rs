//! The same through the kernel: a real FUSE mount, compared with the naive tree.

use crate::double::{
    Body, MemorySource, MemoryTree, Naive, base, content, link_counts, next_revision, node, parent,
    random_tree,
};
use rustix::mount::UnmountFlags;
use starling::fs::fuse::{MountConfig, Mounted, Profile, Unmounted, mount};
use starling::fs::{FileSystem, MountError};
use starling::model::{ContentId, Generator};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Whether mounts can be made here. Says so if not, and fails where everything is required.
pub(crate) fn can_mount() -> bool {
    let why = if !rustix::process::geteuid().is_root() {
        "mounting in tests needs root"
    } else if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse"
    } else {
        return true;
    };
    assert!(std::env::var_os("STARLING_REQUIRE_ALL").is_none(), "skipped: {why}");
    println!("skipped: {why}");
    false
}

/// A mount that is gone when the test ends, however it ends.
struct World {
    mounted: Option<Mounted>,
    fs: Arc<FileSystem>,
    source: Arc<MemorySource>,
    runtime: Runtime,
    folder: TempDir,
    profile: Profile,
}

impl World {
    fn new(naive: &Naive) -> Self {
        Self::tuned(naive, Profile::LargeFiles)
    }

    fn tuned(naive: &Naive, profile: Profile) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let source = Arc::new(MemorySource::default());
        let tree = Arc::new(MemoryTree::new(naive, &*source));
        let fs = Arc::new(FileSystem::new("test.example.org", tree, Arc::clone(&source) as _));
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        fs::create_dir(folder.path().join("bodies")).unwrap();
        let mut world = Self { mounted: None, fs, source, runtime, folder, profile };
        world.mount();
        world
    }

    fn mount(&mut self) {
        let config = MountConfig { profile: self.profile, ..MountConfig::new(self.at(b"")) };
        let mounted = mount(&config, Arc::clone(&self.fs), self.runtime.handle().clone());
        self.mounted = Some(mounted.unwrap());
    }

    fn at(&self, path: &[u8]) -> PathBuf {
        self.folder.path().join("mnt").join(OsStr::from_bytes(path))
    }

    fn switch(&self, naive: &Naive) {
        let tree = Arc::new(MemoryTree::new(naive, &*self.source));
        self.runtime.block_on(self.fs.switch(tree)).unwrap();
    }

    fn unmount(&mut self, patience: Duration) -> Unmounted {
        self.mounted.take().unwrap().unmount(patience).unwrap()
    }

    fn wait_for_the_end(&self) {
        let ended = self.mounted.as_ref().unwrap().ended();
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), ended).await }).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.mounted = None;
        let _ = rustix::mount::unmount(self.folder.path().join("mnt"), UnmountFlags::DETACH);
    }
}

/// Compares everything that a user can see with the naive tree.
fn assert_shows(world: &World, naive: &Naive) {
    let links = link_counts(naive);
    let mut inodes: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for (path, named) in naive {
        let shown = path.escape_ascii();
        let at = world.at(path);
        let (real_path, real) = match &named.body {
            Body::HardLink(target) => (target, &naive[target]),
            _ => (path, named),
        };
        let status = fs::symlink_metadata(&at).unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_eq!(status.mode() & 0o7777, u32::from(real.permissions), "{shown}");
        assert_eq!((status.mtime(), status.mtime_nsec()), (real.mtime.0, i64::from(real.mtime.1)), "{shown}");
        let inode = inodes.entry(real_path.clone()).or_insert(status.ino());
        assert_eq!(*inode, status.ino(), "{shown}: hard links are one inode");
        match &real.body {
            Body::Directory => {
                let mut names: Vec<Vec<u8>> =
                    fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name().into_vec()).collect();
                names.sort();
                let expected = naive.keys().filter(|other| !other.is_empty() && parent(other) == path);
                assert_eq!(names, expected.map(|path| base(path).to_vec()).collect::<Vec<_>>(), "{shown}");
            }
            Body::Symlink(target) => {
                assert_eq!(fs::read_link(&at).unwrap().as_os_str().as_bytes(), target, "{shown}");
            }
            Body::File(bytes, _) => {
                assert_eq!(status.nlink(), links[real_path] as u64, "{shown}");
                assert!(status.is_file() && fs::read(&at).unwrap() == *bytes, "{shown}: content");
            }
            Body::HardLink(_) => unreachable!("resolved"),
        }
        let xattrs: Vec<(Vec<u8>, Vec<u8>)> = if status.is_symlink() {
            real.xattrs.clone()
        } else {
            let names = xattr::list(&at).unwrap();
            names.map(|name| (name.as_bytes().to_vec(), xattr::get(&at, &name).unwrap().unwrap())).collect()
        };
        assert_eq!(xattrs, real.xattrs, "{shown}");
    }
}

fn rich_tree() -> Naive {
    let mut naive = random_tree(&mut Generator::stream(1, 9));
    let mut put = |path: &[u8], body| {
        naive.insert(path.to_vec(), node(body));
    };
    put(b"empty", Body::File(Vec::new(), 1));
    put(b"big", Body::File((0..9_000_000_u32).map(|n| (n / 5 % 251) as u8).collect(), 4 << 20));
    put(b"sparse", Body::File(vec![0; 8 << 20], 1 << 20));
    put(b"big.link", Body::HardLink(b"big".to_vec()));
    put(b"many", Body::Directory);
    for number in 0..10_000 {
        put(format!("many/file-{number}").as_bytes(), Body::File(number.to_string().into_bytes(), 10));
    }
    put(b"\xf0\x28\x8c\xbc", Body::File(b"no UTF-8".to_vec(), 3));
    let tool = naive.get_mut(&b"empty"[..]).unwrap();
    tool.permissions = 0o4755;
    tool.mtime = (-5, 250_000_000);
    tool.xattrs = vec![(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), vec![0, 255])];
    naive
}

#[test]
fn a_mount_shows_exactly_the_tree() {
    if !can_mount() {
        return;
    }
    shows_exactly_the_tree(Profile::LargeFiles);
    shows_exactly_the_tree(Profile::SmallFiles);
}

fn shows_exactly_the_tree(profile: Profile) {
    let naive = rich_tree();
    let mut world = World::tuned(&naive, profile);
    assert_shows(&world, &naive);
    // Again, from the kernel's caches.
    assert_shows(&world, &naive);
    assert_eq!(fs::metadata(world.at(b"absent")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    let long = world.at(&[b'n'; 256]);
    assert_eq!(fs::metadata(long).unwrap_err().raw_os_error(), Some(libc_enametoolong()));
    assert_eq!(fs::write(world.at(b"new"), b"x").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let statistics = rustix::fs::statvfs(world.at(b"")).unwrap();
    assert!(statistics.f_files >= 10_000 && statistics.f_blocks > 4000 && statistics.f_bfree == 0);
    assert_eq!(world.unmount(Duration::from_secs(5)), Unmounted::Cleanly);
    assert!(!world.at(b"empty").exists());
}

fn libc_enametoolong() -> i32 {
    rustix::io::Errno::NAMETOOLONG.raw_os_error()
}

#[test]
fn pieces_of_a_file_are_right_by_read_and_by_memory_map() {
    if !can_mount() {
        return;
    }
    let naive = rich_tree();
    let world = World::new(&naive);
    let bytes = content(&naive, b"big").unwrap();
    let mut file = File::open(world.at(b"big.link")).unwrap();
    for (offset, len) in [(0, 1), (4_194_300, 10), (8_999_990, 100), (9_000_000, 5), (1 << 40, 7)] {
        let mut got = vec![0; len];
        let count = file.read_at(&mut got, offset).unwrap();
        let start = usize::try_from(offset).unwrap().min(bytes.len());
        assert_eq!(got[..count], bytes[start..(start + len).min(bytes.len())], "{len} at {offset}");
    }
    file.seek(SeekFrom::Start(4_000_000)).unwrap();
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).unwrap();
    assert!(rest == bytes[4_000_000..]);
    // An executable is mapped by the kernel: it runs only if the mapping works.
    let program = fs::read("/bin/true").unwrap();
    let mut tool = node(Body::File(program, 10_000));
    tool.permissions = 0o755;
    let mut next = naive.clone();
    next.insert(b"true".to_vec(), tool);
    world.switch(&next);
    assert!(std::process::Command::new(world.at(b"true")).status().unwrap().success());
}

#[test]
fn a_body_is_read_by_the_kernel_alone() {
    if !can_mount() {
        return;
    }
    let naive = rich_tree();
    let bytes = content(&naive, b"big").unwrap();
    let world = World::new(&naive);
    let path = world.at(b"big");
    // Who has it open already is served by the mount, and so are all who come meanwhile.
    let first = File::open(&path).unwrap();
    world.source.make_bodies(Some(&world.folder.path().join("bodies")));
    assert!(fs::read(&path).unwrap() == bytes);
    drop(first);
    // The end of an open file reaches the mount a moment after `close` has returned.
    let body = ContentId::of(bytes).to_string();
    let body = world.folder.path().join("bodies").join(body);
    let mut passed = None;
    for _ in 0..200 {
        passed = Some(File::open(&path).unwrap());
        if body.exists() {
            break;
        }
        drop(passed.take());
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut passed = passed.expect("a body was asked for");
    world.source.lose_everything();
    world.source.make_bodies(None);
    let mut got = Vec::new();
    passed.read_to_end(&mut got).unwrap();
    assert!(got == bytes, "nobody but the kernel can have read it");
    let mut piece = vec![0; 1000];
    File::open(world.at(b"big.link")).unwrap().read_exact_at(&mut piece, 5_000_001).unwrap();
    assert_eq!(piece, bytes[5_000_001..5_001_001], "by its other name too");
    // A revision without it changes nothing for who has it open.
    let mut next = naive.clone();
    next.retain(|path, _| !path.starts_with(b"big"));
    world.switch(&next);
    assert!(!path.exists());
    passed.read_exact_at(&mut piece, 8_999_000).unwrap();
    assert_eq!(piece, bytes[8_999_000..]);
}

#[test]
fn attributes_that_no_file_has_are_not_supported_until_a_revision_brings_one() {
    if !can_mount() {
        return;
    }
    let mut naive = rich_tree();
    let world = World::new(&naive);
    let acl = "system.posix_acl_access";
    let ask = |name: &str| {
        xattr::get(world.at(b"big"), name).map_err(|error| error.raw_os_error()).map(|found| found.is_some())
    };
    let unsupported = Err(Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()));
    assert_eq!((ask("security.selinux"), ask(acl)), (unsupported, unsupported));
    assert_eq!(ask("user.a"), Ok(false));
    // An access list for one user beside those of the file's mode, as the kernel has it.
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let list =
        [entry(1, 6, none), entry(2, 4, 7), entry(4, 4, none), entry(0x10, 4, none), entry(0x20, 4, none)];
    let list = [&2_u32.to_le_bytes()[..], &list.concat()].concat();
    naive.get_mut(&b"empty"[..]).unwrap().xattrs.insert(0, (acl.as_bytes().to_vec(), list.clone()));
    world.switch(&naive);
    assert_eq!(xattr::get(world.at(b"empty"), acl).unwrap(), Some(list));
    assert_eq!((ask("security.selinux"), ask(acl)), (unsupported, Ok(false)));
}

#[test]
fn a_switch_shows_all_of_the_new_revision_and_open_files_keep_the_old() {
    if !can_mount() {
        return;
    }
    switch_and_keep(Profile::LargeFiles);
    switch_and_keep(Profile::SmallFiles);
}

fn switch_and_keep(profile: Profile) {
    let mut random = Generator::stream(4, 2);
    let mut naive = random_tree(&mut random);
    naive.insert(b"kept".to_vec(), node(Body::File(b"old content".to_vec(), 4)));
    let world = World::tuned(&naive, profile);
    let mut open = File::open(world.at(b"kept")).unwrap();
    for _ in 0..15 {
        assert_shows(&world, &naive);
        // Names that are absent are remembered by the kernel, too.
        for path in naive.keys() {
            let _ = fs::metadata(world.at(&[path, &b"/soon"[..]].concat()));
        }
        let _ = fs::metadata(world.at(b"soon"));
        let mut next = next_revision(&naive, &mut random);
        next.insert(b"kept".to_vec(), node(Body::File(b"new content!".to_vec(), 5)));
        if !naive.contains_key(&b"soon"[..]) {
            next.insert(b"soon".to_vec(), node(Body::File(b"here".to_vec(), 4)));
        }
        world.switch(&next);
        naive = next;
    }
    assert_shows(&world, &naive);
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old content");
    assert_eq!(open.metadata().unwrap().len(), 11);
    assert_eq!(fs::read(world.at(b"kept")).unwrap(), b"new content!");
}

#[test]
fn names_of_an_earlier_revision_are_listed_to_the_end_but_nobody_believes_them() {
    if !can_mount() {
        return;
    }
    let naive = rich_tree();
    let world = World::new(&naive);
    let mut reading = fs::read_dir(world.at(b"many")).unwrap();
    let begun: Vec<_> = reading.by_ref().take(100).map(|entry| entry.unwrap().path()).collect();
    let mut next = naive.clone();
    next.retain(|path, _| !path.starts_with(b"many/"));
    next.insert(b"many/new".to_vec(), node(Body::File(b"new".to_vec(), 5)));
    world.switch(&next);
    let rest: Vec<_> = reading.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(begun.len() + rest.len(), 10_000);
    for path in begun.iter().chain(&rest) {
        let error = fs::metadata(path).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", path.display());
    }
    let names: Vec<_> = fs::read_dir(world.at(b"many")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["new"]);
}

#[test]
fn a_read_that_cannot_be_served_is_an_io_error_and_the_mount_goes_on() {
    if !can_mount() {
        return;
    }
    let naive = rich_tree();
    let world = World::new(&naive);
    world.source.lose_everything();
    let error = fs::read(world.at(b"big")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert_eq!(fs::read_dir(world.at(b"many")).unwrap().count(), 10_000);
}

#[test]
fn an_unmount_by_somebody_else_is_reported() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(&random_tree(&mut Generator::stream(1, 1)));
    rustix::mount::unmount(world.at(b""), UnmountFlags::empty()).unwrap();
    world.wait_for_the_end();
    assert_eq!(world.unmount(Duration::ZERO), Unmounted::Already);
    world.mount();
}

#[test]
fn a_busy_mount_is_detached_and_serves_those_inside_to_the_end() {
    if !can_mount() {
        return;
    }
    let naive = rich_tree();
    let mut world = World::new(&naive);
    let mut open = File::open(world.at(b"big")).unwrap();
    let ended = world.mounted.as_ref().unwrap().ended();
    assert_eq!(world.unmount(Duration::from_millis(100)), Unmounted::Lazily);
    assert!(!world.at(b"big").exists());
    // The place is free for another mount, which the end of the first one leaves alone.
    world.mount();
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert!(bytes == content(&naive, b"big").unwrap());
    drop(open);
    world.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), ended).await }).unwrap();
    assert!(world.at(b"empty").exists());
}

#[test]
fn what_somebody_else_has_mounted_on_top_is_not_unmounted() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(&random_tree(&mut Generator::stream(2, 1)));
    rustix::mount::mount("other", world.at(b""), "tmpfs", rustix::mount::MountFlags::empty(), c"").unwrap();
    fs::write(world.at(b"theirs"), b"theirs").unwrap();
    let mounted = world.mounted.take().unwrap().unmount_if_idle().expect("it is covered");
    assert!(mounted.unmount(Duration::ZERO).is_err());
    assert_eq!(fs::read(world.at(b"theirs")).unwrap(), b"theirs");
    rustix::mount::unmount(world.at(b""), UnmountFlags::empty()).unwrap();
}

#[test]
fn a_place_that_is_taken_is_refused() {
    if !can_mount() {
        return;
    }
    let world = World::new(&random_tree(&mut Generator::stream(2, 1)));
    let again =
        mount(&MountConfig::new(world.at(b"")), Arc::clone(&world.fs), world.runtime.handle().clone());
    let error = again.err().unwrap();
    assert!(
        matches!(&error, MountError::AlreadyMounted { source_name, .. } if source_name == "starling:test.example.org"),
        "{error}"
    );
}

#[test]
fn a_dead_mount_of_ours_is_cleared_away() {
    if !can_mount() {
        return;
    }
    let mut world = World::new(&random_tree(&mut Generator::stream(2, 1)));
    // A server that is gone: mounted, and then its descriptor closed.
    world.unmount(Duration::from_secs(5));
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,subtype=starling",
        std::os::fd::AsRawFd::as_raw_fd(&device)
    );
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount("starling:dead", world.at(b""), "fuse", flags, options.as_c_str()).unwrap();
    drop(device);
    world.mount();
    assert!(fs::read_dir(world.at(b"")).is_ok());
}
