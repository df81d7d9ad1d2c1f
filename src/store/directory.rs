//! A repository's objects in a directory that any HTTP server can serve.
//!
//! Layout and write order are told in `docs/repository-format.md`.

use super::objects::{ObjectError, ObjectStore, Put};
use crate::chunk::object_path;
use crate::model::{ContentId, RepositoryName, limits};
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const ROOT: &str = "root";
const OBJECTS: &str = "objects";
const TEMPORARY: &str = "tmp";
const LOCK: &str = "lock";

/// The objects of one repository under `DIR/<repository>/`.
#[derive(Debug)]
pub struct DirectoryObjects {
    directory: PathBuf,
    /// Subdirectories of `objects` whose own entry was synced by this process.
    synced: Box<[AtomicBool; 256]>,
    temporary: AtomicU64,
}

/// The right to publish into a directory, until it is dropped or the process ends.
#[derive(Debug)]
pub struct PublisherLock {
    _file: File,
}

fn at(path: &Path) -> impl Fn(io::Error) -> ObjectError + '_ {
    |source| ObjectError::Io { path: path.display().to_string(), source }
}

fn sync_directory(path: &Path) -> Result<(), ObjectError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(at(path))
}

impl DirectoryObjects {
    /// The repository `name` of the stratum in `stratum`. Nothing is read or made yet.
    pub fn new(stratum: &Path, name: &RepositoryName) -> Self {
        Self {
            directory: stratum.join(name.as_str()),
            synced: Box::new([const { AtomicBool::new(false) }; 256]),
            temporary: AtomicU64::new(0),
        }
    }

    /// Where the repository lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the directories, takes the lock of the one publisher, and removes what a killed one left behind in `tmp`.
    ///
    /// # Errors
    /// [`ObjectError::Locked`] when another publisher is at work, or a failing disk.
    pub fn lock(&self) -> Result<PublisherLock, ObjectError> {
        for directory in [OBJECTS, TEMPORARY] {
            let path = self.directory.join(directory);
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        let path = self.directory.join(LOCK);
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(at(&path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                ObjectError::Locked { path: path.display().to_string() }
            } else {
                at(&path)(error.into())
            }
        })?;
        // The names of all that was just made, up to the stratum's own.
        for directory in self.directory.ancestors().take(3) {
            if !directory.as_os_str().is_empty() {
                sync_directory(directory)?;
            }
        }
        let temporary = self.directory.join(TEMPORARY);
        for entry in fs::read_dir(&temporary).map_err(at(&temporary))? {
            let path = entry.map_err(at(&temporary))?.path();
            fs::remove_file(&path).map_err(at(&path))?;
        }
        Ok(PublisherLock { _file: file })
    }

    fn path(&self, id: &ContentId) -> PathBuf {
        self.directory.join(object_path(id))
    }

    /// Writes `bytes` beside, syncs, and renames to `path`.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), ObjectError> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let beside = self.directory.join(TEMPORARY).join(format!("{}-{number}", std::process::id()));
        let written = File::create(&beside)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            })
            .map_err(at(&beside))
            .and_then(|()| fs::rename(&beside, path).map_err(at(path)));
        if written.is_err() {
            // On a full disk the half-written file is in the way; the next publisher would remove it too.
            let _ = fs::remove_file(&beside);
        }
        written
    }

    /// Makes the subdirectory of an object, and sees to it that its own name is durable.
    fn prepare(&self, id: &ContentId, parent: &Path) -> Result<(), ObjectError> {
        let synced = &self.synced[usize::from(id.digest()[0])];
        if !synced.load(Ordering::Relaxed) {
            fs::create_dir_all(parent).map_err(at(parent))?;
            sync_directory(&self.directory.join(OBJECTS))?;
            synced.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Whether a file holds exactly `bytes`; `None` when there is no file.
fn holds(path: &Path, bytes: &[u8]) -> io::Result<Option<bool>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if file.metadata()?.len() != bytes.len() as u64 {
        return Ok(Some(false));
    }
    let mut buffer = vec![0; 1 << 16];
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = rest.len().min(buffer.len());
        file.read_exact(&mut buffer[..len])?;
        if buffer[..len] != rest[..len] {
            return Ok(Some(false));
        }
        rest = &rest[len..];
    }
    Ok(Some(true))
}

impl ObjectStore for DirectoryObjects {
    fn put(&self, id: &ContentId, bytes: &[u8]) -> Result<Put, ObjectError> {
        let found = ContentId::of(bytes);
        if found != *id {
            return Err(ObjectError::OtherHash { wanted: *id, found });
        }
        let path = self.path(id);
        let parent = path.parent().unwrap_or(&self.directory);
        let known = holds(&path, bytes).map_err(at(&path))?;
        self.prepare(id, parent)?;
        if known != Some(true) {
            self.write(&path, bytes)?;
        }
        // Also for a known object: the publisher that wrote it may have died before this.
        sync_directory(parent)?;
        Ok(match known {
            None => Put::New,
            Some(true) => Put::Known,
            Some(false) => Put::Repaired,
        })
    }

    fn length(&self, id: &ContentId) -> Result<Option<u64>, ObjectError> {
        let path = self.path(id);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    fn read(&self, id: &ContentId, offset: u64, len: u32) -> Result<Bytes, ObjectError> {
        let path = self.path(id);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ObjectError::Missing(*id),
            _ => at(&path)(error),
        })?;
        let bytes = file.metadata().map_err(at(&path))?.len();
        if offset.checked_add(len.into()).is_none_or(|end| end > bytes) {
            return Err(ObjectError::Short { id: *id, bytes, offset, len });
        }
        let mut buffer = vec![0; len as usize];
        file.read_exact_at(&mut buffer, offset).map_err(at(&path))?;
        Ok(buffer.into())
    }

    fn list(&self, each: &mut dyn FnMut(ContentId, u64)) -> Result<(), ObjectError> {
        for first in 0..=u8::MAX {
            let prefix = format!("{first:02x}");
            let path = self.directory.join(OBJECTS).join(&prefix);
            let entries = match fs::read_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(at(&path))?,
            };
            let mut found = Vec::new();
            for entry in entries {
                let entry = entry.map_err(at(&path))?;
                let name = entry.file_name();
                // Whatever has another name was not put here by a publisher.
                let Some(id) = name.to_str().and_then(|rest| format!("{prefix}{rest}").parse().ok()) else {
                    continue;
                };
                found.push((id, entry.metadata().map_err(at(&path))?.len()));
            }
            found.sort_unstable();
            found.into_iter().for_each(|(id, bytes)| each(id, bytes));
        }
        Ok(())
    }

    fn root(&self) -> Result<Option<Vec<u8>>, ObjectError> {
        let path = self.directory.join(ROOT);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(at(&path))?,
        };
        let mut bytes = Vec::new();
        file.take(limits::ROOT_MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(at(&path))?;
        if bytes.len() > limits::ROOT_MAX_BYTES {
            return Err(ObjectError::RootTooLong { bytes: bytes.len() as u64 });
        }
        Ok(Some(bytes))
    }

    fn put_root(&self, bytes: &[u8]) -> Result<(), ObjectError> {
        if bytes.len() > limits::ROOT_MAX_BYTES {
            return Err(ObjectError::RootTooLong { bytes: bytes.len() as u64 });
        }
        self.write(&self.directory.join(ROOT), bytes)?;
        sync_directory(&self.directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, DirectoryObjects, PublisherLock) {
        let dir = tempfile::tempdir().unwrap();
        let objects = DirectoryObjects::new(dir.path(), &"a.example".parse().unwrap());
        let lock = objects.lock().unwrap();
        (dir, objects, lock)
    }

    #[test]
    fn it_does_what_an_object_store_promises() {
        let (_dir, objects, _lock) = open();
        super::super::objects::conformance::run(&objects);
    }

    #[test]
    fn torn_objects_are_repaired_when_they_are_put_again() {
        let (_dir, objects, _lock) = open();
        let id = ContentId::of(b"the whole object");
        objects.put(&id, b"the whole object").unwrap();
        for torn in [&b"the whole"[..], b"the whole obj\0\0\0", b""] {
            fs::write(objects.path(&id), torn).unwrap();
            assert_eq!(objects.put(&id, b"the whole object").unwrap(), Put::Repaired);
            assert_eq!(objects.read(&id, 0, 16).unwrap(), &b"the whole object"[..]);
        }
    }

    #[test]
    fn one_publisher_at_a_time() {
        let (dir, objects, lock) = open();
        let other = DirectoryObjects::new(dir.path(), &"a.example".parse().unwrap());
        assert!(matches!(other.lock(), Err(ObjectError::Locked { .. })));
        drop(lock);
        assert!(other.lock().is_ok());
        drop(objects);
    }

    #[test]
    fn leftovers_of_a_killed_publisher_are_removed() {
        let (_dir, objects, lock) = open();
        let left = objects.directory().join(TEMPORARY).join("4711-0");
        fs::write(&left, b"half an ob").unwrap();
        drop(lock);
        let _lock = objects.lock().unwrap();
        assert!(!left.exists());
    }
}
