//! Attaching to a folder and detaching from it: `mount(2)` with the rights for it, `fusermount3` without.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The file system's type, as `mount` shows it after `fuse.`.
const SUBTYPE: &str = "starling";
/// Bytes of the largest read request (measured: larger is not faster).
pub(super) const MAX_READ_BYTES: u32 = 1 << 20;
/// How long a mount that is in the way gets to show that somebody serves it (guess).
const ALIVE_WITHIN: Duration = Duration::from_secs(2);
/// Major and minor number of the kernel's FUSE device (Documentation/admin-guide/devices.txt).
const FUSE_DEVICE: (u32, u32) = (10, 229);
/// Dead mounts on top of each other that are cleared (guess).
const MAX_STALE: usize = 8;

/// What the kernel does not do with a mount's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Restrictions {
    /// Set-id bits mean nothing.
    pub nosuid: bool,
    /// Device nodes are no devices. A tree holds none, so that is so whatever was said, as agents before this default have said.
    #[serde(deserialize_with = "always")]
    pub nodev: bool,
    /// Nothing is executed.
    pub noexec: bool,
}

impl Default for Restrictions {
    /// A publisher's files run with the rights of whoever runs them, and no others.
    fn default() -> Self {
        Self { nosuid: true, nodev: true, noexec: false }
    }
}

/// True, whatever stands there.
fn always<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    bool::deserialize(deserializer).map(|_| true)
}

impl Restrictions {
    /// Whether nothing is allowed that the other forbids.
    pub fn hold_all_of(self, other: Self) -> bool {
        let Self { nosuid, nodev, noexec } = other;
        self.nosuid >= nosuid && self.nodev >= nodev && self.noexec >= noexec
    }

    /// Whether a mount is under all of them.
    fn hold_in(self, line: &MountLine) -> bool {
        let wanted = [(self.nosuid, "nosuid"), (self.nodev, "nodev"), (self.noexec, "noexec")];
        wanted.iter().all(|(is_wanted, option)| !is_wanted || line.has(option))
    }

    fn flags(self) -> MountFlags {
        let flag = |is_set, flag| if is_set { flag } else { MountFlags::empty() };
        MountFlags::RDONLY
            | flag(self.nosuid, MountFlags::NOSUID)
            | flag(self.nodev, MountFlags::NODEV)
            | flag(self.noexec, MountFlags::NOEXEC)
    }
}

/// Why a mount was not made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no such folder.
    #[error("{path}: the mount point does not exist; make it with `mkdir -p`")]
    NotThere {
        /// The mount point.
        path: String,
    },
    /// It is no folder.
    #[error("{path}: the mount point is not a directory")]
    NotADirectory {
        /// The mount point.
        path: String,
    },
    /// Something would be hidden.
    #[error("{path}: the mount point is not empty")]
    NotEmpty {
        /// The mount point.
        path: String,
    },
    /// Something is mounted there.
    #[error("{path}: `{source_name}` is mounted there already; unmount it first")]
    AlreadyMounted {
        /// The mount point.
        path: String,
        /// What is mounted.
        source_name: String,
    },
    /// The kernel offers no FUSE.
    #[error("/dev/fuse {found}: load the module (`modprobe fuse`), or give the container the device")]
    NoDevice {
        /// What is there instead.
        found: &'static str,
    },
    /// Not root, and no helper.
    #[error("mounting needs root (CAP_SYS_ADMIN) or fusermount3 (package `fuse3`): {detail}")]
    NotPermitted {
        /// What was tried.
        detail: String,
    },
    /// Anything else.
    #[error("{path}: {action}: {cause}")]
    Failed {
        /// The mount point.
        path: String,
        /// What was being done.
        action: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> MountError {
    let path = shown(path);
    move |cause| MountError::Failed { path, action, cause }
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountLine {
    /// `MAJOR:MINOR`, which names its read-ahead settings in /sys.
    pub(super) device: String,
    source: String,
    file_system: String,
    /// What the kernel does and does not do there: `ro,nosuid`.
    options: String,
}

impl MountLine {
    /// Whether it has an option.
    pub(super) fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|one| one == option)
    }

    /// Whether it is a mount of Starling with this name.
    pub(super) fn is_of(&self, name: &str) -> bool {
        self.file_system == format!("fuse.{SUBTYPE}") && self.source == name
    }
}

/// What is mounted at exactly `path`, on top.
pub(super) fn mounted_at(path: &Path) -> io::Result<Option<MountLine>> {
    Ok(find_mounts(&std::fs::read("/proc/self/mountinfo")?, path).next())
}

/// Whether an automounter of this source is mounted at `path`.
///
/// # Errors
/// When something else is, or the list of mounts cannot be read.
pub(super) fn autofs_at(path: &Path, source: &str) -> io::Result<bool> {
    match mounted_at(path)? {
        None => Ok(false),
        Some(line) if line.file_system == "autofs" && line.source == source => Ok(true),
        Some(line) => {
            let detail = format!("`{}` is mounted there already; unmount it first", line.source);
            Err(io::Error::new(io::ErrorKind::AlreadyExists, detail))
        }
    }
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE OPTIONS`; the last line is on top, and comes first.
fn find_mounts(mountinfo: &[u8], path: &Path) -> impl Iterator<Item = MountLine> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    mountinfo.split(|byte| *byte == b'\n').rev().filter_map(move |line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        if unescape(fields.get(4)?) != path.as_os_str().as_bytes() {
            return None;
        }
        Some(MountLine {
            device: text(fields.get(2)?),
            source: text(&unescape(fields.get(dash + 2)?)),
            file_system: text(fields.get(dash + 1)?),
            options: text(fields.get(5)?),
        })
    })
}

/// Undoes `\040` and its like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits =
            tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    plain
}

/// The path of a mount point without links, as the kernel's list of mounts has it. Whoever serves what is mounted there, or on the way
/// to it, may not answer: then, and where nothing is there, the path stays as it is.
pub fn real_path(path: &Path) -> PathBuf {
    let asked = path.to_owned();
    let found = within_alive("where it is", path, move || {
        let (Some(parent), Some(name)) = (asked.parent(), asked.file_name()) else {
            return asked.canonicalize();
        };
        let whole = parent.canonicalize()?.join(name);
        // What is mounted there is not a link, which the kernel knows without asking who serves it.
        if std::fs::read_link(&whole).is_ok() { whole.canonicalize() } else { Ok(whole) }
    });
    found.and_then(Result::ok).unwrap_or_else(|| path.to_owned())
}

/// What is being asked about which path, each by a thread of its own, which ends with the answer.
static PROBES: Mutex<BTreeSet<(&str, PathBuf)>> = Mutex::new(BTreeSet::new());
/// One of them has its answer.
static ANSWERED: Condvar = Condvar::new();

/// A line of [`PROBES`], as long as it is asked.
struct Probe(&'static str, PathBuf);

impl Probe {
    /// `None` when what was asked before has no answer in time: then another thread would only hang beside the one that does.
    fn begin(what: &'static str, path: &Path) -> Option<Self> {
        let line = (what, path.to_owned());
        let asking = PROBES.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = ANSWERED.wait_timeout_while(asking, ALIVE_WITHIN, |asking| asking.contains(&line));
        let (mut asking, _) = waited.unwrap_or_else(PoisonError::into_inner);
        asking.insert(line).then(|| Self(what, path.to_owned()))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let line = (self.0, std::mem::take(&mut self.1));
        PROBES.lock().unwrap_or_else(PoisonError::into_inner).remove(&line);
        ANSWERED.notify_all();
    }
}

/// Asks something of a path to which a mount that nobody serves may give no answer, on another thread; `None` without an answer in
/// time. A question that hangs is not asked a second time beside.
fn within_alive<T: Send + 'static>(
    what: &'static str,
    path: &Path,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let probe = Probe::begin(what, path)?;
    let (answer, asked) = sync_channel(1);
    let thread = std::thread::Builder::new().name("starling-probe".to_owned()).spawn(move || {
        let found = ask();
        // Before the answer: whoever has it may ask again at once.
        drop(probe);
        let _ = answer.send(found);
    });
    thread.ok().and_then(|_| asked.recv_timeout(ALIVE_WITHIN).ok())
}

/// Checks that `path` can be mounted upon, clearing dead mounts of ours. Returns it without links.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, MountError> {
    // The last part is not looked at before it is known that no dead mount answers for it.
    let whole = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            parent.canonicalize().map(|parent| parent.join(name))
        }
        _ => path.canonicalize(),
    };
    let mut whole = whole.map_err(|_| MountError::NotThere { path: shown(path) })?;
    clear_stale(&whole)?;
    match std::fs::metadata(&whole) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::NotThere { path: shown(path) });
        }
        Err(error) => return Err(failed(path, "look at the mount point")(error)),
        Ok(status) if !status.is_dir() => return Err(MountError::NotADirectory { path: shown(path) }),
        Ok(_) => {}
    }
    let real = whole.canonicalize().map_err(failed(path, "look at the mount point"))?;
    if real != whole {
        whole = real;
        clear_stale(&whole)?;
    }
    let mut entries = std::fs::read_dir(&whole).map_err(failed(path, "list the mount point"))?;
    if entries.next().is_some() {
        return Err(MountError::NotEmpty { path: shown(path) });
    }
    Ok(whole)
}

/// Detaches dead mounts of ours from `path`. Whatever else is mounted there is an error.
fn clear_stale(path: &Path) -> Result<(), MountError> {
    for _ in 0..MAX_STALE {
        let line = mounted_at(path).map_err(failed(path, "read /proc/self/mountinfo"))?;
        let Some(line) = line else { return Ok(()) };
        let ours = line.file_system == format!("fuse.{SUBTYPE}");
        if !ours || !is_dead(path) {
            return Err(MountError::AlreadyMounted { path: shown(path), source_name: line.source });
        }
        tracing::info!(path = %path.display(), "a mount whose agent is gone is cleared away");
        detach(path, true).map_err(failed(path, "clear a dead mount"))?;
    }
    Err(MountError::AlreadyMounted { path: shown(path), source_name: "a pile of dead mounts".to_owned() })
}

/// Whether nobody serves the mount at `path`. Asked by `statfs`, which the kernel never answers from
/// its caches, and from another thread, since a stopped server does not answer at all.
fn is_dead(path: &Path) -> bool {
    let asked = path.to_owned();
    let is_dead = move || rustix::fs::statfs(&asked).err() == Some(Errno::NOTCONN);
    within_alive("who serves it", path, is_dead).unwrap_or(false)
}

/// Opens the kernel's FUSE device. Anything else in its place, as in a container that has a file of that name, would be found
/// out by `mount`, which only says "invalid argument".
fn open_device(device: &Path, mount_point: &Path) -> Result<OwnedFd, MountError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let opened = match rustix::fs::open(device, flags, Mode::empty()) {
        Ok(opened) => opened,
        Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
            return Err(MountError::NoDevice { found: "is not there" });
        }
        Err(Errno::ISDIR) => return Err(MountError::NoDevice { found: "is no FUSE device" }),
        Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
            let detail = format!("/dev/fuse: {}; a container must be given it", io::Error::from(errno));
            return Err(MountError::NotPermitted { detail });
        }
        Err(errno) => return Err(failed(mount_point, "open /dev/fuse")(errno.into())),
    };
    let found =
        rustix::fs::fstat(&opened).map_err(|errno| failed(mount_point, "look at /dev/fuse")(errno.into()))?;
    let is_character_device = rustix::fs::FileType::from_raw_mode(found.st_mode).is_char_device();
    let number = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
    if is_character_device && number == FUSE_DEVICE {
        Ok(opened)
    } else {
        Err(MountError::NoDevice { found: "is no FUSE device" })
    }
}

/// Mounts a FUSE file system at `path` and returns the kernel's end of it.
pub(super) fn attach(path: &Path, name: &str, restrict: Restrictions) -> Result<OwnedFd, MountError> {
    let device = open_device(Path::new("/dev/fuse"), path)?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let options = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions,allow_other,\
         max_read={MAX_READ_BYTES},subtype={SUBTYPE}",
        device.as_raw_fd()
    );
    let options = CString::new(options).expect("no zero byte in numbers and words");
    match rustix::mount::mount(name, path, "fuse", restrict.flags(), options.as_c_str()) {
        Ok(()) => Ok(device),
        Err(Errno::PERM) => attach_by_helper(path, name, restrict),
        Err(errno) => Err(failed(path, "mount")(errno.into())),
    }
}

/// `fusermount3` mounts for those who may not, and hands the descriptor over a socket.
fn attach_by_helper(path: &Path, name: &str, restrict: Restrictions) -> Result<OwnedFd, MountError> {
    let helper = |action| failed(path, action);
    let (ours, theirs) = UnixStream::pair().map_err(helper("make a socket for fusermount3"))?;
    // A plain `dup` is inherited by the child; the original is not.
    let inherited = rustix::io::dup(&theirs).map_err(|errno| helper("share a socket")(errno.into()))?;
    drop(theirs);
    // It sets `nosuid` and `nodev` by itself.
    let noexec = if restrict.noexec { "noexec," } else { "" };
    let options = format!(
        "ro,{noexec}default_permissions,allow_other,max_read={MAX_READ_BYTES},fsname={name},subtype={SUBTYPE}"
    );
    let child = Command::new("fusermount3")
        .args(["-o", &options, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", inherited.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| MountError::NotPermitted { detail: format!("fusermount3: {error}") })?;
    drop(inherited);
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(helper("wait for fusermount3"))?;
    match received {
        Ok(Some(device)) => Ok(device),
        Ok(None) | Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(MountError::NotPermitted { detail: format!("fusermount3: {said}") })
        }
    }
}

/// The descriptor in the next message, or `None` when the other end closed without one.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// Sees to it that a mount of this name, which an earlier program may have made, is under these restrictions. Those who see it from
/// another mount namespace keep what they were given.
///
/// # Errors
/// When that is not to be had: it is not to be gone on with then.
pub(super) fn restrict(path: &Path, name: &str, restrict: Restrictions) -> io::Result<()> {
    let mounts = std::fs::read("/proc/self/mountinfo")?;
    let name = format!("starling:{name}");
    let lines: Vec<_> = find_mounts(&mounts, path).collect();
    if lines.iter().any(|line| line.is_of(&name) && restrict.hold_in(line)) {
        return Ok(());
    }
    // What is covered now may be uncovered later.
    if !lines.first().is_some_and(|line| line.is_of(&name)) {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "something else is mounted on top of it"));
    }
    tracing::info!(path = %path.display(), "an earlier agent has mounted it with fewer restrictions, which are set now");
    // With `bind`, those of the mount change, and the file system is not asked.
    rustix::mount::mount_remount(path, restrict.flags() | MountFlags::BIND, c"").map_err(io::Error::from)
}

/// Whether a mount of the repository `name` is there, served or not, and even if something else is mounted on top of it.
pub fn is_mounted(path: &Path, name: &str) -> bool {
    let name = format!("starling:{name}");
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    find_mounts(&mounts, path).any(|line| line.is_of(&name))
}

/// Detaches mounts of ours that nobody serves any more: their descriptors are closed everywhere. What is live, or of somebody else,
/// stays.
///
/// # Errors
/// [`MountError`] when something else is mounted there, or the system refuses.
pub fn clear_dead(path: &Path) -> Result<(), MountError> {
    clear_stale(path)
}

/// Unmounts `path`: at once and only if nobody uses it, or lazily.
pub(super) fn detach(path: &Path, lazily: bool) -> io::Result<()> {
    let flags = UnmountFlags::NOFOLLOW | if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => {
            let mode: &OsStr = OsStr::new(if lazily { "-uz" } else { "-u" });
            let output = Command::new("fusermount3").arg(mode).arg("--").arg(path).output()?;
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let busy = said.contains("busy");
            let kind = if busy { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
            Err(io::Error::new(kind, said))
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LINES: &[u8] = b"36 35 98:0 / / rw - ext4 /dev/root rw\n\
        40 36 0:50 / /mnt/with\\040space ro,relatime shared:1 - fuse.starling starling:a ro\n\
        41 40 0:51 / /mnt/with\\040space ro - fuse.other b\\134c ro\n";

    #[test]
    fn the_topmost_mount_is_found_and_escapes_are_undone() {
        let mut lines = find_mounts(LINES, Path::new("/mnt/with space"));
        let (device, source, file_system) = ("0:51".into(), "b\\c".into(), "fuse.other".into());
        let options = "ro".into();
        assert_eq!(lines.next(), Some(MountLine { device, source, file_system, options }));
        assert!(lines.next().is_some_and(|below| below.is_of("starling:a")) && lines.next().is_none());
        assert_eq!(find_mounts(LINES, Path::new("/mnt")).next(), None);
        assert_eq!(find_mounts(b"nonsense\n1 2 3 - \n", Path::new("3")).next(), None);
    }

    #[test]
    fn set_id_bits_mean_nothing_unless_somebody_asks_for_them() {
        let usual = Restrictions::default();
        assert!(usual.flags().contains(MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV));
        assert!(!usual.flags().contains(MountFlags::NOEXEC));
        let asked = Restrictions { nosuid: false, ..usual };
        assert!(!asked.flags().contains(MountFlags::NOSUID));
        assert!(usual.hold_all_of(asked) && usual.hold_all_of(usual) && !asked.hold_all_of(usual));
        assert!(!usual.hold_all_of(Restrictions { noexec: true, ..usual }));
        for (options, hold) in [("ro,nosuid,nodev,relatime", [true, true]), ("ro,nodev", [false, true])] {
            let line = format!("36 35 0:50 / /mnt {options} - fuse.starling starling:a ro\n");
            let line = find_mounts(line.as_bytes(), Path::new("/mnt")).next().unwrap();
            assert_eq!([usual, asked].map(|restrict| restrict.hold_in(&line)), hold, "{options}");
        }
    }

    #[test]
    fn what_an_earlier_program_has_mounted_with_set_id_bits_loses_them() {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            assert!(std::env::var_os("STARLING_REQUIRE_ALL").is_none(), "it needs root and /dev/fuse");
            return;
        }
        /// Is detached however the test ends.
        struct Attached(PathBuf);
        impl Drop for Attached {
            fn drop(&mut self) {
                let _ = detach(&self.0, true);
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let honoured = Restrictions { nosuid: false, nodev: false, noexec: true };
        // Nobody serves it: it must not be asked either.
        let device = attach(&path, "starling:a.b", honoured).unwrap();
        let attached = Attached(path.clone());
        let line = || mounted_at(&path).unwrap().unwrap();
        assert!(!line().has("nosuid") && line().has("noexec"), "{:?}", line());
        restrict(&path, "a.b", honoured).unwrap();
        assert!(!line().has("nosuid"), "{:?}", line());
        let wanted = Restrictions { noexec: true, ..Restrictions::default() };
        restrict(&path, "a.b", wanted).unwrap();
        assert!(wanted.hold_in(&line()) && line().has("ro"), "{:?}", line());
        // What something else covers is not reached, and must not pass for what was asked.
        rustix::mount::mount("none", &path, "tmpfs", MountFlags::empty(), c"").unwrap();
        let _covering = Attached(path.clone());
        restrict(&path, "a.b", wanted).unwrap();
        let refused = restrict(&path, "other", wanted).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
        drop((attached, device));
    }

    #[test]
    fn what_is_no_fuse_device_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        let found = [folder.path().join("missing"), file, folder.path().into(), "/dev/null".into()];
        for (path, says) in
            found.iter().zip(["not there", "no FUSE device", "no FUSE device", "no FUSE device"])
        {
            let error = open_device(path, Path::new("/mnt")).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("modprobe fuse"), "{}: {error}", path.display());
        }
    }

    #[test]
    fn one_thread_waits_for_a_path_that_gives_no_answer_and_once_it_does_it_is_asked_again() {
        let (asked, begun) = (Path::new("/no/where/hung"), Arc::new(AtomicUsize::new(0)));
        let (answer, answered) = sync_channel::<()>(0);
        let answered = Arc::new(Mutex::new(answered));
        let ask = || {
            let (begun, answered) = (begun.clone(), answered.clone());
            let hang = move || {
                begun.fetch_add(1, Ordering::SeqCst);
                answered.lock().unwrap().recv().is_err()
            };
            within_alive("test", asked, hang)
        };
        assert_eq!((ask(), ask()), (None, None));
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        assert_eq!(within_alive("test", Path::new("/no/where/else"), || 1), Some(1));
        assert_eq!(within_alive("something else", asked, || 2), Some(2));
        drop(answer);
        assert_eq!((ask(), ask()), (Some(true), Some(true)));
        assert_eq!(begun.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn an_unfit_mount_point_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        assert!(matches!(prepare(&folder.path().join("missing")), Err(MountError::NotThere { .. })));
        assert!(matches!(prepare(&folder.path().join("no/where")), Err(MountError::NotThere { .. })));
        assert!(matches!(prepare(&file), Err(MountError::NotADirectory { .. })));
        assert!(matches!(prepare(folder.path()), Err(MountError::NotEmpty { .. })));
        assert!(matches!(prepare(Path::new("/proc")), Err(MountError::AlreadyMounted { .. })));
        std::fs::remove_file(&file).unwrap();
        let link = folder.path().join("link");
        let real = folder.path().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(prepare(&link).unwrap(), real.canonicalize().unwrap());
        // The same without looking at what is mounted there.
        let behind = folder.path().join("behind");
        std::os::unix::fs::symlink(folder.path(), &behind).unwrap();
        for path in [&link, &real, &behind.join("real"), &behind.join("link")] {
            assert_eq!(real_path(path), real.canonicalize().unwrap());
        }
        assert_eq!(real_path(&behind.join("missing")), folder.path().canonicalize().unwrap().join("missing"));
        assert_eq!(real_path(Path::new("/no/where")), Path::new("/no/where"));
    }
}
