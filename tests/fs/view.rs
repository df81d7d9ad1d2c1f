//! A part of a tree with other owners, compared with the same part of the whole tree.

use crate::double::{MemorySource, MemoryTree, random_tree};
use starling::catalog::{Attributes, FileKind, IdMap, Inode, Owners, Tree, ViewError, view};
use starling::model::Generator;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SEEDS: u64 = 20;

/// Everything below a directory, by path: attributes, link target, chunks, parent of directories.
async fn all(tree: &dyn Tree, from: Inode) -> BTreeMap<Vec<u8>, (Attributes, String)> {
    let mut found = BTreeMap::new();
    let mut open = vec![(Vec::new(), from)];
    while let Some((path, directory)) = open.pop() {
        for entry in tree.list(directory).await.unwrap().iter() {
            let looked_up = tree.lookup(directory, &entry.name).await.unwrap().unwrap();
            assert_eq!(looked_up, entry.attributes);
            let inode = looked_up.inode;
            assert_eq!(tree.attributes(inode).await.unwrap(), looked_up);
            let path = [&path[..], b"/", &entry.name].concat();
            let what = match looked_up.kind {
                FileKind::Directory => {
                    open.push((path.clone(), inode));
                    let parent = tree.parent(inode).await.unwrap();
                    assert_eq!(parent, directory);
                    String::new()
                }
                FileKind::File => format!("{:?}", tree.chunks(inode).await.unwrap()),
                FileKind::Symlink => format!("{:?}", tree.link_target(inode).await.unwrap()),
            };
            let xattrs = tree.extended_attributes(inode).await.unwrap();
            found.insert(path, (looked_up, format!("{what} {xattrs:?}")));
        }
    }
    found
}

#[tokio::test]
async fn each_directory_of_a_random_tree_is_shown_as_if_it_were_all_with_the_owners_that_were_asked_for() {
    let owners =
        Owners { uids: IdMap { rules: BTreeMap::from([(0, 7)]), others: Some(8) }, gids: IdMap::default() };
    for seed in 0..SEEDS {
        let naive = random_tree(&mut Generator::stream(seed, 1));
        let source = Arc::new(MemorySource::default());
        let tree: Arc<dyn Tree> = Arc::new(MemoryTree::new(&naive, &*source));
        for (path, _) in all(&*tree, Inode::ROOT).await {
            let Ok(path) = String::from_utf8(path) else { continue };
            let mut at = tree.attributes(Inode::ROOT).await.unwrap();
            for name in path.split('/').skip(1) {
                at = tree.lookup(at.inode, name.as_bytes()).await.unwrap().unwrap();
            }
            let seen = view(Arc::clone(&tree), &path, &owners).await;
            match at.kind {
                FileKind::Directory => {}
                FileKind::File => {
                    assert_eq!(seen.err(), Some(ViewError::NotADirectory(path)));
                    continue;
                }
                FileKind::Symlink => {
                    assert!(matches!(seen.err(), Some(ViewError::Link { path: found, .. }) if found == path));
                    continue;
                }
            }
            let seen = seen.unwrap();
            let shown = |found: Attributes| Attributes { uid: if found.uid == 0 { 7 } else { 8 }, ..found };
            let expected: BTreeMap<_, _> = all(&*tree, at.inode)
                .await
                .into_iter()
                .map(|(path, (a, what))| (path, (shown(a), what)))
                .collect();
            assert_eq!(all(&*seen, Inode::ROOT).await, expected, "seed {seed}, {path}");
            let root = seen.attributes(Inode::ROOT).await.unwrap();
            assert_eq!(root, Attributes { inode: Inode::ROOT, ..shown(at) });
            assert_eq!(seen.parent(Inode::ROOT).await.unwrap(), Inode::ROOT);
            let located = seen.locate(Inode::ROOT, Duration::from_secs(1)).await.unwrap();
            assert_eq!(located, Some(root));
            assert_eq!(seen.totals(), tree.totals());
        }
        let absent = view(Arc::clone(&tree), "/no/such", &owners).await.err();
        assert_eq!(absent, Some(ViewError::NotThere("/no".into())));
        let whole = view(Arc::clone(&tree), "/", &Owners::default()).await.unwrap();
        assert!(Arc::ptr_eq(&whole, &tree), "nothing stands between where nothing is asked for");
    }
}
