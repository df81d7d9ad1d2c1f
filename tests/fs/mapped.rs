//! A file in the memory of another process. Where a page cannot be had, the kernel kills who wants it (SIGBUS); and who serves the mount
//! that he maps from would wait for himself.

#[path = "../common/mapping.rs"]
mod mapping;

use mapping::Mapping;
use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};

/// Names the file to the process that maps it.
const MAPS: &str = "STARLING_TEST_MAPS";
/// This program, as that process.
const ELSEWHERE: [&str; 3] = [
    "mapped::a_mapping_is_read_elsewhere_and_a_page_that_cannot_be_had_kills_there",
    "--exact",
    "--nocapture",
];

/// All of a file in the memory of a process of its own, which ends with this.
pub(crate) struct Mapped {
    process: Child,
    wire: UnixStream,
}

impl Mapped {
    /// Maps a file that is open here and not empty. It is opened once more, whatever its name is by now.
    ///
    /// # Errors
    /// Why it could not be opened.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let (wire, theirs) = UnixStream::pair().unwrap();
        let process = Command::new(env::current_exe().unwrap())
            .args(ELSEWHERE)
            .env(MAPS, format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut mapped = Self { process, wire };
        let mut errno = [0; 4];
        mapped.wire.read_exact(&mut errno).expect("it says how the opening went");
        match i32::from_ne_bytes(errno) {
            0 => Ok(mapped),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Some of its bytes as they are read there now; `None` when that process was killed for a page that could not be had.
    ///
    /// # Panics
    /// When it ends in another way.
    pub(crate) fn bytes(&mut self, offset: usize, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        let asked = self.wire.write_all(&words(offset, len));
        let read = asked.and_then(|()| self.wire.read_exact(&mut bytes));
        if read.is_ok() {
            return Some(bytes);
        }
        let ended = self.process.wait().unwrap();
        assert_eq!(ended.signal(), Some(libc::SIGBUS), "who maps a file: {ended}");
        None
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn words(offset: usize, len: usize) -> [u8; 16] {
    let mut words = [0; 16];
    words[..8].copy_from_slice(&offset.to_ne_bytes());
    words[8..].copy_from_slice(&len.to_ne_bytes());
    words
}

#[test]
fn a_mapping_is_read_elsewhere_and_a_page_that_cannot_be_had_kills_there() {
    if let Some(path) = env::var_os(MAPS) {
        return map_for_the_parent(&path);
    }
    let right: Vec<u8> = (0..20_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&right).unwrap();
    let mut mapped = Mapped::of(&file).unwrap();
    assert!(mapped.bytes(5, 9_000).is_some_and(|got| got == right[5..9_005]));
    file.set_len(4_096).unwrap();
    assert!(mapped.bytes(0, 4_096).is_some_and(|got| got == right[..4_096]));
    assert_eq!(mapped.bytes(19_000, 1), None);
}

/// What the other process does: maps a file, and says what is in it as long as it is asked.
fn map_for_the_parent(path: &OsStr) {
    // Who is killed on purpose leaves nothing behind.
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call reads the structure, which lives until it returns.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    let mut wire = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    let opened = File::open(path);
    let errno = opened.as_ref().map_or_else(|error| error.raw_os_error().unwrap(), |_| 0);
    wire.write_all(&errno.to_ne_bytes()).unwrap();
    let Ok(file) = opened else { return };
    let mapping = Mapping::of(&file);
    let mut wanted = [0; 16];
    while wire.read_exact(&mut wanted).is_ok() {
        let word = |at: usize| usize::from_ne_bytes(wanted[at..at + 8].try_into().unwrap());
        // Touched here: a system call would only fail on a page that cannot be had.
        let bytes = mapping.bytes()[word(0)..][..word(8)].to_vec();
        // Lets go of the pages, so that the kernel may drop them.
        let _ = mapping.bytes();
        if wire.write_all(&bytes).is_err() {
            return;
        }
    }
}
