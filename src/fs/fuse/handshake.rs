//! The first words between the kernel and a session, and how a session takes over where another process has ended.
//!
//! fuser expects that the kernel begins with `FUSE_INIT`, which it says once in the life of a mount. So fuser is given one end
//! of a pair of sockets instead of the device: on it, it finds the kernel's request, the one of today or the one that was
//! written down when the mount began. Once it has answered, the device itself is put under the number of its end, and
//! the session reads from the kernel.

use fuser::{Filesystem, Session, SessionACL};
use rustix::io::{Errno, read, write};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};

/// Smallest buffer into which the kernel delivers a request (`FUSE_MIN_READ_BUFFER`).
const REQUEST_MAX_BYTES: usize = 8192;
/// Most bytes of an answer to `FUSE_INIT`: a header of 16 bytes and 64 more today.
const REPLY_MAX_BYTES: usize = 512;
/// Where the answer's second word of flags lies: behind the header and 32 bytes.
const FLAGS2_AT: usize = 16 + 32;
/// `FUSE_PASSTHROUGH`, bit 37 of the flags.
const PASSTHROUGH_IN_FLAGS2: u32 = 1 << 5;
/// Code of the notification that asks the kernel to send again what nobody has answered (Linux 6.9).
const NOTIFY_RESEND: i32 = 7;
/// Set in the number of a request that is sent again.
pub(super) const RESENT: u64 = 1 << 63;

/// What kernel and session agreed upon when the mount began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Agreement {
    /// Whether the kernel may read files by itself.
    pub(super) fn has_passthrough(&self) -> bool {
        let flags = self.reply.get(FLAGS2_AT..FLAGS2_AT + 4).and_then(|bytes| bytes.try_into().ok());
        flags.is_some_and(|bytes| u32::from_ne_bytes(bytes) & PASSTHROUGH_IN_FLAGS2 != 0)
    }
}

/// Begins a session on a new mount.
///
/// # Errors
/// When the kernel or fuser refuses.
pub(super) fn begin<K: Filesystem>(
    kernel: K,
    device: BorrowedFd<'_>,
    config: fuser::Config,
) -> io::Result<(Session<K>, Agreement)> {
    let mut buffer = vec![0; REQUEST_MAX_BYTES];
    let len = loop {
        match read(device, &mut buffer) {
            Ok(len) => break len,
            // As fuser does: the request was withdrawn, or a signal came.
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    buffer.truncate(len);
    let (session, reply) = answer(kernel, &buffer, config);
    if !reply.is_empty() {
        write(device, &reply)?;
    }
    let session = session?;
    put_under(device, &session)?;
    Ok((session, Agreement { request: buffer, reply }))
}

/// Begins a session on a mount that another process has served, and has the kernel send again what that one left
/// unanswered. Call [`resend`] once the session runs.
///
/// # Errors
/// When fuser refuses.
pub(super) fn take_over<K: Filesystem>(
    kernel: K,
    device: BorrowedFd<'_>,
    agreement: &Agreement,
    config: fuser::Config,
) -> io::Result<Session<K>> {
    let (session, reply) = answer(kernel, &agreement.request, config);
    let session = session?;
    if reply != agreement.reply {
        // Another program, perhaps: the kernel stays with what was agreed, and nothing here depends on the difference.
        tracing::info!(
            "this program would have agreed with the kernel upon something else than its predecessor has"
        );
    }
    put_under(device, &session)?;
    Ok(session)
}

/// Asks the kernel to send again what was taken and never answered. Kernels before 6.9 do not know of it: there, who waits for
/// such an answer waits until the mount ends.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn resend(device: BorrowedFd<'_>) -> io::Result<()> {
    let mut notification = Vec::with_capacity(16);
    notification.extend_from_slice(&16_u32.to_ne_bytes());
    notification.extend_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    notification.extend_from_slice(&0_u64.to_ne_bytes());
    write(device, &notification)?;
    Ok(())
}

/// Lets fuser answer a request that it finds on a socket.
fn answer<K: Filesystem>(
    kernel: K,
    request: &[u8],
    config: fuser::Config,
) -> (io::Result<Session<K>>, Vec<u8>) {
    let talk = || {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        write(&ours, request)?;
        // Should it want to hear more, it hears the end, instead of waiting for ever.
        shutdown(&ours, Shutdown::Write)?;
        io::Result::Ok((ours, theirs))
    };
    let (ours, theirs) = match talk() {
        Ok(pair) => pair,
        Err(error) => return (Err(error), Vec::new()),
    };
    let session = Session::from_fd(kernel, theirs, SessionACL::All, config);
    let mut reply = vec![0; REPLY_MAX_BYTES];
    let said = rustix::net::recv(&ours, &mut reply[..], rustix::net::RecvFlags::DONTWAIT);
    reply.truncate(said.map_or(0, |(len, _)| len));
    (session, reply)
}

/// Puts the device in the place of the socket on which the session has spoken so far.
fn put_under<K: Filesystem>(device: BorrowedFd<'_>, session: &Session<K>) -> io::Result<()> {
    let number = session.as_fd().as_raw_fd();
    // SAFETY: `number` belongs to `session`, which goes on owning it. The session does not run yet, so that nobody uses the
    // descriptor at this moment; and what is put there is a descriptor of the kind for which fuser has made its place.
    let put = unsafe { libc::dup3(device.as_raw_fd(), number, libc::O_CLOEXEC) };
    if put == number { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts something in the device's place on which nothing comes and nothing goes: answers that are still being made reach
/// nobody, and who waits for them gets them from a successor.
///
/// # Errors
/// When no descriptors can be had.
pub(super) fn take_away(number: RawFd) -> io::Result<()> {
    let (ours, _) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // SAFETY: `number` belongs to a session that runs, whose threads use it for one call at a time: each call sees the old
    // file or the new one.
    let put = unsafe { libc::dup3(ours.as_raw_fd(), number, libc::O_CLOEXEC) };
    if put == number { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_of_passthrough_is_found_in_the_answer() {
        let mut reply = vec![0; 16 + 64];
        let agreed = |reply: &[u8]| Agreement { request: vec![], reply: reply.to_vec() }.has_passthrough();
        assert!(!agreed(&reply) && !agreed(&[]) && !agreed(&[255; 20]));
        reply[FLAGS2_AT..FLAGS2_AT + 4].copy_from_slice(&PASSTHROUGH_IN_FLAGS2.to_ne_bytes());
        assert!(agreed(&reply));
    }
}
