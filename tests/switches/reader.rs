//! Readers: what each of them sees must be of one revision, and of none older than what the agent said before.

use crate::common::Dice;
use crate::common::mapping::Mapping;
use crate::story::{Story, What, content, stamp_of};
use rustix::fs::{Advice, Mode, OFlags, RawDir, SeekFrom, fadvise, open, openat, seek};
use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Files and directories that a reader keeps open, over several revisions.
const HELD_MAX: usize = 12;
/// Revisions that some files are not read for: more than are kept.
const REST_REVISIONS: u64 = 12;
/// Most entries of a directory come in many calls with a buffer of this size, in bytes.
const NAMES_BYTES: usize = 512;
/// Largest read at once, in bytes.
const READ_MAX: u64 = 100_000;

/// What all know.
pub(crate) struct Board {
    pub(crate) story: Story,
    /// The revision that the agent said it shows: nothing older may be found from now on.
    pub(crate) acknowledged: AtomicU64,
    /// The revision that is being published: nothing newer can be found yet.
    pub(crate) begun: AtomicU64,
    pub(crate) stop: AtomicBool,
    pub(crate) looks: AtomicU64,
}

struct Held {
    path: String,
    file: File,
    right: Vec<u8>,
    mapping: Option<Mapping>,
    /// The revision until which it is left alone.
    rests_until: u64,
}

struct HeldDirectory {
    path: String,
    directory: OwnedFd,
    /// The oldest revision that it may show.
    since: u64,
}

pub(crate) struct Reader {
    board: Arc<Board>,
    at: PathBuf,
    dice: Dice,
    held: VecDeque<Held>,
    directories: VecDeque<HeldDirectory>,
}

impl Reader {
    pub(crate) fn new(board: Arc<Board>, at: PathBuf, seed: u64) -> Self {
        let dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Self { board, at, dice, held: VecDeque::new(), directories: VecDeque::new() }
    }

    /// Looks here and there until it is told to stop.
    pub(crate) fn read_on(mut self) {
        while !self.board.stop.load(Ordering::Relaxed) {
            match self.dice.below(12) {
                0..3 => self.open_file(),
                3..5 => self.read_held(),
                5 => self.look_at_link(),
                6..8 => self.look(),
                8 => self.open_directory(),
                9 | 10 => self.list_again(),
                _ => self.look_from_directory(),
            }
            self.board.looks.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(self.dice.below(2_000)));
        }
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.dice.below(of.len() as u64)).unwrap()]
    }

    fn acknowledged(&self) -> u64 {
        self.board.acknowledged.load(Ordering::SeqCst)
    }

    /// Revisions that may be seen by who began to look at `from` and has looked.
    fn window(&self, from: u64) -> RangeInclusive<u64> {
        from..=self.board.begun.load(Ordering::SeqCst)
    }

    /// Some path of the revision before, of this, or of the next one: what is gone and what is to come is asked for, too.
    fn some_path(&mut self, accept: impl Fn(&What) -> bool) -> String {
        let revision = (self.acknowledged() + self.dice.below(3)).saturating_sub(1);
        let board = Arc::clone(&self.board);
        let state = board.story.state(revision.min(board.story.last()));
        // Most files are those of the large directory.
        let is_wanted =
            |path: &str, what: &What| accept(what) && (!path.starts_with("names/") || path.contains("/01"));
        let paths: Vec<&String> =
            state.iter().filter(|(path, what)| is_wanted(path, what)).map(|(path, _)| path).collect();
        (*self.pick(&paths)).clone()
    }

    /// What was seen at `path` by who began to look at `from` must be of a revision that there was meanwhile.
    fn check(&self, from: u64, path: &str, seen: &What, how: &str) {
        let window = self.window(from);
        let is_right = self.board.story.shows(window.clone(), path, seen).is_some();
        let expected: Vec<_> = window.clone().map(|n| self.board.story.at(n, path)).collect();
        assert!(is_right, "{how} {path} showed {seen:?}; the revisions {window:?} have {expected:?}");
    }

    /// An error tells that there is nothing; no other may come.
    fn nothing(path: &str, error: &io::Error) -> What {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => What::Nothing,
            _ => panic!("{path}: {error}"),
        }
    }

    fn seen(path: &str, found: io::Result<fs::Metadata>) -> What {
        match found {
            Err(error) => Self::nothing(path, &error),
            Ok(found) if found.is_dir() => What::Directory,
            Ok(found) => What::File {
                key: String::new(),
                stamp: stamp_of(found.mtime()),
                len: usize::try_from(found.len()).unwrap(),
            },
        }
    }

    fn look(&mut self) {
        let path = self.some_path(|_| true);
        let from = self.acknowledged();
        let found = fs::symlink_metadata(self.at.join(&path));
        if found.as_ref().is_ok_and(fs::Metadata::is_symlink) {
            let window = self.window(from);
            let is_link = |n| matches!(self.board.story.at(n, &path), What::Link(_));
            assert!(window.clone().any(is_link), "{path} is no link in {window:?}");
        } else {
            self.check(from, &path, &Self::seen(&path, found), "a look at");
        }
    }

    fn look_at_link(&mut self) {
        let path = self.some_path(|what| matches!(what, What::Link(_)));
        let from = self.acknowledged();
        let seen = match fs::read_link(self.at.join(&path)) {
            Ok(target) => What::Link(target.to_str().unwrap().to_owned()),
            // It is no link now.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => Self::nothing(&path, &error),
        };
        self.check(from, &path, &seen, "the link");
    }

    fn open_file(&mut self) {
        let path = self.some_path(|what| matches!(what, What::File { .. }));
        let from = self.acknowledged();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = open(self.at.join(&path), flags, Mode::empty());
        self.opened(from, path, opened);
    }

    /// Checks a file that was opened, and keeps it.
    fn opened(&mut self, from: u64, path: String, opened: rustix::io::Result<OwnedFd>) {
        let file = match opened {
            Ok(file) => File::from(file),
            // Now it is a link.
            Err(rustix::io::Errno::LOOP) => return,
            Err(error) => {
                return self.check(from, &path, &Self::nothing(&path, &error.into()), "opening");
            }
        };
        let seen = Self::seen(&path, file.metadata());
        self.check(from, &path, &seen, "the open file");
        let What::File { stamp, len, .. } = seen else { return };
        // Which file it is does not depend on the revision, as far as it is one.
        let What::File { key, .. } = self.found_as(from, &path) else { unreachable!("checked") };
        let right = content(&key, stamp, len);
        let mut held = Held { path, file, right, mapping: None, rests_until: 0 };
        match self.dice.below(4) {
            // What is read only after its revision has gone must be there all the same.
            0 => held.rests_until = from + REST_REVISIONS,
            1 => held.mapping = Some(Mapping::of(&held.file)),
            _ => self.read(&held),
        }
        self.held.push_back(held);
        if self.held.len() > HELD_MAX {
            // Some stay open for long.
            let youngest = self.dice.below(8) > 0;
            let number = if youngest { HELD_MAX } else { usize::try_from(self.dice.below(8)).unwrap() };
            self.held.remove(number);
        }
    }

    fn found_as(&self, from: u64, path: &str) -> What {
        let is_file = |n: &u64| matches!(self.board.story.at(*n, path), What::File { .. });
        let revision = self.window(from).find(is_file).expect("checked");
        self.board.story.at(revision, path).clone()
    }

    /// Reads a piece of a file, or all of it.
    fn read(&mut self, held: &Held) {
        let Held { path, file, right, mapping, .. } = held;
        let len = right.len() as u64;
        let (offset, room) = match self.dice.below(3) {
            0 => (0, len + 10),
            _ => (self.dice.below(len), self.dice.below(READ_MAX) + 1),
        };
        let mut got = vec![0; usize::try_from(room).unwrap()];
        let mut count = 0;
        while count < got.len() {
            match file.read_at(&mut got[count..], offset + count as u64) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) => panic!("{path}, {room} bytes at {offset} of {len}: {error}"),
            }
        }
        let begin = usize::try_from(offset).unwrap();
        let expected = &right[begin..(begin + got.len()).min(right.len())];
        if got[..count] != *expected {
            let first = got[..count].iter().zip(expected).position(|(is, should)| is != should);
            let line = first.map(|at| String::from_utf8_lossy(&got[at..count.min(at + 60)]).into_owned());
            panic!(
                "{path}: {count} bytes at {offset}, expected {}; the first difference is at {first:?}: {line:?}, {:?}",
                expected.len(),
                first.map(|at| String::from_utf8_lossy(&expected[at..expected.len().min(at + 60)]))
            );
        }
        if let Some(mapping) = mapping {
            assert!(mapping.bytes() == right, "{path}: the mapping has other bytes");
        }
    }

    fn read_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let number = usize::try_from(self.dice.below(self.held.len() as u64)).unwrap();
        if self.held[number].rests_until > self.acknowledged() {
            return;
        }
        let held = self.held.swap_remove_back(number).unwrap();
        if self.dice.below(3) == 0 {
            // As far as the kernel lets go of it, it has to ask again.
            fadvise(&held.file, 0, None, Advice::DontNeed).unwrap();
        }
        let is = held.file.metadata().unwrap_or_else(|error| panic!("{}: {error}", held.path));
        assert_eq!(is.len(), held.right.len() as u64, "{}: the length of an open file", held.path);
        self.read(&held);
        self.held.push_back(held);
    }

    fn open_directory(&mut self) {
        let path = self.some_path(|what| *what == What::Directory);
        let since = self.acknowledged();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match open(self.at.join(&path), flags, Mode::empty()) {
            Ok(directory) => {
                self.directories.push_back(HeldDirectory { path, directory, since });
                if self.directories.len() > HELD_MAX {
                    self.directories.pop_front();
                }
            }
            // Now it is a link, or a file.
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => {}
            Err(error) => self.check(since, &path, &Self::nothing(&path, &error.into()), "opening"),
        }
    }

    /// The revisions that an open directory may show to who began to look at `from`: if there is none of it in one of them, it may
    /// show what it showed last.
    fn window_of(&self, held: &HeldDirectory, from: u64) -> RangeInclusive<u64> {
        let window = self.window(from);
        let is_there = |n| *self.board.story.at(n, &held.path) == What::Directory;
        if window.clone().all(is_there) { window } else { held.since..=*window.end() }
    }

    /// Lists an open directory from its beginning: the names of one revision, also if there is a new one meanwhile.
    fn list_again(&mut self) {
        let Some(held) = self.directories.pop_front() else { return };
        let from = self.acknowledged();
        seek(&held.directory, SeekFrom::Start(0)).unwrap();
        let mut names = BTreeSet::new();
        let mut room = [MaybeUninit::uninit(); NAMES_BYTES];
        let mut entries = RawDir::new(&held.directory, &mut room);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // Who stands in what has been gone for long is told so.
                Err(rustix::io::Errno::STALE) if self.is_gone(&held, from) => return,
                Err(error) => panic!("listing {}, {} names so far: {error}", held.path, names.len()),
            };
            let name = entry.file_name().to_str().unwrap();
            if name != "." && name != ".." {
                assert!(names.insert(name.to_owned()), "{name} twice in {}", held.path);
            }
            if entries.is_buffer_empty() && self.dice.below(4) == 0 {
                std::thread::sleep(Duration::from_micros(self.dice.below(20_000)));
            }
        }
        let window = self.window_of(&held, from);
        let story = &self.board.story;
        let shown = window.clone().find(|n| story.names(*n, &held.path) == names);
        assert!(shown.is_some(), "the listing of {} in {window:?} showed {names:?}", held.path);
        self.directories.push_back(held);
    }

    fn is_gone(&self, held: &HeldDirectory, from: u64) -> bool {
        self.window(from).any(|n| *self.board.story.at(n, &held.path) != What::Directory)
    }

    /// Opens a file by its name in a directory that is open.
    fn look_from_directory(&mut self) {
        let Some(held) = self.directories.pop_front() else { return };
        let board = Arc::clone(&self.board);
        let from = self.acknowledged();
        let names: Vec<String> = board.story.names(from, &held.path).into_iter().collect();
        if !names.is_empty() && !self.is_gone(&held, from) {
            let path = format!("{}/{}", held.path, self.pick(&names));
            let name = path.rsplit('/').next().unwrap();
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = openat(&held.directory, name, flags, Mode::empty());
            // It may have gone meanwhile.
            if !self.is_gone(&held, from) {
                self.opened(from, path, opened);
            }
        }
        self.directories.push_back(held);
    }
}
