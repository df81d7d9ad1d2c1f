//! A file in memory.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "a shared module of several programs")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::File;
use std::os::fd::AsRawFd as _;

/// A file in memory, as the kernel maps it.
pub struct Mapping {
    at: *mut libc::c_void,
    len: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread; nobody writes to it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// All of a file, which is not empty.
    ///
    /// # Panics
    /// When it cannot be mapped.
    pub fn of(file: &File) -> Self {
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        // SAFETY: a new mapping, wherever the kernel likes; nobody writes to the file.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { at, len }
    }

    /// Its bytes, read again by the kernel as far as it can be made to.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range is mapped as long as this lives.
        unsafe {
            libc::madvise(self.at, self.len, libc::MADV_DONTNEED);
            std::slice::from_raw_parts(self.at.cast(), self.len)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by this, and borrowed by nobody any more.
        unsafe { libc::munmap(self.at, self.len) };
    }
}
