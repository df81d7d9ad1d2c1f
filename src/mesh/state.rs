//! The state directory of a node: small files that are written completely or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A file of the state directory could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than anything that this program writes there.
    #[error("{path}: {len} bytes, at most {max} belong there")]
    TooLong {
        /// The file.
        path: String,
        /// Its length, in bytes.
        len: u64,
        /// The bound, in bytes.
        max: u64,
    },
    /// The content is not what this program writes there.
    #[error("{path}: {detail}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
}

impl StateError {
    /// What the user can do about a file that is damaged.
    pub fn hint(&self) -> Option<&'static str> {
        let (Self::TooLong { path, .. } | Self::Damaged { path, .. }) = self else { return None };
        Some(match Path::new(path).file_name()?.to_str()? {
            "charter" => {
                "on an authority put it back from the backup; any other node gets it anew with \
                 `starling join TICKET --force --cell REGION/ZONE/RACK`"
            }
            "revocations" => {
                "remove it: the other members tell this node the list again; on a mesh's only authority, put it back from \
                 the backup first, if there is one"
            }
            "membership" => {
                "remove it, and join again with a new ticket; the node keeps its key and its name"
            }
            "node.key" => {
                "put it back from the backup; without one remove it, and join as a new node with \
                 `starling join TICKET --force --cell REGION/ZONE/RACK` (a mesh's only authority: remove `membership`, too, and \
                 run `starling mesh init`, which keeps the mesh)"
            }
            "authority.key" | "authority.key.next" => {
                "put it back from the backup, or remove it: then this node certifies nobody until another authority has \
                 given it a ticket (`starling mesh invite --role authority`)"
            }
            "used-tickets" => {
                "put it back from the backup, or remove it: then tickets of this authority that have not expired can be \
                 used once more"
            }
            _ => return None,
        })
    }
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrecy {
    /// Only its owner: keys.
    Secret,
    /// Everybody.
    Public,
}

/// The directory in which a node keeps its key, its membership and what it must remember.
#[derive(Clone, Debug)]
pub(super) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Opens the directory, making it (for its owner only) where it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| StateError::Io { path: path.display().to_string(), source })?;
        Ok(Self { path: path.to_path_buf() })
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of one file.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Replaces a file: written beside it, flushed, renamed, the directory flushed. After a crash at
    /// any point the old or the new content stands there.
    pub(super) fn write(&self, name: &str, content: &[u8], secrecy: Secrecy) -> Result<(), StateError> {
        let (path, beside) = (self.file(name), self.file(&format!(".{name}.new")));
        let mode = match secrecy {
            Secrecy::Secret => 0o600,
            Secrecy::Public => 0o644,
        };
        let write = || -> io::Result<()> {
            // What a crash left behind may have another mode, so it is not reused.
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| StateError::Io { path: path.display().to_string(), source })
    }

    /// Removes a file, if it is there; after a crash it may be there again.
    pub(super) fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StateError::Io { path: path.display().to_string(), source })
            }
            _ => Ok(()),
        }
    }

    /// The content of a file, or `None` when there is none.
    pub(super) fn read(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.file(name);
        let failed = |source| StateError::Io { path: path.display().to_string(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut content = Vec::new();
        let len = file.take(max + 1).read_to_end(&mut content).map_err(failed)? as u64;
        if len > max {
            return Err(StateError::TooLong { path: path.display().to_string(), len, max });
        }
        Ok(Some(content))
    }

    /// An error that says what is wrong with a file's content.
    pub(super) fn damaged(&self, name: &str, detail: impl std::fmt::Display) -> StateError {
        StateError::Damaged { path: self.file(name).display().to_string(), detail: detail.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_secret_is_readable_by_its_owner_only_even_after_a_crash_left_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("a/b")).unwrap();
        fs::write(state.file(".key.new"), b"left behind").unwrap();
        state.write("key", b"secret", Secrecy::Secret).unwrap();
        assert_eq!(fs::metadata(state.file("key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(state.read("key", 6).unwrap().unwrap(), b"secret");
        assert!(!state.file(".key.new").exists());
    }

    #[test]
    fn a_file_that_is_too_long_is_refused_and_a_missing_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.write("long", &[0; 100], Secrecy::Public).unwrap();
        assert!(matches!(state.read("long", 99), Err(StateError::TooLong { max: 99, .. })));
        assert_eq!(state.read("none", 10).unwrap(), None);
    }
}
