//! The kernel's automounter (autofs, protocol 5): a folder whose names are mounted when somebody enters them.
//!
//! Whoever enters a name that is not mounted waits; the kernel writes a packet into a pipe, and goes on with whoever waits once it is
//! told how that went. Names that nobody has used for a while it proposes to unmount. Processes of the group of the one
//! that has begun are not made to wait: they find the folder as it is, or nothing could be mounted there. So that
//! nobody else is in that group, [`Autofs::begin`] makes one of its own.
//!
//! The folder stays when the process ends; names that are mounted stay mounted, others cannot be entered until a successor begins.

use super::mountpoint::{autofs_at, detach, real_path};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `mount` shows as the folder's source.
const SOURCE: &str = "starling";
/// `struct autofs_v5_packet` of linux/auto_fs.h: 300 bytes, and 4 of padding on most machines.
const PACKET_MIN_BYTES: usize = 300;
const PACKET_MAX_BYTES: usize = 304;
/// Where its fields lie.
const KIND_AT: usize = 4;
const TOKEN_AT: usize = 8;
const LEN_AT: usize = 40;
const NAME_AT: usize = 44;
/// Kinds of packets for a folder of names ("indirect").
const MISSING: u32 = 3;
const EXPIRE: u32 = 4;
/// `struct autofs_dev_ioctl` of linux/auto_dev-ioctl.h, without a path.
const CONTROL_BYTES: usize = 24;
/// Its `AUTOFS_DEV_IOCTL_…`: `_IOWR(0x93, NUMBER, struct autofs_dev_ioctl)`.
const fn command(number: u32) -> libc::Ioctl {
    (3 << 30 | 24 << 16 | 0x93 << 8 | number) as libc::Ioctl
}
const READY: libc::Ioctl = command(0x76);
const FAIL: libc::Ioctl = command(0x77);
const SET_PIPE: libc::Ioctl = command(0x78);
const CATATONIC: libc::Ioctl = command(0x79);
const TIMEOUT: libc::Ioctl = command(0x7a);
const EXPIRE_ONE: libc::Ioctl = command(0x7c);

/// What the kernel asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names the request in the answer.
    pub token: u32,
    /// The name in the folder.
    pub name: Vec<u8>,
    /// Whether it is to be unmounted; else it is to be mounted.
    pub is_expiry: bool,
}

/// A folder whose names are mounted when somebody enters them. Every call may be made from any thread.
#[derive(Debug)]
pub struct Autofs {
    path: PathBuf,
    root: File,
    control: File,
}

/// Where requests come from.
#[derive(Debug)]
pub struct Requests(File);

impl Autofs {
    /// Makes a folder such a one, or takes over one that a predecessor has left. What is mounted below stays.
    ///
    /// # Errors
    /// When the kernel has no automounter, something else is there, or this process may not mount.
    pub fn begin(path: &Path) -> io::Result<(Self, Requests)> {
        // As the list of mounts has it, in which a predecessor's is looked for.
        let path = &real_path(path);
        let control = open_control()?;
        // Who leads a session leads its group as well.
        match rustix::process::setpgid(None, None) {
            Ok(()) | Err(Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        let (ours, kernels) = pipe_with(PipeFlags::CLOEXEC)?;
        let is_left = autofs_at(path, SOURCE)?;
        if !is_left {
            attach(path, &kernels)?;
        }
        let autofs = Self { path: path.to_owned(), root: File::open(path)?, control };
        if is_left {
            autofs.ask(CATATONIC, [0; 2])?;
            autofs.ask(SET_PIPE, [word(kernels.as_raw_fd()), 0])?;
        }
        Ok((autofs, Requests(File::from(ours))))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a name visible that was not mounted yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn show(&self, name: &str) -> io::Result<()> {
        match fs::create_dir(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// How long a name must have been unused before [`Autofs::expire`] proposes it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_idle(&self, idle: Duration) -> io::Result<()> {
        let seconds = idle.as_secs().to_ne_bytes();
        let word =
            |at: usize| u32::from_ne_bytes([seconds[at], seconds[at + 1], seconds[at + 2], seconds[at + 3]]);
        self.ask(TIMEOUT, [word(0), word(4)])
    }

    /// Has the kernel ask to unmount a name that nobody uses. Returns once that was answered, on another thread; whether there was one.
    ///
    /// # Errors
    /// What the kernel says, or whoever could not unmount it.
    pub fn expire(&self) -> io::Result<bool> {
        match self.ask(EXPIRE_ONE, [0; 2]) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What was asked for is done.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn ready(&self, token: u32) -> io::Result<()> {
        self.ask(READY, [token, 0])
    }

    /// What was asked for is not done: there is no such name, or it could not be had.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn fail(&self, token: u32, is_unknown: bool) -> io::Result<()> {
        let errno = if is_unknown { libc::ENOENT } else { libc::EIO };
        self.ask(FAIL, [token, word(-errno)])
    }

    /// Takes the folder away, with all below it.
    ///
    /// # Errors
    /// When the system refuses, or something else is mounted there by now.
    pub fn end(&self) -> io::Result<()> {
        if autofs_at(&self.path, SOURCE)? { detach(&self.path, true) } else { Ok(()) }
    }

    /// `struct autofs_dev_ioctl`: version, size, descriptor of the folder, two words that depend on the command.
    fn ask(&self, command: libc::Ioctl, [first, second]: [u32; 2]) -> io::Result<()> {
        let size = u32::try_from(CONTROL_BYTES).unwrap_or(u32::MAX);
        let mut words = [1, 0, size, word(self.root.as_raw_fd()), first, second];
        const { assert!(size_of::<[u32; 6]>() == CONTROL_BYTES) };
        // SAFETY: the kernel reads and writes as many bytes as the structure states of itself, which is the array's size; the
        // array lives until the call returns.
        let answer = unsafe { libc::ioctl(self.control.as_raw_fd(), command, words.as_mut_ptr()) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Requests {
    /// The next request; `None` when none can come any more. Blocks.
    pub fn receive(&mut self) -> Option<Request> {
        loop {
            let mut packet = [0; PACKET_MAX_BYTES];
            match self.0.read(&mut packet) {
                Ok(0) => return None,
                Ok(len) => {
                    if let Some(request) = parse(&packet[..len]) {
                        return Some(request);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}

fn word(number: RawFd) -> u32 {
    u32::from_ne_bytes(number.to_ne_bytes())
}

fn parse(packet: &[u8]) -> Option<Request> {
    if packet.len() < PACKET_MIN_BYTES {
        return None;
    }
    let field = |at: usize| packet.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let (kind, token, len) = (field(KIND_AT)?, field(TOKEN_AT)?, usize::try_from(field(LEN_AT)?).ok()?);
    let name = packet.get(NAME_AT..PACKET_MIN_BYTES)?.get(..len)?.to_vec();
    matches!(kind, MISSING | EXPIRE).then_some(Request { token, name, is_expiry: kind == EXPIRE })
}

fn open_control() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/autofs").map_err(|error| {
        let detail = format!(
            "/dev/autofs: {error}: load the module (`modprobe autofs4`), or give the container the device"
        );
        io::Error::new(error.kind(), detail)
    })
}

fn attach(path: &Path, pipe: &OwnedFd) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if fs::read_dir(path)?.next().is_some() {
        return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, "the folder is not empty"));
    }
    let group = rustix::process::getpgrp().as_raw_nonzero();
    let options = format!("fd={},pgrp={group},minproto=5,maxproto=5,indirect", pipe.as_raw_fd());
    let options = CString::new(options.into_bytes()).map_err(io::Error::other)?;
    rustix::mount::mount(SOURCE, path, "autofs", MountFlags::empty(), options.as_c_str())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u32, token: u32, name: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; PACKET_MAX_BYTES];
        packet[KIND_AT..KIND_AT + 4].copy_from_slice(&kind.to_ne_bytes());
        packet[TOKEN_AT..TOKEN_AT + 4].copy_from_slice(&token.to_ne_bytes());
        let len = u32::try_from(name.len()).unwrap();
        packet[LEN_AT..LEN_AT + 4].copy_from_slice(&len.to_ne_bytes());
        packet[NAME_AT..NAME_AT + name.len()].copy_from_slice(name);
        packet
    }

    #[test]
    fn packets_are_read_and_what_is_none_is_dropped() {
        let wish = |name: &[u8], is_expiry| Some(Request { token: 7, name: name.to_vec(), is_expiry });
        assert_eq!(parse(&packet(MISSING, 7, b"sw.example.org")), wish(b"sw.example.org", false));
        assert_eq!(parse(&packet(EXPIRE, 7, b"a")), wish(b"a", true));
        assert_eq!(parse(&packet(5, 7, b"a")), None, "a kind that is not asked for");
        assert_eq!(parse(&packet(MISSING, 7, b"a")[..PACKET_MIN_BYTES - 1]), None);
        let mut long = packet(MISSING, 7, b"a");
        long[LEN_AT..LEN_AT + 4].copy_from_slice(&300_u32.to_ne_bytes());
        assert_eq!(parse(&long), None, "a name that is longer than its packet");
    }
}
