//! Sees to it that a test ends which serves the mount that it uses: for an answer that nobody gives it would wait for ever.

use crate::double::{Body, MemorySource, MemoryTree, Naive, node};
use crate::mapped::Mapped;
use crate::mounted::can_mount;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rustix::mount::{UnmountFlags, unmount};
use starling::chunk::{ChunkSource, Piece, SourceError};
use starling::fs::FileSystem;
use starling::fs::fuse::{MountConfig, mount};
use starling::model::Class;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a test that was cut off may take to fail.
const FAILS_WITHIN: Duration = Duration::from_secs(20);

/// Cuts a mount off when it was not called off in time; then whoever waits there gets an error. A test that waits on even so ends together
/// with its program.
pub(crate) struct Watchdog {
    called_off: SyncSender<()>,
    has_bitten: JoinHandle<bool>,
}

impl Watchdog {
    /// `whose` says what does not end.
    pub(crate) fn over(whose: String, folder: &Path, ends_within: Duration) -> Self {
        let (called_off, calls) = sync_channel(0);
        let folder = folder.to_owned();
        let has_bitten = std::thread::spawn(move || {
            if calls.recv_timeout(ends_within) != Err(RecvTimeoutError::Timeout) {
                return false;
            }
            // Past the capture of the test's output, which may never be shown.
            let _ = writeln!(io::stderr(), "{whose} does not end: its mount is cut off");
            let cut_off = unmount(&folder, UnmountFlags::FORCE | UnmountFlags::DETACH);
            if calls.recv_timeout(FAILS_WITHIN) == Err(RecvTimeoutError::Timeout) {
                let _ = writeln!(io::stderr(), "{whose} does not end even so ({cut_off:?})");
                std::process::exit(101);
            }
            true
        });
        Self { called_off, has_bitten }
    }

    /// Whether it was too late.
    pub(crate) fn call_off(self) -> bool {
        drop(self.called_off);
        self.has_bitten.join().unwrap()
    }
}

/// Gives nothing, ever.
struct Mute;

impl ChunkSource for Mute {
    fn read(&self, _: Vec<Piece>, _: Class) -> BoxFuture<'_, Result<Vec<Bytes>, SourceError>> {
        std::future::pending().boxed()
    }
}

#[test]
fn a_mount_that_does_not_answer_is_cut_off_and_who_waits_there_goes_on() {
    if !can_mount() {
        return;
    }
    let file = node(Body::File(b"bytes".to_vec(), 5));
    let naive = Naive::from([(Vec::new(), node(Body::Directory)), (b"file".to_vec(), file)]);
    let tree = Arc::new(MemoryTree::new(&naive, &MemorySource::default()));
    let fs = Arc::new(FileSystem::new("mute", tree, Arc::new(Mute)));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let _mounted = mount(&MountConfig::new(folder.path()), fs, runtime.handle().clone()).unwrap();
    let file = File::open(folder.path().join("file")).unwrap();
    let watchdog = Watchdog::over(
        "a mount that is mute on purpose".to_owned(),
        folder.path(),
        Duration::from_millis(500),
    );
    let mut mapped = Mapped::of(&file).unwrap();
    assert_eq!(mapped.bytes(0, 5), None, "who maps it is killed");
    let error = file.read_at(&mut [0; 5], 0).unwrap_err().raw_os_error().unwrap();
    assert!([libc::ENOTCONN, libc::ECONNABORTED].contains(&error), "{error}");
    assert!(watchdog.call_off());
}
