//! A tree as text, one line an entry, from a disk or from a repository: what two trees are compared by.

use futures::future::BoxFuture;
use starling::catalog::{Attributes, FileKind, Inode, Tree};
use starling::chunk::{ChunkSource, Piece};
use starling::model::{Class, ContentId};
use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One entry: everything but its inode number.
fn line(path: &[u8], a: &Attributes, links: u64, xattrs: &[(Vec<u8>, Vec<u8>)], content: &str) -> String {
    let kind = match a.kind {
        FileKind::File => 'f',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
    };
    let xattrs: Vec<String> = xattrs
        .iter()
        .map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()))
        .collect();
    format!(
        "{kind} {:04o} {}:{} {} x{links} {}.{:09} [{}] {} {content}",
        a.permissions,
        a.uid,
        a.gid,
        a.size,
        a.mtime_s,
        a.mtime_ns,
        xattrs.join(","),
        path.escape_ascii()
    )
}

/// The listing of a mounted tree. Reads all content through `source`.
pub(crate) async fn of_tree(tree: &dyn Tree, source: &dyn ChunkSource) -> Vec<String> {
    let mut lines = Vec::new();
    let top = tree.attributes(Inode::ROOT).await.unwrap();
    walk(tree, source, b"/".to_vec(), top, &mut lines).await;
    lines.sort_unstable();
    lines
}

fn walk<'a>(
    tree: &'a dyn Tree,
    source: &'a dyn ChunkSource,
    path: Vec<u8>,
    attributes: Attributes,
    lines: &'a mut Vec<String>,
) -> BoxFuture<'a, ()> {
    Box::pin(async move {
        let inode = attributes.inode;
        let xattrs = tree.extended_attributes(inode).await.unwrap();
        let xattrs: Vec<_> = xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        let content = match attributes.kind {
            FileKind::File => {
                let chunks = tree.chunks(inode).await.unwrap();
                let pieces = chunks.iter().copied().map(Piece::whole).collect();
                let bytes = source.read(pieces, Class::Read).await.unwrap().concat();
                assert_eq!(bytes.len() as u64, attributes.size);
                ContentId::of(&bytes).to_string()
            }
            FileKind::Symlink => tree.link_target(inode).await.unwrap().escape_ascii().to_string(),
            FileKind::Directory => String::new(),
        };
        lines.push(line(&path, &attributes, attributes.links.into(), &xattrs, &content));
        if attributes.kind == FileKind::Directory {
            for entry in tree.list(inode).await.unwrap().iter() {
                let found = tree.lookup(inode, &entry.name).await.unwrap();
                assert_eq!(found, Some(entry.attributes), "what is listed is found");
                let separator: &[u8] = if path == b"/" { b"" } else { b"/" };
                let path = [&path, separator, &entry.name].concat();
                walk(tree, source, path, entry.attributes, lines).await;
            }
        }
    })
}

/// The listing of a directory on disk.
#[allow(dead_code, reason = "one of the test programs has no tree on disk")]
pub(crate) fn of_disk(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut names: HashMap<u64, u64> = HashMap::new();
    let mut open = vec![top.to_path_buf()];
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        *names.entry(metadata.ino()).or_default() += 1;
        if metadata.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, metadata));
    }
    let mut lines: Vec<String> = found
        .iter()
        .map(|(path, metadata)| {
            let mut xattrs: Vec<_> = xattr::list(path)
                .unwrap()
                .map(|name| {
                    let value = xattr::get(path, &name).unwrap().unwrap();
                    (name.as_bytes().to_vec(), value)
                })
                .collect();
            xattrs.sort_unstable();
            let (kind, size, links, content) = if metadata.is_dir() {
                let below =
                    fs::read_dir(path).unwrap().filter(|e| e.as_ref().unwrap().file_type().unwrap().is_dir());
                (FileKind::Directory, 0, 2 + below.count() as u64, String::new())
            } else if metadata.is_symlink() {
                let target = fs::read_link(path).unwrap();
                let target = target.as_os_str().as_bytes().escape_ascii().to_string();
                (FileKind::Symlink, metadata.len(), names[&metadata.ino()], target)
            } else {
                let content = ContentId::of(&fs::read(path).unwrap()).to_string();
                (FileKind::File, metadata.len(), names[&metadata.ino()], content)
            };
            let attributes = Attributes {
                inode: Inode(0),
                kind,
                permissions: u16::try_from(metadata.mode() & 0o7777).unwrap(),
                uid: metadata.uid(),
                gid: metadata.gid(),
                size,
                links: 0,
                mtime_s: metadata.mtime(),
                mtime_ns: u32::try_from(metadata.mtime_nsec()).unwrap(),
            };
            let relative = path.strip_prefix(top).unwrap().as_os_str().as_bytes();
            line(&[b"/", relative].concat(), &attributes, links, &xattrs, &content)
        })
        .collect();
    lines.sort_unstable();
    lines
}
