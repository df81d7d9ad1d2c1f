//! The folder of bodies: where their files lie, how many bytes they take, and which are open.

use super::body::Body;
use crate::model::ContentId;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Most bodies whose files the cache itself has open, two descriptors each (guess: more than are read by peers at once).
/// What is handed out is not counted: it is open as long as a reader has the file open.
const MAX_OPEN: usize = 64;

/// Opens a file of the cache for reading and writing, or for reading alone where the disk allows no more.
pub(super) fn open_existing(path: &Path) -> io::Result<File> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(path),
        opened => opened,
    }
}

/// What all bodies of a cache share.
pub(super) struct Files {
    folder: PathBuf,
    /// Bytes of all bodies that are on disk.
    bytes: AtomicU64,
    open: Mutex<Vec<Arc<Body>>>,
}

impl Files {
    /// Bodies in the folder `bodies` of the cache in `folder`.
    pub(super) fn new(folder: &Path) -> Arc<Self> {
        Arc::new(Self { folder: folder.join("bodies"), bytes: AtomicU64::new(0), open: Mutex::default() })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn plain_path(&self, name: &ContentId) -> PathBuf {
        self.folder.join(name.to_string())
    }

    pub(super) fn list_path(&self, name: &ContentId) -> PathBuf {
        self.folder.join(format!("{name}.list"))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn take_bytes(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The files of `body` were opened. Those of the one that was not used for longest are closed, if there are too many.
    pub(super) fn opened(&self, body: &Arc<Body>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(Arc::clone(body));
        if open.len() > MAX_OPEN {
            let oldest = (0..open.len()).min_by_key(|place| open[*place].last_used()).unwrap_or(0);
            let oldest = open.swap_remove(oldest);
            oldest.close();
        }
    }

    /// The files of `body` are not open any more.
    pub(super) fn forget(&self, body: &Body) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|other| !std::ptr::eq(Arc::as_ptr(other), body));
    }

    /// Closes all. Bodies hold this, and this holds those that are open: without it neither would ever go.
    pub(super) fn close_all(&self) {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        open.iter().for_each(|body| body.close());
    }

    /// Bodies whose files are open.
    pub(super) fn open(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
