//! The folder of bodies: where their files lie, how many bytes they take, and which are open.

use super::body::Body;
use crate::model::ContentId;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Most bodies whose files the cache itself has open, two descriptors each (guess: more than are read by peers at once).
/// What is handed out is not counted: it is open as long as a reader has the file open.
const MAX_OPEN: usize = 64;
/// Most bodies that are held open because the disk has not taken yet what was written to them, two descriptors each (guess:
/// large files that are written in parts within half a minute). What comes in for others meanwhile goes into packs.
const MAX_UNFLUSHED: usize = 256;

/// Most files of bodies that are handed out at once: half of what the process may have open. Without a bound they would take
/// the place of all else, until what is here cannot be opened any more.
fn most_handed_out() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit / 2).ok()).unwrap_or(usize::MAX)
}

/// What was handed out.
struct Handed {
    /// Those that somebody has, and others, until they are swept.
    files: Vec<Weak<File>>,
    sweep_at: usize,
    most: usize,
}

/// Opens a file of the cache for reading and writing, or for reading alone where the disk allows no more.
pub(super) fn open_existing(path: &Path) -> io::Result<File> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(path),
        opened => opened,
    }
}

/// Has the disk take what was written to `file`, and says whether it took all since this was asked last. Unlike `fdatasync` it waits
/// for no journal and empties no memory of the disk itself: it costs no more than the writing that the kernel would do later.
pub(super) fn write_out(file: &File) -> io::Result<()> {
    let all =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the call takes numbers alone, and the descriptor stays open as long as `file` is borrowed.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, all) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // Containers may forbid what they do not know.
    let is_unknown =
        [Errno::NOSYS, Errno::PERM].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    if is_unknown { file.sync_data() } else { Err(error) }
}

/// Drops what the kernel has of `file` in memory, so that the next read shows what the disk has.
pub(super) fn drop_pages(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// What all bodies of a cache share.
pub(super) struct Files {
    folder: PathBuf,
    /// Bytes of all bodies that are on disk.
    bytes: AtomicU64,
    open: Mutex<Vec<Arc<Body>>>,
    /// Bodies that are held open until the disk has taken what was written.
    unflushed: AtomicUsize,
    handed: Mutex<Handed>,
}

impl Files {
    /// Bodies in the folder `bodies` of the cache in `folder`.
    pub(super) fn new(folder: &Path) -> Arc<Self> {
        Arc::new(Self {
            folder: folder.join("bodies"),
            bytes: AtomicU64::new(0),
            open: Mutex::default(),
            unflushed: AtomicUsize::new(0),
            handed: Mutex::new(Handed { files: Vec::new(), sweep_at: 0, most: most_handed_out() }),
        })
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

    /// Removes whatever lies under the name of a body. Those who have it open read on.
    pub(super) fn remove(&self, name: &ContentId) -> io::Result<()> {
        let remove = |path: PathBuf| match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let plain = remove(self.plain_path(name));
        remove(self.list_path(name)).and(plain)
    }

    /// Bytes that the disk has given to the files under the name of a body, holes not counted. Where that cannot be told, 0.
    pub(super) fn allocated_bytes(&self, name: &ContentId) -> u64 {
        // `stat` counts in blocks of 512 bytes, whatever those of the file system have.
        let allocated = |path: PathBuf| match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata.blocks().saturating_mul(512),
            _ => 0,
        };
        allocated(self.plain_path(name)).saturating_add(allocated(self.list_path(name)))
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

    /// Counts a file that is handed out, as long as somebody has it. False when there are too many.
    pub(super) fn may_hand_out(&self, file: &Arc<File>) -> bool {
        let mut handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        // When the list has doubled: constant work for each.
        if handed.files.len() >= handed.sweep_at.min(handed.most) {
            handed.files.retain(|file| file.strong_count() > 0);
            handed.sweep_at = 64.max(2 * handed.files.len());
        }
        let may = handed.files.len() < handed.most;
        if may {
            handed.files.push(Arc::downgrade(file));
        }
        may
    }

    /// As if the process might have twice as many files open.
    #[cfg(test)]
    pub(super) fn set_most_handed_out(&self, most: usize) {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner).most = most;
    }

    /// One more body is held open until the disk has taken what was written, or one less.
    pub(super) fn note_unflushed(&self, is_one_more: bool) {
        if is_one_more {
            self.unflushed.fetch_add(1, Ordering::Relaxed);
        } else {
            self.unflushed.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether as many are held open as may be.
    pub(super) fn many_unflushed(&self) -> bool {
        self.unflushed.load(Ordering::Relaxed) >= MAX_UNFLUSHED
    }

    /// Bodies whose files are open.
    pub(super) fn open(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
