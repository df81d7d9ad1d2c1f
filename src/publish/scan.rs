//! Walks the tree and cuts what is new into chunks.

use super::PublishError;
use super::pack::Packer;
use super::previous::{PastDirectory, PastEntries, Previous};
use super::run::Progress;
use super::table::{ChunkTable, Number};
use crate::catalog::{
    Attributes, DIRECTORY_MAX_ENTRIES, FileKind, Inode, LINK_TARGET_MAX_BYTES, NAME_MAX_BYTES,
    XATTRS_MAX_BYTES, Xattr, Xattrs,
};
use crate::chunk::{Chunking, cut};
use crate::model::{ContentId, limits};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

/// How often a file that changes while it is read is read again.
const ATTEMPTS: u32 = 3;
/// Most entries: what their numbers can count.
const ENTRIES_MAX: u32 = u32::MAX;

/// What an entry of the tree is.
#[derive(Debug)]
pub(super) enum Content {
    /// A file and its chunks, in order.
    File(Box<[Number]>),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A directory and its entries, sorted by name.
    Directory(Box<[u32]>),
    /// Another name of an inode whose first name is that entry.
    SameAs(u32),
}

/// An entry of the tree. Its inode is not numbered yet.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Box<[u8]>,
    pub(super) attributes: Attributes,
    pub(super) xattrs: Xattrs,
    pub(super) content: Content,
}

/// The whole tree. Entry 0 is its root.
#[derive(Debug, Default)]
pub(super) struct ScannedTree {
    pub(super) entries: Vec<Entry>,
    /// Names of regular files, and their plain bytes, hard-linked ones counted once.
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Sockets, devices and pipes that were left out.
    pub(super) skipped: u64,
    /// Chunks that were not known.
    pub(super) new_chunks: u64,
}

/// What scanning needs.
pub(super) struct Scanner<'a> {
    pub(super) table: &'a mut ChunkTable,
    pub(super) packer: &'a mut Packer,
    pub(super) previous: Option<&'a Previous>,
    pub(super) chunking: &'a Chunking,
    /// Read files even when size and time are those of the previous revision.
    pub(super) checksum: bool,
    pub(super) progress: &'a mut dyn FnMut(Progress),
    tree: ScannedTree,
    /// First entry of each inode with several names.
    linked: HashMap<(u64, u64), u32>,
    buffer: Vec<u8>,
    path: PathBuf,
    no_xattrs: Xattrs,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(
        table: &'a mut ChunkTable,
        packer: &'a mut Packer,
        previous: Option<&'a Previous>,
        chunking: &'a Chunking,
        checksum: bool,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        Self {
            table,
            packer,
            previous,
            chunking,
            checksum,
            progress,
            tree: ScannedTree::default(),
            linked: HashMap::new(),
            buffer: Vec::new(),
            path: PathBuf::new(),
            no_xattrs: Xattrs::from([]),
        }
    }

    /// Walks the tree below `top`, a directory.
    pub(super) fn scan(mut self, top: PathBuf) -> Result<ScannedTree, PublishError> {
        self.path = top;
        let metadata = fs::metadata(&self.path).map_err(|source| self.unreadable(source))?;
        let past = self.previous.map(Previous::top).transpose()?;
        let root =
            self.add(b"", attributes(&metadata, FileKind::Directory, 0), Content::Directory([].into()))?;
        self.directory(root, past.as_ref())?;
        Ok(self.tree)
    }

    fn unreadable(&self, source: io::Error) -> PublishError {
        PublishError::Read { path: self.path.clone(), source }
    }

    fn unfit(&self, detail: String) -> PublishError {
        PublishError::Unfit { path: self.path.clone(), detail }
    }

    fn add(&mut self, name: &[u8], attributes: Attributes, content: Content) -> Result<u32, PublishError> {
        let number = u32::try_from(self.tree.entries.len()).ok().filter(|number| *number < ENTRIES_MAX);
        let number = number.ok_or(PublishError::TooManyEntries { most: ENTRIES_MAX })?;
        let xattrs = self.xattrs()?;
        self.tree.entries.push(Entry { name: name.into(), attributes, xattrs, content });
        Ok(number)
    }

    /// Fills in the directory at `self.path`. Recursion is as deep as a path can be, 2 048 levels.
    fn directory(&mut self, number: u32, past: Option<&PastDirectory>) -> Result<(), PublishError> {
        let past_entries = match (self.previous, past) {
            (Some(previous), Some(directory)) => previous.entries(directory)?,
            _ => PastEntries::default(),
        };
        let mut names: Vec<OsString> = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|source| self.unreadable(source))? {
            names.push(entry.map_err(|source| self.unreadable(source))?.file_name());
            if names.len() > DIRECTORY_MAX_ENTRIES {
                return Err(self.unfit(format!("more than {DIRECTORY_MAX_ENTRIES} entries")));
            }
        }
        names.sort_unstable();
        let mut children = Vec::with_capacity(names.len());
        let mut directories = Vec::new();
        for name in names {
            self.path.push(&name);
            let metadata = fs::symlink_metadata(&self.path).map_err(|source| self.unreadable(source))?;
            if metadata.is_dir() {
                directories.push((name, metadata));
            } else if let Some(child) = self.leaf(&name, &metadata, &past_entries)? {
                children.push(child);
            }
            self.path.pop();
        }
        let links = u32::try_from(directories.len()).unwrap_or(u32::MAX).saturating_add(2);
        for (name, metadata) in directories {
            self.path.push(&name);
            let attributes = attributes(&metadata, FileKind::Directory, 0);
            let child = self.add(self.checked(&name)?, attributes, Content::Directory([].into()))?;
            let past = match self.previous {
                Some(previous) => previous.subdirectory(&past_entries, name.as_bytes())?,
                None => None,
            };
            self.directory(child, past.as_ref())?;
            children.push(child);
            self.path.pop();
        }
        children.sort_unstable_by(|a, b| self.name(*a).cmp(self.name(*b)));
        let entry = &mut self.tree.entries[number as usize];
        entry.attributes.links = links;
        entry.content = Content::Directory(children.into());
        Ok(())
    }

    fn name(&self, number: u32) -> &[u8] {
        &self.tree.entries[number as usize].name
    }

    fn checked<'n>(&self, name: &'n OsStr) -> Result<&'n [u8], PublishError> {
        let name = name.as_bytes();
        if name.len() <= NAME_MAX_BYTES {
            Ok(name)
        } else {
            Err(self.unfit(format!("a name of {} bytes", name.len())))
        }
    }

    /// An entry that is no directory; `None` for what cannot be published.
    fn leaf(
        &mut self,
        name: &OsStr,
        metadata: &Metadata,
        past: &PastEntries,
    ) -> Result<Option<u32>, PublishError> {
        let kind = metadata.file_type();
        if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
            tracing::warn!(path = %self.path.display(), "neither file, directory nor symbolic link: left out");
            self.tree.skipped += 1;
            return Ok(None);
        }
        let bytes = self.checked(name)?;
        let inode = (metadata.dev(), metadata.ino());
        if let Some(first) = self.linked.get(&inode).copied().filter(|_| metadata.nlink() > 1) {
            let entry = &mut self.tree.entries[first as usize];
            entry.attributes.links = entry.attributes.links.saturating_add(1);
            self.tree.files += u64::from(entry.attributes.kind == FileKind::File);
            let attributes = entry.attributes;
            return self.add(bytes, attributes, Content::SameAs(first)).map(Some);
        }
        let child = if kind.is_symlink() {
            let target = fs::read_link(&self.path).map_err(|source| self.unreadable(source))?;
            let target = target.into_os_string().into_vec();
            if target.len() > LINK_TARGET_MAX_BYTES {
                return Err(self.unfit(format!("a link target of {} bytes", target.len())));
            }
            let attributes = attributes(metadata, FileKind::Symlink, target.len() as u64);
            self.add(bytes, attributes, Content::Symlink(target.into()))?
        } else {
            let (attributes, chunks) = self.file(bytes, metadata, past)?;
            self.tree.files += 1;
            self.tree.bytes += attributes.size;
            (self.progress)(Progress { files: self.tree.files, bytes: self.tree.bytes });
            self.add(bytes, attributes, Content::File(chunks.into()))?
        };
        if metadata.nlink() > 1 {
            self.linked.insert(inode, child);
        }
        Ok(Some(child))
    }

    /// The attributes and chunks of a regular file.
    fn file(
        &mut self,
        name: &[u8],
        metadata: &Metadata,
        past: &PastEntries,
    ) -> Result<(Attributes, Vec<Number>), PublishError> {
        if !self.checksum {
            let found = attributes(metadata, FileKind::File, metadata.len());
            let same = |past: &Attributes| {
                (past.size, past.mtime_s, past.mtime_ns) == (found.size, found.mtime_s, found.mtime_ns)
            };
            let known = past.chunks(name, same)?;
            // A chunk that is no longer there is not in the table: then the file is read.
            let numbers = known.and_then(|chunks| {
                chunks.iter().map(|chunk| self.table.find(&chunk.id)).collect::<Option<Vec<_>>>()
            });
            if let Some(numbers) = numbers {
                return Ok((found, numbers));
            }
        }
        for _ in 0..ATTEMPTS {
            // Not through a symbolic link, and without waiting at a pipe, if the file is one by now.
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
            let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path);
            let file = file.map_err(|source| self.unreadable(source))?;
            let before = file.metadata().map_err(|source| self.unreadable(source))?;
            let (chunks, read) = self.chunks(&file, before.len())?;
            let after = file.metadata().map_err(|source| self.unreadable(source))?;
            let state =
                |m: &Metadata| (m.is_file(), m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
            if before.is_file() && state(&before) == state(&after) && read == before.len() {
                return Ok((attributes(&before, FileKind::File, read), chunks));
            }
        }
        Err(PublishError::Changing { path: self.path.clone(), attempts: ATTEMPTS })
    }

    /// Cuts an opened file. Chunks that are new go to the packer.
    fn chunks(&mut self, file: &File, size: u64) -> Result<(Vec<Number>, u64), PublishError> {
        let Self { table, packer, tree, path, buffer, .. } = self;
        let mut numbers = Vec::new();
        // One byte more than expected shows that it grew; a file that grows for ever is not followed.
        let read = cut::<Failed>(file.take(size.saturating_add(1)), size, self.chunking, buffer, |chunk| {
            let plain_len = u32::try_from(chunk.len()).expect("chunks are at most CHUNK_MAX_BYTES");
            debug_assert!(plain_len <= limits::CHUNK_MAX_BYTES);
            let id = ContentId::of(chunk);
            let (number, is_new) = table.number(id, plain_len).ok_or(Failed::TooMany)?;
            if is_new {
                tree.new_chunks += 1;
                packer.push(id, chunk.to_vec());
            }
            numbers.push(number);
            Ok(())
        });
        let read = read.map_err(|failed| match failed {
            Failed::Io(source) => PublishError::Read { path: path.clone(), source },
            Failed::TooMany => PublishError::TooManyEntries { most: u32::MAX },
        })?;
        Ok((numbers, read))
    }

    /// Extended attributes of what lies at `self.path`, symbolic links not followed.
    fn xattrs(&self) -> Result<Xattrs, PublishError> {
        let names = match xattr::list(&self.path) {
            Ok(names) => names,
            // A file system without extended attributes has none.
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => return Ok(self.no_xattrs.clone()),
            Err(error) => return Err(self.unreadable(error)),
        };
        let mut found: Vec<Xattr> = Vec::new();
        let mut bytes = 0;
        for name in names {
            // `None`: removed since it was listed.
            let value = xattr::get(&self.path, &name).map_err(|source| self.unreadable(source))?;
            if let Some(value) = value {
                bytes += name.len() + value.len() + 8;
                found.push((name.into_vec().into(), value.into()));
            }
        }
        if bytes > XATTRS_MAX_BYTES {
            return Err(
                self.unfit(format!("{bytes} bytes of extended attributes; {XATTRS_MAX_BYTES} are allowed"))
            );
        }
        if found.is_empty() {
            return Ok(self.no_xattrs.clone());
        }
        found.sort_unstable();
        Ok(found.into())
    }
}

/// Why cutting stopped.
enum Failed {
    Io(io::Error),
    TooMany,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn attributes(metadata: &Metadata, kind: FileKind, size: u64) -> Attributes {
    Attributes {
        inode: Inode(0),
        kind,
        permissions: u16::try_from(metadata.mode() & 0o7777).expect("twelve bits"),
        uid: metadata.uid(),
        gid: metadata.gid(),
        size,
        links: 1,
        mtime_s: metadata.mtime(),
        mtime_ns: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
    }
}
