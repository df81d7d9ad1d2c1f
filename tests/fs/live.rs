//! Random operations through a mount, compared with the naive tree: while the tree is switched, the cache drops things, and the sources
//! fail and lie. What a program is told is right, or an I/O error; what it maps is right, or it is killed.

use crate::double::{Body, Naive, Node, Shelf, base, content, next_revision, node, parent, random_tree};
use crate::mapped::Mapped;
use crate::model::{Seed, seeds};
use crate::mounted::can_mount;
use crate::sources::{Stack, Weather};
use crate::watchdog::Watchdog;
use rustix::fs::{Advice, Mode, OFlags, RawDir, SeekFrom, fadvise, open, seek};
use rustix::mount::{UnmountFlags, unmount};
use starling::fs::fuse::{MountConfig, Mounted, Profile, mount};
use starling::fs::{FileSystem, FsError};
use starling::model::{Generator, Rng};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const SEEDS: u64 = 8;
const OPERATIONS: usize = 400;
/// Files of the directory with most of them, about.
const MANY: usize = 120;
/// Most entries of a directory come in many calls with a buffer of this size, in bytes. (Of an answer to the kernel, which is
/// larger, no program takes less.)
const NAMES_BYTES: usize = 600;
/// Files that stay open, and directories that stay half read.
const HELD_MAX: usize = 20;
/// How long a seed may take, which takes some seconds (guess: the machine may be busy).
const ENDS_WITHIN: Duration = Duration::from_secs(90);
/// Switches that a reader who is in the middle of a directory may sleep through.
const SWITCHES_MAX: u64 = 8;

struct Held {
    file: File,
    right: Vec<u8>,
    mapped: Option<Mapped>,
}

/// A directory of which a part was read.
struct HalfRead {
    directory: OwnedFd,
    /// The names that are still to come.
    rest: Vec<Vec<u8>>,
    /// The number of the switch after which it was begun.
    begun: u64,
}

struct Live {
    mounted: Option<Mounted>,
    fs: Arc<FileSystem>,
    stack: Arc<Stack>,
    naive: Naive,
    random: Generator,
    held: Vec<Held>,
    half_read: Vec<HalfRead>,
    switches: u64,
    failed: u64,
    /// Mappings that were read, and processes that were killed for a page that could not be had.
    mapped: u64,
    killed: u64,
    folder: TempDir,
    runtime: Runtime,
}

/// A random tree with some files that are large enough to be read by the kernel itself.
fn some_tree(random: &mut Generator) -> Naive {
    let mut naive = random_tree(random);
    for number in 0..4_usize {
        let len = 100_000 + random.below(400_000);
        let bytes = (0..len).map(|at| u8::try_from(at / 7 % (200 + number)).unwrap()).collect();
        naive.insert(format!("large{number}").into_bytes(), node(Body::File(bytes, 50_000)));
    }
    naive.insert(b"many".to_vec(), node(Body::Directory));
    add_many(&mut naive, random, MANY);
    naive
}

/// Some names, with the position before each: all that are to come, or as many as fill so many buffers.
fn names_of(directory: &OwnedFd, buffers: usize) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let mut position = seek(directory, SeekFrom::Current(0))?;
    let mut room = [MaybeUninit::uninit(); NAMES_BYTES];
    let mut entries = RawDir::new(directory, &mut room);
    let mut names = Vec::new();
    let mut filled = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        names.push((position, entry.file_name().to_bytes().to_vec()));
        position = entry.next_entry_cookie();
        if entries.is_buffer_empty() {
            filled += 1;
            if filled == buffers {
                break;
            }
        }
    }
    Ok(names)
}

/// Files of a directory whose listing takes several requests.
fn add_many(naive: &mut Naive, random: &mut Generator, count: usize) {
    for _ in 0..count {
        let name = format!("many/{}", random.below(2 * MANY));
        naive.entry(name.clone().into_bytes()).or_insert_with(|| node(Body::File(name.into_bytes(), 5)));
    }
}

impl Live {
    fn new(seed: u64, verify_always: bool, profile: Profile, folder: TempDir) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut random = Generator::stream(seed, 5);
        let naive = some_tree(&mut random);
        let stack = runtime.block_on(async { Stack::new(seed, verify_always) });
        let fs = Arc::new(FileSystem::new("model", stack.tree(&naive), Arc::clone(&stack) as _));
        let config = MountConfig { profile, ..MountConfig::new(folder.path().to_owned()) };
        let mounted = Some(mount(&config, Arc::clone(&fs), runtime.handle().clone()).unwrap());
        let (held, half_read) = (Vec::new(), Vec::new());
        let (switches, failed, mapped, killed) = (0, 0, 0, 0);
        let live = Self {
            mounted,
            fs,
            stack,
            naive,
            random,
            held,
            half_read,
            switches,
            failed,
            mapped,
            killed,
            folder,
            runtime,
        };
        // The kernel asks once what is to be done when a file is closed. A process that is killed closes its files too, and nobody is left
        // to answer then.
        drop(File::open(live.at(b"large0")).unwrap());
        live
    }

    fn at(&self, path: &[u8]) -> PathBuf {
        self.folder.path().join(OsStr::from_bytes(path))
    }

    /// An answer, or `None` for an I/O error, which nothing but trouble excuses.
    fn answer<T>(&mut self, what: &str, path: &[u8], result: io::Result<T>) -> Option<T> {
        result
            .inspect_err(|error| {
                let is_excused = error.raw_os_error() == Some(libc::EIO) && self.stack.is_troubled();
                assert!(is_excused, "{what} {}: {error}", path.escape_ascii());
                self.failed += 1;
            })
            .ok()
    }

    fn some_path(&mut self) -> Vec<u8> {
        let number = self.random.below(self.naive.len());
        let mut path = self.naive.keys().nth(number).unwrap().clone();
        match self.random.below(12) {
            0 => path.extend(b"/absent"),
            // A name that may come, and one that may have gone.
            1 | 2 => {
                let cut = path.len() - base(&path).len();
                path.truncate(cut);
                path.extend([&b"a"[..], b"b", b"x", b"long.name"][self.random.below(4)]);
            }
            _ => {}
        }
        path
    }

    /// The object itself, through hard links.
    fn real(&self, path: &[u8]) -> Option<Node> {
        match self.naive.get(path)? {
            Node { body: Body::HardLink(target), .. } => self.naive.get(target).cloned(),
            found => Some(found.clone()),
        }
    }

    fn look(&mut self) {
        let path = self.some_path();
        let found = match fs::symlink_metadata(self.at(&path)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return assert!(!self.naive.contains_key(&path), "{} is not found", path.escape_ascii());
            }
            found => found,
        };
        let Some(found) = self.answer("a look at", &path, found) else { return };
        let shown = path.escape_ascii().to_string();
        let Some(real) = self.real(&path) else { panic!("{shown} is not there, but was found") };
        let expected = (u32::from(real.permissions), real.mtime);
        let seen = (found.mode() & 0o7777, (found.mtime(), u32::try_from(found.mtime_nsec()).unwrap()));
        assert_eq!(seen, expected, "{shown}");
        match &real.body {
            Body::Directory => assert!(found.is_dir(), "{shown}"),
            Body::File(bytes, _) => assert!(found.is_file() && found.len() == bytes.len() as u64, "{shown}"),
            Body::Symlink(target) => {
                assert!(found.is_symlink(), "{shown}");
                let got = fs::read_link(self.at(&path));
                if let Some(got) = self.answer("the link", &path, got) {
                    assert_eq!(got.as_os_str().as_bytes(), target, "{shown}");
                }
            }
            Body::HardLink(_) => unreachable!("resolved"),
        }
    }

    fn open_file(&mut self) {
        let files: Vec<Vec<u8>> =
            self.naive.keys().filter(|path| content(&self.naive, path).is_some()).cloned().collect();
        let path = files[self.random.below(files.len())].clone();
        let opened = File::open(self.at(&path));
        let Some(file) = self.answer("opening", &path, opened) else { return };
        let right = content(&self.naive, &path).unwrap().to_vec();
        self.held.push(Held { file, right, mapped: None });
        if self.held.len() > HELD_MAX {
            let number = self.random.below(HELD_MAX);
            self.held.swap_remove(number);
        }
    }

    fn read(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let number = self.random.below(self.held.len());
        let mut held = self.held.swap_remove(number);
        if self.random.below(3) == 0 {
            fadvise(&held.file, 0, None, Advice::DontNeed).unwrap();
        }
        if self.random.below(3) == 0 {
            self.read_mapped(&mut held);
        }
        let Held { file, right, .. } = &held;
        let offset = self.random.below(right.len() + 100);
        let largest = [10, 5_000, 300_000][self.random.below(3)];
        let mut got = vec![0; self.random.below(largest) + 1];
        let expected = &right[offset.min(right.len())..(offset + got.len()).min(right.len())];
        let what = format!("{} bytes at {offset} of {}", got.len(), right.len());
        let count = file.read_at(&mut got, offset as u64);
        if let Some(count) = self.answer("reading", what.as_bytes(), count) {
            // What follows may have failed.
            let is_whole = count == expected.len() || self.stack.is_troubled() && count > 0;
            assert!(is_whole && got[..count] == expected[..count], "{what}: {count} came");
        }
        self.held.push(held);
    }

    /// Reads some of a mapping, which lives as long as its file is held, or until somebody is killed for it.
    fn read_mapped(&mut self, held: &mut Held) {
        let right = &held.right;
        if right.is_empty() {
            return;
        }
        let from = self.random.below(right.len());
        let len = [right.len() - from, self.random.below(right.len() - from) + 1][self.random.below(2)];
        let what = format!("{len} bytes at {from} of {}", right.len());
        if held.mapped.is_none() {
            let mapped = Mapped::of(&held.file);
            held.mapped = self.answer("mapping", what.as_bytes(), mapped);
        }
        let Some(mapped) = &mut held.mapped else { return };
        if let Some(got) = mapped.bytes(from, len) {
            assert!(got == right[from..from + len], "{what}, mapped");
            self.mapped += 1;
        } else {
            assert!(self.stack.is_troubled(), "{what}, mapped: killed");
            held.mapped = None;
            self.killed += 1;
        }
    }

    fn list(&mut self) {
        let directories: Vec<Vec<u8>> = self
            .naive
            .iter()
            .filter(|(_, node)| node.body == Body::Directory)
            .map(|(p, _)| p.clone())
            .collect();
        let path = directories[self.random.below(directories.len())].clone();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = open(self.at(&path), flags, Mode::empty()).map_err(io::Error::from);
        let Some(directory) = self.answer("opening", &path, opened) else { return };
        let buffers = if self.random.below(3) == 0 { 1 } else { usize::MAX };
        let got = names_of(&directory, buffers);
        let Some(got) = self.answer("listing", &path, got) else { return };
        let inside = self.naive.keys().filter(|other| !other.is_empty() && parent(other) == path);
        let mut expected: Vec<Vec<u8>> = inside.map(|path| base(path).to_vec()).collect();
        expected.sort();
        expected.splice(0..0, [b".".to_vec(), b"..".to_vec()]);
        let shown = path.escape_ascii().to_string();
        let names = |got: &[(u64, Vec<u8>)]| got.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&got), expected[..got.len()], "{shown}");
        if buffers == 1 {
            let rest = expected.split_off(got.len());
            self.half_read.push(HalfRead { directory, rest, begun: self.switches });
            return;
        }
        assert_eq!(got.len(), expected.len(), "{shown}");
        // Back to where it has been.
        let number = self.random.below(got.len());
        seek(&directory, SeekFrom::Start(got[number].0)).unwrap();
        let again = names_of(&directory, usize::MAX);
        if let Some(again) = self.answer("listing again", &path, again) {
            assert_eq!(names(&again), expected[number..], "{shown}, from {number} on");
        }
    }

    /// Goes on with a directory: it has the names that it had, as long as anybody can know them.
    fn list_on(&mut self) {
        if self.half_read.is_empty() {
            return;
        }
        let number = self.random.below(self.half_read.len());
        let HalfRead { directory, rest, begun } = self.half_read.swap_remove(number);
        let got = match names_of(&directory, usize::MAX) {
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => {
                return assert!(
                    self.switches > begun + SWITCHES_MAX,
                    "stale after {} switches",
                    self.switches - begun
                );
            }
            got => self.answer("listing on", b"", got),
        };
        if let Some(got) = got {
            assert_eq!(got.into_iter().map(|(_, name)| name).collect::<Vec<_>>(), rest);
        }
    }

    fn switch(&mut self) {
        let mut next = next_revision(&self.naive, &mut self.random);
        for number in 0..4 {
            // Most of the large files stay for long enough to be read by the kernel itself.
            let path = format!("large{number}").into_bytes();
            if self.random.below(4) > 0 || !next.contains_key(&path) {
                next.insert(path.clone(), self.naive[&path].clone());
            }
        }
        next.insert(b"many".to_vec(), self.naive[&b"many"[..]].clone());
        add_many(&mut next, &mut self.random, MANY / 8);
        match self.runtime.block_on(self.fs.switch(self.stack.tree(&next))) {
            Ok(_) => {
                self.naive = next;
                self.switches += 1;
            }
            Err(FsError::Metadata { .. }) if self.stack.is_troubled() => self.failed += 1,
            Err(error) => panic!("{error}"),
        }
    }

    fn some_operations(&mut self, count: usize) {
        for _ in 0..count {
            match self.random.below(24) {
                0 => self.switch(),
                1 | 2 => self.stack.disturb(&mut self.random),
                3..7 => self.list(),
                7 => self.list_on(),
                8..11 => self.open_file(),
                11..17 => self.read(),
                _ => self.look(),
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.held.clear();
        self.half_read.clear();
        self.mounted = None;
        let _ = unmount(self.folder.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn through_a_mount_too_the_answer_is_the_naive_one_or_an_io_error() {
    if !can_mount() {
        return;
    }
    let (mut failed, mut switches, mut troubles) = (0, 0, (0, 0, 0));
    let (mut mapped, mut killed) = (0, 0);
    for seed in seeds(SEEDS) {
        let _seed = Seed(seed);
        // Where each byte is checked at each read, the disk rots as well; elsewhere the kernel reads large files itself.
        let profile = if seed % 3 == 0 { Profile::SmallFiles } else { Profile::LargeFiles };
        let folder = tempfile::tempdir().unwrap();
        let watchdog = Watchdog::over(
            format!("seed {seed} (STARLING_SEED={seed} runs it alone)"),
            folder.path(),
            ENDS_WITHIN,
        );
        let mut live = Live::new(seed, seed % 2 == 0, profile, folder);
        live.some_operations(OPERATIONS);
        live.stack.set_weather(Weather::Fair);
        let paths: Vec<Vec<u8>> = live.naive.keys().cloned().collect();
        for path in paths {
            let Some(right) = content(&live.naive, &path) else { continue };
            let got = fs::read(live.at(&path)).unwrap_or_else(|e| panic!("{}: {e}", path.escape_ascii()));
            let (is, should) = (got.len(), right.len());
            assert!(got == right, "{}: {is} bytes, should be {should}", path.escape_ascii());
        }
        (failed, switches) = (failed + live.failed, switches + live.switches);
        (mapped, killed) = (mapped + live.mapped, killed + live.killed);
        let (failures, lies, damaged) = live.stack.troubles();
        troubles = (troubles.0 + failures, troubles.1 + lies, troubles.2 + damaged);
        drop(live);
        assert!(!watchdog.call_off(), "it took longer than {ENDS_WITHIN:?}");
    }
    println!(
        "{switches} switches, {failed} operations failed, {mapped} mappings were read, {killed} processes killed; strata \
         failed, lied, and chunks rotted: {troubles:?}"
    );
    if std::env::var_os("STARLING_SEED").is_none() {
        let (failures, lies, _) = troubles;
        assert!(failed > 20 && failures > 50 && lies > 50 && mapped > 50 && killed > 5, "nothing went wrong");
    }
}
