//! The state folder: one agent at a time.

use super::AgentError;
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// An agent's state folder, locked as long as this lives. The kernel drops the lock with the process. A command that
/// changes what an agent reads once, and writes itself, holds it too.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    _lock: File,
}

impl StateFolder {
    /// Makes the folder, for its owner only, and locks it.
    ///
    /// # Errors
    /// [`AgentError::StateInUse`] while an agent works in it; [`AgentError::State`].
    pub fn open(path: &Path) -> Result<Self, AgentError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| AgentError::State { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))?;
        let lock_path = path.join("agent.lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(failed(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(AgentError::StateInUse(path.to_owned())),
            Err(errno) => Err(failed(&lock_path)(io::Error::from(errno))),
        }
    }

    /// The registry of cards and roots.
    pub(super) fn repositories(&self) -> PathBuf {
        self.path.join("repositories")
    }

    /// Members to ask after a restart.
    pub(super) fn contacts(&self) -> PathBuf {
        self.path.join("contacts.json")
    }

    /// The list of mounts.
    pub(super) fn mounts(&self) -> PathBuf {
        self.path.join("mounts.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_state_folder_has_one_agent_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateFolder::open(&path).unwrap();
        assert!(matches!(StateFolder::open(&path), Err(AgentError::StateInUse(p)) if p == path));
        drop(first);
        StateFolder::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
