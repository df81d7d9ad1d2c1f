//! A tree as its reader sees it, and all ways in which two trees can differ.
//!
//! Both sides are read by the same code: every file to its end, by several threads. What belongs to
//! the file system rather than to the tree is left out: inode numbers, sizes and link counts of
//! directories, access and change times.

use crate::model::ContentId;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most names in a tree, to bound the memory of a reading: far above any software tree seen (a guess).
pub const ENTRIES_MAX: usize = 10_000_000;
/// Bytes that a reader takes in one call: what FUSE carries in one request.
const BUFFER_BYTES: usize = 1 << 20;
/// Largest extended attribute: the kernel's own bound (`XATTR_SIZE_MAX`).
const ATTRIBUTE_MAX_BYTES: usize = 64 << 10;

/// One name of a tree with all that two equal trees have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, i64),
    /// Extended attributes by name.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A regular file.
    File {
        /// Bytes that `stat` promises and that were read.
        size: u64,
        /// BLAKE3 of what was read.
        content: ContentId,
        /// The first name, in order, of the same inode. Equal groups have equal first names.
        first_name: Vec<u8>,
    },
}

/// A tree that was read completely: path from its root (empty for the root) to entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    entries: BTreeMap<Vec<u8>, Entry>,
}

/// Why a tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A call failed.
    #[error("{}: {source}", .path.display())]
    Io {
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither file, directory nor symbolic link.
    #[error("{}: a {kind} cannot be compared", .path.display())]
    Special {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The file ended before, or went on after, the size that `stat` told.
    #[error("{}: {read} bytes could be read, stat promised {promised}", .path.display())]
    Length {
        /// Which.
        path: PathBuf,
        /// Bytes read.
        read: u64,
        /// Bytes promised.
        promised: u64,
    },
    /// More names than [`ENTRIES_MAX`].
    #[error("more than {ENTRIES_MAX} names")]
    TooMany,
    /// [`Watch::stopped`] said so.
    #[error("interrupted")]
    Stopped,
}

/// Told of progress, asked whether to go on. Called from all reading threads.
pub trait Watch: Sync {
    /// `bytes` more were read.
    fn read(&self, bytes: u64);
    /// Whether the reading shall end with [`ReadError::Stopped`].
    fn stopped(&self) -> bool;
}

/// Watches nothing.
impl Watch for () {
    fn read(&self, _bytes: u64) {}
    fn stopped(&self) -> bool {
        false
    }
}

impl Manifest {
    /// Reads the tree under `root`, files by `readers` threads at once (1 at least).
    ///
    /// # Errors
    /// [`ReadError`] of the first failure.
    pub fn read(root: &Path, readers: usize, watch: &dyn Watch) -> Result<Self, ReadError> {
        let names = walk(root, watch)?;
        let mut first_names: BTreeMap<(u64, u64), &[u8]> = BTreeMap::new();
        for (name, metadata) in &names {
            // The names come in order, so the first of an inode stays.
            first_names.entry((metadata.dev(), metadata.ino())).or_insert(name);
        }
        let entries = Mutex::new(BTreeMap::new());
        let failure = Mutex::new(None);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buffer = vec![0; BUFFER_BYTES];
            while let Some((name, metadata)) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                let first_name = first_names[&(metadata.dev(), metadata.ino())];
                match entry(root, name, metadata, first_name, &mut buffer, watch) {
                    Ok(entry) => lock(&entries).insert(name.clone(), entry),
                    Err(error) => {
                        next.store(names.len(), Ordering::Relaxed);
                        lock(&failure).get_or_insert(error);
                        return;
                    }
                };
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..readers.max(1) {
                scope.spawn(work);
            }
        });
        match lock(&failure).take() {
            Some(error) => Err(error),
            None => Ok(Self { entries: std::mem::take(&mut *lock(&entries)) }),
        }
    }

    /// Number of regular files, names of one inode counted once.
    pub fn files(&self) -> u64 {
        self.distinct_files().count() as u64
    }

    /// Bytes of all regular files, names of one inode counted once.
    pub fn bytes(&self) -> u64 {
        self.distinct_files().sum()
    }

    /// Bytes of all regular files, each name counted: what a reading of the tree reads.
    pub fn bytes_of_all_names(&self) -> u64 {
        let size = |entry: &Entry| if let Kind::File { size, .. } = entry.kind { size } else { 0 };
        self.entries.values().map(size).sum()
    }

    /// Number of names, the root not counted.
    pub fn names(&self) -> usize {
        self.entries.len().saturating_sub(1)
    }

    fn distinct_files(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().filter_map(|(name, entry)| match &entry.kind {
            Kind::File { size, first_name, .. } if first_name == name => Some(*size),
            _ => None,
        })
    }

    /// All differences of `copy` from this tree, in order of the names.
    pub fn differences(&self, copy: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        for (name, mine) in &self.entries {
            let path = || PathBuf::from(OsStr::from_bytes(name));
            match copy.entries.get(name) {
                None => found.push(Difference { path: path(), what: What::Missing }),
                Some(theirs) => {
                    found.extend(mine.differences(theirs).map(|what| Difference { path: path(), what }));
                }
            }
        }
        for name in copy.entries.keys().filter(|name| !self.entries.contains_key(*name)) {
            found.push(Difference { path: OsStr::from_bytes(name).into(), what: What::Surplus });
        }
        found
    }
}

/// One way in which a copy differs from its original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Path from the root of the tree; empty for the root itself.
    pub path: PathBuf,
    /// What differs there.
    pub what: What,
}

/// What differs. Original first, copy second.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum What {
    /// The copy lacks the name.
    #[error("is missing")]
    Missing,
    /// The copy has a name that the original lacks.
    #[error("is not in the original")]
    Surplus,
    /// File, directory or link.
    #[error("is of another type")]
    Type,
    /// The target of a symbolic link.
    #[error("points elsewhere")]
    Target,
    /// The size of a file.
    #[error("has {1} bytes instead of {0}")]
    Size(u64, u64),
    /// The bytes of a file.
    #[error("has other content")]
    Content,
    /// Which names share an inode.
    #[error("is hard-linked to other names")]
    HardLinks,
    /// Permission bits.
    #[error("has mode {1:04o} instead of {0:04o}")]
    Mode(u32, u32),
    /// Owner and group.
    #[error("belongs to {}:{} instead of {}:{}", .1.0, .1.1, .0.0, .0.1)]
    Owner((u32, u32), (u32, u32)),
    /// Modification time.
    #[error("was modified at {}.{:09} instead of {}.{:09}", .1.0, .1.1, .0.0, .0.1)]
    Mtime((i64, i64), (i64, i64)),
    /// Names or values of extended attributes.
    #[error("has other extended attributes")]
    Attributes,
}

impl Entry {
    fn differences(&self, copy: &Self) -> impl Iterator<Item = What> {
        let (kind, more) = match (&self.kind, &copy.kind) {
            (Kind::Directory, Kind::Directory) => (None, None),
            (Kind::Symlink(mine), Kind::Symlink(theirs)) => ((mine != theirs).then_some(What::Target), None),
            (
                Kind::File { size, content, first_name },
                Kind::File { size: size2, content: content2, first_name: first_name2 },
            ) => {
                let bytes = if size != size2 {
                    Some(What::Size(*size, *size2))
                } else {
                    (content != content2).then_some(What::Content)
                };
                (bytes, (first_name != first_name2).then_some(What::HardLinks))
            }
            _ => (Some(What::Type), None),
        };
        let owner = ((self.uid, self.gid), (copy.uid, copy.gid));
        [
            kind,
            more,
            (self.mode != copy.mode).then_some(What::Mode(self.mode, copy.mode)),
            (owner.0 != owner.1).then_some(What::Owner(owner.0, owner.1)),
            (self.mtime != copy.mtime).then_some(What::Mtime(self.mtime, copy.mtime)),
            (self.attributes != copy.attributes).then_some(What::Attributes),
        ]
        .into_iter()
        .flatten()
    }
}

/// All names under `root` in order, with what `lstat` says of them. Other file systems are entered.
fn walk(root: &Path, watch: &dyn Watch) -> Result<Vec<(Vec<u8>, Metadata)>, ReadError> {
    let mut found = BTreeMap::new();
    let mut open = vec![Vec::new()];
    found.insert(Vec::new(), fs::symlink_metadata(root).map_err(|e| failed(root, e))?);
    while let Some(directory) = open.pop() {
        if watch.stopped() {
            return Err(ReadError::Stopped);
        }
        let path = at(root, &directory);
        for child in fs::read_dir(&path).map_err(|e| failed(&path, e))? {
            let child = child.map_err(|e| failed(&path, e))?;
            let metadata = fs::symlink_metadata(child.path()).map_err(|e| failed(&child.path(), e))?;
            let mut name = directory.clone();
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend(child.file_name().into_vec());
            if metadata.is_dir() {
                open.push(name.clone());
            }
            found.insert(name, metadata);
            if found.len() > ENTRIES_MAX {
                return Err(ReadError::TooMany);
            }
        }
    }
    Ok(found.into_iter().collect())
}

fn entry(
    root: &Path,
    name: &[u8],
    metadata: &Metadata,
    first_name: &[u8],
    buffer: &mut [u8],
    watch: &dyn Watch,
) -> Result<Entry, ReadError> {
    let path = at(root, name);
    let kind = if metadata.is_dir() {
        Kind::Directory
    } else if metadata.is_symlink() {
        let target = fs::read_link(&path).map_err(|e| failed(&path, e))?;
        Kind::Symlink(target.into_os_string().into_vec())
    } else if metadata.is_file() {
        // Every name is read, also when another name of the inode was read before: a reader may do so.
        let content = read_file(&path, metadata.len(), buffer, watch)?;
        Kind::File { size: metadata.len(), content, first_name: first_name.to_vec() }
    } else {
        return Err(ReadError::Special { path, kind: special(metadata) });
    };
    Ok(Entry {
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        attributes: attributes(&path)?,
    })
}

fn read_file(
    path: &Path,
    promised: u64,
    buffer: &mut [u8],
    watch: &dyn Watch,
) -> Result<ContentId, ReadError> {
    let mut file = File::open(path).map_err(|e| failed(path, e))?;
    let mut hasher = blake3::Hasher::new();
    let mut read = 0;
    loop {
        if watch.stopped() {
            return Err(ReadError::Stopped);
        }
        let count = match file.read(buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(path, error)),
        };
        hasher.update(&buffer[..count]);
        read += count as u64;
        watch.read(count as u64);
        if read > promised {
            break;
        }
    }
    if read != promised {
        return Err(ReadError::Length { path: path.to_owned(), read, promised });
    }
    Ok(ContentId::blake3(*hasher.finalize().as_bytes()))
}

/// Extended attributes of the name itself, not of what a link points to.
fn attributes(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ReadError> {
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(path, error)),
    };
    let mut found = BTreeMap::new();
    for name in names {
        // Gone between the two calls: then it is not there.
        if let Some(mut value) = xattr::get(path, &name).map_err(|e| failed(path, e))? {
            value.truncate(ATTRIBUTE_MAX_BYTES);
            found.insert(name.into_vec(), value);
        }
    }
    Ok(found)
}

fn special(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_fifo() {
        "named pipe"
    } else if kind.is_socket() {
        "socket"
    } else {
        "device"
    }
}

fn at(root: &Path, name: &[u8]) -> PathBuf {
    if name.is_empty() { root.to_owned() } else { root.join(OsStr::from_bytes(name)) }
}

fn failed(path: &Path, source: io::Error) -> ReadError {
    ReadError::Io { path: path.to_owned(), source }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    /// A tree with one of everything.
    fn tree() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), b"content").unwrap();
        fs::write(root.join("other"), vec![7; 3 << 20]).unwrap();
        fs::write(root.join("empty"), b"").unwrap();
        fs::hard_link(root.join("other"), root.join("sub/linked")).unwrap();
        symlink("sub/file", root.join("link")).unwrap();
        fs::write(root.join(OsStr::from_bytes(b"\xff\xfe")), b"no UTF-8").unwrap();
        for name in ["sub/file", "other", "empty", "sub", "."] {
            set_mtime(&root.join(name), 1_000_000_000, 123_456_789);
        }
        set_mtime(&root.join(OsStr::from_bytes(b"\xff\xfe")), 1_000_000_000, 1);
        set_mtime(&root.join("link"), 1_000_000_000, 1);
        set_mtime(root, 1_000_000_000, 1);
        dir
    }

    fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    fn read(dir: &TempDir) -> Manifest {
        Manifest::read(dir.path(), 3, &()).unwrap()
    }

    /// What the comparison finds after `change`, as text.
    fn found(change: impl Fn(&Path)) -> Vec<String> {
        let (original, copy) = (tree(), tree());
        change(copy.path());
        for name in ["sub", "."] {
            set_mtime(&copy.path().join(name), 1_000_000_000, 123_456_789);
        }
        set_mtime(copy.path(), 1_000_000_000, 1);
        let differences = read(&original).differences(&read(&copy));
        differences.iter().map(|d| format!("{} {}", d.path.display(), d.what)).collect()
    }

    #[test]
    fn equal_trees_have_no_differences_and_inodes_count_once() {
        assert_eq!(found(|_| ()), Vec::<String>::new());
        let manifest = read(&tree());
        assert_eq!((manifest.files(), manifest.names()), (4, 7));
        assert_eq!(manifest.bytes(), 7 + (3 << 20) + 8);
        assert_eq!(manifest.bytes_of_all_names(), 7 + 2 * (3 << 20) + 8);
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let keep_time = |root: &Path, name: &str| set_mtime(&root.join(name), 1_000_000_000, 123_456_789);
        assert_eq!(found(|r| fs::remove_file(r.join("empty")).unwrap()), ["empty is missing"]);
        assert_eq!(found(|r| fs::write(r.join("new"), b"").unwrap()), ["new is not in the original"]);
        assert_eq!(
            found(|r| {
                fs::write(r.join("sub/file"), b"c0ntent").unwrap();
                keep_time(r, "sub/file");
            }),
            ["sub/file has other content"]
        );
        assert_eq!(
            found(|r| {
                fs::write(r.join("empty"), b"not").unwrap();
                keep_time(r, "empty");
            }),
            ["empty has 3 bytes instead of 0"]
        );
        assert_eq!(
            found(|r| fs::set_permissions(r.join("empty"), fs::Permissions::from_mode(0o4711)).unwrap()),
            ["empty has mode 4711 instead of 0644"]
        );
        assert_eq!(
            found(|r| set_mtime(&r.join("empty"), 1_000_000_000, 123_456_788)),
            ["empty was modified at 1000000000.123456788 instead of 1000000000.123456789"]
        );
        assert_eq!(
            found(|r| {
                fs::remove_file(r.join("link")).unwrap();
                symlink("elsewhere", r.join("link")).unwrap();
                set_mtime(&r.join("link"), 1_000_000_000, 1);
            }),
            ["link points elsewhere"]
        );
        assert_eq!(
            found(|r| {
                fs::remove_file(r.join("sub/linked")).unwrap();
                fs::copy(r.join("other"), r.join("sub/linked")).unwrap();
                keep_time(r, "sub/linked");
            }),
            ["sub/linked is hard-linked to other names"]
        );
    }

    #[test]
    fn another_type_owner_or_attribute_is_found() {
        let types = found(|r| {
            fs::remove_file(r.join("empty")).unwrap();
            fs::create_dir(r.join("empty")).unwrap();
        });
        assert!(types.contains(&"empty is of another type".to_owned()), "{types:?}");
        let with = |change: fn(&mut Entry)| {
            let original = read(&tree());
            let mut copy = original.clone();
            change(copy.entries.get_mut(b"empty".as_slice()).unwrap());
            original.differences(&copy).into_iter().map(|d| d.what).collect::<Vec<_>>()
        };
        assert!(matches!(with(|e| e.uid += 1)[..], [What::Owner(..)]));
        assert!(matches!(with(|e| e.gid += 1)[..], [What::Owner(..)]));
        let attribute = |e: &mut Entry| {
            e.attributes.insert(b"user.x".to_vec(), vec![1]);
        };
        assert!(matches!(with(attribute)[..], [What::Attributes]));
    }

    #[test]
    fn attributes_are_read_from_the_disk() {
        let dir = tree();
        let path = dir.path().join("empty");
        if xattr::set(&path, "user.starling", b"yes").is_err() {
            // Some file systems have none; then there is nothing to read either.
            return;
        }
        let entry = &read(&dir).entries[b"empty".as_slice()];
        assert_eq!(entry.attributes[b"user.starling".as_slice()], b"yes");
    }

    #[test]
    fn what_cannot_be_compared_is_an_error_that_names_it() {
        let dir = tree();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let error = Manifest::read(dir.path(), 2, &()).unwrap_err().to_string();
        assert!(error.contains("pipe: a named pipe"), "{error}");
        let missing = Manifest::read(Path::new("/nowhere"), 1, &()).unwrap_err().to_string();
        assert!(missing.contains("/nowhere"), "{missing}");
    }

    #[test]
    fn a_reading_can_be_stopped() {
        struct Stop;
        impl Watch for Stop {
            fn read(&self, _: u64) {}
            fn stopped(&self) -> bool {
                true
            }
        }
        let error = Manifest::read(tree().path(), 2, &Stop).unwrap_err();
        assert!(matches!(error, ReadError::Stopped), "{error}");
    }
}
