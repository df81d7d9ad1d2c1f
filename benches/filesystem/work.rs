//! What is done with a tree: the same code for the native tree and for the mounts, with as little of its own as possible.
//!
//! Every path is relative to the root's descriptor, so that the kernel walks as many names in both.

use crate::common::Dice;
use crate::trees::Made;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, StatxFlags, openat, statat, statx};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// As `cat` and `cp` read.
const READ_BYTES: usize = 128 << 10;
/// As the C library lists directories.
const LIST_BYTES: usize = 32 << 10;
const PAGE: usize = 4 << 10;
/// Reads of a run with hot and with cold caches: enough for some ten milliseconds of the native file.
const RANDOM_WARM: usize = 50_000;
const RANDOM_COLD: usize = 2_000;

/// A workload.
pub(crate) enum Work {
    /// Open, one read, close.
    OpenRead(Vec<CString>),
    /// One file from beginning to end.
    Sequential(CString),
    /// Pages of one file, at these offsets.
    Random(CString, Vec<u64>),
    /// Every directory is listed, every entry is asked for its attributes: `find` with a test that needs them.
    Find,
    /// The attributes of these.
    Lstat(Vec<CString>),
    /// The program `tar` into a pipe. (Into /dev/null it reads no file at all.)
    Tar,
    /// One directory: what `ls -l` of coreutils 9.1 asks, with or without its two questions for extended attributes.
    List { xattrs: bool },
    /// Python imports all modules, which are compiled.
    Start,
    /// Where there is no Python: what it would ask of the file system, roughly.
    StartImitated(Vec<CString>),
}

/// What a run has seen. Both sides must have seen the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

pub(crate) fn has_program(name: &str) -> bool {
    let run = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

impl Work {
    /// Random reads of a tree's largest file; the seed is fixed.
    pub(crate) fn random(made: &Made, is_warm: bool) -> Self {
        let pages = (made.bytes / PAGE as u64).max(1);
        let mut dice = Dice(0x5eed_4400);
        let count = if is_warm { RANDOM_WARM } else { RANDOM_COLD };
        let offsets = (0..count).map(|_| dice.below(pages) * PAGE as u64).collect();
        Self::Random(made.files[0].clone(), offsets)
    }

    /// The start of a program, or an imitation.
    pub(crate) fn start(made: &Made) -> Self {
        if has_program("python3") { Self::Start } else { Self::StartImitated(made.files.clone()) }
    }

    /// The program that is run, if one is: brought back after caches were dropped, for it is not what is measured.
    pub(crate) fn program(&self) -> Option<&'static str> {
        match self {
            Self::Tar => Some("tar"),
            Self::Start => Some("python3"),
            _ => None,
        }
    }

    /// Does it once with the tree at `root`.
    pub(crate) fn run(&self, root: &Path) -> Done {
        let dir = rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .unwrap_or_else(|error| panic!("{}: {error}", root.display()));
        let dir = dir.as_fd();
        match self {
            Self::OpenRead(files) => open_read(dir, files),
            Self::Sequential(file) => sequential(dir, file),
            Self::Random(file, offsets) => random(dir, file, offsets),
            Self::Find => find(dir),
            Self::Lstat(paths) => lstat(dir, paths),
            Self::Tar => tar(root),
            Self::List { xattrs } => list(dir, &root.join("wide"), *xattrs),
            Self::Start => start(root),
            Self::StartImitated(files) => {
                lstat(dir, files);
                open_read(dir, files)
            }
        }
    }
}

fn open(dir: BorrowedFd<'_>, path: &CStr, more: OFlags) -> OwnedFd {
    openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC | more, Mode::empty())
        .unwrap_or_else(|error| panic!("{}: {error}", path.to_string_lossy()))
}

fn open_read(dir: BorrowedFd<'_>, files: &[CString]) -> Done {
    let mut buffer = vec![0; READ_BYTES];
    let mut done = Done::default();
    for path in files {
        let file = open(dir, path, OFlags::empty());
        done.bytes += rustix::io::read(&file, &mut buffer).unwrap() as u64;
        done.entries += 1;
    }
    done
}

fn sequential(dir: BorrowedFd<'_>, path: &CStr) -> Done {
    let mut buffer = vec![0; READ_BYTES];
    let file = open(dir, path, OFlags::empty());
    let mut done = Done { entries: 1, bytes: 0 };
    loop {
        let count = rustix::io::read(&file, &mut buffer).unwrap();
        if count == 0 {
            return done;
        }
        done.bytes += count as u64;
    }
}

fn random(dir: BorrowedFd<'_>, path: &CStr, offsets: &[u64]) -> Done {
    let mut buffer = [0; PAGE];
    let file = open(dir, path, OFlags::empty());
    let mut done = Done { entries: 1, bytes: 0 };
    for offset in offsets {
        done.bytes += rustix::io::pread(&file, &mut buffer, *offset).unwrap() as u64;
    }
    done
}

fn find(root: BorrowedFd<'_>) -> Done {
    let mut done = Done::default();
    let mut buffer = Vec::with_capacity(LIST_BYTES);
    descend(&open(root, c".", OFlags::DIRECTORY), &mut buffer, &mut done);
    done
}

fn descend(dir: &OwnedFd, buffer: &mut Vec<u8>, done: &mut Done) {
    let mut below = Vec::new();
    let mut listing = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let status = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        done.entries += 1;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => below.push(name.to_owned()),
            FileType::RegularFile => done.bytes += u64::try_from(status.st_size).unwrap(),
            _ => {}
        }
    }
    for name in below {
        descend(&open(dir.as_fd(), &name, OFlags::DIRECTORY | OFlags::NOFOLLOW), buffer, done);
    }
}

fn lstat(dir: BorrowedFd<'_>, paths: &[CString]) -> Done {
    let mut done = Done::default();
    for path in paths {
        let status = statat(dir, path, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        done.entries += 1;
        if FileType::from_raw_mode(status.st_mode) == FileType::RegularFile {
            done.bytes += u64::try_from(status.st_size).unwrap();
        }
    }
    done
}

fn list(root: BorrowedFd<'_>, path: &Path, xattrs: bool) -> Done {
    let asked = StatxFlags::MODE
        | StatxFlags::NLINK
        | StatxFlags::UID
        | StatxFlags::GID
        | StatxFlags::MTIME
        | StatxFlags::SIZE;
    let mut done = Done::default();
    let mut buffer = Vec::with_capacity(LIST_BYTES);
    let dir = open(root, c"wide", OFlags::DIRECTORY);
    let mut full = path.as_os_str().as_bytes().to_vec();
    full.push(b'/');
    let folder = full.len();
    let mut value = [0_u8; 255];
    let mut asked_of_xattrs =
        if xattrs { vec![c"security.selinux", c"system.posix_acl_access"] } else { vec![] };
    let mut listing = RawDir::new(&dir, buffer.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name.to_bytes()[0] == b'.' {
            continue;
        }
        let status = statx(&dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, asked).unwrap();
        done.entries += 1;
        done.bytes += status.stx_size;
        asked_of_xattrs.retain(|name| {
            full.truncate(folder);
            full.extend_from_slice(entry.file_name().to_bytes());
            match rustix::fs::lgetxattr(&full[..], *name, &mut value[..]) {
                Err(Errno::NODATA) => true,
                // As `ls`, which asks no more where that is not known at all.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => false,
                other => panic!("these files have no extended attributes: {other:?}"),
            }
        });
    }
    done
}

fn tar(root: &Path) -> Done {
    let mut child = Command::new("tar")
        .args(["--create", "--file=-", "--directory"])
        .arg(root)
        .arg(".")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut from = child.stdout.take().unwrap();
    let mut buffer = vec![0; READ_BYTES];
    let mut done = Done { entries: 1, bytes: 0 };
    loop {
        let count = from.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        done.bytes += count as u64;
    }
    assert!(child.wait().unwrap().success(), "tar of {}", root.display());
    done
}

fn start(root: &Path) -> Done {
    // Isolated, without site packages, and without writing what it compiles: nothing but the tree is read.
    let output = Command::new("python3")
        .args(["-I", "-S", "-B", "-c", "import sys; sys.path.insert(0, sys.argv[1]); import start"])
        .arg(root)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Done { entries: said.trim().parse().unwrap(), bytes: 0 }
}
