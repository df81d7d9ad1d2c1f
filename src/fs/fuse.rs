//! The kernel's protocol, and the only file that imports fuser: requests become calls of
//! [`FileSystem`], its answers become replies, its errors become numbers.
//!
//! A request whose answer is here is answered by the thread that took it from the kernel. One that has
//! to wait for bytes goes to the runtime; so many wait at once, and beyond that the kernel's own queue
//! holds them.
//!
//! Settings, after measurements: names and attributes are valid for a day (a switch of the revision
//! tells the kernel what changed), absent names too; pages, listings and links stay cached; look-ups in
//! one directory run in parallel; listings carry attributes; closing a file is not reported; directories are not opened at
//! all, and in the profile for small files nor are files.

use super::error::FsError;
use super::mountpoint::{self, MAX_READ_BYTES, MountError};
use super::switch::{Notifier, Stale};
use super::modes::Modes;
use super::system::{FileSystem, NAME_MAX_BYTES};
use crate::ambient;
use crate::catalog::{Attributes, FileKind, Inode, TreeError};
use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request, Session, SessionACL,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// How long the kernel believes names and attributes (measured: a day costs nothing, a second much).
const TTL: Duration = Duration::from_secs(86_400);
/// Requests of the kernel's own read-ahead that may be under way (guess; the default is 12).
const MAX_BACKGROUND: u16 = 64;
/// Batches of news that wait for the kernel.
const MAX_NEWS: usize = 4;
/// Between two attempts to unmount what is busy (guess).
const RETRY_UNMOUNT: Duration = Duration::from_millis(50);
/// How long the session gets to end once it is unmounted (guess).
const END_WITHIN: Duration = Duration::from_secs(5);
/// Block size that `stat` and `statfs` report, in bytes.
const BLOCK_BYTES: u32 = 4096;

/// What a mount is tuned for, where one setting cannot serve all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Files that are complete on the local disk are read by the kernel itself (passthrough).
    #[default]
    Default,
    /// Trees of small files: opening a file asks nobody, which the kernel grants for a whole mount only, and only without
    /// passthrough. Large files are read through this process, and cached by the kernel.
    SmallFiles,
}

impl std::str::FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Default, Self::SmallFiles];
        known.into_iter().find(|profile| profile.to_string() == text).ok_or_else(|| {
            format!("`{text}` is no profile; there are {}", known.map(|one| one.to_string()).join(" and "))
        })
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::SmallFiles => "small-files",
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
    /// Requests that may wait for bytes at once.
    pub max_waiting: usize,
    /// What it is tuned for.
    pub profile: Profile,
    /// Whether the kernel may read complete files by itself. It does not verify what it reads.
    pub passthrough: bool,
}

impl MountConfig {
    /// Defaults for a mount at `path`: 4 threads (guess), 1 MiB of read-ahead (one request of the
    /// largest size), 256 waiting requests (guess).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            threads: 4,
            read_ahead_kib: MAX_READ_BYTES >> 10,
            max_waiting: 256,
            profile: Profile::Default,
            passthrough: true,
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
    fs: Arc<FileSystem>,
    ended: watch::Receiver<bool>,
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
    let device = mountpoint::attach(&path, &format!("starling:{}", fs.label()))?;
    let threads = config.threads.max(1);
    let mut settings = fuser::Config::default();
    settings.acl = SessionACL::All;
    settings.n_threads = Some(threads);
    settings.clone_fd = threads > 1;
    let waiting = Arc::new(Semaphore::new(config.max_waiting.max(1)));
    let passthrough = config.passthrough && config.profile == Profile::Default;
    let shared = Shared {
        fs: Arc::clone(&fs),
        modes: Mutex::default(),
        passthrough: AtomicBool::new(passthrough),
    };
    let kernel = Kernel { shared: Arc::new(shared), profile: config.profile, runtime, waiting };
    let started = Session::from_fd(kernel, device, SessionACL::All, settings).and_then(|session| {
        let notifier = KernelNotifier::start(session.notifier())?;
        let (end, ended) = watch::channel(false);
        std::thread::Builder::new().name("starling-mount".to_owned()).spawn(move || {
            if let Err(error) = session.run() {
                tracing::warn!("a mount's session ended with an error: {error}");
            }
            end.send_replace(true);
        })?;
        fs.set_notifier(Some(Arc::new(notifier)));
        Ok(ended)
    });
    match started {
        Ok(ended) => {
            raise_read_ahead(&path, config.read_ahead_kib);
            Ok(Mounted { path, fs, ended })
        }
        Err(cause) => {
            let _ = mountpoint::detach(&path, true);
            Err(MountError::Failed { path: path.display().to_string(), action: "start the session", cause })
        }
    }
}

/// Best effort: without the right to it, sequential reads are slower and nothing else.
fn raise_read_ahead(path: &Path, kib: u32) {
    let raised = mountpoint::mounted_at(path).and_then(|line| {
        let line = line.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        std::fs::write(format!("/sys/class/bdi/{}/read_ahead_kb", line.device), kib.to_string())
    });
    if let Err(error) = raised {
        tracing::debug!(path = %path.display(), "the kernel's read-ahead stays as it is: {error}");
    }
}

impl Mounted {
    /// Where it is mounted, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file system that is mounted.
    pub fn file_system(&self) -> &Arc<FileSystem> {
        &self.fs
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
    pub fn unmount(self, patience: Duration) -> io::Result<Unmounted> {
        let deadline = ambient::now() + patience;
        loop {
            if self.has_ended() {
                return Ok(Unmounted::Already);
            }
            match mountpoint::detach(&self.path, false) {
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
                mountpoint::detach(&self.path, true)?;
                return Ok(Unmounted::Lazily);
            }
            std::thread::sleep(RETRY_UNMOUNT);
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
        self.fs.set_notifier(None);
        // Whoever else is mounted there by now is left alone.
        let ours = format!("starling:{}", self.fs.label());
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

/// What requests need while they wait.
struct Shared {
    fs: Arc<FileSystem>,
    modes: Mutex<Modes<BackingId>>,
    /// Whether backing files may be registered with the kernel.
    passthrough: AtomicBool,
}

impl Shared {
    fn modes(&self) -> MutexGuard<'_, Modes<BackingId>> {
        // Each change is one call.
        self.modes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self, inode: Inode, reply: ReplyOpen) {
        if let Err(error) = self.fs.open(inode).await {
            return reply.error(errno(&self.fs, &error));
        }
        let may_pass = self.passthrough.load(Ordering::Relaxed) && self.modes().is_free(inode);
        let body = if may_pass { self.fs.body(inode).await.ok().flatten() } else { None };
        let backing = self.modes().open(inode, || self.register(&reply, &body?));
        // Pages in the kernel's cache stay; with passthrough it refuses to hear of them.
        match backing {
            Some(backing) => reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &backing),
            None => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
        }
    }

    /// Registers a body with the kernel. A kernel or an operator that does not allow it is asked once.
    fn register(&self, reply: &ReplyOpen, body: &File) -> Option<BackingId> {
        match reply.open_backing(body) {
            Ok(backing) => Some(backing),
            Err(error) => {
                // Another thread may have noted it meanwhile.
                if self.passthrough.swap(false, Ordering::Relaxed) {
                    tracing::warn!(
                        repository = self.fs.label(),
                        "large files are read through the agent, not by the kernel itself (slower): the kernel refused a \
                         backing file: {error}; it needs Linux 6.9, the capability CAP_SYS_ADMIN, and a cache that does not \
                         itself lie on a stacked file system"
                    );
                }
                None
            }
        }
    }
}

struct Kernel {
    shared: Arc<Shared>,
    profile: Profile,
    runtime: tokio::runtime::Handle,
    waiting: Arc<Semaphore>,
}

impl Kernel {
    /// Runs `answer` here if it is ready at once, and on the runtime otherwise.
    fn serve(&self, answer: impl Future<Output = ()> + Send + 'static) {
        let mut answer = answer.boxed();
        let ready = {
            let _inside = self.runtime.enter();
            (&mut answer).now_or_never().is_some()
        };
        if ready {
            return;
        }
        let waiting = Arc::clone(&self.waiting);
        let permit = match Arc::clone(&waiting).try_acquire_owned() {
            Ok(permit) => Ok(permit),
            // So many wait that this thread does, too; each of them ends within a bounded time.
            Err(_) => self.runtime.block_on(waiting.acquire_owned()),
        };
        self.runtime.spawn(async move {
            answer.await;
            drop(permit);
        });
    }
}

/// The system's number for an error. What a user should know about is logged here, once.
fn errno(fs: &FileSystem, error: &FsError) -> Errno {
    match error {
        FsError::Stale(_) => Errno::from_i32(libc::ESTALE),
        FsError::NotADirectory(_) => Errno::ENOTDIR,
        FsError::IsADirectory(_) => Errno::EISDIR,
        FsError::WrongKind(_) => Errno::EINVAL,
        FsError::NameTooLong { .. } => Errno::ENAMETOOLONG,
        FsError::TooManyOpen(_) => Errno::ENFILE,
        FsError::Metadata { cause: TreeError::UnknownInode(_), .. } => Errno::from_i32(libc::ESTALE),
        FsError::Content { .. } | FsError::Metadata { .. } => {
            tracing::warn!(repository = fs.label(), "a reader gets an I/O error: {error}");
            Errno::EIO
        }
    }
}

fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
    }
}

/// A moment before 1970 counts downwards in seconds and upwards in nanoseconds.
fn time(seconds: i64, nanos: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    second.and_then(|second| second.checked_add(Duration::from_nanos(u64::from(nanos)))).unwrap_or(UNIX_EPOCH)
}

fn attr(of: &Attributes) -> FileAttr {
    let mtime = time(of.mtime_s, of.mtime_ns);
    FileAttr {
        ino: INodeNo(of.inode.0),
        size: of.size,
        blocks: of.size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: kind(of.kind),
        perm: of.permissions,
        nlink: of.links,
        uid: of.uid,
        gid: of.gid,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// "There is no such name", worth remembering: an entry without an inode.
fn nothing() -> FileAttr {
    let inode = Inode(0);
    attr(&Attributes {
        inode,
        kind: FileKind::File,
        permissions: 0,
        uid: 0,
        gid: 0,
        size: 0,
        links: 0,
        mtime_s: 0,
        mtime_ns: 0,
    })
}

/// The protocol asks twice: how long, then what.
fn reply_xattr(reply: ReplyXattr, value: &[u8], room: u32) {
    match u32::try_from(value.len()) {
        Err(_) => reply.error(Errno::E2BIG),
        Ok(len) if room == 0 => reply.size(len),
        Ok(len) if len > room => reply.error(Errno::ERANGE),
        Ok(_) => reply.data(value),
    }
}

impl Filesystem for Kernel {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Pages go when we say so, not when a time stamp differs.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ];
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!("this kernel lacks {missing:?}");
            }
        }
        let passthrough = &self.shared.passthrough;
        if passthrough.load(Ordering::Relaxed) {
            // Bodies lie on an ordinary file system; on top of theirs, this one is the first layer.
            let can = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
            if !can || config.set_max_stack_depth(1).is_err() {
                tracing::info!(
                    repository = self.shared.fs.label(),
                    "this kernel has no FUSE passthrough (Linux 6.9): large files are read through the agent"
                );
                passthrough.store(false, Ordering::Relaxed);
            }
        }
        // Each refusal names the nearest value that is accepted.
        let _ = config.set_max_write(MAX_READ_BYTES).or_else(|near| config.set_max_write(near));
        let _ = config.set_max_readahead(MAX_READ_BYTES).or_else(|near| config.set_max_readahead(near));
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name) = (Arc::clone(&self.shared.fs), name.as_bytes().to_vec());
        self.serve(async move {
            match fs.lookup(Inode(parent.0), &name).await {
                Ok(Some(found)) => reply.entry(&TTL, &attr(&found), Generation(0)),
                Ok(None) => reply.entry(&TTL, &nothing(), Generation(0)),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn forget(&self, _request: &Request, inode: INodeNo, lookups: u64) {
        self.shared.fs.forget(Inode(inode.0), lookups);
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let fs = Arc::clone(&self.shared.fs);
        self.serve(async move {
            match fs.attributes(Inode(inode.0)).await {
                Ok(found) => reply.attr(&TTL, &attr(&found)),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        let fs = Arc::clone(&self.shared.fs);
        self.serve(async move {
            match fs.link_target(Inode(inode.0)).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn open(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.profile == Profile::SmallFiles {
            // The kernel does not ask again, neither for this file nor for another.
            return reply.error(Errno::ENOSYS);
        }
        let shared = Arc::clone(&self.shared);
        self.serve(async move { shared.open(Inode(inode.0), reply).await });
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fs = Arc::clone(&self.shared.fs);
        self.serve(async move {
            match fs.read(Inode(inode.0), offset, size).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // The kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.modes().close(Inode(inode.0));
        self.shared.fs.close(Inode(inode.0));
        reply.ok();
    }

    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel does not ask again: it lists a directory without opening it, and caches what it gets.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let fs = Arc::clone(&self.shared.fs);
        self.serve(async move {
            match fs.read_directory(Inode(inode.0), offset).await {
                Ok(listing) => {
                    let mut read_to = offset;
                    for entry in listing.from(offset) {
                        let (inode, kind) = (INodeNo(entry.attributes.inode.0), kind(entry.attributes.kind));
                        if reply.add(inode, entry.next_offset, kind, OsStr::from_bytes(entry.name)) {
                            break;
                        }
                        read_to = entry.next_offset;
                    }
                    fs.read_up_to(&listing, read_to);
                    reply.ok();
                }
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let fs = Arc::clone(&self.shared.fs);
        self.serve(async move {
            match fs.read_directory(Inode(inode.0), offset).await {
                Ok(listing) => {
                    let mut read_to = offset;
                    for entry in listing.from(offset) {
                        let attr = attr(&entry.attributes);
                        let name = OsStr::from_bytes(entry.name);
                        if reply.add(attr.ino, entry.next_offset, name, &TTL, &attr, Generation(0)) {
                            break;
                        }
                        // Counted before the reply goes out, for `forget` may follow at once.
                        fs.remember_listed(&listing, &entry);
                        read_to = entry.next_offset;
                    }
                    fs.read_up_to(&listing, read_to);
                    reply.ok();
                }
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let (inodes, bytes) = self.shared.fs.totals();
        let blocks = bytes.div_ceil(u64::from(BLOCK_BYTES));
        let name_max = u32::try_from(NAME_MAX_BYTES).unwrap_or(u32::MAX);
        reply.statfs(blocks, 0, 0, inodes, 0, BLOCK_BYTES, name_max, BLOCK_BYTES);
    }

    fn getxattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, room: u32, reply: ReplyXattr) {
        let (fs, name) = (Arc::clone(&self.shared.fs), name.as_bytes().to_vec());
        self.serve(async move {
            match fs.extended_attribute(Inode(inode.0), &name).await {
                Ok(Some(value)) => reply_xattr(reply, &value, room),
                Ok(None) => reply.error(Errno::from_i32(libc::ENODATA)),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn listxattr(&self, _request: &Request, inode: INodeNo, room: u32, reply: ReplyXattr) {
        let fs = Arc::clone(&self.shared.fs);
        self.serve(async move {
            match fs.extended_attribute_names(Inode(inode.0)).await {
                Ok(names) => reply_xattr(reply, &names, room),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }
}
