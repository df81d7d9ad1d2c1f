//! Making a mount, taking one over, and ending it.

use super::super::ledger::Ledger;
use super::super::modes::Modes;
use super::super::mountpoint::{self, MAX_READ_BYTES, MountError, Restrictions};
use super::super::switch::{Notifier, Stale};
use super::super::system::FileSystem;
use super::awake::Awake;
use super::handshake::{self, Agreement};
use super::kernel::{Kernel, Shared};
use crate::ambient;
use fuser::{INodeNo, Session, SessionACL};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// Batches of news that wait for the kernel.
const MAX_NEWS: usize = 4;
/// Between two attempts to unmount what is busy (guess).
const RETRY_UNMOUNT: Duration = Duration::from_millis(50);
/// How long the session gets to end once it is unmounted (guess).
const END_WITHIN: Duration = Duration::from_secs(5);

/// Bytes of a tree for each of its inodes, from which on it counts as one of large files. Below, it is the number of opened files that
/// counts (a Python environment or the root of a Debian image has 15 to 40 KiB); above, the bytes that are read (guess).
const LARGE_FILES_MEAN_BYTES: u64 = 64 << 10;

/// What a mount is tuned for, where one setting cannot serve all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// One of the other two, by the mean size of what is in the tree when it is mounted.
    #[default]
    Auto,
    /// Trees of small files: opening a file asks nobody, which the kernel grants for a whole mount only, and only without
    /// passthrough. Large files are read through this process, and cached by the kernel.
    SmallFiles,
    /// Trees of large files: those that are complete on the local disk are read by the kernel itself (passthrough). Opening a file
    /// costs a request.
    LargeFiles,
}

impl Profile {
    /// The one that fits a tree of so many inodes and plain bytes.
    fn for_tree(self, (inodes, bytes): (u64, u64)) -> Self {
        match self {
            Self::Auto if bytes / inodes.max(1) < LARGE_FILES_MEAN_BYTES => Self::SmallFiles,
            Self::Auto => Self::LargeFiles,
            chosen => chosen,
        }
    }
}

impl std::str::FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Auto, Self::SmallFiles, Self::LargeFiles];
        known.into_iter().find(|profile| profile.to_string() == text).ok_or_else(|| {
            format!("`{text}` is no profile; there are {}", known.map(|one| one.to_string()).join(", "))
        })
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::SmallFiles => "small-files",
            Self::LargeFiles => "large-files",
        })
    }
}

/// Settings of a mount.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// The mount point: an existing, empty directory.
    pub path: PathBuf,
    /// Threads that take requests from the kernel.
    pub threads: usize,
    /// What the kernel reads ahead of a sequential reader, in KiB.
    pub read_ahead_kib: u32,
    /// Requests that may wait for bytes at once; one beyond is an I/O error.
    pub max_waiting: usize,
    /// What it is tuned for.
    pub profile: Profile,
    /// Whether the kernel may read complete files by itself. It does not verify what it reads.
    pub passthrough: bool,
    /// Whether processors are kept awake while programs ask for one thing after the other.
    pub quick_wake: bool,
    /// What the kernel does not do with its files.
    pub restrict: Restrictions,
}

impl MountConfig {
    /// Defaults for a mount at `path`: 4 threads (guess), 1 MiB of read-ahead (one request of the
    /// largest size), 4 096 waiting requests: some KiB each (guess).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            threads: 4,
            read_ahead_kib: MAX_READ_BYTES >> 10,
            max_waiting: 4_096,
            profile: Profile::Auto,
            passthrough: true,
            quick_wake: true,
            restrict: Restrictions::default(),
        }
    }
}

/// How a mount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// Nobody used it any more.
    Cleanly,
    /// It was busy beyond the patience: nobody finds it any more, and those who are inside stay
    /// served until they leave or the process ends.
    Lazily,
    /// Somebody else had unmounted it before.
    Already,
}

/// A live mount. Dropping it detaches it lazily.
pub struct Mounted {
    path: PathBuf,
    shared: Arc<Shared>,
    agreement: Agreement,
    ended: watch::Receiver<bool>,
    /// Number of the session's descriptor, valid until it has ended.
    number: RawFd,
    /// Threads that take requests from it.
    threads: usize,
    /// Whether the mount goes on without this process.
    left: Arc<AtomicBool>,
    /// Whether the kernel is to read complete files by itself.
    wants_passthrough: bool,
    /// What was found to be lacking when it began.
    lacks: Vec<String>,
}

/// What a successor of this process needs to go on with a mount, apart from its tree.
#[derive(Debug)]
pub struct Held {
    /// The kernel's end of it. As long as anybody has it, the mount lives, and who reads waits for answers.
    pub device: OwnedFd,
    /// Which files are open, and how they are read.
    pub open_files: OwnedFd,
    /// What kernel and session agreed upon.
    pub agreement: Agreement,
}

/// Mounts `fs`. Blocks for a moment; call it outside of the runtime's threads.
///
/// # Errors
/// [`MountError`], which says what to do.
pub fn mount(
    config: &MountConfig,
    fs: Arc<FileSystem>,
    runtime: tokio::runtime::Handle,
) -> Result<Mounted, MountError> {
    let path = mountpoint::prepare(&config.path)?;
    let device = mountpoint::attach(&path, &format!("starling:{}", fs.label()), config.restrict)?;
    let begin = || {
        let modes = Modes::new(Ledger::new()?);
        let profile = config.profile.for_tree(fs.totals());
        let passthrough = config.passthrough && profile == Profile::LargeFiles;
        let (kernel, shared) =
            kernel((config, profile), fs, runtime, device.try_clone()?, modes, passthrough);
        let (session, agreement) = handshake::begin(kernel, device.as_fd(), settings(config))?;
        run(session, config, &path, shared, agreement)
    };
    begin()
        .map_err(|cause| {
            let _ = mountpoint::detach(&path, true);
            MountError::Failed { path: path.display().to_string(), action: "start the session", cause }
        })
        .map(|mut mounted| {
            mounted.lacks = settle(&mounted.path, mounted.shared.fs.label(), config);
            mounted
        })
}

/// Goes on with a mount that another process has served, which is gone. Who waits for an answer of that process gets it from this one.
///
/// # Errors
/// [`MountError`] when it is not mounted there any more, or the session cannot begin.
pub fn take_over(
    config: &MountConfig,
    fs: Arc<FileSystem>,
    runtime: tokio::runtime::Handle,
    held: Held,
) -> Result<Mounted, MountError> {
    let (path, background) = (config.path.clone(), runtime.clone());
    let begin = || {
        if !mountpoint::is_mounted(&path, fs.label()) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it is not mounted there any more"));
        }
        mountpoint::restrict(&path, fs.label(), config.restrict)?;
        let (ledger, lines) = Ledger::inherit(held.open_files)?;
        // What was granted holds as long as the mount, whatever the tree is now.
        let profile = match config.profile {
            Profile::Auto if held.agreement.has_passthrough() => Profile::LargeFiles,
            chosen => chosen.for_tree(fs.totals()),
        };
        let passthrough = config.passthrough && held.agreement.has_passthrough();
        let modes = Modes::inherit(ledger, lines);
        let device = held.device;
        let (kernel, shared) =
            kernel((config, profile), fs, runtime, device.try_clone()?, modes, passthrough);
        let session = handshake::take_over(kernel, device.as_fd(), &held.agreement, settings(config))?;
        // Before it runs: what this process has taken itself must not be sent again, for its answer would be to no question.
        if let Err(error) = handshake::resend(device.as_fd()) {
            tracing::warn!(path = %path.display(), "what was asked before is not asked again: {error}");
        }
        let mut mounted = run(session, config, &path, shared, held.agreement)?;
        mounted.lacks = settle(&path, mounted.shared.fs.label(), config);
        let shared = Arc::clone(&mounted.shared);
        background.spawn(async move { shared.look_at_inherited().await });
        Ok(mounted)
    };
    begin().map_err(|cause| MountError::Failed {
        path: path.display().to_string(),
        action: "take the mount over",
        cause,
    })
}

fn settings(config: &MountConfig) -> fuser::Config {
    let mut settings = fuser::Config::default();
    settings.acl = SessionACL::All;
    settings.n_threads = Some(config.threads.max(1));
    // With a descriptor for each thread, those that go with a process take the requests with them that it had taken.
    settings.clone_fd = false;
    settings
}

fn kernel(
    (config, profile): (&MountConfig, Profile),
    fs: Arc<FileSystem>,
    runtime: tokio::runtime::Handle,
    device: OwnedFd,
    modes: Modes,
    passthrough: bool,
) -> (Kernel, Arc<Shared>) {
    let shared = Arc::new(Shared {
        fs,
        profile,
        modes: Mutex::new(modes),
        passthrough: AtomicBool::new(passthrough),
        device,
    });
    let waiting = Arc::new(Semaphore::new(config.max_waiting.max(1)));
    let awake = Awake::new(config.quick_wake);
    (Kernel { shared: Arc::clone(&shared), runtime, waiting, awake }, shared)
}

fn run(
    session: Session<Kernel>,
    config: &MountConfig,
    path: &Path,
    shared: Arc<Shared>,
    agreement: Agreement,
) -> io::Result<Mounted> {
    let notifier = KernelNotifier::start(session.notifier())?;
    let number = session.as_fd().as_raw_fd();
    let (end, ended) = watch::channel(false);
    let left = Arc::new(AtomicBool::new(false));
    let is_left = Arc::clone(&left);
    std::thread::Builder::new().name("starling-mount".to_owned()).spawn(move || {
        match session.run() {
            Err(error) if !is_left.load(Ordering::Relaxed) => {
                tracing::warn!("a mount's session ended with an error: {error}");
            }
            _ => {}
        }
        end.send_replace(true);
    })?;
    shared.fs.set_notifier(Some(Arc::new(notifier)));
    let wants_passthrough = config.passthrough && shared.profile == Profile::LargeFiles;
    Ok(Mounted {
        path: path.to_owned(),
        shared,
        agreement,
        ended,
        number,
        threads: config.threads.max(1),
        left,
        wants_passthrough,
        lacks: Vec::new(),
    })
}

/// Sets what is set once a mount is there, as far as that is allowed; what it lacks then, in words.
fn settle(path: &Path, label: &str, config: &MountConfig) -> Vec<String> {
    let line = mountpoint::mounted_at(path).ok().flatten();
    // What others have mounted on top of it by now is not looked at.
    let Some(line) = line.filter(|line| line.is_of(&format!("starling:{label}"))) else { return Vec::new() };
    let mut lacks = Vec::new();
    if !config.restrict.nosuid && line.has("nosuid") {
        lacks.push("set-id bits: it was mounted by fusermount3, which allows none".to_owned());
    }
    let wanted_kib = config.read_ahead_kib;
    if let Err(error) = raise_read_ahead(&line.device, wanted_kib) {
        lacks.push(format!("a read-ahead of {wanted_kib} KiB, so that sequential reads are slower: {error}"));
    }
    lacks
}

/// Raises the kernel's read-ahead where it is lower.
fn raise_read_ahead(device: &str, kib: u32) -> io::Result<()> {
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    let is_enough = |text: String| text.trim().parse::<u32>().is_ok_and(|found| found >= kib);
    if std::fs::read_to_string(&file).is_ok_and(is_enough) {
        return Ok(());
    }
    std::fs::write(&file, kib.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))
}

/// Why the kernel does not read large files by itself, though it should. `is_granted` says that it has agreed to.
fn passthrough_lacks(is_granted: bool) -> &'static str {
    if is_granted {
        "passthrough, so that large files are read through the agent: the agent needs CAP_SYS_ADMIN, and the cache must not lie on \
         a stacked file system"
    } else {
        "passthrough, so that large files are read through the agent: it needs Linux 6.9"
    }
}

impl Mounted {
    /// Where it is mounted, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is tuned for: never [`Profile::Auto`].
    pub fn profile(&self) -> Profile {
        self.shared.profile
    }

    /// What it has not got of what would make it faster, or was asked for; in words.
    pub fn lacks(&self) -> Vec<String> {
        let mut lacks = self.lacks.clone();
        // The kernel may have refused since it began.
        if self.wants_passthrough && !self.shared.passthrough.load(Ordering::Relaxed) {
            lacks.push(passthrough_lacks(self.agreement.has_passthrough()).to_owned());
        }
        lacks
    }

    /// The file system that is mounted.
    pub fn file_system(&self) -> &Arc<FileSystem> {
        &self.shared.fs
    }

    /// What was agreed with the kernel when the mount began.
    pub fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// What a successor of this process needs. It stays valid while files are opened and closed.
    ///
    /// # Errors
    /// When no more descriptors can be had.
    pub fn held(&self) -> io::Result<Held> {
        let open_files = self.shared.modes().ledger().as_fd().try_clone_to_owned()?;
        Ok(Held { device: self.shared.device.try_clone()?, open_files, agreement: self.agreement.clone() })
    }

    /// Becomes ready when the session has ended, for example because somebody unmounted it.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ended = self.ended.clone();
        async move {
            // An error means that the session's thread is gone, which is an end as well.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    /// Whether the session has ended.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Unmounts. Blocks until nobody uses the mount, at most for `patience`; then it detaches lazily.
    ///
    /// # Errors
    /// When even that fails.
    pub fn unmount(&self, patience: Duration) -> io::Result<Unmounted> {
        let deadline = ambient::now() + patience;
        loop {
            if self.has_ended() {
                return Ok(Unmounted::Already);
            }
            match self.detach(false) {
                Ok(()) => {
                    self.wait_for_the_end();
                    return Ok(Unmounted::Cleanly);
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                // Not a mount point any more: the session is about to end.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.wait_for_the_end();
                    return Ok(Unmounted::Already);
                }
                Err(error) => return Err(error),
            }
            if ambient::now() >= deadline {
                self.detach(true)?;
                return Ok(Unmounted::Lazily);
            }
            std::thread::sleep(RETRY_UNMOUNT);
        }
    }

    /// Unmounts if nobody uses the mount. Gives the mount back when somebody does, or the system refuses.
    pub fn unmount_if_idle(self) -> Option<Self> {
        if !self.has_ended() {
            match self.detach(false) {
                Ok(()) => self.wait_for_the_end(),
                // Not a mount point any more.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.wait_for_the_end(),
                Err(_) => return Some(self),
            }
        }
        None
    }

    /// Leaves the mount to a successor: from now on this process answers nobody, and what it has taken from the kernel the
    /// successor gets again. Somebody else must hold what [`Mounted::held`] gave.
    pub fn leave(self) {
        self.left.store(true, Ordering::Relaxed);
        self.shared.fs.set_notifier(None);
        if self.has_ended() {
            return;
        }
        if let Err(error) = handshake::take_away(self.number, self.threads) {
            tracing::warn!(path = %self.path.display(), "readers may get errors while the agent stops: {error}");
        }
    }

    /// Detaches the mount, and nothing that somebody else has mounted on top of it.
    fn detach(&self, lazily: bool) -> io::Result<()> {
        let ours = format!("starling:{}", self.shared.fs.label());
        match mountpoint::mounted_at(&self.path)? {
            Some(line) if !line.is_of(&ours) => {
                Err(io::Error::new(io::ErrorKind::ResourceBusy, "something else is mounted on top of it"))
            }
            _ => mountpoint::detach(&self.path, lazily),
        }
    }

    fn wait_for_the_end(&self) {
        let deadline = ambient::now() + END_WITHIN;
        while !self.has_ended() && ambient::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.shared.fs.set_notifier(None);
        if self.left.load(Ordering::Relaxed) {
            return;
        }
        // Whoever else is mounted there by now is left alone.
        let ours = format!("starling:{}", self.shared.fs.label());
        let there = mountpoint::mounted_at(&self.path).ok().flatten();
        if !self.has_ended()
            && there.is_some_and(|line| line.is_of(&ours))
            && let Err(error) = mountpoint::detach(&self.path, true)
        {
            tracing::warn!(path = %self.path.display(), "cannot unmount: {error}");
        }
    }
}

type News = (Vec<Stale>, oneshot::Sender<()>);

/// Tells the kernel from a thread of its own: it may have to wait for requests that are being served.
struct KernelNotifier {
    news: mpsc::Sender<News>,
}

impl KernelNotifier {
    fn start(kernel: fuser::Notifier) -> io::Result<Self> {
        let (news, mut incoming) = mpsc::channel::<News>(MAX_NEWS);
        std::thread::Builder::new().name("starling-notify".to_owned()).spawn(move || {
            while let Some((what, done)) = incoming.blocking_recv() {
                for stale in &what {
                    let told = match stale {
                        Stale::Entry { directory, name } => {
                            kernel.inval_entry(INodeNo(directory.0), OsStr::from_bytes(name))
                        }
                        // A negative offset leaves the pages alone.
                        Stale::Attributes(inode) => kernel.inval_inode(INodeNo(inode.0), -1, 0),
                        Stale::Listing(inode) => kernel.inval_inode(INodeNo(inode.0), 0, 0),
                    };
                    if let Err(error) = told {
                        tracing::debug!("the kernel did not take {stale:?}: {error}");
                    }
                }
                let _ = done.send(());
            }
        })?;
        Ok(Self { news })
    }
}

impl Notifier for KernelNotifier {
    fn stale(&self, what: Vec<Stale>) -> BoxFuture<'_, ()> {
        async move {
            let (done, taken) = oneshot::channel();
            if self.news.send((what, done)).await.is_ok() {
                let _ = taken.await;
            }
        }
        .boxed()
    }
}
