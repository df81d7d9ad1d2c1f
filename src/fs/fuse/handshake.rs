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
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

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
/// `FUSE_DESTROY`, with which the kernel ends a session.
const DESTROY: u32 = 38;
/// Bytes of the header of a request.
const REQUEST_HEADER_BYTES: usize = 40;
/// Room for the largest answer, 1 MiB of a file, with what the system counts beside.
const ANSWER_MAX_BYTES: libc::c_int = 2 << 20;
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
/// unanswered. Call [`resend`] before the session runs.
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

/// Puts something in the device's place where each of the session's `threads` finds that the mount has ended, and where their
/// answers are taken and go nowhere: who waits for them gets them from a successor.
///
/// # Errors
/// When no descriptors, or no thread, can be had.
pub(super) fn take_away(number: RawFd, threads: usize) -> io::Result<()> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // The largest answer is one message. Without the right to so much it is refused, which fuser logs, and nothing else.
    let _ = force_send_buffer(&ours, ANSWER_MAX_BYTES);
    for _ in 0..threads {
        write(&theirs, &ending())?;
    }
    std::thread::Builder::new().name("starling-left".to_owned()).spawn(move || {
        // Of a message, what does not fit is discarded.
        let mut buffer = [0; 16];
        while rustix::io::retry_on_intr(|| read(&theirs, &mut buffer)).is_ok_and(|len| len > 0) {}
    })?;
    // SAFETY: `number` belongs to a session that runs, whose threads use it for one call at a time: each call sees the old
    // file or the new one.
    let put = unsafe { libc::dup3(ours.as_raw_fd(), number, libc::O_CLOEXEC) };
    if put == number { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A request `FUSE_DESTROY`: the header and nothing else.
fn ending() -> [u8; REQUEST_HEADER_BYTES] {
    let mut request = [0; REQUEST_HEADER_BYTES];
    let words = [u32::try_from(REQUEST_HEADER_BYTES).unwrap_or(0), DESTROY];
    for (at, word) in words.iter().enumerate() {
        request[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
    }
    // The number of a request is never zero.
    request[8] = 2;
    request
}

/// Makes room for messages of so many bytes, beyond what the system grants everybody.
fn force_send_buffer(socket: &OwnedFd, bytes: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&bytes)).unwrap_or(0);
    // SAFETY: the call reads an integer of that length, which lives until it returns.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            (&raw const bytes).cast(),
            len,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers nothing: nobody asks.
    struct Nobody;
    impl Filesystem for Nobody {}

    #[test]
    fn a_session_from_which_its_device_is_taken_ends_and_its_answers_go_nowhere() {
        let (device, kernel) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut init = vec![0_u8; REQUEST_HEADER_BYTES + 64];
        for (at, word) in [(0, 104_u32), (4, 26), (8, 2), (40, 7), (44, 41)] {
            init[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        write(&kernel, &init).unwrap();
        let mut config = fuser::Config::default();
        config.n_threads = Some(3);
        let (session, _) = begin(Nobody, device.as_fd(), config).unwrap();
        let number = session.as_fd().as_raw_fd();
        take_away(number, 3).unwrap();
        let large = vec![0; (1 << 20) + 16];
        for _ in 0..5 {
            match write(session.as_fd(), &large) {
                Ok(len) => assert_eq!(len, large.len()),
                // Who may not have so large a buffer hears it.
                Err(errno) => assert_eq!(errno, Errno::MSGSIZE),
            }
        }
        session.run().unwrap();
    }

    #[test]
    fn the_flag_of_passthrough_is_found_in_the_answer() {
        let mut reply = vec![0; 16 + 64];
        let agreed = |reply: &[u8]| Agreement { request: vec![], reply: reply.to_vec() }.has_passthrough();
        assert!(!agreed(&reply) && !agreed(&[]) && !agreed(&[255; 20]));
        reply[FLAGS2_AT..FLAGS2_AT + 4].copy_from_slice(&PASSTHROUGH_IN_FLAGS2.to_ne_bytes());
        assert!(agreed(&reply));
    }
}
