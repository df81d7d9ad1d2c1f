//! The list of mounts, as it is remembered over restarts.

use super::{Entry, MOUNTS_MAX, MountTable};
use crate::agent::api::{MountOptions, MountRequest};
use crate::agent::shown::Shown;
use crate::model::RepositoryName;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// Version of the file that remembers mounts.
const VERSION: u32 = 1;
/// Largest such file: [`MOUNTS_MAX`] of the longest paths and names.
const MAX_BYTES: u64 = (MOUNTS_MAX as u64) << 14;

/// What is remembered.
#[derive(Debug, Serialize, Deserialize)]
struct List {
    version: u32,
    mounts: Vec<Remembered>,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) repository: RepositoryName,
    pub(super) directory: PathBuf,
    #[serde(default)]
    pub(super) fill: bool,
    #[serde(default)]
    pub(super) options: MountOptions,
    /// The revision that was chosen, where one was to be shown for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chosen: Option<Shown>,
    /// Whether it was mounted because somebody looked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) automatic: bool,
}

impl From<MountRequest> for Remembered {
    fn from(request: MountRequest) -> Self {
        let MountRequest { repository, directory, fill, options } = request;
        Self { repository, directory, fill, options, chosen: None, automatic: false }
    }
}

/// Reads the list; one that is not there is empty.
///
/// # Errors
/// When it is there and cannot be read, or is not ours. The caller names the file.
pub(super) fn read(path: &Path) -> io::Result<Vec<Remembered>> {
    let bad = |detail: String| io::Error::new(io::ErrorKind::InvalidData, detail);
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(found) if found.len() > MAX_BYTES => {
            return Err(bad(format!("{} bytes, at most {MAX_BYTES} belong there", found.len())));
        }
        Ok(_) => {}
    }
    let list: List = serde_json::from_slice(&fs::read(path)?).map_err(|e| bad(e.to_string()))?;
    if list.version != VERSION {
        return Err(bad(format!("version {} is not known, only {VERSION}", list.version)));
    }
    Ok(list.mounts)
}

/// Writes, syncs, renames: after a crash the old or the new list is there.
pub(super) fn write(path: &Path, mounts: Vec<Remembered>) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(&List { version: VERSION, mounts })?;
    let beside = path.with_extension("new");
    let mut new = fs::File::create(&beside)?;
    new.write_all(&bytes)?;
    new.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

impl MountTable {
    /// Writes the list. What is mounted does not hang on it: a failure is told, and it is tried again.
    pub(super) fn remember(&self) {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_stopping() {
            return;
        }
        let trouble = self.write().err().map(|error| {
            let file = self.file.display();
            format!("the next start will not mount what is mounted now, for the list cannot be written: {file}: {error}")
        });
        let before = std::mem::replace(
            &mut *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner),
            trouble.clone(),
        );
        if let Some(trouble) = trouble.filter(|trouble| before.as_ref() != Some(trouble)) {
            tracing::error!("{trouble}");
        }
    }

    fn write(&self) -> io::Result<()> {
        let remembered = |(directory, entry): (&PathBuf, &Entry)| Remembered {
            repository: entry.repository.clone(),
            directory: directory.clone(),
            fill: entry.wants_fill,
            options: entry.options.clone(),
            chosen: entry.chosen.clone(),
            automatic: entry.automatic,
        };
        let mounts = self.lock().iter().map(remembered).collect();
        write(&self.file, mounts)
    }
}
