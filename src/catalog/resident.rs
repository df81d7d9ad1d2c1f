//! A catalog in memory: its rows in compact columns, found by binary search, without a lock.
//!
//! [`Resident::load`] reads all rows of an SQLite catalog once, with every check ([`Catalog::scan`]), and closes it.
//! What stays of a row is its inode number (8 bytes), the place of its record (4 bytes), and the record:
//!
//! ```text
//! length of the name (1 byte), name
//! LEB128: number of what it shares with other rows, size, seconds (zigzag) and nanoseconds of its time
//! file:                    LEB128 length, then the chunks as the catalog stores them
//! symbolic link:           the target, which has `size` bytes
//! directory:               LEB128 number of the directory
//! directory with a catalog of its own: LEB128 number of that catalog plus 1, or 0 when the tree has none such
//! with extended attributes: LEB128 length, then these as the catalog stores them
//! ```
//!
//! The records stand in the order of the rows, which is that of (directory, name), so a directory is a range of rows.
//! A file with one chunk takes some 70 bytes beside its name.

use super::read::{Catalog, CatalogError, Scanned, Target};
use super::row::{Asked, Xattrs, put, take, unpack_chunks, unpack_xattrs};
use super::{Attributes, FileKind, Inode};
use crate::model::{ChunkRef, ContentId};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// What a row names, beside its name and attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A regular file or a symbolic link.
    Leaf,
    /// A directory whose entries lie in the same catalog under this number.
    Directory(u32),
    /// A directory whose entries lie in a catalog of their own: its number, if the tree has it.
    Nested(Option<u32>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    File,
    Symlink,
    Directory,
    Nested,
}

/// What many rows have in common, kept once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shared {
    uid: u32,
    gid: u32,
    links: u32,
    permissions: u16,
    kind: Kind,
    has_xattrs: bool,
}

/// A directory that has entries here.
#[derive(Clone, Copy, Debug)]
struct Directory {
    number: u32,
    /// Its first entry. They reach to the first one of the next directory.
    first: u32,
    /// The row that names it; [`NO_ROW`] for the top of a nested catalog, and for one that no row names.
    named_by: u32,
}

/// Bytes of a chunk's hash in a list of chunks.
const HASH_BYTES: usize = 32;
/// No row. A catalog of 512 MiB has far fewer.
const NO_ROW: u32 = u32::MAX;

/// All rows of a catalog.
pub(super) struct Resident {
    /// By number.
    directories: Box<[Directory]>,
    /// Where the record of each row begins.
    places: Box<[u32]>,
    records: Box<[u8]>,
    shared: Box<[Shared]>,
    segments: Box<[ContentId]>,
    /// Rows that name nested catalogs.
    nested: Box<[u32]>,
    /// The inode of each row.
    inodes: Arc<[Inode]>,
    /// Rows of files by where they begin on the strata, from when it is first asked for. Not counted: four bytes a file, where
    /// files had to be fetched.
    laid: OnceLock<Box<[u32]>>,
    /// Extended attributes of its rows, as far as programs ask for them everywhere.
    asked: Asked,
}

impl std::fmt::Debug for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resident").field("rows", &self.places.len()).finish_non_exhaustive()
    }
}

/// A record, read up to what depends on its kind.
struct Record<'a> {
    shared: &'a Shared,
    size: u64,
    mtime_s: i64,
    mtime_ns: u32,
    rest: &'a [u8],
}

/// A number that [`Builder`] wrote.
fn number(bytes: &mut &[u8]) -> u64 {
    take(bytes).expect("records are written as they are read")
}

fn number_u32(bytes: &mut &[u8]) -> u32 {
    u32::try_from(number(bytes)).expect("it was a u32 when it was written")
}

/// Bytes that [`Builder`] wrote behind their length.
fn string<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let len = usize::try_from(number(bytes)).expect("it was a usize when it was written");
    let (string, rest) = bytes.split_at(len);
    *bytes = rest;
    string
}

impl Resident {
    /// Reads a catalog. `checked` says that these very bytes were read before; `number_of` numbers the catalogs of the tree.
    ///
    /// # Errors
    /// [`CatalogError`] when it is no catalog, or with the first row that contradicts the format.
    pub(super) fn load(
        bytes: &[u8],
        checked: bool,
        number_of: impl Fn(&ContentId) -> Option<u32>,
    ) -> Result<Self, CatalogError> {
        let catalog = Catalog::open_again(bytes, checked)?;
        let mut builder = Builder::new(bytes.len());
        catalog.scan(|row| builder.add(row, &number_of))?;
        builder.finish(catalog.into_segments())
    }

    /// Extended attributes that some row has, of those for which programs ask everywhere.
    pub(super) fn asked(&self) -> Asked {
        self.asked
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> u32 {
        u32::try_from(self.places.len()).expect("fewer rows than bytes")
    }

    /// The inode of each row.
    pub(super) fn inodes(&self) -> &Arc<[Inode]> {
        &self.inodes
    }

    /// Takes over the inodes of the same catalog that were read before, so that they are kept once. `false` when they differ.
    pub(super) fn share_inodes(&mut self, inodes: &Arc<[Inode]>) -> bool {
        let is_same = self.inodes == *inodes;
        if is_same {
            self.inodes = Arc::clone(inodes);
        }
        is_same
    }

    /// Bytes of memory that it takes, without the inodes, which stay when it goes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&*self.directories)
            + size_of_val(&*self.places)
            + size_of_val(&*self.records)
            + size_of_val(&*self.shared)
            + size_of_val(&*self.segments)
            + size_of_val(&*self.nested)
    }

    /// The rows of a directory's entries, sorted by name.
    pub(super) fn list(&self, directory: u32) -> Range<u32> {
        match self.directories.binary_search_by_key(&directory, |known| known.number) {
            Ok(at) => self.directories[at].first..self.end(at),
            Err(_) => 0..0,
        }
    }

    /// Behind the last entry of a directory.
    fn end(&self, at: usize) -> u32 {
        self.directories.get(at + 1).map_or_else(|| self.rows(), |next| next.first)
    }

    /// The entry `name` of a directory.
    pub(super) fn find(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let Range { mut start, mut end } = self.list(directory);
        while start < end {
            let middle = start + (end - start) / 2;
            match self.name(middle).cmp(name) {
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Less => start = middle + 1,
                std::cmp::Ordering::Greater => end = middle,
            }
        }
        None
    }

    /// The number of the directory that holds a row.
    pub(super) fn directory_of(&self, row: u32) -> u32 {
        let after = self.directories.partition_point(|known| known.first <= row);
        after.checked_sub(1).map_or(0, |at| self.directories[at].number)
    }

    /// The row that names a directory which has entries here, if a row does.
    pub(super) fn named_by(&self, directory: u32) -> Option<u32> {
        let at = self.directories.binary_search_by_key(&directory, |known| known.number).ok()?;
        Some(self.directories[at].named_by).filter(|row| *row != NO_ROW)
    }

    /// Whether one of these rows names a nested catalog that the tree does not have.
    pub(super) fn lacks_nested(&self, rows: &Range<u32>) -> bool {
        let from = self.nested.partition_point(|row| *row < rows.start);
        let mut named = self.nested[from..].iter().take_while(|row| **row < rows.end);
        named.any(|row| self.entry(*row) == Entry::Nested(None))
    }

    /// The nested catalogs that this one names and the tree has, each with the inode of its directory.
    pub(super) fn nested(&self) -> impl Iterator<Item = (Inode, u32)> {
        self.nested.iter().filter_map(|row| match self.entry(*row) {
            Entry::Nested(Some(catalog)) => Some((self.inodes[*row as usize], catalog)),
            _ => None,
        })
    }

    /// The name of a row.
    pub(super) fn name(&self, row: u32) -> &[u8] {
        let record = &self.records[self.places[row as usize] as usize..];
        &record[1..=usize::from(record[0])]
    }

    fn record(&self, row: u32) -> Record<'_> {
        let record = &self.records[self.places[row as usize] as usize..];
        let mut rest = &record[1 + usize::from(record[0])..];
        let shared = &self.shared[number_u32(&mut rest) as usize];
        let size = number(&mut rest);
        let mtime_s = unzigzag(number(&mut rest));
        let mtime_ns = number_u32(&mut rest);
        Record { shared, size, mtime_s, mtime_ns, rest }
    }

    /// The attributes of a row.
    pub(super) fn attributes(&self, row: u32) -> Attributes {
        let Record { shared, size, mtime_s, mtime_ns, .. } = self.record(row);
        Attributes {
            inode: self.inodes[row as usize],
            kind: match shared.kind {
                Kind::File => FileKind::File,
                Kind::Symlink => FileKind::Symlink,
                Kind::Directory | Kind::Nested => FileKind::Directory,
            },
            permissions: shared.permissions,
            uid: shared.uid,
            gid: shared.gid,
            size,
            links: shared.links,
            mtime_s,
            mtime_ns,
        }
    }

    /// What a row names.
    pub(super) fn entry(&self, row: u32) -> Entry {
        let mut record = self.record(row);
        match record.shared.kind {
            Kind::File | Kind::Symlink => Entry::Leaf,
            Kind::Directory => Entry::Directory(number_u32(&mut record.rest)),
            Kind::Nested => {
                let after = number(&mut record.rest);
                let catalog = after.checked_sub(1).map(|number| u32::try_from(number).expect("it was a u32"));
                Entry::Nested(catalog)
            }
        }
    }

    /// The chunks of a row that is a file; `None` for another.
    ///
    /// # Errors
    /// None: they were checked when the catalog was loaded.
    pub(super) fn chunks(&self, row: u32) -> Option<Result<Vec<ChunkRef>, String>> {
        let mut record = self.record(row);
        let packed = (record.shared.kind == Kind::File).then(|| string(&mut record.rest))?;
        Some(unpack_chunks(packed, &self.segments, record.size))
    }

    /// Where a file's first chunk begins: number of its segment here, and offset. `None` for what has no chunk.
    fn begins(&self, row: u32) -> Option<(u64, u64)> {
        let mut record = self.record(row);
        let mut packed = (record.shared.kind == Kind::File).then(|| string(&mut record.rest))?;
        packed = packed.get(HASH_BYTES..)?;
        let segment = number(&mut packed);
        let _ordinal = number(&mut packed);
        Some((segment, number(&mut packed)))
    }

    /// Chunks of the files that begin in `bytes` of a segment, in the order in which they lie there, of files of at most `most_bytes`.
    pub(super) fn laid_in(&self, segment: &ContentId, bytes: &Range<u64>, most_bytes: u64) -> Vec<ChunkRef> {
        let Some(segment) = self.segments.iter().position(|known| known == segment) else {
            return Vec::new();
        };
        let laid = self.laid.get_or_init(|| {
            let mut rows: Vec<u32> = (0..self.rows()).filter(|row| self.begins(*row).is_some()).collect();
            rows.sort_unstable_by_key(|row| (self.begins(*row), *row));
            rows.into()
        });
        // Numbers of segments count from 1.
        let at = |offset| laid.partition_point(|row| self.begins(*row) < Some((segment as u64 + 1, offset)));
        let rows = laid.get(at(bytes.start)..at(bytes.end)).unwrap_or_default();
        let small = rows.iter().filter(|row| self.record(**row).size <= most_bytes);
        small.filter_map(|row| self.chunks(*row)).flatten().flatten().collect()
    }

    /// The target of a row that is a symbolic link; `None` for another.
    pub(super) fn link_target(&self, row: u32) -> Option<&[u8]> {
        let record = self.record(row);
        let len = usize::try_from(record.size).ok()?;
        (record.shared.kind == Kind::Symlink).then(|| &record.rest[..len])
    }

    /// The extended attributes of a row.
    ///
    /// # Errors
    /// None: they were checked when the catalog was loaded.
    pub(super) fn xattrs(&self, row: u32) -> Result<Xattrs, String> {
        let Record { shared, size, mut rest, .. } = self.record(row);
        if !shared.has_xattrs {
            return Ok(Xattrs::from([]));
        }
        match shared.kind {
            Kind::File => {
                string(&mut rest);
            }
            Kind::Symlink => rest = &rest[usize::try_from(size).unwrap_or(rest.len())..],
            Kind::Directory | Kind::Nested => {
                number(&mut rest);
            }
        }
        unpack_xattrs(string(&mut rest))
    }
}

/// Small numbers of either sign become small numbers.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// A [`Resident`] in the making.
struct Builder {
    directories: Vec<Directory>,
    /// Directories and the rows that name them.
    names: Vec<(u32, u32)>,
    places: Vec<u32>,
    records: Vec<u8>,
    shared: Vec<Shared>,
    numbers: HashMap<Shared, u32>,
    nested: Vec<u32>,
    inodes: Vec<Inode>,
    asked: Asked,
}

impl Builder {
    /// `bytes` is the length of the catalog, which is about that of the records.
    fn new(bytes: usize) -> Self {
        Self {
            directories: Vec::new(),
            names: Vec::new(),
            places: Vec::new(),
            records: Vec::with_capacity(bytes),
            shared: Vec::new(),
            numbers: HashMap::new(),
            nested: Vec::new(),
            inodes: Vec::new(),
            asked: Asked::default(),
        }
    }

    /// The number of what a row shares; most often that of the row before it.
    fn share(&mut self, shared: Shared) -> u32 {
        let next = u32::try_from(self.shared.len()).expect("fewer than rows");
        *self.numbers.entry(shared).or_insert_with(|| {
            self.shared.push(shared);
            next
        })
    }

    fn add(
        &mut self,
        row: &Scanned<'_>,
        number_of: impl Fn(&ContentId) -> Option<u32>,
    ) -> Result<(), CatalogError> {
        let too_long = || CatalogError::NotACatalog("records of more than 4 GiB".to_owned());
        let place = u32::try_from(self.records.len()).map_err(|_| too_long())?;
        let at = u32::try_from(self.places.len()).map_err(|_| too_long())?;
        let Attributes { inode, permissions, uid, gid, size, links, mtime_s, mtime_ns, .. } = row.attributes;
        let kind = match row.target {
            Target::File => Kind::File,
            Target::Symlink => Kind::Symlink,
            Target::Directory(_) => Kind::Directory,
            Target::Nested(_) => Kind::Nested,
        };
        let has_xattrs = !row.xattrs.is_empty();
        let shared = self.share(Shared { uid, gid, links, permissions, kind, has_xattrs });
        if self.directories.last().is_none_or(|last| last.number != row.directory) {
            self.directories.push(Directory { number: row.directory, first: at, named_by: NO_ROW });
        }
        let records = &mut self.records;
        records.push(u8::try_from(row.name.len()).expect("a name has at most 255 bytes"));
        records.extend_from_slice(row.name);
        put(records, shared.into());
        put(records, size);
        put(records, zigzag(mtime_s));
        put(records, mtime_ns.into());
        match row.target {
            Target::File => {
                put(records, row.content.len() as u64);
                records.extend_from_slice(row.content);
            }
            Target::Symlink => records.extend_from_slice(row.content),
            Target::Directory(number) => {
                put(records, number.into());
                self.names.push((number, at));
            }
            Target::Nested(id) => {
                put(records, number_of(&id).map_or(0, |number| u64::from(number) + 1));
                self.nested.push(at);
            }
        }
        if has_xattrs {
            self.asked.0 |= Asked::in_xattrs(row.xattrs).0;
            put(records, row.xattrs.len() as u64);
            records.extend_from_slice(row.xattrs);
        }
        self.places.push(place);
        self.inodes.push(inode);
        Ok(())
    }

    fn finish(mut self, segments: Vec<ContentId>) -> Result<Resident, CatalogError> {
        // A directory has one name; together with the rule that numbers grow downwards, there are no loops.
        self.names.sort_unstable();
        if let Some(pair) = self.names.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let detail = format!("directory {} has a second name", pair[0].0);
            return Err(CatalogError::NotACatalog(detail));
        }
        for directory in &mut self.directories {
            if let Ok(found) = self.names.binary_search_by_key(&directory.number, |name| name.0) {
                directory.named_by = self.names[found].1;
            }
        }
        Ok(Resident {
            directories: self.directories.into(),
            places: self.places.into(),
            records: self.records.into(),
            shared: self.shared.into(),
            segments: segments.into(),
            nested: self.nested.into(),
            inodes: self.inodes.into(),
            laid: OnceLock::new(),
            asked: self.asked,
        })
    }
}
