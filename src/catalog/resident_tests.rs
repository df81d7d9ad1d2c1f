//! A resident catalog says what SQLite says of the same bytes, and no bytes make it panic.

use super::read::tests::{attributes, sample, tampered};
use super::resident::{Entry, Resident};
use super::row::unpack_xattrs;
use super::{Catalog, CatalogError, CatalogWriter, FileKind, Inode, NewContent, NewEntry};
use crate::model::{ChunkRef, ContentId, Place};
use proptest::prelude::*;

fn load(bytes: &[u8]) -> Result<Resident, CatalogError> {
    Resident::load(bytes, false, |_| Some(7))
}

#[test]
fn everything_that_was_written_is_read_back() {
    let catalog = load(&sample(3)).unwrap();
    assert_eq!(catalog.rows(), 8);
    let top = catalog.find(0, b"").unwrap();
    assert_eq!(catalog.attributes(top), attributes(1, FileKind::Directory, 0));
    assert_eq!(catalog.entry(top), Entry::Directory(Catalog::TOP));
    let names: Vec<_> = catalog.list(1).map(|row| catalog.name(row)).collect();
    assert_eq!(names, [&b"a-dir"[..], b"b-nested", b"c-link", b"d-\xff\n"]);
    let find = |name: &[u8]| catalog.find(1, name).unwrap();
    assert_eq!(catalog.entry(find(b"a-dir")), Entry::Directory(2));
    assert_eq!(catalog.entry(find(b"b-nested")), Entry::Nested(Some(7)));
    assert_eq!(catalog.nested().collect::<Vec<_>>(), [(Inode(3), 7)]);
    assert_eq!(catalog.link_target(find(b"c-link")), Some(&b"target"[..]));
    assert_eq!(catalog.chunks(find(b"d-\xff\n")), Some(Ok(Vec::new())));
    assert_eq!((catalog.chunks(find(b"c-link")), catalog.link_target(find(b"a-dir"))), (None, None));
    for row in 0..catalog.rows() {
        let xattrs = catalog.xattrs(row).unwrap();
        assert_eq!((&*xattrs[0].0, &*xattrs[0].1), (&b"user.a"[..], &b"value"[..]), "row {row}");
    }
    let file = catalog.find(2, b"file-000001").unwrap();
    let chunks = Catalog::open(&sample(3)).unwrap().chunks(2, b"file-000001").unwrap();
    assert_eq!((catalog.chunks(file), chunks.len()), (Some(Ok(chunks.clone())), 2));
    assert_eq!((catalog.directory_of(file), catalog.directory_of(top)), (2, 0));
    assert_eq!(catalog.named_by(2), catalog.find(1, b"a-dir"));
    assert_eq!((catalog.named_by(1), catalog.named_by(3)), (Some(top), None));
    for (directory, name) in [(1, &b"absent"[..]), (1, b""), (1, b"zz"), (2, b"a"), (3, b"a"), (9, b"a")] {
        assert_eq!(catalog.find(directory, name), None);
    }
}

#[test]
fn a_nested_catalog_that_the_tree_does_not_have_is_told_apart() {
    let catalog = Resident::load(&sample(1), false, |_| None).unwrap();
    let row = catalog.find(1, b"b-nested").unwrap();
    assert_eq!(catalog.entry(row), Entry::Nested(None));
    assert!(catalog.lacks_nested(&catalog.list(1)) && !catalog.lacks_nested(&catalog.list(2)));
    assert!(!catalog.lacks_nested(&(0..row)) && !catalog.lacks_nested(&(row + 1..catalog.rows())));
    assert_eq!(catalog.nested().count(), 0);
}

#[test]
fn a_catalog_with_a_row_that_contradicts_the_format_is_refused() {
    for (sql, expected) in [
        ("UPDATE entry SET name=x'2e2e' WHERE name=x'632d6c696e6b'", "not a name"),
        ("UPDATE entry SET name='text' WHERE name=x'632d6c696e6b'", "not a name"),
        ("UPDATE entry SET name=x'61' WHERE parent=0", "not a name"),
        ("UPDATE entry SET parent=-1 WHERE parent=0", "without a directory"),
        ("UPDATE entry SET parent=4294967296 WHERE name=x'632d6c696e6b'", "without a directory"),
        ("UPDATE entry SET parent='x' WHERE name=x'632d6c696e6b'", "without a directory"),
        ("UPDATE entry SET kind=7 WHERE parent=2", "kind 7"),
        ("UPDATE entry SET inode=1 WHERE parent=2", "inode 1"),
        ("UPDATE entry SET permissions=65535 WHERE parent=2", "permissions is 65535"),
        ("UPDATE entry SET uid=4294967296 WHERE parent=2", "uid is 4294967296"),
        ("UPDATE entry SET mtime_ns=1000000000 WHERE parent=2", "nanoseconds"),
        ("UPDATE entry SET mtime_s='x' WHERE parent=2", "Invalid type"),
        ("UPDATE entry SET size=size+1 WHERE parent=2", "1024 bytes of 1025"),
        ("UPDATE entry SET size=7 WHERE kind=2", "a target of 6 bytes, size 7"),
        ("UPDATE entry SET content=x'610062006100' WHERE kind=2", "a target of 6 bytes"),
        ("UPDATE entry SET content='target' WHERE kind=2", "Invalid type"),
        ("UPDATE entry SET size=4096 WHERE kind=1 AND parent=1", "size 4096"),
        ("UPDATE entry SET content=x'00' WHERE parent=2", "ends within chunk 0"),
        ("UPDATE entry SET content='text' WHERE parent=2", "chunks of type Text"),
        ("UPDATE entry SET content=NULL WHERE parent=2", "0 bytes of 1024"),
        ("DELETE FROM segment WHERE number=2", "segment 2 of 1"),
        ("UPDATE segment SET number=7 WHERE number=2", "segment number 7"),
        ("UPDATE segment SET id=x'00'", "segment number 1"),
        ("UPDATE entry SET content=x'00' WHERE kind=3", "without a hash"),
        ("UPDATE entry SET xattrs=x'0161' WHERE parent=2", "extended attribute 0 is malformed"),
        ("UPDATE entry SET xattrs=x'016200016100' WHERE parent=2", "extended attribute 1 is out of order"),
        ("UPDATE entry SET xattrs=7 WHERE parent=2", "Invalid type"),
        (
            "UPDATE entry SET directory=1 WHERE parent=1 AND kind=1; UPDATE entry SET directory=5 WHERE parent=0",
            "directory 1 below directory 1",
        ),
        ("UPDATE entry SET kind=1, directory=2, content=NULL WHERE kind=3", "second name"),
    ] {
        for checked in [false, true] {
            let error = Resident::load(&tampered(sql), checked, |_| None).unwrap_err().to_string();
            assert!(error.contains(expected), "{sql}: {error}");
        }
    }
}

/// Swaps two neighbours in the first leaf of the table of entries.
fn swap_rows(bytes: &mut [u8]) {
    const LEAF_OF_AN_INDEX: u8 = 0x0a;
    let page = bytes.chunks_mut(4096).find(|page| page[0] == LEAF_OF_AN_INDEX).unwrap();
    let (a, b) = page[8..12].split_at_mut(2);
    a.swap_with_slice(b);
}

#[test]
fn rows_out_of_order_are_refused_even_where_sqlite_is_not_asked() {
    let mut bytes = sample(3);
    swap_rows(&mut bytes);
    let error = Resident::load(&bytes, true, |_| None).unwrap_err().to_string();
    assert!(error.contains("out of order"), "{error}");
}

/// What is accepted can be read, is found under its name, and is what SQLite says as well.
fn assert_sound(bytes: &[u8], checked: bool) {
    let Ok(resident) = Resident::load(bytes, checked, |_| None) else { return };
    let catalog = Catalog::open_again(bytes, true).unwrap();
    let mut row = 0;
    let mut scanned = |of: &super::read::Scanned<'_>| {
        assert_eq!((resident.name(row), resident.directory_of(row)), (of.name, of.directory));
        assert_eq!(resident.attributes(row), of.attributes);
        assert_eq!(resident.find(of.directory, of.name), Some(row));
        assert!(resident.list(of.directory).contains(&row));
        assert_eq!(*resident.xattrs(row).unwrap(), *unpack_xattrs(of.xattrs).unwrap());
        match of.attributes.kind {
            FileKind::File => {
                let bytes: u64 = resident
                    .chunks(row)
                    .unwrap()
                    .unwrap()
                    .iter()
                    .map(|chunk| u64::from(chunk.plain_len))
                    .sum();
                assert_eq!(bytes, of.attributes.size);
            }
            FileKind::Symlink => assert_eq!(resident.link_target(row), Some(of.content)),
            FileKind::Directory => assert_ne!(resident.entry(row), Entry::Leaf),
        }
        row += 1;
        Ok(())
    };
    catalog.scan(&mut scanned).unwrap();
    assert_eq!(row, resident.rows());
}

/// A value that some column might choke on.
fn strange() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("NULL".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        (-3_i64..5).prop_map(|number| number.to_string()),
        Just("0.5".to_owned()),
        Just("'text'".to_owned()),
        proptest::collection::vec(any::<u8>(), 0..80)
            .prop_map(|bytes| format!("x'{}'", data_encoding::HEXLOWER.encode(&bytes))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn tampered_bytes_never_panic(
        spots in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8), checked: bool,
    ) {
        let mut bytes = sample(40);
        for (at, value) in spots {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        assert_sound(&bytes, checked);
    }

    #[test]
    fn tampered_pages_never_panic(
        moves in proptest::collection::vec((any::<usize>(), any::<usize>()), 1..4), checked: bool,
    ) {
        // The same page in two places: rows twice, loops, a table in a table.
        let mut bytes = sample(400);
        let pages = bytes.len() / 4096;
        for (from, to) in moves {
            let (from, to) = (from % pages, 1 + to % (pages - 1));
            bytes.copy_within(from * 4096..(from + 1) * 4096, to * 4096);
        }
        assert_sound(&bytes, checked);
    }

    #[test]
    fn strange_values_are_refused_or_read(
        column in 0_usize..14, value in strange(), row in 0_usize..8,
    ) {
        let columns = ["parent", "name", "kind", "inode", "permissions", "uid", "gid", "size", "links", "mtime_s",
            "mtime_ns", "directory", "content", "xattrs"];
        let sql = format!(
            "UPDATE OR IGNORE entry SET {0}={value} WHERE (parent, name) IN (SELECT parent, name FROM entry LIMIT 1 OFFSET {row})",
            columns[column]
        );
        // What the table itself refuses (null where there must be a value) changes nothing.
        assert_sound(&tampered(&sql), false);
    }
}

/// A catalog of `entries` files with names of 15 bytes, one chunk each, and times of their own.
pub(super) fn plain_catalog(first: u32, entries: u32) -> Vec<u8> {
    let mut writer = CatalogWriter::new().unwrap();
    for number in first..first + entries {
        let id = ContentId::of(&number.to_le_bytes());
        let place = Place {
            segment: ContentId::of(&(number / 256).to_le_bytes()),
            ordinal: number % 256,
            offset: u64::from(number % 256) * 30_000,
            stored_len: 30_000,
        };
        let size = 40_000 + number % 20_000;
        let mut attributes = attributes(id.key() >> 1 | 2, FileKind::File, size.into());
        (attributes.mtime_s, attributes.mtime_ns) = (1_700_000_000 + i64::from(number), 123_456_789);
        let chunks = [ChunkRef { id, plain_len: size, place }];
        let name = format!("file-{number:06}.dat");
        let content = NewContent::File(&chunks);
        let entry =
            NewEntry { parent: 1, name: name.as_bytes(), attributes: &attributes, xattrs: &[], content };
        writer.add(&entry).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn an_entry_with_one_chunk_takes_at_most_90_bytes() {
    let catalog = load(&plain_catalog(0, 2_000)).unwrap();
    let bytes = (catalog.bytes() + size_of_val(&**catalog.inodes())) / 2_000;
    assert!(bytes <= 90, "{bytes} bytes an entry");
}

#[test]
fn files_are_found_by_where_they_lie() {
    let catalog = load(&plain_catalog(0, 1_000)).unwrap();
    let segment = ContentId::of(&1_u32.to_le_bytes());
    // Those of the second segment: files 256 to 511.
    let laid = |bytes: std::ops::Range<u64>, most| -> Vec<ContentId> {
        catalog.laid_in(&segment, &bytes, most).iter().map(|chunk| chunk.id).collect()
    };
    let id = |number: u32| ContentId::of(&number.to_le_bytes());
    assert_eq!(laid(30_000..90_000, u64::MAX), [id(257), id(258)]);
    assert_eq!(laid(30_001..60_001, u64::MAX), [id(258)], "what begins there");
    assert_eq!(laid(0..u64::MAX, u64::MAX).len(), 256);
    assert_eq!(laid(0..60_000, 40_256), [id(256)], "of small ones only");
    assert!(catalog.laid_in(&ContentId::of(b"elsewhere"), &(0..u64::MAX), u64::MAX).is_empty());
}
