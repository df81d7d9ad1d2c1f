//! A catalog with foreign bytes written over a good one: every question gets an answer or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::catalog::{Attributes, Catalog, CatalogWriter, FileKind, Inode, NewContent, NewEntry};
use std::sync::OnceLock;

fn good() -> &'static [u8] {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let mut writer = CatalogWriter::new().expect("SQLite has memory");
        for n in 1..200 {
            let name = format!("link-{n:03}");
            let attributes = Attributes {
                permissions: 0o777,
                size: 6,
                links: 1,
                ..Attributes::blank(Inode(n + 1), FileKind::Symlink)
            };
            let content = NewContent::Symlink(b"target");
            let entry =
                NewEntry { parent: 1, name: name.as_bytes(), attributes: &attributes, xattrs: &[], content };
            writer.add(&entry).expect("a good entry");
        }
        writer.finish().expect("a good catalog")
    })
}

fuzz_target!(|patches: Vec<(u32, u8)>| {
    let mut bytes = good().to_vec();
    for (at, value) in patches {
        let at = at as usize % bytes.len();
        bytes[at] = value;
    }
    let Ok(catalog) = Catalog::open(&bytes) else { return };
    let _ = (catalog.top(), catalog.nested(), catalog.each_chunks(|_| ()), catalog.check_rows());
    for row in catalog.list(Catalog::TOP).unwrap_or_default() {
        let _ = catalog.chunks(Catalog::TOP, &row.name);
    }
});
