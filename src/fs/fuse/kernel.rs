//! Requests of the kernel, and their answers.
//!
//! A request whose answer is here is answered by the thread that took it from the kernel. One that has
//! to wait for bytes goes to the runtime; so many wait at once, and one beyond that is an error, for each of those ends
//! within its deadline, and what is here must be read on meanwhile.
//!
//! Settings, after measurements: names and attributes are valid for a day (a switch of the revision
//! tells the kernel what changed), absent names too; pages, listings and links stay cached; look-ups in
//! one directory run in parallel; listings carry attributes; closing a file is not reported; directories are not opened at
//! all, and in the profile for small files nor are files.

use super::super::error::FsError;
use super::super::modes::{Backing, Mode, Modes, Registered};
use super::super::mountpoint::MAX_READ_BYTES;
use super::super::system::{ExtendedAttribute, FileSystem, NAME_MAX_BYTES};
use super::awake::Awake;
use super::handshake::RESENT;
use super::mount::Profile;
use crate::catalog::{Attributes, FileKind, Inode, TreeError};
use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use futures::FutureExt;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// How long the kernel believes names and attributes (measured: a day costs nothing, a second much).
const TTL: Duration = Duration::from_secs(86_400);
/// Requests of the kernel's own read-ahead that may be under way (guess; the default is 12).
const MAX_BACKGROUND: u16 = 64;
/// Block size that `stat` and `statfs` report, in bytes.
const BLOCK_BYTES: u32 = 4096;
/// Smallest file that the kernel may read by itself: for less, registering it costs more than it gains (guess).
const PASSTHROUGH_MIN_BYTES: u64 = 128 << 10;
/// How often a body that a predecessor has registered is asked for until it was verified, and after what pauses (guess: its file of
/// 10 GB is hashed by then, and what is not is held by the kernel alone).
const LOOKS_AT_BODY: usize = 20;
const LOOK_AT_BODY_AGAIN: Duration = Duration::from_secs(1);
/// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, uint32_t)` of linux/fuse.h.
const BACKING_CLOSE: libc::Ioctl = (1 << 30 | 4 << 16 | 229 << 8 | 2) as libc::Ioctl;

/// What requests need while they wait.
pub(super) struct Shared {
    pub(super) fs: Arc<FileSystem>,
    /// Not [`Profile::Auto`].
    pub(super) profile: Profile,
    pub(super) modes: Mutex<Modes>,
    /// Whether backing files may be registered with the kernel.
    pub(super) passthrough: AtomicBool,
    /// The kernel's end of the mount.
    pub(super) device: OwnedFd,
}

impl Shared {
    pub(super) fn modes(&self) -> MutexGuard<'_, Modes> {
        // Each change is one call.
        self.modes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self, inode: Inode, task: u32, reply: ReplyOpen) {
        let size = match self.fs.open(inode).await {
            Ok(size) => size,
            Err(error) => return reply.error(errno(&self.fs, &error)),
        };
        // Then every read is to be seen here.
        let recorded = self.fs.is_recorded(task);
        let mode = if size < PASSTHROUGH_MIN_BYTES {
            Some(Mode::Cached)
        } else {
            let may_pass =
                !recorded && self.passthrough.load(Ordering::Relaxed) && self.modes().is_free(inode);
            let body = if may_pass { self.fs.body(inode).await.ok().flatten() } else { None };
            self.modes().open(inode, || self.register(body?))
        };
        if recorded && matches!(mode, Some(Mode::Passed(_))) {
            // Somebody else reads it so already: nobody sees which parts.
            let mut offset = 0;
            while offset < size {
                let len = u32::try_from(size - offset).unwrap_or(u32::MAX);
                self.fs.note_read(task, inode, offset, len).await;
                offset += u64::from(len);
            }
        }
        match mode {
            Some(Mode::Cached) if recorded => reply.opened(FileHandle(0), FopenFlags::FOPEN_NOFLUSH),
            // Pages in the kernel's cache stay.
            Some(Mode::Cached) => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Some(Mode::Passed(backing)) => {
                // SAFETY: the kernel gave this number for a backing file that is registered as long as it stands in the
                // modes; `into_raw` gives it back to them, so that nobody closes it twice.
                let backing = unsafe { reply.wrap_backing(backing) };
                // It refuses to hear of its page cache here.
                reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &backing);
                let _: Backing = backing.into_raw();
            }
            None => {
                self.fs.close(inode);
                reply.error(Errno::ENFILE);
            }
        }
    }

    fn close(&self, inode: Inode) {
        let ended = self.modes().close(inode);
        self.fs.close(inode);
        self.unregister(ended);
    }

    fn forget(&self, inode: Inode, lookups: u64) {
        let counted = self.fs.forget_counted(inode, lookups);
        let ended = self.modes().forget(inode, lookups, counted);
        self.unregister(ended);
    }

    /// Has the bodies verified from which the kernel reads since the time of a predecessor, and held.
    pub(super) async fn look_at_inherited(&self) {
        let inherited = self.modes().inherited();
        for inode in inherited {
            for _ in 0..LOOKS_AT_BODY {
                // It is verified because it was asked for.
                match self.fs.body(inode).await {
                    Ok(Some(body)) => {
                        self.modes().hold(inode, body);
                        break;
                    }
                    Ok(None) => tokio::time::sleep(LOOK_AT_BODY_AGAIN).await,
                    Err(_) => break,
                }
            }
        }
    }

    fn unregister(&self, ended: Option<Backing>) {
        if let Some(backing) = ended {
            // SAFETY: the call reads a number of four bytes, which lives until it returns.
            let closed = unsafe { libc::ioctl(self.device.as_raw_fd(), BACKING_CLOSE, &raw const backing) };
            if closed != 0 {
                tracing::debug!("the kernel did not close a backing file: {}", io::Error::last_os_error());
            }
        }
    }

    /// Registers a body with the kernel. A kernel or an operator that does not allow it is asked once.
    fn register(&self, body: Arc<File>) -> Option<Registered> {
        match BackingId::create_raw(&self.device, &body) {
            Ok(backing) => Some(Registered { backing, body }),
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

/// Who answers the kernel.
pub(super) struct Kernel {
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) waiting: Arc<Semaphore>,
    pub(super) awake: Awake,
}

impl Kernel {
    /// Runs `answer` here if it is ready at once, and on the runtime otherwise.
    fn serve(&self, answer: impl Future<Output = ()> + Send + 'static) {
        self.awake.asked(&self.runtime);
        let mut answer = answer.boxed();
        let ready = {
            let _inside = self.runtime.enter();
            (&mut answer).now_or_never().is_some()
        };
        if ready {
            return;
        }
        let Ok(permit) = Arc::clone(&self.waiting).try_acquire_owned() else {
            // This thread must not wait as well: what is here is to be read on. Without an answer, the reader gets an I/O error.
            self.shared.fs.tell_io_error("too many wait for an answer already");
            return drop(answer);
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
            fs.tell_io_error(error);
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

/// How long the kernel believes an answer.
fn lifetime(lasts: bool) -> Duration {
    if lasts { TTL } else { Duration::ZERO }
}

/// "There is no such name", worth remembering: an entry without an inode.
fn nothing() -> FileAttr {
    attr(&Attributes::blank(Inode(0), FileKind::File))
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
            let found = fs.lookup(Inode(parent.0), &name).await;
            // In a directory that is gone nobody tells what changes, should it come back.
            let ttl = lifetime(fs.names_last(Inode(parent.0)));
            match found {
                Ok(Some(found)) => reply.entry(&ttl, &attr(&found), Generation(0)),
                Ok(None) => reply.entry(&ttl, &nothing(), Generation(0)),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn forget(&self, _request: &Request, inode: INodeNo, lookups: u64) {
        self.shared.forget(Inode(inode.0), lookups);
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let fs = Arc::clone(&self.shared.fs);
        self.serve(async move {
            match fs.attributes(Inode(inode.0)).await {
                Ok(found) => reply.attr(&lifetime(fs.answers_last()), &attr(&found)),
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

    fn open(&self, request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.shared.profile == Profile::SmallFiles {
            // The kernel does not ask again, neither for this file nor for another.
            return reply.error(Errno::ENOSYS);
        }
        let (shared, task) = (Arc::clone(&self.shared), request.pid());
        self.serve(async move { shared.open(Inode(inode.0), task, reply).await });
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (fs, task) = (Arc::clone(&self.shared.fs), request.pid());
        self.serve(async move {
            if fs.is_recorded(task) {
                fs.note_read(task, Inode(inode.0), offset, size).await;
            }
            match fs.read(Inode(inode.0), offset, size).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(errno(&fs, &error)),
            }
        });
    }

    fn ioctl(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _room: u32,
        reply: ReplyIoctl,
    ) {
        // Programs ask in this way whether a file is a terminal, at each that they open. The kernel does not remember the answer.
        self.awake.asked(&self.runtime);
        reply.error(Errno::ENOTTY);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // The kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    /// Holes are not told of: the kernel asks no more, and takes a file as one piece.
    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // One that is sent again may have been counted by who has not answered it any more. Then the file keeps its mode until the
        // kernel forgets it; counted twice, it might lose it too early.
        self.awake.asked(&self.runtime);
        if request.unique().0 & RESENT == 0 {
            self.shared.close(Inode(inode.0));
        }
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
                    // Who began before a switch gets the names of then. The kernel looks each of them up before it uses it.
                    let valid = lifetime(fs.listing_lasts(&listing));
                    for entry in listing.from(offset) {
                        let attr = attr(&entry.attributes);
                        let name = OsStr::from_bytes(entry.name);
                        if reply.add(attr.ino, entry.next_offset, name, &valid, &attr, Generation(0)) {
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
                Ok(ExtendedAttribute::Value(value)) => reply_xattr(reply, &value, room),
                Ok(ExtendedAttribute::Absent) => reply.error(Errno::from_i32(libc::ENODATA)),
                // `ls -l` asks no more then. ENOSYS would end the questions for good, for every name and all that is to come.
                Ok(ExtendedAttribute::Unknown) => reply.error(Errno::EOPNOTSUPP),
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
