//! Reading one catalog. Every value is checked when it is read, whoever wrote it.

use super::row::{each_chunk, each_xattr, unpack_chunks};
use super::schema::{self, kind};
use super::write::is_name;
use super::{Attributes, DIRECTORY_MAX_ENTRIES, FileKind, Inode, LINK_TARGET_MAX_BYTES};
use crate::model::{ChunkRef, ContentId, limits};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The columns that [`read_row`] takes, in this order, and those behind them.
macro_rules! columns {
    ($content:literal) => {
        concat!(
            "name, kind, inode, permissions, uid, gid, size, links, mtime_s, mtime_ns, directory, ",
            $content
        )
    };
}

/// As much of the content as a look-up or a listing needs.
macro_rules! walked {
    () => {
        columns!("CASE kind WHEN 3 THEN content END")
    };
}

/// Why a catalog cannot be read. The hash was right, so its publisher wrote it so.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A later format.
    #[error("catalog format version {found} is not known; this program reads version {}", schema::VERSION)]
    Version {
        /// What it states.
        found: i32,
    },
    /// It is not an SQLite database of the right shape.
    #[error("not a catalog: {0}")]
    NotACatalog(String),
    /// A row contradicts the format.
    #[error("entry `{}` of directory {directory}: {detail}", name.escape_ascii())]
    Row {
        /// Number of the directory.
        directory: u32,
        /// Name of the entry.
        name: Vec<u8>,
        /// The offending value.
        detail: String,
    },
    /// SQLite refused.
    #[error("SQLite: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// What an entry names, as far as it matters for walking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A directory whose entries lie in this catalog under this number.
    Directory(u32),
    /// A directory whose entries lie in the nested catalog of this name.
    Nested(ContentId),
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name; empty for the root of the tree.
    pub name: Arc<[u8]>,
    /// Its attributes.
    pub attributes: Attributes,
    /// What it names.
    pub target: Target,
}

/// A row of [`Catalog::scan`], everything about it checked.
pub(super) struct Scanned<'a> {
    /// Number of the directory that holds it; 0 for the root of the tree.
    pub(super) directory: u32,
    pub(super) name: &'a [u8],
    pub(super) attributes: Attributes,
    pub(super) target: Target,
    /// A file's packed chunks or a link's target; empty for what has neither.
    pub(super) content: &'a [u8],
    /// Packed extended attributes; empty when there are none.
    pub(super) xattrs: &'a [u8],
}

/// An opened catalog, for those who go through it once. A mounted tree reads it into columns of its own.
#[derive(Debug)]
pub struct Catalog {
    db: Mutex<Connection>,
    segments: Vec<ContentId>,
    bytes: usize,
}

impl Catalog {
    /// Number of the directory at which a catalog is mounted.
    pub const TOP: u32 = 1;

    /// Opens a catalog from its bytes and looks all through it, which takes about 10 ms a megabyte.
    ///
    /// # Errors
    /// [`CatalogError`] when it is not one.
    pub fn open(bytes: &[u8]) -> Result<Self, CatalogError> {
        Self::open_again(bytes, false)
    }

    /// As [`Catalog::open`]; `checked` says that these very bytes were looked through before.
    pub(super) fn open_again(bytes: &[u8], checked: bool) -> Result<Self, CatalogError> {
        let db = schema::open(bytes, checked)?;
        let segments = {
            let mut statement = db.prepare("SELECT number, id FROM segment ORDER BY number")?;
            let mut rows = statement.query([])?;
            let mut segments = Vec::new();
            while let Some(row) = rows.next()? {
                let (number, id) = (row.get::<_, i64>(0)?, row.get_ref(1)?);
                let id = digest(id).filter(|_| usize::try_from(number) == Ok(segments.len() + 1));
                segments
                    .push(id.ok_or_else(|| CatalogError::NotACatalog(format!("segment number {number}")))?);
            }
            segments
        };
        Ok(Self { db: Mutex::new(db), segments, bytes: bytes.len() })
    }

    /// Length of the catalog, in bytes: about what it costs in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The attributes of the tree's root, which only the root catalog has.
    ///
    /// # Errors
    /// [`CatalogError`] when they are missing or contradict the format.
    pub fn top(&self) -> Result<Attributes, CatalogError> {
        let db = self.lock();
        let mut statement =
            db.prepare_cached(concat!("SELECT ", walked!(), " FROM entry WHERE parent=0 AND name=x''"))?;
        let mut rows = statement.query([])?;
        match rows.next()?.map(|row| read_row(row, 0)).transpose()? {
            Some((_, attributes, Target::Directory(Self::TOP))) => Ok(attributes),
            _ => Err(no_top()),
        }
    }

    /// All entries of a directory, sorted by name.
    ///
    /// # Errors
    /// [`CatalogError`] when a row contradicts the format, or there are too many.
    pub fn list(&self, directory: u32) -> Result<Vec<Row>, CatalogError> {
        let db = self.lock();
        let mut statement =
            db.prepare_cached(concat!("SELECT ", walked!(), " FROM entry WHERE parent=?1 ORDER BY name"))?;
        let mut rows = statement.query(params![directory])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            if found.len() == DIRECTORY_MAX_ENTRIES {
                return Err(too_many(directory));
            }
            let (name, attributes, target) = read_row(row, directory)?;
            found.push(Row { name: name.into(), attributes, target });
        }
        Ok(found)
    }

    /// The chunks of a file, in the order of its bytes; they add up to its size.
    ///
    /// # Errors
    /// [`CatalogError`] when there is no such file or its chunks contradict the format.
    pub fn chunks(&self, directory: u32, name: &[u8]) -> Result<Vec<ChunkRef>, CatalogError> {
        let wrong = |detail: String| CatalogError::Row { directory, name: name.to_vec(), detail };
        let db = self.lock();
        let mut statement =
            db.prepare_cached("SELECT content, size FROM entry WHERE parent=?1 AND name=?2 AND kind=0")?;
        let mut rows = statement.query(params![directory, name])?;
        let row = rows.next()?.ok_or_else(|| wrong("no such file".to_owned()))?;
        let size = row.get::<_, i64>(1)?;
        let size = u64::try_from(size).map_err(|_| wrong(format!("size {size}")))?;
        let packed = match row.get_ref(0)? {
            ValueRef::Null => &[][..],
            ValueRef::Blob(packed) => packed,
            other => return Err(wrong(format!("chunks of type {}", other.data_type()))),
        };
        unpack_chunks(packed, &self.segments, size).map_err(wrong)
    }

    /// The nested catalogs that this one names, in walk order.
    ///
    /// # Errors
    /// [`CatalogError`] when a name is malformed.
    pub fn nested(&self) -> Result<Vec<ContentId>, CatalogError> {
        let db = self.lock();
        let mut statement =
            db.prepare_cached("SELECT content FROM entry WHERE kind=3 ORDER BY parent, name")?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let id = digest(row.get_ref(0)?);
            found.push(
                id.ok_or_else(|| CatalogError::NotACatalog("a nested catalog without a hash".to_owned()))?,
            );
        }
        Ok(found)
    }

    /// Calls `each` with the chunks of every file, in row order. What a publisher knows already comes from here.
    ///
    /// # Errors
    /// [`CatalogError`] when a row contradicts the format.
    pub fn each_chunks(&self, mut each: impl FnMut(Vec<ChunkRef>)) -> Result<(), CatalogError> {
        let db = self.lock();
        let mut statement = db.prepare_cached(
            "SELECT parent, name, content, size FROM entry WHERE kind=0 AND content IS NOT NULL ORDER BY parent, name",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let wrong = |detail: String| CatalogError::Row {
                directory: row.get(0).unwrap_or(0),
                name: row.get(1).unwrap_or_default(),
                detail,
            };
            let packed = row.get_ref(2)?.as_blob().map_err(|error| wrong(error.to_string()))?;
            let size = row.get::<_, i64>(3)?.cast_unsigned();
            each(unpack_chunks(packed, &self.segments, size).map_err(wrong)?);
        }
        Ok(())
    }

    /// Looks at every row, its content and its extended attributes.
    ///
    /// # Errors
    /// [`CatalogError`] with the first that contradicts the format: what nobody could mount.
    pub fn check_rows(&self) -> Result<(), CatalogError> {
        self.scan(|_| Ok(()))
    }

    /// Calls `each` with every row, in the order of directories and names, when everything about it was checked.
    ///
    /// It relies on nothing that SQLite promises of a sound database: rows ascend strictly, so no page comes twice,
    /// and they have no more bytes than the catalog, so no rows share theirs to blow it up.
    pub(super) fn scan(
        &self,
        mut each: impl FnMut(&Scanned<'_>) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let db = self.lock();
        let mut statement = db.prepare(concat!(
            "SELECT ",
            columns!("content, xattrs, parent"),
            " FROM entry ORDER BY parent, name"
        ))?;
        let mut rows = statement.query([])?;
        let (mut last, mut last_name) = (None, Vec::new());
        let (mut entries, mut bytes) = (0_usize, 0_usize);
        while let Some(row) = rows.next()? {
            let directory = row.get_ref(13)?.as_i64().ok().and_then(|number| u32::try_from(number).ok());
            let directory =
                directory.ok_or_else(|| CatalogError::NotACatalog("a row without a directory".to_owned()))?;
            let (name, attributes, target) = read_row(row, directory)?;
            let content = content(row, directory, name, &attributes, &self.segments)?;
            let xattrs = xattrs(row, directory, name)?;
            bytes += name.len() + content.len() + xattrs.len();
            if bytes > self.bytes {
                return Err(CatalogError::NotACatalog("more bytes in rows than in all".to_owned()));
            }
            if last.is_some_and(|last| (last, &last_name[..]) >= (directory, name)) {
                let detail = format!("rows out of order in directory {directory}");
                return Err(CatalogError::NotACatalog(detail));
            }
            entries = if last == Some(directory) { entries + 1 } else { 1 };
            if entries > DIRECTORY_MAX_ENTRIES {
                return Err(too_many(directory));
            }
            last = Some(directory);
            last_name.clear();
            last_name.extend_from_slice(name);
            each(&Scanned { directory, name, attributes, target, content, xattrs })?;
        }
        Ok(())
    }

    /// The segments of the catalog, by number from 1; the database is closed.
    pub(super) fn into_segments(self) -> Vec<ContentId> {
        self.segments
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // Reading leaves nothing half-done behind.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(value: ValueRef<'_>) -> Option<ContentId> {
    value.as_blob().ok().and_then(|blob| <[u8; 32]>::try_from(blob).ok()).map(ContentId::blake3)
}

pub(super) fn no_top() -> CatalogError {
    CatalogError::NotACatalog("no root directory in it".to_owned())
}

fn too_many(directory: u32) -> CatalogError {
    let detail = format!("directory {directory} has more than {DIRECTORY_MAX_ENTRIES} entries");
    CatalogError::NotACatalog(detail)
}

/// The content of a row of [`Catalog::scan`] as far as it is kept: packed chunks, or the target of a link.
fn content<'r>(
    row: &'r rusqlite::Row<'_>,
    directory: u32,
    name: &[u8],
    attributes: &Attributes,
    segments: &[ContentId],
) -> Result<&'r [u8], CatalogError> {
    let wrong = |detail: String| CatalogError::Row { directory, name: name.to_vec(), detail };
    match attributes.kind {
        FileKind::Directory => Ok(&[]),
        FileKind::File => {
            let packed = match row.get_ref(11)? {
                ValueRef::Null => &[][..],
                ValueRef::Blob(packed) => packed,
                other => return Err(wrong(format!("chunks of type {}", other.data_type()))),
            };
            each_chunk(packed, segments, attributes.size, |_| ()).map_err(wrong)?;
            Ok(packed)
        }
        FileKind::Symlink => {
            let target = row.get_ref(11)?.as_blob().map_err(|error| wrong(error.to_string()))?;
            let sane = (1..=LINK_TARGET_MAX_BYTES).contains(&target.len()) && !target.contains(&0);
            if !sane || attributes.size != target.len() as u64 {
                return Err(wrong(format!("a target of {} bytes, size {}", target.len(), attributes.size)));
            }
            Ok(target)
        }
    }
}

/// The packed extended attributes of a row of [`Catalog::scan`].
fn xattrs<'r>(row: &'r rusqlite::Row<'_>, directory: u32, name: &[u8]) -> Result<&'r [u8], CatalogError> {
    let wrong = |detail: String| CatalogError::Row { directory, name: name.to_vec(), detail };
    let packed = row.get_ref(12)?.as_blob_or_null().map_err(|error| wrong(error.to_string()))?;
    let packed = packed.unwrap_or_default();
    each_xattr(packed, |_, _| ()).map_err(wrong)?;
    Ok(packed)
}

/// Name, attributes and target of a row. `directory` is the number of the one that holds it.
fn read_row<'r>(
    row: &'r rusqlite::Row<'_>,
    directory: u32,
) -> Result<(&'r [u8], Attributes, Target), CatalogError> {
    // What is no blob is no name either; the empty name of the root must be a blob as well.
    let name = row.get_ref(0)?.as_blob();
    let is_blob = name.is_ok();
    let name = name.unwrap_or_default();
    let wrong = |detail: String| CatalogError::Row { directory, name: name.to_vec(), detail };
    let number = |column: usize, what: &str, most: u64| -> Result<u64, CatalogError> {
        let found = row.get_ref(column)?.as_i64().map_err(|error| wrong(format!("{what}: {error}")))?;
        let number = u64::try_from(found).ok().filter(|number| *number <= most);
        number.ok_or_else(|| wrong(format!("{what} is {found}")))
    };
    let small = |column, what, most: u32| {
        number(column, what, most.into()).map(|number| u32::try_from(number).expect("at most `most`"))
    };
    let is_top = directory == 0;
    if !is_blob || is_top != name.is_empty() || !is_top && !is_name(name) {
        return Err(wrong("not a name".to_owned()));
    }
    let (kind, target) = match row.get_ref(1)?.as_i64().unwrap_or(-1) {
        kind::FILE => (FileKind::File, Target::File),
        kind::SYMLINK => (FileKind::Symlink, Target::Symlink),
        kind::DIRECTORY => {
            let number = small(10, "directory number", u32::MAX)?;
            // Numbers grow downwards, so a walk comes to an end.
            if number <= directory {
                return Err(wrong(format!("directory {number} below directory {directory}")));
            }
            (FileKind::Directory, Target::Directory(number))
        }
        kind::NESTED => {
            let id = digest(row.get_ref(11)?)
                .ok_or_else(|| wrong("a nested catalog without a hash".to_owned()))?;
            (FileKind::Directory, Target::Nested(id))
        }
        other => return Err(wrong(format!("kind {other}"))),
    };
    let inode = number(2, "inode", i64::MAX.cast_unsigned())?;
    if inode == 0 || (inode == Inode::ROOT.0) != is_top {
        return Err(wrong(format!("inode {inode}")));
    }
    let attributes = Attributes {
        inode: Inode(inode),
        kind,
        permissions: u16::try_from(small(3, "permissions", 0o7777)?).expect("at most 0o7777"),
        uid: small(4, "uid", u32::MAX)?,
        gid: small(5, "gid", u32::MAX)?,
        size: number(6, "size", i64::MAX.cast_unsigned())?,
        links: small(7, "links", u32::MAX)?.max(1),
        mtime_s: row.get_ref(8)?.as_i64().map_err(|error| wrong(error.to_string()))?,
        mtime_ns: small(9, "nanoseconds", 999_999_999)?,
    };
    let size_is_sane = match kind {
        FileKind::File => true,
        FileKind::Directory => attributes.size == 0,
        FileKind::Symlink => (1..=LINK_TARGET_MAX_BYTES as u64).contains(&attributes.size),
    };
    if !size_is_sane || attributes.size / u64::from(limits::CHUNK_MAX_BYTES) > u64::from(u32::MAX) {
        return Err(wrong(format!("size {}", attributes.size)));
    }
    Ok((name, attributes, target))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{CatalogWriter, NewContent, NewEntry, Xattr};
    use super::*;
    use crate::model::Place;
    use proptest::prelude::*;

    pub(in super::super) fn attributes(inode: u64, kind: FileKind, size: u64) -> Attributes {
        Attributes {
            inode: Inode(inode),
            kind,
            permissions: 0o4755,
            uid: 1000,
            gid: 100,
            size,
            links: 1,
            mtime_s: -5,
            mtime_ns: 999_999_999,
        }
    }

    fn chunk(text: &[u8], plain_len: u32) -> ChunkRef {
        let place = Place { segment: ContentId::of(&text[..1]), ordinal: 3, offset: 70_000, stored_len: 40 };
        ChunkRef { id: ContentId::of(text), plain_len, place }
    }

    /// A catalog with every kind of entry, some of them `many` times.
    pub(in super::super) fn sample(many: u32) -> Vec<u8> {
        let mut writer = CatalogWriter::new().unwrap();
        let xattrs: [Xattr; 1] = [(b"user.a".as_slice().into(), b"value".as_slice().into())];
        let directory = |inode| attributes(inode, FileKind::Directory, 0);
        let mut add = |parent, name: &[u8], attributes: Attributes, content: NewContent<'_>| {
            let entry = NewEntry { parent, name, attributes: &attributes, xattrs: &xattrs, content };
            writer.add(&entry).unwrap();
        };
        add(0, b"", directory(1), NewContent::Directory(1));
        add(1, b"a-dir", directory(2), NewContent::Directory(2));
        add(1, b"b-nested", directory(3), NewContent::Nested(ContentId::of(b"nested")));
        add(1, b"c-link", attributes(4, FileKind::Symlink, 6), NewContent::Symlink(b"target"));
        add(1, b"d-\xff\n", attributes(5, FileKind::File, 0), NewContent::File(&[]));
        for n in 0..many {
            let name = format!("file-{n:06}");
            let chunks = [chunk(name.as_bytes(), 1000), chunk(b"shared", 24)];
            add(
                2,
                name.as_bytes(),
                attributes(10 + u64::from(n), FileKind::File, 1024),
                NewContent::File(&chunks),
            );
        }
        writer.finish().unwrap()
    }

    #[test]
    fn everything_that_was_written_is_read_back() {
        let catalog = Catalog::open(&sample(3)).unwrap();
        assert_eq!(catalog.top().unwrap(), attributes(1, FileKind::Directory, 0));
        let names: Vec<_> = catalog.list(1).unwrap().iter().map(|row| row.name.to_vec()).collect();
        assert_eq!(names, [&b"a-dir"[..], b"b-nested", b"c-link", b"d-\xff\n"]);
        assert_eq!(catalog.list(1).unwrap()[0].target, Target::Directory(2));
        assert_eq!(catalog.nested().unwrap(), [ContentId::of(b"nested")]);
        assert_eq!(catalog.chunks(1, b"d-\xff\n").unwrap(), []);
        let chunks = catalog.chunks(2, b"file-000001").unwrap();
        assert_eq!(chunks, [chunk(b"file-000001", 1000), chunk(b"shared", 24)]);
        let mut count = 0;
        catalog.each_chunks(|chunks| count += chunks.len()).unwrap();
        assert_eq!(count, 6);
        assert!(catalog.chunks(1, b"c-link").is_err());
        catalog.check_rows().unwrap();
    }

    #[test]
    fn the_same_rows_give_the_same_bytes() {
        assert!(sample(500) == sample(500));
    }

    #[test]
    fn a_row_with_one_chunk_or_two_costs_little() {
        let bytes = sample(20_000).len() / 20_000;
        assert!(bytes < 230, "{bytes} bytes a row of two chunks");
    }

    #[test]
    fn a_later_version_is_refused_with_its_number() {
        let mut bytes = sample(1);
        bytes[63] = 2;
        assert!(matches!(Catalog::open(&bytes), Err(CatalogError::Version { found: 2 })));
    }

    /// A database that differs from a catalog by `sql`.
    pub(in super::super) fn tampered(sql: &str) -> Vec<u8> {
        let bytes = sample(3);
        let mut db = Connection::open_in_memory().unwrap();
        db.deserialize_read_exact(rusqlite::MAIN_DB, &bytes[..], bytes.len(), false).unwrap();
        db.execute_batch(sql).unwrap();
        db.serialize(rusqlite::MAIN_DB).unwrap().to_vec()
    }

    #[test]
    fn another_schema_is_refused() {
        for sql in [
            "CREATE TABLE more(x)",
            "CREATE VIEW entries AS SELECT * FROM entry",
            "CREATE TRIGGER t AFTER INSERT ON entry BEGIN SELECT 1; END",
            "DROP TABLE segment; VACUUM",
            "ALTER TABLE segment RENAME COLUMN id TO digest",
        ] {
            assert!(matches!(Catalog::open(&tampered(sql)), Err(CatalogError::NotACatalog(_))), "{sql}");
        }
    }

    #[test]
    fn rows_that_contradict_the_format_are_refused_when_they_are_read() {
        for sql in [
            "UPDATE entry SET name=x'2e2e' WHERE name=x'632d6c696e6b'",
            "UPDATE entry SET name=x'612f62' WHERE name=x'632d6c696e6b'",
            "UPDATE entry SET kind=7 WHERE parent=1",
            "UPDATE entry SET inode=0 WHERE parent=1",
            "UPDATE entry SET inode=1 WHERE parent=1",
            "UPDATE entry SET inode=-3 WHERE parent=1",
            "UPDATE entry SET permissions=65535 WHERE parent=1",
            "UPDATE entry SET mtime_ns=1000000000 WHERE parent=1",
            "UPDATE entry SET size=-1 WHERE parent=1",
            "UPDATE entry SET size='x' WHERE parent=1",
            "UPDATE entry SET directory=1 WHERE parent=1 AND kind=1; UPDATE entry SET directory=5 WHERE parent=0",
            "UPDATE entry SET content=x'00' WHERE kind=3",
        ] {
            let catalog = Catalog::open(&tampered(sql)).unwrap();
            assert!(catalog.list(1).is_err() && catalog.check_rows().is_err(), "{sql}");
        }
    }

    #[test]
    fn two_names_for_one_directory_are_refused() {
        let sql = "UPDATE entry SET kind=1, directory=2, content=NULL WHERE kind=3";
        assert!(matches!(Catalog::open(&tampered(sql)), Err(CatalogError::NotACatalog(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn tampered_catalogs_never_panic(spots in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
            let mut bytes = sample(40);
            for (at, value) in spots {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            if let Ok(catalog) = Catalog::open(&bytes) {
                let _ = (catalog.top(), catalog.nested(), catalog.each_chunks(|_| ()), catalog.check_rows());
                for directory in 0..3 {
                    for row in catalog.list(directory).unwrap_or_default() {
                        let _ = catalog.chunks(directory, &row.name);
                    }
                }
            }
        }
    }
}
