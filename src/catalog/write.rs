//! Writing one catalog: the same rows give the same bytes.

use super::row::{Xattr, pack_chunks, pack_xattrs};
use super::schema::{APPLICATION_ID, PAGE_BYTES, ROW_MAX_BYTES, TABLES, VERSION, kind};
use super::{Attributes, LINK_TARGET_MAX_BYTES, NAME_MAX_BYTES};
use crate::model::{ChunkRef, ContentId, limits};
use rusqlite::{Connection, MAIN_DB, params};
use std::collections::HashMap;

/// Why a catalog cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// An entry is out of bounds.
    #[error("entry `{}`: {detail}", name.escape_ascii())]
    Entry {
        /// Its name.
        name: Vec<u8>,
        /// The offending value.
        detail: String,
    },
    /// The catalog would be longer than any reader accepts.
    #[error("a catalog of {bytes} bytes; at most {} are allowed", limits::CATALOG_MAX_BYTES)]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// SQLite failed (for want of memory).
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// What an entry names.
#[derive(Clone, Copy, Debug)]
pub enum NewContent<'a> {
    /// A file with these chunks.
    File(&'a [ChunkRef]),
    /// A symbolic link with this target.
    Symlink(&'a [u8]),
    /// A directory whose entries lie in this catalog under this number.
    Directory(u32),
    /// A directory whose entries lie in the nested catalog of this name.
    Nested(ContentId),
}

/// One row to be written.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry<'a> {
    /// Number of the directory that holds it; 0 for the root of the tree alone.
    pub parent: u32,
    /// Its name; empty for the root of the tree alone.
    pub name: &'a [u8],
    /// Its attributes.
    pub attributes: &'a Attributes,
    /// Extended attributes, sorted by name.
    pub xattrs: &'a [Xattr],
    /// What it names.
    pub content: NewContent<'a>,
}

/// Writes one catalog in memory. Rows come in the order of (parent, name).
#[derive(Debug)]
pub struct CatalogWriter {
    db: Connection,
    segments: HashMap<ContentId, i64>,
}

impl CatalogWriter {
    /// An empty catalog.
    ///
    /// # Errors
    /// When SQLite has no memory.
    pub fn new() -> Result<Self, WriteError> {
        let db = Connection::open_in_memory()?;
        db.execute_batch(&format!(
            "PRAGMA page_size={PAGE_BYTES}; PRAGMA encoding='UTF-8'; PRAGMA journal_mode=OFF; \
             PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION}; BEGIN; {}; {};",
            TABLES[0].1, TABLES[1].1
        ))?;
        Ok(Self { db, segments: HashMap::new() })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`WriteError::Entry`] when it is out of bounds or out of order.
    pub fn add(&mut self, entry: &NewEntry<'_>) -> Result<(), WriteError> {
        let wrong = |detail: String| WriteError::Entry { name: entry.name.to_vec(), detail };
        check_name(entry).map_err(wrong)?;
        let attributes = entry.attributes;
        let (kind, directory, content) = match entry.content {
            NewContent::File(chunks) => (kind::FILE, None, self.pack(chunks)?),
            NewContent::Symlink(target) => {
                if target.is_empty() || target.len() > LINK_TARGET_MAX_BYTES || target.contains(&0) {
                    return Err(wrong(format!("a link target of {} bytes", target.len())));
                }
                (kind::SYMLINK, None, Some(target.to_vec()))
            }
            NewContent::Directory(number) => (kind::DIRECTORY, Some(number), None),
            NewContent::Nested(id) => (kind::NESTED, None, Some(id.digest().to_vec())),
        };
        let xattrs = pack_xattrs(entry.xattrs).map_err(wrong)?;
        let row_bytes = content.as_ref().map_or(0, Vec::len) + xattrs.as_ref().map_or(0, Vec::len) + 1024;
        if row_bytes > ROW_MAX_BYTES as usize {
            return Err(wrong(format!("a row of {row_bytes} bytes; at most {ROW_MAX_BYTES} are allowed")));
        }
        let signed =
            |what: &str, number: u64| i64::try_from(number).map_err(|_| wrong(format!("{what} {number}")));
        self.db
            .prepare_cached("INSERT INTO entry VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14)")?
            .execute(params![
                entry.parent,
                entry.name,
                kind,
                signed("inode", attributes.inode.0)?,
                attributes.permissions,
                attributes.uid,
                attributes.gid,
                signed("size", attributes.size)?,
                attributes.links,
                attributes.mtime_s,
                attributes.mtime_ns,
                directory,
                content,
                xattrs,
            ])?;
        Ok(())
    }

    /// The catalog's bytes.
    ///
    /// # Errors
    /// [`WriteError::TooLong`], or when SQLite has no memory.
    pub fn finish(mut self) -> Result<Vec<u8>, WriteError> {
        self.db.flush_prepared_statement_cache();
        self.db.execute_batch("COMMIT")?;
        let bytes = self.db.serialize(MAIN_DB)?.to_vec();
        if bytes.len() > limits::CATALOG_MAX_BYTES as usize {
            return Err(WriteError::TooLong { bytes: bytes.len() });
        }
        Ok(bytes)
    }

    fn pack(&mut self, chunks: &[ChunkRef]) -> Result<Option<Vec<u8>>, WriteError> {
        if chunks.is_empty() {
            return Ok(None);
        }
        for ChunkRef { place, .. } in chunks {
            if !self.segments.contains_key(&place.segment) {
                let number = i64::try_from(self.segments.len()).expect("fewer segments than chunks") + 1;
                self.db
                    .prepare_cached("INSERT INTO segment VALUES (?1, ?2)")?
                    .execute(params![number, place.segment.digest()])?;
                self.segments.insert(place.segment, number);
            }
        }
        Ok(Some(pack_chunks(chunks, |segment| self.segments[segment].cast_unsigned())))
    }
}

fn check_name(entry: &NewEntry<'_>) -> Result<(), String> {
    let is_top = entry.parent == 0;
    if is_top != entry.name.is_empty() {
        return Err(format!(
            "an entry of directory {} with a name of {} bytes",
            entry.parent,
            entry.name.len()
        ));
    }
    if is_top || is_name(entry.name) { Ok(()) } else { Err("not a name".to_owned()) }
}

/// Whether a directory may hold an entry of that name.
pub(super) fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX_BYTES).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|b| matches!(b, b'/' | 0))
}
