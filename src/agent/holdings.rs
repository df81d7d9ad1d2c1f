//! What the keeper has of this agent's mounts, and what it has of its predecessor's.

use super::api::MountOptions;
use super::keeper::{Keeper, Parts};
use super::shown::Shown;
use crate::fs::fuse::{Agreement, Held};
use crate::model::RepositoryName;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Version of [`Notes`]. What another version wrote is not taken over.
const VERSION: u32 = 2;
/// Most bytes of them: nine revisions of about 1 KiB each, options with all their rules, and room.
const NOTES_MAX_BYTES: u64 = 256 << 10;

/// What an agent writes down of a mount, for its successor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Notes {
    version: u32,
    /// What is mounted.
    pub(super) repository: RepositoryName,
    /// How.
    pub(super) options: MountOptions,
    agreement: Agreement,
    /// The trees that are kept, by their numbers, oldest first. The last one is shown.
    pub(super) trees: Vec<(u64, Shown)>,
}

impl Notes {
    pub(super) fn new(repository: RepositoryName, options: MountOptions, agreement: Agreement) -> Self {
        Self { version: VERSION, repository, options, agreement, trees: Vec::new() }
    }

    /// Adds a tree that is shown from now on.
    pub(super) fn add(&mut self, number: u64, shown: &Shown) {
        self.trees.push((number, shown.clone()));
    }

    /// Drops trees that are not kept any more.
    pub(super) fn keep(&mut self, numbers: &[u64]) {
        self.trees.retain(|(number, _)| numbers.contains(number));
    }
}

/// The agent's use of its keeper. Calls block for a moment, at most for seconds.
pub(super) struct Holdings {
    keeper: Keeper,
    /// What a predecessor has left and nobody has taken over yet.
    left: Mutex<BTreeMap<PathBuf, Parts>>,
}

impl Holdings {
    /// Reaches the keeper, or starts one that holds mounts for `patience` without an agent.
    ///
    /// # Errors
    /// When there is none; mounts then end with the agent.
    pub(super) fn open(socket: &Path, patience: Duration) -> io::Result<Self> {
        let (keeper, found) = Keeper::reach(socket, patience)?;
        Ok(Self { keeper, left: Mutex::new(found.into_iter().collect()) })
    }

    fn left(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Parts>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a predecessor has left of a mount, once.
    ///
    /// # Errors
    /// When it cannot be read; then the mount is lost.
    pub(super) fn take(&self, directory: &Path) -> io::Result<Option<(Held, Notes)>> {
        let Some([device, open_files, notes]) = self.left().remove(directory) else { return Ok(None) };
        let notes = read_notes(notes)?;
        Ok(Some((Held { device, open_files, agreement: notes.agreement.clone() }, notes)))
    }

    /// Directories of mounts that a predecessor has left and nobody has taken over.
    pub(super) fn leftovers(&self) -> Vec<PathBuf> {
        self.left().keys().cloned().collect()
    }

    /// Has the keeper hold a mount, or hold it with other notes.
    ///
    /// # Errors
    /// When it cannot; the mount then ends with this agent.
    pub(super) fn hold(&self, directory: &Path, held: &Held, notes: &Notes) -> io::Result<()> {
        let written = memfd_create("starling-mount-notes", MemfdFlags::CLOEXEC)?;
        let written = File::from(written);
        written.write_all_at(&serde_json::to_vec(notes)?, 0)?;
        self.keeper.hold(directory, &[held.device.as_fd(), held.open_files.as_fd(), written.as_fd()])
    }

    /// Has the keeper let a mount go.
    pub(super) fn release(&self, directory: &Path) {
        self.left().remove(directory);
        if let Err(error) = self.keeper.release(directory) {
            tracing::warn!(directory = %directory.display(), "the keeper did not let a mount go: {error}");
        }
    }
}

fn read_notes(file: OwnedFd) -> io::Result<Notes> {
    let bad = |detail: String| io::Error::new(io::ErrorKind::InvalidData, detail);
    let file = File::from(file);
    let len = file.metadata()?.len();
    if len > NOTES_MAX_BYTES {
        return Err(bad(format!("notes of {len} bytes, at most {NOTES_MAX_BYTES} belong there")));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    let version = serde_json::from_slice::<serde_json::Value>(&bytes)?["version"].as_u64();
    if version != Some(u64::from(VERSION)) {
        return Err(bad(format!("notes of version {version:?}; this program reads {VERSION}")));
    }
    Ok(serde_json::from_slice(&bytes)?)
}
