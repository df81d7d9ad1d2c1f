//! A request is often followed by the next at once; so the thread that has answered looks for it for a moment before it sleeps.
//!
//! Otherwise the kernel wakes it for each, on an idle processor if there is one, and that takes longer than the answer. (Measured
//! with two virtual processors whose idle ones halt at once: opening, reading and closing a small file took 44 µs, and 24 with this. Also
//! tried: to keep the thread on its caller's processor, 38 µs, since the kernel then moves the caller.) On a machine that
//! is busy it gives way at each look.

use crate::ambient;
use crate::model::Time;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long it looks (guess: Python takes 60 µs between two modules).
const LOOK: Duration = Duration::from_micros(100);
/// It looks only where the request that was answered came within so much after the one before: twice as long as it takes to wake
/// two processors.
const CLOSE: Duration = Duration::from_micros(200);

/// One thread of a mount at a time looks for the next request.
pub(super) struct Linger {
    /// When the mount began.
    began: Time,
    /// When the last request was answered, in nanoseconds since then.
    answered_ns: AtomicU64,
    looking: AtomicBool,
}

impl Linger {
    pub(super) fn new() -> Self {
        Self { began: ambient::now(), answered_ns: AtomicU64::new(0), looking: AtomicBool::new(false) }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(ambient::now().since(self.began).as_nanos()).unwrap_or(u64::MAX)
    }

    /// A request has come. Returns whether it is worth to look for the next one after it.
    pub(super) fn is_close(&self) -> bool {
        let since = self.now_ns().saturating_sub(self.answered_ns.load(Ordering::Relaxed));
        u128::from(since) < CLOSE.as_nanos()
    }

    /// A request was answered. If the one after it is `worth` looking for, this returns when it is there, or after a moment.
    pub(super) fn answered(&self, device: BorrowedFd<'_>, worth: bool) {
        let now = self.now_ns();
        self.answered_ns.store(now, Ordering::Relaxed);
        if !worth || self.looking.swap(true, Ordering::Acquire) {
            return;
        }
        let until = ambient::now() + LOOK;
        while !is_waiting(device) && ambient::now() < until {
            std::thread::yield_now();
        }
        self.looking.store(false, Ordering::Release);
    }
}

/// Whether a request can be taken from the kernel now.
fn is_waiting(device: BorrowedFd<'_>) -> bool {
    let mut descriptors = [PollFd::from_borrowed_fd(device, PollFlags::IN)];
    // An error is found by whoever reads.
    poll(&mut descriptors, Some(&Timespec::default())).map_or(true, |ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    #[test]
    fn it_looks_until_a_request_is_there_and_never_for_long() {
        let (ours, mut kernels) = std::io::pipe().unwrap();
        let linger = Linger::new();
        assert!(linger.is_close(), "it has just begun");
        linger.answered(ours.as_fd(), true);
        assert!(!linger.looking.load(Ordering::Relaxed), "nothing came, and it ended");
        kernels.write_all(b"x").unwrap();
        assert!(is_waiting(ours.as_fd()));
        linger.answered(ours.as_fd(), true);
        drop(kernels);
        assert!(is_waiting(ours.as_fd()), "an end is for the reader to find");
        std::thread::sleep(2 * CLOSE);
        assert!(!linger.is_close());
    }
}
