//! Processors stay awake while requests follow each other.
//!
//! A request puts its caller to sleep and wakes a thread of this process, and the answer does the opposite. To wake a processor that has
//! halted takes longer than all the rest: 20 µs each way on a virtual machine, where it goes through the host, and
//! on a real one as much as the idle state is deep. The kernel lets programs say how long a wake-up may take
//! (`/dev/cpu_dma_latency`, its documentation: "PM Quality Of Service Interface"), for as long as they keep the file open. It is
//! held while requests come closely one after the other and given back a few milliseconds after the last, so that a
//! machine at rest rests. The file closes with the process, so nothing is left behind by one that is killed.
//!
//! Measured with two virtual processors: the start of a Python program of 3 500 modules took 1.18 times as long as on ext4 with
//! this, 1.81 without; 10 000 small files opened, read and closed, with a request to open each, 8.4 and 14.9. Before,
//! the thread that had answered looked for the next request for 100 µs (1.63), which does nothing for the way back; with
//! both, it was 1.26.

use crate::ambient;
use crate::model::Time;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Where the kernel is told, in microseconds as a native 32-bit number.
const DEVICE: &str = "/dev/cpu_dma_latency";
/// Says who puts idle processors to sleep.
const IDLE_DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";
/// Requests that come within so much of each other are a series: a few times what it takes to wake two processors (guess).
const CLOSE: Duration = Duration::from_micros(300);
/// A series has ended after so long without a request: Python computes for up to a millisecond between two modules (guess).
const QUIET: Duration = Duration::from_millis(4);
/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The longest wake-up that is asked for, in microseconds. A virtual machine's idle processors must not halt at all. A real one's
/// lightest idle state takes one or two microseconds to leave, and saves most of what there is to save (guess: not measured).
fn latency_us(driver: &Path) -> i32 {
    let driver = std::fs::read_to_string(driver).unwrap_or_default();
    if driver.trim() == "haltpoll" { 0 } else { 2 }
}

/// What keeps processors awake for one mount.
#[derive(Clone)]
pub(super) struct Awake(Arc<Inner>);

struct Inner {
    device: PathBuf,
    latency_us: i32,
    began: Time,
    /// When the last request came, in nanoseconds since then.
    last_ns: AtomicU64,
    /// Whether the kernel is told, or a task is about to see that it need not be any more.
    held: AtomicBool,
    /// Whether it can be told at all: it needs root, and the device.
    works: AtomicBool,
}

impl Awake {
    /// `wanted`: whether anything is to be done at all.
    pub(super) fn new(wanted: bool) -> Self {
        Self::with(Path::new(DEVICE), latency_us(Path::new(IDLE_DRIVER)), wanted)
    }

    fn with(device: &Path, latency_us: i32, wanted: bool) -> Self {
        Self(Arc::new(Inner {
            device: device.to_owned(),
            latency_us,
            began: ambient::now(),
            last_ns: AtomicU64::new(0),
            held: AtomicBool::new(false),
            works: AtomicBool::new(wanted),
        }))
    }

    /// A request has come. If it is one of a series, processors stay awake until that has ended.
    pub(super) fn asked(&self, runtime: &tokio::runtime::Handle) {
        let inner = &self.0;
        if !inner.works.load(Ordering::Relaxed) {
            return;
        }
        let now = inner.now_ns();
        let since = now.saturating_sub(inner.last_ns.swap(now, Ordering::Relaxed));
        if u128::from(since) >= CLOSE.as_nanos() || inner.held.swap(true, Ordering::AcqRel) {
            return;
        }
        match inner.tell() {
            Ok(told) => {
                let inner = Arc::clone(inner);
                runtime.spawn(async move {
                    while !inner.is_quiet() {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                    drop(told);
                    inner.held.store(false, Ordering::Release);
                });
            }
            Err(error) => {
                tracing::debug!("processors are not kept awake: {}: {error}", inner.device.display());
                inner.works.store(false, Ordering::Relaxed);
            }
        }
    }
}

impl Inner {
    fn now_ns(&self) -> u64 {
        u64::try_from(ambient::now().since(self.began).as_nanos()).unwrap_or(u64::MAX)
    }

    fn is_quiet(&self) -> bool {
        let since = self.now_ns().saturating_sub(self.last_ns.load(Ordering::Relaxed));
        u128::from(since) >= QUIET.as_nanos()
    }

    /// Tells the kernel; it holds as long as the file is open.
    fn tell(&self) -> io::Result<File> {
        let mut file = File::options().write(true).open(&self.device)?;
        file.write_all(&self.latency_us.to_ne_bytes())?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn until(mut is_so: impl FnMut() -> bool) {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn it_is_told_during_a_series_and_given_back_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        std::fs::write(&device, "").unwrap();
        let awake = Awake::with(&device, 7, true);
        let runtime = tokio::runtime::Handle::current();
        std::thread::sleep(2 * CLOSE);
        awake.asked(&runtime);
        assert!(!awake.0.held.load(Ordering::Relaxed), "one request is no series");
        // However slow the machine is, two of these come close to each other some time.
        until(|| {
            awake.asked(&runtime);
            awake.0.held.load(Ordering::Relaxed)
        })
        .await;
        assert_eq!(std::fs::read(&device).unwrap(), 7_i32.to_ne_bytes());
        until(|| !awake.0.held.load(Ordering::Relaxed)).await;
        assert_eq!(Arc::strong_count(&awake.0), 1, "nobody looks any more");
    }

    #[tokio::test]
    async fn where_it_cannot_be_told_it_is_not_tried_again_nor_where_it_is_not_wanted() {
        let runtime = tokio::runtime::Handle::current();
        let cannot = Awake::with(Path::new("/nowhere/at/all"), 0, true);
        until(|| {
            cannot.asked(&runtime);
            !cannot.0.works.load(Ordering::Relaxed)
        })
        .await;
        let unwanted = Awake::with(Path::new("/nowhere/at/all"), 0, false);
        unwanted.asked(&runtime);
        assert!(!unwanted.0.held.load(Ordering::Relaxed));
    }

    #[test]
    fn a_virtual_machine_must_not_halt_and_a_real_one_may_doze() {
        let dir = tempfile::tempdir().unwrap();
        let driver = dir.path().join("driver");
        std::fs::write(&driver, "haltpoll\n").unwrap();
        assert_eq!(latency_us(&driver), 0);
        std::fs::write(&driver, "intel_idle\n").unwrap();
        assert_eq!((latency_us(&driver), latency_us(&dir.path().join("none"))), (2, 2));
    }
}
