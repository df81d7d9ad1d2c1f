//! What every catalog looks like to SQLite, and how a foreign one is opened.

use super::read::CatalogError;
use crate::model::limits;
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, MAIN_DB, OpenFlags};

/// "STAR" in ASCII: tells a catalog from other SQLite files.
pub(super) const APPLICATION_ID: i32 = 0x5354_4152;
/// Version of the catalog format that is written and read.
pub(super) const VERSION: i32 = 1;
/// Bytes of a page: the kernel's, and the unit that changes.
pub(super) const PAGE_BYTES: usize = 4096;
/// Largest row: the chunk list of a file of 1.4 TB.
pub(super) const ROW_MAX_BYTES: i32 = 64 << 20;

/// Kinds of entries, as stored.
pub(super) mod kind {
    pub(in super::super) const FILE: i64 = 0;
    pub(in super::super) const DIRECTORY: i64 = 1;
    pub(in super::super) const SYMLINK: i64 = 2;
    pub(in super::super) const NESTED: i64 = 3;
}

/// The tables, to the letter, in the order of their names.
pub(super) const TABLES: [(&str, &str); 2] = [
    (
        "entry",
        "CREATE TABLE entry(parent INTEGER NOT NULL, name BLOB NOT NULL, kind INTEGER NOT NULL, \
         inode INTEGER NOT NULL, permissions INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, \
         size INTEGER NOT NULL, links INTEGER NOT NULL, mtime_s INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, \
         directory INTEGER, content BLOB, xattrs BLOB, PRIMARY KEY(parent, name)) WITHOUT ROWID",
    ),
    ("segment", "CREATE TABLE segment(number INTEGER PRIMARY KEY, id BLOB NOT NULL)"),
];

/// Looks at the 100 bytes of an SQLite header before SQLite does.
fn check_header(bytes: &[u8]) -> Result<(), CatalogError> {
    let wrong = |detail: String| Err(CatalogError::NotACatalog(detail));
    if bytes.len() > limits::CATALOG_MAX_BYTES as usize {
        return wrong(format!("{} bytes; at most {} are allowed", bytes.len(), limits::CATALOG_MAX_BYTES));
    }
    if bytes.len() < PAGE_BYTES || !bytes.len().is_multiple_of(PAGE_BYTES) {
        return wrong(format!("{} bytes are not whole pages of {PAGE_BYTES}", bytes.len()));
    }
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    if !bytes.starts_with(b"SQLite format 3\0") {
        return wrong("no SQLite header".to_owned());
    }
    let (application, version) = (number(68).cast_signed(), number(60).cast_signed());
    if application != APPLICATION_ID {
        return wrong(format!("application id {application:#x}"));
    }
    if version != VERSION {
        return Err(CatalogError::Version { found: version });
    }
    // Page size, rollback-journal format for reading and writing, no reserved bytes; page count; free pages; UTF-8.
    let layout = [bytes[16], bytes[17], bytes[18], bytes[19], bytes[20]];
    let pages = number(28) as usize * PAGE_BYTES;
    if layout != [0x10, 0, 1, 1, 0] || pages != bytes.len() || number(36) != 0 || number(56) != 1 {
        return wrong(format!("header with layout {layout:?}, {pages} bytes in pages, {} free", number(36)));
    }
    Ok(())
}

/// Opens a catalog from outside: in memory, read-only, its schema trusted in nothing.
///
/// `checked`: SQLite has looked through these very bytes before.
pub(super) fn open(bytes: &[u8], checked: bool) -> Result<Connection, CatalogError> {
    check_header(bytes)?;
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_in_memory_with_flags(flags)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    db.deserialize_read_exact(MAIN_DB, bytes, bytes.len(), true)?;
    db.set_limit(Limit::SQLITE_LIMIT_LENGTH, ROW_MAX_BYTES)?;
    db.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, 4096)?;
    db.set_limit(Limit::SQLITE_LIMIT_COLUMN, 32)?;
    db.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    // With a mapping as large as the file, pages are read in place instead of being copied into a page cache.
    db.execute_batch(&format!(
        "PRAGMA cell_size_check=ON; PRAGMA query_only=ON; PRAGMA cache_size=16; PRAGMA mmap_size={};",
        limits::CATALOG_MAX_BYTES
    ))?;
    check_schema(&db)?;
    if !checked {
        check_integrity(&db)?;
    }
    Ok(db)
}

fn check_schema(db: &Connection) -> Result<(), CatalogError> {
    let mut statement = db.prepare("SELECT type, name, sql FROM sqlite_schema ORDER BY name LIMIT 3")?;
    let mut rows = statement.query([])?;
    for (name, sql) in TABLES {
        let found: Option<(String, String, String)> = rows
            .next()?
            .map(|row| Ok::<_, rusqlite::Error>((row.get(0)?, row.get(1)?, row.get(2)?)))
            .transpose()?;
        if !found.as_ref().is_some_and(|f| f.0 == "table" && f.1 == name && f.2 == sql) {
            return Err(CatalogError::NotACatalog(format!("table {name} is {found:?}")));
        }
    }
    match rows.next()? {
        None => Ok(()),
        Some(row) => Err(CatalogError::NotACatalog(format!("there is also {:?}", row.get::<_, String>(1)?))),
    }
}

fn check_integrity(db: &Connection) -> Result<(), CatalogError> {
    let verdict: String = db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(CatalogError::NotACatalog(format!("SQLite says: {verdict}")));
    }
    // A directory has one name; together with the rule that numbers grow downwards, there are no loops.
    let doubled: i64 = db.query_row(
        "SELECT count(directory) - count(DISTINCT directory) FROM entry WHERE directory IS NOT NULL",
        [],
        |row| row.get(0),
    )?;
    if doubled != 0 {
        return Err(CatalogError::NotACatalog(format!("{doubled} directories have a second name")));
    }
    Ok(())
}
