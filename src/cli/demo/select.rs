//! Which tree is shown: the user's, or as much of `/usr/share` as a demonstration should carry.

use super::super::CliError;
use crate::config::ByteSize;
use crate::lab::Interrupt;
use std::collections::BTreeMap;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// The tree that every system has.
pub(super) const DEFAULT_TREE: &str = "/usr/share";
/// Most bytes of the default tree.
pub(super) const DEFAULT_MAX_BYTES: u64 = 512 << 20;

/// The tree to publish.
#[derive(Debug)]
pub(super) struct Choice {
    /// Its folder.
    pub(super) root: PathBuf,
    /// What it is, for people.
    pub(super) description: String,
}

/// The user's tree as it is, or the readable part of [`DEFAULT_TREE`] that fits into
/// [`DEFAULT_MAX_BYTES`]: in place when that is all of it, else copied to `staging`.
pub(super) fn choose(tree: Option<&Path>, staging: &Path, interrupt: &Interrupt) -> Result<Choice, CliError> {
    let Some(tree) = tree else {
        return part_of(Path::new(DEFAULT_TREE), DEFAULT_MAX_BYTES, staging, interrupt);
    };
    match fs::metadata(tree) {
        Err(error) => Err(CliError::failed(format!("{}: {error}", tree.display()))),
        Ok(found) if !found.is_dir() => {
            Err(CliError::failed(format!("{} is not a directory", tree.display())))
        }
        Ok(_) => Ok(Choice { root: fs::canonicalize(tree)?, description: tree.display().to_string() }),
    }
}

/// What lies under a path.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    bytes: u64,
    /// Something in it cannot be read, or is neither file, directory nor link.
    spoilt: bool,
}

fn part_of(tree: &Path, most: u64, staging: &Path, interrupt: &Interrupt) -> Result<Choice, CliError> {
    let whole = extent(tree, &fs::metadata(tree)?, interrupt)?;
    if !whole.spoilt && whole.bytes <= most {
        return Ok(Choice { root: tree.to_owned(), description: tree.display().to_string() });
    }
    let mut copy = Copy { left: most, taken: 0, links: BTreeMap::new(), interrupt };
    fs::create_dir(staging)?;
    copy.take_from(tree, staging)?;
    let description =
        format!("a copy of the first {} of {} in the order of names", ByteSize(copy.taken), tree.display());
    Ok(Choice { root: staging.to_owned(), description })
}

fn extent(path: &Path, metadata: &Metadata, interrupt: &Interrupt) -> Result<Extent, CliError> {
    interrupt.check()?;
    if metadata.is_symlink() {
        return Ok(Extent::default());
    }
    if metadata.is_file() {
        return Ok(Extent { bytes: metadata.len(), spoilt: !readable(path) });
    }
    let Some(children) = metadata.is_dir().then(|| sorted(path)).and_then(Result::ok) else {
        return Ok(Extent { bytes: 0, spoilt: true });
    };
    let mut sum = Extent::default();
    for child in children {
        let Ok(metadata) = child.metadata() else {
            sum.spoilt = true;
            continue;
        };
        let found = extent(&child.path(), &metadata, interrupt)?;
        sum.bytes = sum.bytes.saturating_add(found.bytes);
        sum.spoilt |= found.spoilt;
    }
    Ok(sum)
}

fn readable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::READ_OK).is_ok()
}

fn sorted(folder: &Path) -> io::Result<Vec<DirEntry>> {
    let mut children = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    children.sort_by_key(DirEntry::file_name);
    Ok(children)
}

/// Copies what fits, in the order of names, with all that a publication keeps.
struct Copy<'a> {
    left: u64,
    taken: u64,
    /// Where the first name of an inode that has several was copied to.
    links: BTreeMap<(u64, u64), PathBuf>,
    interrupt: &'a Interrupt,
}

impl Copy<'_> {
    /// Copies into the existing folder `to`, which then looks like `from`.
    fn take_from(&mut self, from: &Path, to: &Path) -> Result<(), CliError> {
        let failed = |path: &Path, e: io::Error| CliError::failed(format!("{}: {e}", path.display()));
        for child in sorted(from).map_err(|e| failed(from, e))? {
            self.interrupt.check()?;
            let (source, target) = (child.path(), to.join(child.file_name()));
            let Ok(metadata) = child.metadata() else { continue };
            if metadata.is_dir() {
                if sorted(&source).is_ok() {
                    fs::create_dir(&target).map_err(|e| failed(&target, e))?;
                    self.take_from(&source, &target)?;
                }
            } else if metadata.is_symlink() {
                fs::read_link(&source)
                    .and_then(|link| symlink(link, &target))
                    .and_then(|()| dress(&source, &target, &metadata))
                    .map_err(|e| failed(&target, e))?;
            } else if metadata.is_file() {
                self.file(&source, &target, &metadata).map_err(|e| failed(&source, e))?;
            }
        }
        fs::symlink_metadata(from).and_then(|metadata| dress(from, to, &metadata)).map_err(|e| failed(to, e))
    }

    fn file(&mut self, source: &Path, target: &Path, metadata: &Metadata) -> io::Result<()> {
        let inode = (metadata.dev(), metadata.ino());
        if let Some(first) = self.links.get(&inode) {
            return fs::hard_link(first, target);
        }
        if metadata.len() > self.left || !readable(source) {
            return Ok(());
        }
        fs::copy(source, target)?;
        dress(source, target, metadata)?;
        self.left -= metadata.len();
        self.taken += metadata.len();
        if metadata.nlink() > 1 {
            self.links.insert(inode, target.to_owned());
        }
        Ok(())
    }
}

/// Gives `target` the owner, mode, attributes and times of `source`, as far as this user may.
fn dress(source: &Path, target: &Path, metadata: &Metadata) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    // Only root may give files away, and only some attributes can be set by all.
    let _ = std::os::unix::fs::lchown(target, Some(metadata.uid()), Some(metadata.gid()));
    for name in xattr::list(source).into_iter().flatten() {
        if let Ok(Some(value)) = xattr::get(source, &name) {
            let _ = xattr::set(target, &name, &value);
        }
    }
    if !metadata.is_symlink() {
        fs::set_permissions(target, metadata.permissions())?;
    }
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(metadata.atime(), metadata.atime_nsec()),
        last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
    };
    Ok(utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::super::compare::Manifest;
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/deep")).unwrap();
        fs::write(dir.path().join("a/deep/one"), vec![1; 100]).unwrap();
        fs::hard_link(dir.path().join("a/deep/one"), dir.path().join("a/same")).unwrap();
        fs::write(dir.path().join("b"), vec![2; 300]).unwrap();
        symlink("a/deep/one", dir.path().join("link")).unwrap();
        fs::write(dir.path().join("z"), vec![3; 50]).unwrap();
        dir
    }

    #[test]
    fn a_tree_that_fits_is_shown_in_place() {
        let (tree, scratch) = (tree(), tempfile::tempdir().unwrap());
        let staging = scratch.path().join("staging");
        let choice = part_of(tree.path(), 10_000, &staging, &Interrupt::default()).unwrap();
        assert_eq!(choice.root, tree.path());
        assert!(!staging.exists());
    }

    #[test]
    fn of_a_larger_tree_the_part_that_fits_is_copied_faithfully() {
        let (tree, scratch) = (tree(), tempfile::tempdir().unwrap());
        let choice =
            part_of(tree.path(), 200, &scratch.path().join("staging"), &Interrupt::default()).unwrap();
        // All but `b`, which is larger than what is left after `a`.
        let copy = Manifest::read(&choice.root, 1, &()).unwrap();
        let time = fs::metadata(tree.path()).unwrap();
        fs::remove_file(tree.path().join("b")).unwrap();
        dress(tree.path(), tree.path(), &time).unwrap();
        let original = Manifest::read(tree.path(), 1, &()).unwrap();
        assert_eq!(original.differences(&copy), Vec::new());
        assert_eq!(copy.bytes(), 150);
        assert!(choice.description.contains("150 B"), "{}", choice.description);
    }

    #[test]
    fn a_tree_that_is_not_there_is_named() {
        let choose = |path| choose(Some(Path::new(path)), Path::new("/unused"), &Interrupt::default());
        assert!(choose("/nowhere").unwrap_err().to_string().contains("/nowhere"));
        assert!(choose("/dev/null").unwrap_err().to_string().contains("not a directory"));
    }
}
