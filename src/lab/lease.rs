//! Who is running: so that what a killed run left behind is found, and what a live one uses is left alone.
//!
//! Each run holds a lock on a file named after its tag, which tells where its folder is. The lock goes with the process.

use super::error::LabError;
use super::netns;
use super::process::Folder;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Where the files are: emptied at boot, as the namespaces are.
const LEASES: &str = "/run/starling-lab";
/// Longest path that is read from one.
const PATH_MAX_BYTES: u64 = 4096;

/// A run's right to its names. Dropping it gives them back.
#[derive(Debug)]
pub(super) struct Lease {
    tag: String,
    path: PathBuf,
    _lock: File,
}

impl Lease {
    /// Takes a new tag for a run whose things lie in `folder`.
    pub(super) fn take(folder: &Path) -> Result<Self, LabError> {
        let leases = Path::new(LEASES);
        fs::create_dir_all(leases).map_err(LabError::file(leases))?;
        let tag = format!("{}{:06x}", netns::PREFIX, u32::from_le_bytes(crate::ambient::secret()) >> 8);
        let path = leases.join(&tag);
        let mut file =
            File::options().write(true).create_new(true).open(&path).map_err(LabError::file(&path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| LabError::file(&path)(e.into()))?;
        file.write_all(folder.as_os_str().as_encoded_bytes()).map_err(LabError::file(&path))?;
        Ok(Self { tag, path, _lock: file })
    }

    /// What all names of the run begin with.
    pub(super) fn tag(&self) -> &str {
        &self.tag
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            eprintln!("warning: {}: {error}", self.path.display());
        }
    }
}

/// Removes what runs left behind that were killed; tells how many there were.
pub(super) fn clear_leftovers() -> usize {
    let mut cleared = 0;
    for entry in fs::read_dir(LEASES).into_iter().flatten().flatten() {
        let Ok(tag) = entry.file_name().into_string() else { continue };
        if !tag.starts_with(netns::PREFIX) {
            continue;
        }
        let Ok(mut file) = File::open(entry.path()) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue; // it runs
        }
        let mut folder = String::new();
        // Cut short or not UTF-8: then the folder is not known, and stays.
        let known = std::io::Read::by_ref(&mut file).take(PATH_MAX_BYTES).read_to_string(&mut folder).is_ok();
        netns::remove(&tag);
        let folder = PathBuf::from(folder);
        let ours = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("starling-lab-");
        if known && folder.is_absolute() && folder.file_name().is_some_and(ours) && folder.is_dir() {
            drop(Folder::adopt(folder));
        }
        let _ = fs::remove_file(entry.path());
        cleared += 1;
    }
    cleared
}
